//! The loop of every stage: steps, metrics, checkpoints, and how it goes on where it stopped.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use burn::module::{AutodiffModule, Module};
use burn::tensor::TensorData;
use burn::tensor::backend::AutodiffBackend;
use sar_data::Images;
use sar_weights::{Layout, NamedTensors, parameters};

use crate::TrainError;
use crate::checkpoint::{Best, Checkpoint, Progress, State};
use crate::ema::Ema;
use crate::event::{Event, Observer};
use crate::loss_scale::LossScale;
use crate::optim::AdamW;
use crate::recipe::LogRecipe;
use crate::report::StageReport;
use crate::run_dir::{Metrics, RunDir};
use crate::step::{Optimisation, Terms, accumulate};
use crate::watch::{Seen, Watch};

/// What one stage trains: a step's inputs, its loss, and what follows a step.
pub(crate) trait Task<A: AutodiffBackend>: Sync {
    type Model: AutodiffModule<A, InnerModule: Send>;
    type Input: Send;
    type Output: Send;

    /// What precedes the first step; a stage that goes on from a checkpoint has it behind.
    fn begin(
        &self,
        model: <Self::Model as AutodiffModule<A>>::InnerModule,
    ) -> Result<<Self::Model as AutodiffModule<A>>::InnerModule, TrainError> {
        Ok(model)
    }

    /// The micro-batches of a step, equal in size.
    fn micro_batches(&mut self, step: u64) -> Result<Vec<Self::Input>, TrainError>;

    /// The loss of a micro-batch.
    fn loss(&self, model: &Self::Model, input: Self::Input) -> (Terms<A>, Self::Output);

    /// What follows a step.
    fn after(
        &mut self,
        model: <Self::Model as AutodiffModule<A>>::InnerModule,
        _step: u64,
        _outputs: Vec<Self::Output>,
    ) -> Followed<<Self::Model as AutodiffModule<A>>::InnerModule> {
        (model, None)
    }

    /// How good the model is on held-out images; it decides which checkpoint is the best.
    fn measure(
        &self,
        model: &<Self::Model as AutodiffModule<A>>::InnerModule,
    ) -> Result<Measure, TrainError>;

    /// The images that it trains on.
    fn images(&self) -> &Images;

    /// What the task itself remembers between steps.
    fn state(&self) -> Vec<(&'static str, TensorData)> {
        Vec::new()
    }

    /// Takes back what [`state`](Self::state) gave.
    fn restore(&mut self, _state: &NamedTensors) {}

    /// Where the scale of its loss starts, if its gradients need one.
    fn loss_scale(&self) -> Option<LossScale> {
        None
    }
}

/// The model after what follows a step, and anything to be noted in the metrics.
pub(crate) type Followed<M> = (M, Option<serde_json::Value>);

/// A figure on held-out images.
pub(crate) struct Measure {
    pub(crate) name: &'static str,
    pub(crate) value: f64,
    pub(crate) better: Better,
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
pub(crate) struct Stage<'s> {
    pub(crate) name: &'static str,
    pub(crate) steps: u64,
    pub(crate) optimisation: &'s Optimisation,
    pub(crate) layout: &'static Layout,
}

