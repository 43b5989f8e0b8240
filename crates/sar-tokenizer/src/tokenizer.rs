//! The tokenizers of FlexVAR and VAR: latents of images, tokens of latents at every scale, and back.
//!
//! ```text
//! h = quant_conv(encoder(x))
//!
//! FlexVAR (section 3.1): every scale is encoded directly.
//! f_k = nearest code of area(h -> s_k),  q_k = look_up(f_k)
//! input of scale k+1 = bicubic(q_k -> s_{k+1}),  image = decoder(post_quant_conv(q_K))
//!
//! VAR (algorithms 1 and 2): every scale encodes what the coarser ones leave.
//! f_k = nearest code of area(h - f_hat_{k-1} -> s_k),  q_k = look_up(f_k)
//! f_hat_k = f_hat_{k-1} + phi_k(bicubic(q_k -> S))
//! input of scale k+1 = area(f_hat_k -> s_{k+1}),  image = decoder(post_quant_conv(f_hat_K))
//! ```
//! Either way the *canvas* after scale k (q_k here, f_hat_k there) is all that the next input and the
//! decoder see.
//!
//! Shapes: b batch, c code channels, z feature channels, n tokens of one scale, l of all.

use burn::module::Module;
use burn::nn::conv::Conv2d;
use burn::tensor::{Int, Tensor, backend::Backend};
use sar_core::{CodePyramid, Filter, ScaleSchedule, ScaleSize, resample};

use crate::autoencoder::{Decoder, Encoder};
use crate::block::{conv, convolve};
use crate::codebook::{Codebook, Metric, rows};
use crate::residual::Residual;
use crate::{Family, TokenizerConfig, TokenizerConfigError};

/// Encoder, codebook and decoder.
#[derive(Module, Debug)]
pub struct Tokenizer<B: Backend> {
    encoder: Encoder<B>,
    decoder: Decoder<B>,
    quantize: Codebook<B>,
    quant_conv: Conv2d<B>,
    post_quant_conv: Conv2d<B>,
    /// None where scales are encoded directly.
    residual: Option<Residual<B>>,
}

/// A quantised latent and what the training losses need of it.
#[derive(Clone, Debug)]
pub struct Quantised<B: Backend> {
    /// What is drawn together: pairs of latents and of what the codes make of them, as matrices of
    /// one shape. FlexVAR has one pair, comparable latents and their codes, `[b n, c]`; VAR has one
    /// a scale, the latent and `f_hat_k`, `[b c, h w]`. Gradients reach both sides.
    pub pairs: Vec<[Tensor<B, 2>; 2]>,
    /// The indices of all codes that were chosen.
    pub indices_n: Tensor<B, 1, Int>,
    /// Value of the canvas, gradient of the latent (straight-through): `[b, c, h, w]`.
    pub straight_through_bchw: Tensor<B, 4>,
}

