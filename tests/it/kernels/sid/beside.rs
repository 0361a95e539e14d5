//! Searches beside a delta, on the kernels: bit for bit what the CPU answers, and what is uploaded for them.

use std::sync::Arc;

use sidereal::catalog::Mask;
use sidereal::device::ops::{Delta, Normalizer, SearchSampling};
use sidereal::ids::TypeId;

use super::cases;
use super::on_every_driver;
use super::rig::{Job, Rig, play};
use crate::beams::beside::beside;
use crate::beams::many::count;
use crate::beams::oracle::{
    Dice, Model, Sids, Types, catalog, plain, random_case, random_case_beside, random_pair,
};
use crate::kernels::drivers;

#[test]
fn pairs_of_tries_equal_the_cpu() {
    on_every_driver(|driver| {
        let mut dice = Dice(121);
        let (batches, mut results) = (count("SIDEREAL_BESIDE_BATCHES", 120), 0);
        for at in 0..batches {
            let items = if dice.once_in(10) { 1500 } else { 1 + dice.below(120) };
            let (types, delta) = random_pair(&mut dice, items);
            let jobs = (0..3).map(|_| {
                let model = match at % 4 {
                    0 => Model::Integer(dice.next()),
                    1 => Model::Hostile(dice.next(), if at % 8 == 1 { 10 + dice.below(300) } else { 0 }),
                    2 => Model::Smooth(dice.next()),
                    _ => Model::Flat,
                };
                // Searches with and without a delta in one batch.
                let mut spec = match dice.once_in(4) {
                    true => random_case(&types, model, &mut dice).spec,
                    false => random_case_beside(&types, &delta, model, &mut dice).spec,
                };
                if dice.once_in(2) {
                    cases::vary(&mut spec, &mut dice);
                }
                Job::new(spec, model)
            });
            let jobs = jobs.collect();
            let found = play(driver, &types, jobs, at % 5 == 0);
            results += found.iter().flatten().map(Vec::len).sum::<usize>();
        }
        println!("{batches} batches, {results} results equal the CPU's");
    });
}

/// A delta for wide nodes: SIDs of the snapshot, neighbours of them, and others; some codes many times.
fn large_delta(types: &Types, dice: &mut Dice) -> Types {
    let mut sids = Sids::new();
    for _ in 0..200 + dice.below(1800) {
        let t = dice.below(types.levels.len());
        let near = (!types.sids[t].is_empty() && !dice.once_in(3)).then(|| dice.below(types.sids[t].len()));
        let mut codes = near.map_or_else(|| vec![0; types.levels[t].len()], |at| types.sids[t][at].clone());
        let same = if near.is_some() { dice.below(codes.len() + 1) } else { 0 };
        for (code, &bound) in codes.iter_mut().zip(&types.levels[t]).skip(same) {
            *code = dice.below(bound) as u16;
        }
        sids.push((t, codes));
    }
    catalog(&types.levels, &sids)
}

#[test]
fn wide_nodes_and_masks_of_every_kind_on_both_equal_the_cpu() {
    on_every_driver(|driver| {
        let mut dice = Dice(122);
        for at in 0..16 {
            let types = cases::large_catalog(&mut dice, at);
            let delta = large_delta(&types, &mut dice);
            let jobs = (0..4).map(|kind| {
                let model =
                    if kind % 2 == 0 { Model::Smooth(dice.next()) } else { Model::Integer(dice.next()) };
                let width = [1, 33, 300, 64][(at + kind) % 4];
                let mut spec = plain(&types, vec![width; types.levels.iter().map(Vec::len).max().unwrap()]);
                let masks = spec.types.iter_mut().map(|(item_type, mask)| {
                    // Each kind on one side meets each kind on the other; one in eight is everything.
                    let (index, added) = (types.catalog.index(*item_type), delta.catalog.index(*item_type));
                    let one = |index, kind, dice: &mut Dice| match dice.once_in(8) {
                        true => Arc::new(Mask::all(index)),
                        false => Arc::new(cases::mask(index, kind, dice)),
                    };
                    *mask = one(index, kind, &mut dice);
                    one(added, (kind + at) % 4, &mut dice)
                });
                spec.delta = Some(Delta { masks: masks.collect(), catalog: delta.catalog.clone() });
                spec.normalizer = match (model.exact(), at % 3) {
                    (true, _) => Normalizer::Vocabulary,
                    (_, 0) => Normalizer::Valid,
                    _ => Normalizer::Codebook,
                };
                if kind == 3 || at % 5 == 4 {
                    spec.sampling = Some(SearchSampling { temperature: 0.7, seed: dice.next(), draw: 3 });
                }
                Job::new(spec, model)
            });
            let jobs = jobs.collect();
            play(driver, &types, jobs, false);
        }
    });
}

