//! The page in a real browser: it samples, edits and watches a run, by mouse and by keyboard, asks nobody but
//! its server, and has a name for everything. Without Chromium a line says that nothing was tested.

#![cfg(unix)]

mod chromium;
mod program;
#[allow(dead_code, reason = "each test file uses a part")]
mod serving;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use chromium::Browser;
use program::{does, draw_images};
use sar_pipeline::{EditedPart, Origin};
use serde_json::{Value, json};
use serving::Serving;

const DESKTOP: [u32; 2] = [1280, 860];
const PHONE: [u32; 2] = [390, 844];

/// In every size and color that people have.
fn look(browser: &mut Browser, name: &str) {
    look_at(browser, name, "");
}

/// As [`look`], where an expression scrolls to.
fn look_at(browser: &mut Browser, name: &str, place: &str) {
    for (scheme, size, what) in [
        ("dark", PHONE, "phone-dark"),
        ("light", PHONE, "phone-light"),
        ("dark", DESKTOP, "desktop-dark"),
        ("light", DESKTOP, "desktop-light"),
    ] {
        browser.window(size, scheme);
        browser.value("new Promise((done) => setTimeout(done, 250))");
        // Nothing is wider than the window.
        let wide = browser.value("document.documentElement.scrollWidth - innerWidth");
        assert!(wide.as_f64().unwrap() <= 0.0, "{name}, {what}: {wide} pixels too wide");
        browser.value(place);
        browser.look(&format!("{name}-{what}"));
    }
}

