//! `sidereal sid`: from vectors to codes to a report.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use sidereal::sid::Codes;

use super::clustered;

fn run(dir: &Path, args: &str) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_sidereal"))
        .args(args.split_whitespace())
        .current_dir(dir)
        .env_remove("SIDEREAL_LOG")
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn npy(path: &Path, dim: usize, values: &[f32]) {
    let dict =
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, {dim}), }}\n", values.len() / dim);
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((dict.len() as u16).to_le_bytes());
    bytes.extend(dict.bytes());
    bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn from_vectors_to_codes_and_a_report() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let values = clustered(500, 4, 9, 1);
    npy(&dir.join("book.npy"), 4, &values);
    npy(&dir.join("film.npy"), 4, &values[..100 * 4]);
    npy(&dir.join("new.npy"), 4, &values[..3 * 4]);
    let lines = |n: usize| {
        (0..n).map(|i| format!("{{\"id\": \"b{i}\", \"title\": \"Book {i}\"}}\n")).collect::<String>()
    };
    std::fs::write(dir.join("book.jsonl"), lines(500)).unwrap();
    let (code, out, error) = run(
        dir,
        "sid fit book=book.npy film=film.npy --levels 8,4 --unique=20 --out books.safetensors --codes {type}-sids.npy --json --threads 2",
    );
    assert_eq!(code, 0, "{error}");
    let json: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (json["types"][0]["name"].as_str(), json["types"][1]["rows"].as_u64()),
        (Some("book"), Some(100))
    );
    let books = &json["types"][0]["levels"];
    assert_eq!((books[0]["codes"].as_u64(), books[2]["error"].as_f64().is_some()), (Some(8), false));
    assert!(books[0]["error"].as_f64().unwrap() > books[1]["error"].as_f64().unwrap());
    assert!(books[1]["cosine"].as_f64().unwrap() > json["types"][0]["random_cosine"].as_f64().unwrap() + 0.3);
    let codes = Codes::read(dir.join("book-sids.npy")).unwrap();
    assert_eq!((codes.rows(), codes.levels()), (500, 3));

    let (code, out, error) = run(
        dir,
        "sid report book-sids.npy --vectors book.npy --codebooks books.safetensors --type book --titles book.jsonl --show 3 --prefix 1",
    );
    assert_eq!(code, 0, "{error}");
    assert_eq!(out.lines().filter(|line| line.starts_with('[')).count(), 3, "{out}");
    assert!(
        out.contains("500 items, 500 SIDs; 100.0 % of the items alone on theirs") && out.contains("  Book "),
        "{out}"
    );

    let (code, _, error) = run(
        dir,
        "sid assign new.npy --codebooks books.safetensors --type book --taken book-sids.npy --codes new-sids.npy",
    );
    assert_eq!(code, 0, "{error}");
    let new = Codes::read(dir.join("new-sids.npy")).unwrap();
    for (row, sid) in new.iter().enumerate() {
        assert_eq!(sid[..2], codes.row(row)[..2]);
        assert!(codes.iter().all(|old| old != sid), "{sid:?} is taken");
    }
    std::fs::write(dir.join("ids.txt"), "x\ny\nz\n").unwrap();
    let (code, _, error) = run(
        dir,
        "sid assign new.npy --codebooks books.safetensors --type film --codes new.jsonl --ids ids.txt",
    );
    assert_eq!(code, 0, "{error}");
    let text = std::fs::read_to_string(dir.join("new.jsonl")).unwrap();
    let first: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!(
        (text.lines().count(), first["id"].as_str(), first["sid"].as_array().unwrap().len()),
        (3, Some("x"), 3)
    );

    for (args, expected) in [
        ("sid fit book.npy --levels 0 --out x.safetensors", "a codebook of 0 codes"),
        ("sid fit book.npy film.npy --out x.safetensors", "type `item` is named twice"),
        ("sid fit a=book.npy b=film.npy --out x.safetensors --codes x.npy", "a name with {type} is needed"),
        ("sid fit book.npy --out x.safetensors --codes x.jsonl", "JSON lines need --ids"),
        ("sid fit book.npy --out x.safetensors --codes x.jsonl --ids ids.txt", "3 lines for 500 rows"),
        ("sid assign new.npy --codebooks books.safetensors --codes x.npy", "name one of book, film"),
        ("sid report book-sids.npy --prefix 4", "--prefix: 4 codes, but the SIDs have 3"),
        ("sid extend --model . --layout book.jsonl --out x --init centroids", "needs --codebooks"),
    ] {
        let (code, out, error) = run(dir, args);
        assert!(code == 1 && out.is_empty() && error.contains(expected), "{args}: {code} {out} {error}");
    }
    assert!(!dir.join("x.safetensors").exists());
    assert_eq!(run(dir, "sid fit").0, 2);
}
