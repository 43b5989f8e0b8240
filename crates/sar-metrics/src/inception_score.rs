//! The inception score (Salimans et al., arXiv:1606.03498).

use rayon::prelude::*;

use crate::error::{enough_rows, same_dim};
use crate::{Features, MetricsError, Spread};

/// Rows whose distributions are computed together.
const BLOCK: usize = 256;
/// How far a row of probabilities may be from a sum of 1.
const SUM_TOLERANCE: f64 = 1e-3;

/// The inception score of logits, a row of classes for each image: mean and deviation over splits.
///
/// ```text
/// p      = softmax(logits)
/// IS     = exp(mean over images of KL(p || mean of p)), for each split
/// ```
/// Splits are `split` rows one after the other, 5000 as published; the last one has what is left, and counts as
/// the others. The score is in [1, classes] and grows with the size of a split.
///
/// # Errors
/// If there are no rows, or `split` is 0.
pub fn inception_score(logits: &Features, split: usize) -> Result<Spread, MetricsError> {
    score(logits, split, softmax)
}

/// The inception score of probabilities.
///
/// # Errors
/// If there are no rows or `split` is 0, or a row has a negative value or is more than 1e-3 from a sum of 1.
pub fn inception_score_of_probabilities(
    probabilities: &Features,
    split: usize,
) -> Result<Spread, MetricsError> {
    for (row, values) in probabilities.rows().enumerate() {
        let sum: f64 = values.iter().copied().map(f64::from).sum();
        let problem = if values.iter().any(|value| *value < 0.0) {
            "a negative value"
        } else if (sum - 1.0).abs() > SUM_TOLERANCE {
            "a sum that is not 1"
        } else {
            continue;
        };
        return Err(MetricsError::Probabilities { row, problem });
    }
    score(probabilities, split, |row| row.iter().copied().map(f64::from).collect())
}

fn score(
    rows: &Features,
    split: usize,
    distribution: impl Fn(&[f32]) -> Vec<f64> + Sync,
) -> Result<Spread, MetricsError> {
    if split == 0 {
        let (what, range) = ("the number of rows of a split", "1 or more, 5000 as published");
        return Err(MetricsError::Setting { what, value: 0.0, range });
    }
    let mut running = RunningInceptionScore::new(rows.dim(), split);
    running.add_all(rows, distribution);
    running.score()
}

/// The inception score on the way: batches are added as they come, and memory grows by one number a split, or by
/// one distribution where splits take rows [in turn](Self::interleaved).
///
/// The same rows in the same order give the same bits, however they are split into batches.
#[derive(Clone, Debug)]
pub struct RunningInceptionScore {
    /// Rows of a whole split.
    split: usize,
    /// All rows so far.
    rows: usize,
    /// Splits that are not whole yet, which take rows in turn.
    open: Vec<Split>,
    /// Of whole splits.
    scores: Vec<f64>,
}

/// The sum of some distributions, and that of their entropies.
#[derive(Clone, Debug)]
struct Split {
    rows: usize,
    sum: Vec<f64>,
    entropies: f64,
}

impl RunningInceptionScore {
    /// Of no rows yet, for logits of so many classes and splits of so many rows one after the other, 5000 as
    /// published.
    ///
    /// # Panics
    /// If either is 0.
    pub fn new(classes: usize, split: usize) -> Self {
        assert!(classes > 0 && split > 0, "splits of {split} rows of {classes} classes");
        Self { split, rows: 0, open: vec![Split::new(classes)], scores: Vec::new() }
    }

    /// As [`new`](Self::new), for so many splits, the `k`-th row in split `k` modulo their number: of rows that come
    /// class by class, of which a split one after the other holds some classes alone and has a score that is far too
    /// low.
    ///
    /// # Panics
    /// If either is 0.
    pub fn interleaved(classes: usize, splits: usize) -> Self {
        assert!(classes > 0 && splits > 0, "{splits} splits of rows of {classes} classes");
        let open = vec![Split::new(classes); splits];
        Self { split: usize::MAX, rows: 0, open, scores: Vec::new() }
    }

