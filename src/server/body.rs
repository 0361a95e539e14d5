//! Reading bodies under bounds: in bytes, together, and in time.

use std::sync::Arc;
use std::time::Instant;

use axum::body::{Body, HttpBody};
use axum::http::{HeaderMap, StatusCode, header};
use bytes::{Bytes, BytesMut};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout_at;

use super::app::{App, BODY_UNIT};
use super::error::ApiError;

/// A body, and its share of the memory for bodies.
pub(super) struct Received {
    pub bytes: Bytes,
    _share: OwnedSemaphorePermit,
}

fn too_large(len: impl std::fmt::Display, bound: usize) -> ApiError {
    let message = format!("a body of {len} bytes is longer than the {bound} allowed");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
}

/// Takes memory for so many bytes of body, or refuses.
pub(super) fn share(app: &App, bytes: usize) -> Result<OwnedSemaphorePermit, ApiError> {
    let units = u32::try_from(bytes.div_ceil(BODY_UNIT)).unwrap_or(u32::MAX);
    Arc::clone(&app.bodies).try_acquire_many_owned(units).map_err(|_| {
        app.metrics.refused("body_memory");
        let bound = app.options.max_body_bytes_in_flight;
        let message = format!("bodies of requests take all of the {bound} bytes allowed; try again later");
        let mut error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "overloaded", message);
        error.retry_after = Some(app.retry_after());
        error
    })
}

/// Reads a whole body: nothing is read if its length is said and too large, and no more than the bound if it is not.
pub(super) async fn receive(app: &App, headers: &HeaderMap, mut body: Body) -> Result<Received, ApiError> {
    let bound = app.options.max_body_bytes;
    let said = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if let Some(len) = said.filter(|&len| len > bound as u64) {
        return Err(too_large(len, bound));
    }
    // For what has arrived, not for what is promised: promises cost the sender nothing.
    let mut held = share(app, BODY_UNIT)?;
    let allowed = app.options.receive_timeout;
    let deadline = Instant::now() + allowed;
    let mut whole = BytesMut::new();
    loop {
        let frame = std::future::poll_fn(|cx| std::pin::Pin::new(&mut body).poll_frame(cx));
        let frame = timeout_at(deadline.into(), frame).await.map_err(|_| {
            app.metrics.refused("slow_body");
            let message = format!("the body did not arrive within {:.1} s", allowed.as_secs_f64());
            ApiError::new(StatusCode::REQUEST_TIMEOUT, "slow_body", message)
        })?;
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|error| ApiError::invalid("body", format!("broken off: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        let len = whole.len() + data.len();
        if len > bound {
            return Err(too_large(format!("at least {len}"), bound));
        }
        let more = len.saturating_sub(held.num_permits() * BODY_UNIT);
        if more > 0 {
            held.merge(share(app, more)?);
        }
        if whole.is_empty() && body.is_end_stream() {
            // The usual case: one piece, not copied.
            return Ok(Received { bytes: data, _share: held });
        }
        whole.extend_from_slice(&data);
    }
    Ok(Received { bytes: whole.freeze(), _share: held })
}
