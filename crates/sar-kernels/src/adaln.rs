//! Adaptive layer norm: layer normalization, modulated and gated per image.
//!
//! Rows are token-major, so that an image's condition is one row `[1, b d]` that all tokens share in
//! the plain form: the broadcast that every backend runs at memory speed.

use burn::tensor::{Tensor, backend::Backend};

use crate::precision::widened;

/// `(x - mean) / sqrt(var + eps) * (1 + scale) + shift`: the statistics of each row (biased
/// variance), one scale and one shift per image and channel.
///
/// # Shapes
/// - `x_rd` and output: `[l b, d]`, token-major
/// - `scale_bd`, `shift_bd`: `[b, d]`
///
/// # Panics
/// If the shapes do not fit.
pub fn layer_norm_modulated<B: Backend>(
    x_rd: Tensor<B, 2>,
    scale_bd: Tensor<B, 2>,
    shift_bd: Tensor<B, 2>,
    epsilon: f64,
) -> Tensor<B, 2> {
    assert_eq!(scale_bd.dims(), shift_bd.dims(), "one scale and one shift");
    let [l, b, d] = tokens_images_channels(&x_rd, &scale_bd);
    let (x_rd, [scale_bd, shift_bd]) = (widened(x_rd), [scale_bd, shift_bd].map(widened));
    #[cfg(feature = "flex")]
    if crate::cpu::serves::<B>(&[x_rd.dtype(), scale_bd.dtype(), shift_bd.dtype()]) {
        return crate::cpu::layer_norm_modulated(x_rd, scale_bd, shift_bd, epsilon);
    }
    let centerd = x_rd.clone() - x_rd.mean_dim(1);
    let variance = centerd.clone().square().mean_dim(1);
    let normalized = (centerd / (variance + epsilon).sqrt()).reshape([l, b * d]);
    let [scale, shift] = [scale_bd, shift_bd].map(|row| row.reshape([1, b * d]));
    (normalized * (scale + 1.0) + shift).reshape([l * b, d])
}

/// `x + gate * branch`, one gate per image and channel.
///
/// # Shapes
/// - `x_rd`, `branch_rd` and output: `[l b, d]`, token-major
/// - `gate_bd`: `[b, d]`
///
/// # Panics
/// If the shapes do not fit.
pub fn gated_residual<B: Backend>(
    x_rd: Tensor<B, 2>,
    branch_rd: Tensor<B, 2>,
    gate_bd: Tensor<B, 2>,
) -> Tensor<B, 2> {
    assert_eq!(x_rd.dims(), branch_rd.dims(), "a residual and its branch");
    let [l, b, d] = tokens_images_channels(&x_rd, &gate_bd);
    let [x_rd, branch_rd, gate_bd] = [x_rd, branch_rd, gate_bd].map(widened);
    #[cfg(feature = "flex")]
    if crate::cpu::serves::<B>(&[x_rd.dtype(), branch_rd.dtype(), gate_bd.dtype()]) {
        return crate::cpu::gated_residual(x_rd, branch_rd, gate_bd);
    }
    let gated = branch_rd.reshape([l, b * d]) * gate_bd.reshape([1, b * d]);
    x_rd + gated.reshape([l * b, d])
}

fn tokens_images_channels<B: Backend>(x_rd: &Tensor<B, 2>, row_bd: &Tensor<B, 2>) -> [usize; 3] {
    let ([r, d], [b, channels]) = (x_rd.dims(), row_bd.dims());
    assert!(
        b > 0 && d == channels && r % b == 0,
        "{r} rows of {d} for {b} images of {channels} channels"
    );
    [r / b, b, d]
}
