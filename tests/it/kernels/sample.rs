//! Text sampling on a device against the CPU's sampler: the same tokens, log-probabilities to rounding.

use std::sync::Arc;

use super::{drivers, drivers_in_every_order};
use crate::beams::oracle::Dice;
use crate::beams::text::{greedy, row};
use sidereal::device::cpu::sample::TextSampler;
use sidereal::device::cuda::args::StepCounts;
use sidereal::device::cuda::driver::{DevicePtr, Driver};
use sidereal::device::cuda::sample::{MAX_TOP, TextInputs, TextSamplerCuda, TextSizes};
use sidereal::device::ops::{Sampling, TextOutcome, TextRow, TokenCount, every_token};
use sidereal::ids::TokenId;

/// Logits and what to do with them.
type Case = (Vec<f32>, TextRow);

/// Who may be chosen.
#[derive(Clone)]
struct Text {
    vocab: usize,
    mask: Vec<u64>,
    opener: Option<TokenId>,
}

impl Text {
    fn all(vocab: usize) -> Text {
        Text { vocab, mask: every_token(vocab), opener: None }
    }

    /// Without every `n`-th token and a whole stretch; the opener is outside.
    fn some(vocab: usize, n: usize) -> Text {
        let mut mask = every_token(vocab);
        let outside = |t: usize| t % n == n - 1 || (vocab > 1000 && (700..900).contains(&t));
        (0..vocab).filter(|&t| outside(t)).for_each(|t| mask[t / 64] &= !(1 << (t % 64)));
        Text { vocab, mask, opener: (vocab >= n).then_some(TokenId(n as u32 - 1)) }
    }

    fn cpu(&self) -> TextSampler {
        TextSampler::new(self.vocab, &self.mask, self.opener).unwrap()
    }
}

/// A device's sampler with a plan buffer of its own.
struct Bench<'a> {
    driver: &'a mut dyn Driver,
    sampler: TextSamplerCuda,
    max_rows: usize,
    max_edits: usize,
}

impl<'a> Bench<'a> {
    fn new(driver: &'a mut dyn Driver, text: &Text, max_rows: usize, max_edits: usize) -> Bench<'a> {
        let sizes = TextSizes {
            vocab: text.vocab,
            text_tokens: &text.mask,
            opener: text.opener,
            max_rows,
            max_edits,
        };
        let sampler = TextSamplerCuda::new(driver, &sizes).unwrap();
        Bench { driver, sampler, max_rows, max_edits }
    }

    /// Runs a step with the cases as text rows, whose logits lie `gap` elements of NaN apart. `bucket` rows are launched.
    fn run(&mut self, cases: &[Case], gap: usize, bucket: usize) -> Vec<TextOutcome> {
        let vocab = cases[0].0.len();
        let stride = vocab + gap;
        let rows: Vec<TextRow> = cases.iter().map(|case| case.1.clone()).collect();
        self.sampler.plan(&rows, |i| (gap + i * stride) as u64).unwrap();
        // The last row ends with the buffer.
        let mut logits = vec![f32::NAN; cases.len() * stride];
        for (i, case) in cases.iter().enumerate() {
            logits[gap + i * stride..][..vocab].copy_from_slice(&case.0);
        }
        let counts = StepCounts { text_rows: cases.len() as u32, ..StepCounts::default() };
        let sizes =
            [logits.len() * 4, self.max_rows * 80, (self.max_edits * 8).max(16), size_of::<StepCounts>()];
        let at = self.driver.allocate("sample test", &sizes).unwrap();
        self.driver.upload(at[0], bytemuck::cast_slice(&logits)).unwrap();
        let (records, edits) = (self.sampler.records().to_vec(), self.sampler.edits().to_vec());
        self.upload(at[1], bytemuck::cast_slice(&records));
        self.upload(at[2], bytemuck::cast_slice(&edits));
        self.upload(at[3], bytemuck::bytes_of(&counts));
        let inputs = TextInputs {
            logits: at[0],
            logits_len: logits.len(),
            records: at[1],
            edits: at[2],
            counts: at[3],
        };
        self.sampler.enqueue(self.driver, &inputs, bucket as u32).unwrap();
        let (from, bytes) = self.sampler.results();
        let bytes = self.driver.download(from, bytes).unwrap();
        self.driver.free(at[0]).unwrap();
        TextSamplerCuda::outcome(cases.len(), &bytes).unwrap()
    }

    fn upload(&mut self, to: DevicePtr, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.driver.upload(to, bytes).unwrap();
        }
    }
}

