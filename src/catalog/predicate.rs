//! One comparison on an attribute: `{"attr": "year", "ge": 1990}`.

use serde_json::{Map, Value};

use super::{Catalog, Item};

/// A comparison of an attribute with a value. A missing attribute makes it false.
#[derive(Clone, Debug, PartialEq)]
pub struct Predicate {
    attribute: String,
    test: Test,
}

#[derive(Clone, Debug, PartialEq)]
enum Test {
    Eq(Value),
    In(Vec<Value>),
    Has(String),
    Order(Order, f64),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Order {
    Lt,
    Le,
    Gt,
    Ge,
}

impl Predicate {
    /// Parses `{"attr": NAME, OPERATOR: VALUE}` with the operators `eq`, `in`, `has`, `lt`, `le`, `gt`, `ge`.
    ///
    /// # Errors
    /// A sentence that names the key that is missing, unknown or of the wrong type.
    pub fn parse(object: &Map<String, Value>) -> Result<Predicate, String> {
        let Some(attribute) = object.get("attr").and_then(Value::as_str) else {
            return Err("`attr` must be the name of an attribute".to_owned());
        };
        let mut tests = object.iter().filter(|(key, _)| *key != "attr");
        let (Some((operator, value)), None) = (tests.next(), tests.next()) else {
            return Err(
                "exactly one comparison (eq, in, has, lt, le, gt, ge) is needed beside `attr`".to_owned()
            );
        };
        let order = |order| match value.as_f64() {
            Some(bound) => Ok(Test::Order(order, bound)),
            None => Err(format!("`{operator}` needs a number, found {value}")),
        };
        let test = match (operator.as_str(), value) {
            ("eq", Value::Array(_) | Value::Object(_)) => {
                return Err(format!("`eq` needs a plain value, found {value}"));
            }
            ("eq", value) => Test::Eq(value.clone()),
            ("in", Value::Array(values)) => Test::In(values.clone()),
            ("in", value) => return Err(format!("`in` needs a list, found {value}")),
            ("has", Value::String(label)) => Test::Has(label.clone()),
            ("has", value) => return Err(format!("`has` needs a label, found {value}")),
            ("lt", _) => order(Order::Lt)?,
            ("le", _) => order(Order::Le)?,
            ("gt", _) => order(Order::Gt)?,
            ("ge", _) => order(Order::Ge)?,
            (key, _) => {
                return Err(format!("unknown comparison `{key}`; there are eq, in, has, lt, le, gt, ge"));
            }
        };
        Ok(Predicate { attribute: attribute.to_owned(), test })
    }

    /// Whether the catalog knows the attribute.
    ///
    /// # Errors
    /// A sentence that names the attribute if not.
    pub fn check(&self, catalog: &Catalog) -> Result<(), String> {
        if catalog.has_attribute(&self.attribute) {
            return Ok(());
        }
        Err(format!("no item of the catalog has an attribute `{}`", self.attribute))
    }

    /// Evaluates the comparison on an item.
    pub fn matches(&self, item: Item<'_>) -> bool {
        item.attribute(&self.attribute).is_some_and(|value| self.test.holds(&value))
    }
}

impl Test {
    fn holds(&self, value: &Value) -> bool {
        match self {
            Test::Eq(wanted) => equal(value, wanted),
            Test::In(wanted) => wanted.iter().any(|wanted| equal(value, wanted)),
            Test::Has(label) => {
                value.as_array().is_some_and(|labels| labels.iter().any(|l| l.as_str() == Some(label)))
            }
            Test::Order(order, bound) => value.as_f64().is_some_and(|value| match order {
                Order::Lt => value < *bound,
                Order::Le => value <= *bound,
                Order::Gt => value > *bound,
                Order::Ge => value >= *bound,
            }),
        }
    }
}

/// Equality by value: 1 and 1.0 are equal.
fn equal(a: &Value, b: &Value) -> bool {
    match (a.as_i64(), b.as_i64()) {
        (Some(a), Some(b)) => a == b,
        _ => match (a.as_f64(), b.as_f64()) {
            (Some(a), Some(b)) => a == b,
            _ => a == b,
        },
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
            (json!({"attr": "x", "eq": true}), json!(true), true),
            (json!({"attr": "x", "eq": true}), json!(false), false),
            (json!({"attr": "x", "in": ["a", "b"]}), json!("b"), true),
            (json!({"attr": "x", "in": []}), json!("b"), false),
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
    fn errors_name_the_key() {
        for (expression, word) in [
            (json!({"eq": 1}), "attr"),
            (json!({"attr": "x"}), "exactly one"),
            (json!({"attr": "x", "eq": 1, "lt": 2}), "exactly one"),
            (json!({"attr": "x", "like": "a"}), "like"),
            (json!({"attr": "x", "lt": "a"}), "lt"),
            (json!({"attr": "x", "in": "a"}), "in"),
            (json!({"attr": "x", "eq": [1]}), "eq"),
        ] {
            assert!(parse(expression).expect_err("invalid").contains(word));
        }
    }
}
