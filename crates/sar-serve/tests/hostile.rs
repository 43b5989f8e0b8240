//! Requests that are malformed or mean harm: each gets a refusal of one sentence, none reads a file, and the
//! server answers as before.

mod client;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use client::*;
use sar_pipeline::{RgbImage, to_png};
use sar_serve::{Limits, Settings};
use serde_json::{Value, json};

/// Every request has to be refused with one of these.
const REFUSALS: [u16; 9] = [400, 403, 404, 405, 408, 413, 415, 431, 414];

fn server() -> (tempfile::TempDir, SocketAddr) {
    let (folder, runs) = runs();
    let limits = Limits { patience: Duration::from_secs(2), ..Limits::default() };
    let address = start(Settings { runs: Some(runs), limits, ..Settings::default() });
    (folder, address)
}

/// Refused in one sentence, of which nothing is a file's content or a path of this machine.
fn refused(address: SocketAddr, what: &str, answer: Option<Answer>) {
    let answer = answer.unwrap_or_else(|| panic!("{what}: no answer"));
    assert!(REFUSALS.contains(&answer.status), "{what}: {} {}", answer.status, answer.text());
    let text = answer.text();
    for secret in ["THE SECRET", "root:", "[tokenizer]", env!("CARGO_MANIFEST_DIR")] {
        assert!(!text.contains(secret), "{what}: {text}");
    }
    // What hyper itself refuses has no body.
    if !answer.body.is_empty() {
        let error = answer.error();
        assert!(!error.contains('\n') && error.len() < 1000, "{what}: {error}");
    }
    let _ = address;
}

fn works(address: SocketAddr) {
    let id = submit(address, "/api/sample", &json!({ "seed": 1, "scales": "1_2" }));
    assert_eq!(pictures(address, &id).len(), 1);
}

#[test]
fn requests_that_are_not_understood() {
    let (_folder, address) = server();
    let huge = "9".repeat(400);
    let long = "x".repeat(5000);
    let values: Vec<(&str, Vec<String>)> = vec![
        (
            "class",
            [
                "7.5",
                "[]",
                "{}",
                "true",
                "\"no such class at all\"",
                "\"999999\"",
                "\"-1\"",
                "\"\"",
                "\"../../etc/passwd\"",
                "\"\\u0000\"",
                "\"\\ud800\"",
            ]
            .map(String::from)
            .to_vec(),
        ),
        (
            "seed",
            ["-1", "1.5", "18446744073709551616", "\"0\"", "null", "1e3", "NaN", "[1]"]
                .map(String::from)
                .to_vec(),
        ),
        (
            "count",
            ["0", "17", "-1", "1000000000", "2.5", "null", "\"4\"", "18446744073709551615"]
                .map(String::from)
                .to_vec(),
        ),
        ("guidance", ["-1", "\"4\"", "1e999", "-1e308", "[]", "true"].map(String::from).to_vec()),
        ("top_k", ["-1", "0.5", "\"all\"", "1e30", "{}"].map(String::from).to_vec()),
        ("top_p", ["-0.1", "1.1", "1e300", "\"0.9\"", "[0.5]"].map(String::from).to_vec()),
        ("more_smooth", ["0", "\"yes\"", "null", "[]"].map(String::from).to_vec()),
        (
            "scales",
            [
                "\"\"",
                "\"0\"",
                "\"1_0\"",
                "\"2_1\"",
                "\"1_1\"",
                "\"a\"",
                "\"1_2_3_4_4096\"",
                "\"1_2_99999999999\"",
                "\"1_2x\"",
                "\"_\"",
                "7",
                "\"1 2 3\"",
                "\"1_256\"",
                "\"600px\"",
            ]
            .map(String::from)
            .to_vec(),
        ),
        (
            "size",
            [
                "\"\"",
                "\"64\"",
                "\"0x0\"",
                "\"63x63\"",
                "\"64x64x64\"",
                "\"16384x16384\"",
                "\"99999x8\"",
                "\"-8x8\"",
                "\"2048x2048\"",
                "64",
                "[64,64]",
                "\"64X64\"",
            ]
            .map(String::from)
            .to_vec(),
        ),
        ("previews", ["1", "\"no\"", "null"].map(String::from).to_vec()),
    ];
    let mut bodies: Vec<String> = Vec::new();
    for (name, values) in &values {
        bodies.extend(values.iter().map(|value| format!("{{\"{name}\": {value}}}")));
    }
    bodies.extend([
        String::new(),
        "{".into(),
        "}".into(),
        "null".into(),
        "[]".into(),
        "7".into(),
        "\"text\"".into(),
        "{\"seed\": 1,}".into(),
        "{'seed': 1}".into(),
        "{\"seed\": 1} trailing".into(),
        "{\"unknown\": 1}".into(),
        "{\"seed\": 1, \"seed\": 2}".into(),
        "{\"__proto__\": {}}".into(),
        format!("{{\"seed\": {huge}}}"),
        format!("{{\"class\": \"{long}\"}}"),
        format!("{{\"scales\": \"{long}\"}}"),
        format!("{{\"size\": \"{long}\"}}"),
        format!("{{\"{long}\": 1}}"),
        format!("{}{}", "[".repeat(20_000), "]".repeat(20_000)),
        format!("{}1{}", "{\"class\":".repeat(5_000), "}".repeat(5_000)),
        "\u{feff}{}".into(),
        "{\"count\": 16, \"size\": \"512x512\"}".into(),
        "{\"count\": 16, \"scales\": \"512px\"}".into(),
        "{\"scales\": \"1024px\", \"count\": 2}".into(),
        "{\"path\": \"/etc/passwd\"}".into(),
        "{\"runs\": \"..\"}".into(),
    ]);
    for body in &bodies {
        refused(address, body.get(..60).unwrap_or(body), Some(post(address, "/api/sample", body)));
    }
    // Bytes that are no text.
    for bytes in
        [&b"\xff\xfe\x00"[..], b"{\"class\": \"\xff\"}", b"\x1f\x8b\x08\x00\x00\x00", b"\0\0\0\0"]
    {
        let head = format!(
            "POST /api/sample HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            bytes.len()
        );
        refused(address, "bytes", raw(address, &[head.as_bytes(), bytes].concat()));
    }
    println!("{} bodies refused", bodies.len() + 4);
    assert_eq!(get(address, "/api/queue").json()["submitted"], 0);
    works(address);
}

