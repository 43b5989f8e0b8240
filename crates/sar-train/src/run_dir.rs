//! The files of a run.
//!
//! ```text
//! recipe.toml                      the resolved recipe
//! data.json                        what the images were at the start
//! unreadable.json                  which of them could not be read, where there are any
//! metrics.jsonl                    one line per logged step, measurement, skipped step, and set of samples that is judged
//! checkpoints/<stage>-<step>.safetensors
//! tokenizer.safetensors, backbone-pretrain.safetensors, backbone-sar.safetensors,
//! backbone-control.safetensors     the weights that each stage ends with
//! *-average.safetensors            their averages, where the recipe keeps one
//! tensorboard/                     metrics.jsonl and pictures for TensorBoard, where the recipe asks for them
//! latents/                         latents of the tokenizer, where the recipe caches them
//! sheet-<stage>-<step>.png         what the weights made at each measurement: reconstructions, or samples
//! reconstructions.png              originals and every scale
//! samples-before.png, samples-after.png
//! report.json
//! run.lock                         locked by the process that trains
//! stop                             made by others: asks the run for a checkpoint and its end
//! ```

use std::fs::{self, File, TryLockError};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use sar_data::{Fingerprint, UnreadableImage};
use sar_pipeline::{RgbImage, to_png};
use sar_weights::{remove_stale, write_bytes};

use crate::tensorboard::{EventFiles, PICTURES};
use crate::{Recipe, StageId, TrainError};

/// The folder of a run, locked as long as this lives; in the hands of a rank that does not lead, nothing is
/// ever written to it.
#[derive(Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
    lock: Option<File>,
}

const RECIPE: &str = "recipe.toml";
const DATA: &str = "data.json";
const UNREADABLE: &str = "unreadable.json";
const LOCK: &str = "run.lock";
const STOP: &str = "stop";
/// Whoever asks whether a run is going on holds its lock for an instant.
const LOCK_TRIES: u32 = 5;
const LOCK_PAUSE: Duration = Duration::from_millis(20);
const CHECKPOINTS: &str = "checkpoints";

impl RunDir {
    /// Makes a new run's folder, with its parents, and writes the recipe and what the images are.
    pub(crate) fn create(
        path: &Path,
        recipe: &Recipe,
        data: &Fingerprint,
    ) -> Result<Self, TrainError> {
        let run_dir =
            |problem: &str| TrainError::RunDir { path: path.into(), problem: problem.into() };
        if path.exists() {
            if !path.is_dir() {
                return Err(run_dir("is a file; choose another --run-dir"));
            }
            if path.join(RECIPE).is_file() {
                return Err(run_dir(
                    "already holds a run; go on with --resume, or choose another --run-dir",
                ));
            }
            let mut entries =
                fs::read_dir(path).map_err(TrainError::io(path, "cannot be listed"))?;
            // A start that was killed may leave these before there is a recipe.
            let ours = |entry: &fs::DirEntry| {
                let name = entry.file_name();
                let is_empty = || fs::read_dir(entry.path()).is_ok_and(|mut e| e.next().is_none());
                name == LOCK
                    || name == DATA
                    || name == UNREADABLE
                    || name.to_string_lossy().ends_with(".partial")
                    || (name == CHECKPOINTS && is_empty())
            };
            if entries.any(|entry| entry.is_ok_and(|entry| !ours(&entry))) {
                return Err(run_dir("already holds files; choose another --run-dir"));
            }
        }
        fs::create_dir_all(path)
            .map_err(TrainError::io(path, "cannot be made, choose another --run-dir"))?;
        let dir = Self::locked(path)?;
        dir.make_ready()?;
        let data = serde_json::to_string_pretty(data).expect("plain values");
        dir.write(DATA, data.as_bytes())?;
        // The last: a folder with a recipe is a run.
        dir.write(RECIPE, recipe.to_toml().as_bytes())?;
        Ok(dir)
    }

    /// Opens the folder of a run that goes on.
    pub(crate) fn reopen(path: &Path) -> Result<Self, TrainError> {
        if !path.join(RECIPE).is_file() {
            let problem = "holds no run to resume: there is no recipe.toml".into();
            return Err(TrainError::RunDir { path: path.into(), problem });
        }
        let dir = Self::locked(path)?;
        dir.make_ready()?;
        let stop = dir.file(STOP);
        if stop.exists() {
            fs::remove_file(&stop).map_err(TrainError::io(&stop, "cannot be removed"))?;
        }
        Ok(dir)
    }

    /// The folder as ranks have it that do not lead.
    pub(crate) fn of_others(path: &Path) -> Self {
        Self { path: path.into(), lock: None }
    }

