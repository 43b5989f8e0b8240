//! `ci`: every check of CI, the cheapest first; it stops at the first that fails.

use std::ffi::OsString;
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
}

pub(crate) fn run(verb: &str, args: &[OsString]) -> Outcome {
    cargo::takes_no_arguments(verb, args)?;
    let mut times = Vec::new();
    for mut step in steps() {
        println!("\n==> {}: {}", step.name, step.shown());
        let start = Instant::now();
        let outcome = step.run();
        times.push((step.name, start.elapsed()));
        if let Err(failure) = outcome {
            report(&times, "FAILED");
            return Err(failure);
        }
    }
    report(&times, "ok");
    Ok(())
}

fn steps() -> Vec<Step> {
    use Work::{Cargo, Check};
    let clippy = "clippy --workspace --all-targets --release -- --deny warnings";
    let mut docs = words("doc --workspace --no-deps --release");
    docs.env("RUSTDOCFLAGS", "--deny warnings");
    vec![
        Step { name: "format", work: Cargo(words("fmt --all --check")) },
        Step { name: "arrows", work: Check(arrows::check_workspace) },
        Step { name: "licences", work: Check(licences::check_workspace) },
        Step { name: "clippy", work: Cargo(words(clippy)) },
        Step { name: "docs", work: Cargo(docs) },
        Step { name: "tests", work: Cargo(test::everything(&[])) },
    ]
}

fn words(line: &str) -> Command {
    cargo::cargo(line.split(' '))
}

impl Step {
    fn shown(&self) -> String {
        match &self.work {
            Work::Cargo(command) => cargo::shown(command),
            Work::Check(_) => format!("cargo xtask {}", self.name),
        }
    }

    fn run(&mut self) -> Outcome {
        match &mut self.work {
            Work::Cargo(command) => cargo::run(command.current_dir(cargo::root())),
            Work::Check(check) => check(),
        }
    }
}

/// The table of wall times; `last` says how the last step ended.
fn report(times: &[(&str, Duration)], last: &str) {
    let total: Duration = times.iter().map(|(_, time)| *time).sum();
    println!();
    for (i, (name, time)) in times.iter().enumerate() {
        let end = if i + 1 == times.len() { last } else { "ok" };
        println!("{name:<9} {:>8.1} s  {end}", time.as_secs_f64());
    }
    println!("{:<9} {:>8.1} s  {last}", "ci", total.as_secs_f64());
}
