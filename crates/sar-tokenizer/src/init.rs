//! Initialization of a tokenizer, drawn from a seed by parameter name.
//!
//! | parameter | `torch` | `pyramid` |
//! |---|---|---|
//! | convolution weight | uniform in ±1/sqrt(fan in) | uniform in ±gain/sqrt(fan in) |
//! | last convolution of a residual block, of attention | as any | 0 |
//! | halving of the side | as any | mean of 2 by 2 pixels |
//! | doubling of the side, shortcut | as any | identity |
//! | convolution bias | uniform in ±1/sqrt(fan in) | 0 |
//! | VAR's convolutions of enlarged codes | as any | as `torch` |
//! | group norm | weight 1, bias 0 | weight 1, bias 0 |
//! | codebook | standard normal (training replaces it by latents of the data) | the same |

use burn::tensor::backend::Backend;
use sar_core::SeedTree;
use sar_weights::fill;
use serde::{Deserialize, Serialize};

use crate::{Tokenizer, TokenizerConfig, TokenizerConfigError};

/// What a tokenizer is before its first step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Init {
    /// torch's defaults, as the released trainers have them.
    Torch {},
    /// Encoder and decoder are linear pyramids between a first and a last convolution, to which
    /// residual blocks and attention add nothing yet: color reaches the latents from the first step,
    /// not through normalized branches alone.
    Pyramid {
        /// Width of all other convolutions, as a multiple of torch's.
        gain: f64,
    },
}

impl Init {
    /// Checks that weights can be drawn so.
    ///
    /// # Errors
    /// If the gain is not in (0, 10].
    pub fn validate(self) -> Result<(), TokenizerConfigError> {
        match self {
            Self::Pyramid { gain } if gain > 0.0 && gain <= 10.0 => Ok(()),
            Self::Pyramid { .. } => {
                let problem = "must be in (0, 10]".into();
                Err(TokenizerConfigError { field: "init.gain", problem })
            }
            Self::Torch {} => Ok(()),
        }
    }
}

/// A tokenizer with random weights that are a pure function of the seed.
///
/// # Errors
/// If the configuration cannot be built, or weights not be drawn so.
pub fn init<B: Backend>(
    config: &TokenizerConfig,
    init: Init,
    seed: SeedTree,
    device: &B::Device,
) -> Result<Tokenizer<B>, TokenizerConfigError> {
    init.validate()?;
    let tokenizer = Tokenizer::new(config, device)?;
    // A bias is drawn with its weight's fan in, and follows it in the order of parameters.
    let mut fan_in = 1;
    Ok(fill(tokenizer, config.layout(), |name, shape| {
        let n = shape.iter().product();
        let draws = seed.child(name);
        if name.ends_with("embedding.weight") {
            return draws.normals(n);
        }
        if name.contains("norm") {
            return vec![if name.ends_with("weight") { 1.0 } else { 0.0 }; n];
        }
        if name.ends_with("weight") {
            fan_in = shape[1..].iter().product();
        }
        let gain = match init {
            Init::Pyramid { gain } if !name.starts_with("quantize.") => {
                if let Some(values) = of_pyramid(name, shape) {
                    return values;
                }
                gain as f32
            }
            _ => 1.0,
        };
        let bound = gain * (fan_in as f32).powf(-0.5);
        draws.uniforms(n).into_iter().map(|u| (2.0 * u - 1.0) * bound).collect()
    }))
}

