//! Around every route: who asks, under which id, what came of it.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, PoisonError};
use std::task::Poll;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::app::App;
use super::error::ApiError;
use super::fence::Wire;
use super::keys::Caller;

/// Routes that need no key: they tell nothing but whether the server lives.
const OPEN: [&str; 2] = ["/livez", "/readyz"];
/// Longest `x-request-id` that is taken over.
const MAX_ID_BYTES: usize = 128;
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Who asks, under which id, over which connection.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub request_id: Arc<str>,
    pub trace: Trace,
    pub caller: Caller,
    /// The connection, if it is one of our own listener's.
    pub wire: Option<Arc<Wire>>,
    pub started: Instant,
}

/// W3C trace context, version 00.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trace {
    pub trace_id: u128,
    pub span_id: u64,
    pub flags: u8,
}

impl Trace {
    /// Our own span of the caller's trace, or of a new one.
    fn enter(headers: &HeaderMap) -> Trace {
        let own = random();
        match headers.get(TRACEPARENT).and_then(|value| Trace::parse(value.to_str().ok()?)) {
            Some(theirs) => Trace { span_id: own, ..theirs },
            None => Trace { trace_id: u128::from(random()) << 64 | u128::from(own), span_id: own, flags: 0 },
        }
    }

    fn parse(text: &str) -> Option<Trace> {
        let mut parts = text.split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let hex = |part: &str, len| {
            part.len() == len && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        // Later versions may be longer.
        if !hex(version, 2) || version == "ff" || (version == "00" && parts.next().is_some()) {
            return None;
        }
        if !hex(trace, 32) || !hex(span, 16) || !hex(flags, 2) {
            return None;
        }
        let trace = Trace {
            trace_id: u128::from_str_radix(trace, 16).ok()?,
            span_id: u64::from_str_radix(span, 16).ok()?,
            flags: u8::from_str_radix(flags, 16).ok()?,
        };
        (trace.trace_id != 0 && trace.span_id != 0).then_some(trace)
    }

    /// The trace's id as logs write it.
    pub fn id(&self) -> String {
        format!("{:032x}", self.trace_id)
    }

    fn header(&self) -> String {
        format!("00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, self.flags)
    }
}

/// A number that no other request of any process is likely to get; never 0.
pub(super) fn random() -> u64 {
    static SEED: LazyLock<u64> = LazyLock::new(|| {
        use std::hash::{BuildHasher, Hasher};
        std::hash::RandomState::new().build_hasher().finish()
    });
    static COUNT: AtomicU64 = AtomicU64::new(0);
    xxh3_64_with_seed(&COUNT.fetch_add(1, Ordering::Relaxed).to_le_bytes(), *SEED).max(1)
}

fn request_id(headers: &HeaderMap) -> Arc<str> {
    let given = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
    match given {
        Some(id) if (1..=MAX_ID_BYTES).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic()) => {
            id.into()
        }
        _ => format!("req-{:016x}", random()).into(),
    }
}

/// Lets a request in, or tells it that it lacks a key.
pub(super) async fn public(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    around(app, request, next, false).await
}

/// As [`public`], for callers with an admin key.
pub(super) async fn admin(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    around(app, request, next, true).await
}

async fn around(app: Arc<App>, mut request: Request, next: Next, admin: bool) -> Response {
    let started = Instant::now();
    let headers = request.headers();
    let (request_id, trace) = (request_id(headers), Trace::enter(headers));
    let handler =
        handler(&app, request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str));
    let open = OPEN.contains(&request.uri().path());
    let caller = app.keys.caller(headers);
    let wire = request.extensions().get::<Arc<Wire>>().cloned();
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let response = match caller {
        None if !open => {
            app.metrics.refused("key");
            let message = "a key is needed: Authorization: Bearer KEY";
            ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message).into_response()
        }
        _ if admin && from_elsewhere(request.headers()) => {
            app.metrics.refused("origin");
            let message = "a page of another origin may not change the server";
            ApiError::new(StatusCode::FORBIDDEN, "other_origin", message).into_response()
        }
        Some(caller) if admin && !open && !caller.admin => {
            app.metrics.refused("key");
            let message = "this listener is for keys of the section [admin]";
            ApiError::new(StatusCode::FORBIDDEN, "not_an_admin_key", message).into_response()
        }
        caller => {
            let caller = caller.unwrap_or(Caller { name: None, admin: false });
            let context = Context { request_id: Arc::clone(&request_id), trace, caller, wire, started };
            request.extensions_mut().insert(Arc::new(context));
            caught(next.run(request)).await
        }
    };
    finish(&app, response, &handler, &request_id, trace, || {
        let status_ms = started.elapsed().as_secs_f64() * 1e3;
        tracing::debug!(%request_id, trace_id = %trace.id(), %method, path, ms = status_ms, "served");
    })
}

