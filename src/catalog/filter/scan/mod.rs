//! From packed values to bits, 64 at a time.
//!
//! Every function fills `out`, one bit per value, least significant first; bits beyond the last value are 0. A column is read once, front
//! to back, and nothing is branched on: what bounds a scan is the memory it reads. Each function exists in a plain form, which is
//! also compiled for AVX2, and where that falls short of the memory for AVX-512; all forms give the same bits.

#[cfg(target_arch = "x86_64")]
mod x86;

/// A set of vector instructions, chosen at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// What the compiler's baseline has.
    Portable,
    /// AVX2 and BMI2.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, DQ and VL besides.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Level {
    /// The levels that this CPU has, lowest first.
    pub fn supported() -> Vec<Level> {
        #[allow(unused_mut, reason = "where there is one level only")]
        let mut levels = vec![Level::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx2") && has!("bmi2") && has!("popcnt") {
                levels.push(Level::Avx2);
                if has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl") {
                    levels.push(Level::Avx512);
                }
            }
        }
        levels
    }

    /// The fastest level that this CPU has.
    pub fn detect() -> Level {
        *Level::supported().last().unwrap_or(&Level::Portable)
    }
}

/// Calls the form of a function for a level; only [`Level::supported`] makes levels.
macro_rules! by_level {
    ($level:expr, $name:ident($($arg:expr),*), avx512) => {
        match $level {
            Level::Portable => plain::$name($($arg),*),
            // SAFETY: the CPU was found to have the level.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { x86::avx2::$name($($arg),*) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => unsafe { x86::avx512::$name($($arg),*) },
        }
    };
    ($level:expr, $name:ident($($arg:expr),*)) => {
        match $level {
            Level::Portable => plain::$name($($arg),*),
            // SAFETY: the CPU was found to have the level; AVX-512 includes AVX2.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 | Level::Avx512 => unsafe { x86::avx2::$name($($arg),*) },
        }
    };
}

/// Whether each value lies in `low..=high`.
pub(crate) fn ints(level: Level, values: &[i64], (low, high): (i64, i64), out: &mut [u64]) {
    check_words(values.len(), out);
    by_level!(level, ints(values, low, high, out), avx512);
}

/// Whether each value, less `low`, is a set bit of `marks`; what is below or beyond has none.
pub(crate) fn marked_ints(level: Level, values: &[i64], low: i64, marks: &[u64], out: &mut [u64]) {
    check_words(values.len(), out);
    match marks {
        [few] => by_level!(level, few_ints(values, low, *few, out), avx512),
        many => by_level!(level, many_ints(values, low, many, out)),
    }
}

/// Whether each value lies in `low..=high`; what is not a number does not.
pub(crate) fn floats(level: Level, values: &[f64], (low, high): (f64, f64), out: &mut [u64]) {
    check_words(values.len(), out);
    by_level!(level, floats(values, low, high, out), avx512);
}

/// Whether each code lies in `low..=high`.
pub(crate) fn codes(level: Level, values: &[u32], (low, high): (u32, u32), out: &mut [u64]) {
    check_words(values.len(), out);
    by_level!(level, codes(values, low, high, out), avx512);
}

/// Whether each code is a set bit of `marks`.
pub(crate) fn few_codes(level: Level, values: &[u32], marks: u64, out: &mut [u64]) {
    check_words(values.len(), out);
    by_level!(level, few_codes(values, marks, out), avx512);
}

/// Whether each code is a set bit of `marks`; codes beyond have none.
pub(crate) fn many_codes(level: Level, values: &[u32], marks: &[u64], out: &mut [u64]) {
    check_words(values.len(), out);
    by_level!(level, many_codes(values, marks, out));
}

/// Whether any bit of each part is set: part `i` is the bits `ends[i - 1] - origin..ends[i] - origin`, the first begins at bit 0.
///
/// # Panics
/// If the parts do not ascend within `bits`.
pub(crate) fn parts(level: Level, bits: &[u64], origin: u32, ends: &[u32], out: &mut [u64]) {
    check_words(ends.len(), out);
    by_level!(level, parts(bits, origin, origin, ends, out), avx512);
}

