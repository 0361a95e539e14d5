//! Sorting the SIDs of a type.
//!
//! A SID and its row number usually fit one machine word (three levels of 8,192 codes and ten million rows are 63 bits), so
//! the sort moves whole keys instead of chasing row numbers, and the sorted codes are cut out of the keys without a second
//! visit to the rows. Keys that fit neither 64 nor 128 bits fall back to comparing rows. All three give the same order.

use std::cmp::Ordering;

use rayon::prelude::*;

/// Rows sorted by SID.
pub(super) struct Sorted {
    /// `[levels][rows]` codes in sorted order.
    pub columns: Vec<Vec<u16>>,
    /// `[rows]` the first level at which a row differs from the one before it; the number of levels if it does not (the
    /// first row differs at level 0).
    pub differs: Vec<u8>,
    /// `[rows]` the input row at each place.
    pub order: Vec<u32>,
}

/// A machine word that holds a SID and a row number, most significant code first.
trait Key: Copy + Ord + Send + Sync {
    /// Makes room for `bits` bits at the low end and fills them.
    fn append(self, bits: u32, value: u32) -> Self;
    /// The `bits` bits from `shift` on.
    fn cut(self, shift: u32, bits: u32) -> u32;
}

macro_rules! key {
    ($int:ty) => {
        impl Key for $int {
            #[inline]
            fn append(self, bits: u32, value: u32) -> Self {
                (self << bits) | <$int>::from(value)
            }
            #[inline]
            fn cut(self, shift: u32, bits: u32) -> u32 {
                // A codebook of one code has no bits, and its shift may lie at the word's end.
                if bits == 0 { 0 } else { ((self >> shift) & ((1 << bits) - 1)) as u32 }
            }
        }
    };
}
key!(u64);
key!(u128);

/// Bits that tell `count` values apart.
pub(super) fn bits(count: usize) -> u32 {
    usize::BITS - count.saturating_sub(1).leading_zeros()
}

/// Sorts row-major `tuples` (`[rows, codebooks.len()]`, every code within its codebook) by code; rows with equal codes follow
/// each other in the order of `before`, then of their row numbers.
pub(super) fn sort(
    codebooks: &[usize],
    tuples: &[u16],
    before: impl Fn(u32, u32) -> Ordering + Sync,
) -> Sorted {
    let rows = tuples.len() / codebooks.len();
    let code_bits: Vec<u32> = codebooks.iter().map(|&codes| bits(codes)).collect();
    let total = code_bits.iter().sum::<u32>() + bits(rows);
    let (columns, mut order) = if total <= u64::BITS {
        sort_keys::<u64>(&code_bits, tuples, 0)
    } else if total <= u128::BITS {
        sort_keys::<u128>(&code_bits, tuples, 0)
    } else {
        sort_rows(codebooks.len(), tuples)
    };
    let differs: Vec<u8> = (0..rows)
        .into_par_iter()
        .map(|at| {
            if at == 0 {
                return 0;
            }
            let level = columns.iter().position(|codes| codes[at] != codes[at - 1]);
            level.unwrap_or(columns.len()) as u8
        })
        .collect();
    let same = codebooks.len() as u8;
    let mut start = 0;
    for end in 1..=rows {
        if end == rows || differs[end] < same {
            if end - start > 1 {
                order[start..end].sort_by(|&a, &b| before(a, b));
            }
            start = end;
        }
    }
    Sorted { columns, differs, order }
}

fn sort_keys<K: Key>(code_bits: &[u32], tuples: &[u16], zero: K) -> (Vec<Vec<u16>>, Vec<u32>) {
    let row_bits = bits(tuples.len() / code_bits.len());
    let mut keys: Vec<K> = tuples
        .par_chunks_exact(code_bits.len())
        .enumerate()
        .map(|(row, codes)| {
            let sid =
                code_bits.iter().zip(codes).fold(zero, |key, (&bits, &code)| key.append(bits, code.into()));
            sid.append(row_bits, row as u32)
        })
        .collect();
    keys.par_sort_unstable();
    let mut shift = row_bits + code_bits.iter().sum::<u32>();
    let columns = code_bits
        .iter()
        .map(|&bits| {
            shift -= bits;
            keys.par_iter().map(|key| key.cut(shift, bits) as u16).collect()
        })
        .collect();
    let order = keys.par_iter().map(|key| key.cut(0, row_bits)).collect();
    (columns, order)
}

fn sort_rows(levels: usize, tuples: &[u16]) -> (Vec<Vec<u16>>, Vec<u32>) {
    let codes = |row: u32| &tuples[row as usize * levels..][..levels];
    let mut order: Vec<u32> = (0..(tuples.len() / levels) as u32).collect();
    order.par_sort_unstable_by(|&a, &b| codes(a).cmp(codes(b)).then(a.cmp(&b)));
    let columns = (0..levels).map(|level| order.par_iter().map(|&row| codes(row)[level]).collect()).collect();
    (columns, order)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_tell_values_apart() {
        for (count, expected) in [(0, 0), (1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (65_536, 16)] {
            assert_eq!(bits(count), expected, "{count} values");
        }
    }

    #[test]
    fn all_three_sorts_agree() {
        let codebooks = [1, 65_536, 3, 1];
        let tuples: Vec<u16> = (0..1000u32)
            .flat_map(|row| {
                let draw = row.wrapping_mul(2_654_435_761);
                [0, (draw >> 16) as u16 & 0xff07, (draw % 3) as u16, 0]
            })
            .collect();
        let code_bits: Vec<u32> = codebooks.iter().map(|&codes| bits(codes)).collect();
        let rows = sort_rows(4, &tuples);
        assert_eq!(sort_keys::<u64>(&code_bits, &tuples, 0), rows);
        assert_eq!(sort_keys::<u128>(&code_bits, &tuples, 0), rows);
    }

    #[test]
    fn ties_follow_the_callers_order_then_the_rows() {
        let popularity = [1, 5, 5, 2, 9];
        let tuples = [3, 3, 3, 3, 0];
        let by_popularity = |a: u32, b: u32| popularity[b as usize].cmp(&popularity[a as usize]);
        let sorted = sort(&[4], &tuples, by_popularity);
        assert_eq!(sorted.order, [4, 1, 2, 3, 0]);
        assert_eq!(sorted.differs, [0, 0, 1, 1, 1]);
    }
}
