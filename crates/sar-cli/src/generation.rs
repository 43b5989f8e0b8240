//! What sampling and editing share: which weights, how tokens are drawn, and where images go.

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use burn::tensor::backend::Backend;
use sar_core::ScaleSchedule;
use sar_model::Precision;
use sar_pipeline::{
    Known, MadeWith, Pipeline, PipelineError, RgbImage, Wishes, files_of_run, size_in_pixels,
    to_png,
};
use sar_rollout::Sampler;
use sar_weights::{checksum, write_bytes};

use crate::device::arithmetic;
use crate::first_free;
use crate::hub::WeightsPath;
use crate::weights_source::WeightsSource;

/// Which weights.
#[derive(clap::Args)]
pub(crate) struct WeightsArgs {
    /// A run directory: its tokenizer and its refined backbone, else its pre-trained one [default: the
    /// small emoji weights that the program carries]
    #[arg(long, value_name = "DIR")]
    run: Option<PathBuf>,
    /// Tokenizer weights, instead of the run's: a file, or with the feature `hub` hf:OWNER/REPO/FILE.
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<WeightsPath>,
    /// Backbone weights, instead of the run's, named as those of the tokenizer.
    #[arg(long, value_name = "FILE")]
    backbone: Option<WeightsPath>,
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
    #[arg(long, default_value_t = 0, allow_negative_numbers = true, value_parser = whole::<u64>)]
    pub(crate) seed: u64,
    /// Scale of classifier-free guidance, by the rule of the weights [default: as the weights were
    /// sampled in their run, else as published]
    #[arg(long, allow_negative_numbers = true)]
    guidance: Option<f64>,
    /// Keeps the most probable codes of each token; 0 for all [default: as guidance]
    #[arg(long, allow_negative_numbers = true, value_parser = whole::<usize>)]
    top_k: Option<usize>,
    /// Keeps the codes that make up this probability; 0 for all [default: as guidance]
    #[arg(long, allow_negative_numbers = true)]
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
    #[arg(long, default_value_t = 16, allow_negative_numbers = true, value_parser = whole::<usize>)]
    pub(crate) batch: usize,
}

/// Reads a whole number; the line says which there are.
pub(crate) fn whole<T: TryFrom<u64>>(text: &str) -> Result<T, String> {
    let number = text.parse::<u64>().ok().and_then(|number| T::try_from(number).ok());
    number.ok_or_else(|| format!("must be a whole number from 0 to {}", u64::MAX))
}

/// Weights that are looked for and found.
pub(crate) struct Files {
    tokenizer: WeightsSource,
    backbone: WeightsSource,
    known: Known,
    pub(crate) precision: Precision,
}

/// How tokens are drawn, checked.
pub(crate) struct Settings {
    pub(crate) seed: u64,
    pub(crate) batch: usize,
    wishes: Wishes,
}

impl WeightsArgs {
    /// Those that come with the project.
    pub(crate) fn in_the_box() -> Self {
        let (run, tokenizer, backbone, root) = (None, None, None, None);
        Self { run, tokenizer, backbone, root, precision: Precision::F32 }
    }

    /// The run directory that was named.
    pub(crate) fn run_dir(&self) -> Option<&Path> {
        self.run.as_deref()
    }

    /// The options that name the same weights, for a command that is shown.
    pub(crate) fn command_line(&self) -> String {
        let Self { run, tokenizer, backbone, root, precision } = self;
        let mut text = String::new();
        let run = run.as_ref().map(|run| run.display().to_string());
        let [tokenizer, backbone] =
            [tokenizer, backbone].map(|path| path.as_ref().map(WeightsPath::to_string));
        for (name, path) in [("run", run), ("tokenizer", tokenizer), ("backbone", backbone)] {
            if let Some(path) = path {
                text += &format!(" --{name} {}", shell_quote(&path));
            }
        }
        if let Some(root) = root {
            text += &format!(" --root {}", shell_quote(root));
        }
        if *precision != Precision::F32 {
            text += &format!(" --precision {precision}");
        }
        text
    }

