//! Models that speak a layout: old rows stay, new tokens resolve, an engine opens the folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sidereal::catalog::{Layout, LayoutSpec};
use sidereal::device::ops::Tensor;
use sidereal::engine::EngineBuilder;
use sidereal::ids::TokenId;
use sidereal::model::tensors::TensorFile;
use sidereal::model::{DemoSpec, Model, write_demo};
use sidereal::sid::{Codebooks, FitOptions, Init, Vectors, extend, fit};
use sidereal::text::{Tokenizer, tiny};

use super::clustered;

fn quiet(_: &'static str, _: u64, _: u64) {}

/// A folder of the demonstration's kind whose matrices have `padding` rows more than the tokenizer has entries.
fn folder(dir: &Path, extra: &[&str], padding: usize) -> PathBuf {
    let extra: Vec<String> = extra.iter().map(|&t| t.to_owned()).collect();
    let tokenizer = tiny::tokenizer_json(&extra);
    let vocab = Tokenizer::from_json(tokenizer.as_bytes(), None, None).unwrap().vocab_size();
    let files = [
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", tiny::tokenizer_config_json()),
        ("notes.txt", "kept".to_owned()),
        ("pytorch_model.bin", "weights of another kind".to_owned()),
    ];
    let folder = dir.join("model");
    write_demo(&folder, &DemoSpec::new(vocab + padding, TokenId(2)), &files).unwrap();
    folder
}

/// One of the golden models with a tokenizer that its rows have room for.
fn golden(dir: &Path, name: &str, vocab: usize) -> PathBuf {
    let folder = dir.join(name);
    std::fs::create_dir(&folder).unwrap();
    for entry in
        std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)).unwrap()
    {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if !["expected.safetensors", "sid_layout.json", "catalog.jsonl", "beams.json"].contains(&name) {
            std::fs::copy(&path, folder.join(name)).unwrap();
        }
    }
    let words: BTreeMap<String, usize> = (0..vocab).map(|id| (format!("w{id}"), id)).collect();
    let tokenizer = serde_json::json!({"version": "1.0", "added_tokens": [], "normalizer": null, "post_processor": null,
        "pre_tokenizer": {"type": "Whitespace"}, "decoder": null,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "w0"}});
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    std::fs::write(folder.join("added_tokens.json"), "{\"old\": 1}").unwrap();
    let config = serde_json::json!({"added_tokens_decoder": {}, "eos_token": "w2"});
    std::fs::write(folder.join("tokenizer_config.json"), config.to_string()).unwrap();
    folder
}

fn layout(levels: &[usize]) -> LayoutSpec {
    serde_json::from_value(serde_json::json!({"open": "<|sid_begin|>", "close": "<|sid_end|>",
        "types": [{"name": "book", "levels": levels, "token": "<book_{level}_{code}>"}]}))
    .unwrap()
}

