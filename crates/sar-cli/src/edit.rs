//! `sar edit`: parts of an image drawn anew.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::backend::{AutodiffBackend, Backend};
use sar_data::{read_image, read_mask};
use sar_pipeline::{
    EditOrigin, EditSettings, EditedPart, JobOrigin, Mask, Origin, Part, RgbImage, SourceFile,
    grid, magnification,
};
use sar_weights::write_bytes;

use crate::Verdict;
use crate::device::{DeviceArg, Job};
use crate::generation::{
    Files, SamplerArgs, Settings, WeightsArgs, beside, make_out, out_folder, save,
};

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
    /// A new or empty folder for the results; a sheet with the source lies beside it, OUT-grid.png
    /// [default: edits, or the next that is free]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArg,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct What {
    /// Where a mask image is bright: in-painting. Of one with transparency, the strokes on an empty sheet,
    /// or the holes in a picture.
    #[arg(long, value_name = "FILE")]
    mask: Option<PathBuf>,
    /// A box in pixels of the source: left,top,right,bottom, the last two not included.
    #[arg(long = "box", value_name = "L,T,R,B")]
    rectangle: Option<String>,
    /// Margins around the source, in its pixels: left,top,right,bottom. The result is larger.
    #[arg(long, value_name = "L,T,R,B")]
    expand: Option<String>,
    /// Everything but the coarse scales that a small source already has the pixels for.
    #[arg(long)]
    refine: bool,
}

pub(crate) fn run(args: Args) -> Result<Verdict> {
    let Args { weights, image, what, outside, class, keep_scales, blend, n, sampler, out, device } =
        args;
    ensure!(n > 0, "--n 0: nothing to draw");
    let out = out_folder(out, "edits")?;
    let (source, image) = with_file(&image, read_image(&image)?);
    let part = |mask| if outside { Part::Outside(mask) } else { Part::Inside(mask) };
    let (part, told) = match what {
        What { mask: Some(path), .. } => {
            let (mask, file) = with_file(&path, read_mask(&path).context("--mask")?);
            let mask = Mask::read(&mask);
            eprintln!("--mask {}: {}", path.display(), mask.rule());
            (part(mask), EditedPart::Mask(file))
        }
        What { rectangle: Some(text), .. } => {
            let [left, top, right, bottom] = four(&text, "--box")?;
            let (width, height) = source.dimensions();
            ensure!(
                left < right && top < bottom && right <= width && bottom <= height,
                "--box {text}: is no box inside {width}x{height} pixels (width x height)",
            );
            let sides = [left, top, right, bottom];
            (part(Mask::rectangle([width, height], sides)), EditedPart::Box(sides))
        }
        What { expand: Some(text), .. } => {
            let sides = four(&text, "--expand")?;
            ensure!(sides.iter().any(|side| *side > 0), "--expand {text}: no margin at all");
            (Part::Margins(sides), EditedPart::Margins(sides))
        }
        What { refine: true, .. } => (Part::Refine, EditedPart::Refine),
        _ => bail!("one of --mask, --box, --expand and --refine is needed"),
    };
    let settings = sampler.settings()?;
    let size = settings.wishes().size.map(|size| [size.height, size.width]);
    let origin = EditOrigin { image, part: told, outside, keep_scales, blend, size };
    let files = weights.files()?;
    device.run(Edit { files, source, part, origin, class, n, settings, out })
}

/// What was read from a file, and what an edit says of the file.
fn with_file<T>(path: &Path, (image, bytes): (T, Vec<u8>)) -> (T, SourceFile) {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    (image, SourceFile::of(Some(name), &bytes))
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
    origin: EditOrigin,
    class: Option<String>,
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
        let Self { files, source, part, origin, class, n, settings, out } = self;
        let pipeline = files.load::<B>(device)?;
        let made_with = files.made_with(&pipeline, device);
        let pipeline = files.in_precision(pipeline)?;
        let label = match &class {
            Some(query) => pipeline.label(query).context("--class")?,
            None => pipeline.null_label(),
        };
        let (scales, sampler) =
            (settings.scales(&pipeline)?, settings.sampler(pipeline.backbone().sampler));
        let edit = pipeline.edit(
            &source,
            &EditSettings {
                part,
                label,
                keep_scales: origin.keep_scales,
                blend: origin.blend,
                scales: scales.clone(),
                exact_size: settings.has_size(),
                sampler,
                seed: settings.seed,
            },
        )?;
        let origin = Origin {
            job: JobOrigin {
                sar: env!("CARGO_PKG_VERSION").into(),
                seed: settings.seed,
                n,
                batch: settings.batch,
                scales,
                sampler,
                made_with,
            },
            label,
            class: pipeline.classes().get(label).cloned(),
            number: 0,
            edit: Some(origin),
        };
        for note in edit.notes() {
            eprintln!("{note}");
        }
        make_out(&out)?;
        let mut shown = vec![edit.canvas().clone(), edit.holed()];
        for start in (0..n).step_by(settings.batch) {
            let numbers = start..n.min(start + settings.batch);
            for (i, image) in numbers.clone().zip(edit.draw(numbers)) {
                let png = Origin { number: i, ..origin.clone() }.to_png(&image);
                write_bytes(&out.join(format!("{i:03}.png")), &png)?;
                shown.push(image);
            }
        }
        let sheet = beside(&out, "grid.png");
        let magnify = magnification(edit.canvas().width());
        save(&grid(&shown, shown.len().min(8), 4, magnify), &sheet)?;
        eprintln!(
            "wrote {n} results to {}, and {}: the source, what is drawn anew in gray, the results",
            out.display(),
            sheet.display()
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_numbers_are_four_numbers() {
        assert_eq!(four("1, 2,3,4", "--box").unwrap(), [1, 2, 3, 4]);
        for bad in ["1,2,3", "1,2,3,4,5", "a,b,c,d", "-1,2,3,4", "1,2,3,99999"] {
            assert!(four(bad, "--box").unwrap_err().to_string().contains("--box"), "{bad}");
        }
    }
}
