//! Beam search over SIDs and text sampling on the CPU, against plain definitions in float64.
//!
//! The oracle knows a catalog as a list of tuples only: no trie, no masks, no threshold; at each level it looks at every alive prefix. Where
//! two candidates at a cut lie within 1e-5 of each other float32 may choose either, and only such cases are exempt from equality; with
//! small integers for log-probabilities every sum is exact, nothing is exempt, and ties are compared as well.

pub mod beside;
mod draws;
pub mod many;
pub mod oracle;
pub mod text;

use std::collections::BTreeSet;

use oracle::{CLOSE, Case, Dice, Found, Model, catalog, plain, random_case, random_catalog, run};
use sidereal::device::cpu::sid::{Search, StepLogits};
use sidereal::device::ops::{Normalizer, Path, SearchSampling};
use sidereal::ids::TypeId;

/// What every answer must be, whatever the logits were: alive, distinct, no longer than the width, and self-consistent.
fn check_paths(case: &Case, paths: &[Path]) {
    let mut seen = BTreeSet::new();
    assert!(paths.len() <= *case.spec.widths.last().unwrap() as usize);
    for path in paths {
        let place = case.spec.types.iter().position(|t| t.0 == path.item_type).unwrap();
        assert!(case.alive[place].contains(&path.codes), "{path:?} is not alive");
        assert_eq!(case.identity(place, &path.codes), Some(path.sid.0), "{path:?}");
        assert!(seen.insert((path.item_type, path.sid)), "{path:?} twice");
        assert_eq!(path.levels.len(), path.codes.len());
        let sum = path.levels.iter().fold(0.0f32, |sum, level| sum + level);
        assert!(sum == path.score || sum.is_nan() && path.score == f32::NEG_INFINITY, "{path:?}");
    }
}

fn assert_equal(case: &Case, paths: &[Path], expected: &[Found], exact: bool) {
    let name = |t: usize, codes: &[u16]| (case.spec.types[t].0, codes.to_vec());
    let found: Vec<_> = paths.iter().map(|p| (p.item_type, p.codes.clone())).collect();
    let wanted: Vec<_> = expected.iter().map(|f| name(f.place, &f.codes)).collect();
    if exact {
        assert_eq!(found, wanted, "{:?}", case.spec.widths);
    }
    assert_eq!(BTreeSet::from_iter(&found), BTreeSet::from_iter(&wanted), "{:?}", case.spec.widths);
    for (at, path) in paths.iter().enumerate() {
        let same = expected.iter().find(|f| name(f.place, &f.codes) == found[at]).unwrap();
        assert!((f64::from(path.score) - same.score).abs() < CLOSE, "{path:?}, expected {}", same.score);
        // The order is by score but for neighbours that float32 cannot tell apart.
        assert!((expected[at].score - same.score).abs() < CLOSE, "{path:?} at place {at}");
    }
}

#[test]
fn equals_the_oracle_at_every_width_and_normaliser() {
    let mut dice = Dice(1);
    let (mut cases, mut close, mut results) = (0, 0, 0);
    for _ in 0..420 {
        let types = random_catalog(&mut dice);
        for _ in 0..26 {
            let model = Model::Smooth(dice.next());
            let case = random_case(&types, model, &mut dice);
            let paths = run(&case.spec, case.model).unwrap();
            check_paths(&case, &paths);
            let answer = case.oracle();
            cases += 1;
            if answer.close {
                close += 1;
                continue;
            }
            assert_equal(&case, &paths, &answer.lists[0], false);
            results += paths.len();
        }
    }
    assert!(cases >= 10_000 && close * 50 < cases && results > 10 * cases, "{cases} {close} {results}");
}

