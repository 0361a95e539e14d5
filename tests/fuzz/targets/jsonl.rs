//! JSON lines.
#![no_main]

mod common;

use libfuzzer_sys::fuzz_target;
use sidereal::catalog::source::Format;

fuzz_target!(|data: &[u8]| common::read(&common::file("a.jsonl", data), Format::Jsonl, None));
