//! Training dynamics of one set of weights, scale by scale: how well it predicts behind a true context and
//! behind its own, how hard each scale pulls at the weights, and how far a rollout leaves the truth.
//!
//! With f the ground truth, `f^` what the model makes, k of K scales, all in evaluation mode and without
//! guidance:
//!
//! ```text
//! teacher_loss       -log p(f_k | f_<k)       context ground truth
//! student_loss       -log p(f_k | f^_<k)      f^ the argmax of the teacher pass: errors one step deep
//! rollout_loss       -log p(f_k | f^_<k)      f^ a free-running rollout, each scale from its own coarser
//!                                             ones: errors of the full depth
//! gradient_norm      |d/dtheta mean over the tokens of scale k of -log p(f_k | f_<k)|_2
//! token_divergence   share of the rollout's tokens that are not the true ones
//! latent_divergence  sum of |f_hat_k(rollout) - f_hat_k(truth)|^2 / sum of |f_hat_k(truth)|^2
//! repeats            tokens that lie over the same latents as one of a coarser scale; repeats_true and
//!                    repeats_kept are the shares of these that have its code, of the truth and of the rollout
//! ```
//! Losses are in nats per token and means over images; at the first scale, which has no context, all three are
//! the same number. The gradient is that of all parameters of the backbone and of the mean over images; the
//! share of a scale in the objective that weighs all tokens alike is `n_k / L` times it. `f_hat_k` is what
//! codes of the scales up to k make (the sum of a residual tokenizer, the code map of a direct one, whose
//! codes have length 1); both sums are over images, places and channels.
//!
//! Teacher and student loss, accuracy and histogram are those of [`held_out`](crate::held_out).
//!
//! Shapes: b batch, l tokens of the pyramid, n tokens of one scale, c code channels, v codes.

use std::ops::Range;

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor};
use sar_core::{CodePyramid, ScaleModel, ScaleSchedule, ScaleSize, SeedTree, restrict};
use sar_loss::{StatsByScale, cross_entropy, mean_tokens};
use sar_model::{Backbone, FirstToken, Pass};
use sar_rollout::{Choice, Guidance, Sampler, generate};
use sar_tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};

use crate::held_out::{HeldOutMeter, Interval, Losses, bootstrap, logits_in, mean};
use crate::step::{Terms, accumulate};
use crate::tokens::{FirstGiven, Masking, TokenBatch, inputs, labels_tensor};

/// No guidance: the conditional logits alone.
const UNGUIDED: Guidance = Guidance::Constant { scale: 1.0 };

/// The dynamics of a set of weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Dynamics {
    /// Teacher loss over all scales, the others and the gaps over all but the first.
    pub all: ContextLosses,
    /// By scale, coarse to fine.
    pub by_scale: Vec<ScaleDynamics>,
}

/// One scale's dynamics.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ScaleDynamics {
    /// The scale, as written in a schedule.
    pub scale: String,
    /// Its tokens.
    pub tokens: usize,
    /// Its losses.
    #[serde(flatten)]
    pub losses: ContextLosses,
    /// Share of tokens that are the most probable ones behind a true context.
    pub accuracy: f64,
    /// L2 norm of the gradient of the scale's own teacher-forced loss; none where it was not asked for.
    pub gradient_norm: Option<f64>,
    /// Entropy of the histogram of the true tokens, nats: the loss of predicting frequencies alone.
    pub histogram_entropy: f64,
    /// Entropy of the histogram of the rollout's tokens, nats.
    pub rollout_histogram_entropy: f64,
    /// Share of the rollout's tokens that are not the true ones, in `[0, 1]`.
    pub token_divergence: f64,
    /// Squared distance of the rollout's `f_hat` from the true one, in squared lengths of the latter; 0 for
    /// equal tokens.
    pub latent_divergence: f64,
    /// Tokens that lie over the same latents as one of a coarser scale ([`ScaleSchedule::repeats`]).
    pub repeats: usize,
    /// Share of these that have the coarser one's code; 1 for a direct tokenizer, whose codebook does not
    /// grow. None where nothing is repeated.
    pub repeats_true: Option<f64>,
    /// The same of the rollout: how far what it draws is of one piece.
    pub repeats_kept: Option<f64>,
}

