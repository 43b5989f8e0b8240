//! Multi-head self-attention straight from the rows of the fused projection.
//!
//! A tile is one head of one image. Its keys and values are packed once; its queries are taken in
//! blocks, whose scores lie transposed, `[keys, queries]`, so that `LANES` queries are the lanes of
//! vectors: the softmax then runs down the lanes, and all products are sums of a number times a
//! vector. Keys that no query of a block sees are not touched. Rows of results are written in place:
//! row `token`, piece `tile` of an output `[tokens, tiles, head_dim]` are handed to the tile as a
//! list of slices.

use std::array::from_fn;
use std::ops::Range;

use rayon::prelude::*;

use super::kernel::{Gradient, Kernel, Pass, from_values, primitive, run_in_place};
use super::rows::{add, sum_in_order};
use super::simd::{LANES, exp, sum_of, sum_of_pairs, vectorised};
use crate::AttentionConfig;
use burn::tensor::{Tensor, backend::Backend};

type Lanes = [f32; LANES];

/// Vectors of queries in a block of forward and of backward.
const FORWARD: usize = 2;
const BACKWARD: usize = 4;
/// Keys that backward takes at once.
const KEYS: usize = 96;
/// Pieces that backward cuts the queries into, at least, over all tiles.
const PIECES: usize = 16;
/// Products worth a task.
const WORK: usize = 200_000;
/// As in torch's `normalize`.
const SHORTEST: f32 = 1e-12;

/// q' = temperature q / |q|, k' = k / |k| (or q' = temperature q, k' = k unless `normalise`), and
/// out = softmax(q' k'^T over the visible keys) v.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attention {
    pub(crate) batch: usize,
    pub(crate) tokens: usize,
    pub(crate) heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) normalise: bool,
}

/// What backward needs: the log-sum-exp of the scores of every query, `[batch, heads, tokens]`.
#[derive(Clone, Debug)]
pub(crate) struct Saved(Vec<f32>);

/// Rows of numbers one after the other, filled up to whole vectors with zeros.
struct Rows {
    data: Vec<Lanes>,
    /// Vectors of a row.
    width: usize,
}

/// Where the rows of a tile lie: part `part` of the `parts` parts of each row of an image.
#[derive(Clone, Copy)]
struct Part<'a> {
    x: &'a [f32],
    parts: usize,
    part: usize,
    tile: usize,
}

