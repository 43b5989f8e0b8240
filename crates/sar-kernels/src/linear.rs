//! `y = x W + b`.

use burn::tensor::{Tensor, backend::Backend};

use crate::precision::cast;

/// Applies a linear layer to rows, in the type of its weights.
///
/// ```text
/// y = x W + b
/// ```
///
/// # Shapes
/// - `x_ri`: `[r, i]`
/// - `weight_io`: `[i, o]`
/// - `bias_o`: `[o]`
/// - output: `[r, o]`
///
/// # Panics
/// If the shapes do not fit.
pub fn linear<B: Backend>(
    x_ri: Tensor<B, 2>,
    weight_io: Tensor<B, 2>,
    bias_o: Tensor<B, 1>,
) -> Tensor<B, 2> {
    let ([_, i], [rows, o]) = (x_ri.dims(), weight_io.dims());
    assert_eq!((i, bias_o.dims()), (rows, [o]), "a linear layer of {rows} to {o}");
    let dtype = weight_io.dtype();
    let (x_ri, bias_o) = (cast(x_ri, dtype), cast(bias_o, dtype));
    #[cfg(feature = "flex")]
    if crate::cpu::serves::<B>(&[dtype]) {
        return crate::cpu::linear(x_ri, weight_io, bias_o);
    }
    x_ri.matmul(weight_io) + bias_o.unsqueeze()
}
