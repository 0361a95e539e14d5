//! Random catalogs with attributes of every kind, and random expressions that fit them.

use serde_json::{Map, Value, json};
use sidereal::catalog::{Catalog, ItemRecord, TypeSpec};

use super::{Dice, build, spec};

pub const INTS: [i64; 13] = [
    i64::MIN,
    i64::MIN + 1,
    -9_007_199_254_740_993,
    -3,
    -1,
    0,
    1,
    2,
    63,
    9_007_199_254_740_992,
    9_007_199_254_740_993,
    i64::MAX - 1,
    i64::MAX,
];
pub const FLOATS: [f64; 14] = [
    -1e300,
    -9.223_372_036_854_776e18,
    -2.5,
    -1.0,
    -0.0,
    0.0,
    5e-324,
    0.5,
    1.0,
    2.000_000_000_000_000_4,
    9_007_199_254_740_992.0,
    9.223_372_036_854_776e18,
    1.844_674_407_370_955_2e19,
    1e300,
];
const WORDS: [&str; 9] = ["", "a", "ab", "b", "é", "Science Fiction", "a\"b", "zz", "\u{1F600}"];

/// A catalog with the records that it was made from, by type.
pub struct World {
    pub types: Vec<TypeSpec>,
    pub records: Vec<ItemRecord>,
    pub catalog: Catalog,
}

/// How much of each attribute is missing: one in so many is present, or absent.
#[derive(Clone, Copy)]
struct Presence {
    one_in: usize,
    inverted: bool,
}

impl Presence {
    fn random(dice: &mut Dice) -> Presence {
        Presence { one_in: *dice.pick(&[1, 1, 2, 7, 100]), inverted: dice.once_in(2) }
    }

    fn holds(self, dice: &mut Dice) -> bool {
        self.one_in == 1 || dice.once_in(self.one_in) != self.inverted
    }
}

/// `count` items, spread over two types; a narrow space of codes makes them share SIDs.
pub fn world(seed: u64, count: usize) -> World {
    let mut dice = Dice::new(seed);
    let types = match dice.below(3) {
        0 => vec![spec("book", &[4, 4]), spec("film", &[2, 2, 2])],
        1 => vec![spec("book", &[4096, 4096]), spec("film", &[60_000])],
        _ => vec![spec("book", &[64, 64, 64])],
    };
    let names: Vec<&str> =
        ["flag", "year", "price", "lang", "slug", "genres", "tags", "many", "rare", "blob"].to_vec();
    let presence: Vec<Vec<Presence>> =
        types.iter().map(|_| names.iter().map(|_| Presence::random(&mut dice)).collect()).collect();
    // A type may lack an attribute altogether.
    let lacks: Vec<Vec<bool>> =
        types.iter().map(|_| names.iter().map(|_| dice.once_in(8)).collect()).collect();
    let records = (0..count)
        .map(|number| {
            let t = if dice.once_in(3) { types.len() - 1 } else { 0 };
            let mut attributes = Map::new();
            for (at, name) in names.iter().enumerate() {
                if !lacks[t][at] && presence[t][at].holds(&mut dice) {
                    attributes.insert((*name).to_owned(), value(name, number, &mut dice));
                } else if dice.once_in(4) {
                    attributes.insert((*name).to_owned(), Value::Null);
                }
            }
            let sid = types[t].levels.iter().map(|&codes| dice.below(codes) as u16).collect();
            ItemRecord {
                id: format!("{}:{number}", types[t].name),
                item_type: types[t].name.clone(),
                popularity: dice.below(50) as f64,
                sid,
                attributes,
                ..ItemRecord::default()
            }
        })
        .collect::<Vec<_>>();
    let catalog = build(&types, &records);
    World { types, records, catalog }
}

fn value(name: &str, number: usize, dice: &mut Dice) -> Value {
    match name {
        "flag" => json!(dice.once_in(3)),
        "year" => json!(dice.pick(&INTS)),
        "price" => json!(dice.pick(&FLOATS)),
        "lang" => json!(dice.pick(&WORDS)),
        // Nearly unique: stored as text where there are many.
        "slug" => json!(format!("{}-{number}", dice.pick(&WORDS))),
        "genres" => labels(dice, 4, |dice| (*dice.pick(&WORDS)).to_owned()),
        // More than 64 names, and lists of any length.
        "tags" => labels(dice, 200, |dice| format!("t{}", dice.below(150))),
        "many" => json!(format!("m{}", dice.below(200))),
        "rare" => json!(if dice.once_in(50) { 7 } else { 8 }),
        _ => json!({"nested": number}),
    }
}

fn labels(dice: &mut Dice, longest: usize, name: impl Fn(&mut Dice) -> String) -> Value {
    // Mostly short lists, some empty, a few longer than a word of bits.
    let len = if dice.once_in(10) { dice.below(longest + 1) } else { dice.below(4) };
    (0..len).map(|_| Value::from(name(dice))).collect()
}

/// A number as a filter may write it.
fn number(dice: &mut Dice) -> Value {
    match dice.below(4) {
        0 => json!(dice.pick(&FLOATS)),
        1 => json!(*dice.pick(&INTS) as f64),
        2 => json!(dice.below(4)),
        _ => json!(dice.pick(&INTS)),
    }
}

fn text(name: &str, dice: &mut Dice) -> Value {
    match name {
        "lang" => json!(dice.pick(&WORDS)),
        "slug" => json!(format!("{}-{}", dice.pick(&WORDS), dice.below(70))),
        _ => json!(format!("m{}", dice.below(210))),
    }
}

/// An expression of at most `depth` levels over attributes that all kinds of items may have.
pub fn expression(dice: &mut Dice, depth: usize) -> Value {
    let parts = |dice: &mut Dice| {
        let len = dice.below(4);
        (0..len).map(|_| expression(dice, depth - 1)).collect::<Vec<_>>()
    };
    match dice.below(if depth > 1 { 8 } else { 5 }) {
        5 => json!({"all": parts(dice)}),
        6 => json!({"any": parts(dice)}),
        7 => json!({"not": expression(dice, depth - 1)}),
        _ => comparison(dice),
    }
}

pub fn comparison(dice: &mut Dice) -> Value {
    let name = *dice.pick(&["flag", "year", "price", "lang", "slug", "genres", "tags", "many", "rare"]);
    let (operator, operand) = match name {
        "flag" if dice.once_in(3) => {
            ("in", [json!([]), json!([true]), json!([true, false])][dice.below(3)].clone())
        }
        "flag" => ("eq", json!(dice.once_in(2))),
        "year" | "price" | "rare" => match dice.below(6) {
            0 => ("eq", number(dice)),
            1 => {
                let len = dice.below(6);
                ("in", (0..len).map(|_| number(dice)).collect())
            }
            2 => ("lt", number(dice)),
            3 => ("le", number(dice)),
            4 => ("gt", number(dice)),
            _ => ("ge", number(dice)),
        },
        "genres" => ("has", text("lang", dice)),
        "tags" => ("has", json!(format!("t{}", dice.below(155)))),
        _ => match dice.below(5) {
            0 => ("has", text(name, dice)),
            1 | 2 => ("eq", text(name, dice)),
            _ => {
                let len = dice.below(90);
                ("in", (0..len).map(|_| text(name, dice)).collect())
            }
        },
    };
    json!({"attr": name, operator: operand})
}
