//! What is alive for a request within one type.
//!
//! A node of the trie is alive if any SID of its interval is. The question is asked once per child of a beam, so it must not
//! depend on the size of the catalog: a mask is a base (everything, a bitmap with counts, or a sorted list) less a sorted list of the
//! dead, and two counts answer for any interval. Masks of one catalog share their bases; adding to the dead copies a short list.
//!
//! Items that share a SID die one by one, and the SID with the last of them. So there are two sets, of SIDs and of items; where
//! no SID is shared they are the same and only the first exists.

use std::ops::Range;
use std::sync::Arc;

use super::{Bitmap, TypeIndex, filter};
use crate::ids::{Rank, SidIndex};

/// That many dead are always kept in a list.
const FEW_DEAD: usize = 4096;
/// One dead of so many is where a list (of 32 bits each) becomes a quarter of the bitmap that replaces it.
const SHARE_OF_DEAD: usize = 128;

/// Steps of [`sids_of`].
const HALVINGS: usize = 8;
const PROPORTIONS: usize = 2;

/// A set of numbers below a bound: a base less the dead.
#[derive(Clone, Debug)]
struct Set {
    len: u32,
    base: Base,
    /// Sorted, all in the base; empty if the base is a list.
    dead: Arc<[u32]>,
}

#[derive(Clone, Debug)]
enum Base {
    All,
    Bits(Arc<Bitmap>),
    /// Sorted.
    List(Arc<[u32]>),
}

/// What a mask consists of, for a device that answers its questions itself.
#[cfg(any(feature = "cuda", feature = "emulated"))]
#[derive(Clone, Copy, Debug)]
pub(crate) enum MaskBase<'a> {
    /// Every SID.
    All,
    /// The set bits.
    Bits(&'a Arc<Bitmap>),
    /// Sorted.
    List(&'a [u32]),
}

impl Set {
    fn new(len: usize, base: Base) -> Set {
        Set { len: len as u32, base, dead: Arc::new([]) }
    }

    fn is_all(&self) -> bool {
        matches!(self.base, Base::All) && self.dead.is_empty()
    }

    /// The part of the set that lies in an interval; the interval is not checked.
    #[inline]
    fn part_in(&self, range: Range<u32>) -> MaskPart<'_> {
        let base = match &self.base {
            Base::All => PartBase::All,
            Base::Bits(bits) => PartBase::Bits(bits),
            Base::List(list) => PartBase::List(Set::part(list, &range)),
        };
        MaskPart { base, dead: Set::part(&self.dead, &range), sids: range }
    }

    #[inline]
    fn contains(&self, at: u32) -> bool {
        let in_base = match &self.base {
            Base::All => at < self.len,
            Base::Bits(bits) => at < self.len && bits.get(at as usize),
            Base::List(list) => list.binary_search(&at).is_ok(),
        };
        in_base && (self.dead.is_empty() || self.dead.binary_search(&at).is_err())
    }

    #[inline]
    fn any(&self, range: &Range<u32>) -> bool {
        match &self.base {
            _ if range.len() == 1 => self.contains(range.start),
            // More than could be dead: no need to look which are.
            Base::All if range.len() > self.dead.len() => true,
            Base::Bits(bits) if self.dead.is_empty() => bits.any(range.start as usize..range.end as usize),
            _ => self.part_in(range.clone()).count() > 0,
        }
    }

    fn bytes(&self) -> usize {
        let base = match &self.base {
            Base::All => 0,
            Base::Bits(bits) => bits.bytes(),
            Base::List(list) => 4 * list.len(),
        };
        base + 4 * self.dead.len()
    }

    /// The set without `gone` (ascending).
    fn without(&self, gone: &[u32]) -> Set {
        if gone.is_empty() {
            return self.clone();
        }
        if let Base::List(list) = &self.base {
            return Set::new(self.len as usize, Base::List(difference(list, gone).into()));
        }
        let mut dead = Vec::with_capacity(self.dead.len() + gone.len());
        let mut rest: &[u32] = &self.dead;
        for &at in gone {
            let (before, from) = rest.split_at(ahead(rest, at));
            dead.extend_from_slice(before);
            rest = from;
            let in_base = match &self.base {
                Base::Bits(bits) => at < self.len && bits.get(at as usize),
                _ => at < self.len,
            };
            if in_base && rest.first() != Some(&at) {
                dead.push(at);
            }
        }
        dead.extend_from_slice(rest);
        let set = Set { len: self.len, base: self.base.clone(), dead: dead.into() };
        if set.dead.len() > FEW_DEAD.max(self.len as usize / SHARE_OF_DEAD) { set.folded() } else { set }
    }

    /// The same set with a bitmap for a base and none dead.
    fn folded(&self) -> Set {
        let words = self.len.div_ceil(64) as usize;
        let mut words = match &self.base {
            Base::Bits(bits) => bits.words().to_vec(),
            _ => vec![u64::MAX; words],
        };
        self.dead.iter().for_each(|&at| words[at as usize / 64] &= !(1 << (at % 64)));
        let bits = Bitmap::from_words(self.len as usize, words);
        Set::new(self.len as usize, Base::Bits(Arc::new(bits)))
    }

    /// The part of a sorted list that lies in `range`.
    #[inline]
    fn part<'a>(list: &'a [u32], range: &Range<u32>) -> &'a [u32] {
        if list.is_empty() {
            return list;
        }
        let from = &list[list.partition_point(|&at| at < range.start)..];
        // Most intervals are narrow and hold none: no second search for them.
        let none = from.first().is_none_or(|&at| at >= range.end);
        if none { &[] } else { &from[..from.partition_point(|&at| at < range.end)] }
    }

    /// What of `kept` (ascending) is in the set.
    fn within(&self, kept: &[u32]) -> Set {
        let kept: Vec<u32> = match &self.base {
            Base::All => kept[..ahead(kept, self.len)].to_vec(),
            Base::Bits(bits) => {
                let known = kept[..ahead(kept, self.len)].iter().copied();
                known.filter(|&at| bits.get(at as usize)).collect()
            }
            Base::List(list) => intersection(list, kept),
        };
        Set::new(self.len as usize, Base::List(difference(&kept, &self.dead).into()))
    }
}

