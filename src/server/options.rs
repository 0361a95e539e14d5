//! What a server may be told.

use std::path::PathBuf;
use std::time::Duration;

/// Bounds and habits of a server. Defaults suit a process of its own behind a load balancer.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Name of the model in answers and `GET /v1/models`. Default `sidereal`.
    pub model_name: String,
    /// What identifies the model's weights in the audit log. Default: empty.
    pub model_hash: String,
    /// TOML file of API keys (see [`super::Keys`]). Default: none, every route is open.
    pub api_keys: Option<PathBuf>,
    /// File that gets one JSON line per answer. Default: none.
    pub audit_log: Option<PathBuf>,
    /// Size at which the audit log is renamed to `FILE.1` and begun anew. Default 256 MiB.
    pub audit_bytes: u64,
    /// Longest body of a request, and longest line of a batch. Default 8 MiB.
    pub max_body_bytes: usize,
    /// Bytes of bodies that are read or waiting to be checked at one time. Default 256 MiB.
    pub max_body_bytes_in_flight: usize,
    /// Longest head of a request. Default 32 KiB.
    pub max_header_bytes: usize,
    /// Most headers of a request. Default 100.
    pub max_headers: usize,
    /// Connections at one time; more are told 503 and closed. Default 4096.
    pub max_connections: usize,
    /// From the first byte of a request to the end of its head, and again to the end of its body. Default 10 s.
    pub receive_timeout: Duration,
    /// How long a connection may idle between requests. Default 75 s, longer than load balancers keep theirs.
    pub idle_timeout: Duration,
    /// How long a peer may take nothing of an answer. Default 30 s.
    pub send_timeout: Duration,
    /// Longest life of a request; `x-request-timeout-ms` can only shorten it. Default 600 s.
    pub max_request_time: Duration,
    /// How long the server still accepts connections after it has begun to say that it is not ready. Default 0.
    pub drain_delay: Duration,
    /// How long running requests get to end when the server drains. Default 30 s.
    pub drain_timeout: Duration,
    /// Age of a step at which the server says that it is not ready. Default 15 s.
    pub stall_timeout: Duration,
    /// Age of a step at which the engine is declared dead. Default 120 s.
    pub hang_timeout: Duration,
}

impl Default for ServerOptions {
    fn default() -> ServerOptions {
        ServerOptions {
            model_name: "sidereal".to_owned(),
            model_hash: String::new(),
            api_keys: None,
            audit_log: None,
            audit_bytes: 256 << 20,
            max_body_bytes: 8 << 20,
            max_body_bytes_in_flight: 256 << 20,
            max_header_bytes: 32 << 10,
            max_headers: 100,
            max_connections: 4096,
            receive_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            send_timeout: Duration::from_secs(30),
            max_request_time: Duration::from_secs(600),
            drain_delay: Duration::ZERO,
            drain_timeout: Duration::from_secs(30),
            stall_timeout: Duration::from_secs(15),
            hang_timeout: Duration::from_secs(120),
        }
    }
}
