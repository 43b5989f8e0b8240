//! The thread that draws.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use axum::body::Bytes;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use sar_pipeline::{Origin, PipelineError, RgbImage, to_png};
use serde_json::json;

use crate::Limits;
use crate::engine::{Engine, Seen, Work};
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
    let mut n_scales = 0;
    let mut status = Status::Canceled;
    if !job.is_wanted(limits.unwatched) {
        return Ok(status);
    }
    // An edit is prepared first, which takes a while.
    job.change(|state| (state.status, state.ahead) = (Status::Running, 0));
    engine.draw(work, &mut |seen| {
        match seen {
            Seen::Begins { scales, before, notes } => {
                n_scales = scales.len();
                let (last, unit) = (scales.last(), engine.unit());
                let begun = json!({
                    "scales": scales.to_string(),
                    "height": last.height * unit,
                    "width": last.width * unit,
                    "notes": notes,
                });
                let before = before.iter().map(|image| Bytes::from(to_png(image))).collect();
                job.change(|state| {
                    (state.begun, state.before) = (Some(begun), before);
                });
            }
            Seen::Scale(k, decode) => {
                let is_last = k + 1 == n_scales;
                let drawn = if work.previews || is_last { decode() } else { Vec::new() };
                let png = |(i, image): (usize, &RgbImage)| match &work.origin {
                    Some(origin) if is_last => {
                        Bytes::from(Origin { number: i, ..origin.clone() }.to_png(image))
                    }
                    _ => Bytes::from(to_png(image)),
                };
                let pictures: Vec<Bytes> = drawn.iter().enumerate().map(png).collect();
                // The last ones have addresses of their own.
                let shown = pictures.iter().filter(|_| work.previews && !is_last);
                let event = json!({
                    "scale": k + 1,
                    "of": n_scales,
                    "pictures": shown.map(|png| BASE64_STANDARD.encode(png)).collect::<Vec<_>>(),
                });
                let event = event.to_string().into();
                job.change(|state| {
                    state.scales.push(event);
                    if is_last {
                        state.pictures = pictures;
                    }
                });
                if is_last {
                    status = Status::Done;
                    return ControlFlow::Continue(());
                }
            }
        }
        match job.is_wanted(limits.unwatched) {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        }
    })?;
    Ok(status)
}
