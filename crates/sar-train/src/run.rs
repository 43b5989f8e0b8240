//! A run: three stages, a control, figures and pictures.
//!
//! Nothing depends on the wall clock: every draw is keyed by (seed, stage, purpose, step or
//! absolute image position), so that a run is a function of its recipe. A run that stopped goes on
//! by walking the same path: stages that are done load their last checkpoint, what is measured and
//! drawn is measured and drawn again.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use burn::module::AutodiffModule;
use burn::tensor::backend::AutodiffBackend;
use sar_core::{ScaleSchedule, SeedTree};
use sar_data::{Fingerprint, Images, ReadAhead, UnreadableImage};
use sar_exchange::{ExchangeError, Group};
use sar_pipeline::{CodebookSketch, PipelineError, TrainedBackbone, TrainedTokenizer};
use sar_tokenizer::Tokenizer;
use sar_weights::Crc32;

use crate::backbone_stage::{BackboneSettings, BackboneStage, LatentSource, Tokens};
use crate::checkpoint::{self, Saved};
use crate::event::{Event, Observer};
use crate::held_out::HeldOutMeter;
use crate::init::Initial;
use crate::latents::{Extent, LatentCache, Latents};
use crate::learner::{Learner, Trained};
use crate::objective::Objective;
use crate::perception::Perception;
use crate::program::program;
use crate::recipe::{Output, Recipe};
use crate::report::{HeldOutReport, ImageCounts, Paired, Report, peak_rss_mb};
use crate::run_dir::{Metrics, RunDir};
use crate::stage::{Clock, Journal, Stage, Task};
use crate::tokenizer_stage::TokenizerStage;
use crate::turns::SharedSearch;
use crate::{StageId, TrainError, recipe, together};

pub(crate) type Inner<A> = <A as AutodiffBackend>::InnerBackend;

/// How a run is carried out; none of it changes what comes out.
#[derive(Clone, Copy, Debug)]
pub struct Execution<'a> {
    /// Goes on with the run that the directory holds, instead of starting one.
    pub resume: bool,
    /// Micro-batches that run at the same time: CPU cores, or 1 on a GPU, where each would hold its
    /// own activations.
    pub workers: usize,
    /// Once true, or once the folder of the run has a file `stop`, the run writes a checkpoint and ends with
    /// [`TrainError::Stopped`]; so do all ranks once it is so for one.
    pub stop: &'a AtomicBool,
    /// The ranks that train together, of which this process is one.
    pub group: &'a Group,
}

/// Trains everything that a recipe says into a run directory.
///
/// Among several ranks every one calls this, with the same recipe. They measure and draw samples in turns;
/// the one that leads writes. Of another one an observer hears no less, but nothing that is not its own.
/// All end with the same report.
///
/// # Errors
/// Before anything is written: if the recipe does not fit its images or its weights, or the directory is
/// not fit for the run. Later: if files cannot be read or written, a loss is not finite any more, or the
/// run is asked to stop.
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
    let group = execution.group;
    let outcome = train_together::<A>(recipe, dir, execution, device, observer);
    match &outcome {
        // The last exchange: who fails after it has done all that others wait for.
        Ok(_) => group.all_gather(&[]).map(|_| ())?,
        // All have heard of it; but what a message is like, only who got it knows.
        Err(TrainError::Exchange(ExchangeError::Failed { .. } | ExchangeError::Silent { .. })) => {}
        Err(error) => group.fail(&error.to_string()),
    }
    outcome
}

