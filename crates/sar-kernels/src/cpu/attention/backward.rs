//! The gradients of attention, which recompute the scores.

use rayon::prelude::*;

use super::product::{hide, product};
use super::{Attention, KEYS, Lanes, Part, Rows, SHORTEST, Saved, keys_of};
use crate::cpu::rows::{add, sum_in_order};
use crate::cpu::simd::{Fma, LANES, exp, sum_of_pairs, vectorized};
use crate::visible::{Seen, Span};

/// Vectors of queries in a block.
const BACKWARD: usize = 4;
/// Pieces that the queries are cut into, at least, over all tiles.
const PIECES: usize = 16;

impl Attention {
    /// The gradients of `qkv` and of `temperature`, given what forward got and gave.
    pub(super) fn backward(
        &self,
        qkv: &[f32],
        temperature: &[f32],
        seen: &Seen,
        out: &[f32],
        saved: &Saved,
        grad: &[f32],
    ) -> (Vec<f32>, Vec<f32>) {
        const N: usize = BACKWARD * LANES;
        let (l, e, h) = (self.tokens, self.head_dim, self.heads);
        self.check(qkv, temperature);
        self.check_seen(seen);
        assert!(
            out.len() == l * self.tiles() * e && grad.len() == out.len(),
            "gradient of attention"
        );
        let mut gqkv = vec![0.0; qkv.len()];
        // Queries of a piece: whole blocks.
        let piece = l.div_ceil(PIECES.div_ceil(self.tiles())).next_multiple_of(N).max(N);
        let tiles = self.rows_of_tiles(&mut gqkv, 3).into_par_iter().zip(saved.0.par_chunks(l));
        let tiles = tiles.with_min_len(self.tiles_of_task(l)).enumerate();
        let gtemperatures = tiles.map(|(tile, (mut gqkv, saved))| {
            let [q_part, k_part, v_part] = Part::of_projection(qkv, tile);
            let [out, grad_part] = [out, grad].map(|x| Part { x, parts: 1, part: 0, tile });
            let factor = temperature[tile % h];
            let (k, v) = (self.pack(k_part, 0..l, Some(1.0)), self.pack(v_part, 0..l, None));
            let (gq, gkv) = gqkv.split_at_mut(l);
            let (gk, gv) = gkv.split_at_mut(l);
            let pieces = gq.par_chunks_mut(piece).enumerate().map(|(at, gq)| {
                // The gradients of k' and v from this piece, and that of the temperature.
                let size = l * self.width() * LANES;
                let mut gkv = vec![0.0; 2 * size];
                let (gk, gv) = gkv.split_at_mut(size);
                let (gk, gv) = (gk.as_chunks_mut().0, gv.as_chunks_mut().0);
                let mut scratch = [(); 2].map(|()| vec![[0.0; LANES]; KEYS * BACKWARD]);
                let mut gtemperature = 0.0;
                for (block, gq) in gq.chunks_mut(N).enumerate() {
                    let start = at * piece + block * N;
                    let tokens = start..start + gq.len();
                    let q = self.pack(q_part, tokens.clone(), Some(factor));
                    let grad = self.pack(grad_part, tokens.clone(), None);
                    let mut means = [[0.0; LANES]; BACKWARD];
                    for (mean, token) in means.as_flattened_mut().iter_mut().zip(tokens.clone()) {
                        let (out, grad) = (self.row(out, token), self.row(grad_part, token));
                        *mean = vectorized(
                            #[inline(always)]
                            || sum_of_pairs(out, grad, |x, y| x * y),
                        );
                    }
                    let seen = (seen.prefix, &seen.spans[tokens.clone()]);
                    let (rows, saved) = ([&q, &k, &v, &grad], &saved[tokens.clone()]);
                    let gkv = [&mut *gk, &mut *gv];
                    let g = self.attend_backward(rows, saved, means, seen, gkv, &mut scratch);
                    for ((token, gq), g) in tokens.zip(gq).zip(g.chunks_exact(self.width())) {
                        let q = self.row(q_part, token);
                        gtemperature += self.project(q, &g.as_flattened()[..e], factor, gq);
                    }
                }
                (gkv, gtemperature)
            });
            let (gkvs, gtemperatures): (Vec<_>, Vec<f32>) =
                pieces.collect::<Vec<_>>().into_iter().unzip();
            let gkv = sum_in_order(gkvs, 0);
            let mut rows = gkv.chunks_exact(self.width() * LANES).map(|row| &row[..e]);
            for (token, (gk, g)) in gk.iter_mut().zip(&mut rows).enumerate() {
                self.project(self.row(k_part, token), g, 1.0, gk);
            }
            gv.iter_mut().zip(rows).for_each(|(gv, g)| gv.copy_from_slice(g));
            gtemperatures.iter().sum::<f32>()
        });
        let gtemperatures: Vec<f32> = gtemperatures.collect();
        let mut gtemperature = vec![0.0; h];
        gtemperatures.chunks_exact(h).for_each(|image| add(&mut gtemperature, image));
        (gqkv, gtemperature)
    }

