//! The columns of a Parquet file, and their values as JSON.
//!
//! Repetition and definition levels of a list column: repetition 0 begins a row; a definition level below that of the list's entries is no list or an
//! empty one, the highest is a value, what lies between is a null in the list.

use parquet::basic::{ConvertedType, LogicalType, TimeUnit, Type as Physical};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl, get_column_reader};
use parquet::data_type::{ByteArray, DataType, FixedLenByteArray};
use parquet::file::reader::RowGroupReader;
use parquet::schema::types::{ColumnDescriptor, SchemaDescriptor};
use serde_json::Value;

use super::file::Bounded;

/// Most bytes of text of one column of a batch: a dictionary can repeat one long text for every row.
const MAX_TEXT: usize = 256 << 20;

/// A column.
#[derive(Clone, Debug)]
pub struct Leaf {
    pub name: String,
    /// Its place among the leaves of the schema.
    at: usize,
    meaning: Meaning,
    /// Why it cannot be read.
    pub unsupported: Option<String>,
}

/// What the stored values stand for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Meaning {
    /// What they are.
    Plain,
    Unsigned32,
    Unsigned64,
    /// Times since 1970, this many per second.
    Seconds(i64),
    /// Days since 1970.
    Days,
    /// Integers to be divided by a power of ten.
    Decimal(i32),
    Json,
    Uuid,
    Half,
}

/// The columns of a schema.
pub fn leaves(schema: &SchemaDescriptor) -> Result<Vec<Leaf>, String> {
    if schema.num_columns() > super::super::MAX_COLUMNS {
        return Err(format!("{} columns, at most {}", schema.num_columns(), super::super::MAX_COLUMNS));
    }
    let mut leaves: Vec<Leaf> = Vec::with_capacity(schema.num_columns());
    for (at, column) in schema.columns().iter().enumerate() {
        let root = schema.get_column_root_idx(at);
        let alone =
            (0..schema.num_columns()).filter(|&other| schema.get_column_root_idx(other) == root).count() == 1;
        let (meaning, mut unsupported) = match meaning(column) {
            Ok(meaning) => (meaning, None),
            Err(why) => (Meaning::Plain, Some(why)),
        };
        if column.max_rep_level() > 1 || column.max_rep_level() == 1 && !alone {
            unsupported = Some("holds lists of lists, lists of structures or maps".to_owned());
        }
        let parts = column.path().parts();
        let name = if column.max_rep_level() == 1 && alone { parts[0].clone() } else { parts.join(".") };
        if leaves.iter().any(|leaf| leaf.name == name) {
            return Err(format!("two columns are named `{name}`"));
        }
        leaves.push(Leaf { name, at, meaning, unsupported });
    }
    Ok(leaves)
}