fn snapshot(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    files.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

/// The bytes of a row.
fn row(tensor: &Tensor, row: usize) -> &[u8] {
    let width = tensor.shape()[1] * tensor.dtype().size();
    &tensor.bytes()[row * width..][..width]
}

fn floats(bytes: &[u8]) -> Vec<f64> {
    bytes.as_chunks::<2>().0.iter().map(|&b| half::bf16::from_le_bytes(b).to_f64()).collect()
}

#[test]
fn tokens_follow_the_last_one_and_old_rows_stay() {
    for (padding, levels) in [(0, vec![3, 5]), (6, vec![3, 5]), (8, vec![3, 5]), (500, vec![40, 2, 7])] {
        let dir = tempfile::tempdir().unwrap();
        // One code is there already, among the tokenizer's own.
        let from = folder(dir.path(), &["<book_1_1>"], padding);
        let before = snapshot(&from);
        let out = dir.path().join("out");
        let done = extend(&from, &layout(&levels), &Init::Normal, 3, &out).unwrap();
        assert_eq!(snapshot(&from), before, "the original was touched");
        let (old, new) = (Model::open(&from).unwrap(), Model::open(&out).unwrap());
        let (old_tokens, new_tokens) = (Tokenizer::open(&from).unwrap(), Tokenizer::open(&out).unwrap());
        let size = old_tokens.vocab_size();
        let codes: usize = levels.iter().sum();
        // The demonstration's tokenizer has both delimiters.
        assert_eq!((done.added, done.existing, done.first), (codes - 1, 3, Some(TokenId(size as u32))));
        assert_eq!(new_tokens.vocab_size(), size + codes - 1);
        let rows = (size + padding).max(size + codes - 1);
        assert_eq!((new.shape().vocab, done.rows, done.rows_before), (rows, rows, size + padding));
        assert_eq!(done.left_behind, ["pytorch_model.bin"]);
        assert_eq!(std::fs::read(out.join("notes.txt")).unwrap(), b"kept");
        assert!(!out.join("pytorch_model.bin").exists());
        for id in 0..size {
            assert_eq!(row(&new.weights.embed, id), row(&old.weights.embed, id), "row {id}");
            let token = TokenId(id as u32);
            assert_eq!(new_tokens.id_to_token(token), old_tokens.id_to_token(token));
        }
        // Padding behind the new tokens stays, that below them does not.
        for id in size + codes - 1..rows {
            assert_eq!(row(&new.weights.embed, id), row(&old.weights.embed, id), "padding {id}");
        }
        for id in size..(size + padding).min(size + codes - 1) {
            assert_ne!(
                row(&new.weights.embed, id),
                row(&old.weights.embed, id),
                "a new token has old padding"
            );
        }
        for (a, b) in old.weights.layers.iter().zip(&new.weights.layers) {
            assert_eq!((a.q.bytes(), a.down.bytes()), (b.q.bytes(), b.down.bytes()));
        }
        let spec = LayoutSpec::read(out.join("sid_layout.json")).unwrap();
        assert_eq!(spec, layout(&levels));
        let resolved = Layout::resolve(&spec, |token| new_tokens.token_to_id(token)).unwrap();
        assert_eq!(resolved.tokens().count(), codes + 2);
        // Written out by an operator they are tokens; a text is as it was.
        let spelled = new_tokens.encode_trusted("<book_0_2><book_1_0>").unwrap();
        assert_eq!(spelled, ["<book_0_2>", "<book_1_0>"].map(|t| new_tokens.token_to_id(t).unwrap()));
        let text = "The Silent Harbor, a book: <b>";
        assert_eq!(new_tokens.encode(text).unwrap(), old_tokens.encode(text).unwrap());
        EngineBuilder::open(&out).unwrap().start().unwrap();
        // A second time there is nothing to add, and nothing changes.
        let again = dir.path().join("again");
        let done = extend(&out, &layout(&levels), &Init::Mean, 3, &again).unwrap();
        assert_eq!((done.added, done.first, done.rows), (0, None, rows));
        assert_eq!(
            std::fs::read(again.join("model.safetensors")).unwrap(),
            std::fs::read(out.join("model.safetensors")).unwrap()
        );
    }
}

#[test]
fn heads_of_their_own_and_shards() {
    for name in ["qwen3_sharded", "llama3", "llama_f16_bias", "mistral"] {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path();
        let vocab = Model::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name))
            .unwrap()
            .shape()
            .vocab;
        let from = golden(from, name, vocab - 3);
        let out = dir.path().join("out");
        let done = extend(&from, &layout(&[4, 4]), &Init::Normal, 0, &out).unwrap();
        assert_eq!((done.added, done.rows), (10, vocab + 7), "{name}");
        let (old, new) = (Model::open(&from).unwrap(), Model::open(&out).unwrap());
        assert_eq!(new.config.tied, old.config.tied);
        for id in 0..vocab - 3 {
            assert_eq!(row(&new.weights.embed, id), row(&old.weights.embed, id), "{name}: row {id}");
            assert_eq!(row(&new.weights.head, id), row(&old.weights.head, id), "{name}: head {id}");
        }
        let same = (vocab - 3..vocab + 7).all(|id| row(&new.weights.embed, id) == row(&new.weights.head, id));
        assert_eq!(same, new.config.tied, "{name}: draws of embedding and head");
        assert_eq!(new.weights.embed.dtype(), old.weights.embed.dtype());
        for file in std::fs::read_dir(&from).unwrap().map(|entry| entry.unwrap().path()) {
            let to = out.join(file.file_name().unwrap());
            assert!(to.exists(), "{}", to.display());
            if file.extension().is_some_and(|e| e == "safetensors") {
                let (a, b) = (TensorFile::open(&file).unwrap(), TensorFile::open(&to).unwrap());
                let names = |f: &TensorFile| f.entries().iter().map(|e| e.name.clone()).collect::<Vec<_>>();
                assert_eq!((names(&a), a.metadata()), (names(&b), b.metadata()));
            }
        }
        let json = |name: &str| -> serde_json::Value {
            serde_json::from_slice(&std::fs::read(out.join(name)).unwrap()).unwrap()
        };
        if name == "qwen3_sharded" {
            let files = std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().path());
            let shards = files.filter(|f| f.file_name().unwrap().to_str().unwrap().starts_with("model-"));
            let bytes: usize = shards
                .flat_map(|f| TensorFile::open(&f).unwrap().entries().to_vec())
                .map(|e| e.range.len())
                .sum();
            assert_eq!(json("model.safetensors.index.json")["metadata"]["total_size"], bytes);
        }
        assert_eq!(json("config.json")["vocab_size"], vocab + 7);
        assert_eq!(json("added_tokens.json")["<book_0_0>"], vocab - 1);
        let decoder = &json("tokenizer_config.json")["added_tokens_decoder"];
        assert_eq!(decoder[(vocab - 1).to_string()]["content"], "<book_0_0>");
        assert_eq!(decoder[(vocab - 1).to_string()]["special"], false);
    }
}

