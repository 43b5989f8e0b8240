//! How well a tokenizer does on images: PSNR, structural similarity, distances and code use by scale.
//!
//! Shapes: b batch, c channels, h w latent positions.

use burn::tensor::{Tensor, backend::Backend};
use sar_core::{Filter, ScaleSchedule, ScaleSize, resample};
use sar_loss::{histogram_entropy, ssim};
use sar_tokenizer::{ColorAxes, ColorMoments, Tokenizer};
use serde::{Deserialize, Serialize};

use crate::{Distance, TokenizerColor, TokenizerFigures, TokenizerScale};

/// Images whose colors deviate by less do not vary, pixels spanning 2: an eighth of a level of 8 bits.
const LEAST_DEVIATION: f64 = 1e-3;

/// Measures images, and what it has found so far.
pub struct TokenizerMeter<B: Backend> {
    schedule: ScaleSchedule,
    distances: Vec<Distance<B>>,
    sums: TokenizerSums,
}

/// What was found of some images.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TokenizerSums {
    scales: Vec<Tally>,
    /// Colors of each image, and errors of the finest scale: their sums do not depend on how images came
    /// in batches.
    colors: Vec<ColorMoments>,
    errors: Vec<ColorMoments>,
}

/// One scale.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Tally {
    /// Height and width that it decodes to; zeros until an image was measured.
    pixels: [usize; 2],
    /// PSNR of each image, dB.
    psnr: Vec<f64>,
    /// SSIM of each image.
    ssim: Vec<f64>,
    /// Each distance of each image; none for images that are too small.
    distances: Vec<Option<Vec<f64>>>,
    /// Codes that the scale may use; 0 until an image was measured.
    n_codes: usize,
    /// Uses of each code.
    counts: Vec<usize>,
}

impl TokenizerSums {
    /// Of no images.
    fn new(scales: usize, codes: usize, distances: usize) -> Self {
        let tally = Tally {
            pixels: [0; 2],
            psnr: Vec::new(),
            ssim: Vec::new(),
            distances: vec![Some(Vec::new()); distances],
            n_codes: 0,
            counts: vec![0; codes],
        };
        let (colors, errors) = Default::default();
        Self { scales: vec![tally; scales], colors, errors }
    }

    fn codes(&self) -> usize {
        self.scales.first().map_or(0, |tally| tally.counts.len())
    }
}

impl Tally {
    fn take(&mut self, Self { pixels, psnr, ssim, distances, n_codes, counts }: Self) {
        self.pixels = pixels;
        self.n_codes = n_codes;
        self.psnr.extend(psnr);
        self.ssim.extend(ssim);
        for (values, found) in self.distances.iter_mut().zip(distances) {
            *values = values.take().zip(found).map(|(values, found)| [values, found].concat());
        }
        self.counts.iter_mut().zip(counts).for_each(|(n, more)| *n += more);
    }

    /// As many different codes as its tokens can have used at most.
    fn usable(&self) -> usize {
        self.n_codes.min(self.counts.iter().sum())
    }
}

impl<B: Backend> TokenizerMeter<B> {
    /// A meter of the scales of a schedule that has seen nothing, for tokenizers of so many codes.
    pub fn new(schedule: &ScaleSchedule, codes: usize) -> Self {
        let sums = TokenizerSums::new(schedule.len(), codes, 0);
        Self { schedule: schedule.clone(), distances: Vec::new(), sums }
    }

    /// The same meter, that also takes these distances of the images to come.
    ///
    /// # Panics
    /// If it has already seen images.
    pub fn with_distances(mut self, distances: Vec<Distance<B>>) -> Self {
        assert!(self.images() == 0, "distances of all images or of none");
        self.sums = TokenizerSums::new(self.schedule.len(), self.sums.codes(), distances.len());
        self.distances = distances;
        self
    }

    /// Measures a batch at all scales.
    ///
    /// # Panics
    /// As [`see`](Self::see).
    pub fn add(&mut self, tokenizer: &Tokenizer<B>, pixels_bchw: Tensor<B, 4>) {
        self.take(self.see(tokenizer, pixels_bchw));
    }

