//! OpenAI's routes without their sockets: bodies become requests of the engine ([`Plan`]), its events become chunks and
//! whole answers ([`Encoder`]).
//!
//! What OpenAI's form cannot say is added beside it under the names of the native request: items stand in the text as
//! their titles, and in `items` with their place in it.

mod body;
mod encoder;
mod logprobs;
mod message;
mod plan;
mod response;
mod routes;
mod schema;

pub(crate) use body::{ChatBody, CompletionBody, Object, parse};
pub(crate) use encoder::{Chunk, Encoder, Reply};
pub(crate) use plan::Plan;
pub(crate) use routes::{chat, completions};
pub(crate) use schema::schemas;

#[cfg(test)]
mod tests;

/// Which of OpenAI's two forms is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completion,
}
