//! `sar edit`: parts of an image drawn anew.
//!
//! The tokens outside the part that is drawn anew stay exactly those of the source image; its pixels
//! pass through the tokenizer, unless `--blend` puts the source's own pixels back.

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};
use image::{Rgb, RgbImage, imageops};
use sar_core::{ScaleSize, SeedTree};
use sar_data::{grid, magnification, read_image, to_tensor};
use sar_rollout::{Kept, Region};
use sar_train::sampling::{SampleRequest, sample_images, sample_stream};

use crate::Verdict;
use crate::device::{DeviceArg, Job};
use crate::generation::{
    Files, Generator, SamplerArgs, Settings, WeightsArgs, make_out, out_folder, save,
};

/// Shown where the source is drawn anew.
const HOLE: Rgb<u8> = Rgb([128; 3]);

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    weights: WeightsArgs,
    /// The source image.
    #[arg(long, value_name = "FILE")]
    image: PathBuf,
    /// What is drawn anew.
    #[command(flatten)]
    what: What,
    /// Draws the outside of the mask or box anew, and keeps the inside.
    #[arg(long, conflicts_with_all = ["expand", "refine"])]
    outside: bool,
    /// What is to be drawn: a class by name or index [default: no class, the null class of guidance]
    #[arg(long, value_name = "CLASS")]
    class: Option<String>,
    /// Coarse scales that are kept whole: more of them keep more of the source's layout
    /// [default: 0; with --refine those that the source has the pixels for]
    #[arg(long, value_name = "K")]
    keep_scales: Option<usize>,
    /// Puts the source's own pixels back outside what is drawn anew, mixed over so many pixels.
    #[arg(long, value_name = "PIXELS")]
    blend: Option<u32>,
    /// Number of results.
    #[arg(long, default_value_t = 4)]
    n: usize,
    #[command(flatten)]
    sampler: SamplerArgs,
    /// A new or empty folder for grid.png, source.png and the results [default: edits, or the next that is
    /// free]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArg,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct What {
    /// Where a mask image is bright: in-painting.
    #[arg(long, value_name = "FILE")]
    mask: Option<PathBuf>,
    /// A box in pixels of the source: left,top,right,bottom, the last two not included.
    #[arg(long = "box", value_name = "L,T,R,B")]
    rectangle: Option<String>,
    /// Margins in pixels around the source: left,top,right,bottom. The result is larger.
    #[arg(long, value_name = "L,T,R,B")]
    expand: Option<String>,
    /// Everything but the coarse scales that a small source already has the pixels for.
    #[arg(long)]
    refine: bool,
}

/// What is drawn anew, checked as far as it can be without the weights.
enum Part {
    /// Where the image is bright; a box is such a mask.
    Mask(RgbImage),
    Margins([u32; 4]),
    Refine,
}

pub(crate) fn run(args: Args) -> Result<Verdict> {
    let Args { weights, image, what, outside, class, keep_scales, blend, n, sampler, out, device } =
        args;
    ensure!(n > 0, "--n 0: nothing to draw");
    let out = out_folder(out, "edits")?;
    let source = read_image(&image)?;
    let part = match what {
        What { mask: Some(path), .. } => {
            let mask = read_image(&path)?;
            ensure!(
                mask.dimensions() == source.dimensions(),
                "--mask {}: has {}x{} pixels, the source {}x{} (width x height)",
                path.display(),
                mask.width(),
                mask.height(),
                source.width(),
                source.height(),
            );
            Part::Mask(mask)
        }
        What { rectangle: Some(text), .. } => {
            let [left, top, right, bottom] = four(&text, "--box")?;
            ensure!(
                left < right
                    && top < bottom
                    && right <= source.width()
                    && bottom <= source.height(),
                "--box {text}: is no box inside {}x{} pixels (width x height)",
                source.width(),
                source.height(),
            );
            Part::Mask(RgbImage::from_fn(source.width(), source.height(), |x, y| {
                let is_inside = (left..right).contains(&x) && (top..bottom).contains(&y);
                Rgb([if is_inside { 255 } else { 0 }; 3])
            }))
        }
        What { expand: Some(text), .. } => {
            let sides = four(&text, "--expand")?;
            ensure!(sides.iter().any(|side| *side > 0), "--expand {text}: no margin at all");
            Part::Margins(sides)
        }
        What { refine: true, .. } => Part::Refine,
        _ => bail!("one of --mask, --box, --expand and --refine is needed"),
    };
    let files = weights.files()?;
    let settings = sampler.settings(weights.sampler())?;
    let edit = Edit { files, source, part, outside, class, keep_scales, blend, n, settings, out };
    device.run(edit)
}

/// `1,2,3,4`.
fn four(text: &str, flag: &str) -> Result<[u32; 4]> {
    let numbers: Result<Vec<u32>, _> = text.split(',').map(|n| n.trim().parse()).collect();
    match numbers.ok().and_then(|numbers| <[u32; 4]>::try_from(numbers).ok()) {
        Some(sides) if sides.iter().all(|side| *side <= 1 << 14) => Ok(sides),
        _ => bail!("{flag} {text}: write four numbers of pixels, left,top,right,bottom"),
    }
}

