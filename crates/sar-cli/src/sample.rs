//! `sar sample`: images from trained weights.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::backend::{AutodiffBackend, Backend};
use sar_core::SeedTree;
use sar_pipeline::{Origin, Pipeline, Request, RgbImage, grid, magnification, to_png};
use sar_weights::{remove_stale_of, write_bytes};

use crate::Verdict;
use crate::device::{DeviceArg, Job};
use crate::events::{Events, Said};
use crate::generation::{
    Files, SamplerArgs, Settings, WeightsArgs, beside, named_after, out_folder, save, whole,
};
use crate::interrupt::{self, INTERRUPTED};
use crate::job::{Class, OTHER_SETTINGS, SampleJob, Shard, n_images};
use crate::pack::{Images, PackArgs, read};
use crate::previews::write_previews;
use crate::progress::clock;

/// Images of a sheet, and those of one class where there are several.
const MOST_IN_SHEET: usize = 1024;
const MOST_IN_ROW: usize = 64;
/// Images whose scales are shown.
const MOST_PREVIEWS: usize = 64;
/// Files that are written side by side: each waits for the disk.
const WRITERS: usize = 8;

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
    #[arg(long, default_value_t = 16, allow_negative_numbers = true, value_parser = whole::<usize>)]
    n: usize,
    #[command(flatten)]
    sampler: SamplerArgs,
    /// Also shows every scale, beside the folder: OUT-previews.png, with a row for each image, and
    /// OUT-previews.gif.
    #[arg(long)]
    previews: bool,
    /// A new or empty folder for the images; beside it lie a sheet of them, OUT-grid.png, and what they
    /// depend on, OUT-job.json [default: samples, or the next that is free]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Goes on in --out where the same command was stopped or killed, or begins. The files end up as if
    /// it had not been, byte for byte on the same kind of CPU: a batch that lacks an image is drawn again
    /// whole.
    #[arg(long)]
    resume: bool,
    /// Draws part I, from 0, of N, as in 3/16: every N-th batch, so that machines share the work. All
    /// parts write to one --out, also at once, or to folders that are copied together; each goes on as
    /// with --resume. `sar pack` makes one file of them.
    #[arg(long, value_name = "I/N")]
    shard: Option<String>,
    #[command(flatten)]
    files: PackArgs,
    #[command(flatten)]
    pub(crate) events: Events,
    #[command(flatten)]
    device: DeviceArg,
}

pub(crate) fn run(args: Args) -> Result<Verdict> {
    let Args { weights, classes, unconditional, n, sampler, previews, out, resume, .. } = args;
    let (files, events, device) = (args.files, args.events, args.device);
    ensure!(n > 0, "--n 0: nothing to sample");
    n_images(n, 1)?;
    let shard = args.shard.as_deref().map(Shard::parse).transpose()?;
    let going_on = match (shard, resume) {
        (Some(_), _) => Some("--shard"),
        (None, true) => Some("--resume"),
        (None, false) => None,
    };
    let out = match (going_on, out) {
        (None, out) => out_folder(out, "samples")?,
        (Some(option), None) => bail!("{option}: name the folder with --out"),
        (Some(_), Some(out)) => {
            ensure!(!out.is_file(), "--out {}: is a file", out.display());
            out
        }
    };
    if let Some(option) = going_on {
        ensure!(!previews, "--previews: shows a new and whole run, not one with {option}");
    }
    if let (Some(_), Some((option, path))) = (shard, files.named().next()) {
        let (path, out) = (path.display(), out.display());
        bail!(
            "{option} {path}: is of all shards, `sar pack {out} {option} {path}` when they are done"
        );
    }
    files.check(going_on.is_none())?;
    let settings = sampler.settings()?;
    let weights = weights.files()?;
    let goes_on = going_on.is_some();
    let wanted = Wanted { classes, unconditional, n };
    device.run(Sample { weights, wanted, settings, previews, out, goes_on, shard, files, events })
}

struct Sample {
    weights: Files,
    wanted: Wanted,
    settings: Settings,
    previews: bool,
    out: PathBuf,
    /// In a folder that may hold images of the job.
    goes_on: bool,
    shard: Option<Shard>,
    files: PackArgs,
    events: Events,
}

/// Which images.
struct Wanted {
    classes: Vec<String>,
    unconditional: bool,
    n: usize,
}

impl Job for Sample {
    type Output = Verdict;

    fn run<A: AutodiffBackend>(self, device: A::Device, _workers: usize) -> Result<Verdict> {
        self.sample::<A::InnerBackend>(&device)?;
        Ok(Verdict::Good)
    }
}

