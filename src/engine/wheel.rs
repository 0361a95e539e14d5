//! The wheel that one thread turns: `schedule -> plan -> run -> outcome`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::answer::{Answer, AnswerItem, ChoiceScore, Event, FinishReason, Timing, Usage};
use super::channel::{EventSender, Pushed};
use super::items_answer::Naming;
use super::job::{Branch, Job, Phase};
use super::schedule::{Owner, Schedule, close_searches};
use super::status::Status;
use super::submission::Arrival;
use super::text_answer::TextAnswer;
use super::validate::{ItemsTask, Task};
use crate::catalog::Layout;
use crate::device::ops::{Device, Outcome, Path, SidOutcome, TextOutcome};
use crate::device::random::{COMMIT, Noise};
use crate::error::{Error, Result};
use crate::ids::{SequenceId, TokenId};
use crate::kv::{BlockPool, PoolStats, Registered, Table};
use crate::model::decoder;
use crate::text::Tokenizer;

/// Counters of the engine, readable from any thread.
#[derive(Debug, Default)]
pub struct Counters {
    /// Steps run.
    pub steps: AtomicU64,
    /// Rows computed.
    pub rows: AtomicU64,
    /// Nanoseconds that the host spent on planning and on taking outcomes apart.
    pub host_nanos: AtomicU64,
    /// Nanoseconds that the device ran.
    pub device_nanos: AtomicU64,
    /// Requests answered in full.
    pub finished: AtomicU64,
    /// Requests cancelled by their readers.
    pub cancelled: AtomicU64,
    /// Requests ended by an error of their own.
    pub failed: AtomicU64,
    /// Requests dropped at their deadline.
    pub expired: AtomicU64,
    /// Tokens of the prompts that were fed to their end, those found in the prefix cache included.
    pub prompt_tokens: AtomicU64,
    /// Of these, found in the prefix cache.
    pub cached_tokens: AtomicU64,
    /// Tokens of answers; for items the codes of the listed items.
    pub generation_tokens: AtomicU64,
    /// Times that a job gave way to another.
    pub preemptions: AtomicU64,
    /// Items named.
    pub items: AtomicU64,
    /// Lists with fewer items than asked for, because no more were alive.
    pub exhausted: AtomicU64,
    /// Items that the search named and the gate refused; a bug of ours, always 0.
    pub gate_violations: AtomicU64,
    /// Items that were denied after the search had named them.
    pub denied_in_flight: AtomicU64,
    /// Requests that wait now.
    pub waiting: AtomicU64,
    /// Requests that run now.
    pub running: AtomicU64,
}

/// What a turn of the wheel did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// A step ran.
    Ran,
    /// There was nothing to run.
    Idle,
}

/// What a job ends with; boxed, since most jobs do not end in a step.
type End = Box<Result<Answer>>;

/// Whether and why a text ended.
enum Ended {
    Not,
    Stop,
    Length,
}

/// The device and the jobs it works on.
pub struct Wheel {
    device: Box<dyn Device>,
    layers: usize,
    schedule: Schedule,
    tokenizer: Arc<Tokenizer>,
    layout: Option<Arc<Layout>>,
    counters: Arc<Counters>,
    status: Arc<Status>,
    next_id: u64,
}

/// What a wheel is made from.
pub(crate) struct WheelParts {
    pub device: Box<dyn Device>,
    pub layers: usize,
    pub cache_blocks: usize,
    pub max_rows: usize,
    pub tokenizer: Arc<Tokenizer>,
    pub layout: Option<Arc<Layout>>,
    pub counters: Arc<Counters>,
    pub status: Arc<Status>,
}

impl Wheel {
    pub(crate) fn new(parts: WheelParts) -> Wheel {
        let opener = parts.layout.as_ref().and_then(|layout| layout.open);
        Wheel {
            device: parts.device,
            layers: parts.layers,
            schedule: Schedule::new(BlockPool::new(parts.cache_blocks), parts.max_rows, opener),
            tokenizer: parts.tokenizer,
            layout: parts.layout,
            counters: parts.counters,
            status: parts.status,
            next_id: 0,
        }
    }

