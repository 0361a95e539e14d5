//! A batch of segments over a shuffled, poisoned cache; how to run it, and what comes out in float64.

use bytemuck::{Zeroable, bytes_of, cast_slice};
use half::{bf16, f16};
use sidereal::device::cuda::args::{BEAM_VIEW_BYTES, MAX_WIDTH, StepCounts};
use sidereal::device::cuda::attention::{
    Attention, AttentionBucket, AttentionBuffers, AttentionLayer, AttentionLimits, AttentionPlan,
    AttentionShape, WIDE,
};
use sidereal::device::cuda::driver::{DevicePtr, Driver};
use sidereal::device::ops::{DType, Plan, Segment, SegmentKind};
use sidereal::ids::{BlockId, SearchId, TokenId};

/// What all segments of a batch share.
#[derive(Clone, Copy, Debug)]
pub struct Model {
    pub dtype: DType,
    pub head_dim: usize,
    pub kv_heads: usize,
    pub group: usize,
    pub window: Option<u32>,
    /// Zero queries and values that mark a dimension per key: the result counts visible keys.
    pub counting: bool,
}

pub const MODEL: Model =
    Model { dtype: DType::Bf16, head_dim: 16, kv_heads: 2, group: 2, window: None, counting: false };

/// A segment. Its numbers depend on `seed` and positions alone, wherever in a batch it stands.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    pub rows: u32,
    pub context: u32,
    pub beam: Option<Beam>,
    pub seed: u32,
}

#[derive(Clone, Copy, Debug)]
pub struct Beam {
    pub level: u32,
    pub stride: u32,
    pub live: u32,
}

pub fn causal(rows: u32, context: u32) -> Part {
    Part { rows, context, beam: None, seed: rows * 1000 + context }
}

pub fn beams(rows: u32, context: u32, level: u32, live: u32) -> Part {
    let beam = Some(Beam { level, stride: rows + 3, live });
    Part { rows, context, beam, seed: rows * 1000 + context + (level << 20) }
}

/// Mixes numbers into one that looks drawn.
pub fn hash(of: [u32; 5]) -> u32 {
    let mut x = 0x9e37_79b9u32;
    for v in of {
        x = (x ^ v).wrapping_mul(0x85eb_ca6b);
        x = (x ^ (x >> 15)).wrapping_mul(0xc2b2_ae35);
        x ^= x >> 13;
    }
    x
}

pub fn to_bits(dtype: DType, value: f32) -> u16 {
    match dtype {
        DType::Bf16 => bf16::from_f32(value).to_bits(),
        _ => f16::from_f32(value).to_bits(),
    }
}

pub fn from_bits(dtype: DType, bits: u16) -> f32 {
    match dtype {
        DType::Bf16 => bf16::from_bits(bits).to_f32(),
        _ => f16::from_bits(bits).to_f32(),
    }
}

const QUERY: u32 = 0;
const KEY: u32 = 1;
const VALUE: u32 = 2;
const PRIVATE: u32 = 1 << 24;

impl Model {
    pub fn heads(&self) -> usize {
        self.kv_heads * self.group
    }

    /// An element of a query (`at`: row), key or value (`at`: position, or place among the private ones).
    fn element(&self, of: u32, seed: u32, at: u32, head: usize, d: usize) -> u16 {
        let drawn = hash([of, seed, at, head as u32, d as u32]) as f32 / u32::MAX as f32 * 2.0 - 1.0;
        let value = match (self.counting, of) {
            (true, QUERY) => 0.0,
            (true, VALUE) => f32::from(u8::from(at as usize % self.head_dim == d)),
            (_, QUERY) => drawn * 4.0,
            _ => drawn,
        };
        to_bits(self.dtype, value)
    }

    fn float(&self, of: u32, seed: u32, at: u32, head: usize, d: usize) -> f64 {
        f64::from(from_bits(self.dtype, self.element(of, seed, at, head, d)))
    }
}

impl Part {
    /// Place in the beam of `level` of the ancestor of `beam`.
    fn ancestor(&self, level: u32, beam: u32) -> u32 {
        let own = self.beam.unwrap();
        if level == own.level { beam } else { hash([7, self.seed, level, beam, 0]) % self.rows }
    }

