//! The operations against plain float64 references, on every device: the CPU at every instruction level, the CUDA kernels run by the
//! host, a GPU if there is one; and bit equality of a row alone, in a batch and in any chunking.

#![allow(clippy::unwrap_used)]

mod reference;

use std::sync::Arc;

use sidereal::device::cpu::{Columns, CpuDevice, CpuOptions, SimdLevel};
use sidereal::device::ops::*;
use sidereal::ids::{BlockId, TokenId};
use sidereal::kv::BLOCK_TOKENS;

use reference::{dot, reference};

use crate::devices::{Named, cpus, cudas};

const TYPES: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];

/// Numbers from -1 to 1 that depend on the seed alone.
fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..16).for_each(|_| _ = next());
    (0..len).map(|_| next()).collect()
}

fn levels() -> Vec<SimdLevel> {
    SimdLevel::ALL.into_iter().filter(|l| l.is_supported()).collect()
}

fn rounded(dtype: DType, values: &[f32]) -> Vec<f32> {
    Tensor::rounded(dtype, vec![values.len()], values).to_f32()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// A model of one layer; every field may be changed before [`Setup::device`].
#[derive(Clone)]
struct Setup {
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    ffn: usize,
    window: Option<u32>,
    weights: DType,
    dtype: DType,
    extras: bool,
    blocks: usize,
    max_rows: usize,
    threads: usize,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            hidden: 40,
            heads: 4,
            kv_heads: 2,
            head_dim: 32,
            ffn: 56,
            window: None,
            weights: DType::F32,
            dtype: DType::F32,
            extras: false,
            blocks: 40,
            max_rows: 640,
            threads: 2,
        }
    }
}

const VOCAB: usize = 51;
const EPS: f32 = 1e-5;

impl Setup {
    fn matrix(&self, seed: u64, rows: usize, columns: usize) -> Tensor {
        let scale = (3.0 / columns as f32).sqrt();
        let values: Vec<f32> = noise(seed, rows * columns).iter().map(|v| v * scale).collect();
        Tensor::rounded(self.weights, vec![rows, columns], &values)
    }

    fn vector(&self, seed: u64, len: usize, around: f32) -> Tensor {
        let values: Vec<f32> = noise(seed, len).iter().map(|v| around + v * 0.5).collect();
        Tensor::rounded(self.weights, vec![len], &values)
    }

    fn shape(&self) -> Shape {
        let half = self.head_dim / 2;
        Shape {
            layers: 1,
            hidden: self.hidden,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            ffn: self.ffn,
            vocab: VOCAB,
            eps: EPS,
            max_positions: 4096,
            window: vec![self.window],
            rope: Rope {
                inv_freq: (0..half).map(|i| 1000f32.powf(-(i as f32) / half as f32)).collect(),
                scale: if self.extras { 1.25 } else { 1.0 },
            },
        }
    }

    fn weights(&self) -> Weights {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let biases = || [self.vector(20, q, 0.0), self.vector(21, kv, 0.0), self.vector(22, kv, 0.0)];
        Weights {
            embed: self.matrix(1, VOCAB, self.hidden),
            layers: vec![LayerWeights {
                input_norm: self.vector(2, self.hidden, 1.0),
                q: self.matrix(3, q, self.hidden),
                k: self.matrix(4, kv, self.hidden),
                v: self.matrix(5, kv, self.hidden),
                qkv_bias: self.extras.then(biases),
                qk_norm: self
                    .extras
                    .then(|| [self.vector(23, self.head_dim, 1.0), self.vector(24, self.head_dim, 1.0)]),
                o: self.matrix(6, self.hidden, q),
                o_bias: self.extras.then(|| self.vector(25, self.hidden, 0.0)),
                post_norm: self.vector(7, self.hidden, 1.0),
                gate: self.matrix(8, self.ffn, self.hidden),
                up: self.matrix(9, self.ffn, self.hidden),
                down: self.matrix(10, self.hidden, self.ffn),
            }],
            norm: self.vector(11, self.hidden, 1.0),
            head: self.matrix(12, VOCAB, self.hidden),
        }
    }

