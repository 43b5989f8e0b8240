//! Convolutions of images: `y[b, o, i, j] = bias[o] + sum over c, u, v of
//! w[o, c, u, v] x[b, c, s i + u - top, s j + v - left]`, zero outside of `x`.
//!
//! No matrix of patches is made. Tiles of the padded image are copied into rows of a fixed pitch,
//! so that with p = i pitch + j running over the pixels of a tile, every tap k = (c, u, v) reads
//! `tile[offset(k) + p]`: one contiguous slice for all the pixels, the ends of rows included, where
//! what is computed is dropped. The convolution and its gradient are then two products,
//!
//! - y[o, p] = sum over k of w[o, k] tile[offset(k) + p] (the input's gradient has this form, too),
//! - dw[o, k] = sum over p of dy[o, p] tile[offset(k) + p], where dy is zero at the ends of rows.
//!
//! A stride of s splits the tile in s by s phases, each a tile of its own: pixel (s i + u, s j + v)
//! is pixel (i + u / s, j + v / s) of phase (u mod s, v mod s).
//!
//! With enough channels and pixels, a kernel of 3 by 3 and stride 1 makes its rows in pairs, which
//! takes two thirds of the multiplications: Winograd's F(2, 3) down the columns (Lavin and Gray,
//! arXiv:1509.09308, section 4.1). With the rows d0 to d3 of the padded image and g0 to g2 of the
//! kernel, a pair of rows is (m0 + m1 + m2, m1 - m2 - m3), where m0 to m3 are the convolutions of
//!
//! - the rows d0 - d2, d1 + d2, d2 - d1 and d1 - d3, each a phase of the tile, with
//! - the kernels of one row g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2 and g2.
//!
//! The weight's gradient is that of these steps: from the gradients e0, e0 + e1, e0 - e1 and -e1 of
//! m0 to m3 that of the kernels of one row, and from these that of the weight.

use std::array::from_fn;
use std::borrow::Cow;
use std::cell::Cell;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::kernel::{Gradient, Kernel, Pass};
use super::rows::sum_in_order;
use super::simd::{sum_of, vectorised};

/// Geometry of a square convolution.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conv {
    pub(crate) batch: usize,
    pub(crate) c_in: usize,
    pub(crate) c_out: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
    /// Side of the kernel.
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    /// Rows or columns of zeros around the input: top, left, bottom, right.
    pub(crate) pad: [usize; 4],
}

impl Conv {
    /// Height and width of the output.
    pub(crate) fn out_size(&self) -> [usize; 2] {
        let [top, left, bottom, right] = self.pad;
        [
            (self.height + top + bottom - self.kernel) / self.stride + 1,
            (self.width + left + right - self.kernel) / self.stride + 1,
        ]
    }

    /// The convolution of `x` `[batch, c_in, height, width]` with `weight`
    /// `[c_out, c_in, kernel, kernel]`, plus `bias` `[c_out]`.
    pub(crate) fn forward(&self, x: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        self.flat().correlation().run(x, weight, bias)
    }

    /// The gradient of the input from that of the output.
    ///
    /// Pixel i = s q + a of a side takes part in output pixel o through tap u = i + pad - s o. So
    /// the pixels of one phase a see the taps u = first, first + s, ... alone, with
    /// first = (a + pad) mod s, and the output pixels
    /// o = q + (a + pad - first) / s - (u - first) / s: for each phase a
    /// correlation of stride 1 with its taps in reverse.
    pub(crate) fn input_gradient(&self, weight: &[f32], grad_out: &[f32]) -> Vec<f32> {
        let conv = self.flat();
        let (s, [height, width]) = (self.stride, [conv.height, conv.width]);
        let phase = |a: usize, side: usize, pad: usize| {
            let first = (a + pad) % s;
            let taps = self.kernel.saturating_sub(first).div_ceil(s);
            let origin = ((a + pad - first) / s) as isize - (taps as isize - 1);
            (first, taps, origin, side.saturating_sub(a).div_ceil(s))
        };
        let mut grad = Vec::new();
        for (a, b) in (0..s).flat_map(|a| (0..s).map(move |b| (a, b))) {
            let (first_row, row_taps, top, rows) = phase(a, height, self.pad[0]);
            let (first_col, col_taps, left, cols) = phase(b, width, self.pad[1]);
            let part = Correlation {
                batch: self.batch,
                c_in: self.c_out,
                c_out: self.c_in,
                source: conv.out_size(),
                out: [rows, cols],
                kernel: [row_taps, col_taps],
                stride: 1,
                origin: [top, left],
            };
            // [c_in, c_out, taps], where the weight is [c_out, c_in, kernel, kernel].
            let (taps, square) = (row_taps * col_taps, self.kernel * self.kernel);
            let tap =
                |t| (first_row + t / col_taps * s) * self.kernel + first_col + t % col_taps * s;
            let order: Vec<usize> = (0..taps).rev().map(tap).collect();
            let row = self.c_out * taps;
            let mut reverse = vec![0.0; self.c_in * row];
            let rows = 16;
            let fill = |(at, reverse): (usize, &mut [f32])| {
                for (o, kernels) in weight.chunks_exact(self.c_in * square).enumerate() {
                    let kernels = kernels[at * rows * square..].chunks_exact(square);
                    for (kernel, to) in kernels.zip(reverse.chunks_exact_mut(row)) {
                        let to = to[o * taps..][..taps].iter_mut();
                        to.zip(&order).for_each(|(to, &tap)| *to = kernel[tap]);
                    }
                }
            };
            if reverse.len() < PARALLEL {
                reverse.chunks_mut(rows * row.max(1)).enumerate().for_each(fill);
            } else {
                reverse.par_chunks_mut(rows * row).enumerate().for_each(fill);
            }
            let part = part.run(grad_out, &reverse, None);
            if s == 1 {
                return part;
            }
            grad.resize(self.batch * self.c_in * height * width, 0.0);
            if cols == 0 {
                continue;
            }
            let planes = grad.chunks_exact_mut(height * width);
            let lines = planes.flat_map(|plane| plane.chunks_exact_mut(width).skip(a).step_by(s));
            for (line, part) in lines.zip(part.chunks_exact(cols)) {
                line.iter_mut().skip(b).step_by(s).zip(part).for_each(|(to, &from)| *to = from);
            }
        }
        grad
    }

