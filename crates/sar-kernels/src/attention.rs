//! Multi-head self-attention straight from the joint projection of queries, keys and values.
//!
//! ```text
//! out = softmax(q' k'^T) v    over the tokens that are visible
//! q' = temperature q / |q|,   k' = k / |k|      with q/k normalization
//! q' = temperature q,         k' = k            without
//! ```
//! Lengths below 1e-12 count as 1e-12 (torch's `normalize`).

use std::sync::OnceLock;

use burn::tensor::activation::softmax;
use burn::tensor::{Tensor, TensorData, backend::Backend};

use crate::precision::{cast, widened};

/// Added to the scores of tokens that must not be seen; its exponential is exactly zero.
const HIDDEN: f32 = -1e9;

/// How rows are attended to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionConfig {
    /// Images, b.
    pub batch: usize,
    /// Heads, h.
    pub heads: usize,
    /// Whether queries and keys are l2-normalized.
    pub normalize: bool,
}

/// What every token sees: the tokens before an end.
#[derive(Clone, Debug)]
pub struct Visible<B: Backend> {
    ends: Vec<usize>,
    mask_ll: OnceLock<Tensor<B, 2>>,
}

impl<B: Backend> Visible<B> {
    /// Token `t` sees the tokens `0..ends[t]`.
    ///
    /// # Panics
    /// If an end is 0, is smaller than the one before, or lies beyond the tokens.
    pub fn new(ends: Vec<usize>) -> Self {
        assert!(ends.is_sorted(), "a token sees all that earlier ones see");
        assert!(ends.first().is_none_or(|&first| first > 0), "every token sees one at least");
        assert!(ends.last().is_none_or(|&last| last <= ends.len()), "tokens that are there");
        Self { ends, mask_ll: OnceLock::new() }
    }

    /// Each of so many tokens sees all of them.
    pub fn all(tokens: usize) -> Self {
        Self::new(vec![tokens; tokens])
    }

    /// Number of tokens, l.
    pub fn tokens(&self) -> usize {
        self.ends.len()
    }

    /// 0 where seen, [`HIDDEN`] elsewhere: `[l, l]`, query by key. None where all is seen.
    fn mask(&self, device: &B::Device) -> Option<Tensor<B, 2>> {
        let l = self.tokens();
        if self.ends.first() == Some(&l) {
            return None;
        }
        let build = || {
            let mut mask = vec![HIDDEN; l * l];
            for (row, &end) in mask.chunks_exact_mut(l).zip(&self.ends) {
                row[..end].fill(0.0);
            }
            Tensor::from_data(TensorData::new(mask, [l, l]), device)
        };
        Some(self.mask_ll.get_or_init(build).clone().to_device(device))
    }
}

/// Attends from every token to those that it sees.
///
/// # Shapes
/// - `qkv_r3d`: `[l b, 3 d]`, token-major, queries, keys and values one after the other, each of
///   `h` heads
/// - `temperature_h`: `[h]`
/// - output: `[l b, d]`
///
/// # Panics
/// If the shapes do not fit.
pub fn attention<B: Backend>(
    qkv_r3d: Tensor<B, 2>,
    temperature_h: Tensor<B, 1>,
    visible: &Visible<B>,
    config: AttentionConfig,
) -> Tensor<B, 2> {
    let [l, e] = tokens_and_head_dim(&qkv_r3d, &temperature_h, config);
    assert_eq!(l, visible.tokens(), "tokens of the rows and of what they see");
    #[cfg(feature = "flex")]
    if crate::cpu::serves::<B>(&[qkv_r3d.dtype(), temperature_h.dtype()]) {
        return crate::cpu::attention(qkv_r3d, temperature_h, &visible.ends, config);
    }
    let AttentionConfig { batch: b, heads: h, .. } = config;
    let mask_ll = visible.mask(&qkv_r3d.device());
    let [q_bhle, k_bhle, v_bhle] = queries_keys_values(qkv_r3d, temperature_h, config);
    let dtype = v_bhle.dtype();
    let mut scores = widened(q_bhle.matmul(k_bhle.swap_dims(2, 3)));
    if let Some(mask_ll) = mask_ll {
        // One shared row of l * l values: the broadcast that is fast everywhere.
        let rows = scores.reshape([b * h, l * l]) + mask_ll.reshape([1, l * l]);
        scores = rows.reshape([b, h, l, l]);
    }
    let shares = cast(softmax(scores, 3), dtype);
    let out_bhle = shares.matmul(v_bhle);
    out_bhle.permute([2, 0, 1, 3]).reshape([l * b, h * e])
}

/// Keys and values of one block, allocated once for a whole pyramid.
#[derive(Clone, Debug)]
pub struct KeyValueCache<B: Backend> {
    config: AttentionConfig,
    capacity: usize,
    // Made for the first tokens; taken out while a scale is written, so that the write can happen in
    // place.
    k_v_bhle: Option<[Tensor<B, 4>; 2]>,
    filled: usize,
}

