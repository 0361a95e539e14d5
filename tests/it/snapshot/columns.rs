//! Columns by table, and whole random catalogs against their records.

use serde_json::{Value, json};
use sidereal::catalog::{Catalog, CatalogBuilder, ColumnValues, ItemRecord, TypeSpec};
use sidereal::ids::TypeId;

use super::random::{self, Random, values_of};

fn builder() -> CatalogBuilder {
    CatalogBuilder::new(&[TypeSpec {
        name: "item".into(),
        levels: vec![65_536],
        token: "<item_{level}_{code}>".into(),
    }])
}

fn record(at: usize, value: &Value) -> ItemRecord {
    let mut record = ItemRecord { id: format!("{at}"), sid: vec![at as u16], ..ItemRecord::default() };
    record.attributes.insert("x".into(), value.clone());
    record
}

/// A catalog whose item of rank `at` has the value `x`.
fn catalog(values: &[Value]) -> sidereal::Result<Catalog> {
    let mut builder = builder();
    values.iter().enumerate().try_for_each(|(at, value)| builder.push(record(at, value)))?;
    builder.build()
}

fn kind(values: ColumnValues<'_>) -> &'static str {
    match values {
        ColumnValues::Bool(_) => "bool",
        ColumnValues::Int(_) => "int",
        ColumnValues::Float(_) => "float",
        ColumnValues::Text(_) => "text",
        ColumnValues::Category { .. } => "category",
        ColumnValues::Labels(_) => "labels",
        ColumnValues::Json(_) => "json",
    }
}

#[test]
fn every_value_has_its_kind() {
    let table = [
        (json!([true, null, false]), "bool"),
        (json!([-3, i64::MAX, i64::MIN]), "int"),
        (json!([0.5, null, 1e300]), "float"),
        (json!([1.0, 2.0]), "float"),
        (json!([0.5, 2]), "float"),
        (json!([2, null, 0.5]), "float"),
        (json!([2, u64::MAX]), "float"),
        (json!(["b", "ä", "", "b"]), "category"),
        (json!([["b", "a"], [], ["a", "a"]]), "labels"),
        (json!([[], null, ["a"]]), "labels"),
        (json!([[], []]), "labels"),
        (json!([{"a": 1}, [1, 2], null]), "json"),
        (json!([[], [1], {}, []]), "json"),
        (json!([[1], []]), "json"),
        (json!([["a", 1], [null]]), "json"),
    ];
    for (values, expected) in table {
        let values = values.as_array().unwrap();
        let catalog = catalog(values).unwrap();
        let column = catalog.column(TypeId(0), "x").unwrap();
        assert_eq!(kind(column.values()), expected, "{values:?}");
        let given: Vec<Value> = values.iter().filter(|value| !value.is_null()).cloned().collect();
        let as_float =
            |value: &Value| if expected == "float" { json!(value.as_f64()) } else { value.clone() };
        assert_eq!(values_of(column.values()), given.iter().map(as_float).collect::<Vec<_>>());
        let shape = column.present().map(|bits| (0..values.len()).map(|at| bits.get(at)).collect::<Vec<_>>());
        let missing = values.iter().any(Value::is_null);
        assert_eq!(shape, missing.then(|| values.iter().map(|value| !value.is_null()).collect()));
    }
    assert!(catalog(&[Value::Null]).unwrap().column(TypeId(0), "x").is_none());
}

#[test]
fn kinds_that_do_not_go_together_are_refused_and_leave_nothing_behind() {
    let table = [
        (json!([1, "one"]), "x: a string, where items before have integers of type `item`"),
        (json!(["one", 1]), "x: an integer, where items before have strings of type `item`"),
        (json!([true, 1.5]), "x: a float, where items before have booleans of type `item`"),
        (json!([1, true]), "x: a boolean, where items before have integers of type `item`"),
        (json!([["a"], "a"]), "x: a string, where items before have lists of strings of type `item`"),
        (json!(["a", ["a"]]), "x: a list of strings, where items before have strings of type `item`"),
        (json!(["a", []]), "x: an empty list, where items before have strings of type `item`"),
        (json!([[], "a"]), "x: a string, where items before have empty lists of type `item`"),
        (
            json!([["a"], [2]]),
            "x: a list of other things than strings, where items before have lists of strings",
        ),
        (
            json!([{}, ["a"]]),
            "x: a list of strings, where items before have objects or lists of other things",
        ),
        (json!([["a"], {}]), "x: an object, where items before have lists of strings of type `item`"),
    ];
    for (values, expected) in table {
        let values = values.as_array().unwrap();
        let message = catalog(values).unwrap_err().to_string();
        assert!(message.starts_with(expected), "{values:?}: {message}");
        let mut builder = builder();
        builder.push(record(0, &values[0])).unwrap();
        builder.push(record(1, &values[1])).unwrap_err();
        assert_eq!(builder.build().unwrap().snapshot(), catalog(&values[..1]).unwrap().snapshot());
    }
    // Of different types anything goes.
    let mut builder = CatalogBuilder::new(&random::types());
    for (name, sid, value) in [("book", vec![0, 0, 0], json!(1)), ("nothing", vec![0, 0], json!("a"))] {
        builder.push(ItemRecord { item_type: name.into(), sid, ..record(name.len(), &value) }).unwrap();
    }
    assert_eq!(builder.build().unwrap().attributes(), ["x"]);
}

#[test]
fn strings_are_categories_up_to_the_bound() {
    for (values, distinct, expected) in [
        (256, 256, "category"),
        (257, 257, "text"),
        (2048, 256, "category"),
        (2055, 257, "text"),
        (2056, 257, "category"),
        (8000, 1000, "category"),
        (8000, 1001, "text"),
    ] {
        let names: Vec<Value> = (0..values).map(|at| json!(format!("name {}", at * 17 % distinct))).collect();
        let catalog = catalog(&names).unwrap();
        let column = catalog.column(TypeId(0), "x").unwrap();
        assert_eq!(kind(column.values()), expected, "{distinct} of {values}");
        assert_eq!(values_of(column.values()), names);
        if let ColumnValues::Category { names, .. } = column.values() {
            assert_eq!(names.len(), distinct);
            assert!((1..names.len()).all(|at| names.get(at - 1) < names.get(at)), "ascending");
        }
    }
}

#[test]
fn a_column_does_not_depend_on_the_order_of_arrival() {
    let table = [
        json!([1, 2.5, 3]),
        json!([[], [1], []]),
        json!([[], ["b", "a"], [], ["c"]]),
        json!(["b", "a", "c", "a"]),
        json!([null, true, false]),
    ];
    for values in table {
        let values = values.as_array().unwrap();
        let forward = catalog(values).unwrap();
        let mut builder = builder();
        values.iter().enumerate().rev().for_each(|(at, value)| builder.push(record(at, value)).unwrap());
        assert_eq!(builder.build().unwrap().snapshot(), forward.snapshot(), "{values:?}");
    }
}

#[test]
fn random_catalogs_answer_as_their_records() {
    for (seed, count) in [(1, 0), (2, 1), (3, 63), (4, 64), (5, 65), (6, 700), (7, 5000)] {
        let mut records = random::records(seed, count);
        let catalog = random::build(&records);
        random::check(&catalog, &records);
        assert_eq!(catalog.find("no such id"), None);
        let mut random = Random::new(seed);
        (1..count).rev().for_each(|at| records.swap(at, random.below(at + 1)));
        assert_eq!(random::build(&records).snapshot(), catalog.snapshot(), "{count} items in another order");
    }
    let columns = random::build(&random::records(7, 5000));
    let kinds: Vec<&str> = columns.columns(TypeId(0)).map(|(_, column)| kind(column.values())).collect();
    let expected =
        ["bool", "int", "text", "category", "json", "labels", "labels", "bool", "category", "float", "int"];
    assert_eq!(kinds, expected, "every kind is met");
}

#[test]
fn many_ids_are_found_at_once_as_one_by_one() {
    let records = random::records(9, 3000);
    let catalog = random::build(&records);
    let mut random = Random::new(9);
    for count in [0, 1, 31, 32, 33, 20_000] {
        let ids: Vec<String> = (0..count)
            .map(|_| match random.below(4) {
                0 => format!("no such id {}", random.below(1000)),
                1 => String::new(),
                _ => records[random.below(records.len())].id.clone(),
            })
            .collect();
        let expected: Vec<_> = ids.iter().map(|id| catalog.find(id)).collect();
        assert_eq!(catalog.find_all(&ids), expected, "{count} ids");
    }
}
