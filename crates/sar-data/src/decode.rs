//! From the bytes of an image file to 8-bit RGB on white.

use std::fs::File;
use std::io::{BufRead, BufReader, Seek};
use std::path::Path;

use image::error::{ImageError, LimitError, LimitErrorKind};
use image::{DynamicImage, ImageDecoder, ImageReader, Rgb, RgbImage, Rgba, RgbaImage};

use crate::DataError;

/// The largest decoded image, in bytes; a small file that claims more is refused unread.
const MAX_DECODED_BYTES: u64 = 512 << 20;

/// Reads a PNG, JPEG or WebP file.
///
/// The content decides the format, not the file's name. 16-bit, grey and palette images become 8-bit
/// RGB, alpha is composited on white, and a photograph is turned upright as its EXIF orientation
/// says.
///
/// # Errors
/// [`DataError::Io`] if the file cannot be opened, [`DataError::Unreadable`] if it is not an image.
pub(crate) fn read_rgb(path: &Path) -> Result<RgbImage, DataError> {
    read(path, decode)
}

/// Reads no more than the header of an image file.
///
/// # Errors
/// As [`read_rgb`], for what the header tells.
pub(crate) fn check(path: &Path) -> Result<(), DataError> {
    read(path, |reader| check_size(&reader.into_decoder()?))
}

fn read<T>(
    path: &Path,
    with: impl FnOnce(ImageReader<BufReader<File>>) -> Result<T, ImageError>,
) -> Result<T, DataError> {
    let io = |error: std::io::Error| DataError::Io { path: path.into(), reason: error.to_string() };
    let reader = ImageReader::open(path).map_err(io)?.with_guessed_format().map_err(io)?;
    with(reader).map_err(|error| DataError::Unreadable {
        path: path.into(),
        reason: error.to_string().replace('\n', " "),
    })
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

fn check_size(decoder: &impl ImageDecoder) -> Result<(), ImageError> {
    if decoder.total_bytes() > MAX_DECODED_BYTES {
        return Err(ImageError::Limits(LimitError::from_kind(LimitErrorKind::InsufficientMemory)));
    }
    Ok(())
}

fn decode<R: BufRead + Seek>(reader: ImageReader<R>) -> Result<RgbImage, ImageError> {
    let mut decoder = reader.into_decoder()?;
    check_size(&decoder)?;
    let orientation = decoder.orientation()?;
    let mut image = DynamicImage::from_decoder(decoder)?;
    image.apply_orientation(orientation);
    Ok(if image.color().has_alpha() { on_white(&image.into_rgba8()) } else { image.into_rgb8() })
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use image::codecs::webp::WebPEncoder;
    use image::{ExtendedColorType, ImageBuffer, ImageEncoder, ImageFormat, Luma, LumaA};

    use super::*;

    /// Writes `image` as a PNG file and reads it back.
    fn through_png(image: impl Into<DynamicImage>) -> RgbImage {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image.png");
        image.into().save(&path).unwrap();
        read_rgb(&path).unwrap()
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
        let grey = through_png(ImageBuffer::<LumaA<u8>, _>::from_raw(1, 1, vec![0, 51]).unwrap());
        assert_eq!(grey.into_raw(), [204, 204, 204]);
    }

    #[test]
    fn sixteen_bits_and_grey_become_eight_bit_rgb() {
        let deep = ImageBuffer::<Rgb<u16>, _>::from_raw(2, 1, vec![0, 257, 65535, 128, 129, 25700]);
        assert_eq!(through_png(deep.unwrap()).into_raw(), [0, 1, 255, 0, 1, 100]);
        let grey = ImageBuffer::<Luma<u8>, _>::from_raw(2, 1, vec![7, 200]).unwrap();
        assert_eq!(through_png(grey).into_raw(), [7, 7, 7, 200, 200, 200]);
        let deep_grey = ImageBuffer::<Luma<u16>, _>::from_raw(1, 1, vec![2570]).unwrap();
        assert_eq!(through_png(deep_grey).into_raw(), [10, 10, 10]);
    }

    #[test]
    fn a_palette_is_looked_up() {
        // 2x1 px of 1 bit: palette entry 1, (1, 2, 3), then entry 0, which is transparent.
        let png = b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR\x00\x00\x00\x02\x00\x00\x00\x01\x01\x03\
            \x00\x00\x00\xce\xec\xed\xc9\x00\x00\x00\x06PLTE\x09\x09\x09\x01\x02\x03X\x8d\x9c\xf3\
            \x00\x00\x00\x01tRNS\x00@\xe6\xd8f\x00\x00\x00\x0aIDATx\x9cch\x00\x00\x00\x82\x00\x81w\
            \xcdr\xb6\x00\x00\x00\x00IEND\xaeB`\x82";
        assert_eq!(decode_bytes(png).unwrap().into_raw(), [1, 2, 3, 255, 255, 255]);
    }

    #[test]
    fn exif_orientation_turns_the_picture_upright() {
        // Little-endian TIFF header, one entry: tag 0x0112 (orientation), short, 6 = turn right.
        let exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
        let mut webp = Vec::new();
        let mut encoder = WebPEncoder::new_lossless(&mut webp);
        encoder.set_exif_metadata(exif.to_vec()).unwrap();
        encoder.write_image(&[1, 1, 1, 9, 9, 9], 2, 1, ExtendedColorType::Rgb8).unwrap();
        let image = decode_bytes(&webp).unwrap();
        assert_eq!(image.dimensions(), (1, 2), "the file lies on its side");
        assert_eq!(image.into_raw(), [1, 1, 1, 9, 9, 9]);
    }

    #[test]
    fn a_small_file_that_claims_a_huge_image_is_refused() {
        let mut png = Vec::new();
        RgbImage::new(1, 1).write_to(&mut Cursor::new(&mut png), ImageFormat::Png).unwrap();
        // 61 440 px each way; the header chunk's checksum covers its type and data, bytes 12..29.
        png[16..24].copy_from_slice(&[0, 0, 0xF0, 0, 0, 0, 0xF0, 0]);
        let checksum = crc32(&png[12..29]);
        png[29..33].copy_from_slice(&checksum.to_be_bytes());
        let error = decode_bytes(&png).unwrap_err();
        assert!(matches!(error, ImageError::Limits(_)), "{error}");
    }

    fn decode_bytes(bytes: &[u8]) -> Result<RgbImage, ImageError> {
        decode(ImageReader::new(Cursor::new(bytes)).with_guessed_format()?)
    }

    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0, |crc, &byte| {
            let shift = |c: u32| (c >> 1) ^ (0xEDB8_8320 & (c & 1).wrapping_neg());
            (0..8).fold(crc ^ u32::from(byte), |c, _| shift(c))
        })
    }
}
