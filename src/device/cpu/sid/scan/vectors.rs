//! Sixteen scores at a time: a gather costs about a cycle per code, and the children that do not pass cost no branch.

use std::arch::x86_64::*;

use super::{BLOCK, Nan, Parent, Pool};
use crate::catalog::MaskPart;

/// Below this many children in a block they are scored one by one.
const FEW: u32 = 5;

/// Every entry is a child; `codes` is cut at the node's end. A part of a mask is given only if entries are SIDs.
#[target_feature(enable = "avx512f")]
pub(super) fn dense(
    parent: &Parent<'_>,
    part: Option<&MaskPart<'_>>,
    codes: &[u16],
    first: usize,
    pool: &mut Pool,
    mut consider: impl FnMut(u16, usize, &mut Pool) -> Result<(), Nan>,
) -> Result<(), Nan> {
    let row = in_row(parent.logits, &codes[first..]);
    let (blocks, rest) = codes[first..].as_chunks::<BLOCK>();
    for (number, block) in blocks.iter().enumerate() {
        let at = first + number * BLOCK;
        let logits = logits_of(parent.logits, row, number, block);
        let mut passing = passing(parent, logits, pool.threshold);
        if passing != 0
            && let Some(part) = part
        {
            passing &= part.maybe_alive(at as u32);
        }
        while passing != 0 {
            let i = passing.trailing_zeros() as usize;
            passing &= passing - 1;
            consider(block[i], at + i, pool)?;
        }
    }
    super::dense(parent, codes, codes.len() - rest.len(), pool, consider)
}

/// Every run of equal codes is a child; `codes` is cut at the node's end.
#[target_feature(enable = "avx512f")]
pub(super) fn runs(
    parent: &Parent<'_>,
    codes: &[u16],
    first: usize,
    pool: &mut Pool,
    consider: impl FnMut(u16, usize, &mut Pool) -> Result<(), Nan>,
) -> Result<(), Nan> {
    let filter = |block: &[u16], begins: u32, threshold: f32| match begins.count_ones() < FEW {
        true => begins,
        false => {
            let logits = logits_of(parent.logits, None, 0, block.try_into().expect("a block"));
            begins & passing(parent, logits, threshold)
        }
    };
    super::runs(parent, codes, first, filter, pool, consider)
}

/// Bit `i` is set where the score of `block[i]` passes the threshold, by the same two roundings as one by one.
#[inline]
#[target_feature(enable = "avx512f")]
fn passing(parent: &Parent<'_>, logits: __m512, threshold: f32) -> u32 {
    let scores = scores(logits, parent.score, parent.norm);
    u32::from(_mm512_cmp_ps_mask::<_CMP_NLE_UQ>(scores, _mm512_set1_ps(threshold)))
}

/// `score + (logit - norm)` of sixteen logits.
#[inline]
#[target_feature(enable = "avx512f")]
pub(in super::super) fn scores(logits: __m512, score: f32, norm: f32) -> __m512 {
    _mm512_add_ps(_mm512_set1_ps(score), _mm512_sub_ps(logits, _mm512_set1_ps(norm)))
}

/// The logits of all children if their codes follow each other without a gap, as at the first level and in the heaviest nodes.
#[inline]
pub(in super::super) fn in_row<'a>(logits: &'a [f32], codes: &[u16]) -> Option<&'a [f32]> {
    let (&first, &last) = (codes.first()?, codes.last()?);
    let row = logits.get(usize::from(first)..=usize::from(last))?;
    // Codes ascend, and in a level whose entries are children they differ.
    (row.len() == codes.len()).then_some(row)
}

/// The logits of a block: from `row` if there is one, in which the block is the `at`-th.
#[inline]
#[target_feature(enable = "avx512f")]
pub(in super::super) fn logits_of(
    logits: &[f32],
    row: Option<&[f32]>,
    at: usize,
    block: &[u16; BLOCK],
) -> __m512 {
    if let Some(row) = row {
        // SAFETY: 64 bytes are read from sixteen floats; the load needs no alignment.
        return unsafe { _mm512_loadu_ps(row[at * BLOCK..][..BLOCK].as_ptr()) };
    }
    // SAFETY: 32 bytes are read from a block of 32; the load needs no alignment.
    let codes = _mm512_cvtepu16_epi32(unsafe { _mm256_loadu_si256(block.as_ptr().cast()) });
    let bound = _mm512_set1_epi32(logits.len() as i32);
    assert!(_mm512_cmpge_epu32_mask(codes, bound) == 0, "a code beyond {} logits", logits.len());
    // SAFETY: every code is an index of `logits`, as was just asserted.
    unsafe { _mm512_i32gather_ps::<4>(codes, logits.as_ptr()) }
}
