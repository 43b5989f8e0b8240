//! The files of the released backbones: names and layout, how a configuration is recognized in them,
//! and the buffers that they hold beside the parameters. SAR's have FlexVAR's layout.

use std::mem::discriminant;

use burn::tensor::TensorData;
use sar_core::first_scale::{MaskLoss, MaskShare, Reveal};
use sar_core::{FirstScale, ScaleSchedule};
use sar_weights::{Anchor, Layout, NamedTensors, Shapes};

use crate::{BackboneConfig, BackboneShape, PositionsConfig, Visibility};

/// The released names and layout.
pub const LAYOUT: Layout = Layout {
    renames: &[
        ("first.start", "pos_start"),
        ("first.mask", "mask_token"),
        ("first.instruction", "pos_instruction"),
        ("positions.grid", "pos_1LC"),
        ("positions.token", "pos_1LC"),
        ("positions.level", "lvl_embed"),
        ("scale_mul", "scale_mul_1H11"),
        ("ada_lin", "ada_lin.1"),
        ("shared_ada_lin", "shared_ada_lin.1"),
    ],
    ignored: &["attn_bias_for_masking", "lvl_1L", "zero_k_bias"],
};

/// Finds a backbone in a file, a checkpoint of a run among them. The released evaluation takes the trained weights, not their average.
pub const ANCHOR: Anchor = Anchor {
    tensor: "word_embed.weight",
    roots: &["trainer.var_wo_ddp", "trainer.scalear_wo_ddp", "model", "", "backbone.model"],
    averages: false,
};

/// What tensors need not show, where somebody knows it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Hints {
    /// Attention heads, which no tensor shows without q/k normalization.
    pub heads: Option<usize>,
    /// The scales, of which learned positions show the number of tokens and levels only.
    pub scales: Option<ScaleSchedule>,
    /// What a token sees of coarser scales, which no tensor shows; all of them, as in the released files,
    /// if nobody says.
    pub visibility: Option<Visibility>,
    /// How the first scale is trained and sampled, of which tensors show the kind only.
    pub first_scale: Option<FirstScale>,
}

