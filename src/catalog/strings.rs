//! Strings and lists in one piece of memory, found by number.

use std::ops::Range;

use rayon::prelude::*;

use super::Array;

/// Longest string of a column in bytes; keeps the offsets of a block of strings within 32 bits.
pub(super) const MAX_TEXT: usize = 1 << 20;

/// Strings or lists that share a base.
pub(super) const BLOCK: usize = 2048;

/// Where the parts of a flat array end: 32-bit offsets from a 64-bit base per block of 2048 parts, half the size of plain 64-bit offsets
/// without a limit of 4 Gi elements.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    ends: Array<u32>,
    bases: Array<u64>,
}

impl Ends {
    /// Ends as a file holds them; the caller has seen to it that there is a base for every block.
    pub(super) fn from_parts(ends: Array<u32>, bases: Array<u64>) -> Ends {
        debug_assert_eq!(bases.len(), ends.len().div_ceil(BLOCK));
        Ends { ends, bases }
    }

    /// Number of parts.
    #[inline]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are no parts.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The elements of a part.
    ///
    /// # Panics
    /// If there is no such part.
    #[inline]
    pub fn range(&self, at: usize) -> Range<usize> {
        let base = self.bases[at / BLOCK];
        let start = if at.is_multiple_of(BLOCK) { 0 } else { self.ends[at - 1] };
        // A file that nobody verified may hold any base: what overflows is caught where the range is used.
        base.wrapping_add(start.into()) as usize..base.wrapping_add(self.ends[at].into()) as usize
    }

    /// One past the last element of each part, counted from the base of its block.
    pub fn offsets(&self) -> &[u32] {
        &self.ends
    }

    /// The first element of each block of 2048 parts.
    pub fn bases(&self) -> &[u64] {
        &self.bases
    }

    /// Bytes of both arrays.
    pub fn bytes(&self) -> usize {
        4 * self.ends.len() + 8 * self.bases.len()
    }
}

/// Collects [`Ends`].
#[derive(Clone, Debug, Default)]
pub(super) struct EndsBuilder {
    ends: Vec<u32>,
    bases: Vec<u64>,
    end: u64,
}

impl EndsBuilder {
    /// Appends a part of `len` elements.
    pub fn push(&mut self, len: usize) {
        if self.ends.len().is_multiple_of(BLOCK) {
            self.bases.push(self.end);
        }
        self.end += len as u64;
        self.ends.push((self.end - self.bases[self.ends.len() / BLOCK]) as u32);
    }

    pub fn finish(self) -> Ends {
        Ends { ends: self.ends.into(), bases: self.bases.into() }
    }
}

/// Strings, found by number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Strings {
    text: Array<u8>,
    ends: Ends,
}

impl Strings {
    /// Strings as a file holds them; nothing is looked at.
    pub(super) fn from_parts(text: Array<u8>, ends: Ends) -> Strings {
        Strings { text, ends }
    }

    /// Number of strings.
    #[inline]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are no strings.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// A string.
    ///
    /// # Panics
    /// If there is no such string. A mapped file that was altered and not verified may hold bytes that are no string: that is a panic too.
    pub fn get(&self, at: usize) -> &str {
        match std::str::from_utf8(self.get_bytes(at)) {
            Ok(text) => text,
            Err(error) => panic!("string {at} of a catalog that was not verified: {error}"),
        }
    }

    /// The bytes of a string.
    ///
    /// # Panics
    /// If there is no such string.
    #[inline]
    pub fn get_bytes(&self, at: usize) -> &[u8] {
        &self.text[self.ends.range(at)]
    }

    /// All strings, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        (0..self.len()).map(|at| self.get(at))
    }

    /// The place of a string among strings that ascend, as those of a dictionary do.
    pub fn binary_search(&self, text: &str) -> Option<usize> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            if self.get_bytes(middle) < text.as_bytes() {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        (low < self.len() && self.get_bytes(low) == text.as_bytes()).then_some(low)
    }

    /// All strings, one behind the other.
    pub(super) fn text(&self) -> &Array<u8> {
        &self.text
    }

    /// Where each string ends.
    pub(super) fn ends(&self) -> &Ends {
        &self.ends
    }

    /// Bytes of text and ends.
    pub fn bytes(&self) -> usize {
        self.text.len() + self.ends.bytes()
    }
}

