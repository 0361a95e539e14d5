//! How fast waiting work is admitted.

use std::time::Instant;

/// Seconds after which what was admitted counts a factor e less.
const MEMORY: f64 = 10.0;

/// Work admitted, and the time that it took, while something waited; both fade.
#[derive(Default)]
pub(super) struct Pace {
    work: f64,
    time: f64,
    /// The last turn, if it left something waiting.
    last: Option<Instant>,
}

impl Pace {
    /// Takes note of a turn that admitted `work` and left something `waiting`, or did not. Returns the seconds that a unit of
    /// waiting work takes, where it can be told; `backlog` is the work that waits, and in how many requests.
    pub fn turn(&mut self, now: Instant, work: u64, waiting: bool, backlog: (u64, usize)) -> Option<f64> {
        let last = std::mem::replace(&mut self.last, waiting.then_some(now));
        let passed = now.saturating_duration_since(last?).as_secs_f64();
        let keep = (-passed / MEMORY).exp();
        self.work = self.work * keep + work as f64;
        self.time = self.time * keep + passed;
        let (cost, requests) = backlog;
        // Before the first admission: as if one request were admitted now.
        let mean = cost as f64 / requests.max(1) as f64;
        Some(self.time / self.work.max(mean).max(1.0))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_rate_is_that_of_times_in_which_something_waited() {
        let mut pace = Pace::default();
        let mut now = Instant::now();
        assert_eq!(pace.turn(now, 500, true, (100, 1)), None, "nothing had waited");
        for _ in 0..1000 {
            now += Duration::from_millis(10);
            let found = pace.turn(now, 20, true, (100, 1)).expect("something waited");
            assert!(found <= 0.01 / 20.0 * 1.001, "{found}");
        }
        now += Duration::from_millis(10);
        let found = pace.turn(now, 20, false, (0, 0)).expect("something waited");
        assert!((found / (0.01 / 20.0) - 1.0).abs() < 0.01, "{found}");
        // An hour without a queue is no time in which nothing was admitted.
        now += Duration::from_secs(3600);
        assert_eq!(pace.turn(now, 5, true, (100, 1)), None);
        now += Duration::from_millis(10);
        let found = pace.turn(now, 20, true, (100, 1)).expect("something waited");
        assert!((found / (0.01 / 20.0) - 1.0).abs() < 0.01, "{found}");
    }

    #[test]
    fn before_the_first_admission_one_request_counts() {
        let mut pace = Pace::default();
        let now = Instant::now();
        pace.turn(now, 0, true, (300, 3));
        let found = pace.turn(now + Duration::from_secs(1), 0, true, (300, 3)).expect("something waits");
        assert!((found - 0.01).abs() < 1e-6, "{found}: 100 units a second");
    }

    #[test]
    fn the_rate_follows_what_is_admitted() {
        let mut pace = Pace::default();
        let mut now = Instant::now();
        let mut last = None;
        for work in [100, 10] {
            for _ in 0..6000 {
                now += Duration::from_millis(10);
                last = pace.turn(now, work, true, (1000, 10));
            }
            let found = last.expect("something waits");
            assert!((found / (0.01 / work as f64) - 1.0).abs() < 0.05, "{found} at {work}");
        }
    }
}
