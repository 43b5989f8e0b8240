//! The page without a server: `cargo xtask web` in a real browser. It draws the tokens that this program
//! draws, edits, and opens without a network. Without Chromium, a standard library for WebAssembly or wasm-bindgen a
//! line says that nothing was tested. `SAR_WEB` names a folder that was built before.

#![cfg(all(unix, feature = "flex"))]

#[allow(dead_code, reason = "each test file uses a part")]
mod chromium;
mod files;
mod program;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Instant;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use burn_flex::Flex;
use chromium::Browser;
use files::Files;
use program::skipped;
use sar_pipeline::{
    EditSettings, Mask, Origin, Part, Pipeline, RgbImage, SourceFile, Wishes, size_in_pixels,
    to_png,
};
use serde_json::{Value, json};

const WEIGHTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/weights/emoji");

/// The folder of static files; none where it cannot be built.
fn built() -> Option<&'static Path> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    BUILT.get_or_init(build).as_deref()
}

fn build() -> Option<PathBuf> {
    if let Some(built) = std::env::var_os("SAR_WEB") {
        return Some(built.into());
    }
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("web");
    let output = Command::new(env!("CARGO"))
        .args(["run", "--quiet", "--release", "--package", "xtask", "--", "web", "--out"])
        .arg(&out)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        return Some(out);
    }
    let is_missing = ["no standard library for wasm32", "is needed, exactly this version"];
    let line = said.lines().find(|line| {
        line.starts_with("error: ") && is_missing.iter().any(|missing| line.contains(missing))
    });
    skipped(line.unwrap_or_else(|| panic!("{said}")));
    None
}

/// The page in a browser, from a server that gives files alone.
fn opened() -> Option<(Browser, Files)> {
    let (mut browser, folder) = (Browser::start()?, built()?);
    let files = Files::serve(folder);
    browser.window([1280, 860], "light");
    browser.open(&files.url);
    Some((browser, files))
}

fn pipeline() -> Pipeline<Flex> {
    Pipeline::open_run(WEIGHTS.as_ref(), &Default::default()).unwrap()
}

/// What comes of a job of the page's model: the names of its events, and the data of the last.
fn job(browser: &mut Browser, kind: &str, request: &Value) -> (Vec<String>, Value) {
    let answer = browser.value(&format!(
        "import(new URL('backend.js', document.baseURI)).then(async ({{ submit, watch }}) => {{
           const {{ id }} = await submit('{kind}', {request});
           const names = [];
           return new Promise((done) => watch(id, (name, data) => {{
             names.push(name);
             if (['done', 'failed', 'canceled'].includes(name)) done([names, data]);
           }}));
         }})"
    ));
    serde_json::from_value(answer).unwrap()
}

/// The pictures of the last event of a job.
fn pictures(data: &Value) -> Vec<Vec<u8>> {
    let urls = data["pictures"].as_array().unwrap_or_else(|| panic!("{data}")).iter();
    let base64 = urls.map(|url| url.as_str().unwrap().strip_prefix("data:image/png;base64,"));
    base64.map(|text| BASE64_STANDARD.decode(text.unwrap()).unwrap()).collect()
}

/// The largest and the mean difference of two pictures, in steps of 256.
fn apart(a: &RgbImage, b: &RgbImage) -> (u8, f64) {
    assert_eq!(a.dimensions(), b.dimensions());
    let differences = || a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| a.abs_diff(*b));
    let sum: f64 = differences().map(f64::from).sum();
    (differences().max().unwrap(), sum / a.as_raw().len() as f64)
}

fn read(png: &[u8]) -> RgbImage {
    image::load_from_memory(png).unwrap().into_rgb8()
}

/// Requests, and the same for the library.
fn requests(pipeline: &Pipeline<Flex>) -> Vec<(Value, sar_pipeline::Request)> {
    let said = [
        json!({ "class": "animals", "seed": 7, "count": 3 }),
        json!({ "class": "food", "seed": 1, "count": 2, "guidance": 4.0, "top_k": 50, "top_p": 0.9 }),
        json!({ "seed": 123_456_789_012_345_u64, "count": 2 }),
        json!({ "class": "flags", "seed": 3, "count": 1, "size": "96x64" }),
        json!({ "class": "objects", "seed": 5, "count": 2, "more_smooth": true }),
    ];
    let of = |said: &Value| {
        let wishes = Wishes {
            guidance: said["guidance"].as_f64(),
            top_k: said["top_k"].as_u64().map(|k| k as usize),
            top_p: said["top_p"].as_f64(),
            more_smooth: said["more_smooth"] == true,
            scales: None,
            size: said["size"].as_str().map(|text| size_in_pixels(text).unwrap()),
        };
        let label = said["class"].as_str().map(|class| pipeline.label(class).unwrap());
        let label = label.unwrap_or(pipeline.null_label());
        let (n, seed) = (said["count"].as_u64().unwrap() as usize, said["seed"].as_u64().unwrap());
        sar_pipeline::Request {
            scales: wishes.scales(pipeline).unwrap(),
            sampler: wishes.sampler(pipeline.backbone().sampler),
            ..pipeline.request(label, n, seed)
        }
    };
    said.iter().map(|said| (said.clone(), of(said))).collect()
}

