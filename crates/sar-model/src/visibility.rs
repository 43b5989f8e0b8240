//! What a scale sees of the coarser ones.
//!
//! Shapes: l tokens of the sequence.

use std::fmt;
use std::ops::Range;

use burn::tensor::backend::Backend;
use sar_core::{FirstScale, ScaleSchedule};
use sar_kernels::Visible;
use serde::{Deserialize, Serialize};

/// What the tokens of a scale see, beside the class token and their own scale. Weights that were trained
/// with one are sampled with the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Visibility {
    /// Every coarser scale (VAR, FlexVAR).
    AllCoarser,
    /// Nothing: what a scale knows of the coarser ones is in its input (Markov; section 3.3 of the SAR
    /// paper). A sampler then keeps the keys and values of the class token alone.
    Own,
    /// So many scales before, 1 or more.
    Last(usize),
}

impl Visibility {
    /// The coarsest scale that scale `k` sees.
    pub fn first_seen(self, k: usize) -> usize {
        match self {
            Self::AllCoarser => 0,
            Self::Own => k,
            Self::Last(n) => k.saturating_sub(n),
        }
    }
}

impl fmt::Display for Visibility {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AllCoarser => f.write_str("all coarser scales"),
            Self::Own => f.write_str("its own scale only"),
            Self::Last(1) => f.write_str("its own scale and the one before"),
            Self::Last(n) => write!(f, "its own scale and the {n} before"),
        }
    }
}

/// The tokens of a sequence, scale by scale. The first of all is the class token, which every token sees.
#[derive(Clone, Debug)]
pub(crate) struct Sequence {
    /// How many belong to each scale, the class token to the first.
    scales: Vec<usize>,
    /// Whether a token of the first scale sees those before it alone.
    is_causal: bool,
}

impl Sequence {
    /// The sequence of all scales: the first is the class token's, or stands behind it.
    pub(crate) fn new(schedule: &ScaleSchedule, first: FirstScale) -> Self {
        let mut scales: Vec<usize> = schedule.sizes().iter().map(|size| size.tokens()).collect();
        match first {
            FirstScale::ClassToken {} => {}
            FirstScale::Masked { .. } => scales[0] += 1,
            FirstScale::RandomOrder {} => scales[0] = 1 + 2 * scales[0],
        }
        Self { scales, is_causal: first == FirstScale::RandomOrder {} }
    }

    /// Where scale `k` lies.
    pub(crate) fn range(&self, k: usize) -> Range<usize> {
        let start = self.scales[..k].iter().sum();
        start..start + self.scales[k]
    }

    /// What every token sees.
    pub(crate) fn visible<B: Backend>(&self, visibility: Visibility) -> Visible<B> {
        let ranges = (0..self.scales.len()).flat_map(|k| {
            let seen = self.range(visibility.first_seen(k)).start..self.range(k).end;
            let is_causal = self.is_causal && k == 0;
            (0..self.scales[k]).map(move |t| if is_causal { 0..t + 1 } else { seen.clone() })
        });
        Visible::new(1, ranges)
    }

    /// How many of the latest tokens have to be kept after scale `k` for those to come, beside the class
    /// token.
    pub(crate) fn kept_after(&self, k: usize, visibility: Visibility) -> usize {
        match k + 1 {
            next if next < self.scales.len() => {
                self.range(k).end - self.range(visibility.first_seen(next)).start
            }
            _ => 0,
        }
    }

    /// The most tokens that are kept at any time, the class token among them.
    pub(crate) fn most_kept(&self, visibility: Visibility) -> usize {
        let kept = |k| (1 + self.kept_after(k, visibility)).min(self.range(k).end);
        let after = (0..self.scales.len()).map(kept).max().unwrap_or(0);
        // Those of a first scale that comes token by token see all before them.
        if self.is_causal { after.max(self.scales[0]) } else { after }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_by_hand() {
        let class = FirstScale::ClassToken {};
        let sequence = Sequence::new(&"1_2_3_4".parse().unwrap(), class);
        let kept = |visibility| {
            let after = [0, 1, 2, 3].map(|k| sequence.kept_after(k, visibility));
            (after, sequence.most_kept(visibility))
        };
        assert_eq!(kept(Visibility::AllCoarser), ([1, 5, 14, 0], 14));
        assert_eq!(kept(Visibility::Own), ([0, 0, 0, 0], 1));
        assert_eq!(kept(Visibility::Last(1)), ([1, 4, 9, 0], 10));
        assert_eq!(kept(Visibility::Last(2)), ([1, 5, 13, 0], 14));
        assert_eq!(kept(Visibility::Last(9)), kept(Visibility::AllCoarser));
        let sequence = Sequence::new(&"2_3".parse().unwrap(), FirstScale::RandomOrder {});
        assert_eq!(sequence.kept_after(0, Visibility::Own), 0);
        assert_eq!(sequence.kept_after(0, Visibility::AllCoarser), 9);
        assert_eq!([0, 1].map(|k| sequence.range(k)), [0..9, 9..18]);
        assert_eq!(sequence.most_kept(Visibility::Own), 9);
    }
}
