//! `config.json` and `generation_config.json` of a Hugging Face folder.
//!
//! The decoder walk is the same for every architecture; what differs is data: an [`Architecture`] is one entry of
//! [`ARCHITECTURES`]. Keys of transformers 4 (`rope_theta`, `rope_scaling`, `torch_dtype`) and of transformers 5
//! (`rope_parameters`, `dtype`) are both read. What is not served is refused by name rather than computed wrongly.

use std::path::Path;

use serde_json::{Map, Value};

use super::fields::{Fields, brief, parse_object, read_text};
use super::rope;
use crate::device::ops::{DType, Shape};
use crate::error::{Error, Result};
use crate::ids::TokenId;

/// Most positions a model may declare.
pub(super) const MAX_POSITIONS: usize = 1 << 26;
const MAX_LAYERS: usize = 1024;
const MAX_WIDTH: usize = 1 << 20;
const MAX_HEADS: usize = 4096;
const MAX_HEAD_DIM: usize = 1024;
const MAX_VOCAB: usize = 1 << 26;

/// When a projection has a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bias {
    Never,
    Always,
    /// If `attention_bias` is true.
    Key,
}

/// Where a sliding window applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Window {
    Never,
    /// In every layer, if `sliding_window` is not null; 4096 if the key is absent.
    Everywhere,
    /// If `use_sliding_window`: in the layers that `layer_types` names, else from `max_window_layers` on.
    ByLayer,
}

/// What distinguishes an architecture from the others.
#[derive(Debug)]
pub struct Architecture {
    /// The name in `architectures`.
    pub name: &'static str,
    qkv_bias: Bias,
    output_bias: Bias,
    /// Norms over each head of `q` and `k`.
    qk_norm: bool,
    window: Window,
    /// `head_dim` if the key is absent; `None`: `hidden_size / num_attention_heads`.
    head_dim: Option<usize>,
    /// Whether `num_key_value_heads` may be absent, every head having its own key and value.
    kv_heads_optional: bool,
    /// Keys that must be absent or false.
    refused: &'static [&'static str],
}

/// Everything that is served.
pub const ARCHITECTURES: &[Architecture] = &[
    Architecture {
        name: "LlamaForCausalLM",
        qkv_bias: Bias::Key,
        output_bias: Bias::Key,
        qk_norm: false,
        window: Window::Never,
        head_dim: None,
        kv_heads_optional: true,
        refused: &["mlp_bias"],
    },
    Architecture {
        name: "MistralForCausalLM",
        qkv_bias: Bias::Never,
        output_bias: Bias::Never,
        qk_norm: false,
        window: Window::Everywhere,
        head_dim: None,
        kv_heads_optional: false,
        refused: &["attention_bias", "mlp_bias"],
    },
    Architecture {
        name: "Qwen2ForCausalLM",
        qkv_bias: Bias::Always,
        output_bias: Bias::Never,
        qk_norm: false,
        window: Window::ByLayer,
        head_dim: None,
        kv_heads_optional: false,
        refused: &["mlp_bias"],
    },
    Architecture {
        name: "Qwen3ForCausalLM",
        qkv_bias: Bias::Key,
        output_bias: Bias::Key,
        qk_norm: true,
        window: Window::ByLayer,
        head_dim: Some(128),
        kv_heads_optional: false,
        refused: &["mlp_bias"],
    },
];

/// What `generation_config.json` says of sampling; `None` where it says nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationDefaults {
    /// Whether to sample at all; `false`: greedy.
    pub do_sample: Option<bool>,
    /// 0: greedy.
    pub temperature: Option<f32>,
    /// 0: off.
    pub top_k: Option<u32>,
    /// 1: off.
    pub top_p: Option<f32>,
    /// 0: off.
    pub min_p: Option<f32>,
    /// 1: off.
    pub repetition_penalty: Option<f32>,
}