    /// Keys that a row sees, as numbers of [`Model::element`].
    fn keys(&self, model: &Model, row: u32) -> Vec<u32> {
        let position = self.context + self.beam.map_or(row, |b| b.level);
        let lowest = model.window.map_or(0, |w| (position + 1).saturating_sub(w));
        let Some(beam) = self.beam else { return (lowest..=position).collect() };
        let private = lowest.saturating_sub(self.context)..=beam.level;
        (lowest..self.context)
            .chain(private.map(|l| PRIVATE + l * beam.stride + self.ancestor(l, row)))
            .collect()
    }

    /// `softmax(q k^T / sqrt(head_dim)) v` of a row's head in float64; zeros for beams that are not alive.
    fn reference(&self, model: &Model, row: u32, head: usize) -> Vec<f64> {
        let mut out = vec![0.0; model.head_dim];
        if self.beam.is_some_and(|b| row >= b.live) {
            return out;
        }
        let (keys, kv_head) = (self.keys(model, row), head / model.group);
        let score = |&key: &u32| {
            (0..model.head_dim)
                .map(|d| {
                    model.float(QUERY, self.seed, row + self.context, head, d)
                        * model.float(KEY, self.seed, key, kv_head, d)
                })
                .sum::<f64>()
                / (model.head_dim as f64).sqrt()
        };
        let scores: Vec<f64> = keys.iter().map(score).collect();
        let greatest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = scores.iter().map(|s| (s - greatest).exp()).sum();
        for (key, s) in keys.iter().zip(&scores) {
            let weight = (s - greatest).exp() / total;
            for (d, out) in out.iter_mut().enumerate() {
                *out += weight * model.float(VALUE, self.seed, *key, kv_head, d);
            }
        }
        out
    }
}

/// A batch in host memory.
pub struct Case {
    pub model: Model,
    pub parts: Vec<Part>,
    pub plan: Plan,
    pub query: Vec<u16>,
    pub keys: Vec<u16>,
    pub values: Vec<u16>,
    pub cache_blocks: usize,
}

/// What is poison.
const POISON: u16 = 0xffff;

impl Case {
    pub fn new(model: Model, parts: &[Part]) -> Case {
        let mut case = Case {
            model,
            parts: parts.to_vec(),
            plan: Plan::default(),
            query: Vec::new(),
            keys: Vec::new(),
            values: Vec::new(),
            cache_blocks: 0,
        };
        let blocks_of = |part: &Part| match part.beam {
            None => [(part.context + part.rows).div_ceil(16), 0],
            Some(b) => [part.context.div_ceil(16), ((b.level + 1) * b.stride).div_ceil(16)],
        };
        case.cache_blocks = parts.iter().flat_map(blocks_of).sum::<u32>() as usize + 3;
        let mut free: Vec<u32> = (0..case.cache_blocks as u32).collect();
        free.sort_by_key(|&b| hash([99, b, parts.len() as u32, 0, 0]));
        let elements = case.cache_blocks * model.kv_heads * 16 * model.head_dim;
        case.keys = vec![POISON; elements];
        case.values = vec![POISON; elements];
        for (i, part) in parts.iter().enumerate() {
            let [context, private] = blocks_of(part);
            let table = case.table(&mut free, context);
            let private = case.table(&mut free, private);
            case.segment(i, part, table, private);
        }
        case
    }

    fn table(&mut self, free: &mut Vec<u32>, blocks: u32) -> std::ops::Range<u32> {
        let first = self.plan.blocks.len() as u32;
        self.plan.blocks.extend(free.drain(..blocks as usize).map(BlockId));
        first..first + blocks
    }

    fn segment(
        &mut self,
        index: usize,
        part: &Part,
        table: std::ops::Range<u32>,
        private: std::ops::Range<u32>,
    ) {
        let first = self.plan.rows() as u32;
        let kind = match part.beam {
            None => SegmentKind::Causal,
            Some(b) => SegmentKind::Beam {
                search: SearchId(index as u32),
                level: b.level as u8,
                private: private.clone(),
                stride: b.stride,
            },
        };
        for at in 0..part.context + part.beam.map_or(part.rows, |_| 0) {
            self.store(part, table.start, at, at);
        }
        if let Some(b) = part.beam {
            for level in 0..=b.level {
                for beam in 0..if level == b.level { b.live } else { part.rows } {
                    let place = level * b.stride + beam;
                    self.store(part, private.start, place, PRIVATE + place);
                }
            }
        }
        for row in 0..part.rows {
            for head in 0..self.model.heads() {
                for d in 0..self.model.head_dim {
                    self.query.push(self.model.element(QUERY, part.seed, row + part.context, head, d));
                }
            }
        }
        self.plan.tokens.resize((first + part.rows) as usize, TokenId(0));
        let rows = first..first + part.rows;
        self.plan.segments.push(Segment { rows, table, context: part.context, kind });
    }

