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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::engine::{Answer, EngineBuilder, Request};

    fn schema_of<T: schemars::JsonSchema>() -> Value {
        schemars::schema_for!(T).to_value()
    }

    /// As it is written: fields that may be left out are not required.
    fn written_schema_of<T: schemars::JsonSchema>() -> Value {
        let settings = schemars::generate::SchemaSettings::default().for_serialize();
        settings.into_generator().into_root_schema_for::<T>().to_value()
    }

    fn names(schema: &Value) -> Vec<&str> {
        schema["properties"].as_object().expect("an object").keys().map(String::as_str).collect()
    }

    #[test]
    fn every_field_of_a_request_is_described() {
        // The parser lists all fields when it meets one that it does not know.
        let message = Request::from_json(r#"{"bogus":1}"#).expect_err("unknown").to_string();
        let fields: Vec<&str> = message.split('`').skip(3).step_by(2).collect();
        let schema = schema_of::<Request>();
        assert_eq!(names(&schema), fields);
        assert_eq!(schema["additionalProperties"], json!(false));
        for (name, property) in schema["properties"].as_object().expect("an object") {
            let told = property["description"].as_str().or(property["$ref"].as_str());
            assert!(told.is_some_and(|told| !told.is_empty()), "{name}: {property}");
        }
    }

    #[test]
    fn bounds_are_in_the_schema() {
        let schema = schema_of::<Request>();
        let table = [
            ("n", json!(1), json!(1024)),
            ("temperature", json!(0.0), json!(100.0)),
            ("top_k", json!(-1), Value::Null),
            ("presence_penalty", json!(-2.0), json!(2.0)),
        ];
        for (field, least, most) in table {
            let property = &schema["properties"][field];
            assert_eq!((&property["minimum"], &property["maximum"]), (&least, &most), "{field}");
        }
        assert_eq!(schema["properties"]["top_p"]["exclusiveMinimum"], json!(0.0));
        assert_eq!(schema["$defs"]["Quota"]["properties"]["n"]["minimum"], json!(1));
    }

    #[test]
    fn an_answer_has_what_its_schema_says() {
        let engine = EngineBuilder::tiny().and_then(EngineBuilder::start).expect("the demonstration");
        let schema = written_schema_of::<Answer>();
        let described = names(&schema);
        for request in [
            r#"{"prompt":"a","output":"items","n":3,"logprobs":1,"return_attributes":["year"],"exclude":["x"]}"#,
            r#"{"prompt":"a","max_tokens":3,"logprobs":1,"return_token_ids":true}"#,
            r#"{"prompt":"a","choice":["b","c"]}"#,
        ] {
            let request = Request::from_json(request).expect("valid");
            let answer = engine.generate(&request).expect("an answer");
            let answer = serde_json::to_value(answer).expect("JSON");
            let found = answer.as_object().expect("an object");
            assert!(found.keys().all(|name| described.contains(&name.as_str())), "{found:?}");
            let required = schema["required"].as_array().expect("a list");
            assert!(
                required.iter().all(|name| found.contains_key(name.as_str().expect("a name"))),
                "{required:?}"
            );
            for item in found.get("items").and_then(Value::as_array).into_iter().flatten() {
                let described = names(&schema["$defs"]["AnswerItem"]);
                assert!(item.as_object().expect("an object").keys().all(|n| described.contains(&n.as_str())));
            }
        }
    }
}
