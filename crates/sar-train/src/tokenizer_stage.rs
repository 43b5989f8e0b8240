//! The stage that trains a tokenizer on images.

use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{DType, Int, Tensor, TensorData};
use sar_core::SeedTree;
use sar_data::{ImageBatch, Images};
use sar_exchange::{ExchangeError, Group, MicroBatches};
use sar_loss::histogram_entropy;
use sar_model::Precision;
use sar_pipeline::RgbImage;
use sar_tokenizer::{ColorAxes, ColorMoments, Tokenizer};
use sar_weights::NamedTensors;

use crate::adversary::{Adversary, Leaf, Pair};
use crate::batches::Batches;
use crate::checkpoint::Saved;
use crate::figures::{reconstructed, reconstruction_sheet};
use crate::k_means::k_means;
use crate::learner::{Learner, State};
use crate::perception::Perception;
use crate::recipe::{Colors, DeadCodeRestart, InitFrom, Output, Recipe, TokenizerRecipe};
use crate::stage::{Better, Learned, Measure, Stepped, Task};
use crate::step::Accumulated;
use crate::tokenizer_loss::{
    CodeUsage, TokenizerObjective, latents, restart_dead_codes, tokenizer_loss,
};
use crate::{StageId, TrainError};

/// The images of a micro-batch and the codes that they used, `[n]`.
type Used<B> = (ImageBatch, Tensor<B, 1, Int>);

pub(crate) struct TokenizerStage<'a, A: AutodiffBackend> {
    recipe: &'a Recipe,
    device: &'a A::Device,
    workers: usize,
    seed: SeedTree,
    batches: Batches<'a>,
    usage: CodeUsage<A::InnerBackend>,
    learner: Learner<A, Tokenizer<A>>,
    perception: Option<Perception<A>>,
    adversary: Option<Adversary<'a, A>>,
}

