//! Catalogs changed without their records: merged, and with other popularities.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;
use sidereal::catalog::{Catalog, CatalogBuilder, ItemRecord, Mask, TypeSpec};
use sidereal::ids::{Rank, SidIndex, TypeId};

use super::image::Image;
use super::random::{self, Random};

/// The ranks of ids, by type.
fn places<'a>(catalog: &Catalog, ids: impl Iterator<Item = &'a str>) -> Vec<Vec<Rank>> {
    let mut places = vec![Vec::new(); catalog.types().len()];
    for (t, rank) in ids.filter_map(|id| catalog.find(id)) {
        places[t.index()].push(rank);
    }
    places
}

#[test]
fn a_merged_catalog_is_the_catalog_of_what_remains() {
    let table = [
        (0, 0, 1),
        (1, 0, 1),
        (0, 1, 1),
        (1, 1, 1),
        (300, 0, 2),
        (0, 300, 2),
        (300, 200, 1),
        (2000, 300, 3),
        (2000, 300, 50),
        (300, 2000, 1000),
    ];
    for (seed, (first, second, kept)) in table.into_iter().enumerate() {
        let mut random = Random::new(seed as u64);
        let mut records = random::records(seed as u64, first + second);
        // The float that makes integers floats must not be the one that goes.
        records.iter_mut().for_each(|record| drop(record.attributes.shift_remove("score")));
        let delta = records.split_off(first);
        let base = random::build(&records);
        let gone: Vec<String> =
            records.iter().filter(|_| !random.once_in(kept)).map(|r| r.id.clone()).collect();
        let removed = places(&base, gone.iter().map(String::as_str));
        let gone: BTreeSet<String> = gone.into_iter().collect();
        records.retain(|record| !gone.contains(&record.id));
        // Some that are removed come back changed.
        let mut delta = delta;
        delta.extend(gone.iter().take(20).map(|id| ItemRecord {
            id: id.clone(),
            item_type: "film".into(),
            sid: vec![random.below(4) as u16, 0, 1, 1],
            ..ItemRecord::default()
        }));
        let merged = Catalog::merged(&base, &random::build(&delta), &removed).unwrap();
        records.extend(delta);
        random::check(&merged, &records);
        let expected = random::build(&records);
        assert_eq!(merged.snapshot(), expected.snapshot(), "{first} and {second}");
        assert!(Image::of(&merged).0 == Image::of(&expected).0, "{first} and {second}");
    }
}

#[test]
fn kinds_are_decided_by_what_remains() {
    let spec = [TypeSpec { name: "item".into(), levels: vec![4000], token: "<item_{level}_{code}>".into() }];
    let build = |values: &[serde_json::Value], from: usize| {
        let mut builder = CatalogBuilder::new(&spec);
        for (at, value) in values.iter().enumerate() {
            let at = from + at;
            let mut record =
                ItemRecord { id: format!("{at}"), sid: vec![at as u16], ..ItemRecord::default() };
            record.attributes.insert("x".into(), value.clone());
            builder.push(record).unwrap();
        }
        builder.build().unwrap()
    };
    let names =
        |range: std::ops::Range<usize>| range.map(|at| json!(format!("name {at}"))).collect::<Vec<_>>();
    // First half, second half, how many of the first go.
    let table = [
        (vec![json!(1), json!(2)], vec![json!(2.5)], 1),
        (vec![json!(2.5)], vec![json!(2)], 0),
        (vec![json!("a")], vec![json!(true)], 1),
        (vec![json!([]), json!([])], vec![json!(["a"])], 1),
        (vec![json!([]), json!([])], vec![json!([1])], 1),
        (vec![json!(["a"]), json!([])], vec![json!({"a": 1})], 1),
        (vec![json!([1]), json!([])], vec![json!([])], 1),
        (vec![json!([1]), json!([])], vec![json!(["a"])], 1),
        (vec![json!(["b", "a"]), json!(["c"])], vec![json!(["0", "c"])], 1),
        (vec![json!("a")], vec![json!(null)], 1),
        (names(0..200), names(100..300), 0),
        (names(0..200), names(100..300), 100),
        (names(0..400), names(300..301), 200),
        (names(0..400), names(300..600), 0),
        ([names(0..256), names(0..256)].concat(), names(256..257), 0),
    ];
    for (first, second, gone) in table {
        let (base, delta) = (build(&first, 0), build(&second, first.len()));
        let removed = vec![(0..gone as u32).map(Rank).collect::<Vec<_>>()];
        let merged = Catalog::merged(&base, &delta, &removed).unwrap();
        let expected = build(&[&first[gone..], &second].concat(), gone);
        assert_eq!(merged.snapshot(), expected.snapshot(), "{first:?} and {second:?} without {gone}");
    }
    let message = |first: &[serde_json::Value], second: &[serde_json::Value]| {
        let (base, delta) = (build(first, 0), build(second, first.len()));
        Catalog::merged(&base, &delta, &[vec![]]).unwrap_err().to_string()
    };
    assert_eq!(message(&[json!(1)], &[json!("a")]), "x: integers beside strings of one type `item`");
    assert_eq!(
        message(&[json!(["a"])], &[json!([1])]),
        "x: lists of strings beside objects or other lists of one type `item`"
    );
}

