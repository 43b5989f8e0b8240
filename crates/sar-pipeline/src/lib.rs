#![doc = include_str!("../README.md")]
//!
//! A [`Pipeline`] holds a tokenizer and a backbone together with the classes, the scales and the way
//! of sampling that belong to them.

pub mod pixels;
pub mod sheet;

pub mod codebook_sketch;
pub mod recognize;
pub mod stage_id;
pub mod weights;

pub mod pipeline;
pub mod wishes;

pub mod edit;
pub mod mask;
pub mod origin;

pub mod error;

pub use codebook_sketch::CodebookSketch;
pub use edit::{Edit, EditSettings, Part};
pub use error::PipelineError;
pub use image::RgbImage;
pub use mask::Mask;
pub use origin::{EditOrigin, EditedPart, JobOrigin, MadeWith, Origin, SourceFile};
pub use pipeline::{Pipeline, Request, files_of_run, sample_stream, tokenizer_of_run};
pub use pixels::{enlarge, grid, magnification, to_images, to_png, to_tensor};
pub use recognize::{Known, Model, Recognized, Wanted};
pub use sar_core::{ClassError, find_class};
pub use sheet::reconstructions;
pub use stage_id::StageId;
pub use weights::{Loaded, TrainedBackbone, TrainedTokenizer, published_sampler};
pub use wishes::{Wishes, pixels as size_in_pixels};
