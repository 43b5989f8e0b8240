//! Convolutions of each channel alone.

use burn::tensor::module::conv2d as plain_conv2d;
use burn::tensor::ops::PaddedConvOptions;
use burn::tensor::{Tensor, backend::Backend};

/// Convolves every map with a square kernel of its own, zeros around it.
///
/// # Shapes
/// - `x_bchw`: `[b, c, h, w]`
/// - `weight_c1kk`: `[c, 1, k, k]`
/// - `bias_c`: `[c]`
/// - `stride`: pixels from one output to the next
/// - `padding`: zeros at top, left, bottom and right
/// - output: `[b, c, (h + top + bottom - k) / stride + 1, (w + left + right - k) / stride + 1]`
///
/// # Panics
/// If the shapes do not fit, or a map with its padding is smaller than the kernel.
pub fn depthwise_conv2d<B: Backend>(
    x_bchw: Tensor<B, 4>,
    weight_c1kk: Tensor<B, 4>,
    bias_c: Tensor<B, 1>,
    stride: usize,
    padding: [usize; 4],
) -> Tensor<B, 4> {
    let ([_, c, h, w], [channels, one, k, width]) = (x_bchw.dims(), weight_c1kk.dims());
    let [top, left, bottom, right] = padding;
    assert!(
        c == channels && one == 1 && k == width && bias_c.dims() == [c],
        "{channels} square kernels of {one} channels for {c} channels"
    );
    assert!(
        stride > 0 && h + top + bottom >= k && w + left + right >= k,
        "maps of {h}x{w} under a kernel of {k}, stride {stride}, padding {padding:?}"
    );
    #[cfg(feature = "flex")]
    if crate::cpu::serves::<B>(&[x_bchw.dtype(), weight_c1kk.dtype(), bias_c.dtype()]) {
        return crate::cpu::depthwise_conv2d(x_bchw, weight_c1kk, bias_c, stride, padding);
    }
    let options =
        PaddedConvOptions::asymmetric([stride, stride], [top, left], [bottom, right], [1, 1], c);
    plain_conv2d(x_bchw, weight_c1kk, Some(bias_c), options)
}
