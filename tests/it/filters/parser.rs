//! What the parser and the check refuse, with the place; canonical forms; named filters.

use serde_json::{Value, json};
use sidereal::catalog::{Filter, FilterLimits, FilterSet, ItemRecord};
use sidereal::error::Error;
use sidereal::ids::TypeId;

use super::exprs::expression;
use super::{Dice, build, spec};

fn parse(expression: &Value) -> Result<Filter, Error> {
    Filter::parse(expression, &FilterLimits::default())
}

fn field_and_message(error: Error) -> (String, String) {
    match error {
        Error::Invalid { field, message } => (field, message),
        other => panic!("{other}"),
    }
}

/// The message names every word and the field is the path.
fn expect(error: Error, path: &str, words: &[&str]) {
    let (field, message) = field_and_message(error);
    assert_eq!(field, path, "{message}");
    assert!(words.iter().all(|word| message.contains(word)), "{words:?} in: {message}");
    assert!(message.len() < 500, "{} bytes", message.len());
}

#[test]
fn mistakes_are_named_with_their_place() {
    let ok = json!({"attr": "a", "eq": 1});
    let long = "x".repeat(1025);
    let table: &[(Value, &str, &[&str])] = &[
        (json!(null), "filter", &["object", "null"]),
        (json!([]), "filter", &["object", "a list of 0"]),
        (json!("all"), "filter", &["object", "\"all\""]),
        (json!({}), "filter", &["empty object"]),
        (json!({"al": []}), "filter", &["unknown key `al`", "`all`"]),
        (json!({"all": [], "any": []}), "filter", &["exactly one", "`all` and `any`"]),
        (json!({"all": [ok], "x": 1}), "filter", &["exactly one", "`x`"]),
        (json!({"all": ok}), "filter.all", &["list", "an object"]),
        (json!({"any": 3}), "filter.any", &["list", "3"]),
        (json!({"not": [ok]}), "filter.not", &["object", "a list of 1"]),
        (
            json!({"all": [ok, {"not": {"attr": "a", "ge": "x"}}]}),
            "filter.all[1].not.ge",
            &["number", "\"x\""],
        ),
        (json!({"any": [{"all": [{}]}]}), "filter.any[0].all[0]", &["empty object"]),
        (json!({"attr": "a"}), "filter", &["exactly one comparison"]),
        (json!({"attr": "a", "eq": 1, "lt": 2}), "filter", &["exactly one comparison"]),
        (json!({"attr": "a", "like": 1}), "filter", &["unknown comparison `like`", "eq, in, has"]),
        (json!({"attr": "a", "all": []}), "filter", &["unknown comparison `all`"]),
        (json!({"attr": 1, "eq": 1}), "filter.attr", &["name", "1"]),
        (json!({"attr": null, "eq": 1}), "filter.attr", &["null"]),
        (json!({"eq": 1}), "filter", &["unknown key `eq`", "`attr`"]),
        (json!({"attr": "a", "eq": null}), "filter.eq", &["null"]),
        (json!({"attr": "a", "eq": [1]}), "filter.eq", &["a list of 1"]),
        (json!({"attr": "a", "in": 1}), "filter.in", &["list", "1"]),
        (json!({"attr": "a", "in": [1, {}]}), "filter.in", &["at 1", "an object"]),
        (json!({"attr": "a", "in": vec![0; 10_001]}), "filter.in", &["10001", "10000"]),
        (json!({"attr": "a", "has": true}), "filter.has", &["label", "true"]),
        (json!({"attr": "a", "lt": true}), "filter.lt", &["number", "true"]),
        (json!({"attr": long, "eq": 1}), "filter.attr", &["1025", "1024"]),
        (json!({"attr": "a", "eq": long}), "filter.eq", &["1025", "1024"]),
        (json!({"attr": "a", "has": long}), "filter.has", &["1025", "1024"]),
        (json!({"attr": "a", "in": ["b", long]}), "filter.in", &["at 1", "1025", "1024"]),
        (json!({"attr": "a", "lt": long}), "filter.lt", &["number", "xxx…"]),
        (json!({long.as_str(): 1}), "filter", &["unknown key `xxx", "…`"]),
        (json!({"named": "kids"}), "filter.named", &["unknown filter `kids`", "no filter has a name"]),
        (json!({"named": 3}), "filter.named", &["name of a filter", "3"]),
        (json!({"all": vec![ok.clone(); 1024]}), "filter.all[1023]", &["1024"]),
    ];
    for (expression, path, words) in table {
        expect(parse(expression).expect_err(&expression.to_string()), path, words);
    }
    let fits = [
        json!({"all": vec![ok.clone(); 1023]}),
        json!({"attr": "a", "in": vec![0; 10_000]}),
        json!({"attr": "x".repeat(1024), "eq": "y".repeat(1024)}),
    ];
    fits.iter().for_each(|expression| drop(parse(expression).unwrap()));
}

