//! CSV: cells with a delimiter between them, the first line names the columns.
//!
//! As RFC 4180 has it: a cell in quotes may hold delimiters, line ends and doubled quotes. Records are told apart one after the other and turned
//! into items in parallel.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use csv_core::ReadRecordResult;
use rayon::prelude::*;
use serde_json::Value;

use super::mapping::Mapping;
use super::plan::{Assembly, Plan};
use super::{BadRow, MAX_COLUMNS, MAX_ROW, PIECE, Row, RowPlace, RowReader};
use crate::catalog::ItemRecord;
use crate::error::{Error, Result};

/// Records of a batch.
const BATCH: usize = 4096;
/// Most bytes of the cells of a batch.
const BATCH_BYTES: usize = 4 << 20;

/// The cells of records, one after the other.
#[derive(Default)]
struct Cells {
    text: Vec<u8>,
    /// End of each cell in its record.
    ends: Vec<usize>,
    records: Vec<Record>,
}

/// A record of [`Cells`].
#[derive(Clone, Copy, Default)]
struct Record {
    line: u64,
    text: usize,
    ends: usize,
    cells: usize,
}

impl Cells {
    fn get(&self, record: &Record, at: usize) -> &[u8] {
        let ends = &self.ends[record.ends..record.ends + record.cells];
        let start = if at == 0 { 0 } else { ends[at - 1] };
        &self.text[record.text + start..record.text + ends[at]]
    }
}

/// A CSV file.
pub struct Records {
    path: PathBuf,
    input: Input,
    header: Vec<String>,
    plan: Plan,
}

impl Records {
    pub fn open(path: &Path, mapping: &Mapping, plan: Plan) -> Result<Records> {
        let file = File::open(path).map_err(|error| Error::file(path, error.to_string()))?;
        let tabs = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("tsv"));
        // A mapping's delimiter is ASCII.
        let delimiter = mapping.delimiter.map_or(if tabs { b'\t' } else { b',' }, |c| c as u8);
        let quoting = mapping.quote.unwrap_or(true);
        let mut records = Records {
            path: path.to_path_buf(),
            input: Input::new(file, delimiter, quoting),
            header: Vec::new(),
            plan,
        };
        let mut cells = Cells::default();
        if !records.input.read(&mut cells).map_err(|message| Error::file(path, message))? {
            return Err(Error::file(path, "empty, expected a line that names the columns"));
        }
        records.header = header(&cells).map_err(|message| Error::file(path, format!("line 1: {message}")))?;
        records
            .plan
            .check_header(&records.header)
            .map_err(|error| Error::file(path, format!("line 1: {error}")))?;
        Ok(records)
    }
}

/// The names of the columns.
fn header(cells: &Cells) -> Result<Vec<String>, String> {
    let record = cells.records[0];
    if record.cells > MAX_COLUMNS {
        return Err(format!("{} columns, at most {MAX_COLUMNS}", record.cells));
    }
    let mut names: Vec<String> = Vec::with_capacity(record.cells);
    for at in 0..record.cells {
        let name = std::str::from_utf8(cells.get(&record, at))
            .map_err(|_| format!("the name of column {} is not UTF-8", at + 1))?;
        if name.is_empty() {
            return Err(format!("column {} has no name", at + 1));
        }
        if let Some(before) = names.iter().position(|known| known == name) {
            return Err(format!("columns {} and {} are both named `{name}`", before + 1, at + 1));
        }
        names.push(name.to_owned());
    }
    Ok(names)
}

impl RowReader for Records {
    fn next_batch(&mut self) -> Result<Option<Vec<Row>>> {
        let mut cells = Cells::default();
        while cells.records.len() < BATCH && cells.text.len() < BATCH_BYTES {
            if !self.input.read(&mut cells).map_err(|message| Error::file(&self.path, message))? {
                break;
            }
        }
        if cells.records.is_empty() {
            return Ok(None);
        }
        let row = |record: &Record| {
            let place = RowPlace::Line(record.line);
            Row { place, record: parse(&cells, record, &self.header, &self.plan) }
        };
        Ok(Some(cells.records.par_iter().map(row).collect()))
    }

    fn position(&self) -> u64 {
        self.input.position
    }
}

