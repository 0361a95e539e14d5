//! `GET /v1/catalog…`: what the loaded catalog holds.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::app::App;
use super::error::ApiError;
use crate::catalog::{Catalog, Item, View};
use crate::ids::{Rank, TypeId};

/// Items that a search for titles looks at, at most: some milliseconds.
const MAX_LOOKED_AT: usize = 200_000;
/// Most titles that a search lists.
const MAX_LISTED: usize = 100;

fn view(app: &App) -> Result<Arc<View>, ApiError> {
    app.engine.view().ok_or_else(|| ApiError::not_found("this server has no catalog"))
}

/// What the catalog holds.
#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct CatalogInfo {
    /// Name of the state that requests see now.
    snapshot: String,
    types: Vec<TypeInfo>,
    /// Items of the snapshot.
    items: usize,
    /// Items added since.
    added: usize,
    /// Items removed since.
    removed: usize,
    /// Denied ids.
    denied: usize,
    attributes: Vec<AttributeInfo>,
    /// Named filters.
    filters: Vec<String>,
}

/// One item type.
#[derive(Serialize, schemars::JsonSchema)]
struct TypeInfo {
    name: String,
    /// Codes of each level's codebook.
    levels: Vec<usize>,
    items: usize,
    /// Distinct Semantic IDs.
    sids: usize,
}

/// One attribute.
#[derive(Serialize, schemars::JsonSchema)]
struct AttributeInfo {
    name: String,
    /// `bool`, `int`, `float`, `string`, `labels` …
    kind: &'static str,
    /// Types whose items have it.
    types: Vec<String>,
}

/// `GET /v1/catalog`.
pub(super) async fn info(State(app): State<Arc<App>>) -> Result<Json<CatalogInfo>, ApiError> {
    let view = view(&app)?;
    let base = view.base();
    let live = app.engine.catalog().ok_or_else(|| ApiError::not_found("this server has no catalog"))?;
    let stats = live.stats();
    let mut attributes: BTreeMap<&str, AttributeInfo> = BTreeMap::new();
    let mut types = Vec::new();
    for (t, spec) in base.specs().into_iter().enumerate() {
        let id = TypeId(t as u16);
        for (name, column) in base.columns(id) {
            let kind = column.values().kind();
            let info = AttributeInfo { name: name.to_owned(), kind, types: Vec::new() };
            attributes.entry(name).or_insert(info).types.push(spec.name.clone());
        }
        let index = base.index(id);
        types.push(TypeInfo {
            name: spec.name,
            levels: spec.levels,
            items: index.items(),
            sids: index.sids(),
        });
    }
    Ok(Json(CatalogInfo {
        snapshot: stats.view,
        types,
        items: stats.items,
        added: stats.added,
        removed: stats.removed,
        denied: stats.denied,
        attributes: attributes.into_values().collect(),
        filters: live.filters().names().map(str::to_owned).collect(),
    }))
}

/// Which item.
#[derive(Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ItemQuery {
    /// Item id.
    id: String,
}

/// An item and its place in the trie.
#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct ItemInfo {
    id: String,
    #[serde(rename = "type")]
    item_type: String,
    title: Option<String>,
    popularity: f64,
    sid: Vec<u16>,
    attributes: Map<String, Value>,
    /// From the root to the item.
    path: Vec<Step>,
    denied: bool,
}

/// One level of a path through the trie.
#[derive(Serialize, schemars::JsonSchema)]
struct Step {
    level: usize,
    code: u16,
    /// Codes that the node offers, before one is taken.
    children: usize,
    /// Distinct Semantic IDs below the code taken.
    sids: usize,
    /// Items below the code taken.
    items: usize,
}

