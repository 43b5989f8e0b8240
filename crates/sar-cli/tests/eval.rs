//! `sar eval`, run as a program.

#[path = "../../sar-features/tests/files/mod.rs"]
mod networks;
mod program;

use std::fs;
use std::path::{Path, PathBuf};

use image::{Rgb, RgbImage};
use sar_data::{Dataset, Emoji};
use sar_eval::class_slug;
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

/// Whether a figure has its place, and there is none.
fn is_none(found: &Value, figure: &str) -> bool {
    found.get(figure).is_some_and(Value::is_null)
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
            let slug = class_slug(&emoji.classes()[class]);
            image.save(folder.join(format!("{class}-{slug}-{number:03}.png"))).unwrap();
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
        near(&found[name], &golden[name], 1e-5);
    }
    for name in ["kid_effnetlite0", "class_accuracy"] {
        near(&found["floor"][name], &golden["floor"][name], 1e-5);
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
    assert!(is_none(&found, "kid_effnetlite0") && is_none(&found, "class_accuracy"));
}

/// Waves of three colors, as in `inception.py`.
fn wave(i: u32, [right, down]: [u32; 2], steps: u32, [width, height]: [u32; 2]) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let along = x * (1 + right * i % 17) + y * (2 + down * i % 13) + 31 * i;
        Rgb([0, 1, 2].map(|c: u32| {
            let level = ((along + 60 * c) % 512).abs_diff(256).min(255);
            (level * (steps - c) / steps) as u8
        }))
    })
}

/// Images of two sizes that are neither squares nor of the network's side, with weights of a formula.
#[test]
fn inceptions_figures_are_those_of_a_statement_of_adms_evaluation() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    let real: Vec<RgbImage> = (0..14).map(|i| wave(i, [3, 5], 9, [20, 33])).collect();
    let drawn: Vec<RgbImage> = (8..20).map(|i| wave(i, [5, 3], 3, [23, 305])).collect();
    for (folder, images) in [("real", &real), ("drawn", &drawn)] {
        fs::create_dir(at(folder)).unwrap();
        for (i, image) in images.iter().enumerate() {
            image.save(at(folder).join(format!("{i:02}.png"))).unwrap();
        }
    }
    let pixels: Vec<u8> = drawn.into_iter().flat_map(RgbImage::into_raw).collect();
    npz(&at("drawn.npz"), &[("arr_0.npy", "|u1", "(12, 305, 23, 3)", &pixels)]);
    let mut weights = networks::inception_weights(networks::noise);
    weights.write_pth(&at("inception.pth"), "").unwrap();

    let golden = json(&file("inception.json"));
    let measured = |[images, reference]: [&str; 2], more: &[&str]| {
        let out = format!("{images}-beside-{reference}.json");
        let args = ["--images", images, "--reference", reference, "--json", &out];
        let (table, _) =
            does(root.path(), &[&args[..], &["--inception", "inception.pth"], more].concat());
        assert!(table.contains("sFID") && !table.contains("EffNet"), "{table}");
        json(&at(&out))
    };
    let adm = measured(["drawn", "real"], &["--statistics", "moments.npz"]);
    let other = measured(["drawn.npz", "real"], &["--protocol", "pytorch-fid"]);
    for (protocol, found) in [("adm", &adm), ("pytorch-fid", &other)] {
        assert_eq!(found["extractor"]["input"], protocol);
        assert_eq!((&found["n"], &found["n_reference"]), (&12.into(), &14.into()));
        let Value::Object(golden) = &golden[protocol] else { panic!("a table") };
        assert_eq!(golden.len(), 5);
        for (name, value) in golden {
            near(&found[name], value, 1e-6);
        }
    }
    // Moments in the place of either set of images.
    let turned = measured(["real", "moments.npz"], &[]);
    let moments = measured(["moments.npz", "real"], &[]);
    for found in [&turned, &moments] {
        for name in ["fid", "sfid"] {
            near(&found[name], &adm[name], 1e-5);
        }
        for name in ["kid", "precision", "recall", "floor"] {
            assert!(is_none(found, name), "{name}: {found}");
        }
    }
    assert!(turned["inception_score"].as_f64().unwrap() > 1.02, "of real images: {turned}");
    assert!(is_none(&moments, "inception_score") && is_none(&moments, "n"), "{moments}");

    let name = "Mixed_7c.branch_pool.bn.running_var";
    weights.remove(name).unwrap();
    weights.write_pth(&at("less.pth"), "").unwrap();
    let args = ["--images", "drawn", "--reference", "real", "--inception", "less.pth"];
    refuses(root.path(), &args, &["--inception", "less.pth", name]);
}

/// The content of an array of a file, without its header.
fn content(path: &Path, name: &str) -> Vec<u8> {
    use std::io::Read;
    let mut zip = zip::ZipArchive::new(fs::File::open(path).unwrap()).unwrap();
    let mut bytes = Vec::new();
    zip.by_name(name).unwrap().read_to_end(&mut bytes).unwrap();
    let header = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    bytes.split_off(10 + header)
}

/// As many emoji, one after the other, from the first one on: their pixels.
fn pixels(first: usize, n: usize) -> Vec<u8> {
    let emoji = Emoji::new(32).unwrap();
    (first..first + n).flat_map(|i| emoji.image(i).unwrap().into_raw()).collect()
}

