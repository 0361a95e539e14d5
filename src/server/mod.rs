//! The HTTP server: OpenAI's routes, native ones, operations, and a page to try them.
//!
//! [`router`] gives the routes to programs with an axum application of their own; [`Server`] runs them on listeners of its own, with limits on
//! slow and stalled peers and an end that loses no request. No decoding happens here: a request is read, handed to the [`Engine`], and its events
//! are written.
//!
//! The way of a request: `listener`, `socket` (connections) → `observe` (who asks, under which id) → a route (`native`, `openai`, `batch`, …) →
//! `body` (reads it under bounds) → `call` (hands it to the engine, counts) → `reply` (writes it, past the `fence`).

mod admin;
mod app;
mod audit;
mod batch;
mod body;
mod call;
mod catalog;
mod error;
mod fence;
mod health;
mod keys;
mod listener;
mod metrics;
mod native;
mod observe;
mod openai;
mod openapi;
mod options;
mod page;
#[doc(hidden)]
pub mod reading;
mod reply;
mod socket;
mod tokens;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use tokio::net::TcpListener;
use tokio::sync::watch;

pub use self::app::LogLevel;
pub use self::keys::Keys;
pub use self::options::ServerOptions;

use self::app::App;
use self::error::ApiError;
use self::listener::Stage;
use crate::engine::Engine;
use crate::error::Result;

/// How often the engine's pulse is felt.
const PULSE: Duration = Duration::from_millis(250);

/// The routes of the first listener over an engine, with default options and without keys, for an axum application of one's own.
///
/// Time limits on connections, the drain and the fence between denials and unsent bytes belong to [`Server::serve`], which has the sockets; here a denied
/// item is held back until the answer is handed to the application's connection.
///
/// ```no_run
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// use sidereal::engine::EngineBuilder;
///
/// let engine = EngineBuilder::tiny()?.start()?;
/// let app = axum::Router::new().nest("/items", sidereal::server::router(engine));
/// axum::serve(tokio::net::TcpListener::bind("127.0.0.1:8000").await?, app).await?;
/// # Ok(()) }
/// ```
pub fn router(engine: Engine) -> Router {
    match App::new(engine, ServerOptions::default(), None) {
        Ok(app) => routes(&Arc::new(app)),
        // Defaults name no file.
        Err(error) => unreachable!("default options: {error}"),
    }
}

/// A server that has not begun, or that runs.
pub struct Server {
    app: Arc<App>,
}

/// How a server ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Every request was answered.
    Drained,
    /// Requests were cut when the time for draining was over.
    Cut {
        /// How many at least; a reader that was slow to take its answer counts as one.
        requests: usize,
    },
    /// The engine died; its requests were told.
    Died {
        /// Why.
        reason: String,
    },
}

impl Server {
    /// A server over an engine. `log_level` sets the process's log level for the admin route.
    ///
    /// # Errors
    /// [`crate::Error::File`] if keys or audit log cannot be opened.
    pub fn new(engine: Engine, options: ServerOptions, log_level: Option<LogLevel>) -> Result<Server> {
        Ok(Server { app: Arc::new(App::new(engine, options, log_level)?) })
    }

    /// The routes of the first listener.
    pub fn router(&self) -> Router {
        routes(&self.app)
    }

    /// The routes of the admin listener.
    pub fn admin_router(&self) -> Router {
        admin_routes(&self.app)
    }

    /// Replaces all named filters.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] with the path of what is wrong, also if there is no catalog.
    pub fn set_filters(&self, filters: serde_json::Map<String, serde_json::Value>) -> Result<()> {
        let invalid = |error: ApiError| crate::Error::invalid(error.param.unwrap_or_default(), error.message);
        admin::set_named(&self.app, filters).map_err(invalid)
    }

    /// Reads the file of keys again; returns how many there are.
    ///
    /// # Errors
    /// As [`Keys::reload`]; the old keys stay.
    pub fn reload_keys(&self) -> Result<usize> {
        self.app.keys.reload()
    }

    /// Whether callers need a key.
    pub fn requires_keys(&self) -> bool {
        self.app.keys.required()
    }

