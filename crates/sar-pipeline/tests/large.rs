//! Pictures too large for whole maps, with the weights that come along.

use std::path::Path;

use burn_flex::Flex;
use sar_pipeline::{Known, TrainedTokenizer, to_images, to_tensor};
use sar_tokenizer::MapLimits;
use sar_weights::WeightsFile;

/// Bands of several sizes, of a picture with flat parts and edges.
#[test]
fn no_band_of_a_picture_shows() {
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets");
    let (device, known) = (Default::default(), Known::default());
    let file = WeightsFile::open(&assets.join("weights/emoji/tokenizer.safetensors")).unwrap();
    let model = TrainedTokenizer::<Flex>::load(file, &known, &device).unwrap().value.model;
    let picture = image::open(assets.join("readme/edits.png")).unwrap().into_rgb8();
    let picture = image::imageops::crop_imm(&picture, 0, 0, 256, 128).to_image();
    let pixels = to_tensor(&[picture], &device);
    let encoded = model.encode(pixels.clone());
    let decoded = model.decode(encoded.clone());
    for rows in [4, 16, 50] {
        let limits = MapLimits { whole: 0, band: 32 * 256 * rows };
        let off = |found, expected| {
            let off: burn::tensor::Tensor<Flex, 4> = found - expected;
            off.abs().max().into_scalar()
        };
        let in_bands = model.decode_within(encoded.clone(), limits);
        // A level of 255 is 2/255 of numbers in [-1, 1].
        let (latents, colors) = (
            off(model.encode_within(pixels.clone(), limits), encoded.clone()),
            off(in_bands.clone(), decoded.clone()),
        );
        assert!(latents < 1e-4 && colors < 1e-4, "{rows} rows: off by {latents}, {colors}");
        let [found, expected] = [in_bands, decoded.clone()].map(|image| to_images(image).remove(0));
        let levels = found.iter().zip(expected.iter()).map(|(x, y)| x.abs_diff(*y));
        assert!(levels.max().unwrap() <= 1, "rounding to levels apart");
    }
}
