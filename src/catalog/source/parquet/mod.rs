//! Parquet, through the column readers of the parquet crate: only the columns that the mapping wants are read, each in its own thread, a few thousand rows
//! at a time.
//!
//! A column is a leaf of the file's schema: a value per row, or a list of them. A field `b` of a structure `a` is the column `a.b`. Lists of lists,
//! lists of structures and maps are refused by name unless the mapping drops them.

mod file;
mod leaf;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use parquet::file::reader::FileReader;
use parquet::file::serialized_reader::SerializedFileReader;
use rayon::prelude::*;
use serde_json::Value;

use self::file::Chunks;
use self::leaf::{Leaf, LeafReader};
use super::plan::{Assembly, Plan, Use};
use super::{Row, RowPlace, RowReader};
use crate::catalog::ItemRecord;
use crate::error::{Error, Result};

/// Most rows of a batch.
const BATCH: usize = 4096;
/// Bytes that a batch should have, as far as the file says how long its rows are.
const BATCH_BYTES: i64 = 8 << 20;
/// Rows that a thread turns into items at once.
const CHUNK: usize = 256;

/// A Parquet file.
pub struct Groups {
    path: PathBuf,
    reader: SerializedFileReader<Chunks>,
    /// Wanted columns, by leaf.
    leaves: Vec<Leaf>,
    plan: Plan,
    length: u64,
    rows: u64,
    /// Rows given so far.
    done: u64,
    group: usize,
    open: Option<OpenGroup>,
}

/// A row group that is being read.
struct OpenGroup {
    readers: Vec<LeafReader>,
    /// Rows not read yet.
    left: usize,
    batch: usize,
}

impl Groups {
    pub fn open(path: &Path, plan: Plan) -> Result<Groups> {
        let chunks = Chunks::open(path).map_err(|error| Error::file(path, error.to_string()))?;
        let length = chunks.length();
        let failed = |message: String| Error::file(path, message);
        let reader = guarded(|| SerializedFileReader::new(chunks).map_err(|error| error.to_string()))
            .map_err(|message| failed(format!("not a readable Parquet file: {message}")))?;
        let mut leaves =
            guarded(|| leaf::leaves(reader.metadata().file_metadata().schema_descr())).map_err(failed)?;
        let names: Vec<String> = leaves.iter().map(|leaf| leaf.name.clone()).collect();
        plan.check_header(&names).map_err(|error| failed(error.to_string()))?;
        leaves.retain(|leaf| plan.use_of(&leaf.name) != Use::Nothing);
        if let Some(leaf) = leaves.iter().find(|leaf| leaf.unsupported.is_some()) {
            let (name, why) = (&leaf.name, leaf.unsupported.as_deref().unwrap_or_default());
            return Err(failed(format!(
                "column `{name}` {why}; a mapping with drop = [\"{name}\"] leaves it out"
            )));
        }
        let groups = reader.metadata().row_groups();
        let mut rows = 0;
        for (at, group) in groups.iter().enumerate() {
            let count = u64::try_from(group.num_rows()).ok().filter(|&count| count <= u64::from(u32::MAX));
            rows += count.ok_or_else(|| failed(format!("row group {at} has {} rows", group.num_rows())))?;
        }
        let path = path.to_path_buf();
        Ok(Groups { path, reader, leaves, plan, length, rows, done: 0, group: 0, open: None })
    }

    /// Opens the next row group that has rows.
    fn open_group(&mut self) -> Result<Option<OpenGroup>, String> {
        while self.group < self.reader.num_row_groups() {
            let metadata = self.reader.metadata().row_group(self.group);
            let left = metadata.num_rows() as usize;
            let bytes_per_row = metadata.total_byte_size() / metadata.num_rows().max(1);
            let batch = (BATCH_BYTES / bytes_per_row.max(1)).clamp(16, BATCH as i64) as usize;
            self.group += 1;
            if left == 0 {
                continue;
            }
            let group = self.reader.get_row_group(self.group - 1).map_err(|error| error.to_string())?;
            let open = |leaf: &Leaf| {
                LeafReader::open(leaf, group.as_ref())
                    .map_err(|error| format!("column `{}`: {error}", leaf.name))
            };
            let readers = self.leaves.iter().map(open).collect::<Result<_, _>>()?;
            return Ok(Some(OpenGroup { readers, left, batch }));
        }
        Ok(None)
    }