    pub(crate) fn files(self) -> Result<Files> {
        let Self { run, tokenizer, backbone, root, precision } = self;
        ensure!(
            run.is_some() || tokenizer.is_some() == backbone.is_some(),
            "--tokenizer and --backbone: both are needed, or a --run that has the other"
        );
        let known = Known { root, ..Known::default() };
        let file = |path: Option<WeightsPath>| path.map(|path| path.file()).transpose();
        let (tokenizer, backbone) = (file(tokenizer)?, file(backbone)?);
        let (tokenizer, backbone) = match (tokenizer, backbone, run) {
            (Some(tokenizer), Some(backbone), _) => (tokenizer.into(), backbone.into()),
            (tokenizer, backbone, Some(run)) => {
                let [own_tokenizer, own_backbone] = files_of_run(&run)?;
                (tokenizer.unwrap_or(own_tokenizer).into(), backbone.unwrap_or(own_backbone).into())
            }
            _ => (WeightsSource::TOKENIZER, WeightsSource::BACKBONE),
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

    /// The weights, not yet in another precision, and what computes with them.
    pub(crate) fn made_with<B: Backend>(
        &self,
        pipeline: &Pipeline<B>,
        device: &B::Device,
    ) -> MadeWith {
        let (tokenizer, backbone) = (pipeline.tokenizer(), pipeline.backbone());
        MadeWith {
            precision: self.precision,
            device: arithmetic::<B>(device),
            tokenizer: checksum(&tokenizer.model, tokenizer.config.layout()),
            backbone: checksum(&backbone.model, &sar_model::LAYOUT),
        }
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
        let scales = scales
            .as_deref()
            .map(|text| text.parse::<ScaleSchedule>().with_context(|| format!("--scales {text}")));
        let size = size.as_deref().map(size_in_pixels).transpose();
        let wishes = Wishes {
            guidance: *guidance,
            top_k: *top_k,
            top_p: *top_p,
            more_smooth: *more_smooth,
            scales: scales.transpose()?,
            size: size.map_err(of_option)?,
        };
        wishes.check().map_err(of_option)?;
        Ok(Settings { seed: *seed, batch: *batch, wishes })
    }
}

/// A text as one word of a shell's command: in quotes, but for those that need none.
pub(crate) fn shell_quote(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,=+@".contains(c);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// A setting is the option of its name.
fn of_option(error: PipelineError) -> anyhow::Error {
    anyhow!("--{error}")
}

impl Settings {
    /// The sampler of the weights, but for what the command line says.
    pub(crate) fn sampler(&self, base: Sampler) -> Sampler {
        self.wishes.sampler(base)
    }

    /// What the command line says of the sampler.
    pub(crate) fn wishes(&self) -> &Wishes {
        &self.wishes
    }

    /// The scales of `--scales` or of the weights, stretched to `--size`.
    pub(crate) fn scales<B: Backend>(&self, pipeline: &Pipeline<B>) -> Result<ScaleSchedule> {
        let scales = self.wishes.scales(pipeline);
        scales.context(if self.has_size() { "--size" } else { "--scales" })
    }

    /// Whether there is a `--size`.
    pub(crate) fn has_size(&self) -> bool {
        self.wishes.size.is_some()
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

/// Checks that a file can be written when its time comes, as a new one if it has to be.
pub(crate) fn check_file(what: &str, path: &Path, is_new: bool) -> Result<()> {
    let (shown, folder) = (path.display(), folder_of(path));
    ensure!(!path.is_dir(), "{what} {shown}: is a folder");
    ensure!(!(is_new && path.exists()), "{what} {shown}: exists already; choose another name");
    ensure!(folder.is_dir(), "{what} {shown}: there is no folder {}", folder.display());
    Ok(())
}

pub(crate) fn make_out(out: &Path) -> Result<()> {
    fs::create_dir_all(out).with_context(|| format!("--out {}", out.display()))
}

pub(crate) fn save(image: &RgbImage, path: &Path) -> Result<()> {
    Ok(write_bytes(path, &to_png(image))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_for_the_shell_stays_one() {
        assert_eq!(shell_quote("runs/emoji-quick"), "runs/emoji-quick");
        assert_eq!(shell_quote("my run"), "'my run'");
        assert_eq!(shell_quote("it's; rm"), r"'it'\''s; rm'");
        assert_eq!(shell_quote("$(x)"), "'$(x)'");
        assert_eq!(shell_quote(""), "''");
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
