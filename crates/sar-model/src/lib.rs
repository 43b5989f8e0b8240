//! The scale-wise transformer of VAR (arXiv:2404.02905) and FlexVAR (arXiv:2502.20313): predicts
//! all tokens of a scale at once from every coarser scale.

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
