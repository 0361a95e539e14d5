//! A bare axum server that reads JSON and writes it back: what HTTP alone costs on this machine, to be measured beside `sidereal serve`.
//!
//!     cargo run --release --example echo -- 8130

use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let port: u16 = std::env::args().nth(1).unwrap_or_else(|| "8130".to_owned()).parse()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let echo = async |Json(body): Json<Value>| Json(body);
        let catalog = async || Json(json!({"snapshot": "", "types": [], "items": 0, "attributes": [], "filters": []}));
        let app = Router::new()
            .route("/v1/items", post(echo))
            .route("/v1/chat/completions", post(echo))
            .route("/v1/completions", post(echo))
            .route("/v1/catalog", get(catalog))
            .route("/readyz", get(async || "ok"));
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
        Ok(axum::serve(listener, app).await?)
    })
}
