//! Files as people have them, through the program: weights under all kinds of roots and with all kinds
//! of faults, folders with odd files, masks with transparency. Whole runs of `field/tiny.toml` take a
//! second.

mod program;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use burn::tensor::TensorData;
use image::{GrayImage, Luma, Rgb, RgbImage, Rgba, RgbaImage};
use program::{refuses_at_once as refuses, sar};
use sar_weights::NamedTensors;

/// Expects that it does what it is asked, and says all of `parts`.
fn does(folder: &Path, args: &[&str], parts: &[&str]) -> String {
    let (stdout, stderr) = program::does(folder, args);
    let said = stdout + &stderr;
    for part in parts {
        assert!(said.contains(part), "{args:?}: '{part}' is not in:\n{said}");
    }
    said
}

fn recipe(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/field").join(name);
    path.to_str().unwrap().to_owned()
}

fn picture(i: u32) -> RgbImage {
    RgbImage::from_fn(20, 20, |x, y| Rgb([(9 * x + i) as u8, (7 * y) as u8, (40 * i) as u8]))
}

/// A folder with `n` images in each of some classes.
fn images(root: &Path, classes: &[&str], n: u32) {
    for class in classes {
        fs::create_dir_all(root.join(class)).unwrap();
        (0..n).for_each(|i| picture(i).save(root.join(class).join(format!("{i:03}.png"))).unwrap());
    }
}

/// Trains the tiny recipe on a folder below the working directory.
fn train<'a>(recipe: &'a str, run: &'a str, source: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["train", "--recipe", recipe, "--run-dir", run, "--set", source];
    args.extend(more);
    args
}

/// A finished run on two classes, made once.
fn finished() -> &'static Path {
    static RUN: OnceLock<PathBuf> = OnceLock::new();
    RUN.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap().keep();
        images(&folder.join("good"), &["cats", "dogs"], 10);
        let tiny = recipe("tiny.toml");
        let args = train(&tiny, "run", FOLDER, &[]);
        does(&folder, &args, &["trains on 18 images of 2 classes, 2 held out\n"]);
        folder
    })
}

const FOLDER: &str = "data.source={ kind = \"folder\", path = \"good\" }";

fn weights(file: &str) -> NamedTensors {
    let mut named = NamedTensors::read(&finished().join("run").join(file)).unwrap();
    // Files of others do not say what belongs to them.
    named.metadata_mut().clear();
    named
}

/// The same tensors with something in front of their names.
fn under(root: &str, named: &NamedTensors) -> NamedTensors {
    let mut all = NamedTensors::new();
    for (name, data) in named.iter() {
        all.insert(format!("{root}{name}"), data.clone());
    }
    all
}

