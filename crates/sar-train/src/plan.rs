//! What a run will do, said before anything is done.

use burn::module::Module;
use burn::tensor::backend::Backend;
use sar_data::{Images, ReadAhead};
use sar_model::Backbone;
use sar_tokenizer::{Tokenizer, TokenizerConfig};
use sar_weights::{Layout, parameters};

use crate::TrainError;
use crate::latents::{Extent, Latents};
use crate::recipe::Recipe;
use crate::step::Optimisation;

/// The plan of a run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Training and held-out images.
    pub images: [usize; 2],
    /// Number of classes.
    pub classes: usize,
    /// The stages, in their order.
    pub stages: Vec<PlannedStage>,
    /// Tokens of an image at sampling and evaluation.
    pub tokens: usize,
    /// Latents that will be cached, and their bytes.
    pub latents: Option<(usize, u64)>,
    /// Files that the run will write, with their bytes, latents not counted.
    pub files: Vec<(String, u64)>,
    /// Memory at its peak, bytes: an estimate from shapes, not a measurement.
    pub memory: u64,
}

/// One stage of a plan.
#[derive(Clone, Debug)]
pub struct PlannedStage {
    /// Its name.
    pub name: &'static str,
    /// Optimisation steps; 0 keeps the weights that it starts from.
    pub steps: u64,
    /// Images per step,
    pub batch: usize,
    /// in so many parts.
    pub micro_batches: usize,
    /// Parameters that it trains.
    pub parameters: usize,
    /// Passes over all training images.
    pub epochs: f64,
    /// Memory of the stage, bytes: an estimate.
    pub memory: u64,
}

/// Bytes of a float.
const F32: u64 = 4;

/// Plans a run; `workers` micro-batches run side by side.
///
/// # Errors
/// As a run would before its first step: if the recipe does not fit its images.
pub fn plan<B: Backend>(
    recipe: &Recipe,
    workers: usize,
    device: &B::Device,
) -> Result<Plan, TrainError> {
    let images = Images::open(&recipe.data, ReadAhead::default())?;
    let classes = images.classes().len();
    let model = &recipe.tokenizer.model;
    let n_tokenizer = count(&Tokenizer::<B>::new(model, device)?, model.layout());
    let config = recipe.backbone_config(classes);
    let n_backbone = count(&Backbone::<B>::new(&config, device)?, &sar_model::LAYOUT);

    let side = recipe.data.side as usize;
    let tokenizer_floats = tokenizer_activations(model, side);
    let l = recipe.scales().n_tokens();
    let tokens = match &recipe.backbone.schedule {
        sar_core::TrainingSchedule::Fixed { .. } => l,
        sar_core::TrainingSchedule::Random { max_tokens, .. } => l.max(*max_tokens),
    };
    let (d, h) = (config.width as u64, config.heads as u64);
    // What a token leaves for the backward pass: in each block about 40 rows of the width and three
    // rows of attention scores, then four rows of logits.
    let pass_floats =
        |n: u64| n * (config.depth as u64 * (40 * d + 3 * h * n) + 4 * config.codebook_size as u64);

    let stage = |name,
                 steps,
                 optimisation: &Optimisation,
                 parameters: usize,
                 floats: u64,
                 frozen: usize| {
        let Optimisation { batch, micro_batches, ema, .. } = *optimisation;
        let at_once = micro_batches.min(workers) as u64 * (batch / micro_batches) as u64;
        // Weights, gradients (one set per worker and their sum), two moments, the average.
        let sets = 3
            + micro_batches.min(workers) as u64
            + u64::from(micro_batches > 1)
            + u64::from(ema > 0.0);
        PlannedStage {
            name,
            steps,
            batch,
            micro_batches,
            parameters,
            epochs: steps as f64 * batch as f64 / images.n_train() as f64,
            memory: F32 * (sets * parameters as u64 + at_once * floats + frozen as u64),
        }
    };
    let teacher_floats = pass_floats(tokens as u64);
    let student = recipe.sar.objective.passes(recipe.scales()) - 1.0;
    let sar_floats = teacher_floats + (teacher_floats as f64 * student) as u64;
    let sar = &recipe.sar;
    let mut stages = vec![
        stage(
            "tokenizer",
            recipe.tokenizer.steps,
            &recipe.tokenizer.optimisation,
            n_tokenizer,
            tokenizer_floats,
            0,
        ),
        stage(
            "teacher",
            recipe.teacher.steps,
            &recipe.teacher.optimisation,
            n_backbone,
            teacher_floats,
            n_tokenizer,
        ),
        stage(
            "sar",
            sar.steps,
            &sar.optimisation,
            n_backbone,
            sar_floats,
            n_tokenizer + n_backbone,
        ),
    ];
    if sar.control {
        let steps = recipe.control_steps();
        let frozen = n_tokenizer + n_backbone;
        stages.push(stage("control", steps, &sar.optimisation, n_backbone, teacher_floats, frozen));
    }

    let latents = match &recipe.latents {
        Latents::Online {} => None,
        Latents::Cached { variants, precision, .. } => {
            let latent = side / model.downsampling();
            let shape_chw = [model.codebook_dim, latent, latent];
            let (images, variants, precision) = (images.n_train(), *variants, *precision);
            let extent = Extent { images, variants, shape_chw, precision };
            Some((extent.records(), extent.bytes()))
        }
    };
    Ok(Plan {
        images: [images.n_train(), images.n_held_out()],
        classes,
        tokens: l,
        latents,
        files: files(&stages, recipe),
        memory: stages.iter().map(|stage| stage.memory).max().unwrap_or(0),
        stages,
    })
}

fn files(stages: &[PlannedStage], recipe: &Recipe) -> Vec<(String, u64)> {
    let mut files = Vec::new();
    for stage in stages {
        let weights = F32 * stage.parameters as u64;
        let ema = match stage.name {
            "tokenizer" => recipe.tokenizer.optimisation.ema,
            "teacher" => recipe.teacher.optimisation.ema,
            _ => recipe.sar.optimisation.ema,
        };
        let averages = u64::from(ema > 0.0 && stage.steps > 0);
        let name = match stage.name {
            "tokenizer" => "tokenizer".to_owned(),
            name => format!("backbone-{name}"),
        };
        files.push((format!("{name}.safetensors"), weights));
        if averages > 0 {
            files.push((format!("{name}-average.safetensors"), weights));
        }
        if stage.steps > 0 {
            // The last two, and the best where anything is measured.
            let kept = 2 + u64::from(recipe.log.measures());
            let checkpoints = format!("checkpoints/{}-*.safetensors, at most {kept}", stage.name);
            files.push((checkpoints, kept * (3 + averages) * weights));
        }
    }
    files
}

/// The number of parameters, none of which is allocated.
fn count<B: Backend, M: Module<B>>(module: &M, layout: &Layout) -> usize {
    parameters(module, layout).iter().map(|p| p.shape.iter().product::<usize>()).sum()
}

/// Floats that the backward pass of an image keeps, about twelve maps a residual block, at the finest
/// scale and a coarser one.
fn tokenizer_activations(config: &TokenizerConfig, side: usize) -> u64 {
    let levels = config.channel_multipliers.len();
    let floats: usize = (0..levels)
        .map(|level| {
            let side = side >> level;
            let blocks = 2 * config.res_blocks + 1;
            12 * blocks * config.channels(level) * side * side
        })
        .sum();
    // The coarser scale is decoded from a map of at most three quarters of the side.
    floats as u64 * 3 / 2
}
