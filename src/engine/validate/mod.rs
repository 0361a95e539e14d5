//! The one check: a [`Request`] becomes a [`ValidatedRequest`], or an error that names field, value and bound.
//!
//! Everything that the engine thread later relies on is established here, on the caller's thread: token ids lie in the
//! vocabulary, widths and counts within [`Limits`], the prompt and its answer within the model's positions and the cache.

mod grounding;
mod items;
mod text;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher};
use std::ops::RangeInclusive;
use std::sync::Arc;

use super::gate::Gate;
use super::prompt::Room;
use super::request::{Collisions, Output, Request};
use super::status::Weight;
use crate::catalog::{Alive, FilterLimits, Layout, LiveCatalog, Predicate, View};
use crate::device::ops::{Normalizer, Sampling};
use crate::error::{Error, Result};
use crate::ids::TokenId;
use crate::kv::BLOCK_TOKENS;
use crate::model::Adapter;
use crate::text::Tokenizer;

/// What the answer of a text counts at most towards its share of the work: budgets are seldom used up.
const MOST_ANSWER_COST: usize = 256;

/// Bounds on requests. Defaults suit a server on one machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Widest beam, all searches of a request together; at most 1024. Default 512.
    pub beam_width: usize,
    /// Ids in `allow` and in `exclude`. Default 100,000.
    pub item_ids: usize,
    /// Stop strings, stop tokens, boosts, returned attributes. Default 64.
    pub list: usize,
    /// Strings of a `choice`. Default 256.
    pub choices: usize,
    /// Alternatives per token in `logprobs`. Default 20.
    pub logprobs: usize,
    /// Entries of `logit_bias`. Default 1024.
    pub logit_bias: usize,
    /// Depth and size of `filter`.
    pub filter: FilterLimits,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            beam_width: 512,
            item_ids: 100_000,
            list: 64,
            choices: 256,
            logprobs: 20,
            logit_bias: 1024,
            filter: FilterLimits::default(),
        }
    }
}

/// What turns requests into validated ones: everything but the device.
pub(crate) struct Frontend {
    pub tokenizer: Arc<Tokenizer>,
    pub layout: Option<Arc<Layout>>,
    pub adapter: Option<Adapter>,
    pub limits: Limits,
    /// Rows of the model's embedding.
    pub vocab: usize,
    /// Tokens that one sequence can hold: the model's positions, or less if the cache is smaller.
    pub positions: usize,
    /// End-of-sequence tokens.
    pub eos: Vec<TokenId>,
    /// Defaults of `generation_config.json`.
    pub defaults: Sampling,
    /// Rows of one step: what all beams of a request must fit in.
    pub max_rows: usize,
    /// Blocks of the cache: what a request must fit in.
    pub cache_blocks: usize,
}

/// A request whose every bound has been checked. The only form that the engine accepts.
pub struct ValidatedRequest {
    pub(super) id: Option<String>,
    pub(super) output: Output,
    pub(super) tokens: Vec<TokenId>,
    pub(super) soft: Vec<(usize, Arc<[f32]>)>,
    pub(super) view: Option<Arc<View>>,
    pub(super) gate: Gate,
    pub(super) task: Task,
    pub(super) logprobs: Option<u32>,
    pub(super) return_token_ids: bool,
    /// Attributes to return with the items.
    pub(super) attributes: Option<Vec<String>>,
    pub(super) dropped: BTreeMap<&'static str, usize>,
    /// Levels of the deepest requested type.
    pub(super) depth: usize,
    /// Rows that it occupies at most in a step once its prompt is fed.
    pub(super) rows: usize,
}

impl ValidatedRequest {
    /// The prompt's tokens as the model gets them, the opener of an `items` answer included; soft tokens read 0.
    pub fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    /// Tokens of the prompt, the opener of an `items` answer included.
    pub fn prompt_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Rows that the request occupies at most in a step once its prompt is fed: its beams, or 1 for text.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// What the answer consists of.
    pub fn output(&self) -> Output {
        self.output
    }

