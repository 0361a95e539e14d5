//! A bitmap that counts the set bits of any range in constant time.
//!
//! One 32-bit count before every 512 bits (a cache line of words) costs 6 % and leaves at most eight words to count.

use std::ops::Range;

use rayon::prelude::*;

use super::Array;

const WORDS_PER_BLOCK: usize = 8;

/// A fixed number of bits with a directory of counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitmap {
    len: usize,
    words: Array<u64>,
    /// Set bits before each block of words; one more entry for the whole.
    before: Array<u32>,
}

impl Bitmap {
    /// A bitmap of `len` bits, each set if `set` says so; asked once per bit, in order.
    pub fn from_fn(len: usize, mut set: impl FnMut(usize) -> bool) -> Bitmap {
        let word = |first: usize, set: &mut dyn FnMut(usize) -> bool| {
            (first..len.min(first + 64)).fold(0u64, |word, bit| word | u64::from(set(bit)) << (bit - first))
        };
        let words = (0..len).step_by(64).map(|first| word(first, &mut set)).collect();
        Bitmap::from_words(len, words)
    }

    /// A bitmap of `len` bits from words, least significant bit first; bits beyond `len` are cleared.
    ///
    /// # Panics
    /// If there are not exactly `len.div_ceil(64)` words, or `len` exceeds `u32`.
    pub fn from_words(len: usize, mut words: Vec<u64>) -> Bitmap {
        assert_eq!(words.len(), len.div_ceil(64), "words of a bitmap of {len} bits");
        assert!(u32::try_from(len).is_ok(), "a bitmap of {len} bits");
        if let (Some(last), 1..) = (words.last_mut(), len % 64) {
            *last &= (1 << (len % 64)) - 1;
        }
        let mut count = 0;
        let mut before = Vec::with_capacity(words.len().div_ceil(WORDS_PER_BLOCK) + 1);
        for block in words.chunks(WORDS_PER_BLOCK) {
            before.push(count);
            count += block.iter().map(|word| word.count_ones()).sum::<u32>();
        }
        before.push(count);
        Bitmap { len, words: words.into(), before: before.into() }
    }

    /// As [`Bitmap::from_fn`], but asked in any order and from many threads.
    pub(super) fn par_from_fn(len: usize, set: impl Fn(usize) -> bool + Sync) -> Bitmap {
        let word = |first: usize| {
            (first..len.min(first + 64)).fold(0u64, |word, bit| word | u64::from(set(bit)) << (bit - first))
        };
        let words = (0..len.div_ceil(64)).into_par_iter().with_min_len(64).map(|word_at| word(64 * word_at));
        Bitmap::from_words(len, words.collect())
    }

    /// A bitmap as a file holds it; `None` if the arrays are not as long as `len` bits need. What they hold is not looked at.
    pub(super) fn from_parts(len: usize, words: Array<u64>, before: Array<u32>) -> Option<Bitmap> {
        let fits = words.len() == len.div_ceil(64) && before.len() == Bitmap::counts_of(len);
        fits.then_some(Bitmap { len, words, before })
    }

    /// Entries of the directory of a bitmap of `len` bits.
    pub(super) fn counts_of(len: usize) -> usize {
        len.div_ceil(64).div_ceil(WORDS_PER_BLOCK) + 1
    }

    /// Number of bits.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bits at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bits, 64 to a word, least significant first; bits beyond the length are 0.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Set bits before every 512 bits, and at the end of all.
    pub(crate) fn counts(&self) -> &[u32] {
        &self.before
    }

    /// Bytes of words and directory.
    pub fn bytes(&self) -> usize {
        8 * self.words.len() + 4 * self.before.len()
    }

    /// The bit at `at`.
    #[inline]
    pub fn get(&self, at: usize) -> bool {
        self.words[at / 64] >> (at % 64) & 1 == 1
    }

    /// Set bits before `end`.
    #[inline]
    pub fn rank(&self, end: usize) -> usize {
        let (word, bits) = (end / 64, end % 64);
        let block = word / WORDS_PER_BLOCK;
        let whole =
            self.words[block * WORDS_PER_BLOCK..word].iter().map(|word| word.count_ones()).sum::<u32>();
        let partial = if bits == 0 { 0 } else { (self.words[word] & ((1 << bits) - 1)).count_ones() };
        (self.before[block] + whole + partial) as usize
    }

