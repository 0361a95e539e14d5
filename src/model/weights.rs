//! The weights of a model folder: one or several memory-mapped files, checked tensor by tensor.
//!
//! [`assemble`] is the one list of a decoder's tensors. The folder's files, the generator of random weights and whoever
//! writes a model all go through it, so that none of them can disagree about a name or a shape.

use std::collections::{HashMap, HashSet};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;
use serde_json::Value;

use super::config::Config;
use super::fields::{brief, parse_object, read_text};
use super::tensors::TensorFile;
use crate::device::ops::{DType, LayerWeights, Tensor, Weights};
use crate::error::{Error, Result};

/// Most files of one model.
const MAX_SHARDS: usize = 4096;
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Collects the weights that `config` calls for; `take` provides a tensor by name and shape.
///
/// # Errors
/// Whatever `take` returns.
pub fn assemble(config: &Config, take: &mut dyn FnMut(&str, &[usize]) -> Result<Tensor>) -> Result<Weights> {
    let s = &config.shape;
    let embed = take("model.embed_tokens.weight", &[s.vocab, s.hidden])?;
    let layers = (0..s.layers).map(|i| layer(config, i, take)).collect::<Result<_>>()?;
    let norm = take("model.norm.weight", &[s.hidden])?;
    let head = if config.tied { embed.clone() } else { take("lm_head.weight", &[s.vocab, s.hidden])? };
    Ok(Weights { embed, layers, norm, head })
}

fn layer(
    config: &Config,
    index: usize,
    take: &mut dyn FnMut(&str, &[usize]) -> Result<Tensor>,
) -> Result<LayerWeights> {
    let s = &config.shape;
    let (queries, keys) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
    let mut get = |name: &str, shape: &[usize]| take(&format!("model.layers.{index}.{name}"), shape);
    Ok(LayerWeights {
        input_norm: get("input_layernorm.weight", &[s.hidden])?,
        q: get("self_attn.q_proj.weight", &[queries, s.hidden])?,
        k: get("self_attn.k_proj.weight", &[keys, s.hidden])?,
        v: get("self_attn.v_proj.weight", &[keys, s.hidden])?,
        qkv_bias: match config.qkv_bias {
            true => Some([
                get("self_attn.q_proj.bias", &[queries])?,
                get("self_attn.k_proj.bias", &[keys])?,
                get("self_attn.v_proj.bias", &[keys])?,
            ]),
            false => None,
        },
        qk_norm: match config.qk_norm {
            true => Some([
                get("self_attn.q_norm.weight", &[s.head_dim])?,
                get("self_attn.k_norm.weight", &[s.head_dim])?,
            ]),
            false => None,
        },
        o: get("self_attn.o_proj.weight", &[s.hidden, queries])?,
        o_bias: match config.output_bias {
            true => Some(get("self_attn.o_proj.bias", &[s.hidden])?),
            false => None,
        },
        post_norm: get("post_attention_layernorm.weight", &[s.hidden])?,
        gate: get("mlp.gate_proj.weight", &[s.ffn, s.hidden])?,
        up: get("mlp.up_proj.weight", &[s.ffn, s.hidden])?,
        down: get("mlp.down_proj.weight", &[s.hidden, s.ffn])?,
    })
}

/// The tensor files of a model folder.
pub struct Checkpoint {
    files: Vec<TensorFile>,
    /// The file of each tensor.
    place: HashMap<String, usize>,
    /// What a missing tensor was looked for in.
    listing: PathBuf,
    /// The type that `config.json` declares, for messages.
    declared: Option<DType>,
}

impl Checkpoint {
    /// Maps `model.safetensors`, or the files that `model.safetensors.index.json` lists.
    ///
    /// # Errors
    /// [`Error::File`] names the file and what is wrong with it.
    pub fn open(dir: &Path, declared: Option<DType>) -> Result<Checkpoint> {
        let single = dir.join(SINGLE);
        if single.exists() {
            return Ok(Checkpoint::of(TensorFile::open(&single)?, declared));
        }
        let index = dir.join(INDEX);
        let Some(text) = read_text(&index)? else {
            return Err(Error::file(dir, format!("holds neither {SINGLE} nor {INDEX}")));
        };
        let mut checkpoint =
            Checkpoint { files: Vec::new(), place: HashMap::new(), listing: index, declared };
        checkpoint.read_index(dir, &text)?;
        Ok(checkpoint)
    }

    /// A checkpoint of one file.
    pub fn of(file: TensorFile, declared: Option<DType>) -> Checkpoint {
        let place = file.entries().iter().map(|e| (e.name.clone(), 0)).collect();
        let listing = file.path().to_path_buf();
        Checkpoint { files: vec![file], place, listing, declared }
    }

