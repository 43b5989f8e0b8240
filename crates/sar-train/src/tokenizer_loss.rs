//! What a tokenizer is trained for: pixels, perception, codebook, commitment, entropy.
//!
//! Every step reconstructs the finest scale and, of a direct tokenizer, coarser scales that it draws;
//! the image is compared at the size that a scale decodes to.
//!
//! Shapes: b batch, c code channels, z feature channels, n latents, v codes.

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};
use sar_core::{Filter, ScaleSchedule, ScaleSize, SeedTree, resample};
use sar_loss::vq;
use sar_tokenizer::{Codebook, ColorAxes, Disturbance, Tokenizer};

use crate::perception::Perception;
use crate::recipe::{TokenizerLoss, TokenizerRegularization};
use crate::step::{Parts, Terms};

/// What a tokenizer is trained for.
#[derive(Clone, Copy, Debug)]
pub struct TokenizerObjective<'a, A: AutodiffBackend> {
    /// The scales; the finest one is the latents' own size.
    pub schedule: &'a ScaleSchedule,
    /// Weights of the terms.
    pub loss: &'a TokenizerLoss,
    /// What is made harder than it is.
    pub regularization: &'a TokenizerRegularization,
    /// The network of the perceptual term, if there is one.
    pub perception: Option<&'a Perception<A>>,
}

/// What a tokenizer makes of a batch at one scale.
pub(crate) struct Reconstruction<A: AutodiffBackend> {
    pub(crate) size: ScaleSize,
    pub(crate) is_finest: bool,
    /// The scale's share of the loss; the shares of a step sum to one.
    pub(crate) share: f64,
    /// `[b, 3, h, w]`, and the image at that size.
    pub(crate) output_bchw: Tensor<A, 4>,
    pub(crate) target_bchw: Tensor<A, 4>,
    /// What the decoder's last convolution was given.
    pub(crate) last_bchw: Tensor<A, 4>,
    /// The weighted losses of the quantizer.
    quantizer: Tensor<A, 1>,
    commitment: Tensor<A, 1>,
}

/// What is differentiated of an image's losses, its value, and its parts.
pub(crate) type ImageTerms<A> = (
    Tensor<A, 1>,
    Tensor<<A as AutodiffBackend>::InnerBackend, 1>,
    Parts<<A as AutodiffBackend>::InnerBackend>,
);

/// The loss of a tokenizer on a batch, and the codes that it used.
///
/// # Shapes
/// - `images_bchw`: `[b, 3, H, W]`, pixels in [-1, 1]
/// - `streams`: a stream for each image, which decides what is disturbed of it
/// - second output: `[n]`, indices of all scales of the step
///
/// # Panics
/// If coarser scales have a weight and the tokenizer is a residual one, which has no others to
/// decode, or there is not a stream for each image.
pub fn tokenizer_loss<A: AutodiffBackend>(
    model: &Tokenizer<A>,
    images_bchw: Tensor<A::InnerBackend, 4>,
    streams: &[SeedTree],
    objective: &TokenizerObjective<'_, A>,
    step: SeedTree,
) -> (Terms<A>, Tensor<A::InnerBackend, 1, Int>) {
    let (reconstructions, used_n) = objective.reconstruct(model, images_bchw, streams, step);
    let image_loss = |reconstruction: &Reconstruction<A>| {
        let Reconstruction { output_bchw, target_bchw, .. } = reconstruction;
        let (loss, parts) =
            objective.image_loss(model.colors(), output_bchw.clone(), target_bchw.clone());
        (loss.clone(), loss.inner(), parts)
    };
    (objective.terms(reconstructions, image_loss), used_n)
}

