//! What a recipe's types cannot say: ranges, and values that contradict each other.

use sar_core::{FirstScale, ScaleSize, TrainingSchedule};
use sar_discriminator::DiscriminatorConfigError;
use sar_loss::Reduction;
use sar_model::Init;
use sar_rollout::{Filters, Predictions, Sampler};
use sar_tokenizer::{CodebookGrowth, Family, Perturbation, Phi};

use crate::context_noise::ContextNoise;
use crate::latents::Latents;
use crate::learner::Optimization;
use crate::muon::Matrices;
use crate::objective::{Objective, Regularization};
use crate::optim::AdamWConfig;
use crate::recipe::{
    Adversary, BackboneRecipe, Colors, DeadCodeRestart, EvaluationRecipe, InitFrom, LogRecipe,
    Output, Perceptual, PositionsRecipe, PretrainRecipe, Recipe, SampleQuality, SarRecipe,
    TokenizerLoss, TokenizerRecipe, TokenizerRegularization,
};
use crate::schedule::{Decay, LrSchedule, Ramp, WeightDecay};
use crate::wire::ExchangeRecipe;

/// A field and what is wrong with it.
type Problem = (String, String);

/// More of these would take hours or memory that nobody means.
const MOST_SAMPLES_PER_CLASS: usize = 1024;
const MOST_RECONSTRUCTIONS: usize = 256;
const MOST_RESAMPLINGS: usize = 1_000_000;
const MOST_VARIANTS: usize = 1024;
const MOST_SEEDS: usize = 1000;
const MOST_AT_A_TIME: usize = 4096;
const MOST_ENLARGED: usize = 16;
const MOST_ITERATIONS: usize = 64;

/// Checks a recipe; floats are finite already.
///
/// Every part is taken apart to its last field, so that a new one cannot be forgotten here.
pub(crate) fn validate(recipe: &Recipe) -> Result<(), Problem> {
    let Recipe {
        name,
        seed: _,
        data,
        tokenizer,
        backbone,
        pretrain,
        sar,
        latents,
        exchange: ExchangeRecipe { gradients: _ },
        evaluation,
        log,
    } = recipe;
    let plain = !name.is_empty()
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        && !name.starts_with('.');
    check(plain, "name", "use letters, digits, '-', '_' and '.': it names a folder")?;
    of_tokenizer(tokenizer, log)?;
    let BackboneRecipe { schedule, init, .. } = backbone;
    recipe
        .backbone_config(1)
        .validate()
        .map_err(|e| (format!("backbone.{}", e.field), e.problem))?;
    of_family(recipe)?;
    of_growth(recipe)?;
    let Init { adaln_gamma } = *init;
    at_least_zero(adaln_gamma, "backbone.init.adaln_gamma")?;
    of_sizes(data.side as usize, tokenizer.model.downsampling(), schedule)?;
    of_eyes(tokenizer, schedule)?;

    let PretrainRecipe { steps, init_from, monitor: _, output, optimization, regularization } =
        pretrain;
    of_steps("pretrain", *steps, init_from)?;
    of_optimization("pretrain", optimization)?;
    of_output("pretrain", *output, optimization, log)?;
    let codes = tokenizer.model.codebook_size;
    of_regularization("pretrain", regularization, schedule, codes)?;
    let SarRecipe {
        steps: _,
        monitor: _,
        output,
        objective,
        weight_schedule,
        control: _,
        optimization,
        regularization,
    } = sar;
    of_objective(objective)?;
    let Ramp { warmup, end } = *weight_schedule;
    below_one(warmup, "sar.weight_schedule.warmup")?;
    at_least_zero(end, "sar.weight_schedule.end")?;
    of_optimization("sar", optimization)?;
    of_output("sar", *output, optimization, log)?;
    of_regularization("sar", regularization, schedule, codes)?;

    if let Latents::Cached { folder: _, variants, precision: _ } = latents {
        in_range(*variants, 1, MOST_VARIANTS, "latents.variants")?;
    }
    let EvaluationRecipe {
        images: _,
        batch_size,
        samples_per_class,
        sampler,
        quality,
        reconstructions,
        bootstrap,
    } = evaluation;
    in_range(*batch_size, 1, MOST_AT_A_TIME, "evaluation.batch_size")?;
    in_range(*samples_per_class, 1, MOST_SAMPLES_PER_CLASS, "evaluation.samples_per_class")?;
    of_sampler("evaluation.sampler", sampler)?;
    if let SampleQuality::EfficientNetLite0 { per_class, seeds } = quality {
        in_range(*per_class, 2, MOST_SAMPLES_PER_CLASS, "evaluation.quality.per_class")?;
        in_range(*seeds, 1, MOST_SEEDS, "evaluation.quality.seeds")?;
    }
    in_range(*reconstructions, 1, MOST_RECONSTRUCTIONS, "evaluation.reconstructions")?;
    in_range(*bootstrap, 100, MOST_RESAMPLINGS, "evaluation.bootstrap")?;
    let LogRecipe {
        every,
        checkpoint_steps: _,
        checkpoint_minutes,
        checkpoints_kept,
        measure_steps: _,
        measure_images,
        tensorboard: _,
    } = log;
    check(*every > 0, "log.every", "must be at least 1")?;
    at_least_zero(*checkpoint_minutes, "log.checkpoint_minutes")?;
    check(*checkpoints_kept > 0, "log.checkpoints_kept", "must be at least 1")?;
    check(*measure_images > 0, "log.measure_images", "must be at least 1")
}