struct Edit {
    files: Files,
    source: RgbImage,
    part: Part,
    outside: bool,
    class: Option<String>,
    keep_scales: Option<usize>,
    blend: Option<u32>,
    n: usize,
    settings: Settings,
    out: PathBuf,
}

impl Job for Edit {
    type Output = Verdict;

    fn run<A: AutodiffBackend>(self, device: A::Device, _workers: usize) -> Result<Verdict> {
        self.edit::<A::InnerBackend>(&device)?;
        Ok(Verdict::Good)
    }
}

impl Edit {
    fn edit<B: Backend>(self, device: &B::Device) -> Result<()> {
        let Self { files, source, part, outside, class, keep_scales, blend, n, settings, out } =
            self;
        let generator = Generator::<B>::load(&files, device)?;
        let label = match &class {
            Some(query) => generator.label(query)?,
            None => generator.null_label(),
        };
        let base = generator.scales(&settings)?;
        let pixels_per_token = generator.downsampling();
        let inner = ScaleSize {
            height: base.last().height * pixels_per_token,
            width: base.last().width * pixels_per_token,
        };

        // The canvas in pixels, what of it is drawn anew, and how many scales are kept whole.
        let (canvas, region, whole) = match part {
            Part::Mask(mask) => {
                let mask = cover(&mask, inner);
                let bright = |x: usize, y: usize| mask.get_pixel(x as u32, y as u32).0[0] >= 128;
                (cover(&source, inner), Region::new(inner, |x, y| bright(x, y) != outside), 0)
            }
            Part::Margins(margins) => {
                let (canvas, region) = expanded(&cover(&source, inner), margins, pixels_per_token);
                (canvas, region, 0)
            }
            Part::Refine => {
                let (width, height) = source.dimensions();
                let has_pixels = |size: &ScaleSize| {
                    size.height * pixels_per_token <= height as usize
                        && size.width * pixels_per_token <= width as usize
                };
                let whole = base.sizes().iter().take_while(|size| has_pixels(size)).count();
                (cover(&source, inner), Region::all(inner), whole)
            }
        };
        let (width, height) = canvas.dimensions();
        let size = ScaleSize { height: height as usize, width: width as usize };
        let scales = generator.stretched(&base, size)?;
        let whole = keep_scales.unwrap_or(whole);
        ensure!(
            whole < scales.len() && !region.is_empty(),
            "nothing is left to be drawn: {whole} of {} scales are kept{}",
            scales.len(),
            if region.is_empty() { ", and no pixel is drawn anew" } else { "" },
        );

        let tokenizer = &generator.tokenizer;
        let h_bchw = tokenizer.encode(to_tensor::<B>(std::slice::from_ref(&canvas), device));
        let tokens_1l = tokenizer.tokens(h_bchw, &scales);
        make_out(&out)?;
        save(&canvas, &out.join("source.png"))?;
        let mut shown = vec![canvas.clone(), holed(&canvas, &region)];
        let root = SeedTree::new(settings.seed).child("edit");
        let numbers: Vec<usize> = (0..n).collect();
        for part in numbers.chunks(settings.batch) {
            let tokens_bl = Tensor::cat(vec![tokens_1l.clone(); part.len()], 0);
            let request = SampleRequest {
                labels: vec![label; part.len()],
                streams: part.iter().map(|i| sample_stream(root, label, *i)).collect(),
                scales: scales.clone(),
                sampler: settings.sampler,
                kept: Some(Kept::new(tokens_bl, &scales, &region, whole)),
            };
            let model = &generator.backbone.model;
            for (i, image) in part.iter().zip(sample_images(tokenizer, model, &request, device)) {
                let image = match blend {
                    Some(pixels) => blended(&canvas, &image, &region, pixels),
                    None => image,
                };
                save(&image, &out.join(format!("{i:03}.png")))?;
                shown.push(image);
            }
        }
        let sheet = out.join("grid.png");
        save(&grid(&shown, shown.len().min(8), 4, magnification(width)), &sheet)?;
        eprintln!("wrote {}: source, what is drawn anew in grey, {n} results", sheet.display());
        Ok(())
    }
}

/// An image resized to cover a size, and cropped to its centre.
fn cover(image: &RgbImage, size: ScaleSize) -> RgbImage {
    let (width, height) = (size.width as u32, size.height as u32);
    if image.dimensions() == (width, height) {
        return image.clone();
    }
    let (w, h) = (f64::from(image.width()), f64::from(image.height()));
    let scale = (f64::from(width) / w).max(f64::from(height) / h);
    // Cropped first, so that a long strip does not become a huge image.
    let part = |wanted: u32, has: u32| ((f64::from(wanted) / scale).round() as u32).clamp(1, has);
    let (cut_w, cut_h) = (part(width, image.width()), part(height, image.height()));
    let (x, y) = ((image.width() - cut_w) / 2, (image.height() - cut_h) / 2);
    let cut = imageops::crop_imm(image, x, y, cut_w, cut_h).to_image();
    imageops::resize(&cut, width, height, imageops::FilterType::CatmullRom)
}

