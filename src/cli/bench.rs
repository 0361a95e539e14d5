//! `sidereal bench`: measurements of whole steps, with the limit beside the figure, and of servers.

mod serve;
mod sid;
mod walk;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use serde::Serialize;
use sidereal::catalog::{Layout, LayoutSpec, TypeSpec, synthetic};
use sidereal::device::cpu::Reader;
use sidereal::device::ops::DType;
use sidereal::engine::{Engine, EngineBuilder, EngineParts, EventStream, OneOrMany, Output, Request, Turn};
use sidereal::ids::TokenId;
use sidereal::model::random::{self, RandomSpec};
use sidereal::text::{Tokenizer, tiny};

use super::load::{DTypeArg, DeviceArg, progress};

/// Measure a model or the SID step on this machine, with the limit beside the figure, or a server.
#[derive(Subcommand)]
pub enum Bench {
    /// Prefill, decode and beam search of a model folder, or of random weights of a named shape.
    Model(ModelBench),
    /// The SID step on one thread of the CPU, level by level, on a synthetic catalog.
    Sid(sid::SidBench),
    /// A server under load: latencies, throughput, goodput, and whether every item it names is in the catalog.
    Serve(Box<serve::ServeBench>),
}

/// Prefill, decode and beam search.
#[derive(Args)]
pub struct ModelBench {
    /// Hugging Face folder of the model
    #[arg(long, value_name = "DIR", conflicts_with = "random")]
    model: Option<PathBuf>,
    /// Random weights of a named shape: qwen3-0.6b, qwen3-1.7b, llama-3.2-1b, tiny … [default: qwen3-0.6b]
    #[arg(long, value_name = "NAME")]
    random: Option<String>,
    /// Type of random weights
    #[arg(long, value_enum, default_value_t = DTypeArg::Bf16)]
    weights: DTypeArg,
    /// Type of activations and cache [default: f32 on the CPU, bf16 elsewhere]
    #[arg(long, value_enum)]
    dtype: Option<DTypeArg>,
    /// Where the model runs
    #[arg(long, value_enum, default_value_t = DeviceArg::Cpu)]
    device: DeviceArg,
    /// One order of every sum, whatever else is computed beside it
    #[arg(long)]
    reproducible: bool,
    /// Threads of the CPU [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<std::num::NonZeroUsize>,
    /// Tokens of a prompt
    #[arg(long, value_name = "N", default_value_t = 512)]
    prompt: usize,
    /// Tokens before the first one that is decoded
    #[arg(long, value_name = "N", default_value_t = 16)]
    context: usize,
    /// Tokens decoded
    #[arg(long, value_name = "N", default_value_t = 32)]
    decode: usize,
    /// Sequences decoded together, and beam requests searched together
    #[arg(long, value_name = "N", default_value_t = 1)]
    batch: usize,
    /// Beam width; 0: no beam search
    #[arg(long, value_name = "W", default_value_t = 30)]
    beam_width: usize,
    /// Codebooks of the synthetic catalog (random weights only)
    #[arg(long, value_name = "K,K,K", value_delimiter = ',', default_value = "8192,8192,8192")]
    levels: Vec<usize>,
    /// Items of the synthetic catalog (random weights only)
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    items: usize,
    /// Repetitions; medians are printed
    #[arg(long, value_name = "N", default_value_t = 5)]
    repeat: usize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Bench {
    /// Runs the command.
    pub fn run(&self) -> anyhow::Result<()> {
        match self {
            Bench::Model(bench) => bench.run(),
            Bench::Sid(bench) => bench.run(),
            Bench::Serve(bench) => bench.run(),
        }
    }
}

/// Figures of a run; times in milliseconds.
#[derive(Serialize)]
struct Figures {
    model: String,
    device: String,
    /// Bytes of weights that one step reads.
    weight_bytes: usize,
    /// Bytes of cached keys and values that a decode step reads beside them, in the middle of the run.
    cache_bytes: usize,
    read_gb_s: f64,
    prompt_tokens: usize,
    prefill_ms: f64,
    prefill_tokens_s: f64,
    /// Of a GPU: what the products of a prefill need at the measured rate of the matrix units, over its time.
    #[serde(skip_serializing_if = "Option::is_none")]
    prefill_share_of_matrix: Option<f64>,
    /// Prompts of `decode_batch` sequences, `context_tokens` each, in as few steps as they fit into.
    context_tokens: usize,
    batch_prefill_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    batch_prefill_share_of_matrix: Option<f64>,
    decode_batch: usize,
    decode_ms: f64,
    decode_tokens_s: f64,
    decode_gb_s: f64,
    decode_share_of_read: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    beam: Option<BeamFigures>,
}

/// A beam request beside what it consists of.
#[derive(Serialize)]
struct BeamFigures {
    width: usize,
    levels: usize,
    requests: usize,
    /// From the first prompt's begin to the last list.
    request_ms: f64,
    /// The same prompts' prefills, and `levels` decode steps of as many independent sequences as there are beams, with short contexts.
    parts_ms: f64,
    ratio: f64,
    step_ms: f64,
}

/// Milliseconds, and GB/s of a plain sum.
#[derive(Default)]
struct Samples {
    read: Vec<f64>,
    prefill: Vec<f64>,
    /// Prompts of the sequences that are decoded.
    batch_prefill: Vec<f64>,
    /// Median step of each pass.
    decode: Vec<f64>,
    /// Steps of each beam request, its prefill the first.
    beams: Vec<Vec<f64>>,
    /// Median step of as many independent sequences as the beam is wide.
    batched: Vec<f64>,
}

impl Samples {
    fn beam_figures(
        &self,
        width: usize,
        levels: usize,
        requests: usize,
        prefill: f64,
    ) -> Option<BeamFigures> {
        self.beams.first()?;
        let totals: Vec<f64> = self.beams.iter().map(|steps| steps.iter().sum()).collect();
        // A device may answer before a step is done: steps are averaged, and the last one waits for all.
        let mean = |steps: &Vec<f64>| steps[1..].iter().sum::<f64>() / (steps.len() - 1).max(1) as f64;
        let steps: Vec<f64> = self.beams.iter().map(mean).collect();
        let request = median(&totals);
        let parts = requests as f64 * prefill + levels as f64 * median(&self.batched);
        Some(BeamFigures {
            width,
            levels,
            requests,
            request_ms: request,
            parts_ms: parts,
            ratio: request / parts,
            step_ms: median(&steps),
        })
    }
}

/// An engine about to start, and what its steps cost.
struct Opened {
    builder: EngineBuilder,
    name: String,
    /// Prompts are drawn from tokens below it.
    vocab: usize,
    /// Weights that a step reads.
    weight_bytes: usize,
    /// Keys and values of a token.
    token_bytes: usize,
    /// Multiplications and additions of the layers' products per token of a prompt; attention is not counted.
    token_operations: f64,
    max_rows: usize,
}

/// Rows of the largest step, as `--max-rows` has it.
const MOST_ROWS: usize = 65_536;

impl ModelBench {
    fn run(&self) -> anyhow::Result<()> {
        if self.repeat == 0 || self.batch == 0 || self.decode < 2 || self.prompt < 2 {
            bail!("--repeat and --batch must be at least 1, --decode and --prompt at least 2");
        }
        let Opened { builder, name, vocab, weight_bytes, token_bytes, token_operations, max_rows } =
            self.open()?;
        let mut limit = Limit::of(self)?;
        let mut runner = Runner { parts: builder.parts()?, vocab, draw: 0 };
        let prefill_steps = (self.batch * self.context).div_ceil(max_rows);
        let samples = self.measure(&mut runner, &mut limit, prefill_steps)?;
        let (prefill, decode) = (median(&samples.prefill), median(&samples.decode));
        let batch_prefill = median(&samples.batch_prefill);
        let read = median(&samples.read);
        let cache_bytes = self.batch * (self.context + self.decode / 2) * token_bytes;
        let gb_s = (weight_bytes + cache_bytes) as f64 / decode / 1e6;
        let share = |tokens: usize, ms: f64| {
            limit.matrix().map(|rate| tokens as f64 * token_operations / rate / (ms * 1e-3))
        };
        let figures = Figures {
            model: name,
            device: runner.parts.description().to_owned(),
            weight_bytes,
            cache_bytes,
            read_gb_s: read,
            prompt_tokens: self.prompt,
            prefill_ms: prefill,
            prefill_tokens_s: self.prompt as f64 / prefill * 1e3,
            prefill_share_of_matrix: share(self.prompt, prefill),
            context_tokens: self.context,
            batch_prefill_ms: batch_prefill,
            batch_prefill_share_of_matrix: share(self.batch * self.context, batch_prefill),
            decode_batch: self.batch,
            decode_ms: decode,
            decode_tokens_s: self.batch as f64 / decode * 1e3,
            decode_gb_s: gb_s,
            decode_share_of_read: gb_s / read,
            beam: samples.beam_figures(self.beam_width, self.levels.len(), self.batch, prefill),
        };
        self.print(&figures)
    }

