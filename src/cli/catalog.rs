//! `sidereal catalog`: snapshots from sources, and what is in them.

mod generate;
mod inspect;
mod summary;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use indicatif::{HumanBytes, HumanCount};
use sidereal::catalog::source::{CodesFile, Mapping, OnError, Report, Sources};
use sidereal::catalog::{Catalog, Layout, LayoutSpec, TypeSpec, Verified};
use sidereal::ids::TypeId;
use sidereal::text::Tokenizer;

use super::load::progress;

/// Build catalogs, look into them, check them.
#[derive(Subcommand)]
pub enum Commands {
    /// Make a snapshot file from JSON lines, CSV or Parquet.
    Build(Build),
    /// Say what a snapshot file, or a source, holds.
    Inspect(inspect::Inspect),
    /// Read a whole snapshot file and check every byte of it.
    Verify(Verify),
    /// Make a synthetic catalog with exactly so many distinct SIDs.
    Generate(generate::Generate),
}

impl Commands {
    /// Runs the command.
    pub fn run(&self) -> anyhow::Result<()> {
        match self {
            Commands::Build(command) => command.run(),
            Commands::Inspect(command) => command.run(),
            Commands::Verify(command) => command.run(),
            Commands::Generate(command) => command.run(),
        }
    }
}

/// Sources and how they are read.
#[derive(Args)]
#[command(next_help_heading = "Sources")]
pub struct SourceArgs {
    /// The model's or your layout file: its types, in its order, with its codebooks [default: what the codes suggest]
    #[arg(long, value_name = "FILE", conflicts_with = "model")]
    layout: Option<PathBuf>,
    /// A model folder whose layout is taken
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// How columns become parts of items (TOML); once for all sources, or once per source in their order
    #[arg(long, value_name = "FILE")]
    mapping: Vec<PathBuf>,
    /// Codes of the rows in order, or of the rows of a type (.npy), or by id (.jsonl with id and sid)
    #[arg(long, value_name = "[TYPE=]FILE")]
    codes: Vec<String>,
    /// What to do about rows that are no items
    #[arg(long, value_enum, default_value_t = OnErrorArg::Fail)]
    on_error: OnErrorArg,
}

/// What to do about bad rows.
#[derive(Clone, Copy, Debug, ValueEnum, PartialEq, Eq)]
pub enum OnErrorArg {
    /// Give up at the first
    Fail,
    /// Leave them out and count them
    Skip,
}

/// Make a snapshot file.
#[derive(Args)]
#[command(after_help = "Examples:
  sidereal catalog build items.jsonl --layout sid_layout.json --out items.sidcat
  sidereal catalog build books.csv --mapping books.toml --codes books.npy --out books.sidcat
  sidereal catalog build books.csv films.parquet --mapping books.toml --mapping films.toml \\
      --codes book=books.npy --codes film=films.npy --model DIR --out all.sidcat")]
