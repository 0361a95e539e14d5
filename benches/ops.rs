//! The CPU device's operations at the shapes of a 0.6B decoder, each beside its limit.
//!
//! `read_bandwidth` is the limit of everything that streams (bytes per second), `peak` that of what multiplies (elements are
//! floating-point operations). `SIDEREAL_THREADS` sets the threads.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sidereal::device::cpu::{Columns, CpuDevice, CpuOptions, Reader};
use sidereal::device::ops::*;
use sidereal::ids::{BlockId, TokenId};
use sidereal::kv::BLOCK_TOKENS;

const HIDDEN: usize = 1024;
const HEADS: usize = 16;
const KV_HEADS: usize = 8;
const HEAD_DIM: usize = 128;
const FFN: usize = 3072;
const VOCAB: usize = 1024;
const ROWS: usize = 512;
const BLOCKS: usize = 512;
/// Layers, so that weights come from memory and not from a cache: 31 MB each in bf16.
const LAYERS: usize = 16;

fn threads() -> Option<usize> {
    std::env::var("SIDEREAL_THREADS").ok().and_then(|t| t.parse().ok())
}

fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn device(weights: DType, dtype: DType) -> CpuDevice {
    let matrix = |seed: usize, n: usize, k: usize| {
        let values: Vec<f32> = noise(seed as u64, n * k).iter().map(|v| v * 0.05).collect();
        Tensor::rounded(weights, vec![n, k], &values)
    };
    let ones = |n: usize| Tensor::rounded(weights, vec![n], &vec![1.0; n]);
    let (q, kv) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
    let layers: Vec<LayerWeights> = (0..LAYERS)
        .map(|i| LayerWeights {
            input_norm: ones(HIDDEN),
            q: matrix(10 * i, q, HIDDEN),
            k: matrix(10 * i + 1, kv, HIDDEN),
            v: matrix(10 * i + 2, kv, HIDDEN),
            qkv_bias: None,
            qk_norm: Some([ones(HEAD_DIM), ones(HEAD_DIM)]),
            o: matrix(10 * i + 3, HIDDEN, q),
            o_bias: None,
            post_norm: ones(HIDDEN),
            gate: matrix(10 * i + 4, FFN, HIDDEN),
            up: matrix(10 * i + 5, FFN, HIDDEN),
            down: matrix(10 * i + 6, HIDDEN, FFN),
        })
        .collect();
    let embed = matrix(999, VOCAB, HIDDEN);
    let config = DeviceConfig {
        shape: Shape {
            layers: LAYERS,
            hidden: HIDDEN,
            heads: HEADS,
            kv_heads: KV_HEADS,
            head_dim: HEAD_DIM,
            ffn: FFN,
            vocab: VOCAB,
            eps: 1e-6,
            max_positions: 8192,
            window: vec![None; LAYERS],
            rope: Rope {
                inv_freq: (0..HEAD_DIM / 2).map(|i| 1e6f32.powf(-(i as f32) / 64.0)).collect(),
                scale: 1.0,
            },
        },
        weights: Weights { head: embed.clone(), embed, layers, norm: ones(HIDDEN) },
        dtype,
        cache_blocks: BLOCKS,
        max_rows: ROWS,
        text_tokens: every_token(VOCAB),
        layout: None,
    };
    CpuDevice::new(config, CpuOptions { threads: threads(), simd: None }).expect("a device")
}

/// Rows `context..context + rows` of each of `batch` sequences, which share the cache evenly.
fn plan(batch: usize, context: usize, rows: usize) -> Plan {
    let mut plan = Plan::default();
    let blocks = (context + rows).div_ceil(BLOCK_TOKENS);
    for sequence in 0..batch {
        let table = plan.blocks.len() as u32;
        let first = sequence * (BLOCKS / batch);
        plan.blocks.extend((first..first + blocks).map(|b| BlockId(b as u32)));
        let row = plan.rows() as u32;
        for position in context..context + rows {
            plan.tokens.push(TokenId((position % VOCAB) as u32));
            plan.positions.push(position as u32);
            plan.slots.push((first * BLOCK_TOKENS + position) as u32);
        }
        plan.segments.push(Segment {
            rows: row..plan.rows() as u32,
            table: table..plan.blocks.len() as u32,
            context: context as u32,
            kind: SegmentKind::Causal,
        });
    }
    plan
}

fn layer(device: &mut CpuDevice, plan: &Plan, layer: usize) {
    device.attention_input(plan, layer).expect("attention_input");
    device.attention(plan, layer).expect("attention");
    device.attention_output(plan, layer).expect("attention_output");
    device.mlp_input(plan, layer).expect("mlp_input");
    device.mlp_output(plan, layer).expect("mlp_output");
}

