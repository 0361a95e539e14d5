//! `sidereal bench serve`: a load generator for this server, and for others that speak OpenAI's routes.

mod answer;
mod clock;
mod connection;
mod drive;
mod histogram;
mod http;
mod kinds;
mod plot;
mod pool;
mod prompts;
mod random;
mod record;
mod report;
mod schedule;
mod setup;
mod sse;
mod target;
#[cfg(test)]
mod tests;
mod verify;

use std::fs::File;
use std::io::BufWriter;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

use drive::{Load, Outcome, Pace, Work};
use kinds::{Kind, Mix, Slo};
use pool::{Endpoint, Prepared, Shape, Source, Streamed};
use prompts::Maker;
use report::Report;
use setup::Client;
use target::Target;
use verify::Verifier;

/// Requests of a run of which neither number nor time is given.
const REQUESTS: u64 = 1000;
/// Requests at a time: of a closed loop, and at most of an open one.
const CONCURRENCY: (usize, usize) = (8, 4096);
/// Different requests made before the run.
const DISTINCT: usize = 4096;
/// Bounds of options.
const MAX_CONCURRENCY: usize = 65_536;
const MAX_THREADS: usize = 256;
const MAX_DISTINCT: usize = 1_000_000;
const MAX_RATE: f64 = 1e6;

/// Drive a server over HTTP and measure it.
#[derive(Args, Debug)]
#[command(
    after_help = "A closed loop (--concurrency) sends when an answer has come: throughput. An open loop (--rate) sends when requests are due, \
whatever becomes of those before, and counts latencies from that time: what users feel. Times are kept in logarithmic buckets, at most 0.4 % away \
from the sample; minimum, mean and maximum are exact.

Examples:
  sidereal bench serve --concurrency 32 --duration 30s
  sidereal bench serve --rate 200 --duration 1m --slo ttft=200,items=100 --verify catalog.jsonl --plot run.svg
  sidereal bench serve --mix text --prompt-tokens 512 --max-tokens 128 --extra '{\"ignore_eos\": true}'"
)]
pub struct ServeBench {
    /// The server
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8000")]
    url: String,
    /// Key sent as `Authorization: Bearer` [default: $SIDEREAL_API_KEY, if there is one]
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
    /// Further headers of every request
    #[arg(long, value_name = "NAME: VALUE")]
    header: Vec<String>,
    #[command(flatten)]
    amount: Amount,
    #[command(flatten)]
    content: Content,
    #[command(flatten)]
    result: ResultArgs,
}

/// How much is sent, and when.
#[derive(Args, Debug)]
#[command(next_help_heading = "Load")]
struct Amount {
    /// Requests [default: 1000, without --duration]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    requests: Option<u64>,
    /// Time in which requests are sent: 30s, 5m
    #[arg(long, value_name = "TIME", value_parser = kinds::parse_duration)]
    duration: Option<Duration>,
    /// Requests at a time, a connection for each [default: 8; with --rate at most 4096]
    #[arg(long, value_name = "C")]
    concurrency: Option<usize>,
    /// Open loop: requests per second, whatever becomes of those before
    #[arg(long, value_name = "R")]
    rate: Option<f64>,
    /// Shape of the gamma distribution of gaps: 1 is Poisson, less has more bursts, inf is even
    #[arg(long, value_name = "B", default_value_t = 1.0, requires = "rate")]
    burstiness: f64,
    /// Requests sent before, in a closed loop, that do not count
    #[arg(long, value_name = "N", default_value_t = 0)]
    warmup: u64,
    /// Threads that send
    #[arg(long, value_name = "N", default_value_t = 1)]
    threads: usize,
    /// Key of all randomness: kinds, prompts, arrivals, cancellations
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Longest time of a request
    #[arg(long, value_name = "TIME", default_value = "120s", value_parser = kinds::parse_duration)]
    timeout: Duration,
    /// Share of streamed answers that are dropped after 1 to 16 pieces, unless they end before
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    cancel: f64,
}

