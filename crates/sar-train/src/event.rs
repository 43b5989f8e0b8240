//! What a run tells whoever watches it. Libraries emit; only binaries print.

use std::path::Path;

use crate::StageId;

/// Something that happened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Everything that can be checked beforehand is in order; the first stage comes next.
    RunStarted {
        /// Name of the recipe.
        recipe: &'a str,
        /// The run directory.
        dir: &'a Path,
    },
    /// A stage begins.
    StageStarted {
        /// Its name.
        stage: StageId,
        /// Its steps.
        steps: u64,
        /// Steps done before, when resumed.
        done: u64,
        /// Images per step.
        batch: usize,
    },
    /// A step was made.
    Step {
        /// Its stage.
        stage: StageId,
        /// Zero-based step.
        step: u64,
        /// Named losses, at steps that are logged only: reading them waits for the device.
        losses: Option<&'a [(String, f64)]>,
    },
    /// A stage is done.
    StageEnded {
        /// Its name.
        stage: StageId,
        /// Seconds.
        wall_s: f64,
    },
    /// Work outside a stage begins, such as measuring or drawing.
    Working {
        /// What, in a few words.
        what: &'a str,
    },
    /// Latents of a frozen tokenizer are in the cache.
    Latents {
        /// How many,
        done: usize,
        /// of how many.
        of: usize,
    },
    /// A file was written.
    Wrote {
        /// Where.
        path: &'a Path,
    },
    /// Something that the run does and that the user should know.
    Note {
        /// One line.
        message: &'a str,
    },
    /// Something that is not as it should be.
    Warning {
        /// One line.
        message: &'a str,
    },
}

/// Receives events.
pub trait Observer {
    /// Called for each event, from the training thread.
    fn event(&mut self, event: &Event<'_>);
}

/// Ignores everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Observer for Silent {
    fn event(&mut self, _: &Event<'_>) {}
}
