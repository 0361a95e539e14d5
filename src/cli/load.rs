//! Options that name a model, a catalog and a device, and the way from them to an engine.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sidereal::Error;
use sidereal::demo;
#[cfg(feature = "cuda")]
use sidereal::device::cuda::CudaDriver;
#[cfg(any(feature = "cuda", feature = "emulated"))]
use sidereal::device::cuda::CudaOptions;
#[cfg(feature = "emulated")]
use sidereal::device::cuda::{EmulatedDriver, EmulatedOptions};
use sidereal::device::hash::HashDevice;
use sidereal::device::ops::DType;
use sidereal::engine::{Engine, EngineBuilder, Limits};

/// The model, its catalog, and where it runs.
#[derive(Args, Debug)]
#[command(next_help_heading = "Model and device")]
pub struct LoadArgs {
    /// Hugging Face folder of the model [default: the built-in demonstration, which knows 1,260 books, films and albums]
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// Catalog of items, as JSON lines with id, type, title, popularity, sid
    #[arg(long, value_name = "FILE", requires = "model")]
    pub catalog: Option<PathBuf>,
    /// How SIDs are spelled in the vocabulary [default: the model's sid_layout.json, else its tokens' names]
    #[arg(long, value_name = "FILE", requires = "model")]
    pub layout: Option<PathBuf>,
    /// Type of activations and cache [default: f32 on the CPU, bf16 elsewhere]
    #[arg(long, value_enum)]
    pub dtype: Option<DTypeArg>,
    /// Where the model runs
    #[arg(long, value_enum, default_value_t = DeviceArg::Cpu)]
    pub device: DeviceArg,
    /// Threads of the CPU device [default: all cores]
    #[arg(long, value_name = "N")]
    pub threads: Option<std::num::NonZeroUsize>,
    /// One order of every sum, whatever else is computed beside it; slower. The CPU has no other mode
    #[arg(long)]
    pub reproducible: bool,
    /// Memory of the key/value cache in MiB [default: 512, less for small models; on a GPU what is free, up to 4 million tokens]
    #[arg(long, value_name = "MIB")]
    pub cache_mib: Option<usize>,
    /// With --device hash: what a step takes at least
    #[arg(long, value_name = "MS", hide = true)]
    pub step_ms: Option<f64>,
    /// Rows of one step: prompt tokens and beams computed together [default: 512, on a GPU 8192]
    #[arg(long, value_name = "N")]
    pub max_rows: Option<usize>,
}

/// Element types by name.
#[derive(Clone, Copy, Debug, ValueEnum, PartialEq, Eq)]
pub enum DTypeArg {
    /// 32-bit float
    F32,
    /// bfloat16
    Bf16,
    /// IEEE half precision
    F16,
}

impl From<DTypeArg> for DType {
    fn from(dtype: DTypeArg) -> DType {
        match dtype {
            DTypeArg::F32 => DType::F32,
            DTypeArg::Bf16 => DType::Bf16,
            DTypeArg::F16 => DType::F16,
        }
    }
}

/// Devices of this build.
#[derive(Clone, Copy, Debug, ValueEnum, PartialEq, Eq)]
pub enum DeviceArg {
    /// The processor
    Cpu,
    /// The first CUDA device
    #[cfg(feature = "cuda")]
    Cuda,
    /// The CUDA kernels, run by the processor: for tests, slow
    #[cfg(feature = "emulated")]
    Emulated,
    /// A hash instead of the model: answers are valid and mean nothing; for measurements of everything else
    #[value(hide = true)]
    Hash,
}

impl DeviceArg {
    /// The type of activations unless one is named.
    pub fn dtype(self) -> DTypeArg {
        match self {
            DeviceArg::Cpu | DeviceArg::Hash => DTypeArg::F32,
            #[cfg(any(feature = "cuda", feature = "emulated"))]
            _ => DTypeArg::Bf16,
        }
    }

    /// Puts an engine, otherwise complete, on the device.
    pub fn place(self, builder: EngineBuilder, reproducible: bool) -> anyhow::Result<EngineBuilder> {
        #[cfg(any(feature = "cuda", feature = "emulated"))]
        let options = CudaOptions { reproducible, ..CudaOptions::default() };
        Ok(match self {
            // Its one mode is reproducible.
            DeviceArg::Cpu => {
                let _ = reproducible;
                builder
            }
            DeviceArg::Hash => {
                builder.device(|config| Ok(Box::new(HashDevice::new(config, Duration::ZERO)?)))
            }
            #[cfg(feature = "cuda")]
            DeviceArg::Cuda => builder.on_cuda(Box::new(CudaDriver::new(0)?), options)?,
            #[cfg(feature = "emulated")]
            DeviceArg::Emulated => {
                let options_of_host = EmulatedOptions::from_environment()?;
                builder.on_cuda(Box::new(EmulatedDriver::new(options_of_host)?), options)?
            }
        })
    }

    /// Rows of one step unless they are named.
    pub fn max_rows(self) -> usize {
        match self {
            #[cfg(feature = "cuda")]
            DeviceArg::Cuda => 8192,
            _ => 512,
        }
    }
}

impl LoadArgs {
    /// Opens everything and starts the engine.
    pub fn engine(&self) -> anyhow::Result<Engine> {
        let start = Instant::now();
        let engine = self.builder()?.start()?;
        tracing::info!(seconds = start.elapsed().as_secs_f64(), device = engine.description(), "ready");
        Ok(engine)
    }

    /// Opens everything.
    pub fn builder(&self) -> anyhow::Result<EngineBuilder> {
        let max_rows = self.max_rows.unwrap_or(self.device.max_rows());
        if max_rows == 0 || max_rows > 65_536 {
            bail!("--max-rows: {max_rows} is outside of the allowed range from 1 to 65536");
        }
        let builder = match &self.model {
            None => demo::builder()?,
            Some(folder) => self.open(folder)?,
        };
        let dtype = self.dtype.unwrap_or(self.device.dtype());
        let mut builder = builder.dtype(dtype.into()).max_rows(max_rows).limits(Limits::default());
        if let Some(threads) = self.threads {
            builder = builder.threads(threads.get());
        }
        if let Some(mib) = self.cache_mib {
            builder = builder.cache_bytes(mib.checked_mul(1 << 20).context("--cache-mib: too large")?);
        }
        if let (DeviceArg::Hash, Some(ms)) = (self.device, self.step_ms) {
            let step = Duration::try_from_secs_f64(ms / 1e3).context("--step-ms")?;
            return Ok(builder.device(move |config| Ok(Box::new(HashDevice::new(config, step)?))));
        }
        self.device.place(builder, self.reproducible)
    }

    fn open(&self, folder: &std::path::Path) -> anyhow::Result<EngineBuilder> {
        let mut builder = EngineBuilder::open(folder).map_err(|error| match error {
            // What is not served is said without the folder's name.
            Error::Unsupported(_) => anyhow::Error::from(error).context(folder.display().to_string()),
            error => error.into(),
        })?;
        if let Some(layout) = &self.layout {
            builder = builder.layout_file(layout)?;
        }
        let Some(catalog) = &self.catalog else { return Ok(builder) };
        let bar = progress("reading the catalog");
        let builder = builder.catalog_file(catalog, &mut |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        })?;
        bar.finish_and_clear();
        Ok(builder)
    }
}

/// A progress bar in bytes on standard error; silent unless that is a terminal.
pub fn progress(what: &'static str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {eta}") {
        bar.set_style(style);
    }
    bar.with_message(what)
}
