//! Checkpoints inside a stage: weights, optimizer moments, averages and the step, at full precision.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use burn::module::Module;
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use sar_weights::{Layout, NamedTensors, bind, collect};
use serde::de::DeserializeOwned;

use crate::TrainError;
use crate::ema::Ema;
use crate::event::{Event, Observer};
use crate::loss_scale::LossScale;
use crate::optim::AdamW;
use crate::run_dir::RunDir;

/// The stages of a run, in their order.
pub(crate) const STAGES: [&str; 4] = ["tokenizer", "teacher", "sar", "control"];

/// The newest checkpoints of a stage that are kept, beside the best.
const KEPT: usize = 2;

/// How far a stage is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    /// Steps made.
    pub(crate) step: u64,
    /// Time that they took, in all processes.
    pub(crate) wall: Duration,
    /// Time that the run took so far, in all processes.
    pub(crate) run_wall: Duration,
    /// The best held-out measure so far.
    pub(crate) best: Option<Best>,
}

/// A held-out measure and the step after which it was taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Best {
    pub(crate) step: u64,
    pub(crate) value: f64,
}

/// What a stage goes on with.
pub(crate) struct Restored<M> {
    pub(crate) model: M,
    pub(crate) ema: Option<Ema<M>>,
}

/// A point of a stage that training goes on from.
pub(crate) struct Checkpoint {
    path: PathBuf,
    pub(crate) progress: Progress,
    loss_scale: Option<LossScale>,
    model: NamedTensors,
    average: NamedTensors,
    moments: BTreeMap<String, TensorData>,
    task: NamedTensors,
}

const STAGE: &str = "stage";
const STEP: &str = "step";
const WALL_S: &str = "wall_s";
const RUN_WALL_S: &str = "run_wall_s";
const LOSS_SCALE: &str = "loss_scale";
const BEST_STEP: &str = "best_step";
const BEST_VALUE: &str = "best_value";

/// What a checkpoint holds of the model and its optimisation.
pub(crate) struct State<'a, B: Backend, M> {
    pub(crate) model: &'a M,
    pub(crate) ema: Option<&'a Ema<M>>,
    pub(crate) optimizer: &'a AdamW<B>,
    pub(crate) loss_scale: Option<LossScale>,
    pub(crate) layout: &'a Layout,
    pub(crate) task: Vec<(&'static str, TensorData)>,
}

impl Checkpoint {
    /// Writes `checkpoints/<stage>-<step>.safetensors` whole or not at all, and removes the stage's
    /// older ones but for the last and the best.
    ///
    /// # Errors
    /// If the file cannot be written, or a value in it is no finite number.
    pub(crate) fn save<B: Backend, M: Module<B>>(
        dir: &RunDir,
        stage: &'static str,
        progress: Progress,
        state: State<'_, B, M>,
    ) -> Result<(), TrainError> {
        let Progress { step, wall, run_wall, best } = progress;
        let State { model, ema, optimizer, loss_scale, layout, task } = state;
        let mut tensors = NamedTensors::new();
        for (name, data) in collect(model, layout) {
            tensors.insert(format!("model.{name}"), data);
        }
        if let Some(ema) = ema {
            for (name, data) in collect(ema.average(), layout) {
                tensors.insert(format!("average.{name}"), data);
            }
        }
        for (name, moments) in optimizer.moments() {
            let Some([mean, square]) = moments else { continue };
            let host = |x: Tensor<B, 1>| x.into_data().convert::<f32>();
            tensors.insert(format!("mean.{name}"), host(mean));
            tensors.insert(format!("square.{name}"), host(square));
        }
        let is_bad = |data: &TensorData| data.as_slice::<f32>().is_ok_and(has_bad);
        if let Some((tensor, _)) = tensors.iter().find(|(_, data)| is_bad(data)) {
            return Err(TrainError::BadWeights { stage, step, tensor: tensor.into() });
        }
        for (name, data) in task {
            tensors.insert(format!("task.{name}"), data);
        }
        let metadata = tensors.metadata_mut();
        let mut note = |field: &str, value: String| metadata.insert(field.into(), value);
        note("kind", "checkpoint".into());
        note(STAGE, stage.into());
        note(STEP, step.to_string());
        note(WALL_S, wall.as_secs_f64().to_string());
        note(RUN_WALL_S, run_wall.as_secs_f64().to_string());
        if let Some(best) = best {
            note(BEST_STEP, best.step.to_string());
            note(BEST_VALUE, best.value.to_string());
        }
        if let Some(scale) = loss_scale {
            note(LOSS_SCALE, serde_json::to_string(&scale).expect("numbers"));
        }
        let folder = dir.checkpoints();
        tensors.write_safetensors(&folder.join(format!("{stage}-{step}.safetensors")))?;

        let mut old = list(&folder, stage)?;
        old.truncate(old.len().saturating_sub(KEPT));
        for (step, path) in old {
            if best.is_none_or(|best| best.step != step) {
                std::fs::remove_file(&path).map_err(TrainError::io(&path, "cannot be removed"))?;
            }
        }
        Ok(())
    }

