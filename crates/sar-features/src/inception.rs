//! InceptionV3 (arXiv:1512.00567) of 2015-12-05, the network that the Frechet inception distance
//! (FID), its spatial variant (sFID) and the inception score (IS) are defined by.
//!
//! Shapes: b batch, c channels, h height, w width, f features of an image, s features of its places,
//! k classes.

mod graph;
mod released;

use std::path::Path;

use burn::module::Module;
use burn::tensor::activation::relu;
use burn::tensor::module::{avg_pool2d, max_pool2d};
use burn::tensor::{Tensor, backend::Backend};
use sar_core::ScaleSize;
use sar_core::resample::{Grid, interpolate};
use sar_weights::{WeightsError, WeightsFile};

use crate::convolution::Convolution;
use released::Released;

/// The side of the images that the network takes.
const SIDE: usize = 299;
/// The channels of the last map.
const FEATURES: usize = 2048;
/// Classes of ImageNet and eight that mean nothing.
const CLASSES: usize = 1008;
/// The block whose first branch holds the features of places: `Mixed_6d`, TensorFlow's `mixed_6`.
const SPATIAL_BLOCK: usize = 6;
/// So many of that branch's channels.
const SPATIAL_CHANNELS: usize = 7;

/// How images become what [`Inception`] takes. Published figures differ in it: name it beside yours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InceptionInput {
    /// That of the released graph itself, and so of ADM's evaluation (arXiv:2105.05233), and of the
    /// package torch-fidelity: 8-bit images, resampled linearly between samples i in/out
    /// ([`Grid::Firsts`]), `(x - 128) / 128`.
    Adm,
    /// That of the package pytorch-fid: pixels in [0, 1], resampled linearly between samples
    /// `(i + 1/2) in/out - 1/2` ([`Grid::Edges`]), `2 x - 1`.
    PytorchFid,
}

/// What [`Inception`] sees in images.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct InceptionFeatures<B: Backend> {
    /// `[b, 2048]`, no value below 0: the mean over the last map, `pool_3` of the released graph. For
    /// FID, precision and recall.
    pub pool_bf: Tensor<B, 2>,
    /// `[b, 2023]`, no value below 0: the first 7 channels of `Mixed_6d.branch1x1` behind its batch
    /// norm and ReLU, which is `mixed_6/conv:0` of the released graph, by row, column and channel
    /// (17, 17, 7). For sFID.
    pub spatial_bs: Tensor<B, 2>,
    /// `[b, 1008]`: the classifier's logits without its bias. For IS, as ADM takes them.
    pub logits_bk: Tensor<B, 2>,
}

/// InceptionV3 with its batch norms folded into its convolutions.
///
/// It computes what the package pytorch-fid 0.3.0 computes with its `fid_inception_v3`: average pools
/// leave out the zeros around a map, and the last block has a maximum in the place of one.
#[derive(Module, Debug)]
pub struct Inception<B: Backend> {
    /// Convolutions one after another, and a pool that halves the sides behind each list.
    stem: Vec<Vec<Convolution<B>>>,
    blocks: Vec<Block<B>>,
    classifier_fk: Tensor<B, 2>,
}

/// Branches side by side, whose maps are put together.
#[derive(Module, Debug)]
struct Block<B: Backend> {
    branches: Vec<Branch<B>>,
    /// Whether the branches halve the sides and the input, halved by a pool, is put behind them.
    is_halving: bool,
}

/// Convolutions, each with its ReLU.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "some forty for each network, built once")]
enum Branch<B: Backend> {
    /// One after another.
    Chain(Vec<Convolution<B>>),
    /// One after another, and the last two side by side.
    Fork(Vec<Convolution<B>>),
    /// One of the means around each position.
    Average(Convolution<B>),
    /// One of the maxima around each position.
    Maximum(Convolution<B>),
}

impl InceptionInput {
    /// What reports call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Adm => "adm",
            Self::PytorchFid => "pytorch-fid",
        }
    }

    /// What the network takes, of images of any size.
    ///
    /// # Shapes
    /// - `x_bchw`: `[b, 3, h, w]`, pixels in [-1, 1]; those of 8-bit images, `x / 127.5 - 1`, for
    ///   features to be compared with published ones
    /// - output: `[b, 3, 299, 299]`, in [-1, 127/128] or [-1, 1]
    pub fn prepare<B: Backend>(self, x_bchw: Tensor<B, 4>) -> Tensor<B, 4> {
        let size = ScaleSize::square(SIDE);
        match self {
            Self::Adm => interpolate(x_bchw, size, Grid::Firsts) * (255.0 / 256.0) - 1.0 / 256.0,
            Self::PytorchFid => interpolate(x_bchw, size, Grid::Edges),
        }
    }
}

impl<B: Backend> Inception<B> {
    /// The number of features of an image.
    pub const FEATURES: usize = FEATURES;

