//! The two tasks of a run: a tokenizer on images, a backbone on the tokens of images.

use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{Int, Tensor, TensorData};
use sar_core::{ScaleSchedule, SeedTree};
use sar_data::EpochOrder;
use sar_loss::histogram_entropy;
use sar_model::Backbone;
use sar_tokenizer::Tokenizer;
use sar_weights::NamedTensors;

use crate::TrainError;
use crate::backbone_task::{TokenBatch, backbone_loss};
use crate::images::{ImageBatch, Images};
use crate::k_means::k_means;
use crate::objective::{Objective, Regularisation};
use crate::recipe::{Recipe, TokenizerRecipe};
use crate::stage::{Followed, Task};
use crate::step::{Optimisation, Terms};
use crate::tokenizer_task::{CodeUsage, latents, revive, tokenizer_loss};

/// The images of a stage, step by step.
struct Batches<'a> {
    images: &'a Images,
    order: EpochOrder,
    stage: SeedTree,
    batch: usize,
    micro_batches: usize,
}

impl<'a> Batches<'a> {
    fn new(images: &'a Images, stage: SeedTree, optimisation: &Optimisation) -> Self {
        let Optimisation { batch, micro_batches, .. } = *optimisation;
        Self { images, order: images.order(stage), stage, batch, micro_batches }
    }

    fn of_step(&mut self, step: u64) -> Result<Vec<ImageBatch>, TrainError> {
        let size = self.batch / self.micro_batches;
        let start = step * self.batch as u64;
        let starts = (0..self.micro_batches).map(|micro| start + (micro * size) as u64);
        starts.map(|at| self.images.training(&mut self.order, self.stage, at, size)).collect()
    }
}

pub(crate) struct TokenizerTask<'a, A: AutodiffBackend> {
    recipe: &'a TokenizerRecipe,
    schedule: &'a ScaleSchedule,
    device: &'a A::Device,
    seed: SeedTree,
    batches: Batches<'a>,
    usage: CodeUsage<A::InnerBackend>,
}

impl<'a, A: AutodiffBackend> TokenizerTask<'a, A> {
    pub(crate) fn new(
        recipe: &'a Recipe,
        images: &'a Images,
        seed: SeedTree,
        device: &'a A::Device,
    ) -> Self {
        let schedule = recipe.scales();
        let recipe = &recipe.tokenizer;
        Self {
            recipe,
            schedule,
            device,
            seed,
            batches: Batches::new(images, seed, &recipe.optimisation),
            usage: CodeUsage::new(recipe.model.codebook_size, device),
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

    /// Makes the codebook from latents of training images at all scales.
    fn begin(
        &self,
        model: Tokenizer<A::InnerBackend>,
    ) -> Result<Tokenizer<A::InnerBackend>, TrainError> {
        let config = &self.recipe.model;
        let (v, c) = (config.codebook_size, config.codebook_dim);
        let tokens = self.schedule.n_tokens();
        let n = (LATENTS_PER_CODE * v).div_ceil(tokens).min(FIRST_IMAGES);
        let seed = self.seed.child("codebook");
        let images = self.batches.images;
        let batch = images.training(&mut images.order(seed), seed, 0, n)?;
        let scales = 0..self.schedule.len();
        let rows = latents(&model, batch.tensor(self.device), self.schedule, scales);
        let rows = rows.into_data().convert::<f32>().into_vec::<f32>().expect("f32");
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

    fn state(&self) -> Vec<(&'static str, TensorData)> {
        vec![(USAGE, self.usage.to_data())]
    }

    fn restore(&mut self, state: &NamedTensors) {
        if let Some(counts) = state.get(USAGE) {
            self.usage = CodeUsage::from_data(counts.clone(), self.device);
        }
    }
}

pub(crate) struct BackboneTask<'a, A: AutodiffBackend> {
    recipe: &'a Recipe,
    objective: &'a Objective,
    regularisation: &'a Regularisation,
    tokenizer: &'a Tokenizer<A::InnerBackend>,
    device: &'a A::Device,
    seed: SeedTree,
    batches: Batches<'a>,
}

impl<'a, A: AutodiffBackend> BackboneTask<'a, A> {
    pub(crate) fn new(
        recipe: &'a Recipe,
        (optimisation, objective, regularisation): (
            &Optimisation,
            &'a Objective,
            &'a Regularisation,
        ),
        images: &'a Images,
        tokenizer: &'a Tokenizer<A::InnerBackend>,
        seed: SeedTree,
        device: &'a A::Device,
    ) -> Self {
        let batches = Batches::new(images, seed, optimisation);
        Self { recipe, objective, regularisation, tokenizer, device, seed, batches }
    }
}

impl<A: AutodiffBackend> Task<A> for BackboneTask<'_, A> {
    type Model = Backbone<A>;
    type Input = (ImageBatch, ScaleSchedule, SeedTree);
    type Output = ();

    fn micro_batches(&mut self, step: u64) -> Result<Vec<Self::Input>, TrainError> {
        let draws = self.seed.child("step").at(step);
        let schedule = self.recipe.backbone.schedule.draw(draws.child("schedule"))?;
        let batches = self.batches.of_step(step)?;
        Ok(batches.into_iter().map(|images| (images, schedule.clone(), draws)).collect())
    }

    fn loss(&self, model: &Self::Model, (images, schedule, draws): Self::Input) -> (Terms<A>, ()) {
        let tokens = TokenBatch::encode(self.tokenizer, images, schedule, self.device);
        let terms = backbone_loss(
            model,
            self.tokenizer,
            &tokens,
            self.objective,
            self.regularisation,
            draws,
            self.device,
        );
        (terms, ())
    }
}
