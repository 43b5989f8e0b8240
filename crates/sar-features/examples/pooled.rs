//! Times `pooled` on 64 images of 160 px: `pooled [IMAGES] [SIDE]`, seconds of each of six calls.

use std::error::Error;
use std::time::Instant;

use burn::tensor::{Distribution, Tensor};
use burn_flex::Flex;
use sar_features::{EfficientNetLite0, WEIGHTS};

fn main() -> Result<(), Box<dyn Error>> {
    let device = Default::default();
    let mut numbers = std::env::args().skip(1).map(|text| text.parse::<usize>());
    let (n, side) = (numbers.next().unwrap_or(Ok(64))?, numbers.next().unwrap_or(Ok(160))?);
    let net = EfficientNetLite0::<Flex>::from_bytes(WEIGHTS.to_vec(), &device)?;
    let images_bchw = Tensor::random([n, 3, side, side], Distribution::Uniform(-1.0, 1.0), &device);
    for _ in 0..6 {
        let start = Instant::now();
        net.pooled(images_bchw.clone()).into_data();
        println!("{:.3}", start.elapsed().as_secs_f64());
    }
    Ok(())
}
