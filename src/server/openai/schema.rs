//! What the OpenAPI document says of OpenAI's routes.

use schemars::{Schema, SchemaGenerator};

use super::body::{ChatBody, CompletionBody};
use super::logprobs::{ChatLogprobs, CompletionLogprobs};
use super::response::{ChatBodyOf, Choice, Envelope, TextBodyOf};

/// Schemas of bodies and answers: references to what the generator now holds.
pub(crate) struct Schemas {
    /// Body of `/v1/chat/completions`.
    pub chat_request: Schema,
    /// Its whole answer.
    pub chat_answer: Schema,
    /// Body of `/v1/completions`.
    pub completion_request: Schema,
    /// Its whole answer, and a chunk of its stream.
    pub completion_answer: Schema,
}

/// Adds the schemas of both routes to a generator.
pub(crate) fn schemas(generator: &mut SchemaGenerator) -> Schemas {
    type Of<'a, B, L> = Envelope<'a, Choice<'a, B, L>>;
    Schemas {
        chat_request: generator.subschema_for::<ChatBody>(),
        chat_answer: generator.subschema_for::<Of<'_, ChatBodyOf<'_>, ChatLogprobs<'_>>>(),
        completion_request: generator.subschema_for::<CompletionBody>(),
        completion_answer: generator.subschema_for::<Of<'_, TextBodyOf<'_>, CompletionLogprobs<'_>>>(),
    }
}
