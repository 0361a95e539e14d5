//! Rotary frequencies, one function per `rope_type`.
//!
//! The last bits matter here: an angle is `position * inv_freq`, so that at position 100,000 one unit in the last place
//! of a frequency is 0.006 radians. The frequencies are therefore computed in float32, step by step as transformers
//! does it; only the power itself goes through float64, which gives the nearest float32.

use std::f64::consts::PI;

use super::fields::{Fields, brief};
use crate::device::ops::Rope;
use crate::error::{Error, Result};

/// The values of `rope_type` that are served.
const SERVED: &str = "default, linear, dynamic, llama3, yarn";

/// What all kinds start from.
struct Base<'a> {
    /// The object that holds the parameters.
    fields: &'a Fields<'a>,
    /// `rope_theta`.
    theta: f64,
    head_dim: usize,
    max_positions: usize,
    /// `original_max_position_embeddings`, or `max_positions`.
    original: usize,
}

/// Reads the rope of a `config.json`: `rope_parameters`, or the older `rope_theta` and `rope_scaling`.
pub(super) fn read(config: &Fields<'_>, head_dim: usize, max_positions: usize) -> Result<Rope> {
    let scaling = config.object("rope_scaling")?.filter(|f| !f.is_empty());
    let parameters = match scaling {
        Some(fields) => Some(fields),
        None => config.object("rope_parameters")?,
    };
    let fields = parameters.as_ref().unwrap_or(config);
    for layer_type in ["full_attention", "sliding_attention"] {
        if fields.value(layer_type).is_some() {
            return Err(Error::Unsupported(format!(
                "rope_parameters.{layer_type}: a rope per layer type is not served"
            )));
        }
    }
    let theta = |f: &Fields<'_>| f.number("rope_theta", 1.0 + 1e-6..=1e12);
    let theta = match theta(fields)? {
        Some(theta) => theta,
        None => theta(config)?.unwrap_or(10_000.0),
    };
    for f in [config, fields] {
        if let Some(part) = f.value("partial_rotary_factor").filter(|v| v.as_f64() != Some(1.0)) {
            return Err(Error::Unsupported(format!(
                "partial_rotary_factor {}: only whole heads are rotated",
                brief(part)
            )));
        }
    }
    let positions = 1..=super::config::MAX_POSITIONS;
    let original = match config.count("original_max_position_embeddings", positions.clone())? {
        Some(n) => n,
        None => fields.count("original_max_position_embeddings", positions)?.unwrap_or(max_positions),
    };
    // Without a parameters object the kind cannot be told from keys of the config itself (`type` may mean anything there).
    let kind = match &parameters {
        None => "default",
        Some(f) => match f.text("rope_type")? {
            Some(kind) => kind,
            None => f.text("type")?.unwrap_or("default"),
        },
    };
    let base = Base { fields, theta, head_dim, max_positions, original };
    match kind {
        "default" => Ok(plain(&base)),
        "linear" => linear(&base),
        "dynamic" => dynamic(&base),
        "llama3" => llama3(&base),
        "yarn" => yarn(&base),
        other => Err(Error::Unsupported(format!("rope_type {other:?} is not served; served are {SERVED}"))),
    }
}

impl Base<'_> {
    /// `theta ^ (2 i / head_dim)`.
    fn powers(&self) -> Vec<f32> {
        let theta = f64::from(self.theta as f32);
        (0..self.head_dim / 2)
            .map(|i| theta.powf(f64::from((2 * i) as f32 / self.head_dim as f32)) as f32)
            .collect()
    }

    fn factor(&self) -> Result<Option<f64>> {
        self.fields.number("factor", 1.0..=1e6)
    }

    fn required_factor(&self) -> Result<f32> {
        let factor = self.factor()?.ok_or_else(|| self.fields.error("factor", "the key is missing"))?;
        Ok(factor as f32)
    }
}

fn plain(base: &Base<'_>) -> Rope {
    Rope { inv_freq: base.powers().iter().map(|p| 1.0 / p).collect(), scale: 1.0 }
}

