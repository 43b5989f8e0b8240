//! Precision and recall (Kynkäänniemi et al., arXiv:1904.06991), density and coverage (Naeem et al.,
//! arXiv:2002.09797).

use std::sync::atomic::{AtomicU32, Ordering};

use serde::{Deserialize, Serialize};

use crate::error::same_dim;
use crate::pairs::of_two;
use crate::{MetricsError, Neighbors};

/// Distances count as equal within this share of them: two ways of computing one round differently.
const TIE: f64 = 1e-9;

/// How two sets lie among each other, by the balls around each row that reach to its k-th neighbor.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prdc {
    /// The number of neighbors.
    pub k: usize,
    /// The share of generated rows that are in a ball of a reference row, in [0, 1].
    pub precision: f64,
    /// The share of reference rows that are in a ball of a generated row, in [0, 1].
    pub recall: f64,
    /// In how many balls of the reference a generated row is, divided by k: 1 on average where the two sets
    /// are of one distribution, and more where the generated rows crowd.
    pub density: f64,
    /// The share of reference rows with a generated row in their ball, in [0, 1].
    pub coverage: f64,
}

/// Precision, recall, density and coverage, for each number of neighbors in `ks`.
///
/// ```text
/// B(x, k)   = {z: |z - x|^2 <= |x_(k) - x|^2}, x_(k) the k-th neighbor of x in its own set, x left out
/// precision = mean over y of [y in B(x, k) of any x]
/// recall    = mean over x of [x in B(y, k) of any y]
/// density   = mean over y of |{x: y in B(x, k)}| / k
/// coverage  = mean over x of [y in B(x, k) of any y]
/// ```
/// with x of the reference and y generated. The border belongs to the ball. Published are k = 3 for precision and
/// recall and k = 5 for density and coverage, each at equal numbers of rows of both sets: all four depend
/// on these.
///
/// # Errors
/// If the two sets differ in their number of features, or a `k` is 0 or more than either knows.
pub fn prdc<const N: usize>(
    reference: &Neighbors,
    generated: &Neighbors,
    ks: [usize; N],
) -> Result<[Prdc; N], MetricsError> {
    let [x, y] = [reference.features(), generated.features()];
    same_dim(("generated", y.dim()), ("the reference", x.dim()))?;
    let available = reference.k().min(generated.k());
    if let Some(k) = ks.into_iter().find(|k| !(1..=available).contains(k)) {
        return Err(MetricsError::NeighborCount { k, available });
    }
    let balls = ks.map(|k| Balls::new(reference, generated, k));
    of_two([x, y], &x.mean(), |x, y| {
        let squares = x.squared_distances(&y);
        balls.iter().for_each(|balls| balls.add(x.first, y.first, y.rows, &squares));
    });
    Ok(balls.map(Balls::shares))
}

/// Who is in whose ball.
struct Balls {
    k: usize,
    /// Squared radii around the reference, and around the generated.
    radii: [Vec<f64>; 2],
    /// For each generated row, the balls of the reference that it is in.
    around: Vec<AtomicU32>,
    /// For each reference row, the generated rows in its ball.
    inside: Vec<AtomicU32>,
    /// For each reference row, the balls of generated rows that it is in.
    recalled: Vec<AtomicU32>,
}

impl Balls {
    fn new(reference: &Neighbors, generated: &Neighbors, k: usize) -> Self {
        let radii = [reference, generated].map(|set| {
            let radius = |row| set.squared_radius(row, k) * (1.0 + TIE);
            (0..set.features().len()).map(radius).collect::<Vec<_>>()
        });
        let none = |n: usize| (0..n).map(|_| AtomicU32::new(0)).collect::<Vec<_>>();
        let [n, m] = [radii[0].len(), radii[1].len()];
        Self { k, radii, around: none(m), inside: none(n), recalled: none(n) }
    }

    /// Counts a block of squared distances, a row for each reference row. Counts are the same in
    /// whatever order blocks come.
    fn add(&self, first: usize, first_generated: usize, columns: usize, squares: &[f64]) {
        let mut around = vec![0; columns];
        let radii = &self.radii[1][first_generated..first_generated + columns];
        for (i, squares) in squares.chunks_exact(columns).enumerate() {
            let radius = self.radii[0][first + i];
            let [mut inside, mut recalled] = [0; 2];
            for ((square, other), around) in squares.iter().zip(radii).zip(&mut around) {
                let is_inside = u32::from(*square <= radius);
                *around += is_inside;
                inside += is_inside;
                recalled += u32::from(square <= other);
            }
            add(&self.inside[first + i], inside);
            add(&self.recalled[first + i], recalled);
        }
        let counts = self.around[first_generated..].iter();
        counts.zip(around).for_each(|(count, by)| add(count, by));
    }

