//! Why a run stops.

use std::fmt;
use std::path::{Path, PathBuf};

use sar_core::ScaleSize;
use sar_data::DataError;
use sar_discriminator::DiscriminatorConfigError;
use sar_model::BackboneConfigError;
use sar_pipeline::PipelineError;
use sar_tokenizer::TokenizerConfigError;
use sar_weights::WeightsError;

use crate::StageId;
use crate::recipe::RecipeError;

/// Why training or loading a run failed; every message is one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The recipe cannot be used.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// Another rank could not go on, or was waited for in vain.
    #[error(transparent)]
    Exchange(#[from] sar_exchange::ExchangeError),
    /// The ranks do not fit together, or not the recipe.
    #[error("{0}")]
    Ranks(String),
    /// Images cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Samples cannot be measured.
    #[error(transparent)]
    Eval(#[from] sar_eval::EvalError),
    /// Weights cannot be read or written.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The tokenizer cannot be built.
    #[error("tokenizer.{0}")]
    Tokenizer(#[from] TokenizerConfigError),
    /// The tokenizer's adversary cannot be built.
    #[error("tokenizer.adversary.discriminator.{0}")]
    Discriminator(#[from] DiscriminatorConfigError),
    /// The backbone cannot be built.
    #[error("backbone.{0}")]
    Backbone(#[from] BackboneConfigError),
    /// The device does not compute in the recipe's precision.
    #[error(
        "backbone.precision: this device has no matrix products in {0}; use \"f32\", or another device"
    )]
    Precision(sar_model::Precision),
    /// The device cannot round to what gradients travel in.
    #[error("exchange.gradients: this device has no {0}; use \"f32\", or another device")]
    Wire(crate::wire::Wire),
    /// A random schedule could not be drawn.
    #[error("backbone.schedule: {0}")]
    Schedule(#[from] sar_core::ScheduleError),
    /// A file or folder could not be used.
    #[error("{}: {what}: {error}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the system said.
        error: std::io::Error,
    },
    /// The run directory already holds something.
    #[error("{}: {problem}", path.display())]
    RunDir {
        /// Which.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// Weights cannot be loaded, or images cannot be made with them.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// The weights that a stage is to start from do not fit it.
    #[error("{stage}.init_from: {problem}")]
    InitFrom {
        /// Stage.
        stage: StageId,
        /// The file, what differs, and what to do.
        problem: String,
    },
    /// A checkpoint does not say what it should.
    #[error("{}: metadata field '{field}': {problem}", path.display())]
    Metadata {
        /// Which.
        path: PathBuf,
        /// The field.
        field: String,
        /// What is wrong.
        problem: String,
    },
    /// The best checkpoint of a stage that is to end with its weights cannot be read.
    #[error(
        "{error}; {stage} is to end with its weights: put a whole copy of it back, or set {}.output = \"last\" \
         in the run's recipe.toml and move the checkpoints of later stages away; then resume",
        stage.table()
    )]
    Best {
        /// Stage.
        stage: StageId,
        /// Which file it is, and why not.
        error: Box<TrainError>,
    },
    /// A measure on held-out images is not a number.
    #[error(
        "{stage}, after step {step}: {name} is not a number on held-out images; older checkpoints are \
         intact: lower {}.optimization.lr.peak in a new run", stage.table()
    )]
    BadMeasure {
        /// Stage.
        stage: StageId,
        /// Steps made.
        step: u64,
        /// The measure.
        name: &'static str,
    },
    /// The run was asked to stop and can go on later.
    #[error("stopped in {stage} after step {step}; a checkpoint is written, go on with --resume")]
    Stopped {
        /// Stage.
        stage: StageId,
        /// Steps made.
        step: u64,
    },
    /// The run was asked to stop while it cached latents, and can go on later.
    #[error("stopped with {done} of {of} latents cached; go on with --resume")]
    StoppedCaching {
        /// Latents in the cache.
        done: usize,
        /// Latents in the end.
        of: usize,
    },
    /// The recipe of a run is not the one to resume it with.
    #[error("{}: was started with {field} = {theirs}, not {ours}; resume with the same recipe, or start a new run", path.display())]
    RecipeChanged {
        /// The run's recipe file.
        path: PathBuf,
        /// Dotted path of the first field that differs.
        field: String,
        /// Its value in the run.
        theirs: String,
        /// Its value now.
        ours: String,
    },
    /// Weights, averages or moments hold values that are not finite; they are not written.
    #[error(
        "{stage}, after step {step}: {tensor} holds values that are not finite; nothing of it is \
         written, older checkpoints are intact: lower {}.optimization.lr.peak in a new run", stage.table()
    )]
    BadWeights {
        /// Stage.
        stage: StageId,
        /// Steps made.
        step: u64,
        /// The tensor, as a checkpoint names it.
        tensor: String,
    },
    /// A loss or a gradient was not finite; it never reached the weights.
    #[error("{0}")]
    NotFinite(NotFinite),
}

/// Where numbers went bad, as far as it can be told afterwards.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct NotFinite {
    /// Stage.
    pub stage: StageId,
    /// Zero-based step.
    pub step: u64,
    /// Which part of the loss, or `gradient_norm`.
    pub part: String,
    /// Its value.
    pub value: f64,
    /// The coarsest scale whose loss is not finite.
    pub scale: Option<ScaleSize>,
    /// The first parameter, in the order of the file, whose gradient is not finite.
    pub parameter: Option<String>,
    /// What the loss was multiplied with.
    pub loss_scale: f64,
}

impl fmt::Display for NotFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stage, step, part, value, scale, parameter, loss_scale } = self;
        write!(f, "{stage}, step {step}: {part} is {value}")?;
        if let Some(scale) = scale {
            write!(f, ", first at scale {scale}")?;
        }
        if let Some(parameter) = parameter {
            write!(f, ", first in the gradient of {parameter}")?;
        }
        write!(
            f,
            "; the weights have not seen it, checkpoints are from before: lower \
             {}.optimization.lr.peak in a new run",
            stage.table()
        )?;
        if *loss_scale != 1.0 {
            write!(
                f,
                ", or, as it is so even when the loss is multiplied by {loss_scale}, set \
                 backbone.precision to bf16 or f32"
            )?;
        }
        Ok(())
    }
}

impl TrainError {
    /// An input or output error at a path.
    pub fn io(path: &Path, what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::Io { path, what, error }
    }
}
