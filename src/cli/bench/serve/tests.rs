//! Whole runs against a server whose answers are written here.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use clap::Parser;
use serde_json::{Value, json};
use sidereal::catalog::{CatalogBuilder, ItemRecord, synthetic};

use super::{Outcome, Report, ServeBench};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    bench: ServeBench,
}

/// What a handler is told: path, body, and the number of this request on its path.
struct Asked {
    path: String,
    body: Value,
    number: usize,
}

/// A server on a port of its own; it lives as long as the test's process.
struct Server {
    url: String,
    connections: Arc<AtomicUsize>,
}

impl Server {
    /// The handler writes whole responses; `false` closes the connection.
    fn new(handle: impl Fn(&Asked, &mut TcpStream) -> bool + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let connections = Arc::new(AtomicUsize::new(0));
        let (handle, counter) = (Arc::new(handle), Arc::clone(&connections));
        let numbers: Arc<[AtomicUsize; 4]> = Arc::default();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (handle, numbers) = (Arc::clone(&handle), Arc::clone(&numbers));
                counter.fetch_add(1, Ordering::SeqCst);
                std::thread::spawn(move || serve(stream.unwrap(), &*handle, &numbers));
            }
        });
        Server { url, connections }
    }
}

fn serve(
    mut stream: TcpStream,
    handle: &(impl Fn(&Asked, &mut TcpStream) -> bool + ?Sized),
    numbers: &[AtomicUsize; 4],
) {
    stream.set_nodelay(true).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        let (mut line, mut length) = (String::new(), 0);
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let path = line.split(' ').nth(1).unwrap().to_owned();
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).unwrap();
            if header == "\r\n" {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let body = if length == 0 { Value::Null } else { serde_json::from_slice(&body).unwrap() };
        let routes = ["/v1/items", "/v1/chat/completions", "/v1/completions"];
        let route = routes.iter().position(|route| *route == path).unwrap_or(3);
        let number = numbers[route].fetch_add(1, Ordering::SeqCst);
        if !handle(&Asked { path, body, number }, &mut stream) {
            return;
        }
    }
}

fn reply(stream: &mut TcpStream, status: u16, headers: &str, body: &Value) -> bool {
    let body = body.to_string();
    let length = body.len();
    let text = format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n{headers}\r\n{body}");
    stream.write_all(text.as_bytes()).is_ok()
}

/// A reply behind which the connection is closed.
fn last_reply(stream: &mut TcpStream, status: u16, body: &Value) -> bool {
    reply(stream, status, "connection: close\r\n", body);
    false
}

const STREAM: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

/// A chunk with one event.
fn chunk(data: &str) -> String {
    format!("{:x}\r\ndata: {data}\n\n\r\n", data.len() + 8)
}

fn text_chunk(text: &str) -> String {
    chunk(&json!({"choices": [{"index": 0, "delta": {"content": text}}]}).to_string())
}

/// What is asked before a run, answered from the demonstration's catalog; `None` for other paths.
fn catalog(asked: &Asked) -> Option<Value> {
    let records = synthetic::tiny_records();
    let of_type = |name: &str| {
        let items = records.iter().filter(|record| record.item_type == name).take(50);
        let items = items.map(|r| json!({"id": r.id, "type": r.item_type, "title": r.title}));
        json!({"items": items.collect::<Vec<_>>()})
    };
    match asked.path.as_str() {
        "/v1/models" => Some(json!({"data": [{"id": "demo"}]})),
        "/tokenize" => Some(json!({"count": 512})),
        "/v1/catalog" => {
            let types = synthetic::tiny_layout().types;
            Some(json!({"types": types.iter().map(|t| json!({"name": t.name})).collect::<Vec<_>>()}))
        }
        path => {
            let (_, query) = path.strip_prefix("/v1/catalog/search?")?.split_once("&type=")?;
            Some(of_type(query.split('&').next()?))
        }
    }
}

fn item(record: &ItemRecord) -> Value {
    json!({"id": record.id, "type": record.item_type, "sid": record.sid, "score": -1.0, "title": record.title})
}

