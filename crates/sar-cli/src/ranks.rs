//! The ranks that this process trains with: one alone, or those that an MPI launcher started.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use sar_exchange::{Group, launched_ranks};
use sar_train::together::compare;

use crate::Verdict;
use crate::device::DeviceArg;
#[cfg(feature = "nccl")]
use crate::device::quietly;

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
        Self::of(Group::alone())
    }

    fn of(group: Group) -> Self {
        Self {
            group,
            here: 1,
            #[cfg(feature = "mpi")]
            _engine: None,
        }
    }

    #[cfg(feature = "mpi")]
    fn launched(ranks: usize, deadline: Duration) -> Result<Self> {
        let (engine, group) =
            sar_exchange::mpi::start(deadline).map_err(|error| anyhow::anyhow!("{error}"))?;
        // More of them than a launcher says there may be: of a job in parts it says those of a part.
        if group.ranks() < ranks {
            bail!(
                "started as one of {ranks} ranks, and MPI knows of {}: sar was built with another MPI \
                 than the launcher's, and each would train alone; use the `mpirun` of the former, or \
                 of `srun --mpi=list` what fits it",
                group.ranks()
            );
        }
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

    /// The same ranks as they train: with `nccl` their long messages go from GPU to GPU. What is wrong all ranks say,
    /// or all have heard.
    pub(crate) fn that_train(
        &self,
        nccl: bool,
        device: &DeviceArg,
        deadline: Duration,
    ) -> Result<Group> {
        // Those with it would wait for what those without it never send.
        let setting = if nccl { "on" } else { "off" };
        compare(&self.group, &[("setting of --nccl", setting.to_owned())])?;
        if nccl { self.by_nccl(device, deadline) } else { Ok(self.group.clone()) }
    }

    #[cfg(feature = "nccl")]
    fn by_nccl(&self, device: &DeviceArg, deadline: Duration) -> Result<Group> {
        let gpu = device.cuda_index().inspect_err(|error| self.group.fail(&error.to_string()))?;
        // Of a library that is not there the error says enough.
        let (started, _) = quietly(|| sar_exchange::nccl::start(&self.group, gpu, deadline));
        started.context("--nccl")
    }

    #[cfg(not(feature = "nccl"))]
    fn by_nccl(&self, _: &DeviceArg, _: Duration) -> Result<Group> {
        let why = "--nccl: not compiled into this binary; use \
                   `cargo xtask train --ranks N --nccl --device cuda`, or build with \
                   `cargo build --release -p sar-cli --features nccl`";
        self.group.fail(why);
        bail!(why)
    }

    /// This rank's part of so many workers.
    pub(crate) fn workers(&self, cores: usize) -> usize {
        (cores / self.here).max(1)
    }

    /// How a rank ends for which there is nothing to do, and why: the one that leads says it for all.
    pub(crate) fn ended(&self, error: anyhow::Error) -> Result<Verdict> {
        if self.group.leads() { Err(error) } else { Ok(Verdict::Good) }
    }

    /// An error of this rank alone: among several it says which.
    pub(crate) fn own(&self, error: impl Into<anyhow::Error>) -> anyhow::Error {
        let (error, group) = (error.into(), &self.group);
        if group.is_alone() { error } else { error.context(format!("rank {}", group.rank())) }
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

#[cfg(test)]
mod tests {
    use std::thread;

    use sar_exchange::threads;

    use super::*;

    #[test]
    fn nccl_for_some_ranks_alone_is_refused_by_all() {
        let deadline = Duration::from_secs(60);
        let on_rank = &|group: Group| {
            let (is_last, ranks) = (group.rank() == 2, Ranks::of(group));
            let flex = DeviceArg::named("flex".into());
            assert_eq!(ranks.that_train(false, &flex, deadline).unwrap().ranks(), 3);
            ranks.that_train(is_last, &flex, deadline).unwrap_err().to_string()
        };
        let said: Vec<String> = thread::scope(|scope| {
            let groups = threads(3, deadline).into_iter();
            let ranks: Vec<_> = groups.map(|group| scope.spawn(move || on_rank(group))).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        let difference = "has another setting of --nccl than rank 0 on ";
        assert!(said[0].starts_with("rank 2 on ") && said[0].contains(difference), "{said:?}");
        assert!(said[0].contains(", on, not off; "), "{said:?}");
        assert!(said.iter().all(|line| *line == said[0]), "{said:?}");
    }

    #[test]
    fn nccl_is_refused_in_a_line_without_a_gpu_or_the_feature() {
        let flex = DeviceArg::named("flex".into());
        let error = Ranks::alone().by_nccl(&flex, Duration::from_secs(9)).unwrap_err().to_string();
        let to_do = if cfg!(feature = "nccl") { "--device cuda" } else { "--features nccl" };
        assert!(error.starts_with("--nccl: ") && error.contains(to_do), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}
