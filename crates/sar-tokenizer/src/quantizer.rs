//! The families of quantizers: how latents become the tokens of every scale, and what the tokens of
//! the scales make together.
//!
//! ```text
//! direct (FlexVAR):  f_k = nearest(area(h -> s_k)),                 f_hat_k = look_up(f_k)
//! residual (VAR):    f_k = nearest(area(h - f_hat_{k-1} -> s_k)),   f_hat_k = f_hat_{k-1} + phi_k(bicubic(look_up(f_k) -> S))
//! ```
//!
//! Shapes: b batch, c code channels, n tokens of one scale, l of all; K scales, coarse to fine.

use burn::module::Module;
use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use sar_core::{Filter, ScaleSchedule, ScaleSize, resample};

use crate::codebook::{Metric, rows};
use crate::residual::Residual;
use crate::{Codebook, Disturbance, Family, TokenizerConfig};

/// A family of quantizers with its parameters.
#[derive(Module, Debug)]
#[non_exhaustive]
pub enum Quantizer<B: Backend> {
    /// Every scale encodes the latents (FlexVAR).
    Direct(Direct<B>),
    /// Every scale encodes what the coarser ones leave (VAR).
    Residual(Residual<B>),
}

/// A codebook that every scale shares.
#[derive(Module, Debug)]
pub struct Direct<B: Backend> {
    codebook: Codebook<B>,
}

/// Quantized latents and what the training losses need of them.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Quantized<B: Backend> {
    /// What the losses draw together: a pair for each scale, as matrices of one shape. A direct
    /// quantizer pairs comparable latents with their codes, `[b n, c]`; a residual one the latents
    /// with `f_hat_k`, `[b c, h w]`. Gradients reach both sides.
    pub pairs: Vec<[Tensor<B, 2>; 2]>,
    /// The indices of all codes that were chosen.
    pub indices_n: Tensor<B, 1, Int>,
    /// Value of the last `f_hat`, disturbed if so asked, gradient of the latents (straight-through):
    /// `[b, c, h, w]`.
    pub straight_through_bchw: Tensor<B, 4>,
}

impl<B: Backend> Quantizer<B> {
    pub(crate) fn new(config: &TokenizerConfig, device: &B::Device) -> Self {
        let codebook = |metric| {
            let codes = Codebook::new(config.codebook_size, config.codebook_dim, metric, device);
            codes.growing(config.codebook_growth)
        };
        match config.family {
            Family::Flexvar => Self::Direct(Direct { codebook: codebook(Metric::Cosine) }),
            Family::Var { phi } => Self::Residual(Residual::new(
                codebook(Metric::Euclidean),
                phi.convolutions(),
                device,
            )),
        }
    }

    /// The codebook.
    pub fn codebook(&self) -> &Codebook<B> {
        match self {
            Self::Direct(direct) => &direct.codebook,
            Self::Residual(residual) => &residual.codebook,
        }
    }

    pub(crate) fn with_codebook(self, edit: impl FnOnce(Codebook<B>) -> Codebook<B>) -> Self {
        match self {
            Self::Direct(Direct { codebook }) => Self::Direct(Direct { codebook: edit(codebook) }),
            Self::Residual(mut residual) => {
                residual.codebook = edit(residual.codebook);
                Self::Residual(residual)
            }
        }
    }

    /// How `f_hat` is resampled to the input of the next scale.
    pub(crate) fn input_filter(&self) -> Filter {
        match self {
            Self::Direct(_) => Filter::Bicubic,
            Self::Residual(_) => Filter::Area,
        }
    }

    /// `f_hat_k`: what the codes of scale `k` and of the coarser ones make.
    ///
    /// # Shapes
    /// - `before`: `f_hat_{k-1}`, `[b, c, h, w]`; `None` at the first scale
    /// - `q_bchw`: `[b, c, h_k, w_k]`
    pub(crate) fn add_scale(
        &self,
        before: Option<Tensor<B, 4>>,
        scales: &[ScaleSize],
        k: usize,
        q_bchw: Tensor<B, 4>,
    ) -> Tensor<B, 4> {
        match (self, before) {
            (Self::Direct(_), _) => q_bchw,
            (Self::Residual(residual), None) => residual.enlarge(q_bchw, scales, k),
            (Self::Residual(residual), Some(f_hat)) => f_hat + residual.enlarge(q_bchw, scales, k),
        }
    }