#[test]
fn of_images_and_moments_in_one_file_distances_are_of_the_moments_and_all_else_of_the_images() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    let labels: Vec<u8> = (0..20i64).flat_map(|i| (i % 2).to_le_bytes()).collect();
    let shape = "(20, 32, 32, 3)";
    let (seen, others) = (pixels(0, 20), pixels(1000, 20));
    let images = ("arr_0.npy", "|u1", shape, &seen[..]);
    let labels = ("arr_1.npy", "<i8", "(20,)", &labels[..]);
    npz(&at("seen.npz"), &[images, labels]);
    npz(&at("others.npz"), &[("arr_0.npy", "|u1", shape, &others)]);
    let measured = |reference: &str, more: &[&str]| {
        let images = if reference == "seen.npz" { "others.npz" } else { "seen.npz" };
        let out = format!("of-{reference}{}.json", more.len());
        let args = ["--images", images, "--reference", reference, "--json", &out];
        let (table, said) = does(root.path(), &[&args[..], more].concat());
        (json(&at(&out)), format!("{table}{said}"))
    };
    // Images alone: every tenth is held out. Written moments alone: distances.
    let (of_images, said) = measured("seen.npz", &["--statistics", "moments.npz"]);
    assert!(of_images["floor"]["class_accuracy"].is_number(), "{said}");
    assert!(of_images["memorization"].is_object() && of_images["reference"]["held_out"] == 2);
    assert!(said.contains("no class accuracy: the .npz file has no labels"), "{said}");
    let (of_moments, said) = measured("moments.npz", &[]);
    assert!(is_none(&of_moments, "precision") && said.contains("Fréchet distances alone"));

    let [mu, sigma] = ["mu.npy", "sigma.npy"].map(|name| content(&at("moments.npz"), name));
    let moments =
        [("mu.npy", "<f8", "(1280,)", &mu[..]), ("sigma.npy", "<f8", "(1280, 1280)", &sigma[..])];
    npz(&at("both.npz"), &[&[images, labels], &moments[..]].concat());
    let (both, said) = measured("both.npz", &[]);
    assert_eq!(both["fd_effnetlite0"], of_moments["fd_effnetlite0"]);
    assert!(both["fd_effnetlite0"].as_f64().unwrap() > 1.0, "of other images");
    // The measured images are those of the file.
    assert_eq!((&both["precision"], &both["recall"]), (&1.0.into(), &1.0.into()));
    assert!(both["class_accuracy"].is_number() && both["floor"]["n"] == 2, "{said}");
    assert!(said.contains("Fréchet distances of mu and sigma"), "{said}");
    let (alone, _) = measured("both.npz", &["--moments-only"]);
    assert_eq!(alone["fd_effnetlite0"], both["fd_effnetlite0"]);
    assert!(is_none(&alone, "precision") && is_none(&alone, "floor"));

    let zeros = [0u8; 72];
    let moments =
        [("mu.npy", "<f8", "(3,)", &zeros[..24]), ("sigma.npy", "<f8", "(3, 3)", &zeros[..])];
    npz(&at("three.npz"), &[&[images], &moments[..]].concat());
    let args = ["--images", "seen.npz", "--reference", "three.npz"];
    let why = "three.npz: mu and sigma are of 3 features, efficientnet-lite0 has 1280";
    refuses(root.path(), &args, &[why]);
}

#[test]
fn moments_alone_give_the_distance_of_all_features() {
    let root = tempfile::tempdir().unwrap();
    flat(&root.path().join("real"), 12, [32, 32]);
    npz(&root.path().join("a.npz"), &[("arr_0.npy", "|u1", "(12, 32, 32, 3)", &pixels(0, 12))]);
    let measured = |out: &str, more: &[&str]| {
        let args = ["--images", "a.npz", "--reference", "real", "--json", out];
        does(root.path(), &[&args[..], more].concat());
        json(&root.path().join(out))
    };
    let (all, moments) = (measured("all.json", &[]), measured("m.json", &["--moments-only"]));
    assert!(all["kid_effnetlite0"].is_number() && all["precision"].is_number());
    assert_eq!(moments["fd_effnetlite0"], all["fd_effnetlite0"]);
    assert_eq!((&moments["n"], &moments["n_reference"]), (&12.into(), &12.into()));
    for name in ["kid_effnetlite0", "mind_effnetlite0", "precision", "memorization", "floor"] {
        assert!(is_none(&moments, name), "{name}: {moments}");
    }
    assert_eq!([&all["moments_only"], &moments["moments_only"]], [false, true]);
}

