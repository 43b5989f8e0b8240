//! A run: three stages, a control, figures and pictures.
//!
//! Nothing depends on the wall clock: every draw is keyed by (seed, stage, purpose, step or
//! absolute image position), so that a run is a function of its recipe. A run that stopped goes on
//! by walking the same path: stages that are done load their last checkpoint, what is measured and
//! drawn is measured and drawn again.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};
use sar_core::{Filter, ScaleSchedule, ScaleSize, SeedTree, resample};
use sar_data::{RgbImage, enlarge, grid, magnification, to_images, to_tensor};
use sar_loss::histogram_entropy;
use sar_model::Backbone;
use sar_rollout::generate;
use sar_tokenizer::Tokenizer;

use crate::TrainError;
use crate::backbone_task::TokenBatch;
use crate::event::{Event, Observer};
use crate::held_out::{HeldOut, HeldOutMeter};
use crate::images::Images;
use crate::objective::{Objective, Regularisation};
use crate::recipe::Recipe;
use crate::report::{
    HeldOutReport, ImageCounts, Paired, Report, TokenizerReport, TokenizerScale, peak_rss_mb,
};
use crate::run_dir::{Metrics, RunDir};
use crate::stage::{Journal, Stage};
use crate::step::Optimisation;
use crate::tasks::{BackboneTask, TokenizerTask};
use crate::weights::{TrainedBackbone, save_backbone, save_tokenizer};

/// Images per batch when nothing is trained.
const EVALUATION_BATCH: usize = 32;

type Inner<A> = <A as AutodiffBackend>::InnerBackend;

/// How a run is carried out; none of it changes what comes out.
#[derive(Clone, Copy, Debug)]
pub struct Execution<'a> {
    /// Goes on with the run that the directory holds, instead of starting one.
    pub resume: bool,
    /// Micro-batches that run at the same time: CPU cores, or 1 on a GPU, where each would hold its
    /// own activations.
    pub workers: usize,
    /// Once true, the run writes a checkpoint and ends with [`TrainError::Stopped`].
    pub stop: &'a AtomicBool,
}

/// Trains everything that a recipe says into a run directory.
///
/// # Errors
/// Before anything is written: if the recipe does not fit its images, or the directory is not fit
/// for the run. Later: if files cannot be read or written, a loss is no number any more, or the run
/// is asked to stop.
///
/// # Panics
/// If `execution.workers` is 0.
pub fn train<A: AutodiffBackend>(
    recipe: &Recipe,
    dir: &Path,
    execution: Execution<'_>,
    device: &A::Device,
    observer: &mut dyn Observer,
) -> Result<Report, TrainError> {
    let start = Instant::now();
    let images = Images::open(&recipe.data)?;
    let path = dir;
    let dir = if execution.resume {
        let dir = RunDir::reopen(path)?;
        let started_with = dir.recipe();
        let theirs = Recipe::load(&started_with.to_string_lossy(), &[])?;
        recipe.check_same_as(&theirs, &started_with)?;
        dir
    } else {
        RunDir::create(path, recipe)?
    };
    observer.event(&Event::RunStarted { recipe: &recipe.name, dir: path });
    let metrics = Metrics::open(&dir)?;
    let Execution { workers, stop, .. } = execution;
    let seed = SeedTree::new(recipe.seed);
    let journal = Journal { dir, metrics, observer, stop, log: &recipe.log, stages: Vec::new() };
    let mut run = Run::<A> { recipe, images: &images, device, workers, seed, journal };

    let tokenizer = run.train_tokenizer()?;
    let tokenizer_report = run.measure_tokenizer(&tokenizer)?;
    run.draw_reconstructions(&tokenizer)?;

    let teacher = run.train_teacher(&tokenizer)?;
    let (before, before_meter) = run.measure("before", &tokenizer, &teacher)?;
    run.draw_samples("samples-before.png", &tokenizer, &teacher)?;

    let sar = &recipe.sar;
    let after = run.refine("sar", sar.steps, &sar.objective, &tokenizer, &teacher)?;
    let (after_figures, after_meter) = run.measure("after", &tokenizer, &after)?;
    run.draw_samples("samples-after.png", &tokenizer, &after)?;

    let control = if sar.control {
        let objective = Objective::TeacherForcing;
        let steps = recipe.control_steps();
        let control = run.refine("control", steps, &objective, &tokenizer, &teacher)?;
        Some(run.measure("control", &tokenizer, &control)?)
    } else {
        None
    };

    let resamplings = recipe.evaluation.bootstrap;
    let minus = |a: &HeldOutMeter, b| a.minus(b, resamplings, seed.child("bootstrap"));
    let paired = Paired {
        after_minus_before: minus(&after_meter, &before_meter),
        control_minus_before: control.as_ref().map(|(_, meter)| minus(meter, &before_meter)),
        after_minus_control: control.as_ref().map(|(_, meter)| minus(&after_meter, meter)),
    };
    let control = control.map(|(figures, _)| figures);
    let report = Report {
        recipe: recipe.name.clone(),
        seed: recipe.seed,
        images: ImageCounts { train: images.n_train(), held_out: images.n_held_out() },
        stages: std::mem::take(&mut run.journal.stages),
        wall_s: start.elapsed().as_secs_f64(),
        peak_rss_mb: peak_rss_mb(),
        tokenizer: tokenizer_report,
        held_out: HeldOutReport { before, after: after_figures, control, paired },
    };
    let json = serde_json::to_string_pretty(&report).expect("plain values");
    let path = run.journal.dir.write("report.json", json.as_bytes())?;
    run.journal.wrote(&path);
    Ok(report)
}

