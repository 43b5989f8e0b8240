//! `sar train`: a recipe, run.

use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use burn::tensor::backend::AutodiffBackend;
use sar_train::{Execution, Recipe, TrainError, train};

use crate::Verdict;
use crate::device::{DeviceArg, Job};
use crate::progress::Progress;
use crate::report;

/// What an interrupted program ends with by convention, 128 + SIGINT.
const INTERRUPTED: i32 = 130;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// A built-in recipe's name or a TOML file [default: emoji-quick; with --resume the run's own]
    #[arg(long, value_name = "NAME|FILE")]
    recipe: Option<String>,
    /// Where everything is written; a new or empty folder [default: runs/RECIPE, numbered]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Goes on with the run in --run-dir, exactly where its last checkpoint is.
    #[arg(long)]
    resume: bool,
    /// Replaces a value of the recipe, as in --set tokenizer.steps=100.
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    settings: Vec<String>,
    #[command(flatten)]
    device: DeviceArg,
}

pub(crate) fn run(args: Args) -> Result<Verdict> {
    let Args { recipe, run_dir, resume, settings, device } = args;
    ensure!(!resume || run_dir.is_some(), "--resume: name the run with --run-dir");
    let own = run_dir.as_ref().filter(|_| resume).map(|dir| dir.join("recipe.toml"));
    let recipe = match (recipe, own) {
        (Some(name), _) => Recipe::load(&name, &settings)?,
        (None, Some(own)) => Recipe::load(&own.to_string_lossy(), &settings)?,
        (None, None) => Recipe::load("emoji-quick", &settings)?,
    };
    let run_dir = run_dir.unwrap_or_else(|| free_folder(&recipe.name));
    device.run(Train { recipe, run_dir, resume })
}

/// `runs/NAME`, or the first of `runs/NAME-2`, `runs/NAME-3`, … that does not exist: a run never
/// overwrites another.
fn free_folder(name: &str) -> PathBuf {
    let folder = Path::new("runs");
    let numbered = (2..).map(|i| folder.join(format!("{name}-{i}")));
    std::iter::once(folder.join(name))
        .chain(numbered)
        .find(|path| !path.exists())
        .expect("one of the numbers is free")
}

struct Train {
    recipe: Recipe,
    run_dir: PathBuf,
    resume: bool,
}

impl Job for Train {
    type Output = Verdict;

    fn run<A: AutodiffBackend>(self, device: A::Device, workers: usize) -> Result<Verdict> {
        static STOP: AtomicBool = AtomicBool::new(false);
        // The first Ctrl-C or SIGTERM asks for a checkpoint, the second ends at once.
        ctrlc::set_handler(|| {
            if STOP.swap(true, Ordering::Relaxed) {
                process::exit(INTERRUPTED);
            }
            eprintln!("stopping after this step; once more to stop at once");
        })?;
        let Self { recipe, run_dir, resume } = self;
        let mut progress = Progress::new();
        let execution = Execution { resume, workers, stop: &STOP };
        let report = match train::<A>(&recipe, &run_dir, execution, &device, &mut progress) {
            Ok(report) => report,
            Err(error) => {
                progress.clear();
                match error {
                    TrainError::NotFinite { .. } => eprintln!("error: {error}"),
                    TrainError::Stopped { .. } => {
                        eprintln!("{error}");
                        process::exit(INTERRUPTED);
                    }
                    _ => return Err(error.into()),
                }
                return Ok(Verdict::Bad);
            }
        };
        let html = report::write_html(&run_dir, &report)
            .with_context(|| format!("{}: report.html", run_dir.display()))?;
        progress.line(&report::summary(&report));
        progress.line(&format!("everything in {}; open {}", run_dir.display(), html.display()));
        Ok(Verdict::Good)
    }
}
