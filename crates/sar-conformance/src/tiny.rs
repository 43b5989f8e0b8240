//! The models that the laws are checked on: a few thousand parameters, none of them near zero.

use burn::tensor::backend::Backend;
use sar_core::{FirstScale, SeedTree};
use sar_model::{Backbone, BackboneConfig, BackboneShape, PositionsConfig, Visibility};
use sar_tokenizer::{CodebookGrowth, Family, Tokenizer, TokenizerConfig};
use sar_weights::fill;

/// Number of codes, v.
pub(crate) const CODES: usize = 23;
/// Channels of a code, c.
pub(crate) const CHANNELS: usize = 5;
/// Number of classes, the null class not counted.
pub(crate) const CLASSES: usize = 3;

/// The shape of [`backbone`].
pub(crate) fn backbone_config(shared_adaln: bool, qk_l2_norm: bool) -> BackboneConfig {
    BackboneConfig {
        shape: BackboneShape {
            depth: 2,
            width: 16,
            heads: 2,
            mlp_ratio: 2,
            shared_adaln,
            qk_l2_norm,
            visibility: Visibility::AllCoarser,
            first_scale: FirstScale::ClassToken {},
        },
        classes: CLASSES,
        codebook_size: CODES,
        codebook_dim: CHANNELS,
        positions: PositionsConfig::Grid { side: 6 },
    }
}

/// A backbone in which every part shows in the logits: the published initialization closes its
/// residual branches and its head.
pub(crate) fn backbone<B: Backend>(
    shared_adaln: bool,
    qk_l2_norm: bool,
    device: &B::Device,
) -> Backbone<B> {
    backbone_of(&backbone_config(shared_adaln, qk_l2_norm), device)
}

/// As [`backbone`], of another configuration.
pub(crate) fn backbone_of<B: Backend>(config: &BackboneConfig, device: &B::Device) -> Backbone<B> {
    let model = Backbone::new(config, device).expect("a valid configuration");
    let seed = SeedTree::new(3).child("backbone");
    fill(model, &sar_model::LAYOUT, |name, shape| {
        seed.child(name).normals(shape.iter().product()).into_iter().map(|x| 0.3 * x).collect()
    })
}

/// The shape of [`tokenizer`].
pub(crate) fn tokenizer_config() -> TokenizerConfig {
    TokenizerConfig {
        family: Family::Flexvar,
        base_channels: 32,
        channel_multipliers: vec![1, 1],
        res_blocks: 1,
        z_channels: 6,
        codebook_size: CODES,
        codebook_dim: CHANNELS,
        codebook_growth: CodebookGrowth::None {},
    }
}

/// A tokenizer that halves the side once.
pub(crate) fn tokenizer<B: Backend>(device: &B::Device) -> Tokenizer<B> {
    tokenizer_of(&tokenizer_config(), device)
}

/// As [`tokenizer`], of another configuration.
pub(crate) fn tokenizer_of<B: Backend>(
    config: &TokenizerConfig,
    device: &B::Device,
) -> Tokenizer<B> {
    sar_tokenizer::init(
        config,
        sar_tokenizer::Init::Torch {},
        SeedTree::new(3).child("tokenizer"),
        device,
    )
    .expect("a valid configuration")
}
