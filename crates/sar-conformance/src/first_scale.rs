//! Laws of a first scale of several tokens behind the class token, masked or in a random order, for any
//! weights.
//!
//! Shapes: b batch, n tokens of the first scale, l of all, c code channels, v codes.

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Bool, Int, Tensor, TensorData};
use sar_core::first_scale::{MaskLoss, MaskShare, Reveal, order};
use sar_core::{CodePyramid, FirstScale, ScaleModel, ScaleSchedule, SeedTree};
use sar_model::{Backbone, FirstToken, Pass, PositionsConfig, Visibility};
use sar_rollout::{Choice, Guidance, Sampler, generate, guide};
use sar_train::tokens::{argmax_tokens, labels_tensor};

use crate::host::{floats, ints, largest, normals};
use crate::rollout::same_in_any_batch;
use crate::tiny;

/// What the laws of this part run on.
pub type Subject<A> = <A as AutodiffBackend>::InnerBackend;

/// A difference that is one, in logits of magnitude one.
const SEEN: f64 = 1e-5;
const LABELS: [usize; 2] = [1, tiny::CLASSES];
const VISIBILITIES: [Visibility; 4] =
    [Visibility::AllCoarser, Visibility::Own, Visibility::Last(1), Visibility::Last(2)];

const fn masked(steps: usize, reveal: Reveal) -> FirstScale {
    FirstScale::Masked { share: MaskShare::TruncatedNormal, loss: MaskLoss::Masked, steps, reveal }
}

fn scales() -> ScaleSchedule {
    "2x3_3_4_5".parse().expect("a valid schedule")
}

fn model<B: Backend>(
    first_scale: FirstScale,
    visibility: Visibility,
    positions: Option<PositionsConfig>,
    device: &B::Device,
) -> Backbone<B> {
    let mut config = tiny::backbone_config(false, true);
    config.shape.first_scale = first_scale;
    config.shape.visibility = visibility;
    config.positions = positions.unwrap_or(config.positions);
    tiny::backbone_of(&config, device)
}

/// Codes of the first scale and inputs of the others: `[b, n, c]` and `[b, l - n, c]`.
fn codes<B: Backend>(device: &B::Device) -> [Tensor<B, 3>; 2] {
    let (n, l) = (scales().size(0).tokens(), scales().n_tokens());
    [(1, n), (2, l - n)]
        .map(|(seed, n)| normals(SeedTree::new(seed), [2, n, tiny::CHANNELS], device))
}

fn logits<B: Backend>(
    model: &Backbone<B>,
    first: FirstToken<B>,
    inputs_blc: Tensor<B, 3>,
    device: &B::Device,
) -> Tensor<B, 3> {
    model.forward(Pass {
        labels_b: labels_tensor(LABELS.into_iter(), device),
        inputs_blc: Some(inputs_blc),
        schedule: &scales(),
        first,
        depth_drops: None,
    })
}

/// Places of each row out of its codes: `[b, p, c]`.
fn at<B: Backend>(x_bnc: &Tensor<B, 3>, places: &[Vec<usize>]) -> Tensor<B, 3> {
    let [_, _, c] = x_bnc.dims();
    let images = places.iter().enumerate().map(|(image, places)| {
        let x_nc = x_bnc.clone().slice_dim(0, image..image + 1);
        let rows = places.iter().map(|place| x_nc.clone().slice_dim(1, *place..place + 1));
        Tensor::cat(rows.collect(), 1).reshape([1, places.len(), c])
    });
    Tensor::cat(images.collect(), 0)
}

fn assert_near<B: Backend>(what: &str, found: Tensor<B, 3>, expected: Tensor<B, 3>) {
    let bound = 1e-5 * largest(expected.clone()).max(1.0);
    let apart = largest(found - expected);
    assert!(apart <= bound, "{what}: {apart} apart");
}

/// The finer scales of a partial pass are those of the parallel one.
fn finer_scales_agree<B: Backend>(
    what: &str,
    model: &Backbone<B>,
    cache: &mut <Backbone<B> as ScaleModel<B>>::Cache,
    inputs_blc: &Tensor<B, 3>,
    all_blv: &Tensor<B, 3>,
) {
    let schedule = scales();
    let n = schedule.size(0).tokens();
    for (k, range) in schedule.ranges().enumerate().skip(1) {
        let input = inputs_blc.clone().slice_dim(1, range.start - n..range.end - n);
        let found = model.step(cache, Some(input));
        assert_near(&format!("{what}, scale {k}"), found, all_blv.clone().slice_dim(1, range));
    }
}

