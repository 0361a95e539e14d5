//! The CUDA device: the operations of a decoder as sequences of launches.
//!
//! A layer is, for few rows: the product of `q`, `k`, `v` with the norm inside; q/k norm, rope and cache; attention and its join; the output
//! product with the residual; gate and up with norm and activation inside; down with the residual. For many rows the two norms are
//! launches of their own. Nothing that is launched depends on the contents of a step, only on its buckets; so a step that looks like
//! one seen before is replayed as a graph, from the embedding to the selection of codes.
//!
//! The host waits only for what it needs: a step that advances searches and ends none of them, and samples no text, is not waited for.
//! The next step is enqueued behind it, with as many rows as could be alive.

mod buffers;
mod enqueue;

use std::time::{Duration, Instant};

use super::args::StepCounts;
use super::attention::{Attention, AttentionLayer, AttentionLimits, AttentionPlan};
use super::driver::{DevicePtr, Driver, Pinned};
use super::embed::Embed;
use super::graphs::{Graphs, Way};
use super::memory::{self, MemoryPlan, RowSizes};
use super::norm::RmsNorm;
use super::plan::{Layout as PlanLayout, Part, PlanBuffer, SECTIONS, Section};
use super::products::Products;
use super::rope::RopeCache;
use super::sample::{TextSamplerCuda as TextSampler, TextSizes};
use super::sid::{SidLimits, SidSearches, SidShape};
use super::step::{Group, HeadShape, Step, bucket};
use super::weights::DeviceWeights;
use crate::catalog::Layout;
use crate::device::check::{self, Bounds};
use crate::device::ops::{
    Buffer, DType, Device, DeviceConfig, Outcome, Path, Plan, SearchSpec, Shape, SidOutcome, Tensor,
};
use crate::error::{Error, Result};
use crate::ids::SearchId;
use buffers::{Buffers, allocate_cache, attention_layers, attention_shape, check_served, rope_shape};

/// Most query heads that share a key/value head.
const MOST_GROUP: usize = 64;

/// How the CUDA device runs.
#[derive(Clone, Copy, Debug)]
pub struct CudaOptions {
    /// One order of every sum, whatever else is in the batch; slower. Default: off.
    pub reproducible: bool,
    /// Replay steps that repeat as graphs. Default: on.
    pub graphs: bool,
    /// How long a step may take before the device counts as hung. Default: 20 s.
    pub limit: Duration,
}

impl Default for CudaOptions {
    fn default() -> CudaOptions {
        CudaOptions { reproducible: false, graphs: true, limit: Duration::from_secs(20) }
    }
}

/// What a step looks like to those who launch it: all that a graph has frozen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct StepShape {
    pub layout: PlanLayout,
    /// Bucket of the rows.
    pub rows: usize,
    pub narrow: bool,
    pub wide: bool,
    /// Whether any segment has partial results to join.
    pub joins: bool,
    pub head: HeadShape,
    pub sids: Option<SidShape>,
}

/// The decoder's operations on a CUDA device.
pub struct CudaDevice {
    driver: Box<dyn Driver>,
    shape: Shape,
    dtype: DType,
    layout: Option<std::sync::Arc<Layout>>,
    options: CudaOptions,
    bounds: Bounds,
    memory: MemoryPlan,
    sizes: RowSizes,
    weights: DeviceWeights,
    /// Keys and values of each layer.
    cache: Vec<[DevicePtr; 2]>,
    buffers: Buffers,
    embed: Embed,
    norm: RmsNorm,
    products: Products,
    rope: RopeCache,
    attention: Attention,
    attention_layers: Vec<AttentionLayer>,
    sampler: TextSampler,
    searches: SidSearches,
    plan: PlanBuffer,
    graphs: Graphs,
    attention_plan: AttentionPlan,
    attention_limits: AttentionLimits,
    step: Step,
    counts: Vec<StepCounts>,
    /// The plan's block tables.
    blocks: Vec<u32>,
    present: Option<StepShape>,
    /// The present step's graph has run everything.
    whole: bool,
    outcome: OutcomeBuffer,
}