/// How many numbers of an ascending list are below `bound`, found in steps that double: cheap where there are few, and in a long list.
#[inline]
fn ahead(list: &[u32], bound: u32) -> usize {
    let mut step = 1;
    while list.get(step - 1).is_some_and(|&at| at < bound) {
        step *= 2;
    }
    let (from, to) = (step / 2, list.len().min(step - 1));
    from + list[from..to].partition_point(|&at| at < bound)
}

/// What of an ascending list is not in another.
fn difference(list: &[u32], gone: &[u32]) -> Vec<u32> {
    let mut kept = Vec::with_capacity(list.len());
    let (mut rest, mut gone) = (list, gone);
    while let (Some(&first), false) = (rest.first(), gone.is_empty()) {
        gone = &gone[ahead(gone, first)..];
        let Some(&next) = gone.first() else { break };
        let (before, from) = rest.split_at(ahead(rest, next));
        kept.extend_from_slice(before);
        rest = &from[usize::from(from.first() == Some(&next))..];
    }
    kept.extend_from_slice(rest);
    kept
}

/// What two ascending lists share.
fn intersection(a: &[u32], b: &[u32]) -> Vec<u32> {
    let (mut few, mut many) = if a.len() < b.len() { (a, b) } else { (b, a) };
    let mut shared = Vec::new();
    while let Some((&first, rest)) = few.split_first() {
        many = &many[ahead(many, first)..];
        if many.first() == Some(&first) {
            shared.push(first);
        }
        few = rest;
    }
    shared
}

/// The numbers in order, each once.
fn sorted(numbers: impl Iterator<Item = u32>) -> Vec<u32> {
    let mut numbers: Vec<u32> = numbers.collect();
    if !numbers.is_sorted_by(|a, b| a < b) {
        numbers.sort_unstable();
        numbers.dedup();
    }
    numbers
}

