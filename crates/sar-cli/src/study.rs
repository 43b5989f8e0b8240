//! `sar study`: many arms from the same weights, each with several seeds of training, compared with a control
//! at equal passes. `docs/studies.md` says how to read it.
//!
//! ```text
//! DIR/study.toml           the study that the folder is of
//! DIR/start/               the run that makes the shared weights, and what these amount to
//! DIR/ARM/SEED/            an arm and a seed, see unit.rs; with the recipe that the study has to go on with
//! DIR/study.json, report.html
//! ```
//! Every arm and seed is a run of its own with results of its own: a study that was killed goes on with what
//! is not there, and machines that share the folder, or copy what they have made into one, share the work.

mod code;
mod elsewhere;
mod file;
mod page;
mod recipes;
mod results;
mod unit;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use burn::tensor::backend::AutodiffBackend;
use sar_train::quality::Judge;
use sar_train::{Recipe, TrainError};
use serde::{Deserialize, Serialize};

use crate::device::{DeviceArg, Job, arithmetic};
use crate::interrupt::{self, INTERRUPTED};
use crate::job::Shard;
use crate::progress::clock;
use crate::{Verdict, table};
use code::Code;
use file::{START, Study, has_ended};
use recipes::check_run;
use results::{Arm, Finished, arms, correct};
use unit::{Grid, Sampling, Trained, Unit, best, train_run};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The study: a TOML file, as in assets/studies.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Where everything is written: a new folder, or that of the same study, which goes on
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Does these arms only, as in control,sar-paper; `start` is the weights that arms begin with.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    arms: Vec<String>,
    /// Does the arms of one of n machines: part i, from 0, of the start and the arms in their order.
    #[arg(long, value_name = "i/n", conflicts_with = "arms")]
    shard: Option<String>,
    /// Trains and samples nothing: makes the report anew of what is there.
    #[arg(long, conflicts_with_all = ["arms", "shard", "dry_run"])]
    report: bool,
    /// Puts the arms of another folder's study.json into the report, too: start and control have to be the same
    /// there, to the last digit (FD and KID to 1e-6). May be given more than once.
    #[arg(long, value_name = "FILE", requires = "report")]
    with: Vec<PathBuf>,
    /// Prints what the study would do, and ends.
    #[arg(long)]
    dry_run: bool,
    /// Also writes study.json to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArg,
}

pub(crate) fn run(args: Args) -> Result<Verdict> {
    let Args { file, out, arms, shard, report, with, dry_run, json, device } = args;
    let study = Study::load(&file)?;
    let shard = shard.as_deref().map(Shard::parse).transpose()?.unwrap_or(Shard::WHOLE);
    for name in arms.iter().filter(|name| *name != START) {
        study.arm(name).context("--arms")?;
    }
    let all = std::iter::once(START).chain(study.arms.iter().map(|arm| arm.name.as_str()));
    let is_ours = |(i, name): &(usize, &str)| {
        i % shard.of == shard.index && (arms.is_empty() || arms.iter().any(|arm| arm == name))
    };
    let ours: Vec<String> =
        all.enumerate().filter(is_ours).map(|(_, name)| name.to_owned()).collect();
    if dry_run {
        print!("{}", plan(&study, &ours)?);
        return Ok(Verdict::Good);
    }
    let folder = std::path::absolute(&out).with_context(|| format!("--out {}", out.display()))?;
    if report {
        ensure!(folder.join("study.toml").is_file(), "--out {}: holds no study", out.display());
    }
    let written = json.iter().cloned().chain([folder.join("study.json")]);
    let written = written.map(std::path::absolute).collect::<Result<Vec<_>, _>>()?;
    for file in &with {
        ensure!(
            !written.contains(&std::path::absolute(file)?),
            "--with {}: is what this command writes, and its hours would count twice; give the result of another folder",
            file.display()
        );
    }
    study.settle(&folder)?;
    let folder = Folder { study, path: folder, with, json };
    folder.check_recipes()?;
    if report {
        let summary = folder.write_report()?;
        print!("{}", page::shown(&summary));
        return Ok(Verdict::Good);
    }
    device.run(Run { folder, ours })
}

