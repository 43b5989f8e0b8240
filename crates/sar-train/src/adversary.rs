//! The adversary of a tokenizer: a discriminator with an optimizer of its own (VQGAN, arXiv:2012.09841).
//!
//! ```text
//! L_tokenizer     = L_images + lambda w(step) L_adversarial + L_quantizer,  L_adversarial = -mean D(output)
//! lambda          = |dL_images / dW| / (|dL_adversarial / dW| + 1e-4),      W the decoder's last layer
//! L_discriminator = (mean relu(1 - D(image)) + mean relu(1 + D(output))) / 2
//! ```
//! A step differentiates the losses of images and the adversarial one as functions of the outputs first,
//! each in a graph of its own. With these two gradients lambda is known, and their weighted sum goes back
//! through the decoder in one pass. Then the discriminator makes its step, on the same outputs.
//!
//! Lambda is that of a micro-batch and of a scale, as it is that of a process's batch in the published code.
//!
//! Shapes: b batch, h height, w width.

use burn::module::AutodiffModule;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Tensor, TensorData};
use sar_core::SeedTree;
use sar_discriminator::augment::{Augmentation, augment};
use sar_discriminator::{Discriminator, DiscriminatorConfigError, init};
use sar_exchange::{ExchangeError, Group, MicroBatches};
use sar_features::{EfficientNetLite0, WEIGHTS};
use sar_loss::adversarial::{LeCamAverages, adaptive_weight, generator, hinge, lecam, mean_logit};
use sar_model::Precision;
use sar_tokenizer::{ColorAxes, last_layer_gradient};
use sar_weights::NamedTensors;

use crate::learner::{Learner, Optimization};
use crate::recipe;
use crate::stage::Learned;
use crate::step::{Parts, Terms};
use crate::tokenizer_loss::{Reconstruction, TokenizerObjective};
use crate::wire::Wire;

/// A discriminator in training, and what it is trained for.
pub(crate) struct Adversary<'a, A: AutodiffBackend> {
    play: Play<'a>,
    pub(crate) learner: Learner<A, Discriminator<A>>,
    group: &'a Group,
    averages: LeCamAverages<A::InnerBackend>,
}

/// How it plays.
#[derive(Clone, Copy)]
struct Play<'a> {
    weight: f64,
    adaptive: bool,
    start: u64,
    warmup_steps: u64,
    augmentation: &'a [Augmentation],
    lecam: f64,
}

/// What a micro-batch's outputs are judged by.
pub(crate) struct Judge<'a, A: AutodiffBackend> {
    play: Play<'a>,
    /// Its weights are no leaves: gradients reach what it looks at.
    frozen: Discriminator<A>,
    /// The weight of the step.
    weight: f64,
}

/// An output as the leaf of a graph, and the losses of its own.
pub(crate) struct Leaf<A: AutodiffBackend> {
    leaf_bchw: Tensor<A, 4>,
    loss: Tensor<A, 1>,
    parts: Parts<A::InnerBackend>,
    /// The same for the adversarial loss, where the output is large enough to be judged.
    judged: Option<(Tensor<A, 4>, Tensor<A, 1>)>,
}

/// The gradients of a [`Leaf`], and its values.
pub(crate) struct AtOutput<B: Backend> {
    gradient_bchw: Tensor<B, 4>,
    loss: Tensor<B, 1>,
    parts: Parts<B>,
    judged: Option<(Tensor<B, 4>, Tensor<B, 1>)>,
}

/// An output and the image that it should be, and the streams of the images.
pub(crate) struct Pair<B: Backend> {
    pub(crate) output_bchw: Tensor<B, 4>,
    pub(crate) target_bchw: Tensor<B, 4>,
    pub(crate) streams: Vec<SeedTree>,
}

const AVERAGES: &str = "lecam_averages";

