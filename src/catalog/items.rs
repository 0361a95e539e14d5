//! Items and the snapshot that holds them.
//!
//! A catalog is immutable: ids, titles and attributes lie in columns, in the order of ranks, beside the trie of each type. An id is
//! found through one open-addressed table of 32-bit item numbers that compares against the ids themselves, so that a
//! lookup costs a hash and about two comparisons and no id is stored twice.

use std::collections::BTreeMap;

use serde_json::Value;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::columns::{Column, ColumnBuilder, MAX_TEXT, Strings};
use super::{TypeIndex, TypeSpec};
use crate::error::{Error, Result};
use crate::ids::{Rank, SidIndex, TypeId};

/// Most attributes of a type: each costs a bit per item even where it is missing.
const MAX_ATTRIBUTES: usize = 256;

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
        self.items().titles.text(self.rank.index())
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
struct TypeItems {
    index: TypeIndex,
    ids: Strings,
    titles: Column,
    popularity: Vec<f64>,
    attributes: BTreeMap<String, Column>,
}

/// One immutable version of items and index.
pub struct Catalog {
    snapshot: String,
    names: Vec<String>,
    types: Vec<TypeItems>,
    /// `[types + 1]` number of the first item of each type, counted through all types.
    starts: Vec<u32>,
    ids: IdTable,
    attributes: Vec<String>,
}

impl Catalog {
    /// Name of this snapshot: a digest of its contents, the same for the same items in any order.
    pub fn snapshot(&self) -> &str {
        &self.snapshot
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
        let number = self.ids.find(id, |number| self.id_of(number))?;
        let (t, rank) = self.place(number);
        Some((TypeId(t as u16), Rank(rank)))
    }

    /// The item at a rank.
    ///
    /// # Panics
    /// If there is no such type or item.
    pub fn item(&self, t: TypeId, rank: Rank) -> Item<'_> {
        assert!(rank.index() < self.index(t).items(), "rank {rank} of {} items", self.index(t).items());
        Item { catalog: self, item_type: t, rank }
    }

    /// The items of a SID, most popular first, then by id, bytewise.
    ///
    /// # Panics
    /// If there is no such type or SID.
    pub fn by_popularity(&self, t: TypeId, sid: SidIndex) -> impl Iterator<Item = Rank> + use<> {
        self.index(t).ranks(sid).map(Rank)
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

    /// Bytes of items and tries.
    pub fn bytes(&self) -> usize {
        let columns = |t: &TypeItems| t.attributes.values().map(Column::bytes).sum::<usize>();
        let of_type = |t: &TypeItems| {
            t.index.bytes() + t.ids.bytes() + t.titles.bytes() + 8 * t.popularity.len() + columns(t)
        };
        self.types.iter().map(of_type).sum::<usize>() + 4 * self.ids.slots.len()
    }

    /// Type and rank of an item number.
    fn place(&self, number: u32) -> (usize, u32) {
        let t = self.starts.partition_point(|&start| start <= number) - 1;
        (t, number - self.starts[t])
    }

    fn id_of(&self, number: u32) -> &str {
        let (t, rank) = self.place(number);
        self.types[t].ids.get(rank as usize)
    }

    /// The digest of everything that a request can see of the catalog.
    fn digest(&self) -> String {
        let mut hash = Xxh3::new();
        for (name, items) in self.names.iter().zip(&self.types) {
            let mut feed = |bytes: &[u8]| hash.update(bytes);
            digest_name(name, &mut feed);
            feed(&[items.index.levels() as u8]);
            for level in 0..items.index.levels() {
                feed(&(items.index.codebook(level) as u32).to_le_bytes());
            }
            for sid in 0..items.index.sids() as u32 {
                let ranks = items.index.ranks(SidIndex(sid));
                feed(&(ranks.len() as u32).to_le_bytes());
            }
            for level in 0..items.index.levels() {
                items.index.digest_level(level, &mut feed);
            }
            items.ids.digest(&mut feed);
            items.titles.digest(&mut feed);
            feed(bytemuck::cast_slice(&items.popularity));
            for (name, column) in &items.attributes {
                digest_name(name, &mut feed);
                column.digest(&mut feed);
            }
        }
        format!("{:032x}", hash.digest128())
    }
}

impl std::fmt::Debug for Catalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "catalog {}: {} items of {}", self.snapshot, self.len(), self.names.join(", "))
    }
}

fn digest_name(name: &str, feed: &mut impl FnMut(&[u8])) {
    feed(&(name.len() as u64).to_le_bytes());
    feed(name.as_bytes());
}

/// Item numbers, found by id: open addressing, at most three quarters full.
struct IdTable {
    slots: Vec<u32>,
    used: usize,
}

/// No catalog has that many items.
const EMPTY: u32 = u32::MAX;