/// What a study would do.
fn plan(study: &Study, ours: &[String]) -> Result<String> {
    let head = ["arm", "seeds", "steps", "passes a step", "passes", "of its control's"];
    let mut rows = vec![head.map(String::from).to_vec()];
    let start = study.start_recipe()?;
    rows.push(vec![
        START.into(),
        "1".into(),
        format!("{} + {}", start.tokenizer.steps, start.pretrain.steps),
        "1.00".into(),
        String::new(),
        String::new(),
    ]);
    let mut notes = String::new();
    let n = study.seeds.len();
    for arm in study.arms.iter().filter(|arm| ours.contains(&arm.name)) {
        let cost = study.cost(arm)?;
        let mut row = vec![arm.name.clone(), n.to_string(), cost.steps.to_string()];
        row.extend([format!("{:.2}", cost.passes_a_step), format!("{:.0}", cost.passes())]);
        let control = study.control_of(&arm.name).map(|name| study.arm(name)).transpose()?;
        row.push(match control {
            Some(control) => {
                let share = cost.passes() / study.cost(control)?.passes();
                // Whole steps cannot be more equal.
                if (share - 1.0).abs() > 0.02 {
                    let (arm, control) = (&arm.name, &control.name);
                    notes += &format!(
                        "{arm} makes {share:.2} times the passes of {control}, its control\n"
                    );
                }
                format!("{:.0} %", 100.0 * share)
            }
            None => String::new(),
        });
        rows.push(row);
    }
    let settings = study.samples.sweep().map_err(|problem| anyhow!("{problem}"))?;
    let settings = settings.samplers(start.evaluation.sampler).len();
    let [selection, measure] =
        [study.samples.selection, study.samples.measure].map(|draw| draw.per_class);
    let text = format!(
        "\neach arm and seed: {settings} settings of the sampler on {selection} samples of each class, then {measure} \
         of each class at the best\n"
    );
    Ok(table::aligned(&rows) + &notes + &text)
}

/// A study and where it lies.
struct Folder {
    study: Study,
    path: PathBuf,
    /// Results of other folders.
    with: Vec<PathBuf>,
    json: Option<PathBuf>,
}

impl Folder {
    fn unit<'a>(&self, arm: &'a str, seed: u64) -> Unit<'a> {
        let folder = self.path.join(arm).join(seed.to_string());
        let run = if arm == START { self.path.join(START) } else { folder.clone() };
        Unit { arm, seed, folder, run }
    }

    fn units<'a>(&self, arm: &'a str) -> impl Iterator<Item = Unit<'a>> {
        self.study.seeds.iter().map(move |seed| self.unit(arm, *seed))
    }

    /// Checks that what is there was trained with the recipes that the study has now.
    fn check_recipes(&self) -> Result<()> {
        let start = self.path.join(START);
        check_run(&start, "the start", &self.study.start_recipe()?)?;
        for arm in &self.study.arms {
            for unit in self.units(&arm.name) {
                let what = format!("arm '{}'", arm.name);
                check_run(&unit.run, &what, &self.study.recipe(arm, unit.seed, &start)?)?;
                ensure!(
                    unit.run.join("recipe.toml").is_file() || !unit.has_results(),
                    "{}: holds results of {what}, and no recipe.toml that says how it was trained; \
                     put it back, or remove the folder",
                    unit.run.display()
                );
            }
        }
        Ok(())
    }

    /// Everything of an arm, if it is there, and all seeds were measured at the setting that is best.
    fn finished(&self, arm: &str) -> Result<Option<Finished>> {
        let (mut outcomes, mut grids, mut failed) = (Vec::new(), Vec::new(), Vec::new());
        for unit in self.units(arm) {
            match (unit.outcome()?.zip(unit.grid()?), unit.failed()?) {
                (Some((outcome, grid)), _) => {
                    outcomes.push(outcome);
                    grids.push(grid);
                }
                (None, Some(of)) => failed.push(of),
                (None, None) => return Ok(None),
            }
        }
        if !grids.is_empty() {
            let settings = best(&grids, self.study.samples.choose_by);
            if outcomes.iter().any(|outcome| outcome.settings != *settings) {
                return Ok(None);
            }
        }
        Ok(Some(Finished { name: arm.into(), outcomes, grids, failed }))
    }

    /// Writes study.json and report.html of what is there.
    fn write_report(&self) -> Result<Summary> {
        let Self { study, path, with, json } = self;
        let names = std::iter::once(START).chain(study.arms.iter().map(|arm| arm.name.as_str()));
        let (mut done, mut unfinished) = (Vec::new(), Vec::new());
        for name in names {
            match self.finished(name)? {
                Some(finished) => done.push(finished),
                None => unfinished.push(name.to_owned()),
            }
        }
        let mut code: Vec<Code> = Vec::new();
        for of in done.iter().flat_map(Finished::code) {
            if !code.contains(of) {
                code.push(of.clone());
            }
        }
        let of_arm = |of: &Finished| {
            let seconds = of.outcomes.iter().fold(0.0, |seconds, of| seconds + of.wall_s);
            (of.name.clone(), vec![seconds / 3600.0])
        };
        let hours_by_arm = done.iter().map(of_arm).collect();
        let real = path.join("real.json");
        let real = std::fs::read_to_string(&real).ok();
        let mut summary = Summary {
            name: study.name.clone(),
            recipe: study.recipe.clone(),
            start: START.into(),
            control: study.control.clone(),
            scratch_control: study.scratch_control.clone(),
            intervals: INTERVALS.into(),
            hours: sum(&hours_by_arm),
            hours_by_arm,
            command: code::command(),
            code,
            real: real.and_then(|text| serde_json::from_str(&text).ok()),
            unfinished,
            elsewhere: Vec::new(),
            arms: arms(study, &done)?,
        };
        for file in with {
            elsewhere::add(file, study, &mut summary)?;
        }
        correct(&mut summary.arms);
        let text = serde_json::to_string_pretty(&summary).expect("plain values") + "\n";
        for file in std::iter::once(&path.join("study.json")).chain(json) {
            sar_weights::write_bytes(file, text.as_bytes())?;
        }
        let picture =
            |arm: &str| self.units(arm).map(|unit| unit.picture()).find(|path| path.is_file());
        let html = page::page(study, &summary, picture)?;
        page::write(path, &html)?;
        Ok(summary)
    }
}