    /// The gradient of the weight from that of the output.
    pub(crate) fn weight_gradient(&self, x: &[f32], grad_out: &[f32]) -> Vec<f32> {
        self.flat().correlation().weight_gradient(x, grad_out)
    }

    /// The gradient of the bias from that of the output: its sum per channel.
    pub(crate) fn bias_gradient(&self, grad_out: &[f32]) -> Vec<f32> {
        let [height, width] = self.out_size();
        let pixels = height * width;
        let channel = |o: usize| {
            let planes = grad_out.chunks_exact(pixels).skip(o).step_by(self.c_out);
            let rows = planes.flat_map(|plane| plane.chunks(1024));
            vectorised(
                #[inline(always)]
                || rows.map(|row| f64::from(sum_of(row, |g| g))).sum::<f64>() as f32,
            )
        };
        if grad_out.len() < 1 << 16 {
            (0..self.c_out).map(channel).collect()
        } else {
            (0..self.c_out).into_par_iter().map(channel).collect()
        }
    }

    /// A small image under a kernel of one pixel is one row.
    fn flat(&self) -> Self {
        let pixels = self.height * self.width;
        match self.kernel == 1 && self.stride == 1 && self.pad == [0; 4] && pixels <= TILE {
            true => Self { height: 1, width: pixels, ..*self },
            false => *self,
        }
    }

    fn correlation(&self) -> Correlation {
        Correlation {
            batch: self.batch,
            c_in: self.c_in,
            c_out: self.c_out,
            source: [self.height, self.width],
            out: self.out_size(),
            kernel: [self.kernel; 2],
            stride: self.stride,
            origin: [-(self.pad[0] as isize), -(self.pad[1] as isize)],
        }
    }
}

/// Output channels computed at a time, each for 2 vectors of pixels (forward) or 2 taps (weight
/// gradient): 12 accumulators, which with their operands fill 15 of 16 registers. With fewer
/// channels there are more vectors or taps.
const ROWS: usize = 6;
/// The lanes of the widest vectors.
const WIDEST: usize = 16;
/// About as many pixels are in a tile.
const TILE: usize = 1056;
/// About as many taps, and at most as many channels, are summed up at a time: 32 channels of a
/// kernel of 3 by 3, whose tile of 150 KB (in pairs of rows 270) stays in the second cache.
const BLOCK: [usize; 2] = [288, 96];
/// The fewest channels, of input and output, for which rows are made in pairs.
const PAIRS_CHANNELS: usize = 16;
/// The fewest pixels of an output.
const PAIRS_PIXELS: usize = 64;
/// The fewest pixels of a task of the weight's gradient: below, the sums of lanes cost more.
const PAIRS_TASK: usize = 512;
/// The multiply-adds that are worth another thread.
const PARALLEL: usize = 100_000;

/// `y[i, j] = sum over c, u, v of w[u, v] x[s i + u + origin.0, s j + v + origin.1]`.
struct Correlation {
    batch: usize,
    c_in: usize,
    c_out: usize,
    source: [usize; 2],
    out: [usize; 2],
    kernel: [usize; 2],
    stride: usize,
    origin: [isize; 2],
}

/// How tiles of output rows see their input (see the module's words).
struct Layout {
    /// Whether rows are made in pairs.
    pairs: bool,
    /// Output rows of a tile (the last may have fewer).
    rows: usize,
    /// Number of tiles in an image.
    tiles: usize,
    /// Input channels in a tile at a time.
    block: usize,
    /// From one output row, or pair of rows, to the next.
    pitch: usize,
    /// Rows of a phase.
    phase_rows: usize,
    /// Elements of a channel, all phases.
    channel: usize,
    /// Taps of a channel in each product.
    taps: usize,
    /// For each of the products that make a plane, where the taps of a block of channels read the
    /// first pixel.
    offsets: Vec<Vec<usize>>,
}

impl Layout {
    /// The pixels of each product that makes `rows` rows of a plane.
    fn pixels(&self, rows: usize) -> usize {
        self.pitch * if self.pairs { rows.div_ceil(2) } else { rows }
    }

