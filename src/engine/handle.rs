//! The handle that others embed, and the thread behind it.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel as commands};
use std::time::Instant;

use super::answer::Answer;
use super::builder::EngineBuilder;
use super::channel::EventStream;
use super::counters::Counters;
use super::request::Request;
use super::status::{Death, Health, Load, Status};
use super::submission::{Arrival, Submission};
use super::validate::{Frontend, Limits, ValidatedRequest};
use super::wheel::{Turn, Wheel};
use crate::catalog::{Layout, LiveCatalog, View};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::text::Tokenizer;

/// A running engine. Clones share it; it ends when the last clone is dropped and the last request is answered.
///
/// Requests are checked and tokenized on the caller's thread; one thread owns the device. All methods can be called
/// from any thread; none needs an async runtime.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    frontend: Frontend,
    catalog: Option<Arc<LiveCatalog>>,
    arrivals: Sender<Arrival>,
    status: Arc<Status>,
    counters: Arc<Counters>,
    description: String,
}

impl Engine {
    /// Begins an engine for a model and its tokenizer.
    pub fn builder(model: Model, tokenizer: Tokenizer) -> EngineBuilder {
        EngineBuilder::new(model, tokenizer)
    }

    /// Gives the wheel to a thread.
    pub(super) fn start(parts: EngineParts) -> Result<Engine> {
        let EngineParts { frontend, catalog, wheel, status, counters, description } = parts;
        let (sender, receiver) = commands();
        let thread_status = Arc::clone(&status);
        std::thread::Builder::new()
            .name("sidereal-engine".to_owned())
            .spawn(move || guard(wheel, &receiver, &thread_status))
            .map_err(|error| Error::Device(format!("the engine's thread could not be started: {error}")))?;
        tracing::info!(%description, "engine started");
        let inner = Inner { frontend, catalog, arrivals: sender, status, counters, description };
        Ok(Engine { inner: Arc::new(inner) })
    }

    /// Checks a request and hands it to the engine. Dropping the stream cancels it.
    ///
    /// # Errors
    /// [`Error::Invalid`] with field, value and bound; [`Error::Overloaded`] if too many requests wait; [`Error::Dead`].
    pub fn submit(&self, request: &Request) -> Result<EventStream> {
        let request = self.validate(request)?;
        self.submit_validated(request)
    }

    /// Checks a request without running it.
    ///
    /// # Errors
    /// [`Error::Invalid`] with field, value and bound.
    pub fn validate(&self, request: &Request) -> Result<ValidatedRequest> {
        self.inner.frontend.validate(request, self.inner.catalog.as_deref())
    }

    /// Hands a request to the engine that [`Engine::validate`] has checked.
    ///
    /// # Errors
    /// [`Error::Overloaded`] if too much waits; [`Error::Dead`].
    pub fn submit_validated(&self, request: ValidatedRequest) -> Result<EventStream> {
        self.submit_with(request, Submission::default())
    }

    /// The same in somebody's name, and with a time until which the answer is wanted.
    ///
    /// # Errors
    /// [`Error::Overloaded`] if too much waits; [`Error::Deadline`] if that time has passed; [`Error::Dead`].
    pub fn submit_with(&self, request: ValidatedRequest, submission: Submission) -> Result<EventStream> {
        let status = &self.inner.status;
        if let Some(reason) = status.death() {
            return Err(Error::Dead(reason.clone()));
        }
        let (arrival, stream) = Arrival::new(status, request, submission)?;
        // If the thread is gone, the stream says so.
        let _ = self.inner.arrivals.send(arrival);
        Ok(stream)
    }

    /// Answers a request and waits for the end.
    ///
    /// # Errors
    /// As [`Engine::submit`], and what ended the request instead of an answer.
    pub fn generate(&self, request: &Request) -> Result<Answer> {
        self.submit(request)?.wait()
    }

    /// The catalog, if there is one: to look at, and to change while requests run.
    pub fn catalog(&self) -> Option<&Arc<LiveCatalog>> {
        self.inner.catalog.as_ref()
    }

    /// The present state of the catalog, if there is one.
    pub fn view(&self) -> Option<Arc<View>> {
        self.inner.catalog.as_ref().map(|catalog| catalog.view())
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.inner.frontend.tokenizer
    }

    /// Most tokens of a prompt and its answer together: the model's positions, or fewer if the cache is smaller.
    pub fn max_sequence(&self) -> usize {
        self.inner.frontend.positions
    }

