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
use sar_core::{CodePyramid, ScaleSchedule, ScaleSize, resample};
use sar_kernels::convolve;

use crate::autoencoder::{Decoder, Encoder};
use crate::block::conv;
use crate::quantizer::map;
use crate::{
    Codebook, ColorAxes, Family, MapLimits, Quantizer, TokenizerConfig, TokenizerConfigError,
};

/// Encoder, codebook and decoder.
#[derive(Module, Debug)]
pub struct Tokenizer<B: Backend> {
    encoder: Encoder<B>,
    decoder: Decoder<B>,
    quantizer: Quantizer<B>,
    quant_conv: Conv2d<B>,
    post_quant_conv: Conv2d<B>,
    /// The colors that encoder and decoder see, in training; RGB if none.
    #[module(skip)]
    colors: Option<ColorAxes>,
}

impl<B: Backend> Tokenizer<B> {
    /// A tokenizer whose parameters wait to be filled, by [`init`](crate::init) or a checkpoint.
    ///
    /// # Errors
    /// If the configuration cannot be built.
    pub fn new(config: &TokenizerConfig, device: &B::Device) -> Result<Self, TokenizerConfigError> {
        config.validate()?;
        let (z, c) = (config.z_channels, config.codebook_dim);
        let kernel = match config.family {
            Family::Flexvar => 1,
            Family::Var { .. } => 3,
        };
        Ok(Self {
            encoder: Encoder::new(config, device),
            decoder: Decoder::new(config, device),
            quantizer: Quantizer::new(config, device),
            quant_conv: conv([z, c], kernel, device),
            post_quant_conv: conv([c, z], kernel, device),
            colors: None,
        })
    }

    /// The color axes that encoder and decoder see; RGB if none.
    pub fn colors(&self) -> Option<ColorAxes> {
        self.colors
    }

    /// The same weights between other colors: images are taken and given in RGB as before, and the
    /// first convolution sees, and the last one gives, colors along axes that all vary alike.
    pub fn with_colors(mut self, colors: ColorAxes) -> Self {
        self.colors = Some(colors);
        self
    }

    /// The same function with weights for RGB: the form of released files.
    pub fn folded(mut self) -> Self {
        if let Some(colors) = self.colors.take() {
            self.encoder = self.encoder.with_input(colors.matrix(-1.0));
            self.decoder = self.decoder.with_output(colors.inverse());
        }
        self
    }

    /// The same function with weights for other colors: what [`folded`](Self::folded) undoes.
    pub fn unfolded(self, colors: ColorAxes) -> Self {
        let mut tokenizer = self.folded();
        tokenizer.encoder = tokenizer.encoder.with_input(colors.inverse());
        tokenizer.decoder = tokenizer.decoder.with_output(colors.matrix(-1.0));
        tokenizer.with_colors(colors)
    }

    /// What makes tokens of latents, and maps of tokens.
    pub fn quantizer(&self) -> &Quantizer<B> {
        &self.quantizer
    }

    /// The codebook.
    pub fn codebook(&self) -> &Codebook<B> {
        self.quantizer.codebook()
    }

    /// The same tokenizer with another codebook.
    pub fn with_codebook(mut self, edit: impl FnOnce(Codebook<B>) -> Codebook<B>) -> Self {
        self.quantizer = self.quantizer.with_codebook(edit);
        self
    }

    /// Features before `quant_conv`, which training resamples to a drawn scale.
    ///
    /// # Shapes
    /// - `image_bchw`: `[b, 3, H, W]`, pixels in [-1, 1]
    /// - output: `[b, z, h, w]`
    pub fn features(&self, image_bchw: Tensor<B, 4>) -> Tensor<B, 4> {
        self.features_in(image_bchw, usize::MAX)
    }

    fn features_in(&self, image_bchw: Tensor<B, 4>, most: usize) -> Tensor<B, 4> {
        let image_bchw = match &self.colors {
            Some(colors) => colors.along(image_bchw, -1.0),
            None => image_bchw,
        };
        self.encoder.forward(image_bchw, most)
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
        self.encode_within(image_bchw, MapLimits::default())
    }

    /// As [`encode`](Self::encode), with maps of other sizes: the same up to rounding.
    pub fn encode_within(&self, image_bchw: Tensor<B, 4>, limits: MapLimits) -> Tensor<B, 4> {
        let [_, _, height, width] = image_bchw.dims();
        in_parts(image_bchw, limits, self.encoder.channels() * height * width, |part, most| {
            self.project(self.features_in(part, most))
        })
    }

