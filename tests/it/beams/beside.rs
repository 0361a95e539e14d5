//! Searches beside a delta: two tries, one answer.
//!
//! The oracle knows one list of alive SIDs, whichever trie they are in. Where it exempts scores too close for float32, a search over
//! a catalog of both tries' SIDs does not: the two must agree bit by bit, hostile logits included.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::oracle::{
    Case, Dice, Found, Model, Sids, Types, catalog, log_sum, plain, random_case, random_case_beside,
    random_pair, run,
};
use super::{assert_equal, check_paths};
use sidereal::catalog::Mask;
use sidereal::device::cpu::sid::Search;
use sidereal::device::ops::{Delta, Normalizer, Path, SearchSampling, SearchSpec};
use sidereal::device::random::{Noise, search_domain};
use sidereal::ids::{Rank, SidIndex, TypeId};

/// Gives a case groups, a penalty and a cap, or some of them.
pub fn vary(case: &mut Case, dice: &mut Dice) {
    if dice.once_in(2) {
        case.spec.groups = 2 + dice.below(3) as u32;
        case.spec.widths.iter_mut().for_each(|width| *width *= case.spec.groups);
        case.spec.group_penalty = [0.0, 0.5, 1.0, 3.0][dice.below(4)];
    }
    if dice.once_in(2) {
        case.spec.max_per_prefix = Some(1 + dice.below(4) as u32);
    }
}

/// The oracle's list: groups merged by score.
pub fn merged_lists(lists: Vec<Vec<Found>>) -> Vec<Found> {
    let mut all: Vec<Found> = lists.into_iter().flatten().collect();
    all.sort_by(|a, b| b.score.partial_cmp(&a.score).unwrap());
    all
}

fn items(dice: &mut Dice) -> usize {
    if dice.once_in(12) { 1500 } else { 1 + dice.below(120) }
}

/// The same search over one catalog that holds the SIDs of both tries.
fn in_one(case: &Case, levels: &[Vec<usize>]) -> SearchSpec {
    let mut sids = Sids::new();
    for ((t, _), [base, delta]) in case.spec.types.iter().zip(&case.sids) {
        sids.extend(base.iter().chain(&**delta).map(|sid| (t.index(), sid.clone())));
    }
    let one = catalog(levels, &sids);
    let mut spec = case.spec.clone();
    spec.delta = None;
    for ((t, mask), alive) in spec.types.iter_mut().zip(&case.alive) {
        let index = one.catalog.index(*t);
        let ranks = alive.iter().flat_map(|sid| index.ranks(index.find(sid).unwrap())).map(Rank);
        *mask = Arc::new(Mask::allow(index, &ranks.collect::<Vec<_>>()));
    }
    spec.catalog = one.catalog;
    spec
}

#[test]
fn pairs_of_tries_equal_the_oracle() {
    let mut dice = Dice(21);
    let (mut close, mut results, mut added) = (0, 0, 0);
    for at in 0..4000 {
        let items = items(&mut dice);
        let (types, delta) = random_pair(&mut dice, items);
        let model = match at % 8 {
            0..5 => Model::Smooth(dice.next()),
            5 | 6 => Model::Integer(dice.next()),
            _ => Model::Flat,
        };
        let mut case = random_case_beside(&types, &delta, model, &mut dice);
        if at % 2 == 1 {
            vary(&mut case, &mut dice);
        }
        let paths = run(&case.spec, case.model).unwrap();
        check_paths(&case, &paths);
        let answer = case.oracle();
        if answer.close && !model.exact() {
            close += 1;
            continue;
        }
        assert_equal(&case, &paths, &merged_lists(answer.lists), model.exact());
        let behind = |path: &&Path| path.sid.index() >= case.spec.catalog.index(path.item_type).sids();
        results += paths.len();
        added += paths.iter().filter(behind).count();
    }
    assert!(close < 80 && results > 20_000 && added > 5000, "{close} {results} {added}");
}

