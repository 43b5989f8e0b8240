//! What sampling and editing share: which weights, how tokens are drawn, and where images go.

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::backend::Backend;
use sar_core::{ScaleSchedule, ScaleSize};
use sar_model::Precision;
use sar_pipeline::{Known, Pipeline, RgbImage, files_of_run, to_png};
use sar_rollout::{Choice, Sampler};
use sar_weights::write_bytes;

use crate::first_free;
use crate::origin::Origin;

/// Which weights.
#[derive(clap::Args)]
pub(crate) struct WeightsArgs {
    /// A run directory: its tokenizer and its refined backbone, else its pre-trained one [default: the
    /// small emoji weights that the program carries]
    #[arg(long, value_name = "DIR")]
    run: Option<PathBuf>,
    /// Tokenizer weights, instead of the run's.
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Backbone weights, instead of the run's.
    #[arg(long, value_name = "FILE")]
    backbone: Option<PathBuf>,
    /// Which of several models in the file of the backbone, as in ema or trainer.var_wo_ddp [default: the
    /// one that the released evaluation takes]
    #[arg(long, value_name = "NAME", requires = "backbone")]
    root: Option<String>,
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
    /// Scale of classifier-free guidance, by the rule of the weights [default: as the weights were
    /// sampled in their run, else as published]
    #[arg(long)]
    guidance: Option<f64>,
    /// Keeps the most probable codes of each token; 0 for all [default: as guidance]
    #[arg(long)]
    top_k: Option<usize>,
    /// Keeps the codes that make up this probability; 0 for all [default: as guidance]
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
    tokenizer: Origin,
    backbone: Origin,
    known: Known,
    pub(crate) precision: Precision,
}

/// How tokens are drawn, checked.
pub(crate) struct Settings {
    pub(crate) seed: u64,
    pub(crate) batch: usize,
    guidance: Option<f64>,
    top_k: Option<usize>,
    top_p: Option<f64>,
    more_smooth: bool,
    scales: Option<ScaleSchedule>,
    /// In pixels.
    pub(crate) size: Option<ScaleSize>,
}

impl WeightsArgs {
    /// The run directory that was named.
    pub(crate) fn run_dir(&self) -> Option<&Path> {
        self.run.as_deref()
    }

    pub(crate) fn files(self) -> Result<Files> {
        let Self { run, tokenizer, backbone, root, precision } = self;
        ensure!(
            run.is_some() || tokenizer.is_some() == backbone.is_some(),
            "--tokenizer and --backbone: both are needed, or a --run that has the other"
        );
        let known = Known { root, ..Known::default() };
        let (tokenizer, backbone) = match (tokenizer, backbone, run) {
            (Some(tokenizer), Some(backbone), _) => (tokenizer.into(), backbone.into()),
            (tokenizer, backbone, Some(run)) => {
                let [own_tokenizer, own_backbone] = files_of_run(&run)?;
                (tokenizer.unwrap_or(own_tokenizer).into(), backbone.unwrap_or(own_backbone).into())
            }
            _ => (Origin::TOKENIZER, Origin::BACKBONE),
        };
        Ok(Files { tokenizer, backbone, known, precision })
    }
}

impl Files {
    /// Loads the weights, and says what was assumed of them.
    pub(crate) fn load<B: Backend>(&self, device: &B::Device) -> Result<Pipeline<B>> {
        let Self { tokenizer, backbone, known, precision: _ } = self;
        let [tokenizer, backbone] = [tokenizer.open()?, backbone.open()?];
        let pipeline = Pipeline::load(tokenizer, backbone, known, device)?;
        for note in pipeline.notes() {
            eprintln!("{note}");
        }
        Ok(pipeline)
    }

    /// The weights with products in the precision that was asked for.
    pub(crate) fn in_precision<B: Backend>(&self, pipeline: Pipeline<B>) -> Result<Pipeline<B>> {
        pipeline.with_precision(self.precision).context("--precision")
    }
}

impl SamplerArgs {
    pub(crate) fn settings(&self) -> Result<Settings> {
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
        let scales = scales
            .as_deref()
            .map(|text| text.parse::<ScaleSchedule>().with_context(|| format!("--scales {text}")));
        Ok(Settings {
            seed: *seed,
            batch: *batch,
            guidance: *guidance,
            top_k: *top_k,
            top_p: *top_p,
            more_smooth: *more_smooth,
            scales: scales.transpose()?,
            size: size.as_deref().map(pixels).transpose()?,
        })
    }
}