fn nested(key: &str, depth: usize) -> Value {
    (1..depth).fold(json!({"attr": "a", "eq": 1}), |inner, _| {
        let inner = if key == "not" { inner } else { Value::Array(vec![inner]) };
        Value::Object([(key.to_owned(), inner)].into_iter().collect())
    })
}

#[test]
fn depth_is_bounded_before_it_is_entered() {
    for key in ["all", "any", "not"] {
        parse(&nested(key, 16)).unwrap();
        let (path, message) = field_and_message(parse(&nested(key, 17)).unwrap_err());
        assert_eq!(path.matches(key).count(), 16, "{path}");
        assert!(message.contains("17") && message.contains("16"), "{message}");
        // Deeper than any stack; the value itself must be taken apart without recursion.
        let mut bomb = nested(key, 200_000);
        assert!(parse(&bomb).is_err());
        while let Some(inner) = bomb.get_mut(key) {
            bomb = match inner.take() {
                Value::Array(mut list) => list.swap_remove(0),
                other => other,
            };
        }
    }
    let shallow = FilterLimits { depth: 1, ..FilterLimits::default() };
    assert!(Filter::parse(&nested("not", 1), &shallow).is_ok());
    assert!(Filter::parse(&nested("not", 2), &shallow).is_err());
}

#[test]
fn one_form_for_all_ways_to_write_a_filter() {
    let a = json!({"attr": "a", "eq": 1});
    let b = json!({"attr": "b", "has": "x"});
    let c = json!({"attr": "c", "lt": 2.5});
    let same = [
        (json!({"all": [a, b]}), json!({"all": [b, a]})),
        (json!({"all": [a, b, a]}), json!({"all": [b, a]})),
        (json!({"any": [a, {"any": [b, c]}]}), json!({"any": [c, b, a]})),
        (json!({"all": [a]}), a.clone()),
        (json!({"any": [{"all": [{"any": [a]}]}]}), a.clone()),
        (json!({"all": [{"any": [{"all": [a, b]}]}, c]}), json!({"all": [a, b, c]})),
        (json!({"not": {"not": a}}), a.clone()),
        (json!({"not": {"all": [{"not": a}]}}), a.clone()),
        (json!({"attr": "a", "eq": 1.0}), a.clone()),
        (json!({"eq": 1, "attr": "a"}), a.clone()),
        (json!({"attr": "a", "in": [1, 1.0]}), a.clone()),
        (json!({"attr": "a", "in": ["x", 3, true]}), json!({"attr": "a", "in": [true, "x", 3.0, "x"]})),
        (json!({"attr": "a", "lt": -0.0}), json!({"attr": "a", "lt": 0})),
    ];
    for (one, other) in same {
        let (one, other) = (parse(&one).unwrap(), parse(&other).unwrap());
        assert_eq!(one.canonical(), other.canonical());
        assert!(one == other && one.digest() == other.digest());
    }
    let different = [
        a.clone(),
        b.clone(),
        json!({"not": a}),
        json!({"all": []}),
        json!({"any": []}),
        json!({"all": [a, b]}),
        json!({"any": [a, b]}),
        json!({"all": [a, {"any": [b, c]}]}),
        json!({"attr": "a", "eq": "1"}),
        json!({"attr": "a", "eq": true}),
        json!({"attr": "a", "eq": "true"}),
        json!({"attr": "a", "le": 1}),
        json!({"attr": "a", "in": ["1,2"]}),
        json!({"attr": "a", "in": ["1", "2"]}),
        json!({"attr": "a", "in": ["1\",\"2"]}),
        json!({"attr": "a eq 1", "eq": 1}),
        json!({"attr": "a", "ge": 9_007_199_254_740_993_i64}),
        json!({"attr": "a", "ge": 9_007_199_254_740_992_i64}),
    ];
    let forms: std::collections::BTreeSet<String> =
        different.iter().map(|expression| parse(expression).unwrap().canonical().to_owned()).collect();
    assert_eq!(forms.len(), different.len(), "{forms:#?}");
}

