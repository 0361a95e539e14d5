//! What was done to a snapshot, and what follows from it.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::catalog::{Catalog, CatalogBuilder, ItemRecord};
use crate::error::Result;
use crate::ids::Rank;

/// What has changed since the snapshot was made. Every entry knows the revision it was made at.
#[derive(Clone, Default)]
pub(super) struct Journal {
    pub added: BTreeMap<String, (u64, ItemRecord)>,
    pub removed: BTreeMap<String, u64>,
}

impl Journal {
    pub fn len(&self) -> usize {
        self.added.len() + self.removed.len()
    }

    /// Forgets what a snapshot made at `revision` holds.
    pub fn settle(&mut self, revision: u64) {
        self.added.retain(|_, (at, _)| *at > revision);
        self.removed.retain(|_, at| *at > revision);
    }
}

/// A delta, and dead ranks of the base per type.
pub(super) type Derived = (Option<Arc<Catalog>>, Vec<Vec<Rank>>);

/// The delta of a journal, and what it leaves dead of the base.
pub(super) fn derive(base: &Catalog, journal: &Journal) -> Result<Derived> {
    let mut dead = vec![Vec::new(); base.types().len()];
    for (t, rank) in journal.added.keys().chain(journal.removed.keys()).filter_map(|id| base.find(id)) {
        dead[t.index()].push(rank);
    }
    if journal.added.is_empty() {
        return Ok((None, dead));
    }
    let mut builder = CatalogBuilder::new(&base.specs());
    for (_, record) in journal.added.values() {
        builder.push(record.clone())?;
    }
    Ok((Some(Arc::new(builder.build()?)), dead))
}
