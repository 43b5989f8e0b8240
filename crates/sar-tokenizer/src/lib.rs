//! The multi-scale image tokenizer of FlexVAR (arXiv:2502.20313): a convolutional encoder and
//! decoder around an l2-normalised codebook, encoding an image directly at any set of scales.

pub mod autoencoder;
mod block;
pub mod codebook;
pub mod config;
pub mod flexvar;
mod init;

pub use codebook::Codebook;
pub use config::{TokenizerConfig, TokenizerConfigError};
pub use flexvar::{FlexVarTokenizer, LAYOUT, Quantised};
pub use init::init;
