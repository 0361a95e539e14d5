//! The library inside another program: a mixed answer, streamed.
//!
//! ```text
//! cargo run --example embed
//! cargo run --example embed -- MODEL_FOLDER CATALOG.jsonl 'What should I read next?'
//! ```

use std::error::Error;
use std::io::Write;

use sidereal::engine::{EngineBuilder, Event, Message, Output, Request};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (builder, question) = match arguments.as_slice() {
        [] => (EngineBuilder::tiny()?, "What should I read next?"),
        [folder, catalog, question] => {
            (EngineBuilder::open(folder)?.catalog_file(catalog, &mut |_done, _total| {})?, question.as_str())
        }
        _ => return Err("expected no arguments, or MODEL_FOLDER CATALOG.jsonl QUESTION".into()),
    };
    let mut request = Request {
        messages: Some(vec![Message::user(question)]),
        output: Some(Output::Mixed),
        max_tokens: Some(48),
        seed: Some(7),
        ..Request::default()
    };
    if arguments.is_empty() {
        // Random weights seldom name an item of their own accord.
        let opener = builder.layout_ref().and_then(|layout| layout.open);
        request.logit_bias = opener.map(|opener| [(opener.to_string(), 6.into())].into_iter().collect());
    }
    let engine = builder.start()?;

    let mut out = std::io::stdout();
    for event in engine.submit(&request)? {
        match event? {
            Event::Text(text) => write!(out, "{text}")?,
            Event::Item(item) => write!(out, "[{}]", item.title.as_deref().unwrap_or(&item.id))?,
            Event::Finished(answer) => {
                writeln!(out, "\n({} tokens, {:?})", answer.usage.completion_tokens, answer.finish_reason)?;
            }
            _ => {}
        }
        out.flush()?;
    }
    Ok(())
}