fn linear(base: &Base<'_>) -> Result<Rope> {
    let factor = base.required_factor()?;
    let mut rope = plain(base);
    rope.inv_freq.iter_mut().for_each(|f| *f /= factor);
    Ok(rope)
}

/// Up to `max_position_embeddings`, `dynamic` is the plain rope; beyond, the frequencies would change with the length of
/// the sequence while its older keys stay rotated by the old ones, which has no meaning for a shared cache. The engine
/// serves no position beyond [`Shape::max_positions`](crate::device::ops::Shape::max_positions), so plain is exact.
fn dynamic(base: &Base<'_>) -> Result<Rope> {
    base.required_factor()?;
    Ok(plain(base))
}

/// Llama 3.1: long waves are slowed down by `factor`, short ones are kept, with a smooth passage in between.
fn llama3(base: &Base<'_>) -> Result<Rope> {
    let need = |key: &str| {
        let value = base.fields.number(key, 1e-3..=1e6)?;
        value.ok_or_else(|| base.fields.error(key, "the key is missing"))
    };
    let factor = base.required_factor()?;
    let (low, high) = (need("low_freq_factor")?, need("high_freq_factor")?);
    if high <= low {
        let message = format!("expected more than low_freq_factor, {low}, found {high}");
        return Err(base.fields.error("high_freq_factor", message));
    }
    let original = base.original as f64;
    let (longest, shortest) = ((original / low) as f32, (original / high) as f32);
    let mut rope = plain(base);
    for f in &mut rope.inv_freq {
        let wave = (2.0 * PI) as f32 / *f;
        if wave > longest {
            *f /= factor;
        } else if wave >= shortest {
            let smooth = (original as f32 / wave - low as f32) / (high - low) as f32;
            *f = (1.0 - smooth) * *f / factor + smooth * *f;
        }
    }
    Ok(rope)
}

/// YaRN (arXiv 2309.00071): frequencies that turn often within the original length are kept, those that turn rarely are
/// divided by `factor`, with a linear ramp in between; the attention is scaled through sine and cosine.
fn yarn(base: &Base<'_>) -> Result<Rope> {
    let fields = base.fields;
    let factor = match base.factor()? {
        Some(factor) => factor,
        None => (base.max_positions as f64 / base.original as f64).max(1.0),
    };
    let optional = |key: &str| fields.number(key, 0.0..=1e6).map(|v| v.filter(|&v| v != 0.0));
    let fast = optional("beta_fast")?.unwrap_or(32.0);
    let slow = optional("beta_slow")?.unwrap_or(1.0);
    if fast < slow {
        return Err(fields.error("beta_fast", format!("expected at least beta_slow, {slow}, found {fast}")));
    }
    let magnitude = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
    let scale = match (
        fields.number("attention_factor", 1e-3..=1e3)?,
        optional("mscale")?,
        optional("mscale_all_dim")?,
    ) {
        (Some(given), _, _) => given,
        (None, Some(m), Some(all)) => magnitude(m) / magnitude(all),
        (None, _, _) => magnitude(1.0),
    };

    let dim = base.head_dim as f64;
    let turns = |n: f64| (dim * (base.original as f64 / (n * 2.0 * PI)).ln()) / (2.0 * base.theta.ln());
    let (mut low, mut high) = (turns(fast), turns(slow));
    if fields.flag("truncate", true)? {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(dim - 1.0));
    if low == high {
        high += 0.001;
    }
    let (start, width) = (low as f32, (high - low) as f32);
    let blend = |(i, power): (usize, &f32)| {
        let kept = 1.0 - ((i as f32 - start) / width).clamp(0.0, 1.0);
        let (slowed, plain) = (1.0 / (factor as f32 * power), 1.0 / power);
        slowed * (1.0 - kept) + plain * kept
    };
    Ok(Rope { inv_freq: base.powers().iter().enumerate().map(blend).collect(), scale: scale as f32 })
}
