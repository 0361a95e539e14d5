//! Bodies to requests.

use serde_json::{Map, Value, json};

use super::{chat, completion, invalid, requests, with};
use crate::error::Error;
use crate::server::openai::{ChatBody, CompletionBody};

fn hello() -> Value {
    json!({"messages": [{"role": "user", "content": "hi"}]})
}

fn one(plan: crate::error::Result<super::Plan>) -> Value {
    let mut all = requests(plan.unwrap_or_else(|error| panic!("{error}")));
    assert_eq!(all.len(), 1);
    all.remove(0)
}

/// Fields that go to the native request as they are, with the output that allows them.
fn passed_on() -> Vec<(&'static str, Value)> {
    vec![
        ("text", json!({"max_tokens": 7})),
        ("text", json!({"temperature": 0.5})),
        ("text", json!({"top_p": 0.25})),
        ("text", json!({"top_k": 5})),
        ("text", json!({"min_p": 0.1})),
        ("text", json!({"repetition_penalty": 1.5})),
        ("text", json!({"presence_penalty": -1.0})),
        ("text", json!({"frequency_penalty": 1.0})),
        ("text", json!({"logit_bias": {"5": -100, "6": 1.5}})),
        ("text", json!({"min_tokens": 3})),
        ("text", json!({"stop": "x"})),
        ("text", json!({"stop": ["x", "y"]})),
        ("text", json!({"stop_token_ids": [1, 2]})),
        ("text", json!({"ignore_eos": true})),
        ("text", json!({"seed": -4})),
        ("text", json!({"return_token_ids": true})),
        ("text", json!({"choice": ["a", "b"]})),
        ("text", json!({"truncate": "start"})),
        ("text", json!({"unknown_items": "skip"})),
        ("mixed", json!({"span_beam": 4})),
        ("mixed", json!({"allow_repeats": true})),
        ("mixed", json!({"item_types": ["book"]})),
        ("items", json!({"filter": {"attr": "year", "ge": 1990}})),
        ("items", json!({"allow": ["book:1"]})),
        ("items", json!({"allow": []})),
        ("items", json!({"exclude": ["book:1"]})),
        ("items", json!({"beam_width": 40})),
        ("items", json!({"beam_width": [4, 8]})),
        ("items", json!({"score": "vocabulary"})),
        ("items", json!({"n": 3})),
        ("items", json!({"diversity": {"groups": 2, "penalty": 0.5}})),
        ("items", json!({"boosts": [{"weight": 0.5, "attr": "fresh", "eq": true}]})),
        ("items", json!({"collisions": "all"})),
        ("items", json!({"return_attributes": ["year"]})),
    ]
}

#[test]
fn native_fields_pass_through_both_routes() {
    for (output, field) in passed_on() {
        let fields = with(&field, &json!({"output": output}));
        let mut expected = fields.clone();
        if output == "items" && field.get("n").is_none() {
            expected["n"] = json!(1);
        }
        let found = one(chat(&with(&hello(), &fields)));
        assert_eq!(found, with(&hello(), &expected), "chat, {field}");
        let found = one(completion(&with(&json!({"prompt": "p"}), &fields)));
        assert_eq!(found, with(&json!({"prompt": "p"}), &expected), "completion, {field}");
    }
    // Quotas have their own n.
    let quotas = json!({"output": "items", "quotas": [{"type": "book", "n": 2}, {"type": "film", "n": 3}]});
    let plan = chat(&with(&hello(), &quotas)).unwrap();
    assert_eq!(plan.per_request, 5);
    assert_eq!(requests(plan), [with(&hello(), &quotas)]);
}

#[test]
fn null_means_absent_for_every_field() {
    let schemas = super::schemas::properties();
    for (body, schema) in [(hello(), &schemas[0]), (json!({"prompt": "p"}), &schemas[1])] {
        let mut nulls: Map<String, Value> = schema.iter().map(|name| (name.clone(), Value::Null)).collect();
        for name in
            ["tools", "tool_choice", "functions", "function_call", "audio", "modalities", "prediction"]
        {
            nulls.insert(name.to_owned(), Value::Null);
        }
        assert!(nulls.len() > 55, "{}", nulls.len());
        let body = with(&nulls.into(), &body);
        let (plain, plan) = if body.get("messages").is_some() {
            (requests(chat(&hello()).unwrap()), chat(&body))
        } else {
            (requests(completion(&json!({"prompt": "p"})).unwrap()), completion(&body))
        };
        assert_eq!(requests(plan.unwrap_or_else(|error| panic!("{error}"))), plain);
    }
}

