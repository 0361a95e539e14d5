//! `kernels/attention.cu`, `attention_hopper.cu` and `combine.cu` against float64, bit against bit, and against records that lie.

pub(super) mod case;
mod plan;

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use bytemuck::cast_slice;
use case::{Case, MODEL, Model, OnDevice, Part, beams, causal, hash};
use sidereal::device::cuda::attention::{
    Attention, AttentionBucket, AttentionLimits, AttentionPlan, AttentionShape, WIDE,
};
use sidereal::device::cuda::driver::Driver;
use sidereal::device::ops::DType;

use super::{drivers, drivers_in_every_order};

const CONTEXTS: [u32; 11] = [0, 1, 15, 16, 17, 63, 64, 65, 255, 256, 300];
const ROWS: [u32; 5] = [1, 2, 5, 17, 70];

/// Every other combination of context and rows.
fn grid() -> Vec<Part> {
    let all = CONTEXTS.iter().flat_map(|&c| ROWS.iter().map(move |&r| causal(r, c)));
    all.enumerate().filter(|(i, _)| i % 2 == 0).map(|(_, part)| part).collect()
}

/// Splits at 256 keys, whatever the batch.
fn cut(case: &Case) -> AttentionLimits {
    AttentionLimits { multiprocessors: 4096, ..case.limits() }
}

#[test]
fn rows_see_exactly_their_keys() {
    for (_, mut driver) in drivers() {
        let narrow_heads = [(1, None), (4, Some(1)), (3, Some(40)), (7, None), (2, Some(257))];
        let wide_heads = [(64, 1, None), (64, 3, Some(40)), (128, 2, Some(257))];
        for (head_dim, group, window) in narrow_heads.map(|(g, w)| (16, g, w)).into_iter().chain(wide_heads) {
            let model = Model { head_dim, group, window, kv_heads: 1, counting: true, ..MODEL };
            let mut parts = grid();
            parts.extend([beams(5, 70, 2, 4), beams(30, 256, 0, 30), beams(1, 3, 3, 1), beams(3, 300, 1, 2)]);
            let case = Case::new(model, &parts);
            case.check(&case.run(&mut *driver, &case.limits()), "balanced");
            case.check(&case.run(&mut *driver, &cut(&case)), "cut");
        }
    }
}

#[test]
fn every_shape_agrees_with_float64() {
    for (_, mut driver) in drivers() {
        let parts = [causal(1, 300), causal(17, 48), causal(2, 0), beams(3, 270, 2, 3), causal(9, 513)];
        for dtype in [DType::Bf16, DType::F16] {
            for (head_dim, group) in [(16, 7), (32, 3), (64, 4), (128, 2), (128, 1)] {
                let model = Model { dtype, head_dim, group, kv_heads: 128 / head_dim, ..MODEL };
                let case = Case::new(model, &parts);
                let kernels = case.kernels(&mut *driver, &case.limits());
                let bulk = head_dim >= 64 && driver.properties().capability == (9, 0);
                assert_eq!(kernels.wide(), WIDE[usize::from(bulk)]);
                case.check(&case.run(&mut *driver, &case.limits()), "balanced");
                case.check(&case.run(&mut *driver, &cut(&case)), "cut");
                let limits = AttentionLimits { reproducible: true, ..case.limits() };
                assert_eq!(case.kernels(&mut *driver, &limits).wide(), WIDE[0]);
                case.check(&case.run(&mut *driver, &limits), "reproducible");
            }
        }
    }
}

#[test]
fn beams_see_their_ancestors_and_themselves() {
    for (_, mut driver) in drivers() {
        for window in [None, Some(2), Some(20)] {
            let model = Model { window, group: 4, kv_heads: 1, ..MODEL };
            let mut parts = Vec::new();
            for (level, rows, live) in [(0, 1, 1), (1, 3, 3), (2, 30, 29), (3, 30, 1), (3, 3, 0), (15, 5, 5)]
            {
                parts.push(beams(rows, 17 * level + 1, level, live));
                parts.push(causal(2, level));
            }
            let case = Case::new(model, &parts);
            case.check(&case.run(&mut *driver, &case.limits()), "balanced");
        }
        let wide = [beams(520, 33, 1, 513)];
        let case = Case::new(Model { kv_heads: 1, counting: true, ..MODEL }, &wide);
        case.check(&case.run(&mut *driver, &case.limits()), "a wide search");
    }
}

