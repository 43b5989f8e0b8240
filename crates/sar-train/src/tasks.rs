//! The two tasks of a run: a tokenizer on images, a backbone on the tokens of images.
//!
//! Shapes: b batch, c code channels, h w latent positions.

use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{Int, Tensor, TensorData};
use sar_core::{ScaleSchedule, SeedTree};
use sar_data::{EpochOrder, ImageBatch, Images, Loader};
use sar_loss::histogram_entropy;
use sar_model::Backbone;
use sar_tokenizer::Tokenizer;
use sar_weights::NamedTensors;

use crate::TrainError;
use crate::backbone_task::{TokenBatch, backbone_loss};
use crate::held_out::HeldOutMeter;
use crate::k_means::k_means;
use crate::latents::LatentCache;
use crate::loss_scale::LossScale;
use crate::objective::{BackboneMeasure, Objective, Regularisation};
use crate::recipe::{InitFrom, Recipe, TokenizerRecipe};
use crate::run::EVALUATION_BATCH;
use crate::stage::{Better, Followed, Measure, Task};
use crate::step::{Optimisation, Terms};
use crate::tokenizer_meter::TokenizerMeter;
use crate::tokenizer_task::{CodeUsage, latents, revive, tokenizer_loss};

/// The images of a stage, step by step.
struct Batches<'a> {
    images: &'a Images,
    stage: SeedTree,
    batch: usize,
    micro_batches: usize,
    /// Which image comes at which position, where latents are read instead of images.
    order: EpochOrder,
    /// Reads ahead from the first step that was asked for.
    loader: Option<Loader>,
}

impl<'a> Batches<'a> {
    fn new(images: &'a Images, stage: SeedTree, optimisation: &Optimisation) -> Self {
        let Optimisation { batch, micro_batches, .. } = *optimisation;
        Self { images, stage, batch, micro_batches, order: images.order(stage), loader: None }
    }

    fn of_step(&mut self, step: u64) -> Result<Vec<ImageBatch>, TrainError> {
        let start = step * self.batch as u64;
        let size = self.batch / self.micro_batches;
        let loader = self.loader.take().filter(|loader| loader.position() == start);
        let mut loader = loader.unwrap_or_else(|| self.images.training(self.stage, start, size));
        let batches = loader.by_ref().take(self.micro_batches).collect::<Result<_, _>>()?;
        self.loader = Some(loader);
        Ok(batches)
    }

    /// The same images as stored latents, each in a variant that its stream draws.
    fn latents_of_step(
        &mut self,
        step: u64,
        cache: &LatentCache,
    ) -> Result<Vec<LatentBatch>, TrainError> {
        let size = self.batch / self.micro_batches;
        let start = step * self.batch as u64;
        let [c, h, w] = cache.shape_chw();
        let batch = |micro: usize| {
            let at = start + (micro * size) as u64;
            let mut batch = LatentBatch {
                values: Vec::with_capacity(size * c * h * w),
                shape_bchw: [size, c, h, w],
                labels: Vec::with_capacity(size),
                streams: Vec::with_capacity(size),
            };
            for position in at..at + size as u64 {
                let image = self.order.index(position);
                let stream = Images::stream(self.stage, position);
                let variant = stream.child("variant").below(0, cache.variants());
                let (values, label) = cache.read(image, variant)?;
                batch.values.extend(values);
                batch.labels.push(label);
                batch.streams.push(stream);
            }
            Ok(batch)
        };
        (0..self.micro_batches).map(batch).collect()
    }
}

pub(crate) struct TokenizerTask<'a, A: AutodiffBackend> {
    recipe: &'a TokenizerRecipe,
    schedule: &'a ScaleSchedule,
    device: &'a A::Device,
    seed: SeedTree,
    batches: Batches<'a>,
    usage: CodeUsage<A::InnerBackend>,
    /// Held-out images per measurement.
    measured: usize,
}

impl<'a, A: AutodiffBackend> TokenizerTask<'a, A> {
    pub(crate) fn new(
        recipe: &'a Recipe,
        images: &'a Images,
        seed: SeedTree,
        device: &'a A::Device,
    ) -> Self {
        let (schedule, measured) = (recipe.scales(), recipe.log.measure_images);
        let recipe = &recipe.tokenizer;
        Self {
            recipe,
            schedule,
            device,
            seed,
            batches: Batches::new(images, seed, &recipe.optimisation),
            usage: CodeUsage::new(recipe.model.codebook_size, device),
            measured,
        }
    }
}

/// Latents that a first codebook is made of, for each code, if no more than `FIRST_IMAGES` have them.
const LATENTS_PER_CODE: usize = 16;
const FIRST_IMAGES: usize = 128;