#[test]
fn the_same_tokens_and_pictures() {
    let Some((mut browser, _files)) = opened() else { return };
    let pipeline = pipeline();
    for (said, request) in requests(&pipeline) {
        let (_, data) = job(&mut browser, "tokens", &said);
        let theirs: Vec<u32> = serde_json::from_value(data["tokens"].clone()).expect("tokens");
        assert_eq!(theirs, pipeline.tokens(&request).concat(), "{said}");
        let (names, data) = job(&mut browser, "sample", &said);
        let scales = vec!["scale"; request.scales.len()];
        assert_eq!(names, [&["queued", "begins"], &scales[..], &["done"]].concat(), "{said}");
        let theirs = pictures(&data);
        let ours = pipeline.sample(&request);
        assert_eq!(theirs.len(), ours.len());
        for (number, (png, ours)) in theirs.iter().zip(&ours).enumerate() {
            let (most, mean) = apart(&read(png), ours);
            assert!(most <= 1 && mean < 0.01, "{said}, picture {number}: {most}, {mean}");
            let origin = Origin::of_png(png).expect("it says what it is from");
            assert_eq!((origin.number, origin.job.seed), (number, said["seed"].as_u64().unwrap()));
            assert_eq!(origin.job.made_with.device, "flex, simd128");
        }
    }
    // A request that makes no sense is refused in the words of the server.
    let (names, data) = job(&mut browser, "sample", &json!({ "size": "63x63" }));
    assert_eq!(names.last().unwrap(), "failed");
    assert!(data["error"].as_str().unwrap().contains("multiples of 8"), "{data}");
    let (_, data) = job(&mut browser, "sample", &json!({ "sied": 1 }));
    assert!(data["error"].as_str().unwrap().contains("unknown field `sied`"), "{data}");
}

#[test]
fn the_same_edits() {
    let Some((mut browser, _files)) = opened() else { return };
    let pipeline = pipeline();
    let label = pipeline.label("animals").unwrap();
    let source = pipeline.sample(&pipeline.request(label, 1, 7)).remove(0);
    let sampling = json!({ "class": "animals", "seed": 5, "count": 2 });
    let image = BASE64_STANDARD.encode(to_png(&source));
    let settings = |part, keep_scales, blend| EditSettings {
        part,
        label,
        keep_scales,
        blend,
        scales: pipeline.backbone().scales.clone(),
        exact_size: false,
        sampler: pipeline.backbone().sampler,
        seed: 5,
    };
    let rectangle = Mask::rectangle([64, 64], [16, 16, 48, 40]);
    let mask = RgbImage::from_fn(64, 64, |x, y| {
        let inside = (16..48).contains(&x) && (16..40).contains(&y);
        image::Rgb([if inside { 255 } else { 0 }; 3])
    });
    let edits = [
        (
            json!({ "image": image, "mode": "inpaint", "box": [16, 16, 48, 40], "blend": 2, "sampling": sampling }),
            settings(Part::Inside(rectangle.clone()), None, Some(2)),
        ),
        (
            json!({ "image": image, "mode": "inpaint", "mask": BASE64_STANDARD.encode(to_png(&mask)), "sampling": sampling }),
            settings(Part::Inside(rectangle), None, None),
        ),
        (
            json!({ "image": image, "mode": "expand", "margins": [16, 0, 16, 0], "sampling": sampling }),
            settings(Part::Margins([16, 0, 16, 0]), None, None),
        ),
        (
            json!({ "image": image, "mode": "refine", "keep_scales": 3, "sampling": sampling }),
            settings(Part::Refine, Some(3), None),
        ),
    ];
    for (said, settings) in edits {
        let (_, data) = job(&mut browser, "edit", &said);
        let mode = &said["mode"];
        let theirs = pictures(&data);
        let ours = pipeline.edit(&source, &settings).unwrap().draw(0..2);
        assert_eq!(theirs.len(), 2, "{mode}");
        for (png, ours) in theirs.iter().zip(&ours) {
            let (most, mean) = apart(&read(png), ours);
            assert!(most <= 1 && mean < 0.01, "{mode}: {most}, {mean}");
            let edit = Origin::of_png(png).and_then(|origin| origin.edit).expect("it says so");
            assert_eq!(edit.image, SourceFile::of(None, &to_png(&source)), "{mode}");
        }
    }
}

