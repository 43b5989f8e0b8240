//! Tiles of images as the products read them, and what is made of the products' sums.

use std::array::from_fn;

use rayon::prelude::*;

use super::super::simd::vectorized;
use super::correlation::Correlation;
use super::products::{ROWS, WIDEST};

/// About as many pixels are in a tile.
pub(super) const TILE: usize = 1056;
/// About as many taps, and at most as many channels, are summed up at a time: 32 channels of a
/// kernel of 3 by 3, whose tile of 150 KB (in pairs of rows 270) stays in the second cache.
const BLOCK: [usize; 2] = [288, 96];

/// How images are cut into tiles of output rows, and how the input of a tile lies in it.
pub(super) struct Tiling {
    correlation: Correlation,
    /// Whether rows are made in pairs.
    pub(super) pairs: bool,
    /// Output rows of a tile (the last may have fewer).
    pub(super) rows: usize,
    /// Number of tiles in an image.
    pub(super) tiles: usize,
    /// Input channels in a tile at a time.
    pub(super) block: usize,
    /// From one output row, or pair of rows, to the next.
    pub(super) pitch: usize,
    /// Rows of a phase.
    phase_rows: usize,
    /// Elements of a phase.
    pub(super) phase: usize,
    /// Elements of a channel, all phases.
    channel: usize,
    /// Products that make a plane: m reads from phase m on.
    pub(super) products: usize,
    /// Taps of a channel in each product.
    pub(super) taps: usize,
    /// Where the taps of a block of channels read the first pixel.
    pub(super) offsets: Vec<usize>,
}

impl Tiling {
    pub(super) fn new(correlation: Correlation, pairs: bool) -> Self {
        let Correlation { out: [height, width], source, origin, stride: s, .. } = correlation;
        let [kernel_rows, kernel_cols] = correlation.kernel;
        let halo = [kernel_rows.saturating_sub(1) / s, kernel_cols.saturating_sub(1) / s];
        // The zeros right of a row can be those left of the next one.
        let left = -origin[1];
        let right = (width + halo[1]) as isize + origin[1] - source[1] as isize;
        let shared = if s == 1 { left.min(right).clamp(0, halo[1] as isize) as usize } else { 0 };
        let pitch = width + halo[1] - shared;
        let unit = if pairs { 2 } else { 1 };
        let units = height.div_ceil(unit);
        let tiles = (units * unit * pitch).div_ceil(TILE).min(units).max(1);
        let rows = units.div_ceil(tiles) * unit;
        let tiles = height.div_ceil(rows.max(1));
        let taps = kernel_rows * kernel_cols;
        let block = (BLOCK[0] / taps.max(1)).clamp(1, BLOCK[1]).min(correlation.c_in);
        let (products, phases, phase_rows, kernel_rows) = match pairs {
            true => (4, 4, rows / 2, 1),
            false => (1, s * s, rows + halo[0], kernel_rows),
        };
        let (phase, taps) = (phase_rows * pitch, kernel_rows * kernel_cols);
        let channel = phases * phase;
        let offset = |k: usize| {
            let (c, u, v) = (k / taps, k % taps / kernel_cols, k % kernel_cols);
            c * channel + (u % s * s + v % s) * phase + u / s * pitch + v / s
        };
        let offsets = (0..block * taps).map(offset).collect();
        Self {
            correlation,
            pairs,
            rows,
            tiles,
            block,
            pitch,
            phase_rows,
            phase,
            channel,
            products,
            taps,
            offsets,
        }
    }

    /// The length of a tile of as many channels as it takes, with what the last strip reads beyond.
    pub(super) fn tile_len(&self) -> usize {
        self.block * self.channel + self.pitch + ROWS * WIDEST
    }

    /// The pixels of each product that makes `rows` rows of a plane.
    pub(super) fn pixels(&self, rows: usize) -> usize {
        self.pitch * if self.pairs { rows.div_ceil(2) } else { rows }
    }