const USAGE: &str = "code_usage";

impl<A: AutodiffBackend> Task<A> for TokenizerTask<'_, A> {
    type Model = Tokenizer<A>;
    type Input = (ImageBatch, SeedTree);
    type Output = (ImageBatch, Tensor<A::InnerBackend, 1, Int>);

    /// Makes the codebook from latents of training images at all scales, unless it comes from weights.
    fn begin(
        &self,
        model: Tokenizer<A::InnerBackend>,
    ) -> Result<Tokenizer<A::InnerBackend>, TrainError> {
        if self.recipe.init_from != (InitFrom::Scratch {}) {
            return Ok(model);
        }
        let config = &self.recipe.model;
        let (v, c) = (config.codebook_size, config.codebook_dim);
        let tokens = self.schedule.n_tokens();
        let n = (LATENTS_PER_CODE * v).div_ceil(tokens).min(FIRST_IMAGES);
        let seed = self.seed.child("codebook");
        let mut rows = Vec::new();
        let mut left = n;
        for batch in self.batches.images.training(seed, 0, EVALUATION_BATCH.min(n)) {
            let mut batch = batch?;
            batch.images.truncate(left);
            left -= batch.images.len();
            let scales = 0..self.schedule.len();
            let part = latents(&model, batch.tensor(self.device), self.schedule, scales);
            rows.extend(part.into_data().convert::<f32>().into_vec::<f32>().expect("f32"));
            if left == 0 {
                break;
            }
        }
        let codes = TensorData::new(k_means(&rows, c, v, model.codebook().metric(), seed), [v, c]);
        Ok(model.with_codebook(|book| book.with_raw(Tensor::from_data(codes, self.device))))
    }

    fn micro_batches(&mut self, step: u64) -> Result<Vec<Self::Input>, TrainError> {
        let draws = self.seed.child("step").at(step);
        let batches = self.batches.of_step(step)?;
        Ok(batches.into_iter().map(|images| (images, draws)).collect())
    }

    fn loss(&self, model: &Self::Model, (images, draws): Self::Input) -> (Terms<A>, Self::Output) {
        let pixels_bchw = images.tensor(self.device);
        let (terms, indices_n) =
            tokenizer_loss(model, pixels_bchw, self.schedule, &self.recipe.loss, draws);
        (terms, (images, indices_n))
    }

    fn after(
        &mut self,
        model: Tokenizer<A::InnerBackend>,
        step: u64,
        outputs: Vec<Self::Output>,
    ) -> Followed<Tokenizer<A::InnerBackend>> {
        let mut last = None;
        for (images, indices_n) in outputs {
            self.usage.add(indices_n);
            last = Some(images);
        }
        let every = self.recipe.revive_every;
        if every == 0 || !(step + 1).is_multiple_of(every) {
            return (model, None);
        }
        let counts = self.usage.counts();
        let codes = counts.len();
        self.usage = CodeUsage::new(codes, self.device);
        let used = counts.iter().filter(|n| **n > 0).count();
        let note = serde_json::json!({
            "stage": "tokenizer", "step": step, "codes_used": used,
            "perplexity": histogram_entropy(&counts).exp(),
        });
        let Some(images) = last.filter(|_| used < codes && step < self.recipe.revive_until) else {
            return (model, Some(note));
        };
        let n_scales = self.schedule.len();
        let finest = n_scales - 1..n_scales;
        let rows = latents(&model, images.tensor(self.device), self.schedule, finest);
        let draws = self.seed.child("revive").at(step);
        (model.with_codebook(|book| revive(book, &counts, rows, draws)), Some(note))
    }

    fn measure(&self, model: &Tokenizer<A::InnerBackend>) -> Result<Measure, TrainError> {
        let mut meter = TokenizerMeter::new(self.schedule, self.recipe.model.codebook_size);
        for batch in self.batches.images.held_out(self.measured, EVALUATION_BATCH) {
            meter.add(model, batch?.tensor(self.device));
        }
        let (name, better) = ("held_out_psnr_db", Better::Higher);
        Ok(Measure { name, value: meter.psnr_db(), better })
    }

    fn images(&self) -> &Images {
        self.batches.images
    }

    fn state(&self) -> Vec<(&'static str, TensorData)> {
        vec![(USAGE, self.usage.to_data())]
    }

    fn restore(&mut self, state: &NamedTensors) {
        if let Some(counts) = state.get(USAGE) {
            self.usage = CodeUsage::from_data(counts.clone(), self.device);
        }
    }
}

