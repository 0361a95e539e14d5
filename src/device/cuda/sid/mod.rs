//! The SID step: searches that live on the device, and the launches that advance them.
//!
//! A step of a search is `score(child) = score(row) + (logit - ln sum exp(codebook))` over all alive children of all live rows, and the best `W` of those
//! and of the finished paths (see `device::cpu::sid` for every rule). Per plan, in this order:
//!
//! | launch | grid | reads | writes |
//! |---|---|---|---|
//! | `sid_gather` | head groups | 16 B per candidate | 112 B per row, the rows of each product, a `RowGroup` per codebook |
//! | the caller: norm and one product per [`HeadGroup`] | | | float32 logits at `RowGroup.out` |
//! | the caller, if a search asks for it: head over the vocabulary; `sid_vocab_norm` | rows | `[rows, vocab]` logits | 4 B per row |
//! | `sid_score`, `sid_score_general` | rows to score | the logits, once; 2 B per child | the survivors: about 12 B x 2 W per row |
//! | `sid_select`, `sid_select_general` | searches | the survivors, twice | the next list, links and `BeamView` |
//!
//! The general kernels are launched only for plans with a search that needs them: normalised over alive children, drawn, in
//! groups, capped or beside a delta (of that one, the rows that have a part in it; the others take the plain road). The host never reads a search's state before its end; grids are bounded by widths, and what is live is
//! known to the kernels.

mod memory;
mod plan;
mod records;
mod search;
mod shared;

use std::sync::Arc;

use self::plan::{ALIGN, SidPlan};
pub use self::plan::{HeadGroup, SidCapacity, SidShape};
use self::records::{ROW_ROOM, SCORE_BYTES, SLOT_BYTES, SidGatherArgs, SidNormArgs, SidResult, SidStepArgs};
pub use self::records::{SidCandidate, SidHeadGroup, SidStepRecord};
use self::search::{Search, Stores};
use super::args::RowGroup;
use super::args::{self};
use super::driver::{DevicePtr, Driver, Kernel, Launch, failed};
use crate::catalog::{Layout, LevelTokens, TypeLayout};
use crate::device::ops::{self, Path, SearchSpec, SidOutcome};
use crate::error::{Error, Result};
use crate::ids::{SearchId, TypeId};

/// Threads of a block of `sid_gather`.
const GATHER_THREADS: u32 = 256;
/// Threads of a block of the others.
const THREADS: u32 = 512;
/// Threads of `sid_select_general`.
const GENERAL_THREADS: u32 = 256;
/// Catalogs that are kept without a search, while somebody holds them: two snapshots, and as many deltas.
const IDLE_CATALOGS: usize = 4;
/// Bitmaps of masks that are kept in the same way: whoever keeps masks for later requests decides which, this many at most.
const IDLE_BITMAPS: usize = 64;
/// Searches that may be open at once.
const MAX_OPEN: usize = 1 << 14;

/// How large steps may be.
#[derive(Clone, Copy, Debug)]
pub struct SidLimits {
    /// Rows of a plan.
    pub max_rows: usize,
    /// Multiprocessors of the device.
    pub multiprocessors: u32,
}

/// What a step binds: where a plan's records and logits lie on the device.
#[derive(Clone, Copy, Debug)]
pub struct SidInputs {
    /// The plan's `StepCounts`.
    pub counts: DevicePtr,
    /// [`SidSearches::candidates`].
    pub candidates: DevicePtr,
    /// [`SidSearches::steps`].
    pub steps: DevicePtr,
    /// [`SidSearches::groups`].
    pub groups: DevicePtr,
    /// Float32 logits of the codebooks, a multiple of 16 bytes.
    pub logits: DevicePtr,
    /// Elements of `logits`.
    pub logits_len: usize,
    /// `[rows]` float32: logarithms of the vocabulary's normalisers, in the order of [`SidSearches::vocabulary_rows`].
    pub norms: DevicePtr,
}

#[derive(Clone, Copy)]
struct Kernels {
    gather: Kernel,
    score: Kernel,
    score_general: Kernel,
    select: Kernel,
    select_general: Kernel,
    vocab_norm: Kernel,
}

/// Memory that all steps share.
#[derive(Clone, Copy)]
struct Memory {
    /// `[MAX_OPEN]` addresses of searches.
    table: DevicePtr,
    row_groups: DevicePtr,
    list: DevicePtr,
    slots: DevicePtr,
    keys: DevicePtr,
    entries: DevicePtr,
    scores: DevicePtr,
    results: DevicePtr,
}

