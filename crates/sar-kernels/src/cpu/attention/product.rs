//! Products of rows with vectors of queries.

use std::array::from_fn;
use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::Lanes;
use crate::cpu::level::arch;
use crate::cpu::simd::LANES;
use crate::visible::Span;

/// Sets the scores of `keys` (vectors `stride` apart) that their queries do not see.
#[inline(always)]
pub(super) fn hide(
    scores: &mut [Lanes],
    stride: usize,
    prefix: usize,
    spans: &[Span],
    keys: Range<usize>,
) {
    let last_start = spans[spans.len() - 1].start as usize;
    let first_end = spans[0].end as usize;
    // Keys that come too early for some query, then those that come too late for some.
    let early = keys.start.max(prefix)..keys.end.min(last_start);
    let late = keys.start.max(first_end).max(early.end)..keys.end;
    for key in early.chain(late) {
        let scores = &mut scores[(key - keys.start) * stride];
        for (score, span) in scores.iter_mut().zip(spans) {
            if key < span.start as usize || key >= span.end as usize {
                *score = f32::NEG_INFINITY;
            }
        }
    }
}

/// out[i, j] = sum over k < depth of a(i, k) b[k, j] for rows i < m and vectors j < n, or += if `add`;
/// `size` is m, n and depth.
///
/// Rows of `out` and of `b` lie their strides apart, in vectors, and a(i, k) is `a[i * a_stride + k]`
/// or, unless `ROWS`, `a[k * a_stride + i]`. Each number is a sum of its own in the order of k,
/// whichever are computed at a time.
pub(super) fn product<const ROWS: bool>(
    add: bool,
    size: [usize; 3],
    (out, out_stride): (&mut [Lanes], usize),
    (a, a_stride): (&[f32], usize),
    (b, b_stride): (&[Lanes], usize),
) {
    arch().dispatch(Product::<ROWS> { add, size, out, out_stride, a, a_stride, b, b_stride });
}

struct Product<'a, const ROWS: bool> {
    add: bool,
    size: [usize; 3],
    out: &'a mut [Lanes],
    out_stride: usize,
    a: &'a [f32],
    a_stride: usize,
    b: &'a [Lanes],
    b_stride: usize,
}

impl<const ROWS: bool> WithSimd for Product<'_, ROWS> {
    type Output = ();

    /// Two fused multiply-adds start in a cycle and take four: there are 8 registers of sums or more.
    /// Two loads start in a cycle, too: each factor is loaded for two registers of `b` or more, so that
    /// there are fewer loads than sums.
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let n = self.size[1];
        match S::F32_LANES {
            // 24 sums, 14 loads; with `b` and a factor 27 of 32 registers.
            16 => {
                let pairs = n - n % 2;
                self.strips::<S, 2, 12>(simd, 0..pairs);
                // A last vector alone has 12 sums and waits for its 13 loads.
                self.strips::<S, 1, 12>(simd, pairs..n);
            }
            // 12 sums, 8 loads, 15 of 16 registers.
            8 => self.strips::<S, 2, 6>(simd, 0..n),
            // WebAssembly on x86 has 16, and needs one for the product: 8 sums, 6 loads, 14 registers.
            4 if cfg!(target_arch = "wasm32") => self.strips::<S, 4, 2>(simd, 0..n),
            // 24 sums, 10 loads, 29 of 32 registers.
            4 => self.strips::<S, 4, 6>(simd, 0..n),
            _ => self.strips::<S, LANES, 1>(simd, 0..n),
        }
    }
}

impl<const ROWS: bool> Product<'_, ROWS> {
    /// These vectors of all rows of the result: `R` registers of up to `MOST` rows at a time.
    #[inline(always)]
    fn strips<S: Simd, const R: usize, const MOST: usize>(
        &mut self,
        simd: S,
        vectors: Range<usize>,
    ) {
        let m = self.size[0];
        for j in vectors.step_by(R * S::F32_LANES / LANES) {
            let mut i = 0;
            while i < m {
                let left = (m - i).min(MOST);
                macro_rules! strip {
                    ($n:literal) => {{
                        self.strip::<S, R, $n>(simd, i, j);
                        $n
                    }};
                }
                i += match left {
                    12.. => strip!(12),
                    6.. => strip!(6),
                    4 | 5 => strip!(4),
                    2 | 3 => strip!(2),
                    _ => strip!(1),
                };
            }
        }
    }

    /// `R` registers from vector `j` on of `M` rows of the result from `i` on, which stay in registers.
    #[inline(always)]
    fn strip<S: Simd, const R: usize, const M: usize>(&mut self, simd: S, i: usize, j: usize) {
        let Self { size: [.., depth], a_stride, b_stride, .. } = *self;
        let (a, b) = (&self.a[if ROWS { i * a_stride } else { i }..], &self.b[j..]);
        let mut sum = [[simd.splat_f32s(0.0); R]; M];
        if ROWS {
            let rows: [&[f32]; M] = from_fn(
                #[inline(always)]
                |i| &a[i * a_stride..][..depth],
            );
            #[allow(clippy::needless_range_loop, reason = "k counts in every row, and in b")]
            for k in 0..depth {
                let a = from_fn(
                    #[inline(always)]
                    |i| rows[i][k],
                );
                sum = step(simd, sum, a, b, k * b_stride);
            }
        } else {
            for k in 0..depth {
                let a = *a[k * a_stride..].first_chunk().expect("a factor");
                sum = step(simd, sum, a, b, k * b_stride);
            }
        }
        for (at, sum) in sum.into_iter().enumerate() {
            let out = &mut self.out[(i + at) * self.out_stride + j..];
            let out = &mut out[..R * S::F32_LANES / LANES];
            let out = S::as_mut_simd_f32s(out.as_flattened_mut()).0;
            for (out, sum) in out.iter_mut().zip(sum) {
                *out = if self.add { simd.add_f32s(*out, sum) } else { sum };
            }
        }
    }
}

/// sum[i] + a[i] b, where b is what lies from vector `at` on.
#[inline(always)]
fn step<S: Simd, const R: usize, const M: usize>(
    simd: S,
    mut sum: [[S::f32s; R]; M],
    a: [f32; M],
    b: &[Lanes],
    at: usize,
) -> [[S::f32s; R]; M] {
    let of_vector = LANES / S::F32_LANES;
    let b: [S::f32s; R] = from_fn(
        #[inline(always)]
        |r| S::as_simd_f32s(&b[at + r / of_vector]).0[r % of_vector],
    );
    for i in 0..M {
        let a = simd.splat_f32s(a[i]);
        for r in 0..R {
            sum[i][r] = simd.mul_add_e_f32s(a, b[r], sum[i][r]);
        }
    }
    sum
}
