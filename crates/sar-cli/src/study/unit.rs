//! An arm with one seed of training: its weights, how they do at every setting of the sampler, and what
//! they amount to at the best of these. Each is a file, whole or absent, so that nothing that is done is
//! done again.
//!
//! ```text
//! DIR/ARM/SEED/            the run
//! DIR/ARM/SEED.code.json   the programs that trained it
//! DIR/ARM/SEED/failed.json where its training went wrong; nothing else comes then
//! DIR/ARM/SEED/grid.json   what its losses are, and its samples at every setting; grid-part.json on the way
//! DIR/ARM/SEED/samples.png
//! DIR/ARM/SEED/result.json what is measured at the arm's best setting; the last
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::{Context, Result};
use burn::tensor::backend::{AutodiffBackend, Backend};
use sar_core::SeedTree;
use sar_eval::FeatureSet;
use sar_exchange::Group;
use sar_pipeline::{Pipeline, Request, RgbImage, grid, magnification};
use sar_rollout::Sampler;
use sar_train::error::NotFinite;
use sar_train::event::{Event, Observer};
use sar_train::quality::Judge;
use sar_train::report::Report;
use sar_train::{Execution, Recipe, TrainError, train};
use sar_weights::write_bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::code::Code;
use super::file::{Draw, Measure, Samples};
use crate::events::Events;
use crate::generation::save;
use crate::interrupt;
use crate::progress::Progress;

/// Samples of a class that are shown, at least two being drawn.
const SHOWN: usize = 2;

/// An arm and a seed, and where it lies.
pub(super) struct Unit<'a> {
    pub(super) arm: &'a str,
    pub(super) seed: u64,
    /// Its results.
    pub(super) folder: PathBuf,
    /// Its weights.
    pub(super) run: PathBuf,
}

/// A unit that is trained, and its samples at every setting.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Grid {
    pub(super) trained: Trained,
    pub(super) rows: Vec<Row>,
    /// Seconds that drawing and judging took.
    pub(super) wall_s: f64,
    /// What drew and judged; nothing where an older program did.
    #[serde(default)]
    pub(super) code: Vec<Code>,
}

/// Where a training went wrong.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Failed {
    pub(super) seed: u64,
    pub(super) stage: String,
    pub(super) step: u64,
    pub(super) reason: String,
    pub(super) code: Vec<Code>,
}

/// What training left.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Trained {
    pub(super) steps: u64,
    pub(super) seconds_per_step: f64,
    /// Of the whole run.
    pub(super) wall_s: f64,
    pub(super) teacher_loss: f64,
    pub(super) student_loss: Option<f64>,
    pub(super) exposure_gap: Option<f64>,
    pub(super) scales: Vec<Scale>,
    /// What trained it; nothing where an older program did.
    #[serde(default)]
    pub(super) code: Vec<Code>,
}

/// Held-out losses of a scale; the first has no student.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Scale {
    pub(super) scale: String,
    pub(super) teacher_loss: f64,
    pub(super) student_loss: Option<f64>,
    pub(super) exposure_gap: Option<f64>,
}

/// Samples at one setting, out of those that settings are chosen by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Row {
    pub(super) settings: Value,
    pub(super) kid: f64,
    pub(super) fd: f64,
    pub(super) class_accuracy: Option<f64>,
}

/// All that is known of a unit.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Outcome {
    pub(super) arm: String,
    pub(super) seed: u64,
    pub(super) settings: Value,
    pub(super) kid: f64,
    pub(super) fd: f64,
    pub(super) class_accuracy: Option<f64>,
    pub(super) precision: Option<f64>,
    pub(super) recall: Option<f64>,
    pub(super) trained: Trained,
    /// Seconds that everything took: training, choosing, measuring.
    pub(super) wall_s: f64,
    /// What measured it.
    pub(super) code: Code,
}

