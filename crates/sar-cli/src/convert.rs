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
use burn::tensor::{DType, TensorData};
use clap::ValueEnum;
use sar_core::ScaleSchedule;
use sar_pipeline::{Known, Model, Recognized, Wanted};
use sar_weights::{
    FiniteCheck, Format, Target, TensorInfo, WeightsError, WeightsFile, cast_floats, write_weights,
};

use crate::Verdict;
use crate::device::HostBackend;
use crate::generation::check_file;
use crate::hub::WeightsPath;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// A .pth or safetensors file of FlexVAR's, SAR's, VAR's or of a run; with the feature `hub`
    /// also hf:OWNER/REPO/FILE.
    #[arg(value_name = "IN")]
    input: WeightsPath,
    /// A file that does not exist yet.
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// The format to write [default: by the ending of OUT]
    #[arg(long, value_name = "FORMAT")]
    to: Option<To>,
    /// Element type of the floats, rounded to the nearest: f16 and bf16 halve a file of f32, and are computed
    /// with as f32. f16 has 3 bits more and ends at 65504.
    #[arg(long, value_name = "TYPE", default_value = "keep")]
    dtype: Floats,
    /// Which of several models in the file, as in ema or trainer.var_wo_ddp [default: the one that the
    /// released evaluation takes]
    #[arg(long, value_name = "NAME")]
    root: Option<String>,
    /// Nests the dictionary of a .pth, as in model or trainer.var_wo_ddp [default: not nested]
    #[arg(long, value_name = "NAME")]
    nest: Option<String>,
    /// Attention heads of a backbone without q/k normalization [default: the file's, else width / 64]
    #[arg(long, value_name = "N")]
    heads: Option<usize>,
    /// Names of the classes, one a line [default: the file's, else numbers]
    #[arg(long, value_name = "FILE")]
    classes: Option<PathBuf>,
    /// Scales that a backbone is sampled with, as in 1_2_3_4 [default: the file's, else the published]
    #[arg(long)]
    scales: Option<String>,
}