impl<B: Backend> KeyValueCache<B> {
    /// An empty cache for `capacity` tokens.
    pub fn new(config: AttentionConfig, capacity: usize) -> Self {
        Self { config, capacity, k_v_bhle: None, filled: 0 }
    }

    /// Appends `n` tokens, each of which sees all tokens so far and all new ones.
    ///
    /// # Shapes
    /// - `qkv_r3d`: `[n b, 3 d]`, as in [`attention`]
    /// - `temperature_h`: `[h]`
    /// - output: `[n b, d]`
    ///
    /// # Panics
    /// If the shapes do not fit, or the cache is full.
    pub fn attend(&mut self, qkv_r3d: Tensor<B, 2>, temperature_h: Tensor<B, 1>) -> Tensor<B, 2> {
        let [n, e] = tokens_and_head_dim(&qkv_r3d, &temperature_h, self.config);
        let (start, end) = (self.filled, self.filled + n);
        assert!(end <= self.capacity, "{end} tokens in a cache of {}", self.capacity);
        let AttentionConfig { batch: b, heads: h, .. } = self.config;
        let (dtype, device) = (qkv_r3d.dtype(), qkv_r3d.device());
        let zeros = || Tensor::zeros([b, h, self.capacity, e], (&device, dtype));
        let [k_bhle, v_bhle] = self.k_v_bhle.take().unwrap_or_else(|| [zeros(), zeros()]);
        self.filled = end;
        #[cfg(feature = "flex")]
        if crate::cpu::serves_untracked::<B>(&[dtype, temperature_h.dtype(), k_bhle.dtype()]) {
            let caches = [k_bhle, v_bhle];
            let (out_rd, caches) =
                crate::cpu::cached_attention(qkv_r3d, temperature_h, caches, start, self.config);
            self.k_v_bhle = Some(caches);
            return out_rd;
        }
        let [q_bhle, new_k, new_v] = queries_keys_values(qkv_r3d, temperature_h, self.config);
        let place = [0..b, 0..h, start..end, 0..e];
        let k_bhle = k_bhle.slice_assign(place.clone(), new_k);
        let v_bhle = v_bhle.slice_assign(place, new_v);
        self.k_v_bhle = Some([k_bhle.clone(), v_bhle.clone()]);
        let [k_bhle, v_bhle] = [k_bhle, v_bhle].map(|all| all.slice_dim(2, 0..end));
        let shares = softmax(widened(q_bhle.matmul(k_bhle.swap_dims(2, 3))), 3);
        let out_bhle = cast(shares, dtype).matmul(v_bhle);
        out_bhle.permute([2, 0, 1, 3]).reshape([n * b, h * e])
    }
}

/// q', k' and v of the module's equations, each `[b, h, l, e]`.
fn queries_keys_values<B: Backend>(
    qkv_r3d: Tensor<B, 2>,
    temperature_h: Tensor<B, 1>,
    config: AttentionConfig,
) -> [Tensor<B, 4>; 3] {
    let [l, e] = tokens_and_head_dim(&qkv_r3d, &temperature_h, config);
    let AttentionConfig { batch: b, heads: h, normalize } = config;
    let qkv_3bhle = qkv_r3d.reshape([l, b, 3, h, e]).permute([2, 1, 3, 0, 4]);
    let part = |i: usize| qkv_3bhle.clone().slice_dim(0, i..i + 1).reshape([b, h, l, e]);
    let (q_bhle, k_bhle, v_bhle) = (widened(part(0)), widened(part(1)), part(2));
    let temperature_1h11 = widened(temperature_h).reshape([1, h, 1, 1]);
    let length = |x: &Tensor<B, 4>| x.clone().square().sum_dim(3).clamp_min(1e-24).sqrt();
    let (q_bhle, k_bhle) = match normalize {
        true => {
            let (q_length, k_length) = (length(&q_bhle), length(&k_bhle));
            (q_bhle * (temperature_1h11 / q_length), k_bhle / k_length)
        }
        false => (q_bhle * temperature_1h11, k_bhle),
    };
    let dtype = v_bhle.dtype();
    [cast(q_bhle, dtype), cast(k_bhle, dtype), v_bhle]
}

fn tokens_and_head_dim<B: Backend>(
    qkv_r3d: &Tensor<B, 2>,
    temperature_h: &Tensor<B, 1>,
    config: AttentionConfig,
) -> [usize; 2] {
    let AttentionConfig { batch: b, heads: h, .. } = config;
    let [r, d3] = qkv_r3d.dims();
    assert!(
        b > 0 && r % b == 0 && d3 % (3 * h) == 0 && temperature_h.dims() == [h],
        "{r} rows of {d3} for {b} images and {h} heads"
    );
    [r / b, d3 / (3 * h)]
}
