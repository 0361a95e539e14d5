//! `sidereal generate`.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Map, Value, json};
use sidereal::dataset::{Prompt, Subject, Task};
use sidereal::engine::{Answer, AnswerItem, Engine, Event, Request};

use super::load::LoadArgs;
use super::requests;

/// What the demonstration is asked when nothing is.
const DEMO_QUERY: &str = "horror films from the 1980s";

/// Answer one prompt, or a file of requests.
#[derive(Args)]
#[command(after_help = "Examples:
  sidereal generate --task search --prompt 'films by John Ford' --types film     of the built-in demonstration
  sidereal generate --task recommend --history film:alien,book:dune --types book -n 5
  sidereal generate --task explain --history book:mort --types album
  sidereal generate --model DIR --catalog items.jsonl --prompt 'jazz albums' --output items --types album -n 5
  sidereal generate --model DIR --catalog items.jsonl --prompt 'What should I read?' --output mixed
  sidereal generate --model DIR --catalog items.jsonl --requests requests.jsonl > answers.jsonl")]
pub struct Generate {
    #[command(flatten)]
    load: LoadArgs,

    /// One user message
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["messages", "requests"])]
    prompt: Option<String>,
    /// Ask in the words that models of `sidereal dataset` learn: search and find (--prompt is the query or description), recommend,
    /// explain and profile (--history), describe and type (--item); --types names the target
    #[arg(long, value_name = "TASK", conflicts_with_all = ["raw", "messages", "requests"])]
    task: Option<String>,
    /// Item ids, newest last
    #[arg(long, value_name = "IDS", value_delimiter = ',', requires = "task", conflicts_with = "prompt")]
    history: Option<Vec<String>>,
    /// An item id
    #[arg(long, value_name = "ID", requires = "task", conflicts_with_all = ["prompt", "history"])]
    item: Option<String>,
    /// The prompt is the model's input as it is, without a chat template
    #[arg(long, requires = "prompt")]
    raw: bool,
    /// A JSON file with a list of messages, typed parts included
    #[arg(long, value_name = "FILE", conflicts_with = "requests")]
    messages: Option<PathBuf>,
    /// A file of requests, one JSON object per line (`-`: standard input); answers come in the same order
    #[arg(long, value_name = "FILE.jsonl", conflicts_with = "answer")]
    requests: Option<PathBuf>,
    /// Print the answer as one line of JSON
    #[arg(long, conflicts_with = "requests")]
    json: bool,

    #[command(flatten)]
    answer: AnswerArgs,
}

/// What the answer may be. Names and defaults are those of the native request.
#[derive(Args)]
#[group(id = "answer", multiple = true)]
#[command(next_help_heading = "Answer")]
struct AnswerArgs {
    /// items, text or mixed [default: the task's, else text]
    #[arg(long, value_name = "KIND")]
    output: Option<String>,
    /// Item types that may be named [default: all]
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    types: Option<Vec<String>>,
    /// Items wanted [default: 10]
    #[arg(short = 'n', value_name = "N", allow_negative_numbers = true)]
    n: Option<i64>,
    /// Beam width, or one width per level [default: max(n, 30)]
    #[arg(long, value_name = "W", value_delimiter = ',', allow_negative_numbers = true)]
    beam_width: Option<Vec<i64>>,
    /// Normaliser of scores: codebook, vocabulary or valid [default: codebook]
    #[arg(long, value_name = "KIND")]
    score: Option<String>,
    /// Only these item ids
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    allow: Option<Vec<String>>,
    /// None of these item ids
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    exclude: Option<Vec<String>>,
    /// Items per type, as TYPE=N; may be repeated
    #[arg(long, value_name = "TYPE=N")]
    quota: Vec<String>,
    /// best: one item per SID; all: every item that shares it [default: best]
    #[arg(long, value_name = "KIND")]
    collisions: Option<String>,
    /// Diversity groups, which divide the beam width
    #[arg(long, value_name = "G", allow_negative_numbers = true)]
    groups: Option<i64>,
    /// What a group pays for codes that earlier groups used
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = finite)]
    group_penalty: Option<f64>,
    /// Most items with the same first code
    #[arg(long, value_name = "Q", allow_negative_numbers = true)]
    max_per_prefix: Option<i64>,
    /// Width of the beam of an item inside text [default: 8]
    #[arg(long, value_name = "W", allow_negative_numbers = true)]
    span_beam: Option<i64>,
    /// Whether a mixed answer may name an item twice
    #[arg(long)]
    allow_repeats: bool,
    /// Tokens of the answer, items included
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    max_tokens: Option<i64>,
    /// No end before this many tokens
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    min_tokens: Option<i64>,
    /// 0 is greedy; for items, above 0 draws without replacement [default: the model's, items 0]
    #[arg(long, value_name = "T", allow_negative_numbers = true, value_parser = finite)]
    temperature: Option<f64>,
    /// Keep the k likeliest tokens
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    top_k: Option<i64>,
    /// Keep the likeliest tokens up to this probability
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = finite)]
    top_p: Option<f64>,
    /// Keep tokens at least this likely, relative to the likeliest
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = finite)]
    min_p: Option<f64>,
    /// A string that ends the answer; may be repeated
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Key of all random draws [default: a new one each time]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    seed: Option<i64>,
    /// Log-probabilities with this many alternatives
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    logprobs: Option<i64>,
    /// Which end of a prompt that is too long may be cut: start or end
    #[arg(long, value_name = "END")]
    truncate: Option<String>,
    /// Choose one of these strings instead of generating; may be repeated
    #[arg(long, value_name = "TEXT")]
    choice: Vec<String>,
}

