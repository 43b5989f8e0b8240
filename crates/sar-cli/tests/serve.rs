//! `sar serve`: the pictures of `sar sample`, soon, and to friends only.

mod program;
mod serving;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use program::{does, draw_images, refuses, tiny};
use sar_weights::Crc32;
use serde_json::{Value, json};
use serving::Serving;

/// The job of a request, once its pictures are there.
fn done(server: &Serving, path: &str, body: &Value) -> Value {
    let start = Instant::now();
    let (status, job) = server.ask("POST", path, &body.to_string());
    assert_eq!(status, 202, "{}", String::from_utf8_lossy(&job));
    let id = serde_json::from_slice::<Value>(&job).unwrap()["id"].as_str().unwrap().to_owned();
    loop {
        let (_, job) = server.ask("GET", &format!("/api/jobs/{id}"), "");
        let job: Value = serde_json::from_slice(&job).unwrap();
        assert!(start.elapsed() < Duration::from_secs(60), "{job}");
        if job["status"] == "done" {
            return job;
        }
    }
}

/// A picture of 72x48 pixels.
fn save(path: &Path, pixel: fn(u32, u32) -> [u8; 3]) {
    let image = image::RgbImage::from_fn(72, 48, |x, y| image::Rgb(pixel(x, y)));
    image.save(path).unwrap();
}

#[test]
fn pictures_are_those_of_sar_sample() {
    let folder = tempfile::tempdir().unwrap();
    let start = Instant::now();
    let server = Serving::start(folder.path(), &[]);
    let (status, page) = server.ask("GET", "/", "");
    assert_eq!(status, 200);
    assert!(String::from_utf8(page).unwrap().contains("<title>sar</title>"));
    // A second on a machine that does nothing else.
    println!("answers after {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(10));
    assert!(server.url.starts_with("http://127.0.0.1:"), "{}", server.url);

    let body = json!({ "class": "animals", "seed": 7, "count": 3, "guidance": 4, "top_p": 0.7 });
    let job = done(&server, "/api/sample", &body);
    // The command that the job names draws them, too.
    let command = job["command"].as_str().unwrap();
    let args: Vec<&str> = command.split(' ').skip(1).chain(["--out", "there"]).collect();
    does(folder.path(), &args);
    let label = command.split(' ').nth(3).unwrap();
    for i in 0..3 {
        let (_, ours) = server.ask("GET", job["pictures"][i].as_str().unwrap(), "");
        let name = format!("{label}-animals-nature-{i:03}.png");
        let found = fs::read_dir(folder.path().join("there")).unwrap().flatten();
        let names: Vec<_> = found.map(|entry| entry.file_name().into_string().unwrap()).collect();
        let name =
            names.iter().find(|name| name.ends_with(&format!("-{i:03}.png"))).unwrap_or(&name);
        assert!(ours == fs::read(folder.path().join("there").join(name)).unwrap(), "picture {i}");
    }
}

#[test]
fn a_picture_says_how_it_is_drawn_again() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let pictures = |out: &str| {
        let entries = fs::read_dir(folder.join(out)).unwrap().flatten();
        let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
        paths.sort();
        paths
    };
    let jobs: [&[&str]; 4] = [
        &["--class", "flags", "--n", "3"],
        &["--unconditional", "--n", "2", "--seed", "18446744073709551615", "--batch", "1"],
        &["--class", "0", "--n", "1", "--guidance", "0.3", "--top-k", "5", "--more-smooth"],
        &[
            "--class",
            "food",
            "--n",
            "2",
            "--size",
            "48x32",
            "--top-p",
            "0.55",
            "--precision",
            "bf16",
        ],
    ];
    for (i, job) in jobs.into_iter().enumerate() {
        let (first, second) = (format!("first-{i}"), format!("second-{i}"));
        does(folder, &[&["sample", "--out", &first], job].concat());
        let before = pictures(&first);
        let name = before[before.len() - 1].to_str().unwrap();
        let (said, _) = does(folder, &["inspect", name]);
        let command = said.lines().last().unwrap();
        let again: Vec<&str> = command.split(' ').skip(1).chain(["--out", &second]).collect();
        does(folder, &again);
        let after = pictures(&second);
        assert_eq!(before.len(), after.len());
        for (a, b) in before.iter().zip(&after) {
            assert!(a.file_name() == b.file_name() && fs::read(a).unwrap() == fs::read(b).unwrap());
        }
    }
    // A picture of another program says nothing.
    image::RgbImage::new(4, 4).save(folder.join("plain.png")).unwrap();
    refuses(folder, &["inspect", "plain.png"], &["plain.png", "sar sample"]);
    fs::write(folder.join("broken.png"), b"no picture").unwrap();
    refuses(folder, &["inspect", "broken.png"], &["broken.png"]);
}

