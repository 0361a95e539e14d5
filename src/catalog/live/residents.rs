//! Which snapshots are in memory, and who frees them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use super::lock;
use crate::catalog::Catalog;
use crate::error::{Error, Result};

/// How long a load waits for requests that hold an older snapshot.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often old snapshots are looked after.
const GLANCE: Duration = Duration::from_millis(5);

/// Snapshots in memory.
#[derive(Default)]
pub(super) struct Residents {
    known: Mutex<Vec<Weak<Catalog>>>,
    most: AtomicUsize,
    /// Those that are not current any more, until nobody holds them. A thread looks after them while there are any.
    retired: Mutex<Vec<Arc<Catalog>>>,
}

impl Residents {
    /// Notes that a snapshot is in memory.
    pub fn enter(&self, catalog: &Arc<Catalog>) {
        let mut known = lock(&self.known);
        known.retain(|known| known.strong_count() > 0);
        if !known.iter().any(|known| std::ptr::eq(known.as_ptr(), Arc::as_ptr(catalog))) {
            known.push(Arc::downgrade(catalog));
        }
        self.most.fetch_max(known.len(), Ordering::Relaxed);
    }

    /// Snapshots in memory now.
    pub fn count(&self) -> usize {
        let mut known = lock(&self.known);
        known.retain(|known| known.strong_count() > 0);
        known.len()
    }

    /// The most there ever were.
    pub fn most(&self) -> usize {
        self.most.load(Ordering::Relaxed)
    }

    /// Takes back a snapshot that was to be freed.
    pub fn keep(&self, catalog: &Arc<Catalog>) {
        lock(&self.retired).retain(|retired| !Arc::ptr_eq(retired, catalog));
    }

    /// Waits until at most one snapshot is in memory.
    ///
    /// # Errors
    /// [`Error::Overloaded`] if requests hold the older one for too long.
    pub fn wait_for_room(&self) -> Result<()> {
        let start = Instant::now();
        while self.count() > 1 {
            if start.elapsed() > PATIENCE {
                return Err(Error::Overloaded(format!(
                    "two snapshots are in memory, and requests have held the older one for {} s; try again later",
                    PATIENCE.as_secs()
                )));
            }
            std::thread::sleep(GLANCE);
        }
        Ok(())
    }

    /// Leaves a snapshot to the thread that frees what nobody holds: the engine's own, which may hold the last request of it, must
    /// not spend its time on unmapping.
    pub fn retire(self: &Arc<Self>, old: Arc<Catalog>) {
        let mut retired = lock(&self.retired);
        retired.push(old);
        if retired.len() > 1 {
            // The thread is there.
            return;
        }
        let residents = self.clone();
        let free = move || {
            loop {
                let mut retired = lock(&residents.retired);
                let (held, free): (Vec<_>, Vec<_>) =
                    retired.drain(..).partition(|catalog| Arc::strong_count(catalog) > 1);
                *retired = held;
                if retired.is_empty() && free.is_empty() {
                    return;
                }
                drop(retired);
                drop(free);
                std::thread::sleep(GLANCE);
            }
        };
        if let Err(error) = std::thread::Builder::new().name("sidereal-retire".to_owned()).spawn(free) {
            tracing::warn!(%error, "no thread to free old snapshots; their last requests do");
            retired.clear();
        }
    }
}