/// What editors of Windows put before a text.
const BYTE_ORDER_MARK: char = '\u{feff}';

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
    let Args { input, output, to, dtype, root, nest, heads, classes, scales } = args;
    // A conversion never costs a file.
    check_file("OUT", &output, true)?;
    let to = to.or_else(|| by_ending(&output)).with_context(|| {
        format!("{}: ends in neither .pth nor .safetensors; say --to", output.display())
    })?;
    let target = match (to, &nest) {
        (To::Pth, nest) => Target::Pth { root: nest.as_deref().unwrap_or_default() },
        (To::Safetensors, None) => Target::Safetensors,
        (To::Safetensors, Some(nest)) => bail!("--nest {nest}: only a .pth is nested"),
    };

    let input = input.file()?;
    let mut file = WeightsFile::open(&input)?;
    let known = known(root, heads, classes.as_deref(), scales.as_deref())?;
    let found = Recognized::of::<HostBackend>(&mut file, Wanted::Any, &known)?;
    if let Model::Tokenizer(_) = found.model {
        ensure!(known.heads.is_none(), "--heads: a tokenizer has none");
        ensure!(known.classes.is_none(), "--classes: a tokenizer has none");
    }
    // The number of scales that VAR's tokenizer counts its codes at; the published, if nobody says.
    let n_scales = known.scales.as_ref().map_or(10, ScaleSchedule::len);

    // What is written, and the names that it has in the file; buffers that the file lacks are made,
    // so that the released classes load a .pth strictly.
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    let mut tensors: Vec<TensorInfo> = Vec::new();
    for (name, info) in found.located.tensors() {
        names.insert(name.into(), info.name.clone());
        let dtype = dtype.dtype(info.dtype);
        tensors.push(TensorInfo { name: name.into(), dtype, shape: info.shape.clone() });
    }
    let mut buffers: BTreeMap<String, TensorData> = BTreeMap::new();
    if to == To::Pth {
        buffers.extend(found.model.buffers(n_scales));
        buffers.retain(|name, _| !names.contains_key(name));
        tensors.extend(buffers.iter().map(|(name, data)| TensorInfo {
            name: name.clone(),
            dtype: data.dtype,
            shape: data.shape.to_vec(),
        }));
    }
    if file.format() == Format::Safetensors {
        // The checksum of a .pth is compared tensor by tensor.
        file.verify()?;
    }
    let layout = found.layout();
    write_weights(&output, target, &tensors, &found.model.metadata(), |name| {
        if let Some(data) = buffers.get(name) {
            return Ok(Cow::Borrowed(data));
        }
        let name_in_file = &names[name];
        let data = file.read(name_in_file)?;
        let dtype = dtype.dtype(data.dtype);
        if !data.dtype.is_float() {
            return Ok(Cow::Owned(data));
        }
        if !layout.is_ignored(name) {
            let mut check = FiniteCheck::default();
            check.add(name_in_file, &data);
            check.finish(Some(&input))?;
        }
        let data = cast_floats(data, dtype).map_err(|reason| WeightsError::Cast {
            path: input.clone(),
            name: name_in_file.clone(),
            reason,
        })?;
        Ok::<_, WeightsError>(Cow::Owned(data))
    })?;

    let kind = found.model.kind();
    let preset = found.model.published_name().map_or(String::new(), |name| format!(" ({name})"));
    eprintln!("wrote {}: {kind}{preset}, {} tensors", output.display(), tensors.len());
    let left_out = file.tensors().len() - names.len();
    if left_out > 0 {
        eprintln!("left out: {left_out} tensors that are not of this model");
    }
    if !buffers.is_empty() {
        let made: Vec<&str> = buffers.keys().map(String::as_str).collect();
        eprintln!("made, as the released classes have them: {}", listed(&made));
    }
    for note in found.notes() {
        eprintln!("{note}");
    }
    Ok(Verdict::Good)
}

/// The first of some names.
fn listed(names: &[&str]) -> String {
    const SHOWN: usize = 4;
    let more = names.len().saturating_sub(SHOWN);
    let shown = names[..names.len() - more].join(", ");
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}

fn by_ending(path: &Path) -> Option<To> {
    match path.extension()?.to_str()? {
        "pth" | "pt" => Some(To::Pth),
        "safetensors" => Some(To::Safetensors),
        _ => None,
    }
}

/// What the command line says of the model.
fn known(
    root: Option<String>,
    heads: Option<usize>,
    classes: Option<&Path>,
    scales: Option<&str>,
) -> Result<Known> {
    let classes = classes.map(|path| -> Result<Vec<String>> {
        let from = || format!("--classes {}", path.display());
        let text = fs::read_to_string(path).with_context(from)?;
        let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&text);
        let names: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
        ensure!(names.iter().all(|name| !name.is_empty()), "{}: a line without a name", from());
        Ok(names)
    });
    let scales = scales
        .map(|text| text.parse::<ScaleSchedule>().with_context(|| format!("--scales {text}")));
    let (classes, scales) = (classes.transpose()?, scales.transpose()?);
    Ok(Known { root, heads, classes, scales, ..Known::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_classes_are_the_lines_of_a_file_without_what_editors_add() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("classes.txt");
        for text in ["cat\nsea lion\n", "\u{feff}cat\r\nsea lion\r\n"] {
            fs::write(&path, text).unwrap();
            let known = known(None, None, Some(&path), None).unwrap();
            assert_eq!(known.classes.unwrap(), ["cat", "sea lion"]);
        }
        fs::write(&path, "\u{feff}\ncat\n").unwrap();
        let Err(error) = known(None, None, Some(&path), None) else { panic!("a class of no name") };
        assert!(error.to_string().ends_with("a line without a name"), "{error}");
    }
}
