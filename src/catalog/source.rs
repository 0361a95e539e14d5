//! Reading catalogs from JSON lines.
//!
//! One item per line: `id` (string), `type` (string; may be missing if the layout has one type), `title` (string), `popularity`
//! (number, 0 if missing), `sid` (list of codes); every other field is an attribute. Empty lines are skipped.
//!
//! Lines are read in pieces of a megabyte and parsed in parallel; items are added in the order of the file, so that the catalog and
//! the first error do not depend on the number of threads.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use rayon::prelude::*;
use serde_json::{Map, Value};

use super::{Catalog, CatalogBuilder, ItemRecord, TypeSpec};
use crate::error::{Error, Result};

/// Bytes read at once: enough lines for every thread, few enough that parsed JSON, which may be forty times as large as its text, stays
/// small.
const PIECE: usize = 1 << 20;
/// Longest line, so that a file without line ends is refused instead of held in memory.
const MAX_LINE: usize = 1 << 20;
/// Messages kept of the lines that were skipped.
const MAX_MESSAGES: usize = 10;

/// Told how far a long job is: (done, total) in bytes.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// What to do about a line that is no item.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// Give up at the first.
    #[default]
    Fail,
    /// Leave it out and count it.
    Skip,
}

/// What a source held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Items taken.
    pub items: u64,
    /// Lines left out.
    pub skipped: u64,
    /// What was wrong with the first ten of them, with file and line.
    pub messages: Vec<String>,
}

/// Reads a catalog from JSON-lines files, one after the other; the first bad line is an error.
///
/// # Errors
/// [`Error::File`] with the line: no readable file, a malformed line, or anything [`CatalogBuilder::push`] refuses.
pub fn read_jsonl(paths: &[&Path], types: &[TypeSpec], progress: Progress<'_>) -> Result<Catalog> {
    read_jsonl_report(paths, types, OnError::Fail, progress).map(|(catalog, _)| catalog)
}

/// Reads a catalog from JSON-lines files and reports what was left out.
///
/// # Errors
/// As [`read_jsonl`]; with [`OnError::Skip`] only what concerns a whole file or the types.
pub fn read_jsonl_report(
    paths: &[&Path],
    types: &[TypeSpec],
    on_error: OnError,
    progress: Progress<'_>,
) -> Result<(Catalog, Report)> {
    let mut lengths = Vec::with_capacity(paths.len());
    for path in paths {
        lengths.push(std::fs::metadata(path).map_err(|error| Error::file(path, error.to_string()))?.len());
    }
    let total = lengths.iter().sum();
    let mut loader = Loader { builder: CatalogBuilder::new(types), on_error, report: Report::default() };
    let mut done = 0;
    for path in paths {
        loader.read(path, &mut |bytes| {
            done += bytes;
            // A file may grow while it is read.
            progress(done, done.max(total));
        })?;
    }
    Ok((loader.builder.build()?, loader.report))
}

/// Collects the items of several files.
struct Loader {
    builder: CatalogBuilder,
    on_error: OnError,
    report: Report,
}

impl Loader {
    fn read(&mut self, path: &Path, advance: &mut dyn FnMut(u64)) -> Result<()> {
        let mut file = File::open(path).map_err(|error| Error::file(path, error.to_string()))?;
        // What has been read and not yet parsed: always the beginning of one line.
        let mut rest: Vec<u8> = Vec::new();
        let mut line = 1;
        loop {
            let kept = rest.len();
            let read = (&mut file).take(PIECE as u64).read_to_end(&mut rest);
            let read = read.map_err(|error| Error::file(path, format!("line {line}: {error}")))?;
            if line == 1 && kept == 0 && rest.starts_with(b"\xef\xbb\xbf") {
                // A byte order mark is no part of the first line.
                rest.drain(..3);
            }
            let end = match read {
                0 => rest.len(),
                _ => rest[kept.min(rest.len())..]
                    .iter()
                    .rposition(|&byte| byte == b'\n')
                    .map_or(0, |at| kept + at + 1),
            };
            line += self.add(path, line, &rest[..end])?;
            rest.drain(..end);
            advance(read as u64);
            if read == 0 {
                return Ok(());
            }
            if rest.len() > MAX_LINE {
                return Err(Error::file(path, format!("line {line}: more than {MAX_LINE} bytes")));
            }
        }
    }

    /// Adds the items of whole lines, the first of which has number `first`, and returns how many lines there were.
    fn add(&mut self, path: &Path, first: u64, bytes: &[u8]) -> Result<u64> {
        let lines: Vec<&[u8]> = bytes.split_inclusive(|&byte| byte == b'\n').collect();
        let records: Vec<Option<Result<ItemRecord, String>>> = lines
            .par_iter()
            .map(|line| Some(line.trim_ascii_end()).filter(|line| !line.is_empty()).map(parse))
            .collect();
        for (at, record) in records.into_iter().enumerate() {
            let Some(record) = record else { continue };
            let added =
                record.and_then(|record| self.builder.push(record).map_err(|error| error.to_string()));
            match added {
                Ok(()) => self.report.items += 1,
                Err(message) => {
                    let error = Error::file(path, format!("line {}: {message}", first + at as u64));
                    if self.on_error == OnError::Fail {
                        return Err(error);
                    }
                    self.report.skipped += 1;
                    if self.report.messages.len() < MAX_MESSAGES {
                        self.report.messages.push(error.to_string());
                    }
                }
            }
        }
        Ok(lines.len() as u64)
    }
}

/// Parses a line; the message does not say which.
fn parse(line: &[u8]) -> Result<ItemRecord, String> {
    let mut fields: Map<String, Value> = serde_json::from_slice(line).map_err(|error| {
        let message = error.to_string();
        // The parser counts lines from where it was started: here always the first.
        let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(message, _)| message);
        format!("column {}: {message}", error.column())
    })?;
    let id = text(&mut fields, "id")?.ok_or("id: missing")?;
    let item_type = text(&mut fields, "type")?.unwrap_or_default();
    let title = text(&mut fields, "title")?;
    let popularity = match fields.shift_remove("popularity") {
        None | Some(Value::Null) => 0.0,
        Some(value) => {
            value.as_f64().ok_or_else(|| format!("popularity: expected a number, found {}", kind(&value)))?
        }
    };
    let sid = match fields.shift_remove("sid") {
        Some(Value::Array(codes)) => {
            codes.iter().enumerate().map(|(level, code)| parse_code(level, code)).collect::<Result<_, _>>()?
        }
        None | Some(Value::Null) => return Err("sid: missing".into()),
        Some(value) => return Err(format!("sid: expected a list of codes, found {}", kind(&value))),
    };
    Ok(ItemRecord { id, item_type, title, popularity, sid, attributes: fields })
}

fn text(fields: &mut Map<String, Value>, name: &str) -> Result<Option<String>, String> {
    match fields.shift_remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(value) => Err(format!("{name}: expected a string, found {}", kind(&value))),
    }
}

fn parse_code(level: usize, code: &Value) -> Result<u16, String> {
    let number = code.as_u64().and_then(|code| u16::try_from(code).ok());
    number.ok_or_else(|| match code {
        Value::Number(code) => format!("sid[{level}]: expected a code from 0 to {}, found {code}", u16::MAX),
        other => format!("sid[{level}]: expected a code, found {}", kind(other)),
    })
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
