//! The kernel distance, squared maximum mean discrepancy under a cubic kernel (Bińkowski et al., arXiv:1801.01401).

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::draws::{Draws, Purpose};
use crate::error::{enough_rows, same_dim};
use crate::pairs::{of_one, of_two};
use crate::{Features, MetricsError, Spread};

/// Subsets for [`kernel_distance_by_subsets`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subsets {
    /// Rows of a subset, of either side.
    pub size: usize,
    /// The number of subsets.
    pub count: usize,
}

impl Default for Subsets {
    /// 100 subsets of 1000 rows, as published.
    fn default() -> Self {
        Self { size: 1000, count: 100 }
    }
}

/// The squared maximum mean discrepancy of two sets under a cubic kernel, unbiased: of two sets of one
/// distribution it is 0 on average, and of either sign.
///
/// ```text
/// k(x, y) = (x . y / d + 1)^3
/// K = mean of k(x, x') over x != x'  +  mean of k(y, y') over y != y'  -  2 mean of k(x, y)
/// ```
/// Published figures are often a thousand times this. The time grows as the square of the number of rows,
/// memory does not.
///
/// # Errors
/// If the two sets differ in their number of features, or have fewer than two rows each.
pub fn kernel_distance(reference: &Features, generated: &Features) -> Result<f64, MetricsError> {
    same_dim(("generated", generated.dim()), ("the reference", reference.dim()))?;
    for (what, set) in [("reference", reference), ("generated", generated)] {
        enough_rows(what, set.len(), 2, "a kernel distance")?;
    }
    Ok(unbiased(reference, generated))
}

/// The kernel distance of subsets, each drawn without replacement: mean, and deviation from one subset
/// to the next.
///
/// Subsets have rows in common, so that [`Spread::standard_error`] is too small where there are many of them.
/// The draws are a pure function of `seed`, the numbers of rows and the subset's index.
///
/// # Errors
/// If the two sets differ in their number of features or have fewer rows than a subset, a subset has fewer than
/// two, or there is none.
pub fn kernel_distance_by_subsets(
    reference: &Features,
    generated: &Features,
    subsets: Subsets,
    seed: u64,
) -> Result<Spread, MetricsError> {
    let Subsets { size, count } = subsets;
    same_dim(("generated", generated.dim()), ("the reference", reference.dim()))?;
    for (what, value, least, range) in [
        ("the size of a subset", size, 2, "2 rows or more"),
        ("the number of subsets", count, 1, "1 or more"),
    ] {
        if value < least {
            return Err(MetricsError::Setting { what, value: value as f64, range });
        }
    }
    for (what, set) in [("reference", reference), ("generated", generated)] {
        enough_rows(what, set.len(), size, "a subset")?;
    }
    let of_subset = |index| {
        let [x, y] = [(reference, Purpose::ReferenceSubset), (generated, Purpose::GeneratedSubset)]
            .map(|(set, purpose)| {
                set.select(Draws::new(seed, purpose, index).sample(set.len(), size))
            });
        unbiased(&x, &y)
    };
    let values: Vec<f64> = (0..count).into_par_iter().map(of_subset).collect();
    Ok(Spread::of(&values))
}

fn unbiased(x: &Features, y: &Features) -> f64 {
    let dim = x.dim();
    let between = of_two([x, y], &vec![0.0; dim], |x, y| {
        x.dots(&y).into_iter().map(|dot| kernel(dot, dim)).sum::<f64>()
    });
    let pairs = x.len() as f64 * y.len() as f64;
    mean_within(x) + mean_within(y) - 2.0 * between.iter().sum::<f64>() / pairs
}

/// The mean kernel of two different rows of a set.
fn mean_within(x: &Features) -> f64 {
    let dim = x.dim();
    let sums = of_one(x, &vec![0.0; dim], |x, y| {
        let is_other = |cell: usize| x.first + cell / y.rows != y.first + cell % y.rows;
        let dots = x.dots(&y).into_iter().enumerate();
        let kernels = dots.filter(|(cell, _)| is_other(*cell)).map(|(_, dot)| kernel(dot, dim));
        // Blocks beside the diagonal stand for their mirror images, too.
        kernels.sum::<f64>() * if x.first == y.first { 1.0 } else { 2.0 }
    });
    let n = x.len() as f64;
    sums.iter().sum::<f64>() / (n * (n - 1.0))
}

