//! Laws of the backbone that hold for any weights.

use burn::tensor::{Distribution, Int, Tensor};
use burn_flex::Flex;
use proptest::prelude::*;
use sar_core::{ScaleModel, ScaleSchedule, ScaleSize, SeedTree};
use sar_model::{
    Backbone, BackboneConfig, BackboneShape, DropPath, FirstToken, Init, Pass, PositionsConfig,
    Visibility, init,
};

type B = Flex;

const GRID: PositionsConfig = PositionsConfig::Grid { side: 6 };

fn per_token(scales: &ScaleSchedule) -> PositionsConfig {
    PositionsConfig::PerToken { scales: scales.clone() }
}

/// Weights with open residual branches, so that every part shows in the logits.
fn backbone(positions: PositionsConfig, shared_adaln: bool, qk_l2_norm: bool) -> Backbone<B> {
    let config = config(positions, shared_adaln, qk_l2_norm);
    let open = Init { adaln_gamma: 0.5 };
    init(&config, open, SeedTree::new(3), &Default::default()).unwrap()
}

fn config(positions: PositionsConfig, shared_adaln: bool, qk_l2_norm: bool) -> BackboneConfig {
    let shape = BackboneShape {
        depth: 2,
        width: 16,
        heads: 2,
        mlp_ratio: 2,
        shared_adaln,
        qk_l2_norm,
        ..BackboneShape::published(2)
    };
    BackboneConfig { shape, classes: 3, codebook_size: 11, codebook_dim: 5, positions }
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
    first: FirstToken<B>,
    depth_drops: Option<&DropPath>,
) -> Tensor<B, 3> {
    model.forward(Pass { labels_b: labels(), inputs_blc, schedule, first, depth_drops })
}

fn largest(x: Tensor<B, 3>) -> f32 {
    x.abs().max().into_scalar()
}

#[test]
fn a_token_sees_its_own_and_coarser_scales_and_nothing_finer() {
    let schedule: ScaleSchedule = "1_2_3".parse().unwrap();
    for positions in [GRID, per_token(&schedule)] {
        sees_nothing_finer(&backbone(positions, false, true), &schedule);
    }
}

fn sees_nothing_finer(model: &Backbone<B>, schedule: &ScaleSchedule) {
    let x = inputs(schedule).unwrap();
    let plain = logits(model, schedule, Some(x.clone()), FirstToken::Start, None);
    // What a changed input of this place moves; inputs start at the second token.
    let moved_by = |place: usize| {
        let bump = Tensor::<B, 3>::ones([2, 1, 5], &Default::default());
        let changed = x.clone().slice_assign([0..2, place..place + 1, 0..5], bump);
        logits(model, schedule, Some(changed), FirstToken::Start, None) - plain.clone()
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
fn a_part_of_a_schedule_keeps_its_positions_and_levels() {
    let schedule: ScaleSchedule = "1_2_3".parse().unwrap();
    let model = backbone(per_token(&schedule), false, true);
    let values = |x: Tensor<B, 2>| x.into_data().into_vec::<f32>().unwrap();
    let all = model.positions(&schedule);
    let first = all.clone().slice_dim(0, 0..1);
    let last = all.slice_dim(0, 5..14);
    let transition = values(model.positions(&schedule.transition(2)));
    assert_eq!(transition, values(Tensor::cat(vec![first, last], 0)));
}

#[test]
#[should_panic(expected = "no positions of scale 4: they were learned for 1_2_3")]
fn positions_of_one_schedule_serve_no_other() {
    let model = backbone(per_token(&"1_2_3".parse().unwrap()), false, true);
    model.positions(&"1_2_4".parse().unwrap());
}

#[test]
fn other_schedules_are_refused_in_one_line() {
    let own: ScaleSchedule = "1_2_3".parse().unwrap();
    let other: ScaleSchedule = "1_3".parse().unwrap();
    let config = BackboneConfig::var(16, own.clone());
    assert!(config.check_scales(&own).is_ok());
    let error = config.check_scales(&other).unwrap_err().to_string();
    assert_eq!(error, "scales: 1_3: this model runs at 1_2_3 only (VAR)");
    assert!(BackboneConfig::flexvar(16).check_scales(&other).is_ok());
}

/// A Markov sampler keeps the class token's keys and values alone.
#[test]
fn a_partial_pass_keeps_what_later_scales_see() {
    let schedule: ScaleSchedule = "1_2_3_4".parse().unwrap();
    let kept = |visibility| {
        let mut config = config(GRID, false, true);
        config.shape.visibility = visibility;
        let seed = SeedTree::new(3);
        let device = Default::default();
        let model = init::<B>(&config, Init { adaln_gamma: 0.5 }, seed, &device).unwrap();
        let x = inputs(&schedule).unwrap();
        let mut cache = model.begin(labels(), &schedule);
        let ranges = schedule.ranges().enumerate();
        let kept = ranges.map(|(k, range)| {
            let input = (k > 0).then(|| x.clone().slice_dim(1, range.start - 1..range.end - 1));
            model.step(&mut cache, input);
            cache.kept_tokens()
        });
        kept.collect::<Vec<_>>()
    };
    assert_eq!(kept(Visibility::AllCoarser), [1, 5, 14, 1]);
    assert_eq!(kept(Visibility::Own), [1, 1, 1, 1]);
    assert_eq!(kept(Visibility::Last(1)), [1, 5, 10, 1]);
    assert_eq!(kept(Visibility::Last(2)), [1, 5, 14, 1]);
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
        schedule in schedules(), shared: bool, norm: bool, grid: bool,
    ) {
        let positions = if grid { GRID } else { per_token(&schedule) };
        let model = backbone(positions, shared, norm);
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
