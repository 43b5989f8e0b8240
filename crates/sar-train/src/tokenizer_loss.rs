//! Tokenizer training, first form: pixels, codebook, commitment, entropy.
//!
//! Every step reconstructs the finest scale and, of a direct tokenizer, one coarser scale that it
//! draws; the image is compared at the size that a scale decodes to.
//!
//! Shapes: b batch, c code channels, z feature channels, n latents, v codes.

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};
use sar_core::{Filter, ScaleSchedule, ScaleSize, SeedTree, resample};
use sar_loss::vq;
use sar_tokenizer::{Codebook, Quantizer, Tokenizer};

use crate::recipe::TokenizerLoss;
use crate::step::Terms;

/// The loss of a tokenizer on a batch, and the codes that it used.
///
/// # Shapes
/// - `images_bchw`: `[b, 3, H, W]`, pixels in [-1, 1]
/// - second output: `[n]`, indices of all scales of the step
///
/// # Panics
/// If coarser scales have a weight and the tokenizer is a residual one, which has no others to
/// decode.
pub fn tokenizer_loss<A: AutodiffBackend>(
    model: &Tokenizer<A>,
    images_bchw: Tensor<A::InnerBackend, 4>,
    schedule: &ScaleSchedule,
    weights: &TokenizerLoss,
    step: SeedTree,
) -> (Terms<A>, Tensor<A::InnerBackend, 1, Int>) {
    let images_bchw = Tensor::<A, 4>::from_inner(images_bchw);
    let features_bchw = model.features(images_bchw.clone());
    let mut total: Option<Tensor<A, 1>> = None;
    let mut parts = Vec::new();
    let mut used = Vec::new();
    let mut scales = Vec::new();
    for (size, weight, is_finest) in scales_of_step(schedule, weights.coarse, step) {
        let latent_bchw = model.project(resample(features_bchw.clone(), size, Filter::Area));
        let quantized_at: &[ScaleSize] = match model.quantizer() {
            Quantizer::Direct(_) => &[size],
            Quantizer::Residual(_) => schedule.sizes(),
        };
        let quantized = model.quantizer().quantize(latent_bchw, quantized_at);
        let output_bchw = model.decode(quantized.straight_through_bchw);
        let [_, _, height, width] = output_bchw.dims();
        let target = resample(images_bchw.clone(), ScaleSize { height, width }, Filter::Area);
        let error = output_bchw - target;
        let error = flat(match model.colors() {
            Some(colors) => colors.along(error, -weights.color_power),
            None => error,
        });
        let l1 = mean(error.clone().abs());
        let l2 = mean(error.square());
        let codebook = vq::mean_over(&quantized.pairs, vq::codebook);
        let commitment = vq::mean_over(&quantized.pairs, vq::commitment);
        let mut loss = l1.clone() * weights.l1
            + l2.clone() * weights.l2
            + codebook * weights.codebook
            + commitment.clone() * weights.commitment;
        if weights.entropy != 0.0 {
            let entropy = vq::mean_over(&quantized.pairs, |z_nc, _| {
                vq::entropy(z_nc, model.codebook().codes())
            });
            loss = loss + entropy * weights.entropy;
        }
        if is_finest {
            parts.push(("l1", l1.inner()));
            parts.push(("l2", l2.inner()));
            parts.push(("commitment", commitment.inner()));
        }
        used.push(quantized.indices_n.inner());
        scales.push((size, loss.clone().inner()));
        let loss = loss * weight;
        total = Some(match total {
            Some(sum) => sum + loss,
            None => loss,
        });
    }
    let loss = total.expect("a schedule has at least one scale");
    parts.push(("total", loss.clone().inner()));
    (Terms { loss, parts, scales }, Tensor::cat(used, 0))
}

/// The finest scale and a drawn coarser one, with weights that sum to one.
fn scales_of_step(
    schedule: &ScaleSchedule,
    coarse: f64,
    step: SeedTree,
) -> Vec<(ScaleSize, f64, bool)> {
    let finest = schedule.last();
    if coarse == 0.0 || schedule.len() == 1 {
        return vec![(finest, 1.0, true)];
    }
    let drawn = schedule.size(step.child("scale").below(0, schedule.len() - 1));
    let share = 1.0 / (1.0 + coarse);
    vec![(finest, share, true), (drawn, coarse * share, false)]
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