/// A masked scale, some of which is known, and the scales behind it: with a cache, place by place, or all
/// at once; with positions of both kinds and all kinds of visibility.
pub fn a_masked_scale_step_by_step_is_the_parallel_pass<B: Backend>(device: &B::Device) {
    let n = scales().size(0).tokens();
    let per_token = PositionsConfig::PerToken { scales: scales() };
    for (visibility, positions) in VISIBILITIES
        .into_iter()
        .map(|visibility| (visibility, None))
        .chain([(Visibility::AllCoarser, Some(per_token))])
    {
        let model = model::<B>(masked(3, Reveal::Random), visibility, positions, device);
        let [codes_bnc, inputs_blc] = codes(device);
        let orders = [1, 2].map(|seed| order(n, SeedTree::new(seed)));
        let mut cache = model.begin(labels_tensor(LABELS.into_iter(), device), &scales());
        // Nothing known, two tokens, five.
        for (before, known) in [(0, 0), (0, 2), (2, 5)] {
            if before < known {
                let places = orders.each_ref().map(|order| order[before..known].to_vec());
                model.reveal(&mut cache, &places, at(&codes_bnc, &places));
            }
            let unknown = orders.each_ref().map(|order| order[known..].to_vec());
            let found = model.predict(&mut cache, &unknown);

            let is_masked =
                unknown.iter().flat_map(|unknown| (0..n).map(move |i| unknown.contains(&i)));
            let masked = TensorData::new(is_masked.collect::<Vec<bool>>(), [2, n]);
            let masked_bn = Tensor::<B, 2, Bool>::from_data(masked, device);
            // What is masked may be anything.
            let masked_bnc = masked_bn.clone().reshape([2, n, 1]).expand([2, n, tiny::CHANNELS]);
            let codes_bnc = codes_bnc.clone().mask_fill(masked_bnc, 7.0);
            let first = FirstToken::Masked { codes_bnc, masked_bn };
            let all_blv = logits(&model, first, inputs_blc.clone(), device);
            let what = format!("{visibility:?}, {known} known");
            assert_near(&what, found, at(&all_blv.clone().slice_dim(1, 0..n), &unknown));
            finer_scales_agree(&what, &model, &mut cache.clone(), &inputs_blc, &all_blv);
        }
    }
}

/// A scale token by token in orders of their own, and the scales behind it: with a cache or all at once.
pub fn a_scale_in_random_order_token_by_token_is_the_parallel_pass<B: Backend>(device: &B::Device) {
    let n = scales().size(0).tokens();
    for visibility in VISIBILITIES {
        let model = model::<B>(FirstScale::RandomOrder {}, visibility, None, device);
        let [codes_bnc, inputs_blc] = codes(device);
        let orders = [1, 2].map(|seed| order(n, SeedTree::new(seed))).to_vec();
        let first = FirstToken::Ordered { codes_bnc: codes_bnc.clone(), orders: orders.clone() };
        let all_blv = logits(&model, first, inputs_blc.clone(), device);
        let first_bnv = all_blv.clone().slice_dim(1, 0..n);
        let mut cache = model.begin(labels_tensor(LABELS.into_iter(), device), &scales());
        for j in 0..n {
            let places: Vec<Vec<usize>> = orders.iter().map(|order| vec![order[j]]).collect();
            let found = model.predict(&mut cache, &places);
            assert_near(&format!("{visibility:?}, token {j}"), found, at(&first_bnv, &places));
            model.reveal(&mut cache, &places, at(&codes_bnc, &places));
        }
        let what = format!("{visibility:?}");
        finer_scales_agree(&what, &model, &mut cache, &inputs_blc, &all_blv);
    }
}

/// In a random order a token moves the logits of later tokens and no others by a single bit.
pub fn a_scale_in_random_order_is_causal<B: Backend>(device: &B::Device) {
    let n = scales().size(0).tokens();
    let model = model::<B>(FirstScale::RandomOrder {}, Visibility::Own, None, device);
    let [codes_bnc, inputs_blc] = codes(device);
    let orders = [1, 2].map(|seed| order(n, SeedTree::new(seed))).to_vec();
    let run = |codes_bnc| {
        let first = FirstToken::Ordered { codes_bnc, orders: orders.clone() };
        logits(&model, first, inputs_blc.clone(), device).slice_dim(1, 0..n)
    };
    let plain = run(codes_bnc.clone());
    for j in 0..n {
        // Token j of the first image.
        let place = orders[0][j];
        let bump = Tensor::<B, 3>::ones([1, 1, tiny::CHANNELS], device) * 2.0;
        let changed = codes_bnc
            .clone()
            .slice_assign([0..1, place..place + 1, 0..tiny::CHANNELS], bump)
            .into_data();
        let moved = run(Tensor::from_data(changed, device)) - plain.clone();
        for (i, other) in orders[0].iter().enumerate() {
            let here = moved.clone().slice_dim(0, 0..1).slice_dim(1, *other..other + 1);
            match i > j {
                true => assert!(largest(here) > SEEN, "token {i} did not see token {j}"),
                false => assert_eq!(largest(here), 0.0, "token {i} saw token {j}"),
            }
        }
        assert_eq!(largest(moved.slice_dim(0, 1..2)), 0.0, "another image saw token {j}");
    }
}

