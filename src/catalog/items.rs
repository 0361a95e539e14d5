//! Items and the snapshot that holds them.
//!
//! A catalog is immutable: ids, titles and attributes lie in columns, in the order of ranks, beside the trie of each type. An id is
//! found through one open-addressed table of 32-bit item numbers that compares against the ids themselves, so that a
//! lookup costs a hash and about two comparisons and no id is stored twice.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use serde_json::Value;

use super::columns::Column;
use super::id_table::IdTable;
use super::strings::Strings;
use super::{Array, TypeIndex, snapshot};
use crate::ids::{Rank, SidIndex, TypeId};

/// One item as a source spells it.
#[derive(Clone, Debug, Default)]
pub struct ItemRecord {
    /// Its id, unique in the catalog, not empty.
    pub id: String,
    /// Name of its type; may be empty if the layout has one type.
    pub item_type: String,
    /// Its title.
    pub title: Option<String>,
    /// Decides between items of one SID, highest first; finite.
    pub popularity: f64,
    /// Its codes, one per level of its type.
    pub sid: Vec<u16>,
    /// Everything else; nulls are missing values.
    pub attributes: serde_json::Map<String, Value>,
}

/// An item of a catalog.
#[derive(Clone, Copy)]
pub struct Item<'a> {
    catalog: &'a Catalog,
    item_type: TypeId,
    rank: Rank,
}

impl<'a> Item<'a> {
    fn items(&self) -> &'a TypeItems {
        &self.catalog.types[self.item_type.index()]
    }

    /// Its id.
    pub fn id(&self) -> &'a str {
        self.items().ids.get(self.rank.index())
    }

    /// Its title.
    pub fn title(&self) -> Option<&'a str> {
        self.items().title.as_ref()?.text(self.rank.index())
    }

    /// Its popularity.
    pub fn popularity(&self) -> f64 {
        self.items().popularity[self.rank.index()]
    }

    /// Its value of an attribute; `None` if it has none.
    pub fn attribute(&self, name: &str) -> Option<Value> {
        self.items().attributes.get(name)?.value(self.rank.index())
    }

    /// Its type.
    pub fn item_type(&self) -> TypeId {
        self.item_type
    }

    /// Its place among the items of its type.
    pub fn rank(&self) -> Rank {
        self.rank
    }

    /// Its SID.
    pub fn sid(&self) -> SidIndex {
        self.items().index.sid_of(self.rank)
    }

    /// Its codes, one per level.
    pub fn codes(&self) -> Vec<u16> {
        self.items().index.codes(self.sid())
    }
}

impl std::fmt::Debug for Item<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?}", self.id(), self.codes())
    }
}

/// The items of one type, in rank order.
#[derive(Clone)]
pub(super) struct TypeItems {
    pub index: TypeIndex,
    pub ids: Strings,
    pub popularity: Array<f64>,
    /// None if no item has a title.
    pub title: Option<Column>,
    /// Each with a value at least.
    pub attributes: BTreeMap<String, Column>,
}

/// One immutable version of items and index; cloning shares all arrays.
#[derive(Clone)]
pub struct Catalog {
    snapshot: String,
    names: Vec<String>,
    types: Vec<TypeItems>,
    /// `[types + 1]` number of the first item of each type, counted through all types.
    starts: Vec<u32>,
    ids: IdTable,
    attributes: Vec<String>,
    /// Of every section of a file of this catalog, in order.
    checksums: Arc<[u64]>,
    source: Option<PathBuf>,
}

impl Catalog {
    /// A catalog of complete types.
    pub(super) fn seal(names: Vec<String>, types: Vec<TypeItems>) -> Catalog {
        let mut catalog = Catalog::of_parts(names, types, Array::default());
        catalog.ids = IdTable::build(catalog.len(), |number| catalog.id_of(number));
        catalog.checksums = snapshot::checksums(&catalog);
        catalog.snapshot = snapshot::digest(&catalog);
        catalog
    }

