//! One consistent state of a live catalog: a snapshot, less what was removed or denied since, and the items added.
//!
//! A request pins the view it began with. Items added since the snapshot was made form a small catalog of their own, the delta; an item
//! that replaces one of the snapshot is in the delta, and the snapshot's is dead. A SID may then have items in both, of which the most
//! popular alive one counts.

use std::sync::Arc;

use super::{CacheLimits, Catalog, Filter, FilterCache, Item, Mask, Predicate, TypeIndex};
use crate::error::Result;
use crate::ids::{Rank, SidIndex, TypeId};

/// A catalog within a view, and what of it is alive.
struct Part {
    catalog: Arc<Catalog>,
    /// Masks of filters on the catalog as a whole; views of one catalog share them.
    filters: Arc<FilterCache>,
    /// Ranks that are dead for everybody, per type.
    dead: Vec<Vec<Rank>>,
    /// What that leaves, per type.
    alive: Vec<Arc<Mask>>,
}

impl Part {
    /// `dead` ranks per type, in any order.
    fn new(filters: Arc<FilterCache>, dead: Vec<Vec<Rank>>) -> Part {
        let catalog = filters.catalog().clone();
        let mask = |(t, dead): (usize, &Vec<Rank>)| {
            let index = catalog.index(TypeId(t as u16));
            Arc::new(Mask::all(index).excluding(index, dead))
        };
        let alive = dead.iter().enumerate().map(mask).collect();
        Part { catalog, filters, dead, alive }
    }

    /// What of a type is alive for a request.
    fn mask(&self, t: TypeId, filter: Option<&Filter>, bounds: &[(Bound, &[Vec<Rank>])]) -> Arc<Mask> {
        let index = self.catalog.index(t);
        let mut mask = match filter {
            Some(filter) => Arc::new(self.filters.mask(filter, t).excluding(index, &self.dead[t.index()])),
            None => self.alive[t.index()].clone(),
        };
        for (bound, ranks) in bounds {
            let ranks = &ranks[t.index()];
            mask = Arc::new(match bound {
                Bound::Allow => mask.restricted_to(index, ranks),
                Bound::Exclude => mask.excluding(index, ranks),
            });
        }
        mask
    }
}

#[derive(Clone, Copy)]
enum Bound {
    Allow,
    Exclude,
}

/// Item ids of a request, found in a view.
#[derive(Debug, Default)]
pub struct Found {
    /// Ranks per type, in the snapshot and in the delta.
    ranks: [Vec<Vec<Rank>>; 2],
    /// Ids that neither has.
    pub unknown: usize,
}

/// What is alive for a request: the requested types in type order, each with its mask.
#[derive(Clone, Debug, Default)]
pub struct Alive {
    /// Of the snapshot.
    pub types: Vec<(TypeId, Arc<Mask>)>,
    /// Of the delta, one per type; empty without one.
    pub delta: Vec<Arc<Mask>>,
}

impl Alive {
    /// The part of one type; `None` if it is not among them.
    pub fn only(&self, t: TypeId) -> Option<Alive> {
        let at = self.place(t)?;
        Some(Alive {
            types: vec![self.types[at].clone()],
            delta: self.delta.get(at).cloned().into_iter().collect(),
        })
    }

    fn place(&self, t: TypeId) -> Option<usize> {
        self.types.iter().position(|(known, _)| *known == t)
    }
}

/// One consistent state of a live catalog.
pub struct View {
    name: String,
    base: Part,
    delta: Option<Part>,
}

impl View {
    /// A snapshot as it is.
    pub fn new(base: Arc<Catalog>) -> View {
        let dead = vec![Vec::new(); base.types().len()];
        View::changed(Arc::new(FilterCache::new(base, CacheLimits::default())), dead, None, 0)
    }

