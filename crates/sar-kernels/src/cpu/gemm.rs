//! Matrix products of strided views.
#![allow(unsafe_code, reason = "the product's routine takes pointers; the views are checked here")]

/// A matrix of `rows` by `cols` in a slice: element `(i, j)` at `i * row_stride + j * col_stride`.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) row_stride: usize,
    pub(crate) col_stride: usize,
}

impl<'a> Mat<'a> {
    /// Rows one after the other.
    pub(crate) fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self { data, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// The transposed view.
    pub(crate) fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }
}

/// What a product does with what was in the output.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Out {
    /// Overwrites it.
    Set,
    /// Adds to it.
    Add,
}

/// `out = a b` or `out += a b`, row by row, on as many threads as the work is worth.
///
/// # Panics
/// If the shapes do not match, or a view is larger than its slice.
pub(crate) fn gemm(mode: Out, out: &mut [f32], a: Mat<'_>, b: Mat<'_>) {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    assert_eq!(a.cols, b.rows, "inner sides of a product");
    assert_eq!(out.len(), m * n, "size of a product");
    for mat in [a, b] {
        if mat.rows > 0 && mat.cols > 0 {
            let last = (mat.rows - 1) * mat.row_stride + (mat.cols - 1) * mat.col_stride;
            assert!(last < mat.data.len(), "a matrix beyond its data");
        }
    }
    if out.is_empty() {
        return;
    }
    let parallel = match m * n * k >= 192 * 192 * 192 {
        true => gemm::Parallelism::Rayon(0),
        false => gemm::Parallelism::None,
    };
    // SAFETY: the views lie in their slices (above), and `out` is borrowed mutably, hence apart.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            mode == Out::Add,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            parallel,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strided_products() {
        // a = [[1, 2, 3], [4, 5, 6]] in rows of 4, times its transpose.
        let a = [1.0, 2.0, 3.0, 9.0, 4.0, 5.0, 6.0, 9.0];
        let a = Mat { row_stride: 4, ..Mat::new(&a, 2, 3) };
        let mut out = vec![1.0; 4];
        gemm(Out::Set, &mut out, a, a.t());
        assert_eq!(out, [14.0, 32.0, 32.0, 77.0]);
        gemm(Out::Add, &mut out, a, a.t());
        assert_eq!(out, [28.0, 64.0, 64.0, 154.0]);
    }
}