fn train_together<A: AutodiffBackend>(
    recipe: &Recipe,
    dir: &Path,
    execution: Execution<'_>,
    device: &A::Device,
    observer: &mut dyn Observer,
) -> Result<Report, TrainError> {
    let Execution { group, resume, .. } = execution;
    check_precision::<A>(recipe, device)?;
    let mut notes = together::fits(recipe, group.ranks())?;
    if !group.is_alone() {
        let toml = recipe.to_toml();
        let recipe = format!("{} {}", recipe.name, Crc32::of(toml.as_bytes()));
        let values = [("program", program()?), ("recipe", recipe)];
        together::compare(group, &values)?;
    }
    let (path, ahead) = (dir, ReadAhead::default());
    let perception = perception_of::<A>(recipe, device)?;
    let mut opened = None;
    let known = group.from_rank(0, || {
        if !resume {
            return Ok::<_, TrainError>(Vec::new());
        }
        let dir = RunDir::reopen(path)?;
        let started_with = dir.recipe();
        let theirs = Recipe::load(&started_with.to_string_lossy(), &[])?;
        recipe.check_resumes(&theirs, &started_with)?;
        let known = (dir.data()?, dir.unreadable()?);
        opened = Some(dir);
        Ok(serde_json::to_vec(&known).expect("plain values"))
    })?;
    // Of a million files that takes minutes, on one machine more than on another.
    let search = SharedSearch::new(group);
    let images = match resume {
        true => {
            let (data, unreadable): (Fingerprint, Vec<UnreadableImage>) =
                serde_json::from_slice(&known)
                    .map_err(|_| ExchangeError::Unexpected { rank: 0 })?;
            Images::reopen(&recipe.data, ahead, &data, &unreadable, &search)
        }
        false => Images::open(&recipe.data, ahead, &search),
    };
    let images = images.map_err(|error| search.why(error))?;
    let initial = Initial::load(recipe, images.classes(), device)?;
    if !group.is_alone() {
        let found = images.n_train() + images.n_held_out();
        let found = format!("{found} images, {}", images.fingerprint().hash);
        let weights = initial.checksum(recipe.tokenizer.model.layout());
        together::compare(group, &[("set of images", found), ("set of initial weights", weights)])?;
        notes.insert(0, format!("{} ranks train together", group.ranks()));
    }
    let dir = match (group.leads(), opened) {
        (true, Some(dir)) => {
            dir.update_recipe(recipe)?;
            dir
        }
        (true, None) => RunDir::create(path, recipe, images.fingerprint())?,
        (false, _) => RunDir::of_others(path),
    };
    observer.event(&Event::RunStarted { recipe: &recipe.name, dir: path });
    observer.event(&Event::Note { message: &images.summary() });
    for message in images.notes() {
        observer.event(&Event::Warning { message });
    }
    for message in initial.notes.iter().chain(&notes) {
        observer.event(&Event::Note { message });
    }
    let metrics = Metrics::open(&dir, recipe.log.tensorboard)?;
    let Execution { workers, stop, .. } = execution;
    let (log, clock) = (&recipe.log, Clock::start());
    let journal = Journal { dir, metrics, observer, stop, log, stages: Vec::new(), clock };
    let seed = SeedTree::new(recipe.seed);
    let mut run = Run::<A> { recipe, images: &images, device, workers, seed, journal, group };
    let report = run.path(initial, perception);
    // Also when it failed: it may have failed for them.
    run.journal.dir.remember_unreadable(&images.unreadable())?;
    report
}

/// Whether the device computes in the precisions of a recipe.
pub(crate) fn check_precision<A: AutodiffBackend>(
    recipe: &Recipe,
    device: &A::Device,
) -> Result<(), TrainError> {
    let (precision, wire) = (recipe.backbone.precision, recipe.exchange.gradients);
    if !precision.is_supported::<A::InnerBackend>(device) {
        return Err(TrainError::Precision(precision));
    }
    match wire.is_supported::<A::InnerBackend>(device) {
        true => Ok(()),
        false => Err(TrainError::Wire(wire)),
    }
}

/// What looks at reconstructions beside their pixels; nothing where no tokenizer is trained.
pub(crate) fn perception_of<A: AutodiffBackend>(
    recipe: &Recipe,
    device: &A::Device,
) -> Result<Option<Perception<A>>, TrainError> {
    match recipe.tokenizer.steps {
        0 => Ok(None),
        _ => Ok(Perception::open(&recipe.tokenizer.loss.perceptual, device)?),
    }
}

pub(crate) struct Run<'a, A: AutodiffBackend> {
    pub(crate) recipe: &'a Recipe,
    pub(crate) images: &'a Images,
    pub(crate) device: &'a A::Device,
    pub(crate) workers: usize,
    pub(crate) seed: SeedTree,
    pub(crate) journal: Journal<'a>,
    pub(crate) group: &'a Group,
}

