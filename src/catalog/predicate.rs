//! One comparison on an attribute: `{"attr": "year", "ge": 1990}`.
//!
//! Comparisons are the leaves of a [`Filter`](super::Filter) and the conditions of boosts. Numbers compare by value, without rounding: an
//! integer of 64 bits is never turned into a float on the way. Here they are evaluated on one item's values; whole columns are
//! the business of the filter's compiler, which shares nothing with this but what was parsed.

use std::cmp::Ordering;

use serde_json::{Map, Value};

use super::filter::FilterLimits;
use super::{Catalog, Item};
use crate::ids::TypeId;

/// The comparisons, as messages list them.
const OPERATORS: &str = "eq, in, has, lt, le, gt, ge";

/// A comparison of an attribute with a value. A missing attribute makes it false.
#[derive(Clone, Debug, PartialEq)]
pub struct Predicate {
    attribute: String,
    test: Test,
}

/// What is asked of the value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Test {
    Eq(Operand),
    In(Vec<Operand>),
    Has(String),
    Order(Order, Number),
}

/// A plain value to compare with.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Operand {
    Bool(bool),
    Number(Number),
    Text(String),
}

/// A number: an integer wherever it is one of 64 bits, however it was written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Number {
    Int(i64),
    Float(f64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Lt,
    Le,
    Gt,
    Ge,
}

/// Why a comparison could not be parsed, and which of its keys is to blame.
pub(super) struct Flaw {
    pub key: Option<&'static str>,
    pub message: String,
}

impl Flaw {
    fn at(key: &'static str, message: String) -> Flaw {
        Flaw { key: Some(key), message }
    }
}

impl Predicate {
    /// Parses `{"attr": NAME, OPERATOR: VALUE}` with the operators `eq`, `in`, `has`, `lt`, `le`, `gt`, `ge`, within the default
    /// [`FilterLimits`].
    ///
    /// # Errors
    /// A sentence that names the key that is missing, unknown, too long or of the wrong type.
    pub fn parse(object: &Map<String, Value>) -> Result<Predicate, String> {
        Predicate::parse_within(object, &FilterLimits::default()).map_err(|flaw| match flaw.key {
            Some(key) => format!("`{key}` {}", flaw.message),
            None => flaw.message,
        })
    }

    pub(super) fn parse_within(
        object: &Map<String, Value>,
        limits: &FilterLimits,
    ) -> Result<Predicate, Flaw> {
        let attribute = match object.get("attr") {
            Some(Value::String(name)) => checked_text("attr", name, limits)?,
            Some(other) => {
                return Err(Flaw::at(
                    "attr",
                    format!("must be the name of an attribute, found {}", shown(other)),
                ));
            }
            None => {
                return Err(Flaw {
                    key: None,
                    message: "`attr` must be the name of an attribute".to_owned(),
                });
            }
        };
        let mut tests = object.iter().filter(|(key, _)| *key != "attr");
        let (Some((operator, value)), None) = (tests.next(), tests.next()) else {
            let message = format!("exactly one comparison ({OPERATORS}) is needed beside `attr`");
            return Err(Flaw { key: None, message });
        };
        let test = match operator.as_str() {
            "eq" => Test::Eq(operand("eq", value, limits)?),
            "in" => Test::In(list(value, limits)?),
            "has" => match value {
                Value::String(label) => Test::Has(checked_text("has", label, limits)?),
                other => return Err(Flaw::at("has", format!("needs a label, found {}", shown(other)))),
            },
            "lt" => Test::Order(Order::Lt, bound("lt", value)?),
            "le" => Test::Order(Order::Le, bound("le", value)?),
            "gt" => Test::Order(Order::Gt, bound("gt", value)?),
            "ge" => Test::Order(Order::Ge, bound("ge", value)?),
            key => {
                let message = format!("unknown comparison `{}`; there are {OPERATORS}", excerpt(key));
                return Err(Flaw { key: None, message });
            }
        };
        Ok(Predicate { attribute, test })
    }

