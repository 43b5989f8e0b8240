//! What clients ask for, and what it comes to once it is checked.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};
use sar_core::{ScaleSchedule, class_query};
use sar_pipeline::{
    EditOrigin, EditSettings, EditedPart, JobOrigin, MadeWith, Mask, Origin, Part, RgbImage,
    SourceFile, Wishes, size_in_pixels,
};
use sar_rollout::Sampler;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::engine::{Engine, What, Work};
use crate::{Bounds, Refused};

/// What `sar sample` draws together if nothing else is said.
const BATCH: usize = 16;
/// The longest text in a request that is no picture.
const LONGEST_TEXT: usize = 256;
/// Of what went wrong with a request, so many characters are told.
const LONGEST_QUOTE: usize = 200;
/// A picture may be this many times as long as it is wide, and the other way round.
const MOST_ASPECT: u64 = 8;

/// What to sample; of what is not said, what `sar sample` does.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct SampleRequest {
    /// By name or index; none for no class at all.
    pub class: Option<String>,
    /// The seed of all pictures.
    pub seed: u64,
    /// How many.
    pub count: usize,
    /// Scale of the guidance.
    pub guidance: Option<f64>,
    /// 0 for all.
    pub top_k: Option<usize>,
    /// In [0, 1]; 0 for all.
    pub top_p: Option<f64>,
    /// Mixes codes instead of drawing one.
    pub more_smooth: bool,
    /// As in `1_2_3`, or a preset.
    pub scales: Option<String>,
    /// As in `64x96`, height first.
    pub size: Option<String>,
    /// Whether every scale is shown.
    pub previews: bool,
}

impl Default for SampleRequest {
    fn default() -> Self {
        Self {
            class: None,
            seed: 0,
            count: 1,
            guidance: None,
            top_k: None,
            top_p: None,
            more_smooth: false,
            scales: None,
            size: None,
            previews: true,
        }
    }
}

/// What to edit.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct EditRequest {
    /// The bytes of an image file in base64.
    pub image: String,
    /// What is done.
    pub mode: Mode,
    /// The bytes of a PNG of the size of the picture in base64.
    #[serde(default)]
    pub mask: Option<String>,
    /// Left, top, right, bottom in pixels of the picture, the last two not included.
    #[serde(default, rename = "box")]
    pub rectangle: Option<[u32; 4]>,
    /// Draws the outside of the mask or box anew.
    #[serde(default)]
    pub outside: bool,
    /// Left, top, right, bottom in pixels of the picture.
    #[serde(default)]
    pub margins: Option<[u32; 4]>,
    /// Coarse scales that are kept whole.
    #[serde(default)]
    pub keep_scales: Option<usize>,
    /// Puts the picture's own pixels back outside, mixed over so many pixels.
    #[serde(default)]
    pub blend: Option<u32>,
    /// How it is drawn.
    #[serde(default)]
    pub sampling: SampleRequest,
}

/// What is done with a picture.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Mode {
    /// The inside or outside of a mask or box is drawn anew.
    Inpaint,
    /// Margins are drawn.
    Expand,
    /// Details are drawn anew.
    Refine,
}

/// What was sent with a request to edit, decoded, and what results say of it.
#[derive(Clone, Debug)]
pub struct Decoded {
    source: RgbImage,
    part: Part,
    image: SourceFile,
    told: EditedPart,
}

/// Reads a request.
///
/// # Errors
/// If it is no JSON object of the request's fields.
pub fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refused> {
    // Fields in a list, without their names, would be taken as well.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(Refused::new("the request is not understood: it is no JSON object"));
    }
    serde_json::from_slice(body).map_err(|error| {
        // It quotes what was sent, which may be long.
        let why: String = error.to_string().chars().take(LONGEST_QUOTE).collect();
        Refused::new(format!("the request is not understood: {why}"))
    })
}

impl SampleRequest {
    fn wishes(&self) -> Result<Wishes, Refused> {
        let texts = [("class", &self.class), ("scales", &self.scales), ("size", &self.size)];
        for (name, text) in texts {
            if text.as_ref().is_some_and(|text| text.len() > LONGEST_TEXT) {
                let why = format!("{name}: is longer than {LONGEST_TEXT} bytes");
                return Err(Refused::new(why));
            }
        }
        let scales = self.scales.as_deref().map(str::parse::<ScaleSchedule>);
        let wishes = Wishes {
            guidance: self.guidance,
            top_k: self.top_k,
            top_p: self.top_p,
            more_smooth: self.more_smooth,
            scales: scales.transpose().map_err(|error| Refused::new(format!("scales: {error}")))?,
            size: self.size.as_deref().map(size_in_pixels).transpose()?,
        };
        wishes.check()?;
        Ok(wishes)
    }

