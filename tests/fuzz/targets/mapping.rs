//! Mapping files; one that parses is used.
#![no_main]

mod common;

use libfuzzer_sys::fuzz_target;
use sidereal::catalog::source::{Mapping, OnError, Sources};

const ITEMS: &[u8] = b"id,type,title,popularity,sid,x,y\na,book,A,1,1 2 3,4,5\nb,book,B,,3 2 1,,\n";

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(mapping) = Mapping::parse(text) else { return };
    let sources = Sources::new().file(common::file("items.csv", ITEMS), mapping).on_error(OnError::Skip);
    if let Ok(types) = sources.infer_types(&mut |_, _| ()) {
        let _ = sources.read(&types, &mut |_, _| ());
    }
});
