//! The bytes of a snapshot file, read and mended by the description of the format alone.

use std::path::{Path, PathBuf};

use sidereal::catalog::Catalog;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// A file's bytes.
#[derive(Clone)]
pub struct Image(pub Vec<u8>);

/// An entry of the table of sections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub kind: u16,
    pub item_type: u16,
    pub part: u16,
    pub width: u16,
    pub offset: u64,
    pub length: u64,
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

impl Image {
    pub fn of(catalog: &Catalog) -> Image {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("catalog.sid");
        catalog.write(&path, &mut |_, _| ()).unwrap();
        Image(std::fs::read(path).unwrap())
    }

    /// Writes the bytes to a file in `folder`.
    pub fn save(&self, folder: &Path) -> PathBuf {
        let path = folder.join("image.sid");
        std::fs::write(&path, &self.0).unwrap();
        path
    }

    pub fn sections(&self) -> usize {
        number(&self.0[12..16]) as usize
    }

    pub fn entry(&self, at: usize) -> Entry {
        let bytes = &self.0[64 + 32 * at..][..32];
        let short = |at: usize| number(&bytes[at..at + 2]) as u16;
        Entry {
            kind: short(0),
            item_type: short(2),
            part: short(4),
            width: short(6),
            offset: number(&bytes[8..16]),
            length: number(&bytes[16..24]),
        }
    }

    pub fn entries(&self) -> Vec<Entry> {
        (0..self.sections()).map(|at| self.entry(at)).collect()
    }

    pub fn section_mut(&mut self, at: usize) -> &mut [u8] {
        let entry = self.entry(at);
        &mut self.0[entry.offset as usize..(entry.offset + entry.length) as usize]
    }

    /// The section of a kind, type and part.
    pub fn find(&self, kind: u16, item_type: u16, part: u16) -> usize {
        let is_it = |entry: &Entry| (entry.kind, entry.item_type, entry.part) == (kind, item_type, part);
        self.entries()
            .iter()
            .position(is_it)
            .unwrap_or_else(|| panic!("no section {kind} of {item_type}, {part}"))
    }

    /// Computes all checksums and the digest anew, from the inside out. Sections that lie outside of the file keep theirs.
    pub fn mend(&mut self) {
        let mut digest = Xxh3::new();
        for at in 0..self.sections() {
            let entry = self.entry(at);
            let end = entry.offset.saturating_add(entry.length);
            let place = 64 + 32 * at;
            if end <= self.0.len() as u64 {
                let checksum = xxh3_64(&self.0[entry.offset as usize..end as usize]);
                self.0[place + 24..place + 32].copy_from_slice(&checksum.to_le_bytes());
            }
            digest.update(&self.0[place..place + 8]);
            digest.update(&self.0[place + 16..place + 32]);
        }
        self.0[32..48].copy_from_slice(&digest.digest128().to_be_bytes());
        self.mend_header();
    }

    /// Computes the checksums of table and header anew.
    pub fn mend_header(&mut self) {
        let table = xxh3_64(&self.0[64..64 + 32 * self.sections()]);
        self.0[48..56].copy_from_slice(&table.to_le_bytes());
        let header = xxh3_64(&self.0[..56]);
        self.0[56..64].copy_from_slice(&header.to_le_bytes());
    }
}
