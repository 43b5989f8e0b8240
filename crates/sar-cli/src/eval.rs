//! `sar eval`: how good a set of images is, beside real ones.

mod features_file;
mod outputs;
mod reference;
mod report;
mod samples;
pub(crate) mod sweep;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::backend::{AutodiffBackend, Backend};
use sar_eval::{Extractor, FeatureSet, Keep, Looking, Pictures, Quality};
use sar_features::InceptionInput;
use sar_pipeline::{RgbImage, grid, magnification};
use sar_weights::write_bytes;
use serde_json::json;

use crate::Verdict;
use crate::device::{DeviceArg, Job, arithmetic};
use crate::generation::{SamplerArgs, WeightsArgs, save, whole};
use crate::hub::WeightsPath;
use crate::job::n_images;
use crate::progress::clock;
use outputs::{Beside, Outputs};
use reference::{Real, Source, check_moments, moments_alone, run_recipe, said_of_sizes};
use report::Report;
use samples::{Weights, labels_among};
use sweep::Sweep;

/// Images of a sheet at most, and of one class.
const SHOWN: usize = 144;
const SHOWN_OF_CLASS: usize = 16;
/// Features of more bytes are announced.
const LARGE: usize = 100_000_000;
/// What says how samples are drawn, and nothing of images that are there.
const OF_SAMPLES: [&str; 15] = [
    "run",
    "tokenizer",
    "backbone",
    "root",
    "precision",
    "seed",
    "guidance",
    "top_k",
    "top_p",
    "more_smooth",
    "scales",
    "size",
    "batch",
    "n",
    "sweep",
];

/// What `--help` says below the options.
const NOTES: &str = "\
Numbers compare only where the network, the way images come to it, the number of images and the reference \
are the same; the report says all four. The floor is what held-out real images have beside the training \
images. With EfficientNet-Lite0 a Fréchet distance is an FD-EffNetLite0, never an FID. docs/evaluation.md says \
which number to report when.

This program holds the weights of EfficientNet-Lite0, Copyright (c) 2020 ML Illustrated, Apache License \
2.0: whoever passes it on passes on assets/features/LICENSE-APACHE-2.0.txt with it.";

#[derive(clap::Args)]
#[command(after_help = NOTES)]
pub(crate) struct Args {
    /// The images: a folder, an .npz file (arr_0, or else mu and sigma, and then Fréchet distances alone), or a
    /// recipe, whose images are squares of its side; of train and val parts the latter. Their classes come from
    /// class folders, from names as `sar sample` gives them, or from arr_1 [default: samples of the weights]
    #[arg(long, value_name = "DIR|FILE.npz|RECIPE", conflicts_with_all = OF_SAMPLES)]
    images: Option<PathBuf>,
    #[command(flatten)]
    weights: WeightsArgs,
    #[command(flatten)]
    sampler: SamplerArgs,
    /// Samples per class.
    #[arg(long, value_name = "N", default_value_t = 100, allow_negative_numbers = true, value_parser = whole::<usize>)]
    n: usize,
    /// Measures samples at each of these settings of the sampler, as in guidance=0:5:0.5,top_p=0.3; from:to:step or
    /// one number, for guidance, top_k and top_p.
    #[arg(long, value_name = "NAME=VALUES,..")]
    sweep: Option<Sweep>,
    /// Real images: a folder, an .npz file (images, mu and sigma, or both, and then Fréchet distances are of
    /// these), or a recipe, which means all its images, at the side of the measured ones [default: the recipe
    /// of --run, else the embedded emoji]
    #[arg(long, value_name = "DIR|FILE.npz|RECIPE")]
    reference: Option<PathBuf>,
    /// Looks through the Inception network of FID instead of EfficientNet-Lite0:
    /// pt_inception-2015-12-05-6726825d.pth of pytorch-fid, torch-fidelity's file, or the graph of ADM's
    /// evaluation, classify_image_graph_def.pb.
    #[arg(long, value_name = "FILE")]
    inception: Option<WeightsPath>,
    /// How images come to that network: adm (also torch-fidelity's), or pytorch-fid.
    #[arg(long, value_name = "NAME", default_value = "adm", value_parser = protocol, requires = "inception")]
    protocol: InceptionInput,
    /// Fréchet distances and the inception score alone, in memory that does not grow with the number of images.
    #[arg(long)]
    moments_only: bool,
    /// Computes the measures of features that are there: an .npz file with the matrices reference,
    /// generated and, for an inception score, logits.
    #[arg(long, value_name = "FILE.npz", conflicts_with_all = OF_SAMPLES, conflicts_with_all = ["images", "reference", "inception", "moments_only", "statistics"])]
    features: Option<PathBuf>,
    /// Also writes mean and covariance of the images' features, for later --reference: mu, sigma and, with
    /// --inception, mu_s, sigma_s.
    #[arg(long, value_name = "FILE.npz")]
    statistics: Option<PathBuf>,
    /// A new file for all figures and settings; a sheet of the images lies beside it, and the curves of
    /// --sweep [default: eval.json, or the next that is free]
    #[arg(long, value_name = "OUT")]
    json: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArg,
}

