//! Bodies of `/v1/chat/completions`: read and checked without a panic, and refused by field and reason.
#![no_main]

#[path = "common/bodies.rs"]
mod bodies;

use libfuzzer_sys::fuzz_target;
use sidereal::server::reading;

fuzz_target!(|body: &[u8]| bodies::check(reading::chat, body));
