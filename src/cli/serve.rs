//! `sidereal serve`.

mod config;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use sidereal::engine::{Engine, QueueLimits};
use sidereal::server::{Ended, LogLevel, Server, ServerOptions};
use tokio::net::{TcpListener, TcpSocket};

pub use self::config::with_config;

use super::load::LoadArgs;
use super::log::{LogFormat, SetLevel};

/// Bytes of a connection's answer that the kernel takes.
const SEND_BUFFER: u32 = 256 << 10;
/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;
/// What the process ends with when the engine died: for its supervisor, which starts it anew.
const EXIT_ENGINE_DIED: u8 = 70;

/// Serve over HTTP: OpenAI's routes, native ones, metrics, and a page to try them.
#[derive(Args)]
#[command(
    args_override_self = true,
    after_help = "Examples:
  sidereal serve                                        the built-in demonstration on http://127.0.0.1:8000
  sidereal serve --model DIR --catalog items.sidcat --host 0.0.0.0 --api-keys keys.toml --admin-port 8001
  sidereal serve --config sidereal.toml                 options by their names: port = 8000, model = \"DIR\" …

Signals: SIGTERM and SIGINT drain (a second one ends at once), SIGHUP reads the keys again.
Exit codes: 0 drained, 1 failed, 2 usage, 70 the engine died."
)]
pub struct Serve {
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    listen: ListenArgs,
    #[command(flatten)]
    bounds: BoundArgs,
    #[command(flatten)]
    logs: LogArgs,
}

/// Where the server listens, and for whom.
#[derive(Args, Debug)]
#[command(next_help_heading = "Listeners")]
struct ListenArgs {
    /// TOML file of options by their names here; the command line comes before it
    #[arg(long, value_name = "FILE.toml")]
    config: Option<PathBuf>,
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// Port to listen on; 0: any that is free
    #[arg(long, value_name = "N", default_value_t = 8000)]
    port: u16,
    /// Address of the admin listener
    #[arg(long, default_value = "127.0.0.1")]
    admin_host: String,
    /// Port of the admin listener [default: there is none]
    #[arg(long, value_name = "N")]
    admin_port: Option<u16>,
    /// TOML file with sections [keys] and [admin] of lines NAME = "KEY" [default: every route is open]
    #[arg(long, value_name = "FILE.toml")]
    api_keys: Option<PathBuf>,
    /// Name of the model in answers [default: the model's folder, or `demo`]
    #[arg(long, value_name = "NAME")]
    served_model_name: Option<String>,
    /// JSON file with an object of named filters
    #[arg(long, value_name = "FILE.json")]
    filters: Option<PathBuf>,
    /// Threads that read and write HTTP [default: all cores, at most 4]
    #[arg(long, value_name = "N")]
    http_threads: Option<std::num::NonZeroUsize>,
}

/// What the server refuses, and how long it waits.
#[derive(Args, Debug)]
#[command(next_help_heading = "Bounds")]
struct BoundArgs {
    /// Requests that may wait and run
    #[arg(long, value_name = "N", default_value_t = 4096)]
    max_requests: usize,
    /// Rows of steps that waiting requests may add up to [default: no bound]
    #[arg(long, value_name = "N")]
    max_waiting_rows: Option<usize>,
    /// Prompt tokens that waiting requests may add up to [default: no bound]
    #[arg(long, value_name = "N")]
    max_waiting_tokens: Option<usize>,
    /// Connections at one time
    #[arg(long, value_name = "N", default_value_t = 4096)]
    max_connections: usize,
    /// Longest body of a request, and longest line of a batch
    #[arg(long, value_name = "KIB", default_value_t = 8192)]
    max_body_kib: usize,
    /// Longest life of a request
    #[arg(long, value_name = "S", default_value_t = 600.0, value_parser = seconds)]
    max_request_seconds: f64,
    /// How long a request may take to arrive, head and body each
    #[arg(long, value_name = "S", default_value_t = 10.0, value_parser = seconds)]
    receive_seconds: f64,
    /// How long a connection may idle between requests
    #[arg(long, value_name = "S", default_value_t = 75.0, value_parser = seconds)]
    idle_seconds: f64,
    /// How long a reader may take nothing of its answer
    #[arg(long, value_name = "S", default_value_t = 30.0, value_parser = seconds)]
    send_seconds: f64,
    /// How long connections are still accepted once the server has begun to drain
    #[arg(long, value_name = "S", default_value_t = 0.0, value_parser = seconds)]
    drain_delay_seconds: f64,
    /// How long running requests get to end when the server drains
    #[arg(long, value_name = "S", default_value_t = 30.0, value_parser = seconds)]
    drain_seconds: f64,
    /// Age of a step at which the server is not ready any more
    #[arg(long, value_name = "S", default_value_t = 15.0, value_parser = seconds)]
    stall_seconds: f64,
    /// Age of a step at which the engine is declared dead and the process ends
    #[arg(long, value_name = "S", default_value_t = 120.0, value_parser = seconds)]
    hang_seconds: f64,
}