    /// Blocks by state.
    pub fn pool(&self) -> PoolStats {
        self.schedule.pool.stats()
    }

    /// Requests that wait or run.
    pub fn jobs(&self) -> usize {
        self.schedule.waiting.len() + self.schedule.running.len()
    }

    /// Queues a request.
    pub(crate) fn submit(&mut self, arrival: Arrival) {
        let Arrival { request, events, .. } = arrival;
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        let text = match &request.task {
            Task::Text(task) => Some(TextAnswer::new(&self.tokenizer, task, &request)),
            _ => None,
        };
        self.schedule.waiting.push_back(Job {
            id,
            tokens: request.tokens.clone(),
            prompt_len: request.tokens.len(),
            computed: 0,
            table: Table::new(&self.schedule.pool, Vec::new()),
            registered: Registered::default(),
            slots: Vec::new(),
            phase: Phase::Context,
            text,
            cached_tokens: None,
            beam_rows: 0,
            preemptions: 0,
            request,
            events,
        });
    }

    /// Runs one step.
    ///
    /// # Errors
    /// The device's; it is final.
    pub fn turn(&mut self) -> Result<Turn> {
        let start = Instant::now();
        self.cancel_unwanted();
        self.schedule.make_plan(&mut *self.device)?;
        let rows = self.schedule.plan.rows();
        self.gauge();
        if rows == 0 {
            return Ok(Turn::Idle);
        }
        let planned = Instant::now();
        let fence = self.schedule.pool.begin_step();
        let outcome = decoder::step(&mut *self.device, &self.schedule.plan, self.layers)?;
        self.schedule.pool.end_step(fence);
        let ran = Instant::now();
        self.apply(outcome)?;
        let host = (planned - start) + ran.elapsed();
        let counters = &self.counters;
        counters.steps.fetch_add(1, Ordering::Relaxed);
        counters.rows.fetch_add(rows as u64, Ordering::Relaxed);
        counters.host_nanos.fetch_add(host.as_nanos() as u64, Ordering::Relaxed);
        counters.device_nanos.fetch_add((ran - planned).as_nanos() as u64, Ordering::Relaxed);
        Ok(Turn::Ran)
    }

    fn gauge(&self) {
        self.counters.waiting.store(self.schedule.waiting.len() as u64, Ordering::Relaxed);
        self.counters.running.store(self.schedule.running.len() as u64, Ordering::Relaxed);
        self.counters.preemptions.store(self.schedule.preemptions, Ordering::Relaxed);
    }

    /// Forgets the jobs whose readers are gone; their blocks are free before the next plan is made.
    fn cancel_unwanted(&mut self) {
        let before = self.jobs();
        let device = &mut *self.device;
        self.schedule.waiting.retain(|job| !job.events.is_unwanted());
        self.schedule.running.retain(|job| {
            let unwanted = job.events.is_unwanted();
            if unwanted {
                close_searches(job, device);
            }
            !unwanted
        });
        self.counters.cancelled.fetch_add((before - self.jobs()) as u64, Ordering::Relaxed);
    }

    /// Takes a step's outcome apart.
    fn apply(&mut self, outcome: Outcome) -> Result<()> {
        let jobs = self.schedule.running.len();
        let mut ends: Vec<Option<End>> = (0..jobs).map(|_| None).collect();
        for &(at, computed) in &self.schedule.fed {
            self.schedule.running[at].computed = computed;
        }
        self.apply_texts(&outcome.text, &mut ends);
        self.apply_searches(&outcome.sids, &mut ends)?;
        self.share_prefixes(&ends);
        for at in (0..jobs).rev() {
            let Some(end) = ends[at].take() else { continue };
            let job = self.schedule.running.remove(at);
            close_searches(&job, &mut *self.device);
            let (counter, event) = match *end {
                Ok(answer) => (&self.counters.finished, Event::Finished(Box::new(answer))),
                Err(error) => (&self.counters.failed, Event::Failed(error)),
            };
            counter.fetch_add(1, Ordering::Relaxed);
            job.events.push(event);
        }
        Ok(())
    }

