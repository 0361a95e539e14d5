//! Answers and the events that lead to them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::request::Output;
use crate::device::ops::Normalizer;
use crate::error::Error;
use crate::ids::TokenId;

/// A step on the way to an answer.
#[derive(Clone, Debug)]
pub enum Event {
    /// More text.
    Text(String),
    /// A token of the answer, when the request asked for log-probabilities: before the text that it becomes part of, those of
    /// a span (opener, codes, closer) before their item. Together they are [`Answer::logprobs`].
    Logprob(TokenLogprob),
    /// An item of a mixed answer, whole.
    Item(AnswerItem),
    /// The end: the whole answer, what was streamed included.
    Finished(Box<Answer>),
    /// The end without an answer; readers see it as an `Err`.
    #[doc(hidden)]
    Failed(Error),
}

impl Event {
    /// Bytes that the event keeps in a queue, about.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Event::Text(text) => text.len(),
            // Text around it is not joined: each token takes two places of the queue.
            Event::Logprob(token) => 2 * size_of::<Event>() + size_of_val(&token.top[..]),
            Event::Item(item) => {
                let attributes = item.attributes.as_ref().map_or(0, map_bytes);
                128 + item.id.len() + item.title.as_ref().map_or(0, String::len) + attributes
            }
            Event::Finished(_) | Event::Failed(_) => 0,
        }
    }
}

/// Attributes of an item by name.
pub type Attributes = serde_json::Map<String, Value>;

/// Bytes that a map takes, about.
fn map_bytes(map: &Attributes) -> usize {
    map.iter().map(|(name, value)| 64 + name.len() + value_bytes(value)).sum()
}

fn value_bytes(value: &Value) -> usize {
    size_of::<Value>()
        + match value {
            Value::String(text) => text.len(),
            Value::Array(values) => values.iter().map(value_bytes).sum(),
            Value::Object(map) => map_bytes(map),
            Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        }
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "server", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// The model ended it, a stop string or token was met, or the list of items is complete.
    Stop,
    /// `max_tokens` or the model's positions were used up.
    Length,
}

impl FinishReason {
    /// As JSON has it: `stop`, `length`.
    pub fn name(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
        }
    }
}

/// An item of an answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "server", derive(schemars::JsonSchema))]
pub struct AnswerItem {
    /// Item id.
    pub id: String,
    /// Type name.
    #[serde(rename = "type")]
    pub item_type: String,
    /// Codes.
    pub sid: Vec<u16>,
    /// Cumulative log-probability of the path in the answer's normaliser.
    pub score: f32,
    /// Sum of the boosts that apply, when the request has any; the ranking is by `score + boost`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boost: Option<f32>,
    /// Title, when the catalog has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// Log-probability of each code, when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Vec<f32>>,
    /// The attributes that the request named, null where the item has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attributes: Option<Attributes>,
}

/// A piece of a text or mixed answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "server", derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum AnswerPart {
    /// Text.
    Text {
        /// The text.
        text: String,
    },
    /// An item.
    Item {
        /// Item id.
        id: String,
        /// Type name.
        item_type: String,
        /// Codes.
        sid: Vec<u16>,
        /// Cumulative log-probability of the path.
        score: f32,
        /// Title, when the catalog has one.
        #[serde(skip_serializing_if = "Option::is_none")]
        title: Option<String>,
        /// The attributes that the request named, null where the item has none.
        #[serde(skip_serializing_if = "Option::is_none")]
        attributes: Option<Attributes>,
    },
}

impl From<AnswerItem> for AnswerPart {
    fn from(item: AnswerItem) -> AnswerPart {
        AnswerPart::Item {
            id: item.id,
            item_type: item.item_type,
            sid: item.sid,
            score: item.score,
            title: item.title,
            attributes: item.attributes,
        }
    }
}

