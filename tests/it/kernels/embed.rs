//! Embedding of tokens, soft tokens and beams.

use half::{bf16, f16};

use super::drivers_in_every_order;
use crate::beams::oracle::Dice;
use sidereal::device::cuda::args::*;
use sidereal::device::cuda::driver::{DevicePtr, Driver};
use sidereal::device::cuda::embed::Embed;
use sidereal::device::ops::DType;

/// Sizes of a step, and what its rows are.
struct Step {
    dtype: DType,
    vocab: usize,
    hidden: usize,
    rows: Vec<RowInfo>,
    row_segment: Vec<u32>,
    segments: Vec<SegmentInfo>,
    soft: Vec<f32>,
    counts: StepCounts,
    max_rows: usize,
}

const LIVE: usize = 5;

fn table(step: &Step) -> Vec<u16> {
    (0..step.vocab * step.hidden).map(|i| (i as u32).wrapping_mul(40_503) as u16 & 0x3bff).collect()
}

/// Tokens of the beams of the only search.
fn beam_token(step: &Step, beam: usize) -> u32 {
    (beam * 7 + 1) as u32 % step.vocab as u32
}

fn rounded(step: &Step, value: f32) -> u16 {
    match step.dtype {
        DType::Bf16 => bf16::from_f32(value).to_bits(),
        _ => f16::from_f32(value).to_bits(),
    }
}

/// What a row must be.
fn expected(step: &Step, table: &[u16], row: usize) -> Vec<u16> {
    let info = step.rows[row];
    let value = info.value as usize;
    let soft_tokens = step.soft.len() / step.hidden;
    let token = match info.source {
        SOURCE_TOKEN => value,
        SOURCE_SOFT if value < soft_tokens => {
            let soft = &step.soft[value * step.hidden..][..step.hidden];
            return soft.iter().map(|&v| rounded(step, v)).collect();
        }
        SOURCE_BEAM => {
            let segment = step.segments.get(step.row_segment[row] as usize);
            let live = segment.is_some_and(|s| s.kind == SEGMENT_BEAM && s.beams != DevicePtr::NULL);
            if live && value < LIVE { beam_token(step, value) as usize } else { usize::MAX }
        }
        _ => usize::MAX,
    };
    match token < step.vocab {
        true => table[token * step.hidden..][..step.hidden].to_vec(),
        false => vec![0; step.hidden],
    }
}

/// Runs a step; `x` begins as NaN. Rows of segment 1 are beams.
fn run(driver: &mut dyn Driver, step: &mut Step, table: &[u16]) -> Vec<u16> {
    let x_bytes = step.max_rows * step.hidden * 2;
    let sizes = [
        table.len() * 2,
        step.max_rows * 16,
        step.max_rows * 4,
        step.segments.len() * 64,
        step.soft.len() * 4,
        size_of::<StepCounts>(),
        x_bytes,
        BEAM_VIEW_BYTES,
    ];
    let at = driver.allocate("embed test", &sizes).unwrap();
    let mut view = vec![u32::MAX; BEAM_VIEW_BYTES / 4];
    view[0] = LIVE as u32;
    (0..LIVE).for_each(|beam| view[4 + beam] = beam_token(step, beam));
    step.segments.iter_mut().filter(|s| s.kind == SEGMENT_BEAM).for_each(|s| s.beams = at[7]);
    driver.upload(at[0], bytemuck::cast_slice(table)).unwrap();
    driver.upload(at[1], bytemuck::cast_slice(&step.rows)).unwrap();
    driver.upload(at[2], bytemuck::cast_slice(&step.row_segment)).unwrap();
    driver.upload(at[3], bytemuck::cast_slice(&step.segments)).unwrap();
    driver.upload(at[4], bytemuck::cast_slice(&step.soft)).unwrap();
    driver.upload(at[5], bytemuck::bytes_of(&step.counts)).unwrap();
    driver.upload(at[7], bytemuck::cast_slice(&view)).unwrap();
    driver.fill(at[6], 0xff, x_bytes).unwrap();
    let args = EmbedArgs {
        table: at[0],
        rows: at[1],
        row_segment: at[2],
        segments: at[3],
        soft: at[4],
        counts: at[5],
        x: at[6],
        hidden: step.hidden as u32,
        vocab: step.vocab as u32,
        soft_tokens: (step.soft.len() / step.hidden) as u32,
        max_rows: step.max_rows as u32,
        max_segments: step.segments.len() as u32,
        reserved: 0,
    };
    Embed::new(driver, step.dtype).unwrap().enqueue(driver, &args, step.max_rows as u32).unwrap();
    let x = driver.download(at[6], x_bytes).unwrap();
    driver.free(at[0]).unwrap();
    bytemuck::allocation::pod_collect_to_vec(&x)
}

