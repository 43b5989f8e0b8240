//! Convolutions of each channel alone: `y[i, j] = bias + sum over u, v of
//! w[u, v] x[s i + u - top, s j + v - left]`, zero outside of the map `x`.
//!
//! A map is copied with its zeros into rows of a fixed pitch, so that with p = i pitch + j running over
//! the pixels of the output, every tap t = (u, v) reads `map[offset(t) + p]`: one contiguous slice for
//! all the pixels, the ends of rows included, where what is computed is dropped. A stride of s splits
//! the map in s by s phases: pixel (s i + u, s j + v) is pixel (i + u / s, j + v / s) of phase
//! (u mod s, v mod s). The map's gradient is, with dy zero at the ends of rows,
//! dmap[offset(t) + p] += w[t] dy[p].

use super::conv::out_size;
use super::simd::Fma;

/// Pixels whose sums are in registers at a time.
const STRIP: usize = 64;
/// The last ones of a map may be as few.
const LEAST: usize = 16;

/// Geometry of a convolution of each channel alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Depthwise {
    pub(super) channels: usize,
    pub(super) height: usize,
    pub(super) width: usize,
    /// Side of the kernels.
    pub(super) kernel: usize,
    pub(super) stride: usize,
    /// Rows or columns of zeros around the input: top, left, bottom, right.
    pub(super) pad: [usize; 4],
}

/// How a map with its zeros lies in memory.
pub(super) struct Padded {
    /// From one row of a phase to the next.
    pub(super) pitch: usize,
    /// Rows of a phase.
    rows: usize,
    /// Where the taps read the first pixel.
    offsets: Vec<usize>,
    /// Elements that are read, of all phases and beyond the last.
    pub(super) len: usize,
    /// Pixels of the output, the ends of its rows included, a multiple of [`LEAST`].
    pub(super) pixels: usize,
}

impl Depthwise {
    /// Height and width of the output.
    pub(super) fn out_size(&self) -> [usize; 2] {
        out_size([self.height, self.width], [self.kernel; 2], self.stride, self.pad)
    }

    pub(super) fn padded(&self) -> Padded {
        let (s, k, [height, width]) = (self.stride, self.kernel, self.out_size());
        let halo = (k - 1) / s;
        // The zeros right of a row can be those left of the next one.
        let [_, left, _, right] = self.pad;
        let shared = if s == 1 { left.min(right).min(halo) } else { 0 };
        let (pitch, rows) = (width + halo - shared, height + halo);
        let offset =
            |(u, v): (usize, usize)| (u % s * s + v % s) * rows * pitch + u / s * pitch + v / s;
        let offsets: Vec<usize> =
            (0..k).flat_map(|u| (0..k).map(move |v| (u, v))).map(offset).collect();
        let pixels = (height * pitch).next_multiple_of(LEAST);
        let last = offsets.iter().max().map_or(0, |last| last + pixels);
        Padded { pitch, rows, offsets, len: last.max(s * s * rows * pitch), pixels }
    }

    /// Copies rows so that columns of one phase are together: the first, s-th, .. of all rows, then
    /// the second, ..
    #[inline(always)]
    pub(super) fn sort(&self, rows: &[f32], to: &mut [f32]) {
        if self.stride == 1 {
            return to.copy_from_slice(rows);
        }
        let mut at = 0;
        for from in 0..self.stride.min(self.width) {
            let n = (self.width - from).div_ceil(self.stride);
            for row in rows.chunks_exact(self.width) {
                let row = row[from..].iter().step_by(self.stride);
                to[at..at + n].iter_mut().zip(row).for_each(|(to, &x)| *to = x);
                at += n;
            }
        }
    }

    /// Calls `part` for each row's columns of one phase, of `n` rows from `first` on; pixels that no tap
    /// reads are in none.
    #[inline(always)]
    fn for_each_part(&self, padded: &Padded, [first, n]: [usize; 2], mut part: impl FnMut(Part)) {
        let (s, [top, left, ..]) = (self.stride, self.pad);
        let mut sorted = 0;
        for from in 0..s.min(self.width) {
            let columns = (self.width - from).div_ceil(s);
            let (phase, column) = ((from + left) % s, (from + left) / s);
            let used = columns.min(padded.pitch.saturating_sub(column));
            let (mut u, mut row) = ((first + top) % s, (first + top) / s);
            for i in 0..n {
                if row < padded.rows {
                    let at = ((u * s + phase) * padded.rows + row) * padded.pitch + column;
                    part(Part { from: i * self.width + from, sorted, at, n: used });
                }
                sorted += columns;
                (u, row) = if u + 1 == s { (0, row + 1) } else { (u + 1, row) };
            }
        }
    }

