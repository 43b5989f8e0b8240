//! Named reductions of token losses.

use burn::tensor::{Tensor, backend::Backend};
use sar_core::ScaleSchedule;
use serde::{Deserialize, Serialize};

/// How the losses of a pyramid's tokens become one number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Reduction {
    /// Every token counts the same, 1/L (the released trainers).
    MeanTokens,
    /// Every scale counts the same, whatever its number of tokens.
    MeanScales,
    /// Every scale, as the mean of its tokens, has a weight of its own (HMAR, arXiv:2506.04421): one for each
    /// scale of a fixed schedule, coarse to fine, of which the shares count.
    Scales(Vec<f64>),
}

impl Reduction {
    /// # Shapes
    /// - `loss_bl`: `[b, l]`, the tokens of `schedule`
    /// - output: one value
    ///
    /// # Panics
    /// If weights are not as many as the scales.
    pub fn apply<B: Backend>(
        &self,
        loss_bl: Tensor<B, 2>,
        schedule: &ScaleSchedule,
    ) -> Tensor<B, 1> {
        let mean = |range| mean_tokens(loss_bl.clone().slice_dim(1, range));
        match self {
            Self::MeanTokens => mean_tokens(loss_bl),
            Self::MeanScales => {
                let n_scales = schedule.len() as f64;
                Tensor::cat(schedule.ranges().map(mean).collect(), 0).sum() / n_scales
            }
            Self::Scales(weights) => {
                assert_eq!(weights.len(), schedule.len(), "a weight for each scale");
                let sum: f64 = weights.iter().sum();
                let weighted = schedule.ranges().zip(weights);
                let weighted = weighted.map(|(range, weight)| mean(range) * (*weight / sum));
                Tensor::cat(weighted.collect(), 0).sum()
            }
        }
    }
}

/// Mean over all tokens of all images, reduced dimension by dimension: a full sum over many
/// elements is not deterministic on every backend.
///
/// # Shapes
/// - `loss_bl`: `[b, l]`
/// - output: one value
pub fn mean_tokens<B: Backend>(loss_bl: Tensor<B, 2>) -> Tensor<B, 1> {
    loss_bl.mean_dim(1).mean_dim(0).reshape([1])
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn_flex::Flex;

    #[test]
    fn tokens_and_scales_weigh_as_named() {
        let schedule: ScaleSchedule = "1_2".parse().unwrap();
        let loss = Tensor::<Flex, 2>::from_floats(
            [[10.0, 1.0, 1.0, 1.0, 1.0], [20.0, 3.0, 3.0, 3.0, 3.0]],
            &Default::default(),
        );
        let value = |r: Reduction| r.apply(loss.clone(), &schedule).into_scalar();
        assert!((value(Reduction::MeanTokens) - 46.0 / 10.0).abs() < 1e-6);
        assert!((value(Reduction::MeanScales) - (15.0 + 2.0) / 2.0).abs() < 1e-6);
        // A quarter of 15 and three of 2.
        assert!((value(Reduction::Scales(vec![0.5, 1.5])) - 5.25).abs() < 1e-6);
        assert!((value(Reduction::Scales(vec![0.0, 7.0])) - 2.0).abs() < 1e-6);
    }
}
