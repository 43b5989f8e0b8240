//! What users get wrong: one line that says what, where and what to do, exit code 2, nothing left
//! behind. `cargo xtask test --test bad_input -- --nocapture` shows the messages.

mod program;

use std::fs;
use std::process::Command;

use program::{does, listing, refuses_at_once as refuses, sar, tiny};
use serde_json::Value;

/// What these runs set beside what every tiny run does.
const MORE: &[&str] = &[
    "tokenizer.steps=1",
    "tokenizer.optimization.batch_size=2",
    "backbone.depth=1",
    "pretrain.steps=2",
    "log.every=1",
    "pretrain.optimization.batch_size=2",
    "sar.steps=1",
    "sar.optimization.batch_size=2",
    "sar.control=false",
];

#[test]
fn recipes() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let set = |setting: &str, parts: &[&str]| refuses(folder, &["train", "--set", setting], parts);
    set("tokenizer.step=7", &["tokenizer.step", "nearest: steps"]);
    set("pretrain.steps=many", &["pretrain.steps", "many"]);
    set("pretrain.steps=-1", &["pretrain.steps"]);
    set("backbone.schedule.scales=1_3_2", &["backbone.schedule", "2 after 3"]);
    set("backbone.schedule.scales=1_2_99999999999999999999", &["backbone.schedule"]);
    set("backbone.heads=5", &["backbone", "heads", "192"]);
    set("backbone.width=0", &["backbone.width"]);
    set("data.side=33", &["data.side", "33"]);
    set("data.side=128", &["side 128", "64 px"]);
    set(
        "data.augmentation.flip_except=[\"Flaggs\"]",
        &["data.augmentation.flip_except", "Flaggs", "Flags"],
    );
    let lpips = "tokenizer.loss.perceptual={ kind = \"lpips\", weight = 1.0, enlarge = 1, \
                 vgg = \"no-vgg.pth\", channel_weights = \"no-heads.pth\" }";
    set(lpips, &["no-vgg.pth"]);
    refuses(folder, &["train", "--dry-run", "--set", lpips], &["no-vgg.pth"]);
    let share = "tokenizer.regularization.perturbation.share=2";
    set(share, &["tokenizer.regularization.perturbation.share", "[0, 1]"]);
    let dropout = "tokenizer.regularization.quantizer_dropout=0.1";
    set(dropout, &["tokenizer.regularization.quantizer_dropout", "direct"]);
    let adversary = "tokenizer.adversary={ kind = \"discriminator\" }";
    set(adversary, &["tokenizer.adversary", "missing field"]);
    set("nonsense", &["nonsense", "key.path=value"]);
    refuses(folder, &["train", "--recipe", "no-such"], &["no-such", "emoji-quick"]);
    fs::write(folder.join("bad.toml"), "name = 'x'\nseed = \n").unwrap();
    refuses(folder, &["train", "--recipe", "bad.toml"], &["bad.toml", "line 2"]);
    fs::write(folder.join("image.toml"), [0x89, b'P', b'N', b'G', 0xff]).unwrap();
    refuses(folder, &["train", "--recipe", "image.toml"], &["image.toml"]);
}