#[test]
fn moments_are_measured_in_the_place_of_images() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    flat(&at("real"), 12, [32, 32]);
    npz(&at("a.npz"), &[("arr_0.npy", "|u1", "(14, 32, 32, 3)", &pixels(0, 14))]);
    let measured = |[images, reference]: [&str; 2], out: &str, more: &[&str]| {
        let args = ["--images", images, "--reference", reference, "--json", out];
        let (table, said) = does(root.path(), &[&args[..], more].concat());
        (json(&at(out)), table, said)
    };
    let (all, ..) = measured(["a.npz", "real"], "all.json", &["--statistics", "m.npz"]);
    let (found, table, said) = measured(["m.npz", "real"], "m.json", &[]);
    assert!(all["fd_effnetlite0"].as_f64().unwrap() > 1.0, "of other images");
    near(&found["fd_effnetlite0"], &all["fd_effnetlite0"], 1e-6);
    // Of fewer real images than features, which is known.
    assert_eq!((&found["n_reference"], &found["rank_deficient"]), (&12.into(), &true.into()));
    for name in ["n", "kid_effnetlite0", "mind_effnetlite0", "precision", "memorization", "floor"] {
        assert!(is_none(&found, name), "{name}: {found}");
    }
    assert!(table.contains("KID x1000") && table.contains(" -"), "{table}");
    for part in ["m.npz: mean and covariance: Fréchet distances alone", "12 images or fewer"] {
        assert!(said.contains(part), "{said}");
    }
    assert!(said.contains("real: looked at with 32x32 px"), "{said}");
    assert!(at("all.png").is_file() && !at("m.png").exists());
    // No sheet is made of moments, so that a picture is in nobody's way.
    fs::write(at("same.png"), "years of work").unwrap();
    let (same, _, said) = measured(["m.npz", "m.npz"], "same.json", &[]);
    assert!(same["fd_effnetlite0"].as_f64().unwrap().abs() < 1e-3, "{same}");
    assert!(is_none(&same, "rank_deficient"), "{same}");
    assert!(said.contains("do not say of how many images"), "{said}");
    assert_eq!(fs::read(at("same.png")).unwrap(), b"years of work");
    assert_eq!(same["images_hash"], same["reference"]["hash"]);

    // What has no size to be brought to stays as it is, or is refused.
    flat(&at("sizes"), 12, [32, 32]);
    RgbImage::new(40, 32).save(at("sizes/5-x-999.png")).unwrap();
    let args = ["--images", "m.npz", "--reference", "sizes"];
    refuses(root.path(), &args, &["--reference: ", "5-x-999.png: 40x32 px", "32x32 px"]);
    // The side of a recipe is one.
    let built_in = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/recipes/emoji-quick.toml");
    let built_in = fs::read_to_string(built_in).unwrap();
    let source = "source = { kind = \"folder\", path = \"sizes\" }";
    fs::write(at("sizes.toml"), built_in.replace("source = { kind = \"emoji\" }", source)).unwrap();
    let (found, _, said) = measured(["m.npz", "sizes.toml"], "sizes.json", &[]);
    assert_eq!((&found["n_reference"], &found["reference"]["size"][0]), (&13.into(), &32.into()));
    assert!(said.contains("recipe emoji-quick: looked at with 32x32 px"), "{said}");

    let zeros = [0u8; 72];
    let moments =
        [("mu.npy", "<f8", "(3,)", &zeros[..24]), ("sigma.npy", "<f8", "(3, 3)", &zeros[..])];
    npz(&at("three.npz"), &moments);
    let args = ["--images", "three.npz", "--reference", "real"];
    let why = "--images: three.npz: mu and sigma are of 3 features, efficientnet-lite0 has 1280";
    refuses(root.path(), &args, &[why]);
    // Two features that are the same, and a third that is the one and the opposite of the other.
    let values = [1.0, 1.0, 1.0, 1.0, 1.0, -1.0, 1.0, -1.0, 1.0];
    let values: Vec<u8> = values.into_iter().flat_map(f64::to_le_bytes).collect();
    let indefinite = [moments[0], ("sigma.npy", "<f8", "(3, 3)", &values[..])];
    npz(&at("indefinite.npz"), &indefinite);
    let args = ["--images", "indefinite.npz", "--reference", "real"];
    let parts = ["--images: indefinite.npz: covariance: has a negative eigenvalue", "check where"];
    refuses(root.path(), &args, &parts);
    npz(&at("half.npz"), &moments[..1]);
    refuses(root.path(), &["--images", "half.npz"], &["half.npz", "has no array sigma"]);
}

