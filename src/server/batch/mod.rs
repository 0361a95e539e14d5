//! `POST /v1/batch`: lines of JSON in, lines of JSON out, in order, as they are ready.
//!
//! The body is read as its answers are taken, so that files of any length pass through bounded memory: at most [`AHEAD`] lines are in work.
//! An overloaded engine makes a batch wait; its lines are not refused. A client that was cut off counts the lines that it has got and sends
//! the same file again with `?skip=N`.

mod lines;
mod work;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, ready};
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, HttpBody};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use hyper::body::Frame;
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinHandle;
use tokio::time::timeout;

pub(super) use self::lines::BatchLine;
use self::work::{Line, answer};
use super::app::{App, BODY_UNIT};
use super::body::share;
use super::error::ApiError;
use super::observe::Context;
use super::reply::Fence;

/// Lines in work at one time: enough to fill the engine's batches.
const AHEAD: usize = 64;

/// Wait before memory is asked for again.
const MEMORY_PAUSE: Duration = Duration::from_millis(20);

/// Where to begin.
#[derive(Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct BatchQuery {
    /// Lines that were answered already.
    #[serde(default)]
    skip: u64,
}

/// A line in work, or why no more are read: the answer then breaks off, so that its reader knows that it is not whole.
type Item = Result<Work, io::Error>;

/// A line in work; dropping it cancels the work.
struct Work(JoinHandle<Line>);

impl Drop for Work {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// `POST /v1/batch`.
pub(super) async fn batch(
    State(app): State<Arc<App>>,
    Extension(context): Extension<Arc<Context>>,
    query: Result<Query<BatchQuery>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let Query(BatchQuery { skip }) = query.map_err(|error| ApiError::invalid("query", error.body_text()))?;
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let media = kind.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    if !["application/jsonl", "application/x-ndjson", "application/json"].contains(&media.as_str()) {
        let message = format!("Content-Type is {kind:?}; expected application/jsonl");
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not_json", message));
    }
    // A request is answered while it is read: the deadline is each line's own.
    let (sender, receiver) = mpsc::channel(AHEAD);
    let fence = Fence { wire: context.wire.clone(), deny: app.deny_list().cloned() };
    tokio::spawn(read(app, context, body, skip, sender));
    let answers = Answers { lines: receiver, next: None, broken: None, fence };
    let mut response = Response::new(Body::new(answers));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/jsonl"));
    Ok(response)
}

/// Reads lines and has them worked on; ends when the reader of the answers is gone.
async fn read(app: Arc<App>, context: Arc<Context>, mut body: Body, skip: u64, lines: mpsc::Sender<Item>) {
    let mut rest = BytesMut::new();
    // The unfinished line's share of the memory for bodies.
    let mut held: Option<OwnedSemaphorePermit> = None;
    let mut number = 0u64;
    loop {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx));
        let frame = tokio::select! {
            frame = timeout(app.options.idle_timeout, frame) => frame,
            () = lines.closed() => return,
        };
        let (data, end) = match frame {
            Ok(Some(Ok(frame))) => (frame.into_data().unwrap_or_default(), false),
            Ok(None) => (Bytes::new(), true),
            Ok(Some(Err(_))) => return,
            Err(_) => {
                let idle = io::Error::new(io::ErrorKind::TimedOut, "no line came in time");
                let _ = lines.send(Err(idle)).await;
                return;
            }
        };
        let from = rest.len();
        if !hold(&app, from + data.len(), &mut held, &lines).await {
            return;
        }
        rest.extend_from_slice(&data);
        let mut searched = from;
        while let Some(at) = rest[searched..].iter().position(|&byte| byte == b'\n') {
            let line = rest.split_to(searched + at + 1).freeze();
            searched = 0;
            let own = held.as_mut().and_then(|held| held.split(line.len() / BODY_UNIT));
            if !hand_over(&app, &context, (line, own), &mut number, skip, &lines).await {
                return;
            }
        }
        let bound = app.options.max_body_bytes;
        if rest.len() > bound {
            let message = format!("a line of more than the {bound} bytes allowed; the batch ends here");
            let error = ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "line_too_large", message);
            let _ = lines.send(Ok(Work(tokio::spawn(async move { Line::error(&error) })))).await;
            let _ = lines.send(Err(io::Error::other("a line is too long"))).await;
            return;
        }
        if end {
            let line = rest.split().freeze();
            hand_over(&app, &context, (line, held), &mut number, skip, &lines).await;
            return;
        }
    }
}

