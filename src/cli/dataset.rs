//! `sidereal dataset`.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rayon::prelude::*;
use serde_json::{Value, json};
use sidereal::catalog::Catalog;
use sidereal::catalog::source::{Mapping, Sources};
use sidereal::dataset::{
    Mix, Renderer, Sample, Sampler, SimulationOptions, Split, Works, read_histories, simulate, titles,
};
use sidereal::engine::EngineBuilder;

use super::catalog::infer;
use super::people::PeopleArgs;

/// Samples rendered between two steps of the progress bar.
const CHUNK: usize = 4096;

/// What the demonstration learns last, `[instruct]` of `training/demo.toml`.
const MIX: &str = "search=7,recommend=4,explain=3.2,profile=0.5,describe=1.5,find=0.4,type=0.05";

/// Make training data.
#[derive(Subcommand)]
pub enum Dataset {
    /// Simulate histories of people with tastes, for catalogs without recorded ones
    #[command(after_help = "Example:
  sidereal dataset simulate --catalog catalog.jsonl --users 2000 --out histories.jsonl")]
    Simulate(Simulate),
    /// Draw prompts with their answers, and write them as tokens, as typed parts, or as text
    #[command(after_help = "Examples:
  sidereal dataset render --catalog catalog.jsonl --samples 5 --as text
  sidereal dataset render --catalog catalog.jsonl --histories histories.jsonl --model DIR --samples 100000 --out train.jsonl

Tasks: search, recommend, explain, profile, describe, find, type. The tokens of a prompt are those that the engine would feed,
the template and the opener of a list of items included; the answer's end with the end token.")]
    Render(Render),
}

impl Dataset {
    /// Runs the command.
    pub fn run(&self) -> anyhow::Result<()> {
        match self {
            Dataset::Simulate(command) => command.run(),
            Dataset::Render(command) => command.run(),
        }
    }
}

/// `sidereal dataset simulate`.
#[derive(Args)]
pub struct Simulate {
    /// A snapshot, or JSON lines with codes; genres, creators and years decide who takes what
    #[arg(long, value_name = "FILE")]
    catalog: PathBuf,
    #[command(flatten)]
    people: PeopleArgs,
    /// Key of all draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Items of the shortest history
    #[arg(long, value_name = "N", default_value_t = SimulationOptions::default().lengths.0)]
    shortest: usize,
    /// Items of the longest history
    #[arg(long, value_name = "N", default_value_t = SimulationOptions::default().lengths.1)]
    longest: usize,
    /// Probability that somebody stays with the creator of the last item
    #[arg(long, value_name = "P", default_value_t = SimulationOptions::default().loyalty)]
    loyalty: f64,
    /// JSON lines to write [default: standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Simulate {
    fn run(&self) -> anyhow::Result<()> {
        if self.shortest < 2 || self.longest < self.shortest {
            bail!("--shortest must be 2 at least, and --longest not below it");
        }
        if !(0.0..=1.0).contains(&self.loyalty) {
            bail!("--loyalty: {} is no probability", self.loyalty);
        }
        let options = SimulationOptions {
            lengths: (self.shortest, self.longest),
            loyalty: self.loyalty,
            ..self.people.simulation(self.seed)?
        };
        let works = Works::of(&open_catalog(&self.catalog)?)?;
        let mut out = sink(self.out.as_deref())?;
        for history in simulate(&works, &options) {
            writeln!(out, "{}", serde_json::to_string(&history)?)?;
        }
        out.flush()?;
        Ok(())
    }
}

/// `sidereal dataset render`.
#[derive(Args)]
pub struct Render {
    /// A snapshot, or JSON lines with codes
    #[arg(long, value_name = "FILE")]
    catalog: PathBuf,
    /// What people took, as JSON lines of user, split and items; recommend and profile need it
    #[arg(long, value_name = "FILE")]
    histories: Option<PathBuf>,
    /// Model folder whose tokenizer, template and layout make tokens
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// What to write [default: tokens with --model, else parts]
    #[arg(long = "as", value_enum, value_name = "FORM")]
    form: Option<Form>,
    /// Items as SIDs, or as titles for a model that has none
    #[arg(long, value_enum, default_value_t = Items::Spans)]
    items: Items,
    /// Tasks and their shares [default: all that there is data for, as the demonstration was trained]
    #[arg(long, value_name = "TASK=SHARE,…")]
    mix: Option<Mix>,
    /// Samples
    #[arg(long, value_name = "N", default_value_t = 1000)]
    samples: usize,
    /// Whose histories and which wordings
    #[arg(long, value_enum, default_value_t = Side::Train)]
    split: Side,
    /// Key of all draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// JSON lines to write [default: standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// What samples are written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// `task`, `prompt_token_ids`, `answer_token_ids`, and `others` that are learnt beside it: right items of the same prompt, and earlier items of
    /// a history with their own `prompt_token_ids`
    Tokens,
    /// `task`, the native request, and the answer as typed parts
    Parts,
    /// `task`, `prompt`, `answer`, with titles in place of items
    Text,
}

