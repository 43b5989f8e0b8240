//! The tokenizer's loss, dead codes and held-out figures, computed again on the host.
//!
//! Shapes: b batch, c channels, h height, w width, n latents, v codes.

use burn::backend::Autodiff;
use burn::tensor::{Int, Tensor, TensorData};
use burn_flex::Flex;
use sar_core::{Filter, ScaleSchedule, ScaleSize, SeedTree, resample};
use sar_model::{Backbone, BackboneConfig, BackboneShape, FirstToken, Init, Pass, PositionsConfig};
use sar_tokenizer::{
    CodebookGrowth, ColorAxes, Family, Perturbation, Phi, Tokenizer, TokenizerConfig,
    codebook::rows,
};
use sar_train::held_out::HeldOutMeter;
use sar_train::recipe::{Perceptual, TokenizerLoss, TokenizerRegularization};
use sar_train::step::{Terms, trainable};
use sar_train::tokenizer_loss::{TokenizerObjective, restart_dead_codes, tokenizer_loss};
use sar_train::tokens::{TokenBatch, inputs, labels_tensor};

type B = Flex;
type A = Autodiff<Flex>;

const CODES: usize = 12;
const CHANNELS: usize = 4;

fn tokenizer(family: Family) -> Tokenizer<B> {
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
    sar_tokenizer::init(
        &config,
        sar_tokenizer::Init::Torch {},
        SeedTree::new(2),
        &Default::default(),
    )
    .unwrap()
}

fn pixels() -> Tensor<B, 4> {
    let values = SeedTree::new(9).uniforms(2 * 3 * 8 * 8).iter().map(|u| 2.0 * u - 1.0).collect();
    Tensor::from_data(TensorData::new::<f32, _>(values, [2, 3, 8, 8]), &Default::default())
}

fn host<const D: usize>(x: Tensor<B, D>) -> Vec<f64> {
    x.into_data().convert::<f64>().into_vec().unwrap()
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = values.len() as f64;
    values.sum::<f64>() / n
}

fn near(what: &str, found: f64, expected: f64) {
    assert!(
        (found - expected).abs() < 1e-5 * expected.abs().max(1.0),
        "{what}: {found} {expected}"
    );
}

/// Rows of some length.
fn chunks(values: &[f64], c: usize) -> impl ExactSizeIterator<Item = &[f64]> {
    values.chunks_exact(c)
}

fn unit(row: &[f64]) -> Vec<f64> {
    let length = row.iter().map(|x| x * x).sum::<f64>().sqrt();
    row.iter().map(|x| x / length).collect()
}

/// Latents of a scale, of length 1, and the code of each that is nearest by angle.
fn nearest(latents: &[f64], codes: &[f64]) -> Vec<(Vec<f64>, Vec<f64>, usize)> {
    let codes: Vec<Vec<f64>> = chunks(codes, CHANNELS).map(unit).collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    chunks(latents, CHANNELS)
        .map(|row| {
            let z = unit(row);
            let best =
                (0..CODES).max_by(|a, b| dot(&z, &codes[*a]).total_cmp(&dot(&z, &codes[*b])));
            let best = best.unwrap();
            (z, codes[best].clone(), best)
        })
        .collect()
}

const WEIGHTS: TokenizerLoss = TokenizerLoss {
    color_power: 0.0,
    l1: 0.7,
    l2: 1.3,
    codebook: 0.9,
    commitment: 0.4,
    entropy: 0.0,
    perceptual: Perceptual::None {},
    coarse: 0.5,
    coarse_scales: 1,
};

const UNDISTURBED: TokenizerRegularization = TokenizerRegularization {
    quantizer_dropout: 0.0,
    perturbation: Perturbation { share: 0.0, nearest: 1 },
};

/// The loss of the two images.
fn loss(
    model: &Tokenizer<A>,
    schedule: &ScaleSchedule,
    weights: &TokenizerLoss,
    step: u64,
) -> (Terms<A>, Tensor<B, 1, Int>) {
    let regularization = &UNDISTURBED;
    let objective =
        TokenizerObjective { schedule, loss: weights, regularization, perception: None };
    let streams = [0, 1].map(SeedTree::new);
    tokenizer_loss(model, pixels(), &streams, &objective, SeedTree::new(step))
}

