//! Times in logarithmic buckets: constant memory, and no sample is thrown away.

/// Buckets per power of two; a value lies within 1/256 of the middle of its bucket.
const PARTS: u64 = 128;
const SHIFT: u32 = PARTS.trailing_zeros();

/// Counts of values in nanoseconds.
///
/// Values below 128 have a bucket each; above, every power of two has 128. A percentile is the middle of its bucket, at most 0.4 % away
/// from the sample; minimum, maximum and mean are exact.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    /// As long as the largest value needs.
    counts: Vec<u64>,
    count: u64,
    sum: u128,
    min: u64,
    max: u64,
}

fn bucket(value: u64) -> usize {
    let shift = (u64::BITS - value.leading_zeros()).saturating_sub(SHIFT + 1);
    (u64::from(shift) * PARTS + (value >> shift)) as usize
}

/// Middle of a bucket.
fn middle(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let shift = (bucket / PARTS).saturating_sub(1);
    let low = (bucket - shift * PARTS) << shift;
    low + ((1 << shift) >> 1)
}

impl Histogram {
    /// Counts a value.
    pub fn record(&mut self, value: u64) {
        let at = bucket(value);
        if self.counts.len() <= at {
            self.counts.resize(at + 1, 0);
        }
        self.counts[at] += 1;
        self.min = if self.count == 0 { value } else { self.min.min(value) };
        self.max = self.max.max(value);
        self.count += 1;
        self.sum += u128::from(value);
    }

    /// Adds the values of another one.
    pub fn merge(&mut self, other: &Histogram) {
        if other.count == 0 {
            return;
        }
        if self.counts.len() < other.counts.len() {
            self.counts.resize(other.counts.len(), 0);
        }
        for (own, more) in self.counts.iter_mut().zip(&other.counts) {
            *own += more;
        }
        self.min = if self.count == 0 { other.min } else { self.min.min(other.min) };
        self.max = self.max.max(other.max);
        self.count += other.count;
        self.sum += other.sum;
    }

    /// How many values there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Sum of the values.
    pub fn sum(&self) -> u128 {
        self.sum
    }

    /// The largest value; 0 without values.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// Mean of the values; NaN without values.
    pub fn mean(&self) -> f64 {
        self.sum as f64 / self.count as f64
    }

    /// The value of rank `ceil(share * count)`: the smallest that at least this share of the values does not exceed; `None` without values.
    pub fn quantile(&self, share: f64) -> Option<u64> {
        if self.count == 0 {
            return None;
        }
        let rank = ((share * self.count as f64).ceil() as u64).clamp(1, self.count);
        if rank == self.count {
            return Some(self.max);
        }
        let mut before = 0;
        let at = self.counts.iter().position(|count| {
            before += count;
            before >= rank
        });
        at.map(|at| middle(at).clamp(self.min, self.max))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn buckets_follow_each_other_without_gaps() {
        let mut values: Vec<u64> = (0..100_000).collect();
        for power in 17..64 {
            let power = 1u64 << power;
            values.extend([power - 1, power, power + 1, power + power / 3]);
        }
        values.push(u64::MAX);
        let mut last = 0;
        for value in values {
            let at = bucket(value);
            assert!(at == last || at == last + 1 || value > 100_000, "{value}: {at} after {last}");
            assert!(at >= last, "{value}");
            last = at;
            let error = middle(at).abs_diff(value) as f64 / (value as f64).max(1.0);
            assert!(error <= 1.0 / 256.0, "{value}: {}", middle(at));
        }
        assert_eq!((0..256).map(bucket).collect::<Vec<_>>(), (0..256).collect::<Vec<_>>());
        assert_eq!((bucket(256), bucket(257), bucket(258)), (256, 256, 257));
    }

    #[test]
    fn nothing_has_no_percentiles_and_one_value_has_all() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), None);
        histogram.record(12_345);
        for share in [0.0, 0.5, 0.999, 1.0] {
            assert_eq!(histogram.quantile(share), Some(12_345));
        }
        assert_eq!((histogram.mean(), histogram.max()), (12_345.0, 12_345));
    }

    #[test]
    fn percentiles_of_known_values() {
        let mut histogram = Histogram::default();
        (1..=100).for_each(|value| histogram.record(value));
        let ranks = [(0.5, 50), (0.9, 90), (0.99, 99), (0.991, 100), (1.0, 100), (0.0, 1)];
        for (share, value) in ranks {
            assert_eq!(histogram.quantile(share), Some(value), "{share}");
        }
    }

    proptest! {
        #[test]
        fn percentiles_are_those_of_the_sorted_values(
            mut values in prop::collection::vec(prop_oneof![0u64..300, 0u64..10_000_000_000, any::<u64>()], 1..400),
            cut in any::<prop::sample::Index>(),
            share in 0.0f64..=1.0,
        ) {
            let (mut one, mut other) = (Histogram::default(), Histogram::default());
            let cut = cut.index(values.len());
            values[..cut].iter().for_each(|&value| one.record(value));
            values[cut..].iter().for_each(|&value| other.record(value));
            one.merge(&other);
            values.sort_unstable();
            let rank = ((share * values.len() as f64).ceil() as usize).max(1);
            let (wanted, found) = (values[rank - 1], one.quantile(share).unwrap());
            prop_assert!(found.abs_diff(wanted) as f64 <= wanted as f64 / 255.0, "{found}, not {wanted}");
            prop_assert_eq!(one.max(), values[values.len() - 1]);
            prop_assert_eq!(one.count(), values.len() as u64);
            prop_assert_eq!(one.sum(), values.iter().map(|&value| u128::from(value)).sum::<u128>());
        }
    }
}
