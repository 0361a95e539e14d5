//! How a server ends: drained, cut, or with a dead engine.

use std::net::TcpStream;
use std::time::Duration;

use serde_json::json;
use sidereal::server::{Ended, ServerOptions};

use super::client::{Client, get, post};
use super::{Running, engine_of, eventually, quick_engine};

const MS: Duration = Duration::from_millis(1);

#[test]
fn a_drain_loses_nothing_and_is_announced_first() {
    let options = ServerOptions { drain_delay: 500 * MS, ..ServerOptions::default() };
    let mut server = Running::start(engine_of(10 * MS, |builder| builder), options);
    let (address, admin) = (server.address, server.admin);
    let body = json!({"prompt": "hello", "output": "text", "max_tokens": 80, "ignore_eos": true});
    let clients: Vec<_> = (0..8)
        .map(|at| {
            let body = body.clone();
            std::thread::spawn(move || {
                let mut client = Client::connect(address);
                let accept = if at % 2 == 0 { "text/event-stream" } else { "*/*" };
                client.call("POST", "/v1/items", &[("accept", accept)], body.to_string().as_bytes())
            })
        })
        .collect();
    eventually("all run", || server.engine.in_flight() == 8);
    server.stop();
    eventually("it is said", || get(address, "/readyz").status == 503);
    // Not ready, and yet nothing is refused for as long as load balancers may still send.
    assert_eq!(get(admin, "/readyz").json()["error"]["code"], "draining");
    assert_eq!(get(address, "/livez").status, 200);
    assert_eq!(post(address, "/v1/items", &json!({"prompt": "late"})).status, 200);
    for (at, client) in clients.into_iter().enumerate() {
        let reply = client.join().unwrap();
        assert_eq!((reply.status, reply.whole), (200, true));
        assert!(at % 2 == 1 || reply.text().contains("event: done"), "{}", reply.text());
    }
    assert_eq!(server.wait(), Ended::Drained);
    assert!(TcpStream::connect(address).is_err(), "nobody listens any more");
}

#[test]
fn idle_connections_do_not_hold_up_a_drain() {
    let mut server = Running::quick();
    let mut idle = Client::connect(server.address);
    idle.call("GET", "/livez", &[], b"");
    let _silent = Client::connect(server.address);
    server.stop();
    let begun = std::time::Instant::now();
    assert_eq!(server.wait(), Ended::Drained);
    assert!(begun.elapsed() < 5000 * MS, "{:?}", begun.elapsed());
    assert!(idle.head().is_none());
}

#[test]
fn a_connection_accepted_before_the_end_may_still_ask() {
    let mut server = Running::quick();
    let mut silent = Client::connect(server.address);
    let mut kept = Client::connect(server.address);
    assert_eq!(kept.call("GET", "/livez", &[], b"").header("connection"), None);
    server.stop();
    eventually("it drains", || server.engine.in_flight() == 0 && TcpStream::connect(server.address).is_err());
    for client in [&mut silent, &mut kept] {
        let reply = client.call("POST", "/v1/items", &[], b"{\"prompt\": \"late\"}");
        assert_eq!((reply.status, reply.header("connection")), (200, Some("close")));
        assert!(client.head().is_none(), "it was the last");
    }
    assert_eq!(server.wait(), Ended::Drained);
}

#[test]
fn a_drain_that_takes_too_long_cuts_what_is_left() {
    let options = ServerOptions { drain_timeout: 200 * MS, ..ServerOptions::default() };
    let mut server = Running::start(engine_of(20 * MS, |builder| builder), options);
    let mut client = Client::connect(server.address);
    let body =
        json!({"prompt": "hello", "output": "text", "max_tokens": 1900, "ignore_eos": true}).to_string();
    client.send("POST", "/v1/items", &[("accept", "text/event-stream")], body.as_bytes());
    client.head().expect("a head");
    server.stop();
    assert_eq!(server.wait(), Ended::Cut { requests: 1 });
    while client.chunk().is_some() {}
}

