//! What a reader is told besides text and items: log-probabilities, attributes, times; and what is counted.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sidereal::catalog::ItemRecord;
use sidereal::catalog::synthetic::tiny_records;
use sidereal::engine::{Answer, AnswerPart, EngineBuilder, Event, EventStream, Request};
use sidereal::ids::TokenId;

use super::turnstile::Turnstile;
use super::{hash_engine, hash_threaded, until};

fn parse(value: Value) -> Request {
    Request::from_json(&value.to_string()).unwrap()
}

/// A text with many items, and log-probabilities.
fn mixed(seed: u64, tokens: usize) -> Request {
    parse(
        json!({"prompt": "hello", "output": "mixed", "max_tokens": tokens, "ignore_eos": true, "temperature": 0.9,
                 "seed": seed, "logit_bias": {"3": 7.0}, "logprobs": 2, "return_token_ids": true}),
    )
}

fn read(stream: EventStream) -> (Vec<Event>, Answer) {
    let mut events: Vec<Event> = stream.map(|event| event.unwrap()).collect();
    let Some(Event::Finished(answer)) = events.pop() else { panic!("no answer") };
    (events, *answer)
}

#[test]
fn log_probabilities_come_before_what_they_belong_to() {
    let layout = EngineBuilder::tiny().unwrap().layout_ref().unwrap().clone();
    let (open, close) = (layout.open.unwrap(), layout.close.unwrap());
    let (mut spans, mut cut) = (0, 0);
    for seed in 0..60 {
        // The length decides whether a budget ends inside a span.
        let (mut parts, _) = hash_engine(64, 64);
        let stream = parts.submit(&mixed(seed, 10 + seed as usize % 17)).unwrap();
        while parts.wheel.jobs() > 0 {
            parts.wheel.turn().unwrap();
        }
        let (events, answer) = read(stream);
        let mut told = Vec::new();
        for event in events {
            match event {
                Event::Logprob(token) => told.push(token),
                Event::Item(item) => {
                    let t = layout.types.iter().position(|t| t.name == item.item_type).unwrap();
                    let codes = item.sid.iter().zip(&layout.types[t].levels);
                    let mut span = vec![open];
                    span.extend(codes.map(|(&code, level)| level.token(code)));
                    span.push(close);
                    let last: Vec<TokenId> =
                        told[told.len() - span.len()..].iter().map(|token| token.id).collect();
                    assert_eq!(last, span, "the span of {}", item.id);
                    spans += 1;
                }
                _ => {}
            }
        }
        let ids: Vec<TokenId> = told.iter().map(|token| token.id).collect();
        assert_eq!(Some(&ids), answer.token_ids.as_ref());
        assert_eq!(Some(told), answer.logprobs);
        cut += usize::from(ids.len() < 10 + seed as usize % 17);
        let tokens = parts.counters.generation_tokens.load(Ordering::Relaxed);
        assert_eq!(tokens, answer.usage.completion_tokens as u64);
    }
    assert!(spans > 50 && cut > 5, "{spans} spans, {cut} budgets that ended inside one");
}

#[test]
fn text_follows_its_log_probability() {
    let (mut parts, _) = hash_engine(64, 64);
    let request =
        parse(json!({"prompt": "hello", "max_tokens": 40, "ignore_eos": true, "temperature": 1.0, "seed": 3,
                               "logprobs": 0}));
    let mut stream = parts.submit(&request).unwrap();
    let (mut told, mut text) = (0, String::new());
    while parts.wheel.jobs() > 0 {
        parts.wheel.turn().unwrap();
        if parts.wheel.jobs() == 0 {
            break;
        }
        // One token a step.
        assert!(matches!(stream.next(), Some(Ok(Event::Logprob(token))) if token.top.is_empty()));
        told += 1;
        while let Some(event) = super::next_now(&mut stream) {
            match event.unwrap() {
                Event::Text(delta) => text.push_str(&delta),
                event => panic!("{event:?}"),
            }
        }
    }
    let (events, answer) = read(stream);
    assert!(matches!(events[0], Event::Logprob(_)));
    for event in events {
        match event {
            Event::Text(delta) => text.push_str(&delta),
            Event::Logprob(_) => told += 1,
            event => panic!("{event:?}"),
        }
    }
    assert_eq!((told, text), (40, answer.text()));
}

#[test]
fn tokens_that_spell_a_denied_item_are_not_handed_out() {
    let engine = hash_threaded(64, Duration::ZERO);
    let (events, answer) = read(engine.submit(&mixed(5, 80)).unwrap());
    let gone = answer.content.unwrap().into_iter().find_map(|part| match part {
        AnswerPart::Item { id, .. } => Some(id),
        AnswerPart::Text { .. } => None,
    });
    let gone = gone.expect("an item");
    // The same answer waits to be read while its first item is denied.
    let stream = engine.submit(&mixed(5, 80)).unwrap();
    until("the answer", || engine.counters().finished.load(Ordering::Relaxed) == 2);
    engine.catalog().unwrap().deny(&[&gone]).unwrap();
    let (left, answer) = read(stream);
    assert!(answer.logprobs.is_none() && answer.token_ids.is_none());
    let mut expected = Vec::new();
    for event in events {
        match event {
            // What comes right before the item, its tokens and perhaps text that was held back.
            Event::Item(item) if item.id == gone => {
                while matches!(expected.last(), Some(Event::Logprob(_))) {
                    expected.pop();
                }
            }
            event => expected.push(event),
        }
    }
    let spell = |events: &[Event]| -> Vec<String> {
        let tokens = events.iter().filter(|event| !matches!(event, Event::Text(_)));
        tokens.map(|event| format!("{event:?}")).collect()
    };
    assert_eq!(spell(&left), spell(&expected));
}

