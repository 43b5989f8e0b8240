//! How well a tokenizer does on held-out images: PSNR and code use by scale.
//!
//! Shapes: b batch, c channels, h w latent positions.

use burn::tensor::{Tensor, backend::Backend};
use sar_core::{Filter, ScaleSchedule, ScaleSize, resample};
use sar_data::{DataError, Loader};
use sar_loss::histogram_entropy;
use sar_tokenizer::{ColorAxes, ColorMoments, Tokenizer};

use crate::report::{TokenizerColor, TokenizerReport, TokenizerScale};

/// Sums over images, by scale.
pub(crate) struct TokenizerMeter {
    schedule: ScaleSchedule,
    /// PSNR of each image, dB, by scale.
    psnr: Vec<Vec<f64>>,
    /// Uses of each code, by scale.
    counts: Vec<Vec<usize>>,
    /// Colors of the images, and errors of the finest scale.
    colors: ColorMoments,
    errors: ColorMoments,
}

impl TokenizerMeter {
    pub(crate) fn new(schedule: &ScaleSchedule, codes: usize) -> Self {
        let n = schedule.len();
        Self {
            schedule: schedule.clone(),
            psnr: vec![Vec::new(); n],
            counts: vec![vec![0; codes]; n],
            colors: ColorMoments::default(),
            errors: ColorMoments::default(),
        }
    }

    /// Measures held-out images.
    ///
    /// # Errors
    /// If they cannot be read.
    pub(crate) fn of<B: Backend>(
        images: Loader,
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

    /// Measures a batch, pixels in [-1, 1], at all scales.
    pub(crate) fn add<B: Backend>(&mut self, tokenizer: &Tokenizer<B>, pixels_bchw: Tensor<B, 4>) {
        let tokens_bl = tokenizer.tokens(tokenizer.encode(pixels_bchw.clone()), &self.schedule);
        let canvases = tokenizer.canvases(tokens_bl.clone(), &self.schedule);
        for (k, canvas_bchw) in canvases.into_iter().enumerate() {
            let (error_bchw, target_bchw) =
                clamped_error(tokenizer.decode(canvas_bchw), pixels_bchw.clone());
            self.psnr[k].extend(psnr(error_bchw.clone()));
            if k + 1 == self.schedule.len() {
                self.errors.add(error_bchw);
                self.colors.add(target_bchw);
            }
            let tokens_bn = tokens_bl.clone().slice_dim(1, self.schedule.range(k));
            let tokens = tokens_bn.into_data().convert::<i64>().into_vec::<i64>().expect("i64");
            tokens.iter().for_each(|token| self.counts[k][*token as usize] += 1);
        }
    }

    /// The mean PSNR of the finest scale, dB.
    pub(crate) fn psnr_db(&self) -> f64 {
        self.psnr.last().map_or(f64::NAN, |values| mean(values))
    }

    /// The finest scale's errors by axes of color.
    pub(crate) fn by_color(&self) -> Vec<TokenizerColor> {
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

    pub(crate) fn report(&self) -> TokenizerReport {
        let codes = self.counts[0].len();
        let used = |counts: &[usize]| counts.iter().filter(|n| **n > 0).count();
        let by_scale = (0..self.schedule.len()).map(|k| TokenizerScale {
            scale: self.schedule.size(k).to_string(),
            psnr_db: mean(&self.psnr[k]),
            codes_used: used(&self.counts[k]),
            perplexity: histogram_entropy(&self.counts[k]).exp(),
        });
        let total: Vec<usize> =
            (0..codes).map(|code| self.counts.iter().map(|scale| scale[code]).sum()).collect();
        TokenizerReport {
            psnr_db: self.psnr_db(),
            average_psnr_db: None,
            codes_used: used(&total),
            codes,
            by_scale: by_scale.collect(),
            by_color: self.by_color(),
        }
    }
}

/// The error of an output whose pixels are clamped, and the target at its size.
fn clamped_error<B: Backend>(
    output_bchw: Tensor<B, 4>,
    target_bchw: Tensor<B, 4>,
) -> (Tensor<B, 4>, Tensor<B, 4>) {
    let [_, _, height, width] = output_bchw.dims();
    let target_bchw = resample(target_bchw, ScaleSize { height, width }, Filter::Area);
    (output_bchw.clamp(-1.0, 1.0) - target_bchw.clone(), target_bchw)
}

/// The PSNR of each image, dB.
fn psnr<B: Backend>(error_bchw: Tensor<B, 4>) -> Vec<f64> {
    let [b, c, height, width] = error_bchw.dims();
    let error = error_bchw.square().reshape([b, c * height * width]).mean_dim(1);
    let errors = error.into_data().convert::<f32>().into_vec::<f32>().expect("f32");
    errors.iter().map(|mse| decibels(f64::from(*mse))).collect()
}

/// Pixels span 2, so that the peak is 2^2.
fn decibels(mse: f64) -> f64 {
    match mse {
        // `max` would turn what is not a number into one.
        mse if mse < 1e-12 => 10.0 * (4.0f64 / 1e-12).log10(),
        mse => 10.0 * (4.0 / mse).log10(),
    }
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
        let of = |output, target| psnr(clamped_error(output, target).0);
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
        let mut meter = TokenizerMeter::new(&schedule, 1);
        // Red varies by 0.8, blue by 0.2; blue is not in the output.
        let mut image = [[0.8, -0.8, 0.8, -0.8], [0.0; 4], [0.2, 0.2, -0.2, -0.2f32]].concat();
        let target =
            Tensor::<Flex, 1>::from_floats(image.as_slice(), &device).reshape([1, 3, 2, 2]);
        image[8..].fill(0.0);
        let output =
            Tensor::<Flex, 1>::from_floats(image.as_slice(), &device).reshape([1, 3, 2, 2]);
        let (error, target) = clamped_error::<Flex>(output, target);
        meter.errors.add(error);
        meter.colors.add(target);
        let colors = meter.by_color();
        assert!((colors[0].deviation - 0.8).abs() < 1e-6 && colors[0].error_share < 1e-9);
        assert!((colors[1].deviation - 0.2).abs() < 1e-6);
        assert!((colors[1].error_share - 1.0).abs() < 1e-5, "{}", colors[1].error_share);
        assert!((colors[1].psnr_db - 20.0).abs() < 1e-3);
    }
}
