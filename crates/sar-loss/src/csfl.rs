//! Contrastive Student-Forcing Loss (SAR, section 4.2).
//!
//! The student pass is drawn toward what the same model predicts when it sees the ground truth, not
//! toward the ground truth itself.
//!
//! Shapes: b batch, l tokens of the pyramid or of the student, v codes.

use std::ops::Range;

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor};
use serde::{Deserialize, Serialize};

use crate::cross_entropy::{cross_entropy, soft_cross_entropy};

/// What the student is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum StudentTarget {
    /// The tokens that the teacher pass predicted: the published loss.
    TeacherTokens,
    /// The teacher pass's whole distribution.
    TeacherProbabilities,
    /// The ground truth: plain student forcing, the baseline of the paper's analysis.
    GroundTruth,
}

/// The values that tokens are compared with.
///
/// They are tensors of the backend without autodiff, so that no gradient can flow through them.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Target<I: Backend> {
    /// One code per token, `[b, l]`, each in `0..v`.
    Tokens(Tensor<I, 2, Int>),
    /// One distribution per token, the softmax of these logits, `[b, l, v]`.
    SoftmaxOf(Tensor<I, 3>),
}

impl StudentTarget {
    /// The values that it names: of the teacher pass's tokens, its logits, and the ground truth. The tokens are asked
    /// for only if they are the target: they may have to be found first.
    ///
    /// # Shapes
    /// - `predicted_bl`, `truth_bl`: `[b, l]`
    /// - `teacher_blv`: `[b, l, v]`, unnormalized log-probabilities
    pub fn of<I: Backend>(
        self,
        predicted_bl: impl FnOnce() -> Tensor<I, 2, Int>,
        teacher_blv: Tensor<I, 3>,
        truth_bl: Tensor<I, 2, Int>,
    ) -> Target<I> {
        match self {
            Self::TeacherTokens => Target::Tokens(predicted_bl()),
            Self::TeacherProbabilities => Target::SoftmaxOf(teacher_blv),
            Self::GroundTruth => Target::Tokens(truth_bl),
        }
    }
}

impl<I: Backend> Target<I> {
    /// The targets of some of the tokens.
    ///
    /// # Panics
    /// If there are no such tokens.
    pub fn of_tokens(&self, range: Range<usize>) -> Self {
        match self {
            Self::Tokens(tokens_bl) => Self::Tokens(tokens_bl.clone().slice_dim(1, range)),
            Self::SoftmaxOf(logits_blv) => Self::SoftmaxOf(logits_blv.clone().slice_dim(1, range)),
        }
    }
}

/// The loss of every student token.
///
/// For student logits z of token i, and sg(.) a value through which no gradient flows:
///
/// ```text
/// L_i = -log softmax(z_i)[sg(f^_i)]                   tokens; f^_i predicted by the teacher pass:
///                                                     the Contrastive Student-Forcing Loss
/// L_i = -sum_c sg(softmax(y_i)[c]) log softmax(z_i)[c]     the softmax of the teacher's logits y
/// ```
/// Its mean over the student's tokens is L_csf, and the whole objective is
///
/// ```text
/// L = L_teacher + weight * L_csf
/// ```
/// (SAR, section 4.2.) The student predicts the scales after the first, so that the token of scale
/// k + 1 is compared with the teacher pass's own prediction of scale k + 1.
///
/// # Shapes
/// - `student_blv`: `[b, l, v]`, unnormalized log-probabilities
/// - `target`: of the same `b`, `l` and `v`
/// - output: `[b, l]`, nats
///
/// # Panics
/// If the shapes do not fit.
pub fn student_forcing<A: AutodiffBackend>(
    student_blv: Tensor<A, 3>,
    target: Target<A::InnerBackend>,
) -> Tensor<A, 2> {
    match target {
        Target::Tokens(tokens_bl) => cross_entropy(student_blv, Tensor::from_inner(tokens_bl), 0.0),
        Target::SoftmaxOf(logits_blv) => {
            soft_cross_entropy(student_blv, Tensor::from_inner(logits_blv))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::backend::Autodiff;
    use burn_flex::Flex;

    type A = Autodiff<Flex>;

    /// ln of (1, 2, 5) / 8 and of (4, 1, 3) / 8, each with another constant added.
    fn student() -> Tensor<A, 3> {
        let logits = [1f32, 2.0, 5.0, 4.0, 1.0, 3.0].map(f32::ln);
        let shift = [0.7, 0.7, 0.7, -2.0, -2.0, -2.0];
        let logits: Vec<f32> = logits.iter().zip(shift).map(|(x, s)| x + s).collect();
        Tensor::<A, 1>::from_floats(&logits[..], &Default::default()).reshape([1, 2, 3])
    }

    fn check(target: Target<Flex>, loss: [f32; 2], gradient: [f32; 6]) {
        let student = student().require_grad();
        let found = student_forcing(student.clone(), target);
        let values = |x: Vec<f32>, expected: &[f32]| {
            for (x, expected) in x.iter().zip(expected) {
                assert!((x - expected).abs() < 1e-6, "{x}, not {expected}");
            }
        };
        values(found.clone().into_data().into_vec().unwrap(), &loss);
        let gradients = found.sum().backward();
        values(student.grad(&gradients).unwrap().into_data().into_vec().unwrap(), &gradient);
    }

    /// The teacher predicts codes 1 and 0: p is 2/8 and 4/8.
    #[test]
    fn tokens_by_hand() {
        let tokens = Tensor::<Flex, 2, Int>::from_ints([[1, 0]], &Default::default());
        check(
            Target::Tokens(tokens),
            [4f32.ln(), 2f32.ln()],
            // p, minus one at the target.
            [0.125, -0.75, 0.625, -0.5, 0.125, 0.375],
        );
    }

    /// The teacher's distributions are (1, 1, 2) / 4 and (0, 1, 0).
    #[test]
    fn distributions_by_hand() {
        let logits = [0.0, 0.0, 2f32.ln(), -200.0, 0.0, -200.0].map(|x| x + 3.0);
        let logits = Tensor::<Flex, 1>::from_floats(logits, &Default::default());
        let first = 0.25 * 8f32.ln() + 0.25 * 4f32.ln() + 0.5 * 1.6f32.ln();
        check(
            Target::SoftmaxOf(logits.reshape([1, 2, 3])),
            [first, 8f32.ln()],
            // p minus the teacher's.
            [-0.125, 0.0, 0.125, 0.5, -0.875, 0.375],
        );
    }

    #[test]
    fn targets_of_some_tokens() {
        let device = Default::default();
        let tokens = Tensor::<Flex, 2, Int>::from_ints([[3, 4, 5], [6, 7, 8]], &device);
        let logits = Tensor::<Flex, 3>::from_floats([[[0.0, 1.0], [2.0, 3.0]]], &device);
        let Target::Tokens(tokens_bl) = Target::Tokens(tokens).of_tokens(1..3) else {
            panic!("tokens stay tokens")
        };
        assert_eq!(tokens_bl.into_data().convert::<i64>().into_vec::<i64>().unwrap(), [4, 5, 7, 8]);
        let Target::SoftmaxOf(logits_blv) = Target::SoftmaxOf(logits).of_tokens(1..2) else {
            panic!("distributions stay distributions")
        };
        assert_eq!(logits_blv.into_data().into_vec::<f32>().unwrap(), [2.0, 3.0]);
    }
}
