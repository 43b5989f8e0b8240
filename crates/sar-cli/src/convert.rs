//! `sar convert`: released checkpoints, safetensors files and this project's own files of weights,
//! one into the other, tensor by tensor.
//!
//! Names and layout are the released ones in all of them. A safetensors file that is written here
//! says in its metadata what `sar sample` needs, and is an own file of weights thereby; a `.pth`
//! file carries the same metadata in an entry that torch does not look at.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::DType;
use clap::ValueEnum;
use sar_core::ScaleSchedule;
use sar_train::released::{BackboneFacts, backbone_metadata, tokenizer_metadata};
use sar_weights::{
    BackboneShape, Format, PositionsShape, Recognised, Released, Target, TensorInfo, WeightsError,
    WeightsFile, cast_floats, recognise, write_weights,
};

use crate::Verdict;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// A .pth or safetensors file of FlexVAR's, SAR's, VAR's or of a run.
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// A file that does not exist yet.
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// The format to write [default: by the ending of OUT]
    #[arg(long, value_name = "FORMAT")]
    to: Option<To>,
    /// Element type of the floats.
    #[arg(long, value_name = "TYPE", default_value = "keep")]
    dtype: Floats,
    /// Nests the dictionary of a .pth, as in model or trainer.var_wo_ddp [default: not nested]
    #[arg(long, value_name = "NAME")]
    root: Option<String>,
    /// Attention heads of a backbone without q/k normalisation [default: the file's, else width / 64]
    #[arg(long, value_name = "N")]
    heads: Option<usize>,
    /// Names of the classes, one a line [default: the file's, else numbers]
    #[arg(long, value_name = "FILE")]
    classes: Option<PathBuf>,
    /// Scales that a backbone is sampled with, as in 1_2_3_4 [default: the file's, else the published]
    #[arg(long)]
    scales: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum To {
    Pth,
    Safetensors,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Floats {
    F32,
    F16,
    Bf16,
    Keep,
}

impl Floats {
    fn dtype(self, of_file: DType) -> DType {
        match self {
            _ if !of_file.is_float() => of_file,
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
            Self::Keep => of_file,
        }
    }
}

pub(crate) fn run(args: Args) -> Result<Verdict> {
    let Args { input, output, to, dtype, root, heads, classes, scales } = args;
    // A conversion never costs a file.
    ensure!(!output.exists(), "{}: exists already; choose another name", output.display());
    let to = to.or_else(|| by_ending(&output)).with_context(|| {
        format!("{}: ends in neither .pth nor .safetensors; say --to", output.display())
    })?;
    let target = match (to, &root) {
        (To::Pth, root) => Target::Pth { root: root.as_deref().unwrap_or_default() },
        (To::Safetensors, None) => Target::Safetensors,
        (To::Safetensors, Some(root)) => bail!("--root {root}: only a .pth is nested"),
    };

    let mut file = WeightsFile::open(&input)?;
    let found = recognise(&input, file.tensors())?;
    let asked = Asked { heads, classes, scales };
    let (metadata, assumed) = asked.metadata(&mut file, &found)?;

    // Names in the file by names to write, and what is written.
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    let mut tensors: Vec<TensorInfo> = Vec::new();
    for info in file.tensors() {
        let Some(name) = found.strip(&info.name) else { continue };
        names.insert(name.into(), info.name.clone());
        let dtype = dtype.dtype(info.dtype);
        tensors.push(TensorInfo { name: name.into(), dtype, shape: info.shape.clone() });
    }
    if file.format() == Format::Safetensors {
        // The checksum of a .pth is compared tensor by tensor.
        file.verify()?;
    }
    write_weights(&output, target, &tensors, &metadata, |name| {
        let name = &names[name];
        let data = file.read(name)?;
        let dtype = dtype.dtype(data.dtype);
        if !data.dtype.is_float() {
            return Ok(Cow::Owned(data));
        }
        let data = cast_floats(data, dtype).map_err(|reason| WeightsError::Cast {
            path: input.clone(),
            name: name.clone(),
            reason,
        })?;
        Ok(Cow::Owned(data))
    })?;

    let kind = found.model.kind();
    let preset = found.model.preset_name().map_or(String::new(), |name| format!(" ({name})"));
    eprintln!("wrote {}: {kind}{preset}, {} tensors", output.display(), tensors.len());
    let left_out = file.tensors().len() - tensors.len();
    if left_out > 0 {
        eprintln!("left out: {left_out} tensors that are not under {}", found.root);
    }
    for assumption in assumed {
        eprintln!("assumed: {assumption}");
    }
    Ok(Verdict::Good)
}

fn by_ending(path: &Path) -> Option<To> {
    match path.extension()?.to_str()? {
        "pth" | "pt" => Some(To::Pth),
        "safetensors" => Some(To::Safetensors),
        _ => None,
    }
}

/// What the command line says of a backbone.
struct Asked {
    heads: Option<usize>,
    classes: Option<PathBuf>,
    scales: Option<String>,
}

impl Asked {
    /// The metadata to write, and what of it neither the file nor the command line says.
    fn metadata(
        self,
        file: &mut WeightsFile,
        found: &Recognised,
    ) -> Result<(BTreeMap<String, String>, Vec<String>)> {
        let mut assumed = Vec::new();
        let described = match &found.model {
            Released::Tokenizer(shape) => {
                ensure!(self.heads.is_none(), "--heads: {} is a tokenizer", file.path().display());
                ensure!(self.classes.is_none(), "--classes: a tokenizer has none");
                ensure!(self.scales.is_none(), "--scales: a tokenizer has none");
                tokenizer_metadata(shape)
            }
            Released::Backbone(shape) => {
                let facts = BackboneFacts {
                    heads: self.heads(file, shape, &mut assumed)?,
                    classes: self.classes(file, shape, &mut assumed)?,
                    scales: self.scales(file, found, shape, &mut assumed)?,
                };
                backbone_metadata(shape, &facts)
            }
        };
        let mut metadata = file.metadata().clone();
        let is_own = metadata.get("kind").is_some_and(|kind| *kind == found.model.kind());
        for (field, value) in described {
            // An own file is not described anew in other words, unless it is to say something else.
            let same = |theirs: &String| same_json(theirs, &value);
            if !(is_own && metadata.get(&field).is_some_and(same)) {
                metadata.insert(field, value);
            }
        }
        Ok((metadata, assumed))
    }

    fn heads(
        &self,
        file: &WeightsFile,
        shape: &BackboneShape,
        assumed: &mut Vec<String>,
    ) -> Result<usize> {
        let path = file.path().display();
        let seen = shape.heads.or_else(|| {
            let config: serde_json::Value = json(file, "config")?;
            config["heads"].as_u64().and_then(|heads| heads.try_into().ok())
        });
        if let (Some(asked), Some(seen)) = (self.heads, shape.heads) {
            ensure!(asked == seen, "--heads {asked}: {path} has {seen}");
        }
        let heads = match self.heads.or(seen) {
            Some(heads) => heads,
            None => {
                let heads = shape.published_heads().with_context(|| {
                    format!("{path}: does not show its number of heads; say it with --heads")
                })?;
                assumed.push(format!("{heads} heads, as published for this width (--heads)"));
                heads
            }
        };
        ensure!(
            heads > 0 && shape.width.is_multiple_of(heads),
            "--heads {heads}: does not divide the width of {path}, {}",
            shape.width
        );
        Ok(heads)
    }

    fn classes(
        &self,
        file: &WeightsFile,
        shape: &BackboneShape,
        assumed: &mut Vec<String>,
    ) -> Result<Vec<String>> {
        let n = shape.classes;
        let (names, from): (Vec<String>, String) = match &self.classes {
            Some(path) => {
                let text = fs::read_to_string(path)
                    .with_context(|| format!("--classes {}", path.display()))?;
                let names = text.lines().map(|line| line.trim().to_owned()).collect();
                (names, format!("--classes {}", path.display()))
            }
            None => match json(file, "classes") {
                Some(names) => (names, file.path().display().to_string()),
                None => {
                    assumed.push("class names are numbers (--classes)".into());
                    return Ok((0..n).map(|class| class.to_string()).collect());
                }
            },
        };
        ensure!(names.len() == n, "{from}: {} names for the {n} classes", names.len());
        ensure!(names.iter().all(|name| !name.is_empty()), "{from}: a class without a name");
        Ok(names)
    }

    fn scales(
        &self,
        file: &mut WeightsFile,
        found: &Recognised,
        shape: &BackboneShape,
        assumed: &mut Vec<String>,
    ) -> Result<ScaleSchedule> {
        let path = file.path().display().to_string();
        let (scales, from): (ScaleSchedule, String) = if let Some(text) = &self.scales {
            let from = format!("--scales {text}");
            (text.parse().context(from.clone())?, from)
        } else if let Some(scales) = json(file, "scales") {
            (scales, path)
        } else if let Some(scales) = scales_of_levels(file, found)? {
            (scales, path)
        } else {
            let scales = published_scales(shape).with_context(|| {
                format!("{path}: does not show its scales; say them with --scales")
            })?;
            assumed.push(format!("scales {scales}, as published (--scales)"));
            (scales, path)
        };
        if let PositionsShape::PerToken { tokens, scales: levels } = shape.positions {
            ensure!(
                scales.n_tokens() == tokens && scales.len() == levels,
                "{from}: {} tokens in {} scales, the positions are for {tokens} in {levels}",
                scales.n_tokens(),
                scales.len()
            );
        }
        Ok(scales)
    }
}

/// The published scales that a backbone of this shape was trained with.
fn published_scales(shape: &BackboneShape) -> Option<ScaleSchedule> {
    let published = |name| ScaleSchedule::preset(name).expect("a known preset");
    match shape.positions {
        PositionsShape::Grid { .. } => Some(published("256px")),
        PositionsShape::PerToken { tokens, scales } => ScaleSchedule::PRESETS
            .map(|(name, _)| published(name))
            .into_iter()
            .find(|known| known.n_tokens() == tokens && known.len() == scales),
    }
}

/// The scales by VAR's buffer `lvl_1L`, which has the scale of every token.
fn scales_of_levels(file: &mut WeightsFile, found: &Recognised) -> Result<Option<ScaleSchedule>> {
    let PositionsShape::PerToken { tokens, scales: levels } = (match &found.model {
        Released::Backbone(shape) => shape.positions,
        Released::Tokenizer(_) => return Ok(None),
    }) else {
        return Ok(None);
    };
    let is_levels =
        |info: &&TensorInfo| found.strip(&info.name) == Some("lvl_1L") && info.dtype == DType::I64;
    let Some(name) = file.tensors().iter().find(is_levels).map(|info| info.name.clone()) else {
        return Ok(None);
    };
    let data = file.read(&name)?;
    let mut counts = vec![0usize; levels];
    for level in data.iter::<i64>() {
        match usize::try_from(level).ok().and_then(|level| counts.get_mut(level)) {
            Some(count) => *count += 1,
            None => return Ok(None),
        }
    }
    let sides: Vec<usize> = counts.iter().map(|count| count.isqrt()).collect();
    Ok(ScaleSchedule::squares(&sides).ok().filter(|scales| scales.n_tokens() == tokens))
}

fn json<T: serde::de::DeserializeOwned>(file: &WeightsFile, field: &str) -> Option<T> {
    serde_json::from_str(file.metadata().get(field)?).ok()
}

fn same_json(a: &str, b: &str) -> bool {
    let parse = |text: &str| serde_json::from_str::<serde_json::Value>(text).ok();
    a == b || parse(a).is_some_and(|a| Some(a) == parse(b))
}