/// Items that the bounds of a request leave.
fn allowed(body: &Value) -> Vec<Value> {
    let has = |name: &str, text: &str| body[name].as_array().is_some_and(|list| list.contains(&json!(text)));
    let records = synthetic::tiny_records();
    let fits = |r: &&ItemRecord| has("item_types", &r.item_type) && !has("exclude", &r.id);
    records.iter().filter(fits).map(item).collect()
}

fn catalog_file() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("catalog.sidcat");
    let mut builder = CatalogBuilder::new(&synthetic::tiny_layout().types);
    synthetic::tiny_records().into_iter().try_for_each(|record| builder.push(record)).unwrap();
    builder.build().unwrap().write(&path, &mut |_, _| {}).unwrap();
    (dir, path)
}

fn bench(server: &Server, args: &[&str]) -> ServeBench {
    let args = ["bench", "--url", &server.url, "--timeout", "20s"].into_iter().chain(args.iter().copied());
    Cli::try_parse_from(args).unwrap().bench
}

fn measure(server: &Server, args: &[&str]) -> (Report, Outcome) {
    bench(server, args).measure().unwrap()
}

/// Sound and unsound answers in turns: what comes when is written beside the assertions below.
fn faulty(asked: &Asked, stream: &mut TcpStream) -> bool {
    if let Some(body) = catalog(asked) {
        return reply(stream, 200, "", &body);
    }
    if asked.path == "/v1/items" {
        let n = asked.body["n"].as_u64().unwrap() as usize;
        let mut items = allowed(&asked.body);
        items.truncate(n);
        let answer = |items: Vec<Value>| json!({"snapshot": "x", "items": items, "usage": {"prompt_tokens": 7, "completion_tokens": 9}});
        return match asked.number % 5 {
            0 => reply(stream, 429, "retry-after: 1\r\n", &json!({"error": {"message": "full"}})),
            1 => {
                items[0]["id"] = json!("nowhere");
                items[2] = items[1].clone();
                reply(stream, 200, "", &answer(items))
            }
            2 => last_reply(stream, 500, &json!({"error": {"message": "oh no"}})),
            3 => {
                items.pop();
                reply(stream, 200, "", &answer(items))
            }
            _ => reply(stream, 200, "", &answer(items)),
        };
    }
    let mixed = asked.body["output"] == "mixed";
    let mut text = STREAM.to_owned() + &text_chunk("") + &text_chunk("Try ") + &text_chunk("this");
    if mixed {
        let delta = json!({"content": "T", "items": [allowed(&asked.body)[0]]});
        text += &chunk(&json!({"choices": [{"index": 0, "delta": delta}]}).to_string());
    }
    let usage =
        chunk(&json!({"choices": [], "usage": {"prompt_tokens": 20, "completion_tokens": 5}}).to_string());
    text += &match asked.number % 4 {
        // Breaks off; says why and breaks off; ends without its mark.
        0 => String::new(),
        1 => chunk(&json!({"error": {"message": "device: gone"}}).to_string()),
        2 => "0\r\n\r\n".to_owned(),
        _ => format!("{usage}{}0\r\n\r\n", chunk("[DONE]")),
    };
    // In two pieces that cut an event.
    let (first, second) = text.split_at(text.len() / 2);
    stream.write_all(first.as_bytes()).unwrap();
    stream.write_all(second.as_bytes()).is_ok() && asked.number % 4 > 1
}