    /// Makes the rows of a plane from the sums of their products, which begin at 0, `step`, ...
    #[inline(always)]
    fn finish(&self, sums: &[f32], step: usize, bias: f32, width: usize, plane: &mut [f32]) {
        if !self.pairs {
            for (line, sums) in plane.chunks_exact_mut(width).zip(sums.chunks(self.pitch)) {
                line.iter_mut().zip(sums).for_each(|(y, sum)| *y = sum + bias);
            }
            return;
        }
        for (at, pair) in plane.chunks_mut(2 * width).enumerate() {
            let m: [&[f32]; 4] = from_fn(|m| &sums[m * step + at * self.pitch..][..width]);
            let (upper, lower) = pair.split_at_mut(width);
            for (j, y) in upper.iter_mut().enumerate() {
                *y = m[0][j] + m[1][j] + m[2][j] + bias;
            }
            for (j, y) in lower.iter_mut().enumerate() {
                *y = m[1][j] - m[2][j] - m[3][j] + bias;
            }
        }
    }

    /// Makes the gradients of the products, each of `pixels`, from those of the rows of a plane.
    #[inline(always)]
    fn spread(&self, plane: &[f32], width: usize, pixels: usize, grads: &mut [f32]) {
        let rows = if self.pairs { 2 } else { 1 };
        for (m, grads) in grads.chunks_exact_mut(pixels).enumerate() {
            let lines = plane.chunks(rows * width);
            grads[lines.len() * self.pitch..].fill(0.0);
            for (lines, to) in lines.zip(grads.chunks_exact_mut(self.pitch)) {
                let (upper, lower) = lines.split_at(width);
                let (to, end) = to.split_at_mut(width);
                end.fill(0.0);
                match m {
                    3 => to.fill(0.0),
                    _ => to.copy_from_slice(upper),
                }
                match m {
                    0 => {}
                    1 => to.iter_mut().zip(lower).for_each(|(to, e)| *to += e),
                    _ => to.iter_mut().zip(lower).for_each(|(to, e)| *to -= e),
                }
            }
        }
    }
}

