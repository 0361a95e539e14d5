//! Attribute values, by column.
//!
//! A catalog of ten million items cannot afford an allocation per string or a JSON value per attribute. A column holds one attribute of one
//! type as plain arrays of its kind; values that are missing take one bit. What a column looks like depends on its values by rank alone.

mod collect;
mod gather;

use serde_json::Value;

use super::strings::{Ends, Strings};
use super::{Array, Bitmap};

pub(super) use collect::ColumnBuilder;
pub(super) use gather::gather;

/// Strings are stored as categories up to this many distinct ones, or an eighth of their number if that is more.
const FEW_NAMES: usize = 256;

/// Lists of labels from a sorted dictionary.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    names: Strings,
    labels: Array<u32>,
    ends: Ends,
}

impl Labels {
    /// Lists as a file holds them; nothing is looked at.
    pub(super) fn from_parts(names: Strings, labels: Array<u32>, ends: Ends) -> Labels {
        Labels { names, labels, ends }
    }

    /// The distinct labels, ascending bytewise; a label's number is its place.
    pub fn names(&self) -> &Strings {
        &self.names
    }

    /// The numbers of the labels of one list, in the order given, repeats kept.
    ///
    /// # Panics
    /// If there is no such list.
    #[inline]
    pub fn list(&self, at: usize) -> &[u32] {
        &self.labels[self.ends.range(at)]
    }

    /// All lists, one behind the other.
    pub fn flat(&self) -> &[u32] {
        &self.labels
    }

    /// Where each list ends.
    pub fn ends(&self) -> &Ends {
        &self.ends
    }

    /// Number of lists.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are no lists.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }
}

/// Values of one kind, those that are missing left out.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Values {
    Bool(Bitmap),
    Int(Array<i64>),
    Float(Array<f64>),
    Text(Strings),
    Category { names: Strings, codes: Array<u32> },
    Labels(Labels),
    Json(Strings),
}

/// The values of a [`Column`] that are present, in rank order.
#[derive(Clone, Copy, Debug)]
pub enum ColumnValues<'a> {
    /// Booleans, a bit each.
    Bool(&'a Bitmap),
    /// 64-bit integers.
    Int(&'a [i64]),
    /// Floats; a column that holds integers too is one of floats.
    Float(&'a [f64]),
    /// Strings of which most differ.
    Text(&'a Strings),
    /// Strings of which many are equal.
    Category {
        /// The distinct strings, ascending bytewise.
        names: &'a Strings,
        /// The place of each value in `names`.
        codes: &'a [u32],
    },
    /// Lists of strings.
    Labels(&'a Labels),
    /// Objects and other lists, as JSON text; they cannot be filtered on.
    Json(&'a Strings),
}

impl ColumnValues<'_> {
    /// Number of values.
    pub fn len(&self) -> usize {
        match self {
            ColumnValues::Bool(values) => values.len(),
            ColumnValues::Int(values) => values.len(),
            ColumnValues::Float(values) => values.len(),
            ColumnValues::Text(values) | ColumnValues::Json(values) => values.len(),
            ColumnValues::Category { codes, .. } => codes.len(),
            ColumnValues::Labels(values) => values.len(),
        }
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What such values are, for sentences.
    pub fn kind(&self) -> &'static str {
        match self {
            ColumnValues::Bool(_) => "booleans",
            ColumnValues::Int(_) => "integers",
            ColumnValues::Float(_) => "floats",
            ColumnValues::Text(_) | ColumnValues::Category { .. } => "strings",
            ColumnValues::Labels(_) => "lists of strings",
            ColumnValues::Json(_) => "objects or other lists",
        }
    }
}

/// An attribute of the items of one type, by rank. There is at least one value.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    len: usize,
    /// Which items have a value; `None`: all.
    present: Option<Bitmap>,
    values: Values,
}

impl Column {
    /// A column as a file holds it; the caller has seen to it that there are as many values as `present` says.
    pub(super) fn from_parts(len: usize, present: Option<Bitmap>, values: Values) -> Column {
        Column { len, present, values }
    }

    /// Items of the type, with a value or without.
    #[expect(clippy::len_without_is_empty, reason = "a type without items has no columns")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Which items have a value; `None` if all have.
    pub fn present(&self) -> Option<&Bitmap> {
        self.present.as_ref()
    }

    /// The values of the items that have one, in rank order.
    pub fn values(&self) -> ColumnValues<'_> {
        match &self.values {
            Values::Bool(values) => ColumnValues::Bool(values),
            Values::Int(values) => ColumnValues::Int(values),
            Values::Float(values) => ColumnValues::Float(values),
            Values::Text(values) => ColumnValues::Text(values),
            Values::Category { names, codes } => ColumnValues::Category { names, codes },
            Values::Labels(values) => ColumnValues::Labels(values),
            Values::Json(values) => ColumnValues::Json(values),
        }
    }

    /// The stored arrays.
    pub(super) fn parts(&self) -> (Option<&Bitmap>, &Values) {
        (self.present.as_ref(), &self.values)
    }

    /// Place of an item's value among those present.
    pub fn place(&self, rank: usize) -> Option<usize> {
        match &self.present {
            None => (rank < self.len).then_some(rank),
            Some(present) => (rank < self.len && present.get(rank)).then(|| present.rank(rank)),
        }
    }

    /// The value of an item.
    pub fn value(&self, rank: usize) -> Option<Value> {
        let at = self.place(rank)?;
        Some(match &self.values {
            Values::Bool(values) => values.get(at).into(),
            Values::Int(values) => values[at].into(),
            Values::Float(values) => values[at].into(),
            Values::Text(values) => values.get(at).into(),
            Values::Category { names, codes } => names.get(codes[at] as usize).into(),
            Values::Labels(values) => {
                values.list(at).iter().map(|&label| values.names.get(label as usize)).collect()
            }
            Values::Json(values) => match serde_json::from_str(values.get(at)) {
                Ok(value) => value,
                Err(error) => panic!("value {at} of a catalog that was not verified: {error}"),
            },
        })
    }

    /// The value of an item, if it is a string.
    pub fn text(&self, rank: usize) -> Option<&str> {
        let at = self.place(rank)?;
        match &self.values {
            Values::Text(values) => Some(values.get(at)),
            Values::Category { names, codes } => Some(names.get(codes[at] as usize)),
            _ => None,
        }
    }

    /// Bytes of the arrays.
    pub fn bytes(&self) -> usize {
        let values = match &self.values {
            Values::Bool(values) => values.bytes(),
            Values::Int(values) => 8 * values.len(),
            Values::Float(values) => 8 * values.len(),
            Values::Text(values) | Values::Json(values) => values.bytes(),
            Values::Category { names, codes } => names.bytes() + 4 * codes.len(),
            Values::Labels(values) => values.names.bytes() + 4 * values.labels.len() + values.ends.bytes(),
        };
        values + self.present.as_ref().map_or(0, Bitmap::bytes)
    }
}
