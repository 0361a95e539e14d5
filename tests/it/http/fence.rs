//! After a denial no byte is sent that names the item, not even from a connection's own buffer.

use std::io::BufReader;
use std::sync::atomic::Ordering;

use serde_json::json;

use super::client::{Client, Reply, get, post};
use super::{Running, eventually};

const LINES: usize = 2000;

/// Starts a batch whose answers nobody reads until they fill every buffer, denies an item, then reads all.
fn stalled_batch(denied: &str) -> (Reply, u64) {
    let server = Running::quick();
    let line =
        json!({"prompt": "hello", "output": "items", "item_types": ["book"], "n": 90, "beam_width": 100})
            .to_string();
    let body = (line + "\n").repeat(LINES);
    let mut client = Client::connect(server.address);
    let own = client.stream.get_ref().try_clone().unwrap();
    let writer = std::thread::spawn(move || {
        let mut half = Client { stream: BufReader::new(own) };
        half.send("POST", "/v1/batch", &[("content-type", "application/jsonl")], body.as_bytes());
    });
    let finished = || server.engine.counters().finished.load(Ordering::Relaxed);
    let (mut before, mut same) = (0, 0);
    eventually("all buffers are full", || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        let now = finished();
        same = if now == before && now > 0 { same + 1 } else { 0 };
        before = now;
        same > 25
    });
    assert!(before < LINES as u64, "the buffers hold {LINES} lines");
    let reply = post(server.admin, "/admin/catalog/deny", &json!({"ids": [denied]}));
    assert_eq!((reply.status, &reply.json()["changed"]), (200, &json!(1)));
    let reply = client.reply().expect("a head");
    writer.join().unwrap();
    let metrics = get(server.address, "/metrics").text();
    let cut = metrics.lines().find(|line| line.starts_with("sidereal:connections_cut_total")).unwrap();
    let cut = cut.rsplit(' ').next().unwrap().parse().unwrap();
    server.end();
    (reply, cut)
}

#[test]
fn a_connection_that_would_still_send_a_denied_item_is_cut() {
    let (reply, cut) = stalled_batch("book:17");
    assert_eq!((reply.whole, cut), (false, 1));
    let lines = reply.text().lines().count();
    assert!(lines > 10 && lines < LINES, "{lines} lines were sent before");
}

#[test]
fn a_denial_of_something_else_cuts_nobody() {
    let (reply, cut) = stalled_batch("film:8");
    assert_eq!((reply.whole, cut), (true, 0));
    assert_eq!(reply.text().lines().count(), LINES);
}

#[test]
fn later_answers_do_not_name_a_denied_item() {
    let server = Running::quick();
    let body = json!({"prompt": "hello", "n": 5});
    let first = post(server.address, "/v1/items", &body).json();
    let id = first["items"][0]["id"].as_str().unwrap().to_owned();
    post(server.admin, "/admin/catalog/deny", &json!({"ids": [id]}));
    let second = post(server.address, "/v1/items", &body);
    assert!(!second.text().contains(&format!("\"{id}\"")), "{}", second.text());
    post(server.admin, "/admin/catalog/allow", &json!({"ids": [id]}));
    assert_eq!(post(server.address, "/v1/items", &body).json()["items"], first["items"]);
    server.end();
}