/// As [`parts`], with parts that begin at bit `first` of `bits` and end at `ends` themselves.
pub(crate) fn parts_from(level: Level, bits: &[u64], first: u32, ends: &[u32], out: &mut [u64]) {
    check_words(ends.len(), out);
    by_level!(level, parts(bits, 0, first, ends, out), avx512);
}

/// Moves the bits of `packed`, from bit `from` on, to the set bits of `present`, in order; the others become 0.
pub(crate) fn deposit(level: Level, present: &[u64], packed: &[u64], from: usize, out: &mut [u64]) {
    assert_eq!(present.len(), out.len(), "words to deposit in");
    by_level!(level, deposit(present, packed, from, out));
}

/// Whether each value passes a test that is not worth a form of its own.
pub(crate) fn each<T>(values: &[T], out: &mut [u64], test: impl Fn(&T) -> bool) {
    check_words(values.len(), out);
    for (word, values) in out.iter_mut().zip(values.chunks(64)) {
        *word = values.iter().enumerate().fold(0, |word, (bit, value)| word | u64::from(test(value)) << bit);
    }
}

/// 64 bits from bit `at` on; beyond the last word they are 0.
#[inline(always)]
pub(crate) fn bits_from(words: &[u64], at: usize) -> u64 {
    let word = |at: usize| words.get(at).copied().unwrap_or(0);
    let shift = at % 64;
    // Two shifts: one by 64 would be none.
    word(at / 64) >> shift | word(at / 64 + 1) << 1 << (63 - shift)
}

/// Sets the `count` bits from bit `at` on, which are 0, to the first ones of `from`, whose last word is 0 beyond them.
pub(crate) fn append(words: &mut [u64], at: usize, from: &[u64], count: usize) {
    let shift = at % 64;
    for (place, &bits) in (at / 64..).zip(&from[..count.div_ceil(64)]) {
        words[place] |= bits << shift;
        let beyond = bits >> 1 >> (63 - shift);
        if beyond != 0 {
            words[place + 1] |= beyond;
        }
    }
}

fn check_words(values: usize, out: &[u64]) {
    assert_eq!(out.len(), values.div_ceil(64), "words for the bits of {values} values");
}

/// The plain forms. Inlined, so that the callers in `x86` compile them for other instructions.
mod plain {
    use super::bits_from;

    /// One bit per value. Comparisons give bytes first, which any compiler can do in vectors; eight bytes of 0 and 1 become
    /// eight bits by one product.
    #[inline(always)]
    fn pack<T: Copy>(values: &[T], out: &mut [u64], test: impl Fn(T) -> bool) {
        let (whole, rest) = values.as_chunks::<64>();
        for (word, values) in out.iter_mut().zip(whole) {
            let mut bytes = [0u8; 64];
            for (byte, &value) in bytes.iter_mut().zip(values) {
                *byte = u8::from(test(value));
            }
            let (eights, _) = bytes.as_chunks::<8>();
            *word = eights.iter().rev().fold(0, |word, &eight| {
                let bits = u64::from_le_bytes(eight).wrapping_mul(0x0102_0408_1020_4080) >> 56;
                word << 8 | bits
            });
        }
        if let (Some(word), false) = (out.last_mut(), rest.is_empty()) {
            *word =
                rest.iter().enumerate().fold(0, |word, (bit, &value)| word | u64::from(test(value)) << bit);
        }
    }

    /// The same where a test is a look into memory, which gains nothing from vectors.
    #[inline(always)]
    fn pack_one_by_one<T: Copy>(values: &[T], out: &mut [u64], test: impl Fn(T) -> bool) {
        for (word, values) in out.iter_mut().zip(values.chunks(64)) {
            *word =
                values.iter().enumerate().fold(0, |word, (bit, &value)| word | u64::from(test(value)) << bit);
        }
    }

