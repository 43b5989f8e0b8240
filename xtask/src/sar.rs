//! `train`, `sample`, `edit`, `convert`, `inspect`, `parity`: forwarded to the binary `sar`, built
//! with the backend that `--device` asks for.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use crate::cargo::{self, Outcome};

/// What it takes to build `sar` for a device.
#[derive(Debug, PartialEq)]
struct Build {
    feature: &'static str,
    /// A GPU build is large: a directory of its own can be deleted whole, and locks out no CPU run.
    own_target: bool,
}

const DEVICES: [(&str, Option<Build>); 4] = [
    ("flex", None),
    ("ndarray", Some(Build { feature: "ndarray", own_target: false })),
    ("wgpu", Some(Build { feature: "wgpu", own_target: true })),
    ("cuda", Some(Build { feature: "cuda", own_target: true })),
];

pub(crate) fn forward(verb: &str, args: &[OsString]) -> Outcome {
    // The working directory stays the caller's: paths among the arguments are relative to it.
    let mut command = cargo::cargo(["run", "--release", "--package", "sar-cli", "--bin", "sar"]);
    command.arg("--manifest-path").arg(cargo::root().join("Cargo.toml"));
    for_device(&mut command, args);
    cargo::finish_as(command.arg("--").arg(verb).args(args))
}

fn for_device(command: &mut Command, args: &[OsString]) {
    // A device that nobody knows is built without a feature: `sar` then says what is wrong.
    let Some(build) = device(args).and_then(build_for) else { return };
    command.arg("--features").arg(build.feature);
    if build.own_target {
        command.arg("--target-dir").arg(target_dir().join(build.feature));
    }
}

/// The name in `--device NAME[:i]` or `--device=NAME[:i]`.
fn device(args: &[OsString]) -> Option<&str> {
    let mut args = args.iter().map_while(|arg| match arg.to_str() {
        Some("--") => None,
        text => Some(text.unwrap_or_default()),
    });
    let device = args.find_map(|arg| match arg.strip_prefix("--device") {
        Some("") => Some(None),
        Some(rest) => rest.strip_prefix('=').map(Some),
        None => None,
    })?;
    let device = device.or_else(|| args.next())?;
    Some(device.split_once(':').map_or(device, |(name, _index)| name))
}

fn build_for(device: &str) -> Option<&'static Build> {
    DEVICES.iter().find(|(name, _)| *name == device).and_then(|(_, build)| build.as_ref())
}

fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| cargo::root().join("target"), PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_is_found_in_every_spelling() {
        let check = |line: &str, expected: Option<&str>| {
            let args: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
            assert_eq!(device(&args), expected, "{line}");
        };
        check("", None);
        check("--recipe emoji-quick", None);
        check("--device cuda", Some("cuda"));
        check("--device cuda:1 --seed 7", Some("cuda"));
        check("--seed 7 --device=wgpu", Some("wgpu"));
        check("--device=ndarray:0", Some("ndarray"));
        check("--device", None);
        check("--devices cuda", None);
        check("--out cuda", None);
        check("-- --device cuda", None);
    }

    #[test]
    fn flex_and_unknown_devices_need_no_feature() {
        assert_eq!(build_for("flex"), None);
        assert_eq!(build_for("abacus"), None);
        assert_eq!(build_for("ndarray"), Some(&Build { feature: "ndarray", own_target: false }));
        assert_eq!(build_for("cuda"), Some(&Build { feature: "cuda", own_target: true }));
    }

    #[test]
    fn the_command_names_feature_and_target_directory() {
        let mut command = cargo::cargo(["run"]);
        for_device(&mut command, &["--device".into(), "cuda:1".into()]);
        let args: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy()).collect();
        assert_eq!(args[..4], ["run", "--features", "cuda", "--target-dir"]);
        assert!(PathBuf::from(&*args[4]).ends_with("cuda"), "{}", args[4]);
    }
}
