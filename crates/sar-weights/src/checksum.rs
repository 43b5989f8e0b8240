//! A name for the values of a module.

use burn::module::Module;
use burn::tensor::backend::Backend;

use crate::bind::collect;
use crate::layout::Layout;

/// CRC-32 of a module's parameters with their names, in hexadecimal: good against accidents, no
/// protection from malice.
///
/// # Panics
/// As [`collect`](crate::collect).
pub fn checksum<B: Backend, M: Module<B>>(module: &M, layout: &Layout) -> String {
    let mut hasher = crc32fast::Hasher::new();
    for (name, data) in collect(module, layout) {
        hasher.update(name.as_bytes());
        hasher.update(data.as_bytes());
    }
    format!("{:08x}", hasher.finalize())
}
