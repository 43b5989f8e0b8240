//! All pairs of rows by blocks, so that no matrix of all of them is ever in memory.

use rayon::prelude::*;

use crate::Features;
use crate::product::dots;

/// Rows of a block.
const BLOCK: usize = 512;
/// Squared distances below this share of the squared lengths have lost too many digits, and are computed
/// from differences.
const NEAR: f64 = 1e-6;

/// Rows of a set in f64, less a center.
pub(crate) struct Block {
    /// The first row, from 0.
    pub(crate) first: usize,
    /// The number of rows.
    pub(crate) rows: usize,
    dim: usize,
    values: Vec<f64>,
    squares: Vec<f64>,
}

impl Block {
    /// The `index`-th block of a set.
    pub(crate) fn new(features: &Features, index: usize, center: &[f64]) -> Self {
        let (dim, first) = (features.dim(), index * BLOCK);
        let rows = BLOCK.min(features.len() - first);
        let mut values = Vec::with_capacity(rows * dim);
        for row in features.values()[first * dim..(first + rows) * dim].chunks_exact(dim) {
            values.extend(row.iter().zip(center).map(|(value, center)| f64::from(*value) - center));
        }
        let square = |row: &[f64]| row.iter().map(|x| x * x).sum();
        let squares = values.chunks_exact(dim).map(square).collect();
        Self { first, rows, dim, values, squares }
    }

    fn row(&self, index: usize) -> &[f64] {
        &self.values[index * self.dim..(index + 1) * self.dim]
    }

    /// All values, row after row.
    pub(crate) fn values(&self) -> &[f64] {
        &self.values
    }

    /// The dot product of each row with each of the other block: a row for each of these rows.
    pub(crate) fn dots(&self, other: &Self) -> Vec<f64> {
        dots(&self.values, &other.values, self.dim)
    }

    /// The squared distance of each row from each of the other block: a row for each of these rows. Equal rows
    /// are at exactly 0.
    pub(crate) fn squared_distances(&self, other: &Self) -> Vec<f64> {
        let mut cells = self.dots(other);
        for (i, cells) in cells.chunks_exact_mut(other.rows).enumerate() {
            for (j, cell) in cells.iter_mut().enumerate() {
                let squares = self.squares[i] + other.squares[j];
                let square = squares - 2.0 * *cell;
                *cell = if square > NEAR * squares {
                    square
                } else {
                    let pairs = self.row(i).iter().zip(other.row(j));
                    pairs.map(|(x, y)| (x - y) * (x - y)).sum()
                };
            }
        }
        cells
    }
}

/// The number of blocks of a set.
pub(crate) fn n_blocks(features: &Features) -> usize {
    features.len().div_ceil(BLOCK)
}

/// What `work` makes of each block of `x` with each of `y`, on all threads; in the order of the blocks.
pub(crate) fn of_two<T: Send>(
    [x, y]: [&Features; 2],
    center: &[f64],
    work: impl Fn(Block, Block) -> T + Sync,
) -> Vec<T> {
    let (rows, columns) = (n_blocks(x), n_blocks(y));
    let pairs = (0..rows * columns).into_par_iter();
    pairs
        .map(|pair| {
            let [i, j] = [pair / columns, pair % columns];
            work(Block::new(x, i, center), Block::new(y, j, center))
        })
        .collect()
}

/// What `work` makes of each block of `x` with itself and each later one, on all threads; in the order of the
/// blocks.
pub(crate) fn of_one<T: Send>(
    x: &Features,
    center: &[f64],
    work: impl Fn(Block, Block) -> T + Sync,
) -> Vec<T> {
    let n = n_blocks(x);
    let pairs: Vec<[usize; 2]> = (0..n).flat_map(|i| (i..n).map(move |j| [i, j])).collect();
    let blocks = |[i, j]: [usize; 2]| work(Block::new(x, i, center), Block::new(x, j, center));
    pairs.into_par_iter().map(blocks).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(n: usize, dim: usize) -> Features {
        let values = (0..n * dim).map(|i| 100.0 + (i as f32 * 0.37 + (i * i) as f32 * 1e-4).sin());
        Features::from_rows(dim, values.collect()).unwrap()
    }

    #[test]
    fn distances_are_those_of_the_definition() {
        let (n, dim) = (BLOCK + 30, 9);
        let x = wave(n, dim);
        let mut y = x.select((0..70).map(|i| 7 * i));
        // One that differs in its last digit.
        let mut row = x.row(5).to_vec();
        row[3] = row[3].next_up();
        y.push(&row).unwrap();
        let center = x.mean();
        let parts = of_two([&x, &y], &center, |x, y| (x.first, x.rows, x.squared_distances(&y)));
        assert_eq!(
            parts.iter().map(|part| (part.0, part.1)).collect::<Vec<_>>(),
            [(0, BLOCK), (BLOCK, 30)]
        );
        let found = parts.into_iter().flat_map(|part| part.2);
        let expected = x.rows().flat_map(|x| {
            y.rows().map(move |y| {
                x.iter().zip(y).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum::<f64>()
            })
        });
        let mut n_zero = 0;
        for (found, expected) in found.zip(expected) {
            n_zero += usize::from(found == 0.0);
            assert!((found - expected).abs() <= 1e-8 * expected, "{found}, not {expected}");
        }
        assert_eq!(n_zero, 70);
    }

    #[test]
    fn a_set_meets_itself_once() {
        let x = wave(2 * BLOCK + 1, 2);
        let places = of_one(&x, &x.mean(), |x, y| [x.first, y.first, x.rows * y.rows]);
        let (b, n) = (BLOCK, BLOCK * BLOCK);
        let expected =
            [[0, 0, n], [0, b, n], [0, 2 * b, b], [b, b, n], [b, 2 * b, b], [2 * b, 2 * b, 1]];
        assert_eq!(places, expected);
    }
}