    fn check_count(&self, bounds: &Bounds) -> Result<(), Refused> {
        match self.count {
            n if (1..=bounds.count).contains(&n) => Ok(()),
            n => Err(Refused::new(format!("count {n}: must be from 1 to {}", bounds.count))),
        }
    }

    /// Checks all of it. The files of the pictures say what they are from if they are `made_with` something.
    ///
    /// # Errors
    /// Why the model cannot draw it, or that it is too much.
    pub fn work(
        &self,
        engine: &dyn Engine,
        bounds: &Bounds,
        made_with: Option<MadeWith>,
    ) -> Result<Work, Refused> {
        let wishes = self.wishes()?;
        self.check_count(bounds)?;
        let label = engine.label(self.class.as_deref())?;
        let (scales, sampler) = (engine.scales(&wishes)?, engine.sampler(&wishes));
        within(bounds, engine, &scales, self.count as f64)?;
        let origin =
            made_with.map(|made_with| self.origin(engine, label, (&scales, sampler), made_with));
        let what = What::Sample { label, seed: self.seed, scales, sampler };
        Ok(Work { what, count: self.count, previews: self.previews, origin })
    }

    /// What the files of the pictures say, but for their numbers.
    fn origin(
        &self,
        engine: &dyn Engine,
        label: usize,
        (scales, sampler): (&ScaleSchedule, Sampler),
        made_with: MadeWith,
    ) -> Origin {
        Origin {
            job: JobOrigin {
                sar: env!("CARGO_PKG_VERSION").into(),
                seed: self.seed,
                n: self.count,
                batch: self.count.max(BATCH),
                scales: scales.clone(),
                sampler,
                made_with,
            },
            label,
            class: engine.classes().get(label).cloned(),
            number: 0,
            edit: None,
        }
    }

    /// The command that draws the same pictures, for those who have the program. `command` names the
    /// weights.
    ///
    /// # Errors
    /// If no class or more than one is meant.
    pub fn command(&self, command: &str, engine: &dyn Engine) -> Result<String, Refused> {
        let (label, classes) = (engine.label(self.class.as_deref())?, engine.classes());
        let class = match class_query(classes, label) {
            _ if label >= classes.len() => "--unconditional".into(),
            // Within a word it begins no comment.
            query if query.starts_with('#') => format!("--class={query}"),
            query => format!("--class {query}"),
        };
        let mut text = format!("{command} {class} --n {} --seed {}", self.count, self.seed);
        let mut option = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                text += &format!(" --{name} {value}");
            }
        };
        option("guidance", self.guidance.map(|x| x.to_string()));
        option("top-k", self.top_k.map(|x| x.to_string()));
        option("top-p", self.top_p.map(|x| x.to_string()));
        // As they were understood, not as they were written.
        let scales = self.scales.as_ref().and_then(|text| text.parse::<ScaleSchedule>().ok());
        option("scales", scales.map(|scales| scales.to_string()));
        let size = self.size.as_ref().and_then(|text| size_in_pixels(text).ok());
        option("size", size.map(|size| format!("{}x{}", size.height, size.width)));
        Ok(text + if self.more_smooth { " --more-smooth" } else { "" })
    }
}

