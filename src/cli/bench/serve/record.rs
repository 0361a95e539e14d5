//! What a run has shown: counts and distributions that threads keep for themselves and that are joined in the end.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::connection::{Connection, End, Exchange};
use super::histogram::Histogram;
use super::kinds::{Kind, Slo, Times};
use super::pool::Prepared;
use super::verify::Verifier;

/// Messages of each sort that are kept.
const KEPT: usize = 5;
/// A request sent so long after its time is late.
const LATE: Duration = Duration::from_millis(1);

/// Messages with their counts; of different ones the first five.
#[derive(Clone, Debug, Default)]
pub struct Messages(Vec<(String, u64)>);

impl Messages {
    /// Counts a message.
    pub fn add(&mut self, message: &str, count: u64) {
        if let Some((_, known)) = self.0.iter_mut().find(|(known, _)| known == message) {
            *known += count;
        } else if self.0.len() < KEPT {
            self.0.push((message.to_owned(), count));
        }
    }

    /// Messages and counts.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(message, count)| (message.as_str(), *count))
    }
}

/// Distributions of one kind of request.
#[derive(Clone, Debug, Default)]
pub struct KindRecord {
    /// Requests sent.
    pub sent: u64,
    /// Requests answered.
    pub done: u64,
    /// To the first content of a stream.
    pub ttft: Histogram,
    /// Between pieces of a stream.
    pub itl: Histogram,
    /// Per token after the first.
    pub tpot: Histogram,
    /// To a whole list.
    pub items: Histogram,
    /// To each item of a stream.
    pub item: Histogram,
    /// To the end.
    pub e2e: Histogram,
}

impl KindRecord {
    /// Adds those of another one.
    pub fn merge(&mut self, other: &KindRecord) {
        self.sent += other.sent;
        self.done += other.done;
        for (own, more) in [
            (&mut self.ttft, &other.ttft),
            (&mut self.itl, &other.itl),
            (&mut self.tpot, &other.tpot),
            (&mut self.items, &other.items),
            (&mut self.item, &other.item),
            (&mut self.e2e, &other.e2e),
        ] {
            own.merge(more);
        }
    }
}

/// Counts of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Requests sent.
    pub sent: u64,
    /// Requests with a whole answer.
    pub done: u64,
    /// Requests refused with 429.
    pub refused: u64,
    /// Of these, without `Retry-After`.
    pub refused_without_retry_after: u64,
    /// Requests that failed otherwise.
    pub errors: u64,
    /// Streams dropped on purpose.
    pub cancelled: u64,
    /// Requests of an open loop sent more than 1 ms after their time.
    pub late: u64,
    /// Requests of an open loop that were due and never sent.
    pub unsent: u64,
    /// Requests that met the objective.
    pub good: u64,
    /// Connections opened.
    pub connections: u64,
    /// Tokens of prompts.
    pub prompt_tokens: u64,
    /// Of these, found in the prefix cache.
    pub cached_tokens: u64,
    /// Tokens of answers.
    pub completion_tokens: u64,
    /// Items named, those of broken and dropped streams included.
    pub items: u64,
    /// Of these, such that should not have been named.
    pub invalid_items: u64,
    /// Lists shorter than asked for that do not say they are exhausted.
    pub short_lists: u64,
}

impl Counts {
    fn merge(&mut self, other: &Counts) {
        let Counts {
            sent, done, refused, refused_without_retry_after, errors, cancelled, late, unsent, ..
        } = other;
        self.sent += sent;
        self.done += done;
        self.refused += refused;
        self.refused_without_retry_after += refused_without_retry_after;
        self.errors += errors;
        self.cancelled += cancelled;
        self.late += late;
        self.unsent += unsent;
        let Counts { good, connections, prompt_tokens, cached_tokens, completion_tokens, .. } = other;
        self.good += good;
        self.connections += connections;
        self.prompt_tokens += prompt_tokens;
        self.cached_tokens += cached_tokens;
        self.completion_tokens += completion_tokens;
        let Counts { items, invalid_items, short_lists, .. } = other;
        self.items += items;
        self.invalid_items += invalid_items;
        self.short_lists += short_lists;
    }
}

