//! A run that is killed at any moment, and resumed, ends like one that never was.
//!
//! Every round walks one run from kill to kill, through all kinds of moments in their order. One round
//! is run by default, and of first scales of several tokens a few moments of it;
//! `SAR_KILL_ROUNDS=20 cargo xtask test kills -- --nocapture` runs more, of all forms whole ones, and
//! prints what was killed where.

#![cfg(unix)]

mod program;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use program::{ADVERSARY, draw_images, listing, tiny};
use sar_core::SeedTree;

/// What these runs set beside what every tiny run does.
const MORE: &[&str] = &[
    "data.source={ kind = \"folder\", path = \"images\" }",
    "data.augmentation.flip_except=[]",
    "tokenizer.model.codebook_size=32",
    "tokenizer.steps=6",
    "tokenizer.optimization.batch_size=4",
    "tokenizer.optimization.ema=0.5",
    "tokenizer.dead_code_restart={ every = 2, until = 5 }",
    "backbone.depth=2",
    "pretrain.steps=6",
    "pretrain.optimization.batch_size=4",
    "pretrain.optimization.ema=0.5",
    "sar.steps=6",
    "sar.optimization.batch_size=4",
    "sar.optimization.ema=0.5",
    "sar.objective.transitions=one-random",
    "sar.weight_schedule={ warmup = 0.5, end = 0.5 }",
    "pretrain.regularization.context_noise={ max_share = 0.5, nearest = 0 }",
    "sar.regularization.context_noise={ max_share = 0.5, nearest = 4 }",
    "tokenizer.model.codebook_growth={ kind = \"geometric\", first = 2, full_side = 4 }",
    "latents={ kind = \"cached\", folder = \"latents\", variants = 2, precision = \"half\" }",
    "evaluation.quality={ kind = \"efficientnet-lite0\", per_class = 2, seeds = 2 }",
    "log.every=2",
    "log.checkpoint_steps=2",
    "log.measure_steps=3",
    "log.measure_images=8",
    "seed=11",
    ADVERSARY,
    "pretrain.optimization.matrices={ kind = \"muon\", momentum = 0.95, update_rms = 0.2, iterations = 3 }",
];

/// First scales and what a scale sees: a name, and what such a run sets besides.
const FORMS: [(&str, &[&str]); 3] = [
    ("one token first", &[]),
    (
        "a masked first scale, its own scale seen",
        &[
            "backbone.first_scale={ kind = \"masked\", share = \"truncated-normal\", loss = \"masked\", steps = 3, \
             reveal = \"confident\" }",
            "backbone.visibility=own",
            "backbone.schedule.scales=2_3_4",
        ],
    ),
    (
        "a first scale in random order, one scale before seen",
        &[
            "backbone.first_scale={ kind = \"random-order\" }",
            "backbone.visibility={ last = 1 }",
            "backbone.schedule.scales=2_3_4",
            "sar.objective.transitions=all",
        ],
    ),
];

/// Where the forms behind the first are killed by default, which takes seconds.
const FEW: [&str; 3] = ["pretrain: a step", "sar: a step", "control: a step"];

/// A kind of moment: its name, and whether the run directory shows that it has come.
struct Moment {
    name: &'static str,
    has_come: fn(&Path) -> bool,
}

const MOMENTS: [Moment; 15] = [
    Moment { name: "start", has_come: |_| true },
    Moment { name: "tokenizer: a step", has_come: |run| exists(run, "checkpoints/tokenizer-2") },
    Moment { name: "tokenizer: a checkpoint", has_come: |run| is_writing(run, "tokenizer") },
    Moment {
        name: "tokenizer: last steps",
        has_come: |run| exists(run, "checkpoints/tokenizer-4"),
    },
    Moment {
        name: "tokenizer: its weights are written",
        has_come: |run| exists(run, ".tokenizer"),
    },
    Moment { name: "between the stages", has_come: |run| exists(run, "tokenizer-average") },
    Moment { name: "latents: the first are cached", has_come: |run| exists(run, "latents") },
    Moment { name: "pretrain: a step", has_come: |run| exists(run, "checkpoints/pretrain-2") },
    Moment { name: "pretrain: a checkpoint", has_come: |run| is_writing(run, "pretrain") },
    Moment { name: "pretrain: measured and drawn", has_come: |run| exists(run, "samples-before") },
    Moment { name: "sar: a step", has_come: |run| exists(run, "checkpoints/sar-2") },
    Moment { name: "sar: a checkpoint", has_come: |run| is_writing(run, "sar") },
    Moment { name: "control: a step", has_come: |run| exists(run, "checkpoints/control-2") },
    Moment { name: "control: a checkpoint", has_come: |run| is_writing(run, "control") },
    Moment { name: "the report is made", has_come: |run| exists(run, "backbone-control.") },
];