impl IdTable {
    fn with_capacity(ids: usize) -> IdTable {
        let slots = (ids + ids / 3 + 2).next_power_of_two();
        IdTable { slots: vec![EMPTY; slots], used: 0 }
    }

    /// The slot that holds `id`, or the empty one where it belongs.
    fn slot<'a>(&self, id: &str, id_of: impl Fn(u32) -> &'a str) -> usize {
        let mut at = xxh3_64(id.as_bytes()) as usize & (self.slots.len() - 1);
        while self.slots[at] != EMPTY && id_of(self.slots[at]) != id {
            at = (at + 1) & (self.slots.len() - 1);
        }
        at
    }

    fn find<'a>(&self, id: &str, id_of: impl Fn(u32) -> &'a str) -> Option<u32> {
        Some(self.slots[self.slot(id, id_of)]).filter(|&number| number != EMPTY)
    }

    /// Adds a number whose id is not in the table.
    fn insert<'a>(&mut self, number: u32, id_of: impl Fn(u32) -> &'a str) {
        if (self.used + 1) * 4 > self.slots.len() * 3 {
            let mut larger = IdTable::with_capacity(self.used * 2);
            for &known in self.slots.iter().filter(|&&number| number != EMPTY) {
                larger.put(known, &id_of);
            }
            *self = larger;
        }
        self.put(number, &id_of);
    }

    fn put<'a>(&mut self, number: u32, id_of: &impl Fn(u32) -> &'a str) {
        let at = self.slot(id_of(number), id_of);
        self.slots[at] = number;
        self.used += 1;
    }
}

/// What is known of a type's items before they are sorted, by row.
struct TypeRows {
    name: String,
    codebooks: Vec<usize>,
    /// Number of each row's item, counted through all types in the order of arrival.
    numbers: Vec<u32>,
    tuples: Vec<u16>,
    popularity: Vec<f64>,
    titles: ColumnBuilder,
    attributes: BTreeMap<String, ColumnBuilder>,
}

/// Collects items and sorts them into a [`Catalog`].
pub struct CatalogBuilder {
    types: Vec<TypeRows>,
    ids: Strings,
    table: IdTable,
}

impl CatalogBuilder {
    /// For the types of a layout (names and codebook sizes; how tokens are spelled does not matter here).
    pub fn new(types: &[TypeSpec]) -> CatalogBuilder {
        let rows = |spec: &TypeSpec| TypeRows {
            name: spec.name.clone(),
            codebooks: spec.levels.clone(),
            numbers: Vec::new(),
            tuples: Vec::new(),
            popularity: Vec::new(),
            titles: ColumnBuilder::like(&Value::String(String::new())),
            attributes: BTreeMap::new(),
        };
        CatalogBuilder {
            types: types.iter().map(rows).collect(),
            ids: Strings::default(),
            table: IdTable::with_capacity(0),
        }
    }

    /// Items so far.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are no items yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds an item.
    ///
    /// # Errors
    /// [`Error::Invalid`] that names the field: an id that is empty or known already, an unknown type, a SID of the wrong length, a code
    /// outside of its codebook, a popularity that is not finite, a text above 1 MiB, more than 256 attributes of a type.
    /// The builder is then as it was.
    pub fn push(&mut self, item: ItemRecord) -> Result<()> {
        let at = self.check(&item)?;
        let number = self.ids.len() as u32;
        self.ids.push(&item.id);
        self.table.insert(number, |number| self.ids.get(number as usize));
        let rows = &mut self.types[at];
        let row = rows.numbers.len() as u32;
        rows.numbers.push(number);
        rows.tuples.extend_from_slice(&item.sid);
        // Adding zero turns -0 into 0, which must not sort below it.
        rows.popularity.push(item.popularity + 0.0);
        if let Some(title) = item.title {
            rows.titles.push(row, &Value::String(title));
        }
        for (name, value) in item.attributes.into_iter().filter(|(_, value)| !value.is_null()) {
            rows.attributes.entry(name).or_insert_with(|| ColumnBuilder::like(&value)).push(row, &value);
        }
        Ok(())
    }

    /// Checks an item and returns the place of its type.
    fn check(&self, item: &ItemRecord) -> Result<usize> {
        if item.id.is_empty() {
            return Err(Error::invalid("id", "an item's id must not be empty"));
        }
        check_length("id", &item.id)?;
        if self.table.find(&item.id, |number| self.ids.get(number as usize)).is_some() {
            return Err(Error::invalid("id", format!("`{}` is the id of an item before", item.id)));
        }
        if self.ids.len() >= EMPTY as usize - 1 {
            return Err(Error::invalid("id", format!("more than {} items", EMPTY - 1)));
        }
        let at = self.find_type(&item.item_type)?;
        let rows = &self.types[at];
        rows.check_sid(&item.sid)?;
        if !item.popularity.is_finite() {
            let message = format!("{} is not a finite number", item.popularity);
            return Err(Error::invalid("popularity", message));
        }
        check_length("title", item.title.as_deref().unwrap_or_default())?;
        let mut attributes = rows.attributes.len();
        for (name, value) in item.attributes.iter().filter(|(_, value)| !value.is_null()) {
            check_value(name, value)?;
            attributes += usize::from(!rows.attributes.contains_key(name));
            if attributes > MAX_ATTRIBUTES {
                let message = format!("type `{}` has more than {MAX_ATTRIBUTES} attributes", rows.name);
                return Err(Error::invalid(name, message));
            }
        }
        Ok(at)
    }

