//! Matrix products of strided views.
#![allow(unsafe_code, reason = "the product's routine takes pointers; the views are checked here")]

use gemm_common::Parallelism;
use gemm_common::gemm::{
    gemm_basic_generic, set_lhs_packing_threshold_multi_thread,
    set_lhs_packing_threshold_single_thread,
};
use gemm_common::simd::{MixedSimd, Scalar};
#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
use gemm_common::simd::{V3, V4};

use super::level::{CpuLevel, level};

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

/// The product by the kernels of one level, `$lanes` numbers a vector: what `gemm::gemm` does for the
/// best one.
macro_rules! at_level {
    ($strided:ident, $level:ident, $simd:ident, $lanes:literal) => {{
        use gemm_f32::microkernel::$level::f32::{H_M, H_N, H_UKR, MR_DIV_N, NR, UKR};
        // Sums that stay in 16 registers, beside a factor of each side and, in WebAssembly, their product.
        const ROWS: usize = if cfg!(target_arch = "wasm32") && MR_DIV_N > 2 { 2 } else { MR_DIV_N };
        let Strided { size: [m, n, k], out, add, a, b, parallel } = $strided;
        gemm_basic_generic::<_, f32, $lanes, { ROWS * $lanes }, NR, ROWS, H_M, H_N>(
            <$simd as MixedSimd<f32, f32, f32, f32>>::try_new().expect("a level of this CPU"),
            m,
            n,
            k,
            out.0,
            out.1,
            out.2,
            add,
            a.0,
            a.1,
            a.2,
            b.0,
            b.1,
            b.2,
            1.0,
            1.0,
            false,
            false,
            false,
            |a, b, c| a * b + c,
            UKR.first_chunk().expect("as many rows or fewer"),
            &H_UKR,
            false,
            parallel,
        );
    }};
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
        true => Parallelism::Rayon(0),
        false => Parallelism::None,
    };
    // SAFETY: the views lie in their slices (above), and `out` is borrowed mutably, hence apart. The
    // instructions are those of a level that this CPU has.
    unsafe {
        // The kernels write columns: out^T = b^T a^T.
        let strided = Strided {
            size: [n, m, k],
            out: (out.as_mut_ptr(), n as isize, 1),
            add: mode == Out::Add,
            a: (b.data.as_ptr(), b.row_stride as isize, b.col_stride as isize),
            b: (a.data.as_ptr(), a.row_stride as isize, a.col_stride as isize),
            parallel,
        };
        match level() {
            CpuLevel::Scalar => at_level!(strided, scalar, Scalar, 1),
            #[cfg(target_arch = "wasm32")]
            CpuLevel::Simd128 => at_level!(strided, simd128, Scalar, 4),
            #[cfg(target_arch = "aarch64")]
            CpuLevel::Neon => at_level!(strided, neon, Scalar, 4),
            #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
            CpuLevel::Avx2 => at_level!(strided, fma, V3, 8),
            #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
            CpuLevel::Avx512 => at_level!(strided, avx512f, V4, 16),
            level => unreachable!("{level} on this CPU"),
        }
    }
}

/// Has all products of this process, `gemm`'s own too, pack weights as soon as two blocks of rows read them, where
/// `gemm` reads them where they lie up to 96 rows on several threads and 48 on one: lines of 256 bytes, each on a page of
/// its own, which no processor fetches ahead. The sums are the same.
pub(super) fn pack_early() {
    set_lhs_packing_threshold_single_thread(1);
    set_lhs_packing_threshold_multi_thread(1);
}

/// A product of pointers, each with the distances from column to column and from row to row.
struct Strided {
    /// Rows, columns, and the inner side.
    size: [usize; 3],
    out: (*mut f32, isize, isize),
    add: bool,
    a: (*const f32, isize, isize),
    b: (*const f32, isize, isize),
    parallel: Parallelism,
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
