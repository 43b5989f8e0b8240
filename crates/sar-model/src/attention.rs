//! Scale-causal self-attention and its cache.
//!
//! Shapes: b batch, l tokens, h heads, e head dimension, d = h e; rows r = l b, token-major.

use burn::module::{Initializer, Module, Param};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::activation::softmax;
use burn::tensor::{Tensor, TensorData, backend::Backend};
use sar_core::ScaleSchedule;

use crate::BackboneConfig;

/// Added to the scores of tokens that must not be seen; its exponential is exactly zero.
const HIDDEN: f32 = -1e9;

/// A token sees every token of its own and of coarser scales.
///
/// # Shapes
/// - output: `[l, l]`, query by key: 0 where seen, [`HIDDEN`] elsewhere
pub(crate) fn scale_causal_mask<B: Backend>(
    schedule: &ScaleSchedule,
    device: &B::Device,
) -> Tensor<B, 2> {
    let l = schedule.n_tokens();
    let mut mask = vec![HIDDEN; l * l];
    for range in schedule.ranges() {
        for row in mask[range.start * l..range.end * l].chunks_exact_mut(l) {
            row[..range.end].fill(0.0);
        }
    }
    Tensor::from_data(TensorData::new(mask, [l, l]), device)
}

/// Keys and values of one block, allocated once for the whole pyramid.
#[derive(Clone, Debug)]
pub(crate) struct KeyValueCache<B: Backend> {
    // Taken out while a scale is written, so that the write can happen in place.
    k_bhle: Option<Tensor<B, 4>>,
    v_bhle: Option<Tensor<B, 4>>,
    filled: usize,
}

impl<B: Backend> KeyValueCache<B> {
    pub(crate) fn new(shape_bhle: [usize; 4], device: &B::Device) -> Self {
        let zeros = || Some(Tensor::zeros(shape_bhle, device));
        Self { k_bhle: zeros(), v_bhle: zeros(), filled: 0 }
    }

    /// Appends the keys and values of new tokens and returns all so far.
    fn append(&mut self, k: Tensor<B, 4>, v: Tensor<B, 4>) -> (Tensor<B, 4>, Tensor<B, 4>) {
        let [b, h, n, e] = k.dims();
        let end = self.filled + n;
        let put = |slot: &mut Option<Tensor<B, 4>>, new: Tensor<B, 4>| {
            let all = slot.take().expect("put back after every write");
            let all = all.slice_assign([0..b, 0..h, self.filled..end, 0..e], new);
            *slot = Some(all.clone());
            all.slice([0..b, 0..h, 0..end, 0..e])
        };
        let seen = (put(&mut self.k_bhle, k), put(&mut self.v_bhle, v));
        self.filled = end;
        seen
    }
}

/// What the queries of a pass may see.
pub(crate) enum Sight<'a, B: Backend> {
    /// All tokens of the pass, through a mask `[l, l]`.
    Masked(&'a Tensor<B, 2>),
    /// The cached tokens and all new ones.
    Cached(&'a mut KeyValueCache<B>),
}

/// Multi-head attention with learned query and value biases and no key bias.
#[derive(Module, Debug)]
pub(crate) struct Attention<B: Backend> {
    mat_qkv: Linear<B>,
    q_bias: Param<Tensor<B, 1>>,
    v_bias: Param<Tensor<B, 1>>,
    /// Logarithm of the temperature per head, `[1, h, 1, 1]`; with q/k normalisation only.
    scale_mul: Option<Param<Tensor<B, 4>>>,
    proj: Linear<B>,
    heads: usize,
}

impl<B: Backend> Attention<B> {
    pub(crate) fn new(config: &BackboneConfig, device: &B::Device) -> Self {
        let d = config.width;
        let zeros = || Initializer::Zeros.init([d], device);
        Self {
            mat_qkv: linear_layer(d, 3 * d, false, device),
            q_bias: zeros(),
            v_bias: zeros(),
            scale_mul: config
                .qk_l2_norm
                .then(|| Initializer::Zeros.init([1, config.heads, 1, 1], device)),
            proj: linear_layer(d, d, true, device),
            heads: config.heads,
        }
    }

    /// # Shapes
    /// - `x_rd` and output: `[l b, d]`, token-major
    pub(crate) fn forward(
        &self,
        x_rd: Tensor<B, 2>,
        batch: usize,
        sight: Sight<'_, B>,
    ) -> Tensor<B, 2> {
        let [r, d] = x_rd.dims();
        let (l, h, e) = (r / batch, self.heads, d / self.heads);

        let zero_k_bias = Tensor::zeros([d], &x_rd.device());
        let bias_1d = Tensor::cat(vec![self.q_bias.val(), zero_k_bias, self.v_bias.val()], 0);
        let qkv = self.mat_qkv.forward(x_rd) + bias_1d.unsqueeze();
        let qkv_3bhle = qkv.reshape([l, batch, 3, h, e]).permute([2, 1, 3, 0, 4]);
        let part = |i: usize| qkv_3bhle.clone().slice_dim(0, i..i + 1).reshape([batch, h, l, e]);
        let (q_bhle, k_bhle, v_bhle) = (part(0), part(1), part(2));

        // Either way the softmax scale is folded into the queries.
        let (q_bhle, k_bhle) = match &self.scale_mul {
            Some(scale_mul) => {
                let scale_1h11 = scale_mul.val().clamp_max(100f64.ln()).exp();
                (q_bhle.clone() * (scale_1h11 / length(q_bhle)), k_bhle.clone() / length(k_bhle))
            }
            None => (q_bhle * (0.25 / (e as f64).sqrt()), k_bhle),
        };

        let out_bhle = match sight {
            Sight::Masked(mask_ll) => {
                let scores = q_bhle.matmul(k_bhle.swap_dims(2, 3));
                // One shared row of l * l values: the broadcast that is fast everywhere.
                let scores =
                    scores.reshape([batch * h, l * l]) + mask_ll.clone().reshape([1, l * l]);
                softmax(scores.reshape([batch, h, l, l]), 3).matmul(v_bhle)
            }
            Sight::Cached(cache) => {
                let (k_bhle, v_bhle) = cache.append(k_bhle, v_bhle);
                softmax(q_bhle.matmul(k_bhle.swap_dims(2, 3)), 3).matmul(v_bhle)
            }
        };
        self.proj.forward(out_bhle.permute([2, 0, 1, 3]).reshape([r, d]))
    }
}

/// Length along the last dimension, at least 1e-12 (torch's `normalize`).
fn length<B: Backend>(x_bhle: Tensor<B, 4>) -> Tensor<B, 4> {
    x_bhle.square().sum_dim(3).sqrt().clamp_min(1e-12)
}

/// A linear layer whose parameters start at zero until they are filled.
pub(crate) fn linear_layer<B: Backend>(
    d_in: usize,
    d_out: usize,
    bias: bool,
    device: &B::Device,
) -> Linear<B> {
    LinearConfig::new(d_in, d_out).with_bias(bias).with_initializer(Initializer::Zeros).init(device)
}
