//! The SID step against the CPU device's search, given the same logits.
//!
//! Both are handed the same logits. The device's normaliser of a codebook is summed in an order of its own: it is compared with
//! float64, then handed to the CPU's search, so that everything else must be equal bit by bit: which paths, in which order, with
//! which scores; live beams, their tokens and ancestors after every level.

mod beside;
mod cases;
mod rig;

use rig::{Job, Rig, play};
use sidereal::catalog::Mask;
use sidereal::device::cuda::driver::Driver;
use sidereal::device::ops::{Normalizer, SearchSampling};

use super::{drivers, drivers_in_every_order};
use crate::beams::oracle::{Dice, Model, catalog, plain, random_case, random_catalog};

/// Random requests over one catalog, all in one batch.
fn random_jobs(
    dice: &mut Dice,
    model: fn(u64) -> Model,
    count: usize,
) -> (crate::beams::oracle::Types, Vec<Job>) {
    let types = random_catalog(dice);
    let jobs = (0..count)
        .map(|_| {
            let model = model(dice.next());
            Job::new(random_case(&types, model, dice).spec, model)
        })
        .collect();
    (types, jobs)
}

fn on_every_driver(test: impl Fn(&mut dyn Driver)) {
    for (name, mut driver) in drivers() {
        println!("{name}");
        test(&mut *driver);
    }
}

#[test]
fn equals_the_cpu_at_every_width_and_normaliser() {
    on_every_driver(|driver| {
        let mut dice = Dice(101);
        for at in 0..60 {
            let model = [Model::Smooth, Model::Integer, |_| Model::Flat][at % 3];
            let (types, jobs) = random_jobs(&mut dice, model, 4);
            play(driver, &types, jobs, at % 4 == 0);
        }
    });
}

#[test]
fn groups_caps_and_draws_equal_the_cpu() {
    on_every_driver(|driver| {
        let mut dice = Dice(102);
        for at in 0..60 {
            let model = if at % 2 == 0 { Model::Smooth } else { Model::Integer };
            let (types, mut jobs) = random_jobs(&mut dice, model, 3);
            for job in &mut jobs {
                cases::vary(&mut job.spec, &mut dice);
            }
            play(driver, &types, jobs, false);
        }
    });
}

#[test]
fn hostile_logits_equal_the_cpu() {
    on_every_driver(|driver| {
        let mut dice = Dice(103);
        for at in 0..50 {
            let types = random_catalog(&mut dice);
            let jobs = (0..4).map(|_| {
                let nan = if at % 2 == 0 { 10 + dice.below(300) } else { 0 };
                let model = Model::Hostile(dice.next(), nan);
                let mut spec = random_case(&types, model, &mut dice).spec;
                if dice.once_in(2) {
                    cases::vary(&mut spec, &mut dice);
                }
                Job::new(spec, model)
            });
            let jobs = jobs.collect();
            play(driver, &types, jobs, false);
        }
    });
}

#[test]
fn wide_nodes_and_long_runs_equal_the_cpu() {
    on_every_driver(|driver| {
        let mut dice = Dice(104);
        for at in 0..8 {
            let types = cases::large_catalog(&mut dice, at);
            let model = if at % 2 == 0 { Model::Smooth(dice.next()) } else { Model::Integer(dice.next()) };
            let widths = [1, 7, 64, 300];
            let jobs = widths.iter().map(|&width| {
                let mut spec = random_case(&types, model, &mut dice).spec;
                spec.widths.fill(width);
                spec.normalizer = [Normalizer::Codebook, Normalizer::Valid][dice.below(2)];
                if matches!(model, Model::Integer(_)) {
                    spec.normalizer = Normalizer::Vocabulary;
                }
                Job::new(spec, model)
            });
            let jobs = jobs.collect();
            play(driver, &types, jobs, at % 2 == 0);
        }
    });
}

#[test]
fn a_full_width_of_ties_equals_the_cpu() {
    on_every_driver(|driver| {
        let mut dice = Dice(105);
        let types = cases::large_catalog(&mut dice, 1);
        let mut jobs = Vec::new();
        for (width, cap, groups) in [(1024, None, 1), (1000, Some(40), 1), (512, None, 4), (512, Some(9), 2)]
        {
            let mut spec = plain(&types, vec![width; types.levels.iter().map(Vec::len).max().unwrap()]);
            spec.normalizer = Normalizer::Vocabulary;
            (spec.max_per_prefix, spec.groups, spec.group_penalty) = (cap, groups, 1.0);
            jobs.push(Job::new(spec, if width == 1024 { Model::Flat } else { Model::Integer(dice.next()) }));
        }
        for job in jobs {
            play(driver, &types, vec![job], false);
        }
    });
}

