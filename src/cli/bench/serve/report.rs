//! The result of a run: a table, or one JSON object.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};

use indicatif::HumanCount;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::drive::{Outcome, Pace, Work};
use super::histogram::Histogram;
use super::kinds::{Kind, Slo};
use super::record::{Counts, KindRecord, Messages, Recorder};

/// Percentiles, by name.
pub const PERCENTILES: [(&str, f64); 5] =
    [("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99), ("p99.9", 0.999)];
/// A share of a processor from which on a sending thread is busy.
const BUSY: f64 = 0.9;

/// A distribution in milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    count: u64,
    mean: f64,
    #[serde(flatten)]
    percentiles: Map<String, Value>,
    max: f64,
}

impl Figures {
    fn of(histogram: &Histogram) -> Option<Figures> {
        let ms = |ns: f64| (ns / 1e3).round() / 1e3;
        let percentile = |(name, share): (&str, f64)| {
            Some((name.to_owned(), json!(ms(histogram.quantile(share)? as f64))))
        };
        let percentiles = PERCENTILES.into_iter().map(percentile).collect::<Option<_>>()?;
        Some(Figures {
            count: histogram.count(),
            mean: ms(histogram.mean()),
            percentiles,
            max: ms(histogram.max() as f64),
        })
    }
}

/// How requests were sent.
#[derive(Clone, Debug, Serialize)]
pub struct Config {
    url: String,
    /// `closed` or `open`.
    pace: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    burstiness: Option<f64>,
    concurrency: usize,
    threads: usize,
    warmup: u64,
    seed: u64,
    /// Different requests, cycled.
    distinct: usize,
    /// Items of catalogs that answers are held against; 0: none was named.
    verify_items: usize,
}

/// Requests that met the objective.
#[derive(Clone, Debug, Serialize)]
pub struct Goodput {
    /// Bounds in milliseconds.
    slo_ms: BTreeMap<&'static str, f64>,
    requests: u64,
    /// Of those that were sent or due, without those dropped on purpose.
    share: f64,
    per_s: f64,
}

/// The result.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    config: Config,
    elapsed_s: f64,
    #[serde(flatten)]
    counts: Counts,
    sent_per_s: f64,
    done_per_s: f64,
    completion_tokens_per_s: f64,
    prompt_tokens_per_s: f64,
    items_per_s: f64,
    /// Requests under way on average.
    mean_in_flight: f64,
    /// Responses by status; 0: none.
    statuses: BTreeMap<u16, u64>,
    /// Distributions of all kinds together.
    latency_ms: BTreeMap<&'static str, Figures>,
    kinds: BTreeMap<&'static str, KindReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    goodput: Option<Goodput>,
    error_messages: Vec<(String, u64)>,
    invalid_messages: Vec<(String, u64)>,
    /// Processor time of the generator per second and thread.
    #[serde(skip_serializing_if = "Option::is_none")]
    generator_load: Option<f64>,
}

#[derive(Clone, Debug, Serialize)]
struct KindReport {
    sent: u64,
    done: u64,
    latency_ms: BTreeMap<&'static str, Figures>,
}

/// Names and explanations of distributions, in the table's order.
const NAMES: [(&str, &str); 8] = [
    ("e2e", "end to end"),
    ("ttft", "time to first content"),
    ("itl", "gap between pieces"),
    ("tpot", "time per output token"),
    ("items", "whole list"),
    ("item", "each streamed item"),
    ("refused", "refusal (429)"),
    ("lag", "due until sent"),
];

fn figures(record: &KindRecord) -> BTreeMap<&'static str, Figures> {
    distributions(record)
        .into_iter()
        .filter_map(|(name, histogram)| Some((name, Figures::of(histogram)?)))
        .collect()
}

