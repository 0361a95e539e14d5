//! Parquet files, written column by column with every encoding that matters.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use parquet::basic::{Compression, GzipLevel, ZstdLevel};
use parquet::column::writer::ColumnWriter;
use parquet::data_type::ByteArray;
use parquet::file::properties::{WriterProperties, WriterVersion};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::Value;
use sidereal::catalog::ItemRecord;
use sidereal::catalog::source::OnError;

use super::{Folder, direct, items, read};

/// How a file is written.
#[derive(Clone, Debug)]
pub struct Options {
    pub compression: Compression,
    version: WriterVersion,
    dictionary: bool,
    /// Rows of a group.
    group: usize,
}

pub fn options() -> Vec<Options> {
    let with = |compression, version, dictionary, group| Options { compression, version, dictionary, group };
    let (one, two) = (WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0);
    vec![
        with(Compression::UNCOMPRESSED, one, false, usize::MAX),
        with(Compression::SNAPPY, one, true, 1000),
        with(Compression::GZIP(GzipLevel::default()), two, true, 64),
        with(Compression::ZSTD(ZstdLevel::default()), two, false, usize::MAX),
        with(Compression::LZ4_RAW, two, true, 4097),
    ]
}

const SCHEMA: &str = "message items {
    required binary id (UTF8); required binary type (UTF8); optional binary title (UTF8); required double popularity;
    optional group sid (LIST) { repeated group list { required int32 element (INTEGER(16, false)); } }
    optional int64 year; optional double rating; optional boolean fresh; optional binary note (UTF8);
    optional group genres (LIST) { repeated group list { optional binary element (UTF8); } }
}";

/// A column as its writer takes it: stored values, definition and repetition levels.
struct Flat<'a> {
    values: Vec<&'a Value>,
    definition: Vec<i16>,
    repetition: Vec<i16>,
}

fn flat<'a>(rows: &'a [Value], max: i16) -> Flat<'a> {
    let mut flat = Flat { values: Vec::new(), definition: Vec::new(), repetition: Vec::new() };
    for row in rows {
        let mut add = |value: Option<&'a Value>, definition, repetition| {
            flat.values.extend(value);
            flat.definition.push(definition);
            flat.repetition.push(repetition);
        };
        match row {
            Value::Null => add(None, 0, 0),
            Value::Array(list) if list.is_empty() => add(None, 1, 0),
            Value::Array(list) => {
                list.iter().enumerate().for_each(|(at, value)| add(Some(value), max, i16::from(at > 0)));
            }
            value => add(Some(value), max, 0),
        }
    }
    flat
}

fn columns(items: &[ItemRecord]) -> Vec<(Vec<Value>, i16)> {
    let of = |field: &dyn Fn(&ItemRecord) -> Value| items.iter().map(field).collect::<Vec<Value>>();
    let attribute =
        |name: &'static str| of(&|item| item.attributes.get(name).cloned().unwrap_or(Value::Null));
    vec![
        (of(&|item| item.id.clone().into()), 0),
        (of(&|item| item.item_type.clone().into()), 0),
        (of(&|item| item.title.clone().into()), 1),
        (of(&|item| item.popularity.into()), 0),
        (of(&|item| item.sid.clone().into()), 2),
        (attribute("year"), 1),
        (attribute("rating"), 1),
        (attribute("fresh"), 1),
        (attribute("note"), 1),
        (attribute("genres"), 3),
    ]
}

/// Writes a file of items.
pub fn write(path: &Path, items: &[ItemRecord], options: &Options) {
    let properties = WriterProperties::builder()
        .set_compression(options.compression)
        .set_writer_version(options.version)
        .set_dictionary_enabled(options.dictionary)
        .set_data_page_size_limit(2000)
        .set_write_batch_size(50)
        .build();
    write_columns(path, SCHEMA, properties, items.chunks(options.group.min(items.len().max(1))).map(columns));
}

