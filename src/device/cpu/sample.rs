//! Text sampling: one row of logits over the vocabulary, one token.
//!
//! In this order, with vLLM's definitions: repetition penalty (positive logits divided, others multiplied; tokens of prompt and answer),
//! frequency and presence penalties (answer), bias, bans, mask; division by the temperature; top-k (the `k`-th largest value and all equal
//! to it); top-p (the smallest set of the largest, equal ones by smaller id, that reaches `p` of what top-k left); min-p (at least
//! `min_p` times the largest probability). Temperatures below 1e-5 are greedy: the largest, the smallest id among equals.
//!
//! A draw is the largest `z[t] + g[t]` over the tokens that are left, with Gumbel noise `g[t]` that is a function of seed, draw and token
//! (`device::random`); equal sums go to the smaller id. Unlike a walk along cumulative probabilities it depends on no order of summation,
//! so that any device repeats it; and since noise is below [`GUMBEL_MAX`], blocks far below the best need none.
//!
//! Masks select: a token outside of the mask is never looked at, whatever its logit or bias. A logit of plus infinity counts as the
//! largest number, minus infinity cannot be chosen.

use std::sync::Arc;

use super::logsum::{log_probability, log_sum_exp};
use crate::device::elementary::{exp, ln};
use crate::device::ops::{Sampling, TextOutcome, TextRow};
use crate::device::random::{GUMBEL_MAX, Noise, TEXT};
use crate::error::{Error, Result};
use crate::ids::TokenId;

/// Tokens of a word of the mask, and of a block of noise.
const BLOCK: usize = 64;
/// Lower temperatures are greedy.
pub(in crate::device) const GREEDY: f32 = 1e-5;

/// Bins of values for top-p: 64 to a unit, down to -32.
const BINS: usize = 2048;

/// Samples text tokens; keeps the memory for it. Cheap to clone for another thread.
#[derive(Clone, Debug)]
pub struct TextSampler {
    vocab: usize,
    /// One bit per token that text may contain.
    allowed: Arc<[u64]>,
    opener: Option<TokenId>,
    /// `[vocab]` the row after penalties, bias and masks, then scaled.
    scaled: Vec<f32>,
    sorted: Vec<(f32, u32)>,
    largest: Vec<f32>,
    bins: Vec<f64>,
}

/// The tokens that top-k, top-p and min-p leave: above a value, or equal to it up to a token.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Cut {
    value: f32,
    last: u32,
}

impl TextSampler {
    /// A sampler of rows of `vocab` logits.
    ///
    /// `text_tokens` has a bit for each token that text may contain, 64 to a word; `opener` is allowed where a row says so.
    ///
    /// # Errors
    /// If the mask has another number of words than the vocabulary needs, a bit beyond its end, or the opener lies outside.
    pub fn new(vocab: usize, text_tokens: &[u64], opener: Option<TokenId>) -> Result<TextSampler> {
        let words = vocab.div_ceil(BLOCK);
        if text_tokens.len() != words {
            let found = text_tokens.len();
            return Err(Error::Device(format!("a text mask of {found} words, {vocab} tokens need {words}")));
        }
        let beyond = vocab % BLOCK;
        if let Some(last) = text_tokens.last()
            && beyond != 0
            && last >> beyond != 0
        {
            return Err(Error::Device(format!(
                "a text mask with tokens beyond the {vocab} of the vocabulary"
            )));
        }
        if let Some(opener) = opener
            && opener.index() >= vocab
        {
            return Err(Error::Device(format!("opener {opener}, but the vocabulary has {vocab} tokens")));
        }
        Ok(TextSampler {
            vocab,
            allowed: text_tokens.into(),
            opener,
            scaled: Vec::with_capacity(vocab),
            sorted: Vec::new(),
            largest: Vec::new(),
            bins: Vec::with_capacity(BINS),
        })
    }

    /// Chooses a token for `row` from `logits` (`[vocab]`), or scores the row's target.
    ///
    /// A fault is reported if the row holds a NaN, nothing allowed is above minus infinity, or the target is not in the vocabulary.
    ///
    /// # Panics
    /// If `logits` does not have the length of the vocabulary.
    pub fn sample(&mut self, logits: &[f32], row: &TextRow) -> TextOutcome {
        assert_eq!(logits.len(), self.vocab, "logits of a row");
        self.try_sample(logits, row).unwrap_or(TextOutcome { fault: true, ..TextOutcome::default() })
    }