impl<'a, A: AutodiffBackend> Adversary<'a, A> {
    /// The adversary that a recipe asks for; none if it asks for none.
    ///
    /// # Errors
    /// If it cannot be built.
    pub(crate) fn new(
        recipe: &'a recipe::Adversary,
        tokenizer: &Optimization,
        (group, wire): (&'a Group, Wire),
        seed: SeedTree,
        device: &A::Device,
    ) -> Result<Option<Self>, DiscriminatorConfigError> {
        let recipe::Adversary::Discriminator {
            discriminator,
            weight,
            adaptive,
            start,
            warmup_steps,
            augmentation,
            lecam,
            lr,
            weight_decay,
            adamw,
            matrices,
            max_grad_norm,
        } = recipe
        else {
            return Ok(None);
        };
        let net = || {
            EfficientNetLite0::from_bytes(WEIGHTS.to_vec(), device)
                .expect("weights that come along")
        };
        let model =
            init::<A::InnerBackend>(discriminator, net, seed.child("discriminator"), device)?;
        let optimization = Optimization {
            batch_size: tokenizer.batch_size,
            grad_accum_steps: tokenizer.grad_accum_steps,
            lr: *lr,
            weight_decay: *weight_decay,
            adamw: *adamw,
            matrices: *matrices,
            max_grad_norm: *max_grad_norm,
            ema: 0.0,
        };
        let layout = &sar_discriminator::LAYOUT;
        Ok(Some(Self {
            play: Play {
                weight: *weight,
                adaptive: *adaptive,
                start: *start,
                warmup_steps: *warmup_steps,
                augmentation,
                lecam: *lecam,
            },
            learner: Learner::new("discriminator", model, layout, &optimization, Precision::F32)
                .among(group, wire),
            group,
            averages: LeCamAverages::new(device),
        }))
    }

    /// Who judges the outputs of a step; nobody before the adversary begins.
    pub(crate) fn judge(&self, step: u64) -> Option<Judge<'a, A>> {
        let Play { weight, start, warmup_steps, .. } = self.play;
        let since = step.checked_sub(start)?;
        let share = if since < warmup_steps { since as f64 / warmup_steps as f64 } else { 1.0 };
        let frozen = Discriminator::from_inner(self.learner.model().clone());
        Some(Judge { play: self.play, frozen, weight: weight * share })
    }

