//! What no answer may name.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock};

/// Ids that no answer may name, effective at once.
#[derive(Debug, Default)]
pub struct DenyList {
    ids: RwLock<HashSet<Box<str>>>,
    len: AtomicUsize,
}

impl DenyList {
    /// Whether an item is denied now.
    pub fn contains(&self, id: &str) -> bool {
        // Most lists are empty, and readers ask for every item.
        self.len.load(Ordering::Acquire) > 0
            && self.ids.read().unwrap_or_else(PoisonError::into_inner).contains(id)
    }

    /// Denied ids.
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Acquire)
    }

    /// Whether nothing is denied.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All ids, sorted.
    pub fn ids(&self) -> Vec<String> {
        let ids = self.ids.read().unwrap_or_else(PoisonError::into_inner);
        let mut ids: Vec<String> = ids.iter().map(|id| id.to_string()).collect();
        ids.sort_unstable();
        ids
    }

    /// Changes the list; readers see the whole change or nothing of it.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut HashSet<Box<str>>) -> T) -> T {
        let mut ids = self.ids.write().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut ids);
        self.len.store(ids.len(), Ordering::Release);
        result
    }
}