    fn config(&self) -> DeviceConfig {
        DeviceConfig {
            shape: self.shape(),
            weights: self.weights(),
            dtype: self.dtype,
            cache_blocks: self.blocks,
            max_rows: self.max_rows,
            text_tokens: every_token(VOCAB),
            layout: None,
        }
    }

    fn device(&self, level: SimdLevel) -> CpuDevice {
        CpuDevice::new(self.config(), CpuOptions { threads: Some(self.threads), simd: Some(level) }).unwrap()
    }

    /// Every device that serves the setup; those with a choice in reproducible mode.
    fn devices(&self) -> Vec<Named> {
        let mut devices = cpus(&|| self.config(), self.threads);
        if self.dtype != DType::F32 && [16, 32, 64, 128].contains(&self.head_dim) {
            devices.extend(cudas(&|| self.config(), true));
        }
        devices
    }
}

/// A sequence with its blocks scattered over the cache.
#[derive(Clone)]
struct Sequence {
    tokens: Vec<TokenId>,
    blocks: Vec<BlockId>,
}

impl Sequence {
    /// Sequence `i` of a few that share a cache without touching each other.
    fn new(i: usize, len: usize, first_block: usize) -> Sequence {
        let count = len.div_ceil(BLOCK_TOKENS);
        let tokens = (0..len).map(|t| TokenId(((t * 31 + i * 17 + t * t * 7) % VOCAB) as u32)).collect();
        let blocks = (0..count).map(|b| BlockId((first_block + count - 1 - b) as u32)).collect();
        Sequence { tokens, blocks }
    }

    /// Adds tokens `context..end` to a plan.
    fn add(&self, plan: &mut Plan, context: usize, end: usize) {
        let (row, table) = (plan.rows() as u32, plan.blocks.len() as u32);
        plan.blocks.extend(&self.blocks);
        for position in context..end {
            plan.tokens.push(self.tokens[position]);
            plan.positions.push(position as u32);
            let block = self.blocks[position / BLOCK_TOKENS].0 as usize;
            plan.slots.push((block * BLOCK_TOKENS + position % BLOCK_TOKENS) as u32);
        }
        plan.segments.push(Segment {
            rows: row..plan.rows() as u32,
            table: table..plan.blocks.len() as u32,
            context: context as u32,
            kind: SegmentKind::Causal,
        });
    }

    fn plan(&self, context: usize, end: usize) -> Plan {
        let mut plan = Plan::default();
        self.add(&mut plan, context, end);
        plan
    }
}

/// The whole step with logits of every row; the buffers after it.
fn run(device: &mut dyn Device, plan: &Plan) -> [Vec<f32>; 3] {
    let mut plan = plan.clone();
    plan.full_logits = (0..plan.rows() as u32).collect();
    device.begin(&plan).unwrap();
    device.embed(&plan).unwrap();
    device.attention_input(&plan, 0).unwrap();
    device.attention(&plan, 0).unwrap();
    let attended = device.read(Buffer::Attention).unwrap();
    device.attention_output(&plan, 0).unwrap();
    device.mlp_input(&plan, 0).unwrap();
    device.mlp_output(&plan, 0).unwrap();
    device.head(&plan).unwrap();
    let out = [attended, device.read(Buffer::Hidden).unwrap(), device.read(Buffer::Logits).unwrap()];
    device.finish().unwrap();
    out
}

#[track_caller]
fn close(what: &str, found: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(*f) - e).abs();
        assert!(error <= tolerance * (1.0 + e.abs()), "{what}[{i}]: {f}, expected {e}");
    }
}

