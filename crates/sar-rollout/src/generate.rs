//! Generation scale by scale with a cache; a first scale of several tokens takes several steps.
//!
//! Shapes: b images, n tokens of one scale, c code channels, v codes.

use std::ops::ControlFlow;

use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use sar_core::{CodePyramid, ScaleModel, ScaleSchedule, SeedTree, restrict};
use serde::{Deserialize, Serialize};

use crate::draw::{argmax, draw, gumbel_softmax};
use crate::edit::KeptTokens;
use crate::filter::Filters;
use crate::guidance::{Guidance, guide};
use crate::reveal::reveal_first;

/// How a token is chosen from its logits.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
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
    /// A mixture of codes instead of one (VAR's `more_smooth`): for pictures, which it makes
    /// smoother and less varied, and not for training or figures.
    ///
    /// ```text
    /// softmax((filtered logits * (1 + r) + Gumbel noise) / max(0.27 (1 - 0.95 r), 0.005))
    /// ```
    /// with `r = k / (K - 1)`.
    MoreSmooth {
        /// As in `Sample`.
        top_k: usize,
        /// As in `Sample`.
        top_p: f64,
    },
}

/// What stands at the places of one scale.
#[derive(Clone, Debug)]
pub enum Chosen<B: Backend> {
    /// One code each, `[b, n]`.
    Tokens(Tensor<B, 2, Int>),
    /// A share of every code each, `[b, n, v]`, of sum 1.
    Mixture(Tensor<B, 3>),
}

impl<B: Backend> Chosen<B> {
    /// One code each: of a mixture the largest share, itself a draw from the distribution
    /// (Gumbel-max).
    pub fn tokens(self) -> Tensor<B, 2, Int> {
        match self {
            Self::Tokens(tokens_bn) => tokens_bn,
            Self::Mixture(weights_bnv) => weights_bnv.argmax(2).squeeze_dim(2),
        }
    }

    /// The codes that go into the canvas, `[b, n, c]`.
    pub fn codes<P: CodePyramid<B>>(&self, pyramid: &P) -> Tensor<B, 3> {
        match self {
            Self::Tokens(tokens_bn) => pyramid.look_up(tokens_bn.clone()),
            Self::Mixture(weights_bnv) => pyramid.mix(weights_bnv.clone()),
        }
    }
}

impl Choice {
    /// The filters of its draws; none where nothing is drawn.
    pub const fn filters(self) -> Filters {
        match self {
            Self::Argmax => Filters::NONE,
            Self::Sample { top_k, top_p } | Self::MoreSmooth { top_k, top_p } => {
                Filters { top_k, top_p }
            }
        }
    }

    /// The same choice with other filters; instead of the most probable code one is drawn.
    pub const fn with_filters(self, Filters { top_k, top_p }: Filters) -> Self {
        match self {
            Self::Argmax | Self::Sample { .. } => Self::Sample { top_k, top_p },
            Self::MoreSmooth { .. } => Self::MoreSmooth { top_k, top_p },
        }
    }

    /// Whether it mixes codes instead of taking one.
    pub const fn mixes(self) -> bool {
        match self {
            Self::Argmax | Self::Sample { .. } => false,
            Self::MoreSmooth { .. } => true,
        }
    }

    /// Chooses for the places of scale `k` of every image.
    ///
    /// # Shapes
    /// - `logits_bnv`: `[b, n, v]`
    /// - `streams`: one random stream per image; a choice is a function of its logits, its image's
    ///   stream, the scale and its place, and of nothing else in the batch
    pub fn choose<B: Backend>(
        self,
        logits_bnv: Tensor<B, 3>,
        streams: &[SeedTree],
        schedule: &ScaleSchedule,
        k: usize,
    ) -> Chosen<B> {
        let [b, n, _] = logits_bnv.dims();
        let r = k as f64 / (schedule.len() - 1).max(1) as f64;
        let streams: Vec<_> = streams.iter().map(|stream| (*stream, k as u64)).collect();
        self.choose_at(&vec![(0..n).collect(); b], logits_bnv, &streams, r)
    }

