//! Tiny random models against transformers (`tests/golden/make.py`).
//!
//! One body for every device: log-probabilities at all 220 positions, the same bits in any chunking, bf16, a beam search under
//! a prefix constraint. `Plain` is the device that tells a fault of the model room from one of a device.

#[path = "golden/broken.rs"]
mod broken;
#[path = "golden/plain.rs"]
mod plain;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use plain::Plain;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use safetensors::SafeTensors;
use sidereal::device::ops::{
    Buffer, DType, Device, DeviceConfig, Plan, Segment, SegmentKind, SoftRow, every_token,
};
use sidereal::ids::{BlockId, TokenId};
use sidereal::kv::BLOCK_TOKENS;
use sidereal::model::{Config, Model, decoder};

use crate::devices::{cpus, cudas};
use crate::grounded_small;

const MODELS: [&str; 9] = [
    "llama2",
    "llama3",
    "llama_linear",
    "llama_f16_bias",
    "qwen2_window",
    "qwen2_yarn",
    "qwen3",
    "qwen3_sharded",
    "mistral",
];
const BLOCKS: usize = 16;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// What transformers says of a model.
struct Expected(BTreeMap<String, Vec<f32>>, Vec<TokenId>);

impl Expected {
    fn read(name: &str) -> Expected {
        let bytes = std::fs::read(golden(name).join("expected.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensor = |t: &safetensors::tensor::TensorView<'_>| -> Vec<[u8; 4]> {
            t.data().chunks(4).map(|c| c.try_into().unwrap()).collect()
        };
        let tokens = tensor(&file.tensor("tokens").unwrap());
        let tokens = tokens.into_iter().map(|b| TokenId(u32::from_le_bytes(b))).collect();
        let floats = |(name, t): (String, safetensors::tensor::TensorView<'_>)| {
            (name, tensor(&t).into_iter().map(f32::from_le_bytes).collect())
        };
        Expected(file.tensors().into_iter().filter(|(n, _)| n != "tokens").map(floats).collect(), tokens)
    }

    fn get(&self, name: &str) -> &[f32] {
        &self.0[name]
    }
}

fn device_config(model: &Model, dtype: DType) -> DeviceConfig {
    DeviceConfig {
        shape: model.shape().clone(),
        weights: model.weights.clone(),
        dtype,
        cache_blocks: BLOCKS,
        max_rows: 256,
        text_tokens: every_token(model.shape().vocab),
        layout: None,
    }
}

/// Every device that serves the type: the plain one, the CPU with each set of instructions that this machine has, the CUDA kernels in
/// reproducible mode.
fn devices(model: &Model, dtype: DType) -> Vec<Box<dyn Device>> {
    let config = || device_config(model, dtype);
    let mut devices: Vec<Box<dyn Device>> = vec![Box::new(Plain::new(config()))];
    devices.extend(cpus(&config, 2).into_iter().map(|(_, device)| device));
    if dtype != DType::F32 {
        devices.extend(cudas(&config, true).into_iter().map(|(_, device)| device));
    }
    devices
}

/// The plan of a chunk that follows `context` tokens; the blocks lie in the cache in an order of their own.
fn chunk(tokens: &[TokenId], context: usize) -> Plan {
    let rows = tokens.len();
    let blocks: Vec<BlockId> = (0..BLOCKS).map(|i| BlockId((i * 7 % BLOCKS) as u32)).collect();
    let used = (context + rows).div_ceil(BLOCK_TOKENS);
    let slot = |p: usize| (blocks[p / BLOCK_TOKENS].index() * BLOCK_TOKENS + p % BLOCK_TOKENS) as u32;
    Plan {
        tokens: tokens.to_vec(),
        positions: (context..context + rows).map(|p| p as u32).collect(),
        slots: (context..context + rows).map(slot).collect(),
        segments: vec![Segment {
            rows: 0..rows as u32,
            table: 0..used as u32,
            context: context as u32,
            kind: SegmentKind::Causal,
        }],
        blocks: blocks[..used].to_vec(),
        full_logits: (0..rows as u32).collect(),
        ..Plan::default()
    }
}

/// Logits of all positions, in chunks of the given sizes.
fn logits(
    device: &mut dyn Device,
    layers: usize,
    tokens: &[TokenId],
    sizes: &mut dyn FnMut() -> usize,
) -> Vec<f32> {
    let (mut all, mut context) = (Vec::new(), 0);
    while context < tokens.len() {
        let end = (context + sizes()).min(tokens.len());
        decoder::step(device, &chunk(&tokens[context..end], context), layers).unwrap();
        all.extend(device.read(Buffer::Logits).unwrap());
        context = end;
    }
    all
}

fn log_softmax(logits: &[f32], vocab: usize) -> Vec<f64> {
    let row = |row: &[f32]| -> Vec<f64> {
        let top = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let total = row.iter().map(|&x| (f64::from(x) - top).exp()).sum::<f64>().ln();
        row.iter().map(|&x| f64::from(x) - top - total).collect()
    };
    logits.chunks(vocab).flat_map(row).collect()
}

/// Largest and mean difference.
fn differences(found: &[f64], expected: &[f32]) -> (f64, f64) {
    assert_eq!(found.len(), expected.len());
    let d = found.iter().zip(expected).map(|(a, &b)| (a - f64::from(b)).abs());
    // `max` would pass over a NaN.
    let largest = d.clone().fold(0.0, |m, x| if x <= m { m } else { x });
    (largest, d.sum::<f64>() / found.len() as f64)
}

#[test]
fn logprobs_match_transformers() {
    for name in MODELS {
        let (model, expected) = (Model::open(&golden(name)).unwrap(), Expected::read(name));
        for mut device in devices(&model, DType::F32) {
            let logits = logits(&mut *device, model.shape().layers, &expected.1, &mut || 256);
            let found = log_softmax(&logits, model.shape().vocab);
            let (largest, _) = differences(&found, expected.get("logprobs"));
            println!("{name} on {}: {largest:.1e}", device.describe());
            assert!(largest <= 1e-4, "{name} on {}: differs by {largest}", device.describe());
        }
    }
}

#[test]
fn chunks_and_single_tokens_give_the_same_bits() {
    let mut draw = SmallRng::seed_from_u64(3);
    for name in MODELS {
        let (model, expected) = (Model::open(&golden(name)).unwrap(), Expected::read(name));
        let layers = model.shape().layers;
        for dtype in [DType::F32, DType::Bf16] {
            for mut device in devices(&model, dtype) {
                let whole = logits(&mut *device, layers, &expected.1, &mut || 256);
                let single = logits(&mut *device, layers, &expected.1, &mut || 1);
                let chunks = logits(&mut *device, layers, &expected.1, &mut || draw.random_range(1..50));
                let same = |other: &[f32]| whole.iter().zip(other).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same(&single), "{name} {dtype} on {}: token by token", device.describe());
                assert!(same(&chunks), "{name} {dtype} on {}: chunks", device.describe());
            }
        }
    }
}

