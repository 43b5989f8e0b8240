//! The losses of a backbone, computed again from forward passes of their own and numbers on the host.
//!
//! Shapes: b batch, l tokens of the pyramid, c code channels, v codes.

use burn::tensor::activation::log_softmax;
use burn::tensor::{Tensor, TensorData};
use sar_core::first_scale::{MaskLoss, MaskShare, Reveal, order};
use sar_core::{CodePyramid, FirstScale, ScaleSchedule, ScaleSize, SeedTree};
use sar_loss::StudentTarget;
use sar_model::{Backbone, FirstToken, Pass, Visibility};
use sar_rollout::{Choice, Guidance, Predictions, Sampler, Transitions, generate};
use sar_train::backbone_loss::backbone_loss;
use sar_train::context_noise::ContextNoise;
use sar_train::gradients::Gradients;
use sar_train::objective::{ConditionDraw, Objective, Regularization};
use sar_train::step::trainable;

mod optimum;
mod world;

use world::{
    A, B, CHANNELS, CLASSES, CODES, Codes, Logits, Tokens, UNREGULARIZED, WEIGHT, World, argmax,
    certain, check_parts, code, log_p, mean_loss, most_probable, near, on_host, sar,
};

#[test]
fn each_target_of_the_student() {
    let world = World::new(1);
    let l = world.schedule.n_tokens();
    let teacher = world.logits(&world.labels, &world.truth, FirstToken::Start);
    let teacher_loss = mean_loss(&teacher, 0..l, certain(&world.truth));
    let found = world.parts(&Objective::TeacherForcing, 0.0);
    assert_eq!(found.len(), 1);
    near(found[0].1, teacher_loss);

    let predicted = most_probable(&teacher);
    assert_ne!(predicted, world.truth);
    let student = world.logits(&world.labels, &predicted, FirstToken::Bare);
    let probabilities =
        |i: usize, t: usize| log_p(&teacher[i][t]).into_iter().map(f64::exp).collect();
    let expected = [
        (StudentTarget::TeacherTokens, mean_loss(&student, 1..l, certain(&predicted))),
        (StudentTarget::TeacherProbabilities, mean_loss(&student, 1..l, probabilities)),
        (StudentTarget::GroundTruth, mean_loss(&student, 1..l, certain(&world.truth))),
    ];
    for (target, student_loss) in expected {
        let found = world.parts(&sar(Predictions::TeacherArgmax, target), 0.0);
        check_parts(&found, teacher_loss, student_loss);
    }
}

/// Where a scale sees the class token and itself alone, a transition is the same in a sequence of its own
/// as among the others.
#[test]
fn transitions_of_a_markov_model_do_not_depend_on_the_sequence_that_they_are_in() {
    let losses = |visibility: Visibility| {
        let world = World::that_sees(1, visibility);
        [Transitions::All, Transitions::Separate].map(|together| {
            let mut objective = sar(Predictions::TeacherArgmax, StudentTarget::TeacherTokens);
            let Objective::Sar { transitions, .. } = &mut objective else { unreachable!() };
            *transitions = together;
            world.parts(&objective, 0.0)[1].1
        })
    };
    let [all, separate] = losses(Visibility::Own);
    near(all, separate);
    let [all, separate] = losses(Visibility::AllCoarser);
    assert!((all - separate).abs() > 1e-3, "{all} {separate}");
}

