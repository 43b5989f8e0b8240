//! From an image of any size to a square: the crops of the published runs, as recipe data.
//!
//! All of them resize in 8 bits, horizontally first, antialiased, as Pillow does. Only the part of
//! the resized image that is kept is computed, so that a strip one pixel wide, resized to a short
//! side of 256, does not become millions of pixels long.

use std::ops::Range;

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::RgbImage;
use sar_core::SeedTree;
use serde::{Deserialize, Serialize};

use crate::DataError;

/// How images become squares; held-out images always take the center, whatever training does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Crop {
    /// Not at all: every image has the side already.
    Exact {},
    /// The center of the image with its short side resized to the side (ADM, `center_crop_arr`).
    AdmCenter {},
    /// Anywhere in the image with its short side resized to between the side and
    /// `side / min_share` (ADM, `random_crop_arr`; FlexVAR and SAR: 0.88).
    AdmRandom {
        /// The smallest share of the short side that a crop shows, in [0.1, 1].
        min_share: f64,
    },
    /// Anywhere in the image with its short side resized by Lanczos to `ratio` times the side; the
    /// center of that for held-out images (VAR: 1.125).
    LanczosRandom {
        /// In [1, 4].
        ratio: f64,
    },
}

/// An image that [`Crop::Exact`] refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WrongSize {
    /// Its width.
    pub width: u32,
    /// Its height.
    pub height: u32,
}

impl Crop {
    /// Checks ranges.
    ///
    /// # Errors
    /// The field that is out of range.
    pub fn validate(&self) -> Result<(), DataError> {
        let check = |field, value: f64, range: std::ops::RangeInclusive<f64>, allowed| {
            if range.contains(&value) {
                return Ok(());
            }
            Err(DataError::Setting { field, value: value.to_string(), allowed })
        };
        match *self {
            Self::Exact {} | Self::AdmCenter {} => Ok(()),
            Self::AdmRandom { min_share } => {
                check("data.crop.min_share", min_share, 0.1..=1.0, "a share of 0.1 to 1")
            }
            Self::LanczosRandom { ratio } => {
                check("data.crop.ratio", ratio, 1.0..=4.0, "a ratio of 1 to 4")
            }
        }
    }

    /// The crop of a training image, decided by `draws` alone: of the stream, draw 0 is the size,
    /// 1 and 2 are the place along y and x, whichever are in use.
    ///
    /// # Errors
    /// If the image is not `side` x `side` and has to be.
    ///
    /// # Panics
    /// If the side is 0 or the image has no pixels.
    pub fn training(
        &self,
        image: RgbImage,
        side: u32,
        draws: SeedTree,
    ) -> Result<RgbImage, WrongSize> {
        let anywhere = |resized: &Resized| {
            let [y, x] = [(1, resized.height), (2, resized.width)]
                .map(|(i, length)| draws.below(i, (length - u64::from(side) + 1) as usize) as u64);
            (x, y)
        };
        match *self {
            Self::Exact {} | Self::AdmCenter {} => self.evaluation(image, side),
            Self::AdmRandom { min_share } => {
                let largest = (f64::from(side) / min_share).ceil() as u32;
                let short = side + draws.below(0, (largest - side + 1) as usize) as u32;
                let resized = Resized::adm(image, short);
                Ok(resized.window(anywhere(&resized), side))
            }
            Self::LanczosRandom { ratio } => {
                let resized = Resized::lanczos(image, lanczos_short(side, ratio));
                Ok(resized.window(anywhere(&resized), side))
            }
        }
    }

    /// The crop of a held-out image.
    ///
    /// # Errors
    /// If the image is not `side` x `side` and has to be.
    ///
    /// # Panics
    /// If the side is 0 or the image has no pixels.
    pub fn evaluation(&self, image: RgbImage, side: u32) -> Result<RgbImage, WrongSize> {
        match *self {
            Self::Exact {} => {
                let (width, height) = image.dimensions();
                if (width, height) == (side, side) {
                    Ok(image)
                } else {
                    Err(WrongSize { width, height })
                }
            }
            Self::AdmCenter {} | Self::AdmRandom { .. } => {
                let resized = Resized::adm(image, side);
                // ADM rounds the margin down.
                let margin = |length: u64| (length - u64::from(side)) / 2;
                Ok(resized.window((margin(resized.width), margin(resized.height)), side))
            }
            Self::LanczosRandom { ratio } => {
                let resized = Resized::lanczos(image, lanczos_short(side, ratio));
                // torchvision rounds it to the nearest, to even in between.
                let margin = |length: u64| {
                    ((length - u64::from(side)) as f64 / 2.0).round_ties_even() as u64
                };
                Ok(resized.window((margin(resized.width), margin(resized.height)), side))
            }
        }
    }
}

