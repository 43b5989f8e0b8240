//! The API against the pipeline: the same pictures, in order, for several clients, as far as they want them.

mod client;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use client::*;
use sar_pipeline::{EditSettings, Mask, Part, RgbImage, Wishes, to_png};
use sar_serve::{Limits, ServeError, Server, Settings};
use serde_json::{Value, json};

#[test]
fn pictures_are_those_of_the_pipeline() {
    let address = start(Settings::default());
    let pipeline = pipeline();
    let cases = [
        json!({ "class": "animals", "seed": 7, "count": 3 }),
        json!({ "class": "2", "seed": u64::MAX, "previews": false }),
        json!({ "seed": 1, "count": 16, "guidance": 4, "top_p": 0.5, "top_k": 40 }),
        json!({ "class": "food", "scales": "1_2_3", "size": "32x48", "more_smooth": true }),
    ];
    for case in cases {
        let id = submit(address, "/api/sample", &case);
        let wishes = Wishes {
            guidance: case["guidance"].as_f64(),
            top_k: case["top_k"].as_u64().map(|k| k as usize),
            top_p: case["top_p"].as_f64(),
            more_smooth: case["more_smooth"] == true,
            scales: case["scales"].as_str().map(|text| text.parse().unwrap()),
            size: case["size"].as_str().map(|text| sar_pipeline::size_in_pixels(text).unwrap()),
        };
        let label = case["class"].as_str();
        let label = label.map_or(pipeline.null_label(), |class| pipeline.label(class).unwrap());
        let n = case["count"].as_u64().unwrap_or(1) as usize;
        let mut request = pipeline.request(label, n, case["seed"].as_u64().unwrap_or(0));
        request.sampler = wishes.sampler(request.sampler);
        request.scales = wishes.scales(&pipeline).unwrap();
        let expected: Vec<Vec<u8>> = pipeline.sample(&request).iter().map(to_png).collect();
        assert!(pictures(address, &id) == expected, "{case}");
    }
}

#[test]
fn every_scale_is_shown_while_it_is_drawn() {
    let address = start(Settings::default());
    let body = json!({ "class": "flags", "seed": 3, "count": 2 });
    let id = submit(address, "/api/sample", &body);
    let events = events(address, &id);
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    let scales = ["scale"; 6];
    assert_eq!(names[names.len() - 7..], [&scales[..], &["done"]].concat());
    assert!(names.contains(&"begins"), "{names:?}");
    let shown: Vec<&Value> =
        events.iter().filter(|(name, _)| name == "scale").map(|(_, d)| d).collect();
    let mut widths = Vec::new();
    for (k, data) in shown.iter().enumerate() {
        assert_eq!([&data["scale"], &data["of"]], [&json!(k + 1), &json!(6)]);
        let pictures = data["pictures"].as_array().unwrap();
        // The last ones are the pictures themselves.
        assert_eq!(pictures.len(), if k < 5 { 2 } else { 0 });
        if let Some(png) = pictures.first() {
            let png = BASE64_STANDARD.decode(png.as_str().unwrap()).unwrap();
            widths.push(image::load_from_memory(&png).unwrap().width());
        }
    }
    assert!(widths.is_sorted() && widths[0] == 8 && widths[4] < 64, "{widths:?}");

    // Who comes late or back sees the rest.
    let line = "Last-Event-ID: 4";
    let path = format!("/api/jobs/{id}/events");
    let again = ask(address, "GET", &path, &[line], "").text();
    assert_eq!(again.matches("event: scale").count(), 2, "{again}");
    assert!(again.contains("event: done"));

    let job = get(address, &format!("/api/jobs/{id}")).json();
    assert_eq!([&job["status"], &job["scales_done"]], [&json!("done"), &json!(6)]);
    assert_eq!(job["command"], "sar sample --class 9 --n 2 --seed 3".replace('9', &label("flags")));
    let without = submit(address, "/api/sample", &json!({ "class": "flags", "previews": false }));
    let events = client::events(address, &without);
    let all_empty = |(_, data): &(String, Value)| data["pictures"].as_array().unwrap().is_empty();
    assert!(events.iter().filter(|(name, _)| name == "scale").all(all_empty));
}