fn close(a: f32, b: f32) -> bool {
    a == b || (a - b).abs() <= 4e-6 * (1.0 + a.abs().max(b.abs()))
}

/// The same choice; log-probabilities to rounding.
fn assert_same(found: &TextOutcome, expected: &TextOutcome, what: &dyn Fn() -> String) {
    assert_eq!(found.fault, expected.fault, "fault: {}", what());
    if expected.fault {
        return;
    }
    assert_eq!(found.token, expected.token, "token: {}", what());
    assert!(close(found.logprob, expected.logprob), "{} {}: {}", found.logprob, expected.logprob, what());
    let tokens = |outcome: &TextOutcome| outcome.top.iter().map(|t| t.0).collect::<Vec<_>>();
    assert_eq!(tokens(found), tokens(expected), "likeliest: {}", what());
    for (found, expected) in found.top.iter().zip(&expected.top) {
        assert!(close(found.1, expected.1), "{found:?} {expected:?}: {}", what());
    }
}

/// Runs the cases as one batch and compares each with the CPU's.
fn check(driver: &mut dyn Driver, text: &Text, cases: &[Case]) -> Vec<TextOutcome> {
    let edits = cases.iter().map(|c| c.1.counts.len() + c.1.banned.len() + c.1.sampling.bias.len()).sum();
    let mut bench = Bench::new(driver, text, cases.len(), edits);
    let found = bench.run(cases, text.vocab % 3, cases.len());
    let mut cpu = text.cpu();
    for (i, (case, found)) in cases.iter().zip(&found).enumerate() {
        let expected = cpu.sample(&case.0, &case.1);
        assert_same(found, &expected, &|| format!("case {i} of vocabulary {}: {:?}", text.vocab, case.1));
    }
    found
}

/// Logits of several kinds: flat, peaked, equal, of few values, wild.
fn logits(kind: usize, vocab: usize, dice: &mut Dice) -> Vec<f32> {
    let smooth = |dice: &mut Dice, scale: f32| {
        let mut sum = 0.0;
        for _ in 0..4 {
            sum += dice.below(1 << 20) as f32 / (1 << 20) as f32 - 0.5;
        }
        sum * scale
    };
    let wild = [f32::INFINITY, f32::NEG_INFINITY, 1e30, -1e30, f32::MAX, f32::MIN, 0.0, -0.0, 1e-40, 3.0];
    let mut row: Vec<f32> = match kind % 6 {
        0 => (0..vocab).map(|_| smooth(dice, 1.0)).collect(),
        1 => (0..vocab).map(|_| smooth(dice, 8.0)).collect(),
        2 => (0..vocab).map(|_| smooth(dice, 30.0)).collect(),
        3 => vec![-1.25; vocab],
        4 => (0..vocab).map(|_| dice.below(4) as f32).collect(),
        _ => (0..vocab).map(|_| smooth(dice, 4.0)).collect(),
    };
    if kind % 6 == 5 {
        for _ in 0..1 + dice.below(vocab.min(30)) {
            row[dice.below(vocab)] = wild[dice.below(wild.len())];
        }
    }
    row
}

/// Every parameter alone and several together.
fn settings() -> Vec<Sampling> {
    let plain = Sampling::default;
    vec![
        plain(),
        greedy(),
        Sampling { temperature: 0.07, ..plain() },
        Sampling { temperature: 3.0, ..plain() },
        Sampling { top_k: 1, ..plain() },
        Sampling { top_k: 7, ..plain() },
        Sampling { top_k: 5000, temperature: 2.0, ..plain() },
        Sampling { top_p: 0.6, ..plain() },
        Sampling { top_p: 0.999, temperature: 2.0, ..plain() },
        Sampling { top_p: 1e-9, ..plain() },
        Sampling { min_p: 0.15, ..plain() },
        Sampling { min_p: 1.0, ..plain() },
        Sampling { top_k: 20, top_p: 0.8, ..plain() },
        Sampling { temperature: 1.7, top_k: 300, top_p: 0.9, min_p: 0.02, ..plain() },
        Sampling { repetition_penalty: 1.4, presence_penalty: 0.6, frequency_penalty: 0.3, ..plain() },
        Sampling { repetition_penalty: 0.7, temperature: 0.0, ..plain() },
        Sampling { bias: vec![(TokenId(0), 2.0), (TokenId(60), -3.0)], top_p: 0.95, ..plain() },
    ]
}