fn write_columns(
    path: &Path,
    schema: &str,
    properties: WriterProperties,
    groups: impl Iterator<Item = Vec<(Vec<Value>, i16)>>,
) {
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut file =
        SerializedFileWriter::new(File::create(path).unwrap(), schema, Arc::new(properties)).unwrap();
    for columns in groups {
        let mut group = file.next_row_group().unwrap();
        for (rows, max) in &columns {
            let flat = flat(rows, *max);
            let levels = (Some(&flat.definition[..]), Some(&flat.repetition[..]));
            let numbers = flat.values.iter().copied();
            let text = |value: &Value| ByteArray::from(value.as_str().unwrap());
            let mut column = group.next_column().unwrap().unwrap();
            macro_rules! put {
                ($writer:expr, $values:expr) => {
                    $writer.write_batch(&$values.collect::<Vec<_>>(), levels.0, levels.1).unwrap()
                };
            }
            match column.untyped() {
                ColumnWriter::ByteArrayColumnWriter(writer) => put!(writer, numbers.map(text)),
                ColumnWriter::BoolColumnWriter(writer) => put!(writer, numbers.map(|v| v.as_bool().unwrap())),
                ColumnWriter::Int32ColumnWriter(writer) => {
                    put!(writer, numbers.map(|v| v.as_i64().unwrap() as i32))
                }
                ColumnWriter::Int64ColumnWriter(writer) => put!(writer, numbers.map(|v| v.as_i64().unwrap())),
                ColumnWriter::FloatColumnWriter(writer) => {
                    put!(writer, numbers.map(|v| v.as_f64().unwrap() as f32))
                }
                ColumnWriter::DoubleColumnWriter(writer) => {
                    put!(writer, numbers.map(|v| v.as_f64().unwrap()))
                }
                _ => unreachable!("no such column in these tests"),
            };
            column.close().unwrap();
        }
        group.close().unwrap();
    }
    file.close().unwrap();
}

/// A file of one group with the columns of a schema, ids and SIDs first.
fn small(path: &Path, fields: &str, more: Vec<(Value, i16)>) {
    let schema = format!(
        "message m {{ required binary id (UTF8); required group sid (LIST) {{ repeated group list {{ required int32 element; }} }} {fields} }}"
    );
    let rows = |value: Value| value.as_array().unwrap().clone();
    let count = more.first().map_or(2, |(value, _)| value.as_array().unwrap().len());
    let ids = (0..count).map(|at| Value::from(format!("i{at}"))).collect();
    let sids = (0..count).map(|at| serde_json::json!([at, 1, 2])).collect();
    let columns = [(ids, 0), (sids, 1)].into_iter().chain(more.into_iter().map(|(v, max)| (rows(v), max)));
    write_columns(path, &schema, WriterProperties::builder().build(), std::iter::once(columns.collect()));
}

const BOOK: &str = "type = { value = 'book' }";

