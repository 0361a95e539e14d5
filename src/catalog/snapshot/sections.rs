//! What a file consists of: the arrays of a catalog in one fixed order, and a section that describes them.

use std::borrow::Cow;

use super::super::columns::{Column, Values};
use super::super::items::TypeItems;
use super::super::strings::Strings;
use super::super::{Bitmap, Catalog};
use super::contents::{self, TypeContents};

/// The number of no type, level or column.
pub(super) const NONE: u16 = u16::MAX;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $width:literal, $text:literal;)*) => {
        /// What a section holds.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u16)]
        pub enum SectionKind { $($(#[$doc])* $name = $number,)* }

        impl SectionKind {
            /// The kind of a number.
            pub(super) fn of(number: u16) -> Option<SectionKind> {
                match number {
                    $($number => Some(SectionKind::$name),)*
                    _ => None,
                }
            }

            /// Bytes of an element.
            pub fn width(self) -> usize {
                match self { $(SectionKind::$name => $width,)* }
            }

            /// Its name.
            pub fn name(self) -> &'static str {
                match self { $(SectionKind::$name => $text,)* }
            }
        }
    };
}

kinds! {
    /// Types, codebooks, attributes and all counts.
    Contents = 1, 1, "contents";
    /// Codes of a level.
    Codes = 2, 2, "codes";
    /// First SID of each node of a level, and one past the last.
    Starts = 3, 4, "starts";
    /// First child of each node of a level, and one past the last.
    Firsts = 4, 4, "firsts";
    /// First rank of each SID, and one past the last.
    FirstItems = 5, 4, "first items";
    /// Ranks of each SID by popularity.
    Preferred = 6, 4, "preferred";
    /// Ids, one behind the other.
    IdText = 7, 1, "id text";
    /// Where ids end.
    IdEnds = 8, 4, "id ends";
    /// What their ends count from, per block.
    IdBases = 9, 8, "id bases";
    /// Popularity by rank.
    Popularity = 10, 8, "popularity";
    /// Slots of the table of ids.
    IdTable = 11, 4, "id table";
    /// Which items have a value, a bit each.
    Present = 16, 8, "present";
    /// Items with a value before every 512 items, and of all.
    PresentCounts = 17, 4, "present counts";
    /// Booleans, a bit each.
    Bools = 18, 8, "booleans";
    /// True ones before every 512 values, and of all.
    BoolCounts = 19, 4, "boolean counts";
    /// Integers.
    Ints = 20, 8, "integers";
    /// Floats.
    Floats = 21, 8, "floats";
    /// Strings or JSON texts, one behind the other.
    Text = 22, 1, "text";
    /// Where they end.
    TextEnds = 23, 4, "text ends";
    /// What their ends count from, per block.
    TextBases = 24, 8, "text bases";
    /// Names of categories or labels, one behind the other.
    NameText = 25, 1, "name text";
    /// Where names end.
    NameEnds = 26, 4, "name ends";
    /// What their ends count from, per block.
    NameBases = 27, 8, "name bases";
    /// Categories.
    Categories = 28, 4, "categories";
    /// Labels of all lists.
    Labels = 29, 4, "labels";
    /// Where lists end.
    ListEnds = 30, 4, "list ends";
    /// What their ends count from, per block.
    ListBases = 31, 8, "list bases";
}

/// What a section holds, of which type, and of which level or column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub kind: SectionKind,
    /// Its type, or [`NONE`].
    pub item_type: u16,
    /// Its level, or its column (0: titles, then the attributes by name), or [`NONE`].
    pub part: u16,
}

impl Key {
    /// From the table of sections; `None` if there is no such kind, or its elements have another width.
    pub fn from_bytes(bytes: [u8; 8]) -> Option<Key> {
        let number = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let kind = SectionKind::of(number(0))?;
        let key = Key { kind, item_type: number(2), part: number(4) };
        (kind.width() == usize::from(number(6))).then_some(key)
    }

    /// What it is, for a sentence: `labels of type "book", attribute "genres"`.
    pub fn describe(self, types: &[TypeContents]) -> String {
        let name = self.kind.name();
        let Some(of_type) = types.get(usize::from(self.item_type)) else { return name.to_owned() };
        let part = usize::from(self.part);
        match self.part {
            NONE => format!("{name} of type `{}`", of_type.name),
            _ if self.kind < SectionKind::FirstItems => {
                format!("{name} of type `{}`, level {part}", of_type.name)
            }
            0 => format!("{name} of type `{}`, titles", of_type.name),
            _ => match of_type.attributes.get(part - 1) {
                Some((attribute, _)) => format!("{name} of type `{}`, attribute `{attribute}`", of_type.name),
                None => format!("{name} of type `{}`, column {part}", of_type.name),
            },
        }
    }