fn of_tokenizer(tokenizer: &TokenizerRecipe, log: &LogRecipe) -> Result<(), Problem> {
    let TokenizerRecipe {
        steps,
        init_from,
        init,
        colors,
        model,
        output,
        optimization,
        loss,
        regularization,
        adversary,
        dead_code_restart: DeadCodeRestart { every: _, until: _ },
    } = tokenizer;
    of_steps("tokenizer", *steps, init_from)?;
    model.validate().map_err(|e| (format!("tokenizer.model.{}", e.field), e.problem))?;
    of_optimization("tokenizer", optimization)?;
    of_output("tokenizer", *output, optimization, log)?;
    init.validate().map_err(|e| (format!("tokenizer.{}", e.field), e.problem))?;
    let TokenizerLoss {
        color_power,
        l1,
        l2,
        perceptual,
        codebook,
        commitment,
        entropy: _,
        coarse,
        coarse_scales,
    } = loss;
    let color_power = *color_power;
    for (name, weight) in [
        ("l1", l1),
        ("l2", l2),
        ("codebook", codebook),
        ("commitment", commitment),
        ("coarse", coarse),
    ] {
        at_least_zero(*weight, &format!("tokenizer.loss.{name}"))?;
    }
    check(*coarse_scales > 0, "tokenizer.loss.coarse_scales", "must be at least 1")?;
    match perceptual {
        Perceptual::None {} => {}
        Perceptual::EfficientNetLite0 { weight, enlarge }
        | Perceptual::Lpips { weight, enlarge, vgg: _, channel_weights: _ } => {
            at_least_zero(*weight, "tokenizer.loss.perceptual.weight")?;
            in_range(*enlarge, 1, MOST_ENLARGED, "tokenizer.loss.perceptual.enlarge")?;
        }
        Perceptual::Ssim { weight } => at_least_zero(*weight, "tokenizer.loss.perceptual.weight")?,
    }
    of_adversary(adversary, *steps)?;
    let TokenizerRegularization { quantizer_dropout, perturbation } = *regularization;
    let Perturbation { share, nearest } = perturbation;
    for (name, share) in [("quantizer_dropout", quantizer_dropout), ("perturbation.share", share)] {
        let field = format!("tokenizer.regularization.{name}");
        check((0.0..=1.0).contains(&share), &field, "must be in [0, 1]")?;
    }
    let field = "tokenizer.regularization.perturbation.nearest";
    in_range(nearest, 1, model.codebook_size, field)?;
    let field = "tokenizer.loss.color_power";
    check((0.0..=1.0).contains(&color_power), field, "must be in [0, 1]")?;
    check(
        color_power == 0.0 || *colors == Colors::Principal,
        field,
        "must be 0 in RGB; it is of tokenizer.colors = \"principal\"",
    )
}

