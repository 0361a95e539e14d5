//! The CPU device: the executable specification of [`ops`](super::ops) and the default.
//!
//! The decision behind it: one order of sums for every shape of batch (see [`ops`](super::ops)), and within it what the machine
//! allows. Weights stay where they are mapped. Activations are float32 arrays that hold values of `D`; where weights and `D` are
//! bf16 and the CPU multiplies bf16 pairs, rows carry a bf16 copy. Everything is allocated when the device is made, in pages that
//! cost nothing until they are touched. `pool` runs the tasks, `simd` chooses the instructions.

mod attention;
mod bandwidth;
mod buffers;
mod cache;
mod elementwise;
pub mod logsum;
mod matmul;
mod pool;
pub mod sample;
mod search;
pub mod sid;
mod simd;
mod step;
#[cfg(test)]
mod tests;

use std::ops::Range;

pub use bandwidth::{Reader, read_bandwidth};
pub use matmul::Columns;
pub use simd::SimdLevel;

use attention::Attention;
use buffers::{Half, Rows};
use cache::Cache;
use elementwise::{Gate, Head, Rms, residual};
use half::slice::HalfFloatSliceExt;
use matmul::{Compute, Matrix};
use sample::TextSampler;
use search::{Searches, VOCAB_BLOCK};
use simd::Simd;
use step::{Source, Step};

use super::check::{self, Bounds};
use super::ops::{
    Buffer, DType, Device, DeviceConfig, LayerWeights, Outcome, Path, Plan, SearchSpec, Shape, Tensor,
    Weights,
};
use crate::error::{Error, Result};
use crate::ids::SearchId;

/// Rows from which work on single rows is worth a fork.
const FORK_ROWS: usize = 8;
/// Rows of such a task.
const TASK_ROWS: usize = 16;

/// How the CPU device runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuOptions {
    /// Threads, the caller's among them. Default: one per core.
    pub threads: Option<usize>,
    /// Instructions. Default: the best that the CPU has.
    pub simd: Option<SimdLevel>,
}

/// The decoder's operations on the CPU.
pub struct CpuDevice {
    shape: Shape,
    weights: Weights,
    dtype: DType,
    bounds: Bounds,
    /// The small vectors of each layer in float32.
    vectors: Vec<LayerVectors>,
    /// The final norm's weight.
    norm: Vec<f32>,
    compute: Compute,
    cache: Cache,
    step: Step,
    searches: Searches,
    sampler: TextSampler,
    /// The residual stream `[rows, hidden]`.
    x: Rows,
    /// Its norm `[rows, hidden]`.
    h: Rows,
    /// `[rows, (heads + 2 kv_heads) * head_dim]`: a layer's `q`, `k`, `v` before rope.
    qkv: Rows,
    query: Rows,
    attended: Rows,
    gated: Rows,
    /// Normed rows that the head is applied to.
    head_rows: Rows,
    /// `[full_logits + text, vocab]`; grows to the largest step seen.
    logits: Vec<f32>,
    /// Rows of the plan's `full_logits`, the first ones of `logits`.
    full_logits: usize,
    outcome: Outcome,
}

struct LayerVectors {
    input_norm: Vec<f32>,
    post_norm: Vec<f32>,
    qk_norm: Option<[Vec<f32>; 2]>,
    qkv_bias: Option<Vec<f32>>,
    o_bias: Option<Vec<f32>>,
}

impl LayerVectors {
    fn new(w: &LayerWeights) -> LayerVectors {
        LayerVectors {
            input_norm: w.input_norm.to_f32(),
            post_norm: w.post_norm.to_f32(),
            qk_norm: w.qk_norm.as_ref().map(|n| n.each_ref().map(Tensor::to_f32)),
            qkv_bias: w.qkv_bias.as_ref().map(|b| b.iter().flat_map(Tensor::to_f32).collect()),
            o_bias: w.o_bias.as_ref().map(Tensor::to_f32),
        }
    }
}

/// Cores that this process may use.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