    /// Puts [sorted](Self::sort) rows, `first` and those behind it, between the zeros of a map, which
    /// stay as they are.
    #[inline(always)]
    pub(super) fn put(&self, padded: &Padded, first: usize, rows: &[f32], map: &mut [f32]) {
        self.for_each_part(
            padded,
            [first, rows.len() / self.width],
            #[inline(always)]
            |Part { sorted, at, n, .. }| map[at..at + n].copy_from_slice(&rows[sorted..sorted + n]),
        );
    }

    /// What lies between the zeros of a map, as rows that are not sorted; pixels that no tap reads are
    /// zero.
    #[inline(always)]
    pub(super) fn take(&self, padded: &Padded, map: &[f32], rows: &mut [f32]) {
        rows.fill(0.0);
        self.for_each_part(
            padded,
            [0, self.height],
            #[inline(always)]
            |Part { from, at, n, .. }| {
                let to = rows[from..].iter_mut().step_by(self.stride);
                to.zip(&map[at..at + n]).for_each(|(to, &x)| *to = x);
            },
        );
    }

    /// `f` of the sums of a map between its zeros, the ends of rows included.
    #[inline(always)]
    pub(super) fn sums(
        &self,
        padded: &Padded,
        (weight, bias): (&[f32], f32),
        map: &[f32],
        sums: &mut [f32],
        f: impl Fn(f32) -> f32,
    ) {
        let weight = (weight, padded.offsets.as_slice(), bias);
        match (self.kernel, self.stride) {
            (3, 1) => strips::<3, 1>(weight, map, sums, f),
            (3, 2) => strips::<3, 2>(weight, map, sums, f),
            (5, 1) => strips::<5, 1>(weight, map, sums, f),
            (5, 2) => strips::<5, 2>(weight, map, sums, f),
            _ => any_strips(weight, map, sums, f),
        }
    }

    /// The gradient of a map between its zeros from that of its sums, zero at the ends of rows.
    #[inline(always)]
    pub(super) fn map_gradient(
        &self,
        padded: &Padded,
        weight: &[f32],
        grad: &[f32],
        map: &mut [f32],
    ) {
        map.fill(0.0);
        for (&w, &offset) in weight.iter().zip(&padded.offsets) {
            let to = map[offset..][..grad.len()].iter_mut();
            to.zip(grad).for_each(|(to, &g)| *to = g.fma(w, *to));
        }
    }
}

/// A row's columns of one phase.
struct Part {
    /// Where they are in rows, a stride apart.
    from: usize,
    /// Where they are in sorted rows.
    sorted: usize,
    /// Where they are in a map.
    at: usize,
    n: usize,
}

/// Weights and offsets of the taps, and the bias.
type Taps<'a> = (&'a [f32], &'a [usize], f32);

/// `f` of the sums of kernels of side `K` and stride `S`.
#[inline(always)]
fn strips<const K: usize, const S: usize>(
    taps: Taps<'_>,
    map: &[f32],
    sums: &mut [f32],
    f: impl Fn(f32) -> f32,
) {
    let mut at = 0;
    let (strips, rest) = sums.as_chunks_mut::<STRIP>();
    for sums in strips {
        *sums = strip::<K, S, STRIP>(taps, &map[at..], &f);
        at += STRIP;
    }
    let (halves, rest) = rest.as_chunks_mut::<{ STRIP / 2 }>();
    for sums in halves {
        *sums = strip::<K, S, { STRIP / 2 }>(taps, &map[at..], &f);
        at += STRIP / 2;
    }
    for sums in rest.as_chunks_mut::<LEAST>().0 {
        *sums = strip::<K, S, LEAST>(taps, &map[at..], &f);
        at += LEAST;
    }
}

/// The first `N` pixels of [`strips`]. Taps of a row that lie in one phase read one slice.
#[inline(always)]
fn strip<const K: usize, const S: usize, const N: usize>(
    (weight, offsets, bias): Taps<'_>,
    map: &[f32],
    f: impl Fn(f32) -> f32,
) -> [f32; N] {
    let (weight, offsets) = (&weight[..K * K], &offsets[..K * K]);
    let mut strip = [bias; N];
    for u in 0..K {
        for phase in 0..S {
            let taps = (K - phase).div_ceil(S);
            let map = &map[offsets[u * K + phase]..][..N + taps - 1];
            for t in 0..taps {
                let (weight, map) = (weight[u * K + phase + t * S], &map[t..t + N]);
                for lane in 0..N {
                    strip[lane] = map[lane].fma(weight, strip[lane]);
                }
            }
        }
    }
    strip.iter_mut().for_each(|sum| *sum = f(*sum));
    strip
}

