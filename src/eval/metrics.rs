//! Hit rate, NDCG and MRR of ranked lists, with intervals.

use serde::Serialize;

/// 97.5 % point of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// How one list came out.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranking {
    /// For each place of the list whether what stands there is relevant.
    pub hits: Vec<bool>,
    /// Relevant items that there are.
    pub relevant: usize,
}

impl Ranking {
    /// 1 if one of the first `k` is relevant.
    pub fn hit(&self, k: usize) -> f64 {
        f64::from(self.hits.iter().take(k).any(|&hit| hit))
    }

    /// Discounted gain of the first `k` over that of the best list of `k`; with one relevant item `log 2 / log(rank + 1)`, or 0 beyond `k`.
    pub fn ndcg(&self, k: usize) -> f64 {
        let gain = |place: usize| std::f64::consts::LN_2 / ((place + 2) as f64).ln();
        let found: f64 =
            self.hits.iter().take(k).enumerate().filter(|(_, hit)| **hit).map(|(p, _)| gain(p)).sum();
        let best: f64 = (0..self.relevant.min(k)).map(gain).sum();
        if best == 0.0 { 0.0 } else { found / best }
    }

    /// One over the rank of the first relevant item; 0 if the list has none.
    pub fn reciprocal_rank(&self) -> f64 {
        self.hits.iter().position(|&hit| hit).map_or(0.0, |place| 1.0 / (place + 1) as f64)
    }

    /// Whether all of the first `k` are relevant; `None` where there are not `k` that could be.
    pub fn all_right(&self, k: usize) -> Option<f64> {
        let right = self.hits.len() >= k && self.hits.iter().take(k).all(|&hit| hit);
        (self.relevant >= k).then_some(f64::from(right))
    }
}

/// A mean with its 95 % interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Values that it is the mean of.
    pub n: usize,
}

impl Estimate {
    /// Of zeros and ones: Wilson's interval, which stays within 0 and 1.
    pub fn of_share(values: &[f64]) -> Estimate {
        let n = values.len() as f64;
        if values.is_empty() {
            return Estimate::default();
        }
        let mean = values.iter().sum::<f64>() / n;
        let center = (mean + Z * Z / (2.0 * n)) / (1.0 + Z * Z / n);
        let half = Z / (1.0 + Z * Z / n) * (mean * (1.0 - mean) / n + Z * Z / (4.0 * n * n)).sqrt();
        Estimate { mean, low: (center - half).max(0.0), high: (center + half).min(1.0), n: values.len() }
    }

    /// Of any values: the normal approximation.
    pub fn of(values: &[f64]) -> Estimate {
        let n = values.len() as f64;
        if values.is_empty() {
            return Estimate::default();
        }
        let mean = values.iter().sum::<f64>() / n;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
        let half = Z * (variance / n).sqrt();
        Estimate { mean, low: mean - half, high: mean + half, n: values.len() }
    }
}

/// The metrics of many lists.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Scores {
    /// Share of lists whose first item is relevant.
    #[serde(rename = "hr@1")]
    pub hr_1: f64,
    /// Share of lists with a relevant item among the first ten.
    #[serde(rename = "hr@10")]
    pub hr_10: f64,
    /// The 95 % interval of `hr@10`.
    #[serde(rename = "hr@10_interval")]
    pub hr_10_interval: [f64; 2],
    /// Share of lists with a relevant item among the first thirty.
    #[serde(rename = "hr@30")]
    pub hr_30: f64,
    /// Normalised discounted gain of the first ten.
    #[serde(rename = "ndcg@10")]
    pub ndcg_10: f64,
    /// The 95 % interval of `ndcg@10`.
    #[serde(rename = "ndcg@10_interval")]
    pub ndcg_10_interval: [f64; 2],
    /// Normalised discounted gain of the first thirty.
    #[serde(rename = "ndcg@30")]
    pub ndcg_30: f64,
    /// Mean reciprocal rank within thirty.
    pub mrr: f64,
    /// Of the lists that could, the share whose first ten are all relevant.
    #[serde(rename = "all_right@10", skip_serializing_if = "Option::is_none")]
    pub all_right_10: Option<Estimate>,
    /// Lists.
    pub n: usize,
}

