//! Convolutions of each channel alone: `y[b, c, i, j] = bias[c] + sum over u, v of
//! w[c, u, v] x[b, c, s i + u - top, s j + v - left]`, zero outside of `x`.
//!
//! A map is copied with its zeros into rows of a fixed pitch, so that with p = i pitch + j running over
//! the pixels of the output, every tap t = (u, v) reads `map[offset(t) + p]`: one contiguous slice for
//! all the pixels, the ends of rows included, where what is computed is dropped. A stride of s splits
//! the map in s by s phases: pixel (s i + u, s j + v) is pixel (i + u / s, j + v / s) of phase
//! (u mod s, v mod s). The gradients are, with dy zero at the ends of rows,
//!
//! - dmap[offset(t) + p] += w[t] dy[p],
//! - dw[t] = sum over p of dy[p] map[offset(t) + p].

use rayon::prelude::*;

use super::conv::out_size;
use super::kernel::{Gradient, Kernel, Pass};
use super::simd::{Fma, sum_of, sum_of_pairs, vectorized};

/// Pixels whose sums are in registers at a time.
const STRIP: usize = 32;
/// About as many pixels of the output are worth a task.
const TASK: usize = 1 << 13;

/// Geometry of a convolution of each channel alone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Depthwise {
    pub(crate) channels: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
    /// Side of the kernels.
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    /// Rows or columns of zeros around the input: top, left, bottom, right.
    pub(crate) pad: [usize; 4],
}

/// How a map with its zeros lies in memory.
struct Padded {
    /// From one row of a phase to the next.
    pitch: usize,
    /// Rows of a phase.
    rows: usize,
    /// Where the taps read the first pixel.
    offsets: Vec<usize>,
    /// Elements that are read, of all phases and beyond the last.
    len: usize,
    /// Pixels of the output, the ends of its rows included, in whole strips.
    pixels: usize,
}

impl Depthwise {
    /// Height and width of the output.
    pub(crate) fn out_size(&self) -> [usize; 2] {
        out_size([self.height, self.width], [self.kernel; 2], self.stride, self.pad)
    }

    fn padded(&self) -> Padded {
        let (s, k, [height, width]) = (self.stride, self.kernel, self.out_size());
        let halo = (k - 1) / s;
        let (pitch, rows) = (width + halo, height + halo);
        let offset =
            |(u, v): (usize, usize)| (u % s * s + v % s) * rows * pitch + u / s * pitch + v / s;
        let offsets: Vec<usize> =
            (0..k).flat_map(|u| (0..k).map(move |v| (u, v))).map(offset).collect();
        let pixels = (height * pitch).next_multiple_of(STRIP);
        let last = offsets.iter().max().map_or(0, |last| last + pixels);
        Padded { pitch, rows, offsets, len: last.max(s * s * rows * pitch), pixels }
    }

    /// Calls `line` with every row of the phases: where it begins in them, the row of the map that it
    /// holds, if it holds any, how many zeros come first, and the first of the map's columns.
    #[inline(always)]
    fn for_each_line(
        &self,
        padded: &Padded,
        mut line: impl FnMut(usize, Option<usize>, usize, usize),
    ) {
        let s = self.stride;
        for at in 0..s * s * padded.rows {
            let (phase, row) = (at / padded.rows, at % padded.rows);
            let row = (row * s + phase / s).checked_sub(self.pad[0]);
            let (first, left) = (phase % s, self.pad[1]);
            let zeros = left.saturating_sub(first).div_ceil(s).min(padded.pitch);
            let column = zeros * s + first - left.min(zeros * s + first);
            line(at * padded.pitch, row.filter(|&row| row < self.height), zeros, column);
        }
    }