    /// Reads the weights from the file of pytorch-fid or torch-fidelity,
    /// `pt_inception-2015-12-05-6726825d.pth` or `weights-inception-2015-12-05-6726825d.pth`, or from the graph of
    /// TensorFlow that ADM's evaluation runs, `classify_image_graph_def.pb`. They are told apart by their content.
    ///
    /// # Errors
    /// If the file cannot be read, or if a tensor is missing, misshapen, not finite or not part of the
    /// network. Torchvision's own weights, of another training and with 1000 classes, are misshapen.
    pub fn open(path: &Path, device: &B::Device) -> Result<Self, WeightsError> {
        let failed = |error| WeightsError::Read { path: path.into(), error };
        Self::from_bytes(path, std::fs::read(path).map_err(failed)?, device)
    }

    /// As [`open`](Self::open), from the bytes of a file, which messages name by `path`.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_bytes(
        path: &Path,
        bytes: Vec<u8>,
        device: &B::Device,
    ) -> Result<Self, WeightsError> {
        let released = match graph::is_graph(&bytes) {
            true => Released::bind(graph::parameters(path, &bytes)?, device),
            false => {
                Released::load(WeightsFile::from_bytes(&path.to_string_lossy(), bytes)?, device)
            }
        };
        Ok(released?.fold())
    }

    /// The features of images that are [prepared](InceptionInput::prepare).
    ///
    /// All images go through together: the largest map has 5.5 MB for each.
    ///
    /// # Shapes
    /// - `x_bchw`: `[b, 3, 299, 299]`, in [-1, 1]
    ///
    /// # Panics
    /// If the images have other channels, or another size.
    pub fn features(&self, x_bchw: Tensor<B, 4>) -> InceptionFeatures<B> {
        let [b, c, h, w] = x_bchw.dims();
        assert!(
            [c, h, w] == [3, SIDE, SIDE],
            "images of 3 channels, {SIDE}x{SIDE} px, not of {c} channels, {w}x{h} px"
        );
        let stem = self.stem.iter().fold(x_bchw, |x, chain| halved(through(chain, x)));
        let (before, after) = self.blocks.split_at(SPATIAL_BLOCK + 1);
        let middle = before.iter().fold(stem, |x, block| block.forward(x));
        // The first branch's channels are the first of the block.
        let spatial_bhwc = middle.clone().narrow(1, 0, SPATIAL_CHANNELS).permute([0, 2, 3, 1]);
        let [_, h, w, c] = spatial_bhwc.dims();
        let last = after.iter().fold(middle, |x, block| block.forward(x));
        let [_, _, rows, columns] = last.dims();
        let pool_bf =
            last.reshape([b, FEATURES, rows * columns]).mean_dim(2).reshape([b, FEATURES]);
        InceptionFeatures {
            spatial_bs: spatial_bhwc.reshape([b, h * w * c]),
            logits_bk: pool_bf.clone().matmul(self.classifier_fk.clone()),
            pool_bf,
        }
    }
}

impl<B: Backend> Block<B> {
    fn forward(&self, x_bchw: Tensor<B, 4>) -> Tensor<B, 4> {
        let maps = self.branches.iter().flat_map(|branch| branch.forward(x_bchw.clone()));
        let pooled = self.is_halving.then(|| halved(x_bchw.clone()));
        Tensor::cat(maps.chain(pooled).collect(), 1)
    }
}

impl<B: Backend> Branch<B> {
    fn forward(&self, x_bchw: Tensor<B, 4>) -> Vec<Tensor<B, 4>> {
        match self {
            Self::Chain(chain) => vec![through(chain, x_bchw)],
            Self::Fork(all) => {
                let (chain, fork) = all.split_at(all.len() - 2);
                let x = through(chain, x_bchw);
                fork.iter().map(|convolution| relu(convolution.forward(x.clone()))).collect()
            }
            // The mean of a sum over channels is the sum of their means, and fewer channels come out.
            Self::Average(convolution) => vec![relu(averaged(convolution.forward(x_bchw)))],
            Self::Maximum(convolution) => {
                let x = max_pool2d(x_bchw, [3, 3], [1, 1], [1, 1], [1, 1], false);
                vec![relu(convolution.forward(x))]
            }
        }
    }
}

fn through<B: Backend>(chain: &[Convolution<B>], x_bchw: Tensor<B, 4>) -> Tensor<B, 4> {
    chain.iter().fold(x_bchw, |x, convolution| relu(convolution.forward(x)))
}

/// The mean of the 3x3 positions around each, or of as many of them as there are.
fn averaged<B: Backend>(x_bchw: Tensor<B, 4>) -> Tensor<B, 4> {
    avg_pool2d(x_bchw, [3, 3], [1, 1], [1, 1], false, false)
}

/// The maximum of the 3x3 positions from every other one on.
fn halved<B: Backend>(x_bchw: Tensor<B, 4>) -> Tensor<B, 4> {
    max_pool2d(x_bchw, [3, 3], [2, 2], [0, 0], [1, 1], false)
}
