//! Mapping a file.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use bytemuck::AnyBitPattern;
use memmap2::Mmap;
use xxhash_rust::xxh3::xxh3_64;

use super::super::columns::{Column, Labels, Values};
use super::super::id_table;
use super::super::index::Level;
use super::super::items::TypeItems;
use super::super::strings::{BLOCK, Ends, Strings};
use super::super::{Array, Bitmap, Catalog, TypeIndex};
use super::contents::{self, ColumnContents, Form, TypeContents, ValueKind};
use super::format::{self, Entry, HEADER, Header};
use super::sections::{Key, NONE, SectionKind};
use crate::error::{Error, Result};

/// Most bytes of the contents, which are read before anything is known to be sound.
const MAX_CONTENTS: u64 = 64 << 20;

/// A mapped file with what its table and contents say.
pub(super) struct Opened {
    pub map: Arc<Mmap>,
    pub entries: Vec<Entry>,
    pub types: Vec<TypeContents>,
    pub catalog: Catalog,
}

impl Catalog {
    /// Maps a file that [`Catalog::write`] made. Header, table and contents are checked, and that every section is as long as they say: that
    /// takes no longer for a large catalog than for a small one. The sections themselves are not read; [`Catalog::verify`] reads them.
    ///
    /// Looking things up in a file that was altered and not verified may panic, and may give wrong answers, but no more than that. The file must
    /// not be written to or cut while it is mapped; replacing it under its name, as [`Catalog::write`] does, is fine.
    ///
    /// # Errors
    /// [`Error::File`] if the file cannot be mapped, is no snapshot, of another version, truncated or altered, with the place.
    /// [`Error::Unsupported`] on a big-endian machine.
    pub fn open(path: impl AsRef<Path>) -> Result<Catalog> {
        open(path.as_ref()).map(|opened| opened.catalog)
    }
}

pub(super) fn open(path: &Path) -> Result<Opened> {
    super::little_endian()?;
    let fail = |error: std::io::Error| Error::file(path, error.to_string());
    // Asked before opening: opening a pipe would wait for its other end.
    let metadata = std::fs::metadata(path).map_err(fail)?;
    if !metadata.is_file() {
        return Err(Error::file(path, "is not a file"));
    }
    let file = File::open(path).map_err(fail)?;
    if metadata.len() < HEADER as u64 {
        let bytes = std::fs::read(path).map_err(fail)?;
        let error = Header::parse(&bytes, bytes.len() as u64).err();
        return Err(Error::file(path, error.unwrap_or_else(|| "changes while it is read".into())));
    }
    // SAFETY: the map is private and read-only. Its bytes are only ever read as plain numbers, for which every bit pattern is valid, and as
    // strings that are checked each time they are read; as with mapped models, whoever truncates the file under a running engine ends it.
    let map = unsafe { Mmap::map(&file) }.map_err(fail)?;
    let bad = |message: String| Error::file(path, message);
    let header = Header::parse(&map[..HEADER.min(map.len())], map.len() as u64).map_err(bad)?;
    let entries = header.table(&map).map_err(bad)?;
    let types = read_contents(&map, &entries).map_err(bad)?;
    let map = Arc::new(map);
    let mut reader =
        Reader { map: &map, entries: &entries, types: &types, at: 1, item_type: NONE, part: NONE };
    let catalog = reader.catalog().map_err(bad)?;
    let digest = format::digest(entries.iter().map(|entry| (entry.key, entry.length, entry.checksum)));
    if digest != header.digest {
        let stated = header.digest;
        return Err(bad(format!(
            "the sections are those of snapshot {digest:032x}, the header says {stated:032x}"
        )));
    }
    let checksums = entries.iter().map(|entry| entry.checksum).collect();
    let catalog = catalog.named(format!("{digest:032x}"), checksums, path);
    let layout = catalog.layout_hash();
    if layout != header.layout_hash {
        let stated = header.layout_hash;
        return Err(bad(format!("the contents have layout {layout:016x}, the header says {stated:016x}")));
    }
    Ok(Opened { map, entries, types, catalog })
}