#[test]
fn paths_that_lead_elsewhere() {
    let (_folder, address) = server();
    let up = [
        "..",
        "%2e%2e",
        "%2E%2E%2f..",
        "..%2f..",
        "....//",
        "..\\..",
        "%252e%252e",
        "..%00",
        ".%2e",
        "%c0%ae%c0%ae",
    ];
    let ends = ["secret.txt", "secret.txt%00.png", "etc/passwd", "run.lock"];
    let mut paths: Vec<String> = Vec::new();
    for up in up {
        for end in ends {
            paths.push(format!("/{up}/{end}"));
            paths.push(format!("/api/runs/{up}/pictures/{end}"));
        }
        paths.push(format!("/api/runs/{up}"));
        paths.push(format!("/api/runs/emoji/pictures/{up}"));
        paths.push(format!("/api/runs/emoji/pictures/{up}%2fsecret.txt"));
        paths.push(format!("/api/jobs/{up}"));
        paths.push(format!("/api/jobs/{up}/events"));
        paths.push(format!("/api/jobs/1/pictures/{up}"));
    }
    paths.extend(
        [
            "/api/runs/emoji/pictures/recipe.toml",
            "/api/runs/emoji/pictures/metrics.jsonl",
            "/api/runs/emoji/pictures/report.json",
            "/api/runs/emoji/pictures/run.lock",
            "/api/runs/emoji/pictures/",
            "/api/runs/emoji/pictures//etc/passwd",
            "/api/runs/emoji/pictures/sheet-sar-1%2f..%2f..%2f..%2fsecret.txt",
            "/api/runs/emoji/pictures/sheet-..%2f..%2fsecret-1.png",
            "/api/runs/emoji/pictures/sheet-sar-1.png",
            "/api/runs/emoji/pictures/sheet-sar-1.png%00",
            "/api/runs//",
            "/api/runs/%2fetc",
            "/api/runs/%2Fetc/pictures/passwd",
            "/api/runs/emoji%2f..%2femoji",
            "/api/runs/.",
            "/api/runs/emoji/",
            "/api/runs/EMOJI",
            "/api/runs/emoji%00",
            "/api/runs/%ff",
            "/api/jobs/",
            "/api/jobs/0",
            "/api/jobs/-1",
            "/api/jobs/1-",
            "/api/jobs/%00",
            "/api/jobs/99999999999999999999/pictures/0",
            "/api",
            "/api/",
            "/api/nothing",
            "/index.html",
            "/page/index.html",
            "/.git/config",
            "/style.css/../app.js",
            "//",
            "/%",
            "/%zz",
            "/?/../x/y",
            "/app.js/",
            "/APP.JS",
            "/api/model/",
            "/api/openapi.yaml",
        ]
        .map(String::from),
    );
    for path in &paths {
        let text = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        let answer = raw(address, text.as_bytes());
        // A query is none of the path's business.
        if path.starts_with("/?") {
            assert_eq!(answer.unwrap().status, 200);
        } else {
            refused(address, path, answer);
        }
    }
    for (method, path) in [
        ("PUT", "/api/sample"),
        ("GET", "/api/sample"),
        ("DELETE", "/api/model"),
        ("POST", "/api/model"),
        ("PATCH", "/api/edit"),
        ("POST", "/api/jobs/1"),
        ("TRACE", "/"),
        ("CONNECT", "/"),
        ("POST", "/"),
        ("OPTIONS", "/api/sample"),
        ("GET", "/api/runs/emoji/stop"),
        ("DELETE", "/api/runs/emoji"),
        ("BREW", "/"),
        ("get", "/api/model"),
    ] {
        refused(address, path, Some(ask(address, method, path, &[], "")));
    }
    println!("{} paths refused", paths.len() + 14);
    works(address);
}

