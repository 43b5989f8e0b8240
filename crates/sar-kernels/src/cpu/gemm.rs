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

/// `out = alpha a b` or `out += alpha a b`, where the rows of `out` start `out_stride` apart.
///
/// `threads` lets the product use the thread pool; the result is the same, bit for bit.
///
/// # Panics
/// If the shapes do not match, or a view is larger than its slice.
pub(crate) fn gemm(
    mode: Out,
    out: &mut [f32],
    out_stride: usize,
    alpha: f32,
    a: Mat<'_>,
    b: Mat<'_>,
    threads: bool,
) {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    assert_eq!(a.cols, b.rows, "inner sides of a product");
    for mat in [a, b] {
        if mat.rows > 0 && mat.cols > 0 {
            let last = (mat.rows - 1) * mat.row_stride + (mat.cols - 1) * mat.col_stride;
            assert!(last < mat.data.len(), "a matrix beyond its data");
        }
    }
    if m == 0 || n == 0 {
        return;
    }
    assert!(n <= out_stride && (m - 1) * out_stride + n <= out.len(), "a product beyond its data");
    let parallel = match threads && m * n * k >= 192 * 192 * 192 {
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
            out_stride as isize,
            mode == Out::Add,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            alpha,
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
        // a = [[1, 2, 3], [4, 5, 6]] in rows of 4, b = its transpose.
        let a = [1.0, 2.0, 3.0, 9.0, 4.0, 5.0, 6.0, 9.0];
        let a = Mat { row_stride: 4, ..Mat::new(&a, 2, 3) };
        let mut out = vec![1.0; 6];
        gemm(Out::Set, &mut out, 3, 2.0, a, a.t(), true);
        assert_eq!(out, [28.0, 64.0, 1.0, 64.0, 154.0, 1.0]);
        gemm(Out::Add, &mut out, 3, 1.0, a, a.t(), false);
        assert_eq!(out, [42.0, 96.0, 1.0, 96.0, 231.0, 1.0]);
    }
}
