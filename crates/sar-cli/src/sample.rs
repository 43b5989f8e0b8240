//! `sar sample`: images from trained weights.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use burn::tensor::backend::{AutodiffBackend, Backend};
use sar_core::SeedTree;
use sar_pipeline::{Request, RgbImage, enlarge, grid, magnification};

use crate::Verdict;
use crate::device::{DeviceArg, Job};
use crate::generation::{
    Files, SamplerArgs, Settings, WeightsArgs, beside, make_out, out_folder, save,
};
use crate::npz::Npz;

/// Images of a grid: more are only written one by one.
const MOST_IN_GRID: usize = 1024;
/// Images whose scales are shown.
const MOST_PREVIEWS: usize = 64;
/// Hundredths of a second that a scale of the animation stays, and the last one.
const FRAME: u16 = 30;
const LAST_FRAME: u16 = 150;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    weights: WeightsArgs,
    /// A class by name or index; again for more [default: every class]
    #[arg(long = "class", value_name = "CLASS")]
    classes: Vec<String>,
    /// Samples without a class (the null class of guidance).
    #[arg(long, conflicts_with = "classes")]
    unconditional: bool,
    /// Images per class.
    #[arg(long, default_value_t = 16)]
    n: usize,
    #[command(flatten)]
    sampler: SamplerArgs,
    /// Also shows every scale, beside the folder: OUT-previews.png, with a row for each image, and
    /// OUT-previews.gif.
    #[arg(long)]
    previews: bool,
    /// A new or empty folder for the images; a sheet of them lies beside it, OUT-grid.png [default:
    /// samples, or the next that is free]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Also writes the images into one .npz file, as evaluation scripts read them (arr_0).
    #[arg(long, value_name = "FILE")]
    npz: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArg,
}

pub(crate) fn run(args: Args) -> Result<Verdict> {
    let Args { weights, classes, unconditional, n, sampler, previews, out, npz, device } = args;
    ensure!(n > 0, "--n 0: nothing to sample");
    let out = out_folder(out, "samples")?;
    let settings = sampler.settings()?;
    let files = weights.files()?;
    device.run(Sample { files, classes, unconditional, n, settings, previews, out, npz })
}

struct Sample {
    files: Files,
    classes: Vec<String>,
    unconditional: bool,
    n: usize,
    settings: Settings,
    previews: bool,
    out: PathBuf,
    npz: Option<PathBuf>,
}

impl Job for Sample {
    type Output = Verdict;

    fn run<A: AutodiffBackend>(self, device: A::Device, _workers: usize) -> Result<Verdict> {
        self.sample::<A::InnerBackend>(&device)?;
        Ok(Verdict::Good)
    }
}

