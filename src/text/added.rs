//! Added tokens: the strings that a tokenizer file cuts out of a text before its model sees the rest.
//!
//! They are found by hashing: at a byte that starts some token, every length such tokens have is looked up, longest first.
//! Layouts add tens of thousands of tokens but only a handful of lengths, and text rarely holds their first byte, so this
//! is as fast as an automaton, builds in one pass and costs one map.

use std::collections::HashMap;

/// One added token and how it is matched.
#[derive(Clone, Debug)]
pub(super) struct Added {
    /// Its id.
    pub id: u32,
    /// The string that is looked for.
    pub content: String,
    /// Only where no word character touches it.
    pub single_word: bool,
    /// Swallows the white space before it.
    pub lstrip: bool,
    /// Swallows the white space after it.
    pub rstrip: bool,
}

/// All strings to look for, leftmost first, at one place the longest.
#[derive(Debug)]
pub(super) struct Matcher {
    tokens: Vec<Added>,
    by_content: HashMap<Box<str>, usize>,
    by_id: HashMap<u32, usize>,
    /// Per first byte, the lengths in bytes of the tokens that start with it, longest first.
    lengths: Vec<Vec<usize>>,
}

impl Matcher {
    /// A matcher for these tokens; empty strings are left out, of equal strings the last counts.
    pub fn new(tokens: Vec<Added>) -> Matcher {
        let mut lengths = vec![Vec::new(); 256];
        let (mut by_content, mut by_id) = (HashMap::new(), HashMap::new());
        for (index, token) in tokens.iter().enumerate() {
            let Some(&first) = token.content.as_bytes().first() else { continue };
            let of_first: &mut Vec<usize> = &mut lengths[first as usize];
            if !of_first.contains(&token.content.len()) {
                of_first.push(token.content.len());
            }
            by_content.insert(token.content.as_str().into(), index);
            by_id.insert(token.id, index);
        }
        lengths.iter_mut().for_each(|of_first| of_first.sort_unstable_by(|a, b| b.cmp(a)));
        Matcher { tokens, by_content, by_id, lengths }
    }

    /// Whether there is nothing to find.
    pub fn is_empty(&self) -> bool {
        self.by_content.is_empty()
    }

    /// All tokens.
    pub fn tokens(&self) -> &[Added] {
        &self.tokens
    }

    /// The token with this id.
    pub fn by_id(&self, id: u32) -> Option<&Added> {
        self.by_id.get(&id).map(|&index| &self.tokens[index])
    }

    /// Whether this very string is a token.
    pub fn has(&self, content: &str) -> bool {
        self.by_content.contains_key(content)
    }

    /// The longest token whose string stands at byte `at` of `text`.
    pub fn longest_at(&self, text: &str, at: usize) -> Option<&Added> {
        let first = *text.as_bytes().get(at)?;
        let found = self.lengths[first as usize]
            .iter()
            .find_map(|&length| self.by_content.get(text.get(at..at + length)?))?;
        Some(&self.tokens[*found])
    }
}

/// Whether a character belongs to a word in the sense of `single_word`.
pub(super) fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(id: u32, content: &str) -> Added {
        Added { id, content: content.into(), single_word: false, lstrip: false, rstrip: false }
    }

    #[test]
    fn the_longest_string_wins_and_boundaries_hold() {
        let matcher = Matcher::new(vec![token(1, "<a>"), token(2, "<a>b"), token(3, "é"), token(4, "")]);
        assert_eq!(matcher.longest_at("x<a>b", 1).map(|t| t.id), Some(2));
        assert_eq!(matcher.longest_at("x<a>c", 1).map(|t| t.id), Some(1));
        assert_eq!(matcher.longest_at("x<a>b", 0).map(|t| t.id), None);
        assert_eq!(matcher.longest_at("é", 0).map(|t| t.id), Some(3));
        assert_eq!(matcher.longest_at("<aé", 0).map(|t| t.id), None);
        assert_eq!(matcher.longest_at("", 0).map(|t| t.id), None);
    }
}
