//! `test`: all unit, integration and documentation tests of the workspace, or the conformance suite
//! on one device.

use std::ffi::OsString;
use std::process::Command;

use crate::cargo::{self, Failure, Outcome};
use crate::device::{self, Device, Kind};
use crate::matrix;

pub(crate) fn run(_verb: &str, args: &[OsString]) -> Outcome {
    let (is_matrix, args) = device::take_flag(args, "--matrix");
    let mut command = match device::named(&args) {
        None if is_matrix => {
            return Err(Failure::Usage("--matrix needs --device wgpu or cuda".into()));
        }
        None => everything(&args),
        Some(name) if is_matrix => return matrix::run(name, &device::without(&args)),
        Some(name) => on_device(name, &[], &device::without(&args))?,
    };
    cargo::finish_as(command.current_dir(cargo::root()))
}

/// `cargo test` in the profile that everything else is built in: a second one would build burn twice.
pub(crate) fn everything(args: &[OsString]) -> Command {
    let mut command = cargo::cargo(["test", "--release", "--no-fail-fast"]);
    // cargo ignores `--package` beside `--workspace`.
    if !selects_packages(args) {
        command.arg("--workspace");
    }
    command.args(args);
    command
}

/// The laws of `sar-conformance` on one device, built with further features of that crate.
pub(crate) fn on_device(
    name: &str,
    features: &[&str],
    args: &[OsString],
) -> Result<Command, Failure> {
    let Some(device) = Device::find(name) else {
        let known = Device::names();
        return Err(Failure::Usage(format!("--device {name}: unknown; known: {known}")));
    };
    let mut command = cargo::cargo(["test", "--release", "--no-fail-fast"]);
    if device.kind == Kind::Gpu {
        command.args(["--package", "sar-conformance"]);
        device.select(&mut command);
        for feature in features {
            command.args(["--features", feature]);
        }
    } else {
        command.arg("--workspace");
    }
    command.args(["--test", device.name]).args(args);
    Ok(command)
}

fn selects_packages(args: &[OsString]) -> bool {
    args.iter()
        .filter_map(|arg| arg.to_str())
        .take_while(|arg| *arg != "--")
        .any(|arg| arg.starts_with("-p") || arg == "--package" || arg.starts_with("--package="))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn the_whole_workspace_is_tested_unless_packages_are_named() {
        let check = |line: &str, expected: &str| {
            assert_eq!(cargo::shown(&everything(&words(line))), format!("cargo {expected}"));
        };
        check("", "test --release --no-fail-fast --workspace");
        check(
            "mask -- --nocapture",
            "test --release --no-fail-fast --workspace mask -- --nocapture",
        );
        check("-p sar-core", "test --release --no-fail-fast -p sar-core");
        check("--package=sar-core", "test --release --no-fail-fast --package=sar-core");
        check("-- -p", "test --release --no-fail-fast --workspace -- -p");
    }

    #[test]
    fn a_device_runs_its_own_tests_only() {
        let command = on_device("ndarray", &[], &words("parity")).unwrap();
        assert_eq!(
            cargo::shown(&command),
            "cargo test --release --no-fail-fast --workspace --test ndarray parity"
        );
        let command = cargo::shown(&on_device("wgpu", &[], &[]).unwrap());
        assert!(command.contains("--package sar-conformance --features wgpu"), "{command}");
        assert!(command.ends_with("--test wgpu"), "{command}");
        assert!(on_device("abacus", &[], &[]).is_err());
    }
}
