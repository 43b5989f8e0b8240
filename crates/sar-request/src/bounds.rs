//! How much one request may ask for.

use serde::Serialize;

/// How much one request may ask for.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Bounds {
    /// Pictures.
    pub count: usize,
    /// Pixels of all pictures.
    pub pixels: usize,
    /// Tokens of all pictures.
    pub tokens: usize,
    /// Pixels of a picture that is sent.
    pub sent_pixels: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            // As many as `sar sample` draws together: the same pictures to the bit.
            count: 16,
            pixels: 1 << 20,
            tokens: 1 << 14,
            sent_pixels: 1 << 21,
        }
    }
}
