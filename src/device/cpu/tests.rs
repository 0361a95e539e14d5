//! Tests of what the public operations cannot reach alone: attention of beams, with searches made up.

use super::search::Beams;
use super::*;
use crate::device::ops::{Rope, Segment, SegmentKind, every_token};
use crate::ids::{BlockId, TokenId};
use crate::kv::BLOCK_TOKENS;

const VOCAB: usize = 40;
const HIDDEN: usize = 48;
const LEVELS: usize = 4;

/// Parents of every level's beams, and the tokens of the last.
struct Made {
    parents: Vec<Vec<usize>>,
    tokens: Vec<Vec<u32>>,
}

impl Made {
    fn level(&self) -> usize {
        self.tokens.len() - 1
    }

    /// The tokens on the way to a beam.
    fn path(&self, beam: usize) -> Vec<u32> {
        (0..=self.level()).map(|l| self.tokens[l][self.place(beam, l)]).collect()
    }

    fn place(&self, beam: usize, level: usize) -> usize {
        (level + 1..=self.level()).rev().fold(beam, |b, l| self.parents[l][b])
    }
}

impl Beams for Made {
    fn live(&self, _: SearchId) -> Result<usize> {
        Ok(self.tokens[self.level()].len())
    }

    fn token(&self, _: SearchId, beam: usize) -> TokenId {
        TokenId(self.tokens[self.level()][beam])
    }

    fn ancestor(&self, _: SearchId, beam: usize, level: usize) -> usize {
        self.place(beam, level)
    }
}