    /// Checks that some type of the catalog has the attribute, with values that can be compared in this way.
    ///
    /// # Errors
    /// A sentence that names the attribute if not.
    pub fn check(&self, catalog: &Catalog) -> Result<(), String> {
        if !catalog.has_attribute(&self.attribute) {
            return Err(format!("no item of the catalog has an attribute `{}`", self.attribute));
        }
        let types = (0..catalog.types().len()).map(|t| TypeId(t as u16));
        let mut misfits = types.filter_map(|t| {
            Some((t, super::filter::misfit(&self.test, catalog.column(t, &self.attribute)?)))
        });
        let mut first = None;
        for (t, misfit) in &mut misfits {
            match misfit {
                None => return Ok(()),
                Some(message) => first = first.or(Some((t, message))),
            }
        }
        first.map_or(Ok(()), |(t, message)| {
            Err(format!("attribute `{}` of type `{}` {message}", self.attribute, catalog.types()[t.index()]))
        })
    }

    /// Evaluates the comparison on an item.
    pub fn matches(&self, item: Item<'_>) -> bool {
        item.attribute(&self.attribute).is_some_and(|value| self.test.holds(&value))
    }

    /// Name of the attribute.
    pub(super) fn attribute(&self) -> &str {
        &self.attribute
    }

    pub(super) fn test(&self) -> &Test {
        &self.test
    }

    /// Appends the comparison to `text`, in the same way for comparisons of the same meaning.
    pub(super) fn write(&self, text: &mut String) {
        write_text(&self.attribute, text);
        text.push(' ');
        text.push_str(self.test.operator());
        text.push(' ');
        match &self.test {
            Test::Eq(value) => {
                // The same as a list of one.
                text.truncate(text.len() - "eq ".len());
                text.push_str("in [");
                value.write(text);
                text.push(']');
            }
            Test::In(values) => {
                let written = values.iter().map(|value| {
                    let mut text = String::new();
                    value.write(&mut text);
                    text
                });
                let mut written: Vec<String> = written.collect();
                written.sort_unstable();
                written.dedup();
                text.push('[');
                text.push_str(&written.join(","));
                text.push(']');
            }
            Test::Has(label) => write_text(label, text),
            Test::Order(_, bound) => bound.write(text),
        }
    }
}

impl Test {
    /// The key of the operator.
    pub fn operator(&self) -> &'static str {
        match self {
            Test::Eq(_) => "eq",
            Test::In(_) => "in",
            Test::Has(_) => "has",
            Test::Order(Order::Lt, _) => "lt",
            Test::Order(Order::Le, _) => "le",
            Test::Order(Order::Gt, _) => "gt",
            Test::Order(Order::Ge, _) => "ge",
        }
    }

    /// Whether a value passes.
    fn holds(&self, value: &Value) -> bool {
        match self {
            Test::Eq(wanted) => wanted.equals(value),
            Test::In(wanted) => wanted.iter().any(|wanted| wanted.equals(value)),
            Test::Has(label) => {
                value.as_array().is_some_and(|labels| labels.iter().any(|l| l.as_str() == Some(label)))
            }
            Test::Order(order, bound) => bound.compared_with(value).is_some_and(|found| match order {
                Order::Lt => found.is_lt(),
                Order::Le => found.is_le(),
                Order::Gt => found.is_gt(),
                Order::Ge => found.is_ge(),
            }),
        }
    }
}

impl Operand {
    fn equals(&self, value: &Value) -> bool {
        match self {
            Operand::Bool(wanted) => value.as_bool() == Some(*wanted),
            Operand::Number(wanted) => wanted.compared_with(value) == Some(Ordering::Equal),
            Operand::Text(wanted) => value.as_str() == Some(wanted),
        }
    }

    /// What kind of value it is, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Operand::Bool(_) => "a boolean",
            Operand::Number(_) => "a number",
            Operand::Text(_) => "a string",
        }
    }

    fn write(&self, text: &mut String) {
        match self {
            Operand::Bool(value) => text.push_str(if *value { "true" } else { "false" }),
            Operand::Number(value) => value.write(text),
            Operand::Text(value) => write_text(value, text),
        }
    }
}

