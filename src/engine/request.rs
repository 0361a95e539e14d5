//! The native form of a request, as JSON lines, HTTP and embedding programs write it. Nothing here is checked yet:
//! [`super::ValidatedRequest`] is the only form the engine accepts.
//!
//! Integers are `i64` and reals `f64` on purpose: a value out of bounds reaches the one check that can name the bound.

use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::ser::{SerializeSeq, Serializer};
use serde::{Deserialize, Serialize};

#[cfg(feature = "server")]
use super::schema;
use crate::device::ops::Normalizer;
use crate::error::{Error, Result};

/// What an answer may consist of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Output {
    /// Text alone.
    #[default]
    Text,
    /// A ranked list of items.
    Items,
    /// Text with items in it.
    Mixed,
}

/// Which end of a prompt that is too long may be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Truncate {
    /// The oldest tokens.
    Start,
    /// The newest tokens.
    End,
}

/// What to do with an item id that the catalog does not hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum UnknownItems {
    /// Refuse the request.
    #[default]
    Error,
    /// Leave the item out and count it.
    Skip,
}

/// Which items a SID shared by several yields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Collisions {
    /// The most popular alive one.
    #[default]
    Best,
    /// Each alive one, with the same score.
    All,
}

/// A part of a message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum Part {
    /// Text of a user: never a special token, whatever it spells.
    Text {
        /// The text.
        text: String,
    },
    /// One item's span.
    Item {
        /// Item id.
        id: String,
    },
    /// Spans without separator, newest last; whole spans are dropped from the oldest end until the prompt fits.
    History {
        /// Item ids.
        items: Vec<String>,
    },
    /// One soft token: a vector that goes through the model's adapter.
    Embedding {
        /// Components of the vector.
        values: Vec<f32>,
    },
}

/// The content of a message: a string, or parts.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// Plain text.
    Text(String),
    /// Typed parts.
    Parts(Vec<Part>),
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Content, D::Error> {
        struct ContentVisitor;
        impl<'de> Visitor<'de> for ContentVisitor {
            type Value = Content;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a string or a list of parts")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Content, E> {
                Ok(Content::Text(text.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Content, A::Error> {
                Vec::deserialize(de::value::SeqAccessDeserializer::new(seq)).map(Content::Parts)
            }
        }
        deserializer.deserialize_any(ContentVisitor)
    }
}

impl Serialize for Content {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Content::Text(text) => serializer.serialize_str(text),
            Content::Parts(parts) => parts.serialize(serializer),
        }
    }
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// `system`, `user`, `assistant`, or what the model's template knows.
    pub role: String,
    /// Text or typed parts.
    pub content: Content,
}

impl Message {
    /// A message of the user in plain text.
    pub fn user(text: impl Into<String>) -> Message {
        Message { role: "user".to_owned(), content: Content::Text(text.into()) }
    }
}

/// One value, or a list of them.
#[derive(Clone, Debug, PartialEq)]
pub enum OneOrMany<T> {
    /// A single value.
    One(T),
    /// A list.
    Many(Vec<T>),
}

impl<T: Clone> OneOrMany<T> {
    /// The values.
    pub fn to_vec(&self) -> Vec<T> {
        match self {
            OneOrMany::One(value) => vec![value.clone()],
            OneOrMany::Many(values) => values.clone(),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<OneOrMany<T>, D::Error> {
        struct EitherVisitor<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for EitherVisitor<T> {
            type Value = OneOrMany<T>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("one value or a list of values")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<OneOrMany<T>, A::Error> {
                Vec::deserialize(de::value::SeqAccessDeserializer::new(seq)).map(OneOrMany::Many)
            }
            fn visit_str<E: de::Error>(self, value: &str) -> Result<OneOrMany<T>, E> {
                T::deserialize(de::value::StrDeserializer::new(value)).map(OneOrMany::One)
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<OneOrMany<T>, E> {
                T::deserialize(de::value::I64Deserializer::new(value)).map(OneOrMany::One)
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<OneOrMany<T>, E> {
                T::deserialize(de::value::U64Deserializer::new(value)).map(OneOrMany::One)
            }
        }
        deserializer.deserialize_any(EitherVisitor(std::marker::PhantomData))
    }
}

impl<T: Serialize> Serialize for OneOrMany<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            OneOrMany::One(value) => value.serialize(serializer),
            OneOrMany::Many(values) => {
                let mut seq = serializer.serialize_seq(Some(values.len()))?;
                for value in values {
                    seq.serialize_element(value)?;
                }
                seq.end()
            }
        }
    }
}

/// How alike the items of a list may be.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Diversity {
    /// Divides the beam width; each group decodes after the earlier ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schemars(range(min = 1, max = 1024)))]
    pub groups: Option<i64>,
    /// What a group pays for each use of the same code at the same level by earlier groups.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schemars(range(min = 0.0, max = 1e6)))]
    pub penalty: Option<f64>,
    /// Most paths kept per (type, first code).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schemars(range(min = 1, max = 1024)))]
    pub max_per_prefix: Option<i64>,
}

/// How many items of one type the answer holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Quota {
    /// Type name.
    #[serde(rename = "type")]
    pub item_type: String,
    /// Items wanted.
    #[cfg_attr(feature = "server", schemars(range(min = 1, max = 1024)))]
    pub n: i64,
}