fn lanczos_short(side: u32, ratio: f64) -> u32 {
    (f64::from(side) * ratio).round_ties_even() as u32
}

/// An image that is to be resized, of which a window will be looked at.
struct Resized {
    image: RgbImage,
    /// Size after the resize; for a strip far more than fits into memory.
    width: u64,
    height: u64,
    filter: FilterType,
}

impl Resized {
    /// The short side halved by averaging while it is at least twice `short`, then bicubic
    /// (a = -0.5) to `short`.
    fn adm(mut image: RgbImage, short: u32) -> Self {
        while image.width().min(image.height()) >= 2 * short {
            image = halved(&image);
        }
        let scale = f64::from(short) / f64::from(image.width().min(image.height()));
        let scaled = |length: u32| (f64::from(length) * scale).round_ties_even() as u64;
        let (width, height) = (scaled(image.width()), scaled(image.height()));
        Self { image, width, height, filter: FilterType::CatmullRom }
    }

    /// The short side to `short` by Lanczos with three lobes, the long one rounded down.
    fn lanczos(image: RgbImage, short: u32) -> Self {
        let (width, height) = image.dimensions();
        let least = width.min(height);
        let scaled = |length: u32| u64::from(length) * u64::from(short) / u64::from(least);
        Self { width: scaled(width), height: scaled(height), image, filter: FilterType::Lanczos3 }
    }

    /// The square with its corner at (x, y).
    fn window(&self, (x, y): (u64, u64), side: u32) -> RgbImage {
        let axis = |at: u64, from: u32, to: u64| {
            let from = f64::from(from);
            let place = |at: u64| at as f64 * from / to as f64;
            let (start, end) = (place(at), place(at + u64::from(side)).min(from));
            (start, end - start)
        };
        let (left, width) = axis(x, self.image.width(), self.width);
        let (top, height) = axis(y, self.image.height(), self.height);
        resample(&self.image, [left, top, width, height], (side, side), self.filter)
    }
}

/// An image of half the size, rounded down, by averaging (Pillow's box filter).
fn halved(image: &RgbImage) -> RgbImage {
    let (from_width, from_height) = (image.width() as usize, image.height() as usize);
    let (width, height) = (from_width / 2, from_height / 2);
    let columns = boxes(from_width);
    let mut wide = vec![0; 3 * width * from_height];
    let rows = image.as_raw().chunks_exact(3 * from_width);
    for (from, to) in rows.zip(wide.chunks_exact_mut(3 * width)) {
        for (pixel, column) in to.chunks_exact_mut(3).zip(&columns) {
            for (c, value) in pixel.iter_mut().enumerate() {
                let sum = column.clone().map(|x| u32::from(from[3 * x + c])).sum();
                *value = mean(sum, column.len());
            }
        }
    }
    let mut tall = vec![0; 3 * width * height];
    let mut sums = vec![0; 3 * width];
    for (to, rows) in tall.chunks_exact_mut(3 * width).zip(boxes(from_height)) {
        sums.fill(0);
        for from in wide.chunks_exact(3 * width).skip(rows.start).take(rows.len()) {
            sums.iter_mut().zip(from).for_each(|(sum, level)| *sum += u32::from(*level));
        }
        to.iter_mut().zip(&sums).for_each(|(value, sum)| *value = mean(*sum, rows.len()));
    }
    RgbImage::from_raw(width as u32, height as u32, tall).expect("three bytes per pixel")
}

/// The pixels that each pixel of half the length is the mean of.
///
/// The edge of a box may fall onto the middle of a pixel; which box then has it, or none, is decided
/// by the last bit. This is why the operations and their order are Pillow's, and `fast_image_resize`
/// is not used: its decisions are others.
fn boxes(from: usize) -> Vec<Range<usize>> {
    let to = from / 2;
    let scale = from as f64 / to as f64;
    let per_scale = 1.0 / scale;
    (0..to)
        .map(|i| {
            let center = (i as f64 + 0.5) * scale;
            let first = (center - 0.5 * scale + 0.5) as usize;
            let end = ((center + 0.5 * scale + 0.5) as usize).min(from);
            let place = |x: usize| (x as f64 - center + 0.5) * per_scale;
            let mut inside = (first..end).filter(|x| place(*x) > -0.5 && place(*x) <= 0.5);
            let first = inside.next().expect("a box is at least two pixels wide");
            first..inside.next_back().unwrap_or(first) + 1
        })
        .collect()
}

