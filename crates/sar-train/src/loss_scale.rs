//! Dynamic loss scaling (Micikevicius et al., 2018, section 3.2): gradients are computed of a multiple
//! of the loss, so that small ones do not vanish in `f16`.

use serde::{Deserialize, Serialize};

/// The factor of the loss, which follows what the gradients bear. Powers of two: scaling and its
/// undoing are exact.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    factor: f64,
    /// Steps taken since the factor changed.
    good: u64,
    /// Steps that were not taken.
    skipped: u64,
}

impl LossScale {
    // The released trainers' constants, and the least that the factor falls to.
    const START: f64 = 2048.0;
    const MOST: f64 = 32768.0;
    const GROWTH_EVERY: u64 = 1000;
    const LEAST: f64 = 1.0;

    /// Where a training starts.
    #[expect(clippy::new_without_default, reason = "a start is not a neutral value")]
    pub fn new() -> Self {
        Self { factor: Self::START, good: 0, skipped: 0 }
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
    /// What overflowed is not, and halves the factor. At a factor of 1 nothing of it was the factor's
    /// doing: such a step is left to whoever looks for numbers gone bad.
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

    #[test]
    fn it_grows_after_a_thousand_good_steps_up_to_a_limit() {
        let mut scale = LossScale::new();
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
        let mut scale = LossScale::new();
        (0..999).for_each(|_| assert!(scale.admits(true)));
        assert!(!scale.admits(false));
        assert_eq!(scale.factor(), 1024.0);
        (0..999).for_each(|_| assert!(scale.admits(true)));
        assert_eq!(scale.factor(), 1024.0);
        assert!(scale.admits(true));
        assert_eq!(scale.factor(), 2048.0);
    }

    #[test]
    fn at_one_it_is_not_to_blame() {
        let mut scale = LossScale::new();
        let skipped = (0..20).take_while(|_| !scale.admits(false)).count();
        assert_eq!((skipped, scale.skipped(), scale.factor()), (11, 11, 1.0));
    }
}