/// The parameters of a pyramid that are not drawn.
fn of_pyramid(name: &str, shape: &[usize]) -> Option<Vec<f32>> {
    let n = shape.iter().product();
    let is = |part: &str| name.contains(part);
    if name.ends_with("bias") || is("conv2.") || is("proj_out.") {
        return Some(vec![0.0; n]);
    }
    let &[c_out, c_in, height, width] = shape else { return None };
    // Taps of the kernel that a channel sees itself through, and their weight.
    let (taps, weight): (&[[usize; 2]], f32) = if is("downsample.") {
        // The padding is at the right and at the bottom: the first taps are on the block of pixels.
        (&[[0, 0], [0, 1], [1, 0], [1, 1]], 0.25)
    } else if is("upsample.") {
        (&[[1, 1]], 1.0)
    } else if is("nin_shortcut.") {
        (&[[0, 0]], 1.0)
    } else {
        return None;
    };
    let mut values = vec![0.0; n];
    for c in 0..c_out.min(c_in) {
        for [u, v] in taps {
            values[((c * c_in + c) * height + u) * width + v] = weight;
        }
    }
    Some(values)
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Distribution, Tensor};
    use burn_flex::Flex;

    use super::*;
    use crate::{CodebookGrowth, ColorAxes, Family, Phi};

    fn config(family: Family) -> TokenizerConfig {
        TokenizerConfig {
            family,
            base_channels: 32,
            channel_multipliers: vec![1, 2, 1],
            res_blocks: 1,
            z_channels: 8,
            codebook_size: 16,
            codebook_dim: 4,
            codebook_growth: CodebookGrowth::None {},
        }
    }

    fn difference(x: Tensor<Flex, 4>, y: Tensor<Flex, 4>) -> f32 {
        (x - y).abs().max().into_scalar()
    }

    #[test]
    fn a_pyramid_is_linear_up_to_its_last_norm() {
        let device = Default::default();
        // Large, so that the epsilon of norms is nothing beside them.
        let images = Tensor::<Flex, 4>::random([2, 3, 16, 16], Distribution::Default, &device) * 16;
        for family in [Family::Flexvar, Family::Var { phi: Phi::Shared(2) }] {
            let of = |init| super::init(&config(family), init, SeedTree::new(1), &device).unwrap();
            let pyramid: Tokenizer<Flex> = of(Init::Pyramid { gain: 1.0 });
            let torch: Tokenizer<Flex> = of(Init::Torch {});
            // The last norm takes a factor away, and nothing but a factor came to it.
            let doubling = |tokenizer: &Tokenizer<Flex>| {
                difference(
                    tokenizer.features(images.clone() * 2.0),
                    tokenizer.features(images.clone()),
                )
            };
            assert!(doubling(&pyramid) < 1e-4, "{}", doubling(&pyramid));
            assert!(doubling(&torch) > 1e-3);
            assert!(pyramid.features(images.clone()).abs().max().into_scalar() > 0.1);
        }
    }

    #[test]
    fn a_pyramid_by_hand() {
        let mean = of_pyramid("encoder.down.0.downsample.conv.weight", &[2, 2, 3, 3]).unwrap();
        let (own, none) = ([0.25, 0.25, 0.0, 0.25, 0.25, 0.0, 0.0, 0.0, 0.0], [0.0; 9]);
        assert_eq!(mean, [own, none, none, own].concat());
        let doubled = of_pyramid("decoder.up.1.upsample.conv.weight", &[1, 1, 3, 3]).unwrap();
        assert_eq!(doubled, [0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
        let shortcut =
            |shape| of_pyramid("encoder.down.1.block.0.nin_shortcut.weight", shape).unwrap();
        assert_eq!(shortcut(&[3, 2, 1, 1]), [1.0, 0.0, 0.0, 1.0, 0.0, 0.0]);
        assert_eq!(shortcut(&[1, 2, 1, 1]), [1.0, 0.0]);
        assert_eq!(of_pyramid("encoder.mid.0.conv2.weight", &[1, 1, 1, 1]), Some(vec![0.0]));
        assert_eq!(of_pyramid("encoder.mid.0.conv1.weight", &[1, 1, 1, 1]), None);
        assert_eq!(of_pyramid("encoder.mid.0.conv1.bias", &[2]), Some(vec![0.0; 2]));
    }

    #[test]
    fn gains_are_in_their_range() {
        let is_fit = |gain: f64| Init::Pyramid { gain }.validate().is_ok();
        assert!([1e-3, 10.0].into_iter().all(is_fit));
        assert!(![-1.0, 0.0, 10.1, f64::NAN].into_iter().any(is_fit));
        assert!(Init::Torch {}.validate().is_ok());
    }

    #[test]
    fn colors_fold_into_the_first_and_last_convolution() {
        let device = Default::default();
        let images = Tensor::<Flex, 4>::random([2, 3, 16, 16], Distribution::Default, &device);
        let covariance = [[0.5, 0.3, 0.2], [0.3, 0.4, 0.25], [0.2, 0.25, 0.45]];
        let colors = ColorAxes::of_covariance(covariance);
        let tokenizer: Tokenizer<Flex> =
            init(&config(Family::Flexvar), Init::Torch {}, SeedTree::new(1), &device).unwrap();
        let colored = tokenizer.clone().with_colors(colors);
        let latents = |tokenizer: &Tokenizer<Flex>| tokenizer.encode(images.clone());
        let image = |tokenizer: &Tokenizer<Flex>| tokenizer.decode(latents(tokenizer));
        assert!(difference(latents(&colored), latents(&tokenizer)) > 1e-2);
        let folded = colored.clone().folded();
        assert!(folded.colors().is_none());
        assert!(difference(latents(&colored), latents(&folded)) < 1e-5);
        assert!(difference(image(&colored), image(&folded)) < 1e-5);
        let unfolded = tokenizer.clone().unfolded(colors);
        assert!(difference(latents(&unfolded), latents(&tokenizer)) < 1e-5);
        assert!(difference(image(&unfolded), image(&tokenizer)) < 1e-5);
    }
}