/// `sum / n`, rounded as Pillow rounds: the weight has 22 bits.
fn mean(sum: u32, n: usize) -> u8 {
    const BITS: u32 = 22;
    let weight = (f64::from(1 << BITS) / n as f64).round() as u32;
    ((sum * weight + (1 << (BITS - 1))) >> BITS) as u8
}

/// The window `[left, top, width, height]` of an image at another size; pixels around the window
/// count as far as the filter reaches.
///
/// One axis at a time, x first as in Pillow, with 8 bits in between. `fast_image_resize` would begin
/// with y, and where leading weights are zero it then reads outside of its buffer (6.1.0).
fn resample(
    image: &RgbImage,
    [left, top, width, height]: [f64; 4],
    (to_width, to_height): (u32, u32),
    filter: FilterType,
) -> RgbImage {
    // The rows that the vertical pass looks at.
    let reach = support(filter) * (height / f64::from(to_height)).max(1.0) + 1.0;
    let first = (top - reach).floor().max(0.0);
    let last = (top + height + reach).ceil().min(f64::from(image.height()));
    let rows = (last - first) as u32;
    let wide = convolve(image, [left, first, width, rows.into()], (to_width, rows), filter);
    convolve(&wide, [0.0, top - first, to_width.into(), height], (to_width, to_height), filter)
}

/// How far a filter reaches to either side, in the larger pixels of both images.
fn support(filter: FilterType) -> f64 {
    match filter {
        FilterType::CatmullRom => 2.0,
        FilterType::Lanczos3 => 3.0,
        other => unreachable!("{other:?} is no filter of a crop"),
    }
}

fn convolve(
    image: &RgbImage,
    [left, top, width, height]: [f64; 4],
    (to_width, to_height): (u32, u32),
    filter: FilterType,
) -> RgbImage {
    // Rounded, start and length may add up to the last bit more than there is.
    let within = |start: f64, length: f64, of: u32| {
        if start + length > f64::from(of) { length.next_down() } else { length }
    };
    let (width, height) = (within(left, width, image.width()), within(top, height, image.height()));
    let options = ResizeOptions::new()
        .resize_alg(ResizeAlg::Convolution(filter))
        .crop(left, top, width, height);
    let from = ImageRef::new(image.width(), image.height(), image.as_raw(), PixelType::U8x3)
        .expect("three bytes per pixel");
    let mut to = Image::new(to_width, to_height, PixelType::U8x3);
    Resizer::new().resize(&from, &mut to, &options).expect("the window lies within the image");
    RgbImage::from_raw(to_width, to_height, to.into_vec()).expect("three bytes per pixel")
}

#[cfg(test)]
mod tests {
    use image::{Rgb, imageops};
    use proptest::prelude::*;

    use super::*;
    use crate::testing::noise;

    const RANDOM: Crop = Crop::AdmRandom { min_share: 0.88 };
    const LANCZOS: Crop = Crop::LanczosRandom { ratio: 1.125 };

    fn largest_difference(a: &RgbImage, b: &RgbImage) -> u8 {
        assert_eq!(a.dimensions(), b.dimensions());
        a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
    }

    fn open(name: &str) -> RgbImage {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/parity/crops");
        image::open(format!("{folder}/{name}.png")).unwrap().into_rgb8()
    }

    #[test]
    fn center_crops_equal_those_of_the_reference() {
        let cases = [
            ("0_500x375", "0_center_64"),
            ("1_213x320", "1_center_64"),
            ("2_64x64", "2_center_64"),
            ("3_1000x301", "3_center_128"),
            ("4_90x300", "4_center_96"),
            // Noise, whose boxes end in the middle of pixels along both axes; Pillow 13's.
            ("5_121x125", "5_center_60"),
        ];
        for (input, golden) in cases {
            let golden = open(golden);
            let crop = Crop::AdmCenter {}.evaluation(open(input), golden.width()).unwrap();
            let difference = largest_difference(&crop, &golden);
            assert!(difference <= 1, "{input}: {difference} levels");
            assert_eq!(RANDOM.evaluation(open(input), golden.width()).unwrap(), crop);
        }
    }

