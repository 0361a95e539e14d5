//! Compiled filters of one catalog, kept.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::Filter;
use super::compile::Threads;
use crate::catalog::{Catalog, Mask};
use crate::ids::TypeId;

/// Bounds of what a [`FilterCache`] keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheLimits {
    /// Masks, one per filter and type; default 256.
    pub entries: usize,
    /// Bytes of masks and of the filters they are found by; default 256 MiB.
    pub bytes: usize,
}

impl Default for CacheLimits {
    fn default() -> CacheLimits {
        CacheLimits { entries: 256, bytes: 256 << 20 }
    }
}

/// What a [`FilterCache`] holds and has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheUse {
    /// Masks kept.
    pub entries: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Questions answered with a mask that was there, or that another caller was compiling already.
    pub hits: u64,
    /// Questions that were answered by compiling.
    pub misses: u64,
    /// Masks dropped to stay within the bounds.
    pub evicted: u64,
}

/// The masks of filters on one version of the catalog, least recently used dropped first.
///
/// Filters are equal by their canonical form. Callers that ask for the same at the same time wait for one of them to compile, and all get
/// the same bitmap: a device that holds it need not copy it again.
pub struct FilterCache {
    catalog: Arc<Catalog>,
    limits: CacheLimits,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    /// By type and digest.
    entries: HashMap<(TypeId, u64), Entry>,
    /// Counts questions, to tell which entry was used last.
    clock: u64,
    usage: CacheUse,
}

struct Entry {
    /// Digests may be equal where filters are not.
    canonical: Arc<str>,
    slot: Arc<Slot>,
    used: u64,
    /// 0 while it is compiled.
    bytes: usize,
}

/// Where the callers of one filter meet.
#[derive(Default)]
struct Slot {
    state: Mutex<State>,
    settled: Condvar,
}

#[derive(Default)]
enum State {
    #[default]
    Compiling,
    Ready(Mask),
    /// Whoever compiled did not come back.
    Abandoned,
}

impl Slot {
    /// The mask, once it is there; `None` if nobody compiles it, or if this thread must not wait.
    ///
    /// A thread of rayon's pool does not wait: whoever compiles may need it.
    fn wait(&self) -> Option<Mask> {
        let mut state = locked(&self.state);
        loop {
            match &*state {
                State::Ready(mask) => return Some(mask.clone()),
                State::Compiling if rayon::current_thread_index().is_none() => {
                    state = self.settled.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                State::Compiling | State::Abandoned => return None,
            }
        }
    }

    /// Makes a mask known, unless another is already: there is only one.
    fn settle(&self, mask: Mask) -> Mask {
        let mut state = locked(&self.state);
        if let State::Ready(known) = &*state {
            return known.clone();
        }
        *state = State::Ready(mask.clone());
        self.settled.notify_all();
        mask
    }
}

impl FilterCache {
    /// An empty cache for this version of the catalog.
    pub fn new(catalog: Arc<Catalog>, limits: CacheLimits) -> FilterCache {
        FilterCache { catalog, limits, kept: Mutex::default() }
    }

    /// The catalog that the masks belong to.
    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// The items of a type that pass a filter; as [`Filter::compile`], which is done at most once for callers at the same time.
    ///
    /// # Panics
    /// If there is no such type.
    pub fn mask(&self, filter: &Filter, t: TypeId) -> Mask {
        let key = (t, filter.digest);
        let (slot, known) = {
            let mut kept = locked(&self.kept);
            kept.clock += 1;
            let now = kept.clock;
            match kept.entries.get_mut(&key) {
                Some(entry) if entry.canonical == filter.canonical => {
                    entry.used = now;
                    let slot = entry.slot.clone();
                    kept.usage.hits += 1;
                    (slot, true)
                }
                Some(_) => {
                    kept.usage.misses += 1;
                    drop(kept);
                    return self.compile(filter, t);
                }
                None => {
                    let slot = Arc::<Slot>::default();
                    let entry = Entry {
                        canonical: filter.canonical.clone(),
                        slot: slot.clone(),
                        used: now,
                        bytes: 0,
                    };
                    kept.entries.insert(key, entry);
                    kept.usage.misses += 1;
                    (slot, false)
                }
            }
        };
        if known {
            return slot.wait().unwrap_or_else(|| slot.settle(self.compile(filter, t)));
        }
        let abandoned = Abandoned { cache: self, key, slot: &slot };
        let mask = slot.settle(self.compile(filter, t));
        std::mem::forget(abandoned);
        self.keep(key, &slot, mask.bytes() + filter.canonical.len() + size_of::<Entry>() + size_of::<Slot>());
        mask
    }

    /// What the cache holds and has done.
    pub fn usage(&self) -> CacheUse {
        locked(&self.kept).usage
    }

    fn compile(&self, filter: &Filter, t: TypeId) -> Mask {
        // A thread of the pool that waits for others takes up other work meanwhile, which might be a question of the same filter.
        let threads = match rayon::current_thread_index() {
            Some(_) => Threads::One,
            None => Threads::All,
        };
        filter.compile_on(&self.catalog, t, threads)
    }

    /// Counts a new mask and drops what no longer fits.
    fn keep(&self, key: (TypeId, u64), slot: &Arc<Slot>, bytes: usize) {
        let mut kept = locked(&self.kept);
        let Kept { entries, usage, .. } = &mut *kept;
        let Some(entry) = entries.get_mut(&key).filter(|entry| Arc::ptr_eq(&entry.slot, slot)) else {
            return;
        };
        if bytes > self.limits.bytes || self.limits.entries == 0 {
            // Better to compile it again than to drop everything for it.
            entries.remove(&key);
            usage.evicted += 1;
            return;
        }
        entry.bytes = bytes;
        usage.bytes += bytes;
        usage.entries += 1;
        while usage.bytes > self.limits.bytes || usage.entries > self.limits.entries {
            let ready = entries.iter().filter(|(_, entry)| entry.bytes > 0);
            let Some(oldest) = ready.min_by_key(|(_, entry)| entry.used).map(|(key, _)| *key) else { return };
            if let Some(entry) = entries.remove(&oldest) {
                usage.bytes -= entry.bytes;
                usage.entries -= 1;
                usage.evicted += 1;
            }
        }
    }
}

impl std::fmt::Debug for FilterCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "filters of {}: {:?}", self.catalog.snapshot(), self.usage())
    }
}

/// Lets those who wait go when a compilation panics.
struct Abandoned<'a> {
    cache: &'a FilterCache,
    key: (TypeId, u64),
    slot: &'a Arc<Slot>,
}

impl Drop for Abandoned<'_> {
    fn drop(&mut self) {
        locked(&self.cache.kept).entries.remove(&self.key);
        let mut state = locked(&self.slot.state);
        if matches!(*state, State::Compiling) {
            *state = State::Abandoned;
        }
        self.slot.settled.notify_all();
    }
}

/// What is behind a lock is whole at all times, whoever panicked.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
