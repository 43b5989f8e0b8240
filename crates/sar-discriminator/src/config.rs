//! What a discriminator is.

use serde::{Deserialize, Serialize};

use crate::layers::GROUP_CHANNELS;
use crate::patch_gan;

/// The most convolutions that halve the sides: images of 768 px are the smallest for so many.
const MAX_LAYERS: usize = 8;

/// A family of discriminators and its sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum DiscriminatorConfig {
    /// Convolutions alone, see [`PatchGan`](crate::PatchGan).
    PatchGan {
        /// Channels after the first convolution, a multiple of 8 (taming-transformers: 64).
        channels: usize,
        /// Convolutions that halve the sides, 1 to 8 (taming-transformers: 3).
        layers: usize,
    },
    /// Heads over the maps of a frozen network, see [`FeatureHeads`](crate::FeatureHeads).
    Features {
        /// Channels inside of every head, a multiple of 8.
        channels: usize,
    },
}

/// A configuration of a discriminator that cannot be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
#[non_exhaustive]
pub struct DiscriminatorConfigError {
    /// The offending field.
    pub field: &'static str,
    /// What is wrong and what would be right.
    pub problem: String,
}

impl DiscriminatorConfig {
    /// Checks that the configuration can be built.
    ///
    /// # Errors
    /// The first field that cannot be.
    pub fn validate(&self) -> Result<(), DiscriminatorConfigError> {
        let (Self::PatchGan { channels, .. } | Self::Features { channels }) = *self;
        if channels == 0 || !channels.is_multiple_of(GROUP_CHANNELS) {
            let problem = format!(
                "{channels} is not a positive multiple of {GROUP_CHANNELS} (group normalization)"
            );
            return Err(DiscriminatorConfigError { field: "channels", problem });
        }
        match *self {
            Self::PatchGan { layers, .. } if layers == 0 || layers > MAX_LAYERS => {
                let problem = format!("{layers} is not from 1 to {MAX_LAYERS}");
                Err(DiscriminatorConfigError { field: "layers", problem })
            }
            Self::PatchGan { .. } | Self::Features { .. } => Ok(()),
        }
    }

    /// The smallest side of an image that it can judge, in pixels.
    pub fn min_side(&self) -> usize {
        match *self {
            Self::PatchGan { layers, .. } => patch_gan::min_side(layers),
            Self::Features { .. } => sar_features::MIN_SIDE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_tagged_data() {
        let json = r#"{"kind":"patch-gan","channels":32,"layers":2}"#;
        let config = DiscriminatorConfig::PatchGan { channels: 32, layers: 2 };
        assert_eq!(serde_json::from_str::<DiscriminatorConfig>(json).unwrap(), config);
        assert_eq!(serde_json::to_string(&config).unwrap(), json);
        let json = r#"{"kind":"features","channels":64}"#;
        let config = DiscriminatorConfig::Features { channels: 64 };
        assert_eq!(serde_json::from_str::<DiscriminatorConfig>(json).unwrap(), config);
        let unknown = r#"{"kind":"features","channels":64,"layers":2}"#;
        assert!(serde_json::from_str::<DiscriminatorConfig>(unknown).is_err());
    }

    #[test]
    fn what_cannot_be_built_is_named() {
        let field = |config: DiscriminatorConfig| config.validate().err().map(|error| error.field);
        for channels in [0, 12] {
            assert_eq!(field(DiscriminatorConfig::Features { channels }), Some("channels"));
            assert_eq!(
                field(DiscriminatorConfig::PatchGan { channels, layers: 1 }),
                Some("channels")
            );
        }
        for (layers, expected) in [(0, Some("layers")), (1, None), (8, None), (9, Some("layers"))] {
            assert_eq!(field(DiscriminatorConfig::PatchGan { channels: 8, layers }), expected);
        }
    }
}
