//! Initialization of a discriminator, drawn from a seed by parameter name.
//!
//! | parameter | value |
//! |---|---|
//! | convolution weight | normal, deviation 0.02 (pix2pix, taming-transformers) |
//! | convolution bias | 0 |
//! | group norm | weight 1, bias 0 |
//!
//! taming-transformers draws the weights of its norms, too, with a mean of 1 and a deviation of 0.02: that is
//! left out, as the convolutions behind them already differ.

use burn::tensor::backend::Backend;
use sar_core::SeedTree;
use sar_features::EfficientNetLite0;
use sar_weights::fill;

use crate::{Discriminator, DiscriminatorConfig, DiscriminatorConfigError, LAYOUT};

const DEVIATION: f32 = 0.02;

/// A discriminator with random weights that are a pure function of the seed. Families that look
/// through a frozen network ask `net` for it, others never call it.
///
/// # Errors
/// If the configuration cannot be built.
pub fn init<B: Backend>(
    config: &DiscriminatorConfig,
    net: impl FnOnce() -> EfficientNetLite0<B>,
    seed: SeedTree,
    device: &B::Device,
) -> Result<Discriminator<B>, DiscriminatorConfigError> {
    Ok(fill(Discriminator::new(config, net, device)?, &LAYOUT, |name, shape| {
        let n = shape.iter().product();
        match (name.contains("norm."), name.ends_with("weight")) {
            (true, true) => vec![1.0; n],
            (false, true) => {
                let normals = seed.child(name).normals(n).into_iter();
                normals.map(|normal| normal * DEVIATION).collect()
            }
            (_, false) => vec![0.0; n],
        }
    }))
}

#[cfg(test)]
mod tests {
    use burn_flex::Flex;
    use sar_weights::{NamedTensors, collect};

    use super::*;

    fn drawn(seed: u64) -> NamedTensors {
        let config = DiscriminatorConfig::PatchGan { channels: 32, layers: 2 };
        let net = || unreachable!("no part of the family");
        let model = init::<Flex>(&config, net, SeedTree::new(seed), &Default::default()).unwrap();
        collect(&model, &LAYOUT)
    }

    #[test]
    fn moments_are_those_of_the_table() {
        let tensors = drawn(1);
        for (name, data) in tensors.iter() {
            let values = data.to_vec::<f32>().unwrap();
            if name.ends_with("bias") {
                assert!(values.iter().all(|value| *value == 0.0), "{name}");
            } else if name.contains("norm") {
                assert!(values.iter().all(|value| *value == 1.0), "{name}");
            } else {
                let n = values.len() as f32;
                let mean = values.iter().sum::<f32>() / n;
                let square = values.iter().map(|value| value * value).sum::<f32>() / n;
                // Four deviations of the moments' own.
                assert!(mean.abs() < 4.0 * 0.02 / n.sqrt(), "{name}: {mean}");
                assert!((square / 4e-4 - 1.0).abs() < 4.0 * (2.0 / n).sqrt(), "{name}: {square}");
            }
        }
    }

    #[test]
    fn weights_are_a_function_of_the_seed_and_the_name() {
        let values = |tensors: &NamedTensors, name: &str| {
            tensors.get(name).unwrap().to_vec::<f32>().unwrap()
        };
        let (a, b, other) = (drawn(1), drawn(1), drawn(2));
        let names = ["blocks.0.conv.weight", "blocks.1.conv.weight"];
        assert_eq!(values(&a, names[0]), values(&b, names[0]));
        assert_ne!(values(&a, names[0]), values(&other, names[0]));
        assert_ne!(values(&a, names[0])[..9], values(&a, names[1])[..9]);
    }
}