impl EditRequest {
    /// Checks all that can be checked without the model, and decodes the pictures: that one which is edited by
    /// `decode`, which is given the bytes of a file and how many pixels it may have. Takes a while.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn decoded(
        &self,
        bounds: &Bounds,
        decode: impl FnOnce(&[u8], u64) -> Result<RgbImage, String>,
    ) -> Result<Decoded, Refused> {
        let Self { mode, mask, rectangle, outside, margins, .. } = self;
        self.sampling.check_count(bounds)?;
        let expected = match mode {
            Mode::Inpaint => match (mask, rectangle, margins) {
                (Some(_), None, None) | (None, Some(_), None) => None,
                _ => Some("inpaint: takes either a mask or a box, and no margins"),
            },
            Mode::Expand => match (mask, rectangle, margins, outside) {
                (None, None, Some(_), false) => None,
                _ => Some("expand: takes margins, and neither mask nor box"),
            },
            Mode::Refine => match (mask, rectangle, margins, outside) {
                (None, None, None, false) => None,
                _ => Some("refine: takes neither mask nor box nor margins"),
            },
        };
        if let Some(expected) = expected {
            return Err(Refused::new(expected));
        }
        let most_pixels = bounds.sent_pixels as u64;
        let (image, source) = {
            let file = bytes("image", &self.image)?;
            (SourceFile::of(None, &file), decode(&file, most_pixels))
        };
        let source = source.map_err(|why| Refused::new(format!("image: {why}")))?;
        let (width, height) = source.dimensions();
        let (long, short) = (u64::from(width.max(height)), u64::from(width.min(height)));
        if long > MOST_ASPECT * short {
            return Err(Refused::new(format!(
                "image: {width}x{height} pixels are more than {MOST_ASPECT} times as long as wide"
            )));
        }
        let part = |name: &str, mask: Mask| match (mask.share(), outside) {
            (0.0, false) => Err(Refused(format!("{name}: {}, and there are none", mask.rule()))),
            (1.0, true) => Err(Refused(format!(
                "{name}: covers the whole image, there is no outside to be drawn anew"
            ))),
            (_, false) => Ok(Part::Inside(mask)),
            (_, true) => Ok(Part::Outside(mask)),
        };
        let (part, told) = match (mask, rectangle, margins) {
            (Some(mask), _, _) => {
                let file = bytes("mask", mask)?;
                let mask = png(&file, most_pixels);
                let mask = Mask::read(&mask.map_err(|why| Refused(format!("mask: {why}")))?);
                if mask.dimensions() != (width, height) {
                    let (w, h) = mask.dimensions();
                    return Err(Refused::new(format!(
                        "mask: has {w}x{h} pixels, the image {width}x{height} (width x height)"
                    )));
                }
                // What fills a box is told as one, which needs no file.
                let told = match mask.as_rectangle() {
                    Some(sides) => EditedPart::Box(sides),
                    None => EditedPart::Mask(SourceFile::of(None, &file)),
                };
                (part("mask", mask)?, told)
            }
            (_, Some(sides @ [left, top, right, bottom]), _) => {
                let name = format!("box {left},{top},{right},{bottom}");
                if left >= right || top >= bottom || *right > width || *bottom > height {
                    return Err(Refused(format!(
                        "{name}: is no box inside {width}x{height} pixels"
                    )));
                }
                (part(&name, Mask::rectangle([width, height], *sides))?, EditedPart::Box(*sides))
            }
            (_, _, Some(margins)) => {
                let [left, top, right, bottom] = *margins;
                if margins.iter().all(|margin| *margin == 0) {
                    return Err(Refused::new("margins: no margin at all"));
                }
                if left.max(right) > width || top.max(bottom) > height {
                    return Err(Refused::new(
                        "margins: each may be as long as the image, no longer",
                    ));
                }
                (Part::Margins(*margins), EditedPart::Margins(*margins))
            }
            _ => (Part::Refine, EditedPart::Refine),
        };
        Ok(Decoded { source, part, image, told })
    }

    /// Checks the rest. The files of the results say what they are from if they are `made_with` something: of a
    /// picture or mask that was sent its checksum.
    ///
    /// # Errors
    /// Why the model cannot draw it, or that it is too much.
    pub fn work(
        &self,
        engine: &dyn Engine,
        bounds: &Bounds,
        made_with: Option<MadeWith>,
        Decoded { source, part, image, told }: Decoded,
    ) -> Result<Work, Refused> {
        let Self { outside, keep_scales, blend, sampling, .. } = self;
        let wishes = sampling.wishes()?;
        let label = engine.label(sampling.class.as_deref())?;
        let (scales, sampler) = (engine.scales(&wishes)?, engine.sampler(&wishes));
        if blend.is_some_and(|blend| blend > 1 << 14) {
            return Err(Refused::new("blend: must be 16384 or less"));
        }
        let edit = EditOrigin {
            image,
            part: told,
            outside: *outside,
            keep_scales: *keep_scales,
            blend: *blend,
            size: wishes.size.map(|size| [size.height, size.width]),
        };
        let origin = made_with.map(|made_with| Origin {
            edit: Some(edit),
            ..sampling.origin(engine, label, (&scales, sampler), made_with)
        });
        let settings = EditSettings {
            part,
            label,
            keep_scales: *keep_scales,
            blend: *blend,
            scales,
            exact_size: wishes.size.is_some(),
            sampler,
            seed: sampling.seed,
        };
        // Cropping and margins change how much is drawn.
        let drawn = engine.edit_scales(source.dimensions(), &settings)?;
        within(bounds, engine, &drawn, sampling.count as f64)?;
        let what = What::Edit { source, settings: Box::new(settings) };
        Ok(Work { what, count: sampling.count, previews: sampling.previews, origin })
    }

    /// What is shown of the request: not the pictures.
    pub fn shown(self) -> Self {
        Self { image: String::new(), mask: None, ..self }
    }
}

