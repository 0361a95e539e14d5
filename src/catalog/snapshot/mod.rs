//! A catalog as one file: see "The snapshot file" of the design document for every byte of it.

mod contents;
mod format;
mod invariants;
mod read;
mod sections;
mod verify;
mod write;

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::Catalog;
use crate::error::{Error, Result};
use crate::ids::TypeId;
use sections::{NONE, sections};

pub use sections::SectionKind;
pub use verify::Verified;

/// The checksum of every section, in order.
pub(super) fn checksums(catalog: &Catalog) -> Arc<[u64]> {
    sections(catalog).par_iter().map(|section| xxh3_64(&section.bytes)).collect::<Vec<u64>>().into()
}

/// The checksums of a catalog that differs from `before` in popularity alone.
pub(super) fn checksums_after(before: &Catalog, catalog: &Catalog) -> Arc<[u64]> {
    let changed = [SectionKind::Contents, SectionKind::Popularity, SectionKind::Preferred];
    let old: HashMap<_, u64> =
        sections(before).iter().map(|section| section.key).zip(before.checksums().iter().copied()).collect();
    let checksum = |section: &sections::Section<'_>| match old.get(&section.key) {
        Some(&checksum) if !changed.contains(&section.key.kind) => checksum,
        _ => xxh3_64(&section.bytes),
    };
    sections(catalog).par_iter().map(checksum).collect::<Vec<u64>>().into()
}

/// The name of a catalog whose checksums are known.
pub(super) fn digest(catalog: &Catalog) -> String {
    let sections = sections(catalog);
    let sections = sections.iter().zip(catalog.checksums());
    let digest =
        format::digest(sections.map(|(section, &sum)| (section.key, section.bytes.len() as u64, sum)));
    format!("{digest:032x}")
}

/// A digest of the names and codebooks of the types.
pub(super) fn layout_hash(catalog: &Catalog) -> u64 {
    let mut hash = Xxh3::new();
    let mut feed = |number: usize| hash.update(&(number as u32).to_le_bytes());
    feed(catalog.types().len());
    for (name, items) in catalog.types().iter().zip(catalog.parts()) {
        let index = &items.index;
        let mut feed = |number: usize| hash.update(&(number as u32).to_le_bytes());
        feed(name.len());
        feed(index.levels());
        (0..index.levels()).for_each(|level| feed(index.codebook(level)));
        hash.update(name.as_bytes());
    }
    hash.digest()
}

/// A part of a catalog as a file holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SectionInfo {
    /// What it holds.
    pub kind: SectionKind,
    /// Of which type; `None`: of all.
    pub item_type: Option<TypeId>,
    /// Of which level or column.
    pub part: SectionPart,
    /// Its length.
    pub bytes: usize,
}

/// Which part of a type a section belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SectionPart {
    /// All of it.
    Whole,
    /// A level of the trie.
    Level(usize),
    /// The titles.
    Title,
    /// An attribute.
    Attribute(String),
}

impl Catalog {
    /// Whether a file begins as snapshots do; `false` also if it cannot be read.
    pub fn is_snapshot(path: impl AsRef<Path>) -> bool {
        // Without the line end: if a transfer has mangled it, opening says so.
        let mut magic = [0; format::MAGIC.len() - 1];
        let read = File::open(path).and_then(|mut file| file.read_exact(&mut magic));
        read.is_ok() && format::MAGIC.starts_with(&magic)
    }

    /// What a file of this catalog consists of, in order.
    pub fn sections(&self) -> Vec<SectionInfo> {
        let info = |section: sections::Section<'_>| {
            let item_type = (section.key.item_type != NONE).then_some(TypeId(section.key.item_type));
            let level = section.key.kind < SectionKind::FirstItems;
            let attribute = |t: TypeId| {
                let at = usize::from(section.key.part) - 1;
                self.columns(t).nth(at).map(|(name, _)| SectionPart::Attribute(name.to_owned()))
            };
            let part = match (section.key.part, item_type) {
                (NONE, _) | (_, None) => SectionPart::Whole,
                (part, Some(_)) if level => SectionPart::Level(part.into()),
                (0, Some(_)) => SectionPart::Title,
                (_, Some(t)) => attribute(t).unwrap_or(SectionPart::Whole),
            };
            SectionInfo { kind: section.key.kind, item_type, part, bytes: section.bytes.len() }
        };
        sections(self).into_iter().map(info).collect()
    }

    /// Bytes of the tries, with what leads from SIDs to items.
    pub fn index_bytes(&self) -> usize {
        self.parts().iter().map(|items| items.index.bytes()).sum()
    }
}

/// Arrays lie in files as they do in memory.
fn little_endian() -> Result<()> {
    if cfg!(target_endian = "big") {
        return Err(Error::Unsupported(
            "snapshot files are little-endian, this machine is big-endian".into(),
        ));
    }
    Ok(())
}
