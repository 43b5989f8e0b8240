//! Laws and golden numbers that hold on every burn backend, written once.
//!
//! One line in a test file of your own makes a `#[test]` of every law for a backend:
//!
//! ```no_run
//! use burn::backend::Autodiff;
//! use burn_flex::Flex;
//!
//! sar_conformance::tests!(Autodiff<Flex>);
//! ```
//!
//! A slow or unfinished backend starts with a part of them, or with single laws of a part:
//!
//! ```no_run
//! # use burn::backend::Autodiff;
//! # use burn_flex::Flex;
//! sar_conformance::tests!(Autodiff<Flex>; kernels, parity(flexvar_tiny));
//! ```
//!
//! The tests run on the backend's default device. A law is a plain function too, so that it can be
//! called with any other device:
//!
//! ```
//! use burn_flex::Flex;
//! sar_conformance::kernels::resampling_equals_its_definition::<Flex>(&Default::default());
//! ```
//!
//! | part | what it holds a backend to | over |
//! |---|---|---|
//! | [`kernels`] | single operations against f64 on the host and against published numbers | `B: Backend` |
//! | [`operators`] | the operators of `sar-kernels` and their gradients, against f64 on the host | `A: AutodiffBackend` |
//! | [`large`] | operations at the sizes that fast kernels are chosen for, against f64 on the host | `B: Backend` |
//! | [`model`] | the backbone: who sees whom, cached equals parallel | `B: Backend` |
//! | [`first_scale`] | a first scale of several tokens, masked or in a random order | `B: Backend` |
//! | [`rollout`] | generation: independent of the batch, equal to the parallel pass | `B: Backend` |
//! | [`training`] | gradients against finite differences, optimizer, a falling loss | `A: AutodiffBackend` |
//! | [`parity`] | the golden cases of the released PyTorch code, forward, backward, AdamW, sampling | `A: AutodiffBackend` |
//!
//! Every law panics, with what it found, when it does not hold. A backend needs f32 and integers of
//! 32 bits; neither f64 nor i64 is asked for on the device.

mod differences;
mod host;
mod suite;
mod tiny;

pub mod first_scale;
pub mod kernels;
pub mod large;
pub mod model;
pub mod operators;
pub mod parity;
pub mod rollout;
pub mod training;

// What the macro names on behalf of its caller.
#[doc(hidden)]
pub use burn;
#[doc(hidden)]
pub use suite::alone;