/// Whether pictures at some scales are not too many.
fn within(
    bounds: &Bounds,
    engine: &dyn Engine,
    scales: &ScaleSchedule,
    pictures: f64,
) -> Result<(), Refused> {
    let (last, unit) = (scales.last(), engine.unit());
    let pixels = (last.height * unit * last.width * unit) as f64 * pictures;
    let tokens = scales.n_tokens() as f64 * pictures;
    for (what, n, most) in [("pixels", pixels, bounds.pixels), ("tokens", tokens, bounds.tokens)] {
        if n > most as f64 {
            return Err(Refused::new(format!(
                "{n:.0} {what} are more than {most} at once; ask for fewer or smaller pictures"
            )));
        }
    }
    Ok(())
}

fn bytes(name: &str, text: &str) -> Result<Vec<u8>, Refused> {
    BASE64_STANDARD
        .decode(text)
        .map_err(|error| Refused::new(format!("{name}: is not in base64: {error}")))
}

/// A PNG file as a picture, upright, as [`EditRequest::decoded`] wants it: for those whose pictures are all PNG files
/// without transparency.
///
/// # Errors
/// Why it cannot be read, or that it has more pixels.
pub fn decode_png(bytes: &[u8], most_pixels: u64) -> Result<RgbImage, String> {
    Ok(png(bytes, most_pixels)?.into_rgb8())
}

/// A PNG file, upright.
fn png(bytes: &[u8], most_pixels: u64) -> Result<DynamicImage, String> {
    // A decoder that panics on a file ends no job: to the user it is one more broken file.
    match catch_unwind(AssertUnwindSafe(|| upright_png(bytes, most_pixels))) {
        Ok(image) => image,
        Err(_) => Err("is no PNG that can be read: the decoder gave up on it".into()),
    }
}

fn upright_png(bytes: &[u8], most_pixels: u64) -> Result<DynamicImage, String> {
    let refuse =
        |error: ImageError| format!("is no PNG that can be read: {error}").replace('\n', " ");
    let mut reader = ImageReader::with_format(Cursor::new(bytes), ImageFormat::Png);
    let mut limits = Limits::default();
    limits.max_alloc = Some(16 * most_pixels);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(refuse)?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > most_pixels {
        return Err(format!(
            "{width}x{height} pixels are more than {most_pixels} (width x height)"
        ));
    }
    let orientation = decoder.orientation().map_err(refuse)?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(refuse)?;
    image.apply_orientation(orientation);
    Ok(image)
}

#[cfg(test)]
mod tests {
    use burn_flex::Flex;
    use image::codecs::png::PngEncoder;
    use image::{ExtendedColorType, ImageEncoder};
    use sar_emoji_weights::{BACKBONE, TOKENIZER};
    use sar_pipeline::{Known, Pipeline};
    use sar_weights::WeightsFile;
    use serde_json::json;

    use super::*;

    /// A PNG of 2x1 pixels with an EXIF orientation, of which the left one is white.
    fn turned(orientation: u8) -> String {
        let mut exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\0\0\0\0\0\0\0\0".to_vec();
        exif[18] = orientation;
        let mut png = Vec::new();
        let mut encoder = PngEncoder::new(&mut png);
        encoder.set_exif_metadata(exif).unwrap();
        encoder.write_image(&[255, 0], 2, 1, ExtendedColorType::L8).unwrap();
        BASE64_STANDARD.encode(png)
    }

    fn edit(more: &str) -> Result<Decoded, Refused> {
        let request: EditRequest = parse(more.as_bytes()).unwrap();
        request.decoded(&Bounds::default(), decode_png)
    }

