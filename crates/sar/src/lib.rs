#![doc = include_str!("../README.md")]

#[doc(inline)]
pub use sar_core as core;
#[doc(inline)]
pub use sar_kernels as kernels;
#[doc(inline)]
pub use sar_weights as weights;

#[doc(inline)]
pub use sar_loss as loss;
#[doc(inline)]
pub use sar_model as model;
#[doc(inline)]
pub use sar_rollout as rollout;
#[doc(inline)]
pub use sar_tokenizer as tokenizer;

#[cfg(feature = "emoji-weights")]
#[doc(inline)]
pub use sar_emoji_weights as emoji_weights;
#[doc(inline)]
pub use sar_pipeline as pipeline;

#[cfg(feature = "eval")]
#[doc(inline)]
pub use sar_eval as eval;
#[doc(inline)]
pub use sar_features as features;
#[doc(inline)]
pub use sar_metrics as metrics;

#[cfg(feature = "data")]
#[doc(inline)]
pub use sar_data as data;
#[cfg(feature = "discriminator")]
#[doc(inline)]
pub use sar_discriminator as discriminator;
#[cfg(feature = "train")]
#[doc(inline)]
pub use sar_exchange as exchange;
#[cfg(feature = "train")]
#[doc(inline)]
pub use sar_train as train;
