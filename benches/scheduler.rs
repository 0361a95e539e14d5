//! What a step costs the host: planning, taking the outcome apart, events. The device is the hash device, whose own time
//! is not counted. Limit: 50 us at 256 rows.

use std::sync::atomic::Ordering;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sidereal::device::hash::HashDevice;
use sidereal::engine::{EngineBuilder, EngineParts, EventStream, Output, Request, Turn};

fn engine() -> EngineParts {
    EngineBuilder::tiny()
        .expect("the demonstration")
        .max_rows(512)
        .device(|config| Ok(Box::new(HashDevice::new(config, Duration::ZERO)?)))
        .parts()
        .expect("an engine")
}

fn text(i: usize) -> Request {
    Request {
        prompt_token_ids: Some((0..24).map(|t| 5 + (i * 7 + t) as i64 % 200).collect()),
        max_tokens: Some(400),
        ignore_eos: Some(true),
        temperature: Some(0.0),
        ..Request::default()
    }
}

fn items(i: usize) -> Request {
    Request {
        prompt_token_ids: text(i).prompt_token_ids,
        output: Some(Output::Items),
        n: Some(10),
        ..Request::default()
    }
}

/// Host time per step while `count` requests of a kind run; finished ones are replaced.
fn host_time(parts: &mut EngineParts, steps: u64, count: usize, make: fn(usize) -> Request) -> Duration {
    let mut streams: Vec<EventStream> = Vec::new();
    let mut made = 0;
    let mut submit = |parts: &mut EngineParts, streams: &mut Vec<EventStream>| {
        while parts.wheel.jobs() < count {
            streams.push(parts.submit(&make(made)).expect("valid"));
            made += 1;
        }
    };
    submit(parts, &mut streams);
    // The prompts.
    for _ in 0..24 * count / 512 + 2 {
        parts.wheel.turn().expect("no fault");
        submit(parts, &mut streams);
    }
    let before = parts.counters.host_nanos.load(Ordering::Relaxed);
    for _ in 0..steps {
        assert_eq!(parts.wheel.turn().expect("no fault"), Turn::Ran);
        submit(parts, &mut streams);
    }
    let nanos = parts.counters.host_nanos.load(Ordering::Relaxed) - before;
    drop(streams);
    while parts.wheel.jobs() > 0 {
        parts.wheel.turn().expect("no fault");
    }
    Duration::from_nanos(nanos)
}

fn scheduler(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("scheduler_step");
    let mut parts = engine();
    for rows in [1usize, 32, 256] {
        group.throughput(Throughput::Elements(rows as u64));
        group.bench_function(BenchmarkId::new("text", rows), |bencher| {
            bencher.iter_custom(|steps| host_time(&mut parts, steps, rows, text));
        });
    }
    // Eight searches of up to 30 beams.
    group.throughput(Throughput::Elements(8 * 30));
    group.bench_function(BenchmarkId::new("items", 8 * 30), |bencher| {
        bencher.iter_custom(|steps| host_time(&mut parts, steps, 8, items));
    });
    group.finish();
}

criterion_group!(benches, scheduler);
criterion_main!(benches);