    #[test]
    fn a_mask_is_turned_as_its_picture_is() {
        for (orientation, size, [x, y]) in
            [(1, (2, 1), [0, 0]), (3, (2, 1), [1, 0]), (6, (1, 2), [0, 0]), (8, (1, 2), [0, 1])]
        {
            let file = turned(orientation);
            let request =
                format!(r#"{{ "mode": "inpaint", "image": "{file}", "mask": "{file}" }}"#);
            let Decoded { source, part, .. } = edit(&request).unwrap();
            assert_eq!(source.dimensions(), size, "{orientation}");
            let Part::Inside(mask) = part else { panic!("{part:?}") };
            assert_eq!((mask.dimensions(), mask.share()), (size, 0.5), "{orientation}");
            assert!(mask.contains(x, y) && source.get_pixel(x, y).0 == [255; 3], "{orientation}");
        }
    }

    #[test]
    fn results_say_what_was_sent_and_how_it_was_edited() {
        let file = |name, bytes: &[u8]| WeightsFile::from_bytes(name, bytes.to_vec()).unwrap();
        let files = (file("tokenizer", TOKENIZER), file("backbone", BACKBONE));
        let (known, device) = (Known::default(), Default::default());
        let pipeline = Pipeline::<Flex>::load(files.0, files.1, &known, &device).unwrap();
        let made_with = json!({
            "precision": "f32", "device": "flex", "tokenizer": "01234567", "backbone": "89abcdef",
        });
        let made_with: MadeWith = serde_json::from_value(made_with).unwrap();
        let sent = |is_bright: fn(u32, u32) -> bool| {
            let pixel = |x, y| image::Rgb([if is_bright(x, y) { 255 } else { 0 }; 3]);
            sar_pipeline::to_png(&RgbImage::from_fn(64, 64, pixel))
        };
        let image = sent(|x, y| x > y);
        let [in_a_box, painted] = [sent(|x, y| x < 20 && y < 30), sent(|x, y| x + y < 20)];
        let base64 = |bytes: &[u8]| BASE64_STANDARD.encode(bytes);
        let cases = [
            (
                format!(r#""mode": "inpaint", "mask": "{}""#, base64(&in_a_box)),
                EditedPart::Box([0, 0, 20, 30]),
            ),
            (
                format!(r#""mode": "inpaint", "mask": "{}""#, base64(&painted)),
                EditedPart::Mask(SourceFile::of(None, &painted)),
            ),
            (
                r#""mode": "inpaint", "box": [1, 2, 3, 4], "outside": true"#.into(),
                EditedPart::Box([1, 2, 3, 4]),
            ),
            (
                r#""mode": "expand", "margins": [0, 8, 16, 0], "blend": 2"#.into(),
                EditedPart::Margins([0, 8, 16, 0]),
            ),
            (r#""mode": "refine", "keep_scales": 3"#.into(), EditedPart::Refine),
        ];
        for (said, part) in cases {
            let request = format!(
                r#"{{ {said}, "image": "{}", "sampling": {{ "class": "2", "seed": 7, "count": 3, "size": "48x64" }} }}"#,
                base64(&image)
            );
            let request: EditRequest = parse(request.as_bytes()).unwrap();
            let bounds = Bounds::default();
            let work = |made_with| {
                let decoded = request.decoded(&bounds, decode_png).unwrap();
                request.work(&pipeline, &bounds, made_with, decoded).unwrap()
            };
            let Origin { job, label, edit, .. } = work(Some(made_with.clone())).origin.unwrap();
            assert_eq!((label, job.seed, job.n, job.batch), (2, 7, 3, BATCH));
            assert_eq!(job.made_with, made_with);
            let EditRequest { outside, keep_scales, blend, .. } = request;
            let image = SourceFile::of(None, &image);
            let size = Some([48, 64]);
            let expected = EditOrigin { image, part, outside, keep_scales, blend, size };
            assert_eq!(edit, Some(expected));
            assert!(work(None).origin.is_none());
        }
    }

    #[test]
    fn what_leaves_nothing_to_draw_is_named() {
        let file = turned(1);
        let refused = |more: &str| {
            let request = format!(r#"{{ "mode": "inpaint", "image": "{file}", {more} }}"#);
            edit(&request).unwrap_err().to_string()
        };
        let whole = refused(r#""box": [0, 0, 2, 1], "outside": true"#);
        assert_eq!(
            whole,
            "box 0,0,2,1: covers the whole image, there is no outside to be drawn anew"
        );
        let black = BASE64_STANDARD.encode(sar_pipeline::to_png(&RgbImage::new(2, 1)));
        let none = refused(&format!(r#""mask": "{black}""#));
        assert_eq!(none, "mask: its bright pixels are drawn anew, and there are none");
    }
}
