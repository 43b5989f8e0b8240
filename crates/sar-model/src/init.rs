//! Initialization of a backbone, drawn from a seed by parameter name.
//!
//! | parameter | distribution |
//! |---|---|
//! | everything not listed | normal, std `sqrt(1 / (3 d))` |
//! | biases | 0 |
//! | `head.weight` | x 0.02 |
//! | `ada_lin` weights | x 0.5; the rows of the two gammas x [`Init::adaln_gamma`] instead |
//! | `ada_gss` | normal / sqrt(d), then the same two factors; the shared projection as is |
//! | `attn.proj`, `ffn.fc2` weights | / sqrt(2 depth) |
//! | `scale_mul` | ln 4 |
//! | `pos_1LC`, a grid | additive sines (rows, even channels) and cosines (columns, odd channels) |

use burn::tensor::backend::Backend;
use sar_core::SeedTree;
use sar_weights::fill;
use serde::{Deserialize, Serialize};

use crate::{Backbone, BackboneConfig, BackboneConfigError, LAYOUT, PositionsConfig};

/// What is free in the initialization.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Init {
    /// Factor of the gamma rows: how far the residual branches are from closed at the start.
    pub adaln_gamma: f64,
}

impl Init {
    /// The published factor of a depth: 1e-3 to depth 20, 1e-4 to 24, 1e-5 to 30, then 5e-6.
    pub fn published(depth: usize) -> Self {
        let adaln_gamma = match depth {
            0..=20 => 1e-3,
            21..=24 => 1e-4,
            25..=30 => 1e-5,
            _ => 5e-6,
        };
        Self { adaln_gamma }
    }
}

const ADALN: f64 = 0.5;
const HEAD: f64 = 0.02;

/// A backbone with random weights that are a pure function of the seed.
///
/// # Errors
/// If the configuration cannot be built.
pub fn init<B: Backend>(
    config: &BackboneConfig,
    init: Init,
    seed: SeedTree,
    device: &B::Device,
) -> Result<Backbone<B>, BackboneConfigError> {
    let d = config.shape.width;
    let std = (1.0 / (3.0 * d as f64)).sqrt();
    let branch = (2.0 * config.shape.depth as f64).sqrt().recip();
    Ok(fill(Backbone::new(config, device)?, &LAYOUT, |name, shape| {
        let n: usize = shape.iter().product();
        // Normal values times a factor that may depend on the place in the tensor.
        let normal = |factor: &dyn Fn(usize) -> f64| {
            let draws = seed.child(name).normals(n).into_iter().enumerate();
            draws.map(|(i, x)| (f64::from(x) * factor(i)) as f32).collect::<Vec<_>>()
        };
        let gamma_or = |is_gamma: bool| if is_gamma { init.adaln_gamma } else { ADALN };
        if let ("pos_1LC", PositionsConfig::Grid { side }) = (name, &config.positions) {
            sine_cosine_grid(d, *side)
        } else if name.ends_with("bias") {
            vec![0.0; n]
        } else if name.ends_with("scale_mul_1H11") {
            vec![4f32.ln(); n]
        } else if name.ends_with("ada_gss") {
            normal(&|i| (d as f64).powf(-0.5) * gamma_or(i < 2 * d))
        } else if name == "head_nm.ada_lin.1.weight" {
            normal(&|_| std * ADALN)
        } else if name.starts_with("blocks.") && name.ends_with("ada_lin.1.weight") {
            // [6 d, d]: the first 2 d rows make the gammas.
            normal(&|i| std * gamma_or(i < 2 * d * d))
        } else if name == "head.weight" {
            normal(&|_| std * HEAD)
        } else if name.ends_with("attn.proj.weight") || name.ends_with("ffn.fc2.weight") {
            normal(&|_| std * branch)
        } else {
            normal(&|_| std)
        }
    }))
}

