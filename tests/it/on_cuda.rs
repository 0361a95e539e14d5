//! The whole engine on the CUDA kernels, run by the host and by the GPU if there is one: a tiny random model, and the model that learned a
//! real catalog where the checkout has it.

mod spy;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sidereal::device::cuda::{CudaOptions, Fit};
use sidereal::device::ops::DType;
use sidereal::engine::{Answer, Engine, EngineBuilder, EventStream, Request};
use sidereal::kv::BLOCK_TOKENS;

use crate::grounded_small;
use crate::kernels::drivers;
use spy::{Counts, Spy};

/// The same builder on every driver, by name; and what it is on the CPU.
fn engines(make: &dyn Fn() -> EngineBuilder, reproducible: bool) -> Vec<(String, Engine)> {
    let options = CudaOptions { reproducible, ..CudaOptions::default() };
    let start = |(name, driver)| {
        let builder = make().dtype(DType::Bf16).on_cuda(driver, options).unwrap();
        (name, builder.start().unwrap())
    };
    drivers().into_iter().map(start).collect()
}

fn request(value: Value) -> Request {
    Request::from_json(&value.to_string()).unwrap()
}

/// Requests of every kind for the built-in demonstration.
fn tiny_requests() -> Vec<Request> {
    let mut requests = Vec::new();
    for i in 0..4 {
        let prompt = format!("search for the number {i}{}", " and so on".repeat(i * 3));
        requests.push(request(json!({"prompt": prompt, "output": "items", "n": 4, "beam_width": 4 + 9 * i})));
        requests.push(request(json!({"prompt": prompt, "output": "items", "n": 3, "score": "valid",
            "temperature": 0.7, "seed": i})));
        requests.push(request(json!({"prompt": prompt, "output": "items", "n": 3, "score": "vocabulary"})));
        requests.push(request(json!({"prompt": prompt, "output": "text", "max_tokens": 8, "temperature": 0,
            "logprobs": 2})));
        requests
            .push(request(json!({"prompt": prompt, "output": "text", "max_tokens": 8, "temperature": 0.9,
            "top_p": 0.8, "top_k": 40, "repetition_penalty": 1.2, "seed": i})));
        requests
            .push(request(json!({"prompt": prompt, "output": "mixed", "max_tokens": 24, "temperature": 1.5,
            "seed": 100 + i})));
    }
    requests.push(request(json!({"prompt": "which one", "choice": ["the first", "the second", "neither"]})));
    // More strings than a small step has rows: their first tokens are scored in several rounds.
    let strings: Vec<String> = (0..60).map(|i| format!("{i} of them")).collect();
    requests.push(request(json!({"prompt": "how many", "choice": strings})));
    requests.push(request(json!({"prompt": "in groups", "output": "items", "n": 6, "beam_width": 12,
        "diversity": {"groups": 3, "penalty": 0.5, "max_per_prefix": 2}})));
    requests
}

/// What of an answer may not change: everything but how much of it was cached, and how many beams were computed (a device that does
/// not wait for the number of live beams computes as many as could be).
fn essence(answer: &Answer) -> Value {
    let mut value = serde_json::to_value(answer).unwrap();
    value["usage"]["cached_tokens"] = json!(0);
    value["usage"]["beam_rows"] = json!(0);
    value
}

fn all_at_once(engine: &Engine, requests: &[Request]) -> Vec<Answer> {
    let streams: Vec<EventStream> = requests.iter().map(|r| engine.submit(r).unwrap()).collect();
    streams.into_iter().map(|stream| stream.wait().unwrap()).collect()
}

