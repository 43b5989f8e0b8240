//! Cross-entropy per token, in nats.
//!
//! Shapes: b batch, l tokens, v codes.

use burn::tensor::{Int, Tensor, backend::Backend};

/// `-log p(target)` of every token, with label smoothing as in PyTorch.
///
/// ```text
/// (1 - s) * -log p[target] + s * mean over codes of -log p
/// ```
///
/// # Shapes
/// - `logits_blv`: `[b, l, v]`, unnormalized log-probabilities
/// - `target_bl`: `[b, l]`, each in `0..v`
/// - `smoothing`: in `[0, 1)`, 0 for none
/// - output: `[b, l]`, nats
///
/// # Panics
/// If the shapes do not fit.
pub fn cross_entropy<B: Backend>(
    logits_blv: Tensor<B, 3>,
    target_bl: Tensor<B, 2, Int>,
    smoothing: f64,
) -> Tensor<B, 2> {
    let [b, l, v] = logits_blv.dims();
    assert_eq!(target_bl.dims(), [b, l], "one target per token");
    let loss_r = sar_kernels::cross_entropy(
        logits_blv.reshape([b * l, v]),
        target_bl.reshape([b * l]),
        smoothing,
    );
    loss_r.reshape([b, l])
}

/// Cross-entropy against the distribution of other logits, through which no gradient flows.
///
/// ```text
/// -sum over codes of  p_target log p
/// ```
///
/// # Shapes
/// - `logits_blv`, `target_logits_blv`: `[b, l, v]`
/// - output: `[b, l]`, nats
///
/// # Panics
/// If the shapes differ.
pub fn soft_cross_entropy<B: Backend>(
    logits_blv: Tensor<B, 3>,
    target_logits_blv: Tensor<B, 3>,
) -> Tensor<B, 2> {
    let [b, l, v] = logits_blv.dims();
    assert_eq!(target_logits_blv.dims(), [b, l, v], "one target distribution per token");
    let [logits_rv, target_rv] =
        [logits_blv, target_logits_blv].map(|logits| logits.reshape([b * l, v]));
    sar_kernels::soft_cross_entropy(logits_rv, target_rv).reshape([b, l])
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::backend::Autodiff;
    use burn_flex::Flex;

    type A = Autodiff<Flex>;

    fn logits<B: Backend>() -> Tensor<B, 3> {
        Tensor::<B, 1>::from_floats([1.0, 2.0, 4.0, 0.0, -1.0, 0.5], &Default::default())
            .reshape([1, 2, 3])
    }

    fn floats<B: Backend, const D: usize>(x: Tensor<B, D>) -> Vec<f32> {
        x.to_data().to_vec().unwrap()
    }

    /// log-sum-exp of the two rows of [`logits`].
    fn lse() -> [f32; 2] {
        let sum = |row: [f32; 3]| row.iter().map(|x| x.exp()).sum::<f32>().ln();
        [sum([1.0, 2.0, 4.0]), sum([0.0, -1.0, 0.5])]
    }

    #[test]
    fn hand_computed_with_and_without_smoothing() {
        let target = Tensor::<Flex, 2, Int>::from_ints([[2, 1]], &Default::default());
        let plain = floats(cross_entropy(logits::<Flex>(), target.clone(), 0.0));
        assert!((plain[0] - (lse()[0] - 4.0)).abs() < 1e-6);
        assert!((plain[1] - (lse()[1] + 1.0)).abs() < 1e-6);
        let smooth = floats(cross_entropy(logits::<Flex>(), target, 0.3));
        let uniform = lse()[0] - 7.0 / 3.0;
        assert!((smooth[0] - (0.7 * plain[0] + 0.3 * uniform)).abs() < 1e-6);
    }

    #[test]
    fn a_certain_soft_target_is_the_hard_one_and_gets_no_gradient() {
        let target =
            Tensor::<A, 1>::from_floats([0.0, 90.0, 0.0, 90.0, 0.0, 0.0], &Default::default())
                .reshape([1, 2, 3])
                .require_grad();
        let student = logits::<A>().require_grad();
        let hard = Tensor::<A, 2, Int>::from_ints([[1, 0]], &Default::default());
        let soft = soft_cross_entropy(student.clone(), target.clone());
        let difference = floats(soft.clone() - cross_entropy(student.clone(), hard, 0.0));
        assert!(difference.iter().all(|d| d.abs() < 1e-5), "{difference:?}");
        let grads = soft.sum().backward();
        assert!(target.grad(&grads).is_none(), "a gradient leaked into the target");
        // d/dlogits = p - target
        let grad = floats(student.grad(&grads).unwrap());
        assert!((grad[1] - ((2.0 - lse()[0]).exp() - 1.0)).abs() < 1e-5);
    }
}