impl Generate {
    /// Runs the command.
    pub fn run(&self) -> anyhow::Result<()> {
        if let Some(path) = &self.requests {
            return requests::run(&self.load.engine()?, path);
        }
        // Before the model is opened: a wrong option costs nothing.
        let request = self.request()?;
        let engine = self.load.engine()?;
        if self.json {
            let answer = engine.generate(&request)?;
            println!("{}", serde_json::to_string(&answer)?);
            return Ok(());
        }
        show(&engine, &request)
    }

    fn request(&self) -> anyhow::Result<Request> {
        let mut fields = self.answer.fields()?;
        if let Some(prompt) = self.task_prompt()? {
            let mut request = serde_json::to_value(prompt.request())?;
            let written = request.as_object_mut().context("a request is an object")?;
            // What was said on the command line stands; quotas name their types themselves.
            if fields.contains_key("quotas") {
                written.remove("item_types");
            }
            written.extend(fields);
            return Ok(Request::from_json(&request.to_string())?);
        }
        match (&self.prompt, &self.messages) {
            (Some(prompt), _) if self.raw => put(&mut fields, "prompt", prompt.as_str()),
            (Some(prompt), _) => put(&mut fields, "messages", json!([{"role": "user", "content": prompt}])),
            (None, Some(path)) => {
                let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
                let messages: Value =
                    serde_json::from_str(&text).with_context(|| path.display().to_string())?;
                put(&mut fields, "messages", messages);
            }
            (None, None) => bail!("nothing to answer: give --prompt, --messages or --requests"),
        }
        Ok(Request::from_json(&Value::Object(fields).to_string())?)
    }

    /// The prompt of `--task`, or what the demonstration is asked when nothing is.
    fn task_prompt(&self) -> anyhow::Result<Option<Prompt>> {
        let target = match self.answer.types.as_deref() {
            Some([only]) => Some(only.as_str()),
            // Several: the prompt says `any`, and the request bounds them.
            _ => None,
        };
        let Some(task) = &self.task else {
            let asked = self.prompt.is_some() || self.messages.is_some() || self.load.model.is_some();
            let query = Subject::Query(DEMO_QUERY.to_owned());
            return Ok((!asked).then(|| {
                Prompt::new(
                    Task::Search,
                    query,
                    if self.answer.types.is_none() { Some("film") } else { target },
                )
            }));
        };
        let task = Task::named(task).map_err(|error| anyhow::anyhow!("--{error}"))?;
        let subject = match (task, &self.prompt, &self.history, &self.item) {
            (Task::Search | Task::Explain, Some(query), _, _) => Subject::Query(query.clone()),
            (Task::Find, Some(text), _, _) => Subject::Description(text.clone()),
            (Task::Recommend | Task::Explain | Task::Profile, _, Some(items), _) => {
                Subject::History(items.clone())
            }
            (Task::Describe | Task::Type, _, _, Some(id)) => Subject::Item(id.clone()),
            (Task::Search | Task::Find, ..) => bail!("--task {} needs --prompt", task.name()),
            (Task::Explain, ..) => bail!("--task explain needs --history, or --prompt with a query"),
            (Task::Recommend | Task::Profile, ..) => bail!("--task {} needs --history", task.name()),
            (Task::Describe | Task::Type, ..) => bail!("--task {} needs --item", task.name()),
        };
        if self.answer.output.is_some() {
            bail!("--output: a task has an output of its own, and --task {} was given", task.name());
        }
        Ok(Some(Prompt::new(task, subject, target)))
    }
}

fn put(fields: &mut Map<String, Value>, name: &str, value: impl Into<Value>) {
    fields.insert(name.to_owned(), value.into());
}