/// The files that it depends on are named, and lie in the folder of the command.
#[test]
fn an_edit_says_how_it_is_drawn_again() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    save(&folder.join("photo.png"), |x, y| [3 * x as u8, 5 * y as u8, 90]);
    save(&folder.join("hole.png"), |x, y| [if x > 20 && y < 30 { 255 } else { 0 }; 3]);
    let edits: [&[&str]; 4] = [
        &["--box", "8,8,40,40", "--class", "food", "--n", "3", "--batch", "2", "--blend", "2"],
        &["--mask", "hole.png", "--outside", "--seed", "9", "--n", "1", "--top-p", "0.55"],
        &["--expand", "0,8,16,0", "--class", "2", "--n", "1", "--guidance", "1.5"],
        &["--refine", "--keep-scales", "3", "--size", "48x64", "--n", "1", "--precision", "bf16"],
    ];
    for (i, edit) in edits.into_iter().enumerate() {
        let (first, second) = (format!("first-{i}"), format!("second-{i}"));
        does(folder, &[&["edit", "--image", "photo.png", "--out", &first], edit].concat());
        let (said, _) = does(folder, &["inspect", &format!("{first}/000.png")]);
        assert!(said.contains("an edit of photo.png (CRC-32 "), "{said}");
        assert_eq!(said.contains("by the mask hole.png (CRC-32 "), i == 1, "{said}");
        let command = said.lines().last().unwrap();
        let again: Vec<&str> = command.split(' ').skip(1).chain(["--out", &second]).collect();
        does(folder, &again);
        let names = |out: &str| fs::read_dir(folder.join(out)).unwrap().count();
        assert_eq!(names(&first), names(&second));
        for number in 0..names(&first) {
            let read = |out: &str| fs::read(folder.join(format!("{out}/{number:03}.png"))).unwrap();
            assert!(read(&first) == read(&second), "edit {i}, picture {number}: {command}");
        }
    }
    // The folder that a picture was in is nobody else's business; its bytes are told by their checksum.
    let elsewhere = folder.join("private");
    fs::create_dir(&elsewhere).unwrap();
    fs::rename(folder.join("photo.png"), elsewhere.join("photo.png")).unwrap();
    let path = elsewhere.join("photo.png");
    let edit = ["--refine", "--keep-scales", "5", "--n", "1", "--out", "edited"];
    does(folder, &[&["edit", "--image", path.to_str().unwrap()], &edit[..]].concat());
    let edited = fs::read(folder.join("edited/000.png")).unwrap();
    assert!(!edited.windows(7).any(|bytes| bytes == b"private"));
    let (said, _) = does(folder, &["inspect", "edited/000.png"]);
    let crc = format!("photo.png (CRC-32 {})", Crc32::of(&fs::read(&path).unwrap()));
    assert!(said.contains(&crc), "{said}");
}