impl Scores {
    /// Of lists.
    pub fn of(rankings: &[Ranking]) -> Scores {
        let each = |value: &dyn Fn(&Ranking) -> f64| rankings.iter().map(value).collect::<Vec<f64>>();
        let hits = Estimate::of_share(&each(&|r| r.hit(10)));
        let gain = Estimate::of(&each(&|r| r.ndcg(10)));
        let mean = |value: &dyn Fn(&Ranking) -> f64| Estimate::of(&each(value)).mean;
        let all_right: Vec<f64> = rankings.iter().filter_map(|r| r.all_right(10)).collect();
        Scores {
            hr_1: mean(&|r| r.hit(1)),
            hr_10: hits.mean,
            hr_10_interval: [hits.low, hits.high],
            hr_30: mean(&|r| r.hit(30)),
            ndcg_10: gain.mean,
            ndcg_10_interval: [gain.low, gain.high],
            ndcg_30: mean(&|r| r.ndcg(30)),
            mrr: mean(&|r| r.reciprocal_rank()),
            all_right_10: (rankings.iter().any(|r| r.relevant > 1) && !all_right.is_empty())
                .then(|| Estimate::of_share(&all_right)),
            n: rankings.len(),
        }
    }

    /// How much higher the hit rate at ten of `these` is than that of `those`, question by question.
    pub fn lead(these: &[Ranking], those: &[Ranking]) -> Estimate {
        let differences: Vec<f64> = these.iter().zip(those).map(|(a, b)| a.hit(10) - b.hit(10)).collect();
        Estimate::of(&differences)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranking(hits: &[u8], relevant: usize) -> Ranking {
        Ranking { hits: hits.iter().map(|&hit| hit == 1).collect(), relevant }
    }

    #[test]
    fn one_relevant_item_gives_the_textbook_values() {
        let third = ranking(&[0, 0, 1, 0], 1);
        assert_eq!(third.hit(2), 0.0);
        assert_eq!(third.hit(3), 1.0);
        assert!((third.ndcg(10) - 2f64.ln() / 4f64.ln()).abs() < 1e-12);
        assert_eq!(third.ndcg(2), 0.0);
        assert!((third.reciprocal_rank() - 1.0 / 3.0).abs() < 1e-12);
        assert_eq!(third.all_right(10), None);
        assert_eq!(ranking(&[0, 0], 1).reciprocal_rank(), 0.0);
        assert_eq!(ranking(&[], 0).ndcg(10), 0.0);
    }

    #[test]
    fn several_relevant_items_are_normalised_by_the_best_list() {
        // Gains 1, 0, 1/2 of the best 1 + 1/log2(3) + 1/2.
        let found = ranking(&[1, 0, 1], 3);
        let expected = 1.5 / (1.0 + 1.0 / 3f64.log2() + 0.5);
        assert!((found.ndcg(3) - expected).abs() < 1e-12);
        assert_eq!(ranking(&[1; 12], 12).all_right(10), Some(1.0));
        assert_eq!(ranking(&[1, 1, 1, 1, 1, 0, 1, 1, 1, 1], 12).all_right(10), Some(0.0));
        // A list that is too short is not all right.
        assert_eq!(ranking(&[1, 1], 12).all_right(10), Some(0.0));
    }

    #[test]
    fn intervals_hold_the_mean_and_shrink() {
        let few = Estimate::of_share(&[1.0, 1.0, 1.0]);
        assert_eq!(few.mean, 1.0);
        // Wilson: 3 / (3 + z^2).
        assert!((few.low - 3.0 / (3.0 + Z * Z)).abs() < 1e-9 && few.high == 1.0, "{few:?}");
        let half: Vec<f64> = (0..400).map(|i| f64::from(i % 2)).collect();
        let many = Estimate::of_share(&half);
        assert!(many.low > 0.45 && many.low < 0.5 && many.high < 0.55, "{many:?}");
        assert!((Estimate::of(&half).high - many.high).abs() < 0.001);
        assert_eq!(Estimate::of(&[]), Estimate::default());
    }

    #[test]
    fn a_lead_is_counted_question_by_question() {
        let hit = ranking(&[1], 1);
        let miss = ranking(&[0], 1);
        let lead = Scores::lead(&[hit.clone(), hit.clone(), miss.clone()], &[miss.clone(), hit, miss]);
        assert!((lead.mean - 1.0 / 3.0).abs() < 1e-12);
    }
}
