//! Laws of the backbone that hold for any weights.
//!
//! Shapes: b batch, l tokens, c code channels.

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor, TensorData};
use sar_core::{ScaleModel, ScaleSchedule, SeedTree};
use sar_model::{Backbone, DropPath, FirstToken, LAYOUT, Pass, Precision, Visibility};
use sar_weights::{bind, collect};

use crate::host::{floats, largest, normals};
use crate::tiny;

/// What the laws of this part run on.
pub type Subject<A> = <A as AutodiffBackend>::InnerBackend;

/// A difference that is one, in logits of magnitude one.
const SEEN: f64 = 1e-5;

/// A changed input moves the logits of its own and of finer scales, and no other by a single bit.
pub fn a_token_sees_its_own_and_coarser_scales_and_nothing_finer<B: Backend>(device: &B::Device) {
    let schedule: ScaleSchedule = "1_2_3".parse().expect("a valid schedule");
    let model = tiny::backbone::<B>(false, true, device);
    let x_blc = inputs(&schedule, device).expect("more than one scale");
    let plain = logits(&model, &schedule, Some(x_blc.clone()), FirstToken::Start, None, device);
    // What a changed input of this place moves; inputs start at the second token.
    let moved_by = |place: usize| {
        let bump = Tensor::<B, 3>::ones([2, 1, tiny::CHANNELS], device) * 2.0;
        let at = [0..2, place..place + 1, 0..tiny::CHANNELS];
        // Read back: as part of the pass, the change could be fused with it and round otherwise.
        let changed = x_blc.clone().slice_assign(at, bump).into_data();
        let changed = Some(Tensor::from_data(changed, device));
        logits(&model, &schedule, changed, FirstToken::Start, None, device) - plain.clone()
    };
    for (place, finer) in [(5, 5..14), (3, 1..14)] {
        let moved = moved_by(place);
        let coarser = moved.clone().slice_dim(1, 0..finer.start);
        assert_eq!(largest(coarser), 0.0, "a coarser scale saw place {place}");
        for token in finer {
            let shift = largest(moved.clone().slice_dim(1, token..token + 1));
            assert!(shift > SEEN, "token {token} did not see place {place}: {shift}");
        }
    }
}

/// Where a scale sees some of the coarser ones, a changed input moves its own scale's logits and, through
/// both blocks, those that lie at most twice as far as a block sees, and no other by a single bit.
pub fn a_token_sees_the_scales_that_visibility_says<B: Backend>(device: &B::Device) {
    let schedule: ScaleSchedule = "1_2_3_4_5_6".parse().expect("a valid schedule");
    let x_blc = inputs(&schedule, device).expect("more than one scale");
    for (visibility, reach) in [(Visibility::Own, 0), (Visibility::Last(1), 2)] {
        let model = model_that_sees(visibility, true, device);
        let run = |x_blc| logits(&model, &schedule, Some(x_blc), FirstToken::Start, None, device);
        let plain = run(x_blc.clone());
        for k in 1..schedule.len() {
            let place = schedule.range(k).start - 1;
            let bump = Tensor::<B, 3>::ones([2, 1, tiny::CHANNELS], device) * 2.0;
            let at = [0..2, place..place + 1, 0..tiny::CHANNELS];
            let changed = x_blc.clone().slice_assign(at, bump).into_data();
            let moved = run(Tensor::from_data(changed, device)) - plain.clone();
            for (other, range) in schedule.ranges().enumerate() {
                let shift = largest(moved.clone().slice_dim(1, range));
                match (k..=k + reach).contains(&other) {
                    true => {
                        assert!(shift > SEEN, "{visibility:?}: scale {other} missed {k}: {shift}")
                    }
                    false => assert_eq!(shift, 0.0, "{visibility:?}: scale {other} saw {k}"),
                }
            }
        }
    }
}

