//! A name for the values of a module.

use burn::module::Module;
use burn::tensor::backend::Backend;

use crate::layout::Layout;
use crate::module_tensors::ModuleTensors;

/// CRC-32 of a module's parameters with their names, in hexadecimal: good against accidents, no
/// protection from malice. One parameter at a time is copied from the device.
///
/// # Panics
/// As [`ModuleTensors::new`].
pub fn checksum<B: Backend, M: Module<B>>(module: &M, layout: &Layout) -> String {
    let mut hasher = crc32fast::Hasher::new();
    let tensors = ModuleTensors::<B, M>::new("", module, layout);
    let mut names: Vec<&str> = tensors.infos().iter().map(|info| info.name.as_str()).collect();
    names.sort_unstable();
    for name in names {
        hasher.update(name.as_bytes());
        hasher.update(tensors.read(name).expect("one of its names").as_bytes());
    }
    format!("{:08x}", hasher.finalize())
}

#[cfg(test)]
mod tests {
    use burn::nn::{Linear, LinearConfig};
    use burn::tensor::Tensor;
    use burn_flex::Flex;

    use super::*;

    #[test]
    fn it_is_of_names_and_values_in_the_order_of_names() {
        let device = Default::default();
        let mut linear: Linear<Flex> = LinearConfig::new(1, 2).init(&device);
        linear.weight = linear.weight.map(|_| Tensor::from_floats([[1.0, 2.0]], &device));
        linear.bias =
            linear.bias.map(|bias| bias.map(|_| Tensor::from_floats([3.0, 4.0], &device)));
        let floats = |values: [f32; 2]| values.map(f32::to_le_bytes).concat();
        let bytes = [&b"bias"[..], &floats([3.0, 4.0]), b"weight", &floats([1.0, 2.0])].concat();
        let expected = format!("{:08x}", crc32fast::hash(&bytes));
        assert_eq!(checksum(&linear, &Layout::default()), expected);
    }
}
