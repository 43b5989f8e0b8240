//! Samples at every scale, coarse to fine.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use anyhow::{Context, Result};
use image::codecs::gif::{GifEncoder, Repeat};
use image::{Delay, DynamicImage, Frame};
use sar_pipeline::{RgbImage, enlarge, grid, magnification};

use crate::generation::{beside, save};

/// Hundredths of a second that a scale of the animation stays, and the last one.
const FRAME: u16 = 30;
const LAST_FRAME: u16 = 150;

/// Writes a contact sheet with a row for each image and a column for each scale, and an animation over the scales.
pub(crate) fn write_previews(out: &Path, by_scale: &[Vec<RgbImage>], columns: usize) -> Result<()> {
    let last = &by_scale[by_scale.len() - 1];
    let (width, height) = last[0].dimensions();
    // Coarse scales decode to small images.
    let full = |image: &RgbImage| enlarge(image, width, height);
    let rows = (0..last.len()).flat_map(|i| by_scale.iter().map(move |images| full(&images[i])));
    let magnify = magnification(width);
    save(
        &grid(&rows.collect::<Vec<_>>(), by_scale.len(), 4, magnify),
        &beside(out, "previews.png"),
    )?;

    let path = beside(out, "previews.gif");
    let context = || path.display().to_string();
    let file = File::create(&path).with_context(context)?;
    let mut encoder = GifEncoder::new(BufWriter::new(file));
    encoder.set_repeat(Repeat::Infinite).with_context(context)?;
    for (k, images) in by_scale.iter().enumerate() {
        let images: Vec<RgbImage> = images.iter().map(full).collect();
        let sheet = DynamicImage::from(grid(&images, columns, 4, magnify)).into_rgba8();
        let hundredths = if k + 1 == by_scale.len() { LAST_FRAME } else { FRAME };
        let delay = Delay::from_numer_denom_ms(10 * u32::from(hundredths), 1);
        encoder.encode_frame(Frame::from_parts(sheet, 0, 0, delay)).with_context(context)?;
    }
    Ok(())
}
