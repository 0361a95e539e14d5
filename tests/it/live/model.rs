//! What a live catalog should be, kept in plain maps.

use std::collections::{BTreeMap, BTreeSet};

use sidereal::catalog::{ItemRecord, LiveCatalog};
use sidereal::ids::{SidIndex, TypeId};

/// Items by id, and what is denied.
#[derive(Clone, Default)]
pub struct Model {
    pub items: BTreeMap<String, ItemRecord>,
    pub denied: BTreeSet<String>,
}

impl Model {
    pub fn new(records: impl IntoIterator<Item = ItemRecord>) -> Model {
        let items = records.into_iter().map(|record| (record.id.clone(), record)).collect();
        Model { items, denied: BTreeSet::new() }
    }

    /// Ids of each SID, most popular first, of what may be named.
    fn by_sid(&self, keep: impl Fn(&str) -> bool) -> BTreeMap<(&str, &[u16]), Vec<&str>> {
        let mut sids: BTreeMap<(&str, &[u16]), Vec<&ItemRecord>> = BTreeMap::new();
        for item in self.items.values() {
            if !self.denied.contains(&item.id) && keep(&item.id) {
                sids.entry((&item.item_type, &item.sid)).or_default().push(item);
            }
        }
        for items in sids.values_mut() {
            items.sort_by(|a, b| b.popularity.total_cmp(&a.popularity).then(a.id.cmp(&b.id)));
        }
        sids.into_iter()
            .map(|(sid, items)| (sid, items.iter().map(|item| item.id.as_str()).collect()))
            .collect()
    }

    /// Asserts that a request sees exactly these items, under the SIDs of both catalogs and in order.
    pub fn assert_seen(&self, live: &LiveCatalog, allow: Option<&[String]>, exclude: Option<&[String]>) {
        let view = live.view();
        let types: Vec<TypeId> = (0..view.types().len() as u16).map(TypeId).collect();
        let find = |ids: Option<&[String]>| ids.map(|ids| view.find_all(ids));
        let (allowed, excluded) = (find(allow), find(exclude));
        let alive = view.alive(&types, None, allowed.as_ref(), excluded.as_ref());
        let expected = self.by_sid(|id| {
            allow.is_none_or(|ids| ids.iter().any(|known| known == id))
                && exclude.is_none_or(|ids| ids.iter().all(|known| known != id))
        });
        let mut seen: BTreeMap<(&str, Vec<u16>), Vec<&str>> = BTreeMap::new();
        for &t in &types {
            let base = view.base().index(t);
            let own = (0..base.sids() as u32).map(|sid| (SidIndex(sid), base.codes(SidIndex(sid))));
            let added = view.delta().into_iter().flat_map(|delta| {
                let index = delta.index(t);
                let behind = base.sids() as u32;
                (0..index.sids() as u32).map(move |sid| (SidIndex(behind + sid), index.codes(SidIndex(sid))))
            });
            for (sid, codes) in own.chain(added.filter(|(_, codes)| base.find(codes).is_none())) {
                let ids: Vec<&str> = view.items(&alive, t, sid, &codes).map(|item| item.id()).collect();
                if !ids.is_empty() {
                    seen.insert((view.types()[t.index()].as_str(), codes), ids);
                }
            }
        }
        let expected: BTreeMap<(&str, Vec<u16>), Vec<&str>> =
            expected.into_iter().map(|((t, codes), ids)| ((t, codes.to_vec()), ids)).collect();
        assert_eq!(seen, expected);
        assert_eq!(view.any_alive(&alive), !expected.is_empty());
        for (id, item) in &self.items {
            let found = view.find(id).unwrap_or_else(|| panic!("{id} is gone"));
            assert_eq!((found.codes(), found.popularity()), (item.sid.clone(), item.popularity), "{id}");
            assert_eq!(found.title(), item.title.as_deref(), "{id}");
        }
    }
}
