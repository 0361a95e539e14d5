//! A catalog as one file: see "The snapshot file" of the design document for every byte of it.

mod sections;

use std::sync::Arc;

use rayon::prelude::*;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::Catalog;
use sections::{Section, sections};

/// The checksum of every section, in order.
pub(super) fn checksums(catalog: &Catalog) -> Arc<[u64]> {
    sections(catalog).par_iter().map(|section| xxh3_64(&section.bytes)).collect::<Vec<u64>>().into()
}

/// The name of a snapshot: a digest of what its sections are and of their checksums.
pub(super) fn digest(catalog: &Catalog) -> String {
    format!("{:032x}", digest_of(&sections(catalog), catalog.checksums()))
}

fn digest_of(sections: &[Section<'_>], checksums: &[u64]) -> u128 {
    let mut hash = Xxh3::new();
    for (section, checksum) in sections.iter().zip(checksums) {
        hash.update(&section.key.to_bytes());
        hash.update(&(section.bytes.len() as u64).to_le_bytes());
        hash.update(&checksum.to_le_bytes());
    }
    hash.digest128()
}

/// A digest of the names and codebooks of the types.
pub(super) fn layout_hash(catalog: &Catalog) -> u64 {
    let mut hash = Xxh3::new();
    for (name, items) in catalog.types().iter().zip(catalog.parts()) {
        hash.update(&(name.len() as u32).to_le_bytes());
        hash.update(name.as_bytes());
        hash.update(&(items.index.levels() as u32).to_le_bytes());
        for level in 0..items.index.levels() {
            hash.update(&(items.index.codebook(level) as u32).to_le_bytes());
        }
    }
    hash.digest()
}
