//! Cross-entropy of rows, in nats.

use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::{Int, Tensor, backend::Backend};

use crate::precision::widened;

/// `-log p(target)` of every row, with label smoothing as in PyTorch.
///
/// ```text
/// (1 - s) * -log p[target] + s * mean over codes of -log p
/// ```
///
/// # Shapes
/// - `logits_rv`: `[r, v]`, unnormalized log-probabilities
/// - `target_r`: `[r]`, each in `0..v`
/// - `smoothing`: in `[0, 1)`, 0 for none
/// - output: `[r]`, nats
///
/// # Panics
/// If the shapes do not fit, or, on CPUs, a target is not a class.
pub fn cross_entropy<B: Backend>(
    logits_rv: Tensor<B, 2>,
    target_r: Tensor<B, 1, Int>,
    smoothing: f64,
) -> Tensor<B, 1> {
    let [r, _] = logits_rv.dims();
    assert_eq!(target_r.dims(), [r], "one target per row");
    let logits_rv = widened(logits_rv);
    #[cfg(feature = "flex")]
    if crate::cpu::serves::<B>(&[logits_rv.dtype()]) {
        return crate::cpu::cross_entropy(logits_rv, target_r, smoothing);
    }
    let log_p_rv = log_softmax(logits_rv, 1);
    let nll_r1 = -log_p_rv.clone().gather(1, target_r.reshape([r, 1]));
    let loss_r1 = match smoothing {
        0.0 => nll_r1,
        s => nll_r1 * (1.0 - s) - log_p_rv.mean_dim(1) * s,
    };
    loss_r1.reshape([r])
}

/// Cross-entropy of every row against the distribution of other logits, through which no gradient
/// flows.
///
/// ```text
/// -sum over codes of  p_target log p
/// ```
///
/// # Shapes
/// - `logits_rv`, `target_logits_rv`: `[r, v]`
/// - output: `[r]`, nats
///
/// # Panics
/// If the shapes differ.
pub fn soft_cross_entropy<B: Backend>(
    logits_rv: Tensor<B, 2>,
    target_logits_rv: Tensor<B, 2>,
) -> Tensor<B, 1> {
    let [r, v] = logits_rv.dims();
    assert_eq!(target_logits_rv.dims(), [r, v], "one target distribution per row");
    let [logits_rv, target_logits_rv] = [logits_rv, target_logits_rv].map(widened);
    #[cfg(feature = "flex")]
    if crate::cpu::serves::<B>(&[logits_rv.dtype(), target_logits_rv.dtype()]) {
        return crate::cpu::soft_cross_entropy(logits_rv, target_logits_rv);
    }
    let target_rv = softmax(target_logits_rv.detach(), 1);
    -(target_rv * log_softmax(logits_rv, 1)).sum_dim(1).reshape([r])
}
