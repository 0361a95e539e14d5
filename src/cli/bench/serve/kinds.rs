//! What is asked for: kinds of requests, their mix, and objectives.

use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;

use super::random::Random;

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A list of items for a query.
    Search,
    /// A list of items for a history.
    Recommend,
    /// Text with items in it.
    Mixed,
    /// Text.
    Text,
}

impl Kind {
    /// All of them, in order.
    pub const ALL: [Kind; 4] = [Kind::Search, Kind::Recommend, Kind::Mixed, Kind::Text];

    /// Its name.
    pub fn name(self) -> &'static str {
        ["search", "recommend", "mixed", "text"][self as usize]
    }

    /// Whether the answer is a list of items.
    pub fn is_list(self) -> bool {
        matches!(self, Kind::Search | Kind::Recommend)
    }

    /// Whether prompt or answer need a catalog.
    pub fn needs_items(self) -> bool {
        self != Kind::Text
    }
}

/// Weights of kinds: `search=4,recommend=3,mixed=2,text=1`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mix([f64; 4]);

impl Mix {
    /// One kind alone.
    pub fn only(kind: Kind) -> Mix {
        let mut weights = [0.0; 4];
        weights[kind as usize] = 1.0;
        Mix(weights)
    }

    /// Kinds with a weight.
    pub fn kinds(self) -> impl Iterator<Item = Kind> {
        Kind::ALL.into_iter().filter(move |&kind| self.0[kind as usize] > 0.0)
    }

    /// So many kinds in random order, each as often as its weight says: rounded by the largest remainder.
    pub fn deal(self, count: usize, seed: u64) -> Vec<Kind> {
        let total: f64 = self.0.iter().sum();
        let shares = self.0.map(|weight| weight / total * count as f64);
        let mut counts = shares.map(|share| share.floor() as usize);
        let mut order = Kind::ALL;
        let remainder = |kind: Kind| shares[kind as usize].fract();
        order.sort_by(|&a, &b| remainder(b).total_cmp(&remainder(a)));
        let short = count.saturating_sub(counts.iter().sum());
        order.into_iter().cycle().take(short).for_each(|kind| counts[kind as usize] += 1);
        let mut kinds: Vec<Kind> = Vec::with_capacity(count);
        for kind in Kind::ALL {
            kinds.resize(kinds.len() + counts[kind as usize], kind);
        }
        Random::new(seed, 2, 0).shuffle(&mut kinds);
        kinds
    }
}

impl FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Mix, String> {
        let mut weights = [0.0; 4];
        for part in text.split(',') {
            let (name, weight) = part.split_once('=').unwrap_or((part, "1"));
            let kind = Kind::ALL.into_iter().find(|kind| kind.name() == name.trim()).ok_or_else(|| {
                format!("`{}` is no kind of request; kinds: search, recommend, mixed, text", name.trim())
            })?;
            let weight: f64 = weight.trim().parse().map_err(|_| format!("`{weight}` is no weight"))?;
            if !(0.0..=1e6).contains(&weight) {
                return Err(format!("the weight {weight} of {} is outside of 0 to 1000000", kind.name()));
            }
            weights[kind as usize] += weight;
        }
        if weights.iter().all(|&weight| weight == 0.0) {
            return Err("no kind has a weight above 0".to_owned());
        }
        Ok(Mix(weights))
    }
}

/// Times that a request must meet; none where nothing is stated.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Slo {
    /// Time to the first content of a stream.
    pub ttft: Option<Duration>,
    /// The longest gap between pieces of a stream.
    pub itl: Option<Duration>,
    /// Mean time per token after the first.
    pub tpot: Option<Duration>,
    /// Time to a whole list.
    pub items: Option<Duration>,
    /// Time to the end.
    pub e2e: Option<Duration>,
}

/// What of a request an objective looks at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// Time to the first content of a stream.
    pub ttft: Option<Duration>,
    /// The longest gap between pieces of a stream.
    pub itl: Option<Duration>,
    /// Mean time per token after the first.
    pub tpot: Option<Duration>,
    /// Time to a whole list.
    pub items: Option<Duration>,
    /// Time to the end.
    pub e2e: Duration,
}

impl Slo {
    /// Whether a request that was answered meets every bound that applies to it.
    pub fn is_met(&self, times: &Times) -> bool {
        let meets = |time: Option<Duration>, bound: Option<Duration>| match (time, bound) {
            (Some(time), Some(bound)) => time <= bound,
            _ => true,
        };
        meets(times.ttft, self.ttft)
            && meets(times.itl, self.itl)
            && meets(times.tpot, self.tpot)
            && meets(times.items, self.items)
            && meets(Some(times.e2e), self.e2e)
    }
}

impl FromStr for Slo {
    type Err = String;

