//! Training dynamics by scale: laws, and the same numbers computed on other ways.
//!
//! Shapes: b batch, l tokens of the pyramid, n tokens of one scale, c code channels, v codes.

use burn::backend::Autodiff;
use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Int, Tensor, TensorData};
use burn_flex::Flex;
use sar_core::{CodePyramid, ScaleModel, ScaleSchedule, SeedTree};
use sar_loss::{cross_entropy, mean_tokens};
use sar_model::{
    Backbone, BackboneConfig, BackboneShape, FirstToken, LAYOUT, Pass, PositionsConfig,
};
use sar_rollout::Choice;
use sar_tokenizer::{CodebookGrowth, Family, Phi, Tokenizer, TokenizerConfig};
use sar_train::dynamics::{ContextLosses, Dynamics, DynamicsMeter, gradient_norms, rollout_tokens};
use sar_train::gradients::Gradients;
use sar_train::held_out::HeldOutMeter;
use sar_train::step::trainable;
use sar_train::tokens::{TokenBatch, inputs, labels_tensor};
use sar_weights::fill;

type B = Flex;
type A = Autodiff<Flex>;

const CODES: usize = 9;
const CHANNELS: usize = 4;
const FAMILIES: [Family; 2] = [Family::Flexvar, Family::Var { phi: Phi::Shared(2) }];

/// A tokenizer, a backbone of its family, and three images' tokens.
struct World {
    tokenizer: Tokenizer<B>,
    model: Backbone<B>,
    batch: TokenBatch<B>,
}

impl World {
    fn new(family: Family) -> Self {
        let device = Default::default();
        let config = TokenizerConfig {
            family,
            base_channels: 32,
            channel_multipliers: vec![1, 1],
            res_blocks: 1,
            z_channels: 4,
            codebook_size: CODES,
            codebook_dim: CHANNELS,
            codebook_growth: CodebookGrowth::None {},
        };
        let init = sar_tokenizer::Init::Torch {};
        let tokenizer =
            sar_tokenizer::init(&config, init, SeedTree::new(2), &device).expect("a tokenizer");
        let schedule: ScaleSchedule = "1_2_3".parse().unwrap();
        let config = BackboneConfig {
            shape: BackboneShape {
                width: 16,
                heads: 2,
                mlp_ratio: 2,
                ..BackboneShape::published(2)
            },
            classes: 3,
            codebook_size: CODES,
            codebook_dim: CHANNELS,
            positions: match family {
                Family::Flexvar => PositionsConfig::Grid { side: 4 },
                _ => PositionsConfig::PerToken { scales: schedule.clone() },
            },
        };
        // No part is near zero, and inputs weigh as much as classes.
        let weights = SeedTree::new(3);
        let empty = Backbone::new(&config, &device).unwrap();
        let model = fill(empty, &LAYOUT, |name, shape| {
            let size = if name == "word_embed.weight" { 1.5 } else { 0.4 };
            let n = shape.iter().product();
            weights.child(name).normals(n).into_iter().map(|x| size * x).collect()
        });
        let draws = SeedTree::new(5);
        let (b, l) = (3, schedule.n_tokens());
        let truth = (0..b * l).map(|i| draws.below(i as u64, CODES) as i64).collect();
        let batch = TokenBatch {
            labels: vec![0, 2, 1],
            streams: (0..3).map(|i| draws.child("stream").at(i)).collect(),
            tokens_bl: tokens(truth, [b, l]),
            schedule,
        };
        Self { tokenizer, model, batch }
    }

    fn rollout(&self, choice: Choice) -> Tensor<B, 2, Int> {
        rollout_tokens(&self.model, &self.tokenizer, &self.batch, choice, &Default::default())
    }

    fn dynamics(&self, rollout_bl: Tensor<B, 2, Int>) -> Dynamics {
        let mut meter = DynamicsMeter::new(&self.batch.schedule, CODES, self.batch.schedule.last());
        meter.add(&self.model, &self.tokenizer, &self.batch, rollout_bl, &Default::default());
        meter.report(None, 50, SeedTree::new(1))
    }

    /// Some of the images.
    fn part(&self, images: std::ops::Range<usize>) -> TokenBatch<B> {
        TokenBatch {
            labels: self.batch.labels[images.clone()].to_vec(),
            streams: self.batch.streams[images.clone()].to_vec(),
            schedule: self.batch.schedule.clone(),
            tokens_bl: self.batch.tokens_bl.clone().slice_dim(0, images),
        }
    }

