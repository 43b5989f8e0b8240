//! Random changes of training images, as recipe data and pure functions of a stream.

use image::{Rgb, RgbImage, imageops};
use sar_core::SeedTree;
use sar_core::classes::nearest;
use serde::{Deserialize, Serialize};

use crate::DataError;
use crate::labels::composed;

/// How a training image may be varied.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Augmentation {
    /// Largest shift along each axis, as a share of the side, in [0, 0.5].
    pub shift: f32,
    /// Range of the zoom about the center, each in [0.5, 2]; 1 is none.
    pub scale: [f32; 2],
    /// Probability of a horizontal mirror image, in [0, 1].
    pub flip: f32,
    /// Names of classes that are never mirrored, such as flags and symbols.
    pub flip_except: Vec<String>,
}

impl Augmentation {
    /// Leaves every image as it is.
    pub fn none() -> Self {
        Self { shift: 0.0, scale: [1.0, 1.0], flip: 0.0, flip_except: Vec::new() }
    }

    /// Checks ranges and class names.
    ///
    /// # Errors
    /// The first field that is out of range, or the first name that is no class.
    pub fn validate(&self, classes: &[String]) -> Result<(), DataError> {
        let out_of_range =
            |field, value: String, allowed| Err(DataError::Setting { field, value, allowed });
        if !(0.0..=0.5).contains(&self.shift) {
            return out_of_range(
                "data.augmentation.shift",
                self.shift.to_string(),
                "a share of 0 to 0.5",
            );
        }
        let [low, high] = self.scale;
        if !(0.5..=2.0).contains(&low) || !(0.5..=2.0).contains(&high) || low > high {
            return out_of_range(
                "data.augmentation.scale",
                format!("{:?}", self.scale),
                "[low, high] within 0.5 to 2",
            );
        }
        if !(0.0..=1.0).contains(&self.flip) {
            return out_of_range("data.augmentation.flip", self.flip.to_string(), "a probability");
        }
        match self
            .flip_except
            .iter()
            .find(|name| !classes.iter().any(|class| composed(class) == composed(name)))
        {
            Some(name) => Err(DataError::UnknownClass {
                field: Some("data.augmentation.flip_except"),
                query: name.clone(),
                nearest: nearest(classes, &name.to_lowercase()),
                last: classes.len().saturating_sub(1),
            }),
            None => Ok(()),
        }
    }

    /// A variation of an image, decided by `draws` alone.
    ///
    /// Values between pixels are bilinear; outside, the edge goes on. Of the stream, uniform 0
    /// decides the flip, 1 the zoom, 2 and 3 the shift along x and y, whichever of them are in use.
    pub fn apply(&self, image: &RgbImage, class: &str, draws: SeedTree) -> RgbImage {
        let may_flip = || !self.flip_except.iter().any(|name| composed(class) == composed(name));
        let flipped = draws.uniform(0) < self.flip && may_flip();
        let [low, high] = self.scale;
        let zoom = low + (high - low) * draws.uniform(1);
        let shift =
            |i: u64, length: u32| (2.0 * draws.uniform(i) - 1.0) * self.shift * length as f32;
        let (width, height) = image.dimensions();
        let (dx, dy) = (shift(2, width), shift(3, height));
        let moved = if (zoom, dx, dy) == (1.0, 0.0, 0.0) {
            image.clone()
        } else {
            resample(image, zoom, dx, dy)
        };
        if flipped { imageops::flip_horizontal(&moved) } else { moved }
    }
}

