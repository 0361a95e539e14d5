//! The engine against transformers: a model that learned a real catalog, where the checkout has it, and a tiny random one.
//!
//! Expected lists and answers come from plain recomputation in float32 (the folder's README says how); here they come through the
//! whole engine: template, cache, batches of everything at once, search, sampling.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::{Value, json};
use sidereal::catalog::{Layout, LayoutSpec, read_jsonl};
use sidereal::engine::{Answer, AnswerPart, Engine, EngineBuilder, EventStream, Request};
use sidereal::ids::TokenId;
use sidereal::model::Model;
use sidereal::text::{Tokenizer, tiny};

/// Scores that differ by less may come in either order.
const TIE: f64 = 1e-5;
const TOLERANCE: f64 = 1e-4;

/// The folder of the model that learned a real catalog; a line says so if the checkout has none.
pub fn folder() -> Option<PathBuf> {
    let shared = std::env::var_os("SIDEREAL_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"), PathBuf::from);
    let dir = shared.join("models/grounded-small");
    if !dir.is_dir() {
        println!("skipped: no {}", dir.display());
        return None;
    }
    Some(dir)
}

fn engine(dir: &Path) -> Engine {
    let builder = EngineBuilder::open(dir).unwrap();
    builder.catalog_file(dir.join("catalog.jsonl"), &mut |_, _| {}).unwrap().start().unwrap()
}

/// A prompt, and what transformers makes of it.
struct Case {
    request: Request,
    expected: Value,
}

fn read_cases(file: &Path, request: impl Fn(&Value) -> Value) -> Vec<Case> {
    let cases: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    assert_eq!(cases.len(), 60);
    let case = |expected: Value| {
        let request = Request::from_json(&request(&expected).to_string()).unwrap();
        Case { request, expected }
    };
    cases.into_iter().map(case).collect()
}

fn beams(dir: &Path) -> Vec<Case> {
    read_cases(&dir.join("expected/beams.json"), |case| {
        json!({"messages": case["messages"], "output": "items", "item_types": case["types"], "score": case["score"],
               "n": case["beam_width"], "beam_width": case["beam_width"]})
    })
}

fn greedy(dir: &Path) -> Vec<Case> {
    read_cases(&dir.join("expected/greedy.json"), |case| {
        let mut request = json!({"return_token_ids": true});
        for field in
            ["messages", "output", "max_tokens", "temperature", "span_beam", "allow_repeats", "item_types"]
        {
            request[field] = case[field].clone();
        }
        request
    })
}

fn numbers(value: &Value) -> Vec<TokenId> {
    value.as_array().unwrap().iter().map(|id| TokenId(id.as_u64().unwrap() as u32)).collect()
}

/// A ranked list: the same items with the same scores, in the same order but for ties.
fn check_list(name: &str, answer: &Answer, expected: &[Value], is: impl Fn(&Value, &str) -> bool) {
    let items = answer.items.as_deref().unwrap();
    let ids: Vec<&str> = items.iter().map(|item| item.id.as_str()).collect();
    assert_eq!(items.len(), expected.len(), "{name}: {ids:?}");
    let score = |place: usize| expected[place]["score"].as_f64().unwrap();
    let mut met = vec![false; expected.len()];
    for (place, item) in items.iter().enumerate() {
        let theirs = (0..expected.len()).find(|&other| !met[other] && is(&expected[other], &item.id));
        let Some(theirs) = theirs else { panic!("{name}: {} at {place} is not expected: {ids:?}", item.id) };
        met[theirs] = true;
        assert!(
            theirs == place || (score(theirs) - score(place)).abs() < TIE,
            "{name}: {} is at {place} instead of {theirs}, and {} is not {}",
            item.id,
            score(theirs),
            score(place)
        );
        let difference = (f64::from(item.score) - score(theirs)).abs();
        assert!(
            difference <= TOLERANCE,
            "{name}: {} scores {} instead of {}",
            item.id,
            item.score,
            score(theirs)
        );
    }
}

fn check_beams(which: usize, answer: &Answer, case: &Case) {
    let expected = case.expected["results"].as_array().unwrap();
    check_list(&format!("beams {which}"), answer, expected, |result, id| {
        result["item"] == id || result["same_sid"][0] == id
    });
}

