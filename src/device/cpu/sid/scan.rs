//! The children of a node, scored: the inner loop of the SID step.
//!
//! A child costs its code (2 bytes, in order), its logit, a subtraction, an addition and one comparison with the pool's threshold.
//! Whether it is alive, and whether it begins a run, is asked only of those few that pass. Where few are alive the threshold rises
//! late and nearly all would be asked: there the alive SIDs are walked instead ([`few`]), and the dead cost a bit each.
//!
//! In a column (see `catalog::index`) a child is a run of equal codes. The last level has only runs of one. Elsewhere the places where
//! the code changes are found sixteen at a time, and a block without any is left by galloping, so that a child with many SIDs costs
//! hardly more than a child with one.

mod few;
#[cfg(target_arch = "x86_64")]
pub(super) mod vectors;

use std::ops::Range;

use super::beside::Beside;
use super::pool::{Candidate, Pool};
use crate::catalog::{Child, Entries, Mask, MaskPart, Node, TypeIndex};
use crate::device::cpu::logsum::log_probability;

/// A logit that was needed is NaN.
#[derive(Debug)]
pub(super) struct Nan;

/// Which class (type and first code) the children of a parent belong to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Class {
    /// All to one: the parent's.
    Parent(u32),
    /// Each to its own: this one plus its code (first level).
    First(u32),
}

impl Class {
    #[inline]
    pub fn of(self, code: u16) -> u32 {
        match self {
            Class::Parent(class) => class,
            Class::First(base) => base + u32::from(code),
        }
    }
}

/// A node to extend.
#[derive(Clone, Copy)]
pub(super) struct Parent<'a> {
    pub index: &'a TypeIndex,
    pub level: usize,
    pub node: Node,
    /// What a delta has of it.
    pub beside: Option<Beside<'a>>,
    /// `[codebook]`.
    pub logits: &'a [f32],
    pub score: f32,
    /// Logarithm of the normaliser.
    pub norm: f32,
    /// Place in the list before, or of the type at the first level.
    pub place: usize,
    pub class: Class,
    pub rules: Rules<'a>,
}

/// What keeps a child out, or back.
#[derive(Clone, Copy)]
pub(super) struct Rules<'a> {
    /// `None`: everything is alive.
    pub mask: Option<&'a Mask>,
    /// SIDs, sorted, that earlier groups have finished at this level; empty before the last level.
    pub taken: &'a [u32],
    /// `[codebook]` uses of each code by earlier groups, and the price of one.
    pub uses: Option<(&'a [u16], f32)>,
}

impl Rules<'_> {
    /// Whether a child with these SIDs is alive for the request.
    #[inline]
    pub fn alive(&self, sids: &Range<u32>) -> bool {
        self.mask.is_none_or(|mask| mask.alive(sids.clone()))
    }

    /// Whether an earlier group has finished this SID.
    #[inline]
    pub fn is_taken(&self, first_sid: u32) -> bool {
        !self.taken.is_empty() && self.taken.binary_search(&first_sid).is_ok()
    }

    /// The score that decides the choice.
    #[inline]
    pub fn charge(&self, score: f32, code: u16) -> f32 {
        match self.uses {
            Some((uses, price)) => score - price * f32::from(uses[code as usize]),
            None => score,
        }
    }
}

/// The sum of a score and a log-probability; minus infinity where it is not a number.
#[inline]
pub(super) fn add(score: f32, log_probability: f32) -> f32 {
    let sum = score + log_probability;
    if sum.is_nan() { f32::NEG_INFINITY } else { sum }
}

/// The child at an entry of `level`, below `node`, as a node of the next level.
pub(super) fn child(index: &TypeIndex, level: usize, node: Node, entry: u32) -> Node {
    let at = entry as usize;
    match index.entries(level) {
        Entries::Explicit { first, .. } => Node { first: first[at], end: first[at + 1] },
        Entries::Column { codes } => {
            let end = run_end(&codes[..node.end as usize], at + 1, codes[at]);
            Node { first: entry, end: end as u32 }
        }
    }
}

