//! Events and answers to bytes.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{chat, completion, with};
use crate::engine::{
    Answer, AnswerItem, AnswerPart, ChoiceScore, Engine, EngineBuilder, Event, FinishReason, Output, Timing,
    TokenLogprob, Usage,
};
use crate::ids::TokenId;
use crate::server::openai::{Chunk, Encoder, Plan, Reply};

/// Opener and end-of-answer token of the tiny tokenizer.
const OPENER: u32 = 3;
const END: u32 = 2;

fn engine() -> Engine {
    EngineBuilder::tiny().unwrap().threads(1).cache_bytes(16 << 20).start().unwrap()
}

fn encoder(plan: &Plan, engine: &Engine) -> Encoder {
    let reply = Reply { id: "chatcmpl-\"1".to_owned(), created: 1_700_000_000, model: "tiny".to_owned() };
    Encoder::new(plan, reply, engine.clone())
}

fn plan_of(body: &Value) -> Plan {
    let plan = if body.get("messages").is_some() { chat(body) } else { completion(body) };
    plan.unwrap_or_else(|error| panic!("{body}: {error}"))
}

fn value(chunk: &Chunk) -> Value {
    serde_json::from_slice(&chunk.json).unwrap_or_else(|error| panic!("{error}: {chunk:?}"))
}

/// What a body gives: the chunks of its stream and the whole answer.
struct Both {
    chunks: Vec<Chunk>,
    whole: Chunk,
    answers: Vec<Answer>,
}

/// Runs a body on an engine; its answers grow side by side.
fn run(engine: &Engine, body: &Value) -> Both {
    let plan = plan_of(body);
    let mut encoder = encoder(&plan, engine);
    let mut streams: Vec<_> = plan
        .requests
        .map(|request| engine.submit(&request).unwrap_or_else(|e| panic!("{body}: {e}")))
        .collect();
    let mut answers: Vec<Option<Answer>> = streams.iter().map(|_| None).collect();
    let mut chunks = Vec::new();
    while answers.iter().any(Option::is_none) {
        for (place, stream) in streams.iter_mut().enumerate() {
            let Some(event) = stream.next() else { continue };
            let event = event.unwrap();
            chunks.extend(encoder.event(place, &event));
            if let Event::Finished(answer) = event {
                answers[place] = Some(*answer);
            }
        }
    }
    chunks.extend(encoder.end());
    let answers: Vec<Answer> = answers.into_iter().flatten().collect();
    Both { chunks, whole: encoder.whole(&answers), answers }
}

/// Encodes events and their answer as the only ones of a body.
fn encode(engine: &Engine, body: &Value, events: &[Event], answer: Answer) -> Both {
    let mut encoder = encoder(&plan_of(body), engine);
    let mut chunks: Vec<Chunk> = events.iter().flat_map(|event| encoder.event(0, event)).collect();
    chunks.extend(encoder.event(0, &Event::Finished(Box::new(answer.clone()))));
    chunks.extend(encoder.end());
    let answers = vec![answer];
    Both { chunks, whole: encoder.whole(&answers), answers }
}

/// Appends the lists of `more` to those of `all`.
fn extend(all: &mut Value, more: &Value) {
    if all.is_null() {
        *all = more.clone();
    } else if let Some(map) = all.as_object_mut() {
        map.iter_mut().for_each(|(key, value)| extend(value, &more[key]));
    } else {
        all.as_array_mut().unwrap().extend(more.as_array().unwrap().iter().cloned());
    }
}