    /// Copies the channels of `image` that `tile` has room for, from output row `first` on.
    #[inline(always)]
    pub(super) fn fill(&self, image: &[f32], first: usize, tile: &mut [f32]) {
        if self.pairs {
            return vectorized(
                #[inline(always)]
                || self.fill_pairs(image, first, tile),
            );
        }
        let Correlation { source: [height, width], stride: s, origin, .. } = self.correlation;
        let pitch = self.pitch;
        let used = image.len() / (height * width) * self.channel;
        // The shared zeros of the last row; no other pixel that is kept reads beyond the channels.
        tile[used..].fill(0.0);
        let planes = image.chunks_exact(height * width);
        for (plane, to) in planes.zip(tile.chunks_exact_mut(self.channel)) {
            for (at, line) in to.chunks_exact_mut(pitch).enumerate() {
                let (phase, row) = (at / self.phase_rows, at % self.phase_rows);
                let row = ((first + row) * s + phase / s) as isize + origin[0];
                if row < 0 || row >= height as isize {
                    line.fill(0.0);
                    continue;
                }
                let from = &plane[row as usize * width..][..width];
                let start = (phase % s) as isize + origin[1];
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

    /// [`Self::fill`] with the four combinations of rows of each pair: from the even and the odd rows
    /// between their zeros, so that they are sums of long slices.
    #[inline(always)]
    fn fill_pairs(&self, image: &[f32], first: usize, tile: &mut [f32]) {
        let Correlation { source: [height, width], origin, .. } = self.correlation;
        let pitch = self.pitch;
        let (tile, zeros) = tile.split_at_mut(image.len() / (height * width) * self.channel);
        // The shared zeros of the last row.
        zeros.fill(0.0);
        let (left, from) = (-origin[1].min(0), origin[1].max(0));
        let (left, from) = ((left as usize).min(pitch), (from as usize).min(width));
        let len = (width - from).min(pitch - left);
        let half = (self.phase_rows + 1) * pitch;
        let mut rows = vec![0.0; 2 * half];
        let planes = image.chunks_exact(height * width);
        for (plane, to) in planes.zip(tile.chunks_exact_mut(self.channel)) {
            for u in 0..2 * (self.phase_rows + 1) {
                let row = (first + u) as isize + origin[0];
                if row >= 0 && row < height as isize {
                    let to = &mut rows[u % 2 * half + u / 2 * pitch + left..][..len];
                    to.copy_from_slice(&plane[row as usize * width + from..][..len]);
                }
            }
            let (even, odd) = rows.split_at(half);
            let [d0, d1, d2, d3] = [even, odd, &even[pitch..], &odd[pitch..]];
            let [d0, d1, d2, d3] = [d0, d1, d2, d3].map(|d| &d[..self.phase]);
            let (upper, lower) = to.split_at_mut(2 * self.phase);
            let ((m0, m1), (m2, m3)) =
                (upper.split_at_mut(self.phase), lower.split_at_mut(self.phase));
            let (m1, m2, m3) =
                (&mut m1[..self.phase], &mut m2[..self.phase], &mut m3[..self.phase]);
            for (p, m0) in m0.iter_mut().enumerate() {
                *m0 = d0[p] - d2[p];
                m1[p] = d1[p] + d2[p];
                m2[p] = d2[p] - d1[p];
                m3[p] = d1[p] - d3[p];
            }
        }
    }

    /// Makes the rows of a plane from the sums of their products, which begin at 0, `step`, .. and are
    /// overwritten.
    #[inline(always)]
    pub(super) fn finish(&self, sums: &mut [f32], step: usize, bias: f32, plane: &mut [f32]) {
        let width = self.correlation.out[1];
        if !self.pairs {
            for (line, sums) in plane.chunks_exact_mut(width).zip(sums.chunks(self.pitch)) {
                line.iter_mut().zip(sums).for_each(|(y, sum)| *y = sum + bias);
            }
            return;
        }
        // Sums of long slices, ends of rows included, and then the rows.
        let n = self.pixels(plane.len() / width);
        let ((m0, m1), (m2, m3)) = {
            let (upper, lower) = sums.split_at_mut(2 * step);
            (upper.split_at_mut(step), lower.split_at_mut(step))
        };
        let (m1, m2, m3) = (&m1[..n], &m2[..n], &mut m3[..n]);
        for (p, m0) in m0[..n].iter_mut().enumerate() {
            *m0 = *m0 + m1[p] + m2[p] + bias;
            m3[p] = m1[p] - m2[p] - m3[p] + bias;
        }
        for (at, pair) in plane.chunks_mut(2 * width).enumerate() {
            let (upper, lower) = pair.split_at_mut(width);
            upper.copy_from_slice(&m0[at * self.pitch..][..width]);
            // The last row may be alone.
            lower.copy_from_slice(&m3[at * self.pitch..][..lower.len()]);
        }
    }

    /// Makes the gradients of the products, each of `pixels`, from those of the rows of a plane.
    #[inline(always)]
    pub(super) fn spread(&self, plane: &[f32], pixels: usize, grads: &mut [f32]) {
        let (width, pitch) = (self.correlation.out[1], self.pitch);
        if !self.pairs {
            grads[plane.len() / width * pitch..].fill(0.0);
            for (line, to) in plane.chunks_exact(width).zip(grads.chunks_exact_mut(pitch)) {
                to[..width].copy_from_slice(line);
                to[width..].fill(0.0);
            }
            return;
        }
        let ((e0, sum), (difference, e1)) = {
            let (upper, lower) = grads.split_at_mut(2 * pixels);
            (upper.split_at_mut(pixels), lower.split_at_mut(pixels))
        };
        let (sum, difference, e1) =
            (&mut sum[..pixels], &mut difference[..pixels], &mut e1[..pixels]);
        e0.fill(0.0);
        e1.fill(0.0);
        for (at, lines) in plane.chunks(2 * width).enumerate() {
            // The last row may be alone.
            let (upper, lower) = lines.split_at(width);
            e0[at * pitch..][..width].copy_from_slice(upper);
            e1[at * pitch..][..lower.len()].copy_from_slice(lower);
        }
        for (p, &e0) in e0.iter().enumerate() {
            (sum[p], difference[p], e1[p]) = (e0 + e1[p], e0 - e1[p], -e1[p]);
        }
    }

    /// The kernels of the products of pairs of rows, `[c_out, 4, c_in, 3]`.
    pub(super) fn paired(&self, weight: &[f32]) -> Vec<f32> {
        let row = 3 * self.correlation.c_in;
        let mut paired = vec![0.0; self.correlation.c_out * 4 * row];
        let products = paired.par_chunks_exact_mut(4 * row).zip(weight.par_chunks_exact(3 * row));
        products.with_min_len(64).for_each(|(products, kernels)| {
            let products = products.as_chunks_mut::<3>().0;
            vectorized(
                #[inline(always)]
                || {
                    for (c, g) in kernels.as_chunks::<9>().0.iter().enumerate() {
                        for v in 0..3 {
                            let (outer, middle) = (0.5 * (g[v] + g[6 + v]), 0.5 * g[3 + v]);
                            let m = [g[v], outer + middle, outer - middle, g[6 + v]];
                            (0..4).for_each(|i| products[i * self.correlation.c_in + c][v] = m[i]);
                        }
                    }
                },
            );
        });
        paired
    }

    /// The gradient of the weight from that of [`Self::paired`].
    pub(super) fn unpaired(&self, grad: &[f32]) -> Vec<f32> {
        let mut weight = vec![0.0; grad.len() / 4 * 3];
        let kernels = weight.par_chunks_exact_mut(9 * self.correlation.c_in);
        let products = grad.par_chunks_exact(12 * self.correlation.c_in);
        kernels.zip(products).with_min_len(64).for_each(|(kernels, products)| {
            let products = products.as_chunks::<3>().0;
            vectorized(
                #[inline(always)]
                || {
                    for (c, g) in kernels.as_chunks_mut::<9>().0.iter_mut().enumerate() {
                        for v in 0..3 {
                            let m: [f32; 4] =
                                from_fn(|i| products[i * self.correlation.c_in + c][v]);
                            let (outer, middle) = (0.5 * (m[1] + m[2]), 0.5 * (m[1] - m[2]));
                            [g[v], g[3 + v], g[6 + v]] = [m[0] + outer, middle, m[3] + outer];
                        }
                    }
                },
            );
        });
        weight
    }
}