    /// The newest checkpoint of a stage that is whole. Each that is not is put aside, with a warning.
    pub(crate) fn newest(
        dir: &RunDir,
        stage: &str,
        steps: u64,
        observer: &mut dyn Observer,
    ) -> Result<Option<Self>, TrainError> {
        for (step, path) in list(&dir.checkpoints(), stage)?.into_iter().rev() {
            match Self::read(&path) {
                Ok(checkpoint) if checkpoint.progress.step == step && step <= steps => {
                    return Ok(Some(checkpoint));
                }
                Ok(checkpoint) => {
                    let problem = format!("holds step {} of {steps}", checkpoint.progress.step);
                    return Err(TrainError::RunDir { path, problem });
                }
                Err(error) => {
                    let message = format!("{error}; going back to the checkpoint before");
                    observer.event(&Event::Warning { message: &message });
                    let aside = path.with_extension("damaged");
                    std::fs::rename(&path, aside)
                        .map_err(TrainError::io(&path, "cannot be put aside"))?;
                }
            }
        }
        Ok(None)
    }

    /// Removes the checkpoints of the stages that follow an unfinished one: they belong to a course of
    /// the run that is walked again.
    pub(crate) fn discard_after(dir: &RunDir, stage: &str) -> Result<(), TrainError> {
        let later = STAGES.iter().skip_while(|name| **name != stage).skip(1);
        for stage in later {
            for (_, path) in list(&dir.checkpoints(), stage)? {
                std::fs::remove_file(&path).map_err(TrainError::io(&path, "cannot be removed"))?;
            }
        }
        Ok(())
    }

    fn read(path: &Path) -> Result<Self, TrainError> {
        let tensors = NamedTensors::read_safetensors(path)?;
        let seconds = |field| {
            let seconds: f64 = value(path, &tensors, field)?;
            Duration::try_from_secs_f64(seconds).map_err(|_| metadata(path, field, "is no time"))
        };
        let best = if tensors.metadata().contains_key(BEST_STEP) {
            let step = value(path, &tensors, BEST_STEP)?;
            Some(Best { step, value: value(path, &tensors, BEST_VALUE)? })
        } else {
            None
        };
        let progress = Progress {
            step: value(path, &tensors, STEP)?,
            wall: seconds(WALL_S)?,
            run_wall: seconds(RUN_WALL_S)?,
            best,
        };
        let has_scale = tensors.metadata().contains_key(LOSS_SCALE);
        let loss_scale = has_scale.then(|| value(path, &tensors, LOSS_SCALE)).transpose()?;
        let [mut model, mut average, mut task] = [(); 3].map(|()| NamedTensors::new());
        let mut moments = BTreeMap::new();
        for (name, data) in tensors {
            if let Some(name) = name.strip_prefix("model.") {
                model.insert(name, data);
            } else if let Some(name) = name.strip_prefix("average.") {
                average.insert(name, data);
            } else if let Some(name) = name.strip_prefix("task.") {
                task.insert(name, data);
            } else {
                moments.insert(name, data);
            }
        }
        Ok(Self { path: path.into(), progress, loss_scale, model, average, moments, task })
    }

