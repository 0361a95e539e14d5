//! What a filter means, on the records as they were written: values instead of columns.

use std::cmp::Ordering;

use serde_json::{Map, Value};

/// Whether a record passes an expression. Expressions are well-formed.
pub fn passes(expression: &Value, attributes: &Map<String, Value>) -> bool {
    let list = |key: &str| expression[key].as_array().unwrap();
    let keys: Vec<&str> = expression.as_object().unwrap().keys().map(String::as_str).collect();
    match keys[0] {
        "all" => !list("all").iter().any(|part| !passes(part, attributes)),
        "any" => list("any").iter().any(|part| passes(part, attributes)),
        "not" => !passes(&expression["not"], attributes),
        _ => {
            let operator = *keys.iter().find(|key| **key != "attr").unwrap();
            let name = expression["attr"].as_str().unwrap();
            match attributes.get(name) {
                None | Some(Value::Null) => false,
                Some(value) => compares(operator, value, &expression[operator]),
            }
        }
    }
}

fn compares(operator: &str, value: &Value, wanted: &Value) -> bool {
    match operator {
        "eq" => equal(value, wanted),
        "in" => wanted.as_array().unwrap().iter().any(|wanted| equal(value, wanted)),
        "has" => value.as_array().is_some_and(|labels| labels.contains(wanted)),
        other => {
            let (Value::Number(_), Value::Number(_)) = (value, wanted) else { return false };
            match (other, order(value, wanted)) {
                ("lt", found) => found == Ordering::Less,
                ("le", found) => found != Ordering::Greater,
                ("gt", found) => found == Ordering::Greater,
                ("ge", found) => found != Ordering::Less,
                _ => panic!("{other}"),
            }
        }
    }
}

fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(_), Value::Number(_)) => order(a, b) == Ordering::Equal,
        (Value::String(a), Value::String(b)) => a == b,
        (Value::Bool(a), Value::Bool(b)) => a == b,
        _ => false,
    }
}

/// Compares two numbers by value; what is beyond 64 bits is the float next to it, as a catalog holds it.
fn order(a: &Value, b: &Value) -> Ordering {
    // Rounding keeps the order of what stays different; what becomes equal is whole, or was a float before.
    let rounded = a.as_f64().unwrap().partial_cmp(&b.as_f64().unwrap()).unwrap();
    let exact = |value: &Value| value.as_i64().map_or(value.as_f64().unwrap() as i128, i128::from);
    rounded.then_with(|| exact(a).cmp(&exact(b)))
}

#[test]
fn numbers_compare_by_value() {
    let table = [
        ("1", "1.0", Ordering::Equal),
        ("-0.0", "0", Ordering::Equal),
        ("9007199254740993", "9007199254740992.0", Ordering::Greater),
        ("-5", "-4.5", Ordering::Less),
        ("1e300", "9223372036854775807", Ordering::Greater),
        ("5e-324", "0", Ordering::Greater),
        ("0.1", "0.10000000000000002", Ordering::Less),
    ];
    for (a, b, expected) in table {
        let parse = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        assert_eq!(order(&parse(a), &parse(b)), expected, "{a} and {b}");
        assert_eq!(order(&parse(b), &parse(a)), expected.reverse(), "{b} and {a}");
    }
}
