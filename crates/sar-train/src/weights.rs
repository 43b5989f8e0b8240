//! The weights of a run as files that describe themselves.
//!
//! Tensors carry the names and layout of the released checkpoints; the file's metadata says the
//! kind and the configuration, so that a file is all that sampling needs.

use std::path::Path;

use burn::tensor::backend::Backend;
use sar_core::ScaleSchedule;
use sar_model::{Backbone, BackboneConfig};
use sar_tokenizer::{Tokenizer, TokenizerConfig};
use sar_weights::{NamedTensors, bind, collect};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::TrainError;

const KIND: &str = "kind";
const CONFIG: &str = "config";
const CLASSES: &str = "classes";
const SCALES: &str = "scales";

const TOKENIZER: &str = "flexvar-tokenizer";
const BACKBONE: &str = "flexvar-backbone";

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
    tensors.metadata_mut().insert(KIND.into(), TOKENIZER.into());
    describe(&mut tensors, CONFIG, config);
    Ok(tensors.write_safetensors(path)?)
}

/// Reads a tokenizer.
///
/// # Errors
/// If the file is no tokenizer, or is damaged.
pub fn load_tokenizer<B: Backend>(
    path: &Path,
    device: &B::Device,
) -> Result<(Tokenizer<B>, TokenizerConfig), TrainError> {
    let tensors = read(path, TOKENIZER)?;
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
    tensors.metadata_mut().insert(KIND.into(), BACKBONE.into());
    describe(&mut tensors, CONFIG, config);
    describe(&mut tensors, CLASSES, classes);
    describe(&mut tensors, SCALES, scales);
    Ok(tensors.write_safetensors(path)?)
}

/// Reads a backbone.
///
/// # Errors
/// If the file is no backbone, or is damaged.
pub fn load_backbone<B: Backend>(
    path: &Path,
    device: &B::Device,
) -> Result<TrainedBackbone<B>, TrainError> {
    let tensors = read(path, BACKBONE)?;
    let config: BackboneConfig = json(path, &tensors, CONFIG)?;
    let classes = json(path, &tensors, CLASSES)?;
    let scales = json(path, &tensors, SCALES)?;
    let model = bind(Backbone::new(&config, device)?, tensors, &sar_model::LAYOUT)?;
    Ok(TrainedBackbone { model, config, classes, scales })
}

fn read(path: &Path, kind: &str) -> Result<NamedTensors, TrainError> {
    let tensors = NamedTensors::read(path)?;
    match tensors.metadata().get(KIND).map(String::as_str) {
        Some(found) if found == kind => Ok(tensors),
        found => {
            let found = found.unwrap_or("a file without a kind");
            Err(TrainError::Kind { path: path.into(), expected: kind.into(), found: found.into() })
        }
    }
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