fn of_adversary(adversary: &Adversary, steps: u64) -> Result<(), Problem> {
    let Adversary::Discriminator {
        discriminator,
        weight,
        adaptive: _,
        start,
        warmup_steps: _,
        augmentation: _,
        lecam,
        lr,
        weight_decay,
        adamw,
        matrices,
        max_grad_norm,
    } = adversary
    else {
        return Ok(());
    };
    let at = "tokenizer.adversary";
    let problem =
        |e: DiscriminatorConfigError| (format!("{at}.discriminator.{}", e.field), e.problem);
    discriminator.validate().map_err(problem)?;
    at_least_zero(*weight, &format!("{at}.weight"))?;
    at_least_zero(*lecam, &format!("{at}.lecam"))?;
    let field = format!("{at}.start");
    check(steps == 0 || *start < steps, &field, "must be below tokenizer.steps")?;
    of_schedules(at, lr, weight_decay, *max_grad_norm)?;
    of_optimizers(at, adamw, matrices)
}

/// What VAR's residual scales and positions per token cannot do.
fn of_family(recipe: &Recipe) -> Result<(), Problem> {
    let Recipe { tokenizer, backbone, .. } = recipe;
    let is_fixed = matches!(backbone.schedule, TrainingSchedule::Fixed { .. });
    of_first_scale(backbone)?;
    match backbone.positions {
        PositionsRecipe::Grid { .. } => {}
        PositionsRecipe::PerToken {} => check(
            is_fixed,
            "backbone.positions",
            "positions per token need a fixed schedule; choose kind = \"grid\" for random ones",
        )?,
    }
    match tokenizer.model.family {
        Family::Flexvar => check(
            tokenizer.regularization.quantizer_dropout == 0.0,
            "tokenizer.regularization.quantizer_dropout",
            "must be 0: a direct tokenizer decodes one scale in any case; set tokenizer.loss.coarse",
        ),
        Family::Var { phi } => {
            check(
                tokenizer.loss.coarse == 0.0,
                "tokenizer.loss.coarse",
                "must be 0: a residual tokenizer decodes the sum of all scales only",
            )?;
            check(
                tokenizer.loss.entropy == 0.0,
                "tokenizer.loss.entropy",
                "must be 0: it is of codes that are compared by angle (FlexVAR)",
            )?;
            let scales = recipe.scales().len();
            match phi {
                Phi::PerScale(n) => check(
                    n == scales,
                    "tokenizer.model.family.phi",
                    &format!("{n} convolutions, one per scale, do not fit {scales} scales"),
                ),
                Phi::Shared(_) => Ok(()),
            }
        }
        _ => unknown("tokenizer.model.family"),
    }
}

/// The scales begin with what the first scale is.
fn of_first_scale(backbone: &BackboneRecipe) -> Result<(), Problem> {
    let scales = backbone.schedule.fixed();
    match backbone.shape.first_scale {
        FirstScale::ClassToken {} => {
            let problem = |first: String| {
                format!(
                    "must start at 1 (the class token's scale), not at {first}; for others choose \
                     backbone.first_scale = {{ kind = \"masked\", .. }} or {{ kind = \"random-order\" }}"
                )
            };
            let first = scales.size(0);
            let one = ScaleSize::square(1);
            check(first == one, "backbone.schedule.scales", &problem(first.to_string()))?;
            match &backbone.schedule {
                TrainingSchedule::Random { head, .. } if head.first() != Some(&1) => {
                    let first = head.first().map_or(String::new(), usize::to_string);
                    check(false, "backbone.schedule.head", &problem(first))
                }
                _ => Ok(()),
            }
        }
        FirstScale::Masked { share: _, loss: _, steps, reveal: _ } => {
            in_range(steps, 1, scales.size(0).tokens(), "backbone.first_scale.steps")
        }
        FirstScale::RandomOrder {} => Ok(()),
    }
}

/// What a growing codebook needs: scales that use all of it, and no loss over codes that a scale has not.
fn of_growth(recipe: &Recipe) -> Result<(), Problem> {
    let CodebookGrowth::Geometric { first: _, full_side } = recipe.tokenizer.model.codebook_growth
    else {
        return Ok(());
    };
    let last = recipe.scales().last();
    let side = last.height.max(last.width);
    check(
        full_side <= side,
        "tokenizer.model.codebook_growth.full_side",
        &format!("{full_side} is over the last scale's side, {side}: no scale would use all codes"),
    )?;
    let needs = |value: f64, field: &str| {
        check(value == 0.0, field, "must be 0 with a growing codebook: it is over all codes")
    };
    needs(recipe.tokenizer.loss.entropy, "tokenizer.loss.entropy")?;
    let [pretrain, sar] =
        [&recipe.pretrain.regularization, &recipe.sar.regularization].map(|of| of.label_smoothing);
    needs(pretrain, "pretrain.regularization.label_smoothing")?;
    needs(sar, "sar.regularization.label_smoothing")
}

