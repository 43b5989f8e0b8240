//! `ci`: every check of CI, the cheapest first; it stops at the first that fails.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::cargo::{self, Failure, Outcome};
use crate::device::Device;
use crate::{arrows, features, licenses, links, package, test, web};

struct Step {
    name: &'static str,
    work: Work,
}

enum Work {
    Cargo(Command),
    Check(fn() -> Outcome),
    /// Cannot be done on this machine, and why.
    Skipped(&'static str),
}

pub(crate) fn run(verb: &str, args: &[OsString]) -> Outcome {
    cargo::takes_no_arguments(verb, args)?;
    let mut times = Vec::new();
    for mut step in steps()? {
        println!("\n==> {}: {}", step.name, step.shown());
        let start = Instant::now();
        let outcome = step.run();
        let end = match (&outcome, &step.work) {
            (Err(_), _) => "FAILED",
            (Ok(()), Work::Skipped(_)) => "skipped",
            (Ok(()), _) => "ok",
        };
        times.push((step.name, start.elapsed(), end));
        if outcome.is_err() {
            report(&times, end);
            return outcome;
        }
    }
    report(&times, "ok");
    Ok(())
}

const HUB: &str = "test --release --workspace --features sar-cli/hub --bin sar --test hub";

/// What a machine without a GPU can tell; `sar` with it is compiled in the step after.
const NCCL: &str = "test --release --package sar-exchange --features nccl";

fn steps() -> Result<Vec<Step>, Failure> {
    use Work::{Cargo, Check};
    let clippy = "clippy --workspace --all-targets --release -- --deny warnings";
    let mut docs = words("doc --workspace --no-deps --release");
    docs.env("RUSTDOCFLAGS", "--deny warnings");
    Ok(vec![
        Step { name: "format", work: Cargo(words("fmt --all --check")) },
        Step { name: "arrows", work: Check(arrows::check_workspace) },
        Step { name: "features", work: Check(features::check_workspace) },
        Step { name: "licenses", work: Check(licenses::check_workspace) },
        Step { name: "links", work: Check(links::check_workspace) },
        Step { name: "package", work: Check(package::check_workspace) },
        Step { name: "clippy", work: Cargo(words(clippy)) },
        Step { name: "docs", work: Cargo(docs) },
        Step { name: "tests", work: Cargo(test::everything(&[])) },
        // With the features of all packages nothing of burn is built again.
        Step { name: "hub", work: Cargo(words(HUB)) },
        Step { name: "ranks", work: ranks() },
        Step { name: "nccl", work: Cargo(words(NCCL)) },
        Step { name: "cuda", work: Cargo(cuda()) },
        Step { name: "wasm", work: wasm() },
        Step { name: "wgpu", work: wgpu()? },
    ])
}

/// Training on several ranks, through MPI on this machine.
fn ranks() -> Work {
    if !has_mpi() {
        let why = "no MPI; Debian's is in openmpi-bin, libopenmpi-dev, libclang-dev and clang";
        return Work::Skipped(why);
    }
    // With the features of all packages nothing of burn is built again.
    Work::Cargo(words("test --release --workspace --features sar-cli/mpi --test mpi"))
}

/// What it takes to build with MPI and to run that.
fn has_mpi() -> bool {
    let has = |program: &str| {
        let mut command = Command::new(program);
        command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    ["mpirun", "mpicc", "clang"].into_iter().all(has)
}

/// CUDA code is compiled only: that takes no GPU and no toolkit.
fn cuda() -> Command {
    let mut command = words("check --release --package sar-cli --bin sar");
    command.args(["--package", "sar-conformance", "--test", "cuda"]);
    command.args(["--package", "sar-bench", "--bin", "work"]);
    Device::find("cuda").expect("known").select(&mut command);
    // Of `sar` it is a part that needs MPI.
    if has_mpi() {
        command.args(["--features", "sar-cli/nccl"]);
    }
    command
}

/// What runs in a browser is compiled, where there is a standard library for it. Where there is wasm-bindgen as well,
/// a test has done that and has used it.
fn wasm() -> Work {
    match web::has_target() {
        true => Work::Cargo(web::build()),
        false => Work::Skipped(web::NO_TARGET),
    }
}

/// The laws that a software driver is fast enough for.
fn wgpu() -> Result<Work, Failure> {
    Ok(if has_gpu_driver() {
        Work::Cargo(test::on_device("wgpu", &[], &[])?)
    } else {
        Work::Skipped("no Vulkan driver; one in software is in Debian's mesa-vulkan-drivers")
    })
}

/// Whether wgpu finds a driver: those of Vulkan announce themselves by files, other systems have one.
fn has_gpu_driver() -> bool {
    let named =
        || ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"].iter().any(|name| env::var_os(name).is_some());
    let installed = || {
        ["/usr/share/vulkan/icd.d", "/usr/local/share/vulkan/icd.d", "/etc/vulkan/icd.d"]
            .iter()
            .any(|folder| fs::read_dir(folder).is_ok_and(|mut files| files.next().is_some()))
    };
    !cfg!(target_os = "linux") || named() || installed()
}

fn words(line: &str) -> Command {
    cargo::cargo(line.split(' '))
}

impl Step {
    fn shown(&self) -> String {
        match &self.work {
            Work::Cargo(command) => cargo::shown(command),
            Work::Check(_) => format!("cargo xtask {}", self.name),
            Work::Skipped(why) => format!("skipped: {why}"),
        }
    }

    fn run(&mut self) -> Outcome {
        match &mut self.work {
            Work::Cargo(command) => cargo::run(command.current_dir(cargo::root())),
            Work::Check(check) => check(),
            Work::Skipped(_) => Ok(()),
        }
    }
}

/// The table of wall times and of how each step ended; `last` says how all of it did.
fn report(times: &[(&str, Duration, &str)], last: &str) {
    let total: Duration = times.iter().map(|(_, time, _)| *time).sum();
    println!();
    for (name, time, end) in times {
        println!("{name:<9} {:>8.1} s  {end}", time.as_secs_f64());
    }
    println!("{:<9} {:>8.1} s  {last}", "ci", total.as_secs_f64());
}
