//! What a scale-wise model and a tokenizer are to a rollout.
//!
//! Rollouts are written against these two traits, so that a model of another family can be rolled
//! out, and trained with SAR, without the rest of this workspace.
//!
//! Shapes: b batch, n tokens of one scale, l tokens of the whole pyramid, c channels of a code,
//! v codes.

use burn::tensor::{Int, Tensor, TensorData, backend::Backend};

use crate::{FirstScale, ScaleSchedule, ScaleSize};

/// A transformer that predicts each scale from the coarser ones, one scale at a time.
pub trait ScaleModel<B: Backend> {
    /// What a partial pass has computed so far: keys, values and the condition.
    type Cache;

    /// The label of the unconditional class.
    fn null_class(&self) -> usize;

    /// How the tokens of the first scale come about: as the class token's, unless a model says otherwise.
    fn first_scale(&self) -> FirstScale {
        FirstScale::ClassToken {}
    }

    /// Starts a pass over `schedule` for `labels_b` with an empty cache of the pass's full length.
    fn begin(&self, labels_b: Tensor<B, 1, Int>, schedule: &ScaleSchedule) -> Self::Cache;

    /// Predicts places of a first scale that is not the class token's from those that were revealed so far.
    /// Call it before every step that reveals some, and once at least.
    ///
    /// # Shapes
    /// - `places`: for each of b rows p places of the scale, row-major; one where they follow each other
    /// - output: `[b, p, v]`, unnormalized log-probabilities
    ///
    /// # Panics
    /// If the first scale is the class token's.
    fn predict(&self, _: &mut Self::Cache, _places: &[Vec<usize>]) -> Tensor<B, 3> {
        panic!("the class token's scale is predicted in one step")
    }

    /// Says what stands at places of such a first scale.
    ///
    /// # Shapes
    /// - `places`: for each of b rows p places of the scale, row-major; where they follow each other, those
    ///   that were predicted last
    /// - `codes_bpc`: `[b, p, c]`
    ///
    /// # Panics
    /// If the first scale is the class token's.
    fn reveal(&self, _: &mut Self::Cache, _places: &[Vec<usize>], _codes_bpc: Tensor<B, 3>) {
        panic!("the class token's scale has nothing to reveal")
    }

    /// Runs the next scale only; call it once per scale, in order, the first one apart if it is predicted
    /// and revealed.
    ///
    /// # Shapes
    /// - `input_bnc`: `None` for the class token's scale, else `[b, n, c]`, the input of that scale
    /// - output: `[b, n, v]`, unnormalized log-probabilities
    fn step(&self, cache: &mut Self::Cache, input_bnc: Option<Tensor<B, 3>>) -> Tensor<B, 3>;
}

/// The part of a multi-scale tokenizer that turns chosen codes into the next scale's input.
///
/// The canvas is f_hat (VAR, algorithm 2): the code map that has been built up from the scales so
/// far, and that the decoder makes an image of after the last. What a scale's codes do to it is the
/// tokenizer's business:
///
/// ```text
/// f_hat_k = f_hat_{k-1} + phi_k(up(codes_k)),  f_hat_0 = 0     residual (VAR)
/// f_hat_k = codes_k                                            direct (FlexVAR)
/// input of scale k+1 = f_hat_k, resampled to the size of scale k+1
/// ```
pub trait CodePyramid<B: Backend> {
    /// What has been painted so far, f_hat; the default is the canvas before the first scale.
    type Canvas: Clone + Default;

    /// All codes, `[v, c]`.
    fn codes(&self) -> Tensor<B, 2>;

    /// How many of the codes, the first ones, a scale of this size may use: all, unless the codebook grows
    /// with the scales.
    fn n_codes(&self, _size: ScaleSize) -> usize {
        let [v, _] = self.codes().dims();
        v
    }