/// What the host reads of a step: text outcomes, then search outcomes.
struct OutcomeBuffer {
    pinned: Pinned,
    /// The step's text rows, and its searches with their levels.
    text: usize,
    sids: Vec<(SearchId, u8)>,
}

impl CudaDevice {
    /// Makes a device on a driver.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a type or shape that no kernel serves; [`Error::Device`] with what is needed and what there is, if the memory
    /// does not suffice.
    pub fn new(
        mut driver: Box<dyn Driver>,
        config: DeviceConfig,
        options: CudaOptions,
    ) -> Result<CudaDevice> {
        check::config(&config, MOST_GROUP)?;
        check_served(&config)?;
        let driver_ref = &mut *driver;
        let memory = memory::check(&config, driver_ref.free_memory()?)?;
        tracing::info!(%memory, device = driver_ref.properties().name, "device memory");
        let widest = memory::widest_k(&config.shape);
        let products =
            Products::new(driver_ref, config.dtype, widest, config.max_rows, options.reproducible)?;
        let weights = upload(driver_ref, &products, &config)?;
        let sizes = RowSizes::new(&config.shape, config.layout.as_deref(), config.max_rows);
        let sampler = sampler(driver_ref, &config, sizes.logit_rows)?;
        let DeviceConfig { shape, dtype, cache_blocks, max_rows, layout, .. } = config;
        let rope = rope_shape(&shape, cache_blocks, max_rows, weights.inv_freq);
        let attention = attention_shape(&shape, cache_blocks, &sizes);
        let attention = Attention::new(driver_ref, dtype, attention, options.reproducible)?;
        let cache = allocate_cache(driver_ref, &shape, dtype, cache_blocks)?;
        let multiprocessors = driver_ref.properties().multiprocessors;
        let limits = SidLimits { max_rows, multiprocessors };
        Ok(CudaDevice {
            attention_layers: attention_layers(driver_ref, &attention, &cache, &shape)?,
            attention_limits: attention.limits(),
            attention,
            cache,
            buffers: Buffers::new(driver_ref, &products, &shape, dtype, &sizes)?,
            embed: Embed::new(driver_ref, dtype)?,
            norm: RmsNorm::new(driver_ref, dtype)?,
            rope: RopeCache::new(driver_ref, dtype, shape.head_dim, rope)?,
            sampler,
            searches: SidSearches::new(driver_ref, layout.clone(), limits)?,
            plan: PlanBuffer::new(driver_ref, 64 << 10)?,
            graphs: Graphs::default(),
            attention_plan: AttentionPlan::default(),
            step: Step::new(sizes.logit_rows),
            counts: Vec::new(),
            blocks: Vec::new(),
            outcome: OutcomeBuffer { pinned: driver_ref.pin(4096)?, text: 0, sids: Vec::new() },
            present: None,
            whole: false,
            bounds: Bounds { max_rows, cache_blocks },
            weights,
            driver,
            shape,
            dtype,
            layout,
            options,
            memory,
            sizes,
            products,
        })
    }
}

/// Copies the weights to the device.
fn upload(driver: &mut dyn Driver, products: &Products, config: &DeviceConfig) -> Result<DeviceWeights> {
    let started = Instant::now();
    let DeviceConfig { shape, weights, dtype, layout, .. } = config;
    let uploaded = DeviceWeights::upload(driver, products, weights, shape, *dtype, layout.as_deref())?;
    tracing::info!(seconds = started.elapsed().as_secs_f64(), "weights copied");
    Ok(uploaded)
}

/// The sampler of chunks of at most `rows` text rows.
fn sampler(driver: &mut dyn Driver, config: &DeviceConfig, rows: usize) -> Result<TextSampler> {
    let sizes = TextSizes {
        vocab: config.shape.vocab,
        text_tokens: &config.text_tokens,
        opener: config.layout.as_ref().and_then(|layout| layout.open),
        max_rows: rows,
        max_edits: 1 << 16,
    };
    TextSampler::new(driver, &sizes)
}

