#![doc = include_str!("../README.md")]
//!
//! | measure | of | small is |
//! |---|---|---|
//! | [`frechet`] | two [`Moments`] | good |
//! | [`kernel_distance`], [`kernel_distance_by_subsets`] | two sets | good, and 0 on average between equals |
//! | [`mind`] | two sets | good |
//! | [`prdc`] | two sets with their [`Neighbors`] | bad |
//! | [`inception_score`] | the logits of one set | bad |
//! | [`Probe::accuracy`] | one set and the classes that were asked for | bad |
//! | [`memorization`] | the [`nearest`] training images of samples and of held-out images | bad |
//!
//! None of these numbers means anything alone. They depend on the network, on how images are resized
//! for it and on how many there are: report all three, and beside a number the floor that the same function
//! gives for real images against other real images, as many. Only with the features of the 2015 Inception
//! network is a Fréchet distance an FID; of any other it is a Fréchet distance of that network's features.
//!
//! Everything is computed in f64 by blocks of fixed size that are added in a fixed order, so that no
//! result depends on the number of threads. What is random is a pure function of a seed.

mod cholesky;
mod draws;
mod error;
mod estimate;
mod pairs;
mod product;

mod features;
mod spread;

mod frechet;
mod inception_score;
mod kernel_distance;
mod memorization;
mod mind;
mod moments;
mod nearest;
mod neighbors;
mod prdc;
mod probe;

pub use error::MetricsError;
pub use estimate::{Estimate, holm};
pub use features::Features;
pub use frechet::{Frechet, frechet};
pub use inception_score::{
    RunningInceptionScore, inception_score, inception_score_of_probabilities,
};
pub use kernel_distance::{Subsets, kernel_distance, kernel_distance_by_subsets};
pub use memorization::{Memorization, memorization};
pub use mind::mind;
pub use moments::{Moments, RunningMoments};
pub use nearest::{Nearest, nearest};
pub use neighbors::Neighbors;
pub use prdc::{Prdc, prdc};
pub use probe::{Probe, Ridge};
pub use spread::Spread;
