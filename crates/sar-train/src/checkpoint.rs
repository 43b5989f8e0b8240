//! Checkpoints inside a stage: what its learners and its task need to go on, at full precision.
//!
//! A file holds `<learner>.model.*`, `<learner>.average.*`, `<learner>.mean.*`, `<learner>.square.*`
//! for each learner, and `task.*`; its metadata the stage, the step, the times, and what else belongs
//! to each learner.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use burn::tensor::{DType, TensorData};
use sar_exchange::{ExchangeError, Group};
use sar_weights::{NamedTensors, Target, TensorInfo, WeightsFile, count_not_finite, write_weights};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::event::{Event, Observer};
use crate::learner::State;
use crate::run_dir::RunDir;
use crate::{StageId, TrainError};

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

impl Best {
    /// What the rank that leads has, for all.
    pub(crate) fn of_leader(own: Option<Self>, group: &Group) -> Result<Option<Self>, TrainError> {
        let bits = own.map(|best| (best.step, best.value.to_bits()));
        let message = || Ok::<_, TrainError>(serde_json::to_vec(&bits).expect("plain values"));
        let bytes = group.from_rank(0, message)?;
        let bits: Option<(u64, u64)> = serde_json::from_slice(&bytes).map_err(|_| UNEXPECTED)?;
        Ok(bits.map(|(step, value)| Self { step, value: f64::from_bits(value) }))
    }
}

/// The rank that leads has sent something else.
const UNEXPECTED: ExchangeError = ExchangeError::Unexpected { rank: 0 };

/// A point of a stage that training goes on from.
#[derive(Debug)]
pub(crate) struct Saved {
    path: PathBuf,
    pub(crate) progress: Progress,
    tensors: NamedTensors,
}

const STAGE: &str = "stage";
const STEP: &str = "step";
const WALL_S: &str = "wall_s";
const RUN_WALL_S: &str = "run_wall_s";
const BEST_STEP: &str = "best_step";
const BEST_VALUE: &str = "best_value";
const TASK: &str = "task";