/// Of a masked first scale the masked tokens count, or all; the student meets it as the teacher does, and
/// what stands in it for the scale behind it is predicted where it was masked.
#[test]
fn a_masked_first_scale_by_hand() {
    for (loss, together) in [
        (MaskLoss::Masked, Transitions::All),
        (MaskLoss::All, Transitions::All),
        (MaskLoss::Masked, Transitions::Last),
    ] {
        let share = MaskShare::Cosine;
        let first = FirstScale::Masked { share, loss, steps: 2, reveal: Reveal::Random };
        let world = World::of(4, Visibility::AllCoarser, first, "2_2x3_3");
        let (n, l) = (4, world.schedule.n_tokens());
        let masks: Vec<Vec<bool>> =
            world.streams.iter().map(|stream| share.mask(n, stream.child("mask"))).collect();
        assert!(masks.iter().flatten().any(|masked| !masked), "{masks:?}");
        let codes = world.truth.iter().flat_map(|tokens| {
            tokens[..n].iter().flat_map(|token| (0..CHANNELS).map(|c| code(*token, c)))
        });
        let codes = TensorData::new(codes.collect::<Vec<_>>(), [3, n, CHANNELS]);
        let device = Default::default();
        let given = FirstToken::Masked {
            codes_bnc: Tensor::from_data(codes, &device),
            masked_bn: Tensor::from_data(TensorData::new(masks.concat(), [3, n]), &device),
        };
        let teacher = world.logits(&world.labels, &world.truth, given.clone());
        // Those that count share the weight of the scale.
        let weight = |i: usize, t: usize| match masks[i].get(t) {
            Some(masked) if loss == MaskLoss::Masked => {
                let count = masks[i].iter().filter(|masked| **masked).count();
                if *masked { n as f64 / count as f64 } else { 0.0 }
            }
            _ => 1.0,
        };
        let weighted = |i: usize, t: usize| -> Vec<f64> {
            certain(&world.truth)(i, t).into_iter().map(|p| p * weight(i, t)).collect()
        };
        let teacher_loss = mean_loss(&teacher, 0..l, weighted);

        let mut predicted = most_probable(&teacher);
        for (i, mask) in masks.iter().enumerate() {
            let shown = (0..n).filter(|t| !mask[*t]);
            shown.for_each(|t| predicted[i][t] = world.truth[i][t]);
        }
        let mut objective = sar(Predictions::TeacherArgmax, StudentTarget::TeacherTokens);
        let Objective::Sar { transitions, .. } = &mut objective else { unreachable!() };
        *transitions = together;
        let student_loss = match together {
            Transitions::All => {
                let student = world.logits(&world.labels, &predicted, given);
                mean_loss(&student, n..l, certain(&predicted))
            }
            // Behind the class token alone.
            _ => {
                let last = world.schedule.range(2);
                let inputs: Tensor<B, 3> = world.inputs(&predicted, 3);
                let labels = TensorData::new(vec![0i64, 1, 2], [3]);
                let student = on_host(world.model.forward(Pass {
                    labels_b: Tensor::from_data(labels, &device),
                    inputs_blc: Some(inputs.slice_dim(1, last.start - n..last.end - n)),
                    schedule: &"1_3".parse().unwrap(),
                    first: FirstToken::Bare,
                    depth_drops: None,
                }));
                let targets: Tokens = predicted
                    .iter()
                    .map(|tokens| [&[0][..], &tokens[last.clone()]].concat())
                    .collect();
                mean_loss(&student, 1..10, certain(&targets))
            }
        };
        check_parts(&world.parts(&objective, 0.0), teacher_loss, student_loss);
    }
}

/// Tokens of a first scale in random order are each predicted behind the true ones before.
#[test]
fn a_first_scale_in_random_order_by_hand() {
    let world = World::of(5, Visibility::Own, FirstScale::RandomOrder {}, "2_3");
    let (n, l) = (4, world.schedule.n_tokens());
    let codes = world.truth.iter().flat_map(|tokens| {
        tokens[..n].iter().flat_map(|token| (0..CHANNELS).map(|c| code(*token, c)))
    });
    let codes = TensorData::new(codes.collect::<Vec<_>>(), [3, n, CHANNELS]);
    let given = FirstToken::Ordered {
        codes_bnc: Tensor::from_data(codes, &Default::default()),
        orders: world.streams.iter().map(|stream| order(n, *stream)).collect(),
    };
    let teacher = world.logits(&world.labels, &world.truth, given.clone());
    let predicted = most_probable(&teacher);
    let student = world.logits(&world.labels, &predicted, given);
    let objective = sar(Predictions::TeacherArgmax, StudentTarget::TeacherTokens);
    check_parts(
        &world.parts(&objective, 0.0),
        mean_loss(&teacher, 0..l, certain(&world.truth)),
        mean_loss(&student, n..l, certain(&predicted)),
    );
}

