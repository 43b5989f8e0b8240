//! The one train step of a backbone: teacher forcing, SAR and every ablation differ by data only.
//!
//! Shapes: b batch, l tokens of the pyramid, c code channels, v codes.

use burn::module::AutodiffModule;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor};
use sar_core::{CodePyramid, FirstScale, ScaleModel, ScaleSchedule, SeedTree, restrict};
use sar_loss::{cross_entropy, mean_tokens, student_forcing};
use sar_model::{Backbone, DropPath, FirstToken, Pass};
use sar_rollout::{Predictions, Sampler, generate, guide, stagger};

use crate::objective::{ConditionDraw, Objective, Regularization, StudentFirstToken};
use crate::step::{ByScale, Terms};
use crate::tokens::{FirstGiven, Masking, TokenBatch, argmax_tokens, inputs, labels_tensor};

/// The loss of a backbone on a batch.
///
/// `pyramid` is the frozen tokenizer's look-up; nothing of it is differentiated. `objective` is that of
/// the step ([`Objective::weighted`]), `step` the step's stream.
pub fn backbone_loss<A, P>(
    model: &Backbone<A>,
    pyramid: &P,
    batch: &TokenBatch<A::InnerBackend>,
    objective: &Objective,
    regularization: &Regularization,
    step: SeedTree,
    device: &A::Device,
) -> Terms<A>
where
    A: AutodiffBackend,
    P: CodePyramid<A::InnerBackend>,
{
    let schedule = &batch.schedule;
    let condition = |pass: &str| {
        let labels = batch.labels.iter().zip(&batch.streams).map(|(label, stream)| {
            let dropped =
                f64::from(stream.child(pass).uniform(0)) < regularization.class_dropout_prob;
            if dropped { model.classes() } else { *label }
        });
        labels_tensor::<A>(labels, device)
    };
    let drops = |pass: &str| {
        let streams: Vec<_> = batch.streams.iter().map(|stream| stream.child(pass)).collect();
        let rate = regularization.drop_path_rate;
        (rate > 0.0).then(|| DropPath::draw(rate, model.depth(), &streams))
    };

    let given = FirstGiven::of(model.first_scale(), pyramid, batch, Masking::Drawn);
    let first = || FirstToken::from_inner(given.token.clone());
    let labels_b = condition("condition");
    let context_bl = regularization.context_noise.apply(
        pyramid,
        schedule,
        batch.tokens_bl.clone(),
        &batch.streams,
    );
    let teacher_blv = model.forward(Pass {
        labels_b: labels_b.clone(),
        inputs_blc: inputs(pyramid, schedule, context_bl).map(Tensor::from_inner),
        schedule,
        first: first(),
        depth_drops: drops("teacher").as_ref(),
    });
    let n_codes = |size| pyramid.n_codes(size);
    let teacher_blv = restrict(teacher_blv, schedule.sizes(), n_codes);
    let truth_bl = Tensor::<A, 2, Int>::from_inner(batch.tokens_bl.clone());
    let smoothing = regularization.label_smoothing;
    let token_loss_bl = given.weigh(cross_entropy(teacher_blv.clone(), truth_bl, smoothing));
    let scales = by_scale(token_loss_bl.clone().inner(), schedule);
    let teacher_loss = regularization.reduction.apply(token_loss_bl, schedule);
    let mut parts = vec![("teacher", teacher_loss.clone().inner())];

    let Objective::Sar {
        weight,
        predictions,
        student_context,
        transitions,
        student_target,
        condition: draw,
        student_first_token,
    } = objective
    else {
        return Terms { loss: teacher_loss, parts, scales };
    };
    let predicted_bl =
        predict(model, pyramid, batch, &given, *predictions, teacher_blv.clone().inner(), device);
    let passes = stagger(
        pyramid,
        schedule,
        predicted_bl.clone(),
        batch.tokens_bl.clone(),
        *student_context,
        *transitions,
        step,
    );
    if passes.is_empty() {
        return Terms { loss: teacher_loss, parts, scales };
    }
    let student_labels_b = match draw {
        ConditionDraw::Once => labels_b,
        ConditionDraw::PerPass => condition("student-condition"),
    };
    let student_drops = drops("student");
    let teacher_blv = teacher_blv.inner();
    // The teacher pass's own prediction is the target, also where the context is a full rollout.
    let teacher_bl = || match predictions {
        Predictions::FullRollout { .. } => argmax_tokens(teacher_blv.clone()),
        Predictions::TeacherArgmax | Predictions::TeacherSample { .. } => predicted_bl,
    };
    let target = student_target.of(teacher_bl, teacher_blv.clone(), batch.tokens_bl.clone());
    let losses = passes.into_iter().map(|pass| {
        let first = match (given.is_behind_the_class_token(), student_first_token) {
            (true, _) if pass.has_first_scale => first(),
            (false, StudentFirstToken::Start) => FirstToken::Start,
            _ => FirstToken::Bare,
        };
        let places = pass.places();
        let logits_blv = model.forward(Pass {
            labels_b: student_labels_b.clone(),
            inputs_blc: Some(Tensor::from_inner(pass.inputs_blc)),
            schedule: &pass.schedule,
            first,
            depth_drops: student_drops.as_ref(),
        });
        let logits_blv = restrict(logits_blv, pass.schedule.sizes(), n_codes);
        // The first scale's own logits are dropped.
        let student_blv = logits_blv.slice_dim(1, places);
        student_forcing(student_blv, target.of_tokens(pass.predicts))
    });
    let student_loss = mean_tokens(Tensor::cat(losses.collect(), 1));
    let loss = teacher_loss + student_loss.clone() * *weight;
    parts.push(("student", student_loss.inner()));
    parts.push(("total", loss.clone().inner()));
    Terms { loss, parts, scales }
}