/// Losses of the same tokens in three contexts, nats per token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ContextLosses {
    /// Context ground truth.
    pub teacher_loss: f64,
    /// Context the argmax of the teacher pass.
    pub student_loss: f64,
    /// Context a free-running rollout.
    pub rollout_loss: f64,
    /// Student minus teacher loss, over the same scales.
    pub exposure_gap: f64,
    /// Rollout minus teacher loss, over the same scales.
    pub rollout_gap: f64,
    /// Bootstrap 95 % intervals of the figures above.
    pub intervals: ContextIntervals,
}

/// Bootstrap 95 % intervals over images, `[low, high]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ContextIntervals {
    /// Of the teacher loss.
    pub teacher_loss: Interval,
    /// Of the student loss.
    pub student_loss: Interval,
    /// Of the rollout loss.
    pub rollout_loss: Interval,
    /// Of the student's gap.
    pub exposure_gap: Interval,
    /// Of the rollout's gap.
    pub rollout_gap: Interval,
}

/// Collects images and reports their [`Dynamics`].
#[derive(Clone, Debug)]
pub struct DynamicsMeter {
    schedule: ScaleSchedule,
    held_out: HeldOutMeter,
    rollout: Losses,
    /// The rollout's tokens in the place of targets: their histogram, and how many are true.
    rollout_tokens: StatsByScale,
    /// Of each scale, summed over images.
    latents: Vec<Squares>,
    /// Repeated tokens, each with its scale and the coarser token.
    repeats: Vec<(usize, [usize; 2])>,
    /// How many have the code of the coarser token, by scale: of the truth and of the rollout.
    same: Vec<[usize; 2]>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Squares {
    /// Of the distance of the rollout's `f_hat` from the true one,
    difference: f64,
    /// and of the true one itself.
    truth: f64,
}

impl DynamicsMeter {
    /// Nothing measured yet, for tokens out of `codes` codes, of a map of so many latents.
    pub fn new(schedule: &ScaleSchedule, codes: usize, latents: ScaleSize) -> Self {
        Self {
            schedule: schedule.clone(),
            held_out: HeldOutMeter::new(schedule, codes),
            rollout: Losses::default(),
            rollout_tokens: StatsByScale::new(schedule, codes),
            latents: vec![Squares::default(); schedule.len()],
            repeats: repeats_by_scale(schedule, latents),
            same: vec![[0; 2]; schedule.len()],
        }
    }

    /// Measures a batch; waits for the device.
    ///
    /// The losses of the rollout are those of one more parallel pass, whose context is the rollout's tokens.
    ///
    /// # Shapes
    /// - `rollout_bl`: `[b, l]`, as [`rollout_tokens`] gives them
    ///
    /// # Panics
    /// If the batch has another schedule, or the rollout other tokens than it.
    pub fn add<B: Backend>(
        &mut self,
        model: &Backbone<B>,
        tokenizer: &Tokenizer<B>,
        batch: &TokenBatch<B>,
        rollout_bl: Tensor<B, 2, Int>,
        device: &B::Device,
    ) {
        self.held_out.add(model, tokenizer, batch, device);
        let truth_bl = batch.tokens_bl.clone();
        let logits_blv = logits_in(rollout_bl.clone(), model, tokenizer, batch, device);
        let loss_bl = cross_entropy(logits_blv, truth_bl.clone(), 0.0);
        self.rollout_tokens.add(loss_bl.clone(), truth_bl.clone(), rollout_bl.clone());
        self.rollout.add(loss_bl, &self.schedule);
        for (which, tokens_bl) in [&truth_bl, &rollout_bl].into_iter().enumerate() {
            let tokens: Vec<i64> = tokens_bl.to_data().iter().collect();
            for image in tokens.chunks_exact(self.schedule.n_tokens()) {
                for &(k, [token, coarser]) in &self.repeats {
                    self.same[k][which] += usize::from(image[token] == image[coarser]);
                }
            }
        }
        let [own, truth] =
            [rollout_bl, truth_bl].map(|tokens_bl| tokenizer.canvases(tokens_bl, &self.schedule));
        for (sums, (own, truth)) in self.latents.iter_mut().zip(own.into_iter().zip(truth)) {
            sums.difference += sum_of_squares(own - truth.clone());
            sums.truth += sum_of_squares(truth);
        }
    }

