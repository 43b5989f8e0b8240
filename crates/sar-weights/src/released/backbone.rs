//! Backbones: VAR's and FlexVAR's differ in their positions alone.

use std::collections::BTreeMap;

use super::{Shapes, count, sides, times};

/// The tensor that every backbone has and no tokenizer.
pub(super) const ANCHOR: &str = "word_embed.weight";

/// Shape of a backbone, as far as a file shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackboneShape {
    /// Number of blocks.
    pub depth: usize,
    /// Channels of a token.
    pub width: usize,
    /// Attention heads; without q/k normalisation no tensor shows them.
    pub heads: Option<usize>,
    /// Hidden channels of the MLP as a multiple of `width`.
    pub mlp_ratio: usize,
    /// Number of classes without the null class.
    pub classes: usize,
    /// Number of codes.
    pub codebook_size: usize,
    /// Channels of a code.
    pub codebook_dim: usize,
    /// One adaptive projection for all blocks.
    pub shared_adaln: bool,
    /// l2-normalised queries and keys.
    pub qk_l2_norm: bool,
    /// Where positions come from.
    pub positions: PositionsShape,
}

/// Where positions come from, which tells the families apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PositionsShape {
    /// FlexVAR: a grid that is resampled to every scale.
    Grid {
        /// Its side.
        side: usize,
    },
    /// VAR: a position per token and an embedding per scale.
    PerToken {
        /// Tokens of all scales.
        tokens: usize,
        /// Number of scales.
        scales: usize,
    },
}

impl BackboneShape {
    /// FlexVAR's and SAR's published shape of a depth.
    pub fn flexvar(depth: usize) -> Self {
        Self {
            depth,
            width: 64 * depth,
            heads: Some(depth),
            mlp_ratio: 4,
            classes: 1000,
            codebook_size: 8912,
            codebook_dim: 32,
            shared_adaln: false,
            qk_l2_norm: true,
            positions: PositionsShape::Grid { side: 32 },
        }
    }

    /// VAR's published shape of a depth for 256 px.
    pub fn var(depth: usize) -> Self {
        let positions = PositionsShape::PerToken { tokens: 680, scales: 10 };
        Self { codebook_size: 4096, positions, ..Self::flexvar(depth) }
    }

    /// VAR's published shape for 512 px.
    pub fn var_d36_s() -> Self {
        let positions = PositionsShape::PerToken { tokens: 2240, scales: 10 };
        Self { shared_adaln: true, positions, ..Self::var(36) }
    }

    /// The published number of heads for this width: 64 channels each.
    pub fn published_heads(&self) -> Option<usize> {
        (self.width > 0 && self.width.is_multiple_of(64)).then_some(self.width / 64)
    }

    pub(super) fn seen_in(shapes: &Shapes) -> Result<Self, String> {
        let [width, codebook_dim] = sides(shapes, ANCHOR)?;
        let depth = count(shapes, |i| format!("blocks.{i}.attn.mat_qkv.weight"));
        if depth == 0 {
            return Err("there is no blocks.0.attn.mat_qkv.weight".into());
        }
        let scale_mul = "blocks.0.attn.scale_mul_1H11";
        let qk_l2_norm = shapes.contains_key(scale_mul);
        let heads = if qk_l2_norm {
            let [_, heads, _, _] = sides(shapes, scale_mul)?;
            times(width, heads, "channels over heads")?;
            Some(heads)
        } else {
            None
        };
        let [hidden, _] = sides(shapes, "blocks.0.ffn.fc1.weight")?;
        let [rows, _] = sides(shapes, "class_emb.weight")?;
        let classes = rows.checked_sub(1).filter(|&classes| classes > 0);
        let [codebook_size, _] = sides(shapes, "head.weight")?;
        let positions = match *shapes.get("pos_1LC").ok_or("there is no pos_1LC")? {
            &[_, _, side, width] if side == width => PositionsShape::Grid { side },
            &[_, tokens, _] => {
                let [scales, _] = sides(shapes, "lvl_embed.weight")?;
                PositionsShape::PerToken { tokens, scales }
            }
            other => return Err(format!("pos_1LC is {other:?}, neither a grid nor a list")),
        };
        Ok(Self {
            depth,
            width,
            heads,
            mlp_ratio: times(hidden, width, "hidden channels over channels")?,
            classes: classes.ok_or("class_emb.weight has no class beside the null class")?,
            codebook_size,
            codebook_dim,
            shared_adaln: shapes.contains_key("shared_ada_lin.1.weight"),
            qk_l2_norm,
            positions,
        })
    }

    pub(super) fn parameters(&self) -> BTreeMap<String, Vec<usize>> {
        let Self {
            depth,
            width: d,
            heads,
            mlp_ratio,
            classes,
            codebook_size,
            codebook_dim,
            shared_adaln,
            qk_l2_norm,
            positions,
        } = *self;
        let mut list = BTreeMap::new();
        let mut add = |name: String, shape: &[usize]| _ = list.insert(name, shape.to_vec());
        let linear = |add: &mut dyn FnMut(String, &[usize]), name: String, out: usize, from| {
            add(format!("{name}.weight"), &[out, from]);
            add(format!("{name}.bias"), &[out]);
        };
        let times_d = |n: usize| d.saturating_mul(n);

        linear(&mut add, "word_embed".into(), d, codebook_dim);
        add("class_emb.weight".into(), &[classes.saturating_add(1), d]);
        add("pos_start".into(), &[1, 1, d]);
        match positions {
            PositionsShape::Grid { side } => add("pos_1LC".into(), &[1, d, side, side]),
            PositionsShape::PerToken { tokens, scales } => {
                add("pos_1LC".into(), &[1, tokens, d]);
                add("lvl_embed.weight".into(), &[scales, d]);
            }
        }
        if shared_adaln {
            linear(&mut add, "shared_ada_lin.1".into(), times_d(6), d);
        }
        for i in 0..depth {
            let block = format!("blocks.{i}");
            if qk_l2_norm {
                let heads = heads.unwrap_or(0);
                add(format!("{block}.attn.scale_mul_1H11"), &[1, heads, 1, 1]);
            }
            add(format!("{block}.attn.mat_qkv.weight"), &[times_d(3), d]);
            add(format!("{block}.attn.q_bias"), &[d]);
            add(format!("{block}.attn.v_bias"), &[d]);
            linear(&mut add, format!("{block}.attn.proj"), d, d);
            linear(&mut add, format!("{block}.ffn.fc1"), times_d(mlp_ratio), d);
            linear(&mut add, format!("{block}.ffn.fc2"), d, times_d(mlp_ratio));
            if shared_adaln {
                add(format!("{block}.ada_gss"), &[1, 1, 6, d]);
            } else {
                linear(&mut add, format!("{block}.ada_lin.1"), times_d(6), d);
            }
        }
        linear(&mut add, "head_nm.ada_lin.1".into(), times_d(2), d);
        linear(&mut add, "head".into(), codebook_size, d);
        list
    }
}
