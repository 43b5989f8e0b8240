//! The scale-wise transformer of VAR (arXiv:2404.02905) and FlexVAR (arXiv:2502.20313): predicts
//! all tokens of a scale at once from every coarser scale.

mod attention;
pub mod backbone;
mod block;
pub mod config;
mod init;
mod positions;
mod precision;
mod stochastic_depth;

pub use backbone::{Backbone, FirstToken, LAYOUT, PartialPass, Pass};
pub use config::{BackboneConfig, BackboneConfigError, PositionsConfig};
pub use init::{Init, init};
pub use precision::{Precision, UnknownPrecision};
pub use stochastic_depth::StochasticDepth;
