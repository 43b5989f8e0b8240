//! A run: three stages, a control, figures and pictures.
//!
//! Nothing depends on the wall clock: every draw is keyed by (seed, stage, purpose, step or
//! absolute image position), so that a run is a function of its recipe.

use std::path::Path;
use std::time::Instant;

use burn::module::{AutodiffModule, Module};
use burn::tensor::Tensor;
use burn::tensor::backend::AutodiffBackend;
use sar_core::{Filter, ScaleSchedule, ScaleSize, SeedTree, resample};
use sar_data::{RgbImage, enlarge, grid, to_images};
use sar_loss::histogram_entropy;
use sar_model::Backbone;
use sar_rollout::generate;
use sar_tokenizer::FlexVarTokenizer;
use sar_weights::{Layout, parameters};

use crate::TrainError;
use crate::backbone_task::{TokenBatch, backbone_loss};
use crate::checkpoint::Checkpoint;
use crate::event::{Event, Observer};
use crate::held_out::{HeldOut, HeldOutMeter};
use crate::images::{ImageBatch, Images};
use crate::objective::{Objective, Regularisation};
use crate::optim::AdamW;
use crate::recipe::Recipe;
use crate::report::{
    HeldOutReport, ImageCounts, Report, StageReport, TokenizerReport, TokenizerScale, peak_rss_mb,
};
use crate::run_dir::{Metrics, RunDir};
use crate::step::{Optimisation, StepOutcome, Terms, train_step};
use crate::tokenizer_task::{CodeUsage, latents, revive, tokenizer_loss};
use crate::weights::{TrainedBackbone, save_backbone, save_tokenizer};

/// Images per batch when nothing is trained.
const EVALUATION_BATCH: usize = 32;

type Inner<A> = <A as AutodiffBackend>::InnerBackend;

/// Trains everything that a recipe says into a new run directory.
///
/// # Errors
/// Before anything is written: if the recipe does not fit its images. Later: if files cannot be
/// read or written, or a loss is no number any more.
pub fn train<A: AutodiffBackend>(
    recipe: &Recipe,
    dir: &Path,
    device: &A::Device,
    observer: &mut dyn Observer,
) -> Result<Report, TrainError> {
    let start = Instant::now();
    let images = Images::open(&recipe.data)?;
    let dir = RunDir::create(dir)?;
    dir.write("recipe.toml", recipe.to_toml().as_bytes())?;
    let metrics = Metrics::append_to(&dir)?;
    let seed = SeedTree::new(recipe.seed);
    let mut run =
        Run::<A> { recipe, images, dir, metrics, device, observer, seed, stages: Vec::new() };

    let tokenizer = run.train_tokenizer()?;
    let tokenizer_report = run.measure_tokenizer(&tokenizer)?;
    run.draw_reconstructions(&tokenizer)?;

    let teacher = run.train_teacher(&tokenizer)?;
    let before = run.measure("before", &tokenizer, &teacher)?;
    run.draw_samples("samples-before.png", &tokenizer, &teacher)?;

    let sar = &recipe.sar;
    let after = run.continue_backbone("sar", sar.steps, &sar.objective, &tokenizer, &teacher)?;
    let after_figures = run.measure("after", &tokenizer, &after)?;
    run.draw_samples("samples-after.png", &tokenizer, &after)?;

    let control = if sar.control {
        let objective = Objective::TeacherForcing;
        let steps = recipe.control_steps();
        let control = run.continue_backbone("control", steps, &objective, &tokenizer, &teacher)?;
        Some(run.measure("control", &tokenizer, &control)?)
    } else {
        None
    };

    let report = Report {
        recipe: recipe.name.clone(),
        seed: recipe.seed,
        images: ImageCounts { train: run.images.n_train(), held_out: run.images.n_held_out() },
        stages: run.stages,
        wall_s: start.elapsed().as_secs_f64(),
        peak_rss_mb: peak_rss_mb(),
        tokenizer: tokenizer_report,
        held_out: HeldOutReport { before, after: after_figures, control },
    };
    let json = serde_json::to_string_pretty(&report).expect("plain values");
    let path = run.dir.write("report.json", json.as_bytes())?;
    run.observer.event(&Event::Wrote { path: &path });
    Ok(report)
}

struct Run<'a, A: AutodiffBackend> {
    recipe: &'a Recipe,
    images: Images,
    dir: RunDir,
    metrics: Metrics,
    device: &'a A::Device,
    observer: &'a mut dyn Observer,
    seed: SeedTree,
    stages: Vec<StageReport>,
}