/// What a stage ends with.
#[derive(Clone, Debug)]
pub(crate) struct Trained<M> {
    pub(crate) model: M,
    /// The average of the weights, where the recipe asks for one.
    pub(crate) average: Option<M>,
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

impl Stage<'_> {
    /// Runs what is left of the stage; without steps it leaves no trace.
    pub(crate) fn run<A: AutodiffBackend, T: Task<A>>(
        &self,
        task: &mut T,
        mut model: <T::Model as AutodiffModule<A>>::InnerModule,
        workers: usize,
        device: &A::Device,
        journal: &mut Journal<'_>,
    ) -> Result<Trained<<T::Model as AutodiffModule<A>>::InnerModule>, TrainError> {
        let Self { name, steps, optimisation, layout } = *self;
        if steps == 0 {
            return Ok(Trained { model, average: None });
        }
        let infos = parameters(&model, layout);
        let mut optimizer = AdamW::new(optimisation.adamw, infos.clone());
        let mut ema;
        let mut loss_scale = task.loss_scale();
        let (mut done, mut wall, mut best) = (0, Duration::ZERO, None);
        if let Some(checkpoint) = Checkpoint::newest(&journal.dir, name, steps, journal.observer)? {
            let progress = checkpoint.progress;
            (done, wall, best) = (progress.step, progress.wall, progress.best);
            loss_scale = checkpoint.loss_scale(loss_scale)?;
            journal.clock.resume(progress.run_wall);
            task.restore(checkpoint.task_state());
            let restored =
                checkpoint.restore(model, optimisation.ema, &mut optimizer, layout, device)?;
            (model, ema) = (restored.model, restored.ema);
        } else {
            model = task.begin(model)?;
            ema = Ema::new(optimisation.ema, model.clone());
        }
        if done < steps {
            Checkpoint::discard_after(&journal.dir, name)?;
        }
        journal.metrics.rewind(name, done)?;
        let batch = optimisation.batch;
        journal.observer.event(&Event::StageStarted { stage: name, steps, done, batch });

        let mut watch = Watch::new(name, infos);
        let mut start = Instant::now();
        let mut saved = Instant::now();
        for step in done..steps {
            let inputs = task.micro_batches(step)?;
            journal.warn(task.images());
            let factor = loss_scale.map_or(1.0, |scale| scale.factor());
            let sum = accumulate::<A, _, _, _>(&model, inputs, workers, factor, |model, input| {
                task.loss(model, input)
            });
            let with_gradient = sum.gradients.with_gradient();
            let (next, update) = optimisation.update(
                model,
                &mut optimizer,
                sum.gradients,
                (step, steps),
                loss_scale.as_mut(),
            );
            let (next, note) = task.after(next, step, sum.outputs);
            model = next;
            if !update.is_skipped {
                ema = ema.map(|ema| ema.update(&model));
            }
            watch.step(Seen {
                step,
                parts: sum.parts,
                scales: sum.scales,
                gradient_norm: update.gradient_norm,
                is_skipped: update.is_skipped,
                loss_scale: factor,
                squares_p: update.squares_p,
                with_gradient,
            });

            let done = step + 1;
            let is_last = done == steps;
            let is_logged = step.is_multiple_of(journal.log.every) || is_last;
            let is_measured = journal.log.is_measured(done) || (is_last && journal.log.measures());
            let stopped = journal.stop.load(Ordering::Relaxed);
            let is_saved =
                is_last || stopped || is_measured || journal.log.is_due(done, saved.elapsed());
            // Reading waits for the device. No checkpoint follows what is no number.
            let losses = if is_logged || is_saved { Some(watch.look()?) } else { None };
            if let Some(losses) = losses.as_ref().filter(|_| is_logged) {
                journal.log_step(name, step, losses, update.lr, update.weight_decay)?;
            }
            if let Some(scale) = loss_scale.filter(|_| update.is_skipped) {
                journal.metrics.line(&serde_json::json!({
                    "stage": name, "step": step,
                    "loss_scale": scale.factor(), "steps_skipped": scale.skipped(),
                }))?;
            }
            if let Some(note) = note {
                journal.metrics.line(&note)?;
            }
            journal.observer.event(&Event::Step { stage: name, step, losses: losses.as_deref() });
            if is_measured {
                let measure = task.measure(&model)?;
                journal.log_measure(name, step, &measure)?;
                if measure.beats(best) {
                    best = Some(Best { step: done, value: measure.value });
                }
            }
            if is_saved {
                journal.metrics.flush()?;
                wall += start.elapsed();
                start = Instant::now();
                let run_wall = journal.clock.elapsed();
                let progress = Progress { step: done, wall, run_wall, best };
                let state = State {
                    model: &model,
                    ema: ema.as_ref(),
                    optimizer: &optimizer,
                    loss_scale,
                    layout,
                    task: task.state(),
                };
                Checkpoint::save(&journal.dir, name, progress, state)?;
                saved = Instant::now();
            }
            if stopped && !is_last {
                return Err(TrainError::Stopped { stage: name, step: done });
            }
        }
        wall += start.elapsed();
        let wall_s = wall.as_secs_f64();
        journal.observer.event(&Event::StageEnded { stage: name, wall_s });
        journal.stages.push(StageReport {
            name: name.into(),
            wall_s,
            steps,
            batch,
            parameters: model.num_params(),
            best_step: best.map(|best| best.step),
        });
        Ok(Trained { model, average: ema.map(Ema::into_average) })
    }
}

impl Journal<'_> {
    /// Writes a step's line.
    fn log_step(
        &mut self,
        stage: &'static str,
        step: u64,
        losses: &[(&'static str, f64)],
        lr: f64,
        weight_decay: f64,
    ) -> Result<(), TrainError> {
        let mut line = serde_json::Map::new();
        line.insert("stage".into(), stage.into());
        line.insert("step".into(), step.into());
        for (part, value) in losses {
            line.insert((*part).into(), (*value).into());
        }
        line.insert("lr".into(), lr.into());
        line.insert("weight_decay".into(), weight_decay.into());
        self.metrics.line(&line.into())
    }

    fn log_measure(
        &mut self,
        stage: &'static str,
        step: u64,
        Measure { name, value, .. }: &Measure,
    ) -> Result<(), TrainError> {
        let line = serde_json::json!({ "stage": stage, "step": step, *name: value });
        self.metrics.line(&line)
    }

    /// Says which images turned out to be unreadable.
    pub(crate) fn warn(&mut self, images: &Images) {
        for message in images.take_warnings() {
            self.observer.event(&Event::Warning { message: &message });
        }
    }

    /// Writes a file of the run and says so.
    pub(crate) fn wrote(&mut self, path: &std::path::Path) {
        self.observer.event(&Event::Wrote { path });
    }
}