/// Which files were sent, the user knows.
#[test]
fn an_edit_of_the_server_says_how_it_is_drawn_again() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    save(&folder.join("photo.png"), |x, y| [3 * x as u8, 5 * y as u8, 90]);
    save(&folder.join("box.png"), |x, y| [if x > 20 && y < 30 { 255 } else { 0 }; 3]);
    save(&folder.join("painted.png"), |x, y| [if x + y < 60 { 255 } else { 0 }; 3]);
    let bytes = |name: &str| fs::read(folder.join(name)).unwrap();
    let sent = |name: &str| BASE64_STANDARD.encode(bytes(name));
    let edits = [
        (json!({ "mode": "inpaint", "mask": sent("box.png"), "blend": 2 }), "--box=21,0,72,30"),
        (
            json!({ "mode": "inpaint", "mask": sent("painted.png"), "outside": true }),
            "--mask=FILE --outside",
        ),
        (json!({ "mode": "expand", "margins": [0, 8, 16, 0] }), "--expand=0,8,16,0"),
        (json!({ "mode": "refine", "keep_scales": 3 }), "--refine --keep-scales 3"),
    ];
    let server = Serving::start(folder, &[]);
    for (i, (mut edit, told)) in edits.into_iter().enumerate() {
        edit["image"] = sent("photo.png").into();
        edit["sampling"] = json!({ "class": "food", "seed": 9, "count": 2, "top_p": 0.55 });
        let job = done(&server, "/api/edit", &edit);
        let (_, ours) = server.ask("GET", job["pictures"][1].as_str().unwrap(), "");
        fs::write(folder.join("edited.png"), &ours).unwrap();
        let (said, _) = does(folder, &["inspect", "edited.png"]);
        let crc = Crc32::of(&bytes("photo.png"));
        let picture = format!("an edit of a picture that was sent (CRC-32 {crc})");
        assert!(said.contains(&picture), "{said}");
        assert_eq!(said.contains("painted on the page is kept nowhere"), i == 1, "{said}");
        let command = said.lines().last().unwrap();
        assert!(command.contains(&format!(" --image=FILE {told} ")), "{command}");
        let command = command.replace("--image=FILE", "--image=photo.png");
        let command = command.replace("--mask=FILE", "--mask=painted.png");
        let out = format!("again-{i}");
        let again: Vec<&str> = command.split(' ').skip(1).chain(["--out", &out]).collect();
        does(folder, &again);
        // The files differ in what they say: one names the picture.
        let pixels = |png: &[u8]| image::load_from_memory(png).unwrap().into_rgb8();
        assert!(pixels(&ours) == pixels(&bytes(&format!("{out}/001.png"))), "{command}");
    }
}

/// Its weights are named by their checksums: where they are, the user knows.
#[test]
fn a_picture_of_a_run_says_how_it_is_drawn_again() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    draw_images(&folder.join("images"), 32);
    let settings = tiny(&[
        "data.source={ kind = \"folder\", path = \"images\" }",
        "data.augmentation.flip_except=[]",
        "tokenizer.model.codebook_size=32",
        "tokenizer.steps=4",
        "tokenizer.optimization.batch_size=4",
        "backbone.depth=2",
        "pretrain.steps=4",
        "pretrain.optimization.batch_size=4",
        "sar.steps=2",
        "sar.optimization.batch_size=4",
        "log.measure_images=8",
    ]);
    does(folder, &[&["train", "--run-dir", "run"], &settings[..]].concat());
    let sample = ["--class", "squares", "--n", "3", "--seed", "5", "--top-k", "9"];
    does(folder, &[&["sample", "--run", "run", "--out", "first"], &sample[..]].concat());
    let names: Vec<_> = fs::read_dir(folder.join("first"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names.len(), 3);
    let (said, _) = does(folder, &["inspect", &format!("first/{}", names[0])]);
    assert!(said.contains("of squares, seed 5") && said.contains("DIR below: the run"), "{said}");
    let command = said.lines().last().unwrap().replace("--run DIR", "--run run");
    let again: Vec<&str> = command.split(' ').skip(1).chain(["--out", "second"]).collect();
    assert_eq!(again[..3], ["sample", "--run", "run"]);
    does(folder, &again);
    for name in names {
        let read = |out: &str| fs::read(folder.join(out).join(&name)).unwrap();
        assert!(read("first") == read("second"), "{name}");
    }
}