/// `out(x) = in((x - center - d) / zoom + center)`, bilinear, edge clamped.
fn resample(image: &RgbImage, zoom: f32, dx: f32, dy: f32) -> RgbImage {
    let (width, height) = image.dimensions();
    // For every output coordinate: the two input coordinates and the weight of the second.
    let taps = |length: u32, d: f32| -> Vec<(u32, u32, f32)> {
        let center = (length as f32 - 1.0) / 2.0;
        let last = length as f32 - 1.0;
        (0..length)
            .map(|i| {
                let at = ((i as f32 - center - d) / zoom + center).clamp(0.0, last);
                let first = at.floor();
                (first as u32, (first + 1.0).min(last) as u32, at - first)
            })
            .collect()
    };
    let (columns, rows) = (taps(width, dx), taps(height, dy));
    RgbImage::from_fn(width, height, |x, y| {
        let ((x0, x1, fx), (y0, y1, fy)) = (columns[x as usize], rows[y as usize]);
        let value = |c: usize| {
            let at = |x, y| f32::from(image.get_pixel(x, y).0[c]);
            let top = at(x0, y0) * (1.0 - fx) + at(x1, y0) * fx;
            let bottom = at(x0, y1) * (1.0 - fx) + at(x1, y1) * fx;
            (top * (1.0 - fy) + bottom * fy).round() as u8
        };
        Rgb([value(0), value(1), value(2)])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp() -> RgbImage {
        RgbImage::from_fn(4, 4, |x, y| Rgb([10 * x as u8, 10 * y as u8, 0]))
    }

    #[test]
    fn none_is_the_identity_and_flips_are_exact() {
        let image = ramp();
        assert_eq!(Augmentation::none().apply(&image, "a", SeedTree::new(1)), image);
        let always =
            Augmentation { flip: 1.0, flip_except: vec!["flags".into()], ..Augmentation::none() };
        let flipped = always.apply(&image, "a", SeedTree::new(1));
        assert!(image.enumerate_pixels().all(|(x, y, pixel)| flipped.get_pixel(3 - x, y) == pixel));
        assert_eq!(always.apply(&image, "flags", SeedTree::new(1)), image);
    }

    #[test]
    fn shifts_and_zooms_by_hand() {
        // One pixel to the right; the left edge goes on.
        let shifted = resample(&ramp(), 1.0, 1.0, 0.0);
        assert_eq!(
            (0..4).map(|x| shifted.get_pixel(x, 0).0[0]).collect::<Vec<_>>(),
            [0, 0, 10, 20]
        );
        // Twice as large: coordinates 0.75, 1.25, 1.75, 2.25.
        let zoomed = resample(&ramp(), 2.0, 0.0, 0.0);
        assert_eq!(
            (0..4).map(|x| zoomed.get_pixel(x, 0).0[0]).collect::<Vec<_>>(),
            [8, 13, 18, 23]
        );
    }

    #[test]
    fn a_shift_is_a_share_of_each_side() {
        let shifting = Augmentation { shift: 0.25, ..Augmentation::none() };
        let draws = SeedTree::new(5);
        // One pixel at most of four, by the draws that `apply` documents.
        let [dx, dy] = [2, 3].map(|i| 2.0 * draws.uniform(i) - 1.0);
        assert_eq!(shifting.apply(&ramp(), "a", draws), resample(&ramp(), 1.0, dx, dy));
    }

    #[test]
    fn draws_decide_alone() {
        let lively =
            Augmentation { shift: 0.2, scale: [0.9, 1.1], flip: 0.5, flip_except: Vec::new() };
        let at = |i| lively.apply(&ramp(), "a", SeedTree::new(3).at(i));
        assert_eq!(at(1), at(1));
        assert_ne!(at(1), at(2));
    }

    #[test]
    fn settings_are_checked() {
        let classes = ["Flags".to_owned()];
        let error = |a: Augmentation| a.validate(&classes).unwrap_err().to_string();
        assert!(
            error(Augmentation { shift: 0.7, ..Augmentation::none() })
                .contains("data.augmentation.shift")
        );
        assert!(
            error(Augmentation { scale: [1.2, 1.1], ..Augmentation::none() }).contains("scale")
        );
        let unknown = Augmentation { flip_except: vec!["flag".into()], ..Augmentation::none() };
        assert!(
            error(unknown)
                .contains("data.augmentation.flip_except: no class 'flag'; nearest: 'Flags'")
        );
    }
}