#[test]
fn ties_are_broken_in_the_same_order_as_the_oracle_breaks_them() {
    let mut dice = Dice(2);
    for at in 0..3000 {
        let types = random_catalog(&mut dice);
        let model = if at % 4 == 0 { Model::Flat } else { Model::Integer(dice.next()) };
        let case = random_case(&types, model, &mut dice);
        let paths = run(&case.spec, case.model).unwrap();
        check_paths(&case, &paths);
        assert_equal(&case, &paths, &case.oracle().lists[0], true);
    }
}

#[test]
fn a_width_beyond_every_level_sorts_the_whole_catalog() {
    let mut dice = Dice(3);
    for _ in 0..300 {
        let types = random_catalog(&mut dice);
        let mut case = random_case(&types, Model::Smooth(dice.next()), &mut dice);
        if case.alive.iter().map(BTreeSet::len).sum::<usize>() > 1024 {
            continue;
        }
        case.spec.widths.fill(1024);
        let paths = run(&case.spec, case.model).unwrap();
        check_paths(&case, &paths);
        let found: BTreeSet<_> = paths.iter().map(|p| (p.item_type, p.codes.clone())).collect();
        let all = case.alive.iter().zip(&case.spec.types);
        let all: BTreeSet<_> = all.flat_map(|(sids, t)| sids.iter().map(|sid| (t.0, sid.clone()))).collect();
        assert_eq!(found, all);
        assert!(paths.windows(2).all(|pair| pair[0].score >= pair[1].score));
    }
}

#[test]
fn groups_and_caps_equal_the_naive_rules() {
    let mut dice = Dice(4);
    let mut longer_than_one = 0;
    for at in 0..4000 {
        let types = random_catalog(&mut dice);
        let exact = at % 2 == 0;
        let model = if exact { Model::Integer(dice.next()) } else { Model::Smooth(dice.next()) };
        let mut case = random_case(&types, model, &mut dice);
        if dice.once_in(2) {
            case.spec.groups = 2 + dice.below(3) as u32;
            case.spec.widths.iter_mut().for_each(|w| *w *= case.spec.groups);
            case.spec.group_penalty = [0.0, 0.5, 1.0, 3.0][dice.below(4)];
        }
        if dice.once_in(2) {
            case.spec.max_per_prefix = Some(1 + dice.below(4) as u32);
        }
        let paths = run(&case.spec, case.model).unwrap();
        check_paths(&case, &paths);
        let answer = case.oracle();
        if exact || !answer.close {
            let mut expected: Vec<Found> = answer.lists.into_iter().flatten().collect();
            expected.sort_by(|a, b| b.score.partial_cmp(&a.score).unwrap());
            longer_than_one += usize::from(expected.len() > 1);
            assert_equal(&case, &paths, &expected, exact);
        }
    }
    assert!(longer_than_one > 2500, "{longer_than_one}");
}

#[test]
fn hostile_logits_never_let_a_dead_item_in_and_only_nan_is_a_fault() {
    let mut dice = Dice(5);
    let (mut faults, mut lists) = (0, 0);
    for at in 0..6000 {
        let types = random_catalog(&mut dice);
        let nan = if at % 3 == 0 { 10 + dice.below(60) } else { 0 };
        let mut case = random_case(&types, Model::Hostile(dice.next(), nan), &mut dice);
        if dice.once_in(3) {
            let (temperature, seed) = ([1e-30, 1.0, 50.0][dice.below(3)], dice.next());
            case.spec.sampling = Some(SearchSampling { temperature, seed, draw: 0 });
        }
        let all: usize = case.alive.iter().map(BTreeSet::len).sum();
        let wide = dice.once_in(3) && all <= 1024;
        if wide {
            case.spec.widths.fill(1024);
        }
        match run(&case.spec, case.model) {
            Some(paths) => {
                check_paths(&case, &paths);
                lists += 1;
                // Minus infinity is a bad score, not a reason to drop an item.
                assert!(!wide || paths.len() == all, "{} of {all}", paths.len());
                assert_eq!(paths.is_empty(), all == 0);
            }
            None => {
                assert!(nan > 0, "a fault without a NaN");
                faults += 1;
            }
        }
    }
    assert!(faults > 300 && lists > 4000, "{faults} {lists}");
}

