//! What a launcher of MPI says in the environment.

use std::env;

/// The ranks that a launcher started this process as one of; nothing without one.
///
/// A program without the engine would otherwise be so many programs that do the same into the same folder.
pub fn launched_ranks() -> Option<usize> {
    let number = |name: &str| env::var(name).ok()?.parse::<usize>().ok();
    let by_slurm = || env::var_os("PMIX_RANK").and_then(|_| number("SLURM_STEP_NUM_TASKS"));
    ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"]
        .into_iter()
        .find_map(number)
        .or_else(by_slurm)
}