/// The error of pixels, area-resampled to the size of the output.
fn pixel_errors(model: &Tokenizer<B>, f_hat_bchw: Tensor<B, 4>) -> (f64, f64) {
    let output = model.decode(f_hat_bchw);
    let [_, _, height, width] = output.dims();
    let target = host(resample(pixels(), ScaleSize { height, width }, Filter::Area));
    let output = host(output);
    let errors = || output.iter().zip(&target).map(|(a, b)| a - b);
    (mean(errors().map(f64::abs)), mean(errors().map(|e| e * e)))
}

#[test]
fn errors_of_colors_are_taken_along_their_axes() {
    let covariance = [[0.5, 0.3, 0.2], [0.3, 0.4, 0.25], [0.2, 0.25, 0.45]];
    let colors = ColorAxes::of_covariance(covariance);
    let model = tokenizer(Family::Flexvar).with_colors(colors);
    let schedule: ScaleSchedule = "1_4".parse().unwrap();
    let tokens = model.tokens(model.encode(pixels()), &schedule);
    let output = host(model.decode(model.canvases(tokens, &schedule).remove(1)));
    let errors: Vec<f64> = output.iter().zip(host(pixels())).map(|(a, b)| a - b).collect();
    let n = 8 * 8;
    let mut l2 = 0.0;
    for image in errors.chunks_exact(3 * n) {
        for i in 0..n {
            for (axis, deviation) in colors.axes().iter().zip(colors.deviations()) {
                let along: f64 = (0..3).map(|c| axis[c] * image[c * n + i]).sum();
                l2 += along * along / deviation / errors.len() as f64;
            }
        }
    }
    let weights = TokenizerLoss { color_power: 0.5, coarse: 0.0, ..WEIGHTS };
    let model = trainable::<A, Tokenizer<A>>(model);
    let (terms, _) = loss(&model, &schedule, &weights, 0);
    let found = terms.parts.iter().find(|(name, _)| *name == "l2").unwrap();
    near("l2", host(found.1.clone())[0], l2);
}

#[test]
fn the_loss_of_a_direct_tokenizer_is_that_of_its_finest_and_one_coarser_scale() {
    let model = tokenizer(Family::Flexvar);
    let schedule: ScaleSchedule = "1_2_4".parse().unwrap();
    let codes = host(model.codebook().raw());
    let of_scale = |size: ScaleSize, entropy: f64| {
        let features = resample(model.features(pixels()), size, Filter::Area);
        let pairs = nearest(&host(rows(model.project(features))), &codes);
        let q: Vec<f32> = pairs.iter().flat_map(|(_, q, _)| q).map(|x| *x as f32).collect();
        let shape = [2, size.height, size.width, CHANNELS];
        let q = Tensor::<B, 4>::from_data(TensorData::new(q, shape), &Default::default());
        let (l1, l2) = pixel_errors(&model, q.permute([0, 3, 1, 2]));
        let distance = |(z, q, _): &(Vec<f64>, Vec<f64>, usize)| {
            z.iter().zip(q).map(|(z, q)| (z - q) * (z - q)).sum::<f64>() / CHANNELS as f64
        };
        let vq = mean(pairs.iter().map(distance));
        // p = softmax(-|z - e|^2 / 0.01): sample entropy minus entropy of the mean.
        let units: Vec<Vec<f64>> = chunks(&codes, CHANNELS).map(unit).collect();
        let p: Vec<Vec<f64>> = pairs
            .iter()
            .map(|(z, ..)| {
                let logit = |e: &Vec<f64>| -> f64 {
                    -z.iter().zip(e).map(|(z, e)| (z - e) * (z - e)).sum::<f64>() / 0.01
                };
                let logits: Vec<f64> = units.iter().map(logit).collect();
                let largest = logits.iter().copied().fold(f64::MIN, f64::max);
                let sum: f64 = logits.iter().map(|x| (x - largest).exp()).sum();
                logits.iter().map(|x| (x - largest).exp() / sum).collect()
            })
            .collect();
        let log = |p: f64| if p > 0.0 { p * p.ln() } else { 0.0 };
        let sample = mean(p.iter().map(|p| -p.iter().map(|p| log(*p)).sum::<f64>()));
        let average = |v: usize| mean(p.iter().map(|p| p[v]));
        let of_mean: f64 = (0..CODES).map(|v| -average(v) * (average(v) + 1e-5).ln()).sum();
        let loss = WEIGHTS.l1 * l1
            + WEIGHTS.l2 * l2
            + (WEIGHTS.codebook + WEIGHTS.commitment) * vq
            + entropy * (sample - of_mean);
        (loss, l1, l2, vq, pairs.iter().map(|(.., i)| *i as i64).collect::<Vec<_>>())
    };
    let differentiable = trainable::<A, Tokenizer<A>>(model.clone());
    let mut drawn = Vec::new();
    for (step, entropy) in [(0, 0.0), (1, 0.0), (2, 0.2), (3, 0.0)] {
        let weights = TokenizerLoss { entropy, ..WEIGHTS };
        let (terms, used) = loss(&differentiable, &schedule, &weights, step);
        let sizes: Vec<ScaleSize> = terms.scales.iter().map(|(size, _)| *size).collect();
        assert_eq!((sizes.len(), sizes[0]), (2, ScaleSize::square(4)));
        assert!(sizes[1].tokens() < 16);
        drawn.push(sizes[1]);
        let (finest, coarser) = (of_scale(sizes[0], entropy), of_scale(sizes[1], entropy));
        let part = |name: &str| {
            let found = terms.parts.iter().find(|(known, _)| *known == name).unwrap();
            host(found.1.clone())[0]
        };
        near("l1", part("l1"), finest.1);
        near("l2", part("l2"), finest.2);
        near("commitment", part("commitment"), finest.3);
        // Weights 1 and 0.5, which make 1 together.
        let expected = (finest.0 + 0.5 * coarser.0) / 1.5;
        near("total", part("total"), expected);
        near("loss", host(terms.loss.inner())[0], expected);
        near("finest", host(terms.scales[0].1.clone())[0], finest.0);
        near("coarser", host(terms.scales[1].1.clone())[0], coarser.0);
        let used = used.into_data().convert::<i64>().into_vec::<i64>().unwrap();
        assert_eq!(used, [finest.4, coarser.4].concat());
    }
    assert!(drawn.iter().any(|size| *size != drawn[0]), "always the same coarser scale");
}

