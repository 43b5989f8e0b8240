#![doc = include_str!("README.md")]

/// The sheet: lossless WebP, RGBA, tiles of 64x64 pixels.
pub const SHEET: &[u8] = include_bytes!("noto-emoji-64.webp");

/// What is on it: JSON.
pub const INDEX: &str = include_str!("noto-emoji.json");
