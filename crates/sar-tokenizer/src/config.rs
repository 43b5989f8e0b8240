//! What a tokenizer is made of.

use serde::{Deserialize, Serialize};

/// Channels per group normalization are split into this many groups, as released.
pub const GROUPS: usize = 32;

/// Which published tokenizer one is built like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Family {
    /// FlexVAR: every scale is encoded directly, codes are compared by angle, quant convolutions
    /// are 1x1.
    Flexvar,
    /// VAR: every scale encodes what the coarser ones leave, codes are compared by distance, quant
    /// convolutions are 3x3.
    Var {
        /// The convolutions that smooth enlarged code maps.
        phi: Phi,
    },
}

/// How many convolutions VAR's scales share. Each scale takes the nearest one; the number and the
/// names in a released file are all that differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phi {
    /// So many, shared by all scales (published: 4).
    Shared(usize),
    /// One for each of so many scales.
    PerScale(usize),
}

impl Phi {
    /// Number of convolutions.
    pub const fn convolutions(self) -> usize {
        match self {
            Self::Shared(n) | Self::PerScale(n) => n,
        }
    }
}

/// Shape of a tokenizer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerConfig {
    /// How images are encoded and codes compared.
    pub family: Family,
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
    /// The released FlexVAR tokenizer, a VQ-16 of LlamaGen's kind: 72.05 M parameters, 16 px per
    /// token.
    pub fn flexvar() -> Self {
        Self {
            family: Family::Flexvar,
            base_channels: 128,
            channel_multipliers: vec![1, 1, 2, 2, 4],
            res_blocks: 2,
            z_channels: 256,
            codebook_size: 8912,
            codebook_dim: 32,
        }
    }

    /// The released VAR tokenizer: 108.95 M parameters, 16 px per token.
    pub fn var() -> Self {
        Self {
            family: Family::Var { phi: Phi::Shared(4) },
            base_channels: 160,
            channel_multipliers: vec![1, 1, 2, 2, 4],
            res_blocks: 2,
            z_channels: 32,
            codebook_size: 4096,
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
                "{} is not a multiple of {GROUPS} (group normalization)",
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
        let convolutions = match self.family {
            Family::Flexvar => 1,
            Family::Var { phi } => phi.convolutions(),
        };
        for (field, value, least) in [
            ("family.phi", convolutions, 1),
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