#[test]
fn an_admin_may_ask_for_the_drain() {
    let server = Running::quick();
    assert_eq!(post(server.admin, "/admin/drain", &json!({})).status, 202);
    assert_eq!(server.wait(), Ended::Drained);
}

#[test]
fn a_dead_engine_is_told_to_everybody_and_ends_the_server() {
    let server = Running::start(engine_of(10 * MS, |builder| builder), ServerOptions::default());
    let body =
        json!({"prompt": "hello", "output": "text", "max_tokens": 1900, "ignore_eos": true}).to_string();
    let mut whole = Client::connect(server.address);
    whole.send("POST", "/v1/items", &[], body.as_bytes());
    let mut streamed = Client::connect(server.address);
    streamed.send("POST", "/v1/items", &[("accept", "text/event-stream")], body.as_bytes());
    eventually("both run", || server.engine.in_flight() == 2);
    streamed.head().expect("a head");
    server.engine.declare_dead("the test said so".to_owned());
    let reply = whole.reply().expect("an answer");
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (503, &json!("engine_dead")));
    let mut last = Vec::new();
    while let Some(chunk) = streamed.chunk() {
        last = chunk;
    }
    let last = String::from_utf8(last).unwrap();
    assert!(last.starts_with("event: error\n") && last.contains("the test said so"), "{last}");
    match server.wait() {
        Ended::Died { reason } => assert!(reason.contains("the test said so"), "{reason}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_hung_step_shows_and_is_declared_dead() {
    let options = ServerOptions {
        stall_timeout: 200 * MS,
        hang_timeout: 1500 * MS,
        drain_timeout: 1000 * MS,
        ..ServerOptions::default()
    };
    let server = Running::start(engine_of(Duration::from_secs(8), |builder| builder), options);
    let address = server.address;
    assert_eq!(get(address, "/readyz").status, 200);
    let client = std::thread::spawn(move || post(address, "/v1/items", &json!({"prompt": "hello"})));
    eventually("it is not ready", || get(address, "/readyz").status == 503);
    assert_eq!(get(address, "/readyz").json()["error"]["code"], "engine_stalled");
    let begun = std::time::Instant::now();
    let reply = client.join().unwrap();
    assert_eq!(reply.status, 503, "{}", reply.text());
    assert!(begun.elapsed() < Duration::from_secs(6), "told before the step ends");
    assert!(matches!(server.wait(), Ended::Died { .. }));
}

#[test]
fn the_audit_log_has_every_answer() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("audit.jsonl");
    let options =
        ServerOptions { audit_log: Some(file.clone()), audit_bytes: 20_000, ..ServerOptions::default() };
    let server = Running::start(quick_engine(), options);
    let mut client = Client::connect(server.address);
    for at in 0..100 {
        let id = format!("r-{at}");
        let body = json!({"prompt": "hello", "n": 3, "filter": {"attr": "year", "ge": 1900}}).to_string();
        assert_eq!(client.call("POST", "/v1/items", &[("x-request-id", &id)], body.as_bytes()).status, 200);
    }
    let engine = server.engine.clone();
    drop(client);
    assert_eq!(server.end(), Ended::Drained);
    drop(engine);
    let old = std::fs::read_to_string(folder.path().join("audit.jsonl.1")).unwrap();
    let new = std::fs::read_to_string(&file).unwrap();
    assert!(old.len() <= 20_000 && new.len() <= 20_000);
    let lines: Vec<serde_json::Value> =
        old.lines().chain(new.lines()).map(|line| serde_json::from_str(line).unwrap()).collect();
    let last = lines.last().unwrap();
    assert_eq!(last["request_id"], "r-99");
    assert_eq!(last["items"].as_array().unwrap().len(), 3);
    assert!(last["filter"].as_str().unwrap().len() == 16 && last["snapshot"].is_string(), "{last}");
    // The log is bounded: of a hundred answers the newest are there, in order and without gaps.
    let ids: Vec<&str> = lines.iter().map(|line| line["request_id"].as_str().unwrap()).collect();
    let expected: Vec<String> = (100 - ids.len()..100).map(|at| format!("r-{at}")).collect();
    assert_eq!(ids, expected);
}