/// Where the frozen tokenizer's latents come from.
#[derive(Clone, Copy)]
pub(crate) enum LatentSource<'a> {
    Online,
    Cached(&'a LatentCache),
}

/// How a backbone stage differs from others.
#[derive(Clone, Copy)]
pub(crate) struct How<'a> {
    pub(crate) optimisation: &'a Optimisation,
    pub(crate) objective: &'a Objective,
    pub(crate) regularisation: &'a Regularisation,
    pub(crate) best_by: BackboneMeasure,
}

pub(crate) struct BackboneTask<'a, A: AutodiffBackend> {
    recipe: &'a Recipe,
    how: How<'a>,
    tokenizer: &'a Tokenizer<A::InnerBackend>,
    latents: LatentSource<'a>,
    device: &'a A::Device,
    seed: SeedTree,
    batches: Batches<'a>,
}

impl<'a, A: AutodiffBackend> BackboneTask<'a, A> {
    pub(crate) fn new(
        recipe: &'a Recipe,
        how: How<'a>,
        images: &'a Images,
        (tokenizer, latents): (&'a Tokenizer<A::InnerBackend>, LatentSource<'a>),
        seed: SeedTree,
        device: &'a A::Device,
    ) -> Self {
        let batches = Batches::new(images, seed, how.optimisation);
        Self { recipe, how, tokenizer, latents, device, seed, batches }
    }
}

/// A micro-batch before the tokenizer, or after it.
pub(crate) enum Source {
    Images(ImageBatch),
    Latents(LatentBatch),
}

/// Stored latents of some images.
pub(crate) struct LatentBatch {
    values: Vec<f32>,
    shape_bchw: [usize; 4],
    labels: Vec<usize>,
    streams: Vec<SeedTree>,
}

impl<A: AutodiffBackend> Task<A> for BackboneTask<'_, A> {
    type Model = Backbone<A>;
    type Input = (Source, ScaleSchedule, SeedTree);
    type Output = ();

    fn micro_batches(&mut self, step: u64) -> Result<Vec<Self::Input>, TrainError> {
        let draws = self.seed.child("step").at(step);
        let sources: Vec<Source> = match self.latents {
            LatentSource::Online => {
                self.batches.of_step(step)?.into_iter().map(Source::Images).collect()
            }
            LatentSource::Cached(cache) => {
                let batches = self.batches.latents_of_step(step, cache)?;
                batches.into_iter().map(Source::Latents).collect()
            }
        };
        let schedules = &self.recipe.backbone.schedule;
        let inputs = sources.into_iter().enumerate().map(|(micro, source)| {
            // A draw for each micro-batch.
            let schedule = schedules.draw(draws.child("schedule").at(micro as u64))?;
            Ok((source, schedule, draws))
        });
        inputs.collect()
    }

    fn loss(&self, model: &Self::Model, (source, schedule, draws): Self::Input) -> (Terms<A>, ()) {
        let tokens = match source {
            Source::Images(images) => {
                TokenBatch::encode(self.tokenizer, images, schedule, self.device)
            }
            Source::Latents(LatentBatch { values, shape_bchw, labels, streams }) => {
                let h_bchw = Tensor::from_data(TensorData::new(values, shape_bchw), self.device);
                TokenBatch::quantise(self.tokenizer, h_bchw, (labels, streams), schedule)
            }
        };
        let terms = backbone_loss(
            &self.recipe.backbone.precision.view(model),
            self.tokenizer,
            &tokens,
            self.how.objective,
            self.how.regularisation,
            draws,
            self.device,
        );
        (terms, ())
    }

    fn loss_scale(&self) -> Option<LossScale> {
        LossScale::of(self.recipe.backbone.precision)
    }

    fn images(&self) -> &Images {
        self.batches.images
    }

    fn measure(&self, model: &Backbone<A::InnerBackend>) -> Result<Measure, TrainError> {
        let schedule = self.recipe.scales();
        let mut meter = HeldOutMeter::new(schedule, self.recipe.tokenizer.model.codebook_size);
        let n = self.recipe.log.measure_images;
        for images in self.batches.images.held_out(n, EVALUATION_BATCH) {
            let batch = TokenBatch::encode(self.tokenizer, images?, schedule.clone(), self.device);
            meter.add(model, self.tokenizer, &batch, self.device);
        }
        let [teacher, student] = meter.means();
        let (name, value) = match self.how.best_by {
            BackboneMeasure::TeacherLoss => ("held_out_teacher", teacher),
            BackboneMeasure::StudentLoss => ("held_out_student", student),
        };
        Ok(Measure { name, value, better: Better::Lower })
    }
}
