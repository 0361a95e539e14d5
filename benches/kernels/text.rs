//! Embedding and text sampling.

use std::sync::Arc;

use criterion::Criterion;
use sidereal::device::cuda::args::{EmbedArgs, RowInfo, StepCounts};
use sidereal::device::cuda::embed::Embed;
use sidereal::device::cuda::sample::{TextInputs, TextSamplerCuda, TextSizes};
use sidereal::device::ops::{DType, Sampling, TextRow, every_token};

use crate::gpu::{Gpu, Work, noise};

const VOCAB: usize = 131_072;

pub fn benches(c: &mut Criterion, gpu: &mut Gpu) {
    [1, 64, 8192].into_iter().for_each(|rows| embed(c, gpu, rows));
    let plain = Sampling::default;
    let settings = [
        ("greedy", Sampling { temperature: 0.0, ..plain() }),
        ("plain", plain()),
        ("top_k50", Sampling { top_k: 50, ..plain() }),
        ("top_p0.9", Sampling { top_p: 0.9, ..plain() }),
        ("top_k50_top_p0.9", Sampling { top_k: 50, top_p: 0.9, ..plain() }),
    ];
    for rows in [1, 16, 128] {
        for (name, sampling) in &settings {
            // Logits of a model that knows what it wants, and of one that does not.
            sample(c, gpu, (&format!("sample/{name}"), "peaked", 9.0), (rows, sampling));
            sample(c, gpu, (&format!("sample/{name}"), "flat", 1.0), (rows, sampling));
        }
    }
}

fn embed(c: &mut Criterion, gpu: &mut Gpu, rows: usize) {
    let hidden = 2048;
    let id = format!("{rows}x{hidden}");
    if !gpu.wanted(&format!("embed/{id}")) {
        return;
    }
    let table = gpu.random(VOCAB * hidden * 2);
    let info: Vec<RowInfo> = (0..rows as u32)
        .map(|i| RowInfo { value: i.wrapping_mul(2_654_435_761) % VOCAB as u32, ..RowInfo::default() })
        .collect();
    let counts = StepCounts { rows: rows as u32, ..StepCounts::default() };
    let (rows_at, counts_at) = (gpu.upload(&info), gpu.upload(&[counts]));
    let x = gpu.allocate(&[rows * hidden * 2])[0];
    let args = EmbedArgs {
        table,
        rows: rows_at,
        row_segment: rows_at,
        segments: rows_at,
        soft: rows_at,
        counts: counts_at,
        x,
        hidden: hidden as u32,
        vocab: VOCAB as u32,
        max_rows: rows as u32,
        ..EmbedArgs::default()
    };
    let kernel = Embed::new(&mut *gpu.driver, DType::Bf16).expect("a kernel");
    let work = Work { bytes: 4 * rows * hidden, operations: 0.0 };
    gpu.bench(c, ("embed", &id), (work, 1), |driver, _| kernel.enqueue(driver, &args, rows as u32));
    [table, rows_at, counts_at, x].into_iter().for_each(|at| gpu.driver.free(at).expect("freed"));
}

/// Logits whose spread grows with `scale`: sums of four even ones.
fn sample(
    c: &mut Criterion,
    gpu: &mut Gpu,
    (group, kind, scale): (&str, &str, f32),
    (rows, sampling): (usize, &Sampling),
) {
    let id = format!("{kind}/{rows}x{VOCAB}");
    if !gpu.wanted(&format!("{group}/{id}")) {
        return;
    }
    let sets = gpu.sets(rows * VOCAB * 4);
    let sizes = TextSizes {
        vocab: VOCAB,
        text_tokens: &every_token(VOCAB),
        opener: None,
        max_rows: rows,
        max_edits: 1,
    };
    let mut sampler = TextSamplerCuda::new(&mut *gpu.driver, &sizes).expect("a sampler");
    let row = |i: usize| TextRow {
        row: i as u32,
        sampling: Arc::new(Sampling { seed: i as u64, ..sampling.clone() }),
        draw: 0,
        counts: Vec::new(),
        allow_open: false,
        banned: Vec::new(),
        top_logprobs: 0,
        target: None,
    };
    let planned: Vec<TextRow> = (0..rows).map(row).collect();
    sampler.plan(&planned, |i| (i * VOCAB) as u64).expect("a plan");
    let counts = StepCounts { text_rows: rows as u32, ..StepCounts::default() };
    let (records, counts) = (gpu.upload(sampler.records()), gpu.upload(&[counts]));
    let logits: Vec<_> = (0..sets)
        .map(|set| {
            let even: Vec<f32> = noise(set as u64 + 1, rows * VOCAB + 3).collect();
            let values: Vec<f32> = even.windows(4).map(|w| w.iter().sum::<f32>() * scale).collect();
            gpu.upload(&values)
        })
        .collect();
    let work = Work { bytes: rows * VOCAB * 4, operations: 0.0 };
    gpu.bench(c, (group, &id), (work, sets), |driver, set| {
        let inputs =
            TextInputs { logits: logits[set], logits_len: rows * VOCAB, records, edits: records, counts };
        sampler.enqueue(driver, &inputs, rows as u32)
    });
    logits.into_iter().chain([records, counts]).for_each(|at| gpu.driver.free(at).expect("freed"));
    sampler.free(&mut *gpu.driver).expect("freed");
}
