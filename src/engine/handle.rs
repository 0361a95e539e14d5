//! The handle that others embed, and the thread behind it.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel as commands};

use super::answer::Answer;
use super::channel::{EventSender, EventStream, Status, channel};
use super::request::Request;
use super::validate::{Frontend, Limits, ValidatedRequest};
use super::wheel::{Counters, Turn, Wheel, WheelParts};
use crate::catalog::{Catalog, Layout, LiveCatalog, LiveLimits, TypeSpec, View};
use crate::device::cpu::sid::MAX_WIDTH;
use crate::device::cpu::{CpuDevice, CpuOptions};
use crate::device::ops::{DType, Device, DeviceConfig, Sampling};
use crate::error::{Error, Result};
use crate::ids::TokenId;
use crate::kv::BLOCK_TOKENS;
use crate::model::Model;
use crate::text::Tokenizer;

/// Memory of the key/value cache unless said otherwise; pages that no request has touched cost nothing.
const DEFAULT_CACHE_BYTES: usize = 512 << 20;
/// Most tokens that the default cache holds: small models would get millions.
const DEFAULT_CACHE_TOKENS: usize = 1 << 18;
/// Rows of one step unless said otherwise: wide enough for the products to be limited by arithmetic.
const DEFAULT_MAX_ROWS: usize = 512;
/// Requests waiting and running unless said otherwise.
const DEFAULT_MAX_REQUESTS: usize = 4096;

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
    commands: Sender<Command>,
    status: Arc<Status>,
    counters: Arc<Counters>,
    max_requests: usize,
    description: String,
}

struct Command {
    request: ValidatedRequest,
    events: EventSender,
}

/// Collects what an engine is made from.
pub struct EngineBuilder {
    model: Model,
    tokenizer: Tokenizer,
    layout: Option<Layout>,
    catalog: Option<Arc<Catalog>>,
    dtype: DType,
    threads: Option<usize>,
    cache_bytes: Option<usize>,
    max_rows: usize,
    max_requests: usize,
    limits: Limits,
    live_limits: LiveLimits,
    device: Option<DeviceMaker>,
}

/// Makes a device from its configuration.
type DeviceMaker = Box<dyn FnOnce(DeviceConfig) -> Result<Box<dyn Device>>>;

impl EngineBuilder {
    /// The model.
    pub fn model_ref(&self) -> &Model {
        &self.model
    }

