//! Who runs in the next step: admission, preemption, and the plan of one ragged batch.
//!
//! Running jobs stay in the order of their admission. A step serves first the rows that decode (text rows, beams, the
//! tokens of a finished span), then pieces of prompts, each prompt an equal share of what is left, then admits from
//! the queue, tenants in turns (`queue`), each first come, first served: a job is admitted when its prompt's blocks, its beams' private blocks and its rows are
//! all to be had, so that beams never wait for memory. Only growing text can run the cache dry; then the youngest job gives
//! way and is computed again later, from what the prefix cache still holds.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::job::{Branch, Job, Phase, Search};
use super::queue::Queue;
use super::validate::Task;
use crate::catalog::Alive;
use crate::device::ops::{
    Delta, Device, Plan, SearchSampling, SearchSpec, Segment, SegmentKind, SidStep, SoftRow, TextRow,
};
use crate::error::Result;
use crate::ids::{SearchId, TokenId};
use crate::kv::{BLOCK_TOKENS, BeamSlots, BlockPool, Registered, Table};

/// Blocks kept free for running text when a new job is admitted beside it, per running job.
const HEADROOM_BLOCKS: usize = 1;

/// Whose row of the outcome is whose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// The next token of job `job`.
    Text { job: usize },
    /// A token of string `branch` of a choice.
    Choice { job: usize, branch: usize },
}

/// The jobs, and the plan that is being made.
pub(super) struct Schedule {
    pub waiting: Queue<Job>,
    /// No waiting job has an earlier deadline.
    pub next_deadline: Option<Instant>,
    /// Work admitted since it was last taken note of.
    pub admitted_cost: u64,
    /// In order of admission.
    pub running: Vec<Job>,
    pub pool: BlockPool,
    pub plan: Plan,
    /// One entry per [`Plan::text`].
    pub text_owners: Vec<Owner>,
    /// One entry per [`Plan::sids`]: job and its search.
    pub sid_owners: Vec<(usize, usize)>,
    /// Jobs whose tokens are fed by this step, and how many of them will then be in the cache.
    pub fed: Vec<(usize, usize)>,
    pub max_rows: usize,
    pub opener: Option<TokenId>,
    pub preemptions: u64,
}

impl Schedule {
    pub fn new(pool: BlockPool, max_rows: usize, opener: Option<TokenId>) -> Schedule {
        Schedule {
            waiting: Queue::default(),
            next_deadline: None,
            admitted_cost: 0,
            running: Vec::new(),
            pool,
            plan: Plan::default(),
            text_owners: Vec::new(),
            sid_owners: Vec::new(),
            fed: Vec::new(),
            max_rows,
            opener,
            preemptions: 0,
        }
    }

    /// Lets a new job wait.
    pub fn enqueue(&mut self, job: Job) {
        self.expect_deadline(&job);
        let (tenant, cost) = (job.tenant, job.events.ticket.cost());
        self.waiting.push(tenant, cost, job);
    }

    fn expect_deadline(&mut self, job: &Job) {
        self.next_deadline = self.next_deadline.into_iter().chain(job.deadline).min();
    }

    /// Makes the plan of the next step, at the time `now`; it has no rows if there is nothing to do.
    pub fn make_plan(&mut self, device: &mut dyn Device, now: Instant) -> Result<()> {
        self.plan.clear();
        self.text_owners.clear();
        self.sid_owners.clear();
        self.fed.clear();
        self.plan_decoding(device)?;
        self.plan_prefill(device)?;
        self.admit(device, now)
    }

    fn rows_left(&self) -> usize {
        self.max_rows - self.plan.rows()
    }

    fn plan_decoding(&mut self, device: &mut dyn Device) -> Result<()> {
        let mut at = 0;
        while at < self.running.len() {
            match &self.running[at].phase {
                Phase::Context if self.running[at].in_prefill() => {}
                Phase::Context => {
                    let job = &self.running[at];
                    let (from, to) = (job.computed, job.tokens.len());
                    if to - from <= self.rows_left() && self.make_room(at, to, device) {
                        self.push_context(at, from..to, device)?;
                    }
                }
                Phase::Search(_) => self.push_beams(at),
                Phase::Choice(_) => self.push_branches(at, device),
            }
            at += 1;
        }
        Ok(())
    }

