//! Filters, masks and catalogs of ten million items.
//!
//! `filter/compile/5_clauses/10m` compiles five clauses on five columns; `filter/read/10m` sums the bytes of the same columns on as many threads,
//! which is what compiling cannot be faster than, and the ratio of both is printed first. `filter/cached` asks for a mask that is there.
//! `exclude/1000/10m` finds a thousand ids and takes them out of a mask; `.../dead` does so beside 20,000 tombstones, `.../shared` in a catalog
//! whose items share SIDs. `CATALOG_ITEMS` makes the catalogs smaller (names of benches say how large they are).

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use rayon::prelude::*;
use serde_json::{Value, json};
use sidereal::catalog::synthetic::{self, Skew};
use sidereal::catalog::{
    CacheLimits, Catalog, ColumnValues, Filter, FilterCache, FilterLimits, Mask, TypeIndex, TypeSpec,
};
use sidereal::ids::{Rank, TypeId};

const T: TypeId = TypeId(0);

fn items() -> usize {
    std::env::var("CATALOG_ITEMS").ok().and_then(|n| n.parse().ok()).unwrap_or(10_000_000)
}

/// The number of items, as the names of benches spell it.
fn size() -> String {
    match items() {
        n if n % 1_000_000 == 0 => format!("{}m", n / 1_000_000),
        n if n % 1000 == 0 => format!("{}k", n / 1000),
        n => n.to_string(),
    }
}

fn catalog() -> Arc<Catalog> {
    let spec =
        TypeSpec { name: "item".into(), levels: vec![8192, 8192, 8192], token: "<s_{letter}_{code}>".into() };
    let catalog = synthetic::catalog_with_attributes(&[spec], items(), Skew::Uniform, 7);
    Arc::new(catalog.expect("the space is large enough"))
}

fn filter(expression: &Value) -> Filter {
    Filter::parse(expression, &FilterLimits::default()).expect("well-formed")
}

/// One clause per column; about one item in thirty passes.
fn five_clauses() -> Value {
    json!({"all": [
        {"attr": "year", "ge": 1990},
        {"not": {"attr": "genres", "has": "Horror"}},
        {"attr": "price", "lt": 20.0},
        {"attr": "lang", "in": ["en", "de", "fr", "ja"]},
        {"attr": "fresh", "eq": true},
    ]})
}

/// The arrays of a column, as bytes.
fn arrays<'a>(catalog: &'a Catalog, name: &str) -> Vec<&'a [u8]> {
    let column = catalog.column(T, name).expect("a synthetic attribute");
    let present = column.present().map(|bits| bytemuck::cast_slice(bits.words()));
    let mut arrays: Vec<&[u8]> = present.into_iter().collect();
    match column.values() {
        ColumnValues::Bool(bits) => arrays.push(bytemuck::cast_slice(bits.words())),
        ColumnValues::Int(values) => arrays.push(bytemuck::cast_slice(values)),
        ColumnValues::Float(values) => arrays.push(bytemuck::cast_slice(values)),
        ColumnValues::Category { codes, .. } => arrays.push(bytemuck::cast_slice(codes)),
        ColumnValues::Labels(labels) => {
            arrays.push(bytemuck::cast_slice(labels.flat()));
            arrays.push(bytemuck::cast_slice(labels.ends().offsets()));
        }
        ColumnValues::Text(_) | ColumnValues::Json(_) => {}
    }
    arrays
}

/// Reads everything once, in pieces like those of a compiled filter.
fn read(arrays: &[&[u8]]) -> u64 {
    let sum = |piece: &[u8]| {
        let (words, rest) = piece.as_chunks::<8>();
        let words = words.iter().fold(0u64, |sum, word| sum.wrapping_add(u64::from_le_bytes(*word)));
        rest.iter().fold(words, |sum, &byte| sum.wrapping_add(byte.into()))
    };
    arrays
        .par_iter()
        .map(|array| array.par_chunks(1 << 17).map(sum).reduce(|| 0, u64::wrapping_add))
        .reduce(|| 0, u64::wrapping_add)
}

/// The shortest of several runs.
fn shortest(mut run: impl FnMut()) -> Duration {
    let time = |run: &mut dyn FnMut()| {
        let start = Instant::now();
        run();
        start.elapsed()
    };
    (0..15).map(|_| time(&mut run)).min().unwrap_or_default()
}

