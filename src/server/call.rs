//! From an HTTP request to events of the engine, counted and recorded on the way.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::http::{HeaderMap, StatusCode, header};
use futures_core::Stream;
use tokio::time::{Sleep, sleep_until};

use super::app::App;
use super::audit::Record;
use super::error::ApiError;
use super::observe::Context;
use crate::engine::{Answer, AnswerPart, Engine, Event, EventStream, Request, Submission, ValidatedRequest};
use crate::error::{Error, Result};

/// Bodies of more bytes than this are checked and tokenized on a thread of their own, so that they do not hold up others.
const LONG_BODY: usize = 16 << 10;
/// How much later than the engine the server looks at deadlines itself.
const GRACE: Duration = Duration::from_secs(1);
const TIMEOUT_HEADER: &str = "x-request-timeout-ms";

/// One request of the engine's that is being answered.
pub(super) struct Answering {
    stream: EventStream,
    recorder: Recorder,
}

impl Answering {
    /// The next event, noted.
    pub fn poll_event(&mut self, cx: &mut TaskContext<'_>) -> Poll<Option<Result<Event>>> {
        let polled = Pin::new(&mut self.stream).poll_next(cx);
        if let Poll::Ready(Some(event)) = &polled {
            self.recorder.event(event);
        }
        polled
    }
}

/// What the engine says by itself, unless one of its steps hangs.
pub(super) fn too_late() -> Error {
    Error::Deadline("the request's time is over, and the engine has not said so".to_owned())
}

/// A timer that goes off when the engine must have ended a request by itself.
pub(super) fn watchdog(deadline: Instant) -> Pin<Box<Sleep>> {
    Box::pin(sleep_until((deadline + GRACE).into()))
}

/// The whole answers, in order. All are read at the same time: what nobody reads is cut off.
pub(super) async fn wait_all(answering: Vec<Answering>, deadline: Instant) -> Result<Vec<Answer>> {
    tokio::select! {
        answers = read_all(answering) => answers,
        () = watchdog(deadline) => Err(too_late()),
    }
}

async fn read_all(answering: Vec<Answering>) -> Result<Vec<Answer>> {
    let mut slots: Vec<_> = answering.into_iter().map(Some).collect();
    let mut answers: Vec<Option<Answer>> = slots.iter().map(|_| None).collect();
    std::future::poll_fn(|cx| {
        for (slot, answer) in slots.iter_mut().zip(&mut answers) {
            while let Some(one) = slot {
                match one.poll_event(cx) {
                    Poll::Pending => break,
                    Poll::Ready(Some(Ok(Event::Finished(whole)))) => {
                        *answer = Some(*whole);
                        *slot = None;
                    }
                    Poll::Ready(Some(Ok(_))) => {}
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                    Poll::Ready(None) => {
                        let ended = "the answer ended without its last event".to_owned();
                        return Poll::Ready(Err(Error::Dead(ended)));
                    }
                }
            }
        }
        if slots.iter().any(Option::is_some) { Poll::Pending } else { Poll::Ready(Ok(())) }
    })
    .await?;
    Ok(answers.into_iter().flatten().collect())
}

/// Refuses bodies that are not said to be JSON: a browser can be made to send other kinds from any page.
pub(super) fn expect_json(headers: &HeaderMap) -> std::result::Result<(), ApiError> {
    let given = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let media = given.split(';').next().unwrap_or("").trim();
    if media.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let message = format!("Content-Type is {given:?}; expected application/json");
    Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not_json", message))
}

/// When the request is to end at the latest.
pub(super) fn deadline(
    app: &App,
    context: &Context,
    headers: &HeaderMap,
) -> std::result::Result<Instant, ApiError> {
    let most = app.options.max_request_time;
    let Some(value) = headers.get(TIMEOUT_HEADER) else { return Ok(context.started + most) };
    let text = value.to_str().unwrap_or("?");
    match text.parse::<u64>() {
        Ok(ms) if ms > 0 => Ok(context.started + most.min(Duration::from_millis(ms))),
        _ => {
            Err(ApiError::invalid(TIMEOUT_HEADER, format!("{text:?} is not a number of milliseconds from 1")))
        }
    }
}

/// A request that was checked, and what monitoring notes of it.
pub(super) struct Checked {
    request: ValidatedRequest,
    wanted: Option<i64>,
    max_tokens: Option<i64>,
}

impl Checked {
    /// Checks a request.
    pub fn new(engine: &Engine, request: &Request) -> Result<Checked> {
        let (wanted, max_tokens) = (request.n, request.max_tokens);
        Ok(Checked { request: engine.validate(request)?, wanted, max_tokens })
    }
}

