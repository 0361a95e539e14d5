//! A device written for reading: one loop per operation, sums in float64, no vectors, no threads.
//!
//! It serves causal segments and full logits only. If a golden model fails on it, the fault lies in the model's
//! configuration or weights; if it passes here and fails elsewhere, the other device is at fault.

use sidereal::device::ops::{
    Buffer, DType, Device, DeviceConfig, Outcome, Path, Plan, SearchSpec, SegmentKind, Tensor,
};
use sidereal::error::{Error, Result};
use sidereal::ids::SearchId;
use sidereal::kv::BLOCK_TOKENS;

/// The plain device.
pub struct Plain {
    config: DeviceConfig,
    /// Per layer, keys and values by slot.
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
    hidden: Vec<f32>,
    query: Vec<f32>,
    mixed: Vec<f32>,
    gated: Vec<f32>,
    logits: Vec<f32>,
}

impl Plain {
    pub fn new(config: DeviceConfig) -> Plain {
        let s = &config.shape;
        let slots = config.cache_blocks * BLOCK_TOKENS * s.kv_heads * s.head_dim;
        // NaN in every slot that was never written: reading one of them shows.
        let cache = vec![vec![f32::NAN; slots]; s.layers];
        Plain {
            keys: cache.clone(),
            values: cache,
            hidden: Vec::new(),
            query: Vec::new(),
            mixed: Vec::new(),
            gated: Vec::new(),
            logits: Vec::new(),
            config,
        }
    }

    fn round(&self, x: f64) -> f32 {
        match self.config.dtype {
            DType::F32 => x as f32,
            DType::Bf16 => half::bf16::from_f32(x as f32).to_f32(),
            DType::F16 => half::f16::from_f32(x as f32).to_f32(),
        }
    }

    fn norm(&self, x: &[f32], w: &Tensor) -> Vec<f32> {
        let square = x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (square + f64::from(self.config.shape.eps)).sqrt();
        x.iter().zip(w.to_f32()).map(|(&v, w)| self.round(f64::from(v) * scale * f64::from(w))).collect()
    }

    /// Turns a head by its position.
    fn rotate(&self, head: &mut [f32], position: u32) {
        let rope = &self.config.shape.rope;
        let half = head.len() / 2;
        for i in 0..half {
            let angle = position as f32 * rope.inv_freq[i];
            let (sin, cos) = (f64::from(angle.sin() * rope.scale), f64::from(angle.cos() * rope.scale));
            let (a, b) = (f64::from(head[i]), f64::from(head[i + half]));
            head[i] = self.round(a * cos - b * sin);
            head[i + half] = self.round(b * cos + a * sin);
        }
    }

    /// Adds `W a (+ b)` to the residual of each row.
    fn add(&mut self, a: &[f32], w: &Tensor, bias: Option<&Tensor>) {
        let width = w.shape()[0];
        for (row, a) in a.chunks(w.shape()[1]).enumerate() {
            for (i, y) in product(a, w, bias).into_iter().enumerate() {
                let x = &self.hidden[row * width + i];
                self.hidden[row * width + i] = self.round(f64::from(*x) + y);
            }
        }
    }
}

/// `W x (+ b)`.
fn product(x: &[f32], w: &Tensor, bias: Option<&Tensor>) -> Vec<f64> {
    let bias = bias.map(Tensor::to_f32);
    let dot = |row: &[f32]| row.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum::<f64>();
    let rows = w.to_f32();
    let rows = rows.chunks(x.len()).map(dot);
    rows.enumerate().map(|(i, y)| y + bias.as_ref().map_or(0.0, |b| f64::from(b[i]))).collect()
}

impl Device for Plain {
    fn describe(&self) -> String {
        "plain".into()
    }

    fn open_search(&mut self, _: SearchSpec) -> Result<SearchId> {
        Err(Error::Unsupported("the plain device searches nothing".into()))
    }

    fn close_search(&mut self, _: SearchId) {}

    fn search_paths(&mut self, _: SearchId) -> Result<Vec<Path>> {
        Ok(Vec::new())
    }

    fn begin(&mut self, plan: &Plan) -> Result<()> {
        assert!(plan.segments.iter().all(|s| s.kind == SegmentKind::Causal));
        Ok(())
    }

    fn embed(&mut self, plan: &Plan) -> Result<()> {
        let width = self.config.shape.hidden;
        let embed = self.config.weights.embed.to_f32();
        self.hidden.clear();
        for token in &plan.tokens {
            let row = &embed[token.index() * width..][..width];
            let row: Vec<f32> = row.iter().map(|&v| self.round(f64::from(v))).collect();
            self.hidden.extend(row);
        }
        for soft in &plan.soft {
            let values: Vec<f32> = soft.values.iter().map(|&v| self.round(f64::from(v))).collect();
            self.hidden[soft.row as usize * width..][..width].copy_from_slice(&values);
        }
        Ok(())
    }

