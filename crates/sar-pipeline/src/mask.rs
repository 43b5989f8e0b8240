//! Which pixels of a picture a mask image means.

use image::DynamicImage;

/// The pixels of a picture that are to be drawn anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    width: u32,
    height: u32,
    anew: Vec<bool>,
    rule: Rule,
}

/// How a mask image was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// No transparency: where it is bright.
    Bright,
    /// A transparent sheet with bright strokes: where it is opaque and bright.
    OpaqueBright,
    /// A transparent sheet with strokes of which none is bright: where it is opaque.
    Opaque,
    /// An opaque picture with holes: where it is transparent.
    Transparent,
}

/// From here on a level counts as bright, and an alpha as opaque.
const HALF: u8 = 128;

impl Mask {
    /// Reads a mask image.
    ///
    /// Without transparency its bright pixels are drawn anew. With transparency the border decides:
    /// if most of it is opaque, the picture has holes, and these are drawn anew; if most of it is
    /// transparent, strokes were drawn on an empty sheet, and they are drawn anew, the bright ones
    /// where there are any.
    pub fn read(image: &DynamicImage) -> Self {
        let luma_alpha = image.to_luma_alpha8();
        let (width, height) = luma_alpha.dimensions();
        let pixels: Vec<[u8; 2]> = luma_alpha.pixels().map(|pixel| pixel.0).collect();
        let is_opaque = |[_, alpha]: [u8; 2]| alpha >= HALF;
        let is_bright = |[luma, _]: [u8; 2]| luma >= HALF;
        let on_border = |i: usize| {
            let (x, y) = (i as u32 % width, i as u32 / width);
            x == 0 || y == 0 || x + 1 == width || y + 1 == height
        };
        let border: Vec<bool> =
            (0..pixels.len()).filter(|i| on_border(*i)).map(|i| is_opaque(pixels[i])).collect();
        let opaque_border = border.iter().filter(|opaque| **opaque).count();
        let rule = if pixels.iter().all(|pixel| is_opaque(*pixel)) {
            Rule::Bright
        } else if 2 * opaque_border > border.len() {
            Rule::Transparent
        } else if pixels.iter().any(|pixel| is_opaque(*pixel) && is_bright(*pixel)) {
            Rule::OpaqueBright
        } else {
            Rule::Opaque
        };
        let is_anew = |pixel: &[u8; 2]| match rule {
            Rule::Bright => is_bright(*pixel),
            Rule::OpaqueBright => is_opaque(*pixel) && is_bright(*pixel),
            Rule::Opaque => is_opaque(*pixel),
            Rule::Transparent => !is_opaque(*pixel),
        };
        Self { width, height, anew: pixels.iter().map(is_anew).collect(), rule }
    }

    /// A box: left, top, right, bottom in pixels, the last two not included.
    pub fn rectangle([width, height]: [u32; 2], [left, top, right, bottom]: [u32; 4]) -> Self {
        let pixels = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
        let is_inside = |(x, y)| (left..right).contains(&x) && (top..bottom).contains(&y);
        Self { width, height, anew: pixels.map(is_inside).collect(), rule: Rule::Bright }
    }

    /// Width and height.
    pub fn dimensions(&self) -> (u32, u32) {
        (self.width, self.height)
    }

    /// Whether a pixel is drawn anew.
    pub fn contains(&self, x: u32, y: u32) -> bool {
        self.anew[(y * self.width + x) as usize]
    }

    /// The share of the pixels that are drawn anew, in [0, 1].
    pub fn share(&self) -> f64 {
        self.anew.iter().filter(|anew| **anew).count() as f64 / self.anew.len() as f64
    }

    /// The box that it is, where its pixels fill one: [`rectangle`](Self::rectangle) makes the same of it.
    pub fn as_rectangle(&self) -> Option<[u32; 4]> {
        let (mut sides, mut n) = ([u32::MAX, u32::MAX, 0, 0], 0);
        for (i, _) in self.anew.iter().enumerate().filter(|(_, anew)| **anew) {
            let (x, y) = (i as u32 % self.width, i as u32 / self.width);
            let [left, top, right, bottom] = sides;
            sides = [left.min(x), top.min(y), right.max(x + 1), bottom.max(y + 1)];
            n += 1;
        }
        let [left, top, right, bottom] = sides;
        (n > 0 && n == (right - left) * (bottom - top)).then_some(sides)
    }

