//! The figures of a tokenizer, computed again on the host.
//!
//! Shapes: b batch, c channels, h height, w width, l tokens.

use std::collections::BTreeSet;

use burn::tensor::{Tensor, TensorData};
use burn_flex::Flex;
use sar_core::{Filter, ScaleSchedule, ScaleSize, SeedTree, resample};
use sar_eval::{Distance, TokenizerMeter};
use sar_features::{EfficientNetLite0, PerceptualDistance, WEIGHTS};
use sar_tokenizer::{CodebookGrowth, Family, Phi, Tokenizer, TokenizerConfig};

const CODES: usize = 12;
const SIDE: usize = 32;

fn tokenizer(family: Family, codebook_growth: CodebookGrowth) -> Tokenizer<Flex> {
    let config = TokenizerConfig {
        family,
        base_channels: 32,
        channel_multipliers: vec![1, 1],
        res_blocks: 1,
        z_channels: 4,
        codebook_size: CODES,
        codebook_dim: 4,
        codebook_growth,
    };
    let (init, seed) = (sar_tokenizer::Init::Torch {}, SeedTree::new(2));
    sar_tokenizer::init(&config, init, seed, &Default::default()).unwrap()
}

/// Waves of all colors, and some noise.
fn pixels(n: usize) -> Tensor<Flex, 4> {
    let noise = SeedTree::new(9).uniforms(n * 3 * SIDE * SIDE);
    let value = |(at, noise): (usize, &f32)| {
        let (b, c) = (at / (3 * SIDE * SIDE), at / (SIDE * SIDE) % 3);
        let [i, j] = [at / SIDE % SIDE, at % SIDE].map(|x| x as f32 / SIDE as f32);
        let wave = (5.0 * i + (3.0 + b as f32) * j + c as f32).sin();
        0.8 * wave + 0.2 * (2.0 * noise - 1.0)
    };
    let values: Vec<f32> = noise.iter().enumerate().map(value).collect();
    Tensor::from_data(TensorData::new(values, [n, 3, SIDE, SIDE]), &Default::default())
}