fn protocol(text: &str) -> Result<InceptionInput, String> {
    match text {
        "adm" => Ok(InceptionInput::Adm),
        "pytorch-fid" => Ok(InceptionInput::PytorchFid),
        _ => Err("adm and pytorch-fid are known".into()),
    }
}

pub(crate) fn run(args: Args) -> Result<Verdict> {
    let given = args.images.as_deref().map(open).transpose().context("--images")?;
    // Of features and moments there is nothing to be seen.
    let is_seen = args.features.is_none() && !matches!(given, Some(What::Moments { .. }));
    let beside = Beside { sheet: is_seen, plot: args.sweep.is_some() };
    let outputs = Outputs::new(args.json, args.statistics, beside)?;
    if let Some(file) = &args.features {
        return features_file::run(file, &outputs.json);
    }
    ensure!(args.n > 0, "--n 0: nothing to sample");
    n_images(args.n, 1)?;
    let run = args.weights.run_dir().map(Path::to_owned);
    let what = match given {
        Some(what) => what,
        None => What::Weights(Box::new(Weights {
            files: args.weights.files()?,
            settings: args.sampler.settings()?,
            n: args.n,
            sweep: args.sweep,
        })),
    };
    let source = Source::of_real(args.reference.as_deref(), run.as_deref())?;
    let keep = if args.moments_only { Keep::Moments } else { Keep::Features };
    let Args { inception, protocol, device, .. } = args;
    let inception = inception.map(|path| path.file()).transpose().context("--inception")?;
    device.run(Eval { what, source, keep, inception, protocol, outputs })
}

/// Images that are there, or the moments of their features.
fn open(path: &Path) -> Result<What> {
    let name = path.display().to_string();
    if let Some(recipe) = run_recipe(path) {
        bail!(
            "{name} is a run: --run {name} samples, --images {} has real images",
            recipe.display()
        );
    }
    let pictures = match Source::named(path)? {
        Source::Npz(path) => match moments_alone(&path)? {
            Some(set) => return Ok(What::Moments { name, set }),
            None => Pictures::npz(&path)?,
        },
        Source::Images { name, source, side } => Pictures::of_source(name, &source, side)?,
    };
    pictures.notes().iter().for_each(|note| eprintln!("{note}"));
    Ok(What::Images(pictures))
}

struct Eval {
    what: What,
    source: Source,
    keep: Keep,
    inception: Option<PathBuf>,
    protocol: InceptionInput,
    outputs: Outputs,
}

/// What is measured.
enum What {
    Images(Pictures),
    Moments { name: String, set: FeatureSet },
    Weights(Box<Weights>),
}

/// Images that were looked at.
struct Seen {
    set: FeatureSet,
    /// The classes that were asked for, where they are known.
    labels: Option<Vec<usize>>,
    shown: Vec<RgbImage>,
}

/// What all images amount to.
struct Found {
    report: Report,
    rows: Vec<(String, Quality)>,
    /// The images, or those of a sweep's first setting.
    first: Seen,
}