    /// Adds what a meter like this one has [seen](Self::see), here or elsewhere.
    pub fn take(&mut self, seen: TokenizerSums) {
        let TokenizerSums { scales, colors, errors } = seen;
        self.sums.scales.iter_mut().zip(scales).for_each(|(tally, seen)| tally.take(seen));
        self.sums.colors.extend(colors);
        self.sums.errors.extend(errors);
    }

    /// What there is to see of a batch at all scales, without adding it.
    ///
    /// # Shapes
    /// - `pixels_bchw`: `[b, 3, H, W]`, pixels in [-1, 1]
    ///
    /// # Panics
    /// If the tokenizer has other codes than the meter is for, or images are no multiple of its
    /// downsampling.
    pub fn see(&self, tokenizer: &Tokenizer<B>, pixels_bchw: Tensor<B, 4>) -> TokenizerSums {
        let (scales, codes) = (self.schedule.len(), self.sums.codes());
        let mut seen = TokenizerSums::new(scales, codes, self.distances.len());
        let tokens_bl = tokenizer.tokens(tokenizer.encode(pixels_bchw.clone()), &self.schedule);
        let canvases = tokenizer.canvases(tokens_bl.clone(), &self.schedule);
        for (k, canvas_bchw) in canvases.into_iter().enumerate() {
            let (output_bchw, target_bchw) =
                comparable(tokenizer.decode(canvas_bchw), pixels_bchw.clone());
            let error_bchw = output_bchw.clone() - target_bchw.clone();
            let tally = &mut seen.scales[k];
            let [_, _, height, width] = output_bchw.dims();
            tally.pixels = [height, width];
            tally.psnr = psnr(error_bchw.clone());
            tally.ssim = host(ssim(output_bchw.clone(), target_bchw.clone()));
            for (distance, values) in self.distances.iter().zip(&mut tally.distances) {
                *values = distance.of(output_bchw.clone(), target_bchw.clone());
            }
            if k + 1 == scales {
                seen.errors = ColorMoments::of_each(error_bchw);
                seen.colors = ColorMoments::of_each(target_bchw);
            }
            tally.n_codes = tokenizer.codebook().n_codes(self.schedule.size(k));
            let tokens_bn = tokens_bl.clone().slice_dim(1, self.schedule.range(k));
            let tokens = tokens_bn.into_data().convert::<i64>().into_vec::<i64>().expect("i64");
            tokens.iter().for_each(|token| tally.counts[*token as usize] += 1);
        }
        seen
    }

    /// The number of images that were measured.
    pub fn images(&self) -> usize {
        self.sums.scales.last().map_or(0, |tally| tally.psnr.len())
    }

    /// The mean PSNR of the finest scale, dB; not a number if there was no image.
    pub fn psnr_db(&self) -> f64 {
        self.sums.scales.last().map_or(f64::NAN, |tally| mean(&tally.psnr))
    }

    /// The finest scale's errors by axes of color.
    pub fn by_color(&self) -> Vec<TokenizerColor> {
        let [colors, errors] = [&self.sums.colors, &self.sums.errors].map(|images| {
            let mut all = ColorMoments::default();
            images.iter().for_each(|image| all.merge(*image));
            all
        });
        let axes = ColorAxes::of_covariance(colors.covariance());
        let largest = colors.deviation_along(axes.axes()[0]);
        let least = LEAST_DEVIATION.max(ColorAxes::LEAST * largest);
        let color = |axis: [f64; 3]| {
            let (deviation, error) = (colors.deviation_along(axis), errors.mean_square_along(axis));
            TokenizerColor {
                axis,
                deviation,
                psnr_db: decibels(error),
                error_share: (deviation > least).then(|| error / (deviation * deviation)),
            }
        };
        axes.axes().into_iter().map(color).collect()
    }