    /// Adds a batch of logits.
    ///
    /// # Errors
    /// If its rows have another number of classes.
    pub fn add(&mut self, logits: &Features) -> Result<(), MetricsError> {
        same_dim(("the batch", logits.dim()), ("those before", self.classes()))?;
        self.add_all(logits, softmax);
        Ok(())
    }

    /// The score of the rows so far, see [`inception_score`].
    ///
    /// # Errors
    /// If there are none.
    pub fn score(&self) -> Result<Spread, MetricsError> {
        enough_rows("logits", self.rows, 1, "an inception score")?;
        let last = self.open.iter().filter(|split| split.rows > 0).map(Split::score);
        let scores: Vec<f64> = self.scores.iter().copied().chain(last).collect();
        Ok(Spread::of(&scores))
    }

    fn classes(&self) -> usize {
        self.open[0].sum.len()
    }

    fn add_all(&mut self, rows: &Features, distribution: impl Fn(&[f32]) -> Vec<f64> + Sync) {
        let classes = self.classes();
        for block in rows.values().chunks(BLOCK * classes) {
            let distributions = block.par_chunks_exact(classes).map(|row| {
                let p = distribution(row);
                (entropy(&p), p)
            });
            // Added up in order, so that neither threads nor batches change the sum.
            for (entropy, p) in distributions.collect::<Vec<_>>() {
                let turn = self.rows % self.open.len();
                let split = &mut self.open[turn];
                split.entropies += entropy;
                split.sum.iter_mut().zip(p).for_each(|(sum, p)| *sum += p);
                split.rows += 1;
                self.rows += 1;
                if split.rows == self.split {
                    self.scores.push(split.score());
                    *split = Split::new(classes);
                }
            }
        }
    }
}

impl Split {
    fn new(classes: usize) -> Self {
        Self { rows: 0, sum: vec![0.0; classes], entropies: 0.0 }
    }

    /// `exp(entropy of the mean - mean entropy)`.
    fn score(&self) -> f64 {
        let n = self.rows as f64;
        let mean: Vec<f64> = self.sum.iter().map(|sum| sum / n).collect();
        (entropy(&mean) - self.entropies / n).exp()
    }
}

/// In nats; `0 ln 0 = 0`.
fn entropy(p: &[f64]) -> f64 {
    -p.iter().filter(|p| **p > 0.0).map(|p| p * p.ln()).sum::<f64>()
}

