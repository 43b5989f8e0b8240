//! Where a server listens, what it shows, and how much it takes on.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

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
        match (&self.token, &self.runs) {
            (None, _) if !self.host.is_loopback() => Err(ServeError::Open(self.host)),
            (Some(token), _) if !is_fit(token) => Err(ServeError::Token),
            (_, Some(runs)) if !runs.is_dir() => Err(ServeError::Runs(runs.clone())),
            _ => Ok(()),
        }
    }
}
