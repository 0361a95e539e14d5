//! A client that does what it is told, wrong things too.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// An answer, read to its end.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Whether the body ended as its head had announced.
    pub whole: bool,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// `data:` of the events.
    pub fn events(&self) -> Vec<String> {
        let text = self.text();
        text.lines().filter_map(|line| line.strip_prefix("data: ").map(str::to_owned)).collect()
    }
}

/// A connection that stays open.
pub struct Client {
    pub stream: BufReader<TcpStream>,
}

impl Client {
    pub fn connect(address: SocketAddr) -> Client {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.set_nodelay(true).unwrap();
        Client { stream: BufReader::new(stream) }
    }

    /// Sends bytes; `false`: the peer is gone.
    pub fn write(&mut self, bytes: &[u8]) -> bool {
        self.stream.get_mut().write_all(bytes).is_ok()
    }

    pub fn send(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) {
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n", body.len());
        if !headers.iter().any(|(name, _)| *name == "content-type") && method != "GET" {
            head.push_str("content-type: application/json\r\n");
        }
        headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(body);
        // A server may answer and close before it has read everything.
        self.write(&bytes);
    }

    /// Status and headers; `None`: the connection was closed.
    pub fn head(&mut self) -> Option<(u16, Vec<(String, String)>)> {
        let mut line = String::new();
        self.stream.read_line(&mut line).ok()?;
        let status = line.split(' ').nth(1)?.parse().ok()?;
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line).ok()?;
            let line = line.trim_end();
            if line.is_empty() {
                return Some((status, headers));
            }
            let (name, value) = line.split_once(':').unwrap();
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    /// The next piece of a chunked body; `None` at its end or if it breaks off.
    pub fn chunk(&mut self) -> Option<Vec<u8>> {
        let mut line = String::new();
        self.stream.read_line(&mut line).ok()?;
        let len = usize::from_str_radix(line.trim(), 16).ok()?;
        let mut bytes = vec![0; len + 2];
        self.stream.read_exact(&mut bytes).ok()?;
        bytes.truncate(len);
        (len > 0).then_some(bytes)
    }

    pub fn reply(&mut self) -> Option<Reply> {
        let (status, headers) = self.head()?;
        let find = |name: &str| headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        let mut body = Vec::new();
        let mut whole = true;
        if find("transfer-encoding").as_deref() == Some("chunked") {
            loop {
                let mut line = String::new();
                let len = self
                    .stream
                    .read_line(&mut line)
                    .ok()
                    .and_then(|_| usize::from_str_radix(line.trim(), 16).ok());
                let Some(len) = len else {
                    whole = false;
                    break;
                };
                let mut bytes = vec![0; len + 2];
                if self.stream.read_exact(&mut bytes).is_err() {
                    whole = false;
                    break;
                }
                if len == 0 {
                    break;
                }
                body.extend_from_slice(&bytes[..len]);
            }
        } else {
            let len = find("content-length").map_or(0, |len| len.parse().unwrap());
            body.resize(len, 0);
            whole = self.stream.read_exact(&mut body).is_ok();
        }
        Some(Reply { status, headers, body, whole })
    }

    pub fn call(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        self.send(method, path, headers, body);
        self.reply().expect("an answer")
    }
}

pub fn get(address: SocketAddr, path: &str) -> Reply {
    Client::connect(address).call("GET", path, &[], b"")
}

pub fn post(address: SocketAddr, path: &str, body: &Value) -> Reply {
    Client::connect(address).call("POST", path, &[], body.to_string().as_bytes())
}