/// Lists that a row may carry.
fn dress(row: &mut TextRow, vocab: usize, dice: &mut Dice) {
    let any = |dice: &mut Dice| TokenId(dice.below(vocab) as u32);
    if row.sampling.repetition_penalty != 1.0 {
        let mut tokens: Vec<TokenId> = (0..1 + dice.below(vocab.min(900))).map(|_| any(dice)).collect();
        tokens.sort();
        tokens.dedup();
        row.counts = tokens.iter().map(|&token| TokenCount { token, answer: dice.below(4) as u32 }).collect();
    }
    if dice.once_in(3) {
        row.banned = (0..1 + dice.below(3)).map(|_| any(dice)).collect();
    }
    row.allow_open = dice.once_in(2);
    row.top_logprobs = [0, 0, 1, 5, 20, MAX_TOP][dice.below(6)];
    row.target = dice.once_in(8).then(|| any(dice));
    row.draw = dice.next();
}

fn every_size(driver: &mut dyn Driver) {
    for vocab in [1, 2, 63, 64, 65, 128, 4400, 8192, 20_011] {
        let mut dice = Dice(vocab as u64);
        let kinds = if vocab > 8000 { 6 } else { 3 };
        for text in [Text::all(vocab), Text::some(vocab, 7)] {
            let mut cases = Vec::new();
            for (at, sampling) in settings().into_iter().enumerate() {
                for kind in 0..kinds {
                    let mut row = row(Sampling { seed: dice.next(), ..sampling.clone() });
                    dress(&mut row, vocab, &mut dice);
                    cases.push((logits(kind + at * kinds, vocab, &mut dice), row));
                }
            }
            check(driver, &text, &cases);
        }
    }
}

#[test]
fn every_parameter_alone_and_together_at_every_size() {
    drivers().iter_mut().for_each(|(_, driver)| every_size(&mut **driver));
}

fn hostile_rows(driver: &mut dyn Driver) {
    let mut dice = Dice(13);
    let mut faults = 0;
    for _ in 0..12 {
        let vocab = 1 + dice.below(200);
        let text = Text::some(vocab, 2 + dice.below(5));
        let mut cases = Vec::new();
        for at in 0..40 {
            let mut logits = logits(5, vocab, &mut dice);
            if at % 10 == 0 {
                logits[dice.below(vocab)] = f32::NAN;
            }
            let any = |dice: &mut Dice| TokenId(dice.below(vocab + 2) as u32);
            let bias = [
                vec![],
                vec![(any(&mut dice), 1e38), (any(&mut dice), -100.0)],
                vec![(any(&mut dice), f32::NEG_INFINITY), (any(&mut dice), f32::INFINITY)],
            ];
            let mut row = row(Sampling {
                temperature: [0.0, 1e-4, 1.0, 100.0][dice.below(4)],
                top_k: [0, 1, 5][dice.below(3)],
                top_p: [1.0, 0.5, 1e-9, -1.0][dice.below(4)],
                min_p: [0.0, 0.1, 1.0][dice.below(3)],
                repetition_penalty: [1.0, 1.3, 1e-30, 1e30][dice.below(4)],
                presence_penalty: [0.0, 2.0, -1e38][dice.below(3)],
                frequency_penalty: [0.0, -2.0, f32::MAX][dice.below(3)],
                bias: bias[dice.below(3)].clone(),
                seed: dice.next(),
            });
            row.allow_open = dice.once_in(2);
            row.banned = (0..dice.below(3)).map(|_| any(&mut dice)).collect();
            row.counts =
                (0..3).map(|_| TokenCount { token: any(&mut dice), answer: dice.below(3) as u32 }).collect();
            row.top_logprobs = dice.below(4) as u32;
            row.target = dice.once_in(9).then(|| any(&mut dice));
            row.draw = dice.next();
            cases.push((logits, row));
        }
        // Nothing is left to choose from.
        let mut none = row(Sampling::default());
        none.banned = (0..vocab as u32).map(TokenId).collect();
        cases.push((vec![0.5; vocab], none.clone()));
        none.sampling = Arc::new(greedy());
        cases.push((vec![0.5; vocab], none));
        cases.push((vec![f32::NEG_INFINITY; vocab], row(Sampling::default())));
        let found = check(driver, &text, &cases);
        assert!(found[found.len() - 3..].iter().all(|outcome| outcome.fault));
        faults += found.iter().filter(|outcome| outcome.fault).count();
    }
    assert!(faults > 80 && faults < 300, "{faults} faults");
}