/// Rows of every source, in and out of bounds; fewer than there is room for.
fn step(dtype: DType, vocab: usize, hidden: usize, dice: &mut Dice) -> Step {
    let (rows, max_rows, soft_tokens) = (23, 26, 3);
    let segment = |kind| SegmentInfo { kind, ..SegmentInfo::default() };
    let mut step = Step {
        dtype,
        vocab,
        hidden,
        rows: vec![RowInfo { source: 9, value: 9, position: u32::MAX, slot: u32::MAX }; max_rows],
        row_segment: vec![u32::MAX; max_rows],
        segments: vec![segment(SEGMENT_CAUSAL), segment(SEGMENT_BEAM)],
        soft: (0..soft_tokens * hidden).map(|i| (i as f32 - 40.0) * 0.123_456).collect(),
        counts: StepCounts { rows: rows as u32, segments: 2, ..StepCounts::default() },
        max_rows,
    };
    for row in 0..rows {
        let source = dice.below(4) as u32;
        let bound = [vocab, soft_tokens, LIVE, 4][source as usize];
        let value = if dice.once_in(4) { bound + dice.below(3) } else { dice.below(bound) };
        step.rows[row] = RowInfo { source, value: value as u32, ..step.rows[row] };
        step.row_segment[row] = [1, 1, 0, 2, u32::MAX][dice.below(5)];
    }
    step
}

#[test]
fn rows_of_every_source_and_size() {
    for (_, mut driver) in drivers_in_every_order() {
        let driver = &mut *driver;
        let mut dice = Dice(3);
        for dtype in [DType::Bf16, DType::F16] {
            for (vocab, hidden) in [(1, 8), (128, 40), (4400, 48), (65, 1024), (17, 1032), (9, 4096)] {
                let mut step = step(dtype, vocab, hidden, &mut dice);
                let table = table(&step);
                let x = run(driver, &mut step, &table);
                for (row, found) in x.chunks(hidden).enumerate() {
                    let expected = match row < step.counts.rows as usize {
                        true => expected(&step, &table, row),
                        false => vec![u16::MAX; hidden],
                    };
                    assert_eq!(found, expected, "row {row} of {vocab} x {hidden}: {:?}", step.rows[row]);
                }
            }
        }
    }
}

#[test]
fn hostile_records_fault_nothing() {
    for (_, mut driver) in drivers_in_every_order() {
        let driver = &mut *driver;
        let mut dice = Dice(4);
        for round in 0..30 {
            let mut step = step(DType::Bf16, 100, 40, &mut dice);
            let table = table(&step);
            for row in &mut step.rows {
                let random = |dice: &mut Dice| [dice.next() as u32, u32::MAX, 2][dice.below(3)];
                (row.source, row.value) = (dice.below(4) as u32, random(&mut dice));
            }
            step.row_segment.iter_mut().for_each(|segment| *segment = dice.next() as u32 >> dice.below(32));
            step.counts = StepCounts {
                rows: [u32::MAX, 26, 27][round % 3],
                segments: dice.next() as u32 >> dice.below(32),
                ..StepCounts::default()
            };
            let x = run(driver, &mut step, &table);
            assert!(x.iter().all(|&bits| bits != u16::MAX), "a row was left out");
        }
    }
}
