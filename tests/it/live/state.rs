//! Adding, removing, denying, swapping and rolling back, without an engine.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sidereal::Error;
use sidereal::catalog::synthetic::tiny_records;
use sidereal::catalog::{ItemRecord, LiveCatalog, LiveLimits};

use super::model::Model;
use super::{catalog_of, new_book};

fn live_of(records: Vec<ItemRecord>) -> Arc<LiveCatalog> {
    Arc::new(LiveCatalog::new(catalog_of(records), LiveLimits::default()))
}

fn ids(live: &Model, random: &mut StdRng, most: usize) -> Vec<String> {
    let known: Vec<&String> = live.items.keys().collect();
    let pick = |random: &mut StdRng| match random.random_bool(0.9) && !known.is_empty() {
        true => known[random.random_range(0..known.len())].clone(),
        false => format!("nobody:{}", random.random_range(0..9)),
    };
    (0..random.random_range(0..=most)).map(|_| pick(random)).collect()
}

#[test]
fn any_order_of_changes_leaves_what_was_asked_for() {
    for seed in 0..40 {
        let mut random = StdRng::seed_from_u64(seed);
        let records: Vec<ItemRecord> =
            tiny_records().into_iter().filter(|_| random.random_bool(0.3)).collect();
        let pool = tiny_records();
        let live = live_of(records.clone());
        let mut model = Model::new(records.clone());
        for _ in 0..25 {
            match random.random_range(0..11) {
                0..=3 => {
                    let mut added: Vec<ItemRecord> = Vec::new();
                    for _ in 0..random.random_range(1..8) {
                        let mut item = pool[random.random_range(0..pool.len())].clone();
                        // Another SID and rank than the pool's, so that replacing shows.
                        item.sid.clone_from(&pool[random.random_range(0..pool.len())].sid);
                        item.popularity = f64::from(random.random_range(0..5u8));
                        item.sid.truncate(0);
                        let like: Vec<&ItemRecord> =
                            pool.iter().filter(|other| other.item_type == item.item_type).collect();
                        item.sid.clone_from(&like[random.random_range(0..like.len())].sid);
                        if added.iter().all(|other| other.id != item.id) {
                            added.push(item);
                        }
                    }
                    live.add(added.clone()).unwrap();
                    model.items.extend(added.into_iter().map(|item| (item.id.clone(), item)));
                }
                4..=5 => {
                    let gone = ids(&model, &mut random, 6);
                    let kept = model.items.keys().filter(|id| !gone.contains(id)).count();
                    if kept == 0 {
                        assert!(live.remove(&gone).is_err());
                        continue;
                    }
                    let change = live.remove(&gone).unwrap();
                    let before = model.items.len();
                    model.items.retain(|id, _| !gone.contains(id));
                    assert_eq!(change.changed, before - model.items.len());
                }
                6 => {
                    let denied = ids(&model, &mut random, 5);
                    live.deny(&denied).unwrap();
                    model.denied.extend(denied);
                }
                7 => {
                    let some: Vec<String> =
                        model.denied.iter().filter(|_| random.random_bool(0.5)).cloned().collect();
                    live.allow(&some).unwrap();
                    model.denied.retain(|id| !some.contains(id));
                }
                8 => {
                    let mut values: Vec<(String, f64)> = Vec::new();
                    for id in ids(&model, &mut random, 20) {
                        if values.iter().all(|(known, _)| *known != id) {
                            values.push((id, f64::from(random.random_range(0..9u8))));
                        }
                    }
                    live.set_popularity(&values).unwrap();
                    for (id, value) in values {
                        if let Some(item) = model.items.get_mut(&id) {
                            item.popularity = value;
                        }
                    }
                }
                9 => {
                    let changes = live.stats().added + live.stats().removed;
                    live.compact().unwrap();
                    let stats = live.stats();
                    assert_eq!((stats.added, stats.removed), (0, 0));
                    // Without changes nothing is made, and refreshed popularities stay beside the order of ranks.
                    if changes > 0 {
                        let expected = catalog_of(model.items.values().cloned());
                        assert_eq!(live.view().base().snapshot(), expected.snapshot());
                    }
                }
                _ => {
                    let carry = random.random_bool(0.5);
                    let before = model.items.clone();
                    let (added, removed) = (live.stats().added, live.stats().removed);
                    let change = live.swap(catalog_of(records.clone()), carry).unwrap();
                    model.items = Model::new(records.clone()).items;
                    if carry {
                        // What was done to the older snapshot is done to this one.
                        assert_eq!((change.changed, change.discarded), (added + removed, 0));
                        let again = Model { items: before, denied: model.denied.clone() };
                        model.items.retain(|id, _| again.items.contains_key(id) || !was_removed(&live, id));
                        for (id, item) in again.items {
                            if live.view().delta().is_some_and(|delta| delta.find(&id).is_some()) {
                                model.items.insert(id, item);
                            }
                        }
                    } else {
                        assert_eq!((change.changed, change.discarded), (0, added + removed));
                    }
                }
            }
            let allow = random.random_bool(0.5).then(|| ids(&model, &mut random, 30));
            let exclude = random.random_bool(0.5).then(|| ids(&model, &mut random, 30));
            model.assert_seen(&live, allow.as_deref(), exclude.as_deref());
            model.assert_seen(&live, None, None);
        }
    }
}