impl<B: Backend> Tokenizer<B> {
    /// A tokenizer whose parameters wait to be filled, by [`init`](crate::init) or a checkpoint.
    ///
    /// # Errors
    /// If the configuration cannot be built.
    pub fn new(config: &TokenizerConfig, device: &B::Device) -> Result<Self, TokenizerConfigError> {
        config.validate()?;
        let (z, c) = (config.z_channels, config.codebook_dim);
        let (kernel, metric, phi) = match config.family {
            Family::Flexvar => (1, Metric::Cosine, None),
            Family::Var { phi } => (3, Metric::Euclidean, Some(phi)),
        };
        Ok(Self {
            encoder: Encoder::new(config, device),
            decoder: Decoder::new(config, device),
            quantize: Codebook::new(config.codebook_size, c, metric, device),
            quant_conv: conv([z, c], kernel, device),
            post_quant_conv: conv([c, z], kernel, device),
            residual: phi.map(|phi| Residual::new(phi.convolutions(), c, device)),
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
        convolve(&self.quant_conv, features_bchw)
    }

    /// Latents of images, `h` of the module's equations.
    ///
    /// # Shapes
    /// - `image_bchw`: `[b, 3, H, W]`, pixels in [-1, 1]
    /// - output: `[b, c, h, w]`
    pub fn encode(&self, image_bchw: Tensor<B, 4>) -> Tensor<B, 4> {
        self.project(self.features(image_bchw))
    }

    /// Tokens of every scale of a schedule.
    ///
    /// A residual tokenizer first takes latents of another size to the last scale's (area).
    ///
    /// # Shapes
    /// - `h_bchw`: `[b, c, h, w]`, from [`encode`](Self::encode)
    /// - output: `[b, l]`, coarse to fine, row-major in each scale
    pub fn tokens(&self, h_bchw: Tensor<B, 4>, schedule: &ScaleSchedule) -> Tensor<B, 2, Int> {
        let [b, ..] = h_bchw.dims();
        let mut tokens = Vec::with_capacity(schedule.len());
        self.encode_scales(h_bchw, schedule, |z_nc| {
            let (indices_n, codes_nc) = self.nearest(z_nc);
            let [n] = indices_n.dims();
            tokens.push(indices_n.reshape([b, n / b]));
            codes_nc
        });
        Tensor::cat(tokens, 1)
    }

    /// What codes are searched for at every scale by a codebook that has each of them: where a
    /// codebook may start from.
    ///
    /// # Shapes
    /// - `h_bchw`: `[b, c, h, w]`
    /// - output: one `[b n_k, c]` per scale
    pub fn searched(&self, h_bchw: Tensor<B, 4>, schedule: &ScaleSchedule) -> Vec<Tensor<B, 2>> {
        let mut searched = Vec::with_capacity(schedule.len());
        self.encode_scales(h_bchw, schedule, |z_nc| {
            searched.push(z_nc.clone());
            z_nc
        });
        searched
    }

    /// Quantises a latent for training.
    ///
    /// A direct tokenizer quantises the map at its own size; a residual one takes the scales of
    /// `schedule`.
    ///
    /// # Shapes
    /// - `h_bchw`: `[b, c, h, w]`, for a residual tokenizer of the schedule's last scale
    pub fn quantise(&self, h_bchw: Tensor<B, 4>, schedule: &ScaleSchedule) -> Quantised<B> {
        let [b, c, h, w] = h_bchw.dims();
        if self.residual.is_none() {
            let z_nc = self.quantize.comparable(rows(h_bchw));
            let (indices_n, q_nc) = self.nearest(z_nc.clone());
            let through_nc = straight_through(z_nc.clone(), q_nc.clone());
            let straight_through_bchw = map(through_nc, [b, h, w]);
            return Quantised { pairs: vec![[z_nc, q_nc]], indices_n, straight_through_bchw };
        }
        let mut indices = Vec::with_capacity(schedule.len());
        let canvases = self.encode_scales(h_bchw.clone(), schedule, |z_nc| {
            let (indices_n, codes_nc) = self.nearest(z_nc);
            indices.push(indices_n);
            codes_nc
        });
        let flat = |x_bchw: &Tensor<B, 4>| x_bchw.clone().reshape([b * c, h * w]);
        let last_bchw = canvases[canvases.len() - 1].clone();
        Quantised {
            pairs: canvases.iter().map(|canvas| [flat(&h_bchw), flat(canvas)]).collect(),
            indices_n: Tensor::cat(indices, 0),
            straight_through_bchw: straight_through(h_bchw, last_bchw),
        }
    }

    /// The canvas after each scale, for [`decode`](Self::decode): `q_k` or `f_hat_k` of the module's
    /// equations.
    ///
    /// # Shapes
    /// - `tokens_bl`: `[b, l]`, all scales, coarse to fine
    /// - output: one `[b, c, h, w]` per scale
    pub fn canvases(
        &self,
        tokens_bl: Tensor<B, 2, Int>,
        schedule: &ScaleSchedule,
    ) -> Vec<Tensor<B, 4>> {
        let [b, _] = tokens_bl.dims();
        let codes_vc = self.quantize.codes();
        let mut canvases: Vec<Tensor<B, 4>> = Vec::with_capacity(schedule.len());
        for (k, range) in schedule.ranges().enumerate() {
            let tokens_n = tokens_bl.clone().slice_dim(1, range.clone()).reshape([b * range.len()]);
            let ScaleSize { height, width } = schedule.size(k);
            let q_bchw = map(codes_vc.clone().select(0, tokens_n), [b, height, width]);
            canvases.push(self.painted(canvases.last().cloned(), schedule, k, q_bchw));
        }
        canvases
    }

    /// Decodes a canvas.
    ///
    /// # Shapes
    /// - `canvas_bchw`: `[b, c, h, w]`
    /// - output: `[b, 3, H, W]`, pixels; nominally in [-1, 1], not clamped
    pub fn decode(&self, canvas_bchw: Tensor<B, 4>) -> Tensor<B, 4> {
        self.decoder.forward(convolve(&self.post_quant_conv, canvas_bchw))
    }

    /// The nearest codes of rows: their indices and, with gradients, the codes.
    fn nearest(&self, z_nc: Tensor<B, 2>) -> (Tensor<B, 1, Int>, Tensor<B, 2>) {
        let indices_n = self.quantize.nearest(z_nc);
        (indices_n.clone(), self.quantize.codes().select(0, indices_n))
    }

    /// Goes through the scales: `choose` gets the rows that each searches codes for and returns the
    /// codes that are painted. Returns the canvas after each scale.
    fn encode_scales(
        &self,
        h_bchw: Tensor<B, 4>,
        schedule: &ScaleSchedule,
        mut choose: impl FnMut(Tensor<B, 2>) -> Tensor<B, 2>,
    ) -> Vec<Tensor<B, 4>> {
        let [b, ..] = h_bchw.dims();
        let h_bchw = match &self.residual {
            None => h_bchw,
            Some(_) => resample(h_bchw, schedule.last(), Filter::Area),
        };
        let mut canvases: Vec<Tensor<B, 4>> = Vec::with_capacity(schedule.len());
        for (k, &size) in schedule.sizes().iter().enumerate() {
            let before = canvases.last().cloned();
            let wanted = match (&self.residual, &before) {
                (Some(_), Some(f_hat)) => h_bchw.clone() - f_hat.clone(),
                _ => h_bchw.clone(),
            };
            let codes_nc = choose(rows(resample(wanted.detach(), size, Filter::Area)));
            let q_bchw = map(codes_nc, [b, size.height, size.width]);
            canvases.push(self.painted(before, schedule, k, q_bchw));
        }
        canvases
    }

    /// The canvas after the codes of scale `k`.
    fn painted(
        &self,
        canvas: Option<Tensor<B, 4>>,
        schedule: &ScaleSchedule,
        k: usize,
        q_bchw: Tensor<B, 4>,
    ) -> Tensor<B, 4> {
        match (&self.residual, canvas) {
            (None, _) => q_bchw,
            (Some(residual), None) => residual.enlarge(q_bchw, schedule, k),
            (Some(residual), Some(f_hat)) => f_hat + residual.enlarge(q_bchw, schedule, k),
        }
    }
}

impl<B: Backend> CodePyramid<B> for Tokenizer<B> {
    /// The code map of the last painted scale, or the sum of all so far: `[b, c, h, w]`.
    type Canvas = Option<Tensor<B, 4>>;

    fn codes(&self) -> Tensor<B, 2> {
        self.quantize.codes()
    }

    fn paint(
        &self,
        canvas: &mut Self::Canvas,
        schedule: &ScaleSchedule,
        k: usize,
        codes_bnc: Tensor<B, 3>,
    ) -> Option<Tensor<B, 3>> {
        let [b, n, c] = codes_bnc.dims();
        let ScaleSize { height, width } = schedule.size(k);
        let q_bchw = map(codes_bnc.reshape([b * n, c]), [b, height, width]);
        let painted = self.painted(canvas.take(), schedule, k, q_bchw);
        *canvas = Some(painted.clone());
        let next = *schedule.sizes().get(k + 1)?;
        let filter = if self.residual.is_some() { Filter::Area } else { Filter::Bicubic };
        let input = resample(painted, next, filter);
        Some(input.reshape([b, c, next.tokens()]).swap_dims(1, 2))
    }
}

/// Rows as a map: `[b h w, c]` to `[b, c, h, w]`.
fn map<B: Backend>(x_nc: Tensor<B, 2>, [b, h, w]: [usize; 3]) -> Tensor<B, 4> {
    let [_, c] = x_nc.dims();
    x_nc.reshape([b, h, w, c]).permute([0, 3, 1, 2])
}

/// The value of `q` with the gradient of `z`.
fn straight_through<B: Backend, const D: usize>(z: Tensor<B, D>, q: Tensor<B, D>) -> Tensor<B, D> {
    z.clone() + (q - z).detach()
}
