#![doc = include_str!("../README.md")]
//!
//! An [`Engine`] is a [`Pipeline`](sar_pipeline::Pipeline) without its backend's type; [`SampleRequest`] and [`EditRequest`] become
//! [`Work`], and [`draw`] does it.

mod bounds;
mod refused;

mod engine;
mod request;

mod drawing;

pub use bounds::Bounds;
pub use drawing::{Told, draw};
pub use engine::{Engine, Seen, What, Work};
pub use refused::Refused;
pub use request::{Decoded, EditRequest, Mode, SampleRequest, decode_png, parse};