/// Whether an id is in the snapshot and dead there, and not denied.
fn was_removed(live: &LiveCatalog, id: &str) -> bool {
    let view = live.view();
    let Some((t, rank)) = view.base().find(id) else { return false };
    let alive = view.alive(&[t], None, None, None);
    !alive.types[0].1.item_alive(view.base().index(t), rank) && !live.deny_list().contains(id)
}

#[test]
fn names_tell_states_apart() {
    let live = live_of(tiny_records());
    let mut names = vec![live.view().name().to_owned()];
    live.add(vec![new_book("a", [0, 0, 0], 1.0)]).unwrap();
    names.push(live.view().name().to_owned());
    live.add(vec![new_book("b", [0, 0, 1], 1.0)]).unwrap();
    names.push(live.view().name().to_owned());
    live.remove(&["a"]).unwrap();
    names.push(live.view().name().to_owned());
    live.swap(catalog_of(tiny_records()), false).unwrap();
    assert_eq!(live.view().name(), names[0], "the same items again");
    live.add(vec![new_book("a", [0, 0, 3], 1.0)]).unwrap();
    assert!(!names.contains(&live.view().name().to_owned()), "{} is used", live.view().name());
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 4);
}

#[test]
fn what_cannot_be_added_is_refused_by_place_and_changes_nothing() {
    let live = live_of(tiny_records());
    let before = live.view().name().to_owned();
    let good = new_book("a", [0, 0, 0], 1.0);
    let refused = |bad: ItemRecord, place: &str, words: &str| {
        let error = live.add(vec![good.clone(), bad]).unwrap_err();
        assert!(
            matches!(&error, Error::Invalid { field, message } if field == place && message.contains(words)),
            "{error}"
        );
        assert_eq!(live.view().name(), before);
    };
    refused(good.clone(), "items[1].id", "`a` is the id of an item before");
    refused(ItemRecord { id: String::new(), ..good.clone() }, "items[1].id", "must not be empty");
    refused(
        ItemRecord { id: "b".into(), item_type: "song".into(), ..good.clone() },
        "items[1].type",
        "unknown type `song`",
    );
    refused(ItemRecord { id: "b".into(), sid: vec![1, 2], ..good.clone() }, "items[1].sid", "");
    refused(ItemRecord { id: "b".into(), sid: vec![1, 2, 8], ..good.clone() }, "items[1].sid[2]", "8");
    refused(
        ItemRecord { id: "b".into(), popularity: f64::NAN, ..good.clone() },
        "items[1].popularity",
        "finite",
    );
    let mut other_kind = new_book("b", [0, 0, 0], 1.0);
    other_kind.attributes.insert("year".into(), "soon".into());
    let error = live.add(vec![other_kind]).unwrap_err();
    assert!(
        matches!(&error, Error::Invalid { field, message } if field == "items[0].year" && message.contains("integers")),
        "{error}"
    );
    assert_eq!(live.view().name(), before);
}

