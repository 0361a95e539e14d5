//! The trie of a type's SIDs, implicit in its sorted tuples.
//!
//! The distinct SIDs are sorted and numbered; a node is an interval. A level is stored in one of two ways:
//!
//! - **column**: the code of every distinct SID, in order (2 bytes per SID). A child is a maximal run of equal codes within
//!   the node's interval. Runs longer than 16 are skipped by galloping, so that a skewed catalog costs `O(log run)` per child.
//! - **explicit**: per node its code, the first entry of its children and its first SID (10 bytes per node).
//!
//! A level is explicit where that is smaller, `10 * nodes < 2 * sids`. Nodes only grow in number with depth, so the explicit
//! levels come first and the last level is always a column. That is 4 bytes per SID for ten million SIDs of three levels of
//! 8,192 codes, 14 for eight levels of 2,048. Bitmaps for the first levels, the usual choice, would cost the codebook's size per node
//! whatever its number of children; here a wide node costs its children and a narrow one next to nothing, and one scan serves both.
//!
//! The interval of SIDs below a node is known in `O(1)`, which is all that liveness needs: see [`super::Mask`].
//! All arrays are flat and little-endian, to be mapped from a file and copied to a device as they are ([`TypeIndex::entries`]).

use std::borrow::Cow;
use std::cmp::Ordering;
use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::Array;
use super::order::{self, Sorted};
use crate::error::{Error, Result};
use crate::ids::{Rank, SidIndex};

/// Most levels of a SID.
pub const MAX_LEVELS: usize = 8;
/// Most codes of a level.
pub const MAX_CODES: usize = 1 << 16;

/// Runs up to this length are counted one by one: a gallop's branches cost more than the comparisons saved.
const SHORT_RUN: usize = 16;

/// Codes looked at together when the runs of a column are cut.
const CHUNK: usize = 32;

/// A node of the trie at some level: an interval of the entries of that level.
///
/// The level itself is the caller's to know: it is the level of the codes that lead to the node's children.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(C)]
pub struct Node {
    /// First entry.
    pub first: u32,
    /// One past the last entry.
    pub end: u32,
}

/// A child of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Child {
    /// The code that leads to it.
    pub code: u16,
    /// The child as a node of the next level (at the last level: the SID as `first..first + 1`).
    pub node: Node,
    /// Distinct SIDs below.
    pub sids: Range<u32>,
}

/// The stored form of one level.
#[derive(Clone, Copy, Debug)]
pub enum Entries<'a> {
    /// One entry per node.
    Explicit {
        /// `[nodes]` codes.
        codes: &'a [u16],
        /// `[nodes + 1]` first entry of the node's children at the next level.
        first: &'a [u32],
        /// `[nodes + 1]` first distinct SID below the node.
        start: &'a [u32],
    },
    /// One entry per distinct SID.
    Column {
        /// `[sids]` codes.
        codes: &'a [u16],
    },
}

/// One level; `start` is empty in a column, and `first` where it would equal `start` (before a column).
#[derive(Clone, Debug)]
pub(super) struct Level {
    pub codebook: usize,
    pub nodes: usize,
    pub codes: Array<u16>,
    pub first: Array<u32>,
    pub start: Array<u32>,
}

impl Level {
    #[inline]
    fn entries(&self) -> Entries<'_> {
        if self.start.is_empty() {
            return Entries::Column { codes: &self.codes };
        }
        let first = if self.first.is_empty() { &self.start } else { &self.first };
        Entries::Explicit { codes: &self.codes, first, start: &self.start }
    }
}

/// The trie of one type; cloning shares its arrays.
#[derive(Clone, Debug)]
pub struct TypeIndex {
    levels: Arc<[Level]>,
    sids: usize,
    items: usize,
    /// `[sids + 1]` first rank of each SID; empty if no two items share a SID.
    first_item: Array<u32>,
    /// `[items]` the ranks of each SID by popularity; empty where that is the order of ranks.
    preferred: Array<u32>,
}

