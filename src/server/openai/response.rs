//! The answers of OpenAI's routes as they are written out.

use std::borrow::Cow;
use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

use crate::device::ops::Normalizer;
use crate::engine::{Answer, AnswerItem, AnswerPart, Attributes, ChoiceScore, FinishReason};
use crate::ids::TokenId;

/// An answer, or a chunk of one.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "{C}Answer")]
pub(super) struct Envelope<'a, C> {
    /// Id of the answer.
    pub id: &'a str,
    /// What this is.
    pub object: &'static str,
    /// When it was asked for, in seconds since 1970.
    pub created: u64,
    /// The model.
    pub model: &'a str,
    /// The answers.
    pub choices: Vec<C>,
    /// What they cost, all together.
    pub usage: Option<Usage>,
    #[serde(flatten)]
    pub notes: Notes<'a>,
}

/// One answer of several.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "{B}Choice")]
pub(super) struct Choice<'a, B, L> {
    /// Place among the answers.
    pub index: usize,
    #[serde(flatten)]
    pub body: B,
    /// Log-probabilities of its tokens, when asked for.
    pub logprobs: Option<L>,
    /// Why it ended; `null` while it has not.
    pub finish_reason: Option<FinishReason>,
    #[serde(flatten)]
    pub extras: Extras<'a>,
}

/// What a choice has beyond OpenAI's form.
#[derive(Clone, Copy, Default, Serialize, JsonSchema)]
pub(super) struct Extras<'a> {
    /// The strings of a `choice`, best first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub choice_scores: Option<&'a [ChoiceScore]>,
    /// Tokens of the answer, spans included, when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<u32>>")]
    pub token_ids: Option<&'a [TokenId]>,
}

impl<'a> Extras<'a> {
    pub fn of(answer: &'a Answer) -> Extras<'a> {
        Extras { choice_scores: answer.choices.as_deref(), token_ids: answer.token_ids.as_deref() }
    }
}

/// The body of a whole answer of `/v1/chat/completions`.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Chat")]
pub(super) struct ChatBodyOf<'a> {
    pub message: ReplyMessage<'a>,
}

/// The message of the assistant.
#[derive(Serialize, JsonSchema)]
pub(super) struct ReplyMessage<'a> {
    /// `assistant`.
    pub role: &'static str,
    /// The text; items stand in it as their titles, else their ids.
    pub content: Cow<'a, str>,
    /// The items of the text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub items: Option<Vec<Item<'a>>>,
}

/// The body of a chunk of `/v1/chat/completions`.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ChatChunk")]
pub(super) struct ChatDeltaOf<'a> {
    pub delta: Delta<'a>,
}

/// What a chunk adds to a message.
#[derive(Default, Serialize, JsonSchema)]
pub(super) struct Delta<'a> {
    /// `assistant`, in the first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// More text; the title of an item comes as one piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<&'a str>,
    /// The item whose title this piece is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub items: Option<&'a [Item<'a>]>,
}

/// The body of an answer of `/v1/completions`, whole or a chunk.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Completion")]
pub(super) struct TextBodyOf<'a> {
    /// The text, or more of it.
    pub text: Cow<'a, str>,
    /// The items of the text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub items: Option<Cow<'a, [Item<'a>]>>,
}

/// An item with its place in the whole text, in Unicode code points.
#[derive(Clone, Serialize, JsonSchema)]
#[schemars(rename = "PlacedAnswerItem")]
pub(super) struct Item<'a> {
    /// Where its title begins.
    pub start: usize,
    /// Where its title ends.
    pub end: usize,
    /// Item id.
    pub id: &'a str,
    /// Type name.
    #[serde(rename = "type")]
    pub item_type: &'a str,
    /// Codes.
    pub sid: &'a [u16],
    /// Cumulative log-probability of the path in the answer's normaliser.
    pub score: f32,
    /// Title; `null` when the catalog has none, and the text has the id.
    pub title: Option<&'a str>,
    /// Sum of the boosts that apply, when the request has any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boost: Option<f32>,
    /// Log-probability of each code, when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<&'a [f32]>,
    /// The attributes that the request named, `null` where the item has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attributes: Option<&'a Attributes>,
}