#[test]
fn what_cannot_be_merged_is_refused() {
    let base = random::build(&random::records(1, 50));
    let message = |delta: &Catalog, removed: &[Vec<Rank>]| {
        Catalog::merged(&base, delta, removed).unwrap_err().to_string()
    };
    let none = vec![Vec::new(); 4];
    let empty = random::build(&[]);
    let again = random::build(&random::records(1, 1));
    assert!(
        message(&again, &none).starts_with("delta: `")
            && message(&again, &none).ends_with("is in both catalogs and not removed")
    );
    assert_eq!(message(&empty, &none[..3]), "removed: lists for 3 types, the catalog has 4");
    let mut beyond = none.clone();
    beyond[2].push(Rank(0));
    assert_eq!(message(&empty, &beyond), "removed[2][0]: rank 0 of type `nothing`, which has 0 items");
    let mut types = random::types();
    types[1].levels[2] = 41;
    let other = CatalogBuilder::new(&types).build().unwrap();
    assert!(message(&other, &none).starts_with("delta: codebooks [65536, 1, 41, 2] of type `film`"));
    let fewer = CatalogBuilder::new(&types[..1]).build().unwrap();
    assert!(message(&fewer, &none).starts_with("delta: types [\"book\"], the catalog has"));
}

/// What the order must be: by value, then by id.
fn check_order(catalog: &Catalog, values: &[Vec<f64>]) {
    for (t, values) in values.iter().enumerate() {
        let t = TypeId(t as u16);
        let index = catalog.index(t);
        let mask = Mask::all(index).excluding(index, &[Rank(0)]);
        for sid in (0..index.sids() as u32).map(SidIndex) {
            let mut expected: Vec<Rank> = index.ranks(sid).map(Rank).collect();
            let id = |rank: Rank| catalog.item(t, rank).id().as_bytes();
            expected.sort_by(|&a, &b| {
                values[b.index()].partial_cmp(&values[a.index()]).unwrap().then_with(|| id(a).cmp(id(b)))
            });
            assert_eq!(catalog.by_popularity(t, sid).collect::<Vec<_>>(), expected);
            let alive = expected.iter().copied().filter(|&rank| rank != Rank(0));
            assert_eq!(mask.alive_ranks(index, sid).collect::<Vec<_>>(), alive.collect::<Vec<_>>());
        }
        for (rank, &value) in values.iter().enumerate() {
            assert_eq!(catalog.item(t, Rank(rank as u32)).popularity(), value);
        }
    }
}

#[test]
fn popularity_changes_without_a_rebuild() {
    let records = random::records(31, 1500);
    let catalog = random::build(&records);
    let given: Vec<Vec<f64>> = (0..4).map(|t| catalog.popularity(TypeId(t)).to_vec()).collect();
    check_order(&catalog, &given);
    let same = catalog.with_popularity(given.clone()).unwrap();
    assert_eq!(same.snapshot(), catalog.snapshot(), "the same contents have the same name");
    let mut random = Random::new(3);
    let draw = [0.0, -0.0, 5.0, -7.25, 1e300];
    let values: Vec<Vec<f64>> =
        given.iter().map(|values| values.iter().map(|_| draw[random.below(5)]).collect()).collect();
    let other = catalog.with_popularity(values.clone()).unwrap();
    check_order(&other, &values);
    check_order(&catalog, &given);
    assert_ne!(other.snapshot(), catalog.snapshot());
    assert_eq!(other.index(TypeId(0)).codes(SidIndex(3)), catalog.index(TypeId(0)).codes(SidIndex(3)));
    assert_eq!(other.with_popularity(given).unwrap().snapshot(), catalog.snapshot(), "and back");
    // Ids and values in bulk: unknown ones are counted, the last of repeats counts.
    let mut changes: Vec<(String, f64)> = vec![("no such id".into(), 1.0), ("".into(), 2.0)];
    for t in (0..4).map(TypeId) {
        for (rank, &value) in values[t.index()].iter().enumerate() {
            let id = catalog.item(t, Rank(rank as u32)).id().to_owned();
            changes.extend([(id.clone(), 9.0), (id, value)]);
        }
    }
    let (by_id, unknown) = catalog.with_popularity_of(&changes).unwrap();
    assert_eq!((by_id.snapshot(), unknown), (other.snapshot(), 2));
    // Files and merges keep the order.
    let folder = tempfile::tempdir().unwrap();
    let path = Image::of(&other).save(folder.path());
    Catalog::verify(&path, &mut |_, _| ()).unwrap();
    let opened = Catalog::open(&path).unwrap();
    check_order(&opened, &values);
    assert_eq!(opened.with_popularity(values.clone()).unwrap().snapshot(), other.snapshot());
    let by_id: BTreeMap<&str, f64> = changes.iter().map(|(id, value)| (id.as_str(), *value)).collect();
    let mut changed = records.clone();
    changed.iter_mut().for_each(|record| record.popularity = by_id[record.id.as_str()]);
    // Floats of the base stay floats, and here there are some anyway.
    let merged = Catalog::merged(&opened, &random::build(&[]), &vec![Vec::new(); 4]).unwrap();
    assert_eq!(merged.snapshot(), random::build(&changed).snapshot(), "merging sorts anew");
}

#[test]
fn popularities_that_cannot_be_are_refused() {
    let catalog = random::build(&random::records(1, 50));
    let given: Vec<Vec<f64>> = (0..4).map(|t| catalog.popularity(TypeId(t)).to_vec()).collect();
    let message = |change: &dyn Fn(&mut Vec<Vec<f64>>)| {
        let mut values = given.clone();
        change(&mut values);
        catalog.with_popularity(values).unwrap_err().to_string()
    };
    assert_eq!(message(&|values| drop(values.pop())), "popularity: values of 3 types, the catalog has 4");
    assert!(message(&|values| values[1].push(0.0)).starts_with("popularity[1]: "));
    assert_eq!(message(&|values| values[0][2] = f64::NAN), "popularity[0][2]: NaN is not a finite number");
    let error = catalog.with_popularity_of(&[("a", 0.0), ("b", f64::INFINITY)]).unwrap_err().to_string();
    assert_eq!(error, "popularity[1]: inf of `b` is not a finite number");
}
