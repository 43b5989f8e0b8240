//! The training dynamics of all the weights that a run has left: before SAR, after it, after its control, and
//! in between where there are checkpoints.
//!
//! A stage keeps its two newest checkpoints and, where it measures, its best; what is found is what is
//! measured. Nothing of the run is changed, and it may still be going on.

use std::path::{Path, PathBuf};

use burn::tensor::backend::{AutodiffBackend, Backend};
use sar_core::{ScaleSchedule, ScaleSize, SeedTree};
use sar_data::{Images, ReadAhead};
use sar_model::Backbone;
use sar_pipeline::{Known, TrainedBackbone, TrainedTokenizer, tokenizer_of_run};
use sar_rollout::Choice;
use sar_weights::{WeightsFile, bind};
use serde::Serialize;

use crate::backbone_stage::LEARNER;
use crate::checkpoint;
use crate::dynamics::{Dynamics, DynamicsMeter, gradient_norms, rollout_tokens};
use crate::event::{Event, Observer};
use crate::recipe::{Output, Recipe};
use crate::run::Inner;
use crate::run_dir::{checkpoints_of, data_of, has_data, recipe_of, unreadable_of};
use crate::tokens::TokenBatch;
use crate::{StageId, TrainError};

/// What is measured, and on which images.
#[derive(Clone)]
#[non_exhaustive]
pub struct Target {
    /// Whose images, scales and evaluation.
    pub recipe: Recipe,
    /// Its images, the held-out ones of which are measured on.
    pub images: Images,
    /// Weights of the tokenizer that makes tokens of them.
    pub tokenizer: PathBuf,
    /// The backbones.
    pub subjects: Vec<Subject>,
}

/// One set of weights that is measured.
#[derive(Clone, Debug)]
pub struct Subject {
    /// What it is called: `before`, `after`, `control`, `sar 30` for a checkpoint, else the file's name.
    pub name: String,
    /// The stage that it comes from, if from a run.
    pub stage: Option<StageId>,
    /// Steps of the stage that made it; none for an average of weights, and where nothing tells.
    pub step: Option<u64>,
    /// The file.
    pub path: PathBuf,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    /// Weights that describe themselves, below a root if one is said.
    Weights { root: Option<String> },
    /// A checkpoint of a run.
    Checkpoint,
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Held-out images from all over the split; 0: all of them, which is also the most.
    pub images: usize,
    /// How many of them gradient norms are of; 0: there are no gradient norms.
    pub gradient_images: usize,
    /// How a token of the rollout is chosen, without guidance.
    pub choice: Choice,
}

/// The dynamics of several sets of weights on the same images.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Analysis {
    /// Name of the recipe.
    pub recipe: String,
    /// The scales.
    pub scales: ScaleSchedule,
    /// Held-out images that losses and rollouts are of.
    pub images: usize,
    /// Held-out images that gradient norms are of.
    pub gradient_images: usize,
    /// How the rollout's tokens were chosen.
    pub rollout: Choice,
    /// In the order of training.
    pub weights: Vec<Analyzed>,
}

/// The dynamics of one set of weights.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Analyzed {
    /// As [`Subject::name`].
    pub name: String,
    /// As [`Subject::stage`].
    pub stage: Option<StageId>,
    /// As [`Subject::step`].
    pub step: Option<u64>,
    /// As [`Subject::path`].
    pub file: PathBuf,
    /// What was measured.
    #[serde(flatten)]
    pub dynamics: Dynamics,
}

impl Analysis {
    /// The weights of a stage whose steps are known, in the order of their steps: the weights that SAR and its
    /// control start from are their step 0.
    pub fn course(&self, stage: StageId) -> Vec<(u64, &Dynamics)> {
        let of = |stage| self.weights.iter().filter(move |weights| weights.stage == Some(stage));
        let begins = matches!(stage, StageId::Sar | StageId::Control);
        let start = of(StageId::Pretrain).find(|weights| begins && weights.name == BEFORE);
        let mut course: Vec<_> = start.map(|weights| (0, &weights.dynamics)).into_iter().collect();
        course.extend(of(stage).filter_map(|of| Some((of.step.filter(|n| *n > 0)?, &of.dynamics))));
        course.sort_by_key(|(step, _)| *step);
        course
    }
}

const BEFORE: &str = "before";
/// The stages of a backbone, and what the weights that they end with are to SAR.
const STAGES: [(StageId, &str); 3] =
    [(StageId::Pretrain, BEFORE), (StageId::Sar, "after"), (StageId::Control, "control")];

