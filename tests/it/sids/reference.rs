//! Residual k-means as a textbook has it, in float64: the oracle of the fast one.

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

fn square(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
}

/// Lloyd's algorithm from a plain k-means++ start, to the end; what is left of the rows, and its mean squared length.
fn level(rows: &mut [Vec<f64>], codes: usize, random: &mut SmallRng) -> f64 {
    let mut centroids = vec![rows[random.random_range(0..rows.len())].clone()];
    while centroids.len() < codes {
        let weights: Vec<f64> = rows
            .iter()
            .map(|x| centroids.iter().map(|c| square(x, c)).fold(f64::INFINITY, f64::min))
            .collect();
        let mut at = random.random::<f64>() * weights.iter().sum::<f64>();
        let chosen = weights.iter().position(|w| {
            at -= w;
            at < 0.0
        });
        centroids.push(rows[chosen.unwrap_or(0)].clone());
    }
    let nearest = |x: &Vec<f64>, centroids: &[Vec<f64>]| {
        (0..codes).min_by(|&a, &b| square(x, &centroids[a]).total_cmp(&square(x, &centroids[b]))).unwrap()
    };
    let mut codes_of: Vec<usize> = Vec::new();
    loop {
        let now: Vec<usize> = rows.iter().map(|x| nearest(x, &centroids)).collect();
        if now == codes_of {
            break;
        }
        codes_of = now;
        for (code, centroid) in centroids.iter_mut().enumerate() {
            let members: Vec<&Vec<f64>> =
                rows.iter().zip(&codes_of).filter(|(_, of)| **of == code).map(|(x, _)| x).collect();
            for (at, value) in centroid.iter_mut().enumerate().filter(|_| !members.is_empty()) {
                *value = members.iter().map(|x| x[at]).sum::<f64>() / members.len() as f64;
            }
        }
    }
    for (x, &code) in rows.iter_mut().zip(&codes_of) {
        x.iter_mut().zip(&centroids[code]).for_each(|(x, c)| *x -= c);
    }
    rows.iter().map(|x| square(x, &vec![0.0; x.len()])).sum::<f64>() / rows.len() as f64
}

/// The errors after each level.
pub fn errors(values: &[f32], dim: usize, levels: &[usize], seed: u64) -> Vec<f64> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut rows: Vec<Vec<f64>> =
        values.chunks_exact(dim).map(|x| x.iter().map(|&v| f64::from(v)).collect()).collect();
    levels.iter().map(|&codes| level(&mut rows, codes, &mut random)).collect()
}

/// The code of each level, by looking at every centroid in float64; residuals in float32, as a file's reader would take them.
pub fn codes(x: &[f32], levels: &[Vec<Vec<f32>>]) -> Vec<u16> {
    let mut x = x.to_vec();
    let mut codes = Vec::new();
    for centroids in levels {
        let far = |c: &Vec<f32>| -> f64 {
            x.iter().zip(c).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum()
        };
        // `min_by` takes the first of equal ones.
        let best = (0..centroids.len()).min_by(|&a, &b| far(&centroids[a]).total_cmp(&far(&centroids[b])));
        let best = best.unwrap();
        x.iter_mut().zip(&centroids[best]).for_each(|(x, c)| *x -= c);
        codes.push(best as u16);
    }
    codes
}