/// The SIDs below the child at an entry.
pub(super) fn sids(parent: &Parent<'_>, entry: u32) -> Range<u32> {
    let at = entry as usize;
    match parent.index.entries(parent.level) {
        Entries::Explicit { start, .. } => start[at]..start[at + 1],
        Entries::Column { .. } => {
            let node = child(parent.index, parent.level, parent.node, entry);
            node.first..node.end
        }
    }
}

/// One past the entries of the child at an entry.
pub(super) fn entry_end(parent: &Parent<'_>, entry: u32) -> u32 {
    match parent.index.entries(parent.level) {
        Entries::Explicit { .. } => entry + 1,
        Entries::Column { .. } => child(parent.index, parent.level, parent.node, entry).end,
    }
}

/// Calls `visit` for the snapshot's children of a node, by ascending code, with their entries.
#[inline]
pub(super) fn for_each_child(parent: &Parent<'_>, mut visit: impl FnMut(Child, u32)) {
    let explicit = matches!(parent.index.entries(parent.level), Entries::Explicit { .. });
    let mut entry = parent.node.first;
    parent.index.for_each_child(parent.level, parent.node, |child| {
        let at = if explicit { entry } else { child.node.first };
        entry += 1;
        visit(child, at);
    });
}

/// Offers every child of a node to the pool; liveness is asked of those that pass the threshold.
pub(super) fn scan(parent: &Parent<'_>, pool: &mut Pool) -> Result<(), Nan> {
    match &parent.beside {
        None => segment(parent, parent.node.first as usize..parent.node.end as usize, pool),
        Some(beside) => beside.scan(parent, pool),
    }
}

/// How a level's entries make children.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Every entry is one.
    Entries,
    /// Every entry is one, and is a SID: the last level.
    Sids,
    /// Every run of equal codes is one, and its entries are SIDs.
    Runs,
}

/// The codes of a level, and how its entries make children.
#[inline]
pub(super) fn codes_of(index: &TypeIndex, level: usize) -> (&[u16], Form) {
    match index.entries(level) {
        Entries::Explicit { codes, .. } => (codes, Form::Entries),
        Entries::Column { codes } if level + 1 == index.levels() => (codes, Form::Sids),
        Entries::Column { codes } => (codes, Form::Runs),
    }
}

/// One alive SID among so many entries is where walking the alive costs as much as looking at all children first.
const SPARSE: usize = 5;
/// The same where entries have bounds, which are read on the walk.
const SPARSE_BELOW_BOUNDS: usize = 16;

/// Offers the snapshot's children at some entries of a node; the first begins a child, and none goes on behind the last.
pub(super) fn segment(parent: &Parent<'_>, entries: Range<usize>, pool: &mut Pool) -> Result<(), Nan> {
    let Some(mask) = parent.rules.mask else {
        return every(parent, None, entries, pool);
    };
    let (sids, sparse) = match parent.index.entries(parent.level) {
        Entries::Explicit { start, .. } => (start[entries.start]..start[entries.end], SPARSE_BELOW_BOUNDS),
        Entries::Column { .. } => (entries.start as u32..entries.end as u32, SPARSE),
    };
    let part = mask.part(sids);
    if part.is_all() {
        return every(parent, None, entries, pool);
    }
    if entries.len() > BLOCK && part.count() * sparse < entries.len() {
        return few::segment(parent, &part, entries, pool);
    }
    every(parent, Some(&part), entries, pool)
}

/// Looks at every child; liveness is asked of those that pass the threshold.
fn every(
    parent: &Parent<'_>,
    part: Option<&MaskPart<'_>>,
    entries: Range<usize>,
    pool: &mut Pool,
) -> Result<(), Nan> {
    let Some(part) = part else {
        return each(parent, None, entries, pool, |code, at, pool| consider(parent, code, at, pool));
    };
    let mut waiting = Waiting::new(parent, part);
    each(parent, Some(part), entries, pool, |code, at, pool| waiting.push(code, at, pool))?;
    waiting.ask(pool)
}

