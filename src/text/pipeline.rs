//! From a prompt in segments to token ids: normalizer, pre-tokenizer and model of `tokenizer.json`.
//!
//! The steps are those of the `tokenizers` library, in its order, except that *we* say where added tokens stand. Text
//! between two of them goes through as one piece with its true place in the whole, so the ids equal those of the rendered
//! string in transformers, down to models that treat the first piece differently.
//!
//! The model's word is not taken on trust: a protected id that comes out of text is undone by cutting that text.

use tokenizers::{
    Model, NormalizedString, Normalizer, OffsetType, PreTokenizedString, PreTokenizer, Token,
    Tokenizer as Inner, normalizer::Range,
};

use crate::text::added::{Added, Matcher};
use crate::text::idset::IdSet;
use crate::{Error, Result};

/// Stands for a soft token among ids until the caller has noted its place; no vocabulary reaches it.
pub(super) const SOFT: u32 = u32::MAX;

/// A stretch of a prompt's text whose tokens are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    /// First byte, in [`Segments::text`].
    pub start: usize,
    /// End byte; never equal to `start`.
    pub end: usize,
    /// What stands there.
    pub ids: Vec<u32>,
}

/// A prompt: text, and in it stretches with known tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Segments {
    /// The text; what lies inside a cut only keeps its place.
    pub text: String,
    /// Known stretches, ascending, not overlapping.
    pub cuts: Vec<Cut>,
    /// Places in `text` that no control token may cross, ascending; `None`: there are no control tokens in this text.
    pub guards: Option<Vec<usize>>,
}

/// The parts of a tokenizer that encode text.
#[derive(Debug)]
pub(super) struct Pipeline {
    /// Only its parts are used: its own `encode` would let text become added tokens.
    pub inner: Inner,
    /// Ids that text never yields.
    pub protected: IdSet,
    /// The id for what the model cannot express, and its string: the one protected id that text may yield, since refusing
    /// the text would be worse, but not where it is written out.
    unknown: Option<(u32, String)>,
    /// Added tokens that are looked for in normalized text under a normalized name.
    folded: Matcher,
}

impl Pipeline {
    /// A pipeline around a loaded tokenizer; `normalized` are the added tokens flagged so.
    ///
    /// # Errors
    /// A normalizer that fails on a token's string.
    pub fn new(inner: Inner, normalized: &[Added], unknown: Option<String>) -> tokenizers::Result<Pipeline> {
        let mut folded = Vec::new();
        if let Some(normalizer) = inner.get_normalizer() {
            for token in normalized {
                let mut name = NormalizedString::from(token.content.as_str());
                normalizer.normalize(&mut name)?;
                if name.get() != token.content {
                    folded.push(Added { content: name.get().to_owned(), ..token.clone() });
                }
            }
        }
        let unknown = unknown.and_then(|token| Some((inner.token_to_id(&token)?, token)));
        Ok(Pipeline { inner, protected: IdSet::default(), unknown, folded: Matcher::new(folded) })
    }

    /// Added tokens that are only found after normalization.
    pub fn folded(&self) -> &Matcher {
        &self.folded
    }

    /// The ids of a prompt, soft tokens as [`SOFT`].
    ///
    /// # Errors
    /// A single character that the model turns into a protected token; a model that cannot express the text.
    pub fn encode(&self, segments: &Segments) -> Result<Vec<u32>> {
        if segments.text.is_empty() {
            return Ok(Vec::new());
        }
        self.steps(segments).map_err(|error| Error::invalid("text", format!("cannot be tokenized: {error}")))
    }