impl Attention {
    /// `qkv` is `[tokens * batch, 3 heads head_dim]`, `temperature` `[heads]`; query t sees the keys
    /// `0..visible[t]`, which never decrease. The result is `[tokens * batch, heads head_dim]`.
    pub(crate) fn forward(
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
    pub(crate) fn append_and_attend(
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
            vectorised(
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

    /// The gradients of `qkv` and of `temperature`, given what forward got and gave.
    pub(crate) fn backward(
        &self,
        qkv: &[f32],
        temperature: &[f32],
        visible: &[u32],
        out: &[f32],
        saved: &Saved,
        grad: &[f32],
    ) -> (Vec<f32>, Vec<f32>) {
        const N: usize = BACKWARD * LANES;
        let (l, e, h) = (self.tokens, self.head_dim, self.heads);
        self.check(qkv, temperature);
        self.check_visible(visible);
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
                        *mean = vectorised(
                            #[inline(always)]
                            || sum_of_pairs(out, grad, |x, y| x * y),
                        );
                    }
                    let (saved, visible) = (&saved[tokens.clone()], &visible[tokens.clone()]);
                    let rows = [&q, &k, &v, &grad];
                    let gkv = [&mut *gk, &mut *gv];
                    let g = self.attend_backward(rows, saved, means, visible, gkv, &mut scratch);
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
        visible: &[u32],
        [gk, gv]: [&mut [Lanes]; 2],
        [p, d]: &mut [Vec<Lanes>; 2],
    ) -> Vec<Lanes> {
        const N: usize = BACKWARD * LANES;
        let (n, e, width) = (visible.len(), self.head_dim, self.width());
        let mut lse = [[0.0; LANES]; BACKWARD];
        lse.as_flattened_mut()[..n].copy_from_slice(saved);
        let (q_lanes, grad_lanes) = (q.transposed(), grad.transposed());
        let mut gq = vec![[0.0; LANES]; n * width];
        let all = visible[n - 1] as usize;
        for start in (0..all).step_by(KEYS) {
            let keys = start..all.min(start + KEYS);
            let at = start * width;
            let (k, v) = (&k.data[at..], &v.data[at..]);
            for (lane, visible) in visible.chunks(LANES).enumerate() {
                let (p, d) = (&mut p[lane..], &mut d[lane..]);
                let seen = (visible[visible.len() - 1] as usize).clamp(start, keys.end) - start;
                let lanes = lane * width * LANES..;
                let (q, grad) = (&q_lanes[lanes.clone()], &grad_lanes[lanes]);
                product::<true>(false, p, BACKWARD, seen, k.as_flattened(), width * LANES, q, 1, e);
                product::<true>(
                    false,
                    d,
                    BACKWARD,
                    seen,
                    v.as_flattened(),
                    width * LANES,
                    grad,
                    1,
                    e,
                );
                let (lse, mean) = (lse[lane], means[lane]);
                vectorised(
                    #[inline(always)]
                    || {
                        hide(p, BACKWARD, visible, keys.clone());
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
            let (p, d) = (p.as_flattened(), d.as_flattened());
            for c in 0..width {
                let (m, at) = (keys.len(), at + c);
                product::<true>(true, &mut gv[at..], width, m, p, N, &grad.data[c..], width, n);
                product::<true>(true, &mut gk[at..], width, m, d, N, &q.data[c..], width, n);
                product::<false>(true, &mut gq[c..], width, n, d, N, &k[c..], width, m);
            }
        }
        gq
    }

    fn tiles(&self) -> usize {
        self.batch * self.heads
    }

    /// Vectors of a row of a head.
    fn width(&self) -> usize {
        self.head_dim.div_ceil(LANES)
    }

    /// Tiles that are worth a task.
    fn tiles_of_task(&self, keys: usize) -> usize {
        1 + WORK / (self.tokens * keys * self.head_dim).max(1)
    }

    fn check(&self, qkv: &[f32], temperature: &[f32]) {
        let l = self.tokens;
        assert_eq!(qkv.len(), l * self.tiles() * 3 * self.head_dim, "the projection");
        assert!(l > 0 && temperature.len() == self.heads, "attention");
    }

    fn check_visible(&self, visible: &[u32]) {
        let l = self.tokens;
        assert!(
            visible.len() == l
                && visible.is_sorted()
                && visible[0] > 0
                && visible[l - 1] as usize <= l,
            "visible keys"
        );
    }

    #[inline(always)]
    fn row<'a>(&self, part: Part<'a>, token: usize) -> &'a [f32] {
        let (image, head) = (part.tile / self.heads, part.tile % self.heads);
        let at = ((token * self.batch + image) * part.parts + part.part) * self.heads + head;
        &part.x[at * self.head_dim..][..self.head_dim]
    }

    /// The rows of a tile; with a factor, times it and (if normalised) over their length.
    fn pack(&self, part: Part<'_>, tokens: Range<usize>, factor: Option<f32>) -> Rows {
        let mut rows = Rows::new(tokens.map(|token| self.row(part, token)), self.head_dim);
        if let Some(factor) = factor {
            vectorised(
                #[inline(always)]
                || {
                    for row in rows.data.chunks_exact_mut(rows.width) {
                        let row = row.as_flattened_mut();
                        let scale = factor * self.inverse_length(row);
                        row.iter_mut().for_each(|x| *x *= scale);
                    }
                },
            );
        }
        rows
    }

    #[inline(always)]
    fn inverse_length(&self, row: &[f32]) -> f32 {
        match self.normalise {
            true => 1.0 / sum_of(row, |x| x * x).sqrt().max(SHORTEST),
            false => 1.0,
        }
    }

    /// The gradient of x from that of x' = factor x / |x|, written to `out`:
    /// factor (g - n (n g)) / |x| with n = x / |x|. Returns the gradient of the factor, n g.
    fn project(&self, x: &[f32], g: &[f32], factor: f32, out: &mut [f32]) -> f32 {
        vectorised(
            #[inline(always)]
            || {
                let inverse = self.inverse_length(x);
                let along = inverse * sum_of_pairs(x, g, |x, g| x * g);
                // A constant length, as of vectors too short to normalise, takes nothing away.
                let fixed = !self.normalise || inverse >= 1.0 / SHORTEST;
                let back = if fixed { 0.0 } else { inverse * along };
                let scale = factor * inverse;
                for ((out, x), g) in out.iter_mut().zip(x).zip(g) {
                    *out = scale * x.mul_add(-back, *g);
                }
                along
            },
        )
    }

    /// The pieces of `x` (rows of `parts` parts) that belong to each tile: part by part, by token.
    fn rows_of_tiles<'a>(&self, x: &'a mut [f32], parts: usize) -> Vec<Vec<&'a mut [f32]>> {
        let (h, b, l) = (self.heads, self.batch, self.tokens);
        let mut rows: Vec<Vec<_>> = (0..b * h * parts).map(|_| Vec::with_capacity(l)).collect();
        for (i, row) in x.chunks_exact_mut(self.head_dim).enumerate() {
            let (head, part, image) = (i % h, i / h % parts, i / (h * parts) % b);
            rows[(image * h + head) * parts + part].push(row);
        }
        let mut rows = rows.into_iter();
        (0..b * h).map(|_| rows.by_ref().take(parts).flatten().collect()).collect()
    }
}

impl<'a> Part<'a> {
    /// q, k and v of a tile.
    fn of_projection(x: &'a [f32], tile: usize) -> [Self; 3] {
        from_fn(|part| Self { x, parts: 3, part, tile })
    }
}

impl Rows {
    fn new<'a>(rows: impl Iterator<Item = &'a [f32]>, len: usize) -> Self {
        let width = len.div_ceil(LANES);
        let mut data = Vec::with_capacity(rows.size_hint().0 * width);
        for row in rows {
            let (chunks, rest) = row.as_chunks();
            data.extend_from_slice(chunks);
            if !rest.is_empty() {
                data.push(from_fn(|i| rest.get(i).copied().unwrap_or(0.0)));
            }
        }
        Self { data, width }
    }

