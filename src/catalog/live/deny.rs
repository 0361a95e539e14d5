//! What no answer may name.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, RwLock, Weak};

/// Told when ids have been denied, before the call that denies them returns: for those who have items on their way to a reader.
pub trait DenyWatcher: Send + Sync + std::fmt::Debug {
    /// The list has become longer.
    fn denied(&self, list: &DenyList);
}

/// Ids that no answer may name, effective at once.
#[derive(Debug, Default)]
pub struct DenyList {
    ids: RwLock<HashSet<Box<str>>>,
    len: AtomicUsize,
    watchers: Mutex<Vec<Weak<dyn DenyWatcher>>>,
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

    /// Has a watcher told of every denial from now on, as long as it lives.
    pub fn watch(&self, watcher: Weak<dyn DenyWatcher>) {
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        watchers.retain(|watcher| watcher.strong_count() > 0);
        watchers.push(watcher);
    }

    /// Tells the watchers.
    pub(super) fn tell(&self) {
        let watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        watchers.iter().filter_map(Weak::upgrade).for_each(|watcher| watcher.denied(self));
    }

    /// Changes the list; readers see the whole change or nothing of it.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut HashSet<Box<str>>) -> T) -> T {
        let mut ids = self.ids.write().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut ids);
        self.len.store(ids.len(), Ordering::Release);
        result
    }
}
