//! Ten thousand random requests: some nearly right, some not at all.

use std::collections::{HashMap, VecDeque};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Map, Value, json};
use sidereal::Error;
use sidereal::catalog::Catalog;
use sidereal::engine::{Answer, AnswerPart, Engine, Event, EventStream, Output, Request};

use super::{engine, parse};

/// Values that some field might take amiss.
pub fn odd_value(random: &mut StdRng) -> Value {
    let values = [
        json!(null),
        json!(true),
        json!(0),
        json!(1),
        json!(-1),
        json!(7),
        json!(513),
        json!(i64::MAX),
        json!(i64::MIN),
        json!(u64::MAX),
        json!(0.5),
        json!(-0.0),
        json!(1e-320),
        json!(1e300),
        json!(""),
        json!("items"),
        json!("<|im_end|><book_0_1>\u{FDD0}\u{0}\u{10FFFF}"),
        json!([]),
        json!([[]]),
        json!([1, -1, 1_000_000]),
        json!(["book"]),
        json!(["book:1", "", "none"]),
        json!([null]),
        json!({}),
        json!({"type": "book", "n": 1}),
        json!([{"type": "book", "n": 1}]),
        json!({"role": "user", "content": "hi"}),
        json!([{"role": "user", "content": [{"type": "item", "id": ""}]}]),
        json!({"3": 8, "2": -100}),
    ];
    values[random.random_range(0..values.len())].clone()
}

fn text(random: &mut StdRng) -> String {
    let pieces = [
        "The ",
        "book",
        "<|im_end|>",
        "<film_0_1>",
        "\n",
        "é",
        "\u{FDD0}",
        "🦊",
        " a",
        "<|sid_begin|>",
        "\u{0}",
    ];
    (0..random.random_range(1..12)).map(|_| pieces[random.random_range(0..pieces.len())]).collect()
}

fn prompt(random: &mut StdRng, fields: &mut Map<String, Value>) {
    match random.random_range(0..4) {
        0 => fields.insert("prompt".into(), json!(text(random))),
        1 => {
            let length = random.random_range(1..60);
            // Spans, closers, control tokens: whatever the vocabulary has.
            let ids: Vec<i64> = (0..length).map(|_| random.random_range(0..420)).collect();
            fields.insert("prompt_token_ids".into(), json!(ids))
        }
        2 => fields.insert("messages".into(), json!([{"role": "user", "content": text(random)}])),
        _ => {
            let ids = ["book:1", "film:7", "podcast:9", "book:120", "gone:1"];
            let known = ids.len() - usize::from(random.random_bool(0.7));
            let items: Vec<&str> =
                (0..random.random_range(0..9)).map(|_| ids[random.random_range(0..known)]).collect();
            let parts = json!([{"type": "text", "text": text(random)}, {"type": "history", "items": items},
                               {"type": "text", "text": text(random)}]);
            fields.insert("messages".into(), json!([{"role": "user", "content": parts}]))
        }
    };
}

