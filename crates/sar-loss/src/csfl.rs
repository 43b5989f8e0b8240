//! Contrastive Student-Forcing Loss (SAR, section 4.2).
//!
//! The student pass is drawn towards what the same model predicts when it sees the ground truth,
//! not towards the ground truth itself.
//!
//! Shapes: b batch, l tokens of the student, v codes.

use burn::tensor::{Int, Tensor, backend::Backend};
use serde::{Deserialize, Serialize};

use crate::cross_entropy::{cross_entropy, soft_cross_entropy};

/// What the student is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Contrast {
    /// The tokens that the teacher pass predicted: the published loss.
    TeacherTokens,
    /// The teacher pass's whole distribution.
    TeacherProbabilities,
    /// The ground truth: plain student forcing, the baseline of the paper's analysis.
    GroundTruth,
}

/// Everything that a student token can be compared with; all `[b, l]` or `[b, l, v]`.
#[derive(Clone, Debug)]
pub struct Teacher<B: Backend> {
    /// The rollout's predictions of the same tokens.
    pub tokens_bl: Tensor<B, 2, Int>,
    /// The teacher pass's logits of the same tokens.
    pub logits_blv: Tensor<B, 3>,
    /// The true tokens.
    pub truth_bl: Tensor<B, 2, Int>,
}

/// The loss of every student token; no gradient reaches the teacher.
///
/// # Shapes
/// - `student_blv`: `[b, l, v]`
/// - output: `[b, l]`, nats
pub fn student_forcing<B: Backend>(
    student_blv: Tensor<B, 3>,
    teacher: Teacher<B>,
    contrast: Contrast,
) -> Tensor<B, 2> {
    match contrast {
        Contrast::TeacherTokens => cross_entropy(student_blv, teacher.tokens_bl, 0.0),
        Contrast::TeacherProbabilities => soft_cross_entropy(student_blv, teacher.logits_blv),
        Contrast::GroundTruth => cross_entropy(student_blv, teacher.truth_bl, 0.0),
    }
}
