//! Mixed precision: a matrix product is computed in the type of its weights, everything else in
//! single precision or better.

use burn::tensor::{DType, Tensor, backend::Backend};

/// The same values in single precision, if they have half of it (`f16`, `bf16`).
pub fn widened<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    match x.dtype() {
        DType::F16 | DType::BF16 => x.cast(DType::F32),
        _ => x,
    }
}

/// The same values in a type; nothing happens if they have it.
pub(crate) fn cast<B: Backend, const D: usize>(x: Tensor<B, D>, dtype: DType) -> Tensor<B, D> {
    if x.dtype() == dtype { x } else { x.cast(dtype) }
}