#[test]
fn new_rows_are_what_was_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let from = folder(dir.path(), &[], 0);
    let old = Model::open(&from).unwrap();
    let (vocab, hidden) = (old.shape().vocab, old.shape().hidden);
    let all: Vec<Vec<f64>> = (0..vocab).map(|id| floats(row(&old.weights.embed, id))).collect();
    let mean: Vec<f64> =
        (0..hidden).map(|at| all.iter().map(|r| r[at]).sum::<f64>() / vocab as f64).collect();
    let length = |v: &[f64]| v.iter().map(|v| v * v).sum::<f64>().sqrt();
    let apart = |a: &[f64], b: &[f64]| length(&a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<_>>());
    let spread = (all.iter().map(|r| apart(r, &mean).powi(2)).sum::<f64>() / vocab as f64).sqrt();
    let vectors = Vectors::from_rows(6, clustered(900, 6, 30, 1)).unwrap();
    let mut options = FitOptions::new([16, 8]);
    options.unique = Some(90);
    let books = fit("book", &vectors, &options, &quiet).unwrap().codebooks;
    let levels = books.sizes();
    let run = |init: &Init, seed: u64, name: &str| -> Vec<Vec<f64>> {
        let out = dir.path().join(name);
        extend(&from, &layout(&levels), init, seed, &out).unwrap();
        let new = Model::open(&out).unwrap();
        (vocab..new.shape().vocab).map(|id| floats(row(&new.weights.embed, id))).collect()
    };
    assert!(run(&Init::Zero, 0, "zero").iter().all(|row| row.iter().all(|&v| v == 0.0)));
    for row in run(&Init::Mean, 0, "mean") {
        assert!(apart(&row, &mean) < 0.005 * spread, "bf16 rounds by 1/256");
    }
    let normal = run(&Init::Normal, 0, "normal");
    let lengths: Vec<f64> = normal.iter().map(|r| apart(r, &mean)).collect();
    let average = lengths.iter().sum::<f64>() / lengths.len() as f64;
    assert!((0.9..1.1).contains(&(average / spread)), "{average} beside {spread}");
    assert_eq!(normal, run(&Init::Normal, 0, "normal again"));
    assert_ne!(normal, run(&Init::Normal, 1, "another seed"));
    let init = Init::Centroids(Codebooks { types: vec![books.clone()] });
    let rows = run(&init, 0, "centroids");
    for (at, row) in rows[..24].iter().enumerate() {
        assert!((0.98..1.02).contains(&(apart(row, &mean) / spread)), "row {at}");
    }
    // A projection keeps angles, roughly: alike centroids, alike rows.
    let centred = |row: &[f64]| row.iter().zip(&mean).map(|(v, m)| v - m).collect::<Vec<_>>();
    let cosine =
        |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>() / length(a) / length(b);
    let centroid =
        |code: u16| books.levels[0].centroid(code).iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
    let mut worst: f64 = 0.0;
    for a in 0..16u16 {
        for b in 0..16u16 {
            let ours = cosine(&centred(&rows[usize::from(a)]), &centred(&rows[usize::from(b)]));
            worst = worst.max((ours - cosine(&centroid(a), &centroid(b))).abs());
        }
    }
    assert!(worst < 0.6, "{worst}");
    assert_eq!(rows[24..], normal[24..], "codes without a centroid are drawn");
}

