//! `sidereal sid`.

use std::io::{BufRead, BufReader, BufWriter, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use sidereal::catalog::LayoutSpec;
use sidereal::sid::{self, Codebooks, Codes, FitOptions, Init, Report, Vectors};

/// Make Semantic IDs from embeddings, and models that speak them.
#[derive(Subcommand)]
pub enum Sid {
    /// Fit codebooks to vectors, and give every row its codes
    #[command(after_help = "Examples:
  sidereal sid fit books.npy --levels 256,256,256 --unique --out books.safetensors --codes books-sids.npy
  sidereal sid fit book=books.npy film=films.safetensors:emb --levels 256,256,256 --out codebooks.safetensors --codes '{type}.npy'")]
    Fit(Fit),
    /// Give new items codes from codebooks that stay as they are
    Assign(Assign),
    /// Say how good codes are
    Report(ReportArgs),
    /// Add the tokens of a layout to a model folder, in a folder of its own
    Extend(Extend),
}

impl Sid {
    /// Runs the command.
    pub fn run(&self) -> anyhow::Result<()> {
        match self {
            Sid::Fit(command) => command.run(),
            Sid::Assign(command) => command.run(),
            Sid::Report(command) => command.run(),
            Sid::Extend(command) => command.run(),
        }
    }
}

/// Options of all commands that compute.
#[derive(Args)]
struct Threads {
    /// Threads [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
}

impl Threads {
    fn run<T: Send>(&self, work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        let threads = self.threads.map_or(0, NonZeroUsize::get);
        rayon::ThreadPoolBuilder::new().num_threads(threads).build()?.install(work)
    }
}

/// `sidereal sid fit`.
#[derive(Args)]
pub struct Fit {
    /// Vectors as FILE.npy or FILE.safetensors[:TENSOR], one row per item; with several types TYPE=FILE for each
    #[arg(required = true, value_name = "[TYPE=]VECTORS")]
    vectors: Vec<String>,
    /// Codes per level
    #[arg(long, value_name = "K,K,…", value_delimiter = ',', default_value = "256,256,256")]
    levels: Vec<usize>,
    /// Add a last level that separates items with equal codes, of at least N codes
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "1", require_equals = true)]
    unique: Option<usize>,
    /// Scale every vector to length 1 first
    #[arg(long)]
    normalize: bool,
    /// Key of all draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Most iterations per level
    #[arg(long, value_name = "N", default_value_t = 30)]
    max_iterations: usize,
    /// Rows of the first iterations; later ones look at more
    #[arg(long, value_name = "ROWS", default_value_t = 8192)]
    batch: usize,
    /// Rows that are trained on [default: all up to 131072, or 256 per code if that is more]
    #[arg(long, value_name = "ROWS")]
    sample: Option<usize>,
    /// Codebooks to write
    #[arg(long, value_name = "FILE.safetensors")]
    out: PathBuf,
    /// Codes to write, as .npy [rows, levels] or, with --ids, .jsonl; with several types a name that holds {type}
    #[arg(long, value_name = "FILE")]
    codes: Option<String>,
    /// Item ids, one per line, or JSON lines with `id`; with several types a name that holds {type}
    #[arg(long, value_name = "FILE", requires = "codes")]
    ids: Option<String>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    threads: Threads,
}

