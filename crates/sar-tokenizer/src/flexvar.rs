//! FlexVAR's tokenizer: every scale is encoded directly, without residuals (FlexVAR, section 3.1).
//!
//! ```text
//! h   = quant_conv(encoder(x))
//! f_k = nearest code of area(h -> s_k),  q_k = look_up(f_k)
//! input of scale k+1 = bicubic(q_k -> s_{k+1}),  image = decoder(post_quant_conv(q_K))
//! ```
//! Shapes: b batch, c code channels, z feature channels, n tokens of one scale, l of all.

use burn::module::Module;
use burn::nn::conv::Conv2d;
use burn::tensor::{Int, Tensor, backend::Backend};
use sar_core::{CodePyramid, Filter, ScaleSchedule, ScaleSize, resample};
use sar_weights::Layout;

use crate::autoencoder::{Decoder, Encoder};
use crate::block::conv;
use crate::codebook::{Codebook, normalise, rows};
use crate::{TokenizerConfig, TokenizerConfigError};

/// The released names and layout.
pub const LAYOUT: Layout = Layout {
    renames: &[("mid.block_in", "mid.0"), ("mid.attention", "mid.1"), ("mid.block_out", "mid.2")],
    ignored: &["quantize.codebook_used"],
    roots: &["model"],
};

/// Encoder, codebook and decoder.
#[derive(Module, Debug)]
pub struct FlexVarTokenizer<B: Backend> {
    encoder: Encoder<B>,
    decoder: Decoder<B>,
    quantize: Codebook<B>,
    quant_conv: Conv2d<B>,
    post_quant_conv: Conv2d<B>,
}

/// A quantised map and what the training losses need of it.
#[derive(Clone, Debug)]
pub struct Quantised<B: Backend> {
    /// Normalised latents as rows, `[b n, c]`.
    pub z_nc: Tensor<B, 2>,
    /// Their codes as rows, `[b n, c]`; gradients reach the codebook.
    pub q_nc: Tensor<B, 2>,
    /// Their indices, `[b n]`.
    pub indices_n: Tensor<B, 1, Int>,
    /// Value of the codes, gradient of the latents (straight-through): `[b, c, h, w]`.
    pub straight_through_bchw: Tensor<B, 4>,
}

impl<B: Backend> FlexVarTokenizer<B> {
    /// A tokenizer whose parameters wait to be filled, by [`init`](crate::init) or a checkpoint.
    ///
    /// # Errors
    /// If the configuration cannot be built.
    pub fn new(config: &TokenizerConfig, device: &B::Device) -> Result<Self, TokenizerConfigError> {
        config.validate()?;
        Ok(Self {
            encoder: Encoder::new(config, device),
            decoder: Decoder::new(config, device),
            quantize: Codebook::new(config.codebook_size, config.codebook_dim, device),
            quant_conv: conv([config.z_channels, config.codebook_dim], 1, device),
            post_quant_conv: conv([config.codebook_dim, config.z_channels], 1, device),
        })
    }

    /// The codebook.
    pub fn codebook(&self) -> &Codebook<B> {
        &self.quantize
    }

    /// The same tokenizer with another codebook.
    pub fn with_codebook(mut self, edit: impl FnOnce(Codebook<B>) -> Codebook<B>) -> Self {
        self.quantize = edit(self.quantize);
        self
    }

    /// Features before `quant_conv`, which training resamples to a drawn scale.
    ///
    /// # Shapes
    /// - `image_bchw`: `[b, 3, H, W]`, pixels in [-1, 1]
    /// - output: `[b, z, h, w]`
    pub fn features(&self, image_bchw: Tensor<B, 4>) -> Tensor<B, 4> {
        self.encoder.forward(image_bchw)
    }

    /// Features to latents, `quant_conv`: `[b, z, h, w]` to `[b, c, h, w]`.
    pub fn project(&self, features_bchw: Tensor<B, 4>) -> Tensor<B, 4> {
        self.quant_conv.forward(features_bchw)
    }

    /// Latents of images, `h` of the module's equations.
    ///
    /// # Shapes
    /// - `image_bchw`: `[b, 3, H, W]`, pixels in [-1, 1]
    /// - output: `[b, c, h, w]`
    pub fn encode(&self, image_bchw: Tensor<B, 4>) -> Tensor<B, 4> {
        self.project(self.features(image_bchw))
    }

    /// Quantises a map at its own size.
    ///
    /// # Shapes
    /// - `h_bchw`: `[b, c, h, w]`
    pub fn quantise(&self, h_bchw: Tensor<B, 4>) -> Quantised<B> {
        let [b, c, h, w] = h_bchw.dims();
        let z_nc = normalise(rows(h_bchw));
        let indices_n = self.quantize.nearest(z_nc.clone());
        let q_nc = self.quantize.codes().select(0, indices_n.clone());
        let through_nc = z_nc.clone() + (q_nc.clone() - z_nc.clone()).detach();
        let straight_through_bchw = through_nc.reshape([b, h, w, c]).permute([0, 3, 1, 2]);
        Quantised { z_nc, q_nc, indices_n, straight_through_bchw }
    }

    /// Tokens of every scale of a schedule.
    ///
    /// # Shapes
    /// - `h_bchw`: `[b, c, h, w]`, from [`encode`](Self::encode)
    /// - output: `[b, l]`, coarse to fine, row-major in each scale
    pub fn tokens(&self, h_bchw: Tensor<B, 4>, schedule: &ScaleSchedule) -> Tensor<B, 2, Int> {
        let scales = schedule.sizes().iter().map(|&size| self.tokens_at(h_bchw.clone(), size));
        Tensor::cat(scales.collect(), 1)
    }

    /// Tokens of one scale: `[b, c, h, w]` to `[b, n]`.
    pub fn tokens_at(&self, h_bchw: Tensor<B, 4>, size: ScaleSize) -> Tensor<B, 2, Int> {
        let [b, ..] = h_bchw.dims();
        let z_nc = rows(resample(h_bchw, size, Filter::Area));
        self.quantize.nearest(z_nc).reshape([b, size.tokens()])
    }

    /// Decodes a code map.
    ///
    /// # Shapes
    /// - `q_bchw`: `[b, c, h, w]`
    /// - output: `[b, 3, H, W]`, pixels, not clamped
    pub fn decode(&self, q_bchw: Tensor<B, 4>) -> Tensor<B, 4> {
        self.decoder.forward(self.post_quant_conv.forward(q_bchw))
    }

    /// Decodes the tokens of one scale, `[b, n]`, to an image of that scale's size.
    pub fn decode_tokens(&self, tokens_bn: Tensor<B, 2, Int>, size: ScaleSize) -> Tensor<B, 4> {
        self.decode(self.quantize.look_up(tokens_bn, size))
    }
}

impl<B: Backend> CodePyramid<B> for FlexVarTokenizer<B> {
    /// Without residuals the canvas is the last code map, `[b, c, h, w]`.
    type Canvas = Option<Tensor<B, 4>>;

    fn paint(
        &self,
        canvas: &mut Self::Canvas,
        schedule: &ScaleSchedule,
        k: usize,
        tokens_bn: Tensor<B, 2, Int>,
    ) -> Option<Tensor<B, 3>> {
        let q_bchw = self.quantize.look_up(tokens_bn, schedule.size(k)).detach();
        *canvas = Some(q_bchw.clone());
        let next = *schedule.sizes().get(k + 1)?;
        let [b, c, ..] = q_bchw.dims();
        let up = resample(q_bchw, next, Filter::Bicubic);
        Some(up.reshape([b, c, next.tokens()]).swap_dims(1, 2))
    }
}
