//! The last look at every item before it is named, written apart from the trie and its masks.
//!
//! The search has made sure that an item is in the catalog and within the request's bounds. Here that is asked again in another way: the id is looked up
//! in the pinned view, the filter is evaluated on the item's attributes, and the present deny list is asked. Another answer to the first two is a bug of
//! ours: the item is dropped, counted and logged. A denial is normal: the item may have been taken down since the search began.
//!
//! The deny list is asked once more when a reader takes an event (see `channel`), since an answer may have waited there.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::counters::Counters;
use crate::catalog::{DenyList, Filter, Item, View};
use crate::device::ops::Path;

/// What an item of a request must pass.
pub(super) struct Gate {
    pub filter: Option<Arc<Filter>>,
    pub deny: Arc<DenyList>,
}

impl Gate {
    /// Whether an item that the search named for `path` may leave the engine.
    pub fn passes(&self, view: &View, path: &Path, named: &Item<'_>, counters: &Counters) -> bool {
        if let Err(reason) = self.check(view, path, named) {
            counters.gate_violations.fetch_add(1, Ordering::Relaxed);
            tracing::error!(item = named.id(), view = view.name(), reason, "a search named what it must not");
            return false;
        }
        if self.deny.contains(named.id()) {
            counters.denied_in_flight.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        true
    }

    fn check(&self, view: &View, path: &Path, named: &Item<'_>) -> Result<(), &'static str> {
        let Some(item) = view.find(named.id()) else { return Err("it is not in the catalog") };
        if item.item_type() != path.item_type || item.codes() != path.codes {
            return Err("it has another SID");
        }
        if self.filter.as_ref().is_some_and(|filter| !filter.matches(item)) {
            return Err("it does not pass the filter");
        }
        Ok(())
    }
}
