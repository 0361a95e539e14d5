//! Models with random weights and the shapes of real ones: for benchmarks and tests, which need sizes but no sense.
//!
//! A preset is a `config.json` in miniature and goes through the same checks as a file. Weights are drawn straight into
//! their type: a table of 4,096 normal values indexed by 12 bits of a hash of (seed, tensor, place), so that 16 GB take
//! seconds, any thread may draw any part, and a tensor's values depend on nothing but its name, shape and the seed.

use std::path::Path;

use rayon::prelude::*;
use serde_json::{Map, Value, json};

use super::config::Config;
use super::weights::assemble;
use super::{Fnv, Model};
use crate::device::ops::{DType, Tensor};
use crate::error::{Error, Result};
use crate::ids::TokenId;

/// A real model's sizes.
struct Preset {
    name: &'static str,
    architecture: &'static str,
    /// Layers, hidden, heads, kv heads, head width, ffn, vocabulary.
    sizes: [usize; 7],
    /// Whether the head is the embedding.
    tied: bool,
    /// All other keys of the `config.json`.
    keys: fn() -> Value,
}

fn qwen3() -> Value {
    json!({"rms_norm_eps": 1e-6, "max_position_embeddings": 40960, "rope_theta": 1e6})
}

fn qwen2() -> Value {
    json!({"rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "rope_theta": 1e6})
}

fn llama3_small() -> Value {
    llama3(32.0)
}

fn llama3_large() -> Value {
    llama3(8.0)
}

fn llama3(factor: f64) -> Value {
    json!({"rms_norm_eps": 1e-5, "max_position_embeddings": 131072, "rope_theta": 5e5, "rope_scaling": {
        "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192}})
}

fn mistral() -> Value {
    json!({"rms_norm_eps": 1e-5, "max_position_embeddings": 32768, "rope_theta": 1e4, "sliding_window": 4096})
}

fn tiny() -> Value {
    json!({"rms_norm_eps": 1e-6, "max_position_embeddings": 2048, "rope_theta": 1e4})
}

const PRESETS: &[Preset] = &[
    Preset {
        name: "tiny",
        architecture: "Qwen3ForCausalLM",
        sizes: [2, 64, 4, 2, 32, 128, 512],
        tied: true,
        keys: tiny,
    },
    Preset {
        name: "qwen3-0.6b",
        architecture: "Qwen3ForCausalLM",
        sizes: [28, 1024, 16, 8, 128, 3072, 151_936],
        tied: true,
        keys: qwen3,
    },
    Preset {
        name: "qwen3-1.7b",
        architecture: "Qwen3ForCausalLM",
        sizes: [28, 2048, 16, 8, 128, 6144, 151_936],
        tied: true,
        keys: qwen3,
    },
    Preset {
        name: "qwen3-4b",
        architecture: "Qwen3ForCausalLM",
        sizes: [36, 2560, 32, 8, 128, 9728, 151_936],
        tied: true,
        keys: qwen3,
    },
    Preset {
        name: "qwen3-8b",
        architecture: "Qwen3ForCausalLM",
        sizes: [36, 4096, 32, 8, 128, 12288, 151_936],
        tied: false,
        keys: qwen3,
    },
    Preset {
        name: "qwen2.5-0.5b",
        architecture: "Qwen2ForCausalLM",
        sizes: [24, 896, 14, 2, 64, 4864, 151_936],
        tied: true,
        keys: qwen2,
    },
    Preset {
        name: "qwen2.5-1.5b",
        architecture: "Qwen2ForCausalLM",
        sizes: [28, 1536, 12, 2, 128, 8960, 151_936],
        tied: true,
        keys: qwen2,
    },
    Preset {
        name: "llama-3.2-1b",
        architecture: "LlamaForCausalLM",
        sizes: [16, 2048, 32, 8, 64, 8192, 128_256],
        tied: true,
        keys: llama3_small,
    },
    Preset {
        name: "llama-3.1-8b",
        architecture: "LlamaForCausalLM",
        sizes: [32, 4096, 32, 8, 128, 14336, 128_256],
        tied: false,
        keys: llama3_large,
    },
    Preset {
        name: "mistral-7b",
        architecture: "MistralForCausalLM",
        sizes: [32, 4096, 32, 8, 128, 14336, 32_000],
        tied: false,
        keys: mistral,
    },
];

/// The names that [`RandomSpec::named`] knows.
pub fn names() -> impl Iterator<Item = &'static str> {
    PRESETS.iter().map(|p| p.name)
}

/// What random model to make.
#[derive(Clone, Debug)]
pub struct RandomSpec {
    name: String,
    config: Map<String, Value>,
    dtype: DType,
    seed: u64,
    /// Standard deviation of matrices.
    spread: f32,
    first_sid: Option<TokenId>,
}

impl RandomSpec {
    /// The shape of a real model by name; bf16, seed 0, spread 0.02.
    ///
    /// # Errors
    /// [`Error::Unsupported`] lists the names.
    pub fn named(name: &str) -> Result<RandomSpec> {
        let Some(preset) = PRESETS.iter().find(|p| p.name == name) else {
            let known = names().collect::<Vec<_>>().join(", ");
            return Err(Error::Unsupported(format!("there is no random model {name:?}; there are {known}")));
        };
        let [layers, hidden, heads, kv_heads, head_dim, ffn, vocab] = preset.sizes;
        let mut config = Map::new();
        config.insert("architectures".into(), json!([preset.architecture]));
        // What transformers' Auto classes go by.
        let model_type = preset.architecture.trim_end_matches("ForCausalLM").to_lowercase();
        config.insert("model_type".into(), model_type.into());
        for (key, value) in [
            ("num_hidden_layers", layers),
            ("hidden_size", hidden),
            ("num_attention_heads", heads),
            ("num_key_value_heads", kv_heads),
            ("head_dim", head_dim),
            ("intermediate_size", ffn),
            ("vocab_size", vocab),
        ] {
            config.insert(key.into(), value.into());
        }
        config.insert("hidden_act".into(), "silu".into());
        config.insert("tie_word_embeddings".into(), preset.tied.into());
        if let Value::Object(more) = (preset.keys)() {
            config.extend(more);
        }
        let spec = RandomSpec {
            name: name.into(),
            config,
            dtype: DType::Bf16,
            seed: 0,
            spread: 0.02,
            first_sid: None,
        };
        Ok(spec.dtype(DType::Bf16))
    }

    /// The type of the weights.
    pub fn dtype(mut self, dtype: DType) -> RandomSpec {
        let name = match dtype {
            DType::F32 => "float32",
            DType::Bf16 => "bfloat16",
            DType::F16 => "float16",
        };
        self.config.insert("dtype".into(), name.into());
        self.dtype = dtype;
        self
    }

    /// The seed of the weights.
    pub fn seed(mut self, seed: u64) -> RandomSpec {
        self.seed = seed;
        self
    }

    /// The standard deviation of matrices; 0.02 as models are initialised, more for logits far from uniform.
    pub fn spread(mut self, spread: f32) -> RandomSpec {
        self.spread = spread;
        self
    }

    /// Sets a key of the `config.json` (`num_hidden_layers`, `vocab_size`, `eos_token_id`).
    pub fn key(mut self, key: &str, value: impl Into<Value>) -> RandomSpec {
        self.config.insert(key.into(), value.into());
        self
    }

    /// Extends the vocabulary by an opener, a closer and one token per code: types in order, in each its levels in
    /// order, in each its codes. `types` holds the codebook sizes of each type's levels.
    pub fn sid_tokens(mut self, types: &[Vec<usize>]) -> RandomSpec {
        let vocab = self.config.get("vocab_size").and_then(Value::as_u64).unwrap_or(0);
        let codes = types.iter().flatten().sum::<usize>() as u64;
        self.first_sid = Some(TokenId(vocab as u32));
        self.key("vocab_size", vocab + 2 + codes)
    }

    /// The opener's token, the closer and all codes following it, after [`RandomSpec::sid_tokens`].
    pub fn first_sid_token(&self) -> Option<TokenId> {
        self.first_sid
    }

    /// The `config.json` of the model.
    pub fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    /// Draws the weights.
    ///
    /// # Errors
    /// What a `config.json` of these sizes would be refused for.
    pub fn build(&self) -> Result<Model> {
        self.build_with(&mut |_, _| {})
    }

    /// Draws the weights and shows each tensor to `seen`, in the order of the model.
    pub(super) fn build_with(&self, seen: &mut dyn FnMut(&str, &Tensor)) -> Result<Model> {
        let path = Path::new("config.json");
        let config = Config::from_maps((path, &self.config), (path, &Map::new()))?;
        let table = NormalTable::new(self.dtype);
        let weights = assemble(&config, &mut |name, shape| {
            let (mean, spread) = if name.contains("norm") { (1.0, 0.1) } else { (0.0, self.spread) };
            let mut key = Fnv::new();
            key.feed(name.as_bytes());
            let tensor = table.draw(shape, (mean, spread), mix(self.seed ^ key.value()));
            seen(name, &tensor);
            Ok(tensor)
        })?;
        let mut id = Fnv::new();
        id.feed(Value::Object(self.config.clone()).to_string().as_bytes());
        id.feed(&self.seed.to_le_bytes());
        id.feed(&self.spread.to_le_bytes());
        Ok(Model {
            name: format!("random-{}", self.name),
            dir: None,
            id: id.hex(),
            config,
            weights,
            adapter: None,
            maps: Vec::new(),
        })
    }
}

/// 4,096 draws of a standard normal; mean exactly 0, so that no bias creeps into sums of thousands of weights.
struct NormalTable {
    dtype: DType,
    values: Vec<f32>,
}

/// Elements of one parallel piece.
const PIECE: usize = 1 << 16;

impl NormalTable {
    fn new(dtype: DType) -> NormalTable {
        let mut values = Vec::with_capacity(4096);
        for i in 0..2048u64 {
            // Box and Muller; the radius is stratified, so that the tails are as long as they should be.
            let radius = (-2.0 * ((i as f64 + 0.5) / 2048.0).ln()).sqrt();
            let angle = mix(i) as f64 / u64::MAX as f64 * std::f64::consts::TAU;
            let value = (radius * angle.cos()) as f32;
            values.extend([value, -value]);
        }
        NormalTable { dtype, values }
    }

    fn draw(&self, shape: &[usize], (mean, spread): (f32, f32), key: u64) -> Tensor {
        let scaled = self.values.iter().map(|v| mean + spread * v);
        match self.dtype {
            DType::F32 => self.words(shape, scaled.collect::<Vec<f32>>(), key),
            DType::Bf16 => self.words(shape, scaled.map(half::bf16::from_f32).collect(), key),
            DType::F16 => self.words(shape, scaled.map(half::f16::from_f32).collect(), key),
        }
    }

    fn words<T: bytemuck::Pod + Send + Sync>(&self, shape: &[usize], table: Vec<T>, key: u64) -> Tensor {
        let table: &[T; 4096] = table[..].try_into().expect("the table has 4096 values");
        let mut values = vec![T::zeroed(); shape.iter().product()];
        values.par_chunks_mut(PIECE).enumerate().for_each(|(piece, values)| {
            let first = (piece * PIECE / 4) as u64;
            // Only the last piece of a tensor can end in fewer than four.
            let (fours, rest) = values.as_chunks_mut::<4>();
            let place = first + fours.len() as u64;
            let at = |bits: u64, i: usize| table[(bits >> (16 * i) & 4095) as usize];
            for (i, four) in fours.iter_mut().enumerate() {
                let bits = mix(key.wrapping_add(first + i as u64));
                *four = [at(bits, 0), at(bits, 1), at(bits, 2), at(bits, 3)];
            }
            let bits = mix(key.wrapping_add(place));
            rest.iter_mut().enumerate().for_each(|(i, value)| *value = at(bits, i));
        });
        Tensor::from_words(self.dtype, shape.to_vec(), values)
    }
}

/// A bijection of 64-bit words that changes about half of the bits whenever one changes: a multiply-xorshift hash.
fn mix(x: u64) -> u64 {
    let mut x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_passes_the_checks_of_a_file() {
        for name in names() {
            let spec = RandomSpec::named(name).unwrap();
            let path = Path::new("config.json");
            let config = Config::from_maps((path, spec.config()), (path, &Map::new())).expect(name);
            assert_eq!(config.dtype, Some(DType::Bf16));
        }
        let message = RandomSpec::named("gpt-5").unwrap_err().to_string();
        assert!(message.contains("\"gpt-5\"") && message.contains("tiny, qwen3-0.6b"), "{message}");
    }

    #[test]
    fn weights_are_normal_and_depend_on_seed_and_name_alone() {
        let spec = RandomSpec::named("tiny").unwrap().dtype(DType::F32).spread(0.5);
        let (a, b) = (spec.build().unwrap(), spec.build().unwrap());
        assert_eq!(a.weights.embed.bytes(), b.weights.embed.bytes());
        assert_eq!(a.id, b.id);
        let other = spec.clone().seed(1).build().unwrap();
        assert_ne!(a.weights.embed.bytes(), other.weights.embed.bytes());
        assert_ne!(a.weights.layers[0].q.bytes(), a.weights.layers[1].q.bytes());
        let values = a.weights.embed.to_f32();
        let n = values.len() as f64;
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let deviation = (values.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>() / n).sqrt();
        assert!(mean.abs() < 0.01 && (deviation - 0.5).abs() < 0.02, "mean {mean}, deviation {deviation}");
        assert!(values.iter().any(|&v| v > 1.5) && values.iter().all(|&v| v.abs() < 3.0));
        let norm = a.weights.norm.to_f32();
        assert!(norm.iter().all(|v| (0.5..1.5).contains(v)));
    }

    #[test]
    fn sid_tokens_extend_the_vocabulary() {
        let spec = RandomSpec::named("tiny").unwrap().sid_tokens(&[vec![16, 8], vec![4]]);
        assert_eq!(spec.first_sid_token(), Some(TokenId(512)));
        let model = spec.build().unwrap();
        assert_eq!(model.config.shape.vocab, 512 + 2 + 28);
        assert_eq!(model.weights.head.shape(), [542, 64]);
        assert_eq!(model.weight_bytes(), 2 * spec_elements(&model));
    }

    fn spec_elements(model: &Model) -> usize {
        let s = &model.config.shape;
        let attention = 2 * (s.heads + s.kv_heads) * s.head_dim * s.hidden + 2 * s.head_dim;
        s.vocab * s.hidden + s.hidden + s.layers * (attention + 3 * s.ffn * s.hidden + 2 * s.hidden)
    }
}
