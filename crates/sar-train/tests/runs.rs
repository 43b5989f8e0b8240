//! Whole runs of a tiny recipe.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use burn::backend::Autodiff;
use burn_flex::Flex;
use sar_core::{ScaleSchedule, SeedTree};
use sar_rollout::{Choice, Guidance, Sampler, generate};
use sar_train::event::{Event, Observer, Silent};
use sar_train::weights::{load_backbone, load_tokenizer};
use sar_train::{Execution, Recipe, TrainError, train};

const TINY: [&str; 18] = [
    "data.side=16",
    "tokenizer.model.channel_multipliers=[1,1]",
    "tokenizer.model.codebook_size=32",
    "tokenizer.steps=5",
    "tokenizer.optimisation.batch=4",
    "tokenizer.revive_every=2",
    "tokenizer.revive_until=5",
    "backbone.depth=2",
    "backbone.width=24",
    "backbone.heads=2",
    "backbone.schedule.scales=1_2_4",
    "teacher.steps=4",
    "teacher.optimisation.batch=4",
    "sar.steps=3",
    "sar.optimisation.batch=4",
    "evaluation.samples_per_class=1",
    "evaluation.bootstrap=100",
    "log.every=2",
];

fn tiny(more: &[&str]) -> Recipe {
    let settings = TINY.iter().chain(more).map(|s| (*s).to_owned()).collect::<Vec<_>>();
    Recipe::load("emoji-quick", &settings).unwrap()
}

fn run(
    recipe: &Recipe,
    dir: &Path,
    resume: bool,
    stop: &AtomicBool,
    observer: &mut dyn Observer,
) -> Result<(), TrainError> {
    let execution = Execution { resume, workers: 2, stop };
    train::<Autodiff<Flex>>(recipe, dir, execution, &Default::default(), observer).map(|_| ())
}

fn run_undisturbed(recipe: &Recipe, dir: &Path) {
    run(recipe, dir, false, &AtomicBool::new(false), &mut Silent).unwrap();
}

/// What has to be the same in two runs, by name.
fn outcome(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let names = [
        "metrics.jsonl",
        "tokenizer.safetensors",
        "backbone-teacher.safetensors",
        "backbone-sar.safetensors",
        "backbone-control.safetensors",
        "reconstructions.png",
        "samples-before.png",
        "samples-after.png",
    ];
    names.map(|name| (name.to_owned(), fs::read(dir.join(name)).unwrap())).to_vec()
}

fn assert_same(a: &Path, b: &Path) {
    for ((name, a), (_, b)) in outcome(a).into_iter().zip(outcome(b)) {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if name.ends_with(".jsonl") {
            for (i, (a, b)) in text(&a).lines().zip(text(&b).lines()).enumerate() {
                assert_eq!(a, b, "{name}, line {}", i + 1);
            }
        }
        assert!(a == b, "{name} differs");
    }
}

/// Asks the run to stop after some number of steps of all stages together.
struct StopAfter<'a> {
    steps: usize,
    stop: &'a AtomicBool,
    warnings: usize,
}

impl Observer for StopAfter<'_> {
    fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::Step { .. } => {
                self.steps = self.steps.saturating_sub(1);
                if self.steps == 0 {
                    self.stop.store(true, Ordering::Relaxed);
                }
            }
            Event::Warning { .. } => self.warnings += 1,
            _ => {}
        }
    }
}