impl Unit<'_> {
    pub(super) fn grid(&self) -> Result<Option<Grid>> {
        read(&self.folder.join("grid.json"))
    }

    /// What of the grid a killed study has left.
    fn part_of_grid(&self) -> PathBuf {
        self.folder.join("grid-part.json")
    }

    pub(super) fn failed(&self) -> Result<Option<Failed>> {
        read(&self.folder.join("failed.json"))
    }

    /// Takes down that training went wrong, if that is what the error says.
    pub(super) fn fails(&self, error: &TrainError) -> Result<()> {
        let (stage, step) = match error {
            TrainError::NotFinite(NotFinite { stage, step, .. })
            | TrainError::BadWeights { stage, step, .. }
            | TrainError::BadMeasure { stage, step, .. } => (stage.to_string(), *step),
            _ => (String::new(), 0),
        };
        let code = Code::that_trained(&self.run)?;
        let (seed, reason) = (self.seed, error.to_string());
        let failed = Failed { seed, stage, step, reason, code };
        write(&self.folder.join("failed.json"), &failed)
    }

    pub(super) fn outcome(&self) -> Result<Option<Outcome>> {
        read(&self.folder.join("result.json"))
    }

    /// Whether it was measured at a setting of the sampler.
    pub(super) fn is_measured_at(&self, settings: &Value) -> Result<bool> {
        Ok(self.outcome()?.is_some_and(|outcome| outcome.settings == *settings))
    }

    /// Whether anything was found of it.
    pub(super) fn has_results(&self) -> bool {
        let names = ["grid-part.json", "grid.json", "result.json", "failed.json"];
        names.iter().any(|name| self.folder.join(name).is_file())
    }

    pub(super) fn picture(&self) -> PathBuf {
        self.folder.join("samples.png")
    }

    /// Removes the checkpoints of what is done, which nothing goes on from; the weights stay.
    pub(super) fn tidy(&self) -> Result<()> {
        let path = self.run.join("checkpoints");
        if path.is_dir() {
            fs::remove_dir_all(&path).with_context(|| path.display().to_string())?;
        }
        Ok(())
    }
}

/// A file that is there.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    if !path.is_file() {
        return Ok(None);
    }
    let context = || path.display().to_string();
    let text = fs::read_to_string(path).with_context(context)?;
    Ok(Some(serde_json::from_str(&text).with_context(context)?))
}

pub(super) fn write(path: &Path, value: &impl Serialize) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    let text = serde_json::to_string_pretty(value).expect("plain values");
    Ok(write_bytes(path, (text + "\n").as_bytes())?)
}

/// Trains a run, or what is left of it.
pub(super) fn train_run<A: AutodiffBackend>(
    recipe: &Recipe,
    run: &Path,
    (workers, stop): (usize, &AtomicBool),
    device: &A::Device,
) -> Result<(), TrainError> {
    let resume = run.join("recipe.toml").is_file();
    let execution = Execution { resume, workers, stop, group: &Group::alone() };
    let mut progress = Few(Progress::new(Events::NONE));
    let trained = train::<A>(recipe, run, execution, device, &mut progress);
    progress.0.clear();
    trained.map(|_| ())
}

/// Of a run's events those of interest among many runs.
struct Few(Progress);

impl Observer for Few {
    fn event(&mut self, event: &Event<'_>) {
        if let Event::StageStarted { .. }
        | Event::Step { .. }
        | Event::StageEnded { .. }
        | Event::Latents { .. }
        | Event::Warning { .. } = event
        {
            self.0.event(event);
        }
    }
}

impl Trained {
    /// Reads a run's report; its last stage is the one that an arm is.
    pub(super) fn of(run: &Path) -> Result<Self> {
        let path = run.join("report.json");
        let report: Option<Report> = read(&path)?;
        let report = report.with_context(|| format!("{}: is not there", path.display()))?;
        let (steps, seconds) = report.stages.last().map_or((0, 0.0), |of| (of.steps, of.wall_s));
        let held_out = &report.held_out.after;
        let scales = held_out.by_scale.iter().map(|of| Scale {
            scale: of.scale.clone(),
            teacher_loss: of.figures.teacher_loss,
            student_loss: of.figures.student_loss,
            exposure_gap: of.figures.exposure_gap,
        });
        Ok(Self {
            steps,
            seconds_per_step: seconds / steps.max(1) as f64,
            wall_s: report.wall_s,
            teacher_loss: held_out.figures.teacher_loss,
            student_loss: held_out.figures.student_loss,
            exposure_gap: held_out.figures.exposure_gap,
            scales: scales.collect(),
            code: Code::that_trained(run)?,
        })
    }
}