#[test]
fn weights_are_found_wherever_training_programs_put_them() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let run = finished().join("run");
    let run = run.to_str().unwrap();
    let backbone = weights("backbone-pretrain.safetensors");
    let sample = |file: &str, more: &[&str], parts: &[&str]| {
        let out = format!("{}-{}", file.replace('.', "-"), more.len());
        let all =
            ["sample", "--run", run, "--backbone", file, "--class", "1", "--n", "1", "--out", &out];
        does(folder, &[&all, more].concat(), parts);
        fs::read(folder.join(format!("{out}-grid.png"))).unwrap()
    };
    backbone.write_pth(&folder.join("plain.pth"), "").unwrap();
    let plain = sample("plain.pth", &[], &["assumed the names of the 2 classes"]);
    let convert = |file: &str, more: &[&str], parts: &[&str]| {
        let own = format!("{}-{}.safetensors", file.replace('.', "-"), more.len());
        does(folder, &[&["convert", file, &own], more].concat(), parts);
        fs::read(folder.join(own)).unwrap()
    };
    let converted = convert("plain.pth", &[], &[]);
    for root in
        ["module", "_orig_mod", "state_dict.model", "ema", "trainer.scalear_wo_ddp", "a.b.c"]
    {
        let file = format!("{root}.pth");
        backbone.write_pth(&folder.join(&file), root).unwrap();
        let said = format!("took the tensors under '{root}'");
        assert!(sample(&file, &[], &[&said]) == plain, "{root}");
        assert!(convert(&file, &[], &[&said]) == converted, "{root}");
        does(folder, &["inspect", &file], &[&said]);
    }
    // Trained weights beside their average: those are taken that the released evaluation takes.
    let average = weights("backbone-sar.safetensors");
    let mut both = under("model.", &backbone);
    for (name, data) in under("ema.", &average) {
        both.insert(name, data);
    }
    both.write_pth(&folder.join("both.pth"), "").unwrap();
    let said = "took the tensors under 'model'; there are others under 'ema': --root chooses";
    assert!(sample("both.pth", &[], &[said]) == plain);
    assert!(sample("both.pth", &["--root", "ema"], &["under 'ema'"]) != plain);
    assert!(convert("both.pth", &[], &[said]) == converted);
    average.write_pth(&folder.join("average.pth"), "").unwrap();
    let of_average = convert("average.pth", &[], &[]);
    assert!(convert("both.pth", &["--root", "ema"], &["under 'ema'"]) == of_average);
    // A stage of no steps ends with the weights that it starts from.
    images(&folder.join("good"), &["cats", "dogs"], 10);
    let tiny = recipe("tiny.toml");
    for (run, file, root, expected) in [
        ("from-module", "module.pth", "", &backbone),
        ("from-ema", "both.pth", ", root = \"ema\"", &average),
    ] {
        let init = format!("pretrain.init_from={{ kind = \"weights\", path = \"{file}\"{root} }}");
        let more = ["--set", init.as_str(), "--set", "pretrain.steps=0"];
        let said = format!("{file}: took the tensors under '{}'", &run[5..]);
        does(folder, &train(&tiny, run, FOLDER, &more), &[&said]);
        let path = folder.join(run).join("backbone-pretrain.safetensors");
        let mut found = NamedTensors::read(&path).unwrap();
        found.metadata_mut().clear();
        assert!(found == *expected, "{run}");
    }
    let mut unclear = under("one.", &backbone);
    for (name, data) in under("two.", &backbone) {
        unclear.insert(name, data);
    }
    unclear.write_pth(&folder.join("unclear.pth"), "").unwrap();
    let args = ["sample", "--run", run, "--backbone", "unclear.pth", "--out", "no"];
    refuses(folder, &args, &["2 models, under 'one', 'two'", "--root"]);
}

#[test]
fn numbers_that_are_not_finite_are_refused_where_weights_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let run = finished().join("run");
    let run = run.to_str().unwrap();
    let broken = |file: &str, name: &str, value: f32| {
        let mut named = weights(file);
        let data = named.remove(name).unwrap();
        let (mut values, shape) = (data.to_vec::<f32>().unwrap(), data.shape.clone());
        values[1] = value;
        named.insert(name, TensorData::new(values, shape));
        named.write_safetensors(&folder.join(file)).unwrap();
    };
    broken("tokenizer.safetensors", "decoder.conv_in.weight", f32::NAN);
    broken("backbone-pretrain.safetensors", "head.bias", f32::INFINITY);
    let said = |name: &str| format!("tensor {name} has 1 value that is NaN or infinite");
    let sample = |args: &[&str], name: &str| {
        let all = [&["sample", "--run", run, "--out", "no"], args].concat();
        refuses(folder, &all, &[&said(name)]);
    };
    sample(&["--tokenizer", "tokenizer.safetensors"], "decoder.conv_in.weight");
    sample(&["--backbone", "backbone-pretrain.safetensors"], "head.bias");
    refuses(
        folder,
        &["convert", "tokenizer.safetensors", "t.pth"],
        &[&said("decoder.conv_in.weight")],
    );
    images(&folder.join("good"), &["cats", "dogs"], 10);
    let tiny = recipe("tiny.toml");
    for (stage, file, name) in [
        ("tokenizer", "tokenizer.safetensors", "decoder.conv_in.weight"),
        ("pretrain", "backbone-pretrain.safetensors", "head.bias"),
    ] {
        let init = format!("{stage}.init_from={{ kind = \"weights\", path = \"{file}\" }}");
        for more in [&["--set", init.as_str()][..], &["--set", init.as_str(), "--dry-run"]] {
            refuses(folder, &train(&tiny, "new", FOLDER, more), &[file, &said(name)]);
        }
    }
}

