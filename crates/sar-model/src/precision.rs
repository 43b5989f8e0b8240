//! In which type the matrix products of a backbone are computed.

use std::fmt;
use std::str::FromStr;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};

use crate::Backbone;

/// The type of matrix products: of the blocks' linear layers, of the projections of the condition, and
/// of queries, keys and values.
///
/// Parameters stay in single precision, and so do the embedding of the inputs (`word_embed`), norms,
/// softmax, residuals and the head, with which logits are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Precision {
    /// Single precision.
    F32,
    /// `bfloat16`: the range of single precision, 8 bits of mantissa.
    Bf16,
    /// Half precision: 11 bits of mantissa, and a range that gradients only fit in with a scaled loss.
    F16,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is not a precision.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{name}' is not a precision: there are f32, bf16 and f16")]
#[non_exhaustive]
pub struct UnknownPrecision {
    /// What was named.
    pub name: String,
}

impl FromStr for Precision {
    type Err = UnknownPrecision;

    /// Reads `f32`, `bf16` or `f16`.
    fn from_str(name: &str) -> Result<Self, UnknownPrecision> {
        let known = [Self::F32, Self::Bf16, Self::F16];
        let found = known.into_iter().find(|precision| precision.name() == name);
        found.ok_or_else(|| UnknownPrecision { name: name.into() })
    }
}

impl Precision {
    fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }

    /// Whether its range is so small that gradients only fit in with a scaled loss.
    pub const fn needs_loss_scale(self) -> bool {
        match self {
            Self::F32 | Self::Bf16 => false,
            Self::F16 => true,
        }
    }

    /// Whether the backend computes in it.
    pub fn is_supported<B: Backend>(self, device: &B::Device) -> bool {
        B::supports_dtype(device, self.dtype())
    }

    fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }

    /// A backbone whose linear layers have this type, but for `word_embed` and `head`: for one step or
    /// a number of passes, made from the parameters each time that these have changed.
    ///
    /// With a tape, gradients flow to the parameters that it was made from, in their own type.
    pub fn view<B: Backend>(self, model: &Backbone<B>) -> Backbone<B> {
        let model = model.clone();
        match self {
            Self::F32 => model,
            Self::Bf16 | Self::F16 => {
                model.map(&mut LinearLayers { dtype: self.dtype(), path: Vec::new() })
            }
        }
    }
}

/// Casts the parameters of linear layers, but for those in [`SINGLE`].
struct LinearLayers {
    dtype: DType,
    /// The containers around a field and its name, outermost first.
    path: Vec<(String, String)>,
}

const LINEAR: &str = "Struct:Linear";

/// The layers of the backbone itself that stay in single precision: inputs and logits.
const SINGLE: [&str; 2] = ["word_embed", "head"];

impl LinearLayers {
    fn is_cast(&self) -> bool {
        let is_linear = self.path.last().is_some_and(|(container, _)| container == LINEAR);
        let is_single = self.path.first().is_some_and(|(_, name)| SINGLE.contains(&name.as_str()));
        is_linear && !is_single
    }
}

impl<B: Backend> ModuleMapper<B> for LinearLayers {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.push((container_type.into(), name.into()));
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        match self.is_cast() {
            true => param.map(|tensor| tensor.cast(self.dtype)),
            false => param,
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::module::ModuleVisitor;
    use burn_flex::Flex;
    use sar_core::SeedTree;

    use super::*;
    use crate::{BackboneConfig, BackboneShape, Init, init};

    /// The paths of parameters that have a type.
    struct Paths {
        dtype: DType,
        path: Vec<String>,
        found: Vec<String>,
    }

    impl ModuleVisitor<Flex> for Paths {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.push(name.into());
        }

        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }

        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Flex, D>>) {
            if param.val().dtype() == self.dtype {
                self.found.push(self.path.join("."));
            }
        }
    }

    fn parameters_in(dtype: DType, model: &Backbone<Flex>) -> Vec<String> {
        let mut paths = Paths { dtype, path: Vec::new(), found: Vec::new() };
        model.visit(&mut paths);
        paths.found
    }

    #[test]
    fn products_of_the_blocks_alone_are_in_half_precision() {
        for shared_adaln in [false, true] {
            let config = BackboneConfig {
                shape: BackboneShape {
                    width: 8,
                    heads: 2,
                    shared_adaln,
                    ..BackboneShape::published(1)
                },
                classes: 2,
                codebook_size: 4,
                codebook_dim: 3,
                ..BackboneConfig::flexvar(1)
            };
            let (seed, device) = (SeedTree::new(0), Default::default());
            let model = init::<Flex>(&config, Init::published(1), seed, &device).unwrap();
            assert!(parameters_in(DType::BF16, &Precision::F32.view(&model)).is_empty());
            for (precision, dtype) in [(Precision::Bf16, DType::BF16), (Precision::F16, DType::F16)]
            {
                let view = precision.view(&model);
                let own = if shared_adaln { "shared_ada_lin" } else { "blocks.0.ada_lin" };
                let blocks = ["attn.proj", "ffn.fc1", "ffn.fc2"].map(|x| format!("blocks.0.{x}"));
                let layers = blocks.into_iter().chain([own.into(), "head_nm.ada_lin".into()]);
                let mut expected = vec!["blocks.0.attn.mat_qkv.weight".to_string()];
                expected.extend(layers.flat_map(|x| [format!("{x}.weight"), format!("{x}.bias")]));
                let mut found = parameters_in(dtype, &view);
                found.sort();
                expected.sort();
                assert_eq!(found, expected);
            }
        }
    }
}