/// Draws and judges samples of weights.
pub(super) struct Sampling<'a, B: Backend> {
    pub(super) judge: &'a Judge<B>,
    pub(super) samples: &'a Samples,
    /// Images that are drawn together.
    pub(super) batch: usize,
    pub(super) device: &'a B::Device,
    pub(super) code: &'a Code,
}

impl<B: Backend> Sampling<'_, B> {
    /// Judges a unit's weights at every setting that they were not judged at yet, and writes what was found,
    /// setting by setting; nothing if asked to stop.
    pub(super) fn judge_grid(&self, unit: &Unit<'_>, trained: Trained) -> Result<Option<Grid>> {
        let pipeline = Pipeline::<B>::open_run(&unit.run, self.device)?;
        let settings = self.samples.sweep().expect("checked");
        let settings = settings.samplers(pipeline.backbone().sampler);
        let part = unit.part_of_grid();
        let known: Option<Grid> = read(&part)?;
        let (mut rows, mut code, before) =
            known.map_or_else(Default::default, |grid| (grid.rows, grid.code, grid.wall_s));
        if !code.contains(self.code) {
            code.push(self.code.clone());
        }
        let mut grid = Grid { trained, rows: Vec::new(), wall_s: before, code };
        let start = Instant::now();
        let draw = self.samples.selection;
        for (_, settings, sampler) in settings {
            let known = rows.iter().position(|row: &Row| row.settings == settings);
            if let Some(known) = known {
                grid.rows.push(rows.swap_remove(known));
                continue;
            }
            let drawn = Drawn::new(&pipeline, draw, unit.seed);
            let Some(set) = self.look(&drawn, sampler, |_| ())? else { return Ok(None) };
            let glance = self.judge.reference().glance(&set, drawn.labels().as_deref())?;
            grid.rows.push(Row {
                settings,
                kid: rounded(glance.kernel.expect("features are kept")),
                fd: rounded(glance.frechet),
                class_accuracy: glance.class_accuracy.map(rounded),
            });
            grid.wall_s = before + start.elapsed().as_secs_f64();
            write(&part, &grid)?;
        }
        write(&unit.folder.join("grid.json"), &grid)?;
        if part.is_file() {
            fs::remove_file(&part).with_context(|| part.display().to_string())?;
        }
        Ok(Some(grid))
    }

    /// Measures a unit's weights at a setting; nothing if asked to stop.
    pub(super) fn measure(
        &self,
        unit: &Unit<'_>,
        grid: &Grid,
        settings: &Value,
    ) -> Result<Option<Outcome>> {
        let start = Instant::now();
        let pipeline = Pipeline::<B>::open_run(&unit.run, self.device)?;
        let sweep = self.samples.sweep().expect("checked");
        let samplers = sweep.samplers(pipeline.backbone().sampler);
        let (_, _, sampler) = samplers
            .into_iter()
            .find(|(_, other, _)| other == settings)
            .context("a setting that is not in the grid")?;
        let drawn = Drawn::new(&pipeline, self.samples.measure, unit.seed);
        let (mut shown, mut numbers) = (Vec::new(), drawn.wanted.iter());
        let set = self.look(&drawn, sampler, |images| {
            let first = images.iter().zip(&mut numbers).filter(|(_, (_, i))| *i < SHOWN);
            shown.extend(first.map(|(image, _)| image.clone()));
        })?;
        let Some(set) = set else { return Ok(None) };
        let quality = self.judge.reference().compare(&set, drawn.labels().as_deref())?;
        save(&strip(&shown), &unit.picture())?;
        let outcome = Outcome {
            arm: unit.arm.into(),
            seed: unit.seed,
            settings: settings.clone(),
            kid: quality.kernel.expect("features are kept"),
            fd: quality.frechet,
            class_accuracy: quality.class_accuracy,
            precision: quality.precision,
            recall: quality.recall,
            trained: grid.trained.clone(),
            wall_s: grid.trained.wall_s + grid.wall_s + start.elapsed().as_secs_f64(),
            code: self.code.clone(),
        };
        write(&unit.folder.join("result.json"), &outcome)?;
        Ok(Some(outcome))
    }

    /// The features of a seed's samples, which are also handed to `seen`; nothing if asked to stop.
    fn look(
        &self,
        drawn: &Drawn<'_, B>,
        sampler: Sampler,
        mut seen: impl FnMut(&[RgbImage]),
    ) -> Result<Option<FeatureSet>> {
        let mut n = 0;
        let images = drawn.images(sampler, self.batch).inspect(|images| {
            n += images.len();
            seen(images);
        });
        let set = self.judge.look(images);
        let is_cut = interrupt::has_come() && n < drawn.wanted.len();
        if is_cut { Ok(None) } else { Ok(Some(set?)) }
    }
}