/// Whether a connection may end without an answer: what is no request at all, what begins another protocol,
/// and what is longer than the server reads, which the system answers with a reset.
fn may_break_off(head: &[u8]) -> bool {
    head == b"\r\n\r\n" || head.starts_with(b"PRI ") || head.len() > 1 << 16
}

#[test]
fn heads_that_are_wrong() {
    let (_folder, address) = server();
    let long = "a".repeat(200_000);
    let many: String = (0..500).map(|i| format!("X-{i}: y\r\n")).collect();
    let heads: Vec<Vec<u8>> = vec![
        b"\r\n\r\n".to_vec(),
        b"GET\r\n\r\n".to_vec(),
        b"GET / HTTP/9.9\r\n\r\n".to_vec(),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        b"GET / HTTP/1.0\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        format!("GET /{long} HTTP/1.1\r\nHost: {address}\r\n\r\n").into(),
        format!("GET / HTTP/1.1\r\nHost: {address}\r\nX: {long}\r\n\r\n").into(),
        format!("GET / HTTP/1.1\r\nHost: {address}\r\n{many}\r\n").into(),
        format!("GET / HTTP/1.1\r\nHost: {address}\r\nHost: evil.example\r\nConnection: close\r\n\r\n").into(),
        format!("GET http://evil.example/ HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").into(),
        "GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n".into(),
        "GET / HTTP/1.1\r\nHost: \r\nConnection: close\r\n\r\n".into(),
        "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".into(),
        format!("GET /api/model HTTP/1.1\r\nHost: {address}\r\nOrigin: null\r\nConnection: close\r\n\r\n").into(),
        format!("GET / HTTP/1.1\r\nHost: {address}\r\nBad Header: x\r\n\r\n").into(),
        format!("GET / HTTP/1.1\r\nHost: {address}\r\nX\x00: y\r\n\r\n").into(),
        format!("POST /api/sample HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: -1\r\n\r\n{{}}").into(),
        format!("POST /api/sample HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{{}}").into(),
        format!("POST /api/sample HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: 99999999999999999999\r\n\r\n{{}}").into(),
        format!("POST /api/sample HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: 9999999999\r\n\r\n{{}}").into(),
        format!("POST /api/edit HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: 9999999999\r\n\r\n{{}}").into(),
        format!("POST /api/sample HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n{{}}\r\n0\r\n\r\n").into(),
        format!("POST /api/sample HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n20000\r\n{}\r\n0\r\n\r\n", "x".repeat(0x20000)).into(),
        format!("POST /api/sample HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{{}}").into(),
        format!("POST /api/sample HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\n{{}}").into(),
        format!("POST /api/sample HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 6\r\n\r\nseed=1").into(),
        format!("POST /api/sample HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: multipart/form-data\r\nContent-Length: 2\r\n\r\n{{}}").into(),
    ];
    for head in &heads {
        let shown = String::from_utf8_lossy(head.get(..90).unwrap_or(head)).into_owned();
        let answer = raw(address, head);
        if answer.is_some() || !may_break_off(head) {
            refused(address, &shown, answer);
        }
    }
    println!("{} heads refused", heads.len());
    works(address);
}