    /// The dynamics of everything measured, with the [`gradient_norms`] of the same weights if there are any.
    ///
    /// # Panics
    /// If nothing was measured, or there is not one gradient norm per scale.
    pub fn report(
        &self,
        gradient_norms: Option<&[f64]>,
        resamplings: usize,
        seed: SeedTree,
    ) -> Dynamics {
        let n_scales = self.schedule.len();
        assert!(self.held_out.images() > 0, "dynamics of no images");
        assert!(gradient_norms.is_none_or(|norms| norms.len() == n_scales), "a norm per scale");
        let losses = |teacher, own| self.losses(teacher, own, resamplings, seed);
        let teacher = self.held_out.statistics();
        let rollout = self.rollout_tokens.report();
        let mut repeats = vec![0; n_scales];
        self.repeats.iter().for_each(|(k, _)| repeats[*k] += 1);
        let same = |k: usize, which: usize| {
            let of = repeats[k] * self.held_out.images();
            (of > 0).then(|| self.same[k][which] as f64 / of as f64)
        };
        let by_scale = (0..n_scales).map(|k| ScaleDynamics {
            scale: teacher[k].scale.clone(),
            tokens: self.schedule.size(k).tokens(),
            losses: losses(k..k + 1, k..k + 1),
            accuracy: teacher[k].accuracy,
            gradient_norm: gradient_norms.map(|norms| norms[k]),
            histogram_entropy: teacher[k].histogram_entropy,
            rollout_histogram_entropy: rollout[k].histogram_entropy,
            token_divergence: 1.0 - rollout[k].accuracy,
            latent_divergence: self.latents[k].difference / self.latents[k].truth,
            repeats: repeats[k],
            repeats_true: same(k, 0),
            repeats_kept: same(k, 1),
        });
        let own = n_scales.min(2) - 1..n_scales;
        Dynamics { all: losses(0..n_scales, own), by_scale: by_scale.collect() }
    }

