//! The section that says what all others are: types, codebooks, attributes and counts.
//!
//! Numbers are LEB128 varints without leading zeros, texts a length in bytes and UTF-8, kinds and forms single bytes.

use super::super::builder::{MAX_ATTRIBUTES, MAX_ITEMS};
use super::super::columns::{Column, Values};
use super::super::strings::MAX_TEXT;
use super::super::{Catalog, MAX_CODES, MAX_LEVELS};

/// How a level is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Form {
    /// The code of every SID.
    Column = 0,
    /// Codes and first SIDs of nodes, whose children are those SIDs.
    Starts = 1,
    /// Codes, first SIDs and first children of nodes.
    Firsts = 2,
}

/// What is said of a level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LevelContents {
    pub codebook: usize,
    pub nodes: usize,
    pub form: Form,
}

/// What the values of a column are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum ValueKind {
    Bool = 1,
    Int = 2,
    Float = 3,
    Text = 4,
    Category = 5,
    Labels = 6,
    Json = 7,
}

/// What is said of a column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ColumnContents {
    pub kind: ValueKind,
    /// Items with a value.
    pub values: usize,
    /// Strings of the dictionary.
    pub names: usize,
}

/// What is said of a type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TypeContents {
    pub name: String,
    pub items: usize,
    pub sids: usize,
    /// Whether there is an order by popularity besides that of ranks.
    pub preferred: bool,
    pub levels: Vec<LevelContents>,
    pub title: Option<ColumnContents>,
    /// By name, ascending.
    pub attributes: Vec<(String, ColumnContents)>,
}

/// What is said of all types.
pub(super) fn describe(catalog: &Catalog) -> Vec<TypeContents> {
    let level = |level: &super::super::index::Level| LevelContents {
        codebook: level.codebook,
        nodes: level.nodes,
        form: match (level.start.is_empty(), level.first.is_empty()) {
            (true, _) => Form::Column,
            (false, true) => Form::Starts,
            (false, false) => Form::Firsts,
        },
    };
    let types = catalog.types().iter().zip(catalog.parts());
    types
        .map(|(name, items)| TypeContents {
            name: name.clone(),
            items: items.index.items(),
            sids: items.index.sids(),
            preferred: !items.index.preferred().is_empty(),
            levels: items.index.parts().iter().map(level).collect(),
            title: items.title.as_ref().map(describe_column),
            attributes: items
                .attributes
                .iter()
                .map(|(name, column)| (name.clone(), describe_column(column)))
                .collect(),
        })
        .collect()
}

fn describe_column(column: &Column) -> ColumnContents {
    let (kind, names) = match column.parts().1 {
        Values::Bool(_) => (ValueKind::Bool, 0),
        Values::Int(_) => (ValueKind::Int, 0),
        Values::Float(_) => (ValueKind::Float, 0),
        Values::Text(_) => (ValueKind::Text, 0),
        Values::Category { names, .. } => (ValueKind::Category, names.len()),
        Values::Labels(labels) => (ValueKind::Labels, labels.names().len()),
        Values::Json(_) => (ValueKind::Json, 0),
    };
    ColumnContents { kind, values: column.values().len(), names }
}

/// The bytes of the section.
pub(super) fn to_bytes(types: &[TypeContents]) -> Vec<u8> {
    let mut out = Writer(Vec::new());
    out.number(types.len());
    for of_type in types {
        out.text(&of_type.name);
        out.number(of_type.items);
        out.number(of_type.sids);
        out.number(usize::from(of_type.preferred));
        out.number(of_type.levels.len());
        for level in &of_type.levels {
            out.number(level.codebook);
            out.number(level.nodes);
            out.0.push(level.form as u8);
        }
        out.column(of_type.title.as_ref());
        out.number(of_type.attributes.len());
        for (name, column) in &of_type.attributes {
            out.text(name);
            out.column(Some(column));
        }
    }
    out.0
}

struct Writer(Vec<u8>);

