//! How gradients travel between ranks.
//!
//! In half precision every leaf and every sum of the tree over the micro-batches is rounded, on one rank
//! as well, where nothing travels. What travels is one of them, and arrives as it was: the number of ranks
//! changes nothing, as in single precision.
//!
//! ```text
//! T(i) = round(g_i),   T(left + right) = round(T(left) + T(right))
//! ```

use std::fmt;

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};
use serde::{Deserialize, Serialize};

/// What travels between ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExchangeRecipe {
    /// The type in which gradients travel, to which their sums are rounded, whatever the number of ranks.
    pub gradients: Wire,
}

/// The type in which gradients travel between ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Wire {
    /// Single precision, 4 bytes a value: gradients as they are.
    F32,
    /// `bfloat16`, 2 bytes a value: the range of single precision, 8 bits of mantissa.
    Bf16,
}

impl fmt::Display for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

impl Wire {
    /// Bytes of a value.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    /// Whether the backend can round to it.
    pub(crate) fn is_supported<B: Backend>(self, device: &B::Device) -> bool {
        match self {
            Self::F32 => true,
            Self::Bf16 => B::supports_dtype(device, DType::BF16),
        }
    }

    /// The values of this type that are nearest, in single precision.
    pub(crate) fn round<B: Backend>(self, x: Tensor<B, 1>) -> Tensor<B, 1> {
        match self {
            Self::F32 => x,
            Self::Bf16 => x.cast(DType::BF16).cast(DType::F32),
        }
    }

    /// Adds rounded values to a message; they lose nothing.
    pub(crate) fn write(self, message: &mut Vec<u8>, values: &[f32]) {
        match self {
            Self::F32 => message.extend(values.iter().flat_map(|value| value.to_le_bytes())),
            // The upper half of a float of 32 bits is that of 16; of a rounded one the lower half is zero.
            Self::Bf16 => {
                let upper = |value: &f32| ((value.to_bits() >> 16) as u16).to_le_bytes();
                message.extend(values.iter().flat_map(upper));
            }
        }
    }

    /// The values of a message's bytes.
    pub(crate) fn read<B: Backend>(self, bytes: &[u8], device: &B::Device) -> Tensor<B, 1> {
        let values: Vec<f32> = match self {
            Self::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Self::Bf16 => {
                let value = |b: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
                bytes.as_chunks::<2>().0.iter().map(value).collect()
            }
        };
        let n = values.len();
        Tensor::from_data(TensorData::new(values, [n]), device)
    }
}

#[cfg(test)]
mod tests {
    use burn_flex::Flex;

    use super::*;

    fn rounded(values: &[f32]) -> Vec<f32> {
        let x = Tensor::<Flex, 1>::from_floats(values, &Default::default());
        Wire::Bf16.round(x).into_data().into_vec().unwrap()
    }

    #[test]
    fn values_are_rounded_to_eight_bits_and_keep_their_range() {
        // At 1 two neighbors are 2^-7 apart; half way the even one is taken.
        let step = 2f32.powi(-7);
        let given = [1.0 + 0.4 * step, 1.0 + 0.6 * step, 1.0 + 0.5 * step, 1.0 + 1.5 * step];
        assert_eq!(rounded(&given), [1.0, 1.0 + step, 1.0, 1.0 + 2.0 * step]);
        let wide = [-3e38, 1e-38, 0.0];
        for (found, given) in rounded(&wide).iter().zip(wide) {
            assert!((found - given).abs() <= given.abs() / 256.0, "{found} {given}");
        }
        assert!(rounded(&[f32::NAN])[0].is_nan() && rounded(&[f32::INFINITY]) == [f32::INFINITY]);
    }

    #[test]
    fn what_is_rounded_travels_as_it_is() {
        let values = rounded(&[0.1, -7e20, 3e-39, 0.0, f32::INFINITY]);
        for (wire, bytes) in [(Wire::F32, 20), (Wire::Bf16, 10)] {
            let mut message = Vec::new();
            wire.write(&mut message, &values);
            assert_eq!((message.len(), wire.bytes() * values.len()), (bytes, bytes));
            let read = wire.read::<Flex>(&message, &Default::default());
            assert_eq!(read.into_data().into_vec::<f32>().unwrap(), values);
        }
        let mut message = Vec::new();
        Wire::Bf16.write(&mut message, &[1.0, -2.0]);
        assert_eq!(message, [0x80, 0x3F, 0x00, 0xC0]);
    }
}