#[test]
fn noise_is_in_the_context_of_the_teacher_pass_alone() {
    let world = World::new(4);
    let l = world.schedule.n_tokens();
    let with = |objective: &Objective, max_share, nearest| {
        let context_noise = ContextNoise { max_share, nearest };
        world.parts_with(objective, &Regularization { context_noise, ..UNREGULARIZED })
    };
    // The noisy context, by the same function; the loss is that of true targets behind it.
    let noise = ContextNoise { max_share: 1.0, nearest: 0 };
    let batch = world.batch();
    let noisy = noise.apply(&Codes, &world.schedule, batch.tokens_bl, &world.streams);
    let noisy: Vec<i64> = noisy.into_data().convert::<i64>().into_vec().unwrap();
    let noisy: Tokens =
        noisy.chunks(l).map(|image| image.iter().map(|code| *code as usize).collect()).collect();
    assert_ne!(noisy, world.truth);
    let teacher = world.logits(&world.labels, &noisy, FirstToken::Start);
    let teacher_loss = mean_loss(&teacher, 0..l, certain(&world.truth));
    near(with(&Objective::TeacherForcing, 1.0, 0)[0].1, teacher_loss);
    // Its predictions are the student's context, without further noise.
    let sar = sar(Predictions::TeacherArgmax, StudentTarget::GroundTruth);
    let student = world.logits(&world.labels, &most_probable(&teacher), FirstToken::Bare);
    let student_loss = mean_loss(&student, 1..l, certain(&world.truth));
    check_parts(&with(&sar, 1.0, 0), teacher_loss, student_loss);
    // No share is no noise, to the bit; neither is the nearest of one code.
    for objective in [&Objective::TeacherForcing, &sar] {
        let without = world.parts(objective, 0.0);
        for (max_share, nearest) in [(0.0, 0), (0.0, 5), (1.0, 1)] {
            assert_eq!(with(objective, max_share, nearest), without);
        }
        assert_ne!(with(objective, 1.0, 0), without);
    }
}

/// The same codes, of which a scale of height s may use the first 2 s, the last scale of 2x3 all.
struct Growing;

impl CodePyramid<B> for Growing {
    type Canvas = ();

    fn codes(&self) -> Tensor<B, 2> {
        Codes.codes()
    }

    fn n_codes(&self, size: ScaleSize) -> usize {
        if size.width == 3 { CODES } else { 2 * size.height }
    }

    fn paint(
        &self,
        canvas: &mut (),
        schedule: &ScaleSchedule,
        k: usize,
        codes_bnc: Tensor<B, 3>,
    ) -> Option<Tensor<B, 3>> {
        Codes.paint(canvas, schedule, k, codes_bnc)
    }
}

/// How many codes each token of the world's schedule may be.
const LIMITS: [usize; 11] = [2, 4, 4, 4, 4, 7, 7, 7, 7, 7, 7];

