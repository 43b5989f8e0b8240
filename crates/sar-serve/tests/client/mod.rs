//! A server with the weights that come along, and a client that can also say nonsense.

#![allow(dead_code, reason = "each test file uses a part")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use burn_flex::Flex;
use sar_pipeline::Pipeline;
use sar_serve::{Server, Settings};
use serde_json::Value;

pub(crate) const WEIGHTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/weights/emoji");

pub(crate) fn pipeline() -> Pipeline<Flex> {
    Pipeline::open_run(WEIGHTS.as_ref(), &Default::default()).unwrap()
}

/// Starts a server that lives as long as the process.
pub(crate) fn start(settings: Settings) -> SocketAddr {
    let server = Server::bind(pipeline(), settings).unwrap();
    let address = server.address();
    thread::spawn(move || server.run().unwrap());
    address
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Its sentence.
    pub(crate) fn error(&self) -> String {
        self.json()["error"].as_str().unwrap_or_else(|| panic!("no error: {self:?}")).to_owned()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

/// Sends bytes, and reads to the end; none if the connection breaks before there is an answer.
pub(crate) fn raw(address: SocketAddr, bytes: &[u8]) -> Option<Answer> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    // It may answer, and close, before it has read everything.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    let status = head.get(9..12)?.parse().ok()?;
    let mut body = answer[end + 4..].to_vec();
    if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        body = unchunked(&body);
    }
    Some(Answer { status, head, body })
}

fn unchunked(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = rest.windows(2).position(|two| two == b"\r\n") {
        let length = std::str::from_utf8(&rest[..end]).ok().map(str::trim);
        let Some(length) = length.and_then(|text| usize::from_str_radix(text, 16).ok()) else {
            break;
        };
        let Some(chunk) = rest.get(end + 2..end + 2 + length).filter(|_| length > 0) else { break };
        body.extend(chunk);
        rest = rest.get(end + 4 + length..).unwrap_or_default();
    }
    body
}

/// A request as programs send them.
pub(crate) fn ask(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[&str],
    body: &str,
) -> Answer {
    let extra: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    let length = body.len();
    let text = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{extra}Content-Length: {length}\r\n\r\n{body}"
    );
    raw(address, text.as_bytes()).expect("an answer")
}

pub(crate) fn get(address: SocketAddr, path: &str) -> Answer {
    ask(address, "GET", path, &[], "")
}

pub(crate) fn post(address: SocketAddr, path: &str, body: &str) -> Answer {
    ask(address, "POST", path, &["Content-Type: application/json"], body)
}

/// Submits work, and returns the job's id.
pub(crate) fn submit(address: SocketAddr, path: &str, body: &Value) -> String {
    let answer = post(address, path, &body.to_string());
    assert_eq!(answer.status, 202, "{}", answer.text());
    let id = answer.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(answer.header("location"), Some(format!("/api/jobs/{id}").as_str()));
    id
}

/// The events of a job to its end: names and data.
pub(crate) fn events(address: SocketAddr, id: &str) -> Vec<(String, Value)> {
    let answer = get(address, &format!("/api/jobs/{id}/events"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    let text = answer.text();
    let field = |block: &str, name: &str| {
        block.lines().find_map(|line| Some(line.strip_prefix(name)?.trim_start().to_owned()))
    };
    text.split("\n\n")
        .filter_map(|block| Some((field(block, "event:")?, field(block, "data:")?)))
        .map(|(name, data)| (name, serde_json::from_str(&data).unwrap()))
        .collect()
}

/// The pictures of a job that has to succeed, as PNG files.
pub(crate) fn pictures(address: SocketAddr, id: &str) -> Vec<Vec<u8>> {
    let events = events(address, id);
    let (name, data) = events.last().expect("events");
    assert_eq!(name, "done", "{data}");
    let urls = data["pictures"].as_array().unwrap();
    urls.iter().map(|url| picture(address, url.as_str().unwrap())).collect()
}

pub(crate) fn picture(address: SocketAddr, url: &str) -> Vec<u8> {
    let answer = get(address, url);
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("image/png")), "{url}");
    answer.body
}

/// A folder with two runs, one of them that of the weights that come along.
pub(crate) fn runs() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let runs = folder.path().join("runs");
    std::fs::create_dir_all(runs.join("emoji")).unwrap();
    for name in ["recipe.toml", "metrics.jsonl", "report.json"] {
        std::fs::copy(format!("{WEIGHTS}/{name}"), runs.join("emoji").join(name)).unwrap();
    }
    std::fs::write(folder.path().join("secret.txt"), "THE SECRET").unwrap();
    (folder, runs)
}
