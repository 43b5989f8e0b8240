//! One comparison of a device with the host.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Largest error of a product in f32 with any order of summation, relative to its largest value.
const FULL: f64 = 1e-5;
/// Largest error of a product whose inputs were rounded, or cut, to the 10 bits of TF32. The 7 bits
/// of bf16 lie above it.
const REDUCED: f64 = 1.5e-3;

/// What products of f32 tensors are computed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// f32 throughout.
    Full,
    /// Rounded inputs, as TF32 has.
    Reduced,
}

impl Precision {
    /// The precision that product probes show.
    pub fn of(probes: &[Probe]) -> Self {
        let reduced = |probe: &Probe| match probe.outcome {
            Outcome::Product { error } => FULL < error && error <= REDUCED,
            _ => false,
        };
        if probes.iter().any(reduced) { Self::Reduced } else { Self::Full }
    }
}

/// One comparison of a device with the host.
#[derive(Clone, Debug, PartialEq)]
pub struct Probe {
    /// What was computed.
    pub name: String,
    /// How it compares.
    pub outcome: Outcome,
}

/// How a probe compares with the host.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Outcome {
    /// A product of f32 tensors, whose inputs a device may round.
    Product {
        /// Largest difference as a share of the host's largest magnitude; infinite if the shapes
        /// differ or a value is not finite.
        error: f64,
    },
    /// Any other values.
    Values {
        /// As of [`Product`](Self::Product).
        error: f64,
        /// The largest error that rounding explains.
        allowed: f64,
    },
    /// Whole numbers: codes or places.
    Choices {
        /// How many are not what the host finds right.
        wrong: usize,
        /// How many there are.
        of: usize,
        /// How many may be wrong.
        allowed: usize,
    },
    /// Nothing to compare.
    Missing {
        /// What happened instead.
        reason: String,
    },
}

impl Probe {
    /// Whether the device agrees with the host.
    pub fn holds(&self) -> bool {
        match &self.outcome {
            Outcome::Product { error } => *error <= REDUCED,
            Outcome::Values { error, allowed } => error <= allowed,
            Outcome::Choices { wrong, allowed, .. } => wrong <= allowed,
            Outcome::Missing { .. } => false,
        }
    }

    /// The error of a product, if it is one.
    pub(crate) fn product_error(&self) -> Option<f64> {
        match self.outcome {
            Outcome::Product { error } => Some(error),
            _ => None,
        }
    }

    /// Runs work on the device. What burn panics with is the outcome then: a kernel that does not
    /// compile, a device that is lost.
    pub(crate) fn run(name: impl Into<String>, work: impl FnOnce() -> Outcome) -> Self {
        let outcome = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            let line = text.and_then(|text| text.lines().find(|line| !line.trim().is_empty()));
            Outcome::Missing {
                reason: format!("it panicked: {}", line.unwrap_or("no reason given")),
            }
        });
        Self { name: name.into(), outcome }
    }
}

impl fmt::Display for Probe {
    /// `product [680,8912]x[8912,33] differs from the host by 3.1e-1 of its largest value (at most 1.5e-3)`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.name;
        let mut values = |error: f64, allowed: f64| match error.is_finite() {
            true => write!(
                f,
                "{name} differs from the host by {error:.1e} of its largest value (at most {allowed:.1e})"
            ),
            false => write!(f, "{name} is not finite or has another shape than on the host"),
        };
        match &self.outcome {
            Outcome::Product { error } => values(*error, REDUCED),
            Outcome::Values { error, allowed } => values(*error, *allowed),
            Outcome::Choices { wrong, of, allowed } => {
                write!(f, "{name}: {wrong} of {of} are wrong (at most {allowed})")
            }
            Outcome::Missing { reason } => write!(f, "{name} gave no result: {reason}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn product(error: f64) -> Probe {
        Probe { name: "product".into(), outcome: Outcome::Product { error } }
    }

    #[test]
    fn products_are_full_reduced_or_wrong() {
        for (error, holds, precision) in [
            (0.0, true, Precision::Full),
            (9e-6, true, Precision::Full),
            (4e-4, true, Precision::Reduced),
            (2e-3, false, Precision::Full),
            (f64::INFINITY, false, Precision::Full),
            (f64::NAN, false, Precision::Full),
        ] {
            assert_eq!(product(error).holds(), holds, "{error}");
            assert_eq!(Precision::of(&[product(1e-7), product(error)]), precision, "{error}");
        }
    }

    #[test]
    fn every_outcome_says_what_differs() {
        let check = |outcome, expected: &str| {
            let probe = Probe { name: "x".into(), outcome };
            assert_eq!(probe.to_string(), expected);
        };
        check(
            Outcome::Product { error: 0.314 },
            "x differs from the host by 3.1e-1 of its largest value (at most 1.5e-3)",
        );
        check(
            Outcome::Values { error: f64::INFINITY, allowed: 1e-4 },
            "x is not finite or has another shape than on the host",
        );
        check(
            Outcome::Choices { wrong: 3, of: 680, allowed: 0 },
            "x: 3 of 680 are wrong (at most 0)",
        );
        let panicked = Probe::run("x", || panic!("\nno device\nat all"));
        assert_eq!(panicked.to_string(), "x gave no result: it panicked: no device");
        assert!(!panicked.holds());
    }
}
