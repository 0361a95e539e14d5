//! `sidereal eval`.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sidereal::dataset::{Works, read_histories, simulate};
use sidereal::eval::{EvalOptions, evaluate};

use super::load::LoadArgs;
use super::people::PeopleArgs;

/// Measure what a model's answers are worth, beside simple baselines.
#[derive(Args)]
#[command(after_help = "Examples:
  sidereal eval                                        the built-in demonstration
  sidereal eval --model DIR --catalog DIR/catalog.jsonl --histories histories.jsonl --json > eval.json

Asked are, in wordings that training never sees: searches by title, creator, genre and decade, genre, and description (beside BM25); the last item of
each held-out history (beside popularity, and neighbours by who took what); explanations, profiles and descriptions, whose claims are held against
the catalog. Every item of the type competes. Without --histories they are simulated, with the seed, as `sidereal dataset simulate` does.")]
pub struct Eval {
    #[command(flatten)]
    load: LoadArgs,
    /// What people took, as JSON lines of user, split and items
    #[arg(long, value_name = "FILE")]
    histories: Option<PathBuf>,
    #[command(flatten)]
    people: PeopleArgs,
    /// Key of simulated histories, wordings and sampled answers
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Beam width of lists
    #[arg(long, value_name = "W", default_value_t = EvalOptions::default().beam_width)]
    beam_width: usize,
    /// Most questions per task and type
    #[arg(long, value_name = "N", default_value_t = EvalOptions::default().questions)]
    questions: usize,
    /// Answers in text per task
    #[arg(long, value_name = "N", default_value_t = EvalOptions::default().texts)]
    texts: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Eval {
    /// Runs the command.
    pub fn run(&self) -> anyhow::Result<()> {
        if self.load.model.is_some() && self.load.catalog.is_none() {
            bail!("a model is judged by a catalog: name one with --catalog");
        }
        if self.beam_width == 0 || self.beam_width > 512 {
            bail!("--beam-width: {} is outside of the allowed range from 1 to 512", self.beam_width);
        }
        let people = self.people.simulation(self.seed)?;
        let builder = self.load.builder()?;
        let works = Works::of(builder.catalog_ref().context("no catalog")?)?;
        let engine = builder.start()?;
        let histories = match &self.histories {
            Some(path) => read_histories(path, &works)?,
            None => simulate(&works, &people),
        };
        let options = EvalOptions {
            seed: self.seed,
            beam_width: self.beam_width,
            questions: self.questions,
            texts: self.texts,
        };
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        bar.set_style(ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}")?);
        let report = evaluate(&engine, &works, &histories, &options, &mut |what, done, all| {
            bar.set_message(what.to_owned());
            bar.set_length(all as u64);
            bar.set_position(done as u64);
        })?;
        bar.finish_and_clear();
        if self.json {
            println!("{}", serde_json::to_string_pretty(&report)?);
        } else {
            print!("{report}");
        }
        Ok(())
    }
}
