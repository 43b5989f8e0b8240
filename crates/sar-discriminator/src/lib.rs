#![doc = include_str!("../README.md")]
//!
//! A [`Discriminator`] judges images part by part: it gives logits, which are large for what looks like
//! an image of the data.
//!
//! Pixels are in [-1, 1], as everywhere in this project.

mod config;
mod layers;

mod feature_heads;
mod patch_gan;

mod discriminator;
mod init;

pub mod augment;

pub use config::{DiscriminatorConfig, DiscriminatorConfigError};
pub use discriminator::{Discriminator, LAYOUT};
pub use feature_heads::FeatureHeads;
pub use init::init;
pub use patch_gan::PatchGan;
