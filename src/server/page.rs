//! The page at `/`: plain HTML and script from the binary; it asks nothing of any other host.

use axum::Router;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

fn file(kind: &'static str, text: &'static str) -> Response {
    let mut response = text.into_response();
    for (name, value) in [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // A new version of the server has a new page.
        (header::CACHE_CONTROL, "no-cache"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// The page's files.
pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let page = || async { file("text/html; charset=utf-8", include_str!("page/index.html")) };
    let script = || async { file("text/javascript; charset=utf-8", include_str!("page/page.js")) };
    let style = || async { file("text/css; charset=utf-8", include_str!("page/page.css")) };
    Router::new().route("/", get(page)).route("/page.js", get(script)).route("/page.css", get(style))
}
