//! The inception score (Salimans et al., arXiv:1606.03498).

use rayon::prelude::*;

use crate::error::enough_rows;
use crate::{Features, MetricsError, Spread};

/// Rows whose distributions are added up by one thread.
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
    enough_rows("logits", rows.len(), 1, "an inception score")?;
    if split == 0 {
        let (what, range) = ("the number of rows of a split", "1 or more, 5000 as published");
        return Err(MetricsError::Setting { what, value: 0.0, range });
    }
    let classes = rows.dim();
    let splits = rows.values().chunks(split.saturating_mul(classes));
    let scores: Vec<f64> =
        splits.map(|rows| score_of_split(rows, classes, &distribution)).collect();
    Ok(Spread::of(&scores))
}

/// `exp(entropy of the mean - mean entropy)`.
fn score_of_split(
    rows: &[f32],
    classes: usize,
    distribution: impl Fn(&[f32]) -> Vec<f64> + Sync,
) -> f64 {
    let blocks: Vec<(Vec<f64>, f64)> = rows
        .par_chunks(BLOCK * classes)
        .map(|rows| {
            let mut total = (vec![0.0; classes], 0.0);
            for row in rows.chunks_exact(classes) {
                let p = distribution(row);
                total.1 += entropy(&p);
                total.0.iter_mut().zip(p).for_each(|(sum, p)| *sum += p);
            }
            total
        })
        .collect();
    let n = (rows.len() / classes) as f64;
    let mut mean = vec![0.0; classes];
    let mut entropies = 0.0;
    for (sums, entropy) in blocks {
        entropies += entropy;
        mean.iter_mut().zip(sums).for_each(|(mean, sum)| *mean += sum / n);
    }
    (entropy(&mean) - entropies / n).exp()
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
