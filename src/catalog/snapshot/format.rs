//! The header and the table of sections.

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::sections::Key;

/// No text file begins like this, and a transfer that changes line ends breaks it.
pub(super) const MAGIC: [u8; 8] = *b"\x89SIDCAT\n";
/// The one version that is read and written.
pub(super) const VERSION: u32 = 1;
/// Bytes of the header.
pub(super) const HEADER: usize = 64;
/// Bytes of an entry of the table.
pub(super) const ENTRY: usize = 32;
/// Sections begin at multiples of this: a cache line, and more than any element needs.
pub(super) const ALIGN: usize = 64;

/// The next place where a section may begin.
pub(super) fn align(at: u64) -> u64 {
    at.next_multiple_of(ALIGN as u64)
}

/// An entry of the table of sections.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub key: Key,
    pub offset: u64,
    pub length: u64,
    pub checksum: u64,
}

impl Entry {
    pub fn to_bytes(self) -> [u8; ENTRY] {
        let mut bytes = [0; ENTRY];
        bytes[..8].copy_from_slice(&self.key.to_bytes());
        for (to, number) in bytes[8..].chunks_exact_mut(8).zip([self.offset, self.length, self.checksum]) {
            to.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }
}

/// Where sections of these lengths lie, and the length of the file.
pub(super) fn place(sections: &[(Key, u64, u64)]) -> (Vec<Entry>, u64) {
    let mut at = align((HEADER + ENTRY * sections.len()) as u64);
    let place = |&(key, length, checksum): &(Key, u64, u64)| {
        let offset = at;
        at = align(at + length);
        Entry { key, offset, length, checksum }
    };
    (sections.iter().map(place).collect(), at)
}

/// The digest that names a snapshot: of what its sections are and of their checksums.
pub(super) fn digest(sections: impl Iterator<Item = (Key, u64, u64)>) -> u128 {
    let mut hash = Xxh3::new();
    for (key, length, checksum) in sections {
        hash.update(&key.to_bytes());
        hash.update(&length.to_le_bytes());
        hash.update(&checksum.to_le_bytes());
    }
    hash.digest128()
}

/// What the header says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub sections: u32,
    pub file_length: u64,
    pub layout_hash: u64,
    pub digest: u128,
    pub table_checksum: u64,
}

impl Header {
    pub fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.sections.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.file_length.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.layout_hash.to_le_bytes());
        // So that the bytes in order are the digits of the name.
        bytes[32..48].copy_from_slice(&self.digest.to_be_bytes());
        bytes[48..56].copy_from_slice(&self.table_checksum.to_le_bytes());
        let checksum = xxh3_64(&bytes[..56]);
        bytes[56..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Reads the header of a file of `length` bytes, of which `bytes` are the first 64, or all.
    pub fn parse(bytes: &[u8], length: u64) -> Result<Header, String> {
        let known = bytes.len().min(MAGIC.len());
        if known == 0 || bytes[..known] != MAGIC[..known] {
            let begin: Vec<String> = bytes[..known].iter().map(|byte| format!("{byte:02x}")).collect();
            let begin =
                if known == 0 { "is empty".into() } else { format!("begins with {}", begin.join(" ")) };
            return Err(format!("no catalog snapshot: {begin}, a snapshot with 89 53 49 44 43 41 54 0a"));
        }
        let Some(bytes) = bytes.first_chunk::<HEADER>() else {
            return Err(format!("truncated: {length} bytes, the header alone has {HEADER}"));
        };
        let version = number(&bytes[8..12]);
        if version != u64::from(VERSION) {
            return Err(format!("format version {version}, this build reads version {VERSION}"));
        }
        let (stated, found) = (number(&bytes[56..]), xxh3_64(&bytes[..56]));
        if stated != found {
            return Err(format!("altered header: checksum {found:016x}, bytes 56 to 63 say {stated:016x}"));
        }
        let mut digest = [0; 16];
        digest.copy_from_slice(&bytes[32..48]);
        let header = Header {
            sections: number(&bytes[12..16]) as u32,
            file_length: number(&bytes[16..24]),
            layout_hash: number(&bytes[24..32]),
            digest: u128::from_be_bytes(digest),
            table_checksum: number(&bytes[48..56]),
        };
        match length.cmp(&header.file_length) {
            std::cmp::Ordering::Less => {
                Err(format!("truncated: {length} bytes, the header says {}", header.file_length))
            }
            std::cmp::Ordering::Greater => {
                Err(format!("{length} bytes, the header says {}: something was appended", header.file_length))
            }
            std::cmp::Ordering::Equal => Ok(header),
        }
    }

    /// Reads the table of sections that follows the header in `file`, and checks that the sections tile the file.
    pub fn table(&self, file: &[u8]) -> Result<Vec<Entry>, String> {
        let end = HEADER + ENTRY * self.sections as usize;
        let Some(table) = file.get(HEADER..end) else {
            return Err(format!("{} sections, whose table ends past {} bytes", self.sections, file.len()));
        };
        let found = xxh3_64(table);
        if found != self.table_checksum {
            let stated = self.table_checksum;
            return Err(format!(
                "altered table of sections: checksum {found:016x}, the header says {stated:016x}"
            ));
        }
        let mut at = align(end as u64);
        let mut entries = Vec::with_capacity(self.sections as usize);
        for (section, bytes) in table.chunks_exact(ENTRY).enumerate() {
            let mut key = [0; 8];
            key.copy_from_slice(&bytes[..8]);
            let Some(key) = Key::from_bytes(key) else {
                return Err(format!(
                    "section {section}: kind {} with elements of {} bytes is unknown",
                    number(&bytes[..2]),
                    number(&bytes[6..8])
                ));
            };
            let (offset, length) = (number(&bytes[8..16]), number(&bytes[16..24]));
            let name = key.kind.name();
            if offset != at {
                return Err(format!("section {section} ({name}): begins at byte {offset}, expected {at}"));
            }
            if length > self.file_length - offset.min(self.file_length) {
                let rest = self.file_length.saturating_sub(offset);
                return Err(format!(
                    "section {section} ({name}): {length} bytes from byte {offset}, but {rest} are left"
                ));
            }
            at = align(offset + length);
            entries.push(Entry { key, offset, length, checksum: number(&bytes[24..]) });
        }
        if at != self.file_length {
            return Err(format!("sections end at byte {at}, the file at {}", self.file_length));
        }
        Ok(entries)
    }
}

/// A little-endian number of up to eight bytes.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}