    fn plan_prefill(&mut self, device: &mut dyn Device) -> Result<()> {
        let prefilling: Vec<usize> =
            (0..self.running.len()).filter(|&at| self.running[at].in_prefill()).collect();
        self.share_prefill(&prefilling, device)
    }

    /// Gives each of these jobs an equal share of the rows that are left.
    fn share_prefill(&mut self, jobs: &[usize], device: &mut dyn Device) -> Result<()> {
        for (done, &at) in jobs.iter().enumerate() {
            let share = self.rows_left() / (jobs.len() - done);
            let job = &self.running[at];
            let rows = (job.tokens.len() - job.computed).min(share);
            if rows > 0 {
                self.push_context(at, job.computed..job.computed + rows, device)?;
            }
        }
        Ok(())
    }

    /// Admits waiting jobs while their blocks and rows are to be had.
    fn admit(&mut self, device: &mut dyn Device, now: Instant) -> Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let first = self.running.len();
        let mut reserved: usize = self.running.iter().map(Job::step_rows).sum();
        let mut prompt_rows = 0;
        while let Some(job) = self.waiting.front() {
            let rows = job.step_rows();
            // Admitting what cannot be computed soon would only hold blocks.
            if reserved + rows > self.max_rows || prompt_rows >= self.rows_left() {
                break;
            }
            let prefix = self.pool.lookup(job.tenant, &job.tokens[..job.shareable()]);
            let cached = prefix.len() * BLOCK_TOKENS;
            let shapes = job.private_shapes();
            let private: usize = shapes
                .iter()
                .map(|&(levels, width)| BeamSlots::blocks_needed(levels as u8, width as u32))
                .sum();
            let context = (job.tokens.len() + 1).div_ceil(BLOCK_TOKENS) - prefix.len();
            let headroom = self.running.len() * HEADROOM_BLOCKS;
            if self.pool.stats().available() < context + private + headroom {
                break;
            }
            let Some(mut job) = self.waiting.pop_front() else { break };
            job.table = Table::new(&self.pool, prefix);
            let slots = || {
                shapes.iter().map(|&(levels, width)| BeamSlots::new(&self.pool, levels as u8, width as u32))
            };
            let Some(slots) = job.table.ensure(job.tokens.len() + 1).and_then(|()| slots().collect()) else {
                self.release(&mut job);
                self.waiting.push_front(job);
                break;
            };
            job.slots = slots;
            job.computed = cached;
            job.cached_tokens.get_or_insert(cached);
            job.admitted.get_or_insert(now);
            job.events.ticket.admit();
            self.admitted_cost += job.events.ticket.cost();
            reserved += rows;
            prompt_rows += job.tokens.len() - cached;
            self.running.push(job);
        }
        let admitted: Vec<usize> = (first..self.running.len()).collect();
        self.share_prefill(&admitted, device)
    }

    fn release(&self, job: &mut Job) {
        job.table = Table::new(&self.pool, Vec::new());
        job.slots.clear();
        job.registered = Registered::default();
        job.computed = 0;
        job.phase = Phase::Context;
    }

    /// Makes room for `tokens` tokens of job `at`; the youngest jobs give way. `false`: the job itself gave way.
    fn make_room(&mut self, at: usize, tokens: usize, device: &mut dyn Device) -> bool {
        loop {
            if self.running[at].table.ensure(tokens).is_some() {
                return true;
            }
            self.preempt_youngest(device);
            if at >= self.running.len() {
                return false;
            }
        }
    }

    /// Sends the youngest running job back to the head of the queue. It keeps its answer so far; a search begins again at
    /// its opener, with the same draws.
    fn preempt_youngest(&mut self, device: &mut dyn Device) {
        let Some(mut job) = self.running.pop() else { return };
        close_searches(&job, device);
        self.release(&mut job);
        job.preemptions += 1;
        self.preemptions += 1;
        job.events.ticket.give_way();
        self.expect_deadline(&job);
        tracing::debug!(sequence = job.id.0, preemptions = job.preemptions, "preempted");
        self.waiting.push_front(job);
    }

    /// Adds a piece of a job's tokens to the plan, and what is to be done with its last row.
    fn push_context(&mut self, at: usize, range: Range<usize>, device: &mut dyn Device) -> Result<()> {
        let first = self.plan.rows() as u32;
        let job = &mut self.running[at];
        let table = self.plan.blocks.len() as u32;
        self.plan.blocks.extend(job.table.ids());
        for place in range.clone() {
            self.plan.tokens.push(job.tokens[place]);
            self.plan.positions.push(place as u32);
            self.plan.slots.push(job.table.slot(place as u32));
        }
        for (place, values) in &job.request.soft {
            if range.contains(place) {
                let row = first + (place - range.start) as u32;
                self.plan.soft.push(SoftRow { row, values: Arc::clone(values) });
            }
        }
        self.plan.segments.push(Segment {
            rows: first..self.plan.rows() as u32,
            table: table..self.plan.blocks.len() as u32,
            context: range.start as u32,
            kind: SegmentKind::Causal,
        });
        self.fed.push((at, range.end));
        if range.end < job.tokens.len() {
            return Ok(());
        }
        let row = self.plan.rows() as u32 - 1;
        let in_span = job.tokens.last().copied() == self.opener;
        match &job.request.task {
            Task::Items(_) => self.open_searches(at, row, device),
            Task::Text(task) if task.spans.is_some() && in_span => self.open_searches(at, row, device),
            Task::Text(_) => {
                self.push_text(at, row);
                Ok(())
            }
            Task::Choice(task) => {
                for (branch, tokens) in task.tokens.iter().enumerate() {
                    let target = Some(tokens[0]);
                    self.plan.text.push(TextRow { target, ..scored(row) });
                    self.text_owners.push(Owner::Choice { job: at, branch });
                }
                Ok(())
            }
        }
    }

    fn push_text(&mut self, at: usize, row: u32) {
        let job = &self.running[at];
        let (Task::Text(task), Some(answer)) = (&job.request.task, &job.text) else { return };
        let draw = job.answer_len();
        let view = job.request.view.as_deref();
        self.plan.text.push(TextRow {
            row,
            sampling: Arc::clone(&task.sampling),
            draw: draw as u64,
            counts: answer.counts(),
            allow_open: task.spans.is_some() && view.is_some_and(|view| answer.may_open(view)),
            banned: if draw < task.min_tokens { task.end.clone() } else { Vec::new() },
            top_logprobs: job.request.logprobs.unwrap_or(0),
            target: None,
        });
        self.text_owners.push(Owner::Text { job: at });
    }

    /// Opens the searches of a job whose opener stands at `row`.
    fn open_searches(&mut self, at: usize, row: u32, device: &mut dyn Device) -> Result<()> {
        let job = &mut self.running[at];
        let mut searches = Vec::new();
        for spec in search_specs(job) {
            let id = device.open_search(spec)?;
            self.sid_owners.push((at, searches.len()));
            self.plan.sids.push(SidStep { search: id, level: 0, row });
            searches.push(Search { id, level: 0, live: 1 });
        }
        // `computed` is moved on when the step is done; the phase says what the outcome belongs to.
        job.phase = Phase::Search(searches);
        Ok(())
    }

    /// Adds the beams of a job's live searches.
    fn push_beams(&mut self, at: usize) {
        let job = &self.running[at];
        let Phase::Search(searches) = &job.phase else { return };
        let live: u32 = searches.iter().map(|search| search.live).sum();
        if live as usize > self.rows_left() {
            return;
        }
        let table = self.plan.blocks.len() as u32;
        self.plan.blocks.extend(job.table.ids());
        let table = table..self.plan.blocks.len() as u32;
        for (which, (search, slots)) in searches.iter().zip(&job.slots).enumerate() {
            if search.live == 0 {
                continue;
            }
            let first = self.plan.rows() as u32;
            let private = self.plan.blocks.len() as u32;
            self.plan.blocks.extend(slots.ids());
            // The level whose codes are this step's inputs.
            let input = search.level - 1;
            let context = job.tokens.len() as u32;
            for row in 0..search.live {
                self.plan.tokens.push(TokenId(0));
                self.plan.positions.push(context + u32::from(input));
                self.plan.slots.push(slots.slot(input, row));
            }
            self.plan.segments.push(Segment {
                rows: first..first + search.live,
                table: table.clone(),
                context,
                kind: SegmentKind::Beam {
                    search: search.id,
                    level: input,
                    private: private..self.plan.blocks.len() as u32,
                    stride: slots.stride(),
                },
            });
            self.plan.sids.push(SidStep { search: search.id, level: search.level, row: first });
            self.sid_owners.push((at, which));
        }
    }

    /// Adds those strings of a choice that fit: each a fork of the prompt that shares its full blocks.
    fn push_branches(&mut self, at: usize, device: &mut dyn Device) {
        let Task::Choice(task) = &self.running[at].request.task else { return };
        let strings = task.tokens.len();
        for branch in 0..strings {
            let job = &self.running[at];
            let (Task::Choice(task), Phase::Choice(branches)) = (&job.request.task, &job.phase) else {
                return;
            };
            if branches[branch].done {
                continue;
            }
            // The first token was scored on the prompt's last row; the last one is an input to nothing.
            let tokens = &task.tokens[branch];
            let shared = job.tokens.len() / BLOCK_TOKENS;
            let context = shared * BLOCK_TOKENS;
            let rows = job.tokens.len() - context + tokens.len() - 1;
            if rows > self.rows_left() {
                return;
            }
            let mut table = Table::new(&self.pool, job.table.blocks()[..shared].to_vec());
            if table.ensure(context + rows).is_none() {
                if self.plan.rows() == 0 && at + 1 < self.running.len() {
                    self.preempt_youngest(device);
                }
                return;
            }
            let first = self.plan.rows() as u32;
            let scored_from = first + (job.tokens.len() - context) as u32;
            let blocks = self.plan.blocks.len() as u32;
            self.plan.blocks.extend(table.ids());
            let inputs = job.tokens[context..].iter().chain(&tokens[..tokens.len() - 1]);
            for (i, &token) in inputs.enumerate() {
                self.plan.tokens.push(token);
                self.plan.positions.push((context + i) as u32);
                self.plan.slots.push(table.slot((context + i) as u32));
            }
            for (place, values) in job.request.soft.iter().filter(|(place, _)| *place >= context) {
                let row = first + (place - context) as u32;
                self.plan.soft.push(SoftRow { row, values: Arc::clone(values) });
            }
            self.plan.segments.push(Segment {
                rows: first..first + rows as u32,
                table: blocks..self.plan.blocks.len() as u32,
                context: context as u32,
                kind: SegmentKind::Causal,
            });
            for (i, &target) in tokens[1..].iter().enumerate() {
                self.plan.text.push(TextRow { target: Some(target), ..scored(scored_from + i as u32) });
                self.text_owners.push(Owner::Choice { job: at, branch });
            }
            if let Phase::Choice(branches) = &mut self.running[at].phase {
                branches[branch] = Branch { table: Some(table), done: true, ..branches[branch] };
            }
        }
    }
}