impl TypeIndex {
    /// Builds the trie of row-major `tuples` (`[items, codebooks.len()]`) and returns with it the row at each rank.
    ///
    /// Items of one SID follow each other in the order of `before`, which compares two rows, then of their row numbers.
    /// The result depends on the arguments alone, not on the number of threads.
    ///
    /// # Errors
    /// If there are no levels or more than [`MAX_LEVELS`], a codebook is empty or larger than [`MAX_CODES`], the tuples are
    /// ragged or more than `u32` can count, or a code lies outside of its codebook.
    pub fn build(
        codebooks: &[usize],
        tuples: &[u16],
        before: impl Fn(u32, u32) -> Ordering + Sync,
    ) -> Result<(TypeIndex, Vec<u32>)> {
        check(codebooks, tuples)?;
        let Sorted { mut columns, mut differs, order } = order::sort(codebooks, tuples, before);
        let items = order.len();
        let collide = codebooks.len() as u8;
        let mut first_item = Vec::new();
        if differs.contains(&collide) {
            first_item = (0..items as u32).filter(|&rank| differs[rank as usize] < collide).collect();
            for codes in &mut columns {
                *codes = first_item.iter().map(|&rank| codes[rank as usize]).collect();
            }
            differs.retain(|&level| level < collide);
            first_item.push(items as u32);
        }
        let levels = build_levels(codebooks, columns, &differs);
        let index = TypeIndex {
            levels: levels.into(),
            sids: differs.len(),
            items,
            first_item: first_item.into(),
            preferred: Array::default(),
        };
        Ok((index, order))
    }

    /// Builds the trie of row-major `tuples`; items of one SID keep the order of their rows.
    ///
    /// # Errors
    /// As [`TypeIndex::build`].
    pub fn from_tuples(codebooks: &[usize], tuples: &[u16]) -> Result<TypeIndex> {
        Ok(TypeIndex::build(codebooks, tuples, |_, _| Ordering::Equal)?.0)
    }

    /// A trie as a file holds it; the caller has seen to the lengths of the arrays.
    pub(super) fn from_parts(
        levels: Vec<Level>,
        items: usize,
        first_item: Array<u32>,
        preferred: Array<u32>,
    ) -> TypeIndex {
        let sids = first_item.len().checked_sub(1).unwrap_or(items);
        TypeIndex { levels: levels.into(), sids, items, first_item, preferred }
    }

    /// The stored arrays of all levels.
    pub(super) fn parts(&self) -> &[Level] {
        &self.levels
    }

    /// The first rank of each SID, and one past the last rank; empty if no two items share a SID.
    pub(super) fn first_item(&self) -> &Array<u32> {
        &self.first_item
    }

    /// The ranks of each SID by popularity; empty where that is the order of ranks.
    pub(super) fn preferred(&self) -> &Array<u32> {
        &self.preferred
    }

    /// The same trie with another order among the items of a SID: each SID's ranks, permuted.
    pub(super) fn with_preferred(&self, preferred: Array<u32>) -> TypeIndex {
        TypeIndex { preferred, ..self.clone() }
    }

    /// Levels of a SID.
    #[inline]
    pub fn levels(&self) -> usize {
        self.levels.len()
    }

    /// Codes of the codebook of `level`.
    #[inline]
    pub fn codebook(&self, level: usize) -> usize {
        self.levels[level].codebook
    }

    /// Distinct SIDs.
    #[inline]
    pub fn sids(&self) -> usize {
        self.sids
    }

    /// Items.
    #[inline]
    pub fn items(&self) -> usize {
        self.items
    }

    /// Whether some items share a SID. If none do, rank and SID are the same number.
    #[inline]
    pub fn has_collisions(&self) -> bool {
        !self.first_item.is_empty()
    }

    /// Trie nodes that the codes of `level` lead to, over all parents: no beam is ever wider after that level.
    #[inline]
    pub fn nodes(&self, level: usize) -> usize {
        self.levels[level].nodes
    }

    /// The node above the first level.
    #[inline]
    pub fn root(&self) -> Node {
        Node { first: 0, end: self.levels[0].codes.len() as u32 }
    }