/// Puts a stream together again, as a client does: its choices by index, and everything else.
fn assemble(chunks: &[Chunk]) -> (BTreeMap<u64, Value>, Map<String, Value>) {
    let (mut choices, mut rest) = (BTreeMap::new(), Map::new());
    for chunk in chunks {
        let mut chunk = value(chunk);
        for choice in chunk["choices"].as_array().unwrap() {
            let all =
                choices.entry(choice["index"].as_u64().unwrap()).or_insert_with(|| json!({"content": ""}));
            assert_eq!(all["finish_reason"], Value::Null, "something follows the end: {choice}");
            let delta = choice.get("delta").unwrap_or(choice);
            let text =
                delta.get("content").or_else(|| delta.get("text")).and_then(Value::as_str).unwrap_or("");
            all["content"] = json!(all["content"].as_str().unwrap().to_owned() + text);
            for (key, from) in [("items", delta), ("logprobs", choice)] {
                if from.get(key).is_some_and(|more| !more.is_null()) {
                    extend(&mut all[key], &from[key]);
                }
            }
            for key in ["role", "finish_reason", "choice_scores", "token_ids"] {
                if let Some(found) =
                    delta.get(key).or_else(|| choice.get(key)).filter(|found| !found.is_null())
                {
                    all[key] = found.clone();
                }
            }
        }
        let object = chunk.as_object_mut().unwrap();
        object.remove("choices");
        rest.append(object);
    }
    (choices, rest)
}

/// The stream tells what the whole answer tells.
fn assert_same(both: &Both) {
    let (mut choices, mut rest) = assemble(&both.chunks);
    let mut whole = value(&both.whole);
    let object = whole.as_object_mut().unwrap();
    let listed = object.remove("choices").unwrap();
    for choice in listed.as_array().unwrap() {
        let found = choices.remove(&choice["index"].as_u64().unwrap()).unwrap();
        let message = choice.get("message").unwrap_or(choice);
        assert_eq!(
            found["content"],
            message[if choice.get("message").is_some() { "content" } else { "text" }]
        );
        let items = message.get("items").filter(|items| !items.as_array().unwrap().is_empty());
        assert_eq!(found.get("items").filter(|items| !items.is_null()), items);
        assert_eq!(found.get("role"), message.get("role"));
        assert_eq!(found.get("logprobs").unwrap_or(&Value::Null), &choice["logprobs"]);
        for key in ["finish_reason", "choice_scores", "token_ids"] {
            assert_eq!(found.get(key), choice.get(key), "{key}");
        }
    }
    assert!(choices.is_empty(), "{choices:?}");
    for key in ["object", "usage"] {
        let (streamed, whole) = (rest.remove(key), object.remove(key));
        if key == "usage" && streamed.is_some() {
            assert_eq!(streamed, whole);
        }
    }
    assert_eq!(&rest, object);
    let names = |chunks: &[Chunk]| {
        let mut names: Vec<String> = chunks.iter().flat_map(|chunk| chunk.items.iter().cloned()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&both.chunks), names(std::slice::from_ref(&both.whole)));
}

/// Items of an answer's JSON stand where they say, in code points.
fn assert_placed(content: &str, items: &[Value]) {
    let chars: Vec<char> = content.chars().collect();
    for item in items {
        let [start, end] = ["start", "end"].map(|key| item[key].as_u64().unwrap() as usize);
        let text: String = chars[start..end].iter().collect();
        let label = item["title"].as_str().or(item["id"].as_str()).unwrap();
        assert_eq!(text, label);
    }
}

#[test]
fn streams_equal_whole_answers() {
    let engine = engine();
    let messages = json!({"messages": [{"role": "user", "content": "Recommend the next item."}]});
    let prompt = json!({"prompt": "Recommend the next item."});
    let bias = json!({OPENER.to_string(): 6.0, END.to_string(): -100});
    let mut seen_items = 0;
    for fields in [
        json!({"max_tokens": 24, "temperature": 1.0, "seed": 1}),
        json!({"max_tokens": 24, "temperature": 1.0, "seed": 1, "n": 3, "stream": true, "stream_options": {"include_usage": true}}),
        json!({"max_tokens": 24, "temperature": 0, "stop": ["e", "a"], "return_token_ids": true}),
        json!({"max_tokens": 60, "temperature": 1.0, "seed": 3, "output": "mixed", "logit_bias": bias, "n": 2}),
        json!({"output": "items"}),
        json!({"output": "items", "n": 5, "stream": true, "stream_options": {"include_usage": true}}),
        json!({"output": "items", "n": 5, "allow": ["book:1", "book:2"]}),
        json!({"output": "items", "n": 5, "allow": []}),
        json!({"output": "items", "quotas": [{"type": "book", "n": 2}, {"type": "film", "n": 3}], "exclude": ["nothing"]}),
        json!({"choice": ["yes", "no", "perhaps"]}),
    ] {
        for base in [&messages, &prompt] {
            let both = run(&engine, &with(base, &fields));
            assert_same(&both);
            let whole = value(&both.whole);
            for choice in whole["choices"].as_array().unwrap() {
                let message = choice.get("message").unwrap_or(choice);
                let content = message.get("content").unwrap_or(&message["text"]).as_str().unwrap();
                let items = message.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
                seen_items += items.len();
                assert_placed(content, &items);
            }
        }
    }
    assert!(seen_items > 30, "{seen_items}");
}

