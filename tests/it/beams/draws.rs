//! Drawing paths without replacement: frequencies against exact probabilities, with fixed seeds.

use std::collections::BTreeMap;

use super::oracle::{Dice, Model, Types, catalog, log_sum, plain, random_case, random_catalog, run};
use sidereal::device::ops::{Normalizer, SearchSampling, SearchSpec};
use sidereal::ids::TypeId;

/// Pearson's statistic of counts against probabilities is not beyond what chance allows (five standard deviations).
pub fn assert_likely(counts: &[usize], probabilities: &[f64], what: &str) {
    let total = counts.iter().sum::<usize>() as f64;
    assert!((probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-6, "{what}: probabilities do not add up");
    let (mut statistic, mut bins, mut rare, mut rare_expected) = (0.0, 0, 0.0, 0.0);
    for (&count, &p) in counts.iter().zip(probabilities) {
        let expected = p * total;
        if expected < 8.0 {
            (rare, rare_expected) = (rare + count as f64, rare_expected + expected);
            continue;
        }
        statistic += (count as f64 - expected).powi(2) / expected;
        bins += 1;
    }
    if rare_expected > 8.0 {
        statistic += (rare - rare_expected).powi(2) / rare_expected;
        bins += 1;
    } else {
        assert!(
            rare < rare_expected + 5.0 * rare_expected.sqrt() + 5.0,
            "{what}: {rare} rare, {rare_expected}"
        );
    }
    let freedom = f64::from(bins - 1).max(1.0);
    let bound = freedom + 5.0 * (2.0 * freedom).sqrt();
    assert!(statistic < bound, "{what}: chi-square {statistic:.1}, bound {bound:.1}: {counts:?}");
}

/// Two types of different depth, eight SIDs.
fn types() -> Types {
    let first = [[0, 0, 0], [0, 0, 2], [0, 1, 1], [2, 0, 0], [2, 2, 1]].map(|sid| (0, sid.to_vec()));
    let second = [1, 2, 3].map(|code| (1, vec![code]));
    catalog(&[vec![3, 3, 3], vec![4]], &[&first[..], &second].concat())
}

/// Probability of each SID: the product of softmax(logits / temperature) over alive children.
fn probabilities(spec: &SearchSpec, model: Model, temperature: f64) -> BTreeMap<(TypeId, Vec<u16>), f64> {
    let mut sids: Vec<(TypeId, Vec<u16>)> = Vec::new();
    for (t, mask) in &spec.types {
        let index = spec.catalog.index(*t);
        let alive = (0..index.sids() as u32).filter(|&sid| mask.alive(sid..sid + 1));
        sids.extend(alive.map(|sid| (*t, index.codes(sidereal::ids::SidIndex(sid)))));
    }
    let chance = |(t, codes): &(TypeId, Vec<u16>)| -> f64 {
        let level = |l: usize| {
            let prefix = &codes[..l];
            let siblings = sids.iter().filter(|(u, other)| l == 0 || u == t && other.starts_with(prefix));
            let mut next: Vec<(TypeId, u16)> = siblings.map(|(u, other)| (*u, other[l])).collect();
            next.dedup();
            let logit = |u, code| f64::from(model.logit(u, prefix, code)) / temperature;
            logit(*t, codes[l]) - log_sum(next.into_iter().map(|(u, code)| logit(u, code)))
        };
        (0..codes.len()).map(level).sum::<f64>().exp()
    };
    sids.iter().map(|sid| (sid.clone(), chance(sid))).collect()
}

#[test]
fn ordered_pairs_are_draws_without_replacement() {
    let (types, model) = (types(), Model::Smooth(77));
    for temperature in [0.5f32, 1.0, 3.0] {
        let mut spec = plain(&types, vec![2, 2, 2]);
        let exact = probabilities(&spec, model, f64::from(temperature));
        let sids: Vec<_> = exact.keys().cloned().collect();
        let p: Vec<f64> = exact.values().copied().collect();
        let mut pairs = vec![0; p.len() * p.len()];
        let mut first = vec![0; p.len()];
        for seed in 0..20_000 {
            spec.sampling = Some(SearchSampling { temperature, seed, draw: 5 });
            let paths = run(&spec, model).unwrap();
            let at = |i: usize| {
                sids.iter().position(|s| *s == (paths[i].item_type, paths[i].codes.clone())).unwrap()
            };
            pairs[at(0) * p.len() + at(1)] += 1;
            first[at(0)] += 1;
        }
        assert_likely(&first, &p, &format!("first draw at {temperature}"));
        let pair = |i: usize| {
            let (a, b) = (i / p.len(), i % p.len());
            if a == b { 0.0 } else { p[a] * p[b] / (1.0 - p[a]) }
        };
        let expected: Vec<f64> = (0..pairs.len()).map(pair).collect();
        assert_likely(&pairs, &expected, &format!("pairs at {temperature}"));
    }
}

#[test]
fn inclusion_follows_the_definition_at_other_widths_and_draws() {
    let (types, model) = (types(), Model::Smooth(123));
    let mut spec = plain(&types, vec![4, 4, 4]);
    let exact = probabilities(&spec, model, 1.0);
    let p: Vec<f64> = exact.values().copied().collect();
    // P(k in the first four) by summing over all ordered draws.
    fn fill(p: &[f64], used: u32, chance: f64, left: usize, out: &mut [f64]) {
        for i in (0..p.len()).filter(|i| used >> i & 1 == 0) {
            let rest: f64 = (0..p.len()).filter(|j| used >> j & 1 == 0).map(|j| p[j]).sum();
            let now = chance * p[i] / rest;
            out[i] += now;
            if left > 1 {
                fill(p, used | 1 << i, now, left - 1, out);
            }
        }
    }
    let mut inclusion = vec![0.0; p.len()];
    fill(&p, 0, 1.0, 4, &mut inclusion);
    let trials = 20_000;
    let mut counts = vec![0; p.len()];
    for draw in 0..trials {
        spec.sampling = Some(SearchSampling { temperature: 1.0, seed: 9, draw });
        for path in run(&spec, model).unwrap() {
            let at = exact.keys().position(|s| *s == (path.item_type, path.codes.clone())).unwrap();
            counts[at] += 1;
        }
    }
    for (count, expected) in counts.iter().zip(&inclusion) {
        let deviation = (trials as f64 * expected * (1.0 - expected)).sqrt();
        let distance = (*count as f64 - trials as f64 * expected).abs();
        assert!(distance < 5.0 * deviation + 1.0, "{count} of {trials}, expected {expected}");
    }
}

#[test]
fn draws_repeat_differ_by_seed_and_draw_and_name_no_item_twice() {
    let mut dice = Dice(8);
    let mut differ = 0;
    for _ in 0..600 {
        let types = random_catalog(&mut dice);
        let mut case = random_case(&types, Model::Smooth(dice.next()), &mut dice);
        case.spec.widths.fill(32);
        if dice.once_in(3) {
            case.spec.groups = 2;
            case.spec.group_penalty = 1.0;
        }
        let seed = dice.next();
        let mut with = |seed, draw| {
            case.spec.sampling = Some(SearchSampling { temperature: 1.5, seed, draw });
            run(&case.spec, case.model).unwrap()
        };
        let paths = with(seed, 3);
        assert_eq!(paths, with(seed, 3));
        differ += usize::from(paths.len() > 4 && paths != with(seed, 4) && paths != with(seed + 1, 3));
        super::check_paths(&case, &paths);
        if case.spec.groups == 1 {
            // Scores are those of the search that takes the best, at temperature 1.
            case.spec.sampling = None;
            for path in run(&case.spec, case.model).unwrap() {
                if let Some(same) = paths.iter().find(|p| p.item_type == path.item_type && p.sid == path.sid)
                {
                    assert_eq!(same, &path);
                }
            }
        }
    }
    assert!(differ > 250, "{differ}");
}

#[test]
fn masked_siblings_do_not_change_the_noise_of_those_that_stay() {
    // With everything kept, the order drawn is the order of perturbed scores; a dead SID only drops out of a flat list.
    let sids: Vec<_> = (0..40).map(|code| (0, vec![code])).collect();
    let types = catalog(&[vec![40]], &sids);
    let mut spec = plain(&types, vec![64]);
    spec.normalizer = Normalizer::Valid;
    spec.sampling = Some(SearchSampling { temperature: 1.0, seed: 4, draw: 0 });
    let all = run(&spec, Model::Flat).unwrap();
    let index = types.catalog.index(TypeId(0));
    let gone = sidereal::ids::SidIndex(17);
    spec.types[0].1 = std::sync::Arc::new(spec.types[0].1.excluding_sids(index, &[gone]));
    let fewer = run(&spec, Model::Flat).unwrap();
    let kept: Vec<_> = all.iter().filter(|p| p.sid != gone).map(|p| p.sid).collect();
    assert_eq!(fewer.iter().map(|p| p.sid).collect::<Vec<_>>(), kept);
}
