//! A run: three stages, a control, figures and pictures.
//!
//! Nothing depends on the wall clock: every draw is keyed by (seed, stage, purpose, step or
//! absolute image position), so that a run is a function of its recipe. A run that stopped goes on
//! by walking the same path: stages that are done load their last checkpoint, what is measured and
//! drawn is measured and drawn again.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::backend::{AutodiffBackend, Backend};
use sar_core::{ScaleSchedule, SeedTree};
use sar_data::{Images, ReadAhead, RgbImage, enlarge, grid, magnification, to_images, to_tensor};
use sar_model::Backbone;
use sar_tokenizer::Tokenizer;

use crate::TrainError;
use crate::backbone_task::TokenBatch;
use crate::event::{Event, Observer};
use crate::held_out::{HeldOut, HeldOutMeter};
use crate::latents::{Extent, LatentCache, Latents};
use crate::objective::Objective;
use crate::recipe::{InitFrom, Recipe};
use crate::report::{HeldOutReport, ImageCounts, Paired, Report, peak_rss_mb};
use crate::run_dir::{Metrics, RunDir};
use crate::sampling::{SampleRequest, sample_images, sample_stream};
use crate::stage::{Clock, Journal, Stage, Trained};
use crate::tasks::{BackboneTask, How, LatentSource, TokenizerTask};
use crate::tokenizer_meter::TokenizerMeter;
use crate::weights::{TrainedBackbone, checksum, read_released, save_backbone, save_tokenizer};

/// Images per batch when nothing is trained.
pub(crate) const EVALUATION_BATCH: usize = 32;

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
    let precision = recipe.backbone.precision;
    if !precision.is_supported::<A::InnerBackend>(device) {
        return Err(TrainError::Precision(precision));
    }
    let images = Images::open(&recipe.data, ReadAhead::default())?;
    let given = Given::load(recipe, images.classes().len(), device)?;
    let path = dir;
    let dir = if execution.resume {
        let dir = RunDir::reopen(path)?;
        let started_with = dir.recipe();
        let theirs = Recipe::load(&started_with.to_string_lossy(), &[])?;
        recipe.check_same_as(&theirs, &started_with)?;
        images.fingerprint().check_same_as(&dir.data()?)?;
        dir
    } else {
        RunDir::create(path, recipe, images.fingerprint())?
    };
    observer.event(&Event::RunStarted { recipe: &recipe.name, dir: path });
    let metrics = Metrics::open(&dir)?;
    let Execution { workers, stop, .. } = execution;
    let seed = SeedTree::new(recipe.seed);
    let journal = Journal {
        dir,
        metrics,
        observer,
        stop,
        log: &recipe.log,
        stages: Vec::new(),
        clock: Clock::start(),
    };
    let mut run = Run::<A> { recipe, images: &images, device, workers, seed, journal };

    let Trained { model: tokenizer, average } = run.train_tokenizer(given.tokenizer)?;
    let mut tokenizer_report = run.measure_tokenizer(&tokenizer)?.report();
    tokenizer_report.average_psnr_db =
        average.map(|average| run.measure_tokenizer(&average)).transpose()?.map(|m| m.psnr_db());
    run.draw_reconstructions(&tokenizer)?;

    let latents = run.cache_latents(&tokenizer)?;
    let tokens = (&tokenizer, latents.as_ref().map_or(LatentSource::Online, LatentSource::Cached));
    let Trained { model: teacher, average } = run.train_teacher(tokens, given.backbone)?;
    let (before, before_meter) = run.measure("before", &tokenizer, &teacher)?;
    let before_average = run.measure_average("before", &tokenizer, average)?;
    run.draw_samples("samples-before.png", &tokenizer, &teacher)?;

    let sar = &recipe.sar;
    let Trained { model: after, average } =
        run.refine("sar", sar.steps, &sar.objective, tokens, &teacher)?;
    let (after_figures, after_meter) = run.measure("after", &tokenizer, &after)?;
    let after_average = run.measure_average("after", &tokenizer, average)?;
    run.draw_samples("samples-after.png", &tokenizer, &after)?;

    let control = if sar.control {
        let steps = recipe.control_steps();
        let control = run.refine("control", steps, &Objective::TeacherForcing, tokens, &teacher)?;
        Some(run.measure("control", &tokenizer, &control.model)?)
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
        wall_s: run.journal.clock.elapsed().as_secs_f64(),
        peak_rss_mb: peak_rss_mb(),
        tokenizer: tokenizer_report,
        held_out: HeldOutReport {
            before,
            after: after_figures,
            control,
            before_average,
            after_average,
            paired,
        },
    };
    let json = serde_json::to_string_pretty(&report).expect("plain values");
    let path = run.journal.dir.write("report.json", json.as_bytes())?;
    run.journal.wrote(&path);
    Ok(report)
}

