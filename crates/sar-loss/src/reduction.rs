//! Named reductions of token losses.

use burn::tensor::{Tensor, backend::Backend};
use sar_core::ScaleSchedule;
use serde::{Deserialize, Serialize};

/// How the losses of a pyramid's tokens become one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reduction {
    /// Every token counts the same, 1/L (the released trainers).
    MeanTokens,
    /// Every scale counts the same, whatever its number of tokens.
    MeanScales,
}

impl Reduction {
    /// # Shapes
    /// - `loss_bl`: `[b, l]`, the tokens of `schedule`
    /// - output: one value
    pub fn apply<B: Backend>(
        self,
        loss_bl: Tensor<B, 2>,
        schedule: &ScaleSchedule,
    ) -> Tensor<B, 1> {
        match self {
            Self::MeanTokens => mean_tokens(loss_bl),
            Self::MeanScales => {
                let n_scales = schedule.len() as f64;
                let means = schedule
                    .ranges()
                    .map(|range| mean_tokens(loss_bl.clone().slice_dim(1, range)))
                    .collect();
                Tensor::cat(means, 0).sum() / n_scales
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
    }
}
