//! Responses of HTTP/1.1, in whatever pieces they arrive: no socket, no copy of the body.

/// Most bytes of a head, and of the trailers.
const MAX_HEAD: usize = 64 << 10;
/// Most bytes of the line that gives a chunk's size.
const MAX_CHUNK_LINE: usize = 4 << 10;

/// What a head says that matters here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Status code.
    pub status: u16,
    /// Whether the body is `text/event-stream`.
    pub event_stream: bool,
    /// Whether there is a `Retry-After`.
    pub retry_after: bool,
    /// Whether the connection can be used again.
    pub keep_alive: bool,
}

#[derive(Debug)]
enum State {
    /// Up to the blank line.
    Head,
    /// A body of known length: bytes to come.
    Length(u64),
    /// The line of a chunk's size: value, bytes of the line, whether digits are over.
    Size {
        value: u64,
        bytes: usize,
        over: bool,
    },
    /// Inside a chunk: bytes to come.
    Chunk(u64),
    /// CR and LF behind a chunk: bytes to come.
    ChunkEnd(u8),
    /// Behind the last chunk: bytes of the line so far, bytes of all lines.
    Trailer {
        line: usize,
        bytes: usize,
    },
    /// A body that the connection's end ends.
    UntilEnd,
    Done,
}

/// A parser of one response after another.
#[derive(Debug)]
pub struct ResponseParser {
    state: State,
    /// The begin of a head whose end has not come yet.
    partial: Vec<u8>,
    head: Option<Head>,
}

impl Default for ResponseParser {
    fn default() -> ResponseParser {
        ResponseParser { state: State::Head, partial: Vec::new(), head: None }
    }
}

impl ResponseParser {
    /// Forgets everything, for the next response.
    pub fn reset(&mut self) {
        self.partial.clear();
        (self.state, self.head) = (State::Head, None);
    }

    /// The head, once it is complete.
    pub fn head(&self) -> Option<Head> {
        self.head
    }

    /// Whether the response is complete.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// Takes bytes and hands those of the body to `sink` with the head; returns how many belong to this response.
    ///
    /// # Errors
    /// If this is not HTTP/1.1.
    pub fn feed(&mut self, bytes: &[u8], mut sink: impl FnMut(Head, &[u8])) -> Result<usize, String> {
        let mut rest = bytes;
        while !rest.is_empty() && !self.is_done() {
            match self.state {
                State::Head => rest = self.take_head(rest)?,
                State::Length(left) => {
                    let (part, behind) = split(rest, left);
                    let left = left - part.len() as u64;
                    self.state = if left == 0 { State::Done } else { State::Length(left) };
                    self.body(part, &mut sink);
                    rest = behind;
                }
                State::Chunk(left) => {
                    let (part, behind) = split(rest, left);
                    let left = left - part.len() as u64;
                    self.state = if left == 0 { State::ChunkEnd(2) } else { State::Chunk(left) };
                    self.body(part, &mut sink);
                    rest = behind;
                }
                State::UntilEnd => {
                    self.body(rest, &mut sink);
                    rest = &[];
                }
                _ => {
                    self.take_framing(rest[0])?;
                    rest = &rest[1..];
                }
            }
        }
        Ok(bytes.len() - rest.len())
    }

    /// The connection has ended; whether that was the end of the response.
    pub fn end(&mut self) -> bool {
        if matches!(self.state, State::UntilEnd) {
            self.state = State::Done;
        }
        self.is_done()
    }

    fn body(&self, part: &[u8], sink: &mut impl FnMut(Head, &[u8])) {
        if let Some(head) = self.head
            && !part.is_empty()
        {
            sink(head, part);
        }
    }

