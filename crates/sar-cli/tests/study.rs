//! A study of a tiny recipe: killed and resumed, in shards, and what it refuses. A run takes a second.

mod program;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use program::{does, draw_images, refuses, sar};
use serde_json::Value;

/// A study of two arms and two seeds in a folder.
fn write_study(folder: &Path) {
    draw_images(&folder.join("images"), 16);
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
    let [_, control, refined] = [0, 1, 2].map(|i| &whole["arms"][i]);
    assert_eq!((&control["steps"], &refined["steps"]), (&Value::from(4), &Value::from(2)));
    let difference = |a: &Value, b: &Value| {
        let [a, b] = [a, b].map(|arm| arm["kid"]["mean"].as_f64().unwrap());
        a - b
    };
    let minus = refined["minus_control"]["kid"]["mean"].as_f64().unwrap();
    assert!((minus - difference(refined, control)).abs() < 1e-9 && minus != 0.0, "{minus}");
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
        ("control/2/grid-part.json", 0),
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
    all_seeds_are_measured_at_one_setting(folder);
    assert!(arms(&folder.join("killed/study.json")) == expected);

    // One machine has the start and the last arm, the other the control.
    does(folder, &[&study[..], &["shards", "--shard", "0/2"]].concat());
    assert_eq!(json(&folder.join("shards/study.json"))["unfinished"][0], "control");
    does(folder, &[&study[..], &["shards", "--shard", "1/2"]].concat());
    let (_, said) = does(folder, &[&study[..], &["shards", "--report"]].concat());
    assert!(said.is_empty(), "{said}");
    assert!(arms(&folder.join("shards/study.json")) == expected);
    arms_of_another_folder_stand_beside(folder, &whole);

    // By names, with the weights of files; the same weights, so the same result.
    let text = fs::read_to_string(folder.join("study.toml")).unwrap();
    let settings_known = json(&folder.join("killed/control/1/grid.json"));
    what_is_judged_is_not_judged_again(folder, &settings_known);
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

    // Where no step needs them, there are no latents; an image that cannot be read is passed over.
    fs::write(folder.join("images/stripes/3.png"), "no image").unwrap();
    let cached = "set = [\n    'latents={ kind = \"cached\", folder = \"latents\", variants = 1, precision = \"half\" }',";
    let text = text.replace(trained, files).replacen("set = [", cached, 1);
    fs::write(folder.join("cached.toml"), text).unwrap();
    let start = ["study", "cached.toml", "--out", "cached", "--arms", "start"];
    let (_, said) = does(folder, &start);
    let passed = said.lines().filter(|line| line.contains("stripes/3.png")).collect::<Vec<_>>();
    assert!(passed.iter().any(|line| line.contains("1 of 32 unreadable, 1 allowed")), "{said}");
    assert!(folder.join("cached/start/report.json").is_file());
    assert!(!folder.join("cached/start/latents").exists());
    fs::write(folder.join("images/squares/5.png"), "no image").unwrap();
    fs::remove_dir_all(folder.join("cached")).unwrap();
    let (code, _, said) = sar(folder, &start);
    assert!(code == Some(2) && said.contains("data.max_unreadable: 2 of 32"), "{said}");
}

