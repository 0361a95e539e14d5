//! `sidereal catalog`, as a program.

use std::process::Command;

use serde_json::{Value, json};
use sidereal::catalog::Catalog;

use super::{Folder, KINDS, csv, direct, items, jsonl};

/// Runs `sidereal catalog` with words; `{}` is the folder.
fn run(folder: &Folder, words: &str) -> (i32, String, String) {
    let place = folder.path("");
    let place = place.to_str().unwrap().trim_end_matches('/');
    let mut command = Command::new(env!("CARGO_BIN_EXE_sidereal"));
    command.arg("catalog").args(words.split(' ').map(|word| word.replace("{}", place)));
    let output = command.env_remove("SIDEREAL_LOG").output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[track_caller]
fn done(folder: &Folder, words: &str) -> (String, String) {
    let (code, stdout, stderr) = run(folder, words);
    assert_eq!(code, 0, "{words}: {stderr}");
    (stdout, stderr)
}

#[track_caller]
fn failed(folder: &Folder, words: &str, code: i32, expected: &str) {
    let (found, stdout, stderr) = run(folder, words);
    assert_eq!((found, stdout.as_str()), (code, ""), "{words}: {stderr}");
    assert!(stderr.contains(expected), "{words}: {stderr}, expected {expected}");
}

fn layout(folder: &Folder) {
    let of = |name: &str| json!({"name": name, "levels": [16, 16, 16], "token": format!("<{name}_{{level}}_{{code}}>")});
    folder.write("layout.json", json!({"types": [of("book"), of("film")]}).to_string());
}

#[test]
fn sources_become_snapshots_that_are_sound() {
    let folder = Folder::new();
    layout(&folder);
    let items = items(700, 31);
    folder.write("a.jsonl", jsonl(&items[..300]));
    folder.write("b.csv", csv(&items[300..], ",", "\n"));
    folder.write("b.toml", KINDS);
    folder.write("none.toml", "");
    let words = "build {}/a.jsonl {}/b.csv --mapping {}/none.toml --mapping {}/b.toml --layout {}/layout.json --out {}/c.sidcat";
    let (stdout, stderr) = done(&folder, words);
    let expected = direct(&items);
    assert!(stdout.contains("c.sidcat: 700 items, ") && stdout.contains(expected.snapshot()), "{stdout}");
    assert_eq!((stdout.lines().count(), stderr.as_str()), (3, ""), "{stdout}");
    assert_eq!(Catalog::open(folder.path("c.sidcat")).unwrap().snapshot(), expected.snapshot());
    let (stdout, _) = done(&folder, "verify {}/c.sidcat");
    assert_eq!(stdout.lines().count(), 1);
    assert!(stdout.contains("c.sidcat: sound; book ") && stdout.contains(expected.snapshot()), "{stdout}");
    // One bit is enough.
    let mut bytes = std::fs::read(folder.path("c.sidcat")).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    folder.write("d.sidcat", &bytes);
    failed(&folder, "verify {}/d.sidcat", 1, "d.sidcat: ");
    failed(&folder, "inspect {}/d.sidcat", 1, "d.sidcat: ");
    failed(&folder, "build {}/a.jsonl --out {}/a.jsonl", 1, "a.jsonl: that is the source ");
    failed(&folder, "verify {}/a.jsonl", 1, "a.jsonl: ");
    failed(&folder, "verify {}/none.sidcat", 1, "none.sidcat: ");
}

#[test]
fn bad_rows_are_said_and_counted() {
    let folder = Folder::new();
    layout(&folder);
    let mut rows = items(40, 32);
    rows[4].sid[0] = 16;
    rows[7].sid = vec![1];
    folder.write("a.jsonl", jsonl(&rows));
    let words = "build {}/a.jsonl --layout {}/layout.json --out {}/c.sidcat";
    failed(&folder, words, 1, "a.jsonl: line 5: sid[0]: code 16");
    assert!(!folder.path("c.sidcat").exists());
    let (stdout, stderr) = done(&folder, &format!("{words} --on-error skip"));
    assert!(stdout.contains("38 items") && stdout.contains("2 rows left out"), "{stdout}");
    assert!(stderr.contains("left out: ") && stderr.contains("line 8: sid: 1 codes"), "{stderr}");
}

#[test]
fn types_without_items_and_empty_catalogs_are_not_built() {
    let folder = Folder::new();
    layout(&folder);
    folder.write("a.jsonl", r#"{"id": "a", "type": "book", "sid": [1, 2, 3]}"#);
    folder.write("empty.jsonl", "");
    folder.write("bad.jsonl", "{}");
    let to = "--out {}/c.sidcat";
    let with = "--layout {}/layout.json --on-error skip --out {}/c.sidcat";
    failed(&folder, &format!("build {{}}/a.jsonl {with}"), 1, "type `film` has no items");
    failed(&folder, &format!("build {{}}/empty.jsonl {with}"), 1, "the sources have no items");
    failed(
        &folder,
        &format!("build {{}}/bad.jsonl {with}"),
        1,
        "the sources have no items (1 rows were left out)",
    );
    failed(&folder, &format!("build {{}}/empty.jsonl {to}"), 1, "the sources have no items");
    failed(&folder, &format!("build {to}"), 2, "SOURCE");
    failed(&folder, &format!("build {{}}/a.jsonl --mapping x --mapping y {to}"), 1, "x: ");
    folder.write("x.toml", "");
    let twice = format!("build {{}}/a.jsonl --mapping {{}}/x.toml --mapping {{}}/x.toml {to}");
    failed(&folder, &twice, 1, "2 times --mapping for 1 sources");
}

#[test]
fn codes_may_lie_beside_a_source() {
    let folder = Folder::new();
    folder.write("a.csv", "isbn,name\n1,A\n2,B\n3,C\n");
    folder.write(
        "a.toml",
        "id = { column = 'isbn', prefix = 'book:' }\ntype = { value = 'book' }\ntitle = 'name'",
    );
    folder.write("codes.jsonl", "{\"id\": \"book:2\", \"sid\": [1, 0]}\n{\"id\": \"book:3\", \"sid\": [1, 0]}\n{\"id\": \"book:1\", \"sid\": [0, 5]}");
    let words = "build {}/a.csv --mapping {}/a.toml --out {}/c.sidcat";
    failed(
        &folder,
        words,
        1,
        "line 2: sid: missing (codes may also come from a file of their own, which `sidereal sid fit` makes)",
    );
    let (stdout, stderr) = done(&folder, &format!("{words} --codes {{}}/codes.jsonl"));
    assert!(stderr.contains("types and codebooks are those of the codes: book [2, 6]"), "{stderr}");
    assert!(stdout.contains("book: 3 items, 2 SIDs"), "{stdout}");
    let wrong = format!("{words} --codes film={{}}/codes.jsonl");
    failed(&folder, &wrong, 1, "codes by id are given without a type");
}

#[test]
fn what_a_catalog_holds_is_told_to_people_and_programs() {
    let folder = Folder::new();
    let row = |id: &str, sid: [u16; 2], popularity: u32, year: Value, genres: Value| {
        json!({"id": id, "type": "book", "title": format!("The {id}"), "sid": sid, "popularity": popularity, "year": year, "genres": genres}).to_string() + "\n"
    };
    let text = row("a", [0, 1], 5, json!(1999), json!(["Crime", "Art"]))
        + &row("b", [0, 1], 9, json!(2003), json!(["Crime"]))
        + &row("c", [3, 0], 1, json!(1999), json!(null))
        + &row("d", [2, 1], 2, json!(null), json!(null));
    folder.write("a.jsonl", text);
    done(&folder, "build {}/a.jsonl --out {}/c.sidcat");
    let (stdout, _) = done(&folder, "inspect {}/c.sidcat --json");
    let found: Value = serde_json::from_str(&stdout).unwrap();
    let bytes = std::fs::metadata(folder.path("c.sidcat")).unwrap().len();
    assert_eq!((&found["items"], &found["file_bytes"]), (&json!(4), &json!(bytes)));
    let book = &found["types"][0];
    assert_eq!(book["levels"], json!([{"codebook": 4, "used": 3}, {"codebook": 2, "used": 2}]));
    assert_eq!(book["collisions"], json!({"shared_sids": 1, "items": 2, "largest": 2}));
    assert_eq!((&book["name"], &book["items"], &book["sids"]), (&json!("book"), &json!(4), &json!(3)));
    assert_eq!(book["examples"][0]["id"], "b");
    let [genres, year] = &book["attributes"].as_array().unwrap()[..] else { panic!("{book}") };
    assert_eq!(
        (&genres["kind"], &genres["present"], &genres["distinct"]),
        (&json!("labels"), &json!(0.5), &json!(2))
    );
    assert_eq!(genres["frequent"], json!([{"value": "Crime", "count": 2}]));
    assert_eq!(
        (&year["kind"], &year["present"], &year["distinct"]),
        (&json!("int"), &json!(0.75), &json!(2))
    );
    assert_eq!((&year["least"], &year["greatest"]), (&json!(1999), &json!(2003)));
    assert_eq!(year["frequent"], json!([{"value": 1999, "count": 2}]));
    let per_item = book["index_bytes"].as_f64().unwrap() / 4.0;
    assert_eq!(found["index_bytes_per_item"].as_f64().unwrap(), per_item);
    let (stdout, _) = done(&folder, "inspect {}/c.sidcat");
    for words in [
        "c.sidcat: 4 items, ",
        "book: 4 items, 3 SIDs of 2 levels",
        "codes used    3 of 4, 2 of 2",
        "shared SIDs   1 SIDs are those of 2 items, 2 at most",
        "most popular  The b  b [0, 1]",
        "year    int     75.0 %  2 distinct, 1999 to 2003; mostly 1999 (2)",
        "genres  labels  50.0 %  2 distinct; mostly Crime (2)",
    ] {
        assert!(stdout.contains(words), "no `{words}` in:\n{stdout}");
    }
    let source = "--mapping is for sources, and ";
    failed(&folder, "inspect {}/c.sidcat --mapping x.toml", 1, source);
    // A source is looked at in the same way.
    let (source, stderr) = done(&folder, "inspect {}/a.jsonl --json");
    let source: Value = serde_json::from_str(&source).unwrap();
    assert_eq!((&source["types"], &source["snapshot"]), (&found["types"], &found["snapshot"]));
    assert!(source["file_bytes"].is_null() && stderr.contains("book [4, 2]"), "{stderr}");
}

#[test]
fn synthetic_catalogs_have_exactly_the_sids_asked_for() {
    let folder = Folder::new();
    let words =
        "generate --items 70000 --levels 64,64,64 --skew zipf:1.0 --seed 3 --type song --out {}/c.sidcat";
    done(&folder, words);
    let catalog = Catalog::open(folder.path("c.sidcat")).unwrap();
    let index = catalog.index(sidereal::ids::TypeId(0));
    assert_eq!((catalog.types()[0].as_str(), catalog.len(), index.sids()), ("song", 70_000, 70_000));
    assert!(catalog.attributes().is_empty());
    done(&folder, &words.replace("c.sidcat", "d.sidcat"));
    let same =
        std::fs::read(folder.path("c.sidcat")).unwrap() == std::fs::read(folder.path("d.sidcat")).unwrap();
    assert!(same, "the same options give the same file");
    done(&folder, "generate --items 300 --levels 64,64 --attributes --out {}/e.sidcat");
    let catalog = Catalog::open(folder.path("e.sidcat")).unwrap();
    assert_eq!(catalog.attributes(), ["fresh", "genres", "lang", "price", "year"]);
    failed(
        &folder,
        "generate --items 65 --levels 8,8 --out {}/f.sidcat",
        1,
        "65 distinct SIDs, but [8, 8] make 64",
    );
    failed(&folder, "generate --items 0 --levels 8,8 --out {}/f.sidcat", 1, "--items 0");
    failed(
        &folder,
        "generate --items 5 --levels 8 --skew even --out {}/f.sidcat",
        2,
        "expected uniform or zipf",
    );
}