    /// Chooses for some places of a scale, p for each image.
    ///
    /// # Shapes
    /// - `logits_bpv`: `[b, p, v]`
    /// - `streams`: one stream per image, and the number of its draw there
    /// - `r`: how far the pyramid is, in [0, 1]
    pub(crate) fn choose_at<B: Backend>(
        self,
        places: &[Vec<usize>],
        logits_bpv: Tensor<B, 3>,
        streams: &[(SeedTree, u64)],
        r: f64,
    ) -> Chosen<B> {
        let [b, p, v] = logits_bpv.dims();
        let device = logits_bpv.device();
        let logits_rv = logits_bpv.reshape([b * p, v]);
        // So many uniform numbers of each place.
        let uniforms = |purpose: &str, n: usize| -> Vec<f32> {
            let images = streams.iter().zip(places);
            let draws = images.flat_map(|((stream, at), places)| {
                let stream = stream.child(purpose).at(*at);
                let numbers = move |place: &usize| (place * n) as u64..((place + 1) * n) as u64;
                places.iter().flat_map(numbers).map(move |i| stream.uniform(i))
            });
            draws.collect()
        };
        let tokens_r = match self {
            Self::Argmax => argmax(logits_rv),
            Self::Sample { top_k, top_p } => {
                let uniforms = TensorData::new(uniforms("draw", 1), [b * p]);
                let uniforms = Tensor::from_data(uniforms, &device);
                draw(Filters { top_k, top_p }.apply(logits_rv), uniforms)
            }
            Self::MoreSmooth { top_k, top_p } => {
                let uniforms = TensorData::new(uniforms("gumbel", v), [b * p, v]);
                let uniforms = Tensor::from_data(uniforms, &device);
                let logits_rv = Filters { top_k, top_p }.apply(logits_rv) * (1.0 + r);
                let temperature = (0.27 * (1.0 - 0.95 * r)).max(0.005);
                let weights_rv = gumbel_softmax(logits_rv, uniforms, temperature);
                return Chosen::Mixture(weights_rv.reshape([b, p, v]));
            }
        };
        Chosen::Tokens(tokens_r.reshape([b, p]))
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
#[non_exhaustive]
pub struct Generated<B: Backend, C> {
    /// Tokens of every scale, each `[b, n_k]`.
    pub tokens: Vec<Tensor<B, 2, Int>>,
    /// The canvas after the last scale (f_hat of VAR, algorithm 2), for the tokenizer's decoder.
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

/// What is generated.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a, B: Backend> {
    /// Class of each image.
    pub labels: &'a [usize],
    /// The random stream of each image: what is drawn for it depends on no other.
    pub streams: &'a [SeedTree],
    /// The scales.
    pub schedule: &'a ScaleSchedule,
    /// Guidance and choice.
    pub sampler: Sampler,
    /// Tokens that are not drawn but stand already.
    pub kept: Option<&'a KeptTokens<B>>,
}

/// Generates one image per label.
///
/// Conditional and unconditional rows run together; without guidance only the former do. The tokens
/// of an image depend on its own label and stream, and on the other images of the batch only as far
/// as a backend's products of another size round otherwise.
///
/// # Panics
/// If there is not one stream per label.
pub fn generate<B, M, P>(
    model: &M,
    pyramid: &P,
    labels: &[usize],
    schedule: &ScaleSchedule,
    sampler: Sampler,
    streams: &[SeedTree],
    device: &B::Device,
) -> Generated<B, P::Canvas>
where
    B: Backend,
    M: ScaleModel<B>,
    P: CodePyramid<B>,
{
    let request = Request { labels, streams, schedule, sampler, kept: None };
    let whole = |_, _: &P::Canvas| ControlFlow::Continue(());
    generate_watched(model, pyramid, request, device, whole).expect("nothing stops it")
}

/// As [`generate`], with tokens that may be kept; `painted` is called with every scale and the canvas
/// after it, and may break there: nothing comes of it then.
///
/// # Panics
/// If there is not one stream per label, or kept tokens are of another schedule or batch.
pub fn generate_watched<B, M, P>(
    model: &M,
    pyramid: &P,
    request: Request<'_, B>,
    device: &B::Device,
    mut painted: impl FnMut(usize, &P::Canvas) -> ControlFlow<()>,
) -> Option<Generated<B, P::Canvas>>
where
    B: Backend,
    M: ScaleModel<B>,
    P: CodePyramid<B>,
{
    let Request { labels, streams, schedule, sampler, kept } = request;
    assert_eq!(labels.len(), streams.len(), "one stream per label");
    let b = labels.len();
    let first_scale = model.first_scale();
    let guided = !sampler.guidance.is_off(schedule, first_scale);
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
    let guided_by = |t: f64, logits_bnv: Tensor<B, 3>| match guided {
        true => {
            let cond = logits_bnv.clone().slice_dim(0, 0..b);
            let uncond = logits_bnv.slice_dim(0, b..2 * b);
            guide(cond, uncond, t)
        }
        false => logits_bnv,
    };
    for k in 0..schedule.len() {
        let (mut codes_bnc, mut tokens_bn, logits_bnv);
        if k == 0 && first_scale.is_behind_the_class_token() {
            let first = reveal_first(model, pyramid, &mut cache, &request, guided, guided_by);
            (tokens_bn, codes_bnc, logits_bnv) =
                (first.tokens_bn, first.codes_bnc, first.logits_bnv);
        } else {
            let t = sampler.guidance.strength(k, schedule);
            let free_bnv = guided_by(t, model.step(&mut cache, input.take()));
            logits_bnv = restrict(free_bnv, &[schedule.size(k)], |size| pyramid.n_codes(size));
            let chosen = sampler.choice.choose(logits_bnv.clone(), streams, schedule, k);
            codes_bnc = chosen.codes(pyramid);
            tokens_bn = chosen.tokens();
        }
        last_logits = Some(logits_bnv);
        if let Some(kept) = kept {
            codes_bnc = kept.codes(k, codes_bnc, pyramid);
            tokens_bn = kept.tokens(k, tokens_bn);
        }
        input = pyramid.paint(&mut canvas, schedule, k, codes_bnc);
        if painted(k, &canvas).is_break() {
            return None;
        }
        if guided {
            input = input.map(|x| x.repeat_dim(0, 2));
        }
        tokens.push(tokens_bn);
    }
    let last_logits_bnv = last_logits.expect("a schedule has at least one scale");
    Some(Generated { tokens, canvas, last_logits_bnv })
}
