//! The SID step on one thread: 70 beams over catalogs of ten million items, logits given.
//!
//! `sid_step/w70/v8192x3/uniform/level1` is the time of one `advance` at that level with the normalisers given as well (log-probabilities,
//! as other systems are measured); `.../with_norms` computes them. Criterion's throughput is in children looked at, so that its
//! inverse is the time per child. Beams are those that the search itself reaches. `SID_STEP_ITEMS` makes the catalogs smaller.
//!
//! `.../level1/walk` starts from up to 70 different ancestors of random items instead, and `.../level1/filter1pct` is the same under a bitmap
//! that leaves one item in a hundred. `.../level1/read` only reads the logits of such a step.

// One file for the bench and for `sidereal bench sid`.
#[path = "../src/cli/bench/walk.rs"]
#[allow(dead_code, reason = "`sidereal bench sid` asks for more")]
mod walk;

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sidereal::catalog::synthetic::{self, Skew};
use sidereal::catalog::{Catalog, Mask, TypeSpec};
use sidereal::device::cpu::logsum::log_sum_exp;
use sidereal::device::cpu::sample::TextSampler;
use sidereal::device::cpu::sid::{Search, StepLogits};
use sidereal::device::ops::{Normalizer, Sampling, SearchSpec, TextRow};
use sidereal::ids::TypeId;

use walk::{Walks, noise};

const WIDTH: u32 = 70;

fn catalog(levels: &[usize], skew: Skew) -> Arc<Catalog> {
    let items = std::env::var("SID_STEP_ITEMS").ok().and_then(|n| n.parse().ok()).unwrap_or(10_000_000);
    let spec = TypeSpec { name: "item".into(), levels: levels.to_vec(), token: "<s_{letter}_{code}>".into() };
    Arc::new(synthetic::catalog(&[spec], items, skew, 7).expect("the space is large enough"))
}

/// Logits of all levels: `[levels][rows, codes]`, another set for each try.
struct Inputs {
    values: Vec<Vec<f32>>,
    norms: Vec<Vec<f32>>,
    starts: Vec<usize>,
}

impl Inputs {
    fn new(levels: &[usize], seed: u64) -> Inputs {
        let rows = |level: usize| if level == 0 { 1 } else { WIDTH as usize };
        let values: Vec<Vec<f32>> = (0..levels.len())
            .map(|level| noise(rows(level) * levels[level], seed * 100 + level as u64))
            .collect();
        let sum = |row: &[f32]| log_sum_exp(row).expect("no NaN");
        let norms = values.iter().zip(levels).map(|(v, &codes)| v.chunks(codes).map(sum).collect()).collect();
        let starts = (0..WIDTH as usize).map(|row| row * levels[0]).collect();
        Inputs { values, norms, starts }
    }

    /// Advances by one level and returns the time it took.
    fn advance(&self, search: &mut Search, given: Option<()>) -> Duration {
        let level = search.level();
        let rows = search.columns().len();
        let norms = given.map(|()| &self.norms[level][..rows]);
        let logits = StepLogits { values: &self.values[level], starts: &self.starts[..rows], norms };
        let start = Instant::now();
        black_box(search.advance(level as u8, &logits).expect("the step is the next"));
        start.elapsed()
    }
}

fn spec(catalog: &Arc<Catalog>, masked: Option<usize>) -> SearchSpec {
    let index = catalog.index(TypeId(0));
    let all = Mask::all(index);
    let mask = match masked {
        Some(step) => {
            let gone: Vec<_> = (0..index.items() as u32).step_by(step).map(sidereal::ids::Rank).collect();
            all.excluding(index, &gone)
        }
        None => all,
    };
    SearchSpec {
        catalog: catalog.clone(),
        types: vec![(TypeId(0), Arc::new(mask))],
        delta: None,
        widths: vec![WIDTH; index.levels()],
        normalizer: Normalizer::Codebook,
        groups: 1,
        group_penalty: 0.0,
        max_per_prefix: None,
        sampling: None,
    }
}

/// Children that a search looks at, per level.
fn children(spec: &SearchSpec, inputs: &Inputs) -> Vec<u64> {
    let index = spec.catalog.index(TypeId(0));
    let mut search = Search::new(spec.clone()).expect("a plain search");
    let mut counts = Vec::new();
    let mut prefixes = vec![Vec::new()];
    for level in 0..index.levels() {
        let node = |prefix: &Vec<u16>| {
            let step = |node, (l, &code): (usize, &u16)| index.child(l, node, code).expect("alive").node;
            prefix.iter().enumerate().fold(index.root(), step)
        };
        counts.push(prefixes.iter().map(|p| index.children(level, node(p)).count() as u64).sum());
        inputs.advance(&mut search, Some(()));
        let code = |row: usize, l: usize| prefixes_at(&search, row, l, &prefixes);
        prefixes = (0..search.rows()).map(|row| (0..=level).map(|l| code(row, l)).collect()).collect();
    }
    counts
}

