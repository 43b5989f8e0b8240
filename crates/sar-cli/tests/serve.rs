//! `sar serve`: the pictures of `sar sample`, soon, and to friends only.

mod program;
mod serving;

use std::fs;
use std::time::{Duration, Instant};

use program::{does, draw_images, refuses, tiny};
use serde_json::{Value, json};
use serving::Serving;

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
    let (status, job) = server.ask("POST", "/api/sample", &body.to_string());
    assert_eq!(status, 202);
    let id = serde_json::from_slice::<Value>(&job).unwrap()["id"].as_str().unwrap().to_owned();
    let job = loop {
        let (_, job) = server.ask("GET", &format!("/api/jobs/{id}"), "");
        let job: Value = serde_json::from_slice(&job).unwrap();
        assert!(start.elapsed() < Duration::from_secs(60), "{job}");
        if job["status"] == "done" {
            break job;
        }
    };
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
    // An edit says nothing, nor does a picture of another program.
    let source = pictures("first-0").remove(0);
    let edit = ["--box", "8,8,40,40", "--n", "1", "--out", "edited"];
    does(folder, &[&["edit", "--image", source.to_str().unwrap()], &edit[..]].concat());
    refuses(folder, &["inspect", "edited/000.png"], &["edited/000.png", "edits do not"]);
    image::RgbImage::new(4, 4).save(folder.join("plain.png")).unwrap();
    refuses(folder, &["inspect", "plain.png"], &["plain.png", "sar sample"]);
    fs::write(folder.join("broken.png"), b"no picture").unwrap();
    refuses(folder, &["inspect", "broken.png"], &["broken.png"]);
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