impl Job for Eval {
    type Output = Verdict;

    fn run<A: AutodiffBackend>(self, device: A::Device, _workers: usize) -> Result<Verdict> {
        self.eval::<A::InnerBackend>(&device)?;
        Ok(Verdict::Good)
    }
}

impl Eval {
    fn eval<B: Backend>(self, device: &B::Device) -> Result<()> {
        let extractor = match &self.inception {
            Some(path) => {
                Extractor::<B>::inception(path, self.protocol, device).context("--inception")?
            }
            None => Extractor::efficientnet_lite0(device),
        };
        let Found { report, rows, first } = match &self.what {
            What::Images(pictures) => self.of_images(pictures, &extractor, device)?,
            What::Moments { name, set } => self.of_moments(name, set, &extractor, device)?,
            What::Weights(weights) => self.of_samples(weights, &extractor, device)?,
        };
        let rows: Vec<(&str, &Quality)> =
            rows.iter().map(|(name, quality)| (name.as_str(), quality)).collect();
        print!("{}", report::table(&extractor, &rows, report.floor()));
        let Outputs { json, statistics, sheet, plot } = &self.outputs;
        let wrote = |path: &Path| eprintln!("wrote {}", path.display());
        write_bytes(json, format!("{:#}\n", report.json()).as_bytes())?;
        wrote(json);
        if let Some(path) = statistics {
            sar_eval::write_statistics(path, &first.set).context("--statistics")?;
            wrote(path);
        }
        if let (Some(path), What::Weights(weights)) = (plot, &self.what)
            && let Some(sweep) = &weights.sweep
        {
            write_bytes(path, sweep.plot(&rows, &extractor)?.as_bytes())?;
            wrote(path);
        }
        if let Some(path) = sheet
            && !first.shown.is_empty()
        {
            let (shown, columns) = (&first.shown, first.shown.len().isqrt().max(1));
            save(&grid(shown, columns, 2, magnification(shown[0].width()).min(2)), path)?;
            wrote(path);
        }
        Ok(())
    }

    /// What is said of any images.
    fn report<B: Backend>(
        &self,
        extractor: &Extractor<B>,
        real: &Real,
        device: &B::Device,
    ) -> Result<Report> {
        let mut report = Report::new(extractor, real)?;
        report.set("device", json!(arithmetic::<B>(device)));
        report.set("moments_only", json!(self.keep == Keep::Moments));
        Ok(report)
    }

    fn of_images<B: Backend>(
        &self,
        pictures: &Pictures,
        extractor: &Extractor<B>,
        device: &B::Device,
    ) -> Result<Found> {
        let opened = self.source.open(Some(pictures.size()))?;
        let n_classes = opened.classes.len();
        if pictures.len() < n_classes {
            let (name, n) = (pictures.name(), pictures.len());
            let few = format!(
                "--images {name}: {n} images, fewer than the {n_classes} classes of the reference"
            );
            // Classes of an .npz file are those that its labels count up to: not all have images.
            ensure!(self.source.is_npz(), few);
            eprintln!("{few}");
        }
        let first = look(pictures, &opened.classes, extractor, self.keep, device)?;
        let real = opened.look(extractor, self.keep, device)?;
        let mut report = self.report(extractor, &real, device)?;
        let part = if pictures.is_held_out() { "held out" } else { "all" };
        let [cropped, enlarged] = said_of_sizes(pictures);
        report.set(
            "images",
            json!({
                "source": pictures.name(), "part": part, "size": pictures.size(), "cropped": cropped,
                "enlarged": enlarged
            }),
        );
        let rows = vec![("images".to_owned(), report.add(&first, &real, json!({}))?)];
        Ok(Found { report, rows, first })
    }

