//! What repetitions say: means, intervals, and how surely means differ from 0.

use std::fmt::{self, Formatter};

use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, StudentsT};

/// A mean over repetitions, such as seeds, with its 95 % interval by Student's t.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// Its interval's ends; none of one repetition, which says nothing of others.
    pub low: Option<f64>,
    /// See `low`.
    pub high: Option<f64>,
}

impl Estimate {
    /// Of one value for each repetition.
    ///
    /// # Panics
    /// If there is none.
    pub fn of(values: &[f64]) -> Self {
        assert!(!values.is_empty(), "no values");
        let (mean, error) = mean_and_error(values);
        let half = error.map(|error| error * student(values.len() - 1).inverse_cdf(0.975));
        Self { mean, low: half.map(|half| mean - half), high: half.map(|half| mean + half) }
    }

    /// Of a figure of each repetition; none where one of them lacks it, or there is no repetition.
    pub fn of_each<T>(repetitions: &[T], figure: impl Fn(&T) -> Option<f64>) -> Option<Self> {
        let values = repetitions.iter().map(figure).collect::<Option<Vec<f64>>>()?;
        (!values.is_empty()).then(|| Self::of(&values))
    }

    /// Of a figure's differences, `a - b`, pair by pair; none as in [`of_each`](Self::of_each).
    pub fn of_pairs<T>(a: &[T], b: &[T], figure: impl Fn(&T) -> Option<f64>) -> Option<Self> {
        let pairs: Vec<(&T, &T)> = a.iter().zip(b).collect();
        Self::of_each(&pairs, |&(a, b)| Some(figure(a)? - figure(b)?))
    }

    /// The two-sided p-value, by Student's t, of a mean that is 0; `n` is the number of repetitions. None of one
    /// repetition.
    pub fn p_value(self, n: usize) -> Option<f64> {
        let half = (self.high? - self.low?) / 2.0;
        if n < 2 {
            return None;
        }
        Some(match (self.mean, half) {
            (0.0, _) => 1.0,
            (_, 0.0) => 0.0,
            (mean, half) => {
                let t = student(n - 1);
                2.0 * t.sf((mean / half).abs() * t.inverse_cdf(0.975))
            }
        })
    }

    /// The same in another unit, such as thousandths for 1000.
    #[must_use]
    pub fn times(self, by: f64) -> Self {
        let Self { mean, low, high } = self;
        Self { mean: by * mean, low: low.map(|x| by * x), high: high.map(|x| by * x) }
    }
}

/// `mean [low, high]`, or the mean alone.
impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(3);
        write!(f, "{:.digits$}", self.mean)?;
        match self.low.zip(self.high) {
            Some((low, high)) => write!(f, " [{low:.digits$}, {high:.digits$}]"),
            None => Ok(()),
        }
    }
}

/// P-values by Holm: below 0.05 in 1 of 20 such families at most, where nothing differs.
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|a, b| p[*a].total_cmp(&p[*b]));
    let (mut adjusted, mut most) = (vec![0.0; p.len()], 0.0_f64);
    for (rank, i) in order.into_iter().enumerate() {
        most = most.max((p.len() - rank) as f64 * p[i]).min(1.0);
        adjusted[i] = most;
    }
    adjusted
}

/// The mean, and its standard error if there are two values at least.
fn mean_and_error(values: &[f64]) -> (f64, Option<f64>) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let square: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, (values.len() > 1).then(|| (square / (n - 1.0) / n).sqrt()))
}

fn student(degrees: usize) -> StudentsT {
    StudentsT::new(0.0, 1.0, degrees as f64).expect("a degree at least")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_those_of_student() {
        // Deviation 2.6458, its mean's 1.5275, times 4.303.
        let of = Estimate::of(&[1.0, 2.0, 6.0]);
        assert!((of.mean - 3.0).abs() < 1e-12 && (of.high.unwrap() - 9.5725).abs() < 1e-3);
        assert!((of.mean - of.low.unwrap() - (of.high.unwrap() - of.mean)).abs() < 1e-12);
        assert_eq!(of.to_string(), "3.000 [-3.572, 9.572]");
        assert_eq!(format!("{:.0}", of.times(1000.0)), "3000 [-3572, 9572]");
        let alone = Estimate::of(&[2.0]);
        assert_eq!(alone, Estimate { mean: 2.0, low: None, high: None });
        assert_eq!(format!("{alone:.1}"), "2.0");
        // The keys of reports.
        let json = serde_json::to_value(alone).unwrap();
        assert_eq!(json, serde_json::json!({ "mean": 2.0, "low": null, "high": null }));
    }

    #[test]
    fn differences_are_of_pairs() {
        // Repetitions differ a lot, the two always by 1.
        let [a, b] = [[11.0, 51.0, 91.0], [10.0, 50.0, 90.0]];
        let minus = Estimate::of_pairs(&a, &b, |x| Some(*x)).unwrap();
        assert_eq!(minus, Estimate { mean: 1.0, low: Some(1.0), high: Some(1.0) });
        assert!(Estimate::of_pairs(&a, &b, |x| (*x < 60.0).then_some(*x)).is_none());
        assert!(Estimate::of_each(&[] as &[f64], |x| Some(*x)).is_none());
    }

    #[test]
    fn p_values_are_those_of_the_tables() {
        // Two values of mean t and standard error 1; quantiles at 97.5 % and 99.5 %.
        let p_of = |values: &[f64]| Estimate::of(values).p_value(values.len());
        let p = |t: f64| p_of(&[t - 1.0, t + 1.0]).unwrap();
        assert!((p(12.706205) - 0.05).abs() < 1e-6 && (p(63.656741) - 0.01).abs() < 1e-6);
        // Mean 3, standard error 1.5275, two degrees: t is 1.964.
        assert!((p_of(&[1.0, 2.0, 6.0]).unwrap() - 0.188497).abs() < 1e-4);
        assert_eq!(p_of(&[1.0]), None);
        assert_eq!(p_of(&[0.0, 0.0]), Some(1.0));
        assert_eq!(p_of(&[1.0, 1.0]), Some(0.0));
        // As a file may have it that nobody has written by the rules.
        assert_eq!(Estimate { mean: 1.0, low: Some(0.0), high: Some(2.0) }.p_value(1), None);
        for (degrees, t) in [(1, 12.706205), (2, 4.302653), (4, 2.776445), (30, 2.042272)] {
            assert!((student(degrees).inverse_cdf(0.975) - t).abs() < 1e-5, "{degrees}");
        }
    }

    #[test]
    fn many_are_corrected_by_hand() {
        // 4 * 0.01, 3 * 0.02, then never less, never above 1.
        assert_eq!(holm(&[0.02, 0.01, 0.021, 0.9]), [0.06, 0.04, 0.06, 0.9]);
        assert_eq!(holm(&[0.6, 0.7]), [1.0, 1.0]);
        assert_eq!(holm(&[0.03]), [0.03]);
        assert!(holm(&[]).is_empty());
    }
}
