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
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("bmi1") {
        // SAFETY: the processor has AVX2 and BMI1, as was just asked.
        return unsafe { walk_avx2(parent, part, entries, pool) };
    }
    walk(parent, part, entries, pool)
}

/// The same instructions, with wider vectors for the bounds of children.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi1")]
fn walk_avx2(
    parent: &Parent<'_>,
    part: &MaskPart<'_>,
    entries: Range<usize>,
    pool: &mut Pool,
) -> Result<(), Nan> {
    walk(parent, part, entries, pool)
}

#[inline(always)]
fn walk(parent: &Parent<'_>, part: &MaskPart<'_>, entries: Range<usize>, pool: &mut Pool) -> Result<(), Nan> {
    let mut found = Found { first: entries.start, last: None, entries: [0; Found::MOST], len: 0 };
    match parent.index.entries(parent.level) {
        Entries::Explicit { start, .. } => {
            // One load per line, none waiting for another: the walk would guess wrong at every second.
            let lines = start[entries.start..=entries.end].iter().step_by(BLOCK);
            std::hint::black_box(lines.fold(0, |sum, sid| sum ^ sid));
            let (mut at, mut next) = (entries.start, 0);
            part.try_for_each(
                #[inline(always)]
                |sid| {
                    if sid < next {
                        return Ok(());
                    }
                    while at + BLOCK < entries.end && start[at + BLOCK] <= sid {
                        at += BLOCK;
                    }
                    let entry = entry_in_block(start, at..entries.end, sid);
                    next = start[entry + 1];
                    found.push(parent, entry as u32, pool)
                },
            )?;
        }
        Entries::Column { .. } => part.try_for_each(
            #[inline(always)]
            |sid| found.push(parent, sid, pool),
        )?,
    }
    found.offer(parent, pool)
}

/// Alive children that were found and not scored yet: their codes and logits are read together, since each is far from the next.
struct Found {
    /// Of the node.
    first: usize,
    /// The code scored last.
    last: Option<u16>,
    entries: [u32; Found::MOST],
    len: usize,
}

impl Found {
    const MOST: usize = 64;

    #[inline(always)]
    fn push(&mut self, parent: &Parent<'_>, entry: u32, pool: &mut Pool) -> Result<(), Nan> {
        self.entries[self.len] = entry;
        self.len += 1;
        if self.len == Found::MOST { self.offer(parent, pool) } else { Ok(()) }
    }

    #[inline(never)]
    fn offer(&mut self, parent: &Parent<'_>, pool: &mut Pool) -> Result<(), Nan> {
        let (level_codes, form) = codes_of(parent.index, parent.level);
        let entries = &self.entries[..std::mem::take(&mut self.len)];
        let (mut codes, mut scores) = ([0; Found::MOST], [0.0; Found::MOST]);
        for (code, &entry) in codes.iter_mut().zip(entries) {
            *code = level_codes[entry as usize];
        }
        for (score, &code) in scores.iter_mut().zip(&codes[..entries.len()]) {
            *score = parent.score + (parent.logits[code as usize] - parent.norm);
        }
        for (i, &entry) in entries.iter().enumerate() {
            // SIDs of one run are one child.
            if !passes(scores[i], pool.threshold) || form == Form::Runs && self.last == Some(codes[i]) {
                continue;
            }
            self.last = Some(codes[i]);
            let entry = match form {
                Form::Runs => self.first + run_begin(&level_codes[self.first..=entry as usize]),
                Form::Entries | Form::Sids => entry as usize,
            };
            offer(parent, codes[i], entry, pool)?;
        }
        Ok(())
    }
}

/// The entry of the first block of `range` that a SID lies below: the last that begins at it or before. All of a block are compared;
/// a search for one would guess wrong half the time.
#[inline(always)]
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
