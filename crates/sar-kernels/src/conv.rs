//! Convolutions of maps.

use burn::tensor::module::conv2d as plain_conv2d;
use burn::tensor::ops::PaddedConvOptions;
use burn::tensor::{Tensor, backend::Backend};

/// Convolves maps, zeros around them.
///
/// # Shapes
/// - `x_bchw`: `[b, c, h, w]`
/// - `weight_ockl`: `[o, c, k, l]`
/// - `bias_o`: `[o]`
/// - `stride`: pixels from one output to the next
/// - `padding`: zeros at top, left, bottom and right
/// - output: `[b, o, (h + top + bottom - k) / stride + 1, (w + left + right - l) / stride + 1]`
///
/// # Panics
/// If the shapes do not fit, or a map is empty or with its padding smaller than the kernel.
pub fn conv2d<B: Backend>(
    x_bchw: Tensor<B, 4>,
    weight_ockl: Tensor<B, 4>,
    bias_o: Tensor<B, 1>,
    stride: usize,
    padding: [usize; 4],
) -> Tensor<B, 4> {
    let ([_, c, h, w], [o, inputs, k, l]) = (x_bchw.dims(), weight_ockl.dims());
    let [top, left, bottom, right] = padding;
    assert!(c == inputs && bias_o.dims() == [o], "a convolution of {inputs} to {o}");
    assert!(
        stride > 0 && h * w > 0 && h + top + bottom >= k && w + left + right >= l,
        "maps of {h}x{w} under a kernel of {k}x{l}, stride {stride}, padding {padding:?}"
    );
    #[cfg(feature = "flex")]
    if crate::cpu::serves::<B>(&[x_bchw.dtype(), weight_ockl.dtype(), bias_o.dtype()]) {
        return crate::cpu::conv2d(x_bchw, weight_ockl, bias_o, stride, padding);
    }
    let options =
        PaddedConvOptions::asymmetric([stride, stride], [top, left], [bottom, right], [1, 1], 1);
    plain_conv2d(x_bchw, weight_ockl, Some(bias_o), options)
}

/// Every pixel twice along both sides.
///
/// # Shapes
/// - `x_bchw`: `[b, c, h, w]`
/// - output: `[b, c, 2 h, 2 w]`
pub fn double_sides<B: Backend>(x_bchw: Tensor<B, 4>) -> Tensor<B, 4> {
    let [b, c, h, w] = x_bchw.dims();
    #[cfg(feature = "flex")]
    if crate::cpu::serves::<B>(&[x_bchw.dtype()]) {
        return crate::cpu::double_sides(x_bchw);
    }
    let rows = x_bchw.reshape([b * c * h, 1, w, 1]).repeat_dim(1, 2).repeat_dim(3, 2);
    rows.reshape([b, c, 2 * h, 2 * w])
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn_flex::Flex;

    use super::*;

    #[test]
    #[should_panic(expected = "maps of 0x5 under a kernel of 3x3")]
    fn empty_maps_are_refused() {
        let device = Default::default();
        let maps = |shape: [usize; 4]| Tensor::<Flex, 4>::zeros(shape, &device);
        let bias = Tensor::zeros([4], &device);
        conv2d(maps([1, 2, 0, 5]), maps([4, 2, 3, 3]), bias, 1, [2; 4]);
    }
}
