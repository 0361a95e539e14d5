//! A decoder layer and head in float64, straight from the definitions.

use sidereal::device::ops::Tensor;
use sidereal::ids::TokenId;

use super::{EPS, Setup};

/// What the operations leave behind, one entry per row.
pub struct Reference {
    /// Results of the attention.
    pub attended: Vec<Vec<f64>>,
    /// Gated activations.
    pub gated: Vec<Vec<f64>>,
    /// The residual stream.
    pub hidden: Vec<Vec<f64>>,
    /// Logits.
    pub logits: Vec<Vec<f64>>,
}

/// A dot product.
pub fn dot(w: &[f32], x: &[f64]) -> f64 {
    w.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum()
}

fn times(w: &Tensor, x: &[f64]) -> Vec<f64> {
    w.to_f32().chunks(x.len()).map(|row| dot(row, x)).collect()
}

fn rms(x: &[f64], w: &Tensor) -> Vec<f64> {
    let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
    x.iter().zip(w.to_f32()).map(|(v, w)| v / (mean + f64::from(EPS)).sqrt() * f64::from(w)).collect()
}

fn add(x: &mut [f64], y: Vec<f64>) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

fn plus(mut x: Vec<f64>, bias: Option<&Tensor>) -> Vec<f64> {
    if let Some(bias) = bias {
        add(&mut x, bias.to_f32().iter().map(|v| f64::from(*v)).collect());
    }
    x
}

/// All rows of one sequence.
pub fn reference(setup: &Setup, tokens: &[TokenId]) -> Reference {
    let (shape, weights) = (setup.shape(), setup.weights());
    let w = &weights.layers[0];
    let (dim, group) = (setup.head_dim, setup.heads / setup.kv_heads);
    let heads = |x: Vec<f64>, norm: Option<&Tensor>, position: usize| -> Vec<Vec<f64>> {
        let head = |x: &[f64]| {
            let x = norm.map_or_else(|| x.to_vec(), |n| rms(x, n));
            let turn = |i: usize| {
                let (j, sign) = (i % (dim / 2), if i < dim / 2 { -1.0 } else { 1.0 });
                let angle = f64::from(position as f32 * shape.rope.inv_freq[j]);
                let other = x[(i + dim / 2) % dim];
                (x[i] * angle.cos() + sign * other * angle.sin()) * f64::from(shape.rope.scale)
            };
            (0..dim).map(turn).collect()
        };
        x.chunks(dim).map(head).collect()
    };
    let (mut keys, mut values): (Vec<Vec<Vec<f64>>>, Vec<Vec<f64>>) = (Vec::new(), Vec::new());
    let mut out =
        Reference { attended: Vec::new(), gated: Vec::new(), hidden: Vec::new(), logits: Vec::new() };
    for (position, token) in tokens.iter().enumerate() {
        let row = &weights.embed.to_f32()[token.index() * setup.hidden..][..setup.hidden];
        let mut x: Vec<f64> = row.iter().map(|v| f64::from(*v)).collect();
        let h = rms(&x, &w.input_norm);
        let bias = |i: usize| w.qkv_bias.as_ref().map(|b| &b[i]);
        let norm = |i: usize| w.qk_norm.as_ref().map(|n| &n[i]);
        let q = heads(plus(times(&w.q, &h), bias(0)), norm(0), position);
        keys.push(heads(plus(times(&w.k, &h), bias(1)), norm(1), position));
        values.push(plus(times(&w.v, &h), bias(2)));
        let lowest = setup.window.map_or(0, |w| (position + 1).saturating_sub(w as usize));
        let mut attended = Vec::new();
        for (head, q) in q.iter().enumerate() {
            let kv = head / group;
            let score = |p: usize| -> f64 {
                q.iter().zip(&keys[p][kv]).map(|(a, b)| a * b).sum::<f64>() / (dim as f64).sqrt()
            };
            let scores: Vec<f64> = (lowest..=position).map(score).collect();
            let greatest = scores.iter().copied().fold(f64::MIN, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - greatest).exp()).collect();
            let total: f64 = weights.iter().sum();
            attended.extend((0..dim).map(|d| {
                let at = |(i, w): (usize, &f64)| w * values[lowest + i][kv * dim + d];
                weights.iter().enumerate().map(at).sum::<f64>() / total
            }));
        }
        add(&mut x, plus(times(&w.o, &attended), w.o_bias.as_ref()));
        let h = rms(&x, &w.post_norm);
        let silu = |g: f64| g / (1.0 + (-g).exp());
        let gated: Vec<f64> =
            times(&w.gate, &h).iter().zip(times(&w.up, &h)).map(|(g, u)| silu(*g) * u).collect();
        add(&mut x, times(&w.down, &gated));
        out.logits.push(times(&weights.head, &rms(&x, &weights.norm)));
        out.attended.push(attended);
        out.gated.push(gated);
        out.hidden.push(x);
    }
    out
}