/// Image, latent and scales fit each other.
fn of_sizes(side: usize, downsampling: usize, schedule: &TrainingSchedule) -> Result<(), Problem> {
    schedule.validate().map_err(|problem| ("backbone.schedule".into(), problem))?;
    let latent = side / downsampling;
    check(
        side > 0 && side.is_multiple_of(downsampling),
        "data.side",
        &format!("{side} px is not a multiple of the tokenizer's downsampling, {downsampling}"),
    )?;
    let fits = |field: &str, size: ScaleSize| {
        check(
            size.height <= latent && size.width <= latent,
            field,
            &format!(
                "the last scale {size} is larger than the latent, {latent}x{latent} for {side} px"
            ),
        )
    };
    fits("backbone.schedule.scales", schedule.fixed().last())?;
    match schedule {
        TrainingSchedule::Fixed { .. } => Ok(()),
        TrainingSchedule::Random { last, .. } => {
            fits("backbone.schedule.last", ScaleSize::square(*last))
        }
        _ => unknown("backbone.schedule"),
    }
}

/// What looks at outputs beside their pixels can look at the largest at least; scales whose outputs are too
/// small for it go without.
fn of_eyes(tokenizer: &TokenizerRecipe, schedule: &TrainingSchedule) -> Result<(), Problem> {
    let last = schedule.fixed().last();
    let side = last.height.min(last.width) * tokenizer.model.downsampling();
    let sees = |least: usize, field: &str| {
        check(
            tokenizer.steps == 0 || side >= least,
            field,
            &format!("needs outputs of {least} px, and those of the last scale have {side}"),
        )
    };
    sees(tokenizer.loss.perceptual.min_side(), "tokenizer.loss.perceptual")?;
    match &tokenizer.adversary {
        Adversary::None {} => Ok(()),
        Adversary::Discriminator { discriminator, .. } => {
            sees(discriminator.min_side(), "tokenizer.adversary.discriminator")
        }
    }
}

fn of_steps(stage: &str, steps: u64, init_from: &InitFrom) -> Result<(), Problem> {
    let given = matches!(init_from, InitFrom::Weights { .. });
    check(
        steps > 0 || given,
        &format!("{stage}.steps"),
        "must be at least 1, unless the stage starts from weights",
    )
}

/// Weights that a stage ends with have to be made.
fn of_output(
    stage: &str,
    output: Output,
    optimization: &Optimization,
    log: &LogRecipe,
) -> Result<(), Problem> {
    let (made, needs) = match output {
        Output::Last => (true, ""),
        Output::Best => (log.measures(), "needs measurements: set log.measure_steps"),
        Output::AverageButCodebook if stage != "tokenizer" => {
            (false, "average-but-codebook is of tokenizers: choose average")
        }
        Output::Average | Output::AverageButCodebook => {
            (optimization.ema > 0.0, "needs an average: set optimization.ema")
        }
    };
    check(made, &format!("{stage}.output"), needs)
}

fn of_optimization(stage: &str, optimization: &Optimization) -> Result<(), Problem> {
    let Optimization {
        batch_size,
        grad_accum_steps,
        lr,
        weight_decay,
        adamw,
        matrices,
        max_grad_norm,
        ema,
    } = optimization;
    let at = format!("{stage}.optimization");
    let field = |name: &str| format!("{at}.{name}");
    check(*batch_size > 0, &field("batch_size"), "must be at least 1")?;
    check(
        *grad_accum_steps > 0 && batch_size.is_multiple_of(*grad_accum_steps),
        &field("grad_accum_steps"),
        &format!("{grad_accum_steps} does not divide the batch of {batch_size}"),
    )?;
    of_schedules(&at, lr, weight_decay, *max_grad_norm)?;
    of_optimizers(&at, adamw, matrices)?;
    below_one(*ema, &field("ema"))
}