impl BackboneConfig {
    /// What files of ours call backbones, by where their positions come from.
    pub const KINDS: &'static [&'static str] = &["flexvar-backbone", "var-backbone"];

    /// What files of ours call a backbone of this configuration, one of [`KINDS`](Self::KINDS).
    pub fn kind(&self) -> &'static str {
        match self.positions {
            PositionsConfig::Grid { .. } => Self::KINDS[0],
            PositionsConfig::PerToken { .. } => Self::KINDS[1],
        }
    }

    /// The configuration that the shapes of a file's tensors show, and what of it they do not show and
    /// is assumed to be as published, in words. Whether all parameters are there is for
    /// [`sar_weights::Located::check`] to say.
    ///
    /// # Errors
    /// The first thing that does not belong to a backbone, contradicts a hint, or cannot be known.
    pub fn recognize(shapes: Shapes, hints: &Hints) -> Result<(Self, Vec<String>), String> {
        let mut assumed = Vec::new();
        let [width, codebook_dim] = shapes.sides(ANCHOR.tensor)?;
        let depth = shapes.count(|i| format!("blocks.{i}.attn.mat_qkv.weight"));
        if depth == 0 {
            return Err("there is no blocks.0.attn.mat_qkv.weight".into());
        }
        let scale_mul = "blocks.0.attn.scale_mul_1H11";
        let qk_l2_norm = shapes.contains(scale_mul);
        let shown = match qk_l2_norm {
            true => Some(shapes.sides::<4>(scale_mul)?[1]),
            false => None,
        };
        let heads = match (shown, hints.heads) {
            (Some(shown), Some(said)) if shown != said => {
                return Err(format!("there are {shown} heads, not {said}"));
            }
            (Some(heads), _) | (None, Some(heads)) => heads,
            (None, None) if width > 0 && width.is_multiple_of(64) => {
                assumed.push(format!("{} heads, as published for this width", width / 64));
                width / 64
            }
            (None, None) => {
                return Err("the tensors do not show the number of heads; say it (--heads)".into());
            }
        };
        let [hidden, _] = shapes.sides("blocks.0.ffn.fc1.weight")?;
        if width == 0 || !hidden.is_multiple_of(width) {
            return Err(format!("{hidden} hidden channels are no multiple of the width, {width}"));
        }
        let [rows, _] = shapes.sides("class_emb.weight")?;
        let classes = rows.checked_sub(1).filter(|&classes| classes > 0);
        let classes = classes.ok_or("class_emb.weight has no class beside the null class")?;
        let [codebook_size, _] = shapes.sides("head.weight")?;
        let positions = match *shapes.shape("pos_1LC")? {
            [_, _, side, width] if side == width => PositionsConfig::Grid { side },
            [_, tokens, _] => {
                let [levels, _] = shapes.sides("lvl_embed.weight")?;
                PositionsConfig::PerToken {
                    scales: learned_scales(tokens, levels, hints, &mut assumed)?,
                }
            }
            ref other => return Err(format!("pos_1LC is {other:?}, neither a grid nor a list")),
        };
        let first_scale = first_scale(&shapes, hints, &mut assumed)?;
        let shape = BackboneShape {
            depth,
            width,
            heads,
            mlp_ratio: hidden / width,
            shared_adaln: shapes.contains("shared_ada_lin.1.weight"),
            qk_l2_norm,
            visibility: hints.visibility.unwrap_or(Visibility::AllCoarser),
            first_scale,
        };
        let config = Self { shape, classes, codebook_size, codebook_dim, positions };
        config.validate().map_err(|error| error.to_string())?;
        Ok((config, assumed))
    }

    /// What a released file holds beside the parameters, for a model that is trained at `scales`; nothing
    /// where the first scale is not the class token's, which the released classes do not know.
    pub fn buffers(&self, scales: &ScaleSchedule) -> NamedTensors {
        let mut buffers = NamedTensors::new();
        if self.shape.first_scale.is_behind_the_class_token() {
            return buffers;
        }
        let l = scales.n_tokens();
        let levels: Vec<i64> = scales
            .ranges()
            .enumerate()
            .flat_map(|(k, range)| range.map(move |_| k as i64))
            .collect();
        let first_seen = |level: i64| self.shape.visibility.first_seen(level as usize) as i64;
        let hidden = |query: usize, key: usize| {
            levels[key] > levels[query] || (key > 0 && levels[key] < first_seen(levels[query]))
        };
        let bias = (0..l * l).map(|i| if hidden(i / l, i % l) { f32::NEG_INFINITY } else { 0.0 });
        let bias = TensorData::new(bias.collect::<Vec<f32>>(), [1, 1, l, l]);
        buffers.insert("attn_bias_for_masking", bias);
        if let PositionsConfig::PerToken { .. } = self.positions {
            buffers.insert("lvl_1L", TensorData::new(levels, [1, l]));
        }
        for i in 0..self.shape.depth {
            let zeros = TensorData::zeros::<f32, _>([self.shape.width]);
            buffers.insert(format!("blocks.{i}.attn.zero_k_bias"), zeros);
        }
        buffers
    }

    /// The scales that a model of this configuration was published with.
    pub fn published_scales(&self) -> ScaleSchedule {
        match &self.positions {
            PositionsConfig::Grid { .. } if self.shape.first_scale.is_behind_the_class_token() => {
                ScaleSchedule::squares(&[4, 5, 6, 8, 10, 13, 16]).expect("sides that increase")
            }
            PositionsConfig::Grid { .. } => ScaleSchedule::preset("256px").expect("a known preset"),
            PositionsConfig::PerToken { scales } => scales.clone(),
        }
    }

    /// The published backbones by name. SAR's have the configurations of FlexVAR's.
    pub fn published() -> Vec<(&'static str, Self)> {
        let preset = |name| ScaleSchedule::preset(name).expect("a known preset");
        let var = |depth| Self::var(depth, preset("256px"));
        let mut var_d36_s = Self::var(36, preset("512px"));
        var_d36_s.shape.shared_adaln = true;
        vec![
            ("flexvar-d16", Self::flexvar(16)),
            ("flexvar-d20", Self::flexvar(20)),
            ("flexvar-d24", Self::flexvar(24)),
            ("var-d16", var(16)),
            ("var-d20", var(20)),
            ("var-d24", var(24)),
            ("var-d30", var(30)),
            ("var-d36-s", var_d36_s),
        ]
    }
}

