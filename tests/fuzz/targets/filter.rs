//! Filters: compiled and evaluated item by item they say the same.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use sidereal::catalog::{Catalog, Filter, FilterLimits, synthetic};
use sidereal::ids::{Rank, TypeId};

static CATALOG: LazyLock<Catalog> = LazyLock::new(synthetic::tiny);

fuzz_target!(|data: &[u8]| {
    let Ok(value) = serde_json::from_slice(data) else { return };
    let Ok(filter) = Filter::parse(&value, &FilterLimits::default()) else { return };
    let types: Vec<TypeId> = (0..CATALOG.types().len()).map(|t| TypeId(t as u16)).collect();
    if filter.check(&CATALOG, &types).is_err() {
        return;
    }
    for t in types {
        let mask = filter.compile(&CATALOG, t);
        for rank in 0..CATALOG.index(t).items() as u32 {
            let matches = filter.matches(CATALOG.item(t, Rank(rank)));
            assert_eq!(mask.item_alive(CATALOG.index(t), Rank(rank)), matches, "{value}");
        }
    }
});