    /// The stored arrays of `level`.
    pub fn entries(&self, level: usize) -> Entries<'_> {
        self.levels[level].entries()
    }

    /// The children of `node` at `level`, by ascending code.
    #[inline]
    pub fn children(&self, level: usize, node: Node) -> Children<'_> {
        let (codes, first, start): (_, &[u32], &[u32]) = match self.levels[level].entries() {
            Entries::Explicit { codes, first, start } => (codes, first, start),
            Entries::Column { codes } => (codes, &[], &[]),
        };
        Children { codes: &codes[..node.end as usize], first, start, at: node.first as usize }
    }

    /// Calls `visit` for the children of `node` at `level`, by ascending code: [`TypeIndex::children`] for inner loops,
    /// several times as fast where there are many children.
    #[inline]
    pub fn for_each_child(&self, level: usize, node: Node, mut visit: impl FnMut(Child)) {
        let (at, end) = (node.first as usize, node.end as usize);
        match self.levels[level].entries() {
            Entries::Explicit { codes, first, start } => {
                let bounds = first[at..=end].windows(2).zip(start[at..=end].windows(2));
                for (&code, (first, start)) in codes[at..end].iter().zip(bounds) {
                    visit(Child {
                        code,
                        node: Node { first: first[0], end: first[1] },
                        sids: start[0]..start[1],
                    });
                }
            }
            Entries::Column { codes } => {
                for_each_run(&codes[..end], at, |first, end| visit(run_child(codes[first], first, end)));
            }
        }
    }

    /// The child of `node` at `level` that `code` leads to, if there is one.
    pub fn child(&self, level: usize, node: Node, code: u16) -> Option<Child> {
        let (first, end) = (node.first as usize, node.end as usize);
        match self.levels[level].entries() {
            Entries::Explicit { codes, first: children, start } => {
                let at = first + codes[first..end].binary_search(&code).ok()?;
                Some(Child {
                    code,
                    node: Node { first: children[at], end: children[at + 1] },
                    sids: start[at]..start[at + 1],
                })
            }
            Entries::Column { codes } => {
                let codes = &codes[..end];
                let at = first + codes[first..].partition_point(|&c| c < code);
                (at < end && codes[at] == code).then(|| run_child(code, at, run_end(codes, at)))
            }
        }
    }

    /// The distinct SIDs below `node` of `level`; the node of a whole SID has the level [`TypeIndex::levels`].
    #[inline]
    pub fn sids_below(&self, level: usize, node: Node) -> Range<u32> {
        match self.levels.get(level).map(Level::entries) {
            Some(Entries::Explicit { start, .. }) => start[node.first as usize]..start[node.end as usize],
            _ => node.first..node.end,
        }
    }

    /// The items of a SID, most popular first, then by id.
    ///
    /// That is the order of ranks until [`super::Catalog::with_popularity`] changes it.
    pub fn by_popularity(&self, sid: SidIndex) -> impl ExactSizeIterator<Item = Rank> + use<'_> {
        let ranks = self.ranks(sid);
        let preferred = self.preferred.get(ranks.start as usize..ranks.end as usize);
        ranks.enumerate().map(move |(at, rank)| Rank(preferred.map_or(rank, |preferred| preferred[at])))
    }

    /// The ranks of the items of a SID.
    #[inline]
    pub fn ranks(&self, sid: SidIndex) -> Range<u32> {
        match self.has_collisions() {
            true => self.first_item[sid.index()]..self.first_item[sid.index() + 1],
            false => sid.0..sid.0 + 1,
        }
    }

    /// The SID of an item.
    #[inline]
    pub fn sid_of(&self, rank: Rank) -> SidIndex {
        match self.has_collisions() {
            true => SidIndex(self.first_item.partition_point(|&first| first <= rank.0) as u32 - 1),
            false => SidIndex(rank.0),
        }
    }

    /// The codes of a SID, one per level.
    pub fn codes(&self, sid: SidIndex) -> Vec<u16> {
        (0..self.levels()).map(|level| self.code(sid, level)).collect()
    }

    /// The code of a SID at `level`.
    pub fn code(&self, sid: SidIndex, level: usize) -> u16 {
        match self.levels[level].entries() {
            Entries::Explicit { codes, start, .. } => {
                codes[start.partition_point(|&first| first <= sid.0) - 1]
            }
            Entries::Column { codes } => codes[sid.index()],
        }
    }

    /// Looks a SID up; `None` if no item has it, or if `codes` has another number of levels.
    pub fn find(&self, codes: &[u16]) -> Option<SidIndex> {
        if codes.len() != self.levels() {
            return None;
        }
        let descend = |node, (level, &code)| Some(self.child(level, node, code)?.node);
        codes.iter().enumerate().try_fold(self.root(), descend).map(|node| SidIndex(node.first))
    }

    /// The codes of items, row-major `[ranks, levels]`.
    pub(super) fn tuples(&self, ranks: &[u32]) -> Vec<u16> {
        let levels = self.levels();
        let sids: Cow<'_, [u32]> = match self.has_collisions() {
            false => ranks.into(),
            true => ranks.par_iter().map(|&rank| self.sid_of(Rank(rank)).0).collect::<Vec<u32>>().into(),
        };
        let mut tuples = vec![0; ranks.len() * levels];
        for level in 0..levels {
            let columns = match self.entries(level) {
                Entries::Column { codes } => Cow::Borrowed(codes),
                Entries::Explicit { codes, start, .. } => {
                    let runs = codes.iter().zip(start.windows(2));
                    let run = |(&code, run): (&u16, &[u32])| {
                        std::iter::repeat_n(code, run[1].saturating_sub(run[0]) as usize)
                    };
                    // A file that nobody verified may state any bounds.
                    runs.flat_map(run).take(self.sids()).collect()
                }
            };
            let rows = tuples.par_chunks_exact_mut(levels).zip(&*sids).with_min_len(4096);
            rows.for_each(|(row, &sid)| row[level] = columns[sid as usize]);
        }
        tuples
    }

    /// Bytes of the arrays.
    pub fn bytes(&self) -> usize {
        let level = |l: &Level| 2 * l.codes.len() + 4 * (l.first.len() + l.start.len());
        self.levels.iter().map(level).sum::<usize>() + 4 * (self.first_item.len() + self.preferred.len())
    }
}

