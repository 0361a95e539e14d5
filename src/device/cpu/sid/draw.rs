//! Alive children as a list: what the normaliser `valid` and drawing without replacement need before they can score a single child.
//!
//! Drawing is stochastic beam search (Kool, van Hoof, Welling: "Stochastic beams and where to find them", 2019). Each path has a
//! log-probability `phi` and a perturbed one `G`, distributed as `phi` plus Gumbel noise; the best `W` by `G` are `W` draws without
//! replacement. Children draw `G` from fresh noise on the condition that the largest of them equals the parent's:
//! with `Z` the largest, `G' = -ln(exp(-G_parent) - exp(-Z) + exp(-G))`, in the form that neither overflows nor cancels.
//!
//! The noise of a child is a function of seed, draw, group, type, level and the first SID below it (the snapshot's if the snapshot has
//! the child, alive or not). What else is in the batch, in the beam or in the list does not enter.

use super::pool::{Candidate, Pool};
use super::scan::{self, Nan, Parent, add};
use crate::device::cpu::logsum::{log_probability, log_sum_exp};
use crate::device::random::Noise;

/// Alive children of one parent, or at the first level of all requested types.
#[derive(Default)]
pub(super) struct Children {
    values: Vec<f32>,
    codes: Vec<u16>,
    entries: Vec<u32>,
    first_sids: Vec<u32>,
    /// Where the children of each parent begin.
    begins: Vec<usize>,
    scaled: Vec<f32>,
    perturbed: Vec<f32>,
    noise: Vec<f32>,
}

/// The perturbed score that a path hands down.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drawn {
    /// Log-probability under softmax(logits / temperature) over alive children.
    pub phi: f32,
    /// The same, perturbed.
    pub perturbed: f32,
}

impl Drawn {
    /// The empty path: certain, and the condition that its children meet.
    pub const ROOT: Drawn = Drawn { phi: 0.0, perturbed: 0.0 };
}

impl Children {
    /// Memory for `most` children.
    pub fn reserve(&mut self, most: usize, parents: usize) {
        self.values.reserve(most);
        self.codes.reserve(most);
        self.entries.reserve(most);
        self.first_sids.reserve(most);
        self.scaled.reserve(most);
        self.perturbed.reserve(most);
        self.noise.reserve(most);
        self.begins.reserve(parents);
    }

    pub fn clear(&mut self) {
        self.values.clear();
        self.codes.clear();
        self.entries.clear();
        self.first_sids.clear();
        self.begins.clear();
    }

    /// Appends the children of `parent` that are alive for the request.
    pub fn gather(&mut self, parent: &Parent<'_>) -> Result<(), Nan> {
        self.begins.push(self.values.len());
        let mut nan = false;
        let mut add = |code: u16, entry: u32, first_sid: u32| {
            let value = parent.logits[code as usize];
            nan |= value.is_nan();
            self.values.push(value);
            self.codes.push(code);
            self.entries.push(entry);
            self.first_sids.push(first_sid);
        };
        match &parent.beside {
            None => scan::for_each_child(parent, |child, entry| {
                if parent.rules.alive(&child.sids) {
                    add(child.code, entry, child.sids.start);
                }
            }),
            Some(beside) => beside.for_each_child(parent, |child| {
                if child.alive {
                    add(child.code, child.entry, child.first_sid);
                }
            }),
        }
        if nan { Err(Nan) } else { Ok(()) }
    }

    /// The logarithm of the sum over the children, the normaliser `valid`.
    pub fn norm(&self) -> Result<f32, Nan> {
        log_sum_exp(&self.values).ok_or(Nan)
    }