    /// Copies a map between its zeros.
    #[inline(always)]
    fn fill(&self, padded: &Padded, x: &[f32], map: &mut [f32]) {
        let (s, width) = (self.stride, self.width);
        map[s * s * padded.rows * padded.pitch..].fill(0.0);
        self.for_each_line(padded, |at, row, zeros, column| {
            let line = &mut map[at..at + padded.pitch];
            let Some(row) = row else { return line.fill(0.0) };
            let from = x[row * width..][..width].get(column..).unwrap_or(&[]);
            let n = from.len().div_ceil(s).min(line.len() - zeros);
            line[..zeros].fill(0.0);
            line[zeros + n..].fill(0.0);
            let line = &mut line[zeros..zeros + n];
            match s {
                1 => line.copy_from_slice(&from[..n]),
                _ => line.iter_mut().zip(from.iter().step_by(s)).for_each(|(to, &x)| *to = x),
            }
        });
    }

    /// The inverse of [`fill`](Self::fill): pixels that no tap reads are zero.
    #[inline(always)]
    fn unfill(&self, padded: &Padded, map: &[f32], x: &mut [f32]) {
        let (s, width) = (self.stride, self.width);
        x.fill(0.0);
        self.for_each_line(padded, |at, row, zeros, column| {
            let Some(row) = row else { return };
            let line = &map[at + zeros..at + padded.pitch];
            let to = x[row * width..][..width].get_mut(column..).unwrap_or(&mut []);
            to.iter_mut().step_by(s).zip(line).for_each(|(to, &x)| *to = x);
        });
    }

    /// The output's gradient with zeros at the ends of rows.
    #[inline(always)]
    fn spread(&self, padded: &Padded, grad: &[f32], to: &mut [f32]) {
        let [_, width] = self.out_size();
        to.fill(0.0);
        let lines = to.chunks_mut(padded.pitch).zip(grad.chunks_exact(width));
        lines.for_each(|(to, from)| to[..width].copy_from_slice(from));
    }

