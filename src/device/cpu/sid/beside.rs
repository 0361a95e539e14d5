//! The part of a node that a delta has beside the snapshot's.
//!
//! A node of the search is a pair: what the same codes lead to in the snapshot's trie and in the delta's, either of which may be
//! missing. Its children are the union by code. A code that both have is one candidate, alive if it is alive in either; what
//! identifies it is the snapshot's SID if the snapshot has the code, alive or not.
//!
//! A delta is small and most nodes have no part in it, so they are scanned as if there were none. A node that has one is cut at the
//! delta's codes: the snapshot's children in between are scanned as ever, those at the cuts one by one. That keeps the order
//! of arrival, which is the order of codes.

use std::ops::Range;

use super::pool::{Candidate, Pool};
use super::scan::{self, Nan, Parent, add, passes};
use crate::catalog::{Child, Entries, Mask, Node, TypeIndex};
use crate::device::cpu::logsum::log_probability;

/// The entry of a child that only the delta has; an index never has that many.
pub(super) const BESIDE: u32 = u32::MAX - 1;

/// The delta's node of a pair; it has children.
#[derive(Clone, Copy)]
pub(super) struct Beside<'a> {
    pub index: &'a TypeIndex,
    pub node: Node,
    /// `None`: everything is alive.
    pub mask: Option<&'a Mask>,
    /// Distinct SIDs of the snapshot: those that only the delta has are numbered behind them.
    pub offset: u32,
}

/// A child of a pair.
pub(super) struct Union {
    pub code: u16,
    /// Of the snapshot's level, or [`BESIDE`].
    pub entry: u32,
    /// The first SID below that identifies it.
    pub first_sid: u32,
    pub alive: bool,
}

impl<'a> Beside<'a> {
    /// The delta's node below `code`; empty if it has none.
    pub fn child(&self, level: usize, code: u16) -> Node {
        self.index.child(level, self.node, code).map_or(Node::default(), |child| child.node)
    }

    fn alive(&self, sids: &Range<u32>) -> bool {
        self.mask.is_none_or(|mask| mask.alive(sids.clone()))
    }

    /// A child that the delta has, and the snapshot's entry and SIDs of the same code if that has it too.
    fn union(&self, parent: &Parent<'_>, own: &Child, base: Option<(u32, Range<u32>)>) -> Union {
        let in_delta = self.alive(&own.sids);
        match base {
            Some((entry, sids)) => Union {
                code: own.code,
                entry,
                first_sid: sids.start,
                alive: in_delta || parent.rules.alive(&sids),
            },
            None => Union {
                code: own.code,
                entry: BESIDE,
                first_sid: self.offset + own.sids.start,
                alive: in_delta,
            },
        }
    }

    /// Offers every child of the pair to the pool, as [`scan::scan`] does.
    pub fn scan(&self, parent: &Parent<'a>, pool: &mut Pool) -> Result<(), Nan> {
        let (Entries::Explicit { codes, .. } | Entries::Column { codes }) =
            parent.index.entries(parent.level);
        let end = parent.node.end as usize;
        let codes = &codes[..end];
        let mut at = parent.node.first as usize;
        for own in self.index.children(parent.level, self.node) {
            let to = lower_bound(codes, at, own.code);
            scan::segment(parent, at..to, pool)?;
            at = to;
            let mut base = None;
            if codes.get(at) == Some(&own.code) {
                base = Some((at as u32, scan::sids(parent, at as u32)));
                at = scan::entry_end(parent, at as u32) as usize;
            }
            self.consider(parent, &own, base, pool)?;
        }
        scan::segment(parent, at..end, pool)
    }

    /// Asks the rules and offers a child that the delta has.
    fn consider(
        &self,
        parent: &Parent<'_>,
        own: &Child,
        base: Option<(u32, Range<u32>)>,
        pool: &mut Pool,
    ) -> Result<(), Nan> {
        let logit = parent.logits[own.code as usize];
        if !passes(parent.score + (logit - parent.norm), pool.threshold) {
            return Ok(());
        }
        let child = self.union(parent, own, base);
        if !child.alive || parent.rules.taken.binary_search(&child.first_sid).is_ok() {
            return Ok(());
        }
        if logit.is_nan() {
            return Err(Nan);
        }
        let score = add(parent.score, log_probability(logit, parent.norm));
        let class = parent.class.of(child.code);
        let candidate = Candidate::new(parent.place, child.code, child.entry, class);
        pool.offer(parent.rules.charge(score, child.code), candidate);
        Ok(())
    }

    /// Calls `visit` for every child of the pair, by ascending code.
    pub fn for_each_child(&self, parent: &Parent<'_>, mut visit: impl FnMut(Union)) {
        let mut rest = self.index.children(parent.level, self.node).peekable();
        let mut visit_base = |base: Child, entry: u32| {
            while let Some(own) = rest.next_if(|own| own.code < base.code) {
                visit(self.union(parent, &own, None));
            }
            let sids = base.sids;
            visit(match rest.next_if(|own| own.code == base.code) {
                Some(own) => self.union(parent, &own, Some((entry, sids))),
                None => {
                    Union { code: base.code, entry, first_sid: sids.start, alive: parent.rules.alive(&sids) }
                }
            });
        };
        scan::for_each_child(parent, &mut visit_base);
        for own in rest {
            visit(self.union(parent, &own, None));
        }
    }
}

/// The first place from `from` on whose code is not below `code`, in steps that double: codes ascend from there.
fn lower_bound(codes: &[u16], from: usize, code: u16) -> usize {
    let (mut from, mut step) = (from, 1);
    while from + step <= codes.len() && codes[from + step - 1] < code {
        from += step;
        step *= 2;
    }
    let end = codes.len().min(from + step);
    from + codes[from..end].partition_point(|&c| c < code)
}

#[cfg(test)]
mod tests {
    use super::lower_bound;

    #[test]
    fn a_lower_bound_is_where_a_search_through_all_finds_it() {
        for len in [0, 1, 2, 15, 16, 17, 63, 64, 65, 200] {
            for step in [1, 3, 70] {
                let codes: Vec<u16> = (0..len).map(|i| (i / step * 2) as u16).collect();
                for from in 0..=len {
                    for code in 0..=2 * (len / step) as u16 + 3 {
                        let expected = from + codes[from..].iter().filter(|&&c| c < code).count();
                        assert_eq!(lower_bound(&codes, from, code), expected, "{codes:?} {from} {code}");
                    }
                }
            }
        }
    }
}
