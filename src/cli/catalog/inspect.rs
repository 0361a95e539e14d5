//! `sidereal catalog inspect`.

use std::io::Write;
use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use indicatif::{HumanBytes, HumanCount};
use serde_json::Value;
use sidereal::catalog::Catalog;

use super::SourceArgs;
use super::summary::{Attribute, Summary, TypeSummary};

/// Longest text of a value in a table.
const MAX_SHOWN: usize = 36;

/// Say what a catalog holds.
#[derive(Args)]
#[command(after_help = "Examples:
  sidereal catalog inspect books.sidcat
  sidereal catalog inspect books.csv --mapping books.toml --codes books.npy
  sidereal catalog inspect books.sidcat --json")]
pub struct Inspect {
    /// A snapshot file, or a source
    file: PathBuf,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    from: SourceArgs,
}

impl Inspect {
    /// Runs the command.
    pub fn run(&self) -> anyhow::Result<()> {
        let (catalog, bytes) = if Catalog::is_snapshot(&self.file) {
            if let Some(option) = self.from.given() {
                bail!("{option} is for sources, and {} is a snapshot", self.file.display());
            }
            // All of it is looked at anyway, and what was altered must not be believed.
            let verified = super::verified(&self.file)?;
            (Catalog::open(&self.file)?, Some(verified.bytes))
        } else {
            (self.from.read(std::slice::from_ref(&self.file))?.0, None)
        };
        let summary = Summary::of(&catalog, bytes);
        if self.json {
            println!("{}", serde_json::to_string(&summary)?);
            return Ok(());
        }
        show(&mut std::io::stdout().lock(), &self.file.display().to_string(), &summary)
    }
}

fn show(out: &mut impl Write, name: &str, summary: &Summary) -> anyhow::Result<()> {
    let items = counted(summary.items, "item");
    let size = summary.file_bytes.map_or("a source".to_owned(), |bytes| HumanBytes(bytes).to_string());
    writeln!(out, "{name}: {items}, {size}, snapshot {}", summary.snapshot)?;
    for of_type in &summary.types {
        writeln!(out)?;
        show_type(out, of_type)?;
    }
    let bytes = &summary.bytes;
    let parts = [
        ("tries", bytes.tries),
        ("ids", bytes.ids),
        ("titles", bytes.titles),
        ("attributes", bytes.attributes),
        ("popularity", bytes.popularity),
    ];
    let parts = parts.map(|(name, bytes)| format!("{name} {}", HumanBytes(bytes as u64)));
    writeln!(
        out,
        "\nbytes: {}; {:.1} per item for the tries",
        parts.join(", "),
        summary.index_bytes_per_item
    )?;
    Ok(())
}

fn show_type(out: &mut impl Write, of_type: &TypeSummary) -> anyhow::Result<()> {
    let (items, sids) = (counted(of_type.items, "item"), counted(of_type.sids, "SID"));
    writeln!(out, "{}: {items}, {sids} of {} levels", of_type.name, of_type.levels.len())?;
    let used: Vec<String> = of_type
        .levels
        .iter()
        .map(|level| format!("{} of {}", HumanCount(level.used as u64), HumanCount(level.codebook as u64)))
        .collect();
    writeln!(out, "  codes used    {}", used.join(", "))?;
    let collisions = &of_type.collisions;
    match collisions.shared_sids {
        0 => writeln!(out, "  shared SIDs   none: every item has its own")?,
        shared => writeln!(
            out,
            "  shared SIDs   {} SIDs are those of {} items, {} at most",
            HumanCount(shared as u64),
            HumanCount(collisions.items as u64),
            collisions.largest
        )?,
    }
    writeln!(out, "  titles        {}", percent(of_type.titles))?;
    for (at, item) in of_type.examples.iter().enumerate() {
        let label = if at == 0 { "most popular" } else { "" };
        let title = item.title.as_deref().map(|title| format!("{}  ", cut(title, 60))).unwrap_or_default();
        writeln!(out, "  {label:<12}  {title}{} {:?}", cut(&item.id, 60), item.sid)?;
    }
    if !of_type.attributes.is_empty() {
        writeln!(out, "  attributes")?;
    }
    let longest =
        |length: &dyn Fn(&Attribute) -> usize| of_type.attributes.iter().map(length).max().unwrap_or(0);
    let width = longest(&|attribute| cut(&attribute.name, MAX_SHOWN).chars().count());
    for attribute in &of_type.attributes {
        show_attribute(out, attribute, width)?;
    }
    Ok(())
}

fn show_attribute(out: &mut impl Write, attribute: &Attribute, width: usize) -> anyhow::Result<()> {
    let range = match (&attribute.least, &attribute.greatest) {
        (Some(least), Some(greatest)) => format!(", {least} to {greatest}"),
        _ => String::new(),
    };
    let shown = match attribute.frequent.is_empty() {
        true => {
            let examples: Vec<String> = attribute.examples.iter().map(value).collect();
            format!("such as {}", examples.join(", "))
        }
        false => {
            let most = attribute.frequent.iter();
            let most: Vec<String> =
                most.map(|f| format!("{} ({})", value(&f.value), HumanCount(f.count as u64))).collect();
            format!("mostly {}", most.join(", "))
        }
    };
    let (name, distinct) = (cut(&attribute.name, MAX_SHOWN), HumanCount(attribute.distinct as u64));
    let present = percent(attribute.present);
    writeln!(
        out,
        "    {name:<width$}  {:<6}  {present:>6}  {distinct} distinct{range}; {shown}",
        attribute.kind
    )?;
    Ok(())
}

/// A value in a table: on one line, not all of a long one.
fn value(value: &Value) -> String {
    match value {
        Value::String(text) => cut(text, MAX_SHOWN),
        other => cut(&other.to_string(), MAX_SHOWN),
    }
}

fn cut(text: &str, most: usize) -> String {
    let clean: String = text.chars().take(most + 1).map(|c| if c.is_control() { ' ' } else { c }).collect();
    match clean.chars().count() > most {
        true => clean.chars().take(most - 1).chain(['…']).collect(),
        false => clean,
    }
}

fn counted(count: usize, what: &str) -> String {
    format!("{} {what}{}", HumanCount(count as u64), if count == 1 { "" } else { "s" })
}

/// A share, never rounded to all or nothing.
fn percent(share: f64) -> String {
    match share * 100.0 {
        all if all == 100.0 || all == 0.0 => format!("{all:.0} %"),
        some => format!("{:.1} %", some.clamp(0.1, 99.9)),
    }
}