/// The SIDs of ascending ranks of an index whose items share SIDs, each SID once.
///
/// All ranks are sought together, step by step, so that none waits for another's memory: first by halving, where a step meets few
/// different places, then by proportion between the ends of what is left, which lands close to the aim.
fn sids_of(index: &TypeIndex, ranks: &[u32]) -> Vec<u32> {
    /// What is left of a search: the SID at `low` begins at or before the rank, the one at `high` after it.
    #[derive(Clone, Copy)]
    struct Span {
        low: usize,
        high: usize,
    }
    let first_item = &index.first_item()[..];
    let mut spans = vec![Span { low: 0, high: index.sids() }; ranks.len()];
    let mut narrow = |by: fn(&[u32], Span, u32) -> usize| {
        for (span, &rank) in spans.iter_mut().zip(ranks) {
            if span.high - span.low > 1 {
                let middle = by(first_item, *span, rank).clamp(span.low + 1, span.high - 1);
                let side = if first_item[middle] <= rank { &mut span.low } else { &mut span.high };
                *side = middle;
            }
        }
    };
    for _ in 0..HALVINGS {
        narrow(|_, span, _| span.low + (span.high - span.low) / 2);
    }
    for _ in 0..PROPORTIONS {
        narrow(|first_item, Span { low, high }, rank| {
            let (from, to) = (u64::from(first_item[low]), u64::from(first_item[high]));
            low + (u64::from(rank).saturating_sub(from) * (high - low) as u64
                / to.saturating_sub(from).max(1)) as usize
        });
    }
    let mut sids: Vec<u32> = Vec::with_capacity(ranks.len());
    for (&rank, Span { low, high }) in ranks.iter().zip(spans) {
        // Near one of the ends: in steps that double from the lower one, or from the upper one down.
        let mut step = 1;
        let (mut low, mut high) = (low, high);
        while high - low > 2 * step {
            if first_item[low + step] > rank {
                high = low + step;
                break;
            }
            if first_item[high - step] <= rank {
                low = high - step;
                break;
            }
            step *= 2;
        }
        sids.push((low + first_item[low..high].partition_point(|&first| first <= rank)) as u32 - 1);
    }
    sids.dedup();
    sids
}

/// Liveness of one type's items for one request; answers for any node in `O(1)`, or `O(log n)` in the length of its lists.
///
/// A mask belongs to the index it was made from. Cloning shares everything.
#[derive(Clone, Debug)]
pub struct Mask {
    sids: Set,
    /// Only if items share SIDs.
    items: Option<Set>,
}

impl Mask {
    /// Everything is alive.
    pub fn all(index: &TypeIndex) -> Mask {
        let items = index.has_collisions().then(|| Set::new(index.items(), Base::All));
        Mask { sids: Set::new(index.sids(), Base::All), items }
    }

    /// Only these items (any order, duplicates allowed) are alive; none if the list is empty.
    pub fn allow(index: &TypeIndex, ranks: &[Rank]) -> Mask {
        Mask::all(index).restricted_to(index, ranks)
    }

    /// The items of a bitmap over ranks are alive.
    ///
    /// # Panics
    /// If the bitmap does not have one bit per item.
    pub fn from_bitmap(index: &TypeIndex, alive: Bitmap) -> Mask {
        assert_eq!(alive.len(), index.items(), "bits of a mask over {} items", index.items());
        if !index.has_collisions() {
            return Mask { sids: Set::new(index.sids(), Base::Bits(Arc::new(alive))), items: None };
        }
        let sids = Bitmap::from_words(index.sids(), filter::alive_sids(index.first_item(), &alive));
        Mask {
            sids: Set::new(index.sids(), Base::Bits(Arc::new(sids))),
            items: Some(Set::new(index.items(), Base::Bits(Arc::new(alive)))),
        }
    }

    /// This mask with nothing but these items (any order, duplicates allowed; ranks that do not exist are ignored).
    pub fn restricted_to(&self, index: &TypeIndex, ranks: &[Rank]) -> Mask {
        let kept = sorted(ranks.iter().map(|rank| rank.0));
        let Some(items) = &self.items else {
            return Mask { sids: self.sids.within(&kept), items: None };
        };
        // An item may be left alive here below a SID that was excluded as a whole: the SID decides.
        let items = items.within(&kept);
        let Base::List(alive) = &items.base else { unreachable!("`within` makes lists") };
        let sids = self.sids.within(&sids_of(index, alive));
        Mask { sids, items: Some(items) }
    }

