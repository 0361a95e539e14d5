//! Collecting the values of an attribute row by row.

use serde_json::Value;

use super::super::intern::Interner;
use super::super::strings::{EndsBuilder, StringsBuilder};
use super::super::{Array, Bitmap};
use super::{Column, Labels, Values, gather};

/// Values of one kind by row, those that are missing left out.
#[derive(Clone, Debug)]
enum Rows {
    Bool(Vec<bool>),
    Int(Vec<i64>),
    Float(Vec<f64>),
    Text(StringsBuilder),
    /// Nothing but empty lists so far: lists of strings, or of something else.
    Empty(usize),
    Labels {
        names: Interner,
        labels: Vec<u32>,
        ends: EndsBuilder,
    },
    Json(StringsBuilder),
}

impl Rows {
    /// No values yet, of the kind that holds `value`.
    fn like(value: &Value) -> Rows {
        match value {
            Value::Bool(_) => Rows::Bool(Vec::new()),
            Value::Number(number) if number.is_i64() => Rows::Int(Vec::new()),
            Value::Number(_) => Rows::Float(Vec::new()),
            Value::String(_) => Rows::Text(StringsBuilder::default()),
            Value::Array(list) if list.is_empty() => Rows::Empty(0),
            value if is_labels(value) => {
                Rows::Labels { names: Interner::default(), labels: Vec::new(), ends: EndsBuilder::default() }
            }
            _ => Rows::Json(StringsBuilder::default()),
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Rows::Bool(_) => "booleans",
            Rows::Int(_) => "integers",
            Rows::Float(_) => "floats",
            Rows::Text(_) => "strings",
            Rows::Empty(_) => "empty lists",
            Rows::Labels { .. } => "lists of strings",
            Rows::Json(_) => "objects or lists of other things than strings",
        }
    }
}

/// Whether a value is a list of strings.
fn is_labels(value: &Value) -> bool {
    value.as_array().is_some_and(|list| list.iter().all(Value::is_string))
}

fn is_empty_list(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty)
}

/// What a value is, for sentences.
fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_i64() => "an integer",
        Value::Number(_) => "a float",
        Value::String(_) => "a string",
        Value::Array(list) if list.is_empty() => "an empty list",
        value if is_labels(value) => "a list of strings",
        Value::Array(_) => "a list of other things than strings",
        Value::Object(_) => "an object",
    }
}

/// Collects the values of an attribute.
#[derive(Clone, Debug)]
pub(in super::super) struct ColumnBuilder {
    /// Rows with a value, ascending.
    rows: Vec<u32>,
    values: Rows,
}

impl ColumnBuilder {
    /// An empty column of the kind that holds `value`.
    pub fn like(value: &Value) -> ColumnBuilder {
        ColumnBuilder { rows: Vec::new(), values: Rows::like(value) }
    }

    /// Whether a value may stand beside those before it.
    ///
    /// # Errors
    /// A sentence with both kinds if not.
    pub fn check(&self, value: &Value) -> Result<(), String> {
        let fits = match (&self.values, value) {
            (_, Value::Null) | (Rows::Bool(_), Value::Bool(_)) | (Rows::Text(_), Value::String(_)) => true,
            (Rows::Int(_) | Rows::Float(_), Value::Number(_)) => true,
            (Rows::Empty(_), Value::Array(_) | Value::Object(_)) => true,
            (Rows::Labels { .. }, value) => is_labels(value),
            (Rows::Json(_), value @ (Value::Array(_) | Value::Object(_))) => {
                is_empty_list(value) || !is_labels(value)
            }
            _ => false,
        };
        if fits {
            return Ok(());
        }
        Err(format!("{}, where items before have {}", kind_of(value), self.values.kind()))
    }

    /// Adds the value of `row`, which is above all rows before; the value has passed [`ColumnBuilder::check`]. A null is a missing value.
    pub fn push(&mut self, row: u32, value: &Value) {
        if value.is_null() {
            return;
        }
        self.widen(value);
        self.rows.push(row);
        match (&mut self.values, value) {
            (Rows::Bool(values), Value::Bool(value)) => values.push(*value),
            (Rows::Int(values), Value::Number(number)) => values.extend(number.as_i64()),
            (Rows::Float(values), Value::Number(number)) => values.extend(number.as_f64()),
            (Rows::Text(values), Value::String(text)) => values.push(text),
            (Rows::Empty(count), _) => *count += 1,
            (Rows::Labels { names, labels, ends }, Value::Array(list)) => {
                labels.extend(
                    list.iter().filter_map(Value::as_str).map(|label| names.intern(label.as_bytes())),
                );
                ends.push(list.len());
            }
            (Rows::Json(values), value) => values.push(&value.to_string()),
            (values, value) => unreachable!("{} beside {}", kind_of(value), values.kind()),
        }
    }

    /// Changes the kind where `value` needs a wider one: integers become floats beside floats, empty lists what the others are.
    fn widen(&mut self, value: &Value) {
        match &self.values {
            Rows::Int(values) if value.as_i64().is_none() => {
                self.values = Rows::Float(values.iter().map(|&value| value as f64).collect());
            }
            Rows::Empty(count) if !is_empty_list(value) => {
                let (count, mut wider) = (*count, Rows::like(value));
                match &mut wider {
                    Rows::Labels { ends, .. } => (0..count).for_each(|_| ends.push(0)),
                    Rows::Json(values) => (0..count).for_each(|_| values.push("[]")),
                    _ => unreachable!("a list or an object"),
                }
                self.values = wider;
            }
            _ => {}
        }
    }

    /// The column in the order of ranks: `order[rank]` is a row. `None` if no row has a value.
    pub fn finish(self, order: &[u32]) -> Option<Column> {
        let len = order.len();
        let mut rows = self.rows.iter().copied().peekable();
        let present = (self.rows.len() < len)
            .then(|| Bitmap::from_fn(len, |row| rows.next_if_eq(&(row as u32)).is_some()));
        let values = match self.values {
            Rows::Bool(values) => Values::Bool(Bitmap::from_fn(values.len(), |at| values[at])),
            Rows::Int(values) => Values::Int(values.into()),
            Rows::Float(values) => Values::Float(values.into()),
            Rows::Text(values) => Values::Text(values.finish()),
            Rows::Empty(count) => {
                let mut ends = EndsBuilder::default();
                (0..count).for_each(|_| ends.push(0));
                Values::Labels(Labels { ends: ends.finish(), ..Labels::default() })
            }
            Rows::Labels { names, labels, ends } => Values::Labels(Labels {
                names: names.finish(),
                labels: Array::from(labels),
                ends: ends.finish(),
            }),
            Rows::Json(values) => Values::Json(values.finish()),
        };
        drop(self.rows);
        let by_row = Column { len, present, values };
        let column = gather(&[(len, Some(&by_row))], order);
        column.expect("a column goes with itself")
    }
}
