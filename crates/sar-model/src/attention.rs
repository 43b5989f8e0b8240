//! Self-attention among the tokens that are visible.
//!
//! Shapes: b batch, l tokens, h heads, e head dimension, d = h e; rows r = l b, token-major.

use burn::module::{Initializer, Module, Param};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Tensor, backend::Backend};
use sar_kernels::{AttentionConfig, KeyValueCache, Visible, attention, linear, widened};

use crate::BackboneConfig;

/// How the tokens of a pass are attended to: all scales at once, or one after the other.
pub(crate) enum AttentionMode<'a, B: Backend> {
    /// All tokens are in the pass; each attends to those of it that it may see.
    Parallel(&'a Visible<B>),
    /// The tokens of one scale are new; each attends to the cached tokens and to all new ones. Then so many
    /// of the latest tokens are kept, beside the class token.
    Cached(&'a mut KeyValueCache<B>, usize),
}

/// Multi-head attention with learned query and value biases and no key bias.
#[derive(Module, Debug)]
pub(crate) struct Attention<B: Backend> {
    mat_qkv: Linear<B>,
    q_bias: Param<Tensor<B, 1>>,
    v_bias: Param<Tensor<B, 1>>,
    /// Logarithm of the temperature per head, `[1, h, 1, 1]`; with q/k normalization only.
    scale_mul: Option<Param<Tensor<B, 4>>>,
    proj: Linear<B>,
    heads: usize,
}

impl<B: Backend> Attention<B> {
    pub(crate) fn new(config: &BackboneConfig, device: &B::Device) -> Self {
        let d = config.shape.width;
        let zeros = || Initializer::Zeros.init([d], device);
        Self {
            mat_qkv: linear_layer(d, 3 * d, false, device),
            q_bias: zeros(),
            v_bias: zeros(),
            scale_mul: config
                .shape
                .qk_l2_norm
                .then(|| Initializer::Zeros.init([1, config.shape.heads, 1, 1], device)),
            proj: linear_layer(d, d, true, device),
            heads: config.shape.heads,
        }
    }

    /// # Shapes
    /// - `x_rd` and output: `[l b, d]`, token-major
    pub(crate) fn forward(
        &self,
        x_rd: Tensor<B, 2>,
        batch: usize,
        mode: AttentionMode<'_, B>,
    ) -> Tensor<B, 2> {
        let [_, d] = x_rd.dims();
        let zero_k_bias = Tensor::zeros([d], &x_rd.device());
        let bias_3d = Tensor::cat(vec![self.q_bias.val(), zero_k_bias, self.v_bias.val()], 0);
        let qkv_r3d = linear(x_rd, self.mat_qkv.weight.val(), bias_3d);
        let out_rd = match mode {
            AttentionMode::Parallel(visible) => {
                attention(qkv_r3d, self.temperature_h(d), visible, self.config(batch))
            }
            AttentionMode::Cached(cache, window) => {
                cache.attend(qkv_r3d, self.temperature_h(d), window)
            }
        };
        apply(&self.proj, out_rd)
    }

    /// An empty cache that keeps the class token and `capacity` tokens at most.
    pub(crate) fn cache(&self, batch: usize, capacity: usize) -> KeyValueCache<B> {
        KeyValueCache::new(self.config(batch), 1, capacity)
    }

    fn config(&self, batch: usize) -> AttentionConfig {
        AttentionConfig { batch, heads: self.heads, normalize: self.scale_mul.is_some() }
    }

    /// The factor of each head's queries, `[h]`: learned with q/k normalization, else `1/(4 sqrt e)`.
    fn temperature_h(&self, d: usize) -> Tensor<B, 1> {
        let h = self.heads;
        match &self.scale_mul {
            Some(scale_mul) => scale_mul.val().reshape([h]).clamp_max(100f64.ln()).exp(),
            None => {
                let e = (d / h) as f64;
                Tensor::full([h], 0.25 / e.sqrt(), &self.q_bias.device())
            }
        }
    }
}

/// A linear layer with bias, applied to rows; in single precision, whatever that of the layer is.
pub(crate) fn project<B: Backend>(layer: &Linear<B>, x_ri: Tensor<B, 2>) -> Tensor<B, 2> {
    widened(apply(layer, x_ri))
}

/// A linear layer with bias, applied to rows.
pub(crate) fn apply<B: Backend>(layer: &Linear<B>, x_ri: Tensor<B, 2>) -> Tensor<B, 2> {
    let bias_o = layer.bias.as_ref().expect("built with a bias").val();
    linear(x_ri, layer.weight.val(), bias_o)
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
