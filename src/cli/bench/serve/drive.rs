//! The run itself: threads that send requests, as many at a time as there are connections (closed loop) or when they are due (open loop).

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex, OnceLock};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::sync::Notify;
use tokio::task::LocalSet;

use super::clock::{self, Timer};
use super::connection::Connection;
use super::kinds::Slo;
use super::pool::Prepared;
use super::random::Random;
use super::record::{Judge, Recorder};
use super::schedule::Schedule;
use super::target::Target;
use super::verify::Verifier;

/// A stream that is to be dropped is so after 1 to so many pieces.
const MAX_PIECES: usize = 16;
/// Most requests of an open loop that wait for a connection.
const MAX_BACKLOG: usize = 1 << 20;
/// Requests that are sent without looking at answers.
const TURN: usize = 16;

/// When requests are sent.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// Each connection sends when it has its answer.
    Closed,
    /// At this rate per second, whatever becomes of those before.
    Open {
        /// Requests per second.
        rate: f64,
        /// Shape of the gaps' gamma distribution.
        burstiness: f64,
    },
}

/// How much is sent.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// When.
    pub pace: Pace,
    /// Most requests at a time.
    pub concurrency: usize,
    /// Threads that send.
    pub threads: usize,
    /// Requests before the first that counts.
    pub warmup: u64,
    /// Requests.
    pub requests: Option<u64>,
    /// Time in which requests are sent.
    pub duration: Option<Duration>,
    /// Longest time of a request.
    pub timeout: Duration,
    /// Share of streams that are dropped.
    pub cancel: f64,
    /// Key of everything random.
    pub seed: u64,
}

/// What the threads share.
pub struct Work {
    /// Server.
    pub target: Target,
    /// Requests.
    pub pool: Vec<Prepared>,
    /// Catalogs.
    pub verifier: Verifier,
    /// Objectives.
    pub slo: Slo,
    /// How much.
    pub load: Load,
    /// Raw lines.
    pub out: Option<Mutex<BufWriter<File>>>,
    /// Requests that have ended.
    pub ended: AtomicU64,
    /// Whether no more are to be sent.
    pub stop: AtomicBool,
    tickets: AtomicU64,
    warm_tickets: AtomicU64,
    start: Barrier,
    begin: OnceLock<Begin>,
}

#[derive(Clone, Copy)]
struct Begin {
    time: Instant,
    processor: Option<Duration>,
}

/// What a run has shown.
pub struct Outcome {
    /// Counts and times.
    pub recorder: Recorder,
    /// From the first request to the last answer, at least the time in which requests were to be sent.
    pub elapsed: Duration,
    /// Processor time of this process meanwhile.
    pub processor: Option<Duration>,
}

impl Work {
    /// Work that has not begun.
    pub fn new(target: Target, pool: Vec<Prepared>, verifier: Verifier, slo: Slo, load: Load) -> Work {
        Work {
            target,
            pool,
            verifier,
            slo,
            load,
            out: None,
            ended: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            tickets: AtomicU64::new(0),
            warm_tickets: AtomicU64::new(0),
            start: Barrier::new(load.threads),
            begin: OnceLock::new(),
        }
    }

    /// Begin of what counts, once it has begun.
    pub fn begun(&self) -> Option<Instant> {
        self.begin.get().map(|begin| begin.time)
    }

    /// Runs to the end; `look` is called now and then meanwhile.
    pub fn run(self: &Arc<Work>, mut look: impl FnMut(&Work)) -> anyhow::Result<Outcome> {
        let (sender, receiver) = std::sync::mpsc::channel();
        for at in 0..self.load.threads {
            let (work, sender) = (Arc::clone(self), sender.clone());
            std::thread::Builder::new()
                .name(format!("load-{at}"))
                .spawn(move || {
                    // The receiver waits for every thread.
                    let _ = sender.send(thread(&work, at));
                })
                .context("a thread could not be started")?;
        }
        drop(sender);
        let mut recorder = Recorder::default();
        let mut left = self.load.threads;
        while left > 0 {
            match receiver.recv_timeout(Duration::from_millis(200)) {
                Ok(part) => {
                    recorder.merge(&part?);
                    left -= 1;
                }
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => look(self),
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => {
                    anyhow::bail!("a thread of the load ended by a bug")
                }
            }
        }
        if let Some(out) = &self.out {
            out.lock()
                .map_err(|_| anyhow::anyhow!("the raw file's writer failed"))?
                .flush()
                .context("--out")?;
        }
        self.outcome(recorder)
    }