    fn take_head<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], String> {
        let before = self.partial.len();
        if before == 0
            && let Some(end) = end_of_head(bytes)
        {
            self.parse_head(&bytes[..end])?;
            return Ok(&bytes[end..]);
        }
        let room = MAX_HEAD.saturating_sub(before);
        self.partial.extend_from_slice(&bytes[..bytes.len().min(room)]);
        let Some(end) = end_of_head(&self.partial) else {
            if self.partial.len() >= MAX_HEAD {
                return Err(format!("the head of the response has more than {MAX_HEAD} bytes"));
            }
            return Ok(&[]);
        };
        let head = std::mem::take(&mut self.partial);
        self.parse_head(&head[..end])?;
        Ok(&bytes[end - before..])
    }

    fn parse_head(&mut self, head: &[u8]) -> Result<(), String> {
        let text =
            std::str::from_utf8(head).map_err(|_| "the head of the response is not text".to_owned())?;
        let mut lines = text.split("\r\n");
        let line = lines.next().unwrap_or_default();
        let status = line.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)?.parse::<u16>().ok());
        let Some(status) = status.filter(|status| (100..1000).contains(status)) else {
            let start: String = line.chars().take(60).collect();
            return Err(format!("not a status line of HTTP/1.1: {start:?}"));
        };
        let mut parsed = Head { status, keep_alive: line.starts_with("HTTP/1.1"), ..Head::default() };
        let (mut length, mut chunked) = (None, false);
        for line in lines.filter(|line| !line.is_empty()) {
            let (name, value) =
                line.split_once(':').ok_or_else(|| format!("a header without a colon: {line:?}"))?;
            let value = value.trim();
            let is = |known: &str| name.eq_ignore_ascii_case(known);
            if is("content-length") {
                let bytes = value.parse::<u64>().map_err(|_| format!("content-length: {value:?}"))?;
                length = Some(bytes);
            } else if is("transfer-encoding") {
                chunked = value.eq_ignore_ascii_case("chunked");
                if !chunked {
                    return Err(format!("transfer-encoding: {value:?} is not read here"));
                }
            } else if is("connection") {
                parsed.keep_alive = !value.eq_ignore_ascii_case("close");
            } else if is("content-type") {
                let kind = value.split(';').next().unwrap_or_default().trim();
                parsed.event_stream = kind.eq_ignore_ascii_case("text/event-stream");
            } else if is("retry-after") {
                parsed.retry_after = true;
            }
        }
        self.begin_body(parsed, length, chunked);
        Ok(())
    }

    fn begin_body(&mut self, mut head: Head, length: Option<u64>, chunked: bool) {
        if head.status < 200 {
            // An interim response; the real one follows.
            return;
        }
        self.state = match length {
            _ if head.status == 204 || head.status == 304 => State::Done,
            _ if chunked => State::Size { value: 0, bytes: 0, over: false },
            Some(0) => State::Done,
            Some(length) => State::Length(length),
            None => {
                head.keep_alive = false;
                State::UntilEnd
            }
        };
        self.head = Some(head);
    }

    /// One byte between chunks.
    fn take_framing(&mut self, byte: u8) -> Result<(), String> {
        let bad = |what: &str| Err(format!("{what} of a chunked body is broken by the byte {byte:#04x}"));
        self.state = match self.state {
            State::Size { bytes, .. } if bytes >= MAX_CHUNK_LINE => return bad("the size line"),
            State::Size { bytes: 0, .. } if !byte.is_ascii_hexdigit() => return bad("the size"),
            State::Size { value: 0, .. } if byte == b'\n' => State::Trailer { line: 0, bytes: 0 },
            State::Size { value, .. } if byte == b'\n' => State::Chunk(value),
            State::Size { value, bytes, over } => match (byte as char).to_digit(16) {
                Some(digit) if !over => {
                    if value >> 59 != 0 {
                        return bad("the size");
                    }
                    State::Size { value: value << 4 | u64::from(digit), bytes: bytes + 1, over }
                }
                _ if over || matches!(byte, b';' | b'\r' | b' ' | b'\t') => {
                    State::Size { value, bytes: bytes + 1, over: true }
                }
                _ => return bad("the size"),
            },
            State::ChunkEnd(2) if byte == b'\r' => State::ChunkEnd(1),
            State::ChunkEnd(1) if byte == b'\n' => State::Size { value: 0, bytes: 0, over: false },
            State::ChunkEnd(_) => return bad("the end"),
            State::Trailer { bytes, .. } if bytes >= MAX_HEAD => return bad("the trailer"),
            State::Trailer { line: 0, .. } if byte == b'\n' => State::Done,
            State::Trailer { bytes, .. } if byte == b'\n' => State::Trailer { line: 0, bytes: bytes + 1 },
            State::Trailer { line, bytes } if byte == b'\r' => State::Trailer { line, bytes: bytes + 1 },
            State::Trailer { line, bytes } => State::Trailer { line: line + 1, bytes: bytes + 1 },
            State::Head | State::Length(_) | State::Chunk(_) | State::UntilEnd | State::Done => {
                return bad("the frame");
            }
        };
        Ok(())
    }
}

