//! JSON schemas of what serde's derive does not describe: the OpenAPI document is made from them.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::request::{Content, Part};
use crate::device::ops::Normalizer;

impl JsonSchema for Content {
    fn schema_name() -> Cow<'static, str> {
        "Content".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let parts = generator.subschema_for::<Vec<Part>>();
        json_schema!({"description": "Plain text, or typed parts.", "anyOf": [{"type": "string"}, parts]})
    }
}

impl JsonSchema for Normalizer {
    fn schema_name() -> Cow<'static, str> {
        "Normalizer".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "What the log-probability of a code is normalised over: the codes of its level and type, the whole \
                vocabulary, or the alive children only.",
            "type": "string",
            "enum": ["codebook", "vocabulary", "valid"],
        })
    }
}

/// One width, or one per level.
pub(super) fn beam_width(_: &mut SchemaGenerator) -> Schema {
    let width = || json_schema!({"type": "integer", "minimum": 1, "maximum": 1024});
    json_schema!({"anyOf": [width(), {"type": "array", "items": width(), "minItems": 1}, {"type": "null"}]})
}

/// One string, or several.
pub(super) fn stop(_: &mut SchemaGenerator) -> Schema {
    let string = || json_schema!({"type": "string", "minLength": 1});
    json_schema!({"anyOf": [string(), {"type": "array", "items": string()}, {"type": "null"}]})
}

/// Token ids to what is added to their logits.
pub(super) fn logit_bias(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": ["object", "null"],
        "propertyNames": {"pattern": "^[0-9]+$"},
        "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
    })
}

/// A filter: one operation over attributes.
pub(super) fn filter(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": ["object", "null"],
        "examples": [{"all": [{"attr": "year", "ge": 1990}, {"not": {"attr": "genres", "has": "Horror"}}]}],
    })
}
