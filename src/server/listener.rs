//! Our own accept loop: bounded, patient with nobody, and able to end without losing a request.

use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::http::{Request, Response};
use bytes::Bytes;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tower_service::Service;

use super::app::App;
use super::socket::{Busy, Patience, Socket};

/// How long an idle connection of a server that closes may still bring a request.
const LAST_CALL: Duration = Duration::from_millis(400);
/// What a connection's buffer may hold of an answer.
const WRITE_BUFFER: usize = 64 << 10;
/// Wait after an accept that failed: the process may be out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\nconnection: close\r\n\
content-length: 126\r\n\r\n{\"error\":{\"message\":\"too many connections; try again later\",\"type\":\"server_error\",\"param\":null,\"code\":\"too_many_connections\"}}";

/// Stages of a server's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// Connections are accepted.
    Open,
    /// No more are; those that are open end with their present request.
    Closing,
    /// All are cut.
    Cut,
}

/// Keeps a connection busy until its answer has been taken or dropped.
struct BusyBody {
    body: Body,
    busy: Busy,
}

impl Drop for BusyBody {
    fn drop(&mut self) {
        self.busy.set(false);
    }
}

impl HttpBody for BusyBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Accepts until `stage` closes; returns when all connections are done.
pub(super) async fn run(
    app: Arc<App>,
    listener: TcpListener,
    router: Router,
    mut stage: watch::Receiver<Stage>,
) {
    let connections = Arc::new(());
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stage.wait_for(|stage| *stage > Stage::Open) => break,
        };
        admit(&app, accepted, &router, &stage, &connections).await;
    }
    // What the kernel had accepted before is ours too. Asked directly: the runtime knows only what its last look at the kernel showed.
    if let Ok(listener) = listener.into_std() {
        while let Some(accepted) = left(&listener) {
            admit(&app, accepted, &router, &stage, &connections).await;
        }
    }
    let mut pause = tokio::time::interval(Duration::from_millis(5));
    while Arc::strong_count(&connections) > 1 {
        pause.tick().await;
    }
}

/// A connection that waits to be accepted.
fn left(listener: &std::net::TcpListener) -> Option<io::Result<(TcpStream, SocketAddr)>> {
    loop {
        return match listener.accept() {
            Ok((stream, address)) => {
                let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
                Some(stream.map(|stream| (stream, address)))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error)
                if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted) =>
            {
                continue;
            }
            Err(error) => {
                tracing::warn!(%error, "the last connections could not be accepted");
                None
            }
        };
    }
}

async fn admit(
    app: &Arc<App>,
    accepted: io::Result<(TcpStream, SocketAddr)>,
    router: &Router,
    stage: &watch::Receiver<Stage>,
    connections: &Arc<()>,
) {
    let stream = match accepted {
        Ok((stream, _)) => stream,
        Err(error) => {
            tracing::warn!(%error, "a connection could not be accepted");
            return tokio::time::sleep(ACCEPT_PAUSE).await;
        }
    };
    if Arc::strong_count(connections) > app.options.max_connections {
        app.metrics.refused("connections");
        tokio::spawn(turn_away(stream));
        return;
    }
    // Streams are made of small pieces; each is wanted at once.
    let _ = stream.set_nodelay(true);
    let one = Arc::clone(connections);
    let connection = serve(Arc::clone(app), stream, router.clone(), stage.clone());
    tokio::spawn(async move {
        connection.await;
        drop(one);
    });
}

async fn turn_away(mut stream: TcpStream) {
    let _ = tokio::time::timeout(Duration::from_secs(1), stream.write_all(FULL)).await;
}

async fn serve(app: Arc<App>, stream: TcpStream, router: Router, mut stage: watch::Receiver<Stage>) {
    app.metrics.connections.inc();
    let (wire, busy) = (app.wires.enter(), Busy::default());
    let patience = Patience { head: app.options.receive_timeout, send: app.options.send_timeout };
    let socket = TokioIo::new(Socket::new(stream, Arc::clone(&wire), busy.clone(), patience));
    let service = service_fn(|mut request: Request<Incoming>| {
        busy.set(true);
        request.extensions_mut().insert(Arc::clone(&wire));
        let guard = busy.clone();
        let answer = router.clone().call(request.map(Body::new));
        async move {
            let Ok(response) = answer.await;
            Ok::<Response<BusyBody>, std::convert::Infallible>(
                response.map(|body| BusyBody { body, busy: guard }),
            )
        }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(app.options.idle_timeout)
        .max_buf_size(app.options.max_header_bytes.max(WRITE_BUFFER))
        .max_header_size(app.options.max_header_bytes)
        .max_headers(app.options.max_headers);
    let mut connection = pin!(builder.serve_connection(socket, service));
    // A connection that is accepted while the server closes hears of it at once.
    stage.mark_changed();
    let (mut watching, mut last_call) = (true, None);
    let ended = loop {
        tokio::select! {
            ended = connection.as_mut() => break ended,
            changed = stage.changed(), if watching => {
                watching = changed.is_ok();
                match *stage.borrow_and_update() {
                    Stage::Open => {}
                    Stage::Closing => last_call = Some(Instant::now() + LAST_CALL),
                    Stage::Cut => break Ok(()),
                }
            }
            // Closed at once, an idle connection would lose a request that is on its way; a busy one says in its answer that it is the last.
            () = tokio::time::sleep(LAST_CALL / 16), if last_call.is_some() => {
                if busy.get() || last_call.is_some_and(|end| Instant::now() >= end) {
                    last_call = None;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error = %chain(&error), "a connection ended early");
    }
    if wire.is_cut() {
        app.metrics.connections_cut.inc();
    }
    app.metrics.connections.dec();
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_written_out_answer_is_well_formed() {
        let text = std::str::from_utf8(FULL).expect("ascii");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
        let len = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
        assert_eq!(len.parse::<usize>().expect("a number"), body.len());
        assert!(serde_json::from_str::<serde_json::Value>(body).is_ok());
    }
}