fn label(class: &str) -> String {
    pipeline().label(class).unwrap().to_string()
}

#[test]
fn edits_are_those_of_the_pipeline() {
    let address = start(Settings::default());
    let pipeline = pipeline();
    let animals = pipeline.label("animals").unwrap();
    let source = pipeline.sample(&pipeline.request(animals, 1, 5)).remove(0);
    let mask = RgbImage::from_fn(64, 64, |x, y| {
        let inside = (10..40).contains(&x) && (20..50).contains(&y);
        image::Rgb([if inside { 255 } else { 0 }; 3])
    });
    let [image, painted] = [&source, &mask].map(|image| BASE64_STANDARD.encode(to_png(image)));
    let inside = || Mask::rectangle([64, 64], [10, 20, 40, 50]);
    let sampling = json!({ "class": "food", "seed": 9, "count": 2 });
    let cases = [
        (
            json!({ "mode": "inpaint", "mask": painted, "blend": 2 }),
            Part::Inside(inside()),
            Some(2),
        ),
        (json!({ "mode": "inpaint", "box": [10, 20, 40, 50] }), Part::Inside(inside()), None),
        (
            json!({ "mode": "inpaint", "mask": painted, "outside": true }),
            Part::Outside(inside()),
            None,
        ),
        (json!({ "mode": "expand", "margins": [0, 0, 32, 8] }), Part::Margins([0, 0, 32, 8]), None),
        (json!({ "mode": "refine", "keep_scales": 3 }), Part::Refine, None),
    ];
    for (mut case, part, blend) in cases {
        let keep_scales = case["keep_scales"].as_u64().map(|k| k as usize);
        case["image"] = image.clone().into();
        case["sampling"] = sampling.clone();
        let id = submit(address, "/api/edit", &case);
        let settings = EditSettings {
            part,
            label: pipeline.label("food").unwrap(),
            keep_scales,
            blend,
            scales: pipeline.backbone().scales.clone(),
            exact_size: false,
            sampler: pipeline.backbone().sampler,
            seed: 9,
        };
        let edit = pipeline.edit(&source, &settings).unwrap();
        let scales = pipeline.edit_scales(source.dimensions(), &settings).unwrap();
        assert_eq!(&scales, edit.scales());
        let expected: Vec<Vec<u8>> = edit.draw(0..2).iter().map(to_png).collect();
        case["image"] = "…".into();
        assert!(pictures(address, &id) == expected, "{case}");
        let job = get(address, &format!("/api/jobs/{id}")).json();
        assert_eq!([&job["request"]["image"], &job["request"]["mask"]], [&json!(""), &Value::Null]);
        let before = |i: usize| picture(address, job["before"][i].as_str().unwrap());
        assert!(before(0) == to_png(edit.canvas()) && before(1) == to_png(&edit.holed()));
    }
    // What only the model can tell fails with its line.
    let keep_all = json!({
        "mode": "refine", "keep_scales": 6, "image": image, "sampling": { "class": "food" },
    });
    let id = submit(address, "/api/edit", &keep_all);
    let (name, data) = events(address, &id).pop().unwrap();
    assert_eq!(name, "failed");
    assert!(data["error"].as_str().unwrap().contains("nothing is left"), "{data}");
}

#[test]
fn two_clients_get_their_own_pictures() {
    let address = start(Settings::default());
    let pipeline = pipeline();
    let expected = |seed: u64| {
        let request = pipeline.request(seed as usize % 9, 1, seed);
        to_png(&pipeline.sample(&request)[0])
    };
    thread::scope(|scope| {
        for client in 0..2_u64 {
            scope.spawn(move || {
                for i in 0..8 {
                    let seed = 10 * i + client;
                    let body = json!({ "class": (seed % 9).to_string(), "seed": seed });
                    let id = submit(address, "/api/sample", &body);
                    assert!(pictures(address, &id) == [expected(seed)], "{body}");
                }
            });
        }
    });
    assert_eq!(get(address, "/api/queue").json()["submitted"], 16);
}

/// Long enough to be caught while it is drawn.
fn slow() -> Value {
    json!({ "class": "food", "size": "256x256", "scales": "1_2_3_4_5_6_8", "count": 6 })
}