    /// As the table of sections holds it.
    pub fn to_bytes(self) -> [u8; 8] {
        let numbers = [self.kind as u16, self.item_type, self.part, self.kind.width() as u16];
        let mut bytes = [0; 8];
        bytes
            .chunks_exact_mut(2)
            .zip(numbers)
            .for_each(|(to, number)| to.copy_from_slice(&number.to_le_bytes()));
        bytes
    }
}

/// A section of a catalog.
pub(super) struct Section<'a> {
    pub key: Key,
    pub bytes: Cow<'a, [u8]>,
}

/// All sections, in the order of a file.
pub(super) fn sections(catalog: &Catalog) -> Vec<Section<'_>> {
    let mut list = List { sections: Vec::new(), item_type: NONE, part: NONE };
    list.add(SectionKind::Contents, contents::to_bytes(&contents::describe(catalog)));
    for (t, items) in catalog.parts().iter().enumerate() {
        list.item_type = t as u16;
        list.add_type(items);
    }
    (list.item_type, list.part) = (NONE, NONE);
    list.add(SectionKind::IdTable, catalog.id_table().slots().bytes());
    list.sections
}

struct List<'a> {
    sections: Vec<Section<'a>>,
    item_type: u16,
    part: u16,
}

impl<'a> List<'a> {
    fn add(&mut self, kind: SectionKind, bytes: impl Into<Cow<'a, [u8]>>) {
        let key = Key { kind, item_type: self.item_type, part: self.part };
        self.sections.push(Section { key, bytes: bytes.into() });
    }

    fn add_type(&mut self, items: &'a TypeItems) {
        use SectionKind::*;
        for (at, level) in items.index.parts().iter().enumerate() {
            self.part = at as u16;
            self.add(Codes, level.codes.bytes());
            if !level.start.is_empty() {
                self.add(Starts, level.start.bytes());
            }
            if !level.first.is_empty() {
                self.add(Firsts, level.first.bytes());
            }
        }
        self.part = NONE;
        if !items.index.first_item().is_empty() {
            self.add(FirstItems, items.index.first_item().bytes());
        }
        if !items.index.preferred().is_empty() {
            self.add(Preferred, items.index.preferred().bytes());
        }
        self.add_strings([IdText, IdEnds, IdBases], &items.ids);
        self.add(Popularity, items.popularity.bytes());
        for (at, column) in
            std::iter::once(items.title.as_ref()).chain(items.attributes.values().map(Some)).enumerate()
        {
            self.part = at as u16;
            if let Some(column) = column {
                self.add_column(column);
            }
        }
        self.part = NONE;
    }

    fn add_strings(&mut self, kinds: [SectionKind; 3], strings: &'a Strings) {
        self.add(kinds[0], strings.text().bytes());
        self.add(kinds[1], bytemuck::cast_slice(strings.ends().offsets()));
        self.add(kinds[2], bytemuck::cast_slice(strings.ends().bases()));
    }

    fn add_bitmap(&mut self, kinds: [SectionKind; 2], bitmap: &'a Bitmap) {
        self.add(kinds[0], bytemuck::cast_slice(bitmap.words()));
        self.add(kinds[1], bytemuck::cast_slice(bitmap.counts()));
    }

    fn add_column(&mut self, column: &'a Column) {
        use SectionKind::*;
        let (present, values) = column.parts();
        if let Some(present) = present {
            self.add_bitmap([Present, PresentCounts], present);
        }
        match values {
            Values::Bool(values) => self.add_bitmap([Bools, BoolCounts], values),
            Values::Int(values) => self.add(Ints, values.bytes()),
            Values::Float(values) => self.add(Floats, values.bytes()),
            Values::Text(values) | Values::Json(values) => {
                self.add_strings([Text, TextEnds, TextBases], values);
            }
            Values::Category { names, codes } => {
                self.add_strings([NameText, NameEnds, NameBases], names);
                self.add(Categories, codes.bytes());
            }
            Values::Labels(labels) => {
                self.add_strings([NameText, NameEnds, NameBases], labels.names());
                self.add(Labels, bytemuck::cast_slice(labels.flat()));
                self.add(ListEnds, bytemuck::cast_slice(labels.ends().offsets()));
                self.add(ListBases, bytemuck::cast_slice(labels.ends().bases()));
            }
        }
    }
}
