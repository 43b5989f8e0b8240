//! `--json`: events for other programs.

mod program;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use program::{does, draw_images, sar, tiny};
use serde_json::Value;

/// What these runs set beside what every tiny run does.
const MORE: &[&str] = &[
    "data.source={ kind = \"folder\", path = \"images\" }",
    "data.augmentation.flip_except=[]",
    "tokenizer.model.codebook_size=32",
    "tokenizer.steps=4",
    "tokenizer.optimization.batch_size=4",
    "tokenizer.dead_code_restart={ every = 2, until = 3 }",
    "backbone.depth=2",
    "pretrain.steps=4",
    "pretrain.optimization.batch_size=4",
    "sar.steps=4",
    "sar.optimization.batch_size=4",
    "log.every=2",
    "log.checkpoint_steps=2",
    "log.measure_images=8",
];

/// Every line is an object that says what it is, and docs/programs.md knows it with all its fields.
fn events(stdout: &str) -> Vec<Value> {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/programs.md");
    let docs = fs::read_to_string(docs).unwrap();
    let events: Vec<Value> =
        stdout.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    for event in &events {
        let name = format!("`{}`", event["event"].as_str().unwrap());
        let described =
            |row: &&str| row.starts_with("| `") && row.split('|').nth(1).unwrap().contains(&name);
        let row = docs.lines().find(described).unwrap_or_else(|| panic!("{name} is not described"));
        for field in event.as_object().unwrap().keys().filter(|field| *field != "event") {
            assert!(row.contains(&format!("`{field}`")), "{name}: {field} is not described");
        }
    }
    events
}

fn names(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["event"].as_str().unwrap()).collect()
}

#[test]
fn a_training_tells_its_stages_steps_and_end() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    draw_images(&folder.join("images"), 32);
    let mut args = vec!["train", "--json", "--run-dir", "run"];
    args.extend(tiny(MORE));
    let (stdout, stderr) = does(folder, &args);
    assert!(stderr.contains("run directory run"), "people are told less: {stderr}");
    let events = events(&stdout);
    assert_eq!(events[0]["event"], "run");
    assert_eq!((&events[0]["recipe"], &events[0]["dir"]), (&"emoji-quick".into(), &"run".into()));
    let last = events.last().unwrap();
    assert_eq!((&last["event"], &last["dir"]), (&"done".into(), &"run".into()));

    for stage in ["tokenizer", "pretrain", "sar", "control"] {
        let of: Vec<Value> =
            events.iter().filter(|event| event["stage"] == stage).cloned().collect();
        let names = names(&of);
        assert_eq!((names[0], names[names.len() - 1]), ("stage", "stage-done"), "{stage}");
        let steps = &of[1..of.len() - 1];
        // The control makes as many passes.
        let n: u64 = if stage == "control" { 8 } else { 4 };
        assert_eq!((&of[0]["steps"], &of[0]["done"]), (&n.into(), &0.into()), "{stage}");
        for step in steps {
            assert_eq!((&step["event"], &step["steps"]), (&"step".into(), &n.into()));
            assert!((1..=n).contains(&step["step"].as_u64().unwrap()));
            assert!(step["to_go_s"].as_f64().unwrap() >= 0.0);
            assert!(step["images_per_s"].as_f64().unwrap() > 0.0);
            let losses = step["losses"].as_object().unwrap();
            assert!(!losses.is_empty() && losses.values().all(Value::is_number), "{step}");
        }
        // All that the file of metrics logs, in which the first step is 0; and those of checkpoints.
        let metrics = fs::read_to_string(folder.join("run/metrics.jsonl")).unwrap();
        let logged: BTreeSet<u64> = metrics
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap())
            .filter(|line| line["stage"] == stage && line.get("lr").is_some())
            .map(|line| line["step"].as_u64().unwrap() + 1)
            .collect();
        let said: BTreeSet<u64> = steps.iter().map(|step| step["step"].as_u64().unwrap()).collect();
        assert!(logged.is_superset(&[1, 3, n].into()), "{logged:?}");
        assert!(said.is_superset(&logged), "{stage}: {said:?}, logged {logged:?}");
    }
    let wrote: Vec<&str> = events
        .iter()
        .filter(|event| event["event"] == "wrote")
        .map(|event| event["path"].as_str().unwrap())
        .collect();
    assert!(wrote.iter().any(|path| path.ends_with("backbone-sar.safetensors")), "{wrote:?}");
    assert!(wrote.iter().all(|path| folder.join(path).is_file()), "{wrote:?}");

    // The same without it: nothing but what people read.
    args.retain(|arg| *arg != "--json");
    args[2] = "other";
    let (stdout, _) = does(folder, &args);
    assert_eq!(stdout, "");
}

#[test]
fn a_sampling_tells_every_picture() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let draw = ["sample", "--class", "animals", "--n", "3", "--batch", "2", "--out", "out"];
    let (stdout, _) = does(folder, &[&draw[..], &["--json", "--tar", "out.tar"]].concat());
    let all = events(&stdout);
    let expected =
        ["job", "image", "image", "progress", "image", "progress", "wrote", "wrote", "done"];
    assert_eq!(names(&all), expected);
    assert_eq!((&all[0]["images"], &all[0]["there"]), (&3.into(), &0.into()));
    for (at, number) in [(1, 0), (2, 1), (4, 2)] {
        let image = &all[at];
        assert_eq!(image["number"], number);
        let class = image["class"].as_str().unwrap();
        assert!(class.to_lowercase().contains("animals"), "{class}");
        assert!(image["label"].is_u64());
        assert!(folder.join(image["path"].as_str().unwrap()).is_file(), "{image}");
    }
    assert_eq!((&all[3]["done"], &all[3]["of"]), (&2.into(), &3.into()));
    assert_eq!((&all[5]["done"], &all[5]["to_go_s"]), (&3.into(), &0.0.into()));
    assert_eq!((&all[6]["path"], &all[7]["path"]), (&"out-grid.png".into(), &"out.tar".into()));
    assert_eq!(all[8]["dir"], "out");

    // What was there is not told as new.
    fs::remove_file(folder.join(all[4]["path"].as_str().unwrap())).unwrap();
    let (stdout, _) = does(folder, &[&draw[..], &["--json", "--resume"]].concat());
    let again = events(&stdout);
    assert_eq!(names(&again), ["job", "image", "progress", "wrote", "done"]);
    assert_eq!(again[0]["there"], 2);
    assert_eq!(again[1], all[4]);
}

#[test]
fn an_error_is_an_event_too() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |args: &[&str], part: &str| {
        let (code, stdout, stderr) = sar(folder.path(), args);
        assert_eq!(code, Some(2), "{stderr}");
        let events = events(&stdout);
        let last = events.last().unwrap();
        let message = last["message"].as_str().unwrap();
        assert_eq!(last["event"], "error");
        assert!(message.contains(part), "{message}");
        assert_eq!(stderr.lines().last().unwrap(), format!("error: {message}"));
    };
    refused(&["sample", "--json", "--class", "nobody"], "nobody");
    refused(&["train", "--json", "--recipe", "nowhere.toml"], "nowhere.toml");
    let (code, _, stderr) = sar(folder.path(), &["train", "--json", "--dry-run"]);
    assert_eq!(code, Some(2), "{stderr}");
}