    /// Serves until `shutdown` is ready, a drain is asked for, or the engine dies; then says that it is not ready, answers what it has
    /// accepted, and returns.
    pub async fn serve(
        &self,
        listener: TcpListener,
        admin: Option<TcpListener>,
        shutdown: impl Future,
    ) -> Ended {
        let app = &self.app;
        // From here on: a drain may be asked for as soon as there are listeners.
        let asked = app.drain.notified();
        let (stage, watched) = watch::channel(Stage::Open);
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(listener::run(Arc::clone(app), listener, self.router(), watched.clone()));
        if let Some(admin) = admin {
            tasks.spawn(listener::run(Arc::clone(app), admin, self.admin_router(), watched.clone()));
        }
        let mut death = std::pin::pin!(self.death());
        let mut died = if app.is_draining() {
            None
        } else {
            tokio::select! {
                _ = shutdown => None,
                () = asked => None,
                reason = death.as_mut() => Some(reason),
            }
        };
        app.start_draining();
        // Nobody is to be sent to a dead engine any longer.
        let delay = if died.is_none() { app.options.drain_delay } else { Duration::ZERO };
        let end = async {
            tokio::time::sleep(delay).await;
            let _ = stage.send(Stage::Closing);
            let all = async { while tasks.join_next().await.is_some() {} };
            tokio::time::timeout(app.options.drain_timeout, all).await.is_err()
        };
        let mut end = std::pin::pin!(end);
        let late = if died.is_none() {
            tracing::info!("draining");
            // The engine may still die.
            tokio::select! {
                late = end.as_mut() => late,
                reason = death.as_mut() => {
                    died = Some(reason);
                    end.as_mut().await
                }
            }
        } else {
            end.as_mut().await
        };
        let requests = if late { app.engine.in_flight().max(1) } else { 0 };
        let _ = stage.send(Stage::Cut);
        match died {
            Some(reason) => Ended::Died { reason },
            None if late => Ended::Cut { requests },
            None => Ended::Drained,
        }
    }

    /// Waits for the engine's death; a step that does not end is one.
    async fn death(&self) -> String {
        let app = &self.app;
        let hung = async {
            let mut pulse = tokio::time::interval(PULSE);
            loop {
                pulse.tick().await;
                let health = app.engine.health();
                if !health.idle && health.since_step > app.options.hang_timeout {
                    let age = health.since_step.as_secs_f64();
                    app.engine.declare_dead(format!("a step has not ended for {age:.0} s"));
                    // The next line ends the wait.
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::select! {
            reason = app.engine.died() => reason,
            () = hung => String::new(),
        }
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("engine", &self.app.engine).finish_non_exhaustive()
    }
}

async fn no_route() -> ApiError {
    ApiError::not_found("there is no such route; GET /openapi.json lists them")
}

async fn wrong_method() -> ApiError {
    let message = "the route does not take this method; GET /openapi.json lists them";
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "wrong_method", message)
}

fn routes(app: &Arc<App>) -> Router {
    Router::new()
        .route("/v1/items", post(native::items))
        .route("/v1/chat/completions", post(openai::chat))
        .route("/v1/completions", post(openai::completions))
        .route("/v1/batch", post(batch::batch))
        .route("/v1/models", get(health::models))
        .route("/v1/models/{*id}", get(health::one_model))
        .route("/v1/catalog", get(catalog::info))
        .route("/v1/catalog/item", get(catalog::item))
        .route("/v1/catalog/search", get(catalog::search))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/version", get(health::version))
        .route("/openapi.json", get(openapi::of_public))
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(health::metrics))
        .merge(page::routes())
        .fallback(no_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(Arc::clone(app), observe::public))
        .with_state(Arc::clone(app))
}

fn admin_routes(app: &Arc<App>) -> Router {
    Router::new()
        .route("/admin/catalog", get(admin::catalog))
        .route("/admin/catalog/load", post(admin::load))
        .route("/admin/catalog/rollback", post(admin::rollback))
        .route("/admin/catalog/compact", post(admin::compact))
        .route("/admin/catalog/deny", post(admin::deny))
        .route("/admin/catalog/allow", post(admin::allow))
        .route("/admin/catalog/add", post(admin::add))
        .route("/admin/catalog/remove", post(admin::remove))
        .route("/admin/filters", get(admin::filters).put(admin::set_filters))
        .route("/admin/drain", post(admin::drain))
        .route("/admin/log-level", get(admin::log_level).put(admin::set_log_level))
        .route("/admin/keys/reload", post(admin::reload_keys))
        .route("/openapi.json", get(openapi::of_admin))
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(health::metrics))
        .fallback(no_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(Arc::clone(app), observe::admin))
        .with_state(Arc::clone(app))
}
