//! Sampling, editing and watching runs over HTTP, and the page that does it in a browser.
//!
//! [`Server::bind`] takes a [`Pipeline`](sar_pipeline::Pipeline) and opens a port, [`Server::run`] answers
//! until the process ends. The model draws on a thread of its own, one job after the other; the jobs wait in
//! a queue with a bound, and show what there is after every scale. What the server answers is described in
//! `openapi.json`, which it serves itself.
//!
//! What it defends against: other pages in the user's browser (the name in `Host`, `Origin`), pictures that
//! claim to be huge, bodies and queues without an end, clients that stall, and, with a token, everybody who
//! does not know it. It does not encrypt: beyond a trusted network, put a proxy with TLS in front.
//!
//! ```no_run
//! use burn_flex::Flex;
//! use sar_pipeline::Pipeline;
//! use sar_serve::{Server, Settings};
//!
//! let pipeline = Pipeline::<Flex>::open_run("runs/emoji-quick".as_ref(), &Default::default())?;
//! let server = Server::bind(pipeline, Settings::default())?;
//! println!("{}", server.url());
//! server.run()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod settings;

mod engine;
mod request;

mod jobs;
mod worker;

mod runs;
mod series;

mod answers;
mod guard;
mod routes;
mod server;
mod stall;

mod page;

pub use server::Server;
pub use settings::{Limits, ServeError, Settings};
