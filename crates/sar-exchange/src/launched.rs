//! What a launcher of MPI says in the environment.

use std::env;

/// The ranks that a launcher started this process as one of; nothing without one.
///
/// A program without the engine would otherwise be so many programs that do the same into the same folder.
pub fn launched_ranks() -> Option<usize> {
    said(|name| env::var(name).ok())
}

/// The same of an environment.
fn said(variable: impl Fn(&str) -> Option<String>) -> Option<usize> {
    let number = |name: &str| variable(name)?.parse::<usize>().ok();
    let by_slurm = || variable("PMIX_RANK").and_then(|_| number("SLURM_STEP_NUM_TASKS"));
    ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"]
        .into_iter()
        .find_map(number)
        .or_else(by_slurm)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_launcher_says_how_many_there_are() {
        let said = |variables: &[(&str, &str)]| {
            said(|name| {
                let known = variables.iter().find(|(known, _)| *known == name);
                known.map(|(_, value)| (*value).to_owned())
            })
        };
        // Open MPI; MPICH, Intel MPI and SLURM with PMI2; MVAPICH2; SLURM with PMIx.
        assert_eq!(said(&[("OMPI_COMM_WORLD_RANK", "2"), ("OMPI_COMM_WORLD_SIZE", "4")]), Some(4));
        assert_eq!(said(&[("PMI_RANK", "0"), ("PMI_SIZE", "3")]), Some(3));
        assert_eq!(said(&[("MV2_COMM_WORLD_SIZE", "8")]), Some(8));
        let step = ("SLURM_STEP_NUM_TASKS", "16");
        assert_eq!(said(&[("PMIX_RANK", "15"), step]), Some(16));
        // A batch script of SLURM, and a program in it without a launcher, are not one of many.
        assert_eq!(said(&[("SLURM_NTASKS", "16"), step]), None);
        assert_eq!(said(&[("OMPI_COMM_WORLD_SIZE", "many")]), None);
        assert_eq!(said(&[]), None);
    }
}
