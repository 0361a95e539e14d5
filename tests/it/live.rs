//! A catalog that changes while it is served: what requests see, what they never see, what stays in memory.

#[path = "live/gate.rs"]
mod gate;
#[path = "live/model.rs"]
mod model;
#[path = "live/soak.rs"]
mod soak;
#[path = "live/state.rs"]
mod state;

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use sidereal::catalog::synthetic::{tiny_layout, tiny_records};
use sidereal::catalog::{Catalog, CatalogBuilder, ItemRecord};
use sidereal::device::hash::HashDevice;
use sidereal::engine::{Engine, EngineBuilder, Request};

/// A catalog of the tiny layout's types.
fn catalog_of(records: impl IntoIterator<Item = ItemRecord>) -> Arc<Catalog> {
    let mut builder = CatalogBuilder::new(&tiny_layout().types);
    records.into_iter().for_each(|record| builder.push(record).unwrap());
    Arc::new(builder.build().unwrap())
}

/// The demonstration's model and items on the hash device, whose steps take at least `step`.
fn engine_of(step: Duration) -> Engine {
    EngineBuilder::tiny()
        .unwrap()
        .catalog(catalog_of(tiny_records()))
        .device(move |config| Ok(Box::new(HashDevice::new(config, step)?)))
        .start()
        .unwrap()
}

fn request(value: Value) -> Request {
    Request::from_json(&value.to_string()).unwrap()
}

/// A book that the demonstration does not have.
fn new_book(id: &str, sid: [u16; 3], popularity: f64) -> ItemRecord {
    ItemRecord {
        id: id.to_owned(),
        item_type: "book".to_owned(),
        title: Some(format!("New {id}")),
        popularity,
        sid: sid.to_vec(),
        attributes: json!({"year": 2026}).as_object().unwrap().clone(),
    }
}
