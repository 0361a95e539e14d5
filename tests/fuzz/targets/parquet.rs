//! Parquet files. Panics of the parquet crate are caught by the library; only others count here.
#![no_main]

mod common;

use std::sync::Once;

use libfuzzer_sys::fuzz_target;
use sidereal::catalog::source::Format;

static HOOK: Once = Once::new();

fuzz_target!(|data: &[u8]| {
    HOOK.call_once(|| {
        let abort = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let file = info.location().map_or("", |location| location.file());
            if !file.contains("/parquet-") && !file.contains("/bytes-") {
                abort(info);
            }
        }));
    });
    common::read(&common::file("a.parquet", data), Format::Parquet, None);
});
