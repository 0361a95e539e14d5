//! The admin listener: the catalog, named filters, keys, the log, and the end of the server.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::app::App;
use super::error::ApiError;
use super::observe::Context;
use super::tokens::read_json;
use crate::catalog::source::item_from_fields;
use crate::catalog::{Change, FilterSet, LiveCatalog, LiveStats};
use crate::error::{Error, Result};

type Answer<T> = std::result::Result<Json<T>, ApiError>;

fn live(app: &App) -> std::result::Result<Arc<LiveCatalog>, ApiError> {
    let catalog = app.engine.catalog().cloned();
    catalog.ok_or_else(|| ApiError::not_found("this server has no catalog"))
}

/// Changes the catalog on a thread of its own: building and verifying take their time.
async fn change(
    app: &App,
    context: &Context,
    what: &'static str,
    work: impl FnOnce(&Arc<LiveCatalog>) -> Result<Change> + Send + 'static,
) -> Answer<Change> {
    let catalog = live(app)?;
    let done = tokio::task::spawn_blocking(move || work(&catalog)).await;
    let change = done.map_err(|_| ApiError::bug())?.map_err(|error| match error {
        // The operator's file, not the server's fault.
        Error::File { .. } => ApiError {
            param: Some("file".to_owned()),
            ..ApiError::new(StatusCode::BAD_REQUEST, "file", error.to_string())
        },
        error => error.into(),
    })?;
    let by = context.caller.name.as_deref();
    let (view, changed) = (&change.view, change.changed);
    tracing::info!(what, by, request_id = %context.request_id, view, changed, "the catalog changed");
    Ok(Json(change))
}

/// Which snapshot.
#[derive(Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Load {
    /// Path of a snapshot file on the server's machine.
    file: PathBuf,
    /// Whether items added and removed since the present snapshot are carried over to the new one.
    #[serde(default)]
    carry: bool,
}

/// `POST /admin/catalog/load`: verifies a snapshot and swaps it in; requests that run keep theirs.
pub(super) async fn load(
    State(app): State<Arc<App>>,
    Extension(context): Extension<Arc<Context>>,
    headers: HeaderMap,
    body: Body,
) -> Answer<Change> {
    let Load { file, carry } = read_json(&app, &headers, body).await?;
    change(&app, &context, "load", move |catalog| catalog.load(&file, carry, &mut |_, _| {})).await
}

/// `POST /admin/catalog/rollback`: back to the snapshot before.
pub(super) async fn rollback(
    State(app): State<Arc<App>>,
    Extension(context): Extension<Arc<Context>>,
) -> Answer<Change> {
    change(&app, &context, "rollback", |catalog| catalog.rollback()).await
}

/// `POST /admin/catalog/compact`: makes one snapshot of the present one and its changes.
pub(super) async fn compact(
    State(app): State<Arc<App>>,
    Extension(context): Extension<Arc<Context>>,
) -> Answer<Change> {
    change(&app, &context, "compact", |catalog| catalog.compact()).await
}

/// Which items.
#[derive(Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Ids {
    /// Item ids.
    ids: Vec<String>,
}

/// `POST /admin/catalog/deny`: after its answer no byte is sent that names one of the items.
pub(super) async fn deny(
    State(app): State<Arc<App>>,
    Extension(context): Extension<Arc<Context>>,
    headers: HeaderMap,
    body: Body,
) -> Answer<Change> {
    let Ids { ids } = read_json(&app, &headers, body).await?;
    change(&app, &context, "deny", move |catalog| catalog.deny(&ids)).await
}

/// `POST /admin/catalog/allow`: takes items off the deny list.
pub(super) async fn allow(
    State(app): State<Arc<App>>,
    Extension(context): Extension<Arc<Context>>,
    headers: HeaderMap,
    body: Body,
) -> Answer<Change> {
    let Ids { ids } = read_json(&app, &headers, body).await?;
    change(&app, &context, "allow", move |catalog| catalog.allow(&ids)).await
}

/// `POST /admin/catalog/remove`: items that no later request is to see.
pub(super) async fn remove(
    State(app): State<Arc<App>>,
    Extension(context): Extension<Arc<Context>>,
    headers: HeaderMap,
    body: Body,
) -> Answer<Change> {
    let Ids { ids } = read_json(&app, &headers, body).await?;
    change(&app, &context, "remove", move |catalog| catalog.remove(&ids)).await
}

