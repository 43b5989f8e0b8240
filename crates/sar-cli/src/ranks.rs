//! The ranks that this process trains with: one alone, or those that an MPI launcher started.

use std::time::Duration;

#[cfg(not(feature = "mpi"))]
use anyhow::bail;
use anyhow::{Context, Result};
use sar_exchange::{Group, launched_ranks};

use crate::Verdict;

/// The group of this process, and with it the engine that has to outlive it.
pub(crate) struct Ranks {
    pub(crate) group: Group,
    /// Ranks on this machine, which share its cores.
    here: usize,
    #[cfg(feature = "mpi")]
    _engine: Option<sar_exchange::mpi::Engine>,
}

impl Ranks {
    /// The ranks that a launcher started, or one.
    pub(crate) fn start(deadline: Duration) -> Result<Self> {
        match launched_ranks() {
            None => Ok(Self::alone()),
            Some(ranks) => Self::launched(ranks, deadline),
        }
    }

    fn alone() -> Self {
        Self {
            group: Group::alone(),
            here: 1,
            #[cfg(feature = "mpi")]
            _engine: None,
        }
    }

    #[cfg(feature = "mpi")]
    fn launched(_: usize, deadline: Duration) -> Result<Self> {
        let (engine, group) =
            sar_exchange::mpi::start(deadline).map_err(|error| anyhow::anyhow!("{error}"))?;
        Ok(Self { group, here: engine.ranks_here(), _engine: Some(engine) })
    }

    #[cfg(not(feature = "mpi"))]
    fn launched(ranks: usize, _: Duration) -> Result<Self> {
        match ranks {
            1 => Ok(Self::alone()),
            _ => bail!(
                "started as one of {ranks} ranks, and built without MPI: each would train alone; \
                 use `cargo xtask train --ranks {ranks}`, or build with \
                 `cargo build --release -p sar-cli --features mpi`"
            ),
        }
    }

    /// This rank's part of so many workers.
    pub(crate) fn workers(&self, cores: usize) -> usize {
        (cores / self.here).max(1)
    }

    /// How a rank ends for which there is nothing to do, and why: the one that leads says it for all.
    pub(crate) fn ended(&self, error: anyhow::Error) -> Result<Verdict> {
        if self.group.leads() { Err(error) } else { Ok(Verdict::Good) }
    }

    /// What the rank that leads makes, for all of them; where it cannot, its own error there, and its words
    /// elsewhere.
    pub(crate) fn of_leader(&self, make: impl FnOnce() -> Result<String>) -> Result<String> {
        let bytes = self.group.from_rank(0, || {
            let made = make().map(String::into_bytes);
            made.inspect_err(|error| self.group.fail(&format!("{error:#}")))
        })?;
        String::from_utf8(bytes).context("what rank 0 has sent is no text")
    }
}
