//! The thread that draws.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use axum::body::Bytes;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use sar_pipeline::PipelineError;
use sar_request::{Engine, Told, Work};
use serde_json::json;

use crate::Limits;
use crate::jobs::{Job, Jobs, Status};

/// Draws one job after the other until the server ends.
pub(crate) fn work(jobs: &Jobs, engine: &dyn Engine, limits: &Limits) {
    while let Some(job) = jobs.next() {
        let Some(work) = job.take_work() else {
            jobs.finished();
            continue;
        };
        // A fault in one job ends neither the server nor other jobs.
        let outcome = catch_unwind(AssertUnwindSafe(|| draw(&job, &work, engine, limits)));
        drop(work);
        let (status, error) = match outcome {
            Ok(Ok(Status::Canceled)) => (Status::Canceled, Some(job.why_unwanted().to_owned())),
            Ok(Ok(status)) => (status, None),
            Ok(Err(error)) => (Status::Failed, Some(error.to_string())),
            Err(_) => {
                let why = "a fault in the program; what it said is where the server runs";
                (Status::Failed, Some(why.into()))
            }
        };
        // Put away before anybody is told.
        jobs.finished();
        job.end(status, error);
    }
}

fn draw(
    job: &Arc<Job>,
    work: &Work,
    engine: &dyn Engine,
    limits: &Limits,
) -> Result<Status, PipelineError> {
    if !job.is_wanted(limits.unwatched) {
        return Ok(Status::Canceled);
    }
    // An edit is prepared first, which takes a while.
    job.change(|state| (state.status, state.ahead) = (Status::Running, 0));
    let is_done = sar_request::draw(engine, work, &mut |told| {
        match told {
            Told::Begins { about, before } => {
                let before = before.into_iter().map(Bytes::from).collect();
                job.change(|state| (state.begun, state.before) = (Some(about), before));
            }
            Told::Scale { scale, of, pictures } => {
                let is_last = scale == of;
                // The last ones have addresses of their own.
                let shown = pictures.iter().filter(|_| !is_last);
                let event = json!({
                    "scale": scale,
                    "of": of,
                    "pictures": shown.map(|png| BASE64_STANDARD.encode(png)).collect::<Vec<_>>(),
                });
                let event = event.to_string().into();
                job.change(|state| {
                    state.scales.push(event);
                    if is_last {
                        state.pictures = pictures.into_iter().map(Bytes::from).collect();
                    }
                });
            }
        }
        match job.is_wanted(limits.unwatched) {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        }
    })?;
    Ok(if is_done { Status::Done } else { Status::Canceled })
}