/// All tokens masked and one step: what one parallel pass predicts, guided, and the scales behind it as
/// ever.
pub fn one_step_over_a_masked_scale_is_one_parallel_step<B: Backend>(device: &B::Device) {
    let (schedule, n) = (scales(), scales().size(0).tokens());
    let tokenizer = tiny::tokenizer::<B>(device);
    for reveal in [Reveal::Random, Reveal::Confident] {
        let model = model::<B>(masked(1, reveal), Visibility::AllCoarser, None, device);
        let sampler = Sampler { guidance: Guidance::Ramp { scale: 1.5 }, choice: Choice::Argmax };
        let labels = [0, 2];
        let streams = [SeedTree::new(0), SeedTree::new(1)];
        let found = generate(&model, &tokenizer, &labels, &schedule, sampler, &streams, device);
        let all_masked = Tensor::<B, 2>::ones([2, n], device).greater_elem(0.0);
        let first = |labels: [usize; 2]| {
            let token = FirstToken::Masked {
                codes_bnc: Tensor::zeros([2, n, tiny::CHANNELS], device),
                masked_bn: all_masked.clone(),
            };
            model.forward(Pass {
                labels_b: labels_tensor(labels.into_iter(), device),
                inputs_blc: None,
                schedule: &ScaleSchedule::new(vec![schedule.size(0)]).expect("one scale"),
                first: token,
                depth_drops: None,
            })
        };
        // Half of the scale times 1 + T / T.
        let expected = guide(first(labels), first([tiny::CLASSES; 2]), 1.5);
        assert_eq!(ints(found.tokens[0].clone()), ints(argmax_tokens(expected)));
    }
}

/// Guided, filtered samples one by one, in pairs and five at a time: the same tokens.
pub fn samples_of_any_first_scale_do_not_depend_on_their_batch<B: Backend>(device: &B::Device) {
    let tokenizer = tiny::tokenizer::<B>(device);
    let schedule = scales();
    let mut seen = Vec::new();
    for (first_scale, visibility) in [
        (masked(3, Reveal::Random), Visibility::Own),
        (masked(4, Reveal::Confident), Visibility::AllCoarser),
        (FirstScale::RandomOrder {}, Visibility::Last(1)),
    ] {
        let model = model::<B>(first_scale, visibility, None, device);
        seen.push(same_in_any_batch(&model, &tokenizer, &schedule, 10, [2, 5], device));
    }
    assert!(seen[0] != seen[1] && seen[1] != seen[2]);
}

/// Greedy tokens of a scale in random order are the most probable ones of a parallel pass over them.
pub fn greedy_tokens_in_random_order_are_what_the_parallel_pass_predicts<B: Backend>(
    device: &B::Device,
) {
    let (schedule, n) = (scales(), scales().size(0).tokens());
    let tokenizer = tiny::tokenizer::<B>(device);
    let model = model::<B>(FirstScale::RandomOrder {}, Visibility::Own, None, device);
    let sampler = Sampler { guidance: Guidance::Ramp { scale: 0.0 }, choice: Choice::Argmax };
    let streams = [SeedTree::new(3), SeedTree::new(4)];
    let found = generate(&model, &tokenizer, &LABELS, &schedule, sampler, &streams, device);
    let tokens_bn: Tensor<B, 2, Int> = found.tokens[0].clone();
    let logits_bnv = model.forward(Pass {
        labels_b: labels_tensor(LABELS.into_iter(), device),
        inputs_blc: None,
        schedule: &ScaleSchedule::new(vec![schedule.size(0)]).expect("one scale"),
        first: FirstToken::Ordered {
            codes_bnc: tokenizer.look_up(tokens_bn.clone()),
            orders: streams.iter().map(|stream| order(n, *stream)).collect(),
        },
        depth_drops: None,
    });
    let [_, _, v] = logits_bnv.dims();
    for (row, token) in floats(logits_bnv).chunks(v).zip(ints(tokens_bn)) {
        let best = row.iter().fold(f64::MIN, |a, b| a.max(*b));
        assert!(row[token] > best - 1e-4, "code {token} has {}, the best {best}", row[token]);
    }
}