#[test]
fn stored_types_become_what_they_stand_for() {
    use serde_json::json;
    let folder = Folder::new();
    let path = folder.path("a.parquet");
    let table = [
        ("optional int64 x (TIMESTAMP(MICROS, true));", json!([1_500_000, -1, null]), json!([1, -1, null])),
        ("optional int64 x (TIMESTAMP_MILLIS);", json!([1999, 0, null]), json!([1, 0, null])),
        ("optional int32 x (DATE);", json!([1, -1, null]), json!([86_400, -86_400, null])),
        ("optional int32 x (DECIMAL(9, 2));", json!([434, -5, null]), json!([4.34, -0.05, null])),
        ("optional int32 x (INTEGER(32, false));", json!([-1, 7, null]), json!([4_294_967_295u64, 7, null])),
        ("optional float x;", json!([4.34, 0.5, null]), json!([4.34, 0.5, null])),
        ("optional binary x (ENUM);", json!(["a", "b", null]), json!(["a", "b", null])),
        ("optional binary x;", json!(["a", "ü", null]), json!(["a", "ü", null])),
        ("optional binary x (JSON);", json!(["{\"a\": 1}", "{}", null]), json!([{"a": 1}, {}, null])),
        ("repeated binary x (UTF8);", json!([["b", "a"], ["c"], ["d"]]), json!([["b", "a"], ["c"], ["d"]])),
    ];
    for (field, stored, expected) in table {
        let max = i16::from(!field.starts_with("required"));
        small(&path, field, vec![(stored, max)]);
        let (catalog, _) =
            read(&path, BOOK, OnError::Fail).unwrap_or_else(|error| panic!("{field}: {error}"));
        for (at, value) in expected.as_array().unwrap().iter().enumerate() {
            let (t, rank) = catalog.find(&format!("i{at}")).unwrap();
            let found = catalog.item(t, rank).attribute("x").unwrap_or(Value::Null);
            assert_eq!(found, *value, "{field} at {at}");
        }
    }
    // A field of a structure is a column of its own.
    small(&path, "optional group a { optional int64 b; }", vec![(json!([5, null]), 2)]);
    let (catalog, _) = read(&path, BOOK, OnError::Fail).unwrap();
    assert_eq!(catalog.attributes(), ["a.b"]);
}

#[test]
fn only_wanted_columns_are_read_and_others_are_refused_by_name() {
    use serde_json::json;
    let folder = Folder::new();
    let path = folder.path("a.parquet");
    let nested = "optional group x (LIST) { repeated group list { optional group element { optional int64 y; optional int64 z; } } }";
    small(&path, nested, vec![(json!([null, null]), 4), (json!([null, null]), 4)]);
    let message = read(&path, BOOK, OnError::Skip).unwrap_err().to_string();
    assert!(
        message.contains("column `x.list.element.y` holds lists of lists, lists of structures or maps"),
        "{message}"
    );
    assert!(message.contains("drop = [\"x.list.element.y\"]"), "{message}");
    let dropped = format!("{BOOK}\nothers = 'drop'");
    assert_eq!(read(&path, &dropped, OnError::Fail).unwrap().0.len(), 2);
    // Garbage in the pages of a column that is not wanted does not matter.
    small(
        &path,
        "required binary x (UTF8); required binary y (UTF8);",
        vec![(json!(["first-marker", "second-marker"]), 0), (json!(["third-marker", "fourth-marker"]), 0)],
    );
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(12).position(|window| window == b"third-marker").unwrap();
    bytes[at - 4..at + 20].fill(0xff);
    let path = folder.write("b.parquet", bytes);
    let message = read(&path, BOOK, OnError::Skip).unwrap_err().to_string();
    assert!(message.contains("b.parquet: row group 0, from row 1 on: column `y`: "), "{message}");
    let (catalog, _) = read(&path, &format!("{BOOK}\ndrop = ['y']"), OnError::Fail).unwrap();
    assert_eq!(catalog.attributes(), ["x"]);
}

#[test]
fn bad_rows_are_counted_through_all_groups() {
    let folder = Folder::new();
    let mut rows = items(300, 9);
    rows[99].sid[1] = 99;
    rows[199].item_type = "song".into();
    let path = folder.path("a.parquet");
    write(&path, &rows, &Options { group: 64, ..options()[0].clone() });
    let (catalog, report) = read(&path, "", OnError::Skip).unwrap();
    assert_eq!((catalog.len(), report.skipped), (298, 2));
    assert!(
        report.messages[0].contains("row 100: sid[1]: code 99, but level 1 of type"),
        "{:?}",
        report.messages
    );
    assert!(report.messages[1].contains("row 200: type: unknown type `song`"), "{:?}", report.messages);
    rows.retain(|item| item.sid[1] < 16 && item.item_type != "song");
    assert_eq!(catalog.snapshot(), direct(&rows).snapshot());
}