#[test]
fn what_changes_no_answer_is_accepted() {
    let fields = json!({"user": "u", "metadata": {"a": "b"}, "store": true, "service_tier": "auto",
        "safety_identifier": "s", "prompt_cache_key": "k", "parallel_tool_calls": true, "tools": [],
        "response_format": {"type": "text"}, "n": 1, "stream": false, "model": "m"});
    let plan = chat(&with(&hello(), &fields)).unwrap();
    assert_eq!(plan.model.as_deref(), Some("m"));
    assert!(!plan.stream && !plan.include_usage);
    assert_eq!(requests(plan), [with(&hello(), &json!({"output": "text"}))]);
    let fields = json!({"echo": false, "best_of": 2, "n": 2});
    assert_eq!(requests(completion(&with(&json!({"prompt": "p"}), &fields)).unwrap()).len(), 2);
}

#[test]
fn the_bodies_of_vllm_bench_serve_are_understood() {
    let body = json!({"model": "m", "prompt": "p", "temperature": 0.0, "repetition_penalty": 1.0, "max_tokens": 128,
        "logprobs": null, "stream": true, "stream_options": {"include_usage": true}, "ignore_eos": true});
    let plan = completion(&body).unwrap();
    assert!(plan.stream && plan.include_usage);
    let expected = json!({"prompt": "p", "output": "text", "max_tokens": 128, "temperature": 0.0,
        "repetition_penalty": 1.0, "ignore_eos": true});
    assert_eq!(requests(plan), [expected]);
    let parts = json!([{"type": "text", "text": "p"}]);
    let messages = json!([{"role": "user", "content": parts}]);
    let body = json!({"model": "m", "messages": messages, "max_completion_tokens": 16, "stream": true,
        "stream_options": {"include_usage": true}});
    let plan = chat(&body).unwrap();
    assert!(plan.stream && plan.include_usage);
    assert_eq!(requests(plan), [json!({"messages": messages, "output": "text", "max_tokens": 16})]);
}

#[test]
fn messages_hold_typed_parts_and_answers_sent_back() {
    let parts = json!([{"type": "text", "text": "History: "}, {"type": "history", "items": ["book:1", "book:2"]},
        {"type": "item", "id": "book:3"}, {"type": "embedding", "values": [0.5, -1.0]}]);
    let roles = ["system", "developer", "user", "assistant", "tool"];
    let messages: Vec<Value> = roles.iter().map(|role| json!({"role": role, "content": parts})).collect();
    assert_eq!(one(chat(&json!({"messages": messages})))["messages"], json!(messages));

    // "Été: " has 5 code points and 7 bytes.
    let item = json!({"start": 5, "end": 8, "id": "book:1", "type": "book", "sid": [1], "score": -0.5, "title": "Zoé"});
    let next = json!({"start": 8, "end": 9, "id": "book:2"});
    let message = json!({"role": "assistant", "content": "Été: Zoé!.", "items": [item, next], "refusal": null,
        "tool_calls": [], "annotations": []});
    let native = json!({"role": "assistant", "content": [{"type": "text", "text": "Été: "}, {"type": "item", "id": "book:1"},
        {"type": "item", "id": "book:2"}, {"type": "text", "text": "."}]});
    let plan = chat(&json!({"messages": [hello()["messages"][0], message]})).unwrap();
    let error = plan.explain(0, Error::invalid("messages[1].content[1].id", "unknown"));
    assert_eq!(error.to_string(), "messages[1].items: unknown");
    assert_eq!(requests(plan)[0]["messages"][1], native);
    let whole = json!({"role": "assistant", "content": "ab", "items": [{"start": 0, "end": 2, "id": "x"}]});
    let found = one(chat(&json!({"messages": [whole]})));
    assert_eq!(found["messages"][0]["content"], json!([{"type": "item", "id": "x"}]));
}

