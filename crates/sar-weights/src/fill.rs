//! Filling a module by the names of its parameters.

use burn::module::Module;
use burn::tensor::TensorData;
use burn::tensor::backend::Backend;

use crate::bind::{bind, parameters};
use crate::layout::Layout;
use crate::named::NamedTensors;

/// Gives every parameter the values that `values` returns for its name and shape in the file, in
/// the order in which the module is visited: initialization as a table of names.
///
/// # Panics
/// If `values` returns another number of values than the shape asks for, or a value that is not
/// finite.
pub fn fill<B: Backend, M: Module<B>>(
    module: M,
    layout: &Layout,
    mut values: impl FnMut(&str, &[usize]) -> Vec<f32>,
) -> M {
    let mut tensors = NamedTensors::new();
    for parameter in parameters(&module, layout) {
        let values = values(&parameter.name, &parameter.shape);
        tensors.insert(parameter.name, TensorData::new(values, parameter.shape));
    }
    bind(module, tensors, layout).expect("finite values for the module's own parameters")
}
