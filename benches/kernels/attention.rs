//! Attention over the paged cache, 32 query heads on 8 key/value heads of 128: decoding and prefill, blocks in random order. Reproducible mode has a
//! prefill kernel of its own where the device has products of warpgroups.

use criterion::Criterion;
use sidereal::device::cuda::args::StepCounts;
use sidereal::device::cuda::attention::{
    Attention, AttentionBucket, AttentionBuffers, AttentionLayer, AttentionPlan, AttentionShape,
};
use sidereal::device::cuda::driver::DevicePtr;
use sidereal::device::ops::{DType, Plan, Segment, SegmentKind};
use sidereal::ids::{BlockId, TokenId};
use sidereal::kv::BLOCK_TOKENS;

use crate::gpu::{Gpu, Work};

const HEADS: usize = 32;
const KV_HEADS: usize = 8;
const HEAD_DIM: usize = 128;

pub fn benches(c: &mut Criterion, gpu: &mut Gpu) {
    for (batch, context) in [(1, 1024), (1, 4096), (8, 1024), (32, 1024), (32, 4096), (128, 1024)] {
        attention(c, gpu, ("decode", batch), (context - 1, 1));
    }
    for (batch, rows) in [(1, 1024), (1, 4096), (8, 1024)] {
        attention(c, gpu, ("prefill", batch), (0, rows));
        attention(c, gpu, ("prefill/reproducible", batch), (0, rows));
    }
}

/// Sequences of `context` cached keys and `rows` new rows each, on blocks scattered over the cache.
fn plan(batch: usize, context: usize, rows: usize) -> Plan {
    let mut plan = Plan::default();
    let blocks = (context + rows).div_ceil(BLOCK_TOKENS);
    let all = batch * blocks;
    // A step that shares no factor with the number of blocks visits them all.
    let step = (all / 2..all).map(|s| s.max(1)).find(|&s| common_factor(s, all) == 1).unwrap_or(1);
    for sequence in 0..batch {
        let (row, table) = (plan.rows() as u32, plan.blocks.len() as u32);
        plan.blocks
            .extend((sequence * blocks..(sequence + 1) * blocks).map(|i| BlockId((i * step % all) as u32)));
        for position in context..context + rows {
            let block = plan.blocks[table as usize + position / BLOCK_TOKENS];
            plan.tokens.push(TokenId(0));
            plan.positions.push(position as u32);
            plan.slots.push(block.0 * BLOCK_TOKENS as u32 + (position % BLOCK_TOKENS) as u32);
        }
        let (rows, table) = (row..plan.rows() as u32, table..plan.blocks.len() as u32);
        plan.segments.push(Segment { rows, table, context: context as u32, kind: SegmentKind::Causal });
    }
    plan
}

fn common_factor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { common_factor(b, a % b) }
}

fn attention(
    c: &mut Criterion,
    gpu: &mut Gpu,
    (what, batch): (&str, usize),
    (context, rows): (usize, usize),
) {
    let id = format!("{batch}x{}", context + rows);
    if !gpu.wanted(&format!("attention/{what}/{id}")) {
        return;
    }
    let reproducible = what.ends_with("reproducible");
    let plan = plan(batch, context, rows);
    let (max_items, max_units) = (65_536, 16_384);
    let shape = AttentionShape {
        heads: HEADS as u32,
        kv_heads: KV_HEADS as u32,
        head_dim: HEAD_DIM as u32,
        cache_blocks: plan.blocks.len() as u32,
        max_rows: plan.rows() as u32,
        max_segments: plan.segments.len() as u32,
        max_items,
        max_table: plan.blocks.len() as u32,
        max_units,
    };
    let kernels = Attention::new(&mut *gpu.driver, DType::Bf16, shape, reproducible).expect("kernels");
    let mut tiles = AttentionPlan::default();
    tiles.build(&plan, &kernels.limits(), |_| DevicePtr::NULL).expect("tiles");
    let counts = StepCounts {
        rows: plan.rows() as u32,
        segments: plan.segments.len() as u32,
        narrow_items: tiles.narrow.len() as u32,
        wide_items: tiles.wide.len() as u32,
        blocks: plan.blocks.len() as u32,
        ..StepCounts::default()
    };
    let blocks: Vec<u32> = plan.blocks.iter().map(|block| block.0).collect();
    let row_bytes = HEADS * HEAD_DIM * 2;
    let partial = gpu.allocate(&shape.partial_bytes());
    let buffers = AttentionBuffers {
        q: gpu.random(plan.rows() * row_bytes),
        out: gpu.allocate(&[plan.rows() * row_bytes])[0],
        partial: [partial[0], partial[1]],
        counts: gpu.upload(&[counts]),
        segments: gpu.upload(&tiles.segments),
        narrow: gpu.upload(&tiles.narrow),
        wide: gpu.upload(&tiles.wide),
        row_segment: gpu.upload(&tiles.row_segment),
        blocks: gpu.upload(&blocks),
    };
    let cache = plan.blocks.len() * BLOCK_TOKENS * KV_HEADS * HEAD_DIM * 2;
    let sets = gpu.sets(2 * cache);
    let caches: Vec<[DevicePtr; 2]> = (0..sets).map(|_| [gpu.random(cache), gpu.random(cache)]).collect();
    let layers: Vec<AttentionLayer> =
        caches.iter().map(|&cache| kernels.layer(&mut *gpu.driver, cache, None).expect("a layer")).collect();
    let joined_rows = if tiles.units > 0 { plan.rows() as u32 } else { 0 };
    let bucket = AttentionBucket { narrow: counts.narrow_items, wide: counts.wide_items, joined_rows };
    let pairs = batch * rows * (2 * context + rows + 1) / 2;
    let keys = batch * (context + rows);
    let work = Work {
        bytes: 2 * keys * KV_HEADS * HEAD_DIM * 2 + 2 * plan.rows() * row_bytes,
        operations: 4.0 * pairs as f64 * (HEADS * HEAD_DIM) as f64,
    };
    gpu.bench(c, (&format!("attention/{what}"), &id), (work, sets), |driver, set| {
        kernels.enqueue(driver, &buffers, &layers[set], &bucket)
    });
    let used = [buffers.q, buffers.out, partial[0], buffers.counts, buffers.segments, buffers.narrow];
    let more = [buffers.wide, buffers.row_segment, buffers.blocks];
    used.into_iter()
        .chain(more)
        .chain(caches.into_iter().flatten())
        .for_each(|at| gpu.driver.free(at).expect("freed"));
}