    /// `None`: a fault.
    fn try_sample(&mut self, logits: &[f32], row: &TextRow) -> Option<TextOutcome> {
        let sum = log_sum_exp(logits)?;
        let token = match row.target {
            Some(target) => target.0,
            None => self.choose(logits, row)?,
        };
        let logit = *logits.get(token as usize)?;
        let top = self.top(logits, row.top_logprobs as usize, sum);
        Some(TextOutcome { token: TokenId(token), logprob: log_probability(logit, sum), top, fault: false })
    }

    fn choose(&mut self, logits: &[f32], row: &TextRow) -> Option<u32> {
        let sampling = &*row.sampling;
        let opener = self.opener.filter(|_| row.allow_open);
        let greedy = sampling.temperature < GREEDY;
        if greedy && row.counts.is_empty() && sampling.bias.is_empty() && row.banned.is_empty() {
            return largest_allowed(logits, &self.allowed, opener);
        }
        self.scaled.clear();
        self.scaled.extend_from_slice(logits);
        adjust(&mut self.scaled, row);
        if greedy {
            return largest_allowed(&self.scaled, &self.allowed, opener);
        }
        hide(&mut self.scaled, &self.allowed, opener);
        scale(&mut self.scaled, sampling.temperature)?;
        let cut = self.cut(sampling);
        draw(&self.scaled, cut, &Noise::new(sampling.seed, row.draw, TEXT))
    }

    /// What top-k, top-p and min-p leave of the scaled row, whose largest value is 0.
    fn cut(&mut self, sampling: &Sampling) -> Cut {
        let mut cut = Cut { value: f32::MIN, last: u32::MAX };
        let k = sampling.top_k as usize;
        if k > 0 && k < self.vocab {
            cut.value = kth_largest(&self.scaled, k, &mut self.largest).max(f32::MIN);
        }
        if sampling.top_p < 1.0 {
            cut = self.nucleus(cut, f64::from(sampling.top_p));
        }
        if sampling.min_p > 0.0 {
            let least = ln(sampling.min_p.clamp(f32::MIN_POSITIVE, 1.0));
            if least > cut.value {
                cut = Cut { value: least, last: u32::MAX };
            }
        }
        cut
    }

    /// The smallest set of the largest that reaches `p` of the mass from `cut` up.
    ///
    /// Sorting a vocabulary would cost more than everything else here: masses are summed in bins of descending value, and only the bin
    /// in which the sum reaches its goal is sorted.
    fn nucleus(&mut self, cut: Cut, p: f64) -> Cut {
        self.bins.clear();
        self.bins.resize(BINS, 0.0);
        for values in self.scaled.chunks(BLOCK).filter(|values| largest_of(values) >= cut.value) {
            for &value in values.iter().filter(|value| **value >= cut.value) {
                self.bins[bin(value)] += f64::from(exp(value));
            }
        }
        let goal = p * self.bins.iter().sum::<f64>();
        let mut before = 0.0;
        let mut edge = 0;
        while edge + 1 < BINS && before + self.bins[edge] < goal {
            before += self.bins[edge];
            edge += 1;
        }
        self.sorted.clear();
        for (block, values) in self.scaled.chunks(BLOCK).enumerate() {
            if largest_of(values) >= cut.value {
                let inside = |value: f32| value >= cut.value && bin(value) == edge;
                let places = values.iter().enumerate().filter(|(_, value)| inside(**value));
                self.sorted.extend(places.map(|(i, &value)| (value, (block * BLOCK + i) as u32)));
            }
        }
        sort_descending(&mut self.sorted);
        let mass = |&(value, _): &(f32, u32)| f64::from(exp(value));
        let last = self.sorted.iter().find(|entry| {
            before += mass(entry);
            before >= goal
        });
        // Another order of summation may miss the goal by a rounding: then the whole bin is in.
        last.or(self.sorted.last()).map_or(cut, |&(value, last)| Cut { value, last })
    }