    /// Registers the blocks of jobs that were just fed to the end, now that their last row is known to be sound.
    fn share_prefixes(&mut self, ends: &[Option<End>]) {
        for &(at, computed) in &self.schedule.fed {
            let job = &mut self.schedule.running[at];
            let sound = !ends[at].as_ref().is_some_and(|end| end.is_err());
            let whole = computed >= job.prompt_len;
            let crossed = computed.is_multiple_of(crate::kv::BLOCK_TOKENS) || computed == job.prompt_len;
            if sound && whole && crossed {
                let tokens = &job.tokens[..computed.min(job.shareable())];
                let (pool, blocks) = (&self.schedule.pool, job.table.blocks());
                job.registered = pool.register_more(0, tokens, blocks, job.registered);
            }
        }
    }

    fn apply_texts(&mut self, outcomes: &[TextOutcome], ends: &mut [Option<End>]) {
        for (owner, outcome) in self.schedule.text_owners.iter().zip(outcomes) {
            match *owner {
                Owner::Text { job: at } => {
                    let job = &mut self.schedule.running[at];
                    let opener = self.schedule.opener;
                    ends[at] = if outcome.fault {
                        Some(Box::new(Err(fault(job))))
                    } else {
                        take_token(job, outcome, opener)
                    };
                }
                Owner::Choice { job: at, branch } => {
                    let job = &mut self.schedule.running[at];
                    if outcome.fault {
                        ends[at] = Some(Box::new(Err(fault(job))));
                    } else {
                        take_choice_token(job, branch, outcome.logprob);
                    }
                }
            }
        }
        for (at, end) in ends.iter_mut().enumerate() {
            if end.is_none() {
                *end = finish_choice(&mut self.schedule.running[at]).map(|answer| Box::new(Ok(answer)));
            }
        }
    }

    fn apply_searches(&mut self, outcomes: &[SidOutcome], ends: &mut [Option<End>]) -> Result<()> {
        for (&(at, which), outcome) in self.schedule.sid_owners.iter().zip(outcomes) {
            let job = &mut self.schedule.running[at];
            if outcome.fault {
                ends[at] = Some(Box::new(Err(fault(job))));
            }
            if let Phase::Search(searches) = &mut job.phase {
                let search = &mut searches[which];
                search.level += 1;
                search.live = outcome.live;
                job.beam_rows += outcome.live as usize;
            }
        }
        for (at, end) in ends.iter_mut().enumerate() {
            let job = &mut self.schedule.running[at];
            let Phase::Search(searches) = &job.phase else { continue };
            if end.is_some() || searches.iter().any(|search| search.live > 0 || search.level == 0) {
                continue;
            }
            let paths = searches
                .iter()
                .map(|search| self.device.search_paths(search.id))
                .collect::<Result<Vec<_>>>()?;
            close_searches(job, &mut *self.device);
            job.phase = Phase::Context;
            *end = match (&job.request.task, &self.layout) {
                (Task::Items(task), _) => Some(Box::new(Ok(items(job, task, &paths, &self.counters)))),
                (_, Some(layout)) => {
                    commit_span(job, layout, paths.into_iter().flatten().collect(), &self.counters)
                }
                _ => None,
            };
        }
        Ok(())
    }
}

fn fault(job: &Job) -> Error {
    Error::Numeric(format!(
        "the model gave logits that are not numbers after {} tokens of the answer",
        job.answer_len()
    ))
}

