//! Which tiles a step's attention consists of.
//!
//! The packed queries of a segment are cut into tiles of 16 (segments of at most 16) or of as many as the wide kernel takes, the keys into splits, so
//! that items times key/value heads fill the machine. A split costs partial results and a join, so a segment is cut only while that is little.
//!
//! The kernels of reproducible mode sum in chunks of `split_keys` keys, and joining the chunks of one tile or the partial results of one split per
//! chunk gives the same bits (`kernels/attention.cuh`). There a chunk has a fixed size, and a segment has one split per chunk or one for
//! everything: whatever is chosen, a row's bits depend on its keys alone.

use std::cmp::Reverse;

use super::UNIT;
use crate::device::cuda::args::{AttentionItem, SEGMENT_BEAM, SEGMENT_CAUSAL, SegmentInfo};
use crate::device::cuda::driver::{DevicePtr, failed};
use crate::device::ops::{Plan, Segment, SegmentKind};
use crate::error::Result;
use crate::ids::SearchId;

/// Keys of a round of the narrow kernel; chunks are multiples of it.
const ROUND: u32 = 256;
/// Keys of a chunk in reproducible mode.
const FIXED_CHUNK: u32 = 512;
/// Most splits of a segment otherwise: their join takes time that grows with them.
const MAX_SPLITS: u32 = 32;
/// Narrow items times key/value heads per multiprocessor that are aimed at: two blocks are resident, and the last wave is a quarter of the time.
const NARROW_UNITS: u64 = 8;
/// Packed queries of wide items that are resident on a multiprocessor. More items than that are not aimed at: a partial result of a line costs
/// `8 * head_dim` bytes of traffic, as much time as some 300 keys of a wide tile.
const WIDE_RESIDENT: u64 = 128;

/// What the tiles are cut for.
#[derive(Clone, Copy, Debug)]
pub struct AttentionLimits {
    /// Multiprocessors of the device.
    pub multiprocessors: u32,
    /// Query heads per key/value head.
    pub group: u32,
    /// Key/value heads.
    pub kv_heads: u32,
    /// Packed queries of a wide tile: [`Attention::wide`](super::Attention::wide).
    pub wide: u32,
    /// Capacity of each list of tiles.
    pub max_items: u32,
    /// Capacity of the partial results, in units of 16 packed queries.
    pub max_units: u32,
    /// Whether a row's bits may depend on its keys alone.
    pub reproducible: bool,
}

/// The attention's part of the plan buffer. Reused from step to step, it keeps its memory.
#[derive(Clone, Debug, Default)]
pub struct AttentionPlan {
    /// One entry per segment of the plan.
    pub segments: Vec<SegmentInfo>,
    /// Tiles of 16 packed queries, those with most keys first.
    pub narrow: Vec<AttentionItem>,
    /// Tiles of `limits.wide` packed queries, those with most keys first.
    pub wide: Vec<AttentionItem>,
    /// `[rows]` segment of each row.
    pub row_segment: Vec<u32>,
    /// Units of partial results in use.
    pub units: u32,
}

/// A segment's size in tiles and keys.
#[derive(Clone, Copy)]
struct Extent {
    packed: u32,
    /// Packed queries of a tile.
    tile: u32,
    /// Keys that its last row sees.
    keys: u32,
    beam: bool,
}

impl Extent {
    fn of(segment: &Segment, limits: &AttentionLimits) -> Extent {
        let rows = segment.rows.end - segment.rows.start;
        let (beam, keys) = match segment.kind {
            SegmentKind::Causal => (false, segment.context + rows),
            SegmentKind::Beam { .. } => (true, segment.context),
        };
        let packed = rows * limits.group;
        Extent { packed, tile: if packed <= UNIT { UNIT } else { limits.wide }, keys, beam }
    }

    fn tiles(&self) -> u32 {
        self.packed.div_ceil(self.tile)
    }

    fn units(&self) -> u32 {
        self.packed.div_ceil(UNIT)
    }

    /// Keys that a tile's last row sees.
    fn tile_keys(&self, segment: &Segment, packed: u32, group: u32) -> u32 {
        if self.beam {
            return self.keys;
        }
        let last = (packed + self.tile).min(self.packed) - 1;
        segment.context + last / group + 1
    }
}

/// What is left of the capacities once every segment has its least.
struct Spare {
    units: u32,
    narrow: u32,
    wide: u32,
}

impl AttentionPlan {
    /// Cuts a step into tiles. `beams` answers the address of a search's `BeamView`.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) if the step does not fit without any split.
    pub fn build(
        &mut self,
        plan: &Plan,
        limits: &AttentionLimits,
        beams: impl Fn(SearchId) -> DevicePtr,
    ) -> Result<()> {
        self.segments.clear();
        self.narrow.clear();
        self.wide.clear();
        self.row_segment.clear();
        self.units = 0;
        let mut spare = spare(plan, limits)?;
        let balanced = Balanced::of(plan, limits);
        for (index, segment) in plan.segments.iter().enumerate() {
            let extent = Extent::of(segment, limits);
            let (chunk, splits) = cut(&extent, limits, balanced.keys(&extent), &mut spare);
            let mut info = describe(segment, &beams);
            info.splits = splits;
            info.split_keys = chunk;
            info.split_units = extent.units();
            info.partial = self.units;
            self.units += splits * extent.units();
            self.segments.push(info);
            self.row_segment.resize(segment.rows.end as usize, index as u32);
            self.tile(index as u32, segment, &extent, limits.group);
        }
        let order = |item: &AttentionItem| {
            (Reverse(item.key_end - item.key_begin), item.segment, item.split, item.packed)
        };
        self.narrow.sort_unstable_by_key(order);
        self.wide.sort_unstable_by_key(order);
        Ok(())
    }

