//! What must not leave the engine does not, even if a search names it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use serde_json::json;
use sidereal::Result;
use sidereal::catalog::synthetic::tiny_records;
use sidereal::device::hash::HashDevice;
use sidereal::device::ops::{Buffer, Device, Outcome, Path, Plan, SearchSpec};
use sidereal::engine::{AnswerPart, EngineBuilder, Event};
use sidereal::ids::{SearchId, SidIndex};

use super::{engine_of, new_book, request};

/// The hash device, but its searches lie about what they found.
struct Liar {
    inner: HashDevice,
    lie: Arc<AtomicU8>,
}

impl Device for Liar {
    fn describe(&self) -> String {
        "a liar".to_owned()
    }
    fn open_search(&mut self, spec: SearchSpec) -> Result<SearchId> {
        self.inner.open_search(spec)
    }
    fn close_search(&mut self, search: SearchId) {
        self.inner.close_search(search);
    }
    fn search_paths(&mut self, search: SearchId) -> Result<Vec<Path>> {
        let mut paths = self.inner.search_paths(search)?;
        for path in &mut paths {
            match self.lie.load(Ordering::Relaxed) {
                // Codes that are not the item's.
                1 => path.codes[1] ^= 1,
                // Another item's SID.
                2 => path.sid = SidIndex(path.sid.0 ^ 1),
                _ => {}
            }
        }
        Ok(paths)
    }
    fn begin(&mut self, plan: &Plan) -> Result<()> {
        self.inner.begin(plan)
    }
    fn forward(&mut self, plan: &Plan) -> Result<bool> {
        self.inner.forward(plan)
    }
    fn embed(&mut self, plan: &Plan) -> Result<()> {
        self.inner.embed(plan)
    }
    fn attention_input(&mut self, plan: &Plan, layer: usize) -> Result<()> {
        self.inner.attention_input(plan, layer)
    }
    fn attention(&mut self, plan: &Plan, layer: usize) -> Result<()> {
        self.inner.attention(plan, layer)
    }
    fn attention_output(&mut self, plan: &Plan, layer: usize) -> Result<()> {
        self.inner.attention_output(plan, layer)
    }
    fn mlp_input(&mut self, plan: &Plan, layer: usize) -> Result<()> {
        self.inner.mlp_input(plan, layer)
    }
    fn mlp_output(&mut self, plan: &Plan, layer: usize) -> Result<()> {
        self.inner.mlp_output(plan, layer)
    }
    fn head(&mut self, plan: &Plan) -> Result<()> {
        self.inner.head(plan)
    }
    fn sample(&mut self, plan: &Plan) -> Result<()> {
        self.inner.sample(plan)
    }
    fn step_sids(&mut self, plan: &Plan) -> Result<()> {
        self.inner.step_sids(plan)
    }
    fn finish(&mut self) -> Result<Outcome> {
        self.inner.finish()
    }
    fn read(&mut self, buffer: Buffer) -> Result<Vec<f32>> {
        self.inner.read(buffer)
    }
    fn write(&mut self, buffer: Buffer, values: &[f32]) -> Result<()> {
        self.inner.write(buffer, values)
    }
}

#[test]
fn a_search_that_lies_names_nothing() {
    let lie = Arc::new(AtomicU8::new(0));
    let told = lie.clone();
    let engine = EngineBuilder::tiny()
        .unwrap()
        .device(move |config| {
            Ok(Box::new(Liar { inner: HashDevice::new(config, Duration::ZERO)?, lie: told }))
        })
        .start()
        .unwrap();
    let ask = request(json!({"prompt": "hello", "output": "items", "n": 20, "item_types": ["book", "film"]}));
    let honest = engine.generate(&ask).unwrap().items.unwrap();
    assert_eq!(honest.len(), 20);
    assert_eq!(engine.counters().gate_violations.load(Ordering::Relaxed), 0);
    assert_eq!(engine.counters().items.load(Ordering::Relaxed), 20);
    for kind in [1, 2] {
        let before = engine.counters().gate_violations.load(Ordering::Relaxed);
        lie.store(kind, Ordering::Relaxed);
        let answer = engine.generate(&ask).unwrap();
        assert_eq!(answer.items.unwrap(), [], "lie {kind}");
        assert!(answer.exhausted.unwrap());
        assert!(engine.counters().gate_violations.load(Ordering::Relaxed) > before, "lie {kind}");
    }
}

