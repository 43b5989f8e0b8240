//! Tokenizers: VAR's and FlexVAR's are one autoencoder under different names.

use std::collections::BTreeMap;

use super::{Shapes, count, sides, times};

/// The tensor that every tokenizer has and no backbone.
pub(super) const ANCHOR: &str = "quantize.embedding.weight";

/// Shape of a tokenizer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizerShape {
    /// Which published tokenizer it is built like.
    pub family: TokenizerFamily,
    /// Channels of the first level.
    pub base_channels: usize,
    /// Channels of each level as a multiple of `base_channels`.
    pub channel_multipliers: Vec<usize>,
    /// Residual blocks per level of the encoder; the decoder has one more.
    pub res_blocks: usize,
    /// Channels between encoder and `quant_conv`.
    pub z_channels: usize,
    /// Number of codes.
    pub codebook_size: usize,
    /// Channels of a code.
    pub codebook_dim: usize,
}

/// Which published tokenizer one is built like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenizerFamily {
    /// FlexVAR: direct encoding, quant convolutions 1x1.
    Flexvar,
    /// VAR: residual encoding, quant convolutions 3x3.
    Var {
        /// The convolutions that smooth enlarged code maps.
        phi: Phi,
    },
}

/// How many convolutions VAR's scales share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phi {
    /// So many, shared by all scales.
    Shared(usize),
    /// One for each of so many scales.
    PerScale(usize),
}

impl TokenizerShape {
    /// FlexVAR's published tokenizer.
    pub fn flexvar() -> Self {
        Self {
            family: TokenizerFamily::Flexvar,
            base_channels: 128,
            channel_multipliers: vec![1, 1, 2, 2, 4],
            res_blocks: 2,
            z_channels: 256,
            codebook_size: 8912,
            codebook_dim: 32,
        }
    }

    /// VAR's published tokenizer.
    pub fn var() -> Self {
        Self {
            family: TokenizerFamily::Var { phi: Phi::Shared(4) },
            base_channels: 160,
            z_channels: 32,
            codebook_size: 4096,
            ..Self::flexvar()
        }
    }

    pub(super) fn seen_in(shapes: &Shapes) -> Result<Self, String> {
        let family = TokenizerFamily::seen_in(shapes);
        let res = |level: usize, block: usize| {
            format!("{}.conv1.weight", Names(family).encoder_block(level, block))
        };
        let [codebook_size, codebook_dim] = sides(shapes, ANCHOR)?;
        let [base_channels, ..] = sides::<4>(shapes, "encoder.conv_in.weight")?;
        let [z_channels, ..] = sides::<4>(shapes, "encoder.conv_out.weight")?;
        let channel_multipliers = (0..count(shapes, |level| res(level, 0)))
            .map(|level| {
                let [channels, ..] = sides::<4>(shapes, &res(level, 0))?;
                times(channels, base_channels, "channels over those of the first level")
            })
            .collect::<Result<Vec<usize>, String>>()?;
        if channel_multipliers.is_empty() {
            return Err(format!("there is no {}", res(0, 0)));
        }
        Ok(Self {
            family,
            base_channels,
            channel_multipliers,
            res_blocks: count(shapes, |block| res(0, block)),
            z_channels,
            codebook_size,
            codebook_dim,
        })
    }

    pub(super) fn parameters(&self) -> BTreeMap<String, Vec<usize>> {
        let Self {
            family,
            base_channels,
            channel_multipliers,
            res_blocks,
            z_channels: z,
            codebook_size,
            codebook_dim: c,
        } = self;
        let (names, z, c) = (Names(*family), *z, *c);
        let channels = |level: usize| base_channels.saturating_mul(channel_multipliers[level]);
        let last = channel_multipliers.len() - 1;
        let deepest = channels(last);
        let mut list = List(BTreeMap::new());

        list.conv("encoder.conv_in", *base_channels, 3, 3);
        let mut from = *base_channels;
        for level in 0..=last {
            for block in 0..*res_blocks {
                list.res(&names.encoder_block(level, block), from, channels(level));
                from = channels(level);
                if level == last {
                    list.attention(names, &names.encoder_attention(level, block), from);
                }
            }
            if level < last {
                list.conv(&names.downsample(level), from, from, 3);
            }
        }
        list.mid(names, "encoder", deepest);
        list.norm("encoder.norm_out", deepest);
        list.conv("encoder.conv_out", z, deepest, 3);

        list.conv("decoder.conv_in", deepest, z, 3);
        list.mid(names, "decoder", deepest);
        for level in (0..=last).rev() {
            for block in 0..=*res_blocks {
                list.res(&names.decoder_block(last, level, block), from, channels(level));
                from = channels(level);
                if level == last {
                    list.attention(names, &names.decoder_attention(last, level, block), from);
                }
            }
            if level > 0 {
                list.conv(&names.upsample(last, level), from, from, 3);
            }
        }
        list.norm("decoder.norm_out", *base_channels);
        list.conv("decoder.conv_out", 3, *base_channels, 3);

        let kernel = match family {
            TokenizerFamily::Flexvar => 1,
            TokenizerFamily::Var { .. } => 3,
        };
        list.conv("quant_conv", c, z, kernel);
        list.conv("post_quant_conv", z, c, kernel);
        list.add(ANCHOR.into(), &[*codebook_size, c]);
        if let TokenizerFamily::Var { phi } = family {
            for i in 0..phi.convolutions() {
                list.conv(&phi.name(i), c, c, 3);
            }
        }
        list.0
    }
}