    /// A snapshot less `dead` (ranks per type), beside a delta less `dead_added`; `revision` counts the changes since the
    /// snapshot was made and tells the views of one snapshot apart.
    ///
    /// # Panics
    /// If there is not one list per type.
    pub(super) fn changed(
        base: Arc<FilterCache>,
        dead: Vec<Vec<Rank>>,
        delta: Option<(Arc<FilterCache>, Vec<Vec<Rank>>)>,
        revision: u64,
    ) -> View {
        let types = base.catalog().types().len();
        assert!(dead.len() == types && delta.as_ref().is_none_or(|(_, dead)| dead.len() == types));
        let name = match revision {
            0 => base.catalog().snapshot().to_owned(),
            revision => format!("{}+{revision}", base.catalog().snapshot()),
        };
        let delta = delta.map(|(catalog, dead)| Part::new(catalog, dead));
        View { name, base: Part::new(base, dead), delta }
    }

    /// Name of this state: the snapshot's, and how many changes were made to it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The snapshot.
    pub fn base(&self) -> &Arc<Catalog> {
        &self.base.catalog
    }

    /// The items added since, if there are any.
    pub fn delta(&self) -> Option<&Arc<Catalog>> {
        self.delta.as_ref().map(|part| &part.catalog)
    }

    /// Type names in type order.
    pub fn types(&self) -> &[String] {
        self.base.catalog.types()
    }

    /// The type of a name.
    pub fn type_id(&self, name: &str) -> Option<TypeId> {
        self.base.catalog.type_id(name)
    }

    /// Levels of a type's SIDs.
    ///
    /// # Panics
    /// If there is no such type.
    pub fn levels(&self, t: TypeId) -> usize {
        self.index(t).levels()
    }

    /// The snapshot's trie of a type.
    fn index(&self, t: TypeId) -> &TypeIndex {
        self.base.catalog.index(t)
    }

