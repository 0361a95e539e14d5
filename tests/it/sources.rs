//! Sources: the same items give the same catalog from every format; what is wrong with a file is said with its place, and no file makes a panic.

mod cells;
mod codes;
mod malformed;
mod mappings;
#[cfg(feature = "parquet")]
mod parquets;
#[cfg(feature = "cli")]
mod program;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use sidereal::Result;
use sidereal::catalog::source::{Mapping, OnError, Report, Sources};
use sidereal::catalog::{Catalog, CatalogBuilder, ItemRecord, TypeSpec};

/// Random numbers for test data: SplitMix64.
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % bound
    }
}

/// A folder for the files of a test.
pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        std::fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }
}

pub fn types() -> Vec<TypeSpec> {
    let spec = |name: &str, levels: &[usize]| TypeSpec {
        name: name.to_owned(),
        levels: levels.to_vec(),
        token: format!("<{name}_{{level}}_{{code}}>"),
    };
    vec![spec("book", &[16, 16, 16]), spec("film", &[16, 16, 16])]
}

/// Texts that a format may stumble over; none is blank at its ends, none empty.
const TEXTS: [&str; 9] = [
    "plain",
    "with, comma",
    "a \"quoted\" word",
    "two\nlines",
    "ünïcödé 本",
    "semi;colon",
    "tab\there",
    "\"",
    "a|b",
];
const LABELS: [&str; 5] = ["Crime", "Science Fiction", "Überraschung", "x", "y"];

/// Items with every kind of attribute, some values missing.
pub fn items(count: usize, seed: u64) -> Vec<ItemRecord> {
    let mut dice = Dice(seed);
    let item = |number: usize| {
        let mut attributes = Map::new();
        let mut put = |name: &str, value: Value, share: u64, dice: &mut Dice| {
            if dice.below(10) < share {
                attributes.insert(name.to_owned(), value);
            }
        };
        let year = dice.below(4000) as i64 - 1000;
        put("year", json!(year), 8, &mut dice);
        let rating = dice.below(5000) as f64 / 1024.0 + 0.25;
        put("rating", json!(rating), 9, &mut dice);
        let fresh = dice.below(2) == 1;
        put("fresh", json!(fresh), 5, &mut dice);
        let note = format!("{} {number}", TEXTS[dice.below(9) as usize]);
        put("note", json!(note), 7, &mut dice);
        let first = dice.below(5) as usize;
        let genres: Vec<&str> = LABELS[first..(first + 1 + dice.below(3) as usize).min(5)].to_vec();
        put("genres", json!(genres), 6, &mut dice);
        let item_type = ["book", "film"][dice.below(2) as usize];
        ItemRecord {
            id: format!("{item_type}:{number}"),
            item_type: item_type.to_owned(),
            title: (dice.below(10) < 9).then(|| TEXTS[dice.below(9) as usize].to_owned()),
            popularity: dice.below(1000) as f64 / 8.0,
            sid: (0..3).map(|_| dice.below(16) as u16).collect(),
            attributes,
        }
    };
    (0..count).map(item).collect()
}

/// The catalog of items, without any file.
pub fn direct(items: &[ItemRecord]) -> Catalog {
    let mut builder = CatalogBuilder::new(&types());
    items.iter().for_each(|item| builder.push(item.clone()).unwrap());
    builder.build().unwrap()
}

pub fn jsonl(items: &[ItemRecord]) -> String {
    let line = |item: &ItemRecord| {
        let mut fields = item.attributes.clone();
        fields.insert("id".into(), json!(item.id));
        fields.insert("type".into(), json!(item.item_type));
        fields.insert("title".into(), json!(item.title));
        fields.insert("popularity".into(), json!(item.popularity));
        fields.insert("sid".into(), json!(item.sid));
        format!("{}\n", Value::Object(fields))
    };
    items.iter().map(line).collect()
}

const COLUMNS: [&str; 10] =
    ["id", "type", "title", "popularity", "sid", "year", "rating", "fresh", "note", "genres"];

/// How the cells of a CSV are to be understood.
pub const KINDS: &str = r#"
[attributes]
year = { kind = "int" }
rating = { kind = "float" }
fresh = { kind = "bool" }
genres = { kind = "labels", separator = "|" }
"#;