    fn of_moments<B: Backend>(
        &self,
        name: &str,
        set: &FeatureSet,
        extractor: &Extractor<B>,
        device: &B::Device,
    ) -> Result<Found> {
        check_moments(name, set, extractor).context("--images")?;
        let real = self.source.open(None)?.look(extractor, Keep::Moments, device)?;
        let mut report = self.report(extractor, &real, device)?;
        report.set("images", json!({ "source": name, "kind": "moments" }));
        let first = Seen { set: set.clone(), labels: None, shown: Vec::new() };
        let rows = vec![("images".to_owned(), report.add(&first, &real, json!({}))?)];
        Ok(Found { report, rows, first })
    }

    fn of_samples<B: Backend>(
        &self,
        weights: &Weights,
        extractor: &Extractor<B>,
        device: &B::Device,
    ) -> Result<Found> {
        let pipeline = weights.files.load::<B>(device)?;
        let made_with = weights.files.made_with(&pipeline, device);
        let pipeline = weights.files.in_precision(pipeline)?;
        let opened = self.source.open(Some(weights.size(&pipeline)?))?;
        let wanted = weights.wanted(&pipeline)?;
        let labels = said(labels_among(pipeline.classes(), &opened.classes, &wanted));
        let real = opened.look(extractor, self.keep, device)?;
        let mut report = self.report(extractor, &real, device)?;
        report.set("images", weights.described(&pipeline, &made_with)?);
        announce(wanted.len(), 1, extractor, self.keep);
        let (mut rows, mut first) = (Vec::new(), None);
        let samplers = weights.samplers(&pipeline);
        let mut progress = Progress::new("sampled", samplers.len() * wanted.len());
        for (i, (name, settings, sampler)) in samplers.into_iter().enumerate() {
            if weights.sweep.is_some() {
                progress.part(format!("{name}: sampled"), i * wanted.len());
            }
            let looking = Looking::new(extractor, self.keep, device).class_by_class(wanted.len());
            let (set, shown) =
                weights.sample(&pipeline, sampler, &wanted, looking, &mut progress)?;
            let seen = Seen { set, labels: labels.clone(), shown };
            rows.push((name, report.add(&seen, &real, settings)?));
            first.get_or_insert(seen);
        }
        Ok(Found { report, rows, first: first.expect("one setting at least") })
    }
}

/// Looks at the images of a folder or a file.
fn look<B: Backend>(
    pictures: &Pictures,
    classes: &[String],
    extractor: &Extractor<B>,
    keep: Keep,
    device: &B::Device,
) -> Result<Seen> {
    announce_kept(pictures);
    announce(pictures.len(), 1, extractor, keep);
    let mut progress = Progress::new("looked at", pictures.len());
    let mut shown = Vec::new();
    // From all over the images.
    let due = |at: usize| at * SHOWN.min(pictures.len()) / pictures.len();
    let looking = Looking::new(extractor, keep, device);
    let set = FeatureSet::of_pictures(pictures, looking, |n, images| {
        for (i, image) in images.iter().enumerate() {
            let at = n - images.len() + i;
            if due(at + 1) > due(at) {
                shown.push(image.clone());
            }
        }
        progress.at(n);
    });
    let set = set.with_context(|| format!("--images {}", pictures.name()))?;
    let labels = match classes {
        [] => Err("the reference has no classes".into()),
        classes => pictures.labels(classes),
    };
    if labels.is_ok() && pictures.bare_labels().is_some() {
        eprintln!(
            "{}: labels (arr_1) are taken as indices of the reference's {} classes; an .npz file does not name \
             its own",
            pictures.name(),
            classes.len()
        );
    }
    if set.inception_score().is_some() && pictures.bare_labels().is_some_and(are_by_class) {
        eprintln!(
            "{}: images come class by class, so that splits of {} for the inception score lack most classes, and \
             it is far too low; shuffle them",
            pictures.name(),
            FeatureSet::SPLIT
        );
    }
    Ok(Seen { set, labels: said(labels), shown })
}

/// Whether a split of the inception score lacks most of the classes.
fn are_by_class(labels: &[usize]) -> bool {
    let count = |labels: &[usize]| labels.iter().collect::<HashSet<_>>().len();
    labels.chunks_exact(FeatureSet::SPLIT).any(|split| 2 * count(split) < count(labels))
}

