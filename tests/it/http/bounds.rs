//! Bodies, heads, times, connections and queues have bounds; nobody waits for those who break them.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::json;
use sidereal::engine::QueueLimits;
use sidereal::server::ServerOptions;

use super::client::{Client, get, post};
use super::{Running, engine_of, eventually, quick_engine};

const MS: Duration = Duration::from_millis(1);

#[test]
fn bodies_are_bounded_before_they_are_read() {
    let server =
        Running::start(quick_engine(), ServerOptions { max_body_bytes: 10_000, ..ServerOptions::default() });
    let long = json!({"prompt": "x".repeat(20_000)}).to_string();
    let mut client = Client::connect(server.address);
    // Only the head is sent: the length it states is enough.
    client.write(b"POST /v1/items HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 99999999999\r\n\r\n");
    let reply = client.reply().expect("an answer");
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (413, &json!("body_too_large")));
    assert!(reply.text().contains("99999999999") && reply.text().contains("10000"), "{}", reply.text());
    let mut client = Client::connect(server.address);
    client.write(b"POST /v1/items HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n");
    client.write(format!("{:x}\r\n{long}\r\n", long.len()).as_bytes());
    assert_eq!(client.reply().expect("an answer").status, 413);
    let just = format!("{{\"prompt\":\"x\"{}}}", " ".repeat(9_986));
    assert_eq!(just.len(), 10_000);
    assert_eq!(Client::connect(server.address).call("POST", "/v1/items", &[], just.as_bytes()).status, 200);
    server.end();
}

#[test]
fn all_bodies_together_are_bounded() {
    let options = ServerOptions {
        max_body_bytes: 1 << 20,
        max_body_bytes_in_flight: 1 << 20,
        ..ServerOptions::default()
    };
    let server = Running::start(quick_engine(), options);
    let mut slow = Client::connect(server.address);
    slow.write(b"POST /v1/items HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1048576\r\nexpect: 100-continue\r\n\r\n");
    // The server asks for the body once it reads it.
    assert_eq!(slow.head().expect("an interim answer").0, 100);
    slow.write(&vec![b' '; 1_048_000]);
    let body = json!({"prompt": "hello"});
    eventually("the memory is taken", || post(server.address, "/v1/items", &body).status == 429);
    let reply = post(server.address, "/v1/items", &body);
    assert!(reply.header("retry-after").is_some() && reply.text().contains("1048576"), "{}", reply.text());
    drop(slow);
    eventually("the memory is given back", || post(server.address, "/v1/items", &body).status == 200);
    server.end();
}

#[test]
fn slow_senders_are_closed() {
    let options = ServerOptions { receive_timeout: 300 * MS, ..ServerOptions::default() };
    let server = Running::start(quick_engine(), options);
    let begun = Instant::now();
    let mut heads: Vec<Client> = (0..20).map(|_| Client::connect(server.address)).collect();
    heads.iter_mut().for_each(|client| assert!(client.write(b"POST /v1/items HTTP/1.1\r\nhost: x\r\n")));
    let mut body = Client::connect(server.address);
    body.write(b"POST /v1/items HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{\"prompt\"");
    let reply = body.reply().expect("an answer");
    assert_eq!((reply.status, reply.header("connection")), (408, Some("close")));
    for client in &mut heads {
        assert!(client.head().is_none(), "the connection is closed");
    }
    assert!(begun.elapsed() < 5_000 * MS, "{:?}", begun.elapsed());
    // A connection that is idle between requests is not slow.
    let mut idle = Client::connect(server.address);
    idle.call("GET", "/version", &[], b"");
    std::thread::sleep(600 * MS);
    assert_eq!(idle.call("GET", "/version", &[], b"").status, 200);
    server.end();
}

#[test]
fn idle_connections_are_closed() {
    let options = ServerOptions { idle_timeout: 300 * MS, ..ServerOptions::default() };
    let server = Running::start(quick_engine(), options);
    let mut idle = Client::connect(server.address);
    idle.call("GET", "/version", &[], b"");
    assert!(idle.head().is_none(), "closed by the server");
    server.end();
}

#[test]
fn heads_are_bounded() {
    let server = Running::quick();
    let many = "x-filler: y\r\n".repeat(150);
    let long = format!("x-filler: {}\r\n", "y".repeat(70_000));
    for filler in [many, long] {
        let mut client = Client::connect(server.address);
        client.write(format!("GET /version HTTP/1.1\r\nhost: x\r\n{filler}\r\n").as_bytes());
        // Either the status for it, or a closed door if the peer was still writing.
        assert!(client.head().is_none_or(|(status, _)| status == 431));
    }
    assert_eq!(get(server.address, "/version").status, 200);
    server.end();
}

#[test]
fn connections_are_bounded() {
    let server =
        Running::start(quick_engine(), ServerOptions { max_connections: 3, ..ServerOptions::default() });
    let mut open: Vec<Client> = (0..3).map(|_| Client::connect(server.address)).collect();
    open.iter_mut().for_each(|client| assert_eq!(client.call("GET", "/livez", &[], b"").status, 200));
    let mut refused = Client::connect(server.address);
    let reply = refused.reply().expect("an answer");
    assert_eq!((reply.status, reply.whole), (503, true));
    assert_eq!(reply.json()["error"]["code"], "too_many_connections");
    open.clear();
    eventually("there is room again", || {
        let mut client = Client::connect(server.address);
        client.send("GET", "/livez", &[], b"");
        client.reply().is_some_and(|reply| reply.status == 200)
    });
    server.end();
}

