//! `sar sample`: images from trained weights.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::backend::{AutodiffBackend, Backend};
use sar_core::{ScaleSchedule, SeedTree};
use sar_data::{RgbImage, find_class, grid, magnification, to_png};
use sar_rollout::{Choice, Guidance, Sampler};
use sar_train::run::{SampleRequest, sample_images, sample_stream};
use sar_train::weights::{TrainedBackbone, load_backbone, load_tokenizer};

use crate::Verdict;
use crate::device::{DeviceArg, Job};

/// Attention over more tokens than this asks for more memory than machines have; the largest
/// published schedule has 9,451.
const MOST_TOKENS: usize = 1 << 16;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// A run directory: its tokenizer and its refined backbone (else its teacher).
    #[arg(long, value_name = "DIR", required_unless_present_all = ["tokenizer", "weights"])]
    run: Option<PathBuf>,
    /// Tokenizer weights, instead of the run's.
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Backbone weights, instead of the run's.
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
    /// A class by name or index; again for more [default: every class]
    #[arg(long = "class", value_name = "CLASS")]
    classes: Vec<String>,
    /// Images per class.
    #[arg(long, default_value_t = 16)]
    n: usize,
    /// The same seed, class and image number give the same tokens whatever the batch.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Classifier-free guidance at the last scale, rising from 0; 0 for none.
    #[arg(long, default_value_t = 2.5)]
    guidance: f64,
    /// Keeps the most probable codes of each token; 0 for all.
    #[arg(long, default_value_t = 900)]
    top_k: usize,
    /// Keeps the codes that make up this probability; 0 for all.
    #[arg(long, default_value_t = 0.95)]
    top_p: f64,
    /// Mixes codes instead of drawing one: smoother and less varied pictures, for looking at only.
    #[arg(long)]
    more_smooth: bool,
    /// Scales as in 1_2_3_4 [default: those of the weights]
    #[arg(long)]
    scales: Option<String>,
    /// Images that are generated together.
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// A new or empty folder for grid.png and the single images.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    device: DeviceArg,
}

pub(crate) fn run(args: Args) -> Result<Verdict> {
    ensure!(args.n > 0, "--n 0: nothing to sample");
    ensure!(args.batch > 0, "--batch 0: must be at least 1");
    ensure!(
        args.guidance.is_finite() && args.guidance >= 0.0,
        "--guidance {}: must be 0 or more",
        args.guidance
    );
    ensure!((0.0..=1.0).contains(&args.top_p), "--top-p {}: must be in [0, 1]", args.top_p);
    ensure!(!args.out.is_file(), "--out {}: is a file", args.out.display());
    let is_used = args.out.read_dir().is_ok_and(|mut entries| entries.next().is_some());
    ensure!(!is_used, "--out {}: already holds files", args.out.display());
    let tokenizer = file_of(&args.tokenizer, &args.run, &["tokenizer.safetensors"])?;
    let weights = file_of(
        &args.weights,
        &args.run,
        &["backbone-sar.safetensors", "backbone-teacher.safetensors"],
    )?;
    let scales = args
        .scales
        .as_deref()
        .map(|text| text.parse::<ScaleSchedule>().with_context(|| format!("--scales {text}")));
    let scales = scales.transpose()?;
    let (top_k, top_p) = (args.top_k, args.top_p);
    let choice = match args.more_smooth {
        true => Choice::MoreSmooth { top_k, top_p },
        false => Choice::Sample { top_k, top_p },
    };
    let device = args.device;
    let request = Request {
        tokenizer,
        weights,
        classes: args.classes,
        n: args.n,
        seed: args.seed,
        sampler: Sampler { guidance: Guidance::flexvar(args.guidance), choice },
        scales,
        batch: args.batch,
        out: args.out,
    };
    device.run(request)
}

/// The named file, or the first of `names` that the run holds.
fn file_of(named: &Option<PathBuf>, run: &Option<PathBuf>, names: &[&str]) -> Result<PathBuf> {
    if let Some(path) = named {
        return Ok(path.clone());
    }
    let run = run.as_deref().unwrap_or(Path::new("."));
    let found = names.iter().map(|name| run.join(name)).find(|path| path.is_file());
    match found {
        Some(path) => Ok(path),
        None => bail!(
            "--run {}: holds no {}; is it a run that has come so far?",
            run.display(),
            names.join(" and no ")
        ),
    }
}

struct Request {
    tokenizer: PathBuf,
    weights: PathBuf,
    classes: Vec<String>,
    n: usize,
    seed: u64,
    sampler: Sampler,
    scales: Option<ScaleSchedule>,
    batch: usize,
    out: PathBuf,
}

impl Job for Request {
    type Output = Verdict;

    fn run<A: AutodiffBackend>(self, device: A::Device, _workers: usize) -> Result<Verdict> {
        self.sample::<A::InnerBackend>(&device)?;
        Ok(Verdict::Good)
    }
}

impl Request {
    fn sample<B: Backend>(self, device: &B::Device) -> Result<()> {
        let (tokenizer, tokenizer_config) = load_tokenizer::<B>(&self.tokenizer, device)?;
        let TrainedBackbone { model, config, classes: names, scales } =
            load_backbone::<B>(&self.weights, device)?;
        let theirs = (tokenizer_config.codebook_size, tokenizer_config.codebook_dim);
        let ours = (config.codebook_size, config.codebook_dim);
        ensure!(
            theirs == ours,
            "{}: was trained on {} codes of {} channels, {} has {} of {}",
            self.weights.display(),
            ours.0,
            ours.1,
            self.tokenizer.display(),
            theirs.0,
            theirs.1,
        );
        let classes = if self.classes.is_empty() {
            (0..names.len()).collect()
        } else {
            self.classes
                .iter()
                .map(|query| find_class(&names, query).context("--class"))
                .collect::<Result<Vec<usize>>>()?
        };
        let scales = self.scales.unwrap_or(scales);
        config.check_scales(&scales).context("--scales")?;
        let tokens = scales.n_tokens();
        ensure!(tokens <= MOST_TOKENS, "--scales: {tokens} tokens an image, at most {MOST_TOKENS}");

        let root = SeedTree::new(self.seed);
        let wanted: Vec<(usize, usize)> =
            classes.iter().flat_map(|class| (0..self.n).map(|i| (*class, i))).collect();
        let mut images: Vec<RgbImage> = Vec::with_capacity(wanted.len());
        for part in wanted.chunks(self.batch) {
            let request = SampleRequest {
                labels: part.iter().map(|(class, _)| *class).collect(),
                streams: part.iter().map(|(class, i)| sample_stream(root, *class, *i)).collect(),
                scales: scales.clone(),
                sampler: self.sampler,
            };
            images.extend(sample_images(&tokenizer, &model, &request, device));
            eprintln!("{} of {} images", images.len(), wanted.len());
        }

        fs::create_dir_all(&self.out).with_context(|| format!("--out {}", self.out.display()))?;
        for ((class, i), image) in wanted.iter().zip(&images) {
            let name = format!("{class}-{}-{i:03}.png", file_name(&names[*class]));
            save(image, &self.out.join(name))?;
        }
        let columns = if classes.len() > 1 { self.n } else { self.n.isqrt().max(1) };
        let magnify = magnification(images[0].width());
        let sheet = self.out.join("grid.png");
        save(&grid(&images, columns, 4, magnify), &sheet)?;
        eprintln!("wrote {} and {} single images", sheet.display(), images.len());
        Ok(())
    }
}

fn save(image: &RgbImage, path: &Path) -> Result<()> {
    fs::write(path, to_png(image)).with_context(|| path.display().to_string())
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
