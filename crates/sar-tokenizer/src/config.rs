//! What a tokenizer is made of.

use serde::{Deserialize, Serialize};

/// Channels per group normalisation are split into this many groups, as released (SPEC 3).
pub const GROUPS: usize = 32;

/// Shape of a FlexVAR tokenizer (a VQ-16 of LlamaGen's family; SPEC 3).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerConfig {
    /// Channels of the first level, a multiple of 32.
    pub base_channels: usize,
    /// Channels of each level as a multiple of `base_channels`; each level but the last halves the
    /// side.
    pub channel_multipliers: Vec<usize>,
    /// Residual blocks per level of the encoder; the decoder has one more.
    pub res_blocks: usize,
    /// Channels between encoder and `quant_conv`.
    pub z_channels: usize,
    /// Number of codes, v.
    pub codebook_size: usize,
    /// Channels of a code, c.
    pub codebook_dim: usize,
}

/// A tokenizer configuration that cannot be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct TokenizerConfigError {
    /// The offending field.
    pub field: &'static str,
    /// What is wrong and what would be right.
    pub problem: String,
}

impl TokenizerConfig {
    /// The released FlexVAR tokenizer: 72.05 M parameters, 16 px per token.
    pub fn flexvar() -> Self {
        Self {
            base_channels: 128,
            channel_multipliers: vec![1, 1, 2, 2, 4],
            res_blocks: 2,
            z_channels: 256,
            codebook_size: 8912,
            codebook_dim: 32,
        }
    }

    /// Pixels per latent position along one axis.
    pub fn downsampling(&self) -> usize {
        1 << (self.channel_multipliers.len() - 1)
    }

    /// Channels of level `i`.
    pub fn channels(&self, level: usize) -> usize {
        self.base_channels * self.channel_multipliers[level]
    }

    /// Checks that the configuration can be built.
    ///
    /// # Errors
    /// The first field that cannot be.
    pub fn validate(&self) -> Result<(), TokenizerConfigError> {
        let err = |field, problem: String| Err(TokenizerConfigError { field, problem });
        if self.base_channels == 0 || !self.base_channels.is_multiple_of(GROUPS) {
            let problem = format!(
                "{} is not a multiple of {GROUPS} (group normalisation)",
                self.base_channels
            );
            return err("base_channels", problem);
        }
        let levels = self.channel_multipliers.len();
        if levels == 0 || levels > 8 || self.channel_multipliers.contains(&0) {
            return err(
                "channel_multipliers",
                "needs 1 to 8 positive numbers, one per level".into(),
            );
        }
        for (field, value, least) in [
            ("res_blocks", self.res_blocks, 1),
            ("z_channels", self.z_channels, 1),
            ("codebook_size", self.codebook_size, 2),
            ("codebook_dim", self.codebook_dim, 1),
        ] {
            if value < least {
                return err(field, format!("{value} is less than {least}"));
            }
        }
        Ok(())
    }
}
