//! What a sampled or edited picture is made from, in the picture itself: a text chunk of its PNG file.

use std::io::Cursor;

use image::RgbImage;
use sar_core::ScaleSchedule;
use sar_model::Precision;
use sar_rollout::Sampler;
use sar_weights::Crc32;
use serde::{Deserialize, Serialize};

/// The keyword of the chunk (PNG specification, section 11.3.3.4).
const KEYWORD: &str = "sar";

/// What a picture is made from: with it the same one is drawn again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    /// What it has in common with the others of its job.
    pub job: JobOrigin,
    /// Its class; the number of classes is no class at all.
    pub label: usize,
    /// The name of the class.
    pub class: Option<String>,
    /// Its number among those of its class.
    pub number: usize,
    /// What it is an edit of; none where all of it is drawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edit: Option<EditOrigin>,
}

/// What a picture is an edit of. The scales of its job are those before they are stretched to the picture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EditOrigin {
    /// The picture that was edited.
    pub image: SourceFile,
    /// What is drawn anew.
    pub part: EditedPart,
    /// Draws the outside of the mask or box anew.
    pub outside: bool,
    /// Coarse scales that are kept whole.
    pub keep_scales: Option<usize>,
    /// Puts the picture's own pixels back outside, mixed over so many pixels.
    pub blend: Option<u32>,
    /// Height and width in pixels, where they were asked for.
    pub size: Option<[usize; 2]>,
}

/// What an edit draws anew, in pixels of the picture: left, top, right, bottom.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EditedPart {
    /// The pixels of a mask.
    Mask(SourceFile),
    /// Those of a box, the last two sides not included.
    Box([u32; 4]),
    /// Margins around the picture.
    Margins([u32; 4]),
    /// Everything but coarse scales.
    Refine,
}

/// A file that a picture depends on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    /// Its name, without its folder, which is nobody else's business; none where the bytes were sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// CRC-32 of its bytes, in eight hexadecimal digits.
    pub checksum: String,
}

/// What pictures of one job are made from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobOrigin {
    /// The version of the program.
    pub sar: String,
    /// Seed of all pictures.
    pub seed: u64,
    /// Pictures of a class.
    pub n: usize,
    /// Pictures that were drawn together: what that changes is the rounding of products.
    pub batch: usize,
    /// The scales.
    pub scales: ScaleSchedule,
    /// Guidance and filters.
    pub sampler: Sampler,
    /// The weights, and what computed with them.
    pub made_with: MadeWith,
}

/// Weights, and what computed with them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MadeWith {
    /// Of the matrix products.
    pub precision: Precision,
    /// The backend, and of a CPU its vector instructions.
    pub device: String,
    /// The checksum of the tokenizer.
    pub tokenizer: String,
    /// The checksum of the backbone.
    pub backbone: String,
}

impl SourceFile {
    /// What is told of a file's bytes, and of its name if they have one.
    pub fn of(name: Option<String>, bytes: &[u8]) -> Self {
        Self { name, checksum: Crc32::of(bytes).to_string() }
    }
}

impl Origin {
    /// The picture as the bytes of a PNG file that has its origin in it.
    ///
    /// # Panics
    /// If the image has no pixels.
    pub fn to_png(&self, image: &RgbImage) -> Vec<u8> {
        let text = serde_json::to_string(self).expect("plain values");
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, image.width(), image.height());
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        // As `image` does.
        encoder.set_compression(png::Compression::Fast);
        encoder.set_filter(png::Filter::Adaptive);
        let written = encoder
            .add_itxt_chunk(KEYWORD.into(), text)
            .and_then(|()| encoder.write_header())
            .and_then(|mut writer| {
                writer.write_image_data(image.as_raw())?;
                writer.finish()
            });
        written.expect("memory takes any image that has pixels");
        bytes
    }

    /// The origin that a PNG file has in it, if it has one that can be read.
    pub fn of_png(bytes: &[u8]) -> Option<Self> {
        let reader = png::Decoder::new(Cursor::new(bytes)).read_info().ok()?;
        let chunk = reader.info().utf8_text.iter().find(|chunk| chunk.keyword == KEYWORD)?;
        serde_json::from_str(&chunk.get_text().ok()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use image::Rgb;
    use sar_rollout::{Choice, Guidance};

    use super::*;
    use crate::to_png;

    fn origin() -> Origin {
        Origin {
            job: JobOrigin {
                sar: "0.1.0".into(),
                seed: u64::MAX,
                n: 3,
                batch: 16,
                scales: "1_2x3".parse().unwrap(),
                sampler: Sampler {
                    guidance: Guidance::Ramp { scale: 0.1 + 0.2 },
                    choice: Choice::Sample { top_k: 7, top_p: 0.3 },
                },
                made_with: MadeWith {
                    precision: Precision::F32,
                    device: "flex".into(),
                    tokenizer: "01234567".into(),
                    backbone: "89abcdef".into(),
                },
            },
            label: 4,
            class: Some("Naturaleza 🐾 ñ".into()),
            number: 2,
            edit: None,
        }
    }

    #[test]
    fn a_file_is_told_by_its_bytes() {
        // The check value of the polynomial.
        let sent = SourceFile::of(None, b"123456789");
        assert_eq!(serde_json::to_string(&sent).unwrap(), r#"{"checksum":"cbf43926"}"#);
        let named = r#"{"name":"a.png","checksum":"cbf43926"}"#;
        let named: SourceFile = serde_json::from_str(named).unwrap();
        assert_eq!(named, SourceFile::of(Some("a.png".into()), b"123456789"));
    }

    #[test]
    fn a_picture_tells_where_it_is_from() {
        let image = RgbImage::from_fn(9, 5, |x, y| Rgb([x as u8 * 28, y as u8 * 51, 7]));
        let png = origin().to_png(&image);
        assert_eq!(Origin::of_png(&png).unwrap(), origin());
        let file = |name: &str| SourceFile::of(Some(name.into()), b"bytes");
        for part in [
            EditedPart::Mask(file("mask ñ.png")),
            EditedPart::Mask(SourceFile::of(None, b"sent")),
            EditedPart::Box([1, 2, 3, 4]),
            EditedPart::Margins([0, 0, 9, 0]),
            EditedPart::Refine,
        ] {
            let edit = EditOrigin {
                image: file("a face.png"),
                part,
                outside: true,
                keep_scales: Some(2),
                blend: None,
                size: Some([48, 64]),
            };
            let edited = Origin { edit: Some(edit), ..origin() };
            assert_eq!(Origin::of_png(&edited.to_png(&image)).unwrap(), edited);
        }
        assert_eq!(image::load_from_memory(&png).unwrap().into_rgb8(), image);
        // The pixels are written as everywhere.
        let plain = to_png(&image);
        let data = |png: &[u8]| {
            let start = png.windows(4).position(|four| four == b"IDAT").unwrap();
            png[start..].to_vec()
        };
        assert_eq!(data(&png), data(&plain));
        assert!(Origin::of_png(&plain).is_none());
        assert!(Origin::of_png(&png[..60]).is_none() && Origin::of_png(b"GIF").is_none());
    }
}