/// Whether the answer was compared to its end.
fn check_greedy(which: usize, answer: &Answer, case: &Case) -> bool {
    let (found, expected) = (answer.token_ids.as_ref().unwrap(), numbers(&case.expected["tokens"]));
    let close = case.expected["smallest_margin"].as_f64().unwrap() < 1e-3;
    if *found != expected {
        let place = found.iter().zip(&expected).take_while(|(a, b)| a == b).count();
        assert!(
            close,
            "greedy {which} differs at {place}: {:?} for {:?}",
            &found[place..],
            &expected[place..]
        );
        return false;
    }
    if case.expected["output"] == "text" {
        let text = case.expected["text"].as_str().unwrap();
        assert_eq!(answer.text(), text.trim_end_matches("<|im_end|>"), "greedy {which}");
    }
    true
}

/// Every span of an answer is whole and an item's, and every item of its content is one of its spans.
fn check_spans(answer: &Answer, engine: &Engine, layout: &Layout) -> usize {
    let catalog = engine.view().unwrap().base().clone();
    let tokens = answer.token_ids.as_ref().unwrap();
    let mut named = answer.content.iter().flatten().filter_map(|part| match part {
        AnswerPart::Item { id, sid, .. } => Some((id, sid)),
        AnswerPart::Text { .. } => None,
    });
    let (mut at, mut spans) = (0, 0);
    while at < tokens.len() {
        if Some(tokens[at]) != layout.open {
            assert!(
                layout.place(tokens[at]).is_none() && Some(tokens[at]) != layout.close,
                "a code outside of a span"
            );
            at += 1;
            continue;
        }
        let (id, sid) = named.next().expect("a span without an item");
        let (item_type, rank) = catalog.find(id).expect("an item of the catalog");
        assert_eq!(catalog.item(item_type, rank).codes(), *sid);
        let span = layout.span(item_type, sid);
        assert_eq!(tokens[at..at + span.len()], span, "{id}");
        at += span.len();
        spans += 1;
    }
    assert_eq!(named.next(), None, "an item without a span");
    spans
}

/// What of an answer may not change: everything but how much of it was cached.
fn essence(answer: &Answer) -> Value {
    let mut value = serde_json::to_value(answer).unwrap();
    value["usage"]["cached_tokens"] = json!(0);
    value
}

#[test]
fn the_small_model_answers_as_transformers_does_alone_and_in_company() {
    let Some(dir) = folder() else { return };
    let (beams, greedy) = (beams(&dir), greedy(&dir));
    let cases: Vec<&Case> = beams.iter().chain(&greedy).collect();
    let together = engine(&dir);
    for case in &cases {
        let checked = together.validate(&case.request).unwrap();
        let mut prompt = numbers(&case.expected["prompt_token_ids"]);
        if checked.tokens().len() > prompt.len() {
            prompt.push(together.tokenizer().token_to_id("<|sid_begin|>").unwrap());
        }
        assert_eq!(checked.tokens(), prompt, "{}", case.expected["user"]);
    }
    let streams: Vec<EventStream> =
        cases.iter().map(|case| together.submit(&case.request).unwrap()).collect();
    let answers: Vec<Answer> = streams.into_iter().map(|stream| stream.wait().unwrap()).collect();

    for (which, case) in beams.iter().enumerate() {
        check_beams(which, &answers[which], case);
    }
    let layout = EngineBuilder::open(&dir).unwrap();
    let layout = layout.layout_ref().unwrap();
    let (mut whole, mut spans) = (0, 0);
    for (which, case) in greedy.iter().enumerate() {
        let answer = &answers[beams.len() + which];
        whole += usize::from(check_greedy(which, answer, case));
        spans += check_spans(answer, &together, layout);
    }
    println!("{whole} of 60 greedy answers compared to their end, {spans} items in them");
    assert!(whole >= 50, "only {whole} of 60 greedy answers could be compared to their end");
    assert!(spans >= 20, "only {spans} items in 60 answers");

    // One after the other on an engine of their own, then again with everything cached.
    let alone = engine(&dir);
    for (which, case) in cases.iter().enumerate() {
        assert_eq!(
            essence(&alone.generate(&case.request).unwrap()),
            essence(&answers[which]),
            "alone: {which}"
        );
    }
    let mut hits = 0;
    for (which, case) in cases.iter().enumerate() {
        let again = alone.generate(&case.request).unwrap();
        assert_eq!(essence(&again), essence(&answers[which]), "again: {which}");
        let whole_blocks =
            (again.usage.prompt_tokens - 1) / sidereal::kv::BLOCK_TOKENS * sidereal::kv::BLOCK_TOKENS;
        assert_eq!(
            again.usage.cached_tokens, whole_blocks,
            "{which} of {} tokens",
            again.usage.prompt_tokens
        );
        hits += usize::from(again.usage.cached_tokens > 0);
    }
    assert!(hits > 100, "only {hits} of {} prompts were found in the cache", cases.len());
    assert_eq!(alone.counters().failed.load(Ordering::Relaxed), 0);
}

