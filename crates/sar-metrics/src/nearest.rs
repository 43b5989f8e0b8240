//! The nearest row of another set.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::{enough_rows, same_dim};
use crate::pairs::{Block, n_blocks};
use crate::{Features, MetricsError};

/// A row of another set that no other is nearer than.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Nearest {
    /// The row, from 0; of several as near the first.
    pub row: usize,
    /// Its euclidean distance, in units of the features; exactly 0 for equal rows.
    pub distance: f64,
}

/// For each row of `from`, the nearest row of `to`.
///
/// # Errors
/// If the two sets differ in their number of features, or `to` has no rows.
pub fn nearest(from: &Features, to: &Features) -> Result<Vec<Nearest>, MetricsError> {
    same_dim(("one set", from.dim()), ("the other", to.dim()))?;
    enough_rows("features", to.len(), 1, "a nearest row")?;
    let center = to.mean();
    let blocks = (0..n_blocks(from)).into_par_iter().map(|i| {
        let block = Block::new(from, i, &center);
        let mut best = vec![(f64::INFINITY, 0); block.rows];
        for j in 0..n_blocks(to) {
            let others = Block::new(to, j, &center);
            let squares = block.squared_distances(&others);
            for (best, squares) in best.iter_mut().zip(squares.chunks_exact(others.rows)) {
                for (row, square) in squares.iter().enumerate() {
                    if *square < best.0 {
                        *best = (*square, others.first + row);
                    }
                }
            }
        }
        best
    });
    let best = blocks.collect::<Vec<_>>().into_iter().flatten();
    Ok(best.map(|(square, row)| Nearest { row, distance: square.sqrt() }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_by_hand() {
        let from = Features::from_rows(2, vec![0.0, 0.0, 3.0, 5.0, 9.0, 9.0]).unwrap();
        let to = Features::from_rows(2, vec![3.0, 4.0, 9.0, 9.0, 9.0, 9.0]).unwrap();
        let expected = [(0, 5.0), (0, 1.0), (1, 0.0)];
        let expected = expected.map(|(row, distance)| Nearest { row, distance });
        assert_eq!(nearest(&from, &to).unwrap(), expected);
        assert_eq!(nearest(&Features::new(2), &to).unwrap(), []);
    }

    #[test]
    fn copies_are_found_in_any_block() {
        let (n, dim) = (1300, 5);
        let values = (0..n * dim).map(|i| 50.0 + (i as f32 * 0.37 + (i * i) as f32 * 1e-4).sin());
        let to = Features::from_rows(dim, values.collect()).unwrap();
        let rows: Vec<usize> = (0..n).step_by(2).rev().collect();
        let found = nearest(&to.select(rows.iter().copied()), &to).unwrap();
        let expected: Vec<_> = rows.into_iter().map(|row| Nearest { row, distance: 0.0 }).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let x = Features::from_rows(2, vec![0.0; 4]).unwrap();
        assert!(nearest(&x, &Features::new(3)).is_err());
        let error = nearest(&x, &Features::new(2)).unwrap_err();
        assert!(matches!(error, MetricsError::TooFewRows { found: 0, needed: 1, .. }), "{error}");
    }
}
