//! The device's own threads: fork and join in about a microsecond.
//!
//! A decode step forks a few hundred times, so a wake-up through the kernel per fork would cost more than the work of a
//! small model. Workers therefore watch one word for a while after each job before they sleep. A job is a number of
//! tasks that are taken one by one from a counter; which thread takes which task never changes a result. Whoever asks for
//! the job works on it too, and waits only for workers that did enter: one that is late finds the job closed.

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::error::{Error, Result};

/// The job may be entered. The word below it holds the number of workers inside, the word above the job's number.
const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;

/// Looks at the job word before a worker goes to sleep; about a tenth of a millisecond.
const LOOKS: u32 = 2_000;

/// Looks between two offers of the core to somebody else.
const LOOKS_PER_YIELD: u32 = 50;

type Task<'a> = dyn Fn(usize, usize) + Sync + 'a;

struct Shared {
    /// Job number, open bit, workers inside.
    state: AtomicU64,
    /// The open job.
    task: UnsafeCell<Option<&'static Task<'static>>>,
    tasks: AtomicUsize,
    next: AtomicUsize,
    failed: AtomicBool,
    stop: AtomicBool,
    asleep: AtomicUsize,
    gate: Mutex<()>,
    wake: Condvar,
}

// SAFETY: `task` is written only by the one owner of the pool while the job is closed and nobody is inside, and read
// only by workers that entered an open job; `state` orders the two.
unsafe impl Sync for Shared {}

/// Threads that carry out one job at a time.
pub(super) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// A pool in which jobs run on `threads` threads, the caller's among them.
    ///
    /// # Errors
    /// [`Error::Device`] if `threads` is 0 or the system refuses a thread.
    pub(super) fn new(threads: usize) -> Result<Pool> {
        if threads == 0 {
            return Err(Error::Device("threads is 0; at least 1 is needed".into()));
        }
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            task: UnsafeCell::new(None),
            tasks: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            asleep: AtomicUsize::new(0),
            gate: Mutex::new(()),
            wake: Condvar::new(),
        });
        let mut pool = Pool { shared, workers: Vec::new() };
        for index in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let worker = std::thread::Builder::new()
                .name(format!("sidereal-cpu-{index}"))
                .spawn(move || work(&shared, index))
                .map_err(|e| Error::Device(format!("thread {index} of {threads} cannot be started: {e}")))?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// Threads of a job.
    pub(super) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(thread, i)` once for every `i < tasks`, in no order, and returns when all calls have returned. `thread` is
    /// below [`Pool::threads`] and never the same in two calls at once.
    ///
    /// # Panics
    /// If a call does.
    pub(super) fn run(&mut self, tasks: usize, task: &Task<'_>) {
        if tasks <= 1 || self.workers.is_empty() {
            return (0..tasks).for_each(|i| task(0, i));
        }
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. `Closing` is dropped before this function is left, also by a panic, and waits
        // until no worker is inside; workers do not touch the task outside.
        let task_ref: &'static Task<'static> = unsafe { std::mem::transmute::<&Task<'_>, _>(task) };
        // SAFETY: `&mut self` makes this the only open job, the last one is closed, and nobody is inside.
        unsafe { *shared.task.get() = Some(task_ref) };
        shared.tasks.store(tasks, Ordering::Relaxed);
        shared.next.store(0, Ordering::Relaxed);
        let number = (shared.state.load(Ordering::Relaxed) >> 32) + 1;
        let closing = Closing(shared);
        shared.state.store(number << 32 | OPEN, Ordering::SeqCst);
        if shared.asleep.load(Ordering::SeqCst) > 0 {
            drop(shared.gate.lock().unwrap_or_else(PoisonError::into_inner));
            shared.wake.notify_all();
        }
        take_all(shared, task, 0);
        drop(closing);
        if shared.failed.swap(false, Ordering::Relaxed) {
            resume_unwind(Box::new("a task of the device's pool panicked"));
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        drop(self.shared.gate.lock().unwrap_or_else(PoisonError::into_inner));
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches what its tasks throw, so that it always ends by itself.
            let _ = worker.join();
        }
    }
}

/// Closes the open job and waits until nobody is inside.
struct Closing<'a>(&'a Shared);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut looks = 0;
        while self.0.state.load(Ordering::Acquire) & INSIDE != 0 {
            rest(&mut looks);
        }
    }
}

fn rest(looks: &mut u32) {
    *looks += 1;
    if looks.is_multiple_of(LOOKS_PER_YIELD) {
        std::thread::yield_now();
    } else {
        std::hint::spin_loop();
    }
}

fn take_all(shared: &Shared, task: &Task<'_>, thread: usize) {
    let tasks = shared.tasks.load(Ordering::Relaxed);
    loop {
        let i = shared.next.fetch_add(1, Ordering::Relaxed);
        if i >= tasks {
            return;
        }
        task(thread, i);
    }
}

fn work(shared: &Shared, thread: usize) {
    let (mut last, mut looks) = (0, 0);
    while !shared.stop.load(Ordering::Relaxed) {
        let state = shared.state.load(Ordering::Acquire);
        if state & OPEN == 0 || state >> 32 == last {
            if looks < LOOKS {
                rest(&mut looks);
            } else {
                sleep(shared, last);
                looks = 0;
            }
            continue;
        }
        if shared.state.compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            continue;
        }
        last = state >> 32;
        // SAFETY: this worker is inside an open job, so the owner does not write.
        let task = unsafe { *shared.task.get() };
        if let Some(task) = task
            && catch_unwind(AssertUnwindSafe(|| take_all(shared, task, thread))).is_err()
        {
            shared.failed.store(true, Ordering::Relaxed);
        }
        shared.state.fetch_sub(1, Ordering::AcqRel);
        looks = 0;
    }
}

fn sleep(shared: &Shared, last: u64) {
    let mut gate = shared.gate.lock().unwrap_or_else(PoisonError::into_inner);
    shared.asleep.fetch_add(1, Ordering::SeqCst);
    loop {
        let state = shared.state.load(Ordering::SeqCst);
        let called = state & OPEN != 0 && state >> 32 != last;
        if called || shared.stop.load(Ordering::SeqCst) {
            break;
        }
        gate = shared.wake.wait(gate).unwrap_or_else(PoisonError::into_inner);
    }
    shared.asleep.fetch_sub(1, Ordering::SeqCst);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_in_every_job() {
        for threads in [1, 2, 5] {
            let mut pool = Pool::new(threads).unwrap();
            for round in 0..2_000usize {
                let tasks = round % 23;
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, &|thread, i| {
                    assert!(thread < threads);
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1), "round {round}");
            }
        }
    }

    #[test]
    fn sleeping_workers_are_woken_and_a_panic_reaches_the_caller() {
        let mut pool = Pool::new(3).unwrap();
        while pool.shared.asleep.load(Ordering::SeqCst) < 2 {
            std::thread::yield_now();
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            pool.run(64, &|_, i| assert!(i != 40, "task 40"));
        }));
        assert!(outcome.is_err());
        let sum = AtomicUsize::new(0);
        pool.run(64, &|_, i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 64 * 63 / 2);
    }

    #[test]
    fn no_threads_are_refused() {
        assert!(Pool::new(0).err().unwrap().to_string().contains("at least 1"));
    }
}