#[test]
fn the_loss_of_a_residual_tokenizer_compares_the_latents_with_every_f_hat() {
    let model = tokenizer(Family::Var { phi: Phi::Shared(2) });
    let schedule: ScaleSchedule = "1_2_4".parse().unwrap();
    let h = model.encode(pixels());
    let f_hats = model.canvases(model.tokens(h.clone(), &schedule), &schedule);
    let f = host(h);
    let square = |f_hat: &Tensor<B, 4>| {
        let f_hat = host(f_hat.clone());
        mean(f.iter().zip(&f_hat).map(|(a, b)| (a - b) * (a - b)))
    };
    let vq = mean(f_hats.iter().map(square));
    let (l1, l2) = pixel_errors(&model, f_hats[2].clone());
    let weights = TokenizerLoss { coarse: 0.0, ..WEIGHTS };
    let differentiable = trainable::<A, Tokenizer<A>>(model);
    let (terms, used) = loss(&differentiable, &schedule, &weights, 1);
    let expected = weights.l1 * l1 + weights.l2 * l2 + (weights.codebook + weights.commitment) * vq;
    near("loss", host(terms.loss.inner())[0], expected);
    assert_eq!((terms.scales.len(), used.dims()), (1, [2 * schedule.n_tokens()]));
}

#[test]
fn dead_codes_get_the_places_of_latents() {
    let model = tokenizer(Family::Flexvar);
    let latents: Vec<f32> = (0..3 * CHANNELS).map(|i| 100.0 + i as f32).collect();
    let latents = TensorData::new(latents, [3, CHANNELS]);
    let restarted = |counts: &[usize], seed: u64| -> Vec<Vec<f64>> {
        let latents = Tensor::<B, 2>::from_data(latents.clone(), &Default::default());
        let book = model.codebook().clone();
        let book = restart_dead_codes(book, counts, latents, SeedTree::new(seed));
        chunks(&host(book.raw()), CHANNELS).map(<[f64]>::to_vec).collect()
    };
    let before: Vec<Vec<f64>> =
        chunks(&host(model.codebook().raw()), CHANNELS).map(<[f64]>::to_vec).collect();
    let row = |i: usize| -> Vec<f64> {
        (0..CHANNELS).map(|c| 100.0 + (i * CHANNELS + c) as f64).collect()
    };
    let mut counts = [5; CODES];
    counts[3] = 0;
    counts[7] = 0;
    for seed in 0..4 {
        let after = restarted(&counts, seed);
        let order = SeedTree::new(seed).permutation(3);
        assert_eq!((&after[3], &after[7]), (&row(order[0]), &row(order[1])));
        for code in (0..CODES).filter(|code| counts[*code] > 0) {
            assert_eq!(after[code], before[code], "code {code} was in use");
        }
    }
    // More dead codes than latents: three of them, each latent once.
    let after = restarted(&[0; CODES], 1);
    let moved: Vec<usize> = (0..CODES).filter(|code| after[*code] != before[*code]).collect();
    assert_eq!(moved, [0, 1, 2]);
    assert_eq!(restarted(&[1; CODES], 1), before);
}