    fn gradient_norms(&self, batches: &[TokenBatch<B>], workers: usize) -> Vec<f64> {
        let device = Default::default();
        gradient_norms::<A, _>(&self.model, &self.tokenizer, batches, workers, &device)
    }
}

fn tokens(values: Vec<i64>, shape: [usize; 2]) -> Tensor<B, 2, Int> {
    Tensor::from_data(TensorData::new(values, shape), &Default::default())
}

fn ints(x: Tensor<B, 2, Int>) -> Vec<usize> {
    x.into_data().iter::<i64>().map(|x| x as usize).collect()
}

fn floats<const D: usize>(x: Tensor<B, D>) -> Vec<f64> {
    x.into_data().iter::<f64>().collect()
}

fn near(what: &str, found: f64, expected: f64, tolerance: f64) {
    assert!(
        (found - expected).abs() < tolerance * expected.abs().max(1e-3),
        "{what}: {found}, not {expected}"
    );
}

#[test]
fn a_rollout_that_keeps_to_the_truth_is_teacher_forced() {
    for family in FAMILIES {
        let world = World::new(family);
        let dynamics = world.dynamics(world.batch.tokens_bl.clone());
        for scale in &dynamics.by_scale {
            assert_eq!(scale.losses.rollout_loss, scale.losses.teacher_loss);
            assert_eq!((scale.losses.rollout_gap, scale.token_divergence), (0.0, 0.0));
            assert_eq!(scale.latent_divergence, 0.0);
            assert_eq!(scale.rollout_histogram_entropy, scale.histogram_entropy);
        }
        let [teacher, student, _] = three(&dynamics.by_scale[2].losses);
        assert_ne!(student, teacher);
    }
}

#[test]
fn a_model_that_is_always_right_has_one_loss_in_all_contexts() {
    for family in FAMILIES {
        let mut world = World::new(family);
        // What it makes by itself is the truth.
        world.batch.tokens_bl = world.rollout(Choice::Argmax);
        let dynamics = world.dynamics(world.rollout(Choice::Argmax));
        for scale in &dynamics.by_scale {
            let losses = &scale.losses;
            assert_eq!(losses.student_loss, losses.teacher_loss);
            assert_eq!(losses.rollout_loss, losses.teacher_loss);
            assert_eq!((scale.accuracy, scale.token_divergence), (1.0, 0.0));
            assert_eq!(scale.latent_divergence, 0.0);
        }
        assert_eq!((dynamics.all.exposure_gap, dynamics.all.rollout_gap), (0.0, 0.0));
    }
}

/// What is pooled from the same latents has the same code, in FlexVAR's family; a rollout need not know.
#[test]
fn repeated_tokens_are_counted() {
    let mut world = World::new(Family::Flexvar);
    let scales: ScaleSchedule = "1_2_3_4_6_8".parse().unwrap();
    let values = SeedTree::new(8).normals(3 * CHANNELS * 64);
    let values = TensorData::new(values, [3, CHANNELS, 8, 8]);
    let truth_bl = world.tokenizer.tokens(Tensor::from_data(values, &Default::default()), &scales);
    let mut rollout = ints(truth_bl.clone());
    // Of 16 repeats of each image the first two of the first image have another code.
    let [first, second] = [0, 1].map(|i| scales.repeats(scales.last())[i]);
    for [token, coarser] in [first, second] {
        rollout[token] = (rollout[coarser] + 1) % CODES;
    }
    let rollout = rollout.into_iter().map(|token| token as i64).collect();
    world.batch.tokens_bl = truth_bl;
    world.batch.schedule = scales.clone();
    let dynamics = world.dynamics(tokens(rollout, [3, scales.n_tokens()]));
    for (k, scale) in dynamics.by_scale.iter().enumerate() {
        let expected = if k == 4 { (16, Some(1.0), Some(46.0 / 48.0)) } else { (0, None, None) };
        assert_eq!((scale.repeats, scale.repeats_true, scale.repeats_kept), expected);
    }
}

