//! GELU in its tanh approximation.

use burn::tensor::activation::sigmoid;
use burn::tensor::{Tensor, backend::Backend};

use crate::precision::{cast, widened};

/// GELU in its tanh approximation, written with the logistic function, to which it is identical:
///
/// ```text
/// x/2 (1 + tanh u) = x sigmoid(2u),   u = sqrt(2/pi) (x + 0.044715 x^3)
/// ```
/// Half precision is widened for it.
pub fn gelu_tanh<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    let dtype = x.dtype();
    let x = widened(x);
    #[cfg(feature = "flex")]
    if crate::cpu::serves::<B>(&[x.dtype()]) {
        return cast(crate::cpu::gelu_tanh(x), dtype);
    }
    let c = 2.0 * (2.0 / std::f64::consts::PI).sqrt();
    let twice_u = (x.clone().square() * (0.044715 * c) + c) * x.clone();
    cast(x * sigmoid(twice_u), dtype)
}
