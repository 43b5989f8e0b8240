//! Released models as files of weights that describe themselves: what [`crate::weights`] reads.

use std::collections::BTreeMap;

use sar_core::ScaleSchedule;
use sar_model::BackboneConfig;
use sar_tokenizer::TokenizerConfig;
use sar_weights::{BackboneShape, Phi, PositionsShape, Released, TokenizerFamily, TokenizerShape};
use serde_json::{Value, json};

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

/// The metadata of a tokenizer's file.
pub fn tokenizer_metadata(shape: &TokenizerShape) -> BTreeMap<String, String> {
    let kind = Released::Tokenizer(shape.clone()).kind();
    BTreeMap::from([
        ("kind".into(), kind.into()),
        ("config".into(), tokenizer_config(shape).to_string()),
    ])
}

/// The metadata of a backbone's file.
pub fn backbone_metadata(shape: &BackboneShape, facts: &BackboneFacts) -> BTreeMap<String, String> {
    let kind = Released::Backbone(shape.clone()).kind();
    let BackboneFacts { heads, classes, scales } = facts;
    BTreeMap::from([
        ("kind".into(), kind.into()),
        ("config".into(), backbone_config(shape, *heads, scales).to_string()),
        ("classes".into(), json!(classes).to_string()),
        ("scales".into(), json!(scales).to_string()),
    ])
}

fn tokenizer_config(shape: &TokenizerShape) -> Value {
    let TokenizerShape {
        family,
        base_channels,
        channel_multipliers,
        res_blocks,
        z_channels,
        codebook_size,
        codebook_dim,
    } = shape.clone();
    let config = TokenizerConfig {
        base_channels,
        channel_multipliers,
        res_blocks,
        z_channels,
        codebook_size,
        codebook_dim,
    };
    let mut config = serde_json::to_value(config).expect("plain values");
    if let TokenizerFamily::Var { phi } = family {
        let phi = match phi {
            Phi::Shared(n) => json!({ "shared": n }),
            Phi::PerScale(n) => json!({ "per-scale": n }),
        };
        config["family"] = json!({ "kind": "var", "phi": phi });
    }
    config
}

fn backbone_config(shape: &BackboneShape, heads: usize, scales: &ScaleSchedule) -> Value {
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
    let position_grid = match positions {
        PositionsShape::Grid { side } => side,
        PositionsShape::PerToken { .. } => 0,
    };
    let config = BackboneConfig {
        depth,
        width,
        heads,
        mlp_ratio,
        classes,
        codebook_size,
        codebook_dim,
        shared_adaln,
        qk_l2_norm,
        position_grid,
    };
    let mut config = serde_json::to_value(config).expect("plain values");
    if let PositionsShape::PerToken { .. } = positions {
        let fields = config.as_object_mut().expect("a configuration is a table");
        fields.remove("position_grid");
        fields.insert("positions".into(), json!({ "kind": "per-token", "scales": scales }));
    }
    config
}