    /// One pass to fault pages in; then everything in turns, so that drifts of the machine meet all figures alike.
    fn measure(
        &self,
        runner: &mut Runner,
        limit: &mut Limit,
        prefill_steps: usize,
    ) -> anyhow::Result<Samples> {
        let bar = progress("measuring");
        bar.set_length(self.repeat as u64 + 1);
        let mut samples = Samples::default();
        for pass in 0..=self.repeat {
            let prefill = runner.text(1, self.prompt, 1)?;
            // The limit is read right before and after what it limits.
            let before = limit.read_gb_s();
            let decode = runner.text(self.batch, self.context, self.decode)?;
            let after = limit.read_gb_s();
            let mut beam = (Vec::new(), Vec::new());
            if self.beam_width > 0 {
                let rows = self.batch * self.beam_width;
                beam = (runner.beam(self.batch, self.prompt, self.beam_width)?, runner.text(rows, 16, 6)?);
            }
            bar.inc(1);
            if pass == 0 {
                continue;
            }
            samples.read.extend([before, after]);
            samples.prefill.push(prefill.iter().sum());
            let (prompts, steps) = decode.split_at(prefill_steps.min(decode.len() - 1));
            samples.batch_prefill.push(prompts.iter().sum());
            samples.decode.push(median(steps));
            if self.beam_width > 0 {
                samples.beams.push(beam.0);
                samples.batched.push(median(&beam.1[1..]));
            }
        }
        bar.finish_and_clear();
        Ok(samples)
    }

