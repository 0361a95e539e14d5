//! The lists of unreferenced blocks: free, pending, cached.
//!
//! A block is in one list or, while somebody holds it, in none; so the links live in one array beside the blocks, every
//! move costs the same few writes, and nothing is allocated after the start. The lists are rings through one extra
//! node each, which is why no operation has a special case for an end.

use crate::ids::BlockId;

/// Why a block is not held by anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum List {
    /// Its contents are of no use.
    Free,
    /// A step in flight may still read it.
    Pending,
    /// Registered in the prefix cache.
    Cached,
}

const LISTS: [List; 3] = [List::Free, List::Pending, List::Cached];

#[derive(Clone, Copy)]
struct Node {
    prev: u32,
    next: u32,
    list: Option<List>,
}

/// The three lists over the blocks `0..blocks`.
pub(super) struct Lists {
    /// The blocks, then the ring heads.
    nodes: Vec<Node>,
    blocks: usize,
    len: [usize; LISTS.len()],
}

impl Lists {
    /// All blocks free, in ascending order.
    pub(super) fn new(blocks: usize) -> Lists {
        let rings = (blocks..blocks + LISTS.len()).map(|ring| ring as u32);
        let nodes = (0..blocks as u32).chain(rings).map(|i| Node { prev: i, next: i, list: None }).collect();
        let mut lists = Lists { nodes, blocks, len: [0; LISTS.len()] };
        for block in 0..blocks as u32 {
            lists.push_back(List::Free, BlockId(block));
        }
        lists
    }

    /// The number of blocks, listed or not.
    pub(super) fn blocks(&self) -> usize {
        self.blocks
    }

    /// The length of a list.
    pub(super) fn len(&self, list: List) -> usize {
        self.len[list as usize]
    }

    /// The list that a block is in.
    pub(super) fn list_of(&self, block: BlockId) -> Option<List> {
        self.nodes[block.index()].list
    }

    /// The first block of a list.
    pub(super) fn front(&self, list: List) -> Option<BlockId> {
        let first = self.nodes[self.ring(list) as usize].next;
        (first != self.ring(list)).then_some(BlockId(first))
    }

    /// Appends an unlisted block.
    pub(super) fn push_back(&mut self, list: List, block: BlockId) {
        self.link(list, block, self.ring(list));
    }

    /// Puts an unlisted block first.
    pub(super) fn push_front(&mut self, list: List, block: BlockId) {
        self.link(list, block, self.nodes[self.ring(list) as usize].next);
    }

    /// Puts an unlisted block before `other`, which is in `list`.
    pub(super) fn insert_before(&mut self, list: List, block: BlockId, other: BlockId) {
        debug_assert_eq!(self.list_of(other), Some(list), "block {other}");
        self.link(list, block, other.0);
    }

    /// Takes a block out of its list.
    pub(super) fn remove(&mut self, block: BlockId) {
        let Node { prev, next, list } = self.nodes[block.index()];
        let list = list.expect("the block is in a list");
        self.nodes[prev as usize].next = next;
        self.nodes[next as usize].prev = prev;
        self.nodes[block.index()].list = None;
        self.len[list as usize] -= 1;
    }

    fn ring(&self, list: List) -> u32 {
        self.blocks as u32 + list as u32
    }

    fn link(&mut self, list: List, block: BlockId, next: u32) {
        debug_assert_eq!(self.list_of(block), None, "block {block}");
        let prev = self.nodes[next as usize].prev;
        self.nodes[block.index()] = Node { prev, next, list: Some(list) };
        self.nodes[prev as usize].next = block.0;
        self.nodes[next as usize].prev = block.0;
        self.len[list as usize] += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(lists: &Lists, list: List) -> Vec<u32> {
        let (mut at, mut found) = (lists.nodes[lists.ring(list) as usize].next, Vec::new());
        while at != lists.ring(list) {
            assert_eq!(lists.nodes[lists.nodes[at as usize].next as usize].prev, at);
            found.push(at);
            at = lists.nodes[at as usize].next;
        }
        assert_eq!(found.len(), lists.len(list));
        assert_eq!(lists.front(list), found.first().map(|&b| BlockId(b)));
        found
    }

    #[test]
    fn order_is_kept_at_both_ends_and_between() {
        let mut lists = Lists::new(5);
        assert_eq!(walk(&lists, List::Free), [0, 1, 2, 3, 4]);
        for block in [4, 0, 2] {
            lists.remove(BlockId(block));
            assert_eq!(lists.list_of(BlockId(block)), None);
        }
        assert_eq!(walk(&lists, List::Free), [1, 3]);
        lists.push_back(List::Cached, BlockId(4));
        lists.insert_before(List::Cached, BlockId(0), BlockId(4));
        lists.push_front(List::Free, BlockId(2));
        assert_eq!(walk(&lists, List::Cached), [0, 4]);
        assert_eq!(walk(&lists, List::Free), [2, 1, 3]);
        assert!(walk(&lists, List::Pending).is_empty());
    }

    #[test]
    fn no_blocks_at_all() {
        let lists = Lists::new(0);
        for list in LISTS {
            assert_eq!(lists.front(list), None);
        }
    }
}
