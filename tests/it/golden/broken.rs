//! Broken model folders: every one is refused with a sentence that names the file and the place, and none panics.

use std::fs;
use std::path::{Path, PathBuf};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use sidereal::device::ops::{DType, Tensor};
use sidereal::model::Model;
use sidereal::model::tensors::{TensorFile, write};
use tempfile::TempDir;

use super::golden;

/// A copy of a golden model's folder that a test may break.
fn copy(name: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join(name);
    fs::create_dir(&to).unwrap();
    for entry in fs::read_dir(golden(name)).unwrap() {
        let entry = entry.unwrap();
        fs::write(to.join(entry.file_name()), fs::read(entry.path()).unwrap()).unwrap();
    }
    (dir, to)
}

fn message(dir: &Path) -> String {
    match Model::open(dir) {
        Ok(_) => panic!("{} was accepted", dir.display()),
        Err(e) => e.to_string(),
    }
}

/// Rewrites one shard after `change` had its way with the tensors.
fn rewrite(file: &Path, change: impl Fn(&str, Tensor) -> Option<Tensor>) {
    let open = TensorFile::open(file).unwrap();
    let tensors: Vec<_> = open
        .entries()
        .iter()
        .filter_map(|e| change(&e.name, open.tensor(e).unwrap()).map(|t| (e.name.clone(), t)))
        // The map must not be written over while it is read.
        .map(|(name, t)| (name, Tensor::rounded(t.dtype(), t.shape().to_vec(), &t.to_f32())))
        .collect();
    drop(open);
    write(file, &tensors).unwrap();
}

/// The shard of a tensor.
fn shard_of(dir: &Path, tensor: &str) -> String {
    let index: Value =
        serde_json::from_str(&fs::read_to_string(dir.join("model.safetensors.index.json")).unwrap()).unwrap();
    index["weight_map"][tensor].as_str().unwrap().to_owned()
}

#[test]
fn a_wrong_tensor_is_named_with_both_shapes_and_its_file() {
    let name = "model.layers.1.self_attn.q_norm.weight";
    let (_guard, dir) = copy("qwen3_sharded");
    let shard = shard_of(&dir, name);
    rewrite(&dir.join(&shard), |n, t| Some(if n == name { Tensor::from_f32(vec![8], &[1.0; 8]) } else { t }));
    let found = message(&dir);
    assert!(found.contains(&format!("{name}: expected [16] bf16, found [8] f32 in {shard}")), "{found}");

    let (_guard, dir) = copy("qwen3");
    rewrite(&dir.join("model.safetensors"), |n, t| (n != name).then_some(t));
    let found = message(&dir);
    assert!(
        found.contains("model.safetensors") && found.contains(&format!("{name}: expected [32] bf16")),
        "{found}"
    );
}

#[test]
fn mixed_types_are_served_as_they_are() {
    let (_guard, dir) = copy("qwen3");
    rewrite(&dir.join("model.safetensors"), |n, t| {
        Some(if n.contains("norm") { Tensor::from_f32(t.shape().to_vec(), &t.to_f32()) } else { t })
    });
    let model = Model::open(&dir).unwrap();
    assert_eq!(model.weights.norm.dtype(), DType::F32);
    assert_eq!(model.dtype(), DType::Bf16);
}

#[test]
fn an_index_that_lies_is_refused() {
    let tensor = "model.norm.weight";
    let table = [
        (json!("../model-00001-of-00003.safetensors"), "leaves the folder"),
        (json!("/etc/passwd"), "leaves the folder"),
        (json!(""), "leaves the folder"),
        (json!("."), "leaves the folder"),
        (json!("absent.safetensors"), "absent.safetensors"),
        (json!(7), "weight_map.\"model.norm.weight\": expected a file name, found 7"),
        (json!("config.json"), "config.json"),
    ];
    for (file, expected) in table {
        let (_guard, dir) = copy("qwen3_sharded");
        let path = dir.join("model.safetensors.index.json");
        let mut index: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        index["weight_map"][tensor] = file.clone();
        fs::write(&path, index.to_string()).unwrap();
        let found = message(&dir);
        assert!(found.contains(expected), "{file}: {found:?} lacks {expected:?}");
    }
    let (_guard, dir) = copy("qwen3_sharded");
    let path = dir.join("model.safetensors.index.json");
    let mut index: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let wrong = if shard_of(&dir, tensor).contains("00001") { "00002" } else { "00001" };
    index["weight_map"][tensor] = format!("model-{wrong}-of-00003.safetensors").into();
    fs::write(&path, index.to_string()).unwrap();
    assert!(message(&dir).contains("\"model.norm.weight\" is not in"), "{}", message(&dir));
    fs::write(&path, "{}").unwrap();
    assert!(message(&dir).contains("weight_map: expected a map"));
    fs::remove_file(&path).unwrap();
    assert!(message(&dir).contains("holds neither model.safetensors nor model.safetensors.index.json"));
    assert!(message(&dir.join("nowhere")).contains("is not a folder"));
}