#[test]
fn samples_and_edits() {
    let Some(mut browser) = Browser::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let server = Serving::start(folder.path(), &[]);
    browser.window(DESKTOP, "light");
    browser.open(&server.url);

    // Sampling, with what is there after every scale.
    browser.value(
        "[...document.querySelectorAll('#classes label')].find((l) => l.textContent.startsWith('Animals')).click();
         document.querySelector('#seed').value = 7;
         document.querySelector('#count').value = 2;
         document.querySelector('#new-seed').checked = false;
         window.shown = [];
         new MutationObserver(() => {
           const image = document.querySelector('#tiles img');
           if (image && shown.at(-1) !== image.src) shown.push(image.src);
         }).observe(document.querySelector('#tiles'), { subtree: true, childList: true, attributes: true });
         document.querySelector('#draw').click();",
    );
    browser.until("document.querySelectorAll('#gallery .card').length === 2");
    let previews = browser.value("shown.filter((url) => url.startsWith('data:image/png')).length");
    assert_eq!(previews, 5, "every scale but the last, and then the picture");
    assert_eq!(browser.value("shown.at(-1).startsWith('blob:')"), true);
    assert_eq!(browser.value("document.querySelectorAll('#ladder .on').length"), 6);
    // The last one comes first.
    let (name, ours) = download(&mut browser, "document.querySelector('#gallery a')");
    assert_eq!(name, "animals-nature-7-1.png");
    does(
        folder.path(),
        &["sample", "--class", "animals", "--seed", "7", "--n", "2", "--out", "out"],
    );
    let theirs =
        fs::read_dir(folder.path().join("out")).unwrap().flatten().map(|entry| entry.path());
    let theirs =
        theirs.into_iter().find(|path| path.to_string_lossy().ends_with("-001.png")).unwrap();
    assert!(ours == fs::read(theirs).unwrap(), "the picture of `sar sample`");

    // A gallery, for the eyes.
    for class in ["Food", "Objects", "Smileys", "Flags"] {
        let n = browser.value("document.querySelectorAll('#gallery .card').length");
        browser.value(&format!(
            "document.querySelector('#count').value = 4;
             document.querySelector('#seed').value = 3;
             [...document.querySelectorAll('#classes label')].find((l) => l.textContent.startsWith('{class}')).click();
             document.querySelector('#draw').click();"
        ));
        browser.until(&format!("document.querySelectorAll('#gallery .card').length === {n} + 4 && document.querySelector('#draw').ariaDisabled === 'false'"));
    }
    look(&mut browser, "sample");
    browser.value("document.querySelector('#sample-form details').open = true");
    browser.well_behaved(&server.url);

    // A click takes the settings of a picture.
    browser.value("document.querySelector('#gallery li:last-child > button').click()");
    assert_eq!(browser.value("document.querySelector('#seed').value"), "7");
    assert_eq!(browser.value("document.querySelector('#count').value"), "2");
    let chosen = "document.querySelector('#classes input:checked').parentElement.textContent";
    assert!(browser.value(chosen).as_str().unwrap().starts_with("Animals"));
    // While others are drawn, too: those keep their place.
    browser.value(
        "document.querySelector('#count').value = 4; document.querySelector('#draw').click()",
    );
    browser.until("document.querySelector('#now.busy #ladder .on')");
    browser.value("document.querySelector('#gallery li:nth-last-child(3) > button').click()");
    assert_eq!(browser.value("document.querySelector('#draw').ariaDisabled"), "true");
    assert_eq!(browser.value("document.querySelector('#seed').value"), "3");
    browser.until("document.querySelector('#draw').ariaDisabled === 'false'");
    let pictures = "[document.querySelectorAll('#tiles img').length, document.querySelectorAll('#gallery .card').length]";
    assert_eq!(browser.value(pictures), json!([4, 22]));

    // Canceling.
    browser.value(
        "document.querySelector('#count').value = 4;
         document.querySelector('#size').value = '256x256';
         document.querySelector('#draw').click();",
    );
    browser.until("!document.querySelector('#cancel').hidden");
    browser.until("document.querySelector('#ladder .on')");
    browser.value("document.querySelector('#cancel').click()");
    browser.until("document.querySelector('#caption').textContent === 'Canceled' && document.querySelector('#draw').ariaDisabled === 'false'");
    // What the server refuses is said.
    browser.value(
        "document.querySelector('#size').value = '63x63'; document.querySelector('#draw').click();",
    );
    browser.until("document.querySelector('#toast').textContent.includes('multiples of 8')");
    // What the browser refuses it shows, where it was folded away as well.
    browser.value(
        "document.querySelector('#size').value = '64';
         document.querySelector('#sample-form details').open = false;
         document.querySelector('#draw').click();",
    );
    assert_eq!(browser.value("document.activeElement.id"), "size");
    browser.value(
        "document.querySelector('#reset').click(); document.querySelector('#toast').hidden = true",
    );

    // In-painting: a picture of the gallery, a mask by the mouse.
    browser.mask_the_first_of_the_gallery();
    browser.value("document.querySelector('#edit-seed').value = 5");
    browser.value("document.querySelector('#edit-draw').click()");
    browser.until("!document.querySelector('#result-actions').hidden");
    assert_eq!(browser.value("document.querySelectorAll('#results button').length"), 4);
    let differs = browser.value(
        "(async () => {
           const pixels = async (id) => {
             const image = document.querySelector(id);
             await image.decode();
             const sheet = document.createElement('canvas');
             [sheet.width, sheet.height] = [image.naturalWidth, image.naturalHeight];
             const pen = sheet.getContext('2d');
             pen.drawImage(image, 0, 0);
             return pen.getImageData(0, 0, sheet.width, sheet.height).data;
           };
           const [a, b] = [await pixels('#before'), await pixels('#after')];
           const count = (inside) => {
             let n = 0;
             for (let y = 0; y < 64; y++) for (let x = 0; x < 64; x++) {
               const i = 4 * (64 * y + x);
               const near = x > 14 && x < 50 && y > 17 && y < 44;
               if (near === inside && [0, 1, 2].some((c) => a[i + c] !== b[i + c])) n++;
             }
             return n;
           };
           return [count(true), count(false)];
         })()",
    );
    let [inside, outside] = serde_json::from_value::<[u32; 2]>(differs).unwrap();
    assert!(inside > 50, "{inside} pixels are new");
    assert_eq!(outside, 0, "the rest is the picture's own");
    // Picture and result below each other where they are not side by side.
    let easels = "document.querySelector('.easels')";
    look_at(
        &mut browser,
        "edit",
        &format!("innerWidth < 600 ? {easels}.scrollIntoView() : scrollTo(0, 0)"),
    );

    // From result to result.
    browser.value("document.querySelector('#go-on').click()");
    browser.until(
        "document.querySelector('#canvas-caption').textContent.startsWith('the result, 64 x 64')",
    );

    // Without a mouse: tabs by arrows, a box by its fields, the button by Enter.
    browser.window(DESKTOP, "light");
    browser.value("document.querySelector('#clear').click(); document.querySelector('#edit-count').value = 1; document.querySelector('#tab-sample').click(); document.querySelector('#tab-sample').focus()");
    browser.key("ArrowRight");
    assert_eq!(browser.value("document.activeElement.id"), "tab-edit");
    browser.value("document.querySelector('#inpaint-tools details').open = true; document.querySelector('#box-left').focus(); document.querySelector('#box-left').select()");
    browser.key("8");
    for _ in 0..4 {
        browser.key("Tab");
    }
    assert_eq!(browser.value("document.activeElement.id"), "add-box");
    browser.key("Enter");
    browser.value("document.querySelector('#result-actions').hidden = true; document.querySelector('#edit-draw').focus()");
    browser.key("Enter");
    browser.until("!document.querySelector('#result-actions').hidden && document.querySelectorAll('#results button').length === 1");
    // The slider between before and after.
    browser.value("document.querySelector('#wipe').focus()");
    let before = browser.value("document.querySelector('#wipe').value");
    browser.key("ArrowRight");
    assert_ne!(browser.value("document.querySelector('#wipe').value"), before);

    // Expansion and refinement, for which margins are nothing that could be wrong.
    for (mode, width, margin) in [("expand", 96, 16), ("refine", 64, -1)] {
        browser.value(&format!(
            "document.querySelector('input[name=mode][value={mode}]').click();
             document.querySelector('#margin-left').value = {margin};
             document.querySelector('#keep-scales').value = 3;
             document.querySelector('#result-actions').hidden = true;
             document.querySelector('#edit-draw').click();"
        ));
        browser.until(&format!("!document.querySelector('#result-actions').hidden && document.querySelector('#after').naturalWidth === {width}"));
    }
    // 400 is what the size of 63 pixels got, and the browser logs it as an error.
    browser.events.retain(|event| {
        let entry = &event["params"]["entry"];
        !entry["text"].as_str().is_some_and(|text| text.contains("400 (Bad Request)"))
    });
    browser.well_behaved(&server.url);
}

