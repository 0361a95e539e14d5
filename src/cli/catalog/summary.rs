//! What a catalog holds, in numbers.

use std::collections::HashMap;
use std::hash::Hash;

use rayon::prelude::*;
use serde::Serialize;
use serde_json::{Value, json};
use sidereal::catalog::{
    Catalog, Column, ColumnValues, Entries, SectionKind, SectionPart, Strings, TypeIndex,
};
use sidereal::ids::{Rank, SidIndex, TypeId};

/// Values shown of an attribute, and items of a type.
const SHOWN: usize = 3;

/// A whole catalog.
#[derive(Serialize)]
pub struct Summary {
    pub snapshot: String,
    /// Length of the file; none for a source.
    pub file_bytes: Option<u64>,
    pub items: usize,
    pub index_bytes_per_item: f64,
    pub bytes: Bytes,
    pub types: Vec<TypeSummary>,
}

/// Where the bytes are.
#[derive(Default, Serialize)]
pub struct Bytes {
    pub tries: usize,
    pub ids: usize,
    pub popularity: usize,
    pub titles: usize,
    pub attributes: usize,
    pub contents: usize,
}

/// A type.
#[derive(Serialize)]
pub struct TypeSummary {
    pub name: String,
    pub items: usize,
    pub sids: usize,
    pub levels: Vec<Level>,
    pub collisions: Collisions,
    /// Share of the items with a title.
    pub titles: f64,
    pub attributes: Vec<Attribute>,
    /// The most popular items.
    pub examples: Vec<Example>,
    pub index_bytes: usize,
}

/// A level of SIDs.
#[derive(Serialize)]
pub struct Level {
    pub codebook: usize,
    /// Codes that occur.
    pub used: usize,
}

/// SIDs with several items.
#[derive(Default, Serialize)]
pub struct Collisions {
    pub shared_sids: usize,
    /// Items with such a SID.
    pub items: usize,
    /// Most items with one SID.
    pub largest: usize,
}

/// An attribute.
#[derive(Serialize)]
pub struct Attribute {
    pub name: String,
    pub kind: &'static str,
    /// Share of the items that have it.
    pub present: f64,
    /// Different values; of lists, different labels.
    pub distinct: usize,
    /// The most frequent values, or labels, that occur more than once.
    pub frequent: Vec<Frequent>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub least: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub greatest: Option<Value>,
    /// Some values.
    pub examples: Vec<Value>,
}

/// A value and how often it occurs.
#[derive(Serialize)]
pub struct Frequent {
    pub value: Value,
    pub count: usize,
}

/// An item.
#[derive(Serialize)]
pub struct Example {
    pub id: String,
    pub title: Option<String>,
    pub sid: Vec<u16>,
    pub popularity: f64,
}

impl Summary {
    /// Looks at all of a catalog.
    pub fn of(catalog: &Catalog, file_bytes: Option<u64>) -> Summary {
        let types = (0..catalog.types().len()).map(|at| type_summary(catalog, TypeId(at as u16)));
        Summary {
            snapshot: catalog.snapshot().to_owned(),
            file_bytes,
            items: catalog.len(),
            index_bytes_per_item: catalog.index_bytes() as f64 / catalog.len().max(1) as f64,
            bytes: bytes(catalog),
            types: types.collect(),
        }
    }
}

fn bytes(catalog: &Catalog) -> Bytes {
    let mut bytes = Bytes::default();
    for section in catalog.sections() {
        let part = match (&section.part, section.kind) {
            (SectionPart::Title, _) => &mut bytes.titles,
            (SectionPart::Attribute(_), _) => &mut bytes.attributes,
            (_, SectionKind::IdText | SectionKind::IdEnds | SectionKind::IdBases | SectionKind::IdTable) => {
                &mut bytes.ids
            }
            (_, SectionKind::Popularity) => &mut bytes.popularity,
            (_, SectionKind::Contents) => &mut bytes.contents,
            _ => &mut bytes.tries,
        };
        *part += section.bytes;
    }
    bytes
}

fn type_summary(catalog: &Catalog, t: TypeId) -> TypeSummary {
    let index = catalog.index(t);
    let titled = (0..index.items() as u32).into_par_iter();
    let titled = titled.filter(|&rank| catalog.item(t, Rank(rank)).title().is_some()).count();
    let columns: Vec<(&str, &Column)> = catalog.columns(t).collect();
    TypeSummary {
        name: catalog.types()[t.index()].clone(),
        items: index.items(),
        sids: index.sids(),
        levels: (0..index.levels())
            .map(|level| Level { codebook: index.codebook(level), used: used(index, level) })
            .collect(),
        collisions: collisions(index),
        titles: titled as f64 / index.items().max(1) as f64,
        attributes: columns.into_par_iter().map(|(name, column)| attribute(name, column)).collect(),
        examples: examples(catalog, t),
        index_bytes: index.bytes(),
    }
}

/// Codes of a level that occur.
fn used(index: &TypeIndex, level: usize) -> usize {
    let codes = match index.entries(level) {
        Entries::Explicit { codes, .. } | Entries::Column { codes } => codes,
    };
    let mut seen = vec![false; index.codebook(level)];
    codes.iter().for_each(|&code| seen[usize::from(code)] = true);
    seen.into_iter().filter(|&seen| seen).count()
}

