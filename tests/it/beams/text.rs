//! Text sampling against its definition in float64.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::draws::assert_likely;
use super::oracle::{Dice, log_sum};
use sidereal::device::cpu::sample::TextSampler;
use sidereal::device::ops::{Sampling, TextRow, TokenCount};
use sidereal::ids::TokenId;

/// A text row with nothing but parameters.
pub fn row(sampling: Sampling) -> TextRow {
    TextRow {
        row: 0,
        sampling: Arc::new(sampling),
        draw: 0,
        counts: Vec::new(),
        allow_open: false,
        banned: Vec::new(),
        top_logprobs: 0,
        target: None,
    }
}

/// Parameters of a choice without a draw.
pub fn greedy() -> Sampling {
    Sampling { temperature: 0.0, ..Sampling::default() }
}

fn mask(vocab: usize, allowed: impl Fn(usize) -> bool) -> Vec<u64> {
    let mut words = vec![0; vocab.div_ceil(64)];
    (0..vocab).filter(|&t| allowed(t)).for_each(|t| words[t / 64] |= 1 << (t % 64));
    words
}

fn logits(vocab: usize, dice: &mut Dice) -> Vec<f32> {
    (0..vocab).map(|_| (dice.below(1 << 20) as f32 / (1 << 20) as f32 - 0.5) * 8.0).collect()
}

/// The distribution of a draw over tokens, by its definition.
fn distribution(logits: &[f32], row: &TextRow, allowed: impl Fn(usize) -> bool) -> Vec<f64> {
    let s = &*row.sampling;
    let mut z: Vec<f64> = logits.iter().map(|&l| f64::from(l)).collect();
    for count in &row.counts {
        let logit = &mut z[count.token.index()];
        let r = f64::from(s.repetition_penalty);
        *logit = if *logit > 0.0 { *logit / r } else { *logit * r };
        *logit -= f64::from(s.frequency_penalty) * f64::from(count.answer);
        *logit -= if count.answer > 0 { f64::from(s.presence_penalty) } else { 0.0 };
    }
    s.bias.iter().for_each(|(token, bias)| z[token.index()] += f64::from(*bias));
    let mut left: Vec<usize> =
        (0..z.len()).filter(|&t| allowed(t) && !row.banned.contains(&TokenId(t as u32))).collect();
    z.iter_mut().for_each(|z| *z /= f64::from(s.temperature));
    left.sort_by(|&a, &b| z[b].total_cmp(&z[a]).then(a.cmp(&b)));
    if s.top_k > 0 {
        let least = z[left[left.len().min(s.top_k as usize) - 1]];
        left.retain(|&t| z[t] >= least);
    }
    let mass = |left: &[usize]| left.iter().map(|&t| z[t].exp()).sum::<f64>();
    let total = mass(&left);
    let mut sum = 0.0;
    let last = left.iter().position(|&t| {
        sum += z[t].exp();
        sum >= f64::from(s.top_p) * total
    });
    left.truncate(last.map_or(left.len(), |last| last + 1));
    let most = z[left[0]].exp();
    left.retain(|&t| z[t].exp() >= f64::from(s.min_p) * most);
    let total = mass(&left);
    let mut p = vec![0.0; z.len()];
    left.iter().for_each(|&t| p[t] = z[t].exp() / total);
    p
}

#[test]
fn draws_follow_the_distribution_of_their_parameters() {
    let mut dice = Dice(11);
    let plain = Sampling::default;
    let cases = [
        plain(),
        Sampling { temperature: 0.4, ..plain() },
        Sampling { temperature: 2.5, ..plain() },
        Sampling { top_k: 7, ..plain() },
        Sampling { top_p: 0.6, ..plain() },
        Sampling { top_k: 20, top_p: 0.8, ..plain() },
        Sampling { min_p: 0.15, ..plain() },
        Sampling { temperature: 1.7, top_k: 30, top_p: 0.9, min_p: 0.2, ..plain() },
        Sampling { repetition_penalty: 1.4, presence_penalty: 0.6, frequency_penalty: 0.3, ..plain() },
        Sampling { bias: vec![(TokenId(3), 2.0), (TokenId(90), -3.0)], top_p: 0.95, ..plain() },
    ];
    for (at, sampling) in cases.into_iter().enumerate() {
        let vocab = 65 + dice.below(80);
        let logits = logits(vocab, &mut dice);
        let allowed = |t: usize| t % 5 != 2;
        let mut sampler = TextSampler::new(vocab, &mask(vocab, allowed), None).unwrap();
        let mut row = row(Sampling { seed: 1000 + at as u64, ..sampling });
        row.banned = vec![TokenId(4), TokenId(64)];
        row.counts = [(0, 3), (5, 0), (10, 1), (33, 7)]
            .map(|(t, answer)| TokenCount { token: TokenId(t), answer })
            .into();
        let expected = distribution(&logits, &row, allowed);
        let mut counts = vec![0; vocab];
        for draw in 0..30_000 {
            row.draw = draw;
            let outcome = sampler.sample(&logits, &row);
            assert!(!outcome.fault);
            counts[outcome.token.index()] += 1;
        }
        for (token, (&count, &p)) in counts.iter().zip(&expected).enumerate() {
            assert!(p > 0.0 || count == 0, "case {at}: token {token} drawn {count} times");
        }
        assert_likely(&counts, &expected, &format!("case {at}"));
    }
}