#[test]
fn bf16_errs_at_most_twice_as_much_as_transformers() {
    for name in ["llama3", "qwen3"] {
        let (model, expected) = (Model::open(&golden(name)).unwrap(), Expected::read(name));
        let reference = expected.get("logprobs");
        let theirs: Vec<f64> = expected.get("logprobs_bf16").iter().map(|&v| f64::from(v)).collect();
        let (their_largest, their_mean) = differences(&theirs, reference);
        for mut device in devices(&model, DType::Bf16) {
            let logits = logits(&mut *device, model.shape().layers, &expected.1, &mut || 256);
            let (largest, mean) = differences(&log_softmax(&logits, model.shape().vocab), reference);
            let on = device.describe();
            println!(
                "{name} on {on}: mean {mean:.4} of {their_mean:.4}, largest {largest:.3} of {their_largest:.3}"
            );
            assert!(mean <= 2.0 * their_mean, "{name} on {on}: mean {mean} against {their_mean}");
            assert!(largest <= 2.0 * their_largest, "{name} on {on}: {largest} against {their_largest}");
        }
    }
}

/// All architectures on the CUDA kernels in their default mode, prompts whole, in pieces and token by token.
#[test]
fn every_architecture_on_the_cuda_kernels_stays_within_half_precision() {
    for name in MODELS {
        let (model, expected) = (Model::open(&golden(name)).unwrap(), Expected::read(name));
        let (layers, vocab) = (model.shape().layers, model.shape().vocab);
        // Transformers in bf16 errs by 0.057 on average on llama3; f16 is eight times finer.
        for (dtype, most_mean, most) in [(DType::F16, 0.01, 0.15), (DType::Bf16, 0.08, 1.2)] {
            for (on, mut device) in cudas(&|| device_config(&model, dtype), false) {
                for piece in [256, 19, 1] {
                    let tokens = if piece == 1 { &expected.1[..40] } else { &expected.1[..] };
                    let logits = logits(&mut *device, layers, tokens, &mut || piece);
                    let reference = &expected.get("logprobs")[..tokens.len() * vocab];
                    let (largest, mean) = differences(&log_softmax(&logits, vocab), reference);
                    println!("{name} {dtype} on {on} by {piece}: mean {mean:.5}, largest {largest:.4}");
                    let what = format!("{name} {dtype} on {on} by {piece}");
                    assert!(mean <= most_mean, "{what}: differs by {mean} on average");
                    assert!(largest <= most, "{what}: differs by {largest}");
                }
            }
        }
    }
}

