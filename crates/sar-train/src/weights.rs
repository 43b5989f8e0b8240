//! The weights of a run as files that describe themselves.
//!
//! Tensors carry the names and layout of the released checkpoints; the file's metadata says the
//! kind and the configuration, so that a file is all that sampling needs.

use std::path::Path;

use burn::module::Module;
use burn::tensor::backend::Backend;
use sar_core::ScaleSchedule;
use sar_model::{Backbone, BackboneConfig, PositionsConfig};
use sar_tokenizer::{Family, Tokenizer, TokenizerConfig};
use sar_weights::{Layout, NamedTensors, WeightsFile, bind, collect, recognise};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::TrainError;
use crate::released::{Description, Known, describe as describe_released};

pub(crate) const KIND: &str = "kind";
pub(crate) const CONFIG: &str = "config";
pub(crate) const CLASSES: &str = "classes";
pub(crate) const SCALES: &str = "scales";

/// FlexVAR's and VAR's, as [`sar_weights::Released::kind`] has them.
const TOKENIZERS: [&str; 2] = ["flexvar-tokenizer", "var-tokenizer"];
const BACKBONES: [&str; 2] = ["flexvar-backbone", "var-backbone"];

/// Writes a tokenizer.
///
/// # Errors
/// If the file cannot be written.
pub fn save_tokenizer<B: Backend>(
    path: &Path,
    tokenizer: &Tokenizer<B>,
    config: &TokenizerConfig,
) -> Result<(), TrainError> {
    let mut tensors = collect(tokenizer, config.layout());
    let kind = match config.family {
        Family::Flexvar => TOKENIZERS[0],
        Family::Var { .. } => TOKENIZERS[1],
    };
    tensors.metadata_mut().insert(KIND.into(), kind.into());
    describe(&mut tensors, CONFIG, config);
    Ok(tensors.write_safetensors(path)?)
}

/// Reads a tokenizer of a run or a released one.
///
/// # Errors
/// If the file is no tokenizer, or is damaged.
pub fn load_tokenizer<B: Backend>(
    path: &Path,
    device: &B::Device,
) -> Result<(Tokenizer<B>, TokenizerConfig), TrainError> {
    // The tensors of a tokenizer show all of it.
    let (tensors, _) = read(path, TOKENIZERS)?;
    let config: TokenizerConfig = json(path, &tensors, CONFIG)?;
    let tokenizer = Tokenizer::new(&config, device)?;
    Ok((bind(tokenizer, tensors, config.layout())?, config))
}

/// A backbone with what belongs to it.
#[derive(Clone, Debug)]
pub struct TrainedBackbone<B: Backend> {
    /// The weights.
    pub model: Backbone<B>,
    /// Their shape.
    pub config: BackboneConfig,
    /// Names of the classes.
    pub classes: Vec<String>,
    /// The scales that it was trained and is sampled with.
    pub scales: ScaleSchedule,
}

/// Writes a backbone.
///
/// # Errors
/// If the file cannot be written.
pub fn save_backbone<B: Backend>(
    path: &Path,
    backbone: &TrainedBackbone<B>,
) -> Result<(), TrainError> {
    let TrainedBackbone { model, config, classes, scales } = backbone;
    let mut tensors = collect(model, &sar_model::LAYOUT);
    let kind = match config.positions {
        PositionsConfig::Grid { .. } => BACKBONES[0],
        PositionsConfig::PerToken { .. } => BACKBONES[1],
    };
    tensors.metadata_mut().insert(KIND.into(), kind.into());
    describe(&mut tensors, CONFIG, config);
    describe(&mut tensors, CLASSES, classes);
    describe(&mut tensors, SCALES, scales);
    Ok(tensors.write_safetensors(path)?)
}

/// Reads a backbone of a run or a released one. What a released file does not show is taken as
/// published, and said in words beside it; of a run's own file there is nothing to say.
///
/// # Errors
/// If the file is no backbone, or is damaged.
pub fn load_backbone<B: Backend>(
    path: &Path,
    device: &B::Device,
) -> Result<(TrainedBackbone<B>, Vec<String>), TrainError> {
    let (tensors, assumed) = read(path, BACKBONES)?;
    let config: BackboneConfig = json(path, &tensors, CONFIG)?;
    let classes = json(path, &tensors, CLASSES)?;
    let scales = json(path, &tensors, SCALES)?;
    let model = bind(Backbone::new(&config, device)?, tensors, &sar_model::LAYOUT)?;
    Ok((TrainedBackbone { model, config, classes, scales }, assumed))
}

/// Fills a module from a file in the released names and layout, `.pth` or safetensors, whatever its
/// metadata says.
///
/// # Errors
/// If the file cannot be read, or holds other parameters than the module.
pub(crate) fn read_released<B: Backend, M: Module<B>>(
    path: &Path,
    module: M,
    layout: &Layout,
) -> Result<M, TrainError> {
    let tensors = NamedTensors::read(path)?;
    Ok(bind(module, tensors, layout)?)
}

/// CRC-32 of a module's parameters with their names, in hexadecimal.
pub(crate) fn checksum<B: Backend, M: Module<B>>(module: &M, layout: &Layout) -> String {
    let mut hasher = crc32fast::Hasher::new();
    for (name, data) in collect(module, layout) {
        hasher.update(name.as_bytes());
        hasher.update(data.as_bytes());
    }
    format!("{:08x}", hasher.finalize())
}

/// Reads a file that describes itself, or a released one, which its tensors describe.
fn read(path: &Path, kinds: [&str; 2]) -> Result<(NamedTensors, Vec<String>), TrainError> {
    let mut file = WeightsFile::open(path)?;
    let Description { metadata, assumed } = if file.metadata().contains_key(KIND) {
        Description { metadata: file.metadata().clone(), assumed: Vec::new() }
    } else {
        let found = recognise(path, file.tensors())?;
        describe_released(&mut file, &found, Known::default())?
    };
    let found = metadata.get(KIND).map_or("", String::as_str);
    if !kinds.contains(&found) {
        let expected = kinds.join(" or ");
        return Err(TrainError::Kind { path: path.into(), expected, found: found.into() });
    }
    let mut tensors = file.read_all()?;
    *tensors.metadata_mut() = metadata;
    Ok((tensors, assumed))
}

fn describe(tensors: &mut NamedTensors, field: &'static str, value: &impl Serialize) {
    let text = serde_json::to_string(value).expect("plain values");
    tensors.metadata_mut().insert(field.into(), text);
}

fn json<T: DeserializeOwned>(
    path: &Path,
    tensors: &NamedTensors,
    field: &'static str,
) -> Result<T, TrainError> {
    let text = tensors.metadata().get(field).map_or("null", String::as_str);
    serde_json::from_str(text).map_err(|error| TrainError::Metadata {
        path: path.into(),
        field,
        problem: error.to_string(),
    })
}