pub fn csv(items: &[ItemRecord], delimiter: &str, end: &str) -> String {
    let cell = |value: &Value| {
        let text = match value {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            Value::Array(list) => {
                list.iter().map(|v| v.as_str().unwrap().to_owned()).collect::<Vec<_>>().join("|")
            }
            other => other.to_string(),
        };
        let special = text.contains(['"', '\n', '\r']) || text.contains(delimiter);
        if special { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
    };
    let mut text = COLUMNS.join(delimiter) + end;
    for item in items {
        let codes = item.sid.iter().map(u16::to_string).collect::<Vec<_>>().join(" ");
        let mut cells = vec![
            json!(item.id),
            json!(item.item_type),
            json!(item.title),
            json!(item.popularity),
            json!(codes),
        ];
        cells.extend(
            COLUMNS[5..].iter().map(|&name| item.attributes.get(name).cloned().unwrap_or(Value::Null)),
        );
        text += &(cells.iter().map(cell).collect::<Vec<_>>().join(delimiter) + end);
    }
    text
}

pub fn mapping(text: &str) -> Mapping {
    Mapping::parse(text).unwrap()
}

/// Reads one file.
pub fn read(path: &Path, mapping_text: &str, on_error: OnError) -> Result<(Catalog, Report)> {
    Sources::new().file(path, mapping(mapping_text)).on_error(on_error).read(&types(), &mut |_, _| ())
}

#[test]
fn every_format_gives_the_same_catalog() {
    let folder = Folder::new();
    for (count, seed) in [(1, 1), (63, 2), (64, 3), (65, 4), (9000, 5)] {
        let items = items(count, seed);
        let expected = direct(&items).snapshot().to_owned();
        let check = |name: &str, text: &str, mapping: &str| {
            let path = folder.write(name, text);
            let (catalog, report) = read(&path, mapping, OnError::Fail).unwrap();
            assert_eq!(catalog.snapshot(), expected, "{name}, {count} items");
            assert_eq!((report.items, report.skipped), (count as u64, 0), "{name}");
        };
        check("a.jsonl", &jsonl(&items), "");
        check("a.ndjson", &jsonl(&items).replace('\n', "\r\n\r\n"), "");
        check("a.csv", &csv(&items, ",", "\n"), KINDS);
        check("b.CSV", &format!("\u{feff}{}", csv(&items, ",", "\r\n\n")), KINDS);
        check("c.csv", &csv(&items, ";", "\n"), &format!("delimiter = ';'\n{KINDS}"));
        check("d.csv", csv(&items, ",", "\n").trim_end(), KINDS);
        check("a.tsv", &csv(&items, "\t", "\n"), KINDS);
        check("a.txt", &csv(&items, "\t", "\n"), &format!("format = 'csv'\ndelimiter = \"\\t\"\n{KINDS}"));
        #[cfg(feature = "parquet")]
        for options in parquets::options() {
            let path = folder.path("a.parquet");
            parquets::write(&path, &items, &options);
            let (catalog, _) = read(&path, "", OnError::Fail).unwrap();
            assert_eq!(catalog.snapshot(), expected, "{options:?}, {count} items");
        }
    }
}

#[test]
fn formats_may_be_mixed_and_progress_ends_at_the_total() {
    let folder = Folder::new();
    let items = items(5000, 6);
    let a = folder.write("a.jsonl", jsonl(&items[..2000]));
    let b = folder.write("b.csv", csv(&items[2000..4500], ",", "\n"));
    let c = folder.write("c.jsonl", jsonl(&items[4500..]));
    let mut steps = Vec::new();
    let sources =
        Sources::new().file(a, Mapping::default()).file(b, mapping(KINDS)).file(c, Mapping::default());
    let (catalog, _) = sources.read(&types(), &mut |done, total| steps.push((done, total))).unwrap();
    assert_eq!(catalog.snapshot(), direct(&items).snapshot());
    let total =
        ["a.jsonl", "b.csv", "c.jsonl"].map(|name| std::fs::metadata(folder.path(name)).unwrap().len());
    assert_eq!(steps.last(), Some(&(total.iter().sum(), total.iter().sum())));
    assert!(steps.windows(2).all(|pair| pair[0].0 <= pair[1].0));
}

#[test]
fn types_and_codebooks_are_found_in_the_codes() {
    let folder = Folder::new();
    let text = "id,type,sid,x\na,film,3 9,1\nb,book,1 2 3,2\nc,film,0 11,3\nd,book,7 0 0,4\n";
    let infer = |text: &str, on_error| {
        let path = folder.write("a.csv", text);
        Sources::new().file(path, Mapping::default()).on_error(on_error).infer_types(&mut |_, _| ())
    };
    let found = infer(text, OnError::Fail).unwrap();
    let shape: Vec<(&str, &[usize])> = found.iter().map(|t| (t.name.as_str(), &t.levels[..])).collect();
    assert_eq!(shape, [("film", &[4, 12][..]), ("book", &[8, 3, 4])]);
    assert_eq!(found[0].token, "<film_{level}_{code}>");
    let ragged = format!("{text}\"e\",film,1,\n");
    let message = infer(&ragged, OnError::Fail).unwrap_err().to_string();
    assert!(
        message.ends_with("a.csv: line 6: sid: 1 codes, but rows of type `film` before have 2"),
        "{message}"
    );
    assert_eq!(infer(&ragged, OnError::Skip).unwrap(), found);
    let untyped = infer("id,sid\na,1 2\nb,0 5", OnError::Fail).unwrap();
    assert_eq!((untyped.len(), untyped[0].name.as_str(), &untyped[0].levels[..]), (1, "item", &[2, 6][..]));
    let (catalog, _) =
        Sources::new().file(folder.path("a.csv"), Mapping::default()).read(&untyped, &mut |_, _| ()).unwrap();
    assert_eq!(catalog.len(), 2);
    let many: String = (0..1100).map(|at| format!("i{at},t{at},0\n")).collect();
    let message = infer(&format!("id,type,sid\n{many}"), OnError::Fail).unwrap_err().to_string();
    assert!(message.contains("line 1026: type: `t1024` is one more than 1024 types"), "{message}");
}
