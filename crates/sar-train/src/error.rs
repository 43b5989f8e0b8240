//! Why a run stops.

use std::path::{Path, PathBuf};

use sar_data::DataError;
use sar_model::BackboneConfigError;
use sar_tokenizer::TokenizerConfigError;
use sar_weights::WeightsError;

use crate::recipe::RecipeError;

/// Why training or loading a run failed; every message is one line.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The recipe cannot be used.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// Images cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Weights cannot be read or written.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The tokenizer cannot be built.
    #[error("tokenizer.{0}")]
    Tokenizer(#[from] TokenizerConfigError),
    /// The backbone cannot be built.
    #[error("backbone.{0}")]
    Backbone(#[from] BackboneConfigError),
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
    /// A file of weights is of another kind.
    #[error("{}: is {found}, not {expected}", path.display())]
    Kind {
        /// Which.
        path: PathBuf,
        /// What was asked for.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A file of weights does not describe itself.
    #[error("{}: metadata field '{field}': {problem}", path.display())]
    Metadata {
        /// Which.
        path: PathBuf,
        /// The field.
        field: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// The run was asked to stop and can go on later.
    #[error("stopped in {stage} after step {step}; a checkpoint is written, go on with --resume")]
    Stopped {
        /// Stage.
        stage: &'static str,
        /// Steps made.
        step: u64,
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
    /// The loss is no number any more; the weights of the last checkpoint are intact.
    #[error(
        "{stage}, step {step}: {part} is {value}; the run stops, checkpoints are from before (lower optimisation.lr.peak of the stage)"
    )]
    NotFinite {
        /// Stage.
        stage: &'static str,
        /// Zero-based step.
        step: u64,
        /// Which part of the loss.
        part: &'static str,
        /// Its value.
        value: f64,
    },
}

impl TrainError {
    /// An input or output error at a path.
    pub fn io(path: &Path, what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::Io { path, what, error }
    }
}
