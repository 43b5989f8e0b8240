//! Files of a hub in the cache: fetched once, whole, checked, and resumed where a fetch was cut off.
//!
//! The hub is asked what a file is (its ETag, and of large files size and SHA-256, as the LFS headers of Hugging Face
//! say them) whenever it is used, and fetched if that has changed. `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE` and
//! `HF_HUB_DOWNLOAD_TIMEOUT` mean what they mean to the hub's own clients; proxies are those of the environment.

use std::env;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use ureq::http::{HeaderMap, Response};
use ureq::{Agent, Body};

use super::HubFile;

const ENDPOINT: &str = "https://huggingface.co";
/// Redirects within the hub, as of a repository that was renamed.
const MOST_REDIRECTS: usize = 5;
/// Attempts in a row that bring nothing.
const MOST_ATTEMPTS: usize = 3;
const CHUNK: usize = 1 << 16;
/// How long nothing may come, in seconds, before a connection counts as broken.
const PATIENCE: u64 = 60;

/// The file in the cache.
pub(super) fn fetch(file: &HubFile) -> Result<PathBuf> {
    let hub = Hub::of_environment()?;
    let place = hub.place(file);
    let kept = Kept::beside(&place);
    if hub.is_offline {
        return match kept {
            Some(_) => Ok(place),
            None => bail!(
                "{file}: is not in the cache, and HF_HUB_OFFLINE is set; unset it to fetch the file"
            ),
        };
    }
    // A commit never changes.
    let is_commit =
        file.revision.len() == 40 && file.revision.bytes().all(|b| b.is_ascii_hexdigit());
    if is_commit && kept.is_some() {
        return Ok(place);
    }
    let remote = match hub.ask(file) {
        Ok(remote) => remote,
        Err(Failure::Passing { reason, .. }) if kept.is_some() => {
            eprintln!("{file}: {reason}; the copy in the cache is used");
            return Ok(place);
        }
        Err(Failure::Passing { reason, advice }) => bail!("{file}: {reason}; {advice}"),
        Err(Failure::Refused(error)) => return Err(error),
    };
    if kept.is_none_or(|kept| kept.etag != remote.etag) {
        hub.download(file, &remote, &place)?;
    }
    Ok(place)
}

/// Where files come from, and where they are kept.
struct Hub {
    agent: Agent,
    endpoint: String,
    cache: PathBuf,
    token: Option<String>,
    is_offline: bool,
}

/// What the hub says of a file.
struct Remote {
    /// Where it answers.
    url: String,
    etag: String,
    size: Option<u64>,
    /// In hexadecimal.
    sha256: Option<String>,
}

/// What is written beside a file in the cache.
#[derive(Serialize, Deserialize)]
struct Kept {
    etag: String,
    size: u64,
}

enum Failure {
    /// It says nothing of the file: the hub does not answer, or not now.
    Passing {
        /// What was tried and why it failed.
        reason: String,
        /// What to do.
        advice: &'static str,
    },
    Refused(anyhow::Error),
}

impl Kept {
    fn path(place: &Path) -> PathBuf {
        let name = place.file_name().unwrap_or_default().to_string_lossy();
        place.with_file_name(format!(".{name}.json"))
    }

    /// Of a file that is there whole.
    fn beside(place: &Path) -> Option<Self> {
        let kept: Self = serde_json::from_slice(&fs::read(Self::path(place)).ok()?).ok()?;
        let is_whole = fs::metadata(place).is_ok_and(|there| there.len() == kept.size);
        is_whole.then_some(kept)
    }
}

impl Hub {
    fn of_environment() -> Result<Self> {
        let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let endpoint = variable("HF_ENDPOINT").unwrap_or(ENDPOINT.into());
        let is_offline = variable("HF_HUB_OFFLINE")
            .is_some_and(|said| ["1", "true", "yes", "on"].contains(&&*said.to_lowercase()));
        let patience = match variable("HF_HUB_DOWNLOAD_TIMEOUT") {
            None => PATIENCE,
            Some(said) => said.parse().ok().filter(|seconds| *seconds > 0).with_context(|| {
                format!("HF_HUB_DOWNLOAD_TIMEOUT {said}: must be a number of seconds, 1 or more")
            })?,
        };
        let patience = Some(Duration::from_secs(patience));
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(patience)
            .timeout_per_read(patience)
            .user_agent(concat!("sar/", env!("CARGO_PKG_VERSION")))
            .build();
        Ok(Self {
            agent: Agent::new_with_config(config),
            endpoint: endpoint.trim_end_matches('/').into(),
            cache: cache_folder()?.join("sar/hub"),
            token: variable("HF_TOKEN"),
            is_offline,
        })
    }

