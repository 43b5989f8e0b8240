//! The embedded emoji: 1 906 labeled images that need no download.
//!
//! Noto Emoji v2.048 by way of emoji-datasource-google 16.0.0; `sar-emoji` holds the sheet, its
//! origin and the two licenses.

use image::{GenericImageView, ImageFormat, Rgb, RgbImage};
use sar_emoji::{INDEX, SHEET};
use serde::Deserialize;

use crate::decode::on_white;
use crate::{DataError, Dataset};

/// The side of a tile of the sheet, in pixels.
const TILE: u32 = 64;

/// The emoji at one side, composited on white, in the order of the sheet: class by class, and within
/// a class the similar ones (faces, clocks, flags) next to each other.
#[derive(Debug)]
pub struct Emoji {
    classes: Vec<String>,
    names: Vec<String>,
    labels: Vec<usize>,
    images: Vec<RgbImage>,
}

impl Emoji {
    /// Decodes the sheet and reduces every tile to `side` x `side` pixels, 64 being the tiles as they
    /// are: each output pixel is the mean of the area that it covers.
    ///
    /// # Errors
    /// [`DataError::Side`] unless `side` is in 1..=64.
    pub fn new(side: u32) -> Result<Self, DataError> {
        if !(1..=TILE).contains(&side) {
            let allowed = "a side of 1 to 64 px";
            return Err(DataError::Side { side: side as usize, source_name: "emoji", allowed });
        }
        let index = Index::embedded();
        let sheet = image::load_from_memory_with_format(SHEET, ImageFormat::WebP)
            .expect("the embedded sheet is a WebP image")
            .into_rgba8();
        let images = (0..index.count)
            .map(|i| {
                let (x, y) = (i as u32 % index.columns * TILE, i as u32 / index.columns * TILE);
                reduce(&on_white(&sheet.view(x, y, TILE, TILE).to_image()), side)
            })
            .collect();
        let (names, labels) =
            index.items.into_iter().map(|Item(name, class, _subcategory)| (name, class)).unzip();
        Ok(Self { classes: index.classes, names, labels, images })
    }
}

