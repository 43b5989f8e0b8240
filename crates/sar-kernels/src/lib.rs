#![doc = include_str!("../README.md")]
//!
//! Hand-written code makes one pass over memory where the plain form makes many, takes matrix products
//! straight from the layout that is there, and has gradients that recompute instead of storing. Backends are recognized by
//! the type of their tensors, so no bound but `B: Backend` is needed to call them.
//!
//! Half precision (`f16`, `bf16`) is for matrix products: [`linear`] computes in the type of its
//! weights, attention multiplies in the type of its rows; norms, softmax, residuals and losses are
//! computed in single precision whatever comes in.
//!
//! What a hand-written operator returns depends on its arguments and the vector instructions that it
//! runs with (`CpuLevel`) alone: not on the number of threads, and not on what else runs.
//!
//! | operator | used for |
//! |---|---|
//! | [`linear`] | every projection |
//! | [`layer_norm_modulated`], [`gated_residual`] | adaptive layer norm |
//! | [`gelu_tanh`] | the MLP |
//! | [`attention`], [`KeyValueCache`] | self-attention over what is [`Visible`], whole pyramids and scale by scale |
//! | [`conv2d`], [`group_norm`], [`double_sides`] | the tokenizer |
//! | [`GroupMoments`], [`group_norm_by`] | the same in bands of rows, where a map is too large |
//! | [`square_conv`], [`convolve`], [`normalize`] | burn's layers, computed by these operators |
//! | [`inverted_bottleneck`] | the network that features come from |
//! | [`cross_entropy`], [`soft_cross_entropy`] | the objectives |
//! | [`filtered`] | draws |
//! | [`adamw`], [`orthogonalized`], [`sum_of_squares`] | the optimizers |
//!
//! Shapes: b batch, l tokens, h heads, e head dimension, d = h e, v codes; rows r = l b,
//! token-major: all images of the first token, then all of the second.

mod adaln;
mod adamw;
mod attention;
mod bottleneck;
mod conv;
#[cfg(feature = "flex")]
mod cpu;
mod cross_entropy;
mod filtered;
mod gelu;
mod group_norm;
mod layers;
mod linear;
mod orthogonal;
mod precision;
mod visible;

pub use adaln::{gated_residual, layer_norm_modulated};
pub use adamw::{AdamWStep, adamw, sum_of_squares};
pub use attention::{AttentionConfig, KeyValueCache, attention};
pub use bottleneck::inverted_bottleneck;
pub use conv::{conv2d, double_sides};
#[cfg(feature = "flex")]
pub use cpu::CpuLevel;
pub use cross_entropy::{cross_entropy, soft_cross_entropy};
pub use filtered::filtered;
pub use gelu::gelu_tanh;
pub use group_norm::{GroupMoments, GroupNormConfig, group_norm, group_norm_by};
pub use layers::{convolve, convolve_between, normalize, normalize_by, square_conv};
pub use linear::linear;
pub use orthogonal::orthogonalized;
pub use precision::widened;
pub use visible::Visible;