fn sum(by_arm: &BTreeMap<String, Vec<f64>>) -> f64 {
    by_arm.values().flatten().fold(0.0, |sum, hours| sum + hours)
}

const INTERVALS: &str = "95 %, Student's t over seeds of training (of the start: over streams of samples); \
     differences are of pairs of one seed; each interval stands alone, minus_control_p is corrected by Holm for \
     the number of arms that have a control";

/// `study.json`.
#[derive(Serialize, Deserialize)]
struct Summary {
    name: String,
    recipe: String,
    start: String,
    control: String,
    scratch_control: Option<String>,
    /// What `low` and `high` are.
    intervals: String,
    /// Of all arms and seeds together, on whichever machine: the sum of what is below.
    hours: f64,
    /// The same by arm, of each folder that has done it; a file of before does not say it.
    #[serde(default)]
    hours_by_arm: BTreeMap<String, Vec<f64>>,
    command: String,
    code: Vec<Code>,
    real: Option<Real>,
    unfinished: Vec<String>,
    /// The arms that other folders have measured.
    #[serde(default)]
    elsewhere: Vec<String>,
    arms: Vec<Arm>,
}

/// What samples are beside.
#[derive(Serialize, Deserialize)]
struct Real {
    /// The network, and a checksum of its weights.
    extractor: [String; 2],
    /// Real images.
    reference: usize,
    /// Samples of an arm and a seed.
    samples: usize,
    floor: Option<Floor>,
}

/// Held-out real images.
#[derive(Serialize, Deserialize)]
struct Floor {
    images: usize,
    kid: Option<f64>,
    fd: f64,
    class_accuracy: Option<f64>,
}

struct Run {
    folder: Folder,
    /// The arms to do, in their order.
    ours: Vec<String>,
}

/// How an arm went.
enum Went {
    Well,
    /// The training of a seed did not: others may.
    Badly,
}

impl Job for Run {
    type Output = Verdict;