impl Number {
    /// A number of JSON; an integer beyond 64 bits is the float next to it, as it is in a column.
    fn of(value: &Value) -> Option<Number> {
        if let Some(int) = value.as_i64() {
            return Some(Number::Int(int));
        }
        let float = value.as_f64()?;
        // Both bounds are powers of two, so that the cast is exact between them.
        let whole = float.fract() == 0.0 && (-TWO_63..TWO_63).contains(&float);
        Some(if whole { Number::Int(float as i64) } else { Number::Float(float) })
    }

    /// How a value relates to this number; `None` if it is no number.
    fn compared_with(self, value: &Value) -> Option<Ordering> {
        match (value.as_i64(), self) {
            (Some(value), Number::Int(bound)) => Some(value.cmp(&bound)),
            (Some(value), Number::Float(bound)) => compare_mixed(value, bound),
            (None, Number::Int(bound)) => compare_mixed(bound, value.as_f64()?).map(Ordering::reverse),
            (None, Number::Float(bound)) => value.as_f64()?.partial_cmp(&bound),
        }
    }

    fn write(self, text: &mut String) {
        match self {
            Number::Int(value) => text.push_str(&value.to_string()),
            Number::Float(value) => text.push_str(&Value::from(value).to_string()),
        }
    }
}

/// 2^63, the first float above every 64-bit integer.
const TWO_63: f64 = 9_223_372_036_854_775_808.0;

/// Compares an integer with a float by value; `None` if the float is not a number.
fn compare_mixed(int: i64, float: f64) -> Option<Ordering> {
    if float.is_nan() {
        return None;
    }
    if float >= TWO_63 {
        return Some(Ordering::Less);
    }
    if float < -TWO_63 {
        return Some(Ordering::Greater);
    }
    let floor = float.floor();
    let beyond = if float > floor { Ordering::Less } else { Ordering::Equal };
    Some(int.cmp(&(floor as i64)).then(beyond))
}

fn bound(key: &'static str, value: &Value) -> Result<Number, Flaw> {
    Number::of(value).ok_or_else(|| Flaw::at(key, format!("needs a number, found {}", shown(value))))
}

fn operand(key: &'static str, value: &Value, limits: &FilterLimits) -> Result<Operand, Flaw> {
    match value {
        Value::Bool(value) => Ok(Operand::Bool(*value)),
        Value::Number(_) => bound(key, value).map(Operand::Number),
        Value::String(text) => checked_text(key, text, limits).map(Operand::Text),
        other => {
            let message = format!("needs a string, a number or a boolean, found {}", shown(other));
            Err(Flaw::at(key, message))
        }
    }
}

fn list(value: &Value, limits: &FilterLimits) -> Result<Vec<Operand>, Flaw> {
    let Value::Array(values) = value else {
        return Err(Flaw::at("in", format!("needs a list, found {}", shown(value))));
    };
    if values.len() > limits.list {
        let message = format!("has {} values, at most {} are allowed", values.len(), limits.list);
        return Err(Flaw::at("in", message));
    }
    values
        .iter()
        .enumerate()
        .map(|(at, value)| {
            operand("in", value, limits).map_err(|flaw| Flaw::at("in", format!("at {at} {}", flaw.message)))
        })
        .collect()
}

fn checked_text(key: &'static str, text: &str, limits: &FilterLimits) -> Result<String, Flaw> {
    if text.len() > limits.text {
        let message = format!("has a string of {} bytes, at most {} are allowed", text.len(), limits.text);
        return Err(Flaw::at(key, message));
    }
    Ok(text.to_owned())
}

/// A string between quotes, so that no two lists of strings look the same.
fn write_text(value: &str, text: &mut String) {
    text.push_str(&Value::from(value).to_string());
}

/// A value in a message: never long.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Array(list) => format!("a list of {}", list.len()),
        Value::Object(_) => "an object".to_owned(),
        Value::String(text) => format!("\"{}\"", excerpt(text)),
        plain => plain.to_string(),
    }
}

