//! What every reader of bodies must hold to.

use std::sync::LazyLock;

use sidereal::Error;
use sidereal::engine::{Engine, EngineBuilder};

static ENGINE: LazyLock<Engine> =
    LazyLock::new(|| EngineBuilder::tiny().and_then(EngineBuilder::start).expect("the demonstration starts"));

/// Reads a body; what is refused names a field and says why.
pub fn check(read: fn(&Engine, &[u8]) -> sidereal::Result<()>, body: &[u8]) {
    match read(&ENGINE, body) {
        Ok(()) => {}
        Err(Error::Invalid { field, message }) => assert!(!field.is_empty() && !message.is_empty()),
        Err(error) => panic!("{error}"),
    }
}