#[test]
fn orders_of_threads_and_repetition_change_no_bit() {
    let model = Model { head_dim: 64, group: 3, kv_heads: 1, ..MODEL };
    let parts = [causal(1, 600), causal(40, 520), causal(70, 3), beams(6, 300, 2, 5), causal(5, 290)];
    let case = Case::new(model, &parts);
    for limits in [case.limits(), cut(&case), AttentionLimits { reproducible: true, ..case.limits() }] {
        // Host and GPU have their own powers of two; each agrees with itself.
        let mut before: HashMap<bool, Vec<u16>> = HashMap::new();
        for (name, mut driver) in drivers_in_every_order() {
            for _ in 0..2 {
                let out = case.run(&mut *driver, &limits);
                match before.entry(name.starts_with("emulated")) {
                    Entry::Vacant(first) => {
                        case.check(&out, &name);
                        first.insert(out);
                    }
                    Entry::Occupied(first) => assert!(*first.get() == out, "{name}, {limits:?}"),
                }
            }
        }
    }
}

/// The last rows' bits of the first segment.
fn tail(case: &Case, driver: &mut dyn Driver, limits: &AttentionLimits, rows: usize) -> Vec<u16> {
    let width = case.model.heads() * case.model.head_dim;
    let end = case.parts[0].rows as usize * width;
    case.run(driver, limits)[end - rows * width..end].to_vec()
}

#[test]
fn reproducible_rows_know_neither_neighbours_nor_chunks() {
    for (_, mut driver) in drivers() {
        for (head_dim, dtype, window) in [(16, DType::Bf16, None), (32, DType::F16, Some(700))] {
            let model = Model { head_dim, dtype, window, group: 3, kv_heads: 2, ..MODEL };
            let sequence = |rows, context| Part { seed: 5, ..causal(rows, context) };
            let limits = |case: &Case, multiprocessors, max_units| AttentionLimits {
                reproducible: true,
                multiprocessors,
                max_units,
                ..case.limits()
            };
            let alone = Case::new(model, &[sequence(1, 1300)]);
            let expected = tail(&alone, &mut *driver, &limits(&alone, 4096, 64), 1);
            alone.check(&expected, "alone");
            let ways: [(&str, Vec<Part>, u32, u32); 6] = [
                ("one tile for all keys", vec![sequence(1, 1300)], 4096, 0),
                ("a prefill in one go", vec![sequence(40, 1261)], 1, 64),
                ("a split prefill", vec![sequence(25, 1276)], 4096, 64),
                ("a chunk of two rows", vec![sequence(2, 1299)], 4096, 64),
                ("a chunk of five rows", vec![sequence(5, 1296)], 1, 0),
                ("in a crowd", vec![sequence(1, 1300), causal(30, 700), beams(4, 520, 1, 4)], 3, 64),
            ];
            for (words, parts, multiprocessors, max_units) in ways {
                let case = Case::new(model, &parts);
                let found = tail(&case, &mut *driver, &limits(&case, multiprocessors, max_units), 1);
                assert!(found == expected, "{words}, head_dim {head_dim}");
            }
        }
    }
}

#[test]
fn reproducible_beams_do_not_know_how_their_context_was_cut() {
    for (_, mut driver) in drivers() {
        let case = Case::new(Model { group: 3, ..MODEL }, &[beams(7, 1100, 2, 6)]);
        let limits = AttentionLimits { reproducible: true, ..case.limits() };
        let whole = case.run(&mut *driver, &AttentionLimits { max_units: 2, ..limits });
        let cut = case.run(&mut *driver, &AttentionLimits { multiprocessors: 4096, ..limits });
        case.check(&whole, "whole");
        assert!(whole == cut);
    }
}

#[test]
fn a_captured_layer_reads_the_plan_of_its_step() {
    for head_dim in [16, 64] {
        for (_, mut driver) in drivers() {
            let model = Model { head_dim, ..MODEL };
            let small = Case::new(model, &[causal(1, 20)]);
            let case = Case::new(model, &[causal(20, 30), causal(1, 300), beams(3, 40, 1, 2)]);
            let limits = AttentionLimits { max_items: 64, ..small.limits() };
            let kernels = case.kernels(&mut *driver, &limits);
            let limits = AttentionLimits { wide: kernels.wide(), ..limits };
            let device = OnDevice::new(&case, &mut *driver, &limits, &kernels);
            let bucket = AttentionBucket { narrow: 8, wide: 8, joined_rows: 32 };
            driver.begin_capture().unwrap();
            kernels.enqueue(&mut *driver, &device.buffers, &device.layer, &bucket).unwrap();
            let graph = driver.end_capture().unwrap();
            let mut plan = AttentionPlan::default();
            // A step of one row first; its row is then computed again with all others.
            plan.build(&small.plan, &limits, |_| unreachable!()).unwrap();
            device.put(&mut *driver, &plan);
            driver.replay(graph).unwrap();
            driver.synchronize().unwrap();
            plan.build(&case.plan, &limits, |search| device.view(search.0)).unwrap();
            device.put(&mut *driver, &plan);
            driver.replay(graph).unwrap();
            let out = device.out(&mut *driver, &case);
            case.check(&out, "replayed");
        }
    }
}

