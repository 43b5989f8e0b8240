//! Generation scale by scale with a cache.
//!
//! Shapes: b images, n tokens of one scale, c code channels, v codes.

use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use sar_core::{CodePyramid, ScaleModel, ScaleSchedule, SeedTree};
use serde::{Deserialize, Serialize};

use crate::draw::{argmax, draw};
use crate::filter::Filters;
use crate::guidance::{Guidance, guide};

/// How a token is chosen from its logits.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Choice {
    /// The most probable code.
    Argmax,
    /// A draw from the filtered distribution.
    Sample {
        /// Keeps logits not below the k-th largest; 0: all.
        top_k: usize,
        /// Nucleus: see [`Filters::top_p`]; 0: all.
        top_p: f64,
    },
}

impl Choice {
    /// Chooses the tokens of one scale of every image.
    ///
    /// # Shapes
    /// - `logits_bnv`: `[b, n, v]`
    /// - `images`: the b streams of the images; a token is a function of its logits and of its
    ///   image's stream, the scale and its place, and of nothing else in the batch
    /// - output: `[b, n]`
    pub fn choose<B: Backend>(
        self,
        logits_bnv: Tensor<B, 3>,
        images: &[SeedTree],
        k: usize,
    ) -> Tensor<B, 2, Int> {
        let [b, n, v] = logits_bnv.dims();
        let device = logits_bnv.device();
        let logits_rv = logits_bnv.reshape([b * n, v]);
        let tokens_r = match self {
            Self::Argmax => argmax(logits_rv),
            Self::Sample { top_k, top_p } => {
                let uniforms: Vec<f32> = images
                    .iter()
                    .flat_map(|image| image.child("draw").at(k as u64).uniforms(n))
                    .collect();
                let uniforms = Tensor::from_data(TensorData::new(uniforms, [b * n]), &device);
                draw(Filters { top_k, top_p }.apply(logits_rv), uniforms)
            }
        };
        tokens_r.reshape([b, n])
    }
}

/// How images are sampled.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sampler {
    /// Classifier-free guidance.
    pub guidance: Guidance,
    /// How a token is chosen from the guided logits.
    pub choice: Choice,
}

/// What generation leaves behind.
#[derive(Clone, Debug)]
pub struct Generated<B: Backend, C> {
    /// Tokens of every scale, each `[b, n_k]`.
    pub tokens: Vec<Tensor<B, 2, Int>>,
    /// The painted code map, for the tokenizer's decoder.
    pub canvas: C,
    /// Guided, unfiltered logits of the last scale, `[b, n, v]`.
    pub last_logits_bnv: Tensor<B, 3>,
}

impl<B: Backend, C> Generated<B, C> {
    /// All tokens, `[b, l]`.
    pub fn tokens_bl(&self) -> Tensor<B, 2, Int> {
        Tensor::cat(self.tokens.clone(), 1)
    }
}

/// Generates one image per label.
///
/// Conditional and unconditional rows run together; without guidance only the former do.
///
/// # Panics
/// If there is not one stream per label.
pub fn generate<B, M, P>(
    model: &M,
    pyramid: &P,
    labels: &[usize],
    schedule: &ScaleSchedule,
    sampler: Sampler,
    images: &[SeedTree],
    device: &B::Device,
) -> Generated<B, P::Canvas>
where
    B: Backend,
    M: ScaleModel<B>,
    P: CodePyramid<B>,
{
    assert_eq!(labels.len(), images.len(), "one stream per image");
    let b = labels.len();
    let guided = !sampler.guidance.is_off(schedule);
    let mut rows: Vec<i64> = labels.iter().map(|label| *label as i64).collect();
    if guided {
        rows.resize(2 * b, model.null_class() as i64);
    }
    let n_rows = rows.len();
    let labels_b = Tensor::from_data(TensorData::new(rows, [n_rows]), device);

    let mut cache = model.begin(labels_b, schedule);
    let mut canvas = P::Canvas::default();
    let mut tokens = Vec::with_capacity(schedule.len());
    let mut input: Option<Tensor<B, 3>> = None;
    let mut last_logits = None;
    for k in 0..schedule.len() {
        let mut logits_bnv = model.step(&mut cache, input.take());
        if guided {
            let cond = logits_bnv.clone().slice_dim(0, 0..b);
            let uncond = logits_bnv.slice_dim(0, b..2 * b);
            logits_bnv = guide(cond, uncond, sampler.guidance.strength(k, schedule));
        }
        let tokens_bn = sampler.choice.choose(logits_bnv.clone(), images, k);
        last_logits = Some(logits_bnv);
        input = pyramid.paint(&mut canvas, schedule, k, tokens_bn.clone());
        if guided {
            input = input.map(|x| x.repeat_dim(0, 2));
        }
        tokens.push(tokens_bn);
    }
    let last_logits_bnv = last_logits.expect("a schedule has at least one scale");
    Generated { tokens, canvas, last_logits_bnv }
}