#[test]
fn in_reproducible_mode_company_caches_and_chunks_change_no_bit() {
    // Texts that outgrow the block that is kept free for each.
    let long = |i: usize| {
        request(json!({"prompt": format!("once upon a time {i}"), "output": "text", "max_tokens": 40,
            "ignore_eos": true, "temperature": 0.8, "seed": i}))
    };
    let mut requests: Vec<Request> = (0..8).map(long).collect();
    requests.extend(tiny_requests());
    let make = || EngineBuilder::tiny().unwrap();
    // Steps of 48 rows cut long prompts and choices; a cache of 16 blocks, half of what the texts grow to, makes jobs give way.
    let cramped = || {
        let builder = make().dtype(DType::Bf16).max_rows(48);
        let s = builder.model_ref().shape();
        let block = 2 * s.layers * s.kv_heads * s.head_dim * DType::Bf16.size() * BLOCK_TOKENS;
        builder.cache_bytes(16 * block)
    };
    let companies = engines(&make, true);
    for ((name, roomy), (_, cramped)) in companies.into_iter().zip(engines(&cramped, true)) {
        let alone: Vec<Value> = requests.iter().map(|r| essence(&roomy.generate(r).unwrap())).collect();
        for (which, (answer, alone)) in all_at_once(&roomy, &requests).iter().zip(&alone).enumerate() {
            assert_eq!(essence(answer), *alone, "{name}: request {which} in company");
        }
        for (which, (answer, alone)) in all_at_once(&cramped, &requests).iter().zip(&alone).enumerate() {
            assert_eq!(essence(answer), *alone, "{name}: request {which} in small steps");
        }
        let preemptions = cramped.counters().preemptions.load(Ordering::Relaxed);
        assert!(preemptions > 0, "{name}: nobody had to give way");
        let failed = [&roomy, &cramped].map(|engine| engine.counters().failed.load(Ordering::Relaxed));
        assert_eq!(failed, [0, 0], "{name}");
    }
}

#[test]
fn in_the_default_mode_the_same_batch_gives_the_same_bits() {
    let requests = tiny_requests();
    for (name, engine) in engines(&|| EngineBuilder::tiny().unwrap(), false) {
        let first: Vec<Value> = requests.iter().map(|r| essence(&engine.generate(r).unwrap())).collect();
        let again: Vec<Value> = requests.iter().map(|r| essence(&engine.generate(r).unwrap())).collect();
        assert_eq!(first, again, "{name}");
    }
}

/// Scores on the CUDA kernels and on the CPU, both in bf16: equal up to rounding for every path that both return.
#[test]
fn scores_are_those_of_the_cpu_up_to_rounding() {
    let wide =
        request(json!({"prompt": "everything there is", "output": "items", "n": 300, "beam_width": 300}));
    let cpu = EngineBuilder::tiny().unwrap().dtype(DType::Bf16).start().unwrap();
    let expected = cpu.generate(&wide).unwrap();
    let scores: HashMap<String, f32> =
        expected.items.unwrap().into_iter().map(|item| (item.id, item.score)).collect();
    assert!(scores.len() >= 200, "{} items", scores.len());
    // As many rows as beams: each is offered to the codebooks of all three types.
    for (name, engine) in engines(&|| EngineBuilder::tiny().unwrap().max_rows(300), false) {
        let items = engine.generate(&wide).unwrap().items.unwrap();
        assert_eq!(items.len(), scores.len(), "{name}");
        let mut total = 0.0;
        for item in &items {
            let (ours, theirs) = (item.score, scores[&item.id]);
            assert!((ours - theirs).abs() < 0.15, "{name}: {} scores {ours} and {theirs}", item.id);
            total += (ours - theirs).abs();
        }
        // A score is the sum of three log-probabilities, each the result of a hundred roundings to eight bits.
        let mean = total / items.len() as f32;
        assert!(mean < 0.03, "{name}: scores differ by {mean} on average");
    }
}

/// An engine on a driver that is watched.
fn watched(builder: EngineBuilder) -> Vec<(String, Engine, Arc<Counts>)> {
    let start = |(name, inner)| {
        let counts = Arc::new(Counts::default());
        let driver = Box::new(Spy { inner, counts: Arc::clone(&counts) });
        (name, driver, counts)
    };
    let mut drivers = drivers();
    drivers.truncate(1);
    let mut builder = Some(builder);
    let engine = |(name, driver, counts): (String, Box<Spy>, Arc<Counts>)| {
        let builder = builder.take()?.dtype(DType::Bf16);
        Some((name, builder.on_cuda(driver, CudaOptions::default()).unwrap().start().unwrap(), counts))
    };
    drivers.into_iter().map(start).filter_map(engine).collect()
}

