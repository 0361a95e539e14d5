//! Items found by id.
//!
//! One 32-bit slot per item and a half: the item's number in the low bits, and in the bits that numbers leave free (eight at ten million
//! items) a part of the id's hash, so that an id is nearly never compared with another. Open addressing from the slot that the hash names;
//! items of one slot lie in a fixed order, and the last ones may lie past the slots that hashes name, so that nothing wraps around.
//! A lookup is a hash, a slot, two ends and a text: three cache misses, which [`IdTable::find_all`] overlaps for many ids.

use rayon::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use super::Array;
use super::order::bits;

/// No item is here.
const EMPTY: u32 = u32::MAX;

/// Ids looked up together: as many as a processor has cache misses in flight, and more do not help.
const BATCH: usize = 32;

/// The slots of all items of a catalog.
#[derive(Clone, Debug, Default)]
pub(super) struct IdTable {
    slots: Array<u32>,
    homes: u32,
    number_bits: u32,
}

/// Slots that hashes name, of a table of `items` items.
pub(super) fn homes(items: usize) -> usize {
    (items + items / 2 + 1).min(u32::MAX as usize)
}

impl IdTable {
    /// The table of items numbered from 0 to `items`.
    pub fn build<'a>(items: usize, id_of: impl Fn(u32) -> &'a [u8] + Sync) -> IdTable {
        let mut table = IdTable::over(items, Array::default());
        let key = |number: u32| {
            let hash = xxh3_64(id_of(number));
            (table.home(hash) as u64) << 32 | u64::from(table.tag(hash) | number)
        };
        let mut keys: Vec<u64> = (0..items as u32).into_par_iter().with_min_len(1024).map(key).collect();
        keys.par_sort_unstable();
        let mut slots = vec![EMPTY; table.homes as usize];
        let mut next = 0;
        for key in keys {
            let at = next.max((key >> 32) as usize);
            match slots.get_mut(at) {
                Some(slot) => *slot = key as u32,
                None => slots.push(key as u32),
            }
            next = at + 1;
        }
        slots.shrink_to_fit();
        table.slots = slots.into();
        table
    }

    /// A table as a file holds it; nothing is looked at.
    pub fn over(items: usize, slots: Array<u32>) -> IdTable {
        IdTable { slots, homes: homes(items) as u32, number_bits: bits(items + 1) }
    }

    /// All slots.
    pub fn slots(&self) -> &Array<u32> {
        &self.slots
    }

    /// The slots that are taken, and the number in each.
    pub fn numbers(&self) -> impl Iterator<Item = (usize, u32)> + Clone {
        let taken = self.slots.iter().enumerate().filter(|&(_, &slot)| slot != EMPTY);
        taken.map(|(at, &slot)| (at, slot & self.mask()))
    }

    /// The number of an id among ids of which `id_of` tells each.
    pub fn find<'a>(&self, id: &[u8], id_of: impl Fn(u32) -> &'a [u8]) -> Option<u32> {
        let hash = xxh3_64(id);
        self.walk(self.home(hash), hash, |number| id_of(number) == id)
    }

    /// The numbers of at most [`IdTable::batch`] ids. Each stage asks for memory on behalf of all ids before the next stage needs any of it.
    pub fn find_batch<'a>(&self, ids: &[&[u8]], id_of: impl Fn(u32) -> &'a [u8], found: &mut [Option<u32>]) {
        let mut hashes = [0; BATCH];
        let mut touched = 0u32;
        for (hash, &id) in hashes.iter_mut().zip(ids) {
            *hash = xxh3_64(id);
            touched ^= self.slots.get(self.home(*hash)).copied().unwrap_or_default();
        }
        let mut texts: [(u32, &[u8]); BATCH] = [(EMPTY, &[]); BATCH];
        for (text, &hash) in texts.iter_mut().zip(&hashes[..ids.len()]) {
            if let Some(number) = self.walk(self.home(hash), hash, |_| true) {
                *text = (number, id_of(number));
            }
        }
        for (_, text) in &texts[..ids.len()] {
            touched ^= u32::from(text.first().copied().unwrap_or_default());
        }
        std::hint::black_box(touched);
        for (at, (found, &id)) in found.iter_mut().zip(ids).enumerate() {
            let (number, text) = texts[at];
            *found = match number {
                EMPTY => None,
                number if text == id => Some(number),
                _ => self.walk(self.home(hashes[at]), hashes[at], |number| id_of(number) == id),
            };
        }
    }

    /// Most ids of a batch.
    pub const fn batch() -> usize {
        BATCH
    }

    /// The first item from slot `at` on whose hash may be `hash` and that `is_it`.
    #[inline]
    fn walk(&self, at: usize, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let (tag, mask) = (self.tag(hash), self.mask());
        for &slot in self.slots.get(at..)? {
            if slot == EMPTY {
                return None;
            }
            if slot & !mask == tag && is_it(slot & mask) {
                return Some(slot & mask);
            }
        }
        None
    }

    fn home(&self, hash: u64) -> usize {
        (((hash >> 32) * u64::from(self.homes)) >> 32) as usize
    }

    /// The bits of numbers.
    fn mask(&self) -> u32 {
        if self.number_bits == 32 { u32::MAX } else { (1 << self.number_bits) - 1 }
    }

    /// The part of a hash that a slot holds, above the number.
    fn tag(&self, hash: u64) -> u32 {
        (hash as u32).checked_shl(self.number_bits).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_is_found_and_no_other() {
        for items in [0, 1, 2, 3, 4, 7, 8, 100, 5000] {
            let ids: Vec<String> = (0..items).map(|at| format!("id {}", at * 7)).collect();
            let id_of = |number: u32| ids[number as usize].as_bytes();
            let table = IdTable::build(items, id_of);
            for (at, id) in ids.iter().enumerate() {
                assert_eq!(table.find(id.as_bytes(), id_of), Some(at as u32), "{id} of {items}");
            }
            let asked: Vec<String> = (0..3 * items + 40).map(|at| format!("id {at}")).collect();
            for asked in asked.chunks(IdTable::batch()) {
                let mut found = vec![None; asked.len()];
                let bytes: Vec<&[u8]> = asked.iter().map(|id| id.as_bytes()).collect();
                table.find_batch(&bytes, id_of, &mut found);
                for (id, found) in asked.iter().zip(found) {
                    assert_eq!(found, ids.iter().position(|known| known == id).map(|at| at as u32), "{id}");
                }
            }
        }
    }
}