pub struct Build {
    /// Files of items: .jsonl, .ndjson, .json, .csv, .tsv, .parquet
    #[arg(required = true, value_name = "SOURCE")]
    sources: Vec<PathBuf>,
    #[command(flatten)]
    from: SourceArgs,
    /// The snapshot file
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Check a snapshot file.
#[derive(Args)]
pub struct Verify {
    /// The snapshot file
    file: PathBuf,
}

impl Build {
    fn run(&self) -> anyhow::Result<()> {
        let start = Instant::now();
        let same = |source: &&PathBuf| match (source.canonicalize(), self.out.canonicalize()) {
            (Ok(source), Ok(out)) => source == out,
            _ => false,
        };
        if let Some(source) = self.sources.iter().find(same) {
            bail!("--out {}: that is the source {}", self.out.display(), source.display());
        }
        let (catalog, report) = self.from.read(&self.sources)?;
        if catalog.is_empty() {
            bail!("the sources have no items{}", skipped(&report));
        }
        for (at, name) in catalog.types().iter().enumerate() {
            if catalog.index(TypeId(at as u16)).items() == 0 {
                bail!(
                    "type `{name}` has no items{}; a layout for this catalog leaves it out",
                    skipped(&report)
                );
            }
        }
        save(&catalog, &self.out, start)?;
        if report.skipped > 0 {
            println!("  {} rows left out", HumanCount(report.skipped));
        }
        Ok(())
    }
}

fn skipped(report: &Report) -> String {
    match report.skipped {
        0 => String::new(),
        count => format!(" ({} rows were left out)", HumanCount(count)),
    }
}

/// Writes a catalog and says what it is.
fn save(catalog: &Catalog, out: &Path, start: Instant) -> anyhow::Result<()> {
    let bar = progress("writing the snapshot");
    catalog.write(out, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    let bytes = std::fs::metadata(out).with_context(|| out.display().to_string())?.len();
    println!(
        "{}: {} items, {}, {:.1} s, snapshot {}",
        out.display(),
        HumanCount(catalog.len() as u64),
        HumanBytes(bytes),
        start.elapsed().as_secs_f64(),
        catalog.snapshot()
    );
    for (at, name) in catalog.types().iter().enumerate() {
        let index = catalog.index(TypeId(at as u16));
        let (items, sids) = (HumanCount(index.items() as u64), HumanCount(index.sids() as u64));
        println!("  {name}: {items} items, {sids} SIDs");
    }
    Ok(())
}

impl SourceArgs {
    /// The first of these options that was given.
    pub fn given(&self) -> Option<&'static str> {
        let given = [
            ("--layout", self.layout.is_some()),
            ("--model", self.model.is_some()),
            ("--mapping", !self.mapping.is_empty()),
            ("--codes", !self.codes.is_empty()),
            ("--on-error skip", self.on_error == OnErrorArg::Skip),
        ];
        given.into_iter().find_map(|(name, given)| given.then_some(name))
    }

    /// Reads sources into a catalog; what was skipped is said on standard error.
    pub fn read(&self, files: &[PathBuf]) -> anyhow::Result<(Catalog, Report)> {
        let mut sources = Sources::new().on_error(match self.on_error {
            OnErrorArg::Fail => OnError::Fail,
            OnErrorArg::Skip => OnError::Skip,
        });
        let mappings: Vec<Mapping> = self.mapping.iter().map(Mapping::read).collect::<Result<_, _>>()?;
        if mappings.len() > 1 && mappings.len() != files.len() {
            bail!(
                "{} times --mapping for {} sources: give one, or one per source",
                mappings.len(),
                files.len()
            );
        }
        for (at, file) in files.iter().enumerate() {
            let mapping = mappings.get(at).or(mappings.first()).cloned().unwrap_or_default();
            sources = sources.file(file, mapping);
        }
        for codes in &self.codes {
            sources = sources.codes(codes_file(codes));
        }
        let types = match self.types()? {
            Some(types) => types,
            None => infer(&sources)?,
        };
        let bar = progress("reading the items");
        let (catalog, report) = sources.read(&types, &mut |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        })?;
        bar.finish_and_clear();
        for message in &report.messages {
            eprintln!("left out: {message}");
        }
        if report.skipped > report.messages.len() as u64 {
            eprintln!("left out: {} rows more", HumanCount(report.skipped - report.messages.len() as u64));
        }
        if report.unused_codes > 0 {
            eprintln!("note: {} ids have codes but no row", HumanCount(report.unused_codes));
        }
        Ok((catalog, report))
    }

    /// The types of a layout, if one was named.
    fn types(&self) -> anyhow::Result<Option<Vec<TypeSpec>>> {
        if let Some(layout) = &self.layout {
            return Ok(Some(LayoutSpec::read(layout)?.types));
        }
        let Some(model) = &self.model else { return Ok(None) };
        let written = model.join("sid_layout.json");
        if written.exists() {
            return Ok(Some(LayoutSpec::read(&written)?.types));
        }
        let tokenizer = Tokenizer::open(model)?;
        let vocab: Vec<_> = tokenizer.vocab().collect();
        let found = Layout::detect(vocab.iter().map(|(token, id)| (token.as_str(), *id)))
            .with_context(|| model.join("tokenizer.json").display().to_string())?;
        let Some(spec) = found else {
            bail!("{}: no sid_layout.json, and its tokenizer has no tokens that spell SIDs", model.display());
        };
        Ok(Some(spec.types))
    }
}

/// Takes the types from the codes, and says so.
pub(super) fn infer(sources: &Sources) -> anyhow::Result<Vec<TypeSpec>> {
    let bar = progress("looking at the codes");
    let types = sources.infer_types(&mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    let shown: Vec<String> = types.iter().map(|t| format!("{} {:?}", t.name, t.levels)).collect();
    if !shown.is_empty() {
        eprintln!(
            "note: no --layout or --model: types and codebooks are those of the codes: {}",
            shown.join(", ")
        );
    }
    Ok(types)
}

/// `TYPE=FILE`, or a file.
fn codes_file(text: &str) -> CodesFile {
    match text.split_once('=') {
        Some((item_type, file)) if !Path::new(text).exists() => CodesFile::of_type(item_type, file),
        _ => CodesFile::new(text),
    }
}

impl Verify {
    fn run(&self) -> anyhow::Result<()> {
        let verified = verified(&self.file)?;
        let items: Vec<String> = verified
            .items
            .iter()
            .map(|(name, count)| format!("{name} {}", HumanCount(*count as u64)))
            .collect();
        println!(
            "{}: sound; {}; {} in {} sections, snapshot {}",
            self.file.display(),
            items.join(", "),
            HumanBytes(verified.bytes),
            verified.sections,
            verified.snapshot
        );
        Ok(())
    }
}

/// Verifies a snapshot file behind a progress bar.
fn verified(file: &Path) -> anyhow::Result<Verified> {
    let bar = progress("verifying");
    let verified = Catalog::verify(file, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    Ok(verified)
}