    fn write(&self, out: &mut [f32], len: usize) {
        for (out, row) in out.chunks_exact_mut(len).zip(self.data.chunks_exact(self.width)) {
            out.copy_from_slice(&row.as_flattened()[..len]);
        }
    }

    /// For every `LANES` rows (the last ones filled up with zeros) the vectors of their columns.
    fn transposed(&self) -> Vec<Lanes> {
        let cols = self.width * LANES;
        let rows = self.data.len() / self.width;
        let mut out = vec![[0.0; LANES]; rows.div_ceil(LANES) * cols];
        for (r, row) in self.data.chunks_exact(self.width).enumerate() {
            let out = &mut out[r / LANES * cols..][..cols];
            for (out, x) in out.iter_mut().zip(row.as_flattened()) {
                out[r % LANES] = *x;
            }
        }
        out
    }
}

/// Sets the scores of `keys` (vectors `stride` apart) that their queries do not see.
#[inline(always)]
fn hide(scores: &mut [Lanes], stride: usize, visible: &[u32], keys: Range<usize>) {
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
fn product<const ROWS: bool>(
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
    vectorised(
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

impl Attention {
    pub(super) fn new(config: AttentionConfig, rows: usize, d3: usize) -> Self {
        let AttentionConfig { batch, heads, normalise } = config;
        Self { batch, tokens: rows / batch, heads, head_dim: d3 / (3 * heads), normalise }
    }
}

/// `[qkv (l b, 3 d), temperature (h)]`
#[derive(Clone, Debug)]
pub(super) struct ScaleCausal {
    pub(super) attention: Attention,
    /// The end of what each token sees.
    pub(super) visible: Vec<u32>,
}

impl Kernel<2> for ScaleCausal {
    type Saved = Saved;
    const READS: [bool; 2] = [true, true];
    const READS_OUTPUT: bool = true;

    fn forward(&self, [qkv, temperature]: [&[f32]; 2]) -> (Vec<f32>, Saved) {
        self.attention.forward(qkv, temperature, &self.visible)
    }

    fn backward(&self, pass: Pass<'_, Saved, 2>) -> [Option<Gradient>; 2] {
        let ([qkv, temperature], Pass { output, saved, gradient, .. }) = (pass.inputs, pass);
        let (of_qkv, of_temperature) =
            self.attention.backward(qkv, temperature, &self.visible, output, saved, gradient);
        [Some(Gradient::New(of_qkv)), Some(Gradient::New(of_temperature))]
    }
}

/// Attends from new tokens to those in the caches `[b, h, capacity, e]` of keys and values and to
/// themselves, and appends them at `filled`.
pub(crate) fn cached_attention<B: Backend>(
    qkv_r3d: Tensor<B, 2>,
    temperature_h: Tensor<B, 1>,
    caches_bhle: [Tensor<B, 4>; 2],
    filled: usize,
    config: AttentionConfig,
) -> (Tensor<B, 2>, [Tensor<B, 4>; 2]) {
    let [rows, d3] = qkv_r3d.dims();
    let [_, _, capacity, _] = caches_bhle[0].dims();
    let attention = Attention::new(config, rows, d3);
    let (out, caches_bhle) = run_in_place(
        [primitive(qkv_r3d), primitive(temperature_h)],
        caches_bhle,
        |[qkv, temperature], [keys, values]| {
            attention.append_and_attend(qkv, temperature, keys, values, capacity, filled)
        },
    );
    (from_values(out, [rows, d3 / 3]), caches_bhle)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::*;

    /// Query t of a scale sees all scales up to its own.
    fn visible_of(scales: &[usize]) -> Vec<u32> {
        let mut sum = 0;
        let scales = scales.iter().flat_map(|s| {
            sum += s * s;
            vec![sum as u32; s * s]
        });
        scales.collect()
    }

    /// Output, gradient of qkv and of the temperature, all by the definition.
    fn exact(
        a: &Attention,
        qkv: &[f64],
        temperature: &[f64],
        visible: &[u32],
        grad: &[f64],
    ) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
        let (b, l, h, e) = (a.batch, a.tokens, a.heads, a.head_dim);
        let at = |token, image, part, head| ((token * b + image) * 3 + part) * h * e + head * e;
        let dot = |x: &[f64], y: &[f64]| -> f64 { x.iter().zip(y).map(|(x, y)| x * y).sum() };
        let length = |x: &[f64]| if a.normalise { dot(x, x).sqrt().max(1e-12) } else { 1.0 };
        let mut out = vec![0.0; l * b * h * e];
        let mut gqkv = vec![0.0; qkv.len()];
        let mut gtemperature = vec![0.0; h];
        for (image, head) in (0..b).flat_map(|i| (0..h).map(move |j| (i, j))) {
            let rows = |part| -> Vec<&[f64]> {
                (0..l).map(|t| &qkv[at(t, image, part, head)..][..e]).collect()
            };
            let (q, k, v) = (rows(0), rows(1), rows(2));
            let t = temperature[head];
            let (mut gq, mut gk) = (vec![vec![0.0; e]; l], vec![vec![0.0; e]; l]);
            for i in 0..l {
                let n = visible[i] as usize;
                let score = |j: usize| t * dot(q[i], k[j]) / (length(q[i]) * length(k[j]));
                let scores: Vec<f64> = (0..n).map(score).collect();
                let m = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|s| (s - m).exp()).sum();
                let p: Vec<f64> = scores.iter().map(|s| (s - m).exp() / sum).collect();
                let g = &grad[((i * b + image) * h + head) * e..][..e];
                let out = &mut out[((i * b + image) * h + head) * e..][..e];
                for j in 0..n {
                    (0..e).for_each(|c| out[c] += p[j] * v[j][c]);
                }
                let mean = dot(g, out);
                for j in 0..n {
                    let d = p[j] * (dot(g, v[j]) - mean);
                    gtemperature[head] += d * scores[j] / t;
                    for c in 0..e {
                        gqkv[at(j, image, 2, head) + c] += p[j] * g[c];
                        gq[i][c] += d * t * k[j][c] / length(k[j]);
                        gk[j][c] += d * t * q[i][c] / length(q[i]);
                    }
                }
            }
            for (part, x, g) in [(0, &q, &gq), (1, &k, &gk)] {
                for i in 0..l {
                    let along =
                        if a.normalise && length(x[i]) > 1e-12 { dot(x[i], &g[i]) } else { 0.0 };
                    for c in 0..e {
                        let n = length(x[i]);
                        gqkv[at(i, image, part, head) + c] =
                            (g[i][c] - x[i][c] * along / n / n) / n;
                    }
                }
            }
        }
        (out, gqkv, gtemperature)
    }

    fn example(
        batch: usize,
        heads: usize,
        head_dim: usize,
        normalise: bool,
        visible: &[u32],
    ) -> (Attention, [Vec<f32>; 3]) {
        let tokens = visible.len();
        let n = batch * tokens * heads * head_dim;
        let temperature = random(heads, 3).iter().map(|x| 3.0 + 2.0 * x).collect();
        let a = Attention { batch, tokens, heads, head_dim, normalise };
        (a, [random(3 * n, 1), temperature, random(n, 2)])
    }

    #[test]
    fn against_the_formula() {
        let causal: Vec<u32> = (1..=70).collect();
        let patterns = [
            vec![1],
            visible_of(&[1, 2, 3]),
            vec![5; 5],
            causal,
            visible_of(&[1, 2, 3, 4, 6, 9]),
            visible_of(&[12]),
        ];
        for visible in &patterns {
            for (b, h, e) in [(1, 1, 4), (2, 3, 8), (3, 1, 64), (1, 2, 17)] {
                for normalise in [true, false] {
                    let (a, [qkv, temperature, grad]) = example(b, h, e, normalise, visible);
                    let want = exact(&a, &wide(&qkv), &wide(&temperature), visible, &wide(&grad));
                    let (out, saved) = a.forward(&qkv, &temperature, visible);
                    // Without normalisation the scores are large.
                    let slack = if normalise { 1.0 } else { 10.0 };
                    assert_close("attention", &out, &want.0, slack * 1e-6);
                    let got = a.backward(&qkv, &temperature, visible, &out, &saved, &grad);
                    assert_close("gradient", &got.0, &want.1, slack * 2e-6);
                    // A sum over everything, of both signs.
                    let scale = wide(&grad).iter().map(|g| g.abs()).sum::<f64>();
                    for (got, want) in got.1.iter().zip(&want.2) {
                        assert!((f64::from(*got) - want).abs() < 1e-7 * scale, "{got} for {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn adjoint_of_the_formula() {
        for normalise in [true, false] {
            let visible = visible_of(&[1, 2]);
            let (a, x) = example(2, 2, 4, normalise, &visible);
            let [qkv, temperature, grad] = x.map(|x| wide(&x));
            let loss = |qkv: &[f64], temperature: &[f64]| -> f64 {
                exact(&a, qkv, temperature, &visible, &grad)
                    .0
                    .iter()
                    .zip(&grad)
                    .map(|(x, g)| x * g)
                    .sum()
            };
            let (_, gqkv, gtemperature) = exact(&a, &qkv, &temperature, &visible, &grad);
            assert_gradient(&qkv, &gqkv, |qkv| loss(qkv, &temperature));
            assert_gradient(&temperature, &gtemperature, |temperature| loss(&qkv, temperature));
        }
    }

    #[test]
    fn extremes() {
        // Scores of hundreds, and vectors of no length.
        let visible = visible_of(&[1, 2, 3]);
        let (a, [mut qkv, _, grad]) = example(2, 2, 8, true, &visible);
        let temperature = [200.0, 100.0];
        qkv[..5 * 8].fill(0.0);
        qkv[5 * 8..6 * 8].fill(1e-15);
        let (out, saved) = a.forward(&qkv, &temperature, &visible);
        let (want, ..) = exact(&a, &wide(&qkv), &wide(&temperature), &visible, &wide(&grad));
        assert_close("attention", &out, &want, 1e-4);
        let (gqkv, _) = a.backward(&qkv, &temperature, &visible, &out, &saved, &grad);
        assert!(gqkv.iter().all(|x| x.is_finite()));
    }

    #[test]
    fn cache_agrees_with_the_mask() {
        let scales = [1, 2, 3, 5, 9];
        let visible = visible_of(&scales);
        let (b, h, e, capacity) = (2, 3, 8, 130);
        let (a, [qkv, temperature, _]) = example(b, h, e, true, &visible);
        let want = a.forward(&qkv, &temperature, &visible).0;
        let mut caches = [(); 2].map(|()| vec![f32::NAN; b * h * capacity * e]);
        let mut filled = 0;
        for n in scales.map(|s| s * s) {
            let step = Attention { tokens: n, ..a };
            let row = b * h * e;
            let qkv = &qkv[3 * row * filled..][..3 * row * n];
            let [k, v] = &mut caches;
            let got = step.append_and_attend(qkv, &temperature, k, v, capacity, filled);
            assert_close("cached", &got, &wide(&want[row * filled..][..row * n]), 1e-6);
            filled += n;
        }
    }

    #[test]
    fn same_on_any_threads() {
        let visible = visible_of(&[1, 2, 3, 4, 6, 9, 12]);
        for (b, h) in [(1, 1), (2, 3)] {
            let (a, [qkv, temperature, grad]) = example(b, h, 64, true, &visible);
            assert_same_on_threads(|| {
                let (out, saved) = a.forward(&qkv, &temperature, &visible);
                let (gqkv, gt) = a.backward(&qkv, &temperature, &visible, &out, &saved, &grad);
                vec![out, saved.0, gqkv, gt]
            });
        }
    }
}