/// What is written down.
#[derive(Args, Debug)]
#[command(next_help_heading = "Logs")]
struct LogArgs {
    /// error, warn, info, debug (a line per request), trace, or directives such as info,sidereal::server=debug
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: String,
    /// How a line of the log looks
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// File that gets one JSON line per answer: request, model, snapshot, filter, items, scores
    #[arg(long, value_name = "FILE")]
    audit_log: Option<PathBuf>,
    /// Size at which the audit log becomes FILE.1 and begins anew
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    audit_mib: u64,
}

/// Seconds, from 0 to a day.
fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.0..=86_400.0).contains(&value) => Ok(value),
        _ => Err("expected seconds from 0 to 86400".to_owned()),
    }
}

impl Serve {
    /// Level and format of the log.
    pub fn log(&self) -> (&str, LogFormat) {
        (&self.logs.log_level, self.logs.log_format)
    }

    /// Runs the command.
    pub fn run(&self, set_level: SetLevel) -> anyhow::Result<ExitCode> {
        let start = Instant::now();
        let threads = self
            .listen
            .http_threads
            .map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from).min(4), usize::from);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("sidereal-http")
            .enable_all()
            .build()
            .context("the threads of HTTP could not be started")?;
        // Taken before the model is loaded: an address in use is said at once.
        let (listener, admin) = runtime.block_on(self.bind())?;
        let engine = self.engine()?;
        let options = self.options()?;
        let level: LogLevel = Arc::from(set_level);
        let server = Server::new(engine.clone(), options.clone(), Some(level))?;
        if let Some(file) = &self.listen.filters {
            let text = std::fs::read(file).with_context(|| file.display().to_string())?;
            let filters = serde_json::from_slice(&text).with_context(|| file.display().to_string())?;
            server.set_filters(filters).with_context(|| file.display().to_string())?;
        }
        self.say_start(&engine, &options, &listener, admin.as_ref(), start)?;
        let ended = runtime.block_on(async {
            let server = Arc::new(server);
            // Weak: the audit log is written to its end when the server goes.
            let signals = signals(Arc::downgrade(&server))?;
            Ok::<_, anyhow::Error>(server.serve(listener, admin, signals).await)
        })?;
        // Whatever still computes for a reader that was cut is not waited for.
        runtime.shutdown_background();
        Ok(match ended {
            Ended::Drained => {
                tracing::info!("drained: every request was answered");
                ExitCode::SUCCESS
            }
            Ended::Cut { requests } => {
                tracing::warn!(requests, "the time for draining is over: requests were cut");
                ExitCode::SUCCESS
            }
            Ended::Died { reason } => {
                eprintln!("error: the engine died: {reason}");
                ExitCode::from(EXIT_ENGINE_DIED)
            }
        })
    }

    async fn bind(&self) -> anyhow::Result<(TcpListener, Option<TcpListener>)> {
        let args = &self.listen;
        let listen = async |host: &str, port: u16| {
            listener(host, port).await.with_context(|| format!("cannot listen on {host}:{port}"))
        };
        let listener = listen(&args.host, args.port).await?;
        let admin = match args.admin_port {
            Some(port) => Some(listen(&args.admin_host, port).await?),
            None => None,
        };
        if let (Some(admin), None) = (&admin, &args.api_keys)
            && !admin.local_addr()?.ip().is_loopback()
        {
            bail!(
                "--admin-host {}: an admin listener that others can reach needs --api-keys with a section [admin]",
                args.admin_host
            );
        }
        Ok((listener, admin))
    }

    fn engine(&self) -> anyhow::Result<Engine> {
        let bounds = &self.bounds;
        let queue = QueueLimits {
            requests: bounds.max_requests,
            rows: bounds.max_waiting_rows.unwrap_or(usize::MAX),
            tokens: bounds.max_waiting_tokens.unwrap_or(usize::MAX),
        };
        Ok(self.load.builder()?.queue(queue).start()?)
    }

    fn options(&self) -> anyhow::Result<ServerOptions> {
        let (listen, bounds, logs) = (&self.listen, &self.bounds, &self.logs);
        let time = Duration::from_secs_f64;
        let folder = self
            .load
            .model
            .as_deref()
            .and_then(Path::file_name)
            .map(|name| name.to_string_lossy().into_owned());
        let model_hash = match (&logs.audit_log, &self.load.model) {
            (None, _) => String::new(),
            (Some(_), None) => "demo".to_owned(),
            (Some(_), Some(folder)) => model_hash(folder)?,
        };
        Ok(ServerOptions {
            model_name: listen.served_model_name.clone().or(folder).unwrap_or_else(|| "demo".to_owned()),
            model_hash,
            api_keys: listen.api_keys.clone(),
            audit_log: logs.audit_log.clone(),
            audit_bytes: logs.audit_mib << 20,
            max_body_bytes: bounds.max_body_kib << 10,
            max_connections: bounds.max_connections,
            receive_timeout: time(bounds.receive_seconds),
            idle_timeout: time(bounds.idle_seconds),
            send_timeout: time(bounds.send_seconds),
            max_request_time: time(bounds.max_request_seconds),
            drain_delay: time(bounds.drain_delay_seconds),
            drain_timeout: time(bounds.drain_seconds),
            stall_timeout: time(bounds.stall_seconds),
            hang_timeout: time(bounds.hang_seconds),
            ..ServerOptions::default()
        })
    }

    /// One line with everything that was decided.
    fn say_start(
        &self,
        engine: &Engine,
        options: &ServerOptions,
        listener: &TcpListener,
        admin: Option<&TcpListener>,
        start: Instant,
    ) -> anyhow::Result<()> {
        let url = |address: SocketAddr| format!("http://{address}");
        let admin = admin.map(|admin| admin.local_addr().map(url)).transpose()?;
        let catalog = engine.catalog().map(|catalog| catalog.stats());
        let blocks = engine.load().blocks.total;
        tracing::info!(
            url = url(listener.local_addr()?),
            admin,
            version = env!("CARGO_PKG_VERSION"),
            model = options.model_name,
            device = engine.description(),
            cache_tokens = blocks * sidereal::kv::BLOCK_TOKENS,
            max_model_len = engine.max_sequence(),
            snapshot = catalog.as_ref().map(|stats| stats.view.as_str()),
            items = catalog.as_ref().map(|stats| stats.items),
            load = ?self.load,
            bounds = ?self.bounds,
            listen = ?self.listen,
            logs = ?self.logs,
            start_ms = start.elapsed().as_secs_f64() * 1e3,
            "ready"
        );
        if options.api_keys.is_none() && !listener.local_addr()?.ip().is_loopback() {
            tracing::warn!("everybody who reaches this address may use it: --api-keys names those who may");
        }
        Ok(())
    }
}

