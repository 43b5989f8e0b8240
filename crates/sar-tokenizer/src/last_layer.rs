//! The gradient of the decoder's last layer, out of that of the images: what an adversarial loss is
//! weighed by.
//!
//! Shapes: b batch, i channels, h height, w width, k = 3.

use burn::tensor::ops::PadMode;
use burn::tensor::{Tensor, backend::Backend};

use crate::ColorAxes;

/// The gradient of the last convolution's weights.
///
/// ```text
/// dL/dW[o, i, y, x] = sum over b, h, w of g[b, o, h, w] a[b, i, h + y - 1, w + x - 1]
/// ```
/// with a zero outside of the image.
///
/// # Shapes
/// - `last_bihw`: `[b, i, h, w]`, what the convolution was given, of
///   [`decode_in_two`](crate::Tokenizer::decode_in_two)
/// - `gradient_b3hw`: `[b, 3, h, w]`, of the images
/// - `colors`: the tokenizer's
/// - output: `[3, 9 i]`, the convolution's weights in some order
pub fn last_layer_gradient<B: Backend>(
    last_bihw: Tensor<B, 4>,
    gradient_b3hw: Tensor<B, 4>,
    colors: Option<ColorAxes>,
) -> Tensor<B, 2> {
    let gradient_b3hw = match colors {
        Some(colors) => colors.back_gradient(gradient_b3hw),
        None => gradient_b3hw,
    };
    let [b, i, h, w] = last_bihw.dims();
    let rows = |x_bchw: Tensor<B, 4>, c: usize| x_bchw.swap_dims(0, 1).reshape([c, b * h * w]);
    let gradient_3n = rows(gradient_b3hw, 3);
    let padded = last_bihw.pad([(1, 1), (1, 1)], PadMode::Constant(0.0));
    let mut parts = Vec::with_capacity(9);
    for y in 0..3 {
        for x in 0..3 {
            let shifted = padded.clone().narrow(2, y, h).narrow(3, x, w);
            parts.push(gradient_3n.clone().matmul(rows(shifted, i).transpose()));
        }
    }
    Tensor::cat(parts, 1)
}

#[cfg(test)]
mod tests {
    use burn::backend::Autodiff;
    use burn::tensor::TensorData;
    use burn_flex::Flex;
    use sar_core::SeedTree;
    use sar_kernels::conv2d;

    use super::*;

    type A = Autodiff<Flex>;

    fn normals(seed: u64, shape: [usize; 4]) -> Tensor<A, 4> {
        let values = SeedTree::new(seed).normals(shape.iter().product());
        Tensor::from_data(TensorData::new(values, shape), &Default::default())
    }

    #[test]
    fn it_is_what_a_backward_pass_gives() {
        let covariance = [[0.5, 0.3, 0.2], [0.3, 0.4, 0.25], [0.2, 0.25, 0.45]];
        for colors in [None, Some(ColorAxes::of_covariance(covariance))] {
            let (last, gradient) = (normals(1, [2, 5, 4, 6]), normals(2, [2, 3, 4, 6]));
            let weight = normals(3, [3, 5, 3, 3]).require_grad();
            let bias = Tensor::zeros([3], &Default::default());
            let image = conv2d(last.clone(), weight.clone(), bias, 1, [1; 4]);
            let image = match colors {
                Some(colors) => colors.back(image),
                None => image,
            };
            let gradients = (image * gradient.clone()).sum().backward();
            let expected = weight.grad(&gradients).unwrap();
            let found = last_layer_gradient(last.inner(), gradient.inner(), colors);
            // Ours has the kernel's positions outside, the channels inside.
            let expected = expected.permute([0, 2, 3, 1]).reshape([3, 45]);
            let error = (found - expected).abs().max().into_scalar();
            assert!(error < 1e-4, "{error}");
        }
    }
}