/// A class by arrows, the buttons by Enter, and nobody is lost where a button goes.
#[test]
fn samples_without_a_mouse() {
    let Some(mut browser) = Browser::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let server = Serving::start(folder.path(), &[]);
    browser.window(DESKTOP, "light");
    browser.open(&server.url);
    browser.tab_to("document.activeElement.matches('#classes input:checked')");
    browser.key("ArrowRight");
    browser.key("ArrowRight");
    // Tab selects what is in a field.
    browser.tab_to("document.activeElement.id === 'seed'");
    browser.key("7");
    browser.tab_to("document.activeElement.id === 'count'");
    browser.key("2");
    browser.tab_to("document.activeElement.id === 'new-seed'");
    browser.key(" ");
    browser.tab_to("document.activeElement.id === 'draw'");
    browser.key("Enter");
    let said = "document.querySelector('#status').textContent";
    browser.until(&format!("{said} === '2 pictures of Animals & Nature are done'"));
    assert_eq!(browser.value("document.activeElement.id"), "draw");
    assert_eq!(browser.value("document.querySelector('#seed').value"), "7");

    // The gallery: settings, download, edit.
    browser.value("document.querySelector('#seed').value = 1");
    browser.tab_to("document.activeElement.matches('#gallery .card > button')");
    browser.key("Enter");
    assert_eq!(browser.value("document.querySelector('#seed').value"), "7");
    assert_eq!(browser.value(said), "The settings are set");
    browser.key("Tab");
    assert_eq!(browser.value("document.activeElement.download"), "animals-nature-7-1.png");
    browser.key("Tab");
    browser.key("Enter");
    browser.until("document.querySelector('#canvas').width === 64");
    assert_eq!(browser.value("document.activeElement.id"), "tab-edit");
    browser.key("ArrowLeft");
    assert_eq!(browser.value("document.querySelector('#panel-sample').hidden"), false);

    // Whoever cancels is at the button that draws.
    browser.value(
        "document.querySelector('#count').value = 4;
         document.querySelector('#size').value = '256x256';
         document.querySelector('#draw').focus();",
    );
    browser.key("Enter");
    browser.until("document.querySelector('#now.busy #ladder .on')");
    browser.key("Tab");
    assert_eq!(browser.value("document.activeElement.id"), "cancel");
    browser.key("Enter");
    browser.until("document.querySelector('#caption').textContent === 'Canceled'");
    assert_eq!(browser.value("document.activeElement.id"), "draw");
    browser.well_behaved(&server.url);
}