impl Fit {
    fn run(&self) -> anyhow::Result<()> {
        let inputs: Vec<(&str, &str)> = self.vectors.iter().map(|input| named(input)).collect();
        for name in [&self.codes, &self.ids].into_iter().flatten() {
            if inputs.len() > 1 && !name.contains("{type}") {
                bail!("`{name}` would serve {} types; a name with {{type}} is needed", inputs.len());
            }
        }
        let (mut books, mut reports) = (Codebooks::default(), Vec::new());
        for (name, file) in inputs {
            if books.types.iter().any(|t| t.name == name) {
                bail!("type `{name}` is named twice; give each as TYPE=FILE");
            }
            let vectors = Vectors::open(file)?;
            let of_type = |path: &String| path.replace("{type}", name);
            let (codes, ids) = (self.codes.as_ref().map(of_type), self.ids.as_ref().map(of_type));
            let ids = ids.map(|path| read_ids(Path::new(&path), vectors.rows())).transpose()?;
            codes.as_deref().map_or(Ok(()), |path| check_target(Path::new(path), ids.as_deref()))?;
            let start = Instant::now();
            let bar = Bar::new();
            let fit = self.threads.run(|| {
                Ok(sid::fit(name, &vectors, &self.options(), &|what, done, all| bar.at(what, done, all))?)
            })?;
            let seconds = start.elapsed().as_secs_f64();
            bar.end();
            if let Some(path) = codes {
                write_codes(Path::new(&path), &fit.codes, ids.as_deref())?;
            }
            let report =
                self.threads.run(|| Ok(Report::new(&fit.codes, Some(&vectors), Some(&fit.codebooks))?))?;
            let mut value =
                json!({"name": name, "dim": vectors.dim(), "seconds": seconds, "peak_mib": peak_mib()});
            merge(&mut value, serde_json::to_value(&report)?);
            reports.push((name, report, value));
            books.types.push(fit.codebooks);
        }
        books.write(&self.out)?;
        if self.json {
            let types: Vec<&Value> = reports.iter().map(|(_, _, value)| value).collect();
            println!("{}", json!({"types": types}));
        } else {
            for (name, report, value) in &reports {
                let seconds = value["seconds"].as_f64().unwrap_or_default();
                println!("{name}: {} items, {seconds:.1} s", report.rows);
                print_report(report);
            }
        }
        Ok(())
    }

    fn options(&self) -> FitOptions {
        let mut options = FitOptions::new(self.levels.clone());
        options.unique = self.unique;
        options.normalize = self.normalize;
        options.seed = self.seed;
        options.max_iterations = self.max_iterations;
        options.batch = self.batch;
        options.sample = self.sample;
        options
    }
}

/// Cuts `TYPE=FILE`; the type is `item` if none is named.
fn named(input: &str) -> (&str, &str) {
    match input.split_once('=') {
        Some((name, file)) if !name.is_empty() && !name.contains(['/', '.']) => (name, file),
        _ => ("item", input),
    }
}

fn merge(value: &mut Value, more: Value) {
    if let (Value::Object(value), Value::Object(more)) = (value, more) {
        value.extend(more);
    }
}

/// The largest resident size of this process so far, where the system tells.
fn peak_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<f64>().ok()? / 1024.0)
}

/// `sidereal sid assign`.
#[derive(Args)]
pub struct Assign {
    /// Vectors of the new items, as for `sid fit`
    vectors: PathBuf,
    /// Codebooks that `sid fit` wrote
    #[arg(long, value_name = "FILE.safetensors")]
    codebooks: PathBuf,
    /// The type [default: the only one]
    #[arg(long, value_name = "TYPE")]
    r#type: Option<String>,
    /// Codes to write, as .npy [rows, levels] or, with --ids, .jsonl
    #[arg(long, value_name = "FILE")]
    codes: PathBuf,
    /// Item ids, one per line, or JSON lines with `id`
    #[arg(long, value_name = "FILE")]
    ids: Option<PathBuf>,
    /// Codes that items have already, so that a unique level gives others
    #[arg(long, value_name = "CODES.npy")]
    taken: Option<PathBuf>,
    #[command(flatten)]
    threads: Threads,
}

impl Assign {
    fn run(&self) -> anyhow::Result<()> {
        let books = Codebooks::read(&self.codebooks)?;
        let books = books.of_type(self.r#type.as_deref())?;
        if self.taken.is_some() && books.unique.is_none() {
            bail!("--taken: the codebooks of `{}` have no unique level", books.name);
        }
        let vectors = Vectors::open(&self.vectors)?;
        let ids = self.ids.as_ref().map(|path| read_ids(path, vectors.rows())).transpose()?;
        check_target(&self.codes, ids.as_deref())?;
        let taken = self.taken.as_ref().map(Codes::read).transpose()?;
        let bar = Bar::new();
        let assign =
            || Ok(books.assign(&vectors, taken.as_ref(), &|what, done, all| bar.at(what, done, all))?);
        let codes = self.threads.run(assign)?;
        bar.end();
        write_codes(&self.codes, &codes, ids.as_deref())
    }
}

/// `sidereal sid report`.
#[derive(Args)]
pub struct ReportArgs {
    /// Codes, as .npy [rows, levels]
    codes: PathBuf,
    /// Vectors of the same items, as for `sid fit`
    #[arg(long, value_name = "VECTORS")]
    vectors: Option<PathBuf>,
    /// Codebooks, for the errors of levels
    #[arg(long, value_name = "FILE.safetensors", requires = "vectors")]
    codebooks: Option<PathBuf>,
    /// The type within the codebooks [default: the only one]
    #[arg(long, value_name = "TYPE", requires = "codebooks")]
    r#type: Option<String>,
    /// The same items as JSON lines with `title`
    #[arg(long, value_name = "SOURCE.jsonl")]
    titles: Option<PathBuf>,
    /// Show so many prefixes with their items
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "10", requires = "titles")]
    show: Option<usize>,
    /// Codes of the prefixes that are shown
    #[arg(long, value_name = "N", default_value_t = 2)]
    prefix: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    threads: Threads,
}