    /// The goldens are Pillow 13's: Lanczos to a short side of 1.125 times the side, then
    /// torchvision's center crop.
    #[test]
    fn lanczos_center_crops_equal_those_of_pillow() {
        let cases = [
            ("0_500x375", "0_lanczos_64"),
            ("1_213x320", "1_lanczos_64"),
            ("4_90x300", "4_lanczos_96"),
        ];
        for (input, golden) in cases {
            let golden = open(golden);
            let crop = LANCZOS.evaluation(open(input), golden.width()).unwrap();
            let difference = largest_difference(&crop, &golden);
            assert!(difference <= 1, "{input}: {difference} levels");
        }
    }

    /// What Pillow computes along x, in its integers: weights with 22 bits.
    fn pillow_x(image: &RgbImage, to: u32, filter: FilterType) -> RgbImage {
        let from = image.width();
        if from == to {
            return image.clone();
        }
        let scale = f64::from(from) / f64::from(to);
        let wide = scale.max(1.0);
        let columns: Vec<(u32, Vec<i64>)> = (0..to)
            .map(|i| {
                let center = (f64::from(i) + 0.5) * scale;
                let reach = support(filter) * wide;
                let first = (center - reach + 0.5).max(0.0) as u32;
                let last = ((center + reach + 0.5) as u32).min(from);
                let weight = |x| pillow_weight(filter, (f64::from(x) - center + 0.5) / wide);
                let weights: Vec<f64> = (first..last).map(weight).collect();
                let sum: f64 = weights.iter().sum();
                let fixed = |w: &f64| (w / sum * f64::from(1 << 22)).round() as i64;
                (first, weights.iter().map(fixed).collect())
            })
            .collect();
        RgbImage::from_fn(to, image.height(), |i, y| {
            let (first, weights) = &columns[i as usize];
            Rgb([0, 1, 2].map(|c| {
                let level = |x| i64::from(image.get_pixel(x, y).0[c]);
                let sum: i64 = weights.iter().zip(*first..).map(|(w, x)| w * level(x)).sum();
                ((sum + (1 << 21)) >> 22).clamp(0, 255) as u8
            }))
        })
    }

    fn pillow_weight(filter: FilterType, x: f64) -> f64 {
        match filter {
            FilterType::CatmullRom => match x.abs() {
                x if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
                x if x < 2.0 => ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0,
                _ => 0.0,
            },
            _ if !(-3.0..3.0).contains(&x) => 0.0,
            _ => {
                let sinc = |x: f64| if x == 0.0 { 1.0 } else { x.sin() / x };
                sinc(x * std::f64::consts::PI) * sinc(x * std::f64::consts::PI / 3.0)
            }
        }
    }

    fn transposed(image: &RgbImage) -> RgbImage {
        RgbImage::from_fn(image.height(), image.width(), |x, y| *image.get_pixel(y, x))
    }

    /// The whole image resized, then cropped.
    fn resized_then_cropped(resized: &Resized, (x, y): (u64, u64), side: u32) -> RgbImage {
        let (width, height) = (resized.width as u32, resized.height as u32);
        let whole = [0.0, 0.0, resized.image.width().into(), resized.image.height().into()];
        let image = resample(&resized.image, whole, (width, height), resized.filter);
        imageops::crop_imm(&image, x as u32, y as u32, side, side).to_image()
    }

    #[test]
    fn the_goldens_are_what_pillow_computes() {
        // So that the comparison with `pillow_x` below is one with Pillow: 90x300 to 96x320.
        let wide = pillow_x(&open("4_90x300"), 96, FilterType::CatmullRom);
        let whole = transposed(&pillow_x(&transposed(&wide), 320, FilterType::CatmullRom));
        let center = imageops::crop_imm(&whole, 0, 112, 96, 96).to_image();
        assert_eq!(center, open("4_center_96"));
    }