#[test]
fn a_broken_adapter_is_refused() {
    let (_guard, dir) = copy("qwen3_sharded");
    let file = dir.join("adapter.safetensors");
    let original = fs::read(&file).unwrap();
    rewrite(&file, |n, t| (n != "adapter.2.bias").then_some(t));
    assert!(message(&dir).contains("adapter.2.bias: expected [40]"), "{}", message(&dir));
    fs::write(&file, &original).unwrap();
    rewrite(&file, |n, t| {
        Some(if n == "adapter.0.weight" { Tensor::from_f32(vec![2], &[1.0; 2]) } else { t })
    });
    assert!(
        message(&dir).contains("adapter.0.weight: expected [inner, input], found [2]"),
        "{}",
        message(&dir)
    );
    fs::write(&file, &original[..100]).unwrap();
    assert!(message(&dir).contains("adapter.safetensors"));
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let (_guard, dir) = copy("qwen3");
    let path = dir.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize + 8;
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    // From the end backwards, so that cutting is all there is to do.
    let data = (header..bytes.len()).rev().step_by(997);
    for length in data.chain((0..=header).rev()) {
        file.set_len(length as u64).unwrap();
        let found = message(&dir);
        assert!(found.contains("model.safetensors: "), "cut at {length}: {found}");
    }
    let config = fs::read(dir.join("config.json")).unwrap();
    fs::write(&path, &bytes).unwrap();
    let end = config.iter().rposition(|&b| b == b'}').unwrap();
    for length in 0..=end {
        fs::write(dir.join("config.json"), &config[..length]).unwrap();
        let found = message(&dir);
        assert!(found.contains("config.json: "), "cut at {length}: {found}");
    }
}

#[test]
fn a_header_with_any_byte_changed_is_refused_or_harmless() {
    let (_guard, dir) = copy("qwen3");
    let path = dir.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize + 8;
    let mut refused = 0;
    for at in 0..header {
        let mut changed = bytes.clone();
        changed[at] ^= 1 << (at % 8);
        fs::write(&path, &changed).unwrap();
        if let Err(e) = Model::open(&dir) {
            assert!(e.to_string().contains("model.safetensors"), "byte {at}: {e}");
            refused += 1;
        }
    }
    // What may change unseen are the free texts of the metadata and the spaces of the padding.
    assert!(refused > header * 9 / 10, "{refused} of {header} refused");
}

/// Changes a few bytes, cuts, doubles or swaps pieces: what a broken transfer or a hostile hand may leave.
fn mutate(bytes: &mut Vec<u8>, draw: &mut SmallRng) {
    for _ in 0..draw.random_range(1..4) {
        let at = draw.random_range(0..bytes.len().max(1)).min(bytes.len().saturating_sub(1));
        let end = (at + draw.random_range(1..24)).min(bytes.len());
        match draw.random_range(0..6) {
            0 if at < bytes.len() => bytes[at] = draw.random(),
            1 => drop(bytes.drain(at..end)),
            2 => {
                let piece = bytes[at..end].to_vec();
                let to = draw.random_range(0..=bytes.len());
                bytes.splice(to..to, piece);
            }
            3 => {
                let words: [&[u8]; 6] =
                    [b"18446744073709551615", b"-1", b"null", b"1e999", b"[[[[", b"\"\\ud800\""];
                bytes.splice(at..end, words[draw.random_range(0..6)].iter().copied());
            }
            4 => bytes.truncate(end),
            // Numbers stay numbers, so that the change passes the parser and reaches the checks.
            _ => {
                if let Some(digit) = bytes[at..].iter_mut().find(|b| b.is_ascii_digit()) {
                    *digit = b'0' + draw.random_range(0..10);
                }
            }
        }
    }
}

#[test]
fn thousands_of_mutations_never_panic() {
    let mut draw = SmallRng::seed_from_u64(5);
    let (mut refused, mut total) = (0, 0);
    for (name, files) in [
        ("qwen3", &["model.safetensors", "config.json", "generation_config.json"][..]),
        (
            "qwen3_sharded",
            &["model.safetensors.index.json", "adapter.safetensors", "model-00003-of-00003.safetensors"],
        ),
        ("llama3", &["config.json"]),
        ("qwen2_yarn", &["config.json"]),
    ] {
        let (_guard, dir) = copy(name);
        for file in files {
            let path = dir.join(file);
            let original = fs::read(&path).unwrap();
            for _ in 0..400 {
                let mut bytes = original.clone();
                let binary = file.ends_with("safetensors");
                if binary && draw.random_bool(0.9) {
                    // Of a file of tensors only the header can be broken.
                    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize + 8;
                    let data = bytes.split_off(header);
                    mutate(&mut bytes, &mut draw);
                    if draw.random_bool(0.7) && bytes.len() > 8 {
                        let length = bytes.len() as u64 - 8;
                        bytes[..8].copy_from_slice(&length.to_le_bytes());
                    }
                    bytes.extend(data);
                } else {
                    mutate(&mut bytes, &mut draw);
                }
                fs::write(&path, &bytes).unwrap();
                total += 1;
                if let Err(e) = Model::open(&dir) {
                    refused += 1;
                    assert!(e.to_string().len() < 1000, "a message as long as a file: {e}");
                }
            }
            fs::write(&path, &original).unwrap();
        }
    }
    assert!(total >= 3000 && refused > total / 2, "{refused} of {total} refused");
}