    fn run(&self, x: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f32> {
        let (padded, [height, width]) = (self.padded(), self.out_size());
        let taps = padded.offsets.len();
        let plane = self.height * self.width;
        let mut y = vec![0.0; x.len() / plane.max(1) * height * width];
        let per_task = TASK.div_ceil(height * width);
        let work = |(task, y): (usize, &mut [f32])| {
            let (mut map, mut sums) = (vec![0.0; padded.len], vec![0.0; padded.pixels]);
            for (i, y) in y.chunks_exact_mut(height * width).enumerate() {
                let at = task * per_task + i;
                let c = at % self.channels;
                vectorized(
                    #[inline(always)]
                    || {
                        self.fill(&padded, &x[at * plane..][..plane], &mut map);
                        let weight = &weight[c * taps..][..taps];
                        match self.kernel {
                            3 => strips::<9>(weight, &padded.offsets, bias[c], &map, &mut sums),
                            5 => strips::<25>(weight, &padded.offsets, bias[c], &map, &mut sums),
                            _ => any_strips(weight, &padded.offsets, bias[c], &map, &mut sums),
                        }
                        let lines = y.chunks_exact_mut(width).zip(sums.chunks(padded.pitch));
                        lines.for_each(|(to, from)| to.copy_from_slice(&from[..width]));
                    },
                );
            }
        };
        y.par_chunks_mut(per_task * height * width).enumerate().for_each(work);
        y
    }

    fn input_gradient(&self, weight: &[f32], grad: &[f32]) -> Vec<f32> {
        let (padded, [height, width]) = (self.padded(), self.out_size());
        let taps = padded.offsets.len();
        let plane = self.height * self.width;
        let mut of_x = vec![0.0; grad.len() / (height * width) * plane];
        let per_task = TASK.div_ceil(height * width);
        let work = |(task, of_x): (usize, &mut [f32])| {
            let (mut map, mut spread) = (vec![0.0; padded.len], vec![0.0; padded.pixels]);
            for (i, of_x) in of_x.chunks_exact_mut(plane).enumerate() {
                let at = task * per_task + i;
                let weight = &weight[at % self.channels * taps..][..taps];
                vectorized(
                    #[inline(always)]
                    || {
                        let grad = &grad[at * height * width..][..height * width];
                        self.spread(&padded, grad, &mut spread);
                        map.fill(0.0);
                        for (&w, &offset) in weight.iter().zip(&padded.offsets) {
                            let to = map[offset..][..spread.len()].iter_mut();
                            to.zip(&spread).for_each(|(to, &g)| *to = g.fma(w, *to));
                        }
                        self.unfill(&padded, &map, of_x);
                    },
                );
            }
        };
        of_x.par_chunks_mut(per_task * plane).enumerate().for_each(work);
        of_x
    }

    /// The gradients of weight and bias.
    fn weight_gradient(&self, x: &[f32], grad: &[f32]) -> [Vec<f32>; 2] {
        let (padded, [height, width]) = (self.padded(), self.out_size());
        let (plane, pixels) = (self.height * self.width, height * width);
        let taps = padded.offsets.len();
        let (mut of_weight, mut of_bias) =
            (vec![0.0; self.channels * taps], vec![0.0; self.channels]);
        let channels = of_weight.par_chunks_exact_mut(taps).zip(&mut of_bias).enumerate();
        channels.for_each(|(c, (of_weight, of_bias))| {
            let (mut map, mut spread) = (vec![0.0; padded.len], vec![0.0; padded.pixels]);
            let images = x.chunks_exact(plane).zip(grad.chunks_exact(pixels));
            for (x, grad) in images.skip(c).step_by(self.channels) {
                vectorized(
                    #[inline(always)]
                    || {
                        self.fill(&padded, x, &mut map);
                        self.spread(&padded, grad, &mut spread);
                        for (of_tap, &offset) in of_weight.iter_mut().zip(&padded.offsets) {
                            let map = &map[offset..][..spread.len()];
                            *of_tap += sum_of_pairs(&spread, map, |g, x| g * x);
                        }
                        *of_bias += sum_of(grad, |g| g);
                    },
                );
            }
        });
        [of_weight, of_bias]
    }
}

/// The sums of `T` taps.
#[inline(always)]
fn strips<const T: usize>(
    weight: &[f32],
    offsets: &[usize],
    bias: f32,
    map: &[f32],
    sums: &mut [f32],
) {
    let weight: &[f32; T] = weight.try_into().expect("as many weights as taps");
    let offsets: &[usize; T] = offsets.try_into().expect("as many offsets as taps");
    for (at, sums) in sums.as_chunks_mut::<STRIP>().0.iter_mut().enumerate() {
        let mut strip = [bias; STRIP];
        for t in 0..T {
            let map: &[f32; STRIP] =
                map[offsets[t] + at * STRIP..][..STRIP].try_into().expect("a whole strip");
            for lane in 0..STRIP {
                strip[lane] = map[lane].fma(weight[t], strip[lane]);
            }
        }
        *sums = strip;
    }
}

/// [`strips`] of any number of taps.
#[inline(always)]
fn any_strips(weight: &[f32], offsets: &[usize], bias: f32, map: &[f32], sums: &mut [f32]) {
    for (at, sums) in sums.as_chunks_mut::<STRIP>().0.iter_mut().enumerate() {
        *sums = [bias; STRIP];
        for (&w, &offset) in weight.iter().zip(offsets) {
            let map = &map[offset + at * STRIP..][..STRIP];
            sums.iter_mut().zip(map).for_each(|(sum, &x)| *sum = x.fma(w, *sum));
        }
    }
}

/// `[x (b, c, h, w), weight (c, 1, k, k), bias (c)]`
impl Kernel<3> for Depthwise {
    type Saved = ();
    const READS: [bool; 3] = [true, true, false];

    fn forward(&self, [x, weight, bias]: [&[f32]; 3]) -> (Vec<f32>, ()) {
        (self.run(x, weight, bias), ())
    }