impl CudaDevice {
    /// Packs the plan's records and works out what the step looks like.
    fn take(&mut self, plan: &Plan) -> Result<()> {
        self.searches.plan(plan)?;
        self.step.take(plan, self.searches.vocabulary_rows());
        let searches = &self.searches;
        let view = |search| searches.beam_view(search).unwrap_or(DevicePtr::NULL);
        self.attention_plan.build(plan, &self.attention_limits, view)?;
        let (chunk, vocab) = (self.sizes.logit_rows, self.shape.vocab);
        self.sampler.plan(&plan.text, |row| ((row % chunk) * vocab) as u64)?;
        self.count(plan);
        let mut moved = self.sampler.reserve(&mut *self.driver)?;
        let full = bucket(self.step.full) * vocab;
        moved |= self.buffers.hold_full_logits(&mut *self.driver, full)?;
        moved |= self.pack(plan)?;
        if moved {
            self.graphs.clear();
        }
        self.graphs.free_dropped(&mut *self.driver)?;
        self.present = Some(self.look(plan));
        self.outcome.text = plan.text.len();
        self.outcome.sids.clear();
        self.outcome.sids.extend(plan.sids.iter().map(|step| (step.search, step.level)));
        Ok(())
    }

    /// Counts the plan's records.
    fn count(&mut self, plan: &Plan) {
        let a = &self.attention_plan;
        let counts = StepCounts {
            rows: plan.rows() as u32,
            segments: a.segments.len() as u32,
            narrow_items: a.narrow.len() as u32,
            wide_items: a.wide.len() as u32,
            text_rows: plan.text.len() as u32,
            sid_steps: plan.sids.len() as u32,
            candidates: self.searches.candidates().len() as u32,
            blocks: plan.blocks.len() as u32,
        };
        // The text rows are sampled in chunks, each with counts of its own.
        self.counts.clear();
        self.counts.push(counts);
        self.counts.extend(self.step.text_chunks().map(|rows| StepCounts { text_rows: rows, ..counts }));
    }

    /// Fills the plan buffer; answers whether it moved.
    fn pack(&mut self, plan: &Plan) -> Result<bool> {
        self.blocks.clear();
        self.blocks.extend(plan.blocks.iter().map(|block| block.0));
        let (a, rows) = (&self.attention_plan, bucket(plan.rows()));
        let parts: [Part<'_>; SECTIONS] = [
            Part::of(&self.counts, 1),
            Part::of(&self.step.groups, 4),
            Part::of(&self.step.rows, rows),
            Part::of(&a.row_segment, rows),
            Part::of(&a.segments, rows.min(64)),
            Part::of(&a.narrow, 4 * rows.min(64)),
            Part::of(&a.wide, rows.min(16)),
            Part::of(&self.blocks, 16 * rows),
            Part::of(&self.step.soft, 0),
            Part::of(&self.step.head_rows, 1),
            Part::of(self.sampler.records(), 1),
            Part::of(self.sampler.edits(), 1),
            Part::of(self.searches.candidates(), 1),
            Part::of(self.searches.steps(), 1),
            Part::of(self.searches.groups(), 1),
        ];
        self.plan.fill(&mut *self.driver, &parts, self.options.limit)
    }

    /// What the step looks like whose plan has been packed.
    fn look(&self, plan: &Plan) -> StepShape {
        let a = &self.attention_plan;
        StepShape {
            layout: self.plan.layout().clone(),
            rows: bucket(plan.rows()),
            narrow: !a.narrow.is_empty(),
            wide: !a.wide.is_empty(),
            joins: a.units > 0,
            head: self.step.head.clone(),
            sids: (!plan.sids.is_empty()).then(|| self.searches.shape()),
        }
    }

    fn present(&self) -> Result<StepShape> {
        self.present.clone().ok_or_else(|| Error::Device("no step has begun".to_owned()))
    }

    fn group(&self, group: Group) -> DevicePtr {
        self.plan.at(Section::Groups).add(16 * self.step.group(group))
    }
}