impl Settings {
    /// The sampler of the weights, but for what the command line says.
    pub(crate) fn sampler(&self, base: Sampler) -> Sampler {
        let (k, p) = match base.choice {
            Choice::Argmax => (0, 0.0),
            Choice::Sample { top_k, top_p } | Choice::MoreSmooth { top_k, top_p } => (top_k, top_p),
        };
        let said = (self.top_k.unwrap_or(k), self.top_p.unwrap_or(p));
        let choice = match said {
            (top_k, top_p) if self.more_smooth => Choice::MoreSmooth { top_k, top_p },
            (top_k, top_p) if said != (k, p) => Choice::Sample { top_k, top_p },
            _ => base.choice,
        };
        let guidance = self.guidance.map_or(base.guidance, |scale| base.guidance.with_scale(scale));
        Sampler { guidance, choice }
    }

    /// The scales of `--scales` or of the weights, stretched to `--size`.
    pub(crate) fn scales<B: Backend>(&self, pipeline: &Pipeline<B>) -> Result<ScaleSchedule> {
        let scales = self.scales.as_ref().unwrap_or(&pipeline.backbone().scales);
        match self.size {
            Some(size) => pipeline.stretched(scales, size).context("--size"),
            None => {
                pipeline.check_scales(scales).context("--scales")?;
                Ok(scales.clone())
            }
        }
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

/// The folder that was named, which may hold nothing, or one of the default name that is free.
pub(crate) fn out_folder(named: Option<PathBuf>, default: &str) -> Result<PathBuf> {
    let Some(out) = named else { return Ok(first_free(Path::new(default), "")) };
    ensure!(!out.is_file(), "--out {}: is a file", out.display());
    ensure!(!is_used(&out), "--out {}: already holds files", out.display());
    Ok(out)
}

/// Whether a folder holds anything.
pub(crate) fn is_used(folder: &Path) -> bool {
    folder.read_dir().is_ok_and(|mut entries| entries.next().is_some())
}

/// A file beside a folder, as in `samples-grid.png`: the folder itself holds results only, as tools that
/// measure folders of images expect. One that is free.
pub(crate) fn beside(folder: &Path, what: &str) -> PathBuf {
    let path = named_after(folder, what);
    let ending = path.extension().expect("a name with an ending").to_string_lossy().into_owned();
    first_free(&path.with_extension(""), &format!(".{ending}"))
}

/// As [`beside`], whether it is there or not.
pub(crate) fn named_after(folder: &Path, what: &str) -> PathBuf {
    // `.` and `..` have a name all the same.
    let folder = match folder.file_name() {
        Some(_) => Cow::Borrowed(folder),
        None => folder.canonicalize().map_or(Cow::Borrowed(folder), Cow::Owned),
    };
    let mut name = folder.file_name().unwrap_or("out".as_ref()).to_owned();
    name.push(format!("-{what}"));
    folder.with_file_name(name)
}

/// The folder that a file is in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

pub(crate) fn make_out(out: &Path) -> Result<()> {
    fs::create_dir_all(out).with_context(|| format!("--out {}", out.display()))
}

pub(crate) fn save(image: &RgbImage, path: &Path) -> Result<()> {
    Ok(write_bytes(path, &to_png(image))?)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use sar_rollout::Guidance;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        sampler: SamplerArgs,
    }

    #[test]
    fn what_is_said_replaces_what_the_weights_say() {
        let base = Sampler {
            guidance: Guidance::Ramp { scale: 3.0 },
            choice: Choice::Sample { top_k: 0, top_p: 0.7 },
        };
        let sampler = |line: &str, base| {
            let line = Line::parse_from(format!("sar {line}").split_whitespace());
            line.sampler.settings().unwrap().sampler(base)
        };
        assert_eq!(sampler("", base), base);
        assert_eq!(
            sampler("--guidance 1.5 --top-k 7 --more-smooth", base),
            Sampler {
                guidance: Guidance::Ramp { scale: 1.5 },
                choice: Choice::MoreSmooth { top_k: 7, top_p: 0.7 },
            }
        );
        let flex = Sampler { guidance: Guidance::flexvar(2.5), ..base };
        assert_eq!(sampler("--guidance 4", flex).guidance, Guidance::flexvar(4.0));
        let argmax = Sampler { choice: Choice::Argmax, ..base };
        assert_eq!(sampler("--guidance 1", argmax).choice, Choice::Argmax);
        let drawn = sampler("--top-p 0.5", argmax).choice;
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

    #[test]
    fn what_is_beside_a_folder_overwrites_nothing() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("out");
        assert_eq!(beside(&folder, "grid.png"), root.path().join("out-grid.png"));
        fs::write(root.path().join("out-grid.png"), "").unwrap();
        assert_eq!(beside(&folder, "grid.png"), root.path().join("out-grid-2.png"));
    }
}
