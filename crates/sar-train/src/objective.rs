//! What a backbone is trained for, as data.

use sar_core::{FirstScale, ScaleSchedule};
use sar_loss::{Reduction, StudentTarget};
use sar_rollout::{Choice, Guidance, Predictions, Sampler, StudentContext, Transitions};
use serde::{Deserialize, Serialize};

use crate::context_noise::ContextNoise;

/// Teacher forcing alone, or with a student term.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
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
        student_context: StudentContext,
        /// Which transitions the student predicts.
        transitions: Transitions,
        /// What the student is compared with.
        student_target: StudentTarget,
        /// Whether the student pass draws its own class dropout.
        condition: ConditionDraw,
        /// What the student pass begins with, where the class token is the first scale.
        student_first_token: StudentFirstToken,
    },
}

/// The class token of the student pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum StudentFirstToken {
    /// Without the start position, as published. Neither the teacher pass nor sampling begins so: it tells
    /// the network which pass it is in.
    Bare,
    /// That of the teacher pass and of sampling.
    Start,
}

/// When class dropout is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
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
            student_context: StudentContext::All,
            transitions: Transitions::All,
            student_target: StudentTarget::TeacherTokens,
            condition: ConditionDraw::Once,
            student_first_token: StudentFirstToken::Bare,
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
            student_context: StudentContext::All,
            transitions: Transitions::Last,
            student_target: StudentTarget::TeacherTokens,
            condition: ConditionDraw::PerPass,
            student_first_token: StudentFirstToken::Bare,
        }
    }

    /// The same objective with the weight of the student term times a factor, as schedules have it.
    pub fn weighted(&self, factor: f64) -> Self {
        let mut objective = self.clone();
        if let Self::Sar { weight, .. } = &mut objective {
            *weight *= factor;
        }
        objective
    }

    /// What one step computes, in units of a teacher-forced step at the same scales: what an
    /// equal-compute control gets.
    ///
    /// A token's backward pass counts as two forward passes. Attention's share that grows with the
    /// square of the tokens is left out.
    pub fn passes(&self, schedule: &ScaleSchedule) -> f64 {
        let Self::Sar { predictions, transitions, .. } = self else { return 1.0 };
        if schedule.len() == 1 {
            return 1.0;
        }
        let student = transitions.n_tokens(schedule) / schedule.n_tokens() as f64;
        let rollout = match predictions {
            Predictions::TeacherArgmax => 0.0,
            Predictions::TeacherSample { sampler } | Predictions::FullRollout { sampler } => {
                if sampler.guidance.is_off(schedule, FirstScale::ClassToken {}) {
                    1.0
                } else {
                    2.0
                }
            }
        };
        1.0 + student + rollout / 3.0
    }
}

/// What decides which checkpoint of a backbone stage is the best, on held-out images (see
/// [`held_out`](crate::held_out)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum BackboneMeasure {
    /// Cross-entropy with ground-truth context.
    TeacherLoss,
    /// Cross-entropy with the model's own context.
    StudentLoss,
}

/// Regularization of a backbone stage; none of it is active in evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Regularization {
    /// Probability that an image's class is replaced by the null class (published: 0.1).
    pub class_dropout_prob: f64,
    /// Probability that stochastic depth drops a branch of the last block, rising linearly from 0 at
    /// the first (published: 0.1 * depth / 24).
    pub drop_path_rate: f64,
    /// Label smoothing of the teacher-forced loss (published: 0).
    pub label_smoothing: f64,
    /// Replaced codes in the context of the teacher pass.
    pub context_noise: ContextNoise,
    /// How token losses of the teacher pass become one number.
    pub reduction: Reduction,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::Ramp;

    #[test]
    fn the_weight_follows_its_schedule() {
        let weights = |warmup, end| {
            let ramp = Ramp { warmup, end };
            (0..5).map(move |step| match Objective::paper(0.1).weighted(ramp.at(step, 5)) {
                Objective::Sar { weight, .. } => weight,
                Objective::TeacherForcing => unreachable!(),
            })
        };
        assert!(weights(0.0, 1.0).eq([0.1; 5]), "to the bit");
        let near = |found: f64, expected: f64| (found - expected).abs() < 1e-15;
        assert!(weights(0.4, 0.0).zip([0.0, 0.05, 0.1, 0.05, 0.0]).all(|(a, b)| near(a, b)));
        assert!(weights(0.0, 3.0).zip([0.1, 0.15, 0.2, 0.25, 0.3]).all(|(a, b)| near(a, b)));
        assert_eq!(Ramp { warmup: 0.0, end: 0.5 }.at(0, 1), 1.0, "a single step");
        assert_eq!(Objective::TeacherForcing.weighted(0.5), Objective::TeacherForcing);
    }

    #[test]
    fn compute_by_hand() {
        let schedule: ScaleSchedule = "1_2_3".parse().unwrap();
        let passes = |transitions, predictions| {
            let mut objective = Objective::paper(1.0);
            let Objective::Sar { transitions: t, predictions: p, .. } = &mut objective else {
                unreachable!()
            };
            (*t, *p) = (transitions, predictions);
            objective.passes(&schedule)
        };
        let argmax = Predictions::TeacherArgmax;
        assert_eq!(Objective::TeacherForcing.passes(&schedule), 1.0);
        // 14 tokens; the transitions alone have 1 + 4 and 1 + 9.
        assert_eq!(passes(Transitions::All, argmax), 2.0);
        assert_eq!(passes(Transitions::Last, argmax), 1.0 + 10.0 / 14.0);
        assert_eq!(passes(Transitions::Separate, argmax), 1.0 + 15.0 / 14.0);
        assert_eq!(passes(Transitions::OneRandom, argmax), 1.0 + 7.5 / 14.0);
        let sampler =
            |scale| Sampler { guidance: Guidance::Ramp { scale }, choice: Choice::Argmax };
        let sampled = |scale| Predictions::TeacherSample { sampler: sampler(scale) };
        assert_eq!(passes(Transitions::All, sampled(0.0)), 2.0 + 1.0 / 3.0);
        assert_eq!(passes(Transitions::All, sampled(1.0)), 2.0 + 2.0 / 3.0);
        assert_eq!(Objective::paper(1.0).passes(&"1".parse().unwrap()), 1.0);
    }
}