impl CpuDevice {
    /// Makes a device.
    ///
    /// # Errors
    /// [`Error::Device`] or [`Error::Unsupported`] with the size, tensor or instruction set that does not fit.
    pub fn new(config: DeviceConfig, options: CpuOptions) -> Result<CpuDevice> {
        check::config(&config, attention::TILE)?;
        let DeviceConfig { shape, weights, dtype, cache_blocks, max_rows, text_tokens, layout } = config;
        let opener = layout.as_ref().and_then(|layout| layout.open);
        let sampler = TextSampler::new(shape.vocab, &text_tokens, opener)?;
        let simd = Simd::new(options.simd.unwrap_or_else(SimdLevel::detect))?;
        let pool = pool::Pool::new(options.threads.unwrap_or_else(cores))?;
        let pairs = simd.level() == SimdLevel::Avx512Bf16 && dtype == DType::Bf16;
        let half = if pairs { Half::Beside } else { Half::Absent };
        let (q, kv) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        let cache = Cache::new(&shape, dtype, cache_blocks);
        let widest = shape.hidden.max(q).max(shape.ffn);
        Ok(CpuDevice {
            vectors: weights.layers.iter().map(LayerVectors::new).collect(),
            norm: weights.norm.to_f32(),
            compute: Compute::new(simd, pool, widest, attention::scratch_floats(cache.shape)),
            cache,
            bounds: Bounds { max_rows, cache_blocks },
            step: Step::default(),
            searches: Searches::new(layout),
            sampler,
            x: Rows::new(max_rows, shape.hidden, Half::Absent),
            h: Rows::new(max_rows, shape.hidden, half),
            qkv: Rows::new(max_rows, q + 2 * kv, Half::Absent),
            query: Rows::new(max_rows, q, Half::Absent),
            attended: Rows::new(max_rows, q, half),
            gated: Rows::new(max_rows, shape.ffn, half),
            // A row may be wanted for text, for evaluation and for a search.
            head_rows: Rows::new(3 * max_rows, shape.hidden, half),
            logits: Vec::new(),
            full_logits: 0,
            outcome: Outcome::default(),
            shape,
            weights,
            dtype,
        })
    }

    /// The instructions in use.
    pub fn simd_level(&self) -> SimdLevel {
        self.compute.simd.level()
    }

    /// Threads, the caller's among them.
    pub fn threads(&self) -> usize {
        self.compute.pool.threads()
    }

    /// `x [rows, k] w[columns]^T` into `out [rows, columns]`, for benches and tests of the product alone: `values` are rounded to `D`
    /// first.
    ///
    /// # Errors
    /// [`Error::Device`] if the sizes do not fit each other or this device.
    pub fn matmul(
        &mut self,
        values: &[f32],
        w: &Tensor,
        columns: Columns<'_>,
        out: &mut [f32],
    ) -> Result<()> {
        let (n, k) = match *w.shape() {
            [n, k] if k > 0 => (n, k),
            _ => return Err(Error::Device(format!("product with {w:?}: expected a matrix"))),
        };
        let count = match &columns {
            Columns::Range(r) if r.start <= r.end && r.end <= n => r.len(),
            Columns::List(list) if list.iter().all(|&c| (c as usize) < n) => list.len(),
            _ => return Err(Error::Device(format!("product with {w:?}: columns {columns:?} lie outside"))),
        };
        let rows = values.len() / k;
        let widest = self.shape.hidden.max(self.query.width()).max(self.shape.ffn);
        if values.len() != rows * k || out.len() != rows * count || k > widest {
            return Err(Error::Device(format!(
                "product with {w:?}: {} values and {} results do not fit, or rows are wider than {widest}",
                values.len(),
                out.len()
            )));
        }
        let pairs = self.dtype == DType::Bf16 && self.simd_level() == SimdLevel::Avx512Bf16;
        let mut x = Rows::new(rows, k, if pairs { Half::Beside } else { Half::Absent });
        let (simd, writer) = (self.compute.simd, x.writer(rows, self.dtype));
        for (row, values) in values.chunks_exact(k).enumerate() {
            // SAFETY: one row after the other.
            unsafe { writer.put(simd, row, 0, values) };
        }
        self.compute.matmul(x.input(rows), w, columns, out);
        Ok(())
    }