impl TokenizerFamily {
    fn seen_in(shapes: &Shapes) -> Self {
        if shapes.contains_key("encoder.conv_blocks.0.res.0.conv1.weight") {
            return Self::Flexvar;
        }
        let convolutions = |phi: Phi| count(shapes, |i| format!("{}.weight", phi.name(i)));
        let one = shapes.contains_key(format!("{}.weight", Phi::Shared(1).name(0)).as_str());
        let phi = match (one, convolutions(Phi::Shared(2))) {
            (true, _) => Phi::Shared(1),
            (false, 0) => Phi::PerScale(convolutions(Phi::PerScale(0))),
            (false, n) => Phi::Shared(n),
        };
        Self::Var { phi }
    }
}

impl Phi {
    fn convolutions(self) -> usize {
        match self {
            Self::Shared(n) | Self::PerScale(n) => n,
        }
    }

    fn name(self, i: usize) -> String {
        match self {
            Self::Shared(1) => "quantize.quant_resi.qresi".into(),
            Self::Shared(_) => format!("quantize.quant_resi.qresi_ls.{i}"),
            Self::PerScale(_) => format!("quantize.quant_resi.{i}"),
        }
    }
}

/// What the parts of an autoencoder are called in a family. FlexVAR numbers the decoder's levels as
/// they are run, VAR by their resolution.
#[derive(Clone, Copy)]
struct Names(TokenizerFamily);

impl Names {
    fn is_flexvar(self) -> bool {
        self.0 == TokenizerFamily::Flexvar
    }

    fn encoder(self, level: usize) -> String {
        let blocks = if self.is_flexvar() { "conv_blocks" } else { "down" };
        format!("encoder.{blocks}.{level}")
    }

    fn decoder(self, last: usize, level: usize) -> String {
        if self.is_flexvar() {
            format!("decoder.conv_blocks.{}", last - level)
        } else {
            format!("decoder.up.{level}")
        }
    }

    fn res(self) -> &'static str {
        if self.is_flexvar() { "res" } else { "block" }
    }

    fn encoder_block(self, level: usize, block: usize) -> String {
        format!("{}.{}.{block}", self.encoder(level), self.res())
    }

    fn encoder_attention(self, level: usize, block: usize) -> String {
        format!("{}.attn.{block}", self.encoder(level))
    }

    fn downsample(self, level: usize) -> String {
        format!("{}.downsample.conv", self.encoder(level))
    }

    fn decoder_block(self, last: usize, level: usize, block: usize) -> String {
        format!("{}.{}.{block}", self.decoder(last, level), self.res())
    }

    fn decoder_attention(self, last: usize, level: usize, block: usize) -> String {
        format!("{}.attn.{block}", self.decoder(last, level))
    }

    fn upsample(self, last: usize, level: usize) -> String {
        format!("{}.upsample.conv", self.decoder(last, level))
    }

    fn mid(self) -> [&'static str; 3] {
        if self.is_flexvar() { ["0", "1", "2"] } else { ["block_1", "attn_1", "block_2"] }
    }
}

/// Names and shapes.
struct List(BTreeMap<String, Vec<usize>>);

impl List {
    fn add(&mut self, name: String, shape: &[usize]) {
        self.0.insert(name, shape.to_vec());
    }

    fn conv(&mut self, name: &str, out: usize, from: usize, kernel: usize) {
        self.add(format!("{name}.weight"), &[out, from, kernel, kernel]);
        self.add(format!("{name}.bias"), &[out]);
    }

    fn norm(&mut self, name: &str, channels: usize) {
        self.add(format!("{name}.weight"), &[channels]);
        self.add(format!("{name}.bias"), &[channels]);
    }

    fn res(&mut self, name: &str, from: usize, out: usize) {
        self.norm(&format!("{name}.norm1"), from);
        self.conv(&format!("{name}.conv1"), out, from, 3);
        self.norm(&format!("{name}.norm2"), out);
        self.conv(&format!("{name}.conv2"), out, out, 3);
        if from != out {
            self.conv(&format!("{name}.nin_shortcut"), out, from, 1);
        }
    }

    fn attention(&mut self, names: Names, name: &str, channels: usize) {
        self.norm(&format!("{name}.norm"), channels);
        if names.is_flexvar() {
            for part in ["q", "k", "v"] {
                self.conv(&format!("{name}.{part}"), channels, channels, 1);
            }
        } else {
            self.conv(&format!("{name}.qkv"), channels.saturating_mul(3), channels, 1);
        }
        self.conv(&format!("{name}.proj_out"), channels, channels, 1);
    }

    fn mid(&mut self, names: Names, coder: &str, channels: usize) {
        let [first, attention, second] = names.mid().map(|part| format!("{coder}.mid.{part}"));
        self.res(&first, channels, channels);
        self.attention(names, &attention, channels);
        self.res(&second, channels, channels);
    }
}