#[test]
fn losses_of_a_growing_codebook_are_over_the_codes_of_the_scale() {
    let mut world = World::new(5);
    for image in &mut world.truth {
        image.iter_mut().zip(LIMITS).for_each(|(code, limit)| *code %= limit);
    }
    let l = world.schedule.n_tokens();
    let cut = |logits: Logits| -> Logits {
        let rows = |image: Vec<Vec<f64>>| {
            let rows = image.into_iter().zip(LIMITS);
            rows.map(|(mut row, limit)| {
                row[limit..].fill(f64::NEG_INFINITY);
                row
            })
        };
        logits.into_iter().map(|image| rows(image).collect()).collect()
    };
    let free = world.logits(&world.labels, &world.truth, FirstToken::Start);
    let teacher = cut(free.clone());
    // 0 log 0 is 0.
    let loss = |logits: &Logits, range: std::ops::Range<usize>, truth: &Tokens| {
        let n = (logits.len() * range.len()) as f64;
        let tokens = (0..logits.len()).flat_map(|i| range.clone().map(move |t| (i, t)));
        -tokens.map(|(i, t)| log_p(&logits[i][t])[truth[i][t]]).sum::<f64>() / n
    };
    let predicted = most_probable(&teacher);
    assert_ne!(predicted, most_probable(&free), "some would have been other codes");
    let student = cut(world.logits(&world.labels, &predicted, FirstToken::Bare));
    let model = trainable::<A, Backbone<A>>(world.model.clone());
    for (target, truth) in
        [(StudentTarget::TeacherTokens, &predicted), (StudentTarget::GroundTruth, &world.truth)]
    {
        let objective = sar(Predictions::TeacherArgmax, target);
        let (batch, device, step) = (world.batch(), Default::default(), SeedTree::new(0));
        let terms =
            backbone_loss(&model, &Growing, &batch, &objective, &UNREGULARIZED, step, &device);
        let parts = terms.parts.into_iter();
        let parts: Vec<_> = parts.map(|(name, x)| (name, f64::from(x.into_scalar()))).collect();
        check_parts(&parts, loss(&teacher, 0..l, &world.truth), loss(&student, 1..l, truth));
    }
    // Soft targets have no share of the other codes, and the loss stays a number.
    let objective = sar(Predictions::TeacherArgmax, StudentTarget::TeacherProbabilities);
    let (batch, device, step) = (world.batch(), Default::default(), SeedTree::new(0));
    let terms = backbone_loss(&model, &Growing, &batch, &objective, &UNREGULARIZED, step, &device);
    let p = |i: usize, t: usize| -> Vec<f64> {
        log_p(&teacher[i][t]).into_iter().map(f64::exp).collect()
    };
    let tokens = (0..3).flat_map(|i| (1..l).map(move |t| (i, t)));
    let soft = tokens.map(|(i, t)| {
        let log_q = log_p(&student[i][t]);
        -p(i, t).iter().zip(log_q).filter(|(p, _)| **p > 0.0).map(|(p, q)| p * q).sum::<f64>()
    });
    near(
        f64::from(terms.parts[1].1.clone().into_scalar()),
        soft.sum::<f64>() / (3 * (l - 1)) as f64,
    );
    let gradients = Gradients::of(terms.loss, &model);
    assert!(gradients.norm().into_data().iter::<f64>().all(f64::is_finite));
}

#[test]
fn no_code_beyond_those_of_its_scale_is_ever_drawn() {
    let world = World::new(6);
    let n = 40;
    let labels: Vec<usize> = (0..n).map(|i| i % CLASSES).collect();
    let streams: Vec<SeedTree> = (0..n as u64).map(|i| SeedTree::new(9).at(i)).collect();
    let choices = [
        Choice::Argmax,
        Choice::Sample { top_k: 0, top_p: 0.0 },
        Choice::Sample { top_k: 5, top_p: 0.9 },
        Choice::MoreSmooth { top_k: 0, top_p: 0.0 },
    ];
    let guidances = [Guidance::Constant { scale: 1.0 }, Guidance::HalfRamp { scale: 3.0 }];
    let mut beyond = 0;
    for choice in choices {
        for guidance in guidances {
            let sampler = Sampler { guidance, choice };
            let drawn = |grows: bool| -> Vec<i64> {
                let (labels, schedule, device) = (&labels, &world.schedule, Default::default());
                let tokens_bl = match grows {
                    true => generate(
                        &world.model,
                        &Growing,
                        labels,
                        schedule,
                        sampler,
                        &streams,
                        &device,
                    )
                    .tokens_bl(),
                    false => {
                        generate(&world.model, &Codes, labels, schedule, sampler, &streams, &device)
                            .tokens_bl()
                    }
                };
                tokens_bl.into_data().convert::<i64>().into_vec().unwrap()
            };
            let is_beyond = |(i, code): (usize, &i64)| *code as usize >= LIMITS[i % LIMITS.len()];
            assert!(!drawn(true).iter().enumerate().any(is_beyond), "{sampler:?}");
            beyond += drawn(false).iter().enumerate().filter(|x| is_beyond(*x)).count();
        }
    }
    assert!(beyond > 100, "{beyond}: without growth there are others");
}

