//! What a backbone is made of.

use std::fmt;

use sar_core::{FirstScale, ScaleSchedule, ScaleSize};
use serde::{Deserialize, Serialize};

use crate::Visibility;

/// Where positions come from, and with them the schedules that a backbone runs at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum PositionsConfig {
    /// FlexVAR: a learned grid, resampled to every scale of any schedule.
    Grid {
        /// Side of the grid (published: 32).
        side: usize,
    },
    /// VAR: a position for every token and an embedding for every level of one schedule, which is
    /// the only one that the backbone runs at.
    PerToken {
        /// That schedule.
        scales: ScaleSchedule,
    },
}

impl PositionsConfig {
    /// The only schedule that a backbone runs at, where its positions were learned for one.
    pub fn only_scales(&self) -> Option<&ScaleSchedule> {
        match self {
            Self::Grid { .. } => None,
            Self::PerToken { scales } => Some(scales),
        }
    }
}

impl fmt::Display for PositionsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Grid { side } => write!(f, "a grid of {side}x{side}"),
            Self::PerToken { scales } => write!(f, "of every token of {scales}"),
        }
    }
}

/// Shape of the transformer itself, whatever it is fed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackboneShape {
    /// Number of blocks.
    pub depth: usize,
    /// Channels of a token, d.
    pub width: usize,
    /// Attention heads, h; `width` is a multiple of it.
    pub heads: usize,
    /// Hidden channels of the MLP as a multiple of `width`.
    pub mlp_ratio: usize,
    /// One adaptive projection for all blocks plus an offset per block, instead of one each.
    pub shared_adaln: bool,
    /// l2-normalized queries and keys with a learned temperature per head.
    pub qk_l2_norm: bool,
    /// What a token sees of coarser scales.
    pub visibility: Visibility,
    /// How the tokens of the first scale come about.
    pub first_scale: FirstScale,
}

/// What a backbone is made of: its shape, and what it is fed with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackboneConfig {
    /// Shape of the transformer.
    #[serde(flatten)]
    pub shape: BackboneShape,
    /// Number of classes; the null class of guidance comes on top.
    pub classes: usize,
    /// Number of codes, v.
    pub codebook_size: usize,
    /// Channels of a code, c.
    pub codebook_dim: usize,
    /// Where positions come from.
    pub positions: PositionsConfig,
}

/// A backbone configuration that cannot be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
#[non_exhaustive]
pub struct BackboneConfigError {
    /// The offending field.
    pub field: &'static str,
    /// What is wrong and what would be right.
    pub problem: String,
}

impl BackboneShape {
    /// The published shape of a depth: width 64 * depth, head dimension 64.
    pub fn published(depth: usize) -> Self {
        Self {
            depth,
            width: 64 * depth,
            heads: depth,
            mlp_ratio: 4,
            shared_adaln: false,
            qk_l2_norm: true,
            visibility: Visibility::AllCoarser,
            first_scale: FirstScale::ClassToken {},
        }
    }
}

impl BackboneConfig {
    /// FlexVAR's and SAR's published backbone of a depth for ImageNet.
    pub fn flexvar(depth: usize) -> Self {
        Self {
            shape: BackboneShape::published(depth),
            classes: 1000,
            codebook_size: 8912,
            codebook_dim: 32,
            positions: PositionsConfig::Grid { side: 32 },
        }
    }

    /// VAR's published backbone of a depth for ImageNet: d16, d20, d24 and d30 run at `256px`; d36-s
    /// runs at `512px` and has `shared_adaln`.
    pub fn var(depth: usize, scales: ScaleSchedule) -> Self {
        Self {
            codebook_size: 4096,
            positions: PositionsConfig::PerToken { scales },
            ..Self::flexvar(depth)
        }
    }

    /// Checks that images can be sampled at a schedule.
    ///
    /// # Errors
    /// If positions were learned for another schedule alone, or the first scale is the class token's and
    /// not 1x1.
    pub fn check_scales(&self, schedule: &ScaleSchedule) -> Result<(), BackboneConfigError> {
        let first = schedule.size(0);
        if !self.shape.first_scale.is_behind_the_class_token() && first != ScaleSize::square(1) {
            let problem = format!(
                "{schedule}: this model's scales start at 1 (the class token's scale), not at {first}"
            );
            return Err(BackboneConfigError { field: "scales", problem });
        }
        match self.positions.only_scales() {
            Some(scales) if scales != schedule => {
                let problem = format!("{schedule}: this model runs at {scales} only (VAR)");
                Err(BackboneConfigError { field: "scales", problem })
            }
            _ => Ok(()),
        }
    }

    /// Checks that the configuration can be built.
    ///
    /// # Errors
    /// The first field that cannot be.
    pub fn validate(&self) -> Result<(), BackboneConfigError> {
        let err = |field, problem: String| Err(BackboneConfigError { field, problem });
        let grid_side = match &self.positions {
            PositionsConfig::Grid { side } => *side,
            PositionsConfig::PerToken { .. } => 1,
        };
        for (field, value) in [
            ("depth", self.shape.depth),
            ("width", self.shape.width),
            ("heads", self.shape.heads),
            ("mlp_ratio", self.shape.mlp_ratio),
            ("classes", self.classes),
            ("codebook_size", self.codebook_size),
            ("codebook_dim", self.codebook_dim),
            ("positions.side", grid_side),
        ] {
            if value == 0 {
                return err(field, "must be positive".into());
            }
        }
        let BackboneShape { width, heads, visibility, first_scale, .. } = self.shape;
        if matches!(first_scale, FirstScale::Masked { steps: 0, .. }) {
            return err("first_scale.steps", "must be positive".into());
        }
        if visibility == Visibility::Last(0) {
            return err("visibility", "no scale before is \"own\"".into());
        }
        if !width.is_multiple_of(heads) {
            return err("width", format!("{width} is not a multiple of heads ({heads})"));
        }
        if !width.is_multiple_of(2) {
            return err("width", format!("{width} is odd; positions pair their channels"));
        }
        Ok(())
    }
}
