//! A case folder: settings, weights, golden tensors.

use std::path::{Path, PathBuf};

use sar_core::{FirstScale, ScaleSchedule};
use sar_model::{BackboneConfig, BackboneShape, PositionsConfig, Visibility};
use sar_rollout::Guidance;
use sar_tokenizer::{CodebookGrowth, Family, Phi, TokenizerConfig};
use sar_weights::{NamedTensors, WeightsError};
use serde::Deserialize;

/// A parity case in memory.
#[derive(Debug)]
#[non_exhaustive]
pub struct Case {
    /// Its folder.
    pub dir: PathBuf,
    /// Shape of the tokenizer.
    pub tokenizer: TokenizerConfig,
    /// Shape of the backbone.
    pub backbone: BackboneConfig,
    /// The scales of the passes.
    pub scales: ScaleSchedule,
    /// The greedy sampling runs.
    pub sampling: Vec<SamplingCase>,
    /// Weight of the commitment loss.
    pub commit_beta: f64,
    /// The optimizer step.
    pub adamw: Option<AdamWCase>,
    /// What the released code computed.
    pub golden: NamedTensors,
}

/// A greedy sampling run of a case.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SamplingCase {
    /// Its part of the golden names.
    pub name: String,
    /// Its scales.
    pub scales: ScaleSchedule,
    /// Its guidance.
    pub guidance: Guidance,
}

/// The optimizer step of a case.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
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
#[non_exhaustive]
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
    kind: Kind,
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
    sample: Option<SampleFile>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Flexvar,
    Var,
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
    quant_conv_kernel: Option<usize>,
    phi_ratio: Option<f64>,
    phi_shared: Option<usize>,
}

#[derive(Deserialize)]
struct ModelFile {
    depth: usize,
    width: usize,
    heads: usize,
    mlp_ratio: usize,
    shared_adaln: bool,
    qk_l2_norm: bool,
    classes: usize,
    norm_eps: f64,
    position_grid: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SampleFile {
    cfg: f64,
    image_range: [f64; 2],
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
        let file: File =
            serde_json::from_str(&text).map_err(|error| malformed(error.to_string()))?;
        let (tokenizer, backbone, scales, sampling) = file.resolve().map_err(malformed)?;
        Ok(Self {
            dir: dir.to_owned(),
            tokenizer,
            backbone,
            scales,
            sampling,
            commit_beta: file.commit_beta,
            adamw: file.adamw,
            golden: NamedTensors::read(&dir.join("golden.safetensors"))?,
        })
    }
}

type Resolved = (TokenizerConfig, BackboneConfig, ScaleSchedule, Vec<SamplingCase>);

impl File {
    /// What the settings mean, or what is wrong with them.
    fn resolve(&self) -> Result<Resolved, String> {
        let t = &self.tokenizer;
        let &ModelFile {
            depth,
            width,
            heads,
            mlp_ratio,
            shared_adaln,
            qk_l2_norm,
            classes,
            norm_eps,
            position_grid,
        } = &self.model;
        let scales = schedule(&self.scales)?;
        require(norm_eps == 1e-6, "model.norm_eps: not the released 1e-6")?;
        let objective = self.adamw.as_ref().map(|adamw| adamw.objective.as_str());
        require(
            matches!(objective, None | Some("last")),
            "adamw.objective: not known, only \"last\" is",
        )?;
        let (family, positions) = match self.kind {
            Kind::Flexvar => {
                require(t.codebook_l2_norm, "tokenizer.codebook_l2_norm: FlexVAR normalizes")?;
                let side = position_grid.ok_or("model.position_grid: missing")?;
                (Family::Flexvar, PositionsConfig::Grid { side })
            }
            Kind::Var => {
                require(!t.codebook_l2_norm, "tokenizer.codebook_l2_norm: VAR does not normalize")?;
                require(t.quant_conv_kernel == Some(3), "tokenizer.quant_conv_kernel: not 3")?;
                require(t.phi_ratio == Some(0.5), "tokenizer.phi_ratio: not the released 0.5")?;
                let phi = match t.phi_shared.ok_or("tokenizer.phi_shared: missing")? {
                    0 => Phi::PerScale(scales.len()),
                    n => Phi::Shared(n),
                };
                let positions = PositionsConfig::PerToken { scales: scales.clone() };
                (Family::Var { phi }, positions)
            }
        };
        let tokenizer = TokenizerConfig {
            family,
            base_channels: t.base_channels,
            channel_multipliers: t.channel_multipliers.clone(),
            res_blocks: t.res_blocks,
            z_channels: t.z_channels,
            codebook_size: t.codebook_size,
            codebook_dim: t.codebook_dim,
            codebook_growth: CodebookGrowth::None {},
        };
        let backbone = BackboneConfig {
            shape: BackboneShape {
                depth,
                width,
                heads,
                mlp_ratio,
                shared_adaln,
                qk_l2_norm,
                visibility: Visibility::AllCoarser,
                first_scale: FirstScale::ClassToken {},
            },
            classes,
            codebook_size: t.codebook_size,
            codebook_dim: t.codebook_dim,
            positions,
        };
        let sampling = self.sampling(&scales)?;
        Ok((tokenizer, backbone, scales, sampling))
    }

    fn sampling(&self, scales: &ScaleSchedule) -> Result<Vec<SamplingCase>, String> {
        let run = |name: &str, scales: &ScaleSchedule, guidance| SamplingCase {
            name: name.into(),
            scales: scales.clone(),
            guidance,
        };
        let or_scales = |sides: &[usize]| match sides {
            [] => Ok(scales.clone()),
            sides => schedule(sides),
        };
        match (self.kind, &self.sample) {
            (Kind::Flexvar, _) => Ok(vec![
                run("cfg_2.5", scales, Guidance::flexvar(2.5)),
                run("alt_steps", &or_scales(&self.alt_scales)?, Guidance::flexvar(1.5)),
                run("llamagen_cfg_3", scales, Guidance::Constant { scale: 3.0 }),
                run("zero_shot_24", &or_scales(&self.zero_shot_scales)?, Guidance::flexvar(2.5)),
            ]),
            (Kind::Var, Some(SampleFile { cfg, image_range })) => {
                require(*image_range == [0.0, 1.0], "sample.image_range: not [0, 1]")?;
                Ok(vec![run(&format!("cfg_{cfg}"), scales, Guidance::Ramp { scale: *cfg })])
            }
            (Kind::Var, None) => Ok(Vec::new()),
        }
    }
}

fn schedule(sides: &[usize]) -> Result<ScaleSchedule, String> {
    ScaleSchedule::squares(sides).map_err(|error| error.to_string())
}

fn require(holds: bool, problem: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(problem.into()) }
}
