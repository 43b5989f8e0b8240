//! With what a result was made: the program, the machine, the command.

use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::Result;
use sar_train::program::program;
use serde::{Deserialize, Serialize};

use super::unit::{read, write};

/// What a program is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Code {
    /// Its version and a checksum of itself.
    pub(super) program: String,
    /// The commit that it was built from, with `-dirty` where something was changed; none where that is not known.
    pub(super) commit: Option<String>,
    /// What computed, on which machine.
    pub(super) machine: String,
}

impl Code {
    /// This program; `arithmetic` is what it computes with.
    pub(super) fn own(arithmetic: &str) -> Result<Self> {
        Ok(Self {
            program: program()?,
            commit: option_env!("SAR_COMMIT").map(str::to_owned),
            machine: format!("{}, {arithmetic}", machine()),
        })
    }

    /// Takes down that a run is trained by this program, among those that have trained it before.
    pub(super) fn trains(&self, run: &Path) -> Result<()> {
        let mut all = Self::that_trained(run)?;
        if all.contains(self) {
            return Ok(());
        }
        all.push(self.clone());
        write(&beside(run), &all)
    }

    /// What a run was trained by.
    pub(super) fn that_trained(run: &Path) -> Result<Vec<Self>> {
        Ok(read(&beside(run))?.unwrap_or_default())
    }
}

/// A new run's folder has to be empty.
fn beside(run: &Path) -> PathBuf {
    let mut name = run.file_name().unwrap_or_default().to_owned();
    name.push(".code.json");
    run.with_file_name(name)
}

/// Processor and number of cores.
fn machine() -> String {
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = processor.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{}, {cores} cores", name.map_or(env::consts::ARCH, |(_, name)| name.trim()))
}

/// The command as it was given.
pub(super) fn command() -> String {
    let words = env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned());
    std::iter::once("sar".into()).chain(words).collect::<Vec<_>>().join(" ")
}
