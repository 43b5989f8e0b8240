#![doc = include_str!("README.md")]

/// The tokenizer: a safetensors file.
pub const TOKENIZER: &[u8] = include_bytes!("tokenizer.safetensors");

/// The backbone, as it was after SAR: a safetensors file.
pub const BACKBONE: &[u8] = include_bytes!("backbone-sar.safetensors");
