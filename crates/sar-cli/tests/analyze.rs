//! `sar analyze`, run as a program.

mod program;

use std::fs;
use std::path::Path;

use program::{does, tiny};
use serde_json::Value;

/// What this run sets beside what every tiny run does.
const MORE: &[&str] = &[
    "tokenizer.steps=1",
    "tokenizer.optimization.batch_size=2",
    "backbone.depth=1",
    "pretrain.steps=2",
    "pretrain.optimization.batch_size=2",
    "sar.steps=2",
    "sar.optimization.batch_size=2",
    "evaluation.images=24",
    "log.checkpoint_steps=1",
];

fn refuses(folder: &Path, args: &[&str], parts: &[&str]) {
    program::refuses(folder, &[&["analyze"], args].concat(), parts);
}

fn json(folder: &Path, name: &str) -> Value {
    serde_json::from_slice(&fs::read(folder.join(name)).unwrap()).unwrap()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn a_run_is_analyzed_before_during_and_after_sar() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut args = vec!["train", "--run-dir", "run"];
    args.extend(tiny(MORE));
    does(folder, &args);
    let (table, said) = does(folder, &["analyze", "--run", "run", "--gradient-images", "3"]);
    assert!(table.contains("before: run/backbone-pretrain.safetensors, after 2 steps"), "{table}");
    assert!(table.contains("24 held-out images, gradients of 3"), "{table}");
    assert!(said.contains("2 of 6, before: gradients of 3 images"), "{said}");

    let analysis = json(folder, "analysis/analysis.json");
    assert_eq!((&analysis["images"], &analysis["gradient_images"]), (&24.into(), &3.into()));
    assert_eq!(analysis["rollout"]["kind"], "argmax");
    let weights = analysis["weights"].as_array().unwrap();
    let names: Vec<_> = weights
        .iter()
        .map(|of| (of["name"].as_str().unwrap(), of["stage"].as_str().unwrap(), &of["step"]))
        .collect();
    // The control makes two passes for each of SAR's steps; the last checkpoint of a stage is its end.
    let [one, two, three, four] = [1, 2, 3, 4].map(Value::from);
    let expected = [
        ("pretrain 1", "pretrain", &one),
        ("before", "pretrain", &two),
        ("sar 1", "sar", &one),
        ("after", "sar", &two),
        ("control 3", "control", &three),
        ("control", "control", &four),
    ];
    assert_eq!(names, expected);
    let report = json(folder, "run/report.json");
    for (name, i) in [("before", 1), ("after", 3), ("control", 5)] {
        let (ours, runs) = (&weights[i], &report["held_out"][name]);
        for figure in ["teacher_loss", "student_loss", "exposure_gap"] {
            assert_eq!(ours["all"][figure], runs[figure], "{name}: {figure}");
        }
        for k in 0..3 {
            let (ours, runs) = (&ours["by_scale"][k], &runs["statistics"][k]);
            assert_eq!(ours["scale"], runs["scale"]);
            assert_eq!(ours["accuracy"], runs["accuracy"]);
            assert_eq!(ours["histogram_entropy"], runs["histogram_entropy"]);
        }
    }
    for of in weights {
        let scales = of["by_scale"].as_array().unwrap();
        assert_eq!(scales.len(), 3);
        let first = &scales[0];
        assert_eq!(first["teacher_loss"], first["rollout_loss"]);
        assert_eq!(first["teacher_loss"], first["student_loss"]);
        for scale in scales {
            assert!(number(&scale["gradient_norm"]) > 0.0, "{scale}");
            assert!((0.0..=1.0).contains(&number(&scale["token_divergence"])), "{scale}");
            // Codes of length 1.
            assert!((0.0..=4.0).contains(&number(&scale["latent_divergence"])), "{scale}");
        }
    }
    assert_ne!(weights[1]["by_scale"], weights[2]["by_scale"]);

    let plot = |name: &str| fs::read_to_string(folder.join("analysis").join(name)).unwrap();
    let by_scale = plot("by-scale.svg");
    for text in ["gradient norm", "latent divergence", "true tokens", "sar 1", "control"] {
        assert!(by_scale.contains(text), "{text}");
    }
    // Nine panels with a point for each set of weights and scale, and the true tokens.
    assert_eq!(by_scale.matches("<circle").count(), 9 * 6 * 3 + 3);
    // SAR starts from what is before it; of pre-training nothing is that old.
    for (stage, points) in [("pretrain", 2), ("sar", 3), ("control", 3)] {
        let plot = plot(&format!("{stage}-by-step.svg"));
        assert!(plot.contains(&format!("step of {stage}")) && plot.contains("scale 4"));
        assert_eq!(plot.matches("<circle").count(), 9 * points * 3, "{stage}");
    }

    // The same weights as files, without gradients, and with another rollout.
    let recipe = ["--recipe", "run/recipe.toml", "--tokenizer", "run/tokenizer.safetensors"];
    let files = [
        "--backbone",
        "run/backbone-sar.safetensors",
        "--backbone",
        "run/backbone-pretrain.safetensors",
    ];
    let analyze =
        |args: &[&str]| does(folder, &[&["analyze"], &recipe[..], &files[..], args].concat());
    analyze(&["--gradient-images", "0", "--json", "figures.json"]);
    let again = json(folder, "figures.json");
    assert_eq!(again["weights"][1]["name"], "backbone-pretrain");
    for (i, of) in [(0, &weights[3]), (1, &weights[1])] {
        for k in 0..3 {
            let (again, of) = (&again["weights"][i]["by_scale"][k], &of["by_scale"][k]);
            assert!(again["gradient_norm"].is_null());
            assert_eq!(again["rollout_loss"], of["rollout_loss"]);
            assert_eq!(again["latent_divergence"], of["latent_divergence"]);
        }
    }
    assert!(folder.join("analysis-2/by-scale.svg").is_file());
    assert!(!folder.join("analysis-2/analysis.json").exists());
    analyze(&["--rollout", "sampled", "--images", "5", "--out", "drawn"]);
    let drawn = json(folder, "drawn/analysis.json");
    assert_eq!((&drawn["images"], &drawn["rollout"]["kind"]), (&5.into(), &"sample".into()));

    // A copy of a checkpoint that a run did not keep is measured; a damaged one is left out, and damaged
    // weights are an error.
    let checkpoint = |name: &str| folder.join("run/checkpoints").join(name);
    fs::copy(checkpoint("control-3.safetensors"), checkpoint("control-2.safetensors")).unwrap();
    let damage = |name: &str| {
        let path = folder.join("run").join(name);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    };
    damage("checkpoints/sar-1.safetensors");
    let quick = ["--run", "run", "--images", "2", "--gradient-images", "0"];
    let (table, said) = does(folder, &[&["analyze", "--out", "less"], &quick[..]].concat());
    assert!(said.contains("sar-1.safetensors") && said.contains("left out"), "{said}");
    assert!(!table.contains("sar 1") && table.contains("after:"), "{table}");
    let copy = "control 2: run/checkpoints/control-2.safetensors, after 2 steps";
    assert!(table.contains(copy), "{table}");
    damage("backbone-control.safetensors");
    refuses(folder, &quick, &["run/backbone-control.safetensors"]);
}