struct Run<'a, A: AutodiffBackend> {
    recipe: &'a Recipe,
    images: &'a Images,
    device: &'a A::Device,
    workers: usize,
    seed: SeedTree,
    journal: Journal<'a>,
}

impl<A: AutodiffBackend> Run<'_, A> {
    fn scales(&self) -> &ScaleSchedule {
        self.recipe.scales()
    }

    fn train_tokenizer(&mut self) -> Result<Tokenizer<Inner<A>>, TrainError> {
        let recipe = &self.recipe.tokenizer;
        let seed = self.seed.child("tokenizer");
        let tokenizer = sar_tokenizer::init(&recipe.model, seed.child("init"), self.device)?;

        let stage = Stage {
            name: "tokenizer",
            steps: recipe.steps,
            optimisation: &recipe.optimisation,
            layout: recipe.model.layout(),
        };
        let mut task = TokenizerTask::<A>::new(self.recipe, self.images, seed, self.device);
        let tokenizer =
            stage.run(&mut task, tokenizer, self.workers, self.device, &mut self.journal)?;
        let path = self.journal.dir.file("tokenizer.safetensors");
        save_tokenizer(&path, &tokenizer, &recipe.model)?;
        self.journal.wrote(&path);
        Ok(tokenizer)
    }

    /// PSNR and code use on held-out images.
    fn measure_tokenizer(
        &mut self,
        tokenizer: &Tokenizer<Inner<A>>,
    ) -> Result<TokenizerReport, TrainError> {
        self.journal
            .observer
            .event(&Event::Working { what: "measuring the tokenizer on held-out images" });
        let codes = self.recipe.tokenizer.model.codebook_size;
        let schedule = self.scales().clone();
        let mut psnr = vec![Vec::new(); schedule.len()];
        let mut counts = vec![vec![0usize; codes]; schedule.len()];
        for start in (0..self.images.n_held_out()).step_by(EVALUATION_BATCH) {
            let images = self.images.held_out(start, EVALUATION_BATCH)?;
            let pixels_bchw = images.tensor::<Inner<A>>(self.device);
            let tokens_bl = tokenizer.tokens(tokenizer.encode(pixels_bchw.clone()), &schedule);
            let canvases = tokenizer.canvases(tokens_bl.clone(), &schedule);
            for (k, canvas_bchw) in canvases.into_iter().enumerate() {
                let tokens_bn = tokens_bl.clone().slice_dim(1, schedule.range(k));
                let output = tokenizer.decode(canvas_bchw).clamp(-1.0, 1.0);
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
    fn draw_reconstructions(&mut self, tokenizer: &Tokenizer<Inner<A>>) -> Result<(), TrainError> {
        // Images from all over the held-out split, not the first ones, which are alike.
        let n = self.recipe.evaluation.reconstructions.min(self.images.n_held_out());
        let stride = self.images.n_held_out() / n;
        let mut originals = Vec::with_capacity(n);
        for i in 0..n {
            originals.extend(self.images.held_out(i * stride, 1)?.images);
        }
        let h_bchw = tokenizer.encode(to_tensor(&originals, self.device));
        let tokens_bl = tokenizer.tokens(h_bchw, self.scales());
        let side = self.recipe.data.side;
        let mut rows: Vec<Vec<RgbImage>> = vec![originals];
        for canvas_bchw in tokenizer.canvases(tokens_bl, self.scales()).into_iter().rev() {
            let decoded = to_images(tokenizer.decode(canvas_bchw));
            rows.push(decoded.iter().map(|image| enlarge(image, side)).collect());
        }
        let sheet = grid(&rows.concat(), n, 4, magnification(side));
        let path = self.journal.dir.write_png("reconstructions.png", &sheet)?;
        self.journal.wrote(&path);
        Ok(())
    }

    fn train_teacher(
        &mut self,
        tokenizer: &Tokenizer<Inner<A>>,
    ) -> Result<TrainedBackbone<Inner<A>>, TrainError> {
        let classes = self.images.classes().to_vec();
        let config = self.recipe.backbone_config(classes.len());
        let init = self.recipe.backbone.init;
        let model = sar_model::init(&config, init, self.seed.child("backbone"), self.device)?;
        let untrained = TrainedBackbone { model, config, classes, scales: self.scales().clone() };
        let teacher = &self.recipe.teacher;
        self.train_backbone(
            ("teacher", teacher.steps),
            (&teacher.optimisation, &Objective::TeacherForcing, &teacher.regularisation),
            tokenizer,
            untrained,
        )
    }

    /// The SAR stage or its control, from the teacher's weights.
    fn refine(
        &mut self,
        name: &'static str,
        steps: u64,
        objective: &Objective,
        tokenizer: &Tokenizer<Inner<A>>,
        teacher: &TrainedBackbone<Inner<A>>,
    ) -> Result<TrainedBackbone<Inner<A>>, TrainError> {
        let sar = &self.recipe.sar;
        let how = (&sar.optimisation, objective, &sar.regularisation);
        self.train_backbone((name, steps), how, tokenizer, teacher.clone())
    }

    fn train_backbone(
        &mut self,
        (name, steps): (&'static str, u64),
        how: (&Optimisation, &Objective, &Regularisation),
        tokenizer: &Tokenizer<Inner<A>>,
        from: TrainedBackbone<Inner<A>>,
    ) -> Result<TrainedBackbone<Inner<A>>, TrainError> {
        let stage = Stage { name, steps, optimisation: how.0, layout: &sar_model::LAYOUT };
        let seed = self.seed.child(name);
        let mut task =
            BackboneTask::<A>::new(self.recipe, how, self.images, tokenizer, seed, self.device);
        let TrainedBackbone { model, config, classes, scales } = from;
        let model = stage.run(&mut task, model, self.workers, self.device, &mut self.journal)?;
        let trained = TrainedBackbone { model, config, classes, scales };
        let path = self.journal.dir.file(&format!("backbone-{name}.safetensors"));
        save_backbone(&path, &trained)?;
        self.journal.wrote(&path);
        Ok(trained)
    }

    fn measure(
        &mut self,
        what: &str,
        tokenizer: &Tokenizer<Inner<A>>,
        backbone: &TrainedBackbone<Inner<A>>,
    ) -> Result<(HeldOut, HeldOutMeter), TrainError> {
        let what = format!("measuring the {what} weights on held-out images");
        self.journal.observer.event(&Event::Working { what: &what });
        let schedule = self.scales().clone();
        let mut meter = HeldOutMeter::new(&schedule, backbone.config.codebook_size);
        for start in (0..self.images.n_held_out()).step_by(EVALUATION_BATCH) {
            let images = self.images.held_out(start, EVALUATION_BATCH)?;
            let batch = TokenBatch::encode(tokenizer, images, schedule.clone(), self.device);
            meter.add(&backbone.model, tokenizer, &batch, self.device);
        }
        let resamplings = self.recipe.evaluation.bootstrap;
        Ok((meter.report(resamplings, self.seed.child("bootstrap")), meter))
    }

    /// One row of samples per class, from the same streams whatever the weights.
    fn draw_samples(
        &mut self,
        name: &str,
        tokenizer: &Tokenizer<Inner<A>>,
        backbone: &TrainedBackbone<Inner<A>>,
    ) -> Result<(), TrainError> {
        self.journal.observer.event(&Event::Working { what: "sampling" });
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
        let path = self.journal.dir.write_png(name, &sheet)?;
        self.journal.wrote(&path);
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
pub fn sample_images<B: Backend>(
    tokenizer: &Tokenizer<B>,
    model: &Backbone<B>,
    request: &SampleRequest,
    device: &B::Device,
) -> Vec<RgbImage> {
    let SampleRequest { labels, streams, scales, sampler } = request;
    let generated = generate(model, tokenizer, labels, scales, *sampler, streams, device);
    let q_bchw: Tensor<B, 4> = generated.canvas.expect("a schedule has at least one scale");
    to_images(tokenizer.decode(q_bchw))
}
