//! What clients ask for, and what it comes to once it is checked.

use std::io::Cursor;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use image::{ImageFormat, ImageReader, Limits as DecoderLimits};
use sar_core::{ScaleSchedule, class_query};
use sar_data::decode_image;
use sar_pipeline::{EditSettings, Mask, Part, Wishes, size_in_pixels};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::Limits;
use crate::answers::Refusal;
use crate::engine::{Engine, What, Work};

/// The longest text in a request that is no picture.
const LONGEST_TEXT: usize = 256;
/// Of what went wrong with a request, so many characters are told.
const LONGEST_QUOTE: usize = 200;
/// A picture may be this many times as long as it is wide, and the other way round.
const MOST_ASPECT: u64 = 8;

/// What to sample; of what is not said, what `sar sample` does.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct SampleRequest {
    /// By name or index; none for no class at all.
    pub(crate) class: Option<String>,
    pub(crate) seed: u64,
    pub(crate) count: usize,
    pub(crate) guidance: Option<f64>,
    pub(crate) top_k: Option<usize>,
    pub(crate) top_p: Option<f64>,
    pub(crate) more_smooth: bool,
    /// As in `1_2_3`, or a preset.
    pub(crate) scales: Option<String>,
    /// As in `64x96`, height first.
    pub(crate) size: Option<String>,
    pub(crate) previews: bool,
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
pub(crate) struct EditRequest {
    /// The bytes of an image file in base64.
    pub(crate) image: String,
    pub(crate) mode: Mode,
    /// The bytes of a PNG of the size of the picture in base64.
    #[serde(default)]
    pub(crate) mask: Option<String>,
    /// Left, top, right, bottom in pixels of the picture, the last two not included.
    #[serde(default, rename = "box")]
    pub(crate) rectangle: Option<[u32; 4]>,
    /// Draws the outside of the mask or box anew.
    #[serde(default)]
    pub(crate) outside: bool,
    /// Left, top, right, bottom in pixels of the picture.
    #[serde(default)]
    pub(crate) margins: Option<[u32; 4]>,
    #[serde(default)]
    pub(crate) keep_scales: Option<usize>,
    #[serde(default)]
    pub(crate) blend: Option<u32>,
    #[serde(default)]
    pub(crate) sampling: SampleRequest,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    Inpaint,
    Expand,
    Refine,
}

/// Reads a request.
pub(crate) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    // Fields in a list, without their names, would be taken as well.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(Refusal::bad("the request is not understood: it is no JSON object"));
    }
    serde_json::from_slice(body).map_err(|error| {
        // It quotes what was sent, which may be long.
        let why: String = error.to_string().chars().take(LONGEST_QUOTE).collect();
        Refusal::bad(format!("the request is not understood: {why}"))
    })
}

impl SampleRequest {
    fn wishes(&self) -> Result<Wishes, Refusal> {
        let texts = [("class", &self.class), ("scales", &self.scales), ("size", &self.size)];
        for (name, text) in texts {
            if text.as_ref().is_some_and(|text| text.len() > LONGEST_TEXT) {
                let why = format!("{name}: is longer than {LONGEST_TEXT} bytes");
                return Err(Refusal::bad(why));
            }
        }
        let scales = self.scales.as_deref().map(str::parse::<ScaleSchedule>);
        let wishes = Wishes {
            guidance: self.guidance,
            top_k: self.top_k,
            top_p: self.top_p,
            more_smooth: self.more_smooth,
            scales: scales.transpose().map_err(|error| Refusal::bad(format!("scales: {error}")))?,
            size: self.size.as_deref().map(size_in_pixels).transpose()?,
        };
        wishes.check()?;
        Ok(wishes)
    }

    fn check_count(&self, limits: &Limits) -> Result<(), Refusal> {
        match self.count {
            n if (1..=limits.count).contains(&n) => Ok(()),
            n => Err(Refusal::bad(format!("count {n}: must be from 1 to {}", limits.count))),
        }
    }

    /// Checks all of it.
    pub(crate) fn work(&self, engine: &dyn Engine, limits: &Limits) -> Result<Work, Refusal> {
        let wishes = self.wishes()?;
        self.check_count(limits)?;
        let label = engine.label(self.class.as_deref())?;
        let (scales, sampler) = (engine.scales(&wishes)?, engine.sampler(&wishes));
        within(limits, engine, &scales, self.count as f64)?;
        let what = What::Sample { label, seed: self.seed, scales, sampler };
        Ok(Work { what, count: self.count, previews: self.previews, origin: None })
    }

    /// The command that draws the same pictures, for those who have the program. `command` names the
    /// weights.
    pub(crate) fn command(&self, command: &str, label: usize, classes: &[String]) -> String {
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
        text + if self.more_smooth { " --more-smooth" } else { "" }
    }
}

