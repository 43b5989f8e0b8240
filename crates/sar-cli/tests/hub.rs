//! Weights by their names on a hub: one of this machine, which answers as Hugging Face does.

#![cfg(feature = "hub")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

/// A request as the hub saw it.
#[derive(Clone, Debug)]
struct Asked {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
}

/// What the hub has, and how it fails.
#[derive(Default)]
struct State {
    /// By owner, repository and path.
    files: BTreeMap<String, Vec<u8>>,
    /// The SHA-256 that it says of all files, if not theirs.
    claims: Option<String>,
    /// Bytes of a body after which the connection ends.
    cut_at: Option<usize>,
    /// Whether it falls silent there instead, and ends only with its client.
    stalls: bool,
    /// Whether it refuses to begin anywhere but at the beginning.
    has_no_parts: bool,
    /// A status and an error code for every file.
    refuses: Option<(u16, &'static str)>,
    asked: Vec<Asked>,
}

struct Hub {
    port: u16,
    state: Arc<Mutex<State>>,
}

impl Hub {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let state = shared.clone();
                thread::spawn(move || serve(stream.unwrap(), port, &state));
            }
        });
        Self { port, state }
    }

    fn put(&self, name: &str, bytes: &[u8]) {
        self.state.lock().unwrap().files.insert(name.into(), bytes.to_vec());
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
    }

    /// What was asked since the last time, as in `HEAD /o/r/resolve/main/f`.
    fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state.lock().unwrap().asked)
    }

    fn methods(&self) -> Vec<String> {
        self.asked().into_iter().map(|asked| asked.method).collect()
    }
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Answers the requests of a connection; the last one closes it.
fn serve(stream: TcpStream, port: u16, state: &Mutex<State>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    while reader.read_line(&mut line).is_ok_and(|n| n > 0) {
        let mut words = line.split_whitespace().map(String::from);
        let (method, target) = (words.next().unwrap(), words.next().unwrap());
        let mut headers = BTreeMap::new();
        loop {
            line.clear();
            reader.read_line(&mut line).unwrap();
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            headers.insert(name.to_lowercase(), value.to_owned());
        }
        line.clear();
        // As a proxy: what follows is for another host, and answered here.
        if method == "CONNECT" {
            state.lock().unwrap().asked.push(Asked { method, path: target, headers });
            (&stream).write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
            continue;
        }
        let path = match target.strip_prefix("http://") {
            Some(rest) => format!("/{}", rest.split_once('/').unwrap().1),
            None => target,
        };
        let asked = Asked { method, path, headers };
        let mut state = state.lock().unwrap();
        state.asked.push(asked.clone());
        let (head, body) = answer(&asked, port, &state);
        let sent = if asked.method == "HEAD" { &[] } else { &body[..] };
        let cut = state.cut_at.filter(|_| asked.path.starts_with("/cdn/"));
        let is_cut = cut.is_some_and(|cut| cut < sent.len());
        let sent = &sent[..cut.unwrap_or(sent.len()).min(sent.len())];
        let stalls = is_cut && state.stalls;
        drop(state);
        let head = format!("HTTP/1.1 {head}\r\nConnection: close\r\n\r\n");
        let _ = (&stream).write_all(&[head.as_bytes(), sent].concat());
        if stalls {
            let _ = reader.read_to_end(&mut Vec::new());
        }
        return;
    }
}