    /// The likeliest tokens by the model's own logits.
    fn top(&mut self, logits: &[f32], count: usize, sum: f32) -> Vec<(TokenId, f32)> {
        if count == 0 {
            return Vec::new();
        }
        let least = kth_largest(logits, count, &mut self.largest).max(f32::MIN);
        sort_largest(logits, least, &mut self.sorted);
        self.sorted.truncate(count);
        self.sorted.iter().map(|&(z, token)| (TokenId(token), log_probability(z, sum))).collect()
    }
}

/// Penalties, bias and bans.
fn adjust(logits: &mut [f32], row: &TextRow) {
    let sampling = &*row.sampling;
    for count in &row.counts {
        let Some(logit) = logits.get_mut(count.token.index()) else { continue };
        let repetition = sampling.repetition_penalty;
        *logit = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
        if count.answer > 0 {
            *logit -= sampling.frequency_penalty * count.answer as f32;
            *logit -= sampling.presence_penalty;
        }
        *logit = defined(*logit);
    }
    for &(token, bias) in &sampling.bias {
        if let Some(logit) = logits.get_mut(token.index()) {
            *logit = defined(*logit + bias);
        }
    }
    for token in &row.banned {
        if let Some(logit) = logits.get_mut(token.index()) {
            *logit = f32::NEG_INFINITY;
        }
    }
}

/// What hostile penalties and biases make of a logit must not be a NaN.
fn defined(logit: f32) -> f32 {
    if logit.is_nan() { f32::NEG_INFINITY } else { logit }
}

/// The mask's word of a block, opener included.
#[inline(always)]
fn word(allowed: &[u64], opener: Option<TokenId>, block: usize) -> u64 {
    let open = opener.filter(|opener| opener.index() / BLOCK == block);
    allowed[block] | open.map_or(0, |opener| 1 << (opener.index() % BLOCK))
}

/// Minus infinity for every token that is not allowed.
fn hide(logits: &mut [f32], allowed: &[u64], opener: Option<TokenId>) {
    for (block, logits) in logits.chunks_mut(BLOCK).enumerate() {
        match word(allowed, opener, block) {
            u64::MAX => {}
            0 => logits.fill(f32::NEG_INFINITY),
            bits => {
                for (i, logit) in logits.iter_mut().enumerate() {
                    *logit = if bits >> i & 1 == 1 { *logit } else { f32::NEG_INFINITY };
                }
            }
        }
    }
}

/// `(logit - max) / temperature`; `None` if everything is minus infinity.
fn scale(logits: &mut [f32], temperature: f32) -> Option<()> {
    let max = logits.chunks(BLOCK).map(largest_of).fold(f32::NEG_INFINITY, f32::max).min(f32::MAX);
    if max == f32::NEG_INFINITY {
        return None;
    }
    for logit in logits.iter_mut() {
        *logit = (logit.min(f32::MAX) - max) / temperature;
    }
    Some(())
}

/// The largest of up to a block of values, none of which is NaN.
#[inline(always)]
fn largest_of(values: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    if let Ok(values) = <&[f32; BLOCK]>::try_from(values) {
        let mut max = [f32::NEG_INFINITY; 16];
        for part in values.chunks_exact(16) {
            for lane in 0..16 {
                max[lane] = larger(part[lane], max[lane]);
            }
        }
        return max.into_iter().fold(f32::NEG_INFINITY, larger);
    }
    values.iter().fold(f32::NEG_INFINITY, |max, &value| larger(value, max))
}

/// The allowed token with the largest logit above minus infinity; the smallest id among equals.
fn largest_allowed(logits: &[f32], allowed: &[u64], opener: Option<TokenId>) -> Option<u32> {
    let mut best = f32::NEG_INFINITY;
    let mut found = None;
    for (block, values) in logits.chunks(BLOCK).enumerate() {
        let bits = word(allowed, opener, block);
        if bits == 0 || largest_of(values) <= best {
            continue;
        }
        for (i, &value) in values.iter().enumerate() {
            if bits >> i & 1 == 1 && value > best {
                best = value;
                found = Some((block * BLOCK + i) as u32);
            }
        }
    }
    found
}