fn finish(
    app: &App,
    mut response: Response,
    handler: &Arc<str>,
    request_id: &str,
    trace: Trace,
    log: impl FnOnce(),
) -> Response {
    app.metrics.served(handler, response.status().as_u16());
    if response.status().is_server_error() && response.status() != StatusCode::SERVICE_UNAVAILABLE {
        tracing::warn!(request_id, status = response.status().as_u16(), "a request failed");
    }
    log();
    let headers = response.headers_mut();
    if app.is_draining() {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    for (name, value) in [(REQUEST_ID, request_id), (TRACEPARENT, &trace.header())] {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    }
    response
}

/// Whether a browser sends this for a page of another origin: such requests carry the page's.
fn from_elsewhere(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else { return false };
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
    host.is_none() || origin.map(|(_, authority)| authority) != host
}

/// The route's name, one copy for all requests.
fn handler(app: &App, path: &str) -> Arc<str> {
    let mut handlers = app.handlers.lock().unwrap_or_else(PoisonError::into_inner);
    match handlers.get(path) {
        Some(name) => Arc::clone(name),
        // Matched paths only: their number is that of the routes.
        None => Arc::clone(handlers.entry(path.to_owned()).or_insert_with(|| path.into())),
    }
}

/// Turns a panic, which is a bug of ours, into an answer: the connection and its neighbours live on.
async fn caught(work: impl Future<Output = Response>) -> Response {
    let mut work = std::pin::pin!(work);
    std::future::poll_fn(|cx| {
        let polled = std::panic::catch_unwind(AssertUnwindSafe(|| Pin::new(&mut work).poll(cx)));
        polled.unwrap_or_else(|_| {
            tracing::error!("a route panicked");
            let error = ApiError::bug();
            Poll::Ready(error.into_response())
        })
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_are_those_of_the_standard() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let trace = Trace::parse(text).expect("valid");
        assert_eq!(trace.header(), text);
        assert_eq!(trace.id(), "0af7651916cd43dd8448eb211c80319c");
        assert!(Trace::parse(&text.replacen("00", "cc", 1)).is_some(), "a later version");
        assert!(Trace::parse(&format!("cc{}-more", &text[2..])).is_some(), "a longer later version");
        for bad in [
            "",
            "00",
            &text[..54],
            &text.to_uppercase(),
            &text.replacen("00", "ff", 1),
            &format!("{text}-more"),
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319g-b7ad6b7169203331-01",
        ] {
            assert_eq!(Trace::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn ids_of_callers_are_kept_if_they_are_harmless() {
        let id = |value: &'static [u8]| {
            request_id(&HeaderMap::from_iter([(
                REQUEST_ID,
                HeaderValue::from_bytes(value).expect("a header"),
            )]))
        };
        assert_eq!(&*id(b"abc-123"), "abc-123");
        for bad in [&b""[..], b"two words", b"\xff\xfe", &[b'x'; MAX_ID_BYTES + 1]] {
            assert!(id(bad).starts_with("req-"), "{bad:?}");
        }
        assert_ne!(request_id(&HeaderMap::new()), request_id(&HeaderMap::new()));
    }
}