#[test]
fn names_and_origins_of_others_behind_a_proxy() {
    let (name, token) = ("sar.example.com", "correct-horse-battery");
    let origin = Some(format!("https://{name}"));
    let token_set = Some(token.to_owned());
    let address = start(Settings { token: token_set, origin, ..Settings::default() });
    let own = address.to_string();
    let body = r#"{"seed": 1, "scales": "1_2"}"#;
    let ask = |host: &str, more: &str, known: bool| {
        let known =
            if known { format!("Authorization: Bearer {token}\r\n") } else { String::new() };
        let head = format!("Host: {host}\r\nConnection: close\r\n{known}{more}");
        let length = body.len();
        let text = format!(
            "POST /api/sample HTTP/1.1\r\n{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        raw(address, text.as_bytes()).expect("an answer")
    };
    let from = |origin: &str| format!("Origin: {origin}\r\nSec-Fetch-Site: same-origin\r\n");
    // A proxy passes the name on, or puts its own into the place of it.
    for host in [name, &own] {
        assert_eq!(ask(host, "", true).status, 202, "{host}");
        assert_eq!(ask(host, &from("https://sar.example.com"), true).status, 202, "{host}");
        assert_eq!(ask(host, &from("https://sar.example.com"), false).status, 401, "{host}");
    }
    assert_eq!(ask(&own, &from(&format!("http://{own}")), true).status, 202);
    let others = [
        "http://sar.example.com",
        "https://sar.example.com:8443",
        "https://sar.example.com.evil.example",
        "https://evil.example/https://sar.example.com",
        "https://evil.example",
        "HTTPS://SAR.EXAMPLE.COM",
        "null",
        "",
    ];
    let mut table: Vec<(String, String)> = Vec::new();
    for other in others {
        table.extend([name, &own].map(|host| (host.to_owned(), from(other))));
    }
    for host in ["sar.example.com:443", "sar.example.com.", "evil.example", "a.sar.example.com", ""]
    {
        table.push((host.into(), String::new()));
        table.push((host.into(), from("https://sar.example.com")));
    }
    table.push((name.into(), "Host: evil.example\r\n".into()));
    let twice = from("https://sar.example.com") + "Origin: https://evil.example\r\n";
    table.push((name.into(), twice));
    table.push((name.into(), "Sec-Fetch-Site: cross-site\r\n".into()));
    for (host, more) in &table {
        let answer = ask(host, more, true);
        assert!([400, 403].contains(&answer.status), "{host} {more}: {}", answer.status);
        refused(address, &format!("{host} {more}"), Some(answer));
    }
    println!("{} names and origins refused", table.len());
}

/// A PNG that claims a size, with as little data as it gets away with.
fn claims(width: u32, height: u32) -> Vec<u8> {
    let mut png = to_png(&RgbImage::new(1, 1));
    png[16..20].copy_from_slice(&width.to_be_bytes());
    png[20..24].copy_from_slice(&height.to_be_bytes());
    let crc = crc32(&png[12..29]);
    png[29..33].copy_from_slice(&crc.to_be_bytes());
    png
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8)
            .fold(crc ^ u32::from(*byte), |c, _| (c >> 1) ^ (0xEDB8_8320 & (c & 1).wrapping_neg()))
    })
}