/// A model's configuration, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The entry of [`ARCHITECTURES`].
    pub architecture: &'static Architecture,
    /// Sizes, windows and rope.
    pub shape: Shape,
    /// Whether `q`, `k`, `v` have biases.
    pub qkv_bias: bool,
    /// Whether the attention's output product has a bias.
    pub output_bias: bool,
    /// Whether each head of `q` and `k` is normed.
    pub qk_norm: bool,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// The type that weights are declared to have; each tensor's own type is what counts.
    pub dtype: Option<DType>,
    /// First token of a text, if the model has one.
    pub bos: Option<TokenId>,
    /// Tokens that end an answer, sorted: `generation_config.json`'s, else `config.json`'s. May be empty.
    pub eos: Vec<TokenId>,
    /// Defaults of sampling.
    pub defaults: GenerationDefaults,
}

impl Config {
    /// Reads `config.json` and, if there is one, `generation_config.json` of a folder.
    ///
    /// # Errors
    /// [`Error::File`] names file and key of a missing or impossible value; [`Error::Unsupported`] names what is not served.
    pub fn read(dir: &Path) -> Result<Config> {
        let path = dir.join("config.json");
        let text = read_text(&path)?.ok_or_else(|| Error::file(&path, "there is no such file"))?;
        let config = parse_object(&path, &text)?;
        let generation_path = dir.join("generation_config.json");
        let generation = match read_text(&generation_path)? {
            Some(text) => parse_object(&generation_path, &text)?,
            None => Map::new(),
        };
        Config::from_maps((&path, &config), (&generation_path, &generation))
    }

    /// Checks a `config.json` and a `generation_config.json` (may be empty), each with the path that messages name.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn from_maps(
        config: (&Path, &Map<String, Value>),
        generation: (&Path, &Map<String, Value>),
    ) -> Result<Config> {
        let fields = Fields::new(config.0, config.1);
        let architecture = architecture(&fields)?;
        refuse(&fields, architecture)?;
        let shape = shape(&fields, architecture)?;
        let generation = Fields::new(generation.0, generation.1);
        let eos = match generation.tokens("eos_token_id", shape.vocab)? {
            Some(eos) => Some(eos),
            None => fields.tokens("eos_token_id", shape.vocab)?,
        };
        let attention_bias = fields.flag("attention_bias", false)?;
        let has = |bias| bias == Bias::Always || bias == Bias::Key && attention_bias;
        Ok(Config {
            architecture,
            qkv_bias: has(architecture.qkv_bias),
            output_bias: has(architecture.output_bias),
            qk_norm: architecture.qk_norm,
            tied: fields.flag("tie_word_embeddings", false)?,
            dtype: dtype(&fields)?,
            bos: fields.tokens("bos_token_id", shape.vocab)?.and_then(|ids| ids.first().copied()),
            eos: eos.unwrap_or_default(),
            defaults: defaults(&generation)?,
            shape,
        })
    }
}

/// The names in [`ARCHITECTURES`], for messages.
fn served() -> String {
    ARCHITECTURES.iter().map(|a| a.name).collect::<Vec<_>>().join(", ")
}

