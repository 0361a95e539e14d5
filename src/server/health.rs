//! Whether the server lives, whether it should get requests, and what monitoring sees. None of it ever touches the engine's queue.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::app::App;
use super::error::ApiError;

/// `GET /livez`: the process answers.
pub(super) async fn livez() -> &'static str {
    "ok\n"
}

/// `GET /readyz`: requests are welcome. 503 with the reason while the engine is dead or stalled, or the server drains.
pub(super) async fn readyz(State(app): State<Arc<App>>) -> Response {
    match app.unready() {
        None => "ok\n".into_response(),
        Some(error) => error.into_response(),
    }
}

/// `GET /metrics`: Prometheus text.
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let text = app.metrics.text().map_err(|_| {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "bug", "the metrics could not be written")
    })?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

/// What runs.
#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct Version {
    version: &'static str,
}

/// `GET /version`.
pub(super) async fn version() -> Json<Version> {
    Json(Version { version: env!("CARGO_PKG_VERSION") })
}

/// A model as OpenAI's clients list it.
#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct ModelObject {
    id: String,
    object: &'static str,
    /// Unix time of the server's start, seconds.
    created: u64,
    owned_by: &'static str,
    /// Most tokens of prompt and answer together.
    max_model_len: usize,
}

/// All models of a server: one.
#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct ModelList {
    object: &'static str,
    data: Vec<ModelObject>,
}

fn model(app: &App) -> ModelObject {
    ModelObject {
        id: app.options.model_name.clone(),
        object: "model",
        created: app.created,
        owned_by: "sidereal",
        max_model_len: app.engine.max_sequence(),
    }
}

/// `GET /v1/models`.
pub(super) async fn models(State(app): State<Arc<App>>) -> Json<ModelList> {
    Json(ModelList { object: "list", data: vec![model(&app)] })
}

/// `GET /v1/models/{id}`.
pub(super) async fn one_model(
    State(app): State<Arc<App>>,
    axum::extract::Path(id): axum::extract::Path<String>,
) -> Result<Json<ModelObject>, ApiError> {
    expect_model(&app, Some(&id))?;
    Ok(Json(model(&app)))
}

/// Refuses requests for another model than the one that is served.
pub(super) fn expect_model(app: &App, id: Option<&str>) -> Result<(), ApiError> {
    let own = &app.options.model_name;
    match id {
        Some(id) if id != own => {
            let message = format!("model: {id:?} is not served here; expected {own:?}");
            Err(ApiError { param: Some("model".to_owned()), ..ApiError::not_found(message) })
        }
        _ => Ok(()),
    }
}