/// Log-probability of a token of the answer, before penalties, bias, masks and temperature; codes in the answer's normaliser.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "server", derive(schemars::JsonSchema))]
pub struct TokenLogprob {
    /// The token.
    #[cfg_attr(feature = "server", schemars(with = "u32"))]
    pub id: TokenId,
    /// Its log-probability; 0 for closers, which are forced.
    pub logprob: f32,
    /// The likeliest tokens at this place, best first; empty inside a span.
    #[cfg_attr(feature = "server", schemars(with = "Vec<(u32, f32)>"))]
    pub top: Vec<(TokenId, f32)>,
}

/// One of the strings of a `choice` request.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "server", derive(schemars::JsonSchema))]
pub struct ChoiceScore {
    /// The string.
    pub text: String,
    /// Sum of the log-probabilities of its tokens and the end token, over the whole vocabulary.
    pub score: f32,
    /// Softmax of the scores over the choices.
    pub probability: f32,
}

/// What an answer cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "server", derive(schemars::JsonSchema))]
pub struct Usage {
    /// Tokens of the prompt, the opener of an `items` answer included.
    pub prompt_tokens: usize,
    /// Of these, found in the prefix cache.
    pub cached_tokens: usize,
    /// Tokens of the answer; for items the codes of the listed items.
    pub completion_tokens: usize,
    /// Beam rows computed.
    pub beam_rows: usize,
}

/// Where the time of an answer went: the three together are the time from its submission to its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// From the submission until it was first admitted.
    pub queue: Duration,
    /// From then until the step that fed the last of the prompt was done.
    pub prefill: Duration,
    /// From then until the end.
    pub decode: Duration,
}

/// A whole answer.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "server", derive(schemars::JsonSchema))]
pub struct Answer {
    /// Id of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Snapshot of the catalog that the request saw.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// What the answer consists of.
    #[serde(skip)]
    pub output: Output,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Normaliser of the scores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<Normalizer>,
    /// Whether fewer items were alive than asked for (`items`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exhausted: Option<bool>,
    /// Types whose quota could not be met.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "server", schemars(default))]
    pub exhausted_types: Vec<String>,
    /// The ranked list (`items`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub items: Option<Vec<AnswerItem>>,
    /// Text and items in order (`text`, `mixed`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<Vec<AnswerPart>>,
    /// The choices, best first (`choice`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub choices: Option<Vec<ChoiceScore>>,
    /// Tokens of the answer, spans included.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schemars(with = "Option<Vec<u32>>"))]
    pub token_ids: Option<Vec<TokenId>>,
    /// One entry per token of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Vec<TokenLogprob>>,
    /// Notes on what was left out: unknown items skipped, history items dropped, tokens cut (names and counts).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[cfg_attr(feature = "server", schemars(default))]
    pub dropped: BTreeMap<&'static str, usize>,
    /// What it cost.
    pub usage: Usage,
    /// Where the time went.
    #[serde(skip)]
    pub timing: Timing,
}

impl Answer {
    /// Takes the items out that `gone` names, and what spells them besides; returns how many there were.
    pub fn without(&mut self, gone: impl Fn(&str) -> bool) -> usize {
        let mut count = 0;
        let mut keep = |id: &str| {
            let gone = gone(id);
            count += usize::from(gone);
            !gone
        };
        if let Some(items) = &mut self.items {
            items.retain(|item| keep(&item.id));
        }
        if let Some(content) = &mut self.content {
            content.retain(|part| match part {
                AnswerPart::Text { .. } => true,
                AnswerPart::Item { id, .. } => keep(id),
            });
        }
        if count > 0 {
            // Tokens spell SIDs too.
            (self.token_ids, self.logprobs) = (None, None);
            *self.dropped.entry("denied_items").or_default() += count;
        }
        count
    }

    /// The text of the answer with items spelled as their titles, or ids.
    pub fn text(&self) -> String {
        let parts = self.content.iter().flatten().map(|part| match part {
            AnswerPart::Text { text } => text.as_str(),
            AnswerPart::Item { id, title, .. } => title.as_deref().unwrap_or(id),
        });
        parts.collect()
    }
}