    fn print(&self, f: &Figures) -> anyhow::Result<()> {
        if self.json {
            println!("{}", serde_json::to_string(f)?);
            return Ok(());
        }
        println!("{} on {}", f.model, f.device);
        println!("{:<34} {:>10.2} GB/s", "read bandwidth (plain sum)", f.read_gb_s);
        println!(
            "{:<34} {:>10.2} ms    {:>9.1} tokens/s{}",
            format!("prefill, {} tokens", f.prompt_tokens),
            f.prefill_ms,
            f.prefill_tokens_s,
            of_matrix(f.prefill_share_of_matrix)
        );
        if f.decode_batch > 1 {
            println!(
                "{:<34} {:>10.2} ms    {:>9.1} tokens/s{}",
                format!("prefill, {} x {} tokens", f.decode_batch, f.context_tokens),
                f.batch_prefill_ms,
                (f.decode_batch * f.context_tokens) as f64 / f.batch_prefill_ms * 1e3,
                of_matrix(f.batch_prefill_share_of_matrix)
            );
        }
        println!(
            "{:<34} {:>10.2} ms    {:>9.1} tokens/s  {:.2} GB/s of weights and cache, {:.2} of the read bandwidth",
            format!("decode, batch {}", f.decode_batch),
            f.decode_ms,
            f.decode_tokens_s,
            f.decode_gb_s,
            f.decode_share_of_read
        );
        if let Some(beam) = &f.beam {
            println!(
                "{:<34} {:>10.2} ms    {:.2} of its prefill and {} batched steps ({:.2} ms); a beam step {:.2} ms",
                format!("{} x beam {}, {} levels", beam.requests, beam.width, beam.levels),
                beam.request_ms,
                beam.ratio,
                beam.levels,
                beam.parts_ms,
                beam.step_ms
            );
        }
        Ok(())
    }