#[test]
fn rope_frequencies_match_transformers() {
    for name in MODELS {
        let (model, expected) = (Model::open(&golden(name)).unwrap(), Expected::read(name));
        let rope = &model.shape().rope;
        let theirs = expected.get("inv_freq");
        assert_eq!(rope.inv_freq.len(), theirs.len(), "{name}");
        for (i, (a, b)) in rope.inv_freq.iter().zip(theirs).enumerate() {
            // Their power is good to one unit in the last place, ours to half of one.
            assert!((a - b).abs() <= 2.0 * f32::EPSILON * b, "{name}: inv_freq[{i}] is {a}, expected {b}");
        }
        assert_eq!(rope.scale, expected.get("rope_scale")[0], "{name}");
    }
}

#[test]
fn ropes_of_published_models_match_transformers() {
    let text = std::fs::read_to_string(golden("ropes.json")).unwrap();
    let rows: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(rows.len(), 12);
    for row in rows {
        let (name, path, empty) = (&row["name"], Path::new("config.json"), serde_json::Map::new());
        let config = Config::from_maps((path, row["config"].as_object().unwrap()), (path, &empty)).unwrap();
        let rope = config.shape.rope;
        let theirs: Vec<f32> =
            row["inv_freq"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect();
        assert_eq!(rope.inv_freq.len(), theirs.len(), "{name}");
        for (i, (a, b)) in rope.inv_freq.iter().zip(&theirs).enumerate() {
            // Four units: where llama3 blends, the difference of two powers is enlarged.
            assert!((a - b).abs() <= 4.0 * f32::EPSILON * b, "{name}: inv_freq[{i}] is {a}, expected {b}");
        }
        assert_eq!(rope.scale, row["scale"].as_f64().unwrap() as f32, "{name}");
    }
}

#[test]
fn the_adapter_matches_torch() {
    let (model, expected) = (Model::open(&golden("qwen3_sharded")).unwrap(), Expected::read("qwen3_sharded"));
    let adapter = model.adapter.as_ref().expect("the folder has an adapter");
    assert_eq!((adapter.input(), adapter.output()), (24, model.shape().hidden));
    let outputs = expected.get("adapter_out").chunks(adapter.output());
    for (x, y) in expected.get("adapter_in").chunks(adapter.input()).zip(outputs) {
        for (a, b) in adapter.apply(x).unwrap().iter().zip(y) {
            assert!((a - b).abs() <= 1e-5 * b.abs().max(1.0), "{a} against {b}");
        }
    }
    assert!(Model::open(&golden("qwen3")).unwrap().adapter.is_none());
}

#[test]
fn a_soft_row_that_is_an_embedding_is_that_token() {
    let (model, expected) = (Model::open(&golden("qwen3")).unwrap(), Expected::read("qwen3"));
    let (layers, width) = (model.shape().layers, model.shape().hidden);
    let embed = model.weights.embed.to_f32();
    for mut device in devices(&model, DType::F32) {
        let mut plan = chunk(&expected.1[..20], 0);
        decoder::step(&mut *device, &plan, layers).unwrap();
        let plain = device.read(Buffer::Logits).unwrap();
        let row = plan.tokens[7].index();
        plan.soft = vec![SoftRow { row: 7, values: embed[row * width..][..width].into() }];
        plan.tokens[7] = TokenId(0);
        decoder::step(&mut *device, &plan, layers).unwrap();
        assert_eq!(device.read(Buffer::Logits).unwrap(), plain, "{}", device.describe());
    }
}

#[test]
fn end_tokens_and_names_come_from_the_folder() {
    let model = Model::open(&golden("llama3")).unwrap();
    assert_eq!(model.eos(), [TokenId(2), TokenId(3), TokenId(5)]);
    assert_eq!((model.name.as_str(), model.config.architecture.name), ("llama3", "LlamaForCausalLM"));
    assert_eq!(model.dtype(), DType::Bf16);
    let mut ids: Vec<_> = MODELS.iter().map(|m| Model::open(&golden(m)).unwrap().id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), MODELS.len(), "two models share an id");
    let mut seen = Vec::new();
    model.preload(&mut |done, total| seen.push((done, total)));
    assert!(matches!(seen.last(), Some((done, total)) if done == total), "{seen:?}");
}

