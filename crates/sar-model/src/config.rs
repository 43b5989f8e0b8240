//! What a backbone is made of.

use serde::{Deserialize, Serialize};

/// Shape of a FlexVAR backbone (SPEC 4).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackboneConfig {
    /// Number of blocks.
    pub depth: usize,
    /// Channels of a token, d.
    pub width: usize,
    /// Attention heads, h; `width` is a multiple of it.
    pub heads: usize,
    /// Hidden channels of the MLP as a multiple of `width`.
    pub mlp_ratio: usize,
    /// Number of classes; the null class of guidance comes on top.
    pub classes: usize,
    /// Number of codes, v.
    pub codebook_size: usize,
    /// Channels of a code, c.
    pub codebook_dim: usize,
    /// One adaptive projection for all blocks plus an offset per block, instead of one each.
    pub shared_adaln: bool,
    /// l2-normalised queries and keys with a learned temperature per head.
    pub qk_l2_norm: bool,
    /// Side of the learned grid that positions are resampled from (published: 32).
    pub position_grid: usize,
}

/// A backbone configuration that cannot be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct BackboneConfigError {
    /// The offending field.
    pub field: &'static str,
    /// What is wrong and what would be right.
    pub problem: String,
}

impl BackboneConfig {
    /// The published shape of a depth (width 64 * depth, head dimension 64) for ImageNet.
    pub fn flexvar(depth: usize) -> Self {
        Self {
            depth,
            width: 64 * depth,
            heads: depth,
            mlp_ratio: 4,
            classes: 1000,
            codebook_size: 8912,
            codebook_dim: 32,
            shared_adaln: false,
            qk_l2_norm: true,
            position_grid: 32,
        }
    }

    /// Checks that the configuration can be built.
    ///
    /// # Errors
    /// The first field that cannot be.
    pub fn validate(&self) -> Result<(), BackboneConfigError> {
        let err = |field, problem: String| Err(BackboneConfigError { field, problem });
        for (field, value) in [
            ("depth", self.depth),
            ("width", self.width),
            ("heads", self.heads),
            ("mlp_ratio", self.mlp_ratio),
            ("classes", self.classes),
            ("codebook_size", self.codebook_size),
            ("codebook_dim", self.codebook_dim),
            ("position_grid", self.position_grid),
        ] {
            if value == 0 {
                return err(field, "must be positive".into());
            }
        }
        if !self.width.is_multiple_of(self.heads) {
            let problem = format!("{} is not a multiple of heads ({})", self.width, self.heads);
            return err("width", problem);
        }
        if !self.width.is_multiple_of(2) {
            return err("width", format!("{} is odd; positions pair their channels", self.width));
        }
        Ok(())
    }
}
