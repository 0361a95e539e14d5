//! Bodies of answers that name items: whole ones, and streams of server-sent events.
//!
//! Nothing is handed to a connection before its items were announced to the connection's fence and the deny list was asked once more.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep};

use super::call::{Answering, too_late, watchdog};
use super::error::ApiError;
use super::fence::Wire;
use crate::catalog::DenyList;
use crate::engine::Event;

/// A stream in which nothing happens says so this often: intermediaries close silent connections.
const SILENCE: Duration = Duration::from_secs(15);

/// Where an answer goes, and what it may not name.
#[derive(Clone, Default)]
pub(super) struct Fence {
    pub wire: Option<Arc<Wire>>,
    pub deny: Option<Arc<DenyList>>,
}

impl Fence {
    /// Whether bytes that name these items may be handed over now.
    pub fn passes(&self, items: &[String]) -> io::Result<()> {
        let Some(deny) = self.deny.as_ref().filter(|_| !items.is_empty()) else { return Ok(()) };
        let passes = match &self.wire {
            Some(wire) => wire.announce(items, deny),
            None => !items.iter().any(|id| deny.contains(id)),
        };
        if passes {
            return Ok(());
        }
        Err(io::Error::other("an item of the answer was denied while it was written"))
    }
}

/// A whole answer.
struct Whole {
    bytes: Option<Bytes>,
    items: Vec<String>,
    fence: Fence,
}

impl HttpBody for Whole {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = &mut *self;
        let bytes = this.bytes.take();
        Poll::Ready(bytes.map(|bytes| this.fence.passes(&this.items).map(|()| Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}

/// An answer of JSON that names these items.
pub(super) fn whole(json: Vec<u8>, items: Vec<String>, fence: Fence) -> Response {
    let mut response = Response::new(Body::new(Whole { bytes: Some(json.into()), items, fence }));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Server-sent events, and the items that they name.
#[derive(Default)]
pub(super) struct Sse {
    bytes: Vec<u8>,
    items: Vec<String>,
}

impl Sse {
    /// Adds an event; JSON has no line breaks of its own.
    pub fn push(&mut self, event: Option<&str>, json: &[u8]) {
        if let Some(event) = event {
            self.bytes.extend_from_slice(b"event: ");
            self.bytes.extend_from_slice(event.as_bytes());
            self.bytes.push(b'\n');
        }
        self.bytes.extend_from_slice(b"data: ");
        self.bytes.extend_from_slice(json);
        self.bytes.extend_from_slice(b"\n\n");
    }

    /// Says which items the events name.
    pub fn names(&mut self, items: impl IntoIterator<Item = String>) {
        self.items.extend(items);
    }
}

/// What a route makes of the engine's events.
pub(super) trait Encode: Send + 'static {
    /// Writes an event of one of the requests.
    fn event(&mut self, choice: usize, event: &Event, out: &mut Sse);
    /// Writes what follows when all requests are answered.
    fn end(&mut self, out: &mut Sse);
    /// Writes an error, after which nothing follows.
    fn failed(&mut self, error: &ApiError, out: &mut Sse);
}

/// A stream of events; dropping it cancels what is not answered yet.
struct Streaming {
    answering: Vec<Option<Answering>>,
    encode: Box<dyn Encode>,
    fence: Fence,
    ended: bool,
    silence: Pin<Box<Sleep>>,
    /// Goes off if the engine does not end the request in time.
    watchdog: Pin<Box<Sleep>>,
}

impl Streaming {
    /// Writes what has come.
    fn gather(&mut self, cx: &mut TaskContext<'_>, out: &mut Sse) {
        for (choice, slot) in self.answering.iter_mut().enumerate() {
            while let Some(answering) = slot {
                match answering.poll_event(cx) {
                    Poll::Pending => break,
                    Poll::Ready(None) => *slot = None,
                    Poll::Ready(Some(Ok(event))) => self.encode.event(choice, &event, out),
                    Poll::Ready(Some(Err(error))) => {
                        self.encode.failed(&error.into(), out);
                        self.ended = true;
                        break;
                    }
                }
            }
            if self.ended {
                break;
            }
        }
        if self.ended {
            // One error ends all answers of the request.
            self.answering.clear();
        } else if self.answering.iter().all(Option::is_none) {
            self.encode.end(out);
            self.ended = true;
        }
    }
}

impl HttpBody for Streaming {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        let mut out = Sse::default();
        this.gather(cx, &mut out);
        if !this.ended && this.watchdog.as_mut().poll(cx).is_ready() {
            this.encode.failed(&too_late().into(), &mut out);
            (this.ended, this.answering) = (true, Vec::new());
        }
        if out.bytes.is_empty() {
            if this.ended {
                return Poll::Ready(None);
            }
            if this.silence.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            out.bytes.extend_from_slice(b": still at work\n\n");
        }
        this.silence.as_mut().reset(Instant::now() + SILENCE);
        if let Err(error) = this.fence.passes(&out.items) {
            (this.ended, this.answering) = (true, Vec::new());
            return Poll::Ready(Some(Err(error)));
        }
        Poll::Ready(Some(Ok(Frame::data(out.bytes.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

/// An answer that is sent as it is made.
pub(super) fn stream(
    answering: Vec<Answering>,
    deadline: std::time::Instant,
    encode: Box<dyn Encode>,
    fence: Fence,
) -> Response {
    let answering = answering.into_iter().map(Some).collect();
    let silence = Box::pin(sleep(SILENCE));
    let watchdog = watchdog(deadline);
    let streaming = Streaming { answering, encode, fence, ended: false, silence, watchdog };
    let mut response = Response::new(Body::new(streaming));
    for (name, value) in [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-cache"),
        // Proxies of nginx's kind would otherwise collect the events.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}