fn parse(cells: &Cells, record: &Record, header: &[String], plan: &Plan) -> Result<ItemRecord, BadRow> {
    let mut assembly = Assembly::new(plan);
    if record.cells != header.len() {
        assembly.fail(|| format!("{} cells, but line 1 names {} columns", record.cells, header.len()));
        return assembly.finish();
    }
    for (at, column) in header.iter().enumerate() {
        let cell = cells.get(record, at);
        if cell.is_empty() {
            continue;
        }
        match std::str::from_utf8(cell) {
            Ok(cell) => assembly.put(column, plan.use_of(column), Value::String(cell.to_owned())),
            Err(error) => {
                let byte = cell[error.valid_up_to()];
                assembly.fail(|| format!("column `{column}`: byte {byte:#04x} is not UTF-8"));
            }
        }
    }
    assembly.finish()
}

/// Tells records apart.
struct Input {
    file: File,
    parser: csv_core::Reader,
    quoting: bool,
    /// What has been read, and how much of it is done.
    buffer: Vec<u8>,
    done: usize,
    /// Line of the next byte, from 1.
    line: u64,
    position: u64,
    ended: bool,
}

impl Input {
    fn new(file: File, delimiter: u8, quoting: bool) -> Input {
        let parser = csv_core::ReaderBuilder::new().delimiter(delimiter).quoting(quoting).build();
        Input { file, parser, quoting, buffer: Vec::new(), done: 0, line: 1, position: 0, ended: false }
    }

    /// Reads a piece if nothing is left of the last one.
    fn fill(&mut self) -> Result<(), String> {
        while self.done == self.buffer.len() && !self.ended {
            let start = self.position == 0;
            self.buffer.clear();
            self.done = 0;
            let read = (&mut self.file).take(PIECE as u64).read_to_end(&mut self.buffer);
            let read = read.map_err(|error| format!("line {}: {error}", self.line))?;
            self.position += read as u64;
            self.ended = read == 0;
            if start && self.buffer.starts_with(b"\xef\xbb\xbf") {
                self.done = 3;
            }
        }
        Ok(())
    }

    /// Counts the lines of what is done.
    fn advance(&mut self, bytes: usize) {
        let done = &self.buffer[self.done..self.done + bytes];
        self.line += done.iter().filter(|&&byte| byte == b'\n').count() as u64;
        self.done += bytes;
    }

    /// Skips line ends: where a record begins they are empty lines, or the rest of the end before.
    fn skip_line_ends(&mut self) -> Result<(), String> {
        loop {
            self.fill()?;
            let ends =
                self.buffer[self.done..].iter().take_while(|&&byte| matches!(byte, b'\n' | b'\r')).count();
            if ends == 0 {
                return Ok(());
            }
            self.advance(ends);
        }
    }

    /// Appends the next record; `false` at the end of the file.
    fn read(&mut self, cells: &mut Cells) -> Result<bool, String> {
        self.skip_line_ends()?;
        if self.ended {
            return Ok(false);
        }
        let (text, ends) = (cells.text.len(), cells.ends.len());
        let (line, mut written, mut cells_read, mut consumed) = (self.line, 0, 0, 0);
        loop {
            cells.text.resize(text + (2 * written).max(256), 0);
            cells.ends.resize(ends + (2 * cells_read).max(32), 0);
            // A line end that the file may lack ends the last record, unless that is inside of quotes.
            let input = if self.ended { b"\n" } else { &self.buffer[self.done..] };
            let (result, bytes, chars, fields) = self.parser.read_record(
                input,
                &mut cells.text[text + written..],
                &mut cells.ends[ends + cells_read..],
            );
            if !self.ended {
                self.advance(bytes);
            }
            (written, cells_read, consumed) = (written + chars, cells_read + fields, consumed + bytes);
            match result {
                ReadRecordResult::Record => break,
                ReadRecordResult::End => return Ok(false),
                ReadRecordResult::InputEmpty if self.ended => {
                    return Err(format!("line {line}: a quote in this record is never closed"));
                }
                ReadRecordResult::InputEmpty => self.fill()?,
                ReadRecordResult::OutputFull | ReadRecordResult::OutputEndsFull => {}
            }
            if consumed > MAX_ROW {
                let hint = if self.quoting { "; perhaps a quote is never closed" } else { "" };
                return Err(format!("line {line}: a record of more than {MAX_ROW} bytes{hint}"));
            }
        }
        cells.text.truncate(text + written);
        cells.ends.truncate(ends + cells_read);
        cells.records.push(Record { line, text, ends, cells: cells_read });
        Ok(true)
    }
}
