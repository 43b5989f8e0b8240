//! The transformer block and its adaptive parameters.
//!
//! ```text
//! x += gamma1 * attn(ln(x) * (1 + scale1) + shift1)
//! x += gamma2 *  mlp(ln(x) * (1 + scale2) + shift2)
//! ```
//! Shapes: b batch, d width; rows r = l b, token-major.

use burn::module::{Initializer, Module, Param};
use burn::nn::Linear;
use burn::tensor::{Tensor, backend::Backend};
use sar_kernels::{KeyValueCache, gated_residual, gelu_tanh, layer_norm_modulated};

use crate::BackboneConfig;
use crate::attention::{Attention, AttentionMode, apply, linear_layer, project};

/// Epsilon of every layer norm.
pub(crate) const EPSILON: f64 = 1e-6;

/// The adaptive parameters of one block for a batch, each `[b, d]`.
#[derive(Clone, Debug)]
pub(crate) struct Modulation<B: Backend> {
    gamma1: Tensor<B, 2>,
    gamma2: Tensor<B, 2>,
    scale1: Tensor<B, 2>,
    scale2: Tensor<B, 2>,
    shift1: Tensor<B, 2>,
    shift2: Tensor<B, 2>,
}

impl<B: Backend> Modulation<B> {
    /// Splits `[b, 6, d]` in the released order.
    fn split(parameters_b6d: Tensor<B, 3>) -> Self {
        let [b, _, d] = parameters_b6d.dims();
        let part = |i: usize| parameters_b6d.clone().slice_dim(1, i..i + 1).reshape([b, d]);
        Self {
            gamma1: part(0),
            gamma2: part(1),
            scale1: part(2),
            scale2: part(3),
            shift1: part(4),
            shift2: part(5),
        }
    }

    /// Stochastic depth: scales each branch by 0 or by 1 / keep probability, per image.
    ///
    /// # Shapes
    /// - `keep_2b`: `[2, b]`, attention branch and MLP branch
    pub(crate) fn with_drops(mut self, keep_2b: Tensor<B, 2>) -> Self {
        let [_, b] = keep_2b.dims();
        let scale = |gamma_bd: Tensor<B, 2>, branch: usize| {
            gamma_bd * keep_2b.clone().slice_dim(0, branch..branch + 1).reshape([b, 1])
        };
        self.gamma1 = scale(self.gamma1, 0);
        self.gamma2 = scale(self.gamma2, 1);
        self
    }
}

/// Where a block's adaptive parameters come from.
#[derive(Module, Debug)]
pub(crate) struct Block<B: Backend> {
    attn: Attention<B>,
    ffn: FeedForward<B>,
    /// A projection of its own, or
    ada_lin: Option<Linear<B>>,
    /// an offset to the shared one, `[1, 1, 6, d]`.
    ada_gss: Option<Param<Tensor<B, 4>>>,
}

impl<B: Backend> Block<B> {
    pub(crate) fn new(config: &BackboneConfig, device: &B::Device) -> Self {
        let d = config.shape.width;
        let shared = config.shape.shared_adaln;
        Self {
            attn: Attention::new(config, device),
            ffn: FeedForward::new(d, config.shape.mlp_ratio * d, device),
            ada_lin: (!shared).then(|| linear_layer(d, 6 * d, true, device)),
            ada_gss: shared.then(|| Initializer::Zeros.init([1, 1, 6, d], device)),
        }
    }

    /// The adaptive parameters for a batch of conditions.
    ///
    /// # Shapes
    /// - `activated_bd`: SiLU of the class embedding, `[b, d]`
    /// - `shared_b6d`: the shared projection of it, where the model has one
    pub(crate) fn modulation(
        &self,
        activated_bd: &Tensor<B, 2>,
        shared_b6d: Option<&Tensor<B, 3>>,
    ) -> Modulation<B> {
        let [b, d] = activated_bd.dims();
        Modulation::split(match (&self.ada_lin, &self.ada_gss, shared_b6d) {
            (Some(own), ..) => project(own, activated_bd.clone()).reshape([b, 6, d]),
            (None, Some(offset), Some(shared)) => offset.val().reshape([1, 6, d]) + shared.clone(),
            _ => unreachable!("a block has its own projection or an offset to the shared one"),
        })
    }

    /// # Shapes
    /// - `x_rd` and output: `[l b, d]`
    pub(crate) fn forward(
        &self,
        x_rd: Tensor<B, 2>,
        batch: usize,
        m: Modulation<B>,
        mode: AttentionMode<'_, B>,
    ) -> Tensor<B, 2> {
        let y = layer_norm_modulated(x_rd.clone(), m.scale1, m.shift1, EPSILON);
        let x_rd = gated_residual(x_rd, self.attn.forward(y, batch, mode), m.gamma1);
        let y = layer_norm_modulated(x_rd.clone(), m.scale2, m.shift2, EPSILON);
        gated_residual(x_rd, self.ffn.forward(y), m.gamma2)
    }

    /// An empty cache that keeps the class token and `capacity` tokens at most.
    pub(crate) fn cache(&self, batch: usize, capacity: usize) -> KeyValueCache<B> {
        self.attn.cache(batch, capacity)
    }
}

/// Two linear layers around a tanh-approximated GELU.
#[derive(Module, Debug)]
pub(crate) struct FeedForward<B: Backend> {
    fc1: Linear<B>,
    fc2: Linear<B>,
}

impl<B: Backend> FeedForward<B> {
    fn new(d: usize, hidden: usize, device: &B::Device) -> Self {
        Self {
            fc1: linear_layer(d, hidden, true, device),
            fc2: linear_layer(hidden, d, true, device),
        }
    }

    fn forward(&self, x_rd: Tensor<B, 2>) -> Tensor<B, 2> {
        apply(&self.fc2, gelu_tanh(apply(&self.fc1, x_rd)))
    }
}
