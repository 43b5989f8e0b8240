//! Why weights cannot be used; every message is one line.

use std::path::PathBuf;

use sar_core::ScheduleError;
use sar_model::{BackboneConfigError, Precision};
use sar_tokenizer::TokenizerConfigError;
use sar_weights::WeightsError;

use crate::ClassError;

/// Why weights cannot be loaded, or an image cannot be made with them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PipelineError {
    /// A file of weights cannot be read or written.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The tokenizer cannot be built.
    #[error("tokenizer.{0}")]
    Tokenizer(#[from] TokenizerConfigError),
    /// The backbone cannot be built.
    #[error("backbone.{0}")]
    Backbone(#[from] BackboneConfigError),
    /// A file holds a model of another kind.
    #[error("{}: is {found}, not {expected}", path.display())]
    Kind {
        /// The file.
        path: PathBuf,
        /// What was asked for.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// A file that says that it is ours says something that cannot be read.
    #[error("{}: metadata field '{field}': {problem}", path.display())]
    Metadata {
        /// The file.
        path: PathBuf,
        /// The field.
        field: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// What is said of a model is not what its file shows.
    #[error("{}: {field}: {problem}", path.display())]
    Contradiction {
        /// The file.
        path: PathBuf,
        /// What it is about.
        field: &'static str,
        /// What is wrong and what to do.
        problem: String,
    },
    /// The folder of a run lacks weights.
    #[error("{}: there is no {}; has the run come so far?", path.display(), names.join(" and no "))]
    Run {
        /// The folder.
        path: PathBuf,
        /// The files that were looked for.
        names: Vec<String>,
    },
    /// A tokenizer and a backbone do not belong together.
    #[error(
        "{}: the backbone was trained on {} codes of {} channels, the tokenizer {} has {} of {}",
        backbone.display(), wanted.0, wanted.1, tokenizer.display(), found.0, found.1
    )]
    Apart {
        /// The file of the tokenizer.
        tokenizer: PathBuf,
        /// The file of the backbone.
        backbone: PathBuf,
        /// Codes and channels that the backbone knows.
        wanted: (usize, usize),
        /// Codes and channels that the tokenizer has.
        found: (usize, usize),
    },
    /// A tokenizer has other codes than that which a backbone was trained with.
    #[error(
        "{}: the backbone was trained with other codes than those of the tokenizer {}; take the \
         tokenizer of the run that the backbone is of",
        backbone.display(), tokenizer.display()
    )]
    OtherCodes {
        /// The file of the tokenizer.
        tokenizer: PathBuf,
        /// The file of the backbone.
        backbone: PathBuf,
    },
    /// The device does not compute in a precision.
    #[error("this device has no matrix products in {0}; use f32, or another device")]
    Precision(Precision),
    /// No class is meant, or several are.
    #[error(transparent)]
    Class(#[from] ClassError),
    /// A number of sampling is out of its range.
    #[error("{name} {value}: {problem}")]
    Setting {
        /// Its name, as the command line has it.
        name: &'static str,
        /// What was said.
        value: String,
        /// What it has to be.
        problem: &'static str,
    },
    /// Scales that cannot be sampled.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// A size or a number of tokens that cannot be sampled.
    #[error("{0}")]
    Size(String),
    /// An edit that leaves nothing to draw, or is no edit of this image.
    #[error("{0}")]
    Edit(String),
}