    #[test]
    fn an_image_of_the_side_stays_as_it_is() {
        let image = noise(32, 32);
        for crop in [Crop::Exact {}, Crop::AdmCenter {}, RANDOM] {
            assert_eq!(crop.evaluation(image.clone(), 32).unwrap(), image, "{crop:?}");
        }
        let center = Crop::AdmCenter {}.training(image.clone(), 32, SeedTree::new(1)).unwrap();
        assert_eq!(center, image);
        let error = Crop::Exact {}.evaluation(noise(32, 31), 32).unwrap_err();
        assert_eq!(error, WrongSize { width: 32, height: 31 });
        assert!(Crop::Exact {}.training(noise(31, 32), 32, SeedTree::new(1)).is_err());
    }

    #[test]
    fn random_crops_have_the_sizes_and_places_of_the_reference() {
        // A ramp along x tells scale and place: at short side s the level falls by 255 * 16 / s
        // every 16 pixels.
        let ramp = RgbImage::from_fn(256, 256, |x, _| Rgb([x as u8; 3]));
        let (mut shorts, mut places) = (Vec::new(), Vec::new());
        for i in 0..2000 {
            let draws = SeedTree::new(3).at(i);
            // ceil(64 / 0.88) = 73.
            let short = 64 + draws.below(0, 10) as u32;
            let x = draws.below(2, short as usize - 63);
            shorts.push(short);
            places.push(x);
            let crop = RANDOM.training(ramp.clone(), 64, draws).unwrap();
            let at = |j: usize| (j as f64 + x as f64 + 0.5) * 256.0 / f64::from(short) - 0.5;
            for j in [8, 32, 55] {
                let level = f64::from(crop.get_pixel(j as u32, 5).0[0]);
                assert!((level - at(j)).abs() <= 1.5, "{short} {x} {j}: {level}, not {}", at(j));
            }
        }
        assert_eq!((shorts.iter().min(), shorts.iter().max()), (Some(&64), Some(&73)));
        assert_eq!((places.iter().min(), places.iter().max()), (Some(&0), Some(&9)));
    }

    #[test]
    fn the_lanczos_crop_is_cut_from_the_resized_image() {
        let image = noise(60, 90);
        // 32 * 1.125 = 36: the image becomes 36 x 54; the center begins at (2, 11).
        let whole = resample(&image, [0.0, 0.0, 60.0, 90.0], (36, 54), FilterType::Lanczos3);
        let center = imageops::crop_imm(&whole, 2, 11, 32, 32).to_image();
        let crop = LANCZOS.evaluation(image.clone(), 32).unwrap();
        assert!(largest_difference(&crop, &center) <= 1);
        let draws = SeedTree::new(9);
        let (y, x) = (draws.below(1, 54 - 31) as u32, draws.below(2, 36 - 31) as u32);
        let expected = imageops::crop_imm(&whole, x, y, 32, 32).to_image();
        let crop = LANCZOS.training(image, 32, draws).unwrap();
        assert!(largest_difference(&crop, &expected) <= 1);
        assert_eq!(lanczos_short(256, 1.125), 288);
        assert_eq!(lanczos_short(4, 1.125), 4, "4.5 goes to even");
    }

    #[test]
    fn reduction_does_not_alias() {
        // Black and white columns of one pixel give gray and not stripes.
        let stripes = RgbImage::from_fn(64, 64, |x, _| Rgb([if x % 2 == 0 { 0 } else { 255 }; 3]));
        for crop in [Crop::AdmCenter {}, LANCZOS] {
            let small = crop.evaluation(stripes.clone(), 16).unwrap();
            for x in 2..14 {
                let value = i32::from(small.get_pixel(x, 8).0[0]);
                assert!((value - 128).abs() <= 4, "{crop:?}: {value} at {x}");
            }
        }
    }

    #[test]
    fn strips_and_single_pixels_give_squares() {
        for crop in [Crop::AdmCenter {}, RANDOM, LANCZOS] {
            let one = RgbImage::from_pixel(1, 1, Rgb([9; 3]));
            let square = crop.training(one, 256, SeedTree::new(1)).unwrap();
            assert!(square.dimensions() == (256, 256) && square.pixels().all(|p| p.0 == [9; 3]));
            // Resized as a whole, this one would be 257 x 15 million pixels.
            let strip =
                RgbImage::from_fn(1, 60_001, |_, y| Rgb([if y == 30_000 { 0 } else { 255 }; 3]));
            let square = crop.evaluation(strip, 257).unwrap();
            assert_eq!(square.get_pixel(128, 128).0, [0; 3], "the middle stays in the middle");
        }
    }

