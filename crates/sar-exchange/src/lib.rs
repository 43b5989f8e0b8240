#![doc = include_str!("../README.md")]
//!
//! A rank is one process, or one thread of a test. All ranks make the same calls in the same order; every
//! call is an exchange of messages among all of them, so that one that failed is heard of by all others at
//! their next call.

mod error;
mod group;
mod launched;
mod share;
#[cfg(any(feature = "nccl", test))]
mod split;
mod threads;
mod tree;

#[cfg(feature = "mpi")]
pub mod mpi;
#[cfg(feature = "nccl")]
pub mod nccl;

pub use error::ExchangeError;
pub use group::{Exchange, Group};
pub use launched::launched_ranks;
pub use share::{MicroBatches, Share};
pub use threads::threads;
pub use tree::{Node, TreeSum};
