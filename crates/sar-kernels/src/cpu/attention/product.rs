//! Products of rows with vectors of queries.

use std::array::from_fn;
use std::ops::Range;

use super::Lanes;
use crate::cpu::simd::{LANES, vectorized};

/// Sets the scores of `keys` (vectors `stride` apart) that their queries do not see.
#[inline(always)]
pub(super) fn hide(scores: &mut [Lanes], stride: usize, visible: &[u32], keys: Range<usize>) {
    let first = (visible[0] as usize).max(keys.start);
    for key in first..keys.end {
        let scores = &mut scores[(key - keys.start) * stride];
        for (score, &visible) in scores.iter_mut().zip(visible) {
            if key >= visible as usize {
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
    vectorized(
        #[inline(always)]
        || {
            let mut i = 0;
            while i < m {
                let out = &mut out[i * out_stride..];
                let a = &a[if ROWS { i * a_stride } else { i }..];
                macro_rules! strip {
                    ($n:literal) => {{
                        strip::<ROWS, $n>(add, out, out_stride, a, a_stride, b, b_stride, depth);
                        $n
                    }};
                }
                i += match m - i {
                    6.. => strip!(6),
                    4 | 5 => strip!(4),
                    2 | 3 => strip!(2),
                    _ => strip!(1),
                };
            }
        },
    );
}

/// `M` vectors of a product, which stay in registers.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "as above")]
fn strip<const ROWS: bool, const M: usize>(
    add: bool,
    out: &mut [Lanes],
    out_stride: usize,
    a: &[f32],
    a_stride: usize,
    b: &[Lanes],
    b_stride: usize,
    depth: usize,
) {
    let mut sum = [[0.0; LANES]; M];
    if ROWS {
        let rows: [&[f32]; M] = from_fn(
            #[inline(always)]
            |i| &a[i * a_stride..][..depth],
        );
        for k in 0..depth {
            step(
                &mut sum,
                from_fn(
                    #[inline(always)]
                    |i| rows[i][k],
                ),
                &b[k * b_stride],
            );
        }
    } else {
        for k in 0..depth {
            step(&mut sum, *a[k * a_stride..].first_chunk().expect("a factor"), &b[k * b_stride]);
        }
    }
    for (i, sum) in sum.iter().enumerate() {
        let out = &mut out[i * out_stride];
        for j in 0..LANES {
            out[j] = if add { out[j] + sum[j] } else { sum[j] };
        }
    }
}

/// sum[i] += a[i] b
#[inline(always)]
fn step<const M: usize>(sum: &mut [Lanes; M], a: [f32; M], b: &Lanes) {
    for i in 0..M {
        for j in 0..LANES {
            sum[i][j] = a[i].mul_add(b[j], sum[i][j]);
        }
    }
}
