//! One request inside the engine: its tokens, its cache, and where it stands.

use std::time::Instant;

use super::answer::Timing;
use super::channel::EventSender;
use super::text_answer::TextAnswer;
use super::validate::{Task, ValidatedRequest, widest};
use crate::ids::{SearchId, SequenceId, TokenId};
use crate::kv::{BeamSlots, Registered, Table};

/// A request that waits or runs.
pub(super) struct Job {
    pub id: SequenceId,
    /// In whose name it runs: salt of its prefixes in the cache.
    pub tenant: u64,
    pub deadline: Option<Instant>,
    pub submitted: Instant,
    /// When it was admitted first.
    pub admitted: Option<Instant>,
    /// When the step was done that fed the last of its prompt.
    pub fed: Option<Instant>,
    pub request: ValidatedRequest,
    pub events: EventSender,
    /// Prompt, then answer; spans included.
    pub tokens: Vec<TokenId>,
    pub prompt_len: usize,
    /// Tokens whose keys and values are in the cache.
    pub computed: usize,
    /// Cache blocks of `tokens`; empty while waiting.
    pub table: Table,
    /// What of `table` is in the prefix cache.
    pub registered: Registered,
    /// Private cache places of each of the request's searches; empty while waiting.
    pub slots: Vec<BeamSlots>,
    pub phase: Phase,
    /// The answer so far, for text and mixed.
    pub text: Option<TextAnswer>,
    /// Prompt tokens found in the prefix cache when the job was first admitted.
    pub cached_tokens: Option<usize>,
    pub beam_rows: usize,
    pub preemptions: u32,
}

/// What a running job waits for.
pub(super) enum Phase {
    /// `tokens[computed..]` have to be fed.
    Context,
    /// The tokens are fed; searches walk the trie.
    Search(Vec<Search>),
    /// The prompt is fed; the strings of a `choice` are scored.
    Choice(Vec<Branch>),
}

/// A search on the device.
pub(super) struct Search {
    pub id: SearchId,
    /// Level whose codes are chosen next.
    pub level: u8,
    /// Rows of its next beam segment; 0: it has ended.
    pub live: u32,
}

/// One string of a `choice`: a fork of the prompt.
pub(super) struct Branch {
    /// Cache blocks: the prompt's full ones, shared, then its own.
    pub table: Option<Table>,
    /// Sum of log-probabilities so far.
    pub score: f32,
    pub done: bool,
}

impl Job {
    /// Tokens from the first soft token on are not shared through the prefix cache.
    pub fn shareable(&self) -> usize {
        self.request.soft.first().map_or(self.tokens.len(), |(place, _)| *place)
    }

    /// Whether the prompt is still being fed for the first time, or again after a preemption.
    pub fn in_prefill(&self) -> bool {
        matches!(self.phase, Phase::Context) && self.tokens.len() - self.computed > self.step_rows()
    }

    /// Rows that the job occupies at most in a step once its prompt is fed.
    pub fn step_rows(&self) -> usize {
        self.request.rows
    }

    /// Levels of the deepest requested type.
    pub fn depth(&self) -> usize {
        self.request.depth
    }

    /// `(levels that become inputs, places per level)` of the private cache of each search.
    pub fn private_shapes(&self) -> Vec<(usize, usize)> {
        let levels = self.depth().saturating_sub(1);
        match &self.request.task {
            Task::Items(task) => task.searches.iter().map(|s| (levels, widest(&s.widths))).collect(),
            Task::Text(task) => task.spans.iter().map(|s| (levels, s.width as usize)).collect(),
            Task::Choice(_) => Vec::new(),
        }
    }

    /// Where the time of a job that ends `now` went.
    pub fn timing(&self, now: Instant) -> Timing {
        let admitted = self.admitted.unwrap_or(now);
        let fed = self.fed.unwrap_or(now);
        Timing {
            queue: admitted.saturating_duration_since(self.submitted),
            prefill: fed.saturating_duration_since(admitted),
            decode: now.saturating_duration_since(fed),
        }
    }

    /// Tokens of the answer so far.
    pub fn answer_len(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }
}