/// Makes `held` cover so many bytes. False: nobody waits for the answer any more, or no memory came in time and they were told;
/// without a bound two batches with half a line each could wait for one another for ever.
async fn hold(
    app: &App,
    bytes: usize,
    held: &mut Option<OwnedSemaphorePermit>,
    lines: &mpsc::Sender<Item>,
) -> bool {
    let lacking = bytes.saturating_sub(held.as_ref().map_or(0, |held| held.num_permits() * BODY_UNIT));
    if lacking == 0 {
        return true;
    }
    match timeout(app.options.idle_timeout, wait_for_share(app, lacking, lines)).await {
        Ok(Some(more)) => match held {
            Some(held) => held.merge(more),
            None => *held = Some(more),
        },
        Ok(None) => return false,
        Err(_) => {
            let full = io::Error::new(io::ErrorKind::OutOfMemory, "bodies take all memory allowed");
            let _ = lines.send(Err(full)).await;
            return false;
        }
    }
    true
}

/// Memory for so many bytes; as everything else of a batch this waits, and is not refused. `None`: nobody waits for the answer.
async fn wait_for_share(app: &App, bytes: usize, lines: &mpsc::Sender<Item>) -> Option<OwnedSemaphorePermit> {
    loop {
        if let Ok(share) = share(app, bytes) {
            return Some(share);
        }
        tokio::select! {
            () = tokio::time::sleep(MEMORY_PAUSE) => {}
            () = lines.closed() => return None,
        }
    }
}

/// Begins the work on a line. `false`: nobody waits for it.
async fn hand_over(
    app: &Arc<App>,
    context: &Arc<Context>,
    (line, own): (Bytes, Option<OwnedSemaphorePermit>),
    number: &mut u64,
    skip: u64,
    lines: &mpsc::Sender<Item>,
) -> bool {
    if line.trim_ascii().is_empty() {
        return true;
    }
    *number += 1;
    if *number <= skip {
        return true;
    }
    // First a place in the order, then the work: this is what bounds it.
    let Ok(place) = lines.reserve().await else { return false };
    let (app, context) = (Arc::clone(app), Arc::clone(context));
    place.send(Ok(Work(tokio::spawn(async move {
        let answered = answer(&app, &context, line).await;
        drop(own);
        answered
    }))));
    true
}

/// The lines of answers, in order.
struct Answers {
    lines: mpsc::Receiver<Item>,
    next: Option<Work>,
    broken: Option<io::Error>,
    fence: Fence,
}

impl HttpBody for Answers {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = &mut *self;
        if let Some(error) = this.broken.take() {
            return Poll::Ready(Some(Err(error)));
        }
        if this.next.is_none() {
            this.next = match ready!(this.lines.poll_recv(cx)) {
                Some(Ok(work)) => Some(work),
                Some(Err(error)) => {
                    // What was handed over is written first: an error at once would take it along.
                    this.broken = Some(error);
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                None => None,
            };
        }
        let Some(work) = &mut this.next else { return Poll::Ready(None) };
        let line = ready!(Pin::new(&mut work.0).poll(cx));
        this.next = None;
        let Line { mut json, items } = line.unwrap_or_else(|_| Line::error(&ApiError::bug()));
        json.push(b'\n');
        Poll::Ready(Some(this.fence.passes(&items).map(|()| Frame::data(json.into()))))
    }
}