    fn run<A: AutodiffBackend>(self, device: A::Device, workers: usize) -> Result<Verdict> {
        let stop = interrupt::watch("stopping after this step, or this setting of the sampler")?;
        let Self { folder, ours } = &self;
        let start = folder.path.join(START);
        let recipe = folder.study.start_recipe().context(START)?;
        let code = Code::own(&arithmetic::<A::InnerBackend>(&device))?;
        if !has_ended(&start) {
            eprintln!("study {}: making the weights that arms begin with", folder.study.name);
            code.trains(&start)?;
            trained(train_run::<A>(&recipe, &start, (workers, stop), &device), START)??;
        }
        let judge = Judge::of_run(&recipe, &start, &device)?;
        judge.notes().iter().for_each(|note| eprintln!("warning: {note}"));
        judge.resized().iter().for_each(|line| eprintln!("{line}"));
        let sampling = Sampling {
            judge: &judge,
            samples: &folder.study.samples,
            batch: recipe.evaluation.batch_size.div_ceil(2),
            device: &device,
            code: &code,
        };
        folder.describe_real(&judge, &recipe)?;
        let mut walk =
            Walk::<A> { folder, workers, stop, sampling, to_do: ToDo::of(folder, ours)? };
        let mut verdict = Verdict::Good;
        for arm in ours {
            if let Went::Badly = walk.arm(arm)? {
                verdict = Verdict::Bad;
            }
            folder.write_report()?;
        }
        let summary = folder.write_report()?;
        print!("{}", page::shown(&summary));
        eprintln!("everything in {}; open report.html", folder.path.display());
        Ok(verdict)
    }
}

impl Folder {
    /// Writes down what samples are beside.
    fn describe_real<B: burn::tensor::backend::Backend>(
        &self,
        judge: &Judge<B>,
        recipe: &Recipe,
    ) -> Result<()> {
        let path = self.path.join("real.json");
        if path.is_file() {
            return Ok(());
        }
        let classes = recipe.data.source.open(recipe.data.side, &|| ())?.classes().len();
        let floor = judge.reference().floor_at_a_glance()?;
        let real = Real {
            extractor: judge.extractor(),
            reference: judge.n_real(),
            samples: classes * self.study.samples.measure.per_class,
            floor: floor.map(|(images, of)| Floor {
                images,
                kid: of.kernel,
                fd: of.frechet,
                class_accuracy: of.class_accuracy,
            }),
        };
        let text = serde_json::to_string_pretty(&real).expect("plain values");
        Ok(sar_weights::write_bytes(&path, text.as_bytes())?)
    }
}

/// Ends the program where it was asked to stop; what training found wrong with its own numbers is for the
/// caller to judge.
fn trained(result: Result<(), TrainError>, what: &str) -> Result<Result<(), TrainError>> {
    match result {
        Err(TrainError::Stopped { .. } | TrainError::StoppedCaching { .. }) => stopped(),
        Err(
            error @ (TrainError::NotFinite(_)
            | TrainError::BadWeights { .. }
            | TrainError::BadMeasure { .. }),
        ) => Ok(Err(error)),
        Err(error) => Err(error).with_context(|| what.to_owned()),
        Ok(()) => Ok(Ok(())),
    }
}

fn stopped() -> ! {
    eprintln!("stopped; the same command goes on");
    process::exit(INTERRUPTED);
}

/// What is left, and how long it may take.
struct ToDo {
    left: usize,
    done: usize,
    since: Instant,
}

impl ToDo {
    fn of(folder: &Folder, ours: &[String]) -> Result<Self> {
        let mut left = 0;
        for arm in ours {
            for unit in folder.units(arm) {
                left += usize::from(unit.grid()?.is_none() && unit.failed()?.is_none());
            }
        }
        Ok(Self { left, done: 0, since: Instant::now() })
    }

    fn one_done(&mut self) {
        self.done += 1;
        self.left -= 1;
        let to_go = self.since.elapsed().as_secs_f64() * self.left as f64 / self.done as f64;
        let to_go = clock(Duration::from_secs_f64(to_go));
        eprintln!("study: {} of them to go, about {to_go}", self.left);
    }
}

/// On the way through the arms.
struct Walk<'a, A: AutodiffBackend> {
    folder: &'a Folder,
    workers: usize,
    stop: &'a AtomicBool,
    sampling: Sampling<'a, A::InnerBackend>,
    to_do: ToDo,
}

