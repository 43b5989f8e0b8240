//! Laws of the backbone that hold for any weights, at random scales. Those at fixed scales are in
//! `sar-conformance` and run on every backend.

use burn::tensor::{Distribution, Int, Tensor};
use burn_flex::Flex;
use proptest::prelude::*;
use sar_core::{ScaleModel, ScaleSchedule, ScaleSize, SeedTree};
use sar_model::{Backbone, BackboneConfig, FirstToken, Init, Pass, init};

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
) -> Tensor<B, 3> {
    let (first, depth_drops) = (FirstToken::Start, None);
    model.forward(Pass { labels_b: labels(), inputs_blc, schedule, first, depth_drops })
}

fn largest(x: Tensor<B, 3>) -> f32 {
    x.abs().max().into_scalar()
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
        let parallel = logits(&model, &schedule, x.clone());
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
