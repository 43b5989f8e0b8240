#![doc = include_str!("../README.md")]

pub mod autoencoder;
mod bands;
mod block;
pub mod codebook;
pub mod color;
pub mod config;
pub mod disturbance;
mod init;
mod last_layer;
pub mod quantizer;
mod released;
mod residual;
pub mod tokenizer;

pub use bands::MapLimits;
pub use codebook::{Codebook, Metric};
pub use color::{ColorAxes, ColorMoments};
pub use config::{CodebookGrowth, Family, Phi, TokenizerConfig, TokenizerConfigError};
pub use disturbance::{Disturbance, Perturbation};
pub use init::{Init, init};
pub use last_layer::last_layer_gradient;
pub use quantizer::{Quantized, Quantizer};
pub use released::ANCHOR;
pub use residual::Residual;
pub use tokenizer::Tokenizer;
