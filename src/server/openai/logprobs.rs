//! Log-probabilities of tokens in both of OpenAI's forms.

use std::borrow::Cow;
use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::catalog::Layout;
use crate::engine::TokenLogprob;
use crate::ids::TokenId;
use crate::text::{Detokenizer, Tokenizer};

/// What stands for minus infinity, which JSON cannot say.
const LOWEST: f32 = -9999.0;

/// What tokens mean.
#[derive(Clone, Copy)]
pub(super) struct Tokens<'a> {
    pub tokenizer: &'a Tokenizer,
    pub layout: Option<&'a Layout>,
}

impl<'a> Tokens<'a> {
    /// The bytes of a token as text: what is not UTF-8 becomes U+FFFD.
    fn text(self, token: TokenId) -> Cow<'a, str> {
        String::from_utf8_lossy(self.tokenizer.token_bytes(token))
    }

    /// Whether the token is an opener, a code or a closer.
    pub fn spells_items(self, token: TokenId) -> bool {
        self.opens(token)
            || self.closes(token)
            || self.layout.is_some_and(|layout| layout.place(token).is_some())
    }

    /// Whether the token opens a span.
    pub fn opens(self, token: TokenId) -> bool {
        self.layout.is_some_and(|layout| layout.open == Some(token))
    }

    fn closes(self, token: TokenId) -> bool {
        self.layout.is_some_and(|layout| layout.close == Some(token))
    }
}

fn finite(logprob: f32) -> f32 {
    logprob.max(LOWEST)
}

/// The log-probabilities of a choice of `/v1/chat/completions`.
#[derive(serde::Serialize, JsonSchema)]
pub(super) struct ChatLogprobs<'a> {
    /// One entry per token.
    pub content: Vec<ChatToken<'a>>,
}

/// A token of an answer.
#[derive(serde::Serialize, JsonSchema)]
pub(super) struct ChatToken<'a> {
    #[serde(flatten)]
    pub token: TopToken<'a>,
    /// The likeliest tokens at this place, best first; empty inside a span.
    pub top_logprobs: Vec<TopToken<'a>>,
}

/// A token and its log-probability.
#[derive(serde::Serialize, JsonSchema)]
pub(super) struct TopToken<'a> {
    /// The token as text; bytes that are not UTF-8 alone become U+FFFD.
    pub token: Cow<'a, str>,
    /// Its log-probability; -9999 for what cannot be.
    pub logprob: f32,
    /// Its bytes.
    pub bytes: &'a [u8],
}

impl<'a> TopToken<'a> {
    fn new(tokens: Tokens<'a>, id: TokenId, logprob: f32) -> TopToken<'a> {
        TopToken { token: tokens.text(id), logprob: finite(logprob), bytes: tokens.tokenizer.token_bytes(id) }
    }
}

impl<'a> ChatLogprobs<'a> {
    /// The entries of these tokens.
    pub fn new(tokens: Tokens<'a>, list: &[TokenLogprob]) -> ChatLogprobs<'a> {
        let token = |entry: &TokenLogprob| ChatToken {
            token: TopToken::new(tokens, entry.id, entry.logprob),
            top_logprobs: entry.top.iter().map(|&(id, logprob)| TopToken::new(tokens, id, logprob)).collect(),
        };
        ChatLogprobs { content: list.iter().map(token).collect() }
    }
}

/// The log-probabilities of a choice of `/v1/completions`: lists of one length.
#[derive(serde::Serialize, JsonSchema)]
pub(super) struct CompletionLogprobs<'a> {
    /// The tokens as text.
    pub tokens: Vec<Cow<'a, str>>,
    /// Their log-probabilities.
    pub token_logprobs: Vec<f32>,
    /// For each token the likeliest at its place and itself: text to log-probability.
    #[schemars(with = "Vec<BTreeMap<String, f32>>")]
    pub top_logprobs: Vec<TopTokens<'a>>,
    /// Where in the text the tokens begin, in Unicode code points; tokens of an item where its title begins.
    pub text_offset: Vec<usize>,
}

impl<'a> CompletionLogprobs<'a> {
    /// The entries of these tokens, which follow those that `offsets` has seen. `items`: code points of the titles of the
    /// items that end among them.
    pub fn new(
        tokens: Tokens<'a>,
        list: &'a [TokenLogprob],
        offsets: &mut Offsets,
        items: impl IntoIterator<Item = usize>,
    ) -> CompletionLogprobs<'a> {
        let mut items = items.into_iter();
        CompletionLogprobs {
            tokens: list.iter().map(|entry| tokens.text(entry.id)).collect(),
            token_logprobs: list.iter().map(|entry| finite(entry.logprob)).collect(),
            top_logprobs: list.iter().map(|entry| TopTokens { tokens, entry }).collect(),
            text_offset: list.iter().map(|entry| offsets.next(tokens, entry.id, &mut items)).collect(),
        }
    }
}

/// The likeliest tokens at a place and the one that stands there, as an object.
pub(super) struct TopTokens<'a> {
    tokens: Tokens<'a>,
    entry: &'a TokenLogprob,
}

impl Serialize for TopTokens<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let entry = self.entry;
        let own = std::iter::once((entry.id, entry.logprob));
        let mut seen: Vec<Cow<'_, str>> = Vec::with_capacity(entry.top.len() + 1);
        let mut map = serializer.serialize_map(None)?;
        for (id, logprob) in own.chain(entry.top.iter().copied().filter(|(id, _)| *id != entry.id)) {
            // Halves of characters read alike; the first of them, which is the likelier, gets the name.
            let text = self.tokens.text(id);
            if !seen.contains(&text) {
                map.serialize_entry(&text, &finite(logprob))?;
                seen.push(text);
            }
        }
        map.end()
    }
}

/// Where tokens begin in the text of an answer. A stop string counts, though it is not shown.
#[derive(Clone, Debug)]
pub(super) struct Offsets {
    detokenizer: Detokenizer,
    place: usize,
}

impl Offsets {
    pub fn new(tokenizer: &Tokenizer) -> Offsets {
        Offsets { detokenizer: tokenizer.detokenizer(), place: 0 }
    }

    /// Where the next token begins; `items` has the code points of the title when it closes a span.
    fn next(&mut self, tokens: Tokens<'_>, token: TokenId, items: &mut impl Iterator<Item = usize>) -> usize {
        let text = if tokens.spells_items(token) {
            // What was incomplete before a span is shown as it is.
            self.place += self.detokenizer.finish().map_or(0, |text| text.chars().count());
            let start = self.place;
            if tokens.closes(token) {
                self.place += items.next().unwrap_or(0);
            }
            return start;
        } else {
            self.detokenizer.push(token)
        };
        let start = self.place;
        self.place += text.map_or(0, |text| text.chars().count());
        start
    }
}
