//! A plan, checked and prepared for one step: what the operations would otherwise work out once per layer.

use super::attention::{TILE, Tile, TileKind};
use super::search::Beams;
use crate::device::ops::{Plan, Segment, SegmentKind, Shape};
use crate::error::{Error, Result};
use crate::ids::{BlockId, TokenId};
use crate::kv::BLOCK_TOKENS;

/// What a plan is checked against.
pub(super) struct Bounds {
    pub(super) max_rows: usize,
    pub(super) cache_blocks: usize,
}

/// Where a row's input comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Source {
    /// A token's embedding.
    Token(TokenId),
    /// This entry of the plan's soft rows.
    Soft(usize),
    /// Nowhere: a beam beyond the live ones.
    Dead,
}

/// The present step. Its vectors keep their memory from step to step.
#[derive(Default)]
pub(super) struct Step {
    pub(super) rows: usize,
    pub(super) sources: Vec<Source>,
    pub(super) slots: Vec<u32>,
    pub(super) blocks: Vec<BlockId>,
    pub(super) tiles: Vec<Tile>,
    /// Slots of beams' own keys, oldest first, row by row.
    pub(super) chains: Vec<u32>,
    /// `[rows, head_dim / 2]` cosines and sines of the rows' angles, scaled.
    pub(super) cos: Vec<f32>,
    pub(super) sin: Vec<f32>,
    /// Rows whose logits over the whole vocabulary are wanted: those of the plan's `full_logits`, then of its `text`.
    pub(super) full: Vec<usize>,
}

fn wrong(what: String) -> Error {
    Error::Device(format!("plan: {what}"))
}

/// Checks that `value < bound`.
fn below(what: impl FnOnce() -> String, value: usize, bound: usize) -> Result<()> {
    if value < bound { Ok(()) } else { Err(wrong(format!("{} is {value}, not below {bound}", what()))) }
}

impl Step {
    /// Takes a plan.
    ///
    /// # Errors
    /// [`Error::Device`] with the first row, slot, block or token that is out of bounds.
    pub(super) fn begin(
        &mut self,
        plan: &Plan,
        shape: &Shape,
        bounds: &Bounds,
        beams: &dyn Beams,
    ) -> Result<()> {
        let rows = plan.rows();
        self.rows = 0;
        if rows > bounds.max_rows {
            return Err(wrong(format!("{rows} rows, more than the {} of the device", bounds.max_rows)));
        }
        if plan.positions.len() != rows || plan.slots.len() != rows {
            let (p, s) = (plan.positions.len(), plan.slots.len());
            return Err(wrong(format!("{rows} tokens, {p} positions and {s} slots")));
        }
        for (row, &slot) in plan.slots.iter().enumerate() {
            below(|| format!("slot of row {row}"), slot as usize, bounds.cache_blocks * BLOCK_TOKENS)?;
        }
        for (i, block) in plan.blocks.iter().enumerate() {
            below(|| format!("block {i}"), block.index(), bounds.cache_blocks)?;
        }
        self.slots.clone_from(&plan.slots);
        self.blocks.clone_from(&plan.blocks);
        self.take_sources(plan, shape)?;
        self.take_segments(plan, shape, beams)?;
        self.take_angles(plan, shape);
        self.full.clear();
        self.full.extend(plan.full_logits.iter().map(|&r| r as usize));
        self.full.extend(plan.text.iter().map(|t| t.row as usize));
        for &row in &self.full {
            below(|| "a row whose logits are wanted".into(), row, rows)?;
        }
        self.rows = rows;
        Ok(())
    }

    fn take_sources(&mut self, plan: &Plan, shape: &Shape) -> Result<()> {
        self.sources.clear();
        self.sources.extend(plan.tokens.iter().map(|&t| Source::Token(t)));
        for (i, soft) in plan.soft.iter().enumerate() {
            below(|| format!("row of soft token {i}"), soft.row as usize, plan.rows())?;
            if soft.values.len() != shape.hidden {
                let (found, hidden) = (soft.values.len(), shape.hidden);
                return Err(wrong(format!(
                    "soft token {i} has {found} values, the model's width is {hidden}"
                )));
            }
            self.sources[soft.row as usize] = Source::Soft(i);
        }
        Ok(())
    }

    fn take_segments(&mut self, plan: &Plan, shape: &Shape, beams: &dyn Beams) -> Result<()> {
        self.tiles.clear();
        self.chains.clear();
        let mut covered = 0;
        for (i, segment) in plan.segments.iter().enumerate() {
            if segment.rows.start != covered || segment.rows.end < segment.rows.start {
                return Err(wrong(format!("segment {i} has rows {:?}, expected {covered}..", segment.rows)));
            }
            covered = segment.rows.end;
            below(|| format!("end of the rows of segment {i}"), covered as usize, plan.rows() + 1)?;
            for table in [Some(&segment.table), segment.private()].into_iter().flatten() {
                if table.start > table.end || table.end as usize > plan.blocks.len() {
                    let found = plan.blocks.len();
                    return Err(wrong(format!("segment {i} has blocks {table:?}, the plan has {found}")));
                }
            }
            match segment.kind {
                SegmentKind::Causal => self.take_causal(i, segment, plan, shape)?,
                SegmentKind::Beam { .. } => self.take_beams(i, segment, plan, shape, beams)?,
            }
        }
        if covered as usize != plan.rows() {
            return Err(wrong(format!("segments cover {covered} rows of {}", plan.rows())));
        }
        for (row, source) in self.sources.iter().enumerate() {
            if let Source::Token(token) = source {
                below(|| format!("token of row {row}"), token.index(), shape.vocab)?;
            }
        }
        Ok(())
    }