    fn open(&self) -> anyhow::Result<Opened> {
        let (builder, name, vocab) = match &self.model {
            Some(folder) => {
                if self.beam_width > 0 {
                    bail!("beams of a model folder need its catalog: use --beam-width 0, or random weights");
                }
                let builder = EngineBuilder::open(folder)?;
                let vocab = builder.model_ref().shape().vocab;
                (builder, folder.display().to_string(), vocab)
            }
            None => self.random()?,
        };
        let model = builder.model_ref();
        let weights = &model.weights;
        // A tied embedding is read once, as the head; an embedding of its own gives a row per token.
        let embedding = weights.embed.bytes().len();
        let weight_bytes = model.weight_bytes() - if model.config.tied { 0 } else { embedding };
        let elements = (weight_bytes - embedding) / weights.embed.dtype().size();
        let dtype = DType::from(self.dtype.unwrap_or(self.device.dtype()));
        let beams = self.batch * self.beam_width;
        // A prefill of more rows would take as long as a device that hangs.
        let prompts = (self.batch * self.prompt.min(1024)).min(MOST_ROWS);
        let max_rows = (self.prompt + 8).max(prompts).max(beams).max(512);
        let mut builder = builder.dtype(dtype).max_rows(max_rows);
        if let Some(threads) = self.threads {
            builder = builder.threads(threads.get());
        }
        let rows =
            (self.prompt + self.decode + 64) * self.batch.max(2) + (64 + 8 * self.levels.len()) * beams;
        let shape = builder.model_ref().shape();
        let token = 2 * shape.layers * shape.kv_heads * shape.head_dim * dtype.size();
        let builder = self.device.place(builder.cache_bytes(rows * token), self.reproducible)?;
        let token_operations = 2.0 * elements as f64;
        Ok(Opened { builder, name, vocab, weight_bytes, token_bytes: token, token_operations, max_rows })
    }

    fn random(&self) -> anyhow::Result<(EngineBuilder, String, usize)> {
        let name = self.random.as_deref().unwrap_or("qwen3-0.6b");
        let spec = RandomSpec::named(name)
            .with_context(|| format!("--random; names: {}", random::names().collect::<Vec<_>>().join(", ")))?
            .dtype(self.weights.into())
            .sid_tokens(std::slice::from_ref(&self.levels));
        let first = spec.first_sid_token().context("no SID tokens")?.0;
        let layout = layout(&self.levels, first)?;
        let bar = progress("making random weights");
        let model = spec.build()?;
        bar.finish_and_clear();
        let catalog = synthetic::uniform(&layout.specs(), self.items, 1)?;
        let tokenizer = Tokenizer::from_json(tiny::tokenizer_json(&[]).as_bytes(), None, None)?;
        let builder = Engine::builder(model, tokenizer).layout(layout).catalog(Arc::new(catalog));
        Ok((builder, format!("{name} (random {} weights)", DType::from(self.weights)), first as usize))
    }
}

/// A layout of one type whose opener is token `first`, its closer and codes following.
fn layout(levels: &[usize], first: u32) -> anyhow::Result<Layout> {
    let spec = LayoutSpec {
        open: Some("<open>".to_owned()),
        close: Some("<close>".to_owned()),
        types: vec![TypeSpec {
            name: "item".to_owned(),
            levels: levels.to_vec(),
            token: "<item_{level}_{code}>".to_owned(),
        }],
    };
    let lookup = |token: &str| -> Option<TokenId> {
        match token {
            "<open>" => return Some(TokenId(first)),
            "<close>" => return Some(TokenId(first + 1)),
            _ => {}
        }
        let (level, code) = token.strip_prefix("<item_")?.strip_suffix('>')?.split_once('_')?;
        let (level, code): (usize, usize) = (level.parse().ok()?, code.parse().ok()?);
        let before: usize = levels[..level].iter().sum();
        Some(TokenId(first + 2 + (before + code) as u32))
    };
    Ok(Layout::resolve(&spec, lookup)?)
}

/// Runs requests step by step.
struct Runner {
    parts: EngineParts,
    vocab: usize,
    draw: u64,
}

impl Runner {
    /// A prompt that no cache has seen.
    fn prompt(&mut self, tokens: usize) -> Vec<i64> {
        (0..tokens)
            .map(|_| {
                self.draw =
                    self.draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                ((self.draw >> 33) as usize % self.vocab) as i64
            })
            .collect()
    }