/// Transformers' beam search under a prefix constraint, found again by recomputing every prefix.
#[test]
fn beams_match_transformers() {
    let model = Model::open(&golden("qwen3")).unwrap();
    let text = std::fs::read_to_string(golden("qwen3").join("beams.json")).unwrap();
    let beams: serde_json::Value = serde_json::from_str(&text).unwrap();
    let token = |kind: &str, level: usize, code: u64| {
        TokenId(beams["tokens"][format!("<{kind}_{level}_{code}>")].as_u64().unwrap() as u32)
    };
    let spell = |item: &serde_json::Value| -> Vec<TokenId> {
        let kind = item["type"].as_str().unwrap();
        let sid = item["sid"].as_array().unwrap();
        sid.iter().enumerate().map(|(level, c)| token(kind, level, c.as_u64().unwrap())).collect()
    };
    let catalog = std::fs::read_to_string(golden("qwen3").join("catalog.jsonl")).unwrap();
    let items: BTreeSet<Vec<TokenId>> =
        catalog.lines().map(|l| spell(&serde_json::from_str(l).unwrap())).collect();
    assert_eq!(items.len(), 95);
    for mut device in devices(&model, DType::F32) {
        for case in beams["cases"].as_array().unwrap() {
            let width = case["width"].as_u64().unwrap() as usize;
            let prompt: Vec<TokenId> = case["prompt"]
                .as_array()
                .unwrap()
                .iter()
                .map(|t| TokenId(t.as_u64().unwrap() as u32))
                .collect();
            let mut live: Vec<(Vec<TokenId>, f64)> = vec![(Vec::new(), 0.0)];
            for level in 0..3 {
                let mut next = Vec::new();
                for (path, score) in &live {
                    let tokens = [&prompt[..], path].concat();
                    let all = logits(&mut *device, model.shape().layers, &tokens, &mut || 256);
                    let last = log_softmax(&all[all.len() - model.shape().vocab..], model.shape().vocab);
                    let codes: BTreeSet<TokenId> =
                        items.iter().filter(|i| i.starts_with(path)).map(|i| i[level]).collect();
                    next.extend(
                        codes.into_iter().map(|c| ([&path[..], &[c]].concat(), score + last[c.index()])),
                    );
                }
                next.sort_by(|a, b| b.1.total_cmp(&a.1));
                next.truncate(width);
                live = next;
            }
            let expected = case["paths"].as_array().unwrap();
            assert_eq!(live.len(), expected.len(), "width {width}");
            for ((path, score), item) in live.iter().zip(expected) {
                assert_eq!(*path, spell(item), "width {width}");
                let theirs = item["score"].as_f64().unwrap();
                assert!((score - theirs).abs() <= 1e-4, "width {width}: {score} against {theirs}");
            }
        }
    }
}