/// All searches of a device, and the launches that advance them.
pub struct SidSearches {
    layout: Option<Arc<Layout>>,
    capacity: SidCapacity,
    kernels: Kernels,
    memory: Memory,
    open: Vec<Option<Search>>,
    stores: Stores,
    plan: SidPlan,
}

impl SidSearches {
    /// Allocates what steps within the limits need. A device without a layout opens no searches.
    ///
    /// # Errors
    /// The driver's.
    pub fn new(
        driver: &mut dyn Driver,
        layout: Option<Arc<Layout>>,
        limits: SidLimits,
    ) -> Result<SidSearches> {
        let plan = SidPlan::new(layout.as_ref().map_or(&[], |layout| &layout.types[..]));
        let capacity = capacity(layout.as_deref(), limits.max_rows);
        let kernels = Kernels {
            gather: driver.kernel("sid_gather")?,
            score: driver.kernel("sid_score")?,
            score_general: driver.kernel("sid_score_general")?,
            select: driver.kernel("sid_select")?,
            select_general: driver.kernel("sid_select_general")?,
            vocab_norm: driver.kernel("sid_vocab_norm")?,
        };
        let memory = Memory::new(driver, &capacity)?;
        let stores = Stores {
            blocks: memory::Blocks::default(),
            staging: memory::Staging::default(),
            catalogs: shared::Uploads::new(IDLE_CATALOGS),
            bitmaps: shared::Uploads::new(IDLE_BITMAPS),
        };
        Ok(SidSearches { layout, capacity, kernels, memory, open: Vec::new(), stores, plan })
    }

    /// Sizes of the buffers that a plan's records are copied to, and of the lists of head rows.
    pub fn capacity(&self) -> &SidCapacity {
        &self.capacity
    }

    /// Opens a search. The first one of a catalog waits until its tries are uploaded, and until what nobody needs any more is freed;
    /// others do not wait.
    ///
    /// # Errors
    /// If the specification makes no sense, the catalog is not the layout's, or memory is short.
    pub fn open(&mut self, driver: &mut dyn Driver, spec: SearchSpec) -> Result<SearchId> {
        let Some(layout) = self.layout.clone() else {
            return Err(failed("a search needs a layout, and the device was made without one"));
        };
        let place = self.open.iter().position(Option::is_none).unwrap_or(self.open.len());
        if place == MAX_OPEN {
            return Err(failed(format!("{MAX_OPEN} searches are open, no more are possible")));
        }
        let search = Search::open(driver, &mut self.stores, &layout, spec)?;
        self.name(driver, place, search.at)?;
        if place == self.open.len() {
            self.open.push(None);
        }
        self.open[place] = Some(search);
        Ok(SearchId(place as u32))
    }

    /// Ends a search and forgets it; steps that are enqueued still find it.
    pub fn close(&mut self, search: SearchId) {
        // Its entry of the table stays until another search takes its place: no plan names it any more.
        if let Some(gone) = self.open.get_mut(search.index()).and_then(Option::take) {
            gone.close(&mut self.stores);
        }
    }

    /// Waits for what is enqueued and returns the finished paths: best first, or in the order drawn; those of several groups
    /// merged by score, or group after group if drawn.
    ///
    /// # Errors
    /// The driver's; [`Error::Device`] if there is no such search.
    pub fn paths(&mut self, driver: &mut dyn Driver, search: SearchId) -> Result<Vec<Path>> {
        self.get(search)?.paths(driver)
    }

    /// The search's `BeamView`.
    ///
    /// # Errors
    /// [`Error::Device`] if there is no such search.
    pub fn beam_view(&self, search: SearchId) -> Result<DevicePtr> {
        Ok(self.get(search)?.at)
    }

    /// The most beams of a search that are live after the codes of `level` are chosen; 0 if there is no such search.
    pub fn most_live(&self, search: SearchId, level: u8) -> usize {
        self.get(search).map_or(0, |search| search.width_at(level as usize))
    }

    /// Levels of a search's deepest type.
    pub fn depth(&self, search: SearchId) -> Option<usize> {
        self.get(search).ok().map(Search::depth)
    }

    fn get(&self, search: SearchId) -> Result<&Search> {
        let found = self.open.get(search.index()).and_then(Option::as_ref);
        found.ok_or_else(|| Error::Device(format!("there is no search {search}")))
    }

    /// Writes an entry of the table of searches.
    fn name(&mut self, driver: &mut dyn Driver, place: usize, at: DevicePtr) -> Result<()> {
        let to = self.memory.table.add(8 * place);
        self.stores.staging.send(driver, &[(to, bytemuck::bytes_of(&at))])
    }

