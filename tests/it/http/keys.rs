//! With keys set nothing but liveness and readiness is open, whatever a client tries.

use serde_json::json;
use sidereal::server::ServerOptions;

use super::client::{Client, get};
use super::{Running, quick_engine};

const KEY: &str = "sk-key-0123456789abcdef";
const ADMIN: &str = "sk-admin-0123456789abc";

fn server() -> (Running, tempfile::NamedTempFile) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("[keys]\nshop = \"{KEY}\"\n[admin]\nops = \"{ADMIN}\"\n")).unwrap();
    let options = ServerOptions { api_keys: Some(file.path().to_path_buf()), ..ServerOptions::default() };
    (Running::start(quick_engine(), options), file)
}

/// Every route of both listeners, by their own documents.
fn routes(server: &Running) -> Vec<(std::net::SocketAddr, String, String)> {
    let mut routes = Vec::new();
    for (address, key) in [(server.address, KEY), (server.admin, ADMIN)] {
        let bearer = format!("Bearer {key}");
        let reply = Client::connect(address).call("GET", "/openapi.json", &[("authorization", &bearer)], b"");
        for (path, methods) in reply.json()["paths"].as_object().unwrap() {
            for method in methods.as_object().unwrap().keys() {
                routes.push((address, method.to_uppercase(), path.replace("{id}", "sidereal")));
            }
        }
        for path in ["/openapi.json", "/page.js", "/page.css", "/nothing"] {
            routes.push((address, "GET".to_owned(), path.to_owned()));
        }
    }
    assert!(routes.len() > 30);
    routes
}

#[test]
fn nothing_is_open_without_a_key() {
    let (server, _file) = server();
    let bearer = format!("Bearer {KEY}");
    let (upper, cut) = (bearer.to_uppercase(), &bearer[..bearer.len() - 1]);
    let basic = format!("Basic {KEY}");
    let credentials: [&[(&str, &str)]; 8] = [
        &[],
        &[("authorization", "")],
        &[("authorization", "Bearer")],
        &[("authorization", &upper)],
        &[("authorization", cut)],
        &[("authorization", &basic)],
        &[("authorization", "Bearer x"), ("authorization", &bearer)],
        &[("x-api-key", KEY), ("api-key", KEY), ("cookie", &bearer)],
    ];
    for (address, method, path) in routes(&server) {
        if ["/livez", "/readyz"].contains(&path.as_str()) {
            assert_eq!(get(address, &path).status, 200);
            continue;
        }
        let query = format!("{path}?key={KEY}&api_key={KEY}");
        let tricks = [
            path.clone(),
            query,
            format!("{path}/"),
            format!("/{path}"),
            format!("/livez/..{path}"),
            format!("/livez/%2e%2e{path}"),
            path.to_uppercase(),
            format!("{path}%20"),
            format!("http://x{path}"),
        ];
        for credential in credentials {
            for path in &tricks {
                let reply = Client::connect(address).call(&method, path, credential, b"{}");
                assert_eq!(reply.status, 401, "{method} {path} {credential:?}: {}", reply.text());
                assert!(reply.header("www-authenticate").is_some());
            }
        }
        // Methods that override others are not heard of.
        let headers =
            [("x-http-method-override", "GET"), ("x-original-url", "/livez"), ("x-rewrite-url", "/livez")];
        assert_eq!(Client::connect(address).call(&method, &path, &headers, b"{}").status, 401);
    }
    server.end();
}

#[test]
fn keys_open_their_own_listener_and_the_admins_both() {
    let (server, _file) = server();
    let bearer = |key: &str| format!("Bearer {key}");
    let call = |address, path: &str, key: &str| {
        Client::connect(address).call("GET", path, &[("authorization", &bearer(key))], b"").status
    };
    assert_eq!(call(server.address, "/v1/models", KEY), 200);
    assert_eq!(call(server.address, "/v1/models", ADMIN), 200);
    assert_eq!(call(server.admin, "/admin/catalog", ADMIN), 200);
    assert_eq!(call(server.admin, "/admin/catalog", KEY), 403);
    assert_eq!(call(server.address, "/admin/catalog", ADMIN), 404, "admin routes are on their own listener");
    server.end();
}

#[test]
fn keys_are_reloaded_while_the_server_runs() {
    let (server, file) = server();
    let other = "sk-other-0123456789abcd";
    std::fs::write(file.path(), format!("[keys]\nshop = \"{other}\"\n[admin]\nops = \"{ADMIN}\"\n")).unwrap();
    let admin = format!("Bearer {ADMIN}");
    let mut client = Client::connect(server.admin);
    let reply = client.call("POST", "/admin/keys/reload", &[("authorization", &admin)], b"");
    assert_eq!(reply.json(), json!({"keys": 2}));
    for (key, status) in [(KEY, 401), (other, 200)] {
        let bearer = format!("Bearer {key}");
        let reply =
            Client::connect(server.address).call("GET", "/version", &[("authorization", &bearer)], b"");
        assert_eq!(reply.status, status);
    }
    std::fs::write(file.path(), "nonsense").unwrap();
    let reply = client.call("POST", "/admin/keys/reload", &[("authorization", &admin)], b"");
    assert_eq!(reply.status, 400);
    assert_eq!(client.call("GET", "/admin/catalog", &[("authorization", &admin)], b"").status, 200);
    server.end();
}

#[test]
fn pages_of_other_origins_change_nothing() {
    let server = Running::quick();
    for origin in ["http://evil.example", "null", "http://x.evil.example"] {
        let reply = Client::connect(server.admin).call("POST", "/admin/drain", &[("origin", origin)], b"");
        assert_eq!((reply.status, &reply.json()["error"]["code"]), (403, &json!("other_origin")));
    }
    let reply = Client::connect(server.admin).call("GET", "/admin/catalog", &[("origin", "http://x")], b"");
    assert_eq!(reply.status, 200, "the client's host is x");
    server.end();
}

#[test]
fn bodies_of_other_kinds_are_refused() {
    let server = Running::quick();
    for kind in ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonx"] {
        let mut client = Client::connect(server.address);
        let reply = client.call("POST", "/v1/items", &[("content-type", kind)], b"{\"prompt\":\"x\"}");
        assert_eq!(reply.status, 415, "{kind}");
    }
    let mut client = Client::connect(server.address);
    let kind = [("content-type", "Application/JSON; charset=utf-8")];
    assert_eq!(client.call("POST", "/v1/items", &kind, b"{\"prompt\":\"x\"}").status, 200);
    server.end();
}
