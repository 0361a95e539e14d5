//! Strings numbered in the order in which they are met.

use xxhash_rust::xxh3::xxh3_64;

use super::strings::{Strings, StringsBuilder};

/// No string has that number.
const EMPTY: u32 = u32::MAX;

/// Distinct strings and a table that finds their numbers: open addressing, at most three quarters full.
#[derive(Clone, Debug, Default)]
pub(super) struct Interner {
    names: StringsBuilder,
    /// Low half of each string's hash: tells most strings apart without reading them.
    hashes: Vec<u32>,
    slots: Vec<u32>,
}

impl Interner {
    /// Strings so far.
    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// The number of a string that was met.
    pub fn find(&self, text: &[u8]) -> Option<u32> {
        if self.slots.is_empty() {
            return None;
        }
        Some(self.slots[self.slot(xxh3_64(text), text)]).filter(|&number| number != EMPTY)
    }

    /// The number of a string, which is new if it was not met before.
    pub fn intern(&mut self, text: &[u8]) -> u32 {
        if (self.len() + 1) * 4 > self.slots.len() * 3 {
            self.grow();
        }
        let hash = xxh3_64(text);
        let slot = self.slot(hash, text);
        if self.slots[slot] == EMPTY {
            self.slots[slot] = self.len() as u32;
            self.hashes.push(hash as u32);
            self.names.push_bytes(text);
        }
        self.slots[slot]
    }

    pub fn get_bytes(&self, number: u32) -> &[u8] {
        self.names.get_bytes(number as usize)
    }

    pub fn finish(self) -> Strings {
        self.names.finish()
    }

    /// The slot that holds `text`, or the empty one where it belongs.
    fn slot(&self, hash: u64, text: &[u8]) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = hash as u32 as usize & mask;
        loop {
            let number = self.slots[at];
            let is_it = number == EMPTY
                || self.hashes[number as usize] == hash as u32 && self.get_bytes(number) == text;
            if is_it {
                return at;
            }
            at = (at + 1) & mask;
        }
    }

    fn grow(&mut self) {
        let slots = (2 * self.slots.len()).max(16);
        self.slots.clear();
        self.slots.resize(slots, EMPTY);
        for (number, &hash) in self.hashes.iter().enumerate() {
            let mut at = hash as usize & (slots - 1);
            while self.slots[at] != EMPTY {
                at = (at + 1) & (slots - 1);
            }
            self.slots[at] = number as u32;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn numbers_are_those_of_a_map() {
        let mut interner = Interner::default();
        let mut map = HashMap::new();
        assert_eq!(interner.find(b""), None);
        for at in 0..5000u32 {
            let text = (at.wrapping_mul(2_654_435_761) % 1777).to_string();
            let next = map.len() as u32;
            let expected = *map.entry(text.clone()).or_insert(next);
            assert_eq!(interner.intern(text.as_bytes()), expected);
            assert_eq!(interner.find(text.as_bytes()), Some(expected));
        }
        assert_eq!((interner.len(), interner.find(b"x")), (map.len(), None));
        let names = interner.finish();
        assert!(map.iter().all(|(text, &number)| names.get(number as usize) == text));
    }
}
