//! Sidereal: a serving engine for catalog-grounded language models.
//!
//! A decoder-only model whose vocabulary holds Semantic IDs (SIDs) searches, recommends and explains;
//! the engine guarantees that every item it names is in the catalog and passes the request's bounds.
//!
//! The rooms, each of which knows only those to its right:
//! [`engine`] → [`model`] → [`device`] → [`catalog`], [`kv`], [`text`] → [`error`]. Beside the engine stands [`sid`], which makes Semantic
//! IDs from embeddings and knows models, texts and catalogs.

#[cfg(feature = "capi")]
pub mod capi;
pub mod catalog;
pub mod dataset;
pub mod demo;
pub mod device;
pub mod engine;
pub mod error;
pub mod eval;
pub mod ids;
pub mod kv;
pub mod model;
mod random;
#[cfg(feature = "server")]
pub mod server;
pub mod sid;
pub mod text;

pub use error::{Error, Result};