/// The weights that a recipe starts from, read before anything is written.
struct Given<B: Backend> {
    tokenizer: Option<Tokenizer<B>>,
    backbone: Option<Backbone<B>>,
}

impl<B: Backend> Given<B> {
    fn load(recipe: &Recipe, classes: usize, device: &B::Device) -> Result<Self, TrainError> {
        let tokenizer = match &recipe.tokenizer.init_from {
            InitFrom::Scratch {} => None,
            InitFrom::Weights { path } => {
                let empty = Tokenizer::new(&recipe.tokenizer.model, device)?;
                Some(read_released(path, empty, recipe.tokenizer.model.layout())?)
            }
        };
        let backbone = match &recipe.teacher.init_from {
            InitFrom::Scratch {} => None,
            InitFrom::Weights { path } => {
                let empty = Backbone::new(&recipe.backbone_config(classes), device)?;
                Some(read_released(path, empty, &sar_model::LAYOUT)?)
            }
        };
        Ok(Self { tokenizer, backbone })
    }
}

struct Run<'a, A: AutodiffBackend> {
    recipe: &'a Recipe,
    images: &'a Images,
    device: &'a A::Device,
    workers: usize,
    seed: SeedTree,
    journal: Journal<'a>,
}

/// A frozen tokenizer, and where its latents come from.
type Tokens<'t, A> = (&'t Tokenizer<Inner<A>>, LatentSource<'t>);

