//! Released models as what this project builds: from the shapes in a file to configurations, and to
//! the metadata of a file of weights that describes itself, as [`crate::weights`] reads it.

use std::collections::BTreeMap;

use sar_core::ScaleSchedule;
use sar_model::{BackboneConfig, PositionsConfig};
use sar_tokenizer::{Family, Phi, TokenizerConfig};
use sar_weights::{BackboneShape, PositionsShape, Released, TokenizerFamily, TokenizerShape};
use serde::Serialize;

/// What a backbone needs beside what a file shows.
#[derive(Clone, Debug, PartialEq)]
pub struct BackboneFacts {
    /// Attention heads.
    pub heads: usize,
    /// Names of the classes.
    pub classes: Vec<String>,
    /// The scales that it is sampled with.
    pub scales: ScaleSchedule,
}

/// The configuration of a tokenizer of this shape.
pub fn tokenizer_config(shape: &TokenizerShape) -> TokenizerConfig {
    let TokenizerShape {
        family,
        base_channels,
        channel_multipliers,
        res_blocks,
        z_channels,
        codebook_size,
        codebook_dim,
    } = shape.clone();
    let family = match family {
        TokenizerFamily::Flexvar => Family::Flexvar,
        TokenizerFamily::Var { phi } => Family::Var {
            phi: match phi {
                sar_weights::Phi::Shared(n) => Phi::Shared(n),
                sar_weights::Phi::PerScale(n) => Phi::PerScale(n),
            },
        },
    };
    TokenizerConfig {
        family,
        base_channels,
        channel_multipliers,
        res_blocks,
        z_channels,
        codebook_size,
        codebook_dim,
    }
}

/// The configuration of a backbone of this shape.
pub fn backbone_config(shape: &BackboneShape, facts: &BackboneFacts) -> BackboneConfig {
    let BackboneShape {
        depth,
        width,
        heads: _,
        mlp_ratio,
        classes,
        codebook_size,
        codebook_dim,
        shared_adaln,
        qk_l2_norm,
        positions,
    } = *shape;
    let positions = match positions {
        PositionsShape::Grid { side } => PositionsConfig::Grid { side },
        PositionsShape::PerToken { .. } => {
            PositionsConfig::PerToken { scales: facts.scales.clone() }
        }
    };
    BackboneConfig {
        depth,
        width,
        heads: facts.heads,
        mlp_ratio,
        classes,
        codebook_size,
        codebook_dim,
        shared_adaln,
        qk_l2_norm,
        positions,
    }
}

/// The metadata of a tokenizer's file.
pub fn tokenizer_metadata(shape: &TokenizerShape) -> BTreeMap<String, String> {
    let kind = Released::Tokenizer(shape.clone()).kind();
    BTreeMap::from([
        ("kind".into(), kind.into()),
        ("config".into(), json(&tokenizer_config(shape))),
    ])
}

/// The metadata of a backbone's file.
pub fn backbone_metadata(shape: &BackboneShape, facts: &BackboneFacts) -> BTreeMap<String, String> {
    let kind = Released::Backbone(shape.clone()).kind();
    BTreeMap::from([
        ("kind".into(), kind.into()),
        ("config".into(), json(&backbone_config(shape, facts))),
        ("classes".into(), json(&facts.classes)),
        ("scales".into(), json(&facts.scales)),
    ])
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("plain values")
}

#[cfg(test)]
mod tests {
    use burn_flex::Flex;
    use sar_model::Backbone;
    use sar_tokenizer::Tokenizer;
    use sar_weights::{ParameterInfo, parameters};

    use super::*;

    fn listed(parameters: Vec<ParameterInfo>) -> BTreeMap<String, Vec<usize>> {
        parameters.into_iter().map(|parameter| (parameter.name, parameter.shape)).collect()
    }

    /// What is recognised in a file is what the modules ask for, name by name.
    #[test]
    fn the_modules_have_the_parameters_of_the_released_files() {
        let device = Default::default();
        for (name, model) in Released::presets() {
            let built = match &model {
                Released::Tokenizer(shape) => {
                    let config = tokenizer_config(shape);
                    let tokenizer = Tokenizer::<Flex>::new(&config, &device).unwrap();
                    parameters(&tokenizer, config.layout())
                }
                Released::Backbone(shape) => {
                    let px = if name == "var-d36-s" { "512px" } else { "256px" };
                    let facts = BackboneFacts {
                        heads: shape.heads.unwrap(),
                        classes: vec![String::new(); shape.classes],
                        scales: ScaleSchedule::preset(px).unwrap(),
                    };
                    let config = backbone_config(shape, &facts);
                    let backbone = Backbone::<Flex>::new(&config, &device).unwrap();
                    parameters(&backbone, &sar_model::LAYOUT)
                }
            };
            assert_eq!(listed(built), model.parameters(), "{name}");
        }
    }

    #[test]
    fn presets_are_the_published_configurations() {
        let shape = |name| Released::preset(name).unwrap();
        let Released::Tokenizer(flexvar) = shape("flexvar-tokenizer") else { panic!() };
        assert_eq!(tokenizer_config(&flexvar), TokenizerConfig::flexvar());
        let Released::Tokenizer(var) = shape("var-tokenizer") else { panic!() };
        assert_eq!(tokenizer_config(&var), TokenizerConfig::var());

        let scales = ScaleSchedule::preset("256px").unwrap();
        let facts = BackboneFacts { heads: 20, classes: Vec::new(), scales: scales.clone() };
        let Released::Backbone(flexvar) = shape("sar-d20") else { panic!() };
        assert_eq!(backbone_config(&flexvar, &facts), BackboneConfig::flexvar(20));
        let Released::Backbone(var) = shape("var-d20") else { panic!() };
        assert_eq!(backbone_config(&var, &facts), BackboneConfig::var(20, scales));
    }
}