#[test]
fn the_page_draws_and_opens_without_a_network() {
    let Some((mut browser, mut files)) = opened() else { return };
    assert_eq!(browser.value("document.querySelector('#tab-runs') === null"), true);
    let draw = |browser: &mut Browser, class: &str, count: u32| {
        let n = browser.value("document.querySelectorAll('#gallery .card').length");
        browser.value(&format!(
            "document.querySelector('#seed').value = 7;
             document.querySelector('#count').value = {count};
             document.querySelector('#new-seed').checked = false;
             [...document.querySelectorAll('#classes label')].find((l) => l.textContent.startsWith('{class}')).click();
             document.querySelector('#draw').click();"
        ));
        browser.until(&format!("document.querySelectorAll('#gallery .card').length === {n} + {count} && document.querySelector('#draw').ariaDisabled === 'false'"));
    };
    // Kept for later before the network goes: the page itself has all that it needs.
    browser.value("navigator.serviceWorker.ready.then(() => true)");
    files.stop();

    for class in ["Animals", "Food", "Flags", "Smileys"] {
        draw(&mut browser, class, 4);
    }
    assert_eq!(browser.value("document.querySelectorAll('#ladder .on').length"), 6);
    browser.look("web-sample-desktop-light");
    browser.value("document.querySelector('details.more').open = true");
    browser.well_behaved(&files.url);
    browser.value("document.querySelector('details.more').open = false");
    browser.window([390, 844], "dark");
    browser.value("new Promise((done) => setTimeout(done, 250))");
    browser.look("web-sample-phone-dark");
    browser.window([1280, 860], "light");

    // A job that is drawn ends at once, and the next one is drawn all the same.
    browser.value(
        "document.querySelector('#count').value = 4;
         document.querySelector('#size').value = '256x256';
         document.querySelector('#draw').click();",
    );
    browser.until("document.querySelector('#ladder .on')");
    browser.value("document.querySelector('#cancel').click()");
    browser.until("document.querySelector('#caption').textContent === 'Canceled' && document.querySelector('#draw').ariaDisabled === 'false'");
    browser.value("document.querySelector('#reset').click()");
    draw(&mut browser, "Animals", 1);

    // In-painting by the mouse.
    browser.mask_the_first_of_the_gallery();
    browser.value("document.querySelector('#edit-draw').click()");
    browser.until("!document.querySelector('#result-actions').hidden");
    assert_eq!(browser.value("document.querySelectorAll('#results button').length"), 4);
    browser.look("web-edit-desktop-light");
    browser.well_behaved(&files.url);

    // Opened anew.
    browser.call("Page.navigate", json!({ "url": "about:blank" }));
    browser.open(&files.url);
    draw(&mut browser, "Animals", 1);
    browser.well_behaved(&files.url);
}

/// How long pictures take here and there, in turns. With `RAYON_NUM_THREADS=1` both have one thread.
#[test]
#[ignore = "a measurement"]
fn how_long_pictures_take() {
    let Some((mut browser, _files)) = opened() else { return };
    let pipeline = pipeline();
    for said in [
        json!({ "class": "animals", "seed": 7, "count": 1, "previews": false }),
        json!({ "class": "animals", "seed": 7, "count": 4, "previews": false }),
        json!({ "class": "animals", "seed": 7, "count": 1, "size": "128x128", "previews": false }),
    ] {
        let label = pipeline.label("animals").unwrap();
        let size = said["size"].as_str().map(|text| size_in_pixels(text).unwrap());
        let wishes = Wishes { size, ..Wishes::default() };
        let mut request = pipeline.request(label, said["count"].as_u64().unwrap() as usize, 7);
        request.scales = wishes.scales(&pipeline).unwrap();
        let mut ratios: Vec<[f64; 3]> = Vec::new();
        for turn in 0..8 {
            let start = Instant::now();
            pipeline.sample(&request).iter().for_each(|image| drop(to_png(image)));
            let ours = start.elapsed().as_secs_f64();
            let start = browser.value("performance.now()");
            job(&mut browser, "sample", &said);
            let end = browser.value("performance.now()");
            let theirs = (end.as_f64().unwrap() - start.as_f64().unwrap()) / 1e3;
            // The first ones warm up.
            if turn > 0 {
                ratios.push([theirs / ours, ours, theirs]);
            }
        }
        ratios.sort_by(|a, b| a[0].total_cmp(&b[0]));
        let [ratio, ours, theirs] = ratios[ratios.len() / 2];
        let (low, high) = (ratios[0][0], ratios[ratios.len() - 1][0]);
        println!(
            "{said}: {ratio:.2} ({low:.2} to {high:.2}); {ours:.3} s here, {theirs:.3} s in the browser"
        );
    }
}