/// A row whose token is given.
fn scored(row: u32) -> TextRow {
    TextRow {
        row,
        sampling: Arc::default(),
        draw: 0,
        counts: Vec::new(),
        allow_open: false,
        banned: Vec::new(),
        top_logprobs: 0,
        target: None,
    }
}

/// The searches that a job begins at its opener.
fn search_specs(job: &Job) -> Vec<SearchSpec> {
    let Some(view) = &job.request.view else { return Vec::new() };
    let delta = |alive: &Alive| {
        view.delta().map(|delta| Delta { catalog: delta.clone(), masks: alive.delta.clone() })
    };
    match (&job.request.task, &job.text) {
        (Task::Items(task), _) => task
            .searches
            .iter()
            .enumerate()
            .map(|(which, search)| SearchSpec {
                catalog: Arc::clone(view.base()),
                types: search.alive.types.clone(),
                delta: delta(&search.alive),
                widths: search.widths.clone(),
                normalizer: task.normalizer,
                groups: task.groups,
                group_penalty: task.group_penalty,
                max_per_prefix: task.max_per_prefix,
                sampling: task.sampling.map(|(temperature, seed)| SearchSampling {
                    temperature,
                    seed,
                    draw: which as u64,
                }),
            })
            .collect(),
        (Task::Text(task), Some(answer)) => {
            let Some(spans) = &task.spans else { return Vec::new() };
            vec![SearchSpec {
                catalog: Arc::clone(view.base()),
                types: answer.alive().types.clone(),
                delta: delta(answer.alive()),
                widths: vec![spans.width; job.depth()],
                normalizer: spans.normalizer,
                groups: 1,
                group_penalty: 0.0,
                max_per_prefix: None,
                sampling: None,
            }]
        }
        _ => Vec::new(),
    }
}

/// Ends a job's searches on the device.
pub(super) fn close_searches(job: &Job, device: &mut dyn Device) {
    if let Phase::Search(searches) = &job.phase {
        let ids: Vec<SearchId> = searches.iter().map(|search| search.id).collect();
        ids.into_iter().for_each(|id| device.close_search(id));
    }
}
