//! What sampling and editing share: which weights, how tokens are drawn, and where images go.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use burn::tensor::backend::Backend;
use sar_core::{ScaleSchedule, ScaleSize};
use sar_data::{RgbImage, find_class, to_png};
use sar_model::Precision;
use sar_rollout::{Choice, Guidance, Sampler};
use sar_tokenizer::{Tokenizer, TokenizerConfig};
use sar_train::Recipe;
use sar_train::weights::{TrainedBackbone, load_backbone, load_tokenizer};

use crate::first_free;

/// Attention over more tokens than this asks for more memory than machines have; the largest
/// published schedule has 9,451.
const MOST_TOKENS: usize = 1 << 16;

/// A run directory with small weights of the emoji.
const IN_THE_BOX: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/weights/emoji");

/// Which weights.
#[derive(clap::Args)]
pub(crate) struct WeightsArgs {
    /// A run directory: its tokenizer and its refined backbone, else its teacher [default: the small
    /// emoji weights that come with the project]
    #[arg(long, value_name = "DIR")]
    run: Option<PathBuf>,
    /// Tokenizer weights, instead of the run's.
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Backbone weights, instead of the run's.
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
    /// Of the transformer's matrix products: f32, or bf16 or f16 where the device has them.
    #[arg(long, value_name = "TYPE", default_value_t = Precision::F32)]
    precision: Precision,
}

/// How tokens are drawn.
#[derive(clap::Args)]
pub(crate) struct SamplerArgs {
    /// The same seed, class and image number give the same tokens whatever the batch.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Classifier-free guidance at the last scale, rising from 0; 0 for none [default: as the run's
    /// recipe samples, else 2.5]
    #[arg(long)]
    guidance: Option<f64>,
    /// Keeps the most probable codes of each token; 0 for all [default: as the run's recipe samples,
    /// else 900]
    #[arg(long)]
    top_k: Option<usize>,
    /// Keeps the codes that make up this probability; 0 for all [default: as the run's recipe samples,
    /// else 0.95]
    #[arg(long)]
    top_p: Option<f64>,
    /// Mixes codes instead of drawing one: smoother and less varied pictures, for looking at only.
    #[arg(long)]
    more_smooth: bool,
    /// Scales as in 1_2_3_4, or a preset such as 512px or 8-steps [default: those of the weights]
    #[arg(long)]
    scales: Option<String>,
    /// Height and width in pixels, as in 256x384; the scales are stretched to it [default: the trained
    /// size]
    #[arg(long, value_name = "HxW")]
    size: Option<String>,
    /// Images that are generated together.
    #[arg(long, default_value_t = 16)]
    pub(crate) batch: usize,
}

/// Weights that are looked for and found.
pub(crate) struct Files {
    tokenizer: PathBuf,
    weights: PathBuf,
    precision: Precision,
}

/// How tokens are drawn, checked.
pub(crate) struct Settings {
    pub(crate) seed: u64,
    pub(crate) sampler: Sampler,
    pub(crate) batch: usize,
    scales: Option<ScaleSchedule>,
    /// In pixels.
    size: Option<ScaleSize>,
}

impl WeightsArgs {
    fn run(&self) -> &Path {
        self.run.as_deref().unwrap_or(Path::new(IN_THE_BOX))
    }

    /// How the recipe of the run samples, where the weights are a run's.
    pub(crate) fn sampler(&self) -> Option<Sampler> {
        if self.weights.is_some() {
            return None;
        }
        let recipe = self.run().join("recipe.toml");
        if !recipe.is_file() {
            return None;
        }
        match Recipe::load(&recipe.to_string_lossy(), &[]) {
            Ok(recipe) => Some(recipe.evaluation.sampler),
            Err(error) => {
                eprintln!("{error}: sampling as published instead");
                None
            }
        }
    }

    pub(crate) fn files(&self) -> Result<Files> {
        ensure!(
            self.run.is_some() || self.tokenizer.is_some() == self.weights.is_some(),
            "--tokenizer and --weights: both are needed, or a --run that has the other"
        );
        let of = |named: &Option<PathBuf>, names: &[&str]| -> Result<PathBuf> {
            if let Some(path) = named {
                return Ok(path.clone());
            }
            let run = self.run();
            match names.iter().map(|name| run.join(name)).find(|path| path.is_file()) {
                Some(path) => Ok(path),
                None => bail!(
                    "--run {}: holds no {}; is it a run that has come so far?",
                    run.display(),
                    names.join(" and no ")
                ),
            }
        };
        ensure!(
            self.run.is_some() || self.weights.is_some() || self.run().is_dir(),
            "the project's own weights are not in {}; name a --run, or --tokenizer and --weights",
            self.run().display()
        );
        Ok(Files {
            tokenizer: of(&self.tokenizer, &["tokenizer.safetensors"])?,
            weights: of(
                &self.weights,
                &["backbone-sar.safetensors", "backbone-teacher.safetensors"],
            )?,
            precision: self.precision,
        })
    }
}

