//! The catalog changes over HTTP while requests run.

use serde_json::json;
use sidereal::catalog::synthetic::tiny_records;

use super::Running;
use super::client::{Client, get, post};

fn put(server: &Running, path: &str, body: &serde_json::Value) -> super::client::Reply {
    Client::connect(server.admin).call("PUT", path, &[], body.to_string().as_bytes())
}

#[test]
fn items_come_and_go() {
    let server = Running::quick();
    let mut new = json!({"id": "book:new", "type": "book", "title": "New", "sid": [7, 7, 7], "year": 2026});
    let reply = post(server.admin, "/admin/catalog/add", &json!({"items": [new]}));
    assert_eq!((reply.status, &reply.json()["changed"]), (200, &json!(1)), "{}", reply.text());
    let item = get(server.address, "/v1/catalog/item?id=book:new").json();
    assert_eq!((&item["title"], &item["attributes"]["year"]), (&json!("New"), &json!(2026)));
    let found = post(server.address, "/v1/items", &json!({"prompt": "x", "allow": ["book:new"]})).json();
    assert_eq!(found["items"][0]["id"], "book:new");
    assert_eq!(post(server.admin, "/admin/catalog/compact", &json!({})).status, 200);
    assert_eq!(get(server.address, "/v1/catalog").json()["items"], 301);
    let reply = post(server.admin, "/admin/catalog/remove", &json!({"ids": ["book:new", "book:none"]}));
    assert_eq!((&reply.json()["changed"], &reply.json()["unknown"]), (&json!(1), &json!(1)));
    new["sid"] = json!([99, 0, 0]);
    let reply = post(server.admin, "/admin/catalog/add", &json!({"items": [new]}));
    assert!(reply.status == 400 && reply.text().contains("items"), "{}", reply.text());
    let reply = post(server.admin, "/admin/catalog/add", &json!({"items": [{"type": "book"}]}));
    assert_eq!(reply.json()["error"]["param"], "items[0]");
    server.end();
}

#[test]
fn snapshots_are_swapped_and_rolled_back() {
    let server = Running::quick();
    let folder = tempfile::tempdir().unwrap();
    let bad = folder.path().join("bad.sidcat");
    let snapshot = |items: usize| {
        let file = folder.path().join(format!("{items}.sidcat"));
        let types = sidereal::catalog::synthetic::tiny_layout().types;
        let mut builder = sidereal::catalog::CatalogBuilder::new(&types);
        tiny_records().into_iter().take(items).for_each(|record| builder.push(record).unwrap());
        builder.build().unwrap().write(&file, &mut |_, _| {}).unwrap();
        file
    };
    let (first, file) = (snapshot(250), snapshot(200));
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&bad, bytes).unwrap();
    let before = get(server.address, "/v1/catalog").json();
    let reply = post(server.admin, "/admin/catalog/load", &json!({"file": bad}));
    assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!("file")), "{}", reply.text());
    assert_eq!(post(server.admin, "/admin/catalog/load", &json!({"file": "/none"})).status, 400);
    assert_eq!(get(server.address, "/v1/catalog").json(), before);
    for (file, items) in [(&first, 250), (&file, 200)] {
        let reply = post(server.admin, "/admin/catalog/load", &json!({"file": file}));
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert_eq!(get(server.address, "/v1/catalog").json()["items"], items);
    }
    assert_eq!(get(server.admin, "/admin/catalog").json()["swaps"], 2);
    assert_eq!(post(server.admin, "/admin/catalog/rollback", &json!({})).status, 200);
    assert_eq!(get(server.address, "/v1/catalog").json()["items"], 250);
    server.end();
}

#[test]
fn filters_have_names() {
    let server = Running::quick();
    let filters = json!({"old": {"attr": "year", "lt": 1960}});
    assert_eq!(put(&server, "/admin/filters", &filters).status, 200);
    assert_eq!(get(server.admin, "/admin/filters").json(), filters);
    assert_eq!(get(server.address, "/v1/catalog").json()["filters"], json!(["old"]));
    let body = json!({"prompt": "x", "filter": {"named": "old"}, "return_attributes": ["year"]});
    for item in post(server.address, "/v1/items", &body).json()["items"].as_array().unwrap() {
        assert!(item["attributes"]["year"].as_i64().unwrap() < 1960, "{item}");
    }
    let reply = put(&server, "/admin/filters", &json!({"bad": {"attr": "year", "lt": "x", "ge": 1}}));
    assert_eq!(reply.status, 400);
    assert_eq!(get(server.admin, "/admin/filters").json(), filters, "the old ones stay");
    server.end();
}

#[test]
fn a_log_level_that_nobody_gave_is_not_there() {
    let server = Running::quick();
    assert_eq!(get(server.admin, "/admin/log-level").status, 404);
    server.end();
}