#[test]
fn attributes_come_with_the_items() {
    let engine = hash_threaded(512, Duration::ZERO);
    engine
        .catalog()
        .unwrap()
        .add(vec![ItemRecord {
            id: "bare".into(),
            item_type: "book".into(),
            sid: vec![0, 0, 0],
            popularity: 1e9,
            ..ItemRecord::default()
        }])
        .unwrap();
    let records = tiny_records();
    let expected = |id: &str| -> Value {
        match records.iter().find(|record| record.id == id) {
            Some(record) => json!({"genres": record.attributes["genres"], "year": record.attributes["year"]}),
            None => json!({"genres": null, "year": null}),
        }
    };
    let list = json!({"prompt": "hello", "output": "items", "n": 300, "beam_width": 300, "collisions": "all",
                      "exclude": ["book:1", "film:1"], "return_attributes": ["genres", "year", "year"]});
    let answer = serde_json::to_value(engine.generate(&parse(list)).unwrap()).unwrap();
    let items = answer["items"].as_array().unwrap();
    // Everything that is alive.
    assert_eq!(items.len(), 299);
    for item in items {
        assert_eq!(item["attributes"], expected(item["id"].as_str().unwrap()), "{item}");
    }
    assert!(items.iter().any(|item| item["id"] == "bare"));
    let request = mixed(5, 80);
    let request = Request { return_attributes: Some(vec!["year".into(), "genres".into()]), ..request };
    let (events, answer) = read(engine.submit(&request).unwrap());
    let mut streamed = events.into_iter().filter_map(|event| match event {
        Event::Item(item) => Some(item),
        _ => None,
    });
    let mut found = 0;
    for part in answer.content.unwrap() {
        let part = serde_json::to_value(part).unwrap();
        if part["type"] == "item" {
            let item = serde_json::to_value(streamed.next().unwrap()).unwrap();
            let id = part["id"].as_str().unwrap();
            assert_eq!((&part["attributes"], &item["attributes"]), (&expected(id), &expected(id)));
            found += 1;
        }
    }
    assert!(found > 3);
    // Without the field there is none.
    let plain = engine.generate(&parse(json!({"prompt": "hello", "output": "items"}))).unwrap();
    assert!(serde_json::to_value(plain).unwrap()["items"][0].get("attributes").is_none());
}

#[test]
fn the_times_of_an_answer_are_those_of_its_steps() {
    let step = Duration::from_millis(2);
    let engine = hash_threaded(8, step);
    // A prompt of four steps, and six tokens: the last step of the prompt gives the first of them.
    let ids: Vec<i64> = (0..32).collect();
    let text = parse(json!({"prompt_token_ids": ids, "max_tokens": 6, "ignore_eos": true}));
    let start = Instant::now();
    let timing = engine.generate(&text).unwrap().timing;
    let wall = start.elapsed();
    assert!(timing.prefill >= 4 * step && timing.decode >= 5 * step, "{timing:?}");
    assert!(timing.queue + timing.prefill + timing.decode <= wall, "{timing:?} of {wall:?}");
    // One list has all rows of a step, and its first step is held up; another waits for its end.
    let gate = Turnstile::default();
    let engine = gate.engine(|builder| builder.max_rows(8));
    let list =
        parse(json!({"prompt": "a", "output": "items", "beam_width": 8, "n": 8, "item_types": ["book"]}));
    let streams = [engine.submit(&list).unwrap(), engine.submit(&list).unwrap()];
    gate.wait_for_step();
    let held = Instant::now();
    until("a while", || held.elapsed() >= step);
    gate.open();
    let [first, second] = streams.map(|stream| stream.wait().unwrap().timing);
    assert!(first.prefill >= step, "{first:?}");
    assert!(second.queue >= step, "{second:?}");
}

#[test]
fn tokens_are_counted() {
    let engine = hash_threaded(64, Duration::ZERO);
    let ids: Vec<i64> = (5..45).collect();
    let requests = [
        json!({"prompt_token_ids": ids, "max_tokens": 7, "ignore_eos": true}),
        json!({"prompt_token_ids": ids, "max_tokens": 7, "ignore_eos": true, "stop": ["a", "e", "i"]}),
        json!({"prompt_token_ids": ids, "output": "items", "n": 5}),
        json!({"prompt_token_ids": ids, "output": "mixed", "max_tokens": 50, "ignore_eos": true, "logit_bias": {"3": 7.0}}),
        json!({"prompt_token_ids": ids, "choice": ["yes", "no"]}),
    ];
    let mut sums = [0; 3];
    for request in requests {
        let usage = engine.generate(&parse(request)).unwrap().usage;
        let found = [usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens];
        sums.iter_mut().zip(found).for_each(|(sum, count)| *sum += count as u64);
    }
    let counters = engine.counters();
    let counted = [&counters.prompt_tokens, &counters.cached_tokens, &counters.generation_tokens];
    assert_eq!(counted.map(|counter| counter.load(Ordering::Relaxed)), sums);
    assert!(sums.iter().all(|&sum| sum > 0), "{sums:?}");
}
