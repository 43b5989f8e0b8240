//! What a run will do, said before anything is done.

use burn::tensor::backend::AutodiffBackend;
use sar_data::{Images, ReadAhead};
use sar_model::Backbone;
use sar_tokenizer::{Tokenizer, TokenizerConfig};
use sar_weights::{ParameterInfo, parameters};

use crate::init::Given;
use crate::latents::Extent;
use crate::learner::Optimization;
use crate::muon::Matrices;
use crate::optim::moments_of;
use crate::recipe::Recipe;
use crate::run::{check_precision, perception_of};
use crate::{StageId, TrainError};

/// The plan of a run.
#[derive(Clone, Debug)]
#[non_exhaustive]
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
    /// Memory of measuring, sampling and caching, bytes: an estimate.
    pub evaluation_memory: u64,
    /// Memory at its peak, bytes: an estimate from shapes, not a measurement.
    pub memory: u64,
    /// How many images train, and what is left out, in a line.
    pub summary: String,
    /// What the user should know of images and weights: a line each.
    pub notes: Vec<String>,
}

/// One stage of a plan.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PlannedStage {
    /// Which.
    pub id: StageId,
    /// Optimization steps; 0 keeps the weights that it starts from.
    pub steps: u64,
    /// Images per step,
    pub batch_size: usize,
    /// in so many parts.
    pub grad_accum_steps: usize,
    /// Parameters that it trains.
    pub parameters: usize,
    /// Values of the optimizer's moments, two a parameter, or one where Muon moves it.
    pub moments: usize,
    /// Passes over all training images.
    pub epochs: f64,
    /// Memory of the stage, bytes: an estimate.
    pub memory: u64,
}

/// Bytes of a float.
const F32: u64 = 4;

fn n_elements(parameters: &[ParameterInfo]) -> usize {
    parameters.iter().map(|parameter| parameter.shape.iter().product::<usize>()).sum()
}

/// Values of all moments that an optimizer keeps.
fn n_moments(parameters: &[ParameterInfo], matrices: Matrices) -> usize {
    let of_one = |parameter: &ParameterInfo| {
        moments_of(matrices, parameter).len() * parameter.shape.iter().product::<usize>()
    };
    parameters.iter().map(of_one).sum()
}

