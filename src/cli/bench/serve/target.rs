//! Where requests go, and the bytes they begin with.

use std::fmt::Write;
use std::net::{SocketAddr, ToSocketAddrs};

use anyhow::{Context, bail};

/// A server.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its address.
    pub address: SocketAddr,
    /// Host and port as the URL has them.
    host: String,
    /// Path before the routes, without a slash at its end.
    prefix: String,
    /// Lines of every head.
    headers: String,
}

impl Target {
    /// The server of an `http` URL, with the headers (`NAME: VALUE`) of every request.
    pub fn new(url: &str, api_key: Option<&str>, headers: &[String]) -> anyhow::Result<Target> {
        let Some(rest) = url.strip_prefix("http://") else {
            bail!("--url {url}: only http:// is spoken here");
        };
        let (host, prefix) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if host.is_empty() || host.contains(['@', '?', '#']) || prefix.contains(['?', '#']) || !is_plain(rest)
        {
            bail!("--url {url}: http://HOST[:PORT][/PATH] is expected");
        }
        let has_port =
            host.rsplit_once(':').is_some_and(|(before, _)| !before.contains(':') || before.ends_with(']'));
        let name = if has_port { host.to_owned() } else { format!("{host}:80") };
        let mut addresses = name.to_socket_addrs().with_context(|| format!("--url {url}"))?;
        let address = addresses.next().with_context(|| format!("--url {url}: the host has no address"))?;
        let mut lines = String::new();
        if let Some(key) = api_key {
            if key.is_empty() || !is_plain(key) {
                bail!("--api-key: a key has visible ASCII characters only");
            }
            let _ = write!(lines, "authorization: Bearer {key}\r\n");
        }
        for header in headers {
            let (name, value) = header.split_once(':').unwrap_or(("", ""));
            let token = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if name.is_empty()
                || !name.chars().all(token)
                || value.chars().any(|c| c.is_control() || !c.is_ascii())
            {
                bail!("--header {header:?}: `NAME: VALUE` is expected");
            }
            let _ = write!(lines, "{name}: {}\r\n", value.trim());
        }
        let prefix = prefix.trim_end_matches('/').to_owned();
        Ok(Target { address, host: host.to_owned(), prefix, headers: lines })
    }

    /// The bytes of a request without a body.
    pub fn get(&self, path: &str) -> Vec<u8> {
        let Target { host, prefix, headers, .. } = self;
        format!("GET {prefix}{path} HTTP/1.1\r\nhost: {host}\r\naccept: application/json\r\n{headers}\r\n")
            .into()
    }

    /// The bytes of a request with a body of JSON.
    pub fn post(&self, path: &str, body: &str, accept: &str) -> Vec<u8> {
        let Target { host, prefix, headers, .. } = self;
        format!(
            "POST {prefix}{path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\naccept: {accept}\r\n\
             {headers}content-length: {}\r\n\r\n{body}",
            body.len()
        )
        .into()
    }
}

/// Whether a text can stand in a request line or a header.
fn is_plain(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_graphic())
}

/// A text as a part of a query string.
pub fn encode(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => encoded.push(byte as char),
            _ => {
                let _ = write!(encoded, "%{byte:02X}");
            }
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let target = |url: &str| Target::new(url, None, &[]);
        for (url, address, host, prefix) in [
            ("http://127.0.0.1:8000", "127.0.0.1:8000", "127.0.0.1:8000", ""),
            ("http://127.0.0.1/", "127.0.0.1:80", "127.0.0.1", ""),
            ("http://[::1]:9/base/", "[::1]:9", "[::1]:9", "/base"),
            ("http://[::1]/a/b", "[::1]:80", "[::1]", "/a/b"),
        ] {
            let target = target(url).unwrap();
            assert_eq!(
                (target.address.to_string().as_str(), &*target.host, &*target.prefix),
                (address, host, prefix)
            );
        }
        for url in [
            "",
            "127.0.0.1:8000",
            "https://127.0.0.1",
            "http://",
            "http:///x",
            "http://a@127.0.0.1",
            "http://127.0.0.1/?x",
            "http://127.0.0.1/a b",
            "http://127.0.0.1:port",
        ] {
            let error = target(url).unwrap_err().to_string();
            assert!(error.contains("--url"), "{url}: {error}");
        }
    }

    #[test]
    fn heads() {
        let target =
            Target::new("http://127.0.0.1:1/p", Some("sk-1"), &["X-Tenant:  a b ".to_owned()]).unwrap();
        let text = String::from_utf8(target.post("/v1/items", "{\"é\":1}", "*/*")).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let lines: Vec<&str> = head.split("\r\n").collect();
        assert_eq!(lines[0], "POST /p/v1/items HTTP/1.1");
        for line in [
            "host: 127.0.0.1:1",
            "authorization: Bearer sk-1",
            "X-Tenant: a b",
            "content-length: 8",
            "accept: */*",
        ] {
            assert!(lines.contains(&line), "{line}");
        }
        assert_eq!(body.len(), 8);
        for header in ["", "x", ": y", "a b: c", "a: b\r\nc: d"] {
            assert!(Target::new("http://127.0.0.1:1", None, &[header.to_owned()]).is_err(), "{header:?}");
        }
        assert!(Target::new("http://127.0.0.1:1", Some("a\nb"), &[]).is_err());
        assert_eq!(encode("a b/ä~"), "a%20b%2F%C3%A4~");
    }
}