impl Target {
    /// Everything that a run's folder holds.
    ///
    /// # Errors
    /// If there is no run, no tokenizer or no backbone, or the images are not those of the run any more.
    pub fn of_run(run: &Path) -> Result<Self, TrainError> {
        let path = recipe_of(run);
        if !path.is_file() {
            let problem = "holds no run: there is no recipe.toml".into();
            return Err(TrainError::RunDir { path: run.into(), problem });
        }
        let recipe = Recipe::load(&path.to_string_lossy(), &[])?;
        let tokenizer = tokenizer_of_run(run)?;
        let subjects = subjects_of_run(run, &recipe)?;
        if subjects.is_empty() {
            let problem = "there is no backbone-*.safetensors and no checkpoint of a backbone; has \
                           the run come so far?";
            return Err(TrainError::RunDir { path: run.into(), problem: problem.into() });
        }
        let ahead = ReadAhead::default();
        let images = match has_data(run) {
            true => {
                let (data, unreadable) = (data_of(run)?, unreadable_of(run)?);
                Images::reopen(&recipe.data, ahead, &data, &unreadable, &|| ())?
            }
            false => Images::open(&recipe.data, ahead, &|| ())?,
        };
        Ok(Self { recipe, images, tokenizer, subjects })
    }

    /// Files of weights, on the images and at the scales of a recipe. `root` says which of several models in
    /// the files of the backbones.
    ///
    /// # Errors
    /// If the recipe's images cannot be opened.
    pub fn of_files(
        recipe: Recipe,
        tokenizer: PathBuf,
        backbones: Vec<PathBuf>,
        root: Option<String>,
    ) -> Result<Self, TrainError> {
        let images = Images::open(&recipe.data, ReadAhead::default(), &|| ())?;
        let subject = |path: PathBuf| Subject {
            name: path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
            stage: None,
            step: None,
            kind: Kind::Weights { root: root.clone() },
            path,
        };
        let subjects = backbones.into_iter().map(subject).collect();
        Ok(Self { recipe, images, tokenizer, subjects })
    }

    /// Measures all of them; at most `workers` batches are differentiated side by side, and no more than in a
    /// training step.
    ///
    /// A checkpoint that cannot be read is left out with a warning.
    ///
    /// # Errors
    /// If images or weights cannot be read, or do not belong together.
    ///
    /// # Panics
    /// If `workers` is 0, or `settings.choice` mixes codes.
    pub fn analyze<A: AutodiffBackend>(
        &self,
        settings: Settings,
        workers: usize,
        device: &A::Device,
        observer: &mut dyn Observer,
    ) -> Result<Analysis, TrainError> {
        let Self { recipe, images, .. } = self;
        let known = Known::default();
        let loaded = TrainedTokenizer::<Inner<A>>::load(
            WeightsFile::open(&self.tokenizer)?,
            &known,
            device,
        )?;
        notes(&self.tokenizer, loaded.notes(), observer);
        let tokenizer = loaded.value;
        let scales = recipe.scales();
        let tokens = |n: usize, batch_size: usize| -> Result<Vec<_>, TrainError> {
            let batches = images.held_out(n, batch_size).map(|batch| {
                Ok(TokenBatch::encode(&tokenizer.model, batch?, scales.clone(), device))
            });
            batches.collect()
        };
        observer.event(&Event::Working { what: "making tokens of held-out images" });
        let batches = tokens(settings.images, recipe.evaluation.batch_size)?;
        // As many at a time as a training step differentiates.
        let optimization = recipe.optimization(StageId::Pretrain);
        let micro_batch = optimization.batch_size / optimization.grad_accum_steps;
        let workers = workers.min(optimization.grad_accum_steps);
        let gradient_batches = match settings.gradient_images {
            0 => Vec::new(),
            n => tokens(n, micro_batch)?,
        };
        for message in images.take_warnings() {
            observer.event(&Event::Warning { message: &message });
        }
        let count =
            |batches: &[TokenBatch<_>]| batches.iter().map(|batch| batch.labels.len()).sum();
        let (n_images, n_gradients): (usize, usize) = (count(&batches), count(&gradient_batches));

        let mut weights = Vec::new();
        for (i, subject) in self.subjects.iter().enumerate() {
            let Subject { name, stage, step, path, .. } = subject;
            let model = match self.load::<Inner<A>>(subject, &tokenizer, device, observer) {
                Ok(model) => model,
                Err(error) if matches!(subject.kind, Kind::Checkpoint) => {
                    let message = format!("{error}; it is left out");
                    observer.event(&Event::Warning { message: &message });
                    continue;
                }
                Err(error) => return Err(error),
            };
            let of = format!("{} of {}, {name}", i + 1, self.subjects.len());
            let what = format!("{of}: losses of {n_images} images");
            observer.event(&Event::Working { what: &what });
            let latents =
                ScaleSize::square(recipe.data.side as usize / tokenizer.config.downsampling());
            let mut meter = DynamicsMeter::new(scales, tokenizer.config.codebook_size, latents);
            for batch in &batches {
                let rollout_bl =
                    rollout_tokens(&model, &tokenizer.model, batch, settings.choice, device);
                meter.add(&model, &tokenizer.model, batch, rollout_bl, device);
            }
            let norms = (!gradient_batches.is_empty()).then(|| {
                let what = format!("{of}: gradients of {n_gradients} images");
                observer.event(&Event::Working { what: &what });
                let batches = &gradient_batches;
                gradient_norms::<A, _>(&model, &tokenizer.model, batches, workers, device)
            });
            let resamplings = recipe.evaluation.bootstrap;
            let seed = SeedTree::new(recipe.seed).child("bootstrap");
            let dynamics = meter.report(norms.as_deref(), resamplings, seed);
            let (name, stage, step, file) = (name.clone(), *stage, *step, path.clone());
            weights.push(Analyzed { name, stage, step, file, dynamics });
        }
        Ok(Analysis {
            recipe: recipe.name.clone(),
            scales: scales.clone(),
            images: n_images,
            gradient_images: n_gradients,
            rollout: settings.choice,
            weights,
        })
    }

