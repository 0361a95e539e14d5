//! The children of a node, scored: the inner loop of the SID step.
//!
//! A child costs its code (2 bytes, in order), its logit, a subtraction, an addition and one comparison with the pool's threshold.
//! Whether it is alive, and whether it begins a run, is asked only of those few that pass.
//!
//! In a column (see `catalog::index`) a child is a run of equal codes. The last level has only runs of one. Elsewhere the places where
//! the code changes are found sixteen at a time, and a block without any is left by galloping, so that a child with many SIDs costs
//! hardly more than a child with one.

use std::ops::Range;

use super::beside::Beside;
use super::pool::{Candidate, Pool};
use crate::catalog::{Child, Entries, Mask, Node, TypeIndex};
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

    /// Whether a child with these SIDs may be chosen.
    #[inline]
    pub fn admit(&self, sids: &Range<u32>) -> bool {
        self.alive(sids) && (self.taken.is_empty() || self.taken.binary_search(&sids.start).is_err())
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

/// Offers the snapshot's children at some entries of a node; the first begins a child, and none goes on behind the last.
pub(super) fn segment(parent: &Parent<'_>, entries: Range<usize>, pool: &mut Pool) -> Result<(), Nan> {
    let (first, end) = (entries.start, entries.end);
    let (codes, dense) = match parent.index.entries(parent.level) {
        Entries::Explicit { codes, .. } => (codes, true),
        Entries::Column { codes } => (codes, parent.level + 1 == parent.index.levels()),
    };
    let codes = &codes[..end];
    #[cfg(target_arch = "x86_64")]
    if end - first >= BLOCK && std::arch::is_x86_feature_detected!("avx512f") {
        return match dense {
            // SAFETY: the processor has AVX-512F, as was just asked.
            true => unsafe { avx512::dense(parent, &codes[first..], first, pool) },
            // SAFETY: as above.
            false => unsafe { avx512::runs(parent, codes, first, pool) },
        };
    }
    match dense {
        true => self::dense(parent, &codes[first..], first, pool),
        false => runs(parent, codes, first, |_, begins, _| begins, pool),
    }
}

/// Whether a score may enter: it beats the threshold, or one of the two is NaN and must be looked at.
#[inline(always)]
#[allow(clippy::neg_cmp_op_on_partial_ord)]
pub(super) fn passes(score: f32, threshold: f32) -> bool {
    !(score <= threshold)
}

/// Every entry is a child.
#[inline]
fn dense(parent: &Parent<'_>, codes: &[u16], first: usize, pool: &mut Pool) -> Result<(), Nan> {
    let (logits, score, norm) = (parent.logits, parent.score, parent.norm);
    let mut threshold = pool.threshold;
    for (i, &code) in codes.iter().enumerate() {
        if passes(score + (logits[code as usize] - norm), threshold) {
            consider(parent, code, first + i, pool)?;
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
) -> Result<(), Nan> {
    let (logits, score, norm) = (parent.logits, parent.score, parent.norm);
    if first < codes.len() {
        consider(parent, codes[first], first, pool)?;
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
                consider(parent, code, at + i, pool)?;
                threshold = pool.threshold;
            }
        }
        at += BLOCK;
    }
    for at in at..codes.len() {
        let code = codes[at];
        if code != codes[at - 1] && passes(score + (logits[code as usize] - norm), threshold) {
            consider(parent, code, at, pool)?;
            threshold = pool.threshold;
        }
    }
    Ok(())
}

/// Entries that [`changes`] looks at.
const BLOCK: usize = 16;

/// Bit `i` is set where entry `i + 1` of `BLOCK + 1` differs from entry `i`.
#[inline(always)]
fn changes(block: &[u16]) -> u32 {
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

/// Sixteen scores at a time: a gather costs about a cycle per code, and the children that do not pass cost no branch.
#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::{BLOCK, Nan, Parent, Pool, consider};

    /// Below this many children in a block they are scored one by one.
    const FEW: u32 = 5;

    #[target_feature(enable = "avx512f")]
    pub fn dense(parent: &Parent<'_>, codes: &[u16], first: usize, pool: &mut Pool) -> Result<(), Nan> {
        let (blocks, rest) = codes.as_chunks::<BLOCK>();
        for (at, block) in blocks.iter().enumerate() {
            let mut bits = passing(parent, block, pool.threshold);
            while bits != 0 {
                let i = bits.trailing_zeros() as usize;
                bits &= bits - 1;
                consider(parent, block[i], first + at * BLOCK + i, pool)?;
            }
        }
        super::dense(parent, rest, first + blocks.len() * BLOCK, pool)
    }

    #[target_feature(enable = "avx512f")]
    pub fn runs(parent: &Parent<'_>, codes: &[u16], first: usize, pool: &mut Pool) -> Result<(), Nan> {
        let filter = |block: &[u16], begins: u32, threshold: f32| match begins.count_ones() < FEW {
            true => begins,
            false => begins & passing(parent, block.try_into().expect("a block"), threshold),
        };
        super::runs(parent, codes, first, filter, pool)
    }

    /// Bit `i` is set where the score of `block[i]` passes the threshold, by the same two roundings as one by one.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn passing(parent: &Parent<'_>, block: &[u16; BLOCK], threshold: f32) -> u32 {
        // SAFETY: 32 bytes are read from a block of 32; the load needs no alignment.
        let codes = _mm512_cvtepu16_epi32(unsafe { _mm256_loadu_si256(block.as_ptr().cast()) });
        let bound = _mm512_set1_epi32(parent.logits.len() as i32);
        assert!(_mm512_cmpge_epu32_mask(codes, bound) == 0, "a code beyond {} logits", parent.logits.len());
        // SAFETY: every code is an index of `logits`, as was just asserted.
        let logits = unsafe { _mm512_i32gather_ps::<4>(codes, parent.logits.as_ptr()) };
        let levels = _mm512_sub_ps(logits, _mm512_set1_ps(parent.norm));
        let scores = _mm512_add_ps(_mm512_set1_ps(parent.score), levels);
        u32::from(_mm512_cmp_ps_mask::<_CMP_NLE_UQ>(scores, _mm512_set1_ps(threshold)))
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

/// Asks the rules and offers a child.
#[inline(never)]
fn consider(parent: &Parent<'_>, code: u16, at: usize, pool: &mut Pool) -> Result<(), Nan> {
    let rules = &parent.rules;
    if (rules.mask.is_some() || !rules.taken.is_empty()) && !rules.admit(&sids(parent, at as u32)) {
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
mod tests {
    use super::*;

    #[test]
    fn changes_and_runs_equal_their_definitions() {
        let mut state = 7u32;
        for case in 0..2000u32 {
            let codes: Vec<u16> = (0..BLOCK + 1)
                .scan(0u16, |code, _| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    *code += u16::from((state >> 16).is_multiple_of(1 + case % 9)) * 300;
                    Some(*code)
                })
                .collect();
            let expected = (0..BLOCK).fold(0, |bits, i| bits | u32::from(codes[i] != codes[i + 1]) << i);
            assert_eq!(changes(&codes), expected, "{codes:?}");
            let expected = codes.iter().take_while(|&&c| c == codes[0]).count();
            assert_eq!(run_end(&codes, 1, codes[0]), expected, "{codes:?}");
        }
    }

    /// What this machine's vectors offer equals what one by one offers, ties and all.
    #[test]
    fn every_way_to_scan_keeps_the_same_children() {
        let mut state = 11u32;
        let mut random = move |bound: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) % bound
        };
        for case in 0..400 {
            let codes = 1 + random(if case % 2 == 0 { 9 } else { 700 });
            let tuples: Vec<u16> =
                (0..3000).flat_map(|_| [random(3), random(codes), random(60)]).map(|c| c as u16).collect();
            let index = TypeIndex::from_tuples(&[3, codes as usize, 60], &tuples).unwrap();
            let logits: Vec<f32> = (0..codes).map(|_| -(random(40) as f32)).collect();
            for child in index.children(0, index.root()) {
                let parent = Parent {
                    index: &index,
                    level: 1,
                    node: child.node,
                    beside: None,
                    logits: &logits,
                    score: -1.5,
                    norm: 0.25,
                    place: 0,
                    class: Class::Parent(0),
                    rules: Rules { mask: None, taken: &[], uses: None },
                };
                let kept = |scan: &dyn Fn(&mut Pool)| -> Vec<(u16, u32)> {
                    let mut pool = Pool::new(8);
                    pool.begin(1 + case as usize % 8);
                    scan(&mut pool);
                    pool.finish().iter().map(|c| (c.code, c.entry)).collect()
                };
                let fast = kept(&|pool| scan(&parent, pool).unwrap());
                let (first, end) = (child.node.first as usize, child.node.end as usize);
                let slow = kept(&|pool| match index.entries(1) {
                    Entries::Explicit { codes, .. } => {
                        dense(&parent, &codes[first..end], first, pool).unwrap()
                    }
                    Entries::Column { codes } => {
                        runs(&parent, &codes[..end], first, |_, begins, _| begins, pool).unwrap()
                    }
                });
                assert_eq!(fast, slow, "case {case}");
                let mut sorted: Vec<(u16, f32)> =
                    index.children(1, child.node).map(|c| (c.code, logits[c.code as usize])).collect();
                sorted.sort_by(|a, b| b.1.total_cmp(&a.1));
                let expected: Vec<u16> = sorted.iter().map(|c| c.0).take(fast.len().max(1)).collect();
                assert_eq!(fast.iter().map(|c| c.0).collect::<Vec<_>>(), expected);
            }
        }
    }
}