    /// Requests submitted and not yet ended.
    pub fn in_flight(&self) -> usize {
        let load = self.load();
        load.waiting_requests + load.running_requests
    }

    /// How SIDs are spelled in the vocabulary, if the model has them.
    pub fn layout(&self) -> Option<&Layout> {
        self.inner.frontend.layout.as_deref()
    }

    /// Bounds on requests.
    pub fn limits(&self) -> &Limits {
        &self.inner.frontend.limits
    }

    /// Why the engine ended, if it has.
    pub fn death(&self) -> Option<&str> {
        self.inner.status.death().map(String::as_str)
    }

    /// Resolves to the reason when the engine has ended.
    pub fn died(&self) -> Death {
        Death::of(&self.inner.status)
    }

    /// Gives the engine up, for example because its device hangs ([`Engine::health`]): from now on nothing is accepted, and
    /// every stream ends with [`Error::Dead`] once what it holds has been read, although the thread may still wait for the
    /// device. An engine that is dead keeps its first reason.
    pub fn declare_dead(&self, reason: impl Into<String>) {
        let reason = reason.into();
        tracing::error!(%reason, "the engine is given up");
        self.inner.status.die(reason);
    }

    /// How much there is to do; reads a few numbers that the thread has left.
    pub fn load(&self) -> Load {
        self.inner.status.load()
    }

    /// Whether the engine turns; reads a number that the thread has left, and never waits for it.
    pub fn health(&self) -> Health {
        self.inner.status.health()
    }

    /// Counters, readable at any time.
    pub fn counters(&self) -> &Counters {
        &self.inner.counters
    }

    /// The device, its threads and memory.
    pub fn description(&self) -> &str {
        &self.inner.description
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("device", &self.inner.description).finish_non_exhaustive()
    }
}

/// An engine whose wheel the caller turns.
#[doc(hidden)]
pub struct EngineParts {
    pub(super) frontend: Frontend,
    pub(super) catalog: Option<Arc<LiveCatalog>>,
    pub wheel: Wheel,
    pub(super) status: Arc<Status>,
    pub counters: Arc<Counters>,
    pub(super) description: String,
}

impl EngineParts {
    /// The device, its threads and memory.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// Checks a request and queues it.
    pub fn submit(&mut self, request: &Request) -> Result<EventStream> {
        self.submit_with(request, Submission::default())
    }

    /// The same in somebody's name.
    pub fn submit_with(&mut self, request: &Request, submission: Submission) -> Result<EventStream> {
        let request = self.frontend.validate(request, self.catalog.as_deref())?;
        let (arrival, stream) = Arrival::new(&self.status, request, submission)?;
        self.wheel.submit(arrival);
        Ok(stream)
    }

    /// How much there is to do.
    pub fn load(&self) -> Load {
        self.status.load()
    }
}

/// Runs the engine's thread; whatever ends it ends as a reason that every handle and stream can read.
fn guard(mut wheel: Wheel, receiver: &Receiver<Arrival>, status: &Status) {
    let reason = match catch_unwind(AssertUnwindSafe(|| run(&mut wheel, receiver, status))) {
        Ok(Ok(())) => return status.die("it was shut down".to_owned()),
        Ok(Err(error)) => error.to_string(),
        Err(panic) => format!("a bug: {}", panic_message(&*panic)),
    };
    tracing::error!(%reason, "the engine died");
    // Before the jobs' senders are dropped: their readers look here for the reason.
    status.die(reason);
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic without a message")
}

fn run(wheel: &mut Wheel, receiver: &Receiver<Arrival>, status: &Status) -> Result<()> {
    // Given up by others while a step hung: there is nobody left to work for.
    while status.death().is_none() {
        if wheel.jobs() == 0 {
            status.beat(Instant::now(), true);
            let Ok(arrival) = receiver.recv() else { return Ok(()) };
            status.beat(Instant::now(), false);
            wheel.submit(arrival);
        }
        // Once all handles are gone nothing more comes; the jobs still have readers and are answered before the thread ends.
        while let Ok(arrival) = receiver.try_recv() {
            wheel.submit(arrival);
        }
        if wheel.turn()? == Turn::Idle && wheel.jobs() > 0 {
            return Err(Error::Device(format!(
                "{} requests are left and none of them can run",
                wheel.jobs()
            )));
        }
    }
    Ok(())
}