    fn shares(self) -> Prdc {
        let counts = |counts: Vec<AtomicU32>| {
            counts.into_iter().map(AtomicU32::into_inner).collect::<Vec<_>>()
        };
        let share = |counts: &[u32]| {
            counts.iter().filter(|count| **count > 0).count() as f64 / counts.len() as f64
        };
        let around = counts(self.around);
        let total: u64 = around.iter().map(|count| u64::from(*count)).sum();
        Prdc {
            k: self.k,
            precision: share(&around),
            recall: share(&counts(self.recalled)),
            density: total as f64 / (self.k * around.len()) as f64,
            coverage: share(&counts(self.inside)),
        }
    }
}

fn add(count: &AtomicU32, by: u32) {
    if by > 0 {
        count.fetch_add(by, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Features;

    fn line(values: &[f32]) -> Features {
        Features::from_rows(1, values.to_vec()).unwrap()
    }

    fn wave(n: usize, dim: usize, phase: f32) -> Features {
        let values = (0..n * dim).map(|i| (i as f32 * 0.37 + (i * i) as f32 * 1e-4 + phase).sin());
        Features::from_rows(dim, values.collect()).unwrap()
    }

    fn of<const N: usize>(x: &Features, y: &Features, ks: [usize; N]) -> [Prdc; N] {
        let k = ks.into_iter().max().unwrap();
        let [x, y] = [x, y].map(|features| Neighbors::new(features, k).unwrap());
        prdc(&x, &y, ks).unwrap()
    }

    #[test]
    fn values_by_hand() {
        // Balls with k = 1, of the reference: [-1, 1], [0, 2], [1, 3], [2, 6]; of the generated: [2, 4],
        // [1, 3], [3, 17].
        let (x, y) = (line(&[0.0, 1.0, 2.0, 4.0]), line(&[3.0, 2.0, 10.0]));
        // 3 is in two of the first, on one border; 2 in three, on two borders; 10 in none. 0 is in none of
        // the second.
        let [found] = of(&x, &y, [1]);
        let expected =
            Prdc { k: 1, precision: 2.0 / 3.0, recall: 0.75, density: 5.0 / 3.0, coverage: 0.75 };
        assert_eq!(found, expected);
    }

    #[test]
    fn a_set_covers_itself() {
        // All ties: the k-th neighbor of each row is on the border of its ball.
        let x = wave(700, 6, 0.0);
        for (k, found) in [3, 5].into_iter().zip(of(&x, &x, [3, 5])) {
            let density = (k as f64 + 1.0) / k as f64;
            let expected = Prdc { k, precision: 1.0, recall: 1.0, density, coverage: 1.0 };
            assert!((found.density - density).abs() < 1e-12, "{found:?}");
            assert_eq!(Prdc { density, ..found }, expected);
        }
    }

    #[test]
    fn what_is_on_a_border_is_inside_whatever_rounding_does() {
        for i in 1..200 {
            // Distances within the generated and between the two sets are computed about unlike centers.
            let step = i as f32 * 0.37;
            let [found] = of(&line(&[-step, -1234.5]), &line(&[0.0, step, 999.7]), [1]);
            assert_eq!(found.recall, 0.5, "{step}");
        }
    }

    #[test]
    fn copies_are_in_balls_of_radius_0() {
        let x = line(&[1.0, 1.0, 1.0, 7.5, 7.5, 7.5]);
        let [found] = of(&x, &line(&[1.0, 1.0, 1.0]), [2]);
        let expected = Prdc { k: 2, precision: 1.0, recall: 0.5, density: 1.5, coverage: 0.5 };
        assert_eq!(found, expected);
    }

    #[test]
    fn sets_far_apart_share_nothing() {
        let x = wave(40, 3, 0.0);
        let far = x.values().iter().map(|x| x + 100.0).collect();
        let [found] = of(&x, &Features::from_rows(3, far).unwrap(), [5]);
        let expected = Prdc { k: 5, precision: 0.0, recall: 0.0, density: 0.0, coverage: 0.0 };
        assert_eq!(found, expected);
    }

    #[test]
    fn the_two_sets_change_places() {
        let (x, y) = (wave(600, 4, 0.0), wave(530, 4, 1.0));
        let ([forth], [back]) = (of(&x, &y, [3]), of(&y, &x, [3]));
        assert_eq!((forth.precision, forth.recall), (back.recall, back.precision));
        assert!(forth.precision < 1.0 && forth.recall < 1.0, "{forth:?}");
        // A few neighbors of many are as good as few.
        let [a, b] = [3, 9].map(|k| Neighbors::new(&x, k).unwrap());
        let y = Neighbors::new(&y, 3).unwrap();
        assert_eq!(prdc(&a, &y, [3]), prdc(&b, &y, [3]));
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let (x, y) = (wave(9, 2, 0.0), wave(9, 3, 0.0));
        let [x, y] = [&x, &y].map(|features| Neighbors::new(features, 3).unwrap());
        assert!(matches!(prdc(&x, &y, [3]), Err(MetricsError::Dimension { found: 3, .. })));
        for k in [0, 4] {
            let error = prdc(&x, &x, [1, k]).unwrap_err();
            assert_eq!(error, MetricsError::NeighborCount { k, available: 3 });
        }
    }
}