    /// Writes key and value number `name` to place `at` of a table.
    fn store(&mut self, part: &Part, table: u32, at: u32, name: u32) {
        let block = self.plan.blocks[(table + at / 16) as usize].0 as usize;
        let model = self.model;
        for head in 0..model.kv_heads {
            let to = ((block * model.kv_heads + head) * 16 + at as usize % 16) * model.head_dim;
            for d in 0..model.head_dim {
                self.keys[to + d] = model.element(KEY, part.seed, name, head, d);
                self.values[to + d] = model.element(VALUE, part.seed, name, head, d);
            }
        }
    }

    pub fn limits(&self) -> AttentionLimits {
        AttentionLimits {
            multiprocessors: 3,
            group: self.model.group as u32,
            kv_heads: self.model.kv_heads as u32,
            wide: WIDE[0],
            max_items: 4096,
            max_units: 4096,
            reproducible: false,
        }
    }

    pub fn shape(&self, limits: &AttentionLimits) -> AttentionShape {
        AttentionShape {
            heads: self.model.heads() as u32,
            kv_heads: limits.kv_heads,
            head_dim: self.model.head_dim as u32,
            cache_blocks: self.cache_blocks as u32,
            max_rows: self.plan.rows() as u32 + 1,
            max_segments: self.parts.len() as u32,
            max_items: limits.max_items,
            max_table: self.plan.blocks.len() as u32,
            max_units: limits.max_units,
        }
    }

    pub fn kernels(&self, driver: &mut dyn Driver, limits: &AttentionLimits) -> Attention {
        Attention::new(driver, self.model.dtype, self.shape(limits), limits.reproducible).unwrap()
    }

    /// Attention's result, `[rows, heads, head_dim]`.
    pub fn run(&self, driver: &mut dyn Driver, limits: &AttentionLimits) -> Vec<u16> {
        let kernels = self.kernels(driver, limits);
        let limits = &AttentionLimits { wide: kernels.wide(), ..*limits };
        let device = OnDevice::new(self, driver, limits, &kernels);
        let mut plan = AttentionPlan::default();
        plan.build(&self.plan, limits, |search| device.view(search.0)).unwrap();
        device.put(driver, &plan);
        let bucket = AttentionBucket {
            narrow: plan.narrow.len() as u32,
            wide: plan.wide.len() as u32,
            joined_rows: self.plan.rows() as u32,
        };
        kernels.enqueue(driver, &device.buffers, &device.layer, &bucket).unwrap();
        device.out(driver, self)
    }

    /// Compares with the reference.
    pub fn check(&self, out: &[u16], words: &str) {
        let model = self.model;
        let (mut at, mut row) = (0, 0);
        let (absolute, relative) = match (model.counting, model.dtype) {
            (true, DType::Bf16) => (1e-6, 0.0045),
            (true, _) => (1e-6, 0.0006),
            (false, DType::Bf16) => (0.006, 0.006),
            (false, _) => (0.0008, 0.0008),
        };
        for part in &self.parts {
            for local in 0..part.rows {
                for head in 0..model.heads() {
                    for (d, expected) in part.reference(&model, local, head).iter().enumerate() {
                        let found = f64::from(from_bits(model.dtype, out[at]));
                        assert!(
                            (found - expected).abs() <= absolute + relative * expected.abs(),
                            "{words}: {model:?} {part:?}, row {local} ({row}), head {head}, dimension {d}: {found}, not {expected}"
                        );
                        at += 1;
                    }
                }
                row += 1;
            }
        }
    }
}

/// A batch in device memory.
pub struct OnDevice {
    pub buffers: AttentionBuffers,
    pub layer: AttentionLayer,
    views: Vec<DevicePtr>,
    first: DevicePtr,
}