    /// Whether this process writes here.
    pub(crate) fn is_ours(&self) -> bool {
        self.lock.is_some()
    }

    /// Writes the recipe where it differs from the run's in what may change.
    pub(crate) fn update_recipe(&self, recipe: &Recipe) -> Result<(), TrainError> {
        let (path, toml) = (self.recipe(), recipe.to_toml());
        if fs::read_to_string(&path).is_ok_and(|known| known == toml) {
            return Ok(());
        }
        Ok(write_bytes(&path, toml.as_bytes())?)
    }

    /// What the images were when the run started.
    pub(crate) fn data(&self) -> Result<Fingerprint, TrainError> {
        data_of(&self.path)
    }

    /// The images that the run has found unreadable so far.
    pub(crate) fn unreadable(&self) -> Result<Vec<UnreadableImage>, TrainError> {
        unreadable_of(&self.path)
    }

    /// Writes down the images that were found unreadable, where there are more than are known.
    pub(crate) fn remember_unreadable(&self, images: &[UnreadableImage]) -> Result<(), TrainError> {
        if !self.is_ours() || images.len() == self.unreadable()?.len() {
            return Ok(());
        }
        let json = serde_json::to_string_pretty(images).expect("plain values");
        self.write(UNREADABLE, json.as_bytes())?;
        Ok(())
    }

    /// Whether somebody has put a file `stop` into the folder.
    pub(crate) fn is_asked_to_stop(&self) -> bool {
        self.file(STOP).exists()
    }

    fn locked(path: &Path) -> Result<Self, TrainError> {
        let file = path.join(LOCK);
        let lock = File::options()
            .create(true)
            .append(true)
            .open(&file)
            .map_err(TrainError::io(&file, "cannot be written"))?;
        let mut locked = lock.try_lock();
        for _ in 1..LOCK_TRIES {
            if !matches!(locked, Err(TryLockError::WouldBlock)) {
                break;
            }
            thread::sleep(LOCK_PAUSE);
            locked = lock.try_lock();
        }
        match locked {
            Ok(()) => Ok(Self { path: path.into(), lock: Some(lock) }),
            Err(TryLockError::WouldBlock) => Err(TrainError::RunDir {
                path: path.into(),
                problem: "is in use by another process; wait for it, or choose another --run-dir"
                    .into(),
            }),
            Err(TryLockError::Error(error)) => {
                Err(TrainError::io(&file, "cannot be locked")(error))
            }
        }
    }

    /// Makes the folder of checkpoints, and removes what is not whole: nobody else writes here, it was left by
    /// a run that was killed.
    fn make_ready(&self) -> Result<(), TrainError> {
        let path = self.checkpoints();
        fs::create_dir_all(&path).map_err(TrainError::io(&path, "cannot be made"))?;
        for folder in [&self.path, &path] {
            remove_stale(folder)?;
        }
        Ok(())
    }

    /// The folder of checkpoints.
    pub(crate) fn checkpoints(&self) -> PathBuf {
        checkpoints_of(&self.path)
    }

    /// The recipe.
    pub(crate) fn recipe(&self) -> PathBuf {
        recipe_of(&self.path)
    }

    /// A file in the folder.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes a file whole or not at all.
    pub(crate) fn write(&self, name: &str, content: &[u8]) -> Result<PathBuf, TrainError> {
        let path = self.file(name);
        if self.is_ours() {
            write_bytes(&path, content)?;
        }
        Ok(path)
    }

    /// Writes an image as PNG.
    pub(crate) fn write_png(&self, name: &str, image: &RgbImage) -> Result<PathBuf, TrainError> {
        self.write(name, &to_png(image))
    }
}

/// The recipe in a run's folder.
pub(crate) fn recipe_of(run: &Path) -> PathBuf {
    run.join(RECIPE)
}

/// The folder of a run's checkpoints.
pub(crate) fn checkpoints_of(run: &Path) -> PathBuf {
    run.join(CHECKPOINTS)
}

/// Whether a run says what its images were.
pub(crate) fn has_data(run: &Path) -> bool {
    run.join(DATA).is_file()
}

/// What the images of a run were when it started.
pub(crate) fn data_of(run: &Path) -> Result<Fingerprint, TrainError> {
    let path = run.join(DATA);
    let text = fs::read_to_string(&path).map_err(TrainError::io(&path, "cannot be read"))?;
    serde_json::from_str(&text).map_err(|error| TrainError::RunDir {
        path,
        problem: format!("is no fingerprint of images: {error}"),
    })
}