/// The beginning of a text that may be long.
pub(super) fn excerpt(text: &str) -> String {
    const CHARS: usize = 60;
    match text.char_indices().nth(CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(value: Value) -> Result<Predicate, String> {
        Predicate::parse(value.as_object().expect("an object"))
    }

    #[test]
    fn comparisons() {
        let table = [
            (json!({"attr": "x", "eq": 1}), json!(1.0), true),
            (json!({"attr": "x", "eq": 1.0}), json!(1), true),
            (json!({"attr": "x", "eq": true}), json!(true), true),
            (json!({"attr": "x", "eq": true}), json!(false), false),
            (json!({"attr": "x", "eq": true}), json!(1), false),
            (json!({"attr": "x", "eq": 0}), json!(-0.0), true),
            (json!({"attr": "x", "in": ["a", "b"]}), json!("b"), true),
            (json!({"attr": "x", "in": []}), json!("b"), false),
            (json!({"attr": "x", "in": ["1", true]}), json!(1), false),
            (json!({"attr": "x", "has": "Horror"}), json!(["Drama", "Horror"]), true),
            (json!({"attr": "x", "has": "Horror"}), json!("Horror"), false),
            (json!({"attr": "x", "ge": 1990}), json!(1990), true),
            (json!({"attr": "x", "lt": 1990}), json!(1990), false),
            (json!({"attr": "x", "gt": 0.5}), json!("1"), false),
        ];
        for (expression, value, expected) in table {
            let predicate = parse(expression.clone()).expect("valid");
            assert_eq!(predicate.test.holds(&value), expected, "{expression} on {value}");
        }
    }

    #[test]
    fn numbers_compare_without_rounding() {
        let two_53 = 9_007_199_254_740_992_i64;
        let table = [
            // value, bound, value against bound
            (json!(two_53 + 1), json!(two_53), Ordering::Greater),
            (json!(two_53 + 1), json!(two_53 as f64), Ordering::Greater),
            (json!(two_53 as f64), json!(two_53 + 1), Ordering::Less),
            (json!(i64::MAX), json!(9.3e18), Ordering::Less),
            (json!(i64::MAX), json!(TWO_63), Ordering::Less),
            (json!(i64::MIN), json!(-TWO_63), Ordering::Equal),
            (json!(i64::MIN), json!(-1e300), Ordering::Greater),
            (json!(-1), json!(-1.5), Ordering::Greater),
            (json!(-2), json!(-1.5), Ordering::Less),
            (json!(u64::MAX), json!(u64::MAX), Ordering::Equal),
            (json!(u64::MAX), json!(i64::MAX), Ordering::Greater),
        ];
        for (value, bound, expected) in table {
            for (operator, holds) in [
                ("eq", expected.is_eq()),
                ("lt", expected.is_lt()),
                ("le", expected.is_le()),
                ("gt", expected.is_gt()),
                ("ge", expected.is_ge()),
            ] {
                let predicate = parse(json!({"attr": "x", operator: bound})).expect("valid");
                assert_eq!(predicate.test.holds(&value), holds, "{value} {operator} {bound}");
            }
        }
    }

    #[test]
    fn errors_name_the_key() {
        for (expression, word) in [
            (json!({"eq": 1}), "attr"),
            (json!({"attr": 5, "eq": 1}), "attr"),
            (json!({"attr": "x"}), "exactly one"),
            (json!({"attr": "x", "eq": 1, "lt": 2}), "exactly one"),
            (json!({"attr": "x", "like": "a"}), "like"),
            (json!({"attr": "x", "lt": "a"}), "lt"),
            (json!({"attr": "x", "in": "a"}), "in"),
            (json!({"attr": "x", "in": [1, null]}), "at 1"),
            (json!({"attr": "x", "eq": [1]}), "eq"),
            (json!({"attr": "x", "eq": null}), "null"),
        ] {
            assert!(parse(expression).expect_err("invalid").contains(word));
        }
    }
}
