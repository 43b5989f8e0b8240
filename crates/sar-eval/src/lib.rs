//! How well a tokenizer does on images: what it loses at every scale, and how it uses its codes.
//!
//! A [`TokenizerMeter`] takes batches of images and gives [`TokenizerFigures`]: PSNR, structural similarity
//! and code use by scale, the error by axes of color, and [`Distance`]s in the eyes of a network where these
//! are asked for. Training measures its held-out images with it; [`ImageSet`] reads any other images, each
//! once and cropped to a square.

mod distance;
mod figures;
mod images;
mod meter;

pub use distance::Distance;
pub use figures::{TokenizerColor, TokenizerFigures, TokenizerScale};
pub use images::{ImageSet, Square};
pub use meter::TokenizerMeter;
