//! The program, run in a folder.

use std::fs;
use std::path::Path;
use std::process::Command;

/// Runs `sar`: its exit code, what it found, and what it said beside.
pub(crate) fn sar(folder: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_sar")).current_dir(folder).args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// Expects that it does what it is asked: what it found, and what it said beside.
pub(crate) fn does(folder: &Path, args: &[&str]) -> (String, String) {
    let (code, stdout, stderr) = sar(folder, args);
    assert_eq!(code, Some(0), "{args:?}: {stderr}");
    (stdout, stderr)
}

/// Expects one error, the last line, with all of `parts`, exit code 2, and no new file.
pub(crate) fn refuses(folder: &Path, args: &[&str], parts: &[&str]) {
    let count = || fs::read_dir(folder).unwrap().count();
    let before = count();
    let (code, stdout, error) = sar(folder, args);
    assert_eq!(code, Some(2), "{args:?}: {error}");
    let lines: Vec<&str> = error.trim_end().lines().collect();
    let errors = lines.iter().filter(|line| line.starts_with("error: ")).count();
    assert!(errors == 1 && lines[lines.len() - 1].starts_with("error: "), "{args:?}: {error}");
    for part in parts {
        assert!(error.contains(part), "{args:?}: '{part}' is not in: {error}");
    }
    assert!(stdout.is_empty());
    assert_eq!(count(), before, "{args:?} left something behind");
    println!("{}", lines[lines.len() - 1]);
}
