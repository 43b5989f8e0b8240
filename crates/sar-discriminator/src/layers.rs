//! The layers that both families are made of.
//!
//! Shapes: b batch, c channels, h height, w width.

use burn::module::Module;
use burn::nn::GroupNorm;
use burn::nn::conv::Conv2d;
use burn::tensor::activation::leaky_relu;
use burn::tensor::{Tensor, backend::Backend};
use sar_kernels::{convolve, normalize};

/// Channels that are normalized together: even a map of one position has eight values to normalize.
pub(crate) const GROUP_CHANNELS: usize = 8;

/// Added to a variance.
const EPSILON: f64 = 1e-5;

/// What negative values are multiplied with.
const SLOPE: f64 = 0.2;

/// `x` where it is positive, `0.2 x` elsewhere.
pub(crate) fn activate<B: Backend>(x_bchw: Tensor<B, 4>) -> Tensor<B, 4> {
    leaky_relu(x_bchw, SLOPE)
}

/// A convolution, group normalization and LeakyReLU.
#[derive(Module, Debug)]
pub(crate) struct Block<B: Backend> {
    pub(crate) conv: Conv2d<B>,
    pub(crate) norm: GroupNorm<B>,
}

impl<B: Backend> Block<B> {
    /// Normalizes what a convolution gives.
    pub(crate) fn new(conv: Conv2d<B>, device: &B::Device) -> Self {
        let [channels, ..] = conv.weight.dims();
        let norm = burn::nn::GroupNormConfig::new(channels / GROUP_CHANNELS, channels)
            .with_epsilon(EPSILON)
            .init(device);
        Self { conv, norm }
    }

    pub(crate) fn forward(&self, x_bchw: Tensor<B, 4>) -> Tensor<B, 4> {
        activate(normalize(&self.norm, convolve(&self.conv, x_bchw), false))
    }
}

/// The logits of all positions in one row per image: `[b, 1, h, w]` to `[b, h w]`.
pub(crate) fn rows<B: Backend>(logits_b1hw: Tensor<B, 4>) -> Tensor<B, 2> {
    let [b, _, h, w] = logits_b1hw.dims();
    logits_b1hw.reshape([b, h * w])
}
