#![doc = include_str!("../README.md")]

mod attention;
pub mod backbone;
mod block;
pub mod config;
mod drop_path;
mod first;
mod init;
mod positions;
mod precision;
mod released;
mod visibility;

pub use backbone::{Backbone, PartialPass, Pass};
pub use config::{BackboneConfig, BackboneConfigError, BackboneShape, PositionsConfig};
pub use drop_path::DropPath;
pub use first::FirstToken;
pub use init::{Init, init};
pub use precision::{Precision, UnknownPrecision};
pub use released::{ANCHOR, Hints, LAYOUT};
pub use visibility::Visibility;
