//! Classifier-free guidance and its rules over the scales.
//!
//! Shapes: b batch, n tokens of one scale, v codes.

use burn::tensor::{Tensor, backend::Backend};
use sar_core::{FirstScale, ScaleSchedule};
use serde::{Deserialize, Serialize};

/// Mixes conditional and unconditional logits by classifier-free guidance.
///
/// ```text
/// g = (1 + t) * cond - t * uncond
/// ```
///
/// # Shapes
/// - `cond_bnv`, `uncond_bnv`, output: `[b, n, v]`, unnormalized log-probabilities
///
/// # Panics
/// If the two inputs differ in shape.
pub fn guide<B: Backend>(cond_bnv: Tensor<B, 3>, uncond_bnv: Tensor<B, 3>, t: f64) -> Tensor<B, 3> {
    assert_eq!(cond_bnv.dims(), uncond_bnv.dims(), "guidance mixes logits of the same tokens");
    cond_bnv * (1.0 + t) - uncond_bnv * t
}

/// How the strength of guidance depends on the scale; k of K scales, zero-based.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rule", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Guidance {
    /// `t = scale * k / (K - 1)` (VAR).
    Ramp {
        /// Strength at the last scale.
        scale: f64,
    },
    /// `t = scale * k / min(K - 1, 9)`, and `scale` itself for sides over `constant_over`
    /// (FlexVAR; published limit: 16).
    FlexRamp {
        /// Strength at the last scale.
        scale: f64,
        /// Longest side, in tokens, that the ramp still applies to.
        constant_over: usize,
    },
    /// `uncond + scale * (cond - uncond)` at every scale: 1 is no guidance.
    Constant {
        /// Weight of the conditional logits.
        scale: f64,
    },
    /// `t = 0.5 * scale * (1 + k / (K - 1))` (the released rollout).
    HalfRamp {
        /// Strength at the last scale.
        scale: f64,
    },
}

impl Guidance {
    /// FlexVAR's rule with its published limit.
    pub const fn flexvar(scale: f64) -> Self {
        Self::FlexRamp { scale, constant_over: 16 }
    }

    /// The same rule with another scale.
    pub const fn with_scale(self, scale: f64) -> Self {
        match self {
            Self::Ramp { .. } => Self::Ramp { scale },
            Self::FlexRamp { constant_over, .. } => Self::FlexRamp { scale, constant_over },
            Self::Constant { .. } => Self::Constant { scale },
            Self::HalfRamp { .. } => Self::HalfRamp { scale },
        }
    }

    /// The scale of the rule.
    pub const fn scale(self) -> f64 {
        match self {
            Self::Ramp { scale }
            | Self::FlexRamp { scale, .. }
            | Self::Constant { scale }
            | Self::HalfRamp { scale } => scale,
        }
    }

    /// The strength `t` of [`guide`] at scale `k`. A single scale has ramp ratio 0.
    pub fn strength(self, k: usize, schedule: &ScaleSchedule) -> f64 {
        let steps = schedule.len() - 1;
        let ratio = |steps: usize| if steps == 0 { 0.0 } else { k as f64 / steps as f64 };
        match self {
            Self::Ramp { scale } => scale * ratio(steps),
            Self::FlexRamp { scale, constant_over } => {
                let size = schedule.size(k);
                if size.height.max(size.width) > constant_over {
                    scale
                } else {
                    scale * ratio(steps.min(9))
                }
            }
            Self::Constant { scale } => scale - 1.0,
            Self::HalfRamp { scale } => 0.5 * scale * (1.0 + ratio(steps)),
        }
    }

    /// The strength in step `t` of `steps`, from 1, of a first scale that is behind the class token:
    /// that of [`HalfRamp`](Self::HalfRamp) over the steps, unless the rule is constant.
    pub fn first_strength(self, t: usize, steps: usize) -> f64 {
        match self {
            Self::Constant { scale } => scale - 1.0,
            Self::Ramp { scale } | Self::FlexRamp { scale, .. } | Self::HalfRamp { scale } => {
                0.5 * scale * (1.0 + t as f64 / steps as f64)
            }
        }
    }

    /// Whether nothing is guided, so that the unconditional half need not run.
    pub fn is_off(self, schedule: &ScaleSchedule, first_scale: FirstScale) -> bool {
        let first = match first_scale.is_behind_the_class_token() {
            true => self.first_strength(1, 1),
            false => 0.0,
        };
        first == 0.0 && (0..schedule.len()).all(|k| self.strength(k, schedule) == 0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn_flex::Flex;

    #[test]
    fn strengths_by_hand() {
        let schedule: ScaleSchedule = "1_2_3_4_5".parse().unwrap();
        let at = |g: Guidance| (0..5).map(|k| g.strength(k, &schedule)).collect::<Vec<_>>();
        assert_eq!(at(Guidance::Ramp { scale: 2.0 }), [0.0, 0.5, 1.0, 1.5, 2.0]);
        assert_eq!(at(Guidance::Constant { scale: 3.0 }), [2.0; 5]);
        assert_eq!(at(Guidance::HalfRamp { scale: 2.0 }), [1.0, 1.25, 1.5, 1.75, 2.0]);
        let zero_shot = ScaleSchedule::preset("512px-zero-shot").unwrap();
        let flex = Guidance::flexvar(3.0);
        assert_eq!(flex.strength(9, &zero_shot), 3.0);
        // Past nine steps FlexVAR's ramp goes on; over the limit it is constant again.
        assert_eq!(flex.strength(12, &zero_shot), 4.0);
        assert_eq!(flex.strength(14, &zero_shot), 3.0);
        let single: ScaleSchedule = "1".parse().unwrap();
        assert_eq!(flex.strength(0, &single), 0.0);
        let (class, random) = (FirstScale::ClassToken {}, FirstScale::RandomOrder {});
        for first_scale in [class, random] {
            assert!(Guidance::Constant { scale: 1.0 }.is_off(&schedule, first_scale));
            assert!(!flex.is_off(&schedule, first_scale));
        }
        assert!(flex.is_off(&single, class) && !flex.is_off(&single, random));
        let within = |g: Guidance| [1, 2, 3, 4].map(|t| g.first_strength(t, 4));
        assert_eq!(within(Guidance::Ramp { scale: 2.0 }), [1.25, 1.5, 1.75, 2.0]);
        assert_eq!(within(Guidance::Constant { scale: 3.0 }), [2.0; 4]);
    }

    #[test]
    fn another_scale_keeps_the_rule() {
        for (rule, expected) in [
            (Guidance::Ramp { scale: 2.0 }, Guidance::Ramp { scale: 3.0 }),
            (Guidance::flexvar(2.0), Guidance::flexvar(3.0)),
            (Guidance::Constant { scale: 2.0 }, Guidance::Constant { scale: 3.0 }),
            (Guidance::HalfRamp { scale: 2.0 }, Guidance::HalfRamp { scale: 3.0 }),
        ] {
            assert_eq!(rule.with_scale(3.0), expected);
        }
    }

    #[test]
    fn zero_is_the_conditional_and_one_extrapolates() {
        let device = Default::default();
        let cond = Tensor::<Flex, 3>::from_floats([[[1.0, -2.0]]], &device);
        let uncond = Tensor::<Flex, 3>::from_floats([[[0.5, 3.0]]], &device);
        let values = |t| guide(cond.clone(), uncond.clone(), t).to_data().to_vec::<f32>().unwrap();
        assert_eq!(values(0.0), [1.0, -2.0]);
        assert_eq!(values(1.0), [1.5, -7.0]);
    }
}