    fn place(&self, HubFile { owner, repo, revision, path }: &HubFile) -> PathBuf {
        self.cache.join(owner).join(repo).join(revision).join(path)
    }

    /// Asks what a file is, without fetching it.
    fn ask(&self, file: &HubFile) -> Result<Remote, Failure> {
        let HubFile { owner, repo, revision, path } = file;
        let mut url =
            format!("{}/{owner}/{repo}/resolve/{revision}/{}", self.endpoint, escaped(path));
        for _ in 0..=MOST_REDIRECTS {
            // Large files are elsewhere; only this answer says what they are.
            let request = self.agent.head(&url).config().max_redirects(0).build();
            let response = match &self.token {
                Some(token) => request.header("Authorization", format!("Bearer {token}")),
                None => request,
            };
            let response = response.call().map_err(|error| self.unreachable(&error))?;
            let (status, headers) = (response.status().as_u16(), response.headers());
            let location = text(headers, "location");
            match (status, location) {
                (300..400, Some(location)) if location.starts_with('/') => {
                    url = format!("{}{location}", self.endpoint);
                    continue;
                }
                (200..400, _) => {}
                (429 | 500.., _) => {
                    let (reason, advice) = (self.busy(status), "try again later");
                    return Err(Failure::Passing { reason, advice });
                }
                _ => return Err(Failure::Refused(self.refused(file, status, headers))),
            }
            let etag = text(headers, "x-linked-etag").or_else(|| text(headers, "etag"));
            let Some(etag) =
                etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"').to_owned())
            else {
                let error = anyhow!("{file}: {url} does not say which version it has, no ETag");
                return Err(Failure::Refused(error));
            };
            let length = (status == 200).then(|| text(headers, "content-length")).flatten();
            let size = text(headers, "x-linked-size").or(length).and_then(|n| n.parse().ok());
            let is_sha256 = etag.len() == 64 && etag.bytes().all(|byte| byte.is_ascii_hexdigit());
            let sha256 = is_sha256.then(|| etag.to_lowercase());
            return Ok(Remote { url, etag, size, sha256 });
        }
        Err(Failure::Refused(anyhow!("{file}: {} redirects without end", self.endpoint)))
    }