fn collisions(index: &TypeIndex) -> Collisions {
    let mut collisions = Collisions::default();
    if !index.has_collisions() {
        return collisions;
    }
    for sid in 0..index.sids() as u32 {
        let items = index.ranks(SidIndex(sid)).len();
        if items > 1 {
            collisions.shared_sids += 1;
            collisions.items += items;
            collisions.largest = collisions.largest.max(items);
        }
    }
    collisions
}

fn examples(catalog: &Catalog, t: TypeId) -> Vec<Example> {
    let popularity = catalog.popularity(t);
    let mut best: Vec<usize> = Vec::with_capacity(SHOWN + 1);
    for rank in 0..popularity.len() {
        if best.len() == SHOWN && best.last().is_some_and(|&last| popularity[last] >= popularity[rank]) {
            continue;
        }
        let at = best.partition_point(|&before| popularity[before] >= popularity[rank]);
        best.insert(at, rank);
        best.truncate(SHOWN);
    }
    let example = |rank: usize| {
        let item = catalog.item(t, Rank(rank as u32));
        let title = item.title().map(str::to_owned);
        Example { id: item.id().to_owned(), title, sid: item.codes(), popularity: item.popularity() }
    };
    best.into_iter().map(example).collect()
}

fn attribute(name: &str, column: &Column) -> Attribute {
    let values = column.values();
    let mut found = match values {
        ColumnValues::Bool(values) => {
            let truths = values.count(0..values.len());
            let counts = [(json!(true), truths), (json!(false), values.len() - truths)];
            from_counts(counts.into_iter().filter(|(_, count)| *count > 0).collect())
        }
        ColumnValues::Int(values) => numbers(values.to_vec(), |a, b| a.cmp(b), |&value| json!(value)),
        ColumnValues::Float(values) => numbers(values.to_vec(), f64::total_cmp, |&value| json!(value)),
        ColumnValues::Text(values) | ColumnValues::Json(values) => texts(values),
        ColumnValues::Category { names, codes } => named(names, codes),
        ColumnValues::Labels(labels) => named(labels.names(), labels.flat()),
    };
    let total = column.len();
    let places = (0..total).filter_map(|rank| column.value(rank));
    found.examples = places.take(SHOWN).collect();
    Attribute {
        name: name.to_owned(),
        kind: kind(&values),
        present: values.len() as f64 / total.max(1) as f64,
        ..found
    }
}

/// What the mapping calls it.
fn kind(values: &ColumnValues<'_>) -> &'static str {
    match values {
        ColumnValues::Bool(_) => "bool",
        ColumnValues::Int(_) => "int",
        ColumnValues::Float(_) => "float",
        ColumnValues::Text(_) | ColumnValues::Category { .. } => "string",
        ColumnValues::Labels(_) => "labels",
        ColumnValues::Json(_) => "json",
    }
}

/// An attribute of which values and their counts are known, most frequent first among equals in their order.
fn from_counts(mut counts: Vec<(Value, usize)>) -> Attribute {
    let distinct = counts.len();
    counts.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
    let frequent = counts.into_iter().filter(|&(_, count)| count > 1).take(SHOWN);
    let frequent = frequent.map(|(value, count)| Frequent { value, count }).collect();
    Attribute {
        name: String::new(),
        kind: "",
        present: 0.0,
        distinct,
        frequent,
        least: None,
        greatest: None,
        examples: Vec::new(),
    }
}

fn numbers<T: Copy + Send + PartialEq>(
    mut values: Vec<T>,
    order: impl Fn(&T, &T) -> std::cmp::Ordering + Sync,
    value: impl Fn(&T) -> Value,
) -> Attribute {
    values.par_sort_unstable_by(|a, b| order(a, b));
    let runs = values.chunk_by(|a, b| order(a, b).is_eq());
    let mut distinct = 0;
    let mut best: Vec<(T, usize)> = Vec::new();
    for run in runs {
        distinct += 1;
        keep_best(&mut best, (run[0], run.len()));
    }
    let counts = best.iter().map(|(number, count)| (value(number), *count)).collect();
    Attribute {
        distinct,
        least: values.first().map(&value),
        greatest: values.last().map(&value),
        ..from_counts(counts)
    }
}

/// Keeps the few most frequent, the earlier one of equals.
fn keep_best<T>(best: &mut Vec<(T, usize)>, found: (T, usize)) {
    let at = best.partition_point(|(_, count)| *count >= found.1);
    if at < SHOWN {
        best.insert(at, found);
        best.truncate(SHOWN);
    }
}

fn texts(values: &Strings) -> Attribute {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    values.iter().for_each(|text| *counts.entry(text).or_default() += 1);
    let distinct = counts.len();
    let counts = sorted(counts);
    Attribute {
        distinct,
        ..from_counts(counts.into_iter().map(|(text, count)| (text.into(), count)).collect())
    }
}

/// The counts above one, by value.
fn sorted<K: Ord + Hash>(counts: HashMap<K, usize>) -> Vec<(K, usize)> {
    let mut counts: Vec<(K, usize)> = counts.into_iter().filter(|&(_, count)| count > 1).collect();
    counts.sort_unstable();
    counts
}

fn named(names: &Strings, numbers: &[u32]) -> Attribute {
    let mut counts = vec![0usize; names.len()];
    numbers.iter().for_each(|&number| counts[number as usize] += 1);
    let mut best = Vec::new();
    counts.into_iter().enumerate().for_each(|found| keep_best(&mut best, found));
    let counts = best.into_iter().map(|(at, count)| (names.get(at).into(), count)).collect();
    Attribute { distinct: names.len(), ..from_counts(counts) }
}