/// How far a learner's weights move; `at` is the table that says so.
fn of_schedules(
    at: &str,
    lr: &LrSchedule,
    weight_decay: &WeightDecay,
    max_grad_norm: f64,
) -> Result<(), Problem> {
    let field = |name: &str| format!("{at}.{name}");
    let LrSchedule { peak, warmup_steps, warmup_from, end, decay } = *lr;
    check(peak > 0.0, &field("lr.peak"), "must be positive")?;
    at_least_zero(warmup_steps, &field("lr.warmup_steps"))?;
    share(warmup_from, &field("lr.warmup_from"), "the peak")?;
    check(end > 0.0, &field("lr.end"), "must be positive")?;
    share(end, &field("lr.end"), "the peak")?;
    match decay {
        Decay::Linear { flat } => {
            below_one(flat, &field("lr.decay.flat"))?;
        }
        Decay::Knee { knee } => {
            check(knee > 0.0, &field("lr.decay.knee"), "must be positive")?;
            below_one(knee, &field("lr.decay.knee"))?;
        }
        Decay::Cosine | Decay::Exponential => {}
    }
    let WeightDecay { start, end } = *weight_decay;
    at_least_zero(start, &field("weight_decay.start"))?;
    at_least_zero(end, &field("weight_decay.end"))?;
    at_least_zero(max_grad_norm, &field("max_grad_norm"))
}

/// What moves them.
fn of_optimizers(at: &str, adamw: &AdamWConfig, matrices: &Matrices) -> Result<(), Problem> {
    let field = |name: &str| format!("{at}.{name}");
    let AdamWConfig { beta1, beta2, eps } = *adamw;
    below_one(beta1, &field("adamw.beta1"))?;
    below_one(beta2, &field("adamw.beta2"))?;
    check(eps > 0.0, &field("adamw.eps"), "must be positive")?;
    match *matrices {
        Matrices::AdamW {} => Ok(()),
        Matrices::Muon { momentum, update_rms, iterations } => {
            below_one(momentum, &field("matrices.momentum"))?;
            check(update_rms > 0.0, &field("matrices.update_rms"), "must be positive")?;
            in_range(iterations, 1, MOST_ITERATIONS, &field("matrices.iterations"))
        }
    }
}

fn of_regularization(
    stage: &str,
    regularization: &Regularization,
    schedule: &TrainingSchedule,
    codes: usize,
) -> Result<(), Problem> {
    let Regularization {
        class_dropout_prob,
        drop_path_rate,
        label_smoothing,
        context_noise,
        reduction,
    } = regularization;
    let field = |name: &str| format!("{stage}.regularization.{name}");
    match reduction {
        Reduction::MeanTokens | Reduction::MeanScales => {}
        Reduction::Scales(weights) => {
            let n = schedule.fixed().len();
            check(
                matches!(schedule, TrainingSchedule::Fixed { .. }) && weights.len() == n,
                &field("reduction.scales"),
                &format!("{} weights need a fixed schedule of as many scales", weights.len()),
            )?;
            let fit =
                weights.iter().all(|weight| *weight >= 0.0) && weights.iter().sum::<f64>() > 0.0;
            check(fit, &field("reduction.scales"), "must be 0 or more, one of them more")?;
        }
        _ => unknown(&field("reduction"))?,
    }
    let ContextNoise { max_share, nearest } = *context_noise;
    check(
        (0.0..=1.0).contains(&max_share),
        &field("context_noise.max_share"),
        "must be in [0, 1]",
    )?;
    in_range(nearest, 0, codes, &field("context_noise.nearest"))?;
    for (name, value) in [
        ("class_dropout_prob", class_dropout_prob),
        ("drop_path_rate", drop_path_rate),
        ("label_smoothing", label_smoothing),
    ] {
        below_one(*value, &field(name))?;
    }
    Ok(())
}

fn of_objective(objective: &Objective) -> Result<(), Problem> {
    let Objective::Sar {
        weight,
        predictions,
        student_context: _,
        transitions: _,
        student_target: _,
        condition: _,
        student_first_token: _,
    } = objective
    else {
        return Ok(());
    };
    at_least_zero(*weight, "sar.objective.weight")?;
    match predictions {
        Predictions::TeacherArgmax => Ok(()),
        Predictions::TeacherSample { sampler } | Predictions::FullRollout { sampler } => {
            let path = "sar.objective.predictions.sampler";
            check(
                !sampler.choice.mixes(),
                &format!("{path}.choice"),
                "more-smooth mixes codes, for pictures only",
            )?;
            of_sampler(path, sampler)
        }
    }
}

