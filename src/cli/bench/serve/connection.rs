//! One connection to the server: a request after another, and when what of the answer came.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::answer::Seen;
use super::http::{Head, ResponseParser};
use super::sse::SseParser;
use super::target::Target;

/// Bytes read at once.
const BUFFER: usize = 16 << 10;
/// Most bytes of a body that is not streamed.
const MAX_BODY: usize = 64 << 20;

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// A whole answer.
    Done,
    /// The server has too much to do (429).
    Refused,
    /// Dropped by us on purpose.
    Cancelled,
    /// Anything else.
    Failed(String),
}

/// A request that has ended; times are those when bytes had been read.
#[derive(Debug)]
pub struct Exchange {
    /// How.
    pub end: End,
    /// Status code; 0 if there was none.
    pub status: u16,
    /// Whether a refusal said when to come again.
    pub retry_after: bool,
    /// When the request was written.
    pub sent: Instant,
    /// When the answer was complete.
    pub finished: Instant,
}

/// What is read of an answer, and when it came: no socket.
#[derive(Debug, Default)]
pub struct Reading {
    sse: SseParser,
    body: Vec<u8>,
    /// What the answer said.
    pub seen: Seen,
    /// When each piece with content of a stream came.
    pub pieces: Vec<Instant>,
    /// When each item of a stream came.
    pub items: Vec<Instant>,
    /// When the stream said that it ends.
    pub finished: Option<Instant>,
    streamed: bool,
    error: Option<String>,
}

impl Reading {
    fn reset(&mut self) {
        self.sse.reset();
        self.body.clear();
        self.seen.reset();
        self.pieces.clear();
        self.items.clear();
        (self.finished, self.streamed, self.error) = (None, false, None);
    }

    /// Takes bytes of a body that were read at a time.
    pub fn take(&mut self, head: Head, bytes: &[u8], now: Instant) {
        self.streamed = head.event_stream && head.status == 200;
        if !self.streamed {
            if self.body.len() + bytes.len() > MAX_BODY {
                self.error = Some(format!("the body has more than {MAX_BODY} bytes"));
                return;
            }
            return self.body.extend_from_slice(bytes);
        }
        let Reading { sse, seen, pieces, items, finished, error, .. } = self;
        let fed = sse.feed(bytes, |name, data| match seen.event(name, data) {
            Ok(piece) => {
                if piece.content {
                    pieces.push(now);
                }
                items.resize(items.len() + piece.items, now);
                if seen.finished && finished.is_none() {
                    *finished = Some(now);
                }
            }
            Err(message) => {
                error.get_or_insert(message);
            }
        });
        if let Err(message) = fed {
            error.get_or_insert(message);
        }
    }

    /// What a complete response amounts to.
    fn end(&mut self, head: Head) -> End {
        match head.status {
            429 => End::Refused,
            200 => match self.verdict() {
                Ok(()) => End::Done,
                Err(message) => End::Failed(message),
            },
            status => End::Failed(format!("HTTP {status}: {}", Seen::error_of(&self.body))),
        }
    }

    fn verdict(&mut self) -> Result<(), String> {
        if !self.streamed && self.error.is_none() {
            self.seen.whole(&self.body)?;
        }
        self.fault()?;
        if !self.seen.finished {
            return Err("the stream ended without its end mark".to_owned());
        }
        Ok(())
    }

    /// The error that the body or the stream told of.
    fn fault(&self) -> Result<(), String> {
        if let Some(error) = &self.seen.error {
            return Err(format!("in the answer: {error}"));
        }
        self.error.clone().map_or(Ok(()), Err)
    }
}

/// A connection that is opened when it is needed and kept.
pub struct Connection {
    stream: Option<TcpStream>,
    buffer: Vec<u8>,
    parser: ResponseParser,
    /// The answer being read, or read last.
    pub reading: Reading,
    /// How often it was opened.
    pub opened: u64,
}

