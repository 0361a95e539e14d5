//! `sidereal demo`: a walk through what the built-in model does.

use std::io::{IsTerminal, Write};
use std::num::NonZeroUsize;
use std::time::Instant;

use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};
use sidereal::dataset::{Prompt, Subject, Task, Works, titles};
use sidereal::demo;
use sidereal::engine::{Answer, AnswerItem, Engine, Event, Output, Request};

/// Ask the built-in demonstration six things, one of each kind.
#[derive(Args)]
pub struct Demo {
    /// Threads [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
}

/// One thing asked.
struct Scene {
    /// What it shows.
    about: &'static str,
    prompt: Prompt,
    /// Fields of the request besides.
    bounds: Value,
}

fn scenes() -> Vec<Scene> {
    let history = |ids: &[&str]| Subject::History(ids.iter().map(|id| (*id).to_owned()).collect());
    let query = |text: &str| Subject::Query(text.to_owned());
    let scene = |about, prompt, bounds| Scene { about, prompt, bounds };
    vec![
        scene(
            "Search: a genre of a decade",
            Prompt::new(Task::Search, query("science fiction films from the 1980s"), Some("film")),
            json!({"n": 5}),
        ),
        scene(
            "Search under a filter that every item passes: year before 1965",
            Prompt::new(Task::Search, query("films by Akira Kurosawa"), Some("film")),
            json!({"n": 5, "filter": {"attr": "year", "lt": 1965}}),
        ),
        scene(
            "Recommend an album to somebody known by a book, a film and two albums",
            Prompt::new(
                Task::Recommend,
                history(&["book:neuromancer", "film:blade-runner", "album:low", "album:the-man-machine"]),
                Some("album"),
            ),
            json!({"n": 5, "exclude": ["album:low", "album:the-man-machine"]}),
        ),
        scene(
            "Recommend and say why: items inside text",
            Prompt::new(Task::Explain, query("crime films from the 1970s"), Some("film")),
            json!({"temperature": 0}),
        ),
        scene(
            "Describe a person by what they read, watched and heard",
            Prompt::new(
                Task::Profile,
                history(&[
                    "book:small-gods",
                    "book:mort",
                    "album:kind-of-blue",
                    "book:guards-guards",
                    "album:bitches-brew",
                ]),
                None,
            ),
            json!({"temperature": 0}),
        ),
        scene(
            "Describe an item",
            Prompt::new(Task::Describe, Subject::Item("book:frankenstein".to_owned()), None),
            json!({"temperature": 0}),
        ),
    ]
}

impl Demo {
    /// Runs the command.
    pub fn run(&self) -> anyhow::Result<()> {
        let mut builder = demo::builder()?;
        if let Some(threads) = self.threads {
            builder = builder.threads(threads.get());
        }
        let works = Works::of(builder.catalog_ref().context("no catalog")?)?;
        let engine = builder.start()?;
        let mut out = std::io::stdout();
        let style = if out.is_terminal() {
            Style { bold: "\x1b[1m", dim: "\x1b[2m", off: "\x1b[0m" }
        } else {
            Style::default()
        };
        for (number, scene) in scenes().iter().enumerate() {
            if number > 0 {
                writeln!(out)?;
            }
            writeln!(out, "{}{}. {}{}", style.bold, number + 1, scene.about, style.off)?;
            for line in titles(&scene.prompt.parts(), &works).lines() {
                writeln!(out, "{}  | {line}{}", style.dim, style.off)?;
            }
            show(&engine, scene, &style, &mut out)?;
        }
        Ok(())
    }
}

#[derive(Default)]
struct Style {
    bold: &'static str,
    dim: &'static str,
    off: &'static str,
}

fn show(engine: &Engine, scene: &Scene, style: &Style, out: &mut impl Write) -> anyhow::Result<()> {
    let Style { bold, off, .. } = style;
    let mut request = serde_json::to_value(scene.prompt.request())?;
    if let (Some(request), Some(bounds)) = (request.as_object_mut(), scene.bounds.as_object()) {
        request.extend(bounds.clone());
        if scene.prompt.task.output() == Output::Items {
            request.insert("return_attributes".to_owned(), json!(["creator", "year"]));
        }
    }
    let request = Request::from_json(&request.to_string())?;
    let start = Instant::now();
    let mut begun = false;
    for event in engine.submit(&request)? {
        match event? {
            Event::Text(text) => write!(out, "{}{text}", indent(&mut begun))?,
            Event::Item(item) => write!(out, "{}{bold}[{}]{off}", indent(&mut begun), name(&item))?,
            Event::Finished(answer) => {
                if begun {
                    writeln!(out)?;
                }
                list(&answer, style, out)?;
            }
            _ => {}
        }
        out.flush()?;
    }
    eprintln!("  {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
    Ok(())
}

fn indent(begun: &mut bool) -> &'static str {
    if std::mem::replace(begun, true) { "" } else { "  " }
}

fn name(item: &AnswerItem) -> &str {
    item.title.as_deref().unwrap_or(&item.id)
}

fn list(answer: &Answer, Style { bold, off, .. }: &Style, out: &mut impl Write) -> anyhow::Result<()> {
    for item in answer.items.iter().flatten() {
        let attribute = |name: &str| match item.attributes.as_ref()?.get(name)? {
            Value::String(text) => Some(text.clone()),
            Value::Null => None,
            value => Some(value.to_string()),
        };
        let facts: Vec<String> = [attribute("creator"), attribute("year")].into_iter().flatten().collect();
        writeln!(out, "  {:>8.3}  {bold}{}{off}  ({})", item.score, name(item), facts.join(", "))?;
    }
    Ok(())
}
