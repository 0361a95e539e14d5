//! Texts and attribute values, by column.
//!
//! A catalog of ten million items cannot afford an allocation per string or a JSON value per attribute. A column holds one
//! attribute of one type as plain arrays of its kind; values that are missing take one bit.

use std::collections::HashMap;

use serde_json::Value;

use super::Bitmap;

/// Longest string of a column in bytes; keeps the offsets of a block of strings within 32 bits.
pub(super) const MAX_TEXT: usize = 1 << 20;

const BLOCK: usize = 2048;

/// Strings in one piece of memory, found by number.
///
/// Ends are 32-bit offsets from a 64-bit base per block of strings: half the size of plain 64-bit offsets, without a 4 GiB limit.
#[derive(Clone, Debug, Default)]
pub(super) struct Strings {
    text: String,
    ends: Vec<u32>,
    bases: Vec<u64>,
}

impl Strings {
    /// Appends a string of at most [`MAX_TEXT`] bytes.
    pub fn push(&mut self, text: &str) {
        assert!(text.len() <= MAX_TEXT, "a string of {} bytes", text.len());
        if self.ends.len().is_multiple_of(BLOCK) {
            self.bases.push(self.text.len() as u64);
        }
        self.text.push_str(text);
        let base = self.bases[self.ends.len() / BLOCK];
        self.ends.push((self.text.len() as u64 - base) as u32);
    }

    pub fn get(&self, at: usize) -> &str {
        let base = self.bases[at / BLOCK];
        let start = if at.is_multiple_of(BLOCK) { 0 } else { self.ends[at - 1] };
        &self.text[(base + u64::from(start)) as usize..(base + u64::from(self.ends[at])) as usize]
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// The strings `numbers`, in that order.
    pub fn gather(&self, numbers: impl Iterator<Item = u32>) -> Strings {
        let mut gathered = Strings::default();
        numbers.for_each(|number| gathered.push(self.get(number as usize)));
        gathered
    }

    pub fn bytes(&self) -> usize {
        self.text.len() + 4 * self.ends.len() + 8 * self.bases.len()
    }

    /// Feeds everything that tells these strings from others to `feed`.
    pub fn digest(&self, feed: &mut impl FnMut(&[u8])) {
        feed(&(self.len() as u64).to_le_bytes());
        feed(self.text.as_bytes());
        self.ends.chunks(BLOCK).for_each(|ends| feed(bytemuck::cast_slice(ends)));
    }
}

/// Lists of labels from a dictionary.
#[derive(Clone, Debug, Default)]
struct Labels {
    names: Strings,
    labels: Vec<u32>,
    /// One past the last label of each list.
    ends: Vec<usize>,
}

impl Labels {
    fn list(&self, at: usize) -> &[u32] {
        let start = if at == 0 { 0 } else { self.ends[at - 1] };
        &self.labels[start..self.ends[at]]
    }

    fn push(&mut self, labels: impl Iterator<Item = u32>) {
        self.labels.extend(labels);
        self.ends.push(self.labels.len());
    }

    fn value(&self, at: usize) -> Value {
        self.list(at).iter().map(|&label| self.names.get(label as usize)).collect()
    }
}

/// Values of one kind, those that are missing left out.
#[derive(Clone, Debug)]
enum Values {
    Bool(Vec<bool>),
    Int(Vec<i64>),
    Float(Vec<f64>),
    Text(Strings),
    Labels(Labels),
    /// Whatever is none of the above, or mixes them, as JSON text.
    Json(Strings),
}

impl Values {
    /// No values yet, of the kind that holds `value` best.
    fn like(value: &Value) -> Values {
        match value {
            Value::Bool(_) => Values::Bool(Vec::new()),
            Value::Number(number) if number.is_i64() => Values::Int(Vec::new()),
            Value::Number(_) => Values::Float(Vec::new()),
            Value::String(_) => Values::Text(Strings::default()),
            Value::Array(list) if list.iter().all(Value::is_string) => Values::Labels(Labels::default()),
            _ => Values::Json(Strings::default()),
        }
    }

    fn value(&self, at: usize) -> Value {
        match self {
            Values::Bool(values) => values[at].into(),
            Values::Int(values) => values[at].into(),
            Values::Float(values) => values[at].into(),
            Values::Text(values) => values.get(at).into(),
            Values::Labels(values) => values.value(at),
            Values::Json(values) => serde_json::from_str(values.get(at)).expect("written by this column"),
        }
    }

