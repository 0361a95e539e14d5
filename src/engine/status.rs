//! What the handles of an engine share with its thread: how much waits, when the last step ended, why the engine died.
//!
//! The engine's thread writes atomics only; the two locks here are taken where a request begins or ends on its reader's
//! side, and when the engine dies.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::answer::Event;
use super::channel::Shared;
use super::counters::Counters;
use crate::catalog::{DenyList, LiveCatalog};
use crate::error::{Error, Result};
use crate::kv::PoolStats;

/// Longest wait that is ever estimated.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3600);

/// Bounds on what waits, checked before a request is handed to the engine. More is refused as [`Error::Overloaded`].
///
/// A request that exceeds the bound on rows or tokens all by itself is accepted while nothing else waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLimits {
    /// Requests that wait and run, together. Default 4096.
    pub requests: usize,
    /// Rows ([`super::ValidatedRequest::rows`]) of the requests that wait. Default: no bound.
    pub rows: usize,
    /// Prompt tokens of the requests that wait. Default: no bound.
    pub tokens: usize,
}

impl Default for QueueLimits {
    fn default() -> QueueLimits {
        QueueLimits { requests: 4096, rows: usize::MAX, tokens: usize::MAX }
    }
}

/// How much an engine has to do, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Requests that wait to be admitted, preempted ones included.
    pub waiting_requests: usize,
    /// Their rows.
    pub waiting_rows: usize,
    /// Tokens of their prompts.
    pub waiting_tokens: usize,
    /// Requests that run.
    pub running_requests: usize,
    /// Blocks of the key/value cache, after the last step.
    pub blocks: BlockCounts,
    /// How long a request that arrives now would wait, estimated: the work that waits, divided by the rate at which work was
    /// admitted lately.
    ///
    /// Work is counted in tokens: those of the prompt, and what the answer may take. The rate is that of the times in which
    /// something waited, each second weighed by `exp(-age / 10 s)`; before the first admission it is taken as if one
    /// request of mean size had been admitted in the time so far. Zero when nothing waits; a day at most.
    pub queue_wait: Duration,
}

/// How many blocks of the key/value cache are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockCounts {
    /// Blocks of the cache.
    pub total: usize,
    /// Blocks that requests hold.
    pub used: usize,
    /// Blocks that nobody holds, kept for the prefixes in them.
    pub cached: usize,
}

/// Whether an engine turns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Why the engine ended, if it has.
    pub dead: Option<String>,
    /// Whether there was nothing to do.
    pub idle: bool,
    /// Time since the last step ended or, after a wait, since work came; when idle, since the wait began.
    ///
    /// A device that hangs shows as an age that grows while `idle` is false.
    pub since_step: Duration,
}

/// What a request weighs in the queue.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Weight {
    pub rows: usize,
    pub tokens: usize,
    /// Its share of the engine's work, in tokens.
    pub cost: u64,
}

/// What all handles of an engine share with its thread.
pub(crate) struct Status {
    /// Items that no reader may be handed any more.
    deny: Arc<DenyList>,
    counters: Arc<Counters>,
    limits: QueueLimits,
    /// Why the engine ended, once it has.
    death: OnceLock<String>,
    /// Requests submitted and not yet ended.
    in_flight: AtomicUsize,
    waiting_requests: AtomicUsize,
    waiting_rows: AtomicUsize,
    waiting_tokens: AtomicUsize,
    waiting_cost: AtomicU64,
    /// Total, used, cached.
    blocks: [AtomicUsize; 3],
    /// Seconds per unit of cost, as the bits of an f64.
    pace: AtomicU64,
    /// What `beat` counts from.
    epoch: Instant,
    /// Twice the nanoseconds at which the last step or the present wait began, plus one when idle.
    beat: AtomicU64,
    /// Counts readers that left before the end.
    departures: AtomicU64,
    readers: Mutex<Slab<Arc<Shared>>>,
    mourners: Mutex<Slab<Waker>>,
}

impl Status {
    pub fn new(catalog: Option<&LiveCatalog>, counters: &Arc<Counters>, limits: QueueLimits) -> Status {
        Status {
            deny: catalog.map(|catalog| catalog.deny_list().clone()).unwrap_or_default(),
            counters: counters.clone(),
            limits,
            death: OnceLock::new(),
            in_flight: AtomicUsize::new(0),
            waiting_requests: AtomicUsize::new(0),
            waiting_rows: AtomicUsize::new(0),
            waiting_tokens: AtomicUsize::new(0),
            waiting_cost: AtomicU64::new(0),
            blocks: Default::default(),
            pace: AtomicU64::new(0),
            epoch: Instant::now(),
            beat: AtomicU64::new(1),
            departures: AtomicU64::new(0),
            readers: Mutex::default(),
            mourners: Mutex::default(),
        }
    }

