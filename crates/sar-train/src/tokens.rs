//! Images as the tokens that a backbone is trained and measured on.
//!
//! Shapes: b batch, l tokens of the pyramid, c code channels, v codes.

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};
use sar_core::{CodePyramid, ScaleSchedule, SeedTree, paint_all};
use sar_data::ImageBatch;
use sar_tokenizer::Tokenizer;

/// Images as a backbone sees them, on the backend without autodiff.
#[derive(Clone, Debug)]
pub struct TokenBatch<B: Backend> {
    /// Class of each image.
    pub labels: Vec<usize>,
    /// The stream of each image, keyed by its absolute position in training.
    pub streams: Vec<SeedTree>,
    /// The scales.
    pub schedule: ScaleSchedule,
    /// Ground truth, `[b, l]`.
    pub tokens_bl: Tensor<B, 2, Int>,
}

impl<B: Backend> TokenBatch<B> {
    /// Images as the tokens of a frozen tokenizer.
    pub(crate) fn encode(
        tokenizer: &Tokenizer<B>,
        images: ImageBatch,
        schedule: ScaleSchedule,
        device: &B::Device,
    ) -> Self {
        let h_bchw = tokenizer.encode(images.tensor(device));
        Self::quantize(tokenizer, h_bchw, (images.labels, images.streams), schedule)
    }

    /// Latents of a frozen tokenizer as its tokens; `of` says the images' classes and streams.
    pub(crate) fn quantize(
        tokenizer: &Tokenizer<B>,
        h_bchw: Tensor<B, 4>,
        of: (Vec<usize>, Vec<SeedTree>),
        schedule: ScaleSchedule,
    ) -> Self {
        let tokens_bl = tokenizer.tokens(h_bchw, &schedule);
        Self { tokens_bl, labels: of.0, streams: of.1, schedule }
    }
}

/// The most probable token everywhere: `[b, l, v]` to `[b, l]`.
pub fn argmax_tokens<B: Backend>(logits_blv: Tensor<B, 3>) -> Tensor<B, 2, Int> {
    logits_blv.argmax(2).squeeze_dim(2)
}

/// The inputs of a pass over all scales, `[b, l - 1, c]`; none for a single scale.
pub fn inputs<B: Backend, P: CodePyramid<B>>(
    pyramid: &P,
    schedule: &ScaleSchedule,
    tokens_bl: Tensor<B, 2, Int>,
) -> Option<Tensor<B, 3>> {
    let (inputs, _) = paint_all(pyramid, schedule, tokens_bl);
    (!inputs.is_empty()).then(|| Tensor::cat(inputs, 1))
}

/// Labels on the device.
pub fn labels_tensor<B: Backend>(
    labels: impl Iterator<Item = usize>,
    device: &B::Device,
) -> Tensor<B, 1, Int> {
    let labels: Vec<i64> = labels.map(|label| label as i64).collect();
    let n = labels.len();
    Tensor::from_data(TensorData::new(labels, [n]), device)
}