#[test]
fn log_probabilities_are_asked_for_in_either_form() {
    let asked = |fields: Value| one(chat(&with(&hello(), &fields))).get("logprobs").cloned();
    assert_eq!(asked(json!({"logprobs": true})), Some(json!(0)));
    assert_eq!(asked(json!({"logprobs": true, "top_logprobs": 3})), Some(json!(3)));
    assert_eq!(asked(json!({"logprobs": false})), None);
    assert_eq!(asked(json!({"top_logprobs": 0})), None);
    let found = one(completion(&json!({"prompt": "p", "logprobs": 2})));
    assert_eq!(found["logprobs"], 2);
}

#[test]
fn every_prompt_is_a_request_and_n_multiplies_it() {
    let seeds = |all: &[Value]| all.iter().map(|request| request["seed"].as_i64()).collect::<Vec<_>>();
    let body = json!({"prompt": ["a", "b"], "n": 3, "seed": 10});
    let plan = completion(&body).unwrap();
    assert_eq!((plan.requests.len(), plan.variants, plan.per_request), (6, 3, 1));
    let error = |request| plan.explain(request, Error::invalid("prompt", "too long")).to_string();
    assert_eq!([error(2), error(3)], ["prompt[0]: too long", "prompt[1]: too long"]);
    let all = requests(plan);
    let prompts: Vec<_> = all.iter().map(|request| request["prompt"].as_str().unwrap()).collect();
    assert_eq!(prompts, ["a", "a", "a", "b", "b", "b"]);
    assert_eq!(seeds(&all), [Some(10), Some(11), Some(12), Some(10), Some(11), Some(12)]);

    let all = requests(chat(&with(&hello(), &json!({"n": 2, "seed": i64::MAX}))).unwrap());
    assert_eq!(seeds(&all), [Some(i64::MAX), Some(i64::MIN)]);
    assert_eq!(all[0]["messages"], all[1]["messages"]);
    assert!(all[0].get("n").is_none());

    let plan = completion(&json!({"prompt": [[1, 2], [3]]})).unwrap();
    let error = plan.explain(1, Error::invalid("prompt_token_ids[0]", "outside"));
    assert_eq!(error.to_string(), "prompt[1][0]: outside");
    let all = requests(plan);
    assert_eq!([&all[0]["prompt_token_ids"], &all[1]["prompt_token_ids"]], [&json!([1, 2]), &json!([3])]);
    let plan = completion(&json!({"prompt": [7, 8]})).unwrap();
    let error = plan.explain(0, Error::invalid("prompt_token_ids[1]", "outside"));
    assert_eq!(error.to_string(), "prompt[1]: outside");
    assert_eq!(requests(plan)[0]["prompt_token_ids"], json!([7, 8]));
}

#[test]
fn a_choice_has_four_names() {
    let strings = json!(["yes", "no"]);
    for (fields, name) in [
        (json!({"choice": strings}), "choice"),
        (json!({"guided_choice": strings}), "guided_choice"),
        (json!({"structured_outputs": {"choice": strings}}), "structured_outputs.choice"),
        (json!({"response_format": {"type": "choice", "choice": strings}}), "response_format.choice"),
    ] {
        let neutral = json!({"max_tokens": 5, "top_p": 1.0, "frequency_penalty": 0, "stop": [], "n": 1});
        let plan = chat(&with(&with(&hello(), &fields), &neutral)).unwrap();
        let error = plan.explain(0, Error::invalid("choice[1]", "given twice"));
        assert_eq!(error.to_string(), format!("{name}[1]: given twice"));
        assert_eq!(requests(plan), [with(&hello(), &json!({"output": "text", "choice": strings}))]);
    }
}