#[test]
fn sampled_mixed_answers_hold_whole_items_and_name_none_twice() {
    let Some(dir) = folder() else { return };
    let engine = engine(&dir);
    let layout = EngineBuilder::open(&dir).unwrap();
    let layout = layout.layout_ref().unwrap();
    let mixed: Vec<Case> =
        greedy(&dir).into_iter().filter(|case| case.expected["output"] == "mixed").collect();
    assert!(mixed.len() >= 10, "only {} mixed prompts", mixed.len());
    let requests: Vec<Request> = mixed
        .iter()
        .flat_map(|case| {
            // Budgets that end before, inside and after spans.
            [7, 12, 23, 64].map(|max_tokens| Request {
                max_tokens: Some(max_tokens),
                temperature: Some(1.0),
                seed: Some(max_tokens * 31),
                span_beam: Some(8),
                allow_repeats: Some(false),
                ..case.request.clone()
            })
        })
        .collect();
    let streams: Vec<EventStream> = requests.iter().map(|request| engine.submit(request).unwrap()).collect();
    let mut spans = 0;
    for (stream, request) in streams.into_iter().zip(&requests) {
        let answer = stream.wait().unwrap();
        spans += check_spans(&answer, &engine, layout);
        let tokens = answer.token_ids.as_ref().unwrap().len();
        assert!(tokens as i64 <= request.max_tokens.unwrap(), "{tokens} tokens of {:?}", request.max_tokens);
        let mut sids: Vec<_> = answer
            .content
            .iter()
            .flatten()
            .filter_map(|part| match part {
                AnswerPart::Item { item_type, sid, .. } => Some((item_type, sid)),
                AnswerPart::Text { .. } => None,
            })
            .collect();
        let all = sids.len();
        sids.sort();
        sids.dedup();
        assert_eq!(sids.len(), all, "a SID is named twice");
    }
    assert!(spans > 20, "only {spans} items");
}

/// The tiny random model of `tests/golden`: transformers' beam search under a prefix constraint, scored over the vocabulary.
#[test]
fn the_engine_finds_the_beams_of_transformers() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/qwen3");
    let text = std::fs::read_to_string(dir.join("beams.json")).unwrap();
    let beams: Value = serde_json::from_str(&text).unwrap();
    let spec = LayoutSpec::read(dir.join("sid_layout.json")).unwrap();
    let lookup = |token: &str| beams["tokens"][token].as_u64().map(|id| TokenId(id as u32));
    let layout = Layout::resolve(&spec, lookup).unwrap();
    let catalog = dir.join("catalog.jsonl");
    let catalog = read_jsonl(&[catalog.as_path()], &layout.specs(), &mut |_, _| {}).unwrap();
    // Prompts are token ids; the tokenizer only has to exist.
    let tokenizer = Tokenizer::from_json(tiny::tokenizer_json(&[]).as_bytes(), None, None).unwrap();
    let engine = Engine::builder(Model::open(&dir).unwrap(), tokenizer)
        .layout(layout)
        .catalog(Arc::new(catalog))
        .start()
        .unwrap();
    let cases = beams["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 6);
    let request = |case: &Value| {
        json!({"prompt_token_ids": case["prompt"], "output": "items", "score": beams["score"],
               "n": case["width"], "beam_width": case["width"]})
    };
    let submit = |case| engine.submit(&Request::from_json(&request(case).to_string()).unwrap()).unwrap();
    let streams: Vec<EventStream> = cases.iter().map(submit).collect();
    for (stream, case) in streams.into_iter().zip(cases) {
        let answer = stream.wait().unwrap();
        // Prompts end with the opener, which is not doubled.
        assert_eq!(answer.usage.prompt_tokens, case["prompt"].as_array().unwrap().len());
        let catalog = engine.view().unwrap().base().clone();
        check_list(
            &format!("width {}", case["width"]),
            &answer,
            case["paths"].as_array().unwrap(),
            |path, id| {
                let (item_type, rank) = catalog.find(id).unwrap();
                let sid = json!(catalog.item(item_type, rank).codes());
                path["sid"] == sid && path["type"] == json!(catalog.types()[item_type.index()])
            },
        );
    }
}
