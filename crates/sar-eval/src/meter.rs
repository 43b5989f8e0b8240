//! How well a tokenizer does on images: PSNR, structural similarity, distances and code use by scale.
//!
//! Shapes: b batch, c channels, h w latent positions.

use burn::tensor::{Tensor, backend::Backend};
use sar_core::{Filter, ScaleSchedule, ScaleSize, resample};
use sar_data::{DataError, ImageBatch};
use sar_loss::{histogram_entropy, ssim};
use sar_tokenizer::{ColorAxes, ColorMoments, Tokenizer};

use crate::{Distance, TokenizerColor, TokenizerFigures, TokenizerScale};

/// Sums over images, by scale.
pub struct TokenizerMeter<B: Backend> {
    schedule: ScaleSchedule,
    distances: Vec<Distance<B>>,
    scales: Vec<Tally>,
    /// Colors of the images, and errors of the finest scale.
    colors: ColorMoments,
    errors: ColorMoments,
}

/// One scale.
struct Tally {
    /// Height and width that it decodes to; zeros until an image was measured.
    pixels: [usize; 2],
    /// PSNR of each image, dB.
    psnr: Vec<f64>,
    /// SSIM of each image.
    ssim: Vec<f64>,
    /// Each distance of each image; none for images that are too small.
    distances: Vec<Option<Vec<f64>>>,
    /// Uses of each code.
    counts: Vec<usize>,
}

impl<B: Backend> TokenizerMeter<B> {
    /// A meter of the scales of a schedule that has seen nothing, for tokenizers of so many codes.
    pub fn new(schedule: &ScaleSchedule, codes: usize) -> Self {
        let tally = |_| Tally {
            pixels: [0; 2],
            psnr: Vec::new(),
            ssim: Vec::new(),
            distances: Vec::new(),
            counts: vec![0; codes],
        };
        Self {
            schedule: schedule.clone(),
            distances: Vec::new(),
            scales: (0..schedule.len()).map(tally).collect(),
            colors: ColorMoments::default(),
            errors: ColorMoments::default(),
        }
    }

    /// The same meter, that also takes these distances of the images to come.
    ///
    /// # Panics
    /// If it has already seen images.
    pub fn with_distances(mut self, distances: Vec<Distance<B>>) -> Self {
        for tally in &mut self.scales {
            assert!(tally.psnr.is_empty(), "distances of all images or of none");
            tally.distances = vec![Some(Vec::new()); distances.len()];
        }
        self.distances = distances;
        self
    }

    /// Measures images, without distances.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn of(
        images: impl Iterator<Item = Result<ImageBatch, DataError>>,
        tokenizer: &Tokenizer<B>,
        schedule: &ScaleSchedule,
        device: &B::Device,
    ) -> Result<Self, DataError> {
        let mut meter = Self::new(schedule, tokenizer.codebook().size());
        for batch in images {
            meter.add(tokenizer, batch?.tensor(device));
        }
        Ok(meter)
    }

    /// Measures a batch at all scales.
    ///
    /// # Shapes
    /// - `pixels_bchw`: `[b, 3, H, W]`, pixels in [-1, 1]
    ///
    /// # Panics
    /// If the tokenizer has other codes than the meter is for, or images are no multiple of its
    /// downsampling.
    pub fn add(&mut self, tokenizer: &Tokenizer<B>, pixels_bchw: Tensor<B, 4>) {
        let tokens_bl = tokenizer.tokens(tokenizer.encode(pixels_bchw.clone()), &self.schedule);
        let canvases = tokenizer.canvases(tokens_bl.clone(), &self.schedule);
        for (k, canvas_bchw) in canvases.into_iter().enumerate() {
            let (output_bchw, target_bchw) =
                comparable(tokenizer.decode(canvas_bchw), pixels_bchw.clone());
            let error_bchw = output_bchw.clone() - target_bchw.clone();
            let tally = &mut self.scales[k];
            let [_, _, height, width] = output_bchw.dims();
            tally.pixels = [height, width];
            tally.psnr.extend(psnr(error_bchw.clone()));
            tally.ssim.extend(host(ssim(output_bchw.clone(), target_bchw.clone())));
            for (distance, values) in self.distances.iter().zip(&mut tally.distances) {
                let found = distance.of(output_bchw.clone(), target_bchw.clone());
                *values = values.take().zip(found).map(|(values, found)| [values, found].concat());
            }
            if k + 1 == self.schedule.len() {
                self.errors.add(error_bchw);
                self.colors.add(target_bchw);
            }
            let tokens_bn = tokens_bl.clone().slice_dim(1, self.schedule.range(k));
            let tokens = tokens_bn.into_data().convert::<i64>().into_vec::<i64>().expect("i64");
            tokens.iter().for_each(|token| tally.counts[*token as usize] += 1);
        }
    }

    /// The number of images that were measured.
    pub fn images(&self) -> usize {
        self.scales.last().map_or(0, |tally| tally.psnr.len())
    }

    /// The mean PSNR of the finest scale, dB; not a number if there was no image.
    pub fn psnr_db(&self) -> f64 {
        self.scales.last().map_or(f64::NAN, |tally| mean(&tally.psnr))
    }

    /// The finest scale's errors by axes of color.
    pub fn by_color(&self) -> Vec<TokenizerColor> {
        let axes = ColorAxes::of_covariance(self.colors.covariance());
        let axis = |(axis, deviation): ([f64; 3], f64)| {
            let error = self.errors.mean_square_along(axis);
            TokenizerColor {
                axis,
                deviation,
                psnr_db: decibels(error),
                error_share: error / (deviation * deviation),
            }
        };
        axes.axes().into_iter().zip(axes.deviations()).map(axis).collect()
    }

    /// All figures.
    ///
    /// # Panics
    /// If no image was measured.
    pub fn figures(&self) -> TokenizerFigures {
        assert!(self.images() > 0, "figures of no images");
        let used = |counts: &[usize]| counts.iter().filter(|n| **n > 0).count();
        let codes = self.scales[0].counts.len();
        let scale = |(k, tally): (usize, &Tally)| {
            let values = self.distances.iter().zip(&tally.distances);
            let distance = |(distance, values): (&Distance<B>, &Option<Vec<f64>>)| {
                (distance.name().to_owned(), values.as_deref().map(mean))
            };
            TokenizerScale {
                scale: self.schedule.size(k).to_string(),
                pixels: tally.pixels,
                psnr_db: mean(&tally.psnr),
                ssim: mean(&tally.ssim),
                distances: values.map(distance).collect(),
                codes_used: used(&tally.counts),
                codes_dead: codes - used(&tally.counts),
                perplexity: histogram_entropy(&tally.counts).exp(),
            }
        };
        let by_scale: Vec<TokenizerScale> = self.scales.iter().enumerate().map(scale).collect();
        let total: Vec<usize> = (0..codes)
            .map(|code| self.scales.iter().map(|tally| tally.counts[code]).sum())
            .collect();
        TokenizerFigures {
            psnr_db: self.psnr_db(),
            ssim: by_scale[by_scale.len() - 1].ssim,
            codes_used: used(&total),
            codes_dead: codes - used(&total),
            codes,
            by_scale,
            by_color: self.by_color(),
        }
    }
}