    fn get(&self, url: &str, from: u64) -> Result<Response<Body>, Failure> {
        let mut request = self.agent.get(url);
        if let Some(token) = &self.token {
            // Not sent on to another host.
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        if from > 0 {
            request = request.header("Range", format!("bytes={from}-"));
        }
        request.call().map_err(|error| self.unreachable(&error))
    }

    /// Fetches a file to its place: through a file beside it that is kept when the fetch is cut off.
    fn download(&self, file: &HubFile, remote: &Remote, place: &Path) -> Result<()> {
        let folder = place.parent().unwrap_or(Path::new("."));
        let on_disk = |error: io::Error| on_disk(file, folder, remote.size, &error);
        fs::create_dir_all(folder).map_err(on_disk)?;
        let name = place.file_name().unwrap_or_default().to_string_lossy();
        let version: String = remote.etag.chars().filter(char::is_ascii_alphanumeric).collect();
        let part = folder.join(format!(".{name}.{version}.part"));
        let mut out = loop {
            let out = OpenOptions::new().read(true).append(true).create(true).open(&part);
            let out = out.map_err(on_disk)?;
            match out.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    eprintln!("{file}: waits for another process that fetches it");
                    out.lock().map_err(on_disk)?;
                }
                Err(TryLockError::Error(error)) => return Err(on_disk(error)),
            }
            if Kept::beside(place).is_some_and(|kept| kept.etag == remote.etag) {
                return Ok(());
            }
            if part.exists() {
                break out;
            }
        };
        self.fill(file, remote, &mut out, &on_disk)?;
        let found = sha256(&part).map_err(on_disk)?;
        if let Some(expected) = remote.sha256.as_ref().filter(|expected| **expected != found) {
            fs::remove_file(&part).map_err(on_disk)?;
            bail!(
                "{file}: the checksum differs, SHA-256 {found} where the hub says {expected}; what came is \
                 removed, try again"
            );
        }
        out.sync_all().map_err(on_disk)?;
        let size = out.metadata().map_err(on_disk)?.len();
        let said = Kept::path(place);
        if said.exists() {
            fs::remove_file(&said).map_err(on_disk)?;
        }
        fs::rename(&part, place).map_err(on_disk)?;
        let kept = Kept { etag: remote.etag.clone(), size };
        let kept = serde_json::to_vec(&kept).context("plain values")?;
        Ok(sar_weights::write_bytes(&said, &kept)?)
    }

    /// Writes what is still lacking.
    fn fill(
        &self,
        file: &HubFile,
        remote: &Remote,
        out: &mut File,
        on_disk: &impl Fn(io::Error) -> anyhow::Error,
    ) -> Result<()> {
        let bar = bar(file, remote.size);
        let (mut most, mut attempts) = (0, 0);
        loop {
            let have = out.metadata().map_err(on_disk)?.len();
            most = have.max(most);
            match remote.size {
                Some(size) if have == size => break,
                Some(size) if have > size => {
                    out.set_len(0).map_err(on_disk)?;
                    continue;
                }
                _ => {}
            }
            let cut_off = match self.get(&remote.url, have) {
                Ok(response) => match response.status().as_u16() {
                    206 if starts_at(response.headers(), have) => {
                        copy(response, out, &bar).map_err(on_disk)?
                    }
                    // All of it, whatever was asked for.
                    200 => {
                        out.set_len(0).map_err(on_disk)?;
                        copy(response, out, &bar).map_err(on_disk)?
                    }
                    206 | 416 => {
                        out.set_len(0).map_err(on_disk)?;
                        Some("it does not go on where it was cut off".into())
                    }
                    status => return Err(self.refused(file, status, response.headers())),
                },
                Err(Failure::Passing { reason, .. }) => Some(reason),
                Err(Failure::Refused(error)) => return Err(error),
            };
            let now = out.metadata().map_err(on_disk)?.len();
            if cut_off.is_none() && remote.size.is_none_or(|size| size == now) {
                break;
            }
            // More than there ever was: what begins anew each time comes to an end, too.
            attempts = if now > most { 1 } else { attempts + 1 };
            if attempts >= MOST_ATTEMPTS {
                let why = cut_off.unwrap_or("it ends early".into());
                bail!(
                    "{file}: {why}; {now} bytes have come and are kept, the same command goes on"
                );
            }
        }
        bar.finish_and_clear();
        Ok(())
    }

    fn unreachable(&self, error: &ureq::Error) -> Failure {
        Failure::Passing {
            reason: format!("{} cannot be reached ({error})", self.endpoint),
            advice: "check the network and HTTPS_PROXY, or name a downloaded file",
        }
    }

    /// That the hub has no answer now.
    fn busy(&self, status: u16) -> String {
        match status {
            429 => format!("{} asks for patience (429)", self.endpoint),
            _ => format!("{} answers with status {status}", self.endpoint),
        }
    }

    /// Why the hub does not give a file, and what to do.
    fn refused(&self, file: &HubFile, status: u16, headers: &HeaderMap) -> anyhow::Error {
        let HubFile { owner, repo, revision, path } = file;
        let page = format!("{}/{owner}/{repo}", self.endpoint);
        let code = text(headers, "x-error-code").unwrap_or_default();
        match (status, code.as_str()) {
            (401 | 403, "GatedRepo") => anyhow!(
                "{file}: is gated ({status}); ask for access at {page}, and set HF_TOKEN to a token that may \
                 read it"
            ),
            (401 | 403, _) => {
                let token = match self.token {
                    Some(_) => "the token in HF_TOKEN may not read it",
                    None => "if it is private or gated, set HF_TOKEN to a token that may read it",
                };
                anyhow!(
                    "{file}: {page} is not open to you, or not there ({status}); check the name, {token}"
                )
            }
            (404, "RevisionNotFound") => anyhow!("{file}: {page} has no revision {revision} (404)"),
            (404, "RepoNotFound") => anyhow!("{file}: there is no {page} (404); check the name"),
            (404, _) => {
                anyhow!("{file}: {page} has no file {path} at {revision} (404); check the name")
            }
            _ => anyhow!("{file}: {}; try again later", self.busy(status)),
        }
    }
}

