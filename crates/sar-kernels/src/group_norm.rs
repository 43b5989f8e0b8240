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
    let ([_, c, ..], groups) = (x_bchw.dims(), config.groups);
    assert!(groups > 0 && c % groups == 0, "{c} channels in {groups} groups");
    assert_eq!((gamma_c.dims(), beta_c.dims()), ([c], [c]), "one scale and shift per channel");
    #[cfg(feature = "flex")]
    if crate::cpu::serves::<B>(&[x_bchw.dtype(), gamma_c.dtype(), beta_c.dtype()]) {
        return crate::cpu::group_norm(x_bchw, gamma_c, beta_c, config);
    }
    let shape = x_bchw.dims();
    let (_, centered_rn, variance_r1) = centered(x_bchw, groups);
    affine(centered_rn, variance_r1, [gamma_c, beta_c], shape, config)
}

/// Mean and variance of groups of channels, of maps that may be larger than any tensor: those of parts are
/// [joined](Self::and).
#[derive(Clone, Debug)]
pub struct GroupMoments<B: Backend> {
    /// Of each group of each image: `[b groups, 1]`.
    mean_r1: Tensor<B, 2>,
    variance_r1: Tensor<B, 2>,
    /// Elements of a group.
    n: usize,
}

impl<B: Backend> GroupMoments<B> {
    /// The moments of maps, or of a part of them.
    ///
    /// # Shapes
    /// - `x_bchw`: `[b, c, h, w]`
    ///
    /// # Panics
    /// If the groups do not divide the channels, or there are no elements.
    pub fn of(x_bchw: Tensor<B, 4>, groups: usize) -> Self {
        let [_, c, h, w] = x_bchw.dims();
        assert!(groups > 0 && c % groups == 0, "{c} channels in {groups} groups");
        assert!(c * h * w > 0, "the moments of no elements");
        #[cfg(feature = "flex")]
        if crate::cpu::serves_untracked::<B>(&[x_bchw.dtype()]) {
            let [mean_r1, variance_r1] = crate::cpu::group_moments(x_bchw, groups);
            return Self { mean_r1, variance_r1, n: c / groups * h * w };
        }
        let (mean_r1, _, variance_r1) = centered(x_bchw, groups);
        Self { mean_r1, variance_r1, n: c / groups * h * w }
    }

    /// The moments of two parts of the same maps together (Chan, Golub and LeVeque).
    ///
    /// ```text
    /// mean = mean_1 + d n_2 / n,   var = (n_1 var_1 + n_2 var_2) / n + d^2 n_1 n_2 / n^2,   d = mean_2 - mean_1
    /// ```
    ///
    /// # Panics
    /// If the two differ in images or groups.
    pub fn and(self, other: Self) -> Self {
        assert_eq!(self.mean_r1.dims(), other.mean_r1.dims(), "groups of the same maps");
        let n = self.n + other.n;
        let [one, two] = [self.n, other.n].map(|part| part as f64 / n as f64);
        let d_r1 = other.mean_r1 - self.mean_r1.clone();
        let between_r1 = d_r1.clone().square() * (one * two);
        Self {
            mean_r1: self.mean_r1 + d_r1 * two,
            variance_r1: self.variance_r1 * one + other.variance_r1 * two + between_r1,
            n,
        }
    }
}

/// As [`group_norm`], of a part of maps by the moments of the whole.
///
/// # Panics
/// As [`group_norm`], and if the moments are of other images or groups.
pub fn group_norm_by<B: Backend>(
    x_bchw: Tensor<B, 4>,
    moments: &GroupMoments<B>,
    gamma_c: Tensor<B, 1>,
    beta_c: Tensor<B, 1>,
    config: GroupNormConfig,
) -> Tensor<B, 4> {
    let (shape @ [b, c, h, w], groups) = (x_bchw.dims(), config.groups);
    assert!(groups > 0 && c % groups == 0, "{c} channels in {groups} groups");
    assert_eq!((gamma_c.dims(), beta_c.dims()), ([c], [c]), "one scale and shift per channel");
    assert_eq!(moments.mean_r1.dims(), [b * groups, 1], "moments of these groups");
    #[cfg(feature = "flex")]
    if crate::cpu::serves_untracked::<B>(&[x_bchw.dtype(), gamma_c.dtype(), beta_c.dtype()]) {
        let GroupMoments { mean_r1, variance_r1, n: _ } = moments.clone();
        return crate::cpu::group_norm_by(
            x_bchw,
            [mean_r1, variance_r1],
            [gamma_c, beta_c],
            config,
        );
    }
    let GroupMoments { mean_r1, variance_r1, n: _ } = moments.clone();
    let centered_rn = x_bchw.reshape([b * groups, c / groups * h * w]) - mean_r1;
    affine(centered_rn, variance_r1, [gamma_c, beta_c], shape, config)
}

/// Means, what is left without them, and variances.
fn centered<B: Backend>(
    x_bchw: Tensor<B, 4>,
    groups: usize,
) -> (Tensor<B, 2>, Tensor<B, 2>, Tensor<B, 2>) {
    let [b, c, h, w] = x_bchw.dims();
    let x_rn = x_bchw.reshape([b * groups, c / groups * h * w]);
    let mean_r1 = x_rn.clone().mean_dim(1);
    let centered_rn = x_rn - mean_r1.clone();
    let variance_r1 = centered_rn.clone().square().mean_dim(1);
    (mean_r1, centered_rn, variance_r1)
}

/// Scaled, shifted, and activated if that is asked for.
fn affine<B: Backend>(
    centered_rn: Tensor<B, 2>,
    variance_r1: Tensor<B, 2>,
    parameters_c: [Tensor<B, 1>; 2],
    shape @ [b, c, h, w]: [usize; 4],
    config: GroupNormConfig,
) -> Tensor<B, 4> {
    let GroupNormConfig { groups: _, epsilon, silu: activated } = config;
    let normalized = (centered_rn / (variance_r1 + epsilon).sqrt()).reshape([b * c, h * w]);
    // One scalar per row: the broadcast that is fast everywhere.
    let [gamma, beta] = parameters_c
        .map(|parameter| parameter.reshape([1, c]).repeat_dim(0, b).reshape([b * c, 1]));
    let y = (normalized * gamma + beta).reshape(shape);
    if activated { silu(y) } else { y }
}
