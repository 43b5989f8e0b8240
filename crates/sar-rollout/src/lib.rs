#![doc = include_str!("../README.md")]
//!
//! The two traits are [`sar_core::ScaleModel`] and [`sar_core::CodePyramid`].

pub mod draw;
pub mod edit;
pub mod filter;
pub mod generate;
pub mod guidance;
mod reveal;
pub mod stagger;

// What a model of one's own implements and hands in.
pub use sar_core;

pub use draw::{argmax, draw, gumbel_softmax};
pub use edit::{KeptTokens, Region};
pub use filter::Filters;
pub use generate::{Choice, Chosen, Generated, Request, Sampler, generate, generate_watched};
pub use guidance::{Guidance, guide};
pub use stagger::{Predictions, StudentContext, StudentPass, Transitions, stagger};
