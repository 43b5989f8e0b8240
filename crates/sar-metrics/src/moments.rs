//! Mean and covariance of features, streamed.

use faer::MatMut;

use crate::cholesky::cholesky;
use crate::error::{enough_rows, same_dim};
use crate::features::mean;
use crate::product::{add_gram, mirror};
use crate::{Features, MetricsError};

/// Rows that are added to the covariance together: one product of matrices.
const BLOCK: usize = 512;
/// How far a covariance may be from symmetric, of its largest variance.
const ASYMMETRY: f64 = 1e-6;
/// How far below 0 an eigenvalue of a covariance may be, of the sum of all of them. Rounding to single precision takes
/// those of singular ones there by less than 1e-7.
const INDEFINITENESS: f64 = 1e-6;

/// Mean and unbiased covariance of a set of features, in f64.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    mean: Vec<f64>,
    covariance: Vec<f64>,
    rows: Option<usize>,
}

impl Moments {
    /// Those of a set in memory.
    ///
    /// # Errors
    /// If there are fewer than two rows.
    pub fn of(features: &Features) -> Result<Self, MetricsError> {
        let mut running = RunningMoments::new(features.dim());
        running.add(features)?;
        running.moments()
    }

    /// Those that somebody else has computed, e.g. `mu` and `sigma` of a reference file.
    ///
    /// `covariance` has a row for each feature, one after the other. `rows` says of how many images it is, where
    /// that is known. Of two mirrored values that differ by rounding the mean is taken.
    ///
    /// # Errors
    /// If the covariance is not as large as the mean asks for, not symmetric to 1e-6 of its largest variance, or
    /// has a negative variance or an eigenvalue below -1e-6 of its trace, if a value is not finite, or if there were
    /// fewer than two rows.
    ///
    /// # Panics
    /// If the mean is empty.
    pub fn new(
        mean: Vec<f64>,
        mut covariance: Vec<f64>,
        rows: Option<usize>,
    ) -> Result<Self, MetricsError> {
        let dim = mean.len();
        assert!(dim > 0, "a mean without a value");
        enough_rows("moments", rows.unwrap_or(2), 2, "a covariance")?;
        if covariance.len() != dim * dim {
            return Err(MetricsError::CovarianceSize { found: covariance.len(), dim });
        }
        finite("mean", &mean, dim)?;
        finite("covariance", &covariance, dim)?;
        let largest = (0..dim).map(|i| covariance[i * dim + i]).fold(0.0, f64::max);
        for row in 0..dim {
            if covariance[row * dim + row] < 0.0 {
                let problem = "a negative variance";
                return Err(MetricsError::Covariance { row, column: row, problem });
            }
            for column in 0..row {
                let (below, above) = (row * dim + column, column * dim + row);
                let [one, other] = [covariance[below], covariance[above]];
                if (one - other).abs() > ASYMMETRY * largest {
                    let problem = "a value that is not its mirror image's";
                    return Err(MetricsError::Covariance { row, column, problem });
                }
                [covariance[below], covariance[above]] = [0.5 * (one + other); 2];
            }
        }
        if !is_semi_definite(&covariance, dim) {
            return Err(MetricsError::Indefinite);
        }
        Ok(Self { mean, covariance, rows })
    }

    /// The number of features.
    pub fn dim(&self) -> usize {
        self.mean.len()
    }

    /// The mean of every feature.
    pub fn mean(&self) -> &[f64] {
        &self.mean
    }

    /// The covariance with n - 1 in its denominator, row after row; symmetric.
    pub fn covariance(&self) -> &[f64] {
        &self.covariance
    }

    /// Of how many rows, where that is known.
    pub fn rows(&self) -> Option<usize> {
        self.rows
    }

    /// Whether there are too few rows for a covariance of full rank: no more than there are features; none where
    /// it is not known of how many rows it is.
    pub fn is_rank_deficient(&self) -> Option<bool> {
        Some(self.rows? <= self.dim())
    }
}

