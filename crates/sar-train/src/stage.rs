//! The loop of every stage: steps, metrics, checkpoints, and how it goes on where it stopped.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use burn::tensor::TensorData;
use burn::tensor::backend::Backend;
use sar_data::{FoundUnreadable, Images};
use sar_exchange::{ExchangeError, Group};
use sar_pipeline::RgbImage;
use sar_weights::{NamedTensors, WeightsFile};

use crate::checkpoint::{self, Best, Progress, Saved};
use crate::event::{Event, Observer};
use crate::learner::{State, Update};
use crate::recipe::{LogRecipe, Output};
use crate::report::StageReport;
use crate::run_dir::{Metrics, RunDir};
use crate::step::{ByScale, Parts};
use crate::watch::{Seen, Watch};
use crate::{StageId, TrainError};

/// What one stage trains: how it begins, its step, and what it remembers. Its learners are its own, one
/// or several; checkpoints know them by name.
pub(crate) trait Task<B: Backend> {
    /// What precedes the first step; a stage that goes on from a checkpoint has it behind.
    fn begin(&mut self) -> Result<(), TrainError> {
        Ok(())
    }

    /// Makes a step of so many.
    fn step(&mut self, step: u64, steps: u64) -> Result<Stepped<B>, TrainError>;

    /// How good the weights are on held-out images; it decides which checkpoint is the best. All ranks are
    /// asked at the same time, and answer the same.
    fn measure(&self) -> Result<Measure, TrainError>;

    /// What the weights make, as a sheet for the eyes; the rank that leads alone is asked.
    fn draw(&self) -> Result<RgbImage, TrainError>;

    /// The images that it trains on.
    fn images(&self) -> &Images;

    /// The ranks that train it together.
    fn group(&self) -> &Group;

    /// Parameters that are trained.
    fn n_parameters(&self) -> usize;

    /// What a checkpoint keeps of each learner.
    fn learners(&self) -> Vec<State<'_>>;

    /// What the task itself remembers between steps; all ranks are asked at the same time.
    fn state(&self) -> Result<Vec<(&'static str, TensorData)>, TrainError> {
        Ok(Vec::new())
    }

    /// Takes the learners back from a checkpoint.
    fn restore_learners(&mut self, saved: &mut Saved) -> Result<(), TrainError>;

    /// Takes back what [`state`](Self::state) gave.
    fn restore_state(&mut self, _state: NamedTensors) {}
}

/// What a step leaves.
pub(crate) struct Stepped<B: Backend> {
    /// One for each learner that made an update, the main one first.
    pub(crate) learners: Vec<Learned<B>>,
    /// Anything to be noted in the metrics.
    pub(crate) note: Option<serde_json::Value>,
}

/// What a learner's update leaves.
pub(crate) struct Learned<B: Backend> {
    /// The parts of its loss.
    pub(crate) parts: Parts<B>,
    /// Its loss by scale.
    pub(crate) scales: ByScale<B>,
    pub(crate) update: Update<B>,
}

/// A figure on held-out images.
pub(crate) struct Measure {
    pub(crate) name: &'static str,
    pub(crate) value: f64,
    pub(crate) better: Better,
    /// What else is worth a look in the metrics.
    pub(crate) details: Vec<(&'static str, serde_json::Value)>,
}

/// Which of two values is better.
#[derive(Clone, Copy)]
pub(crate) enum Better {
    Higher,
    Lower,
}

impl Measure {
    fn beats(&self, best: Option<Best>) -> bool {
        best.is_none_or(|best| match self.better {
            Better::Higher => self.value > best.value,
            Better::Lower => self.value < best.value,
        })
    }
}

/// What the loop needs to know of a stage.
#[derive(Clone, Copy)]
pub(crate) struct Stage {
    pub(crate) id: StageId,
    pub(crate) steps: u64,
    pub(crate) batch: usize,
    pub(crate) output: Output,
}

/// Where a run writes, and who hears of it.
pub(crate) struct Journal<'a> {
    pub(crate) dir: RunDir,
    pub(crate) metrics: Metrics,
    pub(crate) observer: &'a mut dyn Observer,
    pub(crate) stop: &'a AtomicBool,
    pub(crate) log: &'a LogRecipe,
    pub(crate) stages: Vec<StageReport>,
    pub(crate) clock: Clock,
}

