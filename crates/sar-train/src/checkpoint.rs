//! Checkpoints inside a stage: weights, optimizer moments and the step, at full precision.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use burn::module::Module;
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use sar_weights::{Layout, NamedTensors, bind, collect};

use crate::TrainError;
use crate::event::{Event, Observer};
use crate::optim::AdamW;
use crate::run_dir::RunDir;

/// Checkpoints of a stage that are kept.
const KEPT: usize = 2;

/// A point of a stage that training goes on from.
pub(crate) struct Checkpoint {
    /// Steps made.
    pub(crate) step: u64,
    /// Time that they took.
    pub(crate) wall: Duration,
    model: NamedTensors,
    moments: BTreeMap<String, TensorData>,
    task: NamedTensors,
}

const STAGE: &str = "stage";
const STEP: &str = "step";
const WALL_S: &str = "wall_s";

impl Checkpoint {
    /// Writes `checkpoints/<stage>-<step>.safetensors` whole or not at all, and removes the stage's
    /// older ones but for the last.
    pub(crate) fn save<B: Backend, M: Module<B>>(
        dir: &RunDir,
        (stage, step, wall): (&str, u64, Duration),
        (model, layout, optimizer): (&M, &Layout, &AdamW<B>),
        task: Vec<(&'static str, TensorData)>,
    ) -> Result<(), TrainError> {
        let mut tensors = NamedTensors::new();
        for (name, data) in collect(model, layout) {
            tensors.insert(format!("model.{name}"), data);
        }
        for (name, moments) in optimizer.moments() {
            let Some([mean, square]) = moments else { continue };
            let host = |x: Tensor<B, 1>| x.into_data().convert::<f32>();
            tensors.insert(format!("mean.{name}"), host(mean));
            tensors.insert(format!("square.{name}"), host(square));
        }
        for (name, data) in task {
            tensors.insert(format!("task.{name}"), data);
        }
        let metadata = tensors.metadata_mut();
        metadata.insert("kind".into(), "checkpoint".into());
        metadata.insert(STAGE.into(), stage.into());
        metadata.insert(STEP.into(), step.to_string());
        metadata.insert(WALL_S.into(), wall.as_secs_f64().to_string());
        let folder = dir.checkpoints();
        tensors.write_safetensors(&folder.join(format!("{stage}-{step}.safetensors")))?;

        let mut old = Self::list(&folder, stage)?;
        old.truncate(old.len().saturating_sub(KEPT));
        for (_, path) in old {
            std::fs::remove_file(&path).map_err(TrainError::io(&path, "cannot be removed"))?;
        }
        Ok(())
    }

    /// The newest checkpoint of a stage that is whole, with a warning for each that is not.
    pub(crate) fn newest(
        dir: &RunDir,
        stage: &str,
        steps: u64,
        observer: &mut dyn Observer,
    ) -> Result<Option<Self>, TrainError> {
        for (step, path) in Self::list(&dir.checkpoints(), stage)?.into_iter().rev() {
            match Self::read(&path) {
                Ok(checkpoint) if checkpoint.step == step && step <= steps => {
                    return Ok(Some(checkpoint));
                }
                Ok(checkpoint) => {
                    let problem = format!("holds step {} of {steps}", checkpoint.step);
                    return Err(TrainError::RunDir { path, problem });
                }
                Err(error) => {
                    let message = format!("{error}; going back to the checkpoint before");
                    observer.event(&Event::Warning { message: &message });
                }
            }
        }
        Ok(None)
    }

    fn read(path: &Path) -> Result<Self, TrainError> {
        let tensors = NamedTensors::read_safetensors(path)?;
        let text = |field: &'static str| tensors.metadata().get(field).map_or("", String::as_str);
        let bad = |field, problem: &str| TrainError::Metadata {
            path: path.into(),
            field,
            problem: problem.into(),
        };
        let step = text(STEP).parse().map_err(|_| bad(STEP, "is no number"))?;
        let wall = text(WALL_S).parse().ok().and_then(|s| Duration::try_from_secs_f64(s).ok());
        let wall = wall.ok_or_else(|| bad(WALL_S, "is no time"))?;
        let (mut model, mut task) = (NamedTensors::new(), NamedTensors::new());
        let mut moments = BTreeMap::new();
        for (name, data) in tensors {
            if let Some(name) = name.strip_prefix("model.") {
                model.insert(name, data);
            } else if let Some(name) = name.strip_prefix("task.") {
                task.insert(name, data);
            } else {
                moments.insert(name, data);
            }
        }
        Ok(Self { step, wall, model, moments, task })
    }

    /// Steps and paths of a stage's checkpoints, oldest first.
    fn list(folder: &Path, stage: &str) -> Result<Vec<(u64, PathBuf)>, TrainError> {
        let entries =
            std::fs::read_dir(folder).map_err(TrainError::io(folder, "cannot be listed"))?;
        let mut found: Vec<(u64, PathBuf)> = entries
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let name = path.file_name()?.to_str()?;
                let step =
                    name.strip_prefix(stage)?.strip_prefix('-')?.strip_suffix(".safetensors")?;
                Some((step.parse().ok()?, path))
            })
            .collect();
        found.sort();
        Ok(found)
    }

    pub(crate) fn task_state(&self) -> &NamedTensors {
        &self.task
    }

    /// Puts weights and moments back.
    pub(crate) fn restore<B: Backend, M: Module<B>>(
        self,
        model: M,
        optimizer: &mut AdamW<B>,
        layout: &Layout,
        device: &B::Device,
    ) -> Result<M, TrainError> {
        let mut moments = self.moments;
        optimizer.restore(self.step, |name| {
            let mean = moments.remove(&format!("mean.{name}"))?;
            let square = moments.remove(&format!("square.{name}"))?;
            Some([mean, square].map(|data| Tensor::from_data(data, device)))
        });
        Ok(bind(model, self.model, layout)?)
    }
}