/// Twelve digits: such a number is read as it was written, however often a killed study goes on.
fn rounded(x: f64) -> f64 {
    format!("{x:.11e}").parse().unwrap_or(x)
}

/// The samples of a seed.
struct Drawn<'a, B: Backend> {
    pipeline: &'a Pipeline<B>,
    root: SeedTree,
    /// Class and number of each.
    wanted: Vec<(usize, usize)>,
}

impl<'a, B: Backend> Drawn<'a, B> {
    fn new(pipeline: &'a Pipeline<B>, draw: Draw, seed: u64) -> Self {
        let classes = 0..pipeline.classes().len();
        let wanted = classes.flat_map(|class| (0..draw.per_class).map(move |i| (class, i)));
        let root = SeedTree::new(draw.seed).child("study").at(seed);
        Self { pipeline, root, wanted: wanted.collect() }
    }

    /// The classes that are asked for, where there are several.
    fn labels(&self) -> Option<Vec<usize>> {
        let labels = self.wanted.iter().map(|(label, _)| *label);
        (self.pipeline.classes().len() > 1).then(|| labels.collect())
    }

    /// Batch by batch, until all are drawn or the program is asked to stop.
    fn images(&self, sampler: Sampler, batch: usize) -> impl Iterator<Item = Vec<RgbImage>> {
        let scales = &self.pipeline.backbone().scales;
        let batches = self.wanted.chunks(batch).take_while(|_| !interrupt::has_come());
        batches.map(move |part| {
            let request = Request::of(self.root, part.iter().copied(), scales.clone(), sampler);
            self.pipeline.sample(&request)
        })
    }
}

/// The first samples of every class, a column each; they come class by class.
fn strip(images: &[RgbImage]) -> RgbImage {
    let columns = images.len() / SHOWN;
    let places = (0..SHOWN).flat_map(|row| (0..columns).map(move |class| class * SHOWN + row));
    let shown: Vec<RgbImage> = places.map(|at| images[at].clone()).collect();
    grid(&shown, columns, 2, magnification(shown[0].width()).min(2))
}

/// The setting whose mean over seeds is lowest.
pub(super) fn best(grids: &[Grid], by: Measure) -> &Value {
    let rows = 0..grids[0].rows.len();
    let value = |row: &Row| by.of(row.kid, row.fd);
    let mean = |at: usize| grids.iter().map(|grid| value(&grid.rows[at])).sum::<f64>();
    let best = rows.min_by(|a, b| mean(*a).total_cmp(&mean(*b)));
    &grids[0].rows[best.expect("a setting at least")].settings
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_best_setting_is_that_of_all_seeds() {
        let grid = |rows: [[f64; 2]; 3]| Grid {
            trained: Trained {
                steps: 1,
                seconds_per_step: 1.0,
                wall_s: 1.0,
                teacher_loss: 1.0,
                student_loss: None,
                exposure_gap: None,
                scales: Vec::new(),
                code: Vec::new(),
            },
            rows: rows
                .into_iter()
                .enumerate()
                .map(|(i, [kid, fd])| Row {
                    settings: json!({ "guidance": i }),
                    kid,
                    fd,
                    class_accuracy: None,
                })
                .collect(),
            wall_s: 1.0,
            code: Vec::new(),
        };
        // Each seed alone would take the first or the third.
        let grids = [
            grid([[0.1, 9.0], [0.2, 7.0], [0.9, 8.0]]),
            grid([[0.8, 9.0], [0.2, 9.0], [0.1, 1.0]]),
        ];
        assert_eq!(best(&grids, Measure::Kid), &json!({ "guidance": 1 }));
        assert_eq!(best(&grids, Measure::Fd), &json!({ "guidance": 2 }));
        assert_eq!(best(&grids[..1], Measure::Kid), &json!({ "guidance": 0 }));
    }
}
