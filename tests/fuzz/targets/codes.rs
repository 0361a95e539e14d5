//! Codes beside a source: the bytes are the file of codes, of either kind.
#![no_main]

mod common;

use libfuzzer_sys::fuzz_target;
use sidereal::catalog::source::{CodesFile, Format};

const ITEMS: &[u8] = b"{\"id\": \"a\"}\n{\"id\": \"b\"}\n{\"id\": \"c\"}\n";

fuzz_target!(|data: &[u8]| {
    let name = if data.starts_with(b"{") { "codes.jsonl" } else { "codes.npy" };
    let codes = CodesFile::new(common::file(name, data));
    common::read(&common::file("items.jsonl", ITEMS), Format::Jsonl, Some(codes));
});
