//! The catalog of a running engine: swapped, rolled back, denied and changed item by item without a pause.
//!
//! What requests see is a [`View`]; they pin the one they began with. A change makes a new view and leaves the old one to those that hold it.
//! Three kinds of change differ in weight:
//!
//! - **Deny** takes effect at once, also for answers that are being made: whoever hands out an item asks the deny list last.
//! - **Add and remove** rebuild the delta, a small catalog, and the list of the snapshot's dead; the snapshot is not touched. [`LiveCatalog::compact`]
//!   makes a new snapshot of all that.
//! - **Load and swap** bring a new snapshot. At most two are resident, the current one and one that requests still hold; who brings
//!   a third waits until those requests are done. Memory is given back on a thread of its own, since unmapping gigabytes takes milliseconds.

mod background;
mod deny;
mod journal;
mod residents;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

pub use self::deny::{DenyList, DenyWatcher};
use self::journal::{Journal, derive};
use self::residents::Residents;

use super::view::View;
use super::{CacheLimits, Catalog, CatalogBuilder, FilterCache, FilterSet, ItemRecord, Progress, TypeSpec};
use crate::error::{Error, Result};
use crate::ids::{Rank, TypeId};

/// Bounds on a live catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveLimits {
    /// Items added and removed since the snapshot; more are refused until it is compacted. Default 100,000.
    pub changes: usize,
    /// Items added and removed at which the catalog is compacted in the background. Default 10,000.
    pub compact_at: usize,
    /// Denied ids. Default 1,000,000.
    pub denied: usize,
}

impl Default for LiveLimits {
    fn default() -> LiveLimits {
        LiveLimits { changes: 100_000, compact_at: 10_000, denied: 1_000_000 }
    }
}

/// What a change of the catalog came to.
#[cfg_attr(feature = "server", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Change {
    /// Name of the view that requests get from now on.
    pub view: String,
    /// Ids that took effect.
    pub changed: usize,
    /// Ids that the catalog does not have (`remove`), or that were listed already, or were not (`deny`, `allow`).
    pub unknown: usize,
    /// Changes since the older snapshot that the new one does not carry (`swap`).
    pub discarded: usize,
}

/// Counts of a live catalog.
#[cfg_attr(feature = "server", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct LiveStats {
    /// Name of the current view.
    pub view: String,
    /// Items of the snapshot.
    pub items: usize,
    /// Items added since.
    pub added: usize,
    /// Items removed since.
    pub removed: usize,
    /// Denied ids.
    pub denied: usize,
    /// Snapshots in memory now.
    pub resident: usize,
    /// The most there ever were.
    pub most_resident: usize,
    /// Snapshots swapped in.
    pub swaps: u64,
    /// Compactions finished.
    pub compactions: u64,
}

/// What only changes touch.
struct State {
    base: Arc<Catalog>,
    /// Masks of filters on the base, and on the delta.
    base_filters: Arc<FilterCache>,
    delta_filters: Option<Arc<FilterCache>>,
    journal: Journal,
    /// Changes so far; never begins again, so that no two views that differ have one name.
    revision: u64,
    delta: Option<Arc<Catalog>>,
    /// Ranks of the base, per type, that were removed or replaced.
    dead: Vec<Vec<Rank>>,
    /// Ranks of the base, per type, that are denied; sorted.
    denied: Vec<Vec<Rank>>,
    /// The snapshot before this one: its file, and itself while it is resident.
    previous: Option<(Option<PathBuf>, Weak<Catalog>)>,
}

/// A catalog that changes while it is served.
pub struct LiveCatalog {
    view: RwLock<Arc<View>>,
    state: Mutex<State>,
    /// Held by whoever brings a snapshot, however long that takes; changes of items do not wait for it.
    bringing: Mutex<()>,
    deny: Arc<DenyList>,
    /// Filters by name.
    named: RwLock<Arc<FilterSet>>,
    limits: LiveLimits,
    residents: Arc<Residents>,
    swaps: AtomicU64,
    compactions: AtomicU64,
    compacting: AtomicBool,
}

