//! A complete Hugging Face folder with random weights, written deterministically, for tests.
//!
//! It knows nothing (the README inside says so) but has everything a real folder has, so that every path from file to answer
//! can be walked without a download. Tokenizer, template and layout are the caller's: this room knows no text.

use std::path::{Component, Path};

use serde_json::{Value, json};

use super::Model;
use super::random::RandomSpec;
use super::tensors;
use crate::device::ops::{DType, Tensor};
use crate::error::{Error, Result};
use crate::ids::TokenId;

/// Sizes of a demonstration folder.
#[derive(Clone, Debug)]
pub struct DemoSpec {
    /// Rows of the embedding: as many as the tokenizer has entries.
    pub vocab: usize,
    /// Token that ends an answer.
    pub eos: TokenId,
    /// Seed of the weights.
    pub seed: u64,
    /// Layers; 2 by default.
    pub layers: usize,
    /// Width; 64 by default. Heads are 32 wide, half as many for keys as for queries.
    pub hidden: usize,
}

impl DemoSpec {
    /// Two layers of width 64 for a vocabulary of that size.
    pub fn new(vocab: usize, eos: TokenId) -> DemoSpec {
        DemoSpec { vocab, eos, seed: 0, layers: 2, hidden: 64 }
    }
}

/// Writes `config.json`, `generation_config.json`, `model.safetensors`, a README and `files` (name and text: `tokenizer.json`,
/// `chat_template.jinja`, `sid_layout.json`) into `dir`, which is created if missing. Equal arguments write equal bytes.
///
/// # Errors
/// [`Error::File`] if a file cannot be written or its name is not a plain one; sizes are checked as those of any model.
pub fn write_demo(dir: &Path, spec: &DemoSpec, files: &[(&str, String)]) -> Result<()> {
    let put = |name: &str, text: &str| {
        let path = dir.join(name);
        std::fs::write(&path, text).map_err(|e| Error::file(&path, e.to_string()))
    };
    std::fs::create_dir_all(dir).map_err(|e| Error::file(dir, e.to_string()))?;
    let random = random_spec(spec)?;
    let mut list: Vec<(String, Tensor)> = Vec::new();
    random.build_with(&mut |name, tensor| list.push((name.to_owned(), tensor.clone())))?;
    tensors::write(&dir.join("model.safetensors"), &list)?;
    put("config.json", &pretty(&Value::Object(random.config().clone())))?;
    put("generation_config.json", &pretty(&json!({"eos_token_id": spec.eos, "do_sample": false})))?;
    put("README.md", &readme(spec))?;
    for (name, text) in files {
        let mut parts = Path::new(name).components();
        if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
            return Err(Error::file(name, "is not a plain file name"));
        }
        put(name, text)?;
    }
    Ok(())
}

/// The same model in memory, for those who need no folder.
///
/// # Errors
/// As [`write_demo`], for sizes.
pub fn demo(spec: &DemoSpec) -> Result<Model> {
    random_spec(spec)?.build()
}

fn random_spec(spec: &DemoSpec) -> Result<RandomSpec> {
    let heads = (spec.hidden / 32).max(2);
    Ok(RandomSpec::named("tiny")?
        .key("_comment", "random weights: a demonstration of the machinery, not of a skill")
        .key("vocab_size", spec.vocab)
        .key("num_hidden_layers", spec.layers)
        .key("hidden_size", spec.hidden)
        .key("num_attention_heads", heads)
        .key("num_key_value_heads", if heads.is_multiple_of(2) { heads / 2 } else { heads })
        .key("intermediate_size", 2 * spec.hidden)
        .key("eos_token_id", spec.eos.0)
        .dtype(DType::Bf16)
        .seed(spec.seed)
        // Wide enough that answers differ visibly from prompt to prompt.
        .spread(0.15))
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

fn readme(spec: &DemoSpec) -> String {
    format!(
        "# Random weights\n\nThis model was drawn at random (seed {}), not trained. Its answers are grounded in the catalog \
         like any model's, and mean nothing.\n",
        spec.seed
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_opens_and_equals_the_model_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        let spec = DemoSpec::new(300, TokenId(2));
        let files = [("sid_layout.json", "{}".to_owned())];
        write_demo(&a, &spec, &files).unwrap();
        write_demo(&b, &spec, &files).unwrap();
        for entry in std::fs::read_dir(&a).unwrap() {
            let entry = entry.unwrap();
            let other = std::fs::read(b.join(entry.file_name())).unwrap();
            assert_eq!(std::fs::read(entry.path()).unwrap(), other, "{:?}", entry.file_name());
        }
        let (opened, made) = (Model::open(&a).unwrap(), demo(&spec).unwrap());
        assert_eq!(opened.eos(), [TokenId(2)]);
        assert_eq!(opened.shape().vocab, 300);
        assert_eq!(opened.weights.embed.bytes(), made.weights.embed.bytes());
        assert_eq!(opened.weights.layers[1].down.bytes(), made.weights.layers[1].down.bytes());
        assert_eq!(opened.id, Model::open(&b).unwrap().id);
        assert!(a.join("sid_layout.json").exists());
        let climbing = write_demo(&a, &spec, &[("../x", String::new())]).unwrap_err();
        assert!(climbing.to_string().contains("../x"), "{climbing}");
    }
}
