//! Attention of whole passes, and of new tokens to a cache.

use std::array::from_fn;
use std::ops::Range;

use rayon::prelude::*;

use super::product::{hide, product};
use super::{Attention, KEYS, Lanes, Part, Rows, Saved, WORK, keys_of};
use crate::attention::Kept;
use crate::cpu::simd::{LANES, exp, vectorized};
use crate::visible::{Seen, Span};

/// Vectors of queries in a block.
const FORWARD: usize = 2;

impl Attention {
    /// `qkv` is `[tokens * batch, 3 heads head_dim]`, `temperature` `[heads]`. The result is
    /// `[tokens * batch, heads head_dim]`.
    pub(super) fn forward(
        &self,
        qkv: &[f32],
        temperature: &[f32],
        seen: &Seen,
    ) -> (Vec<f32>, Saved) {
        let l = self.tokens;
        self.check(qkv, temperature);
        self.check_seen(seen);
        let mut out = vec![0.0; l * self.tiles() * self.head_dim];
        let mut saved = vec![0.0; l * self.tiles()];
        let tiles = self.rows_of_tiles(&mut out, 1).into_par_iter().zip(saved.par_chunks_mut(l));
        tiles.with_min_len(self.tiles_of_task(l)).enumerate().for_each(
            |(tile, (mut rows, saved))| {
                let [q, k, v] = Part::of_projection(qkv, tile);
                let (k, v) = (self.pack(k, 0..l, Some(1.0)), self.pack(v, 0..l, None));
                let factor = temperature[tile % self.heads];
                let (k, v) = (k.data.as_flattened(), &v.data);
                self.attend(q, factor, (k, v), seen, &mut rows, saved);
            },
        );
        (out, Saved(saved))
    }

    /// Attends to a cache `[batch, heads, capacity, head_dim]` of keys k' and values and to those of
    /// `qkv` `[tokens * batch, ..]`: all queries see all of these. What stays of them is left in the
    /// caches.
    pub(super) fn attend_and_keep(
        &self,
        qkv: &[f32],
        temperature: &[f32],
        [k_cache, v_cache]: [&mut [f32]; 2],
        capacity: usize,
        kept: Kept,
    ) -> Vec<f32> {
        let (l, e, filled) = (self.tokens, self.head_dim, kept.filled);
        let keys = filled + l;
        self.check(qkv, temperature);
        let cache = self.tiles() * capacity * e;
        assert!(
            filled.max(kept.tokens) <= capacity && k_cache.len() == cache && v_cache.len() == cache,
            "the cache"
        );
        let seen = Seen { prefix: 0, spans: vec![Span { start: 0, end: keys as u32 }; l] };
        let mut out = vec![0.0; l * self.tiles() * e];
        let tiles = self.rows_of_tiles(&mut out, 1).into_par_iter();
        let caches = k_cache.par_chunks_mut(capacity * e).zip(v_cache.par_chunks_mut(capacity * e));
        let tiles = tiles.zip(caches).with_min_len(self.tiles_of_task(keys));
        tiles.enumerate().for_each(|(tile, (mut rows, (k_cache, v_cache)))| {
            let [q, k, v] = Part::of_projection(qkv, tile);
            let (new_k, new_v) = (self.pack(k, 0..l, Some(1.0)), self.pack(v, 0..l, None));
            let (k, v) = (new_k.behind(k_cache, filled, e), new_v.behind(v_cache, filled, e));
            let factor = temperature[tile % self.heads];
            let (k, v) = (k.data.as_flattened(), &v.data);
            self.attend(q, factor, (k, v), &seen, &mut rows, &mut vec![0.0; l]);
            new_k.keep(k_cache, kept, e);
            new_v.keep(v_cache, kept, e);
        });
        out
    }

    /// A tile: writes the rows of the result, and the log-sum-exp of the scores.
    fn attend(
        &self,
        q: Part<'_>,
        factor: f32,
        (k, v): (&[f32], &[Lanes]),
        seen: &Seen,
        rows: &mut [&mut [f32]],
        saved: &mut [f32],
    ) {
        const N: usize = FORWARD * LANES;
        let (e, width) = (self.head_dim, self.width());
        let Seen { prefix, spans } = seen;
        let count = |spans| keys_of(*prefix, spans).map(|(_, keys)| keys.len()).sum::<usize>();
        let keys = spans.chunks(N).map(count).max().unwrap_or(0);
        let blocks = rows.par_chunks_mut(N).zip(saved.par_chunks_mut(N)).zip(spans.par_chunks(N));
        let blocks = blocks.with_min_len(1 + WORK / (N * keys * e)).enumerate();
        let scratch = || (vec![[0.0; LANES]; keys * FORWARD], vec![[0.0; LANES]; N * width]);
        blocks.for_each_init(scratch, |(scores, sum), (block, ((rows, saved), spans))| {
            let q = self.pack(q, block * N..block * N + rows.len(), Some(factor)).transposed();
            let (parts, keys) = (keys_of(*prefix, spans), count(spans));
            let lanes = rows.len().div_ceil(LANES);
            for (at, part) in parts.clone() {
                let size = [part.len(), lanes, e];
                let scores = (&mut scores[at * FORWARD..], FORWARD);
                let k = (&k[part.start * width * LANES..], width * LANES);
                product::<true>(false, size, scores, k, (&q, lanes));
            }
            let mut sums = [[0.0; LANES]; FORWARD];
            vectorized(
                #[inline(always)]
                || {
                    let spans = spans.chunks(LANES).zip(saved.chunks_mut(LANES));
                    for (lane, (spans, saved)) in spans.enumerate() {
                        for (at, part) in parts.clone() {
                            hide(&mut scores[at * FORWARD + lane..], FORWARD, *prefix, spans, part);
                        }
                        let scores = &mut scores[lane..];
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
            let pieces = parts.flat_map(|(at, Range { start: first, end })| {
                (first..end)
                    .step_by(KEYS)
                    .map(move |start| (at + start - first, start, end - start))
            });
            for (at, start, left) in pieces {
                let size = [rows.len(), width, KEYS.min(left)];
                let p = (scores[at * FORWARD..].as_flattened(), N);
                let v = (&v[start * width..], width);
                product::<false>(at > 0, size, (&mut sum[..], width), p, v);
            }
            let rows = rows.iter_mut().zip(sum.chunks_exact(width)).zip(sums.as_flattened());
            vectorized(
                #[inline(always)]
                || {
                    for ((row, sum), weight) in rows {
                        let (inverse, sum) = (1.0 / weight, sum.as_flattened());
                        row.iter_mut().zip(sum).for_each(|(out, x)| *out = x * inverse);
                    }
                },
            );
        });
    }
}

impl Rows {
    /// Rows of a cache and these behind them.
    fn behind(&self, cache: &[f32], filled: usize, len: usize) -> Self {
        let mut all = Self::new(cache[..filled * len].chunks_exact(len), len);
        all.data.extend_from_slice(&self.data);
        all
    }

    /// Leaves in a cache what stays of its rows and of these.
    fn keep(&self, cache: &mut [f32], kept: Kept, len: usize) {
        let Kept { filled, prefix, dropped, tokens } = kept;
        // What lies before stays in its place.
        let first = if dropped == 0 { filled } else { filled.min(prefix) };
        for to in first..tokens {
            let from = if to < prefix { to } else { to + dropped };
            match from.checked_sub(filled) {
                None => cache.copy_within(from * len..(from + 1) * len, to * len),
                Some(new) => {
                    cache[to * len..(to + 1) * len].copy_from_slice(self.row(new, len));
                }
            }
        }
    }
}
