//! The part of a recipe that is about the tokenizer.

use std::path::PathBuf;

use sar_discriminator::DiscriminatorConfig;
use sar_discriminator::augment::Augmentation;
use sar_loss::ssim::SSIM_WINDOW;
use sar_tokenizer::{Perturbation, TokenizerConfig};
use serde::{Deserialize, Serialize};

use super::{InitFrom, Output};
use crate::learner::Optimization;
use crate::muon::Matrices;
use crate::optim::AdamWConfig;
use crate::schedule::{LrSchedule, WeightDecay};

/// The tokenizer and its training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerRecipe {
    /// Optimization steps; 0 keeps the weights that it starts from.
    pub steps: u64,
    /// The weights that it starts from.
    pub init_from: InitFrom,
    /// What random weights are like.
    pub init: sar_tokenizer::Init,
    /// The colors that it is trained in; it takes and gives RGB in any case.
    pub colors: Colors,
    /// The weights that it ends with.
    pub output: Output,
    /// Shape.
    pub model: TokenizerConfig,
    /// Optimization.
    pub optimization: Optimization,
    /// Weights of the loss terms.
    pub loss: TokenizerLoss,
    /// What is made harder than it is.
    pub regularization: TokenizerRegularization,
    /// What it is trained against.
    pub adversary: Adversary,
    /// When codes that nothing uses get new places.
    pub dead_code_restart: DeadCodeRestart,
}

/// The colors that a tokenizer is trained in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Colors {
    /// Red, green, blue, as published.
    Rgb,
    /// The principal axes of the training images' colors, each over its deviation.
    Principal,
}

/// When codes that nothing uses get new places, those of latents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeadCodeRestart {
    /// Steps between looks for such codes; 0 never looks.
    pub every: u64,
    /// No code is moved after this step, so that the codebook can settle.
    pub until: u64,
}

/// Weights of the tokenizer's loss terms.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerLoss {
    /// How much more the axes of little variance count in the errors of pixels, with principal colors:
    /// an error along an axis is divided by its deviation to this power. 1 counts all axes alike, 0 as
    /// they are.
    pub color_power: f64,
    /// Mean absolute error of pixels.
    pub l1: f64,
    /// Mean squared error of pixels.
    pub l2: f64,
    /// How far apart image and reconstruction are in the eyes of a network.
    pub perceptual: Perceptual,
    /// Codes to latents (published: 1).
    pub codebook: f64,
    /// Latents to codes (published: 0.25).
    pub commitment: f64,
    /// Certain and even assignments (published: 0).
    pub entropy: f64,
    /// Weight of the coarser scales that each step draws, all together, relative to the finest; 0 draws
    /// none.
    pub coarse: f64,
    /// How many of them a step draws (published: 1).
    pub coarse_scales: usize,
}

/// The perceptual term of a tokenizer's loss. Images are enlarged (linear) before a network looks:
/// those that it was trained on were larger than many that a tokenizer is trained on. A scale whose output is
/// smaller than [`min_side`](Self::min_side) has no such term.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Perceptual {
    /// No such term.
    None {},
    /// [`sar_features::PerceptualDistance`]: the maps of EfficientNet-Lite0, whose weights come along.
    #[serde(rename = "efficientnet-lite0")]
    EfficientNetLite0 {
        /// Weight of the mean distance.
        weight: f64,
        /// How many times its size an image is enlarged to.
        enlarge: usize,
    },
    /// [`sar_features::Lpips`]: LPIPS with VGG16, whose weights are the user's files.
    Lpips {
        /// Weight of the mean distance (published: 1).
        weight: f64,
        /// How many times its size an image is enlarged to.
        enlarge: usize,
        /// torchvision's VGG16.
        vgg: PathBuf,
        /// The weights of the channels, `vgg.pth` of the package `lpips`.
        channel_weights: PathBuf,
    },
    /// One minus the structural similarity, [`sar_loss::ssim()`]: no network and no weights.
    Ssim {
        /// Weight of the mean.
        weight: f64,
    },
}

impl Perceptual {
    /// The smallest side of an output that has the term, in pixels of the output: below it a network's last
    /// map would have no position, or no window of the structural similarity would be whole.
    ///
    /// # Panics
    /// If images are enlarged 0 times.
    pub fn min_side(&self) -> usize {
        match self {
            Self::None {} => 0,
            Self::EfficientNetLite0 { enlarge, .. } => sar_features::MIN_SIDE.div_ceil(*enlarge),
            Self::Lpips { enlarge, .. } => sar_features::VGG_MIN_SIDE.div_ceil(*enlarge),
            Self::Ssim { .. } => SSIM_WINDOW,
        }
    }
}

/// What a tokenizer's training makes harder than it is, so that its decoder forgives mistakes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerRegularization {
    /// Share of images that are decoded from a drawn number of their coarser scales alone (VAR's family
    /// only).
    pub quantizer_dropout: f64,
    /// Codes that are replaced by others near the latents before they are decoded.
    pub perturbation: Perturbation,
}

/// What a tokenizer is trained against.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
#[allow(clippy::large_enum_variant, reason = "one for each recipe")]
#[non_exhaustive]
pub enum Adversary {
    /// Nothing.
    None {},
    /// A discriminator with an optimizer of its own, which is trained beside it (VQGAN, arXiv:2012.09841).
    /// Images and reconstructions that are too small for it are not judged.
    Discriminator {
        /// What it is.
        discriminator: DiscriminatorConfig,
        /// Weight of the adversarial loss, beside the adaptive one.
        weight: f64,
        /// Whether the adversarial loss is weighed such that, at the decoder's last layer, its gradient is as
        /// large as that of the other losses of images.
        adaptive: bool,
        /// The step that it begins at; before it nothing is judged and nothing learns to.
        start: u64,
        /// Steps over which the weight then grows from 0.
        warmup_steps: u64,
        /// What it sees is changed at random in these ways, so that it does not learn the images by heart.
        augmentation: Vec<Augmentation>,
        /// Weight of LeCam's regularization of the discriminator.
        lecam: f64,
        /// The discriminator's learning rate; its steps are those from `start` on.
        lr: LrSchedule,
        /// The discriminator's weight decay.
        weight_decay: WeightDecay,
        /// Constants of its AdamW.
        adamw: AdamWConfig,
        /// What moves the kernels inside it.
        matrices: Matrices,
        /// Largest global norm of its gradients; 0 for none.
        max_grad_norm: f64,
    },
}