fn stopped_after(recipe: &Recipe, dir: &Path, steps: usize, resume: bool) -> bool {
    let stop = AtomicBool::new(false);
    let mut observer = StopAfter { steps, stop: &stop, warnings: 0 };
    match run(recipe, dir, resume, &stop, &mut observer) {
        Ok(()) => false,
        Err(TrainError::Stopped { .. }) => true,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_run_that_stops_often_ends_like_one_that_never_does() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = tiny(&["sar.objective.transitions=one-random"]);
    let (whole, pieces) = (folder.path().join("whole"), folder.path().join("pieces"));
    run_undisturbed(&recipe, &whole);
    let mut resume = false;
    let mut stops = 0;
    // Every piece makes three steps, so that stages are left at all kinds of places.
    while stopped_after(&recipe, &pieces, 3, resume) {
        resume = true;
        stops += 1;
    }
    assert!(stops >= 3, "{stops} stops");
    assert_same(&whole, &pieces);
}

#[test]
fn a_run_in_f16_resumes_with_its_loss_scale() {
    let folder = tempfile::tempdir().unwrap();
    // A student term so heavy that its gradients overflow at the first scales of the loss.
    let recipe = tiny(&["backbone.precision=f16", "sar.objective.weight=2e6", "sar.steps=8"]);
    let (whole, pieces) = (folder.path().join("whole"), folder.path().join("pieces"));
    run_undisturbed(&recipe, &whole);
    let metrics = fs::read_to_string(whole.join("metrics.jsonl")).unwrap();
    let skipped = metrics.lines().filter(|line| line.contains("steps_skipped")).count();
    assert!((2..8).contains(&skipped), "{metrics}");
    let mut resume = false;
    while stopped_after(&recipe, &pieces, 3, resume) {
        resume = true;
    }
    assert_same(&whole, &pieces);
}

#[test]
fn a_killed_run_goes_back_to_a_whole_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = tiny(&["log.checkpoint_steps=1"]);
    let (whole, broken) = (folder.path().join("whole"), folder.path().join("broken"));
    run_undisturbed(&recipe, &whole);
    // Asked during the second teacher step, it stops after the third.
    assert!(stopped_after(&recipe, &broken, 7, false));
    // What a kill and a bad disk leave: a torn metrics line, a damaged newest checkpoint, a stray
    // temporary file.
    let metrics = broken.join("metrics.jsonl");
    let mut text = fs::read(&metrics).unwrap();
    text.extend(b"{\"stage\":\"teacher\",\"st");
    fs::write(&metrics, text).unwrap();
    let newest = broken.join("checkpoints/teacher-3.safetensors");
    let mut bytes = fs::read(&newest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&newest, bytes).unwrap();
    fs::write(broken.join("checkpoints/.teacher-4.safetensors.1.0.tmp"), b"torn").unwrap();

    let stop = AtomicBool::new(false);
    let mut observer = StopAfter { steps: usize::MAX, stop: &stop, warnings: 0 };
    run(&recipe, &broken, true, &stop, &mut observer).unwrap();
    assert_eq!(observer.warnings, 1);
    assert_same(&whole, &broken);
}

#[test]
fn var_trains_through_the_whole_chain_and_resumes() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = tiny(&[
        "tokenizer.model.family={ kind = \"var\", phi = { per-scale = 3 } }",
        "tokenizer.loss.coarse=0",
        "backbone.positions={ kind = \"per-token\" }",
        "sar.objective.transitions=separate",
    ]);
    let (whole, pieces) = (folder.path().join("whole"), folder.path().join("pieces"));
    run_undisturbed(&recipe, &whole);
    let mut resume = false;
    while stopped_after(&recipe, &pieces, 5, resume) {
        resume = true;
    }
    assert_eq!(outcome(&whole), outcome(&pieces));
}

#[test]
fn a_run_is_resumed_with_its_own_recipe_only() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("run");
    assert!(stopped_after(&tiny(&[]), &dir, 1, false));
    let error = run(&tiny(&["teacher.steps=9"]), &dir, true, &AtomicBool::new(false), &mut Silent);
    let error = error.unwrap_err().to_string();
    for part in ["recipe.toml", "teacher.steps", "4", "9"] {
        assert!(error.contains(part), "{error}");
    }
    let error = run(&tiny(&[]), &dir, false, &AtomicBool::new(false), &mut Silent).unwrap_err();
    assert!(error.to_string().contains("--resume"), "{error}");
}

#[test]
fn a_sample_does_not_depend_on_its_batch() {
    type B = Flex;
    let folder = tempfile::tempdir().unwrap();
    let dir: PathBuf = folder.path().join("run");
    run_undisturbed(&tiny(&["sar.control=false"]), &dir);
    let device = Default::default();
    let (tokenizer, _) = load_tokenizer::<B>(&dir.join("tokenizer.safetensors"), &device).unwrap();
    let (backbone, _) = load_backbone::<B>(&dir.join("backbone-sar.safetensors"), &device).unwrap();
    let scales: ScaleSchedule = "1_2_3_4".parse().unwrap();
    let sampler = Sampler {
        guidance: Guidance::flexvar(2.0),
        choice: Choice::Sample { top_k: 20, top_p: 0.9 },
    };
    let tokens = |batch: usize| -> Vec<Vec<i64>> {
        let images: Vec<usize> = (0..14).collect();
        let parts = images.chunks(batch).flat_map(|part| {
            let labels: Vec<usize> = part.iter().map(|i| i % 9).collect();
            let streams: Vec<SeedTree> =
                part.iter().map(|i| SeedTree::new(5).at(*i as u64)).collect();
            let model = &backbone.model;
            let generated =
                generate(model, &tokenizer, &labels, &scales, sampler, &streams, &device);
            let tokens = generated.tokens_bl().into_data().convert::<i64>();
            let tokens = tokens.into_vec::<i64>().unwrap();
            tokens.chunks(scales.n_tokens()).map(<[i64]>::to_vec).collect::<Vec<_>>()
        });
        parts.collect()
    };
    let one = tokens(1);
    assert_eq!(one, tokens(2));
    assert_eq!(one, tokens(7));
    let first: Vec<_> = one.iter().map(|tokens| &tokens[1..]).collect();
    assert!(first.iter().skip(1).any(|tokens| *tokens != first[0]), "all images are the same");
}
