//! `sar tokenizer-eval`, run as a program.

mod program;

use std::fs;
use std::path::Path;

use image::{Rgb, RgbImage};
use serde_json::Value;

fn does(folder: &Path, args: &[&str]) -> (String, String) {
    program::does(folder, &[&["tokenizer-eval"], args].concat())
}

fn refuses(folder: &Path, args: &[&str], parts: &[&str]) {
    program::refuses(folder, &[&["tokenizer-eval"], args].concat(), parts);
}

/// Twelve images of all kinds of sizes, one that is none, and a text.
fn images(folder: &Path) {
    fs::create_dir(folder).unwrap();
    for i in 0..12u32 {
        let image = RgbImage::from_fn(40 + 10 * i, 70, |x, y| {
            Rgb([(3 * x + 20 * i) as u8, (2 * y) as u8, (x * y / 16) as u8])
        });
        image.save(folder.join(format!("{i:02}.png"))).unwrap();
    }
    fs::write(folder.join("broken.png"), "no image").unwrap();
    fs::write(folder.join("notes.txt"), "no image").unwrap();
}

fn json(folder: &Path, name: &str) -> Value {
    serde_json::from_slice(&fs::read(folder.join(name)).unwrap()).unwrap()
}

fn asset(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets").join(name);
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_folder_is_measured_with_the_weights_in_the_box() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    images(&folder.join("photos"));
    let (table, said) = does(folder, &["--images", "photos", "--batch-size", "5"]);
    assert!(said.contains("broken.png: not a readable image"), "{said}");
    for part in [
        "measured 12 of 13 images of photos, the center of each, resized to 64x64 px (3 were smaller",
        "1 could not be read (first: photos/broken.png",
        "left out 1 .txt (first: notes.txt)",
        "efficientnet-lite0",
        "of 512 codes used",
    ] {
        assert!(table.contains(part), "'{part}' is not in: {table}");
    }
    let report = json(folder, "tokenizer-eval/eval.json");
    assert_eq!(report["kind"], "flexvar-tokenizer");
    assert_eq!((&report["side"], &report["scales"]), (&64.into(), &"1_2_3_4_6_8".into()));
    let images = &report["images"];
    assert_eq!((&images["measured"], &images["found"]), (&12.into(), &13.into()));
    assert_eq!((&images["enlarged"], &images["held_out_only"]), (&3.into(), &false.into()));
    assert_eq!(images["crop"]["kind"], "adm-center");
    assert_eq!(images["unreadable"].as_array().unwrap().len(), 1);
    assert_eq!(images["left_out"][0]["why"], ".txt");
    let figures = &report["figures"];
    let by_scale = figures["by_scale"].as_array().unwrap();
    assert_eq!(by_scale.len(), 6);
    for (k, (scale, side)) in by_scale.iter().zip([8, 16, 24, 32, 48, 64]).enumerate() {
        assert_eq!(scale["pixels"], serde_json::json!([side, side]));
        let distance = &scale["distances"]["efficientnet-lite0"];
        assert_eq!(distance.is_null(), side < 32, "{scale}");
        let ssim = scale["ssim"].as_f64().unwrap();
        assert!((-1.0..1.0).contains(&ssim) && scale["psnr_db"].as_f64().unwrap() > 5.0, "{scale}");
        let count = |name: &str| scale[name].as_u64().unwrap();
        let (used, dead) = (count("codes_used"), count("codes_dead_of_usable"));
        assert_eq!(used + count("codes_dead"), 512, "{scale}");
        // No more codes than twelve images have tokens.
        let usable = [12, 48, 108, 192, 432, 512][k];
        assert_eq!((count("codes_usable"), used + dead), (usable, usable), "{scale}");
        let row: Vec<&str> = table.lines().nth(k + 1).unwrap().split_whitespace().collect();
        assert!(row.join(" ").contains(&format!(" {used} of {usable} {dead} ")), "{table}");
        assert!(scale["perplexity"].as_f64().unwrap() >= 1.0, "{scale}");
    }
    assert_eq!(figures["psnr_db"], by_scale[5]["psnr_db"]);
    // Eight columns, the originals and six scales, of 64 px and a gap of 4.
    let sheet = image::open(folder.join("tokenizer-eval/reconstructions.png")).unwrap();
    assert_eq!((sheet.width(), sheet.height()), (8 * 68 + 4, 7 * 68 + 4));

    // The batch changes nothing but rounding, and nothing is overwritten.
    does(folder, &["--images", "photos", "--max", "4", "--batch-size", "1"]);
    let some = json(folder, "tokenizer-eval-2/eval.json");
    assert_eq!((&some["images"]["measured"], &some["images"]["found"]), (&4.into(), &13.into()));
}