    /// Calls `work` for ranges of the step's rows, on all threads if there are many.
    fn by_rows(compute: &mut Compute, rows: usize, work: &(dyn Fn(usize) + Sync)) {
        if rows < FORK_ROWS {
            return (0..rows).for_each(work);
        }
        compute.pool.run(rows.div_ceil(TASK_ROWS), &|_, i| {
            (i * TASK_ROWS..((i + 1) * TASK_ROWS).min(rows)).for_each(work);
        });
    }

    /// `h = rms(x) * weight` for all rows.
    fn norm_rows(&mut self, layer: usize, which: impl Fn(&LayerVectors) -> &[f32]) {
        let (rows, simd, eps) = (self.step.rows, self.compute.simd, self.shape.eps);
        let weight = which(&self.vectors[layer]);
        let (x, h) = (&self.x, self.h.writer(rows, self.dtype));
        Self::by_rows(&mut self.compute, rows, &|row| {
            // SAFETY: every row is visited once.
            unsafe {
                h.fill(simd, row, 0..x.width(), |out| simd.run(Rms { x: x.row(row), weight, eps, out }));
            }
        });
    }

    /// `x += y w^T (+ bias)`.
    fn add_product(&mut self, layer: usize, what: Into) {
        let (rows, simd) = (self.step.rows, self.compute.simd);
        let (y, w, bias) = match what {
            Into::AttentionOutput => {
                (&self.attended, &self.weights.layers[layer].o, self.vectors[layer].o_bias.as_deref())
            }
            Into::MlpOutput => (&self.gated, &self.weights.layers[layer].down, None),
        };
        let x = self.x.writer(rows, self.dtype);
        self.compute.product(y.input(rows), &Matrix::stacked(&[w]), &|row, column, values| {
            let columns = column..column + values.len();
            // SAFETY: the sink's calls do not overlap.
            unsafe {
                x.fill(simd, row, columns.clone(), |x| residual(x, values, bias.map(|b| &b[columns])));
            }
        });
    }

    /// Norms and rotates the step's `q`, `k`, puts `q` into its buffer and `k`, `v` into the cache.
    fn place_heads(&mut self, layer: usize) {
        let rows = self.step.rows;
        let half = self.shape.head_dim / 2;
        let task = HeadTasks {
            simd: self.compute.simd,
            shape: &self.shape,
            dtype: self.dtype,
            norms: self.vectors[layer].qk_norm.as_ref(),
            step: &self.step,
            qkv: self.qkv.writer(rows, DType::F32),
            query: self.query.writer(rows, self.dtype),
            cache: self.cache.writer(layer),
            half,
        };
        let kv_heads = self.shape.kv_heads;
        if rows < FORK_ROWS {
            (0..rows).for_each(|row| task.queries(row));
            return (0..kv_heads).for_each(|head| task.keys(head));
        }
        // A task writes one head's keys of all rows: neighbouring tokens share cache lines.
        self.compute.pool.run(kv_heads + rows.div_ceil(TASK_ROWS), &|_, i| match i.checked_sub(kv_heads) {
            None => task.keys(i),
            Some(i) => (i * TASK_ROWS..((i + 1) * TASK_ROWS).min(rows)).for_each(|row| task.queries(row)),
        });
    }

    /// Norms rows of the residual stream into [`CpuDevice::head_logits`]' rows, from `first` on.
    fn norm_head_rows(&mut self, first: usize, rows: &[usize]) {
        let (simd, eps, weight) = (self.compute.simd, self.shape.eps, &self.norm);
        let (x, h) = (&self.x, self.head_rows.writer(first + rows.len(), self.dtype));
        Self::by_rows(&mut self.compute, rows.len(), &|i| {
            // SAFETY: every row is visited once.
            unsafe {
                let x = x.row(rows[i]);
                h.fill(simd, first + i, 0..x.len(), |out| simd.run(Rms { x, weight, eps, out }));
            }
        });
    }

