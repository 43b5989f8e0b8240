//! With what a result was made: the code, the machine, the command.

use std::process::Command;
use std::{env, fs};

use serde::{Deserialize, Serialize};

/// What a program is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Code {
    /// Its version.
    pub(super) version: String,
    /// The commit of its sources, with `-dirty` where they were changed; none where they are not there.
    pub(super) commit: Option<String>,
    /// CRC-32 of the program itself, in hexadecimal.
    pub(super) program: Option<String>,
    /// What computed, on which machine.
    pub(super) machine: String,
}

impl Code {
    /// This program; `arithmetic` is what it computes with.
    pub(super) fn own(arithmetic: &str) -> Self {
        let program = env::current_exe().ok().and_then(|path| fs::read(path).ok());
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            commit: commit(),
            program: program.map(|bytes| format!("{:08x}", crc32fast::hash(&bytes))),
            machine: format!("{}, {arithmetic}", machine()),
        }
    }
}

/// The commit of the sources that the program was built from, as they are now.
fn commit() -> Option<String> {
    let describe = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"];
    let output = Command::new("git")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(describe)
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
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
