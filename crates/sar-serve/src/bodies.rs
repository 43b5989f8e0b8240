//! Bodies of requests: read whole, within a bound for each and one for all of them together.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Bytes, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::answers::Refusal;

/// So many of the longest bodies are in memory at the same time, and as many more shorter ones.
pub(crate) const MOST_BODIES: usize = 8;
/// Bytes that are counted together.
const UNIT: usize = 1 << 16;

/// The room for the bodies that are in memory.
#[derive(Debug)]
pub(crate) struct Bodies {
    room: Arc<Semaphore>,
    units: usize,
}

/// A body, and the room that it takes as long as this lives.
#[derive(Debug)]
pub(crate) struct InRoom {
    pub(crate) bytes: Bytes,
    _place: OwnedSemaphorePermit,
}

impl Bodies {
    /// With room for so many bytes.
    pub(crate) fn new(bytes: usize) -> Self {
        let units = bytes.div_ceil(UNIT);
        Self { room: Arc::new(Semaphore::new(units)), units }
    }

    /// As [`body`], of at most `most` bytes, once there is room for it: for as many bytes as it says to have, or
    /// `most`.
    pub(crate) async fn read(
        &self,
        request: Request,
        most: usize,
        patience: Duration,
    ) -> Result<InRoom, Refusal> {
        let length = checked(&request, most)?.unwrap_or(most);
        let units = length.div_ceil(UNIT).clamp(1, self.units);
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        let place = timeout(patience, Arc::clone(&self.room).acquire_many_owned(units)).await;
        let Ok(Ok(place)) = place else {
            let why = "other requests are arriving; try again in a few seconds";
            return Err(Refusal::busy(why));
        };
        Ok(InRoom { bytes: body(request, most, patience).await?, _place: place })
    }
}

/// Reads a body of JSON.
pub(crate) async fn body(
    request: Request,
    most: usize,
    patience: Duration,
) -> Result<Bytes, Refusal> {
    checked(&request, most)?;
    match timeout(patience, to_bytes(request.into_body(), most)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        // What it wraps has no public type.
        Ok(Err(error)) if error.to_string().contains("limit") => Err(too_large(most)),
        Ok(Err(_)) => Err(Refusal::bad("the request breaks off")),
        Err(_) => {
            let why = "the request takes too long to arrive";
            Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, why))
        }
    }
}

/// The length that a body of JSON says to have, if it says one.
fn checked(request: &Request, most: usize) -> Result<Option<usize>, Refusal> {
    let headers = request.headers();
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let content_type = text(header::CONTENT_TYPE).unwrap_or_default();
    if content_type.split(';').next().map(str::trim) != Some("application/json") {
        let why = "Content-Type: must be application/json";
        return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, why));
    }
    let length = text(header::CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
    match length.map(usize::try_from) {
        None => Ok(None),
        Some(Ok(length)) if length <= most => Ok(Some(length)),
        Some(_) => Err(too_large(most)),
    }
}

fn too_large(most: usize) -> Refusal {
    let why = format!("the request is larger than {most} bytes");
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, why)
}
