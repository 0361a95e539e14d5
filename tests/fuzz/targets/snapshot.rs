//! Snapshot files: what is verified can be used.
#![no_main]

mod common;

use libfuzzer_sys::fuzz_target;
use sidereal::catalog::Catalog;
use sidereal::ids::{Rank, TypeId};

fuzz_target!(|data: &[u8]| {
    let path = common::file("a.sidcat", data);
    if Catalog::verify(&path, &mut |_, _| ()).is_err() {
        return;
    }
    let catalog = Catalog::open(&path).expect("verified");
    for t in 0..catalog.types().len() {
        let t = TypeId(t as u16);
        for rank in 0..catalog.index(t).items().min(1000) {
            let item = catalog.item(t, Rank(rank as u32));
            assert_eq!(catalog.find(item.id()), Some((t, Rank(rank as u32))));
            assert_eq!(catalog.index(t).find(&item.codes()), Some(item.sid()));
            for name in catalog.attributes() {
                let _ = item.attribute(name);
            }
        }
    }
});