    /// Which of its pixels are drawn anew, in words.
    pub fn rule(&self) -> &'static str {
        match self.rule {
            Rule::Bright => "its bright pixels are drawn anew",
            Rule::OpaqueBright => {
                "it is transparent with bright strokes: the bright strokes are drawn anew"
            }
            Rule::Opaque => "it is transparent with dark strokes: the strokes are drawn anew",
            Rule::Transparent => "it is opaque with transparent holes: the holes are drawn anew",
        }
    }
}

#[cfg(test)]
mod tests {
    use image::{GrayImage, Luma, Rgba, RgbaImage};

    use super::*;

    /// A 6x6 mask with another color in its middle 2x2.
    fn mask(outside: [u8; 4], inside: [u8; 4]) -> Mask {
        let is_inside = |x, y| (2..4).contains(&x) && (2..4).contains(&y);
        Mask::read(&DynamicImage::from(RgbaImage::from_fn(6, 6, |x, y| {
            Rgba(if is_inside(x, y) { inside } else { outside })
        })))
    }

    #[test]
    fn every_kind_of_mask_means_its_middle() {
        let (black, white, clear) = ([0, 0, 0, 255], [255, 255, 255, 255], [0, 0, 0, 0]);
        let white_clear = [255, 255, 255, 0];
        for (outside, inside, words) in [
            (black, white, "bright pixels"),
            (clear, white, "bright strokes"),
            (white_clear, white, "bright strokes"),
            (clear, black, "dark strokes"),
            (white_clear, black, "dark strokes"),
            (black, clear, "holes"),
            (white, clear, "holes"),
            ([200, 30, 30, 255], white_clear, "holes"),
        ] {
            let mask = mask(outside, inside);
            assert!(mask.contains(2, 3) && !mask.contains(1, 3), "{outside:?} {inside:?}");
            assert_eq!(mask.share(), 4.0 / 36.0);
            assert!(mask.rule().contains(words), "{}", mask.rule());
        }
        let gray = GrayImage::from_fn(4, 1, |x, _| Luma([[0, 127, 128, 255][x as usize]]));
        let gray = Mask::read(&DynamicImage::from(gray));
        let anew: Vec<bool> = (0..4).map(|x| gray.contains(x, 0)).collect();
        assert_eq!(anew, [false, false, true, true]);
    }

    #[test]
    fn a_box_ends_before_its_last_two_numbers() {
        let mask = Mask::rectangle([4, 3], [1, 0, 3, 2]);
        assert_eq!(mask.share(), 4.0 / 12.0);
        assert!(mask.contains(2, 1) && !mask.contains(3, 1) && !mask.contains(2, 2));
    }

    #[test]
    fn pixels_that_fill_a_box_are_one() {
        for sides in [[1, 0, 3, 2], [0, 0, 4, 3], [3, 2, 4, 3]] {
            assert_eq!(Mask::rectangle([4, 3], sides).as_rectangle(), Some(sides));
        }
        assert_eq!(mask([0, 0, 0, 255], [255; 4]).as_rectangle(), Some([2, 2, 4, 4]));
        // Nothing, a box with a hole, and two corners of one.
        let of = |is_anew: fn(u32, u32) -> bool| {
            let pixel = |x, y| Luma([if is_anew(x, y) { 255 } else { 0 }]);
            Mask::read(&DynamicImage::from(GrayImage::from_fn(4, 3, pixel))).as_rectangle()
        };
        assert_eq!(of(|_, _| false), None);
        assert_eq!(of(|x, y| (x, y) != (1, 1)), None);
        assert_eq!(of(|x, y| (x, y) == (0, 0) || (x, y) == (1, 1)), None);
    }
}