impl Wanted {
    fn classes<B: Backend>(&self, pipeline: &Pipeline<B>) -> Result<Vec<Class>> {
        if self.unconditional {
            return Ok(vec![Class { label: pipeline.null_label(), name: None }]);
        }
        let names = pipeline.classes();
        let mut labels = Vec::with_capacity(self.classes.len());
        for query in &self.classes {
            let label = pipeline.label(query).context("--class")?;
            if labels.contains(&label) {
                eprintln!("--class {query}: is '{}' again; drawn once", names[label]);
            } else {
                labels.push(label);
            }
        }
        if self.classes.is_empty() {
            labels = (0..names.len()).collect();
        }
        let class = |label: usize| Class { label, name: Some(names[label].clone()) };
        Ok(labels.into_iter().map(class).collect())
    }
}

impl Sample {
    fn sample<B: Backend>(self, device: &B::Device) -> Result<()> {
        let (job, pipeline) = self.job::<B>(device)?;
        let out = &self.out;
        job.settle(out, self.goes_on)?;
        interrupt::watch("stopping after this batch")?;
        let by_scale = self.draw(&job, &pipeline)?;
        // That another job began at the same moment would not have been seen.
        job.check(out, OTHER_SETTINGS)?;
        if let Some(Shard { index, of }) = self.shard {
            let n: usize = job.batches(self.shard()).map(|batch| job.positions(batch).len()).sum();
            eprintln!("{} holds all {n} images of shard {index}/{of}", out.display());
            self.events.say(&Said::Done { dir: out.to_string_lossy() });
            return Ok(());
        }
        match self.finish(&job, &by_scale) {
            Err(_) if interrupt::has_come() => self.stopped(job.len(), job.len()),
            finished => finished,
        }
    }

    /// What is to be drawn, and with what.
    fn job<B: Backend>(&self, device: &B::Device) -> Result<(SampleJob, Pipeline<B>)> {
        let Self { weights, wanted, settings, .. } = self;
        let pipeline = weights.load::<B>(device)?;
        let made_with = weights.made_with(&pipeline, device);
        let (scales, unit) = (settings.scales(&pipeline)?, pipeline.downsampling());
        let job = SampleJob {
            sar: env!("CARGO_PKG_VERSION").into(),
            seed: settings.seed,
            classes: wanted.classes(&pipeline)?,
            n: wanted.n,
            batch: settings.batch,
            height: scales.last().height * unit,
            width: scales.last().width * unit,
            scales,
            sampler: settings.sampler(pipeline.backbone().sampler),
            precision: made_with.precision,
            device: made_with.device,
            tokenizer: made_with.tokenizer,
            backbone: made_with.backbone,
        };
        n_images(job.n, job.classes.len())?;
        Ok((job, weights.in_precision(pipeline)?))
    }

    fn shard(&self) -> Shard {
        self.shard.unwrap_or(Shard::WHOLE)
    }

    /// Draws the images that are not there; returns the first ones at every scale, for previews.
    fn draw<B: Backend>(
        &self,
        job: &SampleJob,
        pipeline: &Pipeline<B>,
    ) -> Result<Vec<Vec<RgbImage>>> {
        let Self { previews, out, goes_on, .. } = self;
        let shard = self.shard();
        // Others write the images of theirs at the same time.
        let is_own = |position| job.is_of(position, shard);
        remove_stale_of(out, |name| job.position(name).is_some_and(is_own))?;
        let there = job.there(out)?;
        let own = || job.batches(shard).map(|batch| job.positions(batch));
        let n_own: usize = own().map(|positions| positions.len()).sum();
        let mut n_there = own().flatten().filter(|position| there[*position]).count();
        if *goes_on {
            eprintln!("{n_there} of {n_own} images were there");
        }
        let events = self.events;
        events.say(&Said::Job { dir: out.to_string_lossy(), images: n_own, there: n_there });

        let root = SeedTree::new(job.seed);
        let mut by_scale: Vec<Vec<RgbImage>> = vec![Vec::new(); job.scales.len()];
        let lacking = || own().filter(|positions| positions.clone().any(|p| !there[p]));
        let mut n_left: usize = lacking().map(|positions| positions.len()).sum();
        let (start, mut n_drawn) = (Instant::now(), 0);
        for positions in lacking() {
            let wanted = positions.clone().map(|position| job.image(position));
            let request = Request::of(root, wanted, job.scales.clone(), job.sampler);
            let images = if *previews && positions.start < MOST_PREVIEWS {
                let mut last = Vec::new();
                pipeline.sample_previews(&request, |k, decode| {
                    let decoded = decode();
                    let room = MOST_PREVIEWS - by_scale[k].len();
                    by_scale[k].extend(decoded.iter().take(room).cloned());
                    last = decoded;
                    ControlFlow::Continue(())
                });
                last
            } else {
                pipeline.sample(&request)
            };
            let new: Vec<_> = positions.zip(&images).filter(|(p, _)| !there[*p]).collect();
            save_all(&new, job, out)?;
            for (position, _) in &new {
                let Origin { label, class, number, .. } = job.origin(*position);
                let path = out.join(job.name(*position));
                let (path, class) = (path.to_string_lossy(), class.as_deref());
                events.say(&Said::Image { path, class, label, number });
            }
            n_there += new.len();
            (n_drawn, n_left) = (n_drawn + images.len(), n_left - images.len());
            let to_go = start.elapsed().mul_f64(n_left as f64 / n_drawn as f64);
            let to_go_s = to_go.as_secs_f64();
            events.say(&Said::Progress { done: n_there, of: n_own, to_go_s });
            match n_left {
                0 => eprintln!("{n_there} of {n_own} images"),
                _ => eprintln!("{n_there} of {n_own} images, {} to go", clock(to_go)),
            }
            if interrupt::has_come() {
                self.stopped(n_there, n_own);
            }
        }
        Ok(by_scale)
    }