#[test]
fn edits_a_picture_that_is_dropped() {
    let Some(mut browser) = Browser::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let server = Serving::start(folder.path(), &[]);
    browser.window(DESKTOP, "light");
    browser.open(&format!("{}#edit", server.url));
    let picture =
        image::RgbImage::from_fn(40, 24, |x, y| image::Rgb([6 * x as u8, 10 * y as u8, 99]));
    // Whether the browser would open the file in the place of the page.
    let let_go = |browser: &mut Browser, name: &str, place: &str| {
        let bytes = sar_pipeline::to_png(&picture);
        let is_left = browser.value(&format!(
            "(() => {{
               const transfer = new DataTransfer();
               transfer.items.add(new File([new Uint8Array({bytes:?})], '{name}', {{ type: 'image/png' }}));
               const tell = (kind) => document.querySelector('{place}').dispatchEvent(
                 new DragEvent(kind, {{ dataTransfer: transfer, bubbles: true, cancelable: true }}));
               return [tell('dragover'), tell('drop')];
             }})()"
        ));
        serde_json::from_value::<[bool; 2]>(is_left).unwrap()
    };
    assert_eq!(let_go(&mut browser, "dropped.png", "#canvas-frame"), [false; 2]);
    let caption = "document.querySelector('#canvas-caption').textContent";
    browser.until(&format!("{caption} === 'dropped.png, 40 x 24 pixels'"));
    let shown =
        "[...document.querySelector('#canvas').getContext('2d').getImageData(0, 0, 40, 24).data]";
    let shown: Vec<u8> = serde_json::from_value(browser.value(shown)).unwrap();
    let opaque = picture.pixels().flat_map(|pixel| [pixel.0[0], pixel.0[1], pixel.0[2], 255]);
    assert!(shown == opaque.collect::<Vec<_>>(), "the picture that was dropped");

    // What is downloaded is what the server has drawn.
    browser.value(
        "document.querySelector('#add-box').click();
         document.querySelector('#edit-count').value = 2;
         document.querySelector('#edit-draw').click();",
    );
    browser.until("!document.querySelector('#result-actions').hidden");
    browser.value("document.querySelectorAll('#results button')[1].click()");
    let (name, ours) = download(&mut browser, "document.querySelector('#edit-download')");
    assert_eq!(name, "dropped-edited-1.png");
    let drawn = "performance.getEntriesByType('resource').map(({ name }) => new URL(name).pathname)
        .findLast((path) => path.endsWith('/pictures/1'))";
    let (status, theirs) = server.ask("GET", browser.value(drawn).as_str().unwrap(), "");
    assert!(status == 200 && ours == theirs, "the second result");
    // The box that was painted, a quarter off each side.
    let edit = Origin::of_png(&ours).and_then(|origin| origin.edit).expect("it says so");
    assert_eq!(edit.part, EditedPart::Box([10, 6, 30, 18]));
    browser.value("document.querySelector('#inpaint-tools details').open = true");
    browser.well_behaved(&server.url);

    // Another one beside the panel, while the first is drawn: that ends.
    browser.value(
        "document.querySelector('input[name=mode][value=refine]').click();
         document.querySelector('#keep-scales').value = 1;
         document.querySelector('#size').value = '256x256';
         document.querySelector('#edit-count').value = 4;
         document.querySelector('#edit-draw').click();",
    );
    browser.until("/^Scale [1-5] /.test(document.querySelector('#edit-ladder').ariaLabel)");
    assert_eq!(let_go(&mut browser, "other.png", "header"), [false; 2]);
    browser.until("document.querySelector('#edit-draw').ariaDisabled === 'false'");
    assert_eq!(browser.value("document.querySelector('#edit-caption').textContent"), "Canceled");
    assert_eq!(browser.value("document.querySelector('#result').hidden"), true);
    assert_eq!(browser.value(caption), "other.png, 40 x 24 pixels");
}