/// What the step loop needs to know of a stage.
struct Stage<'s> {
    name: &'static str,
    steps: u64,
    optimisation: &'s Optimisation,
    layout: &'static Layout,
}

impl<A: AutodiffBackend> Run<'_, A> {
    fn scales(&self) -> &ScaleSchedule {
        self.recipe.scales()
    }

    /// The loop of every stage: steps, metrics, checkpoints.
    fn run_stage<M: AutodiffModule<A>>(
        &mut self,
        stage: &Stage<'_>,
        mut model: M::InnerModule,
        mut loss: impl FnMut(&mut Self, &M, u64, usize) -> Result<Terms<A>, TrainError>,
        mut after: impl FnMut(&mut Self, M::InnerModule, u64) -> Result<M::InnerModule, TrainError>,
    ) -> Result<M::InnerModule, TrainError> {
        let Stage { name, steps, optimisation, layout } = *stage;
        let mut optimizer = AdamW::new(optimisation.adamw, parameters(&model, layout));
        let started =
            Event::StageStarted { stage: name, steps, done: 0, batch: optimisation.batch };
        self.observer.event(&started);
        let start = Instant::now();
        for step in 0..steps {
            let (next, outcome) = train_step::<A, M>(
                model,
                &mut optimizer,
                optimisation,
                step,
                steps,
                |model, micro| loss(self, model, step, micro),
            )?;
            model = after(self, next, step)?;
            let last = step + 1 == steps;
            let losses = if step.is_multiple_of(self.recipe.log.every) || last {
                Some(self.log(name, step, &outcome)?)
            } else {
                None
            };
            self.observer.event(&Event::Step { stage: name, step, losses: losses.as_deref() });
            let every = self.recipe.log.checkpoint_every;
            if last || (every > 0 && (step + 1).is_multiple_of(every)) {
                Checkpoint::save(&self.dir, name, step + 1, &model, layout, &optimizer)?;
            }
        }
        let wall_s = start.elapsed().as_secs_f64();
        self.observer.event(&Event::StageEnded { stage: name, wall_s });
        self.stages.push(StageReport {
            name: name.into(),
            wall_s,
            steps,
            batch: optimisation.batch,
            parameters: model.num_params(),
        });
        Ok(model)
    }

    /// Reads a step's losses, refuses what is no number, and writes the line.
    fn log(
        &mut self,
        stage: &'static str,
        step: u64,
        outcome: &StepOutcome<A>,
    ) -> Result<Vec<(&'static str, f64)>, TrainError> {
        let mut line = serde_json::Map::new();
        line.insert("stage".into(), stage.into());
        line.insert("step".into(), step.into());
        let mut losses = Vec::new();
        let norm = [("gradient_norm", outcome.gradient_norm.clone())];
        for (part, value) in outcome.parts.iter().cloned().chain(norm) {
            let value =
                f64::from(value.into_data().convert::<f32>().as_slice::<f32>().expect("f32")[0]);
            if !value.is_finite() {
                return Err(TrainError::NotFinite { stage, step, part, value });
            }
            line.insert(part.into(), value.into());
            losses.push((part, value));
        }
        line.insert("lr".into(), outcome.lr.into());
        line.insert("weight_decay".into(), outcome.weight_decay.into());
        self.metrics.line(&line.into())?;
        Ok(losses)
    }

    fn train_tokenizer(&mut self) -> Result<FlexVarTokenizer<Inner<A>>, TrainError> {
        let recipe = &self.recipe.tokenizer;
        let stage_seed = self.seed.child("tokenizer");
        let mut tokenizer =
            sar_tokenizer::init(&recipe.model, stage_seed.child("init"), self.device)?;

        // The codebook starts as latents of the data.
        let mut order = self.images.order(stage_seed);
        let codes = recipe.model.codebook_size;
        let latents_each = self.scales().last().tokens();
        let n = codes.div_ceil(latents_each).max(EVALUATION_BATCH).min(4 * EVALUATION_BATCH);
        let first = self.images.training(&mut order, stage_seed.child("codebook"), 0, n)?;
        let rows = latents(&tokenizer, first.tensor(self.device), self.scales());
        let draws = stage_seed.child("codebook-draw");
        tokenizer = tokenizer.with_codebook(|book| revive(book, &vec![0; codes], rows, draws));

        let optimisation = &recipe.optimisation;
        let (batch, micro_batches) = (optimisation.batch, optimisation.micro_batches);
        let micro_size = batch / micro_batches;
        let mut usage = CodeUsage::new(codes, self.device);
        let mut last_batch: Option<ImageBatch> = None;
        let stage = Stage {
            name: "tokenizer",
            steps: recipe.steps,
            optimisation,
            layout: &sar_tokenizer::LAYOUT,
        };
        let usage = std::cell::RefCell::new(&mut usage);
        let last_batch = std::cell::RefCell::new(&mut last_batch);
        let tokenizer = self.run_stage::<FlexVarTokenizer<A>>(
            &stage,
            tokenizer,
            |run, model, step, micro| {
                let start = step * batch as u64 + (micro * micro_size) as u64;
                let images = run.images.training(&mut order, stage_seed, start, micro_size)?;
                let (terms, indices) = tokenizer_loss(
                    model,
                    images.tensor(run.device),
                    run.scales(),
                    &recipe.loss,
                    stage_seed.child("step").at(step),
                );
                usage.borrow_mut().add(indices);
                **last_batch.borrow_mut() = Some(images);
                Ok(terms)
            },
            |run, model, step| {
                let every = recipe.revive_every;
                if every == 0 || !(step + 1).is_multiple_of(every) {
                    return Ok(model);
                }
                let mut usage = usage.borrow_mut();
                let counts = usage.counts();
                **usage = CodeUsage::new(codes, run.device);
                let used = counts.iter().filter(|n| **n > 0).count();
                run.metrics.line(&serde_json::json!({
                    "stage": "tokenizer", "step": step, "codes_used": used,
                    "perplexity": histogram_entropy(&counts).exp(),
                }))?;
                if used == codes || step >= recipe.revive_until {
                    return Ok(model);
                }
                let images = last_batch.borrow();
                let images = images.as_ref().expect("a step was made");
                let rows = latents(&model, images.tensor(run.device), run.scales());
                let draws = stage_seed.child("revive").at(step);
                Ok(model.with_codebook(|book| revive(book, &counts, rows, draws)))
            },
        )?;
        let path = self.dir.file("tokenizer.safetensors");
        save_tokenizer(&path, &tokenizer, &recipe.model)?;
        self.observer.event(&Event::Wrote { path: &path });
        Ok(tokenizer)
    }

    /// PSNR and code use on held-out images.
    fn measure_tokenizer(
        &mut self,
        tokenizer: &FlexVarTokenizer<Inner<A>>,
    ) -> Result<TokenizerReport, TrainError> {
        self.observer.event(&Event::Working { what: "measuring the tokenizer on held-out images" });
        let codes = self.recipe.tokenizer.model.codebook_size;
        let schedule = self.scales().clone();
        let mut psnr = vec![Vec::new(); schedule.len()];
        let mut counts = vec![vec![0usize; codes]; schedule.len()];
        for start in (0..self.images.n_held_out()).step_by(EVALUATION_BATCH) {
            let images = self.images.held_out(start, EVALUATION_BATCH)?;
            let pixels_bchw = images.tensor::<Inner<A>>(self.device);
            let h_bchw = tokenizer.encode(pixels_bchw.clone());
            for (k, &size) in schedule.sizes().iter().enumerate() {
                let tokens_bn = tokenizer.tokens_at(h_bchw.clone(), size);
                let output = tokenizer.decode_tokens(tokens_bn.clone(), size).clamp(-1.0, 1.0);
                let [b, c, height, width] = output.dims();
                let target =
                    resample(pixels_bchw.clone(), ScaleSize { height, width }, Filter::Area);
                let error = (output - target).square().reshape([b, c * height * width]).mean_dim(1);
                let errors = error.into_data().convert::<f32>().into_vec::<f32>().expect("f32");
                // Pixels span 2: the peak is 2^2.
                psnr[k].extend(
                    errors.iter().map(|mse| 10.0 * (4.0 / f64::from(*mse).max(1e-12)).log10()),
                );
                let tokens = tokens_bn.into_data().convert::<i64>().into_vec::<i64>().expect("i64");
                tokens.iter().for_each(|token| counts[k][*token as usize] += 1);
            }
        }
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let used = |counts: &[usize]| counts.iter().filter(|n| **n > 0).count();
        let by_scale: Vec<_> = (0..schedule.len())
            .map(|k| TokenizerScale {
                scale: schedule.size(k).to_string(),
                psnr_db: mean(&psnr[k]),
                codes_used: used(&counts[k]),
                perplexity: histogram_entropy(&counts[k]).exp(),
            })
            .collect();
        let total: Vec<usize> =
            (0..codes).map(|code| counts.iter().map(|scale| scale[code]).sum()).collect();
        let psnr_db = by_scale[by_scale.len() - 1].psnr_db;
        Ok(TokenizerReport { psnr_db, codes_used: used(&total), codes, by_scale })
    }

    /// Rows of held-out originals and their reconstruction at every scale.
    fn draw_reconstructions(
        &mut self,
        tokenizer: &FlexVarTokenizer<Inner<A>>,
    ) -> Result<(), TrainError> {
        // Images from all over the held-out split, not the first ones, which are alike.
        let n = self.recipe.evaluation.reconstructions.min(self.images.n_held_out());
        let stride = self.images.n_held_out() / n;
        let mut batch = self.images.held_out(0, 1)?;
        for i in 1..n {
            let one = self.images.held_out(i * stride, 1)?;
            batch.images.extend(one.images);
        }
        let pixels_bchw = batch.tensor::<Inner<A>>(self.device);
        let h_bchw = tokenizer.encode(pixels_bchw);
        let side = self.recipe.data.side;
        let mut rows: Vec<Vec<RgbImage>> = vec![batch.images];
        for &size in self.scales().sizes().iter().rev() {
            let tokens_bn = tokenizer.tokens_at(h_bchw.clone(), size);
            let decoded = to_images(tokenizer.decode_tokens(tokens_bn, size));
            rows.push(decoded.iter().map(|image| enlarge(image, side)).collect());
        }
        let sheet = grid(&rows.concat(), n, 4, magnification(side));
        let path = self.dir.write_png("reconstructions.png", &sheet)?;
        self.observer.event(&Event::Wrote { path: &path });
        Ok(())
    }

    fn train_teacher(
        &mut self,
        tokenizer: &FlexVarTokenizer<Inner<A>>,
    ) -> Result<TrainedBackbone<Inner<A>>, TrainError> {
        let classes = self.images.classes().to_vec();
        let config = self.recipe.backbone_config(classes.len());
        let init = self.recipe.backbone.init;
        let model = sar_model::init(&config, init, self.seed.child("backbone"), self.device)?;
        let untrained = TrainedBackbone { model, config, classes, scales: self.scales().clone() };
        let teacher = &self.recipe.teacher;
        self.train_backbone(
            Stage {
                name: "teacher",
                steps: teacher.steps,
                optimisation: &teacher.optimisation,
                layout: &sar_model::LAYOUT,
            },
            &Objective::TeacherForcing,
            &teacher.regularisation,
            tokenizer,
            untrained,
        )
    }

    fn continue_backbone(
        &mut self,
        name: &'static str,
        steps: u64,
        objective: &Objective,
        tokenizer: &FlexVarTokenizer<Inner<A>>,
        teacher: &TrainedBackbone<Inner<A>>,
    ) -> Result<TrainedBackbone<Inner<A>>, TrainError> {
        let sar = &self.recipe.sar;
        let layout = &sar_model::LAYOUT;
        let stage = Stage { name, steps, optimisation: &sar.optimisation, layout };
        self.train_backbone(stage, objective, &sar.regularisation, tokenizer, teacher.clone())
    }

    fn train_backbone(
        &mut self,
        stage: Stage<'_>,
        objective: &Objective,
        regularisation: &Regularisation,
        tokenizer: &FlexVarTokenizer<Inner<A>>,
        from: TrainedBackbone<Inner<A>>,
    ) -> Result<TrainedBackbone<Inner<A>>, TrainError> {
        let stage_seed = self.seed.child(stage.name);
        let (batch, micro_batches) = (stage.optimisation.batch, stage.optimisation.micro_batches);
        let micro_size = batch / micro_batches;
        let mut order = self.images.order(stage_seed);
        let TrainedBackbone { model, config, classes, scales } = from;
        let model = self.run_stage::<Backbone<A>>(
            &stage,
            model,
            |run, model, step, micro| {
                let start = step * batch as u64 + (micro * micro_size) as u64;
                let images = run.images.training(&mut order, stage_seed, start, micro_size)?;
                let draws = stage_seed.child("step").at(step).at(micro as u64);
                let schedule = run.recipe.backbone.schedule.draw(draws.child("schedule"))?;
                let tokens = run.tokens(tokenizer, images, schedule);
                Ok(backbone_loss(
                    model,
                    tokenizer,
                    &tokens,
                    objective,
                    regularisation,
                    draws,
                    run.device,
                ))
            },
            |_, model, _| Ok(model),
        )?;
        let trained = TrainedBackbone { model, config, classes, scales };
        let path = self.dir.file(&format!("backbone-{}.safetensors", stage.name));
        save_backbone(&path, &trained)?;
        self.observer.event(&Event::Wrote { path: &path });
        Ok(trained)
    }

    fn tokens(
        &self,
        tokenizer: &FlexVarTokenizer<Inner<A>>,
        images: ImageBatch,
        schedule: ScaleSchedule,
    ) -> TokenBatch<Inner<A>> {
        let h_bchw = tokenizer.encode(images.tensor(self.device));
        TokenBatch {
            tokens_bl: tokenizer.tokens(h_bchw, &schedule),
            labels: images.labels,
            images: images.streams,
            schedule,
        }
    }

    fn measure(
        &mut self,
        what: &str,
        tokenizer: &FlexVarTokenizer<Inner<A>>,
        backbone: &TrainedBackbone<Inner<A>>,
    ) -> Result<HeldOut, TrainError> {
        let what = format!("measuring the {what} weights on held-out images");
        self.observer.event(&Event::Working { what: &what });
        let schedule = self.scales().clone();
        let mut meter = HeldOutMeter::new(&schedule, backbone.config.codebook_size);
        for start in (0..self.images.n_held_out()).step_by(EVALUATION_BATCH) {
            let images = self.images.held_out(start, EVALUATION_BATCH)?;
            let batch = self.tokens(tokenizer, images, schedule.clone());
            meter.add(&backbone.model, tokenizer, &batch, self.device);
        }
        Ok(meter.report(self.recipe.evaluation.bootstrap, self.seed.child("bootstrap")))
    }

    /// One row of samples per class, from the same streams whatever the weights.
    fn draw_samples(
        &mut self,
        name: &str,
        tokenizer: &FlexVarTokenizer<Inner<A>>,
        backbone: &TrainedBackbone<Inner<A>>,
    ) -> Result<(), TrainError> {
        self.observer.event(&Event::Working { what: "sampling" });
        let columns = self.recipe.evaluation.samples_per_class;
        let mut images = Vec::new();
        for class in 0..backbone.classes.len() {
            let request = SampleRequest {
                labels: vec![class; columns],
                streams: (0..columns).map(|i| sample_stream(self.seed, class, i)).collect(),
                scales: self.scales().clone(),
                sampler: self.recipe.evaluation.sampler,
            };
            images.extend(sample_images(tokenizer, &backbone.model, &request, self.device));
        }
        let sheet = grid(&images, columns, 4, magnification(self.recipe.data.side));
        let path = self.dir.write_png(name, &sheet)?;
        self.observer.event(&Event::Wrote { path: &path });
        Ok(())
    }
}