    /// Logits of normed rows `rows` (see [`CpuDevice::norm_head_rows`]) over some of the vocabulary, into `out [rows, columns]`.
    fn head_logits(&mut self, rows: Range<usize>, columns: Columns<'_>, out: &mut [f32]) {
        let x = self.head_rows.input(rows.end).skip(rows.start);
        self.compute.matmul(x, &self.weights.head, columns, out);
    }

    /// The logits that the plan's searches need: their codebooks', and sums over the vocabulary where that is the normaliser.
    fn search_logits(&mut self, plan: &Plan) -> Result<()> {
        if plan.sids.is_empty() {
            return Ok(());
        }
        self.searches.gather(plan)?;
        let groups = std::mem::take(&mut self.searches.groups);
        let mut logits = std::mem::take(&mut self.searches.logits);
        for group in &groups {
            let tokens = self.searches.tokens(group)?;
            self.norm_head_rows(0, &group.rows);
            let out = &mut logits[group.at.clone()];
            match tokens.contiguous() {
                Some(first) => {
                    let columns = first.index()..first.index() + tokens.len();
                    self.head_logits(0..group.rows.len(), Columns::Range(columns), out);
                }
                None => {
                    let list: Vec<u32> = (0..tokens.len()).map(|code| tokens.token(code as u16).0).collect();
                    self.head_logits(0..group.rows.len(), Columns::List(&list), out);
                }
            }
        }
        self.searches.groups = groups;
        self.searches.logits = logits;
        self.searches.norm_codebooks(&mut self.compute.pool);
        self.vocabulary_sums();
        Ok(())
    }

    /// Running sums over the whole vocabulary for the rows that are normalised over it.
    fn vocabulary_sums(&mut self) {
        let rows = std::mem::take(&mut self.searches.vocabulary_rows);
        let mut sums = std::mem::take(&mut self.searches.sums);
        sums.clear();
        sums.resize(rows.len(), (f32::NEG_INFINITY, 0.0));
        if !rows.is_empty() {
            self.norm_head_rows(0, &rows);
            let mut block = vec![0.0; rows.len() * VOCAB_BLOCK.min(self.shape.vocab)];
            for first in (0..self.shape.vocab).step_by(VOCAB_BLOCK) {
                let columns = first..(first + VOCAB_BLOCK).min(self.shape.vocab);
                let width = columns.len();
                let logits = &mut block[..rows.len() * width];
                self.head_logits(0..rows.len(), Columns::Range(columns), logits);
                Searches::add_block(&mut sums, logits, width);
            }
        }
        self.searches.vocabulary_rows = rows;
        self.searches.sums = sums;
    }

    fn rows_of(&mut self, buffer: Buffer) -> Option<&mut Rows> {
        match buffer {
            Buffer::Hidden => Some(&mut self.x),
            Buffer::Query => Some(&mut self.query),
            Buffer::Attention => Some(&mut self.attended),
            Buffer::Gated => Some(&mut self.gated),
            Buffer::Logits => None,
        }
    }
}

/// Products that end in the residual stream.
#[derive(Clone, Copy)]
enum Into {
    AttentionOutput,
    MlpOutput,
}

/// What lies between the q/k/v product and the attention.
struct HeadTasks<'a> {
    simd: Simd,
    shape: &'a Shape,
    dtype: DType,
    norms: Option<&'a [Vec<f32>; 2]>,
    step: &'a Step,
    qkv: buffers::RowWriter<'a>,
    query: buffers::RowWriter<'a>,
    cache: cache::CacheWriter<'a>,
    half: usize,
}

