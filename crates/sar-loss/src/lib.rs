#![doc = include_str!("../README.md")]
//!
//! Token losses return one value per token; reductions are named and applied by the caller. The
//! losses of [`vq`] are means over all latents, those of [`adversarial`] over all logits. Everything
//! is generic over the burn backend, and works with any model.

pub mod adversarial;
pub mod cross_entropy;
pub mod csfl;
pub mod reduction;
pub mod ssim;
pub mod stats;
pub mod vq;

pub use cross_entropy::{cross_entropy, soft_cross_entropy};
pub use csfl::{StudentTarget, Target, student_forcing};
pub use reduction::{Reduction, mean_tokens};
pub use ssim::ssim;
pub use stats::{ScaleStats, StatsByScale, histogram_entropy};
