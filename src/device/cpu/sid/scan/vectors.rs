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
    let (blocks, rest) = codes[first..].as_chunks::<BLOCK>();
    for (at, block) in blocks.iter().enumerate() {
        let at = first + at * BLOCK;
        let mut passing = passing(parent, block, pool.threshold);
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
        false => begins & passing(parent, block.try_into().expect("a block"), threshold),
    };
    super::runs(parent, codes, first, filter, pool, consider)
}

/// Bit `i` is set where the score of `block[i]` passes the threshold, by the same two roundings as one by one.
#[inline]
#[target_feature(enable = "avx512f")]
fn passing(parent: &Parent<'_>, block: &[u16; BLOCK], threshold: f32) -> u32 {
    let scores = scores(parent.logits, parent.score, parent.norm, block);
    u32::from(_mm512_cmp_ps_mask::<_CMP_NLE_UQ>(scores, _mm512_set1_ps(threshold)))
}

/// `score + (logits[code] - norm)` for each code of a block.
#[inline]
#[target_feature(enable = "avx512f")]
pub(in super::super) fn scores(logits: &[f32], score: f32, norm: f32, block: &[u16; BLOCK]) -> __m512 {
    // SAFETY: 32 bytes are read from a block of 32; the load needs no alignment.
    let codes = _mm512_cvtepu16_epi32(unsafe { _mm256_loadu_si256(block.as_ptr().cast()) });
    let bound = _mm512_set1_epi32(logits.len() as i32);
    assert!(_mm512_cmpge_epu32_mask(codes, bound) == 0, "a code beyond {} logits", logits.len());
    // SAFETY: every code is an index of `logits`, as was just asserted.
    let logits = unsafe { _mm512_i32gather_ps::<4>(codes, logits.as_ptr()) };
    let levels = _mm512_sub_ps(logits, _mm512_set1_ps(norm));
    _mm512_add_ps(_mm512_set1_ps(score), levels)
}