/// An output whose pixels are clamped, and the target at its size.
fn comparable<B: Backend>(
    output_bchw: Tensor<B, 4>,
    target_bchw: Tensor<B, 4>,
) -> (Tensor<B, 4>, Tensor<B, 4>) {
    let [_, _, height, width] = output_bchw.dims();
    let target_bchw = resample(target_bchw, ScaleSize { height, width }, Filter::Area);
    (output_bchw.clamp(-1.0, 1.0), target_bchw)
}

/// The PSNR of each image, dB.
fn psnr<B: Backend>(error_bchw: Tensor<B, 4>) -> Vec<f64> {
    let [b, c, height, width] = error_bchw.dims();
    let error = error_bchw.square().reshape([b, c * height * width]).mean_dim(1);
    host(error.reshape([b])).into_iter().map(decibels).collect()
}

/// Pixels span 2, so that the peak is 2^2.
fn decibels(mse: f64) -> f64 {
    match mse {
        // `max` would turn what is not a number into one.
        mse if mse < 1e-12 => 10.0 * (4.0f64 / 1e-12).log10(),
        mse => 10.0 * (4.0 / mse).log10(),
    }
}

fn host<B: Backend>(values_b: Tensor<B, 1>) -> Vec<f64> {
    let values = values_b.into_data().convert::<f32>().into_vec::<f32>().expect("f32");
    values.into_iter().map(f64::from).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn_flex::Flex;

    #[test]
    fn psnr_by_hand() {
        let device = Default::default();
        let target = Tensor::<Flex, 4>::zeros([2, 3, 4, 4], &device);
        // Off by 0.2 everywhere: 10 log10(4 / 0.04) = 20 dB; the second image is off by 5, clamped to 1.
        let output = Tensor::cat(
            vec![
                Tensor::full([1, 3, 2, 2], 0.2, &device),
                Tensor::<Flex, 4>::full([1, 3, 2, 2], 5.0, &device),
            ],
            0,
        );
        let of = |output, target| {
            let (output, target) = comparable(output, target);
            psnr(output - target)
        };
        let values = of(output, target);
        assert!((values[0] - 20.0).abs() < 1e-4, "{values:?}");
        assert!((values[1] - 10.0 * 4f64.log10()).abs() < 1e-4, "{values:?}");
        let same = of(
            Tensor::<Flex, 4>::zeros([1, 3, 4, 4], &device),
            Tensor::zeros([1, 3, 4, 4], &device),
        );
        assert!((same[0] - 10.0 * 4e12f64.log10()).abs() < 1e-9);
        let bad = Tensor::<Flex, 4>::full([1, 3, 4, 4], f32::NAN, &device);
        assert!(of(bad, Tensor::zeros([1, 3, 4, 4], &device))[0].is_nan());
    }

    #[test]
    fn colors_that_are_missing_are_seen() {
        let device = Default::default();
        let schedule: ScaleSchedule = "1".parse().unwrap();
        let mut meter = TokenizerMeter::<Flex>::new(&schedule, 1);
        // Red varies by 0.8, blue by 0.2; blue is not in the output.
        let mut image = [[0.8, -0.8, 0.8, -0.8], [0.0; 4], [0.2, 0.2, -0.2, -0.2f32]].concat();
        let target =
            Tensor::<Flex, 1>::from_floats(image.as_slice(), &device).reshape([1, 3, 2, 2]);
        image[8..].fill(0.0);
        let output =
            Tensor::<Flex, 1>::from_floats(image.as_slice(), &device).reshape([1, 3, 2, 2]);
        let (output, target) = comparable::<Flex>(output, target);
        meter.errors.add(output - target.clone());
        meter.colors.add(target);
        let colors = meter.by_color();
        assert!((colors[0].deviation - 0.8).abs() < 1e-6 && colors[0].error_share < 1e-9);
        assert!((colors[1].deviation - 0.2).abs() < 1e-6);
        assert!((colors[1].error_share - 1.0).abs() < 1e-5, "{}", colors[1].error_share);
        assert!((colors[1].psnr_db - 20.0).abs() < 1e-3);
    }
}