#[test]
fn emoji_have_the_figures_of_the_run_that_made_the_weights() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (table, _) = does(folder, &["--out", "here"]);
    assert!(table.contains("measured 190 of 190 held-out images of embedded emoji"), "{table}");
    let [ours, runs] = [
        json(folder, "here/eval.json")["figures"].clone(),
        json(Path::new(&asset("weights/emoji")), "report.json")["tokenizer"].clone(),
    ];
    for k in 0..6 {
        let [ours, runs] = [&ours, &runs].map(|of| &of["by_scale"][k]);
        let [a, b] = [ours, runs].map(|scale| scale["psnr_db"].as_f64().unwrap());
        assert!((a - b).abs() < 0.01, "{ours} {runs}");
        let [a, b] = [ours, runs].map(|scale| scale["codes_used"].as_i64().unwrap());
        assert!((a - b).abs() <= 3, "{ours} {runs}");
    }
    assert!((ours["psnr_db"].as_f64().unwrap() - runs["psnr_db"].as_f64().unwrap()).abs() < 0.01);
}

#[test]
fn released_files_are_measured_at_any_side() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    images(&folder.join("photos"));
    for (case, kind) in [("flexvar_tiny", "flexvar-tokenizer"), ("var_tiny", "var-tokenizer")] {
        let tokenizer = asset(&format!("parity/{case}/tokenizer.pth"));
        let args = ["--tokenizer", &tokenizer, "--images", "photos", "--max", "2", "--out", case];
        let (_, said) = does(folder, &[&args[..], &["--side", "64"]].concat());
        assert!(
            said.contains("assumed scales 1_") && said.contains("stretched to 64 px"),
            "{said}"
        );
        let report = json(folder, &format!("{case}/eval.json"));
        assert_eq!((&report["kind"], &report["side"]), (&kind.into(), &64.into()));
        let out = format!("{case}-2");
        let args = ["--tokenizer", &tokenizer, "--images", "photos", "--max", "1", "--out", &out];
        does(folder, &[&args[..], &["--scales", "1_2_3"]].concat());
        let report = json(folder, &format!("{out}/eval.json"));
        let pixels = &report["figures"]["by_scale"][2]["pixels"];
        assert_eq!((&report["side"], &report["scales"]), (&pixels[0], &"1_2_3".into()));
    }
}

#[test]
fn what_cannot_be_measured() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    images(&folder.join("photos"));
    fs::create_dir(folder.join("empty")).unwrap();
    fs::create_dir(folder.join("broken")).unwrap();
    fs::write(folder.join("broken/a.png"), "no image").unwrap();
    let tokenizer = asset("parity/flexvar_tiny/tokenizer.pth");
    let backbone = asset("parity/flexvar_tiny/backbone.pth");
    let check = |args: &[&str], parts: &[&str]| refuses(folder, args, parts);
    check(&["--tokenizer", "nowhere.pth"], &["nowhere.pth", "cannot read"]);
    check(&["--tokenizer", &backbone], &["backbone.pth", "a backbone, not a tokenizer"]);
    check(&["--run", "empty"], &["empty", "there is no tokenizer.safetensors"]);
    check(&["--images", "nowhere"], &["--images: nowhere: no such folder"]);
    check(&["--images", "empty"], &["--images: empty: no images in this folder", "PNG"]);
    check(&["--images", "broken"], &["none of 1 images can be read: broken/a.png"]);
    check(&["--side", "30"], &["--side 30", "multiple of 8"]);
    check(&["--side", "0"], &["--side 0", "multiple of 8"]);
    for side in ["800000", "16384"] {
        check(&["--side", side, "--images", "photos"], &[&format!("--side {side}"), "up to 8192"]);
    }
    check(&["--side", "128"], &["without --images", "side 128", "1 to 64 px"]);
    check(&["--tokenizer", &tokenizer], &["without --images", "side 256", "1 to 64 px"]);
    check(&["--scales", "2_1"], &["--scales 2_1"]);
    check(&["--scales", "1_2x3"], &["--scales 1_2x3", "no square"]);
    check(&["--batch-size", "0"], &["--batch-size 0"]);
    check(&["--lpips", "vgg.pth"], &["--lpips vgg.pth", "VGG_FILE,HEADS_FILE"]);
    check(&["--lpips", "vgg.pth,heads.pth"], &["--lpips", "vgg.pth", "cannot read"]);
    check(&["--out", "photos"], &["--out photos", "already holds files"]);
    check(&["--device", "cpu"], &["--device cpu", "flex"]);
}