#[test]
fn the_images_of_a_recipe_are_measured() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    let built_in = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/recipes/emoji-quick.toml");
    let built_in = fs::read_to_string(built_in).unwrap();
    let recipe = |folder: &str| {
        let source = format!("source = {{ kind = \"folder\", path = \"{folder}\" }}");
        let text = built_in.replace("source = { kind = \"emoji\" }", &source);
        assert_ne!(text, built_in);
        fs::write(at(&format!("{folder}.toml")), text).unwrap();
    };
    // Larger than the recipe's side, and no squares.
    flat(&at("photos"), 12, [48, 40]);
    recipe("photos");
    flat(&at("split/train"), 8, [32, 32]);
    flat(&at("split/val"), 3, [32, 32]);
    recipe("split");
    let measured = |images: &str| {
        let out = format!("{images}.json");
        let args = ["--images", images, "--reference", "photos.toml", "--json", &out];
        let (_, said) = does(root.path(), &args);
        (json(&at(&out)), said)
    };
    // Real images beside themselves.
    let (found, said) = measured("photos.toml");
    assert!(said.contains("recipe emoji-quick: measures all 12 images"), "{said}");
    assert_eq!((&found["n"], &found["n_reference"]), (&12.into(), &12.into()));
    let cropped =
        "recipe emoji-quick: 12 of 12 images have another size than 32x32 px and were cropped";
    assert_eq!(said.matches(cropped).count(), 2, "of the images and of the reference: {said}");
    assert_eq!([&found["images"]["cropped"], &found["reference"]["cropped"]], [12, 12]);
    assert_eq!(found["images"]["source"], "recipe emoji-quick");
    assert_eq!(found["images"]["size"], serde_json::json!([32, 32]));
    assert_eq!(found["images"]["part"], "all");
    // The same pixels on either side.
    assert_eq!(found["images_hash"], found["reference"]["hash"]);
    assert_eq!(found["images_hash"].as_str().unwrap().len(), 8, "{found}");
    let hash = found["images_hash"].clone();
    assert!(found["fd_effnetlite0"].as_f64().unwrap().abs() < 1e-3 && found["recall"] == 1.0);
    let (found, said) = measured("split.toml");
    assert!(said.contains("measures 3 held-out images, not 8 that train"), "{said}");
    assert_eq!((&found["n"], &found["images"]["part"]), (&3.into(), &"held out".into()));
    assert_eq!(found["reference"]["hash"], hash);
    assert_ne!(found["images_hash"], hash);
    assert!(found["fd_effnetlite0"].as_f64().unwrap() > 1.0, "{found}");

    // One that is built in, by its name.
    let args = ["--images", "emoji-quick", "--reference", "nowhere"];
    let parts = ["recipe emoji-quick: measures all 1906 images", "--reference: nowhere"];
    refuses(root.path(), &args, &parts);
    // It is meant, too, where something else has its name.
    flat(&at("emoji"), 4, [32, 32]);
    fs::copy(at("photos.toml"), at("emoji/recipe.toml")).unwrap();
    let taken = "emoji: taken as the built-in recipe; what is called so here is ./emoji\n";
    let args = ["--images", "emoji", "--reference", "nowhere"];
    refuses(root.path(), &args, &[taken, "recipe emoji: measures all 1906 images", "nowhere"]);
    let args = ["--images", "./emoji", "--reference", "emoji"];
    refuses(root.path(), &args, &["--images: ./emoji is a run"]);
    fs::remove_file(at("emoji/recipe.toml")).unwrap();
    refuses(root.path(), &args, &[taken, "4 images, fewer than the 9 classes of the reference"]);
    // A run has both samples and real images.
    fs::create_dir(at("run")).unwrap();
    fs::write(at("run/recipe.toml"), &built_in).unwrap();
    let parts = ["--images: run is a run", "--run run samples", "run/recipe.toml has real images"];
    refuses(root.path(), &["--images", "run"], &parts);
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
fn features_that_cannot_be_measured_are_refused_by_file_and_array() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("rows.npz");
    let rows =
        |n: usize| -> Vec<u8> { (0..n).flat_map(|i| (i as f32).sin().to_le_bytes()).collect() };
    let (whole, mut bad) = (rows(24), rows(24));
    bad[4 * 11..4 * 12].copy_from_slice(&f32::NAN.to_le_bytes());
    let reference = ("reference.npy", "<f4", "(8, 3)", &whole[..]);
    let refused = |arrays: &[(&str, &str, &str, &[u8])], why: &str| {
        npz(&path, arrays);
        let args = ["--features", "rows.npz", "--json", "out.json"];
        let why = format!("error: rows.npz: {why}");
        refuses(root.path(), &args, &[why.as_str()]);
    };
    let generated = |shape, content| ("generated.npy", "<f4", shape, content);
    refused(
        &[reference, generated("(8, 3)", &bad[..])],
        "generated: features: row 3 has NaN at 2; look at what made it",
    );
    refused(
        &[reference, generated("(4, 6)", &whole[..])],
        "generated beside reference: 6 features a row beside 3; compare features of one network",
    );
    refused(
        &[reference, generated("(24,)", &whole[..])],
        "generated: has shape [24], but a matrix is wanted, [rows, columns]",
    );
    refused(
        &[("logits.npy", "<f4", "(24,)", &whole[..])],
        "logits: has shape [24], but a matrix is wanted, [rows, columns]",
    );
}

/// An array in C's order, in Fortran's: the first axis goes fastest.
fn turned<T: Copy>(values: &[T], shape: &[usize]) -> Vec<T> {
    let place = |mut at: usize| {
        let coordinates: Vec<usize> = shape
            .iter()
            .map(|side| {
                let coordinate = at % side;
                at /= side;
                coordinate
            })
            .collect();
        coordinates
            .iter()
            .zip(shape)
            .fold(0usize, |place, (coordinate, side)| place * side + coordinate)
    };
    (0..values.len()).map(|at| values[place(at)]).collect()
}