#[test]
fn two_tries_answer_as_one_would_bit_by_bit() {
    let mut dice = Dice(22);
    let mut faults = 0;
    for at in 0..3000 {
        let items = items(&mut dice);
        let (types, delta) = random_pair(&mut dice, items);
        let nan = if at % 4 == 0 { 30 + dice.below(300) } else { 0 };
        let model = if at % 2 == 0 { Model::Hostile(dice.next(), nan) } else { Model::Smooth(dice.next()) };
        let mut case = random_case_beside(&types, &delta, model, &mut dice);
        if dice.once_in(2) {
            vary(&mut case, &mut dice);
        }
        let found = run(&case.spec, model);
        let expected = run(&in_one(&case, &types.levels), model);
        assert_eq!(found.is_none(), expected.is_none());
        let (Some(found), Some(expected)) = (found, expected) else {
            faults += 1;
            continue;
        };
        check_paths(&case, &found);
        let bits = |path: &Path| {
            let levels: Vec<u32> = path.levels.iter().map(|level| level.to_bits()).collect();
            (path.item_type, path.codes.clone(), path.score.to_bits(), levels)
        };
        let all = |paths: &[Path]| paths.iter().map(bits).collect::<Vec<_>>();
        assert_eq!(all(&found), all(&expected));
    }
    assert!(faults > 50, "{faults}");
}

/// Lists of the draws of each group by the definition in float64; `None` where two candidates are too close to tell apart.
fn drawn(case: &Case) -> Option<Vec<Vec<(Found, f64)>>> {
    let spec = &case.spec;
    let groups = spec.groups as usize;
    // A path, its log-probability at the temperature, and in `selected` the perturbed one.
    let mut lists: Vec<Vec<(Found, f64)>> = vec![Vec::new(); groups];
    for (level, &width) in spec.widths.iter().enumerate() {
        let mut uses: BTreeMap<(usize, u16), usize> = BTreeMap::new();
        let mut prefixes: BTreeMap<(usize, u16), u32> = BTreeMap::new();
        let mut taken = BTreeSet::new();
        for (group, before) in lists.iter_mut().enumerate() {
            let finished = |f: &Found| f.codes.len() == case.codebooks[f.place].len();
            let mut all: Vec<(Found, f64)> = match level {
                0 => children(case, None, group, &taken),
                _ => before
                    .iter()
                    .flat_map(|from| match finished(&from.0) {
                        true => vec![from.clone()],
                        false => children(case, Some(from), group, &taken),
                    })
                    .collect(),
            };
            let price = |found: &Found| {
                let code = found.codes.get(level).map(|&code| (found.place, code));
                let paid = code.and_then(|code| uses.get(&code)).copied().unwrap_or(0);
                found.selected - f64::from(spec.group_penalty) * paid as f64
            };
            all.sort_by(|a, b| price(&b.0).total_cmp(&price(&a.0)));
            let wide = |pair: &[(Found, f64)]| {
                let (a, b) = (price(&pair[0].0), price(&pair[1].0));
                // A child that has its parent's own number stands where the parent stood.
                a == b || a - b > 1e-4 * a.abs().max(1.0)
            };
            if !all.windows(2).all(wide) {
                return None;
            }
            let list = admitted(all, width as usize / groups, spec.max_per_prefix, &mut prefixes);
            for (found, _) in &list {
                if let Some(&code) = found.codes.get(level) {
                    *uses.entry((found.place, code)).or_default() += 1;
                }
                if finished(found) {
                    taken.insert((found.place, found.codes.clone()));
                }
            }
            *before = list;
        }
    }
    Some(lists)
}

/// The first `width` that find room in their class, type and first code.
fn admitted(
    all: Vec<(Found, f64)>,
    width: usize,
    cap: Option<u32>,
    prefixes: &mut BTreeMap<(usize, u16), u32>,
) -> Vec<(Found, f64)> {
    let mut list = Vec::new();
    for found in all {
        let count = prefixes.entry((found.0.place, found.0.codes[0])).or_default();
        if list.len() < width && cap.is_none_or(|cap| *count < cap) {
            *count += 1;
            list.push(found);
        }
    }
    list
}