/// A folder that has lost an arm, and the result of one that has it; `copy.json` is that one's.
fn arms_of_another_folder_stand_beside(folder: &Path, whole: &Value) {
    fs::remove_dir_all(folder.join("shards/sar-soft")).unwrap();
    let study = ["study", "study.toml", "--out", "shards"];
    let report = [&study[..], &["--report"]].concat();
    does(folder, &report);
    let alone = json(&folder.join("shards/study.json"));
    assert_eq!(alone["unfinished"], Value::from(vec!["sar-soft"]));
    assert_eq!(alone["elsewhere"], Value::Array(Vec::new()));
    let with = [&report[..], &["--with", "copy.json", "--json", "joined.json"]].concat();
    let (table, said) = does(folder, &with);
    assert!(table.contains("measured in other folders: sar-soft") && said.is_empty(), "{said}");
    let joined = json(&folder.join("joined.json"));
    assert_eq!(joined["unfinished"], Value::Array(Vec::new()));
    assert_eq!(joined["elsewhere"], Value::from(vec!["sar-soft"]));
    let commands = joined["command"].as_str().unwrap();
    assert!(commands.contains("--with copy.json") && commands.ends_with("--json copy.json"));
    let hours = |of: &Value| of["hours"].as_f64().unwrap();
    assert!((hours(&joined) - hours(&alone) - hours(whole)).abs() < 1e-9);
    let of_arm = |name: &str| -> Vec<f64> {
        let of_folders = joined["hours_by_arm"][name].as_array().unwrap();
        of_folders.iter().map(|of| of.as_f64().unwrap()).collect()
    };
    let by_arm = ["start", "control", "sar-soft"].map(of_arm);
    assert_eq!(by_arm.each_ref().map(Vec::len), [2, 2, 1]);
    assert!((by_arm.concat().iter().sum::<f64>() - hours(&joined)).abs() < 1e-9);
    for (found, expected) in
        joined["arms"].as_array().unwrap().iter().zip(whole["arms"].as_array().unwrap())
    {
        assert_eq!(found["name"], expected["name"]);
        for path in ["/kid/mean", "/minus_control/fd/high", "/minus_control_p/kid", "/grid/1/fd"] {
            let [found, expected] =
                [found, expected].map(|arm| arm.pointer(path).and_then(Value::as_f64));
            let apart = found.zip(expected).map_or(0.0, |(a, b)| (a - b).abs() / b.abs());
            assert!(
                found.is_some() == expected.is_some() && apart < 1e-9,
                "{path}: {found:?}, {expected:?}"
            );
        }
    }
    let page = fs::read_to_string(folder.join("shards/report.html")).unwrap();
    assert!(page.contains("Measured in other folders") && page.contains("<td>sar-soft</td>"));
    let (_, said) =
        does(folder, &["study", "study.toml", "--out", "whole", "--report", "--with", "copy.json"]);
    assert!(said.contains("copy.json: 'sar-soft' is left out: it is measured here, too"), "{said}");

    let text = fs::read_to_string(folder.join("copy.json")).unwrap();
    assert_eq!(text.matches("\"steps\": 4,").count(), 1, "the control's");
    let text = text.replacen("\"steps\": 4,", "\"steps\": 5,", 1);
    fs::write(folder.join("other.json"), text).unwrap();
    let with = |file: &'static str| [&report[..], &["--with", file]].concat();
    refuses(folder, &with("other.json"), &["other.json: 'control': has steps = 5, here it is 4"]);
    refuses(folder, &with("shards/study.json"), &["--with shards/study.json", "count twice"]);
    refuses(folder, &with("none.json"), &["--with none.json"]);
    let (code, _, error) = sar(folder, &[&study[..], &["--with", "copy.json"]].concat());
    assert!(code == Some(2) && error.contains("--report"), "{error}");
}

/// A seed that was measured at what is not the best setting any more is measured again; until then there is no
/// mean.
fn all_seeds_are_measured_at_one_setting(folder: &Path) {
    let path = folder.join("killed/control/1/result.json");
    let mut other = json(&path);
    other["settings"]["guidance"] = Value::from(99.0);
    other["kid"] = Value::from(12345.0);
    fs::write(&path, other.to_string()).unwrap();
    let study = ["study", "study.toml", "--out", "killed"];
    does(folder, &[&study[..], &["--report"]].concat());
    let unfinished = &json(&folder.join("killed/study.json"))["unfinished"];
    assert_eq!(unfinished, &Value::from(vec!["control"]));
    let (_, said) = does(folder, &study);
    assert!(said.contains("arm 'control', seed 1: measured again"), "{said}");
    assert!(!said.contains("seed 2: measured again"), "{said}");
}

