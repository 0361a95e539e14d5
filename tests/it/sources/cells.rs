//! What becomes of single cells and fields.

use serde_json::{Value, json};
use sidereal::catalog::source::OnError;

use super::{Folder, read};

/// The attribute `x` of a CSV cell and of a JSON value, as a kind; or the end of the message.
fn through(kind: &str, cell: &str, value: &Value) -> [Result<Value, String>; 2] {
    let folder = Folder::new();
    let separator = if kind == "labels" { ", separator = '|'" } else { "" };
    let mapping = format!("type = {{ value = 'book' }}\n[attributes]\nx = {{ kind = '{kind}'{separator} }}");
    let quoted = cell.replace('"', "\"\"");
    let a = folder.write("a.csv", format!("id,sid,x\na,1 2 3,\"{quoted}\"\n"));
    let b = folder.write("a.jsonl", json!({"id": "a", "sid": [1, 2, 3], "x": value}).to_string());
    [a, b].map(|path| match read(&path, &mapping, OnError::Fail) {
        Ok((catalog, _)) => {
            let (t, rank) = catalog.find("a").unwrap();
            Ok(catalog.item(t, rank).attribute("x").unwrap_or(Value::Null))
        }
        Err(error) => {
            let message = error.to_string();
            let (_, end) = message.split_once(": line ").unwrap();
            Err(end.split_once(": ").unwrap().1.to_owned())
        }
    })
}

#[test]
fn cells_become_what_their_kind_says() {
    let table = [
        ("int", "2008.0", json!(2008.0), json!(2008)),
        ("int", " -7 ", json!("-7"), json!(-7)),
        ("int", "9223372036854775807", json!(i64::MAX), json!(i64::MAX)),
        ("int", "9.78e+12", json!(9.78e12), json!(9_780_000_000_000i64)),
        ("int", "", json!(""), json!(null)),
        ("int", "  ", json!(null), json!(null)),
        ("float", "4.34", json!("4.34"), json!(4.34)),
        ("float", "3", json!(3), json!(3.0)),
        ("bool", "True", json!(true), json!(true)),
        ("bool", "no", json!(0), json!(false)),
        ("string", " 1984 ", json!(" 1984 "), json!(" 1984 ")),
        ("string", "7", json!(7), json!("7")),
        ("string", "true", json!(true), json!("true")),
        ("labels", "a | b||a", json!([["a", "b"], ["a"]]), json!(["a", "b"])),
        ("labels", "7", json!(7), json!(["7"])),
    ];
    for (kind, cell, value, expected) in table {
        let found = through(kind, cell, &value);
        assert_eq!(found, [Ok(expected.clone()), Ok(expected)], "{kind} of {cell:?} and {value}");
    }
}

#[test]
fn cells_that_do_not_fit_are_named_with_their_value() {
    let table = [
        ("int", "2008.5", json!(2008.5), "x: `2008.5` is not a 64-bit integer"),
        (
            "int",
            "9223372036854775808",
            json!(9_223_372_036_854_775_808u64),
            "x: `9223372036854775808` is not a 64-bit integer",
        ),
        ("int", "NaN", json!("NaN"), "x: `NaN` is not a 64-bit integer"),
        ("int", "1e300", json!(1e300), "is not a 64-bit integer"),
        ("float", "inf", json!("inf"), "x: `inf` is not a finite number"),
        ("float", "4,5", json!("4,5"), "x: `4,5` is not a finite number"),
        ("bool", "2", json!(2), "x: `2` is neither true nor false"),
        ("bool", "ja", json!("ja"), "x: `ja` is neither true nor false"),
    ];
    for (kind, cell, value, expected) in table {
        for found in through(kind, cell, &value) {
            let message = found.unwrap_err();
            assert!(message.contains(expected), "{kind} of {cell:?} and {value}: {message}");
        }
    }
    for (kind, value, expected) in [
        ("int", json!([1]), "x: expected an integer, found a list"),
        ("bool", json!({}), "x: expected a boolean, found an object"),
        ("labels", json!({}), "x: expected labels, found an object"),
        ("string", json!(["a"]), "x: expected a string, found a list"),
    ] {
        assert_eq!(through(kind, "", &value)[1], Err(expected.to_owned()));
    }
    // Long values are not repeated whole.
    let message = through("int", &"ä".repeat(1000), &json!(1))[0].clone().unwrap_err();
    assert!(message.len() < 200, "{message}");
}

