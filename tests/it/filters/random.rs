//! Compiled masks, row evaluation and the oracle agree: random expressions on random catalogs.

use serde_json::{Value, json};
use sidereal::catalog::{Filter, FilterLimits, ItemRecord};
use sidereal::ids::{Rank, SidIndex, TypeId};

use super::exprs::{World, comparison, expression, world};
use super::{Dice, build, oracle, spec};

/// `FILTER_CASES` asks for more.
fn cases(quick: u64) -> u64 {
    std::env::var("FILTER_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(quick)
}

/// Compares the three on every item, and the mask's SIDs with its items. Returns how many passed.
fn agree(world: &World, expression: &Value) -> usize {
    let filter = Filter::parse(expression, &FilterLimits::default()).unwrap();
    let mut passed = 0;
    for (t, spec) in world.types.iter().enumerate() {
        let t = TypeId(t as u16);
        let index = world.catalog.index(t);
        let mask = filter.compile(&world.catalog, t);
        for record in world.records.iter().filter(|record| record.item_type == spec.name) {
            let (_, rank) = world.catalog.find(&record.id).unwrap();
            let expected = oracle::passes(expression, &record.attributes);
            let context = || format!("{expression} on {} {:?}", record.id, record.attributes);
            assert_eq!(filter.matches(world.catalog.item(t, rank)), expected, "by row: {}", context());
            assert_eq!(mask.item_alive(index, rank), expected, "compiled: {}", context());
            passed += usize::from(expected);
        }
        for sid in 0..index.sids() as u32 {
            let expected = index.ranks(SidIndex(sid)).any(|rank| mask.item_alive(index, Rank(rank)));
            assert_eq!(mask.alive(sid..sid + 1), expected, "SID {sid}: {expression}");
        }
    }
    passed
}

#[test]
fn random_expressions_on_random_catalogs() {
    let mut seen = [0; 3];
    for seed in 0..cases(60) {
        let mut dice = Dice::new(1000 + seed);
        let count = *dice.pick(&[0, 1, 2, 40, 63, 64, 65, 129, 300, 900]);
        let world = world(seed, count);
        for _ in 0..40 {
            let depth = 1 + dice.below(5);
            let passed = agree(&world, &expression(&mut dice, depth));
            seen[usize::from(passed > 0) + usize::from(passed == count)] += 1;
        }
    }
    assert!(seen.iter().all(|&times| times > 100), "nothing, something, everything: {seen:?}");
}

#[test]
fn large_catalogs_are_filtered_by_many_threads() {
    // More than one block of ranks, more than the smallest number that threads share, lists across the blocks of their ends.
    for (seed, count, times) in [(1, 9_000, 15), (2, 101_000, 4)] {
        let world = world(seed, count);
        let mut dice = Dice::new(seed);
        for _ in 0..times {
            let parts = (0..3).map(|_| comparison(&mut dice)).collect::<Vec<_>>();
            let key = if dice.once_in(2) { "all" } else { "any" };
            agree(&world, &json!({key: parts}));
        }
    }
}

#[test]
fn every_comparison_at_the_edges_of_words_and_blocks() {
    for count in [1, 63, 64, 65, 4095, 4096, 4097] {
        for missing in [false, true] {
            let records: Vec<ItemRecord> = (0..count)
                .map(|number| {
                    let last = number + 1 == count;
                    let attributes = json!({
                        "flag": last,
                        "year": if last { 1 } else { 0 },
                        "price": if last { 1.5 } else { 0.5 },
                        "slug": format!("s{number}"),
                        "lang": if last { "la" } else { "en" },
                        "genres": if last { json!(["x", "last"]) } else { json!([]) },
                    });
                    let Value::Object(mut attributes) = attributes else { panic!() };
                    if missing && number % 2 == 0 && !last {
                        attributes.clear();
                    }
                    ItemRecord {
                        id: format!("i{number}"),
                        sid: vec![number as u16],
                        attributes,
                        ..ItemRecord::default()
                    }
                })
                .collect();
            let types = vec![spec("item", &[8192])];
            let catalog = build(&types, &records);
            // The oracle compares records by the name of their type.
            let records = records.into_iter().map(|r| ItemRecord { item_type: "item".into(), ..r }).collect();
            let world = World { types, records, catalog };
            let last = format!("s{}", count - 1);
            for only_last in [
                json!({"attr": "flag", "eq": true}),
                json!({"attr": "year", "ge": 1}),
                json!({"attr": "year", "in": [1, 3]}),
                json!({"attr": "price", "gt": 0.5}),
                json!({"attr": "price", "in": [1.5, 3, 2]}),
                json!({"attr": "slug", "eq": last}),
                json!({"attr": "lang", "eq": "la"}),
                json!({"attr": "genres", "has": "last"}),
            ] {
                assert_eq!(agree(&world, &only_last), 1, "{only_last} on {count}");
                assert_eq!(
                    agree(&world, &json!({"not": only_last})),
                    count - 1,
                    "not {only_last} on {count}"
                );
                agree(&world, &json!({"any": [{"not": only_last}, {"attr": "flag", "eq": false}]}));
            }
        }
    }
}

#[test]
fn clauses_on_one_column_are_joined_without_a_difference() {
    let world = world(12, 700);
    let range =
        |low: i64, high: f64| json!({"all": [{"attr": "year", "ge": low}, {"attr": "year", "lt": high}]});
    for (low, high) in [(0, 2.5), (5, 1.0), (i64::MIN, 1e300), (-3, -2.5)] {
        agree(&world, &range(low, high));
        agree(&world, &json!({"not": range(low, high)}));
        agree(
            &world,
            &json!({"all": [range(low, high), {"attr": "price", "ge": 0}, {"attr": "price", "le": 1}]}),
        );
        agree(&world, &json!({"any": [{"attr": "year", "ge": low}, {"attr": "year", "lt": high}]}));
    }
    for names in [["t1", "t2", "t149"], ["t0", "t0", "none"]] {
        let has = names.map(|name| json!({"attr": "tags", "has": name}));
        agree(&world, &json!({"any": has}));
        agree(&world, &json!({"all": has}));
        let many = names.map(|name| json!({"attr": "many", "eq": name.replace('t', "m")}));
        agree(&world, &json!({"any": many}));
    }
    let flags = |list: Value| json!({"attr": "flag", "in": list});
    agree(&world, &flags(json!([true, false])));
    agree(&world, &json!({"not": flags(json!([false, true, true]))}));
}

#[test]
fn everything_nothing_and_little_are_recognised() {
    let records: Vec<ItemRecord> = (0..5000)
        .map(|number| ItemRecord {
            id: format!("i{number}"),
            sid: vec![number],
            attributes: json!({"year": number}).as_object().unwrap().clone(),
            ..ItemRecord::default()
        })
        .collect();
    let catalog = build(&[spec("item", &[8192])], &records);
    let mask = |expression: Value| {
        let filter = Filter::parse(&expression, &FilterLimits::default()).unwrap();
        filter.compile(&catalog, TypeId(0))
    };
    for all in [
        json!({"all": []}),
        json!({"attr": "year", "ge": 0}),
        json!({"not": {"attr": "year", "gt": 1e18}}),
        json!({"not": {"attr": "none", "eq": 1}}),
    ] {
        assert!(mask(all.clone()).is_all(), "{all}");
    }
    for none in [json!({"any": []}), json!({"attr": "year", "lt": 0}), json!({"attr": "none", "eq": 1})] {
        let mask = mask(none.clone());
        assert_eq!((mask.count(0..5000), mask.bytes()), (0, 0), "{none}");
    }
    // 78 of 5,000 are a list, 79 a bitmap.
    assert_eq!(mask(json!({"attr": "year", "lt": 78})).bytes(), 4 * 78);
    assert!(mask(json!({"attr": "year", "lt": 79})).bytes() > 5000 / 8);
}