thread_local! {
    /// What the tasks of a thread compute in, kept from one to the next.
    static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Runs `work` with this thread's scratch memory: its content is whatever was left there.
fn with_scratch<R>(len: usize, work: impl FnOnce(&mut [f32]) -> R) -> R {
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
    fn in_pairs(&self) -> bool {
        let (channels, [height, width]) = (self.c_in.min(self.c_out), self.out);
        let large = channels >= PAIRS_CHANNELS && height * width >= PAIRS_PIXELS && height > 1;
        large && self.kernel == [3, 3] && self.stride == 1
    }

    fn layout(&self, pairs: bool) -> Layout {
        let ([_, width], [kernel_rows, kernel_cols], s) = (self.out, self.kernel, self.stride);
        let halo = [kernel_rows.saturating_sub(1) / s, kernel_cols.saturating_sub(1) / s];
        // The zeros right of a row can be those left of the next one.
        let left = -self.origin[1];
        let right = (width + halo[1]) as isize + self.origin[1] - self.source[1] as isize;
        let shared = if s == 1 { left.min(right).clamp(0, halo[1] as isize) as usize } else { 0 };
        let pitch = width + halo[1] - shared;
        let unit = if pairs { 2 } else { 1 };
        let units = self.out[0].div_ceil(unit);
        let tiles = (units * unit * pitch).div_ceil(TILE).min(units).max(1);
        let rows = units.div_ceil(tiles) * unit;
        let tiles = self.out[0].div_ceil(rows.max(1));
        let block =
            (BLOCK[0] / (kernel_rows * kernel_cols).max(1)).clamp(1, BLOCK[1]).min(self.c_in);
        let (phases, phase_rows, kernel_rows) = match pairs {
            true => (4, rows / 2, 1),
            false => (s * s, rows + halo[0], kernel_rows),
        };
        let phase = phase_rows * pitch;
        let channel = phases * phase;
        let mut offsets = vec![Vec::new(); if pairs { 4 } else { 1 }];
        for (product, offsets) in offsets.iter_mut().enumerate() {
            for c in 0..block {
                for u in 0..kernel_rows {
                    for v in 0..kernel_cols {
                        let start = c * channel + (product + u % s * s + v % s) * phase;
                        offsets.push(start + (u / s) * pitch + v / s);
                    }
                }
            }
        }
        let taps = kernel_rows * kernel_cols;
        Layout { pairs, rows, tiles, block, pitch, phase_rows, channel, taps, offsets }
    }

    /// Copies the channels of `image` that `tile` has room for, from output row `first` on.
    #[inline(always)]
    fn fill(&self, layout: &Layout, image: &[f32], first: usize, tile: &mut [f32]) {
        if layout.pairs {
            return vectorised(
                #[inline(always)]
                || self.fill_pairs(layout, image, first, tile),
            );
        }
        let ([height, width], s, pitch) = (self.source, self.stride, layout.pitch);
        let used = image.len() / (height * width) * layout.channel;
        // The shared zeros of the last row; no other pixel that is kept reads beyond the channels.
        tile[used..].fill(0.0);
        let planes = image.chunks_exact(height * width);
        for (plane, to) in planes.zip(tile.chunks_exact_mut(layout.channel)) {
            for (at, line) in to.chunks_exact_mut(pitch).enumerate() {
                let (phase, row) = (at / layout.phase_rows, at % layout.phase_rows);
                let row = ((first + row) * s + phase / s) as isize + self.origin[0];
                if row < 0 || row >= height as isize {
                    line.fill(0.0);
                    continue;
                }
                let from = &plane[row as usize * width..][..width];
                let start = (phase % s) as isize + self.origin[1];
                let zeros = (-start.min(0)).unsigned_abs().div_ceil(s).min(pitch);
                let from = from.get((start + (zeros * s) as isize) as usize..).unwrap_or(&[]);
                let len = from.len().div_ceil(s).min(pitch - zeros);
                line[..zeros].fill(0.0);
                line[zeros + len..].fill(0.0);
                let line = &mut line[zeros..zeros + len];
                if s == 1 {
                    line.copy_from_slice(&from[..len]);
                } else if s == 2 && len > 0 {
                    // The last one may be alone.
                    let pairs = from.as_chunks::<2>().0;
                    line.iter_mut().zip(pairs).for_each(|(to, pair)| *to = pair[0]);
                    line[len - 1] = from[2 * (len - 1)];
                } else {
                    line.iter_mut().zip(from.iter().step_by(s)).for_each(|(to, &x)| *to = x);
                }
            }
        }
    }

    /// [`Self::fill`] with the four combinations of rows of each pair.
    #[inline(always)]
    fn fill_pairs(&self, layout: &Layout, image: &[f32], first: usize, tile: &mut [f32]) {
        let ([height, width], pitch) = (self.source, layout.pitch);
        let (tile, zeros) = tile.split_at_mut(image.len() / (height * width) * layout.channel);
        // The shared zeros of the last row, and rows outside of the image.
        zeros.fill(0.0);
        let (left, from) = (-self.origin[1].min(0), self.origin[1].max(0));
        let (left, from) = ((left as usize).min(pitch), (from as usize).min(width));
        let len = (width - from).min(pitch - left);
        let planes = image.chunks_exact(height * width);
        for (plane, to) in planes.zip(tile.chunks_exact_mut(layout.channel)) {
            for pair in 0..layout.phase_rows {
                let rows: [&[f32]; 4] = from_fn(|u| {
                    let row = (first + 2 * pair + u) as isize + self.origin[0];
                    match row >= 0 && row < height as isize {
                        true => &plane[row as usize * width..][from..from + len],
                        false => &zeros[..len],
                    }
                });
                let sums = [(0, 2, -1.0), (1, 2, 1.0), (2, 1, -1.0), (1, 3, -1.0)];
                for (phase, (a, b, sign)) in sums.into_iter().enumerate() {
                    let line = &mut to[(phase * layout.phase_rows + pair) * pitch..][..pitch];
                    line[..left].fill(0.0);
                    line[left + len..].fill(0.0);
                    let line = line[left..].iter_mut();
                    for ((to, a), b) in line.zip(rows[a]).zip(rows[b]) {
                        *to = a + sign * b;
                    }
                }
            }
        }
    }

    /// The kernels of the products of pairs of rows, `[c_out, 4, c_in, 3]`.
    fn paired(&self, weight: &[f32]) -> Vec<f32> {
        let row = 3 * self.c_in;
        let mut paired = vec![0.0; self.c_out * 4 * row];
        let products = paired.par_chunks_exact_mut(4 * row).zip(weight.par_chunks_exact(3 * row));
        products.with_min_len(64).for_each(|(products, kernels)| {
            let products = products.as_chunks_mut::<3>().0;
            for (c, g) in kernels.as_chunks::<9>().0.iter().enumerate() {
                for v in 0..3 {
                    let (outer, middle) = (0.5 * (g[v] + g[6 + v]), 0.5 * g[3 + v]);
                    let m = [g[v], outer + middle, outer - middle, g[6 + v]];
                    (0..4).for_each(|i| products[i * self.c_in + c][v] = m[i]);
                }
            }
        });
        paired
    }

    /// The gradient of the weight from that of [`Self::paired`].
    fn unpaired(&self, grad: &[f32]) -> Vec<f32> {
        let mut weight = vec![0.0; grad.len() / 4 * 3];
        let kernels = weight.par_chunks_exact_mut(9 * self.c_in);
        let products = grad.par_chunks_exact(12 * self.c_in);
        kernels.zip(products).with_min_len(64).for_each(|(kernels, products)| {
            let products = products.as_chunks::<3>().0;
            for (c, g) in kernels.as_chunks_mut::<9>().0.iter_mut().enumerate() {
                for v in 0..3 {
                    let m: [f32; 4] = from_fn(|i| products[i * self.c_in + c][v]);
                    let (outer, middle) = (0.5 * (m[1] + m[2]), 0.5 * (m[1] - m[2]));
                    [g[v], g[3 + v], g[6 + v]] = [m[0] + outer, middle, m[3] + outer];
                }
            }
        });
        weight
    }

    /// The length of a tile of as many channels as it takes, with what the last strip reads beyond.
    fn tile_len(&self, layout: &Layout) -> usize {
        layout.block * layout.channel + layout.pitch + ROWS * WIDEST
    }

    fn run(&self, x: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let ([height, width], taps) = (self.out, self.kernel[0] * self.kernel[1]);
        let image = self.c_in * self.source[0] * self.source[1];
        assert_eq!(x.len(), self.batch * image, "images of a convolution");
        assert_eq!(weight.len(), self.c_out * self.c_in * taps, "kernels of a convolution");
        let mut y = vec![0.0; self.batch * self.c_out * height * width];
        if y.is_empty() || weight.is_empty() {
            return y;
        }
        let layout = self.layout(self.in_pairs());
        let weight = match layout.pairs {
            true => Cow::Owned(self.paired(weight)),
            false => Cow::Borrowed(weight),
        };
        let weights_row = weight.len() / self.c_out;
        // Few tiles are split by channels of the output.
        let parts = 8usize.div_ceil(self.batch * layout.tiles).min(self.c_out.div_ceil(32));
        let part = self.c_out.div_ceil(parts).next_multiple_of(ROWS);
        let parts = self.c_out.div_ceil(part);
        let bias = bias.map_or(Cow::Owned(vec![0.0; self.c_out]), Cow::Borrowed);
        let mut tasks: Vec<Vec<&mut [f32]>> = Vec::new();
        tasks.resize_with(self.batch * parts * layout.tiles, Vec::new);
        for (at, plane) in y.chunks_exact_mut(height * width).enumerate() {
            let (b, o) = (at / self.c_out, at % self.c_out);
            for (tile, rows) in plane.chunks_mut(layout.rows * width).enumerate() {
                tasks[(b * parts + o / part) * layout.tiles + tile].push(rows);
            }
        }
        let work = |(at, planes): (usize, Vec<&mut [f32]>)| {
            let (at, tile) = (at / layout.tiles, at % layout.tiles);
            let (b, o) = (at / parts, at % parts * part);
            let x = &x[b * image..][..image];
            let weight = &weight[o * weights_row..][..planes.len() * weights_row];
            let bias = &bias[o..][..planes.len()];
            let first = tile * layout.rows;
            let pixels = layout.pixels(layout.rows).next_multiple_of(WIDEST);
            // With one block of channels no sum waits for the next.
            let rows = if layout.block == self.c_in { ROWS } else { planes.len() };
            let len = self.tile_len(&layout) + rows * layout.offsets.len() * pixels;
            with_scratch(len, |scratch| {
                self.run_tile(&layout, [x, weight, bias], first, planes, scratch);
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
        layout: &Layout,
        [x, weight, bias]: [&[f32]; 3],
        first: usize,
        mut planes: Vec<&mut [f32]>,
        scratch: &mut [f32],
    ) {
        let (arch, width) = (Arch::new(), self.out[1]);
        let pixels = layout.pixels(planes[0].len() / width);
        let (sums_row, products) = (pixels.next_multiple_of(WIDEST), layout.offsets.len());
        let (taps, weights_row) = (layout.taps, weight.len() / planes.len());
        let (tile, sums) = scratch.split_at_mut(self.tile_len(layout));
        let source = self.source[0] * self.source[1];
        for (at, x) in x.chunks(layout.block * source).enumerate() {
            self.fill(layout, x, first, tile);
            let c = at * layout.block;
            let last = c + layout.block >= self.c_in;
            for (o, planes) in planes.chunks_mut(ROWS).enumerate() {
                let o = o * ROWS;
                let step = planes.len() * sums_row;
                let start = if layout.block == self.c_in { 0 } else { o * products * sums_row };
                let sums = &mut sums[start..][..products * step];
                for (m, sums) in sums.chunks_exact_mut(step).enumerate() {
                    arch.dispatch(ByRows(Strips {
                        weights: &weight[o * weights_row + (m * self.c_in + c) * taps..],
                        weights_row,
                        offsets: &layout.offsets[m][..x.len() / source * taps],
                        tile,
                        fresh: c == 0,
                        sums,
                        sums_row,
                        pixels,
                    }));
                }
                if last {
                    vectorised(
                        #[inline(always)]
                        || {
                            for (at, plane) in planes.iter_mut().enumerate() {
                                let sums = &sums[at * sums_row..];
                                layout.finish(sums, step, bias[o + at], width, plane);
                            }
                        },
                    );
                }
            }
        }
    }

    /// The weight gradient, as the sum of partial ones of a number of chunks of images that depends
    /// on the shapes alone.
    fn weight_gradient(&self, x: &[f32], grad_out: &[f32]) -> Vec<f32> {
        let ([height, width], taps) = (self.out, self.kernel[0] * self.kernel[1]);
        let image = self.c_in * self.source[0] * self.source[1];
        let grad_image = self.c_out * height * width;
        assert_eq!(x.len(), self.batch * image, "images of a convolution");
        assert_eq!(grad_out.len(), self.batch * grad_image, "gradients of a convolution");
        let len = self.c_out * self.c_in * taps;
        if grad_out.is_empty() || len == 0 {
            return vec![0.0; len];
        }
        // At least 256 pixels and at most 16 chunks.
        let chunk = 256usize.div_ceil(height * width).max(self.batch.div_ceil(16)).min(self.batch);
        let layout = self.layout(self.in_pairs() && chunk * height * width >= PAIRS_TASK);
        let products = layout.offsets.len();
        let grad_len = self.c_out * products * self.c_in * layout.taps;
        // Several small images at a time, as each adds up its lanes once only.
        let pixels = (layout.rows * layout.pitch).next_multiple_of(WIDEST);
        let group = (TILE / (layout.tiles * pixels)).clamp(1, chunk);
        let pixels = layout.pixels(layout.rows).next_multiple_of(WIDEST);
        let (tile_len, grads_len) = (self.tile_len(&layout), self.c_out * products * pixels);
        let work = |(x, grad_out): (&[f32], &[f32])| {
            let mut grad = vec![0.0; grad_len];
            with_scratch(group * (tile_len + grads_len), |scratch| {
                let (tile, grads) = scratch.split_at_mut(group * tile_len);
                self.add_weight_gradient(&layout, x, grad_out, &mut grad, tile, grads);
            });
            grad
        };
        let (xs, grads) = (chunk * image, chunk * grad_image);
        let parts: Vec<Vec<f32>> = if taps * self.c_in * grad_out.len() < PARALLEL {
            x.chunks(xs).zip(grad_out.chunks(grads)).map(work).collect()
        } else {
            x.par_chunks(xs).zip(grad_out.par_chunks(grads)).map(work).collect()
        };
        let grad = sum_in_order(parts, grad_len);
        if layout.pairs { self.unpaired(&grad) } else { grad }
    }

    /// Adds the weight gradient of some images to `grad`.
    #[inline(always)]
    fn add_weight_gradient(
        &self,
        layout: &Layout,
        x: &[f32],
        grad_out: &[f32],
        grad: &mut [f32],
        tiles: &mut [f32],
        grads: &mut [f32],
    ) {
        let ([height, width], source) = (self.out, self.source[0] * self.source[1]);
        let images = x.len() / (self.c_in * source);
        let (products, taps) = (layout.offsets.len(), layout.taps);
        let pixels = layout.pixels(layout.rows).next_multiple_of(WIDEST);
        let (grads_row, sums_row) = (products * pixels, products * self.c_in * taps);
        let (tile_len, grads_len) = (self.tile_len(layout), self.c_out * grads_row);
        let group = tiles.len() / tile_len;
        let arch = Arch::new();
        for start in (0..images).step_by(group) {
            let group = group.min(images - start);
            let (tiles, grads) = (&mut tiles[..group * tile_len], &mut grads[..group * grads_len]);
            for first in (0..height).step_by(layout.rows) {
                let rows = layout.rows.min(height - first);
                let planes = grad_out[start * self.c_out * height * width..].chunks(height * width);
                vectorised(
                    #[inline(always)]
                    || {
                        for (plane, to) in planes.zip(grads.chunks_exact_mut(grads_row)) {
                            let lines = &plane[first * width..][..rows * width];
                            layout.spread(lines, width, pixels, to);
                        }
                    },
                );
                for c in (0..self.c_in).step_by(layout.block) {
                    let channels = layout.block.min(self.c_in - c);
                    for (i, tile) in tiles.chunks_exact_mut(tile_len).enumerate() {
                        let x = &x[((start + i) * self.c_in + c) * source..][..channels * source];
                        self.fill(layout, x, first, tile);
                    }
                    for (o, sums) in grad.chunks_mut(ROWS * sums_row).enumerate() {
                        let rows = sums.len() / sums_row;
                        for (m, offsets) in layout.offsets.iter().enumerate() {
                            arch.dispatch(ByRows(Dots {
                                rows,
                                tiles,
                                tile_len,
                                grads,
                                grads_len,
                                grads_row,
                                first: o * ROWS * grads_row + m * pixels,
                                pixels,
                                offsets: &offsets[..channels * taps],
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

/// A product of up to [`ROWS`] rows.
trait Product {
    fn n_rows(&self) -> usize;

    /// The product of `M` rows, `N` vectors of pixels or taps at a time.
    fn rows<S: Simd, const M: usize, const N: usize>(self, simd: S);
}

/// Runs a product with as many vectors or taps at a time as its rows leave registers for.
struct ByRows<P>(P);

impl<P: Product> WithSimd for ByRows<P> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match self.0.n_rows() {
            1 => self.0.rows::<S, 1, 4>(simd),
            2 => self.0.rows::<S, 2, 4>(simd),
            3 => self.0.rows::<S, 3, 3>(simd),
            4 => self.0.rows::<S, 4, 2>(simd),
            5 => self.0.rows::<S, 5, 2>(simd),
            _ => self.0.rows::<S, ROWS, 2>(simd),
        }
    }
}

/// `sums[m, p] += sum over k of weights[m, k] tile[offsets[k] + p]`, for up to `ROWS` rows m.
struct Strips<'a> {
    weights: &'a [f32],
    /// From one row of weights to the next.
    weights_row: usize,
    offsets: &'a [usize],
    tile: &'a [f32],
    /// Whether the sums begin with zero, whatever they are.
    fresh: bool,
    /// As many rows as there are sums for.
    sums: &'a mut [f32],
    sums_row: usize,
    pixels: usize,
}

impl Product for Strips<'_> {
    fn n_rows(&self) -> usize {
        self.sums.len() / self.sums_row
    }

    #[inline(always)]
    fn rows<S: Simd, const M: usize, const N: usize>(mut self, simd: S) {
        let mut p = 0;
        while p + (N - 1) * S::F32_LANES < self.pixels {
            self.strip::<S, M, N>(simd, p);
            p += N * S::F32_LANES;
        }
        while p < self.pixels {
            self.strip::<S, M, 1>(simd, p);
            p += S::F32_LANES;
        }
    }
}

impl Strips<'_> {
    /// The sums of `N` vectors of pixels from `p` on.
    #[inline(always)]
    fn strip<S: Simd, const M: usize, const N: usize>(&mut self, simd: S, p: usize) {
        let (offsets, tile, width) = (self.offsets, &self.tile[p..], N * S::F32_LANES);
        let weights: [&[f32]; M] =
            from_fn(|m| &self.weights[m * self.weights_row..][..offsets.len()]);
        let mut acc = [[simd.splat_f32s(0.0); N]; M];
        if !self.fresh {
            for (m, acc) in acc.iter_mut().enumerate() {
                let sums = &self.sums[m * self.sums_row + p..][..width];
                acc.copy_from_slice(S::as_simd_f32s(sums).0);
            }
        }
        for k in 0..offsets.len() {
            let x = S::as_simd_f32s(&tile[offsets[k]..][..width]).0;
            let x: [S::f32s; N] = from_fn(|n| x[n]);
            for m in 0..M {
                let weight = simd.splat_f32s(weights[m][k]);
                for n in 0..N {
                    acc[m][n] = simd.mul_add_f32s(weight, x[n], acc[m][n]);
                }
            }
        }
        for (m, acc) in acc.iter().enumerate() {
            let sums = &mut self.sums[m * self.sums_row + p..][..width];
            S::as_mut_simd_f32s(sums).0.copy_from_slice(acc);
        }
    }
}

/// `sums[m, t] += sum over images i, p of grads[i][m, p] tiles[i][offsets[t] + p]`, for up to
/// `ROWS` rows m.
struct Dots<'a> {
    rows: usize,
    /// For each image a tile of this length.
    tiles: &'a [f32],
    tile_len: usize,
    /// For each image gradients of this length, of which the rows begin at `first`.
    grads: &'a [f32],
    grads_len: usize,
    /// From one row of gradients to the next.
    grads_row: usize,
    first: usize,
    pixels: usize,
    offsets: &'a [usize],
    sums: &'a mut [f32],
    sums_row: usize,
}

impl Product for Dots<'_> {
    fn n_rows(&self) -> usize {
        self.rows
    }

    #[inline(always)]
    fn rows<S: Simd, const M: usize, const N: usize>(self, simd: S) {
        for (k, offsets) in self.offsets.chunks(N).enumerate() {
            // A tap beyond the offsets repeats the last.
            let offsets: [usize; N] = from_fn(|t| offsets[t.min(offsets.len() - 1)]);
            let mut acc = [[simd.splat_f32s(0.0); N]; M];
            let tiles = self.tiles.chunks_exact(self.tile_len);
            for (tile, grads) in tiles.zip(self.grads.chunks_exact(self.grads_len)) {
                let grads: [&[S::f32s]; M] = from_fn(|m| {
                    let start = self.first + m * self.grads_row;
                    S::as_simd_f32s(&grads[start..][..self.pixels]).0
                });
                let xs = offsets.map(|offset| S::as_simd_f32s(&tile[offset..][..self.pixels]).0);
                for p in 0..self.pixels / S::F32_LANES {
                    let x = xs.map(|x| x[p]);
                    for m in 0..M {
                        for t in 0..N {
                            acc[m][t] = simd.mul_add_f32s(grads[m][p], x[t], acc[m][t]);
                        }
                    }
                }
            }
            for m in 0..M {
                let sums = self.sums[m * self.sums_row..].iter_mut().skip(k * N);
                for (sum, acc) in sums.zip(acc[m]).take(self.offsets.len() - k * N) {
                    *sum += simd.reduce_sum_f32s(acc);
                }
            }
        }
    }
}

/// `[x (b, c, h, w), weight (o, c, k, k), bias (o)]`
impl Kernel<3> for Conv {
    type Saved = ();
    const READS: [bool; 3] = [true, true, false];

    fn forward(&self, [x, weight, bias]: [&[f32]; 3]) -> (Vec<f32>, ()) {
        (self.forward(x, weight, Some(bias)), ())
    }

    fn backward(&self, pass: Pass<'_, (), 3>) -> [Option<Gradient>; 3] {
        let ([x, weight, _], [of_x, of_weight, of_bias]) = (pass.inputs, pass.wanted);
        [
            of_x.then(|| self.input_gradient(weight, pass.gradient)),
            of_weight.then(|| self.weight_gradient(x, pass.gradient)),
            of_bias.then(|| self.bias_gradient(pass.gradient)),
        ]
        .map(|gradient| gradient.map(Gradient::New))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::*;

    /// Calls `f` with the places in the output, input and weight of each product.
    fn for_each_product(c: &Conv, mut f: impl FnMut(usize, usize, usize)) {
        let [height, width] = c.out_size();
        for b in 0..c.batch {
            for o in 0..c.c_out {
                for i in 0..height {
                    for j in 0..width {
                        for ch in 0..c.c_in {
                            for u in 0..c.kernel {
                                for v in 0..c.kernel {
                                    let row = (i * c.stride + u).wrapping_sub(c.pad[0]);
                                    let col = (j * c.stride + v).wrapping_sub(c.pad[1]);
                                    if row < c.height && col < c.width {
                                        f(
                                            ((b * c.c_out + o) * height + i) * width + j,
                                            ((b * c.c_in + ch) * c.height + row) * c.width + col,
                                            ((o * c.c_in + ch) * c.kernel + u) * c.kernel + v,
                                        );
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    fn assert_near(ours: &[f32], exact: &[f64], what: &str) {
        assert_close_above(what, ours, exact, 1e-5, 1e-3);
    }

    fn check(c: Conv) {
        let [height, width] = c.out_size();
        let x = random(c.batch * c.c_in * c.height * c.width, 1);
        let weight = random(c.c_out * c.c_in * c.kernel * c.kernel, 2);
        let bias = random(c.c_out, 3);
        let grad = random(c.batch * c.c_out * height * width, 4);
        let (mut y, mut dx) = (vec![0.0f64; grad.len()], vec![0.0f64; x.len()]);
        let (mut dw, mut db) = (vec![0.0f64; weight.len()], vec![0.0f64; bias.len()]);
        for_each_product(&c, |at, from, tap| {
            y[at] += f64::from(x[from]) * f64::from(weight[tap]);
            dx[from] += f64::from(grad[at]) * f64::from(weight[tap]);
            dw[tap] += f64::from(grad[at]) * f64::from(x[from]);
        });
        for (at, &g) in grad.iter().enumerate() {
            db[at / (height * width) % c.c_out] += f64::from(g);
        }
        assert_near(&c.forward(&x, &weight, None), &y, &format!("output of {c:?}"));
        for (at, y) in y.iter_mut().enumerate() {
            *y += f64::from(bias[at / (height * width) % c.c_out]);
        }
        assert_near(&c.forward(&x, &weight, Some(&bias)), &y, &format!("output of {c:?}"));
        assert_near(&c.input_gradient(&weight, &grad), &dx, &format!("input gradient of {c:?}"));
        assert_near(&c.weight_gradient(&x, &grad), &dw, &format!("weight gradient of {c:?}"));
        assert_near(&c.bias_gradient(&grad), &db, &format!("bias gradient of {c:?}"));
    }

    #[test]
    fn like_the_definition() {
        let pads =
            [[0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1], [1, 0, 0, 1], [2, 1, 0, 2], [0, 2, 1, 0]];
        let sides = [[1, 1], [1, 6], [3, 1], [2, 2], [5, 9], [7, 4]];
        let channels = [[1, 1], [2, 3], [5, 4], [3, 5], [4, 2]];
        let mut at = 0;
        for (pad, [height, width]) in pads.iter().flat_map(|p| sides.iter().map(move |s| (*p, *s)))
        {
            for (kernel, stride) in [(1, 1), (3, 1), (1, 2), (3, 2), (5, 1), (3, 3)] {
                let fits = |side: usize, pad: usize| side + pad >= kernel;
                if fits(height, pad[0] + pad[2]) && fits(width, pad[1] + pad[3]) {
                    let [c_in, c_out] = channels[at % channels.len()];
                    let batch = 1 + at % 3;
                    check(Conv { batch, c_in, c_out, height, width, kernel, stride, pad });
                    at += 1;
                }
            }
        }
        assert!(at > 150, "{at}");
    }

    #[test]
    fn several_tiles_and_blocks() {
        let conv =
            |batch, [c_in, c_out]: [usize; 2], [height, width]: [usize; 2], kernel, stride, pad| {
                check(Conv { batch, c_in, c_out, height, width, kernel, stride, pad });
            };
        conv(1, [35, 7], [31, 131], 3, 1, [1, 1, 1, 1]);
        conv(1, [3, 2], [5, 1200], 3, 1, [1, 1, 1, 1]);
        conv(2, [5, 3], [79, 93], 3, 2, [0, 0, 1, 1]);
        conv(1, [66, 70], [7, 5], 3, 1, [1, 1, 1, 1]);
        conv(5, [33, 37], [6, 6], 1, 1, [0, 0, 0, 0]);
        conv(19, [2, 3], [8, 8], 3, 1, [1, 1, 1, 1]);
    }

    #[test]
    fn rows_in_pairs() {
        let sides = [[2, 70], [3, 40], [9, 9], [34, 4], [16, 16], [13, 300], [33, 7]];
        let pads = [[1, 1, 1, 1], [0, 0, 0, 0], [2, 1, 0, 2], [0, 2, 1, 0], [4, 3, 0, 5]];
        let channels = [[16, 16], [35, 17], [100, 22], [17, 64]];
        let mut at = 0;
        for (pad, [height, width]) in pads.iter().flat_map(|p| sides.iter().map(move |s| (*p, *s)))
        {
            let [c_in, c_out] = channels[at % channels.len()];
            let c = Conv { batch: 2, c_in, c_out, height, width, kernel: 3, stride: 1, pad };
            if height + pad[0] + pad[2] > 2 && c.correlation().in_pairs() {
                check(c);
                at += 1;
            }
        }
        assert!(at > 25, "{at}");
        // The weight's gradient of one tile, of groups of images the last of which is not full, of
        // a task with fewer images.
        let conv = |batch, kernel, stride, pad| {
            let (c_in, c_out, height, width) = (16, 17, 16, 16);
            check(Conv { batch, c_in, c_out, height, width, kernel, stride, pad });
        };
        conv(49, 3, 1, [1; 4]);
        // A phase of the input's gradient is in pairs.
        conv(2, 5, 2, [2; 4]);
    }

    #[test]
    fn threads_change_nothing() {
        for (stride, pad) in [(1, [1; 4]), (2, [0, 0, 1, 1])] {
            let (batch, c_in, c_out, height, width) = (3, 40, 70, 48, 40);
            let c = Conv { batch, c_in, c_out, height, width, kernel: 3, stride, pad };
            let [rows, cols] = c.out_size();
            let x = random(batch * c_in * height * width, 1);
            let weight = random(c_out * c_in * 9, 2);
            let grad = random(batch * c_out * rows * cols, 3);
            let image = c_in * height * width;
            let alone = Conv { batch: 1, ..c };
            let each = x.chunks(image).flat_map(|x| alone.forward(x, &weight, None));
            assert!(each.eq(c.forward(&x, &weight, None)), "an image depends on its batch");
            assert_same_on_threads(|| {
                let y = c.forward(&x, &weight, None);
                let dx = c.input_gradient(&weight, &grad);
                vec![y, dx, c.weight_gradient(&x, &grad), c.bias_gradient(&grad)]
            });
        }
    }
}
