//! Discriminators that a tokenizer is trained against (VQGAN, arXiv:2012.09841), and the differentiable
//! augmentation of what they see.
//!
//! A [`Discriminator`] judges images part by part: it gives logits, which are large for what looks like
//! an image of the data. The losses over them are in `sar_loss::adversarial`.
//!
//! Pixels are in [-1, 1], as everywhere in this project.
//!
//! ```
//! use burn::tensor::Tensor;
//! use burn_flex::Flex;
//! use sar_core::SeedTree;
//! use sar_discriminator::augment::{Augmentation, augment};
//! use sar_discriminator::{DiscriminatorConfig, init};
//!
//! let (device, seed) = (Default::default(), SeedTree::new(1));
//! let config = DiscriminatorConfig::PatchGan { channels: 32, layers: 2 };
//! // The family that looks through a frozen network asks for it; this one does not.
//! let judge = init::<Flex>(&config, || unreachable!(), seed.child("init"), &device)?;
//! let gray_bchw = Tensor::zeros([2, 3, 32, 32], &device);
//! let draws = [0, 1].map(|image| seed.child("augment").at(image));
//! let seen_bchw = augment(gray_bchw, &[Augmentation::Translation], &draws);
//! assert_eq!(judge.logits(seen_bchw)[0].dims(), [2, 6 * 6]);
//! # Ok::<(), sar_discriminator::DiscriminatorConfigError>(())
//! ```

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
