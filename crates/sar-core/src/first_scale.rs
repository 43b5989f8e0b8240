//! How the tokens of the first scale come about: the class token's, or a coarse scale of several tokens
//! that are masked and revealed (MaskGIT, arXiv:2202.04200) or that follow each other in a random order.
//!
//! Shapes: n tokens of the first scale.

use std::f64::consts::{FRAC_PI_2, PI};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::SeedTree;

/// How the tokens of the first scale come about. Weights that were trained with one kind are sampled with
/// the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum FirstScale {
    /// It is 1x1: the class token itself, which predicts it (VAR, FlexVAR).
    ClassToken {},
    /// Behind the bare class token, of any size, all at once from those that are known already (section 3.3
    /// of the SAR paper): class token and first scale see each other.
    Masked {
        /// How many tokens are masked in a step of training.
        share: MaskShare,
        /// Whose cross-entropy counts in training.
        loss: MaskLoss,
        /// Steps of sampling (published: 8); no more than the scale has tokens are taken.
        steps: usize,
        /// Which tokens a step of sampling reveals.
        reveal: Reveal,
    },
    /// Behind the bare class token, of any size, one after the other in a random order: pairs of an
    /// instruction, which says the place and predicts its token, and the token. Each sees those before it.
    RandomOrder {},
}

/// The share of masked tokens, drawn for each image and step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum MaskShare {
    /// Normal of mean 1 and deviation 0.25, truncated to [0.7, 1] (published).
    TruncatedNormal,
    /// `cos(r pi / 2)`, r uniform (MaskGIT).
    Cosine,
}

/// Which tokens of a masked scale count in training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MaskLoss {
    /// The masked ones, which stand for all: those of an image weigh together what the whole scale would.
    Masked,
    /// All of them.
    All,
}

/// Which of the unknown tokens a step of sampling reveals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reveal {
    /// The next ones of an order that is drawn once for each image.
    Random,
    /// Those whose drawn code is the most probable.
    Confident,
}

impl MaskShare {
    /// A draw in (0, 1].
    pub fn draw(self, stream: SeedTree) -> f64 {
        match self {
            Self::TruncatedNormal => {
                let normals = (0..).flat_map(|i| stream.at(i).normals(16));
                let mut shares = normals.map(|x| 1.0 + 0.25 * f64::from(x));
                shares.find(|share| (0.7..=1.0).contains(share)).expect("an endless stream")
            }
            // r is below 1.
            Self::Cosine => (f64::from(stream.uniform(0)) * FRAC_PI_2).cos(),
        }
    }

    /// Which of `n` tokens are masked: `ceil(share n)` of them, the last of a random order.
    pub fn mask(self, n: usize, stream: SeedTree) -> Vec<bool> {
        let masked = (self.draw(stream.child("share")) * n as f64).ceil() as usize;
        let mut mask = vec![false; n];
        for place in order(n, stream).into_iter().rev().take(masked) {
            mask[place] = true;
        }
        mask
    }
}

/// The random order of the places of an image's first scale.
pub fn order(n: usize, stream: SeedTree) -> Vec<usize> {
    stream.child("order").permutation(n)
}

/// How many of `n` tokens are revealed after each of the steps, by a cosine schedule:
///
/// ```text
/// floor(n (1 - (1 + cos(pi t / T)) / 2)) after step t of T, t = 1 .. T
/// ```
/// at least one more each time, and no more than leaves one to each step that follows. There are no more
/// steps than tokens.
pub fn revealed(n: usize, steps: usize) -> Vec<usize> {
    let steps = steps.min(n);
    let mut before = 0;
    let mut after = |t: usize| {
        let share = 1.0 - 0.5 * (1.0 + (PI * t as f64 / steps as f64).cos());
        before = ((n as f64 * share).floor() as usize).clamp(before + 1, n - (steps - t));
        before
    };
    (1..=steps).map(&mut after).collect()
}

impl FirstScale {
    /// Whether it is a scale behind the class token, instead of the class token's own.
    pub fn is_behind_the_class_token(self) -> bool {
        !matches!(self, Self::ClassToken {})
    }
}

impl fmt::Display for FirstScale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClassToken {} => f.write_str("the class token's"),
            Self::Masked { steps, reveal: Reveal::Random, .. } => {
                write!(f, "masked, sampled in {steps} steps in random order")
            }
            Self::Masked { steps, reveal: Reveal::Confident, .. } => {
                write!(f, "masked, sampled in {steps} steps, the most confident first")
            }
            Self::RandomOrder {} => f.write_str("token by token in random order"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn revealed_by_hand() {
        // 16 (1 - cos(pi t / 8)) / 2 = 0.6, 2.3, 4.9, 8, 11.06, 13.7, 15.4, 16.
        assert_eq!(revealed(16, 8), [1, 2, 4, 8, 11, 13, 15, 16]);
        // 64 of them: 2.4, 9.4, 19.8, 32, 44.2, 54.6, 61.6, 64.
        assert_eq!(revealed(64, 8), [2, 9, 19, 32, 44, 54, 61, 64]);
        assert_eq!(revealed(16, 1), [16]);
        assert_eq!(revealed(3, 8), [1, 2, 3]);
        assert_eq!(revealed(0, 8), [0; 0]);
    }

    #[test]
    fn shares_follow_their_distributions() {
        let n = 20_000;
        let shares = |share: MaskShare| {
            let draws = (0..n).map(|i| share.draw(SeedTree::new(3).at(i))).collect::<Vec<_>>();
            assert!(draws.iter().all(|share| *share > 0.0 && *share <= 1.0));
            (draws.iter().sum::<f64>() / n as f64, draws)
        };
        // Mean of the truncated normal: 1 + 0.25 (phi(-1.2) - phi(0)) / (Phi(0) - Phi(-1.2)).
        let (mean, draws) = shares(MaskShare::TruncatedNormal);
        assert!((mean - 0.867_0).abs() < 0.003, "{mean}");
        assert!(draws.iter().all(|share| *share >= 0.7));
        // Mean of the cosine over a quarter: 2 / pi.
        let (mean, _) = shares(MaskShare::Cosine);
        assert!((mean - 2.0 / PI).abs() < 0.01, "{mean}");
    }

    proptest! {
        #[test]
        fn something_is_revealed_in_every_step_and_all_in_the_last(n in 1usize..200, steps in 1usize..20) {
            let counts = revealed(n, steps);
            prop_assert_eq!(counts.len(), steps.min(n));
            prop_assert_eq!(*counts.last().unwrap(), n);
            prop_assert!(counts.windows(2).all(|pair| pair[0] < pair[1]) && counts[0] > 0);
        }

        #[test]
        fn so_many_are_masked(n in 1usize..70, seed: u64, cosine: bool) {
            let share = if cosine { MaskShare::Cosine } else { MaskShare::TruncatedNormal };
            let stream = SeedTree::new(seed);
            let masked = share.mask(n, stream).into_iter().filter(|masked| *masked).count();
            prop_assert_eq!(masked, (share.draw(stream.child("share")) * n as f64).ceil() as usize);
            prop_assert!(masked >= 1 && masked <= n);
        }
    }
}
