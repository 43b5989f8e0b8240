//! Convolutions with constant weights.
//!
//! Shapes: b batch, c and o channels, h height, w width, k and l rows and columns of a kernel.

use burn::module::{Initializer, Module, Param};
use burn::tensor::{Tensor, backend::Backend};
use sar_kernels::{conv2d, inverted_bottleneck};

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
        let (weight_ockl, bias_o) = self.parameters();
        conv2d(x_bchw, weight_ockl, bias_o, self.stride, self.padding())
    }

    /// Each channel to its own, between an expansion, if there is one, and a projection; the input is
    /// added if it is said to be `is_residual`.
    pub(crate) fn between(
        &self,
        expand: Option<&Self>,
        project: &Self,
        x_bchw: Tensor<B, 4>,
        is_residual: bool,
    ) -> Tensor<B, 4> {
        let (expand, project) = (expand.map(Self::parameters), project.parameters());
        let (stride, padding) = (self.stride, self.padding());
        inverted_bottleneck(
            x_bchw,
            expand,
            self.parameters(),
            project,
            stride,
            padding,
            is_residual,
        )
    }

    fn parameters(&self) -> (Tensor<B, 4>, Tensor<B, 1>) {
        (self.weight_ockl.clone(), self.bias_o.clone())
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