/// Nothing is lost or mixed up, and memory is bounded:
/// `cargo xtask test --test serve eight_clients -- --ignored --nocapture`.
#[cfg(target_os = "linux")]
#[test]
#[ignore = "takes two minutes"]
fn eight_clients_get_the_pictures_of_sar_sample() {
    let lasts = Duration::from_secs(120);
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let kinds: Vec<(usize, usize)> =
        (0..9).flat_map(|class| (0..3).map(move |seed| (class, seed))).collect();
    let drawn = |(class, seed): &(usize, usize)| -> Vec<Vec<u8>> {
        let (out, class, seed) = (format!("{class}-{seed}"), class.to_string(), seed.to_string());
        does(folder, &["sample", "--class", &class, "--seed", &seed, "--n", "2", "--out", &out]);
        let entries = fs::read_dir(folder.join(&out)).unwrap();
        let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths.iter().map(|path| fs::read(path).unwrap()).collect()
    };
    let expected: Vec<Vec<Vec<u8>>> = kinds.iter().map(drawn).collect();

    let server = Serving::start(folder, &[]);
    let begun = Instant::now();
    let client = |number: usize| {
        let mut n = 0_usize;
        while begun.elapsed() < lasts {
            let kind = (3 * number + 11 * n) % kinds.len();
            let ((class, seed), previews) = (kinds[kind], n.is_multiple_of(2));
            let body = json!({ "class": class.to_string(), "seed": seed, "count": 2, "previews": previews });
            let (status, job) = server.ask("POST", "/api/sample", &body.to_string());
            assert_eq!(status, 202, "{body}");
            let id = serde_json::from_slice::<Value>(&job).unwrap()["id"].clone();
            let job = format!("/api/jobs/{}", id.as_str().unwrap());
            let (_, events) = server.ask("GET", &format!("{job}/events"), "");
            assert!(String::from_utf8_lossy(&events).contains("event: done"), "{body}");
            for (i, picture) in expected[kind].iter().enumerate() {
                let (_, found) = server.ask("GET", &format!("{job}/pictures/{i}"), "");
                assert!(found == *picture, "{body}, picture {i}");
            }
            n += 1;
        }
        n
    };
    let (n, early) = std::thread::scope(|scope| {
        let start = |number| {
            let client = &client;
            scope.spawn(move || client(number))
        };
        let clients: Vec<_> = (0..8).map(start).collect();
        std::thread::sleep(lasts / 4);
        let early = server.memory_kb();
        (clients.into_iter().map(|client| client.join().unwrap()).sum::<usize>(), early)
    });
    let late = server.memory_kb();
    println!("{n} jobs of 2 pictures; {early} kB after {:?}, {late} kB at the end", lasts / 4);
    let (_, queue) = server.ask("GET", "/api/queue", "");
    assert_eq!(serde_json::from_slice::<Value>(&queue).unwrap()["submitted"], n);
    // At most so many bytes of pictures are kept.
    assert!(late < early + (64 << 10), "{early} kB, then {late}");
}

#[test]
fn what_cannot_be_served_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let refuse = |args: &[&str], parts: &[&str]| {
        refuses(folder.path(), &[&["serve"], args].concat(), parts);
    };
    refuse(&["--host", "0.0.0.0"], &["--host 0.0.0.0", "--token"]);
    refuse(&["--host", "0.0.0.0", "--token", "short"], &["--token", "16 characters"]);
    let origin = ["--origin", "https://sar.example.com"];
    refuse(&origin, &["--origin", "--token"]);
    let token = ["--token", "correct-horse-battery"];
    refuse(&[&token[..], &["--origin", "sar.example.com"]].concat(), &["--origin", "https://NAME"]);
    refuse(&["--runs", "nowhere"], &["--runs nowhere", "no folder"]);
    refuse(&["--run", "nowhere"], &["nowhere"]);
    let server = Serving::start(folder.path(), &[]);
    let port = server.address.rsplit(':').next().unwrap();
    refuse(&["--port", port], &[port, "--port"]);
}
