//! Tokens to text, one at a time.
//!
//! A token is bytes, and a character may be spread over several tokens: complete characters leave at once, an incomplete one
//! waits (at most three bytes). Each token is looked at once, so a stream costs what it says.

use std::sync::Arc;

use crate::ids::TokenId;
use crate::text::decoding::{DecodeTable, Start};

/// Turns the tokens of one sequence into text deltas.
///
/// Special tokens, layout tokens and ids without an entry are not shown: a span inside the text is skipped. The deltas,
/// with [`finish`](Detokenizer::finish), concatenate to the text of the whole sequence; bytes that are not UTF-8 become
/// U+FFFD as in `String::from_utf8_lossy`.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    table: Arc<DecodeTable>,
    /// The bytes of an incomplete character.
    pending: Vec<u8>,
    /// Whether a token has been shown.
    started: bool,
    /// Characters still to be taken away at the start.
    to_strip: usize,
}

impl Detokenizer {
    pub(super) fn new(table: Arc<DecodeTable>) -> Detokenizer {
        let to_strip = if let Start::Strip(_, count) = table.start { count } else { 0 };
        Detokenizer { table, pending: Vec::new(), started: false, to_strip }
    }

    /// Takes the next token; returns the text that became complete, never an empty string.
    pub fn push(&mut self, token: TokenId) -> Option<String> {
        if self.table.hidden.contains(token.0) {
            return None;
        }
        let bytes = self.table.bytes(token.0);
        match self.table.start {
            Start::NoSpacesInFirstToken if !self.started => {
                self.pending.extend(bytes.iter().filter(|&&byte| byte != b' '));
            }
            Start::SpaceBetween if self.started => {
                self.pending.push(b' ');
                self.pending.extend_from_slice(bytes);
            }
            _ => self.pending.extend_from_slice(bytes),
        }
        self.started = true;
        let text = take_complete(&mut self.pending);
        self.shown(text)
    }

    /// Ends a stretch of text: an incomplete character becomes U+FFFD. More tokens may follow.
    pub fn finish(&mut self) -> Option<String> {
        if self.pending.is_empty() {
            return None;
        }
        let text = String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned();
        self.shown(text)
    }

    /// What is left of `text` after the characters that the decoder strips from the start.
    fn shown(&mut self, mut text: String) -> Option<String> {
        if let (Start::Strip(c, _), 1..) = (&self.table.start, self.to_strip) {
            let leading = text.chars().take(self.to_strip).take_while(|first| first == c).count();
            text.drain(..leading * c.len_utf8());
            self.to_strip = if text.is_empty() { self.to_strip - leading } else { 0 };
        }
        if text.is_empty() { None } else { Some(text) }
    }
}

/// Moves everything but an incomplete last character out of `pending`.
fn take_complete(pending: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut done = 0;
    loop {
        match std::str::from_utf8(&pending[done..]) {
            Ok(rest) => {
                text.push_str(rest);
                done = pending.len();
                break;
            }
            Err(error) => {
                let valid = done + error.valid_up_to();
                text.push_str(&String::from_utf8_lossy(&pending[done..valid]));
                done = valid;
                let Some(length) = error.error_len() else { break };
                text.push(char::REPLACEMENT_CHARACTER);
                done += length;
            }
        }
    }
    pending.drain(..done);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::idset::IdSet;
    use proptest::prelude::*;
    use serde_json::json;

    fn table(tokens: &[&str], decoder: serde_json::Value) -> Arc<DecodeTable> {
        let vocab: Vec<_> =
            tokens.iter().enumerate().map(|(id, token)| (id as u32, (*token).to_owned())).collect();
        Arc::new(DecodeTable::new(&vocab, &decoder, IdSet::default()).unwrap())
    }

    fn run(table: &Arc<DecodeTable>, ids: &[u32]) -> Vec<Option<String>> {
        let mut stream = Detokenizer::new(table.clone());
        let mut deltas: Vec<_> = ids.iter().map(|&id| stream.push(TokenId(id))).collect();
        deltas.push(stream.finish());
        deltas
    }

    #[test]
    fn the_start_is_stripped_once() {
        let llama = json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
        let table = table(&["▁a", "▁", "<0xC3>", "<0xA9>"], llama);
        let text = |ids: &[u32]| run(&table, ids).into_iter().flatten().collect::<String>();
        assert_eq!(text(&[0, 0]), "a a");
        assert_eq!(text(&[1, 0]), " a");
        assert_eq!(text(&[2, 3, 1, 2, 0]), "é \u{FFFD} a");
        assert_eq!(run(&table, &[2, 3]), [None, Some("é".into()), None]);
    }

    #[test]
    fn metaspace_and_no_decoder() {
        let meta = table(
            &["▁a", "▁b"],
            json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}),
        );
        assert_eq!(run(&meta, &[0, 1]).into_iter().flatten().collect::<String>(), "a b");
        let none = table(&["a", "b"], json!(null));
        assert_eq!(run(&none, &[0, 1]).into_iter().flatten().collect::<String>(), "a b");
    }

    proptest! {
        #[test]
        fn chunks_of_any_bytes_read_as_the_whole(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..6), 0..12)) {
            let whole = chunks.concat();
            let (mut pending, mut text) = (Vec::new(), String::new());
            for chunk in &chunks {
                pending.extend_from_slice(chunk);
                text.push_str(&take_complete(&mut pending));
                prop_assert!(pending.len() < 4);
            }
            text.push_str(&String::from_utf8_lossy(&pending));
            prop_assert_eq!(text, String::from_utf8_lossy(&whole));
        }
    }
}