    /// A number that tells the request's filter from others, if it has one ([`crate::catalog::Filter::digest`]).
    pub fn filter_digest(&self) -> Option<u64> {
        self.gate.filter.as_ref().map(|filter| filter.digest())
    }

    /// What the request weighs in the queue.
    pub(super) fn weight(&self) -> Weight {
        let answer = match &self.task {
            Task::Items(_) => self.rows * self.depth,
            Task::Text(task) => task.max_tokens.min(MOST_ANSWER_COST),
            Task::Choice(task) => task.tokens.iter().map(Vec::len).sum(),
        };
        Weight { rows: self.rows, tokens: self.tokens.len(), cost: (self.tokens.len() + answer) as u64 }
    }
}

/// What to do with the prompt.
pub(super) enum Task {
    Items(ItemsTask),
    Text(TextTask),
    Choice(ChoiceTask),
}

/// A ranked list of items.
pub(super) struct ItemsTask {
    pub searches: Vec<ItemsSearch>,
    pub by_quota: bool,
    pub normalizer: Normalizer,
    pub groups: u32,
    pub group_penalty: f32,
    pub max_per_prefix: Option<u32>,
    /// Temperature and seed of sampling without replacement.
    pub sampling: Option<(f32, u64)>,
    pub collisions: Collisions,
    pub boosts: Vec<(Predicate, f32)>,
}

/// One beam search of an items request.
pub(super) struct ItemsSearch {
    pub n: usize,
    pub widths: Vec<u32>,
    pub alive: Alive,
}

impl Task {
    /// Levels of the deepest requested type.
    fn depth(&self, view: Option<&View>) -> usize {
        let Some(view) = view else { return 0 };
        let levels = |alive: &Alive| alive.types.iter().map(|(t, _)| view.levels(*t)).max().unwrap_or(0);
        match self {
            Task::Items(task) => task.searches.iter().map(|s| levels(&s.alive)).max().unwrap_or(0),
            Task::Text(task) => task.spans.as_ref().map_or(0, |s| levels(&s.alive)),
            Task::Choice(_) => 0,
        }
    }

    /// Rows of a step once the prompt is fed, at most.
    fn rows(&self, depth: usize) -> usize {
        match self {
            Task::Items(task) => task.searches.iter().map(|s| widest(&s.widths)).sum::<usize>().max(1),
            // After a span its codes and closer are fed together.
            Task::Text(task) => task.spans.as_ref().map_or(1, |s| (s.width as usize).max(depth + 2)),
            Task::Choice(task) => task.tokens.iter().map(Vec::len).max().unwrap_or(1) + BLOCK_TOKENS,
        }
    }
}

/// The widest level of a beam.
pub(super) fn widest(widths: &[u32]) -> usize {
    widths.iter().copied().max().unwrap_or(0) as usize
}

/// Generated text, with items if `spans` says so.
pub(super) struct TextTask {
    pub sampling: Arc<Sampling>,
    pub max_tokens: usize,
    pub min_tokens: usize,
    pub stop: Vec<String>,
    /// Tokens that end the answer: end-of-sequence and the request's own.
    pub end: Vec<TokenId>,
    pub spans: Option<SpanTask>,
}

/// Items inside text.
pub(super) struct SpanTask {
    pub alive: Alive,
    pub normalizer: Normalizer,
    pub width: u32,
    pub allow_repeats: bool,
}

/// A choice between given strings.
pub(super) struct ChoiceTask {
    pub texts: Vec<String>,
    /// Tokens of each string, the end token included.
    pub tokens: Vec<Vec<TokenId>>,
}

fn integer(field: &str, value: Option<i64>, default: usize, bounds: RangeInclusive<usize>) -> Result<usize> {
    let value = value.unwrap_or(default as i64);
    match usize::try_from(value) {
        Ok(value) if bounds.contains(&value) => Ok(value),
        _ => Err(Error::invalid(
            field,
            format!("{value} is outside of the allowed range from {} to {}", bounds.start(), bounds.end()),
        )),
    }
}

