//! Laws of editing, with small random models of both families.

use std::ops::ControlFlow;

use burn::tensor::{Int, Tensor, TensorData};
use burn_flex::Flex;
use sar_core::first_scale::{MaskLoss, MaskShare, Reveal};
use sar_core::{FirstScale, ScaleSchedule, ScaleSize, SeedTree};
use sar_model::{Backbone, BackboneConfig, BackboneShape, Init, PositionsConfig};
use sar_pipeline::{
    EditSettings, Mask, Part, Pipeline, Request as Sampling, RgbImage, TrainedBackbone,
    TrainedTokenizer, to_images,
};
use sar_rollout::{
    Choice, Guidance, KeptTokens, Region, Request, Sampler, generate, generate_watched,
};
use sar_tokenizer::{CodebookGrowth, Family, Phi, Tokenizer, TokenizerConfig};
use sar_weights::fill;

type B = Flex;

struct Models {
    tokenizer: Tokenizer<B>,
    backbone: Backbone<B>,
    scales: ScaleSchedule,
    pipeline: Pipeline<B>,
}

fn models(family: Family) -> Models {
    models_of(family, FirstScale::ClassToken {}, "1_2_4_8")
}

fn models_of(family: Family, first_scale: FirstScale, scales: &str) -> Models {
    let scales: ScaleSchedule = scales.parse().unwrap();
    let tokenizer = TokenizerConfig {
        family,
        base_channels: 32,
        channel_multipliers: vec![1, 1],
        res_blocks: 1,
        z_channels: 32,
        codebook_size: 32,
        codebook_dim: 16,
        codebook_growth: CodebookGrowth::None {},
    };
    let shape = BackboneShape { width: 24, heads: 2, first_scale, ..BackboneShape::published(2) };
    let positions = match family {
        Family::Flexvar => PositionsConfig::Grid { side: 32 },
        _ => PositionsConfig::PerToken { scales: scales.clone() },
    };
    let backbone =
        BackboneConfig { shape, classes: 3, codebook_size: 32, codebook_dim: 16, positions };
    let (device, seed, init) = (Default::default(), SeedTree::new(1), Init { adaln_gamma: 1e-3 });
    let tokenizer = TrainedTokenizer {
        model: sar_tokenizer::init(&tokenizer, sar_tokenizer::Init::Torch {}, seed, &device)
            .unwrap(),
        config: tokenizer,
    };
    let backbone = TrainedBackbone {
        model: match first_scale {
            FirstScale::ClassToken {} => sar_model::init(&backbone, init, seed, &device).unwrap(),
            // Open residual branches, so that tokens matter to each other.
            _ => {
                let empty = Backbone::new(&backbone, &device).unwrap();
                fill(empty, &sar_model::LAYOUT, |name, shape| {
                    let normals = seed.child(name).normals(shape.iter().product());
                    normals.into_iter().map(|x| 0.3 * x).collect()
                })
            }
        },
        config: backbone,
        classes: ["a", "b", "c"].map(String::from).to_vec(),
        scales: scales.clone(),
        sampler: SAMPLER,
        codebook: None,
    };
    let pipeline = Pipeline::new(tokenizer.clone(), backbone.clone(), &device);
    Models { tokenizer: tokenizer.model, backbone: backbone.model, scales, pipeline }
}

fn flexvar() -> Models {
    models(Family::Flexvar)
}

fn var() -> Models {
    models(Family::Var { phi: Phi::Shared(2) })
}

/// First scales of several tokens, of both kinds.
fn coarse() -> [Models; 2] {
    let masked = FirstScale::Masked {
        share: MaskShare::TruncatedNormal,
        loss: MaskLoss::Masked,
        steps: 3,
        reveal: Reveal::Confident,
    };
    let random = FirstScale::RandomOrder {};
    let family = Family::Var { phi: Phi::Shared(2) };
    [models_of(Family::Flexvar, masked, "3_5_8"), models_of(family, random, "2x3_4_8")]
}

const SAMPLER: Sampler =
    Sampler { guidance: Guidance::flexvar(2.0), choice: Choice::Sample { top_k: 0, top_p: 0.0 } };

fn ids(tokens_bl: Tensor<B, 2, Int>) -> Vec<i64> {
    tokens_bl.into_data().convert::<i64>().into_vec().unwrap()
}

/// The tokens of an image of noise, at other scales than the model's own if wanted.
fn source(models: &Models, scales: &ScaleSchedule) -> Tensor<B, 2, Int> {
    let (height, width) = (2 * scales.last().height, 2 * scales.last().width);
    let pixels = SeedTree::new(7).normals(3 * height * width);
    let pixels = TensorData::new(pixels, [1, 3, height, width]);
    let image = Tensor::<B, 4>::from_data(pixels, &Default::default());
    models.tokenizer.tokens(models.tokenizer.encode(image), scales)
}