#[test]
fn the_steps_of_a_list_are_not_waited_for_and_repeated_shapes_are_replayed() {
    for (name, engine, counts) in watched(EngineBuilder::tiny().unwrap()) {
        let list = |i: usize| request(json!({"prompt": format!("list {i}"), "output": "items", "n": 4}));
        let taken = |i: usize| {
            let counted =
                || [&counts.waits, &counts.replays, &counts.launches].map(|c| c.load(Ordering::Relaxed));
            let before = counted();
            engine.generate(&list(i)).unwrap();
            let after = counted();
            [0, 1, 2].map(|at| after[at] - before[at])
        };
        // The first two of a kind are launched and recorded.
        (0..3).for_each(|i| _ = taken(i));
        let [waits, replays, launches] = taken(3);
        // Four codes: the prompt, three steps of beams. One wait for the last, one for the paths, and those of the ring of plans,
        // whose copies are long done: one per plan.
        assert_eq!(replays, 4, "{name}");
        assert!(waits <= 2 + 4, "{name}: {waits} waits");
        assert!(launches == 0, "{name}: {launches} launches beside the graphs");
        // A plan that does not fit moves the buffer that graphs read; they are freed.
        assert_eq!(counts.forgotten.load(Ordering::Relaxed), 0, "{name}");
        counts.purposes.lock().unwrap().clear();
        let bias: HashMap<String, f32> = (0..400).map(|token| (token.to_string(), 0.5)).collect();
        let biased =
            json!({"prompt": "a", "output": "text", "max_tokens": 8, "ignore_eos": true, "logit_bias": bias});
        all_at_once(&engine, &vec![request(biased); 40]);
        assert!(counts.purposes.lock().unwrap().contains(&"plan"), "{name}");
        assert!(counts.forgotten.load(Ordering::Relaxed) >= 4, "{name}");
    }
}

#[test]
fn what_steps_need_is_allocated_at_the_start() {
    // As many rows as beams, each offered to all three types; and everything else that can be asked for.
    let mut requests = tiny_requests();
    requests.push(request(json!({"prompt": "everything", "output": "items", "n": 300, "beam_width": 300})));
    for (name, engine, counts) in watched(EngineBuilder::tiny().unwrap().max_rows(300)) {
        let purposes = || std::mem::take(&mut *counts.purposes.lock().unwrap());
        let first = purposes();
        for purpose in ["weights", "key/value cache", "step buffers", "SID step"] {
            assert!(first.contains(&purpose), "{name}: no {purpose} in {first:?}");
        }
        all_at_once(&engine, &requests);
        // What requests bring along is small and not known before; the cache may have taken everything that was free but the reserve.
        for purpose in purposes() {
            let brought = ["catalog", "mask", "search", "plan", "text edits and results"];
            assert!(brought.contains(&purpose), "{name}: {purpose} allocated after the start");
        }
    }
}

#[test]
fn a_device_that_fails_ends_the_engine_and_says_so_to_everybody() {
    for (name, engine, counts) in watched(EngineBuilder::tiny().unwrap()) {
        let text =
            request(json!({"prompt": "on and on", "output": "text", "max_tokens": 60, "ignore_eos": true}));
        engine.generate(&text).unwrap();
        let streams: Vec<EventStream> = (0..3).map(|_| engine.submit(&text).unwrap()).collect();
        counts.broken_at.store(counts.waits.load(Ordering::Relaxed) + 5, Ordering::Relaxed);
        let begun = Instant::now();
        for stream in streams {
            let error = stream.wait().unwrap_err().to_string();
            assert!(error.contains("an illegal memory access"), "{name}: {error}");
        }
        let error = engine.generate(&text).unwrap_err().to_string();
        assert!(error.contains("the engine is dead"), "{name}: {error}");
        assert!(begun.elapsed() < Duration::from_secs(10), "{name}: after {:?}", begun.elapsed());
    }
}