    /// Milliseconds of each step of greedy text: the first is the prefill.
    fn text(&mut self, batch: usize, prompt: usize, tokens: usize) -> anyhow::Result<Vec<f64>> {
        let requests: Vec<Request> = (0..batch)
            .map(|_| Request {
                prompt_token_ids: Some(self.prompt(prompt)),
                max_tokens: Some(tokens as i64),
                temperature: Some(0.0),
                ignore_eos: Some(true),
                ..Request::default()
            })
            .collect();
        self.run(&requests)
    }

    /// Milliseconds of each step of beam searches that run together.
    fn beam(&mut self, requests: usize, prompt: usize, width: usize) -> anyhow::Result<Vec<f64>> {
        let request = |prompt| Request {
            prompt_token_ids: Some(prompt),
            output: Some(Output::Items),
            beam_width: Some(OneOrMany::One(width as i64)),
            n: Some(width as i64),
            ..Request::default()
        };
        let requests: Vec<Request> = (0..requests).map(|_| request(self.prompt(prompt))).collect();
        self.run(&requests)
    }

    fn run(&mut self, requests: &[Request]) -> anyhow::Result<Vec<f64>> {
        let streams: Vec<EventStream> =
            requests.iter().map(|request| self.parts.submit(request)).collect::<Result<_, _>>()?;
        let mut times = Vec::new();
        loop {
            let start = Instant::now();
            if self.parts.wheel.turn()? == Turn::Idle {
                break;
            }
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        for stream in streams {
            stream.wait()?;
        }
        Ok(times)
    }
}

/// What decoding is limited by: the rate at which the device's memory is read.
enum Limit {
    /// A plain parallel sum over a gibibyte on the CPU, taken again each time: such machines drift.
    Cpu(Reader),
    /// Of a GPU, taken once: bytes, and operations of its matrix units, per second.
    #[cfg(feature = "cuda")]
    Gpu(sidereal::device::cuda::ceilings::Ceilings),
}

impl Limit {
    fn of(bench: &ModelBench) -> anyhow::Result<Limit> {
        #[cfg(feature = "cuda")]
        if bench.device == DeviceArg::Cuda {
            use sidereal::device::cuda::ceilings::{Extent, measure};
            use sidereal::device::cuda::driver::Driver;
            let mut driver: Box<dyn Driver> = Box::new(sidereal::device::cuda::CudaDriver::new(0)?);
            let extent = Extent::of(&mut *driver)?;
            return Ok(Limit::Gpu(measure(&mut *driver, &extent)?));
        }
        Ok(Limit::Cpu(Reader::new(bench.threads.map_or(0, usize::from))?))
    }

    fn read_gb_s(&mut self) -> f64 {
        match self {
            Limit::Cpu(reader) => {
                let start = Instant::now();
                std::hint::black_box(reader.read());
                Reader::BYTES as f64 / start.elapsed().as_secs_f64() / 1e9
            }
            #[cfg(feature = "cuda")]
            Limit::Gpu(ceilings) => ceilings.read / 1e9,
        }
    }

    /// Operations of a GPU's matrix units per second.
    fn matrix(&self) -> Option<f64> {
        match self {
            Limit::Cpu(_) => None,
            #[cfg(feature = "cuda")]
            Limit::Gpu(ceilings) => Some(ceilings.matrix),
        }
    }
}

/// A share of the matrix rate, where there is one.
fn of_matrix(share: Option<f64>) -> String {
    share.map_or_else(String::new, |share| format!("  {share:.2} of the matrix rate"))
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
