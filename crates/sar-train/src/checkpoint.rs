//! Checkpoints inside a stage: weights, optimizer moments and the step, at full precision.

use burn::module::Module;
use burn::tensor::TensorData;
use burn::tensor::backend::Backend;
use sar_weights::{Layout, NamedTensors, collect};

use crate::TrainError;
use crate::optim::AdamW;
use crate::run_dir::RunDir;

/// A point of a stage that training can go on from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Checkpoint;

impl Checkpoint {
    /// Writes `checkpoints/<stage>-<step>.safetensors`, after `step` steps, whole or not at all, and
    /// removes the stage's older ones but for the last.
    ///
    /// # Errors
    /// If the file system refuses.
    pub(crate) fn save<B: Backend, M: Module<B>>(
        dir: &RunDir,
        stage: &str,
        step: u64,
        model: &M,
        layout: &Layout,
        optimizer: &AdamW<B>,
    ) -> Result<(), TrainError> {
        let mut tensors = NamedTensors::new();
        for (name, data) in collect(model, layout) {
            tensors.insert(format!("model.{name}"), data);
        }
        let (steps, moments) = optimizer.state();
        for (name, moments) in moments {
            let Some([mean, square]) = moments else { continue };
            let host =
                |x: burn::tensor::Tensor<B, 1>| -> TensorData { x.into_data().convert::<f32>() };
            tensors.insert(format!("adamw.mean.{name}"), host(mean));
            tensors.insert(format!("adamw.square.{name}"), host(square));
        }
        let metadata = tensors.metadata_mut();
        metadata.insert("kind".into(), "checkpoint".into());
        metadata.insert("stage".into(), stage.into());
        metadata.insert("step".into(), step.to_string());
        metadata.insert("optimizer_steps".into(), steps.to_string());
        let folder = dir.file("checkpoints");
        tensors.write_safetensors(&folder.join(format!("{stage}-{step}.safetensors")))?;

        let entries =
            std::fs::read_dir(&folder).map_err(TrainError::io(&folder, "cannot be listed"))?;
        let mut old: Vec<(u64, std::path::PathBuf)> = entries
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let name = path.file_name()?.to_str()?;
                let at =
                    name.strip_prefix(stage)?.strip_prefix('-')?.strip_suffix(".safetensors")?;
                Some((at.parse().ok()?, path))
            })
            .collect();
        old.sort();
        old.truncate(old.len().saturating_sub(2));
        for (_, path) in old {
            std::fs::remove_file(&path).map_err(TrainError::io(&path, "cannot be removed"))?;
        }
        Ok(())
    }
}
