//! The paged key/value cache's bookkeeping: which block holds what, and who still needs it. No tensors.
//!
//! The device's cache is an array of blocks of [`BLOCK_TOKENS`] tokens. A [`BlockPool`] says who has which; a [`Block`]
//! is one reference to one of them, returned when it is dropped, so that a cancelled request cannot leak. A [`Table`]
//! is the blocks of a sequence in order, [`BeamSlots`] the private places of a search.
//!
//! # The life of a block
//!
//! ```text
//!            allocate                last drop                the fence
//!   free ───────────────▶ used ─────────────────▶ pending ───────────────▶ free, or cached if registered
//!    cached (the least recently used first) ──▶ used               lookup: pending or cached ──▶ used
//! ```
//!
//! Every block is in exactly one of the four states, so `total = free + used + cached + pending` at all times
//! ([`PoolStats`]). With no step in flight, pending is skipped.
//!
//! # The fence
//!
//! The host runs ahead of the device: a block may lose its last handle while a step that reads or writes it is still running.
//! Steps are numbered ([`BlockPool::begin_step`], [`BlockPool::end_step`]) and end in the order in which they began. A
//! block whose last handle goes is stamped with the newest step begun, and waits in *pending* until that step has ended.
//!
//! That is enough: the handles of a plan are held when its step begins, so a step that may touch the block began before
//! its last handle went, so its number is at most the stamp; and when the stamp's step has ended, so has every one before it.
//!
//! # The prefix cache
//!
//! A full block is registered under what determines its contents: the salt, its tokens and the registered block
//! before it. Blocks are found by a seeded hash and verified in full, so that no collision, found or forced, yields another
//! prompt's keys. The block before is named by the serial number of its registration, which is never used again; when it
//! is evicted, what followed it can no longer be found and ages out.
//!
//! Eviction takes the block that has been unreferenced for longest, and the end of a prefix before its beginning, because a
//! block is of no use without those before it.
//!
//! ```
//! use sidereal::ids::TokenId;
//! use sidereal::kv::{BLOCK_TOKENS, BlockPool, Table};
//!
//! let pool = BlockPool::new(8);
//! let prompt: Vec<TokenId> = (0..40).map(TokenId).collect();
//!
//! let mut first = Table::new(&pool, pool.lookup(0, &prompt));
//! assert_eq!(first.blocks().len(), 0);
//! first.ensure(prompt.len()).expect("3 of 8 blocks");
//! // … the prompt is computed …
//! pool.register(0, &prompt, first.blocks());
//! drop(first);
//!
//! let second = Table::new(&pool, pool.lookup(0, &prompt));
//! assert_eq!(second.capacity(), 2 * BLOCK_TOKENS);
//! ```

mod lists;
mod pool;
mod prefix;
mod table;

pub use pool::{Block, BlockPool, PoolStats, Registered};
pub use table::{BeamSlots, Table};

/// Tokens held by one cache block. Slot `s` lies in block `s / BLOCK_TOKENS` at place `s % BLOCK_TOKENS`.
pub const BLOCK_TOKENS: usize = 16;
