//! The engine's thread without a model: random schedules on the hash device, whose answers depend on every cached token.

mod events;
mod health;
mod queue;
mod turnstile;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures_core::Stream;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use serde_json::{Value, json};
use sidereal::Error;
use sidereal::device::hash::HashDevice;
use sidereal::device::ops::Device;
use sidereal::engine::{
    Answer, BlockCounts, Engine, EngineBuilder, EngineParts, Event, EventStream, Request, Submission, Turn,
};
use sidereal::kv::BLOCK_TOKENS;

/// Bytes of a cache block of the tiny model: 2 layers, one key/value head of 32.
fn block_bytes(builder: &EngineBuilder) -> usize {
    let shape = builder.model_ref().shape();
    2 * shape.layers * shape.kv_heads * shape.head_dim * 4 * BLOCK_TOKENS
}

/// Waits for a condition, a minute at most.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < end, "no sign of {what} for a minute");
        std::thread::yield_now();
    }
}

/// The next event, if it is there.
fn next_now(stream: &mut EventStream) -> Option<sidereal::Result<Event>> {
    match Pin::new(stream).poll_next(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(event) => event,
        Poll::Pending => None,
    }
}

/// Whether an answer is complete; reads what is there of it.
fn ended(stream: &mut EventStream) -> bool {
    loop {
        match Pin::new(&mut *stream).poll_next(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Some(_)) => {}
            Poll::Ready(None) => return true,
            Poll::Pending => return false,
        }
    }
}

fn hash_engine(blocks: usize, rows: usize) -> (EngineParts, Arc<AtomicUsize>) {
    let builder = EngineBuilder::tiny().expect("the demonstration");
    let bytes = blocks * block_bytes(&builder);
    let (sender, receiver) = std::sync::mpsc::channel();
    let parts = builder
        .cache_bytes(bytes)
        .max_rows(rows)
        .device(move |config| {
            let device = HashDevice::new(config, Duration::ZERO)?;
            sender.send(device.open_searches()).expect("the test listens");
            Ok(Box::new(device) as Box<dyn Device>)
        })
        .parts()
        .expect("an engine");
    (parts, receiver.recv().expect("the device was made"))
}

fn prompt(random: &mut StdRng) -> Vec<i64> {
    // Few beginnings, so that prefixes meet; lengths on both sides of block edges.
    let base = random.random_range(0..4i64);
    let length = random.random_range(1..70usize);
    let fork = random.random_range(0..=length);
    (0..length)
        .map(|i| if i < fork { 5 + base * 7 + i as i64 % 50 } else { random.random_range(5..200) })
        .collect()
}

fn request(random: &mut StdRng) -> Value {
    let mut request = json!({"prompt_token_ids": prompt(random), "seed": random.random_range(0..1000)});
    let scores = ["codebook", "vocabulary", "valid"];
    let types = [json!(["book"]), json!(["film", "podcast"]), json!(["book", "film", "podcast"])];
    let more = match random.random_range(0..10) {
        0..=2 => json!({"max_tokens": random.random_range(1..40), "temperature": 1.0, "ignore_eos": true,
                        "logprobs": 2, "return_token_ids": true}),
        3..=5 => json!({"output": "mixed", "max_tokens": random.random_range(1..60), "ignore_eos": true,
                        "temperature": if random.random_bool(0.5) { 0.0 } else { 1.0 },
                        // Openers are rare among the tiny vocabulary's tokens: make them likely.
                        "logit_bias": {"3": 8.0}, "span_beam": random.random_range(1..10),
                        "allow_repeats": random.random_bool(0.3), "return_token_ids": true, "logprobs": 0}),
        6 => json!({"choice": ["yes", "no", "maybe"]}),
        7 => json!({"output": "items", "quotas": [{"type": "podcast", "n": 3}, {"type": "book", "n": 5}],
                    "beam_width": random.random_range(5..12)}),
        _ => json!({"output": "items", "n": 1, "beam_width": random.random_range(1..24),
                    "score": scores[random.random_range(0..3)], "item_types": types[random.random_range(0..3)],
                    "temperature": if random.random_bool(0.7) { 0.0 } else { 0.7 }}),
    };
    let fields = request.as_object_mut().expect("an object");
    fields.extend(more.as_object().expect("an object").clone());
    request
}