    /// An event as a reader may have it now: items that were denied while it waited are taken out. `None`: nothing is left of it.
    /// `item` is the item that a token's log-probability leads to.
    pub fn screen(&self, mut event: Event, item: Option<&str>) -> Option<Event> {
        if self.deny.is_empty() {
            return Some(event);
        }
        let gone = match &mut event {
            Event::Item(item) => usize::from(self.deny.contains(&item.id)),
            Event::Finished(answer) => answer.without(|id| self.deny.contains(id)),
            // The tokens of a span spell its item.
            Event::Logprob(_) if item.is_some_and(|id| self.deny.contains(id)) => return None,
            Event::Text(_) | Event::Logprob(_) | Event::Failed(_) => 0,
        };
        self.counters.denied_in_flight.fetch_add(gone as u64, Ordering::Relaxed);
        if gone > 0 && matches!(event, Event::Item(_)) { None } else { Some(event) }
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Why the engine ended, if it has.
    pub fn death(&self) -> Option<&String> {
        self.death.get()
    }

    /// Says why the engine ended, to everybody who waits; the first reason stays.
    pub fn die(&self, reason: String) {
        if self.death.set(reason).is_err() {
            return;
        }
        // Whoever registers from here on finds the reason.
        let mourners = std::mem::take(&mut *lock(&self.mourners));
        mourners.into_iter().for_each(Waker::wake);
        let readers: Vec<_> = lock(&self.readers).iter().cloned().collect();
        readers.iter().for_each(|shared| shared.alarm());
    }

    /// Keeps a reader to be woken at the engine's death.
    pub fn enter(&self, shared: &Arc<Shared>) -> usize {
        lock(&self.readers).insert(Arc::clone(shared))
    }

    /// Forgets a reader; `early`: before it had the end of its answer.
    pub fn leave(&self, place: usize, early: bool) {
        if early {
            self.departed();
        }
        lock(&self.readers).remove(place);
    }

    /// Counts a request that nobody waits for any more.
    pub fn departed(&self) {
        self.departures.fetch_add(1, Ordering::Release);
    }

    /// Changes whenever a reader leaves before the end.
    pub fn departures(&self) -> u64 {
        self.departures.load(Ordering::Acquire)
    }

    /// Says that a step has ended or, `idle`, that there is nothing to do; or that there is again.
    pub fn beat(&self, now: Instant, idle: bool) {
        let nanos = now.saturating_duration_since(self.epoch).as_nanos() as u64;
        self.beat.store(nanos << 1 | u64::from(idle), Ordering::Relaxed);
    }

    pub fn health(&self) -> Health {
        let beat = self.beat.load(Ordering::Relaxed);
        let since_step = self.epoch.elapsed().saturating_sub(Duration::from_nanos(beat >> 1));
        Health { dead: self.death.get().cloned(), idle: beat & 1 == 1, since_step }
    }

    pub fn set_blocks(&self, pool: PoolStats) {
        for (count, now) in self.blocks.iter().zip([pool.total, pool.used, pool.cached]) {
            count.store(now, Ordering::Relaxed);
        }
    }

    /// Work that waits, and in how many requests.
    pub fn backlog(&self) -> (u64, usize) {
        (self.waiting_cost.load(Ordering::Relaxed), self.waiting_requests.load(Ordering::Relaxed))
    }

    pub fn set_pace(&self, seconds_per_cost: f64) {
        self.pace.store(seconds_per_cost.to_bits(), Ordering::Relaxed);
    }

    pub fn load(&self) -> Load {
        let [waiting_requests, waiting_rows, waiting_tokens, in_flight] =
            [&self.waiting_requests, &self.waiting_rows, &self.waiting_tokens, &self.in_flight]
                .map(|count| count.load(Ordering::Relaxed));
        let [total, used, cached] = [0, 1, 2].map(|i| self.blocks[i].load(Ordering::Relaxed));
        let wait = self.backlog().0 as f64 * f64::from_bits(self.pace.load(Ordering::Relaxed));
        Load {
            waiting_requests,
            waiting_rows,
            waiting_tokens,
            running_requests: in_flight.saturating_sub(waiting_requests),
            blocks: BlockCounts { total, used, cached },
            queue_wait: Duration::from_secs_f64(wait.clamp(0.0, LONGEST_WAIT.as_secs_f64())),
        }
    }

    /// Counts a request in, if it is within the bounds.
    pub fn ticket(self: &Arc<Status>, weight: Weight) -> Result<Ticket> {
        let requests = claim(&self.in_flight, 1, |n| n < self.limits.requests);
        requests.map_err(|n| {
            let most = self.limits.requests;
            overloaded(format!("{n} requests wait or run, and {most} are allowed"))
        })?;
        let alone = |n: usize, more: usize, most: usize| n == 0 || n.saturating_add(more) <= most;
        let Weight { rows, tokens, cost } = weight;
        if let Err(n) = claim(&self.waiting_rows, rows, |n| alone(n, rows, self.limits.rows)) {
            self.in_flight.fetch_sub(1, Ordering::Relaxed);
            return Err(too_much("rows", n, rows, self.limits.rows));
        }
        if let Err(n) = claim(&self.waiting_tokens, tokens, |n| alone(n, tokens, self.limits.tokens)) {
            self.waiting_rows.fetch_sub(rows, Ordering::Relaxed);
            self.in_flight.fetch_sub(1, Ordering::Relaxed);
            return Err(too_much("prompt tokens", n, tokens, self.limits.tokens));
        }
        self.waiting_cost.fetch_add(cost, Ordering::Relaxed);
        self.waiting_requests.fetch_add(1, Ordering::Relaxed);
        Ok(Ticket { status: Arc::clone(self), weight, waiting: true })
    }
}

fn claim(count: &AtomicUsize, amount: usize, fits: impl Fn(usize) -> bool) -> Result<usize, usize> {
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| fits(n).then(|| n + amount))
}