/// Calls `consider` for the children at some entries that pass the threshold, with code and entry; those that are surely dead may be
/// left out.
#[inline]
fn each(
    parent: &Parent<'_>,
    part: Option<&MaskPart<'_>>,
    entries: Range<usize>,
    pool: &mut Pool,
    consider: impl FnMut(u16, usize, &mut Pool) -> Result<(), Nan>,
) -> Result<(), Nan> {
    let (first, end) = (entries.start, entries.end);
    let (codes, form) = codes_of(parent.index, parent.level);
    let codes = &codes[..end];
    #[cfg(target_arch = "x86_64")]
    if end - first >= BLOCK && std::arch::is_x86_feature_detected!("avx512f") {
        return match form {
            // SAFETY: the processor has AVX-512F, as was just asked.
            Form::Runs => unsafe { vectors::runs(parent, codes, first, pool, consider) },
            // SAFETY: as above.
            Form::Sids => unsafe { vectors::dense(parent, part, codes, first, pool, consider) },
            // SAFETY: as above.
            Form::Entries => unsafe { vectors::dense(parent, None, codes, first, pool, consider) },
        };
    }
    match form {
        Form::Runs => runs(parent, codes, first, |_, begins, _| begins, pool, consider),
        _ => dense(parent, codes, first, pool, consider),
    }
}

/// Children that pass and wait to be asked whether they are alive: one after the other each would wait for the memory of its
/// bounds and its bits, and most answers would be guessed wrong.
struct Waiting<'a> {
    parent: &'a Parent<'a>,
    part: &'a MaskPart<'a>,
    codes: [u16; Waiting::MOST],
    entries: [u32; Waiting::MOST],
    len: usize,
}

impl<'a> Waiting<'a> {
    const MOST: usize = 32;

    fn new(parent: &'a Parent<'a>, part: &'a MaskPart<'a>) -> Waiting<'a> {
        Waiting { parent, part, codes: [0; Waiting::MOST], entries: [0; Waiting::MOST], len: 0 }
    }

    #[inline]
    fn push(&mut self, code: u16, at: usize, pool: &mut Pool) -> Result<(), Nan> {
        (self.codes[self.len], self.entries[self.len]) = (code, at as u32);
        self.len += 1;
        if self.len == Waiting::MOST { self.ask(pool) } else { Ok(()) }
    }

    #[inline(never)]
    fn ask(&mut self, pool: &mut Pool) -> Result<(), Nan> {
        let len = std::mem::take(&mut self.len);
        let mut alive = [false; Waiting::MOST];
        for (alive, &entry) in alive.iter_mut().zip(&self.entries[..len]) {
            *alive = self.part.alive(&sids(self.parent, entry));
        }
        let children = self.codes.iter().zip(&self.entries).zip(alive).take(len);
        for ((&code, &entry), _) in children.filter(|(_, alive)| *alive) {
            offer(self.parent, code, entry as usize, pool)?;
        }
        Ok(())
    }
}

/// Whether a score may enter: it beats the threshold, or one of the two is NaN and must be looked at.
#[inline(always)]
#[allow(clippy::neg_cmp_op_on_partial_ord)]
pub(super) fn passes(score: f32, threshold: f32) -> bool {
    !(score <= threshold)
}

/// Every entry is a child; `codes` is cut at the node's end.
#[inline]
fn dense(
    parent: &Parent<'_>,
    codes: &[u16],
    first: usize,
    pool: &mut Pool,
    mut consider: impl FnMut(u16, usize, &mut Pool) -> Result<(), Nan>,
) -> Result<(), Nan> {
    let (logits, score, norm) = (parent.logits, parent.score, parent.norm);
    let mut threshold = pool.threshold;
    for (i, &code) in codes[first..].iter().enumerate() {
        if passes(score + (logits[code as usize] - norm), threshold) {
            consider(code, first + i, pool)?;
            threshold = pool.threshold;
        }
    }
    Ok(())
}