    /// A block of queries: adds to the gradients of k' and v, returns that of q'.
    ///
    /// With P = softmax(q' k'^T): gv += P^T grad, D = P (grad v^T - means), means = sum(grad out),
    /// gk' += D^T q', gq' = D k'.
    fn attend_backward(
        &self,
        [q, k, v, grad]: [&Rows; 4],
        saved: &[f32],
        means: [Lanes; BACKWARD],
        (prefix, spans): (usize, &[Span]),
        [gk, gv]: [&mut [Lanes]; 2],
        [p, d]: &mut [Vec<Lanes>; 2],
    ) -> Vec<Lanes> {
        const N: usize = BACKWARD * LANES;
        let (n, e, width) = (spans.len(), self.head_dim, self.width());
        let mut lse = [[0.0; LANES]; BACKWARD];
        lse.as_flattened_mut()[..n].copy_from_slice(saved);
        let (q_lanes, grad_lanes) = (q.transposed(), grad.transposed());
        let lanes = n.div_ceil(LANES);
        let mut gq = vec![[0.0; LANES]; n * width];
        let pieces = keys_of(prefix, spans).flat_map(|(_, keys)| {
            let end = keys.end;
            keys.step_by(KEYS).map(move |start| start..end.min(start + KEYS))
        });
        for keys in pieces {
            let start = keys.start;
            let at = start * width;
            let (k, v) = (&k.data[at..], &v.data[at..]);
            // How many of the keys each vector of queries needs.
            let mut seen = [0; BACKWARD];
            for (seen, spans) in seen.iter_mut().zip(spans.chunks(LANES)) {
                let end = spans[spans.len() - 1].end as usize;
                let is_early = prefix <= start && keys.end <= spans[0].start as usize;
                *seen = if is_early { 0 } else { end.clamp(start, keys.end) - start };
            }
            let mut lane = 0;
            // Vectors that need the same are one product.
            for seen in seen[..lanes].chunk_by(|a, b| a == b) {
                let size = [seen[0], seen.len(), e];
                for (out, rows, x) in [(&mut *p, k, &q_lanes), (&mut *d, v, &grad_lanes)] {
                    let out = (&mut out[lane..], BACKWARD);
                    let rows = (rows.as_flattened(), width * LANES);
                    product::<true>(false, size, out, rows, (&x[lane..], lanes));
                }
                lane += seen.len();
            }
            for (lane, (spans, seen)) in spans.chunks(LANES).zip(seen).enumerate() {
                let (p, d) = (&mut p[lane..], &mut d[lane..]);
                let (lse, mean) = (lse[lane], means[lane]);
                vectorized(
                    #[inline(always)]
                    || {
                        hide(p, BACKWARD, prefix, spans, keys.start..start + seen);
                        let rows = p.chunks_mut(BACKWARD).zip(d.chunks_mut(BACKWARD));
                        for (j, (p, d)) in rows.take(keys.len()).enumerate() {
                            if j >= seen {
                                (p[0], d[0]) = ([0.0; LANES], [0.0; LANES]);
                                continue;
                            }
                            for i in 0..LANES {
                                p[0][i] = exp(p[0][i] - lse[i]);
                                d[0][i] = p[0][i] * (d[0][i] - mean[i]);
                            }
                        }
                    },
                );
            }
            let (p, d) = ((p.as_flattened(), N), (d.as_flattened(), N));
            let (by_key, by_query) = ([keys.len(), width, n], [n, width, keys.len()]);
            product::<true>(true, by_key, (&mut gv[at..], width), p, (&grad.data, width));
            product::<true>(true, by_key, (&mut gk[at..], width), d, (&q.data, width));
            product::<false>(true, by_query, (&mut gq, width), d, (k, width));
        }
        gq
    }

    /// The gradient of x from that of x' = factor x / |x|, written to `out`:
    /// factor (g - n (n g)) / |x| with n = x / |x|. Returns the gradient of the factor, n g.
    fn project(&self, x: &[f32], g: &[f32], factor: f32, out: &mut [f32]) -> f32 {
        vectorized(
            #[inline(always)]
            || {
                let inverse = self.inverse_length(x);
                let along = inverse * sum_of_pairs(x, g, |x, g| x * g);
                // A constant length, as of vectors too short to normalize, takes nothing away.
                let fixed = !self.normalize || inverse >= 1.0 / SHORTEST;
                let back = if fixed { 0.0 } else { inverse * along };
                let scale = factor * inverse;
                for ((out, x), g) in out.iter_mut().zip(x).zip(g) {
                    *out = scale * x.fma(-back, *g);
                }
                along
            },
        )
    }
}
