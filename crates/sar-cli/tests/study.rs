//! A study of a tiny recipe: killed and resumed, in shards, and what it refuses. A run takes a second.

mod program;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use program::{does, refuses, sar};
use serde_json::Value;

/// Two classes of small images.
fn draw_images(folder: &Path) {
    for (class, name) in ["stripes", "squares"].iter().enumerate() {
        let folder = folder.join("images").join(name);
        fs::create_dir_all(&folder).unwrap();
        for i in 0..16u32 {
            let image = image::RgbImage::from_fn(16, 16, |x, y| {
                let on = if class == 0 { (x + i) / 4 % 2 == 0 } else { x.max(y) < 4 + i % 8 };
                image::Rgb(if on { [200, (8 * i) as u8, 30] } else { [20, 40, (7 * i) as u8] })
            });
            image.save(folder.join(format!("{i}.png"))).unwrap();
        }
    }
}

/// A study of two arms and two seeds in a folder.
fn write_study(folder: &Path) {
    draw_images(folder);
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/field/tiny.toml");
    let recipe = recipe.display();
    let text = format!(
        r#"
name = "tiny"
recipe = "{recipe}"
set = [
    'data.source={{ kind = "folder", path = "images" }}', "data.side=16",
    "tokenizer.model.channel_multipliers=[1, 1]", "backbone.schedule.scales=1_2_4",
    "log.checkpoint_steps=1",
]
seeds = [1, 2]
passes = 4
control = "control"
start = {{ kind = "trained", seed = 0, set = ["pretrain.steps=3"] }}

[samples]
grid = "guidance=1:3:2,top_p=0.5"
choose_by = "kid"
selection = {{ seed = 1, per_class = 3 }}
measure = {{ seed = 2, per_class = 6 }}

[[arms]]
name = "control"
set = ['sar.objective={{ kind = "teacher-forcing" }}']

[[arms]]
name = "sar-soft"
set = []
"#
    );
    fs::write(folder.join("study.toml"), text).unwrap();
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// The arms of a study.json, without what a clock has measured.
fn arms(path: &Path) -> Value {
    let mut study = json(path);
    let arms = study["arms"].as_array_mut().unwrap();
    for arm in &mut *arms {
        arm.as_object_mut().unwrap().remove("seconds_per_step").unwrap();
    }
    assert_eq!(study["unfinished"], Value::Array(Vec::new()));
    study["arms"].take()
}

fn start(folder: &Path) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sar"));
    command.current_dir(folder).args(["study", "study.toml", "--out", "killed"]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Kills the study when a file is there, some milliseconds later.
fn kill_at(folder: &Path, file: &str, delay: u64) -> bool {
    let mut child = start(folder);
    let begun = Instant::now();
    while !folder.join("killed").join(file).exists() {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        assert!(begun.elapsed() < Duration::from_secs(120), "{file} never comes");
        std::thread::sleep(Duration::from_micros(500));
    }
    std::thread::sleep(Duration::from_millis(delay));
    let ended = child.try_wait().unwrap().is_some();
    child.kill().unwrap();
    child.wait().unwrap();
    !ended
}

#[test]
fn kills_and_shards_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_study(folder);
    let study = ["study", "study.toml", "--out"];
    let (table, _) = does(folder, &[&study[..], &["whole", "--json", "copy.json"]].concat());
    let names = ["start", "control", "sar-soft"];
    names.iter().for_each(|name| assert!(table.contains(name), "{table}"));
    let whole = json(&folder.join("whole/study.json"));
    assert_eq!(whole, json(&folder.join("copy.json")));
    for (name, arm) in names.iter().zip(whole["arms"].as_array().unwrap()) {
        assert_eq!((&arm["name"], &arm["seeds"]), (&Value::from(*name), &Value::from(2)));
        for figure in ["kid", "fd", "class_accuracy", "precision", "recall", "student_loss"] {
            let of = |end: &str| arm[figure][end].as_f64().unwrap_or_else(|| panic!("{figure}"));
            assert!(of("low") <= of("mean") && of("mean") <= of("high"), "{figure}: {arm}");
        }
        assert!(arm["settings"]["guidance"].is_number() && arm["settings"]["top_p"] == 0.5);
        assert_eq!(arm["scales"].as_array().unwrap().len(), 3);
    }
    // Two passes a step: half the steps of the control.
    let [_, control, sar] = [0, 1, 2].map(|i| &whole["arms"][i]);
    assert_eq!((&control["steps"], &sar["steps"]), (&Value::from(4), &Value::from(2)));
    let difference = |a: &Value, b: &Value| {
        let [a, b] = [a, b].map(|arm| arm["kid"]["mean"].as_f64().unwrap());
        a - b
    };
    let minus = sar["minus_control"]["kid"]["mean"].as_f64().unwrap();
    assert!((minus - difference(sar, control)).abs() < 1e-9 && minus != 0.0, "{minus}");
    assert!(control["minus_control"].is_null() && control["minus_start"]["kid"].is_object());
    for file in ["report.html", "start/1/samples.png", "sar-soft/2/samples.png"] {
        assert!(folder.join("whole").join(file).is_file(), "{file}");
    }
    assert!(!folder.join("whole/sar-soft/2/checkpoints").exists(), "they are of no use any more");
    let expected = arms(&folder.join("whole/study.json"));

    let moments = [
        ("start/recipe.toml", 20),
        ("start/backbone-pretrain.safetensors", 0),
        ("start/1/grid.json", 0),
        ("start/2/result.json", 0),
        ("control/1/checkpoints/sar-2.safetensors", 0),
        ("control/1/report.json", 5),
        ("control/2/recipe.toml", 10),
        ("control/2/grid.json", 1),
        ("control/1/result.json", 0),
        ("sar-soft/1/backbone-sar.safetensors", 0),
        ("sar-soft/2/checkpoints/sar-1.safetensors", 0),
        ("sar-soft/2/samples.png", 0),
    ];
    let kills = moments.iter().filter(|(file, delay)| kill_at(folder, file, *delay)).count();
    assert!(kills >= 8, "{kills} kills of {}", moments.len());
    let before = fs::metadata(folder.join("killed/control/1/result.json")).unwrap();
    does(folder, &[&study[..], &["killed"]].concat());
    assert!(arms(&folder.join("killed/study.json")) == expected);
    let after = fs::metadata(folder.join("killed/control/1/result.json")).unwrap();
    assert_eq!(before.modified().unwrap(), after.modified().unwrap(), "what is done stays");

    // One machine has the start and the last arm, the other the control.
    does(folder, &[&study[..], &["shards", "--shard", "0/2"]].concat());
    assert_eq!(json(&folder.join("shards/study.json"))["unfinished"][0], "control");
    does(folder, &[&study[..], &["shards", "--shard", "1/2"]].concat());
    let (_, said) = does(folder, &[&study[..], &["shards", "--report"]].concat());
    assert!(said.is_empty(), "{said}");
    assert!(arms(&folder.join("shards/study.json")) == expected);

    // By names, with the weights of files; the same weights, so the same result.
    let text = fs::read_to_string(folder.join("study.toml")).unwrap();
    let trained = "start = { kind = \"trained\", seed = 0, set = [\"pretrain.steps=3\"] }";
    let files = "start = { kind = \"files\", tokenizer = \"whole/start/tokenizer.safetensors\", \
                 backbone = \"whole/start/backbone-pretrain.safetensors\" }";
    assert!(text.contains(trained));
    fs::write(folder.join("files.toml"), text.replace(trained, files)).unwrap();
    does(folder, &["study", "files.toml", "--out", "files", "--arms", "sar-soft,control,start"]);
    let mut given = arms(&folder.join("files/study.json"));
    let mut expected = expected.clone();
    // The steps that made the start are not known then.
    [&mut given, &mut expected].into_iter().for_each(|arms| drop(arms[0]["steps"].take()));
    assert!(given == expected);
}

#[test]
fn what_cannot_be_done_is_a_line() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_study(folder);
    let text = fs::read_to_string(folder.join("study.toml")).unwrap();
    let bad = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        fs::write(folder.join("bad.toml"), text.replacen(from, to, 1)).unwrap();
    };
    fs::write(folder.join("bad.toml"), "").unwrap();
    let study = |file: &'static str, more: &[&'static str]| {
        [&["study", file, "--out", "out"], more].concat()
    };
    for (change, parts) in [
        (["seeds = [1, 2]", "seeds = []"], ["bad.toml: seeds", "at least 1"]),
        (["control = \"control\"", "control = \"x\""], ["no arm 'x'", "control, sar-soft"]),
        (["\"sar-soft\"", "\"control\""], ["arm 'control'", "another of this name"]),
        (
            ["set = []", "set = [\"sar.objective.wait=1\"]"],
            ["arm 'sar-soft'", "unknown field `wait`"],
        ),
        (
            ["set = []", "set = [\"sar.objective.weight=-1\"]"],
            ["arm 'sar-soft'", "sar.objective.weight"],
        ),
        (["passes = 4", "passes = "], ["bad.toml: line 10", ""]),
    ] {
        bad(change[0], change[1]);
        refuses(folder, &study("bad.toml", &[]), &parts);
    }
    refuses(folder, &study("study.toml", &["--arms", "control,none"]), &["--arms", "'none'"]);
    refuses(folder, &study("study.toml", &["--shard", "2/2"]), &["--shard 2/2"]);
    refuses(folder, &study("study.toml", &["--report"]), &["--out out", "no study"]);
    refuses(folder, &study("none.toml", &[]), &["none.toml"]);

    let (plan, _) = does(folder, &study("study.toml", &["--dry-run"]));
    assert!(plan.contains("sar-soft") && plan.contains("2 settings"), "{plan}");
    assert!(!folder.join("out").exists());

    // A folder is of one study.
    fs::create_dir(folder.join("out")).unwrap();
    fs::write(folder.join("out/thesis.tex"), "").unwrap();
    refuses(folder, &study("study.toml", &[]), &["--out", "files of no study"]);
    fs::remove_file(folder.join("out/thesis.tex")).unwrap();
    let (code, _, error) = sar(folder, &study("study.toml", &["--arms", "start", "--report"]));
    assert_eq!(code, Some(2), "{error}");
    does(folder, &study("study.toml", &["--arms", "start"]));
    bad("passes = 4", "passes = 6");
    refuses(folder, &study("bad.toml", &[]), &["study.toml", "passes = 4, not 6", "another --out"]);
}
