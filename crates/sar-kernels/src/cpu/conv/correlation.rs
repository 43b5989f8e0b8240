//! The convolution of tiles, and the gradient of its weight.

use std::borrow::Cow;
use std::cell::Cell;
use std::ops::Range;

use rayon::prelude::*;

use super::super::level::arch;
use super::super::rows::sum_in_order;
use super::super::simd::vectorized;
use super::products::{ByRows, Dots, ROWS, Strips, WIDEST};
use super::tile::{TILE, Tiling};

/// The fewest channels, of input and output, for which rows are made in pairs.
const PAIRS_CHANNELS: usize = 16;
/// The fewest pixels of an output.
const PAIRS_PIXELS: usize = 64;
/// The fewest pixels of a task of the weight's gradient: below, the sums of lanes cost more.
const PAIRS_TASK: usize = 512;
/// The multiply-adds that are worth another thread.
pub(super) const PARALLEL: usize = 100_000;

/// `y[i, j] = sum over c, u, v of w[u, v] x[s i + u + origin.0, s j + v + origin.1]`.
#[derive(Clone, Copy)]
pub(super) struct Correlation {
    pub(super) batch: usize,
    pub(super) c_in: usize,
    pub(super) c_out: usize,
    /// Height and width of the input.
    pub(super) source: [usize; 2],
    /// Height and width of the output.
    pub(super) out: [usize; 2],
    pub(super) kernel: [usize; 2],
    pub(super) stride: usize,
    pub(super) origin: [isize; 2],
}