    /// Finds an item by id, whether it is alive or not; the delta's where both have it.
    pub fn find(&self, id: &str) -> Option<Item<'_>> {
        self.parts().rev().find_map(|part| {
            let (t, rank) = part.catalog.find(id)?;
            Some(part.catalog.item(t, rank))
        })
    }

    /// Whether any item has an attribute of this name.
    pub fn has_attribute(&self, name: &str) -> bool {
        self.parts().any(|part| part.catalog.has_attribute(name))
    }

    /// Whether the snapshot or the delta knows a predicate's attribute.
    ///
    /// # Errors
    /// A sentence that names the attribute if not.
    pub fn check_predicate(&self, predicate: &Predicate) -> Result<(), String> {
        let own = predicate.check(&self.base.catalog);
        own.or_else(|error| self.delta().map_or(Err(error), |delta| predicate.check(delta)))
    }

    /// Whether items of these types, of the snapshot or added since, can be filtered in this way.
    ///
    /// # Errors
    /// As [`Filter::check`].
    pub fn check_filter(&self, filter: &Filter, types: &[TypeId]) -> Result<()> {
        let own = filter.check(&self.base.catalog, types);
        own.or_else(|error| self.delta().map_or(Err(error), |delta| filter.check(delta, types)))
    }

    /// The snapshot, then the delta.
    fn parts(&self) -> impl DoubleEndedIterator<Item = &Part> {
        std::iter::once(&self.base).chain(&self.delta)
    }

    /// Looks up many ids.
    pub fn find_all(&self, ids: &[impl AsRef<str> + Sync]) -> Found {
        let mut known = vec![false; ids.len()];
        let mut found = Found::default();
        for (part, ranks) in self.parts().zip(&mut found.ranks) {
            ranks.resize(self.types().len(), Vec::new());
            for (known, found) in known.iter_mut().zip(part.catalog.find_all(ids)) {
                if let Some((t, rank)) = found {
                    *known = true;
                    ranks[t.index()].push(rank);
                }
            }
        }
        found.unknown = known.iter().filter(|known| !**known).count();
        found
    }

    /// What is alive of these types (in type order): passes the filter and is within bounds.
    ///
    /// # Panics
    /// If there is no such type, or the lists are of another view.
    pub fn alive(
        &self,
        types: &[TypeId],
        filter: Option<&Filter>,
        allow: Option<&Found>,
        exclude: Option<&Found>,
    ) -> Alive {
        let of_part = |at: usize, part: &Part| -> Vec<Arc<Mask>> {
            let bounds = [(Bound::Allow, allow), (Bound::Exclude, exclude)];
            let bounds: Vec<_> =
                bounds.iter().filter_map(|(bound, ids)| Some((*bound, &(*ids)?.ranks[at][..]))).collect();
            types.iter().map(|&t| part.mask(t, filter, &bounds)).collect()
        };
        Alive {
            types: types.iter().copied().zip(of_part(0, &self.base)).collect(),
            delta: self.delta.as_ref().map(|delta| of_part(1, delta)).unwrap_or_default(),
        }
    }

    /// Whether any item of a request is alive.
    pub fn any_alive(&self, alive: &Alive) -> bool {
        let some = |part: &Part, t: TypeId, mask: &Mask| mask.alive(0..part.catalog.index(t).sids() as u32);
        alive.types.iter().any(|(t, mask)| some(&self.base, *t, mask))
            || self.delta.as_ref().is_some_and(|delta| {
                alive.types.iter().zip(&alive.delta).any(|((t, _), mask)| some(delta, *t, mask))
            })
    }

    /// Makes a SID and all its items dead for a request: the no-repeat rule.
    pub fn forbid(&self, alive: &mut Alive, t: TypeId, codes: &[u16]) {
        let Some(at) = alive.place(t) else { return };
        let masks = std::iter::once(&mut alive.types[at].1).chain(alive.delta.get_mut(at));
        for (part, mask) in self.parts().zip(masks) {
            let index = part.catalog.index(t);
            if let Some(sid) = index.find(codes) {
                *mask = Arc::new(mask.excluding_sids(index, &[sid]));
            }
        }
    }

    /// The items of a finished path's SID that are alive for a request, most popular first, then by id, bytewise.
    pub fn items<'a>(
        &'a self,
        alive: &'a Alive,
        t: TypeId,
        sid: SidIndex,
        codes: &[u16],
    ) -> impl Iterator<Item = Item<'a>> {
        let at = alive.place(t);
        let named = |part: &'a Part, sid: Option<SidIndex>, mask: &'a Mask| {
            let (catalog, index) = (&*part.catalog, part.catalog.index(t));
            let ranks = sid.into_iter().flat_map(move |sid| catalog.by_popularity(t, sid));
            ranks
                .filter(move |&rank| mask.item_alive(index, rank))
                .map(move |rank| catalog.item(t, rank))
                .peekable()
        };
        // A SID that only the delta has is numbered behind the snapshot's.
        let own = Some(sid).filter(|sid| sid.index() < self.index(t).sids());
        let mut first = at.map(|at| named(&self.base, own, &alive.types[at].1));
        let mut second = at.and_then(|at| {
            let delta = self.delta.as_ref()?;
            Some(named(delta, delta.catalog.index(t).find(codes), alive.delta.get(at)?))
        });
        std::iter::from_fn(move || {
            let key = |item: &Item<'a>| (-item.popularity(), item.id());
            let one = first.as_mut().and_then(|items| items.peek().map(key));
            let two = second.as_mut().and_then(|items| items.peek().map(key));
            let take_second = match (one, two) {
                (_, None) => false,
                (None, Some(_)) => true,
                (Some(one), Some(two)) => two < one,
            };
            if take_second { second.as_mut()?.next() } else { first.as_mut()?.next() }
        })
    }
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let added = self.delta.as_ref().map_or(0, |part| part.catalog.len());
        write!(f, "view {}: {} items and {added} added", self.name, self.base.catalog.len())
    }
}