    /// The loss scale, of a stage that starts with one.
    ///
    /// # Errors
    /// If it is missing, or does not fit the steps that were made.
    pub(crate) fn loss_scale(
        &self,
        start: Option<LossScale>,
    ) -> Result<Option<LossScale>, TrainError> {
        let problem = match (start, self.loss_scale) {
            (None, _) => return Ok(None),
            (Some(_), Some(scale)) if scale.skipped() <= self.progress.step => {
                return Ok(Some(scale));
            }
            (Some(_), Some(_)) => "skipped more steps than were made",
            (Some(_), None) => "is missing",
        };
        Err(metadata(&self.path, LOSS_SCALE, problem))
    }

    pub(crate) fn task_state(&self) -> &NamedTensors {
        &self.task
    }

    /// Puts weights, averages and moments back.
    ///
    /// # Errors
    /// If anything of them is missing, left over or of another shape.
    pub(crate) fn restore<B: Backend, M: Module<B>>(
        self,
        model: M,
        ema: f64,
        optimizer: &mut AdamW<B>,
        layout: &Layout,
        device: &B::Device,
    ) -> Result<Restored<M>, TrainError> {
        let Self { path, progress, loss_scale, model: weights, average, mut moments, task: _ } =
            self;
        let ema = match Ema::new(ema, model.clone()) {
            Some(ema) => Some(ema.try_map(|module| bind(module, average, layout))?),
            None => None,
        };
        let taken = progress.step.saturating_sub(loss_scale.map_or(0, |scale| scale.skipped()));
        optimizer.restore(taken, |name| {
            let mean = moments.remove(&format!("mean.{name}"))?;
            let square = moments.remove(&format!("square.{name}"))?;
            Some([mean, square].map(|data| Tensor::from_data(data, device)))
        });
        // A parameter without moments never had a gradient; after a step every one of ours had.
        let missing = optimizer.moments().find(|(_, moments)| moments.is_none());
        if let Some((name, _)) = missing.filter(|_| taken > 0) {
            let problem = format!("has no optimizer moments of {name}");
            return Err(TrainError::RunDir { path, problem });
        }
        if let Some(name) = moments.into_keys().next() {
            let problem = format!("holds an unknown tensor '{name}'");
            return Err(TrainError::RunDir { path, problem });
        }
        Ok(Restored { model: bind(model, weights, layout)?, ema })
    }
}

/// Whether any value is no finite number.
fn has_bad(values: &[f32]) -> bool {
    values.iter().any(|x| !x.is_finite())
}

fn metadata(path: &Path, field: &'static str, problem: &str) -> TrainError {
    TrainError::Metadata { path: path.into(), field, problem: problem.into() }
}

fn value<T: DeserializeOwned>(
    path: &Path,
    tensors: &NamedTensors,
    field: &'static str,
) -> Result<T, TrainError> {
    let text = tensors.metadata().get(field).map_or("", String::as_str);
    serde_json::from_str(text).map_err(|_| metadata(path, field, "cannot be read"))
}

/// Steps and paths of a stage's checkpoints, oldest first.
fn list(folder: &Path, stage: &str) -> Result<Vec<(u64, PathBuf)>, TrainError> {
    let step = |path: &Path| -> Option<u64> {
        let name = path.file_name()?.to_str()?;
        name.strip_prefix(stage)?.strip_prefix('-')?.strip_suffix(".safetensors")?.parse().ok()
    };
    let io = || TrainError::io(folder, "cannot be listed");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io())? {
        let path = entry.map_err(io())?.path();
        found.extend(step(&path).map(|step| (step, path)));
    }
    found.sort();
    Ok(found)
}
