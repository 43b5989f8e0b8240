//! Convolutions with constant weights.
//!
//! Shapes: b batch, c and o channels, h height, w width, k and l rows and columns of a kernel.

use burn::module::{Initializer, Module, Param};
use burn::tensor::{Tensor, backend::Backend};
use sar_kernels::{conv2d, depthwise_conv2d};

/// Maps of so many positions at most are small beside the weights of a 1x1 convolution.
const FEW_POSITIONS: usize = 64;

/// A convolution that is not trained.
#[derive(Module, Debug)]
pub(crate) struct Convolution<B: Backend> {
    /// `[o, c, k, l]`; `[c, 1, k, k]` for one channel each
    weight_ockl: Tensor<B, 4>,
    bias_o: Tensor<B, 1>,
    stride: usize,
    /// Whether there are zeros around the maps.
    is_padded: bool,
}

impl<B: Backend> Convolution<B> {
    /// With zeros around the maps: k - stride rows and l - stride columns in all, the larger half at
    /// bottom and right. An input whose sides are multiples of the stride becomes smaller by that
    /// factor.
    pub(crate) fn new(weight_ockl: Tensor<B, 4>, bias_o: Tensor<B, 1>, stride: usize) -> Self {
        let (weight_ockl, bias_o) = (weight_ockl.detach(), bias_o.detach());
        Self { weight_ockl, bias_o, stride, is_padded: true }
    }

    /// As [`new`](Self::new), with nothing around the maps.
    pub(crate) fn unpadded(weight_ockl: Tensor<B, 4>, bias_o: Tensor<B, 1>, stride: usize) -> Self {
        Self { is_padded: false, ..Self::new(weight_ockl, bias_o, stride) }
    }

    /// All channels to all.
    pub(crate) fn forward(&self, x_bchw: Tensor<B, 4>) -> Tensor<B, 4> {
        let (weight_ockl, bias_o) = (self.weight_ockl.clone(), self.bias_o.clone());
        let ([o, c, k, l], [b, _, h, w]) = (weight_ockl.dims(), x_bchw.dims());
        if k * l > 1 || self.stride > 1 || h * w > FEW_POSITIONS {
            return conv2d(x_bchw, weight_ockl, bias_o, self.stride, self.padding());
        }
        // One product for the batch: by image, reading the weights would cost more than the sums.
        let x_cr = x_bchw.swap_dims(0, 1).reshape([c, b * h * w]);
        let y_or = weight_ockl.reshape([o, c]).matmul(x_cr) + bias_o.reshape([o, 1]);
        y_or.reshape([o, b, h, w]).swap_dims(0, 1)
    }

    /// Each channel to its own.
    pub(crate) fn depthwise(&self, x_bchw: Tensor<B, 4>) -> Tensor<B, 4> {
        let (weight_c1kk, bias_c) = (self.weight_ockl.clone(), self.bias_o.clone());
        depthwise_conv2d(x_bchw, weight_c1kk, bias_c, self.stride, self.padding())
    }

    /// Zeros at top, left, bottom and right.
    fn padding(&self) -> [usize; 4] {
        if !self.is_padded {
            return [0; 4];
        }
        let [_, _, k, l] = self.weight_ockl.dims();
        let [rows, columns] = [k, l].map(|side| side - self.stride);
        let [top, left] = [rows, columns].map(|both| both / 2);
        [top, left, rows - top, columns - left]
    }
}

/// A parameter that waits for the weights of a file.
pub(crate) fn waiting<B: Backend, const D: usize>(
    shape: [usize; D],
    device: &B::Device,
) -> Param<Tensor<B, D>> {
    Initializer::Zeros.init(shape, device)
}
