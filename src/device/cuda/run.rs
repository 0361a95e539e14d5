//! The CUDA device: the operations of a decoder as sequences of launches.
//!
//! A layer is, for few rows: the product of `q`, `k`, `v` with the norm inside; q/k norm, rope and cache; attention and its join; the output
//! product with the residual; gate and up with norm and activation inside; down with the residual. For many rows the two norms are
//! launches of their own. Nothing that is launched depends on the contents of a step, only on its buckets; so a step that looks like
//! one seen before is replayed as a graph, from the embedding to the selection of codes.
//!
//! The host waits only for what it needs: a step that advances searches and ends none of them, and samples no text, is not waited for.
//! The next step is enqueued behind it, with as many rows as could be alive.

use std::time::{Duration, Instant};

use super::args::StepCounts;
use super::attention::{Attention, AttentionPlan};
use super::driver::{DevicePtr, Driver, Event, Pinned};
use super::embed::Embed;
use super::graphs::Graphs;
use super::memory::{self, MemoryPlan, RowSizes};
use super::norm::RmsNorm;
use super::plan::{Layout as PlanLayout, Part, PlanBuffer, SECTIONS, Section};
use super::products::{Activations, Epilogue, Norm, Product, Products};
use super::rope::RopeCache;
use super::sample::TextSampler;
use super::sid::{SidLimits, SidSearches, SidShape};
use super::step::{Group, HeadShape, Step, bucket};
use super::weights::DeviceWeights;
use crate::catalog::Layout;
use crate::device::check::{self, Bounds};
use crate::device::ops::{Buffer, DType, Device, DeviceConfig, Outcome, Path, Plan, SearchSpec, Shape};
use crate::error::{Error, Result};
use crate::ids::SearchId;

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
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct StepShape {
    layout: PlanLayout,
    rows: usize,
    narrow: bool,
    wide: bool,
    /// Whether any segment has partial results to join.
    joins: bool,
    head: HeadShape,
    sids: Option<SidShape>,
}

/// Buffers that are sized by the rows of a step.
struct Buffers {
    x: Activations,
    /// `[rows, q + 2 kv]` float32.
    qkv: DevicePtr,
    q: DevicePtr,
    attended: Activations,
    gated: Activations,
    head_rows: Activations,
    partial: DevicePtr,
    partial_sums: DevicePtr,
    /// `[logit_rows, vocab]` float32.
    logits: DevicePtr,
    /// Logits of codebooks, float32; grows.
    code_logits: (DevicePtr, usize),
    /// `[rows]` float32: normalisers over the vocabulary.
    norms: DevicePtr,
    /// Logits of `full_logits`; grows.
    full_logits: (DevicePtr, usize),
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
    sampler: TextSampler,
    searches: SidSearches,
    plan: PlanBuffer,
    graphs: Graphs,
    attention_plan: AttentionPlan,
    step: Step,
    present: Option<StepShape>,
    /// The present step's graph has run everything.
    whole: bool,
    outcome: OutcomeRing,
    pending: bool,
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
    pub fn new(mut driver: Box<dyn Driver>, config: DeviceConfig, options: CudaOptions) -> Result<CudaDevice> {
        check::config(&config, MOST_GROUP)?;
        check_served(&config)?;
        let driver_ref = &mut *driver;
        let memory = memory::check(&config, driver_ref.free_memory()?)?;
        tracing::info!(%memory, device = driver_ref.properties().name, "device memory");
        let DeviceConfig { shape, weights, dtype, cache_blocks, max_rows, text_tokens, layout } = config;
        let sizes = RowSizes::new(&shape, max_rows);
        let widest = shape.hidden.max(shape.heads * shape.head_dim).max(shape.ffn);
        let products = Products::new(driver_ref, dtype, widest, max_rows, options.reproducible)?;
        let started = Instant::now();
        let on_device =
            DeviceWeights::upload(driver_ref, &products, &weights, &shape, dtype, layout.as_deref())?;
        tracing::info!(seconds = started.elapsed().as_secs_f64(), "weights copied");
        let opener = layout.as_ref().and_then(|layout| layout.open);
        let cache = allocate_cache(driver_ref, &shape, dtype, cache_blocks)?;
        let buffers = Buffers::new(driver_ref, &products, &shape, dtype, &sizes)?;
        let limits = SidLimits { max_rows, multiprocessors: driver_ref.properties().multiprocessors };
        Ok(CudaDevice {
            embed: Embed::new(driver_ref, dtype)?,
            norm: RmsNorm::new(driver_ref, dtype)?,
            rope: RopeCache::new(driver_ref, dtype, shape.head_dim)?,
            attention: Attention::new(driver_ref, dtype, shape.head_dim)?,
            sampler: TextSampler::new(driver_ref, shape.vocab, &text_tokens, opener, max_rows)?,
            searches: SidSearches::new(driver_ref, layout.clone(), limits)?,
            plan: PlanBuffer::new(driver_ref, 64 << 10)?,
            graphs: Graphs::default(),
            attention_plan: AttentionPlan::default(),
            step: Step::new(sizes.logit_rows),
            outcome: OutcomeBuffer { pinned: driver_ref.pin(4096)?, text: 0, sids: Vec::new() },
            present: None,
            whole: false,
            bounds: Bounds { max_rows, cache_blocks },
            weights: on_device,
            driver,
            shape,
            dtype,
            layout,
            options,
            memory,
            sizes,
            cache,
            buffers,
            products,
        })
    }
}