#[test]
fn hostile_logits_and_parameters() {
    drivers().iter_mut().for_each(|(_, driver)| hostile_rows(&mut **driver));
}

/// Cases that reach each way through the kernels: lists that overflow, nuclei beyond the head, wide draws, ties that only the token decides.
fn ways(vocab: usize) -> Vec<Case> {
    let mut dice = Dice(77);
    let plain = Sampling::default;
    let table = [
        (0, plain()),
        (0, Sampling { top_p: 0.97, ..plain() }),
        (0, Sampling { top_p: 0.3, temperature: 5.0, ..plain() }),
        (0, Sampling { top_k: 6000, top_p: 0.5, ..plain() }),
        (1, Sampling { top_p: 0.5, ..plain() }),
        (1, Sampling { top_k: 50, ..plain() }),
        (2, Sampling { top_p: 0.95, top_k: 40, ..plain() }),
        (3, Sampling { top_p: 0.4, ..plain() }),
        (3, Sampling { top_k: 5000, ..plain() }),
        (3, plain()),
        (4, Sampling { top_p: 0.1, ..plain() }),
        (4, Sampling { top_p: 0.7, min_p: 0.3, ..plain() }),
        (4, greedy()),
        (1, Sampling { repetition_penalty: 1.2, top_p: 0.9, ..plain() }),
        (0, Sampling { repetition_penalty: 0.2, top_p: 0.98, ..plain() }),
        (0, Sampling { presence_penalty: -2.0, repetition_penalty: 1.1, ..plain() }),
    ];
    let mut cases = Vec::new();
    for (kind, sampling) in table {
        let mut row = row(Sampling { seed: dice.next(), ..sampling });
        dress(&mut row, vocab, &mut dice);
        (row.target, row.top_logprobs) = (None, row.top_logprobs.max(3));
        cases.push((logits(kind, vocab, &mut dice), row));
    }
    // The nucleus lies beyond the head, but not beyond what is edited.
    for top_p in [0.25, 0.3, 0.35] {
        let sampling = Sampling { top_p, repetition_penalty: 1.000_1, seed: dice.next(), ..plain() };
        let counts =
            (0..vocab as u32).filter(|t| t % 5 < 2).map(|t| TokenCount { token: TokenId(t), answer: 0 });
        cases.push((logits(0, vocab, &mut dice), TextRow { counts: counts.collect(), ..row(sampling) }));
    }
    cases
}

#[test]
fn every_order_of_threads_gives_the_same_bits() {
    let text = Text::some(20_011, 5);
    let cases = ways(text.vocab);
    let mut first: Option<Vec<TextOutcome>> = None;
    for (name, mut driver) in drivers_in_every_order() {
        let found = check(&mut *driver, &text, &cases);
        // A GPU's exponentials of the fast kind differ in the last place.
        if name.starts_with("emulated") {
            assert_eq!(&found, first.get_or_insert_with(|| found.clone()), "{name}");
        }
    }
}

fn alone_and_in_a_batch(driver: &mut dyn Driver) {
    let text = Text::some(9_001, 3);
    let cases = ways(text.vocab);
    let mut bench = Bench::new(driver, &text, cases.len() + 3, 40_000);
    let batch = bench.run(&cases, 0, cases.len() + 3);
    assert_eq!(batch, bench.run(&cases, 0, cases.len()), "the same step again");
    let reversed: Vec<Case> = cases.iter().rev().cloned().collect();
    let mut turned = bench.run(&reversed, 1, cases.len());
    turned.reverse();
    assert_eq!(batch, turned, "in another order, at other addresses");
    for at in [0, 1, 3, 7, 13] {
        assert_eq!(bench.run(&cases[at..=at], 4, 1)[0], batch[at], "row {at} alone");
    }
}

#[test]
fn a_row_alone_is_the_row_in_a_batch() {
    drivers().iter_mut().for_each(|(_, driver)| alone_and_in_a_batch(&mut **driver));
}

/// Records of which some words, or all, are random.
fn spoil(words: &mut [u32], all: bool, dice: &mut Dice) {
    let word = |dice: &mut Dice| [dice.next() as u32, u32::MAX, dice.below(200) as u32, 0][dice.below(4)];
    if all {
        words.iter_mut().for_each(|place| *place = word(dice));
        return;
    }
    for _ in 0..1 + dice.below(6) {
        words[dice.below(words.len())] = word(dice);
    }
}

