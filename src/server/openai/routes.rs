//! `POST /v1/chat/completions` and `POST /v1/completions`.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;

use super::{ChatBody, Chunk, CompletionBody, Encoder, Plan, Reply, Route};
use crate::engine::Event;
use crate::error::Result;
use crate::server::app::App;
use crate::server::body::receive;
use crate::server::call::{Checked, aside, deadline, expect_json, submit, wait_all};
use crate::server::error::ApiError;
use crate::server::health::expect_model;
use crate::server::observe::{Context, random};
use crate::server::reply::{Encode, Fence, Sse, stream, whole};

/// `POST /v1/chat/completions`.
pub(crate) async fn chat(
    State(app): State<Arc<App>>,
    Extension(context): Extension<Arc<Context>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    answer(&app, &context, &headers, body, Route::Chat).await
}

/// `POST /v1/completions`.
pub(crate) async fn completions(
    State(app): State<Arc<App>>,
    Extension(context): Extension<Arc<Context>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    answer(&app, &context, &headers, body, Route::Completion).await
}

impl Route {
    /// What a body of this form asks for.
    pub(crate) fn plan(self, bytes: &[u8]) -> Result<Plan> {
        match self {
            Route::Chat => ChatBody::from_json(bytes)?.plan(),
            Route::Completion => CompletionBody::from_json(bytes)?.plan(),
        }
    }

    /// A new answer's frame.
    pub(crate) fn reply(self, model: &str) -> Reply {
        let kind = match self {
            Route::Chat => "chatcmpl",
            Route::Completion => "cmpl",
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Reply { id: format!("{kind}-{:016x}", random()), created: now.as_secs(), model: model.to_owned() }
    }
}

impl Plan {
    /// Makes and checks the requests, one at a time.
    pub(crate) fn check(&mut self, engine: &crate::engine::Engine) -> Result<Vec<Checked>> {
        let mut checked = Vec::with_capacity(self.requests.len());
        while let Some(request) = self.requests.next() {
            let at = checked.len();
            checked.push(Checked::new(engine, &request).map_err(|error| self.explain(at, error))?);
        }
        Ok(checked)
    }
}

async fn answer(
    app: &Arc<App>,
    context: &Arc<Context>,
    headers: &HeaderMap,
    body: Body,
    route: Route,
) -> Result<Response, ApiError> {
    expect_json(headers)?;
    let ends = deadline(app, context, headers)?;
    let received = receive(app, headers, body).await?;
    let mut plan = route.plan(&received.bytes)?;
    expect_model(app, plan.model.as_deref())?;
    let engine = app.engine.clone();
    let (plan, checked) = aside(received.bytes.len(), move || {
        let checked = plan.check(&engine);
        (plan, checked)
    })
    .await?;
    drop(received);
    let answering = submit(app, context, ends, checked)?;
    let encoder = Encoder::new(&plan, route.reply(&app.options.model_name), app.engine.clone());
    let fence = Fence { wire: context.wire.clone(), deny: app.deny_list().cloned() };
    if plan.stream {
        return Ok(stream(answering, ends, Box::new(OpenAiEvents { encoder }), fence));
    }
    let Chunk { json, items } = encoder.whole(&wait_all(answering, ends).await?);
    Ok(whole(json, items, fence))
}

struct OpenAiEvents {
    encoder: Encoder,
}

fn push(chunks: Vec<Chunk>, out: &mut Sse) {
    for Chunk { json, items } in chunks {
        out.push(None, &json);
        out.names(items);
    }
}

impl Encode for OpenAiEvents {
    fn event(&mut self, choice: usize, event: &Event, out: &mut Sse) {
        push(self.encoder.event(choice, event), out);
    }

    fn end(&mut self, out: &mut Sse) {
        push(self.encoder.end(), out);
        out.push(None, b"[DONE]");
    }

    fn failed(&mut self, error: &ApiError, out: &mut Sse) {
        out.push(None, &error.json());
    }
}
