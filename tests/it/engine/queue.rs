//! What may wait, in whose name, and how long.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use sidereal::Error;
use sidereal::device::hash::HashDevice;
use sidereal::engine::{
    EngineBuilder, EngineParts, EventStream, Load, OneOrMany, Output, QueueLimits, Request, Submission, Turn,
};

use super::turnstile::Turnstile;
use super::{ended, hash_engine, until};

fn text(prompt: impl Iterator<Item = i64>, tokens: i64) -> Request {
    Request {
        prompt_token_ids: Some(prompt.collect()),
        max_tokens: Some(tokens),
        ignore_eos: Some(true),
        temperature: Some(0.0),
        ..Request::default()
    }
}

fn beam(width: i64) -> Request {
    Request {
        prompt: Some("hello".to_owned()),
        output: Some(Output::Items),
        n: Some(1),
        beam_width: Some(OneOrMany::One(width)),
        ..Request::default()
    }
}

fn limited(limits: QueueLimits) -> EngineParts {
    EngineBuilder::tiny()
        .unwrap()
        .queue(limits)
        .device(|config| Ok(Box::new(HashDevice::new(config, Duration::ZERO)?)))
        .parts()
        .unwrap()
}

fn of(tenant: u64) -> Submission {
    Submission { tenant, ..Submission::default() }
}

fn finish(parts: &mut EngineParts) {
    while parts.wheel.turn().unwrap() == Turn::Ran {}
}

/// The words that an overload must name.
fn refused(result: sidereal::Result<EventStream>, words: &[&str]) {
    let error = result.expect_err("refused");
    assert!(
        matches!(&error, Error::Overloaded(message) if words.iter().all(|word| message.contains(word))),
        "{error}"
    );
}

fn nothing(load: Load) -> bool {
    let Load { waiting_requests, waiting_rows, waiting_tokens, running_requests, .. } = load;
    (waiting_requests, waiting_rows, waiting_tokens, running_requests) == (0, 0, 0, 0)
        && load.queue_wait.is_zero()
        && load.blocks.used == 0
}

#[test]
fn tenants_share_no_prefixes() {
    let (mut parts, _) = hash_engine(64, 64);
    let mut ask = |tenant| {
        let stream = parts.submit_with(&text(5..45, 3), of(tenant)).unwrap();
        finish(&mut parts);
        let answer = stream.wait().unwrap();
        (answer.text(), answer.usage.cached_tokens)
    };
    let (first, cached) = ask(1);
    assert_eq!(cached, 0);
    assert_eq!(ask(1), (first.clone(), 32), "its own");
    assert_eq!(ask(2), (first.clone(), 0), "another's");
    assert_eq!(ask(0), (first.clone(), 0), "nobody's");
    assert_eq!(ask(2), (first, 32));
}

#[test]
fn a_flood_of_one_tenant_does_not_hold_up_another() {
    // Eight texts at a time.
    let (mut parts, _) = hash_engine(256, 8);
    let flood: Vec<_> = (0..200).map(|i| parts.submit_with(&text(5..9 + i % 3, 6), of(1)).unwrap()).collect();
    parts.wheel.turn().unwrap();
    let mut others: Vec<_> = (0..4).map(|_| parts.submit_with(&text(5..9, 6), of(2)).unwrap()).collect();
    assert_eq!(parts.counters.finished.load(Ordering::Relaxed), 0);
    // Those that run finish; then the two take turns.
    while !others.iter_mut().all(ended) {
        assert_eq!(parts.wheel.turn().unwrap(), Turn::Ran);
    }
    let done = parts.counters.finished.load(Ordering::Relaxed) - 4;
    assert!(done <= 8 + 8, "{done} of the flood were answered before 4 requests of another tenant");
    finish(&mut parts);
    assert!(flood.into_iter().all(|stream| stream.wait().is_ok()), "nobody starves");
}

#[test]
fn one_tenant_is_answered_in_order() {
    // A list has all rows of a step, so there is one at a time: the queue's order is the order of the answers.
    let (mut parts, _) = hash_engine(64, 8);
    let mut streams: Vec<_> = (0..20).map(|_| parts.submit(&beam(8)).unwrap()).collect();
    for done in 1..=streams.len() {
        while parts.counters.finished.load(Ordering::Relaxed) < done as u64 {
            assert_eq!(parts.wheel.turn().unwrap(), Turn::Ran);
        }
        let ended: Vec<bool> = streams.iter_mut().map(ended).collect();
        assert_eq!(ended, (0..20).map(|i| i < done).collect::<Vec<_>>());
    }
}