fn wait_for(address: std::net::SocketAddr, id: &str, status: &str) -> Value {
    let start = Instant::now();
    loop {
        let job = get(address, &format!("/api/jobs/{id}")).json();
        if job["status"] == status {
            return job;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "never {status}: {job}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_queue_is_bounded_and_jobs_can_be_canceled() {
    let limits = Limits { queue: 2, ..Limits::default() };
    let address = start(Settings { limits, ..Settings::default() });
    let running = submit(address, "/api/sample", &slow());
    wait_for(address, &running, "running");
    let waiting =
        [submit(address, "/api/sample", &slow()), submit(address, "/api/sample", &slow())];
    let full = post(address, "/api/sample", "{}");
    assert_eq!(full.status, 503);
    assert!(full.error().contains("2 jobs wait") && full.header("retry-after").is_some());

    let delete = |id: &str| ask(address, "DELETE", &format!("/api/jobs/{id}"), &[], "");
    assert_eq!(delete(&waiting[1]).json()["status"], "canceled");
    let third = submit(address, "/api/sample", &json!({ "seed": 1 }));
    assert_eq!(delete(&running).status, 200);
    let job = wait_for(address, &running, "canceled");
    assert!(job["scales_done"].as_u64().unwrap() < 7, "it stopped between scales: {job}");
    assert_eq!(job["error"], "it was canceled");
    assert_eq!(delete(&waiting[0]).status, 200);
    assert_eq!(pictures(address, &third).len(), 1);
    // A finished one is forgotten.
    assert_eq!(delete(&third).status, 200);
    assert_eq!(get(address, &format!("/api/jobs/{third}")).status, 404);
    assert_eq!(delete("1-0000000000000000").status, 404);
}

#[test]
fn those_who_wait_hear_when_one_before_them_leaves() {
    let address = start(Settings::default());
    let running = submit(address, "/api/sample", &slow());
    wait_for(address, &running, "running");
    let first = submit(address, "/api/sample", &slow());
    let second = submit(address, "/api/sample", &json!({ "seed": 1 }));
    let ahead = || get(address, &format!("/api/jobs/{second}")).json()["ahead"].clone();
    assert_eq!(ahead(), 2);
    let delete = |id: &str| ask(address, "DELETE", &format!("/api/jobs/{id}"), &[], "").status;
    let events = thread::scope(|scope| {
        let watching = scope.spawn(|| events(address, &second));
        thread::sleep(Duration::from_millis(200));
        assert_eq!(delete(&first), 200);
        assert_eq!(ahead(), 1);
        assert_eq!(delete(&running), 200);
        watching.join().unwrap()
    });
    let told: Vec<&Value> = events
        .iter()
        .filter(|(name, _)| name == "queued")
        .map(|(_, data)| &data["ahead"])
        .collect();
    assert!(told.starts_with(&[&json!(2), &json!(1)]), "{told:?}");
    assert_eq!(events.last().unwrap().0, "done");
}

#[test]
fn bodies_have_a_bound_for_all_of_them_together() {
    let limits = Limits { patience: Duration::from_secs(3), ..Limits::default() };
    let address = start(Settings { limits, ..Settings::default() });
    let stalled = |n: usize, length: usize| -> Vec<TcpStream> {
        let open = |_| {
            let mut stream = TcpStream::connect(address).unwrap();
            let head = "Content-Type: application/json";
            write!(stream, "POST /api/edit HTTP/1.1\r\nHost: {address}\r\n{head}\r\nContent-Length: {length}\r\n\r\n{{").unwrap();
            stream
        };
        (0..n).map(open).collect()
    };
    let image = BASE64_STANDARD.encode(to_png(&RgbImage::new(16, 16)));
    let edit = json!({ "mode": "refine", "keep_scales": 3, "image": image }).to_string();
    let took = |path: &str, body: &str| {
        let start = Instant::now();
        let answer = post(address, path, body);
        assert_eq!(answer.status, 202, "{path}: {}", answer.text());
        start.elapsed()
    };
    // Short ones take little room.
    let short = stalled(40, 50_000);
    thread::sleep(Duration::from_millis(500));
    assert!(took("/api/edit", &edit) < Duration::from_secs(1));
    drop(short);
    // As many of the longest as there is room for: the next one waits until they are given up.
    let _long = stalled(8, limits.body);
    thread::sleep(Duration::from_secs(1));
    let small = json!({ "seed": 1, "scales": "1_2" }).to_string();
    assert!(took("/api/sample", &small) < Duration::from_secs(1));
    assert!(took("/api/edit", &edit) > Duration::from_millis(800));
}

#[test]
fn a_client_that_goes_away_stops_its_work() {
    let limits = Limits { unwatched: Duration::from_millis(150), ..Limits::default() };
    let address = start(Settings { limits, ..Settings::default() });
    let id = submit(address, "/api/sample", &slow());
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET /api/jobs/{id}/events HTTP/1.1\r\nHost: {address}\r\n\r\n").unwrap();
    let mut seen = [0; 600];
    stream.read_exact(&mut seen).unwrap();
    assert!(String::from_utf8_lossy(&seen).contains("event: "));
    drop(stream);
    // The queue is asked, not the job: to ask for a job is to want it.
    let start = Instant::now();
    while get(address, "/api/queue").json()["kept"] == 0 {
        assert!(start.elapsed() < Duration::from_secs(60));
        thread::sleep(Duration::from_millis(10));
    }
    let job = get(address, &format!("/api/jobs/{id}")).json();
    assert_eq!(
        [&job["status"], &job["error"]],
        [&json!("canceled"), &json!("nobody watched it any more")]
    );
    assert!(job["scales_done"].as_u64().unwrap() < 7, "{job}");
}

#[test]
fn what_is_kept_is_bounded() {
    let limits = Limits { kept: 3, ..Limits::default() };
    let address = start(Settings { limits, ..Settings::default() });
    let ids: Vec<String> = (0..6)
        .map(|seed| {
            let body = json!({ "seed": seed, "scales": "1_2", "previews": false });
            let id = submit(address, "/api/sample", &body);
            pictures(address, &id);
            id
        })
        .collect();
    let statuses: Vec<u16> =
        ids.iter().map(|id| get(address, &format!("/api/jobs/{id}")).status).collect();
    assert_eq!(statuses, [404, 404, 404, 200, 200, 200]);
    assert_eq!(get(address, "/api/queue").json()["kept"], 3);
}

#[test]
fn strangers_are_kept_out() {
    let anyone = Settings { host: "0.0.0.0".parse().unwrap(), ..Settings::default() };
    let refuses = |settings: Settings, part: &str| {
        let error = Server::bind(pipeline(), settings).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    };
    refuses(anyone.clone(), "--token");
    refuses(Settings { token: Some("short".into()), ..anyone.clone() }, "16 characters");
    refuses(Settings { token: Some("with spaces and; more".into()), ..anyone.clone() }, "letters");
    let origin = Some("https://sar.example.com".to_owned());
    refuses(Settings { origin, ..Settings::default() }, "--token");
    refuses(
        Settings {
            token: Some("correct-horse-battery".into()),
            origin: Some("sar.example.com".into()),
            ..Settings::default()
        },
        "--origin sar.example.com: write https://NAME",
    );
    refuses(
        Settings { runs: Some("no/such/folder".into()), ..Settings::default() },
        "no/such/folder",
    );

    let token = "correct-horse-battery".to_owned();
    let open = start(Settings { token: Some(token.clone()), ..anyone });
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], open.port()));
    for path in ["/", "/app.js", "/api/model", "/api/openapi.json", "/nowhere"] {
        let answer = get(address, path);
        assert_eq!(answer.status, 401, "{path}");
        assert!(answer.error().contains("token"), "{path}");
    }
    let with = |line: &str, path: &str| ask(address, "GET", path, &[line], "");
    assert_eq!(with(&format!("Authorization: Bearer {token}"), "/api/model").status, 200);
    assert_eq!(with("Authorization: Bearer correct-horse-batterz", "/api/model").status, 401);
    assert_eq!(get(address, "/?token=correct-horse-batterz").status, 401);
    let welcome = get(address, &format!("/?token={token}"));
    assert_eq!((welcome.status, welcome.header("location")), (303, Some("/")));
    let cookie = welcome.header("set-cookie").unwrap();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite"));
    let cookie = format!("Cookie: {}", cookie.split(';').next().unwrap());
    assert!(with(&cookie, "/").text().contains("<!doctype html>"));

    let taken = Settings { port: open.port(), ..Settings::default() };
    let error = Server::bind(pipeline(), taken).unwrap_err();
    assert!(
        matches!(error, ServeError::Bind { .. }) && error.to_string().contains("--port"),
        "{error}"
    );
}

