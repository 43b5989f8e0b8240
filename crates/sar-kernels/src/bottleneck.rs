//! Inverted bottlenecks, the blocks of MobileNets and EfficientNets.

use burn::tensor::module::conv2d as plain_conv2d;
use burn::tensor::ops::PaddedConvOptions;
use burn::tensor::{Tensor, backend::Backend};

/// Expands channels, convolves each with a square kernel of its own, zeros around it, and projects
/// them, with `relu6(x) = min(max(x, 0), 6)` behind the first two:
///
/// ```text
/// e = relu6(We x + be), d = relu6(depthwise(e)), y = Wp d + bp (+ x)
/// ```
///
/// Without `expand`, `e = relu6(x)`. Weights and biases, each pair in this order, are constants: their
/// gradients are not computed.
///
/// # Shapes
/// - `x_bchw`: `[b, c, h, w]`
/// - `expand`: `[e, c, 1, 1]` and `[e]`
/// - `depthwise`: `[e, 1, k, k]` and `[e]`
/// - `project`: `[o, e, 1, 1]` and `[o]`
/// - `stride`: of the depthwise convolution, pixels from one output to the next
/// - `padding`: zeros at top, left, bottom and right of `e`
/// - `is_residual`: whether the input is added
/// - output: `[b, o, (h + top + bottom - k) / stride + 1, (w + left + right - k) / stride + 1]`
///
/// # Panics
/// If the shapes do not fit, a map is empty or with its padding smaller than the kernel, or the input
/// is to be added to an output of another shape.
pub fn inverted_bottleneck<B: Backend>(
    x_bchw: Tensor<B, 4>,
    expand: Option<(Tensor<B, 4>, Tensor<B, 1>)>,
    depthwise: (Tensor<B, 4>, Tensor<B, 1>),
    project: (Tensor<B, 4>, Tensor<B, 1>),
    stride: usize,
    padding: [usize; 4],
    is_residual: bool,
) -> Tensor<B, 4> {
    let constant = |(weight, bias): (Tensor<B, 4>, Tensor<B, 1>)| (weight.detach(), bias.detach());
    let (expand, depthwise, project) =
        (expand.map(constant), constant(depthwise), constant(project));
    let [b, c, h, w] = x_bchw.dims();
    let [e, one, k, width] = depthwise.0.dims();
    let ([o, ..], [top, left, bottom, right]) = (project.0.dims(), padding);
    let expands = expand
        .as_ref()
        .is_none_or(|(weight, bias)| weight.dims() == [e, c, 1, 1] && bias.dims() == [e]);
    assert!(
        expands && (expand.is_some() || c == e),
        "{c} channels are not expanded to the {e} that are convolved"
    );
    assert!(
        one == 1 && k == width && depthwise.1.dims() == [e],
        "{e} square kernels of {one} channels, {k}x{width}"
    );
    assert!(
        project.0.dims() == [o, e, 1, 1] && project.1.dims() == [o],
        "a projection of {e} channels to {o}"
    );
    assert!(
        stride > 0 && h * w > 0 && h + top + bottom >= k && w + left + right >= k,
        "maps of {h}x{w} under a kernel of {k}, stride {stride}, padding {padding:?}"
    );
    let rows = (h + top + bottom - k) / stride + 1;
    let columns = (w + left + right - k) / stride + 1;
    let shape = [b, o, rows, columns];
    assert!(!is_residual || shape == [b, c, h, w], "{:?} added to {shape:?}", [b, c, h, w]);
    #[cfg(feature = "flex")]
    {
        let constants = expand.iter().chain([&depthwise, &project]);
        let mut dtypes = vec![x_bchw.dtype()];
        dtypes.extend(constants.flat_map(|(weight, bias)| [weight.dtype(), bias.dtype()]));
        if crate::cpu::serves::<B>(&dtypes) {
            let geometry = (stride, padding, is_residual);
            return crate::cpu::inverted_bottleneck(x_bchw, expand, depthwise, project, geometry);
        }
    }
    let convolved = |x: Tensor<B, 4>, (weight, bias): (Tensor<B, 4>, Tensor<B, 1>)| {
        let options = PaddedConvOptions::asymmetric([1; 2], [0; 2], [0; 2], [1; 2], 1);
        plain_conv2d(x, weight, Some(bias), options)
    };
    let inside = match expand {
        Some(expand) => convolved(x_bchw.clone(), expand),
        None => x_bchw.clone(),
    };
    let options =
        PaddedConvOptions::asymmetric([stride; 2], [top, left], [bottom, right], [1; 2], e);
    let (weight, bias) = depthwise;
    let inside = plain_conv2d(inside.clamp(0.0, 6.0), weight, Some(bias), options);
    let y_bohw = convolved(inside.clamp(0.0, 6.0), project);
    if is_residual { y_bohw + x_bchw } else { y_bohw }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn_flex::Flex;

    use super::*;

    fn of_maps(height: usize, width: usize) {
        let device = Default::default();
        let bias = |n: usize| Tensor::<Flex, 1>::zeros([n], &device);
        let weight = |shape: [usize; 4]| Tensor::<Flex, 4>::zeros(shape, &device);
        let depthwise = (weight([2, 1, 3, 3]), bias(2));
        let project = (weight([4, 2, 1, 1]), bias(4));
        let x_bchw = weight([1, 2, height, width]);
        inverted_bottleneck(x_bchw, None, depthwise, project, 1, [2; 4], false);
    }

    #[test]
    #[should_panic(expected = "maps of 0x5 under a kernel of 3")]
    fn maps_without_rows_are_refused() {
        of_maps(0, 5);
    }

    #[test]
    #[should_panic(expected = "maps of 5x0 under a kernel of 3")]
    fn maps_without_columns_are_refused() {
        of_maps(5, 0);
    }
}
