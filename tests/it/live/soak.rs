//! Swaps, deny lists and single items, all changing under load.
//!
//! `SIDEREAL_SOAK_SWAPS` and `SIDEREAL_SOAK_REQUESTS` make it as long as wanted; `.ci/soak` runs 1,000 swaps under 100,000 requests.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use sidereal::catalog::ItemRecord;
use sidereal::catalog::synthetic::tiny_records;
use sidereal::engine::{AnswerPart, Engine, Event};

use super::{catalog_of, engine_of, request};

fn count(name: &str, default: usize) -> usize {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}: {text}")))
}

/// What each name of a view stands for.
type Truths = Mutex<HashMap<String, Arc<HashMap<String, Vec<u16>>>>>;

struct Load {
    engine: Engine,
    truths: Arc<Truths>,
    /// Denied ids, each with whether it is denied for good.
    denied: Arc<Mutex<HashSet<String>>>,
    left: Arc<AtomicU64>,
}

impl Load {
    /// Asks until enough was asked; returns how long each request took.
    fn run(&self, seed: u64) -> Vec<Duration> {
        let mut random = StdRng::seed_from_u64(seed);
        let mut times = Vec::new();
        let take = |left: u64| left.checked_sub(1);
        while self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
            let ask = match random.random_range(0..3) {
                0 => {
                    json!({"prompt_token_ids": [7, random.random_range(5..200)], "output": "mixed", "max_tokens": 24,
                            "ignore_eos": true, "logit_bias": {"3": 8.0}, "seed": random.random_range(0..1000), "temperature": 1.0})
                }
                1 => json!({"prompt_token_ids": [9, random.random_range(5..200)], "output": "items", "n": 10,
                            "item_types": ["film", "podcast"], "collisions": "all"}),
                _ => {
                    json!({"prompt_token_ids": [8, random.random_range(5..200)], "output": "items", "n": 20})
                }
            };
            let start = Instant::now();
            // Denied before the request began: no byte of the answer may name it.
            let gone = self.denied.lock().unwrap().clone();
            let mut ids = Vec::new();
            let mut answer = None;
            for event in self.engine.submit(&request(ask)).unwrap() {
                match event.unwrap() {
                    Event::Item(item) => ids.push((item.id, item.sid)),
                    Event::Finished(finished) => answer = Some(finished),
                    _ => {}
                }
            }
            times.push(start.elapsed());
            let answer = answer.unwrap();
            ids.extend(answer.items.into_iter().flatten().map(|item| (item.id, item.sid)));
            ids.extend(answer.content.into_iter().flatten().filter_map(|part| match part {
                AnswerPart::Item { id, sid, .. } => Some((id, sid)),
                AnswerPart::Text { .. } => None,
            }));
            let name = answer.snapshot.unwrap();
            let truth = self.truths.lock().unwrap().get(&name).cloned();
            let truth = truth.unwrap_or_else(|| panic!("an answer from {name}, which never was"));
            for (id, sid) in ids {
                assert_eq!(truth.get(&id), Some(&sid), "{id} in {name}");
                assert!(!gone.contains(&id), "{id} was denied before the request began");
            }
        }
        times
    }
}

/// Tells the truth of a state before any request can see it.
fn tell(truths: &Truths, names: &[String], items: &HashMap<String, Vec<u16>>) {
    let items = Arc::new(items.clone());
    let mut truths = truths.lock().unwrap();
    for name in names {
        truths.insert(name.clone(), items.clone());
    }
}