/// Writes what comes; says why it ended if it was cut off.
fn copy(response: Response<Body>, out: &mut File, bar: &ProgressBar) -> io::Result<Option<String>> {
    let mut body = response.into_body().into_reader();
    bar.set_position(out.metadata()?.len());
    let mut chunk = vec![0; CHUNK];
    loop {
        let n = match body.read(&mut chunk) {
            Ok(0) => return Ok(None),
            Ok(n) => n,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Ok(Some(format!("the connection broke ({error})"))),
        };
        out.write_all(&chunk[..n])?;
        bar.inc(n as u64);
    }
}

/// Whether an answer to a request for a range begins there.
fn starts_at(headers: &HeaderMap, from: u64) -> bool {
    let range = text(headers, "content-range");
    range.is_some_and(|range| range.trim_start_matches("bytes ").starts_with(&format!("{from}-")))
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}

/// The SHA-256 of a file, in hexadecimal.
fn sha256(path: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    io::copy(&mut File::open(path)?, &mut hash)?;
    Ok(hash.finalize().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    }))
}

fn on_disk(file: &HubFile, folder: &Path, size: Option<u64>, error: &io::Error) -> anyhow::Error {
    let folder = folder.display();
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            let size = size.map_or(String::new(), |size| format!(" of {size} bytes"));
            anyhow!(
                "{file}: no space left for a file{size} in {folder}; make room, or set XDG_CACHE_HOME to a \
                 folder with more: what has come is kept"
            )
        }
        _ => anyhow!(
            "{file}: cannot write in {folder}: {error}; check its permissions, or set XDG_CACHE_HOME"
        ),
    }
}

/// A bar on a terminal; a line elsewhere.
fn bar(file: &HubFile, size: Option<u64>) -> ProgressBar {
    let bar = size.map_or_else(ProgressBar::no_length, ProgressBar::new);
    if bar.is_hidden() {
        let size = size.map_or(String::new(), |size| format!(", {size} bytes"));
        eprintln!("fetching {file}{size}");
        return bar;
    }
    let template = "{prefix} {bar:30} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} to go";
    let style = ProgressStyle::with_template(template).expect("a constant template");
    bar.with_style(style).with_prefix(file.to_string())
}

/// A path in a URL.
fn escaped(path: &str) -> String {
    path.bytes().fold(String::new(), |mut text, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
                text.push(byte.into());
            }
            _ => {
                let _ = write!(text, "%{byte:02X}");
            }
        }
        text
    })
}

/// The user's cache.
fn cache_folder() -> Result<PathBuf> {
    let folder =
        |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let own = match env::consts::OS {
        "windows" => folder("LOCALAPPDATA"),
        "macos" => env::home_dir().map(|home| home.join("Library/Caches")),
        _ => env::home_dir().map(|home| home.join(".cache")),
    };
    let found = folder("XDG_CACHE_HOME").or(own);
    found.context("no folder for the cache of files from a hub; set XDG_CACHE_HOME to one")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_says_what_to_do() {
        let file: HubFile = "a/b/c.pth".parse().unwrap();
        let error = io::Error::from(ErrorKind::StorageFull);
        let said = on_disk(&file, Path::new("/cache"), Some(7), &error).to_string();
        assert!(
            said.starts_with("hf:a/b/c.pth: no space left for a file of 7 bytes in /cache;"),
            "{said}"
        );
        let error = io::Error::from(ErrorKind::PermissionDenied);
        assert!(on_disk(&file, Path::new("/c"), None, &error).to_string().contains("permission"));
    }

    #[test]
    fn paths_are_escaped_and_hashes_known() {
        assert_eq!(escaped("a b/é#?.pth"), "a%20b/%C3%A9%23%3F.pth");
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "abc").unwrap();
        let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(file.path()).unwrap(), known);
    }
}
