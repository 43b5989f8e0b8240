//! A tiny backbone with codes whose inputs and losses are computed here, on the host.

use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use burn_flex::Flex;
use sar_core::{CodePyramid, FirstScale, ScaleSchedule, ScaleSize, SeedTree};
use sar_loss::{Reduction, StudentTarget};
use sar_model::{
    Backbone, BackboneConfig, BackboneShape, FirstToken, LAYOUT, Pass, PositionsConfig, Visibility,
};
use sar_rollout::{Predictions, StudentContext, Transitions};
use sar_train::backbone_loss::backbone_loss;
use sar_train::context_noise::ContextNoise;
use sar_train::objective::{ConditionDraw, Objective, Regularization, StudentFirstToken};
use sar_train::step::trainable;
use sar_train::tokens::TokenBatch;
use sar_weights::fill;

pub(crate) type B = Flex;
pub(crate) type A = Autodiff<Flex>;

pub(crate) const CODES: usize = 7;
pub(crate) const CHANNELS: usize = 3;
pub(crate) const CLASSES: usize = 3;
pub(crate) const WEIGHT: f64 = 0.7;

pub(crate) const UNREGULARIZED: Regularization = Regularization {
    class_dropout_prob: 0.0,
    drop_path_rate: 0.0,
    label_smoothing: 0.0,
    reduction: Reduction::MeanTokens,
    context_noise: ContextNoise::NONE,
};

/// A direct pyramid: the next input is the code map, enlarged to the nearest.
pub(crate) struct Codes;

pub(crate) fn code(token: usize, channel: usize) -> f32 {
    ((token * CHANNELS + channel) as f32 * 1.7).sin()
}

/// For each place of a scale the place of the scale before that it lies in.
pub(crate) fn parents(size: ScaleSize, before: ScaleSize) -> impl Iterator<Item = usize> {
    (0..size.tokens()).map(move |i| {
        let (y, x) = (i / size.width, i % size.width);
        y * before.height / size.height * before.width + x * before.width / size.width
    })
}

impl CodePyramid<B> for Codes {
    type Canvas = ();

    fn codes(&self) -> Tensor<B, 2> {
        let codes = (0..CODES).flat_map(|token| (0..CHANNELS).map(move |c| code(token, c)));
        let codes = TensorData::new(codes.collect::<Vec<_>>(), [CODES, CHANNELS]);
        Tensor::from_data(codes, &Default::default())
    }

    fn paint(
        &self,
        _: &mut (),
        schedule: &ScaleSchedule,
        k: usize,
        codes_bnc: Tensor<B, 3>,
    ) -> Option<Tensor<B, 3>> {
        let next = *schedule.sizes().get(k + 1)?;
        let parents: Vec<i64> = parents(next, schedule.size(k)).map(|i| i as i64).collect();
        let parents = TensorData::new(parents, [next.tokens()]);
        Some(codes_bnc.select(1, Tensor::from_data(parents, &Default::default())))
    }
}

/// Numbers by image, token and code.
pub(crate) type Logits = Vec<Vec<Vec<f64>>>;
/// Codes by image and token.
pub(crate) type Tokens = Vec<Vec<usize>>;

