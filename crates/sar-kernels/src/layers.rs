//! burn's layers, computed by the operators of this crate.
//!
//! Shapes: b batch, c and o channels, h height, w width.

use burn::module::Initializer;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{GroupNorm, PaddingConfig2d};
use burn::tensor::{Tensor, backend::Backend};

use crate::{GroupMoments, GroupNormConfig, conv2d, group_norm, group_norm_by};

/// A square convolution with bias, and so many zeros at top, left, bottom and right of its maps;
/// parameters are zero until an initialization or a checkpoint fills them.
pub fn square_conv<B: Backend>(
    channels: [usize; 2],
    kernel: usize,
    stride: usize,
    [top, left, bottom, right]: [usize; 4],
    device: &B::Device,
) -> Conv2d<B> {
    Conv2dConfig::new(channels, [kernel, kernel])
        .with_stride([stride, stride])
        .with_padding(PaddingConfig2d::Explicit(top, left, bottom, right))
        .with_initializer(Initializer::Zeros)
        .init(device)
}

/// What a layer of [`square_conv`] gives, see [`conv2d`].
///
/// # Panics
/// If the layer was built in another way, with a padding that depends on its input or without bias.
pub fn convolve<B: Backend>(conv: &Conv2d<B>, x_bchw: Tensor<B, 4>) -> Tensor<B, 4> {
    convolve_between(conv, x_bchw, [true, true])
}

/// As [`convolve`], of rows out of a map: the zeros are at its first row and behind its last one only if
/// these are `edges` of the map.
///
/// # Panics
/// As [`convolve`].
pub fn convolve_between<B: Backend>(
    conv: &Conv2d<B>,
    x_bchw: Tensor<B, 4>,
    edges: [bool; 2],
) -> Tensor<B, 4> {
    let PaddingConfig2d::Explicit(top, left, bottom, right) = conv.padding else {
        panic!("a convolution with an explicit padding")
    };
    let [top, bottom] = [top * usize::from(edges[0]), bottom * usize::from(edges[1])];
    let bias_o = conv.bias.as_ref().expect("a convolution with bias").val();
    conv2d(x_bchw, conv.weight.val(), bias_o, conv.stride[0], [top, left, bottom, right])
}

/// Normalizes groups of channels, and applies SiLU where that is asked for, see [`group_norm`].
///
/// # Panics
/// If the layer has no affine parameters.
pub fn normalize<B: Backend>(
    norm: &GroupNorm<B>,
    x_bchw: Tensor<B, 4>,
    silu: bool,
) -> Tensor<B, 4> {
    let (gamma_c, beta_c, config) = of_layer(norm, silu);
    group_norm(x_bchw, gamma_c, beta_c, config)
}

/// As [`normalize`], of a part of maps by the moments of the whole, see [`group_norm_by`].
///
/// # Panics
/// As [`normalize`].
pub fn normalize_by<B: Backend>(
    norm: &GroupNorm<B>,
    moments: &GroupMoments<B>,
    x_bchw: Tensor<B, 4>,
    silu: bool,
) -> Tensor<B, 4> {
    let (gamma_c, beta_c, config) = of_layer(norm, silu);
    group_norm_by(x_bchw, moments, gamma_c, beta_c, config)
}

fn of_layer<B: Backend>(
    norm: &GroupNorm<B>,
    silu: bool,
) -> (Tensor<B, 1>, Tensor<B, 1>, GroupNormConfig) {
    let [gamma_c, beta_c] = [&norm.gamma, &norm.beta]
        .map(|parameter| parameter.as_ref().expect("affine parameters").val());
    let config = GroupNormConfig { groups: norm.num_groups, epsilon: norm.epsilon, silu };
    (gamma_c, beta_c, config)
}
