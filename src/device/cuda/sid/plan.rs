//! What a plan asks of the SID step, worked out on the host from bounds alone: which rows may need which codebook.

use super::super::args::NONE;
use super::super::driver::{DevicePtr, failed};
use super::records::{ROW_ROOM, SidCandidate, SidHeadGroup, SidStepRecord};
use super::search::Search;
use crate::catalog::TypeLayout;
use crate::device::ops::{self, Normalizer, SegmentKind, SidStep};
use crate::error::{Error, Result};
use crate::ids::{SearchId, TypeId};

/// Logits of a group begin at a multiple of this.
pub(super) const ALIGN: usize = 64;

/// How much a plan may ask for.
#[derive(Clone, Copy, Debug)]
pub struct SidCapacity {
    /// Rows of a plan.
    pub rows: usize,
    /// Searches that one plan advances; entries of the records of steps.
    pub steps: usize,
    /// Rows offered to codebook products, with repetitions; entries of the records of candidates, and of the list of rows.
    pub candidates: usize,
    /// Entries of the records of head groups: levels of all types.
    pub groups: usize,
    /// Logits of all codebook products.
    pub logits: usize,
    /// Rows scored.
    pub slots: usize,
    /// Survivors of all rows.
    pub keys: usize,
    /// Searches that are open at once.
    pub searches: usize,
}

/// A codebook product of the plan: the rows that it is for are counted on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadGroup {
    /// Type of the codebook.
    pub item_type: TypeId,
    /// Its level.
    pub level: u8,
    /// Most rows, rounded up: what grids are made for.
    pub bucket: usize,
    /// The `RowGroup` that `sid_gather` writes: rows of the product's input, and where the first logit goes.
    pub record: DevicePtr,
    /// `[input rows]` u32: the row of the plan that each row of the input comes from.
    pub list: DevicePtr,
}

/// All that launches of a plan's steps depend on: plans of one shape can share a graph.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct SidShape {
    /// Blocks that choose.
    pub steps: u32,
    /// Blocks that score.
    pub slots: u32,
    /// Type, level and bucket of each codebook product.
    pub groups: Vec<(u16, u8, usize)>,
    /// Whether `sid_score_general` runs.
    pub general_score: bool,
    /// Whether `sid_select_general` runs.
    pub general_select: bool,
}

/// The records of one plan; its memory is reused.
#[derive(Default)]
pub(super) struct SidPlan {
    /// Differs from plan to plan.
    epoch: u32,
    /// Rows to score.
    pub slots: u32,
    pub steps: Vec<SidStepRecord>,
    pub candidates: Vec<SidCandidate>,
    pub records: Vec<SidHeadGroup>,
    pub shape: SidShape,
    pub vocab_rows: Vec<u32>,
    pub logits: usize,
    /// Per type, its first level's place among all levels.
    levels_before: Vec<usize>,
    /// Per level of the layout: candidates, then where the next goes.
    fill: Vec<usize>,
}

/// A step of the plan, checked.
struct Step<'a> {
    search: &'a Search,
    level: usize,
    row: u32,
    /// Rows that may be live; one at the first level.
    rows: usize,
}

impl SidPlan {
    pub fn new(types: &[TypeLayout]) -> SidPlan {
        let mut levels_before = vec![0];
        for of in types {
            levels_before.push(levels_before.last().map_or(0, |last| last + of.levels.len()));
        }
        SidPlan { levels_before, ..SidPlan::default() }
    }

    /// Levels of all types.
    pub fn levels(&self) -> usize {
        self.levels_before.last().copied().unwrap_or(0)
    }

    /// Works out the records of a plan.
    pub fn build(
        &mut self,
        plan: &ops::Plan,
        searches: &[Option<Search>],
        capacity: &SidCapacity,
    ) -> Result<()> {
        self.clear();
        for step in &plan.sids {
            let step = checked(plan, step, searches)?;
            self.count(&step);
        }
        self.open_groups(searches, plan)?;
        for (at, step) in plan.sids.iter().enumerate() {
            let id = step.search;
            let step = checked(plan, step, searches)?;
            self.add_step(id, &step);
            self.add_candidates(at as u32, &step);
        }
        self.finish(capacity)
    }

    fn clear(&mut self) {
        self.steps.clear();
        self.candidates.clear();
        self.records.clear();
        self.vocab_rows.clear();
        self.fill.clear();
        self.fill.resize(self.levels(), 0);
        self.shape.groups.clear();
        (self.shape.general_score, self.shape.general_select) = (false, false);
        self.logits = 0;
        self.epoch = self.epoch % (u32::MAX - 1) + 1;
        self.slots = 0;
    }

    fn place(&self, item_type: TypeId, level: usize) -> usize {
        self.levels_before[item_type.index()] + level
    }

    fn count(&mut self, step: &Step<'_>) {
        for (item_type, _) in &step.search.spec.types {
            if step.search.spec.catalog.index(*item_type).levels() > step.level {
                let place = self.place(*item_type, step.level);
                self.fill[place] += step.rows;
            }
        }
    }