    fn take_causal(&mut self, i: usize, segment: &Segment, plan: &Plan, shape: &Shape) -> Result<()> {
        let context = segment.context as usize;
        let room = segment.table.len() * BLOCK_TOKENS;
        below(
            || format!("last position of segment {i}"),
            (context + segment.rows.len()).saturating_sub(1),
            room,
        )?;
        let table = segment.table.start as usize..segment.table.end as usize;
        for (at, row) in segment.rows.clone().enumerate() {
            let (position, row) = (context + at, row as usize);
            let block = plan.blocks[table.start + position / BLOCK_TOKENS].index();
            let slot = block * BLOCK_TOKENS + position % BLOCK_TOKENS;
            if plan.slots[row] as usize != slot || plan.positions[row] as usize != position {
                let found = (plan.positions[row], plan.slots[row]);
                return Err(wrong(format!(
                    "row {row} has position {} and slot {}, its segment says {position} and {slot}",
                    found.0, found.1
                )));
            }
        }
        let at_once = TILE / (shape.heads / shape.kv_heads);
        for first in (0..segment.rows.len()).step_by(at_once) {
            let start = segment.rows.start as usize + first;
            self.tiles.push(Tile {
                rows: start..(start + at_once).min(segment.rows.end as usize),
                table: table.clone(),
                position: context + first,
                kind: TileKind::Causal,
            });
        }
        Ok(())
    }

    fn take_beams(
        &mut self,
        i: usize,
        segment: &Segment,
        plan: &Plan,
        shape: &Shape,
        beams: &dyn Beams,
    ) -> Result<()> {
        let SegmentKind::Beam { search, level, ref private, stride } = segment.kind else { return Ok(()) };
        let (context, level, stride) = (segment.context as usize, level as usize, stride as usize);
        below(|| format!("context of segment {i}"), context, segment.table.len() * BLOCK_TOKENS + 1)?;
        let places = private.len() * BLOCK_TOKENS;
        let live = beams.live(search)?.min(segment.rows.len());
        let rows = segment.rows.start as usize..segment.rows.end as usize;
        for row in rows.clone() {
            self.sources[row] = Source::Dead;
        }
        let at_once = TILE / (shape.heads / shape.kv_heads);
        for first in (0..live).step_by(at_once) {
            let last = (first + at_once).min(live);
            let kind = TileKind::Beam { context, own: level + 1, chain: self.chains.len() };
            for beam in first..last {
                let row = rows.start + beam;
                self.sources[row] = Source::Token(beams.token(search, beam));
                for l in 0..=level {
                    let at = if l == level { beam } else { beams.ancestor(search, beam, l) };
                    below(|| format!("place of beam {beam} at level {l} of segment {i}"), at, stride)?;
                    below(|| format!("place of a key of segment {i}"), l * stride + at, places)?;
                    let place = l * stride + at;
                    let block = plan.blocks[private.start as usize + place / BLOCK_TOKENS];
                    self.chains.push((block.index() * BLOCK_TOKENS + place % BLOCK_TOKENS) as u32);
                }
                let (slot, own) = (plan.slots[row], self.chains[self.chains.len() - 1]);
                if slot != own || plan.positions[row] as usize != context + level {
                    let position = plan.positions[row];
                    return Err(wrong(format!(
                        "row {row} has position {position} and slot {slot}, its segment says {} and {own}",
                        context + level
                    )));
                }
            }
            self.tiles.push(Tile {
                rows: rows.start + first..rows.start + last,
                table: segment.table.start as usize..segment.table.end as usize,
                position: context + level,
                kind,
            });
        }
        Ok(())
    }

    fn take_angles(&mut self, plan: &Plan, shape: &Shape) {
        let half = shape.rope.inv_freq.len();
        self.cos.resize(plan.rows() * half, 0.0);
        self.sin.resize(plan.rows() * half, 0.0);
        for row in 0..plan.rows() {
            // Beams stand at one position.
            if row > 0 && plan.positions[row] == plan.positions[row - 1] {
                self.cos.copy_within((row - 1) * half..row * half, row * half);
                self.sin.copy_within((row - 1) * half..row * half, row * half);
                continue;
            }
            let position = plan.positions[row] as f32;
            for (i, freq) in shape.rope.inv_freq.iter().enumerate() {
                let (sin, cos) = (position * freq).sin_cos();
                self.cos[row * half + i] = cos * shape.rope.scale;
                self.sin[row * half + i] = sin * shape.rope.scale;
            }
        }
    }
}

impl Segment {
    fn private(&self) -> Option<&std::ops::Range<u32>> {
        match &self.kind {
            SegmentKind::Causal => None,
            SegmentKind::Beam { private, .. } => Some(private),
        }
    }
}