/// Everything that one thread has seen.
#[derive(Clone, Debug, Default)]
pub struct Recorder {
    /// Counts.
    pub counts: Counts,
    /// By kind.
    pub kinds: [KindRecord; 4],
    /// Responses by status; 0: none.
    pub statuses: BTreeMap<u16, u64>,
    /// To a refusal.
    pub refusals: Histogram,
    /// From the time a request of an open loop was due to its sending.
    pub lag: Histogram,
    /// What errors said.
    pub errors: Messages,
    /// What is wrong with invalid items.
    pub invalid: Messages,
    /// When the last answer came.
    pub last: Option<Instant>,
}

/// A request beside how it ended: a line of the raw file.
#[derive(Debug, Serialize)]
pub struct Line<'a> {
    index: u64,
    kind: Kind,
    status: u16,
    end: &'static str,
    /// Milliseconds from the begin of the run until it was due, and until it was sent.
    due_ms: f64,
    sent_ms: f64,
    ttft_ms: Option<f64>,
    e2e_ms: f64,
    pieces: usize,
    items: usize,
    invalid: usize,
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    met: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

/// What a request is judged by.
pub struct Judge<'a> {
    /// Catalogs.
    pub verifier: &'a Verifier,
    /// Objectives.
    pub slo: &'a Slo,
    /// Begin of the run.
    pub begin: Instant,
}

