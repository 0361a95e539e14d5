//! `exp` and `ln` in float32 with the same bits on every machine.
//!
//! Scores and draws are compared across devices, so they cannot rest on a platform's mathematical library. Both functions are a range
//! reduction and a polynomial, in separate multiplications and additions (never fused), without a branch: a loop over
//! lanes becomes vector code at whatever width the caller's function is compiled for, and every width gives the same bits.
//! The coefficients are weighted least-squares fits at Chebyshev nodes, reweighted towards equal error.

/// 1.5 * 2^23: adding it rounds a small float to the nearest integer, which the low bits of the sum then hold.
const ROUND: f32 = 12_582_912.0;
/// ln 2 in two parts; the first has few bits, so that its product with a small integer is exact.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;
/// Below this `exp` is 0: the result would not be a normal number.
const EXP_MIN: f32 = -87.0;
/// Above this `exp` stays where it is.
const EXP_MAX: f32 = 88.0;

/// `e^x`, relative error below 2e-7; 0 below -87 and for minus infinity, no more than `e^88`. Not for NaN.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    let inside = if x > EXP_MIN { x } else { EXP_MIN };
    let inside = if inside < EXP_MAX { inside } else { EXP_MAX };
    let rounded = inside * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (inside - n * LN2_HIGH) - n * LN2_LOW;
    let mut p = 1.395_171_4e-3;
    p = p * r + 8.369_599e-3;
    p = p * r + 4.166_618_7e-2;
    p = p * r + 1.666_651_3e-1;
    p = p * r + 0.5;
    let significand = (p * (r * r) + r) + 1.0;
    let exponent = rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    let value = significand * f32::from_bits(exponent);
    if x < EXP_MIN { 0.0 } else { value }
}

/// `ln x` for positive normal `x`, relative error below 2e-7 away from 1 and absolute error below 1e-8 near it.
#[inline(always)]
pub(super) fn ln(x: f32) -> f32 {
    // The exponent that leaves a significand between sqrt(1/2) and sqrt(2), where the series is about zero.
    const SQRT_HALF: u32 = 0x3f35_04f3;
    let exponent = (x.to_bits().wrapping_sub(SQRT_HALF) as i32) >> 23;
    let f = f32::from_bits(x.to_bits().wrapping_sub((exponent as u32) << 23)) - 1.0;
    let n = exponent as f32;
    let mut p = -7.859_421e-2;
    p = p * f + 1.288_157_5e-1;
    p = p * f - 1.312_879_2e-1;
    p = p * f + 1.418_120_4e-1;
    p = p * f - 1.662_455e-1;
    p = p * f + 2.000_228_6e-1;
    p = p * f - 2.500_081e-1;
    p = p * f + 3.333_331_7e-1;
    let square = f * f;
    let small = n * LN2_LOW + (square * f * p - 0.5 * square);
    (small + f) + n * LN2_HIGH
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_over_its_range() {
        for i in 0..200_000 {
            let x = -87.0 + i as f32 * (175.0 / 200_000.0);
            let (found, expected) = (exp(x) as f64, (x as f64).exp());
            assert!((found / expected - 1.0).abs() < 2e-7, "exp({x}) = {found}, expected {expected}");
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1e30), 0.0);
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::INFINITY).is_finite());
    }

    #[test]
    fn ln_is_close_over_its_range() {
        for i in 0..400_000u32 {
            let x = f32::from_bits(0x0080_0000 + i * 5_300);
            let (found, expected) = (ln(x) as f64, (x as f64).ln());
            let bound = 1e-8 + 2e-7 * expected.abs();
            assert!((found - expected).abs() < bound, "ln({x}) = {found}, expected {expected}");
        }
        assert_eq!(ln(1.0), 0.0);
    }
}