    /// Tokens of every scale; a residual quantizer first takes latents of another size to the last
    /// scale's (area).
    ///
    /// # Shapes
    /// - `h_bchw`: `[b, c, h, w]`
    /// - output: `[b, l]`, coarse to fine, row-major in each scale
    pub(crate) fn tokens(&self, h_bchw: Tensor<B, 4>, scales: &[ScaleSize]) -> Tensor<B, 2, Int> {
        let [b, ..] = h_bchw.dims();
        let mut tokens = Vec::with_capacity(scales.len());
        self.encode_scales(h_bchw, scales, |z_nc, size| {
            let (indices_n, codes_nc) = self.nearest(z_nc, size);
            let [n] = indices_n.dims();
            tokens.push(indices_n.reshape([b, n / b]));
            codes_nc
        });
        Tensor::cat(tokens, 1)
    }

    /// The rows that codes are searched for at every scale, if the codebook had a code for each of
    /// them: what a codebook may start from.
    ///
    /// # Shapes
    /// - `h_bchw`: `[b, c, h, w]`
    /// - output: one `[b n_k, c]` per scale
    pub fn targets(&self, h_bchw: Tensor<B, 4>, scales: &[ScaleSize]) -> Vec<Tensor<B, 2>> {
        let mut targets = Vec::with_capacity(scales.len());
        self.encode_scales(h_bchw, scales, |z_nc, _| {
            targets.push(z_nc.clone());
            z_nc
        });
        targets
    }

