//! Color profiles: from what an image's numbers mean to sRGB.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use image::{RgbImage, RgbaImage};
use moxcms::{ColorProfile, DataColorSpace, Layout, Transform8BitExecutor, TransformOptions};

/// How many levels of each channel are tried to see whether a profile is sRGB.
const TRIED: u8 = 6;

/// From a profile's colors to sRGB, in 8 bits.
///
/// There is none for a profile that cannot be read, one of other colors than RGB (CMYK images are
/// RGB when they are decoded, gray ones have no colors), or one that is sRGB up to one level: then
/// the numbers stay as they are.
pub(crate) struct Conversion {
    rgb: Arc<Transform8BitExecutor>,
}

impl Conversion {
    /// The conversion of an ICC profile.
    pub(crate) fn to_srgb(profile: &[u8]) -> Option<Self> {
        // The profile is a stranger's: a panic on it is as if it could not be read.
        catch_unwind(AssertUnwindSafe(|| {
            let profile = ColorProfile::new_from_slice(profile).ok()?;
            if profile.color_space != DataColorSpace::Rgb {
                return None;
            }
            let (srgb, options) = (ColorProfile::new_srgb(), TransformOptions::default());
            let rgb =
                profile.create_transform_8bit(Layout::Rgb, &srgb, Layout::Rgb, options).ok()?;
            let conversion = Self { rgb };
            (!conversion.changes_nothing()).then_some(conversion)
        }))
        .ok()?
    }

    fn changes_nothing(&self) -> bool {
        let levels = || (0..TRIED).map(|i| (u32::from(i) * 255 / u32::from(TRIED - 1)) as u8);
        let colors: Vec<u8> = levels()
            .flat_map(|r| levels().flat_map(move |g| levels().flat_map(move |b| [r, g, b])))
            .collect();
        let mut converted = colors.clone();
        self.convert(&mut converted);
        colors.iter().zip(converted).all(|(before, after)| before.abs_diff(after) <= 1)
    }

    /// Converts an image.
    pub(crate) fn apply(&self, image: &mut RgbImage) {
        let row = 3 * image.width() as usize;
        image.chunks_exact_mut(row.max(1)).for_each(|row| self.convert(row));
    }

    /// Converts the colors of an image and leaves its alpha.
    pub(crate) fn apply_to_rgba(&self, image: &mut RgbaImage) {
        let mut colors: Vec<u8> = image.pixels().flat_map(|p| [p.0[0], p.0[1], p.0[2]]).collect();
        self.convert(&mut colors);
        for (pixel, color) in image.pixels_mut().zip(colors.chunks_exact(3)) {
            pixel.0[..3].copy_from_slice(color);
        }
    }

    fn convert(&self, colors: &mut [u8]) {
        let before = colors.to_vec();
        self.rgb.transform(&before, colors).expect("both are whole pixels, as many of them");
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use image::codecs::png::PngEncoder;
    use image::codecs::tiff::TiffEncoder;
    use image::codecs::webp::WebPEncoder;
    use image::{ExtendedColorType, ImageEncoder};

    use super::*;
    use crate::decode::decode;

    /// Red, green and blue as XYZ, adapted to D50.
    type Primaries = [[f64; 3]; 3];

    const P3: Primaries =
        [[0.51512, 0.24120, -0.00105], [0.29198, 0.69225, 0.04189], [0.15710, 0.06657, 0.78407]];
    const ADOBE: Primaries =
        [[0.60974, 0.31111, 0.01947], [0.20528, 0.62567, 0.06087], [0.14919, 0.06322, 0.74457]];

    /// A display profile of version 2 (ICC.1:2001-04) with a gamma of 2.2.
    fn profile(primaries: Primaries) -> Vec<u8> {
        let fixed = |x: f64| ((x * 65536.0).round() as i32).to_be_bytes();
        let xyz = |v: [f64; 3]| [b"XYZ \0\0\0\0".to_vec(), v.map(fixed).concat()].concat();
        // 2.2 in eight bits of fraction, then two bytes to fill four.
        let gamma = b"curv\0\0\0\0\0\0\0\x01\x02\x33\0\0".to_vec();
        let [r, g, b] = primaries;
        let white = [0.9642, 1.0, 0.8249];
        let mut text = b"desc\0\0\0\0\0\0\0\x02w\0".to_vec();
        text.resize(92, 0);
        let tags: [(&[u8; 4], Vec<u8>); 9] = [
            (b"desc", text),
            (b"cprt", b"text\0\0\0\0none".to_vec()),
            (b"wtpt", xyz(white)),
            (b"rXYZ", xyz(r)),
            (b"gXYZ", xyz(g)),
            (b"bXYZ", xyz(b)),
            (b"rTRC", gamma.clone()),
            (b"gTRC", gamma.clone()),
            (b"bTRC", gamma),
        ];
        let (mut table, mut body) = (Vec::new(), Vec::new());
        let start = 128 + 4 + 12 * tags.len();
        for (name, content) in &tags {
            table.extend_from_slice(*name);
            table.extend(((start + body.len()) as u32).to_be_bytes());
            table.extend((content.len() as u32).to_be_bytes());
            body.extend_from_slice(content);
        }
        let mut whole = ((start + body.len()) as u32).to_be_bytes().to_vec();
        whole.extend(b"none\x02\x40\0\0mntrRGB XYZ ");
        whole.resize(36, 0);
        whole.extend(b"acsp");
        whole.resize(68, 0);
        whole.extend(white.map(fixed).concat());
        whole.resize(128, 0);
        whole.extend((tags.len() as u32).to_be_bytes());
        [whole, table, body].concat()
    }

    const COLORS: [[u8; 3]; 9] = [
        [220, 30, 30],
        [30, 180, 30],
        [30, 30, 220],
        [220, 220, 30],
        [128, 128, 128],
        [200, 150, 100],
        [0, 0, 0],
        [255, 255, 255],
        [90, 200, 210],
    ];

    fn png(colors: &[u8], kind: ExtendedColorType, profile: Vec<u8>) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = PngEncoder::new(&mut bytes);
        encoder.set_icc_profile(profile).unwrap();
        encoder.write_image(colors, 9, 1, kind).unwrap();
        bytes
    }

