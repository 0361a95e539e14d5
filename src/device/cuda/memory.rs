//! How much memory the device needs, worked out before any of it is allocated.

use super::args::BLOCK_TOKENS;
use super::{sample, sid, weights};
use crate::catalog::{Layout, LevelTokens};
use crate::device::ops::{DType, DeviceConfig, Shape, Weights};
use crate::error::{Error, Result};

/// Text rows whose logits are held at once.
const LOGIT_ROWS: usize = 256;
/// Kept free at least, for the context, modules, graphs, small buffers and catalogs (some 200 MB for ten million items, twice during a swap).
const RESERVE: u64 = 512 << 20;
/// Most tokens of a cache that takes what is free: a small model would get a hundred million, and the host keeps books on all of them.
const MOST_CACHE_TOKENS: u64 = 1 << 22;
const MIB: f64 = (1u64 << 20) as f64;

/// What is sized by the rows of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RowSizes {
    /// Rows of a step.
    pub rows: usize,
    /// Units of 16 packed queries that hold partial attention results.
    pub units: usize,
    /// Attention tiles of each kind.
    pub items: usize,
    /// Rows that the head is applied to at once. Beams of several types are listed once per type: only the device knows which is whose.
    pub head_rows: usize,
    /// Logits of codebooks that are held at once.
    pub codes: usize,
    /// Rows whose logits over the vocabulary are held at once.
    pub logit_rows: usize,
}

impl RowSizes {
    /// The sizes for steps of up to `rows` rows, whatever they ask for.
    pub fn new(shape: &Shape, layout: Option<&Layout>, rows: usize) -> RowSizes {
        let group = shape.heads / shape.kv_heads;
        let sids = sid::capacity(layout, rows);
        let codebooks = layout.iter().flat_map(|layout| &layout.types).flat_map(|kind| &kind.levels);
        let widest = codebooks.map(LevelTokens::len).max().unwrap_or(0);
        RowSizes {
            rows,
            // A beam needs a line; what is left serves to split long contexts.
            units: (2 * rows * group).div_ceil(16) + 1024.min(32 * rows),
            items: 4 * rows * group.div_ceil(16) + 1024,
            head_rows: sids.candidates.max(2 * rows),
            // A product writes whole rows up to the buffer's end: the last one must not be cut off where its width does not divide it.
            codes: (sids.logits + widest).next_multiple_of(4),
            logit_rows: rows.min(LOGIT_ROWS),
        }
    }

    /// Bytes of the buffers: `x`, `qkv`, `q`, attended, gated, head rows; partial results and their sums; logits over the vocabulary, their
    /// normalisers; logits of codebooks.
    pub fn bytes(&self, shape: &Shape, dtype: DType) -> [usize; 11] {
        let (d, q) = (dtype.size(), shape.heads * shape.head_dim);
        let kv = shape.kv_heads * shape.head_dim;
        [
            self.rows * shape.hidden * d,
            self.rows * (q + 2 * kv) * 4,
            self.rows * q * d,
            self.rows * q * d,
            self.rows * shape.ffn * d,
            self.head_rows * shape.hidden * d,
            self.units * shape.kv_heads * 16 * shape.head_dim * 4,
            self.units * shape.kv_heads * 16 * 8,
            self.logit_rows * shape.vocab * 4,
            self.rows * 4,
            self.codes * 4,
        ]
    }
}

/// The widest rows that enter a product.
pub(super) fn widest_k(shape: &Shape) -> usize {
    shape.hidden.max(shape.heads * shape.head_dim).max(shape.ffn)
}

/// Bytes of one block of the cache, all layers.
pub(super) fn block_bytes(shape: &Shape, dtype: DType) -> usize {
    2 * shape.layers * shape.kv_heads * shape.head_dim * dtype.size() * BLOCK_TOKENS
}

/// What a device takes, by purpose.
#[derive(Clone, Debug)]
pub struct MemoryPlan {
    /// Bytes of weights.
    pub weights: u64,
    /// Bytes of the key/value cache.
    pub cache: u64,
    /// Bytes of everything that is sized by the rows of a step.
    pub rows: u64,
    /// Kept free.
    pub reserve: u64,
    /// Bytes free before anything was allocated.
    pub free: u64,
}

impl std::fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mib = |bytes: u64| bytes as f64 / MIB;
        write!(
            f,
            "weights {:.0} MiB, cache {:.0} MiB, step buffers {:.0} MiB, kept free {:.0} MiB, of {:.0} MiB free",
            mib(self.weights),
            mib(self.cache),
            mib(self.rows),
            mib(self.reserve),
            mib(self.free)
        )
    }
}

