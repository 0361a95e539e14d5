//! Pinned memory of the emulated device: which of it is still there when a copy's turn comes.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::super::driver::{Pinned, failed};
use crate::error::Result;

#[derive(Default)]
struct State {
    /// First address, length and the bytes of every allocation; dead ones stay until no copy can name them.
    blocks: BTreeMap<usize, Block>,
}

struct Block {
    bytes: Box<[u128]>,
    alive: bool,
}

/// All pinned memory of a driver.
#[derive(Clone, Default)]
pub(super) struct PinnedPool(Arc<Mutex<State>>);

impl PinnedPool {
    pub fn pin(&self, bytes: usize) -> Pinned {
        let mut block = Block { bytes: vec![0; bytes.div_ceil(16).max(1)].into_boxed_slice(), alive: true };
        let at = block.bytes.as_mut_ptr().cast::<u8>();
        let key = at as usize;
        self.lock().blocks.insert(key, block);
        let pool = self.clone();
        let free = Box::new(move || {
            if let Some(block) = pool.lock().blocks.get_mut(&key) {
                block.alive = false;
            }
        });
        // SAFETY: the block is zeroed, stays in the pool at least until `free` marks it dead, and only copies touch it there.
        unsafe { Pinned::new(at, bytes, free) }
    }

    /// Fails if the memory was dropped while a copy of it was still to come.
    pub fn check(&self, what: &str, at: Range<usize>) -> Result<()> {
        let state = self.lock();
        let found = state.blocks.range(..=at.start).next_back();
        match found.is_some_and(|(&start, b)| b.alive && at.end <= start + size_of_val(&*b.bytes)) {
            true => Ok(()),
            false => Err(failed(format_args!(
                "{what}: the pinned memory was dropped before the copy had its turn"
            ))),
        }
    }

    /// Forgets what is dead; no copy is pending.
    pub fn sweep(&self) {
        self.lock().blocks.retain(|_, block| block.alive);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
