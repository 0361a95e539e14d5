//! Codes from files beside the sources.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::npy::CodeRows;
use super::plan::Parts;
use super::{Format, Mapping, Row, Source};
use crate::error::{Error, Result};

/// A file of codes, which take the place of those that the rows may have.
///
/// `.npy`: integers `[rows, levels]`, a row for each row of the sources in order (bad rows counted, empty lines not), or for each row of one type.
/// `.jsonl`: lines of `{"id": …, "sid": […]}`, in any order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CodesFile {
    path: PathBuf,
    item_type: Option<String>,
}

impl CodesFile {
    /// The codes of all rows.
    pub fn new(path: impl Into<PathBuf>) -> CodesFile {
        CodesFile { path: path.into(), item_type: None }
    }

    /// The codes of the rows of a type.
    pub fn of_type(item_type: impl Into<String>, path: impl Into<PathBuf>) -> CodesFile {
        CodesFile { path: path.into(), item_type: Some(item_type.into()) }
    }
}

/// Gives rows their codes.
pub struct Coder {
    /// By type; no type: all rows.
    by_row: Vec<(Option<String>, CodeRows)>,
    by_id: Option<ById>,
}

/// Codes by the ids of items.
struct ById {
    path: PathBuf,
    places: HashMap<Box<str>, (usize, u8)>,
    codes: Vec<u16>,
    used: u64,
}

impl Coder {
    pub fn open(files: &[CodesFile]) -> Result<Coder> {
        let mut coder = Coder { by_row: Vec::new(), by_id: None };
        for file in files {
            let path = &file.path;
            let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
            match extension {
                "npy" => coder.by_row.push((file.item_type.clone(), CodeRows::open(path)?)),
                "jsonl" | "ndjson" if file.item_type.is_none() => {
                    coder.by_id.get_or_insert_with(|| ById::new(path)).read(path)?;
                }
                "jsonl" | "ndjson" => return Err(Error::file(path, "codes by id are given without a type")),
                _ => return Err(Error::file(path, "codes are in .npy or .jsonl files")),
            }
        }
        let types: Vec<&Option<String>> = coder.by_row.iter().map(|(item_type, _)| item_type).collect();
        if let Some(at) = (1..types.len()).find(|&at| types[..at].contains(&types[at])) {
            return Err(Error::file(coder.by_row[at].1.path(), "a second file of codes for the same rows"));
        }
        let mixed = |at: &usize| types.len() > 1 && types[*at].is_none() || coder.by_id.is_some();
        if let Some(at) = (0..types.len()).find(mixed) {
            let message = "codes for all rows, beside other codes for some of them";
            return Err(Error::file(coder.by_row[at].1.path(), message));
        }
        Ok(coder)
    }

    /// Gives the next row its codes.
    ///
    /// # Errors
    /// [`Error::File`] if there are too few, or it cannot be told which are the row's. A row whose id has no codes becomes a bad row instead.
    pub fn apply(&mut self, row: &mut Row, source: &Path) -> Result<()> {
        if let (Some(by_id), Ok(record)) = (&mut self.by_id, &mut row.record) {
            match by_id.places.get(record.id.as_str()) {
                Some(&(start, levels)) => {
                    record.sid = by_id.codes[start..start + usize::from(levels)].to_vec();
                    by_id.used += 1;
                }
                None => {
                    let message = format!("sid: `{}` has no codes in {}", record.id, by_id.path.display());
                    let item_type =
                        Some(std::mem::take(&mut record.item_type)).filter(|name| !name.is_empty());
                    row.record = Err(super::BadRow { item_type, message });
                }
            }
            return Ok(());
        }
        let Some(rows) = self.rows_of(row, source)? else { return Ok(()) };
        let Some(codes) = rows.next_row()? else {
            let (count, place) = (rows.rows, row.place);
            let message =
                format!("{count} rows, but {} has more of them: {place} is one too many", source.display());
            return Err(Error::file(rows.path(), message));
        };
        if let Ok(record) = &mut row.record {
            record.sid = codes;
        }
        Ok(())
    }

    /// The file with the codes of a row, if there is one.
    fn rows_of(&mut self, row: &Row, source: &Path) -> Result<Option<&mut CodeRows>> {
        let item_type = match (&row.record, &self.by_row[..]) {
            (_, []) => return Ok(None),
            (_, [(None, _)]) => None,
            (Ok(record), _) => Some(record.item_type.clone()),
            (Err(bad), [(_, rows), ..]) => {
                let found = bad.item_type.clone();
                let unknown = || {
                    let (place, path) = (row.place, rows.path().display());
                    Error::file(
                        source,
                        format!(
                            "{place}: {} - and a row without a type leaves it open which row of {path} is the next one's",
                            bad.message
                        ),
                    )
                };
                Some(found.ok_or_else(unknown)?)
            }
        };
        let of_type = |(of, rows)| (of == &item_type).then_some(rows);
        Ok(self.by_row.iter_mut().find_map(|(of, rows)| of_type((&*of, rows))))
    }

    /// Checks that all rows of codes had a row, and returns how many ids had none.
    pub fn finish(&self) -> Result<u64> {
        if let Some((item_type, rows)) = self.by_row.iter().find(|(_, rows)| rows.left() > 0) {
            let of_type = item_type.as_ref().map(|name| format!(" of type `{name}`")).unwrap_or_default();
            let message =
                format!("{} rows, but the sources have {}{of_type}", rows.rows, rows.rows - rows.left());
            return Err(Error::file(rows.path(), message));
        }
        Ok(self.by_id.as_ref().map_or(0, |by_id| (by_id.places.len() as u64).saturating_sub(by_id.used)))
    }
}

impl ById {
    fn new(path: &Path) -> ById {
        ById { path: path.to_path_buf(), places: HashMap::new(), codes: Vec::new(), used: 0 }
    }

    fn read(&mut self, path: &Path) -> Result<()> {
        let mapping = Mapping { format: Some(Format::Jsonl), ..Mapping::default() };
        let mut source = Source::open_parts(path, &mapping, Parts::Codes)?;
        while let Some(rows) = source.next_batch()? {
            for row in rows {
                let failed = |message: String| Error::file(path, format!("{}: {message}", row.place));
                let record = row.record.map_err(|bad| failed(bad.message))?;
                if !(1..=crate::catalog::MAX_LEVELS).contains(&record.sid.len()) {
                    let (found, most) = (record.sid.len(), crate::catalog::MAX_LEVELS);
                    return Err(failed(format!("sid: {found} codes, expected 1 to {most}")));
                }
                let place = (self.codes.len(), record.sid.len() as u8);
                self.codes.extend_from_slice(&record.sid);
                if let Some(before) = self.places.insert(record.id.into_boxed_str(), place)
                    && self.codes[before.0..before.0 + usize::from(before.1)] != record.sid[..]
                {
                    return Err(failed("id: it has other codes in a line before".to_owned()));
                }
            }
        }
        Ok(())
    }
}
