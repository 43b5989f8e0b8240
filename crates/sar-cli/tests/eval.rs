//! `sar eval`, run as a program.

mod program;

use std::fs;
use std::path::{Path, PathBuf};

use image::{Rgb, RgbImage};
use sar_data::{Dataset, Emoji};
use serde_json::Value;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/eval").join(name)
}

fn does(folder: &Path, args: &[&str]) -> (String, String) {
    program::does(folder, &[&["eval"], args].concat())
}

fn refuses(folder: &Path, args: &[&str], parts: &[&str]) {
    program::refuses(folder, &[&["eval"], args].concat(), parts);
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[track_caller]
fn near(found: &Value, expected: &Value, tolerance: f64) {
    let [found, expected] = [found, expected].map(|value| value.as_f64().expect("a number"));
    assert!((found - expected).abs() <= tolerance * expected.abs(), "{found}, not {expected}");
}

/// Images of one color, named as `sar sample` names them.
fn flat(folder: &Path, n: u32, size: [u32; 2]) {
    fs::create_dir_all(folder).unwrap();
    for i in 0..n {
        let image = RgbImage::from_fn(size[0], size[1], |x, y| {
            Rgb([(20 * i) as u8, (5 * x) as u8, (5 * y) as u8])
        });
        image.save(folder.join(format!("{}-name-{i:03}.png", i % 9))).unwrap();
    }
}

/// Red and blue exchanged, as in `golden.py`.
fn exchanged(folder: &Path) {
    fs::create_dir(folder).unwrap();
    let emoji = Emoji::new(32).unwrap();
    for class in 0..9 {
        let of_class = (0..emoji.len()).filter(|i| emoji.label(*i) == class).take(20);
        for (number, i) in of_class.enumerate() {
            let mut image = emoji.image(i).unwrap();
            image.pixels_mut().for_each(|pixel| pixel.0.reverse());
            image.save(folder.join(format!("{class}-some-class-{number:03}.png"))).unwrap();
        }
    }
}

#[test]
fn the_figures_are_those_of_another_program() {
    let root = tempfile::tempdir().unwrap();
    exchanged(&root.path().join("images"));
    let args = ["--images", "images", "--reference", "emoji-quick", "--json", "out.json"];
    let (table, said) = does(root.path(), &[&args[..], &["--statistics", "of.npz"]].concat());
    let (found, golden) = (json(&root.path().join("out.json")), json(&file("golden.json")));
    assert_eq!(found["n"], golden["n"]);
    for name in ["fd_effnetlite0", "kid_effnetlite0", "class_accuracy"] {
        // Theirs are the weights in single precision, these come along in half.
        near(&found[name], &golden[name], 1e-2);
    }
    let floor = |of: &Value, name: &str| of["floor"][name].as_f64().unwrap();
    for (name, tolerance) in [("kid_effnetlite0", 1e-4), ("class_accuracy", 1e-2)] {
        let difference = floor(&found, name) - floor(&golden, name);
        assert!(difference.abs() < tolerance, "{name}: {difference}");
    }
    assert_eq!((&found["rank_deficient"], &found["reference"]["n"]), (&true.into(), &1906.into()));
    assert_eq!(found["extractor"]["name"], "efficientnet-lite0");
    for part in ["FD-EffNetLite0", "held-out real"] {
        assert!(table.contains(part), "{table}");
    }
    assert!(said.contains("compares with those of as many images only"), "{said}");
    assert!(root.path().join("out.png").is_file());

    // The moments that were written are a reference, of which there are Fréchet distances alone.
    let against = ["--images", "images", "--reference", "of.npz", "--json", "self.json"];
    does(root.path(), &against);
    let found = json(&root.path().join("self.json"));
    assert!(found["fd_effnetlite0"].as_f64().unwrap().abs() < 1e-3, "{found}");
    assert!(found["kid_effnetlite0"].is_null() && found["class_accuracy"].is_null());
}

#[test]
fn measures_of_given_features_are_as_expected() {
    let root = tempfile::tempdir().unwrap();
    let features = file("features.npz").display().to_string();
    does(root.path(), &["--features", &features, "--json", "out.json"]);
    let Value::Object(expected) = json(&file("expected.json")) else { panic!("a table") };
    let found = json(&root.path().join("out.json"));
    assert_eq!(expected.len(), 10);
    for (name, value) in &expected {
        match name.as_str() {
            "frechet_self" => assert!(found[name].as_f64().unwrap().abs() < 1e-6),
            _ => near(&found[name], value, 1e-6),
        }
    }
}

#[test]
fn images_of_numpy_are_read_compressed_or_not_and_folders_of_classes_are_labels() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| file(name).display().to_string();
    flat(&root.path().join("real/a"), 8, [32, 32]);
    flat(&root.path().join("real/b"), 8, [32, 32]);
    let mut distances = Vec::new();
    for name in ["images.npz", "compressed.npz"] {
        does(root.path(), &["--images", &at(name), "--reference", "real", "--json", "o.json"]);
        let found = json(&root.path().join("o.json"));
        assert_eq!(found["n"], 5);
        distances.push(found["fd_effnetlite0"].as_f64().unwrap());
    }
    assert_eq!(distances[0], distances[1]);
    // Real images beside themselves.
    let args = ["--images", "real", "--reference", "real", "--json", "o.json"];
    let (_, said) = does(root.path(), &args);
    let found = json(&root.path().join("o.json"));
    assert!(found["fd_effnetlite0"].as_f64().unwrap().abs() < 1e-3 && found["precision"] == 1.0);
    assert!(found["class_accuracy"].is_number(), "{said}");
    // Without classes on one side that is said.
    flat(&root.path().join("plain"), 8, [32, 32]);
    let args = ["--images", "real", "--reference", "plain", "--json", "o.json"];
    let (_, said) = does(root.path(), &args);
    assert!(said.contains("no class accuracy: the reference has no classes"), "{said}");
}

