//! `POST /tokenize` and `POST /detokenize`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::{Extension, Json};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::app::App;
use super::body::receive;
use super::call::{expect_json, refused};
use super::error::ApiError;
use super::health::expect_model;
use super::observe::Context;
use super::openai::parse;
use crate::engine::{Message, Output, Request};
use crate::ids::TokenId;

/// What to tokenize: exactly one of `prompt` and `messages`.
#[derive(Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Tokenize {
    model: Option<String>,
    /// Text as it is.
    prompt: Option<String>,
    /// A conversation, rendered by the model's chat template.
    messages: Option<Vec<Message>>,
}

/// A prompt as the model gets it.
#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct Tokens {
    #[schemars(with = "Vec<u32>")]
    tokens: Vec<TokenId>,
    count: usize,
    /// Most tokens of prompt and answer together.
    max_model_len: usize,
}

/// Tokens to show.
#[derive(Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Detokenize {
    model: Option<String>,
    tokens: Vec<i64>,
}

/// The text of tokens; special tokens and those that spell items are not shown.
#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct Text {
    prompt: String,
}

/// A body of JSON, with the path of the field that is wrong.
pub(super) fn from_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    Ok(parse(bytes)?)
}

/// A body of JSON, read under the server's bounds.
pub(super) async fn read_json<T: DeserializeOwned>(
    app: &App,
    headers: &HeaderMap,
    body: Body,
) -> Result<T, ApiError> {
    expect_json(headers)?;
    from_json(&receive(app, headers, body).await?.bytes)
}

/// `POST /tokenize`.
pub(super) async fn tokenize(
    State(app): State<Arc<App>>,
    Extension(_): Extension<Arc<Context>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Tokens>, ApiError> {
    let Tokenize { model, prompt, messages } = read_json(&app, &headers, body).await?;
    expect_model(&app, model.as_deref())?;
    let request =
        Request { prompt, messages, output: Some(Output::Text), max_tokens: Some(1), ..Request::default() };
    let engine = app.engine.clone();
    let checked = tokio::task::spawn_blocking(move || engine.validate(&request)).await;
    let request = checked.map_err(|_| ApiError::bug())?.map_err(|error| refused(&app, error))?;
    let tokens = request.tokens().to_vec();
    Ok(Json(Tokens { count: tokens.len(), tokens, max_model_len: app.engine.max_sequence() }))
}

/// `POST /detokenize`.
pub(super) async fn detokenize(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Text>, ApiError> {
    let Detokenize { model, tokens } = read_json(&app, &headers, body).await?;
    expect_model(&app, model.as_deref())?;
    let tokenizer = app.engine.tokenizer();
    let known = |(at, &token): (usize, &i64)| match u32::try_from(token).map(TokenId) {
        Ok(id) if tokenizer.has(id) => Ok(id),
        _ => Err(ApiError::invalid(format!("tokens[{at}]"), format!("the tokenizer has no token {token}"))),
    };
    let tokens = tokens.iter().enumerate().map(known).collect::<Result<Vec<_>, _>>()?;
    Ok(Json(Text { prompt: tokenizer.decode(&tokens) }))
}