impl Connection {
    /// A connection that is not open yet.
    pub fn new() -> Connection {
        Connection {
            stream: None,
            buffer: vec![0; BUFFER],
            parser: ResponseParser::default(),
            reading: Reading::default(),
            opened: 0,
        }
    }

    /// Sends a request and reads the answer; one that is streamed is dropped after `cancel_after` pieces with content. What takes longer
    /// than `timeout` fails.
    pub async fn exchange(
        &mut self,
        target: &Target,
        request: &[u8],
        cancel_after: Option<usize>,
        timeout: Duration,
    ) -> Exchange {
        self.parser.reset();
        self.reading.reset();
        let begun = Instant::now();
        let mut exchange =
            Exchange { end: End::Done, status: 0, retry_after: false, sent: begun, finished: begun };
        let run = self.run(target, request, cancel_after, &mut exchange.sent);
        exchange.end = match tokio::time::timeout(timeout, run).await {
            Ok(Ok(end)) => end,
            // The stream may have said why it breaks off.
            Ok(Err(message)) => End::Failed(self.reading.fault().err().unwrap_or(message)),
            Err(_) => End::Failed(format!("no whole answer within {} s", timeout.as_secs_f64())),
        };
        exchange.finished = self.reading.finished.unwrap_or_else(Instant::now);
        let head = self.parser.head().unwrap_or_default();
        (exchange.status, exchange.retry_after) = (head.status, head.retry_after);
        if !(self.parser.is_done() && head.keep_alive) {
            self.stream = None;
        }
        exchange
    }

    async fn run(
        &mut self,
        target: &Target,
        request: &[u8],
        cancel_after: Option<usize>,
        sent: &mut Instant,
    ) -> Result<End, String> {
        self.open(target).await?;
        let Connection { stream: Some(stream), buffer, parser, reading, .. } = self else {
            return Err("not connected".to_owned());
        };
        *sent = Instant::now();
        // A server may refuse before it has read everything: its answer counts more than the broken pipe.
        let written = stream.write_all(request).await;
        while !parser.is_done() {
            let count = match stream.read(buffer).await {
                Ok(0) if parser.end() => break,
                Ok(0) => return Err(broken_off(parser, written.err())),
                Ok(count) => count,
                Err(error) => return Err(format!("{}: {error}", broken_off(parser, written.err()))),
            };
            let now = Instant::now();
            let used = parser.feed(&buffer[..count], |head, bytes| reading.take(head, bytes, now))?;
            if used < count {
                return Err("bytes behind the end of the response".to_owned());
            }
            if cancel_after.is_some_and(|after| reading.pieces.len() >= after) && !parser.is_done() {
                return Ok(End::Cancelled);
            }
        }
        match parser.head() {
            Some(head) => Ok(reading.end(head)),
            None => Err("no head".to_owned()),
        }
    }

    /// Opens the connection unless it is open and silent.
    async fn open(&mut self, target: &Target) -> Result<(), String> {
        if let Some(stream) = &self.stream {
            let mut byte = [0];
            match stream.try_read(&mut byte) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                // Closed by the server while it was idle, or out of step.
                _ => self.stream = None,
            }
        }
        let connected = TcpStream::connect(target.address).await;
        let stream = connected.map_err(|error| format!("connecting to {}: {error}", target.address))?;
        stream.set_nodelay(true).map_err(|error| format!("TCP_NODELAY: {error}"))?;
        self.stream = Some(stream);
        self.opened += 1;
        Ok(())
    }

    /// The body of the last answer, unless it was streamed.
    pub fn body(&self) -> &[u8] {
        &self.reading.body
    }
}

fn broken_off(parser: &ResponseParser, written: Option<std::io::Error>) -> String {
    match (parser.head(), written) {
        (Some(_), _) => "the connection ended within the answer".to_owned(),
        (None, None) => "the connection ended before the answer".to_owned(),
        (None, Some(error)) => format!("the request could not be written: {error}"),
    }
}
