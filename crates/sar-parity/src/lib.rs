#![doc = include_str!("../README.md")]
//!
//! The rules: integers are equal, except where the two candidates are within 1e-4 of each other;
//! floats are within 1e-4 of the largest magnitude of their tensor, gradients within 1e-3; an AdamW
//! step is compared as the change, within 2 % of the learning rate, wherever the gradient is over
//! 1e-5 of its tensor's largest. A golden tensor that is not recomputed fails.

mod case;
mod check;
mod compare;
mod tokenizer;
mod training;

pub use case::{Case, CaseError, SamplingCase};
pub use check::check;
pub use compare::{Report, Row};