/// What of an answer may not depend on the neighbours.
fn essence(answer: &Answer) -> Value {
    let mut value = serde_json::to_value(answer).expect("JSON");
    value["usage"]["cached_tokens"] = json!(0);
    // A search that begins again after a preemption computes its rows again.
    value["usage"]["beam_rows"] = json!(0);
    value
}

fn run_alone(requests: &[Request]) -> Vec<Value> {
    let (mut parts, open) = hash_engine(256, 64);
    let mut answers = Vec::new();
    for request in requests {
        let stream = parts.submit(request).expect("valid");
        while parts.wheel.turn().expect("no fault") == Turn::Ran {}
        answers.push(essence(&stream.wait().expect("an answer")));
    }
    assert_eq!(open.load(Ordering::Relaxed), 0, "searches leak");
    answers
}

struct Schedule<'a> {
    random: StdRng,
    requests: &'a [Request],
    answers: &'a [Value],
    live: Vec<(usize, EventStream)>,
    cancelled: usize,
    expired: usize,
}

impl Schedule<'_> {
    fn run(&mut self, parts: &mut EngineParts) {
        let mut left = self.random.random_range(1..13usize);
        while left > 0 || parts.wheel.jobs() > 0 {
            if left > 0 && self.random.random_bool(0.6) {
                let which = self.random.random_range(0..self.requests.len());
                let soon = Instant::now() + Duration::from_micros(self.random.random_range(0..400));
                let deadline = self.random.random_bool(0.05).then_some(soon);
                let submission = Submission { tenant: self.random.random_range(0..2), deadline };
                match parts.submit_with(&self.requests[which], submission) {
                    Ok(stream) => self.live.push((which, stream)),
                    Err(error) => assert!(matches!(error, Error::Deadline(_)), "{error}"),
                }
                left -= 1;
            }
            if !self.live.is_empty() && self.random.random_bool(0.04) {
                let at = self.random.random_range(0..self.live.len());
                self.live.swap_remove(at);
                self.cancelled += 1;
            }
            let turn = parts.wheel.turn().expect("no fault");
            assert!(turn == Turn::Ran || parts.wheel.jobs() == 0, "{} jobs are stuck", parts.wheel.jobs());
            let pool = parts.wheel.pool();
            assert_eq!(pool.free + pool.used + pool.cached + pool.pending, pool.total);
            assert_eq!(pool.pending, 0, "no step is in flight");
            let load = parts.load();
            assert_eq!(load.waiting_requests + load.running_requests, parts.wheel.jobs());
            assert_eq!(load.blocks, BlockCounts { total: pool.total, used: pool.used, cached: pool.cached });
        }
        assert_eq!(parts.wheel.pool().used, 0, "blocks leak");
        let load = parts.load();
        assert_eq!((load.waiting_requests, load.waiting_rows, load.waiting_tokens), (0, 0, 0));
        for (which, stream) in self.live.drain(..) {
            let answer = match stream.wait() {
                Err(Error::Deadline(_)) => {
                    self.expired += 1;
                    continue;
                }
                answer => essence(&answer.expect("an answer")),
            };
            assert_eq!(answer, self.answers[which], "request {:?}", self.requests[which]);
        }
    }
}