fn real(field: &str, value: Option<f64>, default: f32, bounds: RangeInclusive<f32>) -> Result<f32> {
    let Some(value) = value else { return Ok(default) };
    // NaN is in no range.
    if (f64::from(*bounds.start())..=f64::from(*bounds.end())).contains(&value) {
        Ok(value as f32)
    } else {
        Err(Error::invalid(
            field,
            // Not `{}`, which writes 1e300 with all its digits.
            format!("{value:?} is outside of the allowed range from {} to {}", bounds.start(), bounds.end()),
        ))
    }
}

fn at_most(field: &str, len: usize, bound: usize) -> Result<()> {
    if len <= bound {
        return Ok(());
    }
    Err(Error::invalid(field, format!("{len} entries are more than the {bound} allowed")))
}

fn forbid(given: &[(&str, bool)], output: &str, why: &str) -> Result<()> {
    match given.iter().find(|(_, given)| *given) {
        Some((field, _)) => Err(Error::invalid(*field, format!("not allowed with {output}: {why}"))),
        None => Ok(()),
    }
}

impl Frontend {
    /// Checks a request against the model, the catalog and the limits.
    pub fn validate(&self, request: &Request, live: Option<&LiveCatalog>) -> Result<ValidatedRequest> {
        let view = live.map(LiveCatalog::view);
        let output = request.output.unwrap_or_default();
        let filter = match (&request.filter, live) {
            (Some(filter), Some(live)) => {
                Some(Arc::new(live.filters().parse_filter(filter, &self.limits.filter)?))
            }
            _ => None,
        };
        let logprobs = match request.logprobs {
            Some(_) => Some(integer("logprobs", request.logprobs, 0, 0..=self.limits.logprobs)? as u32),
            None => None,
        };
        let mut dropped = BTreeMap::new();
        let (task, room) = match (output, &request.choice) {
            (Output::Items, _) => self.items(request, view.as_deref(), filter.as_deref(), &mut dropped)?,
            (Output::Text, Some(choice)) => self.choice(request, choice)?,
            (Output::Mixed, Some(_)) => return Err(Error::invalid("choice", "needs output text, not mixed")),
            (Output::Text | Output::Mixed, None) => {
                self.text(request, view.as_deref(), filter.as_deref(), &mut dropped)?
            }
        };
        let prompt = self.prompt(request, view.as_deref(), &room)?;
        for (name, count) in [
            ("unknown_items", prompt.unknown),
            ("history_items", prompt.dropped),
            ("prompt_tokens", prompt.cut),
        ] {
            if count > 0 {
                dropped.insert(name, count);
            }
        }
        let mut tokens = prompt.tokens;
        let mut task = task;
        match &mut task {
            Task::Items(_) => {
                let open = self.layout.as_ref().and_then(|layout| layout.open);
                if let Some(open) = open.filter(|open| tokens.last() != Some(open)) {
                    tokens.push(open);
                }
            }
            Task::Text(text) => text.max_tokens = text.max_tokens.min(room.positions - tokens.len()),
            Task::Choice(_) => {}
        }
        let depth = task.depth(view.as_deref());
        Ok(ValidatedRequest {
            id: request.id.clone(),
            output,
            depth,
            rows: task.rows(depth),
            attributes: request.return_attributes.clone(),
            tokens,
            soft: prompt.soft,
            gate: Gate { filter, deny: live.map(|live| live.deny_list().clone()).unwrap_or_default() },
            view,
            task,
            logprobs,
            return_token_ids: request.return_token_ids.unwrap_or(false),
            dropped,
        })
    }

    fn room(&self, answer: usize, private: usize) -> Room {
        let cache = (self.cache_blocks - private.min(self.cache_blocks)) * BLOCK_TOKENS;
        let positions = self.positions.min(cache);
        Room { tokens: positions.saturating_sub(answer), positions, answer }
    }
}

/// The request's seed, or a new one.
fn seed(request: &Request) -> u64 {
    request.seed.map_or_else(|| std::hash::RandomState::new().build_hasher().finish(), |seed| seed as u64)
}
