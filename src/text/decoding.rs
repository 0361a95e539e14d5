//! The bytes behind every token, laid out once at start so that showing a token is one copy.
//!
//! The decoder named in `tokenizer.json` is read as data: byte-level (a character stands for a byte), or the steps that
//! sentencepiece models use (replace, byte fallback, fuse, strip). Both work token by token except for what happens at the
//! very start of a text, which is kept apart as [`Start`].

use serde_json::Value;

use crate::text::idset::IdSet;
use crate::{Error, Result};

/// What the decoder does to the start of a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Start {
    /// Nothing.
    #[default]
    AsIs,
    /// Up to this many of this character are taken away.
    Strip(char, usize),
    /// All spaces of the first token are taken away.
    NoSpacesInFirstToken,
    /// Tokens are joined by spaces: none before the first.
    SpaceBetween,
}

/// Token id to bytes.
#[derive(Clone, Debug)]
pub(super) struct DecodeTable {
    bytes: Vec<u8>,
    /// `ends[id]`: where the bytes of `id` end; those of an id without an entry are empty.
    ends: Vec<u32>,
    /// Ids that are never shown.
    pub hidden: IdSet,
    /// What happens at the start of a text.
    pub start: Start,
}

impl DecodeTable {
    /// Builds the table from `(id, token)` in ascending order of ids and the `decoder` of `tokenizer.json`.
    ///
    /// # Errors
    /// A decoder that this engine does not know, by its name; more than 4 GiB of text.
    pub fn new(vocab: &[(u32, String)], decoder: &Value, hidden: IdSet) -> Result<DecodeTable> {
        let mut steps = Vec::new();
        let mut start = if decoder.is_null() { Start::SpaceBetween } else { Start::AsIs };
        read_steps(decoder, &mut steps, &mut start)?;
        let mut bytes = Vec::new();
        let mut ends = Vec::with_capacity(vocab.last().map_or(0, |(id, _)| *id as usize + 1));
        let end = |bytes: &Vec<u8>| {
            u32::try_from(bytes.len())
                .map_err(|_| Error::Unsupported("tokens of more than 4 GiB of text".into()))
        };
        for (id, token) in vocab {
            ends.resize((*id as usize).max(ends.len()), end(&bytes)?);
            append(&mut bytes, token, &steps);
            ends.push(end(&bytes)?);
        }
        Ok(DecodeTable { bytes, ends, hidden, start })
    }

    /// The bytes of a token; empty for an id without an entry.
    pub fn bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else { return &[] };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[start as usize..end as usize]
    }
}

/// One step from a token's string to its bytes.
#[derive(Debug)]
enum Step {
    ByteLevel,
    Replace(String, String),
    ByteFallback,
}

fn read_steps(decoder: &Value, steps: &mut Vec<Step>, start: &mut Start) -> Result<()> {
    let unsupported =
        |what: &str| Err(Error::Unsupported(format!("decoder {what} in tokenizer.json: {decoder}")));
    let text = |key: &str| decoder.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    match decoder.get("type").and_then(Value::as_str) {
        None if decoder.is_null() => {}
        Some("Sequence") => {
            for inner in decoder["decoders"].as_array().into_iter().flatten() {
                read_steps(inner, steps, start)?;
            }
        }
        Some("ByteLevel") => steps.push(Step::ByteLevel),
        Some("ByteFallback") => steps.push(Step::ByteFallback),
        Some("Fuse") => {}
        Some("Replace") => match decoder["pattern"].get("String").and_then(Value::as_str) {
            Some(from) if !from.is_empty() => steps.push(Step::Replace(from.to_owned(), text("content"))),
            _ => return unsupported("Replace without a plain string"),
        },
        Some("Metaspace") => {
            steps.push(Step::Replace(text("replacement"), " ".to_owned()));
            if text("prepend_scheme") != "never" {
                *start = Start::NoSpacesInFirstToken;
            }
        }
        Some("Strip") => {
            let content = text("content").chars().next();
            match (content, decoder["start"].as_u64(), decoder["stop"].as_u64()) {
                (Some(c), Some(count), Some(0)) => *start = Start::Strip(c, count as usize),
                _ => return unsupported("Strip at the end"),
            }
        }
        _ => return unsupported("of an unknown kind"),
    }
    Ok(())
}

fn append(bytes: &mut Vec<u8>, token: &str, steps: &[Step]) {
    let mut token = std::borrow::Cow::Borrowed(token);
    for step in steps {
        match step {
            Step::Replace(from, to) => token = token.replace(from.as_str(), to).into(),
            Step::ByteFallback => {
                if let Some(byte) = fallback_byte(&token) {
                    return bytes.push(byte);
                }
            }
            Step::ByteLevel => {
                // A token with a character outside the alphabet was added as plain text and stands for itself.
                let start = bytes.len();
                for c in token.chars() {
                    let Some(byte) = char_to_byte(c) else {
                        bytes.truncate(start);
                        bytes.extend_from_slice(token.as_bytes());
                        return;
                    };
                    bytes.push(byte);
                }
                return;
            }
        }
    }
    bytes.extend_from_slice(token.as_bytes());
}

/// The byte of a byte-fallback token, `<0x41>`.
fn fallback_byte(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() == 2 { u8::from_str_radix(hex, 16).ok() } else { None }
}

/// Whether the byte stands for itself in the byte-level alphabet: the printable part of Latin-1 without the space.
fn is_own_char(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

/// The character that stands for a byte in byte-level vocabularies: the others follow in order from U+0100.
pub(super) fn byte_to_char(byte: u8) -> char {
    if is_own_char(byte) {
        return byte as char;
    }
    let place = (0..byte).filter(|&earlier| !is_own_char(earlier)).count() as u32;
    char::from_u32(0x100 + place).expect("U+0100 to U+0143 are characters")
}

/// The byte that a character of the byte-level alphabet stands for.
pub(super) fn char_to_byte(c: char) -> Option<u8> {
    match u32::from(c) {
        code @ 0..=0xFF => Some(code as u8).filter(|&byte| is_own_char(byte)),
        // 0 to 32, then 127 to 160, then 173: the bytes that do not stand for themselves.
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121 + 127) as u8),
        0x143 => Some(173),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_byte_alphabet_is_a_bijection() {
        for byte in 0..=255u8 {
            assert_eq!(char_to_byte(byte_to_char(byte)), Some(byte));
        }
        assert_eq!(byte_to_char(b' '), 'Ġ');
        assert_eq!(byte_to_char(b'\n'), 'Ċ');
        assert_eq!(char_to_byte('ń'), None);
        assert_eq!(char_to_byte(' '), None);
    }

    #[test]
    fn steps_apply_to_each_token() {
        let decoder = json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
        let vocab = [(1, "▁a▁".to_owned()), (3, "<0xE4>".to_owned()), (4, "<0xE4".to_owned())];
        let table = DecodeTable::new(&vocab, &decoder, IdSet::default()).unwrap();
        assert_eq!(table.bytes(0), b"");
        assert_eq!(table.bytes(1), b" a ");
        assert_eq!(table.bytes(2), b"");
        assert_eq!(table.bytes(3), b"\xE4");
        assert_eq!(table.bytes(4), b"<0xE4");
        assert_eq!(table.bytes(99), b"");
        assert_eq!(table.start, Start::Strip(' ', 1));
    }

    #[test]
    fn an_unknown_decoder_is_refused_by_name() {
        let error = DecodeTable::new(&[], &json!({"type": "CTC"}), IdSet::default()).unwrap_err();
        assert!(error.to_string().contains("CTC"), "{error}");
    }
}
