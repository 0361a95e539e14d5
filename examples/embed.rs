//! The library inside another program: a mixed answer, streamed.
//!
//! ```text
//! cargo run --example embed
//! cargo run --example embed -- MODEL_FOLDER CATALOG.jsonl 'What should I read next?'
//! ```

use std::error::Error;
use std::io::Write;

use sidereal::dataset::{Prompt, Subject, Task};
use sidereal::engine::{EngineBuilder, Event, Message, Output, Request};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (builder, request) = match arguments.as_slice() {
        [] => {
            let history = Subject::History(vec!["film:alien".into(), "book:dune".into()]);
            (sidereal::demo::builder()?, Prompt::new(Task::Explain, history, Some("book")).request())
        }
        [folder, catalog, question] => {
            let builder = EngineBuilder::open(folder)?.catalog_file(catalog, &mut |_done, _total| {})?;
            let messages = Some(vec![Message::user(question)]);
            (builder, Request { messages, output: Some(Output::Mixed), ..Request::default() })
        }
        _ => return Err("expected no arguments, or MODEL_FOLDER CATALOG.jsonl QUESTION".into()),
    };
    let engine = builder.start()?;
    let request = Request { max_tokens: Some(60), seed: Some(7), ..request };

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