    /// The values `places`, in that order, labels renumbered so that the dictionary is sorted: the
    /// stored form does not depend on the order in which labels were met.
    fn gather(&self, places: impl Iterator<Item = usize>) -> Values {
        match self {
            Values::Bool(values) => Values::Bool(places.map(|at| values[at]).collect()),
            Values::Int(values) => Values::Int(places.map(|at| values[at]).collect()),
            Values::Float(values) => Values::Float(places.map(|at| values[at]).collect()),
            Values::Text(values) => Values::Text(values.gather(places.map(|at| at as u32))),
            Values::Json(values) => Values::Json(values.gather(places.map(|at| at as u32))),
            Values::Labels(values) => {
                let mut by_name: Vec<u32> = (0..values.names.len() as u32).collect();
                by_name.sort_unstable_by_key(|&label| values.names.get(label as usize));
                let mut number = vec![0; by_name.len()];
                for (new, &old) in by_name.iter().enumerate() {
                    number[old as usize] = new as u32;
                }
                let mut gathered =
                    Labels { names: values.names.gather(by_name.into_iter()), ..Labels::default() };
                for at in places {
                    gathered.push(values.list(at).iter().map(|&label| number[label as usize]));
                }
                Values::Labels(gathered)
            }
        }
    }
}

/// An attribute of the items of one type, by rank.
#[derive(Clone, Debug)]
pub(super) struct Column {
    /// Which items have a value; `None`: all.
    present: Option<Bitmap>,
    values: Values,
}

impl Column {
    /// Place of an item's value among those present.
    fn place(&self, rank: usize) -> Option<usize> {
        match &self.present {
            None => Some(rank),
            Some(present) => present.get(rank).then(|| present.rank(rank)),
        }
    }

    /// The value of an item.
    pub fn value(&self, rank: usize) -> Option<Value> {
        self.place(rank).map(|at| self.values.value(at))
    }

    /// The value of an item, if it is a string.
    pub fn text(&self, rank: usize) -> Option<&str> {
        let at = self.place(rank)?;
        match &self.values {
            Values::Text(values) => Some(values.get(at)),
            _ => None,
        }
    }

    pub fn bytes(&self) -> usize {
        let values = match &self.values {
            Values::Bool(values) => values.len(),
            Values::Int(values) => 8 * values.len(),
            Values::Float(values) => 8 * values.len(),
            Values::Text(values) | Values::Json(values) => values.bytes(),
            Values::Labels(values) => values.names.bytes() + 4 * values.labels.len() + 8 * values.ends.len(),
        };
        values + self.present.as_ref().map_or(0, Bitmap::bytes)
    }

    /// Feeds everything that tells this column from others to `feed`.
    pub fn digest(&self, feed: &mut impl FnMut(&[u8])) {
        let present = self.present.as_ref().map_or(&[][..], Bitmap::words);
        feed(&[u8::from(self.present.is_some())]);
        feed(bytemuck::cast_slice(present));
        match &self.values {
            Values::Bool(values) => {
                feed(b"bool");
                values.iter().for_each(|&value| feed(&[u8::from(value)]));
            }
            Values::Int(values) => {
                feed(b"int");
                feed(bytemuck::cast_slice(values));
            }
            Values::Float(values) => {
                feed(b"float");
                feed(bytemuck::cast_slice(values));
            }
            Values::Text(values) => {
                feed(b"text");
                values.digest(feed);
            }
            Values::Labels(values) => {
                feed(b"labels");
                values.names.digest(feed);
                feed(bytemuck::cast_slice(&values.labels));
                values.ends.iter().for_each(|&end| feed(&(end as u64).to_le_bytes()));
            }
            Values::Json(values) => {
                feed(b"json");
                values.digest(feed);
            }
        }
    }
}

/// Collects the values of an attribute row by row.
#[derive(Clone, Debug)]
pub(super) struct ColumnBuilder {
    /// Rows with a value, ascending.
    rows: Vec<u32>,
    values: Values,
    /// Numbers of the labels met so far.
    labels: HashMap<Box<str>, u32>,
}

impl ColumnBuilder {
    /// An empty column of the kind that holds `value` best.
    pub fn like(value: &Value) -> ColumnBuilder {
        ColumnBuilder { rows: Vec::new(), values: Values::like(value), labels: HashMap::new() }
    }