#[test]
fn alone_and_in_company_are_the_same_bits_in_every_order_of_threads() {
    let mut before = None;
    for (name, mut driver) in drivers_in_every_order() {
        let mut dice = Dice(106);
        let mut all = Vec::new();
        for at in 0..6 {
            let (types, mut jobs) = random_jobs(&mut dice, Model::Smooth, 3);
            if at % 2 == 1 {
                jobs.iter_mut().for_each(|job| cases::vary(&mut job.spec, &mut dice));
            }
            let together = play(&mut *driver, &types, jobs.clone(), at == 0);
            for (job, together) in jobs.into_iter().zip(&together) {
                assert_eq!(&play(&mut *driver, &types, vec![job], false)[0], together, "{name}");
            }
            all.push(together);
        }
        assert!(before.is_none_or(|before| before == all), "{name}");
        before = Some(all);
    }
}

#[test]
fn bitmaps_lists_and_their_dead_decide_what_is_alive() {
    on_every_driver(|driver| {
        let mut dice = Dice(107);
        for at in 0..12 {
            let types = cases::large_catalog(&mut dice, at);
            let jobs = (0..4).map(|kind| {
                let model = Model::Smooth(dice.next());
                let mut spec = plain(&types, vec![33; types.levels.iter().map(Vec::len).max().unwrap()]);
                for (item_type, mask) in &mut spec.types {
                    let index = types.catalog.index(*item_type);
                    *mask = std::sync::Arc::new(cases::mask(index, kind, &mut dice));
                }
                if kind == 2 {
                    spec.normalizer = Normalizer::Valid;
                }
                if kind == 3 {
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
fn what_nobody_uses_makes_room() {
    on_every_driver(|driver| {
        let mut dice = Dice(108);
        let types = random_catalog(&mut dice);
        let mut rig = Rig::new(driver, &types, 64);
        for _ in 0..5 {
            // Catalogs of the same layout, one after the other.
            let sids: Vec<_> = (0..40)
                .map(|_| {
                    let t = dice.below(types.levels.len());
                    (t, types.levels[t].iter().map(|&codes| dice.below(codes) as u16).collect())
                })
                .collect();
            let other = catalog(&types.levels, &sids);
            let model = Model::Smooth(dice.next());
            let mut jobs = vec![Job::new(random_case(&other, model, &mut dice).spec, model)];
            let paths = rig.play(&other, &mut jobs, false);
            assert_eq!(paths.len(), 1);
        }
    });
}

#[test]
fn plans_that_make_no_sense_are_refused() {
    on_every_driver(|driver| {
        let types = catalog(&[vec![4, 4]], &[(0, vec![0, 1]), (0, vec![2, 3])]);
        let mut rig = Rig::new(driver, &types, 8);
        let id = rig.searches.open(rig.driver, plain(&types, vec![2, 2])).unwrap();
        let mut refused = |search: u32, level: u8, row: u32, words: &str| {
            let error = rig.searches.plan(&rig::one_step(search, level, row, 3)).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        };
        refused(7, 0, 0, "there is no search 7");
        refused(id.0, 1, 0, "was told to choose level 1");
        refused(id.0, 0, 3, "needs 1 rows from row 3 on, the plan has 3");
        let mut spec = plain(&types, vec![2, 2]);
        spec.widths[1] = 1025;
        assert!(rig.searches.open(rig.driver, spec).is_err());
        let foreign = catalog(&[vec![4, 5]], &[(0, vec![0, 1])]);
        assert!(rig.searches.open(rig.driver, plain(&foreign, vec![2, 2])).is_err());
        assert!(rig.searches.paths(rig.driver, sidereal::ids::SearchId(9)).is_err());
        rig.searches.close(id);
        assert!(rig.searches.beam_view(id).is_err());
        let _ = Mask::all(types.catalog.index(sidereal::ids::TypeId(0)));
    });
}

#[test]
fn records_of_anything_touch_nothing_beyond_the_buffers() {
    for (name, mut driver) in drivers() {
        let mut dice = Dice(109);
        for _ in 0..25 {
            let types = random_catalog(&mut dice);
            let mut rig = Rig::new(&mut *driver, &types, 40);
            let open = |_| {
                let mut spec = random_case(&types, Model::Flat, &mut dice).spec;
                spec.normalizer =
                    [Normalizer::Codebook, Normalizer::Vocabulary, Normalizer::Valid][dice.below(3)];
                cases::vary(&mut spec, &mut dice);
                spec.widths
                    .iter_mut()
                    .for_each(|width| *width = (*width).min(30).next_multiple_of(spec.groups));
                rig.searches.open(rig.driver, spec).unwrap()
            };
            let ids: Vec<_> = (0..12).map(open).collect();
            rig.hostile(&ids, &mut dice);
            rig.driver.synchronize().unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }
}