    /// One group per level that has candidates; `fill` becomes where a level's next candidate goes.
    fn open_groups(&mut self, searches: &[Option<Search>], plan: &ops::Plan) -> Result<()> {
        let mut first = 0;
        for t in 0..self.levels_before.len() - 1 {
            for place in self.levels_before[t]..self.levels_before[t + 1] {
                let count = std::mem::replace(&mut self.fill[place], first);
                if count == 0 {
                    continue;
                }
                let (item_type, level) = (TypeId(t as u16), place - self.levels_before[t]);
                let with = plan.sids.iter().filter_map(|step| searches[step.search.index()].as_ref());
                let mut with = with.filter(|search| search.spec.types.iter().any(|of| of.0 == item_type));
                let codes = with
                    .next()
                    .map(|search| search.spec.catalog.index(item_type).codebook(level) as u32)
                    .ok_or_else(|| failed(format!("a group of type {item_type} without a search")))?;
                self.records.push(SidHeadGroup {
                    candidate_first: first as u32,
                    candidates: count as u32,
                    list_first: first as u32,
                    rows: count as u32,
                    out: self.logits as u64,
                    codebook: codes,
                    epoch: self.epoch,
                });
                self.shape.groups.push((item_type.0, level as u8, count.next_power_of_two()));
                self.logits += (count * codes as usize).next_multiple_of(ALIGN);
                first += count;
            }
        }
        self.candidates.resize(first, SidCandidate::default());
        Ok(())
    }

    fn add_step(&mut self, id: SearchId, step: &Step<'_>) {
        let spec = &step.search.spec;
        let slots = if step.level == 0 { spec.types.len() } else { step.rows } as u32;
        let room = 2 * step.search.group_width(step.level) + 192;
        let norm_first = match spec.normalizer {
            Normalizer::Vocabulary => {
                let first = self.vocab_rows.len() as u32;
                self.vocab_rows.extend((0..step.rows as u32).map(|row| step.row + row));
                first
            }
            _ => NONE,
        };
        let grouped = spec.groups > 1;
        self.shape.general_score |= !grouped
            && (spec.normalizer == Normalizer::Valid || spec.sampling.is_some() || spec.delta.is_some());
        self.shape.general_select |= grouped || spec.max_per_prefix.is_some();
        let (slot_first, keys_first) = match self.steps.last() {
            Some(last) => (last.slot_first + last.slots, last.keys_first + last.slots * last.room),
            None => (0, 0),
        };
        let level = step.level as u32;
        self.steps.push(SidStepRecord {
            search: id.0,
            level,
            slot_first,
            slots,
            keys_first,
            room: room.min(ROW_ROOM),
            norm_first,
            epoch: self.epoch,
        });
    }

    fn add_candidates(&mut self, at: u32, step: &Step<'_>) {
        let types = step.search.spec.types.iter().enumerate();
        for (place, (item_type, _)) in types {
            if step.search.spec.catalog.index(*item_type).levels() <= step.level {
                continue;
            }
            let level = self.place(*item_type, step.level);
            for row in 0..step.rows as u32 {
                let slot = if step.level == 0 { place as u32 } else { row };
                let candidate = SidCandidate { step: at, at: slot, place: place as u32, row: step.row + row };
                self.candidates[self.fill[level]] = candidate;
                self.fill[level] += 1;
            }
        }
    }

    fn finish(&mut self, capacity: &SidCapacity) -> Result<()> {
        let last = self.steps.last();
        let slots = last.map_or(0, |last| last.slot_first + last.slots) as usize;
        let keys =
            last.map_or(0, |last| last.keys_first as u64 + u64::from(last.slots) * u64::from(last.room));
        let bounds = [
            ("searches to advance", self.steps.len(), capacity.steps),
            ("candidates", self.candidates.len(), capacity.candidates),
            ("codebooks", self.records.len(), capacity.groups),
            ("codebook logits", self.logits, capacity.logits),
            ("rows to score", slots, capacity.slots),
            ("survivors", keys as usize, capacity.keys),
            ("rows with a vocabulary normaliser", self.vocab_rows.len(), capacity.rows),
        ];
        for (what, needed, room) in bounds {
            if needed > room {
                return Err(failed(format!("a plan with {needed} {what}, at most {room}")));
            }
        }
        self.slots = slots as u32;
        self.shape.slots = self.slots.next_power_of_two();
        self.shape.steps = (self.steps.len() as u32).next_power_of_two();
        Ok(())
    }
}

/// Checks a step against its search and the plan.
fn checked<'a>(plan: &ops::Plan, step: &SidStep, searches: &'a [Option<Search>]) -> Result<Step<'a>> {
    let search = searches.get(step.search.index()).and_then(Option::as_ref);
    let search = search.ok_or_else(|| Error::Device(format!("there is no search {}", step.search)))?;
    let level = step.level as usize;
    if level != search.next_level || level >= search.depth() {
        let (depth, next) = (search.depth(), search.next_level);
        return Err(Error::Device(format!(
            "a search of {depth} levels at level {next} was told to choose level {level}"
        )));
    }
    let rows = if level == 0 { 1 } else { search.width_at(level - 1).min(segment_rows(plan, step)) };
    if step.row as usize + rows > plan.rows() {
        return Err(Error::Device(format!(
            "search {} needs {rows} rows from row {} on, the plan has {}",
            step.search,
            step.row,
            plan.rows()
        )));
    }
    Ok(Step { search, level, row: step.row, rows })
}

/// Rows of the search's beam segment; the rest of the plan if it is not there.
fn segment_rows(plan: &ops::Plan, step: &SidStep) -> usize {
    let at = plan.segments.partition_point(|segment| segment.rows.start < step.row);
    match plan.segments.get(at) {
        Some(segment) if matches!(segment.kind, SegmentKind::Beam { search, .. } if search == step.search) => {
            segment.rows.len()
        }
        _ => usize::MAX,
    }
}