impl Writer {
    fn number(&mut self, mut number: usize) {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    fn text(&mut self, text: &str) {
        self.number(text.len());
        self.0.extend_from_slice(text.as_bytes());
    }

    /// Kind, values, names; a kind of 0 is no column.
    fn column(&mut self, column: Option<&ColumnContents>) {
        let Some(column) = column else { return self.0.push(0) };
        self.0.push(column.kind as u8);
        self.number(column.values);
        self.number(column.names);
    }
}

/// Reads the section.
///
/// # Errors
/// A sentence with the byte, the value and the bound: contents that end too early or too late, or that no catalog has.
pub(super) fn parse(bytes: &[u8]) -> Result<Vec<TypeContents>, String> {
    let mut reader = Reader { bytes, at: 0 };
    let count = reader.number("types", u16::MAX as usize - 1)?;
    let mut types: Vec<TypeContents> = Vec::new();
    let mut total = 0;
    for _ in 0..count {
        let of_type = reader.item_type()?;
        if types.iter().any(|known| known.name == of_type.name) {
            return Err(format!("a second type named `{}`", of_type.name));
        }
        total += of_type.items;
        if total > MAX_ITEMS {
            return Err(format!("{total} items, at most {MAX_ITEMS}"));
        }
        types.push(of_type);
    }
    match bytes.len() - reader.at {
        0 => Ok(types),
        rest => Err(format!("{rest} bytes behind the last type, at byte {}", reader.at)),
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn byte(&mut self, what: &str) -> Result<u8, String> {
        let byte = self.bytes.get(self.at).ok_or_else(|| format!("{what} missing at byte {}", self.at))?;
        self.at += 1;
        Ok(*byte)
    }

    fn number(&mut self, what: &str, most: usize) -> Result<usize, String> {
        let from = self.at;
        let mut number = 0u64;
        for shift in (0..63).step_by(7) {
            let byte = self.byte(what)?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte >= 0x80 {
                continue;
            }
            if byte == 0 && shift > 0 {
                return Err(format!("{what} at byte {from} with leading zeros"));
            }
            if number > most as u64 {
                return Err(format!("{number} {what} at byte {from}, at most {most}"));
            }
            return Ok(number as usize);
        }
        Err(format!("{what} at byte {from} of more than 63 bits"))
    }

    fn text(&mut self, what: &str) -> Result<String, String> {
        let len = self.number(&format!("bytes of {what}"), MAX_TEXT)?;
        let from = self.at;
        let bytes = self.bytes.get(from..from + len);
        let bytes = bytes.ok_or_else(|| format!("{what} of {len} bytes at byte {from} ends too late"))?;
        self.at += len;
        let text = std::str::from_utf8(bytes);
        text.map(str::to_owned).map_err(|error| format!("{what} at byte {from}: {error}"))
    }

    fn item_type(&mut self) -> Result<TypeContents, String> {
        let name = self.text("a type's name")?;
        let items = self.number("items", MAX_ITEMS)?;
        let sids = self.number("SIDs", items)?;
        if items > 0 && sids == 0 {
            return Err(format!("type `{name}`: {items} items without a SID"));
        }
        let preferred = self.number("orders by popularity", usize::from(sids < items))? == 1;
        let levels = self.levels(sids).map_err(|message| format!("type `{name}`: {message}"))?;
        let title = self.column(items).map_err(|message| format!("type `{name}`, titles: {message}"))?;
        let textual = |column: &ColumnContents| matches!(column.kind, ValueKind::Text | ValueKind::Category);
        if title.as_ref().is_some_and(|title| !textual(title)) {
            return Err(format!("type `{name}`: titles that are no strings"));
        }
        let count = self.number("attributes", MAX_ATTRIBUTES)?;
        let mut attributes: Vec<(String, ColumnContents)> = Vec::new();
        for _ in 0..count {
            let attribute = self.text("an attribute's name")?;
            if attributes.last().is_some_and(|(before, _)| *before >= attribute) {
                return Err(format!("type `{name}`: attribute `{attribute}` is out of order"));
            }
            let place = |message| format!("type `{name}`, attribute `{attribute}`: {message}");
            let column = self.column(items).map_err(place)?;
            let column =
                column.ok_or_else(|| format!("type `{name}`: attribute `{attribute}` has no kind"))?;
            attributes.push((attribute, column));
        }
        Ok(TypeContents { name, items, sids, preferred, levels, title, attributes })
    }

    /// Nodes only grow in number with depth; explicit levels come first.
    fn levels(&mut self, sids: usize) -> Result<Vec<LevelContents>, String> {
        let count = self.number("levels", MAX_LEVELS)?;
        let mut levels: Vec<LevelContents> = Vec::with_capacity(count);
        for at in 0..count {
            let codebook = self.number("codes", MAX_CODES)?;
            let nodes = self.number("nodes", sids)?;
            let form = match self.byte("the form of a level")? {
                0 => Form::Column,
                1 => Form::Starts,
                2 => Form::Firsts,
                form => return Err(format!("level {at}: form {form}, at most 2")),
            };
            let before = levels.last().map(|level| (level.form, level.nodes));
            let follows = match before {
                None => true,
                Some((Form::Firsts, _)) => form != Form::Column,
                Some((Form::Starts | Form::Column, _)) => form == Form::Column,
            };
            if codebook == 0 || !follows || before.is_some_and(|(_, before)| nodes < before) {
                return Err(format!(
                    "level {at}: {codebook} codes, {nodes} nodes, {form:?} after {before:?}"
                ));
            }
            levels.push(LevelContents { codebook, nodes, form });
        }
        match levels.last() {
            Some(last) if last.nodes == sids && last.form != Form::Firsts => Ok(levels),
            last => Err(format!("{count} levels, the last {last:?}, for {sids} SIDs")),
        }
    }

    fn column(&mut self, items: usize) -> Result<Option<ColumnContents>, String> {
        let kind = match self.byte("a column's kind")? {
            0 => return Ok(None),
            1 => ValueKind::Bool,
            2 => ValueKind::Int,
            3 => ValueKind::Float,
            4 => ValueKind::Text,
            5 => ValueKind::Category,
            6 => ValueKind::Labels,
            7 => ValueKind::Json,
            kind => return Err(format!("kind {kind}, at most 7")),
        };
        let values = self.number("values", items)?;
        let most = match kind {
            ValueKind::Category | ValueKind::Labels => u32::MAX as usize,
            _ => 0,
        };
        let names = self.number("names", most)?;
        if values == 0 {
            return Err("a column without values".into());
        }
        Ok(Some(ColumnContents { kind, values, names }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::synthetic;
    use super::*;

    #[test]
    fn contents_read_back_and_no_cut_or_flipped_byte_panics() {
        let types = describe(&synthetic::tiny());
        let bytes = to_bytes(&types);
        assert_eq!(parse(&bytes).unwrap(), types);
        for end in 0..bytes.len() {
            assert!(parse(&bytes[..end]).is_err(), "cut at {end}");
        }
        for at in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff, bytes[at] ^ 1] {
                let mut changed = bytes.clone();
                changed[at] = value;
                if let Ok(read) = parse(&changed) {
                    assert_eq!(
                        to_bytes(&read),
                        changed,
                        "one spelling for one meaning: byte {at} is {value}"
                    );
                }
            }
        }
        assert!(parse(&[bytes.as_slice(), &[0]].concat()).unwrap_err().contains("1 bytes behind"));
    }
}
