//! What the OpenAPI document says.

use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use crate::server::openai::schemas;

fn definitions() -> Map<String, Value> {
    let settings = SchemaSettings::draft2020_12();
    let mut generator = SchemaGenerator::new(settings);
    let all = schemas(&mut generator);
    for schema in [all.chat_request, all.chat_answer, all.completion_request, all.completion_answer] {
        assert!(schema.get("$ref").is_some(), "{schema:?}");
    }
    generator.take_definitions(true)
}

/// Names of the fields of both bodies.
pub(super) fn properties() -> [Vec<String>; 2] {
    let definitions = definitions();
    ["ChatBody", "CompletionBody"].map(|name| {
        let properties = definitions[name]["properties"].as_object().unwrap();
        properties.keys().cloned().collect()
    })
}

#[test]
fn bodies_are_closed_and_bounded() {
    let definitions = definitions();
    for name in ["ChatBody", "CompletionBody"] {
        let body = &definitions[name];
        assert_eq!(body["additionalProperties"], false, "{name}");
        let properties = body["properties"].as_object().unwrap();
        for unserved in ["tools", "audio", "suffix", "guided_json"] {
            assert!(!properties.contains_key(unserved), "{unserved}");
        }
        assert_eq!(properties["top_p"]["maximum"], 1.0);
        assert_eq!(properties["beam_width"]["anyOf"][0]["minimum"], 1);
        for (field, schema) in properties {
            assert!(schema["description"].is_string(), "{name}.{field}: {schema}");
        }
    }
    assert_eq!(definitions["ChatBody"]["required"], serde_json::json!(["messages"]));
    assert_eq!(definitions["CompletionBody"]["required"], serde_json::json!(["prompt"]));
}

#[test]
fn every_reference_is_defined() {
    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(reference)) = map.get("$ref") {
                    found.push(reference.clone());
                }
                map.values().for_each(|value| references(value, found));
            }
            Value::Array(list) => list.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let definitions = definitions();
    let mut found = Vec::new();
    definitions.values().for_each(|schema| references(schema, &mut found));
    assert!(found.len() > 10, "{found:?}");
    for reference in found {
        let name = reference.strip_prefix("#/$defs/").unwrap();
        assert!(definitions.contains_key(name), "{reference}");
    }
}