#[test]
fn the_first_scale_has_no_context() {
    for family in FAMILIES {
        let world = World::new(family);
        let Dynamics { all, by_scale, .. } = world.dynamics(world.rollout(Choice::Argmax));
        let first = &by_scale[0];
        assert_eq!(first.losses.student_loss, first.losses.teacher_loss);
        assert_eq!(first.losses.rollout_loss, first.losses.teacher_loss);
        assert_eq!((first.losses.exposure_gap, first.losses.rollout_gap), (0.0, 0.0));
        assert_eq!(first.token_divergence, 1.0 - first.accuracy);
        // At the second, one step deep is all the depth there is.
        assert_eq!(by_scale[1].losses.rollout_loss, by_scale[1].losses.student_loss);
        let [teacher, student, rollout] = three(&by_scale[2].losses);
        assert!(teacher != student && student != rollout && rollout != teacher);

        // Those of the held-out figures, and sums of the scales.
        let mut meter = HeldOutMeter::new(&world.batch.schedule, CODES);
        meter.add(&world.model, &world.tokenizer, &world.batch, &Default::default());
        let held_out = meter.report(50, SeedTree::new(1));
        assert_eq!(all.teacher_loss, held_out.figures.teacher_loss);
        assert_eq!(Some(all.student_loss), held_out.figures.student_loss);
        assert_eq!(Some(all.exposure_gap), held_out.figures.exposure_gap);
        assert_eq!(all.intervals.teacher_loss, held_out.figures.intervals.teacher_loss);
        let over = |from: usize, of: fn([f64; 3]) -> f64| {
            let scales = by_scale[from..].iter();
            let n: usize = scales.clone().map(|scale| scale.tokens).sum();
            scales.map(|s| s.tokens as f64 * of(three(&s.losses))).sum::<f64>() / n as f64
        };
        near("teacher", all.teacher_loss, over(0, |[teacher, ..]| teacher), 1e-6);
        near("student", all.student_loss, over(1, |[_, student, _]| student), 1e-6);
        near("rollout", all.rollout_loss, over(1, |[.., rollout]| rollout), 1e-6);
        near("gap", all.rollout_gap, over(1, |[teacher, _, rollout]| rollout - teacher), 1e-6);
    }
}

fn three(losses: &ContextLosses) -> [f64; 3] {
    [losses.teacher_loss, losses.student_loss, losses.rollout_loss]
}

/// Scale by scale through the cache, as images are sampled, for drawn and for most probable tokens.
#[test]
fn losses_of_a_rollout_are_those_of_its_own_logits() {
    let device = Default::default();
    for (family, choice) in [
        (FAMILIES[0], Choice::Argmax),
        (FAMILIES[1], Choice::Argmax),
        (FAMILIES[0], Choice::Sample { top_k: 5, top_p: 0.9 }),
    ] {
        let World { tokenizer, model, batch } = &World::new(family);
        let rollout_bl = rollout_tokens(model, tokenizer, batch, choice, &device);
        let (rollout, truth) = (ints(rollout_bl.clone()), ints(batch.tokens_bl.clone()));
        let dynamics = World::new(family).dynamics(rollout_bl.clone());
        let (l, schedule) = (batch.schedule.n_tokens(), &batch.schedule);
        let labels_b = labels_tensor(batch.labels.iter().copied(), &device);
        let mut cache = model.begin(labels_b, schedule);
        let [mut own, mut true_canvas] = [None, None];
        let mut input = None;
        for (k, range) in schedule.ranges().enumerate() {
            let logits = floats(model.step(&mut cache, input.take()));
            let (mut loss, mut wrong, mut histogram) = (0.0, 0, [0usize; CODES]);
            for (image, i) in (0..3).flat_map(|image| (0..range.len()).map(move |i| (image, i))) {
                let row = &logits[(image * range.len() + i) * CODES..][..CODES];
                let at = image * l + range.start + i;
                let sum: f64 = row.iter().map(|x| x.exp()).sum();
                loss += sum.ln() - row[truth[at]];
                wrong += usize::from(rollout[at] != truth[at]);
                histogram[rollout[at]] += 1;
                if choice == Choice::Argmax {
                    let best = (0..CODES).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap();
                    assert_eq!(rollout[at], best);
                }
            }
            let n = (3 * range.len()) as f64;
            let scale = &dynamics.by_scale[k];
            near("loss", scale.losses.rollout_loss, loss / n, 1e-5);
            near("divergence", scale.token_divergence, wrong as f64 / n, 1e-6);
            let entropy = histogram.iter().filter(|n| **n > 0).map(|count| {
                let p = *count as f64 / n;
                -p * p.ln()
            });
            near("entropy", scale.rollout_histogram_entropy, entropy.sum(), 1e-6);

            let codes = |tokens_bl: &Tensor<B, 2, Int>| {
                tokenizer.look_up(tokens_bl.clone().slice_dim(1, range.clone()))
            };
            let (own_bnc, true_bnc) = (codes(&rollout_bl), codes(&batch.tokens_bl));
            if family == Family::Flexvar {
                // Codes of length 1: |a - b|^2 = 2 - 2 a.b, in units of 1.
                let (a, b) = (floats(own_bnc.clone()), floats(true_bnc.clone()));
                let dot: f64 = a.iter().zip(&b).map(|(a, b)| a * b).sum();
                near("latents", scale.latent_divergence, 2.0 - 2.0 * dot / n, 1e-4);
            }
            input = tokenizer.paint(&mut own, schedule, k, own_bnc);
            tokenizer.paint(&mut true_canvas, schedule, k, true_bnc);
            let [a, b] = [&own, &true_canvas].map(|canvas| floats(canvas.clone().unwrap()));
            let square = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>();
            let distance = square(&mut a.iter().zip(&b).map(|(a, b)| a - b));
            let expected = distance / square(&mut b.iter().copied());
            near("latents", scale.latent_divergence, expected, 1e-4);
        }
    }
}