thread_local! {
    /// What the tasks of a thread compute in, kept from one to the next.
    static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Runs `work` with this thread's scratch memory: its content is whatever was left there.
pub(in crate::cpu) fn with_scratch<R>(len: usize, work: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut scratch = SCRATCH.take();
    if scratch.len() < len {
        scratch.resize(len, 0.0);
    }
    let result = work(&mut scratch[..len]);
    SCRATCH.set(scratch);
    result
}

impl Correlation {
    /// Whether pairs of rows save more than their sums cost.
    pub(super) fn in_pairs(&self) -> bool {
        let (channels, [height, width]) = (self.c_in.min(self.c_out), self.out);
        let large = channels >= PAIRS_CHANNELS && height * width >= PAIRS_PIXELS && height > 1;
        large && self.kernel == [3, 3] && self.stride == 1
    }

    pub(super) fn run(&self, x: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let ([height, width], taps) = (self.out, self.kernel[0] * self.kernel[1]);
        let image = self.c_in * self.source[0] * self.source[1];
        assert_eq!(x.len(), self.batch * image, "images of a convolution");
        assert_eq!(weight.len(), self.c_out * self.c_in * taps, "kernels of a convolution");
        let mut y = vec![0.0; self.batch * self.c_out * height * width];
        if y.is_empty() || weight.is_empty() {
            return y;
        }
        let tiling = Tiling::new(*self, self.in_pairs());
        let weight = match tiling.pairs {
            true => Cow::Owned(tiling.paired(weight)),
            false => Cow::Borrowed(weight),
        };
        let weights_row = weight.len() / self.c_out;
        // Few tiles are split by channels of the output.
        let parts = 8usize.div_ceil(self.batch * tiling.tiles).min(self.c_out.div_ceil(32));
        let part = self.c_out.div_ceil(parts).next_multiple_of(ROWS);
        let parts = self.c_out.div_ceil(part);
        let bias = bias.map_or(Cow::Owned(vec![0.0; self.c_out]), Cow::Borrowed);
        let mut tasks: Vec<Vec<&mut [f32]>> = Vec::new();
        tasks.resize_with(self.batch * parts * tiling.tiles, Vec::new);
        for (at, plane) in y.chunks_exact_mut(height * width).enumerate() {
            let (b, o) = (at / self.c_out, at % self.c_out);
            for (tile, rows) in plane.chunks_mut(tiling.rows * width).enumerate() {
                tasks[(b * parts + o / part) * tiling.tiles + tile].push(rows);
            }
        }
        let work = |(at, planes): (usize, Vec<&mut [f32]>)| {
            let (at, tile) = (at / tiling.tiles, at % tiling.tiles);
            let (b, o) = (at / parts, at % parts * part);
            let x = &x[b * image..][..image];
            let weight = &weight[o * weights_row..][..planes.len() * weights_row];
            let bias = &bias[o..][..planes.len()];
            let first = tile * tiling.rows;
            let pixels = tiling.pixels(tiling.rows).next_multiple_of(WIDEST);
            // With one block of channels no sum waits for the next.
            let rows = if tiling.block == self.c_in { ROWS } else { planes.len() };
            let len = tiling.tile_len() + rows * tiling.products * pixels;
            with_scratch(len, |scratch| {
                self.run_tile(&tiling, [x, weight, bias], first, planes, scratch);
            });
        };
        if self.c_in * taps * self.batch * self.c_out * height * width < PARALLEL {
            tasks.into_iter().enumerate().for_each(work);
        } else {
            tasks.into_par_iter().enumerate().for_each(work);
        }
        y
    }

    /// Computes the output rows from `first` on, of some channels of an image.
    #[inline(always)]
    fn run_tile(
        &self,
        tiling: &Tiling,
        [x, weight, bias]: [&[f32]; 3],
        first: usize,
        mut planes: Vec<&mut [f32]>,
        scratch: &mut [f32],
    ) {
        let (arch, width) = (arch(), self.out[1]);
        let pixels = tiling.pixels(planes[0].len() / width);
        let (sums_row, products) = (pixels.next_multiple_of(WIDEST), tiling.products);
        let (taps, weights_row) = (tiling.taps, weight.len() / planes.len());
        let (tile, sums) = scratch.split_at_mut(tiling.tile_len());
        let source = self.source[0] * self.source[1];
        for (at, x) in x.chunks(tiling.block * source).enumerate() {
            tiling.fill(x, first, tile);
            let c = at * tiling.block;
            let last = c + tiling.block >= self.c_in;
            for (o, planes) in planes.chunks_mut(ROWS).enumerate() {
                let o = o * ROWS;
                let step = planes.len() * sums_row;
                let start = if tiling.block == self.c_in { 0 } else { o * products * sums_row };
                let sums = &mut sums[start..][..products * step];
                for (m, sums) in sums.chunks_exact_mut(step).enumerate() {
                    arch.dispatch(ByRows(Strips {
                        weights: &weight[o * weights_row + (m * self.c_in + c) * taps..],
                        weights_row,
                        offsets: &tiling.offsets[..x.len() / source * taps],
                        tile: &tile[m * tiling.phase..],
                        fresh: c == 0,
                        sums,
                        sums_row,
                        pixels,
                    }));
                }
                if last {
                    vectorized(
                        #[inline(always)]
                        || {
                            for (at, plane) in planes.iter_mut().enumerate() {
                                let sums = &mut sums[at * sums_row..];
                                tiling.finish(sums, step, bias[o + at], plane);
                            }
                        },
                    );
                }
            }
        }
    }

    /// The weight gradient, as the sum of partial ones of a number of chunks of images that depends
    /// on the shapes alone.
    pub(super) fn weight_gradient(&self, x: &[f32], grad_out: &[f32]) -> Vec<f32> {
        let ([height, width], taps) = (self.out, self.kernel[0] * self.kernel[1]);
        let image = self.c_in * self.source[0] * self.source[1];
        let grad_image = self.c_out * height * width;
        assert_eq!(x.len(), self.batch * image, "images of a convolution");
        assert_eq!(grad_out.len(), self.batch * grad_image, "gradients of a convolution");
        let len = self.c_out * self.c_in * taps;
        if grad_out.is_empty() || len == 0 {
            return vec![0.0; len];
        }
        // At least 256 pixels and at most 8 chunks: each has a gradient of its own to begin and to add.
        let chunk = 256usize.div_ceil(height * width).max(self.batch.div_ceil(8)).min(self.batch);
        let pairs = self.in_pairs() && chunk * height * width >= PAIRS_TASK;
        let tiling = Tiling::new(*self, pairs);
        let products = tiling.products;
        let grad_len = self.c_out * products * self.c_in * tiling.taps;
        // Several small images at a time, as each adds up its lanes once only.
        let pixels = (tiling.rows * tiling.pitch).next_multiple_of(WIDEST);
        let group = (TILE / (tiling.tiles * pixels)).clamp(1, chunk);
        let pixels = tiling.pixels(tiling.rows).next_multiple_of(WIDEST);
        let (xs, grads) = (chunk * image, chunk * grad_image);
        // Very few chunks are split by channels of the output, whose gradients are apart; each part
        // fills its tiles anew.
        let parts = 4usize.div_ceil(x.len().div_ceil(xs)).min(self.c_out.div_ceil(32));
        let part = self.c_out.div_ceil(parts).next_multiple_of(ROWS);
        let parts = self.c_out.div_ceil(part);
        let tile_len = tiling.tile_len();
        let work = |task: usize| {
            let (at, first) = (task / parts, task % parts * part);
            let outputs = first..(first + part).min(self.c_out);
            let x = &x[at * xs..][..xs.min(x.len() - at * xs)];
            let grad_out = &grad_out[at * grads..][..grads.min(grad_out.len() - at * grads)];
            let mut grad = vec![0.0; grad_len / self.c_out * outputs.len()];
            let grads_len = outputs.len() * products * pixels;
            with_scratch(group * (tile_len + grads_len), |scratch| {
                let (tile, grads) = scratch.split_at_mut(group * tile_len);
                self.add_weight_gradient(&tiling, x, (grad_out, outputs), &mut grad, tile, grads);
            });
            grad
        };
        let tasks = x.len().div_ceil(xs) * parts;
        let gradients: Vec<Vec<f32>> = if taps * self.c_in * grad_out.len() < PARALLEL {
            (0..tasks).map(work).collect()
        } else {
            (0..tasks).into_par_iter().map(work).collect()
        };
        let whole = |parts: &[Vec<f32>]| parts.concat();
        let gradients = match parts {
            1 => gradients,
            _ => gradients.chunks(parts).map(whole).collect(),
        };
        let grad = sum_in_order(gradients, grad_len);
        if tiling.pairs { tiling.unpaired(&grad) } else { grad }
    }

    /// Adds the weight gradient of some images, and of some channels of the output, to `grad`.
    #[inline(always)]
    fn add_weight_gradient(
        &self,
        tiling: &Tiling,
        x: &[f32],
        (grad_out, outputs): (&[f32], Range<usize>),
        grad: &mut [f32],
        tiles: &mut [f32],
        grads: &mut [f32],
    ) {
        let ([height, width], source) = (self.out, self.source[0] * self.source[1]);
        let images = x.len() / (self.c_in * source);
        let (products, taps) = (tiling.products, tiling.taps);
        let pixels = tiling.pixels(tiling.rows).next_multiple_of(WIDEST);
        let (grads_row, sums_row) = (products * pixels, products * self.c_in * taps);
        let (tile_len, grads_len) = (tiling.tile_len(), outputs.len() * grads_row);
        let group = tiles.len() / tile_len;
        let arch = arch();
        for start in (0..images).step_by(group) {
            let group = group.min(images - start);
            let (tiles, grads) = (&mut tiles[..group * tile_len], &mut grads[..group * grads_len]);
            for first in (0..height).step_by(tiling.rows) {
                let rows = tiling.rows.min(height - first);
                let of_image = |i| (start + i) * self.c_out * height * width;
                let plane = |i, o| &grad_out[of_image(i) + o * height * width..][..height * width];
                let planes = (0..group).flat_map(|i| outputs.clone().map(move |o| (i, o)));
                vectorized(
                    #[inline(always)]
                    || {
                        for ((i, o), to) in planes.zip(grads.chunks_exact_mut(grads_row)) {
                            let lines = &plane(i, o)[first * width..][..rows * width];
                            tiling.spread(lines, pixels, to);
                        }
                    },
                );
                for c in (0..self.c_in).step_by(tiling.block) {
                    let channels = tiling.block.min(self.c_in - c);
                    for (i, tile) in tiles.chunks_exact_mut(tile_len).enumerate() {
                        let x = &x[((start + i) * self.c_in + c) * source..][..channels * source];
                        tiling.fill(x, first, tile);
                    }
                    for (o, sums) in grad.chunks_mut(ROWS * sums_row).enumerate() {
                        let rows = sums.len() / sums_row;
                        for m in 0..products {
                            arch.dispatch(ByRows(Dots {
                                rows,
                                tiles: &tiles[m * tiling.phase..],
                                tile_len,
                                grads: &grads[o * ROWS * grads_row + m * pixels..],
                                grads_len,
                                grads_row,
                                pixels,
                                offsets: &tiling.offsets[..channels * taps],
                                sums: &mut sums[(m * self.c_in + c) * taps..],
                                sums_row,
                            }));
                        }
                    }
                }
            }
        }
    }
}