/// Refuses types and shapes that no kernel serves.
fn check_served(config: &DeviceConfig) -> Result<()> {
    let s = &config.shape;
    if config.dtype == DType::F32 {
        return Err(Error::Unsupported(
            "the CUDA device computes in bf16 or f16; f32 is served by the CPU (--dtype bf16)".to_owned(),
        ));
    }
    if ![16, 32, 64, 128].contains(&s.head_dim) {
        return Err(Error::Unsupported(format!(
            "heads of {} values: the CUDA kernels serve 16, 32, 64 and 128",
            s.head_dim
        )));
    }
    for (name, size) in [("hidden", s.hidden), ("ffn", s.ffn)] {
        if !size.is_multiple_of(8) {
            return Err(Error::Unsupported(format!(
                "{name} is {size}: the CUDA kernels need a multiple of 8"
            )));
        }
    }
    Ok(())
}

fn allocate_cache(
    driver: &mut dyn Driver,
    shape: &Shape,
    dtype: DType,
    blocks: usize,
) -> Result<Vec<[DevicePtr; 2]>> {
    let half = memory::block_bytes(shape, dtype) / shape.layers / 2 * blocks;
    let at = driver.allocate("key/value cache", &vec![half; 2 * shape.layers])?;
    // Unused places are multiplied by weights of exactly 0, which NaN would survive.
    for &at in &at {
        driver.fill(at, 0, half)?;
    }
    Ok(at.chunks_exact(2).map(|pair| [pair[0], pair[1]]).collect())
}

impl Buffers {
    fn new(
        driver: &mut dyn Driver,
        products: &Products,
        shape: &Shape,
        dtype: DType,
        sizes: &RowSizes,
    ) -> Result<Buffers> {
        let at = driver.allocate("step buffers", &sizes.bytes(shape, dtype)[..9])?;
        let norms = driver.allocate("normalisers", &[sizes.rows * 4])?[0];
        let q = shape.heads * shape.head_dim;
        Ok(Buffers {
            x: products.activations(driver, at[0], sizes.rows, shape.hidden)?,
            qkv: at[1],
            q: at[2],
            attended: products.activations(driver, at[3], sizes.rows, q)?,
            gated: products.activations(driver, at[4], sizes.rows, shape.ffn)?,
            head_rows: products.activations(driver, at[5], sizes.head_rows, shape.hidden)?,
            partial: at[6],
            partial_sums: at[7],
            logits: at[8],
            code_logits: (DevicePtr::NULL, 0),
            norms,
            full_logits: (DevicePtr::NULL, 0),
        })
    }
}