impl<'a> Item<'a> {
    /// An item whose title begins at `start`, and what stands for it in the text.
    pub fn at(start: usize, item: &'a AnswerItem) -> (Item<'a>, &'a str) {
        let text = item.title.as_deref().unwrap_or(&item.id);
        let placed = Item {
            start,
            end: start + text.chars().count(),
            id: &item.id,
            item_type: &item.item_type,
            sid: &item.sid,
            score: item.score,
            title: item.title.as_deref(),
            boost: item.boost,
            logprobs: item.logprobs.as_deref(),
            attributes: item.attributes.as_ref(),
        };
        (placed, text)
    }
}

/// The text of a whole answer, and the items in it.
pub(super) fn text_and_items(parts: &[AnswerPart]) -> (String, Vec<Item<'_>>) {
    let (mut content, mut place, mut items) = (String::new(), 0, Vec::new());
    for part in parts {
        match part {
            AnswerPart::Text { text } => {
                content.push_str(text);
                place += text.chars().count();
            }
            AnswerPart::Item { id, item_type, sid, score, title, attributes } => {
                let title = title.as_deref();
                let text = title.unwrap_or(id);
                let start = place;
                place += text.chars().count();
                content.push_str(text);
                let (boost, logprobs) = (None, None);
                items.push(Item {
                    start,
                    end: place,
                    id,
                    item_type,
                    sid,
                    score: *score,
                    title,
                    boost,
                    logprobs,
                    attributes: attributes.as_ref(),
                });
            }
        }
    }
    (content, items)
}

/// What answers cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "OpenAiUsage")]
pub(super) struct Usage {
    /// Tokens of the prompts, each counted once.
    pub prompt_tokens: usize,
    /// Tokens of all answers.
    pub completion_tokens: usize,
    /// Both.
    pub total_tokens: usize,
    /// Of the prompts' tokens.
    pub prompt_tokens_details: PromptTokens,
}

/// Tokens of prompts by what they cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub(super) struct PromptTokens {
    /// Found in the prefix cache.
    pub cached_tokens: usize,
}

impl Usage {
    /// Adds an answer; `first`: it is the first of its prompt.
    pub fn add(&mut self, answer: &Answer, first: bool) {
        if first {
            self.prompt_tokens += answer.usage.prompt_tokens;
            self.prompt_tokens_details.cached_tokens += answer.usage.cached_tokens;
        }
        self.completion_tokens += answer.usage.completion_tokens;
        self.total_tokens = self.prompt_tokens + self.completion_tokens;
    }
}

/// What an answer has beyond OpenAI's form when there is a catalog.
#[derive(Default, Serialize, JsonSchema)]
pub(super) struct Notes<'a> {
    /// Snapshot of the catalog that the request saw.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<&'a str>,
    /// Normaliser of the scores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<Normalizer>,
    /// Whether fewer items were alive than asked for (`items`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exhausted: Option<bool>,
    /// Types whose quota could not be met.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub exhausted_types: Vec<&'a str>,
    /// What was left out: names and counts.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(default)]
    pub dropped: BTreeMap<&'static str, usize>,
}

impl<'a> Notes<'a> {
    /// The notes of answers, `variants` of which belong to one prompt.
    pub fn of(answers: &'a [Answer], variants: usize) -> Notes<'a> {
        let mut notes = Notes::default();
        for answers in answers.chunks(variants) {
            // All answers of a prompt leave the same out; only what was denied meanwhile may differ.
            let mut dropped = BTreeMap::new();
            for answer in answers {
                notes.snapshot = notes.snapshot.or(answer.snapshot.as_deref());
                notes.score = notes.score.or(answer.score);
                notes.exhausted = notes.exhausted.max(answer.exhausted);
                for item_type in &answer.exhausted_types {
                    if !notes.exhausted_types.contains(&item_type.as_str()) {
                        notes.exhausted_types.push(item_type);
                    }
                }
                for (&name, &count) in &answer.dropped {
                    let most: &mut usize = dropped.entry(name).or_default();
                    *most = count.max(*most);
                }
            }
            for (name, count) in dropped {
                *notes.dropped.entry(name).or_default() += count;
            }
        }
        notes
    }
}
