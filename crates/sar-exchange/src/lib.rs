//! What the ranks of a distributed training tell each other.
//!
//! A rank is one process, or one thread of a test. All ranks make the same calls in the same order; every
//! call is an exchange of messages among all of them, so that one that failed is heard of by all others at
//! their next call. Nothing here knows of tensors.
//!
//! ```
//! use sar_exchange::{Group, threads};
//!
//! let sums: Vec<usize> = std::thread::scope(|scope| {
//!     let rank = |group: Group| {
//!         let all = group.all_gather(&[group.rank() as u8])?;
//!         Ok::<_, sar_exchange::ExchangeError>(all.iter().map(|bytes| usize::from(bytes[0])).sum())
//!     };
//!     let ranks = threads(3, std::time::Duration::from_secs(9));
//!     let running: Vec<_> = ranks.into_iter().map(|group| scope.spawn(move || rank(group))).collect();
//!     running.into_iter().map(|thread| thread.join().expect("no panic").expect("all are there")).collect()
//! });
//! assert_eq!(sums, [3, 3, 3]);
//! ```

mod error;
mod group;
mod launched;
mod share;
mod threads;
mod tree;

#[cfg(feature = "mpi")]
pub mod mpi;

pub use error::ExchangeError;
pub use group::{Exchange, Group};
pub use launched::launched_ranks;
pub use share::{MicroBatches, Share};
pub use threads::threads;
pub use tree::{Node, TreeSum};
