//! The adapter that turns a user vector into a soft token.
//!
//! `y = W2 gelu(W0 x + b0) + b2`, GELU with the exact error function, in float32 whatever the stored type. It runs once
//! per embedding part of a request, outside of the device, so it is written plainly.

use std::f64::consts::{FRAC_1_SQRT_2, PI};
use std::path::Path;

use super::tensors::TensorFile;
use super::weights::Checkpoint;
use crate::device::ops::{DType, Tensor};
use crate::error::{Error, Result};

/// The tensors, in the order in which [`Adapter::new`] takes them.
const NAMES: [&str; 4] = ["adapter.0.weight", "adapter.0.bias", "adapter.2.weight", "adapter.2.bias"];
/// The file beside the model, if its own files hold no adapter.
const FILE: &str = "adapter.safetensors";

/// Two linear layers with bias and GELU between.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// `[inner, input]`.
    w0: Tensor,
    /// `[inner]`.
    b0: Vec<f32>,
    /// `[hidden, inner]`.
    w2: Tensor,
    /// `[hidden]`.
    b2: Vec<f32>,
}

impl Adapter {
    /// Finds the adapter of a model folder, among the model's own tensors or in `adapter.safetensors`; `None` if neither has
    /// one.
    ///
    /// # Errors
    /// [`Error::File`] if some of the four tensors are missing, or shapes do not fit each other or `hidden`.
    pub(super) fn open(dir: &Path, checkpoint: &Checkpoint, hidden: usize) -> Result<Option<Adapter>> {
        if NAMES.iter().any(|name| checkpoint.contains(name)) {
            let shapes = |name: &str| checkpoint.shape(name);
            return from_parts(checkpoint.listing(), &shapes, &|n, s| checkpoint.take(n, s), hidden)
                .map(Some);
        }
        let path = dir.join(FILE);
        if !path.exists() {
            return Ok(None);
        }
        let file = TensorFile::open(&path)?;
        let shapes = |name: &str| file.entry(name).map(|e| e.shape.clone());
        let take = |name: &str, shape: &[usize]| {
            let entry = file.entry(name).filter(|e| e.shape == shape);
            entry.and_then(|e| file.tensor(e)).ok_or_else(|| {
                let found = file
                    .entry(name)
                    .map_or("no such tensor".to_owned(), |e| format!("{:?} {}", e.shape, e.stored));
                Error::file(&path, format!("{name}: expected {shape:?} bf16, f16 or f32, found {found}"))
            })
        };
        from_parts(&path, &shapes, &take, hidden).map(Some)
    }

    /// An adapter of the weights `[inner, input]`, `[inner]`, `[hidden, inner]`, `[hidden]`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the shapes do not fit each other.
    pub fn new(tensors: [Tensor; 4]) -> Result<Adapter> {
        let [w0, b0, w2, b2] = tensors;
        match (w0.shape(), b0.shape(), w2.shape(), b2.shape()) {
            (&[inner, input], &[bias], &[hidden, width], &[last])
                if inner == bias && inner == width && hidden == last && input > 0 => {}
            (w0, b0, w2, b2) => {
                return Err(Error::Unsupported(format!(
                    "adapter: expected [inner, input], [inner], [hidden, inner], [hidden], found {w0:?}, {b0:?}, {w2:?}, {b2:?}"
                )));
            }
        }
        Ok(Adapter { w0, b0: b0.to_f32(), w2, b2: b2.to_f32() })
    }

    /// Length of the vectors it takes.
    pub fn input(&self) -> usize {
        self.w0.shape()[1]
    }

    /// Length of the vectors it returns: the model's hidden size.
    pub fn output(&self) -> usize {
        self.b2.len()
    }

    /// The soft token `[output]` of a user vector `[input]`.
    ///
    /// # Errors
    /// [`Error::Invalid`] with field `values`: wrong length, a value that is not finite, or a result that is not.
    pub fn apply(&self, values: &[f32]) -> Result<Vec<f32>> {
        if values.len() != self.input() {
            let message =
                format!("expected {} numbers for the adapter, found {}", self.input(), values.len());
            return Err(Error::invalid("values", message));
        }
        if let Some(i) = values.iter().position(|v| !v.is_finite()) {
            return Err(Error::invalid(
                format!("values[{i}]"),
                format!("{} is not a finite number", values[i]),
            ));
        }
        let mut inner = linear(&self.w0, &self.b0, values);
        inner.iter_mut().for_each(|x| *x = gelu(*x));
        let out = linear(&self.w2, &self.b2, &inner);
        if out.iter().all(|v| v.is_finite()) {
            return Ok(out);
        }
        let largest = values.iter().fold(0f32, |m, v| m.max(v.abs()));
        let message = format!("the adapter overflows; the largest number of the vector is {largest}");
        Err(Error::invalid("values", message))
    }
}