/// Iterator over the children of a node, by ascending code.
#[derive(Clone, Debug)]
pub struct Children<'a> {
    /// Cut at the node's end.
    codes: &'a [u16],
    /// Empty in a column.
    first: &'a [u32],
    start: &'a [u32],
    at: usize,
}

impl Iterator for Children<'_> {
    type Item = Child;

    #[inline]
    fn next(&mut self) -> Option<Child> {
        let at = self.at;
        let code = *self.codes.get(at)?;
        if self.first.is_empty() {
            self.at = run_end(self.codes, at);
            return Some(run_child(code, at, self.at));
        }
        self.at += 1;
        let node = Node { first: self.first[at], end: self.first[at + 1] };
        Some(Child { code, node, sids: self.start[at]..self.start[at + 1] })
    }
}

impl std::iter::FusedIterator for Children<'_> {}

#[inline]
fn run_child(code: u16, first: usize, end: usize) -> Child {
    let (first, end) = (first as u32, end as u32);
    Child { code, node: Node { first, end }, sids: first..end }
}

/// One past the run of equal codes that starts at `at`; codes ascend from there to the end of the slice.
#[inline]
fn run_end(codes: &[u16], at: usize) -> usize {
    let code = codes[at];
    let near = codes.len().min(at + SHORT_RUN);
    let mut end = at + 1;
    while end < near && codes[end] == code {
        end += 1;
    }
    if end < near || near == codes.len() { end } else { gallop(codes, near, code) }
}

/// Calls `visit` with the bounds of all runs of equal codes from `at` to the end of the slice.
///
/// Where runs end is collected for a few codes at a time without a branch on the codes: short runs of all lengths, which
/// is what the second level of a dense catalog looks like, would be mispredicted at every child (11 ns instead of 3.5).
#[inline]
fn for_each_run(codes: &[u16], at: usize, mut visit: impl FnMut(usize, usize)) {
    if at == codes.len() {
        return;
    }
    let (mut run, mut from) = (at, at);
    let mut ends = [0; CHUNK];
    while from + 1 < codes.len() {
        let to = codes.len().min(from + CHUNK + 1);
        // Codes ascend: equal at both ends is equal throughout.
        if codes[from] == codes[to - 1] {
            let end = gallop(codes, to, codes[from]);
            if end < codes.len() {
                visit(run, end);
                run = end;
            }
            from = end;
            continue;
        }
        let mut found = 0;
        for (pair, end) in codes[from..to].windows(2).zip(from + 1..) {
            // Never more than one end per pair: the remainder only spares the bounds check.
            ends[found % CHUNK] = end;
            found += usize::from(pair[0] != pair[1]);
        }
        for &end in &ends[..found] {
            visit(run, end);
            run = end;
        }
        from = to - 1;
    }
    visit(run, codes.len());
}