    /// Drops the children of the `i`-th parent that earlier groups have taken. The normaliser is to be asked for first: what a
    /// score is must not depend on what others chose.
    pub fn drop_taken<'a>(&mut self, parent: impl Fn(usize) -> Parent<'a>) {
        let mut to = 0;
        for i in 0..self.begins.len() {
            let taken = parent(i).rules.taken;
            let range = self.range(i);
            self.begins[i] = to;
            for at in range {
                if taken.binary_search(&self.first_sids[at]).is_err() {
                    self.values[to] = self.values[at];
                    self.codes[to] = self.codes[at];
                    self.entries[to] = self.entries[at];
                    self.first_sids[to] = self.first_sids[at];
                    to += 1;
                }
            }
        }
        self.values.truncate(to);
        self.codes.truncate(to);
        self.entries.truncate(to);
        self.first_sids.truncate(to);
    }

    /// Offers the children that were gathered, by score; `parent` gives the `i`-th parent that was gathered from.
    pub fn offer<'a>(&self, parent: impl Fn(usize) -> Parent<'a>, norm: f32, pool: &mut Pool) {
        for i in 0..self.begins.len() {
            let parent = parent(i);
            for at in self.range(i) {
                let (code, entry) = (self.codes[at], self.entries[at]);
                let score = add(parent.score, log_probability(self.values[at], norm));
                let candidate = Candidate::new(parent.place, code, entry, parent.class.of(code));
                pool.offer(parent.rules.charge(score, code), candidate);
            }
        }
    }

    /// Offers the children that were gathered, perturbed; returns the logarithm of the sum of `exp(logit / temperature)`.
    ///
    /// `parent` gives the `i`-th parent that was gathered from, and the noise of its children.
    pub fn draw<'a>(
        &mut self,
        parent: impl Fn(usize) -> (Parent<'a>, Noise),
        from: Drawn,
        temperature: f32,
        pool: &mut Pool,
    ) -> Result<f32, Nan> {
        let count = self.values.len();
        self.scaled.clear();
        self.scaled.extend(self.values.iter().map(|value| value / temperature));
        let norm = log_sum_exp(&self.scaled).ok_or(Nan)?;
        self.noise.resize(count, 0.0);
        for i in 0..self.begins.len() {
            let range = self.range(i);
            parent(i).1.gumbels(&self.first_sids[range.clone()], &mut self.noise[range]);
        }
        self.perturbed.clear();
        self.perturbed.extend(self.scaled.iter().zip(&self.noise).map(|(&value, &noise)| {
            let phi = add(from.phi, log_probability(value, norm));
            phi + noise
        }));
        let largest = self.perturbed.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        // The condition preserves order: what is below a child that failed fails too.
        let mut failed = f32::NEG_INFINITY;
        for i in 0..self.begins.len() {
            let (parent, _) = parent(i);
            for at in self.range(i) {
                if self.perturbed[at] < failed {
                    continue;
                }
                let perturbed = conditioned(from.perturbed, largest, self.perturbed[at]);
                if perturbed <= pool.threshold {
                    failed = self.perturbed[at];
                    continue;
                }
                let code = self.codes[at];
                let mut candidate =
                    Candidate::new(parent.place, code, self.entries[at], parent.class.of(code));
                candidate.perturbed = perturbed;
                pool.offer(parent.rules.charge(perturbed, code), candidate);
            }
        }
        Ok(norm)
    }

    fn range(&self, parent: usize) -> std::ops::Range<usize> {
        self.begins[parent]..self.begins.get(parent + 1).copied().unwrap_or(self.values.len())
    }
}

/// The perturbed score `own` on the condition that the largest, `largest`, was `parent`'s; minus infinity stays.
///
/// In float64 and rounded once, so that devices whose libraries differ in the last place agree.
fn conditioned(parent: f32, largest: f32, own: f32) -> f32 {
    if own == f32::NEG_INFINITY {
        return own;
    }
    if own >= largest {
        return parent;
    }
    let (parent, largest, own) = (f64::from(parent), f64::from(largest), f64::from(own));
    let v = parent - own + ln_1m_exp(own - largest);
    (parent - v.max(0.0) - (-v.abs()).exp().ln_1p()) as f32
}

/// `ln(1 - e^x)` for negative `x`.
fn ln_1m_exp(x: f64) -> f64 {
    if x > -std::f64::consts::LN_2 { (-x.exp_m1()).ln() } else { (-x.exp()).ln_1p() }
}

#[cfg(test)]
mod tests {
    use super::conditioned;

    #[test]
    fn the_condition_keeps_order_and_the_largest() {
        for parent in [-30.0f32, -2.0, 0.0, 5.0] {
            for largest in [-25.0f32, -1.0, 0.0, 20.0] {
                let mut before = parent;
                assert_eq!(conditioned(parent, largest, largest), parent);
                for step in 1..200 {
                    let own = largest - step as f32 * 0.25;
                    let found = conditioned(parent, largest, own);
                    assert!(found <= before && found.is_finite(), "{parent} {largest} {own}: {found}");
                    before = found;
                    let plain =
                        -((-parent as f64).exp() - (-largest as f64).exp() + (-own as f64).exp()).ln();
                    if plain.is_finite() && parent.abs() < 6.0 && largest.abs() < 6.0 && own > -15.0 {
                        assert!(
                            (found as f64 - plain).abs() < 1e-5,
                            "{parent} {largest} {own}: {found} {plain}"
                        );
                    }
                }
            }
        }
        assert_eq!(conditioned(f32::NEG_INFINITY, 0.0, -1.0), f32::NEG_INFINITY);
        assert_eq!(conditioned(0.0, 0.0, f32::NEG_INFINITY), f32::NEG_INFINITY);
    }
}
