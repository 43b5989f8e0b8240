//! Multi-head self-attention straight from the rows of the fused projection.
//!
//! A tile is one head of one image. Its keys and values are packed once; its queries are taken in
//! blocks, whose scores lie transposed, `[keys, queries]`, so that `LANES` queries are the lanes of
//! vectors: the softmax then runs down the lanes, and all products are sums of a number times a
//! vector. Keys that no query of a block sees are not touched: what a block sees is a prefix and a
//! range, or one range. Rows of results are written in place:
//! row `token`, piece `tile` of an output `[tokens, tiles, head_dim]` are handed to the tile as a
//! list of slices.

mod backward;
mod forward;
mod product;
#[cfg(test)]
mod tests;

use std::array::from_fn;
use std::ops::Range;

use super::kernel::{Gradient, Kernel, Pass, from_values, primitive, run_in_place};
use super::simd::{LANES, sum_of, vectorized};
use crate::AttentionConfig;
use crate::attention::Kept;
use crate::visible::{Seen, Span};
use burn::tensor::{Tensor, backend::Backend};

type Lanes = [f32; LANES];

/// Keys whose products with a block of queries are taken at once.
const KEYS: usize = 96;
/// Products worth a task.
const WORK: usize = 200_000;
/// As in torch's `normalize`.
const SHORTEST: f32 = 1e-12;

/// q' = temperature q / |q|, k' = k / |k| (or q' = temperature q, k' = k unless `normalize`), and
/// out = softmax(q' k'^T over the visible keys) v.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attention {
    pub(crate) batch: usize,
    pub(crate) tokens: usize,
    pub(crate) heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) normalize: bool,
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
    pub(super) fn new(config: AttentionConfig, rows: usize, d3: usize) -> Self {
        let AttentionConfig { batch, heads, normalize } = config;
        Self { batch, tokens: rows / batch, heads, head_dim: d3 / (3 * heads), normalize }
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

    fn check_seen(&self, seen: &Seen) {
        assert_eq!(seen.spans.len(), self.tokens, "visible keys");
        seen.check();
    }

    #[inline(always)]
    fn row<'a>(&self, part: Part<'a>, token: usize) -> &'a [f32] {
        let (image, head) = (part.tile / self.heads, part.tile % self.heads);
        let at = ((token * self.batch + image) * part.parts + part.part) * self.heads + head;
        &part.x[at * self.head_dim..][..self.head_dim]
    }

    /// The rows of a tile; with a factor, times it and (if normalized) over their length.
    fn pack(&self, part: Part<'_>, tokens: Range<usize>, factor: Option<f32>) -> Rows {
        let mut rows = Rows::new(tokens.map(|token| self.row(part, token)), self.head_dim);
        if let Some(factor) = factor {
            vectorized(
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
        match self.normalize {
            true => 1.0 / sum_of(row, |x| x * x).sqrt().max(SHORTEST),
            false => 1.0,
        }
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

/// The keys that a block of queries sees, each part behind how many there are before it: those of the
/// prefix, and from the first start to the last end. Where these meet they are one part.
fn keys_of(prefix: usize, spans: &[Span]) -> impl Iterator<Item = (usize, Range<usize>)> + Clone {
    let (start, end) = (spans[0].start as usize, spans[spans.len() - 1].end as usize);
    let prefix = if start <= prefix { start } else { prefix };
    [(0, 0..prefix), (prefix, start..end)].into_iter().filter(|(_, keys)| !keys.is_empty())
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

    /// A row without what fills it up.
    fn row(&self, at: usize, len: usize) -> &[f32] {
        &self.data[at * self.width..][..self.width].as_flattened()[..len]
    }

    /// The columns one after the other, filled up to whole vectors of rows with zeros.
    fn transposed(&self) -> Vec<Lanes> {
        let vectors = (self.data.len() / self.width).div_ceil(LANES);
        let mut out = vec![[0.0; LANES]; self.width * LANES * vectors];
        for (r, row) in self.data.chunks_exact(self.width).enumerate() {
            for (out, x) in out.chunks_exact_mut(vectors).zip(row.as_flattened()) {
                out[r / LANES][r % LANES] = *x;
            }
        }
        out
    }
}

/// `[qkv (l b, 3 d), temperature (h)]`
#[derive(Clone, Debug)]
pub(super) struct Windowed {
    pub(super) attention: Attention,
    pub(super) seen: Seen,
}

impl Kernel<2> for Windowed {
    type Saved = Saved;
    const READS: [bool; 2] = [true, true];
    const READS_OUTPUT: bool = true;

    fn forward(&self, [qkv, temperature]: [&[f32]; 2]) -> (Vec<f32>, Saved) {
        self.attention.forward(qkv, temperature, &self.seen)
    }

    fn backward(&self, pass: Pass<'_, Saved, 2>) -> [Option<Gradient>; 2] {
        let ([qkv, temperature], Pass { output, saved, gradient, .. }) = (pass.inputs, pass);
        let (of_qkv, of_temperature) =
            self.attention.backward(qkv, temperature, &self.seen, output, saved, gradient);
        [Some(Gradient::New(of_qkv)), Some(Gradient::New(of_temperature))]
    }
}

/// Attends from new tokens to those in the caches `[b, h, capacity, e]` of keys and values and to
/// themselves, and leaves in the caches what stays.
pub(crate) fn cached_attention<B: Backend>(
    qkv_r3d: Tensor<B, 2>,
    temperature_h: Tensor<B, 1>,
    caches_bhle: [Tensor<B, 4>; 2],
    kept: Kept,
    config: AttentionConfig,
) -> (Tensor<B, 2>, [Tensor<B, 4>; 2]) {
    let [rows, d3] = qkv_r3d.dims();
    let [_, _, capacity, _] = caches_bhle[0].dims();
    let attention = Attention::new(config, rows, d3);
    let (out, caches_bhle) = run_in_place(
        [primitive(qkv_r3d), primitive(temperature_h)],
        caches_bhle,
        |[qkv, temperature], caches| {
            attention.attend_and_keep(qkv, temperature, caches, capacity, kept)
        },
    );
    (from_values(out, [rows, d3 / 3]), caches_bhle)
}