#[test]
fn products_match_float64_for_every_shape_type_and_level() {
    // Chosen around registers (16), panels (6, 8), tasks (48, 96), blocks of rows and the chunks of long rows (1024).
    #[rustfmt::skip]
    let shapes = [
        (1, 1, 1), (1, 7, 15), (1, 9, 16), (2, 8, 17), (3, 13, 31), (4, 100, 33), (5, 1, 64), (6, 49, 65),
        (7, 97, 100), (8, 6, 128), (9, 48, 1023), (17, 11, 1025), (33, 5, 1040), (64, 24, 20),
        (70, 50, 48), (257, 7, 90), (2, 3, 2100),
    ];
    for level in levels() {
        for dtype in TYPES {
            let mut device = Setup { dtype, ffn: 2100, ..Setup::default() }.device(level);
            for weights in TYPES {
                for (i, &(m, n, k)) in shapes.iter().enumerate() {
                    let x = rounded(dtype, &noise(i as u64 + 100, m * k));
                    let w = Tensor::rounded(weights, vec![n, k], &noise(i as u64 + 200, n * k));
                    let mut out = vec![f32::NAN; m * n];
                    device.matmul(&x, &w, Columns::Range(0..n), &mut out).unwrap();
                    let wide = w.to_f32();
                    for r in 0..m {
                        let row: Vec<f64> = x[r * k..(r + 1) * k].iter().map(|v| f64::from(*v)).collect();
                        for c in 0..n {
                            let exact = dot(&wide[c * k..(c + 1) * k], &row);
                            let error = (f64::from(out[r * n + c]) - exact).abs();
                            assert!(
                                error < 1e-6 * (k as f64).sqrt(),
                                "{level} {dtype} {weights} {m}x{n}x{k} [{r}, {c}]: {} {exact}",
                                out[r * n + c]
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_of_a_product_has_the_same_bits_in_every_batch_and_column_set() {
    for level in levels() {
        for dtype in [DType::F32, DType::Bf16] {
            for k in [50, 1500] {
                let mut device = Setup { dtype, ffn: 1500, ..Setup::default() }.device(level);
                let (m, n) = (70, 101);
                let x = noise(1, m * k);
                let w = Tensor::rounded(DType::Bf16, vec![n, k], &noise(2, n * k));
                let mut whole = vec![0.0; m * n];
                device.matmul(&x, &w, Columns::Range(0..n), &mut whole).unwrap();
                for rows in [1, 2, 3, 4, 5, 7, 12, 33] {
                    for first in [0, 1, 30] {
                        let mut part = vec![0.0; rows * n];
                        let x = &x[first * k..(first + rows) * k];
                        device.matmul(x, &w, Columns::Range(0..n), &mut part).unwrap();
                        assert_eq!(
                            bits(&part),
                            bits(&whole[first * n..(first + rows) * n]),
                            "{level} {rows}"
                        );
                    }
                }
                let list = [100u32, 3, 3, 57, 0, 99, 31];
                for rows in [1, 9] {
                    let (mut chosen, mut range) = (vec![0.0; rows * list.len()], vec![0.0; rows * 40]);
                    device.matmul(&x[..rows * k], &w, Columns::List(&list), &mut chosen).unwrap();
                    device.matmul(&x[..rows * k], &w, Columns::Range(37..77), &mut range).unwrap();
                    for r in 0..rows {
                        let at = |c: usize| whole[r * n + c].to_bits();
                        let expected: Vec<u32> = list.iter().map(|&c| at(c as usize)).collect();
                        assert_eq!(bits(&chosen[r * list.len()..][..list.len()]), expected);
                        assert_eq!(bits(&range[r * 40..][..40]), (37..77).map(at).collect::<Vec<_>>());
                    }
                }
            }
        }
    }
}

#[test]
fn a_layer_matches_float64_for_every_head_shape_window_and_device() {
    let heads =
        [(4, 4, 32), (4, 2, 16), (8, 1, 64), (6, 2, 32), (3, 1, 128), (2, 2, 80), (2, 1, 6), (14, 2, 64)];
    for (i, &(heads, kv_heads, head_dim)) in heads.iter().enumerate() {
        for (window, dtype) in [None, Some(1), Some(7), Some(64), Some(70)]
            .into_iter()
            .flat_map(|window| [(window, DType::F32), (window, DType::Bf16)])
        {
            let extras = i % 2 == 0;
            let weights = dtype;
            let setup =
                Setup { heads, kv_heads, head_dim, window, dtype, weights, extras, ..Setup::default() };
            let sequence = Sequence::new(i, 150, 3);
            let expected = reference(&setup, &sequence.tokens);
            let tolerances = if dtype == DType::F32 { [2e-5, 5e-5, 1e-4] } else { [3e-2, 3e-2, 6e-2] };
            for (name, mut device) in setup.devices() {
                let found = run(&mut *device, &sequence.plan(0, 150));
                let name = format!("{name} {dtype} {heads}/{kv_heads} x {head_dim}, window {window:?}");
                let references = [&expected.attended, &expected.hidden, &expected.logits];
                for (i, what) in ["attended", "hidden", "logits"].into_iter().enumerate() {
                    close(&format!("{name}: {what}"), &found[i], &references[i].concat(), tolerances[i]);
                }
            }
        }
    }
}

#[test]
fn types_of_weights_and_activations_stay_within_their_rounding() {
    for weights in TYPES {
        for (dtype, tolerance) in [(DType::F32, 1e-4), (DType::Bf16, 6e-2), (DType::F16, 8e-3)] {
            let setup = Setup { weights, dtype, extras: true, ..Setup::default() };
            let sequence = Sequence::new(1, 70, 0);
            let expected = reference(&setup, &sequence.tokens);
            for (name, mut device) in setup.devices() {
                let [attended, hidden, logits] = run(&mut *device, &sequence.plan(0, 70));
                let name = format!("{name} {weights} {dtype}");
                close(&format!("{name}: attended"), &attended, &expected.attended.concat(), tolerance);
                close(&format!("{name}: hidden"), &hidden, &expected.hidden.concat(), tolerance);
                close(&format!("{name}: logits"), &logits, &expected.logits.concat(), 2.0 * tolerance);
                for (buffer, values) in [("attended", &attended), ("hidden", &hidden)] {
                    assert_eq!(
                        bits(values),
                        bits(&rounded(dtype, values)),
                        "{name}: {buffer} is not in {dtype}"
                    );
                }
                let gated = device.read(Buffer::Gated).unwrap();
                close(&format!("{name}: gated"), &gated, &expected.gated.concat(), tolerance);
                assert_eq!(bits(&gated), bits(&rounded(dtype, &gated)));
                let query = device.read(Buffer::Query).unwrap();
                assert_eq!(bits(&query), bits(&rounded(dtype, &query)));
            }
        }
    }
}

#[test]
fn any_chunking_and_any_company_give_the_same_bits() {
    for (dtype, window) in [
        (DType::F32, None),
        (DType::Bf16, None),
        (DType::F16, None),
        (DType::F32, Some(20)),
        (DType::Bf16, Some(20)),
    ] {
        let setup = Setup { weights: DType::Bf16, dtype, window, extras: true, ..Setup::default() };
        let sequence = Sequence::new(0, 150, 2);
        for (which, (level, mut first)) in setup.devices().into_iter().enumerate() {
            let whole = run(&mut *first, &sequence.plan(0, 150));
            let others = [Sequence::new(1, 90, 12), Sequence::new(2, 33, 18), Sequence::new(3, 100, 21)];
            for cuts in [
                vec![1, 2, 3, 150],
                vec![15, 16, 17, 100, 101, 150],
                vec![63, 64, 65, 129, 150],
                vec![70, 150],
            ] {
                let (_, mut device) = Setup { threads: 3, ..setup.clone() }.devices().swap_remove(which);
                let mut context = 0;
                for (turn, end) in cuts.into_iter().enumerate() {
                    // Others before and after it, at other lengths every time.
                    let mut plan = Plan::default();
                    let before = if turn % 2 == 0 { 0 } else { others[0].tokens.len() };
                    if before > 0 {
                        others[0].add(&mut plan, 0, before);
                    }
                    sequence.add(&mut plan, context, end);
                    if turn == 0 {
                        others[1].add(&mut plan, 0, 33);
                        others[2].add(&mut plan, 0, 100);
                    }
                    let part = run(&mut *device, &plan);
                    for (part, whole) in part.iter().zip(&whole) {
                        let width = whole.len() / 150;
                        let part = &part[before * width..(before + end - context) * width];
                        assert_eq!(
                            bits(part),
                            bits(&whole[context * width..end * width]),
                            "{level} {dtype} {context}..{end}"
                        );
                    }
                    context = end;
                }
            }
            // Token by token.
            let (_, mut device) = setup.devices().swap_remove(which);
            for position in 0..150 {
                let part = run(&mut *device, &sequence.plan(position, position + 1));
                for (part, whole) in part.iter().zip(&whole) {
                    let width = part.len();
                    assert_eq!(
                        bits(part),
                        bits(&whole[position * width..(position + 1) * width]),
                        "{level} {position}"
                    );
                }
            }
        }
    }
}

#[test]
fn nan_in_cache_slots_that_a_row_does_not_see_changes_nothing() {
    for dtype in TYPES {
        for (len, window) in [(16, None), (17, None), (1, None), (50, Some(5)), (100, Some(33))] {
            let setup = Setup { dtype, window, ..Setup::default() };
            let sequence = Sequence::new(5, len, 4);
            for ((level, mut device), (_, mut other)) in setup.devices().into_iter().zip(setup.devices()) {
                let clean = run(&mut *other, &sequence.plan(0, len));
                poison(&mut *device, &setup);
                assert!(clean.iter().flatten().all(|v| v.is_finite()));
                for (a, b) in run(&mut *device, &sequence.plan(0, len)).iter().zip(&clean) {
                    assert_eq!(bits(a), bits(b), "{level} {dtype} {len} {window:?}");
                }
            }
        }
    }
}

/// Fills the whole cache with NaN.
fn poison(device: &mut dyn Device, setup: &Setup) {
    let len = setup.blocks * BLOCK_TOKENS;
    let plan = Sequence::new(0, len, 0).plan(0, len);
    device.begin(&plan).unwrap();
    device.embed(&plan).unwrap();
    device.write(Buffer::Hidden, &vec![f32::NAN; len * setup.hidden]).unwrap();
    device.attention_input(&plan, 0).unwrap();
}

#[test]
fn a_row_of_nan_stays_in_its_row() {
    let values = |row: usize| if row == 1 { f32::NAN } else { 0.25 };
    let setup = Setup { dtype: DType::Bf16, weights: DType::Bf16, ..Setup::default() };
    for (level, mut device) in setup.devices() {
        let mut plan = Plan::default();
        (0..7).for_each(|i| Sequence::new(i, 3, i).add(&mut plan, 0, 1));
        plan.soft = (0..7)
            .map(|row| SoftRow { row: row as u32, values: Arc::from(vec![values(row); setup.hidden]) })
            .collect();
        let [_, hidden, logits] = run(&mut *device, &plan);
        for row in 0..7 {
            let logits = &logits[row * VOCAB..][..VOCAB];
            assert_eq!(logits.iter().all(|v| v.is_nan()), row == 1, "{level}: logits of row {row}");
            assert_eq!(hidden[row * setup.hidden].is_nan(), row == 1, "{level}: row {row}");
        }
    }
}

#[test]
fn soft_tokens_take_the_place_of_embeddings() {
    for dtype in TYPES {
        let setup = Setup { dtype, ..Setup::default() };
        for (name, mut device) in setup.devices() {
            let mut plan = Sequence::new(0, 4, 0).plan(0, 4);
            plan.tokens[2] = TokenId(9_999);
            plan.soft.push(SoftRow { row: 2, values: Arc::from(noise(77, setup.hidden)) });
            device.begin(&plan).unwrap();
            device.embed(&plan).unwrap();
            let x = device.read(Buffer::Hidden).unwrap();
            let embed = setup.weights().embed.to_f32();
            let row = |row: usize| &x[row * setup.hidden..(row + 1) * setup.hidden];
            assert_eq!(row(2), rounded(dtype, &noise(77, setup.hidden)), "{name} {dtype}");
            let token = plan.tokens[3].index();
            let expected = &embed[token * setup.hidden..(token + 1) * setup.hidden];
            assert_eq!(row(3), rounded(dtype, expected), "{name} {dtype}");
        }
    }
}

#[test]
fn plans_out_of_bounds_are_refused_with_a_sentence() {
    let mut devices = Setup { dtype: DType::Bf16, ..Setup::default() }.devices();
    let good = Sequence::new(0, 20, 0).plan(0, 20);
    let mut check = |what: &str, change: &dyn Fn(&mut Plan)| {
        let mut plan = good.clone();
        change(&mut plan);
        for (name, device) in &mut devices {
            let error = device.begin(&plan).expect_err(what).to_string();
            assert!(error.contains(what), "{name}: {error:?} does not say {what:?}");
        }
    };
    check("token of row 3 is 51, not below 51", &|p| p.tokens[3] = TokenId(51));
    check("slot of row 7 is 640, not below 640", &|p| p.slots[7] = 640);
    check("block 1 is 40, not below 40", &|p| p.blocks[1] = BlockId(40));
    check("its segment says", &|p| p.slots[5] = 300);
    check("its segment says", &|p| p.positions[5] = 300);
    check("segments cover 19 rows of 20", &|p| p.segments[0].rows.end = 19);
    check("not below", &|p| p.segments[0].rows.end = 21);
    check("expected 0..", &|p| p.segments[0].rows.start = 1);
    check("the plan has 2", &|p| p.segments[0].table.end = 9);
    check("last position of segment 0", &|p| p.segments[0].table.end = 1);
    check("19 positions", &|p| _ = p.positions.pop());
    check("whose logits are wanted is 20", &|p| p.full_logits.push(20));
    check("soft token 0 has 3 values", &|p| p.soft.push(SoftRow { row: 0, values: Arc::from([0.0; 3]) }));
    check("row of soft token 0 is 20", &|p| p.soft.push(SoftRow { row: 20, values: Arc::from([0.0; 40]) }));
    check("641 rows, more than the 640", &|p| *p = Sequence::new(0, 641, 0).plan(0, 641));
    devices.iter_mut().for_each(|(_, device)| device.begin(&good).unwrap());
}

/// Evaluation may ask for every row, and for some of them twice; the device has room for twice the rows.
#[test]
fn logits_of_more_rows_than_there_is_room_for_are_refused() {
    let setup = Setup { dtype: DType::Bf16, max_rows: 20, ..Setup::default() };
    for (name, mut device) in cudas(&|| setup.config(), true) {
        let mut plan = Sequence::new(0, 20, 0).plan(0, 20);
        plan.full_logits = (0..41).map(|i| i % 20).collect();
        let error = device.begin(&plan).expect_err("41 rows").to_string();
        assert!(error.contains("wanted of 41 rows, there is room for 40"), "{name}: {error}");
        plan.full_logits.pop();
        device.begin(&plan).unwrap();
        device.forward(&plan).unwrap();
        let logits = device.read(Buffer::Logits).unwrap();
        assert_eq!(bits(&logits[..20 * VOCAB]), bits(&logits[20 * VOCAB..]), "{name}");
    }
}

#[test]
fn weights_of_the_wrong_shape_are_refused_by_name() {
    let setup = Setup::default();
    let make = |weights: Weights| {
        let config = DeviceConfig {
            shape: setup.shape(),
            weights,
            dtype: DType::F32,
            cache_blocks: 1,
            max_rows: 1,
            text_tokens: every_token(VOCAB),
            layout: None,
        };
        CpuDevice::new(config, CpuOptions::default()).err().map(|e| e.to_string()).unwrap_or_default()
    };
    let mut weights = setup.weights();
    weights.layers[0].down = setup.matrix(1, 3, 5);
    assert!(make(weights).contains("layers.0.down: expected [40, 56], found [3, 5] f32"));
    let mut weights = setup.weights();
    weights.layers[0].up = Tensor::rounded(DType::F16, vec![56, 40], &[0.0; 56 * 40]);
    assert!(make(weights).contains("found f32, f16"));
    assert_eq!(make(setup.weights()), "");
}
