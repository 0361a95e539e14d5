//! Where each part of an item comes from: the mapping file.
//!
//! ```toml
//! id = { column = "book_id", prefix = "book:" }   # or just a column: id = "isbn"
//! type = { value = "book" }                       # or a column: type = "kind"
//! title = "title"
//! popularity = "ratings_count"
//! sid = ["code0", "code1", "code2"]               # or one column with a list
//! others = "drop"                                 # columns not named here: "keep" (as attributes) or "drop"
//! drop = ["image_url"]                            # columns left out whatever `others` says
//! missing = ["", "NA"]                            # texts that are no values, in all columns
//! format = "csv"                                  # jsonl, csv or parquet instead of what the file's name says
//! delimiter = ";"                                 # of CSV
//! quote = false                                   # quotes in a CSV file are ordinary characters
//!
//! [attributes]
//! year = { column = "original_publication_year", kind = "int" }
//! authors = { kind = "labels", separator = "," }
//! ```
//! Everything may be left out: `id`, `type`, `title`, `popularity` and `sid` then come from the columns of these names, and all other columns
//! become attributes. A JSON or Parquet value without `kind` stays what it is, a CSV cell without `kind` is a string; an empty cell is a missing
//! value.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::Format;
use crate::catalog::MAX_LEVELS;
use crate::error::{Error, Result};

/// Longest mapping file.
const MAX_BYTES: u64 = 1 << 20;

/// How columns become parts of items; the default takes the columns `id`, `type`, `title`, `popularity`, `sid` and keeps all others.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mapping {
    /// The format of the file, whatever its name ends in.
    pub format: Option<Format>,
    /// What stands between the cells of a CSV file: one ASCII character.
    pub delimiter: Option<char>,
    /// Whether quotes of a CSV file enclose cells.
    pub quote: Option<bool>,
    /// Where ids come from.
    pub id: Option<IdFrom>,
    /// Where types come from.
    #[serde(rename = "type")]
    pub item_type: Option<TypeFrom>,
    /// The column of titles.
    pub title: Option<String>,
    /// The column of popularities.
    pub popularity: Option<String>,
    /// The column of SIDs, or one column per level.
    pub sid: Option<SidFrom>,
    /// What becomes of columns that are not named.
    pub others: Others,
    /// Columns left out.
    pub drop: Vec<String>,
    /// Texts that stand for a missing value.
    pub missing: Vec<String>,
    /// Attributes by name.
    pub attributes: BTreeMap<String, AttributeFrom>,
}

/// Where an id comes from.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged, expecting = "expected a column's name or { column = …, prefix = … }")]
pub enum IdFrom {
    /// A column.
    Column(String),
    /// A column with something before it.
    Prefixed(Prefixed),
}

/// A column with something before its value.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prefixed {
    /// The column.
    pub column: String,
    /// What stands before its value.
    #[serde(default)]
    pub prefix: String,
}

/// Where a type comes from.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged, expecting = "expected a column's name or { value = … }")]
pub enum TypeFrom {
    /// A column.
    Column(String),
    /// The same for all rows.
    Constant(Constant),
}

/// One value for all rows.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Constant {
    /// The value.
    pub value: String,
}

/// Where codes come from.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged, expecting = "expected a column's name or a list of them")]
pub enum SidFrom {
    /// A column that holds lists, or text such as `3,17,9`.
    Column(String),
    /// A column per level.
    Levels(Vec<String>),
}

/// What becomes of columns that a mapping does not name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Others {
    /// They are attributes.
    #[default]
    Keep,
    /// They are left out.
    Drop,
}

/// Where an attribute comes from and what it is.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AttributeFrom {
    /// Its column, if it is not that of its own name.
    pub column: Option<String>,
    /// What its values are; they stay what they are if this is not given.
    pub kind: Option<Kind>,
    /// What stands between the labels of a text.
    pub separator: Option<String>,
}

