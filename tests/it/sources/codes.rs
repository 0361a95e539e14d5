//! Codes from files beside the sources.

use std::path::PathBuf;

use serde_json::json;
use sidereal::Result;
use sidereal::catalog::source::{CodesFile, Mapping, OnError, Report, Sources};
use sidereal::catalog::{Catalog, ItemRecord};

use super::{Folder, csv, direct, items, jsonl, mapping, types};

/// A table of integers in NumPy's format.
fn npy(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let length = (header.len() as u16).to_le_bytes();
    [&b"\x93NUMPY\x01\x00"[..], &length, header.as_bytes(), data].concat()
}

fn codes(items: &[ItemRecord]) -> Vec<u8> {
    let data: Vec<u8> =
        items.iter().flat_map(|item| item.sid.iter().flat_map(|code| code.to_le_bytes())).collect();
    npy("<u2", &format!("({}, 3)", items.len()), &data)
}

fn without_codes(items: &[ItemRecord]) -> String {
    let strip = |line: &str| {
        let mut fields: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line).unwrap();
        fields.shift_remove("sid");
        format!("{}\n", serde_json::Value::Object(fields))
    };
    jsonl(items).lines().map(strip).collect()
}

fn read(source: PathBuf, codes: Vec<CodesFile>, on_error: OnError) -> Result<(Catalog, Report)> {
    let sources = Sources::new().file(source, Mapping::default()).on_error(on_error);
    codes.into_iter().fold(sources, Sources::codes).read(&types(), &mut |_, _| ())
}

#[test]
fn codes_of_a_file_belong_to_rows_ids_or_types() {
    let folder = Folder::new();
    let items = items(5000, 11);
    let source = folder.write("a.jsonl", without_codes(&items));
    let all = folder.write("all.npy", codes(&items));
    let by_id: String = items
        .iter()
        .rev()
        .map(|item| json!({"id": item.id, "sid": item.sid, "x": 1}).to_string() + "\n")
        .collect();
    let by_id = folder.write("ids.jsonl", by_id + "{\"id\": \"nobody\", \"sid\": [1, 2, 3]}\n");
    let of = |name: &str| {
        let of_type: Vec<ItemRecord> = items.iter().filter(|item| item.item_type == name).cloned().collect();
        CodesFile::of_type(name, folder.write(&format!("{name}.npy"), codes(&of_type)))
    };
    for files in [vec![CodesFile::new(&all)], vec![CodesFile::new(by_id)], vec![of("film"), of("book")]] {
        let (catalog, report) = read(source.clone(), files.clone(), OnError::Fail).unwrap();
        assert_eq!(catalog.snapshot(), direct(&items).snapshot(), "{files:?}");
        assert_eq!(report.unused_codes, u64::from(format!("{files:?}").contains("ids.jsonl")));
    }
    // Two sources, in order; and codes in the rows give way.
    let mut other = items.clone();
    other.iter_mut().for_each(|item| item.sid = vec![0, 0, 0]);
    let first = folder.write("b.jsonl", without_codes(&items[..1234]));
    let second = folder.write("c.csv", csv(&other[1234..], ",", "\n"));
    let sources = Sources::new().file(first, Mapping::default()).file(second, mapping(super::KINDS));
    let sources = sources.codes(CodesFile::new(all));
    let (catalog, _) = sources.read(&types(), &mut |_, _| ()).unwrap();
    assert_eq!(catalog.snapshot(), direct(&items).snapshot());
    let found = sources.infer_types(&mut |_, _| ()).unwrap();
    assert!(found.len() == 2 && found.iter().all(|t| t.levels == [16, 16, 16]), "{found:?}");
}

#[test]
fn a_bad_row_has_codes_too() {
    let folder = Folder::new();
    let items = items(10, 12);
    let text = without_codes(&items).replacen("\"id\":\"", "\"id\":1,\"x\":\"", 1);
    let source = folder.write("a.jsonl", format!("\n{text}"));
    let all = vec![CodesFile::new(folder.write("all.npy", codes(&items)))];
    let (catalog, report) = read(source, all, OnError::Skip).unwrap();
    assert_eq!((catalog.len(), report.skipped), (9, 1));
    for item in &items[1..] {
        let (t, rank) = catalog.find(&item.id).unwrap();
        assert_eq!(catalog.item(t, rank).codes(), item.sid);
    }
    // Which row of a type's codes comes next cannot be known after a row without a type.
    let source = folder.write("b.jsonl", format!("nonsense\n{}", without_codes(&items)));
    let films: Vec<ItemRecord> = items.iter().filter(|item| item.item_type == "film").cloned().collect();
    let films = vec![CodesFile::of_type("film", folder.write("film.npy", codes(&films)))];
    let message = read(source, films, OnError::Skip).unwrap_err().to_string();
    assert!(
        message.contains("b.jsonl: line 1: ") && message.contains("without a type leaves it open"),
        "{message}"
    );
}

