//! TensorBoard reads what a run has written for it: the numbers of `metrics.jsonl`, also of a run that stopped and
//! went on, asked by a file `stop` in its folder. Where Python has no `tensorboard`, a line says that nothing was tested; the variable
//! `SAR_TENSORBOARD_PYTHON` names one that has it.

mod common;

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;

use burn::backend::Autodiff;
use burn_flex::Flex;
use sar_exchange::Group;
use sar_train::event::{Event, Observer};
use sar_train::{Execution, StageId, TrainError, train};
use serde_json::Value;

/// What this run sets beside what every tiny run does.
const MORE: &[&str] = &[
    "tokenizer.steps=4",
    "tokenizer.optimization.batch_size=4",
    "tokenizer.dead_code_restart={ every = 0, until = 0 }",
    "backbone.depth=1",
    "backbone.width=32",
    "backbone.heads=1",
    "pretrain.steps=6",
    "pretrain.optimization.batch_size=4",
    "sar.steps=2",
    "sar.optimization.batch_size=4",
    "evaluation.quality={ kind = \"efficientnet-lite0\", per_class = 2, seeds = 2 }",
    "log.every=1",
    "log.measure_steps=2",
    "log.measure_images=4",
    "log.tensorboard=true",
];

/// Prints `{run: {tag: [[step, value], ..]}}`, of images `[step, width, height]`.
const READ: &str = "
import json, os, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
found = {}
for run in sorted(os.listdir(sys.argv[1])):
    events = EventAccumulator(os.path.join(sys.argv[1], run), size_guidance={'scalars': 0, 'images': 0})
    events.Reload()
    tags = events.Tags()
    found[run] = {tag: [[e.step, e.value] for e in events.Scalars(tag)] for tag in tags['scalars']}
    for tag in tags['images']:
        found[run][tag] = [[image.step, image.width, image.height] for image in events.Images(tag)]
print(json.dumps(found))
";

/// Asks the run to stop after a step, by a file.
struct StopAt<'a>(StageId, u64, &'a Path);

impl Observer for StopAt<'_> {
    fn event(&mut self, event: &Event<'_>) {
        if let Event::Step { stage, step, .. } = event
            && (*stage, *step) == (self.0, self.1)
        {
            fs::write(self.2.join("stop"), "").unwrap();
        }
    }
}

fn read(folder: &Path) -> Option<Value> {
    let python = std::env::var("SAR_TENSORBOARD_PYTHON").unwrap_or("python3".into());
    let has = Command::new(&python).args(["-c", "import tensorboard"]).output();
    if !has.is_ok_and(|output| output.status.success()) {
        // Not by a macro, whose lines are kept from sight where tests pass.
        let _ = writeln!(io::stderr(), "skipped: {python} has no tensorboard");
        return None;
    }
    let output = Command::new(&python).args(["-c", READ]).arg(folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn tensorboard_reads_a_run_that_stopped_and_went_on() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("run");
    let images = common::draw_images(&folder.path().join("images"), 20);
    let recipe = common::tiny(MORE, &[&images, common::FLIP_ALL]);
    let go = |resume, until: u64| {
        let stop = AtomicBool::new(false);
        let execution = Execution { resume, workers: 1, stop: &stop, group: &Group::alone() };
        let mut observer = StopAt(StageId::Pretrain, until, &dir);
        train::<Autodiff<Flex>>(&recipe, &dir, execution, &Default::default(), &mut observer)
    };
    // It is seen after the step that follows.
    let stopped = go(false, 2).unwrap_err();
    assert!(
        matches!(stopped, TrainError::Stopped { stage: StageId::Pretrain, step: 4 }),
        "{stopped}"
    );
    go(true, 100).unwrap();
    assert!(!dir.join("stop").exists());

    let Some(found) = read(&dir.join("tensorboard")) else { return };
    let mut n = 0;
    for line in fs::read_to_string(dir.join("metrics.jsonl")).unwrap().lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let of_stage = &found[line["stage"].as_str().unwrap()];
        let mut check = |tag: String, value: &Value| {
            let Some(value) = value.as_f64() else { return };
            let points = of_stage[&tag].as_array().unwrap_or_else(|| panic!("no {tag}"));
            let at_step: Vec<f64> = points
                .iter()
                .filter(|point| point[0] == line["step"])
                .filter_map(|point| point[1].as_f64())
                .collect();
            let near = |found: &f64| (found - value).abs() <= 1e-6 * value.abs();
            assert!(
                at_step.len() == 1 && near(&at_step[0]),
                "{tag}: {at_step:?}, not {value}: {line}"
            );
            n += 1;
        };
        for (name, value) in line.as_object().unwrap().iter().filter(|(name, _)| *name != "step") {
            match value {
                Value::Array(values) => {
                    values
                        .iter()
                        .enumerate()
                        .for_each(|(i, value)| check(format!("{name}/{i}"), value));
                }
                _ => check(name.clone(), value),
            }
        }
    }
    assert!(n > 60, "{n} numbers");
    // By scale, and pictures.
    for (stage, tag) in [
        ("tokenizer", "held_out_psnr_db_scales/2"),
        ("tokenizer", "held_out_perplexity/2"),
        ("pretrain", "held_out_teacher_scales/2"),
        ("sar", "held_out_student_scales/2"),
        ("pretrain", "kid_effnetlite0"),
        ("sar", "class_accuracy"),
        ("control", "kid_effnetlite0_interval/1"),
    ] {
        assert!(found[stage][tag].is_array(), "no {tag} of {stage}");
    }
    // What the weights made over time, once each, though the run had stopped behind step 3.
    for (stage, tag, steps) in [
        ("tokenizer", "reconstructions", &[1, 3][..]),
        ("pretrain", "samples", &[1, 3, 5]),
        ("sar", "samples", &[1]),
    ] {
        let seen: Vec<&Value> =
            found[stage][tag].as_array().unwrap().iter().map(|image| &image[0]).collect();
        assert_eq!(seen, steps, "{stage}");
    }
    // The student has no loss of its own at the first scale.
    assert!(found["sar"]["held_out_student_scales/0"].is_null());
    let pictures = found["pictures"].as_object().unwrap();
    assert_eq!(
        pictures.keys().collect::<Vec<_>>(),
        ["reconstructions", "samples-after", "samples-before"]
    );
}
