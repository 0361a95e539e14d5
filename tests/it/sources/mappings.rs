//! Mapping files.

use serde_json::json;
use sidereal::catalog::source::{Mapping, OnError};

use super::{Folder, read};

#[test]
fn a_mapping_names_columns_and_constants() {
    let folder = Folder::new();
    let mapping = r#"
id = { column = "book_id", prefix = "book:" }
type = { value = "book" }
title = "name"
popularity = "ratings"
sid = ["a", "b", "c"]
drop = ["url"]
[attributes]
year = { column = "published", kind = "int" }
authors = { kind = "labels", separator = "," }
number = { column = "book_id", kind = "int" }
"#;
    let csv = "book_id,name,ratings,a,b,c,url,published,authors,language\n\
               7,1984,12,1,2.0,3,http://x,1949.0,\"George Orwell, \",en\n";
    let json = json!({"book_id": 7, "name": 1984, "ratings": "12", "a": 1, "b": 2, "c": 3, "url": "http://x",
                      "published": 1949, "authors": ["George Orwell"], "language": "en"});
    for (name, text) in [("a.csv", csv.to_owned()), ("a.jsonl", json.to_string())] {
        let (catalog, _) = read(&folder.write(name, text), mapping, OnError::Fail).unwrap();
        let (t, rank) = catalog.find("book:7").unwrap();
        let item = catalog.item(t, rank);
        assert_eq!(
            (item.title(), item.popularity(), item.codes()),
            (Some("1984"), 12.0, vec![1, 2, 3]),
            "{name}"
        );
        assert_eq!(catalog.attributes(), ["authors", "language", "number", "year"], "{name}");
        assert_eq!(item.attribute("year"), Some(json!(1949)));
        assert_eq!(item.attribute("authors"), Some(json!(["George Orwell"])));
        assert_eq!(item.attribute("number"), Some(json!(7)));
        let others = format!("others = 'drop'\n{mapping}");
        let (catalog, _) = read(&folder.path(name), &others, OnError::Fail).unwrap();
        assert_eq!(catalog.attributes(), ["authors", "number", "year"], "{name}");
    }
}

#[test]
fn texts_that_are_no_values_are_missing() {
    let folder = Folder::new();
    let mapping = "type = { value = 'book' }\nmissing = ['', 'NA']\n[attributes]\nx = { kind = 'float' }";
    let csv = "id,title,popularity,sid,x,y\na,NA,NA,1 2 3,NA,na\n";
    let json = r#"{"id": "a", "title": "", "popularity": "NA", "sid": [1, 2, 3], "x": "NA", "y": "na"}"#;
    for (name, text) in [("a.csv", csv), ("a.jsonl", json)] {
        let (catalog, _) = read(&folder.write(name, text), mapping, OnError::Fail).unwrap();
        let (t, rank) = catalog.find("a").unwrap();
        let item = catalog.item(t, rank);
        assert_eq!((item.title(), item.popularity()), (None, 0.0), "{name}");
        assert_eq!(catalog.attributes(), ["y"], "{name}");
    }
    let path = folder.write("b.csv", "id,sid\nNA,1 2 3\n");
    assert!(
        read(&path, "type = { value = 'book' }\nmissing = ['NA']", OnError::Fail)
            .unwrap_err()
            .to_string()
            .ends_with("line 2: id: missing")
    );
}

#[test]
fn a_column_named_in_a_message() {
    let folder = Folder::new();
    let mapping = "id = 'isbn'\ntype = { value = 'book' }\npopularity = 'sold'\nsid = ['a', 'b', 'c']\n\
                   [attributes]\nyear = { column = 'y', kind = 'int' }";
    let path =
        folder.write("a.csv", "isbn,sold,a,b,c,y\n1,many,1,2,3,\n2,1,1,x,3,\n3,1,1,2,3,MCM\n4,1,1,,3,\n");
    let (_, report) = read(&path, mapping, OnError::Skip).unwrap();
    let expected = [
        "line 2: popularity (column `sold`): `many` is not a finite number",
        "line 3: sid[1] (column `b`): expected a code from 0 to 65535, found \"x\"",
        "line 4: year (column `y`): `MCM` is not a 64-bit integer",
        "line 5: sid: some levels have a code and others have none",
    ];
    assert_eq!(report.messages.len(), expected.len());
    for (message, expected) in report.messages.iter().zip(expected) {
        assert!(message.ends_with(expected), "{message}, expected {expected}");
    }
}

