//! The objectives of scale-wise generation: token cross-entropy, the Contrastive Student-Forcing
//! Loss of SAR (arXiv:2512.06421), per-scale statistics and the losses of a vector quantizer.
//!
//! Token losses return one value per token; reductions are named and applied by the caller. The
//! losses of [`vq`] are means over all latents. Everything is generic over the burn backend, and
//! works with any model.

pub mod cross_entropy;
pub mod csfl;
pub mod reduction;
pub mod stats;
pub mod vq;

pub use cross_entropy::{cross_entropy, soft_cross_entropy};
pub use csfl::{StudentTarget, Target, student_forcing};
pub use reduction::{Reduction, mean_tokens};
pub use stats::{ScaleStats, StatsByScale, histogram_entropy};
