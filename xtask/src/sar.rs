//! `train`, `sample`, `pack`, `eval`, `tokenizer-eval`, `study`, `analyze`, `edit`, `serve`, `convert`, `inspect`, `parity`: forwarded to the binary
//! `sar`, built with the backend that `--device` asks for, and with `--fusion` its fusion.

use std::ffi::OsString;

use crate::cargo::{self, Outcome};
use crate::device::{self, Device};
use crate::ranks;

/// The package of the program, which is built alone.
pub(crate) const PACKAGE: &str = "sar-cli";

/// `train`, which may be asked for on several ranks.
pub(crate) fn train(verb: &str, args: &[OsString]) -> Outcome {
    match ranks::train(args)? {
        Some(args) => forward(verb, &args),
        None => Ok(()),
    }
}

pub(crate) fn forward(verb: &str, args: &[OsString]) -> Outcome {
    // The working directory stays the caller's: paths among the arguments are relative to it.
    let mut command = cargo::cargo(["run", "--release", "--package", PACKAGE, "--bin", "sar"]);
    command.arg("--manifest-path").arg(cargo::root().join("Cargo.toml"));
    // A device that nobody knows is built without a feature: `sar` then says what is wrong.
    let (fusion, args) = device::take_flag(args, "--fusion");
    if let Some(device) = device::named(&args).and_then(Device::find) {
        device.select(&mut command);
    }
    if fusion {
        command.args(["--features", "fusion"]);
    }
    cargo::finish_as(command.arg("--").arg(verb).args(args))
}