fn meaning(column: &ColumnDescriptor) -> Result<Meaning, String> {
    let per_second = |unit: &TimeUnit| match unit {
        TimeUnit::MILLIS => 1_000,
        TimeUnit::MICROS => 1_000_000,
        TimeUnit::NANOS => 1_000_000_000,
    };
    let logical = column.logical_type_ref();
    let meaning = match (logical, column.converted_type()) {
        (Some(LogicalType::Timestamp(time)), _) => Meaning::Seconds(per_second(&time.unit)),
        (None, ConvertedType::TIMESTAMP_MILLIS) => Meaning::Seconds(1_000),
        (None, ConvertedType::TIMESTAMP_MICROS) => Meaning::Seconds(1_000_000),
        (Some(LogicalType::Date), _) | (None, ConvertedType::DATE) => Meaning::Days,
        (Some(LogicalType::Decimal(_)), _) | (None, ConvertedType::DECIMAL) => {
            Meaning::Decimal(column.type_scale())
        }
        (Some(LogicalType::Integer(int)), _) if !int.is_signed && int.bit_width == 64 => Meaning::Unsigned64,
        (Some(LogicalType::Integer(int)), _) if !int.is_signed => Meaning::Unsigned32,
        (None, ConvertedType::UINT_64) => Meaning::Unsigned64,
        (None, ConvertedType::UINT_8 | ConvertedType::UINT_16 | ConvertedType::UINT_32) => {
            Meaning::Unsigned32
        }
        (Some(LogicalType::Json), _) | (None, ConvertedType::JSON) => Meaning::Json,
        (Some(LogicalType::Uuid), _) => Meaning::Uuid,
        (Some(LogicalType::Float16), _) => Meaning::Half,
        (Some(LogicalType::String | LogicalType::Enum | LogicalType::Integer(_)), _) => Meaning::Plain,
        // A column of nulls alone.
        (Some(LogicalType::Unknown), _) => Meaning::Plain,
        (Some(LogicalType::List | LogicalType::Map), _) => Meaning::Plain,
        (
            None,
            ConvertedType::TIME_MILLIS
            | ConvertedType::TIME_MICROS
            | ConvertedType::INTERVAL
            | ConvertedType::BSON,
        ) => {
            return Err(format!("holds values of type {}", column.converted_type()));
        }
        (None, _) => Meaning::Plain,
        (Some(other), _) => return Err(format!("holds values of type {other:?}")),
    };
    let fits = match column.physical_type() {
        Physical::INT96 => false,
        Physical::BOOLEAN | Physical::FLOAT | Physical::DOUBLE => meaning == Meaning::Plain,
        Physical::INT32 | Physical::INT64 => {
            !matches!(meaning, Meaning::Json | Meaning::Uuid | Meaning::Half)
        }
        Physical::BYTE_ARRAY => matches!(meaning, Meaning::Plain | Meaning::Json | Meaning::Decimal(_)),
        Physical::FIXED_LEN_BYTE_ARRAY => match meaning {
            Meaning::Uuid => column.type_length() == 16,
            Meaning::Half => column.type_length() == 2,
            Meaning::Decimal(_) => true,
            _ => false,
        },
    };
    match fits {
        true => Ok(meaning),
        false => Err(format!("holds values of type {}", column.physical_type())),
    }
}

impl Leaf {
    /// What is done per row, in the thread that makes the item.
    pub fn finish(&self, value: Value) -> Result<Value, String> {
        match value {
            Value::String(text) if self.meaning == Meaning::Json => {
                serde_json::from_str(&text).map_err(|error| format!("not JSON: {error}"))
            }
            value => Ok(value),
        }
    }
}

/// Reads a column of a row group.
pub struct LeafReader {
    reader: ColumnReader,
    meaning: Meaning,
    levels: Levels,
}

/// What tells values, nulls and lists apart.
#[derive(Default)]
struct Levels {
    list: bool,
    /// Definition level of a value.
    value: i16,
    /// Definition level of an entry of a list.
    entry: i16,
    definition: Vec<i16>,
    repetition: Vec<i16>,
}

impl LeafReader {
    pub fn open(leaf: &Leaf, group: &dyn RowGroupReader) -> Result<LeafReader, String> {
        let column = group.metadata().schema_descr().column(leaf.at);
        let levels = Levels {
            list: column.max_rep_level() > 0,
            value: column.max_def_level(),
            entry: column.repeated_ancestor_def_level(),
            ..Levels::default()
        };
        let pages = group.get_column_page_reader(leaf.at).map_err(|error| error.to_string())?;
        let reader = get_column_reader(column, Box::new(Bounded(pages)));
        Ok(LeafReader { reader, meaning: leaf.meaning, levels })
    }

    /// The values of the next rows; fewer at the end of the row group.
    pub fn read(&mut self, rows: usize) -> Result<Vec<Value>, String> {
        let (levels, meaning) = (&mut self.levels, self.meaning);
        match &mut self.reader {
            ColumnReader::BoolColumnReader(reader) => read(reader, levels, rows, |&value| Ok(value.into())),
            ColumnReader::Int32ColumnReader(reader) => read(reader, levels, rows, |&value| match meaning {
                Meaning::Unsigned32 | Meaning::Unsigned64 => Ok((value as u32).into()),
                _ => Ok(integer(value.into(), meaning)),
            }),
            ColumnReader::Int64ColumnReader(reader) => read(reader, levels, rows, |&value| match meaning {
                Meaning::Unsigned64 => Ok((value as u64).into()),
                _ => Ok(integer(value, meaning)),
            }),
            ColumnReader::FloatColumnReader(reader) => {
                // The shortest decimal of a single-precision number is what its writer meant.
                read(reader, levels, rows, |&value| {
                    float(value.to_string().parse().unwrap_or(f64::from(value)))
                })
            }
            ColumnReader::DoubleColumnReader(reader) => read(reader, levels, rows, |&value| float(value)),
            ColumnReader::ByteArrayColumnReader(reader) => {
                let mut text = 0;
                read(reader, levels, rows, |value: &ByteArray| bytes(value.data(), meaning, &mut text))
            }
            ColumnReader::FixedLenByteArrayColumnReader(reader) => {
                let mut text = 0;
                read(reader, levels, rows, |value: &FixedLenByteArray| {
                    bytes(value.data(), meaning, &mut text)
                })
            }
            ColumnReader::Int96ColumnReader(_) => Err("holds 96-bit integers".to_owned()),
        }
    }
}