impl SamplerArgs {
    /// The settings, with a run's own where nothing is said.
    pub(crate) fn settings(&self, of_run: Option<Sampler>) -> Result<Settings> {
        let Self { seed, guidance, top_k, top_p, more_smooth, scales, size, batch } = self;
        ensure!(*batch > 0, "--batch 0: must be at least 1");
        if let Some(guidance) = guidance {
            ensure!(
                guidance.is_finite() && *guidance >= 0.0,
                "--guidance {guidance}: must be 0 or more"
            );
        }
        if let Some(top_p) = top_p {
            ensure!((0.0..=1.0).contains(top_p), "--top-p {top_p}: must be in [0, 1]");
        }
        let base = of_run.unwrap_or(Sampler {
            guidance: Guidance::flexvar(2.5),
            choice: Choice::Sample { top_k: 900, top_p: 0.95 },
        });
        let (k, p) = match base.choice {
            Choice::Argmax => (0, 0.0),
            Choice::Sample { top_k, top_p } | Choice::MoreSmooth { top_k, top_p } => (top_k, top_p),
        };
        let said = (top_k.unwrap_or(k), top_p.unwrap_or(p));
        let choice = match said {
            (top_k, top_p) if *more_smooth => Choice::MoreSmooth { top_k, top_p },
            (top_k, top_p) if said != (k, p) => Choice::Sample { top_k, top_p },
            _ => base.choice,
        };
        let scales = scales
            .as_deref()
            .map(|text| text.parse::<ScaleSchedule>().with_context(|| format!("--scales {text}")));
        Ok(Settings {
            seed: *seed,
            sampler: Sampler {
                guidance: guidance.map_or(base.guidance, Guidance::flexvar),
                choice,
            },
            batch: *batch,
            scales: scales.transpose()?,
            size: size.as_deref().map(pixels).transpose()?,
        })
    }
}

/// Reads `HxW` in pixels.
fn pixels(text: &str) -> Result<ScaleSize> {
    let side = |text: &str| text.parse::<usize>().ok().filter(|n| (1..=1 << 14).contains(n));
    let sides = text.split_once('x').and_then(|(h, w)| side(h).zip(side(w)));
    match sides {
        Some((height, width)) => Ok(ScaleSize { height, width }),
        None => bail!("--size {text}: write height and width in pixels, as in 256x384"),
    }
}

/// A tokenizer and a backbone that belong together.
pub(crate) struct Generator<B: Backend> {
    pub(crate) tokenizer: Tokenizer<B>,
    tokenizer_config: TokenizerConfig,
    pub(crate) backbone: TrainedBackbone<B>,
}

impl<B: Backend> Generator<B> {
    pub(crate) fn load(files: &Files, device: &B::Device) -> Result<Self> {
        let precision = files.precision;
        ensure!(
            precision.is_supported::<B>(device),
            "--precision {precision}: this device has no matrix products of the type; leave it out, or \
             use another --device"
        );
        let (tokenizer, tokenizer_config) = load_tokenizer::<B>(&files.tokenizer, device)?;
        let (mut backbone, assumed) = load_backbone::<B>(&files.weights, device)?;
        for assumption in assumed {
            eprintln!("{}: assumed {assumption}", files.weights.display());
        }
        let theirs = (tokenizer_config.codebook_size, tokenizer_config.codebook_dim);
        let ours = (backbone.config.codebook_size, backbone.config.codebook_dim);
        ensure!(
            theirs == ours,
            "{}: was trained on {} codes of {} channels, {} has {} of {}",
            files.weights.display(),
            ours.0,
            ours.1,
            files.tokenizer.display(),
            theirs.0,
            theirs.1,
        );
        backbone.model = precision.view(&backbone.model);
        Ok(Self { tokenizer, tokenizer_config, backbone })
    }

    /// Pixels per token of the last scale.
    pub(crate) fn downsampling(&self) -> usize {
        self.tokenizer_config.downsampling()
    }