    #[inline(always)]
    pub fn ints(values: &[i64], low: i64, high: i64, out: &mut [u64]) {
        pack(values, out, |value| (value >= low) & (value <= high));
    }

    #[inline(always)]
    pub fn few_ints(values: &[i64], low: i64, marks: u64, out: &mut [u64]) {
        pack(values, out, |value| {
            let at = value.wrapping_sub(low) as u64;
            (at < 64) & (marks >> (at % 64) & 1 == 1)
        });
    }

    #[inline(always)]
    pub fn many_ints(values: &[i64], low: i64, marks: &[u64], out: &mut [u64]) {
        pack_one_by_one(values, out, |value| {
            let at = value.wrapping_sub(low) as u64;
            marks.get((at / 64) as usize).is_some_and(|word| word >> (at % 64) & 1 == 1)
        });
    }

    #[inline(always)]
    pub fn floats(values: &[f64], low: f64, high: f64, out: &mut [u64]) {
        pack(values, out, |value| (value >= low) & (value <= high));
    }

    #[inline(always)]
    pub fn codes(values: &[u32], low: u32, high: u32, out: &mut [u64]) {
        pack(values, out, |value| (value >= low) & (value <= high));
    }

    #[inline(always)]
    pub fn few_codes(values: &[u32], marks: u64, out: &mut [u64]) {
        pack(values, out, |value| (value < 64) & (marks >> (value % 64) & 1 == 1));
    }

    #[inline(always)]
    pub fn many_codes(values: &[u32], marks: &[u64], out: &mut [u64]) {
        pack_one_by_one(values, out, |value| {
            marks.get(value as usize / 64).is_some_and(|word| word >> (value % 64) & 1 == 1)
        });
    }

    #[inline(always)]
    pub fn parts(bits: &[u64], origin: u32, first: u32, ends: &[u32], out: &mut [u64]) {
        let mut start = first;
        for (word, ends) in out.iter_mut().zip(ends.chunks(64)) {
            *word = 0;
            for (bit, &end) in ends.iter().enumerate() {
                *word |= u64::from(any(bits, origin, start, end)) << bit;
                start = end;
            }
        }
    }

    /// Whether any of the bits `start - origin..end - origin` is set.
    #[inline(always)]
    pub fn any(bits: &[u64], origin: u32, start: u32, end: u32) -> bool {
        assert!(origin <= start && start <= end, "a part from {start} to {end} of bits from {origin} on");
        let (start, end) = ((start - origin) as usize, (end - origin) as usize);
        assert!(end <= 64 * bits.len(), "a part that ends at bit {end} of {}", 64 * bits.len());
        match end - start {
            0 => false,
            len @ 1..=64 => bits_from(bits, start) << (64 - len) != 0,
            _ => {
                let last = end / 64;
                bits_from(bits, start) != 0
                    || bits[start / 64 + 1..last].iter().any(|&word| word != 0)
                    || end % 64 != 0 && bits[last] << (64 - end % 64) != 0
            }
        }
    }

    #[inline(always)]
    pub fn deposit(present: &[u64], packed: &[u64], from: usize, out: &mut [u64]) {
        deposit_by(present, packed, from, out, |mut present, bits| {
            let mut word = 0;
            let mut at = 0;
            while present != 0 {
                word |= (bits >> at & 1) << present.trailing_zeros();
                present &= present - 1;
                at += 1;
            }
            word
        });
    }

    #[inline(always)]
    pub fn deposit_by(
        present: &[u64],
        packed: &[u64],
        mut from: usize,
        out: &mut [u64],
        spread: impl Fn(u64, u64) -> u64,
    ) {
        for (word, &present) in out.iter_mut().zip(present) {
            let bits = bits_from(packed, from);
            *word = if present == u64::MAX { bits } else { spread(present, bits) };
            from += present.count_ones() as usize;
        }
    }
}

#[cfg(test)]
mod tests;