#[test]
fn a_dry_run_checks_what_a_run_would_check() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    images(&folder.join("good"), &["cats", "dogs", "rats"], 8);
    let tiny = recipe("tiny.toml");
    let weights = finished().join("run/backbone-pretrain.safetensors");
    let init = |more: &str| {
        format!("pretrain.init_from={{ kind = \"weights\", path = {weights:?}{more} }}")
    };
    let strict = init("");
    let run = |set: &str, parts: &[&str]| {
        for dry in [&[][..], &["--dry-run"]] {
            let args = [&["--set", set], dry].concat();
            refuses(folder, &train(&tiny, "new", FOLDER, &args), parts);
        }
    };
    run(&strict, &["has 2 classes, the images 3", "pretrain.init_from.adapt = [\"classes\"]"]);
    let missing = "pretrain.init_from={ kind = \"weights\", path = \"nowhere.pth\" }";
    run(missing, &["nowhere.pth", "cannot read"]);
    let codes = init(", adapt = [\"classes\"]");
    let other = ["--set", codes.as_str(), "--set", "tokenizer.model.codebook_size=16"];
    let parts = ["trained on 32 codes of 16 channels, the tokenizer has 16", "adapt = [\"codes\"]"];
    refuses(folder, &train(&tiny, "new", FOLDER, &other), &parts);
    let both = init(", adapt = [\"classes\", \"codes\"]");
    let other = ["--set", both.as_str(), "--set", "tokenizer.model.codebook_size=16"];
    let said =
        does(folder, &train(&tiny, "new", FOLDER, &other), &["2 of 3 classes by their names"]);
    assert!(said.contains("new, as the codebook is another: head.weight, head.bias"), "{said}");
}

#[test]
fn what_is_left_out_is_counted_and_unreadable_images_can_be_mended() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    images(&folder.join("good"), &["cats", "cats/more", "dogs"], 10);
    picture(3).save(folder.join("good/dogs/a.tiff")).unwrap();
    picture(4).save(folder.join("good/dogs/b.bmp")).unwrap();
    fs::write(folder.join("good/dogs/c.heic"), "no image that is read").unwrap();
    picture(5).save(folder.join("good/beside.png")).unwrap();
    let tiny = recipe("tiny.toml");
    let said = "trains on 29 images of 2 classes, 3 held out; 2 files left out: ";
    does(
        folder,
        &train(&tiny, "dry", FOLDER, &["--dry-run"]),
        &[said, ".heic", "beside class folders"],
    );

    // Too many unreadable images: each piece of advice works.
    for i in 0..5 {
        fs::write(folder.join(format!("good/dogs/00{i}.png")), "junk").unwrap();
    }
    let long = ["--set", "tokenizer.steps=30", "--set", "log.checkpoint_steps=1"];
    for (run, mend) in [("replaced", 0), ("removed", 1), ("raised", 2)] {
        for i in 0..5 {
            fs::write(folder.join(format!("good/dogs/00{i}.png")), "junk").unwrap();
        }
        let (code, _, mut error) = sar(folder, &train(&tiny, run, FOLDER, &long));
        assert_ne!(code, Some(0), "{error}");
        let raise = ["--set", "data.max_unreadable=0.9"];
        let more = if mend == 2 { &raise[..] } else { &[] };
        let resume = [&["train", "--run-dir", run, "--resume"], more].concat();
        // Images are found when they are met, so that a run may have to be mended more than once.
        let mut starts = 0;
        loop {
            assert!(error.contains("data.max_unreadable") && starts < 5, "{error}");
            for i in (0..5).filter(|i| error.contains(&format!("dogs/00{i}.png"))) {
                let path = folder.join(format!("good/dogs/00{i}.png"));
                match mend {
                    0 => picture(i).save(&path).unwrap(),
                    1 => _ = fs::remove_file(&path),
                    _ => {}
                }
            }
            let (code, _, said) = sar(folder, &resume);
            if code == Some(0) {
                break;
            }
            (error, starts) = (said, starts + 1);
        }
    }
}