    /// This mask without these items (any order, duplicates allowed; ranks that do not exist are ignored).
    ///
    /// A list that ascends is merged as it is. When a hundredth or so of everything is dead, the dead become a bitmap, of this mask's own.
    pub fn excluding(&self, index: &TypeIndex, ranks: &[Rank]) -> Mask {
        let bound = index.items() as u32;
        let gone = sorted(ranks.iter().map(|rank| rank.0).filter(|&rank| rank < bound));
        let Some(items) = &self.items else {
            return Mask { sids: self.sids.without(&gone), items: None };
        };
        let items = items.without(&gone);
        let mut touched = sids_of(index, &gone);
        // Most SIDs have one item, and it is gone.
        touched.retain(|&sid| {
            let ranks = index.ranks(SidIndex(sid));
            ranks.len() == 1 || !items.any(&ranks)
        });
        Mask { sids: self.sids.without(&touched), items: Some(items) }
    }

    /// This mask without these SIDs and all their items: the no-repeat rule.
    pub fn excluding_sids(&self, index: &TypeIndex, sids: &[SidIndex]) -> Mask {
        let bound = index.sids() as u32;
        let gone = sorted(sids.iter().map(|sid| sid.0).filter(|&sid| sid < bound));
        Mask { sids: self.sids.without(&gone), items: self.items.clone() }
    }

    /// The base of the set of SIDs, and the sorted SIDs of the base that are dead.
    #[cfg(any(feature = "cuda", feature = "emulated"))]
    pub(crate) fn parts(&self) -> (MaskBase<'_>, &[u32]) {
        let base = match &self.sids.base {
            Base::All => MaskBase::All,
            Base::Bits(bits) => MaskBase::Bits(bits),
            Base::List(list) => MaskBase::List(list),
        };
        (base, &self.sids.dead)
    }

    /// Whether any SID of the interval is alive.
    #[inline]
    pub fn alive(&self, sids: Range<u32>) -> bool {
        self.sids.any(&sids)
    }

    /// How many SIDs of the interval are alive.
    #[inline]
    pub fn count(&self, sids: Range<u32>) -> usize {
        self.part(sids).count()
    }

    /// The mask within an interval of SIDs, its lists cut to it: for questions about the children of a node.
    #[inline]
    pub fn part(&self, sids: Range<u32>) -> MaskPart<'_> {
        self.sids.part_in(sids)
    }

    /// Reads the memory near the bit of a SID, so that it is at hand when it is asked for; any number will do.
    #[inline]
    pub(crate) fn glance(&self, sid: u32) -> u64 {
        match &self.sids.base {
            Base::Bits(bits) => bits.words().get(sid as usize / 64).copied().unwrap_or(0),
            Base::All | Base::List(_) => 0,
        }
    }

    /// Whether an item is alive.
    pub fn item_alive(&self, index: &TypeIndex, rank: Rank) -> bool {
        match &self.items {
            None => self.sids.contains(rank.0),
            Some(items) => items.contains(rank.0) && self.sids.contains(index.sid_of(rank).0),
        }
    }

    /// The most popular alive item of a SID.
    pub fn first_alive(&self, index: &TypeIndex, sid: SidIndex) -> Option<Rank> {
        self.alive_ranks(index, sid).next()
    }

    /// The alive items of a SID, most popular first.
    pub fn alive_ranks<'a>(
        &'a self,
        index: &'a TypeIndex,
        sid: SidIndex,
    ) -> impl Iterator<Item = Rank> + use<'a> {
        let ranks = self.sids.contains(sid.0).then(|| index.by_popularity(sid)).into_iter().flatten();
        ranks.filter(|&rank| self.items.as_ref().is_none_or(|items| items.contains(rank.0)))
    }

    /// Bytes of bitmaps and lists, those shared with other masks included.
    pub fn bytes(&self) -> usize {
        self.sids.bytes() + self.items.as_ref().map_or(0, Set::bytes)
    }

    /// Whether nothing is masked at all, so that a search need not ask.
    #[inline]
    pub fn is_all(&self) -> bool {
        self.sids.is_all() && self.items.as_ref().is_none_or(Set::is_all)
    }
}

