//! `bench`: the criterion benches of the package `sar-bench` and their results as a file (with
//! arguments, criterion's, no file), or with `--against-pytorch` its pieces of work next to PyTorch
//! doing the same, with `--gpu` that on a GPU, with `--scaling` how time and memory grow, or with `--ranks` what
//! a step on many ranks would take.

mod cpu;
mod criterion;
mod gpu;
mod paired;
mod ranks;
mod scaling;
mod table;
mod worker;

use std::ffi::OsString;
use std::process::Command;

use crate::cargo::{self, Outcome};

pub(crate) fn run(_verb: &str, args: &[OsString]) -> Outcome {
    match args.split_first() {
        Some((first, rest)) if first == "--against-pytorch" => paired::run(rest),
        Some((first, rest)) if first == "--gpu" => {
            cargo::takes_no_arguments("bench --gpu", rest)?;
            gpu::run()
        }
        Some((first, rest)) if first == "--scaling" => {
            cargo::takes_no_arguments("bench --scaling", rest)?;
            scaling::run()
        }
        Some((first, rest)) if first == "--ranks" => {
            cargo::takes_no_arguments("bench --ranks", rest)?;
            ranks::run()
        }
        None => criterion::run(&mut command(args)),
        Some(_) => cargo::finish_as(&mut command(args)),
    }
}

/// `--package sar-bench` would choose other features of shared dependencies than the tests have,
/// and build burn again; `--bench *` leaves out the unit tests, which know no criterion arguments.
fn command(args: &[OsString]) -> Command {
    let mut command = cargo::cargo(["bench", "--workspace", "--bench", "*", "--"]);
    command.args(args).current_dir(cargo::root());
    command
}