    /// Works out the records of a plan whose steps are enqueued next; reuses their memory.
    ///
    /// # Errors
    /// [`Error::Device`] if a search does not exist, rows or levels are not what it expects, or the plan is beyond the capacity.
    pub fn plan(&mut self, plan: &ops::Plan) -> Result<()> {
        self.plan.build(plan, &self.open, &self.capacity)?;
        for step in &plan.sids {
            if let Some(search) = self.open.get_mut(step.search.index()).and_then(Option::as_mut) {
                search.next_level += 1;
            }
        }
        Ok(())
    }

    /// The searches to advance.
    pub fn steps(&self) -> &[SidStepRecord] {
        &self.plan.steps
    }

    /// Rows that may need a codebook, group by group.
    pub fn candidates(&self) -> &[SidCandidate] {
        &self.plan.candidates
    }

    /// What `sid_gather` needs to know of the codebooks.
    pub fn groups(&self) -> &[SidHeadGroup] {
        &self.plan.records
    }

    /// All that the launches of the plan's steps depend on.
    pub fn shape(&self) -> SidShape {
        self.plan.shape.clone()
    }

    /// The codebook products of the plan.
    pub fn head_groups(&self) -> Vec<HeadGroup> {
        let group = |(at, &(item_type, level, bucket)): (usize, &(u16, u8, usize))| HeadGroup {
            item_type: TypeId(item_type),
            level,
            bucket,
            record: self.memory.row_groups.add(size_of::<RowGroup>() * at),
            list: self.memory.list,
        };
        self.plan.shape.groups.iter().enumerate().map(group).collect()
    }

    /// Rows of the plan whose normaliser is the vocabulary.
    pub fn vocabulary_rows(&self) -> &[u32] {
        &self.plan.vocab_rows
    }

    /// Elements that the plan's codebook logits take.
    pub fn logits_needed(&self) -> usize {
        self.plan.logits
    }

    /// Enqueues `sid_gather`: fills the lists and `RowGroup`s of [`SidSearches::head_groups`].
    ///
    /// # Errors
    /// The driver's.
    pub fn enqueue_gather(&self, driver: &mut dyn Driver, inputs: &SidInputs) -> Result<()> {
        if self.plan.shape.groups.is_empty() {
            return Ok(());
        }
        let (capacity, memory) = (&self.capacity, &self.memory);
        let args = SidGatherArgs {
            counts: inputs.counts,
            steps: inputs.steps,
            candidates: inputs.candidates,
            groups: inputs.groups,
            searches: memory.table,
            row_groups: memory.row_groups,
            list: memory.list,
            slots: memory.slots,
            max_steps: capacity.steps as u32,
            max_candidates: capacity.candidates as u32,
            max_groups: capacity.groups as u32,
            max_searches: capacity.searches as u32,
            max_list: capacity.candidates as u32,
            max_slots: capacity.slots as u32,
            max_rows: capacity.rows as u32,
            max_norms: capacity.rows as u32,
            max_keys: capacity.keys as u64,
            max_logits: inputs.logits_len as u64,
        };
        let groups = self.plan.shape.groups.len() as u32;
        driver.run(&launch(self.kernels.gather, groups, GATHER_THREADS), &args)
    }

    /// Enqueues `sid_vocab_norm`: `norms[i] = ln sum exp(logits[i])` for the rows that the `RowGroup` at `group` counts, at most `bucket`;
    /// `logits` is `[rows, vocab]` float32.
    ///
    /// # Errors
    /// The driver's.
    pub fn enqueue_norms(
        &self,
        driver: &mut dyn Driver,
        logits: DevicePtr,
        vocab: usize,
        group: DevicePtr,
        bucket: usize,
        norms: DevicePtr,
    ) -> Result<()> {
        if bucket == 0 {
            return Ok(());
        }
        let args = SidNormArgs { group, logits, norms, columns: vocab as u32, max_rows: bucket as u32 };
        driver.run(&launch(self.kernels.vocab_norm, bucket as u32, THREADS), &args)
    }

