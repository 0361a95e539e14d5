//! The bodies of `/v1/chat/completions` and `/v1/completions`.
//!
//! As in the native form integers are `i64` and reals `f64`, so that the one check of the engine names their bounds.
//! `null` means absent, and a field that nobody knows is an error.

use std::marker::PhantomData;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;
use serde::de::{self, DeserializeOwned, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::message::{ChatMessage, Prompt};
use crate::device::ops::Normalizer;
use crate::engine::{
    Boost, Collisions, Diversity, OneOrMany, Output, Quota, Request, Truncate, UnknownItems,
};
use crate::error::{Error, Result};

/// Passes the fields that both bodies have to a macro, behind those of its own.
macro_rules! with_common_fields {
    ($define:ident! { $($own:tt)* }) => {
        $define! { { $($own)* } {
            /// The model; one of those that `/v1/models` lists.
            model: Option<String>,
            /// Answers per prompt, default 1; with `output: items` the items wanted.
            n: Option<i64>,
            /// Tokens of the answer, spans included.
            max_tokens: Option<i64>,
            /// 0: greedy. Default: the model's, else 1; items: 0.
            temperature: Option<f64>,
            /// Default: the model's, else 1 (off).
            top_p: Option<f64>,
            /// Default: the model's, else 0 (off).
            top_k: Option<i64>,
            /// Default: the model's, else 0 (off).
            min_p: Option<f64>,
            /// Over prompt and answer; default: the model's, else 1 (off).
            repetition_penalty: Option<f64>,
            /// Over the answer; default 0.
            presence_penalty: Option<f64>,
            /// Over the answer; default 0.
            frequency_penalty: Option<f64>,
            /// Token id (as a string) to what is added to its logit.
            logit_bias: Option<Map<String, Value>>,
            /// No end token before this many; default 0.
            min_tokens: Option<i64>,
            /// Strings that end the answer; they are not part of it.
            #[schemars(with = "Option<Value>")]
            stop: Option<OneOrMany<String>>,
            /// Tokens that end the answer.
            stop_token_ids: Option<Vec<i64>>,
            /// Whether end tokens are ordinary tokens.
            ignore_eos: Option<bool>,
            /// Key of all random draws; answer i of a prompt draws with seed + i. Default: a new one per answer.
            seed: Option<i64>,
            /// Whether the answer is sent as it grows, as server-sent events.
            stream: Option<bool>,
            /// What a stream holds besides the answer.
            stream_options: Option<Object<StreamOptions>>,
            /// `text`, `items` or `mixed`; default `text`.
            output: Option<Output>,
            /// Types of the items that may be named; default: all types of the catalog.
            item_types: Option<Vec<String>>,
            /// An attribute filter.
            filter: Option<Value>,
            /// Only these items; an empty list allows nothing.
            allow: Option<Vec<String>>,
            /// None of these items.
            exclude: Option<Vec<String>>,
            /// One width, or one per level of the deepest requested type; default max(n, 30).
            #[schemars(with = "Option<Value>")]
            beam_width: Option<OneOrMany<i64>>,
            /// vLLM's name: a ranked list (`output: items`) with a width of at least `n`.
            use_beam_search: Option<bool>,
            /// What scores are normalised over; default `codebook`.
            score: Option<Normalizer>,
            /// One search per type instead of one over all.
            quotas: Option<Vec<Quota>>,
            /// How alike the items may be.
            diversity: Option<Diversity>,
            /// Weights over attributes, added before the final ranking.
            boosts: Option<Vec<Boost>>,
            /// Which items a SID shared by several yields; default `best`.
            collisions: Option<Collisions>,
            /// Width of the beam of a span in mixed text; default 8.
            span_beam: Option<i64>,
            /// Whether an answer may name a SID twice.
            allow_repeats: Option<bool>,
            /// What to do with unknown items of the prompt; default `error`.
            unknown_items: Option<UnknownItems>,
            /// Which end of a prompt that is too long may be cut; default: neither, it is refused.
            truncate: Option<Truncate>,
            /// Attributes that each item of the answer carries.
            return_attributes: Option<Vec<String>>,
            /// Whether each answer holds its token ids.
            return_token_ids: Option<bool>,
            /// Choose one of these strings instead of generating.
            choice: Option<Vec<String>>,
            /// vLLM's name of `choice`.
            guided_choice: Option<Vec<String>>,
            /// vLLM's newer form of `choice`.
            structured_outputs: Option<Object<StructuredOutputs>>,
            /// `text`, or `choice` with the strings to choose from.
            response_format: Option<Object<ResponseFormat>>,
            /// Without effect.
            user: Option<String>,
            /// Without effect.
            metadata: Option<Map<String, Value>>,
            /// Without effect: nothing is stored.
            store: Option<bool>,
            /// Without effect.
            service_tier: Option<String>,
            /// Without effect.
            safety_identifier: Option<String>,
            /// Without effect.
            prompt_cache_key: Option<String>,
            /// Without effect: there are no tools.
            parallel_tool_calls: Option<bool>,
            /// Not served.
            #[schemars(skip)]
            tools: Option<Unserved>,
            /// Not served.
            #[schemars(skip)]
            tool_choice: Option<Unserved>,
            /// Not served.
            #[schemars(skip)]
            functions: Option<Unserved>,
            /// Not served.
            #[schemars(skip)]
            function_call: Option<Unserved>,
            /// Not served.
            #[schemars(skip)]
            audio: Option<Unserved>,
            /// Not served.
            #[schemars(skip)]
            modalities: Option<Unserved>,
            /// Not served.
            #[schemars(skip)]
            prediction: Option<Unserved>,
            /// Not served.
            #[schemars(skip)]
            reasoning_effort: Option<Unserved>,
            /// Not served.
            #[schemars(skip)]
            web_search_options: Option<Unserved>,
            /// Not served.
            #[schemars(skip)]
            guided_json: Option<Unserved>,
            /// Not served.
            #[schemars(skip)]
            guided_regex: Option<Unserved>,
            /// Not served.
            #[schemars(skip)]
            guided_grammar: Option<Unserved>,
        } }
    };
}

macro_rules! body {
    ({ $(#[$meta:meta])* $name:ident { $($(#[$m:meta])* $f:ident: $t:ty,)* } }
     { $($(#[$cm:meta])* $cf:ident: $ct:ty,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields)]
        #[schemars(transform = with_native_bounds)]
        pub(crate) struct $name {
            $($(#[$m])* pub $f: $t,)*
            $($(#[$cm])* pub $cf: $ct,)*
        }

        impl $name {
            /// Takes out the fields that both bodies have.
            pub(super) fn common(&mut self) -> Common {
                Common { $($cf: self.$cf.take(),)* }
            }
        }
    };
}

macro_rules! common {
    ({} { $($(#[$cm:meta])* $cf:ident: $ct:ty,)* }) => {
        /// The fields that both bodies have.
        #[derive(Clone, Debug, Default, PartialEq)]
        pub(super) struct Common {
            $(pub $cf: $ct,)*
        }
    };
}

with_common_fields! { common! {} }

with_common_fields! { body! {
    /// A body of `/v1/chat/completions`.
    ChatBody {
        /// The conversation, rendered by the model's chat template.
        #[schemars(required, length(min = 1))]
        messages: Option<Vec<Object<ChatMessage>>>,
        #[schemars(range(min = 1))]
        /// Tokens of the answer, spans included; default: as many as fit. OpenAI's newer name of `max_tokens`.
        max_completion_tokens: Option<i64>,
        /// Whether the log-probability of each token is returned.
        logprobs: Option<bool>,
        /// Alternatives per token; needs `logprobs`.
        #[schemars(range(min = 0))]
        top_logprobs: Option<i64>,
    }
} }

with_common_fields! { body! {
    /// A body of `/v1/completions`.
    CompletionBody {
        /// A text, a list of texts, a list of token ids, or a list of such lists.
        #[schemars(required)]
        prompt: Option<Prompt>,
        /// For each token its log-probability and this many alternatives.
        logprobs: Option<i64>,
        /// Only `false` is served.
        #[schemars(extend("enum" = [false, null]))]
        echo: Option<bool>,
        /// Only the value of `n` is served.
        #[schemars(range(min = 1))]
        best_of: Option<i64>,
        /// Not served.
        #[schemars(skip)]
        suffix: Option<Unserved>,
    }
} }

impl ChatBody {
    /// Parses a body.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the path of the field that is unknown or has the wrong type.
    pub(crate) fn from_json(json: &[u8]) -> Result<ChatBody> {
        parse(json)
    }
}

impl CompletionBody {
    /// Parses a body.
    ///
    /// # Errors
    /// As [`ChatBody::from_json`].
    pub(crate) fn from_json(json: &[u8]) -> Result<CompletionBody> {
        parse(json)
    }
}

/// A value that is written as an object: what serde derives would take the list of its fields as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(transparent)]
pub(crate) struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Object<T>, D::Error> {
        struct ObjectVisitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
            type Value = Object<T>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(de::value::MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

/// Parses a body; errors name the path of the field.
pub(crate) fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let Object(body) = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let field = if path == "." { "request".to_owned() } else { path };
        Error::invalid(field, error.inner().to_string())
    })?;
    deserializer.end().map_err(|error| Error::invalid("request", error.to_string()))?;
    Ok(body)
}

/// Gives the fields of a body the bounds that they have in the native request; their sentences stay.
fn with_native_bounds(schema: &mut Schema) {
    let native = SchemaGenerator::default().into_root_schema_for::<Request>();
    let native = native.get("properties").and_then(Value::as_object);
    let Some(own) = schema.get_mut("properties").and_then(Value::as_object_mut) else { return };
    for (name, native) in native.into_iter().flatten() {
        let Some(own) = own.get_mut(name).and_then(Value::as_object_mut) else { continue };
        // What refers to a type of its own is the same already.
        if native.to_string().contains("$ref") || own.values().any(|value| value.to_string().contains("$ref"))
        {
            continue;
        }
        let description = own.get("description").cloned();
        *own = native.as_object().cloned().unwrap_or_default();
        own.extend(description.map(|sentence| ("description".to_owned(), sentence)));
    }
}

/// What a stream holds besides the answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StreamOptions {
    /// Whether a last chunk without choices tells the usage.
    pub include_usage: Option<bool>,
    /// Only `false` is served.
    #[schemars(extend("enum" = [false, null]))]
    pub include_obfuscation: Option<bool>,
}

/// vLLM's form of constraints, of which `choice` is served.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StructuredOutputs {
    /// The strings to choose from.
    pub choice: Option<Vec<String>>,
}

/// The form of the answer's text.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ResponseFormat {
    /// `text` or `choice`.
    #[serde(rename = "type")]
    #[schemars(extend("enum" = ["text", "choice"]))]
    pub kind: String,
    /// The strings to choose from.
    pub choice: Option<Vec<String>>,
    /// Not served.
    #[schemars(skip)]
    pub json_schema: Option<Unserved>,
}

/// The value of a field that is known and not served; an empty list or object asks for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unserved {
    /// Whether the value is an empty list or object.
    pub empty: bool,
}

impl<'de> Deserialize<'de> for Unserved {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Unserved, D::Error> {
        struct AnyVisitor;
        impl<'de> Visitor<'de> for AnyVisitor {
            type Value = Unserved;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("anything")
            }
            fn visit_bool<E: de::Error>(self, _: bool) -> Result<Unserved, E> {
                Ok(Unserved { empty: false })
            }
            fn visit_i64<E: de::Error>(self, _: i64) -> Result<Unserved, E> {
                Ok(Unserved { empty: false })
            }
            fn visit_u64<E: de::Error>(self, _: u64) -> Result<Unserved, E> {
                Ok(Unserved { empty: false })
            }
            fn visit_f64<E: de::Error>(self, _: f64) -> Result<Unserved, E> {
                Ok(Unserved { empty: false })
            }
            fn visit_str<E: de::Error>(self, _: &str) -> Result<Unserved, E> {
                Ok(Unserved { empty: false })
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Unserved, A::Error> {
                let mut empty = true;
                while seq.next_element::<IgnoredAny>()?.is_some() {
                    empty = false;
                }
                Ok(Unserved { empty })
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unserved, A::Error> {
                let mut empty = true;
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    empty = false;
                }
                Ok(Unserved { empty })
            }
        }
        deserializer.deserialize_any(AnyVisitor)
    }
}

/// Refuses the first of these fields that asks for something; `path` stands before its name.
pub(super) fn refuse(path: &str, fields: &[(&str, &Option<Unserved>)]) -> Result<()> {
    match fields.iter().find(|(_, value)| value.is_some_and(|value| !value.empty)) {
        Some((field, _)) => Err(Error::invalid(format!("{path}{field}"), "not served here; leave it out")),
        None => Ok(()),
    }
}
