//! From the bytes of an image file to 8-bit RGB on white.

use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use image::codecs::tiff::TiffDecoder;
use image::error::{ImageError, ImageFormatHint, LimitError, LimitErrorKind};
use image::metadata::Orientation;
use image::{
    DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, Rgb, RgbImage, Rgba, RgbaImage,
};

use crate::DataError;
use crate::color::Conversion;

/// The formats that are read.
const FORMATS: [ImageFormat; 6] = [
    ImageFormat::Png,
    ImageFormat::Jpeg,
    ImageFormat::WebP,
    ImageFormat::Tiff,
    ImageFormat::Bmp,
    ImageFormat::Gif,
];

/// Extensions of files that are taken for images, in lower case.
const EXTENSIONS: [&str; 12] =
    ["png", "apng", "jpg", "jpeg", "jpe", "jfif", "webp", "tif", "tiff", "bmp", "dib", "gif"];

/// Extensions of images that are not read, in lower case.
const FOREIGN: [&str; 26] = [
    "avif", "heic", "heif", "hif", "jxl", "svg", "svgz", "jp2", "j2k", "jpx", "ppm", "pgm", "pbm",
    "pnm", "tga", "ico", "exr", "hdr", "dds", "psd", "qoi", "dng", "cr2", "nef", "arw", "raw",
];

/// The largest decoded image, in bytes; a small file that claims more is refused unread.
const MAX_DECODED_BYTES: u64 = 512 << 20;

/// The largest image as it is stored, in bytes.
const MAX_STORED_BYTES: u64 = 256 << 20;

/// Reads a PNG, JPEG, WebP, TIFF, BMP or GIF file as 8-bit sRGB on white, upright; also returns its bytes.
///
/// # Errors
/// If it cannot be read, is not a whole image, or a larger one than any should be.
pub fn read_image(path: &Path) -> Result<(RgbImage, Vec<u8>), DataError> {
    read_as(path, decode)
}

/// Reads a mask: a file as [`read_image`] takes it, upright as a picture is, but with its transparency, and its levels as
/// they are stored; also returns its bytes.
///
/// # Errors
/// As [`read_image`].
pub fn read_mask(path: &Path) -> Result<(DynamicImage, Vec<u8>), DataError> {
    read_as(path, |bytes| guarded(bytes, |bytes| Ok(upright(bytes)?.0)))
}

fn read_as<T>(
    path: &Path,
    decode: impl FnOnce(&[u8]) -> Result<T, String>,
) -> Result<(T, Vec<u8>), DataError> {
    let read = read_file(path).and_then(|bytes| Ok((decode(&bytes)?, bytes)));
    read.map_err(|reason| DataError::Unreadable { image: path.display().to_string(), reason })
}

/// As [`read_image`], from the bytes of a file, of at most so many pixels: one that claims more is refused
/// before anything is decoded.
///
/// # Errors
/// The reason, in one line, as [`read_image`] or if there are more pixels.
pub fn decode_image(bytes: &[u8], most_pixels: u64) -> Result<RgbImage, String> {
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format();
    let size = catch_unwind(AssertUnwindSafe(|| reader.map(ImageReader::into_dimensions)));
    match size {
        Ok(Ok(Ok((width, height)))) if u64::from(width) * u64::from(height) > most_pixels => {
            Err(format!("{width}x{height} pixels are more than {most_pixels} (width x height)"))
        }
        _ => decode(bytes),
    }
}

/// Width and height that a file has [decoded](decode), from its header, if that can be read.
pub(crate) fn size_in_header(path: &Path) -> Option<[u32; 2]> {
    let read = || -> Result<[u32; 2], ImageError> {
        let mut decoder = ImageReader::open(path)?.with_guessed_format()?.into_decoder()?;
        let (width, height) = decoder.dimensions();
        Ok(match decoder.orientation()? {
            Orientation::Rotate90
            | Orientation::Rotate270
            | Orientation::Rotate90FlipH
            | Orientation::Rotate270FlipH => [height, width],
            _ => [width, height],
        })
    };
    catch_unwind(AssertUnwindSafe(read)).ok()?.ok()
}

/// Whether files with this extension are taken for images, in upper or lower case.
pub(crate) fn is_image_extension(extension: &str) -> bool {
    EXTENSIONS.contains(&extension.to_ascii_lowercase().as_str())
}