    fn outcome(&self, recorder: Recorder) -> anyhow::Result<Outcome> {
        let begin = self.begin.get().context("the run did not begin")?;
        let until_last =
            recorder.last.map_or(Duration::ZERO, |last| last.saturating_duration_since(begin.time));
        let stopped = self.stop.load(Ordering::Relaxed);
        let planned = self.load.duration.filter(|_| self.load.requests.is_none() && !stopped);
        let processor =
            clock::processor_time().zip(begin.processor).map(|(now, then)| now.saturating_sub(then));
        Ok(Outcome { recorder, elapsed: until_last.max(planned.unwrap_or_default()), processor })
    }
}

/// What the tasks of one thread share.
struct Lane {
    work: Arc<Work>,
    connections: RefCell<Vec<Connection>>,
    recorder: RefCell<Recorder>,
    backlog: RefCell<VecDeque<(u64, Instant)>>,
    in_flight: Cell<usize>,
    idle: Notify,
    /// Begin of what counts; none while warming up.
    begin: Cell<Option<Instant>>,
}

fn thread(work: &Arc<Work>, at: usize) -> anyhow::Result<Recorder> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let lane = Rc::new(Lane {
        work: Arc::clone(work),
        connections: RefCell::default(),
        recorder: RefCell::default(),
        backlog: RefCell::default(),
        in_flight: Cell::new(0),
        idle: Notify::new(),
        begin: Cell::new(None),
    });
    let runtime = runtime.context("a runtime could not be started")?;
    LocalSet::new().block_on(&runtime, run(&lane, at))?;
    let mut recorder = lane.recorder.take();
    recorder.counts.connections = lane.connections.borrow().iter().map(|connection| connection.opened).sum();
    Ok(recorder)
}

async fn run(lane: &Rc<Lane>, at: usize) -> anyhow::Result<()> {
    let (work, load) = (&lane.work, &lane.work.load);
    let share = load.concurrency / load.threads + usize::from(at < load.concurrency % load.threads);
    closed(lane, share).await;
    work.start.wait();
    let now = || Begin { time: Instant::now(), processor: clock::processor_time() };
    lane.begin.set(Some(work.begin.get_or_init(now).time));
    match load.pace {
        Pace::Closed => closed(lane, share).await,
        Pace::Open { rate, burstiness } => {
            let schedule = Schedule::new(rate, burstiness, load.seed);
            open(lane, at, share, schedule).await.context("the timer of the open loop")?;
        }
    }
    Ok(())
}

impl Lane {
    /// Whether requests of the present phase may be sent.
    fn may_send(&self) -> bool {
        let deadline =
            self.begin.get().zip(self.work.load.duration).map(|(begin, duration)| begin + duration);
        !self.work.stop.load(Ordering::Relaxed) && deadline.is_none_or(|deadline| Instant::now() < deadline)
    }

    /// The next request of a closed loop.
    fn ticket(&self) -> Option<u64> {
        let (tickets, limit) = match self.begin.get() {
            Some(_) => (&self.work.tickets, self.work.load.requests.unwrap_or(u64::MAX)),
            None => (&self.work.warm_tickets, self.work.load.warmup),
        };
        let ticket = tickets.fetch_add(1, Ordering::Relaxed);
        (ticket < limit && self.may_send()).then_some(ticket)
    }

    fn connection(&self) -> Connection {
        self.connections.borrow_mut().pop().unwrap_or_else(Connection::new)
    }

    /// Sends one request and records how it ended.
    async fn send(&self, connection: &mut Connection, (index, due): (u64, Instant)) {
        let work = &self.work;
        let prepared = &work.pool[(index % work.pool.len() as u64) as usize];
        let cancel_after = cancel_after(&work.load, prepared, index);
        let timeout = work.load.timeout;
        let exchange = connection.exchange(&work.target, &prepared.bytes, cancel_after, timeout).await;
        let Some(begin) = self.begin.get() else { return };
        let judge = Judge { verifier: &work.verifier, slo: &work.slo, begin };
        let mut recorder = self.recorder.borrow_mut();
        let line = recorder.take(&judge, prepared, (index, due), &exchange, connection);
        if let Some(out) = &work.out
            && let Ok(mut out) = out.lock()
        {
            // A full disk shows when the file is closed.
            let _ = serde_json::to_writer(&mut *out, &line).map(|()| out.write_all(b"\n"));
        }
        work.ended.fetch_add(1, Ordering::Relaxed);
    }
}

