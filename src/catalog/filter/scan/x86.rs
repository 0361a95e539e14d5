//! The x86-64 forms.

/// AVX2 and BMI2: the plain forms, compiled for them.
pub(super) mod avx2 {
    use std::arch::x86_64::_pdep_u64;

    use super::super::plain;

    /// Compiles a plain form for AVX2.
    macro_rules! compiled {
        ($($name:ident($($arg:ident: $type:ty),*);)*) => {$(
            #[target_feature(enable = "avx2,bmi2,popcnt")]
            pub fn $name($($arg: $type),*) {
                plain::$name($($arg),*);
            }
        )*};
    }

    compiled! {
        ints(values: &[i64], low: i64, high: i64, out: &mut [u64]);
        floats(values: &[f64], low: f64, high: f64, out: &mut [u64]);
        codes(values: &[u32], low: u32, high: u32, out: &mut [u64]);
        few_ints(values: &[i64], low: i64, marks: u64, out: &mut [u64]);
        many_ints(values: &[i64], low: i64, marks: &[u64], out: &mut [u64]);
        few_codes(values: &[u32], marks: u64, out: &mut [u64]);
        many_codes(values: &[u32], marks: &[u64], out: &mut [u64]);
        parts(bits: &[u64], origin: u32, first: u32, ends: &[u32], out: &mut [u64]);
    }

    #[target_feature(enable = "avx2,bmi2,popcnt")]
    pub fn deposit(present: &[u64], packed: &[u64], from: usize, out: &mut [u64]) {
        plain::deposit_by(present, packed, from, out, |present, bits| _pdep_u64(bits, present));
    }
}

/// AVX-512.
pub(super) mod avx512 {
    use std::arch::x86_64::*;

    use super::super::plain;

    /// Longest part whose bits one unaligned word holds wherever it begins.
    const WINDOW: i32 = 57;

    /// Bytes between what is compared and what is fetched.
    const AHEAD: usize = 2048;