impl<'a, A: AutodiffBackend> TokenizerStage<'a, A> {
    pub(crate) fn new(
        recipe: &'a Recipe,
        (tokenizer, perception): (Tokenizer<A::InnerBackend>, Option<Perception<A>>),
        images: &'a Images,
        (workers, group): (usize, &'a Group),
        seed: SeedTree,
        device: &'a A::Device,
    ) -> Result<Self, TrainError> {
        let TokenizerRecipe { model, optimization, adversary, .. } = &recipe.tokenizer;
        let layout = model.layout();
        let wire = recipe.exchange.gradients;
        let adversary = Adversary::new(adversary, optimization, (group, wire), seed, device)?;
        let learner = Learner::new("tokenizer", tokenizer, layout, optimization, Precision::F32);
        Ok(Self {
            recipe,
            device,
            workers,
            seed,
            batches: Batches::new(images, seed, optimization, group),
            usage: CodeUsage::new(model.codebook_size, device),
            learner: learner.among(group, wire),
            perception,
            adversary,
        })
    }

    /// The learner of a stage that is through.
    pub(crate) fn into_learner(self) -> Learner<A, Tokenizer<A>> {
        let Self { recipe, mut learner, .. } = self;
        if recipe.tokenizer.output == Output::AverageButCodebook {
            learner
                .edit_average(|average, model| average.with_codebook(|_| model.codebook().clone()));
        }
        learner
    }

    /// The second half of a step: updates of the tokenizer and, where it has judged, of its adversary.
    fn stepped(
        &mut self,
        sum: Accumulated<A::InnerBackend, Used<A::InnerBackend>>,
        judged: Option<MicroBatches<Vec<Pair<A::InnerBackend>>>>,
        (step, steps): (u64, u64),
    ) -> Result<Stepped<A::InnerBackend>, TrainError> {
        let update = self.learner.update(sum.gradients, (step, steps))?;
        let note = self.restart(step, sum.outputs.into_items())?;
        self.learner.take_average(&update);
        let mut learners = vec![Learned { parts: sum.parts, scales: sum.scales, update }];
        if let Some((adversary, judged)) = self.adversary.as_mut().zip(judged) {
            learners.extend(adversary.learn(judged, self.workers, (step, steps))?);
        }
        Ok(Stepped { learners, note })
    }

    /// The principal axes of the colors of some training images.
    fn color_axes(&self) -> Result<ColorAxes, TrainError> {
        let seed = self.seed.child("colors");
        let mut moments = ColorMoments::default();
        self.first_images(seed, COLORED_IMAGES, |pixels_bchw| moments.add(pixels_bchw))?;
        Ok(ColorAxes::of_covariance(moments.covariance()))
    }

    /// Looks at so many training images, the first in an order of their own, some at a time.
    fn first_images(
        &self,
        seed: SeedTree,
        n: usize,
        mut look: impl FnMut(Tensor<A::InnerBackend, 4>),
    ) -> Result<(), TrainError> {
        let at_once = self.recipe.evaluation.batch_size.min(n);
        let mut left = n;
        for batch in self.batches.images.training(seed, 0, at_once) {
            self.batches.group.alive();
            let mut batch = batch?;
            batch.images.truncate(left);
            left -= batch.images.len();
            look(batch.tensor(self.device));
            if left == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Counts the codes that a step used, and gives those that nothing used new places when it is time;
    /// what is to be noted of it.
    fn restart(
        &mut self,
        step: u64,
        outputs: Vec<Used<A::InnerBackend>>,
    ) -> Result<Option<serde_json::Value>, TrainError> {
        let mut last = None;
        for (images, indices_n) in outputs {
            self.usage.add(indices_n);
            last = Some(images);
        }
        let DeadCodeRestart { every, until } = self.recipe.tokenizer.dead_code_restart;
        if every == 0 || !(step + 1).is_multiple_of(every) {
            return Ok(None);
        }
        let counts: Vec<usize> = self.counts()?.into_iter().map(|n| n as usize).collect();
        let codes = counts.len();
        self.usage = CodeUsage::new(codes, self.device);
        let used = counts.iter().filter(|n| **n > 0).count();
        let note = serde_json::json!({
            "stage": StageId::Tokenizer, "step": step, "codes_used": used,
            "perplexity": histogram_entropy(&counts).exp(),
        });
        if used < codes && step < until {
            let rows = self.finest_latents(last)?;
            let draws = self.seed.child("revive").at(step);
            self.learner.edit(|model| {
                model.with_codebook(|book| restart_dead_codes(book, &counts, rows, draws))
            });
        }
        Ok(Some(note))
    }

    /// How often each code was used since the last restart, by all ranks.
    fn counts(&self) -> Result<Vec<i64>, TrainError> {
        let mut counts = self.usage.to_data().into_vec::<i64>().expect("i64");
        self.batches.group.sums(&mut counts)?;
        Ok(counts)
    }

    /// The latents of the finest scale of the step's last micro-batch, as rows; the last rank has it.
    fn finest_latents(
        &self,
        last: Option<ImageBatch>,
    ) -> Result<Tensor<A::InnerBackend, 2>, TrainError> {
        let of = |images: ImageBatch| {
            let schedule = self.recipe.scales();
            let finest = schedule.len() - 1..schedule.len();
            latents(self.learner.model(), images.tensor(self.device), schedule, finest)
        };
        let group = self.batches.group;
        if group.is_alone() {
            return Ok(of(last.expect("a step has images")));
        }
        let bytes = group.from_rank(group.ranks() - 1, || {
            let rows = of(last.expect("the last rank has the last micro-batch"));
            Ok::<_, TrainError>(rows.into_data().convert::<f32>().as_bytes().to_vec())
        })?;
        let c = self.recipe.tokenizer.model.codebook_dim;
        let n = bytes.len() / c / 4;
        let data = TensorData::from_bytes_vec(bytes, vec![n, c], DType::F32);
        Ok(Tensor::from_data(data, self.device))
    }

    /// The axes of colors that the rank that leads has found.
    fn shared_color_axes(&self) -> Result<ColorAxes, TrainError> {
        let group = self.batches.group;
        let mut found = None;
        let bytes = group.from_rank(0, || {
            let axes = self.color_axes()?;
            found = Some(axes);
            Ok::<_, TrainError>(axes.to_data().as_bytes().to_vec())
        })?;
        let theirs = || {
            let data = TensorData::from_bytes_vec(bytes, vec![4, 3], DType::F64);
            ColorAxes::from_data(&data).ok_or(ExchangeError::Unexpected { rank: 0 })
        };
        Ok(found.map_or_else(theirs, Ok)?)
    }

    /// The first codes, by k-means over latents of training images: far from every latent, a random code
    /// would never be chosen.
    fn place_codes(&mut self) -> Result<(), TrainError> {
        let model = self.learner.model().clone();
        let config = &self.recipe.tokenizer.model;
        let (v, c) = (config.codebook_size, config.codebook_dim);
        let schedule = self.recipe.scales();
        let n = (LATENTS_PER_CODE * v).div_ceil(schedule.n_tokens()).min(FIRST_IMAGES);
        let seed = self.seed.child("codebook");
        // Of each block of images scale by scale, however many are looked at together.
        let mut parts = vec![Vec::new(); n.div_ceil(BLOCK) * schedule.len()];
        let mut seen = 0;
        self.first_images(seed, n, |pixels_bchw| {
            let images = seen..seen + pixels_bchw.dims()[0];
            seen = images.end;
            let part = latents(&model, pixels_bchw, schedule, 0..schedule.len());
            let part = part.into_data().convert::<f32>().into_vec::<f32>().expect("f32");
            let mut left = part.as_slice();
            for k in 0..schedule.len() {
                for image in images.clone() {
                    let (own, others) = left.split_at(schedule.range(k).len() * c);
                    parts[image / BLOCK * schedule.len() + k].extend_from_slice(own);
                    left = others;
                }
            }
        })?;
        let rows = parts.concat();
        let (metric, alive) = (model.codebook().metric(), || self.batches.group.alive());
        let codes = TensorData::new(k_means(&rows, [c, v], metric, seed, alive), [v, c]);
        let codes = Tensor::from_data(codes, self.device);
        self.learner.begin_with(model.with_codebook(|book| book.with_raw(codes)));
        Ok(())
    }
}

/// Latents that a first codebook is made of, for each code, if no more than `FIRST_IMAGES` have them.
const LATENTS_PER_CODE: usize = 16;
const FIRST_IMAGES: usize = 128;
/// Images whose latents k-means takes together, in an order that its draws depend on.
const BLOCK: usize = 32;

const USAGE: &str = "code_usage";
const COLORS: &str = "color_axes";
/// Images whose colors have the axes.
const COLORED_IMAGES: usize = 256;

impl<A: AutodiffBackend> Task<A::InnerBackend> for TokenizerStage<'_, A> {
    /// Finds the axes of colors, and places the codes.
    fn begin(&mut self) -> Result<(), TrainError> {
        let TokenizerRecipe { steps, colors, init_from, .. } = &self.recipe.tokenizer;
        // Weights that nothing trains stay as they are to the bit.
        if *colors == Colors::Principal && *steps > 0 {
            let colors = self.shared_color_axes()?;
            let model = self.learner.model().clone();
            self.learner.begin_with(match init_from {
                InitFrom::Scratch {} => model.with_colors(colors),
                InitFrom::Weights { .. } => model.unfolded(colors),
            });
        }
        if self.recipe.tokenizer.init_from == (InitFrom::Scratch {}) && self.batches.group.leads() {
            self.place_codes()?;
        }
        self.learner.begin_together()?;
        if let Some(adversary) = &mut self.adversary {
            adversary.learner.begin_together()?;
        }
        Ok(())
    }

    fn step(&mut self, step: u64, steps: u64) -> Result<Stepped<A::InnerBackend>, TrainError> {
        let draws = self.seed.child("step").at(step);
        let batches = self.batches.of_step(step)?;
        let (schedule, device) = (self.recipe.scales(), self.device);
        let TokenizerRecipe { loss, regularization, .. } = &self.recipe.tokenizer;
        let perception = self.perception.as_ref();
        let objective = TokenizerObjective { schedule, loss, regularization, perception };
        let judge = self.adversary.as_ref().and_then(|adversary| adversary.judge(step));
        let Some(judge) = judge else {
            let loss = |model: &Tokenizer<A>, images: ImageBatch| {
                let pixels_bchw = images.tensor(device);
                let (terms, indices_n) =
                    tokenizer_loss(model, pixels_bchw, &images.streams, &objective, draws);
                (terms, (images, indices_n))
            };
            let sum = self.learner.accumulate(batches, self.workers, loss)?;
            return self.stepped(sum, None, (step, steps));
        };
        let forward = |model: &Tokenizer<A>, images: ImageBatch| {
            let pixels_bchw = images.tensor(device);
            let (reconstructions, indices_n) =
                objective.reconstruct(model, pixels_bchw, &images.streams, draws);
            let leaf = |reconstruction| {
                judge.leaf(&objective, model.colors(), reconstruction, &images.streams)
            };
            let leaves: Vec<_> = reconstructions.iter().map(leaf).collect();
            ((images, reconstructions, indices_n), leaves)
        };
        let settle = |leaves: Vec<Leaf<A>>| leaves.into_iter().map(Leaf::settle).collect();
        let loss = |model: &Tokenizer<A>,
                    (images, reconstructions, indices_n): (ImageBatch, Vec<_>, _),
                    outputs: Vec<_>| {
            let pairs: Vec<_> = reconstructions
                .iter()
                .filter_map(|reconstruction| judge.pair(reconstruction, &images.streams))
                .collect();
            let mut outputs = outputs.into_iter();
            let terms = objective.terms(reconstructions, |reconstruction| {
                let at = outputs.next().expect("one for each reconstruction");
                judge.combined(model.colors(), reconstruction, at)
            });
            (terms, ((images, indices_n), pairs))
        };
        let sum = self.learner.accumulate_staged(batches, self.workers, forward, settle, loss)?;
        let Accumulated { gradients, parts, scales, outputs } = sum;
        let mut pairs = Vec::with_capacity(outputs.share().len());
        let share = outputs.share();
        let outputs = outputs.map(|(output, of_one)| {
            pairs.push(of_one);
            output
        });
        let sum = Accumulated { gradients, parts, scales, outputs };
        self.stepped(sum, Some(MicroBatches::new(pairs, share)), (step, steps))
    }

    fn measure(&self) -> Result<Measure, TrainError> {
        let Recipe { log, evaluation, .. } = self.recipe;
        let images = self.batches.held_out(log.measure_images, evaluation.batch_size);
        let (model, scales) = (self.learner.model(), self.recipe.scales());
        let meter = images.measure_tokenizer(model, scales, self.device)?;
        let (name, better) = ("held_out_psnr_db", Better::Higher);
        let figures = meter.figures();
        let shares: Vec<Option<f64>> =
            figures.by_color.iter().map(|color| color.error_share).collect();
        let by_color: Vec<f64> = figures.by_color.iter().map(|color| color.psnr_db).collect();
        // The meter decodes every scale, whether or not it is asked what each has come to. Small maps of a batch are one
        // product, whose last bits depend on how many they are; a run that is resumed with other batches writes the same.
        let thousandths = |db: f64| (db * 1000.0).round() / 1000.0;
        let psnr: Vec<f64> =
            figures.by_scale.iter().map(|scale| thousandths(scale.psnr_db)).collect();
        // Coarse scales that share a few codes are what a collapse looks like first.
        let used: Vec<usize> = figures.by_scale.iter().map(|scale| scale.codes_used).collect();
        let dead: Vec<usize> =
            figures.by_scale.iter().map(|scale| scale.codes_dead_of_usable).collect();
        let perplexity: Vec<f64> = figures.by_scale.iter().map(|scale| scale.perplexity).collect();
        let details = vec![
            ("held_out_psnr_db_scales", psnr.into()),
            ("held_out_psnr_db_colors", by_color.into()),
            ("held_out_color_error", shares.into()),
            ("held_out_codes_used", used.into()),
            ("held_out_codes_dead_of_usable", dead.into()),
            ("held_out_perplexity", perplexity.into()),
        ];
        Ok(Measure { name, value: figures.psnr_db, better, details })
    }

    fn draw(&self) -> Result<RgbImage, TrainError> {
        let n = reconstructed(self.recipe);
        let images = self.batches.held_out(n, self.recipe.evaluation.batch_size);
        reconstruction_sheet(self.learner.model(), images, self.recipe.scales(), self.device)
    }

    fn images(&self) -> &Images {
        self.batches.images
    }

    fn n_parameters(&self) -> usize {
        let adversary = self.adversary.as_ref().map(|adversary| adversary.learner.n_parameters());
        self.learner.n_parameters() + adversary.unwrap_or(0)
    }

    fn group(&self) -> &Group {
        self.batches.group
    }

    fn learners(&self) -> Vec<State<'_>> {
        let adversary = self.adversary.as_ref().map(|adversary| adversary.learner.state());
        [self.learner.state()].into_iter().chain(adversary).collect()
    }

    fn state(&self) -> Result<Vec<(&'static str, TensorData)>, TrainError> {
        let counts = self.counts()?;
        let n = counts.len();
        let colors = self.learner.model().colors().map(|colors| (COLORS, colors.to_data()));
        let adversary = self.adversary.as_ref().map(Adversary::state);
        let usage = (USAGE, TensorData::new(counts, [n]));
        Ok([usage].into_iter().chain(colors).chain(adversary).collect())
    }

    fn restore_learners(&mut self, saved: &mut Saved) -> Result<(), TrainError> {
        self.learner.restore(saved, self.device)?;
        match &mut self.adversary {
            Some(adversary) => adversary.learner.restore(saved, self.device),
            None => Ok(()),
        }
    }

    fn restore_state(&mut self, state: NamedTensors) {
        if let Some(adversary) = &mut self.adversary {
            adversary.restore(&state, self.device);
        }
        // Of all ranks together.
        if let Some(counts) = state.get(USAGE).filter(|_| self.batches.group.leads()) {
            self.usage = CodeUsage::from_data(counts.clone(), self.device);
        }
        if let Some(colors) = state.get(COLORS).and_then(ColorAxes::from_data) {
            // The weights and their average are taken back after this.
            self.learner.begin_with(self.learner.model().clone().with_colors(colors));
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Autodiff;
    use burn_flex::Flex;
    use sar_data::ReadAhead;
    use sar_tokenizer::{Init, init};

    use super::*;

    /// 32 divides the numbers of images that are looked at, 48 does not, 300 is more than they are.
    #[test]
    fn how_many_images_are_looked_at_at_a_time_changes_no_start() {
        let started = |at_once: usize| {
            let settings = [
                "data.side=16".to_owned(),
                "tokenizer.model.channel_multipliers=[1,1]".to_owned(),
                "tokenizer.model.codebook_size=32".to_owned(),
                "backbone.schedule.scales=1_2".to_owned(),
                format!("evaluation.batch_size={at_once}"),
            ];
            let recipe = Recipe::load("emoji-quick", &settings).unwrap();
            let images = Images::open(&recipe.data, ReadAhead::default(), &|| ()).unwrap();
            let (group, seed, device) = (Group::alone(), SeedTree::new(3), Default::default());
            let model = &recipe.tokenizer.model;
            let tokenizer = init::<Flex>(model, Init::Torch {}, seed, &device).unwrap();
            let (parts, run) = ((tokenizer, None), (1, &group));
            let mut stage =
                TokenizerStage::<Autodiff<Flex>>::new(&recipe, parts, &images, run, seed, &device)
                    .unwrap();
            let mut n = 0;
            stage.first_images(seed, COLORED_IMAGES, |x_bchw| n += x_bchw.dims()[0]).unwrap();
            assert_eq!(n, 256);
            stage.begin().unwrap();
            let model = stage.learner.model();
            (
                model.colors().expect("axes"),
                sar_weights::checksum(model, recipe.tokenizer.model.layout()),
            )
        };
        let whole = started(32);
        assert_eq!(started(48), whole);
        assert_eq!(started(300), whole);
    }
}