/// A weight added to the score of finished paths whose item has an attribute: `{"attr": "fresh", "eq": true, "weight": 0.3}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(schemars::JsonSchema))]
pub struct Boost {
    /// Added to the score.
    #[cfg_attr(feature = "server", schemars(range(min = -1e6, max = 1e6)))]
    pub weight: f64,
    /// The condition; exactly one comparison.
    #[serde(flatten)]
    pub condition: serde_json::Map<String, serde_json::Value>,
}

/// A request. Every field but the prompt has a default; unknown fields are errors.
///
/// Exactly one of `messages`, `prompt` and `prompt_token_ids` is given.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Request {
    /// Returned with the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// A conversation, rendered by the model's chat template.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schemars(length(min = 1)))]
    pub messages: Option<Vec<Message>>,
    /// Text as it is, without a template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// Tokens as they are; may hold spans.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schemars(inner(range(min = 0))))]
    pub prompt_token_ids: Option<Vec<i64>>,
    /// Default: `text`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<Output>,
    /// Default: all types of the catalog.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schemars(length(min = 1)))]
    pub item_types: Option<Vec<String>>,
    /// Items wanted; default 10, or the beam width if that is smaller.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schemars(range(min = 1, max = 1024)))]
    pub n: Option<i64>,
    /// One width, or one per level of the deepest requested type; default max(n, 30).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schemars(schema_with = "schema::beam_width"))]
    pub beam_width: Option<OneOrMany<i64>>,
    /// What scores are normalised over; default `codebook`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<Normalizer>,
    /// Only these items; an empty list allows nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow: Option<Vec<String>>,
    /// None of these items.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exclude: Option<Vec<String>>,
    /// An attribute filter.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schemars(schema_with = "schema::filter"))]
    pub filter: Option<serde_json::Value>,
    /// Default: `best`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub collisions: Option<Collisions>,
    /// One search per type instead of one over all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schemars(length(min = 1)))]
    pub quotas: Option<Vec<Quota>>,
    /// Weights over attributes, added before the final ranking.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boosts: Option<Vec<Boost>>,
    /// How alike the items may be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub diversity: Option<Diversity>,
    /// Width of the beam of a span in mixed text; default 8.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schemars(range(min = 1, max = 1024)))]
    pub span_beam: Option<i64>,
    /// Whether an answer may name a SID twice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_repeats: Option<bool>,
    /// What to do with unknown items of the prompt; default `error`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unknown_items: Option<UnknownItems>,
    /// Which end of a prompt that is too long may be cut; default: neither, it is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub truncate: Option<Truncate>,
    /// Tokens of the answer, spans included; default 16, with `messages` as many as fit.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schemars(range(min = 1)))]
    pub max_tokens: Option<i64>,
    /// No end token before this many; default 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schemars(range(min = 0)))]
    pub min_tokens: Option<i64>,
    /// 0: greedy. Default: the model's `generation_config.json`, else 1; items: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schemars(range(min = 0.0, max = 100.0)))]
    pub temperature: Option<f64>,
    /// Default: the model's, else 0 (off).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schemars(range(min = -1)))]
    pub top_k: Option<i64>,
    /// Default: the model's, else 1 (off).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schemars(range(max = 1.0), extend("exclusiveMinimum" = 0.0)))]
    pub top_p: Option<f64>,
    /// Default: the model's, else 0 (off).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schemars(range(min = 0.0, max = 1.0)))]
    pub min_p: Option<f64>,
    /// Over prompt and answer; default: the model's, else 1 (off).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schemars(range(max = 1000.0), extend("exclusiveMinimum" = 0.0)))]
    pub repetition_penalty: Option<f64>,
    /// Over the answer; default 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schemars(range(min = -2.0, max = 2.0)))]
    pub presence_penalty: Option<f64>,
    /// Over the answer; default 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schemars(range(min = -2.0, max = 2.0)))]
    pub frequency_penalty: Option<f64>,
    /// Token id (as a string) to what is added to its logit.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schemars(schema_with = "schema::logit_bias"))]
    pub logit_bias: Option<serde_json::Map<String, serde_json::Value>>,
    /// Strings that end the answer; they are not part of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schemars(schema_with = "schema::stop"))]
    pub stop: Option<OneOrMany<String>>,
    /// Tokens that end the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schemars(inner(range(min = 0))))]
    pub stop_token_ids: Option<Vec<i64>>,
    /// Whether end tokens are ordinary tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ignore_eos: Option<bool>,
    /// Key of all random draws; default: a new one per request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<i64>,
    /// For each token of the answer its log-probability and this many alternatives; for items the log-probability of each level.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schemars(range(min = 0)))]
    pub logprobs: Option<i64>,
    /// Whether the answer holds its token ids.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub return_token_ids: Option<bool>,
    /// Attributes of the items to return with them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub return_attributes: Option<Vec<String>>,
    /// Choose one of these strings instead of generating.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schemars(length(min = 1), inner(length(min = 1))))]
    pub choice: Option<Vec<String>>,
}

impl Request {
    /// Parses the native form.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the path of the field that is unknown or has the wrong type.
    pub fn from_json(json: &str) -> Result<Request> {
        // A derived struct would take a list for its fields in order.
        if json.trim_ascii_start().starts_with('[') {
            return Err(Error::invalid("request", "a list; expected an object"));
        }
        let mut deserializer = serde_json::Deserializer::from_str(json);
        let request = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
            let path = error.path().to_string();
            let field = if path == "." { "request".to_owned() } else { path };
            Error::invalid(field, error.inner().to_string())
        })?;
        deserializer.end().map_err(|error| Error::invalid("request", error.to_string()))?;
        Ok(request)
    }
}