fn ns(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Milliseconds with three places.
fn ms(time: Duration) -> f64 {
    time.as_micros() as f64 / 1e3
}

impl Recorder {
    /// Records a request that was due at a time.
    pub fn take<'a>(
        &mut self,
        judge: &Judge<'_>,
        prepared: &Prepared,
        (index, due): (u64, Instant),
        exchange: &'a Exchange,
        connection: &Connection,
    ) -> Line<'a> {
        let reading = &connection.reading;
        let since = |time: Instant| time.saturating_duration_since(due);
        let times = self.times(prepared, exchange, connection, due);
        self.count(exchange, prepared.kind, since(exchange.finished));
        let lag = since(exchange.sent);
        self.lag.record(ns(lag));
        self.counts.late += u64::from(lag > LATE);
        let invalid = self.check(judge, prepared, exchange, connection);
        let done = exchange.end == End::Done;
        if done {
            self.times_of(prepared.kind, &times, connection, due);
        }
        let met = done && judge.slo.is_met(&times);
        self.counts.good += u64::from(met);
        self.last = self.last.max(Some(exchange.finished));
        let (end, error) = match &exchange.end {
            End::Done => ("done", None),
            End::Refused => ("refused", None),
            End::Cancelled => ("cancelled", None),
            End::Failed(message) => ("failed", Some(message.as_str())),
        };
        Line {
            index,
            kind: prepared.kind,
            status: exchange.status,
            end,
            due_ms: ms(due.saturating_duration_since(judge.begin)),
            sent_ms: ms(exchange.sent.saturating_duration_since(judge.begin)),
            ttft_ms: times.ttft.map(ms),
            e2e_ms: ms(times.e2e),
            pieces: reading.pieces.len(),
            items: reading.seen.items.len(),
            invalid,
            prompt_tokens: reading.seen.tokens.map(|tokens| tokens.prompt),
            completion_tokens: reading.seen.tokens.map(|tokens| tokens.completion),
            met,
            error,
        }
    }

    fn times(
        &self,
        prepared: &Prepared,
        exchange: &Exchange,
        connection: &Connection,
        due: Instant,
    ) -> Times {
        let reading = &connection.reading;
        let since = |time: Instant| time.saturating_duration_since(due);
        let e2e = since(exchange.finished);
        let (first, last) = (reading.pieces.first(), reading.pieces.last());
        let tokens = reading.seen.tokens.map_or(0, |tokens| tokens.completion);
        let tpot = match (first, last) {
            // Lists come at once; what they cost per token says nothing.
            (Some(first), Some(last)) if tokens > 1 && !prepared.kind.is_list() => {
                Some((*last - *first).div_f64((tokens - 1) as f64))
            }
            _ => None,
        };
        Times {
            ttft: first.filter(|_| !prepared.kind.is_list()).map(|&first| since(first)),
            itl: reading.pieces.windows(2).map(|pair| pair[1] - pair[0]).max(),
            tpot,
            items: prepared.kind.is_list().then_some(e2e),
            e2e,
        }
    }

    fn count(&mut self, exchange: &Exchange, kind: Kind, time: Duration) {
        let counts = &mut self.counts;
        counts.sent += 1;
        self.kinds[kind as usize].sent += 1;
        *self.statuses.entry(exchange.status).or_default() += 1;
        match &exchange.end {
            End::Done => counts.done += 1,
            End::Cancelled => counts.cancelled += 1,
            End::Refused => {
                counts.refused += 1;
                counts.refused_without_retry_after += u64::from(!exchange.retry_after);
                self.refusals.record(ns(time));
            }
            End::Failed(message) => {
                counts.errors += 1;
                self.errors.add(message, 1);
            }
        }
    }

    /// Looks at the items of an answer, however it ended; returns how many are invalid.
    fn check(
        &mut self,
        judge: &Judge<'_>,
        prepared: &Prepared,
        exchange: &Exchange,
        connection: &Connection,
    ) -> usize {
        let seen = &connection.reading.seen;
        if let Some(tokens) = seen.tokens {
            self.counts.prompt_tokens += tokens.prompt;
            self.counts.cached_tokens += tokens.cached;
            self.counts.completion_tokens += tokens.completion;
        }
        self.counts.items += seen.items.len() as u64;
        let short = prepared.bounds.n().is_some_and(|n| seen.items.len() < n) && !seen.exhausted;
        self.counts.short_lists += u64::from(short && exchange.end == End::Done && seen.snapshot.is_some());
        let faults = judge.verifier.check(&prepared.bounds, seen.snapshot.as_deref(), &seen.items);
        self.counts.invalid_items += faults.len() as u64;
        faults.iter().for_each(|fault| self.invalid.add(fault, 1));
        faults.len()
    }

    fn times_of(&mut self, kind: Kind, times: &Times, connection: &Connection, due: Instant) {
        let reading = &connection.reading;
        let record = &mut self.kinds[kind as usize];
        record.done += 1;
        record.e2e.record(ns(times.e2e));
        let given = [
            (&mut record.ttft, times.ttft),
            (&mut record.tpot, times.tpot),
            (&mut record.items, times.items),
        ];
        for (histogram, time) in given {
            time.into_iter().for_each(|time| histogram.record(ns(time)));
        }
        if !kind.is_list() {
            reading.pieces.windows(2).for_each(|pair| record.itl.record(ns(pair[1] - pair[0])));
        }
        for item in &reading.items {
            record.item.record(ns(item.saturating_duration_since(due)));
        }
    }

    /// Adds what another thread has seen.
    pub fn merge(&mut self, other: &Recorder) {
        self.counts.merge(&other.counts);
        self.kinds.iter_mut().zip(&other.kinds).for_each(|(own, more)| own.merge(more));
        for (&status, &count) in &other.statuses {
            *self.statuses.entry(status).or_default() += count;
        }
        self.refusals.merge(&other.refusals);
        self.lag.merge(&other.lag);
        other.errors.iter().for_each(|(message, count)| self.errors.add(message, count));
        other.invalid.iter().for_each(|(message, count)| self.invalid.add(message, count));
        self.last = self.last.max(other.last);
    }
}
