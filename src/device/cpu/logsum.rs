//! `ln sum exp` of a row, in an order that depends on the row's length alone.
//!
//! `max + ln(sum_i exp(x[i] - max))`: element `i` is added to lane `i % 16`, then the lanes are added pairwise. No product is fused with a
//! sum, so the portable code, AVX2 and AVX-512 give the same bits, and so does any other device that keeps the order.

use crate::device::elementary::{exp, ln};

const LANES: usize = 16;

/// The logarithm of the sum of exponentials of `values`; `None` if one of them is NaN.
///
/// Minus infinity if there are no values or all are minus infinity, plus infinity if any is.
pub fn log_sum_exp(values: &[f32]) -> Option<f32> {
    max_and_sum(values).map(|(max, sum)| log_sum(max, sum))
}

/// The logarithm of a sum given as its largest term's exponent and the sum relative to it; NaN stays NaN.
pub(super) fn log_sum(max: f32, sum: f32) -> f32 {
    if max.is_infinite() { max } else { max + ln(sum) }
}

/// The log-probability of a value under a logarithm of a sum, defined for every value but NaN: where both are the same infinity
/// the difference is taken to be 0 for plus and minus infinity for minus.
#[inline]
pub fn log_probability(value: f32, log_sum: f32) -> f32 {
    let difference = value - log_sum;
    match difference.is_nan() {
        false => difference,
        true if value == f32::INFINITY => 0.0,
        true => f32::NEG_INFINITY,
    }
}

/// The largest value and the sum of `exp(x - max)` (1 if the largest is infinite); `None` if a value is NaN.
pub(super) fn max_and_sum(values: &[f32]) -> Option<(f32, f32)> {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has AVX-512F, as was just asked.
            return unsafe { max_and_sum_avx512(values) };
        }
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2, as was just asked.
            return unsafe { max_and_sum_avx2(values) };
        }
    }
    max_and_sum_lanes(values)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn max_and_sum_avx512(values: &[f32]) -> Option<(f32, f32)> {
    max_and_sum_lanes(values)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn max_and_sum_avx2(values: &[f32]) -> Option<(f32, f32)> {
    max_and_sum_lanes(values)
}

#[inline(always)]
fn max_and_sum_lanes(values: &[f32]) -> Option<(f32, f32)> {
    // Largest values may be found in any order: four vectors at once hide the latency.
    let mut max = [f32::NEG_INFINITY; 4 * LANES];
    let mut nan = [0u32; 4 * LANES];
    let chunks = values.chunks_exact(4 * LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for lane in 0..4 * LANES {
            let value = chunk[lane];
            max[lane] = if value > max[lane] { value } else { max[lane] };
            nan[lane] |= u32::from(value.is_nan());
        }
    }
    let mut largest = f32::NEG_INFINITY;
    let mut any_nan = nan.iter().any(|&nan| nan != 0);
    for &value in max.iter().chain(rest) {
        largest = if value > largest { value } else { largest };
        any_nan |= value.is_nan();
    }
    if any_nan {
        return None;
    }
    if largest.is_infinite() {
        return Some((largest, 1.0));
    }
    let mut sums = [0.0f32; LANES];
    let chunks = values.chunks_exact(LANES);
    let mut last = [f32::NEG_INFINITY; LANES];
    last[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
    for chunk in chunks {
        for lane in 0..LANES {
            sums[lane] += exp(chunk[lane] - largest);
        }
    }
    for lane in 0..LANES {
        sums[lane] += exp(last[lane] - largest);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    Some((largest, sums[0]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(len: usize, scale: f32) -> Vec<f32> {
        (0..len as u32)
            .map(|i| ((i.wrapping_mul(2_654_435_761) >> 8) as f32 / 8_388_608.0 - 1.0) * scale)
            .collect()
    }

    #[test]
    fn equals_float64_and_every_width_of_vectors_agrees() {
        for len in [1, 2, 15, 16, 17, 63, 64, 65, 127, 1000, 8192, 100_003] {
            for scale in [0.0, 1.0, 30.0, 1e4] {
                let values = row(len, scale);
                let max = values.iter().fold(f64::MIN, |m, &v| m.max(v as f64));
                let expected = max + values.iter().map(|&v| (v as f64 - max).exp()).sum::<f64>().ln();
                let found = log_sum_exp(&values).unwrap();
                let bound = 1e-6 * expected.abs().max(1.0);
                assert!((found as f64 - expected).abs() < bound, "{len} x {scale}: {found}, {expected}");
                let portable = max_and_sum_lanes(&values).unwrap();
                assert_eq!(max_and_sum(&values).unwrap(), portable);
                #[cfg(target_arch = "x86_64")]
                if std::arch::is_x86_feature_detected!("avx2") {
                    // SAFETY: the processor has AVX2, as was just asked.
                    assert_eq!(unsafe { max_and_sum_avx2(&values) }.unwrap(), portable);
                }
            }
        }
    }

    #[test]
    fn extremes_are_defined() {
        let (inf, low) = (f32::INFINITY, f32::NEG_INFINITY);
        assert_eq!(log_sum_exp(&[]), Some(low));
        assert_eq!(log_sum_exp(&[low; 40]), Some(low));
        assert_eq!(log_sum_exp(&[0.0, inf, low]), Some(inf));
        assert_eq!(log_sum_exp(&[1e30, 0.0]), Some(1e30));
        for place in [0, 5, 63, 64, 70, 99] {
            let mut values = vec![1.0; 100];
            values[place] = f32::NAN;
            assert_eq!(log_sum_exp(&values), None);
            values[(place + 1) % 100] = inf;
            assert_eq!(log_sum_exp(&values), None);
        }
        assert_eq!(log_probability(inf, inf), 0.0);
        assert_eq!(log_probability(low, low), low);
        assert_eq!(log_probability(1.0, inf), low);
    }
}