    fn steps(&self, segments: &Segments) -> tokenizers::Result<Vec<u32>> {
        let mut text = PreTokenizedString::from(segments.text.as_str());
        text.split(|_, whole| slices(&whole, &segments.cuts))?;
        if let Some(normalizer) = self.inner.get_normalizer() {
            text.normalize(|piece| normalizer.normalize(piece))?;
        }
        if let (Some(guards), false) = (&segments.guards, self.folded.is_empty()) {
            text.split(|_, piece| slices(&piece, &self.folded_in(&piece, guards)))?;
        }
        if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut text)?;
        }
        text.tokenize(|word| self.word(word.get()))?;
        Ok(text.into_encoding(None, 0, OffsetType::None)?.get_ids().to_vec())
    }

    /// Where control tokens stand in a normalized piece, under their normalized names, away from user text.
    fn folded_in(&self, piece: &NormalizedString, guards: &[usize]) -> Vec<Cut> {
        let text = piece.get();
        let base = piece.offsets_original().0;
        let mut cuts = Vec::new();
        let mut at = 0;
        while let Some(c) = text[at..].chars().next() {
            let found = self.folded.longest_at(text, at).filter(|token| {
                let range = Range::Normalized(at..at + token.content.len());
                // The alignment may not be able to say where the match comes from; then it is not trusted.
                let Some(place) = piece.convert_offsets(range) else { return false };
                let (start, end) = (base + place.start, base + place.end);
                let inside = guards.partition_point(|&guard| guard <= start)
                    < guards.partition_point(|&guard| guard < end);
                // One character of the user's may normalize to a whole token: it has a guard on both sides.
                let fenced = guards.binary_search(&start).is_ok() && guards.binary_search(&end).is_ok();
                !(inside || fenced && place.len() <= 4)
            });
            match found {
                Some(token) => {
                    let end = at + token.content.len();
                    cuts.push(Cut { start: at, end, ids: vec![token.id] });
                    at = end;
                }
                None => at += c.len_utf8(),
            }
        }
        cuts
    }

    /// The tokens of one word, none of them protected.
    fn word(&self, word: &str) -> tokenizers::Result<Vec<Token>> {
        let tokens = self.inner.get_model().tokenize(word)?;
        if tokens.iter().any(|token| self.is_forged(token, word)) { self.in_pieces(word) } else { Ok(tokens) }
    }

    /// Cuts every forged token's text and encodes the pieces, until none is left.
    ///
    /// Each round cuts all of them, so the rounds are bounded by the length of the longest token, not of the text.
    fn in_pieces(&self, word: &str) -> tokenizers::Result<Vec<Token>> {
        let mut todo = vec![word];
        let mut out = Vec::new();
        while let Some(part) = todo.pop() {
            let tokens = self.inner.get_model().tokenize(part)?;
            let mut cuts = Vec::new();
            for token in tokens.iter().filter(|token| self.is_forged(token, part)) {
                let (start, end) = (floor(part, token.offsets.0), ceil(part, token.offsets.1));
                let middle = ceil(part, start + 1);
                cuts.extend([start, middle, end].into_iter().filter(|&at| 0 < at && at < part.len()));
            }
            if cuts.is_empty() {
                if let Some(token) = tokens.iter().find(|token| self.is_forged(token, part)) {
                    return Err(format!("{part:?} alone is the reserved token {}", token.id).into());
                }
                out.extend(tokens);
                continue;
            }
            cuts.extend([0, part.len()]);
            cuts.sort_unstable();
            cuts.dedup();
            todo.extend(cuts.windows(2).rev().map(|piece| &part[piece[0]..piece[1]]));
        }
        Ok(out)
    }

    fn is_forged(&self, token: &Token, part: &str) -> bool {
        self.protected.contains(token.id)
            && self.unknown.as_ref().is_none_or(|(id, name)| {
                *id != token.id || part.get(token.offsets.0..token.offsets.1) == Some(name.as_str())
            })
    }
}

/// Cuts a piece at the stretches whose tokens are known.
fn slices(
    whole: &NormalizedString,
    cuts: &[Cut],
) -> tokenizers::Result<Vec<(NormalizedString, Option<Vec<Token>>)>> {
    let slice = |start: usize, end: usize| {
        whole.slice(Range::Normalized(start..end)).ok_or_else(|| format!("no text at bytes {start} to {end}"))
    };
    let mut pieces = Vec::with_capacity(cuts.len() * 2 + 1);
    let mut done = 0;
    for cut in cuts {
        if done < cut.start {
            pieces.push((slice(done, cut.start)?, None));
        }
        let tokens = cut.ids.iter().map(|&id| Token::new(id, String::new(), (0, 0))).collect();
        pieces.push((slice(cut.start, cut.end)?, Some(tokens)));
        done = cut.end;
    }
    if done < whole.len() {
        pieces.push((slice(done, whole.len())?, None));
    }
    Ok(pieces)
}

fn floor(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|&place| text.is_char_boundary(place)).unwrap_or(0)
}

fn ceil(text: &str, at: usize) -> usize {
    (at..text.len()).find(|&place| text.is_char_boundary(place)).unwrap_or(text.len())
}
