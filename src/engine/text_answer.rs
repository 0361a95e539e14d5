//! A text or mixed answer while it grows.

use std::collections::HashMap;

use super::answer::{AnswerItem, AnswerPart, TokenLogprob};
use super::validate::{TextTask, ValidatedRequest};
use crate::catalog::{Alive, View};
use crate::device::ops::{Path, Sampling, TextOutcome, TokenCount};
use crate::ids::TokenId;
use crate::text::{Detokenizer, StopMatcher, Tokenizer};

/// The visible answer, and what later tokens depend on.
pub(super) struct TextAnswer {
    detokenizer: Detokenizer,
    stop: StopMatcher,
    /// Whether there are stop strings at all.
    stops: bool,
    parts: Vec<AnswerPart>,
    /// One per token of the answer; `None` if the request did not ask.
    logprobs: Option<Vec<TokenLogprob>>,
    /// How many of them the reader has been told.
    sent: usize,
    /// What may still be named: what the request allows, without the SIDs named so far unless repeats are allowed.
    alive: Alive,
    /// Occurrences by token; only kept when a penalty is on.
    counts: Option<HashMap<TokenId, u32>>,
}

/// What a token added to the visible answer.
pub(super) struct Delta {
    pub text: String,
    /// A stop string was met; nothing follows.
    pub stopped: bool,
}

impl TextAnswer {
    pub fn new(tokenizer: &Tokenizer, task: &TextTask, request: &ValidatedRequest) -> TextAnswer {
        TextAnswer {
            detokenizer: tokenizer.detokenizer(),
            stop: StopMatcher::new(task.stop.iter().cloned()),
            stops: !task.stop.is_empty(),
            parts: Vec::new(),
            logprobs: request.logprobs.map(|_| Vec::new()),
            sent: 0,
            alive: task.spans.as_ref().map(|spans| spans.alive.clone()).unwrap_or_default(),
            counts: penalizes(&task.sampling)
                .then(|| request.tokens.iter().map(|&token| (token, 0)).collect()),
        }
    }

    /// Takes a sampled token and its log-probability.
    pub fn record(&mut self, outcome: &TextOutcome) {
        if let Some(counts) = &mut self.counts {
            *counts.entry(outcome.token).or_default() += 1;
        }
        if let Some(logprobs) = &mut self.logprobs {
            let top = outcome.top.clone();
            logprobs.push(TokenLogprob { id: outcome.token, logprob: outcome.logprob, top });
        }
    }

    /// Shows a sampled token.
    pub fn show(&mut self, token: TokenId) -> Delta {
        let Some(text) = self.detokenizer.push(token) else {
            return Delta { text: String::new(), stopped: false };
        };
        if self.stops {
            return self.pass(&text);
        }
        self.append(&text);
        Delta { text, stopped: false }
    }

    fn pass(&mut self, text: &str) -> Delta {
        let emit = self.stop.push(text);
        self.append(&emit.text);
        Delta { text: emit.text, stopped: emit.stopped.is_some() }
    }

    /// Gives out what was held back: before an item, and at the end.
    pub fn flush(&mut self) -> Delta {
        let rest = self.detokenizer.finish().unwrap_or_default();
        let mut delta = self.pass(&rest);
        if !delta.stopped {
            let held = self.stop.finish();
            self.append(&held);
            delta.text.push_str(&held);
        }
        delta
    }

    fn append(&mut self, delta: &str) {
        if delta.is_empty() {
            return;
        }
        match self.parts.last_mut() {
            Some(AnswerPart::Text { text }) => text.push_str(delta),
            _ => self.parts.push(AnswerPart::Text { text: delta.to_owned() }),
        }
    }

    /// Adds an item and the log-probabilities of its codes and closer.
    pub fn add_item(&mut self, item: AnswerItem, codes: &[(TokenId, f32)]) {
        if let Some(logprobs) = &mut self.logprobs {
            let forced = |&(id, logprob): &(TokenId, f32)| TokenLogprob { id, logprob, top: Vec::new() };
            logprobs.extend(codes.iter().map(forced));
        }
        self.parts.push(item.into());
    }

    /// Forgets the log-probability of an opener that a spent budget removes from the answer.
    pub fn remove_opener(&mut self) {
        self.logprobs.as_mut().and_then(Vec::pop);
    }

    /// The log-probabilities that the reader has not been told yet, who is told now; `None` if the request did not ask.
    pub fn unsent_logprobs(&mut self) -> Option<&[TokenLogprob]> {
        let logprobs = self.logprobs.as_deref()?;
        let sent = std::mem::replace(&mut self.sent, logprobs.len());
        Some(&logprobs[sent..])
    }

    /// Makes a path's SID dead for later spans.
    pub fn forbid(&mut self, view: &View, path: &Path) {
        view.forbid(&mut self.alive, path.item_type, &path.codes);
    }

    /// What may still be named.
    pub fn alive(&self) -> &Alive {
        &self.alive
    }

    /// Whether any item may still be named.
    pub fn may_open(&self, view: &View) -> bool {
        view.any_alive(&self.alive)
    }

    /// Occurrences for penalties, by token; empty when none is on.
    pub fn counts(&self) -> Vec<TokenCount> {
        let mut counts: Vec<_> =
            self.counts.iter().flatten().map(|(&token, &answer)| TokenCount { token, answer }).collect();
        counts.sort_unstable_by_key(|count| count.token);
        counts
    }

    /// The parts and log-probabilities, at the end.
    pub fn into_parts(self) -> (Vec<AnswerPart>, Option<Vec<TokenLogprob>>) {
        (self.parts, self.logprobs)
    }
}

fn penalizes(sampling: &Sampling) -> bool {
    sampling.repetition_penalty != 1.0
        || sampling.presence_penalty != 0.0
        || sampling.frequency_penalty != 0.0
}