/// Draws words; small ones often, so that some records make sense.
fn lies(seed: u32, words: usize) -> Vec<u32> {
    let word = |i: u32| {
        let x = hash([seed, i, 1, 2, 3]);
        match hash([seed, i, 4, 5, 6]) % 4 {
            0 => x,
            1 => u32::MAX - x % 20,
            2 => x % 40,
            _ => x % 4,
        }
    };
    (0..words as u32).map(word).collect()
}

#[test]
fn no_record_leads_out_of_bounds() {
    for (_, mut driver) in drivers() {
        for seed in 0..120 {
            let window = [None, Some(5), Some(u32::MAX)][seed as usize % 3];
            let head_dim = [16, 64][seed as usize / 2 % 2];
            let model = Model { head_dim, group: [1, 3, 4][seed as usize % 3], window, kv_heads: 1, ..MODEL };
            let parts = [causal(3, 40), beams(5, 30, 2, 3), causal(20, 10), causal(1, 100)];
            let case = Case::new(model, &parts);
            let limits = AttentionLimits { max_items: 12, max_units: 9, ..case.limits() };
            let kernels = case.kernels(&mut *driver, &limits);
            let limits = AttentionLimits { wide: kernels.wide(), ..limits };
            let device = OnDevice::new(&case, &mut *driver, &limits, &kernels);
            let mut plan = AttentionPlan::default();
            plan.build(&case.plan, &limits, |search| device.view(search.0)).unwrap();
            for (i, s) in plan.segments.iter_mut().enumerate() {
                let beams = if i % 2 == 1 { device.view(1) } else { Default::default() };
                *s = bytemuck::pod_read_unaligned(cast_slice(&lies(seed * 100 + i as u32, 16)));
                s.beams = beams;
                if seed % 2 == 0 {
                    s.kind = u32::from(beams.0 != 0);
                    s.first_row %= 16;
                }
            }
            let some_items = |seed| cast_slice(&lies(seed, 12 * 8)).to_vec();
            device.put(&mut *driver, &plan);
            let b = &device.buffers;
            let items: Vec<u32> = some_items(seed * 100 + 50);
            driver.upload(b.narrow, cast_slice(&items)).unwrap();
            let items: Vec<u32> = some_items(seed * 100 + 60);
            driver.upload(b.wide, cast_slice(&items)).unwrap();
            driver.upload(b.row_segment, cast_slice(&lies(seed * 100 + 70, case.plan.rows()))).unwrap();
            driver.upload(b.blocks, cast_slice(&lies(seed * 100 + 80, case.plan.blocks.len()))).unwrap();
            let mut counts = lies(seed * 100 + 90, 8);
            counts[1] |= 7;
            counts[2] |= 15;
            counts[3] |= 15;
            driver.upload(b.counts, cast_slice(&counts)).unwrap();
            // The view as well: live, tokens, ancestors.
            let bytes = sidereal::device::cuda::args::BEAM_VIEW_BYTES;
            driver.upload(device.view(1), cast_slice(&lies(seed * 100 + 99, bytes / 4))).unwrap();
            let bucket = AttentionBucket { narrow: 12, wide: 12, joined_rows: 40 };
            kernels.enqueue(&mut *driver, b, &device.layer, &bucket).unwrap();
            device.free(&mut *driver);
        }
    }
}

#[test]
fn other_heads_are_refused() {
    for (_, mut driver) in drivers() {
        let case = Case::new(MODEL, &[causal(1, 0)]);
        let shape = AttentionShape { head_dim: 80, ..case.shape(&case.limits()) };
        let error = Attention::new(&mut *driver, DType::Bf16, shape, false).unwrap_err().to_string();
        assert!(error.contains("80") && error.contains("16, 32, 64 or 128"), "{error}");
    }
}