    fn from_str(text: &str) -> Result<Slo, String> {
        let mut slo = Slo::default();
        for part in text.split(',') {
            let (name, bound) = part
                .split_once('=')
                .ok_or_else(|| format!("`{part}` is no objective: NAME=MILLISECONDS, as in ttft=200"))?;
            let field = match name.trim() {
                "ttft" => &mut slo.ttft,
                "itl" => &mut slo.itl,
                "tpot" => &mut slo.tpot,
                "items" => &mut slo.items,
                "e2e" => &mut slo.e2e,
                name => {
                    return Err(format!("`{name}` is no objective; there are ttft, itl, tpot, items, e2e"));
                }
            };
            let ms: f64 =
                bound.trim().parse().map_err(|_| format!("`{bound}` is no number of milliseconds"))?;
            if !(ms > 0.0 && ms <= 1e9) {
                return Err(format!("{}: {ms} ms is outside of 0 (excluded) to 1000000000", name.trim()));
            }
            *field = Some(Duration::from_secs_f64(ms / 1e3));
        }
        Ok(slo)
    }
}

/// A length of time: `30`, `30s`, `500ms`, `2m`, `1h`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let scale = match &text[number.len()..] {
        "" | "s" => 1.0,
        "ms" => 1e-3,
        "m" => 60.0,
        "h" => 3600.0,
        unit => return Err(format!("`{unit}` is no unit of time; units: ms, s, m, h")),
    };
    let value: f64 = number.parse().map_err(|_| format!("`{number}` is no number"))?;
    let seconds = value * scale;
    if !(seconds > 0.0 && seconds <= 1e6) {
        return Err(format!("{text} is outside of 0 (excluded) to 1000000 s"));
    }
    Ok(Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixes() {
        let count = |mix: &str, count: usize| {
            let kinds = mix.parse::<Mix>().unwrap().deal(count, 5);
            assert_eq!(kinds.len(), count);
            Kind::ALL.map(|kind| kinds.iter().filter(|&&k| k == kind).count())
        };
        assert_eq!(count("search=4,recommend=3,mixed=2,text=1", 1000), [400, 300, 200, 100]);
        assert_eq!(count("text", 3), [0, 0, 0, 3]);
        assert_eq!(count("search, text = 2", 3), [1, 0, 0, 2]);
        assert_eq!(count("search=1,search=1,mixed=2", 4), [2, 0, 2, 0]);
        assert_eq!(count("search=1,recommend=1,mixed=1", 4)[3], 0);
        assert_eq!(count("search=0.5,text=0.25", 0), [0; 4]);
        let kinds: Vec<Kind> = "mixed=2,search=0".parse::<Mix>().unwrap().kinds().collect();
        assert_eq!(kinds, [Kind::Mixed]);
        for (text, word) in [
            ("", "no kind"),
            ("images=1", "`images`"),
            ("text=x", "`x`"),
            ("text=-1", "-1"),
            ("text=0", "above 0"),
            ("text=nan", "NaN"),
            ("text=inf", "inf"),
        ] {
            let error = text.parse::<Mix>().unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn dealing_mixes_the_order() {
        let mix: Mix = "search=1,text=1".parse().unwrap();
        let kinds = mix.deal(1000, 1);
        let changes = kinds.windows(2).filter(|pair| pair[0] != pair[1]).count();
        assert!((400..600).contains(&changes), "{changes}");
        assert_eq!(kinds, mix.deal(1000, 1));
        assert_ne!(kinds, mix.deal(1000, 2));
    }

    #[test]
    fn objectives() {
        let slo: Slo = "ttft=200, itl=50,items=100,e2e=2000".parse().unwrap();
        let ms = Duration::from_millis;
        assert_eq!(slo.itl, Some(ms(50)));
        assert_eq!(slo.tpot, None);
        let stream =
            Times { ttft: Some(ms(200)), itl: Some(ms(50)), tpot: Some(ms(999)), items: None, e2e: ms(2000) };
        assert!(slo.is_met(&stream));
        assert!(!slo.is_met(&Times { ttft: Some(ms(201)), ..stream }));
        assert!(!slo.is_met(&Times { itl: Some(ms(51)), ..stream }));
        assert!(!slo.is_met(&Times { e2e: ms(2001), ..stream }));
        assert!(!slo.is_met(&Times { items: Some(ms(101)), ..stream }));
        let list = Times { items: Some(ms(100)), e2e: ms(100), ..Times::default() };
        assert!(slo.is_met(&list));
        assert!(Slo::default().is_met(&Times { e2e: ms(1_000_000), ..stream }));
        for (text, word) in
            [("ttft", "ttft"), ("x=1", "`x`"), ("itl=fast", "`fast`"), ("e2e=0", "0 ms"), ("e2e=NaN", "NaN")]
        {
            let error = text.parse::<Slo>().unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn lengths_of_time() {
        for (text, ms) in [("30", 30_000), ("1.5s", 1500), ("500ms", 500), ("2m", 120_000), ("1h", 3_600_000)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "0", "-1s", "1d", "nan", "1e9", "ms5", "5 s"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