/// The time of a run over all its processes.
pub(crate) struct Clock {
    before: Duration,
    since: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { before: Duration::ZERO, since: Instant::now() }
    }

    /// Goes on from what a checkpoint remembers.
    fn resume(&mut self, run_wall: Duration) {
        *self = Self { before: run_wall, since: Instant::now() };
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.before + self.since.elapsed()
    }
}

impl Stage {
    /// Runs what is left of the stage, and returns the step of its best checkpoint, if anything was
    /// measured; without steps it leaves no trace.
    pub(crate) fn run<B: Backend>(
        &self,
        task: &mut impl Task<B>,
        journal: &mut Journal<'_>,
    ) -> Result<Option<u64>, TrainError> {
        let Self { id, steps, batch, output } = *self;
        if steps == 0 {
            return Ok(None);
        }
        let (mut done, mut wall, mut best) = (0, Duration::ZERO, None);
        let group = task.group().clone();
        let newest = || {
            let newest = Saved::newest(&journal.dir, id, steps, journal.observer)?;
            if let Some(Progress { step, best: Some(best), .. }) =
                newest.as_ref().map(|saved| saved.progress)
                && best.step < step
                && step < steps
            {
                // What the end of the stage needs: said before all the work.
                let open = |path: &Path| Ok(WeightsFile::open(path)?);
                checkpoint::best(&journal.dir, (id, output), best.step, journal.observer, open)?;
            }
            Ok(newest)
        };
        if let Some(mut saved) = Saved::for_all(&group, newest)? {
            let progress = saved.progress;
            (done, wall, best) = (progress.step, progress.wall, progress.best);
            journal.clock.resume(progress.run_wall);
            task.restore_state(saved.take_task());
            task.restore_learners(&mut saved)?;
            saved.finish()?;
        } else {
            task.begin()?;
        }
        journal.metrics.rewind(id, done)?;
        journal.observer.event(&Event::StageStarted { stage: id, steps, done, batch });

        let mut watch = Watch::new(id);
        let mut start = Instant::now();
        let mut saved = Instant::now();
        for step in done..steps {
            let Stepped { learners, note } = task.step(step, steps)?;
            let main = &learners.first().expect("a step moves a learner").update;
            let (lr, weight_decay) = (main.lr, main.weight_decay);
            let skipped: Vec<_> =
                learners.iter().filter_map(|learned| learned.update.skipped).collect();
            watch.step(Seen { step, learners });

            let done = step + 1;
            let is_last = done == steps;
            let is_logged = step.is_multiple_of(journal.log.every) || is_last;
            let is_measured = journal.log.is_measured(done) || (is_last && journal.log.measures());
            let is_due = group.leads() && journal.log.is_due(done, saved.elapsed());
            let stopped = journal.is_stopped();
            let [stopped, is_due] = agree(&group, [stopped, is_due], task.images())?;
            let is_saved = is_last || stopped || is_measured || is_due;
            journal.warn(task.images())?;
            // Reading waits for the device. No checkpoint follows what is not a number.
            let losses = if is_logged || is_saved { Some(watch.look()?) } else { None };
            if let Some(losses) = losses.as_ref().filter(|_| is_logged) {
                journal.log_step(id, step, losses, lr, weight_decay)?;
            }
            for scale in skipped {
                journal.metrics.line(&serde_json::json!({
                    "stage": id, "step": step,
                    "loss_scale": scale.factor(), "steps_skipped": scale.skipped(),
                }))?;
            }
            if let Some(note) = note {
                journal.metrics.line(&note)?;
            }
            journal.observer.event(&Event::Step { stage: id, step, losses: losses.as_deref() });
            if is_measured {
                let measure = task.measure()?;
                journal.log_measure(id, step, &measure)?;
                if measure.value.is_nan() {
                    let name = measure.name;
                    return Err(TrainError::BadMeasure { stage: id, step: done, name });
                }
                if measure.beats(best) {
                    best = Some(Best { step: done, value: measure.value });
                }
                if group.leads() {
                    let sheet = task.draw()?;
                    journal.dir.write_png(&format!("sheet-{id}-{done}.png"), &sheet)?;
                    journal.metrics.sheet(id, step, &sheet)?;
                }
            }
            if is_saved {
                journal.metrics.flush()?;
                wall += start.elapsed();
                start = Instant::now();
                let run_wall = journal.clock.elapsed();
                let progress = Progress { step: done, wall, run_wall, best };
                let (learners, state) = (task.learners(), task.state()?);
                let kept = journal.log.checkpoints_kept;
                checkpoint::save(&journal.dir, &group, id, progress, &learners, state, kept)?;
                saved = Instant::now();
            }
            if stopped && !is_last {
                return Err(TrainError::Stopped { stage: id, step: done });
            }
        }
        wall += start.elapsed();
        let wall_s = wall.as_secs_f64();
        journal.observer.event(&Event::StageEnded { stage: id, wall_s });
        let best_step = best.map(|best| best.step);
        journal.stages.push(StageReport {
            name: id.name().into(),
            wall_s,
            steps,
            batch,
            parameters: task.n_parameters(),
            best_step,
        });
        Ok(best_step)
    }
}

