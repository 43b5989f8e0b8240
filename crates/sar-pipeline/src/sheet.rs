//! Contact sheets of what a tokenizer makes of images.

use burn::tensor::backend::Backend;
use sar_core::ScaleSchedule;
use sar_tokenizer::Tokenizer;

use crate::{RgbImage, enlarge, grid, magnification, to_images, to_tensor};

/// A sheet with a column for each image: the originals, and below them their reconstructions at every
/// scale, finest first, those of smaller sizes enlarged. `batch` images go through the tokenizer together.
///
/// # Panics
/// If there are no images or no batch, the images differ in size, or their size is no multiple of the
/// tokenizer's downsampling.
pub fn reconstructions<B: Backend>(
    tokenizer: &Tokenizer<B>,
    originals: &[RgbImage],
    scales: &ScaleSchedule,
    batch: usize,
    device: &B::Device,
) -> RgbImage {
    let (width, height) = originals.first().expect("a sheet of no images").dimensions();
    let mut rows: Vec<Vec<RgbImage>> = vec![Vec::new(); scales.len()];
    for some in originals.chunks(batch) {
        let h_bchw = tokenizer.encode(to_tensor(some, device));
        let tokens_bl = tokenizer.tokens(h_bchw, scales);
        let canvases = tokenizer.canvases(tokens_bl, scales).into_iter().rev();
        for (row, canvas_bchw) in rows.iter_mut().zip(canvases) {
            let decoded = to_images(tokenizer.decode(canvas_bchw));
            row.extend(decoded.iter().map(|image| enlarge(image, width, height)));
        }
    }
    rows.insert(0, originals.to_vec());
    grid(&rows.concat(), originals.len(), 4, magnification(width))
}
