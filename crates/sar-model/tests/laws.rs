//! Laws of the backbone that hold for any weights.

use burn::tensor::{Distribution, Int, Tensor};
use burn_flex::Flex;
use proptest::prelude::*;
use sar_core::{ScaleModel, ScaleSchedule, ScaleSize, SeedTree};
use sar_model::{Backbone, BackboneConfig, FirstToken, Init, Pass, StochasticDepth, init};

type B = Flex;

fn config(shared_adaln: bool, qk_l2_norm: bool) -> BackboneConfig {
    BackboneConfig {
        depth: 2,
        width: 16,
        heads: 2,
        mlp_ratio: 2,
        classes: 3,
        codebook_size: 11,
        codebook_dim: 5,
        shared_adaln,
        qk_l2_norm,
        position_grid: 6,
    }
}

/// Weights with open residual branches, so that every part shows in the logits.
fn backbone(shared_adaln: bool, qk_l2_norm: bool) -> Backbone<B> {
    let open = Init { adaln_gamma: 0.5 };
    let config = config(shared_adaln, qk_l2_norm);
    init(&config, open, SeedTree::new(3), &Default::default()).unwrap()
}

fn labels() -> Tensor<B, 1, Int> {
    Tensor::from_data([1, 3], &Default::default())
}

fn inputs(schedule: &ScaleSchedule) -> Option<Tensor<B, 3>> {
    let n = schedule.n_tokens() - schedule.size(0).tokens();
    let normal = Distribution::Normal(0.0, 1.0);
    (n > 0).then(|| Tensor::random([2, n, 5], normal, &Default::default()))
}

fn logits(
    model: &Backbone<B>,
    schedule: &ScaleSchedule,
    inputs_blc: Option<Tensor<B, 3>>,
    first: FirstToken,
    depth_drops: Option<&StochasticDepth>,
) -> Tensor<B, 3> {
    model.forward(Pass { labels_b: labels(), inputs_blc, schedule, first, depth_drops })
}

fn largest(x: Tensor<B, 3>) -> f32 {
    x.abs().max().into_scalar()
}

#[test]
fn a_token_sees_its_own_and_coarser_scales_and_nothing_finer() {
    let schedule: ScaleSchedule = "1_2_3".parse().unwrap();
    let model = backbone(false, true);
    let x = inputs(&schedule).unwrap();
    let plain = logits(&model, &schedule, Some(x.clone()), FirstToken::Start, None);
    // What a changed input of this place moves; inputs start at the second token.
    let moved_by = |place: usize| {
        let bump = Tensor::<B, 3>::ones([2, 1, 5], &Default::default());
        let changed = x.clone().slice_assign([0..2, place..place + 1, 0..5], bump);
        logits(&model, &schedule, Some(changed), FirstToken::Start, None) - plain.clone()
    };
    // Token 6 of the pyramid, the second of the last scale.
    let moved = moved_by(5);
    assert_eq!(largest(moved.clone().slice_dim(1, 0..5)), 0.0, "a coarser scale saw a finer one");
    for token in 5..14 {
        let shift = largest(moved.clone().slice_dim(1, token..token + 1));
        assert!(shift > 1e-7, "token {token} of the same scale did not see the change");
    }
    // The same for a token of the second scale, which the third sees.
    let moved = moved_by(3);
    assert_eq!(largest(moved.clone().slice_dim(1, 0..1)), 0.0);
    assert!(largest(moved.slice_dim(1, 5..14)) > 1e-7);
}

#[test]
fn the_start_position_is_in_the_first_token_of_teacher_forcing_only() {
    let schedule: ScaleSchedule = "1_2".parse().unwrap();
    let model = backbone(false, false);
    let x = inputs(&schedule);
    let start = logits(&model, &schedule, x.clone(), FirstToken::Start, None);
    let bare = logits(&model, &schedule, x, FirstToken::Bare, None);
    assert!(largest(start - bare) > 1e-7);
}

#[test]
fn dropped_branches_change_only_their_image() {
    let schedule: ScaleSchedule = "1_2".parse().unwrap();
    let model = backbone(false, true);
    let x = inputs(&schedule);
    let plain = logits(&model, &schedule, x.clone(), FirstToken::Start, None);
    let change = |stream: SeedTree| {
        let streams = [stream, stream];
        let drops = StochasticDepth::draw(0.9, 2, &streams);
        largest(
            logits(&model, &schedule, x.clone(), FirstToken::Start, Some(&drops)) - plain.clone(),
        )
    };
    // A rate of 0.9 leaves some image whole only rarely; none of ten streams leaves all of them so.
    assert!((0..10).any(|i| change(SeedTree::new(i)) > 1e-7));
}

fn schedules() -> impl Strategy<Value = ScaleSchedule> {
    prop::collection::vec((0usize..3, 0usize..3), 0..4).prop_map(|steps| {
        let mut sizes = vec![ScaleSize { height: 1, width: 1 }];
        for (down, across) in steps {
            let last = sizes[sizes.len() - 1];
            let (height, width) = (last.height + down, last.width + across);
            if (height, width) != (last.height, last.width) {
                sizes.push(ScaleSize { height, width });
            }
        }
        ScaleSchedule::new(sizes).unwrap()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_cached_pass_is_the_parallel_pass(
        schedule in schedules(), shared: bool, norm: bool,
    ) {
        let model = backbone(shared, norm);
        let x = inputs(&schedule);
        let parallel = logits(&model, &schedule, x.clone(), FirstToken::Start, None);
        let mut cache = model.begin(labels(), &schedule);
        for (k, range) in schedule.ranges().enumerate() {
            let input = (k > 0).then(|| {
                x.clone().unwrap().slice_dim(1, range.start - 1..range.end - 1)
            });
            let cached = model.step(&mut cache, input);
            let expected = parallel.clone().slice_dim(1, range);
            let scale = largest(expected.clone());
            prop_assert!(largest(cached - expected) <= 1e-5 * scale.max(1.0));
        }
    }
}