/// Whether any rank says so, answer by answer; on the way all learn which images others could not read.
///
/// # Errors
/// If a rank has failed, or was waited for in vain, or too many images cannot be read.
fn agree(group: &Group, answers: [bool; 2], images: &Images) -> Result<[bool; 2], TrainError> {
    if group.is_alone() {
        return Ok(answers);
    }
    let message = serde_json::to_vec(&(answers, images.take_found())).expect("plain values");
    let mut any = [false; 2];
    for (rank, theirs) in group.all_gather(&message)?.iter().enumerate() {
        let (theirs, found): ([bool; 2], Vec<FoundUnreadable>) =
            serde_json::from_slice(theirs).map_err(|_| ExchangeError::Unexpected { rank })?;
        any.iter_mut().zip(theirs).for_each(|(any, theirs)| *any |= theirs);
        images.adopt(found)?;
    }
    Ok(any)
}

impl Journal<'_> {
    /// Whether the run is to stop: it was interrupted, or its folder has a file `stop`.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.dir.is_asked_to_stop()
    }

    /// Writes a step's line.
    fn log_step(
        &mut self,
        stage: StageId,
        step: u64,
        losses: &[(String, f64)],
        lr: f64,
        weight_decay: f64,
    ) -> Result<(), TrainError> {
        let mut line = serde_json::Map::new();
        line.insert("stage".into(), stage.name().into());
        line.insert("step".into(), step.into());
        for (part, value) in losses {
            line.insert(part.clone(), (*value).into());
        }
        line.insert("lr".into(), lr.into());
        line.insert("weight_decay".into(), weight_decay.into());
        self.metrics.line(&line.into())
    }

    fn log_measure(
        &mut self,
        stage: StageId,
        step: u64,
        Measure { name, value, details, .. }: &Measure,
    ) -> Result<(), TrainError> {
        let mut line = serde_json::json!({ "stage": stage, "step": step, *name: value });
        for (name, value) in details {
            line[*name] = value.clone();
        }
        self.metrics.line(&line)
    }

    /// Says which images turned out to be unreadable, and remembers them: they may be replaced or
    /// removed before the run goes on.
    pub(crate) fn warn(&mut self, images: &Images) -> Result<(), TrainError> {
        let warnings = images.take_warnings();
        for message in &warnings {
            self.observer.event(&Event::Warning { message });
        }
        match warnings.is_empty() {
            true => Ok(()),
            false => self.dir.remember_unreadable(&images.unreadable()),
        }
    }

    /// Writes a file of the run and says so.
    pub(crate) fn wrote(&mut self, path: &Path) {
        self.observer.event(&Event::Wrote { path });
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Autodiff;
    use burn::module::Module;
    use burn::nn::{Linear, LinearConfig};
    use burn::tensor::Tensor;
    use burn_flex::Flex;
    use sar_core::SeedTree;
    use sar_data::ReadAhead;
    use sar_model::Precision;
    use sar_weights::{Layout, collect, fill};

    use super::*;
    use crate::Recipe;
    use crate::event::Silent;
    use crate::learner::Learner;
    use crate::step::Terms;

    type A = Autodiff<Flex>;

    const BARE: Layout = Layout { renames: &[], ignored: &[] };
    const STEPS: u64 = 7;

    /// Two models that pull at each other, each with an optimizer of its own; the second one moves at
    /// every other step only.
    struct Two<'a> {
        images: &'a Images,
        group: &'a Group,
        first: Learner<A, Linear<A>>,
        second: Learner<A, Linear<A>>,
    }

    fn learner(name: &'static str, recipe: &Recipe) -> Learner<A, Linear<A>> {
        let linear = LinearConfig::new(3, 2).init::<Flex>(&Default::default());
        let draws = SeedTree::new(4).child(name);
        let linear =
            fill(linear, &BARE, |name, shape| draws.child(name).normals(shape.iter().product()));
        Learner::new(name, linear, &BARE, &recipe.sar.optimization, Precision::F32)
    }

    impl<'a> Two<'a> {
        fn new(images: &'a Images, group: &'a Group, recipe: &Recipe) -> Self {
            Self {
                images,
                group,
                first: learner("first", recipe),
                second: learner("second", recipe),
            }
        }

        fn moved(
            learner: &mut Learner<A, Linear<A>>,
            other: Linear<Flex>,
            (step, steps): (u64, u64),
        ) -> Result<Learned<Flex>, TrainError> {
            let sum = learner.accumulate(vec![()], 1, |model, ()| {
                let x = SeedTree::new(step).normals(6);
                let x = Tensor::<Flex, 1>::from_floats(&x[..], &Default::default()).reshape([2, 3]);
                let wanted = Tensor::<A, 2>::from_inner(other.forward(x.clone()));
                let error = model.forward(Tensor::from_inner(x)) - wanted;
                let loss = error.square().mean();
                let parts = vec![("error", loss.clone().inner())];
                (Terms { loss, parts, scales: Vec::new() }, ())
            })?;
            let update = learner.update(sum.gradients, (step, steps))?;
            learner.take_average(&update);
            Ok(Learned { parts: sum.parts, scales: sum.scales, update })
        }
    }

    impl Task<Flex> for Two<'_> {
        fn step(&mut self, step: u64, steps: u64) -> Result<Stepped<Flex>, TrainError> {
            let other = self.second.model().clone();
            let mut learners = vec![Self::moved(&mut self.first, other, (step, steps))?];
            if step.is_multiple_of(2) {
                let other = self.first.model().clone();
                learners.push(Self::moved(&mut self.second, other, (step, steps))?);
            }
            Ok(Stepped { learners, note: None })
        }

        fn measure(&self) -> Result<Measure, TrainError> {
            unreachable!("nothing is measured")
        }

        fn draw(&self) -> Result<RgbImage, TrainError> {
            unreachable!("nothing is measured")
        }

        fn images(&self) -> &Images {
            self.images
        }

        fn group(&self) -> &Group {
            self.group
        }

        fn n_parameters(&self) -> usize {
            self.first.n_parameters() + self.second.n_parameters()
        }

        fn learners(&self) -> Vec<State<'_>> {
            vec![self.first.state(), self.second.state()]
        }

        fn restore_learners(&mut self, saved: &mut Saved) -> Result<(), TrainError> {
            let device = Default::default();
            self.first.restore(saved, &device)?;
            self.second.restore(saved, &device)
        }
    }

    /// Runs the stage to its end, or as far as `stop` allows; what the four sets of weights are then.
    fn run(
        dir: &Path,
        recipe: &Recipe,
        images: &Images,
        stop: &AtomicBool,
    ) -> Result<Vec<TensorData>, TrainError> {
        let dir = match dir.join("recipe.toml").exists() {
            true => RunDir::reopen(dir)?,
            false => RunDir::create(dir, recipe, images.fingerprint())?,
        };
        let metrics = Metrics::open(&dir, false)?;
        let mut observer = Silent;
        let mut journal = Journal {
            dir,
            metrics,
            observer: &mut observer,
            stop,
            log: &recipe.log,
            stages: Vec::new(),
            clock: Clock::start(),
        };
        let group = Group::alone();
        let mut task = Two::new(images, &group, recipe);
        let (id, output) = (StageId::Sar, recipe.sar.output);
        Stage { id, steps: STEPS, batch: 1, output }.run(&mut task, &mut journal)?;
        let weights = |linear: &Linear<Flex>| -> Vec<TensorData> {
            collect(linear, &BARE).into_iter().map(|(_, data)| data).collect()
        };
        let ends = [task.first, task.second].map(Learner::into_trained);
        let all = ends.iter().flat_map(|end| [Some(&end.model), end.average.as_ref()]);
        Ok(all.flatten().flat_map(weights).collect())
    }

    #[test]
    fn two_learners_share_a_stage_and_its_checkpoints() {
        let settings = ["sar.optimization.ema=0.5", "log.measure_steps=0"];
        let recipe = Recipe::load("emoji-quick", &settings.map(String::from)).unwrap();
        let images = Images::open(&recipe.data, ReadAhead::default(), &|| ()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let never = AtomicBool::new(false);
        let whole = run(&folder.path().join("whole"), &recipe, &images, &never).unwrap();
        assert_eq!(whole.len(), 8, "weights and biases of two models and of their averages");
        let n = LinearConfig::new(3, 2).init::<Flex>(&Default::default()).num_params();
        assert_eq!(whole.iter().map(|data| data.num_elements()).sum::<usize>(), 4 * n);
        let pieces = folder.path().join("pieces");
        // Asked beforehand, each start makes one step.
        let always = AtomicBool::new(true);
        for step in 1..STEPS {
            let stopped = run(&pieces, &recipe, &images, &always).unwrap_err();
            assert!(matches!(stopped, TrainError::Stopped { step: at, .. } if at == step));
        }
        // A best checkpoint that is gone is missed at once where the stage is to end with it.
        let newest = checkpoint::path_of(&pieces.join("checkpoints"), StageId::Sar, STEPS - 1);
        let mut tensors = NamedTensors::read(&newest).unwrap();
        for (field, value) in [("best_step", "1"), ("best_value", "0.5")] {
            tensors.metadata_mut().insert(field.into(), value.into());
        }
        tensors.write_safetensors(&newest).unwrap();
        let of_best = Recipe::load("emoji-quick", &["sar.output=best".into()]).unwrap();
        let missed = run(&pieces, &of_best, &images, &never).unwrap_err();
        assert!(matches!(missed, TrainError::Best { stage: StageId::Sar, .. }), "{missed}");
        assert_eq!(run(&pieces, &recipe, &images, &never).unwrap(), whole);
        // One learner's checkpoint is not another's.
        let path = checkpoint::path_of(&pieces.join("checkpoints"), StageId::Sar, STEPS);
        let mut saved = Saved::read(&path).unwrap();
        assert!(learner("third", &recipe).restore(&mut saved, &Default::default()).is_err());
        let mut saved = Saved::read(&path).unwrap();
        learner("first", &recipe).restore(&mut saved, &Default::default()).unwrap();
        assert!(saved.finish().unwrap_err().to_string().contains("unknown tensor 'second."));
    }
}
