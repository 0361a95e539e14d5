//! The search against brute force, and hostile logits, by the count: `SIDEREAL_BRUTE_CASES` and `SIDEREAL_HOSTILE_LISTS` say how many;
//! `.ci/long beams` asks for 100,000 and 1,000,000.

use super::beside::{merged_lists, vary};
use super::oracle::{Case, Dice, Model, random_case, random_case_beside, random_pair, run};
use super::{assert_equal, check_paths};
use sidereal::device::ops::SearchSampling;

/// A number from the environment.
pub fn count(name: &str, default: usize) -> usize {
    match std::env::var(name) {
        Ok(value) => value.parse().unwrap_or_else(|_| panic!("{name} is {value:?}, expected a number")),
        Err(_) => default,
    }
}

/// Cases over catalogs of up to 5,000 items, most of them smaller; three in four with a delta.
fn cases(
    dice: &mut Dice,
    count: usize,
    model: fn(&mut Dice) -> Model,
    mut visit: impl FnMut(&mut Dice, Case),
) {
    let mut left = count;
    while left > 0 {
        let most = [100, 100, 1000, 5000][dice.below(4)];
        let items = 1 + dice.below(most);
        let (types, delta) = random_pair(dice, items);
        for _ in 0..left.min(25) {
            let model = model(dice);
            let case = match dice.once_in(4) {
                true => random_case(&types, model, dice),
                false => random_case_beside(&types, &delta, model, dice),
            };
            visit(dice, case);
            left -= 1;
        }
    }
}

#[test]
fn any_catalog_equals_brute_force() {
    let wanted = count("SIDEREAL_BRUTE_CASES", 600);
    let (mut close, mut results, mut beside, mut masked) = (0, 0, 0, 0);
    let model = |dice: &mut Dice| match dice.below(3) {
        0 => Model::Integer(dice.next()),
        _ => Model::Smooth(dice.next()),
    };
    cases(&mut Dice(31), wanted, model, |dice, mut case| {
        if dice.once_in(3) {
            vary(&mut case, dice);
        }
        let paths = run(&case.spec, case.model).unwrap();
        check_paths(&case, &paths);
        let answer = case.oracle();
        beside += usize::from(case.spec.delta.is_some());
        masked += usize::from(case.spec.types.iter().any(|of| !of.1.is_all()));
        if answer.close && !case.model.exact() {
            close += 1;
            return;
        }
        results += paths.len();
        assert_equal(&case, &paths, &merged_lists(answer.lists), case.model.exact());
    });
    println!(
        "{wanted} cases, {beside} with a delta, {masked} with masks: {results} results equal brute force; \
         {close} cases with scores too close for float32 compared by validity only"
    );
    assert!(
        close * 20 < wanted && beside * 3 > wanted * 2 && masked * 2 > wanted,
        "{close} {beside} {masked}"
    );
}

#[test]
fn hostile_logits_never_name_an_invalid_item() {
    let wanted = count("SIDEREAL_HOSTILE_LISTS", 3000);
    let (mut faults, mut named) = (0, 0);
    let model = |dice: &mut Dice| {
        let nan = if dice.once_in(4) { 20 + dice.below(2000) } else { 0 };
        Model::Hostile(dice.next(), nan)
    };
    cases(&mut Dice(32), wanted, model, |dice, mut case| {
        if dice.once_in(3) {
            vary(&mut case, dice);
        }
        if dice.once_in(3) {
            let temperature = [1e-30, 1.0, 50.0][dice.below(3)];
            case.spec.sampling = Some(SearchSampling { temperature, seed: dice.next(), draw: dice.next() });
        }
        match run(&case.spec, case.model) {
            Some(paths) => {
                // Alive, in one of the tries under the number it should have, and named once.
                check_paths(&case, &paths);
                named += paths.len();
            }
            None => {
                assert!(matches!(case.model, Model::Hostile(_, nan) if nan > 0), "a fault without a NaN");
                faults += 1;
            }
        }
    });
    println!("{wanted} lists, {faults} of them faults: {named} items named, none invalid");
    assert!(faults > 0 && faults * 3 < wanted, "{faults} faults");
}
