//! Some code vectors, by which a backbone knows the tokenizer that it was trained with.
//!
//! A token is the number of a code. Behind another tokenizer with as many codes the same numbers mean other
//! vectors, and samples are noise, while nothing in the shapes of the two files tells.

use burn::tensor::backend::Backend;
use sar_tokenizer::Codebook;
use serde::{Deserialize, Serialize};

/// Vectors of a sketch, where the codebook has as many.
const VECTORS: usize = 16;

/// How far apart two sketches of one codebook can be, in lengths of the sketch. A file in bf16, the coarsest
/// type, has entries rounded by 2^-8 of themselves at most, one in f16 by 2^-11, and vectors move by no
/// larger share of their lengths; this leaves three times as much as both together. Those of two trainings
/// are about as far apart as they are long.
const TOLERANCE: f64 = 1.0 / 64.0;

/// Vectors evenly spaced over a codebook, as they are compared and looked up: of length 1 where angles count,
/// so that it makes no difference whether a file has them normalized.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CodebookSketch {
    vectors: Vec<Vec<f32>>,
}

impl CodebookSketch {
    /// The sketch of a codebook: of its v codes those at i v / n for i in 0..n, where n is 16, or v if that is
    /// less.
    pub fn of<B: Backend>(codebook: &Codebook<B>) -> Self {
        Self::with(codebook, VECTORS.min(codebook.size()))
    }

    fn with<B: Backend>(codebook: &Codebook<B>, n: usize) -> Self {
        let codes_vc = codebook.codes();
        let [v, c] = codes_vc.dims();
        let codes = codes_vc.into_data().convert::<f32>().into_vec::<f32>().expect("f32");
        let vector = |row: usize| codes[row * c..][..c].to_vec();
        Self { vectors: (0..n).map(|i| vector(i * v / n)).collect() }
    }

    /// Whether it is of this codebook, of which either may have been rounded to f16 or bf16 since.
    pub fn is_of<B: Backend>(&self, codebook: &Codebook<B>) -> bool {
        let theirs = Self::with(codebook, self.vectors.len());
        let (mut apart, mut length) = (0.0f64, 0.0f64);
        for (ours, theirs) in self.vectors.iter().zip(&theirs.vectors) {
            if ours.len() != theirs.len() {
                return false;
            }
            for (a, b) in ours.iter().zip(theirs) {
                let (a, b) = (f64::from(*a), f64::from(*b));
                apart += (a - b) * (a - b);
                length += a * a;
            }
        }
        apart.sqrt() <= TOLERANCE * length.sqrt()
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{DType, Tensor, TensorData};
    use burn_flex::Flex;
    use sar_core::SeedTree;
    use sar_tokenizer::{CodebookGrowth, Family, Init, Phi, Tokenizer, TokenizerConfig, init};
    use sar_weights::cast_floats;

    use super::*;

    const DIM: usize = 8;

    /// A tokenizer of some codes and a seed; the family decides whether codes are normalized.
    fn tokenizer(family: Family, codebook_size: usize, seed: u64) -> Tokenizer<Flex> {
        let config = TokenizerConfig {
            family,
            base_channels: 32,
            channel_multipliers: vec![1],
            res_blocks: 1,
            z_channels: DIM,
            codebook_size,
            codebook_dim: DIM,
            codebook_growth: CodebookGrowth::None {},
        };
        init(&config, Init::Torch {}, SeedTree::new(seed), &Default::default()).unwrap()
    }

    /// The same tokenizer with other vectors.
    fn with_codes(
        tokenizer: &Tokenizer<Flex>,
        edit: impl Fn(TensorData) -> TensorData,
    ) -> Tokenizer<Flex> {
        tokenizer.clone().with_codebook(|codebook| {
            let data = edit(codebook.raw().into_data()).convert::<f32>();
            codebook.with_raw(Tensor::from_data(data, &Default::default()))
        })
    }

    #[test]
    fn a_codebook_is_known_again_after_rounding_and_no_other_is() {
        for family in [Family::Flexvar, Family::Var { phi: Phi::Shared(1) }] {
            for size in [5, 64, 100] {
                let ours = tokenizer(family, size, 1);
                let sketch = CodebookSketch::of(ours.codebook());
                assert_eq!(sketch.vectors.len(), size.min(16));
                assert!(sketch.is_of(ours.codebook()));
                let text = serde_json::to_string(&sketch).unwrap();
                assert!(text.starts_with("[["), "{text}");
                assert_eq!(serde_json::from_str::<CodebookSketch>(&text).unwrap(), sketch);

                let rounded = [DType::F16, DType::BF16]
                    .map(|dtype| with_codes(&ours, |data| cast_floats(data, dtype).unwrap()));
                let sketches = rounded.each_ref().map(|it| CodebookSketch::of(it.codebook()));
                assert!(sketches[0] != sketch && sketches[1] != sketch);
                // Trained with codes rounded one way, and sampled with those rounded another way.
                for known in sketches.iter().chain([&sketch]) {
                    for codes in rounded.iter().chain([&ours]) {
                        assert!(known.is_of(codes.codebook()));
                    }
                }

                assert!(!sketch.is_of(tokenizer(family, size, 2).codebook()));
                // A single vector is enough.
                let other = with_codes(&ours, |data| {
                    let (mut values, shape) = (data.to_vec::<f32>().unwrap(), data.shape.clone());
                    values[..DIM].iter_mut().for_each(|x| *x = -*x);
                    TensorData::new(values, shape)
                });
                assert!(!sketch.is_of(other.codebook()));
            }
        }
    }

    /// Where angles count, a file may hold its codes normalized or not.
    #[test]
    fn lengths_that_make_no_difference_are_none() {
        let double = |data: TensorData| {
            let values = data.iter::<f32>().map(|x| 2.0 * x).collect();
            TensorData::new::<f32, _>(values, data.shape.clone())
        };
        let by = |family| {
            let ours = tokenizer(family, 64, 1);
            CodebookSketch::of(ours.codebook()).is_of(with_codes(&ours, double).codebook())
        };
        assert!(by(Family::Flexvar));
        assert!(!by(Family::Var { phi: Phi::Shared(1) }));
    }
}