#[test]
fn lists_take_their_width_from_vllms_names_and_ignore_what_says_nothing() {
    let items = |fields: Value| one(completion(&with(&json!({"prompt": "p"}), &fields)));
    let found = items(json!({"use_beam_search": true, "n": 20, "beam_width": 8}));
    assert_eq!(found, json!({"prompt": "p", "output": "items", "n": 20, "beam_width": 20}));
    let found = items(json!({"use_beam_search": true, "n": 4, "beam_width": 8, "output": "items"}));
    assert_eq!(found["beam_width"], 8);
    // A width out of bounds stays one.
    assert_eq!(items(json!({"use_beam_search": true, "beam_width": 0}))["beam_width"], 0);
    assert_eq!(items(json!({"use_beam_search": true, "n": 2})).get("beam_width"), None);
    let neutral = json!({"output": "items", "top_p": 1, "top_k": -1, "min_p": 0, "repetition_penalty": 1.0,
        "presence_penalty": 0, "frequency_penalty": 0.0, "min_tokens": 0, "ignore_eos": false, "logit_bias": {},
        "stop": [], "stop_token_ids": []});
    assert_eq!(items(neutral), json!({"prompt": "p", "output": "items", "n": 1}));
    assert_eq!(items(json!({"output": "items", "top_p": 0.5}))["top_p"], 0.5);
}

#[test]
fn names_of_the_body_stand_in_errors() {
    let explain = |body: Value, field: &str| {
        let plan = chat(&with(&hello(), &body)).unwrap();
        plan.explain(0, Error::invalid(field, "x")).to_string()
    };
    assert_eq!(explain(json!({"max_completion_tokens": 0}), "max_tokens"), "max_completion_tokens: x");
    assert_eq!(explain(json!({"max_tokens": 0}), "max_tokens"), "max_tokens: x");
    assert_eq!(explain(json!({"logprobs": true, "top_logprobs": 99}), "logprobs"), "top_logprobs: x");
    assert_eq!(explain(json!({}), "messages[0].content[0].id"), "messages[0].content[0].id: x");
    assert_eq!(explain(json!({}), "max_tokens_of_another_kind"), "max_tokens_of_another_kind: x");
    let plan = chat(&hello()).unwrap();
    assert!(matches!(plan.explain(0, Error::Dead("d".into())), Error::Dead(reason) if reason == "d"));
}

#[test]
fn chat_errors_name_field_and_reason() {
    let many = vec!["a"; 2000];
    for (fields, field, reason) in [
        (json!({"messages": null}), "messages", "at least 1 message"),
        (json!({"messages": []}), "messages", "at least 1 message"),
        (json!({"messages": [{"role": "user"}]}), "messages[0].content", "missing"),
        (
            json!({"messages": [{"role": "user", "content": "x", "name": "bob"}]}),
            "messages[0].name",
            "not served",
        ),
        (
            json!({"messages": [{"role": "user", "content": 5}]}),
            "messages[0].content",
            "a string or a list of parts",
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}),
            "messages[0].content[0].type",
            "`image_url`",
        ),
        (
            json!({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]}),
            "messages[0].tool_calls",
            "not served",
        ),
        (
            json!({"messages": [{"role": "assistant", "content": "ab", "items": [{"start": 1, "end": 3, "id": "x"}]}]}),
            "messages[0].items[0]",
            "1 to 3 is outside of the range that is left, from 0 to 2",
        ),
        (
            json!({"messages": [{"role": "assistant", "content": "ab", "items": [{"start": -1, "end": 1, "id": "x"}]}]}),
            "messages[0].items[0]",
            "-1 to 1",
        ),
        (
            json!({"messages": [{"role": "assistant", "content": "ab",
            "items": [{"start": 1, "end": 2, "id": "x"}, {"start": 0, "end": 1, "id": "y"}]}]}),
            "messages[0].items[1]",
            "from 2 to 2",
        ),
        (json!({"n": 0}), "n", "0 is outside of the allowed range from 1 to 128"),
        (json!({"n": 129}), "n", "129"),
        (json!({"n": -1}), "n", "-1"),
        (json!({"n": i64::MAX}), "n", "9223372036854775807"),
        (json!({"n": 1.5}), "n", "1.5"),
        (json!({"n": "2"}), "n", "string"),
        (json!({"seed": u64::MAX}), "seed", "18446744073709551615"),
        (json!({"max_tokens": 1, "max_completion_tokens": 2}), "max_completion_tokens", "contradicts"),
        (json!({"top_logprobs": 2}), "top_logprobs", "needs logprobs"),
        (json!({"logprobs": 2}), "logprobs", "integer `2`"),
        (json!({"beam_widht": 2}), "beam_widht", "unknown field `beam_widht`"),
        (json!({"stream_options": {"include_usage": true}}), "stream_options", "needs stream"),
        (json!({"stream": true, "stream_options": {"x": 1}}), "stream_options.x", "unknown field `x`"),
        (
            json!({"stream": true, "stream_options": {"include_obfuscation": true}}),
            "stream_options.include_obfuscation",
            "not served",
        ),
        (json!({"tools": [{"type": "function"}]}), "tools", "not served"),
        (json!({"tool_choice": "auto"}), "tool_choice", "not served"),
        (json!({"functions": [1]}), "functions", "not served"),
        (json!({"audio": {"voice": "x"}}), "audio", "not served"),
        (json!({"modalities": ["audio"]}), "modalities", "not served"),
        (
            json!({"response_format": {"type": "json_object"}}),
            "response_format.type",
            "`json_object` is not served",
        ),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"a": 1}}}),
            "response_format.type",
            "json_schema",
        ),
        (json!({"response_format": {"type": "choice"}}), "response_format.type", "needs the strings"),
        (json!({"structured_outputs": {"json": {}}}), "structured_outputs.json", "unknown field `json`"),
        (json!({"choice": ["a"], "guided_choice": ["b"]}), "guided_choice", "choice has them too"),
        (json!({"choice": ["a"], "n": 2}), "n", "not allowed with a choice"),
        (json!({"choice": ["a"], "max_tokens": 0}), "max_tokens", "0 is below 1"),
        (
            json!({"use_beam_search": true, "output": "text"}),
            "use_beam_search",
            "not allowed with output text",
        ),
        (json!({"use_beam_search": true, "output": "mixed"}), "use_beam_search", "mixed"),
        (json!({"output": "songs"}), "output", "`songs`"),
        (json!({"stream": true, "stream_options": [true]}), "stream_options", "expected an object"),
        (json!({"messages": [["user", "hi"]]}), "messages[0]", "expected an object"),
        (json!({"beam_width": [1, "x"]}), "beam_width[1]", "string"),
    ] {
        let (found, message) = invalid(chat(&with(&hello(), &fields)));
        assert_eq!(found, field, "{fields}: {message}");
        assert!(message.contains(reason), "{fields}: {message}");
    }
    assert_eq!(invalid(completion(&json!({"prompt": many, "n": 1}))).0, "prompt");
}

