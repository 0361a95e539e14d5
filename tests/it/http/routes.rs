//! What the routes answer, and that HTTP and library agree.

use serde_json::{Value, json};
use sidereal::Error;
use sidereal::engine::{Output, Request};

use super::client::{Client, get, post};
use super::{Running, quick_engine};
use crate::requests::{json_of, table};

#[test]
fn the_native_route_gives_what_the_library_gives() {
    let server = Running::quick();
    let body = json!({"id": "r1", "prompt": "hello", "n": 5, "logprobs": 0, "return_attributes": ["year"]});
    let reply = post(server.address, "/v1/items", &body);
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/json")));
    let mut found = reply.json();
    let timings = found.as_object_mut().unwrap().remove("timings").unwrap();
    assert!(timings["total_ms"].as_f64().unwrap() > 0.0, "{timings}");
    let mut request = Request::from_json(&body.to_string()).unwrap();
    request.output = Some(Output::Items);
    // By way of the text: a value would widen the scores.
    let expected = serde_json::to_string(&server.engine.generate(&request).unwrap()).unwrap();
    let mut expected: Value = serde_json::from_str(&expected).unwrap();
    // The second of two equal requests finds the first one's prompt.
    (found["usage"]["cached_tokens"], expected["usage"]["cached_tokens"]) = (0.into(), 0.into());
    assert_eq!(found, expected);
    assert_eq!(found["items"].as_array().unwrap().len(), 5);
    assert!(found["items"][0]["attributes"]["year"].is_i64());
    server.end();
}

#[test]
fn streams_say_the_same_as_whole_answers() {
    let server = Running::quick();
    let mixed = |seed| json!({"prompt": "hello", "output": "mixed", "max_tokens": 200, "seed": seed, "ignore_eos": true});
    let names = |body: &Value| post(server.address, "/v1/items", body).text().contains("\"type\":\"item\"");
    let body = (0..200).map(mixed).find(names).expect("a seed whose answer names an item");
    let whole = post(server.address, "/v1/items", &body).json();
    let events = [("accept", "text/event-stream")];
    let reply =
        Client::connect(server.address).call("POST", "/v1/items", &events, body.to_string().as_bytes());
    assert_eq!(reply.header("content-type"), Some("text/event-stream"));
    let (mut text, mut items, mut done) = (String::new(), Vec::new(), None);
    let lines = reply.text();
    for event in lines.split("\n\n").filter(|event| !event.is_empty()) {
        let (kind, data) = event.split_once('\n').unwrap();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        match kind {
            "event: text" => text.push_str(data["text"].as_str().unwrap()),
            "event: item" => items.push(data["id"].clone()),
            "event: done" => done = Some(data),
            other => panic!("{other}"),
        }
    }
    let done = done.expect("a last event");
    assert_eq!(done["content"], whole["content"]);
    let parts = whole["content"].as_array().unwrap();
    let of = |kind: &str, key: &str| -> Vec<Value> {
        parts.iter().filter(|part| part["type"] == kind).map(|part| part[key].clone()).collect()
    };
    assert_eq!(items, of("item", "id"));
    assert_eq!(text, of("text", "text").iter().map(|text| text.as_str().unwrap()).collect::<String>());

    let chat = json!({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 40, "seed": 3, "stream": true,
        "stream_options": {"include_usage": true}});
    let events = post(server.address, "/v1/chat/completions", &chat).events();
    assert_eq!(events.last().unwrap(), "[DONE]");
    let chunks: Vec<Value> =
        events[..events.len() - 1].iter().map(|data| serde_json::from_str(data).unwrap()).collect();
    let said: String =
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    let mut body = chat.clone();
    body.as_object_mut().unwrap().retain(|key, _| !key.starts_with("stream"));
    let whole = post(server.address, "/v1/chat/completions", &body).json();
    assert_eq!(whole["choices"][0]["message"]["content"], said);
    let usage = &chunks.last().unwrap()["usage"];
    assert_eq!(usage["completion_tokens"], whole["usage"]["completion_tokens"]);
    server.end();
}

/// Every row of the table of fields and values, over HTTP and in the library: the same verdict, the same words.
#[test]
fn errors_are_those_of_the_library() {
    let server = Running::quick();
    let vocab = server.engine.tokenizer().vocab_size().to_string();
    let mut client = Client::connect(server.address);
    let (mut wrong, mut refused) = (Vec::new(), 0);
    for &(base, fields, _, _) in [table::PROMPTS, table::LISTS, table::TEXTS].into_iter().flatten() {
        let body = json_of(base, &fields.replace("{V}", &vocab));
        let library = Request::from_json(&body).and_then(|mut request| {
            request.output.get_or_insert(Output::Items);
            server.engine.validate(&request)
        });
        let reply = client.call("POST", "/v1/items", &[("x-request-timeout-ms", "20000")], body.as_bytes());
        match library {
            Ok(_) if reply.status == 200 => {}
            Err(Error::Invalid { field, message }) if reply.status == 400 => {
                refused += 1;
                let error = &reply.json()["error"];
                let expected = json!({"message": format!("{field}: {message}"), "type": "invalid_request_error",
                    "param": field, "code": "invalid_request"});
                if *error != expected {
                    wrong.push(format!("{body}\n   {error}\n   expected {expected}"));
                }
            }
            other => wrong.push(format!(
                "{body}\n   HTTP {}: {}\n   library: {:?}",
                reply.status,
                reply.text(),
                other.err()
            )),
        }
    }
    assert!(wrong.is_empty(), "{} rows:\n{}", wrong.len(), wrong.join("\n"));
    assert!(refused > 100, "{refused} rows were refused");
    server.end();
}

