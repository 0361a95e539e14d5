//! Lines in, lines out.

use serde_json::{Value, json};

use super::Running;
use super::client::Client;

fn run(server: &Running, path: &str, lines: &[String]) -> Vec<Value> {
    let mut client = Client::connect(server.address);
    let body = lines.join("\n");
    let reply = client.call("POST", path, &[("content-type", "application/jsonl")], body.as_bytes());
    assert_eq!((reply.status, reply.whole), (200, true));
    reply.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_line_gives_a_line_in_order_and_may_be_skipped() {
    let server = Running::quick();
    let body = json!({"prompt": "hello", "n": 2});
    let chat = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3});
    let mut lines: Vec<String> = (0..200)
        .map(|at| match at % 4 {
            0 => json!({"id": format!("r{at}"), "prompt": "hello", "output": "items", "n": 2}).to_string(),
            1 => json!({"custom_id": format!("r{at}"), "method": "POST", "url": "/v1/items", "body": body}).to_string(),
            2 => json!({"custom_id": format!("r{at}"), "method": "POST", "url": "/v1/chat/completions", "body": chat}).to_string(),
            _ => json!({"id": format!("r{at}"), "prompt": "hello", "n": 0, "output": "items"}).to_string(),
        })
        .collect();
    lines.insert(7, String::new());
    let answers = run(&server, "/v1/batch", &lines);
    assert_eq!(answers.len(), 200, "an empty line is none");
    for (at, answer) in answers.iter().enumerate() {
        let own = format!("r{at}");
        match at % 4 {
            0 => assert_eq!((&answer["id"], answer["items"].as_array().unwrap().len()), (&json!(own), 2)),
            1 => {
                assert_eq!(
                    (&answer["custom_id"], &answer["response"]["status_code"]),
                    (&json!(own), &json!(200))
                );
                assert_eq!(answer["response"]["body"]["items"].as_array().unwrap().len(), 2);
            }
            2 => assert!(
                answer["response"]["body"]["choices"][0]["message"]["content"].is_string(),
                "{answer}"
            ),
            _ => assert_eq!((&answer["id"], &answer["error"]["field"]), (&json!(own), &json!("n"))),
        }
    }
    let rest = run(&server, "/v1/batch?skip=150", &lines);
    assert_eq!(rest.len(), 50);
    assert_eq!(rest[2]["id"], answers[152]["id"]);
    assert!(run(&server, "/v1/batch?skip=1000", &lines).is_empty());
    server.end();
}

#[test]
fn a_batch_waits_for_an_overloaded_engine() {
    let engine = super::engine_of(std::time::Duration::from_millis(1), |builder| builder.max_requests(4));
    let server = Running::start(engine, sidereal::server::ServerOptions::default());
    let lines: Vec<String> = (0..60)
        .map(|at| json!({"id": at.to_string(), "prompt": "hello", "output": "items"}).to_string())
        .collect();
    let answers = run(&server, "/v1/batch", &lines);
    assert_eq!(answers.iter().filter(|answer| answer["items"].is_array()).count(), 60);
    server.end();
}

#[test]
fn a_line_without_an_end_ends_the_batch() {
    let options = sidereal::server::ServerOptions { max_body_bytes: 1000, ..Default::default() };
    let server = Running::start(super::quick_engine(), options);
    let lines = [json!({"id": "a", "prompt": "x", "output": "items"}).to_string(), "x".repeat(5000)];
    let body = lines.join("\n");
    let mut client = Client::connect(server.address);
    let reply = client.call("POST", "/v1/batch", &[("content-type", "application/jsonl")], body.as_bytes());
    let text = reply.text();
    let answers: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers[0]["id"], "a");
    assert_eq!(answers[1]["error"]["code"], "line_too_large");
    assert!(!reply.whole, "what is missing shows");
    server.end();
}
