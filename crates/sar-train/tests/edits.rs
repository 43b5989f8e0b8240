//! Laws of editing, with small random models of both families.

use burn::tensor::{Int, Tensor, TensorData};
use burn_flex::Flex;
use sar_core::{ScaleSchedule, ScaleSize, SeedTree};
use sar_model::Backbone;
use sar_rollout::{Choice, Guidance, Kept, Region, Request, Sampler, generate, generate_watched};
use sar_tokenizer::Tokenizer;
use sar_train::Recipe;
use sar_train::sampling::{SampleRequest, sample_images, sample_previews};

type B = Flex;

struct Models {
    tokenizer: Tokenizer<B>,
    backbone: Backbone<B>,
    scales: ScaleSchedule,
}

fn models(family: &[&str]) -> Models {
    let mut settings = vec![
        "data.side=16",
        "tokenizer.model.channel_multipliers=[1,1]",
        "tokenizer.model.codebook_size=32",
        "backbone.depth=2",
        "backbone.width=24",
        "backbone.heads=2",
        "backbone.schedule.scales=1_2_4_8",
    ];
    settings.extend(family);
    let settings: Vec<String> = settings.into_iter().map(String::from).collect();
    let recipe = Recipe::load("emoji-quick", &settings).unwrap();
    let (device, seed) = (Default::default(), SeedTree::new(1));
    Models {
        tokenizer: sar_tokenizer::init(&recipe.tokenizer.model, seed, &device).unwrap(),
        backbone: sar_model::init(&recipe.backbone_config(3), recipe.backbone.init, seed, &device)
            .unwrap(),
        scales: recipe.scales().clone(),
    }
}

fn flexvar() -> Models {
    models(&[])
}

fn var() -> Models {
    models(&[
        "tokenizer.model.family={ kind = \"var\", phi = { shared = 2 } }",
        "tokenizer.loss.coarse=0",
        "backbone.positions={ kind = \"per-token\" }",
    ])
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
        let kept = Kept::new(source.clone().repeat_dim(0, 2), &scales, &region, 2);
        let request = Request {
            labels: &[0, 2],
            images: &[SeedTree::new(3), SeedTree::new(4)],
            schedule: &scales,
            sampler: SAMPLER,
            kept: Some(&kept),
        };
        let (device, mut painted) = (Default::default(), 0);
        let generated =
            generate_watched(&models.backbone, &models.tokenizer, request, &device, |k, _| {
                assert_eq!(k, painted);
                painted += 1;
            });
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
    for models in [flexvar(), var()] {
        let Models { tokenizer, backbone, scales } = &models;
        let size = ScaleSize::square(16);
        let source = source(&models, scales);
        let (labels, images, device) = ([1], [SeedTree::new(5)], Default::default());
        let tokens = |region: &Region, whole, choice| {
            let kept = Kept::new(source.clone(), scales, region, whole);
            let sampler = Sampler { choice, ..SAMPLER };
            let (labels, images) = (&labels, &images);
            let request = Request { labels, images, schedule: scales, sampler, kept: Some(&kept) };
            let generated = generate_watched(backbone, tokenizer, request, &device, |_, _| {});
            (ids(generated.tokens_bl()), generated.canvas.unwrap())
        };
        let free = generate(backbone, tokenizer, &labels, scales, SAMPLER, &images, &device);
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

#[test]
fn previews_end_with_the_image() {
    let Models { tokenizer, backbone, scales } = var();
    let request = SampleRequest::<B> {
        labels: vec![0, 3],
        streams: vec![SeedTree::new(1), SeedTree::new(2)],
        scales: scales.clone(),
        sampler: SAMPLER,
        kept: None,
    };
    let device = Default::default();
    let mut previews = Vec::new();
    sample_previews(&tokenizer, &backbone, &request, &device, |k, images| {
        assert_eq!(k, previews.len());
        previews.push(images);
    });
    assert_eq!(previews.len(), scales.len());
    assert_eq!(previews[3], sample_images(&tokenizer, &backbone, &request, &device));
}