#[test]
fn masks_of_every_kind_and_boxes_of_every_size() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let run = finished().join("run");
    let run = run.to_str().unwrap();
    RgbImage::from_fn(64, 48, |x, y| Rgb([(4 * x) as u8, (5 * y) as u8, 99]))
        .save(folder.join("photo.png"))
        .unwrap();
    let is_inside = |x: u32, y: u32| (40..60).contains(&x) && (20..40).contains(&y);
    let rgba = |name: &str, outside: [u8; 4], inside: [u8; 4]| {
        let pixel = |x, y| Rgba(if is_inside(x, y) { inside } else { outside });
        RgbaImage::from_fn(64, 48, pixel).save(folder.join(name)).unwrap();
    };
    rgba("white.png", [255, 255, 255, 0], [255; 4]);
    rgba("black.png", [0; 4], [0, 0, 0, 255]);
    rgba("hole.png", [0, 0, 0, 255], [0; 4]);
    let gray = |x, y| Luma([if is_inside(x, y) { 200 } else { 20 }]);
    GrayImage::from_fn(64, 48, gray).save(folder.join("gray.png")).unwrap();
    let edit = |name: &str, args: &[&str], parts: &[&str]| {
        let all = ["edit", "--run", run, "--image", "photo.png", "--n", "1", "--blend", "0"];
        does(folder, &[&all, args, &["--out", name]].concat(), parts);
        image::open(folder.join(name).join("000.png")).unwrap().into_rgb8()
    };
    let of_box = edit("of-box", &["--box", "40,20,60,40"], &[]);
    // 32 x 32 pixels at 4 : 3.
    assert_eq!(of_box.dimensions(), (36, 28));
    for (mask, words) in [
        ("white.png", "bright strokes"),
        ("black.png", "dark strokes"),
        ("hole.png", "transparent holes"),
        ("gray.png", "bright pixels"),
    ] {
        let out = format!("of-{mask}").replace('.', "-");
        assert!(edit(&out, &["--mask", mask], &[mask, words]) == of_box, "{mask}");
    }
    GrayImage::from_pixel(64, 48, Luma([255])).save(folder.join("all.png")).unwrap();
    edit("everything", &["--mask", "all.png"], &["everything is drawn anew"]);
    edit("corner", &["--box", "0,0,1,1"], &[]);
    let wider = edit("wider", &["--expand", "0,0,16,0"], &[]);
    assert_eq!(wider.dimensions(), (48, 28), "a quarter of 36 pixels, in whole tokens");
    edit(
        "square",
        &["--box", "20,0,40,20", "--size", "32x32"],
        &["cropped to 48x48 of them, from 8,0"],
    )
    .save(folder.join("square.png"))
    .unwrap();
    let all = ["edit", "--run", run, "--image", "photo.png", "--box", "0,0,6,6", "--size", "32x32"];
    refuses(
        folder,
        &[&all[..], &["--outside", "--keep-scales", "6", "--out", "no"]].concat(),
        &["6 of 6 scales are kept"],
    );
}

#[test]
fn samples_are_alone_in_their_folder_and_each_class_is_drawn_once() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let run = finished().join("run");
    let run = run.to_str().unwrap();
    let args =
        ["sample", "--run", run, "--class", "cats", "--class", "0", "--n", "3", "--out", "out"];
    let npz = ["--npz", "out.npz", "--previews"];
    does(folder, &[&args[..], &npz].concat(), &["--class 0: is 'cats' again; drawn once"]);
    let names = |path: &str| -> Vec<String> {
        let entries = fs::read_dir(folder.join(path)).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names("out"), ["0-cats-000.png", "0-cats-001.png", "0-cats-002.png"]);
    let beside =
        ["out", "out-grid.png", "out-job.json", "out-previews.gif", "out-previews.png", "out.npz"];
    assert_eq!(names("."), beside);
    let npz = fs::read(folder.join("out.npz")).unwrap();
    assert!(npz.windows(15).any(|part| part == b"(3, 32, 32, 3),"), "three images of 32 pixels");
    refuses(
        folder,
        &[&args[..5], &["--out", "new", "--npz", "out.npz"]].concat(),
        &["exists already"],
    );
}

