//! A probe: a linear classifier of features, in closed form.
//!
//! Letters: n rows, d features, c classes.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::solve::{solve_in_place, solve_in_place_scratch};
use faer::{MatMut, Par};
use serde::{Deserialize, Serialize};

use crate::cholesky::cholesky;
use crate::error::{enough_rows, same_dim};
use crate::product::{add_gram, dots, mirror};
use crate::{Features, MetricsError};

/// Rows that are worked on together.
const BLOCK: usize = 512;

/// What holds a probe back.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ridge {
    /// The weight of the squared coefficients, above 0. The constant's coefficient is one of them.
    pub lambda: f64,
    /// What is added to a standard deviation before features are divided by it, above 0: features that are
    /// constant become 0.
    pub epsilon: f64,
}

impl Default for Ridge {
    /// `lambda` 300, for thousands of rows of a thousand features; `epsilon` 1e-6.
    fn default() -> Self {
        Self { lambda: 300.0, epsilon: 1e-6 }
    }
}

/// A linear classifier, fitted by ridge regression.
#[derive(Clone, Debug, PartialEq)]
pub struct Probe {
    mean: Vec<f64>,
    scale: Vec<f64>,
    /// Coefficients, a row of d + 1 for each class; the last one is the constant's.
    weights: Vec<f64>,
}

impl Probe {
    /// Fits the classes of a set.
    ///
    /// ```text
    /// z = ((x - mean) / (deviation + epsilon), 1)
    /// W = (Z^T Z + lambda I)^-1 Z^T Y
    /// ```
    /// with population deviations, a row of Z for each row of features, and rows of Y that are 1 at the class and
    /// 0 elsewhere.
    ///
    /// # Errors
    /// If there are no rows, there is not one label for each, a label is not below `n_classes`, or a setting
    /// of `ridge` is not above 0.
    pub fn fit(
        features: &Features,
        labels: &[usize],
        n_classes: usize,
        ridge: Ridge,
    ) -> Result<Self, MetricsError> {
        enough_rows("features", features.len(), 1, "a probe")?;
        check_labels(features, labels, n_classes)?;
        let Ridge { lambda, epsilon } = ridge;
        for (what, value) in [("lambda", lambda), ("epsilon", epsilon)] {
            if !(value > 0.0 && value.is_finite()) {
                return Err(MetricsError::Setting { what, value, range: "a number above 0" });
            }
        }
        let mean = features.mean();
        let scale = deviations(features, &mean).into_iter().map(|x| 1.0 / (x + epsilon)).collect();
        let mut probe = Self { mean, scale, weights: Vec::new() };
        let size = features.dim() + 1;
        let mut gram = vec![0.0; size * size];
        let mut targets = vec![0.0; n_classes * size];
        for (rows, labels) in probe.blocks(features).zip(labels.chunks(BLOCK)) {
            add_gram(&mut gram, &rows, size);
            for (row, label) in rows.chunks_exact(size).zip(labels) {
                let sums = &mut targets[label * size..(label + 1) * size];
                sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
        }
        gram.iter_mut().step_by(size + 1).for_each(|square| *square += lambda);
        solve(gram, &mut targets, size)?;
        probe.weights = targets;
        Ok(probe)
    }

    /// The class of each row: the one of the largest output, of several as large the first.
    ///
    /// # Errors
    /// If rows have another number of features than those that the probe was fitted to.
    pub fn predict(&self, features: &Features) -> Result<Vec<usize>, MetricsError> {
        same_dim(("features", features.dim()), ("those of the probe", self.mean.len()))?;
        let size = self.mean.len() + 1;
        let n_classes = self.weights.len() / size;
        let classes = self.blocks(features).flat_map(|rows| {
            let outputs = dots(&rows, &self.weights, size);
            outputs.chunks_exact(n_classes).map(first_largest).collect::<Vec<_>>()
        });
        Ok(classes.collect())
    }

    /// The share of rows whose class is the label, in [0, 1].
    ///
    /// Of generated images, the labels are the classes that were asked for; the same number for held-out images is
    /// what can be reached.
    ///
    /// # Errors
    /// If there are no rows or not one label for each, a label is no class, or rows have another number of features
    /// than those that the probe was fitted to.
    pub fn accuracy(&self, features: &Features, labels: &[usize]) -> Result<f64, MetricsError> {
        enough_rows("features", features.len(), 1, "an accuracy")?;
        check_labels(features, labels, self.weights.len() / (self.mean.len() + 1))?;
        let found = self.predict(features)?;
        let right = found.iter().zip(labels).filter(|(found, label)| found == label).count();
        Ok(right as f64 / labels.len() as f64)
    }

    /// Standardized rows, each with a 1 at its end, by blocks.
    fn blocks<'a>(&'a self, features: &'a Features) -> impl Iterator<Item = Vec<f64>> + 'a {
        let dim = features.dim();
        features.values().chunks(BLOCK * dim).map(move |rows| {
            let mut block = Vec::with_capacity(rows.len() + rows.len() / dim);
            for row in rows.chunks_exact(dim) {
                let values = row.iter().zip(&self.mean).zip(&self.scale);
                block.extend(values.map(|((x, mean), scale)| (f64::from(*x) - mean) * scale));
                block.push(1.0);
            }
            block
        })
    }
}

fn check_labels(features: &Features, labels: &[usize], classes: usize) -> Result<(), MetricsError> {
    let rows = features.len();
    if labels.len() != rows {
        return Err(MetricsError::LabelCount { labels: labels.len(), rows });
    }
    match labels.iter().position(|label| *label >= classes) {
        None => Ok(()),
        Some(row) => Err(MetricsError::Label { row, label: labels[row], classes }),
    }
}

/// The population deviation of every column.
fn deviations(features: &Features, mean: &[f64]) -> Vec<f64> {
    let mut squares = vec![0.0; features.dim()];
    for row in features.rows() {
        for ((square, value), mean) in squares.iter_mut().zip(row).zip(mean) {
            *square += (f64::from(*value) - mean).powi(2);
        }
    }
    squares.into_iter().map(|square: f64| (square / features.len() as f64).sqrt()).collect()
}

/// Replaces the rows of `sides` by the solutions for each as right-hand side; the upper triangle of the matrix
/// is given.
fn solve(mut matrix: Vec<f64>, sides: &mut [f64], size: usize) -> Result<(), MetricsError> {
    mirror(&mut matrix, size);
    let n_sides = sides.len() / size;
    let mut matrix = MatMut::from_column_major_slice_mut(&mut matrix, size, size);
    if !cholesky(matrix.as_mut()) {
        return Err(MetricsError::Decomposition { what: "the probe's matrix" });
    }
    let scratch = solve_in_place_scratch::<f64>(size, n_sides, Par::Seq);
    let sides = MatMut::from_column_major_slice_mut(sides, size, n_sides);
    solve_in_place(matrix.as_ref(), sides, Par::Seq, MemStack::new(&mut MemBuffer::new(scratch)));
    Ok(())
}

fn first_largest(values: &[f64]) -> usize {
    (1..values.len()).fold(0, |best, i| if values[i] > values[best] { i } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(values: &[f32]) -> Features {
        Features::from_rows(1, values.to_vec()).unwrap()
    }

    #[test]
    fn weights_by_hand() {
        // Mean 2 and deviation 2: z is -1 or 1, its squares sum to 4, and so do the squared constants.
        let features = column(&[0.0, 0.0, 4.0, 4.0]);
        let ridge = Ridge { lambda: 2.0, epsilon: 1e-300 };
        let probe = Probe::fit(&features, &[0, 0, 0, 1], 2, ridge).unwrap();
        // Z^T Y is (-1, 3) of the first class and (1, 1) of the second, divided by 4 + 2.
        let expected = [-1.0 / 6.0, 0.5, 1.0 / 6.0, 1.0 / 6.0];
        for (found, expected) in probe.weights.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-14, "{:?}", probe.weights);
        }
        // Outputs are equal at z = 1, which is x = 4.
        assert_eq!(probe.predict(&column(&[-3.0, 3.9, 4.1, 100.0])).unwrap(), [0, 0, 1, 1]);
        assert_eq!(probe.accuracy(&column(&[3.0, 5.0]), &[1, 1]).unwrap(), 0.5);
        assert_eq!(first_largest(&[1.0, 3.0, 2.0, 3.0]), 1);
    }