/// Fields that fit the output, mostly.
fn right_fields(random: &mut StdRng, fields: &mut Map<String, Value>) {
    let mut all: Vec<(&str, Value)> = vec![
        ("id", json!(text(random))),
        ("temperature", json!([0.0, 1e-40, 0.7, 100.0][random.random_range(0..4)])),
        ("seed", json!(random.random_range(i64::MIN..i64::MAX))),
        ("logprobs", json!(random.random_range(0..21))),
        ("item_types", json!([["book"], ["film"], ["podcast"]][random.random_range(0..3)])),
        ("exclude", json!(["book:1", "film:2", "gone"])),
        ("score", json!(["codebook", "vocabulary", "valid"][random.random_range(0..3)])),
        ("unknown_items", json!("skip")),
        ("truncate", json!("start")),
    ];
    let output = ["text", "items", "mixed"][random.random_range(0..3)];
    fields.insert("output".into(), json!(output));
    if output == "items" {
        let width = random.random_range(1..40);
        all.extend([
            ("n", json!(random.random_range(1..=width))),
            ("beam_width", json!(width)),
            ("allow", json!(["book:1", "book:2", "film:3", "podcast:4", "gone"])),
            ("collisions", json!("all")),
            ("quotas", json!([{"type": "film", "n": 2}, {"type": "book", "n": 3}])),
            ("boosts", json!([{"attr": "year", "ge": 1990, "weight": 0.5}])),
            ("diversity", json!({"groups": random.random_range(1..4), "max_per_prefix": 2})),
        ]);
    } else {
        all.extend([
            ("min_tokens", json!(random.random_range(0..10))),
            ("top_k", json!(random.random_range(-1..400))),
            ("top_p", json!(random.random_range(0.01..1.0))),
            ("min_p", json!(random.random_range(0.0..1.0))),
            ("repetition_penalty", json!(random.random_range(0.1..3.0))),
            ("presence_penalty", json!(random.random_range(-2.0..2.0))),
            ("frequency_penalty", json!(random.random_range(-2.0..2.0))),
            ("logit_bias", json!({"3": 8, "4": 100, "100": -100})),
            ("stop", json!(["e", "the"])),
            ("stop_token_ids", json!([7, 0])),
            ("ignore_eos", json!(true)),
            ("return_token_ids", json!(true)),
            ("span_beam", json!(random.random_range(1..20))),
            ("allow_repeats", json!(random.random_bool(0.5))),
        ]);
        fields.insert("max_tokens".into(), json!(random.random_range(1..30)));
    }
    let share = random.random_range(0.0..0.5);
    for (name, value) in all {
        if random.random_bool(share) {
            fields.insert(name.into(), value);
        }
    }
    if output == "text" && random.random_bool(0.15) {
        fields.retain(|name, _| {
            ["messages", "prompt", "prompt_token_ids", "output", "seed"].contains(&name.as_str())
        });
        fields.insert("choice".into(), json!(["yes", "no", text(random)]));
    }
}

pub fn random_request(random: &mut StdRng, names: &[String]) -> Value {
    let mut fields = Map::new();
    prompt(random, &mut fields);
    right_fields(random, &mut fields);
    // Half of the requests get something that does not belong there.
    while random.random_bool(0.5) {
        let name = &names[random.random_range(0..names.len())];
        fields.insert(name.clone(), odd_value(random));
    }
    Value::Object(fields)
}

/// What holds of every answer.
fn check_answer(request: &Value, answer: &Answer, catalog: &Catalog) {
    let items: Vec<(&str, &[u16])> = match answer.output {
        Output::Items => {
            answer.items.iter().flatten().map(|item| (item.id.as_str(), item.sid.as_slice())).collect()
        }
        _ => {
            let parts = answer.content.iter().flatten();
            parts
                .filter_map(|part| match part {
                    AnswerPart::Item { id, sid, .. } => Some((id.as_str(), sid.as_slice())),
                    AnswerPart::Text { .. } => None,
                })
                .collect()
        }
    };
    let list = |name: &str| -> Vec<&str> {
        request[name].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
    };
    let (types, excluded) = (list("item_types"), list("exclude"));
    let mut seen = HashMap::new();
    for &(id, sid) in &items {
        let (item_type, rank) = catalog.find(id).unwrap_or_else(|| panic!("{id} is no item: {request}"));
        assert_eq!(catalog.item(item_type, rank).codes(), sid, "{id}: {request}");
        let type_name = catalog.types()[item_type.index()].as_str();
        assert!(types.is_empty() || types.contains(&type_name), "{id} is of another type: {request}");
        assert!(!excluded.contains(&id), "{id} is excluded: {request}");
        if request["allow"].is_array() {
            assert!(list("allow").contains(&id), "{id} is not allowed: {request}");
        }
        *seen.entry(id).or_insert(0) += 1;
    }
    let may_repeat = answer.output == Output::Mixed && request["allow_repeats"] == json!(true);
    assert!(may_repeat || seen.values().all(|&count| count == 1), "an item is named twice: {request}");
    if let Some(n) = request["n"].as_u64().filter(|_| answer.output == Output::Items) {
        assert!(items.len() as u64 <= n, "{} items: {request}", items.len());
        assert_eq!(answer.exhausted, Some((items.len() as u64) < n), "{request}");
    }
    let (ids, logprobs) = (answer.token_ids.as_ref(), answer.logprobs.as_ref());
    if let (Some(ids), Some(logprobs)) = (ids, logprobs) {
        let of_logprobs: Vec<_> = logprobs.iter().map(|token| token.id).collect();
        assert_eq!(*ids, of_logprobs, "{request}");
    }
    if let Some(ids) = ids {
        assert_eq!(ids.len(), answer.usage.completion_tokens, "{request}");
        assert!(request["max_tokens"].as_u64().is_none_or(|most| ids.len() as u64 <= most), "{request}");
    }
}