#[test]
fn deadlines_end_requests() {
    let server = Running::start(engine_of(20 * MS, |builder| builder), ServerOptions::default());
    let body =
        json!({"prompt": "hello", "output": "text", "max_tokens": 2000, "ignore_eos": true}).to_string();
    let mut client = Client::connect(server.address);
    let begun = Instant::now();
    let reply = client.call("POST", "/v1/items", &[("x-request-timeout-ms", "200")], body.as_bytes());
    assert_eq!(
        (reply.status, &reply.json()["error"]["code"]),
        (504, &json!("deadline_exceeded")),
        "{}",
        reply.text()
    );
    assert!(begun.elapsed() < 5_000 * MS);
    for bad in ["0", "-1", "soon", "1e3", ""] {
        let reply = client.call("POST", "/v1/items", &[("x-request-timeout-ms", bad)], body.as_bytes());
        assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!("x-request-timeout-ms")));
    }
    server.end();
}

#[test]
fn a_full_queue_is_said_with_a_time_to_come_back() {
    let engine = engine_of(30 * MS, |builder| {
        builder.queue(QueueLimits { requests: 3, rows: usize::MAX, tokens: usize::MAX })
    });
    let server = Running::start(engine, ServerOptions::default());
    let body = json!({"prompt": "hello", "output": "text", "max_tokens": 500, "ignore_eos": true});
    let running: Vec<Client> = (0..3)
        .map(|_| {
            let mut client = Client::connect(server.address);
            client.send("POST", "/v1/items", &[("accept", "text/event-stream")], body.to_string().as_bytes());
            client.head();
            client
        })
        .collect();
    let begun = Instant::now();
    let reply = post(server.address, "/v1/items", &body);
    assert!(begun.elapsed() < 1000 * MS, "refused at once");
    assert_eq!((reply.status, &reply.json()["error"]["type"]), (429, &json!("overloaded_error")));
    assert!(reply.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    assert!(reply.header("retry-after-ms").unwrap().parse::<u64>().unwrap() >= 1);
    // Whoever goes away makes room.
    drop(running);
    eventually("cancelled", || server.engine.counters().cancelled.load(Ordering::Relaxed) == 3);
    let body = json!({"prompt": "hello"});
    assert_eq!(post(server.address, "/v1/items", &body).status, 200);
    server.end();
}

#[test]
fn a_client_that_leaves_frees_the_engine() {
    let server = Running::start(engine_of(5 * MS, |builder| builder), ServerOptions::default());
    let body =
        json!({"prompt": "hello", "output": "text", "max_tokens": 1900, "ignore_eos": true}).to_string();
    for streamed in [true, false] {
        let before = server.engine.counters().cancelled.load(Ordering::Relaxed);
        let mut client = Client::connect(server.address);
        let accept = if streamed { "text/event-stream" } else { "*/*" };
        client.send("POST", "/v1/items", &[("accept", accept)], body.as_bytes());
        eventually("it runs", || server.engine.load().running_requests == 1);
        drop(client);
        eventually("it is cancelled", || {
            server.engine.counters().cancelled.load(Ordering::Relaxed) == before + 1
        });
        eventually("nothing is left", || server.engine.in_flight() == 0);
    }
    server.end();
}

#[test]
fn a_reader_that_takes_nothing_is_cut_off() {
    let options = ServerOptions { send_timeout: 300 * MS, ..ServerOptions::default() };
    let server = Running::start(quick_engine(), options);
    // More than the buffers of both kernels hold.
    let line = json!({"prompt": "hello", "output": "items", "n": 200, "beam_width": 200, "logprobs": 0})
        .to_string()
        + "\n";
    let body = line.repeat(2000);
    let mut client = Client::connect(server.address);
    let own = client.stream.get_ref().try_clone().unwrap();
    let writer = std::thread::spawn(move || {
        let mut half = Client { stream: std::io::BufReader::new(own) };
        half.send("POST", "/v1/batch", &[("content-type", "application/jsonl")], body.as_bytes());
    });
    let metric = || {
        let text = get(server.address, "/metrics").text();
        let line = text.lines().find(|line| line.starts_with("sidereal:connections ")).unwrap().to_owned();
        line.rsplit(' ').next().unwrap().parse::<usize>().unwrap()
    };
    // This one and the one that asks.
    eventually("the batch runs", || server.engine.counters().finished.load(Ordering::Relaxed) > 0);
    eventually("the reader is cut off", || metric() == 1);
    eventually("nothing is left", || server.engine.in_flight() == 0);
    assert!(server.engine.counters().finished.load(Ordering::Relaxed) < 2000);
    assert!(!client.reply().expect("a head").whole);
    writer.join().unwrap();
    server.end();
}
