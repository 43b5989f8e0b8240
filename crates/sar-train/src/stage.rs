//! The loop of every stage: steps, metrics, checkpoints, and how it goes on where it stopped.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use burn::module::{AutodiffModule, Module};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Tensor, TensorData};
use sar_weights::{Layout, NamedTensors, parameters};

use crate::TrainError;
use crate::checkpoint::Checkpoint;
use crate::event::{Event, Observer};
use crate::optim::AdamW;
use crate::recipe::LogRecipe;
use crate::report::StageReport;
use crate::run_dir::{Metrics, RunDir};
use crate::step::{Optimisation, Parts, Terms, Update, accumulate};

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

    /// What the task itself remembers between steps.
    fn state(&self) -> Vec<(&'static str, TensorData)> {
        Vec::new()
    }

    /// Takes back what [`state`](Self::state) gave.
    fn restore(&mut self, _state: &NamedTensors) {}
}

/// The model after what follows a step, and anything to be noted in the metrics.
pub(crate) type Followed<M> = (M, Option<serde_json::Value>);

/// What the loop needs to know of a stage.
#[derive(Clone, Copy)]
pub(crate) struct Stage<'s> {
    pub(crate) name: &'static str,
    pub(crate) steps: u64,
    pub(crate) optimisation: &'s Optimisation,
    pub(crate) layout: &'static Layout,
}

/// Where a run writes, and who hears of it.
pub(crate) struct Journal<'a> {
    pub(crate) dir: RunDir,
    pub(crate) metrics: Metrics,
    pub(crate) observer: &'a mut dyn Observer,
    pub(crate) stop: &'a AtomicBool,
    pub(crate) log: &'a LogRecipe,
    pub(crate) stages: Vec<StageReport>,
}

impl Stage<'_> {
    /// Runs what is left of the stage.
    pub(crate) fn run<A: AutodiffBackend, T: Task<A>>(
        &self,
        task: &mut T,
        mut model: <T::Model as AutodiffModule<A>>::InnerModule,
        workers: usize,
        device: &A::Device,
        journal: &mut Journal<'_>,
    ) -> Result<<T::Model as AutodiffModule<A>>::InnerModule, TrainError> {
        let Self { name, steps, optimisation, layout } = *self;
        let mut optimizer = AdamW::new(optimisation.adamw, parameters(&model, layout));
        let mut done = 0;
        let mut wall = Duration::ZERO;
        if let Some(checkpoint) = Checkpoint::newest(&journal.dir, name, steps, journal.observer)? {
            done = checkpoint.step;
            wall = checkpoint.wall;
            task.restore(checkpoint.task_state());
            model = checkpoint.restore(model, &mut optimizer, layout, device)?;
        } else {
            model = task.begin(model)?;
        }
        journal.metrics.rewind(name, done)?;
        let batch = optimisation.batch;
        journal.observer.event(&Event::StageStarted { stage: name, steps, done, batch });

        let mut start = Instant::now();
        let mut saved = Instant::now();
        for step in done..steps {
            let inputs = task.micro_batches(step)?;
            let sum = accumulate::<A, _, _, _>(&model, inputs, workers, |model, input| {
                task.loss(model, input)
            });
            let (next, update) =
                optimisation.update(model, &mut optimizer, sum.gradients, step, steps);
            let (next, note) = task.after(next, step, sum.outputs);
            model = next;

            let is_last = step + 1 == steps;
            let is_logged = step.is_multiple_of(journal.log.every) || is_last;
            let stopped = journal.stop.load(Ordering::Relaxed);
            let is_saved = is_last || stopped || journal.log.is_due(step + 1, saved.elapsed());
            // Reading waits for the device. No checkpoint follows a loss or a gradient that is no
            // number; the updated weights themselves are not looked at.
            let losses = if is_logged || is_saved {
                Some(losses::<A>(name, step, &sum.parts, &update)?)
            } else {
                None
            };
            if let Some(losses) = losses.as_ref().filter(|_| is_logged) {
                journal.log_step(name, step, losses, &update)?;
            }
            if let Some(note) = note {
                journal.metrics.line(&note)?;
            }
            journal.observer.event(&Event::Step { stage: name, step, losses: losses.as_deref() });
            if is_saved {
                journal.metrics.flush()?;
                wall += start.elapsed();
                start = Instant::now();
                Checkpoint::save(
                    &journal.dir,
                    (name, step + 1, wall),
                    (&model, layout, &optimizer),
                    task.state(),
                )?;
                saved = Instant::now();
            }
            if stopped && !is_last {
                return Err(TrainError::Stopped { stage: name, step: step + 1 });
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
        });
        Ok(model)
    }
}

impl Journal<'_> {
    /// Writes a step's line.
    fn log_step<B: Backend>(
        &mut self,
        stage: &'static str,
        step: u64,
        losses: &[(&'static str, f64)],
        update: &Update<B>,
    ) -> Result<(), TrainError> {
        let mut line = serde_json::Map::new();
        line.insert("stage".into(), stage.into());
        line.insert("step".into(), step.into());
        for (part, value) in losses {
            line.insert((*part).into(), (*value).into());
        }
        line.insert("lr".into(), update.lr.into());
        line.insert("weight_decay".into(), update.weight_decay.into());
        self.metrics.line(&line.into())
    }

    /// Writes a file of the run and says so.
    pub(crate) fn wrote(&mut self, path: &std::path::Path) {
        self.observer.event(&Event::Wrote { path });
    }
}

/// Reads a step's losses and the gradients' norm, and refuses what is no number.
fn losses<A: AutodiffBackend>(
    stage: &'static str,
    step: u64,
    parts: &Parts<A::InnerBackend>,
    update: &Update<A::InnerBackend>,
) -> Result<Vec<(&'static str, f64)>, TrainError> {
    let norm = [("gradient_norm", update.gradient_norm.clone())];
    let read = |(part, value): (&'static str, Tensor<A::InnerBackend, 1>)| {
        let value = value.into_data().convert::<f32>();
        let value = f64::from(value.as_slice::<f32>().expect("f32")[0]);
        if value.is_finite() {
            Ok((part, value))
        } else {
            Err(TrainError::NotFinite { stage, step, part, value })
        }
    };
    parts.iter().cloned().chain(norm).map(read).collect()
}
