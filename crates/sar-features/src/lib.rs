//! Frozen networks that look at images: features to compare sets of images by, and perceptual
//! distances between two images, for figures and for losses.
//!
//! Nothing here is trained. The weights are constants of the modules, no parameters: no optimizer and
//! no checkpoint sees them, and under `Autodiff` gradients reach the images alone.
//!
//! Pixels are in [-1, 1], as everywhere in this project; what a network was trained on is made of them
//! inside.
//!
//! ```no_run
//! use burn::tensor::Tensor;
//! use burn_flex::Flex;
//! use sar_features::{EfficientNetLite0, WEIGHTS};
//!
//! let device = Default::default();
//! let net = EfficientNetLite0::<Flex>::from_bytes(WEIGHTS.to_vec(), &device)?;
//! let gray_bchw = Tensor::zeros([2, 3, 64, 64], &device);
//! assert_eq!(net.pooled(gray_bchw).dims(), [2, 1280]);
//! # Ok::<(), sar_weights::WeightsError>(())
//! ```

mod batch_norm;
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
pub use vgg::Vgg16;
