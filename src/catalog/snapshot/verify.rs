//! Reading every byte of a file, and asking of every array what the rest of the program takes for granted.

use std::path::Path;

use rayon::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use super::super::Catalog;
use super::invariants::{self, Fault};
use super::read::{self, Opened};
use super::sections::Key;
use crate::error::{Error, Result};

/// Bytes whose checksums are computed between two reports.
const PIECE: u64 = 256 << 20;

/// What a sound file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Name of the snapshot.
    pub snapshot: String,
    /// Length of the file.
    pub bytes: u64,
    /// Sections.
    pub sections: usize,
    /// Items of each type.
    pub items: Vec<(String, usize)>,
}

impl Catalog {
    /// Reads a whole snapshot file: what [`Catalog::open`] checks, all checksums, the zeros between sections, and that the tries, columns and
    /// ids are sound, so that nothing that is done with the catalog can fail. `progress` is told (done, total) in bytes.
    ///
    /// # Errors
    /// [`Error::File`] with the section, type, level or attribute, and the first element that is wrong.
    pub fn verify(path: impl AsRef<Path>, progress: &mut dyn FnMut(u64, u64)) -> Result<Verified> {
        let opened = verified(path.as_ref(), progress)?;
        let catalog = &opened.catalog;
        let items = opened.types.iter().map(|of_type| (of_type.name.clone(), of_type.items)).collect();
        Ok(Verified {
            snapshot: catalog.snapshot().to_owned(),
            bytes: opened.map.len() as u64,
            sections: opened.entries.len(),
            items,
        })
    }

    /// Maps a snapshot file and verifies what was mapped; `progress` is told (done, total) in bytes.
    ///
    /// # Errors
    /// As [`Catalog::verify`].
    pub fn load(path: impl AsRef<Path>, progress: &mut dyn FnMut(u64, u64)) -> Result<Catalog> {
        verified(path.as_ref(), progress).map(|opened| opened.catalog)
    }
}

fn verified(path: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<Opened> {
    let opened = read::open(path)?;
    check_checksums(&opened, progress).map_err(|message| Error::file(path, message))?;
    check_invariants(&opened).map_err(|message| Error::file(path, message))?;
    progress(opened.map.len() as u64, opened.map.len() as u64);
    Ok(opened)
}

/// Checksums of all sections, and zeros between them.
fn check_checksums(opened: &Opened, progress: &mut dyn FnMut(u64, u64)) -> Result<(), String> {
    let name = |at: usize| format!("section {at} ({})", opened.entries[at].key.describe(&opened.types));
    let total = opened.map.len() as u64;
    let mut from = 0;
    while from < opened.entries.len() {
        let begin = opened.entries[from].offset;
        let rest = &opened.entries[from..];
        let count =
            rest.iter().take_while(|entry| entry.offset + entry.length <= begin + PIECE).count().max(1);
        rest[..count].par_iter().enumerate().try_for_each(|(at, entry)| {
            let found = xxh3_64(&opened.map[entry.offset as usize..(entry.offset + entry.length) as usize]);
            if found == entry.checksum {
                return Ok(());
            }
            Err(format!("{}: checksum {found:016x}, the table says {:016x}", name(from + at), entry.checksum))
        })?;
        from += count;
        progress(opened.entries[from - 1].offset, total);
    }
    let table = (super::format::HEADER + super::format::ENTRY * opened.entries.len()) as u64;
    let ends = opened.entries.iter().map(|entry| entry.offset + entry.length);
    let begins = opened.entries.iter().map(|entry| entry.offset).chain([total]);
    for (from, to) in std::iter::once(table).chain(ends).zip(begins) {
        let gap = &opened.map[from as usize..to as usize];
        if let Some(at) = gap.iter().position(|&byte| byte != 0) {
            return Err(format!("byte {} between sections is {}, expected 0", from as usize + at, gap[at]));
        }
    }
    Ok(())
}

fn check_invariants(opened: &Opened) -> Result<(), String> {
    let catalog = &opened.catalog;
    let locate = |fault: Fault| {
        let key = Key { kind: fault.kind, item_type: fault.item_type, part: fault.part };
        let at = opened.entries.iter().position(|entry| entry.key == key);
        let section = at.map_or_else(String::new, |at| format!("section {at} "));
        format!("{section}({}): {}", key.describe(&opened.types), fault.message)
    };
    (0..opened.types.len())
        .into_par_iter()
        .try_for_each(|t| invariants::check_type(&catalog.parts()[t], t as u16))
        .and_then(|()| invariants::check_ids(catalog))
        .map_err(locate)
}
