//! A number that was measured several times.

use serde::{Deserialize, Serialize};

/// The mean of several values of a measure, and how far they lie from it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The mean of the values.
    pub mean: f64,
    /// The root of the mean squared distance from the mean, as numpy's `std` has it.
    pub deviation: f64,
    /// The number of values.
    pub n: usize,
}

impl Spread {
    /// Of at least one value.
    pub(crate) fn of(values: &[f64]) -> Self {
        let n = values.len();
        let mean = values.iter().sum::<f64>() / n as f64;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / n as f64;
        Self { mean, deviation: variance.sqrt(), n }
    }

    /// The standard error of the mean where the values are independent, infinite of one value alone.
    ///
    /// ```text
    /// deviation / sqrt(n - 1)
    /// ```
    pub fn standard_error(&self) -> f64 {
        if self.n < 2 { f64::INFINITY } else { self.deviation / (self.n as f64 - 1.0).sqrt() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_by_hand() {
        let spread = Spread::of(&[1.0, 3.0, 1.0, 3.0, 2.0]);
        assert_eq!((spread.mean, spread.n), (2.0, 5));
        assert!((spread.deviation - 0.8f64.sqrt()).abs() < 1e-15);
        assert!((spread.standard_error() - (1.0f64 / 5.0).sqrt()).abs() < 1e-15);
        let alone = Spread::of(&[4.0]);
        assert_eq!((alone.mean, alone.deviation), (4.0, 0.0));
        assert!(alone.standard_error().is_infinite());
    }
}
