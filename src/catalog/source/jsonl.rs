//! JSON lines: an object per line, empty lines skipped.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use super::mapping::Mapping;
use super::plan::{Assembly, Parts, Plan, Use};
use super::{BadRow, MAX_ROW, PIECE, Row, RowPlace, RowReader};
use crate::catalog::ItemRecord;
use crate::error::{Error, Result};

/// A file of JSON lines.
pub struct Lines {
    path: PathBuf,
    file: File,
    plan: Plan,
    /// What has been read and not yet parsed: always the beginning of one line.
    rest: Vec<u8>,
    /// Number of the line that `rest` begins, from 1.
    line: u64,
    position: u64,
    ended: bool,
}

impl Lines {
    pub fn open(path: &Path, plan: Plan) -> Result<Lines> {
        let file = File::open(path).map_err(|error| Error::file(path, error.to_string()))?;
        let path = path.to_path_buf();
        Ok(Lines { path, file, plan, rest: Vec::new(), line: 1, position: 0, ended: false })
    }

    /// Reads a piece and returns the length of the whole lines in `rest`.
    fn fill(&mut self) -> Result<usize> {
        let kept = self.rest.len();
        let read = (&mut self.file).take(PIECE as u64).read_to_end(&mut self.rest);
        let read = read.map_err(|error| Error::file(&self.path, format!("line {}: {error}", self.line)))?;
        self.position += read as u64;
        self.ended = read == 0;
        if self.line == 1 && kept == 0 && self.rest.starts_with(b"\xef\xbb\xbf") {
            // A byte order mark is no part of the first line.
            self.rest.drain(..3);
        }
        if self.ended {
            return Ok(self.rest.len());
        }
        let last = self.rest[kept.min(self.rest.len())..].iter().rposition(|&byte| byte == b'\n');
        Ok(last.map_or(0, |at| kept + at + 1))
    }
}

impl RowReader for Lines {
    fn next_batch(&mut self) -> Result<Option<Vec<Row>>> {
        if self.ended {
            return Ok(None);
        }
        let end = self.fill()?;
        let lines: Vec<&[u8]> = self.rest[..end].split_inclusive(|&byte| byte == b'\n').collect();
        let (first, plan) = (self.line, &self.plan);
        let rows = lines
            .par_iter()
            .enumerate()
            .filter_map(|(at, line)| {
                let line = line.trim_ascii_end();
                let place = RowPlace::Line(first + at as u64);
                (!line.is_empty()).then(|| Row { place, record: parse(line, plan) })
            })
            .collect();
        self.line += lines.len() as u64;
        self.rest.drain(..end);
        if self.rest.len() > MAX_ROW {
            return Err(Error::file(&self.path, format!("line {}: more than {MAX_ROW} bytes", self.line)));
        }
        Ok(Some(rows))
    }

    fn position(&self) -> u64 {
        self.position
    }
}

fn parse(line: &[u8], plan: &Plan) -> Result<ItemRecord, BadRow> {
    if line.len() > MAX_ROW {
        return Err(plan.unreadable(format!("more than {MAX_ROW} bytes")));
    }
    let mut json = serde_json::Deserializer::from_slice(line);
    let fields = Fields(plan).deserialize(&mut json).and_then(|fields| json.end().map(|()| fields));
    let fields = fields.map_err(|error| {
        let message = error.to_string();
        // The parser counts lines from where it was started: here always the first.
        let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(message, _)| message);
        plan.unreadable(format!("column {}: {message}", error.column()))
    })?;
    let mut assembly = Assembly::new(plan);
    for (name, value) in fields {
        assembly.put(&name, plan.use_of(&name), value);
    }
    assembly.finish()
}

/// Reads one item from the fields of a line as a source without a mapping has it.
///
/// # Errors
/// What is wrong with the item.
pub(super) fn item(fields: serde_json::Map<String, Value>) -> Result<ItemRecord, BadRow> {
    let plan = Plan::new(&Mapping::default(), Parts::All, false);
    let mut assembly = Assembly::new(&plan);
    for (name, value) in fields {
        assembly.put(&name, plan.use_of(&name), value);
    }
    assembly.finish()
}

/// Parses the fields that a plan wants and skips the others.
struct Fields<'a>(&'a Plan);

impl<'de> DeserializeSeed<'de> for Fields<'_> {
    type Value = Vec<(Cow<'de, str>, Value)>;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = Vec<(Cow<'de, str>, Value)>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields: Self::Value = Vec::with_capacity(map.size_hint().unwrap_or(8));
        while let Some(Name(name)) = map.next_key()? {
            if self.0.use_of(&name) == Use::Nothing {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            if fields.len() >= super::MAX_COLUMNS {
                return Err(serde::de::Error::custom(format!("more than {} fields", super::MAX_COLUMNS)));
            }
            fields.push((name, map.next_value()?));
        }
        let mut names: Vec<&str> = fields.iter().map(|(name, _)| name.as_ref()).collect();
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(serde::de::Error::custom(format!("`{}` is given twice", pair[0]))),
            None => Ok(fields),
        }
    }
}

/// A field's name, borrowed from the line where it has no escapes.
#[derive(serde::Deserialize)]
#[serde(transparent)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);