/// Writes `checkpoints/<stage>-<step>.safetensors` whole or not at all, one tensor after the other, and
/// removes the stage's older ones but for the last and the best. Of several ranks the one that leads does, and
/// the others give it what they alone have.
///
/// # Errors
/// If the file cannot be written, or a value in it is not finite.
pub(crate) fn save(
    dir: &RunDir,
    group: &Group,
    stage: StageId,
    progress: Progress,
    learners: &[State<'_>],
    task: Vec<(&'static str, TensorData)>,
) -> Result<(), TrainError> {
    if !group.leads() {
        return hand_over(group, learners);
    }
    let Progress { step, wall, run_wall, best } = progress;
    let task: Vec<(String, TensorData)> =
        task.into_iter().map(|(name, data)| (format!("{TASK}.{name}"), data)).collect();
    let mut infos: Vec<TensorInfo> =
        learners.iter().flat_map(|learner| learner.infos.iter().cloned()).collect();
    infos.extend(task.iter().map(|(name, data)| TensorInfo {
        name: name.clone(),
        dtype: data.dtype,
        shape: data.shape.to_vec(),
    }));
    let mut metadata = BTreeMap::new();
    let mut note = |field: &str, value: String| metadata.insert(field.to_owned(), value);
    note("kind", "checkpoint".into());
    note(STAGE, stage.name().into());
    note(STEP, step.to_string());
    note(WALL_S, wall.as_secs_f64().to_string());
    note(RUN_WALL_S, run_wall.as_secs_f64().to_string());
    if let Some(best) = best {
        note(BEST_STEP, best.step.to_string());
        note(BEST_VALUE, best.value.to_string());
    }
    for learner in learners {
        metadata.extend(learner.metadata.clone());
    }
    let folder = dir.checkpoints();
    let path = path_of(&folder, stage, step);
    write_weights(&path, Target::Safetensors, &infos, &metadata, |name| {
        if let Some((_, data)) = task.iter().find(|(known, _)| known == name) {
            return Ok(Cow::Borrowed(data));
        }
        group.alive();
        let data = match learners.iter().find_map(|learner| (learner.read)(name)) {
            Some(data) => data,
            None => fetch(group, name)?,
        };
        if count_not_finite(&data) > 0 {
            return Err(TrainError::BadWeights { stage, step, tensor: name.into() });
        }
        Ok(Cow::Owned(data))
    })?;
    if !group.is_alone() {
        group.all_gather(END)?;
    }

    let mut old = list(&folder, stage)?;
    old.truncate(old.len().saturating_sub(KEPT));
    for (step, path) in old {
        if best.is_none_or(|best| best.step != step) {
            remove(&path)?;
        }
    }
    Ok(())
}

/// What ends the questions of the rank that leads.
const END: &[u8] = b"";

/// Asks all other ranks for a tensor that one of them has.
fn fetch(group: &Group, name: &str) -> Result<TensorData, TrainError> {
    group.all_gather(name.as_bytes())?;
    let answers = group.all_gather(END)?;
    let answer = answers.into_iter().find(|answer| !answer.is_empty()).ok_or(UNEXPECTED)?;
    let n = answer.len() / DType::F32.size();
    Ok(TensorData::from_bytes_vec(answer, vec![n], DType::F32))
}

/// Answers what the rank that leads asks for.
fn hand_over(group: &Group, learners: &[State<'_>]) -> Result<(), TrainError> {
    loop {
        let questions = group.all_gather(END)?;
        let name = str::from_utf8(&questions[0]).map_err(|_| UNEXPECTED)?;
        if name.is_empty() {
            return Ok(());
        }
        let data = learners.iter().find_map(|learner| (learner.read)(name));
        let answer = data.as_ref().map_or(END, |data| data.as_bytes());
        let mut answers = vec![END; group.ranks()];
        answers[0] = answer;
        group.all_to_all(&answers)?;
    }
}

/// Removes the checkpoints of the stages that follow an unfinished one: they belong to a course of the
/// run that is walked again.
pub(crate) fn discard_after(dir: &RunDir, stage: StageId) -> Result<(), TrainError> {
    if !dir.is_ours() {
        return Ok(());
    }
    for stage in stage.later() {
        for (_, path) in list(&dir.checkpoints(), stage)? {
            remove(&path)?;
        }
    }
    Ok(())
}

/// The checkpoint of a stage after a step.
pub(crate) fn path_of(folder: &Path, stage: StageId, step: u64) -> PathBuf {
    folder.join(format!("{stage}-{step}.safetensors"))
}

impl Saved {
    /// The newest checkpoint of a stage that is whole. Each that is not is put aside, with a warning.
    ///
    /// # Errors
    /// If the folder cannot be listed, or a checkpoint is of another run.
    pub(crate) fn newest(
        dir: &RunDir,
        stage: StageId,
        steps: u64,
        observer: &mut dyn Observer,
    ) -> Result<Option<Self>, TrainError> {
        for (step, path) in list(&dir.checkpoints(), stage)?.into_iter().rev() {
            match Self::read(&path) {
                Ok(saved) if saved.progress.step == step && step <= steps => {
                    return Ok(Some(saved));
                }
                Ok(saved) => {
                    let problem = format!("holds step {} of {steps}", saved.progress.step);
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

    /// Reads a checkpoint.
    ///
    /// # Errors
    /// If it is damaged, or not a checkpoint.
    pub(crate) fn read(path: &Path) -> Result<Self, TrainError> {
        Self::of_tensors(path, NamedTensors::read_safetensors(path)?)
    }

    fn of_tensors(path: &Path, tensors: NamedTensors) -> Result<Self, TrainError> {
        let zero = Progress { step: 0, wall: Duration::ZERO, run_wall: Duration::ZERO, best: None };
        let mut saved = Self { path: path.into(), progress: zero, tensors };
        let seconds = |field| {
            let seconds: f64 = saved.value(field)?;
            Duration::try_from_secs_f64(seconds).map_err(|_| saved.metadata(field, "is no time"))
        };
        let best = match saved.tensors.metadata().contains_key(BEST_STEP) {
            true => Some(Best { step: saved.value(BEST_STEP)?, value: saved.value(BEST_VALUE)? }),
            false => None,
        };
        let (wall, run_wall) = (seconds(WALL_S)?, seconds(RUN_WALL_S)?);
        saved.progress = Progress { step: saved.value(STEP)?, wall, run_wall, best };
        Ok(saved)
    }

    /// What the rank that leads finds, for all ranks.
    ///
    /// # Errors
    /// As `find`, which that rank alone is asked to do.
    pub(crate) fn for_all(
        group: &Group,
        find: impl FnOnce() -> Result<Option<Self>, TrainError>,
    ) -> Result<Option<Self>, TrainError> {
        if group.is_alone() {
            return find();
        }
        let mut own = None;
        let header = group.from_rank(0, || {
            own = find()?;
            let header = own.as_ref().map(|saved| Header {
                path: saved.path.clone(),
                metadata: saved.tensors.metadata().clone(),
                tensors: (saved.tensors.infos().into_iter())
                    .map(|TensorInfo { name, dtype, shape }| (name, dtype, shape))
                    .collect(),
            });
            Ok::<_, TrainError>(serde_json::to_vec(&header).expect("plain values"))
        })?;
        let header: Option<Header> = serde_json::from_slice(&header).map_err(|_| UNEXPECTED)?;
        let Some(Header { path, metadata, tensors: infos }) = header else { return Ok(None) };
        let mut tensors = NamedTensors::new();
        for (name, dtype, shape) in infos {
            let data = own.as_ref().and_then(|saved| saved.tensors.get(&name));
            let message = data.map_or(END, |data| data.as_bytes());
            let bytes = group.all_gather(message)?.swap_remove(0);
            if bytes.len() != shape.iter().product::<usize>() * dtype.size() {
                return Err(UNEXPECTED.into());
            }
            if own.is_none() {
                tensors.insert(name, TensorData::from_bytes_vec(bytes, shape, dtype));
            }
        }
        *tensors.metadata_mut() = metadata;
        match own {
            Some(own) => Ok(Some(own)),
            None => Self::of_tensors(&path, tensors).map(Some),
        }
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What the task itself remembers.
    pub(crate) fn take_task(&mut self) -> NamedTensors {
        self.take(TASK)
    }

    /// Takes the tensors below a dotted name out.
    pub(crate) fn take(&mut self, root: &str) -> NamedTensors {
        let (mut taken, mut left) = (NamedTensors::new(), NamedTensors::new());
        *left.metadata_mut() = self.tensors.metadata().clone();
        for (name, data) in std::mem::take(&mut self.tensors) {
            match name.strip_prefix(root).and_then(|name| name.strip_prefix('.')) {
                Some(name) => taken.insert(name, data),
                None => left.insert(name, data),
            };
        }
        self.tensors = left;
        taken
    }

    /// Checks that everything in it was taken.
    ///
    /// # Errors
    /// With the first tensor that is left.
    pub(crate) fn finish(self) -> Result<(), TrainError> {
        match self.tensors.names().next() {
            None => Ok(()),
            Some(name) => {
                let problem = format!("holds an unknown tensor '{name}'");
                Err(TrainError::RunDir { path: self.path, problem })
            }
        }
    }

    /// A value of the metadata.
    ///
    /// # Errors
    /// If it is not there or of another form.
    pub(crate) fn value<T: DeserializeOwned>(&self, field: &str) -> Result<T, TrainError> {
        let text = self.tensors.metadata().get(field).map_or("", String::as_str);
        serde_json::from_str(text).map_err(|_| self.metadata(field, "cannot be read"))
    }

    fn metadata(&self, field: &str, problem: &str) -> TrainError {
        let (path, field) = (self.path.clone(), field.to_owned());
        TrainError::Metadata { path, field, problem: problem.into() }
    }
}

/// What comes before the tensors of a checkpoint that is sent.
#[derive(Serialize, Deserialize)]
struct Header {
    path: PathBuf,
    metadata: BTreeMap<String, String>,
    tensors: Vec<(String, DType, Vec<usize>)>,
}

fn remove(path: &Path) -> Result<(), TrainError> {
    std::fs::remove_file(path).map_err(TrainError::io(path, "cannot be removed"))
}

/// The weights of a learner in a checkpoint.
///
/// # Errors
/// If the file is damaged, or not a checkpoint.
pub(crate) fn weights(path: &Path, learner: &str) -> Result<NamedTensors, TrainError> {
    Ok(Saved::read(path)?.take(&model_of(learner)))
}

/// What the weights of a learner are named below.
pub(crate) fn model_of(learner: &str) -> String {
    format!("{learner}.model")
}

/// The step of the best checkpoint of a stage as one of its checkpoints knows it.
///
/// # Errors
/// If the file cannot be read.
pub(crate) fn best_step(path: &Path) -> Result<Option<u64>, TrainError> {
    let file = WeightsFile::open(path)?;
    Ok(file.metadata().get(BEST_STEP).and_then(|step| step.parse().ok()))
}

/// Steps and paths of a stage's checkpoints, oldest first.
pub(crate) fn list(folder: &Path, stage: StageId) -> Result<Vec<(u64, PathBuf)>, TrainError> {
    let step = |path: &Path| -> Option<u64> {
        let name = path.file_name()?.to_str()?;
        let name = name.strip_prefix(stage.name())?.strip_prefix('-')?;
        name.strip_suffix(".safetensors")?.parse().ok()
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