/// What is sent.
#[derive(Args, Debug)]
#[command(next_help_heading = "Requests")]
struct Content {
    /// Kinds of requests and their weights [default: search=4,recommend=3,mixed=2,text=1; for --prompts text, or search at --endpoint items]
    #[arg(long, value_name = "KIND=WEIGHT,…")]
    mix: Option<Mix>,
    /// One route for all [default: items for search and recommend, chat for mixed and text, completions for text without messages]
    #[arg(long, value_enum)]
    endpoint: Option<Endpoint>,
    /// Which answers are streamed
    #[arg(long, value_enum, default_value_t = Streamed::Text)]
    stream: Streamed,
    /// Prompts as JSON lines, cycled: {"prompt": …}, {"messages": …}, whole native requests [default: made from items of the catalog]
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Random text of about so many tokens before each prompt that is made [default: 0, without a catalog 128]
    #[arg(long, value_name = "N", conflicts_with = "prompts")]
    prompt_tokens: Option<usize>,
    /// Different requests, made before the run and cycled [default: as many as are sent, at most 4096]
    #[arg(long, value_name = "N")]
    distinct: Option<usize>,
    /// Name of the model, for OpenAI's routes [default: the server's first]
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Items of a list [default: 10]
    #[arg(short, long, value_name = "N")]
    n: Option<u64>,
    /// Beam width of a list [default: the server's]
    #[arg(long, value_name = "W")]
    beam_width: Option<u64>,
    /// Tokens of a text
    #[arg(long, value_name = "N", default_value_t = 64)]
    max_tokens: u64,
    /// Temperature of a text [default: the server's]
    #[arg(long, value_name = "T")]
    temperature: Option<f64>,
    /// Types of items [default: those of the prompts]
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    item_types: Vec<String>,
    /// Filter of items
    #[arg(long, value_name = "JSON", value_parser = parse_json)]
    filter: Option<Value>,
    /// Object merged into every body; null takes a field out
    #[arg(long, value_name = "JSON", value_parser = parse_json)]
    extra: Option<Value>,
}

/// What becomes of the result.
#[derive(Args, Debug)]
#[command(next_help_heading = "Result")]
struct ResultArgs {
    /// Objective in milliseconds, of which the goodput is told: first content, longest gap, time per token, whole list, end to end
    #[arg(long, value_name = "ttft=MS,itl=MS,tpot=MS,items=MS,e2e=MS")]
    slo: Option<Slo>,
    /// Catalog (snapshot or source; several if the server changes its own) in which every item of an answer must be
    #[arg(long, value_name = "FILE")]
    verify: Vec<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Write a JSON line per request
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Draw the distributions
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Fail if a request fails, refusals (429) excepted
    #[arg(long)]
    fail_on_error: bool,
}

