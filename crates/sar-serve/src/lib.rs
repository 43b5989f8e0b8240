#![doc = include_str!("../README.md")]
//!
//! [`Server::bind`] takes a [`Pipeline`](sar_pipeline::Pipeline) and opens a port, [`Server::run`] answers
//! until the process ends. The model draws on a thread of its own, one job after the other; the jobs wait in
//! a queue with a bound, and show what there is after every scale. What the server answers is described in
//! `openapi.json`, which it serves itself.
//!
//! What it defends against: other pages in the user's browser (the name in `Host`, `Origin`), pictures that
//! claim to be huge, bodies and queues without an end, many bodies at once, clients that stall, and, with a token,
//! everybody who does not know it.

mod settings;

mod jobs;
mod worker;

mod runs;
mod series;

mod answers;
mod bodies;
mod guard;
mod routes;
mod server;
mod stall;

mod page;

pub use server::Server;
pub use settings::{Limits, ServeError, Settings};