/// Takes the next token of a text; the answer, if it ended.
fn take_token(job: &mut Job, outcome: &TextOutcome, opener: Option<TokenId>) -> Option<End> {
    let (Task::Text(task), Some(text)) = (&job.request.task, &mut job.text) else { return None };
    let token = outcome.token;
    job.tokens.push(token);
    text.record(outcome);
    let used = job.tokens.len() - job.prompt_len;
    let mut ended = Ended::Not;
    if task.spans.is_some() && Some(token) == opener {
        if used == task.max_tokens {
            // A budget that ends inside a span removes the open span.
            job.tokens.pop();
            text.remove_opener();
            ended = Ended::Length;
        }
    } else if task.end.contains(&token) {
        ended = Ended::Stop;
    } else {
        let delta = text.show(token);
        if delta.stopped {
            ended = Ended::Stop;
        } else if used == task.max_tokens {
            ended = Ended::Length;
        }
        send_text(&job.events, delta.text);
    }
    end_text(job, ended)
}

fn send_text(events: &EventSender, text: String) {
    if !text.is_empty() && events.push(Event::Text(text)) == Pushed::Unwanted {
        tracing::debug!("the reader of an answer is gone");
    }
}

fn end_text(job: &mut Job, ended: Ended) -> Option<End> {
    let finish_reason = match ended {
        Ended::Not => return None,
        Ended::Stop => FinishReason::Stop,
        Ended::Length => FinishReason::Length,
    };
    let mut text = job.text.take()?;
    let delta = text.flush();
    send_text(&job.events, delta.text);
    let (content, logprobs) = text.into_parts();
    let mut answer = answer(job, finish_reason);
    answer.content = Some(content);
    answer.usage.completion_tokens = job.answer_len();
    answer.token_ids = job.request.return_token_ids.then(|| job.tokens[job.prompt_len..].to_vec());
    answer.logprobs = logprobs;
    if let Task::Text(task) = &job.request.task {
        answer.score = task.spans.as_ref().map(|spans| spans.normalizer);
    }
    Some(Box::new(Ok(answer)))
}

/// Commits one of a span's finished paths; the answer, if it ended.
fn commit_span(job: &mut Job, layout: &Layout, mut paths: Vec<Path>, counters: &Counters) -> Option<End> {
    let Task::Text(task) = &job.request.task else { return None };
    let (spans, view) = (task.spans.as_ref()?, job.request.view.clone()?);
    let text = job.text.as_mut()?;
    let used = job.tokens.len() - job.prompt_len;
    let naming = Naming { view: &view, gate: &job.request.gate, counters };
    // What was taken down meanwhile does not compete: another item goes with the text just as well.
    paths.retain(|path| {
        view.items(text.alive(), path.item_type, path.sid, &path.codes)
            .any(|item| !job.request.gate.deny.contains(item.id()))
    });
    let chosen = choose(&paths, task.sampling.temperature, task.sampling.seed, used as u64);
    let named = chosen.and_then(|path| Some((path, naming.best(text.alive(), path)?)));
    let budget = task.max_tokens - used;
    let Some((path, item)) = named.filter(|(path, _)| path.codes.len() < budget) else {
        // Either the budget ends inside the span, or a prompt that ends with an opener left nothing to name.
        let spent = chosen.is_some();
        if job.tokens.len() > job.prompt_len {
            job.tokens.pop();
            text.remove_opener();
        }
        return end_text(job, if spent { Ended::Length } else { Ended::Stop });
    };
    let mut codes: Vec<(TokenId, f32)> = Vec::with_capacity(path.codes.len() + 1);
    let levels = &layout.types[path.item_type.index()].levels;
    for ((&code, level), &logprob) in path.codes.iter().zip(levels).zip(&path.levels) {
        codes.push((level.token(code), logprob));
    }
    codes.extend(layout.close.map(|close| (close, 0.0)));
    let before = text.flush();
    send_text(&job.events, before.text);
    if before.stopped {
        // The text before the span completes a stop string: there the answer ends, without the opener.
        if job.tokens.len() > job.prompt_len {
            job.tokens.pop();
            text.remove_opener();
        }
        return end_text(job, Ended::Stop);
    }
    job.tokens.extend(codes.iter().map(|(token, _)| token));
    if !spans.allow_repeats {
        text.forbid(&view, path);
    }
    counters.items.fetch_add(1, Ordering::Relaxed);
    text.add_item(item.clone(), &codes);
    job.events.push(Event::Item(item));
    let ended = if codes.len() == budget { Ended::Length } else { Ended::Not };
    end_text(job, ended)
}