/// Gradients of the whole objective are those of a sum in which the target is a constant.
#[test]
fn no_gradient_flows_through_the_target_and_the_context() {
    let world = World::new(2);
    let (l, n_scales) = (world.schedule.n_tokens(), world.schedule.len());
    let teacher = world.logits(&world.labels, &world.truth, FirstToken::Start);
    let predicted = most_probable(&teacher);
    let device = Default::default();
    for target in [StudentTarget::TeacherTokens, StudentTarget::TeacherProbabilities] {
        let model = trainable::<A, Backbone<A>>(world.model.clone());
        let objective = sar(Predictions::TeacherArgmax, target);
        let (batch, step) = (world.batch(), SeedTree::new(0));
        let terms =
            backbone_loss(&model, &Codes, &batch, &objective, &UNREGULARIZED, step, &device);
        let found = Gradients::of(terms.loss, &model);

        let against = |logits_blv: Tensor<A, 3>, p: Vec<f32>| {
            let [b, l, _] = logits_blv.dims();
            let p_blv = TensorData::new(p, [b, l, CODES]);
            let p_blv = Tensor::<A, 3>::from_data(p_blv, &device);
            -(p_blv * log_softmax(logits_blv, 2)).sum() / (b * l) as f64
        };
        let constant = |first: usize, p: &dyn Fn(usize, usize) -> Vec<f64>| -> Vec<f32> {
            let tokens = (0..3).flat_map(|i| (first..l).map(move |t| (i, t)));
            tokens.flat_map(|(i, t)| p(i, t)).map(|p| p as f32).collect()
        };
        let of_student = match target {
            StudentTarget::TeacherTokens => constant(1, &certain(&predicted)),
            _ => constant(1, &|i, t| log_p(&teacher[i][t]).into_iter().map(f64::exp).collect()),
        };
        let start = FirstToken::Start;
        let teacher_blv = world.pass(&model, &world.labels, &world.truth, n_scales, start);
        let student_blv = world.pass(&model, &world.labels, &predicted, n_scales, FirstToken::Bare);
        let loss = against(teacher_blv, constant(0, &certain(&world.truth)))
            + against(student_blv.slice_dim(1, 1..l), of_student) * WEIGHT;
        let expected = Gradients::of(loss, &model);

        let values = |gradients: &Gradients<B>| -> Vec<f32> {
            let gradients = gradients.iter().map(|gradient| gradient.expect("a gradient").clone());
            gradients.flat_map(|g| g.into_data().into_vec::<f32>().unwrap()).collect()
        };
        let (found, expected) = (values(&found), values(&expected));
        let largest = expected.iter().fold(0f32, |a, b| a.max(b.abs()));
        assert!(largest > 1e-2);
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-5 * largest, "{found}, not {expected}");
        }
    }
}

/// Guided logits of one scale: `(1 + t) cond - t uncond`.
fn guided(cond: &[f64], uncond: &[f64], t: f64) -> Vec<f64> {
    cond.iter().zip(uncond).map(|(c, u)| (1.0 + t) * c - t * u).collect()
}

/// The code at which the cumulative probability of the two most probable first exceeds `u`.
fn drawn_of_two(row: &[f64], u: f64) -> usize {
    let best = argmax(row);
    let second = (0..row.len()).filter(|code| *code != best);
    let second = second.max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap();
    let (low, high) = (best.min(second), best.max(second));
    let p_low = 1.0 / (1.0 + (row[high] - row[low]).exp());
    if u < p_low { low } else { high }
}