#[test]
fn an_emptied_catalog_is_refused() {
    let live = live_of(tiny_records());
    let all: Vec<String> = tiny_records().into_iter().map(|item| item.id).collect();
    let error = live.remove(&all).unwrap_err().to_string();
    assert!(error.contains("nothing would be left"), "{error}");
    live.remove(&all[1..]).unwrap();
    live.add(vec![new_book("a", [0, 0, 0], 1.0)]).unwrap();
    live.remove(&all[..1]).unwrap();
    assert!(live.remove(&["a"]).is_err());
    assert!(live.swap(catalog_of([]), false).unwrap_err().to_string().contains("no items"));
}

#[test]
fn bounds_on_changes_hold() {
    let limits = LiveLimits { changes: 3, compact_at: 1000, denied: 2 };
    let live = Arc::new(LiveCatalog::new(catalog_of(tiny_records()), limits));
    live.add(vec![new_book("a", [0, 0, 0], 1.0), new_book("b", [0, 0, 1], 1.0)]).unwrap();
    live.remove(&["book:1"]).unwrap();
    let error = live.remove(&["book:2"]).unwrap_err().to_string();
    assert!(error.contains("4 items added and removed") && error.contains("compact"), "{error}");
    live.compact().unwrap();
    live.remove(&["book:2"]).unwrap();
    live.deny(&["a", "a", "b"]).unwrap();
    assert!(live.deny(&["a", "c"]).unwrap_err().to_string().contains("more than the 2 allowed"));
    assert!(!live.deny_list().contains("c"));
    assert_eq!(live.deny(&["a"]).unwrap().unknown, 1);
}

#[test]
fn many_changes_are_compacted_in_the_background() {
    let limits = LiveLimits { compact_at: 5, ..LiveLimits::default() };
    let live = Arc::new(LiveCatalog::new(catalog_of(tiny_records()), limits));
    let mut model = Model::new(tiny_records());
    for number in 0..40u16 {
        let book = new_book(&format!("new:{number}"), [number % 8, number / 8, 3], f64::from(number));
        model.items.insert(book.id.clone(), book.clone());
        live.add(vec![book]).unwrap();
        model.assert_seen(&live, None, None);
    }
    let start = Instant::now();
    while live.stats().compactions == 0 || live.stats().resident > 1 {
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", live.stats());
        std::thread::sleep(Duration::from_millis(2));
    }
    model.assert_seen(&live, None, None);
    assert!(live.stats().most_resident <= 2, "{:?}", live.stats());
}

#[test]
fn at_most_two_snapshots_are_resident() {
    let live = live_of(tiny_records());
    let first = live.view();
    live.swap(catalog_of(tiny_records().into_iter().skip(1)), false).unwrap();
    let name = live.view().name().to_owned();
    // A third waits for the request that holds the first.
    let swapper = {
        let live = live.clone();
        std::thread::spawn(move || live.swap(catalog_of(tiny_records().into_iter().skip(2)), false))
    };
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(live.view().name(), name, "it waits");
    assert!(!swapper.is_finished());
    // Meanwhile items change.
    live.deny(&["book:9"]).unwrap();
    drop(first);
    swapper.join().unwrap().unwrap();
    assert_eq!(live.view().base().len(), tiny_records().len() - 2);
    assert_eq!(live.stats().most_resident, 2);
}

