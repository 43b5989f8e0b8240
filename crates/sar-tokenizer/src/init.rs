//! Initialization of a tokenizer: torch's defaults, drawn from a seed by parameter name.
//!
//! | parameter | distribution |
//! |---|---|
//! | convolution weight and bias | uniform in ±1/sqrt(fan in) |
//! | group norm | weight 1, bias 0 |
//! | codebook | standard normal (training replaces it by latents of the data) |

use burn::tensor::backend::Backend;
use sar_core::SeedTree;
use sar_weights::fill;

use crate::{Tokenizer, TokenizerConfig, TokenizerConfigError};

/// A tokenizer with random weights that are a pure function of the seed.
///
/// # Errors
/// If the configuration cannot be built.
pub fn init<B: Backend>(
    config: &TokenizerConfig,
    seed: SeedTree,
    device: &B::Device,
) -> Result<Tokenizer<B>, TokenizerConfigError> {
    let tokenizer = Tokenizer::new(config, device)?;
    // A bias is drawn with its weight's fan in, and follows it in the order of parameters.
    let mut fan_in = 1;
    Ok(fill(tokenizer, config.layout(), |name, shape| {
        let n = shape.iter().product();
        let draws = seed.child(name);
        if name.ends_with("embedding.weight") {
            draws.normals(n)
        } else if name.contains("norm") {
            vec![if name.ends_with("weight") { 1.0 } else { 0.0 }; n]
        } else {
            if name.ends_with("weight") {
                fan_in = shape[1..].iter().product();
            }
            let bound = (fan_in as f32).powf(-0.5);
            draws.uniforms(n).into_iter().map(|u| (2.0 * u - 1.0) * bound).collect()
        }
    }))
}
