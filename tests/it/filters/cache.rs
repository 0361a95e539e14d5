//! The cache: one mask per filter, bounded, compiled once.

use std::sync::{Arc, Barrier};

use serde_json::{Value, json};
use sidereal::catalog::{CacheLimits, Catalog, Filter, FilterCache, FilterLimits, ItemRecord, Mask};
use sidereal::ids::TypeId;

use super::{build, spec};

const ITEMS: usize = 6400;

fn catalog() -> Arc<Catalog> {
    let records: Vec<ItemRecord> = (0..ITEMS)
        .map(|number| ItemRecord {
            id: format!("i{number}"),
            sid: vec![number as u16],
            attributes: json!({"year": number}).as_object().unwrap().clone(),
            ..ItemRecord::default()
        })
        .collect();
    Arc::new(build(&[spec("item", &[8192])], &records))
}

fn filter(expression: Value) -> Filter {
    Filter::parse(&expression, &FilterLimits::default()).unwrap()
}

fn before(year: usize) -> Filter {
    filter(json!({"attr": "year", "lt": year}))
}

fn count(mask: &Mask) -> usize {
    mask.count(0..ITEMS as u32)
}

#[test]
fn equal_filters_share_a_mask() {
    let cache = FilterCache::new(catalog(), CacheLimits::default());
    let one = filter(json!({"all": [{"attr": "year", "lt": 2000}, {"attr": "year", "ge": 1000.0}]}));
    let other = filter(json!({"all": [{"attr": "year", "ge": 1000}, {"attr": "year", "lt": 2000}]}));
    assert_eq!(count(&cache.mask(&one, TypeId(0))), 1000);
    assert_eq!(count(&cache.mask(&other, TypeId(0))), 1000);
    assert_eq!(count(&cache.mask(&before(3000), TypeId(0))), 3000);
    let usage = cache.usage();
    assert_eq!((usage.entries, usage.hits, usage.misses, usage.evicted), (2, 1, 2, 0));
    assert!(usage.bytes > 2 * ITEMS / 8 && usage.bytes < 4 * ITEMS / 8, "{usage:?}");
}

#[test]
fn the_least_recently_used_is_dropped() {
    let limits = CacheLimits { entries: 3, ..CacheLimits::default() };
    let cache = FilterCache::new(catalog(), limits);
    let ask = |year| {
        let misses = cache.usage().misses;
        assert_eq!(count(&cache.mask(&before(year), TypeId(0))), year);
        cache.usage().misses > misses
    };
    assert!(ask(1000) && ask(2000) && ask(3000));
    assert!(!ask(1000));
    assert!(ask(4000), "drops 2000");
    assert!(!ask(1000) && !ask(3000) && !ask(4000));
    assert!(ask(2000), "drops 1000");
    assert!(ask(1000) && !ask(4000));
    assert_eq!((cache.usage().entries, cache.usage().evicted), (3, 3));
}

#[test]
fn bytes_are_bounded() {
    let one = {
        let cache = FilterCache::new(catalog(), CacheLimits::default());
        cache.mask(&before(3000), TypeId(0));
        cache.usage().bytes
    };
    let cache =
        FilterCache::new(catalog(), CacheLimits { bytes: 2 * one + one / 2, ..CacheLimits::default() });
    for year in [3000, 3001, 3002, 3003] {
        cache.mask(&before(year), TypeId(0));
        assert!(cache.usage().bytes <= 2 * one + one / 2, "{:?}", cache.usage());
    }
    assert_eq!((cache.usage().entries, cache.usage().evicted), (2, 2));
    // What does not fit at all is compiled each time and drops nothing else.
    let cache = FilterCache::new(catalog(), CacheLimits { bytes: one - 1, ..CacheLimits::default() });
    cache.mask(&filter(json!({"any": []})), TypeId(0));
    for _ in 0..2 {
        assert_eq!(count(&cache.mask(&before(3000), TypeId(0))), 3000);
    }
    let usage = cache.usage();
    assert_eq!((usage.entries, usage.hits, usage.misses, usage.evicted), (1, 0, 3, 2));
    let none = FilterCache::new(catalog(), CacheLimits { entries: 0, ..CacheLimits::default() });
    assert_eq!(count(&none.mask(&before(10), TypeId(0))), 10);
    assert_eq!((none.usage().entries, none.usage().bytes), (0, 0));
}

#[test]
fn callers_at_the_same_time_compile_once() {
    for round in 0..20 {
        let cache = FilterCache::new(catalog(), CacheLimits::default());
        let barrier = Barrier::new(8);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let filter = before(2000 + round);
                    barrier.wait();
                    assert_eq!(count(&cache.mask(&filter, TypeId(0))), 2000 + round);
                });
            }
        });
        let usage = cache.usage();
        assert_eq!((usage.entries, usage.hits, usage.misses), (1, 7, 1));
    }
}

#[test]
fn tasks_of_the_pool_do_not_wait_for_each_other() {
    use rayon::prelude::*;
    let cache = FilterCache::new(catalog(), CacheLimits { entries: 4, ..CacheLimits::default() });
    let ask = |n: usize| assert_eq!(count(&cache.mask(&before(1000 + n % 6), TypeId(0))), 1000 + n % 6);
    std::thread::scope(|scope| {
        scope.spawn(|| (0..2000).into_par_iter().for_each(ask));
        scope.spawn(|| (0..2000).for_each(ask));
    });
    let usage = cache.usage();
    assert_eq!((usage.entries, usage.hits + usage.misses), (4, 4000));
}

#[test]
fn a_question_that_panics_leaves_nobody_waiting() {
    let cache = FilterCache::new(catalog(), CacheLimits::default());
    let nonsense = || cache.mask(&before(5), TypeId(7));
    for _ in 0..2 {
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(nonsense)).is_err());
    }
    assert_eq!(cache.usage().entries, 0);
    assert_eq!(count(&cache.mask(&before(5), TypeId(0))), 5);
}