/// Ranked lists in bf16 against those of transformers in float32.
#[test]
fn the_small_model_in_bf16_ranks_as_the_float32_reference_does() {
    let Some(dir) = grounded_small::folder() else { return };
    let text = std::fs::read_to_string(dir.join("expected/beams.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&text).unwrap();
    let requests: Vec<Request> = cases
        .iter()
        .map(|case| {
            request(json!({"messages": case["messages"], "output": "items", "item_types": case["types"],
                "score": case["score"], "n": case["beam_width"], "beam_width": case["beam_width"]}))
        })
        .collect();
    let make = || {
        let builder = EngineBuilder::open(&dir).unwrap();
        builder.catalog_file(dir.join("catalog.jsonl"), &mut |_, _| {}).unwrap()
    };
    for (name, engine) in engines(&make, false) {
        let (mut first, mut common, mut all) = (0, 0, 0);
        for (answer, case) in all_at_once(&engine, &requests).iter().zip(&cases) {
            let items = answer.items.as_deref().unwrap();
            let expected = case["results"].as_array().unwrap();
            let is = |result: &Value, id: &str| result["item"] == id || result["same_sid"][0] == id;
            assert_eq!(items.len(), expected.len(), "{name}");
            first += usize::from(is(&expected[0], &items[0].id));
            common += items.iter().filter(|item| expected.iter().any(|result| is(result, &item.id))).count();
            all += items.len();
        }
        println!("{name}: first item equal in {first} of {}, {common} of {all} items common", cases.len());
        assert!(first * 100 >= 85 * cases.len(), "{name}: first item equal in {first} of {}", cases.len());
        assert!(common * 100 >= 90 * all, "{name}: {common} of {all} items common");
    }
}

#[test]
fn a_small_model_does_not_fill_a_large_device_with_its_cache() {
    let builder = EngineBuilder::tiny().unwrap();
    let model = builder.model_ref();
    let (shape, dtype) = (model.shape(), DType::Bf16);
    let fit = Fit { shape, weights: &model.weights, layout: None, dtype };
    let token = 2 * shape.layers * shape.kv_heads * shape.head_dim * dtype.size();
    assert_eq!(fit.cache_bytes(512, 140 << 30), token << 22);
    let small = fit.cache_bytes(512, 200 << 20);
    assert!((100 << 20..200 << 20).contains(&small), "{small}");
}

/// What does not fit or is not served is said before anything is allocated.
#[cfg(feature = "emulated")]
#[test]
fn what_cannot_run_is_refused_at_the_start_with_a_way_out() {
    use sidereal::device::cuda::{EmulatedDriver, EmulatedOptions};
    let start = |builder: EngineBuilder, memory: u64| {
        let options = EmulatedOptions { memory, ..EmulatedOptions::default() };
        let driver = Box::new(EmulatedDriver::new(options).unwrap());
        let started = builder.on_cuda(driver, CudaOptions::default()).and_then(EngineBuilder::start);
        started.err().map(|error| error.to_string()).unwrap_or_default()
    };
    let tiny = || EngineBuilder::tiny().unwrap().dtype(DType::Bf16);
    let roomy = 8 << 30;
    assert_eq!(start(tiny(), roomy), "");
    let error = start(tiny().cache_bytes(1 << 30), 600 << 20);
    for part in ["the device needs 10", "has 600 MiB free", "what would fit: a cache of 5", "--cache-mib"] {
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    }
    let error = start(tiny().max_rows(60_000).cache_bytes(64 << 20), 700 << 20);
    for part in ["what would fit", "(--max-rows)", "with a cache of"] {
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    }
    let error = start(tiny(), 1 << 20);
    assert!(error.contains("a smaller model is needed"), "{error}");
    let error = start(EngineBuilder::tiny().unwrap(), roomy);
    assert!(error.contains("f32 is served by the CPU (--dtype bf16)"), "{error}");
}