/// The images that a run has found unreadable so far.
pub(crate) fn unreadable_of(run: &Path) -> Result<Vec<UnreadableImage>, TrainError> {
    let path = run.join(UNREADABLE);
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = fs::read_to_string(&path).map_err(TrainError::io(&path, "cannot be read"))?;
    serde_json::from_str(&text).map_err(|error| TrainError::RunDir {
        path,
        problem: format!("is no list of unreadable images: {error}"),
    })
}

/// metrics.jsonl: one object per line, in the order of stages and steps.
#[derive(Debug)]
pub(crate) struct Metrics {
    path: PathBuf,
    /// None where the folder is not ours.
    file: Option<File>,
    events: Option<EventFiles>,
}

impl Metrics {
    /// Opens the file of a run, and with `tensorboard` its event files.
    pub(crate) fn open(dir: &RunDir, tensorboard: bool) -> Result<Self, TrainError> {
        let path = dir.file("metrics.jsonl");
        if !dir.is_ours() {
            return Ok(Self { path, file: None, events: None });
        }
        let file = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(TrainError::io(&path, "cannot be opened"))?;
        let events = tensorboard.then(|| EventFiles::new(dir.file("tensorboard")));
        Ok(Self { path, file: Some(file), events })
    }

    /// Appends one object with the fields `stage` and `step`.
    pub(crate) fn line(&mut self, value: &serde_json::Value) -> Result<(), TrainError> {
        let Some(file) = &mut self.file else { return Ok(()) };
        // One write per line, so that a kill leaves at most the last one torn.
        let line = format!("{value}\n");
        file.write_all(line.as_bytes()).map_err(TrainError::io(&self.path, "cannot be written"))?;
        self.events.as_mut().map_or(Ok(()), |events| events.line(value))
    }

    /// A picture for event files.
    pub(crate) fn picture(&mut self, name: &str, image: &RgbImage) -> Result<(), TrainError> {
        self.events.as_mut().map_or(Ok(()), |events| events.picture(PICTURES, 0, name, image))
    }

    /// What the weights of a stage make after a step, for event files.
    pub(crate) fn sheet(
        &mut self,
        stage: StageId,
        step: u64,
        sheet: &RgbImage,
    ) -> Result<(), TrainError> {
        let name = match stage {
            StageId::Tokenizer => "reconstructions",
            StageId::Pretrain | StageId::Sar | StageId::Control => "samples",
        };
        self.events
            .as_mut()
            .map_or(Ok(()), |events| events.picture(stage.name(), step, name, sheet))
    }

    /// Makes all lines survive a power failure.
    pub(crate) fn flush(&mut self) -> Result<(), TrainError> {
        let Some(file) = &self.file else { return Ok(()) };
        file.sync_all().map_err(TrainError::io(&self.path, "cannot be written"))
    }