/// The name and the file of a link that is clicked.
fn download(browser: &mut Browser, link: &str) -> (String, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let behavior = json!({ "behavior": "allow", "downloadPath": folder.path() });
    browser.call("Browser.setDownloadBehavior", behavior);
    browser.value(&format!("{link}.click()"));
    let begun = Instant::now();
    loop {
        let files = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
        // What is not whole yet has another ending.
        if let Some(file) = files.into_iter().find(|file| file.extension() == Some("png".as_ref()))
        {
            let name = file.file_name().unwrap().to_string_lossy().into_owned();
            return (name, fs::read(file).unwrap());
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{link} downloads nothing");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Settings of weights that lie between the steps of a slider are kept until somebody moves it.
#[test]
fn sliders_do_not_round_what_nobody_moved() {
    let Some(mut browser) = Browser::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let server = Serving::start(folder.path(), &[]);
    let weights_of_others = "
        window.asked = [];
        const ask = window.fetch;
        window.fetch = async (path, options) => {
          if (path === 'api/sample') asked.push(JSON.parse(options.body));
          const response = await ask(path, options);
          if (path !== 'api/model') return response;
          const model = await response.json();
          Object.assign(model.sampler, { guidance: 1.25, top_p: 0.955 });
          return new Response(JSON.stringify(model));
        };";
    let script = json!({ "source": weights_of_others });
    browser.call("Page.addScriptToEvaluateOnNewDocument", script);
    browser.window(DESKTOP, "light");
    browser.open(&server.url);
    let shown =
        "['guidance', 'top-p'].map((id) => document.querySelector(`#${id}-out`).textContent)";
    assert_eq!(browser.value(shown), json!(["1.25", "0.955"]));
    browser.value("document.querySelector('#count').value = 1");
    let mut draw = |before: &str| -> Value {
        browser.value(before);
        let n = browser.value("document.querySelectorAll('#gallery .card').length");
        browser.value("document.querySelector('#draw').click()");
        browser.until(&format!("document.querySelectorAll('#gallery .card').length === {n} + 1 && document.querySelector('#draw').ariaDisabled === 'false'"));
        browser.value(&format!("[asked.at(-1).guidance, asked.at(-1).top_p, ...{shown}]"))
    };
    assert_eq!(draw(""), json!([null, null, "1.25", "0.955"]));
    // What is moved is sent, and that alone.
    let moved = "(() => { const slider = document.querySelector('#guidance'); slider.value = 2; slider.dispatchEvent(new Event('input', { bubbles: true })); })()";
    assert_eq!(draw(moved), json!([2, null, "2.0", "0.955"]));
    // A picture of the gallery, and the link, bring them back.
    let first = "document.querySelector('#gallery li:last-child > button').click()";
    assert_eq!(draw(first), json!([null, null, "1.25", "0.955"]));
    assert_eq!(draw(moved)[0], 2);
    assert_eq!(draw("document.querySelector('#reset').click()")[0], Value::Null);

    // So are the other settings, as they were written.
    let written = "document.querySelector('#top-k').value = 3; document.querySelector('#scales').value = ' 1_2_3 '";
    draw(written);
    let others = "[asked.at(-1).top_k, asked.at(-1).scales, asked.at(-1).size]";
    assert_eq!(browser.value(others), json!([3, "1_2_3", null]));
    // Three scales, and 8 pixels a token.
    let drawn = "(async () => {
        const image = document.querySelector('#tiles img');
        await image.decode();
        return [document.querySelectorAll('#ladder .on').length, image.naturalWidth];
    })()";
    assert_eq!(browser.value(drawn), json!([3, 24]));
}

/// A run of seconds on the folder `images`, and of `steps` in its second stage.
fn train(folder: &Path, name: &str, steps: u32) -> std::process::Child {
    let steps = format!("pretrain.steps={steps}");
    let settings = [
        "data.side=16",
        "data.source={ kind = \"folder\", path = \"images\" }",
        "data.augmentation.flip_except=[]",
        "tokenizer.model.channel_multipliers=[1,1]",
        "tokenizer.model.codebook_size=32",
        "tokenizer.steps=60",
        "tokenizer.optimization.batch_size=4",
        "backbone.depth=2",
        "backbone.width=32",
        "backbone.heads=1",
        "backbone.schedule.scales=1_2_4",
        &steps,
        "pretrain.optimization.batch_size=4",
        "sar.steps=30",
        "sar.optimization.batch_size=4",
        "evaluation.samples_per_class=2",
        "evaluation.bootstrap=100",
        "evaluation.quality={ kind = \"efficientnet-lite0\", per_class = 2, seeds = 2 }",
        "log.every=2",
        "log.checkpoint_steps=0",
        "log.measure_steps=50",
        "log.measure_images=8",
    ];
    let mut command = Command::new(env!("CARGO_BIN_EXE_sar"));
    command.current_dir(folder).args(["train", "--run-dir", &format!("runs/{name}")]);
    for setting in settings {
        command.args(["--set", setting]);
    }
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// A run from its head on, and its pictures over time below charts.
fn look_at_run(browser: &mut Browser, name: &str) {
    look_at(browser, name, "scrollTo(0, 0)");
    let sheets = "document.querySelector('#run-sheets').getBoundingClientRect()";
    let below_charts = format!("scrollBy(0, {sheets}.top - 0.36 * innerHeight)");
    look_at(browser, &format!("{name}-over-time"), &below_charts);
}

/// What a slider of pictures over time says, to screen readers and to eyes, and the file of its picture.
fn sheet(browser: &mut Browser, slider: &str) -> ([String; 2], Vec<u8>) {
    let shown = browser.value(&format!(
        "(async () => {{
           const figure = {slider}.closest('figure');
           const image = figure.querySelector('img');
           await image.decode();
           const file = await (await fetch(image.src)).arrayBuffer();
           const said = [{slider}.getAttribute('aria-valuetext'), figure.querySelector('.value').textContent];
           return [said, [...new Uint8Array(file)]];
         }})()"
    ));
    serde_json::from_value(shown).unwrap()
}