#[test]
fn without_a_kind_values_stay_what_they_are() {
    let folder = Folder::new();
    let path = folder.write("a.csv", "id,type,sid,x,y\na,book,\"[1, 2,3]\",007,\n");
    let (catalog, _) = read(&path, "", OnError::Fail).unwrap();
    let (t, rank) = catalog.find("a").unwrap();
    let item = catalog.item(t, rank);
    assert_eq!((item.attribute("x"), item.attribute("y")), (Some(json!("007")), None));
    assert_eq!(item.codes(), [1, 2, 3]);
}

#[test]
fn bad_csv_rows_are_named_by_the_line_they_begin_in() {
    let folder = Folder::new();
    let text = "id,type,sid,x\r\n\r\na,book,1 2 3,\"two\r\nlines\"\r\n\nb,book,1 2 3\nc,book,1 2 3,x,y\nd,book,1 2 300,\n\
                e,book,1 2 x,\nf,book,1 2 3,\"\"\"\"\n,book,1 2 3,z\na,book,1 2 3,z\n";
    let path = folder.write("a.csv", [text.as_bytes(), b"g,book,1 2 3,\xff\nh,book,,z\n"].concat());
    let (catalog, report) = read(&path, "", OnError::Skip).unwrap();
    assert_eq!((catalog.len(), report.items, report.skipped), (2, 2, 8));
    let expected = [
        "line 6: 3 cells, but line 1 names 4 columns",
        "line 7: 5 cells, but line 1 names 4 columns",
        "line 8: sid[2]: code 300, but level 2 of type `book` has 16 codes",
        "line 9: sid[2]: expected a code from 0 to 65535, found `x`",
        "line 11: id: missing",
        "line 12: id: `a` is the id of an item before",
        "line 13: column `x`: byte 0xff is not UTF-8",
        "line 14: sid: missing",
    ];
    for (message, expected) in report.messages.iter().zip(expected) {
        assert!(message.contains(&format!("a.csv: {expected}")), "{message}, expected {expected}");
    }
    let first = read(&path, "", OnError::Fail).unwrap_err().to_string();
    assert!(first.ends_with(expected[0]), "{first}");
}

#[test]
fn a_file_of_many_bad_rows_gives_ten_messages_and_all_the_counts() {
    let folder = Folder::new();
    let rows: String =
        (0..9000).map(|at| format!("i{at},book,1 2 {}\n", if at % 3 == 0 { 99 } else { 3 })).collect();
    let path = folder.write("a.csv", format!("id,type,sid\n{rows}"));
    let (catalog, report) = read(&path, "", OnError::Skip).unwrap();
    assert_eq!((catalog.len(), report.items, report.skipped), (6000, 6000, 3000));
    let lines: Vec<u64> = (0..10).map(|at| 2 + 3 * at).collect();
    for (message, line) in report.messages.iter().zip(&lines) {
        assert!(message.contains(&format!("a.csv: line {line}: ")), "{message}, expected line {line}");
    }
    assert_eq!(report.messages.len(), 10);
}

#[test]
fn a_field_is_given_once() {
    let folder = Folder::new();
    let text = r#"{"id": "a", "sid": [1, 2, 3], "type": "book", "x": 1, "\u0078": 2}"#;
    let path = folder.write("a.jsonl", text);
    let message = read(&path, "", OnError::Fail).unwrap_err().to_string();
    assert!(message.contains("`x` is given twice"), "{message}");
    let (catalog, _) = read(&path, "drop = ['x']", OnError::Fail).unwrap();
    assert!(catalog.attributes().is_empty());
    let clash = "[attributes]\nx = { column = 'y' }";
    let path = folder.write("b.jsonl", r#"{"id": "a", "sid": [1, 2, 3], "type": "book", "x": 1, "y": 2}"#);
    assert!(read(&path, clash, OnError::Fail).unwrap_err().to_string().ends_with("line 1: x: given twice"));
    let path = folder.write("b.csv", "id,type,sid,x,y\n");
    let message = read(&path, clash, OnError::Fail).unwrap_err().to_string();
    assert!(message.contains("attribute `x` comes from two columns"), "{message}");
}
