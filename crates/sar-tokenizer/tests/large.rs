//! Images that are too large for whole maps: the same numbers, in bands of rows.

use burn::backend::Autodiff;
use burn::tensor::{Distribution, Tensor, TensorData};
use burn_flex::Flex;
use sar_core::SeedTree;
use sar_tokenizer::{
    CodebookGrowth, Family, Init, MapLimits, Phi, Tokenizer, TokenizerConfig, init,
};

type A = Autodiff<Flex>;

/// Every image in bands.
fn bands(elements: usize) -> MapLimits {
    MapLimits { whole: 0, band: elements }
}

fn config(family: Family, channel_multipliers: &[usize]) -> TokenizerConfig {
    TokenizerConfig {
        family,
        base_channels: 32,
        channel_multipliers: channel_multipliers.to_vec(),
        res_blocks: 1,
        z_channels: 8,
        codebook_size: 16,
        codebook_dim: 4,
        codebook_growth: CodebookGrowth::None {},
    }
}

fn tokenizer(config: &TokenizerConfig) -> Tokenizer<Flex> {
    init(config, Init::Torch {}, SeedTree::new(5), &Default::default()).unwrap()
}

fn normals<const D: usize>(seed: u64, shape: [usize; D]) -> Tensor<Flex, D> {
    let values = SeedTree::new(seed).normals(shape.iter().product());
    Tensor::from_data(TensorData::new(values, shape), &Default::default())
}

fn largest<const D: usize>(x: Tensor<Flex, D>) -> f32 {
    x.abs().max().into_scalar()
}

/// The largest difference, of numbers as large as `scale`.
#[track_caller]
fn same(found: Tensor<Flex, 4>, expected: &Tensor<Flex, 4>) {
    assert_eq!(found.dims(), expected.dims());
    let (off, scale) = (largest(found - expected.clone()), largest(expected.clone()));
    // A seam that could be seen would be 2/255 in numbers of [-1, 1].
    assert!(off <= 1e-5 * scale.max(1.0), "off by {off} of {scale}");
}

#[test]
fn bands_give_the_numbers_of_whole_maps() {
    for (family, multipliers) in [
        (Family::Flexvar, &[1, 2, 1][..]),
        (Family::Var { phi: Phi::Shared(2) }, &[1, 1, 2, 1]),
        (Family::Flexvar, &[2]),
    ] {
        let config = config(family, multipliers);
        let (model, n) = (tokenizer(&config), config.downsampling());
        // An odd number of latent rows, more than square.
        let (h, w) = (5, 3);
        let canvas = normals(1, [2, 4, h, w]);
        let image = normals(2, [2, 3, h * n, w * n]) * 0.5;
        let (decoded, encoded) = (model.decode(canvas.clone()), model.encode(image.clone()));
        let row = 32 * w * n;
        for elements in [1, 4 * row, 9 * row, 16 * row, usize::MAX] {
            same(model.decode_within(canvas.clone(), bands(elements)), &decoded);
            same(model.encode_within(image.clone(), bands(elements)), &encoded);
        }
    }
}

/// With numbers as an image has them, not noise alone: a constant part makes group norms subtract.
#[test]
fn a_smooth_image_has_no_seams() {
    let config = config(Family::Flexvar, &[1, 1, 2]);
    let model = tokenizer(&config);
    let x = Tensor::<Flex, 1>::from_floats(
        (0..64 * 64).map(|at| (at / 64) as f32 / 64.0 + 0.7).collect::<Vec<_>>().as_slice(),
        &Default::default(),
    );
    let image = x.reshape([1, 1, 64, 64]).repeat_dim(1, 3);
    let encoded = model.encode(image.clone());
    same(model.encode_within(image, bands(32 * 64 * 8)), &encoded);
    let decoded = model.decode(encoded.clone());
    same(model.decode_within(encoded, bands(32 * 64 * 8)), &decoded);
}

#[test]
fn a_batch_in_parts_is_the_batch() {
    let config = config(Family::Flexvar, &[1, 1]);
    let model = tokenizer(&config);
    let (canvas, image) = (normals(1, [5, 4, 4, 6]), normals(2, [5, 3, 8, 12]));
    let two = MapLimits { whole: 2 * 32 * 8 * 12, band: 1 };
    same(model.decode_within(canvas.clone(), two), &model.decode(canvas));
    same(model.encode_within(image.clone(), two), &model.encode(image));
}

/// Nothing is read back on the way.
#[test]
fn gradients_pass_bands() {
    let device = Default::default();
    let config = config(Family::Flexvar, &[1, 2]);
    let model: Tokenizer<A> = init(&config, Init::Torch {}, SeedTree::new(5), &device).unwrap();
    let canvas = Tensor::<A, 4>::random([1, 4, 5, 3], Distribution::Normal(0.0, 1.0), &device)
        .require_grad();
    let weights = Tensor::<A, 4>::from_inner(normals(3, [1, 3, 10, 6]));
    let gradient = |limits| {
        let image = model.decode_within(canvas.clone(), limits);
        canvas.grad(&(image * weights.clone()).sum().backward()).unwrap()
    };
    let (found, expected) = (gradient(bands(1)), gradient(MapLimits::default()));
    let (off, scale) = (largest(found - expected.clone()), largest(expected));
    assert!(off <= 1e-4 * scale, "off by {off} of {scale}");
}

/// The peak of the process that computes one of the tests below, which run alone:
/// `cargo xtask test --test large decoded_in -- --ignored --nocapture`, and `encoded_in`.
fn fits_4_gb() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kb: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    println!("{kb} kB at the peak");
    assert!(kb < 4 << 20, "{kb} kB");
}

#[test]
#[ignore = "takes minutes, and reads the peak of the whole process"]
fn an_image_of_2048_px_is_decoded_in_4_gb() {
    let model = tokenizer(&TokenizerConfig::flexvar());
    let image = model.decode(normals(1, [1, 32, 128, 128]));
    assert_eq!(image.dims(), [1, 3, 2048, 2048]);
    fits_4_gb();
}

#[test]
#[ignore = "takes minutes, and reads the peak of the whole process"]
fn an_image_of_2048_px_is_encoded_in_4_gb() {
    let model = tokenizer(&TokenizerConfig::flexvar());
    let latents = model.encode(normals(2, [1, 3, 2048, 2048]) * 0.5);
    assert_eq!(latents.dims(), [1, 32, 128, 128]);
    fits_4_gb();
}
