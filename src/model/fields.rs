//! Checked reading of a configuration's keys.
//!
//! A model folder is foreign data. Every value is read through [`Fields`], which knows the file and the place, so that no
//! message has to be composed twice and no number enters the engine without a bound. `null` counts as absent, as in
//! transformers.

use std::ops::RangeInclusive;
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::ids::TokenId;

/// Largest JSON file of a model folder that is read (`config.json`, an index of shards), in bytes.
const MAX_JSON: u64 = 16 << 20;

/// Reads a text file of at most 16 MiB; `None` if there is no such file.
pub(super) fn read_text(path: &Path) -> Result<Option<String>> {
    let size = match std::fs::metadata(path) {
        Ok(data) if data.is_file() => data.len(),
        Ok(_) => return Err(Error::file(path, "is not a file")),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::file(path, e.to_string())),
    };
    if size > MAX_JSON {
        return Err(Error::file(path, format!("is {size} bytes long; at most {MAX_JSON} are read")));
    }
    std::fs::read_to_string(path).map(Some).map_err(|e| Error::file(path, e.to_string()))
}

/// Parses a file's text as one JSON object.
pub(super) fn parse_object(path: &Path, text: &str) -> Result<Map<String, Value>> {
    match serde_json::from_str(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(Error::file(path, "is not a JSON object")),
        Err(e) => Err(Error::file(path, format!("is not JSON: {e}"))),
    }
}

/// The keys of one JSON object of a file.
pub(super) struct Fields<'a> {
    file: &'a Path,
    /// Where the object lies in the file, with its dot (`rope_parameters.`), or empty.
    prefix: String,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// The outermost object of `file`.
    pub(super) fn new(file: &'a Path, map: &'a Map<String, Value>) -> Fields<'a> {
        Fields { file, prefix: String::new(), map }
    }

    /// An error about `key`.
    pub(super) fn error(&self, key: &str, message: impl std::fmt::Display) -> Error {
        Error::file(self.file, format!("{}{key}: {message}", self.prefix))
    }

    /// The value of `key` unless absent or null.
    pub(super) fn value(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// Whether `key` is written at all, be it as null.
    pub(super) fn written(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// Whether the object has no keys.
    pub(super) fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// The object under `key`.
    pub(super) fn object(&self, key: &str) -> Result<Option<Fields<'a>>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Object(map)) => {
                Ok(Some(Fields { file: self.file, prefix: format!("{}{key}.", self.prefix), map }))
            }
            Some(other) => Err(self.error(key, format!("expected an object, found {}", brief(other)))),
        }
    }

    /// A whole number within `range`, if there is one.
    pub(super) fn count(&self, key: &str, range: RangeInclusive<usize>) -> Result<Option<usize>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        whole(value).and_then(|n| usize::try_from(n).ok()).filter(|n| range.contains(n)).map(Some).ok_or_else(
            || {
                let (low, high) = (range.start(), range.end());
                self.error(
                    key,
                    format!("expected a whole number from {low} to {high}, found {}", brief(value)),
                )
            },
        )
    }

    /// A whole number within `range` that must be there.
    pub(super) fn required(&self, key: &str, range: RangeInclusive<usize>) -> Result<usize> {
        self.count(key, range)?.ok_or_else(|| self.error(key, "the key is missing"))
    }

    /// A finite number within `range`, if there is one.
    pub(super) fn number(&self, key: &str, range: RangeInclusive<f64>) -> Result<Option<f64>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        value.as_f64().filter(|n| range.contains(n)).map(Some).ok_or_else(|| {
            let (low, high) = (range.start(), range.end());
            self.error(key, format!("expected a number from {low} to {high}, found {}", brief(value)))
        })
    }

    /// `true` or `false`; `default` if absent.
    pub(super) fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.value(key) {
            None => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(other) => Err(self.error(key, format!("expected true or false, found {}", brief(other)))),
        }
    }

    /// A string, if there is one.
    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(other) => Err(self.error(key, format!("expected a string, found {}", brief(other)))),
        }
    }

    /// A list of strings, if there is one.
    pub(super) fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let list =
            value.as_array().and_then(|list| list.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
        list.map(Some)
            .ok_or_else(|| self.error(key, format!("expected a list of strings, found {}", brief(value))))
    }

    /// A token id, or a list of them, each below `vocab`; `None` if absent.
    pub(super) fn tokens(&self, key: &str, vocab: usize) -> Result<Option<Vec<TokenId>>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let token = |v: &Value| {
            whole(v).filter(|&id| id < vocab as u64).map(|id| TokenId(id as u32)).ok_or_else(|| {
                self.error(key, format!("expected token ids from 0 to {}, found {}", vocab - 1, brief(v)))
            })
        };
        let mut found = match value {
            Value::Array(list) => list.iter().map(token).collect::<Result<Vec<_>>>()?,
            one => vec![token(one)?],
        };
        found.sort();
        found.dedup();
        Ok(Some(found))
    }
}

/// A whole number, be it written as `64` or as `64.0`.
fn whole(value: &Value) -> Option<u64> {
    value
        .as_u64()
        .or_else(|| value.as_f64().filter(|f| f.fract() == 0.0 && (0.0..=9e15).contains(f)).map(|f| f as u64))
}

/// A value as it goes into a message: cut, so that a foreign file cannot fill a log.
pub(super) fn brief(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        None => text,
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}