#[test]
fn image_sources() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let train_with = |source: &str, setting: &str, parts: &[&str]| {
        let source: &str = &format!("data.source={{ kind = {source} }}");
        // Should one be taken after all, it ends soon.
        let settings = [
            source,
            "data.augmentation.flip_except=[]",
            "tokenizer.steps=1",
            "pretrain.steps=1",
            "sar.steps=1",
            setting,
        ];
        let settings = settings.iter().flat_map(|setting| ["--set", *setting]);
        let args: Vec<&str> = std::iter::once("train").chain(settings).collect();
        refuses(folder, &args, parts);
    };
    let train = |source: &str, parts: &[&str]| train_with(source, "seed=1", parts);

    train(r#""folder", path = "nowhere""#, &["nowhere: no such folder"]);
    fs::create_dir_all(folder.join("empty")).unwrap();
    train(r#""folder", path = "empty""#, &["empty: no images in this folder"]);
    fs::create_dir_all(folder.join("images/cats")).unwrap();
    fs::create_dir_all(folder.join("images/dogs")).unwrap();
    let image = image::RgbImage::from_pixel(8, 8, image::Rgb([9, 200, 30]));
    image.save(folder.join("images/cats/one.png")).unwrap();
    let images = r#""folder", path = "images""#;
    train(images, &["data.source: 1 images; add some"]);
    fs::write(folder.join("images/dogs/two.jpg"), b"this is no picture").unwrap();
    train(images, &["data.max_unreadable: 1 of 2 images", "two.jpg"]);
    train_with(images, "data.max_unreadable=1", &["none of the 1 held-out images", "two.jpg"]);
    train_with(images, "data.max_unreadable=2", &["data.max_unreadable: 2 is out of range"]);
    image.save(folder.join("images/dogs/two.jpg")).unwrap();
    train_with(images, "data.crop={ kind = \"exact\" }", &["one.png: is 8x8 px, not 32x32"]);
    let random = "data.crop={ kind = \"adm-random\", min_share = 0 }";
    train_with(images, random, &["data.crop.min_share: 0 is out of range"]);
    train_with(images, "data.crop={ kind = \"middle\" }", &["data.crop", "middle", "adm-center"]);
    fs::remove_dir_all(folder.join("images/dogs")).unwrap();
    train(images, &["data.source: 1 images"]);

    let list = r#""list", path = "train.txt", root = "images""#;
    train(list, &["train.txt: cannot be read"]);
    fs::write(folder.join("train.txt"), "cats/one.png 0\ncats/two.png\n").unwrap();
    train(list, &["train.txt: line 2: write a path, a space and a label"]);
    fs::write(folder.join("train.txt"), "cats/three.png 0\ncats/two.png 1\n").unwrap();
    train(list, &["train.txt: none of its 2 images exists", "data.source.root"]);
    fs::write(folder.join("names.txt"), "cat\n").unwrap();
    let named = &format!("{list}, labels = \"names.txt\"");
    train(named, &["train.txt: line 2: label '1' is none of the 1 class names"]);
    train(r#""list", path = "train.txt""#, &["data.source", "root"]);

    let cifar = r#""cifar10", path = "cifar""#;
    train(cifar, &["cifar: no such folder"]);
    fs::create_dir(folder.join("cifar")).unwrap();
    fs::write(folder.join("cifar/batches.meta.txt"), "cat\ndog\n").unwrap();
    fs::write(folder.join("cifar/data_batch_1.bin"), [0; 3073 + 5]).unwrap();
    train(cifar, &["data_batch_1.bin: 3078 bytes are no whole number of images"]);

    let shards = r#""webdataset", shards = ["cats.tar"]"#;
    train(shards, &["cats.tar: cannot be read"]);
    fs::write(folder.join("cats.tar"), [0x1F; 1000]).unwrap();
    train(shards, &["cats.tar: not a whole tar file"]);
    train(r#""webdataset", shards = []"#, &["data.source.shards: no sample with an image"]);
    train(r#""tar", path = "cats.tar""#, &["data.source", "tar", "webdataset"]);
}

#[test]
fn run_directories_and_devices() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::create_dir(folder.join("full")).unwrap();
    fs::write(folder.join("full/thesis.tex"), "years of work").unwrap();
    let train =
        |args: &[&str], parts: &[&str]| refuses(folder, &[&["train"], args].concat(), parts);
    train(&["--run-dir", "full"], &["full", "already holds files", "--run-dir"]);
    train(&["--run-dir", "full/thesis.tex"], &["thesis.tex", "is a file"]);
    train(&["--run-dir", "full", "--resume"], &["full: holds no run to resume"]);
    train(&["--resume"], &["--run-dir"]);
    train(&["--device", "abacus"], &["abacus", "flex"]);
    train(&["--device", "cuda:x"], &["cuda:x", "index"]);
    if !cfg!(feature = "cuda") {
        train(&["--device", "cuda:0"], &["cuda", "--features cuda"]);
    }
}

#[test]
fn runs_that_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let long = ["tokenizer.steps=1000000", "log.checkpoint_steps=1"];
    let mut other = Command::new(env!("CARGO_BIN_EXE_sar"))
        .current_dir(folder)
        .args(["train", "--run-dir", "run"])
        .args(tiny(&[MORE, &long].concat()))
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let metrics = folder.join("run/metrics.jsonl");
    while !metrics.exists() && other.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    // The other run writes checkpoints meanwhile: the folder is not compared.
    let (code, _, error) = sar(folder, &["train", "--run-dir", "run", "--resume"]);
    other.kill().unwrap();
    other.wait().unwrap();
    assert_eq!(code, Some(2), "{error}");
    assert!(error.contains("run: is in use by another process"), "{error}");
    let changed = ["train", "--run-dir", "run", "--resume", "--set", "pretrain.steps=5"];
    // What the kill left of a checkpoint is removed.
    program::refuses(folder, &changed, &["run/recipe.toml", "pretrain.steps = 2, not 5"]);
}

#[test]
fn weights_classes_and_sampling() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let run = folder.join("run");
    let mut args = vec!["train", "--run-dir", "run"];
    args.extend(tiny(MORE));
    does(folder, &args);
    let html = fs::read_to_string(run.join("report.html")).unwrap();
    assert!(html.matches("data:image/png;base64,").count() == 3 && html.contains("<svg"));
    let report: Value =
        serde_json::from_slice(&fs::read(run.join("report.json")).unwrap()).unwrap();
    let by_scale = report["tokenizer"]["by_scale"].as_array().unwrap();
    assert_eq!(by_scale.len(), 3);
    for scale in by_scale {
        let count = |name: &str| scale[name].as_u64().unwrap();
        let (used, usable) = (count("codes_used"), count("codes_usable"));
        let cells = format!("<td>{used} of {usable}</td><td>{}</td>", usable - used);
        assert!(html.contains(&cells), "'{cells}' is not in the table of scales");
    }
    // The held-out images are fewer than the codes.
    assert_eq!(by_scale[0]["codes_usable"], report["images"]["held_out"]);

    let sample = |args: &[&str], parts: &[&str]| {
        let all = [&["sample", "--n", "1", "--out", "out"], args].concat();
        refuses(folder, &all, parts);
    };
    let from_run =
        |args: &[&str], parts: &[&str]| sample(&[&["--run", "run"], args].concat(), parts);
    from_run(&["--class", "fodo"], &["fodo", "Food & Drink"]);
    from_run(&["--class", "9"], &["9", "8"]);
    from_run(&["--scales", "1_3_3"], &["--scales", "3"]);
    from_run(&["--scales", "1_1024"], &["--scales", "tokens"]);
    from_run(&["--top-p", "1.5"], &["--top-p", "1.5"]);
    from_run(&["--guidance", "nan"], &["--guidance"]);
    from_run(&["--batch", "0"], &["--batch"]);
    sample(&["--run", "nowhere"], &["nowhere", "tokenizer.safetensors"]);
    sample(&["--tokenizer", "run/tokenizer.safetensors"], &["--backbone"]);

    // A run's files know how its recipe samples.
    let grid = |out: &str, args: &[&str]| {
        let all = [&["sample", "--n", "1", "--class", "food", "--out", out], args].concat();
        does(folder, &all);
        fs::read(folder.join(format!("{out}-grid.png"))).unwrap()
    };
    let files =
        ["--tokenizer", "run/tokenizer.safetensors", "--backbone", "run/backbone-sar.safetensors"];
    let as_recipe = ["--guidance", "5", "--top-k", "0", "--top-p", "0.3"];
    let of_run = grid("of-run", &["--run", "run"]);
    assert_eq!(grid("as-recipe", &[&files[..], &as_recipe].concat()), of_run);
    assert_eq!(grid("of-files", &files), of_run);
    assert_ne!(grid("other", &["--run", "run", "--guidance", "0"]), of_run);

    let good = fs::read(run.join("backbone-sar.safetensors")).unwrap();
    let weights = |content: &[u8], parts: &[&str]| {
        fs::write(folder.join("w.safetensors"), content).unwrap();
        from_run(&["--backbone", "w.safetensors"], &[&["w.safetensors"], parts].concat());
    };
    weights(&good[..good.len() / 2], &[]);
    weights(b"", &[]);
    weights(b"hello, this is no checkpoint", &[]);
    let mut flipped = good.clone();
    let last = flipped.len() - 100;
    flipped[last] ^= 1;
    weights(&flipped, &["checksum"]);
    let tokenizer = fs::read(run.join("tokenizer.safetensors")).unwrap();
    weights(&tokenizer, &["is a tokenizer, not a backbone"]);

    let three = ["--class", "food", "--n", "3", "--seed", "7", "--out", "out"];
    does(folder, &[&["sample", "--run", "run"], &three[..]].concat());
    let names = listing(&folder.join("out"));
    assert_eq!(names.len(), 3, "samples and nothing else: {names:?}");
}

#[test]
fn parity_cases() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    refuses(folder, &["parity", "nowhere"], &["nowhere", "case.json"]);
    fs::create_dir(folder.join("case")).unwrap();
    fs::write(folder.join("case/case.json"), "{\"kind\": \"flexvar\"").unwrap();
    refuses(folder, &["parity", "case"], &["case.json"]);
}

/// Without the engine every rank would train alone, all into the same directory.
#[cfg(not(feature = "mpi"))]
#[test]
fn a_launcher_of_ranks_needs_a_build_with_mpi() {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_sar"));
    command.args(["train", "--dry-run"]).env("OMPI_COMM_WORLD_SIZE", "3");
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(
        error.starts_with("error: started as one of 3 ranks, and built without MPI"),
        "{error}"
    );
    assert_eq!(error.lines().count(), 1, "{error}");
}