impl Dataset for Emoji {
    fn len(&self) -> usize {
        self.images.len()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn label(&self, i: usize) -> usize {
        self.labels[i]
    }

    fn name(&self, i: usize) -> String {
        self.names[i].clone()
    }

    fn stored_bytes(&self, i: usize) -> u64 {
        self.images[i].as_raw().len() as u64
    }

    fn image(&self, i: usize) -> Result<RgbImage, DataError> {
        Ok(self.images[i].clone())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Index {
    columns: u32,
    tile: u32,
    count: usize,
    classes: Vec<String>,
    items: Vec<Item>,
}

/// Short name, class index, subcategory.
#[derive(Deserialize)]
struct Item(String, usize, String);

impl Index {
    fn embedded() -> Self {
        let index: Self = serde_json::from_str(INDEX).expect("the embedded index is valid");
        assert_eq!((index.tile, index.count), (TILE, index.items.len()));
        index
    }
}

/// Area-weighted reduction of a square image to `side`, in integers throughout, so it is exact up to
/// the one rounding at the end and equal on every machine.
///
/// On an axis of `from * side` units, input pixel i covers `i * side ..` and output pixel j covers
/// `j * from ..`; the weight of i in j is the length that they share.
fn reduce(image: &RgbImage, side: u32) -> RgbImage {
    let from = image.width();
    let taps = |j: u32| {
        (j * from / side..((j + 1) * from).div_ceil(side)).map(move |i| {
            let (start, end) = ((i * side).max(j * from), ((i + 1) * side).min((j + 1) * from));
            (i, end - start)
        })
    };
    let area = from * from;
    RgbImage::from_fn(side, side, |x, y| {
        let mut sum = [0u32; 3];
        for (row, weight_y) in taps(y) {
            for (column, weight_x) in taps(x) {
                let pixel = image.get_pixel(column, row).0;
                for (s, c) in sum.iter_mut().zip(pixel) {
                    *s += weight_y * weight_x * u32::from(c);
                }
            }
        }
        Rgb(sum.map(|s| ((s + area / 2) / area) as u8))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;

    static FULL: LazyLock<Emoji> = LazyLock::new(|| Emoji::new(64).unwrap());

    #[test]
    fn the_sheet_holds_what_its_index_says() {
        assert_eq!(FULL.len(), 1906);
        assert_eq!(FULL.classes().len(), 9);
        let mut counts = [0; 9];
        (0..FULL.len()).for_each(|i| counts[FULL.label(i)] += 1);
        assert_eq!(counts, [169, 386, 159, 131, 218, 85, 264, 224, 270]);
        assert_eq!(FULL.classes()[FULL.label(0)], "Smileys & Emotion");
        let ends = (FULL.describe(0), FULL.describe(1905));
        assert_eq!(ends, ("grinning".into(), "flag-wales".into()));
    }

    #[test]
    fn a_tile_is_composited_on_white_as_by_hand() {
        let grinning = FULL.image(0).unwrap();
        assert_eq!(grinning.dimensions(), (64, 64));
        assert_eq!(grinning.get_pixel(0, 0).0, [255; 3], "the background is white");
        // The sheet holds (245, 168, 37) with alpha 64 here: 64 / 255 of it and the rest white.
        assert_eq!(grinning.get_pixel(26, 3).0, [252, 233, 200]);
        // Tile 1700 is in row 38, column 28 of the sheet, and opaque in the middle.
        assert_eq!(FULL.describe(1700), "flag-cx");
        assert_eq!(FULL.image(1700).unwrap().get_pixel(32, 32).0, [25, 137, 65]);
    }

    #[test]
    fn reduction_takes_means_and_keeps_the_color() {
        let half = Emoji::new(32).unwrap();
        for i in 0..FULL.len() {
            let (large, small) = (FULL.image(i).unwrap(), half.image(i).unwrap());
            let (before, after) = (mean_color(&large), mean_color(&small));
            let largest = before.iter().zip(after).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(largest < 0.5, "{}: {before:?} became {after:?}", FULL.describe(i));
        }
        let (large, small) = (FULL.image(0).unwrap(), half.image(0).unwrap());
        let sum: u32 = [(26, 2), (27, 2), (26, 3), (27, 3)]
            .map(|(x, y)| u32::from(large.get_pixel(x, y).0[2]))
            .iter()
            .sum();
        assert_eq!(u32::from(small.get_pixel(13, 1).0[2]), (sum + 2) / 4);
    }

    #[test]
    fn a_fractional_reduction_by_hand() {
        // 3 to 2: each output covers one pixel and half of the middle one.
        let image = RgbImage::from_fn(3, 3, |x, _| Rgb([[0, 90, 240][x as usize]; 3]));
        let row: Vec<u8> = reduce(&image, 2).pixels().take(2).map(|p| p.0[0]).collect();
        assert_eq!(row, [30, 190]);
    }

    #[test]
    fn odd_and_small_sides_are_means_of_areas_too() {
        let before = mean_color(&FULL.image(1700).unwrap());
        for side in [1, 15, 33, 63] {
            let small = Emoji::new(side).unwrap().image(1700).unwrap();
            assert_eq!(small.dimensions(), (side, side));
            let after = mean_color(&small);
            let largest = before.iter().zip(after).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(largest <= 0.5, "{side} px: {before:?} became {after:?}");
        }
    }

    #[test]
    fn no_side_and_large_sides_are_refused() {
        for side in [0, 65, 128, u32::MAX] {
            let error = Emoji::new(side).unwrap_err().to_string();
            let expected = "emoji images have a side of 1 to 64 px; choose such a side";
            assert_eq!(error, format!("side {side}: {expected}"));
        }
    }

    fn mean_color(image: &RgbImage) -> [f64; 3] {
        let n = f64::from(image.width() * image.height());
        let sum = image.pixels().fold([0.0; 3], |sum: [f64; 3], pixel| {
            std::array::from_fn(|c| sum[c] + f64::from(pixel.0[c]))
        });
        sum.map(|s| s / n)
    }

    proptest! {
        #[test]
        fn a_flat_image_stays_flat(from in 1u32..40, side in 1u32..40, level: u8) {
            prop_assume!(side <= from);
            let image = reduce(&RgbImage::from_pixel(from, from, Rgb([level; 3])), side);
            prop_assert!(image.pixels().all(|pixel| pixel.0 == [level; 3]));
        }
    }
}
