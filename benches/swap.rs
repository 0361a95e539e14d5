//! What a swap costs those who are being served: percentiles of whole requests with and without snapshots swapped meanwhile.
//!
//! Two snapshot files of ten million items are swapped in turn under a closed loop of eight readers of lists: mapped unverified, ten times a
//! second (the swap itself), and verified first, one after the other without a pause (verifying is all but the whole of it). Phases with and
//! without alternate. The device is the hash device with steps of one millisecond, as a GPU's would be (the host's cores then
//! are free for verifying), and then the CPU device, with which verifying competes for the cores. Goal: no request dropped, p99 at
//! most 1.1 times that without swaps. `SWAP_ITEMS` and `SWAP_SECONDS` (of a phase) make it smaller.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use sidereal::catalog::synthetic::{self, Skew};
use sidereal::catalog::{Catalog, Layout, LayoutSpec, TypeSpec};
use sidereal::device::hash::HashDevice;
use sidereal::engine::{Engine, Request};
use sidereal::model::tiny::{DemoSpec, demo};
use sidereal::text::{Tokenizer, tiny};

const LEVELS: [usize; 3] = [8192, 8192, 8192];
const READERS: u64 = 8;
const PHASES: usize = 3;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().expect("a number"))
}

fn layout() -> LayoutSpec {
    LayoutSpec {
        open: Some("<|sid_begin|>".into()),
        close: Some("<|sid_end|>".into()),
        types: vec![TypeSpec {
            name: "item".into(),
            levels: LEVELS.to_vec(),
            token: "<item_{level}_{code}>".into(),
        }],
    }
}

fn snapshots(folder: &Path, items: usize) -> [PathBuf; 2] {
    [1, 2].map(|seed| {
        let path = folder.join(format!("{seed}.catalog"));
        let start = Instant::now();
        let catalog = synthetic::catalog(&layout().types, items, Skew::Uniform, seed)
            .expect("the space is large enough");
        catalog.write(&path, &mut |_, _| {}).expect("room on the disk");
        eprintln!("{items} items made and written in {:.1} s", start.elapsed().as_secs_f64());
        path
    })
}

fn engine(catalog: &Path, step: Option<Duration>) -> Engine {
    let names: Vec<String> = (0..LEVELS.len())
        .flat_map(|level| (0..LEVELS[level]).map(move |code| format!("<item_{level}_{code}>")))
        .collect();
    let json = tiny::tokenizer_json(&names);
    let tokenizer =
        Tokenizer::from_json(json.as_bytes(), Some(tiny::tokenizer_config_json().as_bytes()), None);
    let tokenizer = tokenizer.expect("a tokenizer");
    let layout = Layout::resolve(&layout(), |token| tokenizer.token_to_id(token)).expect("its tokens");
    let eos = tokenizer.token_to_id("<|im_end|>").expect("an end token");
    let model = demo(&DemoSpec::new(tokenizer.vocab_size(), eos)).expect("a model");
    let catalog = Arc::new(Catalog::load(catalog, &mut |_, _| {}).expect("sound"));
    let builder = Engine::builder(model, tokenizer).layout(layout).catalog(catalog);
    match step {
        Some(step) => builder.device(move |config| Ok(Box::new(HashDevice::new(config, step)?))),
        None => builder,
    }
    .start()
    .expect("an engine")
}

/// Reads lists until told to stop; how long each took.
fn read(engine: &Engine, seed: u64, stop: &AtomicBool) -> Vec<Duration> {
    let mut times = Vec::new();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let prompt = [5 + number % 200, 5 + seed, 7 + number / 200 % 100];
        let ask = json!({"prompt_token_ids": prompt, "output": "items", "n": 10});
        let request = Request::from_json(&ask.to_string()).expect("well-formed");
        let start = Instant::now();
        let answer = engine.generate(&request).expect("no request is dropped");
        assert_eq!(answer.items.map(|items| items.len()), Some(10));
        times.push(start.elapsed());
    }
    times
}

/// What is done beside the readers.
#[derive(Clone, Copy, PartialEq)]
enum Beside {
    Nothing,
    Swaps,
    VerifiedSwaps,
}

/// A phase. Returns times of requests, and of swaps.
fn phase(
    engine: &Engine,
    seconds: u64,
    beside: Beside,
    files: &[PathBuf; 2],
) -> (Vec<Duration>, Vec<Duration>) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stop = &stop;
        let readers: Vec<_> =
            (0..READERS).map(|seed| scope.spawn(move || read(engine, seed, stop))).collect();
        let start = Instant::now();
        let mut swaps = Vec::new();
        while start.elapsed() < Duration::from_secs(seconds) {
            let begun = Instant::now();
            let (catalog, file) = (engine.catalog().expect("a catalog"), &files[(swaps.len() + 1) % 2]);
            if beside == Beside::VerifiedSwaps {
                catalog.load(file, false, &mut |_, _| {}).expect("a sound snapshot");
                swaps.push(begun.elapsed());
            } else if beside == Beside::Swaps {
                let next = Arc::new(Catalog::open(file).expect("a sound snapshot"));
                catalog.swap(next, false).expect("the same types");
                swaps.push(begun.elapsed());
            }
            std::thread::sleep(Duration::from_millis(100).saturating_sub(begun.elapsed()));
        }
        stop.store(true, Ordering::Relaxed);
        let times = readers.into_iter().flat_map(|reader| reader.join().expect("no panic")).collect();
        (times, swaps)
    })
}

fn percentile(times: &mut [Duration], share: f64) -> f64 {
    if times.is_empty() {
        return 0.0;
    }
    times.sort_unstable();
    let at = ((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1));
    times[at].as_secs_f64() * 1e3
}

fn main() {
    let (items, seconds) = (number("SWAP_ITEMS", 10_000_000), number("SWAP_SECONDS", 10));
    let folder = tempfile::tempdir().expect("a folder");
    let files = snapshots(folder.path(), items as usize);
    println!("{items} items, {READERS} readers, {PHASES} phases of {seconds} s each");
    println!(
        "| device | beside | swaps | requests | p50 ms | p99 ms | p99 with / without | a swap, ms | resident |"
    );
    println!("|---|---|---:|---:|---:|---:|---:|---:|---:|");
    for (name, step) in [("steps of 1 ms", Some(Duration::from_millis(1))), ("CPU, small model", None)] {
        let engine = engine(&files[0], step);
        phase(&engine, 2, Beside::Nothing, &files);
        let kinds = [
            ("nothing", Beside::Nothing),
            ("swaps", Beside::Swaps),
            ("verified swaps", Beside::VerifiedSwaps),
        ];
        let mut results = vec![(Vec::new(), Vec::new()); kinds.len()];
        for _ in 0..PHASES {
            for ((_, beside), (times, swaps)) in kinds.iter().zip(&mut results) {
                let (more, made) = phase(&engine, seconds, *beside, &files);
                times.extend(more);
                swaps.extend(made);
            }
        }
        let still = percentile(&mut results[0].0, 0.99);
        for ((beside, _), (times, swaps)) in kinds.iter().zip(&mut results) {
            let p99 = percentile(times, 0.99);
            println!(
                "| {name} | {beside} | {} | {} | {:.2} | {p99:.2} | {:.3} | {:.1} | {} |",
                swaps.len(),
                times.len(),
                percentile(times, 0.5),
                p99 / still,
                percentile(swaps, 0.5),
                engine.catalog().expect("a catalog").stats().most_resident,
            );
        }
    }
}
