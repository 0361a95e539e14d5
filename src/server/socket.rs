//! A connection that gives up on peers that neither send nor read, and that sends nothing past a fence.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

use super::fence::Wire;

/// Whether a request of the connection is being answered.
#[derive(Clone, Debug, Default)]
pub(super) struct Busy(Arc<AtomicBool>);

impl Busy {
    pub fn set(&self, busy: bool) {
        self.0.store(busy, Ordering::Release);
    }

    pub fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// How long a peer may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// From the first byte of a request to the end of its head.
    pub head: Duration,
    /// Between two pieces that the peer's window takes.
    pub send: Duration,
}

/// A TCP connection under time limits.
pub(super) struct Socket {
    stream: TcpStream,
    wire: Arc<Wire>,
    busy: Busy,
    patience: Patience,
    /// Runs while the head of a request has begun and not ended.
    head: Option<Pin<Box<Sleep>>>,
    /// Runs while the peer takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Socket {
    pub fn new(stream: TcpStream, wire: Arc<Wire>, busy: Busy, patience: Patience) -> Socket {
        Socket { stream, wire, busy, patience, head: None, stalled: None }
    }
}

fn timed_out(what: &str, after: Duration) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("the peer {what} for {:.1} s", after.as_secs_f64()))
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buffer);
        if this.busy.get() {
            // Bodies have a limit of their own.
            this.head = None;
            return read;
        }
        if read.is_ready() && buffer.filled().len() > before && this.head.is_none() {
            this.head = Some(Box::pin(sleep(this.patience.head)));
        }
        if let (Some(head), true) = (&mut this.head, read.is_pending()) {
            ready!(head.as_mut().poll(cx));
            return Poll::Ready(Err(timed_out("left a request unfinished", this.patience.head)));
        }
        read
    }
}

impl Socket {
    /// What a write came to, under the limit on stalls.
    fn watched<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let send = self.patience.send;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(send)));
        ready!(stalled.as_mut().poll(cx));
        // The timer may be polled again before the connection is dropped.
        stalled.as_mut().reset(Instant::now());
        Poll::Ready(Err(timed_out("took no byte of its answer", send)))
    }
}

/// Writes unless the connection has been cut.
fn fenced<T>(wire: &Wire, write: impl FnOnce() -> Poll<io::Result<T>>) -> Poll<io::Result<T>> {
    let state = wire.lock();
    if state.cut {
        let cut = "an item of the answer was denied before it was sent";
        return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, cut)));
    }
    write()
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let written = fenced(&this.wire, || Pin::new(&mut this.stream).poll_write(cx, bytes));
        this.watched(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let written = fenced(&this.wire, || Pin::new(&mut this.stream).poll_write_vectored(cx, pieces));
        this.watched(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// Asked for once the connection's own buffers are empty: everything announced is out.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = ready!(Pin::new(&mut self.stream).poll_flush(cx));
        self.wire.lock().sent();
        Poll::Ready(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