impl Sample {
    fn sample<B: Backend>(self, device: &B::Device) -> Result<()> {
        let Self { files, classes, unconditional, n, settings, previews, out, npz } = self;
        let pipeline = files.load::<B>(device)?;
        let names = pipeline.classes();
        let labels = if unconditional {
            vec![pipeline.null_label()]
        } else if classes.is_empty() {
            (0..names.len()).collect()
        } else {
            let mut labels = Vec::with_capacity(classes.len());
            for query in &classes {
                let label = pipeline.label(query).context("--class")?;
                if labels.contains(&label) {
                    eprintln!("--class {query}: is '{}' again; drawn once", names[label]);
                } else {
                    labels.push(label);
                }
            }
            labels
        };
        let scales = settings.scales(&pipeline)?;
        let sampler = settings.sampler(pipeline.backbone().sampler);
        let wanted: Vec<(usize, usize)> =
            labels.iter().flat_map(|label| (0..n).map(|i| (*label, i))).collect();
        let unit = pipeline.downsampling();
        let size = [scales.last().height * unit, scales.last().width * unit];
        let mut npz = npz.map(|path| Npz::create(&path, wanted.len(), size)).transpose()?;
        make_out(&out)?;

        let root = SeedTree::new(settings.seed);
        let mut shown: Vec<RgbImage> = Vec::new();
        // The first images at every scale.
        let mut by_scale: Vec<Vec<RgbImage>> = vec![Vec::new(); scales.len()];
        let mut done = 0;
        for part in wanted.chunks(settings.batch) {
            let request = Request::of(root, part.iter().copied(), scales.clone(), sampler);
            let images = if previews && done < MOST_PREVIEWS {
                let mut last = Vec::new();
                pipeline.sample_previews(&request, |k, decoded| {
                    by_scale[k].extend(decoded.iter().cloned());
                    last = decoded;
                });
                last
            } else {
                pipeline.sample(&request)
            };
            for ((label, i), image) in part.iter().zip(&images) {
                let class = names.get(*label).map_or("unconditional".into(), |c| file_name(c));
                save(image, &out.join(format!("{label}-{class}-{i:03}.png")))?;
                if let Some(npz) = &mut npz {
                    npz.push(image)?;
                }
            }
            let room = MOST_IN_GRID.saturating_sub(shown.len());
            done += images.len();
            shown.extend(images.into_iter().take(room));
            eprintln!("{done} of {} images", wanted.len());
        }
        if let Some(npz) = npz {
            npz.finish()?;
        }

        let columns = if labels.len() > 1 { n } else { n.isqrt().max(1) };
        let magnify = magnification(shown[0].width());
        let sheet = beside(&out, "grid.png");
        save(&grid(&shown, columns, 4, magnify), &sheet)?;
        if previews {
            by_scale.iter_mut().for_each(|images| images.truncate(MOST_PREVIEWS));
            write_previews(&out, &by_scale, columns)?;
        }
        eprintln!("wrote {done} images to {}, and {}", out.display(), sheet.display());
        Ok(())
    }
}

/// A contact sheet with a row for each image and a column for each scale, and an animation over the scales.
fn write_previews(out: &Path, by_scale: &[Vec<RgbImage>], columns: usize) -> Result<()> {
    use image::codecs::gif::{GifEncoder, Repeat};
    use image::{Delay, DynamicImage, Frame};

    let last = &by_scale[by_scale.len() - 1];
    let (width, height) = last[0].dimensions();
    // Coarse scales decode to small images.
    let full = |image: &RgbImage| enlarge(image, width, height);
    let rows = (0..last.len()).flat_map(|i| by_scale.iter().map(move |images| full(&images[i])));
    let magnify = magnification(width);
    save(
        &grid(&rows.collect::<Vec<_>>(), by_scale.len(), 4, magnify),
        &beside(out, "previews.png"),
    )?;

    let path = beside(out, "previews.gif");
    let context = || path.display().to_string();
    let file = File::create(&path).with_context(context)?;
    let mut encoder = GifEncoder::new(BufWriter::new(file));
    encoder.set_repeat(Repeat::Infinite).with_context(context)?;
    for (k, images) in by_scale.iter().enumerate() {
        let images: Vec<RgbImage> = images.iter().map(full).collect();
        let sheet = DynamicImage::from(grid(&images, columns, 4, magnify)).into_rgba8();
        let hundredths = if k + 1 == by_scale.len() { LAST_FRAME } else { FRAME };
        let delay = Delay::from_numer_denom_ms(10 * u32::from(hundredths), 1);
        encoder.encode_frame(Frame::from_parts(sheet, 0, 0, delay)).with_context(context)?;
    }
    Ok(())
}

/// A class name as part of a file name: `Smileys & Emotion` to `smileys-emotion`.
fn file_name(class: &str) -> String {
    let words = class.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    let name = words.collect::<Vec<_>>().join("-").to_lowercase();
    if name.is_empty() { "class".into() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn class_names_become_file_names() {
        assert_eq!(file_name("Smileys & Emotion"), "smileys-emotion");
        assert_eq!(file_name("../../etc"), "etc");
        assert_eq!(file_name("&"), "class");
    }
}