/// Distributions with their names.
pub fn distributions(record: &KindRecord) -> [(&'static str, &Histogram); 6] {
    [
        ("e2e", &record.e2e),
        ("ttft", &record.ttft),
        ("itl", &record.itl),
        ("tpot", &record.tpot),
        ("items", &record.items),
        ("item", &record.item),
    ]
}

/// What a distribution is of.
pub fn meaning(name: &str) -> &str {
    NAMES.iter().find(|(known, _)| *known == name).map_or(name, |(_, meaning)| meaning)
}

/// All kinds together.
pub fn total(recorder: &Recorder) -> KindRecord {
    recorder.kinds.iter().fold(KindRecord::default(), |mut sum, kind| {
        sum.merge(kind);
        sum
    })
}

impl Report {
    /// What a run has shown.
    pub fn new(url: &str, work: &Work, outcome: &Outcome) -> Report {
        let (recorder, load) = (&outcome.recorder, &work.load);
        let (counts, seconds) = (recorder.counts, outcome.elapsed.as_secs_f64().max(1e-9));
        let all = total(recorder);
        let mut latency_ms = figures(&all);
        latency_ms.extend(Figures::of(&recorder.refusals).map(|figures| ("refused", figures)));
        let (pace, rate, burstiness) = match load.pace {
            Pace::Closed => ("closed", None, None),
            Pace::Open { rate, burstiness } => {
                latency_ms.extend(Figures::of(&recorder.lag).map(|figures| ("lag", figures)));
                ("open", Some(rate), Some(burstiness))
            }
        };
        let kinds = Kind::ALL.into_iter().zip(&recorder.kinds).filter(|(_, record)| record.sent > 0);
        let kind = |(kind, record): (Kind, &KindRecord)| {
            (kind.name(), KindReport { sent: record.sent, done: record.done, latency_ms: figures(record) })
        };
        let per_s = |count: u64| count as f64 / seconds;
        let list =
            |messages: &Messages| messages.iter().map(|(text, count)| (text.to_owned(), count)).collect();
        Report {
            config: Config {
                url: url.to_owned(),
                pace,
                rate,
                burstiness,
                concurrency: load.concurrency,
                threads: load.threads,
                warmup: load.warmup,
                seed: load.seed,
                distinct: work.pool.len(),
                verify_items: work.verifier.catalogs().iter().map(|catalog| catalog.len()).sum(),
            },
            elapsed_s: seconds,
            counts,
            sent_per_s: per_s(counts.sent),
            done_per_s: per_s(counts.done),
            completion_tokens_per_s: per_s(counts.completion_tokens),
            prompt_tokens_per_s: per_s(counts.prompt_tokens),
            items_per_s: per_s(counts.items),
            mean_in_flight: all.e2e.sum() as f64 / 1e9 / seconds,
            statuses: recorder.statuses.clone(),
            latency_ms,
            kinds: kinds.map(kind).collect(),
            goodput: goodput(&work.slo, &counts, seconds),
            error_messages: list(&recorder.errors),
            invalid_messages: list(&recorder.invalid),
            generator_load: outcome.processor.map(|time| time.as_secs_f64() / seconds / load.threads as f64),
        }
    }

    /// Counts of the run.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    #[cfg(test)]
    pub fn statuses(&self) -> &BTreeMap<u16, u64> {
        &self.statuses
    }

    fn heading(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Config { url, concurrency, rate, verify_items, .. } = &self.config;
        let Counts { sent, done, refused, errors, cancelled, .. } = self.counts;
        let seconds = self.elapsed_s;
        match rate {
            Some(rate) => writeln!(f, "{url}: open loop, {rate} requests/s offered, {seconds:.2} s")?,
            None => writeln!(f, "{url}: closed loop, {concurrency} at a time, {seconds:.2} s")?,
        }
        let count = |count: u64| HumanCount(count).to_string();
        let (done_per_s, sent_per_s) = (self.done_per_s, self.sent_per_s);
        writeln!(
            f,
            "requests    {} sent, {} answered, {} refused, {} failed, {} dropped on purpose",
            count(sent),
            count(done),
            count(refused),
            count(errors),
            count(cancelled)
        )?;
        writeln!(
            f,
            "rate        {sent_per_s:.1} sent/s, {done_per_s:.1} answered/s, {:.1} under way on average, {} connections",
            self.mean_in_flight, self.counts.connections
        )?;
        let named = |(status, n): (&u16, &u64)| match status {
            0 => format!("none: {}", count(*n)),
            status => format!("{status}: {}", count(*n)),
        };
        let statuses: Vec<String> = self.statuses.iter().map(named).collect();
        writeln!(f, "status      {}", statuses.join("  "))?;
        if self.counts.completion_tokens > 0 {
            let Counts { prompt_tokens, cached_tokens, .. } = self.counts;
            let cached = cached_tokens as f64 / (prompt_tokens.max(1)) as f64;
            writeln!(
                f,
                "tokens      {:.1} out/s, {:.1} in/s ({:.0} % of them from the prefix cache)",
                self.completion_tokens_per_s,
                self.prompt_tokens_per_s,
                cached * 100.0
            )?;
        }
        let held = match verify_items {
            0 => "held against their requests (no --verify)".to_owned(),
            items => format!("held against their requests and {} items", HumanCount(*items as u64)),
        };
        let Counts { items, invalid_items, .. } = self.counts;
        writeln!(
            f,
            "items       {:.1}/s; {} invalid of {}, {held}",
            self.items_per_s,
            count(invalid_items),
            count(items)
        )?;
        if let Some(goodput) = &self.goodput {
            let bounds: Vec<String> =
                goodput.slo_ms.iter().map(|(name, ms)| format!("{name} {ms} ms")).collect();
            writeln!(
                f,
                "goodput     {:.1}/s, {:.2} % of the requests within {}",
                goodput.per_s,
                goodput.share * 100.0,
                bounds.join(", ")
            )?;
        }
        Ok(())
    }

    fn notes(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Counts { late, unsent, short_lists, refused_without_retry_after, sent, .. } = self.counts;
        if self.config.rate.is_some() && late + unsent > 0 {
            let share = late as f64 / sent.max(1) as f64 * 100.0;
            writeln!(
                f,
                "note: {late} requests ({share:.1} %) were sent more than 1 ms after their time, {unsent} never; latencies count from that time"
            )?;
        }
        if short_lists > 0 {
            writeln!(
                f,
                "note: {short_lists} lists are shorter than asked for and do not say that they are exhausted"
            )?;
        }
        if refused_without_retry_after > 0 {
            writeln!(f, "note: {refused_without_retry_after} refusals have no Retry-After")?;
        }
        if self.generator_load.is_some_and(|load| load > BUSY) {
            writeln!(
                f,
                "note: the generator was busy itself; more --threads, on processors of their own, would measure better"
            )?;
        }
        for (message, count) in &self.error_messages {
            writeln!(f, "error ({count} times): {message}")?;
        }
        for (message, count) in &self.invalid_messages {
            writeln!(f, "invalid ({count} times): {message}")?;
        }
        Ok(())
    }
}

fn goodput(slo: &Slo, counts: &Counts, seconds: f64) -> Option<Goodput> {
    let bounds =
        [("ttft", slo.ttft), ("itl", slo.itl), ("tpot", slo.tpot), ("items", slo.items), ("e2e", slo.e2e)];
    let given = bounds.into_iter().filter_map(|(name, bound)| Some((name, bound?.as_secs_f64() * 1e3)));
    let slo_ms: BTreeMap<&str, f64> = given.collect();
    let wanted = (counts.sent + counts.unsent).saturating_sub(counts.cancelled);
    (!slo_ms.is_empty()).then(|| Goodput {
        slo_ms,
        requests: counts.good,
        share: counts.good as f64 / wanted.max(1) as f64,
        per_s: counts.good as f64 / seconds,
    })
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.heading(f)?;
        write!(f, "\n{:<24} {:>9} {:>9}", "milliseconds", "count", "mean")?;
        PERCENTILES.iter().try_for_each(|(name, _)| write!(f, " {name:>9}"))?;
        writeln!(f, " {:>9}", "max")?;
        let row = |f: &mut Formatter<'_>, name: &str, figures: &Figures| {
            write!(f, "{name:<24} {:>9} {:>9.3}", figures.count, figures.mean)?;
            for value in figures.percentiles.values() {
                write!(f, " {:>9.3}", value.as_f64().unwrap_or(f64::NAN))?;
            }
            writeln!(f, " {:>9.3}", figures.max)
        };
        for (name, meaning) in NAMES {
            if let Some(figures) = self.latency_ms.get(name) {
                row(f, meaning, figures)?;
            }
        }
        if self.kinds.len() > 1 {
            for kind in Kind::ALL {
                let of_kind = self.kinds.get(kind.name()).and_then(|report| report.latency_ms.get("e2e"));
                if let Some(figures) = of_kind {
                    row(f, &format!("  end to end, {}", kind.name()), figures)?;
                }
            }
        }
        self.notes(f)
    }
}