    /// Maps the shards of an index and checks that each tensor is where the index says.
    fn read_index(&mut self, dir: &Path, text: &str) -> Result<()> {
        let fail = |path: &Path, message: String| Error::file(path, message);
        let root = parse_object(&self.listing, text)?;
        let Some(Value::Object(map)) = root.get("weight_map") else {
            return Err(fail(&self.listing, "weight_map: expected a map from tensor names to files".into()));
        };
        let mut opened: HashMap<&str, usize> = HashMap::new();
        for (name, file) in map {
            let Some(file) = file.as_str() else {
                let message =
                    format!("weight_map.{}: expected a file name, found {}", brief_name(name), brief(file));
                return Err(fail(&self.listing, message));
            };
            let index = match opened.get(file) {
                Some(&index) => index,
                None => {
                    // A name of its own may be a link (that is how hubs store their files), but it may not climb.
                    let inside = Path::new(file).components().all(|c| matches!(c, Component::Normal(_)));
                    if !inside || file.is_empty() {
                        let message = format!("weight_map: {} leaves the folder", brief_name(file));
                        return Err(fail(&self.listing, message));
                    }
                    if self.files.len() == MAX_SHARDS {
                        let message = format!("weight_map: lists more than {MAX_SHARDS} files");
                        return Err(fail(&self.listing, message));
                    }
                    self.files.push(TensorFile::open(&dir.join(file))?);
                    opened.insert(file, self.files.len() - 1);
                    self.files.len() - 1
                }
            };
            if self.files[index].entry(name).is_none() {
                let message = format!(
                    "weight_map: {} is not in {}, where the index puts it",
                    brief_name(name),
                    brief_name(file)
                );
                return Err(fail(&self.listing, message));
            }
            self.place.insert(name.clone(), index);
        }
        Ok(())
    }

    /// Whether there is a tensor of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.place.contains_key(name)
    }

    /// The shape of a tensor, if there is one of that name.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.place.get(name).and_then(|&i| self.files[i].entry(name)).map(|e| e.shape.clone())
    }

    /// The file that lists the tensors.
    pub(super) fn listing(&self) -> &Path {
        &self.listing
    }

    /// The tensor `name`, which must have that shape and a type that weights may have.
    ///
    /// # Errors
    /// `…q_norm.weight: expected [128] bf16, found [64] f32 in model-00001-of-00002.safetensors`.
    pub fn take(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let expected = self.declared.map_or_else(|| "bf16, f16 or f32".to_owned(), |d| d.to_string());
        let Some(&index) = self.place.get(name) else {
            let message = format!("{name}: expected {shape:?} {expected}, found no such tensor");
            return Err(Error::file(&self.listing, message));
        };
        let file = &self.files[index];
        let entry = file.entry(name).expect("the place of a tensor is a file that has it");
        match file.tensor(entry) {
            Some(tensor) if entry.shape == shape => Ok(tensor),
            found => {
                let stored = found.map_or_else(|| entry.stored.to_owned(), |t| t.dtype().to_string());
                let file_name = file.path().file_name().unwrap_or_default().to_string_lossy();
                let message = format!(
                    "{name}: expected {shape:?} {expected}, found {:?} {stored} in {file_name}",
                    entry.shape
                );
                Err(Error::file(file.path(), message))
            }
        }
    }

    /// Tensors of decoder layers that are not among `taken`, sorted; positions of rotary embeddings, which old files hold, aside.
    pub(super) fn unused(&self, taken: &HashSet<String>) -> Vec<&str> {
        let of_layer =
            |name: &&str| name.starts_with("model.layers.") && !name.ends_with("rotary_emb.inv_freq");
        let names = self.place.keys().filter(|n| !taken.contains(*n)).map(String::as_str);
        let mut names: Vec<&str> = names.filter(of_layer).collect();
        names.sort_unstable();
        names
    }

    /// The memory maps, to read ahead.
    pub(super) fn maps(&self) -> Vec<Arc<Mmap>> {
        self.files.iter().filter_map(|f| f.map().cloned()).collect()
    }

    /// Feeds what identifies the weights: every tensor's name, type, shape and first bytes.
    pub(super) fn digest(&self, feed: &mut dyn FnMut(&[u8])) {
        for file in &self.files {
            for e in file.entries() {
                feed(e.name.as_bytes());
                feed(e.stored.as_bytes());
                e.shape.iter().for_each(|&n| feed(&(n as u64).to_le_bytes()));
                let bytes = &file.bytes()[e.range.clone()];
                feed(&bytes[..bytes.len().min(64)]);
            }
        }
    }
}

/// A foreign name as it goes into a message.
fn brief_name(name: &str) -> String {
    brief(&Value::from(name))
}