/// Whether files with this extension, in lower case, are images of a format that is not read.
pub(crate) fn is_foreign_extension(extension: &str) -> bool {
    FOREIGN.contains(&extension)
}

/// Decodes a PNG, JPEG, WebP, TIFF, BMP or GIF file, of an animation its first picture.
///
/// The content decides the format, not the file's name. 16-bit, gray, CMYK and palette images become
/// 8-bit RGB, a color profile is converted to sRGB as [`Conversion`] says, alpha is composited on
/// white, and a photograph is turned upright as its EXIF orientation says.
///
/// # Errors
/// The reason, in one line, if it is not a whole image of these formats or a larger one than the
/// limits of this file.
pub(crate) fn decode(bytes: &[u8]) -> Result<RgbImage, String> {
    guarded(bytes, on_white_in_srgb)
}

/// Decodes, with the reason in one line if it fails.
fn guarded<T>(
    bytes: &[u8],
    decode: impl FnOnce(&[u8]) -> Result<T, ImageError>,
) -> Result<T, String> {
    // A decoder that panics on a file must not end a run: to the user it is one more broken file.
    match catch_unwind(AssertUnwindSafe(|| decode(bytes))) {
        Ok(Ok(decoded)) => Ok(decoded),
        Ok(Err(ImageError::Limits(_))) => {
            Err(format!("it would take more than {} MiB decoded", MAX_DECODED_BYTES >> 20))
        }
        Ok(Err(error)) => {
            Err(foreign(bytes).unwrap_or_else(|| error.to_string().replace('\n', " ")))
        }
        Err(_) => Err("the decoder gave up on it".into()),
    }
}

/// Reads a whole file that is to be decoded.
///
/// # Errors
/// The reason, in one line, if it cannot be read or is larger than any image should be.
pub(crate) fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let length = file.metadata().map_err(|error| error.to_string())?.len();
    read(file, length)
}

/// Reads `length` bytes of a file from `offset` on.
///
/// # Errors
/// As [`read_file`], or if the file ends before.
pub(crate) fn read_part(path: &Path, offset: u64, length: u64) -> Result<Vec<u8>, String> {
    let mut file = File::open(path).map_err(|error| error.to_string())?;
    file.seek(SeekFrom::Start(offset)).map_err(|error| error.to_string())?;
    let bytes = read(file, length)?;
    if (bytes.len() as u64) < length {
        return Err(format!("the file ends after {} of its {length} bytes", bytes.len()));
    }
    Ok(bytes)
}

fn read(file: File, length: u64) -> Result<Vec<u8>, String> {
    if length > MAX_STORED_BYTES {
        return Err(format!("{} MiB, more than {}", length >> 20, MAX_STORED_BYTES >> 20));
    }
    let mut bytes = Vec::with_capacity(length as usize);
    file.take(length).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    Ok(bytes)
}

/// `c * a + 255 * (1 - a)` of each channel, rounded.
pub(crate) fn on_white(image: &RgbaImage) -> RgbImage {
    RgbImage::from_fn(image.width(), image.height(), |x, y| {
        let Rgba([r, g, b, a]) = *image.get_pixel(x, y);
        let alpha = u32::from(a);
        let mix = |c: u8| ((u32::from(c) * alpha + 255 * (255 - alpha) + 127) / 255) as u8;
        Rgb([mix(r), mix(g), mix(b)])
    })
}

/// What a file is that is not read, by its first bytes, and what to do.
fn foreign(bytes: &[u8]) -> Option<String> {
    let brand = bytes.get(4..12).filter(|b| b.starts_with(b"ftyp")).map(|b| &b[4..]);
    let name = match (brand, bytes) {
        (Some(b"avif" | b"avis"), _) => "an AVIF image",
        (Some(b"heic" | b"heix" | b"hevc" | b"mif1" | b"msf1"), _) => "a HEIC image",
        (_, [0xFF, 0x0A, ..] | [0, 0, 0, 12, b'J', b'X', b'L', b' ', ..]) => "a JPEG XL image",
        (_, [0, 0, 0, 12, b'j', b'P', b' ', b' ', ..]) => "a JPEG 2000 image",
        (_, []) => return Some("the file is empty".into()),
        (_, [b'<', ..]) => return Some("it is a text with tags, as of a web page or SVG".into()),
        (_, text) if text.starts_with(b"version https://git-lfs") => {
            return Some("it is a pointer of Git LFS; fetch the file with git lfs pull".into());
        }
        _ => return None,
    };
    Some(format!("it is {name}, which is not read; convert it to PNG or JPEG"))
}

