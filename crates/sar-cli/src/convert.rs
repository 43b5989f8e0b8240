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
use sar_train::released::{Description, Known, describe};
use sar_weights::{
    Format, Released, Target, TensorInfo, WeightsError, WeightsFile, cast_floats, recognise,
    write_weights,
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
    let known = known(heads, classes.as_deref(), scales.as_deref(), &found.model)?;
    let Description { metadata, assumed } = describe(&mut file, &found, known)?;

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
fn known(
    heads: Option<usize>,
    classes: Option<&Path>,
    scales: Option<&str>,
    model: &Released,
) -> Result<Known> {
    if let Released::Tokenizer(_) = model {
        ensure!(heads.is_none(), "--heads: a tokenizer has none");
        ensure!(classes.is_none(), "--classes: a tokenizer has none");
        ensure!(scales.is_none(), "--scales: a tokenizer has none");
    }
    let classes = classes.map(|path| -> Result<Vec<String>> {
        let from = || format!("--classes {}", path.display());
        let text = fs::read_to_string(path).with_context(from)?;
        let names: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
        ensure!(names.iter().all(|name| !name.is_empty()), "{}: a line without a name", from());
        Ok(names)
    });
    let scales = scales
        .map(|text| text.parse::<ScaleSchedule>().with_context(|| format!("--scales {text}")));
    Ok(Known { heads, classes: classes.transpose()?, scales: scales.transpose()? })
}
