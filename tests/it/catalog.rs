//! The catalog room against plain models of itself: trie and masks against sets, sources by table.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::json;
use sidereal::catalog::{
    Bitmap, Catalog, CatalogBuilder, Entries, ItemRecord, Layout, LayoutSpec, Mask, Node, OnError, TypeIndex,
    TypeSpec, read_jsonl, read_jsonl_report, synthetic,
};
use sidereal::ids::{Rank, SidIndex, TokenId, TypeId};

/// Codebooks and rows of codes; codes of one case are drawn from a handful, so that levels are skewed and SIDs collide.
fn rows() -> impl Strategy<Value = (Vec<usize>, Vec<Vec<u16>>)> {
    let codebook = prop_oneof![Just(1), Just(2), 3..40usize, Just(2048), Just(65_536)];
    prop::collection::vec(codebook, 1..=8).prop_flat_map(|codebooks| {
        let row: Vec<BoxedStrategy<u16>> = codebooks
            .iter()
            .map(|&codes| {
                let last = (codes - 1) as u16;
                prop_oneof![4 => 0..=last.min(2), 1 => Just(last), 1 => 0..=last].boxed()
            })
            .collect();
        (Just(codebooks), prop::collection::vec(row, 0..300))
    })
}

/// The children of a prefix: code, and the range of distinct SIDs below.
fn children_of(sids: &[Vec<u16>], prefix: &[u16]) -> Vec<(u16, std::ops::Range<u32>)> {
    let mut children: BTreeMap<u16, std::ops::Range<u32>> = BTreeMap::new();
    for (at, sid) in sids.iter().enumerate().filter(|(_, sid)| sid.starts_with(prefix)) {
        let range = children.entry(sid[prefix.len()]).or_insert(at as u32..0);
        range.end = at as u32 + 1;
    }
    children.into_iter().collect()
}

/// Compares the subtree below `node` with the sorted distinct `sids` and counts the nodes of each level.
fn compare(index: &TypeIndex, sids: &[Vec<u16>], node: Node, prefix: &mut Vec<u16>, nodes: &mut [usize]) {
    let level = prefix.len();
    if level == index.levels() {
        assert_eq!(node.end, node.first + 1, "the node of a whole SID");
        assert_eq!(sids[node.first as usize], *prefix);
        return;
    }
    let expected = children_of(sids, prefix);
    let found: Vec<_> = index.children(level, node).collect();
    assert_eq!(
        found.iter().map(|c| (c.code, c.sids.clone())).collect::<Vec<_>>(),
        expected,
        "below {prefix:?}"
    );
    let mut visited = Vec::new();
    index.for_each_child(level, node, |child| visited.push(child));
    assert_eq!(visited, found, "below {prefix:?}");
    for child in found {
        assert_eq!(index.child(level, node, child.code).as_ref(), Some(&child));
        assert_eq!(index.sids_below(level + 1, child.node), child.sids);
        nodes[level] += 1;
        prefix.push(child.code);
        compare(index, sids, child.node, prefix, nodes);
        prefix.pop();
    }
    for code in [0, 1, 2, 7, u16::MAX] {
        let exists = expected.iter().any(|&(known, _)| known == code);
        assert_eq!(index.child(level, node, code).is_some(), exists, "code {code} below {prefix:?}");
    }
}

