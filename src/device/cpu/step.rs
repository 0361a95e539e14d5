//! A plan, checked and prepared for one step: what the operations would otherwise work out once per layer.

use super::attention::{TILE, Tile, TileKind};
use super::search::Beams;
use crate::device::check::{self, Bounds, below};
use crate::device::ops::{Plan, Segment, SegmentKind, Shape};
use crate::error::Result;
use crate::ids::{BlockId, TokenId};
use crate::kv::BLOCK_TOKENS;

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
        self.rows = 0;
        check::plan(plan, shape, bounds)?;
        self.slots.clone_from(&plan.slots);
        self.blocks.clone_from(&plan.blocks);
        self.take_sources(plan);
        self.take_segments(plan, shape, beams)?;
        self.take_angles(plan, shape);
        self.full.clear();
        self.full.extend(plan.full_logits.iter().map(|&r| r as usize));
        self.full.extend(plan.text.iter().map(|t| t.row as usize));
        self.rows = plan.rows();
        Ok(())
    }

    fn take_sources(&mut self, plan: &Plan) {
        self.sources.clear();
        self.sources.extend(plan.tokens.iter().map(|&t| Source::Token(t)));
        for (i, soft) in plan.soft.iter().enumerate() {
            self.sources[soft.row as usize] = Source::Soft(i);
        }
    }

    fn take_segments(&mut self, plan: &Plan, shape: &Shape, beams: &dyn Beams) -> Result<()> {
        self.tiles.clear();
        self.chains.clear();
        plan.segments.iter().enumerate().try_for_each(|(i, segment)| match segment.kind {
            SegmentKind::Causal => {
                self.take_causal(segment, shape);
                Ok(())
            }
            SegmentKind::Beam { .. } => self.take_beams(i, segment, plan, shape, beams),
        })
    }

    fn take_causal(&mut self, segment: &Segment, shape: &Shape) {
        let at_once = TILE / (shape.heads / shape.kv_heads);
        for first in (0..segment.rows.len()).step_by(at_once) {
            let start = segment.rows.start as usize + first;
            self.tiles.push(Tile {
                rows: start..(start + at_once).min(segment.rows.end as usize),
                table: segment.table.start as usize..segment.table.end as usize,
                position: segment.context as usize + first,
                kind: TileKind::Causal,
            });
        }
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
        let places = private.len() * BLOCK_TOKENS;
        let live = beams.live(search)?.min(segment.rows.len());
        let rows = segment.rows.start as usize..segment.rows.end as usize;
        self.sources[rows.clone()].fill(Source::Dead);
        let at_once = TILE / (shape.heads / shape.kv_heads);
        for first in (0..live).step_by(at_once) {
            let last = (first + at_once).min(live);
            let kind = TileKind::Beam { context, own: level + 1, chain: self.chains.len() };
            for beam in first..last {
                self.sources[rows.start + beam] = Source::Token(beams.token(search, beam));
                for l in 0..=level {
                    let at = if l == level { beam } else { beams.ancestor(search, beam, l) };
                    below(|| format!("place of beam {beam} at level {l} of segment {i}"), at, stride)?;
                    below(|| format!("place of a key of segment {i}"), l * stride + at, places)?;
                    let place = l * stride + at;
                    let block = plan.blocks[private.start as usize + place / BLOCK_TOKENS];
                    self.chains.push((block.index() * BLOCK_TOKENS + place % BLOCK_TOKENS) as u32);
                }
            }
            self.tiles.push(Tile {
                rows: rows.start + first..rows.start + last,
                table: segment.table.start as usize..segment.table.end as usize,
                position: context + level,
                kind,
            });
        }
        for (row, source) in rows.clone().zip(&self.sources[rows]) {
            if let Source::Token(token) = source {
                below(|| format!("token of row {row}"), token.index(), shape.vocab)?;
            }
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
