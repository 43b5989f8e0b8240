//! Learning rate and weight decay as pure functions of the step.

use serde::{Deserialize, Serialize};

/// How the learning rate falls after warm-up; `x` runs from 0 to 1 over the steps that are left.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Decay {
    /// Half a cosine.
    Cosine,
    /// Flat for the share `flat`, then linear. Published: 0.05 (`lin0`); `lin` is 0.15, `lin00` 0.
    Linear {
        /// Share of the steps at the peak, in `[0, 1)`.
        flat: f64,
    },
    /// Two linear pieces that meet at `knee`, halfway between the peak and where one straight line
    /// would be (`lin0.8` and the like).
    Knee {
        /// Where the pieces meet, in `(0, 1)`.
        knee: f64,
    },
    /// Flat for 15 %, then exponential.
    Exponential,
}

/// How the weight of a loss changes over the steps of a stage: a factor.
///
/// ```text
/// step / w                              before w = warmup * steps
/// 1 + (end - 1) (step - w) / (last - w) from there to the last step
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ramp {
    /// Share of the steps over which it rises from 0, in [0, 1).
    pub warmup: f64,
    /// The factor at the last step; 1: it stays.
    pub end: f64,
}

impl Ramp {
    /// Always 1.
    pub const CONSTANT: Self = Self { warmup: 0.0, end: 1.0 };

    /// The factor of a step.
    pub fn at(&self, step: u64, steps: u64) -> f64 {
        let (step, last) = (step as f64, steps.saturating_sub(1) as f64);
        let warmup = self.warmup * steps as f64;
        if step < warmup {
            return step / warmup;
        }
        let x = if last > warmup { (step - warmup) / (last - warmup) } else { 0.0 };
        1.0 + (self.end - 1.0) * x
    }
}

/// Peak, warm-up and decay.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LrSchedule {
    /// Highest learning rate.
    pub peak: f64,
    /// Steps of linear warm-up; rounded to whole steps, ties to even as published.
    pub warmup_steps: f64,
    /// Where warm-up starts, as a share of the peak (published: 0.005).
    pub warmup_from: f64,
    /// Where the decay ends, as a share of the peak (published: 0.1, 0.01 for d24).
    pub end: f64,
    /// The way there.
    pub decay: Decay,
}

impl LrSchedule {
    /// The learning rate of a step.
    ///
    /// The last step, `steps - 1`, has `end * peak`.
    pub fn at(&self, step: u64, steps: u64) -> f64 {
        let (step, last) = (step as f64, steps.saturating_sub(1) as f64);
        let warmup = self.warmup_steps.round_ties_even();
        let share = if step < warmup {
            self.warmup_from + (1.0 - self.warmup_from) * step / warmup
        } else {
            let x = if last > warmup { (step - warmup) / (last - warmup) } else { 0.0 };
            self.decayed(x)
        };
        share * self.peak
    }

    fn decayed(&self, x: f64) -> f64 {
        let end = self.end;
        match self.decay {
            Decay::Cosine => end + (1.0 - end) * (0.5 + 0.5 * (std::f64::consts::PI * x).cos()),
            Decay::Linear { flat } if x < flat => 1.0,
            Decay::Linear { flat } => end + (1.0 - end) * (1.0 - x) / (1.0 - flat),
            Decay::Knee { knee } => {
                let straight = end + (1.0 - end) * (1.0 - knee);
                let middle = 0.5 * (1.0 + straight);
                if x < knee {
                    1.0 + (middle - 1.0) * x / knee
                } else {
                    end + (middle - end) * (1.0 - x) / (1.0 - knee)
                }
            }
            Decay::Exponential => {
                const FLAT: f64 = 0.15;
                if x < FLAT { 1.0 } else { ((x - FLAT) / (1.0 - FLAT) * end.ln()).exp() }
            }
        }
    }
}

/// Weight decay from `start` to `end` along half a cosine over all steps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightDecay {
    /// At the first step.
    pub start: f64,
    /// At the last step.
    pub end: f64,
}

impl WeightDecay {
    /// The weight decay of a step.
    pub fn at(&self, step: u64, steps: u64) -> f64 {
        let last = steps.saturating_sub(1).max(1) as f64;
        let x = step as f64 / last;
        self.end + (self.start - self.end) * (0.5 + 0.5 * (std::f64::consts::PI * x).cos())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Case {
        schedule: String,
        peak_lr: f64,
        wd: f64,
        wd_end: f64,
        warmup_iters: f64,
        max_iters: u64,
        warmup_start_ratio: f64,
        end_ratio: f64,
        values: Vec<Value>,
    }

    #[derive(Deserialize)]
    struct Value {
        iter: u64,
        lr: f64,
        wd: f64,
    }

    #[test]
    fn equal_to_the_released_schedules() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/parity/schedules/lr_wd.json");
        let cases: Vec<Case> =
            serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        assert!(cases.len() >= 18);
        for case in cases {
            let decay = match case.schedule.as_str() {
                "cos" => Decay::Cosine,
                "lin" => Decay::Linear { flat: 0.15 },
                "lin0" => Decay::Linear { flat: 0.05 },
                "lin00" => Decay::Linear { flat: 0.0 },
                "exp" => Decay::Exponential,
                other => Decay::Knee { knee: other.strip_prefix("lin").unwrap().parse().unwrap() },
            };
            let lr = LrSchedule {
                peak: case.peak_lr,
                warmup_steps: case.warmup_iters,
                warmup_from: case.warmup_start_ratio,
                end: case.end_ratio,
                decay,
            };
            let wd = WeightDecay { start: case.wd, end: case.wd_end };
            for value in case.values {
                let (got, name) = (lr.at(value.iter, case.max_iters), &case.schedule);
                assert!(
                    (got / value.lr - 1.0).abs() < 1e-9,
                    "{name} {}: {got} {}",
                    value.iter,
                    value.lr
                );
                let got = wd.at(value.iter, case.max_iters);
                assert!((got / value.wd - 1.0).abs() < 1e-9, "{name} wd {}", value.iter);
            }
        }
    }
}