    /// All figures.
    ///
    /// # Panics
    /// If no image was measured.
    pub fn figures(&self) -> TokenizerFigures {
        assert!(self.images() > 0, "figures of no images");
        let used = |counts: &[usize]| counts.iter().filter(|n| **n > 0).count();
        let (scales, codes) = (&self.sums.scales, self.sums.codes());
        let scale = |(k, tally): (usize, &Tally)| {
            let values = self.distances.iter().zip(&tally.distances);
            let distance = |(distance, values): (&Distance<B>, &Option<Vec<f64>>)| {
                (distance.name().to_owned(), values.as_deref().map(mean))
            };
            let (used, usable) = (used(&tally.counts), tally.usable());
            TokenizerScale {
                scale: self.schedule.size(k).to_string(),
                pixels: tally.pixels,
                psnr_db: mean(&tally.psnr),
                ssim: mean(&tally.ssim),
                distances: values.map(distance).collect(),
                codes_used: used,
                codes_dead: codes - used,
                codes_usable: usable,
                codes_dead_of_usable: usable - used,
                perplexity: histogram_entropy(&tally.counts).exp(),
            }
        };
        let by_scale: Vec<TokenizerScale> = scales.iter().enumerate().map(scale).collect();
        let total: Vec<usize> =
            (0..codes).map(|code| scales.iter().map(|tally| tally.counts[code]).sum()).collect();
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
        meter.sums.errors = ColorMoments::of_each(output - target.clone());
        meter.sums.colors = ColorMoments::of_each(target);
        let colors = meter.by_color();
        let shares: Vec<Option<f64>> = colors.iter().map(|color| color.error_share).collect();
        assert!((colors[0].deviation - 0.8).abs() < 1e-6 && shares[0].unwrap() < 1e-9);
        assert!((colors[1].deviation - 0.2).abs() < 1e-6);
        assert!((shares[1].unwrap() - 1.0).abs() < 1e-5, "{shares:?}");
        assert!((colors[1].psnr_db - 20.0).abs() < 1e-3);
        // The images have no green.
        assert!(colors[2].deviation < 1e-6 && shares[2].is_none(), "{colors:?}");
    }

    #[test]
    fn gray_images_have_one_axis_whose_error_is_a_share() {
        let device = Default::default();
        let schedule: ScaleSchedule = "1".parse().unwrap();
        let measured = |target: Tensor<Flex, 4>| {
            let mut meter = TokenizerMeter::<Flex>::new(&schedule, 1);
            // Off by 0.1 in blue.
            let error = Tensor::cat(
                vec![
                    target.clone().slice_dim(1, 0..2).zeros_like(),
                    Tensor::full([1, 1, 2, 2], 0.1, &device),
                ],
                1,
            );
            meter.sums.errors = ColorMoments::of_each(error);
            meter.sums.colors = ColorMoments::of_each(target);
            meter.by_color()
        };
        let gray = Tensor::<Flex, 4>::from_floats([[[[0.5, -0.5], [0.5, -0.5]]]], &device);
        let colors = measured(gray.repeat_dim(1, 3));
        assert!((colors[0].deviation - 0.75f64.sqrt()).abs() < 1e-6, "{colors:?}");
        assert!((colors[0].error_share.unwrap() - 0.01 / 3.0 / 0.75).abs() < 1e-6, "{colors:?}");
        for color in &colors[1..] {
            assert!(color.deviation < 1e-6 && color.error_share.is_none(), "{color:?}");
        }
        // Reports keep the name, and reports of before are read.
        let json = serde_json::to_value(&colors[1]).unwrap();
        assert!(json["error_share"].is_null() && json.as_object().unwrap().len() == 4, "{json}");
        let before = r#"{"axis":[1,0,0],"deviation":0.1,"psnr_db":20,"error_share":0.5}"#;
        let before: TokenizerColor = serde_json::from_str(before).unwrap();
        assert_eq!(before.error_share, Some(0.5));
        // Of one color.
        let colors = measured(Tensor::full([1, 3, 2, 2], 0.3, &device));
        assert!(colors.iter().all(|color| color.error_share.is_none()), "{colors:?}");
    }
}