fn parse_json(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

impl ServeBench {
    /// Runs the command.
    pub fn run(&self) -> anyhow::Result<()> {
        let (report, outcome) = self.measure()?;
        if self.result.json {
            println!("{}", serde_json::to_string(&report)?);
        } else {
            print!("{report}");
        }
        if let Some(path) = &self.result.plot {
            let all = report::total(&outcome.recorder);
            let title = format!("{}: {} requests", self.url, report.counts().done);
            let series =
                report::distributions(&all).map(|(name, histogram)| (report::meaning(name), histogram));
            let picture = plot::svg(&title, &series);
            std::fs::write(path, picture).with_context(|| path.display().to_string())?;
        }
        let counts = report.counts();
        if counts.invalid_items > 0 {
            bail!("{} items of {} should not have been named", counts.invalid_items, counts.items);
        }
        if self.result.fail_on_error && counts.errors > 0 {
            bail!("{} requests of {} failed", counts.errors, counts.sent);
        }
        Ok(())
    }

    fn measure(&self) -> anyhow::Result<(Report, Outcome)> {
        let load = self.load()?;
        clock::raise_open_files();
        // Other processes can read a command line.
        let api_key = self.api_key.clone().or_else(|| std::env::var("SIDEREAL_API_KEY").ok());
        let target = Target::new(&self.url, api_key.as_deref(), &self.header)?;
        let verifier = Verifier::new(setup::catalogs(&self.result.verify)?);
        let pool = self.pool(&target, &verifier, &load)?;
        let mut work = Work::new(target, pool, verifier, self.result.slo.unwrap_or_default(), load);
        if let Some(path) = &self.result.out {
            let file = File::create(path).with_context(|| path.display().to_string())?;
            work.out = Some(Mutex::new(BufWriter::with_capacity(1 << 20, file)));
        }
        let work = Arc::new(work);
        stop_on_interrupt(&work)?;
        let bar = bar(&load);
        let outcome = work.run(|work| {
            let time = work.begun().map(|begin| begin.elapsed().as_millis() as u64);
            let ended = work.ended.load(Ordering::Relaxed);
            bar.set_position(if load.requests.is_some() { ended } else { time.unwrap_or_default() });
            bar.set_message(format!("{ended} requests"));
        });
        bar.finish_and_clear();
        let outcome = outcome?;
        Ok((Report::new(&self.url, &work, &outcome), outcome))
    }

    fn load(&self) -> anyhow::Result<Load> {
        let Amount { rate, burstiness, threads, cancel, .. } = self.amount;
        let within = |name: &str, value: f64, low: f64, high: f64| {
            // Neither holds for a NaN.
            if !(value >= low && value <= high) {
                bail!("{name}: {value} is outside of {low} to {high}");
            }
            Ok(())
        };
        let default = if rate.is_some() { CONCURRENCY.1 } else { CONCURRENCY.0 };
        let concurrency = self.amount.concurrency.unwrap_or(default.max(threads));
        within("--threads", threads as f64, 1.0, MAX_THREADS as f64)?;
        within("--concurrency", concurrency as f64, threads as f64, MAX_CONCURRENCY as f64)?;
        within("--cancel", cancel, 0.0, 1.0)?;
        within("--burstiness", burstiness, 0.001, f64::INFINITY)?;
        let pace = match rate {
            None => Pace::Closed,
            Some(rate) => {
                within("--rate", rate, 1e-6, MAX_RATE)?;
                Pace::Open { rate, burstiness }
            }
        };
        let Amount { requests, duration, warmup, timeout, seed, .. } = self.amount;
        let requests = requests.or(duration.is_none().then_some(REQUESTS));
        Ok(Load { pace, concurrency, threads, warmup, requests, duration, timeout, cancel, seed })
    }

    /// The requests, with what the server says of itself where the options leave something open.
    fn pool(&self, target: &Target, verifier: &Verifier, load: &Load) -> anyhow::Result<Vec<Prepared>> {
        let content = &self.content;
        let sent = load.requests.map_or(DISTINCT, |requests| requests.min(DISTINCT as u64) as usize);
        let distinct = content.distinct.unwrap_or(sent);
        if !(1..=MAX_DISTINCT).contains(&distinct) {
            bail!("--distinct: {distinct} is outside of 1 to {MAX_DISTINCT}");
        }
        let mut client = Client::new(target)?;
        let shape = self.shape(&mut client)?;
        let filters = verifier.filters();
        if let Some(path) = &content.prompts {
            let lines = prompts::read(path)?;
            let mix = content.mix.unwrap_or(match content.endpoint {
                Some(Endpoint::Items) => Mix::only(Kind::Search),
                _ => Mix::only(Kind::Text),
            });
            return shape.pool(target, &Source::Lines(&lines), (mix, distinct, load.seed), filters);
        }
        let mix: Mix = match content.mix {
            Some(mix) => mix,
            None => "search=4,recommend=3,mixed=2,text=1".parse().map_err(anyhow::Error::msg)?,
        };
        let items = match verifier.catalogs() {
            [] => client.items(&content.item_types),
            catalogs => Ok(setup::items_of(&catalogs[0], &content.item_types, load.seed)),
        };
        let items = match (items, mix.kinds().any(Kind::needs_items)) {
            (Ok(items), true) if items.is_empty() => {
                bail!(
                    "no items to make prompts from: name prompts with --prompts, a catalog with --verify, or use --mix text"
                )
            }
            (Ok(items), _) => items,
            // Text needs none.
            (Err(_), false) => Vec::new(),
            (Err(error), true) => return Err(error),
        };
        let tokens = content.prompt_tokens.unwrap_or(if items.is_empty() { 128 } else { 0 });
        if tokens > 1_000_000 {
            bail!("--prompt-tokens: {tokens} is outside of 0 to 1000000");
        }
        let words = if tokens == 0 { 0 } else { client.words(tokens, load.seed) };
        let maker = Maker::new(items, words, load.seed);
        shape.pool(target, &Source::Made(&maker), (mix, distinct, load.seed), filters)
    }

    fn shape(&self, client: &mut Client<'_>) -> anyhow::Result<Shape> {
        let content = &self.content;
        let model = match &content.model {
            Some(model) => Some(model.clone()),
            None if content.endpoint == Some(Endpoint::Items) => None,
            None => Some(client.model()?),
        };
        let extra = match content.extra.clone() {
            None => serde_json::Map::new(),
            Some(Value::Object(fields)) => fields,
            Some(_) => bail!("--extra: an object is expected"),
        };
        Ok(Shape {
            endpoint: content.endpoint,
            streamed: content.stream,
            model,
            n: content.n,
            beam_width: content.beam_width,
            max_tokens: Some(content.max_tokens),
            temperature: content.temperature,
            item_types: content.item_types.clone(),
            filter: content.filter.clone(),
            extra,
        })
    }
}

/// The first Ctrl-C ends the sending, and what was measured is told; the second ends the program.
fn stop_on_interrupt(work: &Arc<Work>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let work = Arc::downgrade(work);
    std::thread::Builder::new().name("interrupt".to_owned()).spawn(move || {
        runtime.block_on(async {
            if tokio::signal::ctrl_c().await.is_err() {
                return;
            }
            if let Some(work) = work.upgrade() {
                work.stop.store(true, Ordering::Relaxed);
                eprintln!("note: no more requests are sent; once more ends at once");
            }
            if tokio::signal::ctrl_c().await.is_ok() {
                std::process::exit(130);
            }
        });
    })?;
    Ok(())
}

/// Progress on standard error, by requests or by time; silent unless that is a terminal.
fn bar(load: &Load) -> ProgressBar {
    let length = load.requests.or(load.duration.map(|duration| duration.as_millis() as u64));
    let bar = ProgressBar::with_draw_target(length, ProgressDrawTarget::stderr());
    let style = match load.requests {
        Some(_) => "{wide_bar} {pos}/{len} {elapsed}",
        None => "{wide_bar} {msg} {elapsed}",
    };
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    bar
}
