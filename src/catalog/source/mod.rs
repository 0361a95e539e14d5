//! Reading catalogs from files: JSON lines, CSV, Parquet.
//!
//! A [`Source`] is one file; it gives its rows in batches, in order, each an [`ItemRecord`] or what is wrong with it. A [`Mapping`] says which
//! columns become what. [`Sources`] makes a catalog of several files, with codes from a file beside them if they have none.
//!
//! Rows are parsed in parallel and added in the order of the files, so that catalog and first error do not depend on the number of threads. Two
//! batches are held at a time, whatever the length of a file.

mod codes;
mod csv;
mod jsonl;
mod mapping;
mod npy;
#[cfg(feature = "parquet")]
mod parquet;
mod plan;
mod read;

use std::path::Path;

use serde::Deserialize;

pub use codes::CodesFile;
pub use mapping::{AttributeFrom, Constant, IdFrom, Kind, Mapping, Others, Prefixed, SidFrom, TypeFrom};
pub use read::{OnError, Progress, Report, Sources, read_jsonl, read_jsonl_report};

use self::plan::{Parts, Plan};
use super::ItemRecord;
use crate::error::{Error, Result};

/// Longest row of a text format in bytes, so that a file without line ends is refused instead of held in memory.
const MAX_ROW: usize = 1 << 20;
/// Bytes read at once: enough rows for every thread, few enough that parsed JSON, which may be forty times as large as its text, stays
/// small.
const PIECE: usize = 1 << 20;
/// Most columns of a file with a header.
const MAX_COLUMNS: usize = 4096;

/// The formats of sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// A JSON object per line.
    Jsonl,
    /// Cells with something between them; the first line names the columns.
    Csv,
    /// Parquet.
    Parquet,
}

impl Format {
    /// The format that a file's name says: `.jsonl`, `.ndjson`, `.json`; `.csv`, `.tsv`; `.parquet`.
    ///
    /// # Errors
    /// [`Error::File`] if it says none of them.
    pub fn of(path: &Path) -> Result<Format> {
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        match extension.to_ascii_lowercase().as_str() {
            "jsonl" | "ndjson" | "json" => Ok(Format::Jsonl),
            "csv" | "tsv" => Ok(Format::Csv),
            "parquet" => Ok(Format::Parquet),
            _ => Err(Error::file(
                path,
                "a source is .jsonl, .ndjson, .json, .csv, .tsv or .parquet; for another name a mapping gives the `format`",
            )),
        }
    }
}

/// Where a row lies in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowPlace {
    /// It begins in this line, counted from 1.
    Line(u64),
    /// It is this row of a file without lines, counted from 1.
    Row(u64),
}

impl std::fmt::Display for RowPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RowPlace::Line(line) => write!(f, "line {line}"),
            RowPlace::Row(row) => write!(f, "row {row}"),
        }
    }
}

/// What is wrong with a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRow {
    /// Its type, if that much could be read.
    pub item_type: Option<String>,
    /// A sentence with the part of the item, the column if it has another name, and the value.
    pub message: String,
}

/// A row of a source.
#[derive(Clone, Debug)]
pub struct Row {
    /// Where it lies.
    pub place: RowPlace,
    /// The item; its SID is empty if the source has none.
    pub record: Result<ItemRecord, BadRow>,
}

/// Reads one item from the fields that a line of JSON without a mapping has: `id`, `type`, `title`, `popularity`, `sid`; all others are attributes.
///
/// # Errors
/// What is wrong with the item.
pub fn item_from_fields(fields: serde_json::Map<String, serde_json::Value>) -> Result<ItemRecord, BadRow> {
    jsonl::item(fields)
}

/// One format: gives rows in order.
trait RowReader: Send {
    /// The next rows, `None` at the end.
    fn next_batch(&mut self) -> Result<Option<Vec<Row>>>;
    /// Bytes of the file that are done.
    fn position(&self) -> u64;
}

/// A file of items, read from its beginning to its end.
pub struct Source {
    reader: Box<dyn RowReader>,
    length: u64,
}

impl Source {
    /// Opens a file; the mapping's `format`, else the file's name, says what it is.
    ///
    /// # Errors
    /// [`Error::File`]: it cannot be read, is malformed from the beginning, or lacks a column that the mapping names; [`Error::Unsupported`]:
    /// Parquet in a build without it.
    pub fn open(path: impl AsRef<Path>, mapping: &Mapping) -> Result<Source> {
        Source::open_parts(path.as_ref(), mapping, Parts::All)
    }

    fn open_parts(path: &Path, mapping: &Mapping, parts: Parts) -> Result<Source> {
        let metadata = std::fs::metadata(path).map_err(|error| Error::file(path, error.to_string()))?;
        if metadata.is_dir() {
            return Err(Error::file(path, "a folder, expected a file of items"));
        }
        let format = mapping.format.map_or_else(|| Format::of(path), Ok)?;
        let plan = Plan::new(mapping, parts, format == Format::Csv);
        let reader: Box<dyn RowReader> = match format {
            Format::Jsonl => Box::new(jsonl::Lines::open(path, plan)?),
            Format::Csv => Box::new(csv::Records::open(path, mapping, plan)?),
            #[cfg(feature = "parquet")]
            Format::Parquet => Box::new(parquet::Groups::open(path, plan)?),
            #[cfg(not(feature = "parquet"))]
            Format::Parquet => {
                return Err(Error::Unsupported(format!(
                    "{}: this build reads no Parquet; it needs the feature `parquet`",
                    path.display()
                )));
            }
        };
        Ok(Source { reader, length: metadata.len() })
    }

    /// The next rows, in order; `None` at the end of the file.
    ///
    /// # Errors
    /// [`Error::File`] with the place where the file is so malformed that the rows after it cannot be told apart.
    pub fn next_batch(&mut self) -> Result<Option<Vec<Row>>> {
        self.reader.next_batch()
    }

    /// Bytes of the file that are done.
    pub fn position(&self) -> u64 {
        self.reader.position()
    }

    /// Bytes of the file when it was opened.
    pub fn length(&self) -> u64 {
        self.length
    }
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a source, {} of {} bytes done", self.position(), self.length)
    }
}