/// `GET /v1/catalog/item?id=…`.
pub(super) async fn item(
    State(app): State<Arc<App>>,
    query: Result<Query<ItemQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<ItemInfo>, ApiError> {
    let Query(ItemQuery { id }) = query.map_err(|error| ApiError::invalid("query", error.body_text()))?;
    let view = view(&app)?;
    let item = view.find(&id).ok_or_else(|| ApiError {
        param: Some("id".to_owned()),
        ..ApiError::not_found(format!("id: the catalog has no item {id:?}"))
    })?;
    // An id that the delta has is the delta's there, and its path as well.
    let part = [view.delta(), Some(view.base())].into_iter().flatten().find(|part| part.find(&id).is_some());
    let part = part.ok_or_else(|| ApiError::not_found("the item has just gone"))?;
    let names = part.columns(item.item_type()).map(|(name, _)| name);
    let value = |name: &str| (name.to_owned(), item.attribute(name).unwrap_or(Value::Null));
    Ok(Json(ItemInfo {
        item_type: view.types()[item.item_type().index()].clone(),
        title: item.title().map(str::to_owned),
        popularity: item.popularity(),
        sid: item.codes(),
        attributes: names.map(value).collect(),
        path: path(part, &item),
        denied: app.deny_list().is_some_and(|deny| deny.contains(&id)),
        id,
    }))
}

fn path(catalog: &Catalog, item: &Item<'_>) -> Vec<Step> {
    let index = catalog.index(item.item_type());
    let mut node = index.root();
    let mut steps = Vec::new();
    for (level, code) in item.codes().into_iter().enumerate() {
        let mut children = 0;
        index.for_each_child(level, node, |_| children += 1);
        let Some(child) = index.child(level, node, code) else { break };
        let sids = if level + 1 == index.levels() {
            let sid = item.sid().index() as u32;
            sid..sid + 1
        } else {
            index.sids_below(level + 1, child.node)
        };
        let count = |sid: u32| index.ranks(crate::ids::SidIndex(sid)).len();
        let items = match (sids.len(), index.has_collisions()) {
            (0, _) => 0,
            (len, false) => len,
            // Ranks follow the order of SIDs.
            (_, true) => {
                let first = index.ranks(crate::ids::SidIndex(sids.start)).start;
                let last = sids.end - 1;
                (index.ranks(crate::ids::SidIndex(last)).start - first) as usize + count(last)
            }
        };
        steps.push(Step { level, code, children, sids: sids.len(), items });
        node = child.node;
    }
    steps
}

/// Which titles.
#[derive(Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TitleQuery {
    /// Part of a title, in any case; empty: any.
    #[serde(default)]
    q: String,
    /// Item type; default: all.
    #[serde(rename = "type")]
    item_type: Option<String>,
    /// Most titles listed, 1 to 100; default 10.
    limit: Option<i64>,
}

/// An item by its title.
#[derive(Serialize, schemars::JsonSchema)]
struct Titled {
    id: String,
    #[serde(rename = "type")]
    item_type: String,
    title: Option<String>,
}

/// Items whose titles match, in the catalog's order.
#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct Titles {
    items: Vec<Titled>,
    /// Whether all items were looked at; very large catalogs are not searched to their end.
    complete: bool,
}

/// `GET /v1/catalog/search?q=…`: a picker for people, not a search engine.
pub(super) async fn search(
    State(app): State<Arc<App>>,
    query: Result<Query<TitleQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Titles>, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::invalid("query", error.body_text()))?;
    let limit = query.limit.unwrap_or(10);
    if !(1..=MAX_LISTED as i64).contains(&limit) {
        let message = format!("{limit} is outside of the allowed range from 1 to {MAX_LISTED}");
        return Err(ApiError::invalid("limit", message));
    }
    let view = view(&app)?;
    if let Some(name) = query.item_type.as_ref().filter(|name| view.type_id(name).is_none()) {
        let message = format!("the catalog has no type {name:?}; it has {}", view.types().join(", "));
        return Err(ApiError::invalid("type", message));
    }
    let titles = tokio::task::spawn_blocking(move || matching(&app, &view, &query, limit as usize)).await;
    Ok(Json(titles.map_err(|_| ApiError::bug())?))
}

fn matching(app: &App, view: &View, query: &TitleQuery, limit: usize) -> Titles {
    let wanted = query.q.to_lowercase();
    let (mut items, mut seen) = (Vec::new(), 0usize);
    for part in [view.delta(), Some(view.base())].into_iter().flatten() {
        for (t, name) in view.types().iter().enumerate() {
            if query.item_type.as_ref().is_some_and(|wanted| wanted != name) {
                continue;
            }
            let t = TypeId(t as u16);
            for rank in 0..part.index(t).items() as u32 {
                if items.len() == limit || seen == MAX_LOOKED_AT {
                    return Titles { items, complete: false };
                }
                seen += 1;
                let item = part.item(t, Rank(rank));
                let title = item.title().unwrap_or_else(|| item.id());
                if !title.to_lowercase().contains(&wanted)
                    || app.deny_list().is_some_and(|deny| deny.contains(item.id()))
                {
                    continue;
                }
                items.push(Titled {
                    id: item.id().to_owned(),
                    item_type: name.clone(),
                    title: item.title().map(str::to_owned),
                });
            }
        }
    }
    Titles { items, complete: true }
}