/// The loss of scale `k` out of a pass over all scales.
fn loss_of_scale(world: &World, model: &Backbone<A>, k: usize) -> Tensor<A, 1> {
    let TokenBatch { labels, schedule, tokens_bl, .. } = &world.batch;
    let logits_blv = model.forward(Pass {
        labels_b: labels_tensor(labels.iter().copied(), &Default::default()),
        inputs_blc: inputs(&world.tokenizer, schedule, tokens_bl.clone()).map(Tensor::from_inner),
        schedule,
        first: FirstToken::Start,
        depth_drops: None,
    });
    let truth_bl = Tensor::from_inner(tokens_bl.clone());
    mean_tokens(cross_entropy(logits_blv, truth_bl, 0.0).slice_dim(1, schedule.range(k)))
}

/// Adds numbers to the parameters, in their order.
struct Move {
    by: std::vec::IntoIter<Option<Tensor<B, 1>>>,
}

impl ModuleMapper<B> for Move {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        match self.by.next().expect("a step for each parameter") {
            Some(step) => param.map(|x| {
                let shape = x.shape();
                x + step.reshape(shape)
            }),
            None => param,
        }
    }
}

#[test]
fn gradient_norms_are_slopes_of_the_scales_losses() {
    for family in FAMILIES {
        let world = World::new(family);
        let norms = world.gradient_norms(&[world.part(0..3)], 1);
        for (k, norm) in norms.iter().enumerate() {
            // Out of a pass over all scales, the finer ones of which have no part in it.
            let model = trainable::<A, Backbone<A>>(world.model.clone());
            let gradients = Gradients::of(loss_of_scale(&world, &model, k), &model);
            near("norm", *norm, floats(gradients.norm())[0], 1e-4);
            // Along the gradient the loss grows by its norm for each unit of length.
            let at = |length: f64| {
                let step = gradients.clone().scale(length / norm);
                let by: Vec<_> = step.iter().map(|step| step.cloned()).collect();
                let moved = world.model.clone().map(&mut Move { by: by.into_iter() });
                let moved = trainable::<A, Backbone<A>>(moved);
                floats(loss_of_scale(&world, &moved, k).inner())[0]
            };
            let slope = (at(5e-3) - at(-5e-3)) / 1e-2;
            near("slope", *norm, slope, 1e-2);
        }
    }
}

#[test]
fn gradient_norms_depend_on_the_images_alone() {
    let world = World::new(Family::Flexvar);
    let whole = world.gradient_norms(&[world.part(0..3)], 1);
    let parts = [world.part(0..2), world.part(2..3)];
    let in_parts = world.gradient_norms(&parts, 1);
    for (found, expected) in in_parts.iter().zip(&whole) {
        near("in parts", *found, *expected, 1e-5);
    }
    assert_eq!(world.gradient_norms(&parts, 2), in_parts);
    assert_ne!(world.gradient_norms(&parts[..1], 1), whole);
}

#[test]
#[should_panic(expected = "a mixture of codes is no token")]
fn mixtures_are_no_tokens() {
    World::new(Family::Flexvar).rollout(Choice::MoreSmooth { top_k: 0, top_p: 0.0 });
}
