//! The wheel that one thread turns: `schedule -> plan -> run -> outcome`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::answer::Event;
use super::counters::Counters;
use super::job::{Job, Phase};
use super::pace::Pace;
use super::progress::{End, commit_span, fault, finish_choice, items, take_choice_token, take_token};
use super::schedule::{Owner, Schedule, close_searches};
use super::status::Status;
use super::submission::Arrival;
use super::text_answer::TextAnswer;
use super::validate::Task;
use crate::catalog::Layout;
use crate::device::ops::{Device, Outcome, SidOutcome, TextOutcome};
use crate::error::{Error, Result};
use crate::ids::SequenceId;
use crate::kv::{BlockPool, PoolStats, Registered, Table};
use crate::model::decoder;
use crate::text::Tokenizer;

/// What a turn of the wheel did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// A step ran.
    Ran,
    /// There was nothing to run.
    Idle,
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
    pace: Pace,
    /// [`Status::departures`] when the waiting requests were looked at last.
    departures: u64,
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
            pace: Pace::default(),
            departures: 0,
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
        let Arrival { request, submission, at, events } = arrival;
        if events.is_unwanted() {
            // It left before the queue was looked at with it inside.
            self.counters.cancelled.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        let text = match &request.task {
            Task::Text(task) => Some(TextAnswer::new(&self.tokenizer, task, &request)),
            _ => None,
        };
        self.schedule.enqueue(Job {
            id,
            tenant: submission.tenant,
            deadline: submission.deadline,
            submitted: at,
            admitted: None,
            fed: None,
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
        self.drop_unwanted(start);
        self.schedule.make_plan(&mut *self.device, start)?;
        let rows = self.schedule.plan.rows();
        self.gauge(start);
        if rows == 0 {
            self.status.set_blocks(self.pool());
            self.status.beat(start, self.jobs() == 0);
            return Ok(Turn::Idle);
        }
        let planned = Instant::now();
        let fence = self.schedule.pool.begin_step();
        let outcome = decoder::step(&mut *self.device, &self.schedule.plan, self.layers)?;
        self.schedule.pool.end_step(fence);
        let ran = Instant::now();
        self.apply(outcome, ran)?;
        let end = Instant::now();
        let host = (planned - start) + (end - ran);
        let counters = &self.counters;
        counters.steps.fetch_add(1, Ordering::Relaxed);
        counters.rows.fetch_add(rows as u64, Ordering::Relaxed);
        counters.host_nanos.fetch_add(host.as_nanos() as u64, Ordering::Relaxed);
        counters.device_nanos.fetch_add((ran - planned).as_nanos() as u64, Ordering::Relaxed);
        self.status.set_blocks(self.pool());
        self.status.beat(end, self.jobs() == 0);
        Ok(Turn::Ran)
    }

    fn gauge(&mut self, now: Instant) {
        let schedule = &mut self.schedule;
        self.counters.waiting.store(schedule.waiting.len() as u64, Ordering::Relaxed);
        self.counters.running.store(schedule.running.len() as u64, Ordering::Relaxed);
        self.counters.preemptions.store(schedule.preemptions, Ordering::Relaxed);
        let admitted = std::mem::take(&mut schedule.admitted_cost);
        if let Some(pace) = self.pace.turn(now, admitted, !schedule.waiting.is_empty(), self.status.backlog())
        {
            self.status.set_pace(pace);
        }
    }

    /// Forgets the jobs whose readers are gone, and ends those whose time is over; their blocks are free before the next plan is
    /// made.
    fn drop_unwanted(&mut self, now: Instant) {
        let (mut cancelled, mut expired) = (0, 0);
        let mut wanted = |job: &Job| {
            if job.events.is_unwanted() {
                cancelled += 1;
                return false;
            }
            if job.deadline.is_some_and(|deadline| deadline <= now) {
                expired += 1;
                job.events.push(Event::Failed(late(job, now)));
                return false;
            }
            true
        };
        let departures = self.status.departures();
        // The queue may be long, and seldom has anything to look for.
        if departures != self.departures || self.schedule.next_deadline.is_some_and(|next| next <= now) {
            self.departures = departures;
            self.schedule.waiting.retain(|job| wanted(job));
            self.schedule.next_deadline = self.schedule.waiting.iter().filter_map(|job| job.deadline).min();
        }
        let device = &mut *self.device;
        self.schedule.running.retain(|job| {
            let wanted = wanted(job);
            if !wanted {
                close_searches(job, device);
            }
            wanted
        });
        self.counters.cancelled.fetch_add(cancelled, Ordering::Relaxed);
        self.counters.expired.fetch_add(expired, Ordering::Relaxed);
    }

    /// Takes a step's outcome apart.
    fn apply(&mut self, outcome: Outcome, now: Instant) -> Result<()> {
        let jobs = self.schedule.running.len();
        let mut ends: Vec<Option<End>> = (0..jobs).map(|_| None).collect();
        self.count_fed(now);
        self.apply_texts(&outcome.text, &mut ends);
        self.apply_searches(&outcome.sids, &mut ends)?;
        self.share_prefixes(&ends);
        for at in (0..jobs).rev() {
            let Some(end) = ends[at].take() else { continue };
            let job = self.schedule.running.remove(at);
            close_searches(&job, &mut *self.device);
            let (counter, event) = match *end {
                Ok(mut answer) => {
                    answer.timing = job.timing(now);
                    if !matches!(job.request.task, Task::Text(_)) {
                        let tokens = answer.usage.completion_tokens as u64;
                        self.counters.generation_tokens.fetch_add(tokens, Ordering::Relaxed);
                    }
                    (&self.counters.finished, Event::Finished(Box::new(answer)))
                }
                Err(error) => (&self.counters.failed, Event::Failed(error)),
            };
            counter.fetch_add(1, Ordering::Relaxed);
            job.events.push(event);
        }
        Ok(())
    }

    /// Notes what the step has put into the cache, and whose prompts are through.
    fn count_fed(&mut self, now: Instant) {
        for &(at, computed) in &self.schedule.fed {
            let job = &mut self.schedule.running[at];
            job.computed = computed;
            if computed == job.tokens.len() && job.fed.is_none() {
                job.fed = Some(now);
                let cached = job.cached_tokens.unwrap_or(0) as u64;
                self.counters.prompt_tokens.fetch_add(job.prompt_len as u64, Ordering::Relaxed);
                self.counters.cached_tokens.fetch_add(cached, Ordering::Relaxed);
            }
        }
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
                job.registered = pool.register_more(job.tenant, tokens, blocks, job.registered);
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
                        take_token(job, outcome, opener, &self.counters)
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

fn late(job: &Job, now: Instant) -> Error {
    let state = if job.admitted.is_some() { "it ran" } else { "it waited" };
    let waited = now.saturating_duration_since(job.submitted).as_millis();
    Error::Deadline(format!("the request was dropped {waited} ms after it was submitted, while {state}"))
}