#[test]
fn each_sort_of_answer_is_counted_as_what_it_is() {
    let server = Server::new(faulty);
    let (dir, path) = catalog_file();
    let (out, plot) = (dir.path().join("out.jsonl"), dir.path().join("plot.svg"));
    let [file, out_arg, plot_arg] = [&path, &out, &plot].map(|path| path.to_str().unwrap());
    let args = [
        ["--requests", "200", "--concurrency", "1", "--mix", "search=5,recommend=5,mixed=4,text=6"],
        ["-n", "6", "--verify", file, "--slo", "e2e=60000"],
        ["--out", out_arg, "--plot", plot_arg, "--seed", "3"],
    ];
    let args: Vec<&str> = args.into_iter().flatten().collect();
    let bench = bench(&server, &args);
    assert!(bench.run().unwrap_err().to_string().contains("should not have been named"));
    let (report, outcome) = bench.measure().unwrap();
    let counts = report.counts();
    // 100 lists: a fifth each refused, invalid twice, 500, too short, sound. 100 streams: a quarter each broken off, broken off with a
    // reason, without its mark, sound; 40 of them are mixed with one item each.
    assert_eq!((counts.sent, counts.refused, counts.refused_without_retry_after), (200, 20, 0));
    assert_eq!((counts.done, counts.errors), (60 + 25, 20 + 75));
    assert_eq!((counts.invalid_items, counts.short_lists, counts.good), (40, 20, 85));
    assert_eq!(counts.items, 20 * 6 + 20 * 5 + 20 * 6 + 40);
    assert_eq!((counts.prompt_tokens, counts.completion_tokens), (60 * 7 + 25 * 20, 60 * 9 + 25 * 5));
    assert_eq!(
        report.statuses().iter().map(|(s, n)| (*s, *n)).collect::<Vec<_>>(),
        [(200, 160), (429, 20), (500, 20)]
    );
    let total = super::report::total(&outcome.recorder);
    assert_eq!(
        [total.items.count(), total.ttft.count(), total.tpot.count(), total.e2e.count()],
        [60, 25, 25, 85]
    );
    let json = serde_json::to_value(&report).unwrap();
    let messages = json["error_messages"].to_string();
    for word in ["oh no", "device: gone", "the connection ended within the answer", "without its end mark"] {
        assert!(messages.contains(word), "{word}: {messages}");
    }
    let text = report.to_string();
    for word in
        ["40 invalid of", "goodput", "20 refused", "time to first content", "not in the catalog", "twice"]
    {
        assert!(text.contains(word), "{word}: {text}");
    }
    let lines: Vec<Value> = std::fs::read_to_string(&out)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 200);
    let of = |name: &str, value: Value| lines.iter().filter(|line| line[name] == value).count();
    assert_eq!(
        (of("end", json!("done")), of("status", json!(429)), of("kind", json!("mixed"))),
        (85, 20, 40)
    );
    assert!(std::fs::read_to_string(plot).unwrap().contains("<polyline"));
}

/// Answers at once, text as a stream and lists whole.
fn sound(asked: &Asked, stream: &mut TcpStream) -> bool {
    if let Some(body) = catalog(asked) {
        return reply(stream, 200, "", &body);
    }
    if asked.path == "/v1/items" {
        return reply(stream, 200, "", &json!({"items": [], "exhausted": true}));
    }
    let text = format!("{STREAM}{}{}0\r\n\r\n", text_chunk("x"), chunk("[DONE]"));
    stream.write_all(text.as_bytes()).is_ok()
}

#[test]
fn connections_are_kept() {
    let server = Server::new(sound);
    let (report, _) =
        measure(&server, &["--requests", "60", "--concurrency", "3", "--warmup", "10", "--threads", "2"]);
    assert_eq!((report.counts().done, report.counts().connections), (60, 3));
    // The one that asked for model and items besides.
    assert_eq!(server.connections.load(Ordering::SeqCst), 4);
    let closing = Server::new(|asked, stream| match catalog(asked) {
        Some(body) => reply(stream, 200, "", &body),
        None => last_reply(stream, 200, &json!({"items": []})),
    });
    let (report, _) = measure(&closing, &["--requests", "20", "--mix", "search", "--concurrency", "2"]);
    assert_eq!((report.counts().done, report.counts().connections), (20, 20));
}

#[test]
fn the_time_of_an_open_loop_runs_from_when_a_request_was_due() {
    const STALL: Duration = Duration::from_millis(300);
    let stalling = |asked: &Asked, stream: &mut TcpStream| {
        if asked.path == "/v1/completions" && asked.number == 0 {
            std::thread::sleep(STALL);
        }
        sound(asked, stream)
    };
    let args = [
        "--mix",
        "text",
        "--model",
        "m",
        "--requests",
        "30",
        "--concurrency",
        "1",
        "--endpoint",
        "completions",
    ];
    let (closed, _) = measure(&Server::new(stalling), &args);
    let open: Vec<&str> = args.iter().copied().chain(["--rate", "1000", "--burstiness", "inf"]).collect();
    let (open, _) = measure(&Server::new(stalling), &open);
    let median = |report: &Report| {
        serde_json::to_value(report).unwrap()["latency_ms"]["ttft"]["p50"].as_f64().unwrap()
    };
    assert_eq!((closed.counts().done, open.counts().done), (30, 30));
    // All 30 are due within 30 ms, and 29 wait for the first.
    assert!(median(&open) > 250.0, "{}", median(&open));
    assert!(median(&closed) < 250.0, "{}", median(&closed));
    assert!(open.counts().late >= 29 && closed.counts().late == 0, "{}", open.counts().late);
}