/// Runs work on a body of so many bytes where it holds up nobody.
pub(super) async fn aside<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> std::result::Result<T, ApiError> {
    if bytes <= LONG_BODY {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await.map_err(|_| ApiError::bug())
}

/// Hands requests to the engine; all of them or none.
pub(super) fn submit(
    app: &Arc<App>,
    context: &Arc<Context>,
    deadline: Instant,
    checked: Result<Vec<Checked>>,
) -> std::result::Result<Vec<Answering>, ApiError> {
    let submission = Submission { tenant: context.caller.tenant(), deadline: Some(deadline) };
    let mut answering = Vec::new();
    for Checked { request, wanted, max_tokens } in checked.map_err(|error| refused(app, error))? {
        let filter = request.filter_digest();
        let submitted = app.engine.submit_with(request, submission.clone());
        let stream = submitted.map_err(|error| refused(app, error))?;
        app.metrics.asked(wanted, max_tokens);
        let recorder = Recorder::new(Arc::clone(app), Arc::clone(context), filter);
        answering.push(Answering { stream, recorder });
    }
    Ok(answering)
}

/// An error that ends a request before it runs.
pub(super) fn refused(app: &App, error: Error) -> ApiError {
    let overloaded = matches!(error, Error::Overloaded(_));
    app.metrics.refused(error.kind());
    let mut error = ApiError::from(error);
    error.retry_after = overloaded.then(|| app.retry_after());
    error
}

/// Notes what becomes of one request.
struct Recorder {
    app: Arc<App>,
    context: Arc<Context>,
    filter: Option<u64>,
    /// When the last piece of text came.
    piece: Option<Instant>,
    ended: bool,
}

impl Recorder {
    fn new(app: Arc<App>, context: Arc<Context>, filter: Option<u64>) -> Recorder {
        Recorder { app, context, filter, piece: None, ended: false }
    }

    fn event(&mut self, event: &Result<Event>) {
        match event {
            Ok(Event::Text(_) | Event::Item(_)) => {
                let now = Instant::now();
                match self.piece.replace(now) {
                    Some(before) => self.app.metrics.piece(now - before),
                    None => self.app.metrics.first_piece(now - self.context.started),
                }
            }
            Ok(Event::Finished(answer)) => {
                self.ended = true;
                let after = self.context.started.elapsed();
                self.app.metrics.answered(answer, after);
                self.audit(answer);
                self.log(answer, after);
            }
            Ok(_) => {}
            Err(error) => {
                self.ended = true;
                self.app.metrics.ended(error.kind());
                let request_id = &self.context.request_id;
                match error {
                    Error::Deadline(_) | Error::Overloaded(_) => {
                        tracing::info!(%request_id, %error, "a request was ended");
                    }
                    _ => tracing::warn!(%request_id, %error, "a request failed"),
                }
            }
        }
    }

    fn log(&self, answer: &Answer, after: Duration) {
        if !tracing::enabled!(tracing::Level::DEBUG) {
            return;
        }
        let (usage, context) = (&answer.usage, &self.context);
        tracing::debug!(
            request_id = %context.request_id,
            trace_id = %context.trace.id(),
            key = context.caller.name.as_deref(),
            snapshot = answer.snapshot.as_deref(),
            prompt_tokens = usage.prompt_tokens,
            cached_tokens = usage.cached_tokens,
            completion_tokens = usage.completion_tokens,
            items = answer.items.as_ref().map(Vec::len),
            ms = after.as_secs_f64() * 1e3,
            "answered"
        );
    }

    fn audit(&self, answer: &Answer) {
        let Some(audit) = &self.app.audit else { return };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let trace_id = self.context.trace.id();
        let listed = answer.items.iter().flatten().map(|item| (item.id.as_str(), item.score));
        let inside = answer.content.iter().flatten().filter_map(|part| match part {
            AnswerPart::Item { id, score, .. } => Some((id.as_str(), *score)),
            AnswerPart::Text { .. } => None,
        });
        let record = Record {
            time_ms: now.as_millis() as u64,
            request_id: &self.context.request_id,
            trace_id: Some(&trace_id),
            key: self.context.caller.name.as_deref(),
            model: &self.app.options.model_name,
            model_hash: &self.app.options.model_hash,
            snapshot: answer.snapshot.as_deref(),
            filter: self.filter.map(|digest| format!("{digest:016x}")),
            finish_reason: answer.finish_reason.name(),
            score: answer.score,
            items: listed.chain(inside).collect(),
            prompt_tokens: answer.usage.prompt_tokens,
            completion_tokens: answer.usage.completion_tokens,
        };
        if !audit.write(&record) {
            self.app.metrics.audit_lost.inc();
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        if !self.ended {
            self.app.metrics.ended("abort");
        }
    }
}
