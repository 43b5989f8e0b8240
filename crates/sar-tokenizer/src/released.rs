//! The files of the released tokenizers: names and layout, how a configuration is recognized in them,
//! and the buffers that they hold beside the parameters.

use burn::tensor::TensorData;
use sar_weights::{Anchor, Layout, NamedTensors, Shapes};

use crate::{CodebookGrowth, Family, Phi, TokenizerConfig};

/// Finds a tokenizer in a file, a checkpoint of a run among them. Where a file holds averaged weights, too, they are taken, as the
/// released evaluation of LlamaGen's tokenizers does.
pub const ANCHOR: Anchor = Anchor {
    tensor: "quantize.embedding.weight",
    roots: &["ema", "model", "", "tokenizer.model"],
    averages: true,
};

const FLEXVAR: Layout = Layout {
    renames: &[
        ("mid.block_in", "mid.0"),
        ("mid.attention", "mid.1"),
        ("mid.block_out", "mid.2"),
        ("projections", ""),
        ("quantizer.codebook", "quantize"),
    ],
    ignored: &["quantize.codebook_used"],
};

const VAR_ONE: Layout = var(&var_renames(("quantizer.phi.0", "quantize.quant_resi.qresi")));
const VAR_SHARED: Layout = var(&var_renames(("quantizer.phi", "quantize.quant_resi.qresi_ls")));
const VAR_PER_SCALE: Layout = var(&var_renames(("quantizer.phi", "quantize.quant_resi")));

type Rename = (&'static str, &'static str);

const fn var(renames: &'static [Rename]) -> Layout {
    Layout { renames, ignored: &["quantize.ema_vocab_hit_SV"] }
}

const fn var_renames(phi: Rename) -> [Rename; 9] {
    [
        ("encoder.conv_blocks", "encoder.down"),
        ("decoder.conv_blocks", "decoder.up"),
        ("res", "block"),
        ("mid.block_in", "mid.block_1"),
        ("mid.attention", "mid.attn_1"),
        ("mid.block_out", "mid.block_2"),
        ("projections", "qkv"),
        ("quantizer.codebook", "quantize"),
        phi,
    ]
}

impl TokenizerConfig {
    /// What files of ours call tokenizers, by their family.
    pub const KINDS: &'static [&'static str] = &["flexvar-tokenizer", "var-tokenizer"];

    /// What files of ours call a tokenizer of this configuration, one of [`KINDS`](Self::KINDS).
    pub fn kind(&self) -> &'static str {
        match self.family {
            Family::Flexvar => Self::KINDS[0],
            Family::Var { .. } => Self::KINDS[1],
        }
    }

    /// The names and layout of a released file of this shape.
    pub fn layout(&self) -> &'static Layout {
        match self.family {
            Family::Flexvar => &FLEXVAR,
            Family::Var { phi: Phi::Shared(1) } => &VAR_ONE,
            Family::Var { phi: Phi::Shared(_) } => &VAR_SHARED,
            Family::Var { phi: Phi::PerScale(_) } => &VAR_PER_SCALE,
        }
    }

    /// The configuration that the shapes of a file's tensors show. Whether all parameters are there
    /// is for [`sar_weights::Located::check`] to say.
    ///
    /// # Errors
    /// The first thing that does not belong to a tokenizer.
    pub fn recognize(shapes: Shapes) -> Result<Self, String> {
        let (family, level) = match shapes.contains("encoder.conv_blocks.0.res.0.conv1.weight") {
            true => (Family::Flexvar, ["conv_blocks", "res"]),
            false => (Family::Var { phi: Phi::recognize(shapes) }, ["down", "block"]),
        };
        let [levels, blocks] = level;
        let conv1 =
            |level: usize, i: usize| format!("encoder.{levels}.{level}.{blocks}.{i}.conv1.weight");
        let [codebook_size, codebook_dim] = shapes.sides(ANCHOR.tensor)?;
        let [base_channels, ..] = shapes.sides::<4>("encoder.conv_in.weight")?;
        let [z_channels, ..] = shapes.sides::<4>("encoder.conv_out.weight")?;
        let mut channel_multipliers = Vec::new();
        for level in 0..shapes.count(|level| conv1(level, 0)) {
            let [channels, ..] = shapes.sides::<4>(&conv1(level, 0))?;
            if base_channels == 0 || channels == 0 || !channels.is_multiple_of(base_channels) {
                return Err(format!(
                    "level {level} has {channels} channels, no multiple of the first, {base_channels}"
                ));
            }
            channel_multipliers.push(channels / base_channels);
        }
        let res_blocks = shapes.count(|block| conv1(0, block));
        let config = Self {
            family,
            base_channels,
            channel_multipliers,
            res_blocks,
            z_channels,
            codebook_size,
            codebook_dim,
            // No shape shows it.
            codebook_growth: CodebookGrowth::None {},
        };
        config.validate().map_err(|error| error.to_string())?;
        Ok(config)
    }

    /// What a released file holds beside the parameters: statistics of training, zero here.
    /// `scales` is the number of scales that a residual tokenizer was trained with.
    pub fn buffers(&self, scales: usize) -> NamedTensors {
        /// FlexVAR counts the codes of the last so many tokens.
        const COUNTED: usize = 65536;
        let (name, shape) = match self.family {
            Family::Flexvar => ("quantize.codebook_used", vec![COUNTED]),
            Family::Var { .. } => ("quantize.ema_vocab_hit_SV", vec![scales, self.codebook_size]),
        };
        let mut buffers = NamedTensors::new();
        buffers.insert(name, TensorData::zeros::<f32, _>(shape));
        buffers
    }

    /// The published tokenizers by name.
    pub fn published() -> [(&'static str, Self); 2] {
        [("flexvar-tokenizer", Self::flexvar()), ("var-tokenizer", Self::var())]
    }
}

impl Phi {
    fn recognize(shapes: Shapes) -> Self {
        let count = |before: &str| shapes.count(|i| format!("{before}.{i}.weight"));
        if shapes.contains("quantize.quant_resi.qresi.weight") {
            return Self::Shared(1);
        }
        match count("quantize.quant_resi.qresi_ls") {
            0 => Self::PerScale(count("quantize.quant_resi")),
            n => Self::Shared(n),
        }
    }
}