fn of_sampler(path: &str, Sampler { guidance, choice }: &Sampler) -> Result<(), Problem> {
    at_least_zero(guidance.scale(), &format!("{path}.guidance.scale"))?;
    let Filters { top_k: _, top_p } = choice.filters();
    check(
        (0.0..=1.0).contains(&top_p),
        &format!("{path}.choice.top_p"),
        &format!("{top_p} is no probability: must be in [0, 1]"),
    )
}

/// A kind that a crate below knows and this one does not.
fn unknown(field: &str) -> Result<(), Problem> {
    check(false, field, "this version of sar-train does not know the kind; take a later one")
}

fn check(ok: bool, field: &str, problem: &str) -> Result<(), Problem> {
    if ok { Ok(()) } else { Err((field.to_owned(), problem.to_owned())) }
}

fn at_least_zero(value: f64, field: &str) -> Result<(), Problem> {
    check(value >= 0.0, field, &format!("{value} is negative"))
}

fn below_one(value: f64, field: &str) -> Result<(), Problem> {
    check((0.0..1.0).contains(&value), field, &format!("{value} is not in [0, 1)"))
}

fn share(value: f64, field: &str, of: &str) -> Result<(), Problem> {
    check((0.0..=1.0).contains(&value), field, &format!("{value} is no share of {of}, in [0, 1]"))
}

