//! A first scale of several tokens behind the class token, step by step: each predicts the unknown tokens,
//! draws them, and makes some of them known.
//!
//! ```text
//! guidance in step t of T:  0.5 scale (1 + t / T), t = 1 .. T   (constant where the rule is)
//! ```
//! Finer scales see a masked scale as its last step saw it: what that step made known is still masked there, as most
//! of the scale is in training.
//!
//! Shapes: b images, n tokens of the scale, p of them at a time, c code channels, v codes.

use burn::tensor::activation::log_softmax;
use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use sar_core::first_scale::{Reveal, order, revealed};
use sar_core::{CodePyramid, FirstScale, ScaleModel, ScaleSize, SeedTree, restrict};

use crate::generate::{Chosen, Request};

/// What stands at the places of a first scale, row-major.
pub(crate) struct Revealed<B: Backend> {
    pub(crate) tokens_bn: Tensor<B, 2, Int>,
    pub(crate) codes_bnc: Tensor<B, 3>,
    /// Guided, unfiltered logits of the step that made a token known; zeros where one was kept.
    pub(crate) logits_bnv: Tensor<B, 3>,
}

/// Some places of every image, and what stands there.
struct Part<B: Backend> {
    places: Vec<Vec<usize>>,
    tokens_bp: Tensor<B, 2, Int>,
    codes_bpc: Tensor<B, 3>,
    logits_bpv: Tensor<B, 3>,
}

/// Generates a first scale; kept tokens are known from the start.
///
/// `guide` mixes the logits of both halves of the rows, if there are two, with a strength.
pub(crate) fn reveal_first<B, M, P>(
    model: &M,
    pyramid: &P,
    cache: &mut M::Cache,
    request: &Request<'_, B>,
    is_guided: bool,
    guide: impl Fn(f64, Tensor<B, 3>) -> Tensor<B, 3>,
) -> Revealed<B>
where
    B: Backend,
    M: ScaleModel<B>,
    P: CodePyramid<B>,
{
    let Request { streams, schedule, sampler, kept, .. } = *request;
    let n = schedule.size(0).tokens();
    let (steps, reveal) = match model.first_scale() {
        FirstScale::Masked { steps, reveal, .. } => (steps, Some(reveal)),
        _ => (n, None),
    };
    let rows = |places: &[Vec<usize>]| [places, if is_guided { places } else { &[] }].concat();
    let of_rows = |codes_bpc: Tensor<B, 3>| match is_guided {
        true => codes_bpc.repeat_dim(0, 2),
        false => codes_bpc,
    };
    let is_kept = |place: usize| kept.is_some_and(|kept| kept.keeps(0, place));
    let n_kept = (0..n).filter(|place| is_kept(*place)).count();
    // What is kept comes first.
    let mut unknown: Vec<Vec<usize>> = streams.iter().map(|stream| order(n, *stream)).collect();
    unknown.iter_mut().for_each(|order| order.sort_by_key(|place| !is_kept(*place)));
    let mut parts: Vec<Part<B>> = Vec::new();
    if let (Some(kept), Some(_), 1..) = (kept, reveal, n_kept) {
        let places: Vec<Vec<usize>> =
            unknown.iter_mut().map(|order| order.drain(..n_kept).collect()).collect();
        let tokens_bp = kept.tokens_at(0, &places);
        let codes_bpc = pyramid.look_up(tokens_bp.clone());
        model.reveal(cache, &rows(&places), of_rows(codes_bpc.clone()));
        if n_kept == n {
            // Nothing is unknown, and the finer scales see it all the same.
            model.predict(cache, &rows(&places));
        }
        let [v, _] = pyramid.codes().dims();
        let logits_bpv = Tensor::zeros([places.len(), n_kept, v], &codes_bpc.device());
        parts.push(Part { places, tokens_bp, codes_bpc, logits_bpv });
    }
    let counts = revealed(unknown.first().map_or(0, Vec::len), steps);
    let mut done = 0;
    for (t, &count) in counts.iter().enumerate() {
        let (now, is_last) = (count - done, t + 1 == counts.len());
        done = count;
        let places: Vec<Vec<usize>> = match reveal {
            Some(_) => unknown.clone(),
            None => unknown.iter().map(|order| order[..now].to_vec()).collect(),
        };
        let strength = sampler.guidance.first_strength(t + 1, counts.len());
        let free_bpv = guide(strength, model.predict(cache, &rows(&places)));
        let row = ScaleSize { height: 1, width: places[0].len() };
        let logits_bpv = restrict(free_bpv, &[row], |_| pyramid.n_codes(schedule.size(0)));
        let chosen = match kept.filter(|_| is_kept(places[0][0])) {
            Some(kept) => Chosen::Tokens(kept.tokens_at(0, &places)),
            None => {
                let stream = |stream: &SeedTree| (stream.child("first").at(t as u64), 0);
                let streams: Vec<_> = streams.iter().map(stream).collect();
                sampler.choice.choose_at(&places, logits_bpv.clone(), &streams, 0.0)
            }
        };
        let codes_bpc = chosen.codes(pyramid);
        let tokens_bp = chosen.tokens();
        let taken = match reveal {
            Some(Reveal::Confident) if !is_last => {
                most_confident(logits_bpv.clone(), tokens_bp.clone(), now)
            }
            _ => vec![(0..now).collect(); places.len()],
        };
        let part = Part { places, tokens_bp, codes_bpc, logits_bpv }.only(&taken);
        for (unknown, known) in unknown.iter_mut().zip(&part.places) {
            unknown.retain(|place| !known.contains(place));
        }
        model.reveal(cache, &rows(&part.places), of_rows(part.codes_bpc.clone()));
        parts.push(part);
    }
    Part::joined(parts).row_major()
}