#[test]
fn rows_that_wait_are_bounded() {
    let mut parts = limited(QueueLimits { rows: 10, ..QueueLimits::default() });
    let first = parts.submit(&beam(8)).unwrap();
    refused(parts.submit(&beam(3)), &["8 rows", "request's 3", "10 allowed"]);
    let second = parts.submit(&beam(2)).unwrap();
    assert_eq!((parts.load().waiting_rows, parts.load().waiting_requests), (10, 2));
    refused(parts.submit(&beam(1)), &["10 rows"]);
    parts.wheel.turn().unwrap();
    // Both run: nothing waits, and even what exceeds the bound by itself may.
    assert_eq!((parts.load().waiting_rows, parts.load().running_requests), (0, 2));
    let third = parts.submit(&beam(24)).unwrap();
    refused(parts.submit(&beam(1)), &["24 rows"]);
    finish(&mut parts);
    assert!([first, second, third].into_iter().all(|stream| stream.wait().is_ok()));
    assert!(nothing(parts.load()), "{:?}", parts.load());
}

#[test]
fn prompt_tokens_that_wait_are_bounded() {
    let mut parts = limited(QueueLimits { tokens: 100, ..QueueLimits::default() });
    let first = parts.submit(&text(0..60, 1)).unwrap();
    refused(parts.submit(&text(0..41, 1)), &["60 prompt tokens", "41", "100 allowed"]);
    let second = parts.submit(&text(0..40, 1)).unwrap();
    assert_eq!(parts.load().waiting_tokens, 100);
    // Whoever leaves makes room at the next turn.
    drop(first);
    parts.wheel.turn().unwrap();
    assert_eq!(parts.load().waiting_tokens, 0);
    let third = parts.submit(&text(0..200, 1)).unwrap();
    refused(parts.submit(&text(0..1, 1)), &["200 prompt tokens"]);
    finish(&mut parts);
    assert!([second, third].into_iter().all(|stream| stream.wait().is_ok()));
    assert!(nothing(parts.load()), "{:?}", parts.load());
}

#[test]
fn a_deadline_ends_what_waits_and_what_runs() {
    let (mut parts, open) = hash_engine(256, 64);
    // Time enough to submit and to turn once, on a busy machine too.
    let soon = Instant::now() + Duration::from_millis(500);
    let until_soon = || Submission { deadline: Some(soon), ..Submission::default() };
    let later = Submission { deadline: Some(soon + Duration::from_secs(3600)), tenant: 3 };
    let running: Vec<_> =
        (0..4).map(|_| parts.submit_with(&text(5..9, 1000), until_soon()).unwrap()).collect();
    let search = parts.submit_with(&beam(4), until_soon()).unwrap();
    parts.wheel.turn().unwrap();
    let waiting = parts.submit_with(&text(5..9, 1000), until_soon()).unwrap();
    let mut patient = parts.submit_with(&text(5..9, 4), later).unwrap();
    assert_eq!(parts.load().running_requests, 5);
    until("the deadline", || Instant::now() >= soon);
    parts.wheel.turn().unwrap();
    // All their blocks went before this step was planned.
    assert_eq!((parts.wheel.jobs(), parts.load().running_requests), (1, 1));
    assert_eq!(open.load(Ordering::Relaxed), 0, "the search is closed");
    for (streams, state) in [(running, "ran"), (vec![search], "ran"), (vec![waiting], "waited")] {
        for stream in streams {
            let error = stream.wait().expect_err("dropped");
            assert_eq!(error.kind(), "deadline_exceeded");
            let words =
                |message: &str| message.contains(state) && message.contains(" ms after it was submitted");
            assert!(matches!(&error, Error::Deadline(message) if words(message)), "{error}");
        }
    }
    finish(&mut parts);
    assert!(ended(&mut patient));
    assert_eq!(parts.counters.expired.load(Ordering::Relaxed), 6);
    assert_eq!(parts.counters.cancelled.load(Ordering::Relaxed), 0);
    assert_eq!(parts.counters.finished.load(Ordering::Relaxed), 1);
    let past = Submission { deadline: Some(soon), ..Submission::default() };
    assert!(matches!(parts.submit_with(&beam(1), past), Err(Error::Deadline(_))));
    assert_eq!(parts.counters.expired.load(Ordering::Relaxed), 7);
    assert!(nothing(parts.load()), "{:?}", parts.load());
}