/// Plans a run; `workers` micro-batches run side by side. Everything is checked that a run checks before
/// its first step.
///
/// # Errors
/// As a run would before its first step: if the recipe does not fit its images, its weights or the
/// device.
pub fn plan<A: AutodiffBackend>(
    recipe: &Recipe,
    workers: usize,
    device: &A::Device,
) -> Result<Plan, TrainError> {
    check_precision::<A>(recipe, device)?;
    let images = Images::open(&recipe.data, ReadAhead::default(), &|| ())?;
    let notes = Given::<A::InnerBackend>::load(recipe, images.classes(), device)?.notes;
    perception_of::<A>(recipe, device)?;
    let classes = images.classes().len();
    let model = &recipe.tokenizer.model;
    let of_tokenizer = {
        let empty = Tokenizer::<A::InnerBackend>::new(model, device)?;
        parameters(&empty, model.layout())
    };
    let config = recipe.backbone_config(classes);
    let of_backbone = {
        let empty = Backbone::<A::InnerBackend>::new(&config, device)?;
        parameters(&empty, &sar_model::LAYOUT)
    };
    let [n_tokenizer, n_backbone] = [&of_tokenizer, &of_backbone].map(|all| n_elements(all));

    let side = recipe.data.side as usize;
    let l = recipe.scales().n_tokens();
    let tokens = recipe.backbone.schedule.most_tokens();
    let (d, h) = (config.shape.width as u64, config.shape.heads as u64);
    let v = config.codebook_size as u64;
    // What a token leaves for the backward pass: in each block about 40 rows of the width and three
    // rows of attention scores, then four rows of logits.
    let pass_floats = |n: u64| n * (config.shape.depth as u64 * (40 * d + 3 * h * n) + 4 * v);
    let teacher_floats = pass_floats(tokens as u64);
    let student = recipe.sar.objective.passes(recipe.scales()) - 1.0;
    let sar_floats = teacher_floats + (teacher_floats as f64 * student) as u64;

    let stage = |id: StageId| {
        let optimization = recipe.optimization(id);
        let Optimization { batch_size, grad_accum_steps, matrices, ema, .. } = *optimization;
        let at_once = grad_accum_steps.min(workers) as u64;
        let (parameters, floats, frozen) = match id {
            StageId::Tokenizer => (n_tokenizer, tokenizer_activations(model, side), 0),
            StageId::Pretrain => (n_backbone, teacher_floats, n_tokenizer),
            StageId::Sar => (n_backbone, sar_floats, n_tokenizer + n_backbone),
            StageId::Control => (n_backbone, teacher_floats, n_tokenizer + n_backbone),
        };
        let of_model = if id == StageId::Tokenizer { &of_tokenizer } else { &of_backbone };
        let moments = n_moments(of_model, matrices);
        // Weights, gradients (one set per worker and the sums of a tree), the average; and moments.
        let sums = u64::from(grad_accum_steps.ilog2());
        let sets = 1 + at_once + sums + u64::from(ema > 0.0);
        let images_at_once = at_once * (batch_size / grad_accum_steps) as u64;
        let steps = recipe.steps(id);
        PlannedStage {
            id,
            steps,
            batch_size,
            grad_accum_steps,
            parameters,
            moments,
            epochs: steps as f64 * batch_size as f64 / images.n_train() as f64,
            memory: F32
                * (sets * parameters as u64
                    + moments as u64
                    + images_at_once * floats
                    + frozen as u64),
        }
    };
    let is_run = |id: &StageId| *id != StageId::Control || recipe.sar.control;
    let stages: Vec<PlannedStage> = StageId::ALL.into_iter().filter(is_run).map(stage).collect();

    let extent = Extent::of(recipe, images.n_train());
    let latents = extent.map(|extent| (extent.records(), extent.bytes()));
    // Without a backward pass a few of the largest maps are alive at once, or the rows of one block and
    // two sets of logits; cached latents are encoded by all workers.
    let largest_map = (0..model.channel_multipliers.len())
        .map(|level| model.channels(level) * (side >> level) * (side >> level))
        .max()
        .unwrap_or(0) as u64;
    let encoders = if latents.is_some() { workers as u64 } else { 1 };
    let forward = (4 * largest_map * encoders).max(l as u64 * (16 * d + 2 * h * l as u64 + 2 * v));
    let evaluation_memory = F32
        * (recipe.evaluation.batch_size as u64 * forward + (n_tokenizer + 2 * n_backbone) as u64);
    let of_stages = stages.iter().map(|stage| stage.memory).max().unwrap_or(0);
    Ok(Plan {
        images: [images.n_train(), images.n_held_out()],
        classes,
        tokens: l,
        latents,
        files: files(&stages, recipe),
        summary: images.summary(),
        evaluation_memory,
        memory: of_stages.max(evaluation_memory),
        stages,
        notes: [images.notes(), &notes].concat(),
    })
}