impl<A: AutodiffBackend> Run<'_, A> {
    /// The whole path; the report is that of the rank that leads.
    fn path(
        &mut self,
        initial: Initial<Inner<A>>,
        perception: Option<Perception<A>>,
    ) -> Result<Report, TrainError> {
        let own = self.own_path(initial, perception)?;
        let message = || Ok::<_, TrainError>(serde_json::to_vec(&own).expect("plain values"));
        let report = self.group.from_rank(0, message)?;
        if self.group.leads() {
            return Ok(own);
        }
        Ok(serde_json::from_slice(&report).map_err(|_| ExchangeError::Unexpected { rank: 0 })?)
    }

    fn own_path(
        &mut self,
        initial: Initial<Inner<A>>,
        perception: Option<Perception<A>>,
    ) -> Result<Report, TrainError> {
        let Trained { model, average } = self.train_tokenizer(initial.tokenizer, perception)?;
        let tokenizer_report = self.tokenizer_report(&model, average.as_ref())?;
        let tokenizer = self.whole_tokenizer(model);
        self.draw_reconstructions(&tokenizer.model)?;

        let latents = self.cache_latents(&tokenizer)?;
        let source = latents.as_ref().map_or(LatentSource::Online, LatentSource::Cached);
        let tokens = (&tokenizer.model, source);
        let start = self.whole(initial.backbone, initial.codebook);
        let Trained { model: pretrained, average } =
            self.train_backbone(StageId::Pretrain, tokens, start)?;
        let (before, before_meter) = self.measure("before", &tokenizer.model, &pretrained)?;
        let before_average = self.measure_average("before", &tokenizer.model, average)?;
        self.draw_samples("samples-before.png", &tokenizer, &pretrained)?;
        let eyes = self.judge()?;
        let eyes = eyes.as_ref();
        let seen_before =
            self.glances(eyes, ("before", StageId::Pretrain), &tokenizer, &pretrained)?;

        let Trained { model: refined, average } =
            self.train_backbone(StageId::Sar, tokens, pretrained.clone())?;
        let (after, after_meter) = self.measure("after", &tokenizer.model, &refined)?;
        let after_average = self.measure_average("after", &tokenizer.model, average)?;
        self.draw_samples("samples-after.png", &tokenizer, &refined)?;
        let seen_after = self.glances(eyes, ("after", StageId::Sar), &tokenizer, &refined)?;

        let (control, seen_control) = match self.recipe.sar.control {
            true => {
                let control = self.train_backbone(StageId::Control, tokens, pretrained)?.model;
                let measured = self.measure("control", &tokenizer.model, &control)?;
                let what = ("control", StageId::Control);
                (Some(measured), Some(self.glances(eyes, what, &tokenizer, &control)?))
            }
            false => (None, None),
        };
        let quality =
            self.quality_report(eyes, &seen_before, &seen_after, seen_control.as_deref())?;
        let (resamplings, seed) = (self.recipe.evaluation.bootstrap, self.seed.child("bootstrap"));
        let minus = |a: &HeldOutMeter, b| a.minus(b, resamplings, seed);
        let paired = Paired {
            after_minus_before: minus(&after_meter, &before_meter),
            control_minus_before: control.as_ref().map(|(_, meter)| minus(meter, &before_meter)),
            after_minus_control: control.as_ref().map(|(_, meter)| minus(&after_meter, meter)),
        };
        let control = control.map(|(figures, _)| figures);
        self.report(Report {
            recipe: self.recipe.name.clone(),
            seed: self.recipe.seed,
            images: ImageCounts {
                train: self.images.n_train(),
                held_out: self.images.n_held_out(),
            },
            stages: self.journal.stages.clone(),
            wall_s: self.journal.clock.elapsed().as_secs_f64(),
            peak_rss_mb: peak_rss_mb(),
            tokenizer: tokenizer_report,
            held_out: HeldOutReport {
                before,
                after,
                control,
                before_average,
                after_average,
                paired,
            },
            quality,
        })
    }

    /// Writes it, where this is the rank that leads.
    fn report(&mut self, report: Report) -> Result<Report, TrainError> {
        let json = serde_json::to_string_pretty(&report).expect("plain values");
        let path = self.journal.dir.write("report.json", json.as_bytes())?;
        self.journal.wrote(&path);
        Ok(report)
    }

    pub(crate) fn scales(&self) -> &ScaleSchedule {
        self.recipe.scales()
    }

    /// A tokenizer with what belongs to it.
    fn whole_tokenizer(&self, model: Tokenizer<Inner<A>>) -> TrainedTokenizer<Inner<A>> {
        TrainedTokenizer { model: model.folded(), config: self.recipe.tokenizer.model.clone() }
    }

    /// A backbone with what belongs to it, and the codes that it was trained with.
    fn whole(
        &self,
        model: sar_model::Backbone<Inner<A>>,
        codebook: Option<CodebookSketch>,
    ) -> TrainedBackbone<Inner<A>> {
        let classes = self.images.classes().to_vec();
        TrainedBackbone {
            model,
            config: self.recipe.backbone_config(classes.len()),
            classes,
            scales: self.scales().clone(),
            sampler: self.recipe.evaluation.sampler,
            codebook,
        }
    }

    /// The tokenizer that the stage ends with, and its average if there is another.
    fn train_tokenizer(
        &mut self,
        from: Tokenizer<Inner<A>>,
        perception: Option<Perception<A>>,
    ) -> Result<Trained<Tokenizer<Inner<A>>>, TrainError> {
        let id = StageId::Tokenizer;
        let seed = self.seed.child("tokenizer");
        let task = TokenizerStage::<A>::new(
            self.recipe,
            (from, perception),
            self.images,
            (self.workers, self.group),
            seed,
            self.device,
        )?;
        let Trained { model, average } =
            self.train(id, task, TokenizerStage::into_learner, |run, model, path| {
                run.whole_tokenizer(model).save(path)
            })?;
        Ok(Trained { model: model.folded(), average: average.map(Tokenizer::folded) })
    }

    /// The cache of latents, made or found, where the recipe asks for one and a stage reads it.
    fn cache_latents(
        &mut self,
        tokenizer: &TrainedTokenizer<Inner<A>>,
    ) -> Result<Option<LatentCache>, TrainError> {
        let Latents::Cached { folder, variants, .. } = &self.recipe.latents else {
            return Ok(None);
        };
        let readers = [StageId::Pretrain, StageId::Sar, StageId::Control];
        if readers.into_iter().all(|id| self.recipe.steps(id) == 0) {
            return Ok(None);
        }
        let config = &tokenizer.config;
        let extent = Extent::of(self.recipe, self.images.n_train()).expect("a cache");
        let key = format!(
            "{}-{}-{}",
            sar_weights::checksum(&tokenizer.model, config.layout()),
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
            Ok((tokenizer.model.encode(batch.tensor(self.device)), batch.labels))
        };
        let journal = &mut self.journal;
        let progress = |done: usize| {
            journal.observer.event(&Event::Latents { done, of: records });
            let [stop] = self.group.any([journal.is_stopped()])?;
            if stop && done < records {
                return Err(TrainError::StoppedCaching { done, of: records });
            }
            Ok(())
        };
        let at_once = [self.workers, self.recipe.evaluation.batch_size];
        let cache = LatentCache::open(folder, extent, at_once, self.group, encode, progress)?;
        self.journal.warn(self.images)?;
        Ok(Some(cache))
    }

    /// A stage of the backbone: the weights that it ends with, and their average if there is another.
    ///
    /// SAR and its control see the same images in the same order and the same variants, as far as the
    /// shorter goes.
    fn train_backbone(
        &mut self,
        id: StageId,
        tokens: Tokens<'_, Inner<A>>,
        from: TrainedBackbone<Inner<A>>,
    ) -> Result<Trained<TrainedBackbone<Inner<A>>>, TrainError> {
        let recipe::Recipe { pretrain, sar, .. } = self.recipe;
        let (objective, regularization, monitor) = match id {
            StageId::Pretrain => {
                (&Objective::TeacherForcing, &pretrain.regularization, pretrain.monitor)
            }
            StageId::Sar => (&sar.objective, &sar.regularization, sar.monitor),
            StageId::Control => (&Objective::TeacherForcing, &sar.regularization, sar.monitor),
            StageId::Tokenizer => unreachable!("not a stage of the backbone"),
        };
        let optimization = self.recipe.optimization(id);
        let weight = sar.weight_schedule;
        let settings =
            BackboneSettings { optimization, objective, weight, regularization, monitor };
        let seed = match id {
            // The name of the stage's stream is older than the stage's name.
            StageId::Pretrain => self.seed.child("teacher"),
            _ => self.seed.child("sar"),
        };
        // Without a step it is what it was, with other codes perhaps.
        let codebook = match self.recipe.steps(id) {
            0 => from.codebook,
            _ => Some(CodebookSketch::of(tokens.0.codebook())),
        };
        let task = BackboneStage::<A>::new(
            self.recipe,
            settings,
            from.model,
            self.images,
            tokens,
            (self.workers, self.group, seed),
            self.device,
        );
        let Trained { model, average } =
            self.train(id, task, BackboneStage::into_learner, |run, model, path| {
                run.whole(model, codebook.clone()).save(path)
            })?;
        let average = average.map(|average| self.whole(average, codebook.clone()));
        Ok(Trained { model: self.whole(model, codebook), average })
    }

    /// Runs a stage, and writes what its main learner ends with: the weights that the recipe chooses, and
    /// their average if there is another.
    fn train<T: Task<Inner<A>>, M: AutodiffModule<A, InnerModule: Send>>(
        &mut self,
        id: StageId,
        mut task: T,
        into_learner: impl FnOnce(T) -> Learner<A, M>,
        save: impl Fn(&Self, M::InnerModule, &Path) -> Result<(), PipelineError>,
    ) -> Result<Trained<M::InnerModule>, TrainError> {
        let (batch, output) = (self.recipe.optimization(id).batch_size, self.recipe.output(id));
        let stage = Stage { id, steps: self.recipe.steps(id), batch, output };
        let best_step = stage.run(&mut task, &mut self.journal)?;
        let learner = into_learner(task);
        let best = match best_step {
            Some(step) if step == stage.steps => Some(learner.model().clone()),
            Some(step) => {
                let Journal { dir, observer, .. } = &mut self.journal;
                let best = || checkpoint::best(dir, (id, output), step, *observer, Saved::read);
                let best = Saved::for_all(self.group, best)?;
                let best = best.map(|mut best| learner.weights_of(&mut best));
                best.transpose()?
            }
            None => None,
        };
        let chosen = Chosen::of(output, learner.into_trained(), best);
        for (name, model) in chosen.files(id).filter(|_| self.group.leads()) {
            let path = self.journal.dir.file(&name);
            save(self, model.clone(), &path)?;
            self.journal.wrote(&path);
        }
        Ok(Trained { model: chosen.output, average: chosen.average })
    }
}

/// What a stage ends with, and what else it has made.
struct Chosen<M> {
    output: M,
    last: Option<M>,
    best: Option<M>,
    average: Option<M>,
}

impl<M: Clone> Chosen<M> {
    /// `output` says which of the weights the stage ends with. A stage without steps has none but those
    /// that it started from.
    fn of(output: Output, trained: Trained<M>, best: Option<M>) -> Self {
        let Trained { model: last, average } = trained;
        match (output, average, best) {
            (Output::Best, average, Some(best)) => {
                Self { output: best, last: Some(last), best: None, average }
            }
            (Output::Average | Output::AverageButCodebook, Some(average), best) => {
                Self { output: average, last: Some(last), best, average: None }
            }
            (_, average, best) => Self { output: last, last: None, best, average },
        }
    }

    /// The files of a stage's weights.
    fn files(&self, id: StageId) -> impl Iterator<Item = (String, &M)> {
        let others = [("last", &self.last), ("best", &self.best), ("average", &self.average)];
        let others = others
            .into_iter()
            .filter_map(move |(what, model)| Some((id.other_weights_file(what), model.as_ref()?)));
        std::iter::once((id.weights_file(), &self.output)).chain(others)
    }
}