fn noise(seed: u64, len: usize) -> Vec<f32> {
    (0..len as u64)
        .map(|i| {
            let x = (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed.wrapping_mul(0xd1b5_4a32_d192_ed03);
            ((x ^ x >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

fn device(level: SimdLevel, dtype: DType, window: Option<u32>) -> CpuDevice {
    let matrix = |seed: u64, n: usize, k: usize| {
        let scale = (3.0 / k as f32).sqrt();
        Tensor::rounded(dtype, vec![n, k], &noise(seed, n * k).iter().map(|v| v * scale).collect::<Vec<_>>())
    };
    let ones = |n: usize| Tensor::rounded(dtype, vec![n], &vec![1.0; n]);
    let shape = Shape {
        layers: 1,
        hidden: HIDDEN,
        heads: 6,
        kv_heads: 2,
        head_dim: 32,
        ffn: 32,
        vocab: VOCAB,
        eps: 1e-6,
        max_positions: 1000,
        window: vec![window],
        rope: Rope {
            inv_freq: (0..16).map(|i| 100f32.powf(-f32::from(i as u8) / 16.0)).collect(),
            scale: 1.0,
        },
    };
    let layer = LayerWeights {
        input_norm: ones(HIDDEN),
        q: matrix(1, 192, HIDDEN),
        k: matrix(2, 64, HIDDEN),
        v: matrix(3, 64, HIDDEN),
        qkv_bias: None,
        qk_norm: None,
        o: matrix(4, HIDDEN, 192),
        o_bias: None,
        post_norm: ones(HIDDEN),
        gate: matrix(5, 32, HIDDEN),
        up: matrix(6, 32, HIDDEN),
        down: matrix(7, HIDDEN, 32),
    };
    let weights = Weights {
        embed: matrix(8, VOCAB, HIDDEN),
        layers: vec![layer],
        norm: ones(HIDDEN),
        head: matrix(9, VOCAB, HIDDEN),
    };
    let config = DeviceConfig {
        shape,
        weights,
        dtype,
        cache_blocks: 64,
        max_rows: 200,
        text_tokens: every_token(VOCAB),
        layout: None,
    };
    CpuDevice::new(config, CpuOptions { threads: Some(2), simd: Some(level) }).unwrap()
}

fn step(device: &mut CpuDevice, plan: &Plan, beams: &dyn Beams) -> Vec<f32> {
    device.step.begin(plan, &device.shape, &device.bounds, beams).unwrap();
    device.embed(plan).unwrap();
    device.attention_input(plan, 0).unwrap();
    device.attention(plan, 0).unwrap();
    device.read(Buffer::Attention).unwrap()
}

fn causal(tokens: &[u32], first_block: u32, context: usize) -> Plan {
    let blocks = tokens.len().div_ceil(BLOCK_TOKENS) as u32;
    Plan {
        tokens: tokens[context..].iter().map(|&t| TokenId(t)).collect(),
        positions: (context as u32..tokens.len() as u32).collect(),
        slots: (context..tokens.len()).map(|p| first_block * BLOCK_TOKENS as u32 + p as u32).collect(),
        segments: vec![Segment {
            rows: 0..(tokens.len() - context) as u32,
            table: 0..blocks,
            context: context as u32,
            kind: SegmentKind::Causal,
        }],
        blocks: (first_block..first_block + blocks).map(BlockId).collect(),
        ..Plan::default()
    }
}

/// A plan of `rows` beams after `prompt` cached in the blocks from 0 on, private blocks from 20 on.
fn beams(prompt: usize, level: usize, rows: usize, stride: usize) -> Plan {
    let blocks = prompt.div_ceil(BLOCK_TOKENS) as u32;
    let private = (LEVELS * stride).div_ceil(BLOCK_TOKENS) as u32;
    let place = |w: usize| (level * stride + w) as u32;
    // Private blocks in reverse, so that places and slots differ.
    let slot =
        |p: u32| (20 + private - 1 - p / BLOCK_TOKENS as u32) * BLOCK_TOKENS as u32 + p % BLOCK_TOKENS as u32;
    Plan {
        tokens: vec![TokenId(u32::MAX); rows],
        positions: vec![(prompt + level) as u32; rows],
        slots: (0..rows).map(|w| slot(place(w))).collect(),
        segments: vec![Segment {
            rows: 0..rows as u32,
            table: 0..blocks,
            context: prompt as u32,
            kind: SegmentKind::Beam {
                search: SearchId(0),
                level: level as u8,
                private: blocks..blocks + private,
                stride: stride as u32,
            },
        }],
        blocks: (0..blocks).map(BlockId).chain((0..private).rev().map(|b| BlockId(20 + b))).collect(),
        ..Plan::default()
    }
}

#[test]
fn beams_attend_as_if_each_had_a_cache_of_its_own() {
    let (rows, stride) = (37, 40);
    let pick = |l: usize, w: usize, below: usize| (l * 7919 + w * 104_729 + w * w * 31) % below;
    let (parents, tokens): (Vec<Vec<usize>>, Vec<Vec<u32>>) = (0..LEVELS)
        .map(|l| {
            let beams = rows - 3 * l;
            let parents = (0..beams).map(|w| pick(l, w, rows - 3 * l.saturating_sub(1))).collect();
            (parents, (0..beams).map(|w| pick(l + 9, w, VOCAB) as u32).collect())
        })
        .unzip();
    for simd in SimdLevel::ALL.into_iter().filter(|l| l.is_supported()) {
        for (dtype, tolerance) in [(DType::F32, 2e-6), (DType::Bf16, 2e-2), (DType::F16, 2e-3)] {
            for (prompt, window) in
                [(1, None), (16, None), (61, None), (64, None), (100, Some(30)), (100, Some(2))]
            {
                let prompt_tokens: Vec<u32> = (0..prompt).map(|i| pick(3, i, VOCAB) as u32).collect();
                let mut device = device(simd, dtype, window);
                let none = Made { parents: vec![vec![]], tokens: vec![vec![]] };
                step(&mut device, &causal(&prompt_tokens, 0, 0), &none);
                for level in 0..LEVELS {
                    let made =
                        Made { parents: parents[..=level].to_vec(), tokens: tokens[..=level].to_vec() };
                    let live = made.tokens[level].len();
                    let found = step(&mut device, &beams(prompt, level, rows, stride), &made);
                    let width = found.len() / rows;
                    for beam in 0..live {
                        let sequence = [&prompt_tokens[..], &made.path(beam)].concat();
                        let last = sequence.len() - 1;
                        let expected =
                            step(&mut device, &causal(&sequence, 40, 0), &none)[last * width..].to_vec();
                        for (f, e) in found[beam * width..].iter().zip(&expected) {
                            let name = format!("{simd} {dtype} prompt {prompt} level {level} beam {beam}");
                            assert!(
                                (f - e).abs() <= tolerance * (1.0 + e.abs()),
                                "{name}: {f}, expected {e}"
                            );
                        }
                    }
                    // Fewer rows beside them, same bits.
                    let again = step(&mut device, &beams(prompt, level, 5, stride), &made);
                    assert_eq!(again, found[..5 * width], "{simd} {dtype} level {level}");
                }
            }
        }
    }
}

#[test]
fn beams_outside_their_table_are_refused() {
    let mut device = device(SimdLevel::detect(), DType::F32, None);
    let made = Made { parents: vec![vec![], vec![0; 8]], tokens: vec![vec![1; 8], vec![1; 8]] };
    let mut check = |plan: &Plan, what: &str| {
        let error = device.step.begin(plan, &device.shape, &device.bounds, &made).unwrap_err().to_string();
        assert!(error.contains(what), "{error:?} does not say {what:?}");
    };
    check(&beams(10, 1, 8, 7), "beams of segment 0 is 8, not below 8");
    let mut plan = beams(10, 1, 8, 8);
    plan.slots[3] = 5;
    check(&plan, "row 3 has position 11 and slot 5");
    let mut plan = beams(10, 1, 8, 16);
    if let SegmentKind::Beam { private, .. } = &mut plan.segments[0].kind {
        private.end = private.start + 1;
    }
    check(&plan, "places of segment 0 is 24, not below 17");
}