/// `[1, d, g, g]`: channel 2i holds sin(y w_i), channel 2i + 1 cos(x w_i), w_i = 10000^(-2i/d).
fn sine_cosine_grid(d: usize, grid: usize) -> Vec<f32> {
    let mut values = Vec::with_capacity(d * grid * grid);
    for channel in 0..d {
        let frequency = 10_000f64.powf(-((channel / 2 * 2) as f64) / d as f64);
        for y in 0..grid {
            for x in 0..grid {
                let value = match channel % 2 {
                    0 => (y as f64 * frequency).sin(),
                    _ => (x as f64 * frequency).cos(),
                };
                values.push(value as f32);
            }
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BackboneShape;
    use burn_flex::Flex;
    use sar_weights::collect;

    fn std_of(values: &[f32]) -> f64 {
        let mean = values.iter().map(|x| f64::from(*x)).sum::<f64>() / values.len() as f64;
        let square = values.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>();
        (square / values.len() as f64).sqrt()
    }

    #[test]
    fn the_table_holds() {
        let check = |shared: bool| {
            let shape = BackboneShape {
                depth: 2,
                width: 64,
                heads: 2,
                shared_adaln: shared,
                ..BackboneShape::published(16)
            };
            let config = BackboneConfig {
                shape,
                classes: 100,
                codebook_size: 256,
                ..BackboneConfig::flexvar(16)
            };
            let device = Default::default();
            let model =
                init::<Flex>(&config, Init { adaln_gamma: 1e-3 }, SeedTree::new(0), &device)
                    .unwrap();
            let tensors = collect(&model, &LAYOUT);
            let values = |name: &str| {
                tensors.get(name).unwrap_or_else(|| panic!("{name}")).to_vec::<f32>().unwrap()
            };
            let std = (1.0f64 / 192.0).sqrt();
            let near = |name: &str, part: &[f32], expected: f64| {
                let found = std_of(part);
                assert!((found / expected - 1.0).abs() < 0.06, "{name}: {found} not {expected}");
            };
            near("class_emb", &values("class_emb.weight"), std);
            near("head", &values("head.weight"), std * 0.02);
            near("proj", &values("blocks.1.attn.proj.weight"), std / 2.0);
            near("fc2", &values("blocks.0.ffn.fc2.weight"), std / 2.0);
            near("fc1", &values("blocks.0.ffn.fc1.weight"), std);
            near("head_nm", &values("head_nm.ada_lin.1.weight"), std * 0.5);
            if shared {
                let gss = values("blocks.0.ada_gss");
                assert!(std_of(&gss[..128]) < 2e-4 && std_of(&gss[128..]) > 0.05);
                near("shared", &values("shared_ada_lin.1.weight"), std);
            } else {
                let ada = values("blocks.0.ada_lin.1.weight");
                near("gamma rows", &ada[..2 * 64 * 64], std * 1e-3);
                near("scale and shift rows", &ada[2 * 64 * 64..], std * 0.5);
            }
            assert!(values("blocks.0.attn.q_bias").iter().all(|x| *x == 0.0));
            assert!(
                values("blocks.0.attn.scale_mul_1H11").iter().all(|x| (x - 4f32.ln()).abs() < 1e-6)
            );
            // Channel 2 at y = 3: sin(3 * 10000^(-2/64)); channel 3 at x = 5: cos(5 * ...).
            let grid = values("pos_1LC");
            let w = 10_000f64.powf(-2.0 / 64.0);
            assert!((f64::from(grid[2 * 1024 + 3 * 32 + 7]) - (3.0 * w).sin()).abs() < 1e-6);
            assert!((f64::from(grid[3 * 1024 + 9 * 32 + 5]) - (5.0 * w).cos()).abs() < 1e-6);
        };
        check(false);
        check(true);
    }
    #[test]
    fn positions_of_one_schedule_are_normal() {
        let scales: sar_core::ScaleSchedule = "1_2_3_4_5_6".parse().unwrap();
        let shape = BackboneShape { heads: 2, ..BackboneShape::published(1) };
        let config = BackboneConfig { shape, classes: 2, ..BackboneConfig::var(16, scales) };
        let init_ = Init { adaln_gamma: 1e-3 };
        let model = init::<Flex>(&config, init_, SeedTree::new(0), &Default::default()).unwrap();
        let tensors = collect(&model, &LAYOUT);
        for (name, shape) in [("pos_1LC", &[1, 91, 64][..]), ("lvl_embed.weight", &[6, 64])] {
            let tensor = tensors.get(name).unwrap();
            assert_eq!(&tensor.shape[..], shape);
            let found = std_of(&tensor.to_vec::<f32>().unwrap()) * 192f64.sqrt();
            assert!((found - 1.0).abs() < 0.1, "{name}: {found}");
        }
    }

    #[test]
    fn published_sizes() {
        let millions = |config: &BackboneConfig| {
            let model = Backbone::<Flex>::new(config, &Default::default()).unwrap();
            let shapes = sar_weights::parameters(&model, &LAYOUT);
            shapes.iter().map(|p| p.shape.iter().product::<usize>()).sum::<usize>() as f64 / 1e6
        };
        let check = |config: BackboneConfig, expected: f64| {
            let found = millions(&config);
            assert!((found - expected).abs() < 0.005 * expected, "{found} M, not {expected}");
        };
        check(BackboneConfig::flexvar(16), 315.56);
        let scales = sar_core::ScaleSchedule::preset("256px").unwrap();
        check(BackboneConfig::var(16, scales.clone()), 310.3);
        check(BackboneConfig::var(30, scales), 2010.0);
    }
}