impl CudaDevice {
    /// Enqueues a whole step.
    fn enqueue_whole(&mut self, s: &StepShape) -> Result<()> {
        self.driver.push_range("layers");
        self.enqueue_embed(s)?;
        for layer in 0..self.shape.layers {
            self.enqueue_attention_input(s, layer)?;
            self.enqueue_attention(s, layer)?;
            self.enqueue_attention_output(s, layer)?;
            self.enqueue_mlp_input(s, layer)?;
            self.enqueue_mlp_output(s, layer)?;
        }
        self.driver.pop_range();
        self.driver.push_range("head");
        self.enqueue_head(s)?;
        self.enqueue_sample(s)?;
        if s.sids.is_some() {
            self.enqueue_sids(s)?;
        }
        self.driver.pop_range();
        Ok(())
    }

    /// Whether the host needs to know what came of the step before it can go on.
    fn must_wait(&self) -> bool {
        let last = |&(search, level): &(SearchId, u8)| {
            self.searches.depth(search).is_none_or(|depth| usize::from(level) + 1 >= depth)
        };
        self.outcome.text > 0 || self.outcome.sids.iter().any(last)
    }

    /// Copies the outcome and waits for it.
    fn collect(&mut self) -> Result<Outcome> {
        let driver = &mut *self.driver;
        let (text, text_bytes) = self.sampler.results();
        let (sids, sid_bytes) = self.searches.results();
        if self.outcome.pinned.bytes().len() < text_bytes + sid_bytes {
            self.outcome.pinned = driver.pin((text_bytes + sid_bytes).next_power_of_two())?;
        }
        let pinned = &self.outcome.pinned;
        if text_bytes > 0 {
            driver.copy_out(pinned, 0, text, text_bytes)?;
        }
        if sid_bytes > 0 {
            driver.copy_out(pinned, text_bytes, sids, sid_bytes)?;
        }
        let done = driver.record()?;
        driver.wait(done, self.options.limit)?;
        let bytes = pinned.bytes();
        Ok(Outcome {
            text: TextSampler::outcome(self.outcome.text, &bytes[..text_bytes])?,
            sids: self.searches.outcome(&bytes[text_bytes..text_bytes + sid_bytes])?,
        })
    }

    fn floats(&mut self, at: DevicePtr, count: usize, dtype: DType) -> Result<Vec<f32>> {
        let bytes = self.driver.download(at, count * dtype.size())?;
        Ok(match dtype {
            DType::F32 => bytemuck::pod_collect_to_vec(&bytes),
            DType::Bf16 => {
                bytemuck::pod_collect_to_vec::<u8, half::bf16>(&bytes).iter().map(|v| v.to_f32()).collect()
            }
            DType::F16 => {
                bytemuck::pod_collect_to_vec::<u8, half::f16>(&bytes).iter().map(|v| v.to_f32()).collect()
            }
        })
    }

    /// Address, width and element type of a buffer.
    fn buffer(&self, buffer: Buffer) -> (DevicePtr, usize, DType) {
        let (q, b) = (self.shape.heads * self.shape.head_dim, &self.buffers);
        match buffer {
            Buffer::Hidden => (b.x.ptr(), self.shape.hidden, self.dtype),
            Buffer::Query => (b.q, q, self.dtype),
            Buffer::Attention => (b.attended.ptr(), q, self.dtype),
            Buffer::Gated => (b.gated.ptr(), self.shape.ffn, self.dtype),
            Buffer::Logits => (b.full_logits.0, self.shape.vocab, DType::F32),
        }
    }
}

impl Device for CudaDevice {
    fn describe(&self) -> String {
        let p = self.driver.properties();
        let mode = if self.options.reproducible { "reproducible" } else { "default mode" };
        format!(
            "cuda: {} ({}.{}, {} multiprocessors), {}, {mode}, {}, plan {} KiB",
            p.name,
            p.capability.0,
            p.capability.1,
            p.multiprocessors,
            self.dtype,
            self.memory,
            self.plan.bytes() >> 10
        )
    }

    fn open_search(&mut self, spec: SearchSpec) -> Result<SearchId> {
        self.searches.open(&mut *self.driver, spec)
    }

    fn close_search(&mut self, search: SearchId) {
        self.searches.close(search);
    }

    fn search_paths(&mut self, search: SearchId) -> Result<Vec<Path>> {
        self.searches.paths(&mut *self.driver, search)
    }

