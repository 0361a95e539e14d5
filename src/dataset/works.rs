//! What a catalog says about its items, in the words that prompts and answers use.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::Value;

use crate::catalog::Catalog;
use crate::error::{Error, Result};
use crate::ids::{Rank, TypeId};

/// An item as people speak of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Work {
    /// Item id.
    pub id: String,
    /// Place of its type in [`Works::types`].
    pub item_type: usize,
    /// Its title; the id where it has none.
    pub title: String,
    /// Attribute `creator`: author, director, artist.
    pub creator: Option<String>,
    /// Attribute `year`.
    pub year: Option<i64>,
    /// Attribute `genres`, as the catalog spells them.
    pub genres: Vec<String>,
    /// Attribute `about`: one plain sentence.
    pub about: Option<String>,
    /// Popularity.
    pub popularity: f64,
}

impl Work {
    /// First year of its decade.
    pub fn decade(&self) -> Option<i64> {
        self.year.and_then(|year| year.div_euclid(10).checked_mul(10))
    }
}

/// All items of a catalog, sorted by type and id, so that nothing drawn from them depends on their SIDs.
#[derive(Clone, Debug, Default)]
pub struct Works {
    types: Vec<String>,
    works: Vec<Work>,
    by_id: HashMap<String, usize>,
    /// Per type the end of its works.
    ends: Vec<usize>,
}

impl Works {
    /// Reads the attributes `creator`, `year`, `genres` and `about` of all items.
    ///
    /// # Errors
    /// If the catalog is empty.
    pub fn of(catalog: &Catalog) -> Result<Works> {
        let mut works = Vec::with_capacity(catalog.len());
        for (number, _) in catalog.types().iter().enumerate() {
            let t = TypeId(number as u16);
            let ranks = catalog.popularity(t).len();
            works.extend((0..ranks as u32).map(|rank| work(catalog, t, Rank(rank))));
        }
        Works::new(catalog.types().to_vec(), works)
    }

    /// Of works; those of one type need not be neighbours.
    ///
    /// # Errors
    /// If there are none.
    pub fn new(types: Vec<String>, mut works: Vec<Work>) -> Result<Works> {
        if works.is_empty() {
            return Err(Error::invalid("catalog", "it has no items, and nothing can be said about none"));
        }
        works.sort_by(|a, b| (a.item_type, &a.id).cmp(&(b.item_type, &b.id)));
        let by_id = works.iter().enumerate().map(|(place, work)| (work.id.clone(), place)).collect();
        let ends = (0..types.len()).map(|t| works.partition_point(|work| work.item_type <= t)).collect();
        Ok(Works { types, works, by_id, ends })
    }

    /// Type names, in the catalog's order.
    pub fn types(&self) -> &[String] {
        &self.types
    }

    /// All works.
    pub fn all(&self) -> &[Work] {
        &self.works
    }

    /// Places of the works of a type.
    pub fn of_type(&self, item_type: usize) -> std::ops::Range<usize> {
        let start = if item_type == 0 { 0 } else { self.ends[item_type - 1] };
        start..self.ends[item_type]
    }

    /// The place of an item.
    pub fn find(&self, id: &str) -> Option<usize> {
        self.by_id.get(id).copied()
    }

    /// The name of a work's type.
    pub fn type_of(&self, work: &Work) -> &str {
        &self.types[work.item_type]
    }

    /// Places of the works by (type, creator), in the order of the names.
    pub fn by_creator(&self) -> BTreeMap<(usize, &str), Vec<usize>> {
        self.grouped(|work| work.creator.as_deref().into_iter().collect())
    }

    /// Places of the works by (type, (genre, decade)), in the order of the names.
    pub fn by_genre_and_decade(&self) -> BTreeMap<(usize, (&str, i64)), Vec<usize>> {
        self.grouped(|work| {
            let of = |decade| work.genres.iter().map(|genre| (genre.as_str(), decade)).collect();
            work.decade().map(of).unwrap_or_default()
        })
    }

    fn grouped<'a, K: Ord>(&'a self, keys: impl Fn(&'a Work) -> Vec<K>) -> BTreeMap<(usize, K), Vec<usize>> {
        let mut groups: BTreeMap<(usize, K), Vec<usize>> = BTreeMap::new();
        for (place, work) in self.works.iter().enumerate() {
            for key in keys(work) {
                groups.entry((work.item_type, key)).or_default().push(place);
            }
        }
        groups
    }
}

/// What the catalog says of an item; empty texts say nothing, and a genre is said once.
fn work(catalog: &Catalog, t: TypeId, rank: Rank) -> Work {
    let item = catalog.item(t, rank);
    let said = |text: &str| Some(text.trim().to_owned()).filter(|text| !text.is_empty());
    let text = |name: &str| match item.attribute(name)? {
        Value::String(text) => said(&text),
        // A list of one, as sources of several creators write it.
        Value::Array(list) => said(list.first()?.as_str()?),
        _ => None,
    };
    let mut genres: Vec<String> = match item.attribute("genres") {
        Some(Value::Array(list)) => list.iter().filter_map(|genre| said(genre.as_str()?)).collect(),
        Some(Value::String(genre)) => said(&genre).into_iter().collect(),
        _ => Vec::new(),
    };
    let mut seen = HashSet::new();
    genres.retain(|genre| seen.insert(genre.clone()));
    Work {
        id: item.id().to_owned(),
        item_type: t.index(),
        title: item.title().and_then(said).unwrap_or_else(|| item.id().to_owned()),
        creator: text("creator"),
        year: item.attribute("year").and_then(|year| year.as_i64()),
        genres,
        about: text("about"),
        popularity: item.popularity(),
    }
}
