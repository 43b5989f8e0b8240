//! `sar train`: a recipe, run.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use burn::tensor::backend::AutodiffBackend;
use sar_train::{Recipe, TrainError, train};

use crate::Verdict;
use crate::device::{DeviceArg, Job};
use crate::progress::Progress;
use crate::report;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// A built-in recipe's name or a TOML file.
    #[arg(long, default_value = "emoji-quick", value_name = "NAME|FILE")]
    recipe: String,
    /// Where everything is written; a new or empty folder [default: runs/<recipe>, numbered]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Replaces a value of the recipe, as in --set tokenizer.steps=100.
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    settings: Vec<String>,
    #[command(flatten)]
    device: DeviceArg,
}

pub(crate) fn run(args: Args) -> Result<Verdict> {
    let recipe = Recipe::load(&args.recipe, &args.settings)?;
    let run_dir = args.run_dir.unwrap_or_else(|| free_folder(&recipe.name));
    args.device.run(Train { recipe, run_dir })
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
}

impl Job for Train {
    type Output = Verdict;

    fn run<A: AutodiffBackend>(self, device: A::Device) -> Result<Verdict> {
        let Self { recipe, run_dir } = self;
        let mut progress = Progress::new();
        progress.line(&format!("recipe {}, run directory {}", recipe.name, run_dir.display()));
        let report = match train::<A>(&recipe, &run_dir, &device, &mut progress) {
            Ok(report) => report,
            Err(error @ TrainError::NotFinite { .. }) => {
                progress.clear();
                eprintln!("error: {error}");
                return Ok(Verdict::Bad);
            }
            Err(error) => {
                progress.clear();
                return Err(error.into());
            }
        };
        let html = report::write_html(&run_dir, &report)
            .with_context(|| format!("{}: report.html", run_dir.display()))?;
        progress.line(&report::summary(&report));
        progress.line(&format!("everything in {}; open {}", run_dir.display(), html.display()));
        Ok(Verdict::Good)
    }
}