/// The mean token loss of each scale, for messages.
fn by_scale<B: Backend>(loss_bl: Tensor<B, 2>, schedule: &ScaleSchedule) -> ByScale<B> {
    let scales = schedule.sizes().iter().zip(schedule.ranges());
    scales.map(|(&size, range)| (size, mean_tokens(loss_bl.clone().slice_dim(1, range)))).collect()
}

/// The rollout's tokens, `[b, l]`: no gradient flows through them. Those of a first scale that were shown to
/// the teacher pass are the true ones.
fn predict<A, P>(
    model: &Backbone<A>,
    pyramid: &P,
    batch: &TokenBatch<A::InnerBackend>,
    given: &FirstGiven<A::InnerBackend>,
    predictions: Predictions,
    teacher_blv: Tensor<A::InnerBackend, 3>,
    device: &A::Device,
) -> Tensor<A::InnerBackend, 2, Int>
where
    A: AutodiffBackend,
    P: CodePyramid<A::InnerBackend>,
{
    let schedule = &batch.schedule;
    match predictions {
        Predictions::TeacherArgmax => {
            given.behind_what_is_shown(argmax_tokens(teacher_blv), &batch.tokens_bl)
        }
        Predictions::TeacherSample { sampler } => {
            // Both halves of the guided pass in evaluation mode: guidance of a condition that was
            // dropped for one of them would mix two nulls.
            let inner = model.valid();
            let run = |labels: Vec<usize>| {
                let logits_blv = inner.forward(Pass {
                    labels_b: labels_tensor(labels.into_iter(), device),
                    inputs_blc: inputs(pyramid, schedule, batch.tokens_bl.clone()),
                    schedule,
                    first: given.token.clone(),
                    depth_drops: None,
                });
                restrict(logits_blv, schedule.sizes(), |size| pyramid.n_codes(size))
            };
            let cond_blv = run(batch.labels.clone());
            let uncond_blv = (!sampler.guidance.is_off(schedule, FirstScale::ClassToken {}))
                .then(|| run(vec![model.classes(); batch.labels.len()]));
            let predicted_bl = choose_by_scale(cond_blv, uncond_blv, batch, sampler);
            given.behind_what_is_shown(predicted_bl, &batch.tokens_bl)
        }
        Predictions::FullRollout { sampler } => {
            let inner = model.valid();
            generate(&inner, pyramid, &batch.labels, schedule, sampler, &batch.streams, device)
                .tokens_bl()
        }
    }
}

fn choose_by_scale<B: Backend>(
    cond_blv: Tensor<B, 3>,
    uncond_blv: Option<Tensor<B, 3>>,
    batch: &TokenBatch<B>,
    sampler: Sampler,
) -> Tensor<B, 2, Int> {
    let scales = batch.schedule.ranges().enumerate().map(|(k, range)| {
        let mut logits_bnv = cond_blv.clone().slice_dim(1, range.clone());
        if let Some(uncond_blv) = &uncond_blv {
            let t = sampler.guidance.strength(k, &batch.schedule);
            logits_bnv = guide(logits_bnv, uncond_blv.clone().slice_dim(1, range), t);
        }
        sampler.choice.choose(logits_bnv, &batch.streams, &batch.schedule, k).tokens()
    });
    Tensor::cat(scales.collect(), 1)
}
