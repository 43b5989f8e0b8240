//! Heads over the maps of a frozen network (Projected GANs, arXiv:2111.01007).
//!
//! Shapes: b batch, c channels, h height, w width, n positions.

use burn::module::Module;
use burn::nn::conv::Conv2d;
use burn::tensor::{Tensor, backend::Backend};
use sar_features::{EfficientNetLite0, MAP_CHANNELS, MIN_SIDE};
use sar_kernels::{convolve, square_conv};

use crate::layers::{Block, rows};

/// Judges images by the five maps of a frozen EfficientNet-Lite0, with a small trained head for each.
///
/// ```text
/// conv 1x1, norm, LeakyReLU;  conv 3x3, norm, LeakyReLU;  conv 1x1 to one map of logits
/// ```
/// As in Projected GANs (arXiv:2111.01007), features of a network that has seen many images make a
/// stronger judge than pixels, from the first step and of few images. The heads have the form of
/// StyleGAN-T's (arXiv:2301.09515), without their residual. There are no random projections that mix
/// the maps, and no spectral norm.
///
/// The network is held, but nothing of it is a parameter: neither an optimizer nor a checkpoint
/// sees it, a clone shares its weights, and its gradient reaches the image.
#[derive(Module, Debug)]
pub struct FeatureHeads<B: Backend> {
    net: EfficientNetLite0<B>,
    pub(crate) heads: Vec<Head<B>>,
}

#[derive(Module, Debug)]
pub(crate) struct Head<B: Backend> {
    pub(crate) blocks: Vec<Block<B>>,
    last: Conv2d<B>,
}

impl<B: Backend> FeatureHeads<B> {
    pub(crate) fn new(channels: usize, net: EfficientNetLite0<B>, device: &B::Device) -> Self {
        let heads = MAP_CHANNELS.map(|c_in| Head {
            blocks: vec![
                Block::new(square_conv([c_in, channels], 1, 1, [0; 4], device), device),
                Block::new(square_conv([channels, channels], 3, 1, [1; 4], device), device),
            ],
            last: square_conv([channels, 1], 1, 1, [0; 4], device),
        });
        Self { net, heads: heads.into() }
    }

    /// See [`Discriminator::logits`](crate::Discriminator::logits).
    pub(crate) fn logits(&self, x_bchw: Tensor<B, 4>) -> Vec<Tensor<B, 2>> {
        let maps = self.net.maps(x_bchw).into_iter();
        maps.zip(&self.heads).map(|(map, head)| head.logits(map)).collect()
    }

    pub(crate) fn min_side(&self) -> usize {
        MIN_SIDE
    }
}

impl<B: Backend> Head<B> {
    fn logits(&self, map_bchw: Tensor<B, 4>) -> Tensor<B, 2> {
        let x = self.blocks.iter().fold(map_bchw, |x, block| block.forward(x));
        rows(convolve(&self.last, x))
    }
}
