//! `test`: all unit, integration and documentation tests of the workspace.

use std::ffi::OsString;
use std::process::Command;

use crate::cargo::{self, Outcome};

pub(crate) fn run(_verb: &str, args: &[OsString]) -> Outcome {
    cargo::finish_as(command(args).current_dir(cargo::root()))
}

/// `cargo test` in the profile that everything else is built in: a second one would build burn twice.
pub(crate) fn command(args: &[OsString]) -> Command {
    let mut command = cargo::cargo(["test", "--release", "--no-fail-fast"]);
    // cargo ignores `--package` beside `--workspace`.
    if !selects_packages(args) {
        command.arg("--workspace");
    }
    command.args(args);
    command
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

    #[test]
    fn the_whole_workspace_is_tested_unless_packages_are_named() {
        let check = |line: &str, expected: &str| {
            let args: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
            assert_eq!(cargo::shown(&command(&args)), format!("cargo {expected}"));
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
}