    /// Adds the value of `row`, which is above all rows before. Integers become floats beside floats; other mixtures JSON.
    /// A null is a missing value.
    pub fn push(&mut self, row: u32, value: &Value) {
        if value.is_null() {
            return;
        }
        self.rows.push(row);
        let float = value.as_f64();
        match (&mut self.values, value, float) {
            (Values::Bool(values), Value::Bool(value), _) => return values.push(*value),
            (Values::Int(values), Value::Number(number), Some(float)) => match number.as_i64() {
                Some(value) => return values.push(value),
                None => {
                    let floats = values.iter().map(|&value| value as f64).chain([float]).collect();
                    self.values = Values::Float(floats);
                    return;
                }
            },
            (Values::Float(values), _, Some(value)) => return values.push(value),
            (Values::Text(values), Value::String(text), _) => return values.push(text),
            (Values::Labels(values), Value::Array(list), _) if list.iter().all(Value::is_string) => {
                let names = &mut values.names;
                let numbers = list.iter().filter_map(Value::as_str).map(|label| {
                    *self.labels.entry(label.into()).or_insert_with(|| {
                        names.push(label);
                        names.len() as u32 - 1
                    })
                });
                let numbers: Vec<u32> = numbers.collect();
                return values.push(numbers.into_iter());
            }
            (Values::Json(values), _, _) => return values.push(&value.to_string()),
            _ => {}
        }
        let mut mixed = Strings::default();
        (0..self.rows.len() - 1).for_each(|at| mixed.push(&self.values.value(at).to_string()));
        mixed.push(&value.to_string());
        self.values = Values::Json(mixed);
    }

    /// The column in the order of ranks: `order[rank]` is a row.
    pub fn finish(self, order: &[u32]) -> Column {
        if self.rows.len() == order.len() {
            let values = self.values.gather(order.iter().map(|&row| row as usize));
            return Column { present: None, values };
        }
        let mut rows = self.rows.iter().copied().peekable();
        let by_row = Bitmap::from_fn(order.len(), |row| rows.next_if_eq(&(row as u32)).is_some());
        let present = Bitmap::from_fn(order.len(), |rank| by_row.get(order[rank] as usize));
        let places = order.iter().map(|&row| row as usize).filter(|&row| by_row.get(row));
        let values = self.values.gather(places.map(|row| by_row.rank(row)));
        Column { present: Some(present), values }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn column(values: &[Value], order: &[u32]) -> Column {
        let first = values.iter().find(|value| !value.is_null()).unwrap_or(&Value::Null);
        let mut builder = ColumnBuilder::like(first);
        values.iter().enumerate().for_each(|(row, value)| builder.push(row as u32, value));
        builder.finish(order)
    }

    #[test]
    fn values_come_back_in_rank_order() {
        let tables = [
            (json!([true, null, false]), "Bool"),
            (json!([-3, 9_223_372_036_854_775_807i64, 5]), "Int"),
            (json!([0.5, null, 1e300]), "Float"),
            (json!(["", "ä", "x"]), "Text"),
            (json!([["b", "a"], [], ["a", "a"]]), "Labels"),
            (json!([{"a": 1}, [1, 2], null]), "Json"),
            (json!([1, "one", null]), "Json"),
            (json!([["a"], "a", [2]]), "Json"),
            (json!([null, null, null]), "Json"),
        ];
        for (values, kind) in tables {
            let values = values.as_array().unwrap().clone();
            let column = column(&values, &[2, 0, 1]);
            let name = format!("{:?}", column.values);
            assert!(name.starts_with(kind), "{values:?} is {name}");
            for (rank, row) in [2, 0, 1].into_iter().enumerate() {
                let expected = Some(values[row].clone()).filter(|value| !value.is_null());
                assert_eq!(column.value(rank), expected, "{values:?} at {rank}");
            }
        }
    }

    #[test]
    fn integers_beside_floats_become_floats() {
        let column = column(&[json!(1), json!(2.5), json!(18_446_744_073_709_551_615u64)], &[0, 1, 2]);
        assert!(matches!(&column.values, Values::Float(v) if v[..2] == [1.0, 2.5] && v[2] > 1e19));
    }

    #[test]
    fn digests_see_the_labels_but_not_the_order_they_were_met_in() {
        let digest = |values: &[Value], order: &[u32]| {
            let mut bytes = Vec::new();
            column(values, order).digest(&mut |part| bytes.extend_from_slice(part));
            bytes
        };
        let (a, b) = (json!(["a", "b"]), json!(["c"]));
        assert_eq!(digest(&[a.clone(), b.clone()], &[0, 1]), digest(&[b.clone(), a.clone()], &[1, 0]));
        assert_ne!(digest(&[a.clone(), b.clone()], &[0, 1]), digest(&[a, b], &[1, 0]));
    }

    #[test]
    fn strings_cross_blocks() {
        let mut strings = Strings::default();
        (0..3 * BLOCK + 5).for_each(|at| strings.push(&"x".repeat(at % 3)));
        assert!((0..3 * BLOCK + 5).all(|at| strings.get(at).len() == at % 3));
    }
}
