//! What monitoring sees: Prometheus text under the prefix `sidereal:`, with vLLM's names and buckets where it has them.

use std::fmt::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::engine::{Answer, Engine, Output};

/// vLLM's buckets of the time to first token, seconds.
const FIRST: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];
/// vLLM's buckets of the time between tokens, seconds, after finer ones of our own.
const GAP: [f64; 22] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
    10.0, 20.0, 40.0, 80.0,
];
/// vLLM's buckets of whole requests, seconds, after finer ones of our own: lists of items take milliseconds.
const WHOLE: [f64; 30] = [
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0,
    15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
];
/// vLLM's buckets of counts of tokens.
const TOKENS: [f64; 17] =
    [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5];
/// vLLM's buckets of `n`, and more: `n` counts items too.
const COUNTS: [f64; 9] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 500.0, 1000.0];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Finished {
    finished_reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Served {
    handler: Arc<str>,
    status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Refused {
    reason: &'static str,
}

/// All metrics of a server.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    http: Family<Served, Counter>,
    finished: Family<Finished, Counter>,
    refused: Family<Refused, Counter>,
    first_token: Histogram,
    between_tokens: Histogram,
    items: Histogram,
    whole: Histogram,
    queue: Histogram,
    prefill: Histogram,
    decode: Histogram,
    prompt_tokens: Histogram,
    generation_tokens: Histogram,
    wanted: Histogram,
    max_tokens: Histogram,
    /// Open connections.
    pub connections: Gauge,
    /// Answers that the audit log has lost.
    pub audit_lost: Counter,
    /// Connections cut because of a denial.
    pub connections_cut: Counter,
}

impl Metrics {
    pub fn new(engine: &Engine) -> Metrics {
        let mut registry = Registry::default();
        let histogram = |buckets: &'static [f64]| Histogram::new(buckets.iter().copied());
        let metrics = Metrics {
            http: Family::default(),
            finished: Family::default(),
            refused: Family::default(),
            first_token: histogram(&FIRST),
            between_tokens: histogram(&GAP),
            items: histogram(&WHOLE),
            whole: histogram(&WHOLE),
            queue: histogram(&WHOLE),
            prefill: histogram(&WHOLE),
            decode: histogram(&WHOLE),
            prompt_tokens: histogram(&TOKENS),
            generation_tokens: histogram(&TOKENS),
            wanted: histogram(&COUNTS),
            max_tokens: histogram(&TOKENS),
            connections: Gauge::default(),
            audit_lost: Counter::default(),
            connections_cut: Counter::default(),
            registry: Registry::default(),
        };
        let m = &metrics;
        let mut seconds = |name: &str, help: &str, histogram: &Histogram| {
            registry.register(format!("sidereal:{name}_seconds"), help, histogram.clone());
        };
        seconds("time_to_first_token", "From the request to the first piece of text", &m.first_token);
        seconds("inter_token_latency", "Between two pieces of text", &m.between_tokens);
        seconds("items_latency", "From the request to its ranked list of items", &m.items);
        seconds("e2e_request_latency", "From the request to the end of its answer", &m.whole);
        seconds("request_queue_time", "Waiting to be admitted", &m.queue);
        seconds("request_prefill_time", "From admission to the end of the prompt", &m.prefill);
        seconds("request_decode_time", "From the end of the prompt to the end of the answer", &m.decode);
        for (name, help, histogram) in [
            ("request_prompt_tokens", "Tokens of prompts", &m.prompt_tokens),
            ("request_generation_tokens", "Tokens of answers", &m.generation_tokens),
            ("request_params_n", "Answers or items asked for", &m.wanted),
            ("request_params_max_tokens", "Most tokens of an answer asked for", &m.max_tokens),
        ] {
            registry.register(format!("sidereal:{name}"), help, histogram.clone());
        }
        registry.register("sidereal:http_requests", "HTTP requests by route and status", m.http.clone());
        registry.register(
            "sidereal:request_success",
            "Requests answered, by how they ended",
            m.finished.clone(),
        );
        registry.register("sidereal:requests_refused", "Requests refused before they ran", m.refused.clone());
        registry.register("sidereal:connections", "Open connections", m.connections.clone());
        let cut = "Connections cut because an item was denied before it was sent";
        registry.register("sidereal:connections_cut", cut, m.connections_cut.clone());
        registry.register("sidereal:audit_lost", "Answers missing in the audit log", m.audit_lost.clone());
        registry.register_collector(Box::new(EngineNumbers { engine: engine.clone() }));
        Metrics { registry, ..metrics }
    }

    /// The text that Prometheus scrapes.
    pub fn text(&self) -> Result<String, Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// Counts an HTTP answer.
    pub fn served(&self, handler: &Arc<str>, status: u16) {
        self.http.get_or_create(&Served { handler: Arc::clone(handler), status }).inc();
    }

    /// Counts a request that was turned away.
    pub fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&Refused { reason }).inc();
    }

    /// Notes what a request asks for.
    pub fn asked(&self, wanted: Option<i64>, max_tokens: Option<i64>) {
        self.wanted.observe(wanted.unwrap_or(1) as f64);
        if let Some(tokens) = max_tokens {
            self.max_tokens.observe(tokens as f64);
        }
    }

    /// Notes a piece of text that came `gap` after the one before.
    pub fn piece(&self, gap: Duration) {
        self.between_tokens.observe(gap.as_secs_f64());
    }

    /// Notes the first piece of text.
    pub fn first_piece(&self, after: Duration) {
        self.first_token.observe(after.as_secs_f64());
    }

    /// Notes a request that ended without an answer.
    pub fn ended(&self, reason: &'static str) {
        self.finished.get_or_create(&Finished { finished_reason: reason }).inc();
    }

    /// Notes a whole answer.
    pub fn answered(&self, answer: &Answer, after: Duration) {
        self.ended(answer.finish_reason.name());
        self.whole.observe(after.as_secs_f64());
        if answer.output == Output::Items {
            self.items.observe(after.as_secs_f64());
        }
        let timing = &answer.timing;
        self.queue.observe(timing.queue.as_secs_f64());
        self.prefill.observe(timing.prefill.as_secs_f64());
        self.decode.observe(timing.decode.as_secs_f64());
        self.prompt_tokens.observe(answer.usage.prompt_tokens as f64);
        self.generation_tokens.observe(answer.usage.completion_tokens as f64);
    }
}

