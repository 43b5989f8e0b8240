//! Trained weights in use: everything that a program needs to sample and edit, and nothing of
//! training.
//!
//! A [`Pipeline`] holds a tokenizer and a backbone together with the classes, the scales and the way
//! of sampling that belong to them. It opens the folder of a run, or files of weights: those of a run,
//! the released ones of FlexVAR, SAR and VAR, and what training programs make of them, from a path or
//! from bytes in memory.
//!
//! ```
//! use burn_flex::Flex;
//! use sar_pipeline::Pipeline;
//!
//! # let run = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/weights/emoji");
//! # let out = tempfile::tempdir()?;
//! # let out = out.path();
//! let device = Default::default();
//! let pipeline = Pipeline::<Flex>::open_run(run.as_ref(), &device)?;
//! let animals = pipeline.label("animals")?;
//! let request = pipeline.request(animals, 2, 7);
//! for (i, image) in pipeline.sample(&request).iter().enumerate() {
//!     image.save(out.join(format!("{i}.png")))?;
//! }
//! # assert!(out.join("1.png").is_file());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! On `burn-flex`, turn on the feature `flex` of `sar-kernels` for the hand-written operators: without
//! it everything works, several times slower.

pub mod pixels;
pub mod sheet;

pub mod recognize;
pub mod weights;

pub mod pipeline;
pub mod wishes;

pub mod edit;
pub mod mask;
pub mod origin;

pub mod error;

pub use edit::{Edit, EditSettings, Part};
pub use error::PipelineError;
pub use image::RgbImage;
pub use mask::Mask;
pub use origin::{JobOrigin, MadeWith, Origin};
pub use pipeline::{Pipeline, Request, files_of_run, sample_stream, tokenizer_of_run};
pub use pixels::{enlarge, grid, magnification, to_images, to_png, to_tensor};
pub use recognize::{Known, Model, Recognized, Wanted};
pub use sar_core::{ClassError, find_class};
pub use sheet::reconstructions;
pub use weights::{Loaded, TrainedBackbone, TrainedTokenizer, published_sampler};
pub use wishes::{Wishes, pixels as size_in_pixels};