fn kernel(dot: f64, dim: usize) -> f64 {
    (dot / dim as f64 + 1.0).powi(3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows<const N: usize, const D: usize>(values: [[f32; D]; N]) -> Features {
        Features::from_rows(D, values.concat()).unwrap()
    }

    /// `n` rows of `dim` values that nothing relates.
    fn noise(n: usize, dim: usize, seed: u64) -> Features {
        let values = (0..n).flat_map(|i| Draws::new(seed, Purpose::Direction, i).direction(dim));
        Features::from_rows(dim, values.map(|x| x as f32).collect()).unwrap()
    }

    #[test]
    fn values_by_hand() {
        // Kernels within x: (0 + 1)^3; within y: (2 / 2 + 1)^3; between: (1 + 1)^3 = 8, 1, 1, 8 halved: 3.375 and 1.
        let (x, y) = (rows([[1.0, 0.0], [0.0, 1.0]]), rows([[1.0, 0.0], [2.0, 0.0]]));
        let between = (1.5f64.powi(3) + 2.0f64.powi(3) + 1.0 + 1.0) / 4.0;
        let expected = 1.0 + 8.0 - 2.0 * between;
        let found = kernel_distance(&x, &y).unwrap();
        assert!((found - expected).abs() < 1e-14, "{found}, not {expected}");
    }

    #[test]
    fn blocks_add_up_to_the_definition() {
        let (x, y) = (noise(1100, 3, 1), noise(530, 3, 2));
        let k = |x: &[f32], y: &[f32]| {
            let dot: f64 = x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
            (dot / 3.0 + 1.0).powi(3)
        };
        let sum = |x: &Features, y: &Features| -> f64 {
            x.rows().map(|x| y.rows().map(|y| k(x, y)).sum::<f64>()).sum()
        };
        let within = |x: &Features| {
            let n = x.len() as f64;
            (sum(x, x) - x.rows().map(|row| k(row, row)).sum::<f64>()) / (n * (n - 1.0))
        };
        let expected = within(&x) + within(&y) - 2.0 * sum(&x, &y) / (1100.0 * 530.0);
        let found = kernel_distance(&x, &y).unwrap();
        assert!((found - expected).abs() < 1e-12, "{found}, not {expected}");
    }

    #[test]
    fn sets_of_one_distribution_are_at_0_on_average() {
        let found: Vec<f64> = (0..200)
            .map(|i| kernel_distance(&noise(12, 4, 2 * i), &noise(9, 4, 2 * i + 1)).unwrap())
            .collect();
        let spread = Spread::of(&found);
        assert!(spread.mean.abs() < 3.0 * spread.standard_error(), "{spread:?}");
        assert!(found.iter().any(|x| *x < 0.0) && found.iter().any(|x| *x > 0.0));
    }

    #[test]
    fn subsets_scatter_about_the_whole() {
        let x = noise(300, 4, 1);
        let moved = noise(250, 4, 2).values().iter().map(|x| 1.5 * x + 0.5).collect();
        let y = Features::from_rows(4, moved).unwrap();
        let subsets = Subsets { size: 60, count: 40 };
        let whole = kernel_distance(&x, &y).unwrap();
        let found = kernel_distance_by_subsets(&x, &y, subsets, 7).unwrap();
        assert_eq!(found.n, 40);
        assert!((found.mean - whole).abs() < found.deviation, "{found:?}, of all {whole}");
        assert!(found.deviation < 0.5 * whole, "{found:?}, of all {whole}");
        assert_eq!(found, kernel_distance_by_subsets(&x, &y, subsets, 7).unwrap());
        assert_ne!(found, kernel_distance_by_subsets(&x, &y, subsets, 8).unwrap());
        // A subset of all rows is the whole, in another order.
        let all = noise(60, 4, 3);
        let found =
            kernel_distance_by_subsets(&all, &y, Subsets { size: 60, count: 1 }, 7).unwrap();
        assert_eq!(found.deviation, 0.0);
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let (x, y) = (noise(20, 3, 1), noise(10, 3, 2));
        assert!(kernel_distance(&x, &noise(10, 4, 2)).is_err());
        let error = kernel_distance(&x, &noise(1, 3, 2)).unwrap_err();
        assert!(error.to_string().starts_with("generated: 1 rows"), "{error}");
        let error = |size, count| {
            let subsets = Subsets { size, count };
            kernel_distance_by_subsets(&x, &y, subsets, 0).unwrap_err().to_string()
        };
        assert!(error(11, 1).starts_with("generated: 10 rows, but a subset takes 11"));
        assert!(error(1, 1).contains("the size of a subset is 1"));
        assert!(error(5, 0).contains("the number of subsets is 0"));
        assert_eq!(Subsets::default(), Subsets { size: 1000, count: 100 });
    }
}