/// The sheets that a run has left, of a stage or of all.
fn n_sheets(run: &Path, stage: &str) -> usize {
    let names = fs::read_dir(run).unwrap().flatten().map(|entry| entry.file_name());
    let start = format!("sheet-{stage}");
    names.filter(|name| name.to_string_lossy().starts_with(&start)).count()
}

/// The slider of a stage.
fn slider(stage: &str, run: &str) -> String {
    format!("document.querySelector('#run-sheets [aria-label=\"Step, {stage}, {run}\"]')")
}

/// Runs that take longer than a test, for the eyes: `SAR_RUNS` names their folder.
#[test]
fn looks_at_runs_that_are_there() {
    let Some(runs) = std::env::var_os("SAR_RUNS") else { return };
    let Some(mut browser) = Browser::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let runs = fs::canonicalize(runs).unwrap();
    let server = Serving::start(folder.path(), &["--runs", runs.to_str().unwrap()]);
    browser.window(DESKTOP, "light");
    browser.open(&format!("{}#runs", server.url));
    browser.until("document.querySelectorAll('#run-sheets img').length > 0");
    browser.until("[...document.querySelectorAll('.run-pictures img')].every((image) => image.naturalWidth > 0)");
    look_at_run(&mut browser, "runs-own");
    browser.well_behaved(&server.url);
}

