use burn::backend::Autodiff;
use burn::module::{Module, ModuleMapper, Param};
use burn_flex::Flex;
use sar_core::ScaleSchedule;
use sar_discriminator::DiscriminatorConfig;
use sar_tokenizer::{CodebookGrowth, Family, Init, Perturbation, Tokenizer, TokenizerConfig};
use sar_weights::parameters;

use super::*;
use crate::muon::Matrices;
use crate::optim::AdamWConfig;
use crate::recipe::{Perceptual, TokenizerLoss, TokenizerRegularization};
use crate::schedule::{Decay, LrSchedule, WeightDecay};
use crate::step::trainable;

type B = Flex;
type A = Autodiff<Flex>;

const LAST: &str = "decoder.conv_out.weight";

fn config() -> TokenizerConfig {
    TokenizerConfig {
        family: Family::Flexvar,
        base_channels: 32,
        channel_multipliers: vec![1, 1],
        res_blocks: 1,
        z_channels: 4,
        codebook_size: 12,
        codebook_dim: 4,
        codebook_growth: CodebookGrowth::None {},
    }
}

fn tokenizer() -> Tokenizer<B> {
    let device = Default::default();
    let covariance = [[0.5, 0.3, 0.2], [0.3, 0.4, 0.25], [0.2, 0.25, 0.45]];
    sar_tokenizer::init(&config(), Init::Torch {}, SeedTree::new(2), &device)
        .unwrap()
        .with_colors(ColorAxes::of_covariance(covariance))
}

fn recipe(weight: f64, adaptive: bool) -> recipe::Adversary {
    let decay = Decay::Cosine;
    let lr = LrSchedule { peak: 1e-3, warmup_steps: 0.0, warmup_from: 1.0, end: 1.0, decay };
    recipe::Adversary::Discriminator {
        discriminator: DiscriminatorConfig::PatchGan { channels: 8, layers: 1 },
        weight,
        adaptive,
        start: 10,
        warmup_steps: 4,
        augmentation: vec![Augmentation::Color, Augmentation::Translation],
        lecam: 0.1,
        lr,
        weight_decay: WeightDecay { start: 0.0, end: 0.0 },
        adamw: AdamWConfig { beta1: 0.5, beta2: 0.9, eps: 1e-8 },
        matrices: Matrices::AdamW {},
        max_grad_norm: 0.0,
    }
}

fn optimization() -> Optimization {
    let settings = ["tokenizer.optimization.batch_size=2".to_owned()];
    let recipe = crate::Recipe::load("emoji-quick", &settings).unwrap();
    recipe.tokenizer.optimization
}

const LOSS: TokenizerLoss = TokenizerLoss {
    color_power: 0.5,
    l1: 0.7,
    l2: 1.3,
    perceptual: Perceptual::None {},
    codebook: 0.9,
    commitment: 0.4,
    entropy: 0.0,
    coarse: 0.5,
    coarse_scales: 2,
};

const REGULARIZATION: TokenizerRegularization = TokenizerRegularization {
    quantizer_dropout: 0.0,
    perturbation: Perturbation { share: 0.0, nearest: 1 },
};

fn pixels() -> Tensor<B, 4> {
    let values = SeedTree::new(9).uniforms(2 * 3 * 16 * 16);
    let values = values.iter().map(|u| 2.0 * u - 1.0).collect::<Vec<f32>>();
    Tensor::from_data(TensorData::new(values, [2, 3, 16, 16]), &Default::default())
}

/// Adds to the last layer of the decoder.
struct Add(Tensor<B, 4>, Vec<String>);

impl ModuleMapper<B> for Add {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let name = self.1.remove(0);
        let change = self.0.clone();
        param.map(|x| match name.as_str() {
            LAST => x.clone() + change.reshape(x.shape()),
            _ => x,
        })
    }
}

fn moved(model: Tokenizer<B>, change: Tensor<B, 4>) -> Tokenizer<B> {
    let names = parameters(&model, config().layout()).into_iter().map(|info| info.name).collect();
    model.map(&mut Add(change, names))
}

