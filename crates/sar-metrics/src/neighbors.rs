//! How far the nearest neighbors within a set are.

use std::sync::Mutex;

use crate::pairs::of_one;
use crate::{Features, MetricsError};

/// A set with the distances of each row to its nearest neighbors in it, itself left out.
#[derive(Clone, Debug)]
pub struct Neighbors<'a> {
    features: &'a Features,
    k: usize,
    /// The squared distances to the k nearest, ascending, row after row.
    squares: Vec<f64>,
}

impl<'a> Neighbors<'a> {
    /// The `k` nearest neighbors of each row of a set: as many as any later question is about.
    ///
    /// Each distance is computed once. The time grows as the square of the number of rows, memory as the number.
    ///
    /// # Errors
    /// If `k` is 0, or the set has no more than `k` rows.
    pub fn new(features: &'a Features, k: usize) -> Result<Self, MetricsError> {
        let available = features.len().saturating_sub(1);
        if k == 0 || k > available {
            return Err(MetricsError::NeighborCount { k, available });
        }
        // The smallest of many numbers are the same in whatever order these come.
        let all = Mutex::new(Smallest::new(features.len(), k));
        of_one(features, &features.mean(), |x, y| {
            let is_own = x.first == y.first;
            let [mut of_x, mut of_y] = [&x, &y].map(|block| Smallest::new(block.rows, k));
            let squares = x.squared_distances(&y);
            for (i, squares) in squares.chunks_exact(y.rows).enumerate() {
                for (j, square) in squares.iter().enumerate() {
                    if !(is_own && i == j) {
                        of_x.insert(i, *square);
                    }
                    if !is_own {
                        of_y.insert(j, *square);
                    }
                }
            }
            let mut all = all.lock().expect("no thread panics with it");
            all.merge(x.first, &of_x);
            all.merge(y.first, &of_y);
        });
        let Smallest { values: squares, .. } = all.into_inner().expect("no thread panics with it");
        Ok(Self { features, k, squares })
    }

    /// The set.
    pub fn features(&self) -> &'a Features {
        self.features
    }

    /// How many neighbors of each row are known.
    pub fn k(&self) -> usize {
        self.k
    }

    /// The squared distance of a row to its `k`-th nearest neighbor, in squared units of the features.
    ///
    /// # Panics
    /// If there is no such row, or `k` is 0 or more than are known.
    pub fn squared_radius(&self, row: usize, k: usize) -> f64 {
        assert!((1..=self.k).contains(&k), "neighbor {k} of {}", self.k);
        self.squares[row * self.k + k - 1]
    }
}

/// The `k` smallest numbers for each row, ascending.
struct Smallest {
    k: usize,
    values: Vec<f64>,
}

impl Smallest {
    fn new(rows: usize, k: usize) -> Self {
        Self { k, values: vec![f64::INFINITY; rows * k] }
    }

    fn insert(&mut self, row: usize, value: f64) {
        let values = &mut self.values[row * self.k..(row + 1) * self.k];
        let last = self.k - 1;
        if value >= values[last] {
            return;
        }
        let place = values.partition_point(|other| *other <= value);
        values.copy_within(place..last, place + 1);
        values[place] = value;
    }

    /// Adds what was found for the rows from `first` on.
    fn merge(&mut self, first: usize, part: &Self) {
        for (i, values) in part.values.chunks_exact(part.k).enumerate() {
            values.iter().for_each(|value| self.insert(first + i, *value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_by_hand() {
        let x = Features::from_rows(1, vec![0.0, 1.0, 3.0, 3.0, 8.0]).unwrap();
        let neighbors = Neighbors::new(&x, 3).unwrap();
        let radii = |k| (0..5).map(|row| neighbors.squared_radius(row, k)).collect::<Vec<_>>();
        assert_eq!(radii(1), [1.0, 1.0, 0.0, 0.0, 25.0]);
        assert_eq!(radii(2), [9.0, 4.0, 4.0, 4.0, 25.0]);
        assert_eq!(radii(3), [9.0, 4.0, 9.0, 9.0, 49.0]);
        assert_eq!((neighbors.k(), neighbors.features().len()), (3, 5));
    }

    #[test]
    fn blocks_find_what_sorting_finds() {
        let (n, dim, k) = (1100, 3, 4);
        let values = (0..n * dim).map(|i| (i as f32 * 0.37 + (i * i) as f32 * 1e-4).sin());
        let x = Features::from_rows(dim, values.collect()).unwrap();
        let neighbors = Neighbors::new(&x, k).unwrap();
        for (i, row) in x.rows().enumerate() {
            let square = |other: &[f32]| -> f64 {
                row.iter().zip(other).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum()
            };
            let mut squares: Vec<f64> = x.rows().map(square).collect();
            squares.remove(i);
            squares.sort_by(f64::total_cmp);
            for (j, square) in squares[..k].iter().enumerate() {
                let found = neighbors.squared_radius(i, j + 1);
                assert!((found - square).abs() < 1e-9 * square, "{found}, not {square}");
            }
        }
    }

    #[test]
    fn there_are_fewer_neighbors_than_rows() {
        let x = Features::from_rows(1, vec![0.0, 1.0, 2.0]).unwrap();
        assert!(Neighbors::new(&x, 2).is_ok());
        for k in [0, 3] {
            let error = Neighbors::new(&x, k).unwrap_err();
            assert_eq!(error, MetricsError::NeighborCount { k, available: 2 });
        }
        assert!(Neighbors::new(&Features::new(1), 1).is_err());
    }
}
