//! `sar train`: a recipe, run.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use burn::tensor::backend::AutodiffBackend;
use sar_exchange::Group;
use sar_train::event::{Observer, Silent};
use sar_train::plan::{Plan, PlannedStage, plan};
use sar_train::{Execution, Recipe, TrainError, train};

use crate::device::{DeviceArg, Job};
use crate::events::{Events, Said};
use crate::interrupt;
use crate::progress::Progress;
use crate::ranks::Ranks;
use crate::{Verdict, first_free, report};

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
    /// Prints what the run would do, and ends.
    #[arg(long, conflicts_with_all = ["resume", "json"])]
    dry_run: bool,
    /// Replaces a value of the recipe, as in --set tokenizer.steps=100.
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    settings: Vec<String>,
    /// Among several ranks, how long one may give no sign of life before all end.
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    deadline: u64,
    /// Among several ranks, sends what is long from GPU to GPU with NCCL; it has to be compiled in, and
    /// was never run.
    #[arg(long)]
    nccl: bool,
    #[command(flatten)]
    pub(crate) events: Events,
    #[command(flatten)]
    device: DeviceArg,
}

pub(crate) fn run(args: Args) -> Result<Verdict> {
    let Args { recipe, run_dir, resume, dry_run, settings, deadline, nccl, events, device } = args;
    let deadline = Duration::from_secs(deadline);
    let ranks = Ranks::start(deadline)?;
    // What is chosen by looking at folders, one rank chooses for all.
    let chosen = ranks.of_leader(|| {
        let (recipe, run_dir) = choose(recipe, run_dir, resume, &settings)?;
        Ok(serde_json::to_string(&(recipe.to_toml(), run_dir))?)
    });
    let chosen = match chosen {
        Ok(chosen) => chosen,
        Err(error) => return ranks.ended(error),
    };
    let (toml, run_dir): (String, PathBuf) = serde_json::from_str(&chosen)?;
    let recipe = Recipe::parse("the recipe of rank 0", &toml, &[])?;
    if dry_run {
        let work = DryRun { recipe, run_dir };
        return if ranks.group.leads() { device.run(work) } else { Ok(Verdict::Good) };
    }
    let group = match ranks.that_train(nccl, &device, deadline) {
        Ok(group) => group,
        Err(error) => return ranks.ended(error),
    };
    // The engine ends with the last of what it serves.
    let work = Train { recipe, run_dir, resume, events, ranks: &ranks, group: &group };
    let outcome = device.run(work);
    let outcome = outcome.unwrap_or_else(|error| {
        group.fail(&format!("{error:#}"));
        Err(error)
    });
    outcome.or_else(|error| ranks.ended(error))
}

/// The recipe and the run directory that the arguments ask for.
fn choose(
    recipe: Option<String>,
    run_dir: Option<PathBuf>,
    resume: bool,
    settings: &[String],
) -> Result<(Recipe, PathBuf)> {
    ensure!(!resume || run_dir.is_some(), "--resume: name the run with --run-dir");
    let own = run_dir.as_ref().filter(|_| resume).map(|dir| dir.join("recipe.toml"));
    if let Some(own) = &own {
        let run = own.parent().unwrap_or(own);
        ensure!(own.is_file(), "{}: holds no run to resume, no recipe.toml", run.display());
    }
    let recipe = match (recipe, own) {
        (Some(name), _) => Recipe::load(&name, settings)?,
        (None, Some(own)) => Recipe::load(&own.to_string_lossy(), settings)?,
        (None, None) => Recipe::load("emoji-quick", settings)?,
    };
    let run_dir = run_dir.unwrap_or_else(|| first_free(&Path::new("runs").join(&recipe.name), ""));
    Ok((recipe, run_dir))
}

struct DryRun {
    recipe: Recipe,
    run_dir: PathBuf,
}

impl Job for DryRun {
    type Output = Verdict;

    fn run<A: AutodiffBackend>(self, device: A::Device, workers: usize) -> Result<Verdict> {
        let plan = plan::<A>(&self.recipe, workers, &device)?;
        print!("{}", shown(&self.recipe, &self.run_dir, &plan));
        Ok(Verdict::Good)
    }
}

