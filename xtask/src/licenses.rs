//! `licenses`: what the dependencies are licensed under, and where they come from.

use std::ffi::OsString;
use std::fs;

use crate::cargo::{self, Failure, Outcome};

const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Licenses that a program under MIT OR Apache-2.0 may be linked with, without a second thought.
const ALLOWED: [&str; 13] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// A license that one package alone may have. One that is no longer needed fails the check.
struct Exception {
    package: &'static str,
    license: &'static str,
    reason: &'static str,
}

const EXCEPTIONS: [Exception; 3] = [
    Exception {
        package: "colored",
        license: "MPL-2.0",
        reason: "file-level copyleft, used unmodified; goes when burn-tensor prints without it",
    },
    Exception {
        package: "option-ext",
        license: "MPL-2.0",
        reason: "file-level copyleft, used unmodified; goes when cubecl-common drops `dirs`",
    },
    Exception {
        package: "webpki-roots",
        license: "CDLA-Permissive-2.0",
        reason: "permissive terms for data, the certificates of authorities; with the feature `hub` alone",
    },
];

pub(crate) fn run(verb: &str, args: &[OsString]) -> Outcome {
    cargo::takes_no_arguments(verb, args)?;
    check_workspace()
}

pub(crate) fn check_workspace() -> Outcome {
    // What is built with any features on any platform; the lockfile alone names far more.
    let words = "tree --locked --workspace --all-features --target all --prefix none";
    let mut command = cargo::cargo(words.split(' '));
    command.args(["--format", "{p}\t{l}"]).current_dir(cargo::root());
    let tree = packages(&cargo::output(&mut command)?);

    let lock_path = cargo::root().join("Cargo.lock");
    let lock = fs::read_to_string(&lock_path)
        .map_err(|error| Failure::Check(format!("{}: {error}", lock_path.display())))?;

    let violations = [check_licenses(&tree, &EXCEPTIONS), check_sources(&lock)].concat();
    for violation in &violations {
        eprintln!("{violation}");
    }
    if violations.is_empty() {
        println!("{} packages: allowed licenses, all from crates.io", tree.len());
        for Exception { package, license, reason } in &EXCEPTIONS {
            println!("  {package}: {license} by exception ({reason})");
        }
        return Ok(());
    }
    Err(Failure::Check(format!(
        "{} findings against the lists of xtask/src/licenses.rs",
        violations.len()
    )))
}

/// The (name, license) pairs in lines like `name v1.2.3 (proc-macro)<tab>MIT (*)`.
fn packages(tree: &str) -> Vec<(String, String)> {
    let mut packages: Vec<_> = tree
        .lines()
        .filter_map(|line| {
            let (package, license) = line.split_once('\t')?;
            let name = package.split(' ').next()?;
            Some((name.to_owned(), license.trim_end_matches("(*)").trim().to_owned()))
        })
        .collect();
    packages.sort();
    packages.dedup();
    packages
}

fn check_licenses(packages: &[(String, String)], exceptions: &[Exception]) -> Vec<String> {
    let mut violations = Vec::new();
    for (name, license) in packages {
        let excepted = |id: &str| exceptions.iter().any(|e| e.package == name && e.license == id);
        match satisfied(license, &|id| ALLOWED.contains(&id) || excepted(id)) {
            Some(true) => {}
            Some(false) => violations.push(format!("{name}: license `{license}` is not allowed")),
            None => violations.push(format!("{name}: `{license}` is no license expression")),
        }
    }
    for exception in exceptions {
        let Exception { package, license, .. } = exception;
        if !packages.iter().any(|(name, text)| name == package && text.contains(license)) {
            violations.push(format!("{package}: its exception for {license} is no longer needed"));
        }
    }
    violations
}

fn check_sources(lock: &str) -> Vec<String> {
    let sources = lock.lines().filter_map(|line| line.strip_prefix("source = "));
    sources
        .filter(|source| source.trim_matches('"') != CRATES_IO)
        .map(|source| format!("Cargo.lock: source {source} is not crates.io"))
        .collect()
}

/// Whether an SPDX expression holds if the licenses that `allowed` accepts do; `None` if it does
/// not parse. The old spelling `MIT/Apache-2.0` means `OR`.
fn satisfied(expression: &str, allowed: &dyn Fn(&str) -> bool) -> Option<bool> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let tokens: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = tokens.as_slice();
    let holds = any_of(&mut rest, allowed)?;
    rest.is_empty().then_some(holds)
}

