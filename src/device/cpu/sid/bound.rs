//! A threshold before the first child is offered.
//!
//! Children are offered in the order that decides ties, and as long as fewer than a list's width have been, none can be left out: of
//! `n` children about `width * ln(n / width)` pass a threshold that rises as they come. But the best children of `width` different
//! groups are `width` children, whatever the groups are, so the worst of those has at least `width` children at or above it, and
//! what lies below it need not be offered. With two groups per place in the list that leaves 1.4 children per place to offer.
//!
//! Scores are the scan's, by the same roundings. Any part of the children will do: they are taken from the first parents, which have the best
//! scores, and on the way the logits of small nodes, which the scan would wait for one after the other, come to the cache together.

use super::scan::{BLOCK, Form, Parent, codes_of};
#[cfg(target_arch = "x86_64")]
use super::scan::{changes, vectors};
use crate::catalog::{Node, TypeIndex};

/// Children per place in the list that are looked at.
const CHILDREN: usize = 64;
/// Nodes with up to so many entries are looked at beyond that: for their logits.
const SMALL: usize = 64;
/// Children of a node whose logits are read ahead where nothing else is to be learnt from them.
const TOUCHED: usize = 8;
/// With fewer entries than this per place nothing would be left out.
const WORTHWHILE: usize = 4;

/// A node whose children are looked at.
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    pub index: &'a TypeIndex,
    pub level: usize,
    pub node: Node,
    /// `[codebook]`.
    pub logits: &'a [f32],
    pub score: f32,
    /// Logarithm of the normaliser.
    pub norm: f32,
}

impl<'a> Row<'a> {
    pub fn of(parent: &Parent<'a>) -> Row<'a> {
        let Parent { index, level, node, logits, score, norm, .. } = *parent;
        Row { index, level, node, logits, score, norm }
    }

    /// Reads the logits of the first children; what it returns only says that they were read.
    pub fn touch(&self) -> u32 {
        let entries = self.node.first as usize..self.node.end as usize;
        let codes = &codes_of(self.index, self.level).0[entries];
        codes.iter().take(TOUCHED).fold(0, |sum, &code| sum ^ self.logits[code as usize].to_bits())
    }

    fn score_of(&self, code: u16) -> f32 {
        self.score + (self.logits[code as usize] - self.norm)
    }
}

/// The best child of each group.
pub(super) struct Bound {
    /// `[groups]` scores, minus infinity where a group has none; whole vectors.
    best: Vec<f32>,
    /// `[groups]` entries.
    entries: Vec<u32>,
    /// Vector and lane that the next children go to.
    vector: usize,
    lane: usize,
    width: usize,
    left: usize,
}

impl Bound {
    /// Memory for lists of up to `widest`.
    pub fn new(widest: usize) -> Bound {
        let groups = (2 * widest).next_multiple_of(BLOCK);
        Bound {
            best: Vec::with_capacity(groups),
            entries: Vec::with_capacity(groups),
            vector: 0,
            lane: 0,
            width: 0,
            left: 0,
        }
    }

    /// Starts a list of at most `width`; false if the look is not worth its time with so many entries of all parents.
    pub fn begin(&mut self, width: usize, entries: usize) -> bool {
        if entries < WORTHWHILE * width {
            return false;
        }
        let groups = (2 * width).next_multiple_of(BLOCK);
        self.best.clear();
        self.best.resize(groups, f32::NEG_INFINITY);
        self.entries.clear();
        self.entries.resize(groups, 0);
        (self.vector, self.lane) = (0, 0);
        self.width = width;
        self.left = CHILDREN * width;
        true
    }

    /// Looks at the children of a node. A child must not come twice.
    pub fn look(&mut self, row: &Row<'_>) {
        let (first, end) = (row.node.first as usize, row.node.end as usize);
        let entries = if end - first <= SMALL { end - first } else { self.left.min(end - first) };
        self.left = self.left.saturating_sub(entries);
        let (codes, form) = codes_of(row.index, row.level);
        let codes = &codes[first..first + entries];
        #[cfg(target_arch = "x86_64")]
        if entries >= BLOCK && std::arch::is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has AVX-512F, as was just asked.
            return unsafe { self.look_at_vectors(row, codes, form) };
        }
        self.look_at(row, codes, 0, form);
    }

    /// Looks at the children that begin at the entries from `from` on of those in `codes`, which are the node's first.
    fn look_at(&mut self, row: &Row<'_>, codes: &[u16], from: usize, form: Form) {
        for at in from..codes.len() {
            if form == Form::Runs && at > 0 && codes[at] == codes[at - 1] {
                continue;
            }
            let score = row.score_of(codes[at]);
            // False for NaN: what that means is the scan's to find out.
            if score > self.best[self.lane] {
                self.best[self.lane] = score;
                self.entries[self.lane] = row.node.first + at as u32;
            }
            self.lane = if self.lane + 1 == self.best.len() { 0 } else { self.lane + 1 };
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    fn look_at_vectors(&mut self, row: &Row<'_>, codes: &[u16], form: Form) {
        use std::arch::x86_64::*;

        // A run is known by the code before it: the first entry, which always begins one, is looked at alone.
        let from = usize::from(form == Form::Runs);
        self.look_at(row, &codes[..from], 0, form);
        let (blocks, rest) = codes[from..].as_chunks::<BLOCK>();
        let whole = self.best.len() / BLOCK;
        let (best, _) = self.best.as_chunks_mut::<BLOCK>();
        let (entries, _) = self.entries.as_chunks_mut::<BLOCK>();
        let in_row = if form == Form::Runs { None } else { vectors::in_row(row.logits, codes) };
        for (number, block) in blocks.iter().enumerate() {
            let at = from + number * BLOCK;
            let begins = if form == Form::Runs { changes(&codes[at - 1..at + BLOCK]) } else { 0xffff };
            let (best, entries) = (&mut best[self.vector], &mut entries[self.vector]);
            // SAFETY: loads and stores of 64 bytes, unaligned, in arrays of 16 elements of 4 bytes.
            unsafe {
                let before = _mm512_loadu_ps(best.as_ptr());
                let logits = vectors::logits_of(row.logits, in_row, number, block);
                let scores = vectors::scores(logits, row.score, row.norm);
                let better = _mm512_mask_cmp_ps_mask::<_CMP_GT_OQ>(begins as u16, scores, before);
                _mm512_mask_storeu_ps(best.as_mut_ptr(), better, scores);
                let first = _mm512_set1_epi32((row.node.first as usize + at) as i32);
                let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
                _mm512_mask_storeu_epi32(entries.as_mut_ptr().cast(), better, _mm512_add_epi32(first, lanes));
            }
            self.vector = if self.vector + 1 == whole { 0 } else { self.vector + 1 };
        }
        self.look_at(row, codes, codes.len() - rest.len(), form);
    }

    /// The largest float that is surely below the list's last score; NaN if too few children were seen, of those whose entries
    /// are `alive`.
    pub fn threshold(&mut self, alive: impl Fn(u32) -> bool) -> f32 {
        let mut found = 0;
        for at in 0..self.best.len() {
            // Without a branch, so that the answers are waited for together.
            let best = self.best[at];
            let counts = best > f32::NEG_INFINITY && alive(self.entries[at]);
            self.best[found] = best;
            found += usize::from(counts);
        }
        if found < self.width {
            return f32::NAN;
        }
        let worst = self.best[..found].select_nth_unstable_by(self.width - 1, |a, b| b.total_cmp(a)).1;
        worst.next_down()
    }
}