/// A plan as text.
fn shown(recipe: &Recipe, run_dir: &Path, plan: &Plan) -> String {
    let [train, held_out] = plan.images;
    let mut text = format!("{}\n", plan.summary);
    text.extend(plan.notes.iter().map(|note| format!("{note}\n")));
    text += &format!(
        "recipe {}, seed {}\nimages: {train} to train on, {held_out} held out, {} classes, {} px\n\
         an image: {} tokens at scales {}\n\n",
        recipe.name,
        recipe.seed,
        plan.classes,
        recipe.data.side,
        plan.tokens,
        recipe.scales(),
    );
    let head = ["stage", "steps", "batch", "in parts", "epochs", "parameters", "memory, about"];
    text += &format!(
        "{:<10}{:>9}{:>8}{:>10}{:>9}{:>14}{:>15}\n",
        head[0], head[1], head[2], head[3], head[4], head[5], head[6]
    );
    for stage in &plan.stages {
        let PlannedStage {
            id,
            steps,
            batch_size,
            grad_accum_steps,
            parameters,
            epochs,
            memory,
            ..
        } = stage;
        if *steps == 0 {
            text += &format!("{id:<10}{:>9}  keeps {parameters} given parameters\n", 0);
            continue;
        }
        text += &format!(
            "{id:<10}{steps:>9}{batch_size:>8}{grad_accum_steps:>10}{epochs:>9.1}{parameters:>14}{:>15}\n",
            bytes(*memory)
        );
    }
    text += &format!(
        "measuring, sampling, caching: {:>15}\n\nmemory at its peak: about {}\n",
        bytes(plan.evaluation_memory),
        bytes(plan.memory)
    );
    if let Some((records, size)) = plan.latents {
        text += &format!("latents on disk: {records}, {}\n", bytes(size));
    }
    text += &format!("\nwould write to {}:\n", run_dir.display());
    for (name, size) in &plan.files {
        text += &format!("  {name}  {}\n", bytes(*size));
    }
    text + "  recipe.toml, data.json, metrics.jsonl, pictures, report.json, report.html\n"
}

/// `1.5 GB`, in powers of 1000.
fn bytes(n: u64) -> String {
    let units = [(1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    let n = n as f64;
    let unit = units.into_iter().find(|(size, _)| n >= *size);
    unit.map_or(format!("{n} B"), |(size, unit)| format!("{:.1} {unit}", n / size))
}

struct Train<'r> {
    recipe: Recipe,
    run_dir: PathBuf,
    resume: bool,
    events: Events,
    ranks: &'r Ranks,
    group: &'r Group,
}

impl Job for Train<'_> {
    /// An error of the run itself, of which all ranks have heard.
    type Output = Result<Verdict>;

    fn run<A: AutodiffBackend>(self, device: A::Device, workers: usize) -> Result<Result<Verdict>> {
        // The first Ctrl-C or SIGTERM asks for a checkpoint.
        let answer = if self.ranks.group.leads() { "stopping after this step" } else { "" };
        let stop = interrupt::watch(answer)?;
        Ok(self.train::<A>(device, workers, stop))
    }
}

impl Train<'_> {
    fn train<A: AutodiffBackend>(
        self,
        device: A::Device,
        workers: usize,
        stop: &AtomicBool,
    ) -> Result<Verdict> {
        let Self { recipe, run_dir, resume, events, ranks, group } = self;
        let (mut progress, mut silent) = (Progress::new(events), Silent);
        let leads = group.leads();
        let observer: &mut dyn Observer = if leads { &mut progress } else { &mut silent };
        let execution = Execution { resume, workers: ranks.workers(workers), stop, group };
        let report = match train::<A>(&recipe, &run_dir, execution, &device, observer) {
            Ok(report) => report,
            // The one that leads has heard why, and says it for all.
            Err(_) if !leads => return Ok(Verdict::Good),
            Err(error) => {
                progress.clear();
                match error {
                    TrainError::NotFinite(_)
                    | TrainError::BadWeights { .. }
                    | TrainError::BadMeasure { .. } => {
                        eprintln!("error: {error}");
                        events.say(&Said::Error { message: &error.to_string() });
                    }
                    TrainError::Stopped { .. } | TrainError::StoppedCaching { .. } => {
                        eprintln!("{error}");
                        events.say(&Said::Stopped { message: &error.to_string() });
                        return Ok(Verdict::Interrupted);
                    }
                    // They name the rank, or are about all of them.
                    TrainError::Exchange(_) | TrainError::Ranks(_) => return Err(error.into()),
                    _ => return Err(ranks.own(error)),
                }
                return Ok(Verdict::Bad);
            }
        };
        if !leads {
            return Ok(Verdict::Good);
        }
        let html = report::write_html(&run_dir, &report)
            .with_context(|| format!("{}: report.html", run_dir.display()))?;
        progress.line(&report::summary(&report));
        progress.line(&format!("everything in {}; open {}", run_dir.display(), html.display()));
        events.wrote(&html);
        events.say(&Said::Done { dir: run_dir.to_string_lossy() });
        Ok(Verdict::Good)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        let check = |n, text| assert_eq!(bytes(n), text);
        check(999, "999 B");
        check(1000, "1.0 kB");
        check(12_345_678, "12.3 MB");
        check(1_500_000_000, "1.5 GB");
    }
}