/// A larger image around another, its margins rounded up so that both sides are multiples of `unit`;
/// the margins hold the edge's pixels, and are drawn anew.
fn expanded(
    image: &RgbImage,
    [left, top, right, bottom]: [u32; 4],
    unit: usize,
) -> (RgbImage, Region) {
    let (width, height) = image.dimensions();
    let total = |length: u32| length.next_multiple_of(unit as u32);
    let (w, h) = (total(width + left + right), total(height + top + bottom));
    let inside = |at: u32, margin: u32, length: u32| at.checked_sub(margin).filter(|x| *x < length);
    let canvas = RgbImage::from_fn(w, h, |x, y| {
        let near = |at: u32, margin: u32, length: u32| at.saturating_sub(margin).min(length - 1);
        *image.get_pixel(near(x, left, width), near(y, top, height))
    });
    let size = ScaleSize { height: h as usize, width: w as usize };
    let region = Region::new(size, |x, y| {
        inside(x as u32, left, width).is_none() || inside(y as u32, top, height).is_none()
    });
    (canvas, region)
}

/// An image with a hole.
fn holed(image: &RgbImage, region: &Region) -> RgbImage {
    RgbImage::from_fn(image.width(), image.height(), |x, y| {
        if region.contains(x as usize, y as usize) { HOLE } else { *image.get_pixel(x, y) }
    })
}

/// The source outside the region, the result inside it, mixed over a seam of so many pixels outside:
/// the share of the result falls from 1 at the region to 0 at the seam's end (Chebyshev distance).
fn blended(source: &RgbImage, result: &RgbImage, region: &Region, seam: u32) -> RgbImage {
    let (width, height) = source.dimensions();
    let distance = |x: u32, y: u32| {
        (0..=seam).find(|reach| {
            let around =
                |at: u32, length: u32| at.saturating_sub(*reach)..=(at + reach).min(length - 1);
            around(y, height)
                .any(|y| around(x, width).any(|x| region.contains(x as usize, y as usize)))
        })
    };
    RgbImage::from_fn(width, height, |x, y| {
        let (a, b) = (source.get_pixel(x, y).0, result.get_pixel(x, y).0);
        let share = distance(x, y).map_or(0.0, |d| 1.0 - f64::from(d) / f64::from(seam + 1));
        Rgb(std::array::from_fn(|c| {
            (f64::from(a[c]) * (1.0 - share) + f64::from(b[c]) * share).round() as u8
        }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn square(side: usize) -> ScaleSize {
        ScaleSize::square(side)
    }

    #[test]
    fn margins_are_rounded_up_and_drawn_anew() {
        let image = RgbImage::from_fn(4, 4, |x, _| Rgb([x as u8; 3]));
        let (canvas, region) = expanded(&image, [1, 0, 2, 0], 4);
        assert_eq!(canvas.dimensions(), (8, 4));
        let row: Vec<u8> = (0..8).map(|x| canvas.get_pixel(x, 0).0[0]).collect();
        assert_eq!(row, [0, 0, 1, 2, 3, 3, 3, 3]);
        let anew: Vec<bool> = (0..8).map(|x| region.contains(x, 3)).collect();
        assert_eq!(anew, [true, false, false, false, false, true, true, true]);
    }

    #[test]
    fn blending_keeps_the_source_and_mixes_the_seam() {
        let (source, result) =
            (RgbImage::from_pixel(6, 1, Rgb([0; 3])), RgbImage::from_pixel(6, 1, Rgb([90; 3])));
        let region = Region::new(ScaleSize { height: 1, width: 6 }, |x, _| x == 0);
        let row = |seam| {
            let image = blended(&source, &result, &region, seam);
            (0..6).map(|x| image.get_pixel(x, 0).0[0]).collect::<Vec<_>>()
        };
        assert_eq!(row(0), [90, 0, 0, 0, 0, 0]);
        assert_eq!(row(2), [90, 60, 30, 0, 0, 0]);
    }

    #[test]
    fn covering_keeps_the_centre() {
        let image = RgbImage::from_fn(12, 4, |x, _| Rgb([20 * x as u8; 3]));
        let middle = cover(&image, square(4));
        assert_eq!(middle, imageops::crop_imm(&image, 4, 0, 4, 4).to_image());
        assert_eq!(cover(&image, ScaleSize { height: 2, width: 8 }).dimensions(), (8, 2));
        assert_eq!(cover(&RgbImage::new(1, 900), square(16)).dimensions(), (16, 16));
    }

    #[test]
    fn four_numbers_are_four_numbers() {
        assert_eq!(four("1, 2,3,4", "--box").unwrap(), [1, 2, 3, 4]);
        for bad in ["1,2,3", "1,2,3,4,5", "a,b,c,d", "-1,2,3,4", "1,2,3,99999"] {
            assert!(four(bad, "--box").unwrap_err().to_string().contains("--box"), "{bad}");
        }
    }
}