#[test]
fn arrays_in_fortrans_order_and_halves_give_the_same_figures() {
    assert_eq!(turned(&[0, 1, 2, 3, 4, 5], &[2, 3]), [0, 3, 1, 4, 2, 5]);
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    let (shape, pixels) = ("(12, 32, 32, 3)", pixels(0, 12));
    npz(&at("c.npz"), &[("arr_0.npy", "|u1", shape, &pixels)]);
    npz(&at("f.npz"), &[("arr_0.npy", "F|u1", shape, &turned(&pixels, &[12, 32, 32, 3]))]);
    let args = ["--images", "c.npz", "--reference", "f.npz", "--json", "images.json"];
    let (_, said) = does(root.path(), &args);
    let found = json(&at("images.json"));
    assert_eq!(found["images_hash"], found["reference"]["hash"], "{said}");
    let kept = "npz: arr_0 is in Fortran's order and all of it is kept in memory, 0.0 MB";
    assert!(said.matches(kept).count() == 1 && said.contains("f.npz: arr_0"), "{said}");

    // Values that halves hold exactly.
    let rows = |seed: usize| -> Vec<f32> {
        (0..24).map(|i| 1.0 + (i * seed % 29) as f32 / 16.0).collect()
    };
    let (reference, generated) = (rows(37), rows(41));
    let singles = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    // Of positive numbers: sign and exponent without the difference of their biases, 10 bits of 23.
    let half = |x: &f32| (((x.to_bits() >> 13) - (112 << 10)) as u16).to_le_bytes();
    let halves = |values: &[f32]| values.iter().flat_map(half).collect::<Vec<u8>>();
    let measured = |kinds: [&str; 2], reference: &[u8], generated: &[u8]| {
        let [of_reference, of_generated] = kinds;
        let arrays = [
            ("reference.npy", of_reference, "(12, 2)", reference),
            ("generated.npy", of_generated, "(12, 2)", generated),
        ];
        npz(&at("rows.npz"), &arrays);
        let out = format!("{}.json", kinds.concat().replace('<', ""));
        does(root.path(), &["--features", "rows.npz", "--json", &out]);
        json(&at(&out))
    };
    let expected = measured(["<f4", "<f4"], &singles(&reference), &singles(&generated));
    assert!(expected["frechet_distance"].as_f64().unwrap() > 1e-3, "{expected}");
    let f = |values: &[f32]| turned(values, &[12, 2]);
    let found = measured(["F<f4", "<f2"], &singles(&f(&reference)), &halves(&generated));
    assert_eq!(found, expected);
    let found = measured(["<f2", "F<f2"], &halves(&reference), &halves(&f(&generated)));
    assert_eq!(found, expected);
}

#[test]
fn images_of_numpy_are_read_compressed_or_not_and_folders_of_classes_are_labels() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| file(name).display().to_string();
    flat(&root.path().join("real/a"), 8, [32, 32]);
    flat(&root.path().join("real/b"), 8, [32, 32]);
    let mut distances = Vec::new();
    for name in ["images.npz", "compressed.npz"] {
        let out = format!("{name}.json");
        let (_, said) =
            does(root.path(), &["--images", &at(name), "--reference", "real", "--json", &out]);
        assert!(said.contains("measures all 5 images"), "{said}");
        let found = json(&root.path().join(out));
        assert_eq!(found["n"], 5);
        distances.push(found["fd_effnetlite0"].as_f64().unwrap());
    }
    assert_eq!(distances[0], distances[1]);
    fs::copy(file("images.npz"), root.path().join("IMAGES.NPZ")).unwrap();
    let args = ["--images", "IMAGES.NPZ", "--reference", "real", "--json", "capitals.json"];
    does(root.path(), &args);
    assert_eq!(json(&root.path().join("capitals.json"))["fd_effnetlite0"], distances[0]);
    // Real images beside themselves.
    let args = ["--images", "real", "--reference", "real", "--json", "self.json"];
    let (_, said) = does(root.path(), &args);
    let found = json(&root.path().join("self.json"));
    assert!(found["fd_effnetlite0"].as_f64().unwrap().abs() < 1e-3 && found["precision"] == 1.0);
    assert!(found["class_accuracy"].is_number(), "{said}");
    // Without classes on one side that is said.
    flat(&root.path().join("plain"), 8, [32, 32]);
    let args = ["--images", "real", "--reference", "plain", "--json", "plain.json"];
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
    // One of each of nine classes at each setting.
    assert_eq!([&one["n"], &sweep[0]["n"], &sweep[1]["n"]], [9, 9, 9]);
    assert_eq!(
        (sweep.len(), &sweep[1]["guidance"], &sweep[1]["top_p"]),
        (2, &2.0.into(), &0.5.into())
    );
    for differs in ["fd_effnetlite0", "images_hash"] {
        assert_ne!(sweep[0][differs], sweep[1][differs], "{differs}");
    }
    let svg = fs::read_to_string(root.path().join("one.svg")).unwrap();
    assert!(svg.contains("KID x1000") && svg.contains("guidance"));
    // Of one setting the report says the sampler that drew.
    let args = ["--n", "1", "--scales", "1_2_3", "--reference", "real", "--sweep", "guidance=2"];
    does(root.path(), &[&args[..], &["--top-p", "0.25", "--json", "single.json"]].concat());
    let single = json(&root.path().join("single.json"));
    let sampler = &single["images"]["sampler"];
    assert_eq!(
        (&single["guidance"], &sampler["guidance"]["scale"]),
        (&2.0.into(), &2.0.into()),
        "{single}"
    );
    assert_eq!(sampler["choice"]["top_p"], 0.25, "{single}");
    // All settings that no option has.
    let neighbors = serde_json::json!({ "precision": 3, "recall": 3, "density": 5, "coverage": 5 });
    let measures = &single["measures"];
    assert_eq!((&measures["seed"], &measures["neighbors"]), (&0.into(), &neighbors));
    assert_eq!(measures["mind_directions"], 1000);
    assert!(single["device"].as_str().unwrap().starts_with("flex"), "{single}");
}