/// Room for the masks of filters on a catalog.
fn masks_of(catalog: &Arc<Catalog>) -> Arc<FilterCache> {
    Arc::new(FilterCache::new(catalog.clone(), CacheLimits::default()))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing is changed before all that can fail has been done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LiveCatalog {
    /// Begins with a snapshot.
    pub fn new(base: Arc<Catalog>, limits: LiveLimits) -> LiveCatalog {
        let residents = Arc::new(Residents::default());
        residents.enter(&base);
        let dead = vec![Vec::new(); base.types().len()];
        let base_filters = masks_of(&base);
        let view = View::changed(base_filters.clone(), dead.clone(), None, 0);
        LiveCatalog {
            view: RwLock::new(Arc::new(view)),
            state: Mutex::new(State {
                base,
                base_filters,
                delta_filters: None,
                journal: Journal::default(),
                revision: 0,
                delta: None,
                denied: dead.clone(),
                dead,
                previous: None,
            }),
            bringing: Mutex::new(()),
            deny: Arc::default(),
            named: RwLock::default(),
            limits,
            residents,
            swaps: AtomicU64::new(0),
            compactions: AtomicU64::new(0),
            compacting: AtomicBool::new(false),
        }
    }

    /// The current state; whoever holds it keeps its snapshot in memory.
    pub fn view(&self) -> Arc<View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes so far; the next one is one more.
    pub fn revision(&self) -> u64 {
        lock(&self.state).revision
    }

    /// The deny list.
    pub fn deny_list(&self) -> &Arc<DenyList> {
        &self.deny
    }

    /// The filters that requests may call by name.
    pub fn filters(&self) -> Arc<FilterSet> {
        self.named.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the named filters; requests that run keep theirs.
    ///
    /// # Errors
    /// As [`FilterSet::check`], for the present snapshot.
    pub fn set_filters(&self, filters: FilterSet) -> Result<()> {
        filters.check(self.view().base())?;
        *self.named.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(filters);
        Ok(())
    }

    /// Counts.
    pub fn stats(&self) -> LiveStats {
        let state = lock(&self.state);
        LiveStats {
            view: self.view().name().to_owned(),
            items: state.base.len(),
            added: state.journal.added.len(),
            removed: state.journal.removed.len(),
            denied: self.deny.len(),
            resident: self.residents.count(),
            most_resident: self.residents.most(),
            swaps: self.swaps.load(Ordering::Relaxed),
            compactions: self.compactions.load(Ordering::Relaxed),
        }
    }
}

// ------------------------------------------------------------------------------------------------------------ items

impl LiveCatalog {
    /// Denies items: from the return of this call on, no reader of an answer is handed one of them, whatever snapshot
    /// its request began with. The list outlives snapshots, and may hold ids that no snapshot has.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the list would become longer than allowed; nothing is denied then.
    pub fn deny(&self, ids: &[impl AsRef<str>]) -> Result<Change> {
        let most = self.limits.denied;
        // The list first, and by itself: it does not wait for whoever is changing items.
        let new = self.deny.change(|list| {
            let new: BTreeSet<&str> =
                ids.iter().map(AsRef::as_ref).filter(|&id| !list.contains(id)).collect();
            let len = list.len() + new.len();
            if len > most {
                let message = format!("{len} denied ids would be more than the {most} allowed");
                return Err(Error::invalid("deny", message));
            }
            list.extend(new.iter().map(|&id| id.into()));
            Ok(new)
        })?;
        self.deny.tell();
        let mut state = lock(&self.state);
        let state = &mut *state;
        for (t, rank) in new.iter().filter_map(|id| state.base.find(id)) {
            state.denied[t.index()].push(rank);
        }
        // Runs are recognised: this merges.
        state.denied.iter_mut().for_each(|ranks| ranks.sort());
        self.change(state, new.len(), ids.len() - new.len())
    }

    /// Takes items off the deny list.
    ///
    /// # Errors
    /// None of its own.
    pub fn allow(&self, ids: &[impl AsRef<str>]) -> Result<Change> {
        let freed = self.deny.change(|list| ids.iter().filter(|id| list.remove(id.as_ref())).count());
        let mut state = lock(&self.state);
        state.denied = self.denied_of(&state.base);
        self.change(&mut state, freed, ids.len() - freed)
    }

    /// Denied ranks of a snapshot, per type, sorted.
    fn denied_of(&self, base: &Catalog) -> Vec<Vec<Rank>> {
        let mut denied = vec![Vec::new(); base.types().len()];
        for (t, rank) in self.deny.ids().iter().filter_map(|id| base.find(id)) {
            denied[t.index()].push(rank);
        }
        denied.iter_mut().for_each(|ranks| ranks.sort_unstable());
        denied
    }

    /// Adds items, or replaces those of the same ids; all of them or none.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the place in the list (`items[3].sid`): what [`CatalogBuilder::push`] refuses, an attribute of another kind than the
    /// snapshot's, an id listed twice, or more changes than allowed.
    pub fn add(self: &Arc<Self>, items: Vec<ItemRecord>) -> Result<Change> {
        let mut state = lock(&self.state);
        let mut journal = state.journal.clone();
        let revision = state.revision + 1;
        let count = items.len();
        let mut checker = CatalogBuilder::new(&state.base.specs());
        for (at, item) in items.into_iter().enumerate() {
            let place = |error| match error {
                Error::Invalid { field, message } => Error::invalid(format!("items[{at}].{field}"), message),
                other => other,
            };
            check_kinds(&state.base, &item).map_err(place)?;
            checker.push(item.clone()).map_err(place)?;
            journal.removed.remove(&item.id);
            journal.added.insert(item.id.clone(), (revision, item));
        }
        self.install(&mut state, journal, count, 0)
    }

    /// Removes items; unknown ids are counted.
    ///
    /// # Errors
    /// [`Error::Invalid`] if nothing would be left, or more changes than allowed.
    pub fn remove(self: &Arc<Self>, ids: &[impl AsRef<str>]) -> Result<Change> {
        let mut state = lock(&self.state);
        let mut journal = state.journal.clone();
        let revision = state.revision + 1;
        let mut changed = 0;
        for id in ids.iter().map(AsRef::as_ref) {
            let added = journal.added.remove(id).is_some();
            let in_base = state.base.find(id).is_some();
            let gone = journal.removed.contains_key(id);
            if added || (in_base && !gone) {
                changed += 1;
                // Also if the base does not have it: one that is being made of both may.
                journal.removed.insert(id.to_owned(), revision);
            }
        }
        self.install(&mut state, journal, changed, ids.len() - changed)
    }

    /// Makes a journal the current one, if it can be.
    fn install(
        self: &Arc<Self>,
        state: &mut State,
        journal: Journal,
        changed: usize,
        unknown: usize,
    ) -> Result<Change> {
        let (changes, most) = (journal.len(), self.limits.changes);
        if changes > most {
            let message = format!(
                "{changes} items added and removed since the snapshot would be more than the {most} allowed; compact the catalog first"
            );
            return Err(Error::invalid("items", message));
        }
        let (delta, dead) = derive(&state.base, &journal)?;
        let gone: usize = dead.iter().map(Vec::len).sum();
        if gone == state.base.len() && delta.is_none() {
            return Err(Error::invalid("ids", "nothing would be left of the catalog"));
        }
        state.delta_filters = delta.as_ref().map(masks_of);
        (state.journal, state.delta, state.dead) = (journal, delta, dead);
        let change = self.change(state, changed, unknown)?;
        if changes >= self.limits.compact_at && !self.compacting.swap(true, Ordering::AcqRel) {
            self.compact_in_background();
        }
        Ok(change)
    }

    /// Publishes a view of the present state as one more revision.
    fn change(&self, state: &mut State, changed: usize, unknown: usize) -> Result<Change> {
        state.revision += 1;
        self.publish(state);
        Ok(Change { view: self.view().name().to_owned(), changed, unknown, discarded: 0 })
    }

    fn publish(&self, state: &State) {
        let dead: Vec<Vec<Rank>> =
            state.dead.iter().zip(&state.denied).map(|(dead, denied)| [&dead[..], denied].concat()).collect();
        let dead_added = state.delta.as_ref().map(|delta| self.denied_of_delta(delta));
        let delta = state.delta_filters.clone().zip(dead_added);
        let changed = state.journal.len() > 0 || !self.deny.is_empty();
        let revision = if changed { state.revision } else { 0 };
        let view = Arc::new(View::changed(state.base_filters.clone(), dead, delta, revision));
        let old = std::mem::replace(&mut *self.view.write().unwrap_or_else(PoisonError::into_inner), view);
        drop(old);
    }

    /// Denied ranks of a delta, per type. It is smaller than the list may be.
    fn denied_of_delta(&self, delta: &Catalog) -> Vec<Vec<Rank>> {
        let of_type = |t: usize| {
            let t = TypeId(t as u16);
            let ranks = (0..delta.index(t).items() as u32).map(Rank);
            ranks.filter(|&rank| self.deny.contains(delta.item(t, rank).id())).collect()
        };
        (0..delta.types().len()).map(of_type).collect()
    }
}

/// Refuses an attribute of another kind than the snapshot's of the same name: both must go into one column one day.
fn check_kinds(base: &Catalog, item: &ItemRecord) -> Result<()> {
    let Some(t) = base.type_id(&item.item_type) else { return Ok(()) };
    for (name, value) in &item.attributes {
        if let Some(column) = base.column(t, name) {
            column.admits(value).map_err(|message| Error::invalid(name, message))?;
        }
    }
    Ok(())
}

// -------------------------------------------------------------------------------------------------------- snapshots

impl LiveCatalog {
    /// Swaps a snapshot in. Requests that run keep theirs. With `carry`, what was added and removed since the older snapshot is done to the
    /// new one again; without, the new one is the truth. The deny list stays.
    ///
    /// # Errors
    /// [`Error::Invalid`] if its types or codebooks are not those of the current one, it is empty, or requests hold an older snapshot for
    /// too long. The current snapshot is then untouched.
    pub fn swap(&self, next: Arc<Catalog>, carry: bool) -> Result<Change> {
        let _bringing = lock(&self.bringing);
        self.check(&next)?;
        self.residents.wait_for_room()?;
        self.put(next, carry)
    }

    /// Verifies a snapshot file and swaps it in; `progress` is told bytes verified and in all.
    ///
    /// # Errors
    /// [`Error::File`] with the place if the file is not sound; as [`LiveCatalog::swap`].
    pub fn load(&self, path: &Path, carry: bool, progress: Progress<'_>) -> Result<Change> {
        let _bringing = lock(&self.bringing);
        // Before anything is mapped: two snapshots may be resident, and a third must not.
        self.residents.wait_for_room()?;
        let next = Arc::new(background::run(progress, |progress| Catalog::load(path, progress))?);
        self.check(&next)?;
        self.put(next, carry)
    }

    /// Goes back to the snapshot before, without the changes since; its file is mapped again if it is no longer resident.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there is none, or it had no file and is gone; as [`LiveCatalog::load`].
    pub fn rollback(&self) -> Result<Change> {
        let _bringing = lock(&self.bringing);
        let Some((path, resident)) = lock(&self.state).previous.clone() else {
            return Err(Error::invalid("rollback", "there is no snapshot before this one"));
        };
        if let Some(previous) = resident.upgrade() {
            self.residents.keep(&previous);
            return self.put(previous, false);
        }
        let Some(path) = path else {
            return Err(Error::invalid(
                "rollback",
                "the snapshot before was made in memory and is gone; load it from a file",
            ));
        };
        self.residents.wait_for_room()?;
        let load = |progress: Progress<'_>| Catalog::load(&path, progress);
        let previous = Arc::new(background::run(&mut |_, _| {}, load)?);
        self.check(&previous)?;
        self.put(previous, false)
    }

    /// Gives items other popularities without rebuilding anything: tries, ids and attributes are shared with the snapshot before. Unknown ids are
    /// counted.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the first value that is not finite; as [`LiveCatalog::swap`].
    pub fn set_popularity(&self, values: &[(impl AsRef<str> + Send + Sync, f64)]) -> Result<Change> {
        let _bringing = lock(&self.bringing);
        self.residents.wait_for_room()?;
        let base = lock(&self.state).base.clone();
        let (next, mut unknown) = background::run(&mut |_, _| {}, |_| base.with_popularity_of(values))?;
        let next = Arc::new(next);
        let mut state = lock(&self.state);
        let mut journal = state.journal.clone();
        for (id, value) in values {
            if let Some((at, item)) = journal.added.get_mut(id.as_ref()) {
                (*at, item.popularity) = (state.revision + 1, *value);
                unknown -= usize::from(base.find(id.as_ref()).is_none());
            }
        }
        drop(base);
        let (delta, dead) = derive(&next, &journal)?;
        let old = self.replace(&mut state, next, journal, delta, dead);
        drop(state);
        self.residents.retire(old);
        let view = self.view().name().to_owned();
        Ok(Change { view, changed: values.len() - unknown, unknown, discarded: 0 })
    }

    /// Makes one snapshot of the present one and all changes, in memory, and puts it in its place.
    ///
    /// # Errors
    /// As [`LiveCatalog::swap`].
    pub fn compact(&self) -> Result<Change> {
        let _bringing = lock(&self.bringing);
        let (base, delta, dead, revision) = {
            let state = lock(&self.state);
            (state.base.clone(), state.delta.clone(), state.dead.clone(), state.revision)
        };
        if delta.is_none() && dead.iter().all(Vec::is_empty) {
            return Ok(Change { view: self.view().name().to_owned(), ..Change::default() });
        }
        self.residents.wait_for_room()?;
        let merged = background::run(&mut |_, _| {}, |_| match &delta {
            Some(delta) => Catalog::merged(&base, delta, &dead),
            None => Catalog::merged(&base, &CatalogBuilder::new(&base.specs()).build()?, &dead),
        })?;
        let merged = Arc::new(merged);
        drop((base, delta));
        let mut state = lock(&self.state);
        let before = state.journal.len();
        let mut journal = state.journal.clone();
        journal.settle(revision);
        let settled = before - journal.len();
        let (delta, dead) = derive(&merged, &journal)?;
        // What is left was done after the new base was begun. It is no other state than before: rolling back skips it.
        let old = self.replace(&mut state, merged, journal, delta, dead);
        self.compactions.fetch_add(1, Ordering::Relaxed);
        drop(state);
        self.residents.retire(old);
        Ok(Change { view: self.view().name().to_owned(), changed: settled, ..Change::default() })
    }

    fn compact_in_background(self: &Arc<Self>) {
        let live = Arc::downgrade(self);
        let work = move || {
            let Some(live) = live.upgrade() else { return };
            match live.compact() {
                Ok(change) => {
                    tracing::info!(view = change.view, changes = change.changed, "catalog compacted")
                }
                Err(error) => tracing::warn!(%error, "the catalog could not be compacted"),
            }
            live.compacting.store(false, Ordering::Release);
        };
        if let Err(error) = std::thread::Builder::new().name("sidereal-compact".to_owned()).spawn(work) {
            tracing::warn!(%error, "no thread to compact the catalog");
            self.compacting.store(false, Ordering::Release);
        }
    }

    /// Refuses a snapshot that is not of the current one's types.
    fn check(&self, next: &Catalog) -> Result<()> {
        let current = lock(&self.state).base.clone();
        if next.is_empty() {
            return Err(Error::invalid("snapshot", "it has no items"));
        }
        let describe = |catalog: &Catalog| {
            let of = |spec: TypeSpec| format!("{} {:?}", spec.name, spec.levels);
            catalog.specs().into_iter().map(of).collect::<Vec<_>>().join(", ")
        };
        let (own, current) = (describe(next), describe(&current));
        if own != current {
            return Err(Error::invalid(
                "snapshot",
                format!("its types are {own}; the engine serves {current}"),
            ));
        }
        Ok(())
    }

    /// Puts a snapshot in the place of the current one.
    fn put(&self, next: Arc<Catalog>, carry: bool) -> Result<Change> {
        let mut state = lock(&self.state);
        let journal = if carry { state.journal.clone() } else { Journal::default() };
        let (changed, discarded) = (journal.len(), state.journal.len() - journal.len());
        let (delta, dead) = derive(&next, &journal)?;
        let old = self.replace(&mut state, next, journal, delta, dead);
        state.previous = Some((old.source_path().map(Path::to_path_buf), Arc::downgrade(&old)));
        self.swaps.fetch_add(1, Ordering::Relaxed);
        drop(state);
        self.residents.retire(old);
        let view = self.view().name().to_owned();
        tracing::info!(view, carried = changed, discarded, "catalog swapped");
        Ok(Change { view, changed, unknown: 0, discarded })
    }

    /// Makes a snapshot the base, with what was changed of it, and returns the one before.
    fn replace(
        &self,
        state: &mut State,
        base: Arc<Catalog>,
        journal: Journal,
        delta: Option<Arc<Catalog>>,
        dead: Vec<Vec<Rank>>,
    ) -> Arc<Catalog> {
        self.residents.enter(&base);
        state.denied = self.denied_of(&base);
        state.base_filters = masks_of(&base);
        state.delta_filters = delta.as_ref().map(masks_of);
        let old = std::mem::replace(&mut state.base, base);
        (state.journal, state.delta, state.dead) = (journal, delta, dead);
        state.revision += 1;
        self.publish(state);
        old
    }
}

impl std::fmt::Debug for LiveCatalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LiveCatalog").field("view", &self.view()).finish_non_exhaustive()
    }
}