/// How the first scale comes about, by the vector that is learned for it.
fn first_scale(
    shapes: &Shapes,
    hints: &Hints,
    assumed: &mut Vec<String>,
) -> Result<FirstScale, String> {
    let masked = FirstScale::Masked {
        share: MaskShare::TruncatedNormal,
        loss: MaskLoss::Masked,
        steps: 8,
        reveal: Reveal::Random,
    };
    let shown = match () {
        () if shapes.contains("mask_token") => masked,
        () if shapes.contains("pos_instruction") => FirstScale::RandomOrder {},
        () => FirstScale::ClassToken {},
    };
    match hints.first_scale {
        Some(said) if discriminant(&said) != discriminant(&shown) => {
            Err(format!("the first scale is {shown}, not {said}"))
        }
        Some(said) => Ok(said),
        None => {
            if shown == masked {
                assumed.push(format!("a first scale that is {shown}, as published"));
            }
            Ok(shown)
        }
    }
}

/// The scales of positions that were learned for so many tokens in so many levels.
fn learned_scales(
    tokens: usize,
    levels: usize,
    hints: &Hints,
    assumed: &mut Vec<String>,
) -> Result<ScaleSchedule, String> {
    let fits = |scales: &ScaleSchedule| (scales.n_tokens(), scales.len()) == (tokens, levels);
    match &hints.scales {
        Some(scales) if fits(scales) => Ok(scales.clone()),
        Some(scales) => Err(format!(
            "{scales} are {} tokens in {} scales, the positions are for {tokens} in {levels}",
            scales.n_tokens(),
            scales.len()
        )),
        None => {
            let preset = |(name, _)| ScaleSchedule::preset(name).expect("a known preset");
            let scales = ScaleSchedule::PRESETS.map(preset).into_iter().find(fits);
            let scales = scales.ok_or("the tensors do not show the scales; say them (--scales)")?;
            assumed.push(format!("scales {scales}, as published"));
            Ok(scales)
        }
    }
}

#[cfg(test)]
mod tests {
    use burn_flex::Flex;
    use sar_weights::parameters;

    use super::*;
    use crate::Backbone;

    /// Published numbers of parameters (VAR: table 1 of the paper and the released cards), and for
    /// FlexVAR those of the released files.
    #[test]
    fn published_backbones_have_the_published_numbers_of_parameters() {
        let millions = [315.56, 600.0, 1000.0, 310.0, 600.0, 1000.0, 2000.0, 2300.0];
        let tolerance = [0.005, 20.0, 50.0, 1.0, 5.0, 35.0, 15.0, 60.0];
        let published = BackboneConfig::published();
        for (((name, config), millions), tolerance) in published.iter().zip(millions).zip(tolerance)
        {
            let model = Backbone::<Flex>::new(config, &Default::default()).unwrap();
            let listed = parameters(&model, &LAYOUT);
            let n: usize = listed.iter().map(|p| p.shape.iter().product::<usize>()).sum();
            assert!((n as f64 / 1e6 - millions).abs() < tolerance, "{name}: {n}");
        }
    }

    #[test]
    fn masks_and_levels_by_hand() {
        let scales: ScaleSchedule = "1_2".parse().unwrap();
        let mut config = BackboneConfig::var(1, scales.clone());
        config.shape.width = 2;
        let buffers = config.buffers(&scales);
        let levels = buffers.get("lvl_1L").unwrap().to_vec::<i64>().unwrap();
        assert_eq!(levels, [0, 1, 1, 1, 1]);
        let bias = buffers.get("attn_bias_for_masking").unwrap();
        assert_eq!(bias.shape[..], [1, 1, 5, 5]);
        let bias = bias.to_vec::<f32>().unwrap();
        let hidden: Vec<usize> = (0..25).filter(|i| bias[*i] == f32::NEG_INFINITY).collect();
        assert_eq!(hidden, [1, 2, 3, 4], "the first token alone sees less than all");
        assert_eq!(bias.iter().filter(|x| **x == 0.0).count(), 21);
        assert_eq!(buffers.get("blocks.0.attn.zero_k_bias").unwrap().shape[..], [2]);
    }
}