/// Products in another precision are of the same weights.
#[test]
fn the_precision_of_samples_is_reported_and_changes_no_checksum() {
    let root = tempfile::tempdir().unwrap();
    flat(&root.path().join("real"), 12, [16, 16]);
    let measured = |precision: &str| {
        let out = format!("{precision}.json");
        let args = ["--n", "1", "--scales", "1_2_4", "--reference", "real", "--json", &out];
        does(root.path(), &[&args[..], &["--precision", precision]].concat());
        json(&root.path().join(out))
    };
    let (full, half) = (measured("f32"), measured("bf16"));
    for weights in ["tokenizer", "backbone"] {
        assert_eq!(full["images"][weights].as_str().unwrap().len(), 8, "{full}");
        assert_eq!(full["images"][weights], half["images"][weights]);
    }
    assert_eq!([&full["images"]["precision"], &half["images"]["precision"]], ["f32", "bf16"]);
}

#[test]
fn memory_that_grows_with_the_images_is_said_before() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path();
    flat(&folder.join("real"), 12, [32, 32]);
    let many = folder.join("many");
    fs::create_dir(&many).unwrap();
    RgbImage::new(32, 32).save(many.join("00000.png")).unwrap();
    // The second one ends it.
    (1..20_000).for_each(|i| fs::write(many.join(format!("{i:05}.png")), "no image").unwrap());
    let why = "00001.png: not a readable image";
    let images = ["--images", "many", "--reference", "real"];
    let kept = "keeps the features of 20000 images, 5.1 kB each, 0.1 GB, for measures of neighbors";
    refuses(folder, &images, &[kept, "--moments-only keeps none", why]);
    // Of real ones the parts are kept beside all.
    let reference = ["--images", "real", "--reference", "many"];
    refuses(folder, &reference, &["20000 images, 10.2 kB each, 0.2 GB", why]);
    for args in [images, reference] {
        let args = [&["eval"], &args[..], &["--moments-only"]].concat();
        let (_, _, said) = program::sar(folder, &args);
        assert!(said.contains(why) && !said.contains("keeps the features"), "{said}");
    }
}

#[test]
fn no_file_is_written_over() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path();
    fs::copy(file("images.npz"), folder.join("ref.npz")).unwrap();
    fs::create_dir(folder.join("a-folder")).unwrap();
    let mine = ["mine.json", "run-1.5.png", "eval.png", "mine.npz"];
    mine.iter().for_each(|name| fs::write(folder.join(name), "years of work").unwrap());
    let args = ["--images", "ref.npz", "--reference", "ref.npz"];
    let bad = |more: &[&str], parts: &[&str]| refuses(folder, &[&args[..], more].concat(), parts);
    bad(&["--statistics", "ref.npz"], &["--statistics ref.npz: exists already"]);
    bad(&["--statistics", "mine.npz"], &["--statistics mine.npz: exists already"]);
    bad(&["--json", "mine.json"], &["--json mine.json: exists already"]);
    bad(&["--json", "x.png"], &["the sheet x.png", "is the file of --json"]);
    bad(&["--json", "run-1.5.json"], &["the sheet run-1.5.png: exists already"]);
    bad(&["--json", "no/x.json"], &["--json no/x.json: there is no folder no"]);
    bad(&["--json", "a-folder"], &["--json a-folder: is a folder"]);
    bad(&["--json", "x.npz", "--statistics", "./x.npz"], &["./x.npz", "is the file of --json"]);
    let features = file("features.npz").display().to_string();
    let features = ["--features", &features, "--json", "mine.json"];
    refuses(folder, &features, &["--json mine.json: exists already"]);
    // By default a name that is free for all files, and all of a name that has a point.
    let (_, said) = does(folder, &args);
    assert!(said.contains("wrote eval-2.json\nwrote eval-2.png\n"), "{said}");
    does(folder, &[&args[..], &["--json", "run-1.0.json"]].concat());
    assert!(folder.join("run-1.0.png").is_file() && !folder.join("run-1.png").exists());
    for name in mine {
        assert_eq!(fs::read(folder.join(name)).unwrap(), b"years of work", "{name}");
    }
    assert_eq!(fs::read(folder.join("ref.npz")).unwrap(), fs::read(file("images.npz")).unwrap());
}

#[test]
fn of_a_folder_with_a_split_the_held_out_images_are_measured() {
    let root = tempfile::tempdir().unwrap();
    flat(&root.path().join("photos/train"), 5, [32, 32]);
    flat(&root.path().join("photos/val"), 3, [32, 32]);
    flat(&root.path().join("real"), 8, [32, 32]);
    let args = ["--images", "photos", "--reference", "real", "--json", "o.json"];
    let (_, said) = does(root.path(), &args);
    assert!(said.contains("photos: measures 3 held-out images, not 5 that train"), "{said}");
    assert_eq!(json(&root.path().join("o.json"))["n"], 3);
}

