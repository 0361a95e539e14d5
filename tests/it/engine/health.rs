//! Signs of life, and what happens without them.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use futures_core::Stream;
use sidereal::Error;
use sidereal::engine::{Engine, EventStream, Load, Request};

use super::turnstile::Turnstile;
use super::{hash_threaded, until};

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for a future without a runtime, a minute at most.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return value;
        }
        assert!(Instant::now() < end, "nobody woke the future");
        thread::park_timeout(Duration::from_secs(60));
    }
}

/// Counts how often it is woken.
#[derive(Default)]
struct Alarms(AtomicUsize);

impl Wake for Alarms {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn text() -> Request {
    Request {
        prompt: Some("hello".to_owned()),
        max_tokens: Some(4),
        ignore_eos: Some(true),
        ..Request::default()
    }
}

fn poll(stream: &mut EventStream, waker: &Waker) -> Poll<Option<sidereal::Result<sidereal::engine::Event>>> {
    Pin::new(stream).poll_next(&mut Context::from_waker(waker))
}

#[test]
fn a_device_that_hangs_is_seen_and_given_up() {
    let gate = Turnstile::default();
    let engine = gate.engine(|builder| builder);
    until("the engine to be idle", || engine.health().idle);
    let reader = {
        let stream = engine.submit(&text()).unwrap();
        thread::spawn(move || stream.wait())
    };
    let mut polled = engine.submit(&text()).unwrap();
    gate.wait_for_step();

    let before = engine.health();
    let (health, passed) = {
        let start = Instant::now();
        until("time to pass", || start.elapsed() >= Duration::from_millis(20));
        (engine.health(), start.elapsed())
    };
    assert!(!before.idle && !health.idle && health.dead.is_none());
    assert!(health.since_step >= before.since_step + Duration::from_millis(20), "{before:?}, {health:?}");
    assert!(health.since_step < before.since_step + passed + Duration::from_secs(30));

    let alarms = Arc::new(Alarms::default());
    let waker = Waker::from(alarms.clone());
    assert!(poll(&mut polled, &waker).is_pending());
    let mut died = engine.died();
    assert!(Pin::new(&mut died).poll(&mut Context::from_waker(&waker)).is_pending());
    let dropped = engine.died();
    drop(dropped);
    engine.declare_dead("the device hangs");
    engine.declare_dead("another reason");

    assert_eq!(alarms.0.load(Ordering::SeqCst), 2, "the future's waker and the stream's");
    assert_eq!(block_on(died), "the device hangs");
    assert_eq!(block_on(engine.died()), "the device hangs");
    assert_eq!(engine.health().dead.as_deref(), Some("the device hangs"));
    let dead = |error: &Error| matches!(error, Error::Dead(reason) if reason == "the device hangs");
    assert!(dead(&reader.join().unwrap().unwrap_err()));
    assert!(matches!(poll(&mut polled, &waker), Poll::Ready(Some(Err(error))) if dead(&error)));
    assert!(matches!(poll(&mut polled, &waker), Poll::Ready(None)));
    assert!(dead(&engine.submit(&text()).unwrap_err()));

    // The device comes back: the thread ends without another word, and nothing is left in the counts.
    gate.open();
    until("the thread to end", || {
        let Load { waiting_requests, running_requests, waiting_rows, waiting_tokens, .. } = engine.load();
        (waiting_requests, running_requests, waiting_rows, waiting_tokens) == (0, 0, 0, 0)
    });
    assert!(matches!(poll(&mut polled, &waker), Poll::Ready(None)));
    assert_eq!(engine.counters().finished.load(Ordering::Relaxed), 0);
}

#[test]
fn an_answer_that_is_complete_is_read_after_the_end() {
    let engine = hash_threaded(64, Duration::ZERO);
    let stream = engine.submit(&text()).unwrap();
    until("the answer", || engine.counters().finished.load(Ordering::Relaxed) == 1);
    engine.declare_dead("enough");
    assert_eq!(stream.wait().unwrap().usage.completion_tokens, 4);
    assert!(matches!(engine.submit(&text()), Err(Error::Dead(reason)) if reason == "enough"));
}

#[test]
fn an_engine_that_is_shut_down_tells_who_waits_for_its_death() {
    let engine = hash_threaded(64, Duration::ZERO);
    let (first, second) = (engine.died(), engine.died());
    let waiting = thread::spawn(move || block_on(first));
    engine.generate(&text()).unwrap();
    drop(engine);
    assert_eq!(waiting.join().unwrap(), "it was shut down");
    assert_eq!(block_on(second), "it was shut down");
}

#[test]
fn an_engine_at_work_is_not_idle_and_one_at_rest_is() {
    let engine = hash_threaded(64, Duration::from_millis(1));
    let endless = Request {
        prompt: Some("hello".to_owned()),
        max_tokens: Some(2000),
        ignore_eos: Some(true),
        ..Request::default()
    };
    let stream = engine.submit(&endless).unwrap();
    let steps = |engine: &Engine| engine.counters().steps.load(Ordering::Relaxed);
    until("some steps", || steps(&engine) > 3);
    assert!(!engine.health().idle);
    // Each step renews the sign of life.
    let mut youngest = Duration::MAX;
    let before = steps(&engine);
    until("more steps", || {
        youngest = youngest.min(engine.health().since_step);
        steps(&engine) > before + 20
    });
    assert!(youngest < Duration::from_millis(50), "{youngest:?}");
    drop(stream);
    until("rest", || engine.health().idle);
    assert_eq!(engine.load().running_requests, 0);
}