impl HeadTasks<'_> {
    fn rotate(&self, row: usize, values: &mut [f32], norm: Option<&[f32]>) {
        let angles = row * self.half..(row + 1) * self.half;
        let (cos, sin) = (&self.step.cos[angles.clone()], &self.step.sin[angles]);
        self.simd.run(Head { values, norm, eps: self.shape.eps, cos, sin });
    }

    fn queries(&self, row: usize) {
        let dim = self.shape.head_dim;
        for head in 0..self.shape.heads {
            let columns = head * dim..(head + 1) * dim;
            // SAFETY: a row's queries are touched by one task.
            unsafe {
                let values = self.qkv.piece(row, columns.clone());
                self.rotate(row, values, self.norms.map(|n| &n[0][..]));
                self.query.put(self.simd, row, columns.start, values);
            }
        }
    }

    fn keys(&self, head: usize) {
        let dim = self.shape.head_dim;
        let key_at = (self.shape.heads + head) * dim;
        let value_at = key_at + self.shape.kv_heads * dim;
        for row in 0..self.step.rows {
            if self.step.sources[row] == Source::Dead {
                continue;
            }
            // SAFETY: a key/value head is touched by one task.
            unsafe {
                let key = self.qkv.piece(row, key_at..key_at + dim);
                let value = self.qkv.piece(row, value_at..value_at + dim);
                self.rotate(row, key, self.norms.map(|n| &n[1][..]));
                buffers::round(self.simd, self.dtype, key);
                buffers::round(self.simd, self.dtype, value);
                self.cache.put(self.step.slots[row] as usize, head, key, value);
            }
        }
    }
}

/// Widens a row of a matrix.
fn widen(matrix: &Tensor, row: usize, out: &mut [f32]) {
    let size = out.len() * matrix.dtype().size();
    let bytes = &matrix.bytes()[row * size..(row + 1) * size];
    match matrix.dtype() {
        DType::F32 => out.copy_from_slice(bytemuck::cast_slice(bytes)),
        DType::Bf16 => bytemuck::cast_slice::<u8, half::bf16>(bytes).convert_to_f32_slice(out),
        DType::F16 => bytemuck::cast_slice::<u8, half::f16>(bytes).convert_to_f32_slice(out),
    }
}

impl Device for CpuDevice {
    fn describe(&self) -> String {
        format!("cpu, {} threads, {}, activations {}", self.threads(), self.simd_level(), self.dtype)
    }

    fn open_search(&mut self, spec: SearchSpec) -> Result<SearchId> {
        self.searches.open(spec)
    }

    fn close_search(&mut self, search: SearchId) {
        self.searches.close(search);
    }

    fn search_paths(&mut self, search: SearchId) -> Result<Vec<Path>> {
        self.searches.paths(search)
    }

    fn begin(&mut self, plan: &Plan) -> Result<()> {
        self.step.begin(plan, &self.shape, &self.bounds, &self.searches)?;
        self.full_logits = plan.full_logits.len();
        Ok(())
    }

    fn embed(&mut self, plan: &Plan) -> Result<()> {
        let (rows, simd) = (self.step.rows, self.compute.simd);
        let x = self.x.writer(rows, self.dtype);
        for (row, source) in self.step.sources.iter().enumerate() {
            // SAFETY: one row after the other.
            unsafe {
                x.fill(simd, row, 0..self.shape.hidden, |out| match *source {
                    Source::Token(token) => widen(&self.weights.embed, token.index(), out),
                    Source::Soft(i) => out.copy_from_slice(&plan.soft[i].values),
                    Source::Dead => out.fill(0.0),
                });
            }
        }
        Ok(())
    }

    fn attention_input(&mut self, _plan: &Plan, layer: usize) -> Result<()> {
        self.norm_rows(layer, |v| &v.input_norm);
        let rows = self.step.rows;
        let w = &self.weights.layers[layer];
        let bias = self.vectors[layer].qkv_bias.as_deref();
        let qkv = self.qkv.writer(rows, DType::F32);
        let w = Matrix::stacked(&[&w.q, &w.k, &w.v]);
        self.compute.product(self.h.input(rows), &w, &|row, column, values| {
            // SAFETY: the sink's calls do not overlap.
            let out = unsafe { qkv.piece(row, column..column + values.len()) };
            match bias {
                None => out.copy_from_slice(values),
                Some(b) => out.iter_mut().zip(values).zip(&b[column..]).for_each(|((o, v), b)| *o = *v + b),
            }
        });
        self.place_heads(layer);
        Ok(())
    }