#[test]
fn small_routes_answer() {
    let server = Running::quick();
    let at = server.address;
    assert_eq!(get(at, "/livez").text(), "ok\n");
    assert_eq!(get(at, "/readyz").status, 200);
    assert_eq!(get(at, "/v1/models").json()["data"][0]["id"], "sidereal");
    assert_eq!(get(at, "/v1/models/sidereal").status, 200);
    assert_eq!(get(at, "/v1/models/other").json()["error"]["param"], "model");
    assert_eq!(get(at, "/version").json()["version"], env!("CARGO_PKG_VERSION"));
    let catalog = get(at, "/v1/catalog").json();
    assert_eq!(catalog["items"], 300);
    let item = get(at, "/v1/catalog/item?id=film:8").json();
    let path: Vec<&Value> = item["path"].as_array().unwrap().iter().map(|step| &step["code"]).collect();
    assert_eq!(path, item["sid"].as_array().unwrap().iter().collect::<Vec<_>>());
    assert!(item["path"].as_array().unwrap().last().unwrap()["items"].as_u64().unwrap() >= 1);
    let top = &item["path"][0];
    assert!(top["items"].as_u64() > item["path"][3]["items"].as_u64(), "{item}");
    assert_eq!(get(at, "/v1/catalog/item?id=film:none").status, 404);
    assert_eq!(get(at, "/v1/catalog/item").status, 400);
    let found = get(at, "/v1/catalog/search?q=HARBOUR&type=book&limit=3").json();
    for item in found["items"].as_array().unwrap() {
        assert!(item["title"].as_str().unwrap().contains("Harbour") && item["type"] == "book", "{item}");
    }
    assert_eq!(get(at, "/v1/catalog/search?limit=0").json()["error"]["param"], "limit");
    assert_eq!(get(at, "/v1/catalog/search?type=car").json()["error"]["param"], "type");
    let tokens = post(at, "/tokenize", &json!({"prompt": "hello there"})).json();
    assert_eq!(tokens["count"].as_u64().unwrap() as usize, tokens["tokens"].as_array().unwrap().len());
    let text = post(at, "/detokenize", &json!({"tokens": tokens["tokens"]})).json();
    assert_eq!(text["prompt"], "hello there");
    assert_eq!(post(at, "/detokenize", &json!({"tokens": [-1]})).json()["error"]["param"], "tokens[0]");
    let metrics = get(at, "/metrics").text();
    for name in [
        "sidereal:num_requests_running ",
        "sidereal:gate_violations_total 0",
        "sidereal:kv_cache_usage_perc ",
    ] {
        assert!(metrics.contains(name), "{name} is not in\n{metrics}");
    }
    assert_eq!(get(at, "/nothing").json()["error"]["code"], "not_found");
    assert_eq!(get(at, "/v1/items").status, 405);
    let page = get(at, "/");
    assert!(page.text().contains("<!") && page.header("content-security-policy").unwrap().contains("'self'"));
    server.end();
}

#[test]
fn ids_and_traces_are_handed_on() {
    let server = Running::quick();
    let mut client = Client::connect(server.address);
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let reply = client.call("GET", "/version", &[("x-request-id", "mine-1"), ("traceparent", trace)], b"");
    assert_eq!(reply.header("x-request-id"), Some("mine-1"));
    let answered = reply.header("traceparent").unwrap();
    assert_eq!((&answered[..36], &answered[52..]), (&trace[..36], &trace[52..]));
    assert_ne!(answered[36..52], trace[36..52], "a span of our own");
    let reply = client.call("GET", "/version", &[], b"");
    assert!(reply.header("x-request-id").unwrap().starts_with("req-"));
    server.end();
}

#[test]
fn the_openapi_document_names_every_route_and_nothing_else() {
    let server = Running::start(quick_engine(), sidereal::server::ServerOptions::default());
    for (address, some) in [(server.address, "/v1/chat/completions"), (server.admin, "/admin/catalog/deny")] {
        let document = get(address, "/openapi.json").json();
        let paths = document["paths"].as_object().unwrap();
        assert!(paths.contains_key(some));
        for (path, methods) in paths {
            for method in methods.as_object().unwrap().keys() {
                let concrete = path.replace("{id}", "sidereal");
                if concrete == "/admin/drain" {
                    continue;
                }
                let mut client = Client::connect(address);
                let reply = client.call(&method.to_uppercase(), &concrete, &[], b"");
                let missing = reply.status == 405 || reply.text().contains("no such route");
                assert!(!missing, "{method} {path}: {}", reply.text());
            }
        }
        // Every reference leads somewhere.
        let text = document.to_string();
        for reference in text.split("\"$ref\":\"#").skip(1).map(|rest| rest.split('"').next().unwrap()) {
            assert!(document.pointer(reference).is_some(), "{reference}");
        }
    }
    server.end();
}