/// Listens with send buffers of a fixed size: left to itself the kernel takes megabytes of an answer that nobody reads.
async fn listener(host: &str, port: u16) -> std::io::Result<TcpListener> {
    let mut refused = None;
    for address in tokio::net::lookup_host((host, port)).await? {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // Another process's closed connections do not keep the port.
        #[cfg(unix)]
        socket.set_reuseaddr(true)?;
        socket.set_send_buffer_size(SEND_BUFFER)?;
        match socket.bind(address).and_then(|()| socket.listen(BACKLOG)) {
            Ok(listener) => return Ok(listener),
            Err(error) => refused = Some(error),
        }
    }
    Err(refused.unwrap_or_else(|| std::io::Error::other("the name has no address")))
}

/// Identifies a model: xxh3 over the names and contents of its files.
fn model_hash(folder: &Path) -> anyhow::Result<String> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()
        .with_context(|| folder.display().to_string())?;
    files.retain(|file| file.extension().is_some_and(|kind| kind == "json" || kind == "safetensors"));
    files.sort();
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    for file in files {
        hasher.update(file.file_name().unwrap_or_default().as_encoded_bytes());
        let mut reader = std::fs::File::open(&file).with_context(|| file.display().to_string())?;
        std::io::copy(&mut reader, &mut HashWriter(&mut hasher))
            .with_context(|| file.display().to_string())?;
    }
    Ok(format!("{:032x}", hasher.digest128()))
}

struct HashWriter<'a>(&'a mut xxhash_rust::xxh3::Xxh3);

impl std::io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Ready at the first signal that asks the process to end; a second one ends it at once.
#[cfg(unix)]
fn signals(server: Weak<Server>) -> anyhow::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut end = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let (asked, ready) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let mut asked = Some(asked);
        loop {
            tokio::select! {
                _ = end.recv() => {}
                _ = interrupt.recv() => {}
                _ = hangup.recv() => {
                    let Some(server) = server.upgrade() else { continue };
                    match server.reload_keys() {
                        Ok(keys) => tracing::info!(keys, "the keys were read again"),
                        Err(error) => tracing::error!(%error, "the keys stay as they are"),
                    }
                    continue;
                }
            }
            match asked.take() {
                Some(asked) => drop(asked.send(())),
                None => {
                    tracing::warn!("asked a second time to end");
                    std::process::exit(1);
                }
            }
        }
    });
    Ok(async {
        let _ = ready.await;
    })
}

/// Ready when the process is asked to end.
#[cfg(not(unix))]
fn signals(_: Weak<Server>) -> anyhow::Result<impl Future<Output = ()>> {
    Ok(async {
        let _ = tokio::signal::ctrl_c().await;
    })
}
