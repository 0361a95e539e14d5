//! Semantic IDs from embeddings: vectors, codebooks, reports, and models that speak them.

#[path = "sids/codes.rs"]
mod codes;
#[path = "sids/extend.rs"]
mod extend;
#[path = "sids/files.rs"]
mod files;
#[path = "sids/program.rs"]
mod program;
#[path = "sids/reference.rs"]
mod reference;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// A draw that is about normal: the sum of twelve uniform ones.
fn normal(random: &mut SmallRng) -> f32 {
    (0..12).map(|_| random.random::<f32>()).sum::<f32>() - 6.0
}

/// Rows around a few centres.
fn clustered(rows: usize, dim: usize, centres: usize, seed: u64) -> Vec<f32> {
    let mut random = SmallRng::seed_from_u64(seed);
    let centres: Vec<f32> = (0..centres * dim).map(|_| 3.0 * normal(&mut random)).collect();
    let mut values = Vec::with_capacity(rows * dim);
    for _ in 0..rows {
        let of = random.random_range(0..centres.len() / dim);
        values.extend(centres[of * dim..][..dim].iter().map(|c| c + 0.5 * normal(&mut random)));
    }
    values
}