impl<A: AutodiffBackend> TokenizerObjective<'_, A> {
    /// The reconstructions of a step's scales, finest first, and the codes that they used.
    pub(crate) fn reconstruct(
        &self,
        model: &Tokenizer<A>,
        images_bchw: Tensor<A::InnerBackend, 4>,
        streams: &[SeedTree],
        step: SeedTree,
    ) -> (Vec<Reconstruction<A>>, Tensor<A::InnerBackend, 1, Int>) {
        let Self { schedule, loss: weights, regularization, .. } = self;
        let disturbance = Disturbance {
            perturbation: regularization.perturbation,
            dropout: regularization.quantizer_dropout,
            streams,
        };
        let images_bchw = Tensor::<A, 4>::from_inner(images_bchw);
        let features_bchw = model.features(images_bchw.clone());
        let mut used = Vec::new();
        let reconstruct = |(size, share, is_finest): (ScaleSize, f64, bool)| {
            let latent_bchw = model.project(resample(features_bchw.clone(), size, Filter::Area));
            let quantized_at = model.quantizer().scales_of(&size, schedule);
            let quantized =
                model.quantizer().quantize(latent_bchw, quantized_at, Some(&disturbance));
            let (last_bchw, output_bchw) = model.decode_in_two(quantized.straight_through_bchw);
            let [_, _, height, width] = output_bchw.dims();
            let at = ScaleSize { height, width };
            let target_bchw = resample(images_bchw.clone(), at, Filter::Area);
            let codebook = vq::mean_over(&quantized.pairs, vq::codebook);
            let commitment = vq::mean_over(&quantized.pairs, vq::commitment);
            let mut quantizer =
                codebook * weights.codebook + commitment.clone() * weights.commitment;
            if weights.entropy != 0.0 {
                let entropy = vq::mean_over(&quantized.pairs, |z_nc, _| {
                    vq::entropy(z_nc, model.codebook().codes())
                });
                quantizer = quantizer + entropy * weights.entropy;
            }
            used.push(quantized.indices_n.inner());
            Reconstruction {
                size,
                is_finest,
                share,
                output_bchw,
                target_bchw,
                last_bchw,
                quantizer,
                commitment,
            }
        };
        let scales = scales_of_step(schedule, weights, step);
        let reconstructions = scales.into_iter().map(reconstruct).collect();
        (reconstructions, Tensor::cat(used, 0))
    }

    /// The weighted losses of an output as an image, and their parts.
    ///
    /// # Shapes
    /// - `output_bchw`, `target_bchw`: `[b, 3, h, w]`
    pub(crate) fn image_loss(
        &self,
        colors: Option<ColorAxes>,
        output_bchw: Tensor<A, 4>,
        target_bchw: Tensor<A, 4>,
    ) -> (Tensor<A, 1>, Parts<A::InnerBackend>) {
        let weights = self.loss;
        let error = output_bchw.clone() - target_bchw.clone();
        let error = flat(match colors {
            Some(colors) => colors.along(error, -weights.color_power),
            None => error,
        });
        let l1 = mean(error.clone().abs());
        let l2 = mean(error.square());
        let mut loss = l1.clone() * weights.l1 + l2.clone() * weights.l2;
        let mut parts = vec![("l1", l1.inner()), ("l2", l2.inner())];
        if let Some(perception) = self.perception
            && let Some(distance) = perception.distance(output_bchw, target_bchw)
        {
            loss = loss + distance.clone() * perception.weight();
            parts.push(("perceptual", distance.inner()));
        }
        (loss, parts)
    }

    /// The terms of a step: those of the quantizer, and those of each reconstruction as an image. Of
    /// these `image_loss` gives what is differentiated, its value, which may be that of another
    /// function with the same gradient, and its parts.
    pub(crate) fn terms(
        &self,
        reconstructions: Vec<Reconstruction<A>>,
        mut image_loss: impl FnMut(&Reconstruction<A>) -> ImageTerms<A>,
    ) -> Terms<A> {
        let mut sum: Option<(Tensor<A, 1>, Tensor<A::InnerBackend, 1>)> = None;
        let (mut parts, mut scales) = (Vec::new(), Vec::new());
        for reconstruction in reconstructions {
            let (images, value, of_images) = image_loss(&reconstruction);
            let Reconstruction { size, is_finest, share, quantizer, commitment, .. } =
                reconstruction;
            if is_finest {
                parts.extend(of_images);
                parts.push(("commitment", commitment.inner()));
            }
            let value = value + quantizer.clone().inner();
            scales.push((size, value.clone()));
            let (loss, value) = ((images + quantizer) * share, value * share);
            sum = Some(match sum {
                Some((losses, values)) => (losses + loss, values + value),
                None => (loss, value),
            });
        }
        let (loss, total) = sum.expect("a schedule has at least one scale");
        parts.push(("total", total));
        Terms { loss, parts, scales }
    }
}