impl EditRequest {
    /// Checks all that can be checked without the model, and decodes the pictures. Takes a while.
    pub(crate) fn decoded(&self, limits: &Limits) -> Result<(image::RgbImage, Part), Refusal> {
        let Self { mode, mask, rectangle, outside, margins, .. } = self;
        self.sampling.check_count(limits)?;
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
            return Err(Refusal::bad(expected));
        }
        let most_pixels = limits.sent_pixels as u64;
        let source = decode_image(&bytes("image", &self.image)?, most_pixels)
            .map_err(|why| Refusal::bad(format!("image: {why}")))?;
        let (width, height) = source.dimensions();
        let (long, short) = (u64::from(width.max(height)), u64::from(width.min(height)));
        if long > MOST_ASPECT * short {
            return Err(Refusal::bad(format!(
                "image: {width}x{height} pixels are more than {MOST_ASPECT} times as long as wide"
            )));
        }
        let part = |mask: Mask| match (mask.share(), outside) {
            (0.0, false) | (1.0, true) => Err(Refusal::bad(
                "mask: nothing is to be drawn anew, it has no bright pixel".to_owned(),
            )),
            (_, false) => Ok(Part::Inside(mask)),
            (_, true) => Ok(Part::Outside(mask)),
        };
        let part = match (mask, rectangle, margins) {
            (Some(mask), _, _) => {
                let mask = Mask::read(&mask_image(&bytes("mask", mask)?, most_pixels)?);
                if mask.dimensions() != (width, height) {
                    let (w, h) = mask.dimensions();
                    return Err(Refusal::bad(format!(
                        "mask: has {w}x{h} pixels, the image {width}x{height} (width x height)"
                    )));
                }
                part(mask)?
            }
            (_, Some([left, top, right, bottom]), _) => {
                if left >= right || top >= bottom || *right > width || *bottom > height {
                    return Err(Refusal::bad(format!(
                        "box {left},{top},{right},{bottom}: is no box inside {width}x{height} pixels"
                    )));
                }
                part(Mask::rectangle([width, height], [*left, *top, *right, *bottom]))?
            }
            (_, _, Some(margins)) => {
                let [left, top, right, bottom] = *margins;
                if margins.iter().all(|margin| *margin == 0) {
                    return Err(Refusal::bad("margins: no margin at all"));
                }
                if left.max(right) > width || top.max(bottom) > height {
                    return Err(Refusal::bad(
                        "margins: each may be as long as the image, no longer",
                    ));
                }
                Part::Margins(*margins)
            }
            _ => Part::Refine,
        };
        Ok((source, part))
    }

    /// Checks the rest.
    pub(crate) fn work(
        &self,
        engine: &dyn Engine,
        limits: &Limits,
        (source, part): (image::RgbImage, Part),
    ) -> Result<Work, Refusal> {
        let Self { keep_scales, blend, sampling, .. } = self;
        let wishes = sampling.wishes()?;
        let label = engine.label(sampling.class.as_deref())?;
        let scales = engine.scales(&wishes)?;
        if blend.is_some_and(|blend| blend > 1 << 14) {
            return Err(Refusal::bad("blend: must be 16384 or less"));
        }
        let settings = EditSettings {
            part,
            label,
            keep_scales: *keep_scales,
            blend: *blend,
            scales,
            exact_size: wishes.size.is_some(),
            sampler: engine.sampler(&wishes),
            seed: sampling.seed,
        };
        // Cropping and margins change how much is drawn.
        let drawn = engine.edit_scales(source.dimensions(), &settings)?;
        within(limits, engine, &drawn, sampling.count as f64)?;
        let what = What::Edit { source, settings: Box::new(settings) };
        Ok(Work { what, count: sampling.count, previews: sampling.previews, origin: None })
    }

    /// What is shown of the request: not the pictures.
    pub(crate) fn shown(self) -> Self {
        Self { image: String::new(), mask: None, ..self }
    }
}

/// Whether pictures at some scales are not too many.
fn within(
    limits: &Limits,
    engine: &dyn Engine,
    scales: &ScaleSchedule,
    pictures: f64,
) -> Result<(), Refusal> {
    let (last, unit) = (scales.last(), engine.unit());
    let pixels = (last.height * unit * last.width * unit) as f64 * pictures;
    let tokens = scales.n_tokens() as f64 * pictures;
    for (what, n, most) in [("pixels", pixels, limits.pixels), ("tokens", tokens, limits.tokens)] {
        if n > most as f64 {
            return Err(Refusal::bad(format!(
                "{n:.0} {what} are more than {most} at once; ask for fewer or smaller pictures"
            )));
        }
    }
    Ok(())
}

fn bytes(name: &str, text: &str) -> Result<Vec<u8>, Refusal> {
    BASE64_STANDARD
        .decode(text)
        .map_err(|error| Refusal::bad(format!("{name}: is not in base64: {error}")))
}

/// Decodes a mask with its transparency, which a picture loses.
fn mask_image(bytes: &[u8], most_pixels: u64) -> Result<image::DynamicImage, Refusal> {
    let refuse = |error: image::ImageError| {
        Refusal::bad(format!("mask: is no PNG that can be read: {error}").replace('\n', " "))
    };
    let reader = || ImageReader::with_format(Cursor::new(bytes), ImageFormat::Png);
    let (width, height) = reader().into_dimensions().map_err(refuse)?;
    if u64::from(width) * u64::from(height) > most_pixels {
        return Err(Refusal::bad(format!(
            "mask: {width}x{height} pixels are more than {most_pixels} (width x height)"
        )));
    }
    let mut limits = DecoderLimits::default();
    limits.max_alloc = Some(16 * most_pixels);
    let mut reader = reader();
    reader.limits(limits);
    reader.decode().map_err(refuse)
}