pub(crate) struct World {
    pub(crate) model: Backbone<B>,
    pub(crate) schedule: ScaleSchedule,
    pub(crate) labels: Vec<usize>,
    pub(crate) truth: Tokens,
    pub(crate) streams: Vec<SeedTree>,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        Self::that_sees(seed, Visibility::AllCoarser)
    }

    pub(crate) fn that_sees(seed: u64, visibility: Visibility) -> Self {
        Self::of(seed, visibility, FirstScale::ClassToken {}, "1_2_2x3")
    }

    pub(crate) fn of(
        seed: u64,
        visibility: Visibility,
        first_scale: FirstScale,
        scales: &str,
    ) -> Self {
        let shape = BackboneShape {
            width: 16,
            heads: 2,
            mlp_ratio: 2,
            visibility,
            first_scale,
            ..BackboneShape::published(2)
        };
        let config = BackboneConfig {
            shape,
            classes: CLASSES,
            codebook_size: CODES,
            codebook_dim: CHANNELS,
            positions: PositionsConfig::Grid { side: 4 },
        };
        let empty = Backbone::new(&config, &Default::default()).unwrap();
        // No part is near zero, unlike at the published initialization, and inputs weigh as much as
        // classes.
        let weights = SeedTree::new(3);
        let model = fill(empty, &LAYOUT, |name, shape| {
            let n = shape.iter().product();
            let size = if name == "word_embed.weight" { 1.5 } else { 0.4 };
            weights.child(name).normals(n).into_iter().map(|x| size * x).collect()
        });
        let schedule: ScaleSchedule = scales.parse().unwrap();
        let draws = SeedTree::new(seed);
        let l = schedule.n_tokens() as u64;
        let truth = |image: u64| (0..l).map(move |t| draws.at(image).below(t, CODES)).collect();
        Self {
            model,
            schedule,
            labels: vec![0, 1, 2],
            truth: (0..3).map(truth).collect(),
            streams: (0..3).map(|image| draws.child("stream").at(image)).collect(),
        }
    }

    pub(crate) fn batch(&self) -> TokenBatch<B> {
        let tokens: Vec<i64> = self.truth.iter().flatten().map(|token| *token as i64).collect();
        let shape = [self.labels.len(), self.schedule.n_tokens()];
        TokenBatch {
            labels: self.labels.clone(),
            streams: self.streams.clone(),
            schedule: self.schedule.clone(),
            tokens_bl: Tensor::from_data(TensorData::new(tokens, shape), &Default::default()),
        }
    }

    /// The parts of the loss, by name.
    pub(crate) fn parts(&self, objective: &Objective, dropout: f64) -> Vec<(&'static str, f64)> {
        let regularization = Regularization { class_dropout_prob: dropout, ..UNREGULARIZED };
        self.parts_with(objective, &regularization)
    }

    pub(crate) fn parts_with(
        &self,
        objective: &Objective,
        regularization: &Regularization,
    ) -> Vec<(&'static str, f64)> {
        let model = trainable::<A, Backbone<A>>(self.model.clone());
        let (batch, device) = (self.batch(), Default::default());
        let step = SeedTree::new(0);
        let terms = backbone_loss(&model, &Codes, &batch, objective, regularization, step, &device);
        let parts = terms.parts.into_iter();
        parts.map(|(name, value)| (name, f64::from(value.into_scalar()))).collect()
    }

    /// The inputs of the scales after the first, `[b, l - 1, c]`, for tokens of the first scales.
    pub(crate) fn inputs<Bk: Backend>(
        &self,
        tokens: &[Vec<usize>],
        n_scales: usize,
    ) -> Tensor<Bk, 3> {
        let mut values = Vec::new();
        for tokens in tokens {
            for k in 1..n_scales {
                let before = &tokens[self.schedule.range(k - 1)];
                for parent in parents(self.schedule.size(k), self.schedule.size(k - 1)) {
                    values.extend((0..CHANNELS).map(|c| code(before[parent], c)));
                }
            }
        }
        let shape = [tokens.len(), values.len() / CHANNELS / tokens.len(), CHANNELS];
        Tensor::from_data(TensorData::new(values, shape), &Default::default())
    }

    /// One pass over the first scales; its context is `tokens`.
    pub(crate) fn pass<Bk: Backend>(
        &self,
        model: &Backbone<Bk>,
        labels: &[usize],
        tokens: &[Vec<usize>],
        n_scales: usize,
        first: FirstToken<Bk>,
    ) -> Tensor<Bk, 3> {
        let schedule = ScaleSchedule::new(self.schedule.sizes()[..n_scales].to_vec()).unwrap();
        let labels: Vec<i64> = labels.iter().map(|label| *label as i64).collect();
        let labels = TensorData::new(labels, [tokens.len()]);
        model.forward(Pass {
            labels_b: Tensor::from_data(labels, &Default::default()),
            inputs_blc: (n_scales > 1).then(|| self.inputs(tokens, n_scales)),
            schedule: &schedule,
            first,
            depth_drops: None,
        })
    }

    pub(crate) fn logits(
        &self,
        labels: &[usize],
        tokens: &[Vec<usize>],
        first: FirstToken<B>,
    ) -> Logits {
        on_host(self.pass(&self.model, labels, tokens, self.schedule.len(), first))
    }
}

pub(crate) fn on_host(x_blv: Tensor<B, 3>) -> Logits {
    let [_, l, v] = x_blv.dims();
    let values: Vec<f64> = x_blv.into_data().convert::<f64>().into_vec().unwrap();
    let rows: Vec<Vec<f64>> = values.chunks(v).map(<[f64]>::to_vec).collect();
    rows.chunks(l).map(<[Vec<f64>]>::to_vec).collect()
}

pub(crate) fn log_p(row: &[f64]) -> Vec<f64> {
    let largest = row.iter().copied().fold(f64::MIN, f64::max);
    let sum = row.iter().map(|x| (x - largest).exp()).sum::<f64>().ln();
    row.iter().map(|x| x - largest - sum).collect()
}

pub(crate) fn argmax(row: &[f64]) -> usize {
    (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap()
}

pub(crate) fn most_probable(logits: &Logits) -> Tokens {
    logits.iter().map(|image| image.iter().map(|row| argmax(row)).collect()).collect()
}

/// The mean of `-sum p log softmax(logits)` over the tokens of a range.
pub(crate) fn mean_loss(
    logits: &Logits,
    range: std::ops::Range<usize>,
    p: impl Fn(usize, usize) -> Vec<f64>,
) -> f64 {
    let n = (logits.len() * range.len()) as f64;
    let tokens = (0..logits.len()).flat_map(|i| range.clone().map(move |t| (i, t)));
    let losses = tokens.map(|(i, t)| {
        let row = log_p(&logits[i][t]);
        -p(i, t).iter().zip(row).map(|(p, log_p)| p * log_p).sum::<f64>()
    });
    losses.sum::<f64>() / n
}

pub(crate) fn certain(tokens: &Tokens) -> impl Fn(usize, usize) -> Vec<f64> + '_ {
    |i, t| (0..CODES).map(|code| if code == tokens[i][t] { 1.0 } else { 0.0 }).collect()
}

pub(crate) fn sar(predictions: Predictions, student_target: StudentTarget) -> Objective {
    Objective::Sar {
        weight: WEIGHT,
        predictions,
        student_context: StudentContext::All,
        transitions: Transitions::All,
        student_target,
        condition: ConditionDraw::Once,
        student_first_token: StudentFirstToken::Bare,
    }
}

#[track_caller]
pub(crate) fn near(found: f64, expected: f64) {
    assert!((found - expected).abs() < 1e-5 * expected.abs().max(1.0), "{found}, not {expected}");
}

/// Teacher, student and total, and that there is nothing else.
#[track_caller]
pub(crate) fn check_parts(found: &[(&'static str, f64)], teacher: f64, student: f64) {
    let names: Vec<_> = found.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["teacher", "student", "total"]);
    near(found[0].1, teacher);
    near(found[1].1, student);
    near(found[2].1, teacher + WEIGHT * student);
}
