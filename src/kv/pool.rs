//! The pool of cache blocks: reference counts, the fence, eviction.
//!
//! One lock around plain data. The engine's thread does nearly all the work here; the lock exists so that a handle
//! can be dropped anywhere, and is never held while anything else is called.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::BLOCK_TOKENS;
use super::lists::{List, Lists};
use super::prefix::{Link, PrefixCache};
use crate::ids::{BlockId, TokenId};

/// How many blocks are in which state: `total = free + used + cached + pending`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Blocks of the cache.
    pub total: usize,
    /// Blocks that nobody holds and that hold nothing of use.
    pub free: usize,
    /// Blocks that somebody holds.
    pub used: usize,
    /// Blocks that nobody holds, kept for the prefixes in them and evicted on demand.
    pub cached: usize,
    /// Blocks that nobody holds but that a step in flight may still read.
    pub pending: usize,
}

impl PoolStats {
    /// The largest number of blocks that [`BlockPool::allocate`] would grant now.
    pub fn available(&self) -> usize {
        self.free + self.cached
    }
}

/// The blocks of one device's key/value cache. Cloning gives another handle to the same pool.
#[derive(Clone)]
pub struct BlockPool {
    state: Arc<Mutex<State>>,
}

impl BlockPool {
    /// A pool of `blocks` free blocks, [`BLOCK_TOKENS`] tokens each.
    ///
    /// # Panics
    /// If the cache would have 2³² slots or more, since slots are 32-bit numbers.
    pub fn new(blocks: usize) -> BlockPool {
        let most = u32::MAX as usize / BLOCK_TOKENS;
        assert!(
            blocks <= most,
            "key/value cache: {blocks} blocks asked for, at most {most} can be addressed"
        );
        BlockPool { state: Arc::new(Mutex::new(State::new(blocks))) }
    }

    /// Hands out `n` blocks of unspecified contents, all or none; evicts cached blocks, least recently used first, when
    /// too few are free.
    ///
    /// `None`: fewer than `n` are free or cached; nothing has changed.
    pub fn allocate(&self, n: usize) -> Option<Vec<Block>> {
        let mut state = self.lock();
        if state.stats().available() < n {
            return None;
        }
        Some((0..n).map(|_| self.block(state.allocate())).collect())
    }

    /// Numbers a step that is about to start, from 1.
    ///
    /// Whoever made its plan holds the plan's blocks until this call has returned; from then on they may be dropped, and
    /// none of them is handed out again before [`BlockPool::end_step`].
    pub fn begin_step(&self) -> u64 {
        let mut state = self.lock();
        state.begun += 1;
        state.begun
    }

    /// Says that a step, and with it every step before it, will not touch the cache any more.
    ///
    /// # Panics
    /// If `step` has not begun.
    pub fn end_step(&self, step: u64) {
        self.lock().end_step(step);
    }

    /// Finds the longest registered prefix of `tokens`: its blocks in order, now held by the caller too.
    ///
    /// Covers at most all tokens but the last, whose logits the caller is after. Blocks registered under another `salt` are
    /// never found.
    pub fn lookup(&self, salt: u64, tokens: &[TokenId]) -> Vec<Block> {
        let mut state = self.lock();
        let mut found = Vec::new();
        let mut parent = None;
        for chunk in tokens[..tokens.len().saturating_sub(1)].chunks_exact(BLOCK_TOKENS) {
            let Some(link) = state.prefix.get(parent, salt, chunk) else { break };
            state.acquire(link.block);
            found.push(self.block(link.block));
            parent = Some(link);
        }
        found
    }

    /// Registers the full blocks of a sequence: `blocks[i]` holds the keys of `tokens[i * BLOCK_TOKENS ..]`.
    ///
    /// Tokens short of a full block, and blocks beyond the tokens, are left out. Where another block is registered for the same
    /// prefix, it stays. The keys must have been written by a step that the device runs before any step that
    /// reads them, must depend on `salt` and `tokens` alone, and must not be overwritten as long as a handle is held.
    ///
    /// # Panics
    /// If a block belongs to another pool.
    pub fn register(&self, salt: u64, tokens: &[TokenId], blocks: &[Block]) {
        self.register_more(salt, tokens, blocks, Registered::default());
    }

    /// As [`BlockPool::register`] for a sequence that has grown: `before` is what the call for its beginning returned, and
    /// the blocks that it covered are not looked at again.
    ///
    /// # Panics
    /// If a block belongs to another pool.
    pub fn register_more(
        &self,
        salt: u64,
        tokens: &[TokenId],
        blocks: &[Block],
        before: Registered,
    ) -> Registered {
        let full = blocks.len().min(tokens.len() / BLOCK_TOKENS);
        let Some(new) = blocks.get(before.blocks..full) else { return before };
        assert!(
            new.iter().all(|block| Arc::ptr_eq(&block.pool.state, &self.state)),
            "a block is registered with the pool that it came from"
        );
        let mut state = self.lock();
        let mut last = before.last;
        let chunks = tokens[before.blocks * BLOCK_TOKENS..].chunks_exact(BLOCK_TOKENS);
        for (chunk, block) in chunks.zip(new) {
            last = Some(state.prefix.register(last, salt, chunk, block.id));
        }
        Registered { blocks: full, last }
    }

