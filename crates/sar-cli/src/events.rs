//! `--json`: what happens, for other programs: one JSON object a line on the standard output, which carries nothing
//! else then. `docs/programs.md` has the fields.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use sar_train::event::Event;
use serde::Serialize;

/// Whether events are wanted.
#[derive(Clone, Copy, clap::Args)]
pub(crate) struct Events {
    /// Says what happens on the standard output, for other programs: one JSON object a line, see
    /// docs/programs.md.
    #[arg(long)]
    json: bool,
}

/// What is said. A line is written at once.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub(crate) enum Said<'a> {
    Run {
        recipe: &'a str,
        dir: Cow<'a, str>,
    },
    Stage {
        stage: &'a str,
        steps: u64,
        done: u64,
        batch: usize,
    },
    Step {
        stage: &'a str,
        step: u64,
        steps: u64,
        losses: BTreeMap<&'a str, f64>,
        images_per_s: f64,
        to_go_s: f64,
    },
    StageDone {
        stage: &'a str,
        wall_s: f64,
    },
    Working {
        what: &'a str,
    },
    Latents {
        done: usize,
        of: usize,
    },
    Job {
        dir: Cow<'a, str>,
        images: usize,
        there: usize,
    },
    Image {
        path: Cow<'a, str>,
        class: Option<&'a str>,
        label: usize,
        number: usize,
    },
    Progress {
        done: usize,
        of: usize,
        to_go_s: f64,
    },
    Wrote {
        path: Cow<'a, str>,
    },
    Note {
        message: &'a str,
    },
    Warning {
        message: &'a str,
    },
    Done {
        dir: Cow<'a, str>,
    },
    Stopped {
        message: &'a str,
    },
    Error {
        message: &'a str,
    },
}

/// How a stage goes.
#[derive(Clone, Copy)]
pub(crate) struct Pace {
    pub(crate) steps: u64,
    pub(crate) images_per_s: f64,
    pub(crate) to_go_s: f64,
}

impl Events {
    pub(crate) const NONE: Self = Self { json: false };

    pub(crate) fn say(self, said: &Said<'_>) {
        if self.json {
            println!("{}", serde_json::to_string(said).expect("plain values"));
        }
    }

    pub(crate) fn wrote(self, path: &Path) {
        self.say(&Said::Wrote { path: path.to_string_lossy() });
    }
}

impl<'a> Said<'a> {
    /// What is said of a training. Steps are told where they are logged.
    pub(crate) fn of(event: &'a Event<'a>, pace: Option<Pace>) -> Option<Self> {
        Some(match *event {
            Event::RunStarted { recipe, dir } => Self::Run { recipe, dir: dir.to_string_lossy() },
            Event::StageStarted { stage, steps, done, batch } => {
                Self::Stage { stage: stage.name(), steps, done, batch }
            }
            Event::Step { stage, step, losses } => {
                let Pace { steps, images_per_s, to_go_s } = pace?;
                let losses = losses?.iter().map(|(part, value)| (part.as_str(), *value)).collect();
                Self::Step {
                    stage: stage.name(),
                    step: step + 1,
                    steps,
                    losses,
                    images_per_s,
                    to_go_s,
                }
            }
            Event::StageEnded { stage, wall_s } => Self::StageDone { stage: stage.name(), wall_s },
            Event::Working { what } => Self::Working { what },
            Event::Latents { done, of } => Self::Latents { done, of },
            Event::Wrote { path } => Self::Wrote { path: path.to_string_lossy() },
            Event::Note { message } => Self::Note { message },
            Event::Warning { message } => Self::Warning { message },
            _ => return None,
        })
    }
}