#[test]
fn log_probabilities_of_an_engine_survive_streaming() {
    let engine = engine();
    let messages = json!({"messages": [{"role": "user", "content": "Recommend the next item."}],
        "logprobs": true, "top_logprobs": 2});
    let prompt = json!({"prompt": "Recommend the next item.", "logprobs": 2});
    let bias = json!({OPENER.to_string(): 6.0, END.to_string(): -100});
    for fields in [
        json!({"max_tokens": 24, "temperature": 1.0, "seed": 1}),
        json!({"max_tokens": 24, "temperature": 1.0, "seed": 1, "stop": ["e", "a", " "]}),
        json!({"max_tokens": 61, "temperature": 1.0, "seed": 3, "output": "mixed", "logit_bias": bias, "n": 4,
            "return_attributes": ["year"]}),
        json!({"output": "items", "n": 3, "return_attributes": ["year", "genres"]}),
    ] {
        let both = run(&engine, &with(&messages, &fields));
        assert_same(&both);
        for (choice, answer) in value(&both.whole)["choices"].as_array().unwrap().iter().zip(&both.answers) {
            let entries = choice["logprobs"]["content"].as_array().cloned().unwrap_or_default();
            assert_eq!(entries.len(), answer.logprobs.as_ref().map_or(0, Vec::len));
            if fields.get("output").is_none() && fields.get("stop").is_none() {
                let bytes: Vec<u8> = entries
                    .iter()
                    // Control tokens are listed and not shown.
                    .filter(|entry| !entry["token"].as_str().unwrap().starts_with("<|"))
                    .flat_map(|entry| {
                        entry["bytes"].as_array().unwrap().iter().map(|b| b.as_u64().unwrap() as u8)
                    })
                    .collect();
                assert_eq!(choice["message"]["content"], String::from_utf8_lossy(&bytes).into_owned());
            }
        }
        let both = run(&engine, &with(&prompt, &fields));
        assert_same(&both);
        for choice in value(&both.whole)["choices"].as_array().unwrap() {
            for item in choice["items"].as_array().into_iter().flatten() {
                assert!(item["attributes"]["year"].is_u64(), "{item}");
                assert!(
                    fields["output"] != "items" || item["logprobs"].as_array().is_some_and(|l| !l.is_empty())
                );
                // The tokens of a span stand where its title begins.
                let offsets = choice["logprobs"]["text_offset"].as_array();
                assert!(offsets.is_none_or(|offsets| offsets.contains(&item["start"])), "{item}");
            }
        }
    }
}

