//! `GET /openapi.json`: what the routes take and give, made from the types that they are written with.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::app::App;
use super::error::ErrorBody;
use super::{admin, batch, catalog, health, native, openai, tokens};
use crate::catalog::Change;
use crate::engine::Request;

/// What goes into a route.
enum Input {
    Nothing,
    /// A JSON body.
    Json(Schema),
    /// Lines of JSON, and query parameters.
    Lines(Schema),
    /// Query parameters: the properties of an object.
    Query(Schema),
    /// The rest of the path.
    Path(&'static str),
}

/// What comes out of it.
enum Output {
    Json(Schema),
    /// JSON, or events if the request asks for them.
    JsonOrEvents(Schema),
    Lines,
    Text(&'static str),
    Empty(u16),
}

struct Route {
    method: &'static str,
    path: &'static str,
    summary: &'static str,
    input: Input,
    output: Output,
}

fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

fn route(method: &'static str, path: &'static str, summary: &'static str, input: Input, output: Output) -> Route {
    Route { method, path, summary, input, output }
}

fn public(g: &mut SchemaGenerator) -> Vec<Route> {
    use Input::{Json, Nothing, Path, Query};
    let forms = openai::schemas(g);
    vec![
        route(
            "post",
            "/v1/items",
            "Search or recommend: a ranked list of items of the catalog (text and mixed answers too)",
            Json(of::<Request>(g)),
            Output::JsonOrEvents(of::<native::NativeAnswer<'_>>(g)),
        ),
        route(
            "post",
            "/v1/chat/completions",
            "OpenAI's chat form, with items in the text and beside it",
            Json(forms.chat_request),
            Output::JsonOrEvents(forms.chat_answer),
        ),
        route(
            "post",
            "/v1/completions",
            "OpenAI's completion form",
            Json(forms.completion_request),
            Output::JsonOrEvents(forms.completion_answer),
        ),
        route(
            "post",
            "/v1/batch",
            "A line of JSON per request, native or of OpenAI's batch form; a line per answer, in order, as they are ready",
            Input::Lines(batch::BatchQuery::json_schema(g)),
            Output::Lines,
        ),
        route("get", "/v1/models", "The model that is served", Nothing, Output::Json(of::<health::ModelList>(g))),
        route("get", "/v1/models/{id}", "The model of this name", Path("id"), Output::Json(of::<health::ModelObject>(g))),
        route("get", "/v1/catalog", "What the catalog holds", Nothing, Output::Json(of::<catalog::CatalogInfo>(g))),
        route(
            "get",
            "/v1/catalog/item",
            "An item and its path through the trie",
            Query(catalog::ItemQuery::json_schema(g)),
            Output::Json(of::<catalog::ItemInfo>(g)),
        ),
        route(
            "get",
            "/v1/catalog/search",
            "Items by a part of their titles",
            Query(catalog::TitleQuery::json_schema(g)),
            Output::Json(of::<catalog::Titles>(g)),
        ),
        route(
            "post",
            "/tokenize",
            "A prompt's tokens",
            Json(of::<tokens::Tokenize>(g)),
            Output::Json(of::<tokens::Tokens>(g)),
        ),
        route(
            "post",
            "/detokenize",
            "The text of tokens",
            Json(of::<tokens::Detokenize>(g)),
            Output::Json(of::<tokens::Text>(g)),
        ),
        route("get", "/version", "What runs", Nothing, Output::Json(of::<health::Version>(g))),
        route("get", "/", "A page to try it", Nothing, Output::Text("text/html")),
    ]
}

fn operations() -> Vec<Route> {
    use Input::Nothing;
    vec![
        route("get", "/livez", "Whether the process answers", Nothing, Output::Text("text/plain")),
        route("get", "/readyz", "Whether requests are welcome", Nothing, Output::Text("text/plain")),
        route("get", "/metrics", "Prometheus text", Nothing, Output::Text("application/openmetrics-text")),
    ]
}

fn administration(g: &mut SchemaGenerator) -> Vec<Route> {
    use Input::{Json, Nothing};
    let change = of::<Change>(g);
    let changing = |path, summary, input| route("post", path, summary, input, Output::Json(change.clone()));
    let object = of::<Map<String, Value>>(g);
    let ids = of::<admin::Ids>(g);
    vec![
        route("get", "/admin/catalog", "Counts, and denied ids", Nothing, Output::Json(of::<admin::CatalogState>(g))),
        changing("/admin/catalog/load", "Verifies a snapshot and swaps it in", Json(of::<admin::Load>(g))),
        changing("/admin/catalog/rollback", "Back to the snapshot before", Nothing),
        changing("/admin/catalog/compact", "Makes one snapshot of the present one and its changes", Nothing),
        changing("/admin/catalog/deny", "After its answer no byte is sent that names one of the items", Json(ids.clone())),
        changing("/admin/catalog/allow", "Takes items off the deny list", Json(ids.clone())),
        changing("/admin/catalog/add", "Adds items, or replaces those of the same ids", Json(of::<admin::Items>(g))),
        changing("/admin/catalog/remove", "Removes items", Json(ids)),
        route("get", "/admin/filters", "Named filters", Nothing, Output::Json(object.clone())),
        route("put", "/admin/filters", "Replaces all named filters", Json(object.clone()), Output::Json(object)),
        route("post", "/admin/drain", "Ends the server once its requests are answered", Nothing, Output::Empty(202)),
        route("get", "/admin/log-level", "What the log shows", Nothing, Output::Json(of::<admin::LogLevel>(g))),
        route(
            "put",
            "/admin/log-level",
            "Sets what the log shows",
            Json(of::<admin::LogLevel>(g)),
            Output::Json(of::<admin::LogLevel>(g)),
        ),
        route("post", "/admin/keys/reload", "Reads the keys again", Nothing, Output::Json(of::<admin::KeyCount>(g))),
    ]
}

fn content(kind: &str, schema: &Value) -> Value {
    json!({ kind: { "schema": schema } })
}

fn operation(route: Route, error: &Value) -> Value {
    let mut operation = json!({
        "summary": route.summary,
        "operationId": format!("{}{}", route.method, route.path.replace(['/', '{', '}', '.'], "_")),
    });
    match route.input {
        Input::Nothing => {}
        Input::Json(schema) => {
            operation["requestBody"] = json!({"required": true, "content": content("application/json", schema.as_value())});
        }
        Input::Lines(query) => {
            operation["parameters"] = parameters(query.as_value());
            let lines = json!({"type": "string"});
            operation["requestBody"] = json!({"required": true, "content": content("application/jsonl", &lines)});
        }
        Input::Query(schema) => operation["parameters"] = parameters(schema.as_value()),
        Input::Path(name) => {
            let text = json!({"type": "string"});
            operation["parameters"] = json!([{"name": name, "in": "path", "required": true, "schema": text}]);
        }
    }
    let text = json!({"type": "string"});
    let (status, body) = match &route.output {
        Output::Json(schema) => (200, Some(content("application/json", schema.as_value()))),
        Output::JsonOrEvents(schema) => {
            let mut both = content("application/json", schema.as_value());
            // No schema: a reader of the document would hold it against each event.
            both["text/event-stream"] = json!({});
            (200, Some(both))
        }
        Output::Lines => (200, Some(content("application/jsonl", &text))),
        Output::Text(kind) => (200, Some(content(kind, &text))),
        Output::Empty(status) => (*status, None),
    };
    let mut answer = json!({ "description": "Done" });
    if let Some(body) = body {
        answer["content"] = body;
    }
    operation["responses"] = json!({
        status.to_string(): answer,
        "default": {"description": "An error", "content": content("application/json", error)},
    });
    operation
}

/// The properties of an object as query parameters.
fn parameters(schema: &Value) -> Value {
    let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let properties = schema["properties"].as_object().into_iter().flatten();
    let parameter = |(name, schema): (&String, &Value)| {
        json!({"name": name, "in": "query", "required": required.contains(&name.as_str()), "schema": schema})
    };
    properties.map(parameter).collect()
}

/// The document of a listener.
pub(super) fn document(admin_listener: bool) -> Value {
    let mut settings = SchemaSettings::draft2020_12();
    settings.definitions_path = "/components/schemas".into();
    let mut generator = settings.into_generator();
    let error = of::<ErrorBody>(&mut generator).as_value().clone();
    let own = if admin_listener { administration(&mut generator) } else { public(&mut generator) };
    let mut paths = Map::new();
    for route in own.into_iter().chain(operations()) {
        let (path, method) = (route.path, route.method);
        paths.entry(path).or_insert_with(|| json!({}))[method] = operation(route, &error);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": if admin_listener { "Sidereal, admin listener" } else { "Sidereal" },
            "version": env!("CARGO_PKG_VERSION"),
            "description": env!("CARGO_PKG_DESCRIPTION"),
        },
        "security": [{}, {"key": []}],
        "paths": paths,
        "components": {
            "schemas": generator.take_definitions(true),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    })
}

fn answer(text: &Bytes) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], text.clone()).into_response()
}

/// `GET /openapi.json` of the first listener.
pub(super) async fn of_public(State(app): State<Arc<App>>) -> Response {
    answer(app.openapi.get_or_init(|| document(false).to_string().into()))
}

/// `GET /openapi.json` of the admin listener.
pub(super) async fn of_admin() -> Response {
    answer(&document(true).to_string().into())
}