#[test]
fn tokens_outside_the_region_are_exactly_those_of_the_source() {
    let wide: ScaleSchedule = flexvar().scales.with_last("8x12".parse().unwrap()).unwrap();
    for (models, scales) in
        [(flexvar(), flexvar().scales), (flexvar(), wide), (var(), var().scales)]
    {
        let size = ScaleSize { height: 2 * scales.last().height, width: 2 * scales.last().width };
        let region = Region::new(size, |x, y| x >= size.width / 2 && y < 6);
        let source = source(&models, &scales);
        let kept = KeptTokens::new(source.clone().repeat_dim(0, 2), &scales, &region, 2);
        let request = Request {
            labels: &[0, 2],
            streams: &[SeedTree::new(3), SeedTree::new(4)],
            schedule: &scales,
            sampler: SAMPLER,
            kept: Some(&kept),
        };
        let (device, mut painted) = (Default::default(), 0);
        let generated =
            generate_watched(&models.backbone, &models.tokenizer, request, &device, |k, _| {
                assert_eq!(k, painted);
                painted += 1;
                ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(painted, scales.len());
        let (found, source) = (ids(generated.tokens_bl()), ids(source));
        let anew: Vec<bool> = (0..scales.len())
            .flat_map(|k| {
                let anew = region.at(scales.size(k));
                anew.into_iter().map(move |anew| anew && k >= 2)
            })
            .collect();
        let l = source.len();
        for image in found.chunks(l) {
            for i in 0..l {
                assert!(anew[i] || image[i] == source[i], "token {i} of {scales}");
            }
            let changed = (0..l).filter(|i| image[*i] != source[*i]).count();
            assert!(changed > 0, "nothing was drawn anew");
        }
        assert_ne!(found[..l], found[l..]);
    }
}

#[test]
fn keeping_nothing_or_everything() {
    for models in [flexvar(), var()].into_iter().chain(coarse()) {
        let Models { tokenizer, backbone, scales, .. } = &models;
        let size = ScaleSize::square(16);
        let source = source(&models, scales);
        let (labels, streams, device) = ([1], [SeedTree::new(5)], Default::default());
        let tokens = |region: &Region, whole, choice| {
            let kept = KeptTokens::new(source.clone(), scales, region, whole);
            let sampler = Sampler { choice, ..SAMPLER };
            let (labels, streams) = (&labels, &streams);
            let request = Request { labels, streams, schedule: scales, sampler, kept: Some(&kept) };
            let whole = |_, _: &_| ControlFlow::Continue(());
            let generated = generate_watched(backbone, tokenizer, request, &device, whole).unwrap();
            (ids(generated.tokens_bl()), generated.canvas.unwrap())
        };
        let free = generate(backbone, tokenizer, &labels, scales, SAMPLER, &streams, &device);
        assert_eq!(tokens(&Region::all(size), 0, SAMPLER.choice).0, ids(free.tokens_bl()));

        let nothing = Region::new(size, |_, _| false);
        let expected = tokenizer.canvases(source.clone(), scales).pop().unwrap();
        // Mixtures of codes leave kept tokens alone as well.
        let smooth = Choice::MoreSmooth { top_k: 0, top_p: 0.0 };
        for (region, whole, choice) in [
            (&nothing, 0, SAMPLER.choice),
            (&Region::all(size), scales.len(), SAMPLER.choice),
            (&nothing, 0, smooth),
        ] {
            let (found, canvas) = tokens(region, whole, choice);
            assert_eq!(found, ids(source.clone()));
            canvas.into_data().assert_eq(&expected.clone().into_data(), true);
        }
    }
}

/// Tokens of a first scale are kept from the start: those that are drawn see them.
#[test]
fn a_coarse_first_scale_keeps_tokens_and_draws_the_others_around_them() {
    for models in coarse() {
        let Models { tokenizer, backbone, scales, .. } = &models;
        let size = ScaleSize::square(16);
        let region = Region::new(size, |x, _| x < 5);
        let anew = region.at(scales.size(0));
        let n = anew.len();
        let source = source(&models, scales);
        let device = Default::default();
        let labels = [1; 24];
        let streams: Vec<SeedTree> = (0..24).map(|i| SeedTree::new(5).at(i)).collect();
        let tokens = |source_1l: Tensor<B, 2, Int>| {
            let kept = KeptTokens::new(source_1l.repeat_dim(0, 24), scales, &region, 0);
            let (labels, streams) = (&labels[..], &streams[..]);
            let sampler = SAMPLER;
            let request = Request { labels, streams, schedule: scales, sampler, kept: Some(&kept) };
            let whole = |_, _: &_| ControlFlow::Continue(());
            let generated = generate_watched(backbone, tokenizer, request, &device, whole).unwrap();
            ids(generated.tokens[0].clone())
        };
        let found = tokens(source.clone());
        for image in found.chunks(n) {
            for (place, token) in image.iter().enumerate() {
                assert!(anew[place] || *token == ids(source.clone())[place], "place {place}");
            }
        }
        // Another token that is kept changes what is drawn.
        let other = (source.clone() + 1).remainder_scalar(32);
        let drawn = |tokens: Vec<i64>| -> Vec<i64> {
            tokens.into_iter().enumerate().filter(|(i, _)| anew[i % n]).map(|(_, t)| t).collect()
        };
        let (here, there) = (drawn(found), drawn(tokens(other)));
        assert!(!here.is_empty() && here.len() < 24 * n);
        assert_ne!(here, there);
    }
}

#[test]
fn previews_end_with_the_image_of_the_tokens() {
    let Models { tokenizer, scales, pipeline, .. } = var();
    let request = Sampling {
        labels: vec![0, 3],
        streams: vec![SeedTree::new(1), SeedTree::new(2)],
        scales: scales.clone(),
        sampler: SAMPLER,
    };
    let mut previews = Vec::new();
    pipeline.sample_previews(&request, |k, decode| {
        assert_eq!(k, previews.len());
        previews.push(decode());
        ControlFlow::Continue(())
    });
    assert_eq!(previews.len(), scales.len());
    assert_eq!(previews[3], pipeline.sample(&request));

    let tokens = pipeline.tokens(&request);
    assert_eq!(tokens.len(), 2);
    let flat: Vec<i64> = tokens.concat().into_iter().map(i64::from).collect();
    let flat = TensorData::new(flat, [2, scales.n_tokens()]);
    let tokens_bl = Tensor::<B, 2, Int>::from_data(flat, &Default::default());
    let canvas_bchw = tokenizer.canvases(tokens_bl, &scales).remove(3);
    assert_eq!(to_images(tokenizer.decode(canvas_bchw)), pipeline.sample(&request));

    // Whoever has seen enough stops the work.
    let mut seen = Vec::new();
    pipeline.sample_previews(&request, |k, _| {
        seen.push(k);
        if k == 1 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!(seen, [0, 1]);
}

fn settings(pipeline: &Pipeline<B>, part: Part) -> EditSettings {
    EditSettings {
        part,
        label: 1,
        keep_scales: None,
        blend: Some(0),
        scales: pipeline.backbone().scales.clone(),
        exact_size: false,
        sampler: SAMPLER,
        seed: 3,
    }
}

#[test]
fn a_box_of_any_size_is_drawn_and_nothing_else_changes() {
    let Models { pipeline, .. } = flexvar();
    // Wider than the model's square, and larger.
    let source = RgbImage::from_fn(64, 48, |x, y| image::Rgb([(3 * x) as u8, (5 * y) as u8, 90]));
    for corner in [[0, 0, 1, 1], [63, 47, 64, 48], [20, 10, 26, 13]] {
        let part = Part::Inside(Mask::rectangle([64, 48], corner));
        let edit = pipeline.edit(&source, &settings(&pipeline, part)).unwrap();
        // 16 x 16 pixels at 4 : 3.
        assert_eq!(edit.canvas().dimensions(), (18, 14));
        assert!(edit.notes().is_empty(), "{:?}", edit.notes());
        let (holed, results) = (edit.holed(), edit.draw(0..2));
        let anew = |x, y| holed.get_pixel(x, y) != edit.canvas().get_pixel(x, y);
        let n = (0..14).flat_map(|y| (0..18).map(move |x| (x, y))).filter(|(x, y)| anew(*x, *y));
        assert!((1..40).contains(&n.count()), "{corner:?}");
        for (x, y, pixel) in edit.canvas().enumerate_pixels() {
            if !anew(x, y) {
                assert_eq!(results[0].get_pixel(x, y), pixel);
            }
        }
        assert_ne!(results[0], results[1]);
    }
}

#[test]
fn margins_are_in_source_pixels_and_crops_are_said() {
    let (flexvar, var) = (flexvar().pipeline, var().pipeline);
    let source = RgbImage::from_pixel(640, 480, image::Rgb([200, 40, 90]));
    let margins = Part::Margins([0, 0, 160, 0]);
    let edit = flexvar.edit(&source, &settings(&flexvar, margins)).unwrap();
    // 18 x 14 and 160 of 640 pixels at the right: 4.5, rounded up to tokens of 2 pixels.
    assert_eq!(edit.canvas().dimensions(), (24, 14));
    let whole = Part::Inside(Mask::rectangle([640, 480], [0, 0, 640, 480]));
    let edit = var.edit(&source, &settings(&var, whole)).unwrap();
    assert_eq!(edit.canvas().dimensions(), (16, 16));
    let notes = edit.notes().join("\n");
    assert!(notes.contains("cropped to 480x480") && notes.contains("everything is drawn anew"));
    let nothing = Part::Outside(Mask::rectangle([640, 480], [0, 0, 640, 480]));
    let error = var.edit(&source, &settings(&var, nothing)).unwrap_err().to_string();
    assert!(error.contains("nothing is left to be drawn"), "{error}");
}
