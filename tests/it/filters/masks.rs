//! Masks that are narrowed many times, against sets: long lists, bitmaps of the dead, SIDs with many items.

use std::collections::BTreeSet;

use sidereal::catalog::{Bitmap, Mask, TypeIndex};
use sidereal::ids::{Rank, SidIndex};

use super::Dice;

/// `items` rows of two codes; every SID is shared by `share` of them on average.
fn index(items: usize, share: usize, dice: &mut Dice) -> TypeIndex {
    let codes = 65_536;
    let tuples: Vec<u16> = (0..items)
        .flat_map(|row| match share {
            // One by one, and in a few crowds.
            0 => [(row / 40_000) as u16, if row % 3 == 0 { 7 } else { row as u16 }],
            1 => [(row / codes) as u16, (row % codes) as u16],
            _ => [0, dice.below(items / share) as u16],
        })
        .collect();
    TypeIndex::from_tuples(&[codes, codes], &tuples).unwrap()
}

fn ranks(items: usize, count: usize, dice: &mut Dice) -> Vec<Rank> {
    (0..count).map(|_| Rank(dice.below(items + 3) as u32)).collect()
}

fn compare(index: &TypeIndex, mask: &Mask, alive: &BTreeSet<u32>) {
    let mut sids = BTreeSet::new();
    for rank in 0..index.items() as u32 {
        assert_eq!(mask.item_alive(index, Rank(rank)), alive.contains(&rank), "rank {rank}");
    }
    for sid in 0..index.sids() as u32 {
        let expected: Vec<u32> = index.ranks(SidIndex(sid)).filter(|rank| alive.contains(rank)).collect();
        let found: Vec<u32> = mask.alive_ranks(index, SidIndex(sid)).map(|rank| rank.0).collect();
        assert_eq!(found, expected, "SID {sid}");
        assert_eq!(mask.alive(sid..sid + 1), !expected.is_empty(), "SID {sid}");
        if !expected.is_empty() {
            sids.insert(sid);
        }
    }
    let bound = index.sids() as u32;
    for first in (0..=bound).step_by(997) {
        for end in [first, (first + 1).min(bound), (first + 5000).min(bound), bound] {
            assert_eq!(mask.count(first..end), sids.range(first..end).count(), "{first}..{end}");
        }
    }
}

#[test]
fn thousands_of_exclusions_one_after_the_other() {
    for (items, share) in [(1, 1), (65, 1), (20_000, 1), (20_000, 4), (100_000, 0), (9000, 3000)] {
        let mut dice = Dice::new(items as u64 + share as u64);
        let index = index(items, share, &mut dice);
        for base in 0..3 {
            let mut alive: BTreeSet<u32> = (0..items as u32).collect();
            let mut mask = match base {
                0 => Mask::all(&index),
                1 => {
                    alive.retain(|rank| rank % 3 != 1);
                    Mask::from_bitmap(&index, Bitmap::from_fn(items, |rank| rank % 3 != 1))
                }
                _ => {
                    let listed = ranks(items, items / 2, &mut dice);
                    alive =
                        listed.iter().map(|rank| rank.0).filter(|&rank| (rank as usize) < items).collect();
                    Mask::allow(&index, &listed)
                }
            };
            // Above 4,096 and a hundredth of the items, the dead become a bitmap.
            for count in [3, 900, 2500, 0, 2500, 6] {
                let mut gone = ranks(items, count.min(items / 3), &mut dice);
                if count == 900 {
                    gone.sort_unstable();
                }
                mask = mask.excluding(&index, &gone);
                for rank in &gone {
                    alive.remove(&rank.0);
                }
                compare(&index, &mask, &alive);
            }
            let kept = ranks(items, items / 2, &mut dice);
            let narrowed = mask.restricted_to(&index, &kept);
            let kept: BTreeSet<u32> = kept.iter().map(|rank| rank.0).collect();
            alive.retain(|rank| kept.contains(rank));
            compare(&index, &narrowed, &alive);
        }
    }
}

#[test]
fn many_dead_are_a_bitmap() {
    let mut dice = Dice::new(1);
    let index = index(60_000, 1, &mut dice);
    let gone: Vec<Rank> = (0..60_000).step_by(13).map(Rank).collect();
    assert!(gone.len() > 4096);
    let few = Mask::all(&index).excluding(&index, &gone[..4096]);
    assert_eq!(few.bytes(), 4 * 4096);
    let many = few.excluding(&index, &gone[4096..]);
    assert!(many.bytes() < 60_000 / 7, "{} bytes", many.bytes());
    assert_eq!(many.count(0..60_000), 60_000 - gone.len());
}