#[test]
fn completion_errors_name_field_and_reason() {
    for (fields, field, reason) in [
        (json!({}), "prompt", "missing"),
        (json!({"prompt": []}), "prompt", "at least 1"),
        (json!({"prompt": 5}), "prompt", "a list of texts"),
        (json!({"prompt": ["a", 5]}), "prompt[1]", "integer `5`"),
        (json!({"prompt": [5, "a"]}), "prompt[1]", "string"),
        (json!({"prompt": [[5], "a"]}), "prompt[1]", "string"),
        (json!({"prompt": [[5, 1.5]]}), "prompt[0][1]", "1.5"),
        (json!({"prompt": "p", "echo": true}), "echo", "not served"),
        (json!({"prompt": "p", "suffix": "s"}), "suffix", "not served"),
        (json!({"prompt": "p", "best_of": 3, "n": 2}), "best_of", "only be n, which is 2"),
        (
            json!({"prompt": ["a", "b", "c", "d", "e", "f", "g", "h", "i"], "n": 128}),
            "prompt",
            "1152 answers of 9 prompts",
        ),
        (json!({"prompt": "p", "logprobs": true}), "logprobs", "boolean"),
        (json!({"prompt": "p", "messages": []}), "messages", "unknown field"),
        (json!({"prompt": "p", "max_completion_tokens": 5}), "max_completion_tokens", "unknown field"),
    ] {
        let (found, message) = invalid(completion(&fields));
        assert_eq!(found, field, "{fields}: {message}");
        assert!(message.contains(reason), "{fields}: {message}");
    }
}

#[test]
fn what_is_no_object_is_refused() {
    for bytes in [&b""[..], b"{", b"[]", b"null", b"5", b"{} x", b"\xff", br#"{"n": 1, "n": 2}"#] {
        for error in [ChatBody::from_json(bytes).err(), CompletionBody::from_json(bytes).err()] {
            assert!(matches!(error, Some(Error::Invalid { .. })), "{bytes:?}");
        }
    }
}