    /// Fills whole words, `$lanes` bits at a time from as many values, and what remains by a plain form.
    ///
    /// Masks are joined as masks: from shifts the compiler would make a vector of bytes, which takes several times as long. What is `AHEAD` is
    /// asked for already: comparisons are so quick that the hardware's own prefetching falls behind them (9.5 ms instead of 7 for 80 MB).
    macro_rules! words {
        ($values:ident, $out:ident, $lanes:literal by $join:ident, |$group:ident| $bits:expr, |$rest:ident, $last:ident| $plain:expr) => {
            let (whole, $rest) = $values.as_chunks::<64>();
            let (words, $last) = $out.split_at_mut(whole.len());
            for (word, values) in words.iter_mut().zip(whole) {
                let (groups, _) = values.as_chunks::<$lanes>();
                for group in groups {
                    _mm_prefetch::<_MM_HINT_T0>(group.as_ptr().wrapping_byte_add(AHEAD).cast());
                }
                let mut masks = [0; 64 / $lanes];
                for (mask, $group) in masks.iter_mut().zip(groups) {
                    *mask = $bits;
                }
                *word = $join(masks);
            }
            $plain
        };
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    fn join_eights(masks: [__mmask8; 8]) -> u64 {
        let pair = |at: usize| _mm512_kunpackb(masks[at + 1].into(), masks[at].into());
        join_sixteens([pair(0), pair(2), pair(4), pair(6)])
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    fn join_sixteens(masks: [__mmask16; 4]) -> u64 {
        let pair = |at: usize| _mm512_kunpackw(masks[at + 1].into(), masks[at].into());
        _mm512_kunpackd(pair(2).into(), pair(0).into())
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi2,popcnt")]
    pub fn ints(values: &[i64], low: i64, high: i64, out: &mut [u64]) {
        if low > high {
            out.fill(0);
            return;
        }
        // Distances from the low end, without a sign: one comparison tells both ends.
        let span = _mm512_set1_epi64(high.wrapping_sub(low));
        let low8 = _mm512_set1_epi64(low);
        words!(
            values,
            out,
            8 by join_eights,
            |group| {
                // SAFETY: eight values.
                let eight = unsafe { _mm512_loadu_epi64(group.as_ptr()) };
                _mm512_cmple_epu64_mask(_mm512_sub_epi64(eight, low8), span)
            },
            |rest, last| plain::ints(rest, low, high, last)
        );
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi2,popcnt")]
    pub fn floats(values: &[f64], low: f64, high: f64, out: &mut [u64]) {
        let (low8, high8) = (_mm512_set1_pd(low), _mm512_set1_pd(high));
        words!(
            values,
            out,
            8 by join_eights,
            |group| {
                // SAFETY: eight values.
                let eight = unsafe { _mm512_loadu_pd(group.as_ptr()) };
                let above = _mm512_cmp_pd_mask::<_CMP_GE_OQ>(eight, low8);
                _mm512_mask_cmp_pd_mask::<_CMP_LE_OQ>(above, eight, high8)
            },
            |rest, last| plain::floats(rest, low, high, last)
        );
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi2,popcnt")]
    pub fn codes(values: &[u32], low: u32, high: u32, out: &mut [u64]) {
        if low > high {
            out.fill(0);
            return;
        }
        let span = _mm512_set1_epi32((high - low) as i32);
        let low16 = _mm512_set1_epi32(low as i32);
        words!(
            values,
            out,
            16 by join_sixteens,
            |group| {
                // SAFETY: sixteen values.
                let sixteen = unsafe { _mm512_loadu_epi32(group.as_ptr().cast()) };
                _mm512_cmple_epu32_mask(_mm512_sub_epi32(sixteen, low16), span)
            },
            |rest, last| plain::codes(rest, low, high, last)
        );
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi2,popcnt")]
    pub fn few_ints(values: &[i64], low: i64, marks: u64, out: &mut [u64]) {
        let (low8, marks8, one) =
            (_mm512_set1_epi64(low), _mm512_set1_epi64(marks as i64), _mm512_set1_epi64(1));
        words!(
            values,
            out,
            8 by join_eights,
            |group| {
                // SAFETY: eight values.
                let eight = unsafe { _mm512_loadu_epi64(group.as_ptr()) };
                // Shifts by 64 and more, those of values below the lowest among them, give 0.
                let shifted = _mm512_srlv_epi64(marks8, _mm512_sub_epi64(eight, low8));
                _mm512_test_epi64_mask(shifted, one)
            },
            |rest, last| plain::few_ints(rest, low, marks, last)
        );
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi2,popcnt")]
    pub fn few_codes(values: &[u32], marks: u64, out: &mut [u64]) {
        let (first, second) = (_mm512_set1_epi32(marks as i32), _mm512_set1_epi32((marks >> 32) as i32));
        let (half, one) = (_mm512_set1_epi32(32), _mm512_set1_epi32(1));
        words!(
            values,
            out,
            16 by join_sixteens,
            |group| {
                // SAFETY: sixteen values.
                let sixteen = unsafe { _mm512_loadu_epi32(group.as_ptr().cast()) };
                // Shifts by 32 and more give 0, those by less than 0 (a code of the first half) among them.
                let low = _mm512_srlv_epi32(first, sixteen);
                let high = _mm512_srlv_epi32(second, _mm512_sub_epi32(sixteen, half));
                _mm512_test_epi32_mask(_mm512_or_si512(low, high), one)
            },
            |rest, last| plain::few_codes(rest, marks, last)
        );
    }

    /// Eight parts at once: the bits from each start on, and those of the part tested. Where eight parts lie within one word, as
    /// short lists do, that word serves all of them; else each is fetched from wherever it lies.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi2,popcnt")]
    pub fn parts(bits: &[u64], origin: u32, first: u32, ends: &[u32], out: &mut [u64]) {
        // The last bit at which eight bytes can be fetched; a part that begins beyond is looked at alone.
        let Some(reach) = (64 * bits.len()).checked_sub(64) else {
            return plain::parts(bits, origin, first, ends, out);
        };
        let reach = u32::try_from(reach).unwrap_or(u32::MAX);
        let (origin8, reach8) = (_mm256_set1_epi32(origin as i32), _mm256_set1_epi32(reach as i32));
        let (window, seven) = (_mm256_set1_epi32(WINDOW), _mm256_set1_epi32(7));
        let (ones, all64, all32) = (_mm512_set1_epi64(-1), _mm512_set1_epi64(64), _mm256_set1_epi32(32));
        let narrow = _mm256_set1_epi32(-1);
        let mut last = _mm256_set1_epi32(first as i32);
        let mut before = first;
        for (word, ends) in out.iter_mut().zip(ends.chunks(64)) {
            let (eights, rest) = ends.as_chunks::<8>();
            let mut hits = 0;
            for (place, eight) in eights.iter().enumerate() {
                // SAFETY: eight ends.
                let end = unsafe { _mm256_loadu_epi32(eight.as_ptr().cast()) };
                let start = _mm256_sub_epi32(_mm256_alignr_epi32::<7>(end, last), origin8);
                let len = _mm256_sub_epi32(_mm256_sub_epi32(end, origin8), start);
                let (from, span) = (before.wrapping_sub(origin), eight[7].wrapping_sub(before));
                // A length below 0 is a very large one: nothing out of order is short, and nothing out of bounds is fetched.
                let short = _mm256_cmple_epu32_mask(len, window) == u8::MAX;
                let found = if short && from <= reach && span <= 32 {
                    // SAFETY: `from` is at most `reach`, so that eight bytes from there on are within `bits`.
                    let word = unsafe { unaligned(bits, from) };
                    let offset = _mm256_sub_epi32(start, _mm256_set1_epi32(from as i32));
                    let shifted = _mm256_srlv_epi32(_mm256_set1_epi32((word >> (from % 8)) as i32), offset);
                    // A shift by 32, of a part of no bits, gives 0.
                    _mm256_test_epi32_mask(shifted, _mm256_srlv_epi32(narrow, _mm256_sub_epi32(all32, len)))
                } else if short && _mm256_cmple_epu32_mask(start, reach8) == u8::MAX {
                    let bytes = _mm256_srli_epi32::<3>(start);
                    // SAFETY: as above, for each start.
                    let words = unsafe { _mm512_i32gather_epi64::<1>(bytes, bits.as_ptr().cast()) };
                    let offset = _mm512_cvtepu32_epi64(_mm256_and_si256(start, seven));
                    let wanted = _mm512_srlv_epi64(ones, _mm512_sub_epi64(all64, _mm512_cvtepu32_epi64(len)));
                    _mm512_test_epi64_mask(_mm512_srlv_epi64(words, offset), wanted)
                } else {
                    one_by_one(bits, origin, before, eight)
                };
                hits |= u64::from(found) << (8 * place);
                (last, before) = (end, eight[7]);
            }
            if !rest.is_empty() {
                hits |= u64::from(one_by_one(bits, origin, before, rest)) << (8 * eights.len());
            }
            *word = hits;
        }
    }

    /// # Safety
    /// Eight bytes from the byte of bit `from` on are within `bits`.
    #[inline]
    unsafe fn unaligned(bits: &[u64], from: u32) -> u64 {
        // SAFETY: the caller's promise.
        unsafe { bits.as_ptr().cast::<u8>().add(from as usize / 8).cast::<u64>().read_unaligned() }
    }

    /// The same for at most eight parts of any length.
    #[cold]
    fn one_by_one(bits: &[u64], origin: u32, mut start: u32, ends: &[u32]) -> u8 {
        let mut hits = 0;
        for (bit, &end) in ends.iter().enumerate() {
            hits |= u8::from(plain::any(bits, origin, start, end)) << bit;
            start = end;
        }
        hits
    }
}
