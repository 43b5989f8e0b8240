//! The Fréchet distance of two normal distributions (Dowson, Landau 1982; of Inception's features: Heusel et al.,
//! arXiv:1706.08500).
//!
//! Letters: d features, r rank of a covariance.

use faer::diag::DiagMut;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt_pivoting::factor::{cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::evd::{ComputeEigenvectors, self_adjoint_evd, self_adjoint_evd_scratch};
use faer::{Mat, MatRef, Par};
use serde::{Deserialize, Serialize};

use crate::error::same_dim;
use crate::product::{add_symmetric, product};
use crate::{MetricsError, Moments};

/// The squared Fréchet distance, and what it is made of.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Frechet {
    /// The squared distance, in squared units of the features: 0 between equals, up to rounding of either sign.
    pub distance: f64,
    /// The part of the means, `|m_1 - m_2|^2`.
    pub means: f64,
    /// The part of the covariances, `tr C_1 + tr C_2 - 2 tr sqrt(C_1 C_2)`.
    pub covariances: f64,
    /// Whether either side has no more rows than features, so that its covariance is singular; none where that is
    /// not known. The distance is then far too large, and compares with those of as many images alone.
    pub rank_deficient: Option<bool>,
}

/// The squared Fréchet distance of the normal distributions that have these moments.
///
/// ```text
/// D = |m_1 - m_2|^2 + tr C_1 + tr C_2 - 2 tr sqrt(C_1 C_2)
/// ```
/// The last trace is the sum of the roots of the eigenvalues of `sqrt(C_1) C_2 sqrt(C_1)`. Those that are not 0
/// are also those of `L^T C_2 L`, which is symmetric, too, where `L L^T = C_1` is a Cholesky decomposition
/// with pivots: `L` has as many columns as `C_1` has rank, and no root of a matrix is needed. Eigenvalues that are
/// negative, or below the rounding of the largest one, count as 0.
///
/// Having finitely many images makes it too large, by more the fewer they are (Chong, Forsyth,
/// arXiv:1911.07023): compare it at equal numbers only.
///
/// # Errors
/// If the two differ in their number of features, or values are so large that squares overflow.
pub fn frechet(a: &Moments, b: &Moments) -> Result<Frechet, MetricsError> {
    same_dim(("second moments", b.dim()), ("the first", a.dim()))?;
    let means = a.mean().iter().zip(b.mean()).map(|(x, y)| (x - y).powi(2)).sum();
    let covariances = trace(a) + trace(b) - 2.0 * trace_of_root(a, b)?;
    let rank_deficient = match [a, b].map(Moments::is_rank_deficient) {
        [Some(true), _] | [_, Some(true)] => Some(true),
        [Some(false), Some(false)] => Some(false),
        _ => None,
    };
    Ok(Frechet { distance: means + covariances, means, covariances, rank_deficient })
}

fn trace(moments: &Moments) -> f64 {
    moments.covariance().iter().step_by(moments.dim() + 1).sum()
}

/// `tr sqrt(C_a C_b)`.
fn trace_of_root(a: &Moments, b: &Moments) -> Result<f64, MetricsError> {
    // The decomposed one has the fewer rows: all that follows has its rank.
    let rows = |moments: &Moments| moments.rows().unwrap_or(usize::MAX);
    let (a, b) = if rows(b) < rows(a) { (b, a) } else { (a, b) };
    let dim = a.dim();
    let Some(Root { order, factor }) = root(a)? else {
        return Ok(0.0);
    };
    let other = |i: usize, j: usize| b.covariance()[order[i] * dim + order[j]];
    let other = Mat::from_fn(dim, dim, other);
    let right = product(other.as_ref(), factor.as_ref());
    let rank = factor.ncols();
    let mut inner = vec![0.0; rank * rank];
    let right = MatRef::from_row_major_slice(&right, dim, rank);
    add_symmetric(&mut inner, factor.transpose(), right);
    let eigenvalues = eigenvalues(&inner, rank)?;
    let largest = eigenvalues.iter().copied().fold(0.0, f64::max);
    let least = largest * f64::EPSILON * rank as f64;
    Ok(eigenvalues.into_iter().filter(|value| *value > least).map(f64::sqrt).sum())
}

