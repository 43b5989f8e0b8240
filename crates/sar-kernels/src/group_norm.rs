//! Group normalization, with SiLU or without.

use burn::tensor::activation::silu;
use burn::tensor::{Tensor, backend::Backend};

/// What a group normalization does beside its parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupNormConfig {
    /// Channels are normalized in this many groups.
    pub groups: usize,
    /// Added to the variance.
    pub epsilon: f64,
    /// Whether `x sigmoid(x)` follows.
    pub silu: bool,
}

/// Normalizes groups of channels, scales and shifts every channel, and applies SiLU if asked to.
///
/// ```text
/// y = (x - mean) / sqrt(var + eps) * gamma + beta,   y sigmoid(y)
/// ```
///
/// # Shapes
/// - `x_bchw` and output: `[b, c, h, w]`
/// - `gamma_c`, `beta_c`: `[c]`
///
/// # Panics
/// If the shapes do not fit, or the groups do not divide the channels.
pub fn group_norm<B: Backend>(
    x_bchw: Tensor<B, 4>,
    gamma_c: Tensor<B, 1>,
    beta_c: Tensor<B, 1>,
    config: GroupNormConfig,
) -> Tensor<B, 4> {
    let [b, c, h, w] = x_bchw.dims();
    let GroupNormConfig { groups, epsilon, silu: activated } = config;
    assert!(groups > 0 && c % groups == 0, "{c} channels in {groups} groups");
    assert_eq!((gamma_c.dims(), beta_c.dims()), ([c], [c]), "one scale and shift per channel");
    #[cfg(feature = "flex")]
    if crate::cpu::serves::<B>(&[x_bchw.dtype(), gamma_c.dtype(), beta_c.dtype()]) {
        return crate::cpu::group_norm(x_bchw, gamma_c, beta_c, config);
    }
    let x = x_bchw.reshape([b * groups, c / groups * h * w]);
    let centerd = x.clone() - x.mean_dim(1);
    let variance = centerd.clone().square().mean_dim(1);
    let normalized = (centerd / (variance + epsilon).sqrt()).reshape([b * c, h * w]);
    // One scalar per row: the broadcast that is fast everywhere.
    let [gamma, beta] = [gamma_c, beta_c]
        .map(|parameter| parameter.reshape([1, c]).repeat_dim(0, b).reshape([b * c, 1]));
    let y = (normalized * gamma + beta).reshape([b, c, h, w]);
    if activated { silu(y) } else { y }
}
