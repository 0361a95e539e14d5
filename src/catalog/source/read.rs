//! From sources to a catalog.

use std::path::{Path, PathBuf};

use super::codes::{Coder, CodesFile};
use super::plan::Parts;
use super::{BadRow, Format, Mapping, Row, Source};
use crate::catalog::{Catalog, CatalogBuilder, ItemRecord, TypeSpec};
use crate::error::{Error, Result};

/// Messages kept of the rows that were skipped.
const MAX_MESSAGES: usize = 10;
/// Most types that are taken from the rows themselves.
const MAX_INFERRED: usize = 1024;

/// Told how far a long job is: (done, total) in bytes.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// What to do about a row that is no item.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// Give up at the first.
    #[default]
    Fail,
    /// Leave it out and count it.
    Skip,
}

/// What sources held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Items taken.
    pub items: u64,
    /// Rows left out.
    pub skipped: u64,
    /// What was wrong with the first ten of them, with file and line or row.
    pub messages: Vec<String>,
    /// Ids in files of codes that no row has.
    pub unused_codes: u64,
}

/// Files of items that make one catalog.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    files: Vec<(PathBuf, Mapping)>,
    codes: Vec<CodesFile>,
    on_error: OnError,
}

impl Sources {
    /// No files yet.
    pub fn new() -> Sources {
        Sources::default()
    }

    /// Adds a file.
    #[must_use]
    pub fn file(mut self, path: impl Into<PathBuf>, mapping: Mapping) -> Sources {
        self.files.push((path.into(), mapping));
        self
    }

    /// Adds a file of codes.
    #[must_use]
    pub fn codes(mut self, codes: CodesFile) -> Sources {
        self.codes.push(codes);
        self
    }

    /// What to do about bad rows; [`OnError::Fail`] unless told.
    #[must_use]
    pub fn on_error(mut self, on_error: OnError) -> Sources {
        self.on_error = on_error;
        self
    }

    /// Types and codebooks that the codes themselves suggest: types in the order of their first rows (one named `item` if no row has a type),
    /// levels as many as codes, codebooks up to the largest code. Reads everything once.
    ///
    /// # Errors
    /// [`Error::File`] with the place: as [`Sources::read`], also a row with more or fewer codes than the row before of its type.
    pub fn infer_types(&self, progress: Progress<'_>) -> Result<Vec<TypeSpec>> {
        let mut found: Vec<(String, Vec<usize>)> = Vec::new();
        let mut take = |record: ItemRecord| -> Result<(), String> {
            let at = found.iter().position(|(name, _)| *name == record.item_type).unwrap_or(found.len());
            if at == found.len() {
                if at == MAX_INFERRED {
                    return Err(format!(
                        "type: `{}` is one more than {MAX_INFERRED} types",
                        record.item_type
                    ));
                }
                found.push((record.item_type, vec![0; record.sid.len()]));
            }
            let (name, levels) = &mut found[at];
            if levels.len() != record.sid.len() {
                let (found, before) = (record.sid.len(), levels.len());
                return Err(format!("sid: {found} codes, but rows of type `{name}` before have {before}"));
            }
            let codebooks = record.sid.iter().map(|&code| usize::from(code) + 1);
            levels.iter_mut().zip(codebooks).for_each(|(level, codes)| *level = codes.max(*level));
            Ok(())
        };
        self.rows(Parts::Codes, &mut take, progress)?;
        if found.len() > 1 {
            // Rows without a type among others with one are told what is wrong when they are added.
            found.retain(|(name, _)| !name.is_empty());
        }
        let spec = |(name, levels): (String, Vec<usize>)| {
            let name = if name.is_empty() { "item".to_owned() } else { name };
            TypeSpec { token: format!("<{name}_{{level}}_{{code}}>"), name, levels }
        };
        Ok(found.into_iter().map(spec).collect())
    }

    /// Reads everything into a catalog.
    ///
    /// # Errors
    /// [`Error::File`] with file and line or row: a file that cannot be read, a bad row (with [`OnError::Fail`]), anything
    /// [`CatalogBuilder::push`] refuses, codes for more or fewer rows than there are; and as [`CatalogBuilder::build`].
    pub fn read(&self, types: &[TypeSpec], progress: Progress<'_>) -> Result<(Catalog, Report)> {
        let mut builder = CatalogBuilder::new(types);
        let mut take = |record| builder.push(record).map_err(|error| error.to_string());
        let report = self.rows(Parts::All, &mut take, progress)?;
        Ok((builder.build()?, report))
    }

    /// Hands all rows that are items to `take`.
    fn rows(&self, parts: Parts, take: Take<'_>, progress: Progress<'_>) -> Result<Report> {
        let mut total = 0;
        for (path, _) in &self.files {
            total += std::fs::metadata(path).map_err(|error| Error::file(path, error.to_string()))?.len();
        }
        let coder = Coder::open(&self.codes)?;
        let mut sink = Sink { take, coder, on_error: self.on_error, report: Report::default() };
        let mut before = 0;
        for (path, mapping) in &self.files {
            let mut source = Source::open_parts(path, mapping, parts)?;
            let mut rows = source.next_batch()?;
            while let Some(batch) = rows {
                let done = before + source.position();
                // The next rows are parsed while these are added. A bad row of these comes before whatever is wrong with the next.
                let (next, added) = rayon::join(|| source.next_batch(), || sink.add(path, batch));
                added?;
                rows = next?;
                // A file may grow while it is read.
                progress(done, done.max(total));
            }
            before += source.position();
        }
        progress(before, before.max(total));
        sink.report.unused_codes = sink.coder.finish()?;
        Ok(sink.report)
    }
}

/// Takes an item, or says what is wrong with it.
type Take<'a> = &'a mut (dyn FnMut(ItemRecord) -> Result<(), String> + Send);

/// Where rows go.
struct Sink<'a> {
    take: Take<'a>,
    coder: Coder,
    on_error: OnError,
    report: Report,
}

impl Sink<'_> {
    fn add(&mut self, path: &Path, rows: Vec<Row>) -> Result<()> {
        for mut row in rows {
            self.coder.apply(&mut row, path)?;
            let record = row.record.map_err(|BadRow { message, .. }| message);
            let record = record.and_then(|record| match record.sid.is_empty() {
                false => Ok(record),
                true => Err("sid: missing (codes may also come from a file of their own, which `sidereal sid fit` makes)".to_owned()),
            });
            match record.and_then(|record| (self.take)(record)) {
                Ok(()) => self.report.items += 1,
                Err(message) => {
                    let error = Error::file(path, format!("{}: {message}", row.place));
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
        Ok(())
    }
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
    let mapping = Mapping { format: Some(Format::Jsonl), ..Mapping::default() };
    let sources = Sources::new().on_error(on_error);
    paths.iter().fold(sources, |sources, path| sources.file(*path, mapping.clone())).read(types, progress)
}