#[test]
fn an_open_loop_sends_all_and_stops_in_time() {
    let server = Server::new(sound);
    let args = [
        "--mix",
        "text=1,search=1",
        "--rate",
        "500",
        "--requests",
        "100",
        "--threads",
        "2",
        "--burstiness",
        "0.5",
    ];
    let (report, _) = measure(&server, &args);
    assert_eq!((report.counts().done, report.counts().unsent), (100, 0));
    let args = ["--mix", "search", "--rate", "200", "--duration", "300ms", "--burstiness", "inf"];
    let (report, outcome) = measure(&server, &args);
    assert_eq!(report.counts().sent + report.counts().unsent, 59);
    assert!(outcome.elapsed >= Duration::from_millis(300));
}

#[test]
fn dropped_streams_are_no_errors() {
    let server = Server::new(|asked, stream| {
        if asked.path != "/v1/chat/completions" {
            return sound(asked, stream);
        }
        let text = STREAM.to_owned() + &text_chunk("x").repeat(20);
        // The reader goes away before there is more; the next read says so.
        stream.write_all(text.as_bytes()).is_ok()
    });
    let args = ["--mix", "text=1,search=1", "--requests", "40", "--cancel", "1", "--concurrency", "2"];
    let (report, _) = measure(&server, &args);
    let counts = report.counts();
    assert_eq!((counts.sent, counts.cancelled, counts.done, counts.errors), (40, 20, 20, 0));
}

#[test]
fn what_never_ends_fails_in_time_and_nobody_listening_is_told() {
    let silent = Server::new(|asked, stream| match asked.path.as_str() {
        "/v1/items" => true,
        _ => sound(asked, stream),
    });
    let args = ["--mix", "search", "--requests", "2", "--timeout", "50ms", "--fail-on-error"];
    let args = ["bench", "--url", &silent.url].into_iter().chain(args);
    let error = Cli::try_parse_from(args).unwrap().bench.run().unwrap_err();
    assert!(error.to_string().contains("2 requests of 2 failed"), "{error}");
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{port}");
    let error = Cli::try_parse_from(["bench", "--url", &url]).unwrap().bench.run().unwrap_err();
    assert!(format!("{error:#}").contains("connecting to"), "{error:#}");
}

#[test]
fn options_out_of_bounds_are_refused_by_name() {
    let server = Server::new(sound);
    for (args, word) in [
        (["--concurrency", "0"], "--concurrency"),
        (["--threads", "0"], "--threads"),
        (["--threads", "100000"], "--threads"),
        (["--concurrency", "100000"], "--concurrency"),
        (["--cancel", "1.5"], "--cancel"),
        (["--cancel", "nan"], "--cancel"),
        (["--rate", "0"], "--rate"),
        (["--rate", "inf"], "--rate"),
        (["--distinct", "0"], "--distinct"),
        (["--extra", "[]"], "--extra"),
        (["--item-types", "car"], "--item-types"),
        (["--url", "https://x"], "--url"),
        (["--prompts", "/nonexistent/file"], "/nonexistent/file"),
        (["--verify", "/nonexistent/file"], "/nonexistent/file"),
    ] {
        let all = ["bench"]
            .into_iter()
            .chain((args[0] != "--url").then_some(["--url", &server.url]).into_iter().flatten());
        let error = Cli::try_parse_from(all.chain(args)).unwrap().bench.run().unwrap_err();
        assert!(format!("{error:#}").contains(word), "{args:?}: {error:#}");
    }
    for args in [["--requests", "0"], ["--mix", "x"], ["--slo", "x"], ["--duration", "0"], ["--filter", "{"]]
    {
        assert!(Cli::try_parse_from(["bench"].into_iter().chain(args)).is_err(), "{args:?}");
    }
}