impl AnswerArgs {
    /// The options that were given, as fields of the native request.
    fn fields(&self) -> anyhow::Result<Map<String, Value>> {
        let mut fields = Map::new();
        let mut set = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                put(&mut fields, name, value);
            }
        };
        let list = |values: &Vec<String>| (!values.is_empty()).then(|| json!(values));
        set("output", self.output.as_ref().map(|v| json!(v)));
        set("item_types", self.types.as_ref().map(|v| json!(v)));
        set("n", self.n.map(|v| json!(v)));
        set(
            "beam_width",
            self.beam_width.as_ref().map(|v| if v.len() == 1 { json!(v[0]) } else { json!(v) }),
        );
        set("score", self.score.as_ref().map(|v| json!(v)));
        set("allow", self.allow.as_ref().map(|v| json!(v)));
        set("exclude", self.exclude.as_ref().map(|v| json!(v)));
        set("collisions", self.collisions.as_ref().map(|v| json!(v)));
        set("span_beam", self.span_beam.map(|v| json!(v)));
        set("allow_repeats", self.allow_repeats.then(|| json!(true)));
        set("max_tokens", self.max_tokens.map(|v| json!(v)));
        set("min_tokens", self.min_tokens.map(|v| json!(v)));
        set("temperature", self.temperature.map(|v| json!(v)));
        set("top_k", self.top_k.map(|v| json!(v)));
        set("top_p", self.top_p.map(|v| json!(v)));
        set("min_p", self.min_p.map(|v| json!(v)));
        set("stop", list(&self.stop));
        set("seed", self.seed.map(|v| json!(v)));
        set("logprobs", self.logprobs.map(|v| json!(v)));
        set("truncate", self.truncate.as_ref().map(|v| json!(v)));
        set("choice", list(&self.choice));
        let quota = |text: &String| {
            let (item_type, n) =
                text.split_once('=').with_context(|| format!("--quota {text}: expected TYPE=N"))?;
            let n: i64 = n.parse().with_context(|| format!("--quota {text}: `{n}` is not a number"))?;
            Ok(json!({"type": item_type, "n": n}))
        };
        let quotas = self.quota.iter().map(quota).collect::<anyhow::Result<Vec<_>>>()?;
        set("quotas", (!quotas.is_empty()).then(|| json!(quotas)));
        let diversity: Map<String, Value> = [
            ("groups", self.groups.map(|v| json!(v))),
            ("penalty", self.group_penalty.map(|v| json!(v))),
            ("max_per_prefix", self.max_per_prefix.map(|v| json!(v))),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)))
        .collect();
        set("diversity", (!diversity.is_empty()).then_some(Value::Object(diversity)));
        Ok(fields)
    }
}

/// A number that JSON can write.
fn finite(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() => Ok(number),
        Ok(number) => Err(format!("{number} is not a finite number")),
        Err(error) => Err(error.to_string()),
    }
}

/// Prints an answer for people: text as it comes, items with their titles, a ranked list as a table.
fn show(engine: &Engine, request: &Request) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    let emphasis = if out.is_terminal() { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
    let mut streamed = false;
    for event in engine.submit(request)? {
        match event? {
            Event::Text(text) => {
                write!(out, "{text}")?;
                streamed = true;
            }
            Event::Item(item) => {
                write!(out, "{}[{}]{}", emphasis.0, name(&item), emphasis.1)?;
                streamed = true;
            }
            Event::Finished(answer) => {
                if streamed {
                    writeln!(out)?;
                }
                finish(&mut out, &answer)?;
            }
            _ => {}
        }
        out.flush()?;
    }
    Ok(())
}

fn name(item: &AnswerItem) -> &str {
    item.title.as_deref().unwrap_or(&item.id)
}

fn finish(out: &mut impl Write, answer: &Answer) -> anyhow::Result<()> {
    for (rank, item) in answer.items.iter().flatten().enumerate() {
        let boost = item.boost.map(|boost| format!(" {boost:+.3}")).unwrap_or_default();
        writeln!(
            out,
            "{:>3}  {:>9.4}{boost}  {}  ({}, {})",
            rank + 1,
            item.score,
            name(item),
            item.item_type,
            item.id
        )?;
    }
    for choice in answer.choices.iter().flatten() {
        writeln!(out, "{:>8.4}  {:>9.4}  {}", choice.probability, choice.score, choice.text)?;
    }
    if answer.exhausted == Some(true) {
        eprintln!("note: fewer items are alive than asked for");
    }
    for (what, count) in &answer.dropped {
        eprintln!("note: {what}: {count} left out");
    }
    let usage = &answer.usage;
    eprintln!(
        "{} prompt tokens ({} cached), {} answer tokens, {} beam rows",
        usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens, usage.beam_rows
    );
    Ok(())
}