#[test]
fn a_large_nucleus_is_found_in_a_large_vocabulary() {
    let (vocab, mut dice) = (20_000, Dice(12));
    let logits: Vec<f32> = logits(vocab, &mut dice).iter().map(|l| l * 0.3).collect();
    let mut sampler = TextSampler::new(vocab, &mask(vocab, |_| true), None).unwrap();
    for top_p in [0.001f32, 0.05, 0.5, 0.97] {
        let mut row = row(Sampling { top_p, seed: 5, ..Sampling::default() });
        let expected = distribution(&logits, &row, |_| true);
        let nucleus = expected.iter().filter(|p| **p > 0.0).count();
        let mut seen = BTreeMap::new();
        for draw in 0..3000 {
            row.draw = draw;
            *seen.entry(sampler.sample(&logits, &row).token).or_insert(0) += 1;
        }
        // A token at the edge may go either way: the sums are rounded.
        let outside = seen.keys().filter(|t| expected[t.index()] == 0.0).count();
        assert!(outside <= 1, "{outside} tokens outside of a nucleus of {nucleus}");
        assert!(seen.len() > nucleus.min(3000) / 3, "{} of {nucleus}", seen.len());
    }
}

#[test]
fn penalties_bias_and_bans_are_applied_as_tabled() {
    // Tokens 0..4 and what is left of their logits; the largest must win and its log-probability is the model's own.
    let logits = [2.0f32, -1.0, 1.9, 0.0];
    let count = |token, answer| TokenCount { token: TokenId(token), answer };
    let off = greedy;
    let table: [(Sampling, Vec<TokenCount>, Vec<u32>, u32); 10] = [
        (off(), vec![], vec![], 0),
        (Sampling { repetition_penalty: 1.1, ..off() }, vec![count(0, 0)], vec![], 2),
        (Sampling { repetition_penalty: 1.04, ..off() }, vec![count(0, 0)], vec![], 0),
        (Sampling { repetition_penalty: 0.1, ..off() }, vec![count(2, 1)], vec![], 2),
        (Sampling { presence_penalty: 0.2, ..off() }, vec![count(0, 1)], vec![], 2),
        (Sampling { presence_penalty: 0.2, ..off() }, vec![count(0, 0)], vec![], 0),
        (Sampling { frequency_penalty: 0.06, ..off() }, vec![count(0, 2)], vec![], 2),
        (Sampling { frequency_penalty: 0.04, ..off() }, vec![count(0, 2)], vec![], 0),
        (Sampling { bias: vec![(TokenId(1), 3.1)], ..off() }, vec![], vec![], 1),
        (off(), vec![], vec![0, 2], 3),
    ];
    let sum = log_sum(logits.iter().map(|&l| f64::from(l)));
    for (sampling, counts, banned, expected) in table {
        for temperature in [0.0, 1e-4] {
            let sampling = Sampling { temperature, ..sampling.clone() };
            let mut sampler = TextSampler::new(4, &[15], None).unwrap();
            let mut row = row(sampling);
            (row.counts, row.banned) = (counts.clone(), banned.iter().map(|&t| TokenId(t)).collect());
            let outcome = sampler.sample(&logits, &row);
            assert_eq!(outcome.token, TokenId(expected), "{row:?}");
            let own = f64::from(logits[expected as usize]) - sum;
            assert!((f64::from(outcome.logprob) - own).abs() < 1e-6);
        }
    }
}

#[test]
fn greedy_ties_likeliest_tokens_and_targets() {
    let vocab = 300;
    let mut logits = vec![0.0f32; vocab];
    for t in [70, 130, 200] {
        logits[t] = 5.0;
    }
    logits[299] = 6.0;
    let mut sampler = TextSampler::new(vocab, &mask(vocab, |t| t < 299), Some(TokenId(299))).unwrap();
    let mut row = row(greedy());
    row.top_logprobs = 3;
    let outcome = sampler.sample(&logits, &row);
    assert_eq!(outcome.token, TokenId(70));
    // The likeliest are the model's, allowed here or not.
    assert_eq!(outcome.top.iter().map(|t| t.0.0).collect::<Vec<_>>(), [299, 70, 130]);
    let sum = log_sum(logits.iter().map(|&l| f64::from(l)));
    assert!(
        outcome.top.iter().all(|t| (f64::from(t.1) - (f64::from(logits[t.0.index()]) - sum)).abs() < 1e-5)
    );
    row.allow_open = true;
    assert_eq!(sampler.sample(&logits, &row).token, TokenId(299));
    row.target = Some(TokenId(3));
    let outcome = sampler.sample(&logits, &row);
    assert_eq!(outcome.token, TokenId(3));
    assert!((f64::from(outcome.logprob) + sum).abs() < 1e-5);
    row.target = Some(TokenId(300));
    assert!(sampler.sample(&logits, &row).fault);
}

