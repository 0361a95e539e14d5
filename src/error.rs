//! Errors: sentences that name the thing, the value and the bound.

use std::path::{Path, PathBuf};

/// The result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, as a sentence for a person.
///
/// Cheap to clone: one failure may have to reach many requests.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A request broke a bound; `field` is the JSON path of the field (`beam_width`, `messages[0].content[1].id`).
    #[error("{field}: {message}")]
    Invalid {
        /// JSON path of the offending field.
        field: String,
        /// A sentence with the value found and the bound.
        message: String,
    },
    /// A file is missing, truncated, altered or foreign.
    #[error("{}: {message}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong and where in the file (line, byte, tensor, key).
        message: String,
    },
    /// Something well-formed that this engine does not serve (an architecture, a rope scaling, a shape).
    #[error("{0}")]
    Unsupported(String),
    /// The device failed or has too little memory.
    #[error("device: {0}")]
    Device(String),
    /// The engine's queue is full; try again later.
    #[error("overloaded: {0}")]
    Overloaded(String),
    /// The request's deadline passed before its answer was complete.
    #[error("deadline exceeded: {0}")]
    Deadline(String),
    /// The request's own numbers broke down (a row of NaN); its neighbours are not affected.
    #[error("numeric fault: {0}")]
    Numeric(String),
    /// The engine thread has ended; no request will be answered any more.
    #[error("the engine is dead: {0}")]
    Dead(String),
}

impl Error {
    /// A bound broken by a request.
    pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Error {
        Error::Invalid { field: field.into(), message: message.into() }
    }

    /// The same error about another field: the caller knows the path of what was checked.
    #[must_use]
    pub fn at(self, field: impl Into<String>) -> Error {
        match self {
            Error::Invalid { message, .. } => Error::invalid(field, message),
            other => other,
        }
    }

    /// A file that cannot be used.
    pub fn file(path: impl AsRef<Path>, message: impl Into<String>) -> Error {
        Error::File { path: path.as_ref().to_path_buf(), message: message.into() }
    }

    /// The `type` of the error in JSON answers: `invalid_request`, `overloaded`, `numeric_fault`, `engine_dead`, …
    pub fn kind(&self) -> &'static str {
        match self {
            Error::Invalid { .. } => "invalid_request",
            Error::File { .. } => "file",
            Error::Unsupported(_) => "unsupported",
            Error::Device(_) => "device",
            Error::Overloaded(_) => "overloaded",
            Error::Deadline(_) => "deadline_exceeded",
            Error::Numeric(_) => "numeric_fault",
            Error::Dead(_) => "engine_dead",
        }
    }
}
