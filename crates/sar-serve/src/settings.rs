//! Where a server listens, what it shows, and how much it takes on.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use axum::http::uri::Authority;
use sar_pipeline::MadeWith;
use sar_request::Bounds;

/// The shortest token: long enough that nobody guesses it.
const SHORTEST_TOKEN: usize = 16;

/// Where a server listens, and what it shows.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The address.
    pub host: IpAddr,
    /// The port; 0 for any that is free.
    pub port: u16,
    /// What a client has to know; needed beyond the loopback.
    pub token: Option<String>,
    /// What browsers call it behind a proxy with TLS, as in `https://sar.example.com`; needs a token.
    pub origin: Option<String>,
    /// The folder of runs that are shown.
    pub runs: Option<PathBuf>,
    /// The command that samples with the same weights, for people to copy.
    pub command: String,
    /// What is written into the files of pictures as their origin; none for no origin.
    pub made_with: Option<MadeWith>,
    /// How much it takes on.
    pub limits: Limits,
}

/// How much a server takes on.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Jobs that wait.
    pub queue: usize,
    /// Pictures of one job.
    pub count: usize,
    /// Pixels of all pictures of one job.
    pub pixels: usize,
    /// Tokens of all pictures of one job.
    pub tokens: usize,
    /// Pixels of a picture that is sent.
    pub sent_pixels: usize,
    /// Bytes of a request that carries a picture.
    pub body: usize,
    /// Finished jobs that are kept, and bytes of their pictures; the oldest go first.
    pub kept: usize,
    /// Bytes of the pictures that are kept.
    pub kept_bytes: usize,
    /// Connections.
    pub connections: usize,
    /// How long a request may take to arrive, and an answer to be read on.
    pub patience: Duration,
    /// How long a job goes on that nobody watches or asks for.
    pub unwatched: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 0,
            token: None,
            origin: None,
            runs: None,
            command: "sar sample".into(),
            made_with: None,
            limits: Limits::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        let Bounds { count, pixels, tokens, sent_pixels } = Bounds::default();
        Self {
            queue: 16,
            count,
            pixels,
            tokens,
            sent_pixels,
            body: 12 << 20,
            kept: 256,
            kept_bytes: 64 << 20,
            connections: 128,
            patience: Duration::from_secs(15),
            unwatched: Duration::from_secs(5),
        }
    }
}

impl Limits {
    /// Of one request.
    pub(crate) fn bounds(&self) -> Bounds {
        let Self { count, pixels, tokens, sent_pixels, .. } = *self;
        Bounds { count, pixels, tokens, sent_pixels }
    }
}

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The port cannot be opened.
    #[error("{address} cannot be listened on: {reason}; choose another --port")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        reason: std::io::Error,
    },
    /// An address that others reach needs a token.
    #[error(
        "--host {0}: others can reach it; choose a --token of {SHORTEST_TOKEN} characters or more"
    )]
    Open(IpAddr),
    /// A token that can be guessed or cannot be sent.
    #[error(
        "--token: must have {SHORTEST_TOKEN} characters or more, all of them letters, digits, - or _"
    )]
    Token,
    /// A name for others without a token.
    #[error(
        "--origin: others can reach it; choose a --token of {SHORTEST_TOKEN} characters or more"
    )]
    OriginOpen,
    /// No name of a place.
    #[error(
        "--origin {0}: write https://NAME or https://NAME:PORT, in lower case and without a path"
    )]
    Origin(String),
    /// The folder of runs is none.
    #[error("--runs {}: is no folder", .0.display())]
    Runs(PathBuf),
    /// The system gives no thread or no timer.
    #[error("the server cannot start: {0}")]
    System(std::io::Error),
}

impl Settings {
    /// Checks what can be checked before a port is opened.
    pub(crate) fn check(&self) -> Result<(), ServeError> {
        let is_fit = |token: &String| {
            let is_plain = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_';
            token.len() >= SHORTEST_TOKEN && token.bytes().all(is_plain)
        };
        if let Some(origin) = &self.origin {
            if self.token.is_none() {
                return Err(ServeError::OriginOpen);
            }
            if named(origin).is_none() {
                return Err(ServeError::Origin(origin.clone()));
            }
        }
        match (&self.token, &self.runs) {
            (None, _) if !self.host.is_loopback() => Err(ServeError::Open(self.host)),
            (Some(token), _) if !is_fit(token) => Err(ServeError::Token),
            (_, Some(runs)) if !runs.is_dir() => Err(ServeError::Runs(runs.clone())),
            _ => Ok(()),
        }
    }
}

/// The name in an origin, with its port if it has one, as browsers write it in `Host`; none if it is no origin as
/// they write it.
pub(crate) fn named(origin: &str) -> Option<&str> {
    let (name, usual) = match origin.split_once("://")? {
        ("https", name) => (name, 443),
        ("http", name) => (name, 80),
        _ => return None,
    };
    let authority: Authority = name.parse().ok()?;
    let is_plain = |c: u8| !c.is_ascii_uppercase() && c != b'@';
    let is_written_so = !authority.host().is_empty() && name.bytes().all(is_plain);
    let port = name.get(authority.host().len()..)?.strip_prefix(':');
    let is_port_fit = port.is_none_or(|port| port.parse().is_ok_and(|port: u16| port != usual));
    (is_written_so && is_port_fit).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_what_browsers_send() {
        for (origin, name) in [
            ("https://sar.example.com", "sar.example.com"),
            ("https://sar.example.com:8443", "sar.example.com:8443"),
            ("http://10.0.0.7:81", "10.0.0.7:81"),
            ("https://[2001:db8::1]", "[2001:db8::1]"),
            ("https://[2001:db8::1]:8443", "[2001:db8::1]:8443"),
        ] {
            assert_eq!(named(origin), Some(name));
        }
        for bad in [
            "",
            "*",
            "null",
            "sar.example.com",
            "https://",
            "https://:443",
            "https://sar.example.com/",
            "https://sar.example.com/sar",
            "https://sar.example.com:443",
            "http://sar.example.com:80",
            "https://sar.example.com:",
            "https://sar.example.com:x",
            "https://Sar.example.com",
            "https://user@sar.example.com",
            "https://sar.example.com?x",
            "https://a b",
            "https://a, https://b",
            "ftp://sar.example.com",
            "file:///etc",
        ] {
            assert_eq!(named(bad), None, "{bad}");
        }
    }
}