/// The code of a live row at a level, from the prefixes of the rows before.
fn prefixes_at(search: &Search, row: usize, level: usize, before: &[Vec<u16>]) -> u16 {
    match level + 1 == search.level() {
        true => search.row_code(row).2,
        false => before[search.ancestor_row(row, search.level() - 2)][level],
    }
}

fn sid_step(criterion: &mut Criterion) {
    let catalogs = [
        ("v8192x3", vec![8192; 3], "uniform", Skew::Uniform),
        ("v8192x3", vec![8192; 3], "zipf0.8", Skew::Zipf(0.8)),
        ("v8192x3", vec![8192; 3], "zipf1.0", Skew::Zipf(1.0)),
        ("v2048x8", vec![2048; 8], "uniform", Skew::Uniform),
        ("v2048x8", vec![2048; 8], "zipf0.8", Skew::Zipf(0.8)),
        ("v2048x8", vec![2048; 8], "zipf1.0", Skew::Zipf(1.0)),
    ];
    for (shape, levels, skew_name, skew) in catalogs {
        let catalog = catalog(&levels, skew);
        let spec = spec(&catalog, None);
        let tries: Vec<Inputs> = (0..4).map(|seed| Inputs::new(&levels, seed)).collect();
        let mut group = criterion.benchmark_group(format!("sid_step/w{WIDTH}/{shape}/{skew_name}"));
        group.sample_size(20);
        let all: Vec<Vec<u64>> = tries.iter().map(|inputs| children(&spec, inputs)).collect();
        for level in 0..levels.len() {
            let mean = all.iter().map(|counts| counts[level]).sum::<u64>() / all.len() as u64;
            group.throughput(Throughput::Elements(mean));
            for (name, given) in [("", Some(())), ("/with_norms", None)] {
                if level > 2 && given.is_none() {
                    continue;
                }
                group.bench_function(BenchmarkId::from_parameter(format!("level{level}{name}")), |b| {
                    b.iter_custom(|times| {
                        let mut total = Duration::ZERO;
                        for i in 0..times {
                            let inputs = &tries[i as usize % tries.len()];
                            let mut search = Search::new(spec.clone()).expect("a plain search");
                            (0..level).for_each(|_| _ = inputs.advance(&mut search, Some(())));
                            total += inputs.advance(&mut search, given);
                        }
                        total
                    });
                });
            }
            walks(&mut group, &catalog, level);
        }
        group.finish();
    }
}

/// Steps from ancestors of random items of those that a filter leaves, with and without it.
fn walks(group: &mut BenchmarkGroup<'_, WallTime>, catalog: &Arc<Catalog>, level: usize) {
    let index = catalog.index(TypeId(0));
    let all = Arc::new(Mask::all(index));
    let filter = Arc::new(walk::share(index, 0.01));
    let mut walks = Walks::new(catalog, &filter, level, WIDTH as usize);
    group.throughput(Throughput::Elements((walks.children() as u64).max(1)));
    for (name, mask) in [("walk", &all), ("filter1pct", &filter)] {
        let mut at = 0;
        group.bench_function(BenchmarkId::from_parameter(format!("level{level}/{name}")), |b| {
            b.iter_custom(|times| {
                let mut step = |_| {
                    at += 1;
                    walks.step(at, mask, WIDTH as usize)
                };
                (0..times).map(&mut step).sum()
            });
        });
    }
    let mut at = 0;
    group.bench_function(BenchmarkId::from_parameter(format!("level{level}/read")), |b| {
        b.iter_custom(|times| {
            at += times as usize;
            (0..times as usize).map(|i| walks.read(at + i)).sum()
        });
    });
}

fn text(criterion: &mut Criterion) {
    let vocab = 151_936;
    let mask = vec![u64::MAX; vocab / 64];
    let mut sampler = TextSampler::new(vocab, &mask, None).expect("the mask fits");
    let logits: Vec<f32> = noise(vocab, 3).iter().map(|l| l * 2.0).collect();
    let plain = Sampling::default;
    let rows = [
        ("greedy", Sampling { temperature: 0.0, ..plain() }),
        ("temperature", plain()),
        ("top_k50", Sampling { top_k: 50, ..plain() }),
        ("top_p0.9", Sampling { top_p: 0.9, ..plain() }),
        ("top_k50_top_p0.9", Sampling { top_k: 50, top_p: 0.9, ..plain() }),
    ];
    let mut group = criterion.benchmark_group("sample_text/v151936");
    group.throughput(Throughput::Elements(vocab as u64));
    for (name, sampling) in rows {
        let mut row = TextRow {
            row: 0,
            sampling: Arc::new(sampling),
            draw: 0,
            counts: Vec::new(),
            allow_open: false,
            banned: Vec::new(),
            top_logprobs: 0,
            target: None,
        };
        group.bench_function(name, |b| {
            b.iter(|| {
                row.draw += 1;
                black_box(sampler.sample(&logits, &row))
            });
        });
    }
    group.finish();
}

criterion_group!(benches, text, sid_step);
criterion_main!(benches);
