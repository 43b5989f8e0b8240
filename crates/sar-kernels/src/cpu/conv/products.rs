//! The two products of a convolution, a few output channels at a time.

use std::array::from_fn;

use pulp::{Simd, WithSimd};

/// Output channels computed at a time, each for 2 vectors of pixels (forward) or 2 taps (weight
/// gradient): 12 accumulators, which with their operands fill 15 of 16 registers. With fewer
/// channels there are more vectors or taps, up to 4; with AVX-512, which has 32 registers, always 4.
pub(in crate::cpu) const ROWS: usize = 6;
/// The lanes of the widest vectors.
pub(in crate::cpu) const WIDEST: usize = 16;

/// A product of up to [`ROWS`] rows.
pub(in crate::cpu) trait Product {
    fn n_rows(&self) -> usize;

    /// The product of `M` rows, `N` vectors of pixels or taps at a time.
    fn rows<S: Simd, const M: usize, const N: usize>(self, simd: S);
}

/// Runs a product with as many vectors or taps at a time as its rows leave registers for.
pub(in crate::cpu) struct ByRows<P>(pub(in crate::cpu) P);

impl<P: Product> WithSimd for ByRows<P> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match (self.0.n_rows(), S::F32_LANES == WIDEST) {
            (1, _) => self.0.rows::<S, 1, 4>(simd),
            (2, _) => self.0.rows::<S, 2, 4>(simd),
            (3, false) => self.0.rows::<S, 3, 3>(simd),
            (4, false) => self.0.rows::<S, 4, 2>(simd),
            (5, false) => self.0.rows::<S, 5, 2>(simd),
            (_, false) => self.0.rows::<S, ROWS, 2>(simd),
            (3, true) => self.0.rows::<S, 3, 4>(simd),
            (4, true) => self.0.rows::<S, 4, 4>(simd),
            (5, true) => self.0.rows::<S, 5, 4>(simd),
            (_, true) => self.0.rows::<S, ROWS, 4>(simd),
        }
    }
}

/// `sums[m, p] += sum over k of weights[m, k] tile[offsets[k] + p]`, for up to `ROWS` rows m.
pub(in crate::cpu) struct Strips<'a> {
    pub(in crate::cpu) weights: &'a [f32],
    /// From one row of weights to the next.
    pub(in crate::cpu) weights_row: usize,
    pub(in crate::cpu) offsets: &'a [usize],
    pub(in crate::cpu) tile: &'a [f32],
    /// Whether the sums begin with zero, whatever they are.
    pub(in crate::cpu) fresh: bool,
    /// As many rows as there are sums for.
    pub(in crate::cpu) sums: &'a mut [f32],
    pub(in crate::cpu) sums_row: usize,
    pub(in crate::cpu) pixels: usize,
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
        if N > 2 && p + S::F32_LANES < self.pixels {
            self.strip::<S, M, 2>(simd, p);
            p += 2 * S::F32_LANES;
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
                let sums = S::as_simd_f32s(&self.sums[m * self.sums_row + p..][..width]).0;
                *acc = from_fn(|n| sums[n]);
            }
        }
        for k in 0..offsets.len() {
            let x = S::as_simd_f32s(&tile[offsets[k]..][..width]).0;
            let x: [S::f32s; N] = from_fn(|n| x[n]);
            for m in 0..M {
                let weight = simd.splat_f32s(weights[m][k]);
                for n in 0..N {
                    acc[m][n] = simd.mul_add_e_f32s(weight, x[n], acc[m][n]);
                }
            }
        }
        for (m, acc) in acc.iter().enumerate() {
            let sums = &mut self.sums[m * self.sums_row + p..][..width];
            let sums = S::as_mut_simd_f32s(sums).0;
            (0..N).for_each(|n| sums[n] = acc[n]);
        }
    }
}

/// `sums[m, t] += sum over images i, p of grads[i][m, p] tiles[i][offsets[t] + p]`, for up to
/// `ROWS` rows m.
pub(super) struct Dots<'a> {
    pub(super) rows: usize,
    pub(super) tiles: &'a [f32],
    /// From the tile of one image to that of the next.
    pub(super) tile_len: usize,
    pub(super) grads: &'a [f32],
    /// From the gradients of one image to those of the next.
    pub(super) grads_len: usize,
    /// From one row of gradients to the next.
    pub(super) grads_row: usize,
    pub(super) pixels: usize,
    pub(super) offsets: &'a [usize],
    pub(super) sums: &'a mut [f32],
    pub(super) sums_row: usize,
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
            let tiles = self.tiles.chunks(self.tile_len);
            for (tile, grads) in tiles.zip(self.grads.chunks(self.grads_len)) {
                let grads: [&[S::f32s]; M] =
                    from_fn(|m| S::as_simd_f32s(&grads[m * self.grads_row..][..self.pixels]).0);
                let xs = offsets.map(|offset| S::as_simd_f32s(&tile[offset..][..self.pixels]).0);
                acc = dots(simd, grads, xs, acc);
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

/// `acc[m][t] + grads[m] xs[t]`, lane by lane.
#[inline(always)]
fn dots<S: Simd, const M: usize, const N: usize>(
    simd: S,
    grads: [&[S::f32s]; M],
    xs: [&[S::f32s]; N],
    mut acc: [[S::f32s; N]; M],
) -> [[S::f32s; N]; M] {
    for p in 0..xs[0].len() {
        let x = xs.map(|x| x[p]);
        for m in 0..M {
            for t in 0..N {
                acc[m][t] = simd.mul_add_e_f32s(grads[m][p], x[t], acc[m][t]);
            }
        }
    }
    acc
}
