//! `POST /v1/items`: the native form.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::Response;
use serde::Serialize;

use super::app::App;
use super::body::receive;
use super::call::{Checked, aside, deadline, expect_json, submit, wait_all};
use super::error::ApiError;
use super::observe::Context;
use super::reply::{Encode, Fence, Sse, stream, whole};
use crate::engine::{Answer, AnswerPart, Event, Output, Request};
use crate::error::Error;

/// An answer of the native form.
#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct NativeAnswer<'a> {
    #[serde(flatten)]
    answer: &'a Answer,
    timings: Timings,
}

/// Where the time went, milliseconds.
#[derive(Serialize, schemars::JsonSchema)]
struct Timings {
    /// Waiting to be admitted.
    queue_ms: f64,
    /// From admission to the end of the prompt.
    prefill_ms: f64,
    /// From the end of the prompt to the end of the answer.
    decode_ms: f64,
    /// From the arrival of the request to its answer.
    total_ms: f64,
}

/// Ids of the items that an answer names.
pub(super) fn named(answer: &Answer) -> impl Iterator<Item = String> {
    let inside = answer.content.iter().flatten().filter_map(|part| match part {
        AnswerPart::Item { id, .. } => Some(id.clone()),
        AnswerPart::Text { .. } => None,
    });
    answer.items.iter().flatten().map(|item| item.id.clone()).chain(inside)
}

/// The answer as JSON.
pub(super) fn answer_json(answer: &Answer, context: &Context) -> Vec<u8> {
    let ms = |time: Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
    let timing = &answer.timing;
    let timings = Timings {
        queue_ms: ms(timing.queue),
        prefill_ms: ms(timing.prefill),
        decode_ms: ms(timing.decode),
        total_ms: ms(context.started.elapsed()),
    };
    // Maps have string keys and numbers are finite: nothing here can fail to be written.
    serde_json::to_vec(&NativeAnswer { answer, timings }).unwrap_or_default()
}

/// A request of the native form; its output is `items` unless it says otherwise.
pub(super) fn parse(bytes: &[u8]) -> Result<Request, ApiError> {
    let text = std::str::from_utf8(bytes)
        .map_err(|error| ApiError::invalid("request", format!("not UTF-8: {error}")))?;
    let mut request = Request::from_json(text)?;
    request.output.get_or_insert(Output::Items);
    Ok(request)
}

struct NativeEvents {
    context: Arc<Context>,
}

impl Encode for NativeEvents {
    fn event(&mut self, _: usize, event: &Event, out: &mut Sse) {
        match event {
            Event::Text(text) => {
                let json = serde_json::json!({ "text": text });
                out.push(Some("text"), json.to_string().as_bytes());
            }
            Event::Item(item) => {
                out.push(Some("item"), &serde_json::to_vec(item).unwrap_or_default());
                out.names([item.id.clone()]);
            }
            Event::Finished(answer) => {
                out.push(Some("done"), &answer_json(answer, &self.context));
                out.names(named(answer));
            }
            _ => {}
        }
    }

    fn end(&mut self, _: &mut Sse) {}

    fn failed(&mut self, error: &ApiError, out: &mut Sse) {
        out.push(Some("error"), &error.json());
    }
}

/// Answers a request of the native form: whole, or as events if the client accepts `text/event-stream`.
pub(super) async fn items(
    State(app): State<Arc<App>>,
    Extension(context): Extension<Arc<Context>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    expect_json(&headers)?;
    let ends = deadline(&app, &context, &headers)?;
    let received = receive(&app, &headers, body).await?;
    let request = parse(&received.bytes)?;
    let engine = app.engine.clone();
    let checked = aside(received.bytes.len(), move || Checked::new(&engine, &request)).await?;
    drop(received);
    let answering = submit(&app, &context, ends, checked.map(|one| vec![one]))?;
    let fence = Fence { wire: context.wire.clone(), deny: app.deny_list().cloned() };
    if accepts_events(&headers) {
        return Ok(stream(answering, ends, Box::new(NativeEvents { context }), fence));
    }
    let answers = wait_all(answering, ends).await?;
    let Some(answer) = answers.first() else {
        return Err(Error::Dead("no request was run".to_owned()).into());
    };
    Ok(whole(answer_json(answer, &context), named(answer).collect(), fence))
}

fn accepts_events(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|media| {
        media.split(';').next().is_some_and(|media| media.trim().eq_ignore_ascii_case("text/event-stream"))
    })
}
