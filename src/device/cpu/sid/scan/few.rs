//! Children of which few are alive, found from the alive SIDs.

use std::ops::Range;

use super::{BLOCK, Form, Nan, Parent, Pool, codes_of, offer, passes};
use crate::catalog::{Entries, MaskPart};

/// Offers the alive children at some entries of a node, as [`super::segment`]; `part` is the mask within their SIDs.
pub(super) fn segment(
    parent: &Parent<'_>,
    part: &MaskPart<'_>,
    entries: Range<usize>,
    pool: &mut Pool,
) -> Result<(), Nan> {
    let (codes, form) = codes_of(parent.index, parent.level);
    let (logits, score, norm) = (parent.logits, parent.score, parent.norm);
    let chance = |code: u16, pool: &Pool| passes(score + (logits[code as usize] - norm), pool.threshold);
    if let Entries::Explicit { start, .. } = parent.index.entries(parent.level) {
        let (mut at, mut next) = (entries.start, 0);
        return part.try_for_each(|sid| {
            if sid < next {
                return Ok(());
            }
            while at + BLOCK < entries.end && start[at + BLOCK] <= sid {
                at += BLOCK;
            }
            let entry = entry_in_block(start, at..entries.end, sid);
            next = start[entry + 1];
            if chance(codes[entry], pool) { offer(parent, codes[entry], entry, pool) } else { Ok(()) }
        });
    }
    if form == Form::Sids {
        return part.try_for_each(|sid| {
            let code = codes[sid as usize];
            if chance(code, pool) { offer(parent, code, sid as usize, pool) } else { Ok(()) }
        });
    }
    let mut last = None;
    part.try_for_each(|sid| {
        let code = codes[sid as usize];
        if last == Some(code) || !chance(code, pool) {
            return Ok(());
        }
        last = Some(code);
        offer(parent, code, run_begin(&codes[entries.start..=sid as usize]) + entries.start, pool)
    })
}

/// The entry of the first block of `range` that a SID lies below: the last that begins at it or before. All of a block are compared;
/// a search for one would guess wrong half the time.
#[inline]
fn entry_in_block(start: &[u32], range: Range<usize>, sid: u32) -> usize {
    let before = match start[range.start + 1..range.end].first_chunk::<{ BLOCK - 1 }>() {
        Some(block) => block.iter().map(|&first| u32::from(first <= sid)).sum::<u32>(),
        None => start[range.start + 1..range.end].iter().map(|&first| u32::from(first <= sid)).sum(),
    };
    range.start + before as usize
}

/// Where the run that the slice ends with begins, in steps that double.
fn run_begin(codes: &[u16]) -> usize {
    let last = codes.len() - 1;
    let code = codes[last];
    let (mut high, mut step) = (last, 1);
    while step <= high && codes[high - step] == code {
        high -= step;
        step *= 2;
    }
    let low = high.saturating_sub(step);
    low + codes[low..high].partition_point(|&c| c != code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_and_runs_are_found_from_any_of_their_sids() {
        let mut state = 3u32;
        let mut random = move |bound: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) % bound
        };
        for case in 0..300 {
            let lengths: Vec<u32> = (0..1 + random(40))
                .map(|_| 1 + random(3) * random(if case % 3 == 0 { 200 } else { 2 }))
                .collect();
            let start: Vec<u32> = [5]
                .into_iter()
                .chain(lengths.iter().scan(5, |sum, &length| {
                    *sum += length;
                    Some(*sum)
                }))
                .collect();
            let codes: Vec<u16> =
                (0..lengths.len()).flat_map(|at| vec![3 * at as u16; lengths[at] as usize]).collect();
            for (at, bounds) in start.windows(2).enumerate() {
                for sid in [bounds[0], (bounds[0] + bounds[1]) / 2, bounds[1] - 1] {
                    for from in 0..=at {
                        if at - from < BLOCK {
                            let entry = entry_in_block(&start, from..lengths.len(), sid);
                            assert_eq!(entry, at, "{start:?} {from} {sid}");
                        }
                        let first = start[from] as usize - 5;
                        let begin = run_begin(&codes[first..=sid as usize - 5]);
                        assert_eq!(begin + first, bounds[0] as usize - 5, "{start:?} {from} {sid}");
                    }
                }
            }
        }
    }
}