/// The path that a span commits: the best, or one drawn from softmax(score / temperature).
fn choose(paths: &[Path], temperature: f32, seed: u64, draw: u64) -> Option<&Path> {
    let best = paths.first()?;
    if temperature == 0.0 {
        return Some(best);
    }
    let weight = |path: &Path| (f64::from(path.score - best.score) / f64::from(temperature)).exp();
    let total: f64 = paths.iter().map(weight).sum();
    let mut left = Noise::new(seed, draw, COMMIT).uniform(0) * total;
    paths
        .iter()
        .find(|path| {
            left -= weight(path);
            left <= 0.0
        })
        .or(Some(best))
}

/// The ranked list of an `items` request.
fn items(job: &Job, task: &ItemsTask, paths: &[Vec<Path>], counters: &Counters) -> Answer {
    let mut answer = answer(job, FinishReason::Stop);
    answer.score = Some(task.normalizer);
    let Some(view) = &job.request.view else { return answer };
    let naming = Naming { view, gate: &job.request.gate, counters };
    let ranked = naming.rank(task, paths, job.request.logprobs.is_some());
    counters.exhausted.fetch_add(u64::from(ranked.exhausted), Ordering::Relaxed);
    answer.exhausted = Some(ranked.exhausted);
    answer.exhausted_types = ranked.exhausted_types;
    answer.usage.completion_tokens = ranked.items.iter().map(|item: &AnswerItem| item.sid.len()).sum();
    answer.items = Some(ranked.items);
    answer
}

fn take_choice_token(job: &mut Job, branch: usize, logprob: f32) {
    let Task::Choice(task) = &job.request.task else { return };
    if let Phase::Context = job.phase {
        let branch = |tokens: &Vec<TokenId>| Branch { table: None, score: 0.0, done: tokens.len() == 1 };
        job.phase = Phase::Choice(task.tokens.iter().map(branch).collect());
    }
    if let Phase::Choice(branches) = &mut job.phase {
        branches[branch].score += logprob;
        // The step that used the branch's blocks is over.
        branches[branch].table = None;
    }
}

/// The answer of a `choice` request whose strings are all scored.
fn finish_choice(job: &mut Job) -> Option<Answer> {
    let (Task::Choice(task), Phase::Choice(branches)) = (&job.request.task, &job.phase) else { return None };
    if !branches.iter().all(|branch| branch.done) {
        return None;
    }
    let best = branches.iter().map(|branch| branch.score).fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> = branches.iter().map(|branch| f64::from(branch.score - best).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut choices: Vec<ChoiceScore> = task
        .texts
        .iter()
        .zip(branches)
        .zip(&weights)
        .map(|((text, branch), weight)| ChoiceScore {
            text: text.clone(),
            score: branch.score,
            probability: (weight / total) as f32,
        })
        .collect();
    // Stable: equal scores stay in the request's order.
    choices.sort_by(|a, b| b.score.total_cmp(&a.score));
    let mut answer = answer(job, FinishReason::Stop);
    answer.usage.completion_tokens = task.tokens.iter().map(Vec::len).sum();
    answer.choices = Some(choices);
    Some(answer)
}

/// The frame that all answers share.
fn answer(job: &Job, finish_reason: FinishReason) -> Answer {
    Answer {
        id: job.request.id.clone(),
        snapshot: job.request.view.as_ref().map(|view| view.name().to_owned()),
        output: job.request.output,
        finish_reason,
        score: None,
        exhausted: None,
        exhausted_types: Vec::new(),
        items: None,
        content: None,
        choices: None,
        token_ids: None,
        logprobs: None,
        dropped: job.request.dropped.clone(),
        usage: Usage {
            prompt_tokens: job.prompt_len,
            cached_tokens: job.cached_tokens.unwrap_or(0),
            completion_tokens: 0,
            beam_rows: job.beam_rows,
        },
        timing: Timing::default(),
    }
}
