//! The program, run in a folder.

#![allow(dead_code, reason = "each test file uses a part")]

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::Command;

/// What every tiny run sets: with a few steps a stage it takes seconds.
const TINY: [&str; 8] = [
    "data.side=16",
    "tokenizer.model.channel_multipliers=[1,1]",
    "backbone.width=24",
    "backbone.heads=2",
    "backbone.schedule.scales=1_2_4",
    "evaluation.samples_per_class=1",
    "evaluation.bootstrap=100",
    "evaluation.quality={ kind = \"none\" }",
];

/// An adversary of a tokenizer that begins at step 2, and then grows.
pub(crate) const ADVERSARY: &str = "tokenizer.adversary={ kind = \"discriminator\", discriminator = { kind = \"patch-gan\", channels = \
     8, layers = 1 }, weight = 0.5, adaptive = true, start = 2, warmup_steps = 2, \
     augmentation = [\"color\", \"translation\", \"cutout\"], lecam = 0.1, lr = { \
     peak = 1e-3, warmup_steps = 0.0, warmup_from = 1.0, end = 1.0, decay = { kind = \
     \"cosine\" } }, weight_decay = { start = 0.0, end = 0.0 }, adamw = { beta1 = \
     0.5, beta2 = 0.9, eps = 1e-8 }, matrices = { kind = \"adamw\" }, max_grad_norm = 1.0 }";

/// Says why something is not tested: not by a macro, whose lines are kept from sight where tests pass.
pub(crate) fn skipped(why: &str) {
    let _ = writeln!(io::stderr(), "skipped: {why}");
}

/// The arguments that set what every tiny run sets, and then `more`: the last setting of a key counts.
pub(crate) fn tiny<'a>(more: &[&'a str]) -> Vec<&'a str> {
    TINY.iter().chain(more).flat_map(|setting| ["--set", *setting]).collect()
}

/// Two classes of `n` small images.
pub(crate) fn draw_images(folder: &Path, n: u32) {
    for (class, name) in ["stripes", "squares"].iter().enumerate() {
        fs::create_dir_all(folder.join(name)).unwrap();
        for i in 0..n {
            let image = image::RgbImage::from_fn(16, 16, |x, y| {
                let on = if class == 0 { (x + i) / 4 % 2 == 0 } else { x.max(y) < 4 + i % 8 };
                image::Rgb(if on { [200, (8 * i) as u8, 30] } else { [20, 40, (7 * i) as u8] })
            });
            image.save(folder.join(format!("{name}/{i}.png"))).unwrap();
        }
    }
}

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
    refused(folder, args, parts);
}

/// As [`refuses`], without a word before the error, and with nothing changed anywhere below the folder.
pub(crate) fn refuses_at_once(folder: &Path, args: &[&str], parts: &[&str]) {
    let before = listing(folder);
    let said = refused(folder, args, parts);
    assert_eq!(said.trim_end().lines().count(), 1, "{args:?}: {said}");
    assert_eq!(listing(folder), before, "{args:?} left something behind");
}

/// What it said.
fn refused(folder: &Path, args: &[&str], parts: &[&str]) -> String {
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
    error
}

/// The paths of everything below a folder, sorted.
pub(crate) fn listing(folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        names.push(path.display().to_string());
        if path.is_dir() {
            names.extend(listing(&path));
        }
    }
    names.sort();
    names
}