fn any_of(tokens: &mut &[&str], allowed: &dyn Fn(&str) -> bool) -> Option<bool> {
    let mut holds = all_of(tokens, allowed)?;
    while take(tokens, "OR") {
        holds |= all_of(tokens, allowed)?;
    }
    Some(holds)
}

fn all_of(tokens: &mut &[&str], allowed: &dyn Fn(&str) -> bool) -> Option<bool> {
    let mut holds = one(tokens, allowed)?;
    while take(tokens, "AND") {
        holds &= one(tokens, allowed)?;
    }
    Some(holds)
}

fn one(tokens: &mut &[&str], allowed: &dyn Fn(&str) -> bool) -> Option<bool> {
    if take(tokens, "(") {
        let holds = any_of(tokens, allowed)?;
        return take(tokens, ")").then_some(holds);
    }
    let id = name(tokens)?;
    if take(tokens, "WITH") {
        return Some(allowed(&format!("{id} WITH {}", name(tokens)?)));
    }
    Some(allowed(id))
}

fn take(tokens: &mut &[&str], token: &str) -> bool {
    let found = tokens.first() == Some(&token);
    if found {
        *tokens = &tokens[1..];
    }
    found
}

fn name<'a>(tokens: &mut &[&'a str]) -> Option<&'a str> {
    let (first, rest) = tokens.split_first()?;
    *tokens = rest;
    (!["(", ")", "OR", "AND", "WITH"].contains(first)).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn license_expressions_are_evaluated() {
        let check = |expression: &str, expected: Option<bool>| {
            let allowed = |id: &str| ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].contains(&id);
            assert_eq!(satisfied(expression, &allowed), expected, "{expression}");
        };
        check("MIT", Some(true));
        check("GPL-3.0", Some(false));
        check("GPL-3.0 OR MIT", Some(true));
        check("GPL-3.0/MIT", Some(true));
        check("GPL-3.0 / MIT", Some(true));
        check("GPL-3.0 AND MIT", Some(false));
        check("MIT AND ISC", Some(true));
        check("MIT OR ISC AND GPL-3.0", Some(true));
        check("(MIT OR ISC) AND GPL-3.0", Some(false));
        check("(GPL-3.0 OR ISC) AND MIT", Some(true));
        check("Apache-2.0 WITH LLVM-exception", Some(true));
        check("Apache-2.0", Some(false));
        check("", None);
        check("MIT OR", None);
        check("(MIT", None);
        check("MIT ISC", None);
        check("OR MIT", None);
    }

    #[test]
    fn packages_are_read_from_the_tree() {
        let tree = "rand v0.9.2\tMIT OR Apache-2.0\nserde_derive v1.0.0 (proc-macro)\tMIT (*)\n\
                    rand v0.9.2\tMIT OR Apache-2.0 (*)\nbare v1.0.0\t\n\n";
        let expected = [("bare", ""), ("rand", "MIT OR Apache-2.0"), ("serde_derive", "MIT")];
        assert_eq!(packages(tree), expected.map(|(name, l)| (name.to_owned(), l.to_owned())));
    }

    #[test]
    fn exceptions_hold_for_one_package_and_must_be_needed() {
        let mpl = || Exception { package: "a", license: "MPL-2.0", reason: "" };
        let tree = |name: &str| vec![(name.to_owned(), "MPL-2.0".to_owned())];
        assert_eq!(check_licenses(&tree("a"), &[mpl()]), [""; 0]);
        assert_eq!(check_licenses(&tree("a"), &[]), ["a: license `MPL-2.0` is not allowed"]);
        assert_eq!(
            check_licenses(&tree("b"), &[mpl()]),
            [
                "b: license `MPL-2.0` is not allowed",
                "a: its exception for MPL-2.0 is no longer needed"
            ]
        );
    }

    #[test]
    fn other_sources_than_crates_io_are_found() {
        let lock = format!("source = \"{CRATES_IO}\"\nsource = \"git+https://example.com/a#1\"\n");
        assert_eq!(
            check_sources(&lock),
            ["Cargo.lock: source \"git+https://example.com/a#1\" is not crates.io"]
        );
    }
}