/// A golden model is of use only if it tells a small fault from none.
#[test]
fn small_faults_show() {
    type Fault = fn(&mut DeviceConfig);
    let faults: [(&str, &str, Fault); 9] = [
        ("mistral", "window", |c| c.shape.window.iter_mut().flatten().for_each(|w| *w += 1)),
        ("qwen2_window", "window", |c| c.shape.window.swap(0, 2)),
        ("llama2", "eps", |c| c.shape.eps *= 100.0),
        ("llama3", "rope", |c| c.shape.rope.inv_freq[3] *= 1.001),
        ("qwen2_yarn", "scale", |c| c.shape.rope.scale *= 1.001),
        ("qwen2_yarn", "bias", |c| c.weights.layers[1].qkv_bias.as_mut().unwrap().swap(1, 2)),
        ("llama_f16_bias", "output bias", |c| c.weights.layers[0].o_bias = None),
        ("qwen3", "q and k norm", |c| c.weights.layers[1].qk_norm.as_mut().unwrap().swap(0, 1)),
        ("qwen3_sharded", "norms", |c| {
            let l = &mut c.weights.layers[2];
            std::mem::swap(&mut l.input_norm, &mut l.post_norm);
        }),
    ];
    for (name, what, fault) in faults {
        let (model, expected) = (Model::open(&golden(name)).unwrap(), Expected::read(name));
        let mut config = device_config(&model, DType::F32);
        fault(&mut config);
        let logits = logits(&mut Plain::new(config), model.shape().layers, &expected.1, &mut || 256);
        let found = log_softmax(&logits, model.shape().vocab);
        let (largest, _) = differences(&found, expected.get("logprobs"));
        assert!(largest > 2e-4, "{name}: a wrong {what} differs by {largest} only");
    }
}

/// The model that learned a real catalog, where the checkout has it: the last 24 positions of its prompts.
#[test]
fn grounded_small_matches_transformers() {
    let Some(dir) = grounded_small::folder() else { return };
    let model = Model::open(&dir).unwrap();
    assert_eq!(model.eos(), [TokenId(2)]);
    let vocab = model.shape().vocab;
    let bytes = std::fs::read(dir.join("expected/logprobs.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut prompts: Vec<&str> = file.names().into_iter().filter(|n| n.starts_with("ids.")).collect();
    prompts.sort();
    for mut device in devices(&model, DType::F32) {
        // The plain device takes its time.
        let most = if device.describe() == "plain" { 2 } else { prompts.len() };
        for name in &prompts[..most] {
            let ids = file.tensor(name).unwrap();
            let id = |b: &[u8]| TokenId(i64::from_le_bytes(b.try_into().unwrap()) as u32);
            let ids: Vec<TokenId> = ids.data().chunks(8).map(id).collect();
            let theirs = file.tensor(&name.replace("ids", "logprobs")).unwrap();
            let float = |b: &[u8]| f32::from_le_bytes(b.try_into().unwrap());
            let theirs: Vec<f32> = theirs.data().chunks(4).map(float).collect();
            let all = logits(&mut *device, model.shape().layers, &ids, &mut || 256);
            let found = log_softmax(&all[all.len() - theirs.len()..], vocab);
            let (largest, _) = differences(&found, &theirs);
            println!("{name} on {}: {largest:.1e}", device.describe());
            assert!(largest <= 1e-4, "{name} on {}: differs by {largest}", device.describe());
        }
    }
}
