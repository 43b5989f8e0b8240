//! The stages that train a backbone on the tokens of a frozen tokenizer.

use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{Tensor, TensorData};
use sar_core::{ScaleSchedule, SeedTree};
use sar_data::{ImageBatch, Images};
use sar_exchange::{Group, MicroBatches};
use sar_model::Backbone;
use sar_pipeline::RgbImage;
use sar_tokenizer::Tokenizer;

use crate::TrainError;
use crate::backbone_loss::backbone_loss;
use crate::batches::Batches;
use crate::checkpoint::Saved;
use crate::figures::sample_sheet;
use crate::held_out::HeldOutMeter;
use crate::latents::{LatentBatch, LatentCache};
use crate::learner::{Learner, Optimization, State};
use crate::objective::{BackboneMeasure, Objective, Regularization};
use crate::recipe::Recipe;
use crate::schedule::Ramp;
use crate::stage::{Better, Learned, Measure, Stepped, Task};
use crate::tokens::TokenBatch;

/// The name of a backbone in checkpoints.
pub(crate) const LEARNER: &str = "backbone";

/// Where the frozen tokenizer's latents come from.
#[derive(Clone, Copy)]
pub(crate) enum LatentSource<'a> {
    Online,
    Cached(&'a LatentCache),
}

/// A frozen tokenizer, and where its latents come from.
pub(crate) type Tokens<'t, B> = (&'t Tokenizer<B>, LatentSource<'t>);

/// In what a stage of the backbone differs from the others.
#[derive(Clone, Copy)]
pub(crate) struct BackboneSettings<'a> {
    pub(crate) optimization: &'a Optimization,
    pub(crate) objective: &'a Objective,
    /// A factor of the student term's weight.
    pub(crate) weight: Ramp,
    pub(crate) regularization: &'a Regularization,
    pub(crate) monitor: BackboneMeasure,
}

pub(crate) struct BackboneStage<'a, A: AutodiffBackend> {
    recipe: &'a Recipe,
    settings: BackboneSettings<'a>,
    tokenizer: &'a Tokenizer<A::InnerBackend>,
    latents: LatentSource<'a>,
    device: &'a A::Device,
    workers: usize,
    seed: SeedTree,
    batches: Batches<'a>,
    learner: Learner<A, Backbone<A>>,
}

impl<'a, A: AutodiffBackend> BackboneStage<'a, A> {
    pub(crate) fn new(
        recipe: &'a Recipe,
        settings: BackboneSettings<'a>,
        backbone: Backbone<A::InnerBackend>,
        images: &'a Images,
        (tokenizer, latents): Tokens<'a, A::InnerBackend>,
        (workers, group, seed): (usize, &'a Group, SeedTree),
        device: &'a A::Device,
    ) -> Self {
        let optimization = settings.optimization;
        let precision = recipe.backbone.precision;
        let learner = Learner::new(LEARNER, backbone, &sar_model::LAYOUT, optimization, precision);
        let learner = learner.among(group, recipe.exchange.gradients);
        let batches = Batches::new(images, seed, optimization, group);
        Self { recipe, settings, tokenizer, latents, device, workers, seed, batches, learner }
    }

    pub(crate) fn into_learner(self) -> Learner<A, Backbone<A>> {
        self.learner
    }
}

/// A micro-batch before the tokenizer, or after it.
enum Source {
    Images(ImageBatch),
    Latents(LatentBatch),
}

impl<A: AutodiffBackend> Task<A::InnerBackend> for BackboneStage<'_, A> {
    fn begin(&mut self) -> Result<(), TrainError> {
        Ok(self.learner.begin_together()?)
    }

    fn step(&mut self, step: u64, steps: u64) -> Result<Stepped<A::InnerBackend>, TrainError> {
        let draws = self.seed.child("step").at(step);
        let sources = match self.latents {
            LatentSource::Online => self.batches.of_step(step)?.map(Source::Images),
            LatentSource::Cached(cache) => {
                self.batches.latents_of_step(step, cache)?.map(Source::Latents)
            }
        };
        let share = sources.share();
        let schedules = &self.recipe.backbone.schedule;
        let inputs: Result<Vec<(Source, ScaleSchedule)>, TrainError> = share
            .range()
            .zip(sources.into_items())
            .map(|(micro, source)| {
                // A draw for each micro-batch.
                let schedule = schedules.draw(draws.child("schedule").at(micro as u64))?;
                Ok((source, schedule))
            })
            .collect();
        let (tokenizer, device, settings) = (self.tokenizer, self.device, self.settings);
        let objective = settings.objective.weighted(settings.weight.at(step, steps));
        let precision = self.recipe.backbone.precision;
        let loss = |model: &Backbone<A>, (source, schedule): (Source, ScaleSchedule)| {
            let tokens = match source {
                Source::Images(images) => TokenBatch::encode(tokenizer, images, schedule, device),
                Source::Latents(LatentBatch { values, shape_bchw, labels, streams }) => {
                    let h_bchw = Tensor::from_data(TensorData::new(values, shape_bchw), device);
                    TokenBatch::quantize(tokenizer, h_bchw, (labels, streams), schedule)
                }
            };
            let terms = backbone_loss(
                &precision.view(model),
                tokenizer,
                &tokens,
                &objective,
                settings.regularization,
                draws,
                device,
            );
            (terms, ())
        };
        let inputs = MicroBatches::new(inputs?, share);
        let sum = self.learner.accumulate(inputs, self.workers, loss)?;
        let update = self.learner.update(sum.gradients, (step, steps))?;
        self.learner.take_average(&update);
        let learned = Learned { parts: sum.parts, scales: sum.scales, update };
        Ok(Stepped { learners: vec![learned], note: None })
    }

    fn measure(&self) -> Result<Measure, TrainError> {
        let Recipe { log, evaluation, .. } = self.recipe;
        let images = self.batches.held_out(log.measure_images, evaluation.batch_size);
        let (model, scales) = (self.learner.model(), self.recipe.scales());
        let meter = HeldOutMeter::of(images, model, self.tokenizer, scales, self.device)?;
        let [teacher, student] = meter.means();
        let (name, value) = match self.settings.monitor {
            BackboneMeasure::TeacherLoss => ("held_out_teacher", teacher),
            BackboneMeasure::StudentLoss => ("held_out_student", student),
        };
        let [teacher, student] = meter.means_by_scale();
        let details = vec![
            ("held_out_teacher_scales", teacher.into()),
            ("held_out_student_scales", student.into()),
        ];
        Ok(Measure { name, value, better: Better::Lower, details })
    }

    fn draw(&self) -> Result<RgbImage, TrainError> {
        let Batches { images, group, .. } = self.batches;
        let (models, classes) = ((self.tokenizer, self.learner.model()), images.classes().len());
        Ok(sample_sheet(self.recipe, models, classes, group, self.device))
    }

    fn images(&self) -> &Images {
        self.batches.images
    }

    fn n_parameters(&self) -> usize {
        self.learner.n_parameters()
    }

    fn group(&self) -> &Group {
        self.batches.group
    }

    fn learners(&self) -> Vec<State<'_>> {
        vec![self.learner.state()]
    }

    fn restore_learners(&mut self, saved: &mut Saved) -> Result<(), TrainError> {
        self.learner.restore(saved, self.device)
    }
}
