//! What an engine is made from, and the making of it.

use std::sync::Arc;

use super::counters::Counters;
use super::handle::{Engine, EngineParts};
use super::status::{QueueLimits, Status};
use super::validate::{Frontend, Limits};
use super::wheel::{Wheel, WheelParts};
use crate::catalog::{Catalog, Layout, LiveCatalog, LiveLimits, TypeSpec};
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
    queue: QueueLimits,
    limits: Limits,
    live_limits: LiveLimits,
    device: Option<DeviceMaker>,
}

/// Makes a device from its configuration.
type DeviceMaker = Box<dyn FnOnce(DeviceConfig) -> Result<Box<dyn Device>>>;

impl EngineBuilder {
    /// Begins an engine for a model and its tokenizer.
    pub(super) fn new(model: Model, tokenizer: Tokenizer) -> EngineBuilder {
        EngineBuilder {
            model,
            tokenizer,
            layout: None,
            catalog: None,
            dtype: DType::F32,
            threads: None,
            cache_bytes: None,
            max_rows: DEFAULT_MAX_ROWS,
            queue: QueueLimits::default(),
            limits: Limits::default(),
            live_limits: LiveLimits::default(),
            device: None,
        }
    }

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

    /// The catalog, if there is one.
    pub fn catalog_ref(&self) -> Option<&Arc<Catalog>> {
        self.catalog.as_ref()
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

    /// Requests that may wait and run; more are refused as overload; default 4096. Short for [`QueueLimits::requests`].
    pub fn max_requests(mut self, requests: usize) -> EngineBuilder {
        self.queue.requests = requests;
        self
    }

    /// Bounds on what waits; more is refused as overload.
    pub fn queue(mut self, limits: QueueLimits) -> EngineBuilder {
        self.queue = limits;
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
    /// named, the key/value cache takes what they leave free, up to four million tokens, where the driver is that of a GPU.
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
        Engine::start(self.parts()?)
    }

    /// The engine without its thread: for programs and benches that turn the wheel themselves.
    #[doc(hidden)]
    pub fn parts(self) -> Result<EngineParts> {
        let counters = Arc::new(Counters::default());
        let catalog = self.live();
        let status = Arc::new(Status::new(catalog.as_deref(), &counters, self.queue));
        let (frontend, wheel, description) = self.build(&counters, &status)?;
        Ok(EngineParts { frontend, catalog, wheel, status, counters, description })
    }

    fn live(&self) -> Option<Arc<LiveCatalog>> {
        self.catalog.as_ref().map(|catalog| Arc::new(LiveCatalog::new(catalog.clone(), self.live_limits)))
    }

    fn build(self, counters: &Arc<Counters>, status: &Arc<Status>) -> Result<(Frontend, Wheel, String)> {
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
            status: Arc::clone(status),
        });
        Ok((frontend, wheel, description))
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
