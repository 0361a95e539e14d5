//! Any bytes as a snapshot file: refused with a sentence, or a catalog that can be walked.
//!
//! The first byte says whether the checksums of what follows are computed anew, so that the checks behind them are reached.

#![no_main]

use std::io::Write;

use libfuzzer_sys::fuzz_target;
use sidereal::catalog::Catalog;
use sidereal::ids::{Rank, SidIndex, TypeId};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

fuzz_target!(|bytes: &[u8]| {
    let Some((&mend, image)) = bytes.split_first() else { return };
    let mut image = image.to_vec();
    if mend % 2 == 1 {
        mend_checksums(&mut image);
    }
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(&image).expect("room for a file");
    if Catalog::verify(file.path(), &mut |_, _| ()).is_err() {
        // Opening may succeed where verifying does not.
        let _ = Catalog::open(file.path());
        return;
    }
    let catalog = Catalog::open(file.path()).expect("a file that was verified");
    for t in (0..catalog.types().len() as u16).map(TypeId) {
        let index = catalog.index(t);
        for sid in (0..index.sids() as u32).map(SidIndex) {
            assert_eq!(index.find(&index.codes(sid)), Some(sid));
            assert_eq!(catalog.by_popularity(t, sid).count(), index.ranks(sid).len());
        }
        for rank in (0..index.items() as u32).map(Rank) {
            let item = catalog.item(t, rank);
            assert_eq!(catalog.find(item.id()), Some((t, rank)));
            item.title();
            catalog.columns(t).for_each(|(_, column)| drop(column.value(rank.index())));
        }
    }
});

fn number(bytes: &[u8]) -> usize {
    bytes.iter().rev().fold(0, |number, &byte| number << 8 | usize::from(byte))
}

fn mend_checksums(image: &mut [u8]) {
    if image.len() < 64 {
        return;
    }
    image[..12].copy_from_slice(b"\x89SIDCAT\n\x01\0\0\0");
    let length = image.len() as u64;
    image[16..24].copy_from_slice(&length.to_le_bytes());
    let end = 64 + 32 * number(&image[12..16]).min(1 << 16);
    if end > image.len() {
        return;
    }
    let mut digest = Xxh3::new();
    for entry in (64..end).step_by(32) {
        let (offset, length) =
            (number(&image[entry + 8..entry + 16]), number(&image[entry + 16..entry + 24]));
        if let Some(section) = offset.checked_add(length).and_then(|end| image.get(offset..end)) {
            let checksum = xxh3_64(section);
            image[entry + 24..entry + 32].copy_from_slice(&checksum.to_le_bytes());
        }
        digest.update(&image[entry..entry + 8]);
        digest.update(&image[entry + 16..entry + 32]);
    }
    image[32..48].copy_from_slice(&digest.digest128().to_be_bytes());
    let table = xxh3_64(&image[64..end]);
    image[48..56].copy_from_slice(&table.to_le_bytes());
    let header = xxh3_64(&image[..56]);
    image[56..64].copy_from_slice(&header.to_le_bytes());
}