fn host<const D: usize>(x: Tensor<Flex, D>) -> Vec<f64> {
    x.into_data().convert::<f64>().into_vec().unwrap()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// SSIM of one image of [c, h, w], window by window, as it is defined.
fn ssim(x: &[f64], y: &[f64], [h, w]: [usize; 2]) -> f64 {
    let smaller = h.min(w).min(11);
    let n = if smaller % 2 == 0 { smaller - 1 } else { smaller };
    let g = |i: usize| (-(i as f64 - (n / 2) as f64).powi(2) / 4.5).exp();
    let total: f64 = (0..n).map(g).sum();
    let mut values = Vec::new();
    for (x, y) in x.chunks(h * w).zip(y.chunks(h * w)) {
        for (i, j) in (0..=h - n).flat_map(|i| (0..=w - n).map(move |j| (i, j))) {
            let over = |f: &dyn Fn(usize) -> f64| -> f64 {
                let places = (0..n * n).map(|at| (at / n, at % n));
                places.map(|(a, b)| g(a) * g(b) * f((i + a) * w + j + b)).sum::<f64>()
                    / (total * total)
            };
            let (mx, my) = (over(&|at| x[at]), over(&|at| y[at]));
            let sx = over(&|at| (x[at] - mx).powi(2));
            let sy = over(&|at| (y[at] - my).powi(2));
            let sxy = over(&|at| (x[at] - mx) * (y[at] - my));
            values.push(
                (2.0 * mx * my + 4e-4) * (2.0 * sxy + 3.6e-3)
                    / ((mx * mx + my * my + 4e-4) * (sx + sy + 3.6e-3)),
            );
        }
    }
    mean(&values)
}

#[track_caller]
fn near(what: &str, found: f64, expected: f64) {
    assert!(
        (found - expected).abs() < 2e-5 * expected.abs().max(1.0),
        "{what}: {found} {expected}"
    );
}

#[test]
fn figures_are_those_of_a_direct_computation() {
    let schedule: ScaleSchedule = "1_5_16".parse().unwrap();
    let images = pixels(5);
    for (family, small) in [(Family::Flexvar, true), (Family::Var { phi: Phi::Shared(2) }, false)] {
        let model = tokenizer(family, CodebookGrowth::None {});
        let network = EfficientNetLite0::from_bytes(WEIGHTS.to_vec(), &Default::default()).unwrap();
        let network = PerceptualDistance::new(network);
        let distance = Distance::EfficientNetLite0(network.clone());
        let mut meter = TokenizerMeter::new(&schedule, CODES).with_distances(vec![distance]);
        // In unequal batches: means are over images.
        for range in [0..3, 3..5] {
            meter.add(&model, images.clone().slice_dim(0, range));
        }
        assert_eq!(meter.images(), 5);
        let figures = meter.figures();

        let tokens = model.tokens(model.encode(images.clone()), &schedule);
        let canvases = model.canvases(tokens.clone(), &schedule);
        let mut all = BTreeSet::new();
        for (k, canvas) in canvases.into_iter().enumerate() {
            let scale = &figures.by_scale[k];
            assert_eq!(scale.scale, schedule.size(k).to_string());
            let output = model.decode(canvas).clamp(-1.0, 1.0);
            let [_, _, height, width] = output.dims();
            assert_eq!(scale.pixels, [height, width]);
            let target = resample(images.clone(), ScaleSize { height, width }, Filter::Area);
            let (x, y) = (host(output.clone()), host(target.clone()));
            let n = 3 * height * width;
            let (mut psnr, mut similarity) = (Vec::new(), Vec::new());
            for (x, y) in x.chunks(n).zip(y.chunks(n)) {
                let mse = x.iter().zip(y).map(|(x, y)| (x - y).powi(2)).sum::<f64>() / n as f64;
                psnr.push(-10.0 * (mse / 4.0).log10());
                similarity.push(ssim(x, y, [height, width]));
            }
            near("psnr", scale.psnr_db, mean(&psnr));
            near("ssim", scale.ssim, mean(&similarity));

            let found = scale.distances["efficientnet-lite0"];
            let is_measured = !small || k == 2;
            assert_eq!((found.is_some(), height >= 32), (is_measured, is_measured));
            if let Some(found) = found {
                near("distance", found, mean(&host(network.distance(output, target))));
            }

            let of_scale = host(tokens.clone().slice_dim(1, schedule.range(k)).float());
            let mut counts = [0usize; CODES];
            of_scale.iter().for_each(|token| counts[*token as usize] += 1);
            all.extend(of_scale.iter().map(|token| *token as usize));
            let used = counts.iter().filter(|count| **count > 0).count();
            assert_eq!((scale.codes_used, scale.codes_dead), (used, CODES - used));
            // Five tokens at 1x1, 125 at 5x5.
            let usable = [5, CODES, CODES][k];
            assert_eq!((scale.codes_usable, scale.codes_dead_of_usable), (usable, usable - used));
            let p = counts.iter().filter(|n| **n > 0).map(|n| *n as f64 / of_scale.len() as f64);
            near("perplexity", scale.perplexity, p.map(|p| -p * p.ln()).sum::<f64>().exp());
        }
        let finest = &figures.by_scale[2];
        assert_eq!((figures.psnr_db, figures.ssim), (finest.psnr_db, finest.ssim));
        assert_eq!((figures.codes_used, figures.codes_dead), (all.len(), CODES - all.len()));
        // Unitary axes: the errors of all colors together are those of all channels.
        let errors = figures.by_color.iter().map(|color| 4.0 * 10f64.powf(-color.psnr_db / 10.0));
        let mse: f64 = errors.sum::<f64>() / 3.0;
        assert!(figures.psnr_db >= 10.0 * (4.0 / mse).log10() - 1e-4, "a mean of logarithms");
    }
}

#[test]
fn codes_that_a_scale_may_not_use_are_not_dead() {
    let schedule: ScaleSchedule = "1_5_16".parse().unwrap();
    let growth = CodebookGrowth::Geometric { first: 2, full_side: 16 };
    let model = tokenizer(Family::Flexvar, growth);
    // 5x5: 2 * 6^(ln 5 / ln 16) = 5.66. Where images are fewer than codes, they are what counts.
    for (images, usable) in [(1, [1, 6, 12]), (3, [2, 6, 12])] {
        let mut meter = TokenizerMeter::new(&schedule, CODES);
        meter.add(&model, pixels(images));
        for (scale, usable) in meter.figures().by_scale.iter().zip(usable) {
            assert_eq!(scale.codes_usable, usable, "{images} images, {scale:?}");
            assert_eq!(scale.codes_used + scale.codes_dead_of_usable, usable, "{scale:?}");
        }
    }
}

#[test]
fn what_was_not_measured_is_null() {
    let schedule: ScaleSchedule = "1_16".parse().unwrap();
    let model = tokenizer(Family::Flexvar, CodebookGrowth::None {});
    let mut meter = TokenizerMeter::new(&schedule, CODES);
    meter.add(&model, pixels(1));
    let json = serde_json::to_value(meter.figures()).unwrap();
    assert!(json["by_scale"][0].get("distances").is_none(), "nobody asked for them");
    let network = EfficientNetLite0::from_bytes(WEIGHTS.to_vec(), &Default::default()).unwrap();
    let distance = Distance::EfficientNetLite0(PerceptualDistance::new(network));
    let mut meter = TokenizerMeter::new(&schedule, CODES).with_distances(vec![distance]);
    meter.add(&model, pixels(1));
    let json = serde_json::to_value(meter.figures()).unwrap();
    assert!(json["by_scale"][0]["distances"]["efficientnet-lite0"].is_null());
    assert!(json["by_scale"][1]["distances"]["efficientnet-lite0"].as_f64().unwrap() > 0.0);
}