    /// Tokens of every scale of a schedule.
    ///
    /// # Shapes
    /// - `h_bchw`: `[b, c, h, w]`, from [`encode`](Self::encode)
    /// - output: `[b, l]`, coarse to fine, row-major in each scale
    pub fn tokens(&self, h_bchw: Tensor<B, 4>, schedule: &ScaleSchedule) -> Tensor<B, 2, Int> {
        self.quantizer.tokens(h_bchw, schedule.sizes())
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
        let codes_vc = self.codebook().codes();
        let mut canvases: Vec<Tensor<B, 4>> = Vec::with_capacity(schedule.len());
        for (k, range) in schedule.ranges().enumerate() {
            let tokens_n = tokens_bl.clone().slice_dim(1, range.clone()).reshape([b * range.len()]);
            let ScaleSize { height, width } = schedule.size(k);
            let q_bchw = map(codes_vc.clone().select(0, tokens_n), [b, height, width]);
            let before = canvases.last().cloned();
            canvases.push(self.quantizer.add_scale(before, schedule.sizes(), k, q_bchw));
        }
        canvases
    }

    /// Decodes a canvas.
    ///
    /// # Shapes
    /// - `canvas_bchw`: `[b, c, h, w]`
    /// - output: `[b, 3, H, W]`, pixels; nominally in [-1, 1], not clamped
    pub fn decode(&self, canvas_bchw: Tensor<B, 4>) -> Tensor<B, 4> {
        self.decode_within(canvas_bchw, MapLimits::default())
    }

    /// As [`decode`](Self::decode), with maps of other sizes: the same up to rounding, without seams.
    pub fn decode_within(&self, canvas_bchw: Tensor<B, 4>, limits: MapLimits) -> Tensor<B, 4> {
        let [_, _, h, w] = canvas_bchw.dims();
        let pixels = h * w * self.decoder.upsampling().pow(2);
        in_parts(canvas_bchw, limits, self.decoder.channels() * pixels, |part, most| {
            self.in_rgb(self.decoder.forward(convolve(&self.post_quant_conv, part), most))
        })
    }

    /// What the decoder's last convolution is given, and the image that it makes of it: see
    /// [`decode`](Self::decode).
    ///
    /// # Shapes
    /// - first output: `[b, base channels, H, W]`
    pub fn decode_in_two(&self, canvas_bchw: Tensor<B, 4>) -> (Tensor<B, 4>, Tensor<B, 4>) {
        let z_bchw = convolve(&self.post_quant_conv, canvas_bchw);
        let last_bchw = self.decoder.before_last_layer(z_bchw);
        let image_bchw = self.in_rgb(self.decoder.last_layer(last_bchw.clone()));
        (last_bchw, image_bchw)
    }

    fn in_rgb(&self, image_bchw: Tensor<B, 4>) -> Tensor<B, 4> {
        match &self.colors {
            Some(colors) => colors.back(image_bchw),
            None => image_bchw,
        }
    }
}

/// What becomes of images, of so many together as the limits allow: `work` is given these, and the elements
/// of a band. `image` is the elements of one image's largest map.
fn in_parts<B: Backend>(
    x_bchw: Tensor<B, 4>,
    limits: MapLimits,
    image: usize,
    work: impl Fn(Tensor<B, 4>, usize) -> Tensor<B, 4>,
) -> Tensor<B, 4> {
    let (n, most) = limits.parts(image);
    if x_bchw.dims()[0] <= n {
        return work(x_bchw, most);
    }
    let parts = x_bchw.split(n, 0).into_iter().map(|part| work(part, most)).collect();
    Tensor::cat(parts, 0)
}

impl<B: Backend> CodePyramid<B> for Tokenizer<B> {
    /// The code map of the last painted scale, or the sum of all so far: `[b, c, h, w]`.
    type Canvas = Option<Tensor<B, 4>>;

    fn codes(&self) -> Tensor<B, 2> {
        self.codebook().codes()
    }

    fn n_codes(&self, size: ScaleSize) -> usize {
        self.codebook().n_codes(size)
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
        let f_hat = self.quantizer.add_scale(canvas.take(), schedule.sizes(), k, q_bchw);
        *canvas = Some(f_hat.clone());
        let next = *schedule.sizes().get(k + 1)?;
        let input = resample(f_hat, next, self.quantizer.input_filter());
        Some(input.reshape([b, c, next.tokens()]).swap_dims(1, 2))
    }
}
