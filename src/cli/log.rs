//! The process's log: to standard error, as text or JSON lines, its level changeable while it runs.

use std::io::IsTerminal;

use clap::ValueEnum;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, ValueEnum, PartialEq, Eq)]
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object per line
    Json,
}

/// Sets the level, or only says it: `error`, `warn`, `info`, `debug`, `trace`, or directives.
pub type SetLevel = Box<dyn Fn(Option<&str>) -> Result<String, String> + Send + Sync>;

/// Begins to log. `SIDEREAL_LOG` comes before `level`.
pub fn init(level: &str, format: LogFormat) -> anyhow::Result<SetLevel> {
    let level = std::env::var("SIDEREAL_LOG").unwrap_or_else(|_| level.to_owned());
    let filter =
        EnvFilter::try_new(&level).map_err(|error| anyhow::anyhow!("log level {level:?}: {error}"))?;
    let (filter, handle) = reload::Layer::<EnvFilter, Registry>::new(filter);
    let lines = match format {
        LogFormat::Text => {
            fmt::layer().with_ansi(std::io::stderr().is_terminal()).with_writer(std::io::stderr).boxed()
        }
        LogFormat::Json => fmt::layer().json().flatten_event(true).with_writer(std::io::stderr).boxed(),
    };
    tracing_subscriber::registry().with(filter).with(lines).init();
    Ok(Box::new(move |level| {
        let Some(level) = level else {
            return handle.with_current(ToString::to_string).map_err(|error| error.to_string());
        };
        let filter = EnvFilter::try_new(level).map_err(|error| format!("{level:?}: {error}"))?;
        handle.reload(filter).map_err(|error| error.to_string())?;
        Ok(level.to_owned())
    }))
}
