//! What a device is made from, checked before anything is allocated.

use super::attention::TILE;
use crate::device::ops::{DType, DeviceConfig, LayerWeights, Shape, Tensor};
use crate::error::{Error, Result};

fn wrong(what: String) -> Error {
    Error::Device(what)
}

/// Checks sizes and the shapes of all weights.
///
/// # Errors
/// [`Error::Device`] naming the size or tensor, what was found and what was expected; [`Error::Unsupported`] for what this device does
/// not serve.
pub(super) fn check(config: &DeviceConfig) -> Result<()> {
    let s = &config.shape;
    let sizes = [
        ("layers", s.layers),
        ("hidden", s.hidden),
        ("heads", s.heads),
        ("kv_heads", s.kv_heads),
        ("head_dim", s.head_dim),
        ("ffn", s.ffn),
        ("vocab", s.vocab),
        ("cache_blocks", config.cache_blocks),
        ("max_rows", config.max_rows),
    ];
    if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == 0) {
        return Err(wrong(format!("{name} is 0, at least 1 is needed")));
    }
    if !s.heads.is_multiple_of(s.kv_heads) || s.heads / s.kv_heads > TILE {
        let (heads, kv) = (s.heads, s.kv_heads);
        return Err(Error::Unsupported(format!(
            "{heads} heads over {kv} key/value heads: the quotient must be a whole number, at most {TILE}"
        )));
    }
    if s.rope.inv_freq.len() * 2 != s.head_dim {
        let found = s.rope.inv_freq.len();
        return Err(wrong(format!(
            "rope has {found} frequencies, a head of {} has pairs of them",
            s.head_dim
        )));
    }
    if s.window.len() != s.layers || config.weights.layers.len() != s.layers {
        let (w, l) = (s.window.len(), config.weights.layers.len());
        return Err(wrong(format!("{} layers with {w} windows and {l} sets of weights", s.layers)));
    }
    expect("embed", &config.weights.embed, &[s.vocab, s.hidden])?;
    expect("head", &config.weights.head, &[s.vocab, s.hidden])?;
    expect("norm", &config.weights.norm, &[s.hidden])?;
    config.weights.layers.iter().enumerate().try_for_each(|(i, layer)| check_layer(i, layer, s))
}

fn check_layer(i: usize, w: &LayerWeights, s: &Shape) -> Result<()> {
    let (q, kv) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
    let named = |name: &str| format!("layers.{i}.{name}");
    let tensors: [(&str, &Tensor, [usize; 2]); 7] = [
        ("q", &w.q, [q, s.hidden]),
        ("k", &w.k, [kv, s.hidden]),
        ("v", &w.v, [kv, s.hidden]),
        ("o", &w.o, [s.hidden, q]),
        ("gate", &w.gate, [s.ffn, s.hidden]),
        ("up", &w.up, [s.ffn, s.hidden]),
        ("down", &w.down, [s.hidden, s.ffn]),
    ];
    for (name, tensor, shape) in tensors {
        expect(&named(name), tensor, &shape)?;
    }
    expect(&named("input_norm"), &w.input_norm, &[s.hidden])?;
    expect(&named("post_norm"), &w.post_norm, &[s.hidden])?;
    for (norm, name) in w.qk_norm.iter().flatten().zip(["q_norm", "k_norm"]) {
        expect(&named(name), norm, &[s.head_dim])?;
    }
    for ((bias, name), len) in
        w.qkv_bias.iter().flatten().zip(["q_bias", "k_bias", "v_bias"]).zip([q, kv, kv])
    {
        expect(&named(name), bias, &[len])?;
    }
    if let Some(bias) = &w.o_bias {
        expect(&named("o_bias"), bias, &[s.hidden])?;
    }
    same_type(&named("q, k and v"), &[&w.q, &w.k, &w.v])?;
    same_type(&named("gate and up"), &[&w.gate, &w.up])
}

fn expect(name: &str, tensor: &Tensor, shape: &[usize]) -> Result<()> {
    if tensor.shape() == shape {
        return Ok(());
    }
    Err(wrong(format!("{name}: expected {shape:?}, found {tensor:?}")))
}

fn same_type(name: &str, tensors: &[&Tensor]) -> Result<()> {
    let types: Vec<DType> = tensors.iter().map(|t| t.dtype()).collect();
    if types.windows(2).all(|t| t[0] == t[1]) {
        return Ok(());
    }
    let types: Vec<String> = types.iter().map(DType::to_string).collect();
    Err(Error::Unsupported(format!(
        "{name} are one product and must have one type, found {}",
        types.join(", ")
    )))
}