/// Makes sure that a buffer holds `floats` float32; answers whether it moved.
fn grow(
    driver: &mut dyn Driver,
    purpose: &'static str,
    buffer: &mut (DevicePtr, usize),
    floats: usize,
) -> Result<bool> {
    if floats <= buffer.1 {
        return Ok(false);
    }
    let floats = floats.next_power_of_two();
    if buffer.1 > 0 {
        driver.free(buffer.0)?;
    }
    *buffer = (driver.allocate(purpose, &[floats * 4])?[0], floats);
    Ok(true)
}

impl CudaDevice {
    /// Packs the plan's records and works out what the step looks like.
    fn take(&mut self, plan: &Plan) -> Result<()> {
        let driver = &mut *self.driver;
        self.searches.plan(plan)?;
        self.step.take(plan, self.searches.vocabulary_rows());
        let searches = &self.searches;
        self.attention_plan.take(plan, &|search| searches.beam_view(search))?;
        self.sampler.plan(plan);
        let full = bucket(self.step.full) * self.shape.vocab;
        let mut moved = grow(driver, "evaluation logits", &mut self.buffers.full_logits, full)?;
        let codes = self.searches.logits_needed();
        moved |= grow(driver, "codebook logits", &mut self.buffers.code_logits, codes)?;
        let rows = bucket(plan.rows());
        let a = &self.attention_plan;
        let counts = StepCounts {
            rows: plan.rows() as u32,
            segments: a.segments().len() as u32,
            narrow_items: a.narrow().len() as u32,
            wide_items: a.wide().len() as u32,
            text_rows: plan.text.len() as u32,
            sid_steps: plan.sids.len() as u32,
            candidates: self.searches.candidates().len() as u32,
            blocks: plan.blocks.len() as u32,
        };
        let parts: [Part<'_>; SECTIONS] = [
            Part::of(std::slice::from_ref(&counts), 1),
            Part::of(&self.step.groups, 4),
            Part::of(&self.step.rows, rows),
            Part::of(a.row_segment(), rows),
            Part::of(a.segments(), rows.min(64)),
            Part::of(a.narrow(), 4 * rows.min(64)),
            Part::of(a.wide(), rows.min(16)),
            Part::of(bytemuck::cast_slice::<_, u32>(block_ids(&plan.blocks)), 16 * rows),
            Part::of(&self.step.soft, 0),
            Part::of(&self.step.head_rows, 1),
            Part::of(self.sampler.records(), 1),
            Part::of(self.sampler.words(), 1),
            Part::of(self.searches.candidates(), 1),
            Part::of(self.searches.steps(), 1),
            Part::of(self.searches.groups(), 1),
        ];
        moved |= self.plan.fill(driver, &parts, self.options.limit)?;
        if moved {
            self.graphs.clear();
        }
        self.present = Some(StepShape {
            layout: self.plan.layout().clone(),
            rows,
            narrow: !a.narrow().is_empty(),
            wide: !a.wide().is_empty(),
            joins: a.joins(),
            head: self.step.head.clone(),
            sids: (!plan.sids.is_empty()).then(|| self.searches.shape()),
        });
        self.outcome.text = plan.text.len();
        self.outcome.sids.clear();
        self.outcome.sids.extend(plan.sids.iter().map(|step| (step.search, step.level)));
        Ok(())
    }

    fn present(&self) -> Result<StepShape> {
        self.present.clone().ok_or_else(|| Error::Device("no step has begun".to_owned()))
    }

    fn group(&self, group: Group) -> DevicePtr {
        self.plan.at(Section::Groups).add(16 * self.step.group(group))
    }
}