fn hostile_records(driver: &mut dyn Driver) {
    let text = Text::some(4_400, 7);
    let (max_rows, max_edits) = (6, 100);
    let mut bench = Bench::new(driver, &text, max_rows, max_edits);
    let good = ways(text.vocab);
    let mut dice = Dice(5);
    let logits_len = text.vocab * max_rows;
    let sizes = [logits_len * 4, max_rows * 80, max_edits * 8, 32];
    let at = bench.driver.allocate("hostile records", &sizes).unwrap();
    let logits: Vec<f32> = (0..logits_len).map(|_| dice.below(1000) as f32 * 0.01).collect();
    bench.driver.upload(at[0], bytemuck::cast_slice(&logits)).unwrap();
    for round in 0..20 {
        let rows: Vec<TextRow> =
            good[..max_rows].iter().map(|c| TextRow { counts: vec![], ..c.1.clone() }).collect();
        bench.sampler.plan(&rows, |i| (i * text.vocab) as u64).unwrap();
        let mut words: Vec<u32> = bytemuck::cast_slice(bench.sampler.records()).to_vec();
        spoil(&mut words, round % 4 == 0, &mut dice);
        if round % 4 == 1 {
            // More likeliest tokens than there are, into the last entry of the results.
            let last = max_rows as u32 * (1 + MAX_TOP / 2) - 1;
            words.chunks_mut(20).for_each(|record| (record[18], record[19]) = (u32::MAX, last));
        }
        let edits: Vec<u32> =
            (0..max_edits * 2).map(|_| dice.next() as u32 >> (dice.below(3) * 14)).collect();
        let mut counts = [dice.next() as u32; 8];
        counts[4] = [max_rows as u32, u32::MAX, 3][dice.below(3)];
        bench.upload(at[1], bytemuck::cast_slice(&words));
        bench.upload(at[2], bytemuck::cast_slice(&edits));
        bench.upload(at[3], bytemuck::cast_slice(&counts));
        let inputs = TextInputs { logits: at[0], logits_len, records: at[1], edits: at[2], counts: at[3] };
        bench.sampler.enqueue(bench.driver, &inputs, max_rows as u32).unwrap();
        bench.driver.synchronize().unwrap();
    }
    // What the records left behind spoils no later step.
    let mut cpu = text.cpu();
    let cases: Vec<Case> = good[..max_rows].iter().filter(|c| c.1.counts.is_empty()).cloned().collect();
    for (found, case) in bench.run(&cases, 0, max_rows).iter().zip(&cases) {
        assert_same(found, &cpu.sample(&case.0, &case.1), &|| format!("{:?}", case.1));
    }
}

#[test]
fn hostile_records_fault_nothing() {
    drivers().iter_mut().for_each(|(_, driver)| hostile_records(&mut **driver));
}

fn limits(driver: &mut dyn Driver) {
    let text = Text::all(100);
    let mut bench = Bench::new(driver, &text, 2, 3);
    let fine = row(Sampling::default());
    let many = TextRow { top_logprobs: MAX_TOP + 1, ..fine.clone() };
    assert!(bench.sampler.plan(&[many], |_| 0).is_err());
    let banned = |n: u32| TextRow { banned: (0..n).map(TokenId).collect(), ..fine.clone() };
    bench.sampler.plan(&[banned(3)], |_| 0).unwrap();
    assert!(!bench.sampler.reserve(bench.driver).unwrap(), "three edits fit");
    // More edits, or more rows than a launch takes with their results: room is made once.
    bench.sampler.plan(&[banned(2), banned(2)], |_| 0).unwrap();
    assert!(bench.sampler.reserve(bench.driver).unwrap(), "four edits do not");
    assert!(!bench.sampler.reserve(bench.driver).unwrap(), "and then they do");
    let rows = vec![TextRow { top_logprobs: MAX_TOP, ..fine }; 5];
    bench.sampler.plan(&rows, |_| 0).unwrap();
    assert!(bench.sampler.reserve(bench.driver).unwrap(), "results of five rows do not fit");
}

#[test]
fn room_is_made_for_what_does_not_fit() {
    drivers().iter_mut().for_each(|(_, driver)| limits(&mut **driver));
}
