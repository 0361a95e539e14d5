//! Made-up records with every kind of column, and what a catalog of them must answer.

use serde_json::{Map, Value, json};
use sidereal::catalog::{Catalog, CatalogBuilder, ColumnValues, ItemRecord, TypeSpec};
use sidereal::ids::{Rank, TypeId};

/// A stream of random numbers from a seed.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 3
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// True once in `times`.
    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }
}

/// Four types: explicit levels and columns, collisions and none, one without items.
pub fn types() -> Vec<TypeSpec> {
    let spec = |name: &str, levels: &[usize]| TypeSpec {
        name: name.into(),
        levels: levels.to_vec(),
        token: format!("<{name}_{{level}}_{{code}}>"),
    };
    vec![
        spec("book", &[8, 8, 8]),
        spec("film", &[65_536, 1, 40, 2]),
        spec("nothing", &[3, 3]),
        spec("é type", &[2, 2, 2, 2, 2, 2, 2, 2]),
    ]
}

const SYLLABLES: [&str; 9] = ["ka", "ro", "é", "", "mi", "ß", "日本", "x y", "\""];

fn word(random: &mut Random, syllables: usize) -> String {
    (0..syllables).map(|_| SYLLABLES[random.below(SYLLABLES.len())]).collect()
}

/// The attributes of an item; `at` counts the items.
fn attributes(random: &mut Random, at: usize) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("on".into(), json!(random.once_in(3)));
    map.insert("blurb".into(), json!(format!("{} {at}", word(random, 3))));
    let optional: [(&str, usize, Value); 9] = [
        ("adult", 2, json!(random.once_in(2))),
        ("year", 9, json!(1900 + random.below(130) as i64)),
        ("big", 2, json!(random.next() as i64 - (1 << 60))),
        (
            "score",
            5,
            if random.once_in(4) { json!(random.below(9)) } else { json!(random.below(999) as f64 / 7.0) },
        ),
        ("creator", 8, json!(format!("creator {}", random.below(23)))),
        ("genres", 4, (0..random.below(4)).map(|_| json!(format!("genre {}", random.below(11)))).collect()),
        (
            "extra",
            2,
            if random.once_in(2) { json!({"a": [at, null]}) } else { json!([random.below(3), "é"]) },
        ),
        ("none", 2, json!([])),
        ("rare", 200, json!("here")),
    ];
    for (name, times, value) in optional {
        // Half of the names are mostly there, half mostly not.
        if random.once_in(times) != (times > 4 && name != "rare") {
            map.insert(name.into(), value);
        }
    }
    map
}

/// `count` records; every third shares its SID with others, half have titles.
pub fn records(seed: u64, count: usize) -> Vec<ItemRecord> {
    let mut random = Random::new(seed);
    let types = types();
    (0..count)
        .map(|at| {
            let spec = &types[[0, 1, 3][random.below(3)]];
            let narrow = random.once_in(2);
            let sid = spec
                .levels
                .iter()
                .map(|&codes| random.below(if narrow { codes.min(3) } else { codes }) as u16);
            let sid = sid.collect();
            ItemRecord {
                id: format!("{}{}{at}", word(&mut random, 2), spec.name),
                item_type: spec.name.clone(),
                title: random.once_in(2).then(|| word(&mut random, 5)),
                popularity: [0.0, -0.0, 7.5, random.below(1000) as f64, -3.0][random.below(5)],
                sid,
                attributes: attributes(&mut random, at),
            }
        })
        .collect()
}

pub fn build(records: &[ItemRecord]) -> Catalog {
    let mut builder = CatalogBuilder::new(&types());
    records.iter().for_each(|record| builder.push(record.clone()).unwrap());
    builder.build().unwrap()
}