/// Whether a file of this beginning is there.
fn exists(run: &Path, name: &str) -> bool {
    let (folder, name) = match name.rsplit_once('/') {
        Some((folder, name)) => (run.join(folder), name),
        None => (run.to_owned(), name),
    };
    names(&folder).iter().any(|file| file.starts_with(name))
}

/// Whether a checkpoint is being written: temporary files begin with a dot.
fn is_writing(run: &Path, stage: &str) -> bool {
    names(&run.join("checkpoints")).iter().any(|file| file.starts_with(&format!(".{stage}")))
}

fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn start(run: &Path, form: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sar"));
    command.current_dir(run.parent().unwrap());
    command.args(["train", "--run-dir"]).arg(run);
    // Killed before it had a recipe, the run starts again.
    if run.join("recipe.toml").is_file() {
        command.arg("--resume");
    } else {
        command.args(tiny(&[MORE, form].concat()));
    }
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn finish(run: &Path, form: &[&str]) {
    let output = start(run, form).wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    assert!(!error.contains("warning"), "{error}");
}

/// Kills the run at a moment, some milliseconds into it; false if it ended before.
fn kill_at(run: &Path, form: &[&str], moment: &Moment, delay: Duration) -> bool {
    let mut child = start(run, form);
    let begun = Instant::now();
    while !(moment.has_come)(run) {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        assert!(begun.elapsed() < Duration::from_secs(120), "{} never comes", moment.name);
        std::thread::sleep(Duration::from_micros(200));
    }
    std::thread::sleep(delay);
    let ended = child.try_wait().unwrap().is_some();
    child.kill().unwrap();
    child.wait().unwrap();
    !ended
}

/// Everything that has to be the same, by name.
fn outcome(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for name in names(run) {
        if [".safetensors", ".png", ".jsonl"].iter().any(|end| name.ends_with(end)) {
            files.insert(name.clone(), fs::read(run.join(name)).unwrap());
        }
    }
    let report = fs::read_to_string(run.join("report.json")).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    for part in ["held_out", "tokenizer", "images"] {
        files.insert(format!("report.json: {part}"), report[part].to_string().into_bytes());
    }
    files
}

#[test]
fn kills_anywhere_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    draw_images(&folder.path().join("images"), 32);
    let asked = std::env::var("SAR_KILL_ROUNDS").ok().map(|n| n.parse().unwrap());
    for (at, (name, form)) in FORMS.into_iter().enumerate() {
        let is_met = |moment: &&Moment| at == 0 || asked.is_some() || FEW.contains(&moment.name);
        let moments: Vec<&Moment> = MOMENTS.iter().filter(is_met).collect();
        println!("{name}:");
        rounds(&folder.path().join(format!("form-{at}")), form, &moments, asked.unwrap_or(1));
    }
}

/// Kills runs of a form at some moments, in so many rounds; folders begin with `place`.
fn rounds(place: &Path, form: &[&str], moments: &[&Moment], rounds: u64) {
    let whole = place.with_extension("whole");
    finish(&whole, form);
    let expected = outcome(&whole);
    assert!(expected.len() >= 15, "{:?}", expected.keys());

    let mut kills = BTreeMap::<&str, usize>::new();
    for round in 0..rounds {
        let run = place.with_extension(format!("round-{round}"));
        let draws = SeedTree::new(3).at(round);
        for (i, moment) in moments.iter().enumerate() {
            let delay = Duration::from_millis(draws.below(i as u64, 30) as u64);
            if kill_at(&run, form, moment, delay) {
                *kills.entry(moment.name).or_default() += 1;
            }
        }
        finish(&run, form);
        let mut left = listing(&run);
        left.retain(|path| path.ends_with(".partial"));
        assert!(left.is_empty(), "round {round} leaves {left:?}");
        let found = outcome(&run);
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        for (name, content) in &found {
            assert!(*content == expected[name], "{name} differs in round {round}");
        }
        fs::remove_dir_all(&run).unwrap();
    }
    for moment in moments {
        let n = kills.get(moment.name).copied().unwrap_or(0);
        println!("{:<40} killed {n} times, all equal", moment.name);
    }
    let total: usize = kills.values().sum();
    println!("{total} kills in {rounds} rounds");
    // Some moments are short; most have to be met.
    let most = 2 * moments.len() * rounds as usize / 3;
    assert!(total >= most, "{total} kills in {rounds} rounds: {kills:?}");
}