    fn backward(&self, pass: Pass<'_, (), 3>) -> [Option<Gradient>; 3] {
        let ([x, weight, _], [of_x, of_weight, of_bias]) = (pass.inputs, pass.wanted);
        let parameters = of_weight || of_bias;
        let [weights, biases] = match parameters.then(|| self.weight_gradient(x, pass.gradient)) {
            Some(gradients) => gradients.map(Some),
            None => [None, None],
        };
        [
            of_x.then(|| self.input_gradient(weight, pass.gradient)),
            weights.filter(|_| of_weight),
            biases.filter(|_| of_bias),
        ]
        .map(|gradient| gradient.map(Gradient::New))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::*;

    fn check(d: Depthwise, batch: usize) {
        let ([rows, columns], k) = (d.out_size(), d.kernel);
        let x = random(batch * d.channels * d.height * d.width, 1);
        let weight = random(d.channels * k * k, 2);
        let bias = random(d.channels, 3);
        let grad = random(batch * d.channels * rows * columns, 4);
        let (mut y, mut dx) = (vec![0.0f64; grad.len()], vec![0.0f64; x.len()]);
        let (mut dw, mut db) = (vec![0.0f64; weight.len()], vec![0.0f64; bias.len()]);
        for at in 0..grad.len() {
            let (map, i, j) = (at / (rows * columns), at / columns % rows, at % columns);
            let c = map % d.channels;
            y[at] += f64::from(bias[c]);
            db[c] += f64::from(grad[at]);
            for (u, v) in (0..k).flat_map(|u| (0..k).map(move |v| (u, v))) {
                let row = (i * d.stride + u).wrapping_sub(d.pad[0]);
                let column = (j * d.stride + v).wrapping_sub(d.pad[1]);
                if row < d.height && column < d.width {
                    let (from, tap) =
                        ((map * d.height + row) * d.width + column, (c * k + u) * k + v);
                    y[at] += f64::from(x[from]) * f64::from(weight[tap]);
                    dx[from] += f64::from(grad[at]) * f64::from(weight[tap]);
                    dw[tap] += f64::from(grad[at]) * f64::from(x[from]);
                }
            }
        }
        let near = |what: &str, ours: &[f32], exact: &[f64]| {
            assert_close_above(&format!("{what} of {d:?}"), ours, exact, 1e-5, 1e-3);
        };
        near("output", &d.run(&x, &weight, &bias), &y);
        near("input gradient", &d.input_gradient(&weight, &grad), &dx);
        let [of_weight, of_bias] = d.weight_gradient(&x, &grad);
        near("weight gradient", &of_weight, &dw);
        near("bias gradient", &of_bias, &db);
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
                    let channels = 1 + n % 3;
                    check(Depthwise { channels, height, width, kernel, stride, pad }, 1 + n % 2);
                    n += 1;
                }
            }
        }
        assert!(n > 200, "{n}");
    }

    #[test]
    fn several_tasks() {
        check(
            Depthwise { channels: 7, height: 80, width: 70, kernel: 3, stride: 1, pad: [1; 4] },
            2,
        );
        check(
            Depthwise {
                channels: 300,
                height: 6,
                width: 6,
                kernel: 5,
                stride: 2,
                pad: [1, 1, 2, 2],
            },
            3,
        );
    }

    #[test]
    fn threads_change_nothing() {
        let d =
            Depthwise { channels: 50, height: 30, width: 31, kernel: 5, stride: 1, pad: [2; 4] };
        let (x, weight, bias) = (random(100 * 930, 1), random(50 * 25, 2), random(50, 3));
        assert_same_on_threads(|| {
            let [of_weight, of_bias] = d.weight_gradient(&x, &x);
            vec![d.run(&x, &weight, &bias), d.input_gradient(&weight, &x), of_weight, of_bias]
        });
    }
}