fn in_range(value: usize, least: usize, most: usize, field: &str) -> Result<(), Problem> {
    check((least..=most).contains(&value), field, &format!("{value} is not in {least}..={most}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_out_of_range_are_named() {
        for (setting, field) in [
            ("tokenizer.optimization.lr.peak=nan", "tokenizer.optimization.lr.peak"),
            ("tokenizer.optimization.lr.peak=inf", "tokenizer.optimization.lr.peak"),
            ("tokenizer.optimization.adamw.eps=0", "tokenizer.optimization.adamw.eps"),
            (
                "tokenizer.optimization.matrices={ kind = \"muon\", momentum = 1.0, update_rms = 0.2, \
                 iterations = 5 }",
                "tokenizer.optimization.matrices.momentum",
            ),
            (
                "pretrain.optimization.matrices={ kind = \"muon\", momentum = 0.95, update_rms = 0.0, \
                 iterations = 5 }",
                "pretrain.optimization.matrices.update_rms",
            ),
            (
                "sar.optimization.matrices={ kind = \"muon\", momentum = 0.95, update_rms = 0.2, \
                 iterations = 0 }",
                "sar.optimization.matrices.iterations",
            ),
            // No field has a default.
            ("sar.optimization.matrices={ kind = \"muon\" }", "sar.optimization.matrices"),
            ("sar.optimization.matrices={ kind = \"lion\" }", "sar.optimization.matrices"),
            ("tokenizer.loss.l1=-1", "tokenizer.loss.l1"),
            ("pretrain.optimization.lr.decay.flat=1", "pretrain.optimization.lr.decay.flat"),
            (
                "pretrain.optimization.lr.decay={ kind = \"knee\", knee = 1.0 }",
                "pretrain.optimization.lr.decay.knee",
            ),
            ("pretrain.optimization.lr.warmup_from=2", "pretrain.optimization.lr.warmup_from"),
            ("pretrain.optimization.weight_decay.end=-1", "weight_decay.end"),
            ("pretrain.optimization.ema=1", "pretrain.optimization.ema"),
            ("pretrain.regularization.class_dropout_prob=1", "class_dropout_prob"),
            ("pretrain.steps=0", "pretrain.steps"),
            ("sar.output=average", "sar.output"),
            ("sar.output=average-but-codebook", "sar.output"),
            ("tokenizer.output=average-but-codebook", "tokenizer.output"),
            ("sar.objective.weight=-0.1", "sar.objective.weight"),
            ("evaluation.sampler.choice.top_p=95", "evaluation.sampler.choice.top_p"),
            ("evaluation.sampler.guidance.scale=-1", "evaluation.sampler.guidance.scale"),
            ("evaluation.samples_per_class=1000000", "evaluation.samples_per_class"),
            ("evaluation.quality.per_class=1", "evaluation.quality.per_class"),
            ("evaluation.quality.seeds=0", "evaluation.quality.seeds"),
            ("evaluation.bootstrap=10", "evaluation.bootstrap"),
            (
                "tokenizer.model.family={ kind = \"var\", phi = { shared = 4 } }",
                "tokenizer.loss.coarse",
            ),
            (
                "sar.objective.predictions={ kind = \"teacher-sample\", sampler = { guidance = { rule = \
                 \"ramp\", scale = 1.0 }, choice = { kind = \"more-smooth\", top_k = 0, top_p = 0.0 } } }",
                "sar.objective.predictions.sampler.choice",
            ),
            ("log.checkpoint_minutes=-1", "log.checkpoint_minutes"),
            ("log.checkpoints_kept=0", "log.checkpoints_kept"),
            (
                "latents={ kind = \"cached\", folder = \"x\", variants = 0, precision = \"half\" }",
                "latents.variants",
            ),
        ] {
            let error = Recipe::load("emoji-quick", &[setting.into()]).unwrap_err();
            assert!(error.field.contains(field), "{setting}: {error}");
        }
    }

    #[test]
    fn the_largest_outputs_have_to_be_large_enough_for_what_looks_at_them() {
        let network = "{ kind = \"efficientnet-lite0\", weight = 0.3, enlarge = 1 }";
        let enlarged = "{ kind = \"efficientnet-lite0\", weight = 0.3, enlarge = 2 }";
        let structure = "{ kind = \"ssim\", weight = 0.3 }";
        let discriminator = "{ kind = \"discriminator\", discriminator = { kind = \"patch-gan\", channels = 8, \
                             layers = 2 }, weight = 0.5, adaptive = true, start = 2, warmup_steps = 2, \
                             augmentation = [], lecam = 0.0, lr = { peak = 1e-3, warmup_steps = 0.0, \
                             warmup_from = 1.0, end = 1.0, decay = { kind = \"cosine\" } }, weight_decay = { \
                             start = 0.0, end = 0.0 }, adamw = { beta1 = 0.5, beta2 = 0.9, eps = 1e-8 }, \
                             matrices = { kind = \"adamw\" }, max_grad_norm = 1.0 }";
        let (perceptual, adversary) = ("tokenizer.loss.perceptual", "tokenizer.adversary");
        // A token is four pixels.
        for (scales, field, value, least) in [
            ("1_2_7", perceptual, network, Some(32)),
            ("1_2_8", perceptual, network, None),
            ("1_2_3", perceptual, enlarged, Some(16)),
            ("1_2_4", perceptual, enlarged, None),
            ("1_2", perceptual, structure, Some(11)),
            ("1_2_3", perceptual, structure, None),
            ("1_2", adversary, discriminator, Some(12)),
            ("1_2_3", adversary, discriminator, None),
        ] {
            let settings =
                [format!("backbone.schedule.scales={scales}"), format!("{field}={value}")];
            match (Recipe::load("emoji-quick", &settings), least) {
                (Ok(_), None) => {}
                (Err(error), Some(least)) => {
                    assert!(error.field.starts_with(field), "{error}");
                    assert!(error.problem.contains(&format!("outputs of {least} px")), "{error}");
                }
                (result, _) => panic!("{scales}, {value}: {:?}", result.err()),
            }
        }
    }

    #[test]
    fn every_scale_of_a_random_schedule_has_to_fit_the_latent() {
        let schedule = TrainingSchedule::published_256px(true);
        assert!(of_sizes(256, 16, &schedule).is_ok());
        assert!(of_sizes(512, 16, &schedule).is_ok());
        let (field, problem) = of_sizes(240, 16, &schedule).unwrap_err();
        assert_eq!(field, "backbone.schedule.scales");
        assert!(problem.contains("15x15"), "{problem}");
        let mut schedule = schedule;
        let TrainingSchedule::Random { scales, .. } = &mut schedule else { unreachable!() };
        *scales = "1_2_8".parse().unwrap();
        assert_eq!(of_sizes(128, 16, &schedule).unwrap_err().0, "backbone.schedule.last");
    }
}