#[test]
fn what_cannot_be_extended_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let from = folder(dir.path(), &[], 0);
    let out = dir.path().join("out");
    let message = |layout: &LayoutSpec, init: &Init, out: &Path| {
        extend(&from, layout, init, 0, out).unwrap_err().to_string()
    };
    let numbers: LayoutSpec =
        serde_json::from_str(r#"{"types": [{"name": "book", "levels": [4], "token": [900]}]}"#).unwrap();
    let error = message(&numbers, &Init::Mean, &out);
    assert!(error.contains("types[0].token: `[900]` names no tokens"), "{error}");
    let error = message(&layout(&[0]), &Init::Mean, &out);
    assert!(error.contains("a codebook of 0 codes"), "{error}");
    let error = message(&layout(&[70_000]), &Init::Mean, &out);
    assert!(error.contains("a codebook of 70000 codes"), "{error}");
    let books =
        fit("book", &Vectors::from_rows(2, clustered(50, 2, 3, 2)).unwrap(), &FitOptions::new([4]), &quiet);
    let books = Init::Centroids(Codebooks { types: vec![books.unwrap().codebooks] });
    let error = message(&layout(&[5]), &books, &out);
    assert!(error.contains("[5] in the layout; the codebooks of `book` have [4]"), "{error}");
    let error = message(&layout(&[4]), &Init::Centroids(Codebooks::default()), &out);
    assert!(error.contains("no codebooks of `book`"), "{error}");
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("mine"), "x").unwrap();
    let error = message(&layout(&[4]), &Init::Mean, &out);
    assert!(error.contains("out: exists"), "{error}");
    assert!(message(&layout(&[4]), &Init::Mean, &from).contains("exists"));
    assert_eq!(std::fs::read(out.join("mine")).unwrap(), b"x");
    // Ids beyond the model's rows mean that the folder is not one model.
    let config = std::fs::read_to_string(from.join("tokenizer.json")).unwrap();
    let config = config.replace("\"added_tokens\":[", "\"added_tokens\":[{\"id\":5000,\"content\":\"<x>\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,\"normalized\":false,\"special\":false},");
    std::fs::write(from.join("tokenizer.json"), config).unwrap();
    let error = message(&layout(&[4]), &Init::Mean, &dir.path().join("new"));
    assert!(error.contains("tokenizer.json: "), "{error}");
    let mut left: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["model", "out"], "what was begun is still there");
}
