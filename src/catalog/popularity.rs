//! Another popularity for the same items.
//!
//! Ranks name items wherever a request is under way, so they stay; which of the items of a SID goes first is a matter of an order beside them.

use rayon::prelude::*;

use super::builder::by_popularity;
use super::items::TypeItems;
use super::{Array, Catalog};
use crate::error::{Error, Result};

/// SIDs per task.
const GRAIN: usize = 4096;

impl Catalog {
    /// This catalog with other popularities, `values[type][rank]`; all else is shared.
    ///
    /// The snapshot has another name, since that is a digest of the contents. Ranks stay what they were: [`Catalog::by_popularity`] knows the order.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there is not one finite value for every item of every type.
    pub fn with_popularity(&self, values: Vec<Vec<f64>>) -> Result<Catalog> {
        if values.len() != self.types().len() {
            let message = format!("values of {} types, the catalog has {}", values.len(), self.types().len());
            return Err(Error::invalid("popularity", message));
        }
        let mut parts = self.parts().to_vec();
        for (t, (items, mut values)) in parts.iter_mut().zip(values).enumerate() {
            let name = &self.types()[t];
            if values.len() != items.ids.len() {
                let message = format!("{} values, type `{name}` has {} items", values.len(), items.ids.len());
                return Err(Error::invalid(format!("popularity[{t}]"), message));
            }
            if let Some(rank) = values.par_iter().position_first(|value| !value.is_finite()) {
                let message = format!("{} is not a finite number", values[rank]);
                return Err(Error::invalid(format!("popularity[{t}][{rank}]"), message));
            }
            // Adding zero turns -0 into 0, which must not sort below it.
            values.par_iter_mut().for_each(|value| *value += 0.0);
            items.popularity = values.into();
            items.index = items.index.with_preferred(preferred(items));
        }
        Ok(self.with_parts(parts))
    }

    /// This catalog with other popularities of some items, by id; of repeated ids the last counts. Returns how many ids are unknown, too.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the first value that is not finite.
    pub fn with_popularity_of<I: AsRef<str> + Sync>(&self, changes: &[(I, f64)]) -> Result<(Catalog, usize)> {
        if let Some(at) = changes.par_iter().position_first(|(_, value)| !value.is_finite()) {
            let (id, value) = (changes[at].0.as_ref(), changes[at].1);
            let message = format!("{value} of `{id}` is not a finite number");
            return Err(Error::invalid(format!("popularity[{at}]"), message));
        }
        let found = self.find_all_by(changes, |(id, _)| id.as_ref());
        let mut values: Vec<Vec<f64>> = self.parts().iter().map(|items| items.popularity.to_vec()).collect();
        let mut unknown = 0;
        for (place, &(_, value)) in found.into_iter().zip(changes) {
            match place {
                Some((t, rank)) => values[t.index()][rank.index()] = value,
                None => unknown += 1,
            }
        }
        Ok((self.with_popularity(values)?, unknown))
    }
}

/// The ranks of each SID by popularity; empty if that is the order of ranks.
fn preferred(items: &TypeItems) -> Array<u32> {
    let (first_item, count) = (items.index.first_item(), items.index.items());
    if !items.index.has_collisions() {
        return Array::default();
    }
    let before =
        by_popularity(|rank| items.popularity[rank as usize], |rank| items.ids.get_bytes(rank as usize));
    let mut ranks: Vec<u32> = (0..count as u32).collect();
    let mut rest = ranks.as_mut_slice();
    let mut tasks = Vec::new();
    for from in (0..items.index.sids()).step_by(GRAIN) {
        let bounds = &first_item[from..=items.index.sids().min(from + GRAIN)];
        let (ranks, behind) = rest.split_at_mut((bounds[bounds.len() - 1] - bounds[0]) as usize);
        tasks.push((bounds, ranks));
        rest = behind;
    }
    let changed = tasks.into_par_iter().map(|(bounds, ranks)| {
        let mut changed = false;
        for pair in bounds.windows(2).filter(|pair| pair[1] - pair[0] > 1) {
            let of_sid = &mut ranks[(pair[0] - bounds[0]) as usize..(pair[1] - bounds[0]) as usize];
            if !of_sid.is_sorted_by(|&a, &b| before(a, b).is_lt()) {
                of_sid.sort_unstable_by(|&a, &b| before(a, b));
                changed = true;
            }
        }
        changed
    });
    // Every task has to be done: no short cut.
    if changed.reduce(|| false, |a, b| a | b) { ranks.into() } else { Array::default() }
}