    /// The weights of a subject, in single precision.
    fn load<B: Backend>(
        &self,
        subject: &Subject,
        tokenizer: &TrainedTokenizer<B>,
        device: &B::Device,
        observer: &mut dyn Observer,
    ) -> Result<Backbone<B>, TrainError> {
        let Self { recipe, images, .. } = self;
        let path = &subject.path;
        let root = match &subject.kind {
            Kind::Checkpoint => {
                let config = recipe.backbone_config(images.classes().len());
                let weights = checkpoint::weights(path, LEARNER)?;
                return Ok(bind(Backbone::new(&config, device)?, weights, &sar_model::LAYOUT)?);
            }
            Kind::Weights { root } => root.clone(),
        };
        let known = Known { root, ..Known::default() };
        let loaded = TrainedBackbone::<B>::load(WeightsFile::open(path)?, &known, device)?;
        // What a file leaves open about classes and scales is the recipe's to say.
        notes(path, loaded.place.into_iter(), observer);
        loaded.value.check_tokenizer(tokenizer, [&self.tokenizer, path])?;
        let TrainedBackbone { model, config, .. } = loaded.value;
        let misfit = |problem: String| TrainError::RunDir { path: path.clone(), problem };
        let (classes, theirs) = (config.classes, images.classes().len());
        if classes != theirs {
            let problem = format!(
                "is of {classes} classes, the images of recipe {} are of {theirs}",
                recipe.name
            );
            return Err(misfit(problem));
        }
        let scales = recipe.scales();
        match config.positions.only_scales() {
            Some(learned) if learned != scales => {
                let problem = format!(
                    "has positions for the scales {learned} alone, recipe {} is of {scales}",
                    recipe.name
                );
                Err(misfit(problem))
            }
            _ => Ok(model),
        }
    }
}

/// The weights of a run's backbones, in the order of training.
fn subjects_of_run(run: &Path, recipe: &Recipe) -> Result<Vec<Subject>, TrainError> {
    let folder = checkpoints_of(run);
    let mut subjects = Vec::new();
    for (stage, name) in STAGES {
        let checkpoints = match folder.is_dir() {
            true => checkpoint::list(&folder, stage)?,
            false => Vec::new(),
        };
        let path = run.join(stage.weights_file());
        let steps = recipe.steps(stage);
        // After how many steps the weights were what the stage ends with.
        let end = match (recipe.output(stage), checkpoints.last()) {
            (Output::Average, _) if recipe.optimization(stage).ema > 0.0 && steps > 0 => None,
            (Output::Best, Some((_, newest))) if recipe.log.measures() => {
                checkpoint::best_step(newest)?
            }
            (Output::Best, None) if recipe.log.measures() => None,
            _ => Some(steps),
        };
        let subject =
            |name: String, step, path, kind| Subject { name, stage: Some(stage), step, path, kind };
        for (step, checkpoint) in checkpoints {
            if !(path.is_file() && end == Some(step)) {
                let name = format!("{stage} {step}");
                subjects.push(subject(name, Some(step), checkpoint, Kind::Checkpoint));
            }
        }
        if path.is_file() {
            subjects.push(subject(name.into(), end, path, Kind::Weights { root: None }));
        }
    }
    Ok(subjects)
}

fn notes(path: &Path, notes: impl Iterator<Item = String>, observer: &mut dyn Observer) {
    for note in notes {
        let message = format!("{}: {note}", path.display());
        observer.event(&Event::Note { message: &message });
    }
}