#[test]
fn the_wait_is_estimated_from_what_was_admitted() {
    let (mut parts, _) = hash_engine(256, 8);
    assert_eq!(parts.load().queue_wait, Duration::ZERO);
    let streams: Vec<_> = (0..400).map(|_| parts.submit(&text(5..9, 8)).unwrap()).collect();
    let (mut start, mut estimate) = (Instant::now(), Duration::ZERO);
    while parts.load().waiting_requests > 0 {
        assert_eq!(parts.wheel.turn().unwrap(), Turn::Ran);
        if estimate.is_zero() && parts.load().waiting_requests <= 200 {
            (start, estimate) = (Instant::now(), parts.load().queue_wait);
        }
    }
    let found = start.elapsed();
    // Steps are alike, so the second half waits as long as the first did; a busy machine stretches either.
    assert!(estimate > found / 20 && estimate < found * 20, "{estimate:?} was estimated, {found:?} it took");
    finish(&mut parts);
    assert!(streams.into_iter().all(|stream| stream.wait().is_ok()));
    assert!(nothing(parts.load()), "{:?}", parts.load());
}

#[test]
fn counts_do_not_drift() {
    let engine = EngineBuilder::tiny()
        .unwrap()
        .max_rows(32)
        .queue(QueueLimits { requests: 48, rows: 200, tokens: 600 })
        .device(|config| Ok(Box::new(HashDevice::new(config, Duration::ZERO)?)))
        .start()
        .unwrap();
    let work = |seed: u64| {
        let mut random = StdRng::seed_from_u64(seed);
        let mut streams = Vec::new();
        let mut accepted = 0;
        while accepted < 150 {
            let request = match random.random_bool(0.5) {
                true => beam(random.random_range(1..30)),
                false => text(0..random.random_range(1..60), random.random_range(1..30)),
            };
            let soon = Instant::now() + Duration::from_micros(random.random_range(0..3000));
            let deadline = random.random_bool(0.2).then_some(soon);
            let submission = Submission { tenant: random.random_range(0..3), deadline };
            match engine.submit_with(engine.validate(&request).unwrap(), submission) {
                Ok(stream) => {
                    accepted += 1;
                    streams.push(stream);
                }
                Err(Error::Overloaded(_)) => std::thread::yield_now(),
                Err(Error::Deadline(_)) => {}
                Err(error) => panic!("{error}"),
            }
            if streams.len() > 8 {
                drop(streams.swap_remove(random.random_range(0..8)));
            }
        }
        for stream in streams {
            assert!(matches!(stream.wait(), Ok(_) | Err(Error::Deadline(_))));
        }
    };
    std::thread::scope(|scope| {
        let work = &work;
        (0..4).for_each(|seed| drop(scope.spawn(move || work(seed))));
    });
    until("rest", || nothing(engine.load()));
    // As many as the bound allows are still accepted together.
    let gate = Turnstile::default();
    drop(engine);
    let engine = gate.engine(|builder| builder.max_requests(48));
    let streams: Vec<_> = (0..48).map(|_| engine.submit(&beam(1)).unwrap()).collect();
    refused(engine.submit(&beam(1)), &["48 requests", "48 are allowed"]);
    gate.open();
    assert!(streams.into_iter().all(|stream| stream.wait().is_ok()));
    until("rest", || nothing(engine.load()));
}

#[test]
fn a_request_says_what_it_weighs() {
    let engine = super::hash_threaded(64, Duration::ZERO);
    let of = |value: serde_json::Value| {
        let request = engine.validate(&Request::from_json(&value.to_string()).unwrap()).unwrap();
        (request.prompt_tokens(), request.rows(), request.output(), request.filter_digest())
    };
    let ids: Vec<i64> = (10..30).collect();
    assert_eq!(of(json!({"prompt_token_ids": ids})), (20, 1, Output::Text, None));
    // The opener is a token of the prompt.
    let items = json!({"prompt_token_ids": ids, "output": "items", "n": 4, "beam_width": [4, 12, 8], "item_types": ["book"]});
    assert_eq!(of(items), (21, 12, Output::Items, None));
    let quotas = json!({"prompt_token_ids": ids, "output": "items", "beam_width": 5,
                        "quotas": [{"type": "book", "n": 2}, {"type": "film", "n": 3}]});
    assert_eq!(of(quotas).1, 10);
    let filter = |year: i64| {
        of(
            json!({"prompt_token_ids": ids, "output": "mixed", "span_beam": 9, "filter": {"attr": "year", "ge": year}}),
        )
    };
    assert_eq!((filter(1990).1, filter(1990).2), (9, Output::Mixed));
    assert!(filter(1990).3.is_some() && filter(1990).3 == filter(1990).3 && filter(1990).3 != filter(1991).3);
}