    fn begin(&mut self, plan: &Plan) -> Result<()> {
        check::plan(plan, &self.shape, &self.bounds)?;
        let (full, room) = (plan.full_logits.len(), self.sizes.head_rows);
        if full > room {
            return Err(Error::Device(format!(
                "plan: logits over the vocabulary are wanted of {full} rows, there is room for {room}"
            )));
        }
        self.whole = false;
        self.take(plan)
    }

    fn forward(&mut self, _plan: &Plan) -> Result<bool> {
        let shape = self.present()?;
        if !self.options.graphs {
            self.enqueue_whole(&shape)?;
        } else {
            match self.graphs.way(&shape) {
                Way::Launch => self.enqueue_whole(&shape)?,
                Way::Replay(graph) => self.driver.replay(graph)?,
                Way::Record => {
                    self.driver.begin_capture()?;
                    let enqueued = self.enqueue_whole(&shape);
                    let graph = self.driver.end_capture()?;
                    if let Err(error) = enqueued {
                        self.driver.forget(graph)?;
                        return Err(error);
                    }
                    self.graphs.keep(&shape, graph);
                    self.driver.replay(graph)?;
                }
            }
        }
        self.whole = true;
        Ok(true)
    }

    fn embed(&mut self, _plan: &Plan) -> Result<()> {
        let shape = self.present()?;
        self.enqueue_embed(&shape)
    }

    fn attention_input(&mut self, _plan: &Plan, layer: usize) -> Result<()> {
        let shape = self.present()?;
        self.enqueue_attention_input(&shape, layer)
    }

    fn attention(&mut self, _plan: &Plan, layer: usize) -> Result<()> {
        let shape = self.present()?;
        self.enqueue_attention(&shape, layer)
    }

    fn attention_output(&mut self, _plan: &Plan, layer: usize) -> Result<()> {
        let shape = self.present()?;
        self.enqueue_attention_output(&shape, layer)
    }

    fn mlp_input(&mut self, _plan: &Plan, layer: usize) -> Result<()> {
        let shape = self.present()?;
        self.enqueue_mlp_input(&shape, layer)
    }

    fn mlp_output(&mut self, _plan: &Plan, layer: usize) -> Result<()> {
        let shape = self.present()?;
        self.enqueue_mlp_output(&shape, layer)
    }

    fn head(&mut self, _plan: &Plan) -> Result<()> {
        let shape = self.present()?;
        if self.whole { Ok(()) } else { self.enqueue_head(&shape) }
    }

    fn sample(&mut self, _plan: &Plan) -> Result<()> {
        let shape = self.present()?;
        if self.whole { Ok(()) } else { self.enqueue_sample(&shape) }
    }

    fn step_sids(&mut self, _plan: &Plan) -> Result<()> {
        let shape = self.present()?;
        if self.whole { Ok(()) } else { self.enqueue_sids(&shape) }
    }

    fn finish(&mut self) -> Result<Outcome> {
        if self.must_wait() {
            return self.collect();
        }
        // As many beams as could be alive; how many are, the device knows.
        let sids = self.outcome.sids.iter();
        let live = sids.map(|&(search, level)| SidOutcome {
            live: self.searches.most_live(search, level) as u32,
            fault: false,
        });
        Ok(Outcome { text: Vec::new(), sids: live.collect() })
    }

    fn read(&mut self, buffer: Buffer) -> Result<Vec<f32>> {
        let (at, width, dtype) = self.buffer(buffer);
        let rows = if buffer == Buffer::Logits { self.step.full } else { self.step.rows.len() };
        self.floats(at, rows * width, dtype)
    }

    fn write(&mut self, buffer: Buffer, values: &[f32]) -> Result<()> {
        let (at, width, dtype) = self.buffer(buffer);
        let rows = if buffer == Buffer::Logits { self.step.full } else { self.step.rows.len() };
        if values.len() != rows * width {
            return Err(Error::Device(format!(
                "{} values for a buffer of {} elements",
                values.len(),
                rows * width
            )));
        }
        let tensor = Tensor::rounded(dtype, vec![values.len()], values);
        self.driver.upload(at, tensor.bytes())
    }
}
