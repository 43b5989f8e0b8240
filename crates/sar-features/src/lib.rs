#![doc = include_str!("../README.md")]
//!
//! The weights are constants of the modules, no parameters: no optimizer and no checkpoint sees them,
//! and under `Autodiff` gradients reach the images alone.
//!
//! Pixels are in [-1, 1], as everywhere in this project; what a network was trained on is made of them
//! inside.

mod batch_norm;
mod content;
mod convolution;
mod load;

mod efficientnet;
mod inception;
mod vgg;

mod distance;
mod lpips;

pub use distance::PerceptualDistance;
pub use efficientnet::{EfficientNetLite0, MAP_CHANNELS, MIN_SIDE, WEIGHTS};
pub use inception::{Inception, InceptionFeatures, InceptionInput};
pub use lpips::Lpips;
pub use vgg::{MIN_SIDE as VGG_MIN_SIDE, Vgg16};