    /// The values of the next rows, by column; `None` at the end.
    fn columns(&mut self) -> Result<Option<Vec<Vec<Value>>>, String> {
        if self.open.is_none() {
            self.open = self.open_group()?;
        }
        let Some(group) = &mut self.open else { return Ok(None) };
        let rows = group.left.min(group.batch);
        let read = |(reader, leaf): (&mut LeafReader, &Leaf)| {
            let values =
                guarded(|| reader.read(rows)).map_err(|error| format!("column `{}`: {error}", leaf.name))?;
            match values.len() == rows {
                true => Ok(values),
                false => Err(format!("column `{}`: ends {} rows early", leaf.name, rows - values.len())),
            }
        };
        let columns = group.readers.par_iter_mut().zip(&self.leaves).map(read).collect::<Result<_, _>>()?;
        group.left -= rows;
        if group.left == 0 {
            self.open = None;
        }
        Ok(Some(columns))
    }
}

impl RowReader for Groups {
    fn next_batch(&mut self) -> Result<Option<Vec<Row>>> {
        let columns = guarded(|| self.columns()).map_err(|message| {
            let group = self.group.saturating_sub(1);
            Error::file(&self.path, format!("row group {group}, from row {} on: {message}", self.done + 1))
        })?;
        let Some(mut columns) = columns else { return Ok(None) };
        let first = self.done + 1;
        let rows = columns.first().map_or(0, Vec::len);
        self.done += rows as u64;
        let chunks: Vec<Vec<Vec<Value>>> = (0..rows.div_ceil(CHUNK))
            .rev()
            .map(|chunk| columns.iter_mut().map(|column| column.split_off(chunk * CHUNK)).collect())
            .collect();
        let (leaves, plan) = (&self.leaves, &self.plan);
        let chunk_rows = |(at, chunk): (usize, Vec<Vec<Value>>)| {
            let first = first + (at * CHUNK) as u64;
            let records = records(chunk, leaves, plan);
            records
                .zip(first..)
                .map(|(record, row)| Row { place: RowPlace::Row(row), record })
                .collect::<Vec<_>>()
        };
        let chunks: Vec<_> = chunks.into_iter().rev().collect();
        Ok(Some(chunks.into_par_iter().enumerate().flat_map_iter(chunk_rows).collect()))
    }

    fn position(&self) -> u64 {
        // Bytes of rows are not known; their share of the rows is as good for a progress bar.
        (u128::from(self.length) * u128::from(self.done)).checked_div(u128::from(self.rows)).unwrap_or(0)
            as u64
    }
}

/// The items of a few rows, given by column.
fn records<'a>(
    columns: Vec<Vec<Value>>,
    leaves: &'a [Leaf],
    plan: &'a Plan,
) -> impl Iterator<Item = Result<ItemRecord, super::BadRow>> + 'a {
    let rows = columns.first().map_or(0, Vec::len);
    let mut columns: Vec<_> = columns.into_iter().map(Vec::into_iter).collect();
    (0..rows).map(move |_| {
        let mut assembly = Assembly::new(plan);
        for (column, leaf) in columns.iter_mut().zip(leaves) {
            match column.next().map(|value| leaf.finish(value)) {
                None => {}
                Some(Ok(value)) => assembly.put(&leaf.name, plan.use_of(&leaf.name), value),
                Some(Err(message)) => assembly.fail(|| format!("column `{}`: {message}", leaf.name)),
            }
        }
        assembly.finish()
    })
}

/// Turns a panic of the parquet crate, which trusts some numbers of a file, into an error.
fn guarded<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<String>().map(String::as_str);
        let message = message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("malformed");
        Err(format!("malformed: {message}"))
    })
}