#[test]
fn pictures_that_are_none_or_too_large() {
    let (_folder, address) = server();
    let encode = |bytes: &[u8]| BASE64_STANDARD.encode(bytes);
    let good = encode(&to_png(&RgbImage::from_pixel(16, 16, image::Rgb([9, 99, 199]))));
    let white = encode(&to_png(&RgbImage::from_pixel(16, 16, image::Rgb([255; 3]))));
    let black = encode(&to_png(&RgbImage::new(16, 16)));
    let whole =
        to_png(&RgbImage::from_fn(16, 16, |x, y| image::Rgb([x as u8 * 9, y as u8 * 9, 0])));
    let flat = encode(&to_png(&RgbImage::from_pixel(3000, 3000, image::Rgb([1, 2, 3]))));
    let strip = encode(&to_png(&RgbImage::from_pixel(2000, 4, image::Rgb([1, 2, 3]))));
    let images: Vec<String> = vec![
        String::new(),
        "!!!".into(),
        "AAAA".into(),
        "a".into(),
        encode(b"GIF89a"),
        encode(b"\xff\xd8\xff"),
        encode(b"<svg xmlns='http://www.w3.org/2000/svg' onload='x'/>"),
        encode(b"file:///etc/passwd"),
        encode(&claims(100_000, 100_000)),
        encode(&claims(u32::MAX, u32::MAX)),
        encode(&claims(0, 0)),
        encode(&claims(1 << 30, 1)),
        encode(&claims(5000, 5000)),
        flat,
        strip,
        encode(&whole[..60]),
        encode(&whole[..whole.len() - 20]),
        "/etc/passwd".into(),
        format!("data:image/png;base64,{good}"),
        "A".repeat(100_001),
    ];
    let n = images.len();
    for image in images {
        let body = json!({ "mode": "refine", "image": image }).to_string();
        refused(
            address,
            image.get(..60).unwrap_or(&image),
            Some(post(address, "/api/edit", &body)),
        );
    }
    let with = |mut body: Value| {
        body["image"] = good.clone().into();
        let what = body.to_string();
        refused(address, what.get(..150).unwrap_or(&what), Some(post(address, "/api/edit", &what)));
    };
    let wrong: Vec<Value> = vec![
        json!({}),
        json!({ "mode": "paint" }),
        json!({ "mode": "inpaint" }),
        json!({ "mode": "expand" }),
        json!({ "mode": "inpaint", "mask": black }),
        json!({ "mode": "inpaint", "mask": white, "outside": true }),
        json!({ "mode": "inpaint", "mask": encode(&claims(16, 16)) }),
        json!({ "mode": "inpaint", "mask": encode(&claims(99_999, 99_999)) }),
        json!({ "mode": "inpaint", "mask": encode(&to_png(&RgbImage::new(8, 16))) }),
        json!({ "mode": "inpaint", "mask": "x" }),
        json!({ "mode": "inpaint", "mask": 7 }),
        json!({ "mode": "inpaint", "mask": white, "box": [0, 0, 1, 1] }),
        json!({ "mode": "inpaint", "mask": white, "margins": [1, 0, 0, 0] }),
        json!({ "mode": "inpaint", "box": [0, 0, 17, 4] }),
        json!({ "mode": "inpaint", "box": [4, 4, 4, 9] }),
        json!({ "mode": "inpaint", "box": [-1, 0, 4, 4] }),
        json!({ "mode": "inpaint", "box": [1, 2, 3] }),
        json!({ "mode": "inpaint", "box": [0, 0, 4_294_967_295_u32, 4] }),
        json!({ "mode": "expand", "margins": [0, 0, 0, 0] }),
        json!({ "mode": "expand", "margins": [17, 0, 0, 0] }),
        json!({ "mode": "expand", "margins": [4_294_967_295_u32, 0, 0, 0] }),
        json!({ "mode": "expand", "margins": [1, 1, 1] }),
        json!({ "mode": "expand", "mask": white }),
        json!({ "mode": "refine", "mask": white }),
        json!({ "mode": "refine", "margins": [1, 1, 1, 1] }),
        json!({ "mode": "refine", "outside": true }),
        json!({ "mode": "refine", "blend": 99_999 }),
        json!({ "mode": "refine", "blend": -1 }),
        json!({ "mode": "refine", "keep_scales": -1 }),
        json!({ "mode": "refine", "sampling": { "count": 0 } }),
        json!({ "mode": "refine", "sampling": 7 }),
        json!({ "mode": "refine", "sampling": { "class": "nothing like it" } }),
        json!({ "mode": "refine", "sampling": { "size": "4096x4096" } }),
        json!({ "mode": "refine", "sampling": { "seed": -1 } }),
        json!({ "mode": "refine", "path": "/etc/passwd" }),
    ];
    let m = wrong.len();
    wrong.into_iter().for_each(with);
    println!("{} pictures refused", n + m);
    assert_eq!(get(address, "/api/queue").json()["submitted"], 0);
    works(address);
}