    /// The tokenizer.
    pub fn tokenizer_ref(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The SID layout, if there is one.
    pub fn layout_ref(&self) -> Option<&Layout> {
        self.layout.as_ref()
    }

    /// How SIDs are spelled in the model's vocabulary; needed for everything but plain text.
    pub fn layout(mut self, layout: Layout) -> EngineBuilder {
        self.layout = Some(layout);
        self
    }

    /// The items that may be named; needed for everything but plain text.
    pub fn catalog(mut self, catalog: Arc<Catalog>) -> EngineBuilder {
        self.catalog = Some(catalog);
        self
    }

    /// Type of activations and cache; default f32.
    pub fn dtype(mut self, dtype: DType) -> EngineBuilder {
        self.dtype = dtype;
        self
    }

    /// Threads of the CPU device; default: all cores.
    pub fn threads(mut self, threads: usize) -> EngineBuilder {
        self.threads = Some(threads);
        self
    }

    /// Bytes of the key/value cache; default 512 MiB, or less for small models.
    pub fn cache_bytes(mut self, bytes: usize) -> EngineBuilder {
        self.cache_bytes = Some(bytes);
        self
    }

    /// Rows of one step: the most prompt tokens and beams computed together; default 512.
    pub fn max_rows(mut self, rows: usize) -> EngineBuilder {
        self.max_rows = rows;
        self
    }

    /// Requests that may wait and run; more are refused as overload; default 4096.
    pub fn max_requests(mut self, requests: usize) -> EngineBuilder {
        self.max_requests = requests;
        self
    }

    /// Bounds on requests.
    pub fn limits(mut self, limits: Limits) -> EngineBuilder {
        self.limits = limits;
        self
    }

    /// Bounds on changes of the catalog.
    pub fn live_limits(mut self, limits: LiveLimits) -> EngineBuilder {
        self.live_limits = limits;
        self
    }

    /// Another device than the CPU.
    pub fn device(
        mut self,
        make: impl FnOnce(DeviceConfig) -> Result<Box<dyn Device>> + 'static,
    ) -> EngineBuilder {
        self.device = Some(Box::new(make));
        self
    }

    /// Puts the engine on a CUDA driver's device. Type, rows and catalog are to be set before: unless its size has been
    /// named, the key/value cache takes what they leave free, where the driver is that of a GPU.
    ///
    /// # Errors
    /// The driver's.
    #[cfg(any(feature = "cuda", feature = "emulated"))]
    pub fn on_cuda(
        mut self,
        mut driver: Box<dyn crate::device::cuda::driver::Driver>,
        options: crate::device::cuda::CudaOptions,
    ) -> Result<EngineBuilder> {
        if self.cache_bytes.is_none() && !driver.properties().emulated {
            let (shape, weights) = (self.model.shape(), &self.model.weights);
            let layout = self.layout.as_ref();
            let sizes = crate::device::cuda::Fit { shape, weights, layout, dtype: self.dtype };
            self.cache_bytes = Some(sizes.cache_bytes(self.max_rows, driver.free_memory()?));
        }
        Ok(self.device(move |config| {
            Ok(Box::new(crate::device::cuda::CudaDevice::new(driver, config, options)?))
        }))
    }

    /// Starts the engine's thread.
    ///
    /// # Errors
    /// If the layout does not fit the model's vocabulary or the catalog, if the cache is too small for a single block, or
    /// if the device cannot be made.
    pub fn start(self) -> Result<Engine> {
        let counters = Arc::new(Counters::default());
        let max_requests = self.max_requests;
        let catalog = self.live();
        let status = Arc::new(Status::new(catalog.as_deref(), &counters));
        let (frontend, wheel, description) = self.build(&counters)?;
        let (sender, receiver) = commands();
        let thread_status = Arc::clone(&status);
        std::thread::Builder::new()
            .name("sidereal-engine".to_owned())
            .spawn(move || guard(wheel, &receiver, &thread_status))
            .map_err(|error| Error::Device(format!("the engine's thread could not be started: {error}")))?;
        tracing::info!(%description, "engine started");
        let inner =
            Inner { frontend, catalog, commands: sender, status, counters, max_requests, description };
        Ok(Engine { inner: Arc::new(inner) })
    }

    /// The engine without its thread: for programs and benches that turn the wheel themselves.
    #[doc(hidden)]
    pub fn parts(self) -> Result<EngineParts> {
        let counters = Arc::new(Counters::default());
        let catalog = self.live();
        let status = Arc::new(Status::new(catalog.as_deref(), &counters));
        let (frontend, wheel, description) = self.build(&counters)?;
        Ok(EngineParts { frontend, catalog, wheel, status, counters, description })
    }

    fn live(&self) -> Option<Arc<LiveCatalog>> {
        self.catalog.as_ref().map(|catalog| Arc::new(LiveCatalog::new(catalog.clone(), self.live_limits)))
    }

    fn build(self, counters: &Arc<Counters>) -> Result<(Frontend, Wheel, String)> {
        let shape = self.model.config.shape.clone();
        let mut tokenizer = self.tokenizer;
        if let Some(layout) = &self.layout {
            check_layout(layout, self.catalog.as_deref(), shape.vocab)?;
            tokenizer.set_protected(layout.tokens());
        }
        let text_tokens = text_tokens(&tokenizer, self.layout.as_ref(), shape.vocab);
        let layout = self.layout.map(Arc::new);
        let cache_blocks = cache_blocks(&shape, self.dtype, self.cache_bytes)?;
        let max_rows = self.max_rows.max(1);
        let config = DeviceConfig {
            shape: shape.clone(),
            weights: self.model.weights,
            dtype: self.dtype,
            cache_blocks,
            max_rows,
            text_tokens,
            layout: layout.clone(),
        };
        let device = match self.device {
            Some(make) => make(config)?,
            None => Box::new(CpuDevice::new(config, CpuOptions { threads: self.threads, simd: None })?),
        };
        let description = device.describe();
        let tokenizer = Arc::new(tokenizer);
        let defaults = &self.model.config.defaults;
        let off = Sampling::default();
        let frontend = Frontend {
            tokenizer: Arc::clone(&tokenizer),
            layout: layout.clone(),
            adapter: self.model.adapter,
            limits: Limits { beam_width: self.limits.beam_width.min(MAX_WIDTH as usize), ..self.limits },
            vocab: shape.vocab,
            positions: shape.max_positions.min(cache_blocks * BLOCK_TOKENS),
            eos: self.model.config.eos.clone(),
            defaults: Sampling {
                temperature: defaults.temperature.unwrap_or(off.temperature),
                top_k: defaults.top_k.unwrap_or(off.top_k),
                top_p: defaults.top_p.unwrap_or(off.top_p),
                min_p: defaults.min_p.unwrap_or(off.min_p),
                repetition_penalty: defaults.repetition_penalty.unwrap_or(off.repetition_penalty),
                ..off
            },
            max_rows,
            cache_blocks,
        };
        let wheel = Wheel::new(WheelParts {
            device,
            layers: shape.layers,
            cache_blocks,
            max_rows,
            tokenizer,
            layout,
            counters: Arc::clone(counters),
        });
        Ok((frontend, wheel, description))
    }
}

impl Engine {
    /// Begins an engine for a model and its tokenizer.
    pub fn builder(model: Model, tokenizer: Tokenizer) -> EngineBuilder {
        EngineBuilder {
            model,
            tokenizer,
            layout: None,
            catalog: None,
            dtype: DType::F32,
            threads: None,
            cache_bytes: None,
            max_rows: DEFAULT_MAX_ROWS,
            max_requests: DEFAULT_MAX_REQUESTS,
            limits: Limits::default(),
            live_limits: LiveLimits::default(),
            device: None,
        }
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
    /// [`Error::Overloaded`] if too many requests wait; [`Error::Dead`].
    pub fn submit_validated(&self, request: ValidatedRequest) -> Result<EventStream> {
        let status = &self.inner.status;
        if let Some(reason) = status.death.get() {
            return Err(Error::Dead(reason.clone()));
        }
        let in_flight = status.in_flight.load(Ordering::Relaxed);
        if in_flight >= self.inner.max_requests {
            return Err(Error::Overloaded(format!(
                "{in_flight} requests wait or run, as many as are allowed; try again later"
            )));
        }
        let (events, stream) = channel(status);
        // If the thread is gone, the stream says so.
        let _ = self.inner.commands.send(Command { request, events });
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
        self.inner.status.death.get().map(String::as_str)
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
    frontend: Frontend,
    catalog: Option<Arc<LiveCatalog>>,
    pub wheel: Wheel,
    status: Arc<Status>,
    pub counters: Arc<Counters>,
    description: String,
}

impl EngineParts {
    /// The device, its threads and memory.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// Checks a request and queues it.
    pub fn submit(&mut self, request: &Request) -> Result<EventStream> {
        let request = self.frontend.validate(request, self.catalog.as_deref())?;
        let (events, stream) = channel(&self.status);
        self.wheel.submit(request, events);
        Ok(stream)
    }
}

/// Runs the engine's thread; whatever ends it ends as a reason that every handle and stream can read.
fn guard(mut wheel: Wheel, receiver: &Receiver<Command>, status: &Status) {
    let reason = match catch_unwind(AssertUnwindSafe(|| run(&mut wheel, receiver))) {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(panic) => format!("a bug: {}", panic_message(&*panic)),
    };
    tracing::error!(%reason, "the engine died");
    // Before the jobs' senders are dropped: their readers look here for the reason.
    let _ = status.death.set(reason);
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic without a message")
}

fn run(wheel: &mut Wheel, receiver: &Receiver<Command>) -> Result<()> {
    loop {
        if wheel.jobs() == 0 {
            let Ok(command) = receiver.recv() else { return Ok(()) };
            wheel.submit(command.request, command.events);
        }
        // Once all handles are gone nothing more comes; the jobs still have readers and are answered before the thread ends.
        while let Ok(command) = receiver.try_recv() {
            wheel.submit(command.request, command.events);
        }
        if wheel.turn()? == Turn::Idle && wheel.jobs() > 0 {
            return Err(Error::Device(format!(
                "{} requests are left and none of them can run",
                wheel.jobs()
            )));
        }
    }
}

/// Blocks of the cache that the memory gives.
fn cache_blocks(shape: &crate::device::ops::Shape, dtype: DType, bytes: Option<usize>) -> Result<usize> {
    let token = 2 * shape.layers * shape.kv_heads * shape.head_dim * dtype.size();
    let blocks = bytes.unwrap_or(DEFAULT_CACHE_BYTES) / (token * BLOCK_TOKENS);
    if blocks == 0 {
        return Err(Error::Device(format!(
            "the cache has {} bytes, and one block of {BLOCK_TOKENS} tokens takes {}",
            bytes.unwrap_or(DEFAULT_CACHE_BYTES),
            token * BLOCK_TOKENS
        )));
    }
    Ok(if bytes.is_some() { blocks } else { blocks.min(DEFAULT_CACHE_TOKENS / BLOCK_TOKENS) })
}

/// `[vocab]` bits: tokens that the tokenizer knows and that do not spell SIDs.
fn text_tokens(tokenizer: &Tokenizer, layout: Option<&Layout>, vocab: usize) -> Vec<u64> {
    let mut bits = vec![0u64; vocab.div_ceil(64)];
    for token in (0..vocab as u32).map(TokenId) {
        if tokenizer.has(token) && layout.is_none_or(|layout| layout.place(token).is_none()) {
            bits[token.index() / 64] |= 1 << (token.index() % 64);
        }
    }
    bits
}

fn check_layout(layout: &Layout, catalog: Option<&Catalog>, vocab: usize) -> Result<()> {
    if layout.max_token().index() >= vocab {
        return Err(Error::Unsupported(format!(
            "the SID layout uses token {}, outside of the model's vocabulary of {vocab} tokens",
            layout.max_token()
        )));
    }
    let Some(catalog) = catalog else { return Ok(()) };
    let describe = |specs: Vec<TypeSpec>| {
        let of = |spec: TypeSpec| format!("{} {:?}", spec.name, spec.levels);
        specs.into_iter().map(of).collect::<Vec<_>>().join(", ")
    };
    let (own, found) = (describe(layout.specs()), describe(catalog.specs()));
    if own == found {
        return Ok(());
    }
    Err(Error::Unsupported(format!(
        "the catalog's types and codebooks are {found}, the model's are {own}; build the catalog with the model's layout"
    )))
}