    /// The scales at which [`quantize`](Self::quantize) takes latents of the size of one of a
    /// schedule's: a direct quantizer at that one, a residual one at all, of which it is the last.
    pub fn scales_of<'s>(
        &self,
        size: &'s ScaleSize,
        schedule: &'s ScaleSchedule,
    ) -> &'s [ScaleSize] {
        match self {
            Self::Direct(_) => std::slice::from_ref(size),
            Self::Residual(_) => schedule.sizes(),
        }
    }

    /// Quantizes latents at every one of some scales, for training. The last of the scales is the
    /// latents' own size. What is disturbed is what the decoder gets, not what the losses of the
    /// codebook compare.
    ///
    /// # Shapes
    /// - `h_bchw`: `[b, c, h, w]`
    ///
    /// # Panics
    /// If there is no scale, or the last one is not the latents' size, or the disturbance has not a
    /// stream for each image.
    pub fn quantize(
        &self,
        h_bchw: Tensor<B, 4>,
        scales: &[ScaleSize],
        disturbance: Option<&Disturbance<'_>>,
    ) -> Quantized<B> {
        let [b, c, height, width] = h_bchw.dims();
        assert_eq!(scales.last(), Some(&ScaleSize { height, width }), "the latents' own size");
        let disturbance = disturbance.filter(|disturbance| !disturbance.is_none());
        let mut indices = Vec::with_capacity(scales.len());
        let (pairs, straight_through_bchw) = match self {
            Self::Direct(direct) => {
                let pair = |size: &ScaleSize| {
                    let z_bchw = resample(h_bchw.clone(), *size, Filter::Area);
                    let z_nc = direct.codebook.comparable(rows(z_bchw));
                    let (indices_n, q_nc) = self.nearest(z_nc.clone(), *size);
                    indices.push(indices_n);
                    [z_nc, q_nc]
                };
                let pairs: Vec<_> = scales.iter().map(pair).collect();
                let [z_nc, mut q_nc] = pairs[pairs.len() - 1].clone();
                if let (Some(disturbance), Some(size)) = (disturbance, scales.last()) {
                    let found_n = indices[indices.len() - 1].clone();
                    let indices_n =
                        disturbance.perturbed(&direct.codebook, z_nc.clone(), found_n, *size);
                    q_nc = direct.codebook.codes().select(0, indices_n);
                }
                (pairs, map(straight_through(z_nc, q_nc), [b, height, width]))
            }
            Self::Residual(_) => {
                let mut searched = Vec::new();
                let f_hats = self.encode_scales(h_bchw.clone(), scales, |z_nc, size| {
                    let (indices_n, codes_nc) = self.nearest(z_nc.clone(), size);
                    searched.push((z_nc, indices_n.clone()));
                    indices.push(indices_n);
                    codes_nc
                });
                let flat = |x_bchw: &Tensor<B, 4>| x_bchw.clone().reshape([b * c, height * width]);
                let pairs = f_hats.iter().map(|f_hat| [flat(&h_bchw), flat(f_hat)]).collect();
                let f_hat = match disturbance {
                    Some(disturbance) => self.disturbed(searched, scales, disturbance),
                    None => f_hats[f_hats.len() - 1].clone(),
                };
                (pairs, straight_through(h_bchw, f_hat))
            }
        };
        Quantized { pairs, indices_n: Tensor::cat(indices, 0), straight_through_bchw }
    }

    /// The last `f_hat` of a residual quantizer out of disturbed codes, without gradients: of each scale
    /// the rows that it searched codes for, and what it found.
    fn disturbed(
        &self,
        searched: Vec<(Tensor<B, 2>, Tensor<B, 1, Int>)>,
        scales: &[ScaleSize],
        disturbance: &Disturbance<'_>,
    ) -> Tensor<B, 4> {
        let codes_vc = self.codebook().codes().detach();
        let kept = disturbance.kept_scales(scales.len());
        let b = kept.len();
        let mut f_hat: Option<Tensor<B, 4>> = None;
        for (k, ((z_nc, indices_n), size)) in searched.into_iter().zip(scales).enumerate() {
            let indices_n = disturbance.perturbed(self.codebook(), z_nc, indices_n, *size);
            let q_bchw = map(codes_vc.clone().select(0, indices_n), [b, size.height, size.width]);
            let mut added = self.add_scale(None, scales, k, q_bchw).detach();
            if kept.iter().any(|kept| *kept <= k) {
                let keeps: Vec<f32> = kept.iter().map(|n| f32::from(u8::from(k < *n))).collect();
                let keeps = TensorData::new(keeps, [b, 1, 1, 1]);
                added = added.clone() * Tensor::from_data(keeps, &added.device());
            }
            f_hat = Some(match f_hat {
                Some(before) => before + added,
                None => added,
            });
        }
        f_hat.expect("at least one scale")
    }

    /// The nearest codes of a scale's rows: their indices and, with gradients, the codes.
    fn nearest(&self, z_nc: Tensor<B, 2>, size: ScaleSize) -> (Tensor<B, 1, Int>, Tensor<B, 2>) {
        let indices_n = self.codebook().nearest_among(z_nc, self.codebook().n_codes(size));
        (indices_n.clone(), self.codebook().codes().select(0, indices_n))
    }

    /// Goes through the scales: `choose` gets the rows that each searches codes for, and its size, and returns
    /// the codes that it takes. Returns `f_hat` after each scale.
    fn encode_scales(
        &self,
        h_bchw: Tensor<B, 4>,
        scales: &[ScaleSize],
        mut choose: impl FnMut(Tensor<B, 2>, ScaleSize) -> Tensor<B, 2>,
    ) -> Vec<Tensor<B, 4>> {
        let [b, ..] = h_bchw.dims();
        let h_bchw = match self {
            Self::Direct(_) => h_bchw,
            Self::Residual(_) => resample(h_bchw, scales[scales.len() - 1], Filter::Area),
        };
        let mut f_hats: Vec<Tensor<B, 4>> = Vec::with_capacity(scales.len());
        for (k, &size) in scales.iter().enumerate() {
            let before = f_hats.last().cloned();
            let rest = match (self, &before) {
                (Self::Residual(_), Some(f_hat)) => h_bchw.clone() - f_hat.clone(),
                _ => h_bchw.clone(),
            };
            let codes_nc = choose(rows(resample(rest.detach(), size, Filter::Area)), size);
            let q_bchw = map(codes_nc, [b, size.height, size.width]);
            f_hats.push(self.add_scale(before, scales, k, q_bchw));
        }
        f_hats
    }
}

/// Rows as a map: `[b h w, c]` to `[b, c, h, w]`.
pub(crate) fn map<B: Backend>(x_nc: Tensor<B, 2>, [b, h, w]: [usize; 3]) -> Tensor<B, 4> {
    let [_, c] = x_nc.dims();
    x_nc.reshape([b, h, w, c]).permute([0, 3, 1, 2])
}

/// The value of `q` with the gradient of `z`.
fn straight_through<B: Backend, const D: usize>(z: Tensor<B, D>, q: Tensor<B, D>) -> Tensor<B, D> {
    z.clone() + (q - z).detach()
}
