//! Stop strings over a stream of text deltas.
//!
//! Each stop string is followed by its own Knuth-Morris-Pratt state, so a delta costs its length times the number of
//! strings, whatever they look like, and the result does not depend on how the text was cut into deltas. What is held
//! back is exactly the longest end of the text that begins some stop string.

/// What may be shown after a delta.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Emit {
    /// Text that can no longer be part of a stop string; the stop string itself is never in it.
    pub text: String,
    /// The index of the stop string that ended the text, once one has.
    pub stopped: Option<usize>,
}

/// Watches one sequence's text for its stop strings.
///
/// The stop string that is complete first ends the text; of several complete at the same byte the longest, then the first
/// in the list. Text before it is kept, the string itself and all that follows is dropped.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    stops: Vec<Follower>,
    held: String,
    stopped: Option<usize>,
}

impl StopMatcher {
    /// A matcher for these strings; an empty string never matches.
    pub fn new(stops: impl IntoIterator<Item = String>) -> StopMatcher {
        StopMatcher {
            stops: stops.into_iter().map(|stop| Follower::new(stop.into_bytes())).collect(),
            held: String::new(),
            stopped: None,
        }
    }

    /// Takes the next delta; after a stop everything is dropped.
    pub fn push(&mut self, delta: &str) -> Emit {
        if self.stopped.is_some() {
            return Emit { text: String::new(), stopped: self.stopped };
        }
        if self.stops.is_empty() {
            return Emit { text: delta.to_owned(), stopped: None };
        }
        for (at, byte) in delta.bytes().enumerate() {
            let mut found: Option<(usize, usize)> = None;
            for (index, stop) in self.stops.iter_mut().enumerate() {
                let length = stop.advance(byte);
                if length > found.map_or(0, |(longest, _)| longest) {
                    found = Some((length, index));
                }
            }
            if let Some((length, index)) = found {
                let mut text = std::mem::take(&mut self.held);
                let end = text.len() + at + 1 - length;
                // The bytes may end inside `delta` or inside what was held: a stop string starts at a character.
                text.push_str(delta);
                text.truncate(end);
                self.stopped = Some(index);
                return Emit { text, stopped: self.stopped };
            }
        }
        self.held.push_str(delta);
        let holding = self.stops.iter().map(|stop| stop.matched).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - holding);
        Emit { text: std::mem::replace(&mut self.held, rest), stopped: None }
    }

    /// Ends the text: gives what was held back, which began a stop string but did not become one.
    pub fn finish(&mut self) -> String {
        self.stops.iter_mut().for_each(|stop| stop.matched = 0);
        std::mem::take(&mut self.held)
    }
}

/// One stop string and how much of it the end of the text matches.
#[derive(Clone, Debug)]
struct Follower {
    pattern: Vec<u8>,
    /// `border[n]`: the longest proper prefix of the first `n + 1` bytes that also ends them.
    border: Vec<usize>,
    matched: usize,
}

impl Follower {
    fn new(pattern: Vec<u8>) -> Follower {
        let mut border = vec![0; pattern.len()];
        let mut length = 0;
        for at in 1..pattern.len() {
            while length > 0 && pattern[at] != pattern[length] {
                length = border[length - 1];
            }
            length += usize::from(pattern[at] == pattern[length]);
            border[at] = length;
        }
        Follower { pattern, border, matched: 0 }
    }

    /// Takes a byte; returns the pattern's length when it is complete, else 0.
    fn advance(&mut self, byte: u8) -> usize {
        if self.pattern.is_empty() {
            return 0;
        }
        while self.matched > 0 && self.pattern[self.matched] != byte {
            self.matched = self.border[self.matched - 1];
        }
        self.matched += usize::from(self.pattern[self.matched] == byte);
        // The caller stops at the first complete pattern, so `matched` never indexes past the end.
        if self.matched == self.pattern.len() { self.matched } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn feed(stops: &[&str], deltas: &[&str]) -> (String, Option<usize>) {
        let mut matcher = StopMatcher::new(stops.iter().map(|stop| (*stop).to_owned()));
        let mut text = String::new();
        for delta in deltas {
            let emit = matcher.push(delta);
            text.push_str(&emit.text);
            if emit.stopped.is_some() {
                return (text, emit.stopped);
            }
        }
        text.push_str(&matcher.finish());
        (text, None)
    }

    #[test]
    fn only_what_may_become_a_stop_is_held() {
        let mut matcher = StopMatcher::new(["\n\nUser:".to_owned()]);
        assert_eq!(matcher.push("Hello\n").text, "Hello");
        assert_eq!(matcher.push("\nUs").text, "");
        assert_eq!(matcher.push("ed\n").text, "\n\nUsed");
        assert_eq!(matcher.push("\nUser").text, "");
        let end = matcher.push(": more");
        assert_eq!(end, Emit { text: String::new(), stopped: Some(0) });
        assert_eq!(matcher.push("x"), Emit { text: String::new(), stopped: Some(0) });
        assert_eq!(matcher.finish(), "");
    }

    #[test]
    fn the_first_complete_string_ends_the_text() {
        assert_eq!(feed(&["abcd", "bc"], &["xab", "cd"]), ("xa".into(), Some(1)));
        assert_eq!(feed(&["c", "abc"], &["xabc"]), ("x".into(), Some(1)));
        assert_eq!(feed(&["", "é"], &["caf", "é!"]), ("caf".into(), Some(1)));
        assert_eq!(feed(&["aab"], &["a", "a", "a", "b"]), ("a".into(), Some(0)));
        assert_eq!(feed(&[], &["a", "b"]), ("ab".into(), None));
    }

    proptest! {
        #[test]
        fn equals_a_search_in_the_whole_text(
            stops in prop::collection::vec("[abé]{0,4}", 0..4),
            deltas in prop::collection::vec("[abcé]{0,5}", 0..12),
        ) {
            let whole: String = deltas.concat();
            let mut best: Option<(usize, usize, usize)> = None;
            for (index, stop) in stops.iter().enumerate().filter(|(_, stop)| !stop.is_empty()) {
                if let Some(start) = whole.find(stop.as_str()) {
                    let found = (start + stop.len(), start, index);
                    best = Some(best.map_or(found, |old| old.min(found)));
                }
            }
            let naive = match best {
                Some((_, start, index)) => (whole[..start].to_owned(), Some(index)),
                None => (whole.clone(), None),
            };
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let deltas: Vec<&str> = deltas.iter().map(String::as_str).collect();
            prop_assert_eq!(feed(&stops, &deltas), naive);
        }
    }
}
