//! The command line. Results go to standard output, everything else to standard error; exit codes: 0 done, 1 failed, 2 usage.

mod bench;
mod catalog;
mod dataset;
mod demo;
mod doctor;
mod eval;
mod generate;
mod gpus;
mod load;
mod log;
mod people;
mod requests;
mod serve;
mod sid;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Serve catalog-grounded language models: every item an answer names is in the catalog.
#[derive(Parser)]
#[command(name = "sidereal", version, propagate_version = true, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Ask the built-in demonstration six things, one of each kind.
    Demo(demo::Demo),
    /// Answer one prompt, or a file of requests.
    Generate(Box<generate::Generate>),
    /// Serve over HTTP: OpenAI's routes, native ones, metrics, and a page to try them.
    Serve(Box<serve::Serve>),
    /// Build catalogs, look into them, check them.
    #[command(subcommand)]
    Catalog(Box<catalog::Commands>),
    /// Measure a model or the SID step on this machine, with the limit beside the figure, or a server.
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Make Semantic IDs from embeddings, and models that speak them.
    #[command(subcommand)]
    Sid(Box<sid::Sid>),
    /// Make training data: histories, prompts and answers in the words that the model will be asked in.
    #[command(subcommand)]
    Dataset(Box<dataset::Dataset>),
    /// Measure what a model's answers are worth, beside simple baselines.
    Eval(Box<eval::Eval>),
    /// Say what this machine offers and what would run where.
    Doctor(doctor::Doctor),
}

/// Runs the command line.
pub fn main() -> ExitCode {
    let result = serve::with_config(std::env::args_os()).and_then(|args| run(Cli::parse_from(args)));
    let flushed = std::io::stdout().flush().map_err(anyhow::Error::from);
    match result.and_then(|code| flushed.map(|()| code)) {
        Ok(code) => code,
        // Whoever reads us has seen enough (`| head`).
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let (level, format) = match &cli.command {
        Command::Serve(command) => command.log(),
        _ => ("warn", log::LogFormat::Text),
    };
    let set_level = log::init(level, format)?;
    match cli.command {
        Command::Serve(command) => return command.run(set_level),
        Command::Demo(command) => command.run(),
        Command::Generate(command) => command.run(),
        Command::Catalog(command) => command.run(),
        Command::Bench(command) => command.run(),
        Command::Sid(command) => command.run(),
        Command::Dataset(command) => command.run(),
        Command::Eval(command) => command.run(),
        Command::Doctor(command) => command.run(),
    }
    .map(|()| ExitCode::SUCCESS)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kind = |cause: &(dyn std::error::Error + 'static)| {
        let io = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        // Its source is not the error of the pipe, but that one's own.
        io.or_else(|| cause.downcast_ref::<serde_json::Error>()?.io_error_kind())
    };
    error.chain().any(|cause| kind(cause) == Some(std::io::ErrorKind::BrokenPipe))
}