#[test]
fn held_out_losses_are_those_of_the_true_and_of_the_predicted_context() {
    let tokenizer = tokenizer(Family::Flexvar);
    let schedule: ScaleSchedule = "1_2_4".parse().unwrap();
    let shape = BackboneShape { width: 16, heads: 2, ..BackboneShape::published(1) };
    let config = BackboneConfig {
        shape,
        classes: 3,
        codebook_size: CODES,
        codebook_dim: CHANNELS,
        positions: PositionsConfig::Grid { side: 4 },
    };
    let device = Default::default();
    let init = Init { adaln_gamma: 1.0 };
    let model: Backbone<B> = sar_model::init(&config, init, SeedTree::new(6), &device).unwrap();
    let tokens_bl = tokenizer.tokens(tokenizer.encode(pixels()), &schedule);
    let batch = TokenBatch {
        labels: vec![0, 2],
        streams: vec![SeedTree::new(0); 2],
        schedule: schedule.clone(),
        tokens_bl: tokens_bl.clone(),
    };
    let truth = tokens_bl.clone().into_data().convert::<i64>().into_vec::<i64>().unwrap();
    let l = schedule.n_tokens();
    let logits = |context: Vec<i64>| -> Vec<Vec<f64>> {
        let context = Tensor::from_data(TensorData::new(context, [2, l]), &device);
        let logits = model.forward(Pass {
            labels_b: labels_tensor([0, 2].into_iter(), &device),
            inputs_blc: inputs(&tokenizer, &schedule, context),
            schedule: &schedule,
            first: FirstToken::Start,
            depth_drops: None,
        });
        chunks(&host(logits), CODES).map(<[f64]>::to_vec).collect()
    };
    let teacher = logits(truth.clone());
    let best = |row: &Vec<f64>| (0..CODES).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap();
    let predicted: Vec<i64> = teacher.iter().map(|row| best(row) as i64).collect();
    assert_ne!(predicted, truth);
    let student = logits(predicted.clone());
    let loss = |row: &Vec<f64>, token: i64| {
        let sum: f64 = row.iter().map(|x| x.exp()).sum();
        sum.ln() - row[token as usize]
    };
    let losses = |logits: &[Vec<f64>], from: usize| {
        let image = |i: usize| mean((from..l).map(|t| loss(&logits[i * l + t], truth[i * l + t])));
        (image(0) + image(1)) / 2.0
    };

    let mut meter = HeldOutMeter::new(&schedule, CODES);
    meter.add(&model, &tokenizer, &batch, &device);
    let report = meter.report(100, SeedTree::new(1));
    assert_eq!(report.images, 2);
    near("teacher", report.figures.teacher_loss, losses(&teacher, 0));
    near("student", report.figures.student_loss.unwrap(), losses(&student, 1));
    let gap = losses(&student, 1) - losses(&teacher, 1);
    near("gap", report.figures.exposure_gap.unwrap(), gap);
    let right = predicted.iter().zip(&truth).skip(5).take(16).filter(|(a, b)| a == b).count()
        + predicted.iter().zip(&truth).skip(l + 5).filter(|(a, b)| a == b).count();
    near("accuracy", report.statistics[2].accuracy, right as f64 / 32.0);
    let by_scale = mean((0..2).map(|i| loss(&teacher[i * l], truth[i * l])));
    near("first scale", report.by_scale[0].figures.teacher_loss, by_scale);
    assert_eq!(report.by_scale[0].figures.student_loss, None);
}
