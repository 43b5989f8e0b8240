//! Why an exchange failed.

/// Why an exchange failed; every message is one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExchangeError {
    /// A rank could not go on, and said so to all.
    #[error("rank {rank}: {why}")]
    Failed {
        /// Which.
        rank: usize,
        /// Its own words.
        why: String,
    },
    /// A rank was waited for in vain.
    #[error(
        "rank {rank} gave no sign of life for {seconds} s; it hangs, or its machine or link is gone"
    )]
    Silent {
        /// Which.
        rank: usize,
        /// For how long.
        seconds: u64,
    },
    /// Ranks do not make the same calls.
    #[error("rank {rank} sent what nobody asked for; all ranks have to run the same program")]
    Unexpected {
        /// Which.
        rank: usize,
    },
}
