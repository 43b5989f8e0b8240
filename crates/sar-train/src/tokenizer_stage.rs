//! The stage that trains a tokenizer on images.

use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{Int, Tensor, TensorData};
use sar_core::SeedTree;
use sar_data::{ImageBatch, Images};
use sar_loss::histogram_entropy;
use sar_model::Precision;
use sar_tokenizer::{ColorAxes, ColorMoments, Tokenizer};
use sar_weights::NamedTensors;

use crate::batches::Batches;
use crate::checkpoint::Saved;
use crate::k_means::k_means;
use crate::learner::{Learner, State};
use crate::recipe::{Colors, DeadCodeRestart, InitFrom, Recipe, TokenizerRecipe};
use crate::stage::{Better, Learned, Measure, Stepped, Task};
use crate::tokenizer_loss::{CodeUsage, latents, restart_dead_codes, tokenizer_loss};
use crate::tokenizer_meter::TokenizerMeter;
use crate::{StageId, TrainError};

pub(crate) struct TokenizerStage<'a, A: AutodiffBackend> {
    recipe: &'a Recipe,
    device: &'a A::Device,
    workers: usize,
    seed: SeedTree,
    batches: Batches<'a>,
    usage: CodeUsage<A::InnerBackend>,
    learner: Learner<A, Tokenizer<A>>,
}

impl<'a, A: AutodiffBackend> TokenizerStage<'a, A> {
    pub(crate) fn new(
        recipe: &'a Recipe,
        tokenizer: Tokenizer<A::InnerBackend>,
        images: &'a Images,
        workers: usize,
        seed: SeedTree,
        device: &'a A::Device,
    ) -> Self {
        let TokenizerRecipe { model, optimization, .. } = &recipe.tokenizer;
        let layout = model.layout();
        Self {
            recipe,
            device,
            workers,
            seed,
            batches: Batches::new(images, seed, optimization),
            usage: CodeUsage::new(model.codebook_size, device),
            learner: Learner::new("tokenizer", tokenizer, layout, optimization, Precision::F32),
        }
    }

    pub(crate) fn into_learner(self) -> Learner<A, Tokenizer<A>> {
        self.learner
    }

    /// The principal axes of the colors of some training images.
    fn color_axes(&self) -> Result<ColorAxes, TrainError> {
        let seed = self.seed.child("colors");
        let batch_size = self.recipe.evaluation.batch_size;
        let mut moments = ColorMoments::default();
        let n_batches = COLORED_IMAGES.div_ceil(batch_size);
        for batch in self.batches.images.training(seed, 0, batch_size).take(n_batches) {
            moments.add(batch?.tensor::<A::InnerBackend>(self.device));
        }
        Ok(ColorAxes::of_covariance(moments.covariance()))
    }

    /// Counts the codes that a step used, and gives those that nothing used new places when it is time;
    /// what is to be noted of it.
    fn restart(
        &mut self,
        step: u64,
        outputs: Vec<(ImageBatch, Tensor<A::InnerBackend, 1, Int>)>,
    ) -> Option<serde_json::Value> {
        let mut last = None;
        for (images, indices_n) in outputs {
            self.usage.add(indices_n);
            last = Some(images);
        }
        let DeadCodeRestart { every, until } = self.recipe.tokenizer.dead_code_restart;
        if every == 0 || !(step + 1).is_multiple_of(every) {
            return None;
        }
        let counts = self.usage.counts();
        let codes = counts.len();
        self.usage = CodeUsage::new(codes, self.device);
        let used = counts.iter().filter(|n| **n > 0).count();
        let note = serde_json::json!({
            "stage": StageId::Tokenizer, "step": step, "codes_used": used,
            "perplexity": histogram_entropy(&counts).exp(),
        });
        if let Some(images) = last.filter(|_| used < codes && step < until) {
            let schedule = self.recipe.scales();
            let finest = schedule.len() - 1..schedule.len();
            let pixels_bchw = images.tensor(self.device);
            let rows = latents(self.learner.model(), pixels_bchw, schedule, finest);
            let draws = self.seed.child("revive").at(step);
            self.learner.edit(|model| {
                model.with_codebook(|book| restart_dead_codes(book, &counts, rows, draws))
            });
        }
        Some(note)
    }
}

/// Latents that a first codebook is made of, for each code, if no more than `FIRST_IMAGES` have them.
const LATENTS_PER_CODE: usize = 16;
const FIRST_IMAGES: usize = 128;

const USAGE: &str = "code_usage";
const COLORS: &str = "color_axes";
/// Images whose colors have the axes.
const COLORED_IMAGES: usize = 256;