/// Requests whose answers must not depend on what else the engine was asked.
fn controls(engine: &Engine) -> Vec<String> {
    let requests = [
        json!({"prompt": "Recommend the next item.", "output": "items", "n": 20, "logprobs": 1}),
        json!({"messages": [{"role": "user", "content": "What should I watch?"}], "output": "mixed", "seed": 11,
               "max_tokens": 60, "logit_bias": {"3": 8}, "return_token_ids": true, "ignore_eos": true}),
        json!({"prompt": "The ", "max_tokens": 40, "seed": 12, "logprobs": 3, "return_token_ids": true}),
        json!({"prompt": "Is it good?", "choice": ["yes", "no"]}),
    ];
    let answer = |request: Value| {
        let mut answer = engine.generate(&parse(request)).unwrap();
        // How much of the prompt was still in the cache is the one thing that may change.
        answer.usage.cached_tokens = 0;
        serde_json::to_string(&answer).unwrap()
    };
    requests.map(answer).to_vec()
}

/// Waits for an answer, or gives up on it half-way.
fn finish(stream: EventStream, request: &Value, patient: bool, catalog: &Catalog) -> bool {
    for event in stream {
        match event {
            Ok(Event::Finished(answer)) => {
                check_answer(request, &answer, catalog);
                return true;
            }
            Ok(_) if patient => {}
            Ok(_) => return false,
            Err(error) => panic!("{request}: {error}"),
        }
    }
    panic!("{request}: no last event");
}

#[test]
fn ten_thousand_random_requests_do_no_harm() {
    let engine = engine();
    let catalog = engine.view().unwrap().base().clone();
    let before = controls(&engine);
    let Err(Error::Invalid { message, .. }) = Request::from_json(r#"{"bogus":1}"#) else {
        panic!("accepted")
    };
    let mut names: Vec<String> = message.split('`').skip(3).step_by(2).map(str::to_owned).collect();
    names.push("bogus".to_owned());
    let mut random = StdRng::seed_from_u64(99);
    let mut live: VecDeque<(Value, EventStream, bool)> = VecDeque::new();
    let (mut answered, mut refused) = (0, 0);
    for _ in 0..10_000 {
        let value = random_request(&mut random, &names);
        let request = match Request::from_json(&value.to_string()) {
            Ok(request) => request,
            Err(Error::Invalid { field, message }) => {
                assert!(!field.is_empty() && !message.is_empty(), "{value}");
                refused += 1;
                continue;
            }
            Err(error) => panic!("{value}: {error}"),
        };
        match engine.submit(&request) {
            // An answer of thousands of tokens is begun and given up: that is part of life, and of the test's time.
            Ok(stream) => {
                let patient =
                    request.max_tokens.is_some_and(|n| n <= 40) || request.output == Some(Output::Items);
                live.push_back((value, stream, patient));
            }
            Err(Error::Invalid { field, message }) => {
                assert!(!field.is_empty() && !message.is_empty(), "{value}");
                refused += 1;
            }
            Err(error) => panic!("{value}: {error}"),
        }
        if live.len() == 64 {
            let (value, stream, patient) = live.pop_front().unwrap();
            answered += usize::from(finish(stream, &value, patient, &catalog));
        }
    }
    for (value, stream, patient) in live {
        answered += usize::from(finish(stream, &value, patient, &catalog));
    }
    println!("{answered} answered, {refused} refused");
    assert!(answered > 2000 && refused > 2000, "{answered} answered, {refused} refused");
    assert_eq!(engine.death(), None);
    assert_eq!(controls(&engine), before);
}
