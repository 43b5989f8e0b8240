//! Gives the program the commit of its sources, `SAR_COMMIT`, where they lie in a git repository or
//! come out of a package.

use std::path::Path;
use std::process::Command;

/// What cargo puts into a package.
const PACKAGED: &str = ".cargo_vcs_info.json";

fn main() {
    if let Some(commit) = match Path::new(PACKAGED).exists() {
        true => of_package(),
        false => of_repository(),
    } {
        println!("cargo::rustc-env=SAR_COMMIT={commit}");
    }
}

/// The commit that a package was made of. It may lie within any other repository, which says nothing.
fn of_package() -> Option<String> {
    println!("cargo::rerun-if-changed={PACKAGED}");
    let text = std::fs::read_to_string(PACKAGED).ok()?;
    let (_, rest) = text.split_once("\"sha1\": \"")?;
    let dirty = if text.contains("\"dirty\": true") { "-dirty" } else { "" };
    Some(format!("{}{dirty}", rest.split_once('"')?.0))
}

fn of_repository() -> Option<String> {
    let git = |args: &[&str]| -> Option<String> {
        let output = Command::new("git").args(args).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    // Anew when something is committed, or when something that the program is made of changes.
    let log = git(&["rev-parse", "--git-path", "logs/HEAD"]);
    let sources = std::fs::read_dir("..").into_iter().flatten().flatten();
    let sources = sources.map(|entry| entry.path().join("src").display().to_string());
    let others = ["build.rs", "../../assets", "../../Cargo.toml", "../../Cargo.lock"];
    let watched = log.into_iter().chain(sources).chain(others.map(String::from));
    for path in watched.filter(|path| Path::new(path).exists()) {
        println!("cargo::rerun-if-changed={path}");
    }
    git(&["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"])
}