    /// Ends the program, and says how to go on.
    fn stopped(&self, n_there: usize, n_own: usize) -> ! {
        let out = self.out.display();
        let how = match self {
            Self { shard: Some(_), .. } => "the same command".into(),
            Self { previews: true, .. } => {
                format!("the same command with --out {out} --resume, without --previews,")
            }
            _ => format!("the same command with --out {out} --resume"),
        };
        let message = format!("stopped: {n_there} of {n_own} images are in {out}; {how} goes on");
        eprintln!("{message}");
        self.events.say(&Said::Stopped { message: &message });
        process::exit(INTERRUPTED)
    }

    /// Writes what is made of all images.
    fn finish(&self, job: &SampleJob, by_scale: &[Vec<RgbImage>]) -> Result<()> {
        let out = &self.out;
        job.clear(out)?;
        let (sheet, columns) = self.write_sheet(job)?;
        if self.previews {
            write_previews(out, by_scale, columns)?;
        }
        self.files.write(&Images { job, folders: &[out] })?;
        eprintln!("wrote {} images to {}, and {}", job.len(), out.display(), sheet.display());
        [&*sheet].into_iter().chain(self.files.named().map(|(_, path)| path)).for_each(|path| {
            self.events.wrote(path);
        });
        self.events.say(&Said::Done { dir: out.to_string_lossy() });
        Ok(())
    }

    /// Writes a sheet of the first images, a row for each of several classes; returns its path and number of
    /// columns.
    fn write_sheet(&self, job: &SampleJob) -> Result<(PathBuf, usize)> {
        let of_all = job.n.min(MOST_IN_SHEET);
        let of_several = job.n.min(MOST_IN_ROW);
        let (n, columns) = match job.classes.len() {
            1 => (of_all, of_all.isqrt()),
            _ => (of_several, of_several),
        };
        let of_class = |class| (0..n).map(move |i| class * job.n + i);
        let shown = (0..job.classes.len()).flat_map(of_class).take(MOST_IN_SHEET);
        let shown: Result<Vec<RgbImage>> =
            shown.map(|position| Ok(read(job, &self.out, position)?.1)).collect();
        let sheet = grid(&shown?, columns, 4, magnification(job.width as u32));
        // One of the same job is left as it is.
        let path = named_after(&self.out, "grid.png");
        if self.goes_on && fs::read(&path).is_ok_and(|there| there == to_png(&sheet)) {
            return Ok((path, columns));
        }
        let path = beside(&self.out, "grid.png");
        save(&sheet, &path)?;
        Ok((path, columns))
    }
}

/// Saves images with their positions and origins.
fn save_all(images: &[(usize, &RgbImage)], job: &SampleJob, out: &Path) -> Result<()> {
    let save = |(position, image): &(usize, &RgbImage)| -> Result<()> {
        let png = job.origin(*position).to_png(image);
        Ok(write_bytes(&out.join(job.name(*position)), &png)?)
    };
    thread::scope(|scope| {
        let parts = images.chunks(images.len().div_ceil(WRITERS).max(1));
        let writers: Vec<_> =
            parts.map(|part| scope.spawn(|| part.iter().try_for_each(save))).collect();
        writers.into_iter().try_for_each(|writer| writer.join().expect("writing does not panic"))
    })
}
