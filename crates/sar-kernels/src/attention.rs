//! Multi-head self-attention straight from the joint projection of queries, keys and values.
//!
//! ```text
//! out = softmax(q' k'^T) v    over the tokens that are visible
//! q' = temperature q / |q|,   k' = k / |k|      with q/k normalization
//! q' = temperature q,         k' = k            without
//! ```
//! Lengths below 1e-12 count as 1e-12 (torch's `normalize`).

use burn::tensor::activation::softmax;
use burn::tensor::{Tensor, backend::Backend};

use crate::Visible;
use crate::precision::{cast, widened};

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
        return crate::cpu::attention(qkv_r3d, temperature_h, visible.seen(), config);
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

/// The keys and values of one block that tokens to come will see: those of a prefix and of the latest
/// tokens before them. Allocated once.
#[derive(Clone, Debug)]
pub struct KeyValueCache<B: Backend> {
    config: AttentionConfig,
    prefix: usize,
    capacity: usize,
    // Made for the first tokens that are kept; taken out while it is written, so that the write can
    // happen in place.
    k_v_bhle: Option<[Tensor<B, 4>; 2]>,
    filled: usize,
}

/// What becomes of a cache of `filled` tokens when others follow: of both, one after the other, the
/// tokens before `prefix` stay and the `dropped` ones after these go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kept {
    pub(crate) filled: usize,
    pub(crate) prefix: usize,
    pub(crate) dropped: usize,
    /// How many stay.
    pub(crate) tokens: usize,
}

impl<B: Backend> KeyValueCache<B> {
    /// An empty cache. The first `prefix` tokens always stay in it; `capacity` is the largest number of
    /// tokens that stay at any time.
    pub fn new(config: AttentionConfig, prefix: usize, capacity: usize) -> Self {
        Self { config, prefix, capacity, k_v_bhle: None, filled: 0 }
    }

    /// Number of tokens that are kept.
    pub fn tokens(&self) -> usize {
        self.filled
    }

    /// Forgets all tokens.
    pub fn clear(&mut self) {
        self.filled = 0;
    }

    /// Attends from `n` new tokens, each of which sees all tokens that are kept and all new ones. Then the
    /// prefix and the latest `window` tokens are kept, or all, if that is less.
    ///
    /// # Shapes
    /// - `qkv_r3d`: `[n b, 3 d]`, as in [`attention`]
    /// - `temperature_h`: `[h]`
    /// - output: `[n b, d]`
    ///
    /// # Panics
    /// If the shapes do not fit, or more is to be kept than the cache is for.
    pub fn attend(
        &mut self,
        qkv_r3d: Tensor<B, 2>,
        temperature_h: Tensor<B, 1>,
        window: usize,
    ) -> Tensor<B, 2> {
        let [n, e] = tokens_and_head_dim(&qkv_r3d, &temperature_h, self.config);
        let (filled, all) = (self.filled, self.filled + n);
        let tokens = all.min(self.prefix + window);
        let kept = Kept { filled, prefix: self.prefix, dropped: all - tokens, tokens };
        assert!(tokens <= self.capacity, "{tokens} tokens in a cache of {}", self.capacity);
        let AttentionConfig { batch: b, heads: h, .. } = self.config;
        let (dtype, device) = (qkv_r3d.dtype(), qkv_r3d.device());
        // No tensor is empty.
        let zeros = || Tensor::zeros([b, h, self.capacity.max(1), e], (&device, dtype));
        let caches = self.k_v_bhle.take().unwrap_or_else(|| [zeros(), zeros()]);
        self.filled = tokens;
        #[cfg(feature = "flex")]
        if crate::cpu::serves_untracked::<B>(&[dtype, temperature_h.dtype(), caches[0].dtype()]) {
            let (out_rd, caches) =
                crate::cpu::cached_attention(qkv_r3d, temperature_h, caches, kept, self.config);
            self.k_v_bhle = Some(caches);
            return out_rd;
        }
        let [q_bhle, k_bhle, v_bhle] = queries_keys_values(qkv_r3d, temperature_h, self.config);
        let [k_cache, v_cache] = caches;
        let (k_bhle, k_cache) = kept.append(k_cache, k_bhle);
        let (v_bhle, v_cache) = kept.append(v_cache, v_bhle);
        self.k_v_bhle = Some([k_cache, v_cache]);
        let shares = softmax(widened(q_bhle.matmul(k_bhle.swap_dims(2, 3))), 3);
        let out_bhle = cast(shares, dtype).matmul(v_bhle);
        out_bhle.permute([2, 0, 1, 3]).reshape([n * b, h * e])
    }
}

impl Kept {
    /// All tokens, those of a cache and new ones, and the cache with those that stay.
    fn append<B: Backend>(
        self,
        cache_bhle: Tensor<B, 4>,
        new_bhle: Tensor<B, 4>,
    ) -> (Tensor<B, 4>, Tensor<B, 4>) {
        let Self { filled, prefix, dropped, tokens } = self;
        let [b, h, n, e] = new_bhle.dims();
        let all = filled + n;
        if dropped == 0 {
            let cache_bhle = cache_bhle.slice_assign([0..b, 0..h, filled..all, 0..e], new_bhle);
            return (cache_bhle.clone().slice_dim(2, 0..all), cache_bhle);
        }
        let all_bhle = match filled {
            0 => new_bhle,
            _ => Tensor::cat(vec![cache_bhle.clone().slice_dim(2, 0..filled), new_bhle], 2),
        };
        if tokens == 0 {
            return (all_bhle, cache_bhle);
        }
        let parts = [0..prefix, prefix + dropped..all].into_iter().filter(|part| !part.is_empty());
        let parts = parts.map(|part| all_bhle.clone().slice_dim(2, part)).collect();
        let place = [0..b, 0..h, 0..tokens, 0..e];
        let cache_bhle = cache_bhle.slice_assign(place, Tensor::cat(parts, 2));
        (all_bhle, cache_bhle)
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
