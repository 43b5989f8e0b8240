//! `ci`: every check of CI, the cheapest first; it stops at the first that fails.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::cargo::{self, Outcome};
use crate::{arrows, licences, test};

struct Step {
    name: &'static str,
    work: Work,
}

enum Work {
    Cargo(Command),
    Check(fn() -> Outcome),
    /// Not done here, for this reason.
    Skip(&'static str),
}

pub(crate) fn run(verb: &str, args: &[OsString]) -> Outcome {
    cargo::takes_no_arguments(verb, args)?;
    let mut times = Vec::new();
    for mut step in steps()? {
        println!("\n==> {}: {}", step.name, step.shown());
        let start = Instant::now();
        let outcome = step.run();
        let end = if matches!(step.work, Work::Skip(_)) { "SKIPPED" } else { "ok" };
        times.push((step.name, start.elapsed(), if outcome.is_ok() { end } else { "FAILED" }));
        if outcome.is_err() {
            report(&times, "FAILED");
            return outcome;
        }
    }
    report(&times, "ok");
    Ok(())
}

fn steps() -> Result<Vec<Step>, cargo::Failure> {
    use Work::{Cargo, Check, Skip};
    let clippy = "clippy --workspace --all-targets --release -- --deny warnings";
    let mut docs = words("doc --workspace --no-deps --release");
    docs.env("RUSTDOCFLAGS", "--deny warnings");
    // In CI a missing driver is a failure, not a reason.
    let wgpu = if env::var_os("CI").is_some() || has_gpu_driver() {
        Cargo(test::on_device("wgpu", &[])?)
    } else {
        Skip("no Vulkan driver here; Debian's mesa-vulkan-drivers is one in software")
    };
    Ok(vec![
        Step { name: "format", work: Cargo(words("fmt --all --check")) },
        Step { name: "arrows", work: Check(arrows::check_workspace) },
        Step { name: "licences", work: Check(licences::check_workspace) },
        Step { name: "clippy", work: Cargo(words(clippy)) },
        Step { name: "docs", work: Cargo(docs) },
        Step { name: "tests", work: Cargo(test::everything(&[])) },
        Step { name: "wgpu", work: wgpu },
    ])
}

fn words(line: &str) -> Command {
    cargo::cargo(line.split(' '))
}

/// Whether wgpu finds a driver: always outside Linux; there, where the Vulkan loader looks.
fn has_gpu_driver() -> bool {
    let named = ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"];
    if !cfg!(target_os = "linux") || named.iter().any(|name| env::var_os(name).is_some()) {
        return true;
    }
    let home = env::var_os("HOME").map(|home| Path::new(&home).join(".local/share"));
    let system = ["/etc", "/usr/local/share", "/usr/share"].map(PathBuf::from);
    let manifests = |folder: PathBuf| folder.join("vulkan/icd.d").read_dir();
    home.into_iter()
        .chain(system)
        .any(|folder| manifests(folder).is_ok_and(|mut manifests| manifests.next().is_some()))
}

impl Step {
    fn shown(&self) -> String {
        match &self.work {
            Work::Cargo(command) => cargo::shown(command),
            Work::Check(_) => format!("cargo xtask {}", self.name),
            Work::Skip(reason) => format!("SKIPPED, {reason}"),
        }
    }

    fn run(&mut self) -> Outcome {
        match &mut self.work {
            Work::Cargo(command) => cargo::run(command.current_dir(cargo::root())),
            Work::Check(check) => check(),
            Work::Skip(_) => Ok(()),
        }
    }
}

/// The table of wall times and how the steps ended; `verdict` is that of all.
fn report(times: &[(&str, Duration, &str)], verdict: &str) {
    let total: Duration = times.iter().map(|(_, time, _)| *time).sum();
    println!();
    for (name, time, end) in times {
        println!("{name:<9} {:>8.1} s  {end}", time.as_secs_f64());
    }
    println!("{:<9} {:>8.1} s  {verdict}", "ci", total.as_secs_f64());
}