#[test]
fn pages_and_answers_are_for_this_page_alone() {
    let address = start(Settings::default());
    let page = get(address, "/");
    assert_eq!(page.status, 200);
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    // Nothing from elsewhere, and nothing that the policy forbids.
    let text = page.text();
    for forbidden in ["http://", "https://", "//cdn", " style=", "<style", "onclick="] {
        assert!(!text.contains(forbidden), "{forbidden}");
    }
    for attribute in ["href=\"", "src=\""] {
        let files = text.split(attribute).skip(1).map(|rest| rest.split('"').next().unwrap());
        for file in files.filter(|file| !file.starts_with('#')) {
            assert_eq!(get(address, &format!("/{file}")).status, 200, "{file}");
        }
    }
    let mut scripts = vec!["app.js".to_owned()];
    for i in 0.. {
        let Some(script) = scripts.get(i) else { break };
        let script = get(address, &format!("/{script}"));
        assert_eq!(script.status, 200, "{}", scripts[i]);
        let text = script.text();
        for rest in text.split("from \"./").skip(1) {
            let file = rest.split('"').next().unwrap().to_owned();
            if !scripts.contains(&file) {
                scripts.push(file);
            }
        }
    }
    assert!(scripts.contains(&"backend.js".to_owned()), "{scripts:?}");
    let port = address.port();
    let as_host = |host: &str| {
        let text = format!("GET /api/model HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        raw(address, text.as_bytes()).unwrap().status
    };
    assert_eq!(as_host(&format!("localhost:{port}")), 200);
    assert_eq!(as_host(&format!("evil.example:{port}")), 403);
    let from = |line: &str| ask(address, "GET", "/api/model", &[line], "").status;
    assert_eq!(from("Origin: http://evil.example"), 403);
    assert_eq!(from(&format!("Origin: http://{address}")), 200);
    assert_eq!(from("Sec-Fetch-Site: cross-site"), 403);

    let model = get(address, "/api/model").json();
    assert_eq!([&model["height"], &model["unit"]], [&json!(64), &json!(8)]);
    assert_eq!([&model["family"], &model["runs"]], [&json!("flexvar-backbone"), &json!(false)]);
    assert_eq!(get(address, "/api/openapi.json").json()["openapi"], "3.1.0");
    assert_eq!(get(address, "/api/runs").status, 404);
    assert!(get(address, "/api/runs").error().contains("--runs"));
}

#[test]
fn runs_are_shown_and_stopped() {
    let (_folder, runs) = runs();
    let address = start(Settings { runs: Some(runs.clone()), ..Settings::default() });
    let list = get(address, "/api/runs").json();
    assert_eq!(list["runs"][0]["name"], "emoji");
    assert_eq!(list["runs"][0]["state"], "done");
    let run = get(address, "/api/runs/emoji");
    let json = run.json();
    assert!(json["series"]["pretrain"]["teacher"].as_array().unwrap().len() > 10);
    assert!(json["report"]["held_out"]["after"]["by_scale"].as_array().unwrap().len() == 6);
    let tag = run.header("etag").unwrap();
    let again = ask(address, "GET", "/api/runs/emoji", &[&format!("If-None-Match: {tag}")], "");
    assert_eq!((again.status, again.body.len()), (304, 0));
    assert_eq!(post(address, "/api/runs/emoji/stop", "{}").status, 409);

    // One that goes on, as far as others can see.
    let lock = std::fs::File::create(runs.join("emoji/run.lock")).unwrap();
    lock.lock().unwrap();
    assert_eq!(get(address, "/api/runs").json()["runs"][0]["state"], "running");
    assert_eq!(post(address, "/api/runs/emoji/stop", "{}").json()["state"], "stopping");
    assert!(runs.join("emoji/stop").is_file());
}