impl<A: AutodiffBackend> Walk<'_, A> {
    /// Does what is left of an arm, as far as its training goes well.
    fn arm(&mut self, arm: &str) -> Result<Went> {
        let folder = self.folder;
        let (mut went, mut units, mut grids) = (Went::Well, Vec::new(), Vec::new());
        for unit in folder.units(arm) {
            match self.trained_and_judged(&unit)? {
                Some(grid) => {
                    units.push(unit);
                    grids.push(grid);
                }
                None => went = Went::Badly,
            }
        }
        if grids.is_empty() {
            return Ok(went);
        }
        let settings = best(&grids, folder.study.samples.choose_by).clone();
        for (unit, grid) in units.iter().zip(&grids) {
            if !unit.is_measured_at(&settings)? {
                if unit.outcome()?.is_some() {
                    let Unit { arm, seed, .. } = unit;
                    let name = &folder.study.name;
                    eprintln!(
                        "study {name}: arm '{arm}', seed {seed}: measured again, at the setting that is best now"
                    );
                }
                if self.sampling.measure(unit, grid, &settings)?.is_none() {
                    stopped();
                }
            }
            unit.tidy()?;
        }
        Ok(went)
    }

    /// A unit's samples at every setting; nothing if its training went wrong.
    fn trained_and_judged(&mut self, unit: &Unit<'_>) -> Result<Option<Grid>> {
        if let Some(grid) = unit.grid()? {
            return Ok(Some(grid));
        }
        let Unit { arm, seed, run, .. } = unit;
        let study = &self.folder.study;
        let what = format!("arm '{arm}', seed {seed}");
        if let Some(failed) = unit.failed()? {
            eprintln!("study {}: {what}: diverged before: {}", study.name, failed.reason);
            return Ok(None);
        }
        if !has_ended(run) {
            eprintln!("study {}: {what}", study.name);
            self.sampling.code.trains(run)?;
            let recipe = study.recipe(study.arm(arm)?, *seed, &self.folder.path.join(START))?;
            let result =
                train_run::<A>(&recipe, run, (self.workers, self.stop), self.sampling.device);
            if let Err(error) = trained(result, &what)? {
                eprintln!("error: {what}: {error}");
                unit.fails(&error)?;
                self.to_do.one_done();
                return Ok(None);
            }
        }
        let mut trained = Trained::of(run).with_context(|| what.clone())?;
        if *arm == START && *seed != study.seeds[0] {
            // It was trained once.
            trained.wall_s = 0.0;
        }
        let grid = self.sampling.judge_grid(unit, trained).with_context(|| what.clone())?;
        let Some(grid) = grid else { stopped() };
        self.to_do.one_done();
        Ok(Some(grid))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::study::file::tests::small;
    use crate::study::results::tests::finished;
    use crate::study::unit::{Outcome, Row, write};

    #[test]
    fn an_arm_is_finished_when_all_seeds_are_measured_at_its_best_setting() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().into();
        let folder = Folder { study: small(), path, with: Vec::new(), json: None };
        let Finished { outcomes, mut grids, .. } = finished("control", &[1.0, 3.0]);
        // At a guidance of 4, as measured, the mean of both seeds is 2, at 6 it is 2.5.
        let other = |kid: f64| Row {
            settings: json!({ "guidance": 6.0 }),
            kid,
            ..grids[0].rows[0].clone()
        };
        let others = [other(0.5), other(4.5)];
        for ((grid, other), outcome) in grids.iter_mut().zip(others).zip(&outcomes) {
            grid.rows.push(other);
            let unit = folder.unit("control", outcome.seed);
            write(&unit.folder.join("grid.json"), grid).unwrap();
            write(&unit.folder.join("result.json"), outcome).unwrap();
        }
        let is_finished = || folder.finished("control").unwrap().is_some();
        let unit = folder.unit("control", 1);
        let is_measured_at = |guidance: f64| unit.is_measured_at(&json!({ "guidance": guidance }));
        assert!(is_finished());
        assert!(is_measured_at(4.0).unwrap() && !is_measured_at(6.0).unwrap());
        assert!(!folder.unit("control", 3).is_measured_at(&json!({ "guidance": 4.0 })).unwrap());

        // The second seed comes out otherwise when it is trained again: now 6 is best, and no seed was measured there.
        grids[1].rows[0].kid = 9.0;
        let second = folder.unit("control", 2).folder;
        write(&second.join("grid.json"), &grids[1]).unwrap();
        assert!(!is_finished());
        let at_6 = |seed: usize| Outcome {
            settings: json!({ "guidance": 6.0 }),
            ..outcomes[seed].clone()
        };
        write(&second.join("result.json"), &at_6(1)).unwrap();
        assert!(!is_finished(), "a mean of two settings");
        write(&unit.folder.join("result.json"), &at_6(0)).unwrap();
        assert!(is_finished());
    }
}