#[test]
fn too_few_and_too_many_codes_are_refused() {
    let folder = Folder::new();
    let items = items(10, 13);
    let source = folder.write("a.jsonl", without_codes(&items));
    let check = |count: usize, expected: &str| {
        let file = folder.write("c.npy", codes(&super::items(count, 1)));
        let message =
            read(source.clone(), vec![CodesFile::new(file)], OnError::Skip).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    };
    check(9, "c.npy: 9 rows, but ");
    check(9, "a.jsonl has more of them: line 10 is one too many");
    check(11, "c.npy: 11 rows, but the sources have 10");
    let by_id = folder.write("ids.jsonl", json!({"id": items[3].id, "sid": items[3].sid}).to_string());
    let (catalog, report) = read(source.clone(), vec![CodesFile::new(&by_id)], OnError::Skip).unwrap();
    assert_eq!((catalog.len(), report.skipped), (1, 9));
    assert!(
        report.messages[0].contains(&format!("line 1: sid: `{}` has no codes in ", items[0].id)),
        "{report:?}"
    );
    let all = folder.write("all.npy", codes(&items));
    let film = CodesFile::of_type("film", &all);
    let table = [
        (vec![CodesFile::new(&all), CodesFile::new(&all)], "a second file of codes for the same rows"),
        (vec![film.clone(), film.clone()], "a second file of codes for the same rows"),
        (vec![film.clone(), CodesFile::new(&all)], "codes for all rows, beside other codes for some of them"),
        (vec![CodesFile::new(&by_id), film], "codes for all rows, beside other codes for some of them"),
        (vec![CodesFile::of_type("film", &by_id)], "codes by id are given without a type"),
        (vec![CodesFile::new(folder.path("a.csv"))], "codes are in .npy or .jsonl files"),
    ];
    for (files, expected) in table {
        let message = read(source.clone(), files, OnError::Skip).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}, expected {expected}");
    }
    for (text, expected) in [
        (
            "{\"id\": \"a\", \"sid\": [1]}\n{\"id\": \"a\", \"sid\": [2]}",
            "line 2: id: it has other codes in a line before",
        ),
        ("{\"id\": \"a\"}", "line 1: sid: 0 codes, expected 1 to 8"),
        ("{\"sid\": [1]}", "line 1: id: missing"),
    ] {
        let files = vec![CodesFile::new(folder.write("bad.jsonl", text))];
        let message = read(source.clone(), files, OnError::Skip).unwrap_err().to_string();
        assert!(message.contains(&format!("bad.jsonl: {expected}")), "{message}");
    }
}

#[test]
fn integers_of_every_width_and_order_are_codes() {
    let folder = Folder::new();
    let items = items(3, 14);
    let source = folder.write("a.jsonl", without_codes(&items));
    let numbers: Vec<u64> = items.iter().flat_map(|item| item.sid.iter().map(|&code| code.into())).collect();
    for (descr, size) in
        [("|u1", 1), ("<i2", 2), (">u2", 2), ("<i4", 4), (">i4", 4), ("<u4", 4), ("<i8", 8), (">u8", 8)]
    {
        let bytes = |number: &u64| match descr.starts_with('>') {
            true => number.to_be_bytes()[8 - size..].to_vec(),
            false => number.to_le_bytes()[..size].to_vec(),
        };
        let data: Vec<u8> = numbers.iter().flat_map(bytes).collect();
        let file = folder.write("c.npy", npy(descr, "(3, 3)", &data));
        let (catalog, _) = read(source.clone(), vec![CodesFile::new(file)], OnError::Fail).unwrap();
        assert_eq!(catalog.snapshot(), direct(&items).snapshot(), "{descr}");
    }
}

#[test]
fn malformed_tables_are_refused_with_the_reason() {
    let folder = Folder::new();
    let source = folder.write("a.jsonl", without_codes(&items(3, 15)));
    let good = npy("<u2", "(3, 3)", &[0; 18]);
    let fortran = String::from_utf8_lossy(&good[10..]).replace("False", "True ");
    let table: Vec<(Vec<u8>, &str)> = vec![
        (Vec::new(), "shorter than the header of an .npy file"),
        (b"PK\x03\x04 a zip archive".to_vec(), "it does not begin with \\x93NUMPY"),
        (good[..40].to_vec(), "ends inside of its header of 118 bytes"),
        (good[..good.len() - 1].to_vec(), "145 bytes, but [3, 3] of its type need 146"),
        ([&good[..], &[0]].concat(), "147 bytes, but [3, 3] of its type need 146"),
        ([&b"\x93NUMPY\x09\x00"[..], &good[8..]].concat(), "version 9 of the .npy format"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff".to_vec(), "a header of 4294967295 bytes, at most 65536"),
        ([&good[..10], fortran.as_bytes()].concat(), "in Fortran order"),
        (npy("<f4", "(3, 3)", &[0; 36]), "elements of type `<f4`, expected integers"),
        (npy("<u2", "(9,)", &[0; 18]), "shape [9], expected [rows, levels]"),
        (npy("<u2", "(1, 9)", &[0; 18]), "9 codes per row, expected 1 to 8"),
        (npy("<u2", "(9, 0)", &[]), "0 codes per row"),
        (npy("<u2", "(18446744073709551615, 3)", &[]), "need more than 2^64"),
        (npy("<u2", "(-3, 3)", &[]), "a shape with `-3` in it"),
        (npy("<i4", "(3, 3)", &[0xff; 36]), "row 0, level 0: -1, expected a code from 0 to 65535"),
        (npy("<u4", "(3, 3)", &[1; 36]), "row 0, level 0: 16843009, expected a code"),
    ];
    for (bytes, expected) in table {
        let file = folder.write("bad.npy", bytes);
        let message =
            read(source.clone(), vec![CodesFile::new(file)], OnError::Skip).unwrap_err().to_string();
        assert!(
            message.contains("bad.npy: ") && message.contains(expected),
            "{message}, expected {expected}"
        );
    }
    let message = read(source, Vec::new(), OnError::Fail).unwrap_err().to_string();
    assert!(message.contains("line 1: sid: missing (codes may also come from a file"), "{message}");
}