/// An image within the limits of this file, turned upright, and its color profile where it has one.
fn upright(bytes: &[u8]) -> Result<(DynamicImage, Option<Vec<u8>>), ImageError> {
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
    // Whatever else the image crate was built for by other crates.
    if let Some(other) = reader.format().filter(|format| !FORMATS.contains(format)) {
        return Err(ImageError::Unsupported(ImageFormatHint::Exact(other).into()));
    }
    let is_tiff = reader.format() == Some(ImageFormat::Tiff);
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_DECODED_BYTES);
    reader.limits(limits);
    if reader.format() == Some(ImageFormat::Jpeg) && !is_whole_jpeg(bytes) {
        return Err(std::io::Error::other("it ends too early").into());
    }
    let mut decoder = reader.into_decoder()?;
    if decoder.total_bytes() > MAX_DECODED_BYTES {
        return Err(ImageError::Limits(LimitError::from_kind(LimitErrorKind::InsufficientMemory)));
    }
    let orientation = decoder.orientation()?;
    let is_color = decoder.color_type().has_color();
    // A profile that cannot be read is as one that is not there.
    let profile = if is_tiff {
        // Its decoder takes the size of the pixels for the limit of a profile; unlimited by us, it
        // has limits of its own.
        TiffDecoder::new(Cursor::new(bytes)).and_then(|mut decoder| decoder.icc_profile())
    } else {
        decoder.icc_profile()
    };
    let profile = profile.ok().flatten().filter(|_| is_color);
    let mut image = DynamicImage::from_decoder(decoder)?;
    image.apply_orientation(orientation);
    Ok((image, profile))
}

fn on_white_in_srgb(bytes: &[u8]) -> Result<RgbImage, ImageError> {
    let (image, profile) = upright(bytes)?;
    let conversion = profile.and_then(|profile| Conversion::to_srgb(&profile));
    Ok(if image.color().has_alpha() {
        let mut image = image.into_rgba8();
        if let Some(conversion) = conversion {
            conversion.apply_to_rgba(&mut image);
        }
        on_white(&image)
    } else {
        let mut image = image.into_rgb8();
        if let Some(conversion) = conversion {
            conversion.apply(&mut image);
        }
        image
    })
}

/// Whether a JPEG file has its end; the decoder paints what is missing gray and says nothing.
///
/// Walks the markers of ITU-T T.81, annex B: a segment has a length, and coded data goes on to the
/// next marker that is neither a restart nor a stuffed 0xFF.
fn is_whole_jpeg(bytes: &[u8]) -> bool {
    const RESTARTS: std::ops::RangeInclusive<u8> = 0xD0..=0xD7;
    let mut at = 2;
    loop {
        let Some(mark) = bytes.get(at..).and_then(|rest| rest.iter().position(|b| *b == 0xFF))
        else {
            return false;
        };
        at += mark + 1;
        let Some(&marker) = bytes.get(at) else { return false };
        match marker {
            // Fill bytes: the marker is yet to come.
            0xFF => continue,
            0xD9 => return true,
            0x00 | 0x01 => {}
            _ if RESTARTS.contains(&marker) => {}
            _ => {
                let Some(length) = bytes.get(at + 1..at + 3) else { return false };
                at += usize::from(u16::from_be_bytes([length[0], length[1]]));
            }
        }
        at += 1;
    }
}

#[cfg(test)]
mod tests {
    use image::codecs::gif::GifEncoder;
    use image::codecs::jpeg::JpegEncoder;
    use image::codecs::png::PngEncoder;
    use image::codecs::webp::WebPEncoder;
    use image::{ExtendedColorType, Frame, ImageBuffer, ImageEncoder, Luma, LumaA};
    use proptest::prelude::*;

    use super::*;
    use crate::testing::noise;

