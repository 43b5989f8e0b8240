#![doc = include_str!("README.md")]

/// A safetensors file.
pub const WEIGHTS: &[u8] = include_bytes!("efficientnet-lite0.safetensors");