#[test]
fn a_nan_that_nothing_depends_on_is_no_fault() {
    let types = catalog(&[vec![4, 4]], &[(0, vec![0, 1]), (0, vec![2, 3])]);
    let mut spec = plain(&types, vec![4, 4]);
    for (normalizer, fault) in [(Normalizer::Codebook, true), (Normalizer::Valid, false)] {
        spec.normalizer = normalizer;
        let mut search = Search::new(spec.clone()).unwrap();
        // Code 1 leads nowhere.
        let values = [0.0, f32::NAN, 0.0, 0.0];
        let outcome = search.advance(0, &StepLogits { values: &values, starts: &[0], norms: None }).unwrap();
        assert_eq!((outcome.fault, outcome.live), (fault, if fault { 0 } else { 2 }));
        // A search that is of no use any more stays so, without an error.
        if fault {
            let none = StepLogits { values: &[], starts: &[], norms: None };
            assert!(search.advance(1, &none).unwrap().fault);
        }
    }
}

#[test]
fn a_row_equals_itself_in_any_company() {
    let mut dice = Dice(6);
    for _ in 0..200 {
        let types = random_catalog(&mut dice);
        let mut case = random_case(&types, Model::Smooth(dice.next()), &mut dice);
        case.spec.widths.fill(64);
        let wide = run(&case.spec, case.model).unwrap();
        case.spec.widths.fill(3);
        for path in run(&case.spec, case.model).unwrap() {
            let same = wide.iter().find(|w| w.item_type == path.item_type && w.sid == path.sid);
            if let Some(same) = same {
                assert_eq!(same.score.to_bits(), path.score.to_bits());
            }
        }
    }
}

#[test]
fn searches_that_make_no_sense_are_refused() {
    let types = catalog(&[vec![4, 4], vec![4]], &[(0, vec![0, 1]), (1, vec![2])]);
    let good = plain(&types, vec![4, 4]);
    let refused = |change: &dyn Fn(&mut sidereal::device::ops::SearchSpec), field: &str| {
        let mut spec = good.clone();
        change(&mut spec);
        let error = Search::new(spec).err().expect(field).to_string();
        assert!(error.starts_with(field), "{error}");
    };
    refused(&|s| s.types.clear(), "item_types");
    refused(&|s| s.types.swap(0, 1), "item_types");
    refused(&|s| s.types[1].0 = TypeId(2), "item_types");
    refused(&|s| s.widths = vec![4], "beam_width");
    refused(&|s| s.widths = vec![4, 0], "beam_width");
    refused(&|s| s.widths = vec![4, 1025], "beam_width");
    refused(&|s| s.groups = 3, "groups");
    refused(&|s| s.groups = 0, "groups");
    refused(&|s| s.group_penalty = f32::NAN, "penalty");
    refused(&|s| s.group_penalty = -1.0, "penalty");
    refused(&|s| s.max_per_prefix = Some(0), "max_per_prefix");
    let sampling = |temperature| Some(SearchSampling { temperature, seed: 0, draw: 0 });
    refused(&|s| s.sampling = sampling(0.0), "temperature");
    refused(&|s| s.sampling = sampling(f32::INFINITY), "temperature");

    let mut search = Search::new(good).unwrap();
    let step = |starts, norms| StepLogits { values: &[0.0; 8], starts, norms };
    assert!(search.advance(1, &step(&[0, 4], None)).is_err());
    assert!(search.advance(0, &step(&[0], None)).is_err());
    assert!(search.advance(0, &step(&[0, 5], None)).is_err());
    assert!(search.advance(0, &step(&[0, 4], Some(&[0.0; 2]))).is_err());
    assert_eq!(search.advance(0, &step(&[0, 4], None)).unwrap().live, 1);
}
