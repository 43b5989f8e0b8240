//! Checksums, and with them a name for the values of a module.

use std::fmt;

use burn::module::Module;
use burn::tensor::backend::Backend;

use crate::layout::Layout;
use crate::module_tensors::ModuleTensors;

/// CRC-32 of bytes as they come, shown as eight hexadecimal digits: good against accidents, no
/// protection from malice.
#[derive(Clone, Debug, Default)]
pub struct Crc32(crc32fast::Hasher);

impl Crc32 {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let mut crc = Self::default();
        crc.update(bytes);
        crc
    }

    /// Takes in more bytes, behind those before.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
}

impl fmt::Display for Crc32 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0.clone().finalize())
    }
}

/// [`Crc32`] of a module's parameters with their names. One parameter at a time is copied from the
/// device.
///
/// # Panics
/// As [`ModuleTensors::new`].
pub fn checksum<B: Backend, M: Module<B>>(module: &M, layout: &Layout) -> String {
    let mut crc = Crc32::default();
    let tensors = ModuleTensors::<B, M>::new("", module, layout);
    let mut names: Vec<&str> = tensors.infos().iter().map(|info| info.name.as_str()).collect();
    names.sort_unstable();
    for name in names {
        crc.update(name.as_bytes());
        crc.update(tensors.read(name).expect("one of its names").as_bytes());
    }
    crc.to_string()
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
        assert_eq!(checksum(&linear, &Layout::default()), Crc32::of(&bytes).to_string());
    }

    #[test]
    fn eight_digits_of_all_bytes() {
        // The check value of the polynomial, and a leading zero: Python's zlib.crc32(b"62").
        assert_eq!(Crc32::of(b"123456789").to_string(), "cbf43926");
        assert_eq!(Crc32::of(b"62").to_string(), "0012d20a");
        let mut crc = Crc32::of(b"1234");
        assert_eq!(crc.to_string(), "9be3e0a3");
        crc.update(b"56789");
        assert_eq!(crc.to_string(), "cbf43926");
    }
}
