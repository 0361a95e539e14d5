//! Histories: what people took, oldest first.

use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Split, Works};
use crate::error::{Error, Result};

/// What one person took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct History {
    /// Number of the person.
    pub user: u64,
    /// Which side of the split the person is on.
    pub split: Split,
    /// Item ids, newest last.
    pub items: Vec<String>,
}

impl History {
    /// Places of its works, each where it was taken first; what is no work is passed over.
    pub fn places(&self, works: &Works) -> Vec<usize> {
        let mut seen = HashSet::new();
        self.items.iter().filter_map(|id| works.find(id)).filter(|place| seen.insert(*place)).collect()
    }
}

/// Reads JSON lines of [`History`].
///
/// # Errors
/// File and line of what is no history, or of an item that is not among the works.
pub fn read_histories(path: &Path, works: &Works) -> Result<Vec<History>> {
    let file = std::fs::File::open(path).map_err(|error| Error::file(path, error.to_string()))?;
    let mut histories = Vec::new();
    for (number, line) in BufReader::new(file).lines().enumerate() {
        let fail = |message: String| Error::file(path, format!("line {}: {message}", number + 1));
        let line = line.map_err(|error| fail(error.to_string()))?;
        if line.trim().is_empty() {
            continue;
        }
        let history: History = serde_json::from_str(&line).map_err(|error| fail(error.to_string()))?;
        if let Some(id) = history.items.iter().find(|id| works.find(id).is_none()) {
            return Err(fail(format!("unknown item `{id}`")));
        }
        histories.push(history);
    }
    Ok(histories)
}