    /// The scales of `--scales` or of the weights, stretched to `--size`.
    pub(crate) fn scales(&self, settings: &Settings) -> Result<ScaleSchedule> {
        let scales = settings.scales.as_ref().unwrap_or(&self.backbone.scales);
        match settings.size {
            Some(size) => self.stretched(scales, size).context("--size"),
            None => self.checked(scales.clone()).context("--scales"),
        }
    }

    /// Scales for an image of a size in pixels.
    pub(crate) fn stretched(
        &self,
        scales: &ScaleSchedule,
        pixels: ScaleSize,
    ) -> Result<ScaleSchedule> {
        let ScaleSize { height, width } = pixels;
        let n = self.downsampling();
        ensure!(
            height.is_multiple_of(n) && width.is_multiple_of(n),
            "{height}x{width} px: both must be multiples of {n}, the pixels of a token"
        );
        let last = ScaleSize { height: height / n, width: width / n };
        self.checked(scales.with_last(last)?)
    }

    fn checked(&self, scales: ScaleSchedule) -> Result<ScaleSchedule> {
        let fits = self.backbone.config.check_scales(&scales);
        fits.map_err(|error| anyhow!(error.problem))?;
        let tokens = scales.n_tokens();
        ensure!(tokens <= MOST_TOKENS, "{tokens} tokens an image, at most {MOST_TOKENS}");
        Ok(scales)
    }

    /// The label of a class by name or index.
    pub(crate) fn label(&self, query: &str) -> Result<usize> {
        find_class(&self.backbone.classes, query).context("--class")
    }

    /// The label of no class at all.
    pub(crate) fn null_label(&self) -> usize {
        self.backbone.config.classes
    }
}

/// The folder that was named, which may hold nothing, or one of the default name that is free.
pub(crate) fn out_folder(named: Option<PathBuf>, default: &str) -> Result<PathBuf> {
    let Some(out) = named else { return Ok(first_free(Path::new(default))) };
    ensure!(!out.is_file(), "--out {}: is a file", out.display());
    let is_used = out.read_dir().is_ok_and(|mut entries| entries.next().is_some());
    ensure!(!is_used, "--out {}: already holds files", out.display());
    Ok(out)
}

pub(crate) fn make_out(out: &Path) -> Result<()> {
    fs::create_dir_all(out).with_context(|| format!("--out {}", out.display()))
}

pub(crate) fn save(image: &RgbImage, path: &Path) -> Result<()> {
    fs::write(path, to_png(image)).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        sampler: SamplerArgs,
    }

    #[test]
    fn what_is_said_replaces_what_the_recipe_says() {
        use clap::Parser;
        let recipe = Sampler {
            guidance: Guidance::Constant { scale: 3.0 },
            choice: Choice::Sample { top_k: 0, top_p: 0.7 },
        };
        let settings = |line: &str, of_run| {
            let line = Line::parse_from(format!("sar {line}").split_whitespace());
            line.sampler.settings(of_run).map(|settings| settings.sampler)
        };
        assert_eq!(settings("", Some(recipe)).unwrap(), recipe);
        let published = Sampler {
            guidance: Guidance::flexvar(2.5),
            choice: Choice::Sample { top_k: 900, top_p: 0.95 },
        };
        assert_eq!(settings("", None).unwrap(), published);
        assert_eq!(
            settings("--guidance 1.5 --top-k 7 --more-smooth", Some(recipe)).unwrap(),
            Sampler {
                guidance: Guidance::flexvar(1.5),
                choice: Choice::MoreSmooth { top_k: 7, top_p: 0.7 },
            }
        );
        let argmax = Sampler { choice: Choice::Argmax, ..recipe };
        assert_eq!(settings("--guidance 1", Some(argmax)).unwrap().choice, Choice::Argmax);
        let drawn = settings("--top-p 0.5", Some(argmax)).unwrap().choice;
        assert_eq!(drawn, Choice::Sample { top_k: 0, top_p: 0.5 });
    }

    #[test]
    fn sizes_are_height_and_width() {
        assert_eq!(pixels("256x384").unwrap(), ScaleSize { height: 256, width: 384 });
        for bad in ["256", "256x", "x3", "0x5", "axb", "256x384x3", "99999x8"] {
            let error = pixels(bad).unwrap_err().to_string();
            assert!(error.contains(bad) && error.contains("256x384"), "{error}");
        }
    }
}
