//! `features`: whether tests share their build of burn with the program.
//!
//! Cargo unites the features of what is built together. A development dependency that turns on a feature of a
//! crate below burn makes cargo build burn once more for the tests, which costs a new user minutes.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;

use crate::cargo::{self, Failure, Outcome};
use crate::sar::PACKAGE;

/// Packages with the sets of features that they are built with.
type Features = BTreeMap<String, BTreeSet<String>>;

pub(crate) fn run(verb: &str, args: &[OsString]) -> Outcome {
    cargo::takes_no_arguments(verb, args)?;
    check_workspace()
}

/// Compares the features of the program, which is built alone, with those of all tests together.
pub(crate) fn check_workspace() -> Outcome {
    let program = tree(&["--package", PACKAGE, "--edges", "normal,build"])?;
    let tests = tree(&["--workspace", "--edges", "normal,build,dev"])?;
    let burn = tree(&["--package", "burn", "--package", "burn-flex", "--edges", "normal,build"])?;
    match differences(&program, &tests, &burn).as_slice() {
        [] => Ok(()),
        found => Err(Failure::Check(format!(
            "tests would build burn again, for they turn on features below it; name these in \
             crates/sar-cli/Cargo.toml: {}",
            found.join("; ")
        ))),
    }
}

fn tree(arguments: &[&str]) -> Result<Features, Failure> {
    let mut command = cargo::cargo(["tree", "--prefix", "none", "--format", "{p}|{f}"]);
    let text = cargo::output(command.args(arguments).current_dir(cargo::root()))?;
    Ok(parsed(&text))
}

fn parsed(text: &str) -> Features {
    let mut features = Features::new();
    for line in text.lines() {
        let Some((package, of)) = line.split_once('|') else { continue };
        let package = package.trim_end_matches(" (proc-macro)");
        let of = of.trim_end_matches(" (*)").trim();
        features.entry(package.to_owned()).or_default().insert(of.to_owned());
    }
    features
}

/// What the tests turn on in packages of burn that the program has without it.
fn differences(program: &Features, tests: &Features, burn: &Features) -> Vec<String> {
    let of_burn = program.iter().filter(|(package, _)| burn.contains_key(*package));
    let differs = |(package, of): (&String, &BTreeSet<String>)| {
        let theirs = tests.get(package)?;
        let shown = |of: &BTreeSet<String>| of.iter().cloned().collect::<Vec<_>>().join(" and ");
        let line = || format!("{package} has {}, in tests {}", shown(of), shown(theirs));
        (!of.is_subset(theirs)).then(line)
    };
    of_burn.filter_map(differs).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_below_burn_are_the_same_in_tests() {
        let burn = parsed("burn v1|std\nrand v0.10.4|std\nlibc v1|std\n");
        let program = parsed("rand v0.10.4|std\nlibc v1|std\nrand v0.10.4|std (*)\nserde v1|std\n");
        assert_eq!(program["rand v0.10.4"].len(), 1);
        let tests =
            parsed("rand v0.10.4|default,std\nlibc v1|std\nlibc v1|default,std\nserde v1|\n");
        let found = differences(&program, &tests, &burn);
        assert_eq!(found, ["rand v0.10.4 has std, in tests default,std"]);
        assert!(differences(&program, &program, &burn).is_empty());
    }
}