/// The same expression with every list in another order.
fn shuffled(expression: &Value, dice: &mut Dice) -> Value {
    match expression {
        Value::Array(list) => {
            let mut list: Vec<Value> = list.iter().map(|part| shuffled(part, dice)).collect();
            (1..list.len()).for_each(|at| list.swap(at, dice.below(at + 1)));
            if let Some(first) = list.first().cloned() {
                list.push(first);
            }
            list.into()
        }
        Value::Object(object) => object.iter().rev().map(|(k, v)| (k.clone(), shuffled(v, dice))).collect(),
        plain => plain.clone(),
    }
}

#[test]
fn order_and_repetition_make_no_difference() {
    let mut dice = Dice::new(5);
    for _ in 0..500 {
        let depth = 1 + dice.below(4);
        let one = expression(&mut dice, depth);
        let other = shuffled(&one, &mut dice);
        assert_eq!(parse(&one).unwrap(), parse(&other).unwrap(), "{one} and {other}");
    }
}

fn two_types() -> sidereal::catalog::Catalog {
    let record = |id: &str, item_type: &str, sid: u16, attributes: Value| ItemRecord {
        id: id.into(),
        item_type: item_type.into(),
        sid: vec![sid],
        attributes: attributes.as_object().unwrap().clone(),
        ..ItemRecord::default()
    };
    let book =
        json!({"year": 1990, "genres": ["a"], "lang": "en", "fresh": true, "price": 1.5, "extra": {"x": 1}});
    let film = json!({"year": "long ago", "minutes": 90});
    build(
        &[spec("book", &[8]), spec("film", &[8])],
        &[record("b", "book", 0, book), record("f", "film", 0, film)],
    )
}

#[test]
fn attributes_and_kinds_are_checked_per_type() {
    let catalog = two_types();
    let (book, film) = (TypeId(0), TypeId(1));
    let table: &[(Value, &[TypeId], &str, &[&str])] = &[
        (
            json!({"attr": "size", "eq": 1}),
            &[book, film],
            "filter.attr",
            &["`size`", "no item of the catalog"],
        ),
        (json!({"attr": "minutes", "eq": 1}), &[book], "filter.attr", &["`minutes`", "`book`"]),
        (
            json!({"not": {"attr": "year", "eq": "x"}}),
            &[book],
            "filter.not.eq",
            &["`year`", "`book`", "integers", "`eq`", "a string"],
        ),
        (
            json!({"attr": "year", "lt": 5}),
            &[book, film],
            "filter.lt",
            &["`year`", "`film`", "strings", "`lt`"],
        ),
        (
            json!({"all": [{"attr": "genres", "lt": 5}]}),
            &[book],
            "filter.all[0].lt",
            &["`genres`", "lists of strings", "`lt`"],
        ),
        (json!({"attr": "genres", "eq": "a"}), &[book], "filter.eq", &["lists of strings", "`has`"]),
        (json!({"attr": "year", "has": "a"}), &[book], "filter.has", &["`year`", "integers", "`has`"]),
        (json!({"attr": "fresh", "eq": 1}), &[book], "filter.eq", &["booleans", "a number"]),
        (json!({"attr": "fresh", "ge": 1}), &[book], "filter.ge", &["booleans"]),
        (json!({"attr": "price", "in": [1, "a"]}), &[book], "filter.in", &["floats", "a string"]),
        (json!({"attr": "lang", "in": [true]}), &[book], "filter.in", &["strings", "a boolean"]),
        (json!({"attr": "extra", "eq": 1}), &[book], "filter.eq", &["`extra`", "cannot be filtered on"]),
        (json!({"attr": "extra", "has": "x"}), &[book], "filter.has", &["cannot be filtered on"]),
    ];
    for (expression, types, path, words) in table {
        expect(parse(expression).unwrap().check(&catalog, types).unwrap_err(), path, words);
    }
    let fine: [(Value, &[TypeId]); 7] = [
        (json!({"attr": "minutes", "eq": 1}), &[book, film]),
        (json!({"attr": "year", "lt": 5.5}), &[book]),
        (json!({"attr": "year", "eq": "x"}), &[film]),
        (json!({"attr": "lang", "has": "en"}), &[book]),
        (json!({"attr": "genres", "has": "none"}), &[book]),
        (json!({"attr": "lang", "in": []}), &[book]),
        (json!({"all": []}), &[]),
    ];
    for (expression, types) in fine {
        parse(&expression).unwrap().check(&catalog, types).unwrap();
    }
    // A string is not a list of one label.
    let has = parse(&json!({"attr": "lang", "has": "en"})).unwrap();
    assert!(!has.matches(catalog.item(book, sidereal::ids::Rank(0))));
    assert_eq!(has.compile(&catalog, book).count(0..1), 0);
}