#[test]
fn what_cannot_be_analyzed() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let asset = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets").join(name);
        path.to_str().unwrap().to_owned()
    };
    let in_the_box = asset("weights/emoji");
    let refuses = |args: &[&str], parts: &[&str]| refuses(folder, args, parts);
    refuses(&[], &["name a --run", "--recipe"]);
    refuses(&["--run", "nowhere"], &["nowhere: holds no run", "recipe.toml"]);
    fs::create_dir(folder.join("run")).unwrap();
    let copy = |name: &str| {
        fs::copy(Path::new(&in_the_box).join(name), folder.join("run").join(name)).unwrap();
    };
    copy("recipe.toml");
    refuses(&["--run", "run"], &["run: there is no tokenizer.safetensors"]);
    copy("tokenizer.safetensors");
    refuses(&["--run", "run"], &["run: there is no backbone-*.safetensors and no checkpoint"]);
    refuses(
        &["--run", &in_the_box, "--images", "9999"],
        &["--images 9999: recipe emoji holds out 190"],
    );
    refuses(&["--run", &in_the_box, "--gradient-images", "191"], &["--gradient-images 191", "190"]);
    refuses(&["--run", &in_the_box, "--out", "run"], &["--out run", "already holds files"]);
    refuses(
        &["--run", &in_the_box, "--json", "run/recipe.toml"],
        &["--json run/recipe.toml", "exists already"],
    );
    refuses(&["--run", &in_the_box, "--device", "abacus"], &["abacus", "flex"]);

    let tokenizer = format!("{in_the_box}/tokenizer.safetensors");
    let backbone = format!("{in_the_box}/backbone-sar.safetensors");
    let files = |recipe: &str, tokenizer: &str, backbone: &str, parts: &[&str]| {
        let quick = ["--images", "1", "--gradient-images", "0"];
        let args = ["--recipe", recipe, "--tokenizer", tokenizer, "--backbone", backbone];
        refuses(&[&args[..], &quick].concat(), parts);
    };
    files("no-such", &tokenizer, &backbone, &["no-such", "emoji-quick"]);
    files("emoji", &backbone, &backbone, &["backbone-sar.safetensors", "not a tokenizer"]);
    files("emoji", &tokenizer, "nowhere.pth", &["nowhere.pth", "cannot read"]);
    let released = asset("parity/flexvar_tiny/backbone.pth");
    files("emoji", &tokenizer, &released, &["flexvar_tiny/backbone.pth", "codes"]);
    let [tokenizer, released] =
        ["tokenizer", "backbone"].map(|name| asset(&format!("parity/flexvar_tiny/{name}.pth")));
    files("emoji", &tokenizer, &released, &["is of 10 classes", "recipe emoji are of 9"]);
}