/// For each image the numbers of its `n` tokens whose probability is the largest; of equal ones the first.
fn most_confident<B: Backend>(
    logits_bpv: Tensor<B, 3>,
    tokens_bp: Tensor<B, 2, Int>,
    n: usize,
) -> Vec<Vec<usize>> {
    let [_, p, _] = logits_bpv.dims();
    let log_p_bp1 = log_softmax(logits_bpv, 2).gather(2, tokens_bp.unsqueeze_dim(2));
    let log_p: Vec<f32> = log_p_bp1.into_data().iter::<f32>().collect();
    let of_image = |log_p: &[f32]| {
        let mut best: Vec<usize> = (0..p).collect();
        best.sort_by(|a, b| log_p[*b].total_cmp(&log_p[*a]));
        best.truncate(n);
        best
    };
    log_p.chunks(p).map(of_image).collect()
}

impl<B: Backend> Part<B> {
    /// Some of the places of each image, by their numbers here.
    fn only(self, taken: &[Vec<usize>]) -> Self {
        let Self { places, tokens_bp, codes_bpc, logits_bpv } = self;
        let ([b, p, c], [.., v]) = (codes_bpc.dims(), logits_bpv.dims());
        let n = taken[0].len();
        let rows = taken
            .iter()
            .enumerate()
            .flat_map(|(image, taken)| taken.iter().map(move |number| (image * p + number) as i64));
        let rows = TensorData::new(rows.collect::<Vec<_>>(), [b * n]);
        let rows = Tensor::<B, 1, Int>::from_data(rows, &codes_bpc.device());
        let places = places
            .iter()
            .zip(taken)
            .map(|(places, taken)| taken.iter().map(|number| places[*number]).collect());
        let of_rows = |x_bpc: Tensor<B, 3>, c: usize| {
            x_bpc.reshape([b * p, c]).select(0, rows.clone()).reshape([b, n, c])
        };
        Self {
            places: places.collect(),
            tokens_bp: tokens_bp.reshape([b * p]).select(0, rows.clone()).reshape([b, n]),
            codes_bpc: of_rows(codes_bpc, c),
            logits_bpv: of_rows(logits_bpv, v),
        }
    }

    /// The places of one after those of the other.
    fn joined(parts: Vec<Self>) -> Self {
        let images = parts[0].places.len();
        let of_image =
            |image: usize| parts.iter().flat_map(|part| part.places[image].clone()).collect();
        Self {
            places: (0..images).map(of_image).collect(),
            tokens_bp: Tensor::cat(parts.iter().map(|part| part.tokens_bp.clone()).collect(), 1),
            codes_bpc: Tensor::cat(parts.iter().map(|part| part.codes_bpc.clone()).collect(), 1),
            logits_bpv: Tensor::cat(parts.iter().map(|part| part.logits_bpv.clone()).collect(), 1),
        }
    }

    /// All places of the scale in their order.
    fn row_major(self) -> Revealed<B> {
        let number_of = |places: &Vec<usize>| {
            let mut numbers: Vec<usize> = (0..places.len()).collect();
            numbers.sort_by_key(|number| places[*number]);
            numbers
        };
        let numbers: Vec<Vec<usize>> = self.places.iter().map(number_of).collect();
        let Self { tokens_bp, codes_bpc, logits_bpv, .. } = self.only(&numbers);
        Revealed { tokens_bn: tokens_bp, codes_bnc: codes_bpc, logits_bnv: logits_bpv }
    }
}