/// With one scale behind the class token there are no coarser scales to see: all kinds of visibility are
/// the same, bit for bit.
pub fn one_scale_behind_the_class_token_leaves_nothing_to_see<B: Backend>(device: &B::Device) {
    let schedule: ScaleSchedule = "1_4".parse().expect("a valid schedule");
    let run = |visibility| {
        let model = model_that_sees::<B>(visibility, true, device);
        let x_blc = inputs(&schedule, device);
        let all = logits(&model, &schedule, x_blc.clone(), FirstToken::Start, None, device);
        let cached = Tensor::cat(cached_logits(&model, &schedule, x_blc, device), 1);
        (floats(all), floats(cached))
    };
    let full = run(Visibility::AllCoarser);
    assert_eq!(full, run(Visibility::Own));
    assert_eq!(full, run(Visibility::Last(1)));
}

fn model_that_sees<B: Backend>(
    visibility: Visibility,
    qk_l2_norm: bool,
    device: &B::Device,
) -> Backbone<B> {
    let mut config = tiny::backbone_config(!qk_l2_norm, qk_l2_norm);
    config.shape.visibility = visibility;
    tiny::backbone_of(&config, device)
}

/// Scale by scale with a cache, or all scales at once through the mask: the same logits, for square
/// scales, other aspect ratios and a single scale, in every variant of the backbone, whatever of the
/// coarser scales is seen.
pub fn a_cached_pass_is_the_parallel_pass<B: Backend>(device: &B::Device) {
    let (all, own) = (Visibility::AllCoarser, Visibility::Own);
    for (scales, visibility) in [
        ("1_2_3", all),
        ("1_1x2_2x3_3x4", all),
        ("1", all),
        ("1", own),
        ("1_2_3_4", own),
        ("1_2_3_4", Visibility::Last(1)),
        ("1_2_3_4", Visibility::Last(2)),
    ] {
        let schedule: ScaleSchedule = scales.parse().expect("a valid schedule");
        for qk_l2_norm in [true, false] {
            let model = model_that_sees::<B>(visibility, qk_l2_norm, device);
            let x_blc = inputs(&schedule, device);
            let all = logits(&model, &schedule, x_blc.clone(), FirstToken::Start, None, device);
            let cached = cached_logits(&model, &schedule, x_blc, device);
            for (k, (range, logits)) in schedule.ranges().zip(cached).enumerate() {
                let expected = all.clone().slice_dim(1, range);
                let bound = 1e-5 * largest(expected.clone()).max(1.0);
                let apart = largest(logits - expected);
                assert!(apart <= bound, "{scales}, {visibility:?}, scale {k}: {apart} apart");
            }
        }
    }
}

/// The same in half precision, as far as 8 or 11 bits of mantissa go, which is not all the way to
/// single precision. Nothing is asked of a backend without the types.
pub fn a_cached_pass_in_half_precision_is_nearly_the_parallel_pass<B: Backend>(device: &B::Device) {
    let schedule: ScaleSchedule = "1_2_3".parse().expect("a valid schedule");
    let x_blc = inputs(&schedule, device);
    for (precision, bound) in [(Precision::Bf16, 2e-2), (Precision::F16, 2.5e-3)] {
        if !precision.is_supported::<B>(device) {
            continue;
        }
        let model = tiny::backbone::<B>(false, true, device);
        let run = |model: &Backbone<B>| {
            logits(model, &schedule, x_blc.clone(), FirstToken::Start, None, device)
        };
        let half = precision.view(&model);
        let (single, all) = (run(&model), run(&half));
        let bound = bound * largest(single.clone());
        let apart = largest(all.clone() - single);
        assert!(0.0 < apart && apart <= bound, "{precision}: {apart} from single precision");
        let cached = cached_logits(&half, &schedule, x_blc.clone(), device);
        for (k, (range, logits)) in schedule.ranges().zip(cached).enumerate() {
            let apart = largest(logits - all.clone().slice_dim(1, range));
            assert!(apart <= bound, "{precision}, scale {k}: {apart} apart");
        }
    }
}

/// Teacher forcing and sampling start from the class and `pos_start`, the student from the class
/// alone.
pub fn the_start_position_is_in_the_first_token_of_teacher_forcing_only<B: Backend>(
    device: &B::Device,
) {
    let schedule: ScaleSchedule = "1_2".parse().expect("a valid schedule");
    let model = tiny::backbone::<B>(false, false, device);
    let run = |first| logits(&model, &schedule, inputs(&schedule, device), first, None, device);
    assert!(largest(run(FirstToken::Start) - run(FirstToken::Bare)) > SEEN);
}