/// Every run of equal codes is a child; `codes` is cut at the node's end.
///
/// `filter` may clear bits of a block whose scores do not pass the threshold.
#[inline(always)]
fn runs(
    parent: &Parent<'_>,
    codes: &[u16],
    first: usize,
    filter: impl Fn(&[u16], u32, f32) -> u32,
    pool: &mut Pool,
    mut consider: impl FnMut(u16, usize, &mut Pool) -> Result<(), Nan>,
) -> Result<(), Nan> {
    let (logits, score, norm) = (parent.logits, parent.score, parent.norm);
    if first < codes.len() {
        consider(codes[first], first, pool)?;
    }
    let mut threshold = pool.threshold;
    let mut at = first + 1;
    while at + BLOCK <= codes.len() {
        let block = &codes[at - 1..at + BLOCK];
        let mut begins = changes(block);
        if begins == 0 {
            at = run_end(codes, at + BLOCK, codes[at - 1]);
            continue;
        }
        begins = filter(&block[1..], begins, threshold);
        while begins != 0 {
            let i = begins.trailing_zeros() as usize;
            begins &= begins - 1;
            let code = block[i + 1];
            if passes(score + (logits[code as usize] - norm), threshold) {
                consider(code, at + i, pool)?;
                threshold = pool.threshold;
            }
        }
        at += BLOCK;
    }
    for at in at..codes.len() {
        let code = codes[at];
        if code != codes[at - 1] && passes(score + (logits[code as usize] - norm), threshold) {
            consider(code, at, pool)?;
            threshold = pool.threshold;
        }
    }
    Ok(())
}

/// Entries that [`changes`] looks at.
pub(super) const BLOCK: usize = 16;

/// Bit `i` is set where entry `i + 1` of `BLOCK + 1` differs from entry `i`.
#[inline(always)]
pub(super) fn changes(block: &[u16]) -> u32 {
    assert_eq!(block.len(), BLOCK + 1);
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::*;
        let load = |at: usize| {
            // SAFETY: eight codes from `at` lie within the 17 of the block (at is 0, 1, 8 or 9); the load needs no alignment.
            unsafe { _mm_loadu_si128(block[at..at + 8].as_ptr().cast()) }
        };
        // SAFETY: SSE2 is part of x86-64.
        unsafe {
            let low = _mm_cmpeq_epi16(load(0), load(1));
            let high = _mm_cmpeq_epi16(load(8), load(9));
            !(_mm_movemask_epi8(_mm_packs_epi16(low, high)) as u32) & 0xffff
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        (0..BLOCK).fold(0, |bits, i| bits | u32::from(block[i] != block[i + 1]) << i)
    }
}

/// The first entry from `from` on that is not `code`, in steps that double; codes ascend.
fn run_end(codes: &[u16], from: usize, code: u16) -> usize {
    if from >= codes.len() || codes[from] != code {
        return from;
    }
    let (mut from, mut step) = (from + 1, 1);
    while from + step <= codes.len() && codes[from + step - 1] == code {
        from += step;
        step *= 2;
    }
    let end = codes.len().min(from + step);
    from + codes[from..end].partition_point(|&c| c == code)
}

/// [`offer`], out of the way of the loops.
#[inline(never)]
fn consider(parent: &Parent<'_>, code: u16, at: usize, pool: &mut Pool) -> Result<(), Nan> {
    offer(parent, code, at, pool)
}

/// Offers a child that is alive.
#[inline]
fn offer(parent: &Parent<'_>, code: u16, at: usize, pool: &mut Pool) -> Result<(), Nan> {
    let rules = &parent.rules;
    // Only SIDs, children of the last level, are ever taken.
    if rules.is_taken(at as u32) {
        return Ok(());
    }
    let logit = parent.logits[code as usize];
    if logit.is_nan() {
        return Err(Nan);
    }
    let score = add(parent.score, log_probability(logit, parent.norm));
    let candidate = Candidate::new(parent.place, code, at as u32, parent.class.of(code));
    pool.offer(rules.charge(score, code), candidate);
    Ok(())
}

#[cfg(test)]
mod tests;