#[test]
fn the_sampled_rollout_is_guided_by_scale_against_the_null_class() {
    let world = World::new(3);
    let l = world.schedule.n_tokens();
    let cond = world.logits(&world.labels, &world.truth, FirstToken::Start);
    let uncond = world.logits(&[CLASSES; 3], &world.truth, FirstToken::Start);
    let cfg = 3.0;
    // 0.5 cfg (1 + k / (K - 1))
    let strengths = [1.5, 2.25, 3.0];
    for choice in [Choice::Argmax, Choice::Sample { top_k: 2, top_p: 0.0 }] {
        let rollout = |strengths: [f64; 3]| -> Tokens {
            let image = |i: usize| {
                let scales = world.schedule.ranges().enumerate();
                let tokens = scales.flat_map(|(k, range)| range.enumerate().map(move |t| (k, t)));
                let tokens = tokens.map(|(k, (place, t))| {
                    let row = guided(&cond[i][t], &uncond[i][t], strengths[k]);
                    let stream = world.streams[i].child("draw").at(k as u64);
                    match choice {
                        Choice::Argmax => argmax(&row),
                        _ => drawn_of_two(&row, f64::from(stream.uniform(place as u64))),
                    }
                });
                tokens.collect()
            };
            (0..3).map(image).collect()
        };
        let student_loss = |predicted: &Tokens| {
            let student = world.logits(&world.labels, predicted, FirstToken::Bare);
            // What was drawn is context and target.
            mean_loss(&student, 1..l, certain(predicted))
        };
        let expected = student_loss(&rollout(strengths));
        for other in [[0.0; 3], [strengths[0]; 3], [strengths[2]; 3]] {
            let other = student_loss(&rollout(other));
            assert!((other - expected).abs() > 1e-3, "{other} is as good as {expected}");
        }
        let sampler = Sampler { guidance: Guidance::HalfRamp { scale: cfg }, choice };
        let objective = sar(Predictions::TeacherSample { sampler }, StudentTarget::TeacherTokens);
        let teacher_loss = mean_loss(&cond, 0..l, certain(&world.truth));
        check_parts(&world.parts(&objective, 0.0), teacher_loss, expected);
    }
}

#[test]
fn a_full_rollout_is_the_context_and_the_teachers_own_prediction_the_target() {
    let world = World::new(4);
    let l = world.schedule.n_tokens();
    let cfg = 2.0;
    // Scale by scale, each time by whole passes over what is there: cfg k / (K - 1).
    let mut rollout: Tokens = vec![Vec::new(); 3];
    for (k, range) in world.schedule.ranges().enumerate() {
        let run = |labels: &[usize]| {
            on_host(world.pass(&world.model, labels, &rollout, k + 1, FirstToken::Start))
        };
        let (cond, uncond) = (run(&world.labels), run(&[CLASSES; 3]));
        let t = cfg * k as f64 / 2.0;
        for (image, tokens) in rollout.iter_mut().enumerate() {
            let rows = cond[image].iter().zip(&uncond[image]);
            let new = rows.skip(range.start).map(|(cond, uncond)| argmax(&guided(cond, uncond, t)));
            tokens.extend(new);
        }
    }
    let teacher = world.logits(&world.labels, &world.truth, FirstToken::Start);
    let predicted = most_probable(&teacher);
    assert_ne!(rollout, predicted);
    let student = world.logits(&world.labels, &rollout, FirstToken::Bare);
    let sampler = Sampler { guidance: Guidance::Ramp { scale: cfg }, choice: Choice::Argmax };
    let teacher_loss = mean_loss(&teacher, 0..l, certain(&world.truth));
    for (target, tokens) in
        [(StudentTarget::TeacherTokens, &predicted), (StudentTarget::GroundTruth, &world.truth)]
    {
        let objective = sar(Predictions::FullRollout { sampler }, target);
        let student_loss = mean_loss(&student, 1..l, certain(tokens));
        check_parts(&world.parts(&objective, 0.0), teacher_loss, student_loss);
    }
}

/// The only set of images, as bits, without whose classes the loss is this.
#[track_caller]
fn dropped(found: f64, loss_without: impl Fn(&[usize]) -> f64, labels: &[usize]) -> usize {
    let fits = |set: &usize| {
        let labels: Vec<usize> = labels
            .iter()
            .enumerate()
            .map(|(i, label)| if set >> i & 1 == 1 { CLASSES } else { *label })
            .collect();
        (loss_without(&labels) - found).abs() < 1e-5
    };
    let sets: Vec<usize> = (0..8).filter(fits).collect();
    assert_eq!(sets.len(), 1, "one set of dropped classes explains {found}: {sets:?}");
    sets[0]
}