#[test]
fn records_of_anything_touch_nothing_beyond_the_buffers_of_either_trie() {
    for (name, mut driver) in drivers() {
        let mut dice = Dice(123);
        for _ in 0..20 {
            let items = 1 + dice.below(60);
            let (types, delta) = random_pair(&mut dice, items);
            let mut rig = Rig::new(&mut *driver, &types, 40);
            let open = |_| {
                let mut spec = random_case_beside(&types, &delta, Model::Flat, &mut dice).spec;
                spec.normalizer =
                    [Normalizer::Codebook, Normalizer::Vocabulary, Normalizer::Valid][dice.below(3)];
                cases::vary(&mut spec, &mut dice);
                let groups = spec.groups;
                spec.widths.iter_mut().for_each(|width| *width = (*width).min(30).next_multiple_of(groups));
                rig.searches.open(rig.driver, spec).unwrap()
            };
            let ids: Vec<_> = (0..12).map(open).collect();
            rig.hostile(&ids, &mut dice);
            rig.driver.synchronize().unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }
}

/// A catalog whose upload cannot be overlooked.
fn sizable(dice: &mut Dice) -> Types {
    let sids: Sids =
        (0..20_000).map(|_| (0, vec![dice.below(3000) as u16, dice.below(3000) as u16])).collect();
    catalog(&[vec![3000, 3000]], &sids)
}

#[test]
fn what_was_swapped_out_is_freed_and_what_is_held_stays() {
    on_every_driver(|driver| {
        let mut dice = Dice(124);
        let (first, second, delta) = (sizable(&mut dice), sizable(&mut dice), sizable(&mut dice));
        let mut rig = Rig::new(driver, &first, 64);
        let mut free = |rig: &mut Rig<'_>, types: &Types, delta: Option<&Types>| {
            let mut spec = plain(types, vec![4, 4]);
            let bits = cases::mask(types.catalog.index(TypeId(0)), 0, &mut dice);
            spec.types[0].1 = Arc::new(bits);
            spec.delta = delta.map(|delta| beside(delta, &spec));
            let id = rig.searches.open(rig.driver, spec).unwrap();
            let free = rig.driver.free_memory().unwrap();
            (id, free)
        };
        // Blocks of searches are kept: two are enough for all that follows.
        let (a, _) = free(&mut rig, &first, None);
        let (b, alone) = free(&mut rig, &first, None);
        [a, b].into_iter().for_each(|id| rig.searches.close(id));
        // Held by this test, so still there: nothing but a mask is uploaded, and those before are gone.
        let (c, again) = free(&mut rig, &first, None);
        assert!(again > alone, "{again} {alone}");
        rig.searches.close(c);
        let (d, three) = free(&mut rig, &second, Some(&delta));
        assert!(three + 100_000 < alone, "{three} {alone}");
        // Gone for everybody but the open search, which keeps it.
        drop((second, delta));
        let (e, open) = free(&mut rig, &first, None);
        assert!(open < three, "{open} {three}");
        [d, e].into_iter().for_each(|id| rig.searches.close(id));
        let (f, after) = free(&mut rig, &first, None);
        assert_eq!(after, again);
        rig.searches.close(f);
        // A search still runs after all that.
        let spec = plain(&first, vec![5, 5]);
        let paths = rig.play(&first, &mut vec![Job::new(spec, Model::Smooth(3))], false);
        assert_eq!(paths[0].as_ref().map(Vec::len), Some(5));
    });
}