    #[test]
    fn separate_classes_are_told_apart_over_blocks() {
        let n = 2 * BLOCK + 30;
        let labels: Vec<usize> = (0..n).map(|i| i * i % 3).collect();
        let row = |(i, label): (usize, &usize)| {
            let noise = (i as f32 * 0.7).sin();
            // The last feature is constant: nothing may be divided by its deviation.
            [*label as f32 * 5.0 + noise, noise, (*label == 1) as u8 as f32 * 9.0 - noise, 7.0]
        };
        let values = labels.iter().enumerate().flat_map(row).collect();
        let features = Features::from_rows(4, values).unwrap();
        let probe = Probe::fit(&features, &labels, 3, Ridge { lambda: 1.0, ..Ridge::default() });
        let probe = probe.unwrap();
        assert_eq!(probe.predict(&features).unwrap(), labels);
        assert_eq!(probe.accuracy(&features, &labels).unwrap(), 1.0);
        let wrong: Vec<usize> = labels.iter().map(|label| (label + 1) % 3).collect();
        assert_eq!(probe.accuracy(&features, &wrong).unwrap(), 0.0);
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let x = column(&[0.0, 1.0]);
        let fit = |labels: &[usize], ridge| Probe::fit(&x, labels, 2, ridge);
        let ridge = Ridge::default();
        let error = fit(&[0, 2], ridge).unwrap_err();
        assert_eq!(
            error.to_string(),
            "row 1 has the label 2: classes are 0 to 1; check the labels"
        );
        assert_eq!(fit(&[0], ridge), Err(MetricsError::LabelCount { labels: 1, rows: 2 }));
        assert!(fit(&[0, 1], Ridge { lambda: 0.0, ..ridge }).is_err());
        assert!(fit(&[0, 1], Ridge { epsilon: f64::NAN, ..ridge }).is_err());
        assert!(Probe::fit(&Features::new(1), &[], 2, ridge).is_err());
        let probe = fit(&[0, 1], ridge).unwrap();
        assert!(probe.predict(&Features::new(2)).is_err());
        assert!(probe.accuracy(&Features::new(1), &[]).is_err());
        assert!(probe.accuracy(&x, &[0, 2]).is_err());
    }
}
