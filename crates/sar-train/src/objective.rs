//! What a backbone is trained for, as data (SPEC 5).

use sar_loss::{Contrast, Reduction};
use sar_rollout::{Choice, Guidance, OwnScales, Predictions, Sampler, Transitions};
use serde::{Deserialize, Serialize};

/// Teacher forcing alone, or with a student term.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Objective {
    /// Cross-entropy of every token given ground-truth coarser scales.
    TeacherForcing,
    /// `L_teacher + weight * L_student`, over the staggered rollout.
    Sar {
        /// Weight of the student term.
        weight: f64,
        /// Where the rollout's tokens come from.
        predictions: Predictions,
        /// Which scales of the student's context are predictions.
        own: OwnScales,
        /// Which transitions the student predicts.
        transitions: Transitions,
        /// What the student is compared with.
        contrast: Contrast,
        /// Whether the student pass draws its own condition dropout.
        condition: ConditionDraw,
    },
}

/// When condition dropout is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConditionDraw {
    /// Once per image and step, for both passes.
    Once,
    /// Anew for the student pass (the released trainer).
    PerPass,
}

impl Objective {
    /// SAR as the paper's figure and equations state it.
    pub fn paper(weight: f64) -> Self {
        Self::Sar {
            weight,
            predictions: Predictions::TeacherArgmax,
            own: OwnScales::All,
            transitions: Transitions::All,
            contrast: Contrast::TeacherTokens,
            condition: ConditionDraw::Once,
        }
    }

    /// SAR as the released trainer runs it.
    pub fn released() -> Self {
        let sampler = Sampler {
            guidance: Guidance::HalfRamp { scale: 1.2 },
            choice: Choice::Sample { top_k: 900, top_p: 0.96 },
        };
        Self::Sar {
            weight: 0.01,
            predictions: Predictions::TeacherSample { sampler },
            own: OwnScales::All,
            transitions: Transitions::Last,
            contrast: Contrast::TeacherTokens,
            condition: ConditionDraw::PerPass,
        }
    }

    /// Forward and backward passes of one step, in units of one teacher-forced step: what an
    /// equal-compute control gets.
    pub fn passes(&self, tokens: usize, last: usize) -> f64 {
        match self {
            Self::TeacherForcing => 1.0,
            Self::Sar { transitions, .. } => match transitions {
                Transitions::All | Transitions::Separate => 2.0,
                Transitions::Last => 1.0 + (last + 1) as f64 / tokens as f64,
                Transitions::OneRandom => 1.5,
            },
        }
    }
}

/// Regularisation of a backbone stage; none of it is active in evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Regularisation {
    /// Probability that an image's class is replaced by the null class (published: 0.1).
    pub condition_dropout: f64,
    /// Stochastic depth of the last block (published: 0.1 * depth / 24).
    pub stochastic_depth: f64,
    /// Label smoothing of the teacher-forced loss (published: 0).
    pub label_smoothing: f64,
    /// How token losses of the teacher pass become one number.
    pub reduction: Reduction,
}
