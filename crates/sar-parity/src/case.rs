//! A case folder: settings, weights, golden tensors.

use std::path::{Path, PathBuf};

use sar_core::{ScaleSchedule, ScheduleError};
use sar_model::BackboneConfig;
use sar_tokenizer::TokenizerConfig;
use sar_weights::{NamedTensors, WeightsError};
use serde::Deserialize;

/// A parity case in memory.
#[derive(Debug)]
pub struct Case {
    /// Its folder.
    pub dir: PathBuf,
    /// Shape of the tokenizer.
    pub tokenizer: TokenizerConfig,
    /// Shape of the backbone.
    pub backbone: BackboneConfig,
    /// The scales of the passes and of two of the sampling runs.
    pub scales: ScaleSchedule,
    /// The scales of `alt_steps`.
    pub alt_scales: ScaleSchedule,
    /// The scales of `zero_shot_24`.
    pub zero_shot_scales: ScaleSchedule,
    /// Weight of the commitment loss.
    pub commit_beta: f64,
    /// The optimizer step.
    pub adamw: Option<AdamWCase>,
    /// What the released code computed.
    pub golden: NamedTensors,
}

/// The optimizer step of a case.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdamWCase {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the mean.
    pub beta1: f64,
    /// Decay of the mean of squares.
    pub beta2: f64,
    /// Added to the root.
    pub eps: f64,
    /// Weight decay of the decayed group.
    pub weight_decay: f64,
    /// Global norm that gradients are clipped to.
    pub clip_norm: f64,
    /// The objective whose gradients are taken; only `last` is known.
    pub objective: String,
    /// Weight of the student term in it.
    pub sigma: f64,
    /// Names of the undecayed group.
    pub no_decay: Vec<String>,
}

/// Why a folder is no usable case; every message is one line.
#[derive(Debug, thiserror::Error)]
pub enum CaseError {
    /// `case.json` cannot be read.
    #[error("{}: cannot be read: {error} (a parity case is a folder with case.json, tokenizer.pth, backbone.pth, golden.safetensors)", path.display())]
    Unreadable {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// `case.json` is not of the form of a case.
    #[error("{}: {problem}", path.display())]
    Malformed {
        /// Its path.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A file of weights or golden tensors cannot be used.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A golden tensor that others are computed from is not there.
    #[error("{}: has no tensor '{name}'", path.display())]
    NoInput {
        /// The golden file.
        path: PathBuf,
        /// The missing input.
        name: &'static str,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(rename = "kind")]
    _kind: String,
    tokenizer: TokenizerFile,
    model: ModelFile,
    scales: Vec<usize>,
    #[serde(default)]
    alt_scales: Vec<usize>,
    #[serde(default)]
    zero_shot_scales: Vec<usize>,
    commit_beta: f64,
    #[serde(rename = "image_size")]
    _image_size: usize,
    adamw: Option<AdamWCase>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenizerFile {
    base_channels: usize,
    channel_multipliers: Vec<usize>,
    res_blocks: usize,
    z_channels: usize,
    codebook_size: usize,
    codebook_dim: usize,
    codebook_l2_norm: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelFile {
    depth: usize,
    width: usize,
    heads: usize,
    mlp_ratio: usize,
    classes: usize,
    shared_adaln: bool,
    qk_l2_norm: bool,
    norm_eps: f64,
    position_grid: usize,
}

impl Case {
    /// Loads settings and golden tensors of a folder; weights are loaded by [`check`](crate::check).
    ///
    /// # Errors
    /// If a file is missing or malformed, or the case is of a kind that is not known.
    pub fn load(dir: &Path) -> Result<Self, CaseError> {
        let path = dir.join("case.json");
        let text = std::fs::read_to_string(&path)
            .map_err(|error| CaseError::Unreadable { path: path.clone(), error })?;
        let malformed = |problem: String| CaseError::Malformed { path: path.clone(), problem };
        let kind = serde_json::from_str::<serde_json::Value>(&text)
            .map_err(|error| malformed(error.to_string()))?
            .get("kind")
            .and_then(|kind| kind.as_str().map(ToOwned::to_owned));
        if kind.as_deref() != Some("flexvar") {
            return Err(malformed(format!("kind: {kind:?} is not known, only \"flexvar\" is")));
        }
        let file: File =
            serde_json::from_str(&text).map_err(|error| malformed(error.to_string()))?;
        let File {
            _kind,
            tokenizer: t,
            model: m,
            scales,
            alt_scales,
            zero_shot_scales,
            commit_beta,
            _image_size,
            adamw,
        } = file;
        if !t.codebook_l2_norm {
            return Err(malformed(
                "tokenizer.codebook_l2_norm: a FlexVAR codebook is normalised".into(),
            ));
        }
        if m.norm_eps != 1e-6 {
            return Err(malformed(format!(
                "model.norm_eps: {} is not the released 1e-6",
                m.norm_eps
            )));
        }
        if let Some(adamw) = adamw.as_ref().filter(|adamw| adamw.objective != "last") {
            return Err(malformed(format!(
                "adamw.objective: {:?} is not known, only \"last\" is",
                adamw.objective
            )));
        }
        let schedule = |sides: &[usize]| {
            ScaleSchedule::squares(sides)
                .map_err(|error: ScheduleError| malformed(error.to_string()))
        };
        let (scales, alt, zero_shot) = (schedule(&scales)?, alt_scales, zero_shot_scales);
        let or_scales =
            |sides: &[usize]| if sides.is_empty() { Ok(scales.clone()) } else { schedule(sides) };
        Ok(Self {
            dir: dir.to_owned(),
            alt_scales: or_scales(&alt)?,
            zero_shot_scales: or_scales(&zero_shot)?,
            backbone: BackboneConfig {
                depth: m.depth,
                width: m.width,
                heads: m.heads,
                mlp_ratio: m.mlp_ratio,
                classes: m.classes,
                codebook_size: t.codebook_size,
                codebook_dim: t.codebook_dim,
                shared_adaln: m.shared_adaln,
                qk_l2_norm: m.qk_l2_norm,
                position_grid: m.position_grid,
            },
            tokenizer: TokenizerConfig {
                base_channels: t.base_channels,
                channel_multipliers: t.channel_multipliers,
                res_blocks: t.res_blocks,
                z_channels: t.z_channels,
                codebook_size: t.codebook_size,
                codebook_dim: t.codebook_dim,
            },
            scales,
            commit_beta,
            adamw,
            golden: NamedTensors::read(&dir.join("golden.safetensors"))?,
        })
    }
}
