//! Checkpoints inside a stage: what its learners and its task need to go on, at full precision.
//!
//! A file holds `<learner>.model.*`, `<learner>.average.*`, `<learner>.mean.*`, `<learner>.square.*`
//! (of what AdamW moves) for each learner, and `task.*`; its metadata the stage, the step, the times, and what else belongs
//! to each learner.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use burn::tensor::{DType, TensorData};
use sar_exchange::{ExchangeError, Group};
use sar_weights::{
    NamedTensors, Target, TensorInfo, WeightsError, WeightsFile, count_not_finite, write_weights,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::event::{Event, Observer};
use crate::learner::State;
use crate::recipe::Output;
use crate::run_dir::RunDir;
use crate::{StageId, TrainError};

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
/// the others give it what they alone have. The newest `kept` of the stage stay, and its best.
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
    kept: usize,
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
    old.truncate(old.len().saturating_sub(kept));
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

/// Checks that no stage that follows an unfinished one has checkpoints: all its work would be done again.
fn check_later(folder: &Path, stage: StageId, (done, steps): (u64, u64)) -> Result<(), TrainError> {
    for later in stage.later() {
        if let Some((_, newest)) = list(folder, later)?.pop() {
            let name = newest.file_name().unwrap_or_default().display();
            let problem = format!(
                "is missing or damaged, but a later stage has {name}, which would be trained again: put a whole \
                 copy of it back, or move the checkpoints of later stages away to go on in {stage} after step \
                 {done}"
            );
            return Err(TrainError::RunDir { path: path_of(folder, stage, steps), problem });
        }
    }
    Ok(())
}

/// Reads the best checkpoint of a stage, or as much of it as is wanted.
///
/// # Errors
/// If it cannot be read, and the stage is to end with its weights; else that is a warning, and nothing is read.
pub(crate) fn best<T>(
    dir: &RunDir,
    (stage, output): (StageId, Output),
    step: u64,
    observer: &mut dyn Observer,
    read: impl FnOnce(&Path) -> Result<T, TrainError>,
) -> Result<Option<T>, TrainError> {
    match read(&path_of(&dir.checkpoints(), stage, step)) {
        Ok(best) => Ok(Some(best)),
        Err(error) if output == Output::Best => {
            Err(TrainError::Best { stage, error: Box::new(error) })
        }
        Err(error) => {
            let best = stage.other_weights_file("best");
            let message = format!("{error}; while it is so, no {best} is written");
            observer.event(&Event::Warning { message: &message });
            Ok(None)
        }
    }
}

/// The checkpoint of a stage after a step.
pub(crate) fn path_of(folder: &Path, stage: StageId, step: u64) -> PathBuf {
    folder.join(format!("{stage}-{step}.safetensors"))
}

impl Saved {
    /// The newest checkpoint of a stage that is whole. Each that is damaged is put aside, with a warning; one
    /// that the system does not let be read stays where it is, as it may well be whole.
    ///
    /// # Errors
    /// If the folder cannot be listed, a checkpoint cannot be read or is of another run, or the stage would
    /// go on while later ones have checkpoints.
    pub(crate) fn newest(
        dir: &RunDir,
        stage: StageId,
        steps: u64,
        observer: &mut dyn Observer,
    ) -> Result<Option<Self>, TrainError> {
        let folder = dir.checkpoints();
        let mut newest = None;
        for (step, path) in list(&folder, stage)?.into_iter().rev() {
            match Self::read(&path) {
                Ok(saved) if saved.progress.step == step && step <= steps => {
                    newest = Some(saved);
                    break;
                }
                Ok(saved) => {
                    let problem = format!("holds step {} of {steps}", saved.progress.step);
                    return Err(TrainError::RunDir { path, problem });
                }
                Err(TrainError::Weights(WeightsError::Read { error, .. })) => {
                    let problem = format!(
                        "cannot be read now: {error}; resume once it can, or move it away to go on from the \
                         checkpoint before"
                    );
                    return Err(TrainError::RunDir { path, problem });
                }
                Err(error) => {
                    let aside = path.with_extension("damaged");
                    let name = aside.file_name().unwrap_or_default().display();
                    let message = format!("{error}; it is put aside as {name}");
                    observer.event(&Event::Warning { message: &message });
                    std::fs::rename(&path, &aside)
                        .map_err(TrainError::io(&path, "cannot be put aside"))?;
                }
            }
        }
        let done = newest.as_ref().map_or(0, |saved| saved.progress.step);
        if done < steps {
            check_later(&folder, stage, (done, steps))?;
        }
        Ok(newest)
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::testing::run_dir;

    /// The warnings that there were.
    #[derive(Default)]
    struct Warnings(Vec<String>);

    impl Observer for Warnings {
        fn event(&mut self, event: &Event<'_>) {
            if let Event::Warning { message } = event {
                self.0.push((*message).to_owned());
            }
        }
    }

    /// A checkpoint of a task without learners.
    fn saved(dir: &RunDir, stage: StageId, step: u64) -> PathBuf {
        let (wall, run_wall) = (Duration::ZERO, Duration::ZERO);
        let progress = Progress { step, wall, run_wall, best: None };
        let task = vec![("memory", TensorData::new(vec![step as f32], [1]))];
        save(dir, &Group::alone(), stage, progress, &[], task, 2).unwrap();
        path_of(&dir.checkpoints(), stage, step)
    }

    #[test]
    fn the_newest_stay_and_the_best() {
        let (_folder, dir) = run_dir();
        let (wall, run_wall) = (Duration::ZERO, Duration::ZERO);
        let best = Some(Best { step: 2, value: 0.5 });
        for step in 1..=6 {
            let progress = Progress { step, wall, run_wall, best };
            save(&dir, &Group::alone(), StageId::Sar, progress, &[], Vec::new(), 3).unwrap();
        }
        let steps =
            list(&dir.checkpoints(), StageId::Sar).unwrap().into_iter().map(|(step, _)| step);
        assert_eq!(steps.collect::<Vec<_>>(), [2, 4, 5, 6]);
    }

    fn damage(path: &Path) {
        let mut bytes = fs::read(path).unwrap();
        *bytes.last_mut().unwrap() ^= 0x10;
        fs::write(path, bytes).unwrap();
    }

    /// The step of the newest checkpoint of five, and the warnings.
    fn newest(dir: &RunDir, stage: StageId) -> (Result<Option<u64>, String>, Vec<String>) {
        let mut warnings = Warnings::default();
        let newest = Saved::newest(dir, stage, 5, &mut warnings);
        let step = newest.map(|newest| newest.map(|saved| saved.progress.step));
        (step.map_err(|error| error.to_string()), warnings.0)
    }

    #[test]
    fn what_is_damaged_is_put_aside() {
        let (_folder, dir) = run_dir();
        saved(&dir, StageId::Pretrain, 2);
        let path = saved(&dir, StageId::Pretrain, 3);
        damage(&path);
        let (step, warnings) = newest(&dir, StageId::Pretrain);
        assert_eq!(step, Ok(Some(2)));
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("it is put aside as pretrain-3.damaged"), "{warnings:?}");
        assert!(!path.exists() && path.with_extension("damaged").exists());
    }

    /// A name that leads to itself, in place of a disk that is not there for a moment.
    #[cfg(unix)]
    #[test]
    fn what_cannot_be_read_stays_where_it_is() {
        let (folder, dir) = run_dir();
        saved(&dir, StageId::Pretrain, 2);
        let path = saved(&dir, StageId::Pretrain, 3);
        let elsewhere = folder.path().join("elsewhere");
        fs::rename(&path, &elsewhere).unwrap();
        std::os::unix::fs::symlink(&path, &path).unwrap();
        let (step, warnings) = newest(&dir, StageId::Pretrain);
        let error = step.unwrap_err();
        for part in ["pretrain-3.safetensors: cannot be read now: ", "resume once it can"] {
            assert!(error.contains(part), "{error}");
        }
        assert!(warnings.is_empty() && path.is_symlink());
        fs::remove_file(&path).unwrap();
        fs::rename(&elsewhere, &path).unwrap();
        assert_eq!(newest(&dir, StageId::Pretrain), (Ok(Some(3)), Vec::new()));
    }

    #[test]
    fn a_stage_does_not_go_back_behind_later_ones() {
        let (folder, dir) = run_dir();
        let [before, last] = [4, 5].map(|step| saved(&dir, StageId::Tokenizer, step));
        let later = [(StageId::Pretrain, 5), (StageId::Sar, 3)]
            .map(|(stage, step)| saved(&dir, stage, step));
        let copy = folder.path().join("copy");
        fs::copy(&last, &copy).unwrap();
        let refuses = |part: &str| {
            let error = newest(&dir, StageId::Tokenizer).0.unwrap_err();
            for part in ["tokenizer-5.safetensors: is missing", "has pretrain-5.safetensors", part]
            {
                assert!(error.contains(part), "{error}");
            }
            assert!(later.iter().all(|path| path.exists()));
        };
        damage(&last);
        refuses("go on in tokenizer after step 4");
        // As it says: a whole copy, or none of the later ones.
        fs::copy(&copy, &last).unwrap();
        assert_eq!(newest(&dir, StageId::Tokenizer), (Ok(Some(5)), Vec::new()));
        fs::remove_file(&last).unwrap();
        refuses("go on in tokenizer after step 4");
        let away = folder.path().join("away");
        fs::rename(&before, &away).unwrap();
        refuses("go on in tokenizer after step 0");
        later.iter().for_each(|path| fs::rename(path, path.with_extension("away")).unwrap());
        assert_eq!(newest(&dir, StageId::Tokenizer).0, Ok(None));
        fs::rename(&away, &before).unwrap();
        assert_eq!(newest(&dir, StageId::Tokenizer).0, Ok(Some(4)));
    }

    #[test]
    fn a_best_checkpoint_is_needed_where_its_weights_are() {
        let (_folder, dir) = run_dir();
        let path = saved(&dir, StageId::Control, 3);
        let read = |output| {
            let (mut warnings, stage) = (Warnings::default(), (StageId::Control, output));
            let best = best(&dir, stage, 3, &mut warnings, Saved::read);
            let step = best.map(|best| best.map(|saved| saved.progress.step));
            (step.map_err(|error| error.to_string()), warnings.0)
        };
        for output in [Output::Last, Output::Average, Output::Best] {
            assert_eq!(read(output), (Ok(Some(3)), Vec::new()));
        }
        for spoil in [&damage as &dyn Fn(&Path), &|path| fs::remove_file(path).unwrap()] {
            spoil(&path);
            let (step, warnings) = read(Output::Last);
            assert_eq!(step, Ok(None));
            let warning = "no backbone-control-best.safetensors is written";
            assert!(warnings.len() == 1 && warnings[0].ends_with(warning), "{warnings:?}");
            let (step, warnings) = read(Output::Best);
            let error = step.unwrap_err();
            for part in ["control-3.safetensors: ", "whole copy", "sar.output = \"last\""] {
                assert!(error.contains(part), "{error}");
            }
            assert!(warnings.is_empty());
        }
    }
}