/// The children of a path that are alive and not taken, perturbed.
fn children(
    case: &Case,
    from: Option<&(Found, f64)>,
    group: usize,
    taken: &BTreeSet<(usize, Vec<u16>)>,
) -> Vec<(Found, f64)> {
    let sampling = case.spec.sampling.unwrap();
    let temperature = f64::from(sampling.temperature);
    let (phi, perturbed) = from.map_or((0.0, 0.0), |from| (from.1, from.0.selected));
    let (prefix, score) = from.map_or((Vec::new(), 0.0), |from| (from.0.codes.clone(), from.0.score));
    let mut next = Vec::new();
    for (place, code, log_probability) in case.continuations(from.map(|from| &from.0)) {
        let codes: Vec<u16> = prefix.iter().copied().chain([code]).collect();
        if taken.contains(&(place, codes.clone())) {
            continue;
        }
        let t = case.spec.types[place].0;
        let logit = f64::from(case.model.logit(t, &prefix, code)) / temperature;
        let domain = search_domain(t.0, prefix.len(), group);
        let mut noise = [0.0];
        let first_sid = case.identity(place, &codes).unwrap();
        Noise::new(sampling.seed, sampling.draw, domain).gumbels(&[first_sid], &mut noise);
        let found = Found { place, codes, score: score + log_probability, selected: f64::from(noise[0]) };
        next.push((found, logit));
    }
    let norm = log_sum(next.iter().map(|child| child.1));
    for (found, logit) in &mut next {
        *logit += phi - norm;
        found.selected += *logit;
    }
    let largest = next.iter().map(|child| child.0.selected).fold(f64::NEG_INFINITY, f64::max);
    for (found, _) in &mut next {
        let own = found.selected;
        let v = perturbed - own + (-(own - largest).exp_m1()).ln();
        let conditioned = perturbed - v.max(0.0) - (-v.abs()).exp().ln_1p();
        found.selected = if own >= largest { perturbed } else { conditioned };
    }
    next
}

#[test]
fn draws_equal_their_definition_in_both_tries() {
    let mut dice = Dice(23);
    let (mut compared, mut long) = (0, 0);
    for at in 0..3000 {
        let items = 1 + dice.below(120);
        let (types, delta) = random_pair(&mut dice, items);
        let model = Model::Smooth(dice.next());
        let mut case = match at % 4 {
            0 => random_case(&types, model, &mut dice),
            _ => random_case_beside(&types, &delta, model, &mut dice),
        };
        if at % 2 == 1 {
            vary(&mut case, &mut dice);
        }
        case.spec
            .widths
            .iter_mut()
            .for_each(|width| *width = (*width).min(16).next_multiple_of(case.spec.groups));
        let temperature = [0.7, 1.0, 4.0][dice.below(3)];
        case.spec.sampling = Some(SearchSampling { temperature, seed: dice.next(), draw: dice.next() });
        let paths = run(&case.spec, model).unwrap();
        check_paths(&case, &paths);
        let Some(lists) = drawn(&case) else { continue };
        let expected: Vec<&Found> = lists.iter().flatten().map(|found| &found.0).collect();
        let names: Vec<_> = expected.iter().map(|f| (case.spec.types[f.place].0, f.codes.clone())).collect();
        let found: Vec<_> = paths.iter().map(|path| (path.item_type, path.codes.clone())).collect();
        assert_eq!(found, names, "case {at}");
        for (path, expected) in paths.iter().zip(expected) {
            assert!((f64::from(path.score) - expected.score).abs() < 1e-4, "{path:?}");
        }
        compared += 1;
        long += usize::from(paths.len() > 3);
    }
    assert!(compared > 2400 && long > 1000, "{compared} {long}");
}

#[test]
fn a_delta_without_items_changes_nothing() {
    let mut dice = Dice(24);
    for at in 0..300 {
        let (types, _) = random_pair(&mut dice, 60);
        let model = Model::Smooth(dice.next());
        let mut case = random_case(&types, model, &mut dice);
        if at % 3 == 0 {
            case.spec.sampling = Some(SearchSampling { temperature: 1.0, seed: dice.next(), draw: 1 });
        }
        let alone = run(&case.spec, model);
        let none = catalog(&types.levels, &[]);
        case.spec.delta = Some(beside(&none, &case.spec));
        assert_eq!(run(&case.spec, model), alone);
    }
}

/// A delta all of which is alive.
pub fn beside(delta: &Types, spec: &SearchSpec) -> Delta {
    let mask = |of: &(TypeId, Arc<Mask>)| Arc::new(Mask::all(delta.catalog.index(of.0)));
    Delta { catalog: delta.catalog.clone(), masks: spec.types.iter().map(mask).collect() }
}

/// SIDs and their numbers in the order of the answer, where all logits are the same: the order of codes.
fn order(spec: &SearchSpec) -> Vec<(Vec<u16>, u32)> {
    run(spec, Model::Flat).unwrap().into_iter().map(|path| (path.codes, path.sid.0)).collect()
}