#[test]
fn watches_a_run_to_its_end_and_stops_another() {
    let Some(mut browser) = Browser::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    draw_images(&folder.path().join("images"), 32);
    let runs = folder.path().join("runs");
    fs::create_dir(&runs).unwrap();
    let server = Serving::start(folder.path(), &["--runs", "runs"]);
    browser.window(DESKTOP, "light");
    browser.open(&format!("{}#runs", server.url));
    browser.until("document.querySelector('#run-stage').textContent.includes('no runs yet')");

    let mut first = train(folder.path(), "first", 150);
    browser.until("document.querySelector('.run-list .state')?.textContent === 'running'");
    browser.until("document.querySelectorAll('.charts .chart path').length > 0");
    assert!(first.wait().unwrap().success());
    browser.until("document.querySelector('.run-list .state')?.textContent === 'done'");
    browser.until("document.querySelectorAll('#run-results .run-pictures img').length === 3");
    browser
        .until("document.querySelector('#run-stage table')?.textContent.includes('exposure gap')");
    browser.until("[...document.querySelectorAll('.run-pictures img')].every((image) => image.naturalWidth > 0)");
    let charts = browser.value("[...document.querySelectorAll('.chart[role=img]')].map((chart) => chart.getAttribute('aria-label'))");
    let charts: Vec<String> = serde_json::from_value(charts).unwrap();
    for title in [
        "Pre-training: teacher loss",
        "SAR: student loss",
        "Student loss by scale",
        "PSNR by scale",
        "Tokenizer, by scale: PSNR, dB",
        "Pre-training, by scale: teacher loss",
        "SAR, by scale: student loss",
    ] {
        assert!(charts.iter().any(|label| label.starts_with(title)), "no {title}: {charts:?}");
    }
    // What the chart says is what the file says.
    let metrics = fs::read_to_string(runs.join("first/metrics.jsonl")).unwrap();
    let mut lines = metrics.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let last =
        lines.rfind(|line| line["stage"] == "pretrain" && line["teacher"].is_number()).unwrap();
    let told = charts.iter().find(|label| label.starts_with("Pre-training: teacher loss")).unwrap();
    // `training: 3.5 at step 0, 2.9 at step 149; held out: …`
    let training = told.split(';').next().unwrap();
    let value = training.rsplit(", ").next().unwrap().split(' ').next().unwrap();
    let value: f64 = value.parse().unwrap();
    assert!((value - last["teacher"].as_f64().unwrap()).abs() < 0.01, "{told} {last}");
    // A line for each scale, the finest the last: `1: 9.8 at step 49, 10.1 at step 59; 2: …`
    let last = lines.rfind(|line| line["held_out_psnr_db"].is_number()).unwrap();
    let told = charts.iter().find(|label| label.starts_with("Tokenizer, by scale: ")).unwrap();
    let finest: Vec<&str> = told.split("; ").collect();
    assert!(finest.len() == 3 && finest[2].starts_with("4: "), "{told}");
    let value = finest[2].rsplit(", ").next().unwrap().split(' ').next().unwrap();
    let value: f64 = value.parse().unwrap();
    let psnr = last["held_out_psnr_db"].as_f64().unwrap();
    // Three digits of it.
    assert!((value - psnr).abs() <= 0.005 * psnr, "{told} {last}");

    // KID as the report has it.
    let at_the_end = runs.join("first/report.json");
    let report = fs::read_to_string(&at_the_end).unwrap();
    let quality = &serde_json::from_str::<Value>(&report).unwrap()["quality"];
    let kids = |browser: &mut Browser| -> Vec<String> {
        let row = "[...document.querySelectorAll('#run-results tbody tr')].find((row) => row.textContent.startsWith('KID, times 1000'))";
        let row =
            format!("[...{row}.querySelectorAll('td')].map((cell) => cell.firstChild.textContent)");
        serde_json::from_value(browser.value(&row)).unwrap()
    };
    let row = kids(&mut browser);
    assert_eq!(row.len(), 3, "{row:?}");
    for (kind, shown) in ["before", "after", "control"].into_iter().zip(&row) {
        let kid = 1000.0 * quality[kind]["kid_effnetlite0"]["mean"].as_f64().unwrap();
        // Three digits of it.
        let off = (shown.parse::<f64>().unwrap() - kid).abs();
        assert!(off <= 0.005 * kid.abs(), "{kind}: {shown}, not {kid}");
    }
    // And before there is one: each stage's as soon as it has ended.
    let kept = folder.path().join("report.json");
    fs::rename(&at_the_end, &kept).unwrap();
    let columns = "document.querySelector('#run-results thead')?.textContent";
    browser.until(&format!("{columns} === 'Samples so farPre-trainingSARControl'"));
    assert_eq!(kids(&mut browser), row);
    let so_far = "[...document.querySelectorAll('#run-results .chart')]
        .some((chart) => chart.getAttribute('aria-label').startsWith('PSNR in dB by scale so far'))";
    assert_eq!(browser.value(so_far), true);
    fs::rename(&kept, &at_the_end).unwrap();
    browser.until(&format!("{columns}?.startsWith('Held out')"));

    // Pictures over time, by keyboard: a place for each that the run has left.
    let places = "[...document.querySelectorAll('#run-sheets figure')]
        .reduce((n, figure) => n + 1 + Number(figure.querySelector('input')?.max ?? 0), 0)";
    assert_eq!(browser.value(places), n_sheets(&runs.join("first"), ""));
    let pretrain = slider("Pre-training", "first");
    browser.value(&format!("{pretrain}.focus()"));
    for step in [150, 100, 50] {
        let (said, file) = sheet(&mut browser, &pretrain);
        assert_eq!(said, [format!("step {step} of 150"), format!("{step} of 150")]);
        let path = runs.join(format!("first/sheet-pretrain-{step}.png"));
        assert!(file == fs::read(path).unwrap(), "the picture of step {step}");
        browser.key("ArrowLeft");
    }
    assert_eq!(browser.value(&format!("{pretrain}.value")), "0", "there is none before");
    // What the slider says is said once.
    let live = "document.querySelectorAll('#run-sheets output, #run-sheets [aria-live]').length";
    assert_eq!(browser.value(live), 0);
    let one = "[...document.querySelectorAll('#run-sheets figure')]
        .find((figure) => !figure.querySelector('input')).querySelector('.value').textContent";
    assert_eq!(browser.value(one), "30 of 30", "of SAR there is one alone, without a slider");
    look_at_run(&mut browser, "runs");
    browser.window(PHONE, "light");
    let height = format!("{pretrain}.getBoundingClientRect().height");
    browser.until(&format!("{height} >= 40"));
    browser.window(DESKTOP, "light");

    // Another, stopped with a checkpoint.
    let mut second = train(folder.path(), "second", 100_000);
    browser.until("document.querySelectorAll('.run-list button').length === 2");
    browser.value("document.querySelector('[data-run=second]').click()");
    browser.until("document.querySelector('.run-head h2')?.textContent === 'second'");
    browser.until(
        "document.querySelector('.run-head')?.textContent.includes('Pre-training ends in about')",
    );
    // Who looks at an old picture stays there when there is a new one; who holds the slider keeps it.
    let pretrain = slider("Pre-training", "second");
    browser.until(&format!("Number({pretrain}?.max) >= 1"));
    browser.value(&format!(
        "(() => {{
           const slider = {pretrain};
           slider.focus();
           slider.dispatchEvent(new PointerEvent('pointerdown', {{ bubbles: true }}));
           slider.value = 0;
           slider.dispatchEvent(new Event('input'));
           [window.held, window.places] = [slider, Number(slider.max)];
         }})()"
    ));
    let places = browser.value("places").as_u64().unwrap() as usize;
    while n_sheets(&runs.join("second"), "pretrain-") <= places + 1 {
        assert!(second.try_wait().unwrap().is_none(), "the run has ended");
        std::thread::sleep(Duration::from_millis(50));
    }
    browser.value("window.before = document.querySelector('#run-course').textContent");
    browser.until("document.querySelector('#run-course').textContent !== before");
    let kept = "held.isConnected && Number(held.max) === places";
    assert_eq!(browser.value(kept), true);
    browser.value("held.dispatchEvent(new PointerEvent('pointerup', { bubbles: true }))");
    browser.until(&format!("Number({pretrain}.max) > places"));
    assert_eq!(browser.value(&format!("document.activeElement === {pretrain}")), true);
    assert_eq!(sheet(&mut browser, &pretrain).0[1], "50 of 100000");
    look(&mut browser, "runs-live");
    browser.value("(async () => { const stop = [...document.querySelectorAll('.run-head button')][0]; stop.click(); stop.click(); })()");
    assert_eq!(second.wait().unwrap().code(), Some(130));
    browser.until("document.querySelector('.run-head')?.textContent.includes('--resume')");
    let checkpoints = fs::read_dir(runs.join("second/checkpoints")).unwrap().flatten();
    let names: Vec<String> =
        checkpoints.map(|entry| entry.file_name().into_string().unwrap()).collect();
    assert!(names.iter().any(|name| name.starts_with("pretrain-")), "{names:?}");

    // Two, side by side.
    browser.value("(() => { const beside = document.querySelector('#beside'); beside.value = 'first'; beside.dispatchEvent(new Event('change')); })()");
    browser.until("document.querySelectorAll('.run-head').length === 2");
    browser.until("document.querySelectorAll('.legend').length > 0");
    look(&mut browser, "runs-two");
    browser.well_behaved(&server.url);
}