#[test]
fn samples_are_swept_and_come_out_the_same_twice() {
    let root = tempfile::tempdir().unwrap();
    flat(&root.path().join("real"), 12, [64, 64]);
    let args =
        ["--n", "1", "--seed", "5", "--reference", "real", "--sweep", "guidance=0:2:2,top_p=0.5"];
    let run = |out: &str| {
        does(root.path(), &[&args[..], &["--json", out]].concat());
        json(&root.path().join(out))
    };
    let (one, two) = (run("one.json"), run("two.json"));
    assert_eq!(one, two);
    let sweep = one["sweep"].as_array().unwrap();
    assert_eq!(
        (sweep.len(), &sweep[1]["guidance"], &sweep[1]["top_p"]),
        (2, &2.0.into(), &0.5.into())
    );
    assert_ne!(sweep[0]["fd_effnetlite0"], sweep[1]["fd_effnetlite0"]);
    let svg = fs::read_to_string(root.path().join("one.svg")).unwrap();
    assert!(svg.contains("KID x1000") && svg.contains("guidance"));
}

#[test]
fn what_cannot_be_measured_is_refused_in_a_line() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path();
    let at = |name: &str| file(name).display().to_string();
    fs::create_dir(folder.join("empty")).unwrap();
    flat(&folder.join("few"), 4, [32, 32]);
    flat(&folder.join("sizes"), 12, [32, 32]);
    RgbImage::new(40, 32).save(folder.join("sizes/5-x-999.png")).unwrap();
    flat(&folder.join("broken"), 12, [32, 32]);
    fs::write(folder.join("broken/3-x-900.png"), "no image").unwrap();
    let whole = fs::read(file("images.npz")).unwrap();
    fs::write(folder.join("cut.npz"), &whole[..whole.len() / 2]).unwrap();
    fs::write(folder.join("text.npz"), "no archive").unwrap();
    fs::write(folder.join("weights.pth"), "no weights").unwrap();
    refuses(folder, &["--images", "empty"], &["empty", "no images"]);
    refuses(folder, &["--images", "nowhere"], &["nowhere", "no such folder"]);
    refuses(folder, &["--images", "few"], &["4 images, fewer than the 9 classes"]);
    refuses(folder, &["--images", "sizes"], &["5-x-999.png", "40x32", "32x32"]);
    refuses(folder, &["--images", "broken"], &["3-x-900.png", "not a readable image"]);
    refuses(folder, &["--images", "cut.npz"], &["cut.npz", "truncated"]);
    refuses(folder, &["--images", "text.npz"], &["text.npz", "no .npz file"]);
    refuses(folder, &["--images", &at("floats.npz")], &["floats.npz", "uint8", "0 to 255"]);
    refuses(folder, &["--images", &at("gray.npz")], &["gray.npz", "[n, height, width, 3]"]);
    refuses(folder, &["--images", &at("features.npz")], &["features.npz", "arr_0"]);
    refuses(folder, &["--features", &at("images.npz")], &["reference and generated nor logits"]);
    let few = ["--images", "few", "--reference"];
    let other = |reference: &str, parts: &[&str]| {
        refuses(folder, &[&few[..], &[reference]].concat(), parts);
    };
    other("empty", &["--reference", "no images"]);
    other("no-such-recipe", &["--reference", "no-such-recipe", "emoji-quick"]);
    other(&at("features.npz"), &["--reference", "neither images (arr_0) nor"]);
    let inception = ["--images", "few", "--reference", "sizes", "--inception", "weights.pth"];
    refuses(folder, &inception, &["--inception", "weights.pth"]);
    let perceptual = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/features");
    let efficientnet = fs::read_dir(perceptual).unwrap().map(|entry| entry.unwrap().path());
    let efficientnet =
        efficientnet.into_iter().find(|path| path.extension().is_some_and(|e| e == "safetensors"));
    let efficientnet = efficientnet.unwrap().display().to_string();
    refuses(
        folder,
        &["--images", "few", "--inception", &efficientnet],
        &["--inception", "Conv2d_1a_3x3.conv.weight"],
    );
    refuses(folder, &["--n", "0"], &["--n 0"]);
}