fn check_index(codebooks: &[usize], rows: &[Vec<u16>]) {
    let tuples: Vec<u16> = rows.concat();
    let popularity = |row: u32| row * 7 % 5;
    let (index, order) =
        TypeIndex::build(codebooks, &tuples, |a, b| popularity(b).cmp(&popularity(a))).unwrap();
    let mut expected: Vec<u32> = (0..rows.len() as u32).collect();
    expected.sort_by_key(|&row| (&rows[row as usize], std::cmp::Reverse(popularity(row)), row));
    assert_eq!(order, expected);
    let sids: Vec<Vec<u16>> = rows.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect();
    assert_eq!((index.items(), index.sids()), (rows.len(), sids.len()));
    assert_eq!(index.has_collisions(), rows.len() > sids.len());
    assert_eq!(index.sids_below(0, index.root()), 0..sids.len() as u32);
    let mut nodes = vec![0; codebooks.len()];
    compare(&index, &sids, index.root(), &mut Vec::new(), &mut nodes);
    for (level, &nodes) in nodes.iter().enumerate() {
        assert_eq!((index.nodes(level), index.codebook(level)), (nodes, codebooks[level]), "level {level}");
        let explicit = matches!(index.entries(level), Entries::Explicit { .. });
        assert_eq!(
            explicit,
            4 * nodes <= 3 * sids.len(),
            "level {level}: {nodes} nodes, {} SIDs",
            sids.len()
        );
    }
    for (sid, codes) in sids.iter().enumerate() {
        let at = SidIndex(sid as u32);
        assert_eq!((index.find(codes), &index.codes(at)), (Some(at), codes));
        assert!(index.ranks(at).all(|rank| rows[order[rank as usize] as usize] == *codes));
        assert!(index.ranks(at).all(|rank| index.sid_of(Rank(rank)) == at));
    }
    let ranks: Vec<u32> = (0..sids.len() as u32).flat_map(|sid| index.ranks(SidIndex(sid))).collect();
    assert_eq!(ranks, (0..rows.len() as u32).collect::<Vec<_>>());
    assert_eq!(index.find(&[]), None);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_trie_is_that_of_the_distinct_sids((codebooks, rows) in rows()) {
        check_index(&codebooks, &rows);
    }

    #[test]
    fn a_mask_is_a_set_of_items((codebooks, rows) in rows(), steps in prop::collection::vec((0..5u8, prop::collection::vec(0..300u32, 0..40)), 0..5)) {
        let index = TypeIndex::from_tuples(&codebooks, &rows.concat()).unwrap();
        let mut mask = Mask::all(&index);
        let mut alive: BTreeSet<u32> = (0..rows.len() as u32).collect();
        check_mask(&index, &mask, &alive);
        for (kind, numbers) in steps {
            let ranks: Vec<Rank> = numbers.iter().map(|&rank| Rank(rank)).collect();
            match kind {
                0 => {
                    mask = mask.restricted_to(&index, &ranks);
                    alive.retain(|rank| numbers.contains(rank));
                }
                1 => {
                    mask = Mask::allow(&index, &ranks);
                    alive = numbers.iter().copied().filter(|&rank| (rank as usize) < rows.len()).collect();
                }
                2 => {
                    mask = mask.excluding(&index, &ranks);
                    alive.retain(|rank| !numbers.contains(rank));
                }
                3 => {
                    let sids: Vec<SidIndex> = numbers.iter().map(|&sid| SidIndex(sid)).collect();
                    mask = mask.excluding_sids(&index, &sids);
                    alive.retain(|&rank| !sids.contains(&index.sid_of(Rank(rank))));
                }
                _ => {
                    let chosen: BTreeSet<u32> = numbers.iter().flat_map(|&n| [n, n + 64, n * 3]).collect();
                    mask = Mask::from_bitmap(&index, Bitmap::from_fn(rows.len(), |rank| chosen.contains(&(rank as u32))));
                    alive = chosen.into_iter().filter(|&rank| (rank as usize) < rows.len()).collect();
                }
            }
            check_mask(&index, &mask, &alive);
        }
    }
}

fn check_mask(index: &TypeIndex, mask: &Mask, alive: &BTreeSet<u32>) {
    let sids: BTreeSet<u32> = alive.iter().map(|&rank| index.sid_of(Rank(rank)).0).collect();
    for rank in 0..index.items() as u32 {
        assert_eq!(mask.item_alive(index, Rank(rank)), alive.contains(&rank), "rank {rank} of {mask:?}");
    }
    let bound = index.sids() as u32;
    for first in (0..=bound).step_by(5) {
        for end in [first, first + 1, first + 2, first + 17, bound].into_iter().filter(|&end| end <= bound) {
            if first <= end {
                let part = mask.part(first..end);
                for range in (first..end).step_by(3).map(|at| at..end.min(at + 1 + at % 6)) {
                    let expected = sids.range(range.clone()).next().is_some();
                    assert!(expected || !part.is_all(), "{range:?} of {mask:?}");
                    assert_eq!(part.alive(&range), expected, "{range:?} of {mask:?}");
                    let sure = (0..16).all(|i| {
                        part.maybe_alive(range.start) >> i & 1 == 1 || !sids.contains(&(range.start + i))
                    });
                    assert!(sure, "{} to {} + 15 of {mask:?}", range.start, range.start);
                }
                let mut found = Vec::new();
                let all: Result<(), ()> = part.try_for_each(|sid| {
                    found.push(sid);
                    Ok(())
                });
                assert_eq!(
                    (all, found),
                    (Ok(()), sids.range(first..end).copied().collect()),
                    "{first}..{end} of {mask:?}"
                );
                let count = sids.range(first..end).count();
                assert_eq!(part.count(), count, "{first}..{end} of {mask:?}");
                assert_eq!(mask.count(first..end), count, "{first}..{end} of {mask:?}");
                assert_eq!(mask.alive(first..end), count > 0, "{first}..{end} of {mask:?}");
            }
        }
    }
    for sid in 0..bound {
        let expected: Vec<u32> = index.ranks(SidIndex(sid)).filter(|rank| alive.contains(rank)).collect();
        let found: Vec<u32> = mask.alive_ranks(index, SidIndex(sid)).map(|rank| rank.0).collect();
        assert_eq!(found, expected, "SID {sid} of {mask:?}");
        assert_eq!(mask.first_alive(index, SidIndex(sid)), expected.first().map(|&rank| Rank(rank)));
    }
    // `is_all` promises, but need not notice that everything allowed is everything.
    assert!(!mask.is_all() || alive.len() == index.items());
}