/// The finest scale and drawn coarser ones, with shares of the loss that sum to one.
fn scales_of_step(
    schedule: &ScaleSchedule,
    weights: &TokenizerLoss,
    step: SeedTree,
) -> Vec<(ScaleSize, f64, bool)> {
    let finest = schedule.last();
    let mut coarser = schedule.sizes()[..schedule.len() - 1].to_vec();
    let n = weights.coarse_scales.min(coarser.len());
    if weights.coarse == 0.0 || n == 0 {
        return vec![(finest, 1.0, true)];
    }
    let draws = step.child("scale");
    let share = 1.0 / (1.0 + weights.coarse);
    let of_each = weights.coarse * share / n as f64;
    let mut scales = vec![(finest, share, true)];
    for i in 0..n {
        let drawn = coarser.remove(draws.below(i as u64, coarser.len()));
        scales.push((drawn, of_each, false));
    }
    scales
}

fn flat<B: Backend>(x_bchw: Tensor<B, 4>) -> Tensor<B, 2> {
    let [b, c, h, w] = x_bchw.dims();
    x_bchw.reshape([b * c, h * w])
}

fn mean<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 1> {
    x.mean_dim(1).mean_dim(0).reshape([1])
}

/// How often each code was chosen, counted on the device.
#[derive(Clone, Debug)]
pub struct CodeUsage<B: Backend> {
    counts_v: Tensor<B, 1, Int>,
}

impl<B: Backend> CodeUsage<B> {
    /// Nothing counted yet.
    pub fn new(codes: usize, device: &B::Device) -> Self {
        Self { counts_v: Tensor::zeros([codes], device) }
    }

    /// Counts indices, `[n]`.
    pub fn add(&mut self, indices_n: Tensor<B, 1, Int>) {
        let ones = Tensor::ones(indices_n.dims(), &indices_n.device());
        let counts = self.counts_v.clone();
        self.counts_v = counts.select_assign(0, indices_n, ones, IndexingUpdateOp::Add);
    }

    /// The counts by code; waits for the device.
    pub fn counts(&self) -> Vec<usize> {
        let counts = self.to_data().into_vec::<i64>().expect("i64");
        counts.into_iter().map(|n| n as usize).collect()
    }

    /// The counts as i64, `[v]`, for a checkpoint.
    pub fn to_data(&self) -> TensorData {
        self.counts_v.to_data().convert::<i64>()
    }

    /// Goes on with what [`to_data`](Self::to_data) gave.
    pub fn from_data(counts: TensorData, device: &B::Device) -> Self {
        Self { counts_v: Tensor::from_data(counts, device) }
    }
}

/// What a codebook should have codes for at some scales of images, comparable with codes, as rows:
/// `[n, c]`.
pub fn latents<B: Backend>(
    model: &Tokenizer<B>,
    images_bchw: Tensor<B, 4>,
    schedule: &ScaleSchedule,
    scales: std::ops::Range<usize>,
) -> Tensor<B, 2> {
    let targets = model.quantizer().targets(model.encode(images_bchw), schedule.sizes());
    model.codebook().comparable(Tensor::cat(targets[scales].to_vec(), 0))
}