fn softmax(logits: &[f32]) -> Vec<f64> {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let mut p: Vec<f64> = logits.iter().map(|logit| (f64::from(*logit) - largest).exp()).collect();
    let sum: f64 = p.iter().sum();
    p.iter_mut().for_each(|p| *p /= sum);
    p
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(classes: usize, values: &[f32]) -> Features {
        Features::from_rows(classes, values.to_vec()).unwrap()
    }

    #[track_caller]
    fn check(found: Spread, expected: &[f64]) {
        let expected = Spread::of(expected);
        assert_eq!(found.n, expected.n);
        for (x, y) in [(found.mean, expected.mean), (found.deviation, expected.deviation)] {
            assert!((x - y).abs() < 1e-12, "{found:?}, not {expected:?}");
        }
    }

    #[test]
    fn values_by_hand() {
        // Sure of four classes, each as often; of one class alone; of nothing.
        let mut sure = vec![-1e4; 4 * 4];
        (0..4).for_each(|i| sure[i * 4 + i] = 1e4);
        check(inception_score(&rows(4, &sure), 4).unwrap(), &[4.0]);
        check(inception_score(&rows(4, &sure), 1).unwrap(), &[1.0; 4]);
        check(inception_score(&rows(4, &[0.5; 12]), 10).unwrap(), &[1.0]);
        // KL of (3/4, 1/4) and (1/4, 3/4) from their mean (1/2, 1/2).
        let p = [0.75, 0.25, 0.25, 0.75];
        let kl = 0.75 * 1.5f64.ln() + 0.25 * 0.5f64.ln();
        check(inception_score_of_probabilities(&rows(2, &p), 2).unwrap(), &[kl.exp()]);
        let logits = rows(2, &[3f32.ln(), 0.0, 7.0, 7.0 + 3f32.ln()]);
        let found = inception_score(&logits, 2).unwrap();
        assert!((found.mean - kl.exp()).abs() < 1e-6);
        // The last split has what is left.
        let three = rows(2, &[&p[..], &[1.0, 0.0]].concat());
        check(inception_score_of_probabilities(&three, 2).unwrap(), &[kl.exp(), 1.0]);
    }

    #[test]
    fn blocks_add_up() {
        let n = 2 * BLOCK + 10;
        let logits: Vec<f32> = (0..n * 3).map(|i| 3.0 * (i as f32 * 0.7).sin()).collect();
        let p: Vec<Vec<f64>> = logits.chunks_exact(3).map(softmax).collect();
        let mean = [0, 1, 2].map(|i| p.iter().map(|p| p[i]).sum::<f64>() / n as f64);
        let kl: f64 =
            p.iter().flatten().zip(mean.iter().cycle()).map(|(p, m)| p * (p / m).ln()).sum();
        check(inception_score(&rows(3, &logits), n).unwrap(), &[(kl / n as f64).exp()]);
    }

    #[test]
    fn batches_give_the_bits_of_the_whole() {
        let (n, split) = (2 * BLOCK + 10, 200);
        let logits: Vec<f32> = (0..n * 3).map(|i| 3.0 * (i as f32 * 0.7).sin()).collect();
        let logits = rows(3, &logits);
        let whole = inception_score(&logits, split).unwrap();
        assert_eq!(whole.n, 3);
        for batch in [1, 16, split, BLOCK + 1] {
            let mut running = RunningInceptionScore::new(3, split);
            for first in (0..n).step_by(batch) {
                running.add(&logits.select(first..n.min(first + batch))).unwrap();
            }
            assert_eq!(running.score().unwrap(), whole);
        }
        let mut running = RunningInceptionScore::new(3, split);
        assert!(running.score().is_err() && running.add(&Features::new(4)).is_err());
    }

    #[test]
    fn splits_that_take_rows_in_turn_have_all_classes() {
        // Sure of four classes, which come one after the other, five rows of each.
        let sure: Vec<f32> =
            (0..20).flat_map(|i| [0, 1, 2, 3].map(|c| 1e4 * f32::from(i / 5 == c))).collect();
        let sure = rows(4, &sure);
        check(inception_score(&sure, 10).unwrap(), &[2.0, 2.0]);
        let of = |splits: usize, batch: usize| {
            let mut running = RunningInceptionScore::interleaved(4, splits);
            for first in (0..20).step_by(batch) {
                running.add(&sure.select(first..20.min(first + batch))).unwrap();
            }
            running.score().unwrap()
        };
        check(of(1, 20), &[4.0]);
        check(of(5, 20), &[4.0; 5]);
        assert_eq!(of(5, 3), of(5, 20));
        // Rows 0, 2, 4, .. and 1, 3, 5, ..: of the four classes 3, 2, 3 and 2, and 2, 3, 2 and 3.
        let entropy = -2.0 * (0.3f64 * 0.3f64.ln() + 0.2 * 0.2f64.ln());
        check(of(2, 7), &[entropy.exp(); 2]);
        // Splits that no row has come to say nothing.
        check(of(21, 20), &[1.0; 20]);
    }

    #[test]
    fn what_are_no_distributions_is_an_error() {
        assert!(inception_score(&Features::new(4), 10).is_err());
        assert!(inception_score(&rows(2, &[0.0, 1.0]), 0).is_err());
        let error =
            inception_score_of_probabilities(&rows(2, &[0.5, 0.5, -0.5, 1.5]), 2).unwrap_err();
        let problem = "a negative value";
        assert_eq!(error, MetricsError::Probabilities { row: 1, problem });
        let error = inception_score_of_probabilities(&rows(2, &[0.5, 0.6]), 2).unwrap_err();
        let problem = "a sum that is not 1";
        assert_eq!(error, MetricsError::Probabilities { row: 0, problem });
    }
}