#[test]
fn what_is_denied_is_not_handed_out_even_if_it_waits() {
    let engine = engine_of(Duration::ZERO);
    let ask = request(json!({"prompt": "hello", "output": "items", "n": 20}));
    let listed = engine.generate(&ask).unwrap().items.unwrap();
    // The answer is there before its items are denied, and read after.
    let stream = engine.submit(&ask).unwrap();
    while engine.counters().finished.load(Ordering::Relaxed) < 2 {
        std::thread::yield_now();
    }
    let gone: BTreeSet<&str> = listed.iter().step_by(3).map(|item| item.id.as_str()).collect();
    let ids: Vec<&str> = gone.iter().copied().collect();
    engine.catalog().unwrap().deny(&ids).unwrap();
    let answer = stream.wait().unwrap();
    let left: Vec<&str> = answer.items.as_ref().unwrap().iter().map(|item| item.id.as_str()).collect();
    let expected: Vec<&str> =
        listed.iter().map(|item| item.id.as_str()).filter(|id| !gone.contains(id)).collect();
    assert_eq!(left, expected);
    assert_eq!(answer.dropped["denied_items"], gone.len());
    assert_eq!(engine.counters().denied_in_flight.load(Ordering::Relaxed), gone.len() as u64);
    // From then on others take their places.
    let answer = engine.generate(&ask).unwrap().items.unwrap();
    assert_eq!(answer.len(), 20);
    assert!(answer.iter().all(|item| !gone.contains(item.id.as_str())));
    assert_eq!(engine.counters().denied_in_flight.load(Ordering::Relaxed), gone.len() as u64);
    engine.catalog().unwrap().allow(&ids).unwrap();
    assert_eq!(engine.generate(&ask).unwrap().items.unwrap(), listed);
}

#[test]
fn items_inside_text_are_taken_out_of_events_and_answer() {
    let engine = engine_of(Duration::ZERO);
    let ask = request(json!({"prompt": "hello", "output": "mixed", "max_tokens": 60, "ignore_eos": true,
        "temperature": 0.0, "logit_bias": {"3": 50.0}, "return_token_ids": true}));
    let items = |parts: &[AnswerPart]| -> Vec<String> {
        parts
            .iter()
            .filter_map(|p| if let AnswerPart::Item { id, .. } = p { Some(id.clone()) } else { None })
            .collect()
    };
    let named = items(engine.generate(&ask).unwrap().content.as_ref().unwrap());
    assert!(named.len() > 3, "{named:?}");
    let stream = engine.submit(&ask).unwrap();
    while engine.counters().finished.load(Ordering::Relaxed) < 2 {
        std::thread::yield_now();
    }
    engine.catalog().unwrap().deny(&named[1..2]).unwrap();
    let mut streamed = Vec::new();
    let mut answer = None;
    for event in stream {
        match event.unwrap() {
            Event::Item(item) => streamed.push(item.id),
            Event::Finished(finished) => answer = Some(finished),
            _ => {}
        }
    }
    let answer = answer.unwrap();
    let mut left = named.clone();
    left.remove(1);
    assert_eq!(streamed, left);
    assert_eq!(items(answer.content.as_ref().unwrap()), left);
    assert!(answer.token_ids.is_none(), "tokens spell the item too");
    // A search that begins afterwards names others.
    let after = items(engine.generate(&ask).unwrap().content.as_ref().unwrap());
    assert!(after.len() > 3 && !after.contains(&named[1]), "{after:?}");
    assert_eq!(engine.counters().gate_violations.load(Ordering::Relaxed), 0);
}

