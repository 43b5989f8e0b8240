//! Layer normalisation without affine parameters, and its adaptive modulation.
//!
//! Activations inside the backbone are rows `[l b, d]`, token-major: all rows of a token stand
//! together, one for each image. An image's condition then is one row `[1, b d]` that all tokens
//! share, the form of broadcast that every backend runs at memory speed.

use burn::tensor::{Tensor, backend::Backend};

/// Epsilon of every layer norm.
const EPSILON: f64 = 1e-6;

/// `(x - mean) / sqrt(var + eps)` of each row, biased variance.
///
/// # Shapes
/// - `x_rd` and output: `[r, d]`
pub(crate) fn layer_norm<B: Backend>(x_rd: Tensor<B, 2>) -> Tensor<B, 2> {
    let centred = x_rd.clone() - x_rd.mean_dim(1);
    let variance = centred.clone().square().mean_dim(1);
    centred / (variance + EPSILON).sqrt()
}

/// `x * (1 + scale) + shift`, one scale and one shift per image and channel.
///
/// # Shapes
/// - `x_rd` and output: `[l b, d]`
/// - `scale`, `shift`: `[1, b d]`
pub(crate) fn modulate<B: Backend>(
    x_rd: Tensor<B, 2>,
    scale: Tensor<B, 2>,
    shift: Tensor<B, 2>,
) -> Tensor<B, 2> {
    let shape = x_rd.dims();
    (per_image(x_rd, &scale) * (scale + 1.0) + shift).reshape(shape)
}

/// `x * gate`, one gate per image and channel.
pub(crate) fn gate<B: Backend>(x_rd: Tensor<B, 2>, gamma: Tensor<B, 2>) -> Tensor<B, 2> {
    let shape = x_rd.dims();
    (per_image(x_rd, &gamma) * gamma).reshape(shape)
}

/// `[l b, d]` as `[l, b d]`.
fn per_image<B: Backend>(x_rd: Tensor<B, 2>, row: &Tensor<B, 2>) -> Tensor<B, 2> {
    let [r, d] = x_rd.dims();
    let [_, bd] = row.dims();
    x_rd.reshape([r * d / bd, bd])
}