    /// Paints the codes of scale `k`, f_hat_{k-1} to f_hat_k, and returns the input of scale `k + 1`,
    /// or `None` after the last scale.
    ///
    /// # Shapes
    /// - `codes_bnc`: `[b, n_k, c]`, codes or mixtures of codes
    /// - output: `[b, n_{k+1}, c]`
    fn paint(
        &self,
        canvas: &mut Self::Canvas,
        schedule: &ScaleSchedule,
        k: usize,
        codes_bnc: Tensor<B, 3>,
    ) -> Option<Tensor<B, 3>>;

    /// The codes of tokens.
    ///
    /// # Shapes
    /// - `tokens_bn`: `[b, n]`, each in `0..v`
    /// - output: `[b, n, c]`
    fn look_up(&self, tokens_bn: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        let [b, n] = tokens_bn.dims();
        let rows = self.codes().select(0, tokens_bn.reshape([b * n]));
        let [_, c] = rows.dims();
        rows.reshape([b, n, c])
    }

    /// Mixtures of all codes.
    ///
    /// # Shapes
    /// - `weights_bnv`: `[b, n, v]`, each row of sum 1
    /// - output: `[b, n, c]`
    fn mix(&self, weights_bnv: Tensor<B, 3>) -> Tensor<B, 3> {
        let [b, n, v] = weights_bnv.dims();
        let rows = weights_bnv.reshape([b * n, v]).matmul(self.codes());
        let [_, c] = rows.dims();
        rows.reshape([b, n, c])
    }
}

/// Logits in which the codes that a scale may not use have probability 0, see [`CodePyramid::n_codes`].
///
/// # Shapes
/// - `logits_bnv` and output: `[b, n, v]`, the tokens of `sizes`, coarse to fine
/// - `n_codes`: how many codes a scale of a size may use
pub fn restrict<B: Backend>(
    logits_bnv: Tensor<B, 3>,
    sizes: &[ScaleSize],
    n_codes: impl Fn(ScaleSize) -> usize,
) -> Tensor<B, 3> {
    /// As good as minus infinity, and finite in whatever is made of it.
    const FORBIDDEN: f64 = -1e9;
    let [_, n, v] = logits_bnv.dims();
    let limits: Vec<i64> = sizes
        .iter()
        .flat_map(|size| std::iter::repeat_n(n_codes(*size) as i64, size.tokens()))
        .collect();
    if limits.iter().all(|limit| *limit >= v as i64) {
        return logits_bnv;
    }
    let device = logits_bnv.device();
    let limits_nv = Tensor::<B, 1, Int>::from_data(TensorData::new(limits, [n]), &device)
        .reshape([n, 1])
        .repeat_dim(1, v);
    let codes_nv =
        Tensor::<B, 1, Int>::arange(0..v as i64, &device).reshape([1, v]).repeat_dim(0, n);
    let forbidden_nv = codes_nv.greater_equal(limits_nv).float() * FORBIDDEN;
    logits_bnv + forbidden_nv.reshape([1, n, v])
}

/// Paints a whole pyramid: the inputs of scales `1..K` when each scale's tokens are given.
///
/// # Shapes
/// - `tokens_bl`: `[b, l]`, all scales, coarse to fine
/// - output: one `[b, n_k, c]` for each of the scales `1..K`, and the canvas after the last
pub fn paint_all<B: Backend, P: CodePyramid<B>>(
    pyramid: &P,
    schedule: &ScaleSchedule,
    tokens_bl: Tensor<B, 2, Int>,
) -> (Vec<Tensor<B, 3>>, P::Canvas) {
    let mut canvas = P::Canvas::default();
    let inputs = schedule
        .ranges()
        .enumerate()
        .filter_map(|(k, range)| {
            let codes_bnc = pyramid.look_up(tokens_bl.clone().slice_dim(1, range));
            pyramid.paint(&mut canvas, schedule, k, codes_bnc)
        })
        .collect();
    (inputs, canvas)
}