    fn find_type(&self, name: &str) -> Result<usize> {
        if name.is_empty() && self.types.len() == 1 {
            return Ok(0);
        }
        self.types.iter().position(|rows| rows.name == name).ok_or_else(|| {
            let known =
                self.types.iter().map(|rows| format!("`{}`", rows.name)).collect::<Vec<_>>().join(", ");
            let found =
                if name.is_empty() { "no type given".to_owned() } else { format!("unknown type `{name}`") };
            Error::invalid("type", format!("{found}, the layout has {known}"))
        })
    }

    /// Sorts and indexes the items.
    ///
    /// # Errors
    /// If two types have one name, or the levels of a type are not 1 to 8 codebooks of 1 to 65,536 codes.
    pub fn build(self) -> Result<Catalog> {
        let names: Vec<String> = self.types.iter().map(|rows| rows.name.clone()).collect();
        if let Some(at) = (1..names.len()).find(|&at| names[..at].contains(&names[at])) {
            return Err(Error::invalid(
                format!("types[{at}]"),
                format!("a second type named `{}`", names[at]),
            ));
        }
        // The ids are found by rank from now on; drop the table of rows before the new one is made.
        drop(self.table);
        let mut types = Vec::with_capacity(names.len());
        let mut starts = vec![0];
        for (at, rows) in self.types.into_iter().enumerate() {
            let items = rows.sort(&self.ids).map_err(|error| match error {
                Error::Invalid { field, message } => Error::invalid(format!("types[{at}].{field}"), message),
                other => other,
            })?;
            starts.push(starts[at] + items.ids.len() as u32);
            types.push(items);
        }
        drop(self.ids);
        let mut attributes: Vec<String> = types.iter().flat_map(|t| t.attributes.keys().cloned()).collect();
        attributes.sort_unstable();
        attributes.dedup();
        let ids = IdTable::with_capacity(0);
        let mut catalog = Catalog { snapshot: String::new(), names, types, starts, ids, attributes };
        let mut ids = IdTable::with_capacity(catalog.len());
        (0..catalog.len() as u32).for_each(|number| ids.insert(number, |number| catalog.id_of(number)));
        catalog.ids = ids;
        catalog.snapshot = catalog.digest();
        Ok(catalog)
    }
}

impl TypeRows {
    fn check_sid(&self, sid: &[u16]) -> Result<()> {
        if sid.len() != self.codebooks.len() {
            let (name, levels) = (&self.name, self.codebooks.len());
            let message = format!("{} codes, but type `{name}` has {levels} levels", sid.len());
            return Err(Error::invalid("sid", message));
        }
        for (level, (&code, &codes)) in sid.iter().zip(&self.codebooks).enumerate() {
            if usize::from(code) >= codes {
                let message =
                    format!("code {code}, but level {level} of type `{}` has {codes} codes", self.name);
                return Err(Error::invalid(format!("sid[{level}]"), message));
            }
        }
        Ok(())
    }

    fn sort(self, ids: &Strings) -> Result<TypeItems> {
        let id = |row: u32| ids.get(self.numbers[row as usize] as usize).as_bytes();
        let popularity = |row: u32| self.popularity[row as usize];
        let (index, order) = TypeIndex::build(&self.codebooks, &self.tuples, |a, b| {
            popularity(b).total_cmp(&popularity(a)).then_with(|| id(a).cmp(id(b)))
        })?;
        drop(self.tuples);
        let attributes = self.attributes.into_iter();
        Ok(TypeItems {
            index,
            ids: ids.gather(order.iter().map(|&row| self.numbers[row as usize])),
            titles: self.titles.finish(&order),
            popularity: order.iter().map(|&row| self.popularity[row as usize]).collect(),
            attributes: attributes.map(|(name, column)| (name, column.finish(&order))).collect(),
        })
    }
}

fn check_length(field: &str, text: &str) -> Result<()> {
    if text.len() > MAX_TEXT {
        return Err(Error::invalid(field, format!("{} bytes, at most {MAX_TEXT}", text.len())));
    }
    Ok(())
}

/// Checks that whatever column a value may end in can hold it: as a string, or as JSON text.
fn check_value(name: &str, value: &Value) -> Result<()> {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
        _ => check_length(name, &value.to_string()),
    }
}