    /// How many blocks are in which state.
    pub fn stats(&self) -> PoolStats {
        self.lock().stats()
    }

    /// A handle for a reference that has been counted.
    fn block(&self, id: BlockId) -> Block {
        Block { id, pool: self.clone() }
    }

    /// Handles are dropped during unwinding too, and every assertion here comes before the first write: a lock poisoned by one
    /// of them guards consistent data.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for BlockPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BlockPool").field(&self.stats()).finish()
    }
}

/// How much of a sequence has been registered: see [`BlockPool::register_more`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Registered {
    blocks: usize,
    last: Option<Link>,
}

/// One reference to a block: cloning adds one, dropping removes one, and with the last the block goes back to its pool.
pub struct Block {
    id: BlockId,
    pool: BlockPool,
}

impl Block {
    /// The block.
    pub fn id(&self) -> BlockId {
        self.id
    }

    /// Handles to this block, this one included.
    pub fn references(&self) -> usize {
        self.pool.lock().refs[self.id.index()] as usize
    }

    /// The cache slot of a place of the block.
    pub(super) fn slot(&self, place: usize) -> u32 {
        debug_assert!(place < BLOCK_TOKENS, "place {place} of a block of {BLOCK_TOKENS}");
        self.id.0 * BLOCK_TOKENS as u32 + place as u32
    }
}

impl Clone for Block {
    fn clone(&self) -> Block {
        self.pool.lock().acquire(self.id);
        self.pool.block(self.id)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.pool.lock().release(self.id);
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Block").field(&self.id.0).finish()
    }
}

struct State {
    /// The blocks that nobody holds. Pending ones in the order of their stamps; cached ones by age, a block always
    /// before the one that precedes it in a sequence.
    lists: Lists,
    /// `[blocks]`: handles; 0 exactly for the blocks in a list.
    refs: Vec<u32>,
    /// `[blocks]`: the newest step begun when the last handle went.
    stamps: Vec<u64>,
    prefix: PrefixCache,
    begun: u64,
    ended: u64,
}

impl State {
    fn new(blocks: usize) -> State {
        State {
            lists: Lists::new(blocks),
            refs: vec![0; blocks],
            stamps: vec![0; blocks],
            prefix: PrefixCache::new(blocks),
            begun: 0,
            ended: 0,
        }
    }

    fn stats(&self) -> PoolStats {
        let [free, pending, cached] =
            [List::Free, List::Pending, List::Cached].map(|list| self.lists.len(list));
        let total = self.lists.blocks();
        PoolStats { total, free, used: total - free - cached - pending, cached, pending }
    }

    /// Takes a block that is free or, failing that, evicts the oldest cached one.
    fn allocate(&mut self) -> BlockId {
        let oldest = || self.lists.front(List::Cached);
        let block = self.lists.front(List::Free).or_else(oldest).expect("the caller has counted");
        self.prefix.forget(block);
        self.acquire(block);
        block
    }

    fn acquire(&mut self, block: BlockId) {
        if self.refs[block.index()] == 0 {
            self.lists.remove(block);
        }
        self.refs[block.index()] += 1;
    }

    fn release(&mut self, block: BlockId) {
        let refs = &mut self.refs[block.index()];
        *refs -= 1;
        if *refs > 0 {
            return;
        }
        if self.begun == self.ended {
            self.settle(block);
        } else {
            self.stamps[block.index()] = self.begun;
            self.lists.push_back(List::Pending, block);
        }
    }

    fn end_step(&mut self, step: u64) {
        assert!(step <= self.begun, "step {step} ends, but only {} have begun", self.begun);
        self.ended = self.ended.max(step);
        while let Some(block) = self.lists.front(List::Pending) {
            if self.stamps[block.index()] > self.ended {
                break;
            }
            self.lists.remove(block);
            self.settle(block);
        }
    }

    /// Puts a block that no step can read any more where it can be allocated from.
    fn settle(&mut self, block: BlockId) {
        if !self.prefix.contains(block) {
            // Last out, first in: its memory is the likeliest to be warm.
            self.lists.push_front(List::Free, block);
            return;
        }
        // Handles may be dropped in any order, but a block without its parent can never be found.
        match self.prefix.parent(block).filter(|&p| self.lists.list_of(p) == Some(List::Cached)) {
            Some(parent) => self.lists.insert_before(List::Cached, block, parent),
            None => self.lists.push_back(List::Cached, block),
        }
    }
}