fn read<T: DataType>(
    reader: &mut ColumnReaderImpl<T>,
    levels: &mut Levels,
    rows: usize,
    mut value: impl FnMut(&T::T) -> Result<Value, String>,
) -> Result<Vec<Value>, String> {
    let mut stored: Vec<T::T> = Vec::new();
    levels.definition.clear();
    levels.repetition.clear();
    // Several calls: one ends with a page of its column in some cases.
    let mut records = 0;
    while records < rows {
        let read = reader.read_records(
            rows - records,
            (levels.value > 0).then_some(&mut levels.definition),
            levels.list.then_some(&mut levels.repetition),
            &mut stored,
        );
        match read.map_err(|error| error.to_string())?.0 {
            0 => break,
            more => records += more,
        }
    }
    let mut stored = stored.iter();
    let mut next = || stored.next().ok_or_else(|| "fewer values than levels".to_owned()).and_then(&mut value);
    if levels.value == 0 {
        return (0..records).map(|_| next()).collect();
    }
    let mut values: Vec<Value> = Vec::with_capacity(records);
    for (at, &definition) in levels.definition.iter().enumerate() {
        let entry = if definition == levels.value { next()? } else { Value::Null };
        if !levels.list {
            values.push(entry);
            continue;
        }
        if levels.repetition.get(at) == Some(&0) {
            let absent = definition + 1 < levels.entry;
            values.push(if absent { Value::Null } else { Value::Array(Vec::new()) });
        }
        if definition >= levels.entry {
            match values.last_mut() {
                Some(Value::Array(list)) => list.push(entry),
                _ => return Err("a list that does not begin".to_owned()),
            }
        }
    }
    Ok(values)
}

fn integer(value: i64, meaning: Meaning) -> Value {
    match meaning {
        Meaning::Seconds(per_second) => value.div_euclid(per_second).into(),
        Meaning::Days => value.saturating_mul(86_400).into(),
        Meaning::Decimal(scale) => (value as f64 / 10f64.powi(scale)).into(),
        _ => value.into(),
    }
}

/// A number; one that is not a number is a missing value, as pandas has it.
fn float(value: f64) -> Result<Value, String> {
    match value.is_infinite() {
        true => Err(format!("{value} is not a finite number")),
        false => Ok(Value::from(value)),
    }
}

fn bytes(value: &[u8], meaning: Meaning, text: &mut usize) -> Result<Value, String> {
    match meaning {
        Meaning::Decimal(scale) => {
            if value.len() > 32 {
                return Err(format!("a decimal number of {} bytes", value.len()));
            }
            let sign = if value.first().is_some_and(|&byte| byte >= 0x80) { -1.0 } else { 0.0 };
            let unscaled = value.iter().fold(sign, |number, &byte| number * 256.0 + f64::from(byte));
            Ok((unscaled / 10f64.powi(scale)).into())
        }
        Meaning::Uuid => {
            let hex: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
            let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
            Ok(format!("{}-{}-{}-{}-{}", part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32))
                .into())
        }
        Meaning::Half => {
            let bits =
                value.try_into().map_err(|_| "a half-precision number without two bytes".to_owned())?;
            float(half::f16::from_le_bytes(bits).into())
        }
        _ => {
            *text += value.len();
            if *text > MAX_TEXT {
                return Err(format!("more than {MAX_TEXT} bytes of text in a few thousand rows"));
            }
            let value =
                std::str::from_utf8(value).map_err(|error| format!("a text that is not UTF-8: {error}"))?;
            Ok(value.into())
        }
    }
}