/// Stochastic depth changes an image by its own stream, whatever is drawn for the others.
pub fn dropped_branches_change_their_own_image_only<B: Backend>(device: &B::Device) {
    let schedule: ScaleSchedule = "1_2".parse().expect("a valid schedule");
    let model = tiny::backbone::<B>(false, true, device);
    let run = |drops: Option<&DropPath>| {
        let x_blc = inputs(&schedule, device);
        let all = logits(&model, &schedule, x_blc, FirstToken::Start, drops, device);
        all.slice_dim(0, 0..1)
    };
    let plain = run(None);
    let first = |own: u64, other: u64| {
        let streams = [SeedTree::new(own), SeedTree::new(100 + other)];
        run(Some(&DropPath::draw(0.9, model.depth(), &streams)))
    };
    let mut changed = 0;
    for own in 0..6 {
        let here = first(own, 0);
        changed += usize::from(largest(here.clone() - plain.clone()) > SEEN);
        let apart = largest(here - first(own, 1 + own));
        assert!(apart < 1e-6, "the drops of another image moved this one by {apart}");
    }
    // A rate of 0.9 leaves an image whole only rarely; none of six streams leaves it so each time.
    assert!(changed > 0, "nothing was dropped");
}

/// Weights come back from the device as they went, and make the same model again.
pub fn weights_survive_the_way_out_and_in<B: Backend>(device: &B::Device) {
    let model = tiny::backbone::<B>(true, true, device);
    let tensors = collect(&model, &LAYOUT);
    let seed = SeedTree::new(3).child("backbone");
    for (name, data) in tensors.iter() {
        let values = data.to_vec::<f32>().expect("f32");
        let filled = seed.child(name).normals(values.len()).into_iter().map(|x| 0.3 * x);
        assert_eq!(values, filled.collect::<Vec<f32>>(), "{name}");
    }
    let empty = tiny::backbone::<B>(true, true, device);
    let again = bind(empty, tensors, &LAYOUT).unwrap_or_else(|error| panic!("{error}"));
    let schedule: ScaleSchedule = "1_2".parse().expect("a valid schedule");
    let run = |model: &Backbone<B>| {
        floats(logits(model, &schedule, inputs(&schedule, device), FirstToken::Start, None, device))
    };
    assert_eq!(run(&model), run(&again));
}

fn labels<B: Backend>(device: &B::Device) -> Tensor<B, 1, Int> {
    Tensor::from_data(TensorData::new(vec![1i64, tiny::CLASSES as i64], [2]), device)
}

fn inputs<B: Backend>(schedule: &ScaleSchedule, device: &B::Device) -> Option<Tensor<B, 3>> {
    let n = schedule.n_tokens() - schedule.size(0).tokens();
    (n > 0).then(|| normals(SeedTree::new(5), [2, n, tiny::CHANNELS], device))
}

/// The logits of every scale, one after the other with a cache.
fn cached_logits<B: Backend>(
    model: &Backbone<B>,
    schedule: &ScaleSchedule,
    inputs_blc: Option<Tensor<B, 3>>,
    device: &B::Device,
) -> Vec<Tensor<B, 3>> {
    let mut cache = model.begin(labels(device), schedule);
    let scales = schedule.ranges().enumerate().map(|(k, range)| {
        let input = inputs_blc.as_ref().filter(|_| k > 0);
        let input = input.map(|x| x.clone().slice_dim(1, range.start - 1..range.end - 1));
        model.step(&mut cache, input)
    });
    scales.collect()
}

fn logits<B: Backend>(
    model: &Backbone<B>,
    schedule: &ScaleSchedule,
    inputs_blc: Option<Tensor<B, 3>>,
    first: FirstToken<B>,
    depth_drops: Option<&DropPath>,
    device: &B::Device,
) -> Tensor<B, 3> {
    model.forward(Pass { labels_b: labels(device), inputs_blc, schedule, first, depth_drops })
}