fn split(bytes: &[u8], left: u64) -> (&[u8], &[u8]) {
    bytes.split_at(usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len())))
}

/// Where the blank line behind a head ends.
fn end_of_head(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Statuses and bodies of responses that follow each other, cut anywhere.
    fn parse<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<(Head, String)>, String> {
        let (mut parser, mut found, mut body) = (ResponseParser::default(), Vec::new(), Vec::new());
        for mut piece in pieces {
            while !piece.is_empty() {
                let used = parser.feed(piece, |_, part| body.extend_from_slice(part))?;
                piece = &piece[used..];
                if parser.is_done() {
                    found.push((
                        parser.head().unwrap(),
                        String::from_utf8(std::mem::take(&mut body)).unwrap(),
                    ));
                    parser.reset();
                }
            }
        }
        if parser.end() {
            found.push((parser.head().unwrap(), String::from_utf8(body).unwrap()));
        }
        Ok(found)
    }

    const HEAD: Head = Head { status: 200, event_stream: false, retry_after: false, keep_alive: true };

    #[test]
    fn forms_of_bodies() {
        let cases: [(&str, Head, &str); 8] = [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", HEAD, "hello"),
            ("HTTP/1.1 200\r\ncontent-length:0\r\n\r\n", HEAD, ""),
            ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 None\r\n\r\n", Head { status: 204, ..HEAD }, ""),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\ncontent-type: text/event-stream; charset=utf-8\r\n\r\n\
                 5\r\nhello\r\n00B;x=\"y\"\r\n, and more.\r\n0\r\n\r\n",
                Head { event_stream: true, ..HEAD },
                "hello, and more.",
            ),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: y\r\nz: w\r\n\r\n", HEAD, ""),
            (
                "HTTP/1.1 429 Too Many\r\nRetry-After: 1\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}",
                Head { status: 429, retry_after: true, keep_alive: false, ..HEAD },
                "{}",
            ),
            ("HTTP/1.1 200 OK\r\n\r\nto the end", Head { keep_alive: false, ..HEAD }, "to the end"),
            ("HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\nx", Head { keep_alive: false, ..HEAD }, "x"),
        ];
        for (text, head, body) in cases {
            assert_eq!(parse([text.as_bytes()]).unwrap(), [(head, body.to_owned())], "{text}");
            let bytes = text.as_bytes().chunks(1);
            assert_eq!(parse(bytes).unwrap(), [(head, body.to_owned())], "{text}");
        }
    }

    #[test]
    fn what_is_no_response_is_refused() {
        let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        let cases = [
            "SSH-2.0-server\r\n\r\n".to_owned(),
            "HTTP/1.1 OK\r\n\r\n".to_owned(),
            "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n".to_owned(),
            "HTTP/1.1 200 OK\r\nno colon\r\n\r\n".to_owned(),
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n".to_owned(),
            format!("{chunked}\r\n"),
            format!("{chunked}xyz\r\n"),
            format!("{chunked}1g\r\n"),
            format!("{chunked}ffffffffffffffffff\r\n"),
            format!("{chunked}2\r\nhello\r\n"),
            "x".repeat(MAX_HEAD + 1),
        ];
        for text in cases {
            let start: String = text.chars().take(80).collect();
            assert!(parse([text.as_bytes()]).is_err(), "{start}");
            assert!(parse(text.as_bytes().chunks(1)).is_err(), "{start}");
        }
    }

    #[test]
    fn a_body_cut_short_is_not_complete() {
        for text in [
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhell",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
            "HTTP/1.1 200 OK\r\n",
        ] {
            assert!(parse([text.as_bytes()]).unwrap().is_empty(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn cuts_change_nothing(
            bodies in prop::collection::vec((any::<bool>(), prop::collection::vec("[a-z\r\n0-9]{1,30}", 0..5)), 1..5),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..30),
        ) {
            let (mut text, mut wanted) = (String::new(), Vec::new());
            for (chunked, parts) in &bodies {
                let body = parts.concat();
                if *chunked {
                    text += "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
                    for part in parts {
                        text += &format!("{:x}\r\n{part}\r\n", part.len());
                    }
                    text += "0\r\n\r\n";
                } else {
                    text += &format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                }
                wanted.push((HEAD, body));
            }
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces = cuts.windows(2).map(|pair| &text.as_bytes()[pair[0]..pair[1]]);
            prop_assert_eq!(parse(pieces).unwrap(), wanted);
        }
    }
}
