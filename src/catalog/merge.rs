//! One catalog of two, without looking at a value twice: how a catalog takes in what changed since it was built.

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;

use super::builder::{MAX_ATTRIBUTES, MAX_ITEMS, by_popularity};
use super::columns::{Column, gather};
use super::items::TypeItems;
use super::strings::{self, Strings};
use super::{Bitmap, Catalog, TypeIndex};
use crate::error::{Error, Result};
use crate::ids::{Rank, TypeId};

impl Catalog {
    /// The items of `base` without `removed` (ranks of each type, in any order, repeats allowed), and those of `delta`.
    ///
    /// The result is the catalog that [`super::CatalogBuilder`] makes of the items that remain, under the same name, with one exception: integers that were
    /// stored as floats, because there were floats beside them, stay floats when those are removed.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the two have different types or codebooks, `removed` does not have a list per type or has ranks that do not exist, an id
    /// is in both and not removed, an attribute has kinds that do not go together, or there are more than 256 attributes of a type.
    pub fn merged(base: &Catalog, delta: &Catalog, removed: &[Vec<Rank>]) -> Result<Catalog> {
        check(base, delta, removed)?;
        let gone: Vec<Bitmap> =
            removed.iter().zip(base.parts()).map(|(ranks, items)| mark(ranks, items)).collect();
        check_ids(base, delta, &gone)?;
        let mut parts = Vec::with_capacity(gone.len());
        for (t, gone) in gone.iter().enumerate() {
            let pair = Pair { base: &base.parts()[t], delta: &delta.parts()[t], name: &base.types()[t] };
            parts.push(pair.merge(gone)?);
        }
        Ok(Catalog::seal(base.types().to_vec(), parts))
    }
}

fn check(base: &Catalog, delta: &Catalog, removed: &[Vec<Rank>]) -> Result<()> {
    let codebooks = |catalog: &Catalog, t: usize| {
        let index = &catalog.parts()[t].index;
        (0..index.levels()).map(|level| index.codebook(level)).collect::<Vec<usize>>()
    };
    if base.types() != delta.types() {
        let message = format!("types {:?}, the catalog has {:?}", delta.types(), base.types());
        return Err(Error::invalid("delta", message));
    }
    if removed.len() != base.types().len() {
        let message = format!("lists for {} types, the catalog has {}", removed.len(), base.types().len());
        return Err(Error::invalid("removed", message));
    }
    for (t, (name, ranks)) in base.types().iter().zip(removed).enumerate() {
        let (ours, theirs) = (codebooks(base, t), codebooks(delta, t));
        if ours != theirs {
            let message = format!("codebooks {theirs:?} of type `{name}`, the catalog has {ours:?}");
            return Err(Error::invalid("delta", message));
        }
        let items = base.index(TypeId(t as u16)).items();
        if let Some(at) = ranks.iter().position(|rank| rank.index() >= items) {
            let message = format!("rank {} of type `{name}`, which has {items} items", ranks[at]);
            return Err(Error::invalid(format!("removed[{t}][{at}]"), message));
        }
    }
    match base.len() + delta.len() {
        0..=MAX_ITEMS => Ok(()),
        total => Err(Error::invalid("delta", format!("{total} items together, at most {MAX_ITEMS}"))),
    }
}

fn mark(ranks: &[Rank], items: &TypeItems) -> Bitmap {
    let mut words = vec![0u64; items.ids.len().div_ceil(64)];
    ranks.iter().for_each(|rank| words[rank.index() / 64] |= 1 << (rank.index() % 64));
    Bitmap::from_words(items.ids.len(), words)
}

/// No item of the delta has the id of one that stays.
fn check_ids(base: &Catalog, delta: &Catalog, gone: &[Bitmap]) -> Result<()> {
    for items in delta.parts() {
        let ranks: Vec<u32> = (0..items.ids.len() as u32).collect();
        let found = base.find_all_by(&ranks, |&rank| items.ids.get(rank as usize));
        let stays = |&place: &Option<(TypeId, Rank)>| {
            place.is_some_and(|(t, rank)| !gone[t.index()].get(rank.index()))
        };
        if let Some(rank) = found.par_iter().position_first(stays) {
            let message = format!("`{}` is in both catalogs and not removed", items.ids.get(rank));
            return Err(Error::invalid("delta", message));
        }
    }
    Ok(())
}

/// The two halves of a type.
struct Pair<'a> {
    base: &'a TypeItems,
    delta: &'a TypeItems,
    name: &'a str,
}

impl Pair<'_> {
    fn merge(&self, gone: &Bitmap) -> Result<TypeItems> {
        let split = self.base.ids.len() as u32;
        let all = split + self.delta.ids.len() as u32;
        // Items of both halves, counted through: first those that stay.
        let rows: Vec<u32> = (0..all).filter(|&item| item >= split || !gone.get(item as usize)).collect();
        let kept = rows.partition_point(|&item| item < split);
        let codebooks: Vec<usize> =
            (0..self.base.index.levels()).map(|level| self.base.index.codebook(level)).collect();
        let mut tuples = self.base.index.tuples(&rows[..kept]);
        let new: Vec<u32> = rows[kept..].iter().map(|&item| item - split).collect();
        tuples.extend(self.delta.index.tuples(&new));
        let half = |item: u32| {
            if item < split { (self.base, item as usize) } else { (self.delta, (item - split) as usize) }
        };
        let id = |item: u32| {
            let (items, rank) = half(item);
            items.ids.get_bytes(rank)
        };
        let popularity = |item: u32| {
            let (items, rank) = half(item);
            items.popularity[rank]
        };
        let before = by_popularity(popularity, id);
        let before = |a: u32, b: u32| before(rows[a as usize], rows[b as usize]);
        let (index, order) = TypeIndex::build(&codebooks, &tuples, before)?;
        drop(tuples);
        let picks: Vec<u32> = order.par_iter().map(|&row| rows[row as usize]).collect();
        drop((order, rows));
        let id = |at: usize| id(picks[at]);
        let (text, ends) =
            strings::gather(picks.len(), |at| id(at).len(), |at, to| to.copy_from_slice(id(at)));
        let column = |name: &str, base: Option<&Column>, delta: Option<&Column>| {
            let parts = [(self.base.ids.len(), base), (self.delta.ids.len(), delta)];
            gather(&parts, &picks)
                .map_err(|message| Error::invalid(name, format!("{message} `{}`", self.name)))
        };
        Ok(TypeItems {
            index,
            ids: Strings::from_parts(text, ends),
            popularity: picks.par_iter().map(|&item| popularity(item)).collect::<Vec<f64>>().into(),
            title: column("title", self.base.title.as_ref(), self.delta.title.as_ref())?,
            attributes: self.attributes(column)?,
        })
    }

    fn attributes(
        &self,
        column: impl Fn(&str, Option<&Column>, Option<&Column>) -> Result<Option<Column>>,
    ) -> Result<BTreeMap<String, Column>> {
        let names: BTreeSet<&String> =
            self.base.attributes.keys().chain(self.delta.attributes.keys()).collect();
        let mut attributes = BTreeMap::new();
        for name in names {
            let halves = (self.base.attributes.get(name), self.delta.attributes.get(name));
            if let Some(column) = column(name, halves.0, halves.1)? {
                attributes.insert(name.clone(), column);
            }
        }
        if attributes.len() > MAX_ATTRIBUTES {
            let message =
                format!("type `{}` has {} attributes, at most {MAX_ATTRIBUTES}", self.name, attributes.len());
            return Err(Error::invalid("delta", message));
        }
        Ok(attributes)
    }
}
