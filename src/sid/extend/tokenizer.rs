//! The tokenizer's files of an extended folder.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{Job, edit};
use crate::error::{Error, Result};

/// An added token as `tokenizer.json` spells it: found in plain text wherever it stands, and shown.
fn entry(content: &str) -> Map<String, Value> {
    let entry = json!({"content": content, "single_word": false, "lstrip": false, "rstrip": false,
                       "normalized": false, "special": false});
    entry.as_object().cloned().unwrap_or_default()
}

/// `tokenizer.json` with the new tokens.
pub(super) fn vocabulary(job: &Job<'_>, from: &Path, to: &Path) -> Result<()> {
    edit(from, to, |map| {
        let list = map.entry("added_tokens").or_insert_with(|| json!([]));
        let Some(list) = list.as_array_mut() else {
            return Err(Error::file(from, "added_tokens: expected a list"));
        };
        for (name, id) in &job.tokens.added {
            let mut token: Map<String, Value> = [("id".to_owned(), json!(id))].into_iter().collect();
            token.extend(entry(name));
            list.push(Value::Object(token));
        }
        Ok(())
    })
}

/// `tokenizer_config.json`: its list of added tokens, if it keeps one.
pub(super) fn config(job: &Job<'_>, from: &Path, to: &Path) -> Result<()> {
    edit(from, to, |map| {
        match map.get_mut("added_tokens_decoder") {
            None | Some(Value::Null) => {}
            Some(Value::Object(list)) => {
                let tokens = job.tokens.added.iter();
                list.extend(tokens.map(|(name, id)| (id.to_string(), Value::Object(entry(name)))));
            }
            Some(_) => return Err(Error::file(from, "added_tokens_decoder: expected an object")),
        }
        Ok(())
    })
}

/// `added_tokens.json`, which older folders have: names with ids.
pub(super) fn added(job: &Job<'_>, from: &Path, to: &Path) -> Result<()> {
    edit(from, to, |map| {
        map.extend(job.tokens.added.iter().map(|(name, id)| (name.clone(), json!(id))));
        Ok(())
    })
}