/// Writes a plan's keys and values into all layers.
fn fill(device: &mut CpuDevice, plan: &Plan) {
    device.begin(plan).expect("plan");
    device.embed(plan).expect("embed");
    (0..LAYERS).for_each(|l| device.attention_input(plan, l).expect("attention_input"));
}

fn limits(c: &mut Criterion) {
    let mut group = c.benchmark_group("limit");
    group.throughput(Throughput::Bytes(Reader::BYTES as u64)).sample_size(10);
    group.bench_function("read_bandwidth", |b| {
        let threads =
            threads().unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()));
        let mut reader = Reader::new(threads).expect("a reader");
        b.iter(|| black_box(reader.read()));
    });
    group.finish();
}

fn types() -> [(&'static str, DType, DType); 4] {
    [
        ("bf16", DType::Bf16, DType::Bf16),
        ("bf16_in_f32", DType::Bf16, DType::F32),
        ("f16", DType::F16, DType::F16),
        ("f32", DType::F32, DType::F32),
    ]
}

/// Products over all layers: every weight matrix but the embedding.
fn products(c: &mut Criterion) {
    let per_layer = HIDDEN * (2 * HEADS * HEAD_DIM + 2 * KV_HEADS * HEAD_DIM + 3 * FFN);
    for (name, weights, dtype) in types() {
        let mut device = device(weights, dtype);
        let mut group = c.benchmark_group("decode");
        group.sample_size(20).throughput(Throughput::Bytes((LAYERS * per_layer * weights.size()) as u64));
        for rows in [1, 2, 4, 8, 16] {
            let plan = plan(rows, 0, 1);
            device.begin(&plan).expect("plan");
            device.embed(&plan).expect("embed");
            group.bench_function(BenchmarkId::new(name, rows), |b| {
                b.iter(|| (0..LAYERS).for_each(|l| layer(&mut device, &plan, l)));
            });
        }
        group.finish();
        let mut group = c.benchmark_group("gemm");
        for (n, k) in [(4096, HIDDEN), (HIDDEN, 2048), (2 * FFN, HIDDEN), (HIDDEN, FFN)] {
            let x = noise(7, ROWS * k);
            let w = Tensor::rounded(weights, vec![n, k], &noise(8, n * k));
            let mut out = vec![0.0; ROWS * n];
            group.sample_size(20).throughput(Throughput::Elements(2 * (ROWS * n * k) as u64));
            group.bench_function(BenchmarkId::new(name, format!("{ROWS}x{n}x{k}")), |b| {
                b.iter(|| device.matmul(&x, &w, Columns::Range(0..n), &mut out).expect("matmul"));
            });
        }
        group.finish();
    }
}

fn attention(c: &mut Criterion) {
    for (name, weights, dtype) in types() {
        let mut device = device(weights, dtype);
        let mut group = c.benchmark_group("attention");
        for (what, batch, context, rows) in
            [("prefill", 1, 0, ROWS), ("decode", 1, 1000, 1), ("decode", 1, 4000, 1), ("decode", 8, 900, 1)]
        {
            // Keys that were never written would all be one page of zeros.
            for first in (0..context).step_by(ROWS / batch) {
                let written = plan(batch, first, (ROWS / batch).min(context - first));
                fill(&mut device, &written);
            }
            let plan = plan(batch, context, rows);
            fill(&mut device, &plan);
            if rows > 1 {
                let keys = batch * rows * (2 * context + rows + 1) / 2;
                group.throughput(Throughput::Elements((4 * LAYERS * keys * HEADS * HEAD_DIM) as u64));
            } else {
                let keys = batch * (context + 1) * KV_HEADS * HEAD_DIM * 2 * dtype.size();
                group.throughput(Throughput::Bytes((LAYERS * keys) as u64));
            }
            group.sample_size(20);
            group.bench_function(BenchmarkId::new(name, format!("{what}/{batch}x{context}")), |b| {
                b.iter(|| (0..LAYERS).for_each(|l| device.attention(&plan, l).expect("attention")));
            });
        }
        group.finish();
    }
}

fn layers(c: &mut Criterion) {
    for (name, weights, dtype) in types() {
        let mut device = device(weights, dtype);
        let mut group = c.benchmark_group("layers");
        let plan = plan(1, 0, ROWS);
        device.begin(&plan).expect("plan");
        device.embed(&plan).expect("embed");
        group.sample_size(10).throughput(Throughput::Elements(ROWS as u64));
        group.bench_function(BenchmarkId::new(name, format!("prefill/{ROWS}")), |b| {
            b.iter(|| (0..LAYERS).for_each(|l| layer(&mut device, &plan, l)));
        });
        group.finish();
    }
}

criterion_group!(benches, limits, products, attention, layers);
criterion_main!(benches);