#[test]
fn a_class_is_what_the_name_of_a_file_says() {
    let root = tempfile::tempdir().unwrap();
    let emoji = Emoji::new(32).unwrap();
    let save = |i: usize, name: String| {
        let path = root.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        emoji.image(i).unwrap().save(path).unwrap();
    };
    // In the order of their names smileys are class 1.
    for name in ["Flags", "Smileys & Emotion"] {
        let class = emoji.classes().iter().position(|class| class == name).unwrap();
        let of_class = (0..emoji.len()).filter(|i| emoji.label(*i) == class);
        for (number, i) in of_class.take(20).enumerate() {
            save(i, format!("real/{name}/{number}.png"));
            if name != "Flags" && number < 10 {
                save(i, format!("right/1-smileys-emotion-{number:03}.png"));
                save(i, format!("wrong/0-smileys-emotion-{number:03}.png"));
            }
        }
    }
    let measured = |folder: &str| {
        let out = format!("{folder}.json");
        let (_, said) =
            does(root.path(), &["--images", folder, "--reference", "real", "--json", &out]);
        (json(&root.path().join(out))["class_accuracy"].clone(), said)
    };
    let (accuracy, said) = measured("right");
    assert!(accuracy.as_f64().unwrap() > 0.5, "{accuracy}: {said}");
    let (accuracy, said) = measured("wrong");
    let why = "no class accuracy: 0-smileys-emotion-000.png says class 'smileys-emotion', the reference's \
               class 0 is 'Flags'";
    assert!(accuracy.is_null() && said.contains(why), "{accuracy}: {said}");

    // What the labels of a file of arrays count cannot be seen, which is said once.
    let images = |i: usize| emoji.image(i).unwrap().into_raw();
    let content = [images(0), images(1)].concat();
    let labels = [[1, 0, 0, 0, 0, 0, 0, 0]; 2].concat();
    let arrays = [
        ("arr_0.npy", "|u1", "(2, 32, 32, 3)", &content[..]),
        ("arr_1.npy", "<i8", "(2,)", &labels),
    ];
    npz(&root.path().join("arrays.npz"), &arrays);
    let (accuracy, said) = measured("arrays.npz");
    let told = "arrays.npz: labels (arr_1) are taken as indices of the reference's 2 classes";
    assert!(accuracy.is_number() && said.matches(told).count() == 1, "{accuracy}: {said}");
}

#[test]
fn of_a_class_that_is_all_held_out_there_is_no_accuracy() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    // Every tenth image is held out: all of class 9.
    let arrays = |name: &str, n: usize| {
        let labels: Vec<u8> = (0..n as i64).flat_map(|i| (i % 10).to_le_bytes()).collect();
        let shapes = [format!("({n}, 32, 32, 3)"), format!("({n},)")];
        let images = pixels(0, n);
        let arrays = [
            ("arr_0.npy", "|u1", &shapes[0][..], &images[..]),
            ("arr_1.npy", "<i8", &shapes[1][..], &labels[..]),
        ];
        npz(&at(name), &arrays);
    };
    arrays("all.npz", 20);
    arrays("nine.npz", 9);
    let measured = |images: &str| {
        let out = format!("{images}.json");
        let args = ["--images", images, "--reference", "all.npz", "--json", &out];
        let (_, said) = does(root.path(), &args);
        (json(&at(&out)), said)
    };
    let (found, said) = measured("all.npz");
    assert!(is_none(&found, "class_accuracy") && found["kid_effnetlite0"].is_number(), "{found}");
    let why = "no class accuracy: of class 9, '9', the reference has no training image";
    assert!(said.contains(why), "{said}");
    let (found, said) = measured("nine.npz");
    assert!(found["class_accuracy"].is_number() && is_none(&found["floor"], "class_accuracy"));
    assert!(!said.contains("no class accuracy"), "{said}");
    let few = "--images nine.npz: 9 images, fewer than the 10 classes of the reference";
    assert_eq!(said.matches(few).count(), 1, "{said}");
}

#[test]
fn real_images_that_are_enlarged_are_counted() {
    let root = tempfile::tempdir().unwrap();
    flat(&root.path().join("images"), 12, [32, 32]);
    flat(&root.path().join("real"), 12, [24, 24]);
    RgbImage::new(40, 33).save(root.path().join("real/0-name-900.png")).unwrap();
    let args = ["--images", "images", "--reference", "real", "--json", "out.json"];
    let (_, said) = does(root.path(), &args);
    let line = "real: 12 of 13 images are smaller than 32x32 px and were enlarged, so that they are less sharp";
    assert!(said.contains(line), "{said}");
    let found = json(&root.path().join("out.json"));
    assert_eq!([&found["reference"]["enlarged"], &found["images"]["enlarged"]], [12, 0]);
}