    fn encode(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.into().write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    fn through_png(image: impl Into<DynamicImage>) -> RgbImage {
        decode(&encode(image, ImageFormat::Png)).unwrap()
    }

    #[test]
    fn alpha_goes_on_white() {
        let image = through_png(
            RgbaImage::from_raw(
                3,
                1,
                vec![
                    10, 20, 30, 0, // transparent
                    10, 20, 30, 255, // opaque
                    0, 100, 255, 51, // a fifth
                ],
            )
            .unwrap(),
        );
        assert_eq!(image.into_raw(), [255, 255, 255, 10, 20, 30, 204, 224, 255]);
        let gray = through_png(ImageBuffer::<LumaA<u8>, _>::from_raw(1, 1, vec![0, 51]).unwrap());
        assert_eq!(gray.into_raw(), [204, 204, 204]);
    }

    #[test]
    fn sixteen_bits_and_gray_become_eight_bit_rgb() {
        let deep = ImageBuffer::<Rgb<u16>, _>::from_raw(2, 1, vec![0, 257, 65535, 128, 129, 25700]);
        assert_eq!(through_png(deep.unwrap()).into_raw(), [0, 1, 255, 0, 1, 100]);
        let gray = ImageBuffer::<Luma<u8>, _>::from_raw(2, 1, vec![7, 200]).unwrap();
        assert_eq!(through_png(gray).into_raw(), [7, 7, 7, 200, 200, 200]);
        let deep_gray = ImageBuffer::<Luma<u16>, _>::from_raw(1, 1, vec![2570]).unwrap();
        assert_eq!(through_png(deep_gray).into_raw(), [10, 10, 10]);
        let deep_alpha = ImageBuffer::<Rgba<u16>, _>::from_raw(1, 1, vec![0, 25700, 65535, 13107]);
        assert_eq!(through_png(deep_alpha.unwrap()).into_raw(), [204, 224, 255]);
    }

    #[test]
    fn cmyk_becomes_rgb() {
        // 8x8 px each of these inks, four in a row; written by Pillow, inverted as Adobe does.
        let cmyk = decode(include_bytes!("../tests/cmyk.jpg")).unwrap();
        let inks: [[u32; 4]; 8] = [
            [0, 0, 0, 0],
            [255, 0, 0, 0],
            [0, 255, 0, 0],
            [0, 0, 255, 0],
            [0, 0, 0, 255],
            [60, 120, 180, 40],
            [200, 20, 90, 128],
            [0, 0, 0, 100],
        ];
        for (i, [c, m, y, k]) in inks.into_iter().enumerate() {
            let pixel = cmyk.get_pixel(i as u32 % 4 * 8 + 4, i as u32 / 4 * 8 + 4).0;
            for (level, ink) in pixel.into_iter().zip([c, m, y]) {
                let expected = (255 - ink) * (255 - k) / 255;
                assert!(u32::from(level).abs_diff(expected) <= 2, "{i}: {pixel:?}");
            }
        }
    }

    #[test]
    fn tiff_bmp_and_gif_are_read() {
        let image = noise(7, 5);
        for format in [ImageFormat::Tiff, ImageFormat::Bmp] {
            assert_eq!(decode(&encode(image.clone(), format)).unwrap(), image, "{format:?}");
        }
        let deep = ImageBuffer::<Rgb<u16>, _>::from_raw(1, 1, vec![257, 65535, 25700]).unwrap();
        assert_eq!(decode(&encode(deep, ImageFormat::Tiff)).unwrap().into_raw(), [1, 255, 100]);
        // Two pictures of 2x1 px with a transparent color; the first is shown.
        let mut gif = Vec::new();
        let mut encoder = GifEncoder::new(&mut gif);
        for level in [10, 200] {
            let pixels = vec![level, 0, 0, 255, 0, 0, 0, 0];
            let picture = RgbaImage::from_raw(2, 1, pixels).unwrap();
            encoder.encode_frame(Frame::new(picture)).unwrap();
        }
        drop(encoder);
        assert_eq!(decode(&gif).unwrap().into_raw(), [10, 0, 0, 255, 255, 255]);
    }

    #[test]
    fn what_is_not_read_is_named() {
        let reason = |bytes: &[u8]| decode(bytes).unwrap_err();
        assert!(reason(b"\0\0\0\x1cftypavif\0\0\0\0").contains("an AVIF image, which is not read"));
        assert!(reason(b"\0\0\0\x18ftypheic\0\0\0\0").contains("a HEIC image"));
        assert!(reason(b"\xFF\x0A\x00\x00").contains("a JPEG XL image"));
        assert_eq!(reason(b""), "the file is empty");
        assert!(reason(b"<svg xmlns=...").contains("a text with tags"));
        assert!(reason(b"version https://git-lfs.github.com/spec/v1").contains("git lfs pull"));
    }

    #[test]
    fn a_palette_is_looked_up() {
        // 2x1 px of 1 bit: palette entry 1, (1, 2, 3), then entry 0, which is transparent.
        let png = b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR\x00\x00\x00\x02\x00\x00\x00\x01\x01\x03\
            \x00\x00\x00\xce\xec\xed\xc9\x00\x00\x00\x06PLTE\x09\x09\x09\x01\x02\x03X\x8d\x9c\xf3\
            \x00\x00\x00\x01tRNS\x00@\xe6\xd8f\x00\x00\x00\x0aIDATx\x9cch\x00\x00\x00\x82\x00\x81w\
            \xcdr\xb6\x00\x00\x00\x00IEND\xaeB`\x82";
        assert_eq!(decode(png).unwrap().into_raw(), [1, 2, 3, 255, 255, 255]);
    }

    #[test]
    fn exif_orientation_turns_the_picture_upright() {
        // Little-endian TIFF header, one entry: tag 0x0112 (orientation), short, 6 = turn right.
        let exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
        let mut webp = Vec::new();
        let mut encoder = WebPEncoder::new_lossless(&mut webp);
        encoder.set_exif_metadata(exif.to_vec()).unwrap();
        encoder.write_image(&[1, 1, 1, 9, 9, 9], 2, 1, ExtendedColorType::Rgb8).unwrap();
        let image = decode(&webp).unwrap();
        assert_eq!(image.dimensions(), (1, 2), "the file lies on its side");
        assert_eq!(image.into_raw(), [1, 1, 1, 9, 9, 9]);
    }

    /// A picture and its mask from the same camera or editor lie on each other.
    #[test]
    fn a_mask_is_turned_as_its_picture_and_keeps_its_alpha() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mask.png");
        let pixels = [[9, 9, 9, 255], [200, 200, 200, 40]];
        // EXIF values, and where the left pixel comes to lie: at the place, and of how many (width, height).
        for (orientation, place, size) in [
            (1, [0, 0], (2, 1)),
            (2, [1, 0], (2, 1)),
            (3, [1, 0], (2, 1)),
            (6, [0, 0], (1, 2)),
            (8, [0, 1], (1, 2)),
        ] {
            let mut exif =
                b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\0\0\0\0\0\0\0\0".to_vec();
            exif[18] = orientation;
            let mut file = File::create(&path).unwrap();
            let mut encoder = PngEncoder::new(&mut file);
            encoder.set_exif_metadata(exif).unwrap();
            encoder.write_image(&pixels.concat(), 2, 1, ExtendedColorType::Rgba8).unwrap();
            let (mask, bytes) = read_mask(&path).unwrap();
            let (image, same) = read_image(&path).unwrap();
            let mask = mask.into_rgba8();
            assert_eq!((mask.dimensions(), image.dimensions()), (size, size), "{orientation}");
            assert_eq!(size_in_header(&path), Some([size.0, size.1]), "{orientation}");
            assert!(bytes == std::fs::read(&path).unwrap() && bytes == same, "{orientation}");
            let at = |[x, y]: [u32; 2]| mask.get_pixel(x, y).0;
            assert_eq!(at(place), pixels[0], "{orientation}");
            let other = [size.0 - 1 - place[0], size.1 - 1 - place[1]];
            assert_eq!(at(other), pixels[1], "{orientation}");
        }
    }

    #[test]
    fn a_mask_has_the_limits_of_a_picture() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mask");
        let reason = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            read_mask(&path).unwrap_err().to_string()
        };
        let huge = reason(&claims_61440_pixels_each_way());
        assert!(huge.contains("mask: ") && huge.contains("more than 512 MiB decoded"), "{huge}");
        assert!(reason(b"").contains("the file is empty"));
        assert!(reason(b"P6 1 1 255 abc").contains("not a readable image"));
        let missing = read_mask(&folder.path().join("nowhere")).unwrap_err().to_string();
        assert!(missing.contains("nowhere"), "{missing}");
    }

    fn claims_61440_pixels_each_way() -> Vec<u8> {
        let mut png = encode(RgbImage::new(1, 1), ImageFormat::Png);
        // The header chunk's checksum covers its type and data, bytes 12..29.
        png[16..24].copy_from_slice(&[0, 0, 0xF0, 0, 0, 0, 0xF0, 0]);
        let checksum = crc32(&png[12..29]);
        png[29..33].copy_from_slice(&checksum.to_be_bytes());
        png
    }

    #[test]
    fn a_small_file_that_claims_a_huge_image_is_refused() {
        let expected = "it would take more than 512 MiB decoded";
        assert_eq!(decode(&claims_61440_pixels_each_way()).unwrap_err(), expected);
        // The frame header's height and width, two bytes each.
        let mut jpeg = encode(RgbImage::new(8, 8), ImageFormat::Jpeg);
        let frame = jpeg.windows(2).position(|pair| pair == [0xFF, 0xC0]).unwrap();
        jpeg[frame + 5..frame + 9].fill(0xFF);
        assert_eq!(decode(&jpeg).unwrap_err(), expected);
    }

    #[test]
    fn a_file_too_large_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sparse.png");
        File::create(&path).unwrap().set_len(MAX_STORED_BYTES + 1).unwrap();
        assert_eq!(read_file(&path).unwrap_err(), "256 MiB, more than 256");
        assert!(read_part(&path, MAX_STORED_BYTES, 2).unwrap_err().contains("after 1 of its 2"));
    }

    #[test]
    fn other_formats_and_nothing_are_refused() {
        assert!(decode(b"").is_err());
        assert!(decode(b"GIF89a\x01\0\x01\0\0\0\0;").is_err(), "no picture");
        assert!(decode(b"P6 1 1 255 abc").is_err());
        assert!(!decode(b"\xFF\xD8\xFF").unwrap_err().contains('\n'));
    }

    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0, |crc, &byte| {
            let shift = |c: u32| (c >> 1) ^ (0xEDB8_8320 & (c & 1).wrapping_neg());
            (0..8).fold(crc ^ u32::from(byte), |c, _| shift(c))
        })
    }

    proptest! {
        #[test]
        fn a_torn_image_is_refused_or_was_whole(
            width in 1u32..24, height in 1u32..24, kind in 0usize..6, cut in 0.0f64..1.0,
        ) {
            let image = noise(width, height);
            let whole = match kind {
                0 => encode(image, ImageFormat::Png),
                1 => encode(image, ImageFormat::WebP),
                2 => encode(image, ImageFormat::Tiff),
                3 => encode(image, ImageFormat::Bmp),
                4 => encode(image, ImageFormat::Gif),
                _ => {
                    let mut jpeg = Vec::new();
                    JpegEncoder::new_with_quality(&mut jpeg, 60).encode_image(&image).unwrap();
                    jpeg
                }
            };
            let original = decode(&whole).unwrap();
            let torn = decode(&whole[..(cut * whole.len() as f64) as usize]);
            prop_assert!(torn.is_err() || torn.unwrap() == original);
        }

        #[test]
        fn no_bytes_do_harm(mut bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 0usize..7) {
            let magic: [&[u8]; 7] = [
                b"\x89PNG\r\n\x1a\n", b"\xFF\xD8\xFF", b"RIFF\xF0\0\0\0WEBPVP8 ", b"II*\0\x08\0\0\0", b"BM", b"GIF89a", b"",
            ];
            let magic = magic[kind];
            bytes.splice(0..0, magic.iter().copied());
            let _ = decode(&bytes);
            let _ = guarded(&bytes, upright);
        }

        #[test]
        fn a_damaged_image_does_no_harm(kind in 0usize..FORMATS.len(), at in 0.0f64..1.0, with: u8) {
            let format = FORMATS[kind];
            let mut bytes = encode(noise(17, 9), format);
            let at = (at * bytes.len() as f64) as usize;
            bytes[at] = with;
            let _ = decode(&bytes);
        }
    }
}
