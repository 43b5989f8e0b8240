//! `sar serve`: the pictures of `sar sample`, soon, and to friends only.

mod program;
mod serving;

use std::fs;
use std::time::{Duration, Instant};

use program::{does, refuses};
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
fn what_cannot_be_served_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let refuse = |args: &[&str], parts: &[&str]| {
        refuses(folder.path(), &[&["serve"], args].concat(), parts);
    };
    refuse(&["--host", "0.0.0.0"], &["--host 0.0.0.0", "--token"]);
    refuse(&["--host", "0.0.0.0", "--token", "short"], &["--token", "16 characters"]);
    refuse(&["--runs", "nowhere"], &["--runs nowhere", "no folder"]);
    refuse(&["--run", "nowhere"], &["nowhere"]);
    let server = Serving::start(folder.path(), &[]);
    let port = server.address.rsplit(':').next().unwrap();
    refuse(&["--port", port], &[port, "--port"]);
}