#[test]
fn filters_have_names() {
    let limits = FilterLimits::default();
    let set = json!({
        "kids": {"all": [{"attr": "year", "ge": 1990}, {"not": {"attr": "genres", "has": "Horror"}}]},
        "new": {"attr": "fresh", "eq": true},
    });
    let set = FilterSet::parse(set.as_object().unwrap(), &limits).unwrap();
    assert_eq!(set.names().collect::<Vec<_>>(), ["kids", "new"]);
    let named = set.parse_filter(&json!({"all": [{"named": "new"}, {"named": "kids"}]}), &limits).unwrap();
    let written = parse(&json!({"all": [
        {"attr": "year", "ge": 1990}, {"attr": "fresh", "eq": true}, {"not": {"attr": "genres", "has": "Horror"}},
    ]}));
    assert_eq!(named, written.unwrap(), "the same mask serves both");
    let catalog = two_types();
    named.check(&catalog, &[TypeId(0)]).unwrap();
    assert!(named.matches(catalog.item(TypeId(0), sidereal::ids::Rank(0))));
    expect(
        named.check(&catalog, &[TypeId(1)]).unwrap_err(),
        "filter.all[0].named.new.attr",
        &["`fresh`", "`film`"],
    );
    expect(set.check(&catalog).unwrap_err(), "filters.kids.all[0].ge", &["`year`", "`film`", "strings"]);
    let unknown = set.parse_filter(&json!({"not": {"named": "adults"}}), &limits).unwrap_err();
    expect(unknown, "filter.not.named", &["`adults`", "`kids`, `new`"]);
    let extra = set.parse_filter(&json!({"named": "kids", "x": 1}), &limits).unwrap_err();
    expect(extra, "filter", &["exactly one"]);
}

#[test]
fn sets_of_filters_are_bounded() {
    let limits = FilterLimits::default();
    let ok = json!({"attr": "a", "eq": 1});
    let set = |value: Value| FilterSet::parse(value.as_object().unwrap(), &limits);
    for name in ["", "a b", "a`b", &"x".repeat(65)] {
        expect(set(json!({name: ok})).unwrap_err(), "filters", &["no name"]);
    }
    expect(set(json!({"a": {"named": "b"}, "b": ok})).unwrap_err(), "filters.a.named", &["`b`", "no filter"]);
    expect(set(json!({"a": {"not": 1}})).unwrap_err(), "filters.a.not", &["object"]);
    let many: serde_json::Map<_, _> = (0..1025).map(|n| (format!("f{n}"), ok.clone())).collect();
    expect(FilterSet::parse(&many, &limits).unwrap_err(), "filters", &["1025", "1024"]);
    let known: serde_json::Map<_, _> = (0..30).map(|n| (format!("f{n}"), ok.clone())).collect();
    let known = FilterSet::parse(&known, &limits).unwrap();
    expect(
        known.parse_filter(&json!({"named": "x"}), &limits).unwrap_err(),
        "filter.named",
        &["`f0`", "and 10 more"],
    );
    // What a name stands for counts.
    let large = set(json!({"large": {"any": vec![ok.clone(); 600]}, "deep": nested("not", 16)})).unwrap();
    large.parse_filter(&json!({"named": "large"}), &limits).unwrap();
    let twice = json!({"all": [{"named": "large"}, {"named": "large"}]});
    expect(large.parse_filter(&twice, &limits).unwrap_err(), "filter.all[1].named", &["1024"]);
    expect(
        large.parse_filter(&json!({"named": "deep"}), &limits).unwrap_err(),
        "filter.named",
        &["17", "16"],
    );
}