/// Reads the four tensors: the inner width is the first one's, everything else must fit it and `hidden`.
fn from_parts(
    file: &Path,
    shape: &dyn Fn(&str) -> Option<Vec<usize>>,
    take: &dyn Fn(&str, &[usize]) -> Result<Tensor>,
    hidden: usize,
) -> Result<Adapter> {
    let (inner, input) = match shape(NAMES[0]).as_deref() {
        Some(&[inner, input]) if inner > 0 && input > 0 => (inner, input),
        found => {
            let found = found.map_or("no such tensor".to_owned(), |s| format!("{s:?}"));
            return Err(Error::file(file, format!("{}: expected [inner, input], found {found}", NAMES[0])));
        }
    };
    Adapter::new([
        take(NAMES[0], &[inner, input])?,
        take(NAMES[1], &[inner])?,
        take(NAMES[2], &[hidden, inner])?,
        take(NAMES[3], &[hidden])?,
    ])
}

/// `W x + b`.
fn linear(w: &Tensor, b: &[f32], x: &[f32]) -> Vec<f32> {
    let bytes = w.bytes();
    let row = x.len() * w.dtype().size();
    let dot = |i: usize| -> f32 {
        let bytes = &bytes[i * row..(i + 1) * row];
        match w.dtype() {
            DType::F32 => sum(bytemuck::cast_slice::<u8, f32>(bytes).iter().copied(), x),
            DType::Bf16 => sum(bytemuck::cast_slice::<u8, half::bf16>(bytes).iter().map(|v| v.to_f32()), x),
            DType::F16 => sum(bytemuck::cast_slice::<u8, half::f16>(bytes).iter().map(|v| v.to_f32()), x),
        }
    };
    b.iter().enumerate().map(|(i, &b)| dot(i) + b).collect()
}

/// A dot product; summed in float64, which costs nothing here and leaves one rounding.
fn sum(w: impl Iterator<Item = f32>, x: &[f32]) -> f32 {
    w.zip(x).map(|(w, &x)| f64::from(w) * f64::from(x)).sum::<f64>() as f32
}

/// `x (1 + erf(x / sqrt 2)) / 2`.
fn gelu(x: f32) -> f32 {
    let x = f64::from(x);
    (0.5 * x * (1.0 + erf(x * FRAC_1_SQRT_2))) as f32
}

/// The error function: `2 / sqrt(pi) e^(-x^2) sum_n 2^n x^(2n+1) / (2n+1)!!` (Abramowitz and Stegun 7.1.6), whose terms all
/// have one sign, so that nothing cancels. Beyond 6 the result is 1 to the last bit.
fn erf(x: f64) -> f64 {
    if x.abs() >= 6.0 {
        return x.signum();
    }
    let square = x * x;
    let (mut term, mut total, mut n) = (x, x, 0.0);
    while term.abs() > total.abs() * 1e-17 {
        n += 1.0;
        term *= 2.0 * square / (2.0 * n + 1.0);
        total += term;
    }
    2.0 / PI.sqrt() * (-square).exp() * total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_is_exact() {
        // Values of Abramowitz and Stegun, table 7.1, and of the asymptotic series.
        let table = [
            (0.0, 0.0),
            (0.5, 0.520_499_877_813_046_5),
            (1.0, 0.842_700_792_949_714_9),
            (2.0, 0.995_322_265_018_952_7),
            (3.0, 0.999_977_909_503_001_4),
            (5.9, 1.0),
            (7.0, 1.0),
        ];
        for (x, expected) in table {
            assert!((erf(x) - expected).abs() < 1e-15, "erf({x}) = {}", erf(x));
            assert_eq!(erf(-x), -erf(x));
        }
    }

    fn small() -> Adapter {
        Adapter::new([
            Tensor::rounded(DType::Bf16, vec![3, 2], &[1.0, 0.0, 0.0, 1.0, 1.0, 1.0]),
            Tensor::from_f32(vec![3], &[0.0, 0.5, -1.0]),
            Tensor::rounded(DType::F16, vec![2, 3], &[1.0, 1.0, 1.0, 0.0, 0.0, 2.0]),
            Tensor::from_f32(vec![2], &[0.25, 0.0]),
        ])
        .unwrap()
    }

    #[test]
    fn applies_both_layers() {
        let y = small().apply(&[1.0, -1.0]).unwrap();
        // gelu(1), gelu(-0.5), gelu(-1)
        let g = [0.841_344_7, -0.154_268_77, -0.158_655_26];
        assert!((y[0] - (g[0] + g[1] + g[2] + 0.25)).abs() < 1e-6);
        assert!((y[1] - 2.0 * g[2]).abs() < 1e-6);
    }

    #[test]
    fn refuses_vectors_by_name() {
        let message = |x: &[f32]| small().apply(x).unwrap_err().to_string();
        assert_eq!(message(&[1.0]), "values: expected 2 numbers for the adapter, found 1");
        assert_eq!(message(&[1.0, f32::NAN]), "values[1]: NaN is not a finite number");
        assert!(message(&[f32::MAX, f32::MAX]).contains("overflows"));
        let bad = Adapter::new([
            Tensor::from_f32(vec![3, 2], &[0.0; 6]),
            Tensor::from_f32(vec![2], &[0.0; 2]),
            Tensor::from_f32(vec![2, 3], &[0.0; 6]),
            Tensor::from_f32(vec![2], &[0.0; 2]),
        ]);
        assert!(bad.unwrap_err().to_string().contains("[3, 2], [2], [2, 3], [2]"));
    }
}