#[test]
fn each_way_two_tries_meet() {
    let levels = [vec![4, 4, 4]];
    let of =
        |sids: &[[u16; 3]]| catalog(&levels, &sids.iter().map(|sid| (0, sid.to_vec())).collect::<Sids>());
    let base = of(&[[1, 1, 1], [1, 1, 3], [1, 3, 0], [3, 0, 0]]);
    let delta = of(&[[0, 2, 2], [1, 0, 0], [1, 1, 1], [1, 1, 2], [1, 1, 2], [3, 3, 3]]);
    let mut spec = plain(&base, vec![16; 3]);
    spec.normalizer = Normalizer::Vocabulary;
    spec.delta = Some(beside(&delta, &spec));
    let all = vec![
        (vec![0, 2, 2], 4),
        (vec![1, 0, 0], 5),
        (vec![1, 1, 1], 0),
        (vec![1, 1, 2], 7),
        (vec![1, 1, 3], 1),
        (vec![1, 3, 0], 2),
        (vec![3, 0, 0], 3),
        (vec![3, 3, 3], 8),
    ];
    assert_eq!(order(&spec), all);

    let (index, added) = (base.catalog.index(TypeId(0)), delta.catalog.index(TypeId(0)));
    let mask = |index, gone: &[u32]| {
        let gone: Vec<SidIndex> = gone.iter().map(|&sid| SidIndex(sid)).collect();
        Arc::new(Mask::all(index).excluding_sids(index, &gone))
    };
    let without = |base_gone: &[u32], delta_gone: &[u32]| {
        let mut spec = spec.clone();
        spec.types[0].1 = mask(index, base_gone);
        spec.delta.as_mut().unwrap().masks[0] = mask(added, delta_gone);
        order(&spec)
    };
    let but = |gone: &[usize]| -> Vec<(Vec<u16>, u32)> {
        (0..all.len()).filter(|at| !gone.contains(at)).map(|at| all[at].clone()).collect()
    };
    // A SID that both have lives on in either and keeps the snapshot's number.
    assert_eq!(without(&[0], &[]), all);
    assert_eq!(without(&[], &[2]), all);
    assert_eq!(without(&[0], &[2]), but(&[2]));
    // All of the snapshot's nodes below a code dead, the delta's alive, and the other way round.
    assert_eq!(without(&[0, 1, 2], &[]), but(&[4, 5]));
    assert_eq!(without(&[0, 1, 2, 3], &[]), but(&[4, 5, 6]));
    assert_eq!(without(&[], &[0, 1, 2, 3, 4]), but(&[0, 1, 3, 7]));
    assert_eq!(without(&[3], &[4]), but(&[6, 7]));
    assert_eq!(without(&[0, 1, 2, 3], &[0, 1, 2, 3, 4]), vec![]);

    // A snapshot without items of the type.
    let nothing = of(&[]);
    let mut spec = plain(&nothing, vec![16; 3]);
    spec.normalizer = Normalizer::Vocabulary;
    spec.delta = Some(beside(&delta, &spec));
    let expected: Vec<_> = delta.sids[0].iter().cloned().zip(0..).collect();
    assert_eq!(order(&spec), expected);
}

#[test]
fn deltas_that_do_not_fit_are_refused() {
    let types = catalog(&[vec![4, 4], vec![4]], &[(0, vec![0, 1]), (1, vec![2])]);
    let refused = |delta: &Types, change: &dyn Fn(&mut Delta), words: &str| {
        let mut spec = plain(&types, vec![4, 4]);
        let mask = Arc::new(Mask::all(delta.catalog.index(TypeId(0))));
        let mut with = Delta { catalog: delta.catalog.clone(), masks: vec![mask.clone(), mask] };
        change(&mut with);
        spec.delta = Some(with);
        let error = Search::new(spec).err().expect(words).to_string();
        assert!(error.starts_with("delta") && error.contains(words), "{error}");
    };
    let same = catalog(&[vec![4, 4], vec![4]], &[(1, vec![1])]);
    refused(&same, &|delta| delta.masks.truncate(1), "1 masks for 2 item types");
    refused(&catalog(&[vec![4, 4]], &[(0, vec![1, 1])]), &|_| {}, "type 1, but the delta has 1");
    let other = catalog(&[vec![4, 5], vec![4]], &[(0, vec![1, 4])]);
    refused(&other, &|_| {}, "type 0 has codebooks [4, 5], but [4, 4] in the catalog");
    let longer = catalog(&[vec![4, 4], vec![4, 2]], &[(0, vec![1, 1])]);
    refused(&longer, &|_| {}, "type 1 has codebooks [4, 2], but [4] in the catalog");
}