#[test]
fn ten_thousand_random_schedules_leak_nothing_and_change_no_answer() {
    let mut random = StdRng::seed_from_u64(7);
    let requests: Vec<Request> =
        (0..300).map(|_| Request::from_json(&request(&mut random).to_string()).expect("a request")).collect();
    let answers = run_alone(&requests);
    let (mut preemptions, mut cancelled, mut expired, mut cached) = (0, 0, 0, 0);
    for round in 0..40 {
        // From barely enough for the largest request to plenty.
        let (mut parts, open) = hash_engine(11 + round % 12, 48 + round % 3 * 40);
        for s in 0..250 {
            let mut schedule = Schedule {
                random: StdRng::seed_from_u64(random.next_u64() ^ s),
                requests: &requests,
                answers: &answers,
                live: Vec::new(),
                cancelled: 0,
                expired: 0,
            };
            schedule.run(&mut parts);
            assert_eq!(open.load(Ordering::Relaxed), 0, "searches leak");
            cancelled += schedule.cancelled;
            expired += schedule.expired;
        }
        preemptions += parts.counters.preemptions.load(Ordering::Relaxed);
        cached += parts.wheel.pool().cached;
    }
    assert!(preemptions > 500, "only {preemptions} preemptions: the pools are too large to test them");
    assert!(cancelled > 1000, "only {cancelled} cancellations");
    assert!(expired > 100, "only {expired} deadlines");
    assert!(cached > 0, "the prefix cache is not in use");
}

#[test]
fn an_engine_that_panics_dies_with_the_reason_and_the_host_lives() {
    struct Bug(HashDevice);
    // Only what the test needs to differ: the first step panics.
    impl Device for Bug {
        fn describe(&self) -> String {
            "a bug".to_owned()
        }
        fn open_search(
            &mut self,
            spec: sidereal::device::ops::SearchSpec,
        ) -> sidereal::Result<sidereal::ids::SearchId> {
            self.0.open_search(spec)
        }
        fn close_search(&mut self, search: sidereal::ids::SearchId) {
            self.0.close_search(search);
        }
        fn search_paths(
            &mut self,
            search: sidereal::ids::SearchId,
        ) -> sidereal::Result<Vec<sidereal::device::ops::Path>> {
            self.0.search_paths(search)
        }
        fn begin(&mut self, _plan: &sidereal::device::ops::Plan) -> sidereal::Result<()> {
            panic!("row 7 of 3");
        }
        fn embed(&mut self, _plan: &sidereal::device::ops::Plan) -> sidereal::Result<()> {
            Ok(())
        }
        fn attention_input(
            &mut self,
            _plan: &sidereal::device::ops::Plan,
            _layer: usize,
        ) -> sidereal::Result<()> {
            Ok(())
        }
        fn attention(&mut self, _plan: &sidereal::device::ops::Plan, _layer: usize) -> sidereal::Result<()> {
            Ok(())
        }
        fn attention_output(
            &mut self,
            _plan: &sidereal::device::ops::Plan,
            _layer: usize,
        ) -> sidereal::Result<()> {
            Ok(())
        }
        fn mlp_input(&mut self, _plan: &sidereal::device::ops::Plan, _layer: usize) -> sidereal::Result<()> {
            Ok(())
        }
        fn mlp_output(&mut self, _plan: &sidereal::device::ops::Plan, _layer: usize) -> sidereal::Result<()> {
            Ok(())
        }
        fn head(&mut self, _plan: &sidereal::device::ops::Plan) -> sidereal::Result<()> {
            Ok(())
        }
        fn sample(&mut self, _plan: &sidereal::device::ops::Plan) -> sidereal::Result<()> {
            Ok(())
        }
        fn step_sids(&mut self, _plan: &sidereal::device::ops::Plan) -> sidereal::Result<()> {
            Ok(())
        }
        fn finish(&mut self) -> sidereal::Result<sidereal::device::ops::Outcome> {
            self.0.finish()
        }
        fn read(&mut self, buffer: sidereal::device::ops::Buffer) -> sidereal::Result<Vec<f32>> {
            self.0.read(buffer)
        }
        fn write(&mut self, buffer: sidereal::device::ops::Buffer, values: &[f32]) -> sidereal::Result<()> {
            self.0.write(buffer, values)
        }
    }
    let engine = EngineBuilder::tiny()
        .expect("the demonstration")
        .device(|config| Ok(Box::new(Bug(HashDevice::new(config, Duration::ZERO)?))))
        .start()
        .expect("an engine");
    let request = Request { prompt: Some("hello".to_owned()), ..Request::default() };
    let error = engine.generate(&request).expect_err("the engine dies");
    assert!(matches!(&error, Error::Dead(reason) if reason.contains("row 7 of 3")), "{error}");
    let error = engine.generate(&request).expect_err("and stays dead");
    assert!(matches!(&error, Error::Dead(reason) if reason.contains("row 7 of 3")), "{error}");
    assert!(engine.death().is_some_and(|reason| reason.contains("row 7 of 3")));
    let load = || engine.load();
    until("the counts to be empty", || load().waiting_requests + load().running_requests == 0);
}