#[test]
fn an_item_added_is_named_and_one_removed_is_not() {
    let engine = engine_of(Duration::ZERO);
    let ask = request(json!({"prompt": "hello", "output": "items", "n": 5, "item_types": ["book"]}));
    let before = engine.generate(&ask).unwrap().items.unwrap();
    let catalog = engine.catalog().unwrap();
    // More popular than the one that is named for this SID.
    let sid = [before[0].sid[0], before[0].sid[1], before[0].sid[2]];
    catalog.add(vec![new_book("new:1", sid, 1e9)]).unwrap();
    let after = engine.generate(&ask).unwrap();
    assert_eq!(after.items.as_ref().unwrap()[0].id, "new:1");
    assert_eq!(after.items.as_ref().unwrap()[0].score, before[0].score);
    assert!(after.snapshot.unwrap().contains('+'));
    catalog.remove(&["new:1", before[0].id.as_str()]).unwrap();
    let others: Vec<String> =
        tiny_records().into_iter().filter(|r| r.sid == sid && r.item_type == "book").map(|r| r.id).collect();
    let after = engine.generate(&ask).unwrap().items.unwrap();
    assert!(after.iter().all(|item| item.id != "new:1" && item.id != before[0].id));
    if others.len() == 1 {
        assert_eq!(after[0].id, before[1].id);
    }
    // Only the added item is left in a SID that the snapshot does not have.
    let taken: BTreeSet<Vec<u16>> =
        tiny_records().into_iter().filter(|r| r.item_type == "book").map(|r| r.sid).collect();
    let free = (0..512u16).map(|n| vec![n / 64, n / 8 % 8, n % 8]).find(|sid| !taken.contains(sid)).unwrap();
    catalog.add(vec![new_book("new:2", [free[0], free[1], free[2]], 0.0)]).unwrap();
    let only = request(json!({"prompt": "hello", "output": "items", "n": 5, "allow": ["new:2", "nobody"]}));
    let answer = engine.generate(&only).unwrap();
    let items = answer.items.unwrap();
    assert_eq!((items.len(), items[0].id.as_str(), &items[0].sid), (1, "new:2", &free));
    assert_eq!(items[0].title.as_deref(), Some("New new:2"));
    assert_eq!(answer.dropped["unknown_allow"], 1);
    assert_eq!(engine.counters().gate_violations.load(Ordering::Relaxed), 0);
}

#[test]
fn filters_bound_lists_and_text() {
    let engine = engine_of(Duration::ZERO);
    let catalog = engine.catalog().unwrap();
    let filters = json!({"old": {"attr": "year", "lt": 1960}});
    let filters = filters.as_object().unwrap();
    catalog.set_filters(sidereal::catalog::FilterSet::parse(filters, &Default::default()).unwrap()).unwrap();
    let year =
        |id: &str| engine.view().unwrap().find(id).unwrap().attribute("year").unwrap().as_i64().unwrap();
    let old = tiny_records().iter().filter(|r| r.attributes["year"].as_i64().unwrap() < 1960).count();
    let ask = |filter: serde_json::Value| {
        let ask = json!({"prompt": "hello", "output": "items", "n": 300, "beam_width": 300, "filter": filter, "collisions": "all"});
        engine.generate(&request(ask)).unwrap()
    };
    for filter in [json!({"attr": "year", "lt": 1960}), json!({"named": "old"})] {
        let answer = ask(filter);
        let items = answer.items.unwrap();
        assert_eq!((items.len(), answer.exhausted), (old, Some(true)));
        assert!(items.iter().all(|item| year(&item.id) < 1960));
    }
    let none = ask(json!({"attr": "year", "gt": 3000}));
    assert_eq!((none.items.unwrap().len(), none.exhausted), (0, Some(true)));
    // Items added pass by their own attributes.
    catalog.add(vec![new_book("new:1", [0, 0, 0], 1.0)]).unwrap();
    let added = ask(json!({"attr": "year", "eq": 2026})).items.unwrap();
    assert_eq!(added.iter().map(|item| item.id.as_str()).collect::<Vec<_>>(), ["new:1"]);
    catalog.deny(&["new:1"]).unwrap();
    assert_eq!(ask(json!({"attr": "year", "eq": 2026})).items.unwrap().len(), 0);
    // In text the opener is masked where nothing passes.
    let text = |filter: serde_json::Value| {
        let ask = json!({"prompt": "hello", "output": "mixed", "max_tokens": 60, "ignore_eos": true,
            "temperature": 0.0, "logit_bias": {"3": 50.0}, "filter": filter});
        let content = engine.generate(&request(ask)).unwrap().content.unwrap();
        let ids = content.into_iter().filter_map(|part| match part {
            AnswerPart::Item { id, .. } => Some(id),
            AnswerPart::Text { .. } => None,
        });
        ids.collect::<Vec<_>>()
    };
    let named = text(json!({"named": "old"}));
    assert!(named.len() > 3 && named.iter().all(|id| year(id) < 1960), "{named:?}");
    assert_eq!(text(json!({"attr": "year", "gt": 3000})), [""; 0]);
    assert_eq!(engine.counters().gate_violations.load(Ordering::Relaxed), 0);
}
