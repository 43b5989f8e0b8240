//! Attention of whole passes, and of new tokens to a cache.

use std::array::from_fn;

use rayon::prelude::*;

use super::product::{hide, product};
use super::{Attention, KEYS, Lanes, Part, Rows, Saved, WORK};
use crate::cpu::simd::{LANES, exp, vectorized};

/// Vectors of queries in a block.
const FORWARD: usize = 2;

impl Attention {
    /// `qkv` is `[tokens * batch, 3 heads head_dim]`, `temperature` `[heads]`; query t sees the keys
    /// `0..visible[t]`, which never decrease. The result is `[tokens * batch, heads head_dim]`.
    pub(super) fn forward(
        &self,
        qkv: &[f32],
        temperature: &[f32],
        visible: &[u32],
    ) -> (Vec<f32>, Saved) {
        let l = self.tokens;
        self.check(qkv, temperature);
        self.check_visible(visible);
        let mut out = vec![0.0; l * self.tiles() * self.head_dim];
        let mut saved = vec![0.0; l * self.tiles()];
        let tiles = self.rows_of_tiles(&mut out, 1).into_par_iter().zip(saved.par_chunks_mut(l));
        tiles.with_min_len(self.tiles_of_task(l)).enumerate().for_each(
            |(tile, (mut rows, saved))| {
                let [q, k, v] = Part::of_projection(qkv, tile);
                let (k, v) = (self.pack(k, 0..l, Some(1.0)), self.pack(v, 0..l, None));
                let factor = temperature[tile % self.heads];
                let (k, v) = (k.data.as_flattened(), &v.data);
                self.attend(q, factor, (k, v), visible, &mut rows, saved);
            },
        );
        (out, Saved(saved))
    }

    /// Attends to a cache: appends the keys k' and the values of `qkv` `[tokens * batch, ..]` to the
    /// caches `[batch, heads, capacity, head_dim]` of `filled` tokens; all queries see all of these.
    pub(super) fn append_and_attend(
        &self,
        qkv: &[f32],
        temperature: &[f32],
        k_cache: &mut [f32],
        v_cache: &mut [f32],
        capacity: usize,
        filled: usize,
    ) -> Vec<f32> {
        let (l, e, keys) = (self.tokens, self.head_dim, filled + self.tokens);
        self.check(qkv, temperature);
        let cache = self.tiles() * capacity * e;
        assert!(keys <= capacity && k_cache.len() == cache && v_cache.len() == cache, "the cache");
        let visible = vec![keys as u32; l];
        let mut out = vec![0.0; l * self.tiles() * e];
        let tiles = self.rows_of_tiles(&mut out, 1).into_par_iter();
        let caches = k_cache.par_chunks_mut(capacity * e).zip(v_cache.par_chunks_mut(capacity * e));
        let tiles = tiles.zip(caches).with_min_len(self.tiles_of_task(keys));
        tiles.enumerate().for_each(|(tile, (mut rows, (k_cache, v_cache)))| {
            let [q, k, v] = Part::of_projection(qkv, tile);
            self.pack(k, 0..l, Some(1.0)).write(&mut k_cache[filled * e..keys * e], e);
            self.pack(v, 0..l, None).write(&mut v_cache[filled * e..keys * e], e);
            let [k, v] = [k_cache, v_cache].map(|x| Rows::new(x[..keys * e].chunks_exact(e), e));
            let factor = temperature[tile % self.heads];
            let (k, v) = (k.data.as_flattened(), &v.data);
            self.attend(q, factor, (k, v), &visible, &mut rows, &mut vec![0.0; l]);
        });
        out
    }

    /// A tile: writes the rows of the result, and the log-sum-exp of the scores.
    fn attend(
        &self,
        q: Part<'_>,
        factor: f32,
        (k, v): (&[f32], &[Lanes]),
        visible: &[u32],
        rows: &mut [&mut [f32]],
        saved: &mut [f32],
    ) {
        const N: usize = FORWARD * LANES;
        let (e, width) = (self.head_dim, self.width());
        let keys = visible[visible.len() - 1] as usize;
        let blocks = rows.par_chunks_mut(N).zip(saved.par_chunks_mut(N)).zip(visible.par_chunks(N));
        let blocks = blocks.with_min_len(1 + WORK / (N * keys * e)).enumerate();
        let scratch = || (vec![[0.0; LANES]; keys * FORWARD], vec![[0.0; LANES]; N * width]);
        blocks.for_each_init(scratch, |(scores, sum), (block, ((rows, saved), visible))| {
            let q = self.pack(q, block * N..block * N + rows.len(), Some(factor)).transposed();
            let keys = visible[visible.len() - 1] as usize;
            for lane in 0..rows.len().div_ceil(LANES) {
                let scores = &mut scores[lane..];
                let q = &q[lane * width * LANES..];
                product::<true>(false, scores, FORWARD, keys, k, width * LANES, q, 1, e);
            }
            let mut sums = [[0.0; LANES]; FORWARD];
            vectorized(
                #[inline(always)]
                || {
                    let visible = visible.chunks(LANES).zip(saved.chunks_mut(LANES));
                    for (lane, (visible, saved)) in visible.enumerate() {
                        let scores = &mut scores[lane..];
                        hide(scores, FORWARD, visible, 0..keys);
                        let rows = scores.chunks_mut(FORWARD).take(keys);
                        let m = rows.fold(
                            [f32::NEG_INFINITY; LANES],
                            #[inline(always)]
                            |m, x| {
                                from_fn(
                                    #[inline(always)]
                                    |i| if x[0][i] > m[i] { x[0][i] } else { m[i] },
                                )
                            },
                        );
                        let mut sum = [0.0; LANES];
                        for x in scores.chunks_mut(FORWARD).take(keys) {
                            for i in 0..LANES {
                                x[0][i] = exp(x[0][i] - m[i]);
                                sum[i] += x[0][i];
                            }
                        }
                        sums[lane] = sum;
                        for (i, saved) in saved.iter_mut().enumerate() {
                            *saved = m[i] + sum[i].ln();
                        }
                    }
                },
            );
            for start in (0..keys).step_by(KEYS) {
                let (p, v) = (scores[start * FORWARD..].as_flattened(), &v[start * width..]);
                for c in 0..width {
                    let depth = KEYS.min(keys - start);
                    product::<false>(
                        start > 0,
                        &mut sum[c..],
                        width,
                        rows.len(),
                        p,
                        N,
                        &v[c..],
                        width,
                        depth,
                    );
                }
            }
            for ((row, sum), weight) in
                rows.iter_mut().zip(sum.chunks_exact(width)).zip(sums.as_flattened())
            {
                let inverse = 1.0 / weight;
                row.iter_mut().zip(sum.as_flattened()).for_each(|(out, x)| *out = x * inverse);
            }
        });
    }
}