impl<A: AutodiffBackend> Task<A::InnerBackend> for TokenizerStage<'_, A> {
    /// Finds the axes of colors, and places the codes by k-means over latents of training images: far
    /// from every latent, a random code would never be chosen.
    fn begin(&mut self) -> Result<(), TrainError> {
        let TokenizerRecipe { steps, colors, init_from, .. } = &self.recipe.tokenizer;
        // Weights that nothing trains stay as they are to the bit.
        if *colors == Colors::Principal && *steps > 0 {
            let colors = self.color_axes()?;
            let model = self.learner.model().clone();
            self.learner.begin_with(match init_from {
                InitFrom::Scratch {} => model.with_colors(colors),
                InitFrom::Weights { .. } => model.unfolded(colors),
            });
        }
        if self.recipe.tokenizer.init_from != (InitFrom::Scratch {}) {
            return Ok(());
        }
        let model = self.learner.model().clone();
        let config = &self.recipe.tokenizer.model;
        let (v, c) = (config.codebook_size, config.codebook_dim);
        let schedule = self.recipe.scales();
        let n = (LATENTS_PER_CODE * v).div_ceil(schedule.n_tokens()).min(FIRST_IMAGES);
        let seed = self.seed.child("codebook");
        let mut rows = Vec::new();
        let mut left = n;
        let batch_size = self.recipe.evaluation.batch_size;
        for batch in self.batches.images.training(seed, 0, batch_size.min(n)) {
            let mut batch = batch?;
            batch.images.truncate(left);
            left -= batch.images.len();
            let scales = 0..schedule.len();
            let part = latents(&model, batch.tensor(self.device), schedule, scales);
            rows.extend(part.into_data().convert::<f32>().into_vec::<f32>().expect("f32"));
            if left == 0 {
                break;
            }
        }
        let codes = TensorData::new(k_means(&rows, c, v, model.codebook().metric(), seed), [v, c]);
        let codes = Tensor::from_data(codes, self.device);
        self.learner.begin_with(model.with_codebook(|book| book.with_raw(codes)));
        Ok(())
    }

    fn step(&mut self, step: u64, steps: u64) -> Result<Stepped<A::InnerBackend>, TrainError> {
        let draws = self.seed.child("step").at(step);
        let batches = self.batches.of_step(step)?;
        let (schedule, device) = (self.recipe.scales(), self.device);
        let weights = &self.recipe.tokenizer.loss;
        let loss = |model: &Tokenizer<A>, images: ImageBatch| {
            let pixels_bchw = images.tensor(device);
            let (terms, indices_n) = tokenizer_loss(model, pixels_bchw, schedule, weights, draws);
            (terms, (images, indices_n))
        };
        let sum = self.learner.accumulate(batches, self.workers, loss);
        let update = self.learner.update(sum.gradients, (step, steps));
        let note = self.restart(step, sum.outputs);
        self.learner.take_average(&update);
        let learned = Learned { parts: sum.parts, scales: sum.scales, update };
        Ok(Stepped { learners: vec![learned], note })
    }

    fn measure(&self) -> Result<Measure, TrainError> {
        let Recipe { log, evaluation, .. } = self.recipe;
        let images = self.batches.images.held_out(log.measure_images, evaluation.batch_size);
        let (model, scales) = (self.learner.model(), self.recipe.scales());
        let meter = TokenizerMeter::of(images, model, scales, self.device)?;
        let (name, better) = ("held_out_psnr_db", Better::Higher);
        let shares: Vec<f64> = meter.by_color().iter().map(|color| color.error_share).collect();
        let details = vec![("held_out_color_error", shares.into())];
        Ok(Measure { name, value: meter.psnr_db(), better, details })
    }

    fn images(&self) -> &Images {
        self.batches.images
    }

    fn n_parameters(&self) -> usize {
        self.learner.n_parameters()
    }

    fn learners(&self) -> Vec<State<'_>> {
        vec![self.learner.state()]
    }

    fn state(&self) -> Vec<(&'static str, TensorData)> {
        let colors = self.learner.model().colors().map(|colors| (COLORS, colors.to_data()));
        [(USAGE, self.usage.to_data())].into_iter().chain(colors).collect()
    }

    fn restore_learners(&mut self, saved: &mut Saved) -> Result<(), TrainError> {
        self.learner.restore(saved, self.device)
    }

    fn restore_state(&mut self, state: NamedTensors) {
        if let Some(counts) = state.get(USAGE) {
            self.usage = CodeUsage::from_data(counts.clone(), self.device);
        }
        if let Some(colors) = state.get(COLORS).and_then(ColorAxes::from_data) {
            // The weights and their average are taken back after this.
            self.learner.begin_with(self.learner.model().clone().with_colors(colors));
        }
    }
}
