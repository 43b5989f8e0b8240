//! In which type the matrix products of a backbone are computed.

use std::fmt;
use std::str::FromStr;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};

use crate::Backbone;

/// The type of matrix products: of linear layers, and of queries, keys and values.
///
/// Parameters stay in single precision, and so do embeddings, norms, softmax, residuals and logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
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

/// A name that is no precision's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{name}' is no precision; there are f32, bf16 and f16")]
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

    /// A backbone whose linear layers have this type: for one step or a number of passes, made from
    /// the parameters each time that these have changed.
    ///
    /// With a tape, gradients flow to the parameters that it was made from, in their own type.
    pub fn view<B: Backend>(self, model: &Backbone<B>) -> Backbone<B> {
        let model = model.clone();
        match self {
            Self::F32 => model,
            Self::Bf16 | Self::F16 => {
                model.map(&mut LinearLayers { dtype: self.dtype(), is_inside: false })
            }
        }
    }
}

/// Casts the parameters of linear layers.
struct LinearLayers {
    dtype: DType,
    is_inside: bool,
}

const LINEAR: &str = "Struct:Linear";

impl<B: Backend> ModuleMapper<B> for LinearLayers {
    fn enter_module(&mut self, _name: &str, container_type: &str) {
        self.is_inside |= container_type == LINEAR;
    }

    fn exit_module(&mut self, _name: &str, container_type: &str) {
        self.is_inside &= container_type != LINEAR;
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        match self.is_inside {
            true => param.map(|tensor| tensor.cast(self.dtype)),
            false => param,
        }
    }
}