    #[test]
    fn settings_are_checked() {
        for good in [RANDOM, LANCZOS, Crop::Exact {}, Crop::AdmCenter {}] {
            assert!(good.validate().is_ok());
        }
        let error = |crop: Crop| crop.validate().unwrap_err().to_string();
        let expected = "data.crop.min_share: 0 is out of range; choose a share of 0.1 to 1";
        assert_eq!(error(Crop::AdmRandom { min_share: 0.0 }), expected);
        assert!(error(Crop::AdmRandom { min_share: f64::NAN }).contains("NaN"));
        assert!(error(Crop::LanczosRandom { ratio: 0.9 }).contains("data.crop.ratio: 0.9"));
        let parse = |json: &str| serde_json::from_str::<Crop>(json);
        assert_eq!(parse(r#"{"kind": "adm-random", "min_share": 0.88}"#).unwrap(), RANDOM);
        assert!(parse(r#"{"kind": "adm-center", "min_share": 0.88}"#).is_err());
        assert!(parse(r#"{"kind": "adm-random"}"#).is_err());
    }

    proptest! {
        #[test]
        fn every_size_gives_the_square(
            width in 1u32..400, height in 1u32..400, side in 1u32..48, seed: u64, kind in 0usize..3,
        ) {
            let crop = [Crop::AdmCenter {}, RANDOM, LANCZOS][kind].clone();
            let flat = RgbImage::from_pixel(width, height, Rgb([9, 90, 200]));
            for square in [
                crop.training(flat.clone(), side, SeedTree::new(seed)).unwrap(),
                crop.evaluation(flat, side).unwrap(),
            ] {
                prop_assert_eq!(square.dimensions(), (side, side));
                prop_assert!(square.pixels().all(|p| p.0 == [9, 90, 200]), "flat stays flat");
            }
        }

        #[test]
        fn an_axis_is_resized_as_by_pillow(
            length in 1u32..120, other in 1u32..9, to in 1u32..80, lanczos: bool,
        ) {
            let filter = if lanczos { FilterType::Lanczos3 } else { FilterType::CatmullRom };
            let image = noise(length, other);
            let wide = resample(&image, [0.0, 0.0, length.into(), other.into()], (to, other), filter);
            let expected = pillow_x(&image, to, filter);
            prop_assert!(largest_difference(&wide, &expected) <= 1);
            let image = transposed(&image);
            let tall = resample(&image, [0.0, 0.0, other.into(), length.into()], (other, to), filter);
            prop_assert!(largest_difference(&transposed(&tall), &expected) <= 1);
        }

        #[test]
        fn halving_takes_means_of_neighbors(width in 2u32..70, height in 2u32..70) {
            let image = noise(width, height);
            let half = halved(&image);
            prop_assert_eq!(half.dimensions(), (width / 2, height / 2));
            // Of even lengths each pixel is the mean of two and two.
            if width % 2 == 0 && height % 2 == 0 {
                for (x, y, pixel) in half.enumerate_pixels() {
                    let level = |x, y| u32::from(image.get_pixel(x, y).0[1]);
                    let row = |y| (level(2 * x, y) + level(2 * x + 1, y)).div_ceil(2);
                    let mean = (row(2 * y) + row(2 * y + 1)).div_ceil(2);
                    prop_assert_eq!(u32::from(pixel.0[1]), mean);
                }
            }
            for length in [width, height] {
                let boxes = boxes(length as usize);
                prop_assert!(boxes.iter().all(|range| (1..=3).contains(&range.len())));
                prop_assert_eq!((boxes[0].start, boxes[boxes.len() - 1].end), (0, length as usize));
            }
        }

        #[test]
        fn a_window_is_the_crop_of_the_whole(
            width in 1u32..90, height in 1u32..90, side in 1u32..40, extra in 0u32..6,
            at in (0.0f64..1.0, 0.0f64..1.0), lanczos: bool,
        ) {
            let make = if lanczos { Resized::lanczos } else { Resized::adm };
            let resized = make(noise(width, height), side + extra);
            let place = |share: f64, length: u64| (share * (length - u64::from(side) + 1) as f64) as u64;
            let corner = (place(at.0, resized.width), place(at.1, resized.height));
            let window = resized.window(corner, side);
            let expected = resized_then_cropped(&resized, corner, side);
            // Where a value of the first pass lies between two levels, it may go to the other one;
            // the weights of the second pass add up to less than 1.5, sign aside.
            prop_assert!(largest_difference(&window, &expected) <= 2);
        }
    }
}