    /// The teacher's loss over some scales; the others and the gaps over others.
    fn losses(
        &self,
        teacher: Range<usize>,
        own: Range<usize>,
        resamplings: usize,
        seed: SeedTree,
    ) -> ContextLosses {
        let per_image = |losses: &Losses, scales: &Range<usize>| {
            losses.per_image(scales.clone(), &self.schedule)
        };
        let minus = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<_>>();
        let HeldOutMeter { teacher: teachers, student: students, .. } = &self.held_out;
        let [student, rollout] = [students, &self.rollout].map(|losses| per_image(losses, &own));
        let behind_truth = per_image(teachers, &own);
        let values = [
            per_image(teachers, &teacher),
            minus(&student, &behind_truth),
            minus(&rollout, &behind_truth),
            student,
            rollout,
        ];
        let [teacher_loss, exposure_gap, rollout_gap, student_loss, rollout_loss] =
            values.each_ref().map(|values| mean(values));
        let intervals = values.map(|values| bootstrap(&values, resamplings, seed));
        ContextLosses {
            teacher_loss,
            student_loss,
            rollout_loss,
            exposure_gap,
            rollout_gap,
            intervals: ContextIntervals {
                teacher_loss: intervals[0],
                student_loss: intervals[3],
                rollout_loss: intervals[4],
                exposure_gap: intervals[1],
                rollout_gap: intervals[2],
            },
        }
    }
}

/// The repeats, each with the scale of its finer token.
fn repeats_by_scale(schedule: &ScaleSchedule, latents: ScaleSize) -> Vec<(usize, [usize; 2])> {
    let ends: Vec<usize> = schedule.ranges().map(|range| range.end).collect();
    let scale = |token: usize| ends.partition_point(|end| *end <= token);
    schedule.repeats(latents).into_iter().map(|pair| (scale(pair[0]), pair)).collect()
}

/// What a model makes of the labels of a batch, every scale from its own coarser ones, without guidance:
/// `[b, l]`.
///
/// # Panics
/// If `choice` mixes codes: a mixture is no token.
pub fn rollout_tokens<B: Backend, P: CodePyramid<B>>(
    model: &Backbone<B>,
    pyramid: &P,
    batch: &TokenBatch<B>,
    choice: Choice,
    device: &B::Device,
) -> Tensor<B, 2, Int> {
    assert!(!choice.mixes(), "a mixture of codes is no token");
    let sampler = Sampler { guidance: UNGUIDED, choice };
    let TokenBatch { labels, streams, schedule, .. } = batch;
    generate(model, pyramid, labels, schedule, sampler, streams, device).tokens_bl()
}

/// The norm of the gradient of each scale's own teacher-forced loss, coarse to fine: of the mean over its
/// tokens and over the images of all batches, for all parameters of the backbone, in evaluation mode.
///
/// Scale k sees coarser scales only, so that its loss is differentiated in a pass that ends with it. Up to
/// `workers` batches are differentiated at the same time.
///
/// # Panics
/// If there is no batch, the batches have several schedules, or `workers` is 0.
pub fn gradient_norms<A, P>(
    model: &Backbone<A::InnerBackend>,
    pyramid: &P,
    batches: &[TokenBatch<A::InnerBackend>],
    workers: usize,
    device: &A::Device,
) -> Vec<f64>
where
    A: AutodiffBackend,
    P: CodePyramid<A::InnerBackend>,
{
    let schedule = &batches.first().expect("gradients of no images").schedule;
    assert!(batches.iter().all(|batch| batch.schedule == *schedule), "gradients at one schedule");
    let n_images: usize = batches.iter().map(|batch| batch.labels.len()).sum();
    let all_inputs: Vec<_> =
        batches.iter().map(|batch| inputs(pyramid, schedule, batch.tokens_bl.clone())).collect();
    let n_first = schedule.size(0).tokens();
    let of_scale = |(k, range): (usize, Range<usize>)| {
        let sizes = schedule.sizes()[..=k].to_vec();
        let scales = &ScaleSchedule::new(sizes).expect("the beginning of a schedule");
        let (size, n_codes) = (schedule.size(k), pyramid.n_codes(schedule.size(k)));
        let parts = batches.iter().zip(&all_inputs).map(|(batch, inputs_blc)| Part::<A> {
            labels_b: labels_tensor(batch.labels.iter().copied(), device),
            first: FirstGiven::of(model.first_scale(), pyramid, batch, Masking::All).token,
            inputs_blc: inputs_blc
                .as_ref()
                .filter(|_| k > 0)
                .map(|inputs_blc| inputs_blc.clone().slice_dim(1, 0..range.end - n_first)),
            truth_bn: batch.tokens_bl.clone().slice_dim(1, range.clone()),
            // Batches may be of several sizes, and their mean counts each the same.
            weight: (batch.labels.len() * batches.len()) as f64 / n_images as f64,
        });
        let loss = |model: &Backbone<A>, part: Part<A>| {
            let logits_blv = model.forward(Pass {
                labels_b: Tensor::from_inner(part.labels_b),
                inputs_blc: part.inputs_blc.map(Tensor::from_inner),
                schedule: scales,
                first: FirstToken::from_inner(part.first),
                depth_drops: None,
            });
            let logits_bnv = logits_blv.slice_dim(1, range.clone());
            let logits_bnv = restrict(logits_bnv, &[size], |_| n_codes);
            let loss_bn = cross_entropy(logits_bnv, Tensor::from_inner(part.truth_bn), 0.0);
            let loss = mean_tokens(loss_bn) * part.weight;
            (Terms { loss, parts: Vec::new(), scales: Vec::new() }, ())
        };
        let parts = parts.collect();
        let sum = accumulate::<A, Backbone<A>, _, _>(model, parts, workers, 1.0, loss);
        sum.gradients.norm().into_data().iter::<f64>().sum::<f64>()
    };
    schedule.ranges().enumerate().map(of_scale).collect()
}

/// What the loss of one scale is made of, for a part of the images.
struct Part<A: AutodiffBackend> {
    labels_b: Tensor<A::InnerBackend, 1, Int>,
    first: FirstToken<A::InnerBackend>,
    /// Those of the scales up to this one.
    inputs_blc: Option<Tensor<A::InnerBackend, 3>>,
    truth_bn: Tensor<A::InnerBackend, 2, Int>,
    weight: f64,
}

/// The sum over everything, dimension by dimension: a full sum over many elements is not deterministic on
/// every backend.
fn sum_of_squares<B: Backend>(x_bchw: Tensor<B, 4>) -> f64 {
    let [b, c, h, w] = x_bchw.dims();
    let squares_b1 = x_bchw.square().reshape([b, c * h * w]).sum_dim(1);
    squares_b1.into_data().iter::<f64>().sum()
}