/// Liveness within an interval of SIDs; see [`Mask::part`].
#[derive(Clone, Debug)]
pub struct MaskPart<'a> {
    sids: Range<u32>,
    base: PartBase<'a>,
    /// Those of the interval.
    dead: &'a [u32],
}

#[derive(Clone, Debug)]
enum PartBase<'a> {
    All,
    Bits(&'a Bitmap),
    /// Those of the interval.
    List(&'a [u32]),
}

impl MaskPart<'_> {
    /// Whether everything in the interval is alive for sure, so that there is no need to ask.
    #[inline]
    pub fn is_all(&self) -> bool {
        matches!(self.base, PartBase::All) && self.dead.is_empty()
    }

    /// How many SIDs are alive.
    #[inline]
    pub fn count(&self) -> usize {
        let in_base = match &self.base {
            PartBase::All => self.sids.len(),
            PartBase::Bits(bits) => bits.count(self.sids.start as usize..self.sids.end as usize),
            PartBase::List(list) => list.len(),
        };
        in_base - self.dead.len()
    }

    /// Whether any SID of an interval within this one is alive.
    #[inline]
    pub fn alive(&self, sids: &Range<u32>) -> bool {
        let range = sids.start as usize..sids.end as usize;
        let from = |list: &[u32]| list.partition_point(|&at| at < sids.start);
        match &self.base {
            // More than could be dead: no need to look which are.
            PartBase::All if range.len() > self.dead.len() => true,
            PartBase::All if range.is_empty() => false,
            // All are dead if so many dead later is the last.
            PartBase::All => self.dead.get(from(self.dead) + range.len() - 1) != Some(&(sids.end - 1)),
            PartBase::Bits(bits) if self.dead.is_empty() => bits.any(range),
            PartBase::Bits(bits) => {
                bits.any(range.clone()) && bits.count(range) > Set::part(self.dead, sids).len()
            }
            PartBase::List(list) => list.get(from(list)).is_some_and(|&at| at < sids.end),
        }
    }

    /// Bit `i` is clear where SID `first + i` is surely dead: sixteen at once, of which those beyond the interval say nothing.
    #[inline]
    pub fn maybe_alive(&self, first: u32) -> u32 {
        match &self.base {
            PartBase::Bits(bits) => bits.sixteen(first as usize),
            PartBase::All | PartBase::List(_) => 0xffff,
        }
    }

    /// Calls `visit` for every alive SID, in ascending order, until it fails.
    ///
    /// # Errors
    /// The first of `visit`.
    #[inline(always)]
    pub fn try_for_each<E>(&self, mut visit: impl FnMut(u32) -> Result<(), E>) -> Result<(), E> {
        let mut dead = self.dead;
        match &self.base {
            PartBase::All => self.sids.clone().try_for_each(|sid| unless_dead(&mut dead, sid, &mut visit)),
            PartBase::List(list) => list.iter().try_for_each(|&sid| unless_dead(&mut dead, sid, &mut visit)),
            PartBase::Bits(bits) => {
                let range = self.sids.start as usize..self.sids.end as usize;
                bits.try_for_each_one(
                    range,
                    #[inline(always)]
                    |at| unless_dead(&mut dead, at as u32, &mut visit),
                )
            }
        }
    }
}

/// Calls `visit` unless the SID is one of the dead (ascending), of which those before it are dropped.
#[inline(always)]
fn unless_dead<E>(
    dead: &mut &[u32],
    sid: u32,
    visit: &mut impl FnMut(u32) -> Result<(), E>,
) -> Result<(), E> {
    while let [first, rest @ ..] = *dead
        && *first < sid
    {
        *dead = rest;
    }
    if dead.first() == Some(&sid) { Ok(()) } else { visit(sid) }
}