/// Status line and headers, and the body.
fn answer(asked: &Asked, port: u16, state: &State) -> (String, Vec<u8>) {
    if let Some((status, code)) = state.refuses {
        return (format!("{status} No\r\nX-Error-Code: {code}\r\nContent-Length: 0"), Vec::new());
    }
    if let Some(name) = asked.path.strip_prefix("/cdn/") {
        let bytes = &state.files[name];
        let range = asked.headers.get("range");
        let from =
            range.map(|range| range["bytes=".len()..].trim_end_matches('-').parse().unwrap());
        return match from {
            None => (format!("200 OK\r\nContent-Length: {}", bytes.len()), bytes.clone()),
            Some(_) if state.has_no_parts => ("416 No\r\nContent-Length: 0".into(), Vec::new()),
            Some(from) => {
                let (n, rest): (usize, &[u8]) = (bytes.len(), &bytes[from..]);
                let range = format!("Content-Range: bytes {from}-{}/{n}", n - 1);
                (format!("206 Partial\r\n{range}\r\nContent-Length: {}", rest.len()), rest.to_vec())
            }
        };
    }
    let parts: Vec<&str> = asked.path.splitn(6, '/').collect();
    let [_, owner, repo, "resolve", _, path] = parts[..] else { panic!("{asked:?}") };
    // A repository that was renamed.
    if repo == "old" {
        let path = asked.path.replacen("/old/", "/r/", 1);
        return (format!("307 Moved\r\nLocation: {path}\r\nContent-Length: 0"), Vec::new());
    }
    let name = format!("{owner}/{repo}/{path}");
    let Some(bytes) = state.files.get(&name) else {
        return ("404 No\r\nX-Error-Code: EntryNotFound\r\nContent-Length: 0".into(), Vec::new());
    };
    let sha = state.claims.clone().unwrap_or_else(|| hex(bytes));
    let linked = format!("X-Linked-Etag: \"{sha}\"\r\nX-Linked-Size: {}", bytes.len());
    // Another name of this machine, as the store of large files is another host.
    let location = format!("http://localhost:{port}/cdn/{name}");
    (format!("302 Found\r\n{linked}\r\nLocation: {location}\r\nContent-Length: 0"), Vec::new())
}

struct User {
    folder: tempfile::TempDir,
    variables: Vec<(&'static str, String)>,
}

impl User {
    fn of(hub: &Hub) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("cache").display().to_string();
        let endpoint = format!("http://127.0.0.1:{}/", hub.port);
        let variables = vec![("XDG_CACHE_HOME", cache), ("HF_ENDPOINT", endpoint)];
        Self { folder, variables }
    }

    fn with(&self, name: &'static str, value: impl Into<String>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut variables = self.variables.clone();
        variables.push((name, value.into()));
        Self { folder, variables }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sar"));
        for name in [
            "HTTP_PROXY",
            "HTTPS_PROXY",
            "ALL_PROXY",
            "NO_PROXY",
            "HF_TOKEN",
            "HF_HUB_OFFLINE",
            "HF_HUB_DOWNLOAD_TIMEOUT",
        ] {
            command.env_remove(name).env_remove(name.to_lowercase());
        }
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.current_dir(self.folder.path()).args(args);
        command
    }

    fn sar(&self, args: &[&str]) -> (Option<i32>, String, String) {
        let output = self.command(args).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    }

    /// What is said beside.
    #[track_caller]
    fn does(&self, args: &[&str]) -> String {
        let (code, _, said) = self.sar(args);
        assert_eq!(code, Some(0), "{said}");
        said
    }

    /// One line of error at the end, with all of these.
    #[track_caller]
    fn refuses(&self, args: &[&str], parts: &[&str]) {
        let (code, stdout, said) = self.sar(args);
        assert!(code == Some(2) && stdout.is_empty(), "{stdout}{said}");
        let error = said.lines().last().unwrap();
        assert!(error.starts_with("error: "), "{said}");
        for part in parts {
            assert!(error.contains(part), "'{part}' is not in: {error}");
        }
        println!("{error}");
    }

    fn cached(&self, name: &str) -> PathBuf {
        let (_, cache) = &self.variables[0];
        Path::new(cache).join("sar/hub").join(name)
    }