impl OnDevice {
    pub fn new(
        case: &Case,
        driver: &mut dyn Driver,
        limits: &AttentionLimits,
        kernels: &Attention,
    ) -> OnDevice {
        let shape = case.shape(limits);
        let out = (case.query.len() + case.model.heads() * case.model.head_dim) * 2;
        let [partial, sums] = shape.partial_bytes();
        let items = limits.max_items as usize * 32;
        let segments = case.parts.len() * 64;
        let rows = shape.max_rows as usize * 4;
        let table = case.plan.blocks.len().max(1) * 4;
        let cache = case.keys.len() * 2;
        let mut sizes = vec![out, out, partial, sums, 32, segments, items, items, rows, table, cache, cache];
        sizes.resize(12 + case.parts.len(), BEAM_VIEW_BYTES);
        let at = driver.allocate("attention test", &sizes).unwrap();
        for (at, &bytes) in at.iter().zip(&sizes) {
            driver.fill(*at, 0xff, bytes).unwrap();
        }
        driver.upload(at[0], cast_slice(&case.query)).unwrap();
        let blocks: Vec<u32> = case.plan.blocks.iter().map(|b| b.0).collect();
        driver.upload(at[9], cast_slice(&blocks)).unwrap();
        driver.upload(at[10], cast_slice(&case.keys)).unwrap();
        driver.upload(at[11], cast_slice(&case.values)).unwrap();
        for (part, &to) in case.parts.iter().zip(&at[12..]) {
            if let Some(view) = beam_view(part) {
                driver.upload(to, &view).unwrap();
            }
        }
        let buffers = AttentionBuffers {
            q: at[0],
            out: at[1],
            partial: [at[2], at[3]],
            counts: at[4],
            segments: at[5],
            narrow: at[6],
            wide: at[7],
            row_segment: at[8],
            blocks: at[9],
        };
        let layer = kernels.layer(driver, [at[10], at[11]], case.model.window).unwrap();
        OnDevice { buffers, layer, views: at[12..].to_vec(), first: at[0] }
    }

    pub fn view(&self, search: u32) -> DevicePtr {
        self.views[search as usize]
    }

    /// Fills the plan buffer.
    pub fn put(&self, driver: &mut dyn Driver, plan: &AttentionPlan) {
        let counts = StepCounts {
            rows: plan.row_segment.len() as u32,
            segments: plan.segments.len() as u32,
            narrow_items: plan.narrow.len() as u32,
            wide_items: plan.wide.len() as u32,
            ..StepCounts::zeroed()
        };
        driver.upload(self.buffers.counts, bytes_of(&counts)).unwrap();
        driver.upload(self.buffers.segments, cast_slice(&plan.segments)).unwrap();
        for (to, items) in [(self.buffers.narrow, &plan.narrow), (self.buffers.wide, &plan.wide)] {
            if !items.is_empty() {
                driver.upload(to, cast_slice(items)).unwrap();
            }
        }
        driver.upload(self.buffers.row_segment, cast_slice(&plan.row_segment)).unwrap();
    }

    /// Downloads the result, sees to it that the row after the last is untouched, and frees everything.
    pub fn out(&self, driver: &mut dyn Driver, case: &Case) -> Vec<u16> {
        let elements = case.query.len() + case.model.heads() * case.model.head_dim;
        let bytes = driver.download(self.buffers.out, elements * 2).unwrap();
        self.free(driver);
        let mut out: Vec<u16> = bytemuck::allocation::pod_collect_to_vec(&bytes);
        assert!(out.split_off(case.query.len()).iter().all(|&bits| bits == POISON), "a row beyond the last");
        out
    }
}

impl OnDevice {
    /// Waits, and frees everything.
    pub fn free(&self, driver: &mut dyn Driver) {
        driver.synchronize().unwrap();
        driver.free(self.first).unwrap();
    }
}

/// A `BeamView`, poison where nothing is said of.
fn beam_view(part: &Part) -> Option<Vec<u8>> {
    let beam = part.beam?;
    let mut bytes = vec![0xff; BEAM_VIEW_BYTES];
    bytes[..4].copy_from_slice(&beam.live.to_le_bytes());
    for level in 0..=beam.level {
        for w in 0..beam.live {
            let at = 16 + 4 * MAX_WIDTH + 2 * (level as usize * MAX_WIDTH + w as usize);
            bytes[at..at + 2].copy_from_slice(&(part.ancestor(level, w) as u16).to_le_bytes());
        }
    }
    Some(bytes)
}