/// Mean and covariance on the way: batches are added as they come, and memory does not grow with them.
///
/// ```text
/// n   = a + b
/// m   = m_a + (m_b - m_a) b / n
/// S   = S_a + S_b + (m_b - m_a)(m_b - m_a)^T a b / n
/// cov = S / (n - 1)
/// ```
/// (Chan, Golub, LeVeque 1979). Each block of 512 rows is centered by its own mean, so that nothing cancels
/// where means are large. Blocks do not begin with batches: the same rows in the same order give the same
/// bits, however they are split.
#[derive(Clone, Debug)]
pub struct RunningMoments {
    dim: usize,
    rows: usize,
    mean: Vec<f64>,
    /// Sum of the outer products of centered rows; its upper triangle.
    scatter: Vec<f64>,
    /// Rows that do not make a block yet.
    pending: Vec<f32>,
}

impl RunningMoments {
    /// Of no rows yet, for features of `dim` values.
    ///
    /// # Panics
    /// If `dim` is 0.
    pub fn new(dim: usize) -> Self {
        assert!(dim > 0, "features without a value");
        let (mean, scatter) = (vec![0.0; dim], vec![0.0; dim * dim]);
        Self { dim, rows: 0, mean, scatter, pending: Vec::new() }
    }

    /// Adds a batch.
    ///
    /// # Errors
    /// If its rows have other than `dim` features.
    pub fn add(&mut self, features: &Features) -> Result<(), MetricsError> {
        same_dim(("the batch", features.dim()), ("those before", self.dim))?;
        let block = BLOCK * self.dim;
        let mut rest = features.values();
        if !self.pending.is_empty() {
            let (first, others) = rest.split_at(rest.len().min(block - self.pending.len()));
            self.pending.extend_from_slice(first);
            rest = others;
            if self.pending.len() < block {
                return Ok(());
            }
            self.absorb_pending();
        }
        let blocks = rest.chunks_exact(block);
        self.pending.extend_from_slice(blocks.remainder());
        blocks.for_each(|rows| self.absorb(rows));
        Ok(())
    }

    /// Adds the rows of another part of the set.
    ///
    /// # Errors
    /// If these have other than `dim` features.
    pub fn merge(&mut self, mut other: Self) -> Result<(), MetricsError> {
        same_dim(("the other part", other.dim), ("those before", self.dim))?;
        self.absorb_pending();
        other.absorb_pending();
        let between = self.advance(other.rows, &other.mean);
        add_gram(&mut self.scatter, &between, self.dim);
        self.scatter.iter_mut().zip(other.scatter).for_each(|(sum, part)| *sum += part);
        Ok(())
    }

    /// The number of rows so far.
    pub fn len(&self) -> usize {
        self.rows + self.pending.len() / self.dim
    }

    /// Whether there are no rows yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Mean and covariance of the rows so far.
    ///
    /// # Errors
    /// If there are fewer than two.
    pub fn moments(&self) -> Result<Moments, MetricsError> {
        enough_rows("features", self.len(), 2, "a covariance")?;
        let mut whole = self.clone();
        whole.absorb_pending();
        let Self { dim, rows, mean, scatter: mut covariance, .. } = whole;
        let scale = 1.0 / (rows as f64 - 1.0);
        covariance.iter_mut().for_each(|sum| *sum *= scale);
        mirror(&mut covariance, dim);
        Ok(Moments { mean, covariance, rows: Some(rows) })
    }

    fn absorb_pending(&mut self) {
        let mut rows = std::mem::take(&mut self.pending);
        self.absorb(&rows);
        rows.clear();
        self.pending = rows;
    }

    fn absorb(&mut self, rows: &[f32]) {
        let center = mean(rows, self.dim);
        let mut centered = self.advance(rows.len() / self.dim, &center);
        for row in rows.chunks_exact(self.dim) {
            centered.extend(row.iter().zip(&center).map(|(value, mean)| f64::from(*value) - mean));
        }
        add_gram(&mut self.scatter, &centered, self.dim);
    }