impl ReportArgs {
    fn run(&self) -> anyhow::Result<()> {
        let codes = Codes::read(&self.codes)?;
        if self.prefix > codes.levels() {
            bail!("--prefix: {} codes, but the SIDs have {}", self.prefix, codes.levels());
        }
        let vectors = self.vectors.as_ref().map(Vectors::open).transpose()?;
        let books = self.codebooks.as_ref().map(Codebooks::read).transpose()?;
        let books = books.as_ref().map(|books| books.of_type(self.r#type.as_deref())).transpose()?;
        let titles = self.titles.as_ref().map(|path| read_lines(path, "title", codes.rows())).transpose()?;
        let report = self.threads.run(|| Ok(Report::new(&codes, vectors.as_ref(), books)?))?;
        let shown = match (&titles, self.show) {
            (Some(titles), Some(count)) => shown(&codes, titles, self.prefix, count),
            _ => Vec::new(),
        };
        if self.json {
            let mut value = serde_json::to_value(&report)?;
            if self.show.is_some() {
                let prefix =
                    |(codes, titles): &(Vec<u16>, Vec<&str>)| json!({"codes": codes, "titles": titles});
                value["prefixes"] = shown.iter().map(prefix).collect();
            }
            println!("{value}");
            return Ok(());
        }
        print_report(&report);
        for (codes, titles) in shown {
            println!("\n{codes:?}, {} items", titles.len());
            titles.iter().take(8).for_each(|title| println!("  {title}"));
        }
        Ok(())
    }
}

fn shown<'a>(
    codes: &Codes,
    titles: &'a [String],
    length: usize,
    count: usize,
) -> Vec<(Vec<u16>, Vec<&'a str>)> {
    let found = sid::prefixes(codes, length, count).into_iter();
    found.map(|(prefix, rows)| (prefix, rows.into_iter().map(|row| titles[row].as_str()).collect())).collect()
}

/// A report as a table.
fn print_report(report: &Report) {
    let share = 100.0 * (report.rows - report.rows_shared) as f64 / (report.rows as f64).max(1.0);
    println!(
        "{} items, {} SIDs; {share:.1} % of the items alone on theirs; {} SIDs shared, the most by {}",
        report.rows, report.sids, report.shared, report.largest
    );
    println!(
        "level   codes    used  perplexity  prefixes       error   of all  cosine of items alike so far"
    );
    let number =
        |value: Option<f64>, digits: usize| value.map_or("–".to_owned(), |v| format!("{v:.digits$}"));
    for (level, of) in report.levels.iter().enumerate() {
        println!(
            "{level:5} {:7} {:7} {:11.1} {:9} {:>11} {:>8} {:>7}",
            of.codes,
            of.used,
            of.perplexity,
            of.prefixes,
            number(of.error, 5),
            number(of.share, 3),
            number(of.cosine, 3)
        );
    }
    if let Some(cosine) = report.random_cosine {
        println!("cosine of two items drawn at random: {cosine:.3}");
    }
}

/// `sidereal sid extend`.
#[derive(Args)]
pub struct Extend {
    /// Hugging Face folder of the model; it is only read
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// The layout whose tokens are added
    #[arg(long, value_name = "LAYOUT.json")]
    layout: PathBuf,
    /// Folder to write
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// What rows of new tokens are
    #[arg(long, value_enum, default_value_t = InitArg::Mean)]
    init: InitArg,
    /// Codebooks for `--init centroids`, with the types of the layout
    #[arg(long, value_name = "FILE.safetensors")]
    codebooks: Option<PathBuf>,
    /// Key of all draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum InitArg {
    /// The mean of the old rows
    Mean,
    /// Normal draws with the mean and deviation of the old rows
    Normal,
    /// Zero
    Zero,
    /// The code's centroid through a random projection
    Centroids,
}

impl Extend {
    fn run(&self) -> anyhow::Result<()> {
        let init = match (self.init, &self.codebooks) {
            (InitArg::Centroids, Some(path)) => Init::Centroids(Codebooks::read(path)?),
            (InitArg::Centroids, None) => bail!("--init centroids needs --codebooks"),
            (_, Some(_)) => bail!("--codebooks is for --init centroids"),
            (InitArg::Mean, None) => Init::Mean,
            (InitArg::Normal, None) => Init::Normal,
            (InitArg::Zero, None) => Init::Zero,
        };
        let done = sid::extend(&self.model, &LayoutSpec::read(&self.layout)?, &init, self.seed, &self.out)?;
        if self.json {
            println!("{}", serde_json::to_string(&done)?);
            return Ok(());
        }
        println!(
            "{}: {} tokens added{}, {} were there; {} rows, before {}",
            self.out.display(),
            done.added,
            done.first.map_or(String::new(), |id| format!(" from id {id} on")),
            done.existing,
            done.rows,
            done.rows_before
        );
        if !done.left_behind.is_empty() {
            eprintln!(
                "note: not copied, since they hold weights of another kind: {}",
                done.left_behind.join(", ")
            );
        }
        Ok(())
    }
}

/// Item ids for so many rows.
fn read_ids(path: &Path, rows: usize) -> anyhow::Result<Vec<String>> {
    read_lines(path, "id", rows)
}

/// One text per row: of JSON lines a key, of other files the line.
fn read_lines(path: &Path, key: &str, rows: usize) -> anyhow::Result<Vec<String>> {
    let file = std::fs::File::open(path).with_context(|| path.display().to_string())?;
    let is_json = path.extension().is_some_and(|e| e == "jsonl");
    let mut found = Vec::new();
    for (at, line) in BufReader::new(file).lines().enumerate() {
        let place = || format!("{}, line {}", path.display(), at + 1);
        let line = line.with_context(place)?;
        if !is_json {
            found.push(line);
            continue;
        }
        let record: Value = serde_json::from_str(&line).with_context(place)?;
        found.push(match &record[key] {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            other => bail!("{}: `{key}`: expected a string or a number, found {other}", place()),
        });
    }
    if found.len() != rows {
        bail!("{}: {} lines for {rows} rows", path.display(), found.len());
    }
    Ok(found)
}

/// Whether codes can be written to such a file; asked before the work.
fn check_target(path: &Path, ids: Option<&[String]>) -> anyhow::Result<()> {
    match (path.extension().and_then(|e| e.to_str()), ids) {
        (Some("npy"), None) | (Some("jsonl"), Some(_)) => Ok(()),
        (Some("jsonl"), None) => bail!("{}: JSON lines need --ids", path.display()),
        (Some("npy"), Some(_)) => bail!("{}: a .npy file holds no ids; name a .jsonl file", path.display()),
        _ => bail!("{}: codes are written as .npy or .jsonl", path.display()),
    }
}

fn write_codes(path: &Path, codes: &Codes, ids: Option<&[String]>) -> anyhow::Result<()> {
    let Some(ids) = ids else { return Ok(codes.write(path)?) };
    let write = || -> std::io::Result<()> {
        let mut out = BufWriter::new(std::fs::File::create(path)?);
        for (id, sid) in ids.iter().zip(codes.iter()) {
            writeln!(out, "{}", json!({"id": id, "sid": sid}))?;
        }
        out.flush()
    };
    write().with_context(|| path.display().to_string())
}

/// A progress bar on standard error; silent unless that is a terminal.
struct Bar(Mutex<(&'static str, ProgressBar)>);

impl Bar {
    fn new() -> Bar {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {percent} % {eta}") {
            bar.set_style(style);
        }
        Bar(Mutex::new(("", bar)))
    }

    fn at(&self, what: &'static str, done: u64, all: u64) {
        let Ok(mut bar) = self.0.lock() else { return };
        if bar.0 != what {
            bar.0 = what;
            bar.1.reset();
            bar.1.set_message(what);
        }
        bar.1.set_length(all);
        bar.1.set_position(done);
    }

    fn end(&self) {
        if let Ok(bar) = self.0.lock() {
            bar.1.finish_and_clear();
        }
    }
}
