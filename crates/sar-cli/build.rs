//! Gives the program the commit of its sources, `SAR_COMMIT`, where they lie in a git repository.

use std::path::Path;
use std::process::Command;

fn main() {
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
    let describe = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"];
    if let Some(commit) = git(&describe) {
        println!("cargo::rustc-env=SAR_COMMIT={commit}");
    }
}