fn files(stages: &[PlannedStage], recipe: &Recipe) -> Vec<(String, u64)> {
    let mut files = Vec::new();
    for &PlannedStage { id, steps, parameters, moments, .. } in stages {
        let weights = F32 * parameters as u64;
        let has_average = recipe.optimization(id).ema > 0.0 && steps > 0;
        let has_best = recipe.log.measures() && steps > 0;
        files.push((id.weights_file(), weights));
        for (what, is_made) in [("average", has_average), ("best", has_best)] {
            if is_made {
                files.push((id.other_weights_file(what), weights));
            }
        }
        if steps > 0 {
            // The newest, and the best where anything is measured.
            let kept = recipe.log.checkpoints_kept as u64 + u64::from(has_best);
            let checkpoints = format!("checkpoints/{id}-*.safetensors, at most {kept}");
            let checkpoint = (1 + u64::from(has_average)) * weights + F32 * moments as u64;
            files.push((checkpoints, kept * checkpoint));
        }
    }
    files
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

#[cfg(test)]
mod tests {
    use burn::backend::Autodiff;
    use burn_flex::Flex;

    use super::*;

    fn planned(workers: usize, settings: &[&str]) -> Plan {
        let settings: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let recipe = Recipe::load("emoji-quick", &settings).unwrap();
        plan::<Autodiff<Flex>>(&recipe, workers, &Default::default()).unwrap()
    }

    /// A block's matrices, but for that of its adaptive norms, are 12 times the square of its width.
    #[test]
    fn muon_keeps_one_moment_of_a_matrix() {
        const ADAMW: &str = "{ kind = \"adamw\" }";
        const MUON: &str = "{ kind = \"muon\", momentum = 0.95, update_rms = 0.2, iterations = 3 }";
        let [adamw, muon] = [ADAMW, MUON].map(|kind| {
            let pretrain = format!("pretrain.optimization.matrices={kind}");
            planned(1, &[&format!("tokenizer.optimization.matrices={ADAMW}"), &pretrain])
        });
        let [two, one] = [&adamw, &muon].map(|plan| plan.stages[1].moments);
        assert_eq!(two, 2 * adamw.stages[1].parameters);
        assert_eq!(two - one, 4 * 12 * 192 * 192, "four blocks, 192 wide");
        assert_eq!(adamw.stages[1].memory - muon.stages[1].memory, 4 * (two - one) as u64);
        let bytes = |plan: &Plan| plan.files.iter().map(|(_, bytes)| bytes).sum::<u64>();
        assert!(bytes(&muon) < bytes(&adamw));
        assert_eq!(adamw.stages[0].moments, muon.stages[0].moments);
    }

    /// Floats of an image without a backward pass, whichever are more: four of the largest maps, 32 channels of
    /// 32 x 32 pixels, for each worker that caches; or of each token 16 rows of the width, 2 rows of scores a
    /// head, and 2 rows of the 512 logits.
    #[test]
    fn an_evaluation_takes_memory_for_each_image_of_its_batch() {
        const NARROW: [&str; 3] =
            ["backbone.width=24", "backbone.heads=2", "backbone.schedule.scales=1_2_4"];
        const CACHED: &str = "latents={ kind = \"cached\", folder = \"latents\", variants = 1, precision = \"full\" }";
        let narrow_cached = [&NARROW[..], &[CACHED]].concat();
        let cases: [(&[&str], usize, u64); 4] = [
            (&[], 3, 130 * (16 * 192 + 2 * 3 * 130 + 2 * 512)),
            (&NARROW, 3, 4 * 32 * 32 * 32),
            (&narrow_cached, 1, 4 * 32 * 32 * 32),
            (&narrow_cached, 3, 3 * 4 * 32 * 32 * 32),
        ];
        for (settings, workers, floats) in cases {
            let plan = |batch_size: &str| {
                let batch_size = format!("evaluation.batch_size={batch_size}");
                planned(workers, &[settings, &[batch_size.as_str()]].concat())
            };
            let (one, many) = (plan("1"), plan("32"));
            let parameters = |i: usize| one.stages[i].parameters as u64;
            assert_eq!(one.evaluation_memory, 4 * (floats + parameters(0) + 2 * parameters(1)));
            assert_eq!(many.evaluation_memory - one.evaluation_memory, 31 * 4 * floats);
            // The peak is a stage's until the batch is large.
            assert!(one.memory > one.evaluation_memory);
            let most = plan("4096");
            assert_eq!(most.memory, most.evaluation_memory);
        }
    }
}