fn architecture(fields: &Fields<'_>) -> Result<&'static Architecture> {
    let names = fields.texts("architectures")?.unwrap_or_default();
    let Some(name) = names.first() else {
        return Err(fields
            .error("architectures", format!("the model names no architecture; served are {}", served())));
    };
    ARCHITECTURES.iter().find(|a| a.name == *name).ok_or_else(|| {
        let name = brief(&Value::from(*name));
        Error::Unsupported(format!("architecture {name} is not served; served are {}", served()))
    })
}

/// Refuses what would silently be computed wrongly.
fn refuse(fields: &Fields<'_>, architecture: &Architecture) -> Result<()> {
    for key in architecture.refused {
        if fields.flag(key, false)? {
            return Err(Error::Unsupported(format!("{key} is not served for {}", architecture.name)));
        }
    }
    let act = fields.text("hidden_act")?.unwrap_or("silu");
    if act != "silu" {
        return Err(Error::Unsupported(format!("hidden_act {act:?} is not served; served is silu")));
    }
    if let Some(quantization) = fields.object("quantization_config")? {
        let method = quantization.text("quant_method")?.unwrap_or("unnamed").to_owned();
        return Err(Error::Unsupported(format!(
            "quantization_config ({method}): quantized weights are not served; served are bf16, f16, f32"
        )));
    }
    Ok(())
}

fn shape(fields: &Fields<'_>, architecture: &Architecture) -> Result<Shape> {
    let layers = fields.required("num_hidden_layers", 1..=MAX_LAYERS)?;
    let hidden = fields.required("hidden_size", 1..=MAX_WIDTH)?;
    let heads = fields.required("num_attention_heads", 1..=MAX_HEADS)?;
    let max_positions = fields.required("max_position_embeddings", 1..=MAX_POSITIONS)?;
    let kv_heads = match fields.count("num_key_value_heads", 1..=MAX_HEADS)? {
        Some(n) => n,
        None if architecture.kv_heads_optional || fields.written("num_key_value_heads") => heads,
        None => return Err(fields.error("num_key_value_heads", "the key is missing")),
    };
    if !heads.is_multiple_of(kv_heads) {
        let message = format!("expected a divisor of num_attention_heads, {heads}, found {kv_heads}");
        return Err(fields.error("num_key_value_heads", message));
    }
    let head_dim = head_dim(fields, architecture, hidden, heads)?;
    let eps = fields.number("rms_norm_eps", 1e-12..=0.1)?;
    let eps = eps.ok_or_else(|| fields.error("rms_norm_eps", "the key is missing"))?;
    Ok(Shape {
        layers,
        hidden,
        heads,
        kv_heads,
        head_dim,
        ffn: fields.required("intermediate_size", 1..=MAX_WIDTH)?,
        vocab: fields.required("vocab_size", 1..=MAX_VOCAB)?,
        eps: eps as f32,
        max_positions,
        // A window that no position can leave is none; saying so here spares the device a comparison per key.
        window: windows(fields, architecture, layers)?
            .into_iter()
            .map(|w| w.filter(|&w| (w as usize) < max_positions))
            .collect(),
        rope: rope::read(fields, head_dim, max_positions)?,
    })
}

fn head_dim(fields: &Fields<'_>, architecture: &Architecture, hidden: usize, heads: usize) -> Result<usize> {
    let head_dim = match (fields.count("head_dim", 2..=MAX_HEAD_DIM)?, architecture.head_dim) {
        (Some(n), _) | (None, Some(n)) => n,
        (None, None) if hidden.is_multiple_of(heads) && hidden / heads <= MAX_HEAD_DIM => hidden / heads,
        (None, None) => {
            let message =
                format!("without head_dim expected {heads} heads of at most {MAX_HEAD_DIM}, found {hidden}");
            return Err(fields.error("hidden_size", message));
        }
    };
    if head_dim % 2 != 0 {
        return Err(
            fields.error("head_dim", format!("expected an even number for the rope, found {head_dim}"))
        );
    }
    Ok(head_dim)
}

/// The window of each layer.
fn windows(fields: &Fields<'_>, architecture: &Architecture, layers: usize) -> Result<Vec<Option<u32>>> {
    let size = || fields.count("sliding_window", 1..=u32::MAX as usize);
    let absent = || if fields.written("sliding_window") { None } else { Some(4096) };
    let sliding: Option<Vec<bool>> = match fields.texts("layer_types")? {
        Some(types) if types.len() != layers => {
            let message =
                format!("expected {layers} entries as num_hidden_layers says, found {}", types.len());
            return Err(fields.error("layer_types", message));
        }
        Some(types) => Some(types.into_iter().map(|t| layer_type(fields, t)).collect::<Result<_>>()?),
        None => None,
    };
    match architecture.window {
        Window::Never => match sliding {
            Some(sliding) if sliding.contains(&true) => {
                Err(Error::Unsupported(format!("sliding_attention is not served for {}", architecture.name)))
            }
            _ => Ok(vec![None; layers]),
        },
        Window::Everywhere => {
            let window = size()?.or_else(absent);
            // transformers ignores the list here; where the two disagree, either reading would be a guess.
            match sliding {
                Some(sliding) if sliding.contains(&window.is_none()) => Err(fields.error(
                    "layer_types",
                    format!("contradicts sliding_window, which {} applies to every layer", architecture.name),
                )),
                _ => Ok(vec![window.map(|w| w as u32); layers]),
            }
        }
        Window::ByLayer => {
            let on = fields.flag("use_sliding_window", false)?;
            let window = if on { size()?.or_else(absent) } else { None };
            let from = fields.count("max_window_layers", 0..=usize::MAX)?.unwrap_or(28);
            let sliding =
                sliding.unwrap_or_else(|| (0..layers).map(|i| window.is_some() && i >= from).collect());
            if window.is_none() && sliding.contains(&true) {
                return Err(fields.error(
                    "layer_types",
                    "names sliding_attention, but use_sliding_window or sliding_window is off",
                ));
            }
            Ok(sliding.into_iter().map(|s| window.filter(|_| s).map(|w| w as u32)).collect())
        }
    }
}

/// Whether a layer's type slides.
fn layer_type(fields: &Fields<'_>, name: &str) -> Result<bool> {
    match name {
        "full_attention" => Ok(false),
        "sliding_attention" => Ok(true),
        other => {
            let other = brief(&Value::from(other));
            Err(fields
                .error("layer_types", format!("expected full_attention or sliding_attention, found {other}")))
        }
    }
}

fn dtype(fields: &Fields<'_>) -> Result<Option<DType>> {
    let name = match fields.text("dtype")? {
        Some(name) => Some(name),
        None => fields.text("torch_dtype")?,
    };
    match name {
        None | Some("auto") => Ok(None),
        Some("bfloat16") => Ok(Some(DType::Bf16)),
        Some("float16") => Ok(Some(DType::F16)),
        Some("float32") => Ok(Some(DType::F32)),
        Some(other) => Err(Error::Unsupported(format!(
            "dtype {} is not served; served are bfloat16, float16, float32",
            brief(&Value::from(other))
        ))),
    }
}

fn defaults(fields: &Fields<'_>) -> Result<GenerationDefaults> {
    let number = |key, range| fields.number(key, range).map(|v| v.map(|v| v as f32));
    let do_sample =
        if fields.value("do_sample").is_some() { Some(fields.flag("do_sample", false)?) } else { None };
    Ok(GenerationDefaults {
        do_sample,
        temperature: number("temperature", 0.0..=1e4)?,
        top_k: fields.count("top_k", 0..=u32::MAX as usize)?.map(|k| k as u32),
        top_p: number("top_p", 0.0..=1.0)?,
        min_p: number("min_p", 0.0..=1.0)?,
        repetition_penalty: number("repetition_penalty", 1e-3..=1e3)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn qwen3() -> Value {
        json!({
            "architectures": ["Qwen3ForCausalLM"], "hidden_size": 64, "intermediate_size": 96, "head_dim": 32,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128,
            "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "hidden_act": "silu", "eos_token_id": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}
        })
    }

    fn parse(config: &Value, generation: &Value) -> Result<Config> {
        let config = (Path::new("m/config.json"), config.as_object().unwrap());
        Config::from_maps(config, (Path::new("m/generation_config.json"), generation.as_object().unwrap()))
    }

    fn with(changes: Value) -> Result<Config> {
        let mut config = qwen3();
        for (key, value) in changes.as_object().unwrap() {
            if value == "absent" {
                config.as_object_mut().unwrap().remove(key);
            } else {
                config[key] = value.clone();
            }
        }
        parse(&config, &json!({}))
    }

    #[test]
    fn broken_configs_are_refused_with_file_and_key() {
        let table = [
            (json!({"architectures": ["GPT2LMHeadModel"]}), "GPT2LMHeadModel"),
            (json!({"architectures": ["GPT2LMHeadModel"]}), "LlamaForCausalLM, MistralForCausalLM"),
            (json!({"architectures": []}), "m/config.json: architectures"),
            (json!({"architectures": "absent"}), "m/config.json: architectures"),
            (json!({"hidden_size": "absent"}), "m/config.json: hidden_size: the key is missing"),
            (json!({"hidden_size": 0}), "m/config.json: hidden_size: expected a whole number from 1 to"),
            (json!({"hidden_size": -64}), "found -64"),
            (json!({"hidden_size": 6.5}), "found 6.5"),
            (json!({"hidden_size": "64"}), "found \"64\""),
            (json!({"hidden_size": 1e300}), "hidden_size"),
            (json!({"hidden_size": 18446744073709551615u64}), "hidden_size"),
            (json!({"num_hidden_layers": 1000000}), "num_hidden_layers"),
            (json!({"num_attention_heads": 0}), "num_attention_heads"),
            (json!({"num_key_value_heads": 3}), "expected a divisor of num_attention_heads, 4, found 3"),
            (json!({"num_key_value_heads": 0}), "num_key_value_heads"),
            (json!({"num_key_value_heads": "absent"}), "num_key_value_heads: the key is missing"),
            (json!({"head_dim": 31}), "head_dim: expected an even number"),
            (json!({"vocab_size": 0}), "vocab_size"),
            (json!({"max_position_embeddings": 0}), "max_position_embeddings"),
            (json!({"rms_norm_eps": 0}), "rms_norm_eps"),
            (json!({"rms_norm_eps": "absent"}), "rms_norm_eps: the key is missing"),
            (json!({"hidden_act": "gelu"}), "hidden_act \"gelu\""),
            (json!({"mlp_bias": true}), "mlp_bias is not served for Qwen3ForCausalLM"),
            (json!({"quantization_config": {"quant_method": "gptq"}}), "gptq"),
            (json!({"dtype": "float8_e4m3fn"}), "float8_e4m3fn"),
            (json!({"tie_word_embeddings": 1}), "tie_word_embeddings: expected true or false"),
            (json!({"eos_token_id": 128}), "eos_token_id: expected token ids from 0 to 127, found 128"),
            (json!({"eos_token_id": [2, "x"]}), "eos_token_id"),
            (json!({"layer_types": ["full_attention"]}), "layer_types: expected 3 entries"),
            (json!({"layer_types": ["chunked_attention", "full_attention", "full_attention"]}), "chunked"),
            (
                json!({"layer_types": ["sliding_attention", "full_attention", "full_attention"]}),
                "use_sliding",
            ),
            (
                json!({"use_sliding_window": true, "sliding_window": 0, "max_window_layers": 0}),
                "sliding_window",
            ),
            (json!({"rope_parameters": 7}), "rope_parameters: expected an object, found 7"),
            (json!({"rope_parameters": {"rope_type": "longrope"}}), "default, linear, dynamic, llama3, yarn"),
            (json!({"rope_parameters": {"rope_theta": 0}}), "rope_parameters.rope_theta"),
            (
                json!({"rope_parameters": {"rope_type": "linear"}}),
                "rope_parameters.factor: the key is missing",
            ),
            (json!({"rope_scaling": {"type": "linear", "factor": 0}}), "rope_scaling.factor"),
            (json!({"rope_parameters": {"full_attention": {}}}), "rope per layer type"),
            (json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor 0.5"),
            (
                json!({"rope_parameters": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 1}}),
                "rope_parameters.high_freq_factor: expected more than low_freq_factor, 4, found 1",
            ),
            (
                json!({"rope_scaling": {"type": "yarn", "factor": 4, "beta_fast": 1, "beta_slow": 2}}),
                "beta_fast",
            ),
        ];
        for (changes, expected) in table {
            let message = with(changes.clone()).expect_err(&changes.to_string()).to_string();
            assert!(message.contains(expected), "{changes}: {message:?} lacks {expected:?}");
        }
    }

    #[test]
    fn old_and_new_keys_mean_the_same() {
        let new = with(json!({"dtype": "bfloat16", "rope_parameters":
            {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
             "original_max_position_embeddings": 64}}))
        .unwrap();
        let old = with(
            json!({"torch_dtype": "bfloat16", "rope_parameters": "absent", "rope_theta": 5e5, "rope_scaling":
            {"type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
             "original_max_position_embeddings": 64}}),
        )
        .unwrap();
        assert_eq!(new.dtype, Some(DType::Bf16));
        assert_eq!(old.dtype, new.dtype);
        assert_eq!(old.shape.rope.inv_freq, new.shape.rope.inv_freq);
        assert_ne!(old.shape.rope.inv_freq, with(json!({})).unwrap().shape.rope.inv_freq);
    }

    #[test]
    fn windows_follow_the_architecture() {
        let by_layer = |changes| with(changes).unwrap().shape.window;
        assert_eq!(by_layer(json!({"sliding_window": 16})), [None; 3]);
        assert_eq!(
            by_layer(json!({"use_sliding_window": true, "sliding_window": 16, "max_window_layers": 2})),
            [None, None, Some(16)]
        );
        assert_eq!(
            by_layer(json!({"use_sliding_window": true, "sliding_window": 16,
                "layer_types": ["sliding_attention", "full_attention", "full_attention"]})),
            [Some(16), None, None]
        );
        let mistral = |w: Value| {
            by_layer(json!({"architectures": ["MistralForCausalLM"], "sliding_window": w,
                            "max_position_embeddings": 8192}))
        };
        assert_eq!(mistral(json!(16)), [Some(16); 3]);
        assert_eq!(mistral(Value::Null), [None; 3]);
        assert_eq!(mistral(json!("absent")), [Some(4096); 3]);
        assert_eq!(mistral(json!(8192)), [None; 3], "a window that nothing leaves");
    }

    #[test]
    fn the_end_tokens_of_generation_config_win() {
        let eos = |generation: Value| parse(&qwen3(), &generation).unwrap().eos;
        assert_eq!(eos(json!({})), [TokenId(2)]);
        assert_eq!(eos(json!({"eos_token_id": null})), [TokenId(2)]);
        assert_eq!(eos(json!({"eos_token_id": 7})), [TokenId(7)]);
        assert_eq!(eos(json!({"eos_token_id": [9, 7, 9]})), [TokenId(7), TokenId(9)]);
        let error = parse(&qwen3(), &json!({"eos_token_id": 999})).unwrap_err().to_string();
        assert!(error.contains("generation_config.json: eos_token_id"), "{error}");
        let defaults =
            parse(&qwen3(), &json!({"temperature": 0.6, "top_k": 20, "do_sample": true})).unwrap().defaults;
        assert_eq!((defaults.temperature, defaults.top_k, defaults.top_p), (Some(0.6), Some(20), None));
    }

    #[test]
    fn biases_follow_the_architecture() {
        let biases = |name: &str, key: bool| {
            let c = with(json!({"architectures": [name], "attention_bias": key})).unwrap();
            (c.qkv_bias, c.output_bias)
        };
        assert_eq!(biases("LlamaForCausalLM", true), (true, true));
        assert_eq!(biases("LlamaForCausalLM", false), (false, false));
        assert_eq!(biases("Qwen2ForCausalLM", false), (true, false));
        assert_eq!(biases("Qwen3ForCausalLM", true), (true, true));
        let mistral = with(json!({"architectures": ["MistralForCausalLM"], "attention_bias": true}));
        assert!(mistral.unwrap_err().to_string().contains("attention_bias"));
    }
}