#[test]
fn rolling_back_brings_the_snapshot_before() {
    let live = live_of(tiny_records());
    let name = live.view().name().to_owned();
    assert!(live.rollback().unwrap_err().to_string().contains("no snapshot before"));
    let held = live.view();
    live.swap(catalog_of(tiny_records().into_iter().skip(1)), false).unwrap();
    live.add(vec![new_book("a", [0, 0, 0], 1.0)]).unwrap();
    // Still resident.
    assert_eq!(live.rollback().unwrap().discarded, 1);
    assert_eq!(live.view().name(), name);
    // And forth again, from memory that is still held, or not at all: it has no file.
    drop(held);
    settled(&live);
    assert!(live.rollback().unwrap_err().to_string().contains("made in memory"));
    assert_eq!(live.view().name(), name);
}

#[test]
fn snapshots_of_other_types_are_refused() {
    let live = live_of(tiny_records());
    let mut types = sidereal::catalog::synthetic::tiny_layout().types;
    types[0].levels[2] = 9;
    let other = sidereal::catalog::synthetic::uniform(&types, 30, 1).unwrap();
    let error = live.swap(Arc::new(other), false).unwrap_err().to_string();
    assert!(error.contains("book [8, 8, 9]") && error.contains("book [8, 8, 8]"), "{error}");
}

/// Waits until one snapshot is left in memory.
fn settled(live: &LiveCatalog) {
    let start = Instant::now();
    while live.stats().resident > 1 {
        assert!(start.elapsed() < Duration::from_secs(5), "an old snapshot stays: {:?}", live.stats());
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn files_are_loaded_and_mapped_again() {
    let folder = tempfile::tempdir().unwrap();
    let paths = [0, 1].map(|skip| {
        let path = folder.path().join(format!("{skip}.catalog"));
        catalog_of(tiny_records().into_iter().skip(skip)).write(&path, &mut |_, _| {}).unwrap();
        path
    });
    let live = live_of(tiny_records().into_iter().skip(7).collect());
    let mut told = 0;
    for path in &paths {
        live.load(path, false, &mut |done, total| told = done * 100 / total).unwrap();
        assert_eq!(told, 100);
        settled(&live);
    }
    assert_eq!(live.view().base().len(), tiny_records().len() - 1);
    live.deny(&["book:3"]).unwrap();
    live.rollback().unwrap();
    settled(&live);
    assert_eq!(live.view().base().len(), tiny_records().len());
    assert_eq!(live.view().base().source_path(), Some(&*paths[0]));
    let mut model = Model::new(tiny_records());
    model.denied.insert("book:3".to_owned());
    model.assert_seen(&live, None, None);
    // And forth again.
    live.rollback().unwrap();
    assert_eq!(live.view().base().source_path(), Some(&*paths[1]));
    assert_eq!(live.stats().most_resident, 2);
}

#[test]
fn a_damaged_file_is_refused_and_the_running_snapshot_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("next.catalog");
    catalog_of(tiny_records().into_iter().skip(1)).write(&path, &mut |_, _| {}).unwrap();
    let sound = std::fs::read(&path).unwrap();
    let live = live_of(tiny_records());
    live.add(vec![new_book("a", [0, 0, 0], 1.0)]).unwrap();
    let before = live.stats();
    let mut random = StdRng::seed_from_u64(5);
    for _ in 0..200 {
        let mut bytes = sound.clone();
        if random.random_bool(0.3) {
            bytes.truncate(random.random_range(0..bytes.len()));
        } else {
            let at = random.random_range(0..bytes.len());
            bytes[at] ^= 1 << random.random_range(0..8);
        }
        std::fs::write(&path, &bytes).unwrap();
        let error = live.load(&path, false, &mut |_, _| {}).unwrap_err();
        assert!(matches!(&error, Error::File { path: place, .. } if *place == path), "{error}");
        assert_eq!(live.stats(), before);
    }
    std::fs::write(&path, &sound).unwrap();
    assert_eq!(live.load(&path, false, &mut |_, _| {}).unwrap().discarded, 1);
    assert!(live.load(&folder.path().join("none"), false, &mut |_, _| {}).is_err());
}
