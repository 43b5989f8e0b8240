#![doc = include_str!("../README.md")]
//!
//! A [`TokenizerMeter`] takes batches of images and gives [`TokenizerFigures`]: PSNR, structural similarity
//! and code use by scale, the error by axes of color, and [`Distance`]s in the eyes of a network where these
//! are asked for. Training measures its held-out images with it; [`ImageSet`] reads any other images, each
//! once and cropped to a square.
//!
//! Sets of images are compared by features: [`Pictures`] through an [`Extractor`] become a [`FeatureSet`],
//! a [`Reference`] is one of real images, and beside it a set has its [`Quality`]. The measures
//! themselves are in `sar-metrics`.

mod error;

mod distance;
mod figures;
mod images;
mod meter;

mod npz;
mod pictures;
mod statistics;

mod extractor;
mod features;
mod quality;

pub use distance::Distance;
pub use error::EvalError;
pub use extractor::{Extracted, Extractor};
pub use features::{FeatureSet, Keep, Looking};
pub use figures::{TokenizerColor, TokenizerFigures, TokenizerScale};
pub use images::{ImageSet, Square};
pub use meter::{TokenizerMeter, TokenizerSums};
pub use npz::{Matrix, Npz, npy_header};
pub use pictures::{Pictures, class_slug};
pub use quality::{Glance, Quality, Reference};
pub use statistics::{read_statistics, write_statistics};