impl<'a> FromIterator<&'a str> for Strings {
    fn from_iter<I: IntoIterator<Item = &'a str>>(texts: I) -> Strings {
        let mut strings = StringsBuilder::default();
        texts.into_iter().for_each(|text| strings.push(text));
        strings.finish()
    }
}

/// Collects [`Strings`], which can be read while they are collected.
#[derive(Clone, Debug, Default)]
pub(super) struct StringsBuilder {
    text: Vec<u8>,
    ends: EndsBuilder,
}

impl StringsBuilder {
    /// Appends a string of at most [`MAX_TEXT`] bytes.
    pub fn push(&mut self, text: &str) {
        self.push_bytes(text.as_bytes());
    }

    /// Appends the bytes of a string.
    pub fn push_bytes(&mut self, text: &[u8]) {
        assert!(text.len() <= MAX_TEXT, "a string of {} bytes", text.len());
        self.text.extend_from_slice(text);
        self.ends.push(text.len());
    }

    pub fn get_bytes(&self, at: usize) -> &[u8] {
        let base = self.ends.bases[at / BLOCK];
        let start = if at.is_multiple_of(BLOCK) { 0 } else { self.ends.ends[at - 1] };
        &self.text[(base + u64::from(start)) as usize..(base + u64::from(self.ends.ends[at])) as usize]
    }

    pub fn len(&self) -> usize {
        self.ends.ends.len()
    }

    pub fn finish(mut self) -> Strings {
        self.text.shrink_to_fit();
        Strings { text: self.text.into(), ends: self.ends.finish() }
    }
}

/// Copies `parts` parts of `len` elements each one behind the other; parallel, and never more than the result is held.
pub(super) fn gather<T: Copy + Default + Send + Sync>(
    parts: usize,
    len: impl Fn(usize) -> usize + Sync,
    copy: impl Fn(usize, &mut [T]) + Sync,
) -> (Array<T>, Ends) {
    let mut ends = vec![0u32; parts];
    let sizes: Vec<u64> = ends
        .par_chunks_mut(BLOCK)
        .enumerate()
        .map(|(block, ends)| {
            let mut size = 0;
            for (at, end) in ends.iter_mut().enumerate() {
                size += len(block * BLOCK + at) as u64;
                *end = size as u32;
            }
            size
        })
        .collect();
    let mut total = 0;
    let bases: Vec<u64> = sizes
        .iter()
        .map(|&size| {
            total += size;
            total - size
        })
        .collect();
    let mut flat = vec![T::default(); total as usize];
    let mut rest = flat.as_mut_slice();
    let mut blocks = Vec::with_capacity(sizes.len());
    for &size in &sizes {
        let (block, behind) = rest.split_at_mut(size as usize);
        blocks.push(block);
        rest = behind;
    }
    blocks.into_par_iter().enumerate().for_each(|(block, mut rest)| {
        for at in block * BLOCK..parts.min((block + 1) * BLOCK) {
            let (to, behind) = rest.split_at_mut(len(at));
            copy(at, to);
            rest = behind;
        }
    });
    (flat.into(), Ends { ends: ends.into(), bases: bases.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_cross_blocks_and_gather_as_they_are_collected() {
        for count in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5] {
            let text = |at: usize| "äx".repeat(at % 3);
            let mut builder = StringsBuilder::default();
            (0..count).for_each(|at| builder.push(&text(at)));
            assert!((0..count).all(|at| builder.get_bytes(at) == text(at).as_bytes()), "{count} strings");
            let strings = builder.finish();
            assert_eq!(strings.len(), count);
            assert!((0..count).all(|at| strings.get(at) == text(at)), "{count} strings");
            let text_at = |at: usize| strings.get_bytes(count - 1 - at);
            let (flat, ends) =
                gather(count, |at| text_at(at).len(), |at, to| to.copy_from_slice(text_at(at)));
            let reversed = Strings::from_parts(flat, ends);
            let expected: Vec<String> = (0..count).rev().map(text).collect();
            assert_eq!(reversed, expected.iter().map(String::as_str).collect::<Strings>());
        }
    }

    #[test]
    fn dictionaries_are_searched() {
        let names: Strings = ["", "a", "aa", "b", "é"].into_iter().collect();
        for (at, name) in names.iter().enumerate() {
            assert_eq!(names.binary_search(name), Some(at));
        }
        for missing in ["0", "ab", "c", "éé"] {
            assert_eq!(names.binary_search(missing), None, "{missing}");
        }
        assert_eq!(Strings::default().binary_search(""), None);
    }
}