/// What the engine and its catalog count themselves, read when asked for.
#[derive(Debug)]
struct EngineNumbers {
    engine: Engine,
}

/// Writes single numbers.
struct Numbers<'a> {
    encoder: DescriptorEncoder<'a>,
}

impl Numbers<'_> {
    fn gauge(&mut self, name: &str, help: &str, value: f64) -> Result<(), Error> {
        let gauge = ConstGauge::new(value);
        let name = format!("sidereal:{name}");
        let metric = self.encoder.encode_descriptor(&name, help, None, gauge.metric_type())?;
        gauge.encode(metric)
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> Result<(), Error> {
        let counter = ConstCounter::new(value);
        let name = format!("sidereal:{name}");
        let metric = self.encoder.encode_descriptor(&name, help, None, counter.metric_type())?;
        counter.encode(metric)
    }
}

impl Collector for EngineNumbers {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut out = Numbers { encoder };
        let (load, counters) = (self.engine.load(), self.engine.counters());
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        out.gauge("num_requests_running", "Requests in the batch", load.running_requests as f64)?;
        out.gauge("num_requests_waiting", "Requests that wait", load.waiting_requests as f64)?;
        out.gauge(
            "num_rows_waiting",
            "Rows that waiting requests will take of a step",
            load.waiting_rows as f64,
        )?;
        out.gauge("num_tokens_waiting", "Prompt tokens of waiting requests", load.waiting_tokens as f64)?;
        out.gauge(
            "expected_queue_seconds",
            "How long a request that comes now will wait",
            load.queue_wait.as_secs_f64(),
        )?;
        let blocks = load.blocks.total.max(1) as f64;
        out.gauge(
            "kv_cache_usage_perc",
            "Share of the key/value cache in use, 0 to 1",
            load.blocks.used as f64 / blocks,
        )?;
        out.gauge(
            "kv_cache_shared_perc",
            "Share of the cache that holds prefixes only, 0 to 1",
            load.blocks.cached as f64 / blocks,
        )?;
        let health = self.engine.health();
        out.gauge(
            "last_step_age_seconds",
            "Age of the last step while there is work",
            if health.idle { 0.0 } else { health.since_step.as_secs_f64() },
        )?;
        for (name, help, value) in [
            ("num_preemptions", "Times that a request gave way to another", read(&counters.preemptions)),
            ("prompt_tokens", "Prompt tokens of answered requests", read(&counters.prompt_tokens)),
            (
                "prefix_cache_queries",
                "Prompt tokens looked up in the prefix cache",
                read(&counters.prompt_tokens),
            ),
            ("prefix_cache_hits", "Prompt tokens found in the prefix cache", read(&counters.cached_tokens)),
            ("generation_tokens", "Tokens of answers", read(&counters.generation_tokens)),
            ("engine_steps", "Steps run", read(&counters.steps)),
            ("engine_rows", "Rows computed", read(&counters.rows)),
            ("requests_cancelled", "Requests whose reader went away", read(&counters.cancelled)),
            ("requests_expired", "Requests that ran past their deadline", read(&counters.expired)),
            ("requests_failed", "Requests ended by an error of their own", read(&counters.failed)),
            ("items", "Items named", read(&counters.items)),
            ("items_exhausted", "Lists with fewer items than asked for", read(&counters.exhausted)),
            (
                "gate_violations",
                "Items that the last gate refused although the search named them: a bug",
                read(&counters.gate_violations),
            ),
            (
                "items_denied_in_flight",
                "Items denied after the search had named them",
                read(&counters.denied_in_flight),
            ),
        ] {
            out.counter(name, help, value)?;
        }
        let Some(catalog) = self.engine.catalog() else { return Ok(()) };
        let stats = catalog.stats();
        for (name, help, value) in [
            ("catalog_items", "Items of the snapshot", stats.items),
            ("catalog_items_added", "Items added since the snapshot", stats.added),
            ("catalog_items_removed", "Items removed since the snapshot", stats.removed),
            ("catalog_items_denied", "Denied ids", stats.denied),
            ("catalog_snapshots_resident", "Snapshots in memory", stats.resident),
        ] {
            out.gauge(name, help, value as f64)?;
        }
        out.counter("catalog_swaps", "Snapshots swapped in", stats.swaps)?;
        out.counter("catalog_compactions", "Compactions finished", stats.compactions)?;
        let info = ConstGauge::new(1i64);
        let snapshot = [("snapshot", stats.view.as_str())];
        let help = "The catalog's present version";
        let mut metric =
            out.encoder.encode_descriptor("sidereal:catalog_info", help, None, info.metric_type())?;
        info.encode(metric.encode_family(&snapshot)?)
    }
}