    /// Files that lie beside a cached one.
    fn beside(&self, name: &str) -> Vec<String> {
        let folder = self.cached(name);
        let Ok(entries) = fs::read_dir(folder.parent().unwrap()) else { return Vec::new() };
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn in_the_box(name: &str) -> Vec<u8> {
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/weights/emoji");
    fs::read(assets.join(name)).unwrap()
}

const NAME: &str = "hf:o/r/dir/t v.safetensors";
const PLACE: &str = "o/r/main/dir/t v.safetensors";

fn hub_with_weights() -> (Hub, Vec<u8>) {
    let (hub, bytes) = (Hub::start(), in_the_box("tokenizer.safetensors"));
    hub.put("o/r/dir/t%20v.safetensors", &bytes);
    (hub, bytes)
}

#[test]
fn a_file_is_fetched_once_and_again_when_it_changes() {
    let (hub, bytes) = hub_with_weights();
    let user = User::of(&hub);
    let said = user.does(&["inspect", NAME]);
    assert!(said.contains(&format!("fetching {NAME}, {} bytes", bytes.len())), "{said}");
    assert_eq!(fs::read(user.cached(PLACE)).unwrap(), bytes);
    assert_eq!(hub.methods(), ["HEAD", "GET", "GET"]);
    assert_eq!(user.beside(PLACE), [".t v.safetensors.json", "t v.safetensors"]);

    assert_eq!(user.does(&["inspect", NAME]), "");
    assert_eq!(hub.methods(), ["HEAD"]);

    let other = in_the_box("backbone-sar.safetensors");
    hub.put("o/r/dir/t%20v.safetensors", &other);
    user.does(&["inspect", NAME]);
    assert_eq!(fs::read(user.cached(PLACE)).unwrap(), other);
    hub.asked();

    // A commit stays what it is, a repository may have been renamed.
    let commit =
        format!("hf:o/old@{}/dir/t v.safetensors", "0123456789abcdef".repeat(3).split_at(40).0);
    user.does(&["inspect", &commit]);
    assert_eq!(hub.methods(), ["HEAD", "HEAD", "GET", "GET"]);
    user.does(&["inspect", &commit]);
    assert!(hub.asked().is_empty());
}

#[test]
fn weights_of_a_hub_sample_like_those_of_the_box() {
    let (hub, _) = hub_with_weights();
    hub.put("o/r/b.safetensors", &in_the_box("backbone-sar.safetensors"));
    let user = User::of(&hub);
    let draw = ["sample", "--class", "food", "--n", "1", "--out"];
    user.does(&[&draw[..], &["box"]].concat());
    user.does(
        &[&draw[..], &["hub", "--tokenizer", NAME, "--backbone", "hf:o/r/b.safetensors"]].concat(),
    );
    let [ours, theirs] = ["hub", "box"]
        .map(|out| fs::read(user.folder.path().join(format!("{out}-grid.png"))).unwrap());
    assert!(ours == theirs);
    user.does(&["convert", NAME, "half.pth", "--dtype", "bf16"]);
}

#[test]
fn what_is_cut_off_goes_on() {
    let (hub, bytes) = hub_with_weights();
    let user = User::of(&hub);
    // Each answer brings a part.
    hub.set(|hub| hub.cut_at = Some(1_000_000));
    user.does(&["inspect", NAME]);
    let ranges: Vec<Option<String>> = hub
        .asked()
        .into_iter()
        .filter(|asked| asked.path.starts_with("/cdn/"))
        .map(|asked| asked.headers.get("range").cloned())
        .collect();
    let expected = [None, Some("bytes=1000000-".into()), Some("bytes=2000000-".into())];
    assert_eq!(ranges, expected, "{}", bytes.len());
    assert_eq!(fs::read(user.cached(PLACE)).unwrap(), bytes);

    // No answer brings anything: what is there is kept, and the next command goes on.
    let other = user.with("XDG_CACHE_HOME", user.folder.path().join("other").display().to_string());
    let place = user.folder.path().join("other/sar/hub").join(PLACE);
    let part = place.with_file_name(format!(".t v.safetensors.{}.part", hex(&bytes)));
    fs::create_dir_all(place.parent().unwrap()).unwrap();
    fs::write(&part, &bytes[..700_000]).unwrap();
    hub.set(|hub| hub.cut_at = Some(0));
    other.refuses(&["inspect", NAME], &[NAME, "700000 bytes have come and are kept", "goes on"]);
    hub.set(|hub| hub.cut_at = None);
    hub.asked();
    other.does(&["inspect", NAME]);
    let last = hub.asked().pop().unwrap();
    assert_eq!(last.headers["range"], "bytes=700000-");
    assert!(fs::read(&place).unwrap() == bytes && !part.exists());
}

#[test]
fn what_stalls_is_cut_off_and_goes_on() {
    let (hub, bytes) = hub_with_weights();
    let user = User::of(&hub).with("HF_HUB_DOWNLOAD_TIMEOUT", "1");
    hub.set(|hub| (hub.cut_at, hub.stalls) = (Some(1_000_000), true));
    let start = Instant::now();
    user.does(&["inspect", NAME]);
    let n_stalls = (bytes.len() - 1) / 1_000_000;
    let most = Duration::from_secs(20);
    assert!(n_stalls == 2 && (Duration::from_secs(2)..most).contains(&start.elapsed()));
    assert_eq!(fs::read(user.cached(PLACE)).unwrap(), bytes);

    // One that sends nothing at all is given up, and nobody waits for it for ever.
    let other = user.with("XDG_CACHE_HOME", user.folder.path().join("other").display().to_string());
    hub.set(|hub| hub.cut_at = Some(0));
    other.refuses(&["inspect", NAME], &[NAME, "the connection broke", "0 bytes have come"]);
    for wrong in ["0", "-1", "soon"] {
        let user = user.with("HF_HUB_DOWNLOAD_TIMEOUT", wrong);
        user.refuses(&["inspect", NAME], &["HF_HUB_DOWNLOAD_TIMEOUT", wrong, "seconds"]);
    }
}

#[test]
fn a_hub_without_parts_sends_it_from_the_beginning() {
    let (hub, bytes) = hub_with_weights();
    let user = User::of(&hub);
    let place = user.cached(PLACE);
    let part = place.with_file_name(format!(".t v.safetensors.{}.part", hex(&bytes)));
    fs::create_dir_all(place.parent().unwrap()).unwrap();
    fs::write(&part, &bytes[..700_000]).unwrap();
    hub.set(|hub| hub.has_no_parts = true);
    user.does(&["inspect", NAME]);
    let asked = hub.asked();
    let range = |asked: &Asked| asked.headers.get("range").cloned();
    let ranges: Vec<_> =
        asked.iter().filter(|asked| asked.path.starts_with("/cdn/")).map(range).collect();
    assert_eq!(ranges, [Some("bytes=700000-".into()), None]);
    assert!(fs::read(&place).unwrap() == bytes && !part.exists());

    // One that breaks off each time as well comes to an end.
    let other = user.with("XDG_CACHE_HOME", user.folder.path().join("other").display().to_string());
    hub.set(|hub| hub.cut_at = Some(1_000_000));
    other.refuses(&["inspect", NAME], &[NAME, "the same command goes on"]);
    assert!(hub.asked().len() < 12);
}

#[test]
fn whoever_waits_for_another_process_says_so() {
    let (hub, bytes) = hub_with_weights();
    let user = User::of(&hub);
    let place = user.cached(PLACE);
    fs::create_dir_all(place.parent().unwrap()).unwrap();
    let part = place.with_file_name(format!(".t v.safetensors.{}.part", hex(&bytes)));
    let held = fs::File::create(&part).unwrap();
    held.lock().unwrap();
    let mut command = user.command(&["inspect", NAME]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let first = lines.next().unwrap();
    assert_eq!(first, format!("{NAME}: waits for another process that fetches it"));
    drop(held);
    let rest: Vec<String> = lines.collect();
    assert!(child.wait().unwrap().success(), "{rest:?}");
    assert_eq!(fs::read(place).unwrap(), bytes);
}

#[test]
fn what_goes_wrong_is_one_line() {
    let (hub, bytes) = hub_with_weights();
    let user = User::of(&hub);
    let inspect = ["inspect", NAME];
    user.refuses(
        &["inspect", "hf:o/r/no.pth"],
        &["hf:o/r/no.pth: ", "no file no.pth at main (404)"],
    );
    user.refuses(&["inspect", "hf:o/r"], &["hf:o/r: write hf:OWNER/REPO/FILE"]);
    user.with("HF_HUB_OFFLINE", "1").refuses(&inspect, &["not in the cache", "HF_HUB_OFFLINE"]);
    for (status, code, parts) in [
        (401, "GatedRepo", ["is gated (401); ask for access at http://127.0.0.1", "set HF_TOKEN"]),
        (
            401,
            "RepoNotFound",
            ["not open to you, or not there (401); check the name", "set HF_TOKEN"],
        ),
        (404, "RevisionNotFound", ["has no revision main", "404"]),
        (429, "", ["429", "later"]),
        (503, "", ["status 503", "later"]),
    ] {
        hub.set(|hub| hub.refuses = Some((status, code)));
        user.refuses(&inspect, &parts);
    }
    let known = user.with("HF_TOKEN", "secret");
    hub.set(|hub| hub.refuses = Some((403, "")));
    known.refuses(&inspect, &["the token in HF_TOKEN may not read it"]);
    hub.set(|hub| hub.refuses = None);

    hub.set(|hub| hub.claims = Some("0".repeat(64)));
    let sha = hex(&bytes);
    user.refuses(&inspect, &["the checksum differs", &sha, &"0".repeat(64), "try again"]);
    assert_eq!(user.beside(PLACE), [""; 0], "nothing of it is left");
    hub.set(|hub| hub.claims = None);

    // A cache that cannot be one.
    fs::write(user.folder.path().join("file"), "").unwrap();
    let file = user.folder.path().join("file").display().to_string();
    user.with("XDG_CACHE_HOME", file).refuses(&inspect, &["cannot write in", "XDG_CACHE_HOME"]);

    // Nobody answers: without a copy an error, with one a note.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let away = user.with("HF_ENDPOINT", format!("http://{closed}"));
    away.refuses(&inspect, &[&format!("http://{closed} cannot be reached"), "HTTPS_PROXY"]);
    user.does(&inspect);
    let said = away.does(&inspect);
    assert!(said.contains("cannot be reached") && said.contains("copy in the cache"), "{said}");
    // Neither does one that is busy or broken; a name that is gone is an error all the same.
    for (status, why) in [(429, "asks for patience (429)"), (500, "status 500"), (503, "503")] {
        hub.set(|hub| hub.refuses = Some((status, "")));
        let said = user.does(&inspect);
        assert!(said.contains(why) && said.contains("copy in the cache"), "{said}");
    }
    hub.set(|hub| hub.refuses = Some((404, "RepoNotFound")));
    user.refuses(&inspect, &["404"]);
    hub.set(|hub| hub.refuses = None);
    hub.asked();
    user.with("HF_HUB_OFFLINE", "1").does(&inspect);
    assert!(hub.asked().is_empty());
}

#[test]
fn a_token_is_for_the_hub_alone() {
    let (hub, _) = hub_with_weights();
    User::of(&hub).with("HF_TOKEN", "secret").does(&["inspect", NAME]);
    let asked = hub.asked();
    assert_eq!(asked.len(), 3);
    for Asked { path, headers, .. } in asked {
        let expected = (!path.starts_with("/cdn/")).then_some("Bearer secret");
        assert_eq!(headers.get("authorization").map(String::as_str), expected, "{path}");
    }
}

#[test]
fn a_proxy_of_the_environment_is_used() {
    let (hub, bytes) = hub_with_weights();
    let proxy = format!("http://127.0.0.1:{}", hub.port);
    let user = User::of(&hub).with("HF_ENDPOINT", "http://hub.invalid").with("HTTP_PROXY", proxy);
    user.does(&["inspect", NAME]);
    assert_eq!(fs::read(user.cached(PLACE)).unwrap(), bytes);
    assert!(!hub.asked().is_empty());
}

/// Two that fetch the same file at once leave one whole file.
#[test]
fn two_at_once_share_a_fetch() {
    let (hub, bytes) = hub_with_weights();
    let user = User::of(&hub);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| user.does(&["inspect", NAME]));
        }
    });
    assert_eq!(fs::read(user.cached(PLACE)).unwrap(), bytes);
    let bodies = hub.asked().iter().filter(|asked| asked.path.starts_with("/cdn/")).count();
    assert_eq!(bodies, 1);
}