/// What the values of an attribute are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// `true` or `false`, also `yes`, `no`, `1`, `0` in any case.
    Bool,
    /// 64-bit integers; `2008.0` is one.
    Int,
    /// Finite numbers.
    Float,
    /// Strings; numbers and booleans become what JSON writes for them.
    String,
    /// Lists of strings: a list (lists inside of it are joined to it), or a text and its separator. Repeated labels are taken once.
    Labels,
}

impl Mapping {
    /// Reads a mapping file.
    ///
    /// # Errors
    /// [`Error::File`] with line and column if it cannot be read, is no TOML, or has keys or values that no mapping has.
    pub fn read(path: impl AsRef<Path>) -> Result<Mapping> {
        let path = path.as_ref();
        let failed = |error: std::io::Error| Error::file(path, error.to_string());
        let length = std::fs::metadata(path).map_err(failed)?.len();
        if length > MAX_BYTES {
            return Err(Error::file(path, format!("{length} bytes, a mapping has at most {MAX_BYTES}")));
        }
        let text = std::fs::read_to_string(path).map_err(failed)?;
        Mapping::parse(&text).map_err(|error| Error::file(path, error.to_string()))
    }

    /// Parses the text of a mapping file.
    ///
    /// # Errors
    /// [`Error::Invalid`] with line and column, or the key.
    pub fn parse(text: &str) -> Result<Mapping> {
        let mapping: Mapping = toml::from_str(text).map_err(|error| {
            let before = &text[..error.span().map_or(0, |span| span.start.min(text.len()))];
            let line = 1 + before.bytes().filter(|&byte| byte == b'\n').count();
            let column = 1 + before.rsplit('\n').next().unwrap_or_default().chars().count();
            Error::invalid(format!("line {line}, column {column}"), error.message().trim().replace('\n', " "))
        })?;
        mapping.check()?;
        Ok(mapping)
    }

    /// What is well-formed and still cannot be meant.
    fn check(&self) -> Result<()> {
        if let Some(delimiter) = self.delimiter.filter(|&c| !c.is_ascii() || matches!(c, '"' | '\n' | '\r')) {
            let message =
                format!("{delimiter:?}, expected one ASCII character other than a quote or a line end");
            return Err(Error::invalid("delimiter", message));
        }
        if let Some(SidFrom::Levels(levels)) = &self.sid
            && !(1..=MAX_LEVELS).contains(&levels.len())
        {
            let message = format!("{} columns, expected 1 to {}", levels.len(), MAX_LEVELS);
            return Err(Error::invalid("sid", message));
        }
        if let Some(TypeFrom::Constant(constant)) = &self.item_type
            && constant.value.is_empty()
        {
            return Err(Error::invalid("type.value", "a type's name must not be empty"));
        }
        for (name, from) in &self.attributes {
            let labels = from.kind == Some(Kind::Labels);
            if from.separator.as_deref().is_some_and(|separator| separator.is_empty() || !labels) {
                let message = "a separator is a text that is not empty, beside kind = \"labels\"";
                return Err(Error::invalid(format!("attributes.{name}.separator"), message));
            }
        }
        if let Some(column) = self.columns().into_iter().find(|column| self.drop.contains(column)) {
            return Err(Error::invalid("drop", format!("column `{column}` is both used and dropped")));
        }
        Ok(())
    }

    /// The columns it names, those dropped left out.
    pub(super) fn columns(&self) -> Vec<String> {
        let id = self.id.as_ref().map(|id| match id {
            IdFrom::Column(column) | IdFrom::Prefixed(Prefixed { column, .. }) => column.clone(),
        });
        let item_type = self.item_type.as_ref().and_then(|from| match from {
            TypeFrom::Column(column) => Some(column.clone()),
            TypeFrom::Constant(_) => None,
        });
        let sid = match &self.sid {
            None => Vec::new(),
            Some(SidFrom::Column(column)) => vec![column.clone()],
            Some(SidFrom::Levels(columns)) => columns.clone(),
        };
        let attributes =
            self.attributes.iter().map(|(name, from)| from.column.clone().unwrap_or_else(|| name.clone()));
        let single = [id, item_type, self.title.clone(), self.popularity.clone()];
        single.into_iter().flatten().chain(sid).chain(attributes).collect()
    }
}
