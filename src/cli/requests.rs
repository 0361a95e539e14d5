//! `generate --requests`: a line of input gives a line of output, in order, errors included.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;

use anyhow::Context;
use serde_json::{Value, json};
use sidereal::Error;
use sidereal::engine::{Engine, EventStream, Request};

/// Requests handed to the engine before the first of them is answered: enough to fill its batches.
const AHEAD: usize = 256;

enum Pending {
    Running(Option<String>, EventStream),
    Failed(Option<String>, Error),
}

/// Answers every line of a file; `-` is standard input.
pub fn run(engine: &Engine, path: &Path) -> anyhow::Result<()> {
    let input: Box<dyn BufRead> = if path == Path::new("-") {
        Box::new(BufReader::new(std::io::stdin()))
    } else {
        Box::new(BufReader::new(File::open(path).with_context(|| path.display().to_string())?))
    };
    let mut out = std::io::stdout().lock();
    let mut pending = VecDeque::new();
    let mut failed = 0usize;
    for (before, line) in input.split(b'\n').enumerate() {
        let line = line.with_context(|| format!("{}: line {}", path.display(), before + 1))?;
        if line.trim_ascii().is_empty() {
            continue;
        }
        if pending.len() == AHEAD {
            failed += finish(pending.pop_front(), &mut out)?;
        }
        pending.push_back(submit(engine, &line));
    }
    while !pending.is_empty() {
        failed += finish(pending.pop_front(), &mut out)?;
    }
    if failed > 0 {
        eprintln!("note: {failed} of the requests ended with an error; their lines say which");
    }
    Ok(())
}

fn submit(engine: &Engine, line: &[u8]) -> Pending {
    let text = match std::str::from_utf8(line) {
        Ok(text) => text,
        Err(error) => return Pending::Failed(None, Error::invalid("request", format!("not UTF-8: {error}"))),
    };
    match Request::from_json(text) {
        Ok(request) => match engine.submit(&request) {
            Ok(events) => Pending::Running(request.id, events),
            Err(error) => Pending::Failed(request.id, error),
        },
        Err(error) => {
            // The line may still say whose it is.
            let id = serde_json::from_str::<Value>(text)
                .ok()
                .and_then(|v| v.get("id")?.as_str().map(str::to_owned));
            Pending::Failed(id, error)
        }
    }
}

fn finish(pending: Option<Pending>, out: &mut impl Write) -> anyhow::Result<usize> {
    let (id, error) = match pending {
        None => return Ok(0),
        Some(Pending::Failed(id, error)) => (id, error),
        Some(Pending::Running(id, events)) => match events.wait() {
            Ok(answer) => {
                serde_json::to_writer(&mut *out, &answer)?;
                writeln!(out)?;
                out.flush()?;
                return Ok(0);
            }
            Err(error @ Error::Dead(_)) => return Err(error.into()),
            Err(error) => (id, error),
        },
    };
    writeln!(out, "{}", error_json(id.as_deref(), &error))?;
    out.flush()?;
    Ok(1)
}

/// `{"id": …, "error": {"type": …, "field": …, "message": …}}`.
pub fn error_json(id: Option<&str>, error: &Error) -> Value {
    let (field, message) = match error {
        Error::Invalid { field, message } => (Some(field.as_str()), message.clone()),
        error => (None, error.to_string()),
    };
    let mut body = json!({"type": error.kind(), "message": message});
    if let Some(field) = field {
        body = json!({"type": error.kind(), "field": field, "message": message});
    }
    match id {
        Some(id) => json!({"id": id, "error": body}),
        None => json!({"error": body}),
    }
}