/// What to sample.
#[derive(Clone, Debug)]
pub struct SampleRequest {
    /// Class of each image.
    pub labels: Vec<usize>,
    /// Stream of each image.
    pub streams: Vec<SeedTree>,
    /// The scales.
    pub scales: ScaleSchedule,
    /// Guidance and filters.
    pub sampler: sar_rollout::Sampler,
}

/// The stream of the `i`-th sample of a class: a run's sheets and `sar sample` with the run's seed
/// draw the same images.
pub fn sample_stream(seed: SeedTree, class: usize, i: usize) -> SeedTree {
    seed.child("samples").at(class as u64).at(i as u64)
}

/// Samples and decodes.
pub fn sample_images<B: burn::tensor::backend::Backend>(
    tokenizer: &FlexVarTokenizer<B>,
    model: &Backbone<B>,
    request: &SampleRequest,
    device: &B::Device,
) -> Vec<RgbImage> {
    let SampleRequest { labels, streams, scales, sampler } = request;
    let generated = generate(model, tokenizer, labels, scales, *sampler, streams, device);
    let q_bchw: Tensor<B, 4> = generated.canvas.expect("a schedule has at least one scale");
    to_images(tokenizer.decode(q_bchw))
}

/// Small images are magnified so that a sheet can be looked at.
fn magnification(side: u32) -> u32 {
    (96 / side).clamp(1, 4)
}