/// The parts of a step's loss and the gradient of the last layer.
fn step(
    model: Tokenizer<B>,
    adversary: &Adversary<'_, A>,
    (at, coarse): (u64, f64),
) -> (Vec<(&'static str, f64)>, Tensor<B, 4>) {
    let schedule: ScaleSchedule = "1_2_4_8".parse().unwrap();
    let objective = TokenizerObjective {
        schedule: &schedule,
        loss: &TokenizerLoss { coarse, ..LOSS },
        regularization: &REGULARIZATION,
        perception: None,
    };
    let streams = [0, 1].map(SeedTree::new);
    let learner = Learner::<A, Tokenizer<A>>::new(
        "t",
        model,
        config().layout(),
        &optimization(),
        Precision::F32,
    );
    let judge = adversary.judge(at).unwrap();
    let sum = learner.accumulate_staged(
        vec![pixels()],
        1,
        |model: &Tokenizer<A>, images_bchw| {
            let (made, _) = objective.reconstruct(model, images_bchw, &streams, SeedTree::new(1));
            let leaf = |made| judge.leaf(&objective, model.colors(), made, &streams);
            let leaves: Vec<_> = made.iter().map(leaf).collect();
            (made, leaves)
        },
        |leaves: Vec<Leaf<A>>| leaves.into_iter().map(Leaf::settle).collect(),
        |model, made, outputs: Vec<_>| {
            let mut outputs = outputs.into_iter();
            let terms = objective
                .terms(made, |made| judge.combined(model.colors(), made, outputs.next().unwrap()));
            (terms, ())
        },
    );
    let sum = sum.unwrap();
    let host = |x: Tensor<B, 1>| x.into_data().convert::<f64>().into_vec::<f64>().unwrap()[0];
    let names: Vec<String> =
        parameters(learner.model(), config().layout()).into_iter().map(|info| info.name).collect();
    let place = names.iter().position(|name| name == LAST).unwrap();
    let gradient = sum.gradients.iter().nth(place).unwrap().unwrap().clone();
    let gradient = gradient.reshape([3, 32, 3, 3]);
    (sum.parts.into_iter().map(|(name, value)| (name, host(value))).collect(), gradient)
}

fn part(parts: &[(&'static str, f64)], name: &str) -> f64 {
    parts.iter().find(|(known, _)| *known == name).unwrap().1
}

/// A step along the gradient g changes the total by |g|^2 times the step: images, the drawn coarser scales
/// and the adversary together.
#[test]
fn the_gradient_of_all_losses_is_the_change_of_their_total() {
    let group = Group::alone();
    let recipe = recipe(0.8, false);
    let seed = SeedTree::new(3);
    let adversary = Adversary::<A>::new(
        &recipe,
        &optimization(),
        (&group, Wire::F32),
        seed,
        &Default::default(),
    )
    .unwrap()
    .unwrap();
    let (_, gradient) = step(tokenizer(), &adversary, (100, 0.5));
    let square = f64::from(gradient.clone().square().sum().into_scalar());
    let by = 1e-3 / gradient.clone().abs().max().into_scalar();
    let total = |by: f32| {
        part(&step(moved(tokenizer(), gradient.clone() * by), &adversary, (100, 0.5)).0, "total")
    };
    let ratio = (total(by) - total(-by)) / (2.0 * f64::from(by) * square);
    assert!((ratio - 1.0).abs() < 0.01, "{ratio} of the change expected");
}

/// The gradient is linear in the weight: out of two weights come the gradients of either loss at the
/// last layer, and out of their norms the adaptive weight.
#[test]
fn the_adaptive_weight_makes_both_gradients_of_the_last_layer_alike() {
    let group = Group::alone();
    let seed = SeedTree::new(3);
    let at = |weight: f64, adaptive: bool, at: u64| {
        let recipe = recipe(weight, adaptive);
        let device = Default::default();
        let adversary =
            Adversary::<A>::new(&recipe, &optimization(), (&group, Wire::F32), seed, &device)
                .unwrap()
                .unwrap();
        step(tokenizer(), &adversary, (at, 0.0))
    };
    let (_, images) = at(0.0, false, 100);
    let (fixed, both) = at(100.0, false, 100);
    assert!(fixed.iter().all(|(name, _)| *name != "adaptive"));
    let norm = |x: Tensor<B, 4>| f64::from(x.square().sum().sqrt().into_scalar());
    let adversarial = norm(both - images.clone()) / 100.0;
    let (parts, _) = at(1.0, true, 100);
    let (found, expected) = (part(&parts, "adaptive"), norm(images) / (adversarial + 1e-4));
    assert!((found / expected - 1.0).abs() < 1e-2, "{found}, not {expected}");
    // Warm-up: a quarter of the weight one step after the start, all of it four steps after.
    let change = |step: u64| {
        let (parts, _) = at(0.5, false, step);
        part(&parts, "total") - part(&at(0.0, false, step).0, "total")
    };
    assert!(change(10).abs() < 1e-7);
    let (quarter, whole) = (change(11), change(14));
    assert!((quarter / whole - 0.25).abs() < 0.02, "{quarter} of {whole}");
}

/// An output that is too small for the discriminator has the losses of an image alone, and is not learned
/// from; larger ones of the same step are judged.
#[test]
fn what_is_too_small_is_not_judged() {
    let group = Group::alone();
    let (recipe, seed, device) = (recipe(0.8, false), SeedTree::new(3), Default::default());
    let run = (&group, Wire::F32);
    let adversary = Adversary::<A>::new(&recipe, &optimization(), run, seed, &device).unwrap();
    let judge = adversary.unwrap().judge(100).unwrap();
    assert_eq!(judge.frozen.min_side(), 6);
    let schedule: ScaleSchedule = "1_2_4_8".parse().unwrap();
    let objective = TokenizerObjective {
        schedule: &schedule,
        loss: &TokenizerLoss { coarse_scales: 3, ..LOSS },
        regularization: &REGULARIZATION,
        perception: None,
    };
    let streams = [0, 1].map(SeedTree::new);
    let model = trainable::<A, Tokenizer<A>>(tokenizer());
    let (made, _) = objective.reconstruct(&model, pixels(), &streams, SeedTree::new(1));
    let mut sides: Vec<usize> = made.iter().map(|made| made.output_bchw.dims()[2]).collect();
    for (made, side) in made.iter().zip(&sides) {
        let is_judged = *side >= 6;
        assert_eq!(judge.pair(made, &streams).is_some(), is_judged, "{side} px");
        let colors = model.colors();
        let at = judge.leaf(&objective, colors, made, &streams).settle();
        let (surrogate, value, parts) = judge.combined(colors, made, at);
        let has_part = parts.iter().any(|(name, _)| *name == "adversarial");
        assert_eq!(has_part, is_judged, "{side} px");
        // Beside those of the image alone.
        let leaf = Tensor::<A, 4>::from_inner(made.output_bchw.clone().inner()).require_grad();
        let (alone, _) = objective.image_loss(colors, leaf.clone(), made.target_bchw.clone());
        let apart = (value - alone.clone().inner()).abs().into_scalar();
        let gradients = alone.backward();
        let expected = (leaf.grad(&gradients).unwrap() * made.output_bchw.clone().inner()).sum();
        let turned = (surrogate.inner() - expected).abs().into_scalar();
        for apart in [apart, turned] {
            assert_eq!(apart > 1e-6, is_judged, "{side} px: {apart}");
        }
    }
    sides.sort_unstable();
    assert_eq!(sides, [2, 4, 8, 16]);
}

/// It learns to tell what it is shown, and remembers its averages.
#[test]
fn a_discriminator_learns() {
    let group = Group::alone();
    let recipe = recipe(1.0, true);
    let device = Default::default();
    let new = || {
        Adversary::<A>::new(
            &recipe,
            &optimization(),
            (&group, Wire::F32),
            SeedTree::new(3),
            &device,
        )
        .unwrap()
        .unwrap()
    };
    let mut adversary = new();
    assert!(adversary.judge(9).is_none() && adversary.judge(10).is_some());
    let pair = || Pair {
        output_bchw: Tensor::zeros([2, 3, 16, 16], &device),
        target_bchw: pixels(),
        streams: [0, 1].map(SeedTree::new).to_vec(),
    };
    let hinge = |learned: &Learned<B>| {
        let (_, value) = learned.parts.iter().find(|(name, _)| *name == "hinge").unwrap();
        value.clone().into_scalar()
    };
    let first = hinge(&adversary.learn(vec![vec![pair()]].into(), 1, (10, 100)).unwrap().unwrap());
    for step in 11..60 {
        adversary.learn(vec![vec![pair()]].into(), 1, (step, 100)).unwrap().unwrap();
    }
    let last = hinge(&adversary.learn(vec![vec![pair()]].into(), 1, (60, 100)).unwrap().unwrap());
    assert!(last < 0.5 * first, "{first} to {last}");
    let nothing = adversary.learn(vec![Vec::new()].into(), 1, (61, 100)).unwrap();
    assert!(nothing.is_none(), "nothing was judged");
    let (name, data) = adversary.state();
    let mut restored = new();
    assert_ne!(restored.state().1, data);
    let mut state = NamedTensors::default();
    state.insert(name, data.clone());
    restored.restore(&state, &device);
    assert_eq!(restored.state().1, data);
}