    /// Adds a segment's tiles.
    fn tile(&mut self, index: u32, segment: &Segment, extent: &Extent, group: u32) {
        let info = self.segments[index as usize];
        let items = if extent.tile == UNIT { &mut self.narrow } else { &mut self.wide };
        for packed in (0..extent.packed).step_by(extent.tile as usize) {
            let keys = extent.tile_keys(segment, packed, group);
            for split in 0..info.splits.max(1) {
                let key_begin = split * info.split_keys;
                // The last split takes what is left.
                let end = if split + 1 < info.splits { key_begin + info.split_keys } else { u32::MAX };
                let key_end = end.min(keys);
                if key_begin < key_end {
                    items.push(AttentionItem {
                        segment: index,
                        packed,
                        key_begin,
                        key_end,
                        split,
                        reserved: [0; 3],
                    });
                }
            }
        }
    }
}

/// Capacities beyond the least: one item per tile, one split per beam segment.
fn spare(plan: &Plan, limits: &AttentionLimits) -> Result<Spare> {
    let (mut units, mut narrow, mut wide) = (0u32, 0u32, 0u32);
    for segment in &plan.segments {
        let extent = Extent::of(segment, limits);
        units += if extent.beam { extent.units() } else { 0 };
        *if extent.tile == UNIT { &mut narrow } else { &mut wide } += extent.tiles();
    }
    let left = |what: &str, max: u32, least: u32| {
        max.checked_sub(least)
            .ok_or_else(|| failed(format_args!("attention needs {least} {what}, there is room for {max}")))
    };
    Ok(Spare {
        units: left("units of partial results", limits.max_units, units)?,
        narrow: left("narrow tiles", limits.max_items, narrow)?,
        wide: left("wide tiles", limits.max_items, wide)?,
    })
}

/// Keys of a narrow and of a wide item, so that a launch's items are about as many as the machine should have.
#[derive(Clone, Copy)]
struct Balanced {
    narrow: u32,
    wide: u32,
}

impl Balanced {
    fn of(plan: &Plan, limits: &AttentionLimits) -> Balanced {
        let (mut narrow, mut wide) = (0u64, 0u64);
        for segment in &plan.segments {
            let extent = Extent::of(segment, limits);
            *if extent.tile == UNIT { &mut narrow } else { &mut wide } +=
                u64::from(extent.tiles()) * u64::from(extent.keys);
        }
        let chunk = |keys: u64, units: u64| {
            let wanted = units.max(1) * u64::from(limits.multiprocessors.max(1));
            let chunk = (keys * u64::from(limits.kv_heads)).div_ceil(wanted);
            chunk.next_multiple_of(u64::from(ROUND)).clamp(u64::from(ROUND), 1 << 30) as u32
        };
        let resident = WIDE_RESIDENT / u64::from(limits.wide);
        Balanced { narrow: chunk(narrow, NARROW_UNITS), wide: chunk(wide, resident) }
    }

    fn keys(&self, extent: &Extent) -> u32 {
        if extent.tile == UNIT { self.narrow } else { self.wide }
    }
}

/// Keys of a chunk and number of splits of a segment.
fn cut(extent: &Extent, limits: &AttentionLimits, balanced: u32, spare: &mut Spare) -> (u32, u32) {
    let least = u32::from(extent.beam);
    let items = if extent.tile == UNIT { &mut spare.narrow } else { &mut spare.wide };
    let mut chunk = if limits.reproducible {
        FIXED_CHUNK
    } else {
        balanced.max(extent.keys.div_ceil(MAX_SPLITS).next_multiple_of(ROUND))
    };
    loop {
        let splits = extent.keys.div_ceil(chunk);
        // Whoever alone fills the machine is not cut, nor who fits one chunk.
        if splits <= 1 || extent.keys <= balanced {
            return (chunk, least);
        }
        let (more_units, more_items) =
            ((splits - least).saturating_mul(extent.units()), (splits - 1).saturating_mul(extent.tiles()));
        if more_units <= spare.units && more_items <= *items {
            spare.units -= more_units;
            *items -= more_items;
            return (chunk, splits);
        }
        if limits.reproducible {
            return (chunk, least);
        }
        chunk = chunk.saturating_mul(2);
    }
}

/// A segment without its splits.
fn describe(segment: &Segment, beams: impl Fn(SearchId) -> DevicePtr) -> SegmentInfo {
    let mut info = SegmentInfo {
        first_row: segment.rows.start,
        rows: segment.rows.end - segment.rows.start,
        table: segment.table.start,
        table_blocks: segment.table.end - segment.table.start,
        context: segment.context,
        kind: SEGMENT_CAUSAL,
        ..SegmentInfo::default()
    };
    if let SegmentKind::Beam { search, level, private, stride } = &segment.kind {
        info.kind = SEGMENT_BEAM;
        info.beams = beams(*search);
        info.level = u32::from(*level);
        info.private_table = private.start;
        info.private_blocks = private.end - private.start;
        info.stride = *stride;
    }
    info
}