    fn attention(&mut self, _plan: &Plan, layer: usize) -> Result<()> {
        let attention = Attention {
            tiles: &self.step.tiles,
            blocks: &self.step.blocks,
            chains: &self.step.chains,
            cache: &self.cache,
            layer,
            window: self.shape.window[layer],
            group: self.shape.heads / self.shape.kv_heads,
            kv_heads: self.shape.kv_heads,
            query: &self.query,
        };
        attention.run(&mut self.compute, self.attended.writer(self.step.rows, self.dtype));
        Ok(())
    }

    fn attention_output(&mut self, _plan: &Plan, layer: usize) -> Result<()> {
        self.add_product(layer, Into::AttentionOutput);
        Ok(())
    }

    fn mlp_input(&mut self, _plan: &Plan, layer: usize) -> Result<()> {
        self.norm_rows(layer, |v| &v.post_norm);
        let (rows, simd) = (self.step.rows, self.compute.simd);
        let w = &self.weights.layers[layer];
        let gated = self.gated.writer(rows, self.dtype);
        let w = Matrix::gated(&w.gate, &w.up);
        self.compute.product(self.h.input(rows), &w, &|row, column, values| {
            let (gate, up) = values.split_at_mut(values.len() / 2);
            simd.run(Gate { gate: &mut *gate, up });
            // SAFETY: the sink's calls do not overlap.
            unsafe { gated.put(simd, row, column, gate) };
        });
        Ok(())
    }

    fn mlp_output(&mut self, _plan: &Plan, layer: usize) -> Result<()> {
        self.add_product(layer, Into::MlpOutput);
        Ok(())
    }

    fn head(&mut self, plan: &Plan) -> Result<()> {
        let full = std::mem::take(&mut self.step.full);
        let vocab = self.shape.vocab;
        self.norm_head_rows(0, &full);
        let mut logits = std::mem::take(&mut self.logits);
        if logits.len() < full.len() * vocab {
            logits.resize(full.len() * vocab, 0.0);
        }
        self.head_logits(0..full.len(), Columns::Range(0..vocab), &mut logits[..full.len() * vocab]);
        self.logits = logits;
        self.step.full = full;
        self.search_logits(plan)
    }

    fn sample(&mut self, plan: &Plan) -> Result<()> {
        for (i, row) in plan.text.iter().enumerate() {
            let logits = &self.logits[(self.full_logits + i) * self.shape.vocab..][..self.shape.vocab];
            self.outcome.text.push(self.sampler.sample(logits, row));
        }
        Ok(())
    }

    fn step_sids(&mut self, plan: &Plan) -> Result<()> {
        self.searches.advance(plan, &mut self.outcome.sids)
    }

    fn finish(&mut self) -> Result<Outcome> {
        Ok(std::mem::take(&mut self.outcome))
    }

    fn read(&mut self, buffer: Buffer) -> Result<Vec<f32>> {
        let rows = self.step.rows;
        let len = self.full_logits * self.shape.vocab;
        if let Some(buffer) = self.rows_of(buffer) {
            return Ok(buffer.to_vec(rows));
        }
        if self.logits.len() < len {
            return Err(Error::Device("logits are read before the head has run".into()));
        }
        Ok(self.logits[..len].to_vec())
    }

    fn write(&mut self, buffer: Buffer, values: &[f32]) -> Result<()> {
        let (rows, simd, dtype) = (self.step.rows, self.compute.simd, self.dtype);
        let Some(to) = self.rows_of(buffer) else {
            let len = self.full_logits * self.shape.vocab;
            if values.len() != len || self.logits.len() < len {
                return Err(Error::Device(format!("{} values written to {len} logits", values.len())));
            }
            self.logits[..len].copy_from_slice(values);
            return Ok(());
        };
        let width = to.width();
        if values.len() != rows * width {
            let found = values.len();
            return Err(Error::Device(format!(
                "{found} values written to {buffer:?}, expected {rows} x {width}"
            )));
        }
        let writer = to.writer(rows, dtype);
        for (row, values) in values.chunks_exact(width).enumerate() {
            // SAFETY: one row after the other.
            unsafe { writer.put(simd, row, 0, values) };
        }
        Ok(())
    }
}