#[test]
fn wide_and_skewed_tries() {
    // Runs far beyond a gallop's first step, next to runs of one.
    let skewed: Vec<Vec<u16>> = (0..5000u32)
        .map(|row| vec![u16::from(row > 4000), if row % 50 == 0 { (row / 50) as u16 } else { 7 }, row as u16])
        .collect();
    check_index(&[2, 128, 65_536], &skewed);
    // 16 + 16 + ... bits: beyond a 128-bit key.
    let wide: Vec<Vec<u16>> =
        (0..500u16).map(|row| (0..8).map(|level| row.wrapping_mul(257 << level)).collect()).collect();
    check_index(&[65_536; 8], &wide);
    check_index(&[1], &vec![vec![0]; 40]);
}

#[test]
fn an_empty_type_has_no_children() {
    let index = TypeIndex::from_tuples(&[4, 4], &[]).unwrap();
    assert_eq!(index.children(0, index.root()).count(), 0);
    assert_eq!(index.find(&[0, 0]), None);
    let mask = Mask::all(&index);
    assert!(!mask.alive(0..0) && mask.count(0..0) == 0 && mask.is_all());
}

#[test]
fn the_index_is_as_small_as_promised() {
    // Two columns and 10 bytes for each of at most 8,192 first codes (as much as ten million SIDs would pay in all).
    let index = synthetic::zipf(&[8192, 8192, 8192], 200_000, 0.0, 1).unwrap();
    let bytes_per_sid = index.bytes() as f64 / index.sids() as f64;
    assert!(bytes_per_sid < 4.0 + 6.0 * 8193.0 / 200_000.0 + 0.1, "{bytes_per_sid}");
    let index = synthetic::zipf(&[64; 8], 200_000, 0.0, 1).unwrap();
    assert!(index.bytes() as f64 / 200_000.0 < 16.1, "{}", index.bytes());
}

#[test]
fn indexing_refuses_what_is_out_of_bounds() {
    let message = |codebooks: &[usize], tuples: &[u16]| {
        TypeIndex::from_tuples(codebooks, tuples).unwrap_err().to_string()
    };
    assert_eq!(message(&[], &[]), "levels: 0 levels, expected 1 to 8");
    assert_eq!(message(&[1; 9], &[]), "levels: 9 levels, expected 1 to 8");
    assert_eq!(message(&[4, 0], &[]), "levels[1]: a codebook of 0 codes, expected 1 to 65536");
    assert_eq!(message(&[65_537], &[]), "levels[0]: a codebook of 65537 codes, expected 1 to 65536");
    assert_eq!(message(&[4, 4], &[1, 2, 3]), "tuples: 3 codes do not divide into SIDs of 2 levels");
    assert_eq!(message(&[4, 3], &[0, 0, 3, 3]), "tuples[1][1]: code 3, but level 1 has 3 codes");
}

fn types() -> Vec<TypeSpec> {
    let spec = |name: &str, levels: &[usize]| TypeSpec {
        name: name.into(),
        levels: levels.to_vec(),
        token: format!("<{name}_{{level}}_{{code}}>"),
    };
    vec![spec("book", &[4, 4]), spec("film", &[3])]
}

fn record(id: &str, item_type: &str, sid: &[u16], popularity: f64) -> ItemRecord {
    ItemRecord {
        id: id.into(),
        item_type: item_type.into(),
        sid: sid.to_vec(),
        popularity,
        ..ItemRecord::default()
    }
}

