//! The prefix cache's index: which block holds the keys of which tokens.
//!
//! The key of a block is everything that determines its contents: its own tokens, the salt, and the serial number of
//! the registration before it, which stands for everything earlier. A hit compares the whole key, the hash only finds the place;
//! std's hash is 64 bits, seeded by the process, and made to resist chosen collisions. Serial numbers are never used
//! again, so a key whose predecessor has been forgotten can never be asked for, let alone be mistaken for another.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use super::BLOCK_TOKENS;
use crate::ids::{BlockId, TokenId};

/// The number of a registration, from 1; 0 stands for the beginning of a sequence.
type Serial = u64;

/// A registration: a block, and the serial number that tells it from other registrations of the same block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// The registered block.
    pub(super) block: BlockId,
    serial: Serial,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    parent: Serial,
    salt: u64,
    tokens: [TokenId; BLOCK_TOKENS],
}

impl Key {
    fn new(parent: Option<Link>, salt: u64, tokens: &[TokenId]) -> Key {
        let tokens = tokens.try_into().expect("a full block of tokens");
        Key { parent: parent.map_or(0, |link| link.serial), salt, tokens }
    }
}

struct Entry {
    key: Key,
    serial: Serial,
    parent: Option<Link>,
}

/// Registered blocks by their contents; generic in the hash so that tests can make every key collide.
pub(super) struct PrefixCache<S = RandomState> {
    index: HashMap<Key, Link, S>,
    /// `[blocks]`: what each block is registered as.
    entries: Vec<Option<Entry>>,
    newest: Serial,
}

impl<S: BuildHasher + Default> PrefixCache<S> {
    /// An index over the blocks `0..blocks`, none registered.
    pub(super) fn new(blocks: usize) -> PrefixCache<S> {
        PrefixCache {
            index: HashMap::default(),
            entries: std::iter::repeat_with(|| None).take(blocks).collect(),
            newest: 0,
        }
    }

    /// The registration of a full block of `tokens` after `parent`.
    pub(super) fn get(&self, parent: Option<Link>, salt: u64, tokens: &[TokenId]) -> Option<Link> {
        self.index.get(&Key::new(parent, salt, tokens)).copied()
    }

    /// Registers `block` as holding `tokens` after `parent`, unless another block does already; returns whichever it is.
    ///
    /// A block is registered once at most: an earlier registration, by now unreachable, is forgotten.
    pub(super) fn register(
        &mut self,
        parent: Option<Link>,
        salt: u64,
        tokens: &[TokenId],
        block: BlockId,
    ) -> Link {
        let key = Key::new(parent, salt, tokens);
        if let Some(&first) = self.index.get(&key) {
            return first;
        }
        self.forget(block);
        self.newest += 1;
        let link = Link { block, serial: self.newest };
        self.index.insert(key.clone(), link);
        self.entries[block.index()] = Some(Entry { key, serial: link.serial, parent });
        link
    }

    /// Forgets what a block holds.
    pub(super) fn forget(&mut self, block: BlockId) {
        if let Some(entry) = self.entries[block.index()].take() {
            self.index.remove(&entry.key);
        }
    }

    /// Whether a block is registered.
    pub(super) fn contains(&self, block: BlockId) -> bool {
        self.entries[block.index()].is_some()
    }

    /// The block before a registered block, if it is still registered as such.
    pub(super) fn parent(&self, block: BlockId) -> Option<BlockId> {
        let parent = self.entries[block.index()].as_ref()?.parent?;
        let entry = self.entries[parent.block.index()].as_ref()?;
        (entry.serial == parent.serial).then_some(parent.block)
    }
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasherDefault, Hasher};

    use super::*;

    /// Every key in one bucket with one hash.
    #[derive(Default)]
    struct Collide;

    impl Hasher for Collide {
        fn finish(&self) -> u64 {
            42
        }
        fn write(&mut self, _: &[u8]) {}
    }

    fn full(token: u32) -> [TokenId; BLOCK_TOKENS] {
        [TokenId(token); BLOCK_TOKENS]
    }

    fn cache() -> PrefixCache<BuildHasherDefault<Collide>> {
        PrefixCache::new(8)
    }

    #[test]
    fn collisions_yield_neither_false_hits_nor_misses() {
        let mut cache = cache();
        let a = cache.register(None, 0, &full(1), BlockId(0));
        let b = cache.register(None, 0, &full(2), BlockId(1));
        let salted = cache.register(None, 9, &full(1), BlockId(2));
        let child = cache.register(Some(a), 0, &full(3), BlockId(3));

        assert_eq!(cache.get(None, 0, &full(1)), Some(a));
        assert_eq!(cache.get(None, 0, &full(2)), Some(b));
        assert_eq!(cache.get(None, 9, &full(1)), Some(salted));
        assert_eq!(cache.get(Some(a), 0, &full(3)), Some(child));

        assert_eq!(cache.get(None, 0, &full(3)), None, "no parent");
        assert_eq!(cache.get(Some(b), 0, &full(3)), None, "another parent");
        assert_eq!(cache.get(Some(salted), 9, &full(3)), None, "another salt");
        let mut last = full(1);
        last[BLOCK_TOKENS - 1] = TokenId(2);
        assert_eq!(cache.get(None, 0, &last), None, "another last token");
    }

    #[test]
    fn the_first_block_of_equal_contents_stays() {
        let mut cache = cache();
        let first = cache.register(None, 0, &full(1), BlockId(0));
        assert_eq!(cache.register(None, 0, &full(1), BlockId(1)), first);
        assert_eq!(cache.register(None, 0, &full(1), BlockId(0)), first);
        assert!(!cache.contains(BlockId(1)));
    }

    #[test]
    fn a_child_is_not_found_after_a_parent_that_took_the_place_of_its_own() {
        let mut cache = cache();
        let old = cache.register(None, 0, &full(1), BlockId(0));
        cache.register(Some(old), 0, &full(2), BlockId(1));
        assert_eq!(cache.parent(BlockId(1)), Some(BlockId(0)));

        cache.forget(BlockId(0));
        assert_eq!(cache.parent(BlockId(1)), None);
        // The same block with other contents, then with the same: neither is the parent that was forgotten.
        for token in [5, 1] {
            let new = cache.register(None, 0, &full(token), BlockId(0));
            assert_eq!(cache.get(Some(new), 0, &full(2)), None);
            assert_eq!(cache.parent(BlockId(1)), None);
        }
        // Its holder can register it again, and then once only.
        let new = cache.get(None, 0, &full(1)).unwrap();
        cache.register(Some(new), 0, &full(2), BlockId(1));
        assert_eq!(cache.parent(BlockId(1)), Some(BlockId(0)));
        assert_eq!(cache.index.len(), 2);
    }
}
