#![doc = include_str!("../README.md")]
//!
//! GPU backends of burn 0.21 have had faults that give wrong numbers without an error: products that
//! read past their inner size, products of a single column, cached kernels that answer for other
//! inputs, gradients that are lost. Which of them a machine has depends on its driver, on the
//! features that the backend was built with and on what autotune measured. [`self_check`] finds out
//! within seconds, at the sizes that the models really use:
//!
//! | probes | what they compare | with |
//! |---|---|---|
//! | [`products`] | matrix products of inner size 64 to 8912: 680 rows, one row, one column, transposed, batched; a convolution | f64 on the host |
//! | [`operations`] | a chain that fusion makes one kernel of, run twice; sums, argmax, gather, select | f64 on the host |
//! | [`draws`] | codes drawn through cumulative sums, most probabilities being zero | f64 on the host |
//! | [`backbone`] | logits of a block over 680 tokens, and the gradient of every parameter | the same code on a host backend |
//!
//! # The two backends
//!
//! A block written by hand in f64 would be a second implementation of the model. The block is
//! therefore compared with the same code on a second backend `H`, which the caller chooses: one that
//! runs on the CPU and is tested there, such as `burn-flex`. Everything below the block is compared
//! with plain Rust, so that a fault that both backends share does not hide.
//!
//! # What "f32" means on a GPU
//!
//! burn may compute products of f32 tensors in TF32 on NVIDIA GPUs: inputs are rounded to 10 bits of
//! mantissa, sums are in f32. Autotune chooses it by timing, so it can differ from one shape, machine
//! or run to the next. It is allowed, and said: [`Report::f32_products`] is then
//! [`Precision::Reduced`]. Expect 3 digits of such products instead of 7; what is compared at 1e-4
//! elsewhere, such as the parity cases, cannot be expected to hold there. A code of probability zero
//! is never drawn, whatever the precision.
//!
//! A product further from the host than TF32 explains is refused, one rounded to bf16 included.

mod block;
mod draw;
mod host;
mod operation;
mod probe;
mod product;
mod report;

pub use block::backbone;
pub use draw::draws;
pub use operation::operations;
pub use probe::{Outcome, Precision, Probe};
pub use product::products;
pub use report::{Report, SelfCheckError};

use burn::tensor::backend::{AutodiffBackend, Backend};

/// Compares a device with the host; takes about a second on a CPU, on a GPU the time to compile its
/// kernels on top.
///
/// Run it before other work: a backward pass on another thread could free the graph of the block
/// (burn issue 5573), and a fault would be reported that the device does not have.
///
/// # Errors
/// If anything differs by more than rounding explains, or the device panics: every probe that failed,
/// with how far off it is.
pub fn self_check<A: AutodiffBackend, H: AutodiffBackend>(
    device: &A::Device,
    host: &H::Device,
) -> Result<Report, SelfCheckError> {
    let mut probes = products::<A::InnerBackend>(device);
    let precision = Precision::of(&probes);
    probes.extend(operations::<A::InnerBackend>(device));
    probes.extend(draws::<A::InnerBackend>(device, precision));
    probes.extend(backbone::<A, H>(device, host, precision));
    Report::new(<A::InnerBackend as Backend>::name(device), probes)
}
