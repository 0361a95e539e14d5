//! What all routes of a server share.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{Notify, Semaphore};

use super::audit::Audit;
use super::error::ApiError;
use super::fence::Wires;
use super::keys::Keys;
use super::metrics::Metrics;
use super::options::ServerOptions;
use crate::engine::Engine;
use crate::error::Result;

/// Bytes per permit of [`App::bodies`].
pub(super) const BODY_UNIT: usize = 4096;

/// Sets the level of the process's log, or says what is wrong with it; the program that owns the log provides it.
pub type LogLevel = Arc<dyn Fn(Option<&str>) -> std::result::Result<String, String> + Send + Sync>;

/// What all routes of a server share.
pub(crate) struct App {
    pub engine: Engine,
    pub options: ServerOptions,
    pub keys: Keys,
    pub metrics: Metrics,
    pub audit: Option<Audit>,
    pub wires: Arc<Wires>,
    /// Unix time of the start, seconds.
    pub created: u64,
    /// Bounds the bytes of bodies in memory, in units of [`BODY_UNIT`].
    pub bodies: Arc<Semaphore>,
    draining: AtomicBool,
    /// Told when a drain is asked for.
    pub drain: Notify,
    pub log_level: Option<LogLevel>,
    /// Definitions of named filters, as they were given.
    pub filters: Mutex<serde_json::Map<String, serde_json::Value>>,
    /// The OpenAPI document, once it was asked for.
    pub openapi: OnceLock<bytes::Bytes>,
    /// One copy of each route's name: metrics keep them as labels.
    pub handlers: Mutex<HashMap<String, Arc<str>>>,
}

impl App {
    pub fn new(engine: Engine, options: ServerOptions, log_level: Option<LogLevel>) -> Result<App> {
        let deny = engine.catalog().map(|catalog| Arc::clone(catalog.deny_list())).unwrap_or_default();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let units = options.max_body_bytes_in_flight.max(options.max_body_bytes).div_ceil(BODY_UNIT);
        Ok(App {
            keys: Keys::open(options.api_keys.as_deref())?,
            metrics: Metrics::new(&engine),
            audit: options
                .audit_log
                .as_deref()
                .map(|file| Audit::open(file, options.audit_bytes))
                .transpose()?,
            wires: Wires::watch(&deny),
            created: now.as_secs(),
            bodies: Arc::new(Semaphore::new(units.min(Semaphore::MAX_PERMITS))),
            draining: AtomicBool::new(false),
            drain: Notify::new(),
            log_level,
            filters: Mutex::default(),
            openapi: OnceLock::new(),
            handlers: Mutex::default(),
            engine,
            options,
        })
    }

    /// Begins to say that the server is not ready.
    pub fn start_draining(&self) {
        self.draining.store(true, Ordering::SeqCst);
        self.drain.notify_waiters();
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Why the server should get no requests now, if it should not.
    pub fn unready(&self) -> Option<ApiError> {
        let unavailable = axum::http::StatusCode::SERVICE_UNAVAILABLE;
        let health = self.engine.health();
        if let Some(reason) = health.dead {
            return Some(ApiError::new(unavailable, "engine_dead", format!("the engine is dead: {reason}")));
        }
        if !health.idle && health.since_step > self.options.stall_timeout {
            let age = health.since_step.as_secs_f64();
            let message = format!("the last step ended {age:.1} s ago, and there is work");
            return Some(ApiError::new(unavailable, "engine_stalled", message));
        }
        if self.is_draining() {
            return Some(ApiError::new(unavailable, "draining", "the server is shutting down"));
        }
        None
    }

    /// When a request that was refused now might be taken.
    pub fn retry_after(&self) -> Duration {
        self.engine.load().queue_wait.clamp(Duration::from_millis(10), Duration::from_secs(60))
    }

    /// The bound that a body of this size would break, or permits for it.
    pub fn deny_list(&self) -> Option<&Arc<crate::catalog::DenyList>> {
        self.engine.catalog().map(|catalog| catalog.deny_list())
    }
}