    /// The same items with other popularities and orders; what did not change keeps its checksums.
    pub(super) fn with_parts(&self, types: Vec<TypeItems>) -> Catalog {
        let mut catalog = Catalog { types, source: None, ..self.clone() };
        catalog.checksums = snapshot::checksums_after(self, &catalog);
        catalog.snapshot = snapshot::digest(&catalog);
        catalog
    }

    /// A catalog of parts, without a name yet.
    pub(super) fn of_parts(names: Vec<String>, types: Vec<TypeItems>, slots: Array<u32>) -> Catalog {
        let mut starts = vec![0];
        starts.extend(types.iter().scan(0, |sum, items| {
            *sum += items.ids.len() as u32;
            Some(*sum)
        }));
        let mut attributes: Vec<String> = types.iter().flat_map(|t| t.attributes.keys().cloned()).collect();
        attributes.sort_unstable();
        attributes.dedup();
        let ids = IdTable::over(starts[types.len()] as usize, slots);
        let (snapshot, checksums) = (String::new(), Arc::new([]));
        Catalog { snapshot, names, types, starts, ids, attributes, checksums, source: None }
    }

    /// The same parts under the name of a snapshot that a file states.
    pub(super) fn named(self, snapshot: String, checksums: Vec<u64>, source: &Path) -> Catalog {
        Catalog { snapshot, checksums: checksums.into(), source: Some(source.to_path_buf()), ..self }
    }

    /// The parts of each type.
    pub(super) fn parts(&self) -> &[TypeItems] {
        &self.types
    }

    /// The table of ids.
    pub(super) fn id_table(&self) -> &IdTable {
        &self.ids
    }

    /// Checksums of the sections.
    pub(super) fn checksums(&self) -> &[u64] {
        &self.checksums
    }

    /// Name of this snapshot: a digest of its contents, the same for the same items in any order.
    pub fn snapshot(&self) -> &str {
        &self.snapshot
    }

    /// The file that this catalog is mapped from; `None` if it lies in memory.
    pub fn source_path(&self) -> Option<&Path> {
        self.source.as_deref()
    }

    /// A digest of what a layout must have in common with this catalog: the names and codebooks of the types, in order.
    pub fn layout_hash(&self) -> u64 {
        snapshot::layout_hash(self)
    }

    /// Type names in type order.
    pub fn types(&self) -> &[String] {
        &self.names
    }

    /// The type of a name.
    pub fn type_id(&self, name: &str) -> Option<TypeId> {
        self.names.iter().position(|known| known == name).map(|at| TypeId(at as u16))
    }

    /// The trie of a type.
    ///
    /// # Panics
    /// If there is no such type.
    #[expect(clippy::should_implement_trait, reason = "`catalog[t]` would not say what of the type it is")]
    pub fn index(&self, t: TypeId) -> &TypeIndex {
        &self.types[t.index()].index
    }

    /// Finds an item by id.
    pub fn find(&self, id: &str) -> Option<(TypeId, Rank)> {
        self.ids.find(id.as_bytes(), |number| self.id_of(number)).map(|number| self.place(number))
    }

    /// Finds many items by id, each as [`Catalog::find`] does, several times as fast in a large catalog.
    pub fn find_all<I: AsRef<str> + Sync>(&self, ids: &[I]) -> Vec<Option<(TypeId, Rank)>> {
        self.find_all_by(ids, |id| id.as_ref())
    }