/// Labels, or none and a line that says why.
fn said(labels: Result<Vec<usize>, String>) -> Option<Vec<usize>> {
    labels.inspect_err(|why| eprintln!("no class accuracy: {why}")).ok()
}

/// Says beforehand what features take that are kept some times.
fn announce<B: Backend>(n: usize, times: usize, extractor: &Extractor<B>, keep: Keep) {
    let each = times * extractor.dimension() * size_of::<f32>();
    if keep == Keep::Features && n * each >= LARGE {
        eprintln!(
            "keeps the features of {n} images, {:.1} kB each, {:.1} GB, for measures of neighbors and the kernel \
             distance; --moments-only keeps none",
            each as f64 / 1e3,
            (n * each) as f64 / 1e9
        );
    }
}

/// Says beforehand that all images of a file are kept, where they are.
fn announce_kept(pictures: &Pictures) {
    let bytes = pictures.bytes_kept();
    if bytes > 0 {
        eprintln!(
            "{}: arr_0 is in Fortran's order and all of it is kept in memory, {:.1} MB; np.ascontiguousarray(arr_0), \
             saved, is read a batch at a time",
            pictures.name(),
            bytes as f64 / 1e6
        );
    }
}

/// Lines now and then.
struct Progress {
    what: String,
    total: usize,
    /// Images of the parts before this one.
    before: usize,
    start: Instant,
    last: Instant,
}

impl Progress {
    const EVERY: Duration = Duration::from_secs(5);

    fn new(what: &str, total: usize) -> Self {
        let now = Instant::now();
        Self { what: what.into(), total, before: 0, start: now, last: now }
    }

    /// Goes on with another part, behind those of so many images.
    fn part(&mut self, what: String, before: usize) {
        (self.what, self.before) = (what, before);
    }

    /// Says how many images of this part are done.
    fn at(&mut self, done: usize) {
        if self.before + done == self.total || self.last.elapsed() < Self::EVERY {
            return;
        }
        self.last = Instant::now();
        eprintln!("{}", self.line(done, self.start.elapsed()));
    }

    fn line(&self, done: usize, elapsed: Duration) -> String {
        let Self { what, total, .. } = self;
        let done = self.before + done;
        let to_go = elapsed.mul_f64((total - done) as f64 / done as f64);
        format!("{what} {done} of {total} images, {} to go", clock(to_go))
    }
}

#[cfg(test)]
mod tests {
    use clap::Args as _;

    use super::*;

    /// A group of clap would do, but its errors name all of its options instead of the one that was given.
    #[test]
    fn no_option_of_samples_is_forgotten() {
        let command = WeightsArgs::augment_args(clap::Command::new("eval"));
        let command = SamplerArgs::augment_args(command);
        let shared = command.get_arguments().map(|option| option.get_id().as_str());
        assert_eq!(shared.chain(["n", "sweep"]).collect::<Vec<_>>(), OF_SAMPLES);
    }

    #[test]
    fn progress_counts_the_images_of_all_settings() {
        let mut progress = Progress::new("sampled", 30);
        let minute = Duration::from_secs(60);
        assert_eq!(progress.line(10, minute), "sampled 10 of 30 images, 2:00 to go");
        progress.part("guidance 2: sampled".into(), 10);
        assert_eq!(progress.line(5, minute), "guidance 2: sampled 15 of 30 images, 1:00 to go");
    }

    #[test]
    fn labels_in_the_order_of_classes_are_seen() {
        let n = 2 * FeatureSet::SPLIT + 10;
        let labels = |of: &dyn Fn(usize) -> usize| (0..n).map(of).collect::<Vec<_>>();
        assert!(are_by_class(&labels(&|i| i / 50)));
        // The ten that are left over are no split.
        assert!(!are_by_class(&labels(&|i| i % 200)));
        assert!(!are_by_class(&labels(&|_| 3)));
        assert!(!are_by_class(&labels(&|i| i / 50)[..FeatureSet::SPLIT - 1]));
    }
}