/// Puts randomly chosen latents in the place of the codes that `counts` says nothing used.
///
/// # Shapes
/// - `latents_nc`: `[n, c]`, where the replacements are drawn from
pub fn restart_dead_codes<B: Backend>(
    book: Codebook<B>,
    counts: &[usize],
    latents_nc: Tensor<B, 2>,
    draws: SeedTree,
) -> Codebook<B> {
    let [n, c] = latents_nc.dims();
    let device = latents_nc.device();
    let rows = latents_nc.into_data().convert::<f32>().into_vec::<f32>().expect("f32");
    let mut raw = book.raw().into_data().convert::<f32>().into_vec::<f32>().expect("f32");
    let order = draws.permutation(n);
    // More dead codes than latents: the surplus waits for the next look.
    let dead = counts.iter().enumerate().filter(|(_, count)| **count == 0);
    for ((code, _), row) in dead.zip(order) {
        raw[code * c..(code + 1) * c].copy_from_slice(&rows[row * c..(row + 1) * c]);
    }
    let v = counts.len();
    book.with_raw(Tensor::from_data(TensorData::new(raw, [v, c]), &device))
}

#[cfg(test)]
mod tests {
    use burn::backend::Autodiff;
    use burn_flex::Flex;
    use sar_tokenizer::Perturbation;

    use super::*;
    use crate::recipe::Perceptual;

    type A = Autodiff<Flex>;

    /// A step along the gradient g changes the loss by |g|^2 times the step: errors of colors as they
    /// are, and along axes of which the lesser ones count more.
    #[test]
    fn gradients_of_errors_of_pixels_are_the_changes_of_their_losses() {
        let images = |frequency: f32| {
            let pixels: Vec<f32> = (1..=120).map(|i| (i as f32 * frequency).sin() * 0.9).collect();
            Tensor::<A, 4>::from_data(TensorData::new(pixels, [2, 3, 4, 5]), &Default::default())
        };
        // No error is so small that the step changes its sign.
        let (output, target) = (images(0.37), images(0.61));
        let covariance = [[0.5, 0.3, 0.2], [0.3, 0.4, 0.25], [0.2, 0.25, 0.45]];
        let axes = ColorAxes::of_covariance(covariance);
        let schedule = "1_2".parse().unwrap();
        let regularization = TokenizerRegularization {
            quantizer_dropout: 0.0,
            perturbation: Perturbation { share: 0.0, nearest: 1 },
        };
        for (l1, l2) in [(1.0, 0.0), (0.0, 1.0)] {
            for (colors, color_power) in [(None, 0.0), (Some(axes), 0.5)] {
                let loss = TokenizerLoss {
                    color_power,
                    l1,
                    l2,
                    perceptual: Perceptual::None {},
                    codebook: 0.0,
                    commitment: 0.0,
                    entropy: 0.0,
                    coarse: 0.0,
                    coarse_scales: 1,
                };
                let objective = TokenizerObjective {
                    schedule: &schedule,
                    loss: &loss,
                    regularization: &regularization,
                    perception: None,
                };
                let value =
                    |output: Tensor<A, 4>| objective.image_loss(colors, output, target.clone()).0;
                let leaf = output.clone().require_grad();
                let gradients = value(leaf.clone()).backward();
                let g = leaf.grad(&gradients).unwrap();
                let step = 5e-3 / g.clone().abs().max().into_scalar();
                let moved = |by: f32| {
                    value(output.clone() + Tensor::from_inner(g.clone() * by)).into_scalar()
                };
                let square = g.clone().square().sum().into_scalar();
                let ratio = (moved(step) - moved(-step)) / (2.0 * step * square);
                assert!((ratio - 1.0).abs() < 1e-3, "{loss:?}: {ratio} of the change expected");
            }
        }
    }
}