#[test]
fn classes_are_dropped_by_image_once_or_again_for_the_student() {
    const DROPOUT: f64 = 0.3;
    const BATCHES: u64 = 40;
    for draw in [ConditionDraw::Once, ConditionDraw::PerPass] {
        let (mut of_teacher, mut of_student, mut of_both) = (0, 0, 0);
        for seed in 0..BATCHES {
            let world = World::new(100 + seed);
            let l = world.schedule.n_tokens();
            let mut objective = sar(Predictions::TeacherArgmax, StudentTarget::GroundTruth);
            let Objective::Sar { condition, .. } = &mut objective else { unreachable!() };
            *condition = draw;
            let found = world.parts(&objective, DROPOUT);
            let teacher = |labels: &[usize]| world.logits(labels, &world.truth, FirstToken::Start);
            let teacher_loss =
                |labels: &[usize]| mean_loss(&teacher(labels), 0..l, certain(&world.truth));
            let first = dropped(found[0].1, teacher_loss, &world.labels);
            let labels = world.labels.iter().enumerate();
            let labels =
                labels.map(|(i, label)| if first >> i & 1 == 1 { CLASSES } else { *label });
            let predicted = most_probable(&teacher(&labels.collect::<Vec<_>>()));
            let student_loss = |labels: &[usize]| {
                let student = world.logits(labels, &predicted, FirstToken::Bare);
                mean_loss(&student, 1..l, certain(&world.truth))
            };
            let second = dropped(found[1].1, student_loss, &world.labels);
            of_teacher += first.count_ones();
            of_student += second.count_ones();
            of_both += (first & second).count_ones();
            if draw == ConditionDraw::Once {
                assert_eq!(first, second, "one draw for both passes");
            }
            // An image's class depends on its own stream alone.
            let mut other = World::new(100 + seed);
            other.streams[1] = SeedTree::new(seed).child("another");
            let found = other.parts(&objective, DROPOUT);
            assert_eq!(dropped(found[0].1, teacher_loss, &world.labels) & 0b101, first & 0b101);
        }
        // Binomial: a mean and four deviations of 120 draws.
        let check = |found: u32, p: f64| {
            let n = 3.0 * BATCHES as f64;
            let (mean, deviation) = (n * p, (n * p * (1.0 - p)).sqrt());
            assert!(
                (f64::from(found) - mean).abs() < 4.0 * deviation,
                "{found} of {n}, not {mean}"
            );
        };
        check(of_teacher, DROPOUT);
        check(of_student, DROPOUT);
        let both = if draw == ConditionDraw::Once { DROPOUT } else { DROPOUT * DROPOUT };
        check(of_both, both);
    }
}

/// The rollout's teacher pass keeps its classes: a dropped class would have no guidance.
#[test]
fn the_sampled_rollout_drops_no_class() {
    let world = World::new(5);
    let l = world.schedule.n_tokens();
    let cond = world.logits(&world.labels, &world.truth, FirstToken::Start);
    let uncond = world.logits(&[CLASSES; 3], &world.truth, FirstToken::Start);
    let predicted: Tokens = (0..3)
        .map(|i| (0..l).map(|t| argmax(&guided(&cond[i][t], &uncond[i][t], 1.0))).collect())
        .collect();
    let sampler = Sampler { guidance: Guidance::Constant { scale: 2.0 }, choice: Choice::Argmax };
    let objective = sar(Predictions::TeacherSample { sampler }, StudentTarget::TeacherTokens);
    // With all classes dropped both passes are those of the null class.
    let null = [CLASSES; 3];
    let teacher = world.logits(&null, &world.truth, FirstToken::Start);
    let student = world.logits(&null, &predicted, FirstToken::Bare);
    check_parts(
        &world.parts(&objective, 1.0),
        mean_loss(&teacher, 0..l, certain(&world.truth)),
        mean_loss(&student, 1..l, certain(&predicted)),
    );
}