#[test]
fn margins_of_what_is_cropped_are_counted() {
    let (_folder, address) = server();
    let wide = BASE64_STANDARD.encode(to_png(&RgbImage::from_pixel(1024, 128, image::Rgb([7; 3]))));
    // Cropped to 128x128, of which 64x64 become: each margin of 1024 is 512, each of 128 is 64.
    let body = json!({
        "mode": "expand", "image": wide, "margins": [1024, 128, 1024, 128],
        "sampling": { "size": "64x64", "count": 6 },
    });
    let answer = post(address, "/api/edit", &body.to_string());
    assert_eq!(answer.status, 400, "{}", answer.text());
    let expected = format!("{} pixels are more than", 6 * 1088 * 192);
    assert!(answer.error().contains(&expected), "{}", answer.error());
    assert_eq!(get(address, "/api/queue").json()["submitted"], 0);
    works(address);
}

#[test]
fn clients_that_do_not_read_hold_up_nobody() {
    let (_folder, runs) = runs();
    // More than the system keeps for a connection.
    let picture = [b"\x89PNG".to_vec(), vec![0; 24 << 20]].concat();
    std::fs::write(runs.join("emoji/samples-after.png"), &picture).unwrap();
    let patience = Duration::from_millis(500);
    let limits = Limits { patience, connections: 4, ..Limits::default() };
    let address = start(Settings { runs: Some(runs), limits, ..Settings::default() });
    let path = "/api/runs/emoji/pictures/samples-after.png";
    // As many as there are places.
    let stalled: Vec<TcpStream> = (0..4)
        .map(|_| {
            let mut stream = TcpStream::connect(address).unwrap();
            write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").unwrap();
            stream
        })
        .collect();
    thread::sleep(patience / 2);
    works(address);
    // Whoever reads gets all of it.
    let answer = get(address, path);
    assert_eq!(answer.status, 200);
    assert!(answer.body == picture, "{} bytes", answer.body.len());
    for mut stream in stalled {
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut rest = Vec::new();
        if let Err(error) = stream.read_to_end(&mut rest) {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "still open: {error}");
        }
        assert!(rest.len() < picture.len(), "it was sent whole");
    }
}

#[test]
fn clients_that_stall_hold_up_nobody() {
    let patience = Duration::from_millis(400);
    let limits = Limits { patience, ..Limits::default() };
    let address = start(Settings { limits, ..Settings::default() });
    let open = |text: &str| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        stream
    };
    let head = format!(
        "POST /api/sample HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{{"
    );
    let mut stalled: Vec<TcpStream> = (0..30).map(|_| open("GET / HT")).collect();
    stalled.extend((0..30).map(|_| open(&head)));
    stalled.extend((0..10).map(|_| open("")));
    let start = Instant::now();
    works(address);
    assert!(start.elapsed() < Duration::from_secs(20));
    // Whoever breaks off in the middle of a body, or of an answer.
    for _ in 0..20 {
        drop(open(&head));
        drop(open(&format!("GET /app.js HTTP/1.1\r\nHost: {address}\r\n\r\n")));
    }
    thread::sleep(3 * patience);
    // They are gone, whatever they had sent.
    for mut stream in stalled {
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut rest = Vec::new();
        if let Err(error) = stream.read_to_end(&mut rest) {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "still open: {error}");
        }
    }
    let answer = raw(address, head.as_bytes()).expect("an answer");
    assert_eq!(answer.status, 408);
    works(address);
}
