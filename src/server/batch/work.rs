//! One line of a batch: understood, answered, written.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::lines::{BadLine, BatchBody, BatchLine, LineAnswer, Sender, native_error};
use crate::engine::{Engine, Request};
use crate::error::{Error, Result};
use crate::server::app::App;
use crate::server::call::{Checked, aside, refused, submit, wait_all};
use crate::server::error::ApiError;
use crate::server::native::{answer_json, named};
use crate::server::observe::{Context, random};
use crate::server::openai::{Chunk, Encoder, Plan, Route};

/// Longest wait before an overloaded engine is asked again.
const MAX_WAIT: Duration = Duration::from_secs(1);

/// A line of the answer, and the items that it names.
pub(super) struct Line {
    pub json: Vec<u8>,
    pub items: Vec<String>,
}

impl Line {
    /// A line for nobody in particular.
    pub fn error(error: &ApiError) -> Line {
        Line { json: error.json(), items: Vec::new() }
    }
}

/// What a line asks for, ready to be checked as often as it takes.
enum Task {
    Native(Box<Request>),
    OpenAi(Route, Box<Plan>),
}

impl Task {
    fn check(&self, engine: &Engine) -> Result<Vec<Checked>> {
        match self {
            Task::Native(request) => Ok(vec![Checked::new(engine, request)?]),
            // Its requests are used up by being made.
            Task::OpenAi(_, plan) => Plan::clone(plan).check(engine),
        }
    }
}

/// Answers a line, whatever it holds.
pub(super) async fn answer(app: &Arc<App>, context: &Arc<Context>, line: Bytes) -> Line {
    let bytes = line.len();
    let parsed = aside(bytes, move || BatchLine::from_json(line.trim_ascii())).await;
    let (sender, body) = match parsed {
        Err(error) => return Line::error(&error),
        Ok(Err(BadLine { sender, error })) => return failed(context, &sender, error.into()),
        Ok(Ok(BatchLine { sender, body })) => (sender, body),
    };
    match run(app, context, body, bytes).await {
        Ok((json, items)) => written(context, &sender, json, items),
        Err(error) => failed(context, &sender, error),
    }
}

async fn run(
    app: &Arc<App>,
    context: &Arc<Context>,
    body: BatchBody,
    bytes: usize,
) -> Result<(Vec<u8>, Vec<String>), ApiError> {
    let task = Arc::new(match body {
        BatchBody::Native(request) => Task::Native(request),
        BatchBody::Chat(body) => Task::OpenAi(Route::Chat, Box::new(body.plan()?)),
        BatchBody::Completion(body) => Task::OpenAi(Route::Completion, Box::new(body.plan()?)),
    });
    let patience = Instant::now() + app.options.max_request_time;
    let (answering, ends) = loop {
        let (engine, own) = (app.engine.clone(), Arc::clone(&task));
        let checked = aside(bytes, move || own.check(&engine)).await?;
        // From here on, not from the beginning of a batch that may take hours.
        let ends = Instant::now() + app.options.max_request_time;
        match submit(app, context, ends, checked) {
            Ok(answering) => break (answering, ends),
            // A line that never fits is told so in the end.
            Err(error) if error.code == "overloaded" && Instant::now() < patience => {
                let wait = error.retry_after.unwrap_or(MAX_WAIT).min(MAX_WAIT);
                tokio::time::sleep(wait).await;
            }
            Err(error) => return Err(error),
        }
    };
    let answers = wait_all(answering, ends).await.map_err(|error| refused(app, error))?;
    Ok(match &*task {
        Task::OpenAi(route, plan) => {
            let encoder = Encoder::new(plan, route.reply(&app.options.model_name), app.engine.clone());
            let Chunk { json, items } = encoder.whole(&answers);
            (json, items)
        }
        Task::Native(_) => {
            let Some(answer) = answers.first() else {
                return Err(Error::Dead("no request was run".to_owned()).into());
            };
            (answer_json(answer, context), named(answer).collect())
        }
    })
}

fn written(context: &Context, sender: &Sender, json: Vec<u8>, items: Vec<String>) -> Line {
    match sender {
        // A native answer has its request's id.
        Sender::Native(_) => Line { json, items },
        Sender::OpenAi(custom_id) => {
            let json = openai_line(context, custom_id.as_deref(), 200, &json);
            Line { json, items }
        }
    }
}

fn failed(context: &Context, sender: &Sender, error: ApiError) -> Line {
    let json = match sender {
        Sender::Native(id) => native_error(id.as_deref(), &error),
        Sender::OpenAi(custom_id) => {
            openai_line(context, custom_id.as_deref(), error.status.as_u16(), &error.json())
        }
    };
    Line { json, items: Vec::new() }
}

fn openai_line(context: &Context, custom_id: Option<&str>, status_code: u16, body: &[u8]) -> Vec<u8> {
    let id = format!("batch_req_{:016x}", random());
    LineAnswer { id: &id, custom_id, status_code, request_id: &context.request_id, body }.to_json()
}
