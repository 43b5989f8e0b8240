//! Products of matrices in f64, the same bits for any number of threads: each part of an output is one
//! product of a fixed shape on one thread, and threads share the parts.
//!
//! Slices hold matrices row after row.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

/// Rows of an output that are one part.
const STRIPE: usize = 128;

/// The dot product of every row of `x` with every row of `y`, on this thread: a row for each row of `x`.
pub(crate) fn dots(x: &[f64], y: &[f64], dim: usize) -> Vec<f64> {
    let [n, m] = [x, y].map(|values| values.len() / dim);
    let mut out = vec![0.0; n * m];
    matmul(
        MatMut::from_row_major_slice_mut(&mut out, n, m),
        Accum::Replace,
        MatRef::from_row_major_slice(x, n, dim),
        MatRef::from_row_major_slice(y, m, dim).transpose(),
        1.0,
        Par::Seq,
    );
    out
}

/// `a b`, row after row.
pub(crate) fn product(a: MatRef<'_, f64>, b: MatRef<'_, f64>) -> Vec<f64> {
    let columns = b.ncols();
    let mut out = vec![0.0; a.nrows() * columns];
    out.par_chunks_mut(STRIPE * columns).enumerate().for_each(|(i, stripe)| {
        let rows = stripe.len() / columns;
        let out = MatMut::from_row_major_slice_mut(stripe, rows, columns);
        matmul(out, Accum::Replace, a.subrows(i * STRIPE, rows), b, 1.0, Par::Seq);
    });
    out
}

/// Adds to the upper triangle of `sum` that of `a b`, which is symmetric; what is below it, is left undefined.
pub(crate) fn add_symmetric(sum: &mut [f64], a: MatRef<'_, f64>, b: MatRef<'_, f64>) {
    let dim = b.ncols();
    sum.par_chunks_mut(STRIPE * dim).enumerate().for_each(|(i, stripe)| {
        let (first, rows) = (i * STRIPE, stripe.len() / dim);
        let out = MatMut::from_row_major_slice_mut(stripe, rows, dim);
        matmul(
            out.subcols_mut(first, dim - first),
            Accum::Add,
            a.subrows(first, rows),
            b.subcols(first, dim - first),
            1.0,
            Par::Seq,
        );
    });
}

/// Adds `x^T x` to the upper triangle of `sum`; what is below it, is left undefined.
pub(crate) fn add_gram(sum: &mut [f64], x: &[f64], dim: usize) {
    let x = MatRef::from_row_major_slice(x, x.len() / dim, dim);
    add_symmetric(sum, x.transpose(), x);
}

/// Copies the upper triangle to the lower one.
pub(crate) fn mirror(matrix: &mut [f64], dim: usize) {
    for row in 1..dim {
        for column in 0..row {
            matrix[row * dim + column] = matrix[column * dim + row];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small integers, so that sums are exact.
    fn integers(n: usize, by: usize) -> Vec<f64> {
        (0..n).map(|i| ((i * i + by * i) % 11) as f64 - 5.0).collect()
    }

    fn by_hand(a: &[f64], b: &[f64], inner: usize) -> Vec<f64> {
        let columns = b.len() / inner;
        let rows = a.chunks_exact(inner);
        let cell =
            |row: &[f64], j: usize| (0..inner).map(|l| row[l] * b[l * columns + j]).sum::<f64>();
        rows.flat_map(|row| (0..columns).map(move |j| cell(row, j))).collect()
    }

    fn transposed(a: &[f64], columns: usize) -> Vec<f64> {
        (0..columns).flat_map(|j| a.iter().skip(j).step_by(columns).copied()).collect()
    }

    #[test]
    fn products_equal_sums_by_hand() {
        // More than one stripe, and sides that are multiples of nothing.
        let (n, inner, m) = (STRIPE + 71, 37, 53);
        let (a, b) = (integers(n * inner, 3), integers(inner * m, 7));
        let expected = by_hand(&a, &b, inner);
        let [left, right] = [(&a, n, inner), (&b, inner, m)]
            .map(|(values, rows, columns)| MatRef::from_row_major_slice(values, rows, columns));
        assert_eq!(product(left, right), expected);
        assert_eq!(dots(&a, &transposed(&b, m), inner), expected);
    }

    #[test]
    fn symmetric_products_are_added() {
        let (n, dim) = (29, 2 * STRIPE + 5);
        let x = integers(n * dim, 5);
        let mut sum = vec![2.0; dim * dim];
        add_gram(&mut sum, &x, dim);
        mirror(&mut sum, dim);
        let expected = by_hand(&transposed(&x, dim), &x, n);
        assert!(sum.iter().zip(&expected).all(|(found, expected)| *found == expected + 2.0));
    }
}