#[test]
fn swaps_denials_and_updates_under_load() {
    let (swaps, requests) = (count("SIDEREAL_SOAK_SWAPS", 30), count("SIDEREAL_SOAK_REQUESTS", 1500));
    let engine = engine_of(Duration::ZERO);
    let catalog = engine.catalog().unwrap().clone();
    let pool = tiny_records();
    let truths: Arc<Truths> = Arc::default();
    let mut truth: HashMap<String, Vec<u16>> =
        pool.iter().map(|item| (item.id.clone(), item.sid.clone())).collect();
    tell(&truths, &[catalog.view().name().to_owned()], &truth);
    let load = Arc::new(Load {
        engine: engine.clone(),
        truths: truths.clone(),
        denied: Arc::default(),
        left: Arc::new(AtomicU64::new(requests as u64)),
    });
    let readers: Vec<_> = (0..8)
        .map(|seed| {
            let load = load.clone();
            std::thread::spawn(move || load.run(seed))
        })
        .collect();
    let mut random = StdRng::seed_from_u64(1);
    let (mut done, mut updates) = (0, 0);
    // A reader that has panicked ends it too.
    while !readers.iter().any(|reader| reader.is_finished()) || done < swaps {
        if engine.death().is_some() || readers.iter().all(|reader| reader.is_finished()) && done == swaps {
            break;
        }
        // Names are known only once a change is made, so the truth of every name that it may get is told before: the
        // revision goes up by one with each change.
        let next = |truths: &Truths, truth: &HashMap<String, Vec<u16>>, base: &str, revision: u64| {
            tell(truths, &[format!("{base}+{}", revision + 1)], truth);
        };
        let view = catalog.view();
        let base = view.base().snapshot().to_owned();
        drop(view);
        match random.random_range(0..4) {
            0 if done < swaps => {
                let records: Vec<ItemRecord> =
                    pool.iter().filter(|_| random.random_bool(0.7)).cloned().collect();
                let catalog_of_next = catalog_of(records.clone());
                truth = records.into_iter().map(|item| (item.id, item.sid)).collect();
                // Without changes it has no number.
                tell(&truths, &[catalog_of_next.snapshot().to_owned()], &truth);
                next(&truths, &truth, catalog_of_next.snapshot(), catalog.revision());
                catalog.swap(catalog_of_next, false).unwrap();
                done += 1;
            }
            1 => {
                let id = pool[random.random_range(0..pool.len())].id.clone();
                next(&truths, &truth, &base, catalog.revision());
                catalog.deny(&[&id]).unwrap();
                load.denied.lock().unwrap().insert(id);
                if load.denied.lock().unwrap().len() > 40 {
                    let all: Vec<String> = load.denied.lock().unwrap().drain().collect();
                    next(&truths, &truth, &base, catalog.revision());
                    catalog.allow(&all).unwrap();
                }
            }
            2 => {
                let mut item = pool[random.random_range(0..pool.len())].clone();
                let like: Vec<&ItemRecord> =
                    pool.iter().filter(|other| other.item_type == item.item_type).collect();
                item.sid.clone_from(&like[random.random_range(0..like.len())].sid);
                truth.insert(item.id.clone(), item.sid.clone());
                next(&truths, &truth, &base, catalog.revision());
                catalog.add(vec![item]).unwrap();
                updates += 1;
            }
            _ => {
                let id = pool[random.random_range(0..pool.len())].id.clone();
                truth.remove(&id);
                next(&truths, &truth, &base, catalog.revision());
                catalog.remove(&[&id]).unwrap();
                updates += 1;
            }
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    let times: Vec<Duration> = readers.into_iter().flat_map(|reader| reader.join().unwrap()).collect();
    let counters = engine.counters();
    let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    assert_eq!(times.len(), requests);
    assert_eq!(
        (of(&counters.finished), of(&counters.failed), of(&counters.cancelled)),
        (requests as u64, 0, 0)
    );
    assert_eq!(of(&counters.gate_violations), 0);
    assert!(engine.death().is_none());
    let stats = catalog.stats();
    assert_eq!(stats.swaps, done as u64);
    assert!(stats.most_resident <= 2, "{stats:?}");
    let mut times = times;
    times.sort_unstable();
    println!(
        "{requests} requests under {done} swaps and {updates} updates: {} items named, {} denied in flight, p50 {:?}, p99 {:?}, {stats:?}",
        of(&counters.items),
        of(&counters.denied_in_flight),
        times[times.len() / 2],
        times[times.len() * 99 / 100],
    );
}
