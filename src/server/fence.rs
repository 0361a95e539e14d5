//! Denials and the bytes on their way to a socket.
//!
//! The engine hands out no denied item, but an answer that it handed out a moment before a denial may still lie in a buffer of its connection. So
//! every connection keeps the ids that its unsent bytes name ([`Wire`]); a denial looks through all of them before it returns, and a
//! connection that would still send a denied item is cut. What the kernel has taken counts as sent.
//!
//! The order makes it watertight: a body announces ids first and asks the deny list second; a denial changes the list first and looks at what was
//! announced second. One of the two sees the other.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::catalog::{DenyList, DenyWatcher};

/// One connection's unsent items.
#[derive(Debug, Default)]
pub(crate) struct Wire {
    state: Mutex<WireState>,
}

#[derive(Debug, Default)]
pub(super) struct WireState {
    /// Ids of items that bytes in the connection's buffers name, or may name.
    unsent: Vec<Box<str>>,
    /// Nothing more may be written.
    pub cut: bool,
}

impl WireState {
    /// All bytes handed over so far were written.
    pub fn sent(&mut self) {
        self.unsent.clear();
    }
}

impl Wire {
    /// Held while bytes are written, so that a denial does not return in the middle of it.
    pub(super) fn lock(&self) -> MutexGuard<'_, WireState> {
        // Nothing panics while holding the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that the bytes handed over next name these items. `false`: one of them is denied, and the bytes must not be handed over.
    #[must_use]
    pub fn announce(&self, items: &[String], deny: &DenyList) -> bool {
        if items.is_empty() {
            return true;
        }
        self.lock().unsent.extend(items.iter().map(|id| id.as_str().into()));
        deny.is_empty() || !items.iter().any(|id| deny.contains(id))
    }

    /// Whether a denial has cut the connection.
    pub fn is_cut(&self) -> bool {
        self.lock().cut
    }

    fn screen(&self, deny: &DenyList) {
        let mut state = self.lock();
        if state.unsent.iter().any(|id| deny.contains(id)) {
            state.cut = true;
        }
    }
}

/// All connections of a server.
#[derive(Debug, Default)]
pub(crate) struct Wires {
    wires: Mutex<Vec<Weak<Wire>>>,
}

impl Wires {
    /// Begins to watch a catalog's denials.
    pub fn watch(deny: &DenyList) -> Arc<Wires> {
        let wires = Arc::new(Wires::default());
        let watcher: Weak<dyn DenyWatcher> = Arc::downgrade(&(wires.clone() as Arc<dyn DenyWatcher>));
        deny.watch(watcher);
        wires
    }

    /// A new connection's part.
    pub fn enter(&self) -> Arc<Wire> {
        let wire = Arc::new(Wire::default());
        let mut wires = self.wires.lock().unwrap_or_else(PoisonError::into_inner);
        // Amortised: the list is swept when it would have to grow.
        if wires.len() == wires.capacity() {
            wires.retain(|wire| wire.strong_count() > 0);
        }
        wires.push(Arc::downgrade(&wire));
        wire
    }
}

impl DenyWatcher for Wires {
    fn denied(&self, deny: &DenyList) {
        let wires = self.wires.lock().unwrap_or_else(PoisonError::into_inner);
        wires.iter().filter_map(Weak::upgrade).for_each(|wire| wire.screen(deny));
    }
}