/// [`strips`] of any side and stride.
#[inline(always)]
fn any_strips(
    (weight, offsets, bias): Taps<'_>,
    map: &[f32],
    sums: &mut [f32],
    f: impl Fn(f32) -> f32,
) {
    for (at, sums) in sums.as_chunks_mut::<LEAST>().0.iter_mut().enumerate() {
        *sums = [bias; LEAST];
        for (&w, &offset) in weight.iter().zip(offsets) {
            let map = &map[offset + at * LEAST..][..LEAST];
            sums.iter_mut().zip(map).for_each(|(sum, &x)| *sum = x.fma(w, *sum));
        }
        sums.iter_mut().for_each(|sum| *sum = f(*sum));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::*;

    /// Output and gradient of a map, put a few rows at a time.
    fn run(d: &Depthwise, x: &[f32], weight: (&[f32], f32), grad: &[f32]) -> [Vec<f32>; 2] {
        let (padded, [height, width]) = (d.padded(), d.out_size());
        let (mut map, mut sums) = (vec![0.0; padded.len], vec![0.0; padded.pixels]);
        let at_a_time = 3;
        for (i, rows) in x.chunks(at_a_time * d.width).enumerate() {
            let mut sorted = vec![0.0; rows.len()];
            d.sort(rows, &mut sorted);
            d.put(&padded, at_a_time * i, &sorted, &mut map);
        }
        d.sums(&padded, weight, &map, &mut sums, |sum| 2.0 * sum);
        let lines = sums.chunks(padded.pitch).take(height);
        let y = lines.flat_map(|line| line[..width].to_vec()).collect();
        let mut spread = vec![0.0; padded.pixels];
        for (to, from) in spread.chunks_mut(padded.pitch).zip(grad.chunks_exact(width)) {
            to[..width].copy_from_slice(from);
        }
        let mut of_x = vec![0.0; x.len()];
        d.map_gradient(&padded, weight.0, &spread, &mut map);
        d.take(&padded, &map, &mut of_x);
        [y, of_x]
    }

    fn check(d: Depthwise) {
        let ([rows, columns], k) = (d.out_size(), d.kernel);
        let (x, weight) = (random(d.height * d.width, 1), random(k * k, 2));
        let (bias, grad) = (0.7, random(rows * columns, 3));
        let (mut y, mut dx) = (vec![f64::from(bias); grad.len()], vec![0.0f64; x.len()]);
        for at in 0..grad.len() {
            for (u, v) in (0..k).flat_map(|u| (0..k).map(move |v| (u, v))) {
                let row = (at / columns * d.stride + u).wrapping_sub(d.pad[0]);
                let column = (at % columns * d.stride + v).wrapping_sub(d.pad[1]);
                if row < d.height && column < d.width {
                    let (from, tap) = (row * d.width + column, u * k + v);
                    y[at] += f64::from(x[from]) * f64::from(weight[tap]);
                    dx[from] += f64::from(grad[at]) * f64::from(weight[tap]);
                }
            }
        }
        y.iter_mut().for_each(|y| *y *= 2.0);
        let [ours, of_x] = run(&d, &x, (&weight, bias), &grad);
        assert_close_above(&format!("output of {d:?}"), &ours, &y, 1e-5, 1e-3);
        assert_close_above(&format!("gradient of {d:?}"), &of_x, &dx, 1e-5, 1e-3);
    }

    #[test]
    fn like_the_definition() {
        let pads =
            [[0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1], [1, 1, 2, 2], [2, 1, 0, 2], [3, 5, 4, 6]];
        let sides = [[1, 1], [1, 6], [3, 1], [2, 2], [5, 9], [7, 4], [40, 33], [16, 16]];
        let mut n = 0;
        for (pad, [height, width]) in pads.iter().flat_map(|p| sides.iter().map(move |s| (*p, *s)))
        {
            for (kernel, stride) in [(1, 1), (3, 1), (3, 2), (5, 1), (5, 2), (4, 3), (2, 4)] {
                let fits = |side: usize, pad: usize| side + pad >= kernel;
                if fits(height, pad[0] + pad[2]) && fits(width, pad[1] + pad[3]) {
                    check(Depthwise { channels: 1, height, width, kernel, stride, pad });
                    n += 1;
                }
            }
        }
        assert!(n > 200, "{n}");
    }
}