impl<A: AutodiffBackend> Run<'_, A> {
    fn scales(&self) -> &ScaleSchedule {
        self.recipe.scales()
    }

    fn train_tokenizer(
        &mut self,
        given: Option<Tokenizer<Inner<A>>>,
    ) -> Result<Trained<Tokenizer<Inner<A>>>, TrainError> {
        let recipe = &self.recipe.tokenizer;
        let seed = self.seed.child("tokenizer");
        let tokenizer = match given {
            Some(tokenizer) => tokenizer,
            None => sar_tokenizer::init(&recipe.model, seed.child("init"), self.device)?,
        };
        let stage = Stage {
            name: "tokenizer",
            steps: recipe.steps,
            optimisation: &recipe.optimisation,
            layout: recipe.model.layout(),
        };
        let mut task = TokenizerTask::<A>::new(self.recipe, self.images, seed, self.device);
        let trained =
            stage.run(&mut task, tokenizer, self.workers, self.device, &mut self.journal)?;
        for (name, tokenizer) in named("tokenizer", &trained) {
            let path = self.journal.dir.file(&name);
            save_tokenizer(&path, tokenizer, &recipe.model)?;
            self.journal.wrote(&path);
        }
        Ok(trained)
    }

    /// PSNR and code use on held-out images.
    fn measure_tokenizer(
        &mut self,
        tokenizer: &Tokenizer<Inner<A>>,
    ) -> Result<TokenizerMeter, TrainError> {
        let what = "measuring the tokenizer on held-out images";
        self.journal.observer.event(&Event::Working { what });
        let codes = self.recipe.tokenizer.model.codebook_size;
        let mut meter = TokenizerMeter::new(self.scales(), codes);
        for images in self.images.held_out(self.recipe.evaluation.images, EVALUATION_BATCH) {
            meter.add(tokenizer, images?.tensor(self.device));
        }
        self.journal.warn(self.images);
        Ok(meter)
    }

    /// Rows of held-out originals and their reconstruction at every scale.
    fn draw_reconstructions(&mut self, tokenizer: &Tokenizer<Inner<A>>) -> Result<(), TrainError> {
        let n = self.recipe.evaluation.reconstructions;
        let mut originals: Vec<RgbImage> = Vec::with_capacity(n);
        for batch in self.images.held_out(n, EVALUATION_BATCH) {
            originals.extend(batch?.images);
        }
        let n = originals.len();
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

    /// The cache of latents, made or found, where the recipe asks for one.
    fn cache_latents(
        &mut self,
        tokenizer: &Tokenizer<Inner<A>>,
    ) -> Result<Option<LatentCache>, TrainError> {
        let Latents::Cached { folder, variants, precision } = &self.recipe.latents else {
            return Ok(None);
        };
        let side = self.recipe.data.side as usize / self.recipe.tokenizer.model.downsampling();
        let extent = Extent {
            images: self.images.n_train(),
            variants: *variants,
            shape_chw: [self.recipe.tokenizer.model.codebook_dim, side, side],
            precision: *precision,
        };
        let key = format!(
            "{}-{}-{}",
            checksum(tokenizer, self.recipe.tokenizer.model.layout()),
            self.images.fingerprint().hash,
            self.recipe.latent_settings_checksum(),
        );
        let folder = self.journal.dir.file(&folder.to_string_lossy()).join(key);
        let (records, megabytes) = (extent.records(), extent.bytes() as f64 / 1e6);
        let at = folder.display();
        let what =
            format!("caching {records} latents of {variants} variants, {megabytes:.0} MB in {at}");
        self.journal.observer.event(&Event::Working { what: &what });

        let seed = self.seed.child("latents");
        let encode = |records: std::ops::Range<usize>| {
            let batch = self.images.variants(seed, *variants, records)?;
            Ok((tokenizer.encode(batch.tensor(self.device)), batch.labels))
        };
        let journal = &mut self.journal;
        let progress = |done: usize| {
            journal.observer.event(&Event::Latents { done, of: records });
            if journal.stop.load(Ordering::Relaxed) && done < records {
                return Err(TrainError::StoppedCaching { done, of: records });
            }
            Ok(())
        };
        let cache = LatentCache::open(folder, extent, self.workers, encode, progress)?;
        self.journal.warn(self.images);
        Ok(Some(cache))
    }

    fn train_teacher(
        &mut self,
        tokens: Tokens<'_, A>,
        given: Option<Backbone<Inner<A>>>,
    ) -> Result<Trained<TrainedBackbone<Inner<A>>>, TrainError> {
        let recipe = self.recipe;
        let classes = self.images.classes().to_vec();
        let config = recipe.backbone_config(classes.len());
        let teacher = &recipe.teacher;
        let model = match given {
            Some(model) => model,
            None => {
                let seed = self.seed.child("backbone");
                sar_model::init(&config, recipe.backbone.init, seed, self.device)?
            }
        };
        let from = TrainedBackbone { model, config, classes, scales: self.scales().clone() };
        let how = How {
            optimisation: &teacher.optimisation,
            objective: &Objective::TeacherForcing,
            regularisation: &teacher.regularisation,
            best_by: teacher.best_by,
        };
        let seed = self.seed.child("teacher");
        self.train_backbone("teacher", teacher.steps, how, seed, tokens, from)
    }

    /// The SAR stage or its control, from the teacher's weights. Both see the same images in the same
    /// order and the same variants, as far as the shorter goes.
    fn refine(
        &mut self,
        name: &'static str,
        steps: u64,
        objective: &Objective,
        tokens: Tokens<'_, A>,
        teacher: &TrainedBackbone<Inner<A>>,
    ) -> Result<Trained<TrainedBackbone<Inner<A>>>, TrainError> {
        let sar = &self.recipe.sar;
        let how = How {
            optimisation: &sar.optimisation,
            objective,
            regularisation: &sar.regularisation,
            best_by: sar.best_by,
        };
        let seed = self.seed.child("sar");
        self.train_backbone(name, steps, how, seed, tokens, teacher.clone())
    }

    fn train_backbone(
        &mut self,
        name: &'static str,
        steps: u64,
        how: How<'_>,
        seed: SeedTree,
        tokens: Tokens<'_, A>,
        from: TrainedBackbone<Inner<A>>,
    ) -> Result<Trained<TrainedBackbone<Inner<A>>>, TrainError> {
        let layout = &sar_model::LAYOUT;
        let stage = Stage { name, steps, optimisation: how.optimisation, layout };
        let mut task =
            BackboneTask::<A>::new(self.recipe, how, self.images, tokens, seed, self.device);
        let TrainedBackbone { model, config, classes, scales } = from;
        let trained = stage.run(&mut task, model, self.workers, self.device, &mut self.journal)?;
        let whole = |model| TrainedBackbone {
            model,
            config: config.clone(),
            classes: classes.clone(),
            scales: scales.clone(),
        };
        let trained = Trained { model: whole(trained.model), average: trained.average.map(whole) };
        for (name, backbone) in named(&format!("backbone-{name}"), &trained) {
            let path = self.journal.dir.file(&name);
            save_backbone(&path, backbone)?;
            self.journal.wrote(&path);
        }
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
        for images in self.images.held_out(self.recipe.evaluation.images, EVALUATION_BATCH) {
            let batch = TokenBatch::encode(tokenizer, images?, schedule.clone(), self.device);
            meter.add(&backbone.model, tokenizer, &batch, self.device);
        }
        let resamplings = self.recipe.evaluation.bootstrap;
        Ok((meter.report(resamplings, self.seed.child("bootstrap")), meter))
    }

    fn measure_average(
        &mut self,
        what: &str,
        tokenizer: &Tokenizer<Inner<A>>,
        average: Option<TrainedBackbone<Inner<A>>>,
    ) -> Result<Option<HeldOut>, TrainError> {
        let Some(average) = average else { return Ok(None) };
        let what = format!("average of the {what}");
        Ok(Some(self.measure(&what, tokenizer, &average)?.0))
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
        let classes = backbone.classes.len().min(MOST_SAMPLED_CLASSES);
        let wanted: Vec<(usize, usize)> =
            (0..classes).flat_map(|class| (0..columns).map(move |i| (class, i))).collect();
        let mut images = Vec::new();
        for part in wanted.chunks(SAMPLED_TOGETHER) {
            let request = SampleRequest {
                labels: part.iter().map(|(class, _)| *class).collect(),
                streams: part
                    .iter()
                    .map(|&(class, i)| sample_stream(self.seed, class, i))
                    .collect(),
                scales: self.scales().clone(),
                sampler: self.recipe.evaluation.sampler,
                kept: None,
            };
            images.extend(sample_images(tokenizer, &backbone.model, &request, self.device));
        }
        let sheet = grid(&images, columns, 4, magnification(self.recipe.data.side));
        let path = self.journal.dir.write_png(name, &sheet)?;
        self.journal.wrote(&path);
        Ok(())
    }
}

/// Rows of a sample sheet: of a thousand classes the first ones say enough.
const MOST_SAMPLED_CLASSES: usize = 32;
/// Images of a sample sheet that are generated together.
const SAMPLED_TOGETHER: usize = 16;

/// The files of a stage's weights: raw, and averaged where there is an average.
fn named<'t, M>(name: &str, trained: &'t Trained<M>) -> impl Iterator<Item = (String, &'t M)> {
    let average = trained.average.as_ref().map(|m| (format!("{name}-average.safetensors"), m));
    std::iter::once((format!("{name}.safetensors"), &trained.model)).chain(average)
}