    /// Finds the items of many things that have an id.
    pub(super) fn find_all_by<'a, K: Sync>(
        &self,
        keys: &'a [K],
        id: impl Fn(&'a K) -> &'a str + Sync,
    ) -> Vec<Option<(TypeId, Rank)>> {
        let mut found = vec![None; keys.len()];
        let batch = |found: &mut [Option<(TypeId, Rank)>], keys: &'a [K]| {
            let mut ids: [&[u8]; IdTable::batch()] = [&[]; IdTable::batch()];
            ids.iter_mut().zip(keys).for_each(|(to, key)| *to = id(key).as_bytes());
            let mut numbers = [None; IdTable::batch()];
            self.ids.find_batch(&ids[..keys.len()], |number| self.id_of(number), &mut numbers);
            for (to, number) in found.iter_mut().zip(numbers) {
                *to = number.map(|number| self.place(number));
            }
        };
        let size = IdTable::batch();
        // A few thousand are found sooner than other threads wake up.
        if keys.len() < 1 << 13 {
            found.chunks_mut(size).zip(keys.chunks(size)).for_each(|(found, keys)| batch(found, keys));
        } else {
            let batches = found.par_chunks_mut(size).zip(keys.par_chunks(size)).with_min_len(64);
            batches.for_each(|(found, keys)| batch(found, keys));
        }
        found
    }

    /// The item at a rank.
    ///
    /// # Panics
    /// If there is no such type or item.
    pub fn item(&self, t: TypeId, rank: Rank) -> Item<'_> {
        assert!(rank.index() < self.index(t).items(), "rank {rank} of {} items", self.index(t).items());
        Item { catalog: self, item_type: t, rank }
    }

    /// The items of a SID, most popular first, then by id.
    ///
    /// # Panics
    /// If there is no such type or SID.
    pub fn by_popularity(&self, t: TypeId, sid: SidIndex) -> impl ExactSizeIterator<Item = Rank> + use<'_> {
        self.index(t).by_popularity(sid)
    }

    /// Items of all types.
    pub fn len(&self) -> usize {
        self.starts[self.types.len()] as usize
    }

    /// Whether there are no items.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Names of the attributes that any item has, sorted.
    pub fn attributes(&self) -> &[String] {
        &self.attributes
    }

    /// Whether any item has an attribute of this name.
    pub fn has_attribute(&self, name: &str) -> bool {
        self.attributes.binary_search_by(|known| known.as_str().cmp(name)).is_ok()
    }

    /// The values of an attribute of one type; `None` if no item of the type has it.
    ///
    /// # Panics
    /// If there is no such type.
    pub fn column(&self, t: TypeId, name: &str) -> Option<&Column> {
        self.types[t.index()].attributes.get(name)
    }

    /// The attributes of one type, sorted by name.
    ///
    /// # Panics
    /// If there is no such type.
    pub fn columns(&self, t: TypeId) -> impl ExactSizeIterator<Item = (&str, &Column)> {
        self.types[t.index()].attributes.iter().map(|(name, column)| (name.as_str(), column))
    }

    /// The ids of one type, by rank.
    ///
    /// # Panics
    /// If there is no such type.
    pub fn ids(&self, t: TypeId) -> &Strings {
        &self.types[t.index()].ids
    }

    /// The popularity of the items of one type, by rank.
    ///
    /// # Panics
    /// If there is no such type.
    pub fn popularity(&self, t: TypeId) -> &[f64] {
        &self.types[t.index()].popularity
    }

    /// Bytes of items and tries.
    pub fn bytes(&self) -> usize {
        let of_type = |t: &TypeItems| {
            let columns = t.title.iter().chain(t.attributes.values()).map(Column::bytes).sum::<usize>();
            t.index.bytes() + t.ids.bytes() + 8 * t.popularity.len() + columns
        };
        self.types.iter().map(of_type).sum::<usize>() + 4 * self.ids.slots().len()
    }

    /// Type and rank of an item number.
    fn place(&self, number: u32) -> (TypeId, Rank) {
        let t = self.starts.partition_point(|&start| start <= number) - 1;
        (TypeId(t as u16), Rank(number - self.starts[t]))
    }

    fn id_of(&self, number: u32) -> &[u8] {
        let (t, rank) = self.place(number);
        self.types[t.index()].ids.get_bytes(rank.index())
    }
}

impl std::fmt::Debug for Catalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "catalog {}: {} items of {}", self.snapshot, self.len(), self.names.join(", "))
    }
}
