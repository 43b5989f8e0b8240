//! Convolutions with constant weights.
//!
//! Shapes: b batch, c and o channels, h height, w width, k side of a kernel.

use burn::module::{Initializer, Module, Param};
use burn::tensor::{Tensor, backend::Backend};
use sar_kernels::{conv2d, depthwise_conv2d};

/// Maps of so many positions at most are small beside the weights of a 1x1 convolution.
const FEW_POSITIONS: usize = 64;

/// A convolution that is not trained.
#[derive(Module, Debug)]
pub(crate) struct Convolution<B: Backend> {
    /// `[o, c, k, k]`; `[c, 1, k, k]` for one channel each
    weight_ockk: Tensor<B, 4>,
    bias_o: Tensor<B, 1>,
    stride: usize,
}

impl<B: Backend> Convolution<B> {
    pub(crate) fn new(weight_ockk: Tensor<B, 4>, bias_o: Tensor<B, 1>, stride: usize) -> Self {
        Self { weight_ockk: weight_ockk.detach(), bias_o: bias_o.detach(), stride }
    }

    /// All channels to all, see [`padding`](Self::padding).
    pub(crate) fn forward(&self, x_bchw: Tensor<B, 4>) -> Tensor<B, 4> {
        let (weight_ockk, bias_o) = (self.weight_ockk.clone(), self.bias_o.clone());
        let ([o, c, k, _], [b, _, h, w]) = (weight_ockk.dims(), x_bchw.dims());
        if k > 1 || self.stride > 1 || h * w > FEW_POSITIONS {
            return conv2d(x_bchw, weight_ockk, bias_o, self.stride, self.padding());
        }
        // One product for the batch: by image, reading the weights would cost more than the sums.
        let x_cr = x_bchw.swap_dims(0, 1).reshape([c, b * h * w]);
        let y_or = weight_ockk.reshape([o, c]).matmul(x_cr) + bias_o.reshape([o, 1]);
        y_or.reshape([o, b, h, w]).swap_dims(0, 1)
    }

    /// Each channel to its own.
    pub(crate) fn depthwise(&self, x_bchw: Tensor<B, 4>) -> Tensor<B, 4> {
        let (weight_c1kk, bias_c) = (self.weight_ockk.clone(), self.bias_o.clone());
        depthwise_conv2d(x_bchw, weight_c1kk, bias_c, self.stride, self.padding())
    }

    /// Zeros at top, left, bottom and right: k - stride in all, the larger half at bottom and right.
    /// An input whose sides are multiples of the stride becomes smaller by that factor.
    fn padding(&self) -> [usize; 4] {
        let [_, _, k, _] = self.weight_ockk.dims();
        let (both, before) = (k - self.stride, (k - self.stride) / 2);
        [before, before, both - before, both - before]
    }
}

/// A parameter that waits for the weights of a file.
pub(crate) fn waiting<B: Backend, const D: usize>(
    shape: [usize; D],
    device: &B::Device,
) -> Param<Tensor<B, D>> {
    Initializer::Zeros.init(shape, device)
}