#[test]
fn no_token_outside_of_the_mask_whatever_the_row_holds() {
    let mut dice = Dice(13);
    let (mut faults, mut opened) = (0, 0);
    let hostile = [f32::INFINITY, f32::NEG_INFINITY, 1e30, -1e30, f32::MAX, f32::MIN, 0.0, -0.0, 1e-40, 3.0];
    for at in 0..20_000 {
        let vocab = 1 + dice.below(200);
        let kept = 1 + dice.below(6);
        let some: Vec<bool> = (0..vocab).map(|_| dice.once_in(kept)).collect();
        let opener = dice.below(vocab);
        let mut allowed = some.clone();
        allowed[opener] = false;
        let mut sampler =
            TextSampler::new(vocab, &mask(vocab, |t| allowed[t]), Some(TokenId(opener as u32))).unwrap();
        let mut logits = logits(vocab, &mut dice);
        for _ in 0..dice.below(vocab + 1) {
            logits[dice.below(vocab)] = hostile[dice.below(hostile.len())];
        }
        let nan = at % 10 == 0;
        if nan {
            logits[dice.below(vocab)] = f32::NAN;
        }
        let any = |dice: &mut Dice| TokenId(dice.below(vocab) as u32);
        let mut row = row(Sampling {
            temperature: [0.0, 1e-4, 1.0, 100.0][dice.below(4)],
            top_k: [0, 1, 5][dice.below(3)],
            top_p: [1.0, 0.5, 1e-9][dice.below(3)],
            min_p: [0.0, 0.1, 1.0][dice.below(3)],
            repetition_penalty: [1.0, 1.3, 1e-30, 1e30][dice.below(4)],
            presence_penalty: [0.0, 2.0, -1e38][dice.below(3)],
            frequency_penalty: [0.0, -2.0, f32::MAX][dice.below(3)],
            bias: if dice.once_in(2) {
                vec![(any(&mut dice), 1e38), (any(&mut dice), -100.0)]
            } else {
                vec![]
            },
            seed: dice.next(),
        });
        row.allow_open = dice.once_in(2);
        row.banned = if dice.once_in(2) { vec![any(&mut dice)] } else { vec![] };
        row.counts = vec![TokenCount { token: any(&mut dice), answer: dice.below(3) as u32 }];
        row.top_logprobs = dice.below(4) as u32;
        row.draw = at;
        allowed[opener] = row.allow_open;
        row.banned.iter().for_each(|t| allowed[t.index()] = false);
        let outcome = sampler.sample(&logits, &row);
        if outcome.fault {
            let hope =
                |t: usize| allowed[t] && logits[t] > f32::NEG_INFINITY && row.counts[0].token.index() != t;
            assert!(nan || !(0..vocab).any(|t| hope(t) && logits[t] > -1e38), "{row:?} {logits:?}");
            faults += 1;
            continue;
        }
        assert!(!nan, "a NaN went unnoticed");
        assert!(allowed[outcome.token.index()], "{outcome:?} for {row:?}");
        assert!(outcome.top.len() <= row.top_logprobs as usize && !outcome.logprob.is_nan());
        opened += usize::from(outcome.token.index() == opener);
    }
    assert!(faults > 2000 && faults < 8000 && opened > 200, "{faults} {opened}");
}

#[test]
fn a_draw_depends_on_seed_and_place_and_nothing_else() {
    let mut dice = Dice(14);
    let vocab = 500;
    let mut sampler = TextSampler::new(vocab, &mask(vocab, |_| true), None).unwrap();
    let rows: Vec<Vec<f32>> = (0..50).map(|_| logits(vocab, &mut dice)).collect();
    let at = |draw, seed| TextRow { draw, ..row(Sampling { seed, ..Sampling::default() }) };
    let first: Vec<_> = rows.iter().map(|logits| sampler.sample(logits, &at(3, 9))).collect();
    let mut fresh = TextSampler::new(vocab, &mask(vocab, |_| true), None).unwrap();
    for (logits, expected) in rows.iter().zip(&first).rev() {
        assert_eq!(&fresh.sample(logits, &at(3, 9)), expected);
    }
    let others = |draw, seed| {
        let mut fresh = sampler.clone();
        rows.iter().zip(&first).filter(|(l, f)| fresh.sample(l, &at(draw, seed)).token != f.token).count()
    };
    assert!(others(4, 9) > 40 && others(3, 10) > 40);
}