fn rows_bytes(shape: &Shape, dtype: DType, layout: Option<&Layout>, rows: usize) -> u64 {
    let sizes = RowSizes::new(shape, layout, rows);
    let buffers = sizes.bytes(shape, dtype).iter().sum::<usize>();
    // Rows that a norm writes for a wide product.
    let normed = rows * widest_k(shape) * dtype.size();
    let text = sample::bytes(shape.vocab, sizes.logit_rows);
    (buffers + normed + text + sid::bytes(layout, rows)) as u64
}

/// What the device kept back may be: little where there is little.
fn reserve(free: u64) -> u64 {
    (free / 32).max(RESERVE).min(free / 16)
}

/// What decides how large a cache can be.
pub struct Fit<'a> {
    /// Sizes of the model.
    pub shape: &'a Shape,
    /// Its weights.
    pub weights: &'a Weights,
    /// Its SIDs.
    pub layout: Option<&'a Layout>,
    /// Type of activations and cache.
    pub dtype: DType,
}

impl Fit<'_> {
    /// Bytes of the largest cache that fits into `free` bytes beside weights and the buffers of steps of `rows` rows, and of four million
    /// tokens at most.
    pub fn cache_bytes(&self, rows: usize, free: u64) -> usize {
        let weights = weights::bytes(self.weights, self.shape, self.dtype, self.layout) as u64;
        let most = MOST_CACHE_TOKENS / BLOCK_TOKENS as u64 * block_bytes(self.shape, self.dtype) as u64;
        cache_that_fits(weights, self.shape, self.dtype, self.layout, rows, free).min(most) as usize
    }
}

/// Bytes of the largest cache, in whole blocks; 0 if nothing is left.
fn cache_that_fits(
    weights: u64,
    shape: &Shape,
    dtype: DType,
    layout: Option<&Layout>,
    rows: usize,
    free: u64,
) -> u64 {
    let taken = weights + rows_bytes(shape, dtype, layout, rows) + reserve(free);
    let block = block_bytes(shape, dtype) as u64;
    free.saturating_sub(taken) / block * block
}

/// Checks that a device fits into what is free.
///
/// # Errors
/// [`Error::Device`] with what is needed, what there is, and what would fit.
pub(super) fn check(config: &DeviceConfig, free: u64) -> Result<MemoryPlan> {
    let (shape, dtype) = (&config.shape, config.dtype);
    let plan = MemoryPlan {
        weights: weights::bytes(&config.weights, shape, dtype, config.layout.as_deref()) as u64,
        cache: (config.cache_blocks * block_bytes(shape, dtype)) as u64,
        rows: rows_bytes(shape, dtype, config.layout.as_deref(), config.max_rows),
        reserve: reserve(free),
        free,
    };
    if plan.weights + plan.cache + plan.rows + plan.reserve <= free {
        return Ok(plan);
    }
    Err(Error::Device(format!(
        "the device needs {:.0} MiB and has {:.0} MiB free ({plan}); {}",
        (plan.weights + plan.cache + plan.rows + plan.reserve) as f64 / MIB,
        free as f64 / MIB,
        ways_out(&plan, config)
    )))
}

/// What would fit: a smaller cache, smaller steps, or both.
fn ways_out(plan: &MemoryPlan, config: &DeviceConfig) -> String {
    let (shape, dtype, rows) = (&config.shape, config.dtype, config.max_rows);
    let layout = config.layout.as_deref();
    let cache = |rows: usize| cache_that_fits(plan.weights, shape, dtype, layout, rows, plan.free);
    let mib = |bytes: u64| bytes >> 20;
    let mut ways = Vec::new();
    if mib(cache(rows)) > 0 {
        ways.push(format!("a cache of {} MiB (--cache-mib)", mib(cache(rows))));
    }
    let fewer = std::iter::successors(Some(rows / 2), |rows| Some(rows / 2))
        .take_while(|&rows| rows > 0)
        .find(|&rows| cache(rows) >= plan.cache);
    if let Some(fewer) = fewer {
        ways.push(format!("steps of {fewer} rows (--max-rows)"));
    }
    let small = (rows / 4).max(1);
    if small < rows && mib(cache(small)) > 0 {
        ways.push(format!("steps of {small} rows with a cache of {} MiB", mib(cache(small))));
    }
    if ways.is_empty() {
        return "the weights alone do not leave room: a smaller model is needed".to_owned();
    }
    format!("what would fit: {}", ways.join("; or "))
}
