//! Bodies that nobody would write: never a 5xx, never a hang, and the same server afterwards.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Map, Value, json};

use super::Running;
use super::client::{Client, get, post};
use crate::requests::random::{odd_value, random_request};

/// What is replaced, or added.
const FIELDS: [&str; 16] = [
    "n",
    "stop",
    "logprobs",
    "stream",
    "logit_bias",
    "messages",
    "prompt",
    "output",
    "filter",
    "max_tokens",
    "top_p",
    "response_format",
    "stream_options",
    "beam_width",
    "choice",
    "unheard_of",
];

fn spoilt(random: &mut StdRng, body: &Value) -> Value {
    let mut fields: Map<String, Value> = body.as_object().unwrap().clone();
    for _ in 0..random.random_range(0..4) {
        let name = FIELDS[random.random_range(0..FIELDS.len())];
        fields.insert(name.to_owned(), odd_value(random));
    }
    Value::Object(fields)
}

#[test]
fn thousands_of_odd_bodies_do_no_harm() {
    let server = Running::quick();
    let mut random = StdRng::seed_from_u64(5);
    let names: Vec<String> = vec!["<|im_end|>".to_owned(), "<book_0_1>".to_owned()];
    let good = json!({"prompt": "hello", "n": 5});
    let before = post(server.address, "/v1/items", &good).json()["items"].clone();
    let chat = json!({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4});
    let completion = json!({"prompt": "hello", "max_tokens": 4});
    let mut client = Client::connect(server.address);
    let mut seen = std::collections::BTreeMap::new();
    for at in 0..4000 {
        let (path, body) = match at % 4 {
            0 | 1 => ("/v1/items", random_request(&mut random, &names)),
            2 => ("/v1/chat/completions", spoilt(&mut random, &chat)),
            _ => ("/v1/completions", spoilt(&mut random, &completion)),
        };
        let mut bytes = body.to_string().into_bytes();
        if random.random_bool(0.1) {
            let place = random.random_range(0..bytes.len());
            bytes[place] = random.random();
        }
        let reply = client.call("POST", path, &[("x-request-timeout-ms", "20000")], &bytes);
        let sound = reply.whole && [200, 400].contains(&reply.status);
        assert!(sound, "{path} {body}: {} {}", reply.status, String::from_utf8_lossy(&reply.body));
        if reply.status == 400 {
            let error = &reply.json()["error"];
            assert!(error["param"].is_string() && error["message"].as_str().unwrap().len() > 10, "{error}");
        }
        *seen.entry((path, reply.status)).or_insert(0) += 1;
    }
    assert!(seen.len() == 6 && seen.values().all(|&count| count > 50), "{seen:?}");
    assert_eq!(post(server.address, "/v1/items", &good).json()["items"], before);
    assert!(get(server.address, "/metrics").text().contains("sidereal:gate_violations_total 0"));
    server.end();
}