/// The records of one type in rank order.
pub fn by_rank<'a>(records: &'a [ItemRecord], name: &str) -> Vec<&'a ItemRecord> {
    let mut sorted: Vec<&ItemRecord> = records.iter().filter(|record| record.item_type == name).collect();
    sorted.sort_by(|a, b| {
        let popularity = (b.popularity + 0.0).partial_cmp(&(a.popularity + 0.0)).unwrap();
        a.sid.cmp(&b.sid).then(popularity).then(a.id.as_bytes().cmp(b.id.as_bytes()))
    });
    sorted
}

/// The values of a column one by one, by the shapes that are public.
pub fn values_of(values: ColumnValues<'_>) -> Vec<Value> {
    match values {
        ColumnValues::Bool(bits) => (0..bits.len()).map(|at| bits.get(at).into()).collect(),
        ColumnValues::Int(values) => values.iter().map(|&value| value.into()).collect(),
        ColumnValues::Float(values) => values.iter().map(|&value| value.into()).collect(),
        ColumnValues::Text(values) => values.iter().map(Value::from).collect(),
        ColumnValues::Category { names, codes } => {
            codes.iter().map(|&code| names.get(code as usize).into()).collect()
        }
        ColumnValues::Labels(labels) => {
            let name = |&label: &u32| Value::from(labels.names().get(label as usize));
            (0..labels.len()).map(|at| labels.list(at).iter().map(name).collect()).collect()
        }
        ColumnValues::Json(values) => values.iter().map(|text| serde_json::from_str(text).unwrap()).collect(),
    }
}

/// Panics unless the catalog answers everything as the records say.
pub fn check(catalog: &Catalog, records: &[ItemRecord]) {
    assert_eq!(catalog.len(), records.len());
    for (t, name) in catalog.types().iter().enumerate() {
        let t = TypeId(t as u16);
        let expected = by_rank(records, name);
        assert_eq!(catalog.index(t).items(), expected.len(), "{name}");
        for (rank, record) in expected.iter().enumerate() {
            let rank = Rank(rank as u32);
            let item = catalog.item(t, rank);
            assert_eq!(item.id(), record.id);
            assert_eq!(item.codes(), record.sid, "{}", record.id);
            assert_eq!(item.title(), record.title.as_deref(), "{}", record.id);
            assert_eq!(item.popularity(), record.popularity, "{}", record.id);
            assert_eq!(catalog.find(&record.id), Some((t, rank)), "{}", record.id);
        }
        let ids: Vec<&str> = expected.iter().map(|record| record.id.as_str()).collect();
        let found = (0..ids.len()).map(|rank| Some((t, Rank(rank as u32)))).collect::<Vec<_>>();
        assert_eq!(catalog.find_all(&ids), found);
        check_columns(catalog, t, &expected);
    }
}

fn check_columns(catalog: &Catalog, t: TypeId, expected: &[&ItemRecord]) {
    for name in ["on", "blurb", "adult", "year", "big", "score", "creator", "genres", "extra", "none", "rare"]
    {
        let given: Vec<Option<&Value>> = expected.iter().map(|record| record.attributes.get(name)).collect();
        let Some(column) = catalog.column(t, name) else {
            assert!(given.iter().all(Option::is_none), "no column {name}");
            continue;
        };
        assert_eq!(column.len(), expected.len());
        let is_float = matches!(column.values(), ColumnValues::Float(_));
        let as_stored = |value: &Value| if is_float { json!(value.as_f64()) } else { value.clone() };
        let present: Vec<Value> = given.iter().flatten().map(|value| as_stored(value)).collect();
        assert_eq!(values_of(column.values()), present, "{name}");
        assert_eq!(column.present().is_none(), present.len() == expected.len(), "{name}");
        for (rank, given) in given.iter().enumerate() {
            if let Some(bits) = column.present() {
                assert_eq!(bits.get(rank), given.is_some(), "{name} of rank {rank}");
            }
            let value = catalog.item(t, Rank(rank as u32)).attribute(name);
            assert_eq!(value, given.map(as_stored), "{name} of rank {rank}");
        }
    }
}