    /// Appends what a run measures anew when it goes on behind the end of a stage, unless the stage has a line
    /// with this field already.
    pub(crate) fn line_once(
        &mut self,
        field: &str,
        value: &serde_json::Value,
    ) -> Result<(), TrainError> {
        if self.file.is_none() {
            return Ok(());
        }
        let text = self.text()?;
        // Where no stage made a step, nothing has removed a torn line.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let is_there = text[..whole].lines().any(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
            line["stage"] == value["stage"] && line.get(field).is_some()
        });
        if is_there {
            return Ok(());
        }
        self.cut(whole, text.len())?;
        self.line(value)
    }

    /// Removes what a stage that goes on at step `done` will write again: its lines from there on,
    /// everything behind them, and a torn last line.
    pub(crate) fn rewind(&mut self, stage: StageId, done: u64) -> Result<(), TrainError> {
        if self.file.is_none() {
            return Ok(());
        }
        let text = self.text()?;
        let mut kept = 0;
        for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            let Ok(value) = serde_json::from_str::<serde_json::Value>(line) else { break };
            if value["stage"] == stage.name()
                && value["step"].as_u64().is_none_or(|step| step >= done)
            {
                break;
            }
            kept += line.len();
        }
        self.cut(kept, text.len())?;
        self.events.as_mut().map_or(Ok(()), |events| events.goes_on(stage.name(), done))
    }

    fn text(&self) -> Result<String, TrainError> {
        fs::read_to_string(&self.path).map_err(TrainError::io(&self.path, "cannot be read"))
    }

    /// Keeps so many bytes of those that there are.
    fn cut(&mut self, kept: usize, of: usize) -> Result<(), TrainError> {
        let Some(file) = self.file.as_mut().filter(|_| kept < of) else { return Ok(()) };
        let cut = |file: &mut File| {
            file.set_len(kept as u64)?;
            file.seek(SeekFrom::End(0))
        };
        cut(file).map(drop).map_err(TrainError::io(&self.path, "cannot be cut"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{data, run_dir};
    use serde_json::json;

    #[test]
    fn metrics_are_rewound_to_a_step() {
        let (_folder, dir) = run_dir();
        let mut metrics = Metrics::open(&dir, false).unwrap();
        let (a, b, c) = (StageId::Tokenizer, StageId::Pretrain, StageId::Sar);
        for (stage, step) in [(a, 0), (a, 10), (b, 0), (b, 10), (b, 10), (b, 20)] {
            metrics.line(&json!({ "stage": stage, "step": step })).unwrap();
        }
        metrics.file.as_mut().unwrap().write_all(b"{\"stage\":\"pretrain\",\"st").unwrap();
        let left = |metrics: &mut Metrics, stage, done| {
            metrics.rewind(stage, done).unwrap();
            fs::read_to_string(&metrics.path).unwrap().lines().count()
        };
        assert_eq!(left(&mut metrics, c, 0), 6);
        assert_eq!(left(&mut metrics, b, 30), 6);
        assert_eq!(left(&mut metrics, b, 11), 5);
        metrics.line(&json!({ "stage": b, "step": 20 })).unwrap();
        assert_eq!(left(&mut metrics, b, 10), 3);
        assert_eq!(left(&mut metrics, a, 10), 1);
    }

    #[test]
    fn figures_behind_a_stage_are_there_once() {
        let (_folder, dir) = run_dir();
        let mut metrics = Metrics::open(&dir, false).unwrap();
        let text = |metrics: &Metrics| fs::read_to_string(&metrics.path).unwrap();
        let figures = |stage: StageId, kid: f64| json!({ "stage": stage, "step": 9, "kid": kid });
        let (a, b) = (StageId::Pretrain, StageId::Sar);
        metrics.line(&json!({ "stage": a, "step": 9, "teacher": 1.0 })).unwrap();
        metrics.file.as_mut().unwrap().write_all(b"{\"stage\":\"pretrain\",\"kid\":1").unwrap();
        metrics.line_once("kid", &figures(a, 0.5)).unwrap();
        metrics.line(&json!({ "stage": b, "step": 0, "student": 2.0 })).unwrap();
        let before = text(&metrics);
        assert_eq!(before.lines().count(), 3, "{before}");
        assert_eq!(before.lines().nth(1).unwrap(), figures(a, 0.5).to_string());
        // The run has stopped behind the first stage, in the second: figures stay in front of its lines.
        metrics.rewind(a, 10).unwrap();
        metrics.line_once("kid", &figures(a, 0.5)).unwrap();
        assert_eq!(text(&metrics), before);
        // Those of another stage are others.
        metrics.line_once("kid", &figures(b, 0.5)).unwrap();
        assert_eq!(text(&metrics).lines().count(), 4);
        // What a stage makes again, it is measured for again.
        metrics.rewind(a, 9).unwrap();
        assert_eq!(text(&metrics), "");
        metrics.line_once("kid", &figures(a, 0.25)).unwrap();
        assert_eq!(text(&metrics), format!("{}\n", figures(a, 0.25)));
    }

    #[test]
    fn what_a_killed_start_left_is_removed_by_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let left = folder.path().join(format!(".{DATA}.4294967295-0.partial"));
        fs::write(&left, "torn").unwrap();
        let recipe = Recipe::load("emoji-quick", &[]).unwrap();
        RunDir::create(folder.path(), &recipe, &data()).unwrap();
        assert!(!left.exists());
    }

    #[test]
    fn a_run_is_not_overwritten_and_not_entered_twice() {
        let (_folder, dir) = run_dir();
        let recipe = Recipe::load("emoji-quick", &[]).unwrap();
        let error = |result: Result<RunDir, TrainError>| result.unwrap_err().to_string();
        assert!(error(RunDir::create(&dir.path, &recipe, &data())).contains("--resume"));
        assert!(error(RunDir::reopen(&dir.path)).contains("in use"));
        let path = dir.path.clone();
        drop(dir);
        // A run that goes on has nothing more to do with who stopped it.
        fs::write(path.join("stop"), "").unwrap();
        let dir = RunDir::reopen(&path).unwrap();
        assert!(!dir.is_asked_to_stop());
        fs::write(path.join("stop"), "").unwrap();
        assert!(dir.is_asked_to_stop());
        drop(dir);
        // Nor with who looks whether it is going on.
        let looks = File::open(path.join("run.lock")).unwrap();
        looks.lock_shared().unwrap();
        let goes = thread::spawn({
            let path = path.clone();
            move || RunDir::reopen(&path).map(drop)
        });
        thread::sleep(Duration::from_millis(30));
        looks.unlock().unwrap();
        goes.join().unwrap().unwrap();
        assert!(error(RunDir::reopen(path.parent().unwrap())).contains("no run to resume"));
    }
}