fn build(records: &[ItemRecord]) -> Catalog {
    let mut builder = CatalogBuilder::new(&types());
    records.iter().for_each(|record| builder.push(record.clone()).unwrap());
    builder.build().unwrap()
}

#[test]
fn items_of_one_sid_are_ordered_by_popularity_then_id() {
    let mut records = vec![
        record("b", "book", &[1, 1], 5.0),
        record("a", "book", &[1, 1], 5.0),
        record("z", "book", &[1, 1], 9.0),
        record("c", "book", &[1, 1], -0.0),
        record("B", "book", &[1, 1], 0.0),
        record("f", "film", &[2], 1.0),
        record("é", "book", &[0, 3], 0.0),
    ];
    records[2].attributes = json!({"year": 1990, "seen": null}).as_object().unwrap().clone();
    let catalog = build(&records);
    let book = TypeId(0);
    let ids: Vec<&str> =
        (0..catalog.index(book).items() as u32).map(|rank| catalog.item(book, Rank(rank)).id()).collect();
    assert_eq!(ids, ["é", "z", "a", "b", "B", "c"]);
    for record in &records {
        let (t, rank) = catalog.find(&record.id).unwrap();
        let item = catalog.item(t, rank);
        assert_eq!((item.id(), item.codes()), (record.id.as_str(), record.sid.clone()));
        assert_eq!(catalog.types()[item.item_type().index()], record.item_type);
        assert_eq!(item.attribute("year"), record.attributes.get("year").cloned(), "{}", record.id);
    }
    assert_eq!(catalog.find("x"), None);
    assert!(catalog.has_attribute("year") && !catalog.has_attribute("seen"));
    assert_eq!(catalog.type_id("film"), Some(TypeId(1)));
    records.reverse();
    assert_eq!(build(&records).snapshot(), catalog.snapshot(), "the order of rows is no content");
}

#[test]
fn a_snapshot_is_named_after_all_of_its_contents() {
    let base = [record("a", "book", &[0, 0], 1.0), record("b", "book", &[0, 1], 1.0)];
    let name = |change: &dyn Fn(&mut Vec<ItemRecord>)| {
        let mut records = base.to_vec();
        change(&mut records);
        build(&records).snapshot().to_owned()
    };
    let names: BTreeSet<String> = [
        name(&|_| ()),
        name(&|records| records[0].id = "c".into()),
        name(&|records| records[0].title = Some(String::new())),
        name(&|records| records[0].title = Some("t".into())),
        name(&|records| records[1].title = Some("t".into())),
        name(&|records| records[0].popularity = 2.0),
        name(&|records| records[0].sid = vec![0, 2]),
        name(&|records| records[1].sid = vec![0, 0]),
        name(&|records| drop(records.pop())),
        name(&|records| drop(records[0].attributes.insert("x".into(), json!(1)))),
        name(&|records| drop(records[0].attributes.insert("x".into(), json!(1.0)))),
        name(&|records| drop(records[0].attributes.insert("x".into(), json!(["1"])))),
        name(&|records| drop(records[1].attributes.insert("x".into(), json!(1)))),
        name(&|records| drop(records[0].attributes.insert("y".into(), json!(1)))),
    ]
    .into();
    assert_eq!(names.len(), 14);
    assert!(names.iter().all(|name| name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit())));
}

#[test]
fn a_refused_item_leaves_nothing_behind() {
    let mut builder = CatalogBuilder::new(&types());
    let mut bad = record("a", "book", &[0, 4], 1.0);
    bad.attributes.insert("x".into(), json!(1));
    assert_eq!(
        builder.push(bad).unwrap_err().to_string(),
        "sid[1]: code 4, but level 1 of type `book` has 4 codes"
    );
    let nan = builder.push(record("a", "film", &[0], f64::NAN)).unwrap_err();
    assert_eq!(nan.to_string(), "popularity: NaN is not a finite number");
    let long = builder.push(record(&"a".repeat((1 << 20) + 1), "film", &[0], 0.0)).unwrap_err();
    assert_eq!(long.to_string(), "id: 1048577 bytes, at most 1048576");
    let mut many = record("a", "film", &[0], 0.0);
    many.attributes = (0..257).map(|at| (format!("x{at}"), json!(at))).collect();
    assert!(builder.push(many).unwrap_err().to_string().contains("more than 256 attributes"));
    builder.push(record("a", "book", &[0, 3], 1.0)).unwrap();
    assert_eq!(builder.len(), 1);
    let catalog = builder.build().unwrap();
    assert_eq!((catalog.len(), catalog.attributes().len()), (1, 0));
}

