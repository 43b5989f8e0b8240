//! Dynamic loss scaling (Micikevicius et al., 2018, section 3.2): gradients are computed of a multiple
//! of the loss, so that small ones do not vanish in `f16`.

use sar_model::Precision;
use serde::{Deserialize, Serialize};

/// The factor of the loss, which follows what the gradients bear. Powers of two: scaling and its
/// undoing are exact.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    factor: f64,
    /// Steps taken since the last one that was not, or since the factor could grow.
    good: u64,
    /// Steps that were not taken.
    skipped: u64,
}

impl LossScale {
    // The released trainers' constants.
    const START: f64 = 2048.0;
    const MOST: f64 = 32768.0;
    const GROWTH_EVERY: u64 = 1000;
    // Ours: gradients that overflow even so are not going to be saved by a smaller factor.
    const LEAST: f64 = 1.0 / 16384.0;

    /// Where a training in a precision starts; none where gradients need no scale.
    pub fn of(precision: Precision) -> Option<Self> {
        let start = Self { factor: Self::START, good: 0, skipped: 0 };
        precision.needs_loss_scale().then_some(start)
    }

    /// The factor of the loss.
    pub fn factor(&self) -> f64 {
        self.factor
    }

    /// Steps that were not taken so far.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Takes note of a step's gradients, and says whether the step is to be taken.
    ///
    /// What overflowed is not, and halves the factor. At the least factor it is left to whoever looks
    /// for numbers gone bad.
    pub fn admits(&mut self, gradients_are_finite: bool) -> bool {
        if gradients_are_finite {
            self.good += 1;
            if self.good == Self::GROWTH_EVERY {
                self.factor = (self.factor * 2.0).min(Self::MOST);
                self.good = 0;
            }
            return true;
        }
        if self.factor <= Self::LEAST {
            return true;
        }
        self.factor /= 2.0;
        self.good = 0;
        self.skipped += 1;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> LossScale {
        LossScale::of(Precision::F16).unwrap()
    }

    #[test]
    fn it_grows_after_a_thousand_good_steps_up_to_a_limit() {
        let mut scale = start();
        let factors: Vec<f64> = (0..6000)
            .map(|_| {
                assert!(scale.admits(true));
                scale.factor()
            })
            .collect();
        let at = [998, 999, 1998, 1999, 2999, 3998, 3999, 4999, 5999].map(|i| factors[i]);
        let by_hand = [2048, 4096, 4096, 8192, 16384, 16384, 32768, 32768, 32768];
        assert_eq!(at, by_hand.map(f64::from));
    }

    #[test]
    fn overflow_halves_it_and_starts_the_count_again() {
        let mut scale = start();
        (0..999).for_each(|_| assert!(scale.admits(true)));
        assert!(!scale.admits(false));
        assert_eq!(scale.factor(), 1024.0);
        (0..999).for_each(|_| assert!(scale.admits(true)));
        assert_eq!(scale.factor(), 1024.0);
        // What a checkpoint keeps of it goes on at the same place.
        let text = serde_json::to_string(&scale).unwrap();
        let mut scale: LossScale = serde_json::from_str(&text).unwrap();
        assert!(scale.admits(true));
        assert_eq!(scale.factor(), 2048.0);
    }

    #[test]
    fn at_its_least_it_is_not_to_blame() {
        let mut scale = start();
        let skipped = (0..99).take_while(|_| !scale.admits(false)).count();
        assert_eq!((skipped, scale.skipped(), scale.factor()), (25, 25, 1.0 / 16384.0));
    }
}