    /// Set bits of `range`.
    #[inline]
    pub fn count(&self, range: Range<usize>) -> usize {
        if range.is_empty() { 0 } else { self.rank(range.end) - self.rank(range.start) }
    }

    /// Whether any bit of `range` is set.
    #[inline]
    pub fn any(&self, range: Range<usize>) -> bool {
        if range.is_empty() {
            return false;
        }
        let (first, last) = (range.start / 64, (range.end - 1) / 64);
        let (head, tail) = (!0 << (range.start % 64), !0 >> (63 - (range.end - 1) % 64));
        // Most nodes of a trie are narrow: theirs is one word.
        if first == last {
            return self.words[first] & head & tail != 0;
        }
        if self.words[first] & head != 0 || self.words[last] & tail != 0 {
            return true;
        }
        // Where bits are set at all they are soon met; counting would wait for four lines of memory.
        let near = last.min(first + 1 + WORDS_PER_BLOCK);
        self.words[first + 1..near].iter().any(|&word| word != 0) || near < last && self.count(range) > 0
    }

    /// Sixteen bits from `at` on, the first in bit 0; those beyond the length are 0.
    #[inline]
    pub(super) fn sixteen(&self, at: usize) -> u32 {
        let word = |at: usize| self.words.get(at).copied().unwrap_or(0);
        let (first, shift) = (at / 64, at % 64);
        // Shifted in two steps: by 64 there is no shift.
        let both = word(first) >> shift | word(first + 1) << 1 << (63 - shift);
        both as u32 & 0xffff
    }

    /// Calls `visit` for the set bits of `range`, ascending, until it fails.
    #[inline(always)]
    pub(super) fn try_for_each_one<E>(
        &self,
        range: Range<usize>,
        mut visit: impl FnMut(usize) -> Result<(), E>,
    ) -> Result<(), E> {
        let Range { start, end } = range;
        if start >= end {
            return Ok(());
        }
        let (first, last) = (start / 64, (end - 1) / 64);
        for (at, &word) in self.words[first..=last].iter().enumerate() {
            let mut word = word;
            if at == 0 {
                word &= !0 << (start % 64);
            }
            if first + at == last {
                word &= !0 >> (63 - (end - 1) % 64);
            }
            while word != 0 {
                visit(64 * (first + at) + word.trailing_zeros() as usize)?;
                word &= word - 1;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_match_the_bits_one_by_one() {
        for len in [0, 1, 63, 64, 65, 511, 512, 513, 1500] {
            let set = |bit: usize| (bit * 7 + bit / 3) % 5 < 2;
            let bitmap = Bitmap::from_fn(len, set);
            for first in (0..=len).step_by(17) {
                for end in (first..=len).step_by(13).chain([len]) {
                    let expected = (first..end).filter(|&bit| set(bit)).count();
                    assert_eq!(bitmap.count(first..end), expected, "{first}..{end} of {len}");
                    assert_eq!(bitmap.any(first..end), expected > 0, "{first}..{end} of {len}");
                    let ones: Vec<usize> = (first..end).filter(|&bit| set(bit)).collect();
                    let mut found = Vec::new();
                    let all: Result<(), ()> = bitmap.try_for_each_one(first..end, |bit| {
                        found.push(bit);
                        Ok(())
                    });
                    assert_eq!((all, found), (Ok(()), ones), "{first}..{end} of {len}");
                }
            }
            assert!((0..len).all(|bit| bitmap.get(bit) == set(bit)));
            for first in 0..len {
                let bits =
                    (0..16).fold(0, |bits, i| bits | u32::from(first + i < len && set(first + i)) << i);
                assert_eq!(bitmap.sixteen(first), bits, "{first} of {len}");
            }
        }
    }

    #[test]
    fn a_bit_is_found_wherever_it_is_in_a_range() {
        for bit in [0, 63, 64, 500, 511, 512, 640, 700, 1300, 1499] {
            let bitmap = Bitmap::from_fn(1500, |at| at == bit);
            for first in (0..1500).step_by(7) {
                for end in (first..=1500).step_by(11).chain([bit, bit + 1]) {
                    assert_eq!(
                        bitmap.any(first..end),
                        (first..end).contains(&bit),
                        "{bit} in {first}..{end}"
                    );
                }
            }
        }
    }

    #[test]
    fn bits_beyond_the_length_do_not_count() {
        let bitmap = Bitmap::from_words(3, vec![u64::MAX]);
        assert_eq!((bitmap.count(0..3), bitmap.words()), (3, &[7][..]));
    }
}