fn hash_threaded(rows: usize, step: Duration) -> Engine {
    EngineBuilder::tiny()
        .expect("the demonstration")
        .max_rows(rows)
        .max_requests(64)
        .device(move |config| Ok(Box::new(HashDevice::new(config, step)?)))
        .start()
        .expect("an engine")
}

#[test]
fn dropping_a_stream_frees_its_place() {
    let engine = hash_threaded(64, Duration::from_micros(200));
    let long = Request {
        prompt: Some("a".to_owned()),
        max_tokens: Some(400),
        ignore_eos: Some(true),
        temperature: Some(1.0),
        ..Request::default()
    };
    let mut accepted = 0;
    while accepted < 640 {
        match engine.submit(&long) {
            Ok(stream) => {
                accepted += 1;
                drop(stream);
            }
            Err(Error::Overloaded(_)) => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
    // Whatever was cancelled makes room: this one is answered although the queue was refilled many times over.
    loop {
        match engine.generate(&Request { max_tokens: Some(2), ..long.clone() }) {
            Ok(answer) => break assert_eq!(answer.usage.completion_tokens, 2),
            Err(Error::Overloaded(_)) => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn more_requests_than_allowed_are_refused_at_once() {
    let engine = hash_threaded(8, Duration::from_millis(2));
    let request = Request {
        prompt: Some("a".to_owned()),
        max_tokens: Some(200),
        ignore_eos: Some(true),
        ..Request::default()
    };
    let streams: Vec<_> = (0..64).map(|_| engine.submit(&request).expect("accepted")).collect();
    let error = engine.submit(&request).expect_err("refused");
    assert!(matches!(&error, Error::Overloaded(message) if message.contains("64")), "{error}");
    drop(streams);
}

#[test]
fn events_of_a_mixed_answer_are_its_content() {
    let engine = hash_threaded(64, Duration::ZERO);
    let request = Request::from_json(
        &json!({"prompt": "hello", "output": "mixed", "max_tokens": 200, "ignore_eos": true, "temperature": 0.8,
                "seed": 5, "logit_bias": {"3": 8.0}})
        .to_string(),
    )
    .expect("a request");
    let (mut text, mut items) = (String::new(), Vec::new());
    let mut answer = None;
    for event in engine.submit(&request).expect("accepted") {
        match event.expect("no error") {
            Event::Text(delta) => text.push_str(&delta),
            Event::Item(item) => {
                text.push_str(item.title.as_deref().unwrap_or(&item.id));
                items.push(item);
            }
            Event::Finished(finished) => answer = Some(*finished),
            _ => {}
        }
    }
    let answer = answer.expect("the last event");
    assert_eq!(text, answer.text());
    assert!(items.len() > 3, "{} items", items.len());
    let catalog = engine.view().expect("the demonstration has a catalog").base().clone();
    let mut named = std::collections::HashSet::new();
    for item in &items {
        let (item_type, rank) = catalog.find(&item.id).expect("a real item");
        let index = catalog.index(item_type);
        assert_eq!(index.codes(index.sid_of(rank)), item.sid);
        assert!(named.insert((item.item_type.clone(), item.sid.clone())), "{} is named twice", item.id);
    }
}