    /// The discriminator's step on what it has judged, a list for each micro-batch; nothing where
    /// it was given nothing.
    pub(crate) fn learn(
        &mut self,
        seen: MicroBatches<Vec<Pair<A::InnerBackend>>>,
        workers: usize,
        (step, steps): (u64, u64),
    ) -> Result<Option<Learned<A::InnerBackend>>, ExchangeError> {
        let [is_nothing] = self.group.any([seen.items().iter().any(Vec::is_empty)])?;
        if is_nothing {
            return Ok(None);
        }
        let Play { start, augmentation, lecam: weight, .. } = self.play;
        let averages = &self.averages;
        let loss = |model: &Discriminator<A>, pairs: Vec<Pair<A::InnerBackend>>| {
            let logits = |x_bchw, streams: &[SeedTree], who: &str| {
                let draws = drawn(streams, who);
                model.logits(augment(Tensor::<A, 4>::from_inner(x_bchw), augmentation, &draws))
            };
            let n_pairs = pairs.len() as f64;
            let of_pair = |Pair { output_bchw, target_bchw, streams }: Pair<A::InnerBackend>| {
                let real = logits(target_bchw, &streams, "real");
                let fake = logits(output_bchw, &streams, "fake");
                let [of_real, of_fake] = [&real, &fake].map(|logits| mean_logit(logits).inner());
                let mut loss = hinge(&real, &fake);
                let mut parts =
                    vec![("hinge", loss.clone().inner()), ("real", of_real), ("fake", of_fake)];
                if weight != 0.0 {
                    let [real_1, fake_1] =
                        [averages.real(), averages.fake()].map(Tensor::<A, 1>::from_inner);
                    let lecam = lecam(&real, &fake, real_1, fake_1);
                    parts.push(("lecam", lecam.clone().inner()));
                    loss = loss + lecam * weight;
                }
                (loss / n_pairs, parts)
            };
            let sum = pairs.into_iter().map(of_pair).reduce(|(loss, parts), (other, others)| {
                let add =
                    |((name, a), (_, b)): ((&'static str, Tensor<_, 1>), (_, _))| (name, a + b);
                (loss + other, parts.into_iter().zip(others).map(add).collect())
            });
            let (loss, parts) = sum.expect("something to judge");
            let parts: Parts<_> =
                parts.into_iter().map(|(name, sum)| (name, sum / n_pairs)).collect();
            (Terms { loss, parts, scales: Vec::new() }, ())
        };
        let sum = self.learner.accumulate(seen, workers, loss)?;
        let part = |wanted: &str| {
            sum.parts.iter().find(|(name, _)| *name == wanted).expect("a part").1.clone()
        };
        self.averages = self.averages.clone().update(part("real"), part("fake"));
        let update = self.learner.update(sum.gradients, (step - start, steps - start))?;
        self.learner.take_average(&update);
        Ok(Some(Learned { parts: sum.parts, scales: sum.scales, update }))
    }

    /// What it remembers beside its learner.
    pub(crate) fn state(&self) -> (&'static str, TensorData) {
        (AVERAGES, self.averages.to_data())
    }

    /// Takes back what [`state`](Self::state) gave.
    pub(crate) fn restore(&mut self, state: &NamedTensors, device: &A::Device) {
        let averages = state.get(AVERAGES).and_then(|data| LeCamAverages::from_data(data, device));
        if let Some(averages) = averages {
            self.averages = averages;
        }
    }
}

impl<A: AutodiffBackend> Judge<'_, A> {
    /// The graphs of an output's losses.
    pub(crate) fn leaf(
        &self,
        objective: &TokenizerObjective<'_, A>,
        colors: Option<ColorAxes>,
        reconstruction: &Reconstruction<A>,
        streams: &[SeedTree],
    ) -> Leaf<A> {
        let Reconstruction { output_bchw, target_bchw, .. } = reconstruction;
        let leaf = || Tensor::<A, 4>::from_inner(output_bchw.clone().inner()).require_grad();
        let leaf_bchw = leaf();
        let (loss, parts) =
            objective.image_loss(colors, leaf_bchw.clone(), target_bchw.clone().detach());
        let judged = self.judges(output_bchw).then(|| {
            let leaf_bchw = leaf();
            let draws = drawn(streams, "tokenizer");
            let seen_bchw = augment(leaf_bchw.clone(), self.play.augmentation, &draws);
            let loss = generator(&self.frozen.logits(seen_bchw));
            (leaf_bchw, loss)
        });
        Leaf { leaf_bchw, loss, parts, judged }
    }

    /// What the discriminator learns from of an output; nothing where it is too small.
    pub(crate) fn pair(
        &self,
        reconstruction: &Reconstruction<A>,
        streams: &[SeedTree],
    ) -> Option<Pair<A::InnerBackend>> {
        let Reconstruction { output_bchw, target_bchw, .. } = reconstruction;
        self.judges(output_bchw).then(|| Pair {
            output_bchw: output_bchw.clone().inner(),
            target_bchw: target_bchw.clone().inner(),
            streams: streams.to_vec(),
        })
    }

    fn judges(&self, output_bchw: &Tensor<A, 4>) -> bool {
        let [_, _, h, w] = output_bchw.dims();
        h.min(w) >= self.frozen.min_side()
    }

    /// A function of the output whose gradient is that of all its losses; their value; their parts.
    pub(crate) fn combined(
        &self,
        colors: Option<ColorAxes>,
        reconstruction: &Reconstruction<A>,
        at: AtOutput<A::InnerBackend>,
    ) -> (Tensor<A, 1>, Tensor<A::InnerBackend, 1>, Parts<A::InnerBackend>) {
        let AtOutput { mut gradient_bchw, mut loss, mut parts, judged } = at;
        if let Some((adversarial_bchw, adversarial)) = judged {
            parts.push(("adversarial", adversarial.clone()));
            let mut weight = Tensor::ones_like(&adversarial) * self.weight;
            if self.play.adaptive {
                let last_bchw = reconstruction.last_bchw.clone().inner();
                let norm = |gradient_bchw: &Tensor<A::InnerBackend, 4>| {
                    let gradient_bchw = gradient_bchw.clone();
                    let of_layer = last_layer_gradient(last_bchw.clone(), gradient_bchw, colors);
                    of_layer.square().sum().sqrt()
                };
                let adaptive = adaptive_weight(norm(&gradient_bchw), norm(&adversarial_bchw));
                parts.push(("adaptive", adaptive.clone()));
                weight = weight * adaptive;
            }
            loss = loss + adversarial * weight.clone();
            gradient_bchw = gradient_bchw + adversarial_bchw * weight.reshape([1, 1, 1, 1]);
        }
        let surrogate =
            (reconstruction.output_bchw.clone() * Tensor::from_inner(gradient_bchw)).sum();
        (surrogate, loss, parts)
    }
}

impl<A: AutodiffBackend> Leaf<A> {
    /// Differentiates its graphs.
    pub(crate) fn settle(self) -> AtOutput<A::InnerBackend> {
        let gradient = |leaf_bchw: Tensor<A, 4>, loss: Tensor<A, 1>| {
            let gradients = loss.backward();
            leaf_bchw.grad(&gradients).unwrap_or_else(|| leaf_bchw.inner().zeros_like())
        };
        let Self { leaf_bchw, loss, parts, judged } = self;
        AtOutput {
            loss: loss.clone().inner(),
            gradient_bchw: gradient(leaf_bchw, loss),
            parts,
            judged: judged.map(|(leaf_bchw, loss)| {
                let value = loss.clone().inner();
                (gradient(leaf_bchw, loss), value)
            }),
        }
    }
}

/// The streams of what is changed of each image, for one who looks.
fn drawn(streams: &[SeedTree], who: &str) -> Vec<SeedTree> {
    streams.iter().map(|stream| stream.child("augment").child(who)).collect()
}

#[cfg(test)]
mod tests;
