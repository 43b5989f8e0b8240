//! The multi-scale image tokenizers of FlexVAR (arXiv:2502.20313) and VAR (arXiv:2404.02905): a
//! convolutional encoder and decoder around a codebook, encoding an image at any set of scales,
//! each directly or each as what the coarser ones leave.

pub mod autoencoder;
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