    /// Moves the mean by `rows` more rows of the mean `other`; the row by which that spreads all of them.
    fn advance(&mut self, rows: usize, other: &[f64]) -> Vec<f64> {
        let [a, b] = [self.rows, rows].map(|n| n as f64);
        self.rows += rows;
        let n = self.rows.max(1) as f64;
        let moved = self.mean.iter_mut().zip(other).map(|(mean, other)| {
            let step = other - *mean;
            *mean += step * (b / n);
            step * (a * b / n).sqrt()
        });
        moved.collect()
    }
}

/// Whether no eigenvalue of a symmetric matrix is negative, but for rounding.
fn is_semi_definite(matrix: &[f64], dim: usize) -> bool {
    let trace: f64 = matrix.iter().step_by(dim + 1).sum();
    if trace == 0.0 {
        return matrix.iter().all(|value| *value == 0.0);
    }
    let mut lifted = matrix.to_vec();
    lifted.iter_mut().step_by(dim + 1).for_each(|variance| *variance += INDEFINITENESS * trace);
    cholesky(MatMut::from_column_major_slice_mut(&mut lifted, dim, dim))
}

fn finite(what: &'static str, values: &[f64], dim: usize) -> Result<(), MetricsError> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(at) => Err(MetricsError::NotFinite {
            what,
            row: at / dim,
            column: at % dim,
            value: values[at],
        }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `n` rows of `dim` values about `level`.
    fn wave(n: usize, dim: usize, level: f32) -> Features {
        let values = (0..n * dim).map(|i| (i as f32 * 0.7 + (i * i) as f32 * 1e-3).sin() + level);
        Features::from_rows(dim, values.collect()).unwrap()
    }

    #[track_caller]
    fn near(found: &Moments, expected: &Moments, tolerance: f64) {
        assert_eq!(found.rows, expected.rows);
        let pairs = found.mean.iter().zip(&expected.mean);
        for (x, y) in pairs.chain(found.covariance.iter().zip(&expected.covariance)) {
            assert!((x - y).abs() < tolerance, "{x}, not {y}");
        }
    }

    /// In two passes, as the definition has it.
    fn by_definition(features: &Features) -> Moments {
        let (n, dim) = (features.len() as f64, features.dim());
        let mean = features.mean();
        let mut covariance = vec![0.0; dim * dim];
        for row in features.rows() {
            for i in 0..dim {
                for j in 0..dim {
                    let [x, y] = [i, j].map(|i| f64::from(row[i]) - mean[i]);
                    covariance[i * dim + j] += x * y / (n - 1.0);
                }
            }
        }
        Moments { mean, covariance, rows: Some(features.len()) }
    }

    #[test]
    fn values_by_hand() {
        let features = Features::from_rows(2, vec![1.0, 0.0, 3.0, 2.0, 5.0, 1.0]).unwrap();
        let moments = Moments::of(&features).unwrap();
        let expected = Moments::new(vec![3.0, 1.0], vec![4.0, 1.0, 1.0, 1.0], Some(3)).unwrap();
        near(&moments, &expected, 1e-14);
        assert_eq!(moments.is_rank_deficient(), Some(false));
        let fewer = Moments::of(&features.select([0, 1])).unwrap();
        near(&fewer, &Moments::new(vec![2.0, 1.0], vec![2.0; 4], Some(2)).unwrap(), 1e-14);
        assert_eq!(fewer.is_rank_deficient(), Some(true));
    }

    #[test]
    fn large_means_cancel_nothing() {
        let near_zero = Moments::of(&wave(3000, 5, 0.0)).unwrap();
        // The largest power of two that leaves the waves 8 binary digits.
        let far = wave(3000, 5, 65536.0);
        let found = Moments::of(&far).unwrap();
        near(&found, &by_definition(&far), 1e-9);
        near(&Moments { mean: near_zero.mean.clone(), ..found }, &near_zero, 1e-3);
    }

    #[test]
    fn batches_give_the_bits_of_the_whole() {
        let features = wave(2 * BLOCK + 100, 3, 2.0);
        let whole = Moments::of(&features).unwrap();
        near(&whole, &by_definition(&features), 1e-13);
        for sizes in [[1, 700], [BLOCK, 2 * BLOCK], [BLOCK - 1, BLOCK + 1], [0, 100]] {
            let mut running = RunningMoments::new(3);
            let [a, b] = sizes;
            for range in [0..a, a..b, b..features.len()] {
                running.add(&features.select(range)).unwrap();
            }
            assert_eq!(running.len(), features.len());
            assert_eq!(running.moments().unwrap(), whole);
        }
    }

    #[test]
    fn parts_merge_to_the_whole() {
        let features = wave(BLOCK + 400, 4, -1.0);
        let whole = Moments::of(&features).unwrap();
        for cut in [0, 1, 300, BLOCK, features.len()] {
            let [mut first, mut second] = [(); 2].map(|()| RunningMoments::new(4));
            first.add(&features.select(0..cut)).unwrap();
            second.add(&features.select(cut..features.len())).unwrap();
            first.merge(second).unwrap();
            near(&first.moments().unwrap(), &whole, 1e-13);
        }
    }

    proptest! {
        #[test]
        fn any_parts_merge_to_the_definition(
            values in prop::collection::vec(-100f32..100.0, 12..90),
            cut in 0usize..30,
        ) {
            let features = Features::from_rows(3, values[..values.len() / 3 * 3].to_vec()).unwrap();
            let cut = cut.min(features.len());
            let [mut first, mut second] = [(); 2].map(|()| RunningMoments::new(3));
            first.add(&features.select(0..cut)).unwrap();
            second.add(&features.select(cut..features.len())).unwrap();
            first.merge(second).unwrap();
            near(&first.moments().unwrap(), &by_definition(&features), 1e-9);
        }
    }

    #[test]
    fn singular_covariances_are_some_in_single_precision_too() {
        for (n, dim) in [(2, 1), (2, 60), (7, 60), (60, 60), (300, 60)] {
            let moments = Moments::of(&wave(n, dim, 0.5)).unwrap();
            let rounded = moments.covariance.iter().map(|value| f64::from(*value as f32));
            for covariance in [moments.covariance.clone(), rounded.collect()] {
                let again = Moments::new(moments.mean.clone(), covariance, None).unwrap();
                assert_eq!(again.is_rank_deficient(), None);
            }
        }
        assert!(Moments::new(vec![1.0; 3], vec![0.0; 9], None).is_ok());
    }

    #[test]
    fn what_are_no_moments_is_an_error_that_says_where() {
        let error = Moments::of(&wave(1, 2, 0.0)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "features: 1 rows, but a covariance takes 2 at least; give more images"
        );
        let new = |mean: &[f64], covariance: &[f64]| {
            Moments::new(mean.to_vec(), covariance.to_vec(), None).unwrap_err().to_string()
        };
        let error = new(&[0.0, 0.0], &[1.0, 0.5, 0.4, 1.0]);
        assert!(error.contains("row 1, column 0"), "{error}");
        let error = new(&[0.0, 0.0], &[1.0, 0.5, 0.5, -1.0]);
        assert!(error.contains("negative variance in row 1"), "{error}");
        let error = new(&[0.0, 0.0], &[1.0, 0.5]);
        assert!(error.contains("2 values for 2 features"), "{error}");
        // The eigenvalues are 3 and -1, 1 and -1, and 1.9, 1.9 and -0.8.
        for (dim, covariance) in [
            (2, &[1.0, 2.0, 2.0, 1.0][..]),
            (2, &[0.0, 1.0, 1.0, 0.0][..]),
            (3, &[1.0, 0.9, 0.9, 0.9, 1.0, -0.9, 0.9, -0.9, 1.0][..]),
        ] {
            let error = new(&vec![0.0; dim], covariance);
            assert!(error.contains("negative eigenvalue") && !error.contains('\n'), "{error}");
        }
        let error = new(&[0.0, f64::NAN], &[1.0; 4]);
        assert!(error.contains("mean: row 0 has NaN at 1"), "{error}");
        let mut running = RunningMoments::new(2);
        let error = running.add(&wave(2, 3, 0.0)).unwrap_err();
        let expected = MetricsError::Dimension {
            what: "the batch",
            found: 3,
            other: "those before",
            expected: 2,
        };
        assert_eq!(error, expected);
        assert!(running.merge(RunningMoments::new(3)).is_err() && running.is_empty());
    }
}