/// How tokens spell items.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Items {
    /// Opener, codes, closer
    Spans,
    /// Titles
    Titles,
}

/// Sides of the split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Side {
    /// Training
    Train,
    /// Evaluation
    Test,
}

impl Render {
    fn run(&self) -> anyhow::Result<()> {
        let form = self.form.unwrap_or(if self.model.is_some() { Form::Tokens } else { Form::Parts });
        let (renderer, works) = self.open(form)?;
        let histories = match &self.histories {
            Some(path) => read_histories(path, &works)?,
            None => Vec::new(),
        };
        let split = if self.split == Side::Train { Split::Train } else { Split::Test };
        let sampler = Sampler::new(&works, &histories, split, self.seed);
        let mix = match &self.mix {
            Some(mix) => mix.clone(),
            None if histories.is_empty() => MIX.parse::<Mix>()?.without_histories(),
            None => MIX.parse()?,
        };
        let plan = sampler.plan(&mix, self.samples)?;
        let mut out = sink(self.out.as_deref())?;
        let bar = ProgressBar::with_draw_target(Some(plan.len() as u64), ProgressDrawTarget::stderr());
        bar.set_style(ProgressStyle::with_template("rendering {wide_bar} {human_pos}/{human_len} {eta}")?);
        for chunk in plan.chunks(CHUNK) {
            let line =
                |&(task, number): &_| line(&sampler.sample(task, number), form, renderer.as_ref(), &works);
            for line in chunk.par_iter().map(line).collect::<anyhow::Result<Vec<String>>>()? {
                writeln!(out, "{line}")?;
            }
            bar.inc(chunk.len() as u64);
        }
        bar.finish_and_clear();
        out.flush()?;
        Ok(())
    }

    fn open(&self, form: Form) -> anyhow::Result<(Option<Renderer>, Works)> {
        let Some(model) = self.model.as_ref().filter(|_| form == Form::Tokens) else {
            if form == Form::Tokens {
                bail!("--as tokens needs --model");
            }
            return Ok((None, Works::of(&open_catalog(&self.catalog)?)?));
        };
        let builder = EngineBuilder::open(model)?;
        if self.items == Items::Titles {
            let works = Works::of(&open_catalog(&self.catalog)?)?;
            return Ok((Some(Renderer::titles(builder)?), works));
        }
        let builder = builder.catalog_file(&self.catalog, &mut |_, _| {})?;
        let works = Works::of(builder.catalog_ref().context("no catalog")?)?;
        Ok((Some(Renderer::spans(builder)?), works))
    }
}

fn line(sample: &Sample, form: Form, renderer: Option<&Renderer>, works: &Works) -> anyhow::Result<String> {
    let task = sample.prompt.task;
    let value: Value = match (form, renderer) {
        (Form::Tokens, Some(renderer)) => {
            let rendered = renderer.render(sample, works)?;
            let (prompt, answer) = (rendered.prompt_token_ids, rendered.answer_token_ids);
            let mut line = json!({"task": task, "prompt_token_ids": prompt, "answer_token_ids": answer});
            if !rendered.others.is_empty() {
                line["others"] = json!(rendered.others);
            }
            line
        }
        (Form::Text, _) => {
            let (prompt, answer) = (titles(&sample.prompt.parts(), works), titles(&sample.answer, works));
            json!({"task": task, "prompt": prompt, "answer": answer})
        }
        _ => json!({"task": task, "request": sample.prompt.request(), "answer": sample.answer}),
    };
    Ok(value.to_string())
}

/// A snapshot, or a source whose types are those of its codes.
fn open_catalog(path: &Path) -> anyhow::Result<Catalog> {
    let silent = &mut |_, _| {};
    if Catalog::is_snapshot(path) {
        return Ok(Catalog::load(path, silent)?);
    }
    let sources = Sources::new().file(path, Mapping::default());
    Ok(sources.read(&infer(&sources)?, silent)?.0)
}

fn sink(path: Option<&Path>) -> anyhow::Result<Box<dyn Write>> {
    Ok(match path {
        None => Box::new(std::io::stdout().lock()),
        Some(path) => {
            let file = std::fs::File::create(path).with_context(|| path.display().to_string())?;
            Box::new(BufWriter::with_capacity(1 << 20, file))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::MIX;

    #[test]
    fn the_default_mix_is_that_of_the_demonstration() {
        let settings = include_str!("../../training/demo.toml");
        let (_, instruct) = settings.split_once("\n[instruct]").unwrap();
        let mix = instruct.lines().find_map(|line| line.strip_prefix("mix = ")).unwrap();
        assert_eq!(mix.trim_matches('"'), MIX);
    }
}