/// The first place from `from` on that does not hold `code`, in steps that double.
#[inline(never)]
fn gallop(codes: &[u16], from: usize, code: u16) -> usize {
    let (mut from, mut step) = (from, SHORT_RUN);
    while from + step <= codes.len() && codes[from + step - 1] == code {
        from += step;
        step *= 2;
    }
    let end = codes.len().min(from + step);
    from + codes[from..end].partition_point(|&c| c == code)
}

/// Checks the arguments of [`TypeIndex::build`].
fn check(codebooks: &[usize], tuples: &[u16]) -> Result<()> {
    let levels = codebooks.len();
    if levels == 0 || levels > MAX_LEVELS {
        return Err(Error::invalid("levels", format!("{levels} levels, expected 1 to {MAX_LEVELS}")));
    }
    for (level, &codes) in codebooks.iter().enumerate() {
        if codes == 0 || codes > MAX_CODES {
            let message = format!("a codebook of {codes} codes, expected 1 to {MAX_CODES}");
            return Err(Error::invalid(format!("levels[{level}]"), message));
        }
    }
    if !tuples.len().is_multiple_of(levels) {
        let message = format!("{} codes do not divide into SIDs of {levels} levels", tuples.len());
        return Err(Error::invalid("tuples", message));
    }
    let rows = tuples.len() / levels;
    if rows >= u32::MAX as usize {
        return Err(Error::invalid("tuples", format!("{rows} items of one type, at most {}", u32::MAX - 1)));
    }
    for (row, codes) in tuples.chunks_exact(levels).enumerate() {
        for (level, (&code, &bound)) in codes.iter().zip(codebooks).enumerate() {
            if code as usize >= bound {
                let message = format!("code {code}, but level {level} has {bound} codes");
                return Err(Error::invalid(format!("tuples[{row}][{level}]"), message));
            }
        }
    }
    Ok(())
}

/// Whether a level gets entries of its own: where a node holds two SIDs or more on average, finding its children by comparing
/// neighbours costs more time than 10 bytes per node cost memory. Whatever the rule, it must not hold for a level if it
/// fails for one with fewer nodes, nor where every node is a SID.
fn is_explicit(nodes: usize, sids: usize) -> bool {
    2 * nodes <= sids
}

/// Levels from the codes of the distinct SIDs (`[levels][sids]`); `differs[sid]` is the first level at which a SID differs
/// from the one before it, so that a node begins at every SID with `differs <= level`.
fn build_levels(codebooks: &[usize], columns: Vec<Vec<u16>>, differs: &[u8]) -> Vec<Level> {
    let mut begin = [0usize; MAX_LEVELS];
    for &level in differs {
        begin[level as usize] += 1;
    }
    let nodes: Vec<usize> = begin
        .iter()
        .scan(0, |sum, &count| {
            *sum += count;
            Some(*sum)
        })
        .take(codebooks.len())
        .collect();
    let explicit = |level: usize| nodes.get(level).is_some_and(|&nodes| is_explicit(nodes, differs.len()));
    let mut levels = Vec::with_capacity(codebooks.len());
    for (level, codes) in columns.into_iter().enumerate() {
        let mut built = Level {
            codebook: codebooks[level],
            nodes: nodes[level],
            codes: Array::default(),
            first: Array::default(),
            start: Array::default(),
        };
        match explicit(level) {
            true => make_explicit(&mut built, &codes, level as u8, differs, explicit(level + 1)),
            false => built.codes = codes.into(),
        }
        levels.push(built);
    }
    levels
}

/// Which array tells where the children of an explicit level begin is decided by how the next level is stored.
fn make_explicit(built: &mut Level, column: &[u16], level: u8, differs: &[u8], next_is_explicit: bool) {
    let mut codes = Vec::with_capacity(built.nodes);
    let mut start = Vec::with_capacity(built.nodes + 1);
    let mut first = Vec::new();
    let mut children = 0;
    for (sid, &differs) in differs.iter().enumerate() {
        if differs <= level {
            codes.push(column[sid]);
            start.push(sid as u32);
            if next_is_explicit {
                first.push(children);
            }
        }
        children += u32::from(differs <= level + 1);
    }
    start.push(differs.len() as u32);
    if next_is_explicit {
        first.push(children);
    }
    (built.codes, built.first, built.start) = (codes.into(), first.into(), start.into());
}