#[test]
fn vars_weights_are_exported_with_all_buffers_and_sampled_by_vars_rule() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    images(&folder.join("good"), &["cats", "dogs"], 10);
    let tiny = recipe("tiny_var.toml");
    does(folder, &train(&tiny, "run", FOLDER, &[]), &[]);
    does(folder, &["convert", "run/backbone-pretrain.safetensors", "b.pth"], &["zero_k_bias"]);
    does(
        folder,
        &["convert", "run/tokenizer.safetensors", "t.pth", "--scales", "1_2_3_4_6_8"],
        &[],
    );
    let shape = |file: &str, name: &str| {
        let named = NamedTensors::read(&folder.join(file)).unwrap();
        let data = named.get(name).unwrap_or_else(|| panic!("{file} lacks {name}")).clone();
        (data.shape.to_vec(), data.dtype.name())
    };
    let l = 1 + 4 + 9 + 16 + 36 + 64;
    assert_eq!(shape("b.pth", "attn_bias_for_masking"), (vec![1, 1, l, l], "f32"));
    assert_eq!(shape("b.pth", "lvl_1L"), (vec![1, l], "i64"));
    assert_eq!(shape("b.pth", "blocks.0.attn.zero_k_bias"), (vec![32], "f32"));
    assert_eq!(shape("t.pth", "quantize.ema_vocab_hit_SV"), (vec![6, 32], "f32"));
    // What torch loads strictly, `convert` reads back without a word.
    let said = does(folder, &["convert", "b.pth", "b.safetensors"], &[]);
    assert_eq!(said.lines().count(), 1, "{said}");

    // A file that says nothing of itself is sampled as VAR's authors do: by the plain ramp, as the recipe
    // does with other numbers.
    let mut released = NamedTensors::read(&folder.join("b.pth")).unwrap();
    released.metadata_mut().clear();
    released.write_pth(&folder.join("released.pth"), "").unwrap();
    let sample = |backbone: &str, out: &str, more: &[&str]| {
        let args = ["sample", "--tokenizer", "t.pth", "--backbone", backbone, "--class", "1"];
        does(folder, &[&args, &["--n", "2", "--out", out][..], more].concat(), &[]);
        fs::read(folder.join(format!("{out}-grid.png"))).unwrap()
    };
    let as_published = sample("released.pth", "as-published", &[]);
    let said = ["--guidance", "1.5", "--top-k", "900", "--top-p", "0.96"];
    assert!(sample("b.pth", "as-said", &said) == as_published);
    assert!(sample("b.pth", "as-recipe", &[]) != as_published);
}

/// Images that lie elsewhere are the same images.
#[test]
fn a_run_goes_on_with_images_that_were_moved() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    images(&folder.join("good"), &["cats", "dogs"], 10);
    let tiny = recipe("tiny.toml");
    let long = ["--set", "tokenizer.steps=60", "--set", "log.checkpoint_steps=1"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_sar"));
    command.current_dir(folder).args(train(&tiny, "run", FOLDER, &long));
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let run = folder.join("run");
    while !run.join("metrics.jsonl").exists() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    fs::write(run.join("stop"), "").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "it ended before it was asked to stop");

    fs::rename(folder.join("good"), folder.join("moved")).unwrap();
    let resume = ["train", "--run-dir", "run", "--resume"];
    program::refuses(folder, &resume, &["good: no such folder"]);
    let moved = ["--set", "data.source.path=moved"];
    let said = ["trains on 18 images of 2 classes, 2 held out\n", "everything in run"];
    does(folder, &[&resume[..], &moved].concat(), &said);
    let recipe = fs::read_to_string(run.join("recipe.toml")).unwrap();
    assert!(recipe.contains("path = \"moved\"") && run.join("report.json").is_file(), "{recipe}");
}
