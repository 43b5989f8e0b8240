//! Products of rows with vectors of queries.

use std::array::from_fn;
use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::Lanes;
use crate::cpu::level::arch;
use crate::cpu::simd::{LANES, mul_add};
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

/// out[i] = sum over k < depth of a(i, k) b[k] for i < m, or += if `add`; vectors of `out` and `b`
/// lie their strides apart, and a(i, k) is `a[i * a_stride + k]` or, unless `ROWS`,
/// `a[k * a_stride + i]`.
#[allow(clippy::too_many_arguments, reason = "a product of three strided matrices")]
pub(super) fn product<const ROWS: bool>(
    add: bool,
    out: &mut [Lanes],
    out_stride: usize,
    m: usize,
    a: &[f32],
    a_stride: usize,
    b: &[Lanes],
    b_stride: usize,
    depth: usize,
) {
    arch().dispatch(Product::<ROWS> { add, out, out_stride, m, a, a_stride, b, b_stride, depth });
}

struct Product<'a, const ROWS: bool> {
    add: bool,
    out: &'a mut [Lanes],
    out_stride: usize,
    m: usize,
    a: &'a [f32],
    a_stride: usize,
    b: &'a [Lanes],
    b_stride: usize,
    depth: usize,
}

impl<const ROWS: bool> WithSimd for Product<'_, ROWS> {
    type Output = ();

    /// Enough sums at a time to hide the latency of an addition: 12 registers of 16, or of 32 where
    /// a vector of queries is one register.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match S::F32_LANES {
            16 => self.strips::<S, 1, 12>(simd),
            8 => self.strips::<S, 2, 6>(simd),
            // WebAssembly on x86 has 16, and needs one for the product.
            4 if cfg!(target_arch = "wasm32") => self.strips::<S, 4, 2>(simd),
            4 => self.strips::<S, 4, 6>(simd),
            _ => self.strips::<S, LANES, 1>(simd),
        }
    }
}

impl<const ROWS: bool> Product<'_, ROWS> {
    /// All rows of the result, up to `MOST` at a time; `V` registers hold a vector of queries.
    #[inline(always)]
    fn strips<S: Simd, const V: usize, const MOST: usize>(mut self, simd: S) {
        let mut i = 0;
        while i < self.m {
            let left = (self.m - i).min(MOST);
            macro_rules! strip {
                ($n:literal) => {{
                    self.strip::<S, V, $n>(simd, i);
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

    /// `M` rows of the result from `i` on, which stay in registers.
    #[inline(always)]
    fn strip<S: Simd, const V: usize, const M: usize>(&mut self, simd: S, i: usize) {
        let Self { a_stride, b, b_stride, depth, .. } = *self;
        let a = &self.a[if ROWS { i * a_stride } else { i }..];
        let mut sum = [[simd.splat_f32s(0.0); V]; M];
        if ROWS {
            let rows: [&[f32]; M] = from_fn(
                #[inline(always)]
                |i| &a[i * a_stride..][..depth],
            );
            for k in 0..depth {
                let a = from_fn(
                    #[inline(always)]
                    |i| rows[i][k],
                );
                sum = step(simd, sum, a, &b[k * b_stride]);
            }
        } else {
            for k in 0..depth {
                let a = *a[k * a_stride..].first_chunk().expect("a factor");
                sum = step(simd, sum, a, &b[k * b_stride]);
            }
        }
        for (at, sum) in sum.into_iter().enumerate() {
            let out = S::as_mut_simd_f32s(&mut self.out[(i + at) * self.out_stride]).0;
            for (out, sum) in out.iter_mut().zip(sum) {
                *out = if self.add { simd.add_f32s(*out, sum) } else { sum };
            }
        }
    }
}

/// sum[i] + a[i] b
#[inline(always)]
fn step<S: Simd, const V: usize, const M: usize>(
    simd: S,
    mut sum: [[S::f32s; V]; M],
    a: [f32; M],
    b: &Lanes,
) -> [[S::f32s; V]; M] {
    let b = S::as_simd_f32s(b).0;
    let b: [S::f32s; V] = from_fn(
        #[inline(always)]
        |v| b[v],
    );
    for i in 0..M {
        let a = simd.splat_f32s(a[i]);
        for v in 0..V {
            sum[i][v] = mul_add(simd, a, b[v], sum[i][v]);
        }
    }
    sum
}