#[test]
fn many_ids_are_found() {
    let spec =
        [TypeSpec { name: "item".into(), levels: vec![256; 3], token: "<item_{level}_{code}>".into() }];
    let catalog = synthetic::uniform(&spec, 20_000, 3).unwrap();
    assert_eq!(catalog.index(TypeId(0)).sids(), 20_000);
    for number in 0..20_000u32 {
        assert_eq!(catalog.find(&format!("item:{number}")), Some((TypeId(0), Rank(number))));
    }
    assert_eq!(catalog.find("item:20000"), None);
}

/// Writes `text` into a file and reads it as a catalog.
fn read(text: &[u8], on_error: OnError) -> sidereal::Result<(Catalog, sidereal::catalog::Report)> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("items.jsonl");
    std::fs::write(&path, text).unwrap();
    read_jsonl_report(&[&path], &types(), on_error, &mut |_, _| ())
}

#[test]
fn bad_lines_are_named_with_what_is_wrong() {
    let good = r#"{"id": "a", "type": "book", "sid": [0, 1]}"#;
    let table = [
        (r#"{"id": "b", "type": "book", "sid": [0, 1]"#, "column 41: EOF while parsing an object"),
        ("nonsense", "column 2: expected ident"),
        ("[1, 2]", "invalid type: sequence, expected a map"),
        (r#"{"type": "book", "sid": [0, 1]}"#, "id: missing"),
        (r#"{"id": "", "type": "book", "sid": [0, 1]}"#, "id: an item's id must not be empty"),
        (r#"{"id": 5, "type": "book", "sid": [0, 1]}"#, "id: expected a string, found a number"),
        (r#"{"id": "a", "type": "film", "sid": [1]}"#, "id: `a` is the id of an item before"),
        (r#"{"id": "b", "sid": [0, 1]}"#, "type: no type given, the layout has `book`, `film`"),
        (
            r#"{"id": "b", "type": "song", "sid": [0]}"#,
            "type: unknown type `song`, the layout has `book`, `film`",
        ),
        (r#"{"id": "b", "type": "book"}"#, "sid: missing"),
        (r#"{"id": "b", "type": "book", "sid": 3}"#, "sid: expected a list of codes, found a number"),
        (r#"{"id": "b", "type": "book", "sid": [0]}"#, "sid: 1 codes, but type `book` has 2 levels"),
        (
            r#"{"id": "b", "type": "book", "sid": [0, 4]}"#,
            "sid[1]: code 4, but level 1 of type `book` has 4 codes",
        ),
        (
            r#"{"id": "b", "type": "book", "sid": [0, -1]}"#,
            "sid[1]: expected a code from 0 to 65535, found -1",
        ),
        (
            r#"{"id": "b", "type": "book", "sid": [0, 1.5]}"#,
            "sid[1]: expected a code from 0 to 65535, found 1.5",
        ),
        (
            r#"{"id": "b", "type": "book", "sid": [99999, 1]}"#,
            "sid[0]: expected a code from 0 to 65535, found 99999",
        ),
        (r#"{"id": "b", "type": "book", "sid": [null, 1]}"#, "sid[0]: expected a code, found null"),
        (r#"{"id": "b", "type": "book", "sid": [0, 1], "popularity": "9"}"#, "popularity: expected a number"),
        (
            r#"{"id": "b", "type": "book", "sid": [0, 1], "title": []}"#,
            "title: expected a string, found a list",
        ),
    ];
    for (bad, expected) in table {
        let text = format!("{good}\n\n{bad}\n{}\n", good.replace("\"a\"", "\"z\""));
        let message = read(text.as_bytes(), OnError::Fail).unwrap_err().to_string();
        assert!(message.contains("items.jsonl: line 3: ") && message.contains(expected), "{bad}: {message}");
        let (catalog, report) = read(text.as_bytes(), OnError::Skip).unwrap();
        assert_eq!((catalog.len(), report.items, report.skipped), (2, 2, 1), "{bad}");
        // The two readings used folders of their own.
        let place = |message: &str| message.split_once("items.jsonl").map(|(_, place)| place.to_owned());
        assert_eq!(report.messages.len(), 1, "{bad}");
        assert_eq!(place(&report.messages[0]), place(&message), "{bad}");
    }
}

#[test]
fn sources_are_read_across_pieces_and_files() {
    let folder = tempfile::tempdir().unwrap();
    let files = [folder.path().join("a.jsonl"), folder.path().join("b.jsonl")];
    let line = |number: u32| {
        format!(
            "{{\"id\": \"{number}\", \"type\": \"book\", \"sid\": [{}, 0], \"text\": \"{}\"}}",
            number % 4,
            "é".repeat(100)
        )
    };
    // Three pieces with lines across their borders, a byte order mark, line ends of both kinds, none at the end.
    let first = (0..10_000).map(line).collect::<Vec<_>>().join("\r\n");
    std::fs::write(&files[0], format!("\u{feff}{first}")).unwrap();
    std::fs::write(&files[1], (10_000..12_000).map(line).collect::<Vec<_>>().join("\n") + "\n\n").unwrap();
    let paths: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    let mut steps = Vec::new();
    let catalog = read_jsonl(&paths, &types(), &mut |done, total| steps.push((done, total))).unwrap();
    assert_eq!(catalog.len(), 12_000);
    let bytes: u64 = files.iter().map(|path| std::fs::metadata(path).unwrap().len()).sum();
    assert!(steps.len() > 3 && steps.windows(2).all(|pair| pair[0].0 <= pair[1].0));
    assert_eq!(steps.last(), Some(&(bytes, bytes)));
    let missing =
        read_jsonl(&[Path::new("nowhere.jsonl")], &types(), &mut |_, _| ()).unwrap_err().to_string();
    assert!(missing.starts_with("nowhere.jsonl: "), "{missing}");
    let endless = read(&vec![b'['; 3 << 20], OnError::Skip).unwrap_err().to_string();
    assert!(endless.contains("line 1: more than 1048576 bytes"), "{endless}");
    let (_, report) = read(&b"{}\n".repeat(25), OnError::Skip).unwrap();
    assert_eq!((report.skipped, report.messages.len()), (25, 10));
    assert!(report.messages[9].ends_with("items.jsonl: line 10: id: missing"), "{}", report.messages[9]);
}

#[test]
fn the_real_catalog_reads_back() {
    let shared = std::env::var_os("SIDEREAL_SHARED").map(PathBuf::from);
    let shared = shared.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"));
    let folder = shared.join("models/grounded-small");
    if !folder.is_dir() {
        println!("skipped: no folder {}", folder.display());
        return;
    }
    let spec = LayoutSpec::read(folder.join("sid_layout.json")).unwrap();
    let tokenizer: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("tokenizer.json")).unwrap()).unwrap();
    let tokens: Vec<(&str, TokenId)> = tokenizer["added_tokens"]
        .as_array()
        .unwrap()
        .iter()
        .map(|token| (token["content"].as_str().unwrap(), TokenId(token["id"].as_u64().unwrap() as u32)))
        .collect();
    let detected = Layout::detect(tokens.iter().copied()).unwrap().unwrap();
    assert_eq!(detected, spec, "the names of the tokens tell what the file says");
    let lookup: BTreeMap<&str, TokenId> = tokens.into_iter().collect();
    let layout = Layout::resolve(&spec, |token| lookup.get(token).copied()).unwrap();
    assert!(layout.types.iter().all(|t| t.levels.iter().all(|level| level.contiguous().is_some())));
    let path = folder.join("catalog.jsonl");
    let catalog = read_jsonl(&[&path], &layout.specs(), &mut |_, _| ()).unwrap();
    assert_eq!(catalog.attributes(), ["creator", "description", "genres", "year"]);
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(catalog.len(), text.lines().count());
    for line in text.lines() {
        let expected: serde_json::Value = serde_json::from_str(line).unwrap();
        let (t, rank) = catalog.find(expected["id"].as_str().unwrap()).unwrap();
        let item = catalog.item(t, rank);
        assert_eq!(item.title(), expected["title"].as_str());
        assert_eq!(json!(item.codes()), expected["sid"]);
        assert_eq!(Some(item.popularity()), expected["popularity"].as_f64());
        for name in ["creator", "description", "year", "genres"] {
            let given = expected.get(name).filter(|value| !value.is_null()).cloned();
            assert_eq!(item.attribute(name), given, "{name} of {line}");
        }
    }
}