/// `L` of `L L^T = C`, rows and columns of C in another order.
struct Root {
    /// The features in the order of the rows of `factor`.
    order: Vec<usize>,
    /// `[d, r]`
    factor: Mat<f64>,
}

/// The decomposition of a covariance, nothing if it is 0.
fn root(moments: &Moments) -> Result<Option<Root>, MetricsError> {
    let dim = moments.dim();
    let mut lower = Mat::from_fn(dim, dim, |i, j| moments.covariance()[i * dim + j]);
    if (0..dim).all(|i| lower[(i, i)] == 0.0) {
        return Ok(None);
    }
    let [mut order, mut places] = [(); 2].map(|()| vec![0usize; dim]);
    let scratch = cholesky_in_place_scratch::<usize, f64>(dim, Par::Seq, Default::default());
    let decomposed = cholesky_in_place(
        lower.as_mut(),
        &mut order,
        &mut places,
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        Default::default(),
    );
    let what = "a covariance";
    let (info, _) = decomposed.map_err(|_| MetricsError::Decomposition { what })?;
    let entry = |i: usize, j: usize| if i < j { 0.0 } else { lower[(i, j)] };
    let factor = Mat::from_fn(dim, info.rank, entry);
    Ok(Some(Root { order, factor }))
}

/// Those of a symmetric matrix, of which the upper triangle is given.
fn eigenvalues(upper: &[f64], dim: usize) -> Result<Vec<f64>, MetricsError> {
    let error = MetricsError::Decomposition { what: "the product of two covariances" };
    if upper.iter().any(|value| !value.is_finite()) {
        return Err(error);
    }
    let mut values = vec![0.0; dim];
    let vectors = ComputeEigenvectors::No;
    let scratch = self_adjoint_evd_scratch::<f64>(dim, vectors, Par::Seq, Default::default());
    self_adjoint_evd(
        // Rows read as columns: the triangle is the lower one.
        MatRef::from_column_major_slice(upper, dim, dim),
        DiagMut::from_slice_mut(&mut values),
        None,
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        Default::default(),
    )
    .map_err(|_| error)?;
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Features;

    fn moments(mean: &[f64], covariance: &[f64]) -> Moments {
        Moments::new(mean.to_vec(), covariance.to_vec(), None).unwrap()
    }

    fn diagonal(values: &[f64]) -> Moments {
        let dim = values.len();
        let at = |i: usize| if i.is_multiple_of(dim + 1) { values[i / (dim + 1)] } else { 0.0 };
        moments(&vec![0.0; dim], &(0..dim * dim).map(at).collect::<Vec<_>>())
    }

    #[track_caller]
    fn check(a: &Moments, b: &Moments, expected: f64) {
        for (a, b) in [(a, b), (b, a)] {
            let found = frechet(a, b).unwrap().distance;
            assert!(
                (found - expected).abs() < 1e-12 * expected.max(1.0),
                "{found}, not {expected}"
            );
        }
    }

    /// `n` rows of `dim` values with correlations.
    fn wave(n: usize, dim: usize, phase: f32) -> Features {
        let values = (0..n * dim).map(|i| (i as f32 * 0.37 + (i * i) as f32 * 2e-3 + phase).sin());
        Features::from_rows(dim, values.collect()).unwrap()
    }

    #[test]
    fn values_by_hand() {
        // Along axes, (sqrt(v_1) - sqrt(v_2))^2 each.
        check(&diagonal(&[4.0, 9.0, 1.0]), &diagonal(&[1.0, 16.0, 1.0]), 2.0);
        check(&diagonal(&[4.0, 0.0, 9.0]), &diagonal(&[0.0, 25.0, 1.0]), 4.0 + 25.0 + 4.0);
        check(&diagonal(&[0.0, 0.0]), &diagonal(&[3.0, 2.0]), 5.0);
        check(&diagonal(&[0.0]), &diagonal(&[0.0]), 0.0);
        // Of two features, tr sqrt(A B) = sqrt(tr A B + 2 sqrt(det A B)).
        let (a, b) = ([2.0, 1.0, 1.0, 3.0], [5.0, -2.0, -2.0, 1.0]);
        let root = (10.0 - 2.0 - 2.0 + 3.0 + 2.0 * (5.0f64 * 1.0).sqrt()).sqrt();
        let (first, second) = (moments(&[1.0, 2.0], &a), moments(&[4.0, -2.0], &b));
        check(&first, &second, 25.0 + 11.0 - 2.0 * root);
        let found = frechet(&first, &second).unwrap();
        assert_eq!(found.means, 25.0);
        assert!((found.covariances - (11.0 - 2.0 * root)).abs() < 1e-12);
        assert_eq!(found.rank_deficient, None);
    }

    #[test]
    fn a_set_is_at_distance_0_from_itself() {
        for (n, dim) in [(300, 20), (20, 20), (9, 20), (2, 20), (400, 150)] {
            let moments = Moments::of(&wave(n, dim, 0.0)).unwrap();
            let found = frechet(&moments, &moments).unwrap();
            assert!(found.distance.abs() < 1e-7, "{n} rows of {dim}: {}", found.distance);
            assert_eq!(found.rank_deficient, Some(n <= dim));
            // Of one side the number of rows is not known.
            let unknown = self::moments(moments.mean(), moments.covariance());
            let found = frechet(&moments, &unknown).unwrap();
            assert_eq!(found.rank_deficient, (n <= dim).then_some(true));
        }
    }

    #[test]
    fn scale_and_shift_do_what_they_do() {
        // 2 x + 3 has the covariance 4 C: tr sqrt(C 4 C) = 2 tr C.
        let features = wave(200, 12, 0.5);
        let other = features.values().iter().map(|x| 2.0 * x + 3.0).collect();
        let [a, b] = [features, Features::from_rows(12, other).unwrap()]
            .map(|features| Moments::of(&features).unwrap());
        let step = a.mean().iter().map(|mean| (mean + 3.0).powi(2)).sum::<f64>();
        let found = frechet(&a, &b).unwrap();
        assert!((found.distance - step - trace(&a)).abs() < 1e-4, "{found:?}");
    }

    #[test]
    fn of_low_rank_either_side_may_be_decomposed() {
        let [a, b] = [wave(7, 60, 0.0), wave(40, 60, 1.0)].map(|x| Moments::of(&x).unwrap());
        // Of sides with unknown numbers of rows it is the first one, and most eigenvalues are then 0.
        let [c, d] = [&a, &b].map(|x| moments(x.mean(), x.covariance()));
        let expected = frechet(&a, &b).unwrap();
        assert_eq!(expected.rank_deficient, Some(true));
        assert_eq!(frechet(&c, &d).unwrap().rank_deficient, None);
        for (a, b) in [(&b, &a), (&c, &b), (&c, &d), (&d, &c)] {
            let found = frechet(a, b).unwrap().distance;
            let error = (found - expected.distance).abs() / expected.distance;
            assert!(error < 1e-10, "{found}, not {expected:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let error = frechet(&diagonal(&[1.0]), &diagonal(&[1.0, 1.0])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "second moments: 2 features a row, but 1 in the first; compare features of one network alone"
        );
        let error = frechet(&diagonal(&[1e300]), &diagonal(&[1e300])).unwrap_err();
        assert!(error.to_string().contains("scale the features down"), "{error}");
    }
}
