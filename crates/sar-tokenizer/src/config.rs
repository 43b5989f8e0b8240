//! What a tokenizer is made of.

use sar_core::ScaleSize;
use serde::{Deserialize, Serialize};

/// Channels per group normalization are split into this many groups, as released.
pub const GROUPS: usize = 32;

/// Which published tokenizer one is built like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
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

/// How the codes that a scale may use grow with its side (arXiv:2605.06207): the first ones, fewer at coarse
/// scales. Latents, logits and samples of a scale keep to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum CodebookGrowth {
    /// All scales may use all codes.
    None {},
    /// ```text
    /// v(s) = first (v / first)^(ln s / ln full_side),   v from full_side on
    /// ```
    /// for a scale whose longer side is s, rounded.
    Geometric {
        /// Codes of a scale of one token.
        first: usize,
        /// The side from which on all codes may be used, 2 or more.
        full_side: usize,
    },
}

impl CodebookGrowth {
    /// How many of `v` codes a scale may use.
    pub fn n_codes(self, size: ScaleSize, v: usize) -> usize {
        let Self::Geometric { first, full_side } = self else { return v };
        let side = size.height.max(size.width);
        if side >= full_side {
            return v;
        }
        let share = (side as f64).ln() / (full_side as f64).ln();
        let (first, all) = (first as f64, v as f64);
        (first * (all / first).powf(share)).round() as usize
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
    /// How many of the codes a scale may use.
    pub codebook_growth: CodebookGrowth,
}

/// A tokenizer configuration that cannot be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
#[non_exhaustive]
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
            codebook_growth: CodebookGrowth::None {},
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
            codebook_growth: CodebookGrowth::None {},
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
        if let CodebookGrowth::Geometric { first, full_side } = self.codebook_growth {
            let v = self.codebook_size;
            if !(1..=v).contains(&first) {
                return err(
                    "codebook_growth.first",
                    format!("{first} is not in 1..={v}, the codes"),
                );
            }
            if full_side < 2 {
                return err("codebook_growth.full_side", format!("{full_side} is less than 2"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_grow_by_hand() {
        let growth = CodebookGrowth::Geometric { first: 8, full_side: 8 };
        let of = |side| growth.n_codes(ScaleSize::square(side), 512);
        // 64 times as many over three doublings of the side.
        assert_eq!([1, 2, 4, 8, 16].map(of), [8, 32, 128, 512, 512]);
        assert_eq!(of(3), 72, "64 is 8 squared: 8 * 3^2");
        assert_eq!(growth.n_codes(ScaleSize { height: 1, width: 4 }, 512), 128);
        assert!((1..40).is_sorted_by_key(of));
        assert_eq!(CodebookGrowth::None {}.n_codes(ScaleSize::square(1), 512), 512);
        let wrong = |first, full_side| {
            let codebook_growth = CodebookGrowth::Geometric { first, full_side };
            TokenizerConfig { codebook_growth, ..TokenizerConfig::var() }
                .validate()
                .unwrap_err()
                .field
        };
        assert_eq!(wrong(0, 8), "codebook_growth.first");
        assert_eq!(wrong(5000, 8), "codebook_growth.first");
        assert_eq!(wrong(8, 1), "codebook_growth.full_side");
    }
}
