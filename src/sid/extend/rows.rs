//! Rows of new tokens.

use half::{bf16, f16};
use rayon::prelude::*;

use super::{Init, Job};
use crate::catalog::Place;
use crate::device::ops::{DType, Tensor};
use crate::error::{Error, Result};
use crate::random::Random;

/// Rows that one sum takes before sums are joined, in order.
const PIECE: usize = 4096;

/// What old rows are like.
struct Old {
    mean: Vec<f64>,
    /// Standard deviation of each value.
    deviation: Vec<f64>,
}

/// The rows of all added tokens for one matrix, `[added, hidden]`, in its type; `matrix` tells embedding and head apart.
pub(super) fn rows(job: &Job<'_>, tensor: &Tensor, matrix: u64) -> Result<Vec<u8>> {
    let (hidden, added) = (tensor.shape()[1], job.tokens.added.len());
    let mut values = vec![0.0f32; added * hidden];
    if !matches!(job.init, Init::Zero) {
        let old = Old::of(tensor, job.tokens.old.min(tensor.shape()[0]));
        for (at, row) in values.chunks_exact_mut(hidden).enumerate() {
            // Every token has draws of its own, so that a layout with one more type changes no row.
            let random = Random::new(job.seed, 16 + 2 * at as u64 + matrix);
            match job.init {
                Init::Mean | Init::Zero => {
                    row.iter_mut().zip(&old.mean).for_each(|(to, &mean)| *to = mean as f32)
                }
                Init::Normal | Init::Centroids(_) => old.normal(random, row),
            }
        }
        if let Init::Centroids(books) = job.init {
            let mut projected = Projection::new(job.seed, hidden);
            for (at, row) in values.chunks_exact_mut(hidden).enumerate() {
                let Some(Place::Code { item_type, level, code }) = job.place(at) else { continue };
                let name = &job.resolved.types[item_type.index()].name;
                let books = books.of_type(Some(name))?;
                let sizes: Vec<usize> = job.layout.types[item_type.index()].levels.clone();
                if books.sizes() != sizes {
                    let message = format!(
                        "{sizes:?} in the layout; the codebooks of `{name}` have {:?}",
                        books.sizes()
                    );
                    return Err(Error::invalid(format!("types[{item_type}].levels"), message));
                }
                if let Some(book) = books.levels.get(usize::from(level)) {
                    old.along(projected.of(book.centroid(code)), row);
                }
            }
        }
    }
    Ok(bytes(tensor.dtype(), &values))
}

impl Old {
    /// Mean and deviation of the first rows, in one order of sums.
    fn of(tensor: &Tensor, rows: usize) -> Old {
        let hidden = tensor.shape()[1];
        let width = hidden * tensor.dtype().size();
        let pieces = tensor.bytes()[..rows * width].par_chunks(PIECE * width);
        let sums: Vec<(Vec<f64>, Vec<f64>)> = pieces
            .map(|piece| {
                let (mut sum, mut squares) = (vec![0.0; hidden], vec![0.0; hidden]);
                for row in piece.chunks_exact(width) {
                    for (at, value) in values(tensor.dtype(), row).enumerate() {
                        sum[at] += value;
                        squares[at] += value * value;
                    }
                }
                (sum, squares)
            })
            .collect();
        let (mut mean, mut squares) = (vec![0.0; hidden], vec![0.0; hidden]);
        for (sum, square) in &sums {
            mean.iter_mut().zip(sum).for_each(|(to, v)| *to += v);
            squares.iter_mut().zip(square).for_each(|(to, v)| *to += v);
        }
        let count = rows.max(1) as f64;
        mean.iter_mut().for_each(|v| *v /= count);
        let deviation = squares
            .iter()
            .zip(&mean)
            .map(|(square, mean)| (square / count - mean * mean).max(0.0).sqrt())
            .collect();
        Old { mean, deviation }
    }

    fn normal(&self, mut random: Random, row: &mut [f32]) {
        for ((to, mean), deviation) in row.iter_mut().zip(&self.mean).zip(&self.deviation) {
            *to = (mean + deviation * random.normal()) as f32;
        }
    }

    /// The mean, and in that direction as far as old rows are from it on average (in squares).
    fn along(&self, direction: Vec<f64>, row: &mut [f32]) {
        let length = |v: &[f64]| v.iter().map(|v| v * v).sum::<f64>().sqrt();
        let own = length(&direction);
        let scale = if own > 0.0 { length(&self.deviation) / own } else { 0.0 };
        for ((to, mean), d) in row.iter_mut().zip(&self.mean).zip(direction) {
            *to = (mean + scale * d) as f32;
        }
    }
}

/// A matrix `[hidden, dim]` of normal draws, made when the width of the centroids is known.
struct Projection {
    seed: u64,
    hidden: usize,
    matrix: Vec<f64>,
}

impl Projection {
    fn new(seed: u64, hidden: usize) -> Projection {
        Projection { seed, hidden, matrix: Vec::new() }
    }

    fn of(&mut self, centroid: &[f32]) -> Vec<f64> {
        if self.matrix.len() != self.hidden * centroid.len() {
            let mut random = Random::new(self.seed, 2);
            self.matrix = (0..self.hidden * centroid.len()).map(|_| random.normal()).collect();
        }
        let dot = |row: &[f64]| row.iter().zip(centroid).map(|(a, &b)| a * f64::from(b)).sum();
        self.matrix.chunks_exact(centroid.len()).map(dot).collect()
    }
}

/// The values of a row.
fn values(dtype: DType, bytes: &[u8]) -> Box<dyn Iterator<Item = f64> + '_> {
    let words = || bytes.as_chunks::<2>().0.iter();
    match dtype {
        DType::F32 => Box::new(bytes.as_chunks::<4>().0.iter().map(|&b| f64::from(f32::from_le_bytes(b)))),
        DType::Bf16 => Box::new(words().map(|&b| bf16::from_le_bytes(b).to_f64())),
        DType::F16 => Box::new(words().map(|&b| f16::from_le_bytes(b).to_f64())),
    }
}

/// Values in a type, rounded to nearest even.
fn bytes(dtype: DType, values: &[f32]) -> Vec<u8> {
    match dtype {
        DType::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::Bf16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
    }
}