/// A study that was killed has judged the first setting already, as it says: it is taken at its word.
fn what_is_judged_is_not_judged_again(folder: &Path, whole: &Value) {
    let unit = folder.join("killed/control/1");
    let mut part = whole.clone();
    assert_eq!(whole["rows"].as_array().unwrap().len(), 2);
    part["rows"].as_array_mut().unwrap().pop();
    part["rows"][0]["kid"] = Value::from(12345.0);
    fs::write(unit.join("grid-part.json"), part.to_string()).unwrap();
    ["grid.json", "result.json"].iter().for_each(|name| fs::remove_file(unit.join(name)).unwrap());
    does(folder, &["study", "study.toml", "--out", "killed"]);
    let again = json(&unit.join("grid.json"));
    assert_eq!(again["rows"][0]["kid"], 12345.0);
    assert_eq!(again["rows"][1], whole["rows"][1]);
    assert!(!unit.join("grid-part.json").exists());
}

#[test]
fn a_seed_that_diverges_takes_nobody_along() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_study(folder);
    let text = fs::read_to_string(folder.join("study.toml")).unwrap();
    let hot = "\n[[arms]]\nname = \"hot\"\nset = ['sar.objective={ kind = \"teacher-forcing\" }', \
               \"sar.optimization.lr.peak=1e30\"]\n\n[[arms]]\nname = \"sar-soft\"";
    let text = text.replacen("\n[[arms]]\nname = \"sar-soft\"", hot, 1);
    fs::write(folder.join("study.toml"), &text).unwrap();
    let study = ["study", "study.toml", "--out", "out"];
    let (code, table, said) = sar(folder, &study);
    assert_eq!(code, Some(1), "{said}");
    assert!(table.contains("0, diverged 2 of 2"), "{table}");
    let all = json(&folder.join("out/study.json"));
    assert_eq!(all["unfinished"], Value::Array(Vec::new()));
    let [start, control, hot, sar_soft] = [0, 1, 2, 3].map(|i| &all["arms"][i]);
    assert_eq!(
        (&hot["name"], &hot["seeds"], &hot["kid"]),
        (&"hot".into(), &0.into(), &Value::Null)
    );
    for (seed, failed) in [1, 2].iter().zip(hot["diverged"].as_array().unwrap()) {
        let file = json(&folder.join(format!("out/hot/{seed}/failed.json")));
        assert_eq!(failed, &file);
        assert_eq!((&file["seed"], &file["stage"]), (&Value::from(*seed), &"sar".into()));
        assert!(file["step"].is_u64() && file["reason"].as_str().unwrap().starts_with("sar"));
    }
    assert!(control["kid"]["low"].is_number() && start["diverged"] == Value::Array(Vec::new()));
    // What was made by what: one program for all.
    let programs = start["programs"].as_array().unwrap();
    assert!(programs.len() == 1 && programs[0].as_str().unwrap().starts_with("0."), "{programs:?}");
    assert!(sar_soft["programs"] == start["programs"] && sar_soft["mixed_programs"] == false);
    let p = sar_soft["minus_control_p"]["kid"].as_f64().unwrap();
    assert!(p > 0.0 && p <= 1.0, "{p}");

    // One seed of the control goes the same way, and is not trained again: what is left is one pair, which has
    // no interval.
    let unit = folder.join("out/control/2");
    fs::copy(folder.join("out/hot/2/failed.json"), unit.join("failed.json")).unwrap();
    let gone = ["grid.json", "result.json", "report.json", "backbone-sar.safetensors"];
    gone.iter().for_each(|name| fs::remove_file(unit.join(name)).unwrap());
    fs::create_dir(unit.join("checkpoints")).unwrap();
    let (code, table, said) = sar(folder, &study);
    assert!(code == Some(1) && said.contains("arm 'control', seed 2: diverged before"), "{said}");
    assert!(table.contains("1, diverged 1 of 2"), "{table}");
    assert!(!unit.join("report.json").exists(), "it was trained again");
    assert!(unit.join("checkpoints").exists(), "they may say why");
    let all = json(&folder.join("out/study.json"));
    let minus = &all["arms"][3]["minus_control"]["kid"];
    assert!(minus["mean"].is_number(), "{minus}");
    assert_eq!((&minus["low"], &minus["high"]), (&Value::Null, &Value::Null));
    assert_eq!(all["arms"][3]["minus_control_p"], Value::Object(Default::default()));
    assert!(
        fs::read_to_string(folder.join("out/report.html")).unwrap().contains("diverged 1 of 2")
    );

    // Another program has trained the control.
    let by = folder.join("out/control/1/result.json");
    let mut other = json(&by);
    other["trained"]["code"][0]["program"] = "0.0.1 00000000".into();
    fs::write(&by, other.to_string()).unwrap();
    let (table, _) = does(folder, &["study", "study.toml", "--out", "out", "--report"]);
    assert!(table.contains("made by different programs: sar-soft by"), "{table}");
    assert_eq!(json(&folder.join("out/study.json"))["arms"][3]["mixed_programs"], true);

    // A recipe that is not as it was: of the start, then of an arm alone.
    let run = folder.join("out/hot/1/recipe.toml");
    let recipe = fs::read_to_string(&run).unwrap();
    let changed = recipe.replacen("label_smoothing = 0.0", "label_smoothing = 0.5", 2);
    fs::write(&run, changed).unwrap();
    let [arm, field] =
        ["hot/1/recipe.toml: arm 'hot'", "regularization.label_smoothing = 0.5, not 0"];
    refuses(folder, &study, &[arm, field, "another --out"]);
    refuses(folder, &[&study[..], &["--report"]].concat(), &[arm, field]);
    fs::write(&run, &recipe).unwrap();
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/field/tiny.toml");
    let known = fs::read_to_string(&tiny).unwrap();
    fs::write(folder.join("own.toml"), known.replacen("flip = 0.5", "flip = 0.25", 1)).unwrap();
    // The folder is of the same file of a recipe, which says something else now.
    let own = |text: &str| text.replace(&tiny.display().to_string(), "own.toml");
    fs::write(folder.join("study.toml"), own(&text)).unwrap();
    let kept = folder.join("out/study.toml");
    fs::write(&kept, own(&fs::read_to_string(&kept).unwrap())).unwrap();
    refuses(folder, &study, &["start/recipe.toml: the start", "flip = 0.5, not 0.25"]);
    fs::write(folder.join("own.toml"), &known).unwrap();
    does(folder, &[&study[..], &["--report"]].concat());
    // Results of which nobody knows how they came to be.
    fs::remove_file(folder.join("out/sar-soft/1/recipe.toml")).unwrap();
    refuses(folder, &study, &["sar-soft/1", "no recipe.toml"]);
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
        (
            ["set = []", "set = [\"sar.optimization.batch_size=4\"]"],
            ["arm 'sar-soft'", "sar.optimization.batch_size is for the study to set"],
        ),
        (
            ["set = []", "set = [\"pretrain.regularization.label_smoothing=0.1\"]"],
            ["arm 'sar-soft'", "label_smoothing=0.1: has no effect"],
        ),
        (["set = []", "set = []\ncontrol = \"sar-soft\""], ["control", "is the arm itself"]),
        (["\"sar-soft\"", "\"study.json\""], ["arm 'study.json'", "a file of the study"]),
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
    assert!(plan.contains("100 %") && !plan.contains("times the passes"), "{plan}");
    bad("set = []", "set = []\nsteps = 3");
    let (plan, _) = does(folder, &study("bad.toml", &["--dry-run"]));
    assert!(plan.contains("150 %"), "{plan}");
    assert!(plan.contains("sar-soft makes 1.50 times the passes of control"), "{plan}");
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