    /// Enqueues scoring and choosing.
    ///
    /// # Errors
    /// The driver's.
    pub fn enqueue_step(&self, driver: &mut dyn Driver, inputs: &SidInputs) -> Result<()> {
        let (capacity, memory, kernels) = (&self.capacity, &self.memory, &self.kernels);
        let shape = &self.plan.shape;
        if self.plan.steps.is_empty() {
            return Ok(());
        }
        let args = SidStepArgs {
            counts: inputs.counts,
            steps: inputs.steps,
            searches: memory.table,
            slots: memory.slots,
            logits: inputs.logits,
            norms: inputs.norms,
            keys: memory.keys,
            entries: memory.entries,
            scores: memory.scores,
            results: memory.results,
            max_steps: capacity.steps as u32,
            max_searches: capacity.searches as u32,
            max_slots: capacity.slots as u32,
            reserved: 0,
            max_keys: capacity.keys as u64,
            reserved2: 0,
        };
        if shape.slots > 0 {
            driver.run(&launch(kernels.score, shape.slots, THREADS), &args)?;
            if shape.general_score {
                driver.run(&launch(kernels.score_general, shape.slots, THREADS), &args)?;
            }
        }
        driver.run(&launch(kernels.select, shape.steps, THREADS), &args)?;
        if shape.general_select {
            driver.run(&launch(kernels.select_general, shape.steps, GENERAL_THREADS), &args)?;
        }
        Ok(())
    }

    /// Where the outcomes of a plan are after its steps, and how many bytes they take.
    pub fn results(&self) -> (DevicePtr, usize) {
        (self.memory.results, size_of::<SidResult>() * self.plan.steps.len())
    }

    /// The outcomes, one per step of their plan, from the bytes of [`SidSearches::results`].
    ///
    /// # Errors
    /// [`Error::Device`] if these are not whole records.
    pub fn outcome(&self, bytes: &[u8]) -> Result<Vec<SidOutcome>> {
        if !bytes.len().is_multiple_of(size_of::<SidResult>()) {
            return Err(failed(format!("{} bytes of outcomes", bytes.len())));
        }
        let outcome = |bytes: &[u8]| {
            let result: SidResult = bytemuck::pod_read_unaligned(bytes);
            SidOutcome { live: result.live, fault: result.fault != 0 }
        };
        Ok(bytes.chunks_exact(size_of::<SidResult>()).map(outcome).collect())
    }

    /// `[slots]` records of 16 bytes that begin with the float32 normaliser of a row, in the order of the steps' slots (tests).
    pub fn scores(&self) -> DevicePtr {
        self.memory.scores
    }
}

/// What steps of at most `rows` rows may need. A search has a row for each of its beams.
pub(super) fn capacity(layout: Option<&Layout>, rows: usize) -> SidCapacity {
    let kinds = layout.map_or(&[][..], |layout| &layout.types);
    let types = kinds.len().max(1);
    let levels = kinds.iter().map(|kind| kind.levels.len()).sum::<usize>();
    let widest = |kind: &TypeLayout| kind.levels.iter().map(LevelTokens::len).max().unwrap_or(0);
    let rows = rows.max(1);
    // A row of a search of `w` beams leaves at most `2 w + 192` survivors; at the first level, so does each type.
    let room = (2 * rows.min(args::MAX_WIDTH) + 192).min(ROW_ROOM as usize).max(194 * types);
    SidCapacity {
        rows,
        steps: rows,
        candidates: rows * types,
        groups: levels.max(1),
        // A row is offered to each type at one level. Each product's logits begin at a multiple of the alignment.
        logits: rows * kinds.iter().map(widest).sum::<usize>() + ALIGN * levels,
        slots: rows * types,
        keys: (rows + types) * room,
        searches: MAX_OPEN,
    }
}

/// Bytes of what a device with this layout keeps for steps of at most `rows` rows.
pub(super) fn bytes(layout: Option<&Layout>, rows: usize) -> usize {
    Memory::sizes(&capacity(layout, rows)).iter().sum()
}

impl Memory {
    fn sizes(capacity: &SidCapacity) -> [usize; 8] {
        [
            8 * capacity.searches,
            size_of::<RowGroup>() * capacity.groups,
            4 * capacity.candidates,
            SLOT_BYTES * capacity.slots,
            8 * capacity.keys,
            4 * capacity.keys,
            SCORE_BYTES * capacity.slots,
            size_of::<SidResult>() * capacity.steps,
        ]
    }

    fn new(driver: &mut dyn Driver, capacity: &SidCapacity) -> Result<Memory> {
        let sizes = Memory::sizes(capacity);
        let arena = driver.allocate("SID step", &sizes)?;
        let &[table, row_groups, list, slots, keys, entries, scores, results] = &arena[..] else {
            return Err(failed(format!("{} addresses for {} buffers", arena.len(), sizes.len())));
        };
        driver.fill(table, 0, sizes[0])?;
        driver.fill(slots, 0, sizes[3])?;
        Ok(Memory { table, row_groups, list, slots, keys, entries, scores, results })
    }
}

fn launch(kernel: Kernel, blocks: u32, threads: u32) -> Launch {
    Launch { kernel, grid: [blocks, 1, 1], threads, shared: 0, dependent: true }
}
