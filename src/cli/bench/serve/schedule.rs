//! When requests are due.

use std::time::Duration;

use super::random::Random;

/// Arrivals of an open loop: independent gaps of a gamma distribution.
///
/// Burstiness is the shape of the distribution: 1 is a Poisson process, less has more bursts, more is more even, infinity is a metronome.
#[derive(Clone, Debug)]
pub struct Schedule {
    random: Random,
    /// Mean gap in seconds.
    gap: f64,
    burstiness: f64,
    /// Seconds since the begin.
    at: f64,
}

impl Schedule {
    /// `rate` in requests per second, greater than 0; the first arrival is one gap after the begin.
    pub fn new(rate: f64, burstiness: f64, seed: u64) -> Schedule {
        Schedule { random: Random::new(seed, 1, 0), gap: 1.0 / rate, burstiness, at: 0.0 }
    }
}

impl Iterator for Schedule {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.at += self.gap * self.random.gamma(self.burstiness);
        // A gap beyond what a clock can hold is never.
        Duration::try_from_secs_f64(self.at).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mean gap in seconds, and the coefficient of variation.
    fn moments(rate: f64, burstiness: f64) -> (f64, f64) {
        const COUNT: usize = 200_000;
        let times: Vec<f64> =
            Schedule::new(rate, burstiness, 7).take(COUNT).map(|time| time.as_secs_f64()).collect();
        let gaps: Vec<f64> =
            std::iter::once(times[0]).chain(times.windows(2).map(|pair| pair[1] - pair[0])).collect();
        assert!(gaps.iter().all(|&gap| gap >= 0.0));
        let mean = gaps.iter().sum::<f64>() / COUNT as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / COUNT as f64;
        (mean, variance.sqrt() / mean)
    }

    #[test]
    fn gaps_have_the_rate_and_the_spread_of_their_distribution() {
        for (rate, burstiness) in [(1000.0, 1.0), (50.0, 0.25), (50.0, 0.5), (20_000.0, 4.0), (3.0, 100.0)] {
            let (mean, variation) = moments(rate, burstiness);
            assert!((mean * rate - 1.0).abs() < 0.02, "{rate} {burstiness}: mean {mean}");
            let wanted = 1.0 / f64::sqrt(burstiness);
            assert!((variation / wanted - 1.0).abs() < 0.03, "{rate} {burstiness}: variation {variation}");
        }
    }

    #[test]
    fn poisson_arrivals_are_memoryless() {
        let times: Vec<f64> =
            Schedule::new(1.0, 1.0, 3).take(100_000).map(|time| time.as_secs_f64()).collect();
        let gaps: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        for limit in [0.5, 1.0, 2.0, 4.0] {
            let share = gaps.iter().filter(|&&gap| gap > limit).count() as f64 / gaps.len() as f64;
            assert!((share - f64::exp(-limit)).abs() < 0.006, "{limit}: {share}");
        }
    }

    #[test]
    fn a_metronome_and_the_same_seed() {
        let even: Vec<Duration> = Schedule::new(4.0, f64::INFINITY, 1).take(3).collect();
        assert_eq!(even, [250, 500, 750].map(Duration::from_millis));
        let of = |seed| Schedule::new(10.0, 1.0, seed).take(50).collect::<Vec<_>>();
        assert_eq!(of(5), of(5));
        assert_ne!(of(5), of(6));
    }
}