#[test]
fn a_folder_of_another_size_is_looked_at_as_an_npz_file_is() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    flat(&at("images"), 12, [32, 32]);
    flat(&at("wide"), 12, [50, 40]);
    flat(&at("real"), 12, [48, 40]);
    let mut files: Vec<PathBuf> =
        fs::read_dir(at("real")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let pixels: Vec<u8> =
        files.iter().flat_map(|file| image::open(file).unwrap().into_rgb8().into_raw()).collect();
    npz(&at("real.npz"), &[("arr_0.npy", "|u1", "(12, 40, 48, 3)", &pixels)]);
    let measured = |images: &str, reference: &str, out: &str| {
        let args = ["--images", images, "--reference", reference, "--json", out];
        let (_, said) = does(root.path(), &args);
        (json(&at(out)), said)
    };
    let (folder, said) = measured("images", "real", "folder.json");
    let line = "real: 48x40 px, the images have 32x32; either is resized for the network";
    assert!(said.contains(line) && !said.contains("cropped"), "{said}");
    assert_eq!(
        (&folder["reference"]["cropped"], &folder["reference"]["size"][1]),
        (&0.into(), &48.into())
    );
    let (file, said) = measured("images", "real.npz", "file.json");
    assert!(said.contains("real.npz: 48x40 px, the images have 32x32; either"), "{said}");
    assert_eq!(folder["reference"]["hash"], file["reference"]["hash"]);
    for name in ["fd_effnetlite0", "kid_effnetlite0", "precision", "recall", "floor"] {
        assert_eq!(folder[name], file[name], "{name}");
    }
    // No squares are wanted.
    let (_, said) = measured("wide", "real", "wide.json");
    assert!(said.contains("real: 48x40 px, the images have 50x40; either"), "{said}");

    // Of several sizes they become one.
    RgbImage::new(40, 33).save(at("real/0-name-900.png")).unwrap();
    let (several, said) = measured("images", "real", "several.json");
    let line =
        "real: 13 of 13 images have another size than 32x32 px and were cropped and resized to it";
    assert!(said.contains(line) && !said.contains("either is resized"), "{said}");
    assert_eq!(several["reference"]["cropped"], 13);
    assert_eq!(several["reference"]["enlarged"], 0);
    let why = "0-name-000.png: 48x40 px, but those that it is compared with have 50x40 px, and to squares alone";
    refuses(root.path(), &["--images", "wide", "--reference", "real"], &["--reference: ", why]);
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
    let nothing = |name: &str| {
        let why = format!("--images: {name}: neither a folder nor an .npz file nor a recipe");
        refuses(folder, &["--images", name], &[why.as_str(), "emoji-quick"]);
    };
    nothing("nowhere");
    flat(&folder.join("one"), 1, [32, 32]);
    nothing("one/0-name-000.png");
    let one = ["--images", "one", "--reference", "few"];
    refuses(folder, &one, &["--images one: features: 1 rows, but a covariance takes 2"]);
    let one = ["--images", "few", "--reference", "one"];
    refuses(folder, &one, &["--reference: features: 1 rows, but a covariance takes 2"]);
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
    refuses(folder, &["--n", "99999999999"], &["--n 99999999999: at most 10000000 images"]);
    refuses(folder, &["--n", "9000000"], &["--n 9000000: of each of 9 classes; at most 10000000"]);
    let (code, _, said) = program::sar(folder, &["eval", "--sweep", "guidance=1e38"]);
    assert!(code == Some(2) && said.contains("must be in [0, 1000]"), "{said}");
}

/// Writes arrays: name, kind, shape and content.
fn npz(path: &Path, arrays: &[(&str, &str, &str, &[u8])]) {
    use std::io::Write;
    let mut zip = zip::ZipWriter::new(fs::File::create(path).unwrap());
    for (name, kind, shape, content) in arrays {
        // An F before the kind is for Fortran's order.
        let (order, kind) = match kind.strip_prefix('F') {
            Some(kind) => ("True", kind),
            None => ("False", *kind),
        };
        let text = format!("{{'descr': '{kind}', 'fortran_order': {order}, 'shape': {shape}, }}");
        let mut bytes = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
        bytes.extend(format!("{text:<117}\n").bytes());
        bytes.extend(*content);
        zip.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(&bytes).unwrap();
    }
    zip.finish().unwrap();
}

#[test]
fn a_file_whose_header_says_more_than_there_is_is_refused() {
    let root = tempfile::tempdir().unwrap();
    for shape in
        ["(1, 1000000, 1000000, 3)", "(1, 4294967296, 4294967296, 3)", "(1, 4294967296, 1, 3)"]
    {
        npz(&root.path().join("large.npz"), &[("arr_0.npy", "|u1", shape, &[7; 100])]);
        refuses(root.path(), &["--images", "large.npz"], &["large.npz: arr_0: has shape [1, "]);
    }
}

#[test]
fn options_of_samples_are_not_for_images_that_are_there() {
    let root = tempfile::tempdir().unwrap();
    flat(&root.path().join("images"), 9, [32, 32]);
    let features = file("features.npz").display().to_string();
    for (option, value) in [
        ("--guidance", "3"),
        ("--n", "5"),
        ("--seed", "1"),
        ("--top-k", "9"),
        ("--top-p", "0.5"),
        ("--size", "32x32"),
        ("--scales", "1_2"),
        ("--batch", "4"),
        ("--precision", "bf16"),
    ] {
        for source in [["--images", "images"], ["--features", &features]] {
            let args = [&["eval"], &source[..], &[option, value]].concat();
            let (code, _, said) = program::sar(root.path(), &args);
            assert_eq!(code, Some(2), "{args:?}: {said}");
            assert!(said.contains("cannot be used with") && said.contains(option), "{said}");
        }
    }
}