/// After how many pieces the answer is dropped, if it is one of those.
fn cancel_after(load: &Load, prepared: &Prepared, index: u64) -> Option<usize> {
    if load.cancel == 0.0 || !prepared.streamed {
        return None;
    }
    let mut random = Random::new(load.seed, 4, index);
    (random.unit() <= load.cancel).then(|| 1 + random.below(MAX_PIECES))
}

/// Sends with so many connections until there are no tickets.
async fn closed(lane: &Rc<Lane>, connections: usize) {
    for _ in 0..connections {
        let task = Task::begin(lane);
        tokio::task::spawn_local(async move {
            let mut connection = task.lane.connection();
            while let Some(index) = task.lane.ticket() {
                task.lane.send(&mut connection, (index, Instant::now())).await;
            }
            task.lane.connections.borrow_mut().push(connection);
        });
    }
    all_ended(lane).await;
}

/// Sends requests when they are due: every `threads`-th of the one schedule. What finds no free connection waits for one; its time runs.
async fn open(lane: &Rc<Lane>, at: usize, connections: usize, schedule: Schedule) -> std::io::Result<()> {
    let load = &lane.work.load;
    let begin = lane.begin.get().unwrap_or_else(Instant::now);
    let mut timer = Timer::new()?;
    let limit = usize::try_from(load.requests.unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
    let in_time = |(_, time): &(usize, Duration)| load.duration.is_none_or(|duration| *time < duration);
    let mut arrivals = schedule.enumerate().take(limit).take_while(in_time).skip(at).step_by(load.threads);
    let (mut awake, mut unsent) = (0, 0);
    'arrivals: for (index, time) in arrivals.by_ref() {
        let due = begin + time;
        while Instant::now() < due {
            timer.sleep_until(due).await?;
            awake = 0;
            if lane.work.stop.load(Ordering::Relaxed) {
                break 'arrivals;
            }
        }
        let arrival = (index as u64, due);
        if lane.in_flight.get() < connections {
            spawn(lane, arrival);
        } else if lane.backlog.borrow().len() < MAX_BACKLOG {
            lane.backlog.borrow_mut().push_back(arrival);
        } else {
            unsent += 1;
        }
        // Behind its time, the loop does not sleep: others must have their turn.
        awake += 1;
        if awake % TURN == 0 {
            tokio::task::yield_now().await;
            if !lane.may_send() {
                break;
            }
        }
    }
    all_ended(lane).await;
    unsent += lane.backlog.borrow().len() as u64;
    if !lane.work.stop.load(Ordering::Relaxed) {
        // Were due as well, and the time was over.
        unsent += arrivals.count() as u64;
    }
    lane.recorder.borrow_mut().counts.unsent += unsent;
    Ok(())
}

/// Sends a request, and then those that wait for a connection.
fn spawn(lane: &Rc<Lane>, arrival: (u64, Instant)) {
    let task = Task::begin(lane);
    tokio::task::spawn_local(async move {
        let lane = &task.lane;
        let mut connection = lane.connection();
        let mut next = Some(arrival);
        while let Some(arrival) = next {
            lane.send(&mut connection, arrival).await;
            next = lane.may_send().then(|| lane.backlog.borrow_mut().pop_front()).flatten();
        }
        lane.connections.borrow_mut().push(connection);
    });
}

/// A task that counts as long as it lives, however it ends.
struct Task {
    lane: Rc<Lane>,
}

impl Task {
    fn begin(lane: &Rc<Lane>) -> Task {
        lane.in_flight.set(lane.in_flight.get() + 1);
        Task { lane: Rc::clone(lane) }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.lane.in_flight.set(self.lane.in_flight.get() - 1);
        if self.lane.in_flight.get() == 0 {
            self.lane.idle.notify_one();
        }
    }
}

async fn all_ended(lane: &Lane) {
    while lane.in_flight.get() > 0 {
        lane.idle.notified().await;
    }
}