#[test]
fn prompts_and_their_answers_are_numbered_in_order() {
    let engine = engine();
    let both =
        run(&engine, &json!({"prompt": ["Find", "Recommend"], "n": 2, "max_tokens": 4, "temperature": 0}));
    assert_same(&both);
    let whole = value(&both.whole);
    let indices: Vec<_> = whole["choices"].as_array().unwrap().iter().map(|c| c["index"].clone()).collect();
    assert_eq!(indices, [0, 1, 2, 3]);
    let texts: Vec<String> = both.answers.iter().map(Answer::text).collect();
    assert_eq!(whole["choices"][3]["text"].as_str(), Some(texts[3].as_str()));
    let prompt_tokens = both.answers[0].usage.prompt_tokens + both.answers[2].usage.prompt_tokens;
    assert_eq!(whole["usage"]["prompt_tokens"], prompt_tokens);
    let completion_tokens: usize = both.answers.iter().map(|answer| answer.usage.completion_tokens).sum();
    assert_eq!(whole["usage"]["completion_tokens"], completion_tokens);
    assert_eq!(whole["usage"]["total_tokens"], prompt_tokens + completion_tokens);

    let both = run(
        &engine,
        &json!({"prompt": ["Find", "Recommend"], "output": "items", "n": 3, "item_types": ["film"]}),
    );
    assert_same(&both);
    let whole = value(&both.whole);
    let choices = whole["choices"].as_array().unwrap();
    assert_eq!(choices.iter().map(|c| c["index"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
    let ids = |answer: &Answer| answer.items.iter().flatten().map(|item| item.id.clone()).collect::<Vec<_>>();
    let expected: Vec<String> = both.answers.iter().flat_map(ids).collect();
    let found: Vec<_> = choices.iter().map(|c| c["items"][0]["id"].as_str().unwrap()).collect();
    assert_eq!(found, expected);
    assert_eq!(both.whole.items, expected);
    assert_eq!(whole["exhausted"], false);
    assert_eq!(whole["score"], "codebook");
    assert_eq!(whole["snapshot"], json!(both.answers[0].snapshot));
}

fn answer(content: Vec<AnswerPart>, logprobs: Option<Vec<TokenLogprob>>) -> Answer {
    Answer {
        id: None,
        snapshot: Some("s1".to_owned()),
        output: Output::Mixed,
        finish_reason: FinishReason::Length,
        score: None,
        exhausted: None,
        exhausted_types: Vec::new(),
        items: None,
        content: Some(content),
        choices: None,
        token_ids: None,
        logprobs,
        dropped: BTreeMap::from([("unknown_items", 2)]),
        usage: Usage { prompt_tokens: 5, cached_tokens: 4, completion_tokens: 3, beam_rows: 0 },
        timing: Timing::default(),
    }
}

fn item(number: usize, sid: Vec<u16>, title: Option<&str>) -> AnswerItem {
    AnswerItem {
        id: format!("book:{number}"),
        item_type: "book".to_owned(),
        sid,
        score: -0.5,
        boost: None,
        title: title.map(str::to_owned),
        logprobs: None,
        attributes: None,
    }
}

fn entry(id: TokenId, logprob: f32, top: &[(TokenId, f32)]) -> TokenLogprob {
    TokenLogprob { id, logprob, top: top.to_vec() }
}

/// Tokens of a text, one event for each, and the text when its characters are complete.
fn spoken(engine: &Engine, text: &str, events: &mut Vec<Event>, logprobs: &mut Vec<TokenLogprob>) {
    let mut detokenizer = engine.tokenizer().detokenizer();
    for token in engine.tokenizer().encode(text).unwrap() {
        let other = TokenId(5 + b'x' as u32);
        let token_logprob = entry(token, -0.25, &[(token, -0.25), (other, f32::NEG_INFINITY)]);
        events.push(Event::Logprob(token_logprob.clone()));
        logprobs.push(token_logprob);
        events.extend(detokenizer.push(token).map(Event::Text));
    }
}

/// The tokens of an item's span.
fn span(engine: &Engine, item: &AnswerItem, with_opener: bool) -> Vec<TokenLogprob> {
    let layout = engine.layout().unwrap();
    let of_type = layout.types.iter().position(|kind| kind.name == item.item_type).unwrap();
    let tokens = layout.span(crate::ids::TypeId(of_type as u16), &item.sid);
    let (open, close) = (layout.open.unwrap(), layout.close.unwrap());
    let codes: Vec<TokenId> = tokens.into_iter().filter(|token| *token != open && *token != close).collect();
    assert_eq!(codes.len(), item.sid.len());
    let opener = with_opener.then_some(open);
    opener.into_iter().chain(codes).chain([close]).map(|token| entry(token, -0.125, &[])).collect()
}

/// `é👍` and two items, the second without a title, in one answer with log-probabilities.
fn mixed(engine: &Engine) -> (Vec<Event>, Answer) {
    let levels = engine.layout().unwrap().specs()[0].levels.len();
    let (zoe, bare) = (item(1, vec![1; levels], Some("Zoé 👍")), item(22, vec![2; levels], None));
    let (mut events, mut logprobs) = (Vec::new(), Vec::new());
    spoken(engine, "é👍", &mut events, &mut logprobs);
    for item in [&zoe, &bare] {
        let span = span(engine, item, true);
        events.extend(span.iter().cloned().map(Event::Logprob));
        logprobs.extend(span);
        events.push(Event::Item(item.clone()));
    }
    spoken(engine, "!ü", &mut events, &mut logprobs);
    let end = entry(TokenId(END), -1.0, &[]);
    events.push(Event::Logprob(end.clone()));
    logprobs.push(end);
    let text = |text: &str| AnswerPart::Text { text: text.to_owned() };
    let content = vec![text("é👍"), zoe.into(), bare.into(), text("!ü")];
    (events, answer(content, Some(logprobs)))
}

#[test]
fn log_probabilities_and_offsets_survive_streaming() {
    let engine = engine();
    for body in [
        json!({"messages": [{"role": "user", "content": "x"}], "output": "mixed", "logprobs": true, "top_logprobs": 2}),
        json!({"prompt": "x", "output": "mixed", "logprobs": 2}),
    ] {
        let (events, answer) = mixed(&engine);
        assert_same(&encode(&engine, &body, &events, answer));
    }
    let (events, answer) = mixed(&engine);
    let levels = engine.layout().unwrap().specs()[0].levels.len();
    let body = json!({"prompt": "x", "output": "mixed", "logprobs": 2});
    let whole = value(&encode(&engine, &body, &events, answer).whole);
    let choice = &whole["choices"][0];
    assert_eq!(choice["text"], "é👍Zoé 👍book:22!ü");
    let places: Vec<_> = choice["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|i| (i["start"].as_u64().unwrap(), i["end"].as_u64().unwrap()))
        .collect();
    assert_eq!(places, [(2, 7), (7, 14)]);
    assert_eq!(choice["items"][1]["title"], Value::Null);
    let offsets: Vec<u64> =
        choice["logprobs"]["text_offset"].as_array().unwrap().iter().map(|o| o.as_u64().unwrap()).collect();
    // é has two bytes and 👍 four, each a token of its own.
    let mut expected = vec![0, 0, 1, 1, 1, 1];
    expected.extend(vec![2; levels + 2]);
    expected.extend(vec![7; levels + 2]);
    expected.extend([14, 15, 15, 16]);
    assert_eq!(offsets, expected);
    let lengths: Vec<usize> = ["tokens", "token_logprobs", "top_logprobs"]
        .map(|key| choice["logprobs"][key].as_array().unwrap().len())
        .to_vec();
    assert_eq!(lengths, [expected.len(); 3]);
    assert_eq!(choice["logprobs"]["tokens"][0], "\u{FFFD}");
    assert_eq!(choice["logprobs"]["top_logprobs"][0], json!({"\u{FFFD}": -0.25, "x": -9999.0}));
    assert_eq!(choice["logprobs"]["tokens"][expected.len() - 1], "<|im_end|>");
}

#[test]
fn tokens_of_an_item_leave_with_it_or_never() {
    let engine = engine();
    let body = json!({"messages": [{"role": "user", "content": "x"}], "output": "mixed", "logprobs": true});
    let levels = engine.layout().unwrap().specs()[0].levels.len();
    let (gone, shown) = (item(1, vec![1; levels], Some("Gone")), item(2, vec![2; levels], Some("Shown")));
    let (mut events, mut logprobs) = (Vec::new(), Vec::new());
    spoken(&engine, "a", &mut events, &mut logprobs);
    // The first item was denied on its way: its tokens come, the item does not.
    events.extend(span(&engine, &gone, true).into_iter().map(Event::Logprob));
    let span = span(&engine, &shown, true);
    events.extend(span.iter().cloned().map(Event::Logprob));
    logprobs.extend(span);
    events.push(Event::Item(shown.clone()));
    spoken(&engine, "b", &mut events, &mut logprobs);
    // A budget that ends inside a span: an opener that the answer does not have.
    events.push(Event::Logprob(entry(TokenId(OPENER), -0.5, &[])));
    let text = |text: &str| AnswerPart::Text { text: text.to_owned() };
    let answer = answer(vec![text("a"), shown.into(), text("b")], Some(logprobs));
    let both = encode(&engine, &body, &events, answer);
    assert_same(&both);
    for chunk in &both.chunks {
        let names_code = String::from_utf8_lossy(&chunk.json).contains("book_");
        assert_eq!(names_code, !chunk.items.is_empty(), "{chunk:?}");
    }
}

#[test]
fn choices_carry_their_scores() {
    let engine = engine();
    let score = |text: &str, score| ChoiceScore { text: text.to_owned(), score, probability: 0.5 };
    let mut answer = answer(Vec::new(), None);
    answer.content = None;
    answer.choices = Some(vec![score("ja", -1.0), score("nein", -2.0)]);
    let body = json!({"messages": [{"role": "user", "content": "x"}], "choice": ["nein", "ja"]});
    let both = encode(&engine, &body, &[], answer);
    assert_same(&both);
    let whole = value(&both.whole);
    assert_eq!(whole["choices"][0]["message"], json!({"role": "assistant", "content": "ja"}));
    assert_eq!(
        whole["choices"][0]["choice_scores"],
        json!([{"text": "ja", "score": -1.0, "probability": 0.5}, {"text": "nein", "score": -2.0, "probability": 0.5}])
    );
}

#[test]
fn the_bytes_of_a_stream() {
    let engine = engine();
    let body = json!({"messages": [{"role": "user", "content": "x"}], "output": "mixed", "stream": true,
        "stream_options": {"include_usage": true}});
    let mut named = item(7, vec![1, 2], Some("T\n"));
    named.attributes = json!({"year": 1999, "fresh": null}).as_object().cloned();
    let events = [Event::Text("a\"".to_owned()), Event::Item(named.clone())];
    let mut answer = answer(vec![AnswerPart::Text { text: "a\"".to_owned() }, named.into()], None);
    answer.finish_reason = FinishReason::Stop;
    let both = encode(&engine, &body, &events, answer);
    let head = r#"{"id":"chatcmpl-\"1","object":"chat.completion.chunk","created":1700000000,"model":"tiny","choices":["#;
    let item = r#"{"start":2,"end":4,"id":"book:7","type":"book","sid":[1,2],"score":-0.5,"title":"T\n","attributes":{"year":1999,"fresh":null}}"#;
    let expected = [
        r#"{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"usage":null}"#.to_owned(),
        r#"{"index":0,"delta":{"content":"a\""},"logprobs":null,"finish_reason":null}],"usage":null}"#.to_owned(),
        format!(r#"{{"index":0,"delta":{{"content":"T\n","items":[{item}]}},"logprobs":null,"finish_reason":null}}],"usage":null}}"#),
        r#"{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}],"snapshot":"s1","dropped":{"unknown_items":2},"usage":null}"#.to_owned(),
        r#"],"usage":{"prompt_tokens":5,"completion_tokens":3,"total_tokens":8,"prompt_tokens_details":{"cached_tokens":4}}}"#.to_owned(),
    ];
    let found: Vec<String> = both.chunks.iter().map(|c| String::from_utf8(c.json.clone()).unwrap()).collect();
    assert_eq!(found, expected.map(|end| format!("{head}{end}")));
    let items: Vec<_> = both.chunks.iter().map(|chunk| chunk.items.join(",")).collect();
    assert_eq!(items, ["", "", "book:7", "", ""]);
    assert_eq!(
        String::from_utf8(both.whole.json).unwrap(),
        format!(
            r#"{{"id":"chatcmpl-\"1","object":"chat.completion","created":1700000000,"model":"tiny","choices":[{{"index":0,"message":{{"role":"assistant","content":"a\"T\n","items":[{item}]}},"logprobs":null,"finish_reason":"stop"}}],"usage":{{"prompt_tokens":5,"completion_tokens":3,"total_tokens":8,"prompt_tokens_details":{{"cached_tokens":4}}}},"snapshot":"s1","dropped":{{"unknown_items":2}}}}"#
        )
    );
}
