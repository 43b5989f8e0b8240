//! Images as the tokens that a backbone is trained and measured on.
//!
//! Shapes: b batch, l tokens of the pyramid, c code channels, v codes.

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Bool, Int, Tensor, TensorData};
use sar_core::first_scale::{MaskLoss, order};
use sar_core::{CodePyramid, FirstScale, ScaleSchedule, SeedTree, paint_all};
use sar_data::ImageBatch;
use sar_model::FirstToken;
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

/// Which tokens of a masked first scale are masked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Masking {
    /// So many as the recipe draws for each image: training.
    Drawn,
    /// All of them, as in the first step of sampling: figures.
    All,
}

/// What a teacher-forced pass is given of a batch's first scale.
#[derive(Clone, Debug)]
pub struct FirstGiven<B: Backend> {
    /// What its sequences begin with.
    pub token: FirstToken<B>,
    /// Where a token is predicted and not shown, `[b, n]`; none where all of them are.
    masked_bn: Option<Tensor<B, 2, Bool>>,
    /// Weights of the tokens' losses, `[b, n]`, of mean 1 in every image; none where all are 1.
    weights_bn: Option<Tensor<B, 2>>,
}

impl<B: Backend> FirstGiven<B> {
    /// What a batch gives to a model of a kind; masks and orders are functions of the images' streams.
    pub fn of<P: CodePyramid<B>>(
        first_scale: FirstScale,
        pyramid: &P,
        batch: &TokenBatch<B>,
        masking: Masking,
    ) -> Self {
        let device = batch.tokens_bl.device();
        let (b, n) = (batch.labels.len(), batch.schedule.size(0).tokens());
        let codes_bnc = || pyramid.look_up(batch.tokens_bl.clone().slice_dim(1, 0..n));
        let shown = |token| Self { token, masked_bn: None, weights_bn: None };
        let (share, loss) = match first_scale {
            FirstScale::ClassToken {} => return shown(FirstToken::Start),
            FirstScale::RandomOrder {} => {
                let orders = batch.streams.iter().map(|stream| order(n, *stream)).collect();
                return shown(FirstToken::Ordered { codes_bnc: codes_bnc(), orders });
            }
            FirstScale::Masked { share, loss, .. } => (share, loss),
        };
        let mask = |stream: &SeedTree| match masking {
            Masking::Drawn => share.mask(n, stream.child("mask")),
            Masking::All => vec![true; n],
        };
        let masks: Vec<Vec<bool>> = batch.streams.iter().map(mask).collect();
        let weights = masks.iter().flat_map(|mask| {
            let count = mask.iter().filter(|masked| **masked).count();
            mask.iter().map(move |masked| if *masked { n as f32 / count as f32 } else { 0.0 })
        });
        let weights = TensorData::new(weights.collect::<Vec<f32>>(), [b, n]);
        let masked = TensorData::new(masks.concat(), [b, n]);
        let masked_bn = Tensor::<B, 2, Bool>::from_data(masked, &device);
        Self {
            token: FirstToken::Masked { codes_bnc: codes_bnc(), masked_bn: masked_bn.clone() },
            masked_bn: Some(masked_bn),
            weights_bn: (loss == MaskLoss::Masked).then(|| Tensor::from_data(weights, &device)),
        }
    }

    /// Whether the first scale is one behind the class token.
    pub fn is_behind_the_class_token(&self) -> bool {
        matches!(self.token, FirstToken::Masked { .. } | FirstToken::Ordered { .. })
    }

    /// Predictions of all scales, with the true token where it was shown: `[b, l]`.
    pub fn behind_what_is_shown(
        &self,
        predicted_bl: Tensor<B, 2, Int>,
        truth_bl: &Tensor<B, 2, Int>,
    ) -> Tensor<B, 2, Int> {
        let Some(masked_bn) = &self.masked_bn else { return predicted_bl };
        let [b, n] = masked_bn.dims();
        let part = |x_bl: &Tensor<B, 2, Int>| x_bl.clone().slice_dim(1, 0..n);
        let first_bn = part(truth_bl).mask_where(masked_bn.clone(), part(&predicted_bl));
        predicted_bl.slice_assign([0..b, 0..n], first_bn)
    }

    /// Token losses in their weights: `[b, l]`.
    pub fn weigh<A: AutodiffBackend<InnerBackend = B>>(
        &self,
        loss_bl: Tensor<A, 2>,
    ) -> Tensor<A, 2> {
        let Some(weights_bn) = &self.weights_bn else { return loss_bl };
        let ([_, n], [_, l]) = (weights_bn.dims(), loss_bl.dims());
        let first_bn = loss_bl.clone().slice_dim(1, 0..n) * Tensor::from_inner(weights_bn.clone());
        if n == l {
            return first_bn;
        }
        Tensor::cat(vec![first_bn, loss_bl.slice_dim(1, n..l)], 1)
    }
}

/// The most probable token everywhere: `[b, l, v]` to `[b, l]`.
pub fn argmax_tokens<B: Backend>(logits_blv: Tensor<B, 3>) -> Tensor<B, 2, Int> {
    logits_blv.argmax(2).squeeze_dim(2)
}

/// The inputs of a pass over all scales, `[b, l - n, c]`, where the first has n tokens; none for a single
/// scale.
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