    fn attention_input(&mut self, plan: &Plan, layer: usize) -> Result<()> {
        let s = self.config.shape.clone();
        let l = self.config.weights.layers[layer].clone();
        let kv_width = s.kv_heads * s.head_dim;
        self.query.clear();
        for row in 0..plan.rows() {
            let h = self.norm(&self.hidden[row * s.hidden..][..s.hidden], &l.input_norm);
            let bias = |i: usize| l.qkv_bias.as_ref().map(|b| &b[i]);
            let head = |values: Vec<f64>, norm: Option<&Tensor>| -> Vec<f32> {
                let values: Vec<f32> = values.into_iter().map(|v| v as f32).collect();
                let turn = |h: &[f32]| {
                    let mut h = match norm {
                        Some(w) => {
                            let square =
                                h.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / h.len() as f64;
                            let scale = 1.0 / (square + f64::from(s.eps)).sqrt();
                            let w = w.to_f32();
                            h.iter()
                                .zip(w)
                                .map(|(&v, w)| (f64::from(v) * scale * f64::from(w)) as f32)
                                .collect()
                        }
                        None => h.to_vec(),
                    };
                    self.rotate(&mut h, plan.positions[row]);
                    h
                };
                values.chunks(s.head_dim).flat_map(turn).collect()
            };
            let norms = l.qk_norm.as_ref();
            let q = head(product(&h, &l.q, bias(0)), norms.map(|n| &n[0]));
            let k = head(product(&h, &l.k, bias(1)), norms.map(|n| &n[1]));
            let v: Vec<f32> = product(&h, &l.v, bias(2)).into_iter().map(|v| self.round(v)).collect();
            let slot = plan.slots[row] as usize * kv_width;
            self.query.extend(q);
            self.keys[layer][slot..][..kv_width].copy_from_slice(&k);
            self.values[layer][slot..][..kv_width].copy_from_slice(&v);
        }
        Ok(())
    }

    fn attention(&mut self, plan: &Plan, layer: usize) -> Result<()> {
        let s = &self.config.shape;
        let (dim, kv_width) = (s.head_dim, s.kv_heads * s.head_dim);
        self.mixed = vec![0.0; plan.rows() * s.heads * dim];
        for segment in &plan.segments {
            let table = &plan.blocks[segment.table.start as usize..segment.table.end as usize];
            for (i, row) in segment.rows.clone().enumerate() {
                let last = segment.context as usize + i;
                let first = s.window[layer].map_or(0, |w| (last + 1).saturating_sub(w as usize));
                let slots: Vec<usize> = (first..=last)
                    .map(|key| table[key / BLOCK_TOKENS].index() * BLOCK_TOKENS + key % BLOCK_TOKENS)
                    .collect();
                for head in 0..s.heads {
                    let at = (row as usize * s.heads + head) * dim;
                    let from = head / (s.heads / s.kv_heads) * dim;
                    let q = &self.query[at..at + dim];
                    let read = |cache: &Vec<f32>, slot: usize, d: usize| {
                        f64::from(cache[slot * kv_width + from + d])
                    };
                    let score = |&slot: &usize| {
                        let dot =
                            (0..dim).map(|d| f64::from(q[d]) * read(&self.keys[layer], slot, d)).sum::<f64>();
                        dot / (dim as f64).sqrt()
                    };
                    let scores: Vec<f64> = slots.iter().map(score).collect();
                    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let total: f64 = scores.iter().map(|x| (x - top).exp()).sum();
                    for d in 0..dim {
                        let weighted = slots.iter().zip(&scores);
                        let sum: f64 = weighted
                            .map(|(&slot, x)| (x - top).exp() * read(&self.values[layer], slot, d))
                            .sum();
                        self.mixed[at + d] = self.round(sum / total);
                    }
                }
            }
        }
        Ok(())
    }

    fn attention_output(&mut self, _: &Plan, layer: usize) -> Result<()> {
        let l = self.config.weights.layers[layer].clone();
        let mixed = std::mem::take(&mut self.mixed);
        self.add(&mixed, &l.o, l.o_bias.as_ref());
        self.mixed = mixed;
        Ok(())
    }

    fn mlp_input(&mut self, plan: &Plan, layer: usize) -> Result<()> {
        let l = self.config.weights.layers[layer].clone();
        let width = self.config.shape.hidden;
        self.gated.clear();
        for row in 0..plan.rows() {
            let h = self.norm(&self.hidden[row * width..][..width], &l.post_norm);
            let (gate, up) = (product(&h, &l.gate, None), product(&h, &l.up, None));
            let gated = gate.iter().zip(up).map(|(g, u)| self.round(g / (1.0 + (-g).exp()) * u));
            let gated: Vec<f32> = gated.collect();
            self.gated.extend(gated);
        }
        Ok(())
    }

    fn mlp_output(&mut self, _: &Plan, layer: usize) -> Result<()> {
        let down = self.config.weights.layers[layer].down.clone();
        let gated = std::mem::take(&mut self.gated);
        self.add(&gated, &down, None);
        self.gated = gated;
        Ok(())
    }

    fn head(&mut self, plan: &Plan) -> Result<()> {
        let width = self.config.shape.hidden;
        self.logits.clear();
        for &row in &plan.full_logits {
            let h = self.norm(&self.hidden[row as usize * width..][..width], &self.config.weights.norm);
            self.logits.extend(product(&h, &self.config.weights.head, None).into_iter().map(|v| v as f32));
        }
        Ok(())
    }

    fn sample(&mut self, _: &Plan) -> Result<()> {
        Err(Error::Unsupported("the plain device samples nothing".into()))
    }

    fn step_sids(&mut self, _: &Plan) -> Result<()> {
        Err(Error::Unsupported("the plain device searches nothing".into()))
    }

    fn finish(&mut self) -> Result<Outcome> {
        Ok(Outcome::default())
    }

    fn read(&mut self, buffer: Buffer) -> Result<Vec<f32>> {
        Ok(match buffer {
            Buffer::Hidden => self.hidden.clone(),
            Buffer::Query => self.query.clone(),
            Buffer::Attention => self.mixed.clone(),
            Buffer::Gated => self.gated.clone(),
            Buffer::Logits => self.logits.clone(),
        })
    }

    fn write(&mut self, _: Buffer, _: &[f32]) -> Result<()> {
        Err(Error::Unsupported("the plain device is not written to".into()))
    }
}
