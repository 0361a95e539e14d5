//! A set of token ids as a bitmap: asked for every token that is encoded or shown.

/// Ids below a bound that grows as they are added.
#[derive(Clone, Debug, Default)]
pub(super) struct IdSet {
    words: Vec<u64>,
}

impl IdSet {
    /// Adds an id.
    pub fn insert(&mut self, id: u32) {
        let word = id as usize / 64;
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << (id % 64);
    }

    /// Whether the id is in the set.
    #[inline]
    pub fn contains(&self, id: u32) -> bool {
        self.words.get(id as usize / 64).is_some_and(|word| word >> (id % 64) & 1 == 1)
    }

    /// The set that holds the ids of both.
    pub fn union(&self, ids: impl IntoIterator<Item = u32>) -> IdSet {
        let mut all = self.clone();
        ids.into_iter().for_each(|id| all.insert(id));
        all
    }
}
