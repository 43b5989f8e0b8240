//! Sampling and decoding: images from a tokenizer and a backbone.
//!
//! Shapes: b images, c code channels, h w latent positions.

use burn::tensor::backend::Backend;
use sar_core::{ScaleSchedule, SeedTree};
use sar_data::{RgbImage, to_images};
use sar_model::Backbone;
use sar_rollout::{Kept, Request, Sampler, generate_watched};
use sar_tokenizer::Tokenizer;

/// What to sample.
#[derive(Clone, Debug)]
pub struct SampleRequest<B: Backend> {
    /// Class of each image; the number of classes is the null class, which is no class at all.
    pub labels: Vec<usize>,
    /// Stream of each image.
    pub streams: Vec<SeedTree>,
    /// The scales.
    pub scales: ScaleSchedule,
    /// Guidance and filters.
    pub sampler: Sampler,
    /// Tokens of source images that stay.
    pub kept: Option<Kept<B>>,
}

/// The stream of the `i`-th sample of a class: a run's sheets and `sar sample` with the run's seed
/// draw the same images.
pub fn sample_stream(seed: SeedTree, class: usize, i: usize) -> SeedTree {
    seed.child("samples").at(class as u64).at(i as u64)
}

/// Samples and decodes.
pub fn sample_images<B: Backend>(
    tokenizer: &Tokenizer<B>,
    model: &Backbone<B>,
    request: &SampleRequest<B>,
    device: &B::Device,
) -> Vec<RgbImage> {
    let mut images = Vec::new();
    let last = request.scales.len() - 1;
    sample(tokenizer, model, request, device, |k| k == last, |_, decoded| images = decoded);
    images
}

/// Samples, and decodes what there is after every scale: `decoded` is called with each scale and its
/// images, coarse to fine, of the size that the scale decodes to.
pub fn sample_previews<B: Backend>(
    tokenizer: &Tokenizer<B>,
    model: &Backbone<B>,
    request: &SampleRequest<B>,
    device: &B::Device,
    decoded: impl FnMut(usize, Vec<RgbImage>),
) {
    sample(tokenizer, model, request, device, |_| true, decoded);
}

fn sample<B: Backend>(
    tokenizer: &Tokenizer<B>,
    model: &Backbone<B>,
    request: &SampleRequest<B>,
    device: &B::Device,
    is_wanted: impl Fn(usize) -> bool,
    mut decoded: impl FnMut(usize, Vec<RgbImage>),
) {
    let SampleRequest { labels, streams, scales, sampler, kept } = request;
    let request = Request {
        labels,
        images: streams,
        schedule: scales,
        sampler: *sampler,
        kept: kept.as_ref(),
    };
    generate_watched(model, tokenizer, request, device, |k, canvas| {
        if is_wanted(k) {
            let canvas_bchw = canvas.clone().expect("a scale is painted");
            decoded(k, to_images(tokenizer.decode(canvas_bchw)));
        }
    });
}