/// The `k`-th largest value (`k` from 1), or minus infinity if no more than `k` values are above it.
fn kth_largest(values: &[f32], k: usize, buffer: &mut Vec<f32>) -> f32 {
    buffer.clear();
    let descending = |a: &f32, b: &f32| b.total_cmp(a);
    let room = 2 * k + 256;
    let mut least = f32::NEG_INFINITY;
    for block in values.chunks(BLOCK) {
        if largest_of(block) <= least {
            continue;
        }
        for &value in block {
            if value > least {
                buffer.push(value);
            }
        }
        if buffer.len() >= room {
            least = *buffer.select_nth_unstable_by(k - 1, descending).1;
            buffer.truncate(k);
        }
    }
    match buffer.len() > k {
        true => *buffer.select_nth_unstable_by(k - 1, descending).1,
        false => least,
    }
}

/// The values from `least` up with their places, largest first, equal ones by place.
fn sort_largest(values: &[f32], least: f32, sorted: &mut Vec<(f32, u32)>) {
    sorted.clear();
    for (block, values) in values.chunks(BLOCK).enumerate() {
        if largest_of(values) >= least {
            let first = block * BLOCK;
            let places = values.iter().enumerate().filter(|(_, value)| **value >= least);
            sorted.extend(places.map(|(i, &value)| (value, (first + i) as u32)));
        }
    }
    sort_descending(sorted);
}

/// Largest first, equal ones by place.
fn sort_descending(sorted: &mut [(f32, u32)]) {
    // `+ 0.0` makes one zero of both, which compare equal.
    sorted.sort_unstable_by(|a, b| (b.0 + 0.0).total_cmp(&(a.0 + 0.0)).then(a.1.cmp(&b.1)));
}

/// The bin of a value from 0 down; larger values have smaller bins. The last one holds the rest, whose mass is below 1e-13 each.
#[inline(always)]
fn bin(value: f32) -> usize {
    ((value * -64.0) as usize).min(BINS - 1)
}

/// The token with the largest value plus noise among those the cut leaves.
fn draw(values: &[f32], cut: Cut, noise: &Noise) -> Option<u32> {
    let mut best = f32::NEG_INFINITY;
    let mut found = None;
    let mut gumbel = [0.0; BLOCK];
    for (block, values) in values.chunks(BLOCK).enumerate() {
        let max = largest_of(values);
        if max < cut.value || max + GUMBEL_MAX <= best {
            continue;
        }
        noise.gumbel_block(block as u32, &mut gumbel);
        for (i, (&value, &gumbel)) in values.iter().zip(&gumbel).enumerate() {
            let token = (block * BLOCK + i) as u32;
            let left = value > cut.value || (value == cut.value && token <= cut.last);
            if left && value + gumbel > best {
                best = value + gumbel;
                found = Some(token);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kth_largest_is_what_a_sort_says() {
        let mut state = 3u32;
        let mut random = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 16
        };
        let mut buffer = Vec::new();
        for case in 0..300 {
            let values: Vec<f32> = (0..1 + random() % 3000)
                .map(|_| if random() % 5 == 0 { f32::NEG_INFINITY } else { (random() % (1 + case)) as f32 })
                .collect();
            let mut sorted: Vec<f32> = values.iter().copied().filter(|v| v.is_finite()).collect();
            sorted.sort_by(|a, b| b.total_cmp(a));
            for k in [1, 2, 17, 64, 1000] {
                let found = kth_largest(&values, k, &mut buffer);
                match sorted.len() > k {
                    true => assert_eq!(found, sorted[k - 1], "case {case}, k {k}"),
                    false => assert!(
                        found == f32::NEG_INFINITY || sorted.last() == Some(&found),
                        "case {case}, k {k}"
                    ),
                }
            }
        }
    }

    #[test]
    fn masks_of_the_wrong_size_are_refused() {
        assert!(TextSampler::new(65, &[1], None).is_err());
        assert!(TextSampler::new(65, &[1, 2], None).is_err());
        assert!(TextSampler::new(65, &[1, 1], Some(TokenId(65))).is_err());
        assert!(TextSampler::new(65, &[1, 1], Some(TokenId(64))).is_ok());
    }
}
