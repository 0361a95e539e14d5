//! Catalogs, masks and rules beyond those of the CPU's own tests.

use sidereal::catalog::{Bitmap, Mask, TypeIndex};
use sidereal::device::ops::{SearchSampling, SearchSpec};
use sidereal::ids::SidIndex;

use crate::beams::oracle::{Dice, Types, catalog};

/// Gives a search groups, a cap or draws, or several of them.
pub fn vary(spec: &mut SearchSpec, dice: &mut Dice) {
    let what = 1 + dice.below(7);
    if what & 1 != 0 {
        spec.groups = 2 + dice.below(3) as u32;
        spec.widths
            .iter_mut()
            .for_each(|width| *width = (*width * spec.groups).min(960 / spec.groups * spec.groups));
        spec.group_penalty = [0.0, 0.5, 1.0, 3.0][dice.below(4)];
    }
    if what & 2 != 0 {
        spec.max_per_prefix = Some(1 + dice.below(4) as u32);
    }
    if what & 4 != 0 {
        let temperature = [0.3, 1.0, 50.0][dice.below(3)];
        spec.sampling = Some(SearchSampling { temperature, seed: dice.next(), draw: dice.next() });
    }
}

/// Catalogs whose nodes are wide: a first level explicit, later ones columns; some with a run of one code that is most of the level.
pub fn large_catalog(dice: &mut Dice, at: usize) -> Types {
    let levels: Vec<Vec<usize>> = match at % 4 {
        0 => vec![vec![3, 1500, 6]],
        1 => vec![vec![40, 61, 50], vec![700, 9]],
        2 => vec![vec![2, 3, 2001], vec![5000]],
        _ => vec![vec![1, 1, 4097, 2]],
    };
    let items = 3500 + dice.below(1500);
    let sids = (0..items).map(|_| {
        let t = dice.below(levels.len());
        let long = at.is_multiple_of(2) && !dice.once_in(3);
        let code = |(level, &codes): (usize, &usize)| {
            // Most SIDs share the codes before the last: runs longer than a warp's chunk.
            if long && level + 1 < levels[t].len() { (codes / 2) as u16 } else { dice.below(codes) as u16 }
        };
        (t, levels[t].iter().enumerate().map(code).collect())
    });
    let sids: Vec<_> = sids.collect();
    catalog(&levels, &sids)
}

/// A mask of each kind: bits, bits with dead, a list, all with dead.
pub fn mask(index: &TypeIndex, kind: usize, dice: &mut Dice) -> Mask {
    let density = 1 + dice.below(30);
    let bits =
        |dice: &mut Dice| Mask::from_bitmap(index, Bitmap::from_fn(index.items(), |_| dice.once_in(density)));
    let mut some = |n: usize| -> Vec<SidIndex> {
        (0..index.sids() as u32).filter(|_| dice.once_in(n)).map(SidIndex).collect()
    };
    let gone = some(3);
    let ranks: Vec<_> = some(5).iter().flat_map(|&sid| index.ranks(sid).map(sidereal::ids::Rank)).collect();
    match kind {
        0 => bits(dice),
        1 => bits(dice).excluding_sids(index, &gone),
        2 => Mask::allow(index, &ranks),
        _ => Mask::all(index).excluding_sids(index, &gone),
    }
}