#[test]
fn columns_that_are_not_there_are_named() {
    let folder = Folder::new();
    let path = folder.write("a.csv", "id,type,sid\n");
    for (mapping, missing) in [
        ("title = 'name'", "name"),
        ("drop = ['x']", "x"),
        ("sid = ['sid', 'b']", "b"),
        ("[attributes]\nyear = {}", "year"),
    ] {
        let message = read(&path, mapping, OnError::Skip).unwrap_err().to_string();
        let expected =
            format!("no column `{missing}`, which the mapping names; there are `id`, `type`, `sid`");
        assert!(message.contains("a.csv: line 1: ") && message.ends_with(&expected), "{message}");
    }
    let path = folder.write("b.csv", "isbn,type,sid\n");
    let message = read(&path, "", OnError::Skip).unwrap_err().to_string();
    assert!(message.contains("no column `id`, and no mapping that names another"), "{message}");
}

#[test]
fn mappings_that_cannot_be_meant_are_refused_with_their_place() {
    let table = [
        ("tittle = 'x'", "line 1, column 1: unknown field `tittle`"),
        ("id = 'a'\n  popularity = 3", "line 2, column 16: invalid type: integer `3`, expected a string"),
        ("id = { colum = 'a' }", "line 1, column 6: expected a column's name or { column = …, prefix = … }"),
        ("type = { value = 'a', x = 1 }", "expected a column's name or { value = … }"),
        ("type = { value = '' }", "type.value: a type's name must not be empty"),
        ("others = 'all'", "unknown variant `all`, expected `keep` or `drop`"),
        ("format = 'xml'", "unknown variant `xml`"),
        ("delimiter = 'ab'", "line 1, column 13"),
        ("delimiter = '\"'", "delimiter: '\"', expected one ASCII character"),
        ("delimiter = 'ä'", "delimiter: 'ä', expected one ASCII character"),
        ("sid = []", "sid: 0 columns, expected 1 to 8"),
        ("sid = ['1','2','3','4','5','6','7','8','9']", "sid: 9 columns, expected 1 to 8"),
        ("[attributes]\nx = { kind = 'date' }", "line 2, column 14: unknown variant `date`"),
        ("[attributes]\nx = { sort = 1 }", "unknown field `sort`"),
        ("[attributes]\nx = { separator = ',' }", "attributes.x.separator: a separator is"),
        ("[attributes]\nx = { kind = 'labels', separator = '' }", "attributes.x.separator: a separator is"),
        ("title = 'x'\ndrop = ['x']", "drop: column `x` is both used and dropped"),
        ("title = 'x'\ntitle = 'y'", "line 2, column 1: duplicate key"),
        ("title = ", "line 1, column 9"),
    ];
    for (text, expected) in table {
        let message = Mapping::parse(text).unwrap_err().to_string();
        assert!(
            message.contains(expected) && !message.contains('\n'),
            "{text}: {message}, expected {expected}"
        );
    }
    assert_eq!(Mapping::parse("").unwrap(), Mapping::default());
    let folder = Folder::new();
    let path = folder.write("a.toml", "x = 1");
    let message = Mapping::read(&path).unwrap_err().to_string();
    assert!(message.contains("a.toml: line 1, column 1: unknown field `x`"), "{message}");
    let message = Mapping::read(folder.path("b.toml")).unwrap_err().to_string();
    assert!(message.contains("b.toml: "), "{message}");
    let path = folder.write("c.toml", vec![b'#'; 2 << 20]);
    assert!(
        Mapping::read(path).unwrap_err().to_string().contains("2097152 bytes, a mapping has at most 1048576")
    );
}

#[test]
fn the_examples_are_mappings() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/catalogs");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        Mapping::read(entry.unwrap().path()).unwrap();
        count += 1;
    }
    assert!(count >= 4, "{count} examples");
}