    fn check(image: &RgbImage, expected: [[u8; 3]; 9]) {
        for (i, (pixel, expected)) in image.pixels().zip(expected).enumerate() {
            let difference =
                pixel.0.iter().zip(expected).map(|(a, b)| a.abs_diff(b)).max().unwrap();
            assert!(difference <= 2, "{i}: {pixel:?}, not {expected:?}");
        }
    }

    #[test]
    fn profiles_are_converted_as_lcms_does() {
        // Pillow 13's profileToProfile, by way of lcms2.
        let from_p3 = [
            [241, 0, 0],
            [0, 185, 0],
            [24, 24, 230],
            [221, 221, 0],
            [129, 129, 129],
            [210, 149, 91],
            [0, 0, 0],
            [255, 255, 255],
            [0, 204, 213],
        ];
        let from_adobe = [
            [255, 24, 24],
            [0, 181, 0],
            [24, 24, 225],
            [221, 221, 0],
            [129, 129, 129],
            [217, 151, 97],
            [0, 0, 0],
            [255, 255, 255],
            [0, 201, 212],
        ];
        let (colors, rgb) = (COLORS.concat(), ExtendedColorType::Rgb8);
        for (primaries, expected) in [(P3, from_p3), (ADOBE, from_adobe)] {
            let profile = profile(primaries);
            check(&decode(&png(&colors, rgb, profile.clone())).unwrap(), expected);
            let mut webp = Vec::new();
            let mut encoder = WebPEncoder::new_lossless(&mut webp);
            encoder.set_icc_profile(profile.clone()).unwrap();
            encoder.write_image(&colors, 9, 1, rgb).unwrap();
            check(&decode(&webp).unwrap(), expected);
            let mut tiff = Cursor::new(Vec::new());
            let mut encoder = TiffEncoder::new(&mut tiff);
            encoder.set_icc_profile(profile).unwrap();
            encoder.write_image(&colors, 9, 1, rgb).unwrap();
            check(&decode(tiff.get_ref()).unwrap(), expected);
        }
    }

    #[test]
    fn colors_are_converted_before_alpha_is_composited() {
        let colors: Vec<u8> = COLORS.iter().flat_map(|c| [c[0], c[1], c[2], 51]).collect();
        let image = decode(&png(&colors, ExtendedColorType::Rgba8, profile(ADOBE))).unwrap();
        // A fifth of (255, 24, 24) and four fifths of white.
        let pixel = image.get_pixel(0, 0).0;
        assert!(pixel[0] == 255 && pixel[1].abs_diff(209) <= 1, "{pixel:?}");
    }

    #[test]
    fn what_is_srgb_or_no_profile_changes_nothing() {
        let colors = COLORS.concat();
        let srgb = ColorProfile::new_srgb().encode().unwrap();
        let mut cmyk = profile(P3);
        cmyk[16..20].copy_from_slice(b"CMYK");
        let mut torn = profile(P3);
        torn.truncate(150);
        for profile in [srgb, cmyk, torn, b"junk".to_vec()] {
            let image = decode(&png(&colors, ExtendedColorType::Rgb8, profile)).unwrap();
            assert_eq!(*image.as_raw(), colors);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_profile_does_harm(at in 0usize..400, with: u8, length in 0usize..450) {
            let mut profile = profile(ADOBE);
            let end = profile.len();
            profile[at.min(end - 1)] = with;
            profile.truncate(length.min(end));
            if let Some(conversion) = Conversion::to_srgb(&profile) {
                conversion.apply(&mut RgbImage::new(3, 2));
            }
        }
    }
}