fn read_contents(file: &[u8], entries: &[Entry]) -> Result<Vec<TypeContents>, String> {
    let expected = Key { kind: SectionKind::Contents, item_type: NONE, part: NONE };
    let Some(entry) = entries.first().filter(|entry| entry.key == expected) else {
        return Err("section 0: expected contents".into());
    };
    if entry.length > MAX_CONTENTS {
        return Err(format!("section 0 (contents): {} bytes, at most {MAX_CONTENTS}", entry.length));
    }
    let bytes = &file[entry.offset as usize..(entry.offset + entry.length) as usize];
    let found = xxh3_64(bytes);
    if found != entry.checksum {
        let stated = entry.checksum;
        return Err(format!("section 0 (contents): checksum {found:016x}, the table says {stated:016x}"));
    }
    contents::parse(bytes).map_err(|message| format!("section 0 (contents): {message}"))
}

/// Takes section after section.
struct Reader<'a> {
    map: &'a Arc<Mmap>,
    entries: &'a [Entry],
    types: &'a [TypeContents],
    at: usize,
    item_type: u16,
    part: u16,
}

impl Reader<'_> {
    /// The next section, which must be of that kind and have `count` elements, if that is known.
    fn take<T: AnyBitPattern>(
        &mut self,
        kind: SectionKind,
        count: Option<usize>,
    ) -> Result<Array<T>, String> {
        let key = Key { kind, item_type: self.item_type, part: self.part };
        let name = |at: usize| format!("section {at} ({})", key.describe(self.types));
        let Some(entry) = self.entries.get(self.at) else {
            return Err(format!("{}: missing, there are {} sections", name(self.at), self.entries.len()));
        };
        if entry.key != key {
            let found = entry.key.describe(self.types);
            return Err(format!("section {}: expected {}, found {found}", self.at, key.describe(self.types)));
        }
        let width = size_of::<T>() as u64;
        let expected = count.map(|count| count as u64 * width);
        if expected.unwrap_or(entry.length - entry.length % width) != entry.length {
            let expected = expected.map_or(format!("a multiple of {width}"), |bytes| bytes.to_string());
            return Err(format!("{}: {} bytes, expected {expected}", name(self.at), entry.length));
        }
        let range = entry.offset as usize..(entry.offset + entry.length) as usize;
        let array =
            Array::mapped(self.map, range).ok_or_else(|| format!("{}: not aligned", name(self.at)))?;
        self.at += 1;
        Ok(array)
    }

    fn catalog(&mut self) -> Result<Catalog, String> {
        let mut parts = Vec::with_capacity(self.types.len());
        for (t, of_type) in self.types.iter().enumerate() {
            self.item_type = t as u16;
            parts.push(self.items(of_type)?);
        }
        (self.item_type, self.part) = (NONE, NONE);
        let total = self.types.iter().map(|of_type| of_type.items).sum::<usize>();
        let slots: Array<u32> = self.take(SectionKind::IdTable, None)?;
        let (least, most) = (id_table::homes(total), id_table::homes(total) + total);
        if slots.len() < least || slots.len() > most {
            let at = self.at - 1;
            return Err(format!(
                "section {at} (id table): {} slots, expected {least} to {most}",
                slots.len()
            ));
        }
        if self.at < self.entries.len() {
            let found = self.entries[self.at].key.describe(self.types);
            return Err(format!("section {}: {found} after the last that there should be", self.at));
        }
        let names = self.types.iter().map(|of_type| of_type.name.clone()).collect();
        Ok(Catalog::of_parts(names, parts, slots))
    }

    fn items(&mut self, of_type: &TypeContents) -> Result<TypeItems, String> {
        let index = self.index(of_type)?;
        let ids =
            self.strings([SectionKind::IdText, SectionKind::IdEnds, SectionKind::IdBases], of_type.items)?;
        let popularity = self.take(SectionKind::Popularity, Some(of_type.items))?;
        self.part = 0;
        let title = match &of_type.title {
            Some(title) => Some(self.column(of_type.items, title)?),
            None => None,
        };
        let mut attributes = std::collections::BTreeMap::new();
        for (name, column) in &of_type.attributes {
            self.part += 1;
            attributes.insert(name.clone(), self.column(of_type.items, column)?);
        }
        self.part = NONE;
        Ok(TypeItems { index, ids, popularity, title, attributes })
    }

    fn index(&mut self, of_type: &TypeContents) -> Result<TypeIndex, String> {
        let mut levels = Vec::with_capacity(of_type.levels.len());
        for (at, level) in of_type.levels.iter().enumerate() {
            self.part = at as u16;
            let entries = if level.form == Form::Column { of_type.sids } else { level.nodes };
            let codes = self.take(SectionKind::Codes, Some(entries))?;
            let mut bounds = |kind, exists: bool| match exists {
                true => self.take(kind, Some(entries + 1)),
                false => Ok(Array::default()),
            };
            let start = bounds(SectionKind::Starts, level.form != Form::Column)?;
            let first = bounds(SectionKind::Firsts, level.form == Form::Firsts)?;
            levels.push(Level { codebook: level.codebook, nodes: level.nodes, codes, first, start });
        }
        self.part = NONE;
        let first_item = match of_type.items > of_type.sids {
            true => self.take(SectionKind::FirstItems, Some(of_type.sids + 1))?,
            false => Array::default(),
        };
        let preferred = match of_type.preferred {
            true => self.take(SectionKind::Preferred, Some(of_type.items))?,
            false => Array::default(),
        };
        Ok(TypeIndex::from_parts(levels, of_type.items, first_item, preferred))
    }

    fn ends(&mut self, kinds: [SectionKind; 2], count: usize) -> Result<Ends, String> {
        let ends = self.take(kinds[0], Some(count))?;
        let bases = self.take(kinds[1], Some(count.div_ceil(BLOCK)))?;
        Ok(Ends::from_parts(ends, bases))
    }

    fn strings(&mut self, [text, ends, bases]: [SectionKind; 3], count: usize) -> Result<Strings, String> {
        let text = self.take(text, None)?;
        Ok(Strings::from_parts(text, self.ends([ends, bases], count)?))
    }

    fn bitmap(&mut self, [words, counts]: [SectionKind; 2], len: usize) -> Result<Bitmap, String> {
        let words = self.take(words, Some(len.div_ceil(64)))?;
        let counts = self.take(counts, Some(Bitmap::counts_of(len)))?;
        Bitmap::from_parts(len, words, counts)
            .ok_or_else(|| format!("section {}: a bitmap of {len} bits", self.at))
    }

    fn column(&mut self, items: usize, column: &ColumnContents) -> Result<Column, String> {
        use SectionKind as S;
        let count = column.values;
        let present = match count < items {
            true => Some(self.bitmap([S::Present, S::PresentCounts], items)?),
            false => None,
        };
        let text = [S::Text, S::TextEnds, S::TextBases];
        let names = [S::NameText, S::NameEnds, S::NameBases];
        let values = match column.kind {
            ValueKind::Bool => Values::Bool(self.bitmap([S::Bools, S::BoolCounts], count)?),
            ValueKind::Int => Values::Int(self.take(S::Ints, Some(count))?),
            ValueKind::Float => Values::Float(self.take(S::Floats, Some(count))?),
            ValueKind::Text => Values::Text(self.strings(text, count)?),
            ValueKind::Json => Values::Json(self.strings(text, count)?),
            ValueKind::Category => Values::Category {
                names: self.strings(names, column.names)?,
                codes: self.take(S::Categories, Some(count))?,
            },
            ValueKind::Labels => {
                let names = self.strings(names, column.names)?;
                let labels = self.take(S::Labels, None)?;
                Values::Labels(Labels::from_parts(
                    names,
                    labels,
                    self.ends([S::ListEnds, S::ListBases], count)?,
                ))
            }
        };
        Ok(Column::from_parts(items, present, values))
    }
}
