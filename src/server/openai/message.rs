//! Prompts as OpenAI's bodies write them: messages, texts, token ids.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};

use super::body::{Object, Unserved, refuse};
use crate::engine::{Content, Message, Part};
use crate::error::{Error, Result};

/// One message of a conversation. A message of an answer may be sent back as it came, its `items` included.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChatMessage {
    /// `system`, `developer`, `user`, `assistant` or `tool`.
    #[schemars(extend("enum" = ["system", "developer", "user", "assistant", "tool"]))]
    pub role: String,
    /// Text, or typed parts.
    #[schemars(required)]
    pub content: Option<Content>,
    /// Items that stand in the content as their titles: the prompt holds their spans instead.
    pub items: Option<Vec<Object<PlacedItem>>>,
    /// Without effect: there are no tools.
    pub tool_call_id: Option<String>,
    /// Not served: chat templates here know no names.
    #[schemars(skip)]
    pub name: Option<Unserved>,
    /// Not served.
    #[schemars(skip)]
    pub refusal: Option<Unserved>,
    /// Not served.
    #[schemars(skip)]
    pub annotations: Option<Unserved>,
    /// Not served.
    #[schemars(skip)]
    pub audio: Option<Unserved>,
    /// Not served.
    #[schemars(skip)]
    pub function_call: Option<Unserved>,
    /// Not served.
    #[schemars(skip)]
    pub tool_calls: Option<Unserved>,
}

/// An item with its place in a text, in Unicode code points; what else an answer says of it is not looked at.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
pub(crate) struct PlacedItem {
    /// Where its title begins.
    #[schemars(range(min = 0))]
    pub start: i64,
    /// Where its title ends.
    #[schemars(range(min = 0))]
    pub end: i64,
    /// Item id.
    pub id: String,
}

impl ChatMessage {
    /// The native message; `at` is its place in the list.
    ///
    /// # Errors
    /// [`Error::Invalid`] for fields that are not served, a missing content, and items outside of it.
    pub(super) fn native(self, at: usize) -> Result<Message> {
        let unserved = [
            ("name", &self.name),
            ("refusal", &self.refusal),
            ("annotations", &self.annotations),
            ("audio", &self.audio),
            ("function_call", &self.function_call),
            ("tool_calls", &self.tool_calls),
        ];
        refuse(&format!("messages[{at}]."), &unserved)?;
        let field = |name: &str| format!("messages[{at}].{name}");
        let content = self
            .content
            .ok_or_else(|| Error::invalid(field("content"), "missing; a text or parts are needed"))?;
        let items = self.items.unwrap_or_default();
        let content = match content {
            content if items.is_empty() => content,
            Content::Text(text) => Content::Parts(split(&text, items, at)?),
            Content::Parts(_) => {
                let message = "not allowed beside a content of parts: write the items as parts of it";
                return Err(Error::invalid(field("items"), message));
            }
        };
        Ok(Message { role: self.role, content })
    }
}

/// A text with items in it as parts.
fn split(text: &str, items: Vec<Object<PlacedItem>>, message: usize) -> Result<Vec<Part>> {
    let mut parts = Vec::with_capacity(2 * items.len() + 1);
    // The text not yet taken, and where it begins.
    let (mut rest, mut place) = (text, 0);
    for (i, Object(item)) in items.into_iter().enumerate() {
        let range = usize::try_from(item.start).ok().zip(usize::try_from(item.end).ok());
        let cut = range.filter(|(start, end)| place <= *start && start <= end).and_then(|(start, end)| {
            let (before, after) = split_at_char(rest, start - place)?;
            let (_, after) = split_at_char(after, end - start)?;
            Some((before, after, end))
        });
        let Some((before, after, end)) = cut else {
            let (start, end, len) = (item.start, item.end, place + rest.chars().count());
            return Err(Error::invalid(
                format!("messages[{message}].items[{i}]"),
                format!("{start} to {end} is outside of the range that is left, from {place} to {len}"),
            ));
        };
        if !before.is_empty() {
            parts.push(Part::Text { text: before.to_owned() });
        }
        parts.push(Part::Item { id: item.id });
        (rest, place) = (after, end);
    }
    if !rest.is_empty() {
        parts.push(Part::Text { text: rest.to_owned() });
    }
    Ok(parts)
}

/// Splits a text after this many code points; `None` if it has fewer.
fn split_at_char(text: &str, count: usize) -> Option<(&str, &str)> {
    let ends = text.char_indices().map(|(at, _)| at).chain([text.len()]);
    ends.into_iter().nth(count).map(|at| text.split_at(at))
}

/// The prompt of `/v1/completions`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Prompt {
    /// One text.
    Text(String),
    /// Several texts.
    Texts(Vec<String>),
    /// One list of token ids.
    Tokens(Vec<i64>),
    /// Several lists of token ids.
    TokenLists(Vec<Vec<i64>>),
}

impl JsonSchema for Prompt {
    fn schema_name() -> Cow<'static, str> {
        "Prompt".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let ids =
            || json_schema!({"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1});
        json_schema!({
            "description": "A text, a list of texts, a list of token ids, or a list of such lists.",
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
                ids(),
                {"type": "array", "items": ids(), "minItems": 1},
            ],
        })
    }
}

/// The first element of a list of prompts: it says what the others must be.
enum First {
    Text(String),
    Token(i64),
    Tokens(Vec<i64>),
}

impl<'de> Deserialize<'de> for First {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<First, D::Error> {
        struct FirstVisitor;
        impl<'de> Visitor<'de> for FirstVisitor {
            type Value = First;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a text, a token id or a list of token ids")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<First, E> {
                Ok(First::Text(text.to_owned()))
            }
            fn visit_i64<E: de::Error>(self, id: i64) -> Result<First, E> {
                Ok(First::Token(id))
            }
            fn visit_u64<E: de::Error>(self, id: u64) -> Result<First, E> {
                i64::deserialize(de::value::U64Deserializer::new(id)).map(First::Token)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<First, A::Error> {
                Vec::deserialize(de::value::SeqAccessDeserializer::new(seq)).map(First::Tokens)
            }
        }
        deserializer.deserialize_any(FirstVisitor)
    }
}

impl<'de> Deserialize<'de> for Prompt {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Prompt, D::Error> {
        struct PromptVisitor;
        impl<'de> Visitor<'de> for PromptVisitor {
            type Value = Prompt;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a text, a list of texts, a list of token ids or a list of such lists")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Prompt, E> {
                Ok(Prompt::Text(text.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Prompt, A::Error> {
                Ok(match seq.next_element()? {
                    None => Prompt::Texts(Vec::new()),
                    Some(First::Text(text)) => Prompt::Texts(rest(text, seq)?),
                    Some(First::Token(id)) => Prompt::Tokens(rest(id, seq)?),
                    Some(First::Tokens(ids)) => Prompt::TokenLists(rest(ids, seq)?),
                })
            }
        }
        deserializer.deserialize_any(PromptVisitor)
    }
}

/// The first element and those that follow it.
fn rest<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(first: T, mut seq: A) -> Result<Vec<T>, A::Error> {
    let mut all = vec![first];
    while let Some(next) = seq.next_element()? {
        all.push(next);
    }
    Ok(all)
}