/// New items.
#[derive(Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Items {
    /// Each as a line of a source has it: `id`, `type`, `title`, `popularity`, `sid`; everything else is an attribute.
    items: Vec<Map<String, Value>>,
}

/// `POST /admin/catalog/add`: adds items, or replaces those of the same ids; all of them or none.
pub(super) async fn add(
    State(app): State<Arc<App>>,
    Extension(context): Extension<Arc<Context>>,
    headers: HeaderMap,
    body: Body,
) -> Answer<Change> {
    let Items { items } = read_json(&app, &headers, body).await?;
    let record = |(at, fields)| {
        item_from_fields(fields).map_err(|bad| ApiError::invalid(format!("items[{at}]"), bad.message))
    };
    let items = items.into_iter().enumerate().map(record).collect::<std::result::Result<Vec<_>, _>>()?;
    change(&app, &context, "add", move |catalog| catalog.add(items)).await
}

/// `GET /admin/catalog`: counts, and the ids that are denied.
#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct CatalogState {
    #[serde(flatten)]
    stats: LiveStats,
    /// The first thousand.
    denied_ids: Vec<String>,
}

pub(super) async fn catalog(State(app): State<Arc<App>>) -> Answer<CatalogState> {
    let catalog = live(&app)?;
    let mut denied_ids = catalog.deny_list().ids();
    denied_ids.truncate(1000);
    Ok(Json(CatalogState { stats: catalog.stats(), denied_ids }))
}

/// `GET /admin/filters`: the named filters as they were given.
pub(super) async fn filters(State(app): State<Arc<App>>) -> Json<Map<String, Value>> {
    Json(app.filters.lock().unwrap_or_else(PoisonError::into_inner).clone())
}

/// `PUT /admin/filters`: an object of names and expressions that replaces all named filters.
pub(super) async fn set_filters(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Answer<Map<String, Value>> {
    let given: Map<String, Value> = read_json(&app, &headers, body).await?;
    set_named(&app, given.clone())?;
    Ok(Json(given))
}

/// Replaces all named filters.
pub(super) fn set_named(app: &App, given: Map<String, Value>) -> std::result::Result<(), ApiError> {
    let filters = FilterSet::parse(&given, &app.engine.limits().filter)?;
    let mut kept = app.filters.lock().unwrap_or_else(PoisonError::into_inner);
    live(app)?.set_filters(filters)?;
    *kept = given;
    Ok(())
}

/// `POST /admin/drain`: no new connections, running requests end, the process ends.
pub(super) async fn drain(
    State(app): State<Arc<App>>,
    Extension(context): Extension<Arc<Context>>,
) -> StatusCode {
    tracing::info!(by = context.caller.name.as_deref(), "asked to drain");
    app.start_draining();
    StatusCode::ACCEPTED
}

/// What the log shows.
#[derive(Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LogLevel {
    /// `error`, `warn`, `info`, `debug`, `trace`, or directives such as `info,sidereal::server=debug`.
    level: String,
}

fn log_level_of(app: &App, level: Option<&str>) -> Answer<LogLevel> {
    let Some(set) = &app.log_level else {
        return Err(ApiError::not_found("the program that runs this server keeps its log level to itself"));
    };
    let level = set(level).map_err(|message| ApiError::invalid("level", message))?;
    Ok(Json(LogLevel { level }))
}

/// `GET /admin/log-level`.
pub(super) async fn log_level(State(app): State<Arc<App>>) -> Answer<LogLevel> {
    log_level_of(&app, None)
}

/// `PUT /admin/log-level`.
pub(super) async fn set_log_level(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Answer<LogLevel> {
    let LogLevel { level } = read_json(&app, &headers, body).await?;
    log_level_of(&app, Some(&level))
}

/// How many keys there are.
#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct KeyCount {
    keys: usize,
}

/// `POST /admin/keys/reload`: reads the file of keys again.
pub(super) async fn reload_keys(State(app): State<Arc<App>>) -> Answer<KeyCount> {
    let keys = app
        .keys
        .reload()
        .map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, "file", error.to_string()))?;
    Ok(Json(KeyCount { keys }))
}