fn overloaded(what: String) -> Error {
    Error::Overloaded(format!("{what}; try again later"))
}

fn too_much(what: &str, waiting: usize, own: usize, most: usize) -> Error {
    overloaded(format!(
        "{waiting} {what} wait, and with the request's {own} they are more than the {most} allowed"
    ))
}

impl std::fmt::Debug for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Status")
            .field("load", &self.load())
            .field("death", &self.death)
            .finish_non_exhaustive()
    }
}

impl Default for Status {
    fn default() -> Status {
        Status::new(None, &Arc::default(), QueueLimits::default())
    }
}

/// A request's place in the counts, given back when it is dropped, whatever ends the request.
pub(crate) struct Ticket {
    status: Arc<Status>,
    weight: Weight,
    waiting: bool,
}

impl Ticket {
    /// The request does not wait any more.
    pub fn admit(&mut self) {
        if std::mem::replace(&mut self.waiting, false) {
            self.leave_queue();
        }
    }

    /// The request gave way and waits again; nobody is refused for that.
    pub fn give_way(&mut self) {
        if !std::mem::replace(&mut self.waiting, true) {
            let (status, Weight { rows, tokens, cost }) = (&self.status, self.weight);
            status.waiting_rows.fetch_add(rows, Ordering::Relaxed);
            status.waiting_tokens.fetch_add(tokens, Ordering::Relaxed);
            status.waiting_cost.fetch_add(cost, Ordering::Relaxed);
            status.waiting_requests.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The request's share of the engine's work.
    pub fn cost(&self) -> u64 {
        self.weight.cost
    }

    fn leave_queue(&self) {
        let (status, Weight { rows, tokens, cost }) = (&self.status, self.weight);
        status.waiting_rows.fetch_sub(rows, Ordering::Relaxed);
        status.waiting_tokens.fetch_sub(tokens, Ordering::Relaxed);
        status.waiting_cost.fetch_sub(cost, Ordering::Relaxed);
        status.waiting_requests.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.waiting {
            self.leave_queue();
        }
        self.status.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Resolves to the reason when the engine has ended. Needs no runtime.
pub struct Death {
    status: Arc<Status>,
    place: Option<usize>,
}

impl Death {
    pub(crate) fn of(status: &Arc<Status>) -> Death {
        Death { status: Arc::clone(status), place: None }
    }
}

impl Future for Death {
    type Output = String;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<String> {
        let status = Arc::clone(&self.status);
        let mut mourners = lock(&status.mourners);
        // Under the lock: either the reason is found here, or the one who dies finds the waker.
        if let Some(reason) = status.death.get() {
            self.place = None;
            return Poll::Ready(reason.clone());
        }
        if let Some(place) = self.place.take() {
            mourners.remove(place);
        }
        self.place = Some(mourners.insert(context.waker().clone()));
        Poll::Pending
    }
}

impl Drop for Death {
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            lock(&self.status.mourners).remove(place);
        }
    }
}

impl std::fmt::Debug for Death {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Death").field(&self.status.death).finish()
    }
}

/// Values at numbered places that are used again.
struct Slab<T> {
    entries: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Default for Slab<T> {
    fn default() -> Slab<T> {
        Slab { entries: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    fn insert(&mut self, value: T) -> usize {
        if let Some(place) = self.free.pop() {
            self.entries[place] = Some(value);
            return place;
        }
        self.entries.push(Some(value));
        self.entries.len() - 1
    }

    fn remove(&mut self, place: usize) {
        if self.entries.get_mut(place).and_then(Option::take).is_some() {
            self.free.push(place);
        }
    }

    fn iter(&self) -> impl Iterator<Item = &T> {
        self.entries.iter().flatten()
    }

    fn into_iter(self) -> impl Iterator<Item = T> {
        self.entries.into_iter().flatten()
    }
}

/// Nothing below panics while holding one of the locks, so what they guard is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
