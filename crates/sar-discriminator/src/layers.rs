//! The layers that both families are made of.
//!
//! Shapes: b batch, c channels, h height, w width.

use burn::module::{Initializer, Module};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{GroupNorm, PaddingConfig2d};
use burn::tensor::activation::leaky_relu;
use burn::tensor::{Tensor, backend::Backend};
use sar_kernels::{GroupNormConfig, conv2d, group_norm};

/// Channels that are normalized together: even a map of one position has eight values to normalize.
pub(crate) const GROUP_CHANNELS: usize = 8;

/// Added to a variance.
const EPSILON: f64 = 1e-5;

/// What negative values are multiplied with.
const SLOPE: f64 = 0.2;

/// A square convolution with bias and zeros around the maps; parameters start at zero until
/// [`init`](crate::init) or a checkpoint fills them.
pub(crate) fn conv<B: Backend>(
    channels: [usize; 2],
    kernel: usize,
    stride: usize,
    padding: usize,
    device: &B::Device,
) -> Conv2d<B> {
    Conv2dConfig::new(channels, [kernel, kernel])
        .with_stride([stride, stride])
        .with_padding(PaddingConfig2d::Explicit(padding, padding, padding, padding))
        .with_initializer(Initializer::Zeros)
        .init(device)
}

pub(crate) fn convolve<B: Backend>(conv: &Conv2d<B>, x_bchw: Tensor<B, 4>) -> Tensor<B, 4> {
    let PaddingConfig2d::Explicit(top, left, bottom, right) = conv.padding else {
        unreachable!("built with an explicit padding")
    };
    let bias_o = conv.bias.as_ref().expect("built with a bias").val();
    conv2d(x_bchw, conv.weight.val(), bias_o, conv.stride[0], [top, left, bottom, right])
}

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
        let Self { conv, norm } = self;
        let config =
            GroupNormConfig { groups: norm.num_groups, epsilon: norm.epsilon, silu: false };
        let [gamma_c, beta_c] = [&norm.gamma, &norm.beta]
            .map(|parameter| parameter.as_ref().expect("built with affine parameters").val());
        activate(group_norm(convolve(conv, x_bchw), gamma_c, beta_c, config))
    }
}

/// The logits of all positions in one row per image: `[b, 1, h, w]` to `[b, h w]`.
pub(crate) fn rows<B: Backend>(logits_b1hw: Tensor<B, 4>) -> Tensor<B, 2> {
    let [b, _, h, w] = logits_b1hw.dims();
    logits_b1hw.reshape([b, h * w])
}
