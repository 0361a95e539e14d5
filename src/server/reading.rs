//! Bodies read as the routes read them, without a socket: for fuzzing.

use super::batch::BatchLine;
use super::error::ApiError;
use super::openai::Route;
use super::{native, tokens};
use crate::engine::Engine;
use crate::error::{Error, Result};

fn sentence(error: ApiError) -> Error {
    Error::invalid(error.param.unwrap_or_default(), error.message)
}

/// `/v1/items`, up to the engine's check.
pub fn items(engine: &Engine, body: &[u8]) -> Result<()> {
    let request = native::parse(body).map_err(sentence)?;
    engine.validate(&request).map(drop)
}

/// `/v1/chat/completions`, up to the engine's check of all its requests.
pub fn chat(engine: &Engine, body: &[u8]) -> Result<()> {
    Route::Chat.plan(body)?.check(engine).map(drop)
}

/// `/v1/completions`, up to the engine's check of all its requests.
pub fn completions(engine: &Engine, body: &[u8]) -> Result<()> {
    Route::Completion.plan(body)?.check(engine).map(drop)
}

/// A line of `/v1/batch`.
pub fn batch(_: &Engine, line: &[u8]) -> Result<()> {
    BatchLine::from_json(line).map(drop).map_err(|bad| bad.error)
}

/// A body of `/detokenize`.
pub fn detokenize(_: &Engine, body: &[u8]) -> Result<()> {
    tokens::from_json::<tokens::Detokenize>(body).map(drop).map_err(sentence)
}
