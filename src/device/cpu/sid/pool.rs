//! The candidates of one list: the best `width` of everything offered, in an order that has no ties.
//!
//! A candidate's key is its score, made into an integer of the same order, above the complement of its number: candidates are offered
//! in the order in which ties are decided (parent's place, type, code), so one comparison of integers decides both. Candidates gather
//! in a buffer of two widths; when it is full, the best `width` stay and the worst of them becomes the threshold below which
//! nothing need be offered. Compared with a heap that is a constant number of steps per candidate that passes, without a
//! mispredicted branch per level of a tree.

/// A continuation of a path, or a finished path that stays.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    key: u64,
    /// Place of the parent in the list before (at the first level: of the type among the requested ones).
    pub parent: u16,
    /// Code of the continuation.
    pub code: u16,
    /// Entry of the continuation at its level, or [`STAYS`].
    pub entry: u32,
    /// The class that [`Pool::set_cap`] counts: type and first code.
    pub class: u32,
    /// Perturbed score of a drawn path.
    pub perturbed: f32,
}

/// The entry of a finished path that keeps its place in the competition.
pub(super) const STAYS: u32 = u32::MAX;

impl Candidate {
    /// A candidate that has not been offered yet.
    pub fn new(parent: usize, code: u16, entry: u32, class: u32) -> Candidate {
        Candidate { key: 0, parent: parent as u16, code, entry, class, perturbed: 0.0 }
    }
}

/// At most `limit` paths of one class.
struct Cap {
    limit: u32,
    /// `[classes]` paths of lists that were chosen earlier at this level.
    taken: Vec<u32>,
}

pub(super) struct Pool {
    kept: Vec<Candidate>,
    width: usize,
    offered: u32,
    cap: Option<Cap>,
    /// Scores up to this one have no chance. NaN, which no score is below, while there is room and no bound is known.
    pub threshold: f32,
}

/// Candidates gathered before the best are sorted out.
fn room(width: usize) -> usize {
    2 * width + 32
}

/// An integer that orders as the float does; both zeros are one.
fn ordered(score: f32) -> u32 {
    let bits = (score + 0.0).to_bits();
    if bits >> 31 == 0 { bits | 1 << 31 } else { !bits }
}

/// The float of [`ordered`].
fn score_of(key: u64) -> f32 {
    let bits = (key >> 32) as u32;
    f32::from_bits(if bits >> 31 == 1 { bits & !(1 << 31) } else { !bits })
}

impl Pool {
    /// A pool with memory for lists of up to `widest`.
    pub fn new(widest: usize) -> Pool {
        let kept = Vec::with_capacity(room(widest));
        Pool { kept, width: 0, offered: 0, cap: None, threshold: f32::NAN }
    }

    /// Keeps at most `limit` paths of each of `classes` classes, over all lists of a level.
    pub fn set_cap(&mut self, limit: u32, classes: usize) {
        self.cap = Some(Cap { limit, taken: vec![0; classes] });
    }

    /// Starts a list of at most `width`.
    pub fn begin(&mut self, width: usize) {
        self.kept.clear();
        self.width = width;
        self.offered = 0;
        self.threshold = f32::NAN;
    }

    /// Most candidates of the list.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Takes a candidate whose score is not NaN, if it still has a chance.
    #[inline]
    pub fn offer(&mut self, score: f32, candidate: Candidate) {
        debug_assert!(!score.is_nan());
        if score <= self.threshold {
            return;
        }
        let key = u64::from(ordered(score)) << 32 | u64::from(!self.offered);
        self.offered += 1;
        self.kept.push(Candidate { key, ..candidate });
        if self.kept.len() == room(self.width) {
            self.compact();
        }
    }

    /// The list: the best candidates, best first.
    pub fn finish(&mut self) -> &[Candidate] {
        self.compact();
        self.kept.sort_unstable_by_key(|c| std::cmp::Reverse(c.key));
        &self.kept
    }

    /// Counts the finished list's paths against the cap of the lists that follow at this level.
    pub fn count_list(&mut self) {
        if let Some(cap) = &mut self.cap {
            self.kept.iter().for_each(|c| cap.taken[c.class as usize] += 1);
        }
    }

    /// Forgets what [`Pool::count_list`] counted.
    pub fn forget(&mut self, classes: impl Iterator<Item = u32>) {
        if let Some(cap) = &mut self.cap {
            classes.for_each(|class| cap.taken[class as usize] = 0);
        }
    }

    fn compact(&mut self) {
        if let Some(cap) = &mut self.cap {
            // In order of score a class takes its places first come, first served; what finds its class full is beaten
            // by members of the class that stay or are beaten themselves, so it can be dropped for good.
            self.kept.sort_unstable_by_key(|c| std::cmp::Reverse(c.key));
            let (limit, taken, mut left) = (cap.limit, &mut cap.taken, self.width);
            self.kept.retain(|c| {
                let count = &mut taken[c.class as usize];
                let stays = left > 0 && *count < limit;
                *count += u32::from(stays);
                left -= usize::from(stays);
                stays
            });
            self.kept.iter().for_each(|c| taken[c.class as usize] -= 1);
        } else if self.kept.len() > self.width {
            self.kept.select_nth_unstable_by_key(self.width - 1, |c| std::cmp::Reverse(c.key));
            self.kept.truncate(self.width);
        }
        if self.kept.len() == self.width
            && let Some(worst) = self.kept.iter().map(|c| c.key).min()
        {
            self.threshold = score_of(worst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_order_as_floats_do() {
        let values = [f32::NEG_INFINITY, -1e30, -1.0, -1e-40, 0.0, 1e-40, 2.0, f32::INFINITY];
        for pair in values.windows(2) {
            assert!(ordered(pair[0]) < ordered(pair[1]), "{pair:?}");
            assert_eq!(score_of(u64::from(ordered(pair[1])) << 32), pair[1]);
        }
        assert_eq!(ordered(-0.0), ordered(0.0));
    }

    #[test]
    fn keeps_what_a_sort_would_keep() {
        let mut state = 1u32;
        let mut random = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 16
        };
        for case in 0..300 {
            let (width, offers) = (1 + random() as usize % 20, random() as usize % 2000);
            let cap = (case % 2 == 1).then(|| 1 + random() % 4);
            let mut pool = Pool::new(20);
            if let Some(limit) = cap {
                pool.set_cap(limit, 7);
            }
            pool.begin(width);
            // Few distinct scores, so that ties decide often.
            let all: Vec<(f32, u32, u32)> =
                (0..offers).map(|i| (-((random() % 50) as f32), i as u32, random() % 7)).collect();
            for &(score, entry, class) in &all {
                pool.offer(score, Candidate::new(0, 0, entry, class));
            }
            let mut sorted = all.clone();
            sorted.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            let mut counts = [0; 7];
            sorted.retain(|&(_, _, class)| {
                counts[class as usize] += 1;
                cap.is_none_or(|limit| counts[class as usize] <= limit)
            });
            let expected: Vec<u32> = sorted.iter().take(width).map(|c| c.1).collect();
            let found: Vec<u32> = pool.finish().iter().map(|c| c.entry).collect();
            assert_eq!(found, expected, "case {case}");
        }
    }
}