fn filters(c: &mut Criterion) {
    let catalog = catalog();
    let expression = five_clauses();
    let five = filter(&expression);
    five.check(&catalog, &[T]).expect("the attributes are there");
    let columns: Vec<&[u8]> =
        ["year", "genres", "price", "lang", "fresh"].iter().flat_map(|name| arrays(&catalog, name)).collect();
    let bytes: usize = columns.iter().map(|array| array.len()).sum();
    let (mut compiling, mut reading) = (Duration::MAX, Duration::MAX);
    // In turns: what else the machine does is then shared by both.
    for _ in 0..3 {
        compiling = compiling.min(shortest(|| {
            black_box(five.compile(&catalog, T));
        }));
        reading = reading.min(shortest(|| {
            black_box(read(&columns));
        }));
    }
    println!(
        "{} items, {} MB of columns: read in {reading:.2?} ({:.1} GB/s), five clauses in {compiling:.2?}, {:.2} times as long",
        items(),
        bytes / 1_000_000,
        bytes as f64 / reading.as_secs_f64() / 1e9,
        compiling.as_secs_f64() / reading.as_secs_f64(),
    );
    let mut group = c.benchmark_group("filter");
    group.throughput(Throughput::Bytes(bytes as u64));
    group.bench_function(format!("read/{}", size()), |b| b.iter(|| read(black_box(&columns))));
    group.bench_function(format!("compile/5_clauses/{}", size()), |b| b.iter(|| five.compile(&catalog, T)));
    let clauses = [
        ("int", json!({"attr": "year", "ge": 1990}), "year"),
        ("float", json!({"attr": "price", "lt": 20.0}), "price"),
        ("bool", json!({"attr": "fresh", "eq": true}), "fresh"),
        ("category", json!({"attr": "lang", "in": ["en", "de", "fr", "ja"]}), "lang"),
        ("labels", json!({"attr": "genres", "has": "Horror"}), "genres"),
    ];
    for (kind, clause, name) in &clauses {
        let (one, arrays) = (filter(clause), arrays(&catalog, name));
        group.throughput(Throughput::Bytes(arrays.iter().map(|array| array.len() as u64).sum()));
        group.bench_function(format!("compile/{kind}/{}", size()), |b| b.iter(|| one.compile(&catalog, T)));
    }
    group.finish();
    let mut group = c.benchmark_group("filter");
    group.bench_function("parse/5_clauses", |b| b.iter(|| filter(black_box(&expression))));
    let cache = FilterCache::new(catalog, CacheLimits::default());
    cache.mask(&five, T);
    group.bench_function("cached", |b| b.iter(|| cache.mask(black_box(&five), T)));
    group.bench_function("cached/with_parsing", |b| b.iter(|| cache.mask(&filter(&expression), T)));
    group.finish();
}

/// Ids of `count` items, another choice for each `seed`.
fn ids(count: usize, seed: usize) -> Vec<String> {
    let number =
        |at: usize| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed.wrapping_mul(0xbf58_476d)) % items();
    (0..count).map(|at| format!("item:{}", number(at + 1))).collect()
}

fn exclude(c: &mut Criterion) {
    let catalog = catalog();
    let index = catalog.index(T);
    let ranks = |ids: &[String]| -> Vec<Rank> {
        catalog.find_all(ids).into_iter().flatten().map(|(_, rank)| rank).collect()
    };
    // Enough choices that the table of ids is not in the cache by the time one comes round again.
    let choices: Vec<Vec<String>> = (0..200).map(|seed| ids(1000, seed)).collect();
    let mut group = c.benchmark_group("exclude");
    let all = Mask::all(index);
    let dead = all.excluding(index, &ranks(&ids(20_000, 999)));
    let filtered = filter(&five_clauses()).compile(&catalog, T);
    for (name, mask) in [("", &all), ("/dead", &dead), ("/filtered", &filtered)] {
        let mut turn = 0;
        group.bench_function(format!("1000/{}{name}", size()), |b| {
            b.iter(|| {
                turn += 1;
                mask.excluding(index, &ranks(&choices[turn % choices.len()]))
            })
        });
    }
    let mut turn = 0;
    group.bench_function(format!("find_all/1000/{}", size()), |b| {
        b.iter(|| {
            turn += 1;
            catalog.find_all(&choices[turn % choices.len()])
        })
    });
    // Two items in ten share a SID.
    let tuples = synthetic::tuples(&[8192, 8192, 8192], items() - items() / 10, Skew::Uniform, 3)
        .expect("a large space");
    let shared = TypeIndex::from_tuples(&[8192; 3], &[&tuples[..], &tuples[..items() / 10 * 3]].concat());
    let shared = shared.expect("well-formed");
    let choices: Vec<Vec<Rank>> = choices.iter().map(|ids| ranks(ids)).collect();
    let all = Mask::all(&shared);
    let mut turn = 0;
    group.bench_function(format!("1000/{}/shared", size()), |b| {
        b.iter(|| {
            turn += 1;
            all.excluding(&shared, &choices[turn % choices.len()])
        })
    });
    group.finish();
}

fn build(c: &mut Criterion) {
    let mut group = c.benchmark_group("build");
    group.sample_size(10);
    for (name, levels) in [("8192x3", vec![8192; 3]), ("2048x8", vec![2048; 8])] {
        let tuples = synthetic::tuples(&levels, items(), Skew::Uniform, 7).expect("a large space");
        group.bench_function(format!("{name}/{}", size()), |b| {
            b.iter(|| TypeIndex::from_tuples(&levels, &tuples))
        });
    }
    group.finish();
}

/// Other popularities for all items, by rank and by id.
fn popularity(c: &mut Criterion) {
    let catalog = catalog();
    let mut group = c.benchmark_group("popularity");
    group.sample_size(10);
    let values: Vec<f64> = (0..items()).map(|rank| (rank * 7919 % 1000) as f64).collect();
    group.bench_function(size(), |b| {
        b.iter_batched(
            || vec![values.clone()],
            |values| catalog.with_popularity(values),
            BatchSize::PerIteration,
        )
    });
    let changes: Vec<(String, f64)> = ids(items(), 1).into_iter().zip(values.iter().copied()).collect();
    group.bench_function(format!("{}/by_id", size()), |b| b.iter(|| catalog.with_popularity_of(&changes)));
    group.finish();
}

/// Opening a snapshot file that is in the page cache.
fn snapshot(c: &mut Criterion) {
    let folder = tempfile::tempdir().expect("room for a file");
    let path = folder.path().join("catalog.sidereal");
    catalog().write(&path, &mut |_, _| ()).expect("room for a file");
    c.bench_function(&format!("open/{}", size()), |b| b.iter(|| Catalog::open(&path).expect("just written")));
}

fn config() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3))
        .sample_size(20)
}

criterion_group! { name = benches; config = config(); targets = filters, exclude, popularity, build, snapshot }
criterion_main!(benches);
